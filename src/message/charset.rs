//! Text in the charset it is really in, whatever it says it is in.
//!
//! Nothing here fails: what cannot be decoded is shown as well as it can be.

use std::borrow::Cow;

use mail_parser::decoders::charsets::map::charset_decoder;
use memchr::memmem;

/// The longest charset name that is looked up; registered ones have at most 40 characters.
const MAX_NAME_OCTETS: usize = 45;

/// Decodes `bytes` that are declared to be in `charset`, or in nothing in particular.
pub fn decode<'a>(charset: Option<&str>, bytes: &'a [u8]) -> Cow<'a, str> {
    if let Some(rest) = bytes.strip_prefix(b"\xef\xbb\xbf") {
        return guess(rest);
    }
    let name = charset.map(plain_name).unwrap_or_default();
    match name.as_str() {
        // US-ASCII with eight bits is as good as no declaration. UTF-8 is what many declare and fewer
        // send. The two Korean and Chinese seven-bit charsets are not decoded by anyone any more.
        "" | "utf-8" | "utf8" | "us-ascii" | "ascii" | "ansi_x3.4-1968" | "unknown-8bit" | "iso-2022-kr"
        | "csiso2022kr" | "iso-2022-cn" | "iso-2022-cn-ext" | "hz-gb-2312" | "replacement" => {
            match utf16_by_its_mark(bytes) {
                Some(text) => text.into(),
                None => guess(bytes),
            }
        }
        "utf-16" | "utf16" | "utf-16le" | "utf-16be" | "ucs-2" | "iso-10646-ucs-2" | "unicode" => {
            utf16(&name, bytes)
        }
        _ => match charset_decoder(name.as_bytes()) {
            Some(decoder) if name.len() <= MAX_NAME_OCTETS => decoder(bytes).into(),
            _ => guess(bytes),
        },
    }
}

/// What is left of `"UTF-8*en"`, `cs=utf-8` or ` 'utf-8' `.
fn plain_name(declared: &str) -> String {
    let name = declared.split('*').next().unwrap_or_default();
    name.trim_matches(|it: char| !it.is_ascii_alphanumeric())
        .to_ascii_lowercase()
}

fn utf16_by_its_mark(bytes: &[u8]) -> Option<String> {
    match bytes {
        [0xff, 0xfe, rest @ ..] => Some(from_utf16(rest, u16::from_le_bytes)),
        [0xfe, 0xff, rest @ ..] => Some(from_utf16(rest, u16::from_be_bytes)),
        _ => None,
    }
}

fn utf16<'a>(name: &str, bytes: &'a [u8]) -> Cow<'a, str> {
    if let Some(text) = utf16_by_its_mark(bytes) {
        return text.into();
    }
    // Latin text has every second octet zero; which ones tells the order better than the name does,
    // since RFC 2781 §4.3 says big endian where Windows means little. With no zero at all in more
    // than a few octets it is not UTF-16.
    let (mut even, mut odd) = (0usize, 0usize);
    for pair in bytes.chunks_exact(2) {
        even += usize::from(pair[0] == 0);
        odd += usize::from(pair[1] == 0);
    }
    if even + odd == 0 && bytes.is_ascii() {
        return guess(bytes);
    }
    let big = even > odd || (even == odd && name != "utf-16le");
    from_utf16(
        bytes,
        if big {
            u16::from_be_bytes
        } else {
            u16::from_le_bytes
        },
    )
    .into()
}

fn from_utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> String {
    let units = bytes.chunks_exact(2).map(|it| unit([it[0], it[1]]));
    char::decode_utf16(units)
        .map(|it| it.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

/// UTF-8 where it is, or else what Windows programs send without saying so: windows-1252, or seven-bit
/// Japanese.
fn guess(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            let japanese = bytes.is_ascii()
                && (memmem::find(bytes, b"\x1b$B").is_some() || memmem::find(bytes, b"\x1b$@").is_some());
            match charset_decoder(b"iso-2022-jp") {
                Some(decoder) if japanese => decoder(bytes).into(),
                _ => text.into(),
            }
        }
        Err(_) => {
            // UTF-8 cut in mid-character, or damaged in places, still has mostly sound characters;
            // windows-1252 that happens to have some is rare.
            let (mut sound, mut broken) = (0usize, 0usize);
            for chunk in bytes.utf8_chunks() {
                sound += chunk.valid().chars().filter(|it| !it.is_ascii()).count();
                broken += usize::from(!chunk.invalid().is_empty());
            }
            match charset_decoder(b"windows-1252") {
                Some(decoder) if broken > sound => decoder(bytes).into(),
                _ => String::from_utf8_lossy(bytes),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_was_sent_rather_than_what_was_declared() {
        for (charset, bytes, want) in [
            (None, &b"plain"[..], "plain"),
            (None, "Grüße".as_bytes(), "Grüße"),
            (None, b"Gr\xfc\xdfe", "Grüße"),
            (Some("utf-8"), b"Gr\xfc\xdfe \x80", "Grüße €"),
            (Some("us-ascii"), b"Gr\xfc\xdfe", "Grüße"),
            (Some("x-unknown"), b"Gr\xfc\xdfe", "Grüße"),
            (Some("x-unknown"), "Grüße".as_bytes(), "Grüße"),
            (Some(" \"UTF-8\" "), "Grüße".as_bytes(), "Grüße"),
            (Some("utf-8*de"), "Grüße".as_bytes(), "Grüße"),
            (Some("ISO-8859-1"), b"Gr\xfc\xdfe \x80", "Grüße €"),
            (Some("iso-8859-15"), b"\xa4", "€"),
            // Cut in mid-character.
            (Some("utf-8"), b"Gr\xc3\xbc\xc3\x9fe \xe2\x82", "Grüße \u{fffd}"),
            (Some("koi8-r"), b"\xf0\xd2\xc9\xd7\xc5\xd4", "Привет"),
            (Some("gb18030"), b"\xc4\xe3\xba\xc3", "你好"),
            (Some("iso-2022-jp"), b"\x1b$B%O%m!<\x1b(B", "ハロー"),
            (None, b"\x1b$B%O%m!<\x1b(B", "ハロー"),
            (Some("utf-7"), b"Hi +Jjo-!", "Hi \u{263a}!"),
            (Some("utf-16le"), b"H\0i\0", "Hi"),
            (Some("utf-16be"), b"\0H\0i", "Hi"),
            (Some("utf-16"), b"\xff\xfeH\0i\0", "Hi"),
            (Some("utf-16"), b"H\0i\0", "Hi"),
            (Some("utf-16"), b"\0H\0i", "Hi"),
            (Some("utf-16"), b"not at all", "not at all"),
            (Some("utf-8"), b"\xfe\xff\0H\0i", "Hi"),
            (None, b"\xef\xbb\xbfHi", "Hi"),
            // Decoders that would answer with one replacement character for everything.
            (Some("iso-2022-kr"), b"abc", "abc"),
            (Some(""), b"abc", "abc"),
        ] {
            assert_eq!(
                decode(charset, bytes),
                want,
                "{charset:?} {}",
                bytes.escape_ascii()
            );
        }
        assert_eq!(decode(Some(&"x".repeat(1000)), b"abc"), "abc");
    }
}
