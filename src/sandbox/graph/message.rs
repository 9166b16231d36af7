//! A message in Graph's JSON, read as strictly as Graph reads it. Pure.
//!
//! <https://learn.microsoft.com/graph/api/user-sendmail>,
//! <https://learn.microsoft.com/graph/api/resources/message>

use std::fmt;

use axum::body::Bytes;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::error::GraphError;
use super::schema::{self, ATTACHMENT_ITEM, MESSAGE, boolean};
use crate::sandbox::limits::Limits;
use crate::sandbox::mail::{Attachment, Body, Header, Mail, Recipient};
use crate::sandbox::tenant::{Mailbox, is_smtp_address};

/// The most `internetMessageHeaders`.
const HEADERS_MAX: usize = 5;

/// What `sendMail` is given.
pub(super) struct SendMail {
    pub(super) mail: Mail,
    pub(super) save_to_sent_items: bool,
}

/// Reads the body of `sendMail`.
pub(super) fn read_send_mail(body: &[u8], limits: &Limits) -> Result<SendMail, GraphError> {
    let mut message = None;
    let mut save_to_sent_items = true;
    for (name, value) in object(body)? {
        // The schema has Message and SaveToSentItems, the documentation message and saveToSentItems.
        if name.eq_ignore_ascii_case("message") {
            let Value::Object(value) = value else {
                return Err(GraphError::body(
                    "The parameter 'Message' must be of type 'microsoft.graph.message'.",
                ));
            };
            message = Some(value);
        } else if name.eq_ignore_ascii_case("saveToSentItems") {
            save_to_sent_items = match &value {
                Value::Null => true,
                other => boolean(other).ok_or_else(|| {
                    GraphError::body("Cannot convert the value of parameter 'SaveToSentItems' to the expected type 'Edm.Boolean'.")
                })?,
            };
        } else {
            return Err(GraphError::body(format!(
                "The parameter '{name}' in the request payload is not a valid parameter for the operation 'sendMail'."
            )));
        }
    }
    let message = message.ok_or_else(|| {
        GraphError::new(
            400,
            "ErrorInvalidParameter",
            "The parameter 'Message' is required by the operation 'sendMail'.",
        )
    })?;
    Ok(SendMail {
        mail: mail(message, limits)?,
        save_to_sent_items,
    })
}

/// Reads the body of `POST …/messages`.
pub(super) fn read_draft(body: &[u8], limits: &Limits) -> Result<Mail, GraphError> {
    mail(object(body)?, limits)
}

/// Reads the body of `POST …/attachments`.
pub(super) fn read_attachment(body: &[u8], limits: &Limits) -> Result<Attachment, GraphError> {
    let object = object(body)?;
    schema::check(&object, schema::attachment_type(&object)?)?;
    attachment(object, limits)
}

/// What `createUploadSession` is given.
#[derive(Clone, Debug)]
pub(super) struct Upload {
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) content_type: String,
    pub(super) is_inline: bool,
    pub(super) content_id: Option<String>,
}

/// The largest file an upload session takes.
const UPLOAD_MAX: u64 = 150 * 1024 * 1024;

