//! The SMTP side: connections, logins, the decoder of mail data, and an attack by slow clients. The real
//! binary over real sockets; prints tables.
//!
//! ```console
//! $ cargo bench --bench smtp                # everything, about two minutes
//! $ cargo bench --bench smtp -- drip        # one part: data, idle, new, login, drip
//! ```

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use graphpost::smtp::data::DataDecoder;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long each rate is measured.
const CELL: Duration = Duration::from_secs(5);

/// Clients that attack, and clients that send mail.
const ATTACKERS: usize = 5_000;
const HONEST: usize = 20;

fn main() {
    // Cargo passes `--bench`; what is left names parts.
    let parts: Vec<String> = std::env::args()
        .skip(1)
        .filter(|it| !it.starts_with("--"))
        .collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|it| it == part);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    if wanted("data") {
        data();
    }
    if wanted("idle") {
        runtime.block_on(idle());
    }
    if wanted("new") {
        runtime.block_on(new());
    }
    if wanted("login") {
        runtime.block_on(login());
    }
    if wanted("drip") {
        runtime.block_on(drip());
    }
}

// ---- mail data ---------------------------------------------------------------------------------

fn data() {
    println!("\nDecoding mail data in pieces of 64 KB");
    println!("{:>32} {:>8}", "lines", "GB/s");
    for (what, line) in [
        (
            "base64, 76 octets",
            &b"QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWZnaGlqa2xtbm9wcXJzdHV2d3h5ejAxMjM0\r\n"[..],
        ),
        ("short ones, 10 octets", b"0123456789\r\n"),
        ("each with a leading dot", b"..23456789\r\n"),
        ("each ended by a bare LF", b"0123456789\n"),
    ] {
        let piece: Vec<u8> = line
            .iter()
            .copied()
            .cycle()
            .take(64 * 1024 / line.len() * line.len())
            .collect();
        let (begun, mut octets, mut given) = (Instant::now(), 0usize, 0usize);
        let mut decoder = DataDecoder::default();
        while begun.elapsed() < CELL / 5 {
            for _ in 0..64 {
                octets += decoder.feed(&piece, |slice| given += std::hint::black_box(slice).len());
            }
        }
        assert!(given > 0);
        println!(
            "{what:>32} {:>8.2}",
            octets as f64 / begun.elapsed().as_secs_f64() / 1e9
        );
    }
}

// ---- connections -------------------------------------------------------------------------------

async fn idle() {
    println!("\nMemory with idle connections after EHLO");
    println!(
        "{:>8} {:>12} {:>10} {:>16}",
        "", "connections", "MB", "KB a connection"
    );
    for (what, tls, count) in [("plain", false, 5_000), ("TLS", true, 5_000)] {
        let gateway = Gateway::start(0);
        // What the first handshake allocates for all is not the price of a connection.
        drop(gateway.connect(tls).await);
        let empty = gateway.resident_octets();
        let mut connections = Vec::new();
        for _ in 0..count {
            connections.push(gateway.connect(tls).await);
        }
        let resident = gateway.resident_octets();
        println!(
            "{what:>8} {count:>12} {:>10.1} {:>16.1}",
            resident as f64 / 1e6,
            resident.saturating_sub(empty) as f64 / 1e3 / f64::from(count),
        );
    }
}

