//! How single values are written: durations, sizes, networks, patterns, names. Pure.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use jiff::{Span, SpanRelativeTo};

use super::{Pattern, VaultObject};
use crate::address::Address;

/// Why a value is not what its key takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// Goes on after the key: "is not a duration".
    pub title: String,
    /// What stands at the value: "expected …".
    pub label: String,
    /// What to do, where the label does not say it all.
    pub help: Option<String>,
}

impl Problem {
    pub fn new(title: impl Into<String>, label: impl Into<String>) -> Problem {
        Problem {
            title: title.into(),
            label: label.into(),
            help: None,
        }
    }

    pub fn help(mut self, help: impl Into<String>) -> Problem {
        self.help = Some(help.into());
        self
    }
}

/// `15m`, `1h 30m`, `5 days`: what jiff calls the friendly format. A day has 24 hours.
pub(super) fn duration(text: &str) -> Result<Duration, Problem> {
    let bad = || {
        Problem::new(
            "is not a duration",
            "expected e.g. \"30s\", \"15m\", \"12h\" or \"5d\"",
        )
    };
    let span: Span = text.trim().parse().map_err(|_| bad())?;
    let duration = span
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .map_err(|_| bad())?;
    Duration::try_from(duration)
        .map_err(|_| Problem::new("is a negative duration", "expected a positive one"))
}

/// `100KB`, `4 MB`, `10GB`, `512`: octets. A KB is 1024 octets, as Exchange counts.
pub(super) fn size(text: &str) -> Result<u64, Problem> {
    let bad = || {
        Problem::new(
            "is not a size",
            "expected octets, or e.g. \"100KB\", \"4MB\", \"10GB\"",
        )
    };
    let text = text.trim();
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..unit_at].parse().map_err(|_| bad())?;
    let unit: u64 = match text[unit_at..].trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KB" | "KIB" => 1 << 10,
        "M" | "MB" | "MIB" => 1 << 20,
        "G" | "GB" | "GIB" => 1 << 30,
        "T" | "TB" | "TIB" => 1 << 40,
        _ => return Err(bad()),
    };
    number
        .checked_mul(unit)
        // What SQLite and the SIZE extension count with.
        .filter(|it| i64::try_from(*it).is_ok())
        .ok_or_else(|| Problem::new("is too large", "expected less than 8 EB"))
}

/// `10.1.0.0/16`, `fe80::/10`, or one address.
pub(super) fn network(text: &str) -> Result<IpNet, Problem> {
    let text = text.trim();
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        let address = address.to_canonical();
        return Ok(IpNet::new_assert(
            address,
            if address.is_ipv4() { 32 } else { 128 },
        ));
    }
    let Ok(network) = text.parse::<IpNet>() else {
        return Err(Problem::new(
            "is not a network",
            "expected e.g. \"10.1.0.0/16\", \"10.1.2.3\" or \"fd00::/8\"",
        ));
    };
    if network != network.trunc() {
        return Err(Problem::new(
            "has bits set beyond its prefix",
            format!(
                "expected \"{}\", or \"{}\" for this one host",
                network.trunc(),
                network.addr()
            ),
        ));
    }
    // `::ffff:10.0.0.0/104`, as dual-stack sockets see IPv4 (RFC 4291 §2.5.5.2).
    if let IpNet::V6(it) = network
        && let Some(address) = it.addr().to_ipv4_mapped()
        && let Some(prefix) = it.prefix_len().checked_sub(96)
    {
        return Ok(IpNet::new_assert(address.into(), prefix));
    }
    Ok(network)
}

