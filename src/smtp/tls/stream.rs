//! A stream with or without TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use openssl::ssl::SslVersion;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_openssl::SslStream;
use tokio_rustls::server::TlsStream;

/// A connection before and after STARTTLS.
pub enum Stream<S> {
    /// As it came.
    Plain(Replay<S>),
    /// Under TLS by rustls.
    Rustls(Box<TlsStream<Replay<S>>>),
    /// Under TLS by OpenSSL.
    OpenSsl(Pin<Box<SslStream<Replay<S>>>>),
    /// Given to a handshake that is under way or has failed.
    Taken,
}

impl<S> Stream<S> {
    /// A stream on which nothing has been read yet.
    pub fn plain(stream: S) -> Stream<S> {
        Stream::Plain(Replay::new(stream, Vec::new()))
    }

    /// The TLS version, such as `TLSv1.3`.
    pub fn tls_version(&self) -> Option<String> {
        match self {
            Stream::Plain(_) | Stream::Taken => None,
            Stream::Rustls(stream) => Some(match stream.get_ref().1.protocol_version() {
                Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3".to_owned(),
                Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2".to_owned(),
                other => format!("{other:?}"),
            }),
            Stream::OpenSsl(stream) => Some(match stream.ssl().version_str() {
                "TLSv1" => "TLSv1.0".to_owned(),
                other => other.to_owned(),
            }),
        }
    }

    /// The least profile of a listener that serves this: `modern`, `compat` or `legacy`.
    pub fn profile(&self) -> &'static str {
        match self {
            Stream::OpenSsl(stream) => match stream.ssl().version2() {
                Some(SslVersion::TLS1 | SslVersion::TLS1_1) => "legacy",
                _ => "compat",
            },
            Stream::Plain(_) | Stream::Rustls(_) | Stream::Taken => "modern",
        }
    }

    /// The cipher suite, as the library that does it calls it.
    pub fn cipher(&self) -> Option<String> {
        match self {
            Stream::Plain(_) | Stream::Taken => None,
            Stream::Rustls(stream) => {
                let suite = stream.get_ref().1.negotiated_cipher_suite()?;
                Some(format!("{:?}", suite.suite()))
            }
            Stream::OpenSsl(stream) => Some(stream.ssl().current_cipher()?.name().to_owned()),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Rustls(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::OpenSsl(stream) => stream.as_mut().poll_read(context, buffer),
            Stream::Taken => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, octets),
            Stream::Rustls(stream) => Pin::new(stream).poll_write(context, octets),
            Stream::OpenSsl(stream) => stream.as_mut().poll_write(context, octets),
            Stream::Taken => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Rustls(stream) => Pin::new(stream).poll_flush(context),
            Stream::OpenSsl(stream) => stream.as_mut().poll_flush(context),
            Stream::Taken => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Rustls(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::OpenSsl(stream) => stream.as_mut().poll_shutdown(context),
            Stream::Taken => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

/// A stream whose first octets have been read already, and are read once more.
#[derive(Debug)]
pub struct Replay<S> {
    read: Vec<u8>,
    at: usize,
    stream: S,
}

impl<S> Replay<S> {
    /// A stream that begins with what has been read of it.
    pub fn new(stream: S, read: Vec<u8>) -> Replay<S> {
        Replay { read, at: 0, stream }
    }

    /// The stream, and what is still to be read once more.
    pub(super) fn into_parts(mut self) -> (S, Vec<u8>) {
        self.read.drain(..self.at);
        (self.stream, self.read)
    }

    /// Whether all has been read once more.
    pub fn is_drained(&self) -> bool {
        self.read.is_empty()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replay<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let rest = &self.read[self.at..];
        let taken = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..taken]);
        self.at += taken;
        if self.at == self.read.len() {
            // An idle connection does not keep it.
            self.read = Vec::new();
            self.at = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replay<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
