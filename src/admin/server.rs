//! Serves the router: on the admin address, and on the control socket.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

use super::limited::{Limited, Limits};

/// Connections served at the same time; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
/// How long a client of the admin address may say nothing, and how long its connection may last. Every
/// answer there takes far less; whoever sends a request octet by octet gets none.
const TCP_LIMITS: Limits = Limits {
    idle: Some(Duration::from_secs(15)),
    life: Some(Duration::from_secs(120)),
};
/// Who may open the control socket could do more than keep it busy; and to steer a large queue takes time.
const SOCKET_LIMITS: Limits = Limits {
    idle: None,
    life: None,
};

/// How long answers under way may take after the stop.
const GRACE: Duration = Duration::from_secs(2);

/// Binds the admin address.
///
/// # Errors
/// As the system gives them.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Binds the control socket so that only our own user may open it, at no moment anybody else.
/// A socket that a crash has left there is replaced: whoever holds the queue is its only owner.
///
/// # Errors
/// As the system gives them; a path of more than 107 octets is none for a socket.
pub fn bind_control_socket(path: &Path) -> io::Result<UnixListener> {
    let unnamed = path.with_extension("new");
    match std::fs::remove_file(&unnamed) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&unnamed)?;
    std::fs::set_permissions(&unnamed, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&unnamed, path)?;
    Ok(listener)
}

/// Serves the admin address until `stop`.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let stopped = stop.clone();
    let listener = Limited::new(listener, MAX_CONNECTIONS, TCP_LIMITS);
    let server = axum::serve(listener, router).with_graceful_shutdown(stopped.cancelled_owned());
    until(server.into_future(), stop).await;
}

/// Serves the control socket until `stop`.
pub async fn serve_control_socket(listener: UnixListener, router: Router, stop: CancellationToken) {
    let stopped = stop.clone();
    let listener = Limited::new(listener, MAX_CONNECTIONS, SOCKET_LIMITS);
    let server = axum::serve(listener, router).with_graceful_shutdown(stopped.cancelled_owned());
    until(server.into_future(), stop).await;
}

async fn until(server: impl Future<Output = io::Result<()>>, stop: CancellationToken) {
    let grace = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        // axum goes on after failed accepts, so this is the end of the graceful stop.
        _ = server => {}
        () = grace => {}
    }
}
