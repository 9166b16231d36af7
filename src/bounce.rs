//! The delivery status notification (RFC 3464): what the sender of a message is told when it failed,
//! expired, or is late. Pure.
//!
//! A notification is itself a message: multipart/report with a part for people, a part for machines,
//! and the header section of the original. It is queued with the null reverse-path, so that it is
//! never answered by another one (RFC 5321 §4.5.5).

use jiff::Timestamp;

use crate::address::Address;

/// What happened to the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// It was refused for good.
    Failed,
    /// It was tried for the whole queue lifetime.
    Expired,
    /// It is late, and still tried until then.
    Delayed {
        /// When it will be given up.
        until: Timestamp,
    },
}

/// All that a notification says.
#[derive(Clone, Copy, Debug)]
pub struct Notification<'a> {
    /// What happened.
    pub happening: Happening,
    /// Whom it is for: the envelope sender. There is no notification for the null reverse-path, so
    /// this cannot be absent.
    pub to: &'a Address,
    /// The mailbox that sends it.
    pub from: &'a str,
    /// The recipients concerned.
    pub recipients: &'a [Address],
    /// Why, in words.
    pub reason: &'a str,
    /// The enhanced status code (RFC 3463), such as `5.1.3`.
    pub enhanced: &'a str,
    /// Graph's `request-id`, for Microsoft's support.
    pub request_id: Option<&'a str>,
    /// The id of the original in the queue.
    pub queue_id: &'a str,
    /// The Message-ID of the original, without angle brackets.
    pub original_message_id: &'a str,
    /// This gateway's host name.
    pub reporting_mta: &'a str,
    /// When the original was accepted.
    pub arrival: Timestamp,
    /// When it was last tried.
    pub last_attempt: Timestamp,
    /// Now.
    pub now: Timestamp,
    /// The Message-ID of the notification, without angle brackets.
    pub message_id: &'a str,
    /// The content of the original; only its header section is returned.
    pub original: &'a [u8],
}

/// The most octets of the original's header section that are returned.
const MAX_RETURNED_OCTETS: usize = 32 * 1024;

