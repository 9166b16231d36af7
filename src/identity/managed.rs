//! Managed identities: tokens for the machine itself, from whoever runs it in Azure
//! (<https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/>).

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, Response, redirect};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::AsyncReadExt as _;

use super::cache::Grant;
use super::entra::{REQUEST_TIMEOUT, read};
use super::https::{self, HttpsError};
use super::token::TokenError;
use crate::config::{IdentityHost, ManagedIdentity};
use crate::diagnosis;

/// Whoever gives tokens to a machine is on it, or next to it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A key file of Azure Arc is no larger
/// (<https://learn.microsoft.com/azure/azure-arc/servers/managed-identity-authentication>).
const MAX_KEY_OCTETS: u64 = 4096;

const AGENT: &str = "the agent of Azure Arc";
/// Where no OAuth answer comes.
const ADVICE: &str = "check that this machine is where its environment variables say";

/// A machine with an identity.
#[derive(Debug)]
pub(super) struct Machine {
    client: reqwest::Client,
    identity: ManagedIdentity,
}

impl Machine {
    pub(super) fn new(identity: &ManagedIdentity) -> Result<Machine, HttpsError> {
        let client = reqwest::Client::builder()
            // A proxy would ask the metadata service of its own machine.
            .no_proxy()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .pool_max_idle_per_host(0)
            .tls_certs_only([])
            .build()
            .map_err(HttpsError::Tls)?;
        Ok(Machine {
            client,
            identity: identity.clone(),
        })
    }

    /// Asks for a token for a resource.
    pub(super) async fn request(&self, resource: &str) -> Result<Grant, TokenError> {
        let mut query = vec![("resource", resource)];
        if let Some(client_id) = &self.identity.client_id {
            query.push(("client_id", client_id));
        }
        match &self.identity.host {
            IdentityHost::VirtualMachine { root } => {
                let url = format!("{root}/metadata/identity/oauth2/token");
                let request = self.get(&url, "2018-02-01", &query)?.header("Metadata", "true");
                answered("the machine's metadata service", request).await
            }
            IdentityHost::AppService { endpoint, header } => {
                let request = self
                    .get(endpoint, "2019-08-01", &query)?
                    .header("X-IDENTITY-HEADER", sensitive(header)?);
                answered("the platform's identity endpoint", request).await
            }
            IdentityHost::Arc {
                endpoint,
                key_directory,
            } => self.ask_arc(endpoint, key_directory, &query).await,
        }
    }

    /// Azure Arc shows us a file that only those on the machine can read, and wants to know what is in
    /// it.
    async fn ask_arc(
        &self,
        endpoint: &str,
        key_directory: &Path,
        query: &[(&str, &str)],
    ) -> Result<Grant, TokenError> {
        let request = || {
            let request = self.get(endpoint, "2020-06-01", query)?;
            Ok::<_, TokenError>(request.header("Metadata", "true"))
        };
        let response = sent(request()?).await?;
        if response.status() != 401 {
            return read(AGENT, ADVICE, response).await;
        }
        let challenge = response
            .headers()
            .get(WWW_AUTHENTICATE)
            .and_then(|it| it.to_str().ok())
            .unwrap_or_default();
        let file = key_file(challenge, key_directory).ok_or_else(|| {
            TokenError::credential(format!(
                "the agent of Azure Arc names no key file in {}; nothing else is read for it",
                key_directory.display()
            ))
        })?;
        let key = read_key(&file).await?;
        let request = request()?.header(
            AUTHORIZATION,
            sensitive(&SecretString::from(format!("Basic {key}")))?,
        );
        answered(AGENT, request).await
    }

    fn get(&self, url: &str, version: &str, query: &[(&str, &str)]) -> Result<RequestBuilder, TokenError> {
        let mut url = reqwest::Url::parse(url)
            .map_err(|_| TokenError::credential(format!("'{url}' is no address of an identity endpoint")))?;
        url.query_pairs_mut()
            .append_pair("api-version", version)
            .extend_pairs(query);
        Ok(self.client.get(url))
    }
}

async fn answered(who: &'static str, request: RequestBuilder) -> Result<Grant, TokenError> {
    let response = sent(request).await?;
    // It is just starting, or being updated
    // (<https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token#error-handling>).
    if matches!(response.status().as_u16(), 404 | 410) {
        return Err(TokenError::passing(format!(
            "{who} answers {}",
            response.status().as_u16()
        )));
    }
    read(who, ADVICE, response).await
}

async fn sent(request: RequestBuilder) -> Result<Response, TokenError> {
    request.send().await.map_err(|error| {
        let what = format!(
            "no one here gives tokens to a managed identity: {}",
            https::chain(&error)
        );
        let fix = "give this machine an identity in Azure, or use a certificate: 'graphpost cert new'";
        TokenError::passing(diagnosis::reason(&what, fix))
    })
}

/// `Basic realm=/var/opt/azcmagent/tokens/guid.key`: the file, if it lies where it must.
fn key_file(challenge: &str, directory: &Path) -> Option<PathBuf> {
    let realm = challenge
        .trim()
        .strip_prefix("Basic")?
        .trim()
        .strip_prefix("realm=")?;
    let path = Path::new(realm.trim_matches('"'));
    let name = path.file_name()?.to_str()?;
    // Compared as text: no "..", no other spelling of the directory.
    let right = directory.join(name).as_os_str() == path.as_os_str() && name.ends_with(".key");
    right.then(|| path.to_owned())
}

async fn read_key(file: &Path) -> Result<String, TokenError> {
    let unreadable = |why: &dyn std::fmt::Display| {
        TokenError::credential(diagnosis::reason(
            &format!("{}: {why}", file.display()),
            "put the service's account into the group himds",
        ))
    };
    let mut key = String::new();
    tokio::fs::File::open(file)
        .await
        .map_err(|error| unreadable(&error))?
        .take(MAX_KEY_OCTETS + 1)
        .read_to_string(&mut key)
        .await
        .map_err(|error| unreadable(&error))?;
    if key.len() as u64 > MAX_KEY_OCTETS {
        return Err(unreadable(&"larger than any key"));
    }
    Ok(key)
}

fn sensitive(secret: &SecretString) -> Result<HeaderValue, TokenError> {
    let mut value = HeaderValue::from_str(secret.expose_secret())
        .map_err(|_| TokenError::credential("the secret of the identity endpoint is no header value"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_no_other_file_than_the_agents() {
        let directory = Path::new("/var/opt/azcmagent/tokens");
        for (challenge, want) in [
            ("Basic realm=/var/opt/azcmagent/tokens/a-b.key", true),
            ("Basic realm=\"/var/opt/azcmagent/tokens/a-b.key\"", true),
            (
                "Basic realm=/var/opt/azcmagent/tokens/../../../etc/shadow.key",
                false,
            ),
            ("Basic realm=/var/opt/azcmagent/tokens/sub/a.key", false),
            ("Basic realm=/var/opt/azcmagent/tokens//a.key", false),
            ("Basic realm=/var/opt/azcmagent/./tokens/a.key", false),
            ("Basic realm=/etc/shadow", false),
            ("Basic realm=/var/opt/azcmagent/tokens/a.txt", false),
            ("Basic realm=/var/opt/azcmagent/tokens/", false),
            ("Basic realm=a.key", false),
            ("Basic realm=", false),
            ("Bearer realm=/var/opt/azcmagent/tokens/a.key", false),
            ("", false),
        ] {
            assert_eq!(key_file(challenge, directory).is_some(), want, "{challenge}");
        }
    }
}
