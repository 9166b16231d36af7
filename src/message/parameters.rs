//! Content-Type and Content-Disposition: a value and its parameters (RFC 2045 §5.1, RFC 2183), with
//! the extended parameters of RFC 2231.

use super::charset;
use super::transfer;
use super::words;

/// The most parameters that are read.
const MAX_PARAMETERS: usize = 200;

/// A value with parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameterized {
    /// What stands before the first semicolon, in lower case, without comments and white space.
    pub value: String,
    /// The first of equal names counts.
    parameters: Vec<Parameter>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Parameter {
    /// In lower case, without `*` and section numbers.
    name: String,
    /// Decoded, on one line.
    value: String,
    /// As it stands, without quotes: boundaries are octets, not text.
    octets: Vec<u8>,
}

impl Parameterized {
    /// Reads a field's value. What makes no sense is skipped.
    pub fn parse(field: &[u8]) -> Parameterized {
        let mut scanner = Scanner {
            rest: field,
            plain_parentheses: false,
        };
        let value = scanner.token(b";");
        let mut sections: Vec<Section> = Vec::new();
        while sections.len() < MAX_PARAMETERS && scanner.skip_past(b';') {
            let name = scanner.token(b"=;");
            if !scanner.skip_past_here(b'=') {
                continue;
            }
            let octets = scanner.parameter_value();
            if let Some(section) = Section::new(&name, octets) {
                sections.push(section);
            }
        }
        let mut parameters = Vec::new();
        for section in &sections {
            if !parameters.iter().any(|it: &Parameter| it.name == section.name) {
                parameters.push(Parameter {
                    name: section.name.clone(),
                    value: join(&section.name, &sections),
                    octets: section.octets.clone(),
                });
            }
        }
        Parameterized {
            value: String::from_utf8_lossy(&value).to_ascii_lowercase(),
            parameters,
        }
    }

    /// The decoded value of a parameter (name in lower case).
    pub fn get(&self, name: &str) -> Option<&str> {
        let parameter = self.parameters.iter().find(|it| it.name == name)?;
        Some(&parameter.value)
    }

    /// The octets of a parameter (name in lower case) as they stand, without quotes.
    pub fn octets(&self, name: &str) -> Option<&[u8]> {
        let parameter = self.parameters.iter().find(|it| it.name == name)?;
        Some(&parameter.octets)
    }
}

/// One `name*2*=value`.
struct Section {
    name: String,
    /// `None` where the name has no section number.
    number: Option<u32>,
    /// Whether the octets are percent-encoded (a `*` at the end of the name).
    extended: bool,
    octets: Vec<u8>,
}

impl Section {
    fn new(name: &[u8], octets: Vec<u8>) -> Option<Section> {
        let name = String::from_utf8(name.to_ascii_lowercase()).ok()?;
        let (name, extended) = match name.strip_suffix('*') {
            Some(name) => (name, true),
            None => (name.as_str(), false),
        };
        let (name, number) = match name.split_once('*') {
            Some((name, number)) => (name, Some(number.parse().ok()?)),
            None => (name, None),
        };
        (!name.is_empty()).then(|| Section {
            name: name.to_owned(),
            number,
            extended,
            octets,
        })
    }
}

/// Joins the sections of one parameter and decodes it. RFC 2231 sections win over a plain one, which
/// is there for old readers.
fn join(name: &str, sections: &[Section]) -> String {
    let mut mine: Vec<&Section> = sections.iter().filter(|it| it.name == name).collect();
    let modern = mine.iter().any(|it| it.extended || it.number.is_some());
    if !modern {
        // RFC 2047 §5 forbids encoded words in parameters; nearly every Windows program writes them.
        return mine
            .first()
            .map(|it| words::decode(&it.octets))
            .unwrap_or_default();
    }
    mine.retain(|it| it.extended || it.number.is_some());
    mine.sort_by_key(|it| it.number.unwrap_or(0));
    mine.dedup_by_key(|it| it.number.unwrap_or(0));
    let mut charset = None;
    let mut octets = Vec::new();
    for (at, section) in mine.iter().enumerate() {
        let mut value = section.octets.as_slice();
        if section.extended {
            // RFC 2231 §4: charset'language'text, in the first section only.
            if at == 0 {
                let mut parts = value.splitn(3, |it| *it == b'\'');
                if let (Some(name), Some(_), Some(text)) = (parts.next(), parts.next(), parts.next()) {
                    charset = String::from_utf8(name.to_vec()).ok();
                    value = text;
                }
            }
            transfer::quoted(value, b'%', &mut octets);
        } else {
            octets.extend_from_slice(value);
        }
    }
    match charset {
        Some(_) => words::clean(&charset::decode(charset.as_deref(), &octets)),
        // Sections of encoded words exist as well.
        None => words::decode(&octets),
    }
}

