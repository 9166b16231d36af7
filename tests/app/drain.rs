//! SIGTERM to the real program: what is under way ends, what is in the queue stays, nothing is lost.

use std::time::Duration;

use graphpost::sandbox::Rule;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::process::{Process, log_of};
use crate::rig::{DEADLINE, Site, send};

fn slow(delay_ms: u64) -> Vec<Rule> {
    vec![Rule {
        operation: Some("sendMail".to_owned()),
        action: "delay".to_owned(),
        delay_ms,
        ..Rule::default()
    }]
}

async fn accepts(process: &Process, subject: &str) {
    let codes = send(process.smtp, "erp@contoso.com", subject).await;
    assert_eq!(codes.last().map(String::as_str), Some("250"), "{codes:?}");
}

/// Delivered at once; the answer comes later.
async fn delivered(site: &Site, count: usize) -> Vec<String> {
    let delivered = tokio::time::timeout(DEADLINE, site.cloud.wait_for(count)).await;
    let delivered = delivered.unwrap_or_else(|_| panic!("{}", log_of(site)));
    delivered.into_iter().map(|it| it.subject).collect()
}

/// A request under way is waited for, a message that is just coming in is still taken, and both are
/// known to the next start.
#[tokio::test(flavor = "multi_thread")]
async fn waits_for_what_is_under_way() {
    let site = Site::new().await;
    site.cloud.set_faults(slow(1_500)).unwrap();
    let process = Process::start(&site).await;
    accepts(&process, "under way").await;
    delivered(&site, 1).await;

    // In the middle of its data.
    let mut client = BufReader::new(TcpStream::connect(process.smtp).await.unwrap());
    let mut line = String::new();
    client.read_line(&mut line).await.unwrap();
    for command in [
        "HELO client.example\r\n",
        "MAIL FROM:<erp@contoso.com>\r\n",
        "RCPT TO:<ann@example.com>\r\n",
        "DATA\r\n",
    ] {
        client.write_all(command.as_bytes()).await.unwrap();
        line.clear();
        client.read_line(&mut line).await.unwrap();
    }
    assert!(line.starts_with("354"), "{line}");
    client.write_all(b"Subject: coming in\r\n").await.unwrap();

    process.signal("TERM");
    crate::outages::says(&site, &["stopping"]).await;
    client.write_all(b"\r\nHello\r\n.\r\n").await.unwrap();
    line.clear();
    client.read_line(&mut line).await.unwrap();
    assert!(line.starts_with("250"), "{line}");

    let status = process.ended().await;
    assert_eq!(status.code(), Some(0), "{}", log_of(&site));
    assert_eq!(delivered(&site, 1).await, ["under way"], "nothing is begun");

    site.cloud.set_faults(Vec::new()).unwrap();
    let _process = Process::start(&site).await;
    assert_eq!(delivered(&site, 2).await, ["under way", "coming in"]);
}

/// The time is over before the answer comes: it stops all the same, and the next start does with the
/// unknown outcome what the policy says.
#[tokio::test(flavor = "multi_thread")]
async fn stops_when_the_time_is_over() {
    for (policy, deliveries) in [("retry", 2), ("verify", 1)] {
        let site = Site::new().await;
        site.configure(|it| {
            it.replace(
                "[delivery]\n",
                &format!(
                    "[delivery]\ndrain_timeout = \"1s\"\nunknown = \"{policy}\"\nverify_time = \"2s\"\n"
                ),
            )
        });
        site.cloud.set_faults(slow(600_000)).unwrap();
        let process = Process::start(&site).await;
        accepts(&process, "one").await;
        delivered(&site, 1).await;
        process.signal("TERM");
        let status = process.ended().await;
        assert_eq!(status.code(), Some(0), "{}", log_of(&site));

        site.cloud.set_faults(Vec::new()).unwrap();
        let process = Process::start(&site).await;
        let word = if policy == "verify" {
            "found in Sent Items"
        } else {
            "msg=sent"
        };
        crate::outages::says(&site, &[word]).await;
        assert_eq!(delivered(&site, deliveries).await.len(), deliveries, "{policy}");
        process.signal("TERM");
        process.ended().await;
    }
}

/// A second signal stops at once; what was accepted is there at the next start.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_does_not_wait() {
    let site = Site::new().await;
    site.configure(|it| it.replace("[delivery]\n", "[delivery]\ndrain_timeout = \"1h\"\n"));
    site.cloud.set_faults(slow(600_000)).unwrap();
    let process = Process::start(&site).await;
    accepts(&process, "one").await;
    delivered(&site, 1).await;
    process.signal("TERM");
    crate::outages::says(&site, &["stopping"]).await;
    process.signal("TERM");
    tokio::time::timeout(Duration::from_secs(60), process.ended())
        .await
        .unwrap();
    site.cloud.set_faults(Vec::new()).unwrap();
    let _process = Process::start(&site).await;
    assert_eq!(delivered(&site, 2).await.len(), 2, "twice rather than never");
}
