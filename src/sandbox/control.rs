//! The cloud's own interface under `/sandbox/`: what was delivered, what was answered, and the
//! knobs.
//!
//! ```text
//! GET    /sandbox/messages[?after=ID&limit=N&at_least=N&wait_ms=N]
//!                                  what was delivered, oldest first; can wait until there is enough
//! DELETE /sandbox/messages         forget it
//! GET    /sandbox/messages/{id}    all of one
//! GET    /sandbox/messages/{id}/attachments/{n}
//! GET    /sandbox/messages/{id}/raw
//! GET    /sandbox/requests         what was answered: counts, and the latest one by one
//! GET, PUT, POST, DELETE /sandbox/faults
//! GET, PUT, DELETE       /sandbox/limits, /sandbox/tenant   PUT merges, DELETE restores the start
//! PUT    /sandbox/vault/secrets/{name}                  {"value", "content_type", "enabled"}
//! PUT    /sandbox/vault/certificates/{name}?form=pfx    certificate and key, PEM; pfx, pem or none
//! POST   /sandbox/certificates     registers a certificate, PEM or DER
//! POST   /sandbox/outage?ms=N      closes the port for a while
//! ```

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::World;
use super::azure::CertificateForm;
use super::fault::Rule;
use super::wire::Peer;

/// How long a request for messages may wait for them.
const WAIT_MAX: Duration = Duration::from_secs(300);

pub(super) fn router() -> Router<Arc<World>> {
    Router::new()
        .route("/sandbox/messages", get(messages).delete(forget))
        .route("/sandbox/messages/{id}", get(message))
        .route("/sandbox/messages/{id}/attachments/{number}", get(attachment))
        .route("/sandbox/messages/{id}/raw", get(raw))
        .route("/sandbox/requests", get(requests))
        .route(
            "/sandbox/faults",
            get(faults).put(set_faults).post(add_faults).delete(clear_faults),
        )
        .route(
            "/sandbox/limits",
            get(limits).put(set_limits).delete(restore_limits),
        )
        .route(
            "/sandbox/tenant",
            get(tenant).put(set_tenant).delete(restore_tenant),
        )
        .route("/sandbox/certificates", post(register_certificate))
        .route("/sandbox/vault/secrets/{name}", put(put_secret))
        .route("/sandbox/vault/certificates/{name}", put(put_certificate))
        .route("/sandbox/outage", post(outage))
        .layer(middleware::from_fn(same_site))
        .layer(DefaultBodyLimit::max(1024 * 1024))
}

/// A page elsewhere must not turn the knobs: browsers say where a request comes from
/// (<https://www.w3.org/TR/fetch-metadata/>), and other clients say nothing.
pub(super) async fn same_site(request: Request, next: Next) -> Response {
    let site = request
        .headers()
        .get("sec-fetch-site")
        .and_then(|it| it.to_str().ok());
    if request.method() != Method::GET && !matches!(site, None | Some("same-origin" | "none")) {
        return (StatusCode::FORBIDDEN, "this request comes from another site\n").into_response();
    }
    next.run(request).await
}

fn problem(status: StatusCode, what: impl std::fmt::Display) -> Response {
    (status, Json(json!({"error": what.to_string()}))).into_response()
}

fn no_message() -> Response {
    problem(StatusCode::NOT_FOUND, "no such message")
}

#[derive(Deserialize)]
#[serde(default)]
struct Which {
    after: u64,
    limit: usize,
    at_least: usize,
    wait_ms: u64,
}

impl Default for Which {
    fn default() -> Self {
        Which {
            after: 0,
            limit: usize::MAX,
            at_least: 0,
            wait_ms: 60_000,
        }
    }
}

async fn messages(State(world): State<Arc<World>>, Query(which): Query<Which>) -> Response {
    if which.at_least > 0 {
        let deadline = WAIT_MAX.min(Duration::from_millis(which.wait_ms));
        let mut arrivals = world.arrivals();
        let enough = async {
            while world.witness().deliveries(which.after).len() < which.at_least {
                if arrivals.changed().await.is_err() {
                    break;
                }
            }
        };
        // If there are not enough in time, what there is tells the rest.
        let _ = tokio::time::timeout(deadline, enough).await;
    }
    let witness = world.witness();
    let list: Vec<_> = witness.deliveries(which.after).take(which.limit).collect();
    Json(list).into_response()
}

async fn forget(State(world): State<Arc<World>>) -> StatusCode {
    world.witness().clear();
    world.store().clear();
    StatusCode::NO_CONTENT
}

async fn message(State(world): State<Arc<World>>, Path(id): Path<u64>) -> Response {
    world
        .witness()
        .delivery(id)
        .map_or_else(no_message, |it| Json(it.show()).into_response())
}

async fn attachment(State(world): State<Arc<World>>, Path((id, number)): Path<(u64, usize)>) -> Response {
    let found = world.witness().delivery(id).and_then(|it| {
        let attachment = it.attachments.get(number)?;
        it.content
            .is_some()
            .then(|| (attachment.name.clone(), attachment.content.clone()))
    });
    found.map_or_else(no_message, |(name, content)| download(&name, content))
}

async fn raw(State(world): State<Arc<World>>, Path(id): Path<u64>) -> Response {
    let found = world
        .witness()
        .delivery(id)
        .and_then(|it| it.content.as_ref().map(|it| it.raw.clone()));
    found.map_or_else(no_message, |content| {
        download(&format!("message-{id}.txt"), content)
    })
}

