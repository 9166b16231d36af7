//! What the gateway says of certificates that are about to end.

use std::path::Path;

use crate::rig::Site;

/// A certificate that ends in so many days, made by the program itself.
async fn certificate(site: &Site, directory: &str, days: &str) {
    std::fs::create_dir(site.file(directory)).unwrap();
    let arguments = [
        "cert", "new", "--bits", "2048", "--days", days, "--out", directory,
    ];
    let (said, content) = site.run(&arguments).await;
    assert!(content, "{said}");
}

fn credential(table: &str, directory: &str) -> String {
    let path = Path::new(directory);
    format!(
        "[{table}]\ncertificate = {:?}\nprivate_key = {:?}\n",
        path.join("graphpost.pem"),
        path.join("graphpost.key")
    )
}

fn lines<'a>(said: &'a str, words: &str) -> Vec<&'a str> {
    said.lines().filter(|it| it.contains(words)).collect()
}

#[tokio::test]
async fn every_certificate_is_spoken_of_in_time_and_once() {
    let site = Site::new().await;
    for (directory, days) in [("long", "400"), ("month", "30"), ("week", "6")] {
        certificate(&site, directory, days).await;
    }
    site.copy("expired.pem");
    let credentials = |current: &str, next: &str| {
        credential("tenant.credential", current) + &credential("tenant.next_credential", next)
    };
    let listeners = r#"
[[listener]]
name = "relay"
address = "127.0.0.1:0"
tls = "starttls"
certificate = "expired.pem"
[[listener]]
name = "submission"
address = "127.0.0.1:0"
tls = "starttls"
certificate = "month/graphpost.pem"
private_key = "month/graphpost.key"
"#;
    site.configure(&credentials("month", "long"), listeners);
    let mut gateway = site.serve().await;
    gateway.says("ready").await;

    // One line for each certificate, whatever it is used for.
    let soon = lines(&gateway.said, "certificate expires soon");
    assert_eq!(soon.len(), 1, "{}", gateway.said);
    for words in [
        r#"used_for="application (current), listener submission""#,
        r#"subject="CN=graphpost""#,
        "level=warn",
    ] {
        assert!(soon[0].contains(words), "{words} in {}", soon[0]);
    }
    // It may have been made within the same second.
    assert!(
        soon[0].contains("days_left=29") || soon[0].contains("days_left=30"),
        "{}",
        soon[0]
    );
    let expired = lines(&gateway.said, "certificate has expired");
    assert_eq!(expired.len(), 1, "{}", gateway.said);
    assert!(
        expired[0].contains(r#"used_for="listener relay""#) && expired[0].contains("level=error"),
        "{}",
        expired[0]
    );

    // Monitoring sees them all, also those that are well.
    let metrics = gateway.get("/metrics").await;
    for name in [
        r#"graphpost_credential_expiry_timestamp_seconds{credential="current"} 1"#,
        r#"graphpost_credential_expiry_timestamp_seconds{credential="next"} 1"#,
        r#"graphpost_tls_certificate_expiry_timestamp_seconds{listener="relay"} 1577836800"#,
        r#"graphpost_tls_certificate_expiry_timestamp_seconds{listener="submission"} 1"#,
    ] {
        assert!(metrics.contains(name), "{name} in {metrics}");
    }
    let ready = gateway.get("/readyz?verbose").await;
    for line in [
        "ready",
        "certificate of application (current) ends in ",
        "certificate of application (next) ends in ",
        "certificate of listener relay has expired, 2020-01-01T00:00:00Z",
    ] {
        assert!(ready.lines().any(|it| it.starts_with(line)), "{line} in {ready}");
    }
    assert_eq!(gateway.get("/readyz").await, "ready\n");
    let page = gateway.get("/").await;
    assert!(
        page.contains("<p class='state bad'>Certificate of listener relay: has expired.</p>")
            && page.contains("Certificate of application (next): ends in "),
        "{page}"
    );
    let status: serde_json::Value = serde_json::from_str(&gateway.get("/api/status").await).unwrap();
    assert_eq!(status["certificates"][0]["used_for"]["application"], "current");
    assert_eq!(status["certificates"][2]["used_for"]["listener"], "relay");
    assert_eq!(status["certificates"][2]["not_after"], "2020-01-01T00:00:00Z");
    let (shown, _) = site.run(&["status"]).await;
    assert!(shown.contains("has ended, listener relay"), "{shown}");

    // A reload repeats nothing, and speaks of what is new; and who is no longer there is shown no more.
    site.configure(&credential("tenant.credential", "week"), listeners);
    gateway.signal("HUP");
    gateway.says("configuration reloaded").await;
    let soon = lines(&gateway.said, "certificate expires soon");
    assert_eq!(soon.len(), 2, "{}", gateway.said);
    assert!(
        soon[1].contains(r#"used_for="application (current)""#)
            && (soon[1].contains("days_left=5") || soon[1].contains("days_left=6")),
        "{}",
        soon[1]
    );
    assert_eq!(lines(&gateway.said, "certificate has expired").len(), 1);
    let metrics = gateway.get("/metrics").await;
    assert!(
        !metrics.contains(r#"graphpost_credential_expiry_timestamp_seconds{credential="next"}"#),
        "{metrics}"
    );

    // A start says again what is below a threshold already.
    gateway.stop().await;
    let mut gateway = site.serve().await;
    gateway.says("ready").await;
    let said = gateway.stop().await;
    assert_eq!(lines(&said, "certificate expires soon").len(), 2, "{said}");
    assert_eq!(lines(&said, "certificate has expired").len(), 1, "{said}");
}
