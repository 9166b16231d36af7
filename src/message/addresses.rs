//! Address lists (RFC 5322 §3.4), as sloppy as devices write them.
//!
//! One function reads From for the policy and for the conversion, so that nobody can write a field
//! in which the one sees another sender than the other.

use memchr::memrchr;

use super::words;
use crate::address::Address;

/// The longest display name that is kept. Exchange's own have at most 256 characters.
const MAX_NAME_CHARACTERS: usize = 256;

/// An address with the name shown for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mailbox {
    /// The display name, or a comment that serves as one.
    pub name: Option<String>,
    /// The address.
    pub address: Address,
}

/// Reads every address in a field's value. Groups are flattened, names without an address are left
/// out.
pub fn parse(value: &[u8]) -> Vec<Mailbox> {
    let mailboxes = read(value, 1);
    if mailboxes.is_empty() && memchr::memmem::find(value, b"=?").is_some() {
        // Some libraries encode the whole value, address and all.
        return read(words::decode(value).as_bytes(), 1);
    }
    mailboxes
}

/// `depth` says how often the inside of angle brackets may be read as a list of its own.
fn read(value: &[u8], depth: usize) -> Vec<Mailbox> {
    let mut reader = Reader {
        value,
        at: 0,
        depth,
        // Where there is no closing bracket any more, an opening one is only a character.
        last_angle: memrchr(b'>', value).unwrap_or(0),
        plain_quotes: false,
        plain_parentheses: false,
        element: Element::default(),
        mailboxes: Vec::new(),
    };
    reader.run();
    reader.mailboxes
}

/// What stands between two commas, taken apart.
#[derive(Default)]
struct Element {
    /// What is not in angle brackets.
    words: Vec<Word>,
    /// What is.
    angles: Vec<Vec<u8>>,
    comments: Vec<Vec<u8>>,
}

struct Word {
    octets: Vec<u8>,
    quoted: bool,
    /// No white space stands before it.
    joined: bool,
}

struct Reader<'a> {
    value: &'a [u8],
    at: usize,
    depth: usize,
    last_angle: usize,
    plain_quotes: bool,
    plain_parentheses: bool,
    element: Element,
    mailboxes: Vec<Mailbox>,
}

