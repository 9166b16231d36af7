//! Servers that misbehave to the octet, on sockets of their own.
#![allow(dead_code)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use graphpost::config::{Api, ApplicationCredential, AssertionAlgorithm, Credential, Tenant};
use graphpost::metrics::Metrics;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

pub const CLIENT: &str = "11111111-2222-4333-8444-555555555555";

pub fn credential_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/credentials")
        .join(name)
}

/// A credential of `tests/credentials`.
pub fn certificate(certificate: &str, private_key: Option<&str>) -> ApplicationCredential {
    ApplicationCredential::Certificate {
        files: Credential {
            certificate: credential_file(certificate),
            private_key: private_key.map(credential_file),
            password: None,
        },
        vault_password: None,
    }
}

/// A tenant whose Entra ID and Graph are at these addresses.
pub fn tenant(authority: &str, graph: &str) -> Tenant {
    Tenant {
        id: "contoso.onmicrosoft.com".to_owned(),
        client_id: CLIENT.to_owned(),
        authority: authority.to_owned(),
        graph: graph.to_owned(),
        api: Api::Graph,
        credential: certificate("both.pem", None),
        next_credential: None,
        send_certificate_chain: false,
        continuous_access_evaluation: false,
        assertion: AssertionAlgorithm::default(),
        proxy: None,
        ca_file: None,
        large_messages: false,
    }
}

pub fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new())
}

/// What the server does with a request.
#[derive(Clone, Debug)]
pub enum Then {
    /// Reads the body and answers with these octets.
    Answer(String),
    /// Reads the body, answers, and closes the connection without having announced it.
    AnswerAndClose(String),
    /// Answers before it reads the body, and only then reads it.
    AnswerEarly(String),
    /// Reads the body, answers the beginning of something and never goes on.
    AnswerAndHang(String),
    /// Reads the body, answers this head and then octets without end.
    AnswerEndlessly(String),
    /// Reads the body and says nothing.
    Hang,
    /// Reads the body and resets the connection.
    Reset,
    /// Resets the connection when it has read the head.
    ResetAtHead,
    /// Reads the body and closes the connection in order.
    Close,
}

/// A request as it came.
#[derive(Debug)]
pub struct Seen {
    /// The number of its connection, counted from 0.
    pub connection: usize,
    pub head: String,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn is_token(&self) -> bool {
        self.head
            .lines()
            .next()
            .is_some_and(|it| it.contains("/oauth2/v2.0/token"))
    }
}

/// Entra ID and Graph in one: grants tokens `token-0`, `token-1` …, and does to all else what the
/// script says, request by request. A token request does what the token script says while it lasts.
pub struct Server {
    pub address: SocketAddr,
    pub seen: mpsc::UnboundedReceiver<Seen>,
    tokens: Arc<Mutex<usize>>,
}

#[derive(Default)]
struct Script {
    tokens: std::collections::VecDeque<Then>,
    rest: std::collections::VecDeque<Then>,
}

impl Server {
    pub async fn start(script: Vec<Then>) -> Server {
        Server::start_with_tokens(Vec::new(), script).await
    }

    pub async fn start_with_tokens(tokens: Vec<Then>, script: Vec<Then>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen_tx, seen) = mpsc::unbounded_channel();
        let script = Arc::new(Mutex::new(Script {
            tokens: tokens.into(),
            rest: script.into(),
        }));
        let granted = Arc::new(Mutex::new(0));
        let count = Arc::clone(&granted);
        tokio::spawn(async move {
            for number in 0.. {
                let Ok((stream, _)) = listener.accept().await else {
                    return;
                };
                let script = Arc::clone(&script);
                let granted = Arc::clone(&granted);
                tokio::spawn(connection(number, stream, script, granted, seen_tx.clone()));
            }
        });
        Server {
            address,
            seen,
            tokens: count,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn tenant(&self) -> Tenant {
        tenant(&self.url(), &self.url())
    }

    /// How many tokens it has granted.
    pub fn tokens(&self) -> usize {
        *self.tokens.lock().unwrap()
    }

    /// The next request that is not for a token.
    pub async fn next(&mut self) -> Seen {
        loop {
            let seen = self.seen.recv().await.unwrap();
            if !seen.is_token() {
                return seen;
            }
        }
    }
}

async fn connection(
    number: usize,
    mut stream: TcpStream,
    script: Arc<Mutex<Script>>,
    granted: Arc<Mutex<usize>>,
    seen: mpsc::UnboundedSender<Seen>,
) {
    let mut buffer = Vec::new();
    loop {
        // The head.
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|it| it == b"\r\n\r\n") {
                break at + 4;
            }
            match stream.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        };
        let head = String::from_utf8(buffer.drain(..end).collect()).unwrap();
        let mut request = Seen {
            connection: number,
            head,
            body: Vec::new(),
        };
        let then = {
            let mut script = script.lock().unwrap();
            if request.is_token() {
                script.tokens.pop_front().unwrap_or_else(|| {
                    let mut granted = granted.lock().unwrap();
                    *granted += 1;
                    Then::Answer(json(
                        200,
                        &format!(r#"{{"access_token":"token-{}","expires_in":3599}}"#, *granted - 1),
                    ))
                })
            } else {
                script
                    .rest
                    .pop_front()
                    .unwrap_or(Then::Answer(ACCEPTED.to_owned()))
            }
        };
        let length: usize = request
            .field("content-length")
            .map_or(0, |it| it.parse().unwrap());
        match &then {
            Then::ResetAtHead => {
                let _ = seen.send(request);
                return reset(stream);
            }
            Then::AnswerEarly(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
            _ => {}
        }
        // The body.
        while buffer.len() < length {
            match stream.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        request.body = buffer.drain(..length).collect();
        match then {
            Then::Answer(answer) => {
                let _ = seen.send(request);
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
            Then::AnswerEarly(_) => {
                let _ = seen.send(request);
            }
            Then::AnswerAndClose(answer) => {
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
                drop(stream);
                let _ = seen.send(request);
                return;
            }
            Then::AnswerAndHang(answer) => {
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = seen.send(request);
                return std::future::pending().await;
            }
            Then::AnswerEndlessly(answer) => {
                let _ = seen.send(request);
                let _ = stream.write_all(answer.as_bytes()).await;
                while stream.write_all(&[b'x'; 16 * 1024]).await.is_ok() {}
                return;
            }
            Then::Hang => {
                let _ = seen.send(request);
                return std::future::pending().await;
            }
            Then::Reset => {
                let _ = seen.send(request);
                return reset(stream);
            }
            Then::Close => {
                let _ = seen.send(request);
                return;
            }
            Then::ResetAtHead => unreachable!("done above"),
        }
    }
}

/// Ends a connection with RST.
fn reset(stream: TcpStream) {
    stream.set_zero_linger().unwrap();
    drop(stream);
}

pub const ACCEPTED: &str = "HTTP/1.1 202 Accepted\r\nrequest-id: r-1\r\nContent-Length: 0\r\n\r\n";

pub fn json(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} Status\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

pub fn html(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} Status\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}
