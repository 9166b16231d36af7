//! A mail as its recipients will see it, whatever form it came in.

use axum::body::Bytes;
use serde::Serialize;

/// A name and an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Recipient {
    /// The display name; empty where there is none.
    pub name: String,
    /// The SMTP address.
    pub address: String,
}

/// The form a mail was sent in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// `sendMail` with JSON.
    Json,
    /// `sendMail` with MIME.
    Mime,
    /// A draft that was sent.
    Draft,
}

/// A header field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Header {
    /// As written.
    pub name: String,
    /// Unfolded, not decoded.
    pub value: String,
}

/// The body a reader sees.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Body {
    /// `text` or `html`.
    pub content_type: String,
    /// Decoded.
    pub content: String,
}

/// A part beside the body.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// The file name.
    pub name: String,
    /// The media type as given.
    pub content_type: String,
    /// Decoded size in bytes.
    pub size: usize,
    /// Of the decoded bytes, in lower case.
    pub sha256: String,
    /// Whether the body shows it.
    pub is_inline: bool,
    /// What the body calls it after `cid:`.
    pub content_id: Option<String>,
    /// The decoded bytes. Empty when the sandbox has let go of them.
    #[serde(skip)]
    pub content: Bytes,
}

impl Attachment {
    pub(super) fn new(name: String, content_type: String, content: Bytes) -> Attachment {
        let sha256 = openssl::sha::sha256(&content)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Attachment {
            name,
            content_type,
            size: content.len(),
            sha256,
            is_inline: false,
            content_id: None,
            content,
        }
    }
}

/// A mail.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mail {
    /// Absent: the mailbox it is sent from.
    pub from: Option<Recipient>,
    /// Absent: the same as `from`.
    pub sender: Option<Recipient>,
    /// As everybody sees them.
    pub to: Vec<Recipient>,
    /// As everybody sees them.
    pub cc: Vec<Recipient>,
    /// Seen by nobody else.
    pub bcc: Vec<Recipient>,
    /// Where answers go.
    pub reply_to: Vec<Recipient>,
    /// Decoded.
    pub subject: String,
    /// With angle brackets.
    pub internet_message_id: Option<String>,
    /// `low`, `normal`, `high`, in JSON forms.
    pub importance: Option<String>,
    /// Whether a read receipt is asked for, in JSON forms.
    pub is_read_receipt_requested: bool,
    /// Whether a delivery receipt is asked for, in JSON forms.
    pub is_delivery_receipt_requested: bool,
    /// All fields in MIME forms; `internetMessageHeaders` in JSON forms.
    pub headers: Vec<Header>,
    /// `singleValueExtendedProperties`, by id.
    pub extended_properties: Vec<Header>,
    /// The body a reader sees first.
    pub body: Body,
    /// The plain text beside an HTML body, which only MIME keeps.
    pub text_alternative: Option<String>,
    /// In order.
    pub attachments: Vec<Attachment>,
}

impl Mail {
    /// To, Cc and Bcc together, in order, each as often as it is there.
    pub fn recipients(&self) -> impl Iterator<Item = &Recipient> {
        self.to.iter().chain(&self.cc).chain(&self.bcc)
    }

    /// Bytes of memory for the content, roughly.
    pub(super) fn weight(&self) -> usize {
        self.body.content.len()
            + self.text_alternative.as_ref().map_or(0, String::len)
            + self.attachments.iter().map(|it| it.content.len()).sum::<usize>()
    }
}
