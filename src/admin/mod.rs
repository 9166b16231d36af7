//! What an operator and a monitoring system see: `/metrics`, `/livez`, `/readyz`, the queue as JSON,
//! and a status page.
//!
//! | path | what |
//! |---|---|
//! | `/` | the status page |
//! | `/metrics` | Prometheus text format |
//! | `/livez` | 200 while the process answers |
//! | `/readyz`, `/healthz` | 200 while mail is accepted durably, also while Graph is down; `?verbose` says why |
//! | `/api/status` | counts and health as JSON |
//! | `/api/tls` | clients that still need old TLS, and those refused for their age |
//! | `/api/queue` | entries, oldest first; `state`, `sender`, `mailbox`, `recipient`, `after`, `limit` |
//! | `/api/queue/{id}` | one entry |
//!
//! The same router serves the control socket, where `POST /api/queue` acts on messages and
//! `POST /api/flush` has all that waits tried now: who may open the socket may steer the queue. The TCP
//! address only shows.

mod limited;
mod page;
pub mod server;

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Path, Query, Request, State as Shared};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::delivery::{self, Control};
use crate::diagnosis::{Diagnosis, Health};
use crate::event;
use crate::identity::expiry::{self, UsedFor, Watched};
use crate::metrics::{FindingLabel, Metrics, StateLabel, StateValue};
use crate::smtp;
use crate::smtp::tls::devices::Device;
use crate::spool::{Action, Counts, Entry, Filter, QueueId, Spool, SpoolError, State};

/// The most entries of one answer; a longer list is read on with `after`.
const MAX_ENTRIES: usize = 1000;

/// The first words of what can be found: the labels of the metric.
const FINDINGS: [&str; 4] = ["token", "delivery", "mailbox", "certificate"];

/// The largest request: an action on a thousand messages, and its reason.
const MAX_BODY: usize = 256 * 1024;

/// What the router shows.
#[derive(Clone)]
pub struct Admin {
    /// The queue.
    pub spool: Spool,
    /// All metrics.
    pub metrics: Arc<Metrics>,
    /// Whether all listeners accept: true from readiness until the stop begins.
    pub listening: watch::Receiver<bool>,
    /// What the delivery is doing.
    pub delivery: Control,
    /// The certificates in use, the application's first.
    pub certificates: watch::Receiver<Vec<Watched>>,
    /// The listeners.
    pub smtp: smtp::Handle,
}

/// Where the router is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// The admin address: shows, and changes nothing.
    Address,
    /// The control socket: whoever may open it may steer the queue.
    ControlSocket,
}

/// The routes for a surface.
pub fn router(admin: Admin, surface: Surface) -> Router {
    let queue = match surface {
        Surface::Address => get(list),
        Surface::ControlSocket => get(list).merge(post(act)),
    };
    let mut router = Router::new();
    if surface == Surface::ControlSocket {
        router = router.route("/api/flush", post(flush));
    }
    let router = router
        .route("/", get(status_page))
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/healthz", get(ready))
        .route("/api/status", get(status))
        .route("/api/tls", get(tls_devices))
        .route("/api/queue", queue)
        .route("/api/queue/{id}", get(show))
        .with_state(admin)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(guard));
    match surface {
        Surface::Address => router.layer(middleware::from_fn(own_host_only)),
        Surface::ControlSocket => router,
    }
}

/// Whether mail is accepted, and how much waits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Whether mail is accepted durably.
    pub ready: bool,
    /// Why not, one line a cause.
    pub causes: Vec<String>,
    /// Messages by state.
    pub messages: Counts,
    /// Octets of content kept.
    pub bytes: u64,
    /// When the oldest message not yet sent was accepted.
    pub oldest: Option<Timestamp>,
    /// Free octets on the spool's file system.
    pub free_bytes: u64,
    /// What the delivery is doing; absent while it is stopping.
    pub delivery: Option<delivery::State>,
    /// When the token in use ends.
    pub token_expires: Option<Timestamp>,
    /// When the application's certificate ends: of two, the one in use.
    pub credential_expires: Option<Timestamp>,
    /// Every certificate in use.
    #[serde(default)]
    pub certificates: Vec<Watched>,
    /// What must be mended, or is waited for, in the words of `graphpost check`.
    #[serde(default)]
    pub findings: Vec<Diagnosis>,
    /// This program's version.
    pub version: String,
}

