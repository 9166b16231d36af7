//! What of a message is shown, and what is attached. Graph has one body where MIME has a tree.

use std::collections::HashSet;

use bytes::Bytes;
use memchr::memmem;

use super::mime::Part;
use super::text::{self, File};
use crate::graph::resource::Body;
use crate::message::charset;
use crate::message::content::Content;

/// The most `cid:` references that are looked for in a body.
const MAX_REFERENCES: usize = 10_000;

/// What is shown, and the parts that are attached in their order.
#[derive(Debug)]
pub struct Shown<'p, 'a> {
    /// The body.
    pub body: Body,
    /// Everything that is not in the body, except the plain twin of an HTML text.
    pub attached: Vec<Attached<'p, 'a>>,
}

/// Something that is attached.
#[derive(Debug)]
pub enum Attached<'p, 'a> {
    /// A part of the message.
    Part(&'p Part<'a>),
    /// A file that stood in a text.
    File(File),
}

/// Decides what is shown: the HTML of alternatives where there is one, else the plain text.
pub fn choose<'p, 'a>(message: &Bytes, root: &'p Part<'a>) -> Shown<'p, 'a> {
    let chooser = Chooser { message };
    let mut texts = Vec::new();
    let mut attached = Vec::new();
    for piece in chooser.pieces(root, Place::Alone) {
        match piece {
            Piece::Attached(it) => attached.push(it),
            Piece::Plain(text) if text.trim().is_empty() => {}
            Piece::Html(html) if html.trim().is_empty() => {}
            text => texts.push(text),
        }
    }
    Shown {
        body: join(texts),
        attached,
    }
}

/// The text or HTML of a part, with CRLF line endings.
pub fn text_of(message: &Bytes, part: &Part<'_>) -> String {
    let content = Content::new(message.slice_ref(part.body()), part.encoding).decode();
    let declared = part.content_type.get("charset").filter(|it| !it.is_empty());
    let sniffed = match declared {
        None if part.media_type() == "text/html" => meta_charset(&content),
        _ => None,
    };
    tidy(&charset::decode(declared.or(sniffed.as_deref()), &content))
}

enum Piece<'p, 'a> {
    Plain(String),
    Html(String),
    Attached(Attached<'p, 'a>),
}

/// Where a part stands among the others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The whole message, or the first of several.
    Alone,
    /// A later one of several.
    Among,
    /// What the root of a `multipart/related` refers to.
    Related,
}

struct Chooser<'m> {
    message: &'m Bytes,
}

impl Chooser<'_> {
    /// The pieces of a part, by and large as RFC 8621 §4.1.4 chooses them.
    fn pieces<'p, 'a>(&self, part: &'p Part<'a>, place: Place) -> Vec<Piece<'p, 'a>> {
        if part.is_multipart() {
            return match part.media_type() {
                "multipart/alternative" => self.alternatives(part),
                "multipart/related" => self.related(part),
                _ => self.sequence(part),
            };
        }
        let text = matches!(part.media_type(), "text/plain" | "text/html") && !part.closed;
        let shown = text
            && part.is_inline()
            && match place {
                Place::Alone => true,
                Place::Among => part.file_name().is_none(),
                Place::Related => false,
            };
        match shown {
            false => vec![Piece::Attached(Attached::Part(part))],
            true if part.media_type() == "text/html" => vec![Piece::Html(text_of(self.message, part))],
            true => plain(text_of(self.message, part), part),
        }
    }

    fn sequence<'p, 'a>(&self, part: &'p Part<'a>) -> Vec<Piece<'p, 'a>> {
        let mut pieces = Vec::new();
        for (number, part) in part.parts.iter().enumerate() {
            let place = if number == 0 { Place::Alone } else { Place::Among };
            pieces.extend(self.pieces(part, place));
        }
        pieces
    }

    /// RFC 2387: a root, and what it refers to.
    fn related<'p, 'a>(&self, part: &'p Part<'a>) -> Vec<Piece<'p, 'a>> {
        let start = part
            .content_type
            .get("start")
            .map(|it| it.trim_matches(['<', '>']));
        let root = part
            .parts
            .iter()
            .position(|it| start.is_some() && it.content_id().as_deref() == start)
            .unwrap_or(0);
        let mut pieces = self.pieces(&part.parts[root], Place::Alone);
        for (number, part) in part.parts.iter().enumerate() {
            if number != root {
                pieces.extend(self.pieces(part, Place::Related));
            }
        }
        pieces
    }

    /// RFC 2046 §5.1.4: one of them is shown. Only a plain twin is left out: an invitation or a
    /// spreadsheet among the alternatives is attached.
    fn alternatives<'p, 'a>(&self, part: &'p Part<'a>) -> Vec<Piece<'p, 'a>> {
        let alternatives: Vec<Vec<Piece<'p, 'a>>> = part
            .parts
            .iter()
            .map(|it| self.pieces(it, Place::Alone))
            .collect();
        let has_html = alternatives
            .iter()
            .flatten()
            .any(|it| matches!(it, Piece::Html(html) if !is_blank(html)));
        let mut pieces = Vec::new();
        for alternative in alternatives {
            let is_html = alternative.iter().any(|it| matches!(it, Piece::Html(_)));
            pieces.extend(alternative.into_iter().filter(|it| match it {
                // Text around the HTML of one alternative (Apple Mail writes such) belongs to it.
                Piece::Plain(_) => !has_html || is_html,
                Piece::Html(_) => has_html,
                Piece::Attached(_) => true,
            }));
        }
        pieces
    }
}

