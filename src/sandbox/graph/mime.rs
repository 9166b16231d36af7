//! A message in MIME, base64-encoded as a whole: <https://learn.microsoft.com/graph/outlook-send-mime-message>.
//!
//! Its recipients are those of its To, Cc and Bcc fields; there is no envelope. Pure.

use axum::body::Bytes;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mail_parser::decoders::base64::base64_decode;
use mail_parser::decoders::quoted_printable::quoted_printable_decode;
use mail_parser::{
    Address, Encoding, HeaderName, Message, MessageParser, MessagePart, MimeHeaders, PartType,
};

use super::error::GraphError;
use crate::sandbox::mail::{Attachment, Body, Header, Mail, Recipient};

/// Reads a MIME message from the body of a request. Also returns it decoded.
pub(super) fn read(body: &[u8]) -> Result<Mail, GraphError> {
    let content = STANDARD.decode(body).map_err(|_| {
        GraphError::new(
            400,
            "ErrorMimeContentInvalidBase64String",
            "Invalid base64 string for MIME content.",
        )
    })?;
    if !lines_end_with_crlf(&content) {
        return Err(GraphError::undeserializable());
    }
    let message = MessageParser::default()
        .parse(&content)
        .ok_or_else(GraphError::undeserializable)?;
    Ok(mail(&message))
}

/// RFC 5322 §2.3: CR and LF only together.
fn lines_end_with_crlf(content: &[u8]) -> bool {
    let mut before = 0;
    for &byte in content {
        if (before == b'\r') != (byte == b'\n') {
            return false;
        }
        before = byte;
    }
    before != b'\r'
}

fn mail(message: &Message<'_>) -> Mail {
    let all = |name: HeaderName<'static>| -> Vec<Recipient> {
        message
            .header_values(name)
            .filter_map(|it| it.as_address())
            .flat_map(recipients)
            .collect()
    };
    let html = message.html_part(0).and_then(|it| match &it.body {
        PartType::Html(html) => Some(html.to_string()),
        _ => None,
    });
    let text = message.text_part(0).and_then(|it| match &it.body {
        PartType::Text(text) => Some(text.to_string()),
        _ => None,
    });
    let (body, text_alternative) = match html {
        Some(content) => (
            Body {
                content_type: "html".into(),
                content,
            },
            text,
        ),
        None => (
            Body {
                content_type: "text".into(),
                content: text.unwrap_or_default(),
            },
            None,
        ),
    };
    Mail {
        from: message.from().into_iter().flat_map(recipients).next(),
        sender: message.sender().into_iter().flat_map(recipients).next(),
        to: all(HeaderName::To),
        cc: all(HeaderName::Cc),
        bcc: all(HeaderName::Bcc),
        reply_to: all(HeaderName::ReplyTo),
        subject: message.subject().unwrap_or_default().to_owned(),
        internet_message_id: message.message_id().map(|it| format!("<{it}>")),
        importance: None,
        is_read_receipt_requested: message.header("Disposition-Notification-To").is_some(),
        is_delivery_receipt_requested: message.header("Return-Receipt-To").is_some(),
        headers: message
            .headers_raw()
            .map(|(name, value)| Header {
                name: name.to_owned(),
                value: value.trim().replace("\r\n", ""),
            })
            .collect(),
        extended_properties: Vec::new(),
        body,
        text_alternative,
        attachments: message
            .attachments()
            .map(|part| attachment(message, part))
            .collect(),
    }
}

fn recipients<'a>(address: &'a Address<'a>) -> impl Iterator<Item = Recipient> + 'a {
    address.iter().map(|it| Recipient {
        name: it.name().unwrap_or_default().to_owned(),
        address: it.address().unwrap_or_default().to_owned(),
    })
}

