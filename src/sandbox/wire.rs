//! The TCP below HTTP: connections that can be cut with a reset, and a port that can be closed for
//! a while.
//!
//! A gateway's hardest cases are answers that never arrive. They are made down here, because an
//! HTTP server can only finish its answers politely.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

/// Connections served at the same time; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;

/// The end of one connection, held by whoever may want to cut it.
#[derive(Debug, Default)]
pub(super) struct Cut {
    done: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Cut {
    /// Resets the connection: whatever the client waits for, it gets RST instead of an answer.
    pub(super) fn cut(&self) {
        self.done.store(true, Ordering::Release);
        if let Some(waker) = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take() {
            waker.wake();
        }
    }

    /// The error every read and write gives once the connection is cut.
    fn check(&self, stream: &TcpStream, context: &Context<'_>) -> io::Result<()> {
        // The waker is stored before the flag is read, so that a cut in between is not missed.
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(context.waker().clone());
        if self.done.load(Ordering::Acquire) {
            // With a linger of zero the close that follows sends RST, not FIN.
            stream.set_zero_linger()?;
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

/// All live connections, and whether the port is open.
pub(super) struct Switchboard {
    connections: Mutex<HashMap<u64, Arc<Cut>>>,
    next: AtomicU64,
    closed_until: watch::Sender<Option<Instant>>,
}

impl Switchboard {
    pub(super) fn new() -> Arc<Switchboard> {
        Arc::new(Switchboard {
            connections: Mutex::default(),
            next: AtomicU64::new(0),
            closed_until: watch::Sender::new(None),
        })
    }

    /// Closes the port for a while: new connections are refused and all others cut, except the one
    /// on which this was asked for.
    pub(super) fn close_for(&self, duration: Duration, except: Option<&Arc<Cut>>) {
        self.closed_until.send_replace(Some(Instant::now() + duration));
        for cut in self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
        {
            if !except.is_some_and(|it| Arc::ptr_eq(it, cut)) {
                cut.cut();
            }
        }
    }

    /// Opens the port again, before its time.
    pub(super) fn open(&self) {
        self.closed_until.send_replace(None);
    }
}

/// The listening port.
pub(super) struct Port {
    listener: Option<TcpListener>,
    address: SocketAddr,
    switchboard: Arc<Switchboard>,
    closed_until: watch::Receiver<Option<Instant>>,
    slots: Arc<Semaphore>,
}

impl Port {
    pub(super) fn new(listener: TcpListener, switchboard: Arc<Switchboard>) -> io::Result<Port> {
        let address = listener.local_addr()?;
        let closed_until = switchboard.closed_until.subscribe();
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Ok(Port {
            listener: Some(listener),
            address,
            switchboard,
            closed_until,
            slots,
        })
    }

    async fn next_stream(&mut self) -> TcpStream {
        loop {
            let closed_until = *self.closed_until.borrow_and_update();
            if let Some(until) = closed_until.filter(|until| *until > Instant::now()) {
                self.listener = None;
                tokio::select! {
                    () = tokio::time::sleep_until(until) => {}
                    _ = self.closed_until.changed() => {}
                }
                continue;
            }
            let listener = match &self.listener {
                Some(listener) => listener,
                None => match TcpListener::bind(self.address).await {
                    Ok(listener) => self.listener.insert(listener),
                    Err(_) => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    }
                },
            };
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => return stream,
                    // Out of descriptors, most likely: give the connections time to end.
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                },
                _ = self.closed_until.changed() => {}
            }
        }
    }
}

impl Listener for Port {
    type Io = Wire;
    type Addr = Peer;

    async fn accept(&mut self) -> (Wire, Peer) {
        let slots = Arc::clone(&self.slots);
        // The semaphore is never closed; without a permit the connection is merely not counted.
        let permit = slots.acquire_owned().await.ok();
        let stream = self.next_stream().await;
        // An error here means that the client has gone already, which reading will show.
        let _ = stream.set_nodelay(true);
        let number = self.switchboard.next.fetch_add(1, Ordering::Relaxed);
        let cut = Arc::new(Cut::default());
        self.switchboard
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(number, Arc::clone(&cut));
        let peer = Peer(Arc::clone(&cut));
        let switchboard = Arc::clone(&self.switchboard);
        (
            Wire {
                stream,
                cut,
                number,
                switchboard,
                _permit: permit,
            },
            peer,
        )
    }

    fn local_addr(&self) -> io::Result<Peer> {
        // Asked for by nobody here: the address is taken before the port is given away.
        Ok(Peer(Arc::default()))
    }
}

/// What a handler knows of the connection its request came on: how to cut it.
#[derive(Clone, Debug)]
pub(super) struct Peer(pub(super) Arc<Cut>);

impl Connected<IncomingStream<'_, Port>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Port>) -> Peer {
        stream.remote_addr().clone()
    }
}

/// One connection.
pub(super) struct Wire {
    stream: TcpStream,
    cut: Arc<Cut>,
    number: u64,
    switchboard: Arc<Switchboard>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.switchboard
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.number);
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.cut.check(&self.stream, context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.cut.check(&self.stream, context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.cut.check(&self.stream, context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.cut.check(&self.stream, context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.cut.check(&self.stream, context)?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
