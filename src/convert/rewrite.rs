//! A message as it is, except for the header fields that say who sends and who receives.
//!
//! Graph takes the recipients of a MIME message from its To, Cc and Bcc fields
//! (<https://learn.microsoft.com/graph/outlook-send-mime-message>): there is no envelope. So they are
//! written anew. What is below the top header section stays as it is, octet for octet, or signatures
//! would break.

use std::borrow::Cow;
use std::fmt::Write as _;

use memchr::memchr_iter;

use super::Order;
use super::json::{authors, reply_to};
use super::mime::Part;
use super::recipients::Recipients;
use crate::address::{Address, is_words};
use crate::envelope::HeaderFrom;
use crate::graph::resource::Recipient;
use crate::message::fields::{Field, HeaderSection};
use crate::message::{message_id, words};

/// The longest line of a header field that is written, by RFC 2047 §2.
const MAX_LINE_CHARACTERS: usize = 75;

/// The fields that are not passed on: the ones written anew, and those that could make someone a
/// recipient or a sender beside them.
const REMOVED: [&str; 10] = [
    "from",
    "sender",
    "reply-to",
    "to",
    "cc",
    "resent-from",
    "resent-sender",
    "resent-to",
    "resent-cc",
    "x-sender",
];

/// The fields that disclose who else receives the message, or received it before.
const DISCLOSING: [&str; 14] = [
    "bcc",
    "resent-bcc",
    "apparently-to",
    "return-path",
    "delivered-to",
    "envelope-to",
    "x-bcc",
    "x-delivered-to",
    "x-envelope-from",
    "x-envelope-to",
    "x-original-to",
    "x-rcpt-to",
    "x-receiver",
    "x-to",
];

