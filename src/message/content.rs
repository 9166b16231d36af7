//! The octets of a MIME part, as they stand in the message and as they are meant.
//!
//! Large attachments are never decoded as a whole: their base64 is copied from the message into the
//! request when it is well formed, or decoded a chunk at a time for an upload.

use base64_simd::STANDARD;
use bytes::Bytes;
use memchr::{memchr, memrchr};

use super::transfer::{self, Encoding};

/// Text that is decoded at a time where there is no faster way.
const PIECE_OCTETS: usize = 64 * 1024;

/// The content of a part. Cheap to clone: it shares the message's octets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Octets before `text`, not encoded, in groups of three; nearly always empty.
    head: Bytes,
    text: Bytes,
    encoding: Encoding,
}

impl Content {
    /// Octets of a message that are encoded like this.
    ///
    /// Base64 that is not is taken as it stands, so that nothing is lost.
    pub fn new(text: Bytes, encoding: Encoding) -> Content {
        let plain =
            encoding == Encoding::Base64 && !transfer::looks_like_base64(&text[..text.len().min(4096)]);
        Content {
            head: Bytes::new(),
            text,
            encoding: if plain { Encoding::None } else { encoding },
        }
    }

    /// Octets that are not encoded.
    pub fn plain(octets: impl Into<Bytes>) -> Content {
        Content {
            head: Bytes::new(),
            text: octets.into(),
            encoding: Encoding::None,
        }
    }

    /// Two runs of octets that are not encoded, one after the other, without copying the second.
    pub fn joined(mut head: Vec<u8>, text: Bytes) -> Content {
        // Base64 is made of groups of three octets: then each of the two can be encoded by itself.
        let borrowed = ((3 - head.len() % 3) % 3).min(text.len());
        head.extend_from_slice(&text[..borrowed]);
        Content {
            head: head.into(),
            text: text.slice(borrowed..),
            encoding: Encoding::None,
        }
    }

    /// The octets as they stand in the message.
    pub fn encoded_len(&self) -> usize {
        self.head.len() + self.text.len()
    }

    /// All the octets. For text and other small things.
    pub fn decode(&self) -> Bytes {
        match self.encoding {
            Encoding::None if self.head.is_empty() => self.text.clone(),
            Encoding::None => [&self.head[..], &self.text].concat().into(),
            encoding => encoding.decode(&self.text).into_owned().into(),
        }
    }