/// The pieces of a plain text.
fn plain<'p, 'a>(text: String, part: &'p Part<'a>) -> Vec<Piece<'p, 'a>> {
    let says = |name: &str, value: &str| {
        let parameter = part.content_type.get(name);
        parameter.is_some_and(|it| it.eq_ignore_ascii_case(value))
    };
    if says("format", "flowed") {
        return vec![Piece::Plain(text::unflow(&text, says("delsp", "yes")))];
    }
    let (text, files) = text::take_files(text);
    let mut pieces = vec![Piece::Plain(text)];
    pieces.extend(files.into_iter().map(|it| Piece::Attached(Attached::File(it))));
    pieces
}

/// Joins several texts to one body: HTML if one of them is.
fn join(texts: Vec<Piece<'_, '_>>) -> Body {
    let mut plain = String::new();
    let mut html: Option<String> = None;
    for piece in texts {
        match (piece, &mut html) {
            (Piece::Plain(text), None) if plain.is_empty() => plain = text,
            (Piece::Plain(text), None) => {
                plain.truncate(plain.trim_end_matches(['\r', '\n']).len());
                plain.push_str("\r\n\r\n");
                plain.push_str(&text);
            }
            (Piece::Plain(text), Some(html)) => insert(html, &to_html(&text)),
            (Piece::Html(text), None) if plain.is_empty() => html = Some(text),
            (Piece::Html(text), None) => html = Some(to_html(&plain) + &text),
            (Piece::Html(text), Some(html)) => insert(html, &text),
            (Piece::Attached(_), _) => {}
        }
    }
    match html {
        Some(html) => Body::Html(html),
        None => Body::Text(plain),
    }
}

/// Adds HTML at the end of a document's body.
fn insert(document: &mut String, html: &str) {
    let bytes = document.as_bytes();
    let end = memmem::rfind_iter(bytes, b"</")
        .take(16)
        .find(|at| {
            bytes
                .get(at + 2..at + 6)
                .is_some_and(|it| it.eq_ignore_ascii_case(b"body"))
        })
        .unwrap_or(bytes.len());
    document.insert_str(end, html);
}

/// Plain text as HTML that looks like it.
pub fn to_html(text: &str) -> String {
    let mut html = String::with_capacity(text.len() + text.len() / 8 + 16);
    html.push_str("<div>");
    let mut space = true;
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '\n' => html.push_str("<br>\r\n"),
            '\r' => {}
            // Runs of spaces, and those at the beginning of a line, are columns and indents.
            // As characters rather than entities: a text of tabs would grow to 24 times its size.
            ' ' if space => html.push('\u{a0}'),
            '\t' => html.push_str("\u{a0}\u{a0}\u{a0}\u{a0}"),
            c => html.push(c),
        }
        space = matches!(c, ' ' | '\n');
    }
    html.push_str("</div>\r\n");
    html
}

/// Whether HTML shows nothing: no text and no image.
fn is_blank(html: &str) -> bool {
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        let (text, tag) = rest.split_at(at);
        let image = tag.get(1..4).is_some_and(|it| it.eq_ignore_ascii_case("img"));
        if image || !text.trim().is_empty() {
            return false;
        }
        rest = tag.find('>').map_or("", |it| &tag[it + 1..]);
    }
    rest.trim().is_empty()
}

