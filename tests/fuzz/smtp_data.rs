//! Whatever mail data is, and however it is cut: its end is CRLF.CRLF and nothing else, and its content is
//! what RFC 5321 §4.5.2 says.

use graphpost::smtp::data::DataDecoder;

/// Decodes `data` whole and in the pieces that its last octet says.
pub fn check(data: &[u8]) {
    let piece = usize::from(data.last().copied().unwrap_or(0)) % 61 + 1;
    let whole = decode(data, data.len().max(1));
    assert_eq!(whole, decode(data, piece));
    assert_eq!(whole, definition(data));
}

/// How many octets up to the end, if there is one; and the content.
fn decode(data: &[u8], piece: usize) -> (Option<usize>, Vec<u8>) {
    let (mut decoder, mut content, mut taken) = (DataDecoder::default(), Vec::new(), 0);
    for piece in data.chunks(piece) {
        let now = decoder.feed(piece, |slice| content.extend_from_slice(slice));
        taken += now;
        if decoder.is_done() {
            return (Some(taken), content);
        }
        assert_eq!(now, piece.len(), "only the end leaves octets");
    }
    (None, without_undecided(data, content))
}

/// Where the end has not come, a dot at the start of the last line is held back.
fn without_undecided(data: &[u8], mut content: Vec<u8>) -> Vec<u8> {
    if data.ends_with(b"\n.") && !data.ends_with(b"\r\n.") {
        content.push(b'.');
    }
    if data == b".\r" || data.ends_with(b"\r\n.\r") {
        content.push(b'\r');
    }
    content
}

fn definition(data: &[u8]) -> (Option<usize>, Vec<u8>) {
    let framed = [b"\r\n", data].concat();
    let end = framed
        .windows(5)
        .position(|it| it == b"\r\n.\r\n")
        .map(|at| at + 3);
    let text = end.map_or(data, |end| &data[..end - 3]);
    let (mut content, mut after_crlf) = (Vec::new(), true);
    for line in text.split_inclusive(|it| *it == b'\n') {
        let stuffed: &[u8] = if after_crlf { b"." } else { b".." };
        let line = if line.starts_with(stuffed) {
            &line[1..]
        } else {
            line
        };
        after_crlf = line.ends_with(b"\r\n");
        match line.strip_suffix(b"\n") {
            Some(bare) if !after_crlf => {
                content.extend_from_slice(bare);
                content.extend_from_slice(b"\r\n");
            }
            _ => content.extend_from_slice(line),
        }
    }
    (end, content)
}
