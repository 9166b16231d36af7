//! RFC 5322/MIME message → Graph message. Pure.

mod body;
mod headers;
mod json;
mod mime;
mod names;
mod recipients;

use std::fmt;

use bytes::Bytes;

use crate::envelope::{Envelope, Route};
use crate::graph::resource;

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
        /// Octets of the request: of as much of it as it took to know.
        request: usize,
        /// The most that Graph takes.
        limit: usize,
    },
}

impl fmt::Display for ConvertError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConvertError::TooLarge { request, limit } => write!(
                f,
                "the message is too large to be sent in one request to Microsoft Graph \
                 (at least {request} octets; {limit} fit)"
            ),
        }
    }
}

impl std::error::Error for ConvertError {}

/// Converts a message as it was received into the request that sends it. Never panics, and never
/// drops a part it does not understand.
///
/// # Errors
/// [`ConvertError`] says why the message cannot be sent at all.
pub fn convert(content: &Bytes, order: &Order<'_>) -> Result<Request, ConvertError> {
    let root = mime::Part::parse(content);
    let message = json::message(content, &root, order);
    let limit = resource::MAX_REQUEST_OCTETS;
    match message.send_mail(order.route.save_to_sent_items, limit) {
        Ok(request) => Ok(Request::Json(request)),
        Err(request) => Err(ConvertError::TooLarge { request, limit }),
    }
}
