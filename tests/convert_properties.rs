//! Generated messages: whatever is nested in whatever, in any charset and encoding, it is delivered to
//! exactly the envelope and nothing of it is lost.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use bytes::Bytes;
use graphpost::address::Address;
use graphpost::config::Api;
use graphpost::convert::{Form, Order, Way, Wishes, convert};
use graphpost::envelope::{Envelope, Format, HeaderFrom, ReversePath, Route};
use graphpost::graph::Request;
use graphpost::graph::draft::Draft;
use mail_parser::MessageParser;
use proptest::prelude::*;
use serde_json::Value;

/// One MIME entity.
#[derive(Clone, Debug)]
enum Entity {
    /// A text with a mark by which it is found again.
    Text {
        html: bool,
        charset: Charset,
        encoding: Encoding,
        named: bool,
    },
    File {
        octets: Vec<u8>,
        encoding: Encoding,
        name: Name,
    },
    /// A `message/rfc822`.
    Forwarded(Vec<u8>),
    Multipart {
        kind: &'static str,
        entities: Vec<Entity>,
        closed: bool,
    },
}

#[derive(Clone, Copy, Debug)]
enum Charset {
    Utf8,
    Latin1,
    Utf16,
    Koi8,
    Undeclared,
}

#[derive(Clone, Copy, Debug)]
enum Encoding {
    Identity,
    QuotedPrintable,
    /// With lines of this length.
    Base64(usize),
}

#[derive(Clone, Copy, Debug)]
enum Name {
    None,
    Plain,
    Path,
    Rfc2231,
    Rfc2047,
}

/// Writes a message and remembers what is in it.
#[derive(Default)]
struct Writer {
    message: Vec<u8>,
    count: usize,
    /// Texts that are not in an alternative: none of them may be lost.
    marks: Vec<String>,
    files: Vec<Vec<u8>>,
    texts: usize,
}

impl Writer {
    fn line(&mut self, line: &str) {
        self.message.extend_from_slice(line.as_bytes());
        self.message.extend_from_slice(b"\r\n");
    }

    /// Writes the entity's header fields and body.
    fn entity(&mut self, entity: &Entity, in_alternative: bool) {
        self.count += 1;
        let number = self.count;
        match entity {
            Entity::Text {
                html,
                charset,
                encoding,
                named,
            } => {
                let mark = format!("mark{number}mark");
                let text = match html {
                    true => format!("<p>{mark} {}</p>", charset.letters()),
                    false => format!("{mark} {}", charset.letters()),
                };
                self.texts += 1;
                if !in_alternative {
                    self.marks.push(mark);
                }
                let kind = if *html { "html" } else { "plain" };
                let name = if *named {
                    format!("; name=text{number}.txt")
                } else {
                    String::new()
                };
                self.line(&format!("Content-Type: text/{kind}{}{name}", charset.parameter()));
                // Sixteen-bit text cannot stand in a message as it is.
                let encoding = match (charset, encoding) {
                    (Charset::Utf16, Encoding::Identity) => Encoding::Base64(76),
                    (_, encoding) => *encoding,
                };
                self.encoded(&charset.encode(&text), encoding);
            }
            Entity::File {
                octets,
                encoding,
                name,
            } => {
                self.files.push(octets.clone());
                self.line("Content-Type: application/octet-stream");
                match name {
                    Name::None => self.line("Content-Disposition: attachment"),
                    Name::Plain => {
                        self.line(&format!("Content-Disposition: attachment; filename=file{number}"))
                    }
                    Name::Path => self.line("Content-Disposition: attachment; filename=\"..\\..\\evil\""),
                    Name::Rfc2231 => {
                        self.line("Content-Disposition: attachment; filename*0*=utf-8''%C3%BC;");
                        self.line(" filename*1=\".bin\"");
                    }
                    Name::Rfc2047 => {
                        self.line("Content-Disposition: attachment; filename=\"=?utf-8?q?=C3=BC?=\"");
                    }
                }
                self.encoded(octets, *encoding);
            }
            Entity::Forwarded(message) => {
                self.files.push(message.clone());
                self.line("Content-Type: message/rfc822");
                self.encoded(message, Encoding::Identity);
            }
            Entity::Multipart {
                kind,
                entities,
                closed,
            } => {
                let boundary = format!("=_{number}_boundary");
                self.line(&format!(
                    "Content-Type: multipart/{kind}; boundary=\"{boundary}\""
                ));
                self.line("");
                self.line("A preamble that nobody sees.");
                for entity in entities {
                    self.line(&format!("--{boundary}"));
                    self.entity(entity, in_alternative || *kind == "alternative");
                    self.line("");
                }
                if *closed {
                    self.message
                        .extend_from_slice(format!("--{boundary}--").as_bytes());
                } else {
                    // Without it the last part goes on to the end, so that it must not matter there.
                    self.message
                        .extend_from_slice(format!("--{boundary}\r\n\r\n").as_bytes());
                }
            }
        }
    }

