//! Whatever a message is made of: its conversion does not panic, is delivered to the envelope and to
//! nobody else, and is JSON or MIME that nothing can be read into.

use std::collections::BTreeSet;

use bytes::Bytes;
use graphpost::address::Address;
use graphpost::config::Api;
use graphpost::convert::{Order, Way, Wishes, convert};
use graphpost::envelope::{Envelope, Format, HeaderFrom, ReversePath, Route};
use graphpost::graph::Request;
use graphpost::graph::resource::Attachment;
use serde_json::Value;

/// Converts `data` in every form. The last octets of it choose the envelope and the limits, so that
/// any message is an input as it stands.
pub fn check(data: &[u8]) {
    let choice = |at: usize| data.len().checked_sub(at + 1).map_or(0, |it| data[it]);
    let (who, how, size) = (choice(0), choice(1), choice(2));
    let envelope = Envelope {
        reverse_path: ReversePath(match who & 3 {
            0 => None,
            1 => Address::parse("printer").ok(),
            _ => Address::parse("erp@contoso.com").ok(),
        }),
        recipients: recipients(who >> 2, data),
    };
    let route = Route {
        mailbox: match how & 1 {
            0 => "service@contoso.com",
            _ => "00000000-0000-0000-0000-000000000000",
        }
        .to_owned(),
        rule: "erp".to_owned(),
        header_from: match how >> 1 & 3 {
            0 => HeaderFrom::Mailbox,
            1 => HeaderFrom::Refuse,
            _ => HeaderFrom::Keep,
        },
        save_to_sent_items: how & 8 == 0,
        format: None,
        unknown: None,
    };
    let content = Bytes::copy_from_slice(data);
    for (api, format) in [
        (Api::Graph, Format::Auto),
        (Api::Graph, Format::Json),
        (Api::Graph, Format::Mime),
        (Api::OutlookV2, Format::Auto),
    ] {
        let order = Order {
            envelope: &envelope,
            route: &route,
            message_id: "1@graphpost.example",
            wishes: Wishes {
                format,
                api,
                keep_alternatives: how & 16 == 0,
                large_messages: how & 32 == 0,
                max_request: match size & 1 {
                    0 => Wishes::default().max_request,
                    _ => 1000 + usize::from(size) * 16,
                },
            },
        };
        check_form(&content, &order);
    }
}

/// Addresses that are easily mixed up, and what stands behind the last line ending if it is one.
fn recipients(choice: u8, data: &[u8]) -> Vec<Address> {
    let fixed = [
        "ann@example.org",
        "Ann@Example.ORG",
        "\"ann smith\"@example.org",
        "bob@[192.0.2.1]",
        "gr\u{fc}n@example.org",
        "evil",
    ];
    let tail = data.rsplit(|it| *it == b'\n').next().unwrap_or_default();
    let tail = std::str::from_utf8(tail).ok();
    let chosen = fixed
        .into_iter()
        .enumerate()
        .filter(|(at, _)| choice >> at & 1 == 1)
        .map(|(_, it)| it);
    let mut found: Vec<Address> = Vec::new();
    for address in chosen.chain(tail).filter_map(|it| Address::parse(it).ok()) {
        // As the listener does.
        if !found.contains(&address) {
            found.push(address);
        }
    }
    if found.is_empty() {
        found.extend(Address::parse("ann@example.org"));
    }
    found
}

fn check_form(content: &Bytes, order: &Order<'_>) {
    let Ok(converted) = convert(content, order) else {
        // Only a limit may be in the way, and at the usual one nothing of this size is too large.
        assert!(order.wishes.max_request < content.len() * 8 + 10_000);
        return;
    };
    let limit = order.wishes.max_request;
    match converted.way {
        Way::Request(Request::Json(json)) => {
            assert!(json.len() <= limit);
            let mut request: Value = serde_json::from_slice(&json).expect("JSON");
            if order.wishes.api == Api::OutlookV2 {
                request = in_graph_names(request);
            }
            only(&request, &["message", "saveToSentItems"]);
            check_message(&request["message"], order);
        }
        Way::Request(Request::Mime(base64)) => {
            assert!(base64.len() <= limit);
            let mime = base64_simd::STANDARD.decode_to_vec(&base64).expect("base64");
            check_mime(&mime, order);
        }
        Way::Draft(draft) => {
            assert!(draft.message.len() <= limit);
            assert!(order.wishes.large_messages && order.wishes.api == Api::Graph);
            let message: Value = serde_json::from_slice(&draft.message).expect("JSON");
            check_message(&message, order);
            draft.attachments.iter().for_each(check_upload);
        }
    }
}

