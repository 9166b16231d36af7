//! The token cache: one request at a time, early renewal, the last good token kept through an
//! outage of Entra, dropped on any 401.

use std::time::Duration;

/// Access tokens for Graph. Cheap to clone; all clones share one cache.
#[derive(Clone)]
pub struct Tokens {}

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
