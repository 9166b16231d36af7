//! Access tokens for Graph: asked for once, shared by all, renewed early. What to do is decided by
//! [`super::cache`]; here it is done.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use reqwest::Url;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use tokio::sync::OwnedMutexGuard;

use super::assertion::{ASSERTION_TYPE, Claims, Signer};
use super::cache::{Advice, Cache, Grant};
use super::credential::{self, CredentialError};
use super::refusal::{self, TokenAnswer};
use super::{IdentityError, guid, https};
use crate::config::{self, Tenant};
use crate::event;
use crate::metrics::{Metrics, ResultLabel};

/// How long a token request may take in all.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// As much of an answer as is read. A token has one or two thousand octets, some have ten.
const MAX_ANSWER_OCTETS: usize = 64 * 1024;

/// Access tokens for Graph. Cheap to clone; all clones share one cache.
#[derive(Clone, Debug)]
pub struct Tokens(Arc<Application>);

/// An access token: it can be sent but not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(HeaderValue);

impl Token {
    /// Takes the text of a token. `None` where it is empty or could not stand in a header field.
    pub(super) fn new(text: &str) -> Option<Token> {
        if text.is_empty() {
            return None;
        }
        let mut value = HeaderValue::from_str(&format!("Bearer {text}")).ok()?;
        // Its Debug is blind, and HTTP/2 keeps it out of the compression table.
        value.set_sensitive(true);
        Some(Token(value))
    }

