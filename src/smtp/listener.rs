//! Listens, admits connections within the limits, and gives each a task of its own.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::accounts::{Accounts, Login};
use crate::config::{self, Config, TlsMode};
use crate::convert::Wishes;
use crate::event;
use crate::identity::credential::CredentialError;
use crate::metrics::{ListenerLabel, ListenerResult, Metrics};
use crate::policy::Policy;
use crate::smtp::admission::Admissions;
use crate::smtp::arrival::admit;
use crate::smtp::connection::{self, Connection};
use crate::smtp::descriptors;
use crate::smtp::fit::Fit;
use crate::smtp::inherited::{self, Inherited, InheritedError};
use crate::smtp::limits::{Lockouts, Rates};
use crate::smtp::secure::{self, Complaint};
use crate::smtp::session::{Session, Terms};
use crate::smtp::tls::Tls;
use crate::smtp::tls::devices::Devices;
use crate::spool::Spool;

/// The wait after the first failed accept, doubled after each further one. Without it, a process out
/// of file descriptors spins.
const BACKOFF_FIRST: Duration = Duration::from_millis(5);
/// The longest wait between two accepts.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// What all listeners share.
pub struct Shared {
    policy: RwLock<Arc<Policy>>,
    accounts: RwLock<Option<Accounts>>,
    rates: Mutex<Rates>,
    lockouts: Mutex<Lockouts>,
    /// Where mail goes.
    pub(super) spool: Spool,
    /// Whether it can be sent.
    pub(super) fit: Fit,
    pub(super) metrics: Arc<Metrics>,
    /// Who needs old TLS.
    devices: Mutex<Devices>,
    /// A test wants to see a session panic.
    #[cfg(debug_assertions)]
    breaks: std::sync::atomic::AtomicBool,
}

impl Shared {
    /// The policy in force.
    pub(super) fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What clients may still send.
    pub(super) fn rates(&self) -> MutexGuard<'_, Rates> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who may not log in for a while.
    pub(super) fn lockouts(&self) -> MutexGuard<'_, Lockouts> {
        self.lockouts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who needs old TLS.
    pub(super) fn devices(&self) -> MutexGuard<'_, Devices> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a test has asked for it, a defect: see [`Handle::break_next_session`].
    pub(super) fn break_if_asked(&self) {
        #[cfg(debug_assertions)]
        assert!(
            !self.breaks.swap(false, std::sync::atomic::Ordering::Relaxed),
            "a session breaks, as a test has asked"
        );
    }

