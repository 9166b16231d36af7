//! A stand-in Microsoft cloud: the Entra token endpoint and Graph mail, as strict as the real ones.
//!
//! It imports nothing of the gateway, so that it is a witness and not an accomplice: it checks
//! signatures with OpenSSL where the gateway signs with another library, reads JSON by Microsoft's
//! schema, and records what was delivered, to whom, apart from what it answered.
//!
//! ```text
//! POST /{tenant}/oauth2/v2.0/token               entra
//! POST /v1.0/users/{mailbox}/sendMail …          graph
//! GET  /secrets/{name}, POST /keys/{name}/sign …  azure: Key Vault
//! GET  /metadata/identity/oauth2/token …         azure: managed identities
//! GET  /sandbox/messages …                       control
//! GET  /                                         inbox
//! ```

mod azure;
mod control;
mod entra;
mod fault;
mod graph;
mod inbox;
mod limits;
mod mail;
mod tenant;
mod wire;
mod witness;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::{any, get};
use axum::{Json, Router};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use self::azure::CertificateForm;
pub use self::entra::assertion::Thumbprints;
pub use self::fault::{Operation, Rule};
pub use self::limits::{Limits, RetryAfterForm};
pub use self::mail::{Attachment, Form, Header, Mail, Recipient};
pub use self::tenant::{
    Assignment, FederatedCredential, MAIL_READ, MAIL_READ_BASIC, MAIL_READ_WRITE, MAIL_SEND, Mailbox,
    TOKEN_EXCHANGE, Tenant,
};
pub use self::witness::{Answered, Content, Delivery};

use self::azure::{Agent, Vault};
use self::entra::assertion::Registrations;
use self::entra::tokens::Tokens;
use self::fault::Faults;
use self::graph::Store;
use self::limits::Throttle;
use self::wire::{Peer, Port, Switchboard};
use self::witness::Witness;

/// How the cloud begins. Everything can be changed while it runs.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The tenant; by default any, with any application and any mailbox.
    pub tenant: Tenant,
    /// What it lets through.
    pub limits: Limits,
    /// The certificates registered for the application, DER or PEM.
    pub certificates: Vec<Vec<u8>>,
    /// Where mail is to be handed in, for the first words of the inbox page.
    pub smtp: Option<SocketAddr>,
}

/// A running cloud. It stops when this is dropped.
pub struct Cloud {
    world: Arc<World>,
    stop: watch::Sender<bool>,
    server: JoinHandle<io::Result<()>>,
}

impl Cloud {
    /// Starts the cloud on a listener.
    ///
    /// # Errors
    /// A listener without an address, or a certificate that is none.
    pub fn start(listener: TcpListener, options: Options) -> io::Result<Cloud> {
        let address = listener.local_addr()?;
        let world = Arc::new(World::new(address, options)?);
        let port = Port::new(listener, Arc::clone(&world.switchboard))?;
        let (stop, mut stopped) = watch::channel(false);
        let routes = routes(Arc::clone(&world));
        let server = axum::serve(port, routes.into_make_service_with_connect_info::<Peer>())
            .with_graceful_shutdown(async move {
                // An error means that the handle is gone, which is a stop as well.
                let _ = stopped.wait_for(|it| *it).await;
            });
        let server = tokio::spawn(server.into_future());
        Ok(Cloud { world, stop, server })
    }

    /// Starts the cloud on an address; port 0 takes a free one.
    ///
    /// # Errors
    /// An address that cannot be bound, and as [`start`](Cloud::start).
    pub async fn bind(address: SocketAddr, options: Options) -> io::Result<Cloud> {
        Cloud::start(TcpListener::bind(address).await?, options)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.world.address
    }

    /// Its root URL, without a trailing slash.
    #[must_use]
    pub fn url(&self) -> String {
        self.world.url()
    }

    /// The Entra authority, as a configuration names it.
    #[must_use]
    pub fn authority(&self) -> String {
        self.world.url()
    }

    /// The Graph root, as a configuration names it.
    #[must_use]
    pub fn graph(&self) -> String {
        self.world.url()
    }

    /// Registers a certificate for the application, DER or PEM.
    ///
    /// # Errors
    /// Why it is not a certificate.
    pub fn register_certificate(&self, certificate: &[u8]) -> Result<Thumbprints, String> {
        self.world.registrations().register(certificate)
    }