fn in_graph_names(value: Value) -> Value {
    match value {
        Value::Object(object) => object
            .into_iter()
            .map(|(name, value)| {
                let (first, rest) = name.split_at(1);
                (first.to_lowercase() + rest, in_graph_names(value))
            })
            .collect(),
        Value::Array(values) => values.into_iter().map(in_graph_names).collect(),
        value => value,
    }
}

fn only(object: &Value, names: &[&str]) {
    for name in object.as_object().expect("an object").keys() {
        assert!(names.contains(&name.as_str()), "{name}");
    }
}

fn check_message(message: &Value, order: &Order<'_>) {
    only(
        message,
        &[
            "subject",
            "body",
            "from",
            "toRecipients",
            "ccRecipients",
            "bccRecipients",
            "replyTo",
            "importance",
            "isReadReceiptRequested",
            "isDeliveryReceiptRequested",
            "internetMessageId",
            "internetMessageHeaders",
            "singleValueExtendedProperties",
            "attachments",
        ],
    );
    let mut sent = BTreeSet::new();
    for list in ["toRecipients", "ccRecipients", "bccRecipients"] {
        for recipient in array(message, list) {
            let address = recipient["emailAddress"]["address"].as_str().expect("an address");
            assert!(sent.insert(key(address)), "{address} twice");
        }
    }
    assert_eq!(sent, wanted(order));
    for header in array(message, "internetMessageHeaders") {
        let name = header["name"].as_str().expect("a name");
        assert!(name.to_ascii_lowercase().starts_with("x-") && name.bytes().all(|it| it.is_ascii_graphic()));
        one_line(&header["value"]);
    }
    one_line(&message["subject"]);
    for property in array(message, "singleValueExtendedProperties") {
        one_line(&property["value"]);
    }
    for attachment in array(message, "attachments") {
        let name = attachment["name"].as_str().expect("a name");
        assert!(!name.is_empty() && !name.contains(['/', '\\']), "{name:?}");
        one_line(&attachment["name"]);
        one_line(&attachment["contentType"]);
        one_line(&attachment["contentId"]);
        let octets = attachment["contentBytes"].as_str().expect("octets");
        base64_simd::STANDARD.check(octets.as_bytes()).expect("base64");
    }
}

fn array<'a>(message: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    message[name].as_array().into_iter().flatten()
}

/// A text that no reader can take for more than one line.
fn one_line(text: &Value) {
    let text = text.as_str().unwrap_or_default();
    assert!(
        !text.contains(|it: char| it.is_control() || matches!(it, '\u{2028}' | '\u{2029}')),
        "{text:?}"
    );
}

/// What is uploaded is as long as was said, read at once or in chunks.
fn check_upload(attachment: &Attachment) {
    let whole = attachment.content.decode();
    assert_eq!(whole.len() as u64, attachment.content.len());
    let mut reader = attachment.content.reader();
    let mut read = Vec::new();
    loop {
        let chunk = reader.next_chunk(1000);
        if chunk.is_empty() {
            break;
        }
        read.extend_from_slice(&chunk);
    }
    assert_eq!(read, whole);
    let json: Value = serde_json::from_slice(&attachment.to_json()).expect("JSON");
    let octets = json["contentBytes"].as_str().expect("octets");
    assert_eq!(
        base64_simd::STANDARD.decode_to_vec(octets).expect("base64"),
        whole
    );
}

