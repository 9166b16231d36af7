//! Graph's JSON in Graph's names, and in those of the Outlook REST API, which came before it. Pure.
//!
//! Written straight into one buffer: the resources carry attachments, and a tree of values would
//! hold each of them twice more. Empty collections and absent values are left out, since Graph
//! refuses several of them (an empty `internetMessageHeaders`, a null `isInline`).

use std::borrow::Cow;

use bytes::Bytes;

use super::names::Name;
use crate::address::Address;
use crate::config::Api;
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

/// Before the name of a header field: the property of that name in the set PS_INTERNET_HEADERS
/// (<https://learn.microsoft.com/openspecs/exchange_server_protocols/ms-oxcmsg>).
const INTERNET_HEADERS: &str = "String {00020386-0000-0000-C000-000000000046} Name ";

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
    /// The request body of `sendMail` in the API's names, unless it is larger than `limit`.
    ///
    /// # Errors
    /// The size at which it was given up.
    pub fn send_mail(&self, api: Api, save_to_sent_items: bool, limit: usize) -> Result<Bytes, usize> {
        let attached: usize = self.attachments.iter().map(|it| it.content.encoded_len()).sum();
        let (Body::Text(body) | Body::Html(body)) = &self.body;
        let expected = attached + body.len() + body.len() / 16 + 4096;
        let mut json = Writer {
            out: Vec::with_capacity(expected.min(limit)),
            limit,
            api,
        };
        json.object(|json| {
            json.name(Name::Message);
            json.object(|json| self.write(json))?;
            if !save_to_sent_items {
                json.name(Name::SaveToSentItems);
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
            api: Api::Graph,
        };
        json.object(|json| self.write(json))?;
        Ok(json.out.into())
    }

    fn write(&self, json: &mut Writer) -> Result<(), usize> {
        if let Some(subject) = &self.subject {
            json.member(Name::Subject, subject);
        }
        json.name(Name::Body);
        let (content_type, content) = match &self.body {
            Body::Text(content) => (Name::Text, content),
            Body::Html(content) => (Name::Html, content),
        };
        json.object(|json| {
            json.choice(Name::ContentType, content_type);
            json.member(Name::Content, content);
            json.within_limit()
        })?;
        if let Some(from) = &self.from {
            json.name(Name::From);
            json.recipient(from)?;
        }
        for (name, recipients) in [
            (Name::ToRecipients, &self.to),
            (Name::CcRecipients, &self.cc),
            (Name::BccRecipients, &self.bcc),
            (Name::ReplyTo, &self.reply_to),
        ] {
            json.array(name, recipients, Writer::recipient)?;
        }
        match self.importance {
            Importance::Low => json.choice(Name::Importance, Name::Low),
            Importance::Normal => {}
            Importance::High => json.choice(Name::Importance, Name::High),
        }
        if self.read_receipt {
            json.name(Name::IsReadReceiptRequested);
            json.boolean(true);
        }
        if self.delivery_receipt {
            json.name(Name::IsDeliveryReceiptRequested);
            json.boolean(true);
        }
        if let Some(id) = &self.internet_message_id {
            json.member(Name::InternetMessageId, id);
        }
        // It is not documented that the Outlook API lets them be written; named properties it does.
        let (headers, named): (&[_], &[_]) = match json.api {
            Api::Graph => (&self.headers, &[]),
            Api::OutlookV2 => (&[], &self.headers),
        };
        json.array(Name::InternetMessageHeaders, headers, |json, (name, value)| {
            json.object(|json| {
                json.member(Name::Label, name);
                json.member(Name::Value, value);
                Ok(())
            })
        })?;
        let named = named
            .iter()
            .map(|(name, value)| (Cow::Owned(format!("{INTERNET_HEADERS}{name}")), value));
        let properties: Vec<(Cow<'_, str>, &String)> = self
            .properties
            .iter()
            .map(|it| (Cow::Borrowed(it.id), &it.value))
            .chain(named)
            .collect();
        json.array(
            Name::SingleValueExtendedProperties,
            &properties,
            |json, (id, value)| {
                json.object(|json| {
                    json.member(Name::PropertyId, id);
                    json.member(Name::Value, value);
                    Ok(())
                })
            },
        )?;
        json.array(Name::Attachments, &self.attachments, |json, it| it.write(json))
    }
}

impl Attachment {
    /// The request body that adds it to a draft
    /// (<https://learn.microsoft.com/graph/api/message-post-attachments>).
    pub fn to_json(&self) -> Bytes {
        let mut json = Writer {
            out: Vec::with_capacity(self.content.encoded_len() + 1024),
            limit: usize::MAX,
            api: Api::Graph,
        };
        self.write(&mut json).expect("there is no limit");
        json.out.into()
    }

    fn write(&self, json: &mut Writer) -> Result<(), usize> {
        json.object(|json| {
            // The base type is abstract: without this Graph does not know what it is.
            json.choice(Name::Type, Name::FileAttachment);
            json.member(Name::Label, &self.name);
            json.member(Name::ContentType, &self.content_type);
            if let Some(id) = &self.content_id {
                json.name(Name::IsInline);
                json.boolean(true);
                json.member(Name::ContentId, id);
            }
            json.name(Name::ContentBytes);
            json.out.push(b'"');
            json.has_room(&self.content)?;
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
    api: Api,
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
        name: Name,
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
            json.name(Name::EmailAddress);
            json.object(|json| {
                if let Some(name) = &recipient.name {
                    json.member(Name::Label, name);
                }
                json.member(Name::Address, recipient.address.as_str());
                Ok(())
            })
        })
    }

    fn member(&mut self, name: Name, value: &str) {
        self.name(name);
        self.string(value);
    }

    /// A member whose value is one of the API's words.
    fn choice(&mut self, name: Name, value: Name) {
        self.member(name, value.of(self.api));
    }

    fn name(&mut self, name: Name) {
        self.comma();
        self.string(name.of(self.api));
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

    /// What is larger than the limit as it stands in the message may be so only by its line breaks; but to
    /// find that out it must not be in memory a second time.
    fn has_room(&self, content: &Content) -> Result<(), usize> {
        if content.encoded_len() <= self.limit {
            return Ok(());
        }
        let octets = usize::try_from(content.len().div_ceil(3)).unwrap_or(usize::MAX);
        let expected = self.out.len().saturating_add(octets.saturating_mul(4));
        if expected > self.limit {
            return Err(expected);
        }
        Ok(())
    }

    fn within_limit(&self) -> Result<(), usize> {
        if self.out.len() > self.limit {
            return Err(self.out.len());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The one request in both APIs, name for name.
    #[test]
    fn speaks_two_apis() {
        let recipient = |address: &str| Recipient {
            name: Some("Ann".to_owned()),
            address: Address::parse(address).expect("an address"),
        };
        let message = Message {
            subject: Some("Hello".to_owned()),
            body: Body::Html("<p>".to_owned()),
            from: Some(recipient("erp@contoso.com")),
            to: vec![recipient("a@example.org")],
            cc: vec![recipient("b@example.org")],
            bcc: vec![recipient("c@example.org")],
            reply_to: vec![recipient("d@example.org")],
            importance: Importance::High,
            read_receipt: true,
            delivery_receipt: true,
            internet_message_id: Some("<1@x>".to_owned()),
            headers: vec![("x-a".to_owned(), "b".to_owned())],
            properties: vec![ExtendedProperty {
                id: "String 0x1042",
                value: "<2@x>".to_owned(),
            }],
            attachments: vec![Attachment {
                name: "a.png".to_owned(),
                content_type: "image/png".to_owned(),
                content_id: Some("i".to_owned()),
                content: Content::plain("abc"),
            }],
        };
        let written = |api| -> Value {
            let json = message.send_mail(api, false, 10_000).expect("small");
            serde_json::from_slice(&json).expect("JSON")
        };
        let person = |address: &str| json!({"emailAddress": {"name": "Ann", "address": address}});
        let graph = json!({
            "message": {
                "subject": "Hello",
                "body": {"contentType": "html", "content": "<p>"},
                "from": person("erp@contoso.com"),
                "toRecipients": [person("a@example.org")],
                "ccRecipients": [person("b@example.org")],
                "bccRecipients": [person("c@example.org")],
                "replyTo": [person("d@example.org")],
                "importance": "high",
                "isReadReceiptRequested": true,
                "isDeliveryReceiptRequested": true,
                "internetMessageId": "<1@x>",
                "internetMessageHeaders": [{"name": "x-a", "value": "b"}],
                "singleValueExtendedProperties": [{"id": "String 0x1042", "value": "<2@x>"}],
                "attachments": [{
                    "@odata.type": "#microsoft.graph.fileAttachment",
                    "name": "a.png",
                    "contentType": "image/png",
                    "isInline": true,
                    "contentId": "i",
                    "contentBytes": "YWJj",
                }],
            },
            "saveToSentItems": false,
        });
        let person = |address: &str| json!({"EmailAddress": {"Name": "Ann", "Address": address}});
        let named = "String {00020386-0000-0000-C000-000000000046} Name x-a";
        let outlook = json!({
            "Message": {
                "Subject": "Hello",
                "Body": {"ContentType": "HTML", "Content": "<p>"},
                "From": person("erp@contoso.com"),
                "ToRecipients": [person("a@example.org")],
                "CcRecipients": [person("b@example.org")],
                "BccRecipients": [person("c@example.org")],
                "ReplyTo": [person("d@example.org")],
                "Importance": "High",
                "IsReadReceiptRequested": true,
                "IsDeliveryReceiptRequested": true,
                "InternetMessageId": "<1@x>",
                "SingleValueExtendedProperties": [
                    {"PropertyId": "String 0x1042", "Value": "<2@x>"},
                    {"PropertyId": named, "Value": "b"},
                ],
                "Attachments": [{
                    "@odata.type": "#Microsoft.OutlookServices.FileAttachment",
                    "Name": "a.png",
                    "ContentType": "image/png",
                    "IsInline": true,
                    "ContentId": "i",
                    "ContentBytes": "YWJj",
                }],
            },
            "SaveToSentItems": false,
        });
        assert_eq!(written(Api::Graph), graph);
        assert_eq!(written(Api::OutlookV2), outlook);
    }
}