/// The header section of a message that is attached whole: as it stands, but without blind copies.
pub fn enclosed_header(root: &Part<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    for field in &root.header.fields {
        if !DISCLOSING.contains(&field.name()) {
            for line in field.lines() {
                out.extend_from_slice(line);
                out.extend_from_slice(b"\r\n");
            }
        }
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// The message with the recipients of the envelope, and From by the policy. CRLF throughout.
pub fn rewrite(content: &[u8], root: &Part<'_>, order: &Order<'_>) -> Vec<u8> {
    let header = &root.header;
    let mut out = Vec::with_capacity(content.len() + 4096);
    let stable_id = header.all("message-id").count() == 1
        && header
            .first("message-id")
            .and_then(|it| message_id(it.value()))
            .is_some_and(|it| it == order.message_id);
    let reply_to = reply_to(header, order);
    for field in &header.fields {
        let name = field.name();
        let removed =
            REMOVED.contains(&name) || DISCLOSING.contains(&name) || name == "message-id" && !stable_id;
        if !removed {
            pass_on(field, &mut out);
        }
    }
    let mut text = String::new();
    if !stable_id {
        let _ = write!(text, "Message-ID: <{}>\r\n", order.message_id);
    }
    if let Some(from) = from(header, order) {
        write_list(&mut text, "From", &[from]);
    }
    let Recipients { to, cc, bcc } = Recipients::of(header, &order.envelope.recipients);
    write_list(&mut text, "To", &to);
    write_list(&mut text, "Cc", &cc);
    write_list(&mut text, "Bcc", &bcc);
    write_list(&mut text, "Reply-To", &reply_to);
    let is_mime = header.fields.iter().any(|it| it.name().starts_with("content-"));
    if header.first("mime-version").is_none() && is_mime {
        text.push_str("MIME-Version: 1.0\r\n");
    }
    let body = root.body();
    if !is_mime && !body.is_ascii() {
        let charset = match std::str::from_utf8(body) {
            Ok(_) => "utf-8",
            Err(_) => "windows-1252",
        };
        let _ = write!(
            text,
            "MIME-Version: 1.0\r\nContent-Type: text/plain; charset={charset}\r\nContent-Transfer-Encoding: 8bit\r\n"
        );
    }
    text.push_str("\r\n");
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(&with_crlf(body));
    out
}

/// Writes a field as it stands. Its lines end with CRLF, and each but the first begins with white
/// space, whatever was there before.
fn pass_on(field: &Field<'_>, out: &mut Vec<u8>) {
    if is_unstructured(field.name()) && !field.value().is_ascii() {
        // Raw eight-bit text means something else to everyone.
        let mut text = String::from_utf8_lossy(field.written_name()).into_owned();
        text.retain(|it| it.is_ascii_graphic());
        text.push(':');
        write_words(&mut text, &words::decode(field.value()));
        out.extend_from_slice(text.as_bytes());
        out.extend_from_slice(b"\r\n");
        return;
    }
    for (number, line) in field.lines().enumerate() {
        if number > 0 && !matches!(line.first(), Some(b' ' | b'\t')) {
            out.push(b' ');
        }
        out.extend(line.iter().copied().filter(|it| *it != 0));
        out.extend_from_slice(b"\r\n");
    }
}

/// Whether a field is free text (RFC 5322 §3.6.5), in which encoded words may stand.
fn is_unstructured(name: &str) -> bool {
    matches!(name, "subject" | "comments" | "organization" | "thread-topic") || name.starts_with("x-")
}

/// The From field. `None` where the mailbox is named by something else than an address.
fn from(header: &HeaderSection<'_>, order: &Order<'_>) -> Option<Recipient> {
    let author = authors(header, order).into_iter().next();
    match (order.route.header_from, author) {
        (HeaderFrom::Keep, Some(author)) => Some(Recipient {
            name: author.name,
            address: author.address,
        }),
        (_, author) => {
            let address = Address::parse(&order.route.mailbox).ok()?;
            address.domain()?;
            Some(Recipient {
                name: author.and_then(|it| it.name),
                address,
            })
        }
    }
}

/// Writes an address list, an address a line; nothing for an empty one.
fn write_list(out: &mut String, name: &str, recipients: &[Recipient]) {
    for (number, recipient) in recipients.iter().enumerate() {
        match number {
            0 => {
                out.push_str(name);
                out.push(':');
            }
            _ => out.push_str(",\r\n"),
        }
        match &recipient.name {
            Some(name) => {
                write_phrase(out, name);
                out.push_str(" <");
                write_address(out, &recipient.address);
                out.push('>');
            }
            None => {
                out.push(' ');
                write_address(out, &recipient.address);
            }
        }
    }
    if !recipients.is_empty() {
        out.push_str("\r\n");
    }
}

/// Writes an address (RFC 5322 §3.4.1). What SMTP takes without quotes, `a(b@c` say, a header does not.
fn write_address(out: &mut String, address: &Address) {
    let local = address.local_part();
    if is_words(local) {
        let _ = write!(out, "{address}");
        return;
    }
    write_quoted(out, local);
    if let Some(domain) = address.domain() {
        let _ = write!(out, "@{domain}");
    }
}

fn write_quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

/// Writes a display name (RFC 5322 §3.2.5) after a space: in quotes, or in encoded words.
fn write_phrase(out: &mut String, name: &str) {
    let printable = |it: char| it.is_ascii_graphic() || it == ' ';
    // What looks like an encoded word must not become one.
    if name.chars().all(printable) && !name.contains("=?") && name.len() <= 200 {
        out.push(' ');
        write_quoted(out, name);
    } else {
        write_words(out, name);
    }
}

/// Writes text as encoded words (RFC 2047), each after a space and on a line of its own after the
/// first.
fn write_words(out: &mut String, text: &str) {
    let mut chunk = String::new();
    let mut first = true;
    let mut flush = |chunk: &mut String| {
        if !first {
            out.push_str("\r\n");
        }
        first = false;
        let _ = write!(
            out,
            " =?utf-8?B?{}?=",
            base64_simd::STANDARD.encode_to_string(&*chunk)
        );
        chunk.clear();
    };
    for c in text.chars() {
        // Characters are not split over words (§5).
        let encoded = (chunk.len() + c.len_utf8()).div_ceil(3) * 4;
        if encoded + "=?utf-8?B??=".len() > MAX_LINE_CHARACTERS {
            flush(&mut chunk);
        }
        chunk.push(c);
    }
    if !chunk.is_empty() {
        flush(&mut chunk);
    }
}

/// The octets with CRLF for every LF that stands alone. Graph reads nothing else reliably.
fn with_crlf(body: &[u8]) -> Cow<'_, [u8]> {
    let bare = |at: &usize| *at == 0 || body[at - 1] != b'\r';
    let count = memchr_iter(b'\n', body).filter(bare).count();
    if count == 0 {
        return Cow::Borrowed(body);
    }
    let mut out = Vec::with_capacity(body.len() + count);
    let mut from = 0;
    for at in memchr_iter(b'\n', body).filter(bare) {
        out.extend_from_slice(&body[from..at]);
        out.extend_from_slice(b"\r\n");
        from = at + 1;
    }
    out.extend_from_slice(&body[from..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::Wishes;
    use crate::envelope::{Envelope, ReversePath, Route};
    use crate::message::addresses;

    #[test]
    fn writes_names_that_read_back() {
        for name in [
            "Ann",
            "Ann \"The Boss\" \\ Smith, Esq. <x@y>",
            "Grüße",
            "=?utf-8?q?no?=",
            "你好，世界 你好，世界 你好，世界 你好，世界 你好，世界 你好，世界 你好，世界",
            "\u{1f600}\u{1f600}\u{1f600}\u{1f600}\u{1f600}\u{1f600}\u{1f600}\u{1f600}\u{1f600}\u{1f600}\u{1f600}\u{1f600}",
        ] {
            let recipient = Recipient {
                name: Some(name.to_owned()),
                address: Address::parse("a@b.example").expect("an address"),
            };
            let mut text = String::new();
            write_list(&mut text, "To", &[recipient.clone(), recipient]);
            assert!(text.lines().all(|it| it.len() <= 100), "{text}");
            let value = text.strip_prefix("To:").expect("a field");
            let read = addresses::parse(value.as_bytes());
            assert_eq!(read.len(), 2, "{text}");
            assert!(read.iter().all(|it| it.name.as_deref() == Some(name)), "{text}");
        }
    }

    #[test]
    fn writes_addresses_that_read_as_one() {
        for (address, want) in [
            ("a@b.example", "a@b.example"),
            ("printer", "printer"),
            ("\"a b\"@c", "\"a b\"@c"),
            ("a(b@c", "\"a(b\"@c"),
            ("team:a@b", "\"team:a\"@b"),
            ("a\\b@c", "\"a\\\\b\"@c"),
            ("\"a\".b@c", "\"a\".b@c"),
            ("\"a@c", "\"\\\"a\"@c"),
            ("a\"b@c", "\"a\\\"b\"@c"),
        ] {
            let mut text = String::new();
            write_address(&mut text, &Address::parse(address).expect(address));
            assert_eq!(text, want);
        }
    }

    /// Whatever a reader may take for a line ending: no recipient and no sender comes in by it.
    #[test]
    fn smuggles_nobody() {
        let envelope = Envelope {
            reverse_path: ReversePath(None),
            recipients: vec![Address::parse("ann@example.org").expect("an address")],
        };
        let route = Route {
            mailbox: "service@contoso.example".to_owned(),
            rule: "erp".to_owned(),
            header_from: HeaderFrom::Mailbox,
            save_to_sent_items: true,
            format: None,
            unknown: None,
        };
        let order = Order {
            envelope: &envelope,
            route: &route,
            message_id: "1@graphpost.example",
            wishes: Wishes::default(),
        };
        for smuggled in [
            "Subject: x\rBcc: evil@example.org\r\n",
            "Subject: x\r\rBcc: evil@example.org\r\n",
            "Subject: x\r\r\nBcc: evil@example.org\r\r\n",
            "Subject: x\nBcc : evil@example.org\n",
            "Subject: x\r\n B\r\nBcc\t: evil@example.org\r\n",
            "Subject: x\r\nB c c: evil@example.org\r\n",
            "Subject: x\r\nBcc\0: evil@example.org\r\n",
            "Subject: x\r\nResent-Bcc: evil@example.org\r\nApparently-To: evil@example.org\r\n",
            "\u{feff}Bcc: evil@example.org\r\nSubject: x\r\n",
            " Bcc: evil@example.org\r\nSubject: x\r\n",
            "From: a@b\r\nrubbish\r\nBcc: evil@example.org\r\nSubject: x\r\n",
            "From: \"x\r\n To: evil@example.org\" <a@b>\r\nSubject: x\r\n",
        ] {
            let message = format!("{smuggled}\r\nbody");
            let mime = rewrite(message.as_bytes(), &Part::parse(message.as_bytes()), &order);
            let mime = String::from_utf8(mime).expect("text");
            let (header, body) = mime.split_once("\r\n\r\n").expect("a header");
            assert_eq!(body, "body", "{message:?}");
            let names: Vec<&str> = header
                .split(['\r', '\n'])
                .filter(|it| !it.is_empty() && !it.starts_with([' ', '\t']))
                .map(|it| it.split(':').next().unwrap_or_default())
                .collect();
            let mut wanted = vec!["Message-ID", "From", "Bcc"];
            if header.contains("Reply-To") {
                wanted.push("Reply-To");
            }
            assert_eq!(names[1..], wanted, "{header}");
            // In a display name it is text, and harms nobody.
            let shown = header.replace("\"x To: evil@example.org\"", "");
            assert!(!shown.contains("evil"), "{header}");
        }
    }

    #[test]
    fn ends_lines_with_crlf() {
        for (body, want) in [
            ("a\nb\r\nc\rd\n", "a\r\nb\r\nc\rd\r\n"),
            ("\n\n", "\r\n\r\n"),
            ("a\r\n", "a\r\n"),
            ("", ""),
        ] {
            assert_eq!(with_crlf(body.as_bytes()), want.as_bytes(), "{body:?}");
        }
    }
}
