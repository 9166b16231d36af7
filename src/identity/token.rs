//! Access tokens for Graph: asked for once, shared by all, renewed early. What to do is decided by
//! [`super::cache`]; here it is done.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use reqwest::header::HeaderValue;
use tokio::sync::OwnedMutexGuard;

use super::IdentityError;
use super::cache::{Advice, Cache, Grant};
use super::claims::{self, TokenClaims};
use super::entra::Entra;
use super::expiry::{UsedFor, Watched};
use super::managed::Machine;
use crate::config::{ApplicationCredential, Tenant};
use crate::diagnosis;
use crate::event;
use crate::metrics::{CredentialLabel, Metrics, ResultLabel};

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

impl Token {
    /// What it says about the application, for people to read; `None` where it is not readable.
    pub fn claims(&self) -> Option<TokenClaims> {
        claims::read(self.0.to_str().ok()?.strip_prefix("Bearer ")?)
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
    /// Entra's AADSTS code, where there is one.
    pub code: Option<u32>,
    /// How long it is too soon to ask again, because Entra said so or because it failed so often.
    pub retry_after: Option<Duration>,
}

impl TokenError {
    /// Something that an operator must mend.
    pub(super) fn credential(why: impl Into<String>) -> TokenError {
        TokenError {
            why: why.into(),
            credential: true,
            code: None,
            retry_after: None,
        }
    }

