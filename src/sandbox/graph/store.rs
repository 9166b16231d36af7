//! Drafts, upload sessions and Sent Items: what Exchange keeps between requests.
//!
//! <https://learn.microsoft.com/graph/outlook-large-attachments>,
//! <https://learn.microsoft.com/graph/outlook-immutable-id>

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::error::GraphError;
use super::message::Upload;
use crate::sandbox::limits::Limits;
use crate::sandbox::mail::{Attachment, Mail};
use crate::sandbox::random;

/// Bytes of drafts and unfinished uploads.
const DRAFT_BYTES_MAX: usize = 768 * 1024 * 1024;
/// Upload sessions at the same time.
const SESSIONS_MAX: usize = 1000;
/// How long an upload session lives.
const SESSION_LIFE: Duration = Duration::from_secs(3600);

/// An item in a mailbox.
pub(super) struct Item {
    /// Changes when the item moves to another folder, as it does when it is sent.
    pub(super) id: String,
    pub(super) immutable_id: String,
    pub(super) mailbox: String,
    pub(super) app: String,
    pub(super) is_draft: bool,
    pub(super) created: Timestamp,
    pub(super) visible_from: Instant,
    pub(super) internet_message_id: String,
    /// Without content once it is sent: the witness has that.
    pub(super) mail: Mail,
    pub(super) raw: Bytes,
    /// Bytes of all requests that made it.
    pub(super) size: usize,
}

struct Session {
    draft: String,
    upload: Upload,
    received: Vec<u8>,
    expires: Instant,
    expires_at: Timestamp,
}

/// All mailboxes.
#[derive(Default)]
pub(in crate::sandbox) struct Store {
    /// By immutable id.
    items: HashMap<String, Item>,
    /// Immutable ids in order of creation; some may be gone.
    order: VecDeque<String>,
    sessions: HashMap<String, Session>,
    draft_bytes: usize,
}

/// What a chunk led to.
pub(super) enum Progress {
    /// More is expected from here.
    Next { from: usize, expires: Timestamp },
    /// The attachment is complete; its number in the draft with this id.
    Complete { draft: String, attachment: usize },
}

/// The folders that can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Folder {
    All,
    Drafts,
    SentItems,
}

impl Store {
    pub(super) fn create(
        &mut self,
        mailbox: &str,
        app: &str,
        mail: Mail,
        raw: Bytes,
        internet_message_id: String,
        limits: &Limits,
    ) -> Result<&Item, GraphError> {
        let size = raw.len();
        self.reserve(mail.weight() + size)?;
        Ok(self.insert(
            Item {
                id: item_id("AAMkAG"),
                immutable_id: item_id("AAkALg"),
                mailbox: mailbox.to_owned(),
                app: app.to_owned(),
                is_draft: true,
                created: Timestamp::now(),
                visible_from: Instant::now(),
                internet_message_id,
                mail,
                raw,
                size,
            },
            limits,
        ))
    }

    /// Puts a copy of what `sendMail` sent into Sent Items.
    pub(super) fn save_sent(&mut self, mailbox: &str, app: &str, mail: &Mail, id: String, limits: &Limits) {
        let outline = outline(mail);
        self.insert(
            Item {
                id: item_id("AAMkAG"),
                immutable_id: item_id("AAkALg"),
                mailbox: mailbox.to_owned(),
                app: app.to_owned(),
                is_draft: false,
                created: Timestamp::now(),
                visible_from: Instant::now() + Duration::from_millis(limits.sent_items_delay_ms),
                internet_message_id: id,
                mail: outline,
                raw: Bytes::new(),
                size: 0,
            },
            limits,
        );
    }

    fn insert(&mut self, item: Item, limits: &Limits) -> &Item {
        while self.order.len() >= limits.keep_messages.max(1) {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            self.remove(&oldest);
        }
        let key = item.immutable_id.clone();
        self.order.push_back(key.clone());
        self.items.entry(key).insert_entry(item).into_mut()
    }

    fn reserve(&mut self, bytes: usize) -> Result<(), GraphError> {
        if self.draft_bytes + bytes > DRAFT_BYTES_MAX {
            return Err(GraphError::new(
                507,
                "ErrorQuotaExceeded",
                "The mailbox quota has been exceeded.",
            ));
        }
        self.draft_bytes += bytes;
        Ok(())
    }

    fn remove(&mut self, immutable_id: &str) -> Option<Item> {
        let item = self.items.remove(immutable_id)?;
        self.draft_bytes -= item.mail.weight() + item.raw.len();
        let sessions = &mut self.sessions;
        let draft_bytes = &mut self.draft_bytes;
        sessions.retain(|_, session| {
            let stays = session.draft != immutable_id;
            if !stays {
                *draft_bytes -= session.received.len();
            }
            stays
        });
        Some(item)
    }