/// Line endings become CRLF, and characters go that Exchange cannot keep: its protocols are XML
/// within, where control characters have no place (<https://www.w3.org/TR/xml/#charsets>). The page
/// breaks of printed reports become line breaks.
fn tidy(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 32);
    let mut rest = text;
    let special = |it: u8| it < b' ' && it != b'\t';
    while let Some(at) = rest.bytes().position(special) {
        out.push_str(&rest[..at]);
        let bytes = rest.as_bytes();
        let mut length = 1;
        match bytes[at] {
            b'\r' => {
                // CR CR LF is one line ending that was converted once too often.
                let returns = bytes[at..].iter().take_while(|it| **it == b'\r').count();
                let lf = bytes.get(at + returns) == Some(&b'\n');
                length = if lf { returns + 1 } else { 1 };
                out.push_str("\r\n");
            }
            b'\n' | 0x0b | 0x0c => out.push_str("\r\n"),
            _ => {}
        }
        rest = &rest[at + length..];
    }
    out.push_str(rest);
    if out.contains(['\u{fffe}', '\u{ffff}']) {
        out.retain(|it| !matches!(it, '\u{fffe}' | '\u{ffff}'));
    }
    out
}

/// The charset that an HTML file names in its own head.
fn meta_charset(html: &[u8]) -> Option<String> {
    let head = html[..html.len().min(1024)].to_ascii_lowercase();
    let meta = memmem::find(&head, b"<meta")?;
    let at = meta + memmem::find(&head[meta..], b"charset=")? + 8;
    let name: Vec<u8> = head[at..]
        .iter()
        .copied()
        .skip_while(|it| matches!(it, b'"' | b'\'' | b' '))
        .take_while(|it| it.is_ascii_alphanumeric() || b"-_:.".contains(it))
        .take(40)
        .collect();
    // The file was read as bytes to get here, so it is not in a charset of 16-bit units.
    let name = String::from_utf8(name).ok()?;
    (!name.is_empty() && !name.starts_with("utf-16")).then_some(name)
}

/// The Content-IDs that an HTML body refers to (RFC 2392).
pub fn references(body: &Body) -> HashSet<String> {
    let Body::Html(html) = body else {
        return HashSet::new();
    };
    let bytes = html.as_bytes();
    let mut found = HashSet::new();
    for at in memchr::memchr2_iter(b'c', b'C', bytes) {
        let Some(rest) = bytes.get(at..) else { break };
        if rest.len() < 4 || !rest[..4].eq_ignore_ascii_case(b"cid:") {
            continue;
        }
        let id: Vec<u8> = rest[4..]
            .iter()
            .copied()
            .take(1000)
            .take_while(|it| !it.is_ascii_whitespace() && !b"\"'<>)".contains(it))
            .collect();
        let mut id = String::from_utf8_lossy(&id).into_owned();
        if let Some(end) = id.find("&quot;") {
            id.truncate(end);
        }
        found.insert(percent_decoded(&id.replace("&amp;", "&")));
        if found.len() == MAX_REFERENCES {
            break;
        }
    }
    found
}

