//! A message that is larger than one request: made as a draft, filled, and then sent. Needs
//! Mail.ReadWrite (<https://learn.microsoft.com/graph/outlook-large-attachments>).
//!
//! Nothing is sent before the last step, so whatever fails before it is tried again from the
//! beginning, and the draft is removed. The last step itself can be verified, unlike `sendMail`: a
//! draft that has been sent is no draft any more. It is asked for by its immutable id, which it keeps
//! when it moves to Sent Items (<https://learn.microsoft.com/graph/outlook-immutable-id>).

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;
use serde_json::json;

use super::client::{Call, Fate, Graph, Reply, Service};
use super::resource::Attachment;

use crate::address::Address;
use crate::outcome::{Answer, Response};

/// Files below 3 MB are posted to the draft, and larger ones uploaded in a session, which takes no
/// smaller ones (<https://learn.microsoft.com/graph/api/attachment-createuploadsession>). As base64
/// the former come to 4 MB, where requests of any size have been seen to fail: from here on a session
/// is tried first.
const SESSION_FROM_OCTETS: u64 = 2_600_000;

/// Ten times 320 KiB: the multiple that Microsoft's own libraries use, and below the 4 MB that a
/// request may have.
const CHUNK_OCTETS: usize = 10 * 320 * 1024;

/// How often an upload is taken up again where it stands, without getting on meanwhile.
const MAX_RESUMPTIONS: u32 = 4;
/// The longest wait before that; for a longer one the message is deferred.
const MAX_PAUSE: Duration = Duration::from_secs(20);

/// The answer to a new draft repeats the message; this is more than the body of any.
const MAX_DRAFT_OCTETS: usize = 16 * 1024 * 1024;

/// `Prefer: IdType="ImmutableId"`
pub(super) const PREFER: HeaderName = HeaderName::from_static("prefer");
pub(super) const IMMUTABLE_ID: HeaderValue = HeaderValue::from_static("IdType=\"ImmutableId\"");

/// A message to be sent as a draft.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// Graph's `message` in JSON, without the attachments below; the body of `POST …/messages`.
    pub message: Bytes,
    /// What is attached to it, one after the other.
    pub attachments: Vec<Attachment>,
    /// Its `internetMessageId`, with angle brackets.
    pub message_id: String,
    /// All its recipients, in any order.
    pub recipients: Vec<Address>,
}

/// The immutable id of a draft in a mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DraftId(pub String);

/// What earlier attempts to send the same message may have left in the mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftOver<'a> {
    /// There was no attempt before.
    Nothing,
    /// This draft.
    Draft(&'a DraftId),
    /// There was an attempt, and it ended before a draft could be noted.
    Perhaps,
}

/// Where a draft stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is still a draft: not sent, or not yet.
    Draft,
    /// It has been sent.
    Sent,
    /// There is no such item, for now.
    Gone,
}

/// How far an upload has come.
enum Progress {
    /// This octet is the next.
    Next(u64),
    Complete,
}

impl Graph {
    /// Sends a message as a draft. Where the draft of an earlier attempt has been sent after all, that is
    /// the answer (202); else what it left over is removed.
    /// `remember` is given the id of the new draft, to store it durably before it is filled, so that
    /// no crash leaves it in the mailbox for ever; where it fails nothing is sent.
    ///
    /// An answer of [`Answer::NotSent`] is certain. The copy in Sent Items cannot be avoided.
    pub async fn send_draft(
        &self,
        mailbox: &str,
        draft: &Draft,
        left_over: LeftOver<'_>,
        remember: impl AsyncFnOnce(&DraftId) -> Result<(), String>,
    ) -> Answer {
        let service = &*self.0;
        let cleared = match left_over {
            LeftOver::Nothing => Ok(Standing::Gone),
            LeftOver::Draft(id) => service.clear(mailbox, id).await,
            LeftOver::Perhaps => service.sweep(mailbox, draft).await,
        };
        match cleared {
            Ok(Standing::Sent) => return found_sent(),
            Ok(Standing::Draft | Standing::Gone) => {}
            Err(cause) => return not_sent("looking for the draft of the last attempt", cause),
        }
        let id = match service.create(mailbox, draft).await {
            Ok(id) => id,
            Err(cause) => return not_sent("creating the draft", cause),
        };
        crash_point!("draft-made");
        if let Err(why) = remember(&id).await {
            service.delete(mailbox, &id).await.ok();
            return not_sent("noting the draft", Answer::NotReached(why));
        }
        for attachment in &draft.attachments {
            if let Err(cause) = service.attach(mailbox, &id, attachment).await {
                // Where Graph cannot be reached, the next attempt finds the draft by its id.
                if matches!(cause, Answer::Response(_)) {
                    service.delete(mailbox, &id).await.ok();
                }
                return not_sent("attaching a file to the draft", cause);
            }
        }
        crash_point!("draft-filled");
        service.send(mailbox, &id).await
    }

