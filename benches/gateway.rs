//! The gateway as a whole, the real binary over real sockets: acceptance, delivery, idle connections,
//! start. Prints tables; figures are ratios to a yardstick measured in the same run, because machines
//! differ and drift.
//!
//! ```console
//! $ cargo bench --bench gateway                 # everything, about three minutes
//! $ cargo bench --bench gateway -- accept       # one part: accept, deliver, goodput, idle, start
//! ```
//!
//! The yardstick is `mailin-embedded`, a well-known SMTP server library, with a handler that makes each
//! message durable in the plainest correct way: a file of its own, fsync, rename, fsync of the directory.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long each cell of the acceptance table is measured.
const CELL: Duration = Duration::from_secs(4);

/// Set in the child that plays the yardstick; its value is the spool directory.
const YARDSTICK: &str = "GRAPHPOST_BENCH_YARDSTICK";

fn main() {
    if let Some(directory) = std::env::var_os(YARDSTICK) {
        return yardstick(PathBuf::from(directory));
    }
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
    if wanted("start") {
        start();
    }
    if wanted("accept") {
        runtime.block_on(accept());
    }
    if wanted("deliver") {
        runtime.block_on(deliver());
    }
    if wanted("goodput") {
        runtime.block_on(goodput());
    }
    if wanted("idle") {
        runtime.block_on(idle());
    }
}

// ---- acceptance --------------------------------------------------------------------------------

async fn accept() {
    println!(
        "\nAccepted messages per second, {} s a cell; 250 comes after the disk has it",
        CELL.as_secs()
    );
    println!(
        "{:>6} {:>6} | {:>10} {:>9} {:>9} {:>11} | {:>10} {:>9} {:>9} | {:>6}",
        "size",
        "conns",
        "graphpost",
        "p50 ms",
        "p99 ms",
        "commits/msg",
        "yardstick",
        "p50 ms",
        "p99 ms",
        "ratio"
    );
    for size in [2_000, 50_000] {
        for connections in [1, 20, 200] {
            let ours = {
                let gateway = Gateway::start(&Settings::default());
                let load = load(gateway.smtp, connections, size).await;
                let commits = gateway
                    .metric("graphpost_spool_commit_duration_seconds_count")
                    .await;
                (load, commits)
            };
            let theirs = {
                let yardstick = Yardstick::start();
                load(yardstick.smtp, connections, size).await
            };
            let (ours, commits) = ours;
            println!(
                "{:>6} {:>6} | {:>10.0} {:>9.2} {:>9.2} {:>11.3} | {:>10.0} {:>9.2} {:>9.2} | {:>6.1}",
                format!("{} KB", size / 1000),
                connections,
                ours.rate(),
                ours.percentile(0.50),
                ours.percentile(0.99),
                commits / ours.acknowledged() as f64,
                theirs.rate(),
                theirs.percentile(0.50),
                theirs.percentile(0.99),
                ours.rate() / theirs.rate(),
            );
        }
    }
}

/// What a load came to.
struct Load {
    /// From the final dot to 250, in milliseconds, sorted.
    acknowledgements: Vec<f64>,
    elapsed: Duration,
}

impl Load {
    fn acknowledged(&self) -> usize {
        self.acknowledgements.len()
    }

    fn rate(&self) -> f64 {
        self.acknowledged() as f64 / self.elapsed.as_secs_f64()
    }

    fn percentile(&self, part: f64) -> f64 {
        let last = self.acknowledgements.len().saturating_sub(1);
        self.acknowledgements
            .get((last as f64 * part) as usize)
            .copied()
            .unwrap_or(f64::NAN)
    }
}

async fn load(port: u16, connections: usize, size: usize) -> Load {
    let message: Arc<[u8]> = message(size).into();
    let begun = Instant::now();
    let clients: Vec<_> = (0..connections)
        .map(|_| {
            let message = message.clone();
            tokio::spawn(async move {
                let mut client = Client::connect(port).await;
                let mut waits = Vec::new();
                while begun.elapsed() < CELL {
                    waits.push(client.send(&message).await.as_secs_f64() * 1000.0);
                }
                waits
            })
        })
        .collect();
    let mut acknowledgements = Vec::new();
    for client in clients {
        acknowledgements.extend(client.await.expect("a client"));
    }
    let elapsed = begun.elapsed();
    acknowledgements.sort_by(f64::total_cmp);
    Load {
        acknowledgements,
        elapsed,
    }
}

