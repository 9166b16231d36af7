//! The way to Microsoft: names, proxy, connections, certificates, and what time it is there.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;
use reqwest::tls::TlsInfo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::super::terminal::printable;
use crate::config::Tenant;
use crate::diagnosis::Diagnosis;
use crate::identity::https::{self, ProxyFrom};

/// How long a name may take to be resolved.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may take, and how many addresses of a name are tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_ADDRESSES: usize = 3;
/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// A clock that differs by so much is a warning, and then a failure: Entra ID takes an assertion whose
/// times are wrong by five minutes at most (AADSTS700024).
const CLOCK_WARN: i64 = 60;
const CLOCK_FAIL: i64 = 300;

/// What is to be reached.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Its name in the report: `authority`, `graph`, `vault`, `metadata`.
    pub(super) name: &'static str,
    pub(super) root: String,
    /// Whether it is asked by HTTP too, and may be behind a proxy; else a connection is enough.
    pub(super) asked: bool,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Reached {
    pub(super) name: &'static str,
    pub(super) lines: Vec<Diagnosis>,
    pub(super) ok: bool,
    /// How many seconds our clock is ahead of theirs.
    pub(super) clock_ahead: Option<i64>,
}

/// Tries the way to a place, step by step, to the first that fails.
pub(super) async fn reach(tenant: &Tenant, place: Place) -> Reached {
    let mut reached = Reached {
        name: place.name,
        lines: Vec::new(),
        ok: false,
        clock_ahead: None,
    };
    let name = place.name;
    let step = |what: &str| format!("{what} {name}");
    let host_and_port = Url::parse(&place.root)
        .ok()
        .and_then(|it| Some((it.host_str()?.to_owned(), it.port_or_known_default()?)));
    let Some((host, port)) = host_and_port else {
        reached.lines.push(Diagnosis::fail(
            step("dns"),
            format!("'{}' is no address", printable(&place.root)),
            "write it as https://host",
        ));
        return reached;
    };
    let proxy = if place.asked {
        https::proxy(tenant, &place.root)
    } else {
        None
    };
    if let Some((proxy, port, from)) = &proxy {
        let from = match from {
            ProxyFrom::Configuration => "tenant.proxy",
            ProxyFrom::Environment => "the environment",
        };
        let detail = format!("{host} is asked through {proxy}:{port}, as {from} says");
        reached.lines.push(Diagnosis::ok(step("proxy"), detail));
    }
    let next = proxy
        .as_ref()
        .map_or((host.as_str(), port), |it| (it.0.as_str(), it.1));
    let addresses = match resolve(next).await {
        Ok(addresses) => addresses,
        Err(error) => {
            let fix = match &proxy {
                Some(_) => {
                    "correct the proxy's name, or let this host resolve it (/etc/resolv.conf)".to_owned()
                }
                None => format!(
                    "let this host resolve it (/etc/resolv.conf; try: getent hosts {}), or set tenant.proxy",
                    next.0
                ),
            };
            let detail = format!("{} has no address: {error}", next.0);
            reached.lines.push(Diagnosis::fail(step("dns"), detail, fix));
            return reached;
        }
    };
    reached
        .lines
        .push(Diagnosis::ok(step("dns"), named(next.0, &addresses)));

    match connect(&addresses).await {
        Ok(address) => {
            reached
                .lines
                .push(Diagnosis::ok(step("connection"), format!("{address} answers")));
        }
        Err(why) => {
            let fix = match (&proxy, name) {
                (Some((.., ProxyFrom::Configuration)), _) => {
                    "start the proxy, or correct tenant.proxy".to_owned()
                }
                (Some((.., ProxyFrom::Environment)), _) => {
                    "start the proxy, or correct HTTPS_PROXY and NO_PROXY".to_owned()
                }
                (None, "metadata") => {
                    "run in Azure with a managed identity, or use another credential".to_owned()
                }
                (None, _) => format!("let the firewall pass TCP to {host} port {port}, or set tenant.proxy"),
            };
            reached.lines.push(Diagnosis::fail(step("connection"), why, fix));
            return reached;
        }
    }
    if !place.asked {
        reached.ok = true;
        return reached;
    }
    match ask(tenant, &place.root).await {
        Ok(answer) => {
            reached.ok = true;
            reached.clock_ahead = answer.clock_ahead;
            reached.lines.push(Diagnosis::ok(step("tls"), answer.detail));
        }
        Err((detail, fix)) => reached.lines.push(Diagnosis::fail(step("tls"), detail, fix)),
    }
    reached
}

async fn resolve((host, port): (&str, u16)) -> Result<Vec<SocketAddr>, String> {
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let found = timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((bare.as_str(), port))).await;
    match found {
        Err(_) => Err(format!("no answer in {} s", RESOLVE_TIMEOUT.as_secs())),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(addresses)) => {
            let addresses: Vec<SocketAddr> = addresses.collect();
            if addresses.is_empty() {
                return Err("the answer is empty".to_owned());
            }
            Ok(addresses)
        }
    }
}

fn named(host: &str, addresses: &[SocketAddr]) -> String {
    let first = addresses
        .first()
        .map(|it| it.ip().to_string())
        .unwrap_or_default();
    if first == host.trim_start_matches('[').trim_end_matches(']') {
        return format!("{first} is an address");
    }
    match addresses.len() {
        1 => format!("{host} is {first}"),
        more => format!("{host} is {first} and {} more", more - 1),
    }
}