/// `127.0.0.1:2525`, `[::1]:2525`.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, Problem> {
    let text = text.trim();
    text.parse().map_err(|_| {
        let problem = Problem::new(
            "is not an address and port",
            "expected e.g. \"127.0.0.1:2525\" or \"[::1]:2525\"",
        );
        match text.rsplit_once(':') {
            Some(("" | "*", port)) => problem.help(format!(
                "for every address of this host write \"0.0.0.0:{port}\" or \"[::]:{port}\""
            )),
            Some((host, port))
                if port.parse::<u16>().is_ok()
                    && host.contains(|c: char| c.is_ascii_alphabetic())
                    && !host.contains(':') =>
            {
                problem.help(format!(
                    "host names are not looked up here: write the address that '{host}' stands for"
                ))
            }
            _ if text.parse::<std::net::IpAddr>().is_ok() => {
                problem.help("add a port: 25, 587 (submission) or 2525")
            }
            _ => problem,
        }
    })
}

/// What a sender address is compared with. See [`Pattern`].
pub(super) fn pattern(text: &str) -> Result<Pattern, Problem> {
    let bad = |help: &str| {
        Problem::new(
            format!("'{text}' is not an address pattern"),
            "expected \"erp@contoso.com\", \"*@contoso.com\", \"*\" or \"<>\"",
        )
        .help(help)
    };
    match text.trim() {
        "*" => return Ok(Pattern::Any),
        "<>" => return Ok(Pattern::Null),
        "" => {
            return Err(bad(
                "the null reverse-path is written \"<>\", and any address \"*\"",
            ));
        }
        _ => {}
    }
    let text = text.trim();
    if let Some(domain) = text.strip_prefix("*@") {
        return match is_domain(domain) {
            true => Ok(Pattern::Domain(domain.to_lowercase())),
            false if domain.contains('*') => Err(bad(
                "a '*' stands for a whole local part; list the domains one by one",
            )),
            false => Err(bad("after \"*@\" comes one domain, exactly")),
        };
    }
    if text.contains('*') {
        return Err(bad(
            "a '*' stands for a whole local part, as in \"*@contoso.com\", or alone for any address",
        ));
    }
    if text.starts_with('@') {
        return Err(bad(&format!("for any address of the domain write \"*{text}\"")));
    }
    match Address::parse(text) {
        // An `@` in a local part is right only in quotes (RFC 5321 §4.1.2).
        Ok(address) if address.local_part().contains('@') && !text.starts_with('"') => {
            Err(bad("there is one '@' too many"))
        }
        Ok(address) => Ok(Pattern::Exact(address.as_str().to_lowercase())),
        Err(why) => Err(bad(&format!("this is {why}"))),
    }
}

/// A user principal name: `service@contoso.com`.
pub(super) fn mailbox(text: &str) -> Result<String, Problem> {
    let bad = |help| {
        Problem::new(
            "is not the user principal name of a mailbox",
            "expected e.g. \"service@contoso.com\"",
        )
        .help(help)
    };
    const WHERE: &str =
        "Exchange admin center > Recipients > Mailboxes; the name is the one the mailbox signs in with";
    let text = text.trim();
    let address = Address::parse(text).map_err(|_| bad(WHERE))?;
    if text.contains('*') {
        return Err(bad(
            "one rule sends through one mailbox; the patterns belong to 'address'",
        ));
    }
    // What a UPN may contain: learn.microsoft.com/entra/identity/hybrid/connect/plan-connect-userprincipalname.
    // '/' and '?' would besides leave the path of the request.
    let odd = |c: char| c.is_whitespace() || "\"(),/:;<=>?[\\]{|}".contains(c);
    if address.local_part().contains(odd)
        || !address
            .domain()
            .is_some_and(|it| it.contains('.') && is_domain(it))
    {
        return Err(bad(WHERE));
    }
    Ok(text.to_owned())
}

