//! Graph mail: `sendMail`, drafts, upload sessions, and just enough reading to find what was sent.
//!
//! Every request goes the same way: throttle, faults, token, permission, body, work, answer. The
//! work is done in its own task, so that a client that goes away does not undo it: Exchange would
//! not stop either.

mod error;
mod message;
mod mime;
mod outlook;
mod schema;
mod store;

use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{Query, Request};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use self::error::{GraphError, usual};
pub(super) use self::store::Store;
use self::store::{Folder, Progress};
use super::entra::tokens::Invalid;
use super::entra::{self, bearer_token};
use super::fault::{self, Action, Fault, Operation, Spoilt};
use super::limits::{Lane, Throttled};
use super::mail::{Form, Mail, Recipient};
use super::tenant::{Denied, MAIL_READ_WRITE, MAIL_SEND, Mailbox, NoMailbox, is_guid};
use super::wire::Peer;
use super::witness::{Answered, Content, Delivery};
use super::{World, guid, percent_decode, reset};

/// Where upload sessions live. The real ones are on another host, and their URLs mean nothing.
const UPLOAD_ROOT: &str = "/api/gv1.0/";

/// Where the Outlook REST API was.
const OUTLOOK_ROOT: &str = "/api/v2.0/";

/// Bodies beyond the limit are read and thrown away up to this size, so that the client hears the
/// answer instead of a broken pipe.
const DRAIN_MAX: usize = 256 * 1024 * 1024;

/// Answers one request under `/v1.0/`, to the older API, or to an upload URL.
pub(super) async fn handle(world: Arc<World>, peer: Peer, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let answer = Answer::to(&parts.headers);
    let call = match Call::read(&parts.method, &parts.uri) {
        Ok(call) => call,
        Err(refusal) => return answer.refuse(&world, Operation::Unknown, "", &refusal),
    };
    let operation = call.operation();
    let outlook = parts.uri.path().starts_with(OUTLOOK_ROOT);
    let mailbox = call.mailbox(&world);

    let bearer = bearer_token(&parts.headers);
    let app = match &call {
        Call::Upload { secret, .. } => world.store().session_owner(secret).map(|(_, app)| app),
        _ => bearer.and_then(|it| world.tokens().find(it).map(|token| token.client.clone())),
    };
    let length = parts
        .headers
        .get(header::CONTENT_LENGTH)
        .and_then(|it| it.to_str().ok()?.parse::<u64>().ok())
        .unwrap_or_default();
    let lane = (app.unwrap_or_default(), mailbox.to_ascii_lowercase());
    let slot = match Slot::take(&world, lane, &call, length) {
        Ok(slot) => slot,
        Err(refusal) => {
            let _ = read(body, 0).await;
            return answer.refuse(&world, operation, &mailbox, &refusal);
        }
    };

    let fault = world.faults().next(operation, &mailbox);
    if fault
        .as_ref()
        .is_some_and(|it| it.action == Action::ResetBeforeBody)
    {
        world.record(operation, &mailbox, Answered::Reset, None, &answer.request_id, "");
        return reset(&peer);
    }
    let limit = world.limits().request_bytes;
    let Ok(body) = read(body, limit).await else {
        // The client went away while it was sending: there is nobody to answer.
        world.record(operation, &mailbox, Answered::Reset, None, &answer.request_id, "");
        return reset(&peer);
    };
    let work = Work {
        world,
        peer,
        answer,
        call,
        mailbox,
        headers: parts.headers,
        body,
        fault,
        slot,
        outlook,
    };
    match tokio::spawn(work.run()).await {
        Ok(response) => response,
        Err(_) => Response::builder()
            .status(StatusCode::INTERNAL_SERVER_ERROR)
            .body(Body::from("the sandbox failed"))
            .unwrap_or_default(),
    }
}

/// What is asked for.
#[derive(Debug)]
enum Call {
    SendMail {
        user: String,
    },
    CreateDraft {
        user: String,
    },
    List {
        user: String,
        folder: Folder,
        query: Vec<(String, String)>,
    },
    Get {
        user: String,
        id: String,
        query: Vec<(String, String)>,
    },
    Delete {
        user: String,
        id: String,
    },
    Attach {
        user: String,
        id: String,
    },
    CreateUploadSession {
        user: String,
        id: String,
    },
    Send {
        user: String,
        id: String,
    },
    Upload {
        method: Method,
        secret: String,
    },
}

