//! `sendMail`; the only code that talks to Graph.
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

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use jiff::Timestamp;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use reqwest::{Body, Client, Method, Url};
use serde_json::Value;

use crate::config::Tenant;
use crate::convert::Request;
use crate::identity::{HttpsError, Token, Tokens, guid, https};
use crate::metrics::{Metrics, RequestLabel};
use crate::outcome::{Answer, Response};

/// As much of an error's body as is read.
const MAX_ERROR_OCTETS: usize = 64 * 1024;
/// How long the rest of an answer may take once its status is known; the answer stands without it.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(10);
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
pub struct Graph(Arc<Service>);

#[derive(Debug)]
struct Service {
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
struct Call<'a> {
    operation: &'static str,
    method: Method,
    url: &'a Url,
    content_type: &'static str,
    content: &'a Bytes,
}

/// What became of one HTTP request.
enum Fate {
    Answered(Response),
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

    /// `POST /v1.0/users/{mailbox}/sendMail`. Never retries by itself, except once with a fresh token
    /// after a 401, and where HTTP/2 says that the request was not processed. Each request has its
    /// own `client-request-id`; it is in the answer's words where Graph gave no `request-id`.
    pub async fn send_mail(&self, mailbox: &str, request: Request) -> Answer {
        let url = self.0.url(&["sendMail"], mailbox);
        let (content_type, content) = match &request {
            Request::Json(content) => ("application/json", content),
            Request::Mime(content) => ("text/plain", content),
        };
        self.0
            .call(&Call {
                operation: "sendMail",
                method: Method::POST,
                url: &url,
                content_type,
                content,
            })
            .await
    }
}

impl Service {
    /// `{root}/v1.0/users/{mailbox}/{path…}`, percent-encoded. A name that begins with `$` has a form
    /// of its own: `users('$name@contoso.com')` (Graph's page of known issues).
    fn url(&self, path: &[&str], mailbox: &str) -> Url {
        let mut url = self.root.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1.0");
            if mailbox.starts_with('$') {
                segments.push(&format!("users('{}')", mailbox.replace('\'', "''")));
            } else {
                segments.push("users").push(mailbox);
            }
            segments.extend(path);
        }
        url
    }

    /// Makes a call with the token of the moment; after a 401 once more with a fresh one.
    async fn call(&self, call: &Call<'_>) -> Answer {
        let mut refused = None;
        loop {
            let token = match self.tokens.get().await {
                Ok(token) => token,
                Err(error) => match refused {
                    // Graph has spoken, and that is more than the missing second token.
                    Some(response) => return Answer::Response(response),
                    None => {
                        return Answer::NoToken {
                            why: error.why,
                            credential: error.credential,
                            retry_after: error.retry_after,
                        };
                    }
                },
            };
            match self.attempt(call, &token).await {
                Fate::Answered(response) if response.status == 401 => {
                    self.tokens.reject(&token);
                    if refused.is_some() {
                        return Answer::Response(response);
                    }
                    refused = Some(response);
                }
                Fate::Answered(response) => {
                    self.tokens.accept(&token);
                    return Answer::Response(response);
                }
                Fate::NotProcessed { why, .. } => return Answer::NotReached(why),
                Fate::Lost(why) => return Answer::Lost(why),
            }
        }
    }

    /// Sends one request; again where the server says that it did not process it.
    async fn attempt(&self, call: &Call<'_>, token: &Token) -> Fate {
        let mut repeats = 0;
        loop {
            match self.request(call, token).await {
                Fate::NotProcessed { refused: true, .. } if repeats < MAX_REPEATS => repeats += 1,
                fate => return fate,
            }
        }
    }

    async fn request(&self, call: &Call<'_>, token: &Token) -> Fate {
        let begun = Arc::new(AtomicBool::new(false));
        let client_request_id = guid();
        let Connections { client, generation } = self.connections();
        let started = Instant::now();
        let sent = client
            .request(call.method.clone(), call.url.clone())
            .timeout(self.request_timeout)
            .header(AUTHORIZATION, token.authorization())
            .header(CONTENT_TYPE, call.content_type)
            .header(ACCEPT, "application/json")
            .header("client-request-id", &client_request_id)
            .body(Body::wrap(WatchedBody {
                content: Some(call.content.clone()),
                begun: Arc::clone(&begun),
            }))
            .send()
            .await;
        let fate = match sent {
            Ok(response) => Fate::Answered(read(response).await),
            Err(error) => {
                let why = format!("{} (client-request-id {client_request_id})", https::chain(&error));
                if not_processed(&error) {
                    Fate::NotProcessed { why, refused: true }
                } else if begun.load(Ordering::Acquire) {
                    Fate::Lost(why)
                } else {
                    Fate::NotProcessed { why, refused: false }
                }
            }
        };
        let status = match &fate {
            Fate::Answered(response) => response.status,
            Fate::NotProcessed { .. } | Fate::Lost(_) => 0,
        };
        self.record(call.operation, status, started.elapsed());
        if status == 503 {
            self.reconnect(generation).await;
        }
        match fate {
            Fate::Answered(mut response) => {
                response.request_id = response
                    .request_id
                    .or_else(|| Some(format!("client:{client_request_id}")));
                Fate::Answered(response)
            }
            fate => fate,
        }
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
async fn read(mut response: reqwest::Response) -> Response {
    let headers = response.headers();
    let mut answer = Response {
        status: response.status().as_u16(),
        retry_after: https::retry_after(headers, Timestamp::now()),
        request_id: headers
            .get("request-id")
            .and_then(|it| it.to_str().ok())
            .map(|it| line(it, MAX_NAME_CHARS)),
        ..Response::default()
    };
    let body = tokio::time::timeout(
        ERROR_BODY_TIMEOUT,
        https::read_at_most(&mut response, MAX_ERROR_OCTETS),
    );
    if let Ok(Ok(body)) = body.await {
        describe(&mut answer, &body);
    }
    answer
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
        Poll::Ready(self.content.take().map(|it| Ok(Frame::data(it))))
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.content.as_ref().map_or(0, |it| it.len() as u64))
    }
}