    /// Removes a draft whose message is not to be sent any more.
    ///
    /// # Errors
    /// The answer, where it is not gone afterwards.
    pub async fn delete_draft(&self, mailbox: &str, id: &DraftId) -> Result<(), Answer> {
        self.0.clear(mailbox, id).await.map(|_| ())
    }
}

impl Service {
    async fn create(&self, mailbox: &str, draft: &Draft) -> Result<DraftId, Answer> {
        #[derive(Deserialize)]
        struct Created {
            id: String,
        }
        let url = self.url(mailbox, &["messages"]);
        let mut call = Call::new("createDraft", Method::POST, url)
            .with_content("application/json", draft.message.clone());
        call.headers.insert(PREFER, IMMUTABLE_ID);
        call.max_octets = MAX_DRAFT_OCTETS;
        let reply = expect(201, self.call(&call).await?)?;
        match serde_json::from_slice::<Created>(&reply.body) {
            Ok(created) if !created.id.is_empty() => Ok(DraftId(created.id)),
            _ => Err(Answer::Lost(
                "the answer to the new draft has no id in it".to_owned(),
            )),
        }
    }

    async fn attach(&self, mailbox: &str, id: &DraftId, attachment: &Attachment) -> Result<(), Answer> {
        let content = attachment.content.clone();
        let size = aside(move || content.len()).await?;
        if size >= SESSION_FROM_OCTETS {
            match self.upload(mailbox, id, attachment, size).await {
                Err(Answer::Response(response)) if is_too_small(&response) => {}
                result => return result,
            }
        }
        let url = self.url(mailbox, &["messages", &id.0, "attachments"]);
        let posted = attachment.clone();
        let json = aside(move || posted.to_json()).await?;
        let call = Call::new("attach", Method::POST, url).with_content("application/json", json);
        expect(201, self.call(&call).await?).map(|_| ())
    }

    async fn upload(
        &self,
        mailbox: &str,
        id: &DraftId,
        attachment: &Attachment,
        size: u64,
    ) -> Result<(), Answer> {
        let session = self.open_session(mailbox, id, attachment, size).await?;
        let result = self.upload_to(&session, attachment, size).await;
        if result.is_err() {
            // The draft goes as well; this only frees what has been uploaded.
            let cancel = Call::new("chunk", Method::DELETE, session);
            self.attempt(&cancel, None).await;
        }
        result
    }

