//! A message taken apart into its MIME parts (RFC 2045, RFC 2046): which octets belong to which part.
//!
//! The structure is found here rather than by mail-parser, which decodes every part while it looks
//! for the next one, takes a boundary anywhere in a line for a delimiter, and needs time and stack in
//! proportion to the square and the depth of what an attacker nests.

use memchr::{memchr, memmem};

use crate::message::fields::HeaderSection;
use crate::message::parameters::Parameterized;
use crate::message::transfer::Encoding;
use crate::message::words;

/// How deep multiparts may be nested. A deeper one is not taken apart.
pub const MAX_DEPTH: usize = 30;

/// The most parts in one message. A multipart with which there would be more is not taken apart.
pub const MAX_PARTS: usize = 10_000;

/// A message or a body part.
#[derive(Clone, Debug)]
pub struct Part<'a> {
    /// The header section and the body.
    pub whole: &'a [u8],
    /// The header fields.
    pub header: HeaderSection<'a>,
    /// The Content-Type; `text/plain` where there is none (RFC 2045 §5.2).
    pub content_type: Parameterized,
    /// The Content-Disposition.
    pub disposition: Option<Parameterized>,
    /// The Content-Transfer-Encoding.
    pub encoding: Encoding,
    /// The parts of a multipart; empty for everything else.
    pub parts: Vec<Part<'a>>,
    /// Whether it is a multipart that was not taken apart, because of the limits above.
    pub closed: bool,
}

impl<'a> Part<'a> {
    /// Takes a message apart.
    pub fn parse(message: &'a [u8]) -> Part<'a> {
        let mut count = 0;
        Part::read(message, "text/plain", 0, &mut count)
    }

    fn read(whole: &'a [u8], default_type: &str, depth: usize, count: &mut usize) -> Part<'a> {
        let header = HeaderSection::split(whole);
        let mut content_type = header
            .first("content-type")
            .map(|it| Parameterized::parse(it.value()))
            .unwrap_or_default();
        if !content_type.value.contains('/') {
            // `Content-Type: text`, as in mail of the eighties, and rubbish.
            content_type.value = default_type.to_owned();
        }
        let encoding = header
            .first("content-transfer-encoding")
            .map(|it| Encoding::parse(it.value()))
            .unwrap_or_default();
        let mut part = Part {
            whole,
            disposition: header
                .first("content-disposition")
                .map(|it| Parameterized::parse(it.value())),
            header,
            content_type,
            encoding,
            parts: Vec::new(),
            closed: false,
        };
        if part.content_type.value.starts_with("multipart/") {
            part.take_apart(depth, count);
        }
        part
    }

    fn take_apart(&mut self, depth: usize, count: &mut usize) {
        let body = self.body();
        // RFC 2046 §5.1.1 lets a boundary not end with a space, and programs quote ones that do.
        let declared = self.content_type.octets("boundary").map(<[u8]>::trim_ascii_end);
        let mut pieces = Pieces::Absent;
        if let Some(boundary) = declared.filter(|it| !it.is_empty()) {
            pieces = split(body, boundary, MAX_PARTS.saturating_sub(*count));
        }
        // A multipart without its boundary: what looks like one may be it.
        if let Pieces::Absent = pieces
            && let Some(boundary) = likely_boundary(body)
        {
            pieces = split(body, boundary, MAX_PARTS.saturating_sub(*count));
        }
        match pieces {
            Pieces::Absent => {
                // Nothing to take apart: it is text, whatever it says.
                self.content_type.value = "text/plain".to_owned();
            }
            _ if depth == MAX_DEPTH => self.closed = true,
            Pieces::TooMany => self.closed = true,
            Pieces::Found(pieces) => {
                *count += pieces.len();
                let default_type = match self.content_type.value.as_str() {
                    // RFC 2046 §5.1.5.
                    "multipart/digest" => "message/rfc822",
                    _ => "text/plain",
                };
                self.parts = pieces
                    .into_iter()
                    .map(|piece| Part::read(piece, default_type, depth + 1, count))
                    .collect();
            }
        }
    }

    /// What follows the header section, as it stands.
    pub fn body(&self) -> &'a [u8] {
        &self.whole[self.header.body..]
    }

    /// Whether it is a multipart with its parts.
    pub fn is_multipart(&self) -> bool {
        !self.parts.is_empty()
    }

    /// The type, such as `text/html`, in lower case.
    pub fn media_type(&self) -> &str {
        &self.content_type.value
    }

    /// The file name, by Content-Disposition or else by Content-Type.
    pub fn file_name(&self) -> Option<&str> {
        let disposition = self.disposition.as_ref();
        disposition
            .and_then(|it| it.get("filename"))
            .or_else(|| self.content_type.get("name"))
            // Some write `name` where `filename` belongs.
            .or_else(|| disposition.and_then(|it| it.get("name")))
            .filter(|it| !it.is_empty())
    }

    /// The Content-ID without angle brackets.
    pub fn content_id(&self) -> Option<String> {
        let value = words::decode(self.header.first("content-id")?.value());
        let id = value.trim_matches(|it: char| it.is_whitespace() || matches!(it, '<' | '>'));
        (!id.is_empty()).then(|| id.to_owned())
    }

    /// Whether it is to be shown with the text, rather than attached. A disposition that nobody knows
    /// means attachment (RFC 2183 §2.8); a file name written in its place is one of those.
    pub fn is_inline(&self) -> bool {
        self.disposition
            .as_ref()
            .is_none_or(|it| matches!(it.value.as_str(), "inline" | ""))
    }
}

enum Pieces<'a> {
    /// No delimiter is there.
    Absent,
    TooMany,
    Found(Vec<&'a [u8]>),
}

/// What stands between the delimiters (RFC 2046 §5.1.1). The line ending before a delimiter belongs to
/// it. Without a closing one the last piece goes to the end.
fn split<'a>(body: &'a [u8], boundary: &[u8], most: usize) -> Pieces<'a> {
    let dashed = [b"--", boundary].concat();
    let finder = memmem::Finder::new(&dashed);
    let mut pieces = Vec::new();
    let mut start = None;
    let mut from = 0;
    while let Some(found) = finder.find(&body[from..]) {
        let at = from + found;
        from = at + dashed.len();
        if at > 0 && !matches!(body[at - 1], b'\n' | b'\r') {
            continue;
        }
        let (closing, rest) = match body[from..].strip_prefix(b"--") {
            Some(rest) => (true, rest),
            None => (false, &body[from..]),
        };
        // Only padding may follow: --a is not a delimiter where --ab is one. After the closing one
        // programs write what they like.
        let padding = rest.iter().take_while(|it| matches!(it, b' ' | b'\t')).count();
        let ends = matches!(rest.get(padding), None | Some(b'\r' | b'\n'));
        if !(ends || closing && start.is_some()) {
            continue;
        }
        if let Some(start) = start {
            if pieces.len() == most {
                return Pieces::TooMany;
            }
            pieces.push(&body[start..before_line_ending(body, start, at)]);
        }
        if closing {
            start = None;
            break;
        }
        let line = body.len() - rest.len() + padding;
        from = after_line_ending(body, line);
        start = Some(from);
    }
    if let Some(start) = start {
        if pieces.len() == most {
            return Pieces::TooMany;
        }
        // A delimiter at the very end begins nothing.
        if !body[start..].trim_ascii().is_empty() || pieces.is_empty() {
            pieces.push(&body[start..]);
        }
    }
    if pieces.is_empty() {
        return Pieces::Absent;
    }
    Pieces::Found(pieces)
}

