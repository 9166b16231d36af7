//! The client and the stand-in cloud, which shares no code with it.

use std::time::Duration;

use bytes::Bytes;
use graphpost::config::{AssertionAlgorithm, Tenant};
use graphpost::graph::Request;
use graphpost::graph::client::Graph;
use graphpost::identity::{TokenError, Tokens};
use graphpost::outcome::{Answer, Response};
use graphpost::sandbox::{Cloud, Options, Rule};
use serde_json::json;

use crate::server::{CLIENT, certificate, credential_file, metrics, tenant};

const MAILBOX: &str = "service@contoso.com";

pub async fn cloud() -> Cloud {
    let options = Options {
        certificates: vec![std::fs::read(credential_file("app.cer")).unwrap()],
        ..Options::default()
    };
    Cloud::bind("127.0.0.1:0".parse().unwrap(), options)
        .await
        .unwrap()
}

fn graph(cloud: &Cloud) -> Graph {
    let tenant = tenant(&cloud.authority(), &cloud.graph());
    let metrics = metrics();
    let tokens = Tokens::new(&tenant, metrics.clone()).unwrap();
    Graph::new(&tenant, Duration::from_secs(30), tokens, metrics).unwrap()
}

fn message(subject: &str) -> Request {
    let json = json!({
        "message": {
            "subject": subject,
            "body": {"contentType": "text", "content": "Hello"},
            "toRecipients": [{"emailAddress": {"address": "a@example.com"}}],
        },
        "saveToSentItems": false,
    });
    Request::Json(Bytes::from(json.to_string()))
}

