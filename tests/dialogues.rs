//! Replays the dialogues in `tests/dialogues/*.txt` against the real server and its real queue.
//!
//! ```text
//! # A comment, such as why the dialogue matters.
//! #! listener: auth = "optional"      a line for [[listener]], [smtp], [spool]; `senders:` for more rules
//! C: EHLO client\x00                  the client sends this and CRLF (escapes: \r \n \t \0 \\ \xFF)
//! c: MAIL                             the client sends this and nothing else
//! S: 250-SIZE 1000                    the server says exactly this line
//! S: 250 2.1.0*                       the server says a line that begins so
//! S: 250*                             the server says a whole reply of this code, however many lines
//! TLS                                 the client does a TLS handshake
//! NEW                                 the client connects once more, and forgets the old connection
//! CLOSED                              the server has hung up, and has said nothing else
//! CLOSED*                             the server has hung up
//! Q: erp@contoso.com > a@b c@d        what is in the queue at the end, oldest first: all of it
//! A: scanner1                         the account of that message
//! D: Subject: x\r\n                   the content of that message
//! ```

#![allow(clippy::unwrap_used)]

#[path = "smtp/relay.rs"]
mod relay;

use std::path::{Path, PathBuf};

use relay::{Client, Relay, Settings};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A connection with or without TLS.
trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

enum Talk {
    Plain(Client<TcpStream>),
    Tls(Client<Box<dyn Wire>>),
}

impl Talk {
    async fn connect(relay: &Relay) -> Talk {
        Talk::Plain(relay.connect().await)
    }

    async fn send(&mut self, octets: &[u8]) {
        // Where the server has hung up, the script says so next.
        let _ = match self {
            Talk::Plain(client) => client.try_send(octets).await,
            Talk::Tls(client) => client.try_send(octets).await,
        };
    }

    async fn line(&mut self) -> Option<String> {
        match self {
            Talk::Plain(client) => client.line().await,
            Talk::Tls(client) => client.line().await,
        }
    }

    async fn reply(&mut self) -> String {
        match self {
            Talk::Plain(client) => client.reply().await,
            Talk::Tls(client) => client.reply().await,
        }
    }

    async fn hung_up(&mut self) -> bool {
        match self {
            Talk::Plain(client) => client.hung_up().await,
            Talk::Tls(client) => client.hung_up().await,
        }
    }

    async fn start_tls(self, relay: &Relay) -> Talk {
        match self {
            Talk::Plain(client) => {
                let stream = client.start_tls(&relay.certificate).await.into_inner();
                Talk::Tls(Client::new(Box::new(stream)))
            }
            Talk::Tls(_) => panic!("TLS within TLS"),
        }
    }
}

fn scripts() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dialogues");
    let mut scripts: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|it| it.unwrap().path())
        .filter(|it| it.extension().is_some_and(|it| it == "txt"))
        .collect();
    scripts.sort();
    assert!(scripts.len() >= 30, "found only {}", scripts.len());
    scripts
}

fn unescape(text: &str) -> Vec<u8> {
    let mut octets = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'\\' {
            octets.push(*first);
            continue;
        }
        let (escape, tail) = rest.split_first().expect("a character after the backslash");
        rest = tail;
        octets.push(match escape {
            b'r' => b'\r',
            b'n' => b'\n',
            b't' => b'\t',
            b'0' => 0,
            b'\\' => b'\\',
            b'x' => {
                let digits = std::str::from_utf8(&rest[..2]).unwrap();
                rest = &rest[2..];
                u8::from_str_radix(digits, 16).unwrap()
            }
            other => panic!("unknown escape \\{}", *other as char),
        });
    }
    octets
}

fn settings(script: &str) -> Settings {
    let mut settings = Settings::default();
    for directive in script.lines().filter_map(|it| it.strip_prefix("#! ")) {
        let (section, line) = directive.split_once(": ").expect("`#! section: line`");
        let text = match section {
            "listener" => &mut settings.listener,
            "smtp" => &mut settings.smtp,
            "spool" => &mut settings.spool,
            "senders" => &mut settings.senders,
            other => panic!("no section {other}"),
        };
        *text += &format!("{line}\n");
    }
    settings
}

async fn replay(path: &Path) {
    let script = std::fs::read_to_string(path).unwrap();
    let relay = Relay::start(&settings(&script)).await;
    let mut talk = Talk::connect(&relay).await;
    let mut queue = relay.queue().await.into_iter();
    let mut looked = false;
    let mut current = None;
    for (number, line) in script.lines().enumerate() {
        let at = format!("{}:{}: {line}", path.file_name().unwrap().display(), number + 1);
        let (kind, text) = line.split_once(' ').unwrap_or((line, ""));
        if matches!(kind, "Q:") && !looked {
            looked = true;
            queue = relay.queue().await.into_iter();
        }
        match kind {
            "" | "#" | "#!" => {}
            "C:" => talk.send(&[unescape(text), b"\r\n".to_vec()].concat()).await,
            "c:" => talk.send(&unescape(text)).await,
            "S:" => match text.strip_suffix('*') {
                Some(code) if code.len() == 3 => {
                    let reply = talk.reply().await;
                    assert!(reply.starts_with(code), "{at}\n  got {reply:?}");
                }
                Some(beginning) => {
                    let said = talk.line().await.unwrap_or_default();
                    assert!(said.starts_with(beginning), "{at}\n  got {said:?}");
                }
                None => assert_eq!(talk.line().await.as_deref(), Some(text), "{at}"),
            },
            "TLS" => talk = talk.start_tls(&relay).await,
            "NEW" => talk = Talk::connect(&relay).await,
            "CLOSED" => assert_eq!(talk.line().await, None, "{at}"),
            "CLOSED*" => assert!(talk.hung_up().await, "{at}"),
            "Q:" => {
                let entry = queue
                    .next()
                    .unwrap_or_else(|| panic!("{at}\n  the queue has no more"));
                let envelope = &entry.submission.envelope;
                let recipients: Vec<_> = envelope.recipients.iter().map(|it| it.as_str()).collect();
                assert_eq!(
                    format!("{} > {}", envelope.reverse_path, recipients.join(" ")),
                    text,
                    "{at}"
                );
                current = Some(entry);
            }
            "A:" => {
                let entry = current.as_ref().expect("Q: before A:");
                assert_eq!(entry.submission.origin.account.as_deref(), Some(text), "{at}");
            }
            "D:" => {
                let id = current.as_ref().expect("Q: before D:").id;
                let content = relay.spool.content(id).await.unwrap();
                assert_eq!(
                    content.escape_ascii().to_string(),
                    unescape(text).escape_ascii().to_string(),
                    "{at}"
                );
            }
            _ => panic!("{at}\n  is no line of a dialogue"),
        }
    }
    if !looked {
        queue = relay.queue().await.into_iter();
    }
    assert_eq!(
        queue.next(),
        None,
        "{}: more in the queue than the script says",
        path.display()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_dialogues() {
    let mut failed = Vec::new();
    for path in scripts() {
        let name = path.file_name().unwrap().display().to_string();
        if tokio::spawn(async move { replay(&path).await }).await.is_err() {
            failed.push(name);
        }
    }
    assert_eq!(failed, Vec::<String>::new());
}
