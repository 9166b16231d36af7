//! From RCPT TO to the delivery: exactly the envelope, whatever the header says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use graphpost::sandbox::{Delivery, Form};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::rig::{DEADLINE, Site, body, control};

/// Messages of each form.
const CASES: usize = 150;

/// Numbers that look like chance, and are the same every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % sides
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.roll(from.len())]
    }
}

/// Addresses that are easily taken for each other, for names, or for two.
const ADDRESSES: [&str; 12] = [
    "ann@example.com",
    "ann@example.org",
    "bob@example.com",
    "ann.bob@example.com",
    "o'neil@example.com",
    "sales+eu@example.com",
    "a@example.com",
    "aa@example.com",
    "bcc@example.com",
    "to@cc.example.com",
    "undisclosed@recipients.example",
    "x_y=z@example.com",
];

struct Case {
    recipients: Vec<&'static str>,
    shown: BTreeSet<String>,
    header: String,
}

fn case(dice: &mut Dice) -> Case {
    let mut recipients: Vec<&'static str> = Vec::new();
    for _ in 0..=dice.roll(6) {
        let it = dice.pick(&ADDRESSES);
        if !recipients.contains(&it) {
            recipients.push(it);
        }
    }
    let mut shown = BTreeSet::new();
    let mut header = String::new();
    for _ in 0..dice.roll(5) {
        let name = dice.pick(&[
            "To",
            "Cc",
            "Bcc",
            "TO",
            "cc",
            "Resent-To",
            "X-To",
            "Reply-To",
            "bcc",
        ]);
        let visible = matches!(name.to_ascii_lowercase().as_str(), "to" | "cc");
        let mut items = Vec::new();
        for _ in 0..dice.roll(5) {
            let address = dice.pick(&ADDRESSES);
            if visible {
                shown.insert(address.to_owned());
            }
            items.push(spelled(dice, address));
        }
        let text = match dice.roll(6) {
            0 => format!("undisclosed-recipients:{};", items.join(",")),
            1 => format!("Team (all of it): {} ;, ", items.join(" ,\r\n\t")),
            2 => items.join(",\r\n "),
            3 => format!(",,{},", items.join(",")),
            _ => items.join(", "),
        };
        header.push_str(&format!("{name}: {text}\r\n"));
    }
    Case {
        recipients,
        shown,
        header,
    }
}

/// One address as it may stand in a header.
fn spelled(dice: &mut Dice, address: &str) -> String {
    let other = dice.pick(&ADDRESSES);
    let address = match dice.roll(4) {
        0 => address.to_uppercase(),
        1 => address.replace("example", "EXAMPLE"),
        _ => address.to_owned(),
    };
    match dice.roll(9) {
        0 => format!("<{address}>"),
        // A name that is an address is a name.
        1 => format!("\"{other}\" <{address}>"),
        2 => format!("=?utf-8?Q?J=C3=BCrgen?= <{address}>"),
        3 => format!("{address} (not {other})"),
        4 => format!("\"Doe, Jane; {other}\" <{address}>"),
        5 => format!("(first) Jane (Q.) Doe <{address}> (last)"),
        _ => address,
    }
}

struct Client(BufReader<TcpStream>);

impl Client {
    async fn connect(server: SocketAddr) -> Client {
        let mut client = Client(BufReader::new(TcpStream::connect(server).await.unwrap()));
        client.expect("", "220").await;
        client.expect("EHLO client.example\r\n", "250").await;
        client
    }

    async fn expect(&mut self, command: &str, code: &str) -> String {
        self.0.write_all(command.as_bytes()).await.unwrap();
        loop {
            let mut line = String::new();
            let read = self.0.read_line(&mut line).await.unwrap();
            assert!(read > 0, "hung up after {command}");
            if line.as_bytes().get(3) != Some(&b'-') {
                assert!(line.starts_with(code), "{line} to {command}");
                return line;
            }
        }
    }

    async fn send(&mut self, from: &str, recipients: &[&str], content: &str) -> String {
        self.expect(&format!("MAIL FROM:<{from}>\r\n"), "250").await;
        for recipient in recipients {
            self.expect(&format!("RCPT TO:<{recipient}>\r\n"), "250").await;
        }
        self.expect("DATA\r\n", "354").await;
        self.expect(&format!("{content}\r\n.\r\n"), "250").await
    }
}