    fn encoded(&mut self, octets: &[u8], encoding: Encoding) {
        match encoding {
            Encoding::Identity => {
                self.line("Content-Transfer-Encoding: binary");
                self.line("");
                self.message.extend_from_slice(octets);
            }
            Encoding::QuotedPrintable => {
                self.line("Content-Transfer-Encoding: Quoted-Printable");
                self.line("");
                for (at, octet) in octets.iter().enumerate() {
                    match octet {
                        b'a'..=b'z' | b'0'..=b'9' => self.message.push(*octet),
                        _ => self.message.extend_from_slice(format!("={octet:02X}").as_bytes()),
                    }
                    if at % 25 == 24 {
                        self.message.extend_from_slice(b"=\r\n");
                    }
                }
            }
            Encoding::Base64(length) => {
                self.line("Content-Transfer-Encoding: base64");
                self.line("");
                let text = base64_simd::STANDARD.encode_to_string(octets);
                for (at, line) in text.as_bytes().chunks(length).enumerate() {
                    if at > 0 {
                        self.message.extend_from_slice(b"\r\n");
                    }
                    self.message.extend_from_slice(line);
                }
            }
        }
    }
}

impl Charset {
    fn parameter(self) -> &'static str {
        match self {
            Charset::Utf8 => "; charset=utf-8",
            Charset::Latin1 => "; charset=\"ISO-8859-1\"",
            Charset::Utf16 => "; charset=utf-16",
            Charset::Koi8 => "; charset=koi8-r",
            Charset::Undeclared => "",
        }
    }

    fn letters(self) -> &'static str {
        match self {
            Charset::Utf8 | Charset::Utf16 => "Grüße 你好",
            Charset::Latin1 | Charset::Undeclared => "Grüße",
            Charset::Koi8 => "Мир",
        }
    }

    fn encode(self, text: &str) -> Vec<u8> {
        match self {
            Charset::Utf8 => text.as_bytes().to_vec(),
            Charset::Latin1 | Charset::Undeclared => text.chars().map(|it| it as u8).collect(),
            Charset::Utf16 => text.encode_utf16().flat_map(u16::to_le_bytes).collect(),
            Charset::Koi8 => {
                let letter = |it| match it {
                    'М' => 0xed,
                    'и' => 0xc9,
                    'р' => 0xd2,
                    it => it as u8,
                };
                text.chars().map(letter).collect()
            }
        }
    }
}

fn encodings() -> impl Strategy<Value = Encoding> {
    prop_oneof![
        Just(Encoding::Identity),
        Just(Encoding::QuotedPrintable),
        prop_oneof![Just(76usize), Just(64), 1usize..200].prop_map(Encoding::Base64),
    ]
}

fn entities() -> impl Strategy<Value = Entity> {
    let charsets = prop_oneof![
        Just(Charset::Utf8),
        Just(Charset::Latin1),
        Just(Charset::Utf16),
        Just(Charset::Koi8),
        Just(Charset::Undeclared)
    ];
    let names = prop_oneof![
        Just(Name::None),
        Just(Name::Plain),
        Just(Name::Path),
        Just(Name::Rfc2231),
        Just(Name::Rfc2047)
    ];
    let leaf = prop_oneof![
        4 => (any::<bool>(), charsets, encodings(), prop::bool::weighted(0.2))
            .prop_map(|(html, charset, encoding, named)| Entity::Text { html, charset, encoding, named }),
        4 => (prop::collection::vec(any::<u8>(), 0..300), encodings(), names)
            .prop_map(|(octets, encoding, name)| Entity::File { octets, encoding, name }),
        1 => "Subject: [a-z]{0,5}\r\n\r\n[a-z\r\n]{0,40}".prop_map(|it| Entity::Forwarded(it.into_bytes())),
    ];
    leaf.prop_recursive(5, 20, 5, |inner| {
        let kinds = prop_oneof![
            Just("mixed"),
            Just("alternative"),
            Just("related"),
            Just("x-unknown"),
            Just("report"),
            Just("signed")
        ];
        (
            kinds,
            prop::collection::vec(inner, 1..5),
            prop::bool::weighted(0.9),
        )
            .prop_map(|(kind, entities, closed)| Entity::Multipart {
                kind,
                entities,
                closed,
            })
    })
}

/// Addresses, few enough that header and envelope often name the same one, in various spellings.
fn address() -> impl Strategy<Value = String> {
    (0..8u8, 0..3u8).prop_map(|(who, spelling)| match spelling {
        0 => format!("user{who}@example.org"),
        1 => format!("User{who}@EXAMPLE.org"),
        _ => format!("USER{who}@example.ORG"),
    })
}