    /// Adds a version of a secret to the vault, which is at the root URL; its version.
    ///
    /// # Errors
    /// A name that cannot be one, or too many objects.
    pub fn put_secret(&self, name: &str, value: &str, content_type: &str) -> Result<String, String> {
        self.world
            .vault()
            .put_secret(name, value.to_owned(), content_type.to_owned(), true)
    }

    /// Adds a version of a certificate with its key, PEM, to the vault: a key that can sign, and a
    /// secret in the form given; its version.
    ///
    /// # Errors
    /// What is wrong with the PEM or the name.
    pub fn put_certificate(&self, name: &str, pem: &[u8], form: CertificateForm) -> Result<String, String> {
        self.world.vault().put_certificate(name, pem, form)
    }

    /// Connects the machine to Azure Arc: challenge files go to this directory. With a `realm` the
    /// challenge names that path instead of the file's.
    pub fn connect_arc(&self, directory: PathBuf, realm: Option<String>) {
        self.world.agent().install(directory, realm);
    }

    /// Tells the inbox page where mail is to be handed in.
    pub fn set_smtp(&self, address: SocketAddr) {
        *lock(&self.world.smtp) = Some(address);
    }

    /// Replaces the faults.
    ///
    /// # Errors
    /// What is wrong with which rule.
    pub fn set_faults(&self, rules: Vec<Rule>) -> Result<(), String> {
        self.world.faults().replace(rules)
    }

    /// Changes the limits.
    pub fn change_limits(&self, change: impl FnOnce(&mut Limits)) {
        change(&mut self.world.limits());
    }

    /// Changes the tenant.
    pub fn change_tenant(&self, change: impl FnOnce(&mut Tenant)) {
        change(&mut self.world.tenant());
    }

    /// Closes the port: connections are refused and live ones reset, until [`open`](Cloud::open) or
    /// until the time is over.
    pub fn close_for(&self, duration: Duration) {
        self.world.switchboard.close_for(duration, None);
    }

    /// Opens a closed port again.
    pub fn open(&self) {
        self.world.switchboard.open();
    }

    /// What has been delivered and is remembered, oldest first.
    #[must_use]
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.world.witness().deliveries(0).cloned().collect()
    }

    /// Waits until at least this many deliveries are remembered, and returns them.
    pub async fn wait_for(&self, count: usize) -> Vec<Delivery> {
        let mut arrivals = self.world.arrivals();
        while self.world.witness().deliveries(0).len() < count {
            // The sender lives as long as the world does.
            let _ = arrivals.changed().await;
        }
        self.deliveries()
    }

    /// Stops. Requests under way get a second to end.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        if tokio::time::timeout(Duration::from_secs(1), &mut self.server)
            .await
            .is_err()
        {
            self.server.abort();
        }
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        self.world.switchboard.close_for(Duration::ZERO, None);
        self.server.abort();
    }
}

/// Everything there is.
struct World {
    address: SocketAddr,
    switchboard: Arc<Switchboard>,
    smtp: Mutex<Option<SocketAddr>>,
    start: (Tenant, Limits),
    tenant: Mutex<Tenant>,
    limits: Mutex<Limits>,
    registrations: Mutex<Registrations>,
    tokens: Mutex<Tokens>,
    faults: Mutex<Faults>,
    throttle: Mutex<Throttle>,
    vault: Mutex<Vault>,
    agent: Mutex<Agent>,
    store: Mutex<Store>,
    witness: Mutex<Witness>,
    arrivals: watch::Sender<u64>,
}

impl World {
    fn new(address: SocketAddr, options: Options) -> io::Result<World> {
        let mut registrations = Registrations::default();
        for certificate in &options.certificates {
            registrations
                .register(certificate)
                .map_err(|what| io::Error::new(io::ErrorKind::InvalidInput, what))?;
        }
        Ok(World {
            address,
            switchboard: Switchboard::new(),
            smtp: Mutex::new(options.smtp),
            start: (options.tenant.clone(), options.limits.clone()),
            tenant: Mutex::new(options.tenant),
            limits: Mutex::new(options.limits),
            registrations: Mutex::new(registrations),
            tokens: Mutex::default(),
            faults: Mutex::default(),
            throttle: Mutex::default(),
            vault: Mutex::default(),
            agent: Mutex::default(),
            store: Mutex::default(),
            witness: Mutex::default(),
            arrivals: watch::Sender::new(0),
        })
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn switchboard(&self) -> &Switchboard {
        &self.switchboard
    }

    fn tenant(&self) -> MutexGuard<'_, Tenant> {
        lock(&self.tenant)
    }