fn percent_decoded(text: &str) -> String {
    let mut octets = Vec::with_capacity(text.len());
    crate::message::transfer::quoted(text.as_bytes(), b'%', &mut octets);
    String::from_utf8_lossy(&octets).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(message: &str) -> (Body, usize) {
        let message = Bytes::copy_from_slice(message.as_bytes());
        let root = Part::parse(&message);
        let shown = choose(&message, &root);
        (shown.body, shown.attached.len())
    }

    /// `text` for a part of that type; `mixed[a b]` for a multipart.
    fn build(outline: &str) -> String {
        fn part(words: &mut std::iter::Peekable<std::str::SplitWhitespace<'_>>, level: usize) -> String {
            let word = words.next().expect("a part");
            if let Some(kind) = word.strip_suffix('[') {
                let mut message = format!("Content-Type: multipart/{kind}; boundary=b{level}\r\n\r\n");
                while words.peek() != Some(&"]") {
                    message += &format!("--b{level}\r\n{}\r\n", part(words, level + 1));
                }
                words.next();
                return message + &format!("--b{level}--");
            }
            let (kind, text) = word.split_once('=').unwrap_or((word, ""));
            let (kind, name) = kind.split_once(';').unwrap_or((kind, ""));
            let head = match kind {
                "t" => "Content-Type: text/plain",
                "h" => "Content-Type: text/html",
                _ => kind_of(kind),
            };
            let name = match name {
                "" => String::new(),
                "a" => "\r\nContent-Disposition: attachment".to_owned(),
                name => format!("; name={name}"),
            };
            format!("{head}{name}\r\n\r\n{text}")
        }
        fn kind_of(kind: &str) -> &'static str {
            match kind {
                "pdf" => "Content-Type: application/pdf",
                "png" => "Content-Type: image/png",
                "ics" => "Content-Type: text/calendar",
                _ => panic!("no such type"),
            }
        }
        part(&mut outline.split_whitespace().peekable(), 0)
    }

    #[test]
    fn shows_one_text_and_attaches_the_rest() {
        let text = |it: &str| Body::Text(it.to_owned());
        let html = |it: &str| Body::Html(it.to_owned());
        for (outline, want, attached) in [
            ("t=a", text("a"), 0),
            ("h=<b>a</b>", html("<b>a</b>"), 0),
            ("alternative[ t=a h=<b>a</b> ]", html("<b>a</b>"), 0),
            ("alternative[ h=<b>a</b> t=a ]", html("<b>a</b>"), 0),
            ("alternative[ t=a ]", text("a"), 0),
            // An empty alternative is no alternative.
            ("alternative[ t=a h= ]", text("a"), 0),
            ("alternative[ t=a h=<p></p> ]", text("a"), 0),
            ("alternative[ t= h=<img> ]", html("<img>"), 0),
            ("alternative[ t=a h=<b>a</b> ics=x ]", html("<b>a</b>"), 1),
            ("mixed[ t=a pdf=x ]", text("a"), 1),
            ("mixed[ t=a t=b ]", text("a\r\n\r\nb"), 0),
            ("mixed[ t=a t;b.txt=b h;c.html=c ]", text("a"), 2),
            ("mixed[ t;a=a t=b ]", text("b"), 1),
            (
                "mixed[ h=<body>a</body> t=b&c ]",
                html("<body>a<div>b&amp;c</div>\r\n</body>"),
                0,
            ),
            ("mixed[ t=a h=b ]", html("<div>a</div>\r\nb"), 0),
            ("mixed[ h=a h=b ]", html("ab"), 0),
            ("mixed[ pdf=x ]", text(""), 1),
            ("mixed[ pdf=x t=a ]", text("a"), 1),
            ("related[ h=a png=x ]", html("a"), 1),
            ("related[ h=a t=b h=c ]", html("a"), 2),
            (
                "mixed[ alternative[ t=a related[ h=b png=x ] ] pdf=y ]",
                html("b"),
                2,
            ),
            ("related[ alternative[ t=a h=b ] png=x ]", html("b"), 1),
            ("alternative[ t=a mixed[ h=b pdf=x h=c ] ]", html("bc"), 1),
            ("report[ t=a pdf=x ]", text("a"), 1),
            ("pdf=x", text(""), 1),
            ("png=x", text(""), 1),
            ("t;a=a", text(""), 1),
        ] {
            assert_eq!(shown(&build(outline)), (want, attached), "{outline}");
        }
    }

    #[test]
    fn finds_the_root_of_related_parts() {
        let message = "Content-Type: multipart/related; boundary=b; start=\"<r>\"\r\n\r\n\
            --b\r\nContent-Type: image/png\r\n\r\nx\r\n\
            --b\r\nContent-Type: text/html\r\nContent-ID: <r>\r\n\r\nroot\r\n--b--";
        assert_eq!(shown(message), (Body::Html("root".to_owned()), 1));
    }

    #[test]
    fn finds_references() {
        let html = "<img src=\"cid:a@b\"><img src='CID:c%40d'><img src=cid:e><a href=\"x\">cid:</a>\
                    <td style=\"background:url(cid:f&amp;g)\"><td style='url(&quot;cid:h&quot;)'>";
        let found = references(&Body::Html(html.to_owned()));
        for id in ["a@b", "c@d", "e", "f&g", "h"] {
            assert!(found.contains(id), "{id}: {found:?}");
        }
        assert!(references(&Body::Text(html.to_owned())).is_empty());
    }

    #[test]
    fn tidies_text() {
        for (text, want) in [
            ("a\nb\r\nc\rd\r\r\ne", "a\r\nb\r\nc\r\nd\r\ne"),
            ("a\0b\x1bc\td", "abc\td"),
            ("page 1\x0cpage 2", "page 1\r\npage 2"),
            ("a\u{ffff}b", "ab"),
            ("", ""),
        ] {
            assert_eq!(tidy(text), want, "{text:?}");
        }
        assert_eq!(
            to_html("a  b\n c\t<"),
            "<div>a \u{a0}b<br>\r\n\u{a0}c\u{a0}\u{a0}\u{a0}\u{a0}&lt;</div>\r\n"
        );
    }

    #[test]
    fn reads_the_charset_of_an_html_file() {
        for (html, want) in [
            ("<html><head><meta charset=\"koi8-r\">", Some("koi8-r")),
            (
                "<META http-equiv=x content='text/html; charset=ISO-8859-2'>",
                Some("iso-8859-2"),
            ),
            ("<meta name=x>", None),
            ("charset=koi8-r", None),
            ("<meta charset=utf-16>", None),
        ] {
            assert_eq!(meta_charset(html.as_bytes()).as_deref(), want, "{html}");
        }
    }
}
