//! Memory stays flat whatever is sent. A process of its own, for it looks at the process's memory;
//! and one test, for others would be in the figure.

#![allow(clippy::unwrap_used)]

#[path = "smtp/relay.rs"]
mod relay;

use relay::{Client, Relay, Settings};
use tokio::net::TcpStream;

/// The most memory this process has ever had, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|it| it.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

const MEGABYTE: usize = 1 << 20;

async fn send_megabytes(client: &mut Client<TcpStream>, count: usize) {
    let megabyte = vec![b'x'; MEGABYTE];
    for _ in 0..count {
        client.send(&megabyte).await;
    }
}

#[tokio::test]
async fn a_line_without_end_needs_no_memory() {
    let settings = Settings {
        tenant: "large_messages = true".to_owned(),
        smtp: format!("max_message_size = {}", 96 * MEGABYTE),
        ..Settings::default()
    };
    let relay = Relay::start(&settings).await;
    let mut client = relay.connect().await;
    client.reply().await;
    client.expect("EHLO x", "250").await;
    let before = peak();

    // As a command: thrown away as it comes, and the dialogue goes on behind it.
    send_megabytes(&mut client, 256).await;
    client.expect("", "500 5.5.2").await;
    // As mail data that is larger than the limit: thrown away.
    client.expect("MAIL FROM:<erp@contoso.com>", "250").await;
    client.expect("RCPT TO:<a@b.example>", "250").await;
    client.expect("DATA", "354").await;
    send_megabytes(&mut client, 160).await;
    client.expect("\r\n.", "552 5.3.4").await;
    let grown = peak() - before;
    assert!(grown < 16 * 1024, "{grown} KiB more for 416 MB");
    // Within the limit: to the disk as it comes.
    client.expect("MAIL FROM:<erp@contoso.com>", "250").await;
    client.expect("RCPT TO:<a@b.example>", "250").await;
    client.expect("DATA", "354").await;
    send_megabytes(&mut client, 64).await;
    client.expect("\r\n.", "250 2.0.0").await;
    let grown = peak() - before;
    assert!(grown < 32 * 1024, "{grown} KiB more for half a gigabyte");

    let sizes: Vec<u64> = relay.queue().await.iter().map(|it| it.size).collect();
    assert_eq!(sizes, [64 * MEGABYTE as u64 + 2]);
}