/// Writes the notification as a message (RFC 5322) with CRLF line ends.
pub fn notification(it: &Notification<'_>) -> Vec<u8> {
    let boundary = boundary(it);
    let (subject, action) = match it.happening {
        Happening::Failed | Happening::Expired => ("Undelivered mail returned to sender", "failed"),
        Happening::Delayed { .. } => ("Delayed mail (still being retried)", "delayed"),
    };
    let mut out = String::with_capacity(4096);
    let mut line = |text: &str| {
        out.push_str(text);
        out.push_str("\r\n");
    };
    line(&format!("From: Mail Delivery System <{}>", one_line(it.from)));
    line(&format!("To: <{}>", it.to));
    line(&format!("Subject: {subject}"));
    line(&format!("Date: {}", rfc_5322_date(it.now)));
    line(&format!("Message-ID: <{}>", one_line(it.message_id)));
    line(&format!("In-Reply-To: <{}>", one_line(it.original_message_id)));
    // RFC 3834 §5: so that no vacation responder answers.
    line("Auto-Submitted: auto-replied");
    line("MIME-Version: 1.0");
    line(&format!(
        "Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"{boundary}\""
    ));
    line("");
    line("This is a MIME-encapsulated message.");

    line(&format!("\r\n--{boundary}"));
    line("Content-Description: Notification");
    line("Content-Type: text/plain; charset=utf-8");
    line("Content-Transfer-Encoding: 8bit");
    line("");
    line(&format!(
        "This is the mail gateway at {}.",
        one_line(it.reporting_mta)
    ));
    line("");
    match it.happening {
        Happening::Failed => {
            line("Your message could not be delivered to the recipients below. It will not be tried again.")
        }
        Happening::Expired => line(
            "Your message could not be delivered to the recipients below within the time allowed for it.\r\n\
             It will not be tried again.",
        ),
        Happening::Delayed { until } => {
            line("Your message could not yet be delivered to the recipients below.");
            line(&format!(
                "It is tried again until {}. You need not send it again.",
                rfc_5322_date(until)
            ));
        }
    }
    line("");
    for recipient in it.recipients {
        line(&format!("    {recipient}"));
    }
    line("");
    line("The reason:");
    line("");
    line(&format!("    {}", one_line(it.reason)));
    line("");
    line("If you ask your administrator about it, give this id:");
    line("");
    line(&format!("    {}", one_line(it.queue_id)));

    // RFC 3464 §2: fields about the message, then a group of fields for each recipient.
    line(&format!("\r\n--{boundary}"));
    line("Content-Description: Delivery report");
    // RFC 6533: UTF-8 addresses need the global form of the report.
    let global = it
        .recipients
        .iter()
        .any(|recipient| !recipient.as_str().is_ascii());
    let (content_type, address_type) = match global {
        false => ("message/delivery-status", "rfc822"),
        true => ("message/global-delivery-status", "utf-8"),
    };
    line(&format!("Content-Type: {content_type}"));
    if global {
        line("Content-Transfer-Encoding: 8bit");
    }
    line("");
    line(&format!("Reporting-MTA: dns; {}", one_line(it.reporting_mta)));
    line(&format!("X-Graphpost-Queue-ID: {}", one_line(it.queue_id)));
    line(&format!("Arrival-Date: {}", rfc_5322_date(it.arrival)));
    for recipient in it.recipients {
        line("");
        line(&format!("Final-Recipient: {address_type}; {recipient}"));
        line(&format!("Action: {action}"));
        line(&format!("Status: {}", one_line(it.enhanced)));
        // §2.3.6: the diagnostic is not an SMTP reply, so its type says whose it is.
        line(&format!(
            "Diagnostic-Code: X-Graph; {}",
            ascii(&one_line(it.reason))
        ));
        if let Some(request_id) = it.request_id {
            line(&format!("X-Graph-Request-ID: {}", ascii(&one_line(request_id))));
        }
        line(&format!("Last-Attempt-Date: {}", rfc_5322_date(it.last_attempt)));
        if let Happening::Delayed { until } = it.happening {
            line(&format!("Will-Retry-Until: {}", rfc_5322_date(until)));
        }
    }

    line(&format!("\r\n--{boundary}"));
    line("Content-Description: Headers of your message");
    let head = header_section(it.original);
    let mut out = out.into_bytes();
    // RFC 6522 §3 item 3: the header section alone is enough.
    let encoding = if head.is_ascii() { "7bit" } else { "8bit" };
    out.extend_from_slice(
        format!("Content-Type: text/rfc822-headers\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n")
            .as_bytes(),
    );
    out.extend_from_slice(head);
    out.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    out
}

/// The header section of a message: its lines up to the empty one, or nothing where the message
/// does not begin with a field. Cut at a line end when it is long.
fn header_section(content: &[u8]) -> &[u8] {
    let field_name = content
        .iter()
        .take_while(|&&it| it.is_ascii_graphic() && it != b':')
        .count();
    if field_name == 0 || content.get(field_name) != Some(&b':') {
        return b"";
    }
    let end = content
        .windows(4)
        .take(MAX_RETURNED_OCTETS)
        .position(|it| it == b"\r\n\r\n")
        .map(|at| at + 2);
    match end {
        Some(end) => &content[..end],
        None => {
            let head = &content[..content.len().min(MAX_RETURNED_OCTETS)];
            let whole_lines = head
                .windows(2)
                .rposition(|it| it == b"\r\n")
                .map_or(0, |at| at + 2);
            &head[..whole_lines]
        }
    }
}

