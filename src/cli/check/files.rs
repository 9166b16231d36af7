//! The files that the configuration names: certificates, keys, passwords, accounts.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use jiff::Timestamp;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::super::terminal::printable;
use super::{Line, plural};
use crate::accounts;
use crate::config::{Auth, Config};
use crate::identity::certificate::{Certificate, KeyPair};
use crate::identity::credential::{CredentialError, open_for_entra, open_for_tls};

/// From so many days before its end a certificate is a warning, and then a failure: it is still good,
/// but there is hardly time left to replace it in peace.
const WARN_DAYS: i64 = 30;
const FAIL_DAYS: i64 = 7;

/// The configuration file itself, which may hold passwords.
pub(super) fn configuration(config: &Config) -> Vec<Line> {
    let holds_a_password = fs::read_to_string(&config.path)
        .ok()
        .and_then(|text| text.parse::<toml::Table>().ok())
        .is_some_and(|table| holds_a_password(&toml::Value::Table(table)));
    match readable_by_all(&config.path) {
        true if holds_a_password => vec![Line::fail(
            "configuration",
            format!(
                "{} holds a password, and every user of this host may read it",
                config.path.display()
            ),
            format!("chmod o-rwx {}, or use password_file", config.path.display()),
        )],
        _ => Vec::new(),
    }
}

fn holds_a_password(value: &toml::Value) -> bool {
    match value {
        toml::Value::Table(table) => table
            .iter()
            .any(|(key, value)| (key == "password" && value.is_str()) || holds_a_password(value)),
        toml::Value::Array(items) => items.iter().any(holds_a_password),
        _ => false,
    }
}

/// The application's certificate and key.
pub(super) fn credential(config: &Config, now: Timestamp) -> Vec<Line> {
    // What is elsewhere than in files is for the check that asks.
    let Some(credential) = config.tenant.credential.files() else {
        return Vec::new();
    };
    let pair = match open_for_entra(credential) {
        Ok(pair) => pair,
        Err(error) => return vec![unusable("credential", &error)],
    };
    let what = format!(
        "{} ({}, {})\nthumbprint {}\nSHA-256 {}",
        printable(&pair.certificate.subject),
        credential.certificate.display(),
        pair.certificate.key,
        pair.certificate.sha1_thumbprint(),
        pair.certificate.sha256_thumbprint(),
    );
    let renew = "graphpost cert new --out DIR, upload the new certificate beside this one, then name it here";
    vec![
        Line::ok("credential", what),
        expiry("credential", &pair.certificate, renew, now),
        guarded(
            "credential",
            credential
                .private_key
                .as_deref()
                .unwrap_or(&credential.certificate),
        ),
    ]
}

/// The certificates that clients see.
pub(super) fn listeners(config: &Config, now: Timestamp) -> Vec<Line> {
    let mut lines = Vec::new();
    for listener in &config.listeners {
        let Some(credential) = &listener.certificate else {
            continue;
        };
        let check = format!("certificate of {}", listener.name);
        let pair = match open_for_tls(credential) {
            Ok(pair) => pair,
            Err(error) => {
                lines.push(unusable(&check, &error));
                continue;
            }
        };
        lines.push(names(&check, &pair, &config.smtp.hostname));
        let renew = "get a new certificate, then: systemctl reload graphpost";
        lines.push(expiry(&check, &pair.certificate, renew, now));
        lines.push(guarded(
            &check,
            credential
                .private_key
                .as_deref()
                .unwrap_or(&credential.certificate),
        ));
    }
    lines
}

fn unusable(check: &str, error: &CredentialError) -> Line {
    // The text says what is wrong, then what to do.
    let text = error.to_string();
    let (detail, fix) = text.split_once("; ").unwrap_or((&text, "name another file"));
    Line::fail(check, detail, fix)
}

fn expiry(check: &str, certificate: &Certificate, renew: &str, now: Timestamp) -> Line {
    let (days, until) = (certificate.days_left(now), certificate.not_after);
    if now < certificate.not_before {
        return Line::fail(
            check,
            format!("is not valid before {}", certificate.not_before),
            "set this host's clock, or wait",
        );
    }
    let left = match days {
        ..0 => format!("expired on {until}"),
        days => format!(
            "expires in {}, on {until}",
            plural(usize::try_from(days).unwrap_or(0), "day")
        ),
    };
    if days <= FAIL_DAYS {
        Line::fail(check, left, renew)
    } else if days <= WARN_DAYS {
        Line::warn(check, left, renew)
    } else {
        Line::ok(check, left)
    }
}

