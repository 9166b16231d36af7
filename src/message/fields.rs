//! A header section taken apart into its fields (RFC 5322 §2.2, and §4 for what used to be allowed).
//!
//! Lenient, because devices are sloppy, and suspicious, because what one reader overlooks another may
//! obey: whatever could pass for a field is one.

use mail_parser::HeaderName;
use memchr::{memchr, memchr2};

use super::MAX_HEADER_OCTETS;

/// The longest field name that is taken for one.
const MAX_NAME_OCTETS: usize = 256;

/// One header field, as it stands in the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// The name in lower case, without what does not belong into a name.
    name: String,
    /// The field with its folding, without the line ending after it.
    raw: &'a [u8],
    /// Where it begins in the message.
    start: usize,
    /// Where the value begins in `raw`.
    value: usize,
}

impl<'a> Field<'a> {
    /// The name in lower case.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name as it is written.
    pub fn written_name(&self) -> &'a [u8] {
        self.raw[..self.value - 1].trim_ascii()
    }

    /// What follows the colon, still folded.
    pub fn value(&self) -> &'a [u8] {
        &self.raw[self.value..]
    }

    /// The lines of the field without their line endings.
    pub fn lines(&self) -> impl Iterator<Item = &'a [u8]> {
        self.raw
            .split(|it| matches!(it, b'\r' | b'\n'))
            .filter(|it| !it.is_empty())
    }
}

/// The fields of a header section, and where the body begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderSection<'a> {
    /// The fields in their order.
    pub fields: Vec<Field<'a>>,
    /// Where the body begins.
    pub body: usize,
    /// Whether the end of the section was seen: an empty line, a line that can only be body, or the
    /// end of a message shorter than [`MAX_HEADER_OCTETS`].
    pub ended: bool,
}

impl<'a> HeaderSection<'a> {
    /// Takes the header section at the beginning of `content` apart.
    ///
    /// Where there is none, as in mail typed into telnet, there are no fields and all is body.
    pub fn split(content: &'a [u8]) -> HeaderSection<'a> {
        let window = &content[..content.len().min(MAX_HEADER_OCTETS)];
        let mut reader = Reader {
            window,
            cr_only: memchr(b'\n', window).is_none(),
            last_known: None,
        };
        let mut fields: Vec<Field<'a>> = Vec::new();
        // Windows programs begin a file with a byte order mark, and then mail the file.
        let mut at = if window.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        let mut first = true;
        let all_body = HeaderSection {
            ended: true,
            ..HeaderSection::default()
        };
        let ended = loop {
            let Some(line) = reader.line(at) else {
                break content.len() < MAX_HEADER_OCTETS;
            };
            if line.is_end(&reader) {
                at = line.next;
                break true;
            }
            let text = &window[line.start..line.end];
            // A run of bare CR is no line, and neither does it end the section.
            if text.is_empty() {
                at = line.next;
                continue;
            }
            let folded = matches!(text[0], b' ' | b'\t');
            match (fields.last_mut(), name(text.trim_ascii_start())) {
                (Some(field), _) if folded => field.raw = &window[field.start..line.end],
                (_, Some((name, colon))) => {
                    let start = line.start + (text.len() - text.trim_ascii_start().len());
                    fields.push(Field {
                        name,
                        raw: &window[start..line.end],
                        start,
                        value: colon + 1,
                    });
                }
                // What mbox files have between messages.
                (None, None) if first && (text.starts_with(b"From ") || text.starts_with(b">From ")) => {}
                (None, None) => return all_body,
                // A line that is no field: if fields that everyone knows follow, it is rubbish among
                // them (or a continuation that lost its indent), or else the empty line is missing.
                (Some(field), None) => {
                    if reader.known_field_after(line.start) {
                        field.raw = &window[field.start..line.end];
                    } else {
                        break true;
                    }
                }
            }
            first = false;
            at = line.next;
        };
        // "Attention: pump 3 has failed" is a line of text with a colon in it.
        if !fields.iter().any(|it| is_known(&it.name)) && !fields.is_empty() {
            return all_body;
        }
        HeaderSection {
            fields,
            body: at,
            ended,
        }
    }

    /// The fields of this name (in lower case).
    pub fn all<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s Field<'a>> {
        self.fields.iter().filter(move |it| it.name == name)
    }

    /// The first field of this name (in lower case).
    pub fn first(&self, name: &str) -> Option<&Field<'a>> {
        self.fields.iter().find(|it| it.name == name)
    }
}

struct Reader<'a> {
    window: &'a [u8],
    /// There is no LF at all, so that CR must be the line ending.
    cr_only: bool,
    /// Where the last field with a known name begins; looked up once, when it is needed.
    last_known: Option<usize>,
}

struct Line {
    start: usize,
    /// Where the line ending begins.
    end: usize,
    /// Where the next line begins.
    next: usize,
    /// Whether the line ends with LF.
    lf: bool,
}

impl Line {
    /// Whether this is the empty line after the header section. One that only a reader of bare CR
    /// sees is not: what follows might be a field for everyone else.
    fn is_end(&self, reader: &Reader<'_>) -> bool {
        self.start == self.end && (self.lf || reader.cr_only)
    }
}

