//! What needs a person is told to the operator's own systems, by a whole gateway.

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use graphpost::sandbox::Rule;

use crate::rig::{DEADLINE, Site, send};

/// Takes one notice.
async fn notice(listener: &TcpListener) -> Value {
    let receive = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut octets = Vec::new();
        // The JSON comes last, and says itself where it ends.
        let json = loop {
            assert!(stream.read_buf(&mut octets).await.unwrap() > 0);
            let text = String::from_utf8_lossy(&octets);
            let body = text.split_once("\r\n\r\n").map(|(_, body)| body);
            if let Some(json) = body.and_then(|it| serde_json::from_str(it).ok()) {
                break json;
            }
        };
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        json
    };
    tokio::time::timeout(DEADLINE, receive).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn held_mail_and_a_full_queue_are_told() {
    let site = Site::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    site.configure(|it| {
        it.replace("[spool]", "[spool]\nmax_messages = 1")
            + &format!("[notify]\nwebhook_url = \"http://{address}/\"\n")
    });
    site.cloud
        .set_faults(vec![Rule {
            operation: Some("sendMail".to_owned()),
            action: "status".to_owned(),
            status: Some(403),
            code: Some("ErrorAccessDenied".into()),
            ..Rule::default()
        }])
        .unwrap();
    let gateway = site.start().await;
    let server = gateway.smtp_addresses()[0];
    send(server, "erp@contoso.com", "one").await;
    let held = notice(&listener).await;
    assert_eq!(
        (&held["event"], &held["mailbox"]),
        (&"held".into(), &"service@contoso.com".into())
    );

    let codes = send(server, "erp@contoso.com", "two").await;
    assert_eq!(codes.last().unwrap(), "452");
    let full = notice(&listener).await;
    assert_eq!(full["event"], "queue-full");
    assert!(
        full["reason"]
            .as_str()
            .unwrap()
            .contains("1 of at most 1 messages"),
        "{full}"
    );
    gateway.shutdown().await;
}