    /// Something that may pass by itself.
    pub(super) fn passing(why: impl Into<String>) -> TokenError {
        TokenError {
            credential: false,
            ..TokenError::credential(why)
        }
    }
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for TokenError {}

/// What came of asking for a token with one of the credentials.
#[derive(Debug)]
pub struct Examined {
    /// `current` or `next`.
    pub credential: &'static str,
    /// The token, or why there is none.
    pub result: Result<Token, TokenError>,
    /// The end of its certificate, where there is one and it has been seen.
    pub expires: Option<Timestamp>,
}

/// Who gives tokens to the application.
#[derive(Debug)]
enum Issuer {
    Entra(Box<Entra>),
    Machine(Box<Machine>),
}

impl Issuer {
    fn credential_expires(&self) -> Option<Timestamp> {
        match self {
            Issuer::Entra(entra) => entra.certificate().map(|it| it.not_after),
            Issuer::Machine(_) => None,
        }
    }
}

/// The application and its tokens.
#[derive(Debug)]
struct Application {
    client_id: String,
    resource: String,
    /// With their names; the one to be tried first comes first.
    issuers: Vec<(&'static str, Issuer)>,
    /// The name of the one that gave the last token.
    in_use: Mutex<Option<&'static str>>,
    cache: Mutex<Cache>,
    /// What Graph demands of the next token (continuous access evaluation).
    challenge: Mutex<Option<String>>,
    /// Held while a request is under way, so that there is only ever one.
    flight: Arc<tokio::sync::Mutex<()>>,
    metrics: Arc<Metrics>,
}

impl Tokens {
    /// Opens the credentials that are in files; connects to nothing yet. Blocks for as long as a PFX
    /// takes to open.
    ///
    /// # Errors
    /// [`IdentityError`] names the file and the fix.
    pub fn new(tenant: &Tenant, metrics: Arc<Metrics>) -> Result<Tokens, IdentityError> {
        let issuer = |credential: &ApplicationCredential| {
            Ok(match credential {
                ApplicationCredential::ManagedIdentity(identity) => {
                    Issuer::Machine(Box::new(Machine::new(identity).map_err(IdentityError::Https)?))
                }
                credential => {
                    Issuer::Entra(Box::new(Entra::new(tenant, credential, &tenant.graph, &metrics)?))
                }
            })
        };
        let mut issuers = Vec::new();
        // The one that is to follow is taken as soon as Entra ID takes it.
        if let Some(next) = &tenant.next_credential {
            issuers.push(("next", issuer(next)?));
        }
        issuers.push(("current", issuer(&tenant.credential)?));
        Ok(Tokens(Arc::new(Application {
            client_id: tenant.client_id.clone(),
            resource: tenant.graph.clone(),
            issuers,
            in_use: Mutex::default(),
            cache: Mutex::default(),
            challenge: Mutex::default(),
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
            Err(TokenError::passing(
                "the token request was cut short by the end of the program",
            ))
        })
    }

    /// The certificates that prove the application, as far as they have been opened: one in a vault is
    /// known once a token was asked for. The one that gave the last token comes first, before that the
    /// current one.
    pub fn certificates(&self) -> Vec<Watched> {
        let in_use = lock(&self.0.in_use).unwrap_or("current");
        let mut certificates: Vec<(bool, Watched)> = self
            .0
            .issuers
            .iter()
            .filter_map(|(name, issuer)| match issuer {
                Issuer::Entra(entra) => {
                    let used_for = UsedFor::Application((*name).to_owned());
                    let watched = Watched::new(used_for, &entra.certificate()?);
                    Some((in_use != *name, watched))
                }
                Issuer::Machine(_) => None,
            })
            .collect();
        certificates.sort_by_key(|(idle, _)| *idle);
        certificates.into_iter().map(|(_, watched)| watched).collect()
    }

    /// Asks with each of the credentials, one after the other, whatever is in the cache: to find out
    /// how they are.
    pub async fn examine(&self) -> Vec<Examined> {
        let mut examined = Vec::new();
        for (credential, issuer) in &self.0.issuers {
            let result = self.0.request_from(issuer, None).await;
            examined.push(Examined {
                credential,
                result: result.map(|grant| grant.token),
                expires: issuer.credential_expires(),
            });
        }
        examined
    }

    /// Why the last request for a token failed, if it did.
    pub fn trouble(&self) -> Option<TokenError> {
        lock(&self.0.cache).failure().cloned()
    }

    /// Notes that Graph took a token, whatever it thought of the request.
    pub fn accept(&self, token: &Token) {
        lock(&self.0.cache).accepted(token);
    }

    /// An operator says that something has been mended: Entra ID is asked again without waiting.
    pub fn ask_now(&self) {
        lock(&self.0.cache).ask_now(Instant::now());
    }

    /// A newer token than this one, with which Graph found a permission missing (403): it may have been
    /// granted since. The old one is kept until there is a new one.
    pub async fn newer(&self, token: &Token) -> Option<Token> {
        if !lock(&self.0.cache).is_dated(token, Instant::now()) {
            return None;
        }
        let flight = Arc::clone(&self.0.flight).lock_owned().await;
        if let Advice::Use(other) | Advice::Renew(other) = self.0.advise()
            && other != *token
        {
            return Some(other);
        }
        let asked = tokio::spawn(Arc::clone(&self.0).ask(flight)).await;
        asked.ok()?.ok().filter(|it| it != token)
    }

    /// Takes back a token that Graph refused with 401, so that it is not used again. `challenge` are the
    /// claims that Graph demands of the next one, where it does.
    pub fn reject(&self, token: &Token, challenge: Option<String>) {
        if challenge.is_some() {
            *lock(&self.0.challenge) = challenge;
        }
        lock(&self.0.cache).rejected(token, Instant::now());
    }
}

impl Application {
    fn advise(&self) -> Advice {
        lock(&self.cache).advise(Instant::now())
    }

    /// Asks for a token, and keeps what came of it.
    async fn ask(self: Arc<Self>, flight: OwnedMutexGuard<()>) -> Result<Token, TokenError> {
        let challenge = lock(&self.challenge).clone();
        let result = self.request(challenge.as_deref()).await;
        let now = Instant::now();
        let mut cache = lock(&self.cache);
        let answer = match result {
            Ok(grant) => {
                self.count("ok");
                let token = grant.token.clone();
                let life = i64::try_from(grant.expires_in.as_secs()).unwrap_or(i64::MAX);
                let expires = Timestamp::now().as_second().saturating_add(life);
                self.metrics.token_expiry_timestamp_seconds.set(expires);
                event::token_obtained(&self.client_id, grant.expires_in);
                cache.granted(grant, now);
                let mut current = lock(&self.challenge);
                if *current == challenge {
                    *current = None;
                }
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

    /// Asks with one credential after the other, until one is taken. An outage ends that: it says
    /// nothing about any of them.
    async fn request(&self, challenge: Option<&str>) -> Result<Grant, TokenError> {
        let mut refused: Option<(&str, TokenError)> = None;
        for (name, issuer) in &self.issuers {
            match self.request_from(issuer, challenge).await {
                Ok(grant) => {
                    self.took(name, refused.as_ref());
                    return Ok(grant);
                }
                Err(error) if error.credential => {
                    refused = Some(match refused {
                        None => (name, error),
                        Some((other, earlier)) => {
                            let (what, fix) = diagnosis::parts(&error.why);
                            let (before, _) = diagnosis::parts(&earlier.why);
                            let what = format!("{what}; the {other} credential: {before}");
                            let why = fix.map_or_else(|| what.clone(), |it| diagnosis::reason(&what, it));
                            (name, TokenError { why, ..error })
                        }
                    });
                }
                Err(error) => return Err(error),
            }
        }
        Err(match refused {
            Some((_, error)) => error,
            None => TokenError::credential("there is no credential"),
        })
    }

    async fn request_from(&self, issuer: &Issuer, challenge: Option<&str>) -> Result<Grant, TokenError> {
        match issuer {
            Issuer::Entra(entra) => entra.request(challenge).await,
            Issuer::Machine(machine) => machine.request(&self.resource).await,
        }
    }

    /// Notes which credential gave a token.
    fn took(&self, name: &'static str, refused: Option<&(&str, TokenError)>) {
        let metric = &self.metrics.credential_in_use;
        for other in ["current", "next"] {
            let label = CredentialLabel {
                credential: other.to_owned(),
            };
            if self.issuers.iter().any(|(it, _)| *it == other) {
                metric.get_or_create(&label).set(i64::from(other == name));
            } else {
                // It was configured before the last reload.
                metric.remove(&label);
            }
        }
        let mut in_use = lock(&self.in_use);
        if in_use.replace(name) != Some(name) && self.issuers.len() > 1 {
            event::credential_in_use(&self.client_id, name, refused.map(|(_, it)| it.why.as_str()));
        }
    }

    fn count(&self, result: &'static str) {
        self.metrics
            .token_requests
            .get_or_create(&ResultLabel { result })
            .inc();
    }
}

/// What is behind these locks is only ever replaced as a whole, so a panic elsewhere leaves it sound.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
