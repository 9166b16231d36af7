//! The types of Graph mail, and the strictness with which Graph reads them. Pure.
//!
//! The tables follow Microsoft's schema (`schemas/v1.0-Prod.csdl` of microsoftgraph/msgraph-metadata).
//! There `message` is an open type, but the service refuses properties it does not know. Properties
//! that a client has no business setting are refused as well: whether Graph ignores them is not
//! documented, and a client that does not send them need not know.

use serde_json::{Map, Value};

use super::error::GraphError;

/// A type and its properties.
pub(super) struct Type {
    pub(super) name: &'static str,
    pub(super) properties: &'static [Property],
}

/// A property.
pub(super) struct Property {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) writable: bool,
    pub(super) nullable: bool,
}

/// What a property holds.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    String,
    Boolean,
    Int32,
    Int64,
    Binary,
    DateTimeOffset,
    Enum(&'static [&'static str]),
    Object(&'static Type),
    /// One of the attachment types, by its `@odata.type`.
    Attachment,
    /// A message, event or contact within an attachment.
    Item,
    /// Open extensions: any JSON.
    Any,
    Collection(&'static Kind),
}

const fn writable(name: &'static str, kind: Kind) -> Property {
    Property {
        name,
        kind,
        writable: true,
        nullable: true,
    }
}

const fn required(name: &'static str, kind: Kind) -> Property {
    Property {
        name,
        kind,
        writable: true,
        nullable: false,
    }
}

const fn read_only(name: &'static str, kind: Kind) -> Property {
    Property {
        name,
        kind,
        writable: false,
        nullable: true,
    }
}

const RECIPIENTS: Kind = Kind::Collection(&Kind::Object(&RECIPIENT));

pub(super) static MESSAGE: Type = Type {
    name: "microsoft.graph.message",
    properties: &[
        // entity and outlookItem
        read_only("id", Kind::String),
        writable("categories", Kind::Collection(&Kind::String)),
        read_only("changeKey", Kind::String),
        read_only("createdDateTime", Kind::DateTimeOffset),
        read_only("lastModifiedDateTime", Kind::DateTimeOffset),
        // message
        writable("bccRecipients", RECIPIENTS),
        writable("body", Kind::Object(&ITEM_BODY)),
        read_only("bodyPreview", Kind::String),
        writable("ccRecipients", RECIPIENTS),
        read_only("conversationId", Kind::String),
        read_only("conversationIndex", Kind::Binary),
        writable("flag", Kind::Object(&FOLLOWUP_FLAG)),
        writable("from", Kind::Object(&RECIPIENT)),
        read_only("hasAttachments", Kind::Boolean),
        writable("importance", Kind::Enum(&["low", "normal", "high"])),
        writable("inferenceClassification", Kind::Enum(&["focused", "other"])),
        writable(
            "internetMessageHeaders",
            Kind::Collection(&Kind::Object(&INTERNET_MESSAGE_HEADER)),
        ),
        writable("internetMessageId", Kind::String),
        writable("isDeliveryReceiptRequested", Kind::Boolean),
        read_only("isDraft", Kind::Boolean),
        writable("isRead", Kind::Boolean),
        writable("isReadReceiptRequested", Kind::Boolean),
        read_only("parentFolderId", Kind::String),
        read_only("receivedDateTime", Kind::DateTimeOffset),
        writable("replyTo", RECIPIENTS),
        writable("sender", Kind::Object(&RECIPIENT)),
        read_only("sentDateTime", Kind::DateTimeOffset),
        writable("subject", Kind::String),
        writable("toRecipients", RECIPIENTS),
        read_only("uniqueBody", Kind::Object(&ITEM_BODY)),
        read_only("webLink", Kind::String),
        writable("attachments", Kind::Collection(&Kind::Attachment)),
        writable("extensions", Kind::Collection(&Kind::Any)),
        writable(
            "multiValueExtendedProperties",
            Kind::Collection(&Kind::Object(&MULTI_VALUE_PROPERTY)),
        ),
        writable(
            "singleValueExtendedProperties",
            Kind::Collection(&Kind::Object(&SINGLE_VALUE_PROPERTY)),
        ),
    ],
};

pub(super) static RECIPIENT: Type = Type {
    name: "microsoft.graph.recipient",
    properties: &[writable("emailAddress", Kind::Object(&EMAIL_ADDRESS))],
};

pub(super) static EMAIL_ADDRESS: Type = Type {
    name: "microsoft.graph.emailAddress",
    properties: &[writable("address", Kind::String), writable("name", Kind::String)],
};

pub(super) static ITEM_BODY: Type = Type {
    name: "microsoft.graph.itemBody",
    properties: &[
        writable("content", Kind::String),
        writable("contentType", Kind::Enum(&["text", "html"])),
    ],
};

pub(super) static INTERNET_MESSAGE_HEADER: Type = Type {
    name: "microsoft.graph.internetMessageHeader",
    properties: &[writable("name", Kind::String), writable("value", Kind::String)],
};

pub(super) static FOLLOWUP_FLAG: Type = Type {
    name: "microsoft.graph.followupFlag",
    properties: &[
        writable("completedDateTime", Kind::Object(&DATE_TIME_TIME_ZONE)),
        writable("dueDateTime", Kind::Object(&DATE_TIME_TIME_ZONE)),
        writable("flagStatus", Kind::Enum(&["notFlagged", "complete", "flagged"])),
        writable("startDateTime", Kind::Object(&DATE_TIME_TIME_ZONE)),
    ],
};

pub(super) static DATE_TIME_TIME_ZONE: Type = Type {
    name: "microsoft.graph.dateTimeTimeZone",
    properties: &[
        required("dateTime", Kind::String),
        writable("timeZone", Kind::String),
    ],
};

pub(super) static SINGLE_VALUE_PROPERTY: Type = Type {
    name: "microsoft.graph.singleValueLegacyExtendedProperty",
    properties: &[required("id", Kind::String), writable("value", Kind::String)],
};

pub(super) static MULTI_VALUE_PROPERTY: Type = Type {
    name: "microsoft.graph.multiValueLegacyExtendedProperty",
    properties: &[
        required("id", Kind::String),
        writable("value", Kind::Collection(&Kind::String)),
    ],
};

pub(super) static FILE_ATTACHMENT: Type = Type {
    name: "microsoft.graph.fileAttachment",
    properties: &[
        read_only("id", Kind::String),
        writable("contentType", Kind::String),
        required("isInline", Kind::Boolean),
        read_only("lastModifiedDateTime", Kind::DateTimeOffset),
        writable("name", Kind::String),
        read_only("size", Kind::Int32),
        writable("contentBytes", Kind::Binary),
        writable("contentId", Kind::String),
        // "Do not use this property as it is not supported."
        read_only("contentLocation", Kind::String),
    ],
};

pub(super) static ITEM_ATTACHMENT: Type = Type {
    name: "microsoft.graph.itemAttachment",
    properties: &[
        read_only("id", Kind::String),
        writable("contentType", Kind::String),
        required("isInline", Kind::Boolean),
        read_only("lastModifiedDateTime", Kind::DateTimeOffset),
        writable("name", Kind::String),
        read_only("size", Kind::Int32),
        writable("item", Kind::Item),
    ],
};

/// The parameter of `createUploadSession`, which is the one place to say a size.
pub(super) static ATTACHMENT_ITEM: Type = Type {
    name: "microsoft.graph.attachmentItem",
    properties: &[
        writable("attachmentType", Kind::Enum(&["file", "item", "reference"])),
        writable("contentId", Kind::String),
        writable("contentType", Kind::String),
        writable("isInline", Kind::Boolean),
        writable("name", Kind::String),
        writable("size", Kind::Int64),
    ],
};

/// Checks an object against its type, all the way down.
pub(super) fn check(object: &Map<String, Value>, kind: &'static Type) -> Result<(), GraphError> {
    for (name, value) in object {
        if let Some((_, annotation)) = name.split_once('@') {
            check_annotation(annotation, name, value, kind)?;
            continue;
        }
        // The old spelling without the sign, which OData 4.01 allows and Graph does not.
        if name.starts_with("odata.") {
            return Err(unexpected_annotation(name));
        }
        let Some(property) = kind.properties.iter().find(|it| it.name == name) else {
            return Err(GraphError::body(format!(
                "The property '{name}' does not exist on type '{}'. Make sure to only use property names that are \
                 defined by the type or mark the type as open type.",
                kind.name,
            )));
        };
        if !property.writable {
            return Err(GraphError::new(
                400,
                "ErrorInvalidPropertySet",
                format!(
                    "The property '{name}' of type '{}' is read-only and cannot be set.",
                    kind.name
                ),
            ));
        }
        if value.is_null() {
            if property.nullable {
                continue;
            }
            return Err(GraphError::body(format!(
                "A null value was found for the property named '{name}', which has the expected type '{}[Nullable=False]'. \
                 The expected type does not allow null values.",
                property.kind.name(),
            )));
        }
        check_value(value, property.kind, name)?;
    }
    for property in kind
        .properties
        .iter()
        .filter(|it| !it.nullable && it.name != "isInline")
    {
        if !object.contains_key(property.name) {
            return Err(GraphError::body(format!(
                "The property '{}' of type '{}' is required.",
                property.name, kind.name
            )));
        }
    }
    Ok(())
}

fn check_annotation(annotation: &str, name: &str, value: &Value, kind: &Type) -> Result<(), GraphError> {
    match annotation {
        "odata.type" if name == "@odata.type" => {
            let named = value
                .as_str()
                .map(|it| it.trim_start_matches('#'))
                .unwrap_or_default();
            if named == kind.name {
                return Ok(());
            }
            Err(GraphError::body(format!(
                "A type named '{named}' could not be resolved by the model or is not assignable to '{}'. When a model \
                 is available, each type name must resolve to a valid type.",
                kind.name,
            )))
        }
        "odata.type" | "odata.mediaContentType" | "odata.context" | "odata.etag" | "odata.id" => Ok(()),
        _ => Err(unexpected_annotation(annotation)),
    }
}

fn unexpected_annotation(name: &str) -> GraphError {
    GraphError::body(format!(
        "The annotation '{name}' was found. This annotation is either not recognized or not expected at the current \
         position."
    ))
}

fn check_value(value: &Value, kind: Kind, name: &str) -> Result<(), GraphError> {
    let fits = match kind {
        Kind::Any => true,
        Kind::String => value.is_string(),
        // "saveToSentItems": "false" is in Microsoft's own examples: the service coerces.
        Kind::Boolean => boolean(value).is_some(),
        Kind::Int32 => value.as_i64().is_some_and(|it| i32::try_from(it).is_ok()),
        Kind::Int64 => value.as_i64().is_some(),
        // Whether it is base64 shows when it is decoded.
        Kind::Binary => value.is_string(),
        Kind::DateTimeOffset => value
            .as_str()
            .is_some_and(|it| it.parse::<jiff::Timestamp>().is_ok()),
        // "contentType": "HTML" is in Microsoft's own examples: the service does not mind the case.
        Kind::Enum(members) => value
            .as_str()
            .is_some_and(|it| members.iter().any(|member| member.eq_ignore_ascii_case(it))),
        Kind::Object(kind) => match value {
            Value::Object(object) => return check(object, kind),
            _ => false,
        },
        Kind::Attachment => match value {
            Value::Object(object) => return check(object, attachment_type(object)?),
            _ => false,
        },
        Kind::Item => match value {
            Value::Object(object) => return check_item(object),
            _ => false,
        },
        Kind::Collection(kind) => match value {
            Value::Array(values) => {
                return values
                    .iter()
                    .try_for_each(|value| check_value(value, *kind, name));
            }
            _ => false,
        },
    };
    if fits {
        return Ok(());
    }
    Err(GraphError::body(format!(
        "Cannot convert the value of property '{name}' to the expected type '{}'.",
        kind.name()
    )))
}

/// The type an attachment says it has. It has to say: the base type is abstract.
pub(super) fn attachment_type(object: &Map<String, Value>) -> Result<&'static Type, GraphError> {
    if object.contains_key("odata.type") {
        return Err(unexpected_annotation("odata.type"));
    }
    match object
        .get("@odata.type")
        .and_then(Value::as_str)
        .map(|it| it.trim_start_matches('#'))
    {
        Some("microsoft.graph.fileAttachment") => Ok(&FILE_ATTACHMENT),
        Some("microsoft.graph.itemAttachment") => Ok(&ITEM_ATTACHMENT),
        Some("microsoft.graph.referenceAttachment") => Err(GraphError::new(
            400,
            "ErrorInvalidArgument",
            "A reference attachment cannot be created: it has no property that can be set.",
        )),
        Some(other) => Err(GraphError::body(format!(
            "A type named '{other}' could not be resolved by the model. When a model is available, each type name \
             must resolve to a valid type."
        ))),
        None => Err(GraphError::body(
            "The type 'microsoft.graph.attachment' is abstract. The annotation '@odata.type' must name one of its \
             derived types.",
        )),
    }
}