impl Reader<'_> {
    fn run(&mut self) {
        let mut joined = false;
        while let Some(&octet) = self.value.get(self.at) {
            let start = self.at;
            self.at += 1;
            match octet {
                // A stray closing bracket separates as much as a space does.
                b' ' | b'\t' | b'\r' | b'\n' | b'>' => {
                    joined = false;
                    continue;
                }
                // A semicolon ends a group, and separates addresses in Outlook's way.
                b',' | b';' => {
                    self.finish();
                    joined = false;
                    continue;
                }
                b'"' => {
                    if let Some(octets) = self.quoted() {
                        self.element.words.push(Word {
                            octets,
                            quoted: true,
                            joined,
                        });
                        joined = true;
                        continue;
                    }
                }
                b'(' => {
                    if let Some(comment) = self.comment() {
                        self.element.comments.push(comment);
                        continue;
                    }
                }
                b'<' => {
                    let angle = self.angle();
                    self.element.angles.push(angle);
                    joined = false;
                    continue;
                }
                // The end of a group's name, or of `mailto:`.
                b':' => {
                    self.finish();
                    joined = false;
                    continue;
                }
                // A domain literal may contain colons: a@[IPv6:::1].
                b'[' if self
                    .element
                    .words
                    .last()
                    .is_some_and(|it| joined && it.octets.ends_with(b"@")) =>
                {
                    let length = self.value[self.at..]
                        .iter()
                        .take(64)
                        .take_while(|it| it.is_ascii_graphic() && !b"]<>,;\"".contains(it))
                        .count();
                    if self.value.get(self.at + length) == Some(&b']') {
                        self.at += length + 1;
                    }
                }
                _ => {}
            }
            let octets = &self.value[start..self.at];
            match self.element.words.last_mut() {
                Some(word) if joined && !word.quoted => word.octets.extend_from_slice(octets),
                _ => self.element.words.push(Word {
                    octets: octets.to_vec(),
                    quoted: false,
                    joined,
                }),
            }
            joined = true;
        }
        self.finish();
    }

    /// The inside of a quoted string whose opening quote has just been read.
    fn quoted(&mut self) -> Option<Vec<u8>> {
        if self.plain_quotes {
            return None;
        }
        let mut octets = Vec::new();
        let mut at = self.at;
        while let Some(&octet) = self.value.get(at) {
            at += 1;
            match octet {
                b'"' => {
                    self.at = at;
                    return Some(octets);
                }
                b'\\' => {
                    octets.extend(self.value.get(at));
                    at += 1;
                }
                _ => octets.push(octet),
            }
        }
        self.plain_quotes = true;
        None
    }

    /// The inside of a comment whose opening parenthesis has just been read; comments nest.
    fn comment(&mut self) -> Option<Vec<u8>> {
        if self.plain_parentheses {
            return None;
        }
        let mut octets = Vec::new();
        let (mut at, mut depth) = (self.at, 1usize);
        while let Some(&octet) = self.value.get(at) {
            at += 1;
            match octet {
                b'(' => depth += 1,
                b')' => {
                    depth -= 1;
                    if depth == 0 {
                        self.at = at;
                        return Some(octets);
                    }
                }
                b'\\' => {
                    octets.extend(self.value.get(at));
                    at += 1;
                    continue;
                }
                _ => {}
            }
            octets.push(octet);
        }
        self.plain_parentheses = true;
        None
    }

    /// The inside of angle brackets whose opening one has just been read. Without a closing one it
    /// reaches to the next separator.
    fn angle(&mut self) -> Vec<u8> {
        let rest = &self.value[self.at..];
        let closed = self.last_angle >= self.at;
        let mut quoted = false;
        let mut end = rest.len();
        for (at, octet) in rest.iter().enumerate() {
            match octet {
                b'"' if closed && !self.plain_quotes => quoted = !quoted,
                b'>' if !quoted => {
                    end = at;
                    break;
                }
                b',' | b';' if !closed => {
                    end = at;
                    break;
                }
                _ => {}
            }
        }
        if quoted {
            // A quote that is never closed hides no bracket.
            self.plain_quotes = true;
            end = memchr::memchr(b'>', rest).unwrap_or(rest.len());
        }
        self.at += end + usize::from(rest.get(end) == Some(&b'>'));
        rest[..end].to_vec()
    }

    /// Turns the element into what it addresses.
    fn finish(&mut self) {
        let element = std::mem::take(&mut self.element);
        if !element.angles.is_empty() {
            // The name stands before or after the brackets. An address outside of them is a name as
            // well: From: printer@d.com <printer@d.com>
            let name = element.name(&element.words);
            for angle in &element.angles {
                self.angle_address(angle, name.as_deref());
            }
            return;
        }
        // Without brackets: the words that contain an @ are addresses, the others a name.
        let runs = element.runs();
        let addresses: Vec<Address> = runs.iter().filter_map(|run| address(run)).collect();
        let names: Vec<&Word> = runs
            .iter()
            .filter(|run| address(run).is_none())
            .flat_map(|run| run.iter().copied())
            .collect();
        let name = if addresses.len() == 1 {
            element.name(names)
        } else {
            None
        };
        for address in addresses {
            self.mailboxes.push(Mailbox {
                name: name.clone(),
                address,
            });
        }
    }

    fn angle_address(&mut self, angle: &[u8], name: Option<&str>) {
        let mut text = String::from_utf8_lossy(angle).into_owned();
        // RFC 5322 §4.4: a route before the address, <@a,@b:c@d>.
        if text.trim_start().starts_with('@') {
            text = text
                .split_once(':')
                .map_or(String::new(), |(_, it)| it.to_owned());
        }
        if !text.trim_start().starts_with('"') {
            text.retain(|it| !it.is_whitespace() && it != '<');
        }
        match Address::parse(text.trim()) {
            Ok(address) if !text.contains(['(', ':']) || text.contains('[') => {
                self.mailboxes.push(Mailbox {
                    name: name.map(str::to_owned),
                    address: plain_quotes_removed(address),
                });
            }
            // <a@b, c@d>, <mailto:a@b>, <a@b (comment)>
            _ if self.depth > 0 => {
                let inner = read(angle, self.depth - 1);
                self.mailboxes.extend(inner.into_iter().map(|it| Mailbox {
                    name: name.map(str::to_owned).or(it.name),
                    ..it
                }));
            }
            _ => {}
        }
    }
}

