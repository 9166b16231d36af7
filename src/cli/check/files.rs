//! The files that the configuration names: certificates, keys, passwords, accounts.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use jiff::Timestamp;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::super::terminal::printable;
use super::plural;
use crate::accounts;
use crate::config::{Auth, Config, Credential, ListenerCertificate};
use crate::diagnosis::Diagnosis;
use crate::identity::certificate::{Certificate, KeyPair};
use crate::identity::credential::{CredentialError, open_for_tls};
use crate::identity::expiry::RENEW_LISTENER;

/// The configuration file itself, which may hold passwords.
pub(super) fn configuration(config: &Config) -> Vec<Diagnosis> {
    let holds_a_password = fs::read_to_string(&config.path)
        .ok()
        .and_then(|text| text.parse::<toml::Table>().ok())
        .is_some_and(|table| holds_a_password(&toml::Value::Table(table)));
    match readable_by_all(&config.path) {
        true if holds_a_password => vec![Diagnosis::fail(
            "configuration",
            format!(
                "{} holds a password, and every user of this host may read it",
                config.path.display()
            ),
            format!(
                "chmod o-rwx {}, or use password_file and secret_file",
                config.path.display()
            ),
        )],
        _ => Vec::new(),
    }
}

fn holds_a_password(value: &toml::Value) -> bool {
    match value {
        toml::Value::Table(table) => table.iter().any(|(key, value)| {
            (matches!(key.as_str(), "password" | "secret") && value.is_str()) || holds_a_password(value)
        }),
        toml::Value::Array(items) => items.iter().any(holds_a_password),
        _ => false,
    }
}

/// The certificates that clients see.
pub(super) fn listeners(config: &Config, now: Timestamp) -> Vec<Diagnosis> {
    let mut lines = Vec::new();
    for listener in &config.listeners {
        let check = format!("certificate of {}", listener.name);
        for certificate in &listener.certificates {
            match certificate {
                ListenerCertificate::Files(files) => lines.extend(listener_files(&check, files, config, now)),
                ListenerCertificate::SelfSigned => lines.push(Diagnosis::ok(
                    &check,
                    format!("made by graphpost for {}, and renewed", config.smtp.hostname),
                )),
            }
        }
    }
    lines
}

fn listener_files(check: &str, credential: &Credential, config: &Config, now: Timestamp) -> Vec<Diagnosis> {
    let pair = match open_for_tls(credential) {
        Ok(pair) => pair,
        Err(error) => return vec![unusable(check, &error)],
    };
    vec![
        names(check, &pair, &config.smtp.hostname),
        expiry(check, &pair.certificate, RENEW_LISTENER, now),
        guarded(
            check,
            credential
                .private_key
                .as_deref()
                .unwrap_or(&credential.certificate),
        ),
    ]
}

pub(super) fn unusable(check: &str, error: &CredentialError) -> Diagnosis {
    // The text says what is wrong, then what to do.
    let text = error.to_string();
    let (detail, fix) = text.split_once("; ").unwrap_or((&text, "name another file"));
    Diagnosis::fail(check, detail, fix)
}

pub(super) fn expiry(check: &str, certificate: &Certificate, renew: &str, now: Timestamp) -> Diagnosis {
    if now < certificate.not_before {
        return Diagnosis::fail(
            check,
            format!("is not valid before {}", certificate.not_before),
            "set this host's clock, or wait",
        );
    }
    Diagnosis::expiry(check, certificate.not_after, renew, now)
}

/// Which names clients find in a certificate.
fn names(check: &str, pair: &KeyPair, hostname: &str) -> Diagnosis {
    let names = subject_names(&pair.certificate.der);
    let shown = printable(&names.iter().cloned().collect::<Vec<_>>().join(", "));
    let subject = printable(&pair.certificate.subject);
    if names.is_empty() {
        return Diagnosis::warn(
            check,
            format!("{subject}: names no host"),
            "clients that verify it will refuse it: get one with the name they connect to (subjectAltName)",
        );
    }
    if !names.iter().any(|it| matches(it, hostname)) {
        return Diagnosis::warn(
            check,
            format!("is for {shown}, not for {hostname}"),
            "right if clients connect to one of those names; else get another, or set smtp.hostname",
        );
    }
    Diagnosis::ok(check, format!("is for {shown}"))
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
pub(super) fn guarded(check: &str, key: &Path) -> Diagnosis {
    if readable_by_all(key) {
        return Diagnosis::fail(
            check,
            format!("every user of this host may read the key in {}", key.display()),
            format!("chmod o-rwx {0} && chgrp graphpost {0}", key.display()),
        );
    }
    match fs::metadata(key) {
        Ok(it) => Diagnosis::ok(
            check,
            format!("the key is kept from other users (mode {:o})", it.mode() & 0o777),
        ),
        Err(error) => Diagnosis::fail(check, format!("{}: {error}", key.display()), "mend the path"),
    }
}

fn readable_by_all(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|it| it.permissions().mode() & 0o004 != 0)
}

/// The accounts that clients log in with.
pub(super) fn accounts(config: &Config) -> Vec<Diagnosis> {
    let (Some(path), true) = (
        &config.accounts_file,
        config.listeners.iter().any(|it| it.auth != Auth::None),
    ) else {
        return Vec::new();
    };
    let known = match accounts::list(path) {
        Ok(known) => known,
        Err(error) => {
            return vec![Diagnosis::fail(
                "accounts",
                error.to_string(),
                "mend the file; 'graphpost user add NAME' writes it",
            )];
        }
    };
    let mut lines = Vec::new();
    if known.is_empty() {
        let detail = format!("{} has none: no one can log in", path.display());
        lines.push(Diagnosis::warn("accounts", detail, "graphpost user add NAME"));
    } else {
        lines.push(Diagnosis::ok(
            "accounts",
            format!("{} in {}", plural(known.len(), "account"), path.display()),
        ));
    }
    if readable_by_all(path) {
        let detail = format!(
            "every user of this host may read the password hashes in {}",
            path.display()
        );
        lines.push(Diagnosis::warn(
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
            lines.push(Diagnosis::warn(
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