/// Reads the body of `createUploadSession`:
/// <https://learn.microsoft.com/graph/api/attachment-createuploadsession>.
pub(super) fn read_upload(body: &[u8], limits: &Limits) -> Result<Upload, GraphError> {
    let mut item = None;
    for (name, value) in object(body)? {
        match value {
            Value::Object(value) if name.eq_ignore_ascii_case("AttachmentItem") => item = Some(value),
            _ => {
                return Err(GraphError::body(format!(
                    "The parameter '{name}' in the request payload is not a valid parameter for the operation \
                     'createUploadSession'."
                )));
            }
        }
    }
    let invalid = |what: &str| GraphError::new(400, "ErrorInvalidParameter", what.to_owned());
    let mut item = item.ok_or_else(|| invalid("The parameter 'AttachmentItem' is required."))?;
    schema::check(&item, &ATTACHMENT_ITEM)?;
    match take_text(&mut item, "attachmentType") {
        Some(kind) if kind.eq_ignore_ascii_case("file") => {}
        _ => return Err(invalid("The property 'attachmentType' must be 'file'.")),
    }
    let name = take_text(&mut item, "name").filter(|it| !it.is_empty());
    let name = name.ok_or_else(|| invalid("The property 'name' is required."))?;
    let size = item
        .get("size")
        .and_then(Value::as_u64)
        .ok_or_else(|| invalid("The property 'size' is required."))?;
    if size < limits.attachment_bytes as u64 {
        return Err(GraphError::new(
            400,
            "ErrorAttachmentSizeShouldNotBeLessThanMinimumSize",
            "The attachment size should be greater than or equal to the minimum size for upload sessions.",
        ));
    }
    if size > UPLOAD_MAX {
        return Err(GraphError::new(
            400,
            "ErrorMessageSizeExceeded",
            "The attachment size exceeds the maximum supported size.",
        ));
    }
    Ok(Upload {
        name,
        size,
        content_type: take_text(&mut item, "contentType")
            .unwrap_or_else(|| "application/octet-stream".into()),
        is_inline: item.get("isInline").and_then(boolean).unwrap_or_default(),
        content_id: take_text(&mut item, "contentId"),
    })
}

/// Whether a mail can be submitted: someone to send it to, and the right to say who it is from.
pub(super) fn check_submission(mail: &Mail, mailbox: &Mailbox, limits: &Limits) -> Result<(), GraphError> {
    let mut count = 0;
    for recipient in mail.recipients() {
        count += 1;
        if !is_smtp_address(&recipient.address) {
            let shown = if recipient.address.is_empty() {
                &recipient.name
            } else {
                &recipient.address
            };
            return Err(GraphError::invalid_recipients(format_args!(
                "Recipient '{shown}' is not resolved. All recipients must be resolved before a message can be submitted."
            )));
        }
    }
    if count == 0 {
        return Err(GraphError::invalid_recipients(
            "A message can't be sent because it contains no recipients.",
        ));
    }
    if count > limits.recipients {
        return Err(GraphError::new(
            400,
            "ErrorRecipientLimitExceeded",
            "The number of recipients on the message exceeds the limit.",
        ));
    }
    if mail.reply_to.iter().any(|it| !is_smtp_address(&it.address)) {
        return Err(GraphError::new(
            400,
            "ErrorParticipantDoesntHaveAnEmailAddress",
            "The participant doesn't have an email address.",
        ));
    }
    if mail
        .from
        .iter()
        .chain(&mail.sender)
        .any(|it| !mailbox.may_send_as(&it.address))
    {
        return Err(GraphError::send_as_denied());
    }
    Ok(())
}

fn mail(mut message: Map<String, Value>, limits: &Limits) -> Result<Mail, GraphError> {
    schema::check(&message, &MESSAGE)?;
    let body = match message.remove("body") {
        Some(Value::Object(mut body)) => Body {
            content_type: take_text(&mut body, "contentType")
                .unwrap_or_else(|| "text".into())
                .to_ascii_lowercase(),
            content: take_text(&mut body, "content").unwrap_or_default(),
        },
        _ => Body {
            content_type: "text".into(),
            content: String::new(),
        },
    };
    let mut one = |name: &str| message.remove(name).and_then(recipient);
    let (from, sender) = (one("from"), one("sender"));
    let mut many = |name: &str| match message.remove(name) {
        Some(Value::Array(values)) => values.into_iter().filter_map(recipient).collect(),
        _ => Vec::new(),
    };
    let (to, cc, bcc) = (many("toRecipients"), many("ccRecipients"), many("bccRecipients"));
    let reply_to: Vec<Recipient> = many("replyTo");
    let headers = headers(message.remove("internetMessageHeaders"))?;
    let extended_properties = extended_properties(message.remove("singleValueExtendedProperties"))?;
    let attachments = match message.remove("attachments") {
        Some(Value::Array(values)) => values
            .into_iter()
            .filter_map(|value| match value {
                Value::Object(object) => Some(attachment(object, limits)),
                _ => None,
            })
            .collect::<Result<Vec<_>, _>>()?,
        _ => Vec::new(),
    };
    let flag = |name: &str| message.get(name).and_then(boolean).unwrap_or_default();
    let is_read_receipt_requested = flag("isReadReceiptRequested");
    let is_delivery_receipt_requested = flag("isDeliveryReceiptRequested");
    Ok(Mail {
        from,
        sender,
        to,
        cc,
        bcc,
        reply_to,
        subject: take_text(&mut message, "subject").unwrap_or_default(),
        internet_message_id: message_id(take_text(&mut message, "internetMessageId"))?,
        importance: take_text(&mut message, "importance").map(|it| it.to_ascii_lowercase()),
        is_read_receipt_requested,
        is_delivery_receipt_requested,
        headers,
        extended_properties,
        body,
        text_alternative: None,
        attachments,
    })
}

