//! A listener with a bound on its connections, and connections with a bound on their time.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};

/// How long a connection may say nothing, and how long it may last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub idle: Option<Duration>,
    pub life: Option<Duration>,
}

/// A listener that accepts no more connections than it has places.
pub(super) struct Limited<L> {
    listener: L,
    places: Arc<Semaphore>,
    limits: Limits,
}

impl<L> Limited<L> {
    pub(super) fn new(listener: L, places: usize, limits: Limits) -> Limited<L> {
        Limited {
            listener,
            places: Arc::new(Semaphore::new(places)),
            limits,
        }
    }
}

impl<L: Listener> Listener for Limited<L> {
    type Io = Connection<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Connection<L::Io>, L::Addr) {
        // The semaphore is never closed; without a place the connection is merely not counted.
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        let (stream, address) = self.listener.accept().await;
        let now = Instant::now();
        let connection = Connection {
            stream,
            ends: self.limits.life.map(|it| now + it),
            idle: self.limits.idle,
            timer: self.limits.idle.map(|it| Box::pin(sleep_until(now + it))),
            _place: place,
        };
        (connection, address)
    }

    fn local_addr(&self) -> io::Result<L::Addr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when it is idle, or old.
pub(super) struct Connection<S> {
    stream: S,
    ends: Option<Instant>,
    idle: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl<S> Connection<S> {
    /// Something went over it.
    fn stir(&mut self) {
        if let (Some(timer), Some(idle)) = (&mut self.timer, self.idle) {
            let until = Instant::now() + idle;
            timer.as_mut().reset(self.ends.map_or(until, |it| it.min(until)));
        }
    }

    /// Waits for the other side, but not for ever.
    fn wait<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        match &mut self.timer {
            Some(timer) => timer
                .as_mut()
                .poll(context)
                .map(|()| Err(io::ErrorKind::TimedOut.into())),
            None => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Ready(read) => {
                self.stir();
                Poll::Ready(read)
            }
            Poll::Pending => self.wait(context),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(context, octets) {
            Poll::Ready(written) => {
                self.stir();
                Poll::Ready(written)
            }
            Poll::Pending => self.wait(context),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silent_or_slow_client_is_cut_off() {
        let limits = Limits {
            idle: Some(Duration::from_secs(15)),
            life: Some(Duration::from_secs(40)),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut listener = Limited::new(listener, 1, limits);
        let mut client = TcpStream::connect(address).await.unwrap();
        let (mut connection, _) = listener.accept().await;
        let begun = Instant::now();
        for _ in 0..3 {
            client.write_all(b"x").await.unwrap();
            assert_eq!(connection.read_u8().await.unwrap(), b'x');
            tokio::time::advance(Duration::from_secs(10)).await;
        }
        // The last octet came at 20 seconds.
        let error = connection.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= Duration::from_secs(35));
        // Its place is free again only when it is gone.
        let _second = TcpStream::connect(address).await.unwrap();
        assert!(
            tokio::time::timeout(Duration::from_secs(60), listener.accept())
                .await
                .is_err()
        );
        drop(connection);
        listener.accept().await;
    }
}
