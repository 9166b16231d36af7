//! A configuration in a directory, the cloud, and a client.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use graphpost::app::{self, Gateway};
use graphpost::config::{Config, Environment};
use graphpost::sandbox::{Cloud, Options};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpStream, UnixStream};

/// Nothing here takes this long when all is well.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub struct Site {
    pub directory: TempDir,
    pub cloud: Cloud,
}

impl Site {
    /// A cloud, the application's key, and the ordinary configuration.
    pub async fn new() -> Site {
        let credentials = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/credentials");
        let cloud = Cloud::bind(
            "127.0.0.1:0".parse().unwrap(),
            Options {
                certificates: vec![std::fs::read(credentials.join("app.cer")).unwrap()],
                ..Options::default()
            },
        )
        .await
        .unwrap();
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        for name in ["app.pem", "app.key"] {
            let to = directory.path().join(name);
            std::fs::copy(credentials.join(name), &to).unwrap();
            std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        let site = Site { directory, cloud };
        site.configure(|it| it);
        site
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("graphpost.toml")
    }

    /// Writes the configuration, changed.
    pub fn configure(&self, change: impl FnOnce(String) -> String) {
        let cloud = self.cloud.url();
        let text = format!(
            r#"
[tenant]
id = "contoso.onmicrosoft.com"
client_id = "11111111-1111-1111-1111-111111111111"
authority = "{cloud}"
graph = "{cloud}"
[tenant.credential]
certificate = "app.pem"
private_key = "app.key"
[[listener]]
name = "plain"
address = "127.0.0.1:0"
[[sender]]
address = ["erp@contoso.com"]
mailbox = "service@contoso.com"
[spool]
directory = "queue"
[delivery]
messages_per_minute = 1000000
[admin]
address = "127.0.0.1:0"
"#
        );
        std::fs::write(self.path(), change(text)).unwrap();
    }

    pub fn config(&self) -> Config {
        Config::load(&self.path(), &Environment::default()).unwrap_or_else(|it| panic!("{it}"))
    }

    pub async fn start(&self) -> Gateway {
        app::start(self.config()).await.unwrap()
    }

    pub fn control_socket(&self) -> PathBuf {
        self.directory.path().join("queue/control.sock")
    }
}

/// Sends one mail; the replies' codes.
pub async fn send(server: SocketAddr, from: &str, subject: &str) -> Vec<String> {
    let mut stream = BufReader::new(TcpStream::connect(server).await.unwrap());
    let mut codes = vec![reply(&mut stream).await];
    let commands = [
        "EHLO client.example\r\n".to_owned(),
        format!("MAIL FROM:<{from}>\r\n"),
        "RCPT TO:<ann@example.com>\r\n".to_owned(),
        "DATA\r\n".to_owned(),
        format!("From: {from}\r\nTo: ann@example.com\r\nSubject: {subject}\r\n\r\nHello\r\n.\r\n"),
    ];
    for command in commands {
        stream.write_all(command.as_bytes()).await.unwrap();
        let code = reply(&mut stream).await;
        let refused = code.starts_with('5') || code.starts_with('4');
        codes.push(code);
        if refused {
            break;
        }
    }
    stream.write_all(b"QUIT\r\n").await.unwrap();
    codes
}

async fn reply(stream: &mut BufReader<TcpStream>) -> String {
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        if line.as_bytes().get(3) != Some(&b'-') {
            return line.get(..3).unwrap_or_default().to_owned();
        }
    }
}

/// One HTTP request over TCP, with this Host field; the whole answer.
pub async fn http(server: SocketAddr, request: &str, host: &str) -> String {
    let stream = TcpStream::connect(server).await.unwrap();
    exchange(stream, request, host, "").await
}

/// One HTTP request over the control socket.
pub async fn control(socket: &Path, request: &str, body: &str) -> String {
    let stream = UnixStream::connect(socket).await.unwrap();
    exchange(stream, request, "graphpost", body).await
}

async fn exchange<S>(mut stream: S, request: &str, host: &str, body: &str) -> String
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let request = format!(
        "{request} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

/// What follows the head of an HTTP answer.
pub fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}
