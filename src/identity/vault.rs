//! Azure Key Vault: secrets to read, certificates, and keys that sign and never leave it
//! (<https://learn.microsoft.com/rest/api/keyvault/>).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use reqwest::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use reqwest::{Method, Response, Url};
use secrecy::SecretString;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::entra::{Entra, MAX_ANSWER_OCTETS, REQUEST_TIMEOUT};
use super::managed::Machine;
use super::refusal::line;
use super::token::{Token, TokenError};
use super::{IdentityError, https};
use crate::config::{ApplicationCredential, AssertionAlgorithm, Tenant, VaultIdentity, VaultObject};
use crate::diagnosis;
use crate::metrics::Metrics;

const API_VERSION: &str = "7.4";
/// A token is used until this long before its end.
const RENEW_BEFORE_END: Duration = Duration::from_secs(300);

/// A vault, and who asks it.
#[derive(Debug)]
pub(super) struct Vault {
    client: reqwest::Client,
    /// Without a trailing slash.
    root: String,
    asker: Asker,
    token: Mutex<Option<(Token, Instant)>>,
}

#[derive(Debug)]
enum Asker {
    Machine(Machine),
    /// The tenant is kept because what the token is for becomes known only from the vault.
    Federated(Box<(Tenant, ApplicationCredential, Arc<Metrics>)>),
}

impl Vault {
    pub(super) fn new(
        tenant: &Tenant,
        root: &str,
        identity: &VaultIdentity,
        metrics: &Arc<Metrics>,
    ) -> Result<Vault, IdentityError> {
        let client = https::client(tenant, root)
            .map_err(IdentityError::Https)?
            .timeout(REQUEST_TIMEOUT)
            .pool_max_idle_per_host(0)
            .build()
            .map_err(|error| IdentityError::Https(https::HttpsError::Tls(error)))?;
        let asker = match identity {
            VaultIdentity::Managed(identity) => {
                Asker::Machine(Machine::new(identity).map_err(IdentityError::Https)?)
            }
            VaultIdentity::Federated(file) => Asker::Federated(Box::new((
                tenant.clone(),
                ApplicationCredential::FederatedToken(file.clone()),
                Arc::clone(metrics),
            ))),
        };
        Ok(Vault {
            client,
            root: root.to_owned(),
            asker,
            token: Mutex::default(),
        })
    }

    /// The value of a secret.
    pub(super) async fn secret(&self, object: &VaultObject) -> Result<SecretString, TokenError> {
        let answer = self
            .call(Method::GET, &self.address("secrets", object), None)
            .await?;
        match answer["value"].as_str() {
            Some(value) => Ok(SecretString::from(value)),
            None => Err(self.strange("a secret without a value")),
        }
    }

    /// A certificate with its key, as its secret has them: a PFX without a password, or PEM.
    pub(super) async fn certificate_with_key(
        &self,
        object: &VaultObject,
    ) -> Result<Zeroizing<Vec<u8>>, TokenError> {
        let answer = self
            .call(Method::GET, &self.address("secrets", object), None)
            .await?;
        // What somebody stored as a secret of its own need not have a type, and may be broken into lines.
        let value = answer["value"].as_str().unwrap_or_default();
        let content = if value.contains("-----BEGIN ") {
            value.as_bytes().to_vec()
        } else {
            let bare: Zeroizing<String> = Zeroizing::new(value.split_ascii_whitespace().collect());
            STANDARD
                .decode(bare.as_bytes())
                .map_err(|_| self.strange("a certificate that is neither PFX nor PEM"))?
        };
        Ok(Zeroizing::new(content))
    }

    /// A certificate in DER, and the id of its key.
    pub(super) async fn certificate(&self, object: &VaultObject) -> Result<(Vec<u8>, String), TokenError> {
        let answer = self
            .call(Method::GET, &self.address("certificates", object), None)
            .await?;
        let der = answer["cer"].as_str().and_then(|it| STANDARD.decode(it).ok());
        let (Some(der), Some(key)) = (der, answer["kid"].as_str()) else {
            return Err(self.strange("a certificate without its content"));
        };
        // The id is an address, and it will be sent a token.
        if !key.starts_with(&format!("{}/keys/", self.root)) {
            return Err(self.strange("the key of another vault"));
        }
        Ok((der, key.to_owned()))
    }

