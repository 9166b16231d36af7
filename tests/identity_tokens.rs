//! The token client against token endpoints that misbehave.
#![allow(clippy::unwrap_used)]

#[path = "graph/server.rs"]
mod server;

use std::collections::BTreeMap;
use std::time::Duration;

use graphpost::config::ApplicationCredential;
use graphpost::identity::expiry::UsedFor;
use graphpost::identity::{TokenError, Tokens};
use secrecy::SecretString;
use server::{Server, Then, html, json, metrics};

fn tokens(server: &Server) -> Tokens {
    Tokens::new(&server.tenant(), metrics()).unwrap()
}

async fn failure(then: Then) -> TokenError {
    let server = Server::start_with_tokens(vec![then], vec![]).await;
    tokens(&server).get().await.unwrap_err()
}

#[tokio::test]
async fn asks_as_microsoft_documents() {
    let mut server = Server::start(vec![]).await;
    tokens(&server).get().await.unwrap();
    let request = server.seen.recv().await.unwrap();
    assert!(
        request
            .head
            .starts_with("POST /contoso.onmicrosoft.com/oauth2/v2.0/token HTTP/1.1\r\n"),
        "{}",
        request.head
    );
    assert_eq!(
        request.field("content-type"),
        Some("application/x-www-form-urlencoded")
    );
    assert_eq!(request.field("return-client-request-id"), Some("true"));
    let body = String::from_utf8(request.body).unwrap();
    let mut fields: BTreeMap<&str, &str> = body.split('&').map(|it| it.split_once('=').unwrap()).collect();
    let assertion = fields.remove("client_assertion").unwrap();
    assert_eq!(assertion.split('.').count(), 3);
    let scope = format!("http%3A%2F%2F127.0.0.1%3A{}%2F.default", server.address.port());
    assert_eq!(
        fields,
        BTreeMap::from([
            ("client_id", server::CLIENT),
            ("scope", scope.as_str()),
            ("grant_type", "client_credentials"),
            (
                "client_assertion_type",
                "urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer"
            ),
        ])
    );
}

#[tokio::test]
async fn however_many_wait_one_request_is_made() {
    let server = Server::start(vec![]).await;
    let tokens = tokens(&server);
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let tokens = tokens.clone();
            tokio::spawn(async move { tokens.get().await.unwrap() })
        })
        .collect();
    let mut got = Vec::new();
    for task in waiting {
        got.push(task.await.unwrap());
    }
    assert!(got.iter().all(|it| *it == got[0]));
    assert_eq!(server.tokens(), 1);
    tokens.get().await.unwrap();
    assert_eq!(server.tokens(), 1);
}

#[tokio::test]
async fn however_many_wait_one_failure_is_enough() {
    let down = "HTTP/1.1 503 Down\r\nRetry-After: 600\r\nContent-Length: 0\r\n\r\n".to_owned();
    let mut server = Server::start_with_tokens(vec![Then::Answer(down)], vec![]).await;
    let tokens = tokens(&server);
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let tokens = tokens.clone();
            tokio::spawn(async move { tokens.get().await.unwrap_err() })
        })
        .collect();
    for task in waiting {
        let error = task.await.unwrap();
        assert!(!error.credential);
        assert!(error.retry_after.unwrap() > Duration::from_secs(500));
    }
    server.seen.recv().await.unwrap();
    assert!(server.seen.try_recv().is_err(), "asked twice");
    assert_eq!(server.tokens(), 0);
}

/// Who waits may give up; the request goes on and serves the next.
#[tokio::test]
async fn a_request_outlives_who_asked_for_it() {
    let mut server = Server::start(vec![]).await;
    let tokens = tokens(&server);
    let mut impatient = Box::pin(tokens.get());
    tokio::select! {
        biased;
        _ = &mut impatient => panic!("answered before the server saw it"),
        _ = server.seen.recv() => {}
    }
    drop(impatient);
    tokens.get().await.unwrap();
    assert_eq!(server.tokens(), 1);
}

#[tokio::test]
async fn a_rejected_token_is_replaced_once() {
    let server = Server::start(vec![]).await;
    let tokens = tokens(&server);
    let first = tokens.get().await.unwrap();
    tokens.reject(&first, None);
    tokens.reject(&first, None);
    let second = tokens.get().await.unwrap();
    assert_ne!(first, second);
    tokens.reject(&first, None);
    assert_eq!(tokens.get().await.unwrap(), second);
    assert_eq!(server.tokens(), 2);
}

