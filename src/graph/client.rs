//! `sendMail`; the only code that talks to Graph.

use std::sync::Arc;
use std::time::Duration;

use crate::config;
use crate::convert::Request;
use crate::identity::{HttpsError, Tokens};
use crate::metrics::Metrics;
use crate::outcome::Answer;

/// A client of one tenant's Graph. Cheap to clone.
#[derive(Clone)]
pub struct Graph {}

impl Graph {
    /// Prepares the client; connects to nothing yet. `request_timeout` bounds one request in all.
    ///
    /// # Errors
    /// [`HttpsError`]: a proxy or CA file that cannot be used, in words.
    pub fn new(
        tenant: &config::Tenant,
        request_timeout: Duration,
        tokens: Tokens,
        metrics: Arc<Metrics>,
    ) -> Result<Graph, HttpsError> {
        let _ = (tenant, request_timeout, tokens, metrics);
        todo!()
    }

    /// `POST /v1.0/users/{mailbox}/sendMail`. Never retries by itself, except once with a fresh token
    /// after a 401. Each request has its own `client-request-id`, which is in the answer's words
    /// where Graph gave no `request-id`.
    pub async fn send_mail(&self, mailbox: &str, request: Request) -> Answer {
        let _ = (mailbox, request);
        todo!()
    }
}
