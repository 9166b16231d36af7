//! TLS on a listener, by rustls: TLS 1.2 and 1.3. The certificate can be replaced while sessions
//! run; those that began with the old one go on with it.

mod stream;

use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{PeerIncompatible, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::Credential;
use crate::identity::certificate::{CertificateError, KeyPair};
use crate::identity::credential::{CredentialError, open_for_tls};

pub use stream::Stream;

/// What a listener needs to speak TLS.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
    serving: Arc<Serving>,
}

/// The certificate that new handshakes get.
struct Serving(RwLock<Served>);

#[derive(Clone)]
struct Served {
    key: Arc<CertifiedKey>,
    about: Arc<About>,
}

/// A certificate in use, for whoever watches its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Its subject.
    pub subject: String,
    /// Its SHA-1 thumbprint.
    pub thumbprint: String,
    /// When it ends.
    pub not_after: Timestamp,
}

impl Tls {
    /// Opens the certificate. Blocking.
    ///
    /// # Errors
    /// [`CredentialError`] names the file and the fix.
    pub fn open(credential: &Credential) -> Result<Tls, CredentialError> {
        let serving = Arc::new(Serving(RwLock::new(Served::open(credential)?)));
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has the suites of TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&serving) as Arc<dyn ResolvesServerCert>);
        Ok(Tls {
            config: Arc::new(config),
            serving,
        })
    }

    /// Opens the certificate anew and gives it to all later handshakes. Blocking.
    ///
    /// # Errors
    /// As [`Tls::open`]; the certificate that was there goes on serving.
    pub fn reload(&self, credential: &Credential) -> Result<(), CredentialError> {
        let served = Served::open(credential)?;
        *self.serving.0.write().unwrap_or_else(PoisonError::into_inner) = served;
        Ok(())
    }

    /// The certificate that new handshakes get.
    pub fn certificate(&self) -> Arc<About> {
        self.serving.now().about
    }

    /// Does the handshake.
    ///
    /// # Errors
    /// [`HandshakeError`] says in words what the client did.
    pub async fn accept<S>(&self, stream: S, limit: Duration) -> Result<TlsStream<S>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = TlsAcceptor::from(Arc::clone(&self.config)).accept(stream);
        match tokio::time::timeout(limit, handshake).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(HandshakeError::Failed(error)),
            Err(_) => Err(HandshakeError::Timeout),
        }
    }
}

impl Served {
    fn open(credential: &Credential) -> Result<Served, CredentialError> {
        let pair = open_for_tls(credential)?;
        let key = certified(&pair).ok_or_else(|| CredentialError::Certificate {
            file: credential.certificate.clone(),
            error: CertificateError::KeyType(pair.certificate.key.clone()),
        })?;
        let about = About {
            subject: pair.certificate.subject.clone(),
            thumbprint: pair.certificate.sha1_thumbprint(),
            not_after: pair.certificate.not_after,
        };
        Ok(Served {
            key: Arc::new(key),
            about: Arc::new(about),
        })
    }
}

fn certified(pair: &KeyPair) -> Option<CertifiedKey> {
    let key = aws_lc_rs::sign::any_supported_type(&pair.tls_key()).ok()?;
    Some(CertifiedKey::new(pair.tls_chain(), key))
}

impl Serving {
    fn now(&self) -> Served {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now().key)
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Serving").field(&self.now().about).finish()
    }
}

/// Why there is no TLS.
#[derive(Debug)]
pub enum HandshakeError {
    /// It took too long.
    Timeout,
    /// The client hung up, cannot do what we can, or speaks no TLS.
    Failed(io::Error),
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HandshakeError::Failed(error) = self else {
            return f.write_str("the TLS handshake took too long");
        };
        let tls = error.get_ref().and_then(|it| it.downcast_ref::<rustls::Error>());
        match tls {
            // The extension came with TLS 1.2, and without it rustls does not look at the version.
            Some(rustls::Error::PeerIncompatible(
                PeerIncompatible::Tls12NotOffered | PeerIncompatible::SignatureAlgorithmsExtensionRequired,
            )) => f.write_str("the client offers no TLS newer than 1.1"),
            Some(rustls::Error::PeerIncompatible(why)) => {
                write!(
                    f,
                    "the client and this listener have no TLS parameters in common ({why:?})"
                )
            }
            Some(rustls::Error::InvalidMessage(_)) => {
                f.write_str("the client speaks no TLS, but TLS is expected here")
            }
            Some(rustls::Error::AlertReceived(alert)) => {
                write!(f, "the client ended the TLS handshake: {alert:?}")
            }
            Some(other) => other.fmt(f),
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                f.write_str("the client hung up during the TLS handshake")
            }
            None => error.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests;