    /// Signs, and gives the signature in base64url.
    pub(super) async fn sign(
        &self,
        key: &str,
        algorithm: AssertionAlgorithm,
        content: &[u8],
    ) -> Result<String, TokenError> {
        let alg = match algorithm {
            AssertionAlgorithm::Ps256 => "PS256",
            AssertionAlgorithm::Rs256 => "RS256",
        };
        let value = URL_SAFE_NO_PAD.encode(digest(&SHA256, content));
        let body = json!({"alg": alg, "value": value});
        let answer = self
            .call(Method::POST, &format!("{key}/sign"), Some(&body))
            .await?;
        match answer["value"].as_str() {
            Some(it) if URL_SAFE_NO_PAD.decode(it).is_ok() => Ok(it.to_owned()),
            _ => Err(self.strange("no signature")),
        }
    }

    fn address(&self, kind: &str, object: &VaultObject) -> String {
        match &object.version {
            Some(version) => format!("{}/{kind}/{}/{version}", self.root, object.name),
            None => format!("{}/{kind}/{}", self.root, object.name),
        }
    }

    async fn call(&self, method: Method, address: &str, body: Option<&Value>) -> Result<Value, TokenError> {
        let held = self.token().filter(|(_, until)| Instant::now() < *until);
        let token = match held {
            Some((token, _)) => token,
            None => self.ask_for_token(method.clone(), address).await?,
        };
        let mut request = self
            .client
            .request(method, self.versioned(address)?)
            .header(AUTHORIZATION, token.authorization());
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        self.read(response).await
    }

