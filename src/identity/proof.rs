//! How the application proves itself in a token request: by what it signs, knows, or is given.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::AsyncReadExt as _;

use super::assertion::{self, ASSERTION_TYPE, Claims, Signer};
use super::certificate::{Certificate, KeyPair};
use super::credential::{self, CredentialError};
use super::token::TokenError;
use super::vault::Vault;
use super::{IdentityError, guid};
use crate::config::{ApplicationCredential, AssertionAlgorithm, Credential, Tenant, VaultObject};
use crate::event;
use crate::metrics::Metrics;

/// What a vault holds is asked for again after this time: certificates are rotated there.
const VAULT_LIFE: Duration = Duration::from_secs(6 * 3600);
/// No platform's token is larger.
const MAX_TOKEN_OCTETS: u64 = 64 * 1024;

/// A proof.
#[derive(Debug)]
pub(super) enum Proof {
    /// Assertions signed with a key that is at hand.
    Signed {
        signer: Signer,
        certificate: Box<Certificate>,
    },
    /// Assertions signed with what a vault holds.
    InVault(Box<InVault>),
    /// A client secret.
    Secret(SecretString),
    /// Another platform's token, which is read anew each time: it is replaced there
    /// (<https://learn.microsoft.com/entra/workload-id/workload-identity-federation>).
    FederatedToken(PathBuf),
}

/// A certificate whose key, or whose password, is in a vault.
#[derive(Debug)]
pub(super) struct InVault {
    vault: Vault,
    object: VaultObject,
    what: What,
    algorithm: AssertionAlgorithm,
    with_chain: bool,
    /// As it was when it was last asked for.
    loaded: Mutex<Option<Arc<Loaded>>>,
    /// The certificate that was loaded last, also where it did not serve.
    seen: Mutex<Option<Certificate>>,
}

#[derive(Debug)]
enum What {
    /// The vault signs.
    Key,
    /// The vault gives the certificate with its key.
    Certificate,
    /// The vault gives the password of these files.
    Password(Credential),
}

#[derive(Debug)]
struct Loaded {
    signs: Signs,
    at: Instant,
}

#[derive(Debug)]
enum Signs {
    Here(Signer),
    /// With the key of this id, under this header.
    There {
        key: String,
        header: String,
    },
}

impl Proof {
    /// Opens what is in files. Blocks.
    pub(super) fn open(
        tenant: &Tenant,
        credential: &ApplicationCredential,
        metrics: &Arc<Metrics>,
    ) -> Result<Proof, IdentityError> {
        let in_vault = |object: &VaultObject, identity, what| {
            Ok(Proof::InVault(Box::new(InVault {
                vault: Vault::new(tenant, &object.vault, identity, metrics)?,
                object: object.clone(),
                what,
                algorithm: tenant.assertion,
                with_chain: tenant.send_certificate_chain,
                loaded: Mutex::default(),
                seen: Mutex::default(),
            })))
        };
        match credential {
            ApplicationCredential::Certificate {
                files,
                vault_password: None,
            } => {
                let pair = credential::open_for_entra(files).map_err(IdentityError::Credential)?;
                let signer =
                    Signer::new(&pair, tenant.assertion, tenant.send_certificate_chain).map_err(|error| {
                        IdentityError::Credential(CredentialError::Certificate {
                            file: files.certificate.clone(),
                            error,
                        })
                    })?;
                opened(&files.certificate.display().to_string(), &pair.certificate);
                Ok(Proof::Signed {
                    signer,
                    certificate: Box::new(pair.certificate),
                })
            }
            ApplicationCredential::Certificate {
                files,
                vault_password: Some(password),
            } => in_vault(
                &password.secret,
                &password.identity,
                What::Password(files.clone()),
            ),
            ApplicationCredential::VaultCertificate(certificate) => {
                let what = if certificate.download {
                    What::Certificate
                } else {
                    What::Key
                };
                in_vault(&certificate.certificate, &certificate.identity, what)
            }
            ApplicationCredential::Secret(secret) => Ok(Proof::Secret(secret.clone())),
            ApplicationCredential::FederatedToken(file) => Ok(Proof::FederatedToken(file.clone())),
            ApplicationCredential::ManagedIdentity(_) => Err(IdentityError::NoApplication),
        }
    }

    /// The certificate, where there is one and it has been opened.
    pub(super) fn certificate(&self) -> Option<Certificate> {
        match self {
            Proof::Signed { certificate, .. } => Some((**certificate).clone()),
            Proof::InVault(it) => it.seen.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            Proof::Secret(_) | Proof::FederatedToken(_) => None,
        }
    }

