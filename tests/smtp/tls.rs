//! TLS of every age on one port: who is served, who is sent away, and what the admin hears of it.

use std::pin::Pin;
use std::time::Duration;

use graphpost::smtp::tls::devices::Device;
use openssl::ssl::{SslConnector, SslMethod, SslOptions, SslVerifyMode, SslVersion};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

use crate::relay::{Client, Relay, Settings};

/// Does the handshake of an old client.
async fn tls(
    stream: TcpStream,
    version: SslVersion,
    suites: &str,
) -> Result<Client<SslStream<TcpStream>>, String> {
    let mut builder = SslConnector::builder(SslMethod::tls_client()).unwrap();
    builder.set_verify(SslVerifyMode::NONE);
    builder.set_security_level(0);
    builder.clear_options(SslOptions::NO_TLSV1 | SslOptions::NO_TLSV1_1);
    builder.set_min_proto_version(Some(version)).unwrap();
    builder.set_max_proto_version(Some(version)).unwrap();
    builder.set_cipher_list(&format!("{suites}:@SECLEVEL=0")).unwrap();
    let configured = builder.build().configure().unwrap().verify_hostname(false);
    let mut stream = SslStream::new(configured.into_ssl("relay.example").unwrap(), stream).unwrap();
    match Pin::new(&mut stream).connect().await {
        Ok(()) => Ok(Client::new(stream)),
        Err(error) => Err(error.to_string()),
    }
}

async fn relay(listener: &str) -> Relay {
    Relay::start(&Settings {
        listener: listener.into(),
        ..Settings::default()
    })
    .await
}

async fn connect(relay: &Relay) -> TcpStream {
    TcpStream::connect(relay.address).await.unwrap()
}

fn handshakes(relay: &Relay, version: &str, profile: &str) -> u64 {
    relay.metric(&format!(
        "graphpost_smtp_tls_handshakes_total{{listener=\"test\",version=\"{version}\",profile=\"{profile}\"}}"
    ))
}

#[tokio::test]
async fn an_old_device_hands_over_its_mail_and_is_listed() {
    let relay = relay(
        "tls = \"auto\"\ntls_wait = \"1m\"\ncertificate = \"self-signed\"\n\
         tls_profile = \"legacy\"\nlegacy_networks = [\"127.0.0.1\"]",
    )
    .await;
    for (version, suites) in [
        (SslVersion::TLS1, "AES128-SHA"),
        (SslVersion::TLS1, "AES128-SHA"),
        (SslVersion::TLS1_1, "AES256-SHA"),
        (SslVersion::TLS1_2, "AES128-SHA"),
        (SslVersion::TLS1_2, "ECDHE-RSA-AES128-GCM-SHA256"),
    ] {
        // At once, as on port 465.
        let mut client = tls(connect(&relay).await, version, suites).await.unwrap();
        assert!(client.reply().await.starts_with("220"));
        client.expect("EHLO scanner", "250").await;
        client.expect("MAIL FROM:<erp@contoso.com>", "250").await;
        client.expect("RCPT TO:<a@b.example>", "250").await;
        client.expect("DATA", "354").await;
        client
            .send(format!(
                "Subject: x\r\n\r\n{}\r\n.\r\n",
                "long line ".repeat(10_000)
            ))
            .await;
        assert!(client.reply().await.starts_with("250"));
        client.expect("QUIT", "221").await;
    }
    // After STARTTLS; what was said before it is forgotten.
    let mut client = relay.connect().await;
    client.send("EHLO scanner\r\n").await;
    client.reply().await;
    client.reply().await;
    client.expect("STARTTLS", "220").await;
    let mut client = tls(client.into_inner(), SslVersion::TLS1, "AES128-SHA")
        .await
        .unwrap();
    client.expect("MAIL FROM:<erp@contoso.com>", "503").await;
    client.expect("EHLO scanner", "250").await;
    client.expect("MAIL FROM:<erp@contoso.com>", "250").await;

    assert_eq!(relay.queue().await.len(), 5);
    assert_eq!(
        relay.queue().await[0].submission.origin.tls.as_deref(),
        Some("TLSv1.0")
    );
    assert_eq!(handshakes(&relay, "TLSv1.0", "legacy"), 3);
    assert_eq!(handshakes(&relay, "TLSv1.1", "legacy"), 1);
    assert_eq!(handshakes(&relay, "TLSv1.2", "compat"), 1);
    assert_eq!(handshakes(&relay, "TLSv1.2", "modern"), 1);
    let mut devices: Vec<_> = relay
        .handle
        .tls_devices()
        .into_iter()
        .map(|it: Device| {
            assert_eq!(
                (it.client.to_string().as_str(), it.listener.as_str()),
                ("127.0.0.1", "test")
            );
            assert_eq!(it.refused, None);
            (it.version, it.needs.unwrap(), it.cipher.unwrap(), it.count)
        })
        .collect();
    devices.sort();
    let row = |version: &str, needs: &str, cipher: &str, count| {
        (version.into(), needs.into(), cipher.into(), count)
    };
    assert_eq!(
        devices,
        [
            row("TLSv1.0", "legacy", "AES128-SHA", 3),
            row("TLSv1.1", "legacy", "AES256-SHA", 1),
            row("TLSv1.2", "compat", "AES128-SHA", 1),
        ]
    );
}