/// A plain message of about `size` octets, with the final dot.
fn message(size: usize) -> Vec<u8> {
    let mut message = b"From: erp@contoso.com\r\nTo: you@example.org\r\nSubject: Report\r\n\r\n".to_vec();
    while message.len() < size {
        message
            .extend_from_slice(b"All work and no play makes a dull benchmark, one line after the other.\r\n");
    }
    message.extend_from_slice(b".\r\n");
    message
}

/// A client that waits for each reply, as most applications do.
struct Client {
    stream: tokio::io::BufReader<TcpStream>,
    line: String,
}

impl Client {
    async fn connect(port: u16) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", port))
            .await
            .expect("a connection");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        let mut client = Client {
            stream: tokio::io::BufReader::new(stream),
            line: String::new(),
        };
        client.expect("220").await;
        client.command(b"EHLO bench.contoso.com\r\n", "250").await;
        client
    }

    /// Sends one message; how long its 250 took after the final dot.
    async fn send(&mut self, message: &[u8]) -> Duration {
        self.command(b"MAIL FROM:<erp@contoso.com>\r\n", "250").await;
        self.command(b"RCPT TO:<you@example.org>\r\n", "250").await;
        self.command(b"DATA\r\n", "354").await;
        self.stream.get_mut().write_all(message).await.expect("written");
        let sent = Instant::now();
        self.expect("250").await;
        sent.elapsed()
    }

    async fn command(&mut self, command: &[u8], code: &str) {
        self.stream.get_mut().write_all(command).await.expect("written");
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

// ---- delivery ----------------------------------------------------------------------------------

async fn deliver() {
    const MESSAGES: usize = 3_000;
    println!(
        "\nDelivered messages per second, end to end against the stand-in cloud, {MESSAGES} messages of 2 KB"
    );
    println!(
        "{:>20} {:>12} {:>16}",
        "requests in flight", "delivered/s", "acceptance over"
    );
    for in_flight in [4, 32] {
        let cloud = Cloud::start(in_flight).await;
        let gateway = Gateway::start(&Settings {
            cloud: Some(cloud.http.clone()),
            credential: Some(cloud.credential.clone()),
            in_flight,
        });
        let begun = Instant::now();
        let message: Arc<[u8]> = message(2_000).into();
        let clients: Vec<_> = (0..20)
            .map(|_| {
                let (port, message) = (gateway.smtp, message.clone());
                tokio::spawn(async move {
                    let mut client = Client::connect(port).await;
                    for _ in 0..MESSAGES / 20 {
                        client.send(&message).await;
                    }
                })
            })
            .collect();
        for client in clients {
            client.await.expect("a client");
        }
        let accepted = begun.elapsed();
        let sent = r#"graphpost_messages_total{result="sent"}"#;
        while gateway.metric(sent).await < MESSAGES as f64 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let delivered = MESSAGES as f64 / begun.elapsed().as_secs_f64();
        println!(
            "{in_flight:>20} {delivered:>12.0} {:>14.1} s",
            accepted.as_secs_f64()
        );
    }
}

// ---- goodput -----------------------------------------------------------------------------------

/// How long one request takes the cloud.
const LATENCY: Duration = Duration::from_millis(150);

/// How long each phase is measured.
const PHASE: Duration = Duration::from_secs(60);

/// What of the cloud's limits the gateway turns into delivered mail: one mailbox, a queue that is never
/// empty. The figures are latency, not work, so that a slow machine measures the same.
async fn goodput() {
    println!(
        "\nGoodput of one mailbox, {} ms a request, a full queue, {} s a phase",
        LATENCY.as_millis(),
        PHASE.as_secs()
    );
    println!(
        "{:>44} {:>10} {:>10} {:>9} {:>10}",
        "the cloud allows in flight", "possible", "delivered", "goodput", "throttled"
    );
    let cloud = Cloud::start(4).await;
    cloud
        .limit(serde_json::json!({"latency_ms": LATENCY.as_millis() as u64}))
        .await;
    let gateway = Gateway::start(&Settings {
        cloud: Some(cloud.http.clone()),
        credential: Some(cloud.credential.clone()),
        in_flight: 4,
    });
    // More than can be delivered in all phases together.
    const MESSAGES: usize = 9_000;
    let message: Arc<[u8]> = message(2_000).into();
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let (port, message) = (gateway.smtp, message.clone());
            tokio::spawn(async move {
                let mut client = Client::connect(port).await;
                for _ in 0..MESSAGES / 20 {
                    client.send(&message).await;
                }
            })
        })
        .collect();
    for client in clients {
        client.await.expect("a client");
    }
    for (phase, allowed) in [
        ("4", 4),
        ("2, without notice: the first minute", 2),
        ("2: the second", 2),
        ("4 again, without notice: the first minute", 4),
        ("4 again: the second", 4),
    ] {
        cloud.limit(serde_json::json!({"concurrency": allowed})).await;
        let before = cloud.answers().await;
        let begun = Instant::now();
        tokio::time::sleep(PHASE).await;
        let elapsed = begun.elapsed();
        let after = cloud.answers().await;
        let (sent, throttled) = (after.0 - before.0, after.1 - before.1);
        let possible = allowed as f64 * elapsed.as_secs_f64() / LATENCY.as_secs_f64();
        println!(
            "{phase:>44} {possible:>10.0} {sent:>10} {:>8.1}% {:>9.2}%",
            100.0 * sent as f64 / possible,
            100.0 * throttled as f64 / (sent + throttled).max(1) as f64,
        );
    }
}