fn check_mime(mime: &[u8], order: &Order<'_>) {
    for (at, octet) in mime.iter().enumerate() {
        assert!(
            *octet != b'\n' || at > 0 && mime[at - 1] == b'\r',
            "a bare LF at {at}"
        );
    }
    let end = mime
        .windows(4)
        .position(|it| it == b"\r\n\r\n")
        .expect("a header section");
    let header = &mime[..end + 2];
    assert!(!header.contains(&0));
    let mut sent = BTreeSet::new();
    for field in fields(header) {
        let colon = field.iter().position(|it| *it == b':').expect("a colon");
        let name: Vec<u8> = field[..colon]
            .iter()
            .filter(|it| it.is_ascii_graphic())
            .copied()
            .collect();
        let name = String::from_utf8(name).expect("ASCII").to_ascii_lowercase();
        let list = || addresses(std::str::from_utf8(&field[colon + 1..]).expect("UTF-8"));
        match name.as_str() {
            "to" | "cc" | "bcc" => {
                for address in list() {
                    assert!(sent.insert(key(&address)), "{address} twice");
                }
            }
            "from" => assert_eq!(list().len(), 1),
            "reply-to" if order.route.header_from == HeaderFrom::Mailbox => drop(list()),
            _ => assert!(!["sender", "resent-to", "resent-cc", "resent-bcc"].contains(&name.as_str())),
        }
    }
    assert_eq!(sent, wanted(order), "{}", header.escape_ascii());
}

/// The fields of a header section in which CRLF ends a line, and a bare CR must not be.
fn fields(header: &[u8]) -> Vec<Vec<u8>> {
    let mut fields: Vec<Vec<u8>> = Vec::new();
    for line in header.split_inclusive(|it| *it == b'\n') {
        let line = line.strip_suffix(b"\r\n").expect("a whole line");
        assert!(!line.contains(&b'\r'), "a bare CR");
        match fields.last_mut() {
            Some(field) if line.starts_with(b" ") || line.starts_with(b"\t") => field.extend_from_slice(line),
            _ => fields.push(line.to_vec()),
        }
    }
    fields
}

/// Reads an address list as RFC 5322 §3.4 has it, and not a bit more.
fn addresses(list: &str) -> Vec<String> {
    let atom = |it: char| it.is_alphanumeric() || !it.is_ascii() || "!#$%&'*+-/=?^_`{|}~.".contains(it);
    let mut found = Vec::new();
    let mut rest = list.trim_start();
    // Quoted strings and atoms, with nothing between them.
    let word = |rest: &mut &str| -> Option<String> {
        let whole = *rest;
        loop {
            let end = match rest.strip_prefix('"') {
                Some(inner) => {
                    let mut escaped = false;
                    let end = inner.char_indices().find(|(_, it)| {
                        let ends = *it == '"' && !escaped;
                        escaped = *it == '\\' && !escaped;
                        ends
                    });
                    end.expect("the end of a quoted string").0 + 2
                }
                None => rest.find(|it| !atom(it)).unwrap_or(rest.len()),
            };
            if end == 0 {
                break;
            }
            *rest = &rest[end..];
        }
        let word = &whole[..whole.len() - rest.len()];
        (!word.is_empty()).then(|| word.to_owned())
    };
    let address = |rest: &mut &str, local: String| -> String {
        let Some(after) = rest.strip_prefix('@') else {
            return local;
        };
        let end = match after.strip_prefix('[') {
            Some(inner) => inner.find(']').expect("the end of a literal") + 2,
            None => after.find(|it| !atom(it)).unwrap_or(after.len()),
        };
        let (domain, after) = after.split_at(end);
        *rest = after;
        format!("{local}@{domain}")
    };
    while !rest.is_empty() {
        let mut last = None;
        let bracketed = loop {
            if let Some(inner) = rest.strip_prefix('<') {
                rest = inner;
                break true;
            }
            match word(&mut rest) {
                Some(it) => last = Some(it),
                None => break false,
            }
            if rest.starts_with('@') {
                break false;
            }
            rest = rest.trim_start();
        };
        if bracketed {
            last = word(&mut rest);
        }
        found.push(address(&mut rest, last.expect("a local part")));
        if bracketed {
            rest = rest.strip_prefix('>').expect("a closing bracket");
        }
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix(',') {
            rest = after.trim_start();
            assert!(!rest.is_empty());
        } else {
            assert!(rest.is_empty(), "{rest:?} in {list:?}");
        }
    }
    found
}

fn wanted(order: &Order<'_>) -> BTreeSet<String> {
    order
        .envelope
        .recipients
        .iter()
        .map(|it| key(it.as_str()))
        .collect()
}

/// What two spellings of one address have in common: quotes or not, and case.
fn key(address: &str) -> String {
    address.replace(['"', '\\'], "").to_lowercase()
}