#[tokio::test]
async fn a_device_that_is_not_named_is_refused_and_listed() {
    let relay =
        relay("tls = \"implicit\"\ntls_profile = \"legacy\"\nlegacy_networks = [\"10.1.9.0/24\"]").await;
    for _ in 0..2 {
        // The test's own certificate has an elliptic curve.
        let refused = tls(connect(&relay).await, SslVersion::TLS1, "ECDHE-ECDSA-AES128-SHA").await;
        let error = refused.err().unwrap();
        assert!(error.contains("protocol version"), "{error}");
    }
    let modern = tls(
        connect(&relay).await,
        SslVersion::TLS1_2,
        "ECDHE-ECDSA-AES128-GCM-SHA256",
    )
    .await;
    assert!(modern.unwrap().reply().await.starts_with("220"));
    let [device] = relay.handle.tls_devices().try_into().unwrap();
    assert_eq!((device.count, device.needs.as_deref()), (2, Some("legacy")));
    assert!(
        device
            .refused
            .unwrap()
            .contains("not in this listener's legacy_networks")
    );
    let rejections = "graphpost_smtp_rejections_total{listener=\"test\",result=\"tls\"}";
    assert_eq!(relay.metric(rejections), 2);
}

/// A client of plain SMTP is silent until it is greeted.
#[tokio::test]
async fn who_says_nothing_is_greeted_all_the_same() {
    let relay = relay("tls = \"auto\"\ntls_wait = \"1ms\"").await;
    let mut client = relay.connect().await;
    assert!(client.reply().await.starts_with("220"));
    client.expect("EHLO x", "250").await;
    client.expect("STARTTLS", "220").await;
    let mut client = client.start_tls(&relay.certificate).await;
    client.expect("EHLO x", "250").await;

    // Too late: nothing that could be said would be understood.
    let mut late = relay.connect().await;
    assert!(late.reply().await.starts_with("220"));
    late.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await;
    assert_eq!(late.line().await, None);
    let rejections = "graphpost_smtp_rejections_total{listener=\"test\",result=\"protocol\"}";
    assert_eq!(relay.metric(rejections), 1);
}

#[tokio::test(start_paused = true)]
async fn the_greeting_waits_no_longer_than_it_should() {
    let relay = relay("tls = \"auto\"\ntls_wait = \"7s\"").await;
    let begun = tokio::time::Instant::now();
    let mut client = Client::patient(connect(&relay).await);
    assert!(client.reply().await.starts_with("220"));
    assert!(begun.elapsed() >= Duration::from_secs(7), "{:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

/// The subject of the certificate that a client sees now.
async fn subject(relay: &Relay) -> String {
    let client = tls(connect(relay).await, SslVersion::TLS1_2, "ALL")
        .await
        .unwrap();
    let certificate = client.into_inner().ssl().peer_certificate().unwrap();
    let name = certificate.subject_name().entries().next().unwrap();
    String::from_utf8(name.data().as_slice().to_vec()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_is_replaced_is_soon_in_use_and_no_session_notices() {
    let relay = relay("tls = \"implicit\"").await;
    let successful = |relay: &Relay| {
        relay
            .metrics
            .encode()
            .lines()
            .find_map(|it| {
                it.strip_prefix("graphpost_tls_certificate_last_reload_successful{listener=\"test\"} ")
            })
            .map(str::to_owned)
    };
    let mut session = tls(connect(&relay).await, SslVersion::TLS1_2, "ALL")
        .await
        .unwrap();
    assert!(session.reply().await.starts_with("220"));
    let before = subject(&relay).await;

    let mut params = rcgen::CertificateParams::new(vec!["new.example".to_owned()]).unwrap();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "new.example");
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem() + &key.serialize_pem();
    let file = relay.directory().join("relay.pem");
    // Half written first, as a copy that takes its time.
    std::fs::write(&file, &pem[..100]).unwrap();
    while successful(&relay).as_deref() != Some("0") {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(subject(&relay).await, before);
    std::fs::write(&file, &pem).unwrap();
    while successful(&relay).as_deref() != Some("1") {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(subject(&relay).await, "new.example");
    session.expect("EHLO x", "250").await;
}
