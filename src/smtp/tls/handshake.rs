//! One handshake: the ClientHello is read, somebody is chosen to answer it, and reads it once more.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use openssl::ssl::{Ssl, SslContext};
use rustls::PeerIncompatible;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_openssl::SslStream;
use tokio_rustls::TlsAcceptor;

use super::choice::{Candidate, Choice, Refusal, choose};
use super::client_hello::{ClientHello, NoHello, Sniffer, Version};
use super::identity::Identity;
use super::stream::{Replay, Stream};
use crate::config::TlsProfile;

/// How much is read at once in search of the ClientHello.
const READ_OCTETS: usize = 1024;

/// Why there is no TLS.
#[derive(Debug)]
pub enum HandshakeError {
    /// It took too long.
    Timeout,
    /// The client hung up, or the network failed.
    Io(io::Error),
    /// What came is no ClientHello.
    NoHello(NoHello),
    /// The client is too old for this listener.
    Refused(Refusal),
    /// rustls did not come to terms with the client.
    Rustls(rustls::Error),
    /// Nor did OpenSSL; its reasons.
    OpenSsl(String),
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandshakeError::Timeout => f.write_str("the TLS handshake took too long"),
            HandshakeError::Io(error) if is_end(error) => {
                f.write_str("the client hung up during the TLS handshake")
            }
            HandshakeError::Io(error) => error.fmt(f),
            HandshakeError::NoHello(NoHello::NotTls | NoHello::Malformed) => {
                f.write_str("the client speaks no TLS, but TLS is expected here")
            }
            HandshakeError::NoHello(NoHello::TooLong) => {
                f.write_str("the client's first message is longer than any that TLS clients send")
            }
            HandshakeError::Refused(refusal) => refusal.fmt(f),
            HandshakeError::Rustls(rustls::Error::PeerIncompatible(why)) => {
                write!(
                    f,
                    "the client and this listener have no TLS parameters in common ({why:?})"
                )
            }
            HandshakeError::Rustls(rustls::Error::InvalidMessage(_)) => {
                f.write_str("the client speaks no TLS, but TLS is expected here")
            }
            HandshakeError::Rustls(rustls::Error::AlertReceived(alert)) => {
                write!(f, "the client ended the TLS handshake: {alert:?}")
            }
            HandshakeError::Rustls(other) => other.fmt(f),
            HandshakeError::OpenSsl(why) => write!(f, "the TLS handshake failed: {why}"),
        }
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
    )
}

pub(super) async fn accept<S>(
    stream: Replay<S>,
    client: IpAddr,
    profile: TlsProfile,
    legacy_networks: &[IpNet],
    identities: &[Arc<Identity>],
) -> Result<Stream<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut stream, hello) = read_hello(stream).await?;
    let choice = match &hello {
        Ok(hello) => {
            let candidates: Vec<Candidate<'_>> = identities
                .iter()
                .map(|it| Candidate {
                    names: &it.names,
                    key: &*it.certified.key,
                })
                .collect();
            choose(hello, profile, legacy_networks, client, &candidates)
        }
        Err(NoHello::TooLong) => return Err(HandshakeError::NoHello(NoHello::TooLong)),
        // rustls has the right alert for each kind of nonsense.
        Err(NoHello::NotTls | NoHello::Malformed) => Choice::Rustls(0, None),
    };
    let none = || HandshakeError::OpenSsl("there is no certificate".to_owned());
    match choice {
        Choice::Rustls(at, otherwise) => {
            let identity = identities.get(at).ok_or_else(none)?;
            match with_rustls(stream, identity).await {
                Err(HandshakeError::Rustls(rustls::Error::PeerIncompatible(why))) => {
                    Err(match otherwise.filter(|_| is_for_a_profile(&why)) {
                        Some(refusal) => HandshakeError::Refused(refusal),
                        None => HandshakeError::Rustls(rustls::Error::PeerIncompatible(why)),
                    })
                }
                other => other,
            }
        }
        Choice::OpenSsl(at, oldest) => {
            let identity = identities.get(at).ok_or_else(none)?;
            let context = match oldest {
                Version::TLS1_0 => identity.legacy.as_ref(),
                _ => identity.compat.as_ref(),
            };
            with_openssl(stream, context.ok_or_else(none)?).await
        }
        Choice::Refuse(refusal) => {
            refuse(&mut stream, hello.ok().as_ref(), refusal).await;
            Err(HandshakeError::Refused(refusal))
        }
    }
}

