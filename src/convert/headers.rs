//! What the header fields say besides who sends and who receives, in Graph's terms.

use crate::graph::resource::{ExtendedProperty, Importance, MAX_HEADERS};
use crate::message;
use crate::message::fields::{Field, HeaderSection};
use crate::message::words;

/// Exchange keeps 255 characters of a subject
/// (<https://learn.microsoft.com/exchange/client-developer/web-service-reference/subject>).
const MAX_SUBJECT_CHARACTERS: usize = 255;

/// The longest value of an `x-` header that is sent on; a longer one is left out rather than cut.
const MAX_HEADER_VALUE_OCTETS: usize = 2000;

/// The most of References that is sent on.
const MAX_REFERENCES_OCTETS: usize = 8000;

/// The subject, at most as long as Exchange keeps it. `None` where there is no Subject field.
pub fn subject(header: &HeaderSection<'_>) -> Option<String> {
    let subject = words::decode(header.first("subject")?.value());
    // Exchange counts in UTF-16 units.
    if subject.encode_utf16().count() <= MAX_SUBJECT_CHARACTERS {
        return Some(subject);
    }
    let mut left = MAX_SUBJECT_CHARACTERS - 1;
    let mut cut: String = subject
        .chars()
        .take_while(|it| {
            let fits = left >= it.len_utf16();
            left = left.saturating_sub(it.len_utf16());
            fits
        })
        .collect();
    cut.push('…');
    Some(cut)
}

/// The importance, by whichever of the four fields for it says something (RFC 2156 §5.3.4 and .6, and
/// what mail programs made of it).
pub fn importance(header: &HeaderSection<'_>) -> Importance {
    let said = |name: &str| -> Option<Importance> {
        let value = words::decode(header.first(name)?.value()).to_lowercase();
        let word = value
            .split(|it: char| !it.is_alphanumeric() && it != '-')
            .next()?;
        match word {
            "high" | "urgent" | "1" | "2" | "highest" => Some(Importance::High),
            "low" | "non-urgent" | "4" | "5" | "lowest" => Some(Importance::Low),
            "normal" | "3" | "medium" => Some(Importance::Normal),
            _ => None,
        }
    };
    ["importance", "x-priority", "x-msmail-priority", "priority"]
        .into_iter()
        .find_map(said)
        .unwrap_or_default()
}

/// Whether the sender wants to know that it was read (RFC 8098 §2.1, and older names).
pub fn wants_read_receipt(header: &HeaderSection<'_>) -> bool {
    ["disposition-notification-to", "x-confirm-reading-to"]
        .into_iter()
        .any(|name| is_filled(header, name))
}

/// Whether the sender wants to know that it was delivered, in the way of old mail programs.
pub fn wants_delivery_receipt(header: &HeaderSection<'_>) -> bool {
    is_filled(header, "return-receipt-to")
}

fn is_filled(header: &HeaderSection<'_>, name: &str) -> bool {
    header.all(name).any(|it| !it.value().trim_ascii().is_empty())
}

/// What `message` has no property for, as MAPI properties
/// (<https://learn.microsoft.com/openspecs/exchange_server_protocols/ms-oxprops>).
pub fn properties(header: &HeaderSection<'_>) -> Vec<ExtendedProperty> {
    let mut properties = Vec::new();
    let ids = |name: &str| -> Vec<String> {
        header
            .all(name)
            .flat_map(|field| message::message_ids(field.value()))
            .map(|it| format!("<{it}>"))
            .collect()
    };
    // PidTagInReplyToId
    if let Some(id) = ids("in-reply-to").into_iter().next() {
        properties.push(ExtendedProperty {
            id: "String 0x1042",
            value: id,
        });
    }
    // PidTagInternetReferences. Of a thread that is too long the first and the last ones matter
    // (RFC 5322 §3.6.4, and RFC 5537 §3.4.4 on trimming).
    let references = ids("references");
    if let Some((first, rest)) = references.split_first() {
        let mut room = MAX_REFERENCES_OCTETS.saturating_sub(first.len());
        let kept = rest
            .iter()
            .rev()
            .take_while(|it| {
                let fits = room > it.len();
                room = room.saturating_sub(it.len() + 1);
                fits
            })
            .count();
        let mut value = first.clone();
        for id in &rest[rest.len() - kept..] {
            value.push(' ');
            value.push_str(id);
        }
        properties.push(ExtendedProperty {
            id: "String 0x1039",
            value,
        });
    }
    // PidTagSensitivity
    let sensitivity = header
        .first("sensitivity")
        .map(|it| words::decode(it.value()).to_lowercase());
    let value = match sensitivity.as_deref() {
        Some("personal") => Some("1"),
        Some("private") => Some("2"),
        Some("company-confidential" | "confidential") => Some("3"),
        _ => None,
    };
    if let Some(value) = value {
        properties.push(ExtendedProperty {
            id: "Integer 0x0036",
            value: value.to_owned(),
        });
    }
    properties.extend(internet_headers(header));
    properties
}

