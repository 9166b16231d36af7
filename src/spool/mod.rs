//! The durable queue: states, receipts, recovery.

mod id;

use std::path::PathBuf;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config;
use crate::envelope::{Envelope, Origin, Route};

pub use id::{NotAQueueId, QueueId};

/// Proof that a message is on the disk. Only [`Incoming::accept`] makes one, and the session cannot
/// say 250 to mail data without one.
#[derive(Debug)]
pub struct Receipt(QueueId);

impl Receipt {
    /// The message it is for.
    pub fn id(&self) -> QueueId {
        self.0
    }
}

/// What a message is stored with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// Who sends and who receives.
    pub envelope: Envelope,
    /// Who handed it over.
    pub origin: Origin,
    /// The mailbox that sends it.
    pub route: Route,
    /// The Message-ID without angle brackets: the client's, or one made at acceptance, so that it
    /// is the same at every attempt.
    pub message_id: String,
}

/// Where a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Waiting for its (next) attempt.
    Queued,
    /// An attempt is under way, and the disk knows it.
    Sending,
    /// Waiting for the operator.
    Held,
    /// Given up; kept with its reason for a while.
    Failed,
    /// An attempt ended without an answer, and the policy waits for the operator.
    Unknown,
    /// Graph has it; only the record is kept, for a while, without content.
    Sent,
}

/// One message in the queue, without its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its number.
    pub id: QueueId,
    /// Where it stands.
    pub state: State,
    /// What it was stored with.
    #[serde(flatten)]
    pub submission: Submission,
    /// Octets of content.
    pub size: u64,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// Attempts begun so far.
    pub attempts: u32,
    /// The next attempt is not before this; meaningful while queued or held.
    pub due: Timestamp,
    /// What the last attempt said, in words.
    pub reason: Option<String>,
    /// Graph's `request-id` of the last attempt.
    pub request_id: Option<String>,
    /// When the state last changed.
    pub changed: Timestamp,
}

/// What the delivery loop needs to know of a message before it takes it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Its number.
    pub id: QueueId,
    /// The mailbox that sends it.
    pub mailbox: String,
    /// Octets of content.
    pub size: u64,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// Attempts begun so far.
    pub attempts: u32,
    /// The next attempt is not before this.
    pub due: Timestamp,
}

/// How an attempt ended, as the queue records it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Done: the content goes, the record stays for `keep_sent`.
    Sent,
    /// Queued again until then.
    Deferred {
        /// The next attempt is not before this.
        due: Timestamp,
        /// Why.
        reason: String,
    },
    /// Waits for the operator, or for `due`, whichever is first.
    Held {
        /// The next attempt by itself.
        due: Timestamp,
        /// Why, and what to mend.
        reason: String,
    },
    /// Given up.
    Failed {
        /// Why.
        reason: String,
    },
    /// Nobody can know whether it was sent; waits for the operator.
    Unknown {
        /// What happened.
        reason: String,
    },
}

/// Why the spool cannot take or give something.
#[derive(Debug)]
pub enum SpoolError {
    /// A high-water mark is reached or the disk is full: 452 4.3.1. Nothing accepted is lost.
    Full(String),
    /// The store failed: 451 4.3.0. After a failed commit or fsync the spool takes nothing more.
    Broken(String),
    /// There is no such message.
    NotFound(QueueId),
}

/// What opening found.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    /// Messages waiting.
    pub queued: u64,
    /// Messages whose attempt was under way when the process ended.
    pub interrupted: u64,
    /// Content files that belonged to no message, removed.
    pub orphans: u64,
    /// Files and rows that could not be understood, set aside here.
    pub set_aside: Vec<PathBuf>,
}

/// The durable queue. Cheap to clone; all clones are one queue.
#[derive(Clone)]
pub struct Spool {}

/// A message on its way in. Dropped without [`Incoming::accept`], it never was.
pub struct Incoming {}

/// Which entries to list. Empty fields match all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only these states.
    pub states: Vec<State>,
    /// At most this many, oldest first; 0 means all.
    pub limit: usize,
}

impl Spool {
    /// Opens the queue, makes it if it is not there, and recovers what a crash left.
    ///
    /// # Errors
    /// Words that name the directory and what to do.
    pub async fn open(settings: &config::Spool) -> Result<(Spool, Recovery), SpoolError> {
        let _ = settings;
        todo!()
    }

    /// Begins to take a message.
    ///
    /// # Errors
    /// [`SpoolError::Full`] over a high-water mark.
    pub fn incoming(&self) -> Result<Incoming, SpoolError> {
        todo!()
    }

    /// Messages as they become due for delivery: first those that opening found, then those
    /// accepted or released since. One receiver only.
    pub fn arrivals(&self) -> tokio::sync::mpsc::UnboundedReceiver<Arrival> {
        todo!()
    }

    /// Records that an attempt begins, durably, and gives the message.
    ///
    /// # Errors
    /// [`SpoolError::NotFound`] when it has been deleted or is no longer due (held, sent) meanwhile.
    pub async fn begin_attempt(&self, id: QueueId) -> Result<(Entry, Bytes), SpoolError> {
        let _ = id;
        todo!()
    }

    /// Records how an attempt ended. Durable when it returns.
    pub async fn settle(
        &self,
        id: QueueId,
        settlement: Settlement,
        request_id: Option<String>,
    ) -> Result<(), SpoolError> {
        let _ = (id, settlement, request_id);
        todo!()
    }

    /// Lists entries, oldest first.
    pub async fn list(&self, filter: Filter) -> Result<Vec<Entry>, SpoolError> {
        let _ = filter;
        todo!()
    }
}

impl Incoming {
    /// Takes more content. Beyond the threshold it goes to a file.
    pub async fn write(&mut self, content: &[u8]) -> Result<(), SpoolError> {
        let _ = content;
        todo!()
    }

    /// Octets taken so far.
    pub fn size(&self) -> u64 {
        todo!()
    }

    /// Makes the message durable. When this returns `Ok`, 250 is true.
    pub async fn accept(self, submission: Submission) -> Result<Receipt, SpoolError> {
        let _ = submission;
        todo!()
    }
}