    /// The item with this id, of either kind, in this mailbox.
    pub(super) fn find(&self, mailbox: &str, id: &str) -> Result<&Item, GraphError> {
        let now = Instant::now();
        self.items
            .get(id)
            .or_else(|| self.items.values().find(|it| it.id == id))
            .filter(|it| it.mailbox.eq_ignore_ascii_case(mailbox) && it.visible_from <= now)
            .ok_or_else(GraphError::not_found)
    }

    /// The draft with this id.
    fn draft(&mut self, mailbox: &str, id: &str) -> Result<&mut Item, GraphError> {
        let key = self.find(mailbox, id)?.immutable_id.clone();
        match self.items.get_mut(&key) {
            Some(item) if item.is_draft => Ok(item),
            _ => Err(GraphError::new(
                400,
                "ErrorInvalidOperation",
                "The item is not a draft.",
            )),
        }
    }

    pub(super) fn delete(&mut self, mailbox: &str, id: &str) -> Result<(), GraphError> {
        let key = self.find(mailbox, id)?.immutable_id.clone();
        self.remove(&key);
        Ok(())
    }

    /// Adds an attachment to a draft; its number there.
    pub(super) fn attach(
        &mut self,
        mailbox: &str,
        id: &str,
        attachment: Attachment,
        size: usize,
    ) -> Result<usize, GraphError> {
        self.draft(mailbox, id)?;
        self.reserve(attachment.content.len())?;
        let draft = self.draft(mailbox, id)?;
        draft.mail.attachments.push(attachment);
        draft.size += size;
        Ok(draft.mail.attachments.len() - 1)
    }

    /// Opens an upload session; its secret and its end.
    pub(super) fn open_session(
        &mut self,
        mailbox: &str,
        id: &str,
        upload: Upload,
    ) -> Result<(String, Timestamp), GraphError> {
        let now = Instant::now();
        let draft = self.draft(mailbox, id)?.immutable_id.clone();
        let draft_bytes = &mut self.draft_bytes;
        self.sessions.retain(|_, session| {
            let lives = session.expires > now;
            if !lives {
                *draft_bytes -= session.received.len();
            }
            lives
        });
        if self.sessions.len() >= SESSIONS_MAX {
            return Err(GraphError::new(
                503,
                "ErrorServerBusy",
                "The server cannot service this request right now.",
            ));
        }
        let secret = item_id("eyJ");
        let expires_at = Timestamp::now() + jiff::SignedDuration::from_secs(SESSION_LIFE.as_secs() as i64);
        let session = Session {
            draft,
            upload,
            received: Vec::new(),
            expires: now + SESSION_LIFE,
            expires_at,
        };
        self.sessions.insert(secret.clone(), session);
        Ok((secret, expires_at))
    }

    fn session(&mut self, secret: &str) -> Result<&mut Session, GraphError> {
        let now = Instant::now();
        self.sessions
            .get_mut(secret)
            .filter(|it| it.expires > now)
            .ok_or_else(|| {
                GraphError::new(
                    404,
                    "ErrorItemNotFound",
                    "The upload session was not found or has expired.",
                )
            })
    }

    /// The mailbox and application a session belongs to.
    pub(super) fn session_owner(&self, secret: &str) -> Option<(String, String)> {
        let item = self.items.get(&self.sessions.get(secret)?.draft)?;
        Some((item.mailbox.clone(), item.app.clone()))
    }

    /// Where an upload stands.
    pub(super) fn session_progress(&mut self, secret: &str) -> Result<Progress, GraphError> {
        let session = self.session(secret)?;
        Ok(Progress::Next {
            from: session.received.len(),
            expires: session.expires_at,
        })
    }

    pub(super) fn expire_session(&mut self, secret: &str) {
        self.cancel_session(secret).ok();
    }

    pub(super) fn cancel_session(&mut self, secret: &str) -> Result<(), GraphError> {
        self.session(secret)?;
        if let Some(session) = self.sessions.remove(secret) {
            self.draft_bytes -= session.received.len();
        }
        Ok(())
    }

    /// Takes the next chunk of an upload. `range` is as `Content-Range` has it: first, last, total.
    pub(super) fn chunk(
        &mut self,
        secret: &str,
        range: (u64, u64, u64),
        content: &[u8],
    ) -> Result<Progress, GraphError> {
        let invalid = |status, message: String| GraphError::new(status, "ErrorInvalidRange", message);
        let (first, last, total) = range;
        let session = self.session(secret)?;
        if total != session.upload.size {
            return Err(invalid(
                400,
                format!(
                    "The total of the range is {total}, {} was announced.",
                    session.upload.size
                ),
            ));
        }
        if last < first || last >= total || last - first + 1 != content.len() as u64 {
            return Err(invalid(400, "The range does not fit the content.".into()));
        }
        if first != session.received.len() as u64 {
            return Err(invalid(
                416,
                format!("The next expected range begins at {}.", session.received.len()),
            ));
        }
        self.reserve(content.len())?;
        let session = self.session(secret)?;
        session.received.extend_from_slice(content);
        if last + 1 < total {
            return Ok(Progress::Next {
                from: session.received.len(),
                expires: session.expires_at,
            });
        }

        let Some(session) = self.sessions.remove(secret) else {
            return Err(GraphError::not_found());
        };
        let size = session.received.len();
        let Some(item) = self.items.get_mut(&session.draft) else {
            self.draft_bytes -= size;
            return Err(GraphError::not_found());
        };
        let upload = session.upload;
        let mut attachment = Attachment::new(upload.name, upload.content_type, Bytes::from(session.received));
        attachment.is_inline = upload.is_inline;
        attachment.content_id = upload.content_id;
        item.mail.attachments.push(attachment);
        item.size += size;
        Ok(Progress::Complete {
            draft: session.draft,
            attachment: item.mail.attachments.len() - 1,
        })
    }

