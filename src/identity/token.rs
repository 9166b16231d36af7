//! The token cache: one request at a time, early renewal, the last good token kept through an
//! outage of Entra, dropped on any 401.

use std::sync::Arc;
use std::time::Duration;

use super::IdentityError;
use crate::config;
use crate::metrics::Metrics;

/// Access tokens for Graph. Cheap to clone; all clones share one cache.
#[derive(Clone)]
pub struct Tokens {}

/// An access token: it can be sent but not shown.
#[derive(Clone)]
pub struct Token {}

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenError {
    /// What Entra or the network said, and what to mend.
    pub why: String,
    /// Whether an operator must act, or waiting may help.
    pub credential: bool,
    /// How long Entra asks us to wait.
    pub retry_after: Option<Duration>,
}

impl Tokens {
    /// Opens the credential; connects to nothing yet. Blocks for as long as a PFX takes to open.
    ///
    /// # Errors
    /// [`IdentityError`] names the file and the fix.
    pub fn new(tenant: &config::Tenant, metrics: Arc<Metrics>) -> Result<Tokens, IdentityError> {
        let _ = (tenant, metrics);
        todo!()
    }

    /// A token to use now: from the cache, or asked for.
    ///
    /// # Errors
    /// [`TokenError`] tells a credential that an operator must mend from an outage that passes.
    pub async fn get(&self) -> Result<Token, TokenError> {
        todo!()
    }

    /// Takes back a token that Graph refused with 401, so that it is not used again.
    pub fn reject(&self, token: &Token) {
        let _ = token;
        todo!()
    }
}