/// The tenant: its GUID, or a domain verified in it.
pub(super) fn tenant_id(text: &str) -> Result<String, Problem> {
    let text = text.trim();
    if is_guid(text) || (text.contains('.') && is_domain(text)) {
        return Ok(text.to_owned());
    }
    let help = match text {
        // Application tokens are issued by one tenant: learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow.
        "common" | "organizations" | "consumers" => {
            "an application signs in to one tenant, so it must be named"
        }
        _ => "Entra admin center > App registrations > your app > Overview > Directory (tenant) ID",
    };
    Err(Problem::new(
        "is not a tenant id (GUID) or a verified domain",
        "expected e.g. 1b4e28ba-2fa1-11d2-883f-0016d3cca427 or contoso.onmicrosoft.com",
    )
    .help(help))
}

/// The application (client) id.
pub(super) fn client_id(text: &str) -> Result<String, Problem> {
    let text = text.trim();
    if is_guid(text) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(Problem::new(
        "is not an application id (GUID)",
        "expected e.g. 6731de76-14a6-49ae-97bc-6eba6914391e",
    )
    .help("Entra admin center > App registrations > your app > Overview > Application (client) ID"))
}

/// `https://host[:port][/path]` without the last slash; `http` only where it cannot leave the host.
pub(super) fn base_url(text: &str) -> Result<String, Problem> {
    let text = text.trim().trim_end_matches('/');
    let bad = || {
        Problem::new(
            "is not an https URL",
            "expected e.g. \"https://graph.microsoft.com\"",
        )
    };
    let url = reqwest::Url::parse(text).map_err(|_| bad())?;
    if url.query().is_some()
        || url.fragment().is_some()
        || !url.username().is_empty()
        || url.password().is_some()
    {
        return Err(bad().help("neither a user, nor a query, nor a fragment belongs here"));
    }
    match url.scheme() {
        "https" => Ok(text.to_owned()),
        "http" if is_loopback(&url) => Ok(text.to_owned()),
        "http" => Err(Problem::new(
            "is a plain http URL to another host",
            "expected https://",
        )
        .help("the token and the mail would be readable on the way; plain http is for loopback addresses such as http://127.0.0.1:8025")),
        _ => Err(bad()),
    }
}

/// An address that is posted to. What is wrong is said without it, for it is often a secret.
pub(super) fn webhook_url(text: &str) -> Result<(), Problem> {
    let bad = |title: &str| Problem::new(title, "expected e.g. \"https://alerts.contoso.com/graphpost\"");
    let url = reqwest::Url::parse(text.trim()).map_err(|_| bad("is no URL"))?;
    match url.scheme() {
        "https" => Ok(()),
        "http" if is_loopback(&url) => Ok(()),
        "http" => Err(bad("is a plain http URL to another host").help(
            "addresses and reasons would be readable on the way; plain http is for loopback addresses",
        )),
        _ => Err(bad("is no https URL")),
    }
}

/// `https://contoso.vault.azure.net/certificates/name`, perhaps with a version; `kind` is the second
/// word of it.
pub(super) fn vault_object(text: &str, kind: &str) -> Result<VaultObject, Problem> {
    let example = format!("expected e.g. \"https://contoso.vault.azure.net/{kind}/graphpost\"");
    let bad = || {
        Problem::new(
            format!("is not the address of one of a vault's {kind}"),
            example.as_str(),
        )
    };
    let text = base_url(text)?;
    let url = reqwest::Url::parse(&text).map_err(|_| bad())?;
    let segments: Vec<&str> = url.path_segments().map(Iterator::collect).unwrap_or_default();
    // https://learn.microsoft.com/azure/key-vault/general/about-keys-secrets-certificates
    let named = |it: &str| !it.is_empty() && it.chars().all(|it| it.is_ascii_alphanumeric() || it == '-');
    let (name, version) = match segments.as_slice() {
        [it, name] if *it == kind => (*name, None),
        [it, name, version] if *it == kind => (*name, Some(*version)),
        _ => return Err(bad()),
    };
    if !named(name) || !version.is_none_or(named) {
        return Err(bad());
    }
    let root = text.split(&format!("/{kind}/")).next().unwrap_or_default();
    Ok(VaultObject {
        vault: root.to_owned(),
        name: name.to_owned(),
        version: version.map(str::to_owned),
    })
}