fn response(answer: Answer) -> Response {
    match answer {
        Answer::Response(response) => response,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn delivers_json_and_mime() {
    let cloud = cloud().await;
    let graph = graph(&cloud);
    let answer = response(graph.send_mail(MAILBOX, message("one")).await);
    assert_eq!(answer.status, 202, "{answer:?}");
    assert!(answer.request_id.is_some_and(|it| !it.starts_with("client:")));

    use base64::Engine as _;
    let mime = "From: service@contoso.com\r\nTo: a@example.com\r\nSubject: two\r\n\r\nHello\r\n";
    let mime = base64::engine::general_purpose::STANDARD.encode(mime);
    let answer = response(graph.send_mail(MAILBOX, Request::Mime(Bytes::from(mime))).await);
    assert_eq!(answer.status, 202, "{answer:?}");

    let subjects: Vec<_> = cloud.wait_for(2).await.into_iter().map(|it| it.subject).collect();
    assert_eq!(subjects, ["one", "two"]);
}

#[tokio::test]
async fn an_expired_token_is_replaced_unnoticed() {
    let cloud = cloud().await;
    let graph = graph(&cloud);
    assert_eq!(
        response(graph.send_mail(MAILBOX, message("one")).await).status,
        202
    );
    for action in ["expire-tokens", "revoke-tokens"] {
        cloud
            .set_faults(vec![Rule {
                operation: Some("sendMail".to_owned()),
                count: Some(1),
                action: action.to_owned(),
                ..Rule::default()
            }])
            .unwrap();
        let answer = response(graph.send_mail(MAILBOX, message(action)).await);
        assert_eq!(answer.status, 202, "{action}: {answer:?}");
    }
    assert_eq!(cloud.wait_for(3).await.len(), 3);
}

#[tokio::test]
async fn a_message_delivered_without_an_answer_is_lost() {
    let cloud = cloud().await;
    let graph = graph(&cloud);
    cloud
        .set_faults(vec![Rule {
            operation: Some("sendMail".to_owned()),
            count: Some(1),
            action: "reset-after-body".to_owned(),
            deliver: true,
            ..Rule::default()
        }])
        .unwrap();
    let answer = graph.send_mail(MAILBOX, message("one")).await;
    assert!(matches!(answer, Answer::Lost(_)), "{answer:?}");
    assert_eq!(cloud.wait_for(1).await.len(), 1, "and Graph has sent it");
}

#[tokio::test]
async fn a_closed_port_reaches_nothing() {
    let cloud = cloud().await;
    let graph = graph(&cloud);
    assert_eq!(
        response(graph.send_mail(MAILBOX, message("one")).await).status,
        202
    );
    cloud.close_for(Duration::from_secs(3600));
    // The first may still meet the dying connection; what counts is that the next finds no port.
    let mut answer = graph.send_mail(MAILBOX, message("two")).await;
    if matches!(answer, Answer::Lost(_)) {
        answer = graph.send_mail(MAILBOX, message("two")).await;
    }
    assert!(matches!(answer, Answer::NotReached(_)), "{answer:?}");
    cloud.open();
    while tokio::net::TcpStream::connect(cloud.address()).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        response(graph.send_mail(MAILBOX, message("three")).await).status,
        202
    );
}

#[tokio::test]
async fn graph_errors_come_with_their_codes() {
    let cloud = cloud().await;
    let graph = graph(&cloud);
    let no_recipients = json!({"message": {"subject": "x", "body": {"contentType": "text", "content": "y"}}});
    let answer = response(
        graph
            .send_mail(MAILBOX, Request::Json(Bytes::from(no_recipients.to_string())))
            .await,
    );
    assert_eq!(
        answer.code.as_deref(),
        Some("ErrorInvalidRecipients"),
        "{answer:?}"
    );
    let answer = response(
        graph
            .send_mail(MAILBOX, Request::Json(Bytes::from_static(b"not json")))
            .await,
    );
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(answer.code.is_some(), "{answer:?}");
}

async fn token_error(cloud: &Cloud, change: impl FnOnce(&mut Tenant)) -> TokenError {
    let mut tenant = tenant(&cloud.authority(), &cloud.graph());
    change(&mut tenant);
    Tokens::new(&tenant, metrics()).unwrap().get().await.unwrap_err()
}

#[tokio::test]
async fn both_signatures_are_accepted() {
    let cloud = cloud().await;
    for assertion in [AssertionAlgorithm::Ps256, AssertionAlgorithm::Rs256] {
        let tenant = Tenant {
            assertion,
            ..tenant(&cloud.authority(), &cloud.graph())
        };
        let tokens = Tokens::new(&tenant, metrics()).unwrap();
        assert!(tokens.get().await.is_ok(), "{assertion:?}");
    }
}

#[tokio::test]
async fn refused_credentials_say_what_to_mend() {
    let cloud = cloud().await;
    cloud.change_tenant(|it| {
        it.names = vec!["contoso.onmicrosoft.com".to_owned()];
        it.clients = vec![CLIENT.to_owned()];
    });
    let stranger = token_error(&cloud, |it| {
        it.credential = certificate("other.pem", Some("other.key"));
    });
    let stranger = stranger.await;
    assert!(stranger.credential);
    assert!(stranger.why.contains("AADSTS700027"), "{}", stranger.why);
    assert!(
        stranger.why.contains("upload this certificate"),
        "{}",
        stranger.why
    );

    let error = token_error(&cloud, |it| it.id = "fabrikam.onmicrosoft.com".to_owned()).await;
    assert!(
        error.credential && error.why.contains("AADSTS90002"),
        "{}",
        error.why
    );
    let error = token_error(&cloud, |it| it.client_id = "0".to_owned()).await;
    assert!(
        error.credential && error.why.contains("AADSTS700016"),
        "{}",
        error.why
    );
    let error = token_error(&cloud, |it| it.graph = "https://graph.example.com".to_owned()).await;
    assert!(
        error.credential && error.why.contains("AADSTS500011"),
        "{}",
        error.why
    );
    let error = token_error(&cloud, |it| it.authority.push_str("/elsewhere")).await;
    assert!(error.credential, "{}", error.why);
}
