//! Whatever a client sends as a line: it is understood or refused, and what is understood can be said
//! again without meaning something else.

use graphpost::address::Address;
use graphpost::smtp::command::{Command, is_http};
use graphpost::smtp::lines::{Found, Lines};
use graphpost::smtp::reply::Reply;

/// Reads `data` as lines of commands, cut into the pieces that its last octet says.
pub fn check(data: &[u8]) {
    const LIMIT: usize = 2048;
    let piece = usize::from(data.last().copied().unwrap_or(0)) * 8 + 1;
    let mut lines = Lines::default();
    for piece in data.chunks(piece) {
        lines.room(1024).extend_from_slice(piece);
        loop {
            match lines.next(LIMIT) {
                Found::Incomplete => break,
                Found::TooLong => {}
                Found::Line(line) => command(line, LIMIT),
            }
        }
        assert!(
            lines.unread().len() <= LIMIT + 1,
            "a line that does not end is kept"
        );
    }
}

fn command(line: &[u8], limit: usize) {
    assert!(line.len() <= limit && !line.contains(&b'\n'));
    is_http(line);
    match Command::parse(line) {
        Err(refusal) => wire(&refusal),
        Ok(Command::Mail { reverse_path, .. }) => {
            if let Some(address) = reverse_path.0 {
                same_again(&address);
            }
        }
        Ok(Command::Rcpt(address)) => same_again(&address),
        Ok(_) => {}
    }
}

/// An address that was taken has no octet that would end a line, a header field or a path.
fn same_again(address: &Address) {
    assert!(!address.as_str().chars().any(char::is_control), "{address:?}");
    let line = format!("RCPT TO:<{address}>");
    match Command::parse(line.as_bytes()) {
        Ok(Command::Rcpt(again)) => assert_eq!(again.as_str(), address.as_str()),
        other => panic!("{line:?} is {other:?}"),
    }
}

/// A reply is lines of printable ASCII, and not too long ones.
pub fn wire(reply: &Reply) {
    let mut wire = Vec::new();
    reply.encode(&mut wire);
    let text = wire.strip_suffix(b"\r\n").expect("a reply ends");
    for line in text.split(|it| *it == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        assert!(line.len() <= 510 && line.iter().all(|it| (b' '..=b'~').contains(it)));
    }
}
