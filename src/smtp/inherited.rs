//! Listening sockets that the service manager has opened and passes on (`sd_listen_fds(3)`). They listen
//! on a privileged port without the gateway having the right to, and go on taking connections while it
//! is restarted.

use std::env;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};

use listenfd::ListenFd;

/// The sockets that were passed and are not taken yet.
#[derive(Debug, Default)]
pub(super) struct Inherited(Vec<(String, TcpListener)>);

/// Why a listener has no socket of the service manager.
#[derive(Debug)]
pub enum InheritedError {
    /// None of this name was passed.
    NotPassed {
        /// The name in the configuration.
        socket: String,
        /// Those that were.
        passed: Vec<String>,
    },
    /// Those of this name listen elsewhere.
    Elsewhere {
        /// The name in the configuration.
        socket: String,
        /// Where.
        addresses: Vec<SocketAddr>,
    },
}

impl fmt::Display for InheritedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InheritedError::NotPassed { socket, passed } if passed.is_empty() => write!(
                f,
                "no socket '{socket}' was passed by systemd; start the service by its socket unit, or \
                 remove 'socket'"
            ),
            InheritedError::NotPassed { socket, passed } => write!(
                f,
                "no socket '{socket}' was passed by systemd, only '{}'; FileDescriptorName= in the socket \
                 unit is its name",
                passed.join("', '")
            ),
            InheritedError::Elsewhere { socket, addresses } => {
                let addresses: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
                write!(
                    f,
                    "the socket '{socket}' listens on {}; make 'address' and ListenStream= in the socket \
                     unit the same",
                    addresses.join(" and ")
                )
            }
        }
    }
}

impl Inherited {
    /// Takes over what this process was started with. Once: the environment does not say it again.
    pub(super) fn of_process() -> Inherited {
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut passed = ListenFd::from_env();
        let sockets = (0..passed.len()).filter_map(|at| {
            let name = names.next().unwrap_or_default().to_owned();
            // Whatever is no TCP socket is not for us.
            Some((name, passed.take_tcp_listener(at).ok()??))
        });
        Inherited(sockets.collect())
    }

    /// Takes the socket of this name that listens on this address; with port 0, on any port of it.
    pub(super) fn take(&mut self, socket: &str, address: SocketAddr) -> Result<TcpListener, InheritedError> {
        let matches = |it: &TcpListener| {
            it.local_addr().is_ok_and(|local| {
                local.ip() == address.ip() && (address.port() == 0 || local.port() == address.port())
            })
        };
        let found = self.0.iter().position(|(name, it)| name == socket && matches(it));
        if let Some(at) = found {
            return Ok(self.0.remove(at).1);
        }
        let of_this_name = self.0.iter().filter(|(name, _)| name == socket);
        let addresses: Vec<_> = of_this_name.filter_map(|(_, it)| it.local_addr().ok()).collect();
        let socket = socket.to_owned();
        Err(if addresses.is_empty() {
            InheritedError::NotPassed {
                socket,
                passed: self.0.iter().map(|(name, _)| name.clone()).collect(),
            }
        } else {
            InheritedError::Elsewhere { socket, addresses }
        })
    }
}

/// Makes a socket that the runtime can wait for.
pub(super) fn adopt(socket: TcpListener) -> io::Result<tokio::net::TcpListener> {
    socket.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_chooses_among_sockets_of_one_name() {
        let open = |address: &str| TcpListener::bind(address).expect("a socket");
        let (one, other) = (open("127.0.0.1:0"), open("127.0.0.2:0"));
        let [first, second] = [&one, &other].map(|it| it.local_addr().expect("an address"));
        let mut inherited = Inherited(vec![("smtp".into(), one), ("smtp".into(), other)]);

        let error = |it: Result<TcpListener, InheritedError>| it.expect_err("no socket").to_string();
        let elsewhere = error(inherited.take("smtp", "127.0.0.3:25".parse().expect("an address")));
        assert!(
            elsewhere.contains(&first.to_string()) && elsewhere.contains(&second.to_string()),
            "{elsewhere}"
        );
        assert!(error(inherited.take("smtps", first)).contains("only 'smtp', 'smtp'"));

        let taken = inherited.take("smtp", second).expect("the second");
        assert_eq!(taken.local_addr().expect("an address"), second);
        let taken = inherited
            .take("smtp", "127.0.0.1:0".parse().expect("an address"))
            .expect("the first");
        assert_eq!(taken.local_addr().expect("an address"), first);
        assert!(error(inherited.take("smtp", first)).contains("no socket 'smtp' was passed"));
    }
}
