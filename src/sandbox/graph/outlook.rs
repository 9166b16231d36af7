//! The Outlook REST API v2.0: the same messages under older names. Pure.
//!
//! <https://learn.microsoft.com/outlook/rest/compare-graph>: properties begin with a capital, types
//! are of `Microsoft.OutlookServices`. Exchange Online no longer serves it; some hybrid servers do.

use serde_json::{Map, Value};

use super::error::GraphError;

const OUTLOOK_TYPES: &str = "#Microsoft.OutlookServices.";
const GRAPH_TYPES: &str = "#microsoft.graph.";

/// A request body in Graph's names.
pub(super) fn to_graph(body: &[u8]) -> Result<Vec<u8>, GraphError> {
    let value = super::message::strict(body)?;
    Ok(graph_value(value)?.to_string().into_bytes())
}

/// An answer in Outlook's names.
pub(super) fn from_graph(value: Value) -> Value {
    match value {
        Value::Object(object) => object
            .into_iter()
            .map(|(name, value)| {
                let name = if name.contains('@') { name } else { capital(&name) };
                (name, from_graph(value))
            })
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(values) => values.into_iter().map(from_graph).collect(),
        Value::String(text) if text.starts_with(GRAPH_TYPES) => {
            format!("{OUTLOOK_TYPES}{}", capital(&text[GRAPH_TYPES.len()..])).into()
        }
        other => other,
    }
}

fn graph_value(value: Value) -> Result<Value, GraphError> {
    match value {
        Value::Object(object) => {
            let mut renamed = Map::new();
            for (name, value) in object {
                let (name, value) = graph_property(name, value)?;
                renamed.insert(name, value);
            }
            Ok(renamed.into())
        }
        Value::Array(values) => values.into_iter().map(graph_value).collect(),
        other => Ok(other),
    }
}

fn graph_property(name: String, value: Value) -> Result<(String, Value), GraphError> {
    if name == "@odata.type" {
        let kind = value
            .as_str()
            .and_then(|it| it.strip_prefix(OUTLOOK_TYPES))
            .ok_or_else(|| {
                GraphError::body(format!(
                    "A type named '{value}' could not be resolved by the model."
                ))
            })?;
        return Ok((name, format!("{GRAPH_TYPES}{}", lower(kind)).into()));
    }
    if name.contains('@') || name.starts_with("odata.") {
        return Ok((name, value));
    }
    if !name.starts_with(|it: char| it.is_ascii_uppercase()) {
        return Err(GraphError::body(format!(
            "The property '{name}' does not exist on type 'Microsoft.OutlookServices.Message'. Make sure to only use \
             property names that are defined by the type."
        )));
    }
    // https://learn.microsoft.com/previous-versions/office/office-365-api/api/version-2.0/extended-properties-rest-operations
    let name = if name == "PropertyId" {
        "id".to_owned()
    } else {
        lower(&name)
    };
    Ok((name, graph_value(value)?))
}

fn lower(name: &str) -> String {
    let mut letters = name.chars();
    letters
        .next()
        .map(|it| it.to_ascii_lowercase())
        .into_iter()
        .chain(letters)
        .collect()
}

fn capital(name: &str) -> String {
    let mut letters = name.chars();
    letters
        .next()
        .map(|it| it.to_ascii_uppercase())
        .into_iter()
        .chain(letters)
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_and_types_both_ways() {
        let outlook = json!({"Message": {
            "Subject": "x",
            "ToRecipients": [{"EmailAddress": {"Address": "a@b.example"}}],
            "SingleValueExtendedProperties": [{"PropertyId": "String 0x1042", "Value": "<a@b>"}],
            "Attachments": [{"@odata.type": "#Microsoft.OutlookServices.FileAttachment", "ContentBytes": "AA=="}],
        }});
        let graph = json!({"message": {
            "subject": "x",
            "toRecipients": [{"emailAddress": {"address": "a@b.example"}}],
            "singleValueExtendedProperties": [{"id": "String 0x1042", "value": "<a@b>"}],
            "attachments": [{"@odata.type": "#microsoft.graph.fileAttachment", "contentBytes": "AA=="}],
        }});
        let translated = to_graph(outlook.to_string().as_bytes()).expect("sound JSON");
        assert_eq!(serde_json::from_slice::<Value>(&translated).expect("JSON"), graph);
        let back = from_graph(graph)["Message"]["Attachments"][0].clone();
        assert_eq!(
            back,
            json!({"@odata.type": "#Microsoft.OutlookServices.FileAttachment", "ContentBytes": "AA=="})
        );
    }

    #[test]
    fn graphs_names_are_refused() {
        for body in [
            json!({"message": {}}),
            json!({"Message": {"subject": "x"}}),
            json!({"Message": {"Attachments": [{"@odata.type": "#microsoft.graph.fileAttachment"}]}}),
        ] {
            assert!(to_graph(body.to_string().as_bytes()).is_err(), "{body}");
        }
    }
}