    /// The Authorization field (RFC 6750 §2.1).
    pub fn authorization(&self) -> HeaderValue {
        self.0.clone()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenError {
    /// What Entra or the network said, and what to mend.
    pub why: String,
    /// Whether an operator must act, or waiting may help.
    pub credential: bool,
    /// How long it is too soon to ask again, because Entra said so or because it failed so often.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for TokenError {}

/// The application, its credential and its tokens.
#[derive(Debug)]
struct Application {
    client: reqwest::Client,
    /// The token endpoint, which is also the assertion's audience.
    endpoint: String,
    client_id: String,
    scope: String,
    signer: Signer,
    cache: Mutex<Cache>,
    /// Held while a request is under way, so that there is only ever one.
    flight: Arc<tokio::sync::Mutex<()>>,
    metrics: Arc<Metrics>,
}

impl Tokens {
    /// Opens the credential; connects to nothing yet. Blocks for as long as a PFX takes to open.
    ///
    /// # Errors
    /// [`IdentityError`] names the file and the fix.
    pub fn new(tenant: &Tenant, metrics: Arc<Metrics>) -> Result<Tokens, IdentityError> {
        let pair = credential::open_for_entra(&tenant.credential).map_err(IdentityError::Credential)?;
        let signer = Signer::new(&pair, tenant.assertion).map_err(|error| {
            IdentityError::Credential(CredentialError::Certificate {
                file: tenant.credential.certificate.clone(),
                error,
            })
        })?;
        let client = https::client(tenant, &tenant.authority)
            .map_err(IdentityError::Https)?
            .timeout(REQUEST_TIMEOUT)
            // One request an hour: an idle connection would only be found dead.
            .pool_max_idle_per_host(0)
            .build()
            .map_err(|error| IdentityError::Https(https::HttpsError::Tls(error)))?;
        metrics
            .credential_expiry_timestamp_seconds
            .set(pair.certificate.not_after.as_second());
        let certificate = &pair.certificate;
        event::credential_opened(
            &tenant.credential.certificate,
            &certificate.subject,
            &certificate.sha1_thumbprint(),
            certificate.not_after,
            certificate.days_left(Timestamp::now()),
        );
        Ok(Tokens(Arc::new(Application {
            client,
            endpoint: endpoint(tenant),
            client_id: tenant.client_id.clone(),
            scope: format!("{}/.default", tenant.graph),
            signer,
            cache: Mutex::default(),
            flight: Arc::default(),
            metrics,
        })))
    }

    /// A token to use now: from the cache, or asked for. However many wait for it, one request is
    /// made; and it is carried to its end even if they all stop waiting.
    ///
    /// # Errors
    /// [`TokenError`] tells a credential that an operator must mend from an outage that passes.
    pub async fn get(&self) -> Result<Token, TokenError> {
        match self.0.advise() {
            Advice::Use(token) => return Ok(token),
            Advice::Wait(error) => return Err(error),
            Advice::Renew(token) => {
                if let Ok(flight) = Arc::clone(&self.0.flight).try_lock_owned() {
                    tokio::spawn(Arc::clone(&self.0).ask(flight));
                }
                return Ok(token);
            }
            Advice::Ask => {}
        }
        let flight = Arc::clone(&self.0.flight).lock_owned().await;
        // Whoever was before us may have asked already, with or without success.
        match self.0.advise() {
            Advice::Use(token) | Advice::Renew(token) => return Ok(token),
            Advice::Wait(error) => return Err(error),
            Advice::Ask => {}
        }
        let asked = tokio::spawn(Arc::clone(&self.0).ask(flight)).await;
        asked.unwrap_or_else(|_| {
            Err(TokenError {
                why: "the token request was cut short by the end of the program".to_owned(),
                credential: false,
                retry_after: None,
            })
        })
    }

    /// Notes that Graph took a token, whatever it thought of the request.
    pub fn accept(&self, token: &Token) {
        self.0.cache().accepted(token);
    }

    /// Takes back a token that Graph refused with 401, so that it is not used again.
    pub fn reject(&self, token: &Token) {
        self.0.cache().rejected(token, Instant::now());
    }
}

impl Application {
    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        // The cache is only ever replaced as a whole, so a panic elsewhere leaves it sound.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn advise(&self) -> Advice {
        self.cache().advise(Instant::now())
    }

    /// Asks for a token, and keeps what came of it.
    async fn ask(self: Arc<Self>, flight: OwnedMutexGuard<()>) -> Result<Token, TokenError> {
        let result = self.request().await;
        let now = Instant::now();
        let mut cache = self.cache();
        let answer = match result {
            Ok(grant) => {
                self.count("ok");
                let token = grant.token.clone();
                let life = i64::try_from(grant.expires_in.as_secs()).unwrap_or(i64::MAX);
                let expires = Timestamp::now().as_second().saturating_add(life);
                self.metrics.token_expiry_timestamp_seconds.set(expires);
                event::token_obtained(&self.client_id, grant.expires_in);
                cache.granted(grant, now);
                Ok(token)
            }
            Err(error) => {
                self.count("failed");
                cache.failed(error.clone(), now);
                let answer = match cache.advise(now) {
                    // The last good token still does.
                    Advice::Use(token) | Advice::Renew(token) => Ok(token),
                    Advice::Wait(error) => Err(error),
                    Advice::Ask => Err(error.clone()),
                };
                event::token_failed(&self.client_id, &error.why, error.credential, answer.is_ok());
                answer
            }
        };
        // Whoever waits for the flight finds the cache filled.
        drop(cache);
        drop(flight);
        answer
    }

    async fn request(&self) -> Result<Grant, TokenError> {
        let assertion = self
            .signer
            .sign(&Claims {
                audience: &self.endpoint,
                client_id: &self.client_id,
                id: &guid(),
                now: Timestamp::now(),
            })
            .map_err(|error| TokenError {
                why: error.to_string(),
                credential: true,
                retry_after: None,
            })?;
        let form = form(&[
            ("client_id", &self.client_id),
            ("scope", &self.scope),
            ("client_assertion_type", ASSERTION_TYPE),
            ("client_assertion", &assertion),
            ("grant_type", "client_credentials"),
        ]);
        let sent = self
            .client
            .post(&self.endpoint)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header("client-request-id", guid())
            .header("return-client-request-id", "true")
            .body(form)
            .send()
            .await;
        let mut response = sent.map_err(|error| TokenError {
            why: format!("Entra ID cannot be reached: {}", https::chain(&error)),
            credential: false,
            retry_after: None,
        })?;
        let now = Timestamp::now();
        let status = response.status().as_u16();
        let retry_after = https::retry_after(response.headers(), now);
        let clock_ahead = clock_ahead(response.headers(), now);
        let body = match https::read_at_most(&mut response, MAX_ANSWER_OCTETS).await {
            Ok(body) => body,
            Err(error) => {
                return Err(TokenError {
                    why: format!("Entra ID's answer broke off: {}", https::chain(&error)),
                    credential: false,
                    retry_after,
                });
            }
        };
        refusal::read(&TokenAnswer {
            status,
            body: &body,
            retry_after,
            clock_ahead,
        })
    }

    fn count(&self, result: &'static str) {
        self.metrics
            .token_requests
            .get_or_create(&ResultLabel { result })
            .inc();
    }
}

/// The token endpoint of a tenant.
fn endpoint(tenant: &config::Tenant) -> String {
    format!("{}/{}/oauth2/v2.0/token", tenant.authority, tenant.id)
}

/// `application/x-www-form-urlencoded`.
fn form(fields: &[(&str, &str)]) -> String {
    // The query of a URL has the same encoding, and the library for URLs is there already.
    let mut url = Url::parse("http://localhost/").expect("a URL");
    url.query_pairs_mut().extend_pairs(fields);
    url.query().unwrap_or_default().to_owned()
}

/// How far our clock is ahead of the server's, in seconds.
fn clock_ahead(headers: &HeaderMap, now: Timestamp) -> Option<i64> {
    let date = https::http_date(headers.get(reqwest::header::DATE)?.to_str().ok()?)?;
    Some(now.as_second() - date.as_second())
}