impl Call {
    fn read(method: &Method, uri: &Uri) -> Result<Call, GraphError> {
        let query = |uri: &Uri| {
            Query::<Vec<(String, String)>>::try_from_uri(uri)
                .map(|Query(pairs)| pairs)
                .unwrap_or_default()
        };
        let path = uri.path();
        if path.starts_with(UPLOAD_ROOT) {
            let secret = query(uri)
                .into_iter()
                .find(|(name, _)| name == "authtoken")
                .map(|(_, value)| value);
            return match (secret, method) {
                (Some(secret), &Method::PUT | &Method::GET | &Method::DELETE) => Ok(Call::Upload {
                    method: method.clone(),
                    secret,
                }),
                _ => Err(GraphError::not_found()),
            };
        }
        let path = path
            .strip_prefix("/v1.0/")
            .or_else(|| path.strip_prefix(OUTLOOK_ROOT));
        let segments = segments(path.unwrap_or_default());
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let (user, rest) = match segments.as_slice() {
            ["me", ..] => {
                return Err(GraphError::new(
                    400,
                    "BadRequest",
                    "/me request is only valid with delegated authentication flow.",
                ));
            }
            ["users", user, rest @ ..] => ((*user).to_owned(), rest),
            _ => return Err(no_segment(&segments)),
        };
        let own = |id: &str| id.to_owned();
        let post = method == Method::POST;
        Ok(match rest {
            [action] if post && is_action(action, "sendMail") => Call::SendMail { user },
            ["messages"] if post => Call::CreateDraft { user },
            ["messages"] if method == Method::GET => Call::List {
                user,
                folder: Folder::All,
                query: query(uri),
            },
            ["mailFolders", folder, "messages"] if method == Method::GET => {
                let folder = match folder.to_ascii_lowercase().as_str() {
                    "sentitems" => Folder::SentItems,
                    "drafts" => Folder::Drafts,
                    _ => {
                        return Err(GraphError::new(
                            404,
                            "ErrorItemNotFound",
                            "The folder was not found.",
                        ));
                    }
                };
                Call::List {
                    user,
                    folder,
                    query: query(uri),
                }
            }
            ["messages", id] if method == Method::GET => Call::Get {
                user,
                id: own(id),
                query: query(uri),
            },
            ["messages", id] if method == Method::DELETE => Call::Delete { user, id: own(id) },
            ["messages", id, "attachments"] if post => Call::Attach { user, id: own(id) },
            ["messages", id, "attachments", action] if post && is_action(action, "createUploadSession") => {
                Call::CreateUploadSession { user, id: own(id) }
            }
            ["messages", id, action] if post && is_action(action, "send") => Call::Send { user, id: own(id) },
            _ => return Err(no_segment(&segments)),
        })
    }

    fn operation(&self) -> Operation {
        match self {
            Call::SendMail { .. } => Operation::SendMail,
            Call::CreateDraft { .. } => Operation::CreateDraft,
            Call::List { .. } | Call::Get { .. } => Operation::Read,
            Call::Delete { .. } => Operation::Delete,
            Call::Attach { .. } => Operation::Attach,
            Call::CreateUploadSession { .. } => Operation::CreateUploadSession,
            Call::Send { .. } => Operation::Send,
            Call::Upload { .. } => Operation::Chunk,
        }
    }

    /// The permission it takes: <https://learn.microsoft.com/graph/permissions-reference>.
    fn role(&self) -> &'static str {
        match self {
            Call::SendMail { .. } | Call::Send { .. } => MAIL_SEND,
            _ => MAIL_READ_WRITE,
        }
    }

    fn user(&self) -> Option<&str> {
        match self {
            Call::SendMail { user }
            | Call::CreateDraft { user }
            | Call::List { user, .. }
            | Call::Get { user, .. }
            | Call::Delete { user, .. }
            | Call::Attach { user, .. }
            | Call::CreateUploadSession { user, .. }
            | Call::Send { user, .. } => Some(user),
            Call::Upload { .. } => None,
        }
    }

    /// The primary address of the mailbox it is about, as far as that is known.
    fn mailbox(&self, world: &World) -> String {
        match (self, self.user()) {
            (Call::Upload { secret, .. }, _) => world
                .store()
                .session_owner(secret)
                .map(|(mailbox, _)| mailbox)
                .unwrap_or_default(),
            (_, Some(user)) => world
                .tenant()
                .mailbox(user)
                .map_or_else(|_| user.to_owned(), |it| it.address),
            (_, None) => String::new(),
        }
    }
}

