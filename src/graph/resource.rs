//! Graph's JSON in Graph's names. Pure.
//!
//! Written straight into one buffer: the resources carry attachments, and a tree of values would
//! hold each of them twice more. Empty collections and absent values are left out, since Graph
//! refuses several of them (an empty `internetMessageHeaders`, a null `isInline`).

use bytes::Bytes;

use crate::address::Address;
use crate::message::content::Content;

/// The largest `sendMail` request that is made, in octets.
///
/// Graph takes 4 MB (<https://learn.microsoft.com/graph/api/user-post-messages>, "limited to 4 MB",
/// and 413 above). Microsoft does not say whether that is 10⁶ or 2²⁰, nor what of the request counts,
/// and near the limit requests have been answered with success and not sent
/// (microsoftgraph/microsoft-graph-docs issue 13979): so an eighth is left free.
pub const MAX_REQUEST_OCTETS: usize = 3_500_000;

/// The most recipients in To, Cc and Bcc together
/// (<https://learn.microsoft.com/graph/api/resources/message>).
pub const MAX_RECIPIENTS: usize = 500;

/// The most `internetMessageHeaders`: more are answered with 400
/// `InvalidInternetMessageHeaderCollection`.
pub const MAX_HEADERS: usize = 5;

/// The most files attached to a message ("Message limits" in
/// <https://learn.microsoft.com/office365/servicedescriptions/exchange-online-service-description/exchange-online-limits>).
pub const MAX_ATTACHMENTS: usize = 250;

/// The largest file that can be uploaded
/// (<https://learn.microsoft.com/graph/api/attachment-createuploadsession>).
pub const MAX_UPLOAD_OCTETS: u64 = 150 * 1024 * 1024;

/// A `message`, as far as sending one needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// `subject`
    pub subject: Option<String>,
    /// `body`
    pub body: Body,
    /// `from`; where it is left out the mailbox in the URL is the sender.
    pub from: Option<Recipient>,
    /// `toRecipients`
    pub to: Vec<Recipient>,
    /// `ccRecipients`
    pub cc: Vec<Recipient>,
    /// `bccRecipients`
    pub bcc: Vec<Recipient>,
    /// `replyTo`
    pub reply_to: Vec<Recipient>,
    /// `importance`
    pub importance: Importance,
    /// `isReadReceiptRequested`
    pub read_receipt: bool,
    /// `isDeliveryReceiptRequested`
    pub delivery_receipt: bool,
    /// `internetMessageId`, with angle brackets.
    pub internet_message_id: Option<String>,
    /// `internetMessageHeaders`: names begin with `x-`.
    pub headers: Vec<(String, String)>,
    /// `singleValueExtendedProperties`
    pub properties: Vec<ExtendedProperty>,
    /// `attachments`
    pub attachments: Vec<Attachment>,
}

/// `itemBody`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// `contentType` `text`
    Text(String),
    /// `contentType` `html`
    Html(String),
}

impl Default for Body {
    fn default() -> Body {
        Body::Text(String::new())
    }
}

/// `recipient`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// `emailAddress.name`
    pub name: Option<String>,
    /// `emailAddress.address`
    pub address: Address,
}

/// `importance`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Importance {
    /// `low`
    Low,
    /// `normal`, which is the default and not written.
    #[default]
    Normal,
    /// `high`
    High,
}

/// `singleValueLegacyExtendedProperty`: a MAPI property, which carries what `message` has no name
/// for (<https://learn.microsoft.com/graph/api/resources/extended-properties-overview>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtendedProperty {
    /// The property's type and tag or name, such as `String 0x1042`.
    pub id: &'static str,
    /// Its value.
    pub value: String,
}

/// `fileAttachment`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// `name`
    pub name: String,
    /// `contentType`
    pub content_type: String,
    /// `contentId`, without angle brackets, of one that is shown in the body (`isInline`).
    pub content_id: Option<String>,
    /// `contentBytes`
    pub content: Content,
}

impl Message {
    /// The request body of `sendMail`, unless it is larger than `limit`.
    ///
    /// # Errors
    /// The size at which it was given up.
    pub fn send_mail(&self, save_to_sent_items: bool, limit: usize) -> Result<Bytes, usize> {
        let attached: usize = self.attachments.iter().map(|it| it.content.encoded_len()).sum();
        let (Body::Text(body) | Body::Html(body)) = &self.body;
        let expected = attached + body.len() + body.len() / 16 + 4096;
        let mut json = Writer {
            out: Vec::with_capacity(expected.min(limit)),
            limit,
        };
        json.object(|json| {
            json.name("message");
            json.object(|json| self.write(json))?;
            if !save_to_sent_items {
                json.name("saveToSentItems");
                json.boolean(false);
            }
            Ok(())
        })?;
        Ok(json.out.into())
    }