impl Element {
    /// The words as one text, decoded; or else the comments.
    fn name<'a>(&self, words: impl IntoIterator<Item = &'a Word>) -> Option<String> {
        let mut octets = Vec::new();
        for word in words {
            if !word.joined && !octets.is_empty() {
                octets.push(b' ');
            }
            octets.extend_from_slice(&word.octets);
        }
        if octets.is_empty() {
            octets = self.comments.join(&b' ');
        }
        let mut name = words::decode(&octets);
        if let Some((end, _)) = name.char_indices().nth(MAX_NAME_CHARACTERS) {
            name.truncate(end);
        }
        (!name.is_empty()).then_some(name)
    }

    /// The words that stand without white space between them, or with an @ between them.
    fn runs(&self) -> Vec<Vec<&Word>> {
        let mut runs: Vec<Vec<&Word>> = Vec::new();
        for word in &self.words {
            match runs.last_mut() {
                Some(run)
                    if word.joined
                        || !word.quoted && word.octets.starts_with(b"@")
                        || run
                            .last()
                            .is_some_and(|it| !it.quoted && it.octets.ends_with(b"@")) =>
                {
                    run.push(word);
                }
                _ => runs.push(vec![word]),
            }
        }
        runs
    }
}

/// The address that a run of words is, if it is one.
fn address(run: &[&Word]) -> Option<Address> {
    let mut text = String::new();
    for word in run {
        let octets = String::from_utf8_lossy(&word.octets);
        // From: "a@b" is meant as an address, "a b"@c is one.
        if word.quoted && run.len() > 1 {
            let escaped = octets.replace('\\', "\\\\").replace('"', "\\\"");
            text.push_str(&format!("\"{escaped}\""));
        } else {
            text.push_str(&octets);
        }
    }
    if !text.contains('@') {
        return None;
    }
    let text = text.trim_matches(|it: char| it.is_whitespace() || matches!(it, '\'' | '.' | '(' | ')'));
    Address::parse(text).ok().map(plain_quotes_removed)
}