/// The segments of a path, decoded; `users('a@b')` is two (OData 4.01, URL conventions §4.3).
fn segments(path: &str) -> Vec<String> {
    let mut found = Vec::new();
    for segment in path.split('/').filter(|it| !it.is_empty()) {
        let segment = percent_decode(segment);
        match segment.strip_suffix("')").and_then(|it| it.split_once("('")) {
            Some((name, key)) => found.extend([name.to_owned(), key.replace("''", "'")]),
            None => found.push(segment),
        }
    }
    found
}

fn is_action(segment: &str, name: &str) -> bool {
    segment
        .strip_prefix("microsoft.graph.")
        .unwrap_or(segment)
        .eq_ignore_ascii_case(name)
}

fn no_segment(segments: &[&str]) -> GraphError {
    let last = segments.last().copied().unwrap_or_default();
    GraphError::new(
        400,
        "BadRequest",
        format!("Resource not found for the segment '{last}'."),
    )
}

/// One request's place among those in flight.
struct Slot {
    world: Arc<World>,
    lane: Lane,
}

impl Slot {
    fn take(world: &Arc<World>, lane: Lane, call: &Call, length: u64) -> Result<Slot, GraphError> {
        let limits = world.limits().clone();
        let sends = matches!(call, Call::SendMail { .. } | Call::Send { .. });
        let entered = world
            .throttle()
            .enter(&lane, &limits, sends, length, Instant::now());
        match entered {
            Ok(()) => Ok(Slot {
                world: Arc::clone(world),
                lane,
            }),
            Err(Throttled { message, wait }) => {
                let mut refusal = GraphError::new(429, "ApplicationThrottled", message);
                refusal.retry_after = limits.retry_after.write(wait);
                Err(refusal)
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.world.throttle().leave(&self.lane);
    }
}

/// A request body.
enum Received {
    Whole(Bytes),
    TooLarge,
}

/// Reads a body up to `limit`, and what is beyond without keeping it.
async fn read(mut body: Body, limit: usize) -> Result<Received, axum::Error> {
    let mut chunks = Vec::new();
    let mut size = 0;
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let Ok(data) = frame?.into_data() else { continue };
        size += data.len();
        if size > limit {
            chunks.clear();
        } else {
            chunks.push(data);
        }
        if size > DRAIN_MAX {
            break;
        }
    }
    if size > limit {
        return Ok(Received::TooLarge);
    }
    Ok(Received::Whole(match chunks.len() {
        0 => Bytes::new(),
        1 => chunks.swap_remove(0),
        _ => chunks.concat().into(),
    }))
}

/// A request with its body, ready to be carried out.
struct Work {
    world: Arc<World>,
    peer: Peer,
    answer: Answer,
    call: Call,
    mailbox: String,
    headers: HeaderMap,
    body: Received,
    fault: Option<Fault>,
    slot: Slot,
    /// Whether it came in the older names.
    outlook: bool,
}

/// An answer as it should be.
struct Success {
    status: StatusCode,
    body: Option<Value>,
    location: Option<String>,
    delivered: Option<u64>,
}

impl Success {
    fn new(status: StatusCode, body: Option<Value>) -> Success {
        Success {
            status,
            body,
            location: None,
            delivered: None,
        }
    }
}

impl Work {
    async fn run(self) -> Response {
        let latency = self.world.limits().latency_ms;
        if latency > 0 {
            tokio::time::sleep(Duration::from_millis(latency)).await;
        }
        let (action, deliver, delay_ms) = match &self.fault {
            Some(fault) => (Some(&fault.action), fault.deliver, fault.delay_ms),
            None => (None, false, 0),
        };
        self.prepare(action);
        let carried_out = match action {
            Some(Action::Status(_) | Action::ResetAfterBody) if !deliver => None,
            _ => Some(self.perform()),
        };
        if delay_ms > 0 {
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        }
        let outlook = self.outlook;
        let Work {
            world,
            peer,
            answer,
            call,
            mailbox,
            slot,
            ..
        } = self;
        // The place is free before the client can know it, or an eager client would be refused.
        drop(slot);
        let operation = call.operation();
        let delivered = match carried_out {
            Some(Err(refusal)) => return answer.refuse(&world, operation, &mailbox, &refusal),
            Some(Ok(mut success))
                if !matches!(
                    self.fault.as_ref().map(|it| &it.action),
                    Some(Action::Status(_) | Action::ResetAfterBody)
                ) =>
            {
                if outlook {
                    success.body = success.body.map(outlook::from_graph);
                }
                return answer.succeed(&world, operation, &mailbox, success);
            }
            Some(Ok(success)) => success.delivered,
            None => None,
        };
        match self.fault.map(|it| it.action) {
            Some(Action::Status(spoilt)) => answer.spoil(&world, operation, &mailbox, &spoilt, delivered),
            _ => {
                world.record(
                    operation,
                    &mailbox,
                    Answered::Reset,
                    delivered,
                    &answer.request_id,
                    "",
                );
                reset(&peer)
            }
        }
    }

