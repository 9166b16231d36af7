//! Every profile against every age of client, with every kind of certificate; OpenSSL is the client.

use std::fs;
use std::path::{Path, PathBuf};

use openssl::ssl::{SslConnector, SslContextBuilder, SslMethod, SslOptions, SslVerifyMode, SslVersion};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_openssl::SslStream;

use super::*;
use crate::config::{Auth, Credential, TlsMode};

const LIMIT: Duration = Duration::from_secs(60);
const CLIENT: &str = "10.1.9.7";

/// A self-signed certificate in a PEM file with its key.
fn certificate(directory: &Path, kind: &str, name: &str) -> ListenerCertificate {
    certificate_until(directory, kind, name, 2100)
}

fn certificate_until(directory: &Path, kind: &str, name: &str, year: i32) -> ListenerCertificate {
    let key = match kind {
        "rsa" => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
        _ => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
    };
    let key = key.expect("a key");
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(year, 1, 1);
    let made = params.self_signed(&key).expect("a certificate");
    let file: PathBuf = directory.join(format!("{name}-{kind}.pem"));
    fs::write(&file, made.pem() + &key.serialize_pem()).expect("written");
    ListenerCertificate::Files(Credential {
        certificate: file,
        private_key: None,
        password: None,
    })
}

fn file(certificate: &ListenerCertificate) -> &Path {
    &certificate.files().expect("a file").certificate
}

fn listener(profile: TlsProfile, certificates: Vec<ListenerCertificate>) -> config::Listener {
    config::Listener {
        name: "test".to_owned(),
        address: ([127, 0, 0, 1], 0).into(),
        socket: None,
        proxy_protocol_from: Vec::new(),
        tls: TlsMode::Implicit,
        certificates,
        tls_profile: profile,
        legacy_networks: vec!["10.1.9.0/24".parse().expect("a network")],
        tls_wait: Duration::ZERO,
        networks: Vec::new(),
        auth: Auth::None,
        cram_md5: false,
        plaintext_auth: Vec::new(),
        merge_split: Duration::ZERO,
    }
}

fn home(directory: &Path) -> Home {
    Home {
        directory: directory.to_owned(),
        hostname: "relay.example".to_owned(),
    }
}

fn open(directory: &Path, profile: TlsProfile, certificates: Vec<ListenerCertificate>) -> Tls {
    Tls::open(&listener(profile, certificates), home(directory)).expect("opened")
}

/// A client of an age.
#[derive(Clone, Copy)]
struct Age {
    name: &'static str,
    version: SslVersion,
    suites: &'static str,
}

const AGES: [Age; 7] = [
    Age {
        name: "1.0",
        version: SslVersion::TLS1,
        suites: "AES128-SHA:AES256-SHA:ECDHE-ECDSA-AES128-SHA",
    },
    Age {
        name: "1.1",
        version: SslVersion::TLS1_1,
        suites: "AES128-SHA:AES256-SHA:ECDHE-ECDSA-AES128-SHA",
    },
    Age {
        name: "1.2 AEAD",
        version: SslVersion::TLS1_2,
        suites: "ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES128-GCM-SHA256",
    },
    Age {
        name: "1.2 CBC",
        version: SslVersion::TLS1_2,
        suites: "ECDHE-RSA-AES128-SHA256:ECDHE-ECDSA-AES128-SHA256",
    },
    Age {
        name: "1.2 static RSA",
        version: SslVersion::TLS1_2,
        suites: "AES128-SHA",
    },
    // What Windows Server 2012 R2 offers: authenticated encryption with ECDSA alone.
    Age {
        name: "1.2 SChannel",
        version: SslVersion::TLS1_2,
        suites: "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-SHA384:AES256-SHA",
    },
    Age {
        name: "1.3",
        version: SslVersion::TLS1_3,
        suites: "",
    },
];

fn client(age: Age) -> SslConnector {
    let mut builder = SslConnector::builder(SslMethod::tls_client()).expect("a client");
    let old: &mut SslContextBuilder = &mut builder;
    old.set_verify(SslVerifyMode::NONE);
    old.set_security_level(0);
    old.clear_options(SslOptions::NO_TLSV1 | SslOptions::NO_TLSV1_1);
    old.set_min_proto_version(Some(age.version)).expect("a version");
    old.set_max_proto_version(Some(age.version)).expect("a version");
    if !age.suites.is_empty() {
        old.set_cipher_list(&format!("{}:@SECLEVEL=0", age.suites))
            .expect("suites");
    }
    builder.build()
}