    /// Looks at a draft before it is sent.
    pub(super) fn peek_draft(&mut self, mailbox: &str, id: &str) -> Result<&Item, GraphError> {
        self.draft(mailbox, id).map(|it| &*it)
    }

    /// Moves a draft to Sent Items, and gives its content away.
    pub(super) fn send(
        &mut self,
        mailbox: &str,
        id: &str,
        limits: &Limits,
    ) -> Result<(Mail, Bytes, usize, String), GraphError> {
        let key = self.draft(mailbox, id)?.immutable_id.clone();
        let Some(mut item) = self.remove(&key) else {
            return Err(GraphError::not_found());
        };
        let mail = std::mem::take(&mut item.mail);
        let raw = std::mem::take(&mut item.raw);
        item.mail = outline(&mail);
        item.is_draft = false;
        item.id = item_id("AAMkAG");
        item.visible_from = Instant::now() + Duration::from_millis(limits.sent_items_delay_ms);
        let (size, message_id) = (item.size, item.internet_message_id.clone());
        // The key keeps its place in the order of creation.
        self.items.insert(key, item);
        Ok((mail, raw, size, message_id))
    }

    /// The visible items of a folder, newest first.
    pub(super) fn list(&self, mailbox: &str, folder: Folder, message_id: Option<&str>) -> Vec<&Item> {
        let now = Instant::now();
        self.order
            .iter()
            .rev()
            .filter_map(|key| self.items.get(key))
            .filter(|it| it.mailbox.eq_ignore_ascii_case(mailbox) && it.visible_from <= now)
            .filter(|it| match folder {
                Folder::All => true,
                Folder::Drafts => it.is_draft,
                Folder::SentItems => !it.is_draft,
            })
            .filter(|it| message_id.is_none_or(|id| it.internet_message_id == id))
            .take(1000)
            .collect()
    }

    /// How many drafts and open upload sessions there are.
    pub(in crate::sandbox) fn report(&self) -> Value {
        let drafts = self.items.values().filter(|it| it.is_draft).count();
        json!({"drafts": drafts, "sent_items": self.items.len() - drafts, "upload_sessions": self.sessions.len()})
    }

    pub(in crate::sandbox) fn clear(&mut self) {
        *self = Store::default();
    }
}

impl Item {
    /// As Graph shows it. `immutable` is whether the client prefers that kind of id.
    pub(super) fn show(&self, immutable: bool, select: Option<&str>) -> Value {
        let recipients = |list: &[crate::sandbox::mail::Recipient]| -> Value {
            list.iter()
                .map(|it| json!({"emailAddress": {"name": it.name, "address": it.address}}))
                .collect()
        };
        let mail = &self.mail;
        let mut value = json!({
            "@odata.etag": "W/\"CQAAABYAAAA\"",
            "id": if immutable { &self.immutable_id } else { &self.id },
            "createdDateTime": self.created,
            "lastModifiedDateTime": self.created,
            "hasAttachments": mail.attachments.iter().any(|it| !it.is_inline),
            "internetMessageId": self.internet_message_id,
            "subject": mail.subject,
            "importance": mail.importance.as_deref().unwrap_or("normal"),
            "isDraft": self.is_draft,
            "isRead": true,
            "body": mail.body,
            "toRecipients": recipients(&mail.to),
            "ccRecipients": recipients(&mail.cc),
            "bccRecipients": recipients(&mail.bcc),
            "replyTo": recipients(&mail.reply_to),
        });
        if let (Some(select), Some(object)) = (select, value.as_object_mut()) {
            let wanted: Vec<&str> = select.split(',').map(str::trim).collect();
            object.retain(|name, _| name.starts_with('@') || name == "id" || wanted.contains(&name.as_str()));
        }
        value
    }
}

/// A mail without its content.
fn outline(mail: &Mail) -> Mail {
    Mail {
        from: mail.from.clone(),
        sender: mail.sender.clone(),
        to: mail.to.clone(),
        cc: mail.cc.clone(),
        bcc: mail.bcc.clone(),
        reply_to: mail.reply_to.clone(),
        subject: mail.subject.clone(),
        importance: mail.importance.clone(),
        ..Mail::default()
    }
}

fn item_id(prefix: &str) -> String {
    format!("{prefix}{}", URL_SAFE.encode(random::<66>()))
}