    /// What a fault changes before the request is looked at.
    fn prepare(&self, action: Option<&Action>) {
        match (action, &self.call) {
            (Some(Action::ExpireTokens), _) => self.world.tokens().expire_all(),
            (Some(Action::RevokeTokens), _) => self.world.tokens().revoke_all(Timestamp::now()),
            (
                Some(Action::Vanish),
                Call::Get { id, .. }
                | Call::Delete { id, .. }
                | Call::Attach { id, .. }
                | Call::CreateUploadSession { id, .. }
                | Call::Send { id, .. },
            ) => {
                // If it is not there, it has vanished.
                let _ = self.world.store().delete(&self.mailbox, id);
            }
            (Some(Action::ExpireUpload), Call::Upload { secret, .. }) => {
                self.world.store().expire_session(secret);
            }
            _ => {}
        }
    }

    fn perform(&self) -> Result<Success, GraphError> {
        if let Call::Upload { method, secret } = &self.call {
            return self.upload(method, secret);
        }
        if self.outlook && !self.world.tenant().outlook_rest {
            return Err(GraphError::new(
                410,
                "Gone",
                "The Outlook REST API v2.0 has been decommissioned.",
            ));
        }
        let app = self.authenticate()?;
        let mailbox = self.authorize(&app.1)?;
        let app = app.0;
        match &self.call {
            Call::SendMail { .. } => self.send_mail(&mailbox, &app),
            Call::CreateDraft { .. } => self.create_draft(&mailbox, &app),
            Call::List { folder, query, .. } => self.list(&mailbox, *folder, query),
            Call::Get { id, query, .. } => {
                let value = self
                    .world
                    .store()
                    .find(&mailbox.address, id)?
                    .show(self.immutable(), select(query));
                Ok(Success::new(StatusCode::OK, Some(value)))
            }
            Call::Delete { id, .. } => {
                self.world.store().delete(&mailbox.address, id)?;
                Ok(Success::new(StatusCode::NO_CONTENT, None))
            }
            Call::Attach { id, .. } => self.attach(&mailbox, id),
            Call::CreateUploadSession { id, .. } => self.create_upload_session(&mailbox, id),
            Call::Send { id, .. } => self.send_draft(&mailbox, &app, id),
            Call::Upload { .. } => Err(GraphError::not_found()),
        }
    }

    /// The JSON of the request in Graph's names.
    fn json(&self) -> Result<Cow<'_, [u8]>, GraphError> {
        let body = self.body()?;
        match self.outlook {
            true => outlook::to_graph(body).map(Cow::Owned),
            false => Ok(Cow::Borrowed(body)),
        }
    }

