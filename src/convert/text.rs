//! Plain text as it is meant: `format=flowed` (RFC 3676) put together again, and files written into
//! the text by uuencode taken out of it.

/// The most files that are taken out of one text.
const MAX_FILES: usize = 100;

/// Joins the lines of a text with `format=flowed`. `delete_space` is its parameter `DelSp=yes`. Lines
/// end with CRLF before and after.
pub fn unflow(text: &str, delete_space: bool) -> String {
    let mut out = String::with_capacity(text.len());
    // The quote depth of a paragraph whose next line is to come.
    let mut open: Option<usize> = None;
    let (body, ending) = match text.strip_suffix("\r\n") {
        Some(body) => (body, "\r\n"),
        None => (text, ""),
    };
    let mut first = true;
    for line in body.split("\r\n") {
        let content = line.trim_start_matches('>');
        let depth = line.len() - content.len();
        // §4.4: a space was put before what would otherwise mean something.
        let content = content.strip_prefix(' ').unwrap_or(content);
        // §4.5: a paragraph does not go on in another depth, nor in a signature.
        let signature = content == "-- ";
        if open != Some(depth) || signature {
            if !first {
                out.push_str("\r\n");
            }
            if depth > 0 {
                out.extend(std::iter::repeat_n('>', depth));
                out.push(' ');
            }
        }
        first = false;
        let flowed = content.ends_with(' ') && !signature;
        open = flowed.then_some(depth);
        match flowed && delete_space {
            true => out.push_str(&content[..content.len() - 1]),
            false => out.push_str(content),
        }
    }
    out.push_str(ending);
    out
}

/// A file that stood in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// The name it was given; not made safe.
    pub name: String,
    /// Its octets.
    pub octets: Vec<u8>,
}

/// Takes files out of a text that uuencode (POSIX) has written into it. What is not entirely sound
/// stays in the text.
pub fn take_files(text: String) -> (String, Vec<File>) {
    let mut files = Vec::new();
    let mut kept = String::new();
    let mut rest = text.as_str();
    let mut from = 0;
    while let Some(found) = memchr::memmem::find(&rest.as_bytes()[from..], b"begin ") {
        let at = from + found;
        from = at + 6;
        let at_line_start = at == 0 || rest.as_bytes()[at - 1] == b'\n';
        if !at_line_start || files.len() == MAX_FILES {
            continue;
        }
        if let Some((file, length)) = file_at(&rest[at..]) {
            files.push(file);
            kept.push_str(&rest[..at]);
            rest = &rest[at + length..];
            from = 0;
        }
    }
    if files.is_empty() {
        return (text, files);
    }
    kept.push_str(rest);
    (kept, files)
}

/// The file that begins here, and how much of the text it takes.
fn file_at(text: &str) -> Option<(File, usize)> {
    let mut at = 0;
    let mut line = || {
        let rest = text.get(at..).filter(|it| !it.is_empty())?;
        let end = memchr::memchr(b'\n', rest.as_bytes()).map_or(rest.len(), |it| it + 1);
        at += end;
        Some((rest[..end].trim_end_matches(['\r', '\n']), at))
    };
    let (head, _) = line()?;
    let (mode, name) = head.strip_prefix("begin ")?.split_once(' ')?;
    let octal = mode.bytes().all(|it| (b'0'..=b'7').contains(&it));
    if !(3..=4).contains(&mode.len()) || !octal || name.trim().is_empty() {
        return None;
    }
    let mut octets = Vec::new();
    loop {
        let (data, _) = line()?;
        match data {
            "`" | "" | " " => {
                let (end, length) = line()?;
                let file = File {
                    name: name.trim().to_owned(),
                    octets,
                };
                return (end == "end").then_some((file, length));
            }
            "end" if octets.is_empty() => return None,
            data => decode_line(data.as_bytes(), &mut octets)?,
        }
    }
}

