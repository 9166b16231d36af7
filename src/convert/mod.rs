//! RFC 5322/MIME message → Graph message. Pure.

mod body;
mod draft;
mod headers;
mod json;
mod mime;
mod names;
mod plan;
mod recipients;
mod rewrite;
mod text;

use std::fmt;

use bytes::Bytes;

use crate::address::Address;
use crate::config::Api;
use crate::envelope::{Envelope, Route};
use crate::graph::Request;
use crate::graph::draft::Draft;
use crate::graph::resource::{MAX_UPLOAD_OCTETS, Message};

pub use plan::{Form, Nature, Reason, Wishes};

/// What a conversion needs besides the content.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// Who really receives it.
    pub envelope: &'a Envelope,
    /// The mailbox that sends it, and what becomes of From.
    pub route: &'a Route,
    /// The stable Message-ID, without angle brackets.
    pub message_id: &'a str,
    /// What the administrator wants of every message.
    pub wishes: Wishes,
}

/// What sends a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// One request.
    Request(Request),
    /// A draft to be made, filled and sent.
    Draft(Draft),
}

/// What sends a message, and why it has this form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted {
    /// What sends it.
    pub way: Way,
    /// Its form.
    pub form: Form,
    /// Why it has this form.
    pub reason: Reason,
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
        /// The API, for what it says of larger ones.
        api: Api,
    },
    /// An attachment is larger than Exchange takes.
    AttachmentTooLarge {
        /// Its octets.
        attachment: u64,
        /// The most that can be uploaded.
        limit: u64,
    },
}

impl fmt::Display for ConvertError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConvertError::TooLarge { request, limit, api } => write!(
                f,
                "the message is too large for one request to Microsoft Graph (at least {request} octets; {limit} \
                 fit); {}",
                match api {
                    Api::Graph => "larger ones need Mail.ReadWrite and large_messages = true in [tenant]",
                    Api::OutlookV2 => "api = \"outlook-v2.0\" has no way for larger ones",
                }
            ),
            ConvertError::AttachmentTooLarge { attachment, limit } => write!(
                f,
                "an attachment is larger than Exchange Online takes ({attachment} octets; {limit} can be uploaded)"
            ),
        }
    }
}

impl std::error::Error for ConvertError {}

/// Converts a message as it was received into what sends it. Never panics, and never
/// drops a part it does not understand.
///
/// # Errors
/// [`ConvertError`] says why the message cannot be sent at all.
pub fn convert(content: &Bytes, order: &Order<'_>) -> Result<Converted, ConvertError> {
    let root = mime::Part::parse(content);
    let nature = plan::nature(&root);
    let wishes = Wishes {
        format: order.route.format.unwrap_or(order.wishes.format),
        ..order.wishes
    };
    let mut size = content.len();
    let mut outgrown = None;
    while let Some((form, reason)) = plan::plan(nature, wishes, outgrown) {
        let made = match form {
            Form::Json => request(&json::message(content, &root, order), order),
            Form::Mime => as_mime(content, &root, order).map(Way::Request),
            Form::Draft => draft::draft(json::message(content, &root, order), order).map(Way::Draft),
            Form::Enclosed => {
                let message = json::enclosing(content, &root, nature, order);
                match wishes.api {
                    Api::Graph => draft::draft(message, order).map(Way::Draft),
                    Api::OutlookV2 => request(&message, order),
                }
            }
        };
        match made {
            Ok(way) => {
                return Ok(Converted { way, form, reason });
            }
            Err(octets) => size = octets,
        }
        outgrown = Some(form);
    }
    Err(match outgrown {
        Some(Form::Draft | Form::Enclosed) if wishes.api == Api::Graph => ConvertError::AttachmentTooLarge {
            attachment: size as u64,
            limit: MAX_UPLOAD_OCTETS,
        },
        _ => ConvertError::TooLarge {
            request: size,
            limit: wishes.max_request,
            api: wishes.api,
        },
    })
}

/// The most that one octet of a message becomes in a request: a tab in a text that is shown as HTML, or
/// the half of a line ending that is written as `<br>\r\n` and escaped.
const MAX_GROWTH: u64 = 8;

/// What is in a request whatever the message is: what stands around attachments above all.
const MAX_FRAME: u64 = 80_000;

/// Whether a message of so many octets, to so many recipients, can be sent whatever is in it. Where
/// not, only [`convert`] can tell.
pub fn fits_in_any_case(octets: u64, recipients: usize, wishes: &Wishes) -> bool {
    // A draft takes everything but files of more than this.
    if wishes.large_messages && wishes.api == Api::Graph {
        return octets <= MAX_UPLOAD_OCTETS;
    }
    let most = octets
        .saturating_mul(MAX_GROWTH)
        .saturating_add(recipients_octets(recipients) as u64)
        .saturating_add(MAX_FRAME);
    most <= wishes.max_request as u64
}

/// The most that so many recipients of the envelope take in a request. Their names are in the message.
pub fn recipients_octets(recipients: usize) -> usize {
    recipients.saturating_mul(2 * Address::MAX_OCTETS + 60)
}

/// A request with a Graph message; or how large it would be at least.
fn request(message: &Message, order: &Order<'_>) -> Result<Way, usize> {
    let Wishes { api, max_request, .. } = order.wishes;
    let json = message.send_mail(api, order.route.save_to_sent_items, max_request)?;
    Ok(Way::Request(Request::Json(json)))
}

/// A request with the MIME message; or how large it would be.
fn as_mime(content: &Bytes, root: &mime::Part<'_>, order: &Order<'_>) -> Result<Request, usize> {
    let base64 = |octets: usize| octets.div_ceil(3) * 4;
    let limit = order.wishes.max_request;
    let least = base64(root.body().len());
    if least > limit {
        return Err(least);
    }
    let message = rewrite::rewrite(content, root, order);
    if base64(message.len()) > limit {
        return Err(base64(message.len()));
    }
    let request: Vec<u8> = base64_simd::STANDARD.encode_type(&message);
    Ok(Request::Mime(request.into()))
}
