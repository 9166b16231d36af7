//! The header section of a message (RFC 5322 §2.2): what the policy and the log need of it, and the
//! field grammars that the conversion needs too. Pure.
//!
//! Policy and conversion read the header with the same functions, so that what was permitted is what
//! is sent.

pub mod addresses;
pub mod charset;
pub mod content;
pub mod fields;
pub mod parameters;
pub mod transfer;
pub mod words;

use memchr::memchr;

use crate::address::Address;
use fields::HeaderSection;

/// The largest header section that is looked at, in octets. A larger one is refused: the policy
/// must see every From field.
pub const MAX_HEADER_OCTETS: usize = 256 * 1024;

/// The longest Message-ID that is kept. RFC 5322 §2.1.1 lets no line be longer.
const MAX_MESSAGE_ID_OCTETS: usize = 998;

/// What the header section says, as far as accepting the message depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Every address of every From field.
    pub from: Vec<Address>,
    /// Every address of the other fields that say who sends, with the field's name: Sender,
    /// Resent-From and Resent-Sender (RFC 5322 §3.6.2, §3.6.6).
    pub senders: Vec<(&'static str, Address)>,
    /// There is a From field with something in it, and no address that could be read.
    pub from_unreadable: bool,
    /// The address that a From field shows as a name, where that is another one than it has.
    pub shown_as: Option<String>,
    /// The Message-ID without angle brackets, if there is a usable one.
    pub message_id: Option<String>,
    /// How many Received fields there are, to stop loops (RFC 5321 §6.3).
    pub hops: usize,
}

impl Head {
    /// Reads the header section at the beginning of `content`.
    pub fn read(content: &[u8]) -> Head {
        Head::of(&HeaderSection::split(content))
    }

    /// Picks what the policy needs out of a header section.
    pub fn of(section: &HeaderSection<'_>) -> Head {
        let mut head = Head {
            message_id: section
                .all("message-id")
                .find_map(|field| message_id(field.value())),
            hops: section.all("received").count(),
            ..Head::default()
        };
        for field in section.all("from") {
            let mailboxes = addresses::parse(field.value());
            head.from_unreadable |= mailboxes.is_empty() && says_something(field.value());
            for mailbox in mailboxes {
                head.shown_as = head.shown_as.or_else(|| shown_as(&mailbox));
                head.from.push(mailbox.address);
            }
        }
        for (name, field_name) in [
            ("Sender", "sender"),
            ("Resent-From", "resent-from"),
            ("Resent-Sender", "resent-sender"),
        ] {
            let mailboxes = section
                .all(field_name)
                .flat_map(|field| addresses::parse(field.value()));
            head.senders
                .extend(mailboxes.map(|mailbox| (name, mailbox.address)));
        }
        head
    }
}

/// Whether a value is more than blanks and empty brackets, which devices without a name write.
fn says_something(value: &[u8]) -> bool {
    value
        .iter()
        .any(|it| !it.is_ascii_whitespace() && !matches!(it, b'<' | b'>' | b'"' | b',' | b';'))
}

/// The address in a display name, where it is not the mailbox's own: what a reader takes for the
/// sender, and is not.
fn shown_as(mailbox: &addresses::Mailbox) -> Option<String> {
    mailbox
        .name
        .as_deref()?
        .split(|c: char| {
            c.is_whitespace() || matches!(c, '<' | '>' | '(' | ')' | '[' | ']' | '"' | '\'' | ',' | ';')
        })
        .filter_map(|word| Address::parse(word).ok())
        .find(|it| it.domain().is_some_and(|domain| domain.contains('.')) && *it != mailbox.address)
        .map(|it| it.to_string())
}

/// The first usable message identifier in a field's value, without angle brackets (RFC 5322 §3.6.4).
pub fn message_id(value: &[u8]) -> Option<String> {
    message_ids(value).next()
}

/// Every usable message identifier in a field's value, without angle brackets: of `<a@b> <c@d>`, and
/// leniently of `a@b c@d`.
pub fn message_ids(value: &[u8]) -> impl Iterator<Item = String> {
    let mut rest = value;
    std::iter::from_fn(move || {
        loop {
            let skip = rest
                .iter()
                .position(|it| !it.is_ascii_whitespace() && *it != b',')?;
            rest = &rest[skip..];
            let (id, after) = if rest[0] == b'<' {
                let end = memchr(b'>', rest).unwrap_or(rest.len());
                (&rest[1..end], &rest[(end + 1).min(rest.len())..])
            } else {
                let end = rest
                    .iter()
                    .position(|it| it.is_ascii_whitespace() || matches!(it, b'<' | b','))
                    .unwrap_or(rest.len());
                (&rest[..end], &rest[end..])
            };
            rest = after;
            // Folding inside an identifier is obsolete syntax, and some libraries do it to long ones.
            let id: Vec<u8> = id
                .iter()
                .copied()
                .filter(|it| !it.is_ascii_whitespace())
                .collect();
            let sound = !id.is_empty()
                && id.len() <= MAX_MESSAGE_ID_OCTETS
                && id.contains(&b'@')
                && id
                    .iter()
                    .all(|it| it.is_ascii_graphic() && !matches!(it, b'<' | b'>'));
            if sound {
                return String::from_utf8(id).ok();
            }
        }
    })
}

