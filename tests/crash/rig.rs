//! The gateway as a process that can be killed, a client, and the stand-in cloud.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use graphpost::sandbox::{Cloud, Limits, Options};
use graphpost::spool::{Filter, Reader, State};
use rustix::process::{Pid, Signal, kill_process};

/// Nothing here takes this long when all is well.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// Requests that may be in flight for a mailbox, and so may be sent twice, at each kill.
pub const IN_FLIGHT: usize = 8;

/// The binary under test. `GRAPHPOST_CRASH_BINARY` names another, for example a released one.
pub fn binary() -> PathBuf {
    std::env::var_os("GRAPHPOST_CRASH_BINARY")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_graphpost")), PathBuf::from)
}

/// A cloud that throttles nobody and forgets nothing, and a directory with the application's
/// certificate.
pub async fn cloud(directory: &Path) -> Cloud {
    let limits = Limits {
        concurrency: None,
        requests_per_ten_minutes: None,
        bytes_per_five_minutes: None,
        // Long enough that a kill finds requests in flight.
        latency_ms: 5,
        keep_messages: usize::MAX,
        keep_bytes: 0,
        ..Limits::default()
    };
    let options = Options {
        limits,
        certificates: vec![certificate(directory).into_bytes()],
        ..Options::default()
    };
    let cloud = Cloud::bind((Ipv4Addr::LOCALHOST, 0).into(), options)
        .await
        .unwrap();
    cloud.change_tenant(|it| it.roles = vec!["Mail.Send".to_owned(), "Mail.ReadWrite".to_owned()]);
    cloud
}

/// Writes `graphpost.toml` for a queue beside it.
pub fn configure(directory: &Path, cloud: &str, credential: &Path, change: impl FnOnce(String) -> String) {
    let credential = credential.display();
    let configuration = format!(
        r#"
        [tenant]
        id = "contoso.onmicrosoft.com"
        client_id = "11111111-1111-1111-1111-111111111111"
        authority = "{cloud}"
        graph = "{cloud}"
        [tenant.credential]
        certificate = "{credential}/app.crt"
        private_key = "{credential}/app.key"
        [[listener]]
        address = "127.0.0.1:0"
        [[sender]]
        address = ["erp@contoso.com"]
        mailbox = "service@contoso.com"
        [spool]
        directory = "spool"
        file_threshold = "10KB"
        [delivery]
        concurrency_per_mailbox = {IN_FLIGHT}
        messages_per_minute = 1000000
        [admin]
        address = "none"
        "#
    );
    std::fs::write(directory.join("graphpost.toml"), change(configuration)).unwrap();
}

/// Whether there is anything that will still be sent.
pub fn is_busy(spool: &Path) -> bool {
    let filter = Filter {
        states: vec![State::Queued, State::Sending, State::Held],
        limit: 1,
        ..Filter::default()
    };
    let reader = Reader::open(spool).unwrap();
    !reader.list(&filter).unwrap().is_empty()
}

/// Writes a certificate and its key; returns the certificate.
fn certificate(directory: &Path) -> String {
    use std::os::unix::fs::PermissionsExt;
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let parameters = rcgen::CertificateParams::new(vec!["app.contoso.com".to_owned()]).unwrap();
    let certificate = parameters.self_signed(&key).unwrap().pem();
    std::fs::write(directory.join("app.crt"), &certificate).unwrap();
    std::fs::write(directory.join("app.key"), key.serialize_pem()).unwrap();
    std::fs::set_permissions(directory.join("app.key"), std::fs::Permissions::from_mode(0o600)).unwrap();
    certificate
}

/// One SMTP client.
pub struct Client {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Client {
    pub fn connect(port: u16) -> std::io::Result<Client> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut client = Client {
            reader: BufReader::new(stream.try_clone()?),
            writer: stream,
        };
        client.expect("220")?;
        client.command("EHLO load.contoso.com\r\n", "250")?;
        Ok(client)
    }

    /// Sends a message, of which `rest` is what follows its subject; `Ok` is a 250.
    pub fn send(&mut self, subject: &str, rest: &str) -> std::io::Result<()> {
        self.command("MAIL FROM:<erp@contoso.com>\r\n", "250")?;
        self.command("RCPT TO:<you@example.org>\r\n", "250")?;
        self.command("DATA\r\n", "354")?;
        let message = format!("From: erp@contoso.com\r\nSubject: {subject}\r\n{rest}\r\n.\r\n");
        self.command(&message, "250")
    }

    fn command(&mut self, command: &str, code: &str) -> std::io::Result<()> {
        self.writer.write_all(command.as_bytes())?;
        self.expect(code)
    }

    fn expect(&mut self, code: &str) -> std::io::Result<()> {
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line)? == 0 || !line.ends_with('\n') {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            assert!(line.starts_with(code), "wanted {code}, got {line:?}");
            if line.as_bytes()[3] != b'-' {
                return Ok(());
            }
        }
    }
}

/// `graphpost serve` as a child process.
pub struct Gateway {
    child: Child,
    /// Its port; `None` when it ended before it listened.
    pub port: Option<u16>,
    log: Arc<Mutex<String>>,
}

impl Gateway {
    /// Starts it, to be killed from outside or at a crash point.
    pub fn start(directory: &Path, crash_at: Option<&str>) -> Gateway {
        let mut command = Command::new(binary());
        command
            .args(["serve", "--config"])
            .arg(directory.join("graphpost.toml"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        match crash_at {
            Some(point) => command.env("GRAPHPOST_CRASH_AT", point),
            None => command.env_remove("GRAPHPOST_CRASH_AT"),
        };
        let mut child = command.spawn().unwrap();
        let log: Arc<Mutex<String>> = Arc::default();
        let mut stderr = child.stderr.take().unwrap();
        let kept = log.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(read @ 1..) = stderr.read(&mut chunk) {
                let text = String::from_utf8_lossy(&chunk[..read]);
                kept.lock().unwrap().push_str(&text);
            }
        });
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        let port = loop {
            line.clear();
            if output.read_line(&mut line).unwrap() == 0 {
                break None;
            }
            let mut words = line.split_whitespace();
            if let Some(port) = words.find_map(|it| it.strip_prefix("127.0.0.1:")) {
                break Some(port.parse().unwrap());
            }
        };
        Gateway { child, port, log }
    }

    /// Its port; it must be listening.
    pub fn listening(&self) -> u16 {
        self.port
            .unwrap_or_else(|| panic!("the gateway did not start:\n{}", self.log()))
    }

    /// SIGKILL: no handler runs, nothing is flushed.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it has killed itself.
    pub fn killed(&mut self) {
        let status = self.wait();
        assert_eq!(status.signal(), Some(9), "{status}:\n{}", self.log());
    }

    /// SIGTERM: it finishes what is under way.
    pub fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let status = self.wait();
        assert!(status.success(), "{status}:\n{}", self.log());
    }

    /// Waits until it has ended, but not for ever: then it is ended in another way.
    fn wait(&mut self) -> ExitStatus {
        let pid = Pid::from_child(&self.child);
        let (ended, is_ended) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            if is_ended.recv_timeout(DEADLINE) == Err(mpsc::RecvTimeoutError::Timeout) {
                let _ = kill_process(pid, Signal::QUIT);
            }
        });
        let status = self.child.wait().unwrap();
        drop(ended);
        status
    }

    /// Its last words.
    pub fn log(&self) -> String {
        let log = self.log.lock().unwrap();
        let tail: Vec<&str> = log.lines().rev().take(40).collect();
        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