fn mailbox() -> impl Strategy<Value = String> {
    (address(), 0..6u8).prop_map(|(address, form)| match form {
        0 => address,
        1 => format!("<{address}>"),
        2 => format!("\"Last, First\" <{address}>"),
        3 => format!("{address} (comment, with comma)"),
        4 => format!("=?utf-8?q?=C3=9C?= <{address}>"),
        _ => format!("Team: {address};"),
    })
}

fn field(name: &'static str) -> impl Strategy<Value = String> {
    prop::collection::vec(prop::collection::vec(mailbox(), 0..4), 0..3).prop_map(move |fields| {
        let fields: Vec<String> = fields
            .iter()
            .map(|it| format!("{name}: {}\r\n", it.join(",\r\n\t")))
            .collect();
        fields.concat()
    })
}

fn order<'a>(envelope: &'a Envelope, route: &'a Route, wishes: Wishes) -> Order<'a> {
    Order {
        envelope,
        route,
        message_id: "1@graphpost.example",
        wishes,
    }
}

/// What a message is to be sent as, so that every form is seen.
fn wishes() -> impl Strategy<Value = Wishes> {
    let formats = prop_oneof![Just(Format::Auto), Just(Format::Json), Just(Format::Mime)];
    let sizes = prop_oneof![2 => Just(3_500_000usize), 1 => Just(2500)];
    (formats, any::<bool>(), sizes).prop_map(|(format, keep_alternatives, max_request)| Wishes {
        format,
        keep_alternatives,
        large_messages: true,
        max_request,
        api: Api::default(),
    })
}

/// What a request delivers.
struct Delivered {
    recipients: BTreeSet<String>,
    body: String,
    attachments: Vec<Vec<u8>>,
}

fn json_delivers(message: &Value) -> Delivered {
    let attachments = message["attachments"].as_array().into_iter().flatten().map(|it| {
        assert!(!it["name"].as_str().unwrap().contains(['/', '\\']));
        base64_simd::STANDARD
            .decode_to_vec(it["contentBytes"].as_str().unwrap())
            .unwrap()
    });
    Delivered {
        recipients: recipients(message),
        body: message["body"]["content"].as_str().unwrap().to_owned(),
        attachments: attachments.collect(),
    }
}

/// What a MIME message says, read by another parser. Its recipients are those of its header.
fn mime_recipients(mime: &[u8]) -> BTreeSet<String> {
    let message = MessageParser::default().parse(mime).unwrap();
    let mut found = BTreeSet::new();
    for header in [message.to(), message.cc(), message.bcc()].into_iter().flatten() {
        for address in header.iter() {
            let address = address.address().unwrap().to_lowercase();
            assert!(found.insert(address.clone()), "{address} twice");
        }
    }
    found
}

fn route() -> Route {
    Route {
        mailbox: "service@contoso.example".to_owned(),
        rule: "erp".to_owned(),
        header_from: HeaderFrom::Mailbox,
        save_to_sent_items: true,
        format: None,
        unknown: None,
    }
}

fn envelope(recipients: &[String]) -> Envelope {
    Envelope {
        reverse_path: ReversePath(None),
        recipients: recipients.iter().map(|it| Address::parse(it).unwrap()).collect(),
    }
}

