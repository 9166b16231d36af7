//! HTTP/2, TLS, certificate authorities and proxies.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use graphpost::config::Tenant;
use graphpost::graph::Request;
use graphpost::graph::client::Graph;
use graphpost::identity::Tokens;
use graphpost::outcome::Answer;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::server::{Server, metrics, tenant};

const PATIENT: Duration = Duration::from_secs(60);

/// What an HTTP/2 server does with the next requests; it accepts those after.
type Script = Vec<Option<h2::Reason>>;

struct Http2 {
    address: SocketAddr,
    ca_file: PathBuf,
    /// One `()` a request.
    seen: tokio::sync::mpsc::UnboundedReceiver<()>,
    _directory: tempfile::TempDir,
}

impl Http2 {
    async fn start(script: Script) -> Http2 {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        let ca_file = directory.path().join("ca.pem");
        std::fs::write(&ca_file, certificate.pem()).unwrap();

        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from(certificate.der().to_vec())],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen_tx, seen) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut script = script.into_iter();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let _ = seen_tx.send(());
                    match script.next().flatten() {
                        Some(reason) => respond.send_reset(reason),
                        None => {
                            let mut body = request.into_body();
                            // The connection must be driven while the body comes in.
                            tokio::spawn(async move {
                                while let Some(Ok(chunk)) = body.data().await {
                                    let _ = body.flow_control().release_capacity(chunk.len());
                                }
                                let answer = axum::http::Response::builder().status(202).body(()).unwrap();
                                let _ = respond.send_response(answer, true);
                            });
                        }
                    }
                }
            }
        });
        Http2 {
            address,
            ca_file,
            seen,
            _directory: directory,
        }
    }

    fn tenant(&self, entra: &Server) -> Tenant {
        Tenant {
            ca_file: Some(self.ca_file.clone()),
            ..tenant(&entra.url(), &format!("https://{}", self.address))
        }
    }
}

async fn send(tenant: &Tenant) -> Answer {
    let metrics = metrics();
    let tokens = Tokens::new(tenant, metrics.clone()).unwrap();
    let graph = Graph::new(tenant, PATIENT, tokens, metrics).unwrap();
    graph
        .send_mail("a@contoso.com", Request::Json(Bytes::from(vec![b'x'; 300_000])))
        .await
}

fn is_202(answer: &Answer) -> bool {
    matches!(answer, Answer::Response(response) if response.status == 202)
}

#[tokio::test]
async fn speaks_http2_where_it_is_offered() {
    let entra = Server::start(vec![]).await;
    let http2 = Http2::start(vec![]).await;
    let answer = send(&http2.tenant(&entra)).await;
    assert!(is_202(&answer), "{answer:?}");
}

