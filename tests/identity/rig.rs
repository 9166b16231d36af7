//! A directory with a configuration, the cloud, and the real program.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use graphpost::sandbox::{Cloud, Options};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, Command};

/// Nothing here takes this long when all is well.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The client id of every test.
pub const CLIENT: &str = "11111111-1111-1111-1111-111111111111";

pub fn credential_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/credentials")
        .join(name)
}

pub struct Site {
    pub directory: TempDir,
    pub cloud: Cloud,
}

impl Site {
    pub async fn new() -> Site {
        let cloud = Cloud::bind("127.0.0.1:0".parse().unwrap(), Options::default())
            .await
            .unwrap();
        cloud.change_tenant(|it| {
            it.names = vec!["contoso.onmicrosoft.com".to_owned()];
            it.clients = vec![CLIENT.to_owned()];
            it.trust_presented_certificates = false;
        });
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Site { directory, cloud }
    }

    /// Copies a file of `tests/credentials` to where only we may read it.
    pub fn copy(&self, name: &str) {
        self.write(name, &std::fs::read(credential_file(name)).unwrap());
    }

    pub fn write(&self, name: &str, content: &[u8]) {
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.file(name))
            .unwrap();
        std::io::Write::write_all(&mut file, content).unwrap();
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes the configuration: `tenant` goes into the table `[tenant]`, the rest after it.
    pub fn configure(&self, tenant: &str, rest: &str) {
        let cloud = self.cloud.url();
        let text = format!(
            r#"[tenant]
id = "contoso.onmicrosoft.com"
client_id = "{CLIENT}"
authority = "{cloud}"
graph = "{cloud}"
{tenant}
{rest}
[[sender]]
address = ["erp@contoso.com"]
mailbox = "service@contoso.com"
[spool]
directory = "queue"
[admin]
address = "127.0.0.1:0"
"#
        );
        self.write("graphpost.toml", text.as_bytes());
    }

    /// The program with these arguments, to its end: what it says, and whether it is content.
    pub async fn run(&self, arguments: &[&str]) -> (String, bool) {
        let output = self.command(arguments).output();
        let output = tokio::time::timeout(DEADLINE, output).await;
        let output = output
            .unwrap_or_else(|_| panic!("no end of {arguments:?}"))
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (String::from_utf8(said).unwrap(), output.status.success())
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_graphpost"));
        command
            .args(arguments)
            .current_dir(self.directory.path())
            .env("GRAPHPOST_CONFIG", self.file("graphpost.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// `graphpost serve`, once it accepts mail.
    pub async fn serve(&self) -> Gateway {
        self.serve_with(self.command(&["serve"])).await
    }

    pub async fn serve_with(&self, mut command: Command) -> Gateway {
        let mut child = command.spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut gateway = Gateway {
            log: BufReader::new(child.stderr.take().unwrap()).lines(),
            child,
            said: String::new(),
            smtp: String::new(),
            admin: String::new(),
        };
        while gateway.admin.is_empty() {
            let Some(line) = output.next_line().await.unwrap() else {
                rest_of(&mut gateway.log, &mut gateway.said).await;
                panic!("it does not start:\n{}", gateway.said);
            };
            gateway.said.push_str(&line);
            gateway.said.push('\n');
            let address = line.split(' ').nth(2).unwrap_or_default();
            match address.strip_prefix("http://") {
                Some(address) => gateway.admin = address.trim_end_matches('/').to_owned(),
                None if gateway.smtp.is_empty() => gateway.smtp = address.to_owned(),
                None => {}
            }
        }
        gateway
    }
}

async fn rest_of<R: AsyncRead + Unpin>(lines: &mut Lines<BufReader<R>>, said: &mut String) {
    while let Ok(Some(line)) = lines.next_line().await {
        said.push_str(&line);
        said.push('\n');
    }
}

/// The running program.
pub struct Gateway {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    /// All it has said so far.
    pub said: String,
    pub smtp: String,
    pub admin: String,
}

impl Gateway {
    /// Reads its log to a line with these words, and gives that line.
    pub async fn says(&mut self, words: &str) -> String {
        loop {
            let line = tokio::time::timeout(DEADLINE, self.log.next_line()).await;
            let Ok(Ok(Some(line))) = line else {
                panic!("it does not say '{words}':\n{}", self.said);
            };
            self.said.push_str(&line);
            self.said.push('\n');
            if line.contains(words) {
                return line;
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    pub fn signal(&self, name: &str) {
        let status = std::process::Command::new("kill")
            .args(["-s", name, &self.pid().to_string()])
            .status();
        assert!(status.unwrap().success());
    }

    /// What it has said from beginning to end.
    pub async fn stop(mut self) -> String {
        self.signal("TERM");
        rest_of(&mut self.log, &mut self.said).await;
        assert!(self.child.wait().await.unwrap().success(), "{}", self.said);
        self.said
    }

    /// `GET` of the admin address: the body.
    pub async fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.admin).await.unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.admin
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        body.to_owned()
    }
}

/// Hands over one mail.
pub async fn send(gateway: &Gateway) {
    let mut stream = BufReader::new(TcpStream::connect(&gateway.smtp).await.unwrap());
    let mut said = String::new();
    stream.read_line(&mut said).await.unwrap();
    for command in [
        "HELO client.example",
        "MAIL FROM:<erp@contoso.com>",
        "RCPT TO:<ann@example.org>",
        "DATA",
        "From: erp@contoso.com\r\nSubject: x\r\n\r\nx\r\n.",
    ] {
        stream
            .write_all(format!("{command}\r\n").as_bytes())
            .await
            .unwrap();
        said.clear();
        stream.read_line(&mut said).await.unwrap();
        assert!(said.starts_with(['2', '3']), "{command}: {said}");
    }
}
