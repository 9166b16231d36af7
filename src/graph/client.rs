//! HTTP to Graph, and `sendMail`; drafts are in [`super::draft`]. The only code that talks to Graph.
//!
//! What matters most is to know, when no answer comes, whether Graph can have sent the message. The
//! body tells: until its first octet is asked for by the HTTP library, nothing of the message has
//! left this machine, whatever went wrong. From then on, only an answer, or HTTP/2's explicit word
//! that a request was not processed, makes us sure.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use jiff::Timestamp;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE,
};
use reqwest::{Body, Client, Method, Url};
use serde_json::Value;

use super::Request;
use crate::config::{Api, Tenant};
use crate::identity::{HttpsError, Token, TokenError, Tokens, guid, https};
use crate::metrics::{Metrics, RequestLabel};
use crate::outcome::{Answer, Response};

/// As much of an error's body as is read.
const MAX_ERROR_OCTETS: usize = 64 * 1024;
/// How long the rest of an answer may take once its status is known; the answer stands without it.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// `error.message` is kept up to this length.
const MAX_MESSAGE_CHARS: usize = 500;
/// `error.code` and `request-id` are kept up to this length.
const MAX_NAME_CHARS: usize = 100;

/// Shorter than the idle timeouts of front ends, so that we seldom write into a connection that is
/// just being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// How often a connection with requests in flight is asked whether it is alive.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// How long it may take to say so.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// A request that HTTP/2 says was not processed is repeated at once, this often.
const MAX_REPEATS: usize = 2;

/// A client of one tenant's Graph. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Graph(pub(super) Arc<Service>);

#[derive(Debug)]
pub(super) struct Service {
    tenant: Tenant,
    root: Url,
    request_timeout: Duration,
    tokens: Tokens,
    metrics: Arc<Metrics>,
    connections: RwLock<Connections>,
}

/// A pool of connections, and how many there were before it.
#[derive(Clone, Debug)]
struct Connections {
    client: Client,
    generation: u64,
}

/// One HTTP request, ready to be sent more than once.
pub(super) struct Call {
    /// What it is for, as the metrics name it.
    pub(super) operation: &'static str,
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) content: Bytes,
    /// How much of a successful answer's body is read.
    pub(super) max_octets: usize,
}

impl Call {
    pub(super) fn new(operation: &'static str, method: Method, url: Url) -> Call {
        Call {
            operation,
            method,
            url,
            headers: HeaderMap::new(),
            content: Bytes::new(),
            max_octets: MAX_ERROR_OCTETS,
        }
    }

    pub(super) fn with_content(mut self, content_type: &'static str, content: Bytes) -> Call {
        self.headers
            .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        self.content = content;
        self
    }
}

/// An answer, with its body where it was a success.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) response: Response,
    pub(super) body: Vec<u8>,
    /// The claims that Graph demands of the next token.
    challenge: Option<String>,
}

/// What became of one HTTP request.
pub(super) enum Fate {
    Answered(Reply),
    /// Nothing of the body was sent, or the server says that it did not process it.
    NotProcessed {
        why: String,
        /// Whether the server said so, and a new request is welcome at once.
        refused: bool,
    },
    Lost(String),
}

impl Graph {
    /// Prepares the client; connects to nothing yet. `request_timeout` bounds one request in all.
    /// Blocks: it reads the system's certificate authorities.
    ///
    /// # Errors
    /// [`HttpsError`]: a proxy or CA file that cannot be used, in words.
    pub fn new(
        tenant: &Tenant,
        request_timeout: Duration,
        tokens: Tokens,
        metrics: Arc<Metrics>,
    ) -> Result<Graph, HttpsError> {
        let root = Url::parse(&tenant.graph).map_err(|_| HttpsError::Root(tenant.graph.clone()))?;
        if root.cannot_be_a_base() {
            return Err(HttpsError::Root(tenant.graph.clone()));
        }
        Ok(Graph(Arc::new(Service {
            connections: RwLock::new(Connections {
                client: connect(tenant)?,
                generation: 0,
            }),
            tenant: tenant.clone(),
            root,
            request_timeout,
            tokens,
            metrics,
        })))
    }

    /// An operator says that something has been mended: the next request finds out, without waiting.
    pub fn probe(&self) {
        self.0.tokens.ask_now();
    }

    /// `POST /v1.0/users/{mailbox}/sendMail`, or its equal in the Outlook REST API. Never retries by itself,
    /// except once with a fresh token after a 401 or 403, and where HTTP/2 says that the request was not
    /// processed. Each request has its
    /// own `client-request-id`; it is in the answer's words where Graph gave no `request-id`.
    pub async fn send_mail(&self, mailbox: &str, request: Request) -> Answer {
        let (content_type, content) = match request {
            Request::Json(content) => ("application/json", content),
            Request::Mime(content) => ("text/plain", content),
        };
        let url = self.0.url(mailbox, &["sendMail"]);
        let call = Call::new("sendMail", Method::POST, url).with_content(content_type, content);
        match self.0.call(&call).await {
            Ok(reply) => Answer::Response(reply.response),
            Err(answer) => answer,
        }
    }
}

