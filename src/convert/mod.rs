//! RFC 5322/MIME message → Graph message. Pure.

use bytes::Bytes;

use crate::envelope::{Envelope, Route};

/// What a conversion needs besides the content.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// Who really receives it.
    pub envelope: &'a Envelope,
    /// The mailbox that sends it, and what becomes of From.
    pub route: &'a Route,
    /// The stable Message-ID, without angle brackets.
    pub message_id: &'a str,
}

/// A request body for `sendMail`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `application/json`: a Graph message.
    Json(Bytes),
    /// `text/plain`: the whole MIME message in base64.
    Mime(Bytes),
}

/// Why a message cannot be sent in any form: it fails, with this reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConvertError {
    /// The request would be larger than Graph takes.
    TooLarge {
        /// Octets of the request.
        request: usize,
        /// The most that Graph takes.
        limit: usize,
    },
}

/// Converts a message as it was received into the request that sends it. Never panics, and never
/// drops a part it does not understand.
pub fn convert(content: &[u8], order: &Order<'_>) -> Result<Request, ConvertError> {
    let _ = (content, order);
    todo!()
}