    /// The application and its roles, by a token that is good.
    fn authenticate(&self) -> Result<(String, Vec<String>), GraphError> {
        let host = self
            .headers
            .get(header::HOST)
            .and_then(|it| it.to_str().ok())
            .unwrap_or_default();
        let challenge = |more: &str| {
            Some(format!(
                "Bearer realm=\"\", authorization_uri=\"http://{host}/common/oauth2/authorize\", \
                 client_id=\"00000003-0000-0000-c000-000000000000\"{more}"
            ))
        };
        let refuse = |message: &str| GraphError {
            challenge: challenge(""),
            ..GraphError::unauthorized(message)
        };
        let Some(text) = bearer_token(&self.headers).filter(|it| !it.is_empty()) else {
            return Err(refuse("Access token is empty."));
        };
        let tokens = self.world.tokens();
        let Some(token) = tokens.find(text) else {
            return Err(refuse(match text.split('.').count() {
                3 => "Access token validation failure. Invalid signature.",
                _ => "CompactToken parsing failed with error code: 80049217",
            }));
        };
        match token.check(Timestamp::now()) {
            Ok(()) => {}
            Err(Invalid::Expired) => return Err(refuse("Lifetime validation failed, the token is expired.")),
            // https://learn.microsoft.com/entra/identity-platform/claims-challenge
            Err(Invalid::Revoked(at)) => {
                let claims = json!({"access_token": {"nbf": {"essential": true, "value": at.to_string()}}});
                let more = format!(
                    ", error=\"insufficient_claims\", claims=\"{}\"",
                    STANDARD.encode(claims.to_string())
                );
                let message = "Continuous access evaluation resulted in challenge with result: InteractionRequired and code: TokenIssuedBeforeRevocationTimestamp";
                return Err(GraphError {
                    challenge: challenge(&more),
                    ..GraphError::unauthorized(message)
                });
            }
        }
        let fits = match self.outlook {
            true => token.resource == entra::OUTLOOK || token.resource == self.world.url(),
            false => entra::is_graph(&token.resource, &self.world),
        };
        if !fits {
            return Err(refuse("Access token validation failure. Invalid audience."));
        }
        Ok((token.client.clone(), token.roles.clone()))
    }

    fn authorize(&self, roles: &[String]) -> Result<Mailbox, GraphError> {
        let user = self.call.user().unwrap_or_default();
        let tenant = self.world.tenant();
        let mailbox = match tenant.mailbox(user) {
            Ok(mailbox) => mailbox,
            Err(NoMailbox::Unknown) => {
                return Err(GraphError::new(
                    404,
                    "ErrorInvalidUser",
                    format!("The requested user '{user}' is invalid."),
                ));
            }
            Err(NoMailbox::Inactive) => {
                return Err(GraphError::new(
                    404,
                    "MailboxNotEnabledForRESTAPI",
                    "The mailbox is either inactive, soft-deleted, or is hosted on-premise.",
                ));
            }
        };
        match tenant.allows(roles, self.call.role(), &mailbox.address) {
            Ok(()) => Ok(mailbox),
            Err(Denied::NotGranted) => Err(GraphError::access_denied()),
            Err(Denied::AccessPolicy) => Err(GraphError::new(
                403,
                "ErrorAccessDenied",
                "Access to OData is disabled: [RAOP] : Blocked by tenant configured AppOnly AccessPolicy settings.",
            )),
        }
    }

    fn body(&self) -> Result<&Bytes, GraphError> {
        match &self.body {
            Received::Whole(body) => Ok(body),
            Received::TooLarge => Err(GraphError::too_large()),
        }
    }