impl Graph {
    /// `GET /v1.0/users/{mailbox}/messages?$top=1&$select=id`: whether the application may read and
    /// write mail in a mailbox, without changing anything in it. Answered 200 where it may.
    pub async fn look_into(&self, mailbox: &str) -> Answer {
        let mut url = self.0.url(mailbox, &["messages"]);
        url.set_query(Some("$top=1&$select=id"));
        match self.0.call(&Call::new("read", Method::GET, url)).await {
            Ok(reply) => Answer::Response(reply.response),
            Err(answer) => answer,
        }
    }

    /// Why the last request for a token failed, if it did.
    pub fn token_trouble(&self) -> Option<TokenError> {
        self.0.tokens.trouble()
    }
}

impl Service {
    /// `{root}/v1.0/users/{mailbox}/{path…}`, percent-encoded; `{root}/api/v2.0/…` in the Outlook REST
    /// API. A name that begins with `$` has a form
    /// of its own: `users('$name@contoso.com')` (Graph's page of known issues).
    pub(super) fn url(&self, mailbox: &str, path: &[&str]) -> Url {
        let mut url = self.root.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(match self.tenant.api {
                Api::Graph => &["v1.0"][..],
                Api::OutlookV2 => &["api", "v2.0"],
            });
            if mailbox.starts_with('$') {
                segments.push(&format!("users('{}')", mailbox.replace('\'', "''")));
            } else {
                segments.push("users").push(mailbox);
            }
            segments.extend(path);
        }
        url
    }

    /// Makes a call with the token of the moment; after a 401 once more with a fresh one, and after a 403
    /// with a newer one, where there is one.
    ///
    /// # Errors
    /// An [`Answer`] that is no response.
    pub(super) async fn call(&self, call: &Call) -> Result<Reply, Answer> {
        let mut refused = None;
        let mut asked_again = false;
        loop {
            let token = match self.tokens.get().await {
                Ok(token) => token,
                Err(error) => {
                    // Where Graph has spoken already, that is more than the missing second token.
                    return refused.ok_or(Answer::NoToken {
                        why: error.why,
                        credential: error.credential,
                        retry_after: error.retry_after,
                    });
                }
            };
            match self.attempt(call, Some(&token)).await {
                Fate::Answered(reply) if reply.response.status == 401 => {
                    self.tokens.reject(&token, reply.challenge.clone());
                    if refused.is_some() {
                        return Ok(reply);
                    }
                    refused = Some(reply);
                }
                Fate::Answered(reply) => {
                    self.tokens.accept(&token);
                    if reply.response.status == 403
                        && !asked_again
                        && self.tokens.newer(&token).await.is_some()
                    {
                        asked_again = true;
                        continue;
                    }
                    return Ok(reply);
                }
                Fate::NotProcessed { why, .. } => return Err(Answer::NotReached(why)),
                Fate::Lost(why) => return Err(Answer::Lost(why)),
            }
        }
    }

    /// Sends one request; again where the server says that it did not process it.
    pub(super) async fn attempt(&self, call: &Call, token: Option<&Token>) -> Fate {
        let mut repeats = 0;
        loop {
            match self.request(call, token).await {
                Fate::NotProcessed { refused: true, .. } if repeats < MAX_REPEATS => repeats += 1,
                fate => return fate,
            }
        }
    }

    async fn request(&self, call: &Call, token: Option<&Token>) -> Fate {
        let begun = Arc::new(AtomicBool::new(false));
        let client_request_id = guid();
        let Connections { client, generation } = self.connections();
        let started = Instant::now();
        let mut request = client
            .request(call.method.clone(), call.url.clone())
            .timeout(self.request_timeout)
            .headers(call.headers.clone())
            .header(ACCEPT, "application/json")
            .header("client-request-id", &client_request_id);
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, token.authorization());
        }
        if call.content.is_empty() {
            // No body will tell; from the connection on the request may have been read.
            begun.store(true, Ordering::Release);
            if call.method == Method::POST {
                request = request.header(CONTENT_LENGTH, 0);
            }
        } else {
            request = request.body(Body::wrap(WatchedBody {
                content: Some(call.content.clone()),
                begun: Arc::clone(&begun),
            }));
        }
        let fate = match request.send().await {
            Ok(response) => {
                let mut reply = read(response, call.max_octets).await;
                reply
                    .response
                    .request_id
                    .get_or_insert_with(|| format!("client:{client_request_id}"));
                Fate::Answered(reply)
            }
            Err(error) => {
                let why = format!("{} (client-request-id {client_request_id})", https::chain(&error));
                if not_processed(&error) {
                    Fate::NotProcessed { why, refused: true }
                } else if error.is_connect() || !begun.load(Ordering::Acquire) {
                    Fate::NotProcessed { why, refused: false }
                } else {
                    Fate::Lost(why)
                }
            }
        };
        let status = match &fate {
            Fate::Answered(reply) => reply.response.status,
            Fate::NotProcessed { .. } | Fate::Lost(_) => 0,
        };
        self.record(call.operation, status, started.elapsed());
        if status == 503 {
            self.reconnect(generation).await;
        }
        fate
    }

    fn connections(&self) -> Connections {
        self.connections
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// After a 503 the next request takes a new connection, which a load balancer may lead to another
    /// server (Graph's page "Best practices for working with Microsoft Graph"). Requests under way end
    /// where they are.
    async fn reconnect(&self, generation: u64) {
        if self.connections().generation != generation {
            return;
        }
        let tenant = self.tenant.clone();
        // If the files have become unreadable meanwhile, the old connections are better than none.
        let Ok(Ok(client)) = tokio::task::spawn_blocking(move || connect(&tenant)).await else {
            return;
        };
        let mut connections = self.connections.write().unwrap_or_else(PoisonError::into_inner);
        if connections.generation == generation {
            *connections = Connections {
                client,
                generation: generation + 1,
            };
        }
    }

    fn record(&self, operation: &'static str, code: u16, duration: Duration) {
        self.metrics
            .graph_requests
            .get_or_create(&RequestLabel { operation, code })
            .inc();
        self.metrics
            .graph_request_duration_seconds
            .observe(duration.as_secs_f64());
        if code == 429 {
            self.metrics.graph_throttled.inc();
        }
    }
}

