//! The content transfer encodings (RFC 2045 §6), decoded as leniently as mail needs.

use std::borrow::Cow;

use memchr::{memchr, memrchr};

/// The content transfer encodings that change octets. `7bit`, `8bit`, `binary` and unknown ones do
/// not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// The octets as they stand.
    #[default]
    None,
    /// `base64`
    Base64,
    /// `quoted-printable`
    QuotedPrintable,
}

impl Encoding {
    /// Reads the value of a Content-Transfer-Encoding field.
    pub fn parse(value: &[u8]) -> Encoding {
        let name: Vec<u8> = value
            .iter()
            .skip_while(|it| !it.is_ascii_alphanumeric())
            .take_while(|it| it.is_ascii_alphanumeric() || **it == b'-')
            .map(u8::to_ascii_lowercase)
            .collect();
        match name.as_slice() {
            b"base64" => Encoding::Base64,
            b"quoted-printable" => Encoding::QuotedPrintable,
            _ => Encoding::None,
        }
    }

    /// The octets that `text` encodes.
    pub fn decode(self, text: &[u8]) -> Cow<'_, [u8]> {
        match self {
            Encoding::None => Cow::Borrowed(text),
            Encoding::Base64 => Cow::Owned(base64(text)),
            Encoding::QuotedPrintable => Cow::Owned(quoted_printable(text)),
        }
    }
}

const SKIP: u8 = 64;
const PAD: u8 = 65;

/// What each octet means in base64 (RFC 4648 §4).
pub(crate) const SEXTETS: [u8; 256] = {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut table = [SKIP; 256];
    let mut at = 0;
    while at < 64 {
        table[alphabet[at] as usize] = at as u8;
        at += 1;
    }
    table[b'=' as usize] = PAD;
    table
};

/// Decodes base64 as RFC 2045 §6.8 asks: what is not in the alphabet is skipped. Missing padding is
/// forgiven, and so is padding in the middle, where several encoded pieces were joined.
pub fn base64(text: &[u8]) -> Vec<u8> {
    let mut decoder = Base64::default();
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 3);
    decoder.push(text, &mut out);
    decoder.finish(&mut out);
    out
}

/// Decodes base64 that comes in pieces, octet by octet: the slow way for odd text. See
/// [`base64`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Base64 {
    bits: u32,
    sextets: u8,
}

impl Base64 {
    /// Decodes more text.
    pub fn push(&mut self, text: &[u8], out: &mut Vec<u8>) {
        for octet in text {
            match SEXTETS[usize::from(*octet)] {
                SKIP => {}
                PAD => self.finish(out),
                sextet => {
                    self.bits = self.bits << 6 | u32::from(sextet);
                    self.sextets += 1;
                    if self.sextets == 4 {
                        let [_, octets @ ..] = self.bits.to_be_bytes();
                        out.extend_from_slice(&octets);
                        *self = Base64::default();
                    }
                }
            }
        }
    }

    /// Writes what is left at the end of the text, or at padding.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        let octets = match self.sextets {
            2 => (self.bits >> 4).to_be_bytes(),
            3 => (self.bits >> 2).to_be_bytes(),
            _ => [0; 4],
        };
        let count = usize::from(self.sextets.saturating_sub(1));
        out.extend_from_slice(&octets[4 - count..]);
        *self = Base64::default();
    }
}

/// Decodes quoted-printable (RFC 2045 §6.7). A `=` that begins nothing stays as it is.
pub fn quoted_printable(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    // Rule 3: white space at the end of a line was added on the way and goes.
    while let Some(at) = memchr(b'\n', rest) {
        let (line, after) = rest.split_at(at + 1);
        let returns = usize::from(line.len() > 1 && line[line.len() - 2] == b'\r');
        let (text, ending) = line.split_at(line.len() - 1 - returns);
        if !line_of_quoted_printable(trim_spaces(text), &mut out) {
            out.extend_from_slice(ending);
        }
        rest = after;
    }
    line_of_quoted_printable(trim_spaces(rest), &mut out);
    out
}

/// Decodes one line; whether it ends with a soft line break.
fn line_of_quoted_printable(line: &[u8], out: &mut Vec<u8>) -> bool {
    let (line, soft) = match line.strip_suffix(b"=") {
        Some(line) => (line, true),
        None => (line, false),
    };
    quoted(line, b'=', out);
    soft
}