    async fn open_session(
        &self,
        mailbox: &str,
        id: &DraftId,
        attachment: &Attachment,
        size: u64,
    ) -> Result<Url, Answer> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Session {
            upload_url: String,
        }
        let mut item = json!({
            "attachmentType": "file",
            "name": attachment.name,
            "size": size,
            "contentType": attachment.content_type,
        });
        if let Some(content_id) = &attachment.content_id {
            item["isInline"] = true.into();
            item["contentId"] = content_id.as_str().into();
        }
        let body = json!({"AttachmentItem": item}).to_string();
        let url = self.url(
            mailbox,
            &["messages", &id.0, "attachments", "createUploadSession"],
        );
        let call = Call::new("createUploadSession", Method::POST, url)
            .with_content("application/json", Bytes::from(body));
        let reply = expect(201, self.call(&call).await?)?;
        // The URL is a secret: whoever has it can write. It is in no error and in no log.
        serde_json::from_slice::<Session>(&reply.body)
            .ok()
            .and_then(|it| Url::parse(&it.upload_url).ok())
            .filter(|it| matches!(it.scheme(), "https" | "http"))
            .ok_or_else(|| Answer::Lost("the answer to the new upload session has no usable URL".to_owned()))
    }

    /// Uploads a file in order, chunk by chunk. After a failure the session says where it stands.
    async fn upload_to(&self, session: &Url, attachment: &Attachment, size: u64) -> Result<(), Answer> {
        let mut reader = attachment.content.reader();
        let mut at = 0;
        let mut resumptions = 0;
        while at < size {
            let chunk;
            (reader, chunk) = aside(move || {
                let chunk = reader.next_chunk(CHUNK_OCTETS);
                (reader, chunk)
            })
            .await?;
            if chunk.is_empty() {
                return Err(Answer::Lost("a file is shorter than it was".to_owned()));
            }
            let end = at + chunk.len() as u64;
            let result = self.put_chunk(session, at, size, chunk).await;
            let progress = match result {
                Ok(progress) => progress,
                Err(answer) if resumptions < MAX_RESUMPTIONS && is_passing(&answer) => {
                    let pause = pause(&answer, resumptions);
                    if pause > MAX_PAUSE {
                        return Err(answer);
                    }
                    resumptions += 1;
                    tokio::time::sleep(pause).await;
                    // If even this fails, the first trouble is what there is to tell.
                    self.progress(session).await.map_err(|_| answer)?
                }
                Err(answer) => return Err(answer),
            };
            match progress {
                Progress::Complete => return Ok(()),
                Progress::Next(next) => {
                    if next > at {
                        resumptions = 0;
                    }
                    if next != end {
                        let content = attachment.content.clone();
                        reader = aside(move || {
                            let mut reader = content.reader();
                            reader.skip(next);
                            reader
                        })
                        .await?;
                    }
                    at = next;
                }
            }
        }
        Err(Answer::Lost(
            "the upload session took all of a file and did not end".to_owned(),
        ))
    }

    async fn put_chunk(&self, session: &Url, at: u64, size: u64, chunk: Bytes) -> Result<Progress, Answer> {
        let last = at + chunk.len() as u64 - 1;
        let mut call = Call::new("chunk", Method::PUT, session.clone());
        call.headers
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        if let Ok(range) = HeaderValue::from_str(&format!("bytes {at}-{last}/{size}")) {
            call.headers.insert(CONTENT_RANGE, range);
        }
        call.content = chunk;
        self.session_call(&call).await
    }

    async fn progress(&self, session: &Url) -> Result<Progress, Answer> {
        self.session_call(&Call::new("chunk", Method::GET, session.clone()))
            .await
    }

    /// A request to an upload session. It is authorised by its URL, on another host than Graph's, so
    /// the token is not sent.
    async fn session_call(&self, call: &Call) -> Result<Progress, Answer> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Session {
            next_expected_ranges: Vec<String>,
        }
        let reply = match self.attempt(call, None).await {
            Fate::Answered(reply) => reply,
            Fate::NotProcessed { why, .. } => return Err(Answer::NotReached(why)),
            Fate::Lost(why) => return Err(Answer::Lost(why)),
        };
        if reply.response.status == 201 {
            return Ok(Progress::Complete);
        }
        let reply = expect(200, reply)?;
        // `["2097152"]` or `["2097152-"]` or `["2097152-3483321"]`
        serde_json::from_slice::<Session>(&reply.body)
            .ok()
            .and_then(|it| it.next_expected_ranges.first()?.split('-').next()?.parse().ok())
            .map(Progress::Next)
            .ok_or_else(|| Answer::Lost("the upload session does not say what it expects next".to_owned()))
    }

    async fn send(&self, mailbox: &str, id: &DraftId) -> Answer {
        let mut call = Call::new(
            "send",
            Method::POST,
            self.url(mailbox, &["messages", &id.0, "send"]),
        );
        call.headers.insert(PREFER, IMMUTABLE_ID);
        let answer = match self.call(&call).await {
            Ok(reply) => Answer::Response(reply.response),
            Err(answer) => answer,
        };
        let ambiguous = match &answer {
            Answer::Lost(_) => true,
            Answer::Response(response) => matches!(response.status, 408 | 500..=502 | 504..=599),
            _ => false,
        };
        // A draft that is still there may be on its way: only the opposite is certain.
        if ambiguous && let Ok(Standing::Sent) = self.standing(mailbox, id).await {
            return found_sent();
        }
        match answer {
            // Certain, for the request did not get there.
            Answer::NotReached(_) | Answer::NoToken { .. } => not_sent("sending the draft", answer),
            answer => answer,
        }
    }

    pub(super) async fn standing(&self, mailbox: &str, id: &DraftId) -> Result<Standing, Answer> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Message {
            is_draft: bool,
        }
        let mut url = self.url(mailbox, &["messages", &id.0]);
        url.set_query(Some("$select=isDraft"));
        let mut call = Call::new("read", Method::GET, url);
        call.headers.insert(PREFER, IMMUTABLE_ID);
        let reply = self.call(&call).await?;
        if is_gone(&reply.response) {
            return Ok(Standing::Gone);
        }
        let reply = expect(200, reply)?;
        match serde_json::from_slice(&reply.body) {
            Ok(Message { is_draft: true }) => Ok(Standing::Draft),
            Ok(Message { is_draft: false }) => Ok(Standing::Sent),
            Err(_) => Err(Answer::Lost(
                "the answer does not say whether it is a draft".to_owned(),
            )),
        }
    }

    /// Removes what is left of an attempt, unless it was sent.
    async fn clear(&self, mailbox: &str, id: &DraftId) -> Result<Standing, Answer> {
        let standing = self.standing(mailbox, id).await?;
        if standing == Standing::Draft {
            self.delete(mailbox, id).await?;
        }
        Ok(standing)
    }

    /// Removes drafts with the message's id and recipients. Other recipients are another group of the same
    /// message, whose draft is being filled. That one of them was sent is not concluded from this: there
    /// are devices that give all their mail the same Message-ID.
    async fn sweep(&self, mailbox: &str, draft: &Draft) -> Result<Standing, Answer> {
        let wanted: BTreeSet<String> = draft
            .recipients
            .iter()
            .map(|it| it.as_str().to_lowercase())
            .collect();
        for item in self.items(mailbox, "drafts", &draft.message_id).await? {
            if item.recipients() != wanted {
                continue;
            }
            self.delete(mailbox, &DraftId(item.id)).await?;
        }
        Ok(Standing::Gone)
    }

    async fn delete(&self, mailbox: &str, id: &DraftId) -> Result<(), Answer> {
        let mut call = Call::new("delete", Method::DELETE, self.url(mailbox, &["messages", &id.0]));
        call.headers.insert(PREFER, IMMUTABLE_ID);
        let reply = self.call(&call).await?;
        if is_gone(&reply.response) {
            return Ok(());
        }
        expect(204, reply).map(|_| ())
    }
}

