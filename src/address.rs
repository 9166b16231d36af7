//! A mailbox address as SMTP carries it (RFC 5321 §4.1.2, RFC 6531).

use std::fmt;
use std::hash::{Hash, Hasher};

/// A mailbox address: a local part and, nearly always, a domain.
///
/// Devices send `MAIL FROM:<printer>`, so the domain may be missing; whoever needs one asks
/// [`Address::domain`]. The text is kept as the client wrote it. Comparison ignores case in both
/// parts: RFC 5321 §2.4 lets a host treat local parts as it likes, and Exchange ignores their case.
#[derive(Clone, Debug)]
pub struct Address {
    text: String,
    /// Where the last `@` stands.
    at: Option<usize>,
}

/// Why a text is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressError {
    /// Nothing before or after the `@`, or nothing at all.
    Empty,
    /// Longer than the 320 octets that a local part (64) and a domain (255) could ever need.
    TooLong,
    /// A control character, or another one in a place where it would end the address.
    Character,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AddressError::Empty => "an empty local part or domain",
            AddressError::TooLong => "an address of more than 320 octets",
            AddressError::Character => "a character that has no place in an address",
        })
    }
}

impl std::error::Error for AddressError {}

impl Address {
    /// The longest address we keep, in octets.
    pub const MAX_OCTETS: usize = 320;

    /// Reads an address without angle brackets. Lenient on what a local part may contain (`FAX=+49`,
    /// quoted strings, UTF-8), strict on what could break a header or a log line.
    ///
    /// # Errors
    /// [`AddressError`] says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Address, AddressError> {
        if text.len() > Self::MAX_OCTETS {
            return Err(AddressError::TooLong);
        }
        let at = text.rfind('@');
        let (local, domain) = match at {
            Some(at) => (&text[..at], Some(&text[at + 1..])),
            None => (text, None),
        };
        if local.is_empty() || domain.is_some_and(str::is_empty) {
            return Err(AddressError::Empty);
        }
        let breaks = |c: char| c.is_control() || matches!(c, '<' | '>' | '\u{2028}' | '\u{2029}');
        let bad_local = !is_words(local)
            && local
                .chars()
                .any(|c| breaks(c) || c.is_whitespace() || c == ',' || c == ';');
        // Of an address literal (RFC 5321 §4.1.3) what stands between the brackets.
        let bad_domain = domain.is_some_and(|it| {
            let inner = it.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
            let literal = inner.is_some();
            inner.unwrap_or(it).chars().any(|c| {
                let special =
                    matches!(c, ',' | ';' | '"' | '(' | ')' | '[' | ']' | '\\') || c == ':' && !literal;
                breaks(c) || c.is_whitespace() || special
            })
        });
        if bad_local || bad_domain {
            return Err(AddressError::Character);
        }
        Ok(Address {
            text: text.to_owned(),
            at,
        })
    }

    /// The address as the client wrote it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What stands before the last `@`.
    pub fn local_part(&self) -> &str {
        self.at.map_or(self.text.as_str(), |at| &self.text[..at])
    }

    /// What stands after the last `@`; `None` for `<printer>`.
    pub fn domain(&self) -> Option<&str> {
        self.at.map(|at| &self.text[at + 1..])
    }
}

/// Whether a local part consists of atoms, dots and quoted strings (RFC 5322 §3.4.1 and §4.4), so that
/// it can be written into a header as it is.
pub fn is_words(local_part: &str) -> bool {
    let special = |c: char| c.is_control() || c.is_whitespace() || "()<>[]:;@\\,\".".contains(c);
    let mut rest = local_part;
    loop {
        let end = match rest.strip_prefix('"') {
            Some(inner) => match quoted_end(inner) {
                Some(end) => end + 2,
                None => return false,
            },
            None => rest.find(special).unwrap_or(rest.len()),
        };
        match rest[end..].strip_prefix('.') {
            Some(after) => rest = after,
            None => return end == rest.len(),
        }
    }
}

/// Where the quotation mark is that ends a quoted string, if there is one.
fn quoted_end(inner: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in inner.char_indices() {
        match c {
            '"' if !escaped => return Some(at),
            c if c.is_control() => return None,
            c => escaped = c == '\\' && !escaped,
        }
    }
    None
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Address {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text || self.text.to_lowercase() == other.text.to_lowercase()
    }
}

impl Eq for Address {}

impl Hash for Address {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.to_lowercase().hash(state);
    }
}

impl serde::Serialize for Address {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> serde::Deserialize<'de> for Address {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Address::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_devices_send() {
        for (text, local, domain) in [
            ("a@b.example", "a", Some("b.example")),
            ("printer", "printer", None),
            ("FAX=+4912345@sap.example", "FAX=+4912345", Some("sap.example")),
            ("\"a b\"@c", "\"a b\"", Some("c")),
            ("\"a@b\"@c", "\"a@b\"", Some("c")),
            ("\"a\".b@c", "\"a\".b", Some("c")),
            ("\"a@c", "\"a", Some("c")),
            ("a@[10.0.0.1]", "a", Some("[10.0.0.1]")),
            ("a@[IPv6:2001:db8::1]", "a", Some("[IPv6:2001:db8::1]")),
            ("\"a\\\"b, c\"@d", "\"a\\\"b, c\"", Some("d")),
            ("jürgen@müller.example", "jürgen", Some("müller.example")),
        ] {
            let address = Address::parse(text).expect(text);
            assert_eq!(
                (address.local_part(), address.domain()),
                (local, domain),
                "{text}"
            );
        }
    }

    #[test]
    fn refuses_what_could_break_a_header() {
        for (text, want) in [
            ("", AddressError::Empty),
            ("@b", AddressError::Empty),
            ("a@", AddressError::Empty),
            ("a\r\nBcc: x@y", AddressError::Character),
            ("a\0@b", AddressError::Character),
            ("a b@c", AddressError::Character),
            ("a@b c", AddressError::Character),
            ("a@b>", AddressError::Character),
            ("a@b,c@d", AddressError::Character),
            // What reads as an address and the name of another one.
            ("\"a\" <evil@x>, b\"@c", AddressError::Character),
            ("a@b(c", AddressError::Character),
            ("a@b\\c", AddressError::Character),
            ("a@[1]:b", AddressError::Character),
        ] {
            assert_eq!(Address::parse(text).err(), Some(want), "{text:?}");
        }
        assert_eq!(
            Address::parse(&"a".repeat(321)).err(),
            Some(AddressError::TooLong)
        );
    }

    #[test]
    fn ignores_case() {
        let parse = |text| Address::parse(text).expect("an address");
        assert_eq!(parse("Erp@Contoso.COM"), parse("erp@contoso.com"));
        assert_ne!(parse("erp@contoso.com"), parse("erp@contoso.org"));
    }
}
