//! Mail data: its end, dot-unstuffing, and bare line feeds (RFC 5321 §4.5.2).

use memchr::memchr;

/// Finds the end of mail data and undoes dot-stuffing.
///
/// Only CRLF "." CRLF ends the data, where the line before the data counts as a CRLF. Servers that
/// see an end elsewhere let one message smuggle another past the servers that do not, so nothing
/// else is an end, whatever the client meant.
///
/// Nothing else is refused. A bare LF in the content becomes CRLF, for Graph takes only whole
/// messages and devices send such lines; a bare CR stays. Of a line after CRLF the leading dot is
/// removed. After a bare LF only one of two leading dots is: a client that stuffs its dots there
/// never sends one alone, and a client that does not would lose one.
#[derive(Debug, Default)]
pub struct DataDecoder {
    state: State,
    bare_lf: bool,
}

/// What the octets so far mean for the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// After CRLF, or at the very beginning.
    #[default]
    LineStart,
    /// Within a line.
    Text,
    /// Within a line, after a CR that is already given out.
    Cr,
    /// After CRLF and a dot. The dot is not given out.
    Dot,
    /// After CRLF, a dot and a CR. Neither is given out.
    DotCr,
    /// After a bare LF.
    AfterLf,
    /// After a bare LF and a dot. The dot is not given out.
    LfDot,
    /// After CRLF "." CRLF.
    End,
}

impl DataDecoder {
    /// Takes the next octets as they came and gives out content in slices, until the end. Returns
    /// how many of the octets it took: fewer than there were means that commands follow.
    pub fn feed(&mut self, input: &[u8], mut give: impl FnMut(&[u8])) -> usize {
        let mut at = 0;
        while let Some(&octet) = input.get(at) {
            // One arm for each state. An arm that leaves `at` alone has the octet looked at again.
            self.state = match self.state {
                State::LineStart if octet == b'.' => {
                    at += 1;
                    State::Dot
                }
                State::AfterLf if octet == b'.' => {
                    at += 1;
                    State::LfDot
                }
                State::LineStart | State::AfterLf | State::Text | State::Cr => {
                    let (taken, state) = self.text(&input[at..], &mut give);
                    at += taken;
                    state
                }
                State::Dot if octet == b'\r' => {
                    at += 1;
                    State::DotCr
                }
                State::Dot => State::Text,
                State::DotCr if octet == b'\n' => {
                    self.state = State::End;
                    return at + 1;
                }
                State::DotCr => {
                    give(b"\r");
                    State::Cr
                }
                State::LfDot => {
                    if octet == b'.' {
                        at += 1;
                    }
                    give(b".");
                    State::Text
                }
                State::End => return at,
            };
        }
        at
    }

    /// Gives out text up to the next place where something must be left out or put in: a dot at the
    /// start of a line, or a bare LF.
    fn text(&mut self, input: &[u8], give: &mut impl FnMut(&[u8])) -> (usize, State) {
        let mut after_cr = self.state == State::Cr;
        let mut from = 0;
        while let Some(lf) = memchr(b'\n', &input[from..]).map(|it| from + it) {
            if lf > 0 {
                after_cr = input[lf - 1] == b'\r';
            }
            if !after_cr {
                self.bare_lf = true;
                give(&input[..lf]);
                give(b"\r\n");
                return (lf + 1, State::AfterLf);
            }
            from = lf + 1;
            match input.get(from) {
                Some(b'.') | None => {
                    give(&input[..from]);
                    return (from, State::LineStart);
                }
                Some(_) => {}
            }
        }
        give(input);
        let state = if input.last() == Some(&b'\r') {
            State::Cr
        } else {
            State::Text
        };
        (input.len(), state)
    }

    /// Whether the end has come.
    pub fn is_done(&self) -> bool {
        self.state == State::End
    }