/// Which names clients find in a certificate.
fn names(check: &str, pair: &KeyPair, hostname: &str) -> Line {
    let names = subject_names(&pair.certificate.der);
    let shown = printable(&names.iter().cloned().collect::<Vec<_>>().join(", "));
    let subject = printable(&pair.certificate.subject);
    if names.is_empty() {
        return Line::warn(
            check,
            format!("{subject}: names no host"),
            "clients that verify it will refuse it: get one with the name they connect to (subjectAltName)",
        );
    }
    if !names.iter().any(|it| matches(it, hostname)) {
        return Line::warn(
            check,
            format!("is for {shown}, not for {hostname}"),
            "right if clients connect to one of those names; else get another, or set smtp.hostname",
        );
    }
    Line::ok(check, format!("is for {shown}"))
}

fn subject_names(der: &[u8]) -> BTreeSet<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return BTreeSet::new();
    };
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return BTreeSet::new();
    };
    let name = |it: &GeneralName<'_>| match it {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::IPAddress([a, b, c, d]) => Some(std::net::Ipv4Addr::new(*a, *b, *c, *d).to_string()),
        GeneralName::IPAddress(octets) => {
            let octets: [u8; 16] = (*octets).try_into().ok()?;
            Some(std::net::Ipv6Addr::from(octets).to_string())
        }
        _ => None,
    };
    extension.value.general_names.iter().filter_map(name).collect()
}

/// RFC 6125 §6.4.3: a wildcard stands for one whole label, the leftmost.
fn matches(name: &str, host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    match name.strip_prefix("*.") {
        Some(domain) => host.split_once('.').is_some_and(|(_, it)| it == domain),
        None => name == host,
    }
}

/// Whether a private key is for its owner and group alone.
fn guarded(check: &str, key: &Path) -> Line {
    if readable_by_all(key) {
        return Line::fail(
            check,
            format!("every user of this host may read the key in {}", key.display()),
            format!("chmod o-rwx {0} && chgrp graphpost {0}", key.display()),
        );
    }
    match fs::metadata(key) {
        Ok(it) => Line::ok(
            check,
            format!("the key is kept from other users (mode {:o})", it.mode() & 0o777),
        ),
        Err(error) => Line::fail(check, format!("{}: {error}", key.display()), "mend the path"),
    }
}

fn readable_by_all(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|it| it.permissions().mode() & 0o004 != 0)
}

/// The accounts that clients log in with.
pub(super) fn accounts(config: &Config) -> Vec<Line> {
    let (Some(path), true) = (
        &config.accounts_file,
        config.listeners.iter().any(|it| it.auth != Auth::None),
    ) else {
        return Vec::new();
    };
    let known = match accounts::list(path) {
        Ok(known) => known,
        Err(error) => {
            return vec![Line::fail(
                "accounts",
                error.to_string(),
                "mend the file; 'graphpost user add NAME' writes it",
            )];
        }
    };
    let mut lines = Vec::new();
    if known.is_empty() {
        let detail = format!("{} has none: no one can log in", path.display());
        lines.push(Line::warn("accounts", detail, "graphpost user add NAME"));
    } else {
        lines.push(Line::ok(
            "accounts",
            format!("{} in {}", plural(known.len(), "account"), path.display()),
        ));
    }
    if readable_by_all(path) {
        let detail = format!(
            "every user of this host may read the password hashes in {}",
            path.display()
        );
        lines.push(Line::warn(
            "accounts",
            detail,
            format!("chmod o-rwx {}", path.display()),
        ));
    }
    for rule in &config.senders {
        for account in rule.accounts.iter().filter(|it| !known.contains(it)) {
            let detail = format!(
                "the rule {} is for {}, which is no account",
                rule.name,
                printable(account)
            );
            lines.push(Line::warn(
                "accounts",
                detail,
                format!("graphpost user add {}", printable(account)),
            ));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_tls_clients_do() {
        for (name, host, want) in [
            ("relay.contoso.local", "RELAY.contoso.local", true),
            ("*.contoso.local", "relay.contoso.local", true),
            ("*.contoso.local", "contoso.local", false),
            ("*.contoso.local", "a.relay.contoso.local", false),
            ("relay.contoso.local", "relay", false),
        ] {
            assert_eq!(matches(name, host), want, "{name} {host}");
        }
    }
}
