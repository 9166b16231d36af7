//! The same dialogues with this server and with `mailin-embedded`, an SMTP library for Rust that this
//! gateway was once to be built on. Where the two differ, the difference is on a list, with its reason.
//! A difference that is not on the list fails, and so does one that is no longer there.

#![allow(clippy::unwrap_used)]

#[path = "smtp/relay.rs"]
mod relay;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use mailin_embedded::response::{AUTH_OK, INVALID_CREDENTIALS, OK, TRANSACTION_FAILED};
use mailin_embedded::{AuthMechanism, Handler, Response, Server, SslConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use relay::{Client, Relay, Settings};

/// A dialogue, and how the two servers answer it: reply codes, and what mail they took.
struct Case {
    name: &'static str,
    /// All that the client sends, at once.
    client: &'static str,
    ours: &'static str,
    /// Where it is not the same.
    theirs: Option<&'static str>,
    /// Why it is not.
    why: &'static str,
}

const fn same(name: &'static str, client: &'static str, both: &'static str) -> Case {
    Case {
        name,
        client,
        ours: both,
        theirs: None,
        why: "",
    }
}

const fn differs(
    name: &'static str,
    client: &'static str,
    ours: &'static str,
    theirs: &'static str,
    why: &'static str,
) -> Case {
    Case {
        name,
        client,
        ours,
        theirs: Some(theirs),
        why,
    }
}

/// The envelope of every message here, and the beginning of its data.
macro_rules! mail {
    ($($data:expr),*) => {
        concat!(
            "EHLO x\r\nMAIL FROM:<erp@contoso.com>\r\nRCPT TO:<a@b.example>\r\nDATA\r\n",
            $($data),*
        )
    };
}

const PLAIN: &[Case] = &[
    same(
        "one message",
        mail!("Subject: x\r\n\r\nx\r\n.\r\nQUIT\r\n"),
        "220 250 250 250 354 250 221; Subject: x\\r\\n\\r\\nx\\r\\n",
    ),
    same(
        "two messages",
        mail!(
            "\r\none\r\n.\r\nMAIL FROM:<erp@contoso.com>\r\nRCPT TO:<a@b.example>\r\nDATA\r\n\r\ntwo\r\n.\r\nQUIT\r\n"
        ),
        "220 250 250 250 354 250 250 250 354 250 221; \\r\\none\\r\\n; \\r\\ntwo\\r\\n",
    ),
    same(
        "an empty message",
        mail!(".\r\nQUIT\r\n"),
        "220 250 250 250 354 250 221; ",
    ),
    same(
        "leading dots",
        mail!("..x\r\n...\r\n..\r\n.\r\nQUIT\r\n"),
        "220 250 250 250 354 250 221; .x\\r\\n..\\r\\n.\\r\\n",
    ),
    same(
        "CR.CRLF is no end",
        mail!("a\r.\r\nb\r\n.\r\nQUIT\r\n"),
        "220 250 250 250 354 250 221; a\\r.\\r\\nb\\r\\n",
    ),
    same(
        "commands out of order",
        "EHLO x\r\nRCPT TO:<a@b.example>\r\nDATA\r\nQUIT\r\n",
        "220 250 503 503 221",
    ),
    same(
        "RSET forgets the sender",
        "EHLO x\r\nMAIL FROM:<erp@contoso.com>\r\nRSET\r\nRCPT TO:<a@b.example>\r\nQUIT\r\n",
        "220 250 250 250 503 221",
    ),
    same(
        "NOOP and VRFY",
        "EHLO x\r\nNOOP\r\nVRFY root\r\nQUIT\r\n",
        "220 250 250 252 221",
    ),
    same(
        "no such command",
        "EHLO x\r\nXYZZY\r\nQUIT\r\n",
        "220 250 500 221",
    ),
    same(
        "HELO",
        "HELO x\r\nMAIL FROM:<erp@contoso.com>\r\nQUIT\r\n",
        "220 250 250 221",
    ),
    differs(
        "LF.CRLF",
        mail!("a\n.\r\nMAIL FROM:<erp@contoso.com>\r\n.\r\nQUIT\r\n"),
        "220 250 250 250 354 250 221; a\\r\\n.\\r\\nMAIL FROM:<erp@contoso.com>\\r\\n",
        "220 250 250 250 354 250 250 500 221; a\\n",
        "only CRLF.CRLF ends mail data: what other servers pass on as content must not be read as commands \
         (SMTP smuggling)",
    ),
    differs(
        "bare line feeds in content",
        mail!("a\nb\r\n.\r\nQUIT\r\n"),
        "220 250 250 250 354 250 221; a\\r\\nb\\r\\n",
        "220 250 250 250 354 250 221; a\\nb\\r\\n",
        "Graph takes messages with CRLF",
    ),
    differs(
        "a message that is refused at its end",
        mail!("From: ceo@contoso.com\r\n\r\nx\r\n.\r\nNOOP\r\nQUIT\r\n"),
        "220 250 250 250 354 550 250 221",
        "220 250 250 250 354 554",
        "after a refusal the session goes on; theirs stays in the data",
    ),
    differs(
        "a blank after the colon",
        "EHLO x\r\nMAIL FROM: <erp@contoso.com>\r\nRCPT TO: <a@b.example>\r\nQUIT\r\n",
        "220 250 250 250 221",
        "220 250 500 500 221",
        "many devices send it",
    ),
    differs(
        "addresses without brackets",
        "EHLO x\r\nMAIL FROM:erp@contoso.com\r\nRCPT TO:a@b.example\r\nQUIT\r\n",
        "220 250 250 250 221",
        "220 250 500 500 221",
        "some devices send them",
    ),
    differs(
        "the null sender",
        "EHLO x\r\nMAIL FROM:<>\r\nQUIT\r\n",
        "220 250 550 221",
        "220 250 500 221",
        "it is understood, and the sender table decides",
    ),
    differs(
        "SIZE",
        "EHLO x\r\nMAIL FROM:<erp@contoso.com> SIZE=100\r\nQUIT\r\n",
        "220 250 250 221",
        "220 250 500 221",
        "offered and understood",
    ),
    differs(
        "arguments and blanks where there should be none",
        "EHLO x\r\nNOOP x\r\nRSET \r\nQUIT \r\n",
        "220 250 250 250 221",
        "220 250 500 500 500",
        "they do no harm, and devices send them",
    ),
    differs(
        "commands that end with a bare LF",
        "EHLO x\nNOOP\nQUIT\n",
        "220 250 250 221",
        "220 500 500 500",
        "they can smuggle nothing, and devices send them",
    ),
    differs(
        "HELP",
        "EHLO x\r\nHELP\r\nQUIT\r\n",
        "220 250 214 221",
        "220 250 500 221",
        "offered",
    ),
    differs(
        "DATA without a recipient",
        "EHLO x\r\nMAIL FROM:<erp@contoso.com>\r\nDATA\r\nQUIT\r\n",
        "220 250 250 554 221",
        "220 250 250 503 221",
        "RFC 5321 §3.3 has 554 for it, or 503",
    ),
    differs(
        "STARTTLS where there is none",
        "EHLO x\r\nSTARTTLS\r\nQUIT\r\n",
        "220 250 502 221",
        "220 250 503 221",
        "a command that is known and not implemented (RFC 5321 §4.2.4)",
    ),
];

/// After STARTTLS, where logins are required.
const TLS: &[Case] = &[
    same(
        "AUTH PLAIN",
        "EHLO x\r\nAUTH PLAIN AHNjYW5uZXIxAHNlY3JldA==\r\nQUIT\r\n",
        "250 235 221",
    ),
    same(
        "AUTH LOGIN",
        "EHLO x\r\nAUTH LOGIN\r\nc2Nhbm5lcjE=\r\nc2VjcmV0\r\nQUIT\r\n",
        "250 334 334 235 221",
    ),
    same(
        "a wrong password",
        "EHLO x\r\nAUTH PLAIN AHNjYW5uZXIxAHdyb25n\r\nQUIT\r\n",
        "250 535 221",
    ),
    differs(
        "RSET after a login",
        "EHLO x\r\nAUTH PLAIN AHNjYW5uZXIxAHNlY3JldA==\r\nRSET\r\nMAIL FROM:<erp@contoso.com>\r\nQUIT\r\n",
        "250 235 250 250 221",
        "250 235 250 503 221",
        "RSET ends a transaction, not a login: clients send it between two messages",
    ),
    differs(
        "a login that is cancelled",
        "EHLO x\r\nAUTH LOGIN\r\n*\r\nNOOP\r\nQUIT\r\nQUIT\r\n",
        "250 334 501 250 221",
        "250 334 500 334 535 221",
        "RFC 4954 §4",
    ),
    same(
        "base64 without padding",
        "EHLO x\r\nAUTH LOGIN\r\nc2Nhbm5lcjE\r\nc2VjcmV0\r\nQUIT\r\n",
        "250 334 334 235 221",
    ),
    differs(
        "HELO before a login",
        "HELO x\r\nAUTH PLAIN AHNjYW5uZXIxAHNlY3JldA==\r\nQUIT\r\n",
        "250 235 221",
        "550 503 221",
        "old devices and .NET log in after HELO",
    ),
    differs(
        "MAIL before a login",
        "EHLO x\r\nMAIL FROM:<erp@contoso.com>\r\nQUIT\r\n",
        "250 530 221",
        "250 503 221",
        "530 says what is missing (RFC 4954 §6)",
    ),
];

/// Their side: takes everything but what says it is from the CEO, as our sender table does.
#[derive(Clone, Default)]
struct Taken {
    messages: Arc<Mutex<Vec<Vec<u8>>>>,
    message: Vec<u8>,
}

impl Taken {
    fn messages(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.messages.lock().unwrap()
    }
}

impl Handler for Taken {
    fn mail(&mut self, _: IpAddr, _: &str, _: &str) -> Response {
        OK
    }

    fn data(&mut self, line: &[u8]) -> io::Result<()> {
        self.message.extend_from_slice(line);
        Ok(())
    }

    fn data_end(&mut self) -> Response {
        let message = std::mem::take(&mut self.message);
        if message.starts_with(b"From: ceo@") {
            return TRANSACTION_FAILED;
        }
        self.messages().push(message);
        OK
    }

    fn auth_plain(&mut self, _: &str, account: &str, password: &str) -> Response {
        self.auth_login(account, password)
    }

    fn auth_login(&mut self, account: &str, password: &str) -> Response {
        if (account, password) == ("scanner1", "secret") {
            AUTH_OK
        } else {
            INVALID_CREDENTIALS
        }
    }
}

/// Starts theirs; it never ends.
fn theirs(taken: Taken, tls: Option<&Path>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = Server::new(taken);
    server.with_name("theirs").with_tcp_listener(listener);
    if let Some(pem) = tls {
        let pem = pem.to_str().unwrap().to_owned();
        let ssl = SslConfig::SelfSigned {
            cert_path: pem.clone(),
            key_path: pem,
        };
        server.with_ssl(ssl).unwrap();
        server
            .with_auth(AuthMechanism::Plain)
            .with_auth(AuthMechanism::Login);
    }
    std::thread::spawn(move || server.serve().is_ok());
    address
}

/// Sends all, and gives the reply codes up to the end.
async fn codes<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, client: &str) -> String {
    stream.write_all(client.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut said = Vec::new();
    // A TLS connection may end without saying so.
    let reading = timeout(Duration::from_secs(60), stream.read_to_end(&mut said));
    let _ = reading
        .await
        .unwrap_or_else(|_| panic!("no end after {client:?}"));
    let said = String::from_utf8(said).unwrap();
    let last_lines = said.lines().filter(|it| it.as_bytes().get(3) != Some(&b'-'));
    last_lines.map(|it| &it[..3]).collect::<Vec<_>>().join(" ")
}

/// The same, where the client says no more afterwards: not every dialogue ends with QUIT for both.
async fn codes_then_silence(address: SocketAddr, client: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(client.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    codes(stream, "").await
}

fn outcome(codes: &str, messages: impl Iterator<Item = Vec<u8>>) -> String {
    let mut outcome = codes.to_owned();
    for message in messages {
        outcome += &format!("; {}", message.escape_ascii());
    }
    outcome
}

fn compare(case: &Case, ours: &str, theirs: &str, wrong: &mut Vec<String>) {
    assert_eq!(
        case.theirs.is_some(),
        !case.why.is_empty(),
        "{}: a difference has a reason",
        case.name
    );
    let expected = case.theirs.unwrap_or(case.ours);
    if (ours, theirs) != (case.ours, expected) || case.theirs == Some(case.ours) {
        wrong.push(format!(
            "{}\n  ours   {ours}\n  listed {}\n  theirs {theirs}\n  listed {expected}",
            case.name, case.ours
        ));
    }
}

#[tokio::test]
async fn without_tls() {
    let taken = Taken::default();
    let address = theirs(taken.clone(), None);
    let mut wrong = Vec::new();
    for case in PLAIN {
        let relay = Relay::start(&Settings::default()).await;
        let said = codes_then_silence(relay.address, case.client).await;
        let mut messages = Vec::new();
        for entry in relay.queue().await {
            messages.push(relay.spool.content(entry.id).await.unwrap().to_vec());
        }
        let ours = outcome(&said, messages.into_iter());

        let said = codes_then_silence(address, case.client).await;
        let theirs = outcome(&said, std::mem::take(&mut *taken.messages()).into_iter());
        compare(case, &ours, &theirs, &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn with_tls_and_logins() {
    let relay = Relay::start(&Settings {
        listener: "tls = \"starttls\"\nauth = \"required\"".into(),
        ..Settings::default()
    })
    .await;
    let address = theirs(Taken::default(), Some(&relay.directory.path().join("relay.pem")));
    let mut wrong = Vec::new();
    for case in TLS {
        let mut said = Vec::new();
        for address in [relay.address, address] {
            let mut client = Client::new(TcpStream::connect(address).await.unwrap());
            client.reply().await;
            client.expect("EHLO x", "250").await;
            client.expect("STARTTLS", "220").await;
            let stream = client.start_tls(&relay.certificate).await.into_inner();
            said.push(codes(stream, case.client).await);
        }
        compare(case, &said[0], &said[1], &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