/// Whether another profile might get over it.
fn is_for_a_profile(why: &PeerIncompatible) -> bool {
    use PeerIncompatible as It;
    matches!(
        why,
        It::NoCipherSuitesInCommon
            | It::NoKxGroupsInCommon
            | It::NoEcPointFormatsInCommon
            | It::NoSignatureSchemesInCommon
            | It::NamedGroupsExtensionRequired
            | It::EcPointsExtensionRequired
            | It::UncompressedEcPointsRequired
            | It::SignatureAlgorithmsExtensionRequired
    )
}

/// Reads until there is a ClientHello, or there will never be one. The stream still has all of it.
async fn read_hello<S>(stream: Replay<S>) -> Result<(Replay<S>, Result<ClientHello, NoHello>), HandshakeError>
where
    S: AsyncRead + Unpin,
{
    let (mut stream, read) = stream.into_parts();
    let mut sniffer = Sniffer::default();
    let mut found = sniffer.push(&read);
    let mut buffer = Vec::with_capacity(READ_OCTETS);
    while found.is_none() {
        buffer.clear();
        found = match stream.read_buf(&mut buffer).await {
            Ok(0) => return Err(HandshakeError::Io(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => sniffer.push(&buffer),
            Err(error) => return Err(HandshakeError::Io(error)),
        };
    }
    let hello = found.unwrap_or(Err(NoHello::NotTls));
    Ok((Replay::new(stream, sniffer.into_octets()), hello))
}

async fn with_rustls<S>(stream: Replay<S>, identity: &Identity) -> Result<Stream<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match TlsAcceptor::from(Arc::clone(&identity.rustls))
        .accept(stream)
        .await
    {
        Ok(stream) => Ok(Stream::Rustls(Box::new(stream))),
        Err(error) => {
            let tls = error.get_ref().and_then(|it| it.downcast_ref::<rustls::Error>());
            Err(match tls {
                Some(tls) => HandshakeError::Rustls(tls.clone()),
                None => HandshakeError::Io(error),
            })
        }
    }
}

async fn with_openssl<S>(stream: Replay<S>, context: &SslContext) -> Result<Stream<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let failed = |error: openssl::error::ErrorStack| HandshakeError::OpenSsl(reasons(&error));
    let ssl = Ssl::new(context).map_err(failed)?;
    let mut stream = Box::pin(SslStream::new(ssl, stream).map_err(failed)?);
    match stream.as_mut().accept().await {
        Ok(()) => Ok(Stream::OpenSsl(stream)),
        Err(error) => Err(match error.ssl_error().map(reasons) {
            Some(reasons) => HandshakeError::OpenSsl(reasons),
            None => HandshakeError::Io(
                error
                    .into_io_error()
                    .unwrap_or_else(|_| io::ErrorKind::UnexpectedEof.into()),
            ),
        }),
    }
}

/// OpenSSL's reasons in its own words.
fn reasons(error: &openssl::error::ErrorStack) -> String {
    let mut reasons: Vec<&str> = error.errors().iter().filter_map(|it| it.reason()).collect();
    reasons.dedup();
    match reasons.is_empty() {
        true => "OpenSSL does not say why".to_owned(),
        false => reasons.join(", "),
    }
}

/// Says why in the one way that the client understands: a fatal alert, in a record of a version that
/// it knows.
async fn refuse<S>(stream: &mut Replay<S>, hello: Option<&ClientHello>, refusal: Refusal)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let version = hello.map_or(Version::TLS1_0, |it| it.version);
    let [major, minor] = version.clamp(Version(0x0300), Version::TLS1_2).0.to_be_bytes();
    let alert = [21, major, minor, 0, 2, 2, refusal.alert()];
    // Whether it is read does not matter to us.
    if stream.write_all(&alert).await.is_ok() {
        crate::smtp::connection::hang_up(stream).await;
    }
}