async fn connect(
    connector: &SslConnector,
    name: &str,
    stream: DuplexStream,
) -> Result<SslStream<DuplexStream>, String> {
    let configured = connector.configure().expect("configured").verify_hostname(false);
    let ssl = configured.into_ssl(name).expect("a client");
    let mut stream = SslStream::new(ssl, stream).expect("a client");
    match std::pin::Pin::new(&mut stream).connect().await {
        Ok(()) => Ok(stream),
        Err(error) => Err(error.to_string()),
    }
}

/// Connects as a client of an age, says a word and hears it back. What the server made of it, and the
/// subject of the certificate that the client saw.
async fn handshake(
    tls: &Tls,
    age: Age,
    name: &str,
    from: &str,
) -> Result<(String, &'static str, String), (HandshakeError, String)> {
    let (ours, theirs) = tokio::io::duplex(16 * 1024);
    let from = from.parse().expect("an address");
    let connector = client(age);
    let (server, client) = tokio::join!(
        tls.accept(Replay::new(theirs, Vec::new()), from, LIMIT),
        connect(&connector, name, ours)
    );
    let mut server = match server {
        Ok(server) => server,
        Err(error) => return Err((error, client.map(drop).expect_err("the client is refused too"))),
    };
    let mut client = client.expect("the client is served too");
    client.write_all(b"word").await.expect("written");
    let mut heard = [0; 4];
    server.read_exact(&mut heard).await.expect("read");
    assert_eq!(&heard, b"word");
    server.write_all(b"back").await.expect("written");
    server.flush().await.expect("written");
    client.read_exact(&mut heard).await.expect("read");
    assert_eq!(&heard, b"back");
    let seen = client.ssl().peer_certificate().expect("a certificate");
    let seen = seen
        .subject_name()
        .entries()
        .next()
        .expect("a name")
        .data()
        .as_slice()
        .to_vec();
    let library = match &server {
        Stream::Rustls(_) => "rustls",
        Stream::OpenSsl(_) => "openssl",
        Stream::Plain(_) | Stream::Taken => "none",
    };
    assert!(server.cipher().is_some());
    let version = server.tls_version().expect("a version");
    let want = format!("TLSv{}", age.name.split(' ').next().expect("a version"));
    assert_eq!(version, want);
    Ok((
        format!("{library} {}", server.profile()),
        library,
        String::from_utf8(seen).expect("text"),
    ))
}