/// A boundary that does not occur in the original's header section. Nothing else in the
/// notification is the sender's to choose line by line.
fn boundary(it: &Notification<'_>) -> String {
    let head = header_section(it.original);
    (0u32..)
        .map(|number| {
            format!(
                "graphpost-{}-{}-{number}",
                one_line(it.queue_id),
                it.now.as_second()
            )
        })
        .find(|boundary| {
            !head
                .windows(boundary.len())
                .any(|window| window == boundary.as_bytes())
        })
        .unwrap_or_default()
}

/// Text that cannot end its line: whatever Graph or a client said stays inside one field.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|it| {
            if it.is_control() || matches!(it, '\u{2028}' | '\u{2029}') {
                ' '
            } else {
                it
            }
        })
        .collect()
}

/// Text for a field that only takes ASCII (RFC 3464 §2.1.3).
fn ascii(text: &str) -> String {
    text.chars()
        .map(|it| if it.is_ascii() { it } else { '?' })
        .collect()
}

/// RFC 5322 §3.3, in UTC.
fn rfc_5322_date(at: Timestamp) -> String {
    at.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string()
}

#[cfg(test)]
mod tests {
    use mail_parser::{MessageParser, MimeHeaders, PartType};

    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn address(text: &str) -> Address {
        Address::parse(text).expect("an address")
    }

    fn sample<'a>(to: &'a Address, recipients: &'a [Address]) -> Notification<'a> {
        Notification {
            happening: Happening::Failed,
            to,
            from: "service@contoso.com",
            recipients,
            reason: "400 ErrorInvalidRecipients: At least one recipient is not valid.",
            enhanced: "5.1.3",
            request_id: Some("b6f3"),
            queue_id: "0000004F",
            original_message_id: "1@erp.contoso.com",
            reporting_mta: "relay.contoso.com",
            arrival: time("2026-11-24T08:00:00Z"),
            last_attempt: time("2026-11-24T08:00:01Z"),
            now: time("2026-11-24T08:00:02Z"),
            message_id: "2@relay.contoso.com",
            original: b"Subject: Invoice 7\r\nTo: a@example.org\r\n\r\nSecret body\r\n",
        }
    }