fn connect(tenant: &Tenant) -> Result<Client, HttpsError> {
    https::client(tenant, &tenant.graph)?
        .pool_idle_timeout(IDLE_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .tcp_keepalive(PING_INTERVAL)
        .build()
        .map_err(HttpsError::Tls)
}

/// Whether HTTP/2 says that the request was not processed and may be repeated (RFC 9113 §8.7):
/// a stream above the last one of a graceful GOAWAY, or one that was refused.
fn not_processed(error: &reqwest::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let reason = error.reason();
            return error.is_remote()
                && (error.is_go_away() && reason == Some(h2::Reason::NO_ERROR)
                    || error.is_reset() && reason == Some(h2::Reason::REFUSED_STREAM));
        }
        cause = error.source();
    }
    false
}

/// Reads what matters of an answer. Its status stands, even if the rest never comes.
async fn read(mut response: reqwest::Response, max_octets: usize) -> Reply {
    let success = response.status().is_success();
    let headers = response.headers();
    let challenge = headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .find_map(|it| claims_of(it.to_str().ok()?));
    let mut answer = Response {
        status: response.status().as_u16(),
        retry_after: https::retry_after(headers, Timestamp::now()),
        request_id: headers
            .get("request-id")
            .and_then(|it| it.to_str().ok())
            .map(|it| line(it, MAX_NAME_CHARS)),
        ..Response::default()
    };
    let limit = if success { max_octets } else { MAX_ERROR_OCTETS };
    let body = tokio::time::timeout(BODY_TIMEOUT, https::read_at_most(&mut response, limit));
    let body = body.await.ok().and_then(Result::ok).unwrap_or_default();
    if success {
        return Reply {
            response: answer,
            body,
            challenge,
        };
    }
    describe(&mut answer, &body);
    Reply {
        response: answer,
        body: Vec::new(),
        challenge,
    }
}

/// The claims of a challenge of continuous access evaluation
/// (<https://learn.microsoft.com/entra/identity-platform/claims-challenge>).
fn claims_of(challenge: &str) -> Option<String> {
    let value = |name: &str| {
        let at = challenge.find(&format!("{name}=\""))? + name.len() + 2;
        challenge[at..].split('"').next()
    };
    if value("error") != Some("insufficient_claims") {
        return None;
    }
    let claims = value("claims")?.trim_end_matches('=');
    let decoded = STANDARD_NO_PAD
        .decode(claims)
        .or_else(|_| URL_SAFE_NO_PAD.decode(claims));
    String::from_utf8(decoded.ok()?).ok()
}

/// Takes `error.code` and `error.message` from a body, where it has them. Gateways answer in HTML, or
/// not at all; that leaves them empty.
fn describe(answer: &mut Response, body: &[u8]) {
    let Ok(json) = serde_json::from_slice::<Value>(body) else {
        return;
    };
    let error = &json["error"];
    let text = |value: &Value, max| value.as_str().map(|it| line(it, max)).filter(|it| !it.is_empty());
    answer.code = text(&error["code"], MAX_NAME_CHARS);
    answer.message = text(&error["message"], MAX_MESSAGE_CHARS);
    if answer.request_id.is_none() {
        answer.request_id = text(&error["innerError"]["request-id"], MAX_NAME_CHARS);
    }
}

/// A text made fit for one line of the log.
fn line(text: &str, max_chars: usize) -> String {
    text.chars()
        .map(|it| if it.is_control() { ' ' } else { it })
        .take(max_chars)
        .collect()
}

/// A body that knows whether any of it has been asked for. It is one piece, so asking for it once is
/// asking for all.
struct WatchedBody {
    content: Option<Bytes>,
    begun: Arc<AtomicBool>,
}

impl http_body::Body for WatchedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.begun.store(true, Ordering::Release);
        crash_point!("request-begun");
        Poll::Ready(self.content.take().map(|it| Ok(Frame::data(it))))
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.content.as_ref().map_or(0, |it| it.len() as u64))
    }
}