    /// Forgets what a vault gave, because it did not serve.
    pub(super) fn forget(&self) {
        if let Proof::InVault(it) = self {
            *it.loaded.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// The fields of the request that prove the application.
    pub(super) async fn fields(
        &self,
        audience: &str,
        client_id: &str,
    ) -> Result<Vec<(&'static str, String)>, TokenError> {
        let id = guid();
        let claims = Claims {
            audience,
            client_id,
            id: &id,
            now: Timestamp::now(),
        };
        let assertion = match self {
            Proof::Secret(secret) => return Ok(vec![("client_secret", secret.expose_secret().to_owned())]),
            Proof::FederatedToken(file) => federated_token(file).await?,
            Proof::Signed { signer, .. } => sign(signer, &claims)?,
            Proof::InVault(it) => it.sign(&claims).await?,
        };
        Ok(vec![
            ("client_assertion_type", ASSERTION_TYPE.to_owned()),
            ("client_assertion", assertion),
        ])
    }
}

impl InVault {
    fn current(&self) -> Option<Arc<Loaded>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn sign(&self, claims: &Claims<'_>) -> Result<String, TokenError> {
        let loaded = self.loaded().await?;
        match &loaded.signs {
            Signs::Here(signer) => sign(signer, claims),
            Signs::There { key, header } => {
                let mut assertion = assertion::signing_input(header, claims);
                let signature = self.vault.sign(key, self.algorithm, assertion.as_bytes()).await?;
                assertion.push('.');
                assertion.push_str(&signature);
                Ok(assertion)
            }
        }
    }

    async fn loaded(&self) -> Result<Arc<Loaded>, TokenError> {
        let current = self.current();
        if let Some(current) = &current
            && current.at.elapsed() < VAULT_LIFE
        {
            return Ok(Arc::clone(current));
        }
        match self.load().await {
            Ok(loaded) => {
                let loaded = Arc::new(loaded);
                *self.loaded.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&loaded));
                Ok(loaded)
            }
            // What it gave last time will do while it cannot be reached.
            Err(error) if !error.credential => current.ok_or(error),
            Err(error) => Err(error),
        }
    }

    async fn load(&self) -> Result<Loaded, TokenError> {
        let (certificate, signs) = match &self.what {
            What::Key => {
                let (der, key) = self.vault.certificate(&self.object).await?;
                let certificate = Certificate::from_der(&der)
                    .and_then(|it| it.check_for_entra().map(|()| it))
                    .map_err(|error| self.unusable(&error))?;
                let header = assertion::header(&certificate, self.algorithm, self.with_chain.then_some(&[]));
                (certificate, Signs::There { key, header })
            }
            What::Certificate => {
                let content = self.vault.certificate_with_key(&self.object).await?;
                let pair = KeyPair::open(&content, None, None)
                    .map_err(|error| self.unusable(&error))
                    .and_then(|it| {
                        it.check_for_entra()
                            .map(|()| it)
                            .map_err(|error| self.unusable(&error))
                    })?;
                self.with_pair(pair)?
            }
            What::Password(files) => {
                let files = Credential {
                    password: Some(self.vault.secret(&self.object).await?),
                    ..files.clone()
                };
                let opened = tokio::task::spawn_blocking(move || credential::open_for_entra(&files)).await;
                let pair = opened
                    .map_err(|error| TokenError::passing(error.to_string()))?
                    .map_err(|error| TokenError::credential(error.to_string()))?;
                self.with_pair(pair)?
            }
        };
        opened(&self.name(), &certificate);
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(certificate);
        Ok(Loaded {
            signs,
            at: Instant::now(),
        })
    }

    fn with_pair(&self, pair: KeyPair) -> Result<(Certificate, Signs), TokenError> {
        let signer =
            Signer::new(&pair, self.algorithm, self.with_chain).map_err(|error| self.unusable(&error))?;
        Ok((pair.certificate, Signs::Here(signer)))
    }

    fn name(&self) -> String {
        format!("{} of {}", self.object.name, self.object.vault)
    }

    fn unusable(&self, error: &dyn std::fmt::Display) -> TokenError {
        TokenError::credential(format!("{}: {error}", self.name()))
    }
}

fn sign(signer: &Signer, claims: &Claims<'_>) -> Result<String, TokenError> {
    signer
        .sign(claims)
        .map_err(|error| TokenError::credential(error.to_string()))
}

fn opened(what: &str, certificate: &Certificate) {
    event::credential_opened(
        what,
        &certificate.subject,
        &certificate.sha1_thumbprint(),
        certificate.not_after,
    );
}

async fn federated_token(file: &Path) -> Result<String, TokenError> {
    let unreadable = |why: &dyn std::fmt::Display| {
        TokenError::credential(format!("federated_token_file {}: {why}", file.display()))
    };
    let mut token = String::new();
    tokio::fs::File::open(file)
        .await
        .map_err(|error| unreadable(&error))?
        .take(MAX_TOKEN_OCTETS)
        .read_to_string(&mut token)
        .await
        .map_err(|error| unreadable(&error))?;
    match token.trim() {
        "" => Err(unreadable(&"it is empty")),
        token => Ok(token.to_owned()),
    }
}