    /// The request body that creates a draft, unless it is larger than `limit`.
    ///
    /// # Errors
    /// The size at which it was given up.
    pub fn draft(&self, limit: usize) -> Result<Bytes, usize> {
        let mut json = Writer {
            out: Vec::new(),
            limit,
        };
        json.object(|json| self.write(json))?;
        Ok(json.out.into())
    }

    fn write(&self, json: &mut Writer) -> Result<(), usize> {
        if let Some(subject) = &self.subject {
            json.member("subject", subject);
        }
        json.name("body");
        let (content_type, content) = match &self.body {
            Body::Text(content) => ("text", content),
            Body::Html(content) => ("html", content),
        };
        json.object(|json| {
            json.member("contentType", content_type);
            json.member("content", content);
            json.within_limit()
        })?;
        if let Some(from) = &self.from {
            json.name("from");
            json.recipient(from)?;
        }
        for (name, recipients) in [
            ("toRecipients", &self.to),
            ("ccRecipients", &self.cc),
            ("bccRecipients", &self.bcc),
            ("replyTo", &self.reply_to),
        ] {
            json.array(name, recipients, Writer::recipient)?;
        }
        match self.importance {
            Importance::Low => json.member("importance", "low"),
            Importance::Normal => {}
            Importance::High => json.member("importance", "high"),
        }
        if self.read_receipt {
            json.name("isReadReceiptRequested");
            json.boolean(true);
        }
        if self.delivery_receipt {
            json.name("isDeliveryReceiptRequested");
            json.boolean(true);
        }
        if let Some(id) = &self.internet_message_id {
            json.member("internetMessageId", id);
        }
        json.array("internetMessageHeaders", &self.headers, |json, (name, value)| {
            json.object(|json| {
                json.member("name", name);
                json.member("value", value);
                Ok(())
            })
        })?;
        json.array("singleValueExtendedProperties", &self.properties, |json, it| {
            json.object(|json| {
                json.member("id", it.id);
                json.member("value", &it.value);
                Ok(())
            })
        })?;
        json.array("attachments", &self.attachments, |json, it| it.write(json))
    }
}

impl Attachment {
    /// The request body that adds it to a draft
    /// (<https://learn.microsoft.com/graph/api/message-post-attachments>).
    pub fn to_json(&self) -> Bytes {
        let mut json = Writer {
            out: Vec::with_capacity(self.content.encoded_len() + 1024),
            limit: usize::MAX,
        };
        self.write(&mut json).expect("there is no limit");
        json.out.into()
    }

    fn write(&self, json: &mut Writer) -> Result<(), usize> {
        json.object(|json| {
            // The base type is abstract: without this Graph does not know what it is.
            json.member("@odata.type", "#microsoft.graph.fileAttachment");
            json.member("name", &self.name);
            json.member("contentType", &self.content_type);
            if let Some(id) = &self.content_id {
                json.name("isInline");
                json.boolean(true);
                json.member("contentId", id);
            }
            json.name("contentBytes");
            json.out.push(b'"');
            self.content.append_base64(&mut json.out);
            json.out.push(b'"');
            json.within_limit()
        })
    }
}

/// Writes JSON. Whether a comma is needed shows in the last octet written.
struct Writer {
    out: Vec<u8>,
    limit: usize,
}

impl Writer {
    fn object(&mut self, members: impl FnOnce(&mut Writer) -> Result<(), usize>) -> Result<(), usize> {
        self.out.push(b'{');
        members(self)?;
        self.out.push(b'}');
        self.within_limit()
    }

    /// Writes an array, unless it is empty.
    fn array<T>(
        &mut self,
        name: &str,
        elements: &[T],
        mut element: impl FnMut(&mut Writer, &T) -> Result<(), usize>,
    ) -> Result<(), usize> {
        if elements.is_empty() {
            return Ok(());
        }
        self.name(name);
        self.out.push(b'[');
        for it in elements {
            self.comma();
            element(self, it)?;
        }
        self.out.push(b']');
        Ok(())
    }

    fn recipient(&mut self, recipient: &Recipient) -> Result<(), usize> {
        self.object(|json| {
            json.name("emailAddress");
            json.object(|json| {
                if let Some(name) = &recipient.name {
                    json.member("name", name);
                }
                json.member("address", recipient.address.as_str());
                Ok(())
            })
        })
    }

    fn member(&mut self, name: &str, value: &str) {
        self.name(name);
        self.string(value);
    }

    fn name(&mut self, name: &str) {
        self.comma();
        self.string(name);
        self.out.push(b':');
    }

    fn boolean(&mut self, value: bool) {
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
    }

    fn string(&mut self, value: &str) {
        serde_json::to_writer(&mut self.out, value).expect("a string, written to memory");
    }

    fn comma(&mut self) {
        if !matches!(self.out.last(), Some(b'{' | b'[' | b':') | None) {
            self.out.push(b',');
        }
    }

    fn within_limit(&self) -> Result<(), usize> {
        if self.out.len() > self.limit {
            return Err(self.out.len());
        }
        Ok(())
    }
}