    /// A vault says to whom it is open only when it is asked without a token
    /// (<https://learn.microsoft.com/azure/key-vault/general/authentication-requests-and-responses>).
    async fn ask_for_token(&self, method: Method, address: &str) -> Result<Token, TokenError> {
        let mut request = self.client.request(method.clone(), self.versioned(address)?);
        if method == Method::POST {
            request = request.header(reqwest::header::CONTENT_LENGTH, 0);
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        if response.status() != 401 {
            // Whatever this is, it does not want to know who we are.
            self.read(response).await?;
            return Err(self.strange("an answer to a stranger"));
        }
        let challenge = response
            .headers()
            .get(WWW_AUTHENTICATE)
            .and_then(|it| it.to_str().ok())
            .unwrap_or_default();
        let resource = resource_of(challenge, &self.root).ok_or_else(|| {
            let what = format!(
                "{} asks for a token for another place ({}), and gets none",
                self.root,
                line(challenge, 200)
            );
            TokenError::credential(diagnosis::reason(&what, "check the vault's address"))
        })?;
        let grant = match &self.asker {
            Asker::Machine(machine) => machine.request(&resource).await?,
            Asker::Federated(application) => {
                let application = application.clone();
                let opened = tokio::task::spawn_blocking(move || {
                    let (tenant, credential, metrics) = *application;
                    Entra::new(&tenant, &credential, &resource, &metrics)
                });
                let entra = opened
                    .await
                    .map_err(|error| TokenError::passing(error.to_string()))?
                    .map_err(|error| TokenError::credential(error.to_string()))?;
                Box::pin(entra.request(None)).await?
            }
        };
        let life = grant.expires_in.min(Duration::from_secs(24 * 3600));
        let until = Instant::now() + life.saturating_sub(RENEW_BEFORE_END);
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some((grant.token.clone(), until));
        Ok(grant.token)
    }

    fn token(&self) -> Option<(Token, Instant)> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn versioned(&self, address: &str) -> Result<Url, TokenError> {
        let mut url = Url::parse(address).map_err(|_| self.strange("an address that is none"))?;
        url.set_query(Some(&format!("api-version={API_VERSION}")));
        Ok(url)
    }

    async fn read(&self, mut response: Response) -> Result<Value, TokenError> {
        let status = response.status().as_u16();
        let retry_after = https::retry_after(response.headers(), jiff::Timestamp::now());
        let body = Zeroizing::new(
            https::read_at_most(&mut response, MAX_ANSWER_OCTETS)
                .await
                .map_err(|error| self.unreachable(&error))?,
        );
        let json: Option<Value> = serde_json::from_slice(&body).ok();
        if status == 200 {
            return json.ok_or_else(|| self.strange("something that is no JSON"));
        }
        if status == 401 {
            *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        let error = json.map(|it| it["error"].clone()).unwrap_or_default();
        let said = [&error["code"], &error["message"]]
            .iter()
            .filter_map(|it| it.as_str())
            .map(|it| line(it, 300))
            .collect::<Vec<_>>()
            .join(": ");
        let fix = match status {
            401 => Some("use a vault of the identity's own tenant; check that the identity is still there"),
            403 => Some(
                "give the identity the role Key Vault Secrets User (secrets), Key Vault Certificate User \
                 (certificates) or Key Vault Crypto User (signing), and let the vault's firewall pass it",
            ),
            404 => Some("check the name and the version"),
            _ => None,
        };
        let what = format!("the vault {} answers {status} {said}", self.root);
        Err(TokenError {
            why: fix.map_or_else(|| what.clone(), |it| diagnosis::reason(&what, it)),
            credential: !matches!(status, 408 | 429 | 500..=599),
            code: None,
            retry_after,
        })
    }

    fn unreachable(&self, error: &reqwest::Error) -> TokenError {
        TokenError::passing(format!(
            "the vault {} cannot be reached: {}",
            self.root,
            https::chain(error)
        ))
    }

    fn strange(&self, what: &str) -> TokenError {
        let what = format!("the vault {} gives {what}", self.root);
        TokenError::credential(diagnosis::reason(&what, "check its address"))
    }
}

/// The resource that a challenge asks a token for, if it is the vault's own or one that the vault lies
/// in: `https://vault.azure.net` for `https://contoso.vault.azure.net`. A token for anything else
/// could be used by whoever asked for it, somewhere else.
fn resource_of(challenge: &str, vault: &str) -> Option<String> {
    let parameters = challenge.trim().strip_prefix("Bearer ")?;
    let value = |name: &str| {
        parameters.split(',').find_map(|it| {
            let (key, value) = it.split_once('=')?;
            key.trim()
                .eq_ignore_ascii_case(name)
                .then(|| value.trim().trim_matches('"'))
        })
    };
    let resource = match (value("resource"), value("scope")) {
        (Some(resource), _) => resource,
        (None, Some(scope)) => scope.strip_suffix("/.default").unwrap_or(scope),
        (None, None) => return None,
    };
    let resource = resource.trim_end_matches('/');
    let (ours, theirs) = (Url::parse(vault).ok()?, Url::parse(resource).ok()?);
    let within = theirs.scheme() == "https"
        && ours.scheme() == "https"
        && ours
            .host_str()?
            .to_ascii_lowercase()
            .strip_suffix(&theirs.host_str()?.to_ascii_lowercase())
            .is_some_and(|it| it.ends_with('.'))
        // A single label, such as "net", is no one's.
        && theirs.host_str()?.contains('.');
    (within || ours.origin() == theirs.origin()).then(|| resource.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_no_token_for_a_foreign_place() {
        let vault = "https://contoso.vault.azure.net";
        let with = |resource: &str| {
            format!("Bearer authorization=\"https://login.microsoftonline.com/t\", resource=\"{resource}\"")
        };
        for (vault, challenge, want) in [
            (vault, with("https://vault.azure.net"), true),
            (vault, with("https://vault.azure.net/"), true),
            (vault, with("https://VAULT.azure.net"), true),
            (vault, with("https://contoso.vault.azure.net"), true),
            (
                vault,
                "Bearer scope=\"https://vault.azure.net/.default\"".to_owned(),
                true,
            ),
            (
                "https://contoso.vault.azure.cn",
                with("https://vault.azure.cn"),
                true,
            ),
            ("http://127.0.0.1:8025", with("http://127.0.0.1:8025"), true),
            (vault, with("https://graph.microsoft.com"), false),
            (vault, with("https://evil.example"), false),
            (vault, with("https://evilvault.azure.net"), false),
            (vault, with("https://toso.vault.azure.net"), false),
            (vault, with("https://net"), false),
            (vault, with("http://vault.azure.net"), false),
            (vault, with("https://vault.azure.net.evil.example"), false),
            (vault, with("https://vault.azure.net@evil.example"), false),
            (vault, with(""), false),
            ("http://127.0.0.1:8025", with("http://127.0.0.1:8026"), false),
            ("http://127.0.0.1:8025", with("https://vault.azure.net"), false),
            (vault, "Basic realm=\"x\"".to_owned(), false),
            (vault, String::new(), false),
        ] {
            assert_eq!(
                resource_of(&challenge, vault).is_some(),
                want,
                "{vault} {challenge}"
            );
        }
    }
}
