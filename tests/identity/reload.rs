//! Credentials that are replaced while the gateway runs, and which of two it uses.

use crate::rig::{Gateway, Site, credential_file, send};

const LISTENER: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\n";

fn thumbprint(certificate: &str) -> String {
    let pem = std::fs::read(credential_file(certificate)).unwrap();
    let certificate = openssl::x509::X509::from_pem(&pem).unwrap();
    let digest = certificate.digest(openssl::hash::MessageDigest::sha1()).unwrap();
    digest.iter().map(|it| format!("{it:02X}")).collect()
}

fn register(site: &Site, certificate: &str) {
    let pem = std::fs::read(credential_file(certificate)).unwrap();
    site.cloud.register_certificate(&pem).unwrap();
}

async fn reload(gateway: &mut Gateway, words: &str) -> String {
    gateway.signal("HUP");
    gateway.says(words).await
}

/// The file keeps its name; the reload takes what is in it now, and refuses what is nothing.
#[tokio::test]
async fn a_replaced_file_is_taken_without_a_restart() {
    let site = Site::new().await;
    let replace = |certificate: &[u8], key: &[u8]| {
        site.write("graphpost.pem", certificate);
        site.write("graphpost.key", key);
    };
    let read = |name: &str| std::fs::read(credential_file(name)).unwrap();
    register(&site, "app.pem");
    replace(&read("app.pem"), &read("app.key"));
    site.configure(
        "[tenant.credential]\ncertificate = \"graphpost.pem\"\nprivate_key = \"graphpost.key\"\n",
        LISTENER,
    );
    let mut gateway = site.serve().await;
    let opened = gateway.says("application certificate opened").await;
    assert!(opened.contains(&thumbprint("app.pem")), "{opened}");
    send(&gateway).await;
    gateway.says("msg=sent").await;

    // A certificate without its key: the reload is refused, and mail goes on.
    replace(&read("other.pem"), &read("app.key"));
    let refused = reload(&mut gateway, "configuration not reloaded").await;
    assert!(refused.contains("graphpost.key"), "{refused}");
    send(&gateway).await;
    gateway.says("msg=sent").await;

    // Whole, it is used for the next token; here it is refused first, which shows that it was.
    replace(&read("other.pem"), &read("other.key"));
    reload(&mut gateway, "configuration reloaded").await;
    let opened = gateway
        .said
        .lines()
        .rfind(|it| it.contains("application certificate opened"));
    assert!(opened.unwrap().contains(&thumbprint("other.pem")), "{opened:?}");
    send(&gateway).await;
    gateway.says("AADSTS700027").await;

    // Registered, it works; the reload does not wait for the time of the next try.
    register(&site, "other.pem");
    reload(&mut gateway, "configuration reloaded").await;
    send(&gateway).await;
    gateway.says("msg=sent").await;
    let status: serde_json::Value = serde_json::from_str(&gateway.get("/api/status").await).unwrap();
    assert_eq!(status["certificates"][0]["thumbprint"], thumbprint("other.pem"));
    gateway.stop().await;
}

/// The log and the metrics say which of two credentials is in use.
#[tokio::test]
async fn the_change_to_the_next_credential_is_told() {
    let site = Site::new().await;
    register(&site, "app.pem");
    for name in ["app.pem", "app.key", "other.pem", "other.key"] {
        site.copy(name);
    }
    let table = |table: &str, name: &str| {
        format!("[tenant.{table}]\ncertificate = \"{name}.pem\"\nprivate_key = \"{name}.key\"\n")
    };
    site.configure(
        &(table("credential", "app") + &table("next_credential", "other")),
        LISTENER,
    );
    let mut gateway = site.serve().await;
    let in_use = |metrics: &str, current: u8, next: u8| {
        for (credential, value) in [("current", current), ("next", next)] {
            let line = format!("graphpost_credential_in_use{{credential=\"{credential}\"}} {value}");
            assert!(metrics.lines().any(|it| it == line), "{line} in {metrics}");
        }
    };

    send(&gateway).await;
    let told = gateway.says("credential in use").await;
    assert!(
        told.contains("credential=current")
            && told.contains("refused=\"Entra ID refuses the application: AADSTS700027"),
        "{told}"
    );
    gateway.says("msg=sent").await;
    in_use(&gateway.get("/metrics").await, 1, 0);
    let status: serde_json::Value = serde_json::from_str(&gateway.get("/api/status").await).unwrap();
    assert_eq!(status["certificates"][0]["thumbprint"], thumbprint("app.pem"));

    register(&site, "other.pem");
    reload(&mut gateway, "configuration reloaded").await;
    send(&gateway).await;
    let told = gateway.says("credential in use").await;
    assert!(
        told.contains("credential=next") && !told.contains("refused="),
        "{told}"
    );
    gateway.says("msg=sent").await;
    in_use(&gateway.get("/metrics").await, 0, 1);

    // Moved to its place, it is the only one, and nothing needs a restart.
    site.configure(&table("credential", "other"), LISTENER);
    reload(&mut gateway, "configuration reloaded").await;
    send(&gateway).await;
    gateway.says("msg=sent").await;
    let metrics = gateway.get("/metrics").await;
    assert!(
        metrics.contains("graphpost_credential_in_use{credential=\"current\"} 1")
            && !metrics.contains("graphpost_credential_in_use{credential=\"next\"}"),
        "{metrics}"
    );
    let said = gateway.stop().await;
    assert!(!said.contains("needs a restart"), "{said}");
}