/// Decodes `M…`: the number of octets in a character, then six bits in each.
fn decode_line(line: &[u8], octets: &mut Vec<u8>) -> Option<()> {
    let bits = |it: u8| (b' '..=b'`').contains(&it).then(|| (it - b' ') & 0x3f);
    let (count, data) = line.split_first()?;
    let count = usize::from(bits(*count)?);
    let needed = count.div_ceil(3) * 4;
    // Spaces at the end are lost on the way; some programs add a checksum character.
    if count == 0 || data.len() > needed + 1 {
        return None;
    }
    let start = octets.len();
    for group in 0..needed / 4 {
        let mut value = 0u32;
        for at in 0..4 {
            let it = data.get(group * 4 + at).copied().unwrap_or(b' ');
            value = value << 6 | u32::from(bits(it)?);
        }
        octets.extend_from_slice(&value.to_be_bytes()[1..]);
    }
    octets.truncate(start + count);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_flowed_lines() {
        for (text, delete_space, want) in [
            ("a \r\nb\r\nc", false, "a b\r\nc"),
            ("a \r\nb \r\nc\r\n", false, "a b c\r\n"),
            ("a \r\nb", true, "ab"),
            ("a\r\n\r\nb", false, "a\r\n\r\nb"),
            // Quotes, and the end of one in mid-paragraph.
            ("> a \r\n> b\r\nc", false, "> a b\r\nc"),
            (">> a \r\n> b\r\n", false, ">> a \r\n> b\r\n"),
            (">a\r\n>> b", false, "> a\r\n>> b"),
            // Stuffing.
            (" >a\r\n From x\r\n  b", false, ">a\r\nFrom x\r\n b"),
            // A signature is fixed, and begins a new paragraph.
            ("a \r\n-- \r\nAnn", false, "a \r\n-- \r\nAnn"),
            ("a ", false, "a "),
            ("", false, ""),
            ("\r\n", false, "\r\n"),
        ] {
            assert_eq!(unflow(text, delete_space), want, "{text:?}");
        }
    }

    #[test]
    fn takes_files_out() {
        let cat = "begin 644 cat.txt\r\n#0V%T\r\n`\r\nend\r\n";
        for (text, kept, files) in [
            (format!("Hello\r\n{cat}Bye\r\n"), "Hello\r\nBye\r\n", &["Cat"][..]),
            (cat.to_owned(), "", &["Cat"]),
            (format!("{cat}{cat}"), "", &["Cat", "Cat"]),
            // An empty line, or one that lost its space, ends it as well.
            ("begin 0644 a\r\n#0V%T\r\n\r\nend".to_owned(), "", &["Cat"]),
            ("begin 644 a\r\n`\r\nend\r\n".to_owned(), "", &[""]),
        ] {
            let (rest, found) = take_files(text.clone());
            let found: Vec<_> = found
                .iter()
                .map(|it| String::from_utf8_lossy(&it.octets))
                .collect();
            assert_eq!(
                (rest.as_str(), found),
                (kept, files.iter().map(|it| (*it).into()).collect()),
                "{text:?}"
            );
        }
        for text in [
            "We begin 644 days ago\r\n",
            "begin the work\r\nend\r\n",
            "begin 644 \r\n#0V%T\r\n`\r\nend\r\n",
            "begin 999 a\r\n#0V%T\r\n`\r\nend\r\n",
            "begin 644 a\r\n#0V%T\r\n",
            "begin 644 a\r\nThis is a line of text, no data.\r\n`\r\nend\r\n",
            "begin 644 a\r\nend\r\n",
            "begin 644 a\r\n#0V%T\r\n`\r\nno end\r\n",
        ] {
            assert_eq!(
                take_files(text.to_owned()),
                (text.to_owned(), Vec::new()),
                "{text:?}"
            );
        }
        // All octets, by the book.
        let octets: Vec<u8> = (0..=255).collect();
        let mut text = "begin 644 all\r\n".to_owned();
        for line in octets.chunks(45) {
            text.push(char::from(b' ' + line.len() as u8));
            for group in line.chunks(3) {
                let mut bits = [0; 3];
                bits[..group.len()].copy_from_slice(group);
                let value = u32::from_be_bytes([0, bits[0], bits[1], bits[2]]);
                for shift in [18, 12, 6, 0] {
                    let six = (value >> shift & 0x3f) as u8;
                    text.push(char::from(if six == 0 { b'`' } else { b' ' + six }));
                }
            }
            text.push_str("\r\n");
        }
        text.push_str("`\r\nend\r\n");
        assert_eq!(take_files(text).1[0].octets, octets);
    }

    #[test]
    fn many_beginnings_without_an_end_are_quick() {
        let line = format!("M{}\r\n", "A".repeat(60));
        let text = format!("begin 644 a\r\n{}", line).repeat(20_000);
        assert_eq!(take_files(text).1, Vec::new());
    }
}