    fn is_mime(&self) -> Result<bool, GraphError> {
        let given = self
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|it| it.to_str().ok())
            .unwrap_or_default();
        match given
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase()
            .as_str()
        {
            "application/json" => Ok(false),
            "text/plain" => Ok(true),
            other => Err(GraphError::new(
                415,
                "UnsupportedMediaType",
                format!("The content type '{other}' is not supported."),
            )),
        }
    }

    fn require_json(&self) -> Result<(), GraphError> {
        match self.is_mime()? {
            false => Ok(()),
            true => Err(GraphError::new(
                415,
                "UnsupportedMediaType",
                "The content type 'text/plain' is not supported.",
            )),
        }
    }

    fn immutable(&self) -> bool {
        self.headers
            .get_all("prefer")
            .iter()
            .filter_map(|it| it.to_str().ok())
            .any(|it| {
                it.replace(' ', "")
                    .to_ascii_lowercase()
                    .contains("idtype=\"immutableid\"")
            })
    }

    fn send_mail(&self, mailbox: &Mailbox, app: &str) -> Result<Success, GraphError> {
        let body = self.body()?;
        let limits = self.world.limits().clone();
        let (mail, save, form) = if self.is_mime()? {
            (mime::read(body)?, true, Form::Mime)
        } else {
            let sent = message::read_send_mail(&self.json()?, &limits)?;
            (sent.mail, sent.save_to_sent_items, Form::Json)
        };
        message::check_submission(&mail, mailbox, &limits)?;
        let id = mail.internet_message_id.clone().unwrap_or_else(new_message_id);
        if save {
            self.world
                .store()
                .save_sent(&mailbox.address, app, &mail, id.clone(), &limits);
        }
        let delivered = self.deliver(mailbox, app, mail, body.clone(), body.len(), id, form, save);
        Ok(Success {
            delivered: Some(delivered),
            ..Success::new(StatusCode::ACCEPTED, None)
        })
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "they are the fields of the one record made here"
    )]
    fn deliver(
        &self,
        mailbox: &Mailbox,
        app: &str,
        mail: Mail,
        raw: Bytes,
        size: usize,
        internet_message_id: String,
        form: Form,
        saved_to_sent_items: bool,
    ) -> u64 {
        let own = || Recipient {
            name: String::new(),
            address: mailbox.address.clone(),
        };
        let delivery = Delivery {
            id: 0,
            mailbox: mailbox.address.clone(),
            app: app.to_owned(),
            from: mail.from.clone().unwrap_or_else(own),
            to: mail.to.clone(),
            cc: mail.cc.clone(),
            bcc: mail.bcc.clone(),
            recipients: mail.recipients().map(|it| it.address.clone()).collect(),
            subject: mail.subject.clone(),
            size,
            received: Timestamp::now(),
            internet_message_id,
            form,
            attachments: mail.attachments.clone(),
            saved_to_sent_items,
            request_id: self.answer.request_id.clone(),
            client_request_id: self.answer.client_request_id.clone(),
            content: Some(Arc::new(Content { mail, raw })),
        };
        self.world.deliver(delivery)
    }

    fn create_draft(&self, mailbox: &Mailbox, app: &str) -> Result<Success, GraphError> {
        let body = self.body()?;
        let limits = self.world.limits().clone();
        let mail = if self.is_mime()? {
            mime::read(body)?
        } else {
            message::read_draft(&self.json()?, &limits)?
        };
        let id = mail.internet_message_id.clone().unwrap_or_else(new_message_id);
        let mut store = self.world.store();
        let draft = store.create(&mailbox.address, app, mail, body.clone(), id, &limits)?;
        Ok(Success::new(
            StatusCode::CREATED,
            Some(draft.show(self.immutable(), None)),
        ))
    }

    fn list(
        &self,
        mailbox: &Mailbox,
        folder: Folder,
        query: &[(String, String)],
    ) -> Result<Success, GraphError> {
        let filter = query
            .iter()
            .find(|(name, _)| name == "$filter")
            .map(|(_, value)| value.as_str());
        let id = filter.map(message_id_filter).transpose()?;
        let store = self.world.store();
        let found: Vec<Value> = store
            .list(&mailbox.address, folder, id.as_deref())
            .into_iter()
            .map(|it| it.show(self.immutable(), select(query)))
            .collect();
        Ok(Success::new(
            StatusCode::OK,
            Some(
                json!({"@odata.context": format!("{}/v1.0/$metadata#users/messages", self.world.url()), "value": found}),
            ),
        ))
    }

    fn attach(&self, mailbox: &Mailbox, id: &str) -> Result<Success, GraphError> {
        let body = self.body()?;
        self.require_json()?;
        let attachment = message::read_attachment(&self.json()?, &self.world.limits())?;
        let shown = json!({
            "@odata.type": "#microsoft.graph.fileAttachment",
            "name": attachment.name, "contentType": attachment.content_type, "size": attachment.size,
            "isInline": attachment.is_inline, "contentId": attachment.content_id,
        });
        let number = self
            .world
            .store()
            .attach(&mailbox.address, id, attachment, body.len())?;
        let mut shown = shown;
        shown["id"] = format!("{id}-{number}").into();
        Ok(Success::new(StatusCode::CREATED, Some(shown)))
    }

    fn create_upload_session(&self, mailbox: &Mailbox, id: &str) -> Result<Success, GraphError> {
        self.require_json()?;
        let upload = message::read_upload(&self.json()?, &self.world.limits())?;
        let (secret, expires) = self.world.store().open_session(&mailbox.address, id, upload)?;
        let host = self
            .headers
            .get(header::HOST)
            .and_then(|it| it.to_str().ok())
            .unwrap_or_default();
        Ok(Success::new(
            StatusCode::CREATED,
            Some(json!({
                "@odata.context": "https://outlook.office.com/api/gv1.0/$metadata#microsoft.graph.uploadSession",
                "uploadUrl": format!("http://{host}{UPLOAD_ROOT}users('sandbox')/messages('draft')/AttachmentSessions('1')?authtoken={secret}"),
                "expirationDateTime": expires,
                "nextExpectedRanges": ["0-"],
            })),
        ))
    }

    /// The upload URL is authorised by itself. A client that sends its token there gives it to
    /// another host.
    fn upload(&self, method: &Method, secret: &str) -> Result<Success, GraphError> {
        if self.headers.contains_key(header::AUTHORIZATION) {
            return Err(GraphError::new(
                401,
                "InvalidAuthenticationToken",
                "The upload URL is pre-authenticated; no Authorization header is accepted.",
            ));
        }
        let mut store = self.world.store();
        let progress = match *method {
            Method::DELETE => {
                store.cancel_session(secret)?;
                return Ok(Success::new(StatusCode::NO_CONTENT, None));
            }
            Method::GET => store.session_progress(secret)?,
            _ => {
                let range = self
                    .headers
                    .get(header::CONTENT_RANGE)
                    .and_then(|it| it.to_str().ok())
                    .and_then(content_range);
                let range = range.ok_or_else(|| {
                    GraphError::new(
                        400,
                        "ErrorInvalidRange",
                        "The header 'Content-Range' is missing or malformed.",
                    )
                })?;
                store.chunk(secret, range, self.body()?)?
            }
        };
        Ok(match progress {
            Progress::Next { from, expires } => Success::new(
                StatusCode::OK,
                Some(json!({"ExpirationDateTime": expires, "nextExpectedRanges": [from.to_string()]})),
            ),
            Progress::Complete { draft, attachment } => Success {
                location: Some(format!(
                    "{}/v1.0/users('sandbox')/messages('{draft}')/attachments('{attachment}')",
                    self.world.url()
                )),
                ..Success::new(StatusCode::CREATED, None)
            },
        })
    }

    fn send_draft(&self, mailbox: &Mailbox, app: &str, id: &str) -> Result<Success, GraphError> {
        // https://learn.microsoft.com/graph/api/message-send: Content-Length: 0 is required.
        if !self.headers.contains_key(header::CONTENT_LENGTH)
            && !self.headers.contains_key(header::TRANSFER_ENCODING)
        {
            return Err(GraphError::new(411, "", ""));
        }
        let limits = self.world.limits().clone();
        let mut store = self.world.store();
        message::check_submission(&store.peek_draft(&mailbox.address, id)?.mail, mailbox, &limits)?;
        let (mail, raw, size, message_id) = store.send(&mailbox.address, id, &limits)?;
        drop(store);
        let delivered = self.deliver(mailbox, app, mail, raw, size, message_id, Form::Draft, true);
        Ok(Success {
            delivered: Some(delivered),
            ..Success::new(StatusCode::ACCEPTED, None)
        })
    }
}