#[tokio::test]
async fn answers_of_any_shape_end_in_a_clear_word() {
    let refused =
        r#"{"error":"invalid_client","error_description":"AADSTS700027: no","error_codes":[700027]}"#;
    let throttled = "HTTP/1.1 429 Too Many\r\nRetry-After: 17\r\nContent-Length: 0\r\n\r\n".to_owned();
    let endless = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n".to_owned();
    for (then, credential, words) in [
        (Then::Answer(json(401, refused)), true, "upload this certificate"),
        (Then::Answer(throttled), false, "answers 429"),
        (Then::Answer(html(200, "<html>log in</html>")), true, "a web page"),
        (Then::Answer(html(503, "<html>down</html>")), false, "answers 503"),
        (Then::Answer(json(200, "")), true, "an empty body"),
        (
            Then::Answer(json(200, r#"{"access_token":"cut o"#)),
            true,
            "other JSON",
        ),
        (Then::AnswerEndlessly(endless), true, "other content"),
        // A token, and far too much behind it.
        (
            Then::Answer(json(
                200,
                &format!(r#"{{"access_token":"a","x":"{}"}}"#, "y".repeat(200_000)),
            )),
            true,
            "other JSON",
        ),
        (
            Then::AnswerAndClose(json(200, "")[..40].to_owned()),
            false,
            "cannot be reached",
        ),
        (
            Then::AnswerAndClose("HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{".to_owned()),
            false,
            "broke off",
        ),
        (Then::Reset, false, "cannot be reached"),
        (Then::Close, false, "cannot be reached"),
        (
            Then::Answer(
                "HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n".to_owned(),
            ),
            true,
            "answers 302",
        ),
    ] {
        let shown = format!("{then:?}");
        let error = failure(then).await;
        assert_eq!(error.credential, credential, "{shown}: {}", error.why);
        assert!(error.why.contains(words), "{shown}: {}", error.why);
        assert!(error.retry_after.is_some(), "{shown}");
        if error.why.contains("429") {
            assert!(error.retry_after.unwrap() > Duration::from_secs(10), "{shown}");
        }
    }
}

/// A proxy that thinks itself helpful sends back what it was sent.
#[tokio::test]
async fn an_answer_that_repeats_the_proof_does_not_reach_the_log() {
    let secret = "wMf8Q~quijote de la mancha";
    for said in [secret, "wMf8Q%7Equijote+de+la+mancha"] {
        let body = format!(
            r#"{{"error":"invalid_client","error_description":"AADSTS7000215: not {said}","error_codes":[7000215]}}"#
        );
        let server = Server::start_with_tokens(vec![Then::Answer(json(401, &body))], vec![]).await;
        let mut tenant = server.tenant();
        tenant.credential = ApplicationCredential::Secret(SecretString::from(secret));
        let error = Tokens::new(&tenant, metrics()).unwrap().get().await.unwrap_err();
        assert!(error.why.contains("not …"), "{}", error.why);
        assert!(!error.why.contains("quijote"), "{}", error.why);
    }
}

/// A redirect would carry the assertion to a place nobody has named.
#[tokio::test]
async fn a_redirect_is_not_followed() {
    let mut elsewhere = Server::start(vec![]).await;
    for status in [301, 302, 303, 307, 308] {
        let redirect = format!(
            "HTTP/1.1 {status} Found\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n",
            elsewhere.url()
        );
        let error = failure(Then::Answer(redirect)).await;
        assert!(error.credential, "{}", error.why);
        assert!(
            error.why.contains(&format!("answers {status}")) && error.why.contains("tenant.authority"),
            "{}",
            error.why
        );
    }
    assert!(elsewhere.seen.try_recv().is_err());
}

#[tokio::test]
async fn a_slow_answer_is_not_waited_for_without_end() {
    for then in [
        Then::Hang,
        Then::AnswerAndHang("HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{".to_owned()),
    ] {
        let mut server = Server::start_with_tokens(vec![then], vec![]).await;
        let tokens = tokens(&server);
        let (result, ()) = tokio::join!(tokens.get(), async {
            server.seen.recv().await.unwrap();
            // From here nothing happens but the passing of time.
            tokio::time::pause();
        });
        tokio::time::resume();
        let error = result.unwrap_err();
        assert!(!error.credential, "{}", error.why);
    }
}

#[tokio::test]
async fn tokens_and_assertions_are_not_shown() {
    let server = Server::start(vec![]).await;
    let tokens = tokens(&server);
    let token = tokens.get().await.unwrap();
    let shown = format!("{token:?} {tokens:?} {:?}", token.authorization());
    assert!(!shown.contains("token-0"), "{shown}");
    assert_eq!(token.authorization(), "Bearer token-0");
}

#[test]
fn a_credential_that_cannot_be_used_names_file_and_fix() {
    let with = |certificate: &str| {
        let mut tenant = server::tenant("http://127.0.0.1:1", "http://127.0.0.1:1");
        tenant.credential = server::certificate(certificate, None);
        Tokens::new(&tenant, metrics()).unwrap_err().to_string()
    };
    assert!(with("ec.pem").contains("ec.pem: has an elliptic curve key"));
    assert!(with("app.pem").contains("private_key"));
    assert!(with("missing.pem").contains("missing.pem: cannot be read"));
}

#[test]
fn an_expired_certificate_opens_and_is_watched() {
    let mut tenant = server::tenant("http://127.0.0.1:1", "http://127.0.0.1:1");
    tenant.credential = server::certificate("expired.pem", None);
    let watched = Tokens::new(&tenant, metrics()).unwrap().certificates();
    assert_eq!(watched.len(), 1);
    assert_eq!(watched[0].used_for, UsedFor::Application("current".to_owned()));
    assert_eq!(watched[0].not_after.as_second(), 1_577_836_800);
}
