//! Who may connect, how many, and how it all stops; what changes while it runs.

use std::sync::Arc;

use graphpost::metrics::Metrics;
use graphpost::policy::Policy;
use graphpost::smtp::Server;
use tokio::net::TcpStream;

use crate::relay::{Relay, Settings};

#[tokio::test]
async fn a_client_from_elsewhere_is_told_and_sent_away() {
    let settings = Settings {
        listener: "networks = [\"10.0.0.0/8\"]".into(),
        ..Settings::default()
    };
    let relay = Relay::start(&settings).await;
    for _ in 0..3 {
        let mut client = relay.connect().await;
        assert!(
            client
                .reply()
                .await
                .starts_with("554 5.7.1 This address may not connect")
        );
        assert_eq!(client.line().await, None);
    }
    assert_eq!(
        relay.metric("graphpost_smtp_rejections_total{listener=\"test\",result=\"network\"}"),
        3
    );
    assert_eq!(relay.metric("graphpost_smtp_sessions{listener=\"test\"}"), 0);
}

#[tokio::test]
async fn connections_are_limited_by_address_and_in_all() {
    for limit in [
        "max_connections_per_address = 2",
        "max_connections = 2\nmax_connections_per_address = 2",
    ] {
        let relay = Relay::start(&Settings {
            smtp: limit.into(),
            ..Settings::default()
        })
        .await;
        let mut first = relay.connect().await;
        let mut second = relay.connect().await;
        assert!(first.reply().await.starts_with("220"));
        assert!(second.reply().await.starts_with("220"));
        let mut third = relay.connect().await;
        assert!(third.reply().await.starts_with("421 4.3.2"));
        assert_eq!(third.line().await, None);
        // The others notice nothing, and a place that is given back is taken again.
        first.expect("EHLO x", "250").await;
        second.expect("QUIT", "221").await;
        assert!(second.hung_up().await);
        drop((second, third));
        loop {
            let mut next = relay.connect().await;
            if next.reply().await.starts_with("220") {
                break;
            }
        }
    }
}

/// Garbage on the port, and clients that hang up at once, are nobody else's business.
#[tokio::test]
async fn rude_clients_do_not_disturb_others() {
    let relay = Relay::start(&Settings::default()).await;
    let mut honest = relay.connect().await;
    honest.reply().await;
    honest.expect("EHLO x", "250").await;
    for garbage in [
        &b"\0\0\0\0\r\n"[..],
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\r\n\r\n\r\n",
    ] {
        let mut rude = relay.connect().await;
        rude.send(garbage).await;
        drop(rude);
        drop(TcpStream::connect(relay.address).await.unwrap());
    }
    honest.expect("MAIL FROM:<erp@contoso.com>", "250").await;
    honest.expect("RCPT TO:<a@b.example>", "250").await;
    honest.expect("DATA", "354").await;
    honest.expect("x\r\n.", "250").await;
}

#[tokio::test]
async fn stopping_lets_data_end_and_tells_the_idle() {
    let relay = Relay::start(&Settings::default()).await;
    let mut idle = relay.connect().await;
    idle.reply().await;
    let mut busy = relay.connect().await;
    busy.reply().await;
    busy.expect("EHLO x", "250").await;
    busy.expect("MAIL FROM:<erp@contoso.com>", "250").await;
    busy.expect("RCPT TO:<a@b.example>", "250").await;
    busy.expect("DATA", "354").await;
    busy.send("Subject: x\r\n").await;

    relay.stopping.cancel();
    assert!(idle.reply().await.starts_with("421 4.3.2"));
    assert_eq!(idle.line().await, None);
    busy.expect("\r\nbody\r\n.", "250 2.0.0").await;
    assert!(busy.reply().await.starts_with("421 4.3.2"));
    drop((idle, busy));
    relay.task.await.unwrap();
    assert!(
        TcpStream::connect(relay.address).await.is_err(),
        "nobody listens any more"
    );
    assert_eq!(relay.spool.list(Default::default()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let relay = Relay::start(&Settings::default()).await;
    let mut config = relay.config.clone();
    config.listeners[0].address = relay.address;
    let metrics = Arc::new(Metrics::new());
    let policy = Arc::new(Policy::new(vec![]));
    let error = Server::bind(&config, policy, None, relay.spool.clone(), metrics)
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains(&relay.address.to_string()) && error.contains("ss -ltnp"),
        "{error}"
    );
}

#[tokio::test]
async fn policy_accounts_and_certificates_change_while_sessions_run() {
    let listener = "tls = \"starttls\"\nauth = \"optional\"";
    let relay = Relay::start(&Settings {
        listener: listener.into(),
        ..Settings::default()
    })
    .await;
    let mut client = relay.connect().await;
    client.reply().await;
    client.expect("EHLO x", "250").await;
    client.expect("MAIL FROM:<erp@contoso.com>", "250").await;
    client.expect("RSET", "250").await;
    client.expect("AUTH PLAIN AHNjYW5uZXIxAHNlY3JldA==", "235").await;

    relay.handle.set_policy(Arc::new(Policy::new(vec![])));
    client.expect("MAIL FROM:<erp@contoso.com>", "550 5.7.1").await;
    relay.handle.set_accounts(None);
    let mut other = relay.connect().await;
    other.reply().await;
    other.expect("EHLO x", "250").await;
    other
        .expect("AUTH PLAIN AHNjYW5uZXIxAHNlY3JldA==", "454 4.7.0")
        .await;

    // A certificate that cannot be opened any more: the old one serves, and the failure is named.
    assert_eq!(relay.handle.certificates().len(), 1);
    let files = relay.config.listeners[0].certificates[0].files().unwrap();
    let file = files.certificate.clone();
    std::fs::write(&file, "nonsense").unwrap();
    relay.handle.reload_certificates(&relay.config.listeners).await;
    let successful = "graphpost_tls_certificate_last_reload_successful{listener=\"test\"}";
    assert!(relay.metrics.encode().contains(&format!("{successful} 0")));
    other.expect("STARTTLS", "220").await;
    let mut secure = other.start_tls(&relay.certificate).await;
    secure.expect("EHLO x", "250").await;
}