/// Header fields that Graph refuses as `internetMessageHeaders`, since their names do not begin with
/// `x-`, as named properties of the set PS_INTERNET_HEADERS
/// (<https://learn.microsoft.com/openspecs/exchange_server_protocols/ms-oxcmsg>): Exchange writes those
/// into the header. It is not documented that it does so for every recipient.
fn internet_headers(header: &HeaderSection<'_>) -> impl Iterator<Item = ExtendedProperty> {
    macro_rules! properties {
        ($($field:literal $name:literal,)*) => {
            [$(($field, concat!("String {00020386-0000-0000-C000-000000000046} Name ", $name)),)*]
        };
    }
    let named = properties! {
        "auto-submitted" "Auto-Submitted",
        "precedence" "Precedence",
        "list-id" "List-Id",
        "list-unsubscribe" "List-Unsubscribe",
        "list-unsubscribe-post" "List-Unsubscribe-Post",
        "list-help" "List-Help",
        "list-subscribe" "List-Subscribe",
        "list-post" "List-Post",
        "list-owner" "List-Owner",
        "list-archive" "List-Archive",
    };
    named.into_iter().filter_map(|(field, id)| {
        let value = words::decode(header.first(field)?.value());
        let fits = !value.is_empty() && value.len() <= MAX_HEADER_VALUE_OCTETS;
        fits.then_some(ExtendedProperty { id, value })
    })
}

/// The `x-` headers to send on: as many as Graph takes, the telling ones first.
pub fn x_headers(header: &HeaderSection<'_>) -> Vec<(String, String)> {
    let mut ranked: Vec<(Rank, &Field<'_>, String)> = Vec::new();
    for field in &header.fields {
        let name = field.name();
        let Some(rank) = rank(name) else { continue };
        // They become named properties, of which there is one of each name.
        if ranked.iter().any(|(_, it, _)| it.name() == name) || name.len() > 100 {
            continue;
        }
        let value = words::decode(field.value());
        if !value.is_empty() && value.len() <= MAX_HEADER_VALUE_OCTETS {
            ranked.push((rank, field, value));
        }
    }
    ranked.sort_by_key(|(rank, _, _)| *rank);
    ranked
        .into_iter()
        .take(MAX_HEADERS)
        .map(|(_, field, value)| {
            let name = String::from_utf8_lossy(field.written_name());
            (name.chars().filter(char::is_ascii_graphic).collect(), value)
        })
        .collect()
}

/// How much an `x-` header is worth sending on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// It changes what happens to the message.
    Acts,
    /// An application wrote it for another one.
    Application,
    /// It says what program wrote the message.
    Program,
}

