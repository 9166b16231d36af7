//! Clients behind a load balancer that speaks the PROXY protocol.

use tokio::net::TcpStream;

use crate::relay::{Client, Relay, Settings};

/// A relay for 10.1.0.0/16 behind a proxy on this machine.
async fn behind_a_proxy(tls: &str) -> Relay {
    Relay::start(&Settings {
        listener: format!(
            "proxy_protocol_from = [\"127.0.0.1\"]\nnetworks = [\"10.1.0.0/16\", \"fd00::/8\"]\n{tls}"
        ),
        smtp: "max_connections_per_address = 2\nmax_messages_per_minute = 1".into(),
        ..Settings::default()
    })
    .await
}

fn v1(client: &str) -> String {
    format!("PROXY TCP4 {client} 10.9.9.9 40000 25\r\n")
}

fn v2(client: [u8; 4]) -> Vec<u8> {
    let fixed = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c";
    [&fixed[..], &client, &[10, 9, 9, 9, 0x9c, 0x40, 0, 25]].concat()
}

async fn send_one(client: &mut Client<TcpStream>) -> String {
    client.expect("EHLO x", "250").await;
    client.expect("MAIL FROM:<erp@contoso.com>", "250").await;
    client.expect("RCPT TO:<a@b.example>", "250").await;
    let reply = client.say("DATA").await;
    if reply.starts_with("354") {
        return client.say("Subject: x\r\n\r\nx\r\n.").await;
    }
    reply
}

#[tokio::test]
async fn the_header_says_who_the_client_is() {
    let relay = behind_a_proxy("").await;
    let headers = [v1("10.1.2.3").into_bytes(), v2([10, 1, 2, 4])];
    for header in &headers {
        let mut client = relay.connect().await;
        // The greeting waits for the header, and the header for nothing; octet by octet too.
        for octet in header {
            client.send([*octet]).await;
        }
        assert!(client.reply().await.starts_with("220"));
        assert!(send_one(&mut client).await.starts_with("250"));
    }
    // All limits are those of the client, not of the proxy.
    let mut again = relay.connect().await;
    again.send(&headers[0]).await;
    assert!(again.reply().await.starts_with("220"));
    assert!(send_one(&mut again).await.starts_with("450 4.7.1"));
    let mut third = relay.connect().await;
    third.send(&headers[0]).await;
    assert!(third.reply().await.starts_with("220"));
    let mut fourth = relay.connect().await;
    fourth.send(&headers[0]).await;
    assert!(fourth.reply().await.starts_with("421 4.3.2"));
    assert_eq!(fourth.line().await, None);

    let clients: Vec<_> = relay
        .queue()
        .await
        .iter()
        .map(|it| it.submission.origin.client.to_string())
        .collect();
    assert_eq!(clients, ["10.1.2.3", "10.1.2.4"]);
}

#[tokio::test]
async fn who_may_not_connect_may_not_through_the_proxy_either() {
    let relay = behind_a_proxy("").await;
    for header in [
        v1("10.2.2.3").into_bytes(),
        v2([10, 2, 2, 3]),
        // Its own connections count as its own, and it is not in the listener's networks.
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00".to_vec(),
    ] {
        let mut client = relay.connect().await;
        client.send(&header).await;
        assert!(client.reply().await.starts_with("554 5.7.1"));
        assert_eq!(client.line().await, None);
    }
}

#[tokio::test]
async fn a_proxy_that_sends_no_header_is_hung_up_on() {
    let relay = behind_a_proxy("").await;
    for wire in [
        "EHLO x\r\n",
        "PROXY TCP4 10.1.2.3\r\n",
        "PROXY TCP5 ",
        "\r\n\r\n\0\r\nQUIT\n\x31\x11\0\0",
    ] {
        let mut client = relay.connect().await;
        client.send(wire).await;
        assert_eq!(client.line().await, None, "{wire:?}");
    }
    let mut client = relay.connect().await;
    client.send("PROXY").await;
    drop(client);
    let rejected = "graphpost_smtp_rejections_total{listener=\"test\",result=\"proxy\"}";
    while relay.metric(rejected) < 5 {
        tokio::task::yield_now().await;
    }
    assert_eq!(relay.metric("graphpost_smtp_sessions{listener=\"test\"}"), 0);
}

#[tokio::test]
async fn from_others_the_header_is_garbage() {
    let relay = Relay::start(&Settings {
        listener: "proxy_protocol_from = [\"10.0.0.5\"]".into(),
        ..Settings::default()
    })
    .await;
    let mut client = relay.connect().await;
    assert!(client.reply().await.starts_with("220"));
    client.expect(v1("10.1.2.3").trim_end(), "500").await;
    assert!(send_one(&mut client).await.starts_with("250"));
    assert_eq!(
        relay.queue().await[0].submission.origin.client.to_string(),
        "127.0.0.1"
    );
}

/// The header comes before TLS, and its last octet is where TLS begins.
#[tokio::test]
async fn tls_follows_the_header() {
    let relay = behind_a_proxy("tls = \"implicit\"").await;
    let mut client = relay.connect().await;
    client.send(v1("10.1.2.3")).await;
    let mut client = client.start_tls(&relay.certificate).await;
    assert!(client.reply().await.starts_with("220"));
    client.expect("QUIT", "221").await;
}