fn select(query: &[(String, String)]) -> Option<&str> {
    query
        .iter()
        .find(|(name, _)| name == "$select")
        .map(|(_, value)| value.as_str())
}

/// `internetMessageId eq '<…>'`, the one filter there is here; a quote within is doubled.
fn message_id_filter(filter: &str) -> Result<String, GraphError> {
    filter
        .trim()
        .strip_prefix("internetMessageId eq '")
        .and_then(|it| it.strip_suffix('\''))
        .map(|it| it.replace("''", "'"))
        .ok_or_else(|| GraphError::new(400, "BadRequest", format!("Invalid filter clause: {filter}")))
}

/// RFC 9110 §14.4: `bytes first-last/total`.
fn content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((
        first.trim().parse().ok()?,
        last.trim().parse().ok()?,
        total.trim().parse().ok()?,
    ))
}

fn new_message_id() -> String {
    format!("<{}@sandbox.invalid>", guid())
}

/// What every answer to one request has in common.
struct Answer {
    request_id: String,
    client_request_id: String,
}

impl Answer {
    fn to(headers: &HeaderMap) -> Answer {
        let given = headers
            .get("client-request-id")
            .and_then(|it| it.to_str().ok())
            .filter(|it| is_guid(it));
        let request_id = guid();
        let client_request_id = given.map_or_else(|| request_id.clone(), str::to_owned);
        Answer {
            request_id,
            client_request_id,
        }
    }