#[tokio::test]
async fn every_profile_serves_every_age_it_should() {
    let directory = tempfile::tempdir().expect("a directory");
    let rsa = certificate(directory.path(), "rsa", "relay.example");
    let ecdsa = certificate(directory.path(), "ecdsa", "relay.example");
    let certificates = [vec![rsa.clone()], vec![ecdsa.clone()], vec![rsa, ecdsa]];
    let (rustls, compat, legacy) = ("rustls modern", "openssl compat", "openssl legacy");
    let (needs_legacy, not_named, needs_compat, hopeless) = (
        "set tls_profile = \"legacy\"",
        "is not in this listener's legacy_networks",
        "set tls_profile = \"compat\"",
        "nothing that is still served",
    );
    // With RSA alone, ECDSA alone, both. Each: modern, compat, legacy for a device that is named and
    // for one that is not.
    let old = [[needs_legacy, needs_legacy, legacy, not_named]; 3];
    let late = [needs_compat, compat, compat, compat];
    let table = [
        old,
        old,
        [[rustls; 4]; 3],
        [late; 3],
        [late, [hopeless; 4], late],
        [late, [rustls; 4], [rustls; 4]],
        [[rustls; 4]; 3],
    ];
    for (age, columns) in AGES.into_iter().zip(table) {
        for (certificates, cells) in certificates.iter().zip(columns) {
            let runs = [
                (TlsProfile::Modern, CLIENT),
                (TlsProfile::Compat, CLIENT),
                (TlsProfile::Legacy, CLIENT),
                (TlsProfile::Legacy, "10.1.8.7"),
            ];
            for ((profile, from), want) in runs.into_iter().zip(cells) {
                let tls = open(directory.path(), profile, certificates.clone());
                let what = format!(
                    "{} {profile:?} {from} with {} certificates",
                    age.name,
                    certificates.len()
                );
                match handshake(&tls, age, "relay.example", from).await {
                    Ok((served, ..)) => assert_eq!(served, want, "{what}"),
                    Err((error, client)) => {
                        assert!(error.to_string().contains(want), "{what}: {error}");
                        // The client is told in TLS's own words what is wrong.
                        let alert = match want {
                            it if it == needs_legacy || it == not_named => "protocol version",
                            _ => "handshake failure",
                        };
                        assert!(client.contains(alert), "{what}: {client}");
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn the_name_that_a_client_asks_for_decides() {
    let directory = tempfile::tempdir().expect("a directory");
    let make = |kind, name| certificate(directory.path(), kind, name);
    let certificates = vec![
        make("rsa", "first.example"),
        make("ecdsa", "second.example"),
        make("rsa", "second.example"),
        make("ecdsa", "*.third.example"),
    ];
    let tls = open(directory.path(), TlsProfile::Legacy, certificates);
    let [tls10, _, tls12, _, static_rsa, _, tls13] = AGES;
    for (age, name, want) in [
        (tls13, "first.example", "first.example"),
        (tls13, "second.example", "second.example"),
        (tls12, "relay.third.example", "*.third.example"),
        (tls10, "second.example", "second.example"),
        (static_rsa, "second.example", "second.example"),
        // Its own has no RSA key; another name is better than no mail.
        (static_rsa, "relay.third.example", "first.example"),
        (tls10, "nobody.example", "second.example"),
    ] {
        let (_, _, seen) = handshake(&tls, age, name, CLIENT).await.expect("served");
        assert_eq!(seen, want, "{} asks for {name}", age.name);
    }
}

#[tokio::test]
async fn a_reloaded_certificate_is_for_new_handshakes_of_both_libraries() {
    let directory = tempfile::tempdir().expect("a directory");
    let old = certificate(directory.path(), "rsa", "old.example");
    let tls = open(directory.path(), TlsProfile::Legacy, vec![old.clone()]);
    let [tls10, .., tls13] = AGES;
    let seen = async |tls: &Tls| {
        let mut seen = Vec::new();
        for age in [tls10, tls13] {
            seen.push(handshake(tls, age, "any", CLIENT).await.expect("served").2);
        }
        seen
    };
    assert_eq!(seen(&tls).await, ["old.example"; 2]);
    assert!(!tls.is_stale());

    let new = certificate(directory.path(), "rsa", "new.example");
    fs::copy(file(&new), file(&old)).expect("copied");
    assert!(tls.is_stale());
    let reloaded = tls.reload(&tls.sources());
    assert_eq!((reloaded.taken.len(), reloaded.kept.len()), (1, 0));
    assert_eq!(seen(&tls).await, ["new.example"; 2]);
    assert!(!tls.is_stale());
    // Read once more without a change: nothing to tell.
    assert!(tls.reload(&tls.sources()).taken.is_empty());

    // One that is nonsense, has another's key, has expired or has gone leaves the other where it is.
    let (other, expired) = (
        certificate(directory.path(), "rsa", "other.example"),
        certificate_until(directory.path(), "rsa", "expired.example", 2021),
    );
    let pem = |it| fs::read_to_string(file(it)).expect("read");
    let key_of = |it| {
        pem(it)
            .split_once("-----BEGIN PRIVATE")
            .expect("a key")
            .1
            .to_owned()
    };
    let certificate_of = |it| {
        pem(it)
            .split_once("-----BEGIN PRIVATE")
            .expect("a key")
            .0
            .to_owned()
    };
    let mismatch = certificate_of(&other) + "-----BEGIN PRIVATE" + &key_of(&new);
    for (content, why) in [
        (
            Some("nonsense".to_owned()),
            "neither a PFX nor a PEM nor a DER file",
        ),
        (
            Some(mismatch),
            "the private key does not belong to the certificate",
        ),
        (Some(pem(&expired)), "(CN=expired.example) expired on 2021-01-01"),
        (None, "cannot be read"),
    ] {
        match content {
            Some(content) => fs::write(file(&old), content).expect("written"),
            None => fs::remove_file(file(&old)).expect("removed"),
        }
        assert!(tls.is_stale());
        let reloaded = tls.reload(&tls.sources());
        assert_eq!((reloaded.taken.len(), reloaded.kept.len()), (0, 1));
        let text = reloaded.kept[0].to_string();
        assert!(
            text.contains(why) && text.contains("old.example-rsa.pem"),
            "{text}"
        );
        assert_eq!(seen(&tls).await, ["new.example"; 2]);
    }
    // Back again.
    fs::copy(file(&other), file(&old)).expect("copied");
    assert_eq!(tls.reload(&tls.sources()).kept.len(), 0);
    assert_eq!(seen(&tls).await, ["other.example"; 2]);
}

/// Of two certificates one is replaced, and the other cannot be read: each for itself.
#[tokio::test]
async fn one_that_fails_does_not_hold_up_the_others() {
    let directory = tempfile::tempdir().expect("a directory");
    let (rsa, ecdsa) = (
        certificate(directory.path(), "rsa", "relay.example"),
        certificate(directory.path(), "ecdsa", "relay.example"),
    );
    let tls = open(
        directory.path(),
        TlsProfile::Legacy,
        vec![rsa.clone(), ecdsa.clone()],
    );
    let new = certificate(directory.path(), "rsa", "new.example");
    fs::copy(file(&new), file(&rsa)).expect("copied");
    fs::write(file(&ecdsa), "nonsense").expect("written");
    let reloaded = tls.reload(&tls.sources());
    assert_eq!((reloaded.taken.len(), reloaded.kept.len()), (1, 1));
    let subjects: Vec<_> = tls.certificates().iter().map(|it| it.subject.clone()).collect();
    assert_eq!(subjects, ["CN=new.example", "CN=relay.example"]);

    // A certificate more, and one less, as after a change of the configuration.
    let more = certificate(directory.path(), "ecdsa", "more.example");
    assert_eq!(tls.reload(&[rsa.clone(), more]).kept.len(), 0);
    assert_eq!(tls.certificates().len(), 2);
    assert_eq!(tls.reload(&[rsa]).kept.len(), 0);
    assert_eq!(tls.certificates().len(), 1);
}

/// An expired certificate serves where there is no better one: many devices never look.
#[tokio::test]
async fn an_expired_certificate_is_better_than_none() {
    let directory = tempfile::tempdir().expect("a directory");
    let expired = certificate_until(directory.path(), "rsa", "expired.example", 2021);
    let tls = open(directory.path(), TlsProfile::Modern, vec![expired.clone()]);
    let seen = handshake(&tls, AGES[6], "any", CLIENT).await.expect("served").2;
    assert_eq!(seen, "expired.example");
    let newer = certificate_until(directory.path(), "rsa", "newer.example", 2022);
    fs::copy(file(&newer), file(&expired)).expect("copied");
    assert_eq!(tls.reload(&tls.sources()).kept.len(), 0);
}

#[tokio::test]
async fn a_certificate_made_on_request_serves_all() {
    let directory = tempfile::tempdir().expect("a directory");
    let tls = open(
        directory.path(),
        TlsProfile::Legacy,
        vec![ListenerCertificate::SelfSigned],
    );
    for age in AGES {
        let (_, _, seen) = handshake(&tls, age, "relay.example", CLIENT)
            .await
            .expect("served");
        assert_eq!(seen, "relay.example", "{}", age.name);
    }
    let made = fs::read(home(directory.path()).file()).expect("kept");
    let again = open(
        directory.path(),
        TlsProfile::Modern,
        vec![ListenerCertificate::SelfSigned],
    );
    assert_eq!(fs::read(home(directory.path()).file()).expect("kept"), made);
    assert_eq!(again.certificates(), tls.certificates());
    // Whoever deletes it gets another.
    fs::remove_file(home(directory.path()).file()).expect("removed");
    assert!(tls.is_stale());
    assert_eq!(tls.reload(&tls.sources()).taken.len(), 1);
}

/// Octets as they come from a client, in pieces of this size, before the end of its side.
async fn sent(tls: &Tls, octets: &[u8], piece: usize) -> (Result<(), HandshakeError>, Vec<u8>) {
    let (mut client, theirs) = tokio::io::duplex(64 * 1024);
    let server = tls.accept(
        Replay::new(theirs, Vec::new()),
        CLIENT.parse().expect("an address"),
        LIMIT,
    );
    let send = async {
        for piece in octets.chunks(piece) {
            // A server that hangs up early is right to.
            if client.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let _ = client.shutdown().await;
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        answer
    };
    let (server, answer) = tokio::join!(async { server.await.map(drop) }, send);
    (server, answer)
}

/// A ClientHello of TLS 1.0, as a device from 2008 sends it: two suites, no extensions.
fn hello_1_0() -> Vec<u8> {
    [
        &[0x16, 3, 1, 0, 47, 1, 0, 0, 43, 3, 1][..],
        &[7; 32],
        &[0, 0, 4, 0, 0x2f, 0, 0x35, 1, 0],
    ]
    .concat()
}

/// The same in the format of SSL 2.0.
fn hello_in_ssl_2() -> Vec<u8> {
    [
        &[0x80, 31, 1, 3, 1, 0, 6, 0, 0, 0, 16, 0, 0, 0x2f, 0, 0, 0x35][..],
        &[7; 16],
    ]
    .concat()
}

#[tokio::test]
async fn a_hello_comes_in_whatever_pieces_and_formats_there_are() {
    let directory = tempfile::tempdir().expect("a directory");
    let certificates = vec![certificate(directory.path(), "rsa", "relay.example")];
    let tls = open(directory.path(), TlsProfile::Legacy, certificates);
    let whole = hello_1_0();
    let in_records: Vec<u8> = whole[5..]
        .chunks(3)
        .flat_map(|it| [&[0x16, 3, 1, 0, u8::try_from(it.len()).expect("short")], it].concat())
        .collect();
    for octets in [whole, in_records, hello_in_ssl_2()] {
        for piece in 1..=octets.len() {
            let (error, answer) = sent(&tls, &octets, piece).await;
            // ServerHello of TLS 1.0, and then the client hangs up.
            assert!(answer.starts_with(&[0x16, 3, 1]), "pieces of {piece}: {answer:?}");
            assert_eq!(answer[5], 2);
            let error = error.expect_err("the client has gone").to_string();
            assert!(error.contains("hung up") || error.contains("failed"), "{error}");
        }
    }
}

#[tokio::test]
async fn failures_are_told_in_words() {
    let directory = tempfile::tempdir().expect("a directory");
    let certificates = vec![certificate(directory.path(), "rsa", "relay.example")];
    let endless = [0x16, 3, 1, 0, 0].repeat(10_000);
    for profile in [TlsProfile::Modern, TlsProfile::Legacy] {
        let tls = open(directory.path(), profile, certificates.clone());
        for (octets, want) in [
            (
                &b"EHLO x\r\n"[..],
                "the client speaks no TLS, but TLS is expected here",
            ),
            (b"", "the client hung up during the TLS handshake"),
            (&hello_1_0()[..30], "the client hung up during the TLS handshake"),
            (
                &endless,
                "the client's first message is longer than any that TLS clients send",
            ),
        ] {
            for piece in [octets.len().max(1), 7] {
                let (error, _) = sent(&tls, octets, piece).await;
                assert_eq!(error.expect_err("no handshake").to_string(), want);
            }
        }
    }
    let tls = open(directory.path(), TlsProfile::Modern, certificates);
    let (error, answer) = sent(&tls, &hello_1_0(), 100).await;
    assert_eq!(
        answer,
        [21, 3, 1, 0, 2, 2, 70],
        "protocol_version, in a record of TLS 1.0"
    );
    let error = error.expect_err("no handshake").to_string();
    assert_eq!(
        error,
        "the client offers no TLS newer than TLS 1.0: update it, or set tls_profile = \"legacy\" for this \
         listener and name the client in legacy_networks"
    );
}

/// What comes in the clear after a ClientHello is not taken for the client's first words under TLS.
#[tokio::test]
async fn nothing_in_the_clear_survives_the_handshake() {
    let directory = tempfile::tempdir().expect("a directory");
    let certificates = vec![certificate(directory.path(), "rsa", "relay.example")];
    let tls = open(directory.path(), TlsProfile::Legacy, certificates);
    for hello in [hello_1_0(), hello_in_ssl_2()] {
        let octets = [&hello[..], b"EHLO injected\r\nMAIL FROM:<a@b.example>\r\n"].concat();
        for piece in [1, octets.len()] {
            let (error, _) = sent(&tls, &octets, piece).await;
            assert!(error.is_err());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_go_on_is_not_waited_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let certificates = vec![certificate(directory.path(), "rsa", "relay.example")];
    let tls = open(directory.path(), TlsProfile::Legacy, certificates);
    let hello = hello_1_0();
    // Nothing; half a hello; a whole one for OpenSSL, and then nothing.
    for octets in [&[][..], &hello[..20], &hello] {
        let (mut client, theirs) = tokio::io::duplex(64 * 1024);
        client.write_all(octets).await.expect("written");
        let begun = tokio::time::Instant::now();
        let done = tls.accept(
            Replay::new(theirs, Vec::new()),
            CLIENT.parse().expect("an address"),
            LIMIT,
        );
        let error = done.await.err().expect("no handshake");
        assert_eq!(error.to_string(), "the TLS handshake took too long");
        assert_eq!(begun.elapsed(), LIMIT);
    }
}