    /// Whether a line ended in a bare LF.
    pub fn bare_lf(&self) -> bool {
        self.bare_lf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the decoder should do, said plainly: where the data ends, and what the content is.
    fn definition(input: &[u8]) -> (Option<usize>, Vec<u8>) {
        let framed = [b"\r\n".as_slice(), input].concat();
        let end = framed
            .windows(5)
            .position(|it| it == b"\r\n.\r\n")
            .map(|at| at + 3);
        // The content is all before the final dot, or all there is.
        let data = end.map_or(input, |end| &input[..end - 3]);

        let mut content = Vec::new();
        let mut stuffed: &[u8] = b".";
        for line in data.split_inclusive(|&it| it == b'\n') {
            let line = if line.starts_with(stuffed) {
                &line[1..]
            } else {
                line
            };
            if let Some(text) = line.strip_suffix(b"\r\n") {
                content.extend_from_slice(text);
                content.extend_from_slice(b"\r\n");
                stuffed = b".";
            } else if let Some(text) = line.strip_suffix(b"\n") {
                content.extend_from_slice(text);
                content.extend_from_slice(b"\r\n");
                stuffed = b"..";
            } else {
                content.extend_from_slice(line);
            }
        }
        (end, content)
    }

    fn decode(pieces: &[&[u8]]) -> (Option<usize>, Vec<u8>) {
        let mut decoder = DataDecoder::default();
        let mut content = Vec::new();
        let mut taken = 0;
        for piece in pieces {
            let now = decoder.feed(piece, |slice| content.extend_from_slice(slice));
            assert!(
                decoder.is_done() || now == piece.len(),
                "only the end leaves octets"
            );
            taken += now;
        }
        (decoder.is_done().then_some(taken), content)
    }

    /// Every string of up to eight octets that can confuse us, cut in every two places.
    #[test]
    fn ends_where_rfc_5321_says_and_keeps_the_rest() {
        let alphabet = *b"a.\r\n";
        for length in 0..=8u32 {
            for number in 0..4usize.pow(length) {
                let input: Vec<u8> = (0..length).map(|i| alphabet[number >> (2 * i) & 3]).collect();
                let (end, content) = definition(&input);
                for first in 0..=input.len() {
                    for second in first..=input.len() {
                        let (got_end, got) =
                            decode(&[&input[..first], &input[first..second], &input[second..]]);
                        assert_eq!(got_end, end, "{:?}", input.escape_ascii().to_string());
                        if end.is_some() {
                            assert_eq!(got, content, "{:?}", input.escape_ascii().to_string());
                        } else {
                            // What cannot be decided yet (a dot, a dot and a CR) is held back.
                            assert!(content.starts_with(&got) && content.len() - got.len() <= 1);
                        }
                    }
                }
            }
        }
    }

    /// What other servers have taken for an end (SMTP smuggling, 2023) is content here.
    #[test]
    fn nothing_but_the_end_is_an_end() {
        for not_an_end in [
            "a\n.\n",
            "a\n.\r\n",
            "a\r\n.\n",
            "a\r.\r",
            "a\r.\r\n",
            "a\r\n.\r",
            "a\r\n\0.\r\n",
            "a\r\n.\r\r\n",
            "a\r\n.\0\r\n",
            "a\n\n.\r\n",
            "a\r\r.\r\n",
            "a\r\n. \r\n",
        ] {
            assert_eq!(decode(&[not_an_end.as_bytes()]).0, None, "{not_an_end:?}");
        }
        // Here the real end is within.
        assert_eq!(decode(&[b"a\r\r\n.\r\nQUIT"]).0, Some(7));
        assert_eq!(decode(&[b".\r\n"]), (Some(3), vec![]));
    }

    #[test]
    fn says_whether_line_feeds_were_bare() {
        for (input, want) in [
            (&b"a\r\nb\r\n.\r\n"[..], false),
            (b"a\nb\r\n.\r\n", true),
            (b"\n", true),
        ] {
            let mut decoder = DataDecoder::default();
            decoder.feed(input, |_| {});
            assert_eq!(decoder.bare_lf(), want);
        }
    }

    /// Ordinary content is given out in few slices, however many lines it has.
    #[test]
    fn does_not_cut_ordinary_content() {
        let mut content = "0123456789 abcdefghijklmnopqrstuvwxyz\r\n".repeat(1000);
        content.push_str(".\r\n");
        let mut slices = 0;
        let mut decoder = DataDecoder::default();
        assert_eq!(decoder.feed(content.as_bytes(), |_| slices += 1), content.len());
        assert!(decoder.is_done());
        assert_eq!(slices, 1);
    }
}