impl Admin {
    /// What stands against accepting mail; empty while it is accepted. Graph is not asked: to store
    /// mail while Graph is down is what the gateway is for.
    fn causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        if !*self.listening.borrow() {
            causes.push("the listeners do not accept connections".to_owned());
        }
        if let Err(error) = self.spool.has_room(0) {
            causes.push(error.to_string());
        }
        causes
    }

    /// What must be mended, or is waited for.
    fn findings(&self, delivery: Option<&delivery::State>, now: Timestamp) -> Vec<Diagnosis> {
        let mut findings = delivery.map(|it| it.findings.clone()).unwrap_or_default();
        for it in self.certificates.borrow().iter() {
            let check = format!("certificate of {}", it.used_for);
            let expiry = Diagnosis::expiry(check, it.not_after, it.used_for.renewal(), now);
            findings.extend((expiry.status != Health::Ok).then_some(expiry));
        }
        findings
    }

    async fn status(&self) -> Result<Status, SpoolError> {
        let statistics = self.spool.statistics().await?;
        let causes = self.causes();
        let certificates = self.certificates.borrow().clone();
        let delivery = self.delivery.state().await;
        Ok(Status {
            ready: causes.is_empty(),
            causes,
            messages: statistics.messages,
            bytes: statistics.bytes,
            oldest: statistics.oldest,
            free_bytes: statistics.free_bytes,
            findings: self.findings(delivery.as_ref(), Timestamp::now()),
            delivery,
            token_expires: point(self.metrics.token_expiry_timestamp_seconds.get()),
            credential_expires: certificates
                .iter()
                .find(|it| matches!(it.used_for, UsedFor::Application(_)))
                .map(|it| it.not_after),
            certificates,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }
}

async fn metrics(Shared(admin): Shared<Admin>) -> Response {
    // The gauges of the queue are read when somebody looks, not kept by every change.
    match admin.spool.statistics().await {
        Ok(statistics) => {
            for (state, value) in [
                (State::Queued, StateValue::queued),
                (State::Sending, StateValue::sending),
                (State::Held, StateValue::held),
                (State::Unknown, StateValue::unknown),
                (State::Failed, StateValue::failed),
                (State::Sent, StateValue::sent),
            ] {
                let label = StateLabel { state: value };
                admin
                    .metrics
                    .queue_messages
                    .get_or_create(&label)
                    .set(gauge(statistics.messages.of(state)));
            }
            let age = statistics
                .oldest
                .map_or(0, |oldest| Timestamp::now().duration_since(oldest).as_secs());
            admin.metrics.queue_bytes.set(gauge(statistics.bytes));
            admin.metrics.queue_oldest_age_seconds.set(age.max(0));
            admin.metrics.spool_free_bytes.set(gauge(statistics.free_bytes));
        }
        Err(error) => return failure(&error),
    }
    let findings = admin.findings(admin.delivery.state().await.as_ref(), Timestamp::now());
    for check in FINDINGS {
        for status in [Health::Warn, Health::Fail] {
            let number = findings
                .iter()
                .filter(|it| it.status == status && it.check.split(' ').next() == Some(check))
                .count();
            let status = status.as_str();
            admin
                .metrics
                .findings
                .get_or_create(&FindingLabel { check, status })
                .set(gauge(number as u64));
        }
    }
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], admin.metrics.encode()).into_response()
}