    /// The accounts in force.
    pub(super) fn accounts(&self) -> Option<Accounts> {
        self.accounts
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// One listener and all that its connections need.
pub struct Listener {
    /// What it offers and limits.
    pub(super) terms: Arc<Terms>,
    /// Present where TLS is spoken.
    pub(super) tls: Option<Tls>,
    pub(super) shared: Arc<Shared>,
    pub(super) connections: Counter,
    pub(super) sessions: Gauge,
    /// Why certificates could not be used when they were last read.
    pub(super) kept: Mutex<Option<Complaint>>,
}

impl Listener {
    fn new(terms: Terms, tls: Option<Tls>, shared: Arc<Shared>) -> Listener {
        let label = ListenerLabel {
            listener: terms.listener.name.clone(),
        };
        Listener {
            connections: shared.metrics.smtp_connections.get_or_create_owned(&label),
            sessions: shared.metrics.smtp_sessions.get_or_create_owned(&label),
            terms: Arc::new(terms),
            tls,
            shared,
            kept: Mutex::default(),
        }
    }

    pub(super) fn count_rejection(&self, reason: &'static str) {
        self.shared
            .metrics
            .smtp_rejections
            .get_or_create(&self.result(reason))
            .inc();
    }

    pub(super) fn count_message(&self, accepted: bool) {
        let result = if accepted { "accepted" } else { "refused" };
        self.shared
            .metrics
            .smtp_messages
            .get_or_create(&self.result(result))
            .inc();
    }

    pub(super) fn count_login(&self, login: &Login) {
        let result = match login {
            Login::Accepted(_) => "ok",
            Login::Refused => "failed",
            Login::Unavailable => "unavailable",
        };
        self.shared
            .metrics
            .smtp_auth
            .get_or_create(&self.result(result))
            .inc();
    }

    fn result(&self, result: &'static str) -> ListenerResult {
        ListenerResult {
            listener: self.terms.listener.name.clone(),
            result,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.terms.listener.name
    }

    /// Whether this client may connect.
    pub(super) fn permits(&self, client: IpAddr) -> bool {
        contain(&self.terms.listener.networks, client)
    }
}

/// Listeners that are bound: clients can connect, and are served once [`Server::run`] runs.
pub struct Server {
    bound: Vec<(TcpListener, SocketAddr, Arc<Listener>)>,
    admissions: Arc<Admissions>,
    shared: Arc<Shared>,
}

/// Changes a server while it runs. Sessions under way go on with what is new at their next command,
/// except for certificates: those are for new handshakes.
#[derive(Clone)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
    pub(super) listeners: Vec<Arc<Listener>>,
}

impl Server {
    /// Opens the certificates and binds all addresses, or none.
    ///
    /// # Errors
    /// [`BindError`] names the listener and the fix.
    pub async fn bind(
        config: &Config,
        policy: Arc<Policy>,
        accounts: Option<Accounts>,
        spool: Spool,
        metrics: Arc<Metrics>,
    ) -> Result<Server, BindError> {
        let shared = Arc::new(Shared {
            policy: RwLock::new(policy),
            accounts: RwLock::new(accounts),
            rates: Mutex::new(Rates::new(&config.smtp)),
            lockouts: Mutex::new(Lockouts::new(&config.smtp)),
            spool,
            fit: Fit::new(Wishes::of(&config.tenant, &config.delivery)),
            metrics,
            devices: Mutex::default(),
            #[cfg(debug_assertions)]
            breaks: false.into(),
        });
        let mut bound = Vec::with_capacity(config.listeners.len());
        let mut inherited = if config.listeners.iter().any(|it| it.socket.is_some()) {
            Inherited::of_process()
        } else {
            Inherited::default()
        };
        for listener in &config.listeners {
            let failed = |why| BindError {
                listener: listener.name.clone(),
                address: listener.address,
                why,
            };
            let tls = match listener.tls {
                TlsMode::None => None,
                _ => Some(
                    secure::open_tls(listener, config)
                        .await
                        .map_err(|error| failed(Why::Certificate(error)))?,
                ),
            };
            let socket = match &listener.socket {
                Some(name) => {
                    let passed = inherited
                        .take(name, listener.address)
                        .map_err(|error| failed(Why::Inherited(error)))?;
                    inherited::adopt(passed)
                }
                None => open_socket(listener.address, &config.listeners),
            }
            .map_err(|error| failed(Why::Socket(error)))?;
            let address = socket.local_addr().map_err(|error| failed(Why::Socket(error)))?;
            let terms = Terms {
                listener: listener.clone(),
                smtp: config.smtp.clone(),
            };
            bound.push((
                socket,
                address,
                Arc::new(Listener::new(terms, tls, Arc::clone(&shared))),
            ));
        }
        let (connections, limit) = descriptors::provide_for(config.smtp.max_connections);
        if connections < config.smtp.max_connections {
            event::smtp::few_descriptors(limit, connections, config.smtp.max_connections);
        }
        Ok(Server {
            bound,
            admissions: Arc::new(Admissions::new(&config.smtp, connections)),
            shared,
        })
    }

    /// Where each listener listens, in the order of the configuration. Port 0 has become a real one.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.bound.iter().map(|(_, address, _)| *address).collect()
    }

    /// What changes the server while it runs.
    pub fn handle(&self) -> Handle {
        Handle {
            shared: Arc::clone(&self.shared),
            listeners: self
                .bound
                .iter()
                .map(|(_, _, listener)| Arc::clone(listener))
                .collect(),
        }
    }

    /// Serves until `stopping` is cancelled. Then no connection is accepted any more, idle clients
    /// are told 421, and mail data under way may come to its end within `grace`.
    pub async fn run(self, stopping: CancellationToken, grace: Duration) {
        let mut listeners = JoinSet::new();
        listeners.spawn(secure::watch_certificates(self.handle(), stopping.clone()));
        for (socket, _, listener) in self.bound {
            listeners.spawn(listen(
                socket,
                listener,
                Arc::clone(&self.admissions),
                stopping.clone(),
                grace,
            ));
        }
        while let Some(ended) = listeners.join_next().await {
            report("listener", ended);
        }
    }
}

impl Handle {
    /// Puts another sender table in force.
    pub fn set_policy(&self, policy: Arc<Policy>) {
        *self.shared.policy.write().unwrap_or_else(PoisonError::into_inner) = policy;
    }

    /// Puts another form of messages in force: what fits is found out by it.
    pub fn set_wishes(&self, wishes: Wishes) {
        self.shared.fit.set(wishes);
    }

    /// Puts other accounts in force. Clients that have logged in stay logged in.
    pub fn set_accounts(&self, accounts: Option<Accounts>) {
        *self
            .shared
            .accounts
            .write()
            .unwrap_or_else(PoisonError::into_inner) = accounts;
    }

    /// Holds a conversation as the listener of this number in the configuration would, over a stream
    /// that came from elsewhere than its socket: a pipe in a test or a fuzzer. Networks and limits of
    /// connections are the socket's business and not asked.
    ///
    /// # Panics
    /// Where there is no listener of this number.
    pub async fn converse<S>(&self, listener: usize, stream: S, client: IpAddr, stopping: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        converse(stream, client, Arc::clone(&self.listeners[listener]), stopping).await;
    }

