//! The Azure services a gateway's credentials may come from: Key Vault, and the endpoints that give
//! tokens to managed identities.

mod identity;
mod vault;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::{any, get};
use serde_json::{Value, json};

pub(super) use self::identity::Agent;
pub use self::vault::CertificateForm;
pub(super) use self::vault::Vault;
use super::fault::{self, Action, Operation};
use super::wire::Peer;
use super::witness::Answered;
use super::{World, guid, reset};

/// A request to these services is small.
const REQUEST_MAX: usize = 256 * 1024;

pub(super) fn router() -> Router<Arc<World>> {
    Router::new()
        .route("/secrets/{*path}", any(vault_call))
        .route("/keys/{*path}", any(vault_call))
        .route("/certificates/{*path}", any(vault_call))
        .route("/metadata/identity/oauth2/token", get(machine))
        .route("/msi/token", get(app_service))
}

/// An answer of these services: a status, headers, and JSON.
struct Answer {
    status: StatusCode,
    headers: Vec<(HeaderName, String)>,
    body: Value,
}

impl Answer {
    fn ok(body: Value) -> Answer {
        Answer {
            status: StatusCode::OK,
            headers: Vec::new(),
            body,
        }
    }

    fn new(status: StatusCode, body: Value) -> Answer {
        Answer {
            status,
            headers: Vec::new(),
            body,
        }
    }

    fn with(mut self, name: HeaderName, value: String) -> Answer {
        self.headers.push((name, value));
        self
    }
}

async fn vault_call(
    State(world): State<Arc<World>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
) -> Response {
    serve(&world, &peer, Operation::Vault, request, async |parts, body| {
        vault::answer(&world, &parts, &body)
    })
    .await
}

async fn machine(
    State(world): State<Arc<World>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
) -> Response {
    serve(&world, &peer, Operation::Identity, request, async |parts, _| {
        identity::machine(&world, &parts).await
    })
    .await
}

async fn app_service(
    State(world): State<Arc<World>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
) -> Response {
    serve(&world, &peer, Operation::Identity, request, async |parts, _| {
        identity::app_service(&world, &parts)
    })
    .await
}

/// Carries a request out under the faults in force.
async fn serve(
    world: &World,
    peer: &Peer,
    operation: Operation,
    request: Request,
    work: impl AsyncFnOnce(Parts, Bytes) -> Answer,
) -> Response {
    let request_id = guid();
    let fault = world.faults().next(operation, "");
    let action = fault.as_ref().map(|it| &it.action);
    if matches!(action, Some(Action::ResetBeforeBody | Action::ResetAfterBody)) {
        world.record(operation, "", Answered::Reset, None, &request_id, "");
        return reset(peer);
    }
    if let Some(Action::ExpireTokens | Action::RevokeTokens) = action {
        world.tokens().expire_all();
    }
    let (parts, body) = request.into_parts();
    let answer = match (action, axum::body::to_bytes(body, REQUEST_MAX).await) {
        (Some(Action::Status(spoilt)), _) => spoil(spoilt),
        (_, Ok(body)) => plain(work(parts, body).await),
        (_, Err(_)) => plain(Answer::new(StatusCode::PAYLOAD_TOO_LARGE, Value::Null)),
    };
    if let Some(fault) = &fault {
        tokio::time::sleep(Duration::from_millis(fault.delay_ms)).await;
    }
    let mut answer = answer;
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        answer.headers_mut().insert("x-ms-request-id", value);
    }
    world.record(
        operation,
        "",
        Answered::Status(answer.status().as_u16()),
        None,
        &request_id,
        "",
    );
    answer
}

fn plain(answer: Answer) -> Response {
    let body = if answer.body.is_null() {
        Body::empty()
    } else {
        Body::from(answer.body.to_string())
    };
    let mut response = Response::new(body);
    *response.status_mut() = answer.status;
    let json = (header::CONTENT_TYPE, "application/json; charset=utf-8".to_owned());
    let cache = (header::CACHE_CONTROL, "no-cache".to_owned());
    for (name, value) in answer.headers.into_iter().chain([json, cache]) {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn spoil(spoilt: &fault::Spoilt) -> Response {
    let error = json!({"error": {
        "code": spoilt.code.as_deref().unwrap_or("InternalServerError"),
        "message": spoilt.message.as_deref().unwrap_or("The service is having trouble."),
    }})
    .to_string();
    let (kind, body) = match spoilt.body {
        fault::Body::Json => ("application/json; charset=utf-8", error),
        fault::Body::Truncated => (
            "application/json; charset=utf-8",
            error[..error.len() / 2].to_owned(),
        ),
        fault::Body::Empty => ("text/plain", String::new()),
        fault::Body::Html => ("text/html", super::html_error(spoilt.status)),
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(spoilt.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(value) = spoilt
        .retry_after
        .as_deref()
        .and_then(|it| HeaderValue::from_str(it).ok())
    {
        response.headers_mut().insert(header::RETRY_AFTER, value);
    }
    response
}

/// One parameter of the query; empty counts as absent.
fn parameter(parts: &Parts, name: &str) -> Option<String> {
    let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
        .ok()?
        .0;
    pairs
        .into_iter()
        .find(|(it, value)| it == name && !value.is_empty())
        .map(|(_, value)| value)
}
