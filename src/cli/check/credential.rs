//! How the application proves itself, as far as this host knows: files, and what they are.

use std::path::Path;

use jiff::Timestamp;

use super::super::terminal::printable;
use super::files::{expiry, guarded, unusable};
use crate::config::{
    ApplicationCredential, Credential, IdentityHost, ManagedIdentity, Tenant, VaultCertificate,
    VaultIdentity, VaultPassword,
};
use crate::diagnosis::Diagnosis;
use crate::identity::certificate::Certificate;
use crate::identity::claims::payload;
use crate::identity::credential::{open_for_entra, read_certificate};
use crate::identity::expiry::RENEW_APPLICATION;

/// The name of the lines about a credential.
pub(super) fn check_name(credential: &str) -> &'static str {
    match credential {
        "next" => "next credential",
        _ => "credential",
    }
}

/// The lines about both credentials.
pub(super) fn lines(tenant: &Tenant, now: Timestamp) -> Vec<Diagnosis> {
    let mut lines = of(check_name("current"), &tenant.credential, now);
    if let Some(next) = &tenant.next_credential {
        lines.extend(of(check_name("next"), next, now));
    }
    lines
}

fn of(check: &str, credential: &ApplicationCredential, now: Timestamp) -> Vec<Diagnosis> {
    match credential {
        ApplicationCredential::Certificate {
            files,
            vault_password: None,
        } => certificate(check, files, now),
        ApplicationCredential::Certificate {
            files,
            vault_password: Some(password),
        } => certificate_with_password_elsewhere(check, files, password, now),
        ApplicationCredential::VaultCertificate(certificate) => vec![in_vault(check, certificate)],
        // That it is one is a warning of the configuration.
        ApplicationCredential::Secret(_) => vec![Diagnosis::skip(
            check,
            "a client secret; when it ends is shown only in the portal (Certificates & secrets)",
        )],
        ApplicationCredential::FederatedToken(file) => federated(check, file, now),
        ApplicationCredential::ManagedIdentity(identity) => {
            vec![Diagnosis::ok(
                check,
                format!("{}; it never ends", managed(identity)),
            )]
        }
    }
}

fn certificate(check: &str, files: &Credential, now: Timestamp) -> Vec<Diagnosis> {
    let pair = match open_for_entra(files) {
        Ok(pair) => pair,
        Err(error) => return vec![unusable(check, &error)],
    };
    vec![
        Diagnosis::ok(check, facts(&pair.certificate, &files.certificate)),
        expiry(check, &pair.certificate, RENEW_APPLICATION, now),
        guarded(check, key_file(files)),
    ]
}

fn facts(certificate: &Certificate, file: &Path) -> String {
    format!(
        "{} ({}, {})\nthumbprint {}\nSHA-256 {}",
        printable(&certificate.subject),
        file.display(),
        certificate.key,
        certificate.sha1_thumbprint(),
        certificate.sha256_thumbprint(),
    )
}

fn key_file(files: &Credential) -> &Path {
    files.private_key.as_deref().unwrap_or(&files.certificate)
}

/// The certificate of a PEM can be seen without the password of its key; that of a PFX cannot.
fn certificate_with_password_elsewhere(
    check: &str,
    files: &Credential,
    password: &VaultPassword,
    now: Timestamp,
) -> Vec<Diagnosis> {
    let vault = format!(
        "the secret {} in {}, {}",
        printable(&password.secret.name),
        password.secret.vault,
        asked_by(&password.identity)
    );
    let mut lines = match read_certificate(&files.certificate, None) {
        Ok(certificate) => vec![
            Diagnosis::ok(
                check,
                format!(
                    "{}\nits password is {vault}",
                    facts(&certificate, &files.certificate)
                ),
            ),
            expiry(check, &certificate, RENEW_APPLICATION, now),
        ],
        Err(_) => vec![Diagnosis::skip(
            check,
            format!("{}: its password is {vault}", files.certificate.display()),
        )],
    };
    lines.push(guarded(check, key_file(files)));
    lines
}

fn in_vault(check: &str, certificate: &VaultCertificate) -> Diagnosis {
    let key = if certificate.download {
        "its key is downloaded"
    } else {
        "its key signs there"
    };
    Diagnosis::ok(
        check,
        format!(
            "the certificate {} in {}; {key}; {}",
            printable(&certificate.certificate.name),
            certificate.certificate.vault,
            asked_by(&certificate.identity)
        ),
    )
}

fn asked_by(identity: &VaultIdentity) -> String {
    match identity {
        VaultIdentity::Managed(identity) => format!("asked by {}", managed(identity)),
        VaultIdentity::Federated(file) => format!("asked with the token in {}", file.display()),
    }
}

fn managed(identity: &ManagedIdentity) -> String {
    let which = match &identity.client_id {
        Some(id) => format!("the managed identity {id}"),
        None => "this machine's managed identity".to_owned(),
    };
    let (host, endpoint) = match &identity.host {
        IdentityHost::VirtualMachine { root } => ("a virtual machine's metadata service", root),
        IdentityHost::AppService { endpoint, .. } => ("App Service or Container Apps", endpoint),
        IdentityHost::Arc { endpoint, .. } => ("Azure Arc", endpoint),
    };
    format!("{which} ({host}, {})", printable(endpoint))
}

/// A token of another platform: what the federated credential must say to fit it.
fn federated(check: &str, file: &Path, now: Timestamp) -> Vec<Diagnosis> {
    let token = match std::fs::read_to_string(file) {
        Ok(token) => token,
        Err(error) => {
            return vec![Diagnosis::fail(
                check,
                format!("{}: cannot be read: {error}", file.display()),
                "check federated_token_file; the platform writes it, and the service's account must be able to read it",
            )];
        }
    };
    let Some(claims) = payload(&token) else {
        return vec![Diagnosis::fail(
            check,
            format!("{} is no token (JWT)", file.display()),
            "name the file that the platform writes its token to",
        )];
    };
    let text = |name: &str| match &claims[name] {
        serde_json::Value::Array(items) => items
            .iter()
            .filter_map(|it| it.as_str())
            .collect::<Vec<_>>()
            .join(", "),
        value => value.as_str().unwrap_or("none").to_owned(),
    };
    let mut lines = vec![Diagnosis::ok(
        check,
        format!(
            "the token in {}; the application's federated credential must have\nissuer {}\nsubject {}\naudience {}",
            file.display(),
            printable(&text("iss")),
            printable(&text("sub")),
            printable(&text("aud")),
        ),
    )];
    let end = claims["exp"]
        .as_i64()
        .and_then(|it| Timestamp::from_second(it).ok());
    if let Some(end) = end.filter(|it| *it < now) {
        lines.push(Diagnosis::fail(
            check,
            format!("the token ended on {end}"),
            "the platform should have replaced the file: look at what writes it",
        ));
    }
    lines.push(guarded(check, file));
    lines
}