struct Scanner<'a> {
    rest: &'a [u8],
    /// A comment was not closed, so that a parenthesis is only a parenthesis.
    plain_parentheses: bool,
}

impl Scanner<'_> {
    /// The octets up to any of `ends`, without white space, comments and quotes.
    fn token(&mut self, ends: &[u8]) -> Vec<u8> {
        let mut token = Vec::new();
        while let Some(&octet) = self.rest.first() {
            if ends.contains(&octet) {
                break;
            }
            if octet == b'(' && self.skip_comment() {
                continue;
            }
            if octet.is_ascii_graphic() && octet != b'"' {
                token.push(octet);
            }
            self.rest = &self.rest[1..];
        }
        token
    }

    /// A parameter's value: a quoted string, or whatever stands before the next semicolon. File names
    /// with spaces and without quotes are common.
    fn parameter_value(&mut self) -> Vec<u8> {
        self.rest = self.rest.trim_ascii_start();
        if let Some(value) = self.quoted_string() {
            return value;
        }
        let mut value = Vec::new();
        while let Some(&octet) = self.rest.first() {
            if octet == b';' {
                break;
            }
            if octet == b'(' && value.last().is_none_or(u8::is_ascii_whitespace) && self.skip_comment() {
                continue;
            }
            value.push(octet);
            self.rest = &self.rest[1..];
        }
        value.truncate(value.trim_ascii_end().len());
        value
    }

    /// A quoted string at the beginning, without its quotes. One that is not closed is none.
    fn quoted_string(&mut self) -> Option<Vec<u8>> {
        let mut value = Vec::new();
        let mut octets = self.rest.strip_prefix(b"\"")?.iter().enumerate();
        while let Some((at, octet)) = octets.next() {
            match octet {
                b'"' => {
                    self.rest = &self.rest[at + 2..];
                    return Some(value);
                }
                // Windows programs write file names with single backslashes: only what needs one is
                // taken to be escaped.
                b'\\' => match octets.clone().next() {
                    Some((_, next @ (b'"' | b'\\'))) => {
                        value.push(*next);
                        octets.next();
                    }
                    _ => value.push(b'\\'),
                },
                // Folding.
                b'\r' | b'\n' => {}
                _ => value.push(*octet),
            }
        }
        None
    }

    /// Skips a comment at the beginning, if it is closed.
    fn skip_comment(&mut self) -> bool {
        if self.plain_parentheses {
            return false;
        }
        let mut depth = 0usize;
        let mut octets = self.rest.iter().enumerate();
        while let Some((at, octet)) = octets.next() {
            match octet {
                b'\\' => {
                    octets.next();
                }
                b'(' => depth += 1,
                b')' => {
                    depth -= 1;
                    if depth == 0 {
                        self.rest = &self.rest[at + 1..];
                        return true;
                    }
                }
                _ => {}
            }
        }
        self.plain_parentheses = true;
        false
    }

    fn skip_past(&mut self, octet: u8) -> bool {
        match self.rest.iter().position(|it| *it == octet) {
            Some(at) => {
                self.rest = &self.rest[at + 1..];
                true
            }
            None => false,
        }
    }

    fn skip_past_here(&mut self, octet: u8) -> bool {
        match self.rest.split_first() {
            Some((first, rest)) if *first == octet => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_programs_write() {
        for (field, value, name, want) in [
            (
                " text/plain; charset=utf-8",
                "text/plain",
                "charset",
                Some("utf-8"),
            ),
            (
                " Text/HTML ;\r\n\tCharSet = \"UTF-8\"",
                "text/html",
                "charset",
                Some("UTF-8"),
            ),
            (
                "text/plain; charset=utf-8 (a comment)",
                "text/plain",
                "charset",
                Some("utf-8"),
            ),
            (
                "text/plain (comment; x=y); charset=a",
                "text/plain",
                "charset",
                Some("a"),
            ),
            ("text / plain", "text/plain", "charset", None),
            ("text", "text", "charset", None),
            ("", "", "charset", None),
            (";;; charset=a;", "", "charset", Some("a")),
            ("a/b; boundary=\"x;y\"; c=d", "a/b", "boundary", Some("x;y")),
            (
                "a/b; boundary=----=_Part (1)",
                "a/b",
                "boundary",
                Some("----=_Part"),
            ),
            // Names in every way there is.
            (
                "attachment; filename=my file.pdf",
                "attachment",
                "filename",
                Some("my file.pdf"),
            ),
            (
                "attachment; filename=\"a\\\"b.pdf\"",
                "attachment",
                "filename",
                Some("a\"b.pdf"),
            ),
            (
                "attachment; filename=\"C:\\temp\\a.pdf\"",
                "attachment",
                "filename",
                Some("C:\\temp\\a.pdf"),
            ),
            (
                "attachment; filename=\"not closed.pdf",
                "attachment",
                "filename",
                Some("\"not closed.pdf"),
            ),
            (
                "attachment; filename=\"fol\r\n ded.pdf\"",
                "attachment",
                "filename",
                Some("fol ded.pdf"),
            ),
            (
                "a; filename*=utf-8'de'Gr%C3%BC%C3%9Fe.pdf",
                "a",
                "filename",
                Some("Grüße.pdf"),
            ),
            (
                "a; filename*=iso-8859-1''Gr%FC%DFe.pdf",
                "a",
                "filename",
                Some("Grüße.pdf"),
            ),
            (
                "a; filename=old.pdf; filename*=utf-8''new.pdf",
                "a",
                "filename",
                Some("new.pdf"),
            ),
            (
                "a; filename*1=b; filename*0=a; filename*2=c",
                "a",
                "filename",
                Some("abc"),
            ),
            (
                "a; filename*0*=utf-8''%C3; filename*1*=%BC; filename*2=\" 1%.pdf\"",
                "a",
                "filename",
                Some("ü 1%.pdf"),
            ),
            (
                "a; filename==?utf-8?q?=C3=BC.pdf?=",
                "a",
                "filename",
                Some("ü.pdf"),
            ),
            (
                "a; filename=\"=?utf-8?q?=C3=BC?= =?utf-8?q?.pdf?=\"",
                "a",
                "filename",
                Some("ü.pdf"),
            ),
            ("a; filename=\"Gr\u{fc}n.pdf\"", "a", "filename", Some("Grün.pdf")),
            (
                "scan.png; filename=\"scan.png\"",
                "scan.png",
                "filename",
                Some("scan.png"),
            ),
            ("a; filename=one; filename=two", "a", "filename", Some("one")),
            ("a; filename; b=c", "a", "b", Some("c")),
            ("a; =x; b=c", "a", "b", Some("c")),
            ("a; filename*99999999999=x; b=c", "a", "b", Some("c")),
            ("a; b=", "a", "b", Some("")),
            ("a; name=\"a\r\n\tb\0c\"", "a", "name", Some("a b c")),
        ] {
            let parsed = Parameterized::parse(field.as_bytes());
            assert_eq!(
                (parsed.value.as_str(), parsed.get(name)),
                (value, want),
                "{field:?}"
            );
        }
    }

    #[test]
    fn a_hundred_thousand_parameters_are_quick() {
        let field = [b"a/b".to_vec(), b"; x*1=(((".repeat(25_000)].concat();
        assert_eq!(Parameterized::parse(&field).value, "a/b");
    }
}
