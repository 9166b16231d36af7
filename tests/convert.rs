//! Messages and what becomes of them: `NAME.eml` beside `NAME.json` or `NAME.mime`, each with LF and
//! CRLF line endings. `NAME.envelope` says who sends and receives and what is wanted, where the default
//! does not do; `NAME.lf.json` is there where the line endings are part of an attachment. A MIME form
//! is in the file with LF, one character for each octet; the test checks that it has CRLF throughout.
//!
//! On a mismatch the new result is written to `NAME.….failed`, to be compared and, if it is right, to
//! take the place of the old one.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use graphpost::address::Address;
use graphpost::convert::{Order, Way, Wishes, convert};
use graphpost::envelope::{Envelope, Format, HeaderFrom, ReversePath, Route};
use graphpost::graph::Request;
use graphpost::graph::draft::Draft;
use serde_json::{Value, json};

struct Case {
    envelope: Envelope,
    route: Route,
    wishes: Wishes,
}

impl Case {
    /// `MAIL FROM:<…>`, `RCPT TO:<…>`, and `key = value` for the rest.
    fn read(path: &Path) -> Case {
        let text = fs::read_to_string(path)
            .unwrap_or_else(|_| "MAIL FROM:<erp@contoso.example>\nRCPT TO:<ann@example.org>\n".to_owned());
        let mut case = Case {
            envelope: Envelope {
                reverse_path: ReversePath(None),
                recipients: Vec::new(),
            },
            route: Route {
                mailbox: "service@contoso.example".to_owned(),
                rule: "erp".to_owned(),
                header_from: HeaderFrom::Mailbox,
                save_to_sent_items: true,
                format: None,
                unknown: None,
            },
            wishes: Wishes::default(),
        };
        for line in text.lines().filter(|it| !it.is_empty() && !it.starts_with('#')) {
            let address = |it: &str| Address::parse(it.strip_suffix('>').unwrap()).unwrap();
            if let Some(path) = line.strip_prefix("MAIL FROM:<") {
                case.envelope.reverse_path = ReversePath((path != ">").then(|| address(path)));
            } else if let Some(path) = line.strip_prefix("RCPT TO:<") {
                case.envelope.recipients.push(address(path));
            } else {
                match line.split_once(" = ").unwrap() {
                    ("header_from", "mailbox") => case.route.header_from = HeaderFrom::Mailbox,
                    ("header_from", "keep") => case.route.header_from = HeaderFrom::Keep,
                    ("header_from", "refuse") => case.route.header_from = HeaderFrom::Refuse,
                    ("save_to_sent_items", it) => case.route.save_to_sent_items = it == "true",
                    ("format", "json") => case.route.format = Some(Format::Json),
                    ("format", "mime") => case.route.format = Some(Format::Mime),
                    ("text_alternative", "keep") => case.wishes.keep_alternatives = true,
                    ("large_messages", "true") => case.wishes.large_messages = true,
                    ("max_request", it) => case.wishes.max_request = it.parse().unwrap(),
                    ("mailbox", it) => case.route.mailbox = it.to_owned(),
                    other => panic!("{}: {other:?}", path.display()),
                }
            }
        }
        case
    }

    /// The file extension of the form it has, and the form.
    fn convert(&self, content: Vec<u8>) -> (&'static str, String) {
        let order = Order {
            envelope: &self.envelope,
            route: &self.route,
            message_id: "1@graphpost.example",
            wishes: self.wishes,
        };
        let value = match convert(&Bytes::from(content), &order).unwrap().way {
            Way::Request(Request::Json(json)) => {
                let value: Value = serde_json::from_slice(&json).unwrap();
                self.check_recipients(&value["message"]);
                value
            }
            Way::Request(Request::Mime(base64)) => {
                let mime = base64_simd::STANDARD.decode_to_vec(&base64).unwrap();
                let mime: String = mime.into_iter().map(char::from).collect();
                assert_eq!(mime.matches("\r\n").count(), mime.matches('\n').count());
                return ("mime", mime.replace("\r\n", "\n"));
            }
            Way::Draft(Draft {
                message, attachments, ..
            }) => {
                let message: Value = serde_json::from_slice(&message).unwrap();
                self.check_recipients(&message);
                let attachments: Vec<Value> = attachments
                    .iter()
                    .map(|it| serde_json::from_slice(&it.to_json()).unwrap())
                    .collect();
                json!({ "draft": message, "attachments": attachments })
            }
        };
        ("json", serde_json::to_string_pretty(&value).unwrap() + "\n")
    }

    /// Whatever the golden file says: exactly the envelope, each once.
    fn check_recipients(&self, message: &Value) {
        let mut sent: Vec<String> = ["toRecipients", "ccRecipients", "bccRecipients"]
            .iter()
            .filter_map(|name| message[name].as_array())
            .flatten()
            .map(|it| it["emailAddress"]["address"].as_str().unwrap().to_lowercase())
            .collect();
        sent.sort();
        let mut wanted: Vec<String> = self
            .envelope
            .recipients
            .iter()
            .map(|it| it.as_str().to_lowercase())
            .collect();
        wanted.sort();
        wanted.dedup();
        assert_eq!(sent, wanted);
    }
}

#[test]
fn golden_files() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/convert");
    let mut messages: Vec<PathBuf> = fs::read_dir(&directory)
        .unwrap()
        .map(|it| it.unwrap().path())
        .filter(|it| it.extension().is_some_and(|it| it == "eml"))
        .collect();
    messages.sort();
    let (mut tests_run, mut failed) = (0, Vec::new());
    for path in messages {
        let case = Case::read(&path.with_extension("envelope"));
        let lf: Vec<u8> = fs::read(&path)
            .unwrap()
            .into_iter()
            .filter(|it| *it != b'\r')
            .collect();
        let crlf = lf
            .iter()
            .flat_map(|it| {
                if *it == b'\n' {
                    vec![b'\r', b'\n']
                } else {
                    vec![*it]
                }
            })
            .collect();
        for (content, ending) in [(crlf, ""), (lf, "lf.")] {
            let (form, got) = case.convert(content);
            let special = path.with_extension(format!("{ending}{form}"));
            let expected = if special.exists() {
                special
            } else {
                path.with_extension(form)
            };
            if got != fs::read_to_string(&expected).unwrap_or_default() {
                let saved = path.with_extension(format!("{ending}{form}.failed"));
                fs::write(&saved, got).unwrap();
                failed.push(format!("{} is not {}", saved.display(), expected.display()));
            }
            tests_run += 1;
        }
    }
    assert!(tests_run > 0, "no messages in {}", directory.display());
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