impl Reader<'_> {
    /// The line that begins at `start`. It ends with CRLF, LF, CR CR LF (some devices) or a bare CR.
    fn line(&self, start: usize) -> Option<Line> {
        let rest = &self.window[start..];
        if rest.is_empty() {
            return None;
        }
        let Some(length) = memchr2(b'\r', b'\n', rest) else {
            return Some(Line {
                start,
                end: self.window.len(),
                next: self.window.len(),
                lf: false,
            });
        };
        let end = start + length;
        let returns = self.window[end..].iter().take_while(|it| **it == b'\r').count();
        let lf = self.window.get(end + returns) == Some(&b'\n');
        let next = if lf { end + returns + 1 } else { end + 1 };
        Some(Line { start, end, next, lf })
    }

    /// Whether a field with a known name begins after `at`, before the section ends.
    fn known_field_after(&mut self, at: usize) -> bool {
        let last = self.last_known.unwrap_or_else(|| {
            let (mut last, mut next) = (0, at);
            while let Some(line) = self.line(next) {
                if line.is_end(self) {
                    break;
                }
                if name(&self.window[line.start..line.end]).is_some_and(|(name, _)| is_known(&name)) {
                    last = line.start;
                }
                next = line.next;
            }
            last
        });
        self.last_known = Some(last);
        last > at
    }
}

/// The field name that a line begins with, in lower case, and where its colon stands.
fn name(line: &[u8]) -> Option<(String, usize)> {
    let colon = memchr(b':', &line[..line.len().min(MAX_NAME_OCTETS)])?;
    let written = line[..colon].trim_ascii();
    let name: String = written
        .iter()
        .filter(|it| it.is_ascii_graphic())
        .map(|it| char::from(it.to_ascii_lowercase()))
        .collect();
    // RFC 5322 §3.6.8 wants printable US-ASCII. Something else in a name that says who sends or
    // receives might be an attempt that another reader falls for; elsewhere it makes a line of text.
    let sound = name.len() == written.len();
    let addresses = matches!(
        name.as_str(),
        "from" | "sender" | "resent-from" | "resent-sender" | "reply-to" | "to" | "cc" | "bcc"
    );
    (!name.is_empty() && (sound || addresses)).then_some((name, colon))
}

/// Whether a name is that of a header field, rather than a word before a colon.
fn is_known(name: &str) -> bool {
    ["x-", "content-", "resent-", "list-", "return-", "thread-"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        || matches!(name, "precedence" | "user-agent")
        || !matches!(HeaderName::parse(name), None | Some(HeaderName::Other(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(content: &str) -> (Vec<(String, String)>, String) {
        let section = HeaderSection::split(content.as_bytes());
        let fields = section
            .fields
            .iter()
            .map(|it| {
                let value = String::from_utf8_lossy(it.value()).into_owned();
                (it.name().to_owned(), value)
            })
            .collect();
        (fields, content[section.body..].to_owned())
    }

    #[test]
    fn finds_the_fields_and_the_body() {
        for (content, fields, body) in [
            ("Subject: a\r\n\r\nb\r\n", &[("subject", " a")][..], "b\r\n"),
            ("Subject: a\n\nb\n", &[("subject", " a")], "b\n"),
            ("Subject: a\r\rb\r", &[("subject", " a")], "b\r"),
            ("Subject: a\r\r\n\r\r\nb", &[("subject", " a")], "b"),
            (
                "Subject: a\r\n b\r\n\tc\r\n\r\nd",
                &[("subject", " a\r\n b\r\n\tc")],
                "d",
            ),
            ("Subject: a", &[("subject", " a")], ""),
            ("Subject: a\r\n", &[("subject", " a")], ""),
            ("Subject:\r\n\r\n", &[("subject", "")], ""),
            // The empty line is missing.
            (
                "Subject: a\r\nHello,\r\nworld\r\n",
                &[("subject", " a")],
                "Hello,\r\nworld\r\n",
            ),
            // A continuation that lost its indent.
            (
                "Subject: a\r\nlost\r\nMIME-Version: 1.0\r\n\r\nb",
                &[("subject", " a\r\nlost"), ("mime-version", " 1.0")],
                "b",
            ),
            // No header at all.
            (
                "Hello,\r\nSubject: a\r\n\r\nb",
                &[],
                "Hello,\r\nSubject: a\r\n\r\nb",
            ),
            ("http://x/y is down\r\n\r\nb", &[], "http://x/y is down\r\n\r\nb"),
            ("\r\nSubject: a\r\n", &[], "Subject: a\r\n"),
            (": a\r\nb\r\n", &[], ": a\r\nb\r\n"),
            ("", &[], ""),
        ] {
            let fields: Vec<_> = fields
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect();
            assert_eq!(split(content), (fields, body.to_owned()), "{content:?}");
        }
    }

    /// Every way to write short headers with the octets that confuse readers: no panic, fields lie
    /// within the section, and the body is what follows.
    #[test]
    fn stays_within_bounds() {
        let alphabet = [b"To:".as_slice(), b"x", b"\r", b"\n", b" ", b":"];
        for length in 0..=6u32 {
            for number in 0..alphabet.len().pow(length) {
                let content: Vec<u8> = (0..length)
                    .flat_map(|i| alphabet[number / alphabet.len().pow(i) % alphabet.len()])
                    .copied()
                    .collect();
                let section = HeaderSection::split(&content);
                assert!(section.body <= content.len());
                let fields: usize = section.fields.iter().map(|it| it.raw.len()).sum();
                assert!(fields <= section.body, "{:?}", content.escape_ascii().to_string());
            }
        }
    }

    #[test]
    fn a_megabyte_of_rubbish_is_quick() {
        let mut content = b"Subject: a\r\n".to_vec();
        content.extend(b"rubbish\r\n".repeat(100_000));
        content.extend(b"To: b\r\n\r\n");
        assert!(!HeaderSection::split(&content).fields.is_empty());
    }
}