fn attachment(message: &Message<'_>, part: &MessagePart<'_>) -> Attachment {
    let content = match &part.body {
        // The parser has made Unicode of it; what is saved to disk is what was sent.
        PartType::Text(_) | PartType::Html(_) => {
            let range = part.raw_body_offset() as usize..part.raw_end_offset() as usize;
            decode(message.raw_message.get(range).unwrap_or_default(), part.encoding)
        }
        other => Bytes::copy_from_slice(match other {
            PartType::Binary(bytes) | PartType::InlineBinary(bytes) => bytes,
            PartType::Message(inner) => inner.raw_message(),
            _ => &[],
        }),
    };
    let content_type = part.content_type().map_or_else(
        || "text/plain".to_owned(),
        |it| match it.subtype() {
            Some(subtype) => format!("{}/{subtype}", it.ctype()),
            None => it.ctype().to_owned(),
        },
    );
    let name = part.attachment_name().unwrap_or("attachment").to_owned();
    let mut attachment = Attachment::new(name, content_type, content);
    attachment.content_id = part.content_id().map(str::to_owned);
    attachment.is_inline = part
        .content_disposition()
        .map_or(attachment.content_id.is_some(), |it| {
            it.ctype().eq_ignore_ascii_case("inline")
        });
    attachment
}

/// Undoes a content transfer encoding (RFC 2045 §6) and nothing else.
fn decode(raw: &[u8], encoding: Encoding) -> Bytes {
    let decoded = match encoding {
        Encoding::None => None,
        Encoding::QuotedPrintable => quoted_printable_decode(raw),
        Encoding::Base64 => base64_decode(raw),
    };
    decoded.map_or_else(|| Bytes::copy_from_slice(raw), Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(mime: &str) -> Result<Mail, GraphError> {
        read(STANDARD.encode(mime.replace('\n', "\r\n")).as_bytes())
    }

    #[test]
    fn recipients_come_from_every_to_cc_and_bcc_field() {
        let mail = parse(
            "From: Svc <svc@x.example>\nTo: A <a@x.example>, group: b@x.example, c@x.example;\nTo: d@x.example\n\
             Cc: e@x.example\nBcc: f@x.example\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\nMessage-ID: <1@x>\n\nHi\n",
        )
        .expect("sound MIME");
        let addresses: Vec<&str> = mail.recipients().map(|it| it.address.as_str()).collect();
        assert_eq!(
            addresses,
            [
                "a@x.example",
                "b@x.example",
                "c@x.example",
                "d@x.example",
                "e@x.example",
                "f@x.example"
            ]
        );
        assert_eq!(mail.subject, "Grüße");
        assert_eq!(mail.internet_message_id.as_deref(), Some("<1@x>"));
        assert_eq!(mail.from.map(|it| it.address).as_deref(), Some("svc@x.example"));
        assert_eq!(
            (mail.body.content_type.as_str(), mail.body.content.trim()),
            ("text", "Hi")
        );
    }

    #[test]
    fn the_body_is_what_a_reader_shows_and_the_rest_is_attached() {
        let mail = parse(
            "To: a@x.example\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=m\n\n\
             --m\nContent-Type: multipart/alternative; boundary=a\n\n\
             --a\nContent-Type: text/plain\n\nplain\n--a\nContent-Type: text/html\n\n<p>rich</p>\n--a--\n\
             --m\nContent-Type: image/png; name=dot.png\nContent-Disposition: inline\nContent-ID: <dot@x>\n\
             Content-Transfer-Encoding: base64\n\nAAEC\n--m--\n",
        )
        .expect("sound MIME");
        assert_eq!(mail.body.content_type, "html");
        assert_eq!(mail.body.content.trim(), "<p>rich</p>");
        assert_eq!(mail.text_alternative.as_deref().map(str::trim), Some("plain"));
        let [image] = mail.attachments.as_slice() else {
            panic!("one attachment")
        };
        assert_eq!(
            (image.name.as_str(), image.content_type.as_str(), image.is_inline),
            ("dot.png", "image/png", true)
        );
        assert_eq!(
            (image.content.as_ref(), image.content_id.as_deref()),
            ([0u8, 1, 2].as_slice(), Some("dot@x"))
        );
    }

    #[test]
    fn base64_and_line_ends_are_strict() {
        assert_eq!(
            read(b"not base64").err().map(|it| it.code).as_deref(),
            Some("ErrorMimeContentInvalidBase64String")
        );
        for broken in [
            "To: a@b\n\nx",
            "To: a@b\r\n\r\nx\ry",
            "To: a@b\r\n\r\nx\r",
            "To: a@b\r\r\n",
        ] {
            let verdict = read(STANDARD.encode(broken).as_bytes()).err().map(|it| it.code);
            assert_eq!(
                verdict.as_deref(),
                Some("UnableToDeserializePostBody"),
                "{broken:?}"
            );
        }
    }
}
