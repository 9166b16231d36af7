//! Webhook and command: real HTTP servers and real commands, also such as hang, answer garbage or fail.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use graphpost::config::{Config, Environment};
use graphpost::metrics::{Metrics, NoticeLabel};
use graphpost::notify::{About, Notifier, Ways};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Nothing here takes this long when all is well.
const DEADLINE: Duration = Duration::from_secs(60);

const SECRET: &str = "a secret that both sides know";

/// A configuration with this `[notify]`.
fn config(directory: &Path, notify: &str) -> Config {
    let credentials = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/credentials");
    let credentials = credentials.display();
    let text = format!(
        r#"
[tenant]
id = "contoso.onmicrosoft.com"
client_id = "11111111-1111-1111-1111-111111111111"
authority = "http://127.0.0.1:1"
graph = "http://127.0.0.1:1"
[tenant.credential]
certificate = "{credentials}/app.pem"
private_key = "{credentials}/app.key"
[[listener]]
address = "127.0.0.1:0"
[[sender]]
address = "*@contoso.com"
mailbox = "service@contoso.com"
[smtp]
hostname = "relay.contoso.com"
[notify]
{notify}
"#
    );
    let path = directory.join("graphpost.toml");
    Config::parse(
        &text,
        &path,
        &Environment::default(),
        graphpost::config::Files::Opened,
    )
    .unwrap_or_else(|it| panic!("{it}"))
}

struct Rig {
    directory: tempfile::TempDir,
    metrics: Arc<Metrics>,
    notifier: Notifier,
}

impl Rig {
    fn new(notify: impl FnOnce(&Path) -> String) -> Rig {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let metrics = Arc::new(Metrics::new());
        let ways = Ways::new(&config(directory.path(), &notify(directory.path()))).unwrap();
        Rig {
            notifier: Notifier::start(ways, Arc::clone(&metrics)),
            directory,
            metrics,
        }
    }

    fn count(&self, channel: &'static str, result: &'static str) -> u64 {
        let label = NoticeLabel { channel, result };
        self.metrics.notices.get_or_create(&label).get()
    }
}

fn held(mailbox: &str) -> About {
    About::MailboxHeld {
        mailbox: mailbox.to_owned(),
        reason: "ErrorAccessDenied".to_owned(),
    }
}

/// One request: its head and its body.
async fn receive(listener: &TcpListener) -> (TcpStream, String, Vec<u8>) {
    let (mut stream, _) = tokio::time::timeout(DEADLINE, listener.accept())
        .await
        .unwrap()
        .unwrap();
    let mut octets = Vec::new();
    let head = loop {
        assert!(stream.read_buf(&mut octets).await.unwrap() > 0);
        if let Some(end) = octets.windows(4).position(|it| it == b"\r\n\r\n") {
            break String::from_utf8(octets.drain(..end + 4).collect()).unwrap();
        }
    };
    let length: usize = field(&head, "content-length").unwrap().parse().unwrap();
    while octets.len() < length {
        assert!(stream.read_buf(&mut octets).await.unwrap() > 0);
    }
    (stream, head, octets)
}

fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(": ")?;
        key.eq_ignore_ascii_case(name).then_some(value)
    })
}

async fn answer(mut stream: TcpStream, answer: &[u8]) {
    stream.write_all(answer).await.unwrap();
    stream.shutdown().await.unwrap();
}

const OK: &[u8] = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hooks/graphpost?key=1", listener.local_addr().unwrap());
    (listener, url)
}

#[tokio::test]
async fn a_webhook_is_signed_and_repeated_until_it_is_taken() {
    let (listener, url) = listener().await;
    let rig = Rig::new(|_| {
        format!("webhook_url = \"{url}\"\nwebhook_secret = \"{SECRET}\"\nwebhook_timeout = \"2s\"")
    });
    rig.notifier.tell(held("one@contoso.com"));
    rig.notifier.tell(held("two@contoso.com"));

    let (stream, head, first) = receive(&listener).await;
    assert!(head.starts_with("POST /hooks/graphpost?key=1 HTTP/1.1"), "{head}");
    assert_eq!(field(&head, "graphpost-event"), Some("held"));
    let id = field(&head, "graphpost-id").unwrap().to_owned();
    let json: Value = serde_json::from_slice(&first).unwrap();
    assert_eq!(json["event"], "held");
    assert_eq!(json["gateway"], "relay.contoso.com");
    assert_eq!(json["mailbox"], "one@contoso.com");
    assert_eq!(json["id"], id.as_str());
    let signature = field(&head, "graphpost-signature").unwrap();
    let (time, signature) = signature.strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let signed = [time.as_bytes(), b".", &first].concat();
    let tag: Vec<u8> = (0..signature.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&signature[at..at + 2], 16).unwrap())
        .collect();
    hmac::verify(&key, &signed, &tag).unwrap();
    answer(
        stream,
        b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    )
    .await;

    // The same again; this time the answer is no HTTP.
    let (stream, head, again) = receive(&listener).await;
    assert_eq!(
        (field(&head, "graphpost-id"), &again),
        (Some(id.as_str()), &first)
    );
    answer(stream, b"\x00\xff garbage\r\n").await;

    let (stream, head, again) = receive(&listener).await;
    assert_eq!(
        (field(&head, "graphpost-id"), &again),
        (Some(id.as_str()), &first)
    );
    answer(stream, OK).await;

    let (stream, _, second) = receive(&listener).await;
    let json: Value = serde_json::from_slice(&second).unwrap();
    assert_eq!(json["mailbox"], "two@contoso.com");
    answer(stream, OK).await;
    rig.notifier.finish().await;
    assert_eq!(
        (
            rig.count("webhook", "delivered"),
            rig.count("webhook", "deferred")
        ),
        (2, 2)
    );
    assert_eq!(rig.count("command", "delivered"), 0);
}

