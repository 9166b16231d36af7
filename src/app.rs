//! Builds the parts, hands parts to parts, stops them; the only module that knows all of them.

mod certificates;
mod reload;
mod room;
mod serve;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::accounts::Accounts;
use crate::admin::{self, Admin, Surface};
use crate::config::{Auth, Config, TlsMode};
use crate::convert::Wishes;
use crate::delivery::{Control, Delivery, Settings};
use crate::event;
use crate::graph::client::Graph;
use crate::identity::Tokens;
use crate::metrics::Metrics;
use crate::notify::{Notifier, Ways};
use crate::policy::Policy;
use crate::postmaster::Postmaster;
use crate::smtp;
use crate::spool::{Recovery, Spool, SpoolError};

use certificates::Certificates;
pub use serve::serve;

/// Why the gateway does not start, or does not go on, in words that name the thing and the fix.
#[derive(Debug)]
pub struct Error(String);

impl Error {
    fn new(why: impl fmt::Display) -> Error {
        Error(why.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// A running gateway.
pub struct Gateway {
    config: Config,
    smtp_addresses: Vec<SocketAddr>,
    admin_address: Option<SocketAddr>,
    spool: Spool,
    metrics: Arc<Metrics>,
    smtp: smtp::Handle,
    certificates: Arc<Certificates>,
    delivery: Control,
    /// Whether all listeners accept.
    listening: watch::Sender<bool>,
    /// Stops accepting and delivering.
    stop: CancellationToken,
    /// Stops showing.
    stop_admin: CancellationToken,
    smtp_task: JoinHandle<()>,
    delivery_task: JoinHandle<Result<usize, SpoolError>>,
    notifier: Notifier,
    admin_tasks: Vec<JoinHandle<()>>,
    /// Whether the control socket is ours.
    control_bound: bool,
}

/// Starts a gateway inside this process, for tests and `graphpost sandbox`. It answers no signals and
/// prints nothing.
///
/// # Errors
/// What keeps it from starting. Nothing is left running then.
pub async fn start(config: Config) -> Result<Gateway, Error> {
    let begun = Instant::now();
    let metrics = Arc::new(Metrics::new());

    // What can fail comes first, and nothing is delivered or accepted before all of it is there.
    let outside = Outside::open(&config, &metrics).await?;
    let (spool, recovery) = Spool::open(&config.spool, config.delivery.unknown, &metrics)
        .await
        .map_err(Error::new)?;
    tell_recovery(&recovery);
    let bound = bind(&config, outside, &spool, &metrics).await;
    let Bound {
        server,
        admin,
        outside,
    } = match bound {
        Ok(bound) => bound,
        Err(error) => {
            spool.close().await;
            return Err(error);
        }
    };

    let (listening, is_listening) = watch::channel(false);
    let stop = CancellationToken::new();
    let stop_admin = CancellationToken::new();

    let notifier = Notifier::start(outside.ways, Arc::clone(&metrics));
    let postmaster = Postmaster::new(spool.clone(), config.bounce.clone(), config.smtp.hostname.clone())
        .notifying(notifier.clone());
    tokio::spawn(room::watch(spool.clone(), notifier.clone(), stop.clone()));
    tokio::spawn(postmaster.clone().watch(
        config.spool.directory.clone(),
        config.delivery.lifetime,
        stop.clone(),
    ));
    let settings = Settings {
        graph: outside.graph,
        delivery: config.delivery.clone(),
        postmaster,
        wishes: Wishes::of(&config.tenant, &config.delivery),
    };
    let (delivery, control) = Delivery::new(spool.clone(), settings, Arc::clone(&metrics));
    let delivery_task = tokio::spawn(delivery.run(stop.clone()));

    let handle = server.handle();
    let certificates = Arc::new(Certificates::new(
        handle.clone(),
        outside.tokens,
        Arc::clone(&metrics),
        notifier.clone(),
    ));
    certificates.look();
    tokio::spawn(Arc::clone(&certificates).watch(stop.clone()));

    let view = Admin {
        spool: spool.clone(),
        metrics: Arc::clone(&metrics),
        listening: is_listening,
        delivery: control.clone(),
        certificates: certificates.subscribe(),
        smtp: handle.clone(),
    };
    let mut admin_address = None;
    let mut admin_tasks = Vec::new();
    if let Some(listener) = admin {
        admin_address = listener.local_addr().ok();
        let router = admin::router(view.clone(), Surface::Address);
        admin_tasks.push(tokio::spawn(admin::server::serve(
            listener,
            router,
            stop_admin.clone(),
        )));
    }
    let socket = admin::server::bind_control_socket(&config.admin.socket);
    let control_bound = socket.is_ok();
    match socket {
        Ok(listener) => {
            let router = admin::router(view, Surface::ControlSocket);
            admin_tasks.push(tokio::spawn(admin::server::serve_control_socket(
                listener,
                router,
                stop_admin.clone(),
            )));
        }
        Err(error) => event::control_unavailable(&config.admin.socket, &error),
    }

    let smtp_addresses = server.addresses();
    let smtp_task = tokio::spawn(server.run(stop.clone(), config.delivery.drain_timeout));
    // The sockets have been listening since they were bound.
    listening.send_replace(true);

    let gateway = Gateway {
        smtp_addresses,
        admin_address,
        spool,
        metrics,
        smtp: handle,
        certificates,
        delivery: control,
        listening,
        stop,
        stop_admin,
        smtp_task,
        delivery_task,
        notifier,
        admin_tasks,
        control_bound,
        config,
    };
    for (listener, address) in gateway.config.listeners.iter().zip(&gateway.smtp_addresses) {
        event::listening(
            &listener.name,
            *address,
            tls_word(listener.tls),
            auth_word(listener.auth),
        );
    }
    if let Some(address) = gateway.admin_address {
        event::listening("admin", address, "none", "none");
    }
    event::ready(env!("CARGO_PKG_VERSION"), begun.elapsed());
    Ok(gateway)
}

/// What comes from files other than the queue.
struct Outside {
    graph: Graph,
    tokens: Tokens,
    policy: Arc<Policy>,
    accounts: Option<Accounts>,
    ways: Ways,
}

impl Outside {
    async fn open(config: &Config, metrics: &Arc<Metrics>) -> Result<Outside, Error> {
        let (config, metrics) = (config.clone(), Arc::clone(metrics));
        // Opening a PFX and reading certificate authorities take their time.
        let opened = tokio::task::spawn_blocking(move || -> Result<Outside, Error> {
            let tokens = Tokens::new(&config.tenant, Arc::clone(&metrics)).map_err(Error::new)?;
            let graph = Graph::new(
                &config.tenant,
                config.delivery.request_timeout,
                tokens.clone(),
                Arc::clone(&metrics),
            )
            .map_err(Error::new)?;
            let accounts = match &config.accounts_file {
                Some(file) => Some(Accounts::load(file).map_err(Error::new)?),
                None => None,
            };
            let ways = Ways::new(&config).map_err(|error| Error(format!("notify: {error}")))?;
            Ok(Outside {
                ways,
                graph,
                tokens,
                policy: Arc::new(Policy::new(config.senders)),
                accounts,
            })
        });
        opened.await.map_err(Error::new)?
    }
}

struct Bound {
    server: smtp::Server,
    admin: Option<tokio::net::TcpListener>,
    outside: Outside,
}

async fn bind(
    config: &Config,
    outside: Outside,
    spool: &Spool,
    metrics: &Arc<Metrics>,
) -> Result<Bound, Error> {
    let server = smtp::Server::bind(
        config,
        Arc::clone(&outside.policy),
        outside.accounts.clone(),
        spool.clone(),
        Arc::clone(metrics),
    )
    .await
    .map_err(Error::new)?;
    let admin = match config.admin.address {
        Some(address) => Some(
            admin::server::bind(address)
                .await
                .map_err(|error| Error(cannot_listen(address, &error)))?,
        ),
        None => None,
    };
    Ok(Bound {
        server,
        admin,
        outside,
    })
}

fn cannot_listen(address: SocketAddr, error: &std::io::Error) -> String {
    let fix = match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "another program listens there already; 'ss -ltnp' shows which. Change admin.address"
        }
        std::io::ErrorKind::AddrNotAvailable => "this machine has no such address; change admin.address",
        _ => return format!("admin: cannot listen on {address}: {error}"),
    };
    format!("admin: cannot listen on {address}: {fix}")
}

fn tell_recovery(recovery: &Recovery) {
    event::recovery(
        recovery.queued,
        recovery.interrupted,
        recovery.orphans,
        recovery.took,
    );
    for path in &recovery.set_aside {
        event::set_aside(path);
    }
}

/// The value of `tls` in the configuration.
fn tls_word(tls: TlsMode) -> &'static str {
    match tls {
        TlsMode::None => "none",
        TlsMode::StartTls => "starttls",
        TlsMode::Required => "required",
        TlsMode::Implicit => "implicit",
        TlsMode::Auto => "auto",
    }
}

