//! The real SMTP server over a real queue in a directory of its own, and a client that speaks to it
//! in octets.

#![allow(dead_code)]

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use graphpost::accounts::Accounts;
use graphpost::config::{Config, Environment};
use graphpost::metrics::Metrics;
use graphpost::policy::Policy;
use graphpost::smtp;
use graphpost::spool::{Entry, Filter, Spool};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Nothing here takes nearly as long; whoever waits longer waits for ever.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a test asks for besides the defaults, in the configuration's own words.
#[derive(Clone, Default)]
pub struct Settings {
    /// Lines for `[tenant]`.
    pub tenant: String,
    /// Lines for `[[listener]]`.
    pub listener: String,
    /// Lines for `[smtp]`.
    pub smtp: String,
    /// Lines for `[spool]`.
    pub spool: String,
    /// More `[[sender]]` tables.
    pub senders: String,
}

/// A running server.
pub struct Relay {
    pub address: SocketAddr,
    pub spool: Spool,
    pub metrics: Arc<Metrics>,
    pub handle: smtp::Handle,
    pub certificate: CertificateDer<'static>,
    pub config: Config,
    pub stopping: CancellationToken,
    pub task: JoinHandle<()>,
    pub directory: tempfile::TempDir,
}

impl Relay {
    /// A server on a free port. Accounts: `scanner1` with `secret`, `us3r@contoso.com` with `pass`.
    pub async fn start(settings: &Settings) -> Relay {
        let directory = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["relay.example".to_owned()]).unwrap();
        let pem = made.cert.pem() + &made.signing_key.serialize_pem();
        std::fs::write(directory.path().join("relay.pem"), pem).unwrap();
        let mut users = String::new();
        for (name, password) in [("scanner1", "secret"), ("US3R@contoso.com", "pass")] {
            writeln!(users, "{name}:{}", cheap_hash(password)).unwrap();
        }
        // For CRAM-MD5: tim with tanstaaftanstaaf.
        users += "tim:{cram-md5}dGFuc3RhYWZ0YW5zdGFhZg==\n";
        std::fs::write(directory.path().join("users"), users).unwrap();
        let certificate = if settings.listener.contains("tls =") && !settings.listener.contains("certificate")
        {
            "certificate = \"relay.pem\""
        } else {
            ""
        };
        let Settings {
            tenant,
            listener,
            smtp,
            spool,
            senders,
        } = settings;
        let text = format!(
            r#"
            [tenant]
            id = "contoso.onmicrosoft.com"
            client_id = "6731de76-14a6-49ae-97bc-6eba6914391e"
            {tenant}
            [tenant.credential]
            certificate = "relay.pem"
            [accounts]
            file = "users"
            [spool]
            directory = "spool"
            min_free_bytes = "0"
            {spool}
            [admin]
            address = "none"
            [smtp]
            hostname = "relay.example"
            auth_failure_delay = "1ms"
            {smtp}
            [[listener]]
            name = "test"
            address = "127.0.0.1:0"
            {certificate}
            {listener}
            [[sender]]
            name = "erp"
            address = ["erp@contoso.com", "*@legacy.local"]
            mailbox = "service@contoso.com"
            {senders}
            "#
        );
        let path = directory.path().join("graphpost.toml");
        std::fs::write(&path, text).unwrap();
        let config = Config::load(&path, &Environment::default())
            .unwrap_or_else(|errors| panic!("{}", errors.render(false)));

        let metrics = Arc::new(Metrics::new());
        let (spool, _) = Spool::open(&config.spool, config.delivery.unknown, &metrics)
            .await
            .unwrap();
        let accounts = Accounts::load(&directory.path().join("users")).unwrap();
        let policy = Arc::new(Policy::new(config.senders.clone()));
        let server = smtp::Server::bind(
            &config,
            policy,
            Some(accounts),
            spool.clone(),
            Arc::clone(&metrics),
        )
        .await;
        let server = server.unwrap();
        let stopping = CancellationToken::new();
        Relay {
            address: server.addresses()[0],
            handle: server.handle(),
            task: tokio::spawn(server.run(stopping.clone(), PATIENCE)),
            spool,
            metrics,
            certificate: made.cert.der().clone(),
            config,
            stopping,
            directory,
        }
    }

    /// The directory of the configuration, its certificates and its queue.
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    pub async fn connect(&self) -> Client<TcpStream> {
        Client::new(TcpStream::connect(self.address).await.unwrap())
    }

    /// What is in the queue, oldest first.
    pub async fn queue(&self) -> Vec<Entry> {
        self.spool.list(Filter::default()).await.unwrap()
    }

    /// A metric as Prometheus shows it; 0 where it is not shown.
    pub fn metric(&self, series: &str) -> u64 {
        let text = self.metrics.encode();
        let line = text
            .lines()
            .find(|it| it.strip_prefix(series).is_some_and(|it| it.starts_with(' ')));
        line.map_or(0, |it| it.rsplit(' ').next().unwrap().parse().unwrap())
    }
}

