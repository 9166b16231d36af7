//! Microsoft Graph: its JSON in its names, and the only code that talks to it.

pub mod client;
pub mod draft;
mod names;
pub mod resource;
pub mod sent;

use bytes::Bytes;

/// A request body for `sendMail`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `application/json`: a Graph message.
    Json(Bytes),
    /// `text/plain`: the whole MIME message in base64.
    Mime(Bytes),
}