/// RFC 5322 §3.6.4: one identifier in angle brackets, and nothing that could end the field.
fn message_id(given: Option<String>) -> Result<Option<String>, GraphError> {
    match given {
        Some(id) if id.len() > 998 || id.chars().any(|it| it.is_control() || it.is_whitespace()) => {
            Err(GraphError::new(
                400,
                "ErrorInvalidArgument",
                "The property 'internetMessageId' is not a message identifier.",
            ))
        }
        other => Ok(other),
    }
}

fn recipient(value: Value) -> Option<Recipient> {
    let Value::Object(mut object) = value else {
        return None;
    };
    match object.remove("emailAddress") {
        Some(Value::Object(mut email)) => Some(Recipient {
            name: take_text(&mut email, "name").unwrap_or_default(),
            address: take_text(&mut email, "address").unwrap_or_default(),
        }),
        _ => Some(Recipient::default()),
    }
}

/// <https://learn.microsoft.com/graph/api/resources/message>: custom headers only, "x-", at creation.
fn headers(given: Option<Value>) -> Result<Vec<Header>, GraphError> {
    let Some(Value::Array(values)) = given else {
        return Ok(Vec::new());
    };
    if values.is_empty() || values.len() > HEADERS_MAX {
        return Err(GraphError::new(
            400,
            "InvalidInternetMessageHeaderCollection",
            format!(
                "Maximum number of headers in one message should be less than or equal to {HEADERS_MAX}."
            ),
        ));
    }
    values
        .into_iter()
        .map(|value| {
            let Value::Object(mut object) = value else {
                return Err(GraphError::undeserializable());
            };
            let name = take_text(&mut object, "name").unwrap_or_default();
            let value = take_text(&mut object, "value").unwrap_or_default();
            let custom = name.get(..2).is_some_and(|it| it.eq_ignore_ascii_case("x-")) && name.len() > 2;
            if !custom {
                return Err(GraphError::new(
                    400,
                    "InvalidInternetMessageHeader",
                    format!("The internet message header name '{name}' should start with 'x-' or 'X-'."),
                ));
            }
            // RFC 5322 §2.2: printable ASCII except the colon; and no value can begin another field.
            if !name.bytes().all(|it| (33..=126).contains(&it) && it != b':') || value.contains(['\r', '\n'])
            {
                return Err(GraphError::new(
                    400,
                    "InvalidInternetMessageHeader",
                    format!("The internet message header '{name}' is not valid."),
                ));
            }
            Ok(Header { name, value })
        })
        .collect()
}

/// <https://learn.microsoft.com/graph/api/resources/extended-properties-overview>
fn extended_properties(given: Option<Value>) -> Result<Vec<Header>, GraphError> {
    let Some(Value::Array(values)) = given else {
        return Ok(Vec::new());
    };
    values
        .into_iter()
        .map(|value| {
            let Value::Object(mut object) = value else {
                return Err(GraphError::undeserializable());
            };
            let id = take_text(&mut object, "id").unwrap_or_default();
            let value = take_text(&mut object, "value");
            match value {
                Some(value) if is_property_id(&id) && value_fits(&id, &value) => {
                    Ok(Header { name: id, value })
                }
                _ => Err(GraphError::new(
                    400,
                    "ErrorInvalidExtendedProperty",
                    format!("The extended property '{id}' is not valid."),
                )),
            }
        })
        .collect()
}

