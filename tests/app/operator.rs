//! The operator's commands against a running gateway, and without one.

use std::process::Stdio;

use graphpost::sandbox::Rule;
use graphpost::spool::State;
use serde_json::Value;
use tokio::process::Command;

use crate::rig::{DEADLINE, Site, send};

/// Runs graphpost; its exit status and what it printed.
async fn run(site: &Site, arguments: &[&str]) -> (Option<i32>, String, String) {
    let run = Command::new(env!("CARGO_BIN_EXE_graphpost"))
        .args(arguments)
        .arg("--config")
        .arg(site.path())
        .env("USER", "operator")
        .env_remove("SUDO_USER")
        .stdin(Stdio::null())
        .output();
    let output = tokio::time::timeout(DEADLINE, run).await.unwrap().unwrap();
    let text = |octets| String::from_utf8(octets).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn sees_and_steers() {
    let site = Site::new().await;
    let (code, _, text) = run(&site, &["status"]).await;
    assert_eq!(code, Some(1));
    assert!(
        text.contains("no gateway answers at") && text.contains("help:"),
        "{text}"
    );

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
    for subject in ["one", "two", "three"] {
        send(gateway.smtp_addresses()[0], "erp@contoso.com", subject).await;
    }
    // The refusal has closed the mailbox, and nothing is under way any more.
    let held = async {
        loop {
            let messages = gateway.spool().statistics().await.unwrap().messages;
            if messages.of(State::Held) > 0 && messages.of(State::Sending) == 0 {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, held).await.unwrap();

    let (code, text, errors) = run(&site, &["status"]).await;
    assert_eq!(code, Some(0), "{text}{errors}");
    for word in [
        "service@contoso.com",
        "something must be mended",
        "ErrorAccessDenied",
        "accepting mail",
    ] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let (_, text, _) = run(&site, &["status", "--json"]).await;
    let status: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["ready"], true);

    let (code, text, _) = run(&site, &["status", "--tls"]).await;
    assert_eq!(
        (code, text.as_str()),
        (Some(0), "since the gateway started, no client needed old TLS\n")
    );
    let (_, text, _) = run(&site, &["status", "--tls", "--json"]).await;
    assert_eq!(text, "[]\n");

    let (_, text, _) = run(&site, &["queue", "list", "--jsonl"]).await;
    let ids: Vec<String> = text
        .lines()
        .map(|it| {
            serde_json::from_str::<Value>(it).unwrap()["id"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(ids.len(), 3);

    let out = site.directory.path().join("export");
    let (code, text, errors) = run(&site, &["queue", "export", "--out", out.to_str().unwrap()]).await;
    assert_eq!(code, Some(0), "{text}{errors}");
    let eml = std::fs::read_to_string(out.join(format!("{}.eml", ids[1]))).unwrap();
    assert!(eml.contains("Subject: two"), "{eml}");
    let record = std::fs::read_to_string(out.join(format!("{}.json", ids[1]))).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["envelope"]["recipients"][0], "ann@example.com");

    let (code, text, errors) = run(&site, &["queue", "hold", &ids[0], "--reason", "wait"]).await;
    assert_eq!(code, Some(0), "{text}{errors}");
    // Many at once need a word.
    let (code, _, text) = run(&site, &["queue", "delete", "--state", "queued,held"]).await;
    assert!(code == Some(1) && text.contains("--yes"), "{text}");

    site.cloud.set_faults(Vec::new()).unwrap();
    let (code, text, errors) = run(&site, &["queue", "flush"]).await;
    assert_eq!(code, Some(0), "{text}{errors}");
    assert!(text.starts_with("2 messages"), "{text}");
    let subjects = || async {
        let delivered = site.cloud.deliveries();
        let mut subjects: Vec<String> = delivered.into_iter().map(|it| it.subject).collect();
        subjects.sort();
        subjects
    };
    tokio::time::timeout(DEADLINE, site.cloud.wait_for(2))
        .await
        .unwrap();
    assert_eq!(subjects().await, ["three", "two"]);
    let (code, text, errors) = run(&site, &["queue", "release", &ids[0]]).await;
    assert_eq!(code, Some(0), "{text}{errors}");
    tokio::time::timeout(DEADLINE, site.cloud.wait_for(3))
        .await
        .unwrap();
    assert_eq!(subjects().await, ["one", "three", "two"]);

    gateway.shutdown().await;
    // Reading needs no gateway.
    let (code, text, errors) = run(&site, &["queue", "list", "--all", "--jsonl"]).await;
    assert_eq!((code, text.lines().count()), (Some(0), 3), "{text}{errors}");
}