/// The rank of an `x-` header; `None` for those that are not sent on.
fn rank(name: &str) -> Option<Rank> {
    let rest = name.strip_prefix("x-")?;
    // What receiving servers write for themselves, and Exchange removes from what it is given; what
    // has become a property already; what would disclose recipients or lie about the way here.
    let never = [
        "ms-",
        "microsoft-",
        "forefront-",
        "eop",
        "exchange-",
        "originatororg",
        "priority",
        "msmail-priority",
        "confirm-reading-to",
        "receiv",
        "rcpt",
        "envelope-",
        "bcc",
        "original-to",
        "original-rcpt",
        "delivered-to",
        "forwarded-",
        "sender",
        "uidl",
        "mozilla-",
        "gmail-",
        "google-",
        "gm-",
        "spam",
        "virus",
        "amavis",
        "barracuda",
        "proofpoint",
        "mimecast",
        "ironport",
        "authenticat",
        "auth-",
        "sid-",
        "dkim",
        "dmarc",
        "account-key",
        "apparently-to",
        "to-",
        "cc-",
    ];
    if rest.is_empty() || never.iter().any(|it| rest.starts_with(it)) {
        return None;
    }
    Some(match rest {
        "auto-response-suppress" | "loop" | "precedence" | "entity-ref-id" => Rank::Acts,
        "mailer"
        | "mimeole"
        | "mimetrack"
        | "face"
        | "originating-ip"
        | "originating-email"
        | "accept-language"
        | "newsreader"
        | "php-originating-script"
        | "php-script"
        | "source-ip"
        | "library" => Rank::Program,
        _ => Rank::Application,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &str) -> HeaderSection<'_> {
        HeaderSection::split(text.as_bytes())
    }

    #[test]
    fn subjects() {
        for (text, want) in [
            ("Subject: a\r\n b\r\n\r\n", Some("a b".to_owned())),
            ("Subject:\r\n\r\n", Some(String::new())),
            ("To: a\r\n\r\n", None),
            (
                "Subject: =?utf-8?q?a=0D=0ABcc:_x?=\r\n\r\n",
                Some("a Bcc: x".to_owned()),
            ),
        ] {
            assert_eq!(subject(&header(text)), want, "{text:?}");
        }
        let text = format!("Subject: {}\r\n\r\n", "\u{1f600}".repeat(300));
        let cut = subject(&header(&text)).expect("a subject");
        assert_eq!(cut.encode_utf16().count(), 255);
        assert!(cut.ends_with("\u{1f600}…"));
        let text = format!("Subject: {}\r\n\r\n", "a".repeat(255));
        assert_eq!(subject(&header(&text)).map(|it| it.len()), Some(255));
    }

    #[test]
    fn importance_by_any_name() {
        for (text, want) in [
            ("Importance: High\r\n", Importance::High),
            ("importance: low\r\n", Importance::Low),
            ("X-Priority: 1 (Highest)\r\n", Importance::High),
            ("X-Priority: 2\r\n", Importance::High),
            ("X-Priority: 3 (Normal)\r\n", Importance::Normal),
            ("X-Priority: 5\r\n", Importance::Low),
            ("X-MSMail-Priority: High\r\n", Importance::High),
            ("Priority: urgent\r\n", Importance::High),
            ("Priority: non-urgent\r\n", Importance::Low),
            ("X-Priority: 3\r\nImportance: high\r\n", Importance::High),
            ("X-Priority: what\r\nPriority: urgent\r\n", Importance::High),
            ("Subject: x\r\n", Importance::Normal),
            ("Importance:\r\n", Importance::Normal),
        ] {
            assert_eq!(importance(&header(&format!("{text}\r\n"))), want, "{text:?}");
        }
    }

    #[test]
    fn receipts() {
        assert!(wants_read_receipt(&header(
            "Disposition-Notification-To: a@b\r\n\r\n"
        )));
        assert!(!wants_read_receipt(&header(
            "Disposition-Notification-To:\r\n\r\n"
        )));
        assert!(wants_delivery_receipt(&header("Return-Receipt-To: a@b\r\n\r\n")));
        assert!(!wants_delivery_receipt(&header("Subject: x\r\n\r\n")));
    }

    #[test]
    fn threads_and_sensitivity() {
        let got = properties(&header(
            "In-Reply-To: <c@d> (Ann's message)\r\nReferences: <a@b>\r\n <c@d>\r\nSensitivity: Private\r\n\r\n",
        ));
        let got: Vec<_> = got.iter().map(|it| (it.id, it.value.as_str())).collect();
        assert_eq!(
            got,
            [
                ("String 0x1042", "<c@d>"),
                ("String 0x1039", "<a@b> <c@d>"),
                ("Integer 0x0036", "2")
            ]
        );
        assert!(
            properties(&header(
                "In-Reply-To: your mail of Monday\r\nSensitivity: x\r\n\r\n"
            ))
            .is_empty()
        );

        let ids: Vec<String> = (0..1000)
            .map(|it| format!("<{it}.{}@x>", "a".repeat(50)))
            .collect();
        let text = format!("References: {}\r\n\r\n", ids.join("\r\n "));
        let got = properties(&header(&text));
        let value = &got[0].value;
        assert!(value.len() <= MAX_REFERENCES_OCTETS + 100);
        assert!(value.starts_with("<0.") && value.ends_with(&ids[999]));
    }

    #[test]
    fn at_most_five_telling_headers() {
        let got = x_headers(&header(
            "X-Mailer: ERP 7\r\nX-Priority: 1\r\nX-Sender: junk\r\nX-One: 1\r\nX-Two: 2\r\n\
             X-Envelope-To: secret@x\r\nX-Three: 3\r\nx-one: again\r\nX-MS-Exchange-Organization-SCL: -1\r\n\
             X-Four: 4\r\nX-Auto-Response-Suppress: All\r\nX-Five: 5\r\nX-Empty:\r\n\r\n",
        ));
        let got: Vec<_> = got
            .iter()
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        assert_eq!(
            got,
            [
                "X-Auto-Response-Suppress: All",
                "X-One: 1",
                "X-Two: 2",
                "X-Three: 3",
                "X-Four: 4"
            ]
        );
        let got = x_headers(&header(
            "X-A: a\r\n =?utf-8?q?=0D=0AX-B:_c?=\r\nX-Mailer: ERP 7\r\n\r\n",
        ));
        assert_eq!(got[0], ("X-A".to_owned(), "a X-B: c".to_owned()));
        assert_eq!(got[1].1, "ERP 7");
    }
}