    /// The notification of a sample that `change` has altered.
    fn written<'a>(change: impl FnOnce(&mut Notification<'a>)) -> Vec<u8> {
        // A few addresses that live as long as the test process.
        let to: &'static Address = Box::leak(Box::new(address("erp@contoso.com")));
        let recipients: &'static [Address] =
            Box::leak(Box::new([address("a@example.org"), address("b@example.org")]));
        let mut it = sample(to, recipients);
        change(&mut it);
        notification(&it)
    }

    fn text_of(raw: &[u8], part: usize) -> String {
        let message = MessageParser::default().parse(raw).expect("a message");
        match &message.parts[part].body {
            PartType::Text(text) => text.to_string(),
            PartType::Binary(octets) => String::from_utf8(octets.to_vec()).expect("UTF-8"),
            other => panic!("part {part} is {other:?}"),
        }
    }

    #[test]
    fn is_a_report_with_three_parts() {
        let raw = written(|_| {});

        let message = MessageParser::default().parse(&raw).expect("a message");
        let content_type = message.content_type().expect("a content type");
        assert_eq!(
            (content_type.ctype(), content_type.subtype()),
            ("multipart", Some("report"))
        );
        assert_eq!(content_type.attribute("report-type"), Some("delivery-status"));
        assert_eq!(message.parts.len(), 4);
        assert_eq!(
            message.header_raw("Auto-Submitted").map(str::trim),
            Some("auto-replied")
        );
        let human = text_of(&raw, 1);
        for expected in [
            "a@example.org",
            "b@example.org",
            "ErrorInvalidRecipients",
            "0000004F",
        ] {
            assert!(human.contains(expected), "{expected} in {human}");
        }
        let machine = text_of(&raw, 2);
        let groups: Vec<&str> = machine.trim_end().split("\r\n\r\n").collect();
        assert_eq!(groups.len(), 3, "{machine}");
        assert!(
            groups[0].starts_with("Reporting-MTA: dns; relay.contoso.com\r\n"),
            "{machine}"
        );
        assert!(
            groups[1].contains("Final-Recipient: rfc822; a@example.org\r\nAction: failed\r\nStatus: 5.1.3")
        );
        assert!(groups[2].contains("Final-Recipient: rfc822; b@example.org"));
        assert!(text_of(&raw, 3).contains("Subject: Invoice 7"));
        assert!(!String::from_utf8_lossy(&raw).contains("Secret body"));
    }

    #[test]
    fn a_delay_says_until_when() {
        let until = time("2026-11-29T08:00:00Z");
        let raw = written(|it| {
            it.happening = Happening::Delayed { until };
            it.enhanced = "4.4.7";
        });
        let machine = text_of(&raw, 2);
        assert!(machine.contains("Action: delayed\r\nStatus: 4.4.7"), "{machine}");
        assert!(
            machine.contains("Will-Retry-Until: Sun, 29 Nov 2026 08:00:00 +0000"),
            "{machine}"
        );
        assert!(text_of(&raw, 1).contains("You need not send it again."));
    }

    #[test]
    fn nothing_said_by_others_begins_a_line() {
        let hostile = "x\r\nBcc: victim@example.net\r\n\r\n--graphpost";
        let raw = written(|it| {
            it.reason = hostile;
            it.request_id = Some(hostile);
            it.original_message_id = hostile;
        });
        let text = String::from_utf8_lossy(&raw);
        assert!(
            !text
                .lines()
                .any(|line| line.starts_with("Bcc") || line == "--graphpost"),
            "{text}"
        );
    }

    #[test]
    fn the_original_cannot_close_the_report() {
        let boundary = "graphpost-0000004F-1795507202-0";
        let original = format!("Subject: x\r\nX-Trick: \r\n --{boundary}--\r\n\r\nbody");
        let raw = written(|it| it.original = original.as_bytes());
        let message = MessageParser::default().parse(&raw).expect("a message");
        assert_eq!(message.parts.len(), 4);
        let used = message
            .content_type()
            .and_then(|it| it.attribute("boundary"))
            .expect("a boundary");
        assert_eq!(used, "graphpost-0000004F-1795507202-1");
    }

    #[test]
    fn utf_8_recipients_take_the_global_form() {
        let (to, recipients) = (address("erp@contoso.com"), [address("jürgen@example.org")]);
        let raw = notification(&Notification {
            reason: "zu spät",
            ..sample(&to, &recipients)
        });
        let text = String::from_utf8(raw).expect("UTF-8");
        assert!(text.contains("message/global-delivery-status"));
        assert!(text.contains("Final-Recipient: utf-8; jürgen@example.org"));
        assert!(text.contains("Diagnostic-Code: X-Graph; zu sp?t"));
    }

    #[test]
    fn returns_only_whole_header_lines() {
        for (content, head) in [
            (&b"A: b\r\nC: d\r\n\r\nbody"[..], &b"A: b\r\nC: d\r\n"[..]),
            (b"A: b\r\nC: d\r\n", b"A: b\r\nC: d\r\n"),
            (b"A: b\r\nC: d", b"A: b\r\n"),
            (b"just text\r\n\r\nmore", b""),
            (b"\r\nbody", b""),
            (b"", b""),
        ] {
            assert_eq!(
                header_section(content),
                head,
                "{}",
                String::from_utf8_lossy(content)
            );
        }
        let long = b"X: y\r\n".repeat(100_000);
        assert_eq!(header_section(&long).len(), MAX_RETURNED_OCTETS / 6 * 6);
        assert!(header_section(&long).ends_with(b"\r\n"));
    }

    #[test]
    fn attachments_are_named_by_type_only() {
        let raw = written(|_| {});

        let message = MessageParser::default().parse(&raw).expect("a message");
        assert!(message.parts.iter().all(|part| part.attachment_name().is_none()));
    }
}
