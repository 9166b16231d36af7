//! TLS on a listener. The ClientHello is read, and read once more by the library that answers it:
//! rustls for all who can do TLS 1.2 and 1.3 as it is today, OpenSSL for older devices, as far as the
//! listener's profile goes. Certificates can be replaced while sessions run; those that began with the
//! old one go on with it.

mod choice;
pub mod client_hello;
pub mod devices;
mod handshake;
mod identity;
mod self_signed;
mod stream;

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::config::{self, ListenerCertificate, TlsProfile};
use crate::identity::credential::CredentialError;

pub use choice::Refusal;
pub use handshake::HandshakeError;
pub use identity::About;
pub use self_signed::Home;
pub use stream::{Replay, Stream};

use identity::Identity;

/// What a listener needs to speak TLS.
#[derive(Clone)]
pub struct Tls(Arc<Listening>);

struct Listening {
    profile: TlsProfile,
    legacy_networks: Vec<IpNet>,
    home: Home,
    /// The certificates that new handshakes get; never empty.
    serving: RwLock<Arc<Vec<Arc<Identity>>>>,
}

/// A certificate that was not taken; the old one serves.
#[derive(Debug)]
pub enum Kept {
    /// It cannot be opened.
    Unusable(CredentialError),
    /// It has expired, and the old one has not.
    Expired {
        /// The new one.
        new: About,
    },
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kept::Unusable(error) => error.fmt(f),
            Kept::Expired { new } => write!(
                f,
                "{}: the new certificate ({}) expired on {}; get one that is valid",
                new.file.display(),
                new.subject,
                new.not_after
            ),
        }
    }
}

/// What a reload did.
#[derive(Debug, Default)]
pub struct Reloaded {
    /// Certificates that are new.
    pub taken: Vec<Arc<About>>,
    /// Those that are not.
    pub kept: Vec<Kept>,
}

impl Tls {
    /// Opens the certificates. Blocking.
    ///
    /// # Errors
    /// [`CredentialError`] names the file and the fix.
    pub fn open(listener: &config::Listener, home: Home) -> Result<Tls, CredentialError> {
        let now = Timestamp::now();
        let mut identities = Vec::with_capacity(listener.certificates.len());
        for source in &listener.certificates {
            identities.push(Arc::new(Identity::open(
                source,
                &home,
                listener.tls_profile,
                now,
            )?));
        }
        Ok(Tls(Arc::new(Listening {
            profile: listener.tls_profile,
            legacy_networks: listener.legacy_networks.clone(),
            home,
            serving: RwLock::new(Arc::new(identities)),
        })))
    }

    /// Opens these certificates anew and gives them to all later handshakes. Where one cannot be used,
    /// the one from the same file goes on serving; where there is none, all that were there. Blocking.
    pub fn reload(&self, sources: &[ListenerCertificate]) -> Reloaded {
        let now = Timestamp::now();
        let old = self.serving();
        let mut reloaded = Reloaded::default();
        let mut next: Vec<Arc<Identity>> = Vec::with_capacity(sources.len());
        let mut all = true;
        for (at, source) in sources.iter().enumerate() {
            // The same file, or what stands in the same place.
            let before = old
                .iter()
                .find(|it| it.source.is_same_place(source))
                .or_else(|| old.get(at));
            let keep = match Identity::open(source, &self.0.home, self.0.profile, now) {
                Err(error) => Kept::Unusable(error),
                Ok(new) => {
                    let expired = |about: &About| about.not_after < now;
                    if !expired(&new.about) || before.is_none_or(|it| expired(&it.about)) {
                        if before.is_none_or(|it| it.certified.cert != new.certified.cert) {
                            reloaded.taken.push(Arc::clone(&new.about));
                        }
                        next.push(Arc::new(new));
                        continue;
                    }
                    Kept::Expired {
                        new: About::clone(&new.about),
                    }
                }
            };
            reloaded.kept.push(keep);
            match before {
                Some(before) => next.push(Arc::clone(before)),
                None => all = false,
            }
        }
        if all && !next.is_empty() {
            *self.0.serving.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        }
        reloaded
    }

    /// Whether a file has changed since it was read, or a certificate of our own must be renewed.
    /// Blocking.
    pub fn is_stale(&self) -> bool {
        let now = Timestamp::now();
        self.serving().iter().any(|it| it.is_stale(&self.0.home, now))
    }

    /// What the certificates in use were opened from.
    pub fn sources(&self) -> Vec<ListenerCertificate> {
        self.serving().iter().map(|it| it.source.clone()).collect()
    }

    /// The certificates that new handshakes get, in the order of the configuration.
    pub fn certificates(&self) -> Vec<Arc<About>> {
        self.serving().iter().map(|it| Arc::clone(&it.about)).collect()
    }

    /// Does the handshake, within the limit in all.
    ///
    /// # Errors
    /// [`HandshakeError`] says in words what the client did, and what can be done about it.
    pub async fn accept<S>(
        &self,
        stream: Replay<S>,
        client: IpAddr,
        limit: Duration,
    ) -> Result<Stream<S>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let serving = self.serving();
        // On the heap: an idle connection does not keep room for a handshake.
        let handshake = Box::pin(handshake::accept(
            stream,
            client,
            self.0.profile,
            &self.0.legacy_networks,
            &serving,
        ));
        match tokio::time::timeout(limit, handshake).await {
            Ok(done) => done,
            Err(_) => Err(HandshakeError::Timeout),
        }
    }

    fn serving(&self) -> Arc<Vec<Arc<Identity>>> {
        Arc::clone(&self.0.serving.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests;