fn lower(addresses: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<String> {
    let mut all: Vec<String> = addresses
        .into_iter()
        .map(|it| it.as_ref().to_lowercase())
        .collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_the_envelope_in_both_forms() {
    let site = Site::new().await;
    site.configure(|it| {
        it.replace(
            "[spool]",
            "[[sender]]\naddress = \"mime@contoso.com\"\nmailbox = \"mime@contoso.com\"\nformat = \"mime\"\n[spool]",
        )
    });
    let gateway = site.start().await;
    let mut client = Client::connect(gateway.smtp_addresses()[0]).await;
    let mut dice = Dice(0x5eed);
    let mut cases = BTreeMap::new();
    for number in 0..CASES * 2 {
        let from = ["erp@contoso.com", "mime@contoso.com"][number % 2];
        let case = case(&mut dice);
        let mut recipients = case.recipients.clone();
        // Twice, and in another spelling, is once.
        let again = recipients[dice.roll(recipients.len())].to_uppercase();
        if dice.roll(3) == 0 {
            recipients.push(&again);
        }
        let content = format!(
            "From: {from}\r\n{}Subject: case {number}\r\nMessage-ID: <{number}@erp.example>\r\n\r\nHello\r\n",
            case.header
        );
        client.send(from, &recipients, &content).await;
        cases.insert(format!("case {number}"), case);
    }
    let deliveries = tokio::time::timeout(DEADLINE, site.cloud.wait_for(cases.len()))
        .await
        .unwrap();
    assert_eq!(deliveries.len(), CASES * 2);
    let mut blind = 0;
    for delivery in &deliveries {
        let case = &cases[&delivery.subject];
        let about = || format!("{:?} {} {delivery:#?}", case.recipients, case.header);
        assert_eq!(
            lower(&delivery.recipients),
            lower(&case.recipients),
            "{}",
            about()
        );
        let visible: Vec<String> = lower(delivery.to.iter().chain(&delivery.cc).map(|it| &it.address));
        for address in &visible {
            assert!(case.shown.contains(address), "{address} is visible: {}", about());
        }
        // And who is addressed and shown is not hidden.
        for address in lower(delivery.bcc.iter().map(|it| &it.address)) {
            assert!(!case.shown.contains(&address), "{address} is hidden: {}", about());
            blind += 1;
        }
    }
    let mime = deliveries.iter().filter(|it| it.form == Form::Mime).count();
    assert_eq!(mime, CASES, "both forms");
    assert!(blind > CASES, "and enough of each kind: {blind}");
    gateway.shutdown().await;
}

fn recipients(delivery: &Delivery) -> Vec<String> {
    lower(&delivery.recipients)
}

/// More recipients than Exchange takes at once, by SMTP.
#[tokio::test(flavor = "multi_thread")]
async fn six_hundred_recipients_get_it_in_two_requests() {
    let site = Site::new().await;
    let gateway = site.start().await;
    let mut client = Client::connect(gateway.smtp_addresses()[0]).await;
    let all: Vec<String> = (0..600).map(|it| format!("r{it}@example.com")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let content = "From: erp@contoso.com\r\nSubject: circular\r\n\r\nHello\r\n";
    client.send("erp@contoso.com", &all, content).await;
    let deliveries = tokio::time::timeout(DEADLINE, site.cloud.wait_for(2))
        .await
        .unwrap();
    assert_eq!(deliveries.len(), 2);
    let reached: Vec<String> = deliveries.iter().flat_map(recipients).collect();
    assert_eq!(lower(reached), lower(all));
    assert!(deliveries.iter().all(|it| it.to.is_empty() && it.cc.is_empty()));
    gateway.shutdown().await;
}

/// A smarthost that hands one mail over recipient by recipient, on connections of their own, with the
/// gateway restarted in between.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_smarthost_has_split_is_joined() {
    let site = Site::new().await;
    site.configure(|it| it.replace("name = \"plain\"", "name = \"plain\"\nmerge_split = \"30s\""));
    let content = "From: erp@contoso.com\r\nTo: ann@example.com, bob@example.com\r\nCc: cy@example.com\r\n\
                   Subject: one\r\nMessage-ID: <1@erp.example>\r\n\r\nHello\r\n";
    let mut gateway = site.start().await;
    let mut queued = BTreeSet::new();
    for recipient in [
        "ann@example.com",
        "bob@example.com",
        "BOB@example.com",
        "cy@example.com",
    ] {
        let mut client = Client::connect(gateway.smtp_addresses()[0]).await;
        let reply = client.send("erp@contoso.com", &[recipient], content).await;
        queued.insert(reply);
        if recipient == "bob@example.com" {
            gateway.shutdown().await;
            gateway = site.start().await;
        }
    }
    assert_eq!(queued.len(), 1, "all are told the same number: {queued:?}");
    // One without a Message-ID waits for nothing, so that it is there first.
    let mut client = Client::connect(gateway.smtp_addresses()[0]).await;
    let bare = "From: erp@contoso.com\r\nSubject: bare\r\n\r\nHello\r\n";
    client.send("erp@contoso.com", &["ann@example.com"], bare).await;
    let deliveries = tokio::time::timeout(DEADLINE, site.cloud.wait_for(1))
        .await
        .unwrap();
    assert_eq!(deliveries[0].subject, "bare");

    // The operator does not wait for the end of the window.
    let answer = control(
        &site.control_socket(),
        "POST /api/flush",
        r#"{"who":"test","reason":"now"}"#,
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let deliveries = tokio::time::timeout(DEADLINE, site.cloud.wait_for(2))
        .await
        .unwrap();
    let one = deliveries.iter().find(|it| it.subject == "one").unwrap();
    assert_eq!(
        recipients(one),
        ["ann@example.com", "bob@example.com", "cy@example.com"]
    );
    assert_eq!(
        (one.to.len(), one.cc.len(), one.bcc.len()),
        (2, 1, 0),
        "the full list is seen"
    );
    let metrics = control(&site.control_socket(), "GET /metrics", "").await;
    // Since the restart.
    assert!(metrics.contains("graphpost_messages_merged_total 2"), "{metrics}");
    let queue = control(&site.control_socket(), "GET /api/queue", "").await;
    let entries: Value = serde_json::from_str(body(&queue)).unwrap();
    assert_eq!(entries.as_array().map(Vec::len), Some(2), "{entries}");
    assert_eq!(deliveries.len(), 2);
    gateway.shutdown().await;
}
