//! Judges what became of an attempt: an [`Answer`] becomes an [`Outcome`].
//!
//! When in doubt, defer: a bounce cannot be taken back, and the queue lifetime turns an endless
//! deferral into a failure anyway. Only 202 is success.

use std::time::Duration;

/// What came back from one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Graph answered.
    Response(Response),
    /// The request never reached Graph: DNS, TCP, TLS or proxy, before any octet of the body.
    NotReached(String),
    /// The request was written, wholly or in part, and no answer came.
    Lost(String),
    /// There was no token, so nothing was tried.
    NoToken {
        /// What Entra or the network said, fit for the log.
        why: String,
        /// Whether an operator must act (a bad credential), or waiting may help (an outage).
        credential: bool,
        /// How long Entra asks us to wait.
        retry_after: Option<Duration>,
    },
}

/// What Graph answered, as far as it matters for judging it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// `error.code` of the body; `None` where there is none.
    pub code: Option<String>,
    /// `error.message` of the body, at most 500 characters of it.
    pub message: Option<String>,
    /// Retry-After, be it seconds, a fraction or a date.
    pub retry_after: Option<Duration>,
    /// Graph's `request-id`, for Microsoft's support.
    pub request_id: Option<String>,
}

/// What becomes of the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Graph has it.
    Sent,
    /// Not sent; try again.
    Deferred {
        /// Why, in words for the log and the queue listing.
        why: String,
        /// The earliest next attempt that the answer asks for, counted from now.
        not_before: Option<Duration>,
        /// What else must wait as long.
        closes: Closes,
    },
    /// Not sent; an operator must mend something. It is tried again slowly by itself.
    Held {
        /// Why, and what to mend.
        why: String,
        /// What else must wait until it is mended.
        closes: Closes,
    },
    /// Never will be sent as it is.
    Failed {
        /// Why.
        why: String,
        /// The enhanced status code (RFC 3463) for the delivery status notification.
        enhanced: &'static str,
    },
    /// Nobody can know whether it was sent.
    Unknown {
        /// What happened.
        why: String,
    },
}

/// What must wait together with the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closes {
    /// Only the message.
    Message,
    /// All messages of its mailbox.
    Mailbox,
    /// All messages of the tenant.
    Tenant,
}

/// Judges an answer to `sendMail`. The table is in words above each row.
pub fn judge(answer: &Answer) -> Outcome {
    let _ = answer;
    todo!()
}