/// Argon2id at the least cost there is.
fn cheap_hash(password: &str) -> String {
    use argon2::{Argon2, Params, PasswordHash, PasswordHasher};
    let hash: PasswordHash = Argon2::from(Params::new(8, 1, 1, None).unwrap())
        .hash_password(password.as_bytes())
        .unwrap();
    hash.to_string()
}

/// One end of a connection.
pub struct Client<S> {
    stream: S,
    buffer: Vec<u8>,
    patience: Duration,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub fn new(stream: S) -> Client<S> {
        Client {
            stream,
            buffer: Vec::new(),
            patience: PATIENCE,
        }
    }

    /// A client that waits for days, for tests in which time is paused.
    pub fn patient(stream: S) -> Client<S> {
        Client {
            patience: Duration::from_secs(1_000_000),
            ..Client::new(stream)
        }
    }

    pub fn into_inner(self) -> S {
        assert!(self.buffer.is_empty(), "unread: {}", self.buffer.escape_ascii());
        self.stream
    }

    /// Sends octets as they are.
    pub async fn send(&mut self, octets: impl AsRef<[u8]>) {
        self.try_send(octets).await.unwrap();
    }

    pub async fn try_send(&mut self, octets: impl AsRef<[u8]>) -> std::io::Result<()> {
        let sent = async {
            self.stream.write_all(octets.as_ref()).await?;
            self.stream.flush().await
        };
        timeout(self.patience, sent)
            .await
            .expect("the server does not read")
    }

    /// The next line, without its end; none when the server has hung up.
    pub async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|it| it == b"\r\n") {
                let line = String::from_utf8(self.buffer[..end].to_vec()).unwrap();
                self.buffer.drain(..end + 2);
                return Some(line);
            }
            let read = self.stream.read_buf(&mut self.buffer);
            let read = timeout(self.patience, read)
                .await
                .expect("the server says nothing");
            if !matches!(read, Ok(1..)) {
                assert!(
                    self.buffer.is_empty(),
                    "half a line: {}",
                    self.buffer.escape_ascii()
                );
                return None;
            }
        }
    }

    /// The next reply with all its lines, joined by line feeds; empty when the server has hung up.
    pub async fn reply(&mut self) -> String {
        let mut reply = String::new();
        while let Some(line) = self.line().await {
            let more = line.as_bytes().get(3) == Some(&b'-');
            reply += &line;
            if !more {
                break;
            }
            reply.push('\n');
        }
        reply
    }

    /// Sends a line and gives the reply.
    pub async fn say(&mut self, line: &str) -> String {
        self.send(format!("{line}\r\n")).await;
        self.reply().await
    }

    /// Sends a line and checks the reply's code.
    #[track_caller]
    pub fn expect<'a>(&'a mut self, line: &'a str, code: &'a str) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let reply = self.say(line).await;
            assert!(
                reply.starts_with(code),
                "{caller}: {line:?} got {reply:?}, not {code}"
            );
        }
    }

    /// Whether the server hangs up, whatever else it still says.
    pub async fn hung_up(&mut self) -> bool {
        let mut rest = Vec::new();
        // A reset is an end too.
        timeout(self.patience, self.stream.read_to_end(&mut rest))
            .await
            .is_ok()
    }
}

impl Client<TcpStream> {
    /// Starts TLS.
    pub async fn start_tls(
        self,
        trusted: &CertificateDer<'static>,
    ) -> Client<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(trusted.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("relay.example").unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let handshake = connector.connect(name, self.into_inner());
        Client::new(timeout(PATIENCE, handshake).await.expect("no handshake").unwrap())
    }
}