/// The value of `auth` in the configuration.
fn auth_word(auth: Auth) -> &'static str {
    match auth {
        Auth::None => "none",
        Auth::Optional => "optional",
        Auth::Required => "required",
    }
}

impl Gateway {
    /// Where the listeners listen, in their order in the configuration.
    pub fn smtp_addresses(&self) -> &[SocketAddr] {
        &self.smtp_addresses
    }

    /// Where the status page and the metrics are.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// The queue.
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// Waits until the gateway cannot go on, and says why. Pends while all is well.
    pub async fn failed(&mut self) -> Error {
        let why = tokio::select! {
            why = self.spool.broken() => why,
            ended = &mut self.delivery_task => match ended {
                Ok(Ok(_)) => "the delivery has ended".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(error) => format!("an internal error has ended the delivery: {error}"),
            },
            ended = &mut self.smtp_task => match ended {
                Ok(()) => "the listeners have ended".to_owned(),
                Err(error) => format!("an internal error has ended the listeners: {error}"),
            },
        };
        Error(why)
    }

    /// Drains and stops. What is left in the queue stays there.
    pub async fn shutdown(self) {
        let Gateway {
            spool,
            listening,
            stop,
            stop_admin,
            smtp_task,
            delivery_task,
            notifier,
            admin_tasks,
            control_bound,
            config,
            ..
        } = self;
        listening.send_replace(false);
        stop.cancel();
        // Mail that is just coming in is still taken, and waits in the queue for the next start.
        if !smtp_task.is_finished() {
            ended("listeners", smtp_task.await);
        }
        let mut left = 0;
        if !delivery_task.is_finished() {
            match delivery_task.await {
                Ok(Ok(it)) => left = it,
                Ok(Err(error)) => event::spool_broken(&error.to_string()),
                Err(error) => ended("delivery", Err(error)),
            }
        }
        notifier.finish().await;
        stop_admin.cancel();
        for task in admin_tasks {
            ended("admin", task.await);
        }
        if control_bound {
            // What is left would be replaced by the next start; but a path that leads nowhere confuses.
            let _ = std::fs::remove_file(&config.admin.socket);
        }
        spool.close().await;
        event::stopped(left);
    }
}

fn ended(what: &str, result: Result<(), tokio::task::JoinError>) {
    if let Err(error) = result {
        event::defect(what, &error);
    }
}
