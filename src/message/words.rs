//! Text in header fields: unfolded (RFC 5322 §2.2.3), with its encoded words decoded (RFC 2047), and
//! without anything that could break out of the place it is put in.

use std::borrow::Cow;

use memchr::memmem;

use super::charset;
use super::transfer;

/// The longest encoded word that is decoded. RFC 2047 §2 allows 75; libraries write much longer ones.
const MAX_WORD_OCTETS: usize = 16 * 1024;

/// Decodes the text of a field, a phrase or a parameter.
pub fn decode(value: &[u8]) -> String {
    clean(&decode_words(value))
}

/// Makes one line of printable text: no control characters, no line or paragraph separators, single
/// spaces. What comes out can be put into a header, a log line or JSON.
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let c = if c.is_control() || c.is_whitespace() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') {
            ' '
        } else {
            c
        };
        if c != ' ' || !(out.is_empty() || out.ends_with(' ')) {
            out.push(c);
        }
    }
    out.truncate(out.trim_end().len());
    out
}

/// Decodes the encoded words of a field's value, and guesses the charset of the octets between them.
fn decode_words(value: &[u8]) -> Cow<'_, str> {
    let Some(first) = memmem::find(value, b"=?") else {
        return charset::decode(None, value);
    };
    let mut out = String::with_capacity(value.len());
    // A run of encoded words in one charset is decoded in one go: writers split characters over
    // them, although RFC 2047 §5 forbids it.
    let mut run = Run::default();
    let (mut plain, mut at) = (0, first);
    loop {
        if let Some((word, length)) = Word::parse(&value[at..]) {
            let between = &value[plain..at];
            // §6.2: white space between encoded words is not shown.
            if run.charset.is_none() || !between.iter().all(u8::is_ascii_whitespace) {
                run.finish(&mut out);
                out.push_str(&charset::decode(None, between));
            }
            run.push(word, &mut out);
            plain = at + length;
            at = plain;
        } else {
            at += 2;
        }
        match memmem::find(&value[at..], b"=?") {
            Some(next) => at += next,
            None => break,
        }
    }
    run.finish(&mut out);
    out.push_str(&charset::decode(None, &value[plain..]));
    out.into()
}

#[derive(Default)]
struct Run {
    charset: Option<String>,
    octets: Vec<u8>,
}

impl Run {
    fn push(&mut self, word: Word<'_>, out: &mut String) {
        // The shifts of ISO 2022 begin and end in each word, and make no sense joined.
        let shifts = word.charset.to_ascii_lowercase().starts_with("iso-2022");
        let same = |it: &String| it.eq_ignore_ascii_case(word.charset);
        if shifts || !self.charset.as_ref().is_some_and(same) {
            self.finish(out);
            self.charset = Some(word.charset.to_owned());
        }
        word.decode(&mut self.octets);
    }

    fn finish(&mut self, out: &mut String) {
        if let Some(charset) = self.charset.take() {
            out.push_str(&charset::decode(Some(&charset), &self.octets));
            self.octets.clear();
        }
    }
}

/// `=?utf-8?q?text?=`
struct Word<'a> {
    charset: &'a str,
    base64: bool,
    text: &'a [u8],
}

impl<'a> Word<'a> {
    /// Reads the encoded word at the beginning of `value`, and its length.
    fn parse(value: &'a [u8]) -> Option<(Word<'a>, usize)> {
        let value = &value[..value.len().min(MAX_WORD_OCTETS)];
        let rest = value.strip_prefix(b"=?")?;
        let end = rest.iter().take(64).position(|it| *it == b'?')?;
        let (charset, rest) = (&rest[..end], &rest[end + 1..]);
        let sound = |it: &u8| it.is_ascii_alphanumeric() || b"-_:.*+'".contains(it);
        if charset.is_empty() || !charset.iter().all(sound) {
            return None;
        }
        let base64 = match rest.first()? {
            b'b' | b'B' => true,
            b'q' | b'Q' => false,
            _ => return None,
        };
        let rest = rest[1..].strip_prefix(b"?")?;
        let end = memmem::find(rest, b"?=")?;
        let word = Word {
            charset: std::str::from_utf8(charset).ok()?,
            base64,
            text: &rest[..end],
        };
        let length = value.len() - rest.len() + end + 2;
        Some((word, length))
    }

    fn decode(&self, out: &mut Vec<u8>) {
        if self.base64 {
            out.extend(transfer::base64(self.text));
        } else {
            let text: Vec<u8> = self
                .text
                .iter()
                .map(|it| if *it == b'_' { b' ' } else { *it })
                .collect();
            transfer::quoted(&text, b'=', out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_subjects_contain() {
        for (value, want) in [
            (&b" plain"[..], "plain"),
            (b" folded\r\n over\r\n\tlines", "folded over lines"),
            (b"=?utf-8?q?Gr=C3=BC=C3=9Fe?=", "Grüße"),
            (b"=?UTF-8?B?R3LDvMOfZQ==?=", "Grüße"),
            (b"=?iso-8859-1?Q?Gr=FC=DFe_an_alle?= !", "Grüße an alle !"),
            // Between encoded words white space goes, elsewhere it stays.
            (b"=?utf-8?q?a?= =?utf-8?q?b?=\r\n =?utf-8?q?c?= d", "abc d"),
            (b"=?utf-8?q?a?==?utf-8?q?b?=", "ab"),
            // A character split over two words, in both encodings.
            (b"=?utf-8?q?=C3?= =?UTF-8?q?=BC?=", "ü"),
            (
                b"=?utf-8?b?w7w=?=\r\n =?utf-8?B?ww==?=\r\n =?utf-8?B?vA==?=",
                "üü",
            ),
            (
                b"=?iso-2022-jp?B?GyRCJU8bKEI=?= =?iso-2022-jp?B?GyRCJW0bKEI=?=",
                "ハロ",
            ),
            (b"=?utf-8*en?q?a?=", "a"),
            (b"=?x-unknown?q?a=FC?=", "aü"),
            // Raw eight-bit text.
            ("Grüße".as_bytes(), "Grüße"),
            (b"Gr\xfc\xdfe", "Grüße"),
            // Spaces in an encoded word are wrong and common.
            (b"=?utf-8?Q?a b?=", "a b"),
            // Attempts to break out.
            (b"a\r\nBcc: x@y", "a Bcc: x@y"),
            (b"=?utf-8?q?a=0D=0ABcc:_x@y?=", "a Bcc: x@y"),
            (b"a\0\x07b\x7f\xe2\x80\xa8c", "a b c"),
            // Not encoded words.
            (b"=?", "=?"),
            (b"=?utf-8?", "=?utf-8?"),
            (b"=?utf-8?x?a?=", "=?utf-8?x?a?="),
            (b"=?utf-8?q?never ends", "=?utf-8?q?never ends"),
            (b"1 =? 2 =?utf-8?q?a?=", "1 =? 2 a"),
            (b"", ""),
        ] {
            assert_eq!(decode(value), want, "{}", value.escape_ascii());
        }
    }

    #[test]
    fn many_beginnings_without_an_end_are_quick() {
        assert!(!decode(&b"=?utf-8?B?".repeat(25_000)).is_empty());
    }
}
