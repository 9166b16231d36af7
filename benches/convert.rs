//! Conversion: MB/s of message for one request or draft, beside base64-encoding the same octets in the
//! same run.
//!
//! ```console
//! $ cargo bench --bench convert
//! ```

use std::hint::black_box;
use std::time::{Duration, Instant};

use base64_simd::STANDARD;
use bytes::Bytes;
use graphpost::address::Address;
use graphpost::convert::{Order, Wishes, convert};
use graphpost::envelope::{Envelope, HeaderFrom, ReversePath, Route};

/// How long each figure is measured.
const SPAN: Duration = Duration::from_secs(2);

fn main() {
    let address = |text: &str| Address::parse(text).expect("an address");
    let envelope = Envelope {
        reverse_path: ReversePath(Some(address("erp@contoso.com"))),
        recipients: vec![address("you@example.org")],
    };
    let route = Route {
        mailbox: "service@contoso.com".to_owned(),
        rule: "sender[1]".to_owned(),
        header_from: HeaderFrom::Mailbox,
        save_to_sent_items: true,
        format: None,
        unknown: None,
    };
    let order = Order {
        envelope: &envelope,
        route: &route,
        message_id: "1@contoso.com",
        wishes: Wishes {
            large_messages: true,
            ..Wishes::default()
        },
    };
    println!(
        "{:<28} {:>10} {:>12} {:>8}",
        "message", "MB/s", "base64 MB/s", "ratio"
    );
    for (name, message) in [
        ("10 KB of text", text(10_000)),
        ("a 1 MB attachment", attachment(1_000_000)),
        ("a 10 MB attachment", attachment(10_000_000)),
        ("a 100 MB attachment", attachment(100_000_000)),
    ] {
        let message = Bytes::from(message);
        let converted = rate(message.len(), || {
            black_box(convert(black_box(&message), &order)).expect("converted");
        });
        let encoded = rate(message.len(), || {
            black_box(STANDARD.encode_to_string(black_box(&message)));
        });
        println!(
            "{name:<28} {converted:>10.0} {encoded:>12.0} {:>8.1}",
            encoded / converted
        );
    }
}

/// MB of message a second.
fn rate(octets: usize, mut work: impl FnMut()) -> f64 {
    work();
    let begun = Instant::now();
    let mut times = 0;
    while begun.elapsed() < SPAN {
        work();
        times += 1;
    }
    (octets * times) as f64 / 1e6 / begun.elapsed().as_secs_f64()
}

const HEAD: &str = "From: erp@contoso.com\r\nTo: you@example.org\r\nSubject: Report\r\nMIME-Version: 1.0\r\n";

fn text(size: usize) -> Vec<u8> {
    let mut message = format!("{HEAD}Content-Type: text/plain; charset=utf-8\r\n\r\n");
    while message.len() < size {
        message.push_str("A line of a report, with a word in Grün.\r\n");
    }
    message.into_bytes()
}

/// A message with an attachment of so many octets, in base64 as mail programs write it.
fn attachment(size: usize) -> Vec<u8> {
    let content: Vec<u8> = (0..size)
        .map(|it| (it.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let mut message = format!(
        "{HEAD}Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nSee the scan.\r\n--b\r\n\
         Content-Type: application/pdf; name=scan.pdf\r\nContent-Disposition: attachment; filename=scan.pdf\r\n\
         Content-Transfer-Encoding: base64\r\n\r\n"
    )
    .into_bytes();
    for line in STANDARD.encode_to_string(&content).as_bytes().chunks(76) {
        message.extend_from_slice(line);
        message.extend_from_slice(b"\r\n");
    }
    message.extend_from_slice(b"--b--\r\n");
    message
}
