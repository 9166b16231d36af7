//! The three ways to register a certificate with the application, ready to paste.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::identity::certificate::Certificate;
use crate::identity::guid;

/// What is uploaded.
pub(super) enum Upload {
    /// A file that has the certificate and nothing else.
    File(PathBuf),
    /// There is no such file: a PFX has the key in it as well, and a key is never uploaded.
    Text,
}

impl Upload {
    /// Finds out whether `file` can be uploaded as it is: nothing in it but this certificate.
    pub(super) fn of_file(file: &Path, certificate: &Certificate) -> Upload {
        let content = std::fs::read(file).unwrap_or_default();
        let text = String::from_utf8_lossy(&content);
        let pem_only =
            text.matches("-----BEGIN ").count() == 1 && text.contains("-----BEGIN CERTIFICATE-----");
        if content == certificate.der || pem_only {
            Upload::File(std::path::absolute(file).unwrap_or_else(|_| file.to_owned()))
        } else {
            Upload::Text
        }
    }

    pub(super) fn text(&self, certificate: &Certificate) -> String {
        let mut text = String::from("To register it with the application, do one of these:\n\n");
        let mut save = String::new();
        let file = match self {
            Upload::File(file) => file.display().to_string(),
            Upload::Text => {
                save = format!(
                    "Save these lines, which have no secret in them, as graphpost.pem:\n\n{}\n",
                    certificate.to_pem()
                );
                "graphpost.pem".to_owned()
            }
        };
        let quoted = shell_quoted(&format!("@{file}"));
        text.insert_str(0, &save);
        text.push_str(&format!(
            "1. In the portal\n\n   \
             https://entra.microsoft.com > App registrations > the application > Certificates & secrets\n   \
             > Certificates > Upload certificate > {file} > Add.\n   \
             The list must then show the thumbprint {}.\n\n\
             2. With the Azure CLI\n\n   \
             az ad app credential reset --id <client id> --cert {quoted} --append\n\n   \
             Without --append it would remove every other certificate and secret of the application.\n\n\
             3. In the application's manifest, as an entry of keyCredentials beside those that are there\n\n{}\n\
             In the manifest format of 2016 (Azure AD Graph) the entry is\n\n{}",
            certificate.sha1_thumbprint(),
            indented(&pretty(&json!({"keyCredentials": [key_credential(certificate)]}))),
            indented(&pretty(&json!({"keyCredentials": [key_credential_of_2016(certificate)]}))),
        ));
        text
    }
}

/// An entry of `keyCredentials` as Microsoft Graph and the portal's manifest have it.
pub(super) fn key_credential(certificate: &Certificate) -> Value {
    json!({
        "customKeyIdentifier": certificate.custom_key_identifier(),
        "displayName": certificate.subject,
        "endDateTime": certificate.not_after.to_string(),
        "key": STANDARD.encode(&certificate.der),
        "keyId": guid(),
        "startDateTime": certificate.not_before.to_string(),
        "type": "AsymmetricX509Cert",
        "usage": "Verify",
    })
}

/// The same as Azure AD Graph had it: the certificate is in `value`.
fn key_credential_of_2016(certificate: &Certificate) -> Value {
    json!({
        "customKeyIdentifier": certificate.custom_key_identifier(),
        "keyId": guid(),
        "type": "AsymmetricX509Cert",
        "usage": "Verify",
        "value": STANDARD.encode(&certificate.der),
    })
}

pub(super) fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("   {line}\n")).collect()
}

/// An argument as a POSIX shell takes it.
fn shell_quoted(text: &str) -> String {
    let plain = |it: char| it.is_ascii_alphanumeric() || "@%+=:,./-_".contains(it);
    if text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::shell_quoted;

    #[test]
    fn a_shell_takes_file_names_as_they_are() {
        for (text, want) in [
            ("@/etc/graphpost/graphpost.pem", "@/etc/graphpost/graphpost.pem"),
            ("@my files/a.pem", "'@my files/a.pem'"),
            ("@it's", r"'@it'\''s'"),
            ("@$(reboot)", "'@$(reboot)'"),
        ] {
            assert_eq!(shell_quoted(text), want);
        }
    }
}