/// An HTTP proxy: `http://proxy.contoso.local:8080`.
pub(super) fn proxy(text: &str) -> Result<String, Problem> {
    let text = text.trim();
    match reqwest::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(text.to_owned()),
        _ => Err(Problem::new(
            "is not the URL of an HTTP proxy",
            "expected e.g. \"http://proxy.contoso.local:8080\"",
        )),
    }
}

/// A name for the greeting: a domain or an address literal (RFC 5321 §4.1.3).
pub(super) fn hostname(text: &str) -> Result<String, Problem> {
    let text = text.trim();
    let literal = text
        .strip_prefix('[')
        .and_then(|it| it.strip_suffix(']'))
        .is_some_and(|it| {
            let it = it.strip_prefix("IPv6:").unwrap_or(it);
            it.parse::<std::net::IpAddr>().is_ok()
        });
    if literal || (is_domain(text) && text.is_ascii()) {
        return Ok(text.to_owned());
    }
    Err(Problem::new(
        "is not a host name",
        "expected e.g. \"relay.contoso.local\"",
    ))
}

/// A name for logs and metrics.
pub(super) fn socket_name(text: &str) -> Result<String, Problem> {
    // systemd.socket(5), FileDescriptorName=.
    let valid = |c: char| c.is_ascii() && !c.is_ascii_control() && c != ':';
    if text.is_empty() || text.len() > 255 || !text.chars().all(valid) {
        return Err(Problem::new(
            "is no name of a socket",
            "expected FileDescriptorName= of the socket unit, such as \"smtp\"",
        ));
    }
    Ok(text.to_owned())
}

pub(super) fn name(text: &str) -> Result<String, Problem> {
    let good = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '[' | ']' | '/');
    if text.is_empty() || text.len() > 64 || !text.chars().all(good) {
        return Err(Problem::new(
            "is not a short name",
            "expected up to 64 letters, digits, '-', '_', '.' or '/'",
        ));
    }
    Ok(text.to_owned())
}

/// 8-4-4-4-12 hexadecimal digits.
pub(super) fn is_guid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, octet)| match at {
            8 | 13 | 18 | 23 => octet == b'-',
            _ => octet.is_ascii_hexdigit(),
        })
}

