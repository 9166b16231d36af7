//! `[tenant.credential]` and `[tenant.next_credential]`: how the application proves itself. There is
//! one way in each.

use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::file::{Directories, credential, existing, secret};
use super::section::{Reader, Section, Spot};
use super::value::{self, Problem};
use super::{
    ApplicationCredential, IdentityHost, ManagedIdentity, VaultCertificate, VaultIdentity, VaultObject,
    VaultPassword,
};

/// The metadata service of Azure's virtual machines
/// (<https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service>).
const METADATA_SERVICE: &str = "http://169.254.169.254";
/// Where the agent of Azure Arc is installed, listens, and leaves its keys
/// (<https://learn.microsoft.com/azure/azure-arc/servers/managed-identity-authentication>).
const ARC_AGENT: &str = "/opt/azcmagent/bin/himds";
const ARC_ENDPOINT: &str = "http://localhost:40342/metadata/identity/oauth2/token";
const ARC_KEYS: &str = "/var/opt/azcmagent/tokens";

/// Who asks a vault.
#[derive(Clone)]
enum Asker {
    System,
    Identity(String),
    Federated,
}

/// Reads one of the two sections. Where it need not be there and is not, nothing is missing.
pub(super) fn application(
    reader: &Reader,
    mut section: Section<'_>,
    directories: &Directories<'_>,
    needed: bool,
) -> Option<ApplicationCredential> {
    let ways = [
        "certificate",
        "vault_certificate",
        "secret",
        "secret_file",
        "managed_identity",
        "federated_token_file",
    ];
    let given: Vec<&str> = ways.into_iter().filter(|it| section.has(it)).collect();
    let has = |section: &Section<'_>, key| section.has(key);
    let has_vault_password = has(&section, "vault_password");

    let (certificate, files) = credential(reader, &mut section, directories);
    let vault_password = section.text("vault_password", |it| value::vault_object(it, "secrets"));
    let vault_certificate = section.text("vault_certificate", vault_certificate_address);
    let download = section.boolean("vault_download").is_some_and(|it| it.value);
    let asker = section.text("vault_identity", asker);
    let secret_place = section.place.clone();
    let secret = secret(reader, &mut section, directories, "secret", "secret_file");
    let managed = section.text("managed_identity", managed_identity);
    let token_file = federated_token_file(reader, &mut section, directories);

    let asks_vault = vault_certificate.is_some() || vault_password.is_some();
    let federated_vault = matches!(asker.as_ref().map(|it| &it.value), Some(Asker::Federated));
    // The token file that opens a vault is not a way of its own.
    let ways: Vec<&str> = given
        .iter()
        .copied()
        .filter(|it| *it != "federated_token_file" || !(asks_vault && federated_vault))
        .filter(|it| *it != "secret_file" || !given.contains(&"secret"))
        .collect();
    if let [_, second, ..] = ways[..] {
        reader.error(
            &section.place,
            format!(
                "{} has more than one way to prove the application",
                section.key("").trim_end_matches('.')
            ),
            &format!("{} and {second} are both given", ways[0]),
            "leave one of them; a credential that is to follow goes into [tenant.next_credential]".to_owned(),
        );
        section.finish();
        return None;
    }
    if ways.is_empty() && needed {
        section.require(
            "certificate",
            certificate.clone(),
            "\"app.pfx\"",
            "a PFX or PEM file whose certificate is uploaded to the app registration; 'graphpost cert new' makes one",
        );
    }

    let identity = || {
        Some(match asker.as_ref().map(|it| it.value.clone()) {
            None | Some(Asker::System) => VaultIdentity::Managed(machine(None, directories)),
            Some(Asker::Identity(id)) => VaultIdentity::Managed(machine(Some(id), directories)),
            Some(Asker::Federated) => match &token_file {
                Some(file) => VaultIdentity::Federated(file.value.clone()),
                None => {
                    section.require(
                        "federated_token_file",
                        token_file.clone(),
                        "\"/var/run/secrets/azure/tokens/azure-identity-token\"",
                        "with vault_identity = \"federated\" the vault is asked with a token of this platform",
                    );
                    return None;
                }
            },
        })
    };
    let found = if let Some(certificate) = vault_certificate {
        let (certificate, is_secret) = certificate.value;
        identity().map(|identity| {
            ApplicationCredential::VaultCertificate(VaultCertificate {
                certificate,
                // A secret can only be read; it signs nothing.
                download: download || is_secret,
                identity,
            })
        })
    } else if let Some(files) = files {
        let vault_password = match vault_password {
            Some(secret) => identity().map(|identity| {
                Some(VaultPassword {
                    secret: secret.value,
                    identity,
                })
            }),
            None if has_vault_password => None,
            None => Some(None),
        };
        vault_password.map(|vault_password| ApplicationCredential::Certificate {
            files,
            vault_password,
        })
    } else if section.has("secret") || section.has("secret_file") {
        reader.warning(
            &secret_place,
            format!("{} is a client secret", section.key("").trim_end_matches('.')),
            "",
            "a certificate is better: its key never leaves this machine; 'graphpost cert new' makes one"
                .to_owned(),
        );
        // Where files are only named, no secret is read.
        let unread = (directories.files == super::Files::Named).then(|| SecretString::from(""));
        secret.or(unread).map(ApplicationCredential::Secret)
    } else if let Some(id) = managed {
        Some(ApplicationCredential::ManagedIdentity(machine(
            id.value,
            directories,
        )))
    } else {
        token_file
            .filter(|_| ways == ["federated_token_file"])
            .map(|it| ApplicationCredential::FederatedToken(it.value))
    };
    section.finish();
    found
}