async fn connect(addresses: &[SocketAddr]) -> Result<SocketAddr, String> {
    let mut last = String::new();
    for address in addresses.iter().take(MAX_ADDRESSES) {
        last = match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(_)) => return Ok(*address),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                format!("{address} refuses the connection")
            }
            Ok(Err(error)) => format!("{address}: {error}"),
            Err(_) => format!("{address} does not answer in {} s", CONNECT_TIMEOUT.as_secs()),
        };
    }
    Err(last)
}

#[derive(Debug)]
struct HttpAnswer {
    detail: String,
    clock_ahead: Option<i64>,
}

/// Asks for nothing in particular: that there is an answer is what matters, and its date.
async fn ask(tenant: &Tenant, root: &str) -> Result<HttpAnswer, (String, String)> {
    let client = https::client(tenant, root).map_err(|error| of_setup(&error))?;
    let client = client
        .tls_info(true)
        .timeout(ANSWER_TIMEOUT)
        .build()
        .map_err(|error| of_setup(&https::HttpsError::Tls(error)))?;
    let response = match client.get(format!("{root}/")).send().await {
        Ok(response) => response,
        Err(error) => return Err(refused(tenant, root, &error).await),
    };
    if response.status() == 407 {
        return Err((
            "the proxy asks for a login".to_owned(),
            "give it in tenant.proxy: http://user:password@host:port".to_owned(),
        ));
    }
    let clock_ahead = response
        .headers()
        .get(reqwest::header::DATE)
        .and_then(|it| https::http_date(it.to_str().ok()?))
        .map(|it| Timestamp::now().as_second() - it.as_second());
    let detail = match issuer_of(&response) {
        Some(issuer) => format!("its certificate is from {issuer}; HTTP answers"),
        None => "plain HTTP, to a loopback address; HTTP answers".to_owned(),
    };
    Ok(HttpAnswer { detail, clock_ahead })
}

fn of_setup(error: &https::HttpsError) -> (String, String) {
    let text = error.to_string();
    let (detail, fix) = text.split_once("; ").unwrap_or((&text, "correct [tenant]"));
    (detail.to_owned(), fix.to_owned())
}

/// Who issued the certificate of whoever answered.
fn issuer_of(response: &reqwest::Response) -> Option<String> {
    let der = response.extensions().get::<TlsInfo>()?.peer_certificate()?;
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(printable(&certificate.issuer().to_string()))
}

/// Why there is no answer, and what to do.
async fn refused(tenant: &Tenant, root: &str, error: &reqwest::Error) -> (String, String) {
    let why = https::chain(error);
    if why.contains("UnknownIssuer") || why.contains("invalid peer certificate: BadSignature") {
        let issuer = stranger(tenant, root)
            .await
            .unwrap_or_else(|| "a stranger".to_owned());
        return (
            format!("its certificate is from {issuer}, whom this host does not trust"),
            "where your network inspects TLS, name the inspecting authority's certificate (PEM) in tenant.ca_file; \
             otherwise find out who answers there"
                .to_owned(),
        );
    }
    let fix = if why.contains("Expired") || why.contains("NotValidYet") {
        "set this host's clock: timedatectl set-ntp true; if it is right, the server's certificate is not"
    } else if why.contains("NotValidForName") {
        "check the address in [tenant]: whoever answers there has another name"
    } else if why.contains("proxy authorization required") || why.contains("407") {
        "give the proxy's login in tenant.proxy: http://user:password@host:port"
    } else if why.contains("tunnel") {
        "let the proxy pass CONNECT to this host, port 443"
    } else {
        "look for a firewall or proxy that breaks connections off"
    };
    (format!("no answer: {why}"), fix.to_owned())
}

/// Who issued a certificate that we do not trust. Nothing is said to its owner but that we came.
async fn stranger(tenant: &Tenant, root: &str) -> Option<String> {
    let client = https::client(tenant, root)
        .ok()?
        .tls_info(true)
        .tls_danger_accept_invalid_certs(true)
        .timeout(ANSWER_TIMEOUT)
        .build()
        .ok()?;
    issuer_of(&client.get(format!("{root}/")).send().await.ok()?)
}

/// What the dates of answers say about this host's clock.
pub(super) fn clock(clock_ahead: Option<i64>) -> Diagnosis {
    let Some(ahead) = clock_ahead else {
        return Diagnosis::skip("clock", "the authority did not say what time it is");
    };
    let seconds = ahead.abs();
    if seconds <= 2 {
        return Diagnosis::ok("clock", "agrees with the authority's");
    }
    let direction = if ahead > 0 { "ahead of" } else { "behind" };
    let detail = format!("{seconds} s {direction} the authority's");
    let fix = "set this host's clock: timedatectl set-ntp true";
    if seconds > CLOCK_FAIL {
        Diagnosis::fail(
            "clock",
            format!("{detail}; Entra ID takes five minutes at most"),
            fix,
        )
    } else if seconds > CLOCK_WARN {
        Diagnosis::warn("clock", detail, fix)
    } else {
        Diagnosis::ok("clock", detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::Health;

    #[test]
    fn a_clock_may_differ_a_little() {
        for (ahead, status) in [
            (None, Health::Skip),
            (Some(0), Health::Ok),
            (Some(-60), Health::Ok),
            (Some(61), Health::Warn),
            (Some(-300), Health::Warn),
            (Some(301), Health::Fail),
            (Some(-86_400), Health::Fail),
        ] {
            assert_eq!(clock(ahead).status, status, "{ahead:?}");
        }
        assert_eq!(
            clock(Some(-400)).detail,
            "400 s behind the authority's; Entra ID takes five minutes at most"
        );
    }
}
