//! What the admin address and the control socket show and do.

use graphpost::sandbox::Rule;
use serde_json::Value;

use crate::rig::{DEADLINE, Site, body, control, http, send};

const QUIET: &str = "127.0.0.1";

#[tokio::test]
async fn shows_what_an_operator_wants_to_know() {
    let site = Site::new().await;
    let gateway = site.start().await;
    let admin = gateway.admin_address().unwrap();
    send(gateway.smtp_addresses()[0], "erp@contoso.com", "one").await;
    tokio::time::timeout(DEADLINE, site.cloud.wait_for(1))
        .await
        .unwrap();

    let metrics = http(admin, "GET /metrics", QUIET).await;
    assert!(
        metrics.contains("content-type: application/openmetrics-text"),
        "{metrics}"
    );
    for line in [
        r#"graphpost_smtp_messages_total{listener="plain",result="accepted"} 1"#,
        r#"graphpost_graph_requests_total{operation="sendMail",code="202"} 1"#,
        "graphpost_spool_free_bytes ",
        "# EOF",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    for (path, want) in [("/livez", "ok"), ("/readyz", "ready"), ("/healthz", "ready")] {
        let answer = http(admin, &format!("GET {path}"), QUIET).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && body(&answer).starts_with(want),
            "{answer}"
        );
    }
    let page = http(admin, "GET /", QUIET).await;
    assert!(
        page.contains("content-security-policy: default-src 'none'") && page.contains("Accepting mail."),
        "{page}"
    );
    let status: Value = serde_json::from_str(body(&http(admin, "GET /api/status", QUIET).await)).unwrap();
    assert_eq!(status["ready"], true);
    gateway.shutdown().await;
}

/// A page elsewhere can make a browser ask, but not by our name; and on TCP nothing can be changed.
#[tokio::test]
async fn is_no_use_to_a_hostile_page() {
    let site = Site::new().await;
    let gateway = site.start().await;
    let admin = gateway.admin_address().unwrap();
    let answer = http(admin, "GET /api/queue", "evil.example").await;
    assert!(answer.starts_with("HTTP/1.1 421 "), "{answer}");
    for path in ["/api/queue", "/api/flush"] {
        let answer = http(admin, &format!("POST {path}"), QUIET).await;
        assert!(
            answer.starts_with("HTTP/1.1 405 ") || answer.starts_with("HTTP/1.1 404 "),
            "{answer}"
        );
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn stays_ready_while_graph_is_down_and_the_queue_is_steered() {
    let site = Site::new().await;
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
    let admin = gateway.admin_address().unwrap();
    let codes = send(gateway.smtp_addresses()[0], "erp@contoso.com", "one").await;
    assert_eq!(codes.last().unwrap(), "250");
    let held = async {
        loop {
            let answer = http(admin, "GET /api/queue?state=held", QUIET).await;
            let entries: Value = serde_json::from_str(body(&answer)).unwrap();
            if let Some(entry) = entries.as_array().and_then(|it| it.first()) {
                return entry.clone();
            }
            tokio::task::yield_now().await;
        }
    };
    let entry = tokio::time::timeout(DEADLINE, held).await.unwrap();
    assert!(
        entry["reason"].as_str().unwrap().contains("ErrorAccessDenied"),
        "{entry}"
    );
    let ready = http(admin, "GET /readyz?verbose", QUIET).await;
    assert!(ready.starts_with("HTTP/1.1 200 "), "{ready}");
    let status = http(admin, "GET /api/status", QUIET).await;
    let status: Value = serde_json::from_str(body(&status)).unwrap();
    assert_eq!(
        status["delivery"]["lanes"][0]["closed"]["because"], "hold",
        "{status}"
    );

    // Only our own user may open the socket.
    use std::os::unix::fs::PermissionsExt as _;
    let socket = site.control_socket();
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let answer = control(&socket, "POST /api/flush", r#"{"who":"root","unknown":1}"#).await;
    assert!(answer.starts_with("HTTP/1.1 422 "), "{answer}");

    site.cloud.set_faults(Vec::new()).unwrap();
    let answer = control(&socket, "POST /api/flush", r#"{"who":"root","reason":"granted"}"#).await;
    assert_eq!(body(&answer), r#"{"messages":1}"#, "{answer}");
    tokio::time::timeout(DEADLINE, site.cloud.wait_for(1))
        .await
        .unwrap();
    gateway.shutdown().await;
    assert!(!socket.exists(), "the socket goes with the gateway");
}