/// `graphpost cloud` with its limits out of the way, and a certificate it knows.
struct Cloud {
    _process: Process,
    _directory: tempfile::TempDir,
    http: String,
    credential: PathBuf,
}

impl Cloud {
    async fn start(in_flight: usize) -> Cloud {
        let directory = tempfile::tempdir().expect("a directory");
        let made = Command::new(BINARY)
            .args(["cert", "new", "--out"])
            .arg(directory.path())
            .output()
            .expect("graphpost cert new");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let credential = fs::read_dir(directory.path())
            .expect("the directory")
            .filter_map(|it| Some(it.ok()?.path()))
            .find(|it| it.extension().is_some_and(|it| it == "pem"))
            .expect("a certificate");
        let mut process = Process::start(
            Command::new(BINARY)
                .args(["cloud", "--http", "127.0.0.1:0", "--certificate"])
                .arg(&credential),
        );
        let http = process.wait_for("http://127.0.0.1:");
        let cloud = Cloud {
            _process: process,
            _directory: directory,
            http,
            credential,
        };
        let limits = serde_json::json!({
            "concurrency": in_flight.max(4), "requests_per_ten_minutes": null, "bytes_per_five_minutes": null,
        });
        cloud.limit(limits).await;
        cloud
    }

    /// Changes the limits that are named.
    async fn limit(&self, limits: serde_json::Value) {
        let answer = reqwest::Client::new()
            .put(format!("{}/sandbox/limits", self.http))
            .json(&limits)
            .send()
            .await
            .expect("an answer");
        assert!(
            answer.status().is_success(),
            "{}",
            answer.text().await.unwrap_or_default()
        );
    }

    /// How often `sendMail` was answered with 202 and with 429 so far.
    async fn answers(&self) -> (u64, u64) {
        let text = reqwest::get(format!("{}/sandbox/requests", self.http))
            .await
            .expect("an answer")
            .text()
            .await
            .expect("text");
        let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let count = |code: &str| report["answers"]["sendMail"][code].as_u64().unwrap_or_default();
        (count("202"), count("429"))
    }
}

// ---- idle connections --------------------------------------------------------------------------

