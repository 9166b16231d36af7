//! What many connections may do together.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;

use crate::relay::{Relay, Settings};

#[tokio::test]
async fn an_account_sends_so_many_messages_a_minute() {
    let relay = Relay::start(&Settings {
        listener: "auth = \"optional\"".into(),
        smtp: "max_messages_per_minute = 2".into(),
        ..Settings::default()
    })
    .await;
    for number in 0..3 {
        let mut client = relay.connect().await;
        client.reply().await;
        client.expect("EHLO x", "250").await;
        client.expect("AUTH PLAIN AHNjYW5uZXIxAHNlY3JldA==", "235").await;
        client.expect("MAIL FROM:<erp@contoso.com>", "250").await;
        client.expect("RCPT TO:<a@b.example>", "250").await;
        if number < 2 {
            client.expect("DATA", "354").await;
            client.expect("x\r\n.", "250").await;
        } else {
            client.expect("DATA", "450 4.7.1").await;
            // The session goes on.
            client.expect("DATA", "503").await;
            client.expect("MAIL FROM:<erp@contoso.com>", "250").await;
        }
    }
    // Who has not logged in is somebody else, and on this machine not limited.
    let mut client = relay.connect().await;
    client.reply().await;
    client.expect("EHLO x", "250").await;
    for _ in 0..5 {
        client.expect("MAIL FROM:<erp@contoso.com>", "250").await;
        client.expect("RCPT TO:<a@b.example>", "250").await;
        client.expect("DATA", "354").await;
        client.expect("x\r\n.", "250").await;
    }
    assert_eq!(relay.queue().await.len(), 7);
    assert_eq!(
        relay.metric("graphpost_smtp_rejections_total{listener=\"test\",result=\"rate\"}"),
        1
    );
}

#[tokio::test]
async fn guessing_passwords_ends_in_a_lockout() {
    let relay = Relay::start(&Settings {
        listener: "auth = \"optional\"".into(),
        smtp: "max_auth_failures = 100\nlockout_after = 4".into(),
        ..Settings::default()
    })
    .await;
    // The printer has logged in before.
    let mut printer = relay.connect().await;
    printer.reply().await;
    printer.expect("EHLO x", "250").await;
    printer.expect("AUTH PLAIN AHNjYW5uZXIxAHNlY3JldA==", "235").await;

    let mut attacker = relay.connect().await;
    attacker.reply().await;
    attacker.expect("EHLO x", "250").await;
    for _ in 0..4 {
        attacker
            .expect("AUTH PLAIN AHVzM3JAY29udG9zby5jb20Ad3Jvbmc=", "535")
            .await;
    }
    // Now not even the right password is looked at.
    attacker
        .expect("AUTH PLAIN AHVzM3JAY29udG9zby5jb20AcGFzcw==", "421 4.7.0")
        .await;
    assert_eq!(attacker.line().await, None);
    // The printer, behind the same address, still gets in; and mail without a login still goes.
    let mut printer = relay.connect().await;
    printer.reply().await;
    printer.expect("EHLO x", "250").await;
    printer.expect("MAIL FROM:<erp@contoso.com>", "250").await;
    printer.expect("RSET", "250").await;
    printer.expect("AUTH PLAIN AHNjYW5uZXIxAHNlY3JldA==", "235").await;
    assert_eq!(
        relay.metric("graphpost_smtp_rejections_total{listener=\"test\",result=\"lockout\"}"),
        1
    );
}

/// What old Ricoh devices and FortiAnalyzer want.
#[tokio::test]
async fn cram_md5_on_a_listener_that_asks_for_it() {
    let relay = Relay::start(&Settings {
        listener: "auth = \"required\"\ncram_md5 = true\nplaintext_auth = []".into(),
        ..Settings::default()
    })
    .await;
    let mut client = relay.connect().await;
    client.reply().await;
    assert!(client.say("EHLO x").await.ends_with("AUTH=CRAM-MD5"));
    for (password, code) in [("wrong", "535"), ("tanstaaftanstaaf", "235")] {
        let challenge = client.say("AUTH CRAM-MD5").await;
        let challenge = BASE64_STANDARD
            .decode(challenge.strip_prefix("334 ").unwrap())
            .unwrap();
        let key = PKey::hmac(password.as_bytes()).unwrap();
        let digest = Signer::new(MessageDigest::md5(), &key)
            .unwrap()
            .sign_oneshot_to_vec(&challenge)
            .unwrap();
        let hex: String = digest.iter().map(|it| format!("{it:02x}")).collect();
        client
            .expect(&BASE64_STANDARD.encode(format!("Tim {hex}")), code)
            .await;
    }
    client.expect("MAIL FROM:<erp@contoso.com>", "250").await;
}
