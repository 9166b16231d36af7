//! The work itself: a request that has been let in is carried out, or refused with reasons.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::answer::Answer;
use super::call::{Call, UPLOAD_ROOT};
use super::error::GraphError;
use super::store::{Folder, Progress};
use super::{Received, Slot, message, mime, outlook};
use crate::sandbox::entra::tokens::Invalid;
use crate::sandbox::entra::{self, bearer_token};
use crate::sandbox::fault::{Action, Fault};
use crate::sandbox::mail::{Form, Mail, Recipient};
use crate::sandbox::tenant::{Denied, MAIL_READ_BASIC, Mailbox, NoMailbox};
use crate::sandbox::wire::Peer;
use crate::sandbox::witness::{Answered, Content, Delivery};
use crate::sandbox::{World, guid, origin, reset};

/// A request with its body, ready to be carried out.
pub(super) struct Work {
    pub(super) world: Arc<World>,
    pub(super) peer: Peer,
    pub(super) answer: Answer,
    pub(super) call: Call,
    pub(super) mailbox: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Received,
    pub(super) fault: Option<Fault>,
    pub(super) slot: Slot,
    /// Whether it came in the older names.
    pub(super) outlook: bool,
}

/// An answer as it should be.
pub(super) struct Success {
    pub(super) status: StatusCode,
    pub(super) body: Option<Value>,
    pub(super) location: Option<String>,
    pub(super) delivered: Option<u64>,
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
    pub(super) async fn run(self) -> Response {
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
        let (mailbox, role) = self.authorize(&app.1)?;
        let app = app.0;
        match &self.call {
            Call::SendMail { .. } => self.send_mail(&mailbox, &app),
            Call::CreateDraft { .. } => self.create_draft(&mailbox, &app),
            Call::List { folder, query, .. } => self.list(&mailbox, role, *folder, query),
            Call::Get { id, query, .. } => {
                check_query(query, &["$select", "$expand"])?;
                let mut value = self
                    .world
                    .store()
                    .find(&mailbox.address, id)?
                    .show(self.immutable(), select(query));
                basic(role, &mut value);
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
        let own = origin(&self.headers);
        let challenge = |more: &str| {
            Some(format!(
                "Bearer realm=\"\", authorization_uri=\"{own}/common/oauth2/authorize\", \
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

    /// The mailbox, and the permission by which it may be used.
    fn authorize(&self, roles: &[String]) -> Result<(Mailbox, &'static str), GraphError> {
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
        let mut denied = Denied::NotGranted;
        for role in self.call.roles() {
            match tenant.allows(roles, role, &mailbox.address) {
                Ok(()) => return Ok((mailbox, role)),
                Err(Denied::AccessPolicy) => denied = Denied::AccessPolicy,
                Err(Denied::NotGranted) => {}
            }
        }
        match denied {
            Denied::NotGranted => Err(GraphError::access_denied()),
            Denied::AccessPolicy => Err(GraphError::new(
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
        role: &str,
        folder: Folder,
        query: &[(String, String)],
    ) -> Result<Success, GraphError> {
        check_query(
            query,
            &["$select", "$filter", "$top", "$count", "$orderby", "$skip"],
        )?;
        let top = query.iter().find(|(name, _)| name == "$top");
        let top = match top.map(|(_, value)| value.parse::<usize>()) {
            None => PAGE,
            Some(Ok(top @ 1..=1000)) => top,
            Some(_) => {
                return Err(GraphError::new(
                    400,
                    "RequestBroker--ParseUri",
                    "The value of $top is not between 1 and 1000.",
                ));
            }
        };
        let filter = query
            .iter()
            .find(|(name, _)| name == "$filter")
            .map(|(_, value)| value.as_str());
        let id = filter.map(message_id_filter).transpose()?;
        let store = self.world.store();
        let found: Vec<Value> = store
            .list(&mailbox.address, folder, id.as_deref())
            .into_iter()
            .take(top)
            .map(|it| {
                let mut value = it.show(self.immutable(), select(query));
                basic(role, &mut value);
                value
            })
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
        let own = origin(&self.headers);
        Ok(Success::new(
            StatusCode::CREATED,
            Some(json!({
                "@odata.context": "https://outlook.office.com/api/gv1.0/$metadata#microsoft.graph.uploadSession",
                "uploadUrl": format!("{own}{UPLOAD_ROOT}users('sandbox')/messages('draft')/AttachmentSessions('1')?authtoken={secret}"),
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

/// Items of a list where `$top` does not say otherwise
/// (<https://learn.microsoft.com/graph/api/user-list-messages>).
const PAGE: usize = 10;

/// An option that is not known is refused, as OData wants it (4.01, Protocol §11.2.1).
fn check_query(query: &[(String, String)], known: &[&str]) -> Result<(), GraphError> {
    match query
        .iter()
        .find(|(name, _)| name.starts_with('$') && !known.contains(&name.as_str()))
    {
        None => Ok(()),
        Some((name, _)) => Err(GraphError::new(
            400,
            "BadRequest",
            format!("The query parameter '{name}' is not supported."),
        )),
    }
}

/// Mail.ReadBasic.All shows everything but what people have written.
fn basic(role: &str, value: &mut Value) {
    if let (MAIL_READ_BASIC, Some(object)) = (role, value.as_object_mut()) {
        object.remove("body");
        object.remove("bodyPreview");
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
