//! Whether Graph can have seen a message: every way in which a connection can end.

use std::time::Duration;

use bytes::Bytes;
use graphpost::graph::Request;
use graphpost::graph::client::Graph;
use graphpost::identity::Tokens;
use graphpost::outcome::{Answer, Response};
use tokio::net::TcpListener;

use crate::server::{ACCEPTED, Server, Then, html, json, metrics, tenant};

const MAILBOX: &str = "service@contoso.com";
const PATIENT: Duration = Duration::from_secs(60);
/// Where nothing tells the test when to let the time run.
const IMPATIENT: Duration = Duration::from_secs(1);

fn graph_with(tenant: &graphpost::config::Tenant, timeout: Duration) -> Graph {
    let metrics = metrics();
    let tokens = Tokens::new(tenant, metrics.clone()).unwrap();
    Graph::new(tenant, timeout, tokens, metrics).unwrap()
}

fn graph(server: &Server) -> Graph {
    graph_with(&server.tenant(), PATIENT)
}

fn message() -> Request {
    Request::Json(Bytes::from_static(b"{\"message\":{}}"))
}

async fn send(graph: &Graph) -> Answer {
    graph.send_mail(MAILBOX, message()).await
}

/// Sends, and once the server has done its part lets the time run to the end of all patience.
async fn send_in_vain(server: &mut Server) -> Answer {
    let graph = graph(server);
    let (answer, ()) = tokio::join!(send(&graph), async {
        server.next().await;
        tokio::time::pause();
    });
    tokio::time::resume();
    answer
}

fn status(answer: &Answer) -> u16 {
    match answer {
        Answer::Response(response) => response.status,
        other => panic!("{other:?}"),
    }
}

fn lost(answer: &Answer) -> &str {
    match answer {
        Answer::Lost(why) => {
            assert!(why.contains("client-request-id"), "{why}");
            why
        }
        other => panic!("{other:?}"),
    }
}

