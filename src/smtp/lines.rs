//! Cuts what came from the client into lines. A line ends with LF; a CR before it is taken off, and
//! a bare LF is as good in commands, where it can smuggle nothing.

use memchr::memchr;

/// What has come from the client and is not read yet.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: Vec<u8>,
    /// Where the unread octets begin.
    start: usize,
    /// The line that is under way is too long, and its octets are thrown away until its end.
    skipping: bool,
}

/// What [`Lines::next`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A line, without its line end.
    Line(&'a [u8]),
    /// The end of a line that was longer than the limit.
    TooLong,
    /// No line end yet: read more.
    Incomplete,
}

impl Lines {
    /// The next line of at most `limit` octets. A longer one is thrown away as it comes, so that it
    /// needs no memory and what follows it is still read as what it is.
    pub fn next(&mut self, limit: usize) -> Found<'_> {
        let unread = &self.buffer[self.start..];
        let Some(end) = memchr(b'\n', unread) else {
            // A CR may still turn out to belong to the line end.
            if unread.len() > limit + 1 {
                self.skipping = true;
            }
            if self.skipping {
                self.clear();
            }
            return Found::Incomplete;
        };
        let from = self.start;
        self.start += end + 1;
        let line = &self.buffer[from..from + end];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if std::mem::take(&mut self.skipping) || line.len() > limit {
            return Found::TooLong;
        }
        Found::Line(line)
    }

    /// Whether a whole line is waiting.
    pub fn has_line(&self) -> bool {
        memchr(b'\n', self.unread()).is_some()
    }

    /// What is not read yet.
    pub fn unread(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Where to append what comes next; there is room for at least `octets`.
    pub fn room(&mut self, octets: usize) -> &mut Vec<u8> {
        self.compact();
        if self.buffer.is_empty() && self.buffer.capacity() > 4 * octets {
            // An idle connection does not keep the room that a burst needed.
            self.buffer = Vec::new();
        }
        self.buffer.reserve(octets);
        &mut self.buffer
    }

    /// Takes away all that is not read yet.
    pub fn take(&mut self) -> Vec<u8> {
        self.compact();
        std::mem::take(&mut self.buffer)
    }

    /// Appends octets.
    pub fn extend(&mut self, octets: &[u8]) {
        self.compact();
        self.buffer.extend_from_slice(octets);
    }

    fn compact(&mut self) {
        self.buffer.drain(..self.start);
        self.start = 0;
    }

    fn clear(&mut self) {
        self.buffer.clear();
        self.start = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(lines: &mut Lines, limit: usize) -> Vec<Option<String>> {
        let mut found = Vec::new();
        loop {
            found.push(match lines.next(limit) {
                Found::Line(line) => Some(String::from_utf8(line.to_vec()).expect("text")),
                Found::TooLong => None,
                Found::Incomplete => return found,
            });
        }
    }

    #[test]
    fn lines_end_with_lf_or_crlf() {
        let mut lines = Lines::default();
        lines.extend(b"EHLO x\r\nNOOP\n\r\nQU");
        assert!(lines.has_line());
        assert_eq!(
            all(&mut lines, 10),
            [Some("EHLO x".into()), Some("NOOP".into()), Some(String::new())]
        );
        assert!(!lines.has_line());
        assert_eq!(lines.unread(), b"QU");
        lines.room(8).extend_from_slice(b"IT\r\r\nx");
        assert_eq!(all(&mut lines, 10), [Some("QUIT\r".into())]);
        assert_eq!(lines.take(), b"x");
    }

    #[test]
    fn the_limit_is_exact_and_loses_nothing_behind_it() {
        for cut in 0..=14 {
            let text = b"12345\r\n123456\r\n1\r\n";
            let mut lines = Lines::default();
            lines.extend(&text[..cut]);
            let mut found = all(&mut lines, 5);
            lines.extend(&text[cut..]);
            found.extend(all(&mut lines, 5));
            assert_eq!(
                found,
                [Some("12345".into()), None, Some("1".into())],
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn a_line_without_end_needs_no_memory() {
        let mut lines = Lines::default();
        for _ in 0..100_000 {
            lines.room(1024).extend_from_slice(&[b'x'; 1024]);
            assert_eq!(lines.next(2048), Found::Incomplete);
        }
        assert!(lines.buffer.capacity() < 64 * 1024);
        lines.extend(b"\r\nNOOP\r\n");
        assert_eq!(all(&mut lines, 2048), [None, Some("NOOP".into())]);
    }
}