async fn idle() {
    println!("\nMemory with idle connections after EHLO");
    println!("{:>12} {:>10} {:>16}", "connections", "MB", "KB a connection");
    let gateway = Gateway::start(&Settings::default());
    let empty = gateway.resident_octets();
    let mut connections = Vec::new();
    // One process may hold so many descriptors, and the client side needs as many.
    for target in [1_000, 10_000] {
        while connections.len() < target {
            connections.push(Client::connect(gateway.smtp).await);
        }
        let resident = gateway.resident_octets();
        println!(
            "{target:>12} {:>10.1} {:>16.1}",
            resident as f64 / 1e6,
            resident.saturating_sub(empty) as f64 / 1e3 / target as f64
        );
    }
}

// ---- start -------------------------------------------------------------------------------------

fn start() {
    let mut times: Vec<f64> = (0..11)
        .map(|_| {
            let begun = Instant::now();
            let _gateway = Gateway::start(&Settings::default());
            begun.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("\nStart with an empty queue, from exec to listening, 11 times");
    println!("median {:.0} ms, worst {:.0} ms", times[5], times[10]);
}

// ---- the processes under test ------------------------------------------------------------------

const BINARY: &str = env!("CARGO_BIN_EXE_graphpost");

/// A child process whose standard output says where it listens. Killed when dropped.
struct Process {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Process {
    fn start(command: &mut Command) -> Process {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the process starts");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        Process { child, output }
    }

    /// The word of the output that begins with `prefix`.
    fn wait_for(&mut self, prefix: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.output.read_line(&mut line).expect("output");
            assert!(read > 0, "the process ended before it said {prefix}");
            if let Some(word) = line.split_whitespace().find(|it| it.starts_with(prefix)) {
                return word.trim_end_matches('/').to_owned();
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What differs between the gateways measured.
#[derive(Default)]
struct Settings {
    /// The stand-in cloud; `None` for one that cannot be reached, so that mail is only stored.
    cloud: Option<String>,
    /// The certificate, with its key beside it.
    credential: Option<PathBuf>,
    /// Requests in flight; 0 takes the default.
    in_flight: usize,
}

/// `graphpost serve` on free ports over a new spool.
struct Gateway {
    process: Process,
    _directory: tempfile::TempDir,
    smtp: u16,
    admin: String,
}

impl Gateway {
    fn start(settings: &Settings) -> Gateway {
        let directory = spool_directory();
        let credential = settings
            .credential
            .clone()
            .unwrap_or_else(|| credential(directory.path()));
        // Nothing listens on port 1 of the loopback address.
        let cloud = settings.cloud.as_deref().unwrap_or("http://127.0.0.1:1");
        let in_flight = settings.in_flight.max(4);
        let configuration = format!(
            r#"
            [tenant]
            id = "contoso.onmicrosoft.com"
            client_id = "11111111-1111-1111-1111-111111111111"
            authority = "{cloud}"
            graph = "{cloud}"
            [tenant.credential]
            certificate = "{certificate}"
            private_key = "{key}"
            [smtp]
            max_connections = 20000
            max_connections_per_address = 20000
            max_messages_per_connection = 1000000
            [[listener]]
            address = "127.0.0.1:0"
            [[sender]]
            address = ["erp@contoso.com"]
            mailbox = "service@contoso.com"
            [spool]
            directory = "{spool}"
            [delivery]
            concurrency_per_mailbox = {in_flight}
            messages_per_minute = 1000000
            [admin]
            address = "127.0.0.1:0"
            [log]
            level = "error"
            "#,
            certificate = credential.display(),
            key = credential.with_extension("key").display(),
            spool = directory.path().join("spool").display(),
        );
        let file = directory.path().join("graphpost.toml");
        fs::write(&file, configuration).expect("written");
        let mut process = Process::start(Command::new(BINARY).args(["serve", "--config"]).arg(&file));
        let smtp = process.wait_for("127.0.0.1:");
        let admin = process.wait_for("http://127.0.0.1:");
        let smtp = smtp
            .rsplit(':')
            .next()
            .and_then(|it| it.parse().ok())
            .expect("a port");
        Gateway {
            process,
            _directory: directory,
            smtp,
            admin,
        }
    }

    /// The value of one line of `/metrics`; 0 where it is not there yet.
    async fn metric(&self, name: &str) -> f64 {
        let address = self.admin.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).await.expect("the admin address");
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            .unwrap_or_default()
    }

    fn resident_octets(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.child.id())).expect("status");
        let kilobytes = status.lines().find_map(|it| {
            it.strip_prefix("VmRSS:")?
                .split_whitespace()
                .next()?
                .parse::<u64>()
                .ok()
        });
        kilobytes.expect("VmRSS") * 1024
    }
}

/// A directory on the disk that the build is on: `/tmp` may be memory, which has no fsync to measure.
fn spool_directory() -> tempfile::TempDir {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(parent)
        .expect("a directory")
}

/// A certificate made once, whatever the number of gateways started.
fn credential(directory: &Path) -> PathBuf {
    static MADE: std::sync::OnceLock<(String, String)> = std::sync::OnceLock::new();
    let (certificate, key) = MADE.get_or_init(|| {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("a key");
        let parameters =
            rcgen::CertificateParams::new(vec!["bench.contoso.com".to_owned()]).expect("parameters");
        (
            parameters.self_signed(&key).expect("a certificate").pem(),
            key.serialize_pem(),
        )
    });
    let file = directory.join("app.crt");
    fs::write(&file, certificate).expect("written");
    fs::write(directory.join("app.key"), key).expect("written");
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(directory.join("app.key"), fs::Permissions::from_mode(0o600)).expect("permissions");
    file
}

/// The yardstick in a process of its own.
struct Yardstick {
    _process: Process,
    _directory: tempfile::TempDir,
    smtp: u16,
}

impl Yardstick {
    fn start() -> Yardstick {
        let directory = spool_directory();
        let this = std::env::current_exe().expect("this program");
        let mut process = Process::start(Command::new(this).env(YARDSTICK, directory.path()));
        let smtp = process.wait_for("127.0.0.1:");
        let smtp = smtp
            .rsplit(':')
            .next()
            .and_then(|it| it.parse().ok())
            .expect("a port");
        Yardstick {
            _process: process,
            _directory: directory,
            smtp,
        }
    }
}

fn yardstick(directory: PathBuf) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    println!("{}", listener.local_addr().expect("an address"));
    let handler = OneFileEach {
        directory: Arc::new(directory),
        file: None,
        number: Arc::default(),
    };
    let mut server = mailin_embedded::Server::new(handler);
    server
        .with_name("yardstick")
        .with_num_threads(256)
        .with_tcp_listener(listener);
    server.serve().expect("serving");
}

/// A file a message, durable before the reply.
struct OneFileEach {
    directory: Arc<PathBuf>,
    file: Option<(PathBuf, io::BufWriter<File>)>,
    number: Arc<AtomicU64>,
}

/// The library clones the handler for each connection.
impl Clone for OneFileEach {
    fn clone(&self) -> Self {
        OneFileEach {
            directory: self.directory.clone(),
            file: None,
            number: self.number.clone(),
        }
    }
}

impl OneFileEach {
    fn store(&mut self) -> io::Result<()> {
        let Some((path, file)) = self.file.take() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        file.into_inner()?.sync_all()?;
        fs::rename(&path, path.with_extension("eml"))?;
        File::open(self.directory.as_path())?.sync_all()
    }
}

impl mailin_embedded::Handler for OneFileEach {
    fn data_start(&mut self, _: &str, _: &str, _: bool, _: &[String]) -> mailin_embedded::Response {
        let path = self
            .directory
            .join(format!("{}.tmp", self.number.fetch_add(1, Ordering::Relaxed)));
        match File::create(&path) {
            Ok(file) => {
                self.file = Some((path, io::BufWriter::new(file)));
                mailin_embedded::response::OK
            }
            Err(_) => mailin_embedded::response::INTERNAL_ERROR,
        }
    }

    fn data(&mut self, line: &[u8]) -> io::Result<()> {
        match &mut self.file {
            Some((_, file)) => file.write_all(line),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn data_end(&mut self) -> mailin_embedded::Response {
        match self.store() {
            Ok(()) => mailin_embedded::response::OK,
            Err(_) => mailin_embedded::response::INTERNAL_ERROR,
        }
    }
}