/// Labels of letters, digits and hyphens, also in other scripts. Underscores are no host names, and
/// stand in real mail addresses nevertheless.
fn is_domain(text: &str) -> bool {
    let label = |it: &str| {
        (1..=63).contains(&it.len())
            && it.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_')
            && !it.starts_with('-')
            && !it.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// Whether a URL leads to this host itself. By the text: a name would have to be looked up.
fn is_loopback(url: &reqwest::Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|it| it.is_loopback())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in [
            ("30s", 30),
            ("15m", 900),
            ("1h 30m", 5400),
            ("2 hours", 7200),
            ("5d", 432_000),
            ("1w", 604_800),
            ("PT5M", 300),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for text in [
            "",
            "15",
            "m",
            "-5m",
            "1 month",
            "2 years",
            "15 mins later",
            "999999999999999999h",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, octets) in [
            ("0", 0),
            ("512", 512),
            ("100KB", 102_400),
            ("4 MB", 4 << 20),
            ("4mib", 4 << 20),
            ("10G", 10 << 30),
        ] {
            assert_eq!(size(text), Ok(octets), "{text}");
        }
        for text in [
            "",
            "MB",
            "-1",
            "1.5MB",
            "4 XB",
            "99999999999999999999",
            "9000000TB",
            "1 2",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn networks() {
        for (text, network_) in [
            ("10.1.0.0/16", "10.1.0.0/16"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("::1", "::1/128"),
            ("fd00::/8", "fd00::/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
        ] {
            assert_eq!(network(text).unwrap().to_string(), network_);
        }
        for text in [
            "",
            "10.1.0.0/33",
            "10.1/16",
            "localhost",
            "10.1.2.3/16",
            "fd00::1/8",
        ] {
            assert!(network(text).is_err(), "{text}");
        }
        assert!(
            network("10.1.2.3/16")
                .unwrap_err()
                .label
                .contains("\"10.1.0.0/16\"")
        );
    }

    #[test]
    fn patterns() {
        for (text, want) in [
            ("*", Pattern::Any),
            ("<>", Pattern::Null),
            ("ERP@Contoso.com", Pattern::Exact("erp@contoso.com".to_owned())),
            ("printer", Pattern::Exact("printer".to_owned())),
            ("*@Legacy.local", Pattern::Domain("legacy.local".to_owned())),
            (
                "ÄRGER@bücher.example",
                Pattern::Exact("ärger@bücher.example".to_owned()),
            ),
        ] {
            assert_eq!(pattern(text), Ok(want), "{text}");
        }
        for text in [
            "",
            "@contoso.com",
            "*@",
            "*@*",
            "*@*.contoso.com",
            "*.contoso.com",
            "erp*@contoso.com",
            "erp@@contoso.com",
            "erp@contoso.com@example.org",
            "a b@c.de",
            "**",
            "<erp@contoso.com>",
        ] {
            assert!(pattern(text).is_err(), "{text}");
        }
    }

    #[test]
    fn mailboxes() {
        for text in [
            "service@contoso.com",
            "$svc@contoso.onmicrosoft.com",
            "o'neil@contoso.com",
            "a.b_c@x-y.de",
        ] {
            assert_eq!(mailbox(text).as_deref(), Ok(text));
        }
        for text in [
            "",
            "service",
            "service@contoso",
            "*@contoso.com",
            "a/b@contoso.com",
            "a?b@contoso.com",
            "a@b@",
            "a@.com",
        ] {
            assert!(mailbox(text).is_err(), "{text}");
        }
    }

    #[test]
    fn urls() {
        for (text, want) in [
            ("https://graph.microsoft.com", "https://graph.microsoft.com"),
            ("https://graph.example/tenant/", "https://graph.example/tenant"),
            ("http://127.0.0.1:8025", "http://127.0.0.1:8025"),
            ("http://[::1]:8025/", "http://[::1]:8025"),
            ("http://localhost:1", "http://localhost:1"),
        ] {
            assert_eq!(base_url(text).as_deref(), Ok(want));
        }
        for text in [
            "",
            "graph.microsoft.com",
            "http://graph.microsoft.com",
            "http://127.0.0.1.example",
            "ftp://127.0.0.1",
            "https://user@graph.microsoft.com",
            "https://graph.microsoft.com/?a",
            "http://10.0.0.1",
            "https://",
        ] {
            assert!(base_url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_say_what_is_missing() {
        assert!(socket_address("[::1]:25").is_ok());
        for (text, help) in [
            (":25", "0.0.0.0:25"),
            ("*:25", "0.0.0.0:25"),
            ("localhost:25", "host names are not looked up"),
            ("10.0.0.1", "add a port"),
        ] {
            assert!(
                socket_address(text).unwrap_err().help.unwrap().contains(help),
                "{text}"
            );
        }
        assert!(socket_address("10.0.0.1:66000").is_err());
    }

    #[test]
    fn tenants_and_applications() {
        assert!(tenant_id("contoso.onmicrosoft.com").is_ok());
        assert!(tenant_id("1B4E28BA-2fa1-11d2-883f-0016d3cca427").is_ok());
        for text in [
            "contoso",
            "common",
            "1b4e28ba",
            "contoso..com",
            "https://contoso.com",
        ] {
            assert!(tenant_id(text).is_err(), "{text}");
        }
        assert!(client_id("1b4e28ba-2fa1-11d2-883f-0016d3cca427").is_ok());
        assert!(client_id("1b4e28ba2fa111d2883f0016d3cca427").is_err());
    }
}