/// Decodes `=41`, as in quoted-printable, or `%41`, as in RFC 2231.
pub(crate) fn quoted(text: &[u8], escape: u8, out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(at) = memchr(escape, rest) {
        out.extend_from_slice(&rest[..at]);
        match rest.get(at + 1..at + 3).and_then(octet) {
            Some(octet) => {
                out.push(octet);
                rest = &rest[at + 3..];
            }
            None => {
                out.push(escape);
                rest = &rest[at + 1..];
            }
        }
    }
    out.extend_from_slice(rest);
}

fn octet(digits: &[u8]) -> Option<u8> {
    let digit = |it: u8| char::from(it).to_digit(16);
    u8::try_from(digit(digits[0])? << 4 | digit(digits[1])?).ok()
}

fn trim_spaces(line: &[u8]) -> &[u8] {
    let end = line.iter().rposition(|it| !matches!(it, b' ' | b'\t'));
    &line[..end.map_or(0, |it| it + 1)]
}

/// Whether `text` is worth decoding as base64: some devices declare it and send plain text.
pub fn looks_like_base64(text: &[u8]) -> bool {
    // The padding ends it. Mailing lists and virus scanners add plain lines after that.
    let text = match memchr(b'=', text) {
        Some(at) if memrchr(b'\n', &text[..at]).is_some() => &text[..at],
        _ => text,
    };
    let foreign = text
        .iter()
        .filter(|it| SEXTETS[usize::from(**it)] >= SKIP && !matches!(it, b'\r' | b'\n' | b'='))
        .count();
    foreign * 10 <= text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_names() {
        for (value, want) in [
            (" base64", Encoding::Base64),
            (" BASE64 \r\n", Encoding::Base64),
            ("\"base64\"", Encoding::Base64),
            ("base64; x=y", Encoding::Base64),
            (" Quoted-Printable", Encoding::QuotedPrintable),
            ("7bit", Encoding::None),
            ("binary", Encoding::None),
            ("", Encoding::None),
        ] {
            assert_eq!(Encoding::parse(value.as_bytes()), want, "{value:?}");
        }
    }

    #[test]
    fn decodes_base64_with_anything_wrong_with_it() {
        for (text, want) in [
            ("aGVsbG8=", "hello"),
            ("aGVs\r\nbG8=\r\n", "hello"),
            ("aGVs\rbG8=\r", "hello"),
            ("aGVsbG8", "hello"),
            ("aG Vs-bG*8=", "hello"),
            ("aGU=bGxv", "hello"),
            ("aA==ZQ==bGxv", "hello"),
            ("aGVsbG8===", "hello"),
            ("aGVsbG8=a", "hello"),
            ("", ""),
            ("=", ""),
            ("a", ""),
        ] {
            assert_eq!(base64(text.as_bytes()), want.as_bytes(), "{text:?}");
        }
    }

    #[test]
    fn decodes_quoted_printable_with_anything_wrong_with_it() {
        for (text, want) in [
            ("a=3Db", "a=b"),
            ("a=3db", "a=b"),
            ("a=\r\nb", "ab"),
            ("a= \t\r\nb", "ab"),
            ("a=\nb", "ab"),
            ("a=", "a"),
            // A soft line break before something that looks like an escape.
            ("x=\r\n=3D41", "x=41"),
            ("x=\r\n41", "x41"),
            ("a=3", "a=3"),
            ("a=zz", "a=zz"),
            ("a==41", "a=A"),
            ("a \t\r\nb", "a\r\nb"),
            ("a=20\r\nb", "a \r\nb"),
            ("a\r\n\r\nb\n", "a\r\n\r\nb\n"),
            ("a\r\r\nb", "a\r\r\nb"),
            ("", ""),
        ] {
            let got = quoted_printable(text.as_bytes());
            assert_eq!(got, want.as_bytes(), "{text:?}: {}", got.escape_ascii());
        }
    }

    #[test]
    fn knows_plain_text_from_base64() {
        assert!(looks_like_base64(b"aGVsbG8=\r\n"));
        assert!(looks_like_base64(b"aGVsbG8gd29ybGQ*aGVsbG8gd29ybGQ\r\n"));
        assert!(looks_like_base64(
            b"aGVs\r\nbG8=\r\n-- \r\nAdded by a mailing list\r\n"
        ));
        assert!(looks_like_base64(b""));
        assert!(!looks_like_base64(
            b"This is not base64, whatever the header says.\r\n"
        ));
    }
}
