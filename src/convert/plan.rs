//! Which form a message is sent in. Pure, and all there is to decide it.
//!
//! JSON carries the recipients, so that nothing in the message can add one, but it has one body and
//! takes the message apart. MIME keeps the message whole, takes its recipients from header fields and
//! a third less content. So JSON is used where it does no harm.

use std::fmt;

use super::mime::Part;
use crate::config::{self, Api};
use crate::envelope::Format;
use crate::graph::resource::MAX_REQUEST_OCTETS;

/// A form that a message can be sent in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One request with a Graph message.
    Json,
    /// One request with the MIME message.
    Mime,
    /// A draft, to which the attachments are uploaded, and which is then sent.
    Draft,
    /// A draft, or a request where there are no drafts, to which the whole message is attached as it is.
    Enclosed,
}

/// Why a form was chosen. In the log, and nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nothing speaks against JSON.
    Ordinary,
    /// The administrator wants this format.
    Format,
    /// Only MIME keeps what the message is.
    Nature(Nature),
    /// Only MIME would keep what the message is, and the API does not take it.
    NoMime(Nature),
    /// It does not fit into one request in the form it should have.
    TooLarge(Nature),
}

/// What kind of message it is, as far as the form depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// Text, perhaps with attachments.
    Ordinary,
    /// Text and HTML that say the same.
    Alternatives,
    /// `multipart/signed` (RFC 1847), or a clear-signed PGP text.
    Signed,
    /// S/MIME or PGP (RFC 8551, RFC 3156).
    Encrypted,
    /// A calendar part with a method (RFC 6047).
    Invitation,
    /// A `multipart/report` (RFC 6522).
    Report,
}

/// What the administrator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// The format.
    pub format: Format,
    /// Whether the text beside an HTML body must arrive as well.
    pub keep_alternatives: bool,
    /// Whether drafts may be made: that Mail.ReadWrite is granted.
    pub large_messages: bool,
    /// The largest request, in octets.
    pub max_request: usize,
    /// The API. The Outlook REST API takes neither MIME nor uploads.
    pub api: Api,
}

impl Default for Wishes {
    fn default() -> Wishes {
        Wishes {
            format: Format::default(),
            keep_alternatives: false,
            large_messages: false,
            max_request: MAX_REQUEST_OCTETS,
            api: Api::default(),
        }
    }
}

impl Wishes {
    /// What the configuration says.
    pub fn of(tenant: &config::Tenant, delivery: &config::Delivery) -> Wishes {
        Wishes {
            format: delivery.format,
            keep_alternatives: delivery.keep_text_alternative,
            large_messages: tenant.large_messages,
            api: tenant.api,
            ..Wishes::default()
        }
    }
}

/// The form for a message of this nature. `outgrown` is the form that was chosen before and that the
/// message does not fit into; `None` at first. `None` in return: it cannot be sent.
pub fn plan(nature: Nature, wishes: Wishes, outgrown: Option<Form>) -> Option<(Form, Reason)> {
    use Nature::{Alternatives, Encrypted, Invitation, Ordinary, Report, Signed};

    let draft = |form| wishes.large_messages.then_some((form, Reason::TooLarge(nature)));
    if wishes.api == Api::OutlookV2 {
        // What a signature or an encryption covers stays whole in an enclosure.
        return match (outgrown, wishes.format, nature) {
            (None, Format::Json, _) => Some((Form::Json, Reason::Format)),
            (None, _, Signed | Encrypted) => Some((Form::Enclosed, Reason::NoMime(nature))),
            (None, _, Invitation | Report) => Some((Form::Json, Reason::NoMime(nature))),
            (None, _, Ordinary | Alternatives) => Some((Form::Json, Reason::Ordinary)),
            (Some(_), _, _) => None,
        };
    }
    match (outgrown, wishes.format, nature) {
        // The first choice.
        (None, Format::Json, _) => Some((Form::Json, Reason::Format)),
        (None, Format::Mime, _) => Some((Form::Mime, Reason::Format)),
        (None, Format::Auto, Ordinary) => Some((Form::Json, Reason::Ordinary)),
        (None, Format::Auto, Alternatives) if !wishes.keep_alternatives => {
            Some((Form::Json, Reason::Ordinary))
        }
        (None, Format::Auto, _) => Some((Form::Mime, Reason::Nature(nature))),
        // Too large as MIME. Less is lost as JSON than by not being sent, except where a signature
        // or an encryption would be: that stays whole in an enclosure.
        (Some(Form::Mime), Format::Json | Format::Auto | Format::Mime, Signed | Encrypted) => {
            draft(Form::Enclosed)
        }
        (Some(Form::Mime), _, Ordinary | Alternatives | Invitation | Report) => {
            Some((Form::Json, Reason::TooLarge(nature)))
        }
        // Too large as JSON.
        (Some(Form::Json), Format::Json, _) => draft(Form::Draft),
        (Some(Form::Json), _, Signed | Encrypted) => draft(Form::Enclosed),
        (Some(Form::Json), _, Ordinary | Alternatives | Invitation | Report) => draft(Form::Draft),
        // Larger than Exchange takes at all.
        (Some(Form::Draft | Form::Enclosed), _, _) => None,
    }
}