#[tokio::test]
async fn a_webhook_that_hangs_holds_up_nobody() {
    let (listener, url) = listener().await;
    let rig = Rig::new(|_| format!("webhook_url = \"{url}\"\nwebhook_timeout = \"1s\""));
    // To tell never waits, however many there are; what is too much is lost and counted.
    for number in 0..1200 {
        rig.notifier.tell(held(&format!("{number}@contoso.com")));
    }
    assert!(
        rig.count("webhook", "lost") >= 199,
        "{}",
        rig.count("webhook", "lost")
    );
    // It answers with a head that does not end. The next attempt comes all the same.
    let (mut hanging, _, _) = receive(&listener).await;
    hanging.write_all(b"HTTP/1.1 200 OK\r\nX: ").await.unwrap();
    let (_hanging_too, _, _) = receive(&listener).await;
    assert_eq!(rig.count("webhook", "deferred"), 1);
    drop(hanging);
}

#[tokio::test]
async fn what_a_receiver_refuses_for_good_is_not_repeated() {
    let (listener, url) = listener().await;
    let rig = Rig::new(|_| format!("webhook_url = \"{url}\"\nevents = [\"queue-full\", \"held\"]"));
    // Not wanted.
    rig.notifier.tell(About::CredentialHeld {
        reason: "AADSTS700027".into(),
    });
    rig.notifier.tell(held("one@contoso.com"));
    rig.notifier.tell(About::QueueFull {
        reason: "it holds 2 of at most 2 messages".into(),
    });
    let (stream, head, _) = receive(&listener).await;
    assert_eq!(field(&head, "graphpost-event"), Some("held"));
    assert_eq!(field(&head, "graphpost-signature"), None);
    answer(
        stream,
        b"HTTP/1.1 422 Unprocessable Content\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    let (stream, head, _) = receive(&listener).await;
    assert_eq!(field(&head, "graphpost-event"), Some("queue-full"));
    answer(stream, OK).await;
    rig.notifier.finish().await;
    assert_eq!(
        (rig.count("webhook", "lost"), rig.count("webhook", "delivered")),
        (1, 1)
    );
}

/// A command for the shell, and the pipe that it writes to.
fn script(directory: &Path, text: &str) -> PathBuf {
    let pipe = directory.join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let script = directory.join("script");
    std::fs::write(&script, format!("#!/bin/sh\npipe='{}'\n{text}\n", pipe.display())).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).unwrap();
    script
}

/// What is written to the pipe next, until its writer closes it.
async fn piped(rig: &Rig) -> String {
    let pipe = rig.directory.path().join("pipe");
    let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(pipe).unwrap());
    tokio::time::timeout(DEADLINE, read).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_command_gets_json_and_variables_and_no_secrets() {
    let rig = Rig::new(|directory| {
        let script = script(
            directory,
            "{ echo \"$1|$GRAPHPOST_EVENT|$GRAPHPOST_SUMMARY\"; env; cat; } > \"$pipe\"",
        );
        format!(
            "command = [\"/bin/sh\", \"{}\", \"$HOME; `id`\"]",
            script.display()
        )
    });
    rig.notifier.tell(held("one@contoso.com"));
    let text = piped(&rig).await;
    // No shell of ours has looked at the arguments.
    assert!(
        text.starts_with("$HOME; `id`|held|all mail of one@contoso.com is held: ErrorAccessDenied\n"),
        "{text}"
    );
    assert!(text.contains("GRAPHPOST_ID="), "{text}");
    assert!(
        !text.contains("CARGO"),
        "our variables are not the command's: {text}"
    );
    let json = text.lines().last().unwrap();
    let json: Value = serde_json::from_str(json).unwrap();
    assert_eq!(json["mailbox"], "one@contoso.com");
    rig.notifier.finish().await;
    assert_eq!(rig.count("command", "delivered"), 1);
}

#[tokio::test]
async fn commands_that_hang_or_fail_are_ended_and_the_next_is_run() {
    let rig = Rig::new(|directory| {
        // It reads nothing, starts another process, and waits for it; that one holds the pipe open.
        let script = script(
            directory,
            "case \"$GRAPHPOST_SUMMARY\" in\n\
             *hang*) sleep 600 > \"$pipe\" & wait ;;\n\
             *fail*) yes complaint | head -c 300000 >&2; exit 3 ;;\n\
             *) echo \"$GRAPHPOST_SUMMARY\" > \"$pipe\" ;;\n\
             esac",
        );
        format!(
            "command = [\"/bin/sh\", \"{}\"]\ncommand_timeout = \"1s\"",
            script.display()
        )
    });
    for mailbox in ["hang@contoso.com", "fail@contoso.com", "last@contoso.com"] {
        rig.notifier.tell(held(mailbox));
    }
    // The pipe is closed only when the process that was started is gone, too.
    assert_eq!(piped(&rig).await, "");
    assert!(piped(&rig).await.contains("last@contoso.com"));
    rig.notifier.finish().await;
    assert_eq!(
        (rig.count("command", "lost"), rig.count("command", "delivered")),
        (2, 1)
    );
}

#[tokio::test]
async fn a_command_that_is_not_there_is_no_harm() {
    let rig = Rig::new(|directory| {
        let script = script(directory, "exit 0");
        format!("command = [\"{}\"]", script.display())
    });
    std::fs::remove_file(rig.directory.path().join("script")).unwrap();
    rig.notifier.tell(held("one@contoso.com"));
    rig.notifier.finish().await;
    assert_eq!(rig.count("command", "lost"), 1);
}