fn before_line_ending(body: &[u8], start: usize, at: usize) -> usize {
    let line = &body[start..at];
    let line = match line.strip_suffix(b"\n") {
        Some(line) => line.strip_suffix(b"\r").unwrap_or(line),
        None => line.strip_suffix(b"\r").unwrap_or(line),
    };
    start + line.len()
}

fn after_line_ending(body: &[u8], at: usize) -> usize {
    match &body[at..] {
        [b'\r', b'\n', ..] => at + 2,
        [b'\r' | b'\n', ..] => at + 1,
        _ => at,
    }
}

/// The first line that begins like a delimiter, if another one closes it.
fn likely_boundary(body: &[u8]) -> Option<&[u8]> {
    let mut rest = body;
    for _ in 0..100 {
        let end = memchr(b'\n', rest).unwrap_or(rest.len());
        let line = rest[..end].trim_ascii_end();
        if let Some(boundary) = line.strip_prefix(b"--")
            && (2..=100).contains(&boundary.len())
            && !boundary.contains(&b' ')
        {
            let closing = [b"\n--", boundary, b"--"].concat();
            return memmem::find(rest, &closing).map(|_| boundary);
        }
        rest = rest.get(end + 1..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outline(part: &Part<'_>) -> String {
        let inner: Vec<String> = part.parts.iter().map(outline).collect();
        match part.closed {
            true => format!("{}!", part.media_type()),
            false if part.is_multipart() => format!("{}({})", part.media_type(), inner.join(" ")),
            false => String::from_utf8_lossy(part.body()).replace("\r\n", "/"),
        }
    }

    fn check(message: &str, want: &str) {
        assert_eq!(outline(&Part::parse(message.as_bytes())), want, "{message:?}");
        let lf = message.replace("\r\n", "\n");
        let got = outline(&Part::parse(lf.as_bytes())).replace('\n', "/");
        assert_eq!(got, want, "{lf:?}");
    }

    #[test]
    fn finds_the_parts() {
        let head = "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=\"b\"\r\n\r\n";
        for (body, want) in [
            (
                "--b\r\n\r\none\r\n--b\r\n\r\ntwo\r\n--b--\r\n",
                "multipart/mixed(one two)",
            ),
            (
                "preamble\r\n--b\r\n\r\none\r\n--b--\r\nepilogue",
                "multipart/mixed(one)",
            ),
            // Padding after the boundary, and rubbish after the last one.
            ("--b \t\r\n\r\none\r\n--b--xyz\r\n", "multipart/mixed(one)"),
            // No closing delimiter.
            (
                "--b\r\n\r\none\r\n--b\r\n\r\ntwo\r\n",
                "multipart/mixed(one two/)",
            ),
            ("--b\r\n\r\none\r\n--b", "multipart/mixed(one)"),
            ("--b\r\n\r\none\r\n--b\r\n", "multipart/mixed(one)"),
            // The line ending before a delimiter belongs to it, the one before that does not.
            ("--b\r\n\r\none\r\n\r\n--b--", "multipart/mixed(one/)"),
            ("--b\r\n\r\n\r\n--b\r\n\r\n--b--", "multipart/mixed( )"),
            ("--b\r\n--b--", "multipart/mixed()"),
            // A boundary that is only the beginning of something, or not at the beginning of a line.
            (
                "--b\r\n\r\n--bc\r\nsee --b\r\n--b--",
                "multipart/mixed(--bc/see --b)",
            ),
            // No header and no empty line.
            ("--b\r\none\r\n--b--", "multipart/mixed(one)"),
            ("--b\r\nNote: one\r\n--b--", "multipart/mixed(Note: one)"),
            // No delimiter at all: text.
            ("one\r\ntwo", "one/two"),
            ("", ""),
            ("--b--\r\n", "--b--/"),
        ] {
            check(&format!("{head}{body}"), want);
        }
    }

    #[test]
    fn finds_nested_parts_and_forgotten_boundaries() {
        check(
            "Content-Type: multipart/mixed; boundary=a\r\n\r\n\
             --a\r\nContent-Type: multipart/alternative; boundary=ab\r\n\r\n\
             --ab\r\n\r\none\r\n--ab\r\n\r\ntwo\r\n\
             --a\r\n\r\nthree\r\n--a--\r\n",
            "multipart/mixed(multipart/alternative(one two) three)",
        );
        check(
            "Content-Type: multipart/mixed\r\n\r\n--x.y\r\n\r\none\r\n--x.y--\r\n",
            "multipart/mixed(one)",
        );
        check(
            "Content-Type: multipart/mixed; boundary=z\r\n\r\n--x\r\nno\r\n",
            "--x/no/",
        );
        check(
            "Content-Type: multipart/digest; boundary=a\r\n\r\n--a\r\n\r\nSubject: x\r\n\r\none\r\n--a--",
            "multipart/digest(Subject: x//one)",
        );
    }

    #[test]
    fn reads_what_a_part_says_of_itself() {
        let part = Part::parse(
            b"Content-Type: IMAGE/png; name=\"a.png\"\r\nContent-Transfer-Encoding: BASE64 \r\n\
              Content-ID: <logo@x>\r\nContent-Disposition: scan.png; filename=\"b.png\"\r\n\r\n",
        );
        assert_eq!(part.media_type(), "image/png");
        assert_eq!(part.encoding, Encoding::Base64);
        assert_eq!(part.content_id().as_deref(), Some("logo@x"));
        assert_eq!(part.file_name(), Some("b.png"));
        assert!(!part.is_inline());
        assert_eq!(
            Part::parse(b"Content-Type: text\r\n\r\n").media_type(),
            "text/plain"
        );
    }

    /// Bombs cost little, and nothing of them is lost: what is not taken apart stays whole.
    #[test]
    fn bombs_are_not_taken_apart() {
        // Nested a thousand times.
        let mut message = String::new();
        for level in 0..1000 {
            message += &format!("Content-Type: multipart/mixed; boundary=b{level}\r\n\r\n--b{level}\r\n");
        }
        let mut part = &Part::parse(message.as_bytes());
        let mut depth = 0;
        while let [inner] = &part.parts[..] {
            part = inner;
            depth += 1;
        }
        assert!(part.closed && depth == MAX_DEPTH);

        // A million parts, empty ones and ones that begin a multipart which never comes.
        for piece in [
            "--b\r\n\r\n",
            "--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n",
        ] {
            let message = format!(
                "Content-Type: multipart/mixed; boundary=b\r\n\r\n{}",
                piece.repeat(1_000_000)
            );
            assert!(Part::parse(message.as_bytes()).closed);
        }

        // As many as are taken apart, and one more.
        for (count, closed) in [(MAX_PARTS, false), (MAX_PARTS + 1, true)] {
            let message = format!(
                "Content-Type: multipart/mixed; boundary=b\r\n\r\n{}--b--",
                "--b\r\n\r\n".repeat(count)
            );
            let part = Part::parse(message.as_bytes());
            assert_eq!(
                (part.closed, part.parts.len()),
                (closed, if closed { 0 } else { count })
            );
        }
    }
}
