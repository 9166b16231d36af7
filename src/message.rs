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
        Head {
            from: section
                .all("from")
                .flat_map(|field| addresses::parse(field.value()))
                .map(|mailbox| mailbox.address)
                .collect(),
            message_id: section
                .all("message-id")
                .find_map(|field| message_id(field.value())),
            hops: section.all("received").count(),
        }
    }
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
