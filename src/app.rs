//! Builds the parts, hands parts to parts, stops them; the only module that knows all of them.

use std::fmt;
use std::net::SocketAddr;

use crate::config::Config;

/// A running gateway.
pub struct Gateway {
    smtp: Vec<SocketAddr>,
    admin: Option<SocketAddr>,
}

/// Why the gateway does not start, in words that name the thing and the fix.
#[derive(Debug)]
pub struct Error(pub String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Runs the gateway until a signal stops it: `graphpost serve`. Prints one line per listening address.
///
/// # Errors
/// What keeps it from starting, or what stopped it.
pub fn serve(config: Config) -> Result<(), Error> {
    let _ = config;
    todo!()
}

/// Starts a gateway inside this process, for tests and `graphpost sandbox`. It answers no signals and
/// prints nothing.
///
/// # Errors
/// What keeps it from starting.
pub async fn start(config: Config) -> Result<Gateway, Error> {
    let _ = config;
    todo!()
}

impl Gateway {
    /// Where the listeners listen, in their order in the configuration.
    pub fn smtp_addresses(&self) -> &[SocketAddr] {
        &self.smtp
    }

    /// Where the status page and the metrics are.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Drains and stops. What is left in the queue stays there.
    pub async fn shutdown(self) {
        todo!()
    }
}