/// `{type} {proptag}`, `{type} {guid} Name {name}` or `{type} {guid} Id {id}`.
fn is_property_id(id: &str) -> bool {
    const TYPES: [&str; 10] = [
        "ApplicationTime",
        "Binary",
        "Boolean",
        "CLSID",
        "Currency",
        "Double",
        "Integer",
        "Long",
        "String",
        "SystemTime",
    ];
    let is_number = |text: &str| {
        text.strip_prefix("0x")
            .is_some_and(|it| (1..=8).contains(&it.len()) && it.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    let mut words = id.splitn(4, ' ');
    if !words.next().is_some_and(|kind| TYPES.contains(&kind)) {
        return false;
    }
    match (words.next(), words.next(), words.next()) {
        (Some(tag), None, None) => is_number(tag),
        (Some(set), Some(how), Some(which)) => {
            let guid = set.strip_prefix('{').and_then(|it| it.strip_suffix('}'));
            guid.is_some_and(crate::sandbox::tenant::is_guid)
                && match how {
                    "Name" => !which.is_empty(),
                    "Id" => is_number(which),
                    _ => false,
                }
        }
        _ => false,
    }
}

fn value_fits(id: &str, value: &str) -> bool {
    match id.split(' ').next() {
        Some("Integer") => value.parse::<i32>().is_ok(),
        Some("Long") => value.parse::<i64>().is_ok(),
        Some("Boolean") => value.eq_ignore_ascii_case("true") || value.eq_ignore_ascii_case("false"),
        _ => !value.contains(['\r', '\n']),
    }
}

fn attachment(mut object: Map<String, Value>, limits: &Limits) -> Result<Attachment, GraphError> {
    let name = take_text(&mut object, "name")
        .filter(|it| !it.is_empty())
        .ok_or_else(|| {
            GraphError::new(
                400,
                "ErrorInvalidArgument",
                "The property 'name' of an attachment is required.",
            )
        })?;
    let content_type = take_text(&mut object, "contentType");
    if let Some(item) = object.remove("item") {
        let content = Bytes::from(item.to_string());
        return Ok(Attachment::new(
            name,
            content_type.unwrap_or_else(|| "message/rfc822".into()),
            content,
        ));
    }
    let encoded = take_text(&mut object, "contentBytes").ok_or_else(|| {
        GraphError::new(
            400,
            "ErrorInvalidArgument",
            "The property 'contentBytes' of a file attachment is required.",
        )
    })?;
    let content = STANDARD
        .decode(encoded)
        .map_err(|_| GraphError::undeserializable())?;
    if content.len() >= limits.attachment_bytes {
        return Err(GraphError::new(
            400,
            "ErrorMessageSizeExceeded",
            "The attachment is too large for one request. Use an upload session.",
        ));
    }
    let content_type = content_type.unwrap_or_else(|| "application/octet-stream".into());
    let mut attachment = Attachment::new(name, content_type, Bytes::from(content));
    attachment.is_inline = object.get("isInline").and_then(boolean).unwrap_or_default();
    attachment.content_id = take_text(&mut object, "contentId");
    Ok(attachment)
}

fn take_text(object: &mut Map<String, Value>, name: &str) -> Option<String> {
    match object.remove(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

fn object(body: &[u8]) -> Result<Map<String, Value>, GraphError> {
    match strict(body)? {
        Value::Object(object) => Ok(object),
        _ => Err(GraphError::undeserializable()),
    }
}

/// JSON without doubt.
pub(super) fn strict(body: &[u8]) -> Result<Value, GraphError> {
    let strict: Strict = serde_json::from_slice(body).map_err(|_| GraphError::undeserializable())?;
    Ok(strict.0)
}

/// A JSON value in which no object has a name twice (RFC 8259 §4 leaves open what that would mean).
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Strict, D::Error> {
        StrictValue.deserialize(deserializer).map(Strict)
    }
}

struct StrictValue;

impl<'de> DeserializeSeed<'de> for StrictValue {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictValue {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = access.next_element_seed(StrictValue)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = access.next_key::<String>()? {
            let value = access.next_value_seed(StrictValue)?;
            if object.contains_key(&name) {
                return Err(de::Error::custom(format_args!("the name {name} is there twice")));
            }
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}