/// `"a.b"@c` and `a.b@c` are one address (RFC 5322 §3.4.1), and servers know only one of them.
fn plain_quotes_removed(address: Address) -> Address {
    let plain = |it: char| it.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(it);
    let inside = address
        .local_part()
        .strip_prefix('"')
        .and_then(|it| it.strip_suffix('"'))
        .filter(|it| it.chars().all(plain));
    match (inside, address.domain()) {
        (Some(local), Some(domain)) => Address::parse(&format!("{local}@{domain}")).unwrap_or(address),
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(value: &str) -> Vec<(String, String)> {
        parse(value.as_bytes())
            .into_iter()
            .map(|it| (it.name.unwrap_or_default(), it.address.to_string()))
            .collect()
    }

    #[test]
    fn reads_what_rfc_5322_describes() {
        for (value, want) in [
            ("a@b", &[("", "a@b")][..]),
            ("<a@b>", &[("", "a@b")]),
            ("Pete <a@b>", &[("Pete", "a@b")]),
            ("\"Joe Q. Public\" <a@b>", &[("Joe Q. Public", "a@b")]),
            (
                "\"Giant; \\\"Big\\\" Box\" <a@b>",
                &[("Giant; \"Big\" Box", "a@b")],
            ),
            (
                "a@b, Mary <c@d> , e@f",
                &[("", "a@b"), ("Mary", "c@d"), ("", "e@f")],
            ),
            (
                "A Group:Ed <a@b>,c@d,John <e@f>;",
                &[("Ed", "a@b"), ("", "c@d"), ("John", "e@f")],
            ),
            ("Undisclosed recipients:;", &[]),
            ("A:a@b;, c@d", &[("", "a@b"), ("", "c@d")]),
            ("a@b (Pete)", &[("Pete", "a@b")]),
            (
                "Pete(A nice \\) chap) <pete(his account)@silly.test(host)>",
                &[("Pete", "pete@silly.test")],
            ),
            ("<@x.test,@y.test:a@b>", &[("", "a@b")]),
            ("Who? <a@b>,\r\n <c@d>", &[("Who?", "a@b"), ("", "c@d")]),
            ("\"a b\"@c", &[("", "\"a b\"@c")]),
            ("\"a\".b@c", &[("", "\"a\".b@c")]),
            ("\"a.b\"@c", &[("", "a.b@c")]),
            ("<\"a.b\"@c>", &[("", "a.b@c")]),
            ("<\"a>b\"@c>", &[("", "\"a>b\"@c")]),
            ("a @ b", &[("", "a@b")]),
            (
                "a@[IPv6:::1], b@[10.0.0.1]",
                &[("", "a@[IPv6:::1]"), ("", "b@[10.0.0.1]")],
            ),
            (
                "=?utf-8?q?Gr=C3=BC=C3=9Fe=2C_Max?= <a@b>",
                &[("Grüße, Max", "a@b")],
            ),
            ("\"=?utf-8?q?Gr=C3=BC=C3=9Fe?=\" <a@b>", &[("Grüße", "a@b")]),
            ("jürgen@müller.example", &[("", "jürgen@müller.example")]),
            ("", &[]),
            (",, ,", &[]),
        ] {
            check(value, want);
        }
    }

    #[test]
    fn reads_what_devices_send() {
        for (value, want) in [
            (
                "printer@d.com <printer@d.com>",
                &[("printer@d.com", "printer@d.com")][..],
            ),
            ("[MFP] <a@b>", &[("[MFP]", "a@b")]),
            ("\r\n\tPete\r\n <a@b>", &[("Pete", "a@b")]),
            ("a@b;", &[("", "a@b")]),
            ("a@b; c@d", &[("", "a@b"), ("", "c@d")]),
            ("a@b c@d", &[("", "a@b"), ("", "c@d")]),
            ("Pete a@b", &[("Pete", "a@b")]),
            ("\"a@b\"", &[("", "a@b")]),
            ("'a@b'", &[("", "a@b")]),
            ("'Pete' <a@b>", &[("'Pete'", "a@b")]),
            ("Pete <a@b", &[("Pete", "a@b")]),
            ("Pete <a@b, c@d", &[("Pete", "a@b"), ("", "c@d")]),
            ("Pete a@b>", &[("Pete", "a@b")]),
            ("<<a@b>>", &[("", "a@b")]),
            ("< a@b >", &[("", "a@b")]),
            ("<a@b, c@d>", &[("", "a@b"), ("", "c@d")]),
            ("mailto:a@b", &[("", "a@b")]),
            ("<mailto:a@b>", &[("", "a@b")]),
            ("Pete <printer>", &[("Pete", "printer")]),
            ("Scanner Room 5", &[]),
            ("Gr\u{fc}n <a@b>", &[("Grün", "a@b")]),
            ("\"Pete <a@b>", &[("\"Pete", "a@b")]),
            ("\"a\" b\" <c@d>", &[("a b\"", "c@d")]),
            ("Pete (the first <a@b>", &[("Pete (the first", "a@b")]),
            ("=?utf-8?q?Pete_=3Ca=40b=3E?=", &[("Pete", "a@b")]),
            ("Pete <>", &[]),
            ("@", &[]),
            ("@b", &[]),
            ("a@", &[]),
        ] {
            check(value, want);
        }
        // Raw windows-1252.
        let [mailbox] = &parse(b"Gr\xfcn <a@b>")[..] else {
            panic!("one mailbox")
        };
        assert_eq!(mailbox.name.as_deref(), Some("Grün"));
    }

    /// What stands in quotes, comments and encoded words is a name, and nothing in it addresses
    /// anyone; what stands in brackets does, however many there are.
    #[test]
    fn hides_no_sender_and_invents_none() {
        for (value, want) in [
            ("\"<x@y>\" <a@b>", &[("<x@y>", "a@b")][..]),
            ("\"x@y, \" <a@b>", &[("x@y,", "a@b")]),
            ("=?utf-8?q?=3Cx=40y=3E=2C?= <a@b>", &[("<x@y>,", "a@b")]),
            ("(x@y) <a@b>", &[("x@y", "a@b")]),
            ("<x@y> <a@b>", &[("", "x@y"), ("", "a@b")]),
            ("\"a\" <x@y> \"b\" <a@b>", &[("a b", "x@y"), ("a b", "a@b")]),
            ("(<x@y>, a@b", &[("(", "x@y"), ("", "a@b")]),
            ("<\"x@y> <a@b>", &[("", "\"x@y"), ("", "a@b")]),
        ] {
            check(value, want);
        }
    }

    fn check(value: &str, want: &[(&str, &str)]) {
        let want: Vec<_> = want
            .iter()
            .map(|(name, address)| ((*name).to_owned(), (*address).to_owned()))
            .collect();
        assert_eq!(list(value), want, "{value:?}");
    }

    #[test]
    fn long_rubbish_is_quick() {
        for piece in ["<", "\"", "(", "<\"", "a@", ":", "=?", "<>", "(\"<", "[@["] {
            let value = piece.repeat(200_000 / piece.len());
            assert!(parse(value.as_bytes()).len() <= value.len());
        }
    }
}