    /// Makes the next session that reads something panic, to see that no other notices. In tests only.
    #[cfg(debug_assertions)]
    #[doc(hidden)]
    pub fn break_next_session(&self) {
        self.shared
            .breaks
            .store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// How many connections may wait to be accepted. The kernel has a limit of its own besides
/// (`net.core.somaxconn`).
const BACKLOG: u32 = 1024;

fn open_socket(address: SocketAddr, listeners: &[config::Listener]) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if address.is_ipv6() {
        // `[::]` takes IPv4 clients as well, unless a listener of their own is there for them.
        let beside_ipv4 = listeners
            .iter()
            .any(|it| it.address.is_ipv4() && it.address.port() == address.port());
        rustix::net::sockopt::set_ipv6_v6only(&socket, beside_ipv4)?;
    }
    // Connections of a gateway that has just ended do not keep its address.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Why the server cannot listen.
#[derive(Debug)]
pub struct BindError {
    /// The listener's name.
    pub listener: String,
    /// Its address.
    pub address: SocketAddr,
    /// What failed.
    pub why: Why,
}

/// What failed.
#[derive(Debug)]
pub enum Why {
    /// The address.
    Socket(io::Error),
    /// The socket that the service manager should have passed.
    Inherited(InheritedError),
    /// The certificate.
    Certificate(CredentialError),
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BindError {
            listener,
            address,
            why,
        } = self;
        let error = match why {
            Why::Certificate(error) => return write!(f, "listener {listener}: {error}"),
            Why::Inherited(error) => return write!(f, "listener {listener}: {error}"),
            Why::Socket(error) => error,
        };
        write!(f, "listener {listener}: cannot listen on {address}: ")?;
        match error.kind() {
            io::ErrorKind::AddrInUse => write!(
                f,
                "another program listens there already; 'ss -ltnp' shows which. Stop it, or change the \
                 listener's address"
            ),
            io::ErrorKind::PermissionDenied => write!(
                f,
                "not permitted. Ports below 1024 need the capability CAP_NET_BIND_SERVICE, which the \
                 systemd unit grants; or choose another port, such as 2525"
            ),
            io::ErrorKind::AddrNotAvailable => write!(
                f,
                "this machine has no such address; 'ip address' shows those it has, and 0.0.0.0 and [::] \
                 stand for all"
            ),
            _ => error.fmt(f),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.why {
            Why::Socket(error) => Some(error),
            Why::Certificate(error) => Some(error),
            Why::Inherited(_) => None,
        }
    }
}

async fn listen(
    socket: TcpListener,
    listener: Arc<Listener>,
    admissions: Arc<Admissions>,
    stopping: CancellationToken,
    grace: Duration,
) {
    let mut connections = JoinSet::new();
    let mut backoff = BACKOFF_FIRST;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopping.cancelled() => break,
            Some(ended) = connections.join_next() => {
                report("SMTP session", ended);
                continue;
            }
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                backoff = BACKOFF_FIRST;
                admit(stream, peer, &listener, &admissions, &stopping, &mut connections);
            }
            Err(error) => {
                event::smtp::accept_failed(listener.name(), &error, backoff);
                tokio::select! {
                    () = stopping.cancelled() => break,
                    () = tokio::time::sleep(backoff) => {}
                }
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
    }
    // Nobody connects any more; those who have are told by their own tasks.
    drop(socket);
    let drained = async {
        while let Some(ended) = connections.join_next().await {
            report("SMTP session", ended);
        }
    };
    if timeout(grace, drained).await.is_err() {
        connections.shutdown().await;
    }
}

pub(super) fn contain(networks: &[ipnet::IpNet], address: IpAddr) -> bool {
    networks.iter().any(|it| it.contains(&address))
}

/// Holds a conversation over a stream.
pub(super) async fn converse<S>(
    stream: S,
    client: IpAddr,
    listener: Arc<Listener>,
    stopping: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let begun = tokio::select! {
        begun = secure::begin(stream, client, &listener) => begun,
        () = stopping.cancelled() => return,
    };
    let stream = match begun {
        Ok(stream) => stream,
        Err(error) => return listener.tls_failed(client, &error),
    };
    let mut session = Session::new(Arc::clone(&listener.terms), client, stream.tls_version());
    if listener.terms.listener.cram_md5 && listener.shared.accounts().is_some_and(|it| it.has_recoverable()) {
        session = session.with_cram_md5(connection::nonce());
    }
    Connection::new(stream, session, listener, stopping).run().await;
}

/// A panic has ended one task, and only that one.
fn report(what: &str, ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        event::defect(what, &error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_address_and_the_fix() {
        let text = |kind: io::ErrorKind| {
            BindError {
                listener: "scanners".into(),
                address: "127.0.0.1:25".parse().expect("an address"),
                why: Why::Socket(kind.into()),
            }
            .to_string()
        };
        for (kind, fix) in [
            (io::ErrorKind::AddrInUse, "ss -ltnp"),
            (io::ErrorKind::PermissionDenied, "CAP_NET_BIND_SERVICE"),
            (io::ErrorKind::AddrNotAvailable, "ip address"),
        ] {
            let text = text(kind);
            assert!(
                text.contains("scanners") && text.contains("127.0.0.1:25") && text.contains(fix),
                "{text}"
            );
        }
    }
}
