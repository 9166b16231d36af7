//! From an accepted socket to a session: who connects, through which proxy, and whether there is room.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::TlsMode;
use crate::event;
use crate::smtp::admission::{Admission, Admissions, Entry};
use crate::smtp::connection;
use crate::smtp::listener::{Listener, contain, converse};
use crate::smtp::proxy::{self, Header, Malformed, Source};
use crate::smtp::reply::{self, Reply};

/// How long a client that is not admitted gets to read why.
const REFUSAL_TIME: Duration = Duration::from_secs(2);

/// Admits a connection, or sends it away; either has a task of its own.
pub(super) fn admit(
    stream: TcpStream,
    peer: SocketAddr,
    listener: &Arc<Listener>,
    admissions: &Arc<Admissions>,
    stopping: &CancellationToken,
    connections: &mut JoinSet<()>,
) {
    listener.connections.inc();
    // On a socket that takes both, IPv4 clients have an IPv6 address in which theirs is mapped.
    let peer = peer.ip().to_canonical();
    let arrival = Arrival {
        stream,
        listener: Arc::clone(listener),
        admissions: Arc::clone(admissions),
        stopping: stopping.clone(),
    };
    let is_proxy = contain(&listener.terms.listener.proxy_protocol_from, peer);
    if !is_proxy && !listener.permits(peer) {
        arrival.refuse(peer, reply::CLIENT_NOT_PERMITTED, connections);
        return;
    }
    let Some(entry) = admissions.enter() else {
        arrival.refuse(peer, reply::TOO_MANY_CONNECTIONS, connections);
        return;
    };
    if is_proxy {
        connections.spawn(arrival.proxied(entry, peer));
        return;
    }
    match entry.of(peer) {
        Some(admission) => drop(connections.spawn(arrival.serve(peer, admission))),
        None => arrival.refuse(peer, reply::TOO_MANY_CONNECTIONS, connections),
    }
}

/// A connection that is accepted and not admitted yet.
struct Arrival {
    stream: TcpStream,
    listener: Arc<Listener>,
    admissions: Arc<Admissions>,
    stopping: CancellationToken,
}

impl Arrival {
    /// Sends a client away.
    fn refuse(self, client: IpAddr, refusal: Reply, connections: &mut JoinSet<()>) {
        if let Some(telling) = self.refusal(client, refusal) {
            connections.spawn(telling);
        }
    }

    /// Counts and logs a refusal. What it gives back tells the client.
    fn refusal(self, client: IpAddr, refusal: Reply) -> Option<impl Future<Output = ()> + 'static> {
        let Arrival {
            stream,
            listener,
            admissions,
            ..
        } = self;
        listener.count_rejection(refusal.reason);
        if let Some(others) = admissions.log_refusal(Instant::now()) {
            let (code, reason) = (refusal.code, refusal.reason);
            event::smtp::connection_refused(listener.name(), client, code, reason, others);
        }
        // A client that is not told why cannot be told apart from a network that is down; but telling
        // is not worth more than a few file descriptors. Under TLS it could not read the words anyway.
        if listener.terms.listener.tls == TlsMode::Implicit {
            return None;
        }
        let permit = Arc::clone(&admissions.refusals).try_acquire_owned().ok()?;
        Some(async move {
            let _permit = permit;
            refuse(stream, &refusal).await;
        })
    }

    /// What a named proxy has connected: whose connection it is, its header says.
    async fn proxied(mut self, entry: Entry, proxy: IpAddr) {
        let limit = self.listener.terms.smtp.handshake_timeout;
        let header = tokio::select! {
            header = timeout(limit, read_header(&mut self.stream)) => header,
            () = self.stopping.cancelled() => return,
        };
        let client = match header.unwrap_or(Err(NoHeader::Timeout)) {
            Ok(Source::Client(client)) => client,
            Ok(Source::Proxy) => proxy,
            Err(why) => {
                // To whom to say what, only the header could have told.
                self.listener.count_rejection("proxy");
                if let Some(others) = self.admissions.log_refusal(Instant::now()) {
                    event::smtp::no_proxy_header(self.listener.name(), proxy, &why, others);
                }
                return;
            }
        };
        let admission = if self.listener.permits(client) {
            entry.of(client).ok_or(reply::TOO_MANY_CONNECTIONS)
        } else {
            drop(entry);
            Err(reply::CLIENT_NOT_PERMITTED)
        };
        match admission {
            Ok(admission) => self.serve(client, admission).await,
            Err(refusal) => {
                if let Some(telling) = self.refusal(client, refusal) {
                    telling.await;
                }
            }
        }
    }

    async fn serve(self, client: IpAddr, admission: Admission) {
        let Arrival {
            stream,
            listener,
            stopping,
            ..
        } = self;
        let _admission = admission;
        let _open = Open::new(&listener.sessions);
        // Replies are short, and each is one write: waiting for more would only delay them.
        let _ = stream.set_nodelay(true);
        converse(stream, client, listener, stopping).await;
    }
}

/// Why a named proxy has not said whose connection it is.
enum NoHeader {
    Timeout,
    Malformed(Malformed),
    Io(io::Error),
}

impl fmt::Display for NoHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoHeader::Timeout => f.write_str("no PROXY header came in time"),
            NoHeader::Malformed(why) => why.fmt(f),
            NoHeader::Io(error) => error.fmt(f),
        }
    }
}

/// Reads the header and not an octet more: what follows may be TLS.
async fn read_header(stream: &mut TcpStream) -> Result<Source, NoHeader> {
    let mut octets = Vec::new();
    loop {
        match proxy::parse(&octets).map_err(NoHeader::Malformed)? {
            Header::Whole(source) => return Ok(source),
            Header::More(more) => {
                let from = octets.len();
                octets.resize(from + more, 0);
                stream
                    .read_exact(&mut octets[from..])
                    .await
                    .map_err(NoHeader::Io)?;
            }
        }
    }
}

async fn refuse(mut stream: TcpStream, refusal: &Reply) {
    let mut wire = Vec::new();
    refusal.encode(&mut wire);
    let say = async {
        if stream.write_all(&wire).await.is_ok() {
            connection::hang_up(&mut stream).await;
        }
    };
    let _ = timeout(REFUSAL_TIME, say).await;
}

/// Counts a session as open until it is dropped, also by a panic.
struct Open(Gauge);

impl Open {
    fn new(sessions: &Gauge) -> Open {
        sessions.inc();
        Open(sessions.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