    fn succeed(&self, world: &World, operation: Operation, mailbox: &str, success: Success) -> Response {
        let status = Answered::Status(success.status.as_u16());
        world.record(
            operation,
            mailbox,
            status,
            success.delivered,
            &self.request_id,
            "",
        );
        let mut response = self.respond(success.status, success.body.map(|it| it.to_string()));
        if let Some(location) = success.location.and_then(|it| HeaderValue::from_str(&it).ok()) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }

    fn refuse(&self, world: &World, operation: Operation, mailbox: &str, refusal: &GraphError) -> Response {
        let status = Answered::Status(refusal.status);
        world.record(operation, mailbox, status, None, &self.request_id, &refusal.code);
        let body = (!refusal.code.is_empty()).then(|| self.error(&refusal.code, &refusal.message));
        let mut response = self.respond(status_code(refusal.status), body);
        for (name, value) in [
            (header::RETRY_AFTER, &refusal.retry_after),
            (header::WWW_AUTHENTICATE, &refusal.challenge),
        ] {
            if let Some(value) = value.as_deref().and_then(|it| HeaderValue::from_str(it).ok()) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }

    fn spoil(
        &self,
        world: &World,
        operation: Operation,
        mailbox: &str,
        spoilt: &Spoilt,
        delivered: Option<u64>,
    ) -> Response {
        let (code, message) = usual(spoilt.status);
        let code = spoilt.code.as_deref().unwrap_or(code);
        let message = spoilt.message.as_deref().unwrap_or(message);
        world.record(
            operation,
            mailbox,
            Answered::Status(spoilt.status),
            delivered,
            &self.request_id,
            code,
        );
        let error = self.error(code, message);
        let success = spoilt.status < 300;
        let body = match spoilt.body {
            fault::Body::Json if success => None,
            fault::Body::Json => Some(error),
            fault::Body::Html => Some(super::html_error(spoilt.status)),
            fault::Body::Empty => None,
            fault::Body::Truncated => Some(error[..error.len() / 2].to_owned()),
        };
        let mut response = self.respond(status_code(spoilt.status), body);
        if spoilt.body == fault::Body::Html {
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
        }
        if let Some(value) = spoilt
            .retry_after
            .as_deref()
            .and_then(|it| HeaderValue::from_str(it).ok())
        {
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        response
    }

    fn error(&self, code: &str, message: &str) -> String {
        json!({"error": {
            "code": code,
            "message": message,
            "innerError": {
                "date": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S").to_string(),
                "request-id": self.request_id,
                "client-request-id": self.client_request_id,
            },
        }})
        .to_string()
    }

    fn respond(&self, status: StatusCode, body: Option<String>) -> Response {
        let has_body = body.is_some();
        let mut response = Response::new(body.map_or_else(Body::empty, Body::from));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        for (name, value) in [
            ("request-id", self.request_id.as_str()),
            ("client-request-id", self.client_request_id.as_str()),
            ("cache-control", "no-store"),
            ("strict-transport-security", "max-age=31536000"),
            (
                "x-ms-ags-diagnostic",
                r#"{"ServerInfo":{"DataCenter":"Sandbox","Slice":"E","Ring":"0","ScaleUnit":"000","RoleInstance":"SANDBOX0000001"}}"#,
            ),
        ] {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        }
        if has_body {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        response
    }
}

fn status_code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}