/// What kind of message it is. A message that is attached to it does not count.
pub fn nature(root: &Part<'_>) -> Nature {
    let type_of = |part: &Part<'_>| part.media_type().to_owned();
    match type_of(root).as_str() {
        "multipart/report" => return Nature::Report,
        // RFC 8551 §3.2; the signed ones among them are as unreadable as the encrypted ones.
        "application/pkcs7-mime" | "application/x-pkcs7-mime" => return Nature::Encrypted,
        "application/octet-stream" if root.file_name().is_some_and(|it| it.ends_with(".p7m")) => {
            return Nature::Encrypted;
        }
        _ => {}
    }
    let mut found = Nature::Ordinary;
    let mut parts = vec![(root, false)];
    while let Some((part, in_alternative)) = parts.pop() {
        match part.media_type() {
            "multipart/signed" => return Nature::Signed,
            "multipart/encrypted" => return Nature::Encrypted,
            "text/plain" if part.is_inline() && is_clear_signed(part.body()) => return Nature::Signed,
            "text/calendar"
                if part.is_inline() && (in_alternative || part.content_type.get("method").is_some()) =>
            {
                found = Nature::Invitation;
            }
            "multipart/alternative" if found == Nature::Ordinary && part.parts.len() > 1 => {
                found = Nature::Alternatives;
            }
            _ => {}
        }
        let in_alternative = in_alternative || part.media_type() == "multipart/alternative";
        parts.extend(part.parts.iter().map(|it| (it, in_alternative)));
    }
    found
}

/// RFC 9580 §7: the lines' octets are what is signed.
fn is_clear_signed(text: &[u8]) -> bool {
    let start = &text[..text.len().min(4096)];
    memchr::memmem::find(start, b"-----BEGIN PGP SIGNED MESSAGE-----").is_some()
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Form::Json => "json",
            Form::Mime => "mime",
            Form::Draft => "draft",
            Form::Enclosed => "enclosed",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Ordinary => f.write_str("ordinary"),
            Reason::Format => f.write_str("configured"),
            Reason::Nature(nature) => nature.fmt(f),
            Reason::NoMime(nature) => write!(f, "{nature}, and the API takes no MIME"),
            Reason::TooLarge(Nature::Ordinary) => f.write_str("too large for one request"),
            Reason::TooLarge(nature) => write!(f, "too large for one request ({nature})"),
        }
    }
}