    /// How many octets there are once decoded. Looks at every one of them unless they are plain.
    pub fn len(&self) -> u64 {
        match self.encoding {
            Encoding::None => self.encoded_len() as u64,
            Encoding::Base64 => match Rows::of(&self.text) {
                Some(rows) if rows.is_sound() => rows.decoded_len() as u64,
                _ => self.reader().count(),
            },
            Encoding::QuotedPrintable => self.reader().count(),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the octets in base64, without line breaks, as JSON wants it.
    pub fn append_base64(&self, out: &mut Vec<u8>) {
        if self.encoding == Encoding::Base64
            && let Some(rows) = Rows::of(&self.text)
        {
            let start = out.len();
            out.reserve(self.text.len());
            for row in rows.iter() {
                out.extend_from_slice(row);
            }
            // What stood in the message is what Graph would be sent after decoding and encoding
            // again, if it is canonical. One look at it is cheaper than both.
            if STANDARD.check(&out[start..]).is_ok() {
                return;
            }
            out.truncate(start);
        }
        let octets = self.encoding.decode(&self.text);
        STANDARD.encode_append(&self.head, out);
        STANDARD.encode_append(&octets, out);
    }

    /// Reads the octets from the beginning, a chunk at a time.
    pub fn reader(&self) -> Reader {
        let base64 = self.encoding == Encoding::Base64;
        Reader {
            head: self.head.clone(),
            rows: base64 && Rows::of(&self.text).is_some_and(|it| it.is_sound()),
            content: self.clone(),
            at: 0,
            base64: transfer::Base64::default(),
            decoded: Vec::new(),
        }
    }
}

/// Base64 in lines of equal length, the last one perhaps shorter.
struct Rows<'a> {
    text: &'a [u8],
    /// Octets in a line.
    length: usize,
    /// Octets from the beginning of one line to the next.
    stride: usize,
}

impl<'a> Rows<'a> {
    fn of(text: &'a [u8]) -> Option<Rows<'a>> {
        let text = text.trim_ascii_end();
        let Some(end) = memchr(b'\n', text) else {
            return (text.len().is_multiple_of(4)).then_some(Rows {
                text,
                length: text.len().max(4),
                stride: text.len().max(4),
            });
        };
        let length = end - usize::from(end > 0 && text[end - 1] == b'\r');
        let (ending, stride) = (&text[length..=end], end + 1);
        let regular = length > 0
            && length.is_multiple_of(4)
            && text
                .chunks(stride)
                .rev()
                .skip(1)
                .all(|row| &row[length..] == ending);
        let last = (text.len() - 1) % stride + 1;
        (regular && last <= length && last.is_multiple_of(4)).then_some(Rows { text, length, stride })
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = &'a [u8]> + use<'a> {
        let length = self.length;
        self.text
            .chunks(self.stride)
            .map(move |row| &row[..row.len().min(length)])
    }

    /// Whether each line is well-formed base64, with padding only at the very end.
    fn is_sound(&self) -> bool {
        let padded = |row: &[u8]| row.ends_with(b"=");
        let mut rows = self.iter().rev();
        rows.next().is_none_or(|row| STANDARD.check(row).is_ok())
            && rows.all(|row| STANDARD.check(row).is_ok() && !padded(row))
    }

    /// The number of octets, if it is sound.
    fn decoded_len(&self) -> usize {
        let ending = self.stride - self.length;
        let characters = self.text.len() - self.text.len().saturating_sub(1) / self.stride * ending;
        let padding = self.text.iter().rev().take_while(|it| **it == b'=').count();
        characters / 4 * 3 - padding
    }
}

/// Reads the octets of a [`Content`] from the beginning, a chunk at a time, so that a large
/// attachment need not be in memory a second time.
#[derive(Debug)]
pub struct Reader {
    content: Content,
    /// What of the head has not been given away.
    head: Bytes,
    /// Whether the text is base64 in [`Rows`].
    rows: bool,
    /// The text before it has been decoded.
    at: usize,
    base64: transfer::Base64,
    /// Decoded and not yet given away.
    decoded: Vec<u8>,
}

impl Reader {
    /// The next `octets` of them, fewer only at the end. Empty when there are no more.
    pub fn next_chunk(&mut self, octets: usize) -> Bytes {
        if !self.head.is_empty() {
            let mut chunk = self.head.split_to(self.head.len().min(octets)).to_vec();
            let end = (octets - chunk.len()).min(self.content.text.len());
            chunk.extend_from_slice(&self.content.text[..end]);
            self.at = end;
            return chunk.into();
        }
        if self.content.encoding == Encoding::None {
            let end = (self.at + octets).min(self.content.text.len());
            let chunk = self.content.text.slice(self.at..end);
            self.at = end;
            return chunk;
        }
        while self.decoded.len() < octets && self.at < self.content.text.len() {
            self.decode_piece();
        }
        let rest = self.decoded.split_off(self.decoded.len().min(octets));
        std::mem::replace(&mut self.decoded, rest).into()
    }

    /// Goes past the next `octets`, to go on with an upload where it was interrupted.
    pub fn skip(&mut self, octets: u64) {
        let mut left = octets;
        while left > 0 {
            let piece = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE_OCTETS);
            let chunk = self.next_chunk(piece);
            if chunk.is_empty() {
                break;
            }
            left -= chunk.len() as u64;
        }
    }

    fn count(mut self) -> u64 {
        let mut count = 0;
        while self.at < self.content.text.len() {
            self.decode_piece();
            count += self.decoded.len() as u64;
            self.decoded.clear();
        }
        count
    }

    /// Decodes the next piece of text.
    fn decode_piece(&mut self) {
        let rest = &self.content.text[self.at..];
        let last = rest.len() <= PIECE_OCTETS;
        let mut piece = &rest[..rest.len().min(PIECE_OCTETS)];
        // A line is decoded as a whole: an escape may not be cut.
        if !last && self.content.encoding == Encoding::QuotedPrintable {
            let end = memrchr(b'\n', piece).or_else(|| memchr(b'\n', rest));
            piece = &rest[..end.map_or(rest.len(), |it| it + 1)];
        }
        if self.rows && !last {
            let end = memrchr(b'\n', piece).map_or(piece.len() / 4 * 4, |it| it + 1);
            piece = &rest[..end];
        }
        self.at += piece.len();
        let last = self.at == self.content.text.len();
        match self.content.encoding {
            Encoding::None => self.decoded.extend_from_slice(piece),
            Encoding::QuotedPrintable => self.decoded.extend(transfer::quoted_printable(piece)),
            Encoding::Base64 => {
                if self.rows {
                    let mut text = Vec::with_capacity(piece.len());
                    for row in piece.split(|it| *it == b'\n') {
                        text.extend_from_slice(row.strip_suffix(b"\r").unwrap_or(row));
                    }
                    let start = self.decoded.len();
                    let text = text.trim_ascii_end();
                    if STANDARD.decode_append(text, &mut self.decoded).is_ok() {
                        return;
                    }
                    self.decoded.truncate(start);
                }
                self.base64.push(piece, &mut self.decoded);
                if last {
                    self.base64.finish(&mut self.decoded);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(text: &str, encoding: Encoding) -> Content {
        Content::new(Bytes::copy_from_slice(text.as_bytes()), encoding)
    }

    /// Checks every way to read a content against the plain one.
    fn check(content: &Content, want: &[u8]) {
        assert_eq!(content.decode(), want);
        assert_eq!(content.len(), want.len() as u64, "{content:?}");
        assert_eq!(content.is_empty(), want.is_empty());
        let mut base64 = b"before".to_vec();
        content.append_base64(&mut base64);
        assert_eq!(&base64[6..], STANDARD.encode_to_string(want).as_bytes());
        // Small chunks of much are slow to check and show nothing.
        for size in [1, 3, 7, 1000, 100_000]
            .into_iter()
            .filter(|it| want.len() < it * 2000)
        {
            let mut reader = content.reader();
            let mut read = Vec::new();
            loop {
                let chunk = reader.next_chunk(size);
                if chunk.is_empty() {
                    break;
                }
                assert!(chunk.len() == size || read.len() + chunk.len() == want.len());
                read.extend_from_slice(&chunk);
            }
            assert!(read == want, "in chunks of {size}");
        }
        let mut reader = content.reader();
        let half = want.len() / 2;
        reader.skip(half as u64);
        assert!(reader.next_chunk(want.len()) == want[half..]);
    }

    #[test]
    fn reads_base64_in_every_layout() {
        for length in [0, 1, 2, 3, 56, 57, 58, 113, 114, 115, 1000, 60_000] {
            let octets: Vec<u8> = (0..length).map(|it: u32| (it * 7 + it / 251) as u8).collect();
            let text = STANDARD.encode_to_string(&octets);
            for (row, ending) in [
                (76, "\r\n"),
                (76, "\n"),
                (64, "\r\n"),
                (4, "\n"),
                (1_000_000, "\r\n"),
                // Not in groups of four.
                (75, "\r\n"),
                (1, "\n"),
                (77, "\r"),
            ] {
                let lines: Vec<&str> = text
                    .as_bytes()
                    .chunks(row)
                    .map(|it| std::str::from_utf8(it).expect("ASCII"))
                    .collect();
                for text in [
                    lines.join(ending),
                    lines.join(ending) + ending,
                    lines.join(ending) + "\r\n\r\n",
                ] {
                    check(&content(&text, Encoding::Base64), &octets);
                }
            }
            // Something in the middle that does not belong there; in little text it would say that it
            // is not base64.
            for foreign in ["*", " ", "\r\n\r\n"].iter().filter(|_| length > 50) {
                let (a, b) = text.split_at(text.len() / 2);
                check(&content(&format!("{a}{foreign}{b}"), Encoding::Base64), &octets);
            }
            check(&content(text.trim_end_matches('='), Encoding::Base64), &octets);
        }
    }

    #[test]
    fn reads_joined_and_uncanonical_base64() {
        // Padding in the middle, at the end of a row of the usual length and elsewhere.
        let row = format!("{}aA==", "aGVs".repeat(18));
        let want = format!("{}h{}h", "hel".repeat(18), "hel".repeat(18));
        check(
            &content(&format!("{row}\r\n{row}\r\n"), Encoding::Base64),
            want.as_bytes(),
        );
        // Bits after the last octet that should be zero.
        check(&content("aB==", Encoding::Base64), b"h");
    }

    #[test]
    fn reads_the_other_encodings() {
        check(
            &content("a=3Db=\r\nc\r\n", Encoding::QuotedPrintable),
            b"a=bc\r\n",
        );
        let long = "=3D\r\n".repeat(50_000);
        check(
            &content(&long, Encoding::QuotedPrintable),
            "=\r\n".repeat(50_000).as_bytes(),
        );
        let line = "=3D".repeat(50_000);
        check(
            &content(&line, Encoding::QuotedPrintable),
            "=".repeat(50_000).as_bytes(),
        );
        check(&content("a\r\nb", Encoding::None), b"a\r\nb");
        for head in 0..6 {
            for text in 0..6 {
                let octets = b"0123456789a";
                let content = Content::joined(
                    octets[..head].to_vec(),
                    Bytes::copy_from_slice(&octets[head..head + text]),
                );
                check(&content, &octets[..head + text]);
            }
        }
        let text = "This is not base64, whatever the header says.";
        check(&content(text, Encoding::Base64), text.as_bytes());
    }
}
