//! What was delivered, to whom, apart from what was answered.
//!
//! Memory is bounded twice: the oldest records go when there are too many, and before that the
//! oldest contents when they are too large. Counts are never forgotten.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use axum::body::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::fault::Operation;
use super::limits::Limits;
use super::mail::{Attachment, Form, Header, Mail, Recipient};

/// Answers remembered one by one; beyond that only counts.
const ANSWERS_MAX: usize = 2000;

/// One delivered mail.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    /// Counts from one, in order of delivery.
    pub id: u64,
    /// The mailbox it was sent from.
    pub mailbox: String,
    /// The application that sent it.
    pub app: String,
    /// Who it says it is from.
    pub from: Recipient,
    /// As everybody sees them.
    pub to: Vec<Recipient>,
    /// As everybody sees them.
    pub cc: Vec<Recipient>,
    /// Seen by nobody else.
    pub bcc: Vec<Recipient>,
    /// The addresses of all three, in order, each as often as it was given.
    pub recipients: Vec<String>,
    /// Decoded.
    pub subject: String,
    /// Bytes of the request, or requests, it came in.
    pub size: usize,
    /// When it was delivered.
    pub received: Timestamp,
    /// With angle brackets; made here where the sender gave none.
    pub internet_message_id: String,
    /// The form it came in.
    pub form: Form,
    /// Names, sizes and digests.
    pub attachments: Vec<Attachment>,
    /// Whether a copy is in Sent Items.
    pub saved_to_sent_items: bool,
    /// `request-id` of the answer.
    pub request_id: String,
    /// `client-request-id` of the request.
    pub client_request_id: String,
    /// All of it; `None` when the sandbox has let go of it.
    #[serde(skip)]
    pub content: Option<Arc<Content>>,
}

/// A mail's content.
#[derive(Clone, Debug)]
pub struct Content {
    /// As a recipient sees it.
    pub mail: Mail,
    /// The body of the request; for a draft, of the request that created it.
    pub raw: Bytes,
}

/// What the client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// An HTTP status.
    Status(u16),
    /// The connection was reset.
    Reset,
}

impl Answered {
    fn name(self) -> String {
        match self {
            Answered::Status(status) => status.to_string(),
            Answered::Reset => "reset".into(),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    time: Timestamp,
    operation: Operation,
    mailbox: String,
    answered: String,
    code: String,
    delivered: Option<u64>,
    request_id: String,
}

/// The record.
#[derive(Default)]
pub(super) struct Witness {
    deliveries: VecDeque<Delivery>,
    delivered: u64,
    kept_bytes: usize,
    /// Deliveries before this index have lost their content.
    emptied: usize,
    answers: VecDeque<Answer>,
    counts: BTreeMap<&'static str, BTreeMap<String, u64>>,
    requests: u64,
}

impl Witness {
    /// Records a delivery and gives it its number.
    pub(super) fn deliver(&mut self, mut delivery: Delivery, limits: &Limits) -> u64 {
        self.delivered += 1;
        delivery.id = self.delivered;
        self.kept_bytes += weight(&delivery);
        self.deliveries.push_back(delivery);
        while self.deliveries.len() > limits.keep_messages.max(1) {
            if let Some(oldest) = self.deliveries.pop_front() {
                self.kept_bytes -= weight(&oldest);
                self.emptied = self.emptied.saturating_sub(1);
            }
        }
        while self.kept_bytes > limits.keep_bytes && self.emptied < self.deliveries.len() {
            let oldest = &mut self.deliveries[self.emptied];
            self.kept_bytes -= weight(oldest);
            oldest.content = None;
            for attachment in &mut oldest.attachments {
                attachment.content = Bytes::new();
            }
            self.emptied += 1;
        }
        self.delivered
    }

    /// Everything that is remembered, oldest first, after the delivery numbered `after`.
    pub(super) fn deliveries(
        &self,
        after: u64,
    ) -> impl DoubleEndedIterator<Item = &Delivery> + ExactSizeIterator {
        let start = self.deliveries.partition_point(|it| it.id <= after);
        self.deliveries.range(start..)
    }

    pub(super) fn delivery(&self, id: u64) -> Option<&Delivery> {
        let index = self.deliveries.binary_search_by_key(&id, |it| it.id).ok()?;
        self.deliveries.get(index)
    }

    /// Forgets what was delivered and what was answered. Numbers go on.
    pub(super) fn clear(&mut self) {
        *self = Witness {
            delivered: self.delivered,
            ..Witness::default()
        };
    }

    pub(super) fn answer(
        &mut self,
        operation: Operation,
        mailbox: &str,
        answered: Answered,
        delivered: Option<u64>,
        request_id: &str,
        code: &str,
    ) {
        self.requests += 1;
        *self
            .counts
            .entry(operation.name())
            .or_default()
            .entry(answered.name())
            .or_default() += 1;
        if self.answers.len() >= ANSWERS_MAX {
            self.answers.pop_front();
        }
        self.answers.push_back(Answer {
            time: Timestamp::now(),
            operation,
            mailbox: mailbox.to_owned(),
            answered: answered.name(),
            code: code.to_owned(),
            delivered,
            request_id: request_id.to_owned(),
        });
    }

    /// `GET /sandbox/requests`.
    pub(super) fn report(&self) -> Value {
        json!({
            "requests": self.requests,
            "delivered": self.delivered,
            "answers": self.counts,
            "recent": self.answers,
        })
    }
}

fn weight(delivery: &Delivery) -> usize {
    delivery
        .content
        .as_ref()
        .map_or(0, |it| it.mail.weight() + it.raw.len())
}

impl Delivery {
    /// Everything, as `GET /sandbox/messages/{id}` shows it.
    pub(super) fn show(&self) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        let Some(content) = &self.content else {
            value["contentKept"] = false.into();
            return value;
        };
        let mail = &content.mail;
        let headers = |list: &[Header]| serde_json::to_value(list).unwrap_or_default();
        value["contentKept"] = true.into();
        value["sender"] = json!(mail.sender);
        value["replyTo"] = json!(mail.reply_to);
        value["importance"] = json!(mail.importance);
        value["isReadReceiptRequested"] = mail.is_read_receipt_requested.into();
        value["isDeliveryReceiptRequested"] = mail.is_delivery_receipt_requested.into();
        value["headers"] = headers(&mail.headers);
        value["extendedProperties"] = headers(&mail.extended_properties);
        value["body"] = json!(mail.body);
        value["textAlternative"] = json!(mail.text_alternative);
        value["raw"] = String::from_utf8_lossy(&content.raw).into();
        value
    }
}
