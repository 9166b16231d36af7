//! How replies go over the wire: in one write each, and together where commands came together.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use crate::relay::{Relay, Settings};

/// A client that sends packets at once, and sees the writes of the server as they are.
struct Packets {
    to_server: Vec<Vec<u8>>,
    from_server: Arc<Mutex<Vec<String>>>,
}

impl AsyncRead for Packets {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(packet) = self.to_server.first_mut() {
            let fits = packet.len().min(buffer.remaining());
            buffer.put_slice(&packet[..fits]);
            packet.drain(..fits);
            if packet.is_empty() {
                self.to_server.remove(0);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Packets {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        self.from_server
            .lock()
            .unwrap()
            .push(String::from_utf8(octets.to_vec()).unwrap());
        Poll::Ready(Ok(octets.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The reply codes in each write.
async fn writes(packets: &[&str]) -> Vec<Vec<String>> {
    let relay = Relay::start(&Settings::default()).await;
    let from_server = Arc::default();
    let stream = Packets {
        to_server: packets.iter().map(|it| it.as_bytes().to_vec()).collect(),
        from_server: Arc::clone(&from_server),
    };
    let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
    relay
        .handle
        .converse(0, stream, client, CancellationToken::new())
        .await;
    let writes = from_server.lock().unwrap().clone();
    writes
        .iter()
        .map(|it| {
            assert!(it.ends_with("\r\n"), "{it}");
            it.lines()
                .filter(|it| it.as_bytes()[3] == b' ')
                .map(|it| it[..3].to_owned())
                .collect()
        })
        .collect()
}

#[tokio::test]
async fn each_reply_is_one_write() {
    let writes = writes(&["EHLO x\r\n", "NO", "OP\r\n", "AUTH LOGIN\r\n", "QUIT\r\n"]).await;
    assert_eq!(writes, [["220"], ["250"], ["250"], ["502"], ["221"]]);
}

#[tokio::test]
async fn replies_to_pipelined_commands_are_one_write() {
    let writes = writes(&[
        "EHLO x\r\nMAIL FROM:<erp@contoso.com>\r\nRCPT TO:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n",
        "x\r\n.\r\nRSET\r\nQUIT\r\n",
    ])
    .await;
    let want: [&[&str]; 3] = [
        &["220"],
        &["250", "250", "250", "250", "354"],
        &["250", "250", "221"],
    ];
    assert_eq!(writes, want);
}

#[tokio::test]
async fn a_burst_is_answered_in_full_and_in_pieces() {
    let burst = "NOOP\r\n".repeat(10_000) + "QUIT\r\n";
    let writes = writes(&[&burst]).await;
    let all: Vec<_> = writes.iter().flatten().collect();
    assert_eq!(all.len(), 10_002);
    assert!(all[1..10_001].iter().all(|it| *it == "250"));
    assert!(writes.len() < 200, "{}", writes.len());
    assert!(
        writes.iter().all(|it| it.len() < 2000),
        "replies are not held back without bound"
    );
}