impl fmt::Display for Nature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Nature::Ordinary => "ordinary",
            Nature::Alternatives => "with a text alternative",
            Nature::Signed => "signed",
            Nature::Encrypted => "encrypted",
            Nature::Invitation => "an invitation",
            Nature::Report => "a report",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        use Form::{Draft, Enclosed, Json, Mime};
        use Nature::{Alternatives, Encrypted, Invitation, Ordinary, Report, Signed};

        // The forms that are tried one after the other, as each is found too small; without drafts
        // the last two are not there.
        for (format, keep, nature, want) in [
            (Format::Auto, false, Ordinary, &[Json, Draft][..]),
            (Format::Auto, false, Alternatives, &[Json, Draft]),
            (Format::Auto, true, Ordinary, &[Json, Draft]),
            (Format::Auto, true, Alternatives, &[Mime, Json, Draft]),
            (Format::Auto, false, Invitation, &[Mime, Json, Draft]),
            (Format::Auto, false, Report, &[Mime, Json, Draft]),
            (Format::Auto, false, Signed, &[Mime, Enclosed]),
            (Format::Auto, false, Encrypted, &[Mime, Enclosed]),
            (Format::Json, true, Ordinary, &[Json, Draft]),
            (Format::Json, true, Alternatives, &[Json, Draft]),
            (Format::Json, false, Signed, &[Json, Draft]),
            (Format::Json, false, Invitation, &[Json, Draft]),
            (Format::Mime, false, Ordinary, &[Mime, Json, Draft]),
            (Format::Mime, false, Alternatives, &[Mime, Json, Draft]),
            (Format::Mime, false, Encrypted, &[Mime, Enclosed]),
        ] {
            for large_messages in [true, false] {
                let wishes = Wishes {
                    format,
                    keep_alternatives: keep,
                    large_messages,
                    ..Wishes::default()
                };
                let mut got = Vec::new();
                let mut outgrown = None;
                while let Some((form, _)) = plan(nature, wishes, outgrown) {
                    got.push(form);
                    outgrown = Some(form);
                }
                let want: Vec<Form> = want
                    .iter()
                    .copied()
                    .filter(|it| large_messages || !matches!(it, Draft | Enclosed))
                    .collect();
                assert_eq!(got, want, "{wishes:?} {nature:?}");
            }
        }
    }

    #[test]
    fn the_table_without_mime_and_drafts() {
        use Form::{Enclosed, Json};
        use Nature::{Alternatives, Encrypted, Invitation, Ordinary, Report, Signed};

        for (format, nature, want) in [
            (Format::Auto, Ordinary, (Json, Reason::Ordinary)),
            (Format::Auto, Alternatives, (Json, Reason::Ordinary)),
            (Format::Auto, Invitation, (Json, Reason::NoMime(Invitation))),
            (Format::Auto, Report, (Json, Reason::NoMime(Report))),
            (Format::Auto, Signed, (Enclosed, Reason::NoMime(Signed))),
            (Format::Auto, Encrypted, (Enclosed, Reason::NoMime(Encrypted))),
            (Format::Json, Signed, (Json, Reason::Format)),
            // The configuration does not let this come about.
            (Format::Mime, Signed, (Enclosed, Reason::NoMime(Signed))),
        ] {
            let wishes = Wishes {
                format,
                large_messages: true,
                api: Api::OutlookV2,
                ..Wishes::default()
            };
            assert_eq!(plan(nature, wishes, None), Some(want), "{format:?} {nature:?}");
            assert_eq!(plan(nature, wishes, Some(want.0)), None);
        }
    }

    #[test]
    fn natures() {
        for (message, want) in [
            ("Subject: x\r\n\r\ntext", Nature::Ordinary),
            ("no header", Nature::Ordinary),
            (
                "Content-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b\r\n\r\ny\r\n--b--",
                Nature::Signed,
            ),
            // A signed message within a mailing list's frame.
            (
                "Content-Type: multipart/mixed; boundary=a\r\n\r\n--a\r\n\
                 Content-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b\r\n\r\ny\r\n--b--\r\n--a--",
                Nature::Signed,
            ),
            (
                "Content-Type: multipart/encrypted; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b--",
                Nature::Encrypted,
            ),
            (
                "Content-Type: application/pkcs7-mime; smime-type=enveloped-data\r\n\r\nx",
                Nature::Encrypted,
            ),
            (
                "Content-Type: application/octet-stream; name=smime.p7m\r\n\r\nx",
                Nature::Encrypted,
            ),
            (
                "Subject: x\r\n\r\n-----BEGIN PGP SIGNED MESSAGE-----\r\nHash: SHA256\r\n",
                Nature::Signed,
            ),
            (
                "Content-Type: text/calendar; method=REQUEST\r\n\r\nx",
                Nature::Invitation,
            ),
            ("Content-Type: text/calendar\r\n\r\nx", Nature::Ordinary),
            (
                "Content-Type: text/calendar; method=REQUEST\r\nContent-Disposition: attachment\r\n\r\nx",
                Nature::Ordinary,
            ),
            (
                "Content-Type: multipart/alternative; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b\r\n\
                 Content-Type: text/calendar; name=a.ics\r\n\r\nx\r\n--b--",
                Nature::Invitation,
            ),
            (
                "Content-Type: multipart/alternative; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b\r\n\
                 Content-Type: text/html\r\n\r\nx\r\n--b--",
                Nature::Alternatives,
            ),
            (
                "Content-Type: multipart/alternative; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b--",
                Nature::Ordinary,
            ),
            (
                "Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b--",
                Nature::Report,
            ),
            // What a forwarded message is does not matter.
            (
                "Content-Type: message/rfc822\r\n\r\nContent-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\nx",
                Nature::Ordinary,
            ),
            // Without its boundary it is text.
            (
                "Content-Type: multipart/signed; boundary=b\r\n\r\nx",
                Nature::Ordinary,
            ),
        ] {
            assert_eq!(nature(&Part::parse(message.as_bytes())), want, "{message:?}");
        }
    }
}