#[tokio::test]
async fn an_unknown_authority_reaches_nothing() {
    let entra = Server::start(vec![]).await;
    let mut http2 = Http2::start(vec![]).await;
    let other = Http2::start(vec![]).await;
    let tenant = Tenant {
        ca_file: Some(other.ca_file.clone()),
        ..http2.tenant(&entra)
    };
    match send(&tenant).await {
        Answer::NotReached(why) => assert!(why.to_lowercase().contains("certificate"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert!(http2.seen.try_recv().is_err());
}

/// RFC 9113 §8.7: a refused stream was not processed, and may be repeated.
#[tokio::test]
async fn a_refused_stream_is_repeated() {
    let entra = Server::start(vec![]).await;
    let refused = Some(h2::Reason::REFUSED_STREAM);
    let http2 = Http2::start(vec![refused, refused]).await;
    let answer = send(&http2.tenant(&entra)).await;
    assert!(is_202(&answer), "{answer:?}");

    let mut http2 = Http2::start(vec![refused; 10]).await;
    let answer = send(&http2.tenant(&entra)).await;
    assert!(matches!(answer, Answer::NotReached(_)), "{answer:?}");
    let mut requests = 0;
    while http2.seen.try_recv().is_ok() {
        requests += 1;
    }
    assert_eq!(requests, 3);
}

/// Any other reset leaves it open what became of the request.
#[tokio::test]
async fn a_reset_stream_is_lost() {
    let entra = Server::start(vec![]).await;
    for reason in [
        h2::Reason::INTERNAL_ERROR,
        h2::Reason::CANCEL,
        h2::Reason::NO_ERROR,
    ] {
        let mut http2 = Http2::start(vec![Some(reason)]).await;
        let answer = send(&http2.tenant(&entra)).await;
        assert!(matches!(answer, Answer::Lost(_)), "{reason:?}: {answer:?}");
        assert!(http2.seen.try_recv().is_ok());
        assert!(http2.seen.try_recv().is_err(), "repeated");
    }
}

/// An HTTP proxy that answers CONNECT with this, and then carries octets where the answer was 200.
async fn proxy(answer: &'static str) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (seen_tx, seen) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(client.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let target = head.split(' ').nth(1).unwrap().to_owned();
            let _ = seen_tx.send(head);
            client.write_all(answer.as_bytes()).await.unwrap();
            if answer.starts_with("HTTP/1.1 200") {
                let mut server = TcpStream::connect(target).await.unwrap();
                tokio::spawn(async move {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        }
    });
    (address, seen)
}

#[tokio::test]
async fn goes_through_a_proxy() {
    let http2 = Http2::start(vec![]).await;
    let (address, mut seen) = proxy("HTTP/1.1 200 Connection established\r\n\r\n").await;
    let entra = Server::start(vec![]).await;
    // Entra ID is reached without the proxy here, to see the one request that matters.
    let direct = http2.tenant(&entra);
    let metrics = metrics();
    let tokens = Tokens::new(&direct, metrics.clone()).unwrap();
    let tenant = Tenant {
        proxy: Some(format!("http://user:p%40ss@{address}")),
        ..direct
    };
    let graph = Graph::new(&tenant, PATIENT, tokens, metrics).unwrap();
    let answer = graph
        .send_mail("a@contoso.com", Request::Json(Bytes::from_static(b"{}")))
        .await;
    assert!(is_202(&answer), "{answer:?}");
    let head = seen.recv().await.unwrap();
    assert!(
        head.starts_with(&format!("CONNECT {} HTTP/1.1\r\n", http2.address)),
        "{head}"
    );
    // user:p@ss
    assert!(
        head.to_lowercase().contains("proxy-authorization: basic"),
        "{head}"
    );
    assert!(head.contains("dXNlcjpwQHNz"), "{head}");
    assert!(!head.contains("token-0"), "{head}");
}

#[tokio::test]
async fn what_a_proxy_refuses_reaches_nothing() {
    let http2 = Http2::start(vec![]).await;
    let entra = Server::start(vec![]).await;
    for answer in [
        "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
        "nonsense\r\n\r\n",
    ] {
        let (address, _seen) = proxy(answer).await;
        let direct = http2.tenant(&entra);
        let metrics = metrics();
        let tokens = Tokens::new(&direct, metrics.clone()).unwrap();
        let tenant = Tenant {
            proxy: Some(format!("http://user:secret@{address}")),
            ..direct
        };
        let graph = Graph::new(&tenant, PATIENT, tokens, metrics).unwrap();
        match graph
            .send_mail("a@contoso.com", Request::Json(Bytes::from_static(b"{}")))
            .await
        {
            Answer::NotReached(why) => assert!(!why.contains("secret"), "{why}"),
            other => panic!("{answer}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn says_what_is_wrong_with_proxy_and_authorities() {
    let entra = Server::start(vec![]).await;
    let http2 = Http2::start(vec![]).await;
    let good = http2.tenant(&entra);
    let metrics = metrics();
    let tokens = Tokens::new(&good, metrics.clone()).unwrap();
    let error = |tenant: Tenant| {
        Graph::new(&tenant, PATIENT, tokens.clone(), metrics.clone())
            .unwrap_err()
            .to_string()
    };
    let text = error(Tenant {
        proxy: Some("::::secret".to_owned()),
        ..good.clone()
    });
    assert!(text.contains("proxy") && !text.contains("secret"), "{text}");
    let missing = http2.ca_file.with_file_name("missing.pem");
    let text = error(Tenant {
        ca_file: Some(missing),
        ..good.clone()
    });
    assert!(text.contains("missing.pem: cannot be read"), "{text}");
    let text = error(Tenant {
        ca_file: Some(crate::server::credential_file("app.cer")),
        ..good.clone()
    });
    assert!(text.contains("has no certificate in PEM"), "{text}");
    let text = error(Tenant {
        graph: "graph.microsoft.com".to_owned(),
        ..good
    });
    assert!(text.contains("'graph.microsoft.com'"), "{text}");
}
