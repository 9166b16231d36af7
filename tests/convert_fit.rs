//! What is said to fit into a request in any case does fit, whatever it is made of.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use graphpost::address::Address;
use graphpost::config::Api;
use graphpost::convert::{ConvertError, Order, Wishes, convert, fits_in_any_case};
use graphpost::envelope::{Envelope, Format, HeaderFrom, ReversePath, Route};

const LIMIT: usize = 250_000;

fn wishes(format: Format) -> Wishes {
    Wishes {
        format,
        max_request: LIMIT,
        ..Wishes::default()
    }
}

fn sent(content: Vec<u8>, recipients: &[Address], wishes: Wishes) -> Result<(), ConvertError> {
    let envelope = Envelope {
        reverse_path: ReversePath(Address::parse("erp@contoso.com").ok()),
        recipients: recipients.to_vec(),
    };
    let route = Route {
        mailbox: "service@contoso.com".to_owned(),
        rule: "erp".to_owned(),
        header_from: HeaderFrom::Mailbox,
        save_to_sent_items: false,
        format: None,
        unknown: None,
    };
    let order = Order {
        envelope: &envelope,
        route: &route,
        message_id: "1@contoso.com",
        wishes,
    };
    convert(&Bytes::from(content), &order).map(|_| ())
}

/// The longest addresses, of the characters that JSON escapes.
fn recipients(count: usize) -> Vec<Address> {
    let local = |it: usize| format!("\"{it:03}{}\"", "\\\"".repeat(150));
    (0..count)
        .map(|it| Address::parse(&format!("{}@b.example", local(it))).unwrap())
        .collect()
}

/// The largest message that is said to fit.
fn largest(recipients: usize) -> usize {
    let wishes = wishes(Format::Auto);
    let fits = |size: usize| fits_in_any_case(size as u64, recipients, &wishes);
    let size = (0..LIMIT / 8).rev().find(|it| fits(*it)).unwrap();
    assert!(size > 10_000 && !fits(size + 1));
    size
}

#[test]
fn whatever_it_is_made_of() {
    let mixed = "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\n<p>\r\n--b\r\n\r\n";
    let related = "Content-Type: multipart/related; boundary=b\r\n\r\n";
    let addresses = recipients(100);
    for (what, head, filling) in [
        ("eight-bit octets", "Subject: x\r\n\r\n", &b"\x80"[..]),
        ("control characters", "Subject: x\r\n\r\n", b"\x01"),
        ("page breaks", "Subject: x\r\n\r\n", b"\x0c"),
        ("line endings", "Subject: x\r\n\r\n", b"\r\n"),
        ("quotation marks", "Subject: x\r\n\r\n", b"\""),
        (
            "quotes of flowed text",
            "Content-Type: text/plain; format=flowed\r\n\r\n",
            b">\r\n",
        ),
        ("tabs beside HTML", mixed, b"\t"),
        ("page breaks beside HTML", mixed, b"\x0c"),
        ("line endings beside HTML", mixed, b"\r\n"),
        ("ampersands beside HTML", mixed, b"&"),
        ("angle brackets beside HTML", mixed, b"<"),
        ("texts beside HTML", mixed, b"\r\n--b\r\n\r\nx"),
        ("empty parts", related, b"--b\r\n\r\n"),
        ("attachments", related, b"--b\r\nContent-Type: a/b\r\n\r\n"),
        (
            "UTF-7",
            "Content-Type: text/plain; charset=utf-7\r\n\r\n",
            b"+AAk-",
        ),
        (
            "an unknown charset",
            "Content-Type: text/plain; charset=x\r\n\r\n",
            b"\xe2\x82",
        ),
        ("a subject", "Subject: x", b"\x80"),
        ("a name", "To: \"", b"\""),
        ("a name of eight-bit octets", "From: \x22", b"\x80"),
        ("headers", "", b"X-A: \x80\r\n"),
    ] {
        let all = [Format::Auto, Format::Json, Format::Mime];
        for (recipients, formats) in [(&addresses[..1], &all[..1]), (&addresses[..], &all[..])] {
            let size = largest(recipients.len());
            let mut content = head.as_bytes().to_vec();
            content.extend(filling.iter().copied().cycle().take(size - head.len()));
            for &format in formats {
                let sent = sent(content.clone(), recipients, wishes(format));
                assert_eq!(sent, Ok(()), "{what}, to {} as {format:?}", recipients.len());
            }
        }
    }
}

/// Drafts take everything but files over 150 MB; the Outlook API has none.
#[test]
fn drafts_take_what_requests_do_not() {
    let drafts = Wishes {
        large_messages: true,
        ..wishes(Format::Auto)
    };
    assert!(fits_in_any_case(35 << 20, 2000, &drafts));
    assert!(!fits_in_any_case(200 << 20, 1, &drafts));
    let outlook = Wishes {
        api: Api::OutlookV2,
        ..drafts
    };
    assert!(!fits_in_any_case(35 << 20, 1, &outlook));
    for filling in [&b"\x80"[..], b"\r\n", b"\""] {
        let mut content = b"Subject: x\r\n\r\n".to_vec();
        content.extend(filling.repeat(500_000));
        content.push(b'x');
        assert_eq!(sent(content.clone(), &recipients(100), drafts), Ok(()));
        let refusal = sent(content, &recipients(1), wishes(Format::Auto)).unwrap_err();
        assert!(refusal.to_string().contains("large_messages = true"), "{refusal}");
    }
}
