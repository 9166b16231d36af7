//! Turning what is hostile into what is harmless. Pure.

use std::collections::HashMap;
use std::fmt::{self, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::sandbox::mail::{Attachment, Mail};
use crate::sandbox::percent_decode;

/// Text for an element or a quoted attribute.
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(['&', '<', '>', '"', '\'', '\0']) {
            formatter.write_str(&rest[..at])?;
            formatter.write_str(match rest.as_bytes()[at] {
                b'&' => "&amp;",
                b'<' => "&lt;",
                b'>' => "&gt;",
                b'"' => "&quot;",
                b'\'' => "&#39;",
                _ => "\u{fffd}",
            })?;
            rest = &rest[at + 1..];
        }
        formatter.write_str(rest)
    }
}

/// A size for people.
pub(super) fn size(bytes: usize) -> String {
    match bytes {
        0..1000 => format!("{bytes} bytes"),
        1000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

/// A frame's document does not grow beyond this by the images put into it.
const FRAME_MAX: usize = 16 * 1024 * 1024;

/// The HTML of a mail with its inline images in place, for a frame that has no origin.
pub(super) fn frame_document(mail: &Mail) -> String {
    // A mail's HTML is written for a white page. Links open outside the frame, or not at all.
    let mut document = String::from(
        "<!DOCTYPE html><meta charset=\"utf-8\"><meta name=\"color-scheme\" content=\"light\">\
         <style>html{background:#fff;color:#111;font:15px/1.5 system-ui,sans-serif}body{margin:16px}img{max-width:100%}</style>\
         <base target=\"_blank\">",
    );
    let images: HashMap<&str, &Attachment> = mail
        .attachments
        .iter()
        .filter_map(|it| {
            Some((
                it.content_id
                    .as_deref()?
                    .trim_start_matches('<')
                    .trim_end_matches('>'),
                it,
            ))
        })
        .collect();
    let mut rest = mail.body.content.as_str();
    while let Some(at) = find_cid(rest) {
        let (before, reference) = rest.split_at(at);
        document.push_str(before);
        let name = &reference["cid:".len()..];
        let end = name
            .find(['"', '\'', ' ', '\t', '\r', '\n', '>', ')', '&'])
            .unwrap_or(name.len());
        let id = percent_decode(&name[..end]);
        let room = FRAME_MAX.saturating_sub(document.len());
        match images.get(id.as_str()).and_then(|it| data_uri(it, room)) {
            Some(uri) => document.push_str(&uri),
            None => document.push_str(&reference[.."cid:".len() + end]),
        }
        rest = &name[end..];
    }
    document.push_str(rest);
    document
}

/// Where the next `cid:` is, in any case (RFC 2392).
fn find_cid(text: &str) -> Option<usize> {
    text.as_bytes()
        .windows(4)
        .position(|it| it.eq_ignore_ascii_case(b"cid:"))
}

/// Only what is an image and nothing else, and only if there is room for it.
fn data_uri(attachment: &Attachment, room: usize) -> Option<String> {
    if attachment.content.len() / 3 * 4 > room {
        return None;
    }
    let kind = attachment.content_type.to_ascii_lowercase();
    let kind = [
        "image/png",
        "image/jpeg",
        "image/gif",
        "image/webp",
        "image/bmp",
        "image/svg+xml",
    ]
    .into_iter()
    .find(|it| kind.split(';').next().map(str::trim) == Some(it))?;
    let mut uri = String::new();
    let _ = write!(uri, "data:{kind};base64,");
    STANDARD.encode_string(&attachment.content, &mut uri);
    Some(uri)
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;

    use super::*;
    use crate::sandbox::mail::Body;

    #[test]
    fn nothing_gets_out_of_its_place() {
        assert_eq!(
            Escaped("<script>alert(\"x\")</script> & 'y'\0").to_string(),
            "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; &#39;y&#39;\u{fffd}"
        );
        assert_eq!(Escaped("Grüße").to_string(), "Grüße");
    }

    fn mail(content: &str, content_type: &str) -> Mail {
        let mut image = Attachment::new(
            "a.png".into(),
            content_type.into(),
            Bytes::from_static(&[1, 2, 3]),
        );
        image.content_id = Some("a b@x".into());
        Mail {
            body: Body {
                content_type: "html".into(),
                content: content.into(),
            },
            attachments: vec![image],
            ..Mail::default()
        }
    }

    #[test]
    fn inline_images_are_put_in_place() {
        for (content, expected) in [
            (
                "<img src=\"cid:a%20b@x\">",
                "<img src=\"data:image/png;base64,AQID\">",
            ),
            (
                "<img src='CID:a%20b@x'>",
                "<img src='data:image/png;base64,AQID'>",
            ),
            (
                "<p style=\"background:url(cid:a%20b@x)\">",
                "<p style=\"background:url(data:image/png;base64,AQID)\">",
            ),
            ("<img src=\"cid:other\">", "<img src=\"cid:other\">"),
            ("ends with cid:", "ends with cid:"),
            ("ü cid:ü", "ü cid:ü"),
        ] {
            let document = frame_document(&mail(content, "IMAGE/PNG; name=a"));
            assert!(document.ends_with(expected), "{document}");
        }
        let document = frame_document(&mail("<img src=\"cid:a%20b@x\">", "text/html"));
        assert!(
            document.ends_with("<img src=\"cid:a%20b@x\">"),
            "only images: {document}"
        );
    }

    #[test]
    fn a_thousand_references_to_one_image_stay_small() {
        let mut mail = mail(&"<img src=\"cid:a%20b@x\">".repeat(1000), "image/png");
        mail.attachments[0].content = Bytes::from(vec![0; 1_000_000]);
        assert!(frame_document(&mail).len() < FRAME_MAX + 100_000);
    }

    #[test]
    fn sizes() {
        assert_eq!(
            [0, 999, 1500, 3_000_000].map(size),
            ["0 bytes", "999 bytes", "1.5 kB", "3.0 MB"]
        );
    }
}
