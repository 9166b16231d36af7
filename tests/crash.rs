//! kill -9 under load, again and again: every message that got 250 is delivered.
//!
//! The real binary over a real spool; clients on real sockets; the stand-in cloud, in this process and
//! so never killed, is the witness. The 250s that the clients saw are compared with what it delivered.
//!
//! `GRAPHPOST_CRASH_KILLS=500 cargo test --release --test crash -- --nocapture` makes a longer run.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use graphpost::sandbox::{Cloud, Limits, Options};

/// Connections that send at the same time.
const CLIENTS: usize = 8;
/// Requests that may be in flight, and so may be sent twice, at each kill.
const IN_FLIGHT: usize = 8;
/// Nothing here takes this long when all is well.
const DEADLINE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn every_250_is_delivered() {
    let kills: usize = std::env::var("GRAPHPOST_CRASH_KILLS").map_or(6, |it| it.parse().unwrap());
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let certificate = certificate(directory.path());
    let cloud = Cloud::bind(
        (Ipv4Addr::LOCALHOST, 0).into(),
        Options {
            limits: Limits {
                concurrency: None,
                requests_per_ten_minutes: None,
                bytes_per_five_minutes: None,
                // Long enough that a kill finds requests in flight.
                latency_ms: 5,
                keep_messages: usize::MAX,
                keep_bytes: 0,
                ..Limits::default()
            },
            certificates: vec![certificate.into_bytes()],
            ..Options::default()
        },
    )
    .await
    .unwrap();
    configure(directory.path(), &cloud.url());

    let acknowledged: Arc<Mutex<Vec<String>>> = Arc::default();
    let next = Arc::new(AtomicUsize::new(0));
    for kill in 0..kills {
        let mut gateway = Gateway::start(directory.path());
        // A different moment each time, spread over what happens to a message.
        let until = acknowledged.lock().unwrap().len() + 40 + (kill * 37) % 160;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let (port, acknowledged, next) = (gateway.port, acknowledged.clone(), next.clone());
                tokio::task::spawn_blocking(move || {
                    // The kill ends the connection, and so the client: an error here is expected.
                    let _ = send_until_cut(port, &acknowledged, &next);
                })
            })
            .collect();
        tokio::time::timeout(DEADLINE, async {
            while acknowledged.lock().unwrap().len() < until {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the gateway accepts mail");
        gateway.kill();
        for client in clients {
            client.await.unwrap();
        }
    }

    // Once more, undisturbed: what is still in the queue goes out.
    let gateway = Gateway::start(directory.path());
    let acknowledged = acknowledged.lock().unwrap().clone();
    let mut delivered: BTreeMap<String, usize> = BTreeMap::new();
    tokio::time::timeout(DEADLINE, async {
        let mut seen = 0;
        loop {
            delivered.clear();
            for delivery in cloud.deliveries() {
                seen = seen.max(usize::try_from(delivery.id).unwrap());
                *delivered.entry(delivery.subject).or_default() += 1;
            }
            if acknowledged.iter().all(|it| delivered.contains_key(it)) {
                return;
            }
            cloud.wait_for(seen + 1).await;
        }
    })
    .await
    .unwrap_or_else(|_| {
        let lost: Vec<_> = acknowledged
            .iter()
            .filter(|it| !delivered.contains_key(*it))
            .collect();
        panic!(
            "{} of {} lost: {lost:?}\n{}",
            lost.len(),
            acknowledged.len(),
            gateway.log()
        );
    });

    let duplicates: usize = delivered.values().map(|times| times - 1).sum();
    println!(
        "kills {kills}, acknowledged {}, delivered {}, lost 0, duplicates {duplicates}",
        acknowledged.len(),
        delivered.len()
    );
    // Only a request in flight at a kill may be sent twice: its answer is what got lost.
    assert!(duplicates <= kills * IN_FLIGHT, "{duplicates} duplicates");
    // A message is one or it is none: sizes tell that none was cut.
    let sizes: HashMap<String, usize> = cloud
        .deliveries()
        .into_iter()
        .map(|it| (it.subject, it.size))
        .collect();
    for (subject, size) in sizes {
        let number: usize = subject.parse().unwrap();
        assert!(
            size > body_lines(number) * LINE.len(),
            "{subject} has {size} octets"
        );
    }
}

const LINE: &str = "An invoice line that says what was bought, and what it costs.\r\n";

/// Every fifth message is large enough for a file of its own.
fn body_lines(number: usize) -> usize {
    if number.is_multiple_of(5) { 600 } else { 20 }
}

/// One client: message after message on one connection, until it is cut.
fn send_until_cut(port: u16, acknowledged: &Mutex<Vec<String>>, next: &AtomicUsize) -> std::io::Result<()> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut client = Client {
        reader: BufReader::new(stream.try_clone()?),
        writer: stream,
    };
    client.expect("220")?;
    client.command("EHLO load.contoso.com\r\n", "250")?;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let subject = number.to_string();
        client.command("MAIL FROM:<erp@contoso.com>\r\n", "250")?;
        client.command("RCPT TO:<you@example.org>\r\n", "250")?;
        client.command("DATA\r\n", "354")?;
        let body = LINE.repeat(body_lines(number));
        client.command(
            &format!("From: erp@contoso.com\r\nSubject: {subject}\r\n\r\n{body}.\r\n"),
            "250",
        )?;
        acknowledged.lock().unwrap().push(subject);
    }
}

struct Client {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Client {
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
struct Gateway {
    child: Child,
    port: u16,
    log: Arc<Mutex<String>>,
}

impl Gateway {
    fn start(directory: &Path) -> Gateway {
        let mut child = Command::new(env!("CARGO_BIN_EXE_graphpost"))
            .args(["serve", "--config"])
            .arg(directory.join("graphpost.toml"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log: Arc<Mutex<String>> = Arc::default();
        let mut stderr = child.stderr.take().unwrap();
        let kept = log.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(read @ 1..) = stderr.read(&mut chunk) {
                kept.lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&chunk[..read]));
            }
        });
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        let port = loop {
            line.clear();
            let read = output.read_line(&mut line).unwrap();
            assert!(read > 0, "the gateway did not start:\n{}", log.lock().unwrap());
            let address = line
                .split_whitespace()
                .find_map(|it| it.strip_prefix("127.0.0.1:"));
            if let Some(port) = address {
                break port.parse().unwrap();
            }
        };
        Gateway { child, port, log }
    }

    /// SIGKILL: no handler runs, nothing is flushed.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn log(&self) -> String {
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

fn configure(directory: &Path, cloud: &str) {
    let configuration = format!(
        r#"
        [tenant]
        id = "contoso.onmicrosoft.com"
        client_id = "11111111-1111-1111-1111-111111111111"
        authority = "{cloud}"
        graph = "{cloud}"
        [tenant.credential]
        certificate = "app.crt"
        private_key = "app.key"
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
        address = "127.0.0.1:0"
        "#
    );
    std::fs::write(directory.join("graphpost.toml"), configuration).unwrap();
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
