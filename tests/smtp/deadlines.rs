//! Slow clients. Time stands still but for the waiting: hours pass in milliseconds.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::relay::{Client, Relay, Settings};

const MINUTE: Duration = Duration::from_secs(60);

/// A relay and a client on a pipe, with the default limits of the configuration.
async fn start() -> (Relay, Client<DuplexStream>, JoinHandle<()>) {
    let relay = Relay::start(&Settings::default()).await;
    let (client, server) = tokio::io::duplex(4096);
    let handle = relay.handle.clone();
    let served = tokio::spawn(async move {
        let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
        handle.converse(0, server, client, CancellationToken::new()).await;
    });
    // From here on the clock jumps to the next deadline whenever nothing else is to be done.
    tokio::time::pause();
    let mut client = Client::patient(client);
    assert!(client.reply().await.starts_with("220 "));
    (relay, client, served)
}

async fn begin_data(client: &mut Client<DuplexStream>) {
    client.expect("EHLO x", "250").await;
    client.expect("MAIL FROM:<erp@contoso.com>", "250").await;
    client.expect("RCPT TO:<a@b.example>", "250").await;
    client.expect("DATA", "354").await;
}

#[tokio::test]
async fn a_silent_client_is_told_after_five_minutes() {
    let (_relay, mut client, served) = start().await;
    let start = Instant::now();
    assert!(client.reply().await.starts_with("421 4.4.2"));
    assert_eq!(client.line().await, None);
    assert_eq!(start.elapsed().as_secs(), 300);
    drop(client);
    served.await.unwrap();
}

/// The deadline is for the whole line: an octet now and then is no excuse.
#[tokio::test]
async fn a_dripping_command_has_no_longer() {
    let (_relay, mut client, _served) = start().await;
    let start = Instant::now();
    let mut sent = 0;
    while client.try_send("N").await.is_ok() && sent < 1000 {
        sent += 1;
        sleep(Duration::from_secs(10)).await;
    }
    assert!(client.reply().await.starts_with("421 4.4.2"));
    assert!(
        start.elapsed() < Duration::from_secs(320),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn slow_data_is_taken_within_half_an_hour() {
    let (relay, mut client, _served) = start().await;
    begin_data(&mut client).await;
    let start = Instant::now();
    for _ in 0..60 {
        client.send("A line of some thirty characters.\r\n").await;
        sleep(Duration::from_secs(20)).await;
    }
    assert_eq!(start.elapsed().as_secs(), 20 * 60);
    // The queue has a thread of its own, for which time does not stand still.
    tokio::time::resume();
    client.expect(".", "250 2.0.0").await;
    assert_eq!(relay.queue().await.len(), 1);
}

#[tokio::test]
async fn slow_data_ends_after_half_an_hour() {
    let (relay, mut client, _served) = start().await;
    begin_data(&mut client).await;
    let start = Instant::now();
    while client
        .try_send("A line of some thirty characters.\r\n")
        .await
        .is_ok()
        && start.elapsed() < 60 * MINUTE
    {
        sleep(Duration::from_secs(20)).await;
    }
    assert!(client.reply().await.starts_with("421 4.4.2"));
    assert!(start.elapsed() <= 31 * MINUTE, "{:?}", start.elapsed());
    assert_eq!(relay.queue().await.len(), 0);
}

/// An octet now and then keeps no connection open for half an hour.
#[tokio::test]
async fn dripping_data_ends_after_three_minutes() {
    let (relay, mut client, _served) = start().await;
    begin_data(&mut client).await;
    let start = Instant::now();
    while client.try_send("x").await.is_ok() && start.elapsed() < 60 * MINUTE {
        sleep(Duration::from_secs(10)).await;
    }
    assert!(
        client
            .reply()
            .await
            .starts_with("421 4.4.2 The data comes too slowly")
    );
    assert!(start.elapsed() <= 4 * MINUTE, "{:?}", start.elapsed());
    assert_eq!(relay.queue().await.len(), 0);
}

#[tokio::test]
async fn stalled_data_ends_after_three_minutes() {
    let (relay, mut client, _served) = start().await;
    begin_data(&mut client).await;
    client.send("Subject: x\r\n").await;
    let start = Instant::now();
    assert!(client.reply().await.starts_with("421 4.4.2"));
    assert_eq!(start.elapsed().as_secs(), 180);
    assert_eq!(relay.queue().await.len(), 0);
    assert_eq!(
        relay.metric("graphpost_smtp_messages_total{listener=\"test\",result=\"refused\"}"),
        1
    );
}

#[tokio::test]
async fn a_connection_lasts_two_hours() {
    let (_relay, mut client, _served) = start().await;
    let start = Instant::now();
    loop {
        sleep(MINUTE).await;
        if client.try_send("NOOP\r\n").await.is_err() {
            break;
        }
        let reply = client.reply().await;
        if reply.starts_with("421 4.4.2") {
            break;
        }
        assert!(reply.starts_with("250"), "{reply}");
        assert!(start.elapsed() < 180 * MINUTE);
    }
    assert!(
        start.elapsed() >= 120 * MINUTE && start.elapsed() <= 121 * MINUTE,
        "{:?}",
        start.elapsed()
    );
}

/// A client that does not read our replies is not waited for either.
#[tokio::test]
async fn a_client_that_does_not_read() {
    let (_relay, client, served) = start().await;
    let start = Instant::now();
    let mut stream = client.into_inner();
    // Far more replies than the pipe holds.
    while let Ok(Ok(())) = tokio::time::timeout(60 * MINUTE, stream.write_all(&b"NOOP\r\n".repeat(100))).await
    {
    }
    assert!(start.elapsed() < 20 * MINUTE, "{:?}", start.elapsed());
    drop(stream);
    served.await.unwrap();
}
