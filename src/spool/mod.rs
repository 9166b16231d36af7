//! The durable queue: states, receipts, recovery.
//!
//! A directory: `queue.db` (SQLite, write-ahead log, every commit synced), `content/` (a file for
//! each message whose content is larger than a threshold), `set-aside/` (what recovery could not
//! understand) and `lock` (one process at a time). One thread writes. It takes all that waits into
//! one transaction and syncs once for all of it; with nobody else waiting it commits at once.
//!
//! ```text
//!           content of a large message     row of the message      a crash here
//!           content/ID.eml                 state       due
//! S0        -                              -                       unknown, or removed
//! S1        being written                  -                       the file is swept at the next
//!                                                                  start; no one was told 250
//! S2        synced, name synced            -                       the same
//! queued    +                              queued      a time      attempted when due
//! sending   +                              sending     -           an attempt may have been made;
//!                                                                  at the next start the policy
//!                                                                  for unknown outcomes decides:
//!                                                                  queued again, or unknown
//! held      +                              held        time or -   stays so; with a time it is
//!                                                                  tried slowly by itself
//! unknown   +                              unknown     -           stays so, for the operator
//! failed    +                              failed      -           stays so, until `keep_failed`
//! sent      - (or not yet removed)         sent        -           the file is swept at the next
//!                                                                  start; the row until `keep_sent`
//! ```
//!
//! Small content has no file and no S1, S2: it is a row beside the message's, written in the same
//! transaction, and removed in the same transaction.
//!
//! ```text
//! accept         S0 S1 S2 queued             at the commit that makes the row, 250 is true
//! join           queued → queued        recipients are added, until its window ends (`merge_split`)
//! begin attempt  queued | held, due → sending
//!                with more recipients than a request takes, in the same transaction: for the first
//!                group of them; every other group becomes a message of its own, queued
//! give up        queued | held, due → failed
//! settle         sending → sent | queued (deferred) | held | failed | unknown
//! verified       unknown, with a time → sent | queued | unknown, with or without a time
//! operator       retry    queued | held | unknown | failed → queued, due now
//!                hold     queued | held → held, without a time
//!                release  held | unknown → queued, due now
//!                delete   all but sending → S0
//! retention      sent, failed → S0
//! ```
//!
//! The groups of a message share its content, which stands under the number of the message until the
//! last of them needs it no more. Each has its own envelope, state and history.
//!
//! A row is committed away before its file is removed, and a file is synced before its row is
//! committed: there may be a file without a message, which is swept, but never a message without its
//! file. A crash while sending may send a message twice, unless its policy says otherwise. It never sends
//! none.

mod content;
mod entry;
mod failure;
mod group;
mod id;
mod incoming;
mod merge;
mod open;
mod reader;
mod recover;
mod space;
mod store;
mod writer;

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{mpsc as async_mpsc, oneshot, watch};

use crate::config;
use crate::event;
use crate::metrics::Metrics;
use content::Sweeper;
use incoming::blocking;
use space::Space;
use store::Change;
use writer::{Ask, Broken, Done, Meters, Request, Writer};

pub use entry::{
    Action, Arrival, Counts, Entry, Filter, NotAState, Recovery, Settlement, SpoolError, State, Statistics,
    Submission, Tidied,
};
pub use id::{NotAQueueId, QueueId};
pub use incoming::Incoming;
pub use open::{FileSystem, file_system};
pub use reader::Reader;

const DATABASE: &str = "queue.db";
const CONTENT: &str = "content";
const SET_ASIDE: &str = "set-aside";
const LOCK: &str = "lock";

/// The largest content that goes into the database, whatever the settings say: a transaction holds
/// it in memory.
const MAX_FILE_THRESHOLD: usize = 4 << 20;

/// Connections for reading that are kept open. More are opened when more read at once.
const IDLE_READERS: usize = 8;

/// Proof that a message is on the disk. Only [`Incoming::accept`] makes one, and the session cannot
/// say 250 to mail data without one.
#[derive(Debug)]
pub struct Receipt {
    id: QueueId,
    joined: bool,
}

impl Receipt {
    /// The message it is for.
    pub fn id(&self) -> QueueId {
        self.id
    }

    /// Whether the message was there already, and only recipients were added to it.
    pub fn is_joined(&self) -> bool {
        self.joined
    }
}

/// The durable queue. Cheap to clone; all clones are one queue.
#[derive(Clone)]
pub struct Spool {
    shared: Arc<Shared>,
}

