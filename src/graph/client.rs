//! `sendMail`; the only code that talks to Graph.

use crate::config;
use crate::convert::Request;
use crate::identity::Tokens;
use crate::outcome::Answer;

/// A client of one tenant's Graph. Cheap to clone.
#[derive(Clone)]
pub struct Graph {}

impl Graph {
    /// Prepares the client; connects to nothing yet.
    ///
    /// # Errors
    /// A proxy or CA file that cannot be used, in words.
    pub fn new(tenant: &config::Tenant, tokens: Tokens) -> Result<Graph, String> {
        let _ = (tenant, tokens);
        todo!()
    }

    /// `POST /v1.0/users/{mailbox}/sendMail`. Never retries by itself, except once with a fresh token
    /// after a 401. `attempt_id` is sent as `client-request-id`.
    pub async fn send_mail(&self, mailbox: &str, request: Request) -> Answer {
        let _ = (mailbox, request);
        todo!()
    }
}