/// Decodes where it holds up no one: a file of 150 MB takes its time.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Answer> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Answer::Lost(format!("a file could not be read: {error}")))
}

pub(super) fn expect(status: u16, reply: Reply) -> Result<Reply, Answer> {
    if reply.response.status == status {
        Ok(reply)
    } else {
        Err(Answer::Response(reply.response))
    }
}

fn not_sent(step: &'static str, cause: Answer) -> Answer {
    Answer::NotSent {
        step,
        cause: Box::new(cause),
    }
}

/// What the lost answer was.
fn found_sent() -> Answer {
    Answer::Response(Response {
        status: 202,
        message: Some("found in Sent Items".to_owned()),
        ..Response::default()
    })
}

/// There is no such item. Another 404 would speak of the mailbox.
fn is_gone(response: &Response) -> bool {
    response.status == 404 && response.code.as_deref() == Some("ErrorItemNotFound")
}

fn is_too_small(response: &Response) -> bool {
    response.code.as_deref() == Some("ErrorAttachmentSizeShouldNotBeLessThanMinimumSize")
}

/// Whether an upload may go on after this. A session that has ended (404) does not come back.
fn is_passing(answer: &Answer) -> bool {
    match answer {
        Answer::NotReached(_) | Answer::Lost(_) => true,
        // 416: the range was not the one expected, so the session knows better than we do.
        Answer::Response(response) => matches!(response.status, 408 | 409 | 416 | 429 | 500..=599),
        _ => false,
    }
}

fn pause(answer: &Answer, resumptions: u32) -> Duration {
    let asked = match answer {
        Answer::Response(response) => response.retry_after,
        _ => None,
    };
    asked.unwrap_or_else(|| Duration::from_millis(500) * 2u32.pow(resumptions.min(8)))
}