struct Shared {
    writer: mpsc::Sender<Ask>,
    space: Arc<Space>,
    next_id: Arc<AtomicI64>,
    file_threshold: usize,
    directory: PathBuf,
    content: PathBuf,
    sweeper: Sweeper,
    readers: Mutex<Vec<Reader>>,
    arrivals: Mutex<Option<async_mpsc::UnboundedReceiver<Arrival>>>,
    broken: watch::Sender<Option<String>>,
    syncs: Counter,
}

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
        let started = Instant::now();
        let directory = settings.directory.clone();
        let (opened, recovered) = {
            let directory = directory.clone();
            blocking(move || {
                let mut opened = open::open(&directory)?;
                let recovered =
                    recover::recover(&mut opened.connection, &directory, opened.is_new, interrupted)?;
                Ok((opened, recovered))
            })
            .await?
        };
        let threads = |error: std::io::Error| SpoolError::Unusable(format!("cannot start a thread: {error}"));

        let space = Arc::new(Space::new(settings, recovered.counts, recovered.bytes, metrics));
        match reader::free_bytes(&directory) {
            Ok(free) => space.measured(free),
            Err(error) => event::spool_not_measured(&directory, &error),
        }
        let sweeper = Sweeper::start().map_err(threads)?;
        let (broken, _) = watch::channel(None);
        let (arrive, arrivals) = async_mpsc::unbounded_channel();
        for arrival in recovered.arrivals {
            let _ = arrive.send(arrival);
        }
        let (ask, inbox) = mpsc::channel();
        let next_id = Arc::new(AtomicI64::new(recovered.next_id));
        let writer = Writer {
            connection: opened.connection,
            inbox,
            space: Arc::clone(&space),
            arrivals: arrive,
            sweeper: sweeper.clone(),
            broken: Broken(broken.clone()),
            directory: directory.clone(),
            content_directory: opened.content_directory,
            lock: opened.lock,
            keep_sent: settings.keep_sent,
            keep_failed: settings.keep_failed,
            max_sent: settings.max_messages,
            meters: Meters::new(metrics),
            next_id: Arc::clone(&next_id),
            stalled: Vec::new(),
        };
        std::thread::Builder::new()
            .name("spool-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(threads)?;

        let mut recovery = recovered.recovery;
        recovery.took = started.elapsed();
        let shared = Arc::new(Shared {
            writer: ask,
            space,
            next_id,
            file_threshold: settings.file_threshold.min(MAX_FILE_THRESHOLD),
            content: directory.join(CONTENT),
            directory,
            sweeper,
            readers: Mutex::new(Vec::new()),
            arrivals: Mutex::new(Some(arrivals)),
            broken,
            syncs: metrics.spool_syncs.clone(),
        });
        Ok((Spool { shared }, recovery))
    }

    /// Ends the queue: what was asked before is finished, the directory is unlocked. Everything
    /// asked afterwards is answered with [`SpoolError::Broken`].
    pub async fn close(&self) {
        // The writer's connection shall be the last, which leaves no log behind.
        self.shared.idle_readers().clear();
        let (reply, answer) = oneshot::channel();
        if self.shared.writer.send(Ask::Close(reply)).is_ok() {
            let _ = answer.await;
        }
    }

    /// Waits until the store fails and says how. Pends for ever while all is well.
    pub async fn broken(&self) -> String {
        let mut broken = self.shared.broken.subscribe();
        match broken.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            // Not while this queue holds a sender itself.
            Err(_) => std::future::pending().await,
        }
    }

    /// Whether a message of this many octets could be taken now: for SIZE= in MAIL FROM.
    ///
    /// # Errors
    /// [`SpoolError::Full`] over a high-water mark, [`SpoolError::Broken`].
    pub fn has_room(&self, size: u64) -> Result<(), SpoolError> {
        self.shared.whole()?;
        self.shared.space.admits(size)
    }

    /// How often there was no room for a message, and why the last time.
    pub fn refusals(&self) -> watch::Receiver<(u64, String)> {
        self.shared.space.refusals()
    }

    /// Begins to take a message.
    ///
    /// # Errors
    /// [`SpoolError::Full`] over a high-water mark, [`SpoolError::Broken`].
    pub fn incoming(&self) -> Result<Incoming, SpoolError> {
        self.shared.whole()?;
        let reservation = self.shared.space.reserve()?;
        let id = QueueId(self.shared.next_id.fetch_add(1, Ordering::Relaxed));
        Ok(Incoming::new(Arc::clone(&self.shared), id, reservation))
    }

    /// Messages as they become due for delivery: first those that opening found, then those
    /// accepted, retried or released since. An id that comes again has a new due time, which
    /// replaces the old one. One receiver only: a second one is empty.
    pub fn arrivals(&self) -> async_mpsc::UnboundedReceiver<Arrival> {
        self.shared
            .arrivals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .unwrap_or_else(|| async_mpsc::unbounded_channel().1)
    }

    /// Records that an attempt begins, durably, and gives the message. A queued message, or a held
    /// one that has a due time, may be attempted; whether it is due is the caller's judgement.
    ///
    /// A message with more than `max_recipients` is split in the same transaction: this attempt is for the
    /// first group, and the others are messages of their own, which arrive as such.
    ///
    /// # Errors
    /// [`SpoolError::NotFound`] when it has been deleted or put on hold meanwhile: forget it.
    /// [`SpoolError::Damaged`] when its content is not what was stored; it is held now: forget it.
    /// [`SpoolError::Full`] or [`SpoolError::Failed`] when the attempt cannot be recorded or the
    /// content not read for now: try again later.
    pub async fn begin_attempt(
        &self,
        id: QueueId,
        max_recipients: usize,
    ) -> Result<(Entry, Bytes), SpoolError> {
        self.shared.whole()?;
        // First the content: what cannot be read is not attempted.
        match self.shared.read(move |reader| reader.message(id)).await {
            Ok((mut entry, content)) => {
                let done = self
                    .shared
                    .change(Change::BeginAttempt { id, max_recipients })
                    .await?;
                if let Some(stored) = done.stored {
                    entry.submission = stored.submission;
                    entry.group_of = stored.group_of;
                }
                entry.state = State::Sending;
                entry.attempts += 1;
                entry.due = None;
                Ok((entry, content))
            }
            Err(SpoolError::Damaged(_, why)) => {
                self.shared
                    .change(Change::SetDamaged { id, why: why.clone() })
                    .await?;
                Err(SpoolError::Damaged(id, why))
            }
            Err(error) => Err(error),
        }
    }

    /// Records the draft that the attempt under way has made in the mailbox. Durable when it returns.
    ///
    /// # Errors
    /// [`SpoolError::NotFound`] when no attempt was under way.
    pub async fn note_draft(&self, id: QueueId, draft: String) -> Result<(), SpoolError> {
        self.shared
            .change(Change::NoteDraft { id, draft })
            .await
            .map(drop)
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
        self.shared
            .change(Change::Settle {
                id,
                settlement,
                request_id,
            })
            .await
            .map(drop)
    }

    /// Gives a waiting message up without an attempt. Durable when it returns; on a full disk it waits as
    /// [`Spool::settle`] does, since its sender has been told.
    ///
    /// # Errors
    /// [`SpoolError::NotFound`] when it does not wait any more.
    pub async fn give_up(&self, id: QueueId, reason: &str) -> Result<(), SpoolError> {
        let reason = reason.to_owned();
        self.shared.change(Change::GiveUp { id, reason }).await.map(drop)
    }

    /// Records what was found out about a message whose outcome was unknown. Durable when it returns.
    ///
    /// # Errors
    /// [`SpoolError::NotFound`] when it is not unknown any more, because the operator has decided.
    pub async fn settle_unknown(&self, id: QueueId, settlement: Settlement) -> Result<(), SpoolError> {
        self.shared
            .change(Change::SettleUnknown { id, settlement })
            .await
            .map(drop)
    }

    /// How many other messages with this one's mailbox and Message-ID may have been sent since this one
    /// was accepted, less `slack`. Other groups of the same message are none: their recipients differ.
    ///
    /// # Errors
    /// [`SpoolError::NotFound`], [`SpoolError::Failed`].
    pub async fn namesakes(&self, id: QueueId, slack: Duration) -> Result<u64, SpoolError> {
        self.shared.read(move |reader| reader.namesakes(id, slack)).await
    }

    /// Carries out an operator's action, durably. `reason` is kept with the message.
    ///
    /// # Errors
    /// [`SpoolError::NotFound`], or [`SpoolError::Refused`] where the state does not allow it.
    pub async fn act(&self, id: QueueId, action: Action, reason: &str) -> Result<(), SpoolError> {
        let reason = reason.to_owned();
        self.shared
            .change(Change::Act { id, action, reason })
            .await
            .map(drop)
    }

    /// The same for many messages, with few commits.
    pub async fn act_on_all(
        &self,
        ids: &[QueueId],
        action: Action,
        reason: &str,
    ) -> Vec<(QueueId, Result<(), SpoolError>)> {
        let mut results = Vec::with_capacity(ids.len());
        for ids in ids.chunks(1000) {
            // All are asked before the first is awaited, so that they come into one commit.
            let asked: Vec<_> = ids
                .iter()
                .map(|&id| {
                    let reason = reason.to_owned();
                    (id, self.shared.ask(Change::Act { id, action, reason }))
                })
                .collect();
            for (id, answer) in asked {
                let result = match answer {
                    Ok(answer) => self.shared.answer(answer).await.map(drop),
                    Err(error) => Err(error),
                };
                results.push((id, result));
            }
        }
        results
    }

    /// Lists entries, oldest first.
    ///
    /// # Errors
    /// [`SpoolError::Failed`] where the database cannot be read.
    pub async fn list(&self, filter: Filter) -> Result<Vec<Entry>, SpoolError> {
        self.shared.read(move |reader| reader.list(&filter)).await
    }

    /// One entry.
    ///
    /// # Errors
    /// [`SpoolError::NotFound`].
    pub async fn get(&self, id: QueueId) -> Result<Entry, SpoolError> {
        self.shared.read(move |reader| reader.get(id)).await
    }

    /// The content of a message as it was accepted.
    ///
    /// # Errors
    /// [`SpoolError::NotFound`] also where the message is sent and its content gone,
    /// [`SpoolError::Damaged`].
    pub async fn content(&self, id: QueueId) -> Result<Bytes, SpoolError> {
        self.shared.read(move |reader| reader.content(id)).await
    }

    /// The queue in figures.
    ///
    /// # Errors
    /// [`SpoolError::Failed`] where it cannot be read.
    pub async fn statistics(&self) -> Result<Statistics, SpoolError> {
        let (messages, bytes) = self.shared.space.totals();
        let directory = self.shared.directory.clone();
        self.shared
            .read(move |reader| {
                Ok(Statistics {
                    messages,
                    bytes,
                    oldest: reader.oldest()?,
                    free_bytes: reader::free_bytes(&directory)
                        .map_err(|error| SpoolError::Failed(format!("free space: {error}")))?,
                })
            })
            .await
    }

    /// Removes what has been kept for long enough and gives free space back, now and completely.
    /// The queue does the same by itself, little by little.
    ///
    /// # Errors
    /// [`SpoolError::Full`], [`SpoolError::Failed`], [`SpoolError::Broken`].
    pub async fn tidy(&self) -> Result<Tidied, SpoolError> {
        let (reply, answer) = oneshot::channel();
        self.shared
            .writer
            .send(Ask::Tidy(reply))
            .map_err(|_| self.shared.ended())?;
        answer.await.map_err(|_| self.shared.ended())?
    }
}