    fn limits(&self) -> MutexGuard<'_, Limits> {
        lock(&self.limits)
    }

    fn restore_tenant(&self) {
        *self.tenant() = self.start.0.clone();
    }

    fn restore_limits(&self) {
        *self.limits() = self.start.1.clone();
    }

    fn registrations(&self) -> MutexGuard<'_, Registrations> {
        lock(&self.registrations)
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        lock(&self.tokens)
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        lock(&self.faults)
    }

    fn throttle(&self) -> MutexGuard<'_, Throttle> {
        lock(&self.throttle)
    }

    fn vault(&self) -> MutexGuard<'_, Vault> {
        lock(&self.vault)
    }

    fn agent(&self) -> MutexGuard<'_, Agent> {
        lock(&self.agent)
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    fn witness(&self) -> MutexGuard<'_, Witness> {
        lock(&self.witness)
    }

    fn arrivals(&self) -> watch::Receiver<u64> {
        self.arrivals.subscribe()
    }

    /// Puts a mail into its recipients' inboxes, and returns its number.
    fn deliver(&self, delivery: Delivery) -> u64 {
        let limits = self.limits().clone();
        let id = self.witness().deliver(delivery, &limits);
        self.arrivals.send_replace(id);
        id
    }

    fn record(
        &self,
        operation: Operation,
        mailbox: &str,
        answered: Answered,
        delivered: Option<u64>,
        request_id: &str,
        code: &str,
    ) {
        self.witness()
            .answer(operation, mailbox, answered, delivered, request_id, code);
    }
}

/// No panic leaves these values half changed, so a poisoned lock is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn routes(world: Arc<World>) -> Router {
    Router::new()
        .merge(azure::router())
        .merge(control::router())
        .merge(inbox::router())
        .route("/{tenant}/oauth2/v2.0/token", any(token))
        .route("/{tenant}/v2.0/.well-known/openid-configuration", get(discovery))
        .fallback(graph)
        .with_state(world)
}

async fn token(
    State(world): State<Arc<World>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(tenant): Path<String>,
    request: Request,
) -> Response {
    entra::token(world, peer, tenant, request).await
}

async fn discovery(Path(tenant): Path<String>, headers: HeaderMap) -> Json<Value> {
    Json(entra::discovery(&tenant, &headers))
}

async fn graph(
    State(world): State<Arc<World>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
) -> Response {
    graph::handle(world, peer, request).await
}

/// An answer that never arrives: the connection is cut, and what is returned here is not written.
fn reset(peer: &Peer) -> Response {
    peer.0.cut();
    Response::new(Body::empty())
}

/// The root URL a request came to, as its client names it. A proxy may speak TLS for this cloud,
/// which itself does not.
fn origin(headers: &HeaderMap) -> String {
    let text = |name: &str| headers.get(name).and_then(|it| it.to_str().ok());
    let scheme = match text("x-forwarded-proto") {
        Some("https") => "https",
        _ => "http",
    };
    format!("{scheme}://{}", text("host").unwrap_or_default())
}

/// What a proxy in front of the service answers when it is in trouble itself.
fn html_error(status: u16) -> String {
    format!(
        "<!DOCTYPE html><html><head><title>{status}</title></head><body><h2>Our services aren't available right now</h2></body></html>"
    )
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    openssl::rand::rand_bytes(&mut bytes).expect("OpenSSL has a source of random bytes");
    bytes
}

/// A random GUID (RFC 9562 §5.4).
fn guid() -> String {
    format_guid(random())
}

fn format_guid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// The object id of a service principal: the same for the same application.
fn object_id(application: &str) -> String {
    let digest = openssl::sha::sha256(application.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    format_guid(bytes)
}

/// Undoes percent-encoding (RFC 3986 §2.1); what is not an escape stands for itself.
fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escape = (first == b'%').then(|| tail.get(..2)).flatten();
        let value = escape
            .and_then(|it| std::str::from_utf8(it).ok())
            .and_then(|it| u8::from_str_radix(it, 16).ok());
        match value {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