/// The file may come later, and is replaced from time to time; that it is there now is only likely.
fn federated_token_file(
    reader: &Reader,
    section: &mut Section<'_>,
    directories: &Directories<'_>,
) -> Option<Spot<PathBuf>> {
    let name = section.string("federated_token_file")?;
    existing(reader, &name, directories).map(|path| name.with(path))
}

/// `system`, or the client id of a user-assigned identity.
fn managed_identity(text: &str) -> Result<Option<String>, Problem> {
    match text.trim() {
        it if it.eq_ignore_ascii_case("system") => Ok(None),
        it if value::is_guid(it) => Ok(Some(it.to_ascii_lowercase())),
        _ => Err(Problem::new(
            "is no managed identity",
            "expected \"system\", or the client id (GUID) of a user-assigned identity",
        )),
    }
}

/// The address of a certificate, or of a secret that holds one with its key; and whether it is the latter.
fn vault_certificate_address(text: &str) -> Result<(VaultObject, bool), Problem> {
    match value::vault_object(text, "secrets") {
        Ok(secret) => Ok((secret, true)),
        Err(_) => value::vault_object(text, "certificates").map(|it| (it, false)),
    }
}

fn asker(text: &str) -> Result<Asker, Problem> {
    if text.trim().eq_ignore_ascii_case("federated") {
        return Ok(Asker::Federated);
    }
    managed_identity(text)
        .map(|id| id.map_or(Asker::System, Asker::Identity))
        .map_err(|_| {
            Problem::new(
                "does not say who asks the vault",
                "expected \"system\", the client id (GUID) of a user-assigned identity, or \"federated\"",
            )
        })
}

/// Who gives tokens here, as Microsoft's own libraries find it out.
fn machine(client_id: Option<String>, directories: &Directories<'_>) -> ManagedIdentity {
    let variable = |name: &str| directories.environment.get(name).filter(|it| !it.is_empty());
    let host = match (variable("IDENTITY_ENDPOINT"), variable("IDENTITY_HEADER")) {
        (Some(endpoint), Some(header)) => IdentityHost::AppService {
            endpoint: endpoint.to_owned(),
            header: SecretString::from(header),
        },
        (Some(endpoint), None) if variable("IMDS_ENDPOINT").is_some() => IdentityHost::Arc {
            endpoint: endpoint.to_owned(),
            key_directory: PathBuf::from(ARC_KEYS),
        },
        _ if variable("AZURE_POD_IDENTITY_AUTHORITY_HOST").is_none() && Path::new(ARC_AGENT).exists() => {
            IdentityHost::Arc {
                endpoint: ARC_ENDPOINT.to_owned(),
                key_directory: PathBuf::from(ARC_KEYS),
            }
        }
        _ => IdentityHost::VirtualMachine {
            root: variable("AZURE_POD_IDENTITY_AUTHORITY_HOST")
                .unwrap_or(METADATA_SERVICE)
                .trim_end_matches('/')
                .to_owned(),
        },
    };
    ManagedIdentity { client_id, host }
}
