use std::path::{Path, PathBuf};

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::*;

const LIMIT: Duration = Duration::from_secs(60);

/// A self-signed certificate in a PEM file with its key.
fn certificate(directory: &Path, name: &str) -> (Credential, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).expect("a certificate");
    let file: PathBuf = directory.join(format!("{name}.pem"));
    std::fs::write(&file, made.cert.pem() + &made.signing_key.serialize_pem()).expect("written");
    let credential = Credential {
        certificate: file,
        private_key: None,
        password: None,
    };
    (credential, made.cert.der().clone())
}

/// Connects, says a word and hears it back; the TLS version as the server names it.
async fn handshake(tls: &Tls, trusted: &CertificateDer<'static>, name: &str) -> Option<String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).expect("a certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (ours, theirs) = tokio::io::duplex(4096);
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let client = TlsConnector::from(Arc::new(config)).connect(name, ours);
    let (server, client) = tokio::join!(tls.accept(theirs, LIMIT), client);
    let (server, mut client) = (server.ok()?, client.ok()?);
    let mut server = Stream::Tls(Box::new(server));
    client.write_all(b"word").await.expect("written");
    let mut heard = [0; 4];
    server.read_exact(&mut heard).await.expect("read");
    assert_eq!(&heard, b"word");
    server.tls_version()
}

#[tokio::test]
async fn a_reloaded_certificate_is_for_new_handshakes() {
    let directory = tempfile::tempdir().expect("a directory");
    let (old, old_der) = certificate(directory.path(), "old.example");
    let (new, new_der) = certificate(directory.path(), "new.example");
    let tls = Tls::open(&old).expect("opened");
    assert_eq!(
        handshake(&tls, &old_der, "old.example").await.as_deref(),
        Some("TLSv1.3")
    );

    tls.reload(&new).expect("reloaded");
    assert_eq!(
        handshake(&tls, &new_der, "new.example").await.as_deref(),
        Some("TLSv1.3")
    );

    // One that cannot be opened leaves the other where it is.
    std::fs::write(&old.certificate, "nonsense").expect("written");
    assert!(tls.reload(&old).is_err());
    assert_eq!(
        handshake(&tls, &new_der, "new.example").await.as_deref(),
        Some("TLSv1.3")
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_not_waited_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let (credential, _) = certificate(directory.path(), "old.example");
    let tls = Tls::open(&credential).expect("opened");
    let (_silent, theirs) = tokio::io::duplex(4096);
    let error = tls.accept(theirs, LIMIT).await.expect_err("no handshake");
    assert_eq!(error.to_string(), "the TLS handshake took too long");
}

#[tokio::test]
async fn failures_are_told_in_words() {
    let directory = tempfile::tempdir().expect("a directory");
    let (credential, _) = certificate(directory.path(), "old.example");
    let tls = Tls::open(&credential).expect("opened");
    // A ClientHello of TLS 1.0, as a device from 2008 sends it: two suites, no extensions.
    let hello_1_0: Vec<u8> = [
        &[0x16, 3, 1, 0, 47, 1, 0, 0, 43, 3, 1][..],
        &[7; 32],
        &[0, 0, 4, 0, 0x2f, 0, 0x35, 1, 0],
    ]
    .concat();
    for (octets, want) in [
        (
            &b"EHLO x\r\n"[..],
            "the client speaks no TLS, but TLS is expected here",
        ),
        (&hello_1_0, "the client offers no TLS newer than 1.1"),
        (b"", "the client hung up during the TLS handshake"),
    ] {
        let (mut client, theirs) = tokio::io::duplex(4096);
        client.write_all(octets).await.expect("written");
        client.shutdown().await.expect("shut down");
        let error = tls.accept(theirs, LIMIT).await.expect_err("no handshake");
        assert_eq!(error.to_string(), want);
    }
}
