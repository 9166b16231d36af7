//! The durable queue: states, receipts, recovery.

mod entry;
mod id;

use bytes::Bytes;

use crate::config;
use crate::metrics::Metrics;

pub use entry::{
    Action, Arrival, Counts, Entry, Filter, NotAState, Recovery, Settlement, SpoolError, State, Statistics,
    Submission,
};
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

/// The durable queue. Cheap to clone; all clones are one queue.
#[derive(Clone)]
pub struct Spool {}

/// A message on its way in. Dropped without [`Incoming::accept`], it never was.
pub struct Incoming {}

/// The queue as it stands on the disk, read without disturbing the gateway that may own it.
pub struct Reader {}

impl Spool {
    /// Opens the queue, makes it if it is not there, and recovers what a crash left. `interrupted`
    /// says what becomes of messages whose attempt was under way.
    ///
    /// # Errors
    /// [`SpoolError::Unusable`] in words that name the directory and what to do.
    pub async fn open(
        settings: &config::Spool,
        interrupted: config::UnknownPolicy,
        metrics: &Metrics,
    ) -> Result<(Spool, Recovery), SpoolError> {
        let _ = (settings, interrupted, metrics);
        todo!()
    }

    /// Ends the queue: what was asked before is finished, the directory is unlocked. Everything
    /// asked afterwards is answered with [`SpoolError::Broken`].
    pub async fn close(&self) {
        todo!()
    }

    /// Waits until the store fails and says how. Pends for ever while all is well.
    pub async fn broken(&self) -> String {
        todo!()
    }

    /// Whether a message of this many octets could be taken now: for SIZE= in MAIL FROM.
    ///
    /// # Errors
    /// [`SpoolError::Full`] over a high-water mark, [`SpoolError::Broken`].
    pub fn has_room(&self, size: u64) -> Result<(), SpoolError> {
        let _ = size;
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
    /// accepted, retried or released since. An id that comes again has a new due time, which
    /// replaces the old one. One receiver only: a second one is empty.
    pub fn arrivals(&self) -> tokio::sync::mpsc::UnboundedReceiver<Arrival> {
        todo!()
    }

    /// Records that an attempt begins, durably, and gives the message. A queued message, or a held
    /// one that has a due time, may be attempted; whether it is due is the caller's judgement.
    ///
    /// # Errors
    /// [`SpoolError::NotFound`] when it has been deleted or put on hold meanwhile: forget it.
    /// [`SpoolError::Damaged`] when its content is not what was stored; it is held now: forget it.
    pub async fn begin_attempt(&self, id: QueueId) -> Result<(Entry, Bytes), SpoolError> {
        let _ = id;
        todo!()
    }

    /// Records how an attempt ended. Durable when it returns. On a full disk it waits until there
    /// is room for the few octets it needs, since the outcome must not be lost.
    ///
    /// # Errors
    /// [`SpoolError::NotFound`] when no attempt was under way.
    pub async fn settle(
        &self,
        id: QueueId,
        settlement: Settlement,
        request_id: Option<String>,
    ) -> Result<(), SpoolError> {
        let _ = (id, settlement, request_id);
        todo!()
    }

    /// Carries out an operator's action, durably. `reason` is kept with the message.
    ///
    /// # Errors
    /// [`SpoolError::NotFound`], or [`SpoolError::Refused`] where the state does not allow it.
    pub async fn act(&self, id: QueueId, action: Action, reason: &str) -> Result<(), SpoolError> {
        let _ = (id, action, reason);
        todo!()
    }

    /// The same for many messages at once, with few commits.
    pub async fn act_on_all(
        &self,
        ids: &[QueueId],
        action: Action,
        reason: &str,
    ) -> Vec<(QueueId, Result<(), SpoolError>)> {
        let _ = (ids, action, reason);
        todo!()
    }

    /// Lists entries, oldest first.
    pub async fn list(&self, filter: Filter) -> Result<Vec<Entry>, SpoolError> {
        let _ = filter;
        todo!()
    }

    /// One entry.
    pub async fn get(&self, id: QueueId) -> Result<Entry, SpoolError> {
        let _ = id;
        todo!()
    }

    /// The content of a message as it was accepted.
    pub async fn content(&self, id: QueueId) -> Result<Bytes, SpoolError> {
        let _ = id;
        todo!()
    }

    /// The queue in figures.
    pub async fn statistics(&self) -> Result<Statistics, SpoolError> {
        todo!()
    }
}

impl Incoming {
    /// The number the message will have if it is accepted.
    pub fn id(&self) -> QueueId {
        todo!()
    }

    /// Takes more content. Beyond the threshold it goes to a file.
    ///
    /// # Errors
    /// [`SpoolError::Full`] over a high-water mark or on a full disk.
    pub async fn write(&mut self, content: &[u8]) -> Result<(), SpoolError> {
        let _ = content;
        todo!()
    }

    /// Octets taken so far.
    pub fn size(&self) -> u64 {
        todo!()
    }

    /// Makes the message durable. When this returns `Ok`, 250 is true.
    ///
    /// # Errors
    /// [`SpoolError::Full`], [`SpoolError::Broken`]: the message never was.
    pub async fn accept(self, submission: Submission) -> Result<Receipt, SpoolError> {
        let _ = submission;
        todo!()
    }
}

impl Reader {
    /// Opens the queue of this directory to read, whether or not a gateway runs on it.
    ///
    /// # Errors
    /// [`SpoolError::Unusable`] where there is none or it may not be read.
    pub fn open(directory: &std::path::Path) -> Result<Reader, SpoolError> {
        let _ = directory;
        todo!()
    }

    /// As [`Spool::list`].
    pub fn list(&self, filter: &Filter) -> Result<Vec<Entry>, SpoolError> {
        let _ = filter;
        todo!()
    }

    /// As [`Spool::get`].
    pub fn get(&self, id: QueueId) -> Result<Entry, SpoolError> {
        let _ = id;
        todo!()
    }

    /// As [`Spool::content`].
    pub fn content(&self, id: QueueId) -> Result<Bytes, SpoolError> {
        let _ = id;
        todo!()
    }

    /// As [`Spool::statistics`].
    pub fn statistics(&self) -> Result<Statistics, SpoolError> {
        todo!()
    }
}