/// The recipients of a request, in lower case. None twice.
fn recipients(message: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for list in ["toRecipients", "ccRecipients", "bccRecipients"] {
        for recipient in message[list].as_array().into_iter().flatten() {
            let address = recipient["emailAddress"]["address"]
                .as_str()
                .unwrap()
                .to_lowercase();
            assert!(found.insert(address.clone()), "{address} twice");
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 10_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn nothing_is_lost_and_nobody_added(
        root in entities(),
        to in field("To"),
        cc in field("Cc"),
        bcc in field("Bcc"),
        addressed in prop::collection::vec(address(), 1..10),
        wishes in wishes(),
    ) {
        let mut writer = Writer::default();
        writer.line("From: erp@contoso.example");
        writer.message.extend_from_slice((to + &cc + &bcc).as_bytes());
        writer.line("MIME-Version: 1.0");
        let header = writer.message.len();
        writer.entity(&root, false);
        let (envelope, route) = (envelope(&addressed), route());
        let content = Bytes::from(std::mem::take(&mut writer.message));

        let converted = convert(&content, &order(&envelope, &route, wishes)).unwrap();
        let delivered = match converted.way {
            Way::Request(Request::Json(json)) => {
                prop_assert!(json.len() <= wishes.max_request);
                json_delivers(&serde_json::from_slice::<Value>(&json).unwrap()["message"])
            }
            Way::Request(Request::Mime(base64)) => {
                prop_assert!(base64.len() <= wishes.max_request);
                let mime = base64_simd::STANDARD.decode_to_vec(&base64).unwrap();
                // Below the header it is the same, octet for octet.
                let body = header + memchr::memmem::find(&content[header..], b"\r\n\r\n").unwrap() + 4;
                let same: Vec<u8> = with_crlf(&content[body..]);
                prop_assert!(mime.ends_with(&same));
                let wanted: BTreeSet<String> = addressed.iter().map(|it| it.to_lowercase()).collect();
                prop_assert_eq!(mime_recipients(&mime), wanted);
                return Ok(());
            }
            Way::Draft(Draft {
                message, attachments, ..
            }) => {
                prop_assert!(message.len() <= wishes.max_request);
                let mut delivered = json_delivers(&serde_json::from_slice(&message).unwrap());
                for attachment in attachments {
                    let mut reader = attachment.content.reader();
                    let mut octets = Vec::new();
                    loop {
                        let chunk = reader.next_chunk(100);
                        if chunk.is_empty() {
                            break;
                        }
                        octets.extend_from_slice(&chunk);
                    }
                    prop_assert_eq!(octets.len() as u64, attachment.content.len());
                    delivered.attachments.push(octets);
                }
                // A body that is too long is in an attachment.
                let attached: Vec<String> = delivered
                    .attachments
                    .iter()
                    .map(|it| String::from_utf8_lossy(it).into_owned())
                    .collect();
                delivered.body += &attached.concat();
                delivered
            }
        };
        let wanted: BTreeSet<String> = addressed.iter().map(|it| it.to_lowercase()).collect();
        prop_assert_eq!(&delivered.recipients, &wanted);
        if converted.form == Form::Enclosed {
            prop_assert!(delivered.attachments.iter().any(|it| it.ends_with(&content[content.len() - 20..])));
            return Ok(());
        }
        let mut attached = delivered.attachments;
        for file in &writer.files {
            let at = attached.iter().position(|it| it == file);
            prop_assert!(at.is_some(), "a file is missing: {}", file.escape_ascii());
            attached.swap_remove(at.unwrap());
        }
        // What is left are texts.
        for mark in &writer.marks {
            let narrow = attached.iter().any(|it| {
                let text: Vec<u8> = it.iter().copied().filter(|it| *it != 0).collect();
                String::from_utf8_lossy(&text).contains(mark.as_str())
            });
            prop_assert!(delivered.body.contains(mark.as_str()) || narrow, "{mark} is missing");
        }
        // And, in a draft, the body.
        prop_assert!(attached.len() <= writer.texts + 1);
    }

    /// Octets of all kinds, half of them with something like structure.
    #[test]
    fn nothing_panics(
        pieces in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..20),
                prop::sample::select(vec![
                    "\r\n", "\n", "\r", "--b", "--b--", "From: ", "To: <", ": ", "; ", "=?utf-8?q?", "?=", "\"",
                    "Content-Type: multipart/mixed; boundary=b\r\n", "Content-Type: message/rfc822\r\n\r\n",
                    "Content-Type: multipart/alternative; boundary=\"c", "Content-Type: text/html; charset=",
                    "Content-Transfer-Encoding: base64\r\n", "Content-Transfer-Encoding: quoted-printable\r\n",
                    "Content-Disposition: attachment; filename*0*=", "utf-7", "utf-16", "gb18030", "iso-2022-jp",
                    "Content-ID: <x>\r\n", "<img src=cid:x>", "=\r\n", "=3D", "AAAA", "====", "\u{fc}",
                ]).prop_map(|it| it.as_bytes().to_vec()),
            ],
            0..60,
        ),
        wishes in wishes(),
    ) {
        let content = Bytes::from(pieces.concat());
        let (envelope, route) = (envelope(&["a@example.org".to_owned()]), route());
        match convert(&content, &order(&envelope, &route, wishes)).unwrap().way {
            Way::Request(Request::Json(json)) => {
                let request: Value = serde_json::from_slice(&json).unwrap();
                prop_assert_eq!(recipients(&request["message"]).len(), 1);
            }
            Way::Request(Request::Mime(base64)) => {
                let mime = base64_simd::STANDARD.decode_to_vec(&base64).unwrap();
                prop_assert_eq!(mime_recipients(&mime).len(), 1);
            }
            Way::Draft(draft) => {
                let message: Value = serde_json::from_slice(&draft.message).unwrap();
                prop_assert_eq!(recipients(&message).len(), 1);
            }
        }
    }
}

fn with_crlf(octets: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (at, octet) in octets.iter().enumerate() {
        if *octet == b'\n' && (at == 0 || octets[at - 1] != b'\r') {
            out.push(b'\r');
        }
        out.push(*octet);
    }
    out
}
