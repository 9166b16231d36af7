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
    assert!(
        body(&ready).contains("\nFAIL  mailbox service@contoso.com  403 ErrorAccessDenied"),
        "{ready}"
    );
    assert!(
        body(&ready).contains("        fix: grant Mail.Send for this mailbox"),
        "{ready}"
    );
    let brief = http(admin, "GET /readyz", QUIET).await;
    assert_eq!(body(&brief), "ready\n");
    let status = http(admin, "GET /api/status", QUIET).await;
    let status: Value = serde_json::from_str(body(&status)).unwrap();
    assert_eq!(status["findings"][0]["status"], "fail", "{status}");
    let metrics = http(admin, "GET /metrics", QUIET).await;
    for line in [
        "graphpost_findings{check=\"mailbox\",status=\"fail\"} 1",
        "graphpost_findings{check=\"token\",status=\"fail\"} 0",
    ] {
        assert!(body(&metrics).contains(line), "{line}\n{metrics}");
    }
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

/// What Entra ID refuses is told where the operator looks, in the words of `graphpost check`.
#[tokio::test]
async fn a_refused_token_is_a_finding_until_one_is_given() {
    let site = Site::new().await;
    let refuse = Rule {
        operation: Some("token".to_owned()),
        action: "aadsts".to_owned(),
        code: Some(700_027.into()),
        ..Rule::default()
    };
    site.cloud.set_faults(vec![refuse]).unwrap();
    let gateway = site.start().await;
    let admin = gateway.admin_address().unwrap();
    let codes = send(gateway.smtp_addresses()[0], "erp@contoso.com", "one").await;
    assert_eq!(codes.last().unwrap(), "250");
    let found = async {
        loop {
            let answer = http(admin, "GET /api/status", QUIET).await;
            let status: Value = serde_json::from_str(body(&answer)).unwrap();
            // The delivery is told a moment after the token.
            if status["delivery"]["closed"].is_object() {
                return status;
            }
            tokio::task::yield_now().await;
        }
    };
    let status = tokio::time::timeout(DEADLINE, found).await.unwrap();
    let findings = status["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1, "{findings:#?}");
    assert_eq!(findings[0]["check"], "token");
    assert_eq!(findings[0]["status"], "fail");
    assert!(findings[0]["detail"].as_str().unwrap().contains("AADSTS700027"));
    let explanation = graphpost::identity::aadsts::explain(700_027).unwrap();
    assert_eq!(findings[0]["fix"], explanation.fix);
    let page = http(admin, "GET /", QUIET).await;
    assert!(page.contains("<b>Fix:</b> upload this certificate"), "{page}");
    let metrics = http(admin, "GET /metrics", QUIET).await;
    assert!(
        metrics.contains("graphpost_findings{check=\"token\",status=\"fail\"} 1"),
        "{metrics}"
    );
    gateway.shutdown().await;
}