/// A gauge that holds a point in time; zero while there is none.
fn point(seconds: i64) -> Option<Timestamp> {
    (seconds != 0)
        .then(|| Timestamp::from_second(seconds).ok())
        .flatten()
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[derive(Deserialize)]
struct Verbosity {
    verbose: Option<String>,
}

async fn ready(Shared(admin): Shared<Admin>, Query(query): Query<Verbosity>) -> Response {
    let causes = admin.causes();
    let status = if causes.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut text = if causes.is_empty() {
        "ready\n"
    } else {
        "not ready\n"
    }
    .to_owned();
    if query.verbose.is_some() {
        let now = Timestamp::now();
        let certificates = admin.certificates.borrow().clone();
        let lines = causes
            .into_iter()
            .chain(certificates.iter().map(|it| ending(it, now)));
        for line in lines {
            text.push_str(&line);
            text.push('\n');
        }
        for finding in admin.findings(admin.delivery.state().await.as_ref(), now) {
            text.push_str(&finding.text(0));
        }
    }
    (status, text).into_response()
}

/// The end of a certificate in one line. It is told, and is no cause: what has expired may be in use all
/// the same, and mail is accepted while it is mended.
fn ending(certificate: &Watched, now: Timestamp) -> String {
    let days = expiry::days_left(now, certificate.not_after);
    let left = match days {
        ..0 => "has expired".to_owned(),
        0 => "ends within a day".to_owned(),
        1 => "ends in 1 day".to_owned(),
        days => format!("ends in {days} days"),
    };
    format!(
        "certificate of {} {left}, {}",
        certificate.used_for, certificate.not_after
    )
}

async fn status(Shared(admin): Shared<Admin>) -> Response {
    match admin.status().await {
        Ok(status) => Json(status).into_response(),
        Err(error) => failure(&error),
    }
}

async fn tls_devices(Shared(admin): Shared<Admin>) -> Response {
    Json::<Vec<Device>>(admin.smtp.tls_devices()).into_response()
}

async fn status_page(Shared(admin): Shared<Admin>) -> Response {
    let waiting = Filter {
        states: vec![
            State::Queued,
            State::Sending,
            State::Held,
            State::Unknown,
            State::Failed,
        ],
        limit: page::MAX_ROWS,
        ..Filter::default()
    };
    match (admin.status().await, admin.spool.list(waiting).await) {
        (Ok(status), Ok(entries)) => {
            let policy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; \
                          frame-ancestors 'none'; base-uri 'none'";
            let html = Html(page::render(&status, &entries, Timestamp::now()));
            ([(header::CONTENT_SECURITY_POLICY, policy)], html).into_response()
        }
        (Err(error), _) | (_, Err(error)) => failure(&error),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// One state or several with commas.
    state: Option<String>,
    sender: Option<String>,
    mailbox: Option<String>,
    recipient: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

async fn list(Shared(admin): Shared<Admin>, Query(query): Query<ListQuery>) -> Response {
    let filter = match filter(query) {
        Ok(filter) => filter,
        Err(why) => return refusal(StatusCode::BAD_REQUEST, &why),
    };
    match admin.spool.list(filter).await {
        Ok(entries) => Json::<Vec<Entry>>(entries).into_response(),
        Err(error) => failure(&error),
    }
}

fn filter(query: ListQuery) -> Result<Filter, String> {
    let states = query.state.as_deref().unwrap_or_default();
    let states = states
        .split(',')
        .filter(|it| !it.is_empty())
        .map(|it| it.parse::<State>().map_err(|error| error.to_string()))
        .collect::<Result<_, _>>()?;
    let after = query
        .after
        .map(|it| it.parse::<QueueId>())
        .transpose()
        .map_err(|error| error.to_string())?;
    Ok(Filter {
        group_of: None,
        states,
        sender: query.sender,
        mailbox: query.mailbox,
        recipient: query.recipient,
        accepted_before: None,
        after,
        limit: query.limit.unwrap_or(MAX_ENTRIES).clamp(1, MAX_ENTRIES),
    })
}

async fn show(Shared(admin): Shared<Admin>, Path(id): Path<String>) -> Response {
    let id = match id.parse::<QueueId>() {
        Ok(id) => id,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    match admin.spool.get(id).await {
        Ok(entry) => Json(entry).into_response(),
        Err(error) => failure(&error),
    }
}

/// What `POST /api/queue` on the control socket takes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Act {
    /// `retry`, `hold`, `release` or `delete`.
    pub action: Action,
    /// The messages.
    pub ids: Vec<QueueId>,
    /// Who does it.
    pub who: String,
    /// Why; kept with each message and in the log.
    pub reason: String,
}

/// What came of an action on one message.
#[derive(Debug, Serialize, Deserialize)]
pub struct Acted {
    /// The message.
    pub id: QueueId,
    /// Why it was refused; absent when it was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

async fn act(Shared(admin): Shared<Admin>, Json(order): Json<Act>) -> Response {
    let results = admin
        .spool
        .act_on_all(&order.ids, order.action, &order.reason)
        .await;
    let done: Vec<String> = results
        .iter()
        .filter(|(_, result)| result.is_ok())
        .map(|(id, _)| id.to_string())
        .collect();
    if !done.is_empty() {
        event::operator(order.action.as_str(), &done, &order.who, Some(&order.reason));
    }
    let acted: Vec<Acted> = results
        .into_iter()
        .map(|(id, result)| Acted {
            id,
            error: result.err().map(|error| error.to_string()),
        })
        .collect();
    Json(acted).into_response()
}

/// What `POST /api/flush` on the control socket takes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flush {
    /// Who does it.
    pub who: String,
    /// Why.
    pub reason: String,
}

/// What flushing did.
#[derive(Debug, Serialize, Deserialize)]
pub struct Flushed {
    /// Messages that are now due.
    pub messages: usize,
}

/// Makes due all messages that wait for a time, and lets what is held for a credential or a permission
/// try one message. What waits for `Retry-After` goes on waiting: to come back earlier only makes
/// Microsoft's wait longer.
async fn flush(Shared(admin): Shared<Admin>, Json(order): Json<Flush>) -> Response {
    let mut flushed = 0;
    let mut after = None;
    loop {
        let filter = Filter {
            states: vec![State::Queued, State::Held],
            after,
            limit: MAX_ENTRIES,
            ..Filter::default()
        };
        let entries = match admin.spool.list(filter).await {
            Ok(entries) => entries,
            Err(error) => return failure(&error),
        };
        let Some(last) = entries.last() else { break };
        after = Some(last.id);
        // What the operator has put on hold has no time to wait for, and stays there.
        let ids: Vec<QueueId> = entries
            .iter()
            .filter(|it| it.due.is_some())
            .map(|it| it.id)
            .collect();
        let results = admin.spool.act_on_all(&ids, Action::Retry, &order.reason).await;
        flushed += results.iter().filter(|(_, it)| it.is_ok()).count();
    }
    admin.delivery.probe().await;
    event::flushed(flushed, &order.who, &order.reason);
    Json(Flushed { messages: flushed }).into_response()
}

fn failure(error: &SpoolError) -> Response {
    let status = match error {
        SpoolError::NotFound(_) => StatusCode::NOT_FOUND,
        SpoolError::Refused(..) => StatusCode::CONFLICT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    refusal(status, &error.to_string())
}

fn refusal(status: StatusCode, why: &str) -> Response {
    (status, Json(serde_json::json!({ "error": why }))).into_response()
}

/// What holds for every answer: nothing is cached, sniffed or framed.
async fn guard(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// Refuses host names that are not ours. A page elsewhere may point its own name at a loopback
/// address and read this one through the visitor's browser (DNS rebinding); an address in the Host
/// field cannot be such a name.
async fn own_host_only(request: Request, next: Next) -> Response {
    if is_own_host(request.headers()) {
        return next.run(request).await;
    }
    let why = "open this page by its IP address or as localhost\n";
    (StatusCode::MISDIRECTED_REQUEST, why).into_response()
}

fn is_own_host(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else {
        return true;
    };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|it| it.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_own_host() {
        for (host, own) in [
            ("127.0.0.1:8025", true),
            ("127.0.0.1", true),
            ("localhost:8025", true),
            ("LOCALHOST", true),
            ("[::1]:8025", true),
            ("10.1.2.3:80", true),
            ("evil.example", false),
            ("evil.example:8025", false),
            ("127.0.0.1.evil.example", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static(host));
            assert_eq!(is_own_host(&headers), own, "{host}");
        }
    }

    #[test]
    fn reads_filters() {
        let query = |state: &str, after: Option<&str>, limit| ListQuery {
            state: Some(state.to_owned()),
            sender: None,
            mailbox: None,
            recipient: None,
            after: after.map(str::to_owned),
            limit,
        };
        let read = filter(query("held,failed", Some("15"), Some(5))).expect("a filter");
        assert_eq!(read.states, [State::Held, State::Failed]);
        assert_eq!((read.after, read.limit), ("15".parse().ok(), 5));
        assert_eq!(
            filter(query("", None, Some(1_000_000))).map(|it| it.limit),
            Ok(MAX_ENTRIES)
        );
        assert!(filter(query("lost", None, None)).is_err());
        assert!(filter(query("", Some("!"), None)).is_err());
    }
}