/// Content of unknown origin goes to disk, never into the page: no type a browser would act on, and
/// no guessing.
pub(super) fn download(name: &str, content: Bytes) -> Response {
    let mut response = Response::new(Body::from(content));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; sandbox; frame-ancestors 'none'"),
    );
    // RFC 6266 §4.3 and RFC 8187: everything but the plainest characters percent-encoded.
    let encoded: String = name
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect();
    if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename*=UTF-8''{encoded}")) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    response
}

async fn requests(State(world): State<Arc<World>>) -> Json<Value> {
    let mut report = world.witness().report();
    report["in_flight_peak"] = world
        .throttle()
        .peaks()
        .map(|(mailbox, peak)| (mailbox.to_owned(), Value::from(peak)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    report["store"] = world.store().report();
    report["vault"] = world.vault().report();
    report["tokens"] = world.tokens().report();
    Json(report)
}

async fn faults(State(world): State<Arc<World>>) -> Json<Value> {
    Json(world.faults().show())
}

/// One rule or a list of them.
fn rules(body: &[u8]) -> Result<Vec<Rule>, String> {
    let value: Value = serde_json::from_slice(body).map_err(|it| it.to_string())?;
    let list = match value {
        Value::Array(list) => list,
        one => vec![one],
    };
    list.into_iter()
        .enumerate()
        .map(|(index, it)| serde_json::from_value(it).map_err(|problem| format!("rule {index}: {problem}")))
        .collect()
}

async fn set_faults(State(world): State<Arc<World>>, body: Bytes) -> Response {
    let result = rules(&body).and_then(|rules| world.faults().replace(rules));
    shown(result, || world.faults().show())
}

async fn add_faults(State(world): State<Arc<World>>, body: Bytes) -> Response {
    let result = rules(&body).and_then(|rules| world.faults().append(rules));
    shown(result, || world.faults().show())
}

async fn clear_faults(State(world): State<Arc<World>>) -> StatusCode {
    world.faults().clear();
    StatusCode::NO_CONTENT
}

fn shown(result: Result<(), String>, show: impl FnOnce() -> Value) -> Response {
    match result {
        Ok(()) => Json(show()).into_response(),
        Err(what) => problem(StatusCode::BAD_REQUEST, what),
    }
}

async fn limits(State(world): State<Arc<World>>) -> Json<Value> {
    Json(json!(*world.limits()))
}

async fn set_limits(State(world): State<Arc<World>>, body: Bytes) -> Response {
    let mut limits = world.limits();
    let merged = merge(&*limits, &body).map(|it| *limits = it);
    shown(merged, || json!(*limits))
}

async fn restore_limits(State(world): State<Arc<World>>) -> StatusCode {
    world.restore_limits();
    StatusCode::NO_CONTENT
}

async fn tenant(State(world): State<Arc<World>>) -> Json<Value> {
    Json(json!(*world.tenant()))
}

async fn set_tenant(State(world): State<Arc<World>>, body: Bytes) -> Response {
    let mut tenant = world.tenant();
    let merged = merge(&*tenant, &body).map(|it| *tenant = it);
    shown(merged, || json!(*tenant))
}

async fn restore_tenant(State(world): State<Arc<World>>) -> StatusCode {
    world.restore_tenant();
    StatusCode::NO_CONTENT
}

/// The settings with what `changes` names replaced.
fn merge<T: Serialize + DeserializeOwned>(settings: &T, changes: &[u8]) -> Result<T, String> {
    let changes: serde_json::Map<String, Value> =
        serde_json::from_slice(changes).map_err(|it| it.to_string())?;
    let mut merged = serde_json::to_value(settings).map_err(|it| it.to_string())?;
    if let Some(object) = merged.as_object_mut() {
        object.extend(changes);
    }
    serde_json::from_value(merged).map_err(|it| it.to_string())
}

async fn register_certificate(State(world): State<Arc<World>>, body: Bytes) -> Response {
    match world.registrations().register(&body) {
        Ok(thumbprints) => (StatusCode::CREATED, Json(thumbprints)).into_response(),
        Err(what) => problem(StatusCode::BAD_REQUEST, what),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Secret {
    value: String,
    #[serde(default)]
    content_type: String,
    #[serde(default = "yes")]
    enabled: bool,
}

fn yes() -> bool {
    true
}

async fn put_secret(
    State(world): State<Arc<World>>,
    Path(name): Path<String>,
    Json(secret): Json<Secret>,
) -> Response {
    let put = world
        .vault()
        .put_secret(&name, secret.value, secret.content_type, secret.enabled);
    version(put)
}

#[derive(Deserialize)]
struct PutCertificate {
    form: CertificateForm,
}

async fn put_certificate(
    State(world): State<Arc<World>>,
    Path(name): Path<String>,
    Query(PutCertificate { form }): Query<PutCertificate>,
    pem: Bytes,
) -> Response {
    let put = world.vault().put_certificate(&name, &pem, form);
    version(put)
}

fn version(put: Result<String, String>) -> Response {
    match put {
        Ok(version) => (StatusCode::CREATED, Json(json!({"version": version}))).into_response(),
        Err(what) => problem(StatusCode::BAD_REQUEST, what),
    }
}

#[derive(Deserialize)]
struct Outage {
    ms: u64,
}

async fn outage(
    State(world): State<Arc<World>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Query(outage): Query<Outage>,
) -> (StatusCode, HeaderMap) {
    world
        .switchboard()
        .close_for(Duration::from_millis(outage.ms), Some(&peer.0));
    let headers = HeaderMap::from_iter([(header::CONNECTION, HeaderValue::from_static("close"))]);
    (StatusCode::ACCEPTED, headers)
}