async fn new() {
    println!("\nConnections per second: connect, EHLO, QUIT; {HONEST} clients at once");
    let gateway = Arc::new(Gateway::start(0));
    for (what, tls) in [("plain", false), ("TLS", true)] {
        let begun = Instant::now();
        let clients: Vec<_> = (0..HONEST)
            .map(|_| {
                let gateway = gateway.clone();
                tokio::spawn(async move {
                    let mut count = 0;
                    while begun.elapsed() < CELL {
                        gateway.connect(tls).await.command("QUIT\r\n", "221").await;
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        let mut count = 0;
        for client in clients {
            count += client.await.expect("a client");
        }
        println!(
            "{what:>8} {:>8.0}",
            f64::from(count) / begun.elapsed().as_secs_f64()
        );
    }
}

// ---- logins ------------------------------------------------------------------------------------

async fn login() {
    const ACCOUNTS: usize = 20;
    println!(
        "\nMilliseconds of a login, argon2id as 'graphpost user add' makes it: median of {ACCOUNTS} accounts"
    );
    let gateway = Gateway::start(ACCOUNTS);
    let mut times = [vec![], vec![]];
    for number in 0..ACCOUNTS {
        for times in &mut times {
            let mut client = gateway.connect(false).await;
            let response = BASE64_STANDARD.encode(format!("\0scanner{number}\0secret"));
            let begun = Instant::now();
            client.command(&format!("AUTH PLAIN {response}\r\n"), "235").await;
            times.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
    }
    for (what, times) in ["the first", "a later one"].iter().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        println!("{what:>12} {:>10.2}", times[ACCOUNTS / 2]);
    }
}

// ---- an attack ---------------------------------------------------------------------------------

async fn drip() {
    println!(
        "\n{HONEST} honest clients, alone and while {ATTACKERS} others send or read an octet now and then"
    );
    let gateway = Arc::new(Gateway::start(0));
    // Files, caches and the allocator are as they will be.
    honest(&gateway, CELL / 5).await;
    let before = honest(&gateway, CELL).await;

    let (ends, ready) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let attack: Vec<_> = (0..ATTACKERS)
        .map(|number| {
            let (gateway, ends, ready) = (gateway.clone(), ends.clone(), ready.clone());
            tokio::spawn(async move { attacker(number, &gateway, &ends, &ready).await })
        })
        .collect();
    while ready.load(Ordering::Relaxed) < ATTACKERS {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let during = honest(&gateway, CELL).await;
    let resident = gateway.resident_octets();
    ends.store(true, Ordering::Relaxed);
    for attacker in attack {
        let _ = attacker.await;
    }
    let after = honest(&gateway, CELL).await;
    let without = (before + after) / 2.0;
    println!("{:>26} {:>8.0} messages/s", "without, before and after", without);
    println!("{:>26} {:>8.0} messages/s", "with", during);
    println!("{:>26} {:>8.2}", "ratio", during / without);
    println!("{:>26} {:>8.0} MB", "memory under attack", resident as f64 / 1e6);
}

/// A third each: commands by the octet, mail data by the octet, and replies that are not read.
async fn attacker(number: usize, gateway: &Gateway, ends: &AtomicBool, ready: &AtomicUsize) {
    let mut client = gateway.connect(false).await;
    match number % 3 {
        0 => {}
        1 => {
            client.command("MAIL FROM:<erp@contoso.com>\r\n", "250").await;
            client.command("RCPT TO:<you@example.org>\r\n", "250").await;
            client.command("DATA\r\n", "354").await;
        }
        _ => client.write("HELP\r\n".repeat(10).as_bytes()).await,
    }
    ready.fetch_add(1, Ordering::Relaxed);
    // Not all in the same instant.
    tokio::time::sleep(Duration::from_millis(number as u64 % 10_000)).await;
    while !ends.load(Ordering::Relaxed) {
        if client.stream.write_all(b"N").await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        if ends.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// Messages a second.
async fn honest(gateway: &Arc<Gateway>, time: Duration) -> f64 {
    let begun = Instant::now();
    let clients: Vec<_> = (0..HONEST)
        .map(|_| {
            let gateway = gateway.clone();
            tokio::spawn(async move {
                let mut client = gateway.connect(false).await;
                let body = "All work and no play makes a dull benchmark.\r\n".repeat(40);
                let message = format!("From: erp@contoso.com\r\nSubject: x\r\n\r\n{body}.\r\n");
                let mut count = 0;
                while begun.elapsed() < time {
                    client.command("MAIL FROM:<erp@contoso.com>\r\n", "250").await;
                    client.command("RCPT TO:<you@example.org>\r\n", "250").await;
                    client.command("DATA\r\n", "354").await;
                    client.command(&message, "250").await;
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut count = 0;
    for client in clients {
        count += client.await.expect("a client");
    }
    f64::from(count) / begun.elapsed().as_secs_f64()
}

// ---- the gateway and its clients ---------------------------------------------------------------

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// A client that waits for each reply.
struct Client {
    stream: tokio::io::BufReader<Box<dyn Wire>>,
    line: String,
}

impl Client {
    async fn write(&mut self, octets: &[u8]) {
        self.stream.write_all(octets).await.expect("written");
        self.stream.flush().await.expect("written");
    }

    async fn command(&mut self, command: &str, code: &str) {
        self.write(command.as_bytes()).await;
        self.expect(code).await;
    }

    async fn expect(&mut self, code: &str) {
        loop {
            self.line.clear();
            self.stream.read_line(&mut self.line).await.expect("a reply");
            assert!(self.line.starts_with(code), "wanted {code}, got {:?}", self.line);
            if self.line.as_bytes().get(3) != Some(&b'-') {
                return;
            }
        }
    }
}

/// `graphpost serve` on free ports, with Microsoft out of reach. Killed when dropped.
struct Gateway {
    child: Child,
    _directory: tempfile::TempDir,
    plain: u16,
    tls: u16,
    connector: TlsConnector,
}

impl Gateway {
    /// With so many accounts: `scanner0` and so on, with `secret`.
    fn start(accounts: usize) -> Gateway {
        let directory = tempfile::tempdir().expect("a directory");
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        let pem = made.cert.pem() + &made.signing_key.serialize_pem();
        fs::write(directory.path().join("relay.pem"), pem).expect("written");
        fs::write(directory.path().join("accounts"), "").expect("written");
        let file = directory.path().join("graphpost.toml");
        let configuration = r#"
            [tenant]
            id = "contoso.onmicrosoft.com"
            client_id = "11111111-1111-1111-1111-111111111111"
            authority = "http://127.0.0.1:1"
            graph = "http://127.0.0.1:1"
            [tenant.credential]
            secret = "none"
            [accounts]
            file = "accounts"
            [smtp]
            max_connections = 20000
            max_connections_per_address = 20000
            max_messages_per_connection = 1000000
            [[listener]]
            address = "127.0.0.1:0"
            auth = "optional"
            [[listener]]
            address = "127.0.0.1:0"
            tls = "implicit"
            certificate = "relay.pem"
            name = "tls"
            [[sender]]
            address = ["erp@contoso.com"]
            mailbox = "service@contoso.com"
            [spool]
            directory = "spool"
            [admin]
            address = "none"
            [log]
            level = "error"
            "#;
        fs::write(&file, configuration).expect("written");
        for number in 0..accounts {
            let mut added = Command::new(BINARY)
                .args(["user", "add", &format!("scanner{number}"), "--config"])
                .arg(&file)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .expect("graphpost user add");
            let mut input = added.stdin.take().expect("a pipe");
            input.write_all(b"secret\n").expect("written");
            drop(input);
            assert!(added.wait().expect("an end").success());
        }
        let mut child = Command::new(BINARY)
            .args(["serve", "--config"])
            .arg(&file)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the gateway starts");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut port = || loop {
            let line = lines.next().expect("it says where it listens").expect("a line");
            let address = line
                .split_whitespace()
                .find_map(|it| it.strip_prefix("127.0.0.1:"));
            if let Some(port) = address.and_then(|it| it.parse().ok()) {
                return port;
            }
        };
        Gateway {
            plain: port(),
            tls: port(),
            child,
            _directory: directory,
            connector: connector(made.cert.der().clone()),
        }
    }

    /// A client that has said EHLO.
    async fn connect(&self, tls: bool) -> Client {
        let port = if tls { self.tls } else { self.plain };
        let stream = TcpStream::connect(("127.0.0.1", port))
            .await
            .expect("a connection");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        let stream: Box<dyn Wire> = if tls {
            let name = ServerName::try_from("localhost").expect("a name");
            Box::new(self.connector.connect(name, stream).await.expect("a handshake"))
        } else {
            Box::new(stream)
        };
        let mut client = Client {
            stream: tokio::io::BufReader::with_capacity(1024, stream),
            line: String::new(),
        };
        client.expect("220").await;
        client.command("EHLO bench.contoso.com\r\n", "250").await;
        client
    }

    /// What the process has in memory (`VmRSS`).
    fn resident_octets(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("its status");
        let line = status
            .lines()
            .find_map(|it| it.strip_prefix("VmRSS:"))
            .expect("VmRSS");
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kilobytes * 1024
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connector(trusted: CertificateDer<'static>) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Each handshake is a whole one.
    config.resumption = rustls::client::Resumption::disabled();
    TlsConnector::from(Arc::new(config))
}

const BINARY: &str = env!("CARGO_BIN_EXE_graphpost");