/// Collects the header section while the message streams past, up to [`MAX_HEADER_OCTETS`].
#[derive(Debug, Default)]
pub struct HeadCollector {
    collected: Vec<u8>,
    /// Where the line begins whose end has not been seen yet.
    line: usize,
    /// The empty line after the header section has been seen.
    ended: bool,
    /// There was more than fits before the empty line.
    overflowed: bool,
}

impl HeadCollector {
    /// Takes the next octets of the message; those after the header section are ignored.
    pub fn push(&mut self, content: &[u8]) {
        if self.ended || self.overflowed {
            return;
        }
        let room = MAX_HEADER_OCTETS - self.collected.len();
        let taken = &content[..content.len().min(room)];
        let from = self.collected.len();
        self.collected.extend_from_slice(taken);
        for at in memchr::memchr_iter(b'\n', taken) {
            let end = from + at;
            if self.collected[self.line..end].iter().all(|it| *it == b'\r') {
                self.ended = true;
                self.collected.truncate(end + 1);
                return;
            }
            self.line = end + 1;
        }
        self.overflowed = taken.len() < content.len();
    }

    /// Reads what was collected. `None` when the header section is larger than
    /// [`MAX_HEADER_OCTETS`].
    pub fn finish(self) -> Option<Head> {
        let section = HeaderSection::split(&self.collected);
        // A body without any header is as large as it likes: its first line shows that it is one.
        (!self.overflowed || section.ended).then(|| Head::of(&section))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(content: &[u8], piece: usize) -> Option<Head> {
        let mut collector = HeadCollector::default();
        for piece in content.chunks(piece.max(1)) {
            collector.push(piece);
        }
        collector.finish()
    }

    fn from(content: &str) -> Vec<String> {
        let head = collect(content.as_bytes(), usize::MAX).expect("a small header");
        assert_eq!(
            Some(&head),
            collect(content.as_bytes(), 1).as_ref(),
            "{content:?}"
        );
        assert_eq!(head, Head::read(content.as_bytes()), "{content:?}");
        head.from.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn reports_every_from_that_anyone_might_see() {
        for (content, want) in [
            ("From: a@b\r\n\r\nbody", &["a@b"][..]),
            ("from:a@b\r\n\r\n", &["a@b"]),
            ("FROM :a@b\r\n\r\n", &["a@b"]),
            ("From\t: a@b\r\n\r\n", &["a@b"]),
            // Two fields, and several addresses in one.
            (
                "From: a@b\r\nSubject: x\r\nFrom: c@d, E <e@f>\r\n\r\n",
                &["a@b", "c@d", "e@f"],
            ),
            // Line endings that one server takes for a line ending and another does not.
            ("Subject: x\nFrom: a@b\n\nFrom: body@x", &["a@b"]),
            ("Subject: x\rFrom: a@b\r\nTo: y@z\r\n\r\n", &["a@b"]),
            ("Subject: x\r\rFrom: a@b\r\n\r\n", &["a@b"]),
            ("Subject: x\r\r\nFrom: a@b\r\r\n\r\r\nFrom: body@x", &["a@b"]),
            ("Subject: x\rFrom: a@b\r\rbody", &["a@b"]),
            // A line of white space continues the field; it is not the end of the header.
            ("Subject: x\r\n \r\nFrom: a@b\r\n\r\n", &["a@b"]),
            ("Subject: x\r\n\t\r\nFrom: a@b\r\n\r\n", &["a@b"]),
            // Something in the name that a reader might overlook.
            ("From\0: a@b\r\n\r\n", &["a@b"]),
            ("Subject: x\r\nF rom: a@b\r\n\r\n", &["a@b"]),
            ("Subject: x\r\nFrom\u{200b}: a@b\r\n\r\n", &["a@b"]),
            ("\u{feff}From: a@b\r\n\r\n", &["a@b"]),
            (" From: a@b\r\nSubject: x\r\n\r\n", &["a@b"]),
            // After a line that is no field.
            ("Subject: x\r\nrubbish\r\nFrom: a@b\r\n\r\n", &["a@b"]),
            ("From a@b Mon Jan  1 10:00:00 2024\r\nFrom: c@d\r\n\r\n", &["c@d"]),
            ("From:\r\n a@b\r\n\r\n", &["a@b"]),
            ("From:\r\n\r\n", &[]),
            // No header at all.
            ("just a line of text\r\nFrom: a@b\r\n\r\n", &[]),
            ("\r\nFrom: a@b\r\n", &[]),
            ("", &[]),
            ("Attention: pump 3\r\nhas failed\r\n", &[]),
            // Not a From field.
            ("Subject: x\r\n From: a@b\r\n\r\n", &[]),
            ("Sender: a@b\r\nX-From: c@d\r\nResent-From: e@f\r\n\r\n", &[]),
            ("Subject: x\r\n\r\nFrom: a@b\r\n", &[]),
        ] {
            assert_eq!(from(content), want, "{content:?}");
        }
    }

    #[test]
    fn reports_the_other_fields_that_say_who_sends() {
        let head = Head::read(
            b"From: a@b\r\nSender: S <s@b>\r\nResent-From: r@b, q@b\r\nRESENT-SENDER:t@b\r\nX-Sender: x@b\r\n\r\n",
        );
        let senders: Vec<_> = head
            .senders
            .iter()
            .map(|(name, address)| (*name, address.as_str()))
            .collect();
        let want = [
            ("Sender", "s@b"),
            ("Resent-From", "r@b"),
            ("Resent-From", "q@b"),
            ("Resent-Sender", "t@b"),
        ];
        assert_eq!(senders, want);
        // A reader that overlooks what is odd in the name would see it.
        let head = Head::read(b"From: a@b\r\nResent-From\0: r@b\r\nResent- Sender: t@b\r\n\r\n");
        assert_eq!(head.senders.len(), 2);
    }

    #[test]
    fn tells_a_from_that_cannot_be_read_from_one_that_says_nothing() {
        for (value, want) in [
            ("", false),
            (" \r\n ", false),
            ("<>", false),
            ("\"\" <>", false),
            ("a@b", false),
            ("a b c <", true),
            ("@@@", true),
        ] {
            let head = Head::read(format!("From: {value}\r\n\r\n").as_bytes());
            assert_eq!(head.from_unreadable, want, "{value:?} {:?}", head.from);
        }
    }

    #[test]
    fn notices_a_name_that_is_another_address() {
        for (value, want) in [
            ("a@b.example", None),
            ("A B <a@b.example>", None),
            ("a@b.example <a@b.example>", None),
            ("\"A@B.example\" <a@b.example>", None),
            ("\"boss@b.example\" <a@b.example>", Some("boss@b.example")),
            ("The Boss (boss@b.example) <a@b.example>", None),
            ("\"Boss <boss@b.example>\" <a@b.example>", Some("boss@b.example")),
            (
                "=?utf-8?q?boss=40b=2Eexample?= <a@b.example>",
                Some("boss@b.example"),
            ),
            ("Sales @ Contoso <a@b.example>", None),
        ] {
            let head = Head::read(format!("From: {value}\r\n\r\n").as_bytes());
            assert_eq!(head.shown_as.as_deref(), want, "{value:?}");
        }
    }

    #[test]
    fn counts_hops_and_finds_the_message_id() {
        let head = Head::read(
            b"Received: from a\r\n by b; now\r\nreceived: x\r\nMessage-ID:\r\n <1@x.example> (comment)\r\n\r\n",
        );
        assert_eq!((head.hops, head.message_id.as_deref()), (2, Some("1@x.example")));

        for (value, want) in [
            (" <a@b>", Some("a@b")),
            ("a@b", Some("a@b")),
            ("<a@b", Some("a@b")),
            ("<a\r\n @b>", Some("a@b")),
            ("<>", None),
            ("", None),
            ("<no-at>", None),
            ("<a@b\u{7f}>", None),
            ("<ä@b>", None),
            ("<no-at> <c@d>", Some("c@d")),
        ] {
            assert_eq!(message_id(value.as_bytes()).as_deref(), want, "{value:?}");
        }
        assert_eq!(message_id(format!("<{}@x>", "a".repeat(1000)).as_bytes()), None);
        let all: Vec<_> = message_ids(b"<a@b>\r\n <c@d>,e@f").collect();
        assert_eq!(all, ["a@b", "c@d", "e@f"]);
    }

    #[test]
    fn refuses_a_header_it_cannot_see_the_end_of() {
        let mut long = b"From: a@b\r\n".to_vec();
        long.extend(b"X-A: b\r\n".repeat(MAX_HEADER_OCTETS / 8));
        long.extend(b"From: c@d\r\n\r\nbody");
        assert_eq!(collect(&long, 1000), None);

        // The body may be as long as it likes, with and without a header before it.
        let mut body = b"From: a@b\r\n\r\n".to_vec();
        body.extend(b"line of text\r\n".repeat(MAX_HEADER_OCTETS / 8));
        assert_eq!(collect(&body, 1000).map(|it| it.from.len()), Some(1));
        assert_eq!(collect(&body[13..], 1000), Some(Head::default()));
    }

    #[test]
    fn keeps_little_of_a_long_message() {
        let mut collector = HeadCollector::default();
        collector.push(b"From: a@b\r\n\r");
        collector.push(b"\nbody");
        for _ in 0..100 {
            collector.push(&[b'x'; 10_000]);
        }
        assert!(collector.collected.capacity() < 1000);
        assert_eq!(collector.finish().map(|it| it.from.len()), Some(1));
    }
}