impl Shared {
    /// Has the writer make a change durable.
    async fn change(&self, change: Change) -> Result<Done, SpoolError> {
        let answer = self.ask(change)?;
        self.answer(answer).await
    }

    fn ask(&self, change: Change) -> Result<oneshot::Receiver<Result<Done, SpoolError>>, SpoolError> {
        self.whole()?;
        let (reply, answer) = oneshot::channel();
        self.writer
            .send(Ask::Change(Request { change, reply }))
            .map_err(|_| self.ended())?;
        Ok(answer)
    }

    async fn answer(&self, answer: oneshot::Receiver<Result<Done, SpoolError>>) -> Result<Done, SpoolError> {
        answer.await.unwrap_or_else(|_| Err(self.ended()))
    }

    /// Reads on a connection of its own, off the async threads.
    async fn read<T: Send + 'static>(
        self: &Arc<Shared>,
        work: impl FnOnce(&Reader) -> Result<T, SpoolError> + Send + 'static,
    ) -> Result<T, SpoolError> {
        let shared = Arc::clone(self);
        blocking(move || {
            let idle = shared.idle_readers().pop();
            let reader = match idle {
                Some(reader) => reader,
                None => Reader::open(&shared.directory)?,
            };
            let result = work(&reader);
            let mut readers = shared.idle_readers();
            if readers.len() < IDLE_READERS {
                readers.push(reader);
            }
            result
        })
        .await
    }

    fn idle_readers(&self) -> std::sync::MutexGuard<'_, Vec<Reader>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn whole(&self) -> Result<(), SpoolError> {
        match &*self.broken.borrow() {
            Some(why) => Err(SpoolError::Broken(why.clone())),
            None => Ok(()),
        }
    }

    /// After an fsync outside the writer has failed.
    fn declare_broken(&self, why: String) -> SpoolError {
        event::spool_broken(&why);
        self.broken.send_replace(Some(why.clone()));
        SpoolError::Broken(why)
    }

    fn ended(&self) -> SpoolError {
        match self.whole() {
            Err(error) => error,
            Ok(()) => SpoolError::Broken("the queue is closed".to_owned()),
        }
    }
}