fn not_reached(answer: &Answer) -> &str {
    match answer {
        Answer::NotReached(why) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn sends_what_graph_wants() {
    let mut server = Server::start(vec![]).await;
    let graph = graph(&server);
    let answer = send(&graph).await;
    assert_eq!(
        answer,
        Answer::Response(Response {
            status: 202,
            request_id: Some("r-1".to_owned()),
            ..Response::default()
        })
    );
    let first = server.next().await;
    assert!(
        first
            .head
            .starts_with("POST /v1.0/users/service@contoso.com/sendMail HTTP/1.1\r\n"),
        "{}",
        first.head
    );
    assert_eq!(first.field("authorization"), Some("Bearer token-0"));
    assert_eq!(first.field("content-type"), Some("application/json"));
    assert_eq!(first.field("content-length"), Some("14"));
    assert!(first.field("user-agent").unwrap().starts_with("graphpost/"));
    assert_eq!(first.field("client-request-id").unwrap().len(), 36);
    assert_eq!(first.body, b"{\"message\":{}}");

    let mime = Request::Mime(Bytes::from_static(b"RnJvbTogYQ=="));
    assert_eq!(status(&graph.send_mail(MAILBOX, mime).await), 202);
    let second = server.next().await;
    assert_eq!(second.field("content-type"), Some("text/plain"));
    assert_eq!(second.body, b"RnJvbTogYQ==");
    assert_eq!(
        second.connection, first.connection,
        "the connection is used again"
    );
    assert_ne!(
        second.field("client-request-id"),
        first.field("client-request-id")
    );
    assert_eq!(server.tokens(), 1);
}

#[tokio::test]
async fn no_mailbox_leaves_its_place_in_the_path() {
    let mut server = Server::start(vec![]).await;
    let graph = graph(&server);
    for (mailbox, path) in [
        ("a b@c.example", "/v1.0/users/a%20b@c.example/sendMail"),
        (
            "a/../b?c#d%2f@e",
            "/v1.0/users/a%2F..%2Fb%3Fc%23d%252f@e/sendMail",
        ),
        (
            "ü@müller.example",
            "/v1.0/users/%C3%BC@m%C3%BCller.example/sendMail",
        ),
        ("o'neill@c.example", "/v1.0/users/o'neill@c.example/sendMail"),
        ("$ales@c.example", "/v1.0/users('$ales@c.example')/sendMail"),
        ("$o'x@c.example", "/v1.0/users('$o''x@c.example')/sendMail"),
    ] {
        graph.send_mail(mailbox, message()).await;
        let head = server.next().await.head;
        assert_eq!(head.split(' ').nth(1), Some(path), "{mailbox}");
    }
}

#[tokio::test]
async fn a_root_with_a_path_keeps_it() {
    let mut server = Server::start(vec![]).await;
    let tenant = tenant(&server.url(), &format!("{}/proxy/graph", server.url()));
    send(&graph_with(&tenant, PATIENT)).await;
    let head = server.next().await.head;
    assert!(head.starts_with("POST /proxy/graph/v1.0/users/"), "{head}");
}

#[tokio::test]
async fn refused_connections_reach_nothing() {
    let entra = Server::start(vec![]).await;
    let nobody = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let graph = graph_with(&tenant(&entra.url(), &format!("http://{nobody}")), PATIENT);
    let answer = send(&graph).await;
    assert!(not_reached(&answer).contains("refused"), "{answer:?}");
}

#[tokio::test]
async fn without_entra_nothing_is_tried() {
    let nobody = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let mut server = Server::start(vec![]).await;
    let graph = graph_with(&tenant(&format!("http://{nobody}"), &server.url()), PATIENT);
    for _ in 0..2 {
        match send(&graph).await {
            Answer::NoToken {
                why,
                credential: false,
                retry_after: Some(_),
            } => assert!(why.contains("Entra ID cannot be reached"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(server.seen.try_recv().is_err());
}

/// A server behind TLS that never gets as far as TLS.
#[tokio::test]
async fn failed_handshakes_reach_nothing() {
    let entra = Server::start(vec![]).await;
    // It answers plain HTTP to the ClientHello, for there is no head in it: it hangs, in fact.
    let plain = Server::start(vec![]).await;
    let graph = graph_with(
        &tenant(&entra.url(), &format!("https://{}", plain.address)),
        IMPATIENT,
    );
    not_reached(&send(&graph).await);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closing = listener.local_addr().unwrap();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let graph = graph_with(&tenant(&entra.url(), &format!("https://{closing}")), PATIENT);
    not_reached(&send(&graph).await);
}

#[tokio::test]
async fn a_written_request_without_an_answer_is_lost() {
    for then in [
        Then::Reset,
        Then::ResetAtHead,
        Then::Close,
        Then::AnswerAndClose("HTTP/1.1 20".to_owned()),
        Then::AnswerAndClose("HTTP/1.1 202 Accepted\r\nrequest-id".to_owned()),
        Then::AnswerAndClose("220 mail.example.com ESMTP\r\n".to_owned()),
        Then::AnswerAndClose("\0\0\0\0".to_owned()),
    ] {
        let shown = format!("{then:?}");
        let mut server = Server::start(vec![then]).await;
        let answer = send(&graph(&server)).await;
        lost(&answer);
        server.next().await;
        assert!(server.seen.try_recv().is_err(), "{shown}: repeated");
    }
    for then in [
        Then::Hang,
        Then::AnswerAndHang("HTTP/1.1 202 Accepted\r\n".to_owned()),
        Then::AnswerAndHang("HTTP/1.1 100 Continue\r\n\r\n".to_owned()),
    ] {
        let mut server = Server::start(vec![then]).await;
        lost(&send_in_vain(&mut server).await);
    }
}

/// The classical race: the server ends an idle connection just while the next request is written.
#[tokio::test]
async fn a_reset_on_a_used_connection_is_lost_and_not_repeated() {
    let mut server = Server::start(vec![Then::Answer(ACCEPTED.to_owned()), Then::ResetAtHead]).await;
    let graph = graph(&server);
    assert_eq!(status(&send(&graph).await), 202);
    lost(&send(&graph).await);
    assert_eq!(server.next().await.connection, server.next().await.connection);
    assert!(server.seen.try_recv().is_err());
}

/// Where the end has been noticed in time nothing was written, and a new connection is made.
#[tokio::test]
async fn a_connection_that_has_ended_is_replaced() {
    let mut server = Server::start(vec![Then::AnswerAndClose(ACCEPTED.to_owned())]).await;
    let graph = graph(&server);
    assert_eq!(status(&send(&graph).await), 202);
    let first = server.next().await;
    // The end of the connection was on its way before this round trip began, so it is known after.
    tokio::net::TcpStream::connect(server.address).await.unwrap();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(status(&send(&graph).await), 202);
    assert_ne!(server.next().await.connection, first.connection);
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_body_counts() {
    let early = format!(
        "{}{}",
        "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n", "\r\n"
    );
    let server = Server::start(vec![Then::AnswerEarly(early)]).await;
    let large = Request::Json(Bytes::from(vec![b'x'; 4_000_000]));
    assert_eq!(status(&graph(&server).send_mail(MAILBOX, large).await), 413);
}

#[tokio::test]
async fn after_503_the_next_request_takes_a_new_connection() {
    let busy = json(
        503,
        r#"{"error":{"code":"serviceNotAvailable","message":"busy"}}"#,
    );
    let mut server = Server::start(vec![
        Then::Answer(ACCEPTED.to_owned()),
        Then::Answer(busy),
        Then::Answer(ACCEPTED.to_owned()),
        Then::Answer(ACCEPTED.to_owned()),
    ])
    .await;
    let graph = graph(&server);
    let mut connections = Vec::new();
    for want in [202, 503, 202, 202] {
        assert_eq!(status(&send(&graph).await), want);
        connections.push(server.next().await.connection);
    }
    assert_eq!(connections[0], connections[1]);
    assert_ne!(connections[1], connections[2]);
    assert_eq!(connections[2], connections[3]);
}

#[tokio::test]
async fn reads_errors_of_any_shape() {
    let graph_error = concat!(
        r#"{"error":{"code":"ErrorInvalidUser","message":"The requested\r\nuser 'x' is invalid.","#,
        r#""innerError":{"date":"2026-01-01","request-id":"r-2","client-request-id":"c"}}}"#
    );
    let answer = |status, code: Option<&str>, message: Option<&str>, request_id: Option<&str>| {
        (
            status,
            code.map(str::to_owned),
            message.map(str::to_owned),
            request_id.map(str::to_owned),
        )
    };
    let long = "m".repeat(5000);
    for (then, want) in [
        (
            json(404, graph_error),
            answer(
                404,
                Some("ErrorInvalidUser"),
                Some("The requested  user 'x' is invalid."),
                Some("r-2"),
            ),
        ),
        (
            html(502, "<html>Bad Gateway</html>"),
            answer(502, None, None, None),
        ),
        (json(500, ""), answer(500, None, None, None)),
        (
            json(400, "{\"error\":{\"code\":\"Broken"),
            answer(400, None, None, None),
        ),
        (json(400, "[]"), answer(400, None, None, None)),
        (json(400, "{\"error\":\"text\"}"), answer(400, None, None, None)),
        (
            json(400, "{\"error\":{\"code\":7,\"message\":null}}"),
            answer(400, None, None, None),
        ),
        (
            json(400, "{\"error\":{\"code\":\"\"}}"),
            answer(400, None, None, None),
        ),
        (
            json(
                400,
                &format!("{{\"error\":{{\"code\":\"X\",\"message\":\"{long}\"}}}}"),
            ),
            answer(400, Some("X"), Some(&long[..500]), None),
        ),
        (json(400, &"[".repeat(60_000)), answer(400, None, None, None)),
        (
            // Longer than we read: cut off, it is no JSON any more.
            json(
                400,
                &format!(
                    "{{\"error\":{{\"code\":\"X\"}},\"y\":\"{}\"}}",
                    "y".repeat(100_000)
                ),
            ),
            answer(400, None, None, None),
        ),
        (
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n".to_owned(),
            answer(302, None, None, None),
        ),
    ] {
        let server = Server::start(vec![Then::Answer(then.clone())]).await;
        let shown: String = then.chars().take(120).collect();
        match send(&graph(&server)).await {
            Answer::Response(response) => {
                let ours = response
                    .request_id
                    .as_deref()
                    .is_some_and(|it| it.starts_with("client:"));
                let request_id = response.request_id.filter(|_| !ours);
                assert_eq!(
                    (response.status, response.code, response.message, request_id),
                    want,
                    "{shown}"
                );
            }
            other => panic!("{shown}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_body_that_never_ends_changes_nothing() {
    for then in [
        Then::AnswerEndlessly("HTTP/1.1 500 Oops\r\n\r\n".to_owned()),
        Then::AnswerEndlessly("HTTP/1.1 500 Oops\r\nContent-Length: 99999999999\r\n\r\n".to_owned()),
        Then::AnswerAndClose("HTTP/1.1 500 Oops\r\nContent-Length: 5\r\n\r\n{".to_owned()),
        Then::AnswerAndClose(
            "HTTP/1.1 500 Oops\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
        ),
    ] {
        let server = Server::start(vec![then]).await;
        assert_eq!(status(&send(&graph(&server)).await), 500);
    }
    let slow = Then::AnswerAndHang("HTTP/1.1 500 Oops\r\nContent-Length: 5\r\n\r\n{".to_owned());
    let mut server = Server::start(vec![slow]).await;
    assert_eq!(status(&send_in_vain(&mut server).await), 500);
    // A 202 is a 202, whatever follows it.
    let endless = Then::AnswerEndlessly("HTTP/1.1 202 Accepted\r\n\r\n".to_owned());
    let server = Server::start(vec![endless]).await;
    assert_eq!(status(&send(&graph(&server)).await), 202);
}

#[tokio::test]
async fn a_401_is_tried_once_more_with_a_fresh_token() {
    let refused = || Then::Answer(json(401, r#"{"error":{"code":"InvalidAuthenticationToken"}}"#));
    let mut server = Server::start(vec![refused(), Then::Answer(ACCEPTED.to_owned())]).await;
    assert_eq!(status(&send(&graph(&server)).await), 202);
    let (first, second) = (server.next().await, server.next().await);
    assert_eq!(first.field("authorization"), Some("Bearer token-0"));
    assert_eq!(second.field("authorization"), Some("Bearer token-1"));
    assert_eq!(second.body, first.body);

    // No loop: two requests, two tokens, and then the tenant waits without asking anyone.
    let mut server = Server::start(vec![refused(), refused(), refused(), refused()]).await;
    let graph = graph(&server);
    assert_eq!(status(&send(&graph).await), 401);
    assert_eq!(server.tokens(), 2);
    server.next().await;
    server.next().await;
    match send(&graph).await {
        Answer::NoToken {
            credential: true,
            retry_after: Some(_),
            ..
        } => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(server.tokens(), 2);
    assert!(server.seen.try_recv().is_err());
}

#[tokio::test]
async fn retry_after_is_handed_on() {
    let throttled = "HTTP/1.1 429 Too Many\r\nRetry-After: 2.128\r\nContent-Length: 0\r\n\r\n";
    let server = Server::start(vec![Then::Answer(throttled.to_owned())]).await;
    match send(&graph(&server)).await {
        Answer::Response(response) => {
            assert_eq!(response.retry_after, Some(Duration::from_millis(2128)));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn requests_are_counted() {
    let throttled = "HTTP/1.1 429 Too Many\r\nContent-Length: 0\r\n\r\n".to_owned();
    let server = Server::start(vec![Then::Answer(throttled), Then::Reset]).await;
    let metrics = metrics();
    let tokens = Tokens::new(&server.tenant(), metrics.clone()).unwrap();
    let graph = Graph::new(&server.tenant(), PATIENT, tokens, metrics.clone()).unwrap();
    for _ in 0..3 {
        send(&graph).await;
    }
    let text = metrics.encode();
    for line in [
        r#"graphpost_graph_requests_total{operation="sendMail",code="429"} 1"#,
        r#"graphpost_graph_requests_total{operation="sendMail",code="0"} 1"#,
        r#"graphpost_graph_requests_total{operation="sendMail",code="202"} 1"#,
        "graphpost_graph_throttled_total 1",
        "graphpost_graph_request_duration_seconds_count 3",
        r#"graphpost_token_requests_total{result="ok"} 1"#,
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}