fn check_item(object: &Map<String, Value>) -> Result<(), GraphError> {
    match object
        .get("@odata.type")
        .and_then(Value::as_str)
        .map(|it| it.trim_start_matches('#'))
    {
        Some("microsoft.graph.message") => check(object, &MESSAGE),
        Some("microsoft.graph.event" | "microsoft.graph.contact") => Ok(()),
        _ => Err(GraphError::body(
            "The type 'microsoft.graph.outlookItem' is abstract. The annotation '@odata.type' must name one of its \
             derived types.",
        )),
    }
}

/// A boolean, or the word for one.
pub(super) fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(it) => Some(*it),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::String | Kind::Any => "Edm.String",
            Kind::Boolean => "Edm.Boolean",
            Kind::Int32 => "Edm.Int32",
            Kind::Int64 => "Edm.Int64",
            Kind::Binary => "Edm.Binary",
            Kind::DateTimeOffset => "Edm.DateTimeOffset",
            Kind::Enum(_) => "an enumeration",
            Kind::Object(kind) => kind.name,
            Kind::Attachment => "microsoft.graph.attachment",
            Kind::Item => "microsoft.graph.outlookItem",
            Kind::Collection(_) => "a collection",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A property or navigation property of the schema, and what it may be called here.
    fn declared(line: &str) -> Option<(&str, &str)> {
        let attribute = |name: &str| {
            let start = line.find(&format!(" {name}=\""))? + name.len() + 3;
            let value = line.get(start..)?;
            value.get(..value.find('"')?)
        };
        let line = line.trim_start();
        let is_property = line.starts_with("<Property ") || line.starts_with("<NavigationProperty ");
        is_property
            .then(|| Some((attribute("Name")?, attribute("Type")?)))
            .flatten()
    }

    fn edm(kind: Kind) -> String {
        match kind {
            Kind::Object(kind) => kind.name.replace("microsoft.graph", "graph"),
            Kind::Attachment => "graph.attachment".into(),
            Kind::Item => "graph.outlookItem".into(),
            Kind::Any => "graph.extension".into(),
            Kind::Collection(kind) => format!("Collection({})", edm(*kind)),
            // Which enumeration it is does not matter, its members do.
            Kind::Enum(_) => "enumeration".into(),
            other => other.name().into(),
        }
    }

    #[test]
    fn the_tables_are_microsofts() {
        let schema = include_str!("mail-types.csdl.xml");
        let block = |name: &str| {
            let open = ["EntityType", "ComplexType", "EnumType"]
                .iter()
                .find_map(|kind| schema.find(&format!("<{kind} Name=\"{name}\"")));
            let text = &schema[open.unwrap_or_else(|| panic!("{name} is in the schema"))..];
            &text[..text.find("Type>").or(text.find("/>")).expect("it ends")]
        };
        let mut compared = 0;
        for (kind, names) in [
            (&MESSAGE, ["message", "outlookItem", "entity"].as_slice()),
            (&FILE_ATTACHMENT, &["fileAttachment", "attachment", "entity"]),
            (&ITEM_ATTACHMENT, &["itemAttachment", "attachment", "entity"]),
            (&RECIPIENT, &["recipient"]),
            (&EMAIL_ADDRESS, &["emailAddress"]),
            (&ITEM_BODY, &["itemBody"]),
            (&INTERNET_MESSAGE_HEADER, &["internetMessageHeader"]),
            (&FOLLOWUP_FLAG, &["followupFlag"]),
            (&DATE_TIME_TIME_ZONE, &["dateTimeTimeZone"]),
            (
                &SINGLE_VALUE_PROPERTY,
                &["singleValueLegacyExtendedProperty", "entity"],
            ),
            (
                &MULTI_VALUE_PROPERTY,
                &["multiValueLegacyExtendedProperty", "entity"],
            ),
            (&ATTACHMENT_ITEM, &["attachmentItem"]),
        ] {
            let mut theirs: Vec<(String, String)> = names
                .iter()
                .flat_map(|name| block(name).lines().filter_map(declared))
                .map(|(name, kind)| {
                    let is_enum =
                        schema.contains(&format!("<EnumType Name=\"{}\"", kind.replace("graph.", "")));
                    (
                        name.to_owned(),
                        if is_enum {
                            "enumeration".into()
                        } else {
                            kind.to_owned()
                        },
                    )
                })
                .collect();
            let mut ours: Vec<(String, String)> = kind
                .properties
                .iter()
                .map(|it| (it.name.to_owned(), edm(it.kind)))
                .collect();
            theirs.sort();
            ours.sort();
            assert_eq!(ours, theirs, "{}", kind.name);
            compared += ours.len();
        }
        assert_eq!(compared, 74);
    }

    fn verdict(value: Value) -> Option<(String, String)> {
        let Value::Object(object) = value else {
            panic!("an object")
        };
        check(&object, &MESSAGE)
            .err()
            .map(|it| (it.code.into_owned(), it.message))
    }

    #[test]
    fn what_graph_takes() {
        for good in [
            json!({}),
            json!({"@odata.type": "#microsoft.graph.message", "subject": null, "importance": "HIGH"}),
            json!({"body": {"contentType": "HTML", "content": "x"}, "isReadReceiptRequested": "true"}),
            json!({"toRecipients": [{"emailAddress": {"address": "a@b.example", "name": null}}]}),
            json!({"attachments": [{"@odata.type": "#microsoft.graph.fileAttachment", "name": "a",
                "contentBytes": "AA==", "contentType@odata.type": "#String"}]}),
            json!({"attachments": [{"@odata.type": "#microsoft.graph.itemAttachment", "name": "a",
                "item": {"@odata.type": "microsoft.graph.message", "subject": "inner"}}]}),
            json!({"singleValueExtendedProperties": [{"id": "String 0x1042", "value": "<a@b>"}]}),
            json!({"flag": {"flagStatus": "flagged", "dueDateTime": {"dateTime": "2026-01-01T00:00:00"}}}),
        ] {
            assert_eq!(verdict(good.clone()), None, "{good}");
        }
    }

    #[test]
    fn what_graph_refuses() {
        for (bad, code, fragment) in [
            (
                json!({"Subject": "x"}),
                "RequestBodyRead",
                "The property 'Subject' does not exist on type 'microsoft.graph.message'.",
            ),
            (
                json!({"OdataType": "x"}),
                "RequestBodyRead",
                "The property 'OdataType' does not exist",
            ),
            (
                json!({"odata.type": "x"}),
                "RequestBodyRead",
                "The annotation 'odata.type' was found.",
            ),
            (json!({"subject": 1}), "RequestBodyRead", "'Edm.String'"),
            (json!({"importance": "urgent"}), "RequestBodyRead", "importance"),
            (
                json!({"isReadReceiptRequested": "yes"}),
                "RequestBodyRead",
                "'Edm.Boolean'",
            ),
            (
                json!({"toRecipients": {"emailAddress": {}}}),
                "RequestBodyRead",
                "toRecipients",
            ),
            (
                json!({"toRecipients": [{"address": "a@b"}]}),
                "RequestBodyRead",
                "'microsoft.graph.recipient'",
            ),
            (
                json!({"toRecipients": [{"emailAddress": {"mail": "a@b"}}]}),
                "RequestBodyRead",
                "'microsoft.graph.emailAddress'",
            ),
            (
                json!({"body": "text"}),
                "RequestBodyRead",
                "'microsoft.graph.itemBody'",
            ),
            (
                json!({"body": {"contentType": "rtf"}}),
                "RequestBodyRead",
                "contentType",
            ),
            (
                json!({"attachments": [{"name": "a"}]}),
                "RequestBodyRead",
                "abstract",
            ),
            (
                json!({"attachments": [{"odata.type": "#microsoft.graph.fileAttachment"}]}),
                "RequestBodyRead",
                "annotation 'odata.type'",
            ),
            (
                json!({"attachments": [{"@odata.type": "#microsoft.graph.blob"}]}),
                "RequestBodyRead",
                "could not be resolved",
            ),
            (
                json!({"attachments": [{"@odata.type": "#microsoft.graph.fileAttachment", "isInline": null}]}),
                "RequestBodyRead",
                "does not allow null",
            ),
            (
                json!({"attachments": [{"@odata.type": "#microsoft.graph.fileAttachment", "size": 1}]}),
                "ErrorInvalidPropertySet",
                "'size'",
            ),
            (
                json!({"attachments": [{"@odata.type": "#microsoft.graph.fileAttachment", "contentLocation": "x"}]}),
                "ErrorInvalidPropertySet",
                "'contentLocation'",
            ),
            (
                json!({"singleValueExtendedProperties": [{"value": "x"}]}),
                "RequestBodyRead",
                "'id'",
            ),
            (json!({"id": "x"}), "ErrorInvalidPropertySet", "'id'"),
            (
                json!({"createdDateTime": "2026-01-01T00:00:00Z"}),
                "ErrorInvalidPropertySet",
                "'createdDateTime'",
            ),
            (
                json!({"hasAttachments": true}),
                "ErrorInvalidPropertySet",
                "'hasAttachments'",
            ),
            (json!({"isDraft": false}), "ErrorInvalidPropertySet", "'isDraft'"),
        ] {
            let (found, message) = verdict(bad.clone()).unwrap_or_else(|| panic!("{bad} was let through"));
            assert_eq!(found, code, "{bad}: {message}");
            assert!(message.contains(fragment), "{bad}: {message}");
        }
    }
}
