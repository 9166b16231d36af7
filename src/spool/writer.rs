//! The one thread that writes: it takes everything that waits into one transaction, and tells each
//! who asked only when that is on the disk. With nobody else waiting it commits at once.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use rusqlite::{Connection, TransactionBehavior, config::DbConfig};
use tokio::sync::{mpsc, oneshot, watch};

use super::content::{Content, Sweeper};
use super::failure::{Failure, describe};
use super::reader::{free_bytes, oldest};
use super::space::{Move, Space};
use super::store::{self, Change, Effect, Stored, Terms};
use super::{Arrival, QueueId, SpoolError, State, Tidied};
use crate::event;
use crate::metrics::Metrics;

/// The most changes in one transaction, and the most octets of content: a batch must not make those
/// in it wait for long.
const MAX_BATCH: usize = 1000;
const MAX_BATCH_OCTETS: usize = 16 << 20;

/// How often the file system is measured and old records are looked for.
const TICK: Duration = Duration::from_secs(1);

/// How often the age of the oldest message is looked up, which reads an index.
const AGE_TICK: Duration = Duration::from_secs(10);

/// The most records removed at once by age.
const MAX_EXPIRED: u64 = 500;

/// Pages that the write-ahead log may have before it is carried over into the database: 16 MiB.
const CHECKPOINT_PAGES: i64 = 1024;

/// Octets of write-ahead log that are left lying on an idle queue.
const IDLE_LOG_OCTETS: u64 = 1 << 20;

/// Free pages that the database keeps for the next message, and those given back in one step.
const KEPT_FREE_PAGES: u64 = 64;
const VACUUM_STEP: u64 = 256;

/// What the thread is asked.
pub(super) enum Ask {
    Change(Request),
    /// Remove what is old, give back what is free, now and completely.
    Tidy(oneshot::Sender<Result<Tidied, SpoolError>>),
    Close(oneshot::Sender<()>),
}

/// A change and who waits for it.
pub(super) struct Request {
    pub change: Change,
    pub reply: oneshot::Sender<Result<Done, SpoolError>>,
}

/// What a change came to.
pub(super) struct Done {
    /// The message that was changed: what is accepted may be joined to another.
    pub id: QueueId,
    /// What it is stored with now, where that may not be what it was read with.
    pub stored: Option<Box<Stored>>,
}

/// The thread's own.
pub(super) struct Writer {
    pub connection: Connection,
    pub inbox: Receiver<Ask>,
    pub space: Arc<Space>,
    pub arrivals: mpsc::UnboundedSender<Arrival>,
    pub sweeper: Sweeper,
    pub broken: Broken,
    pub directory: PathBuf,
    /// `content/`, open, to be synced.
    pub content_directory: File,
    /// Held for as long as the thread lives.
    pub lock: File,
    pub keep_sent: Duration,
    pub keep_failed: Duration,
    /// The most records of sent messages kept, whatever their age.
    pub max_sent: u64,
    pub meters: Meters,
    /// The next number to be given, shared with those who take messages.
    pub next_id: Arc<AtomicI64>,
    /// Outcomes that found no room on the disk.
    pub stalled: Vec<Request>,
}

/// Tells those who wait for it that the queue is broken.
pub(super) struct Broken(pub watch::Sender<Option<String>>);

impl Drop for Broken {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0
                .send_replace(Some("its thread has ended by a defect".to_owned()));
        }
    }
}

/// What the thread counts.
pub(super) struct Meters {
    commit_duration: Histogram,
    committed: Counter,
    syncs: Counter,
    oldest_age: Gauge,
    merged: Counter,
    recipient_groups: Counter,
}

impl Meters {
    pub(super) fn new(metrics: &Metrics) -> Meters {
        Meters {
            commit_duration: metrics.spool_commit_duration_seconds.clone(),
            committed: metrics.spool_commits.clone(),
            syncs: metrics.spool_syncs.clone(),
            oldest_age: metrics.queue_oldest_age_seconds.clone(),
            merged: metrics.merged.clone(),
            recipient_groups: metrics.recipient_groups.clone(),
        }
    }
}

/// What may be done now, after the channel was looked into.
enum Turn {
    Commit(Vec<Request>),
    Tidy(oneshot::Sender<Result<Tidied, SpoolError>>),
    Idle,
    Close(Option<oneshot::Sender<()>>),
}

impl Writer {
    /// Works until it is told to close, or nobody is left who could ask.
    pub(super) fn run(mut self) {
        let mut next_tick = Instant::now() + TICK;
        let mut next_age = Instant::now();
        // What was taken from the channel behind a batch, and is no change.
        let mut pending: Option<Ask> = None;
        let mut was_busy = true;
        let mut more_to_free = false;
        let reply = loop {
            let until = if more_to_free { Instant::now() } else { next_tick };
            more_to_free = false;
            let turn = self.turn(&mut pending, until);
            let done = match turn {
                Turn::Commit(batch) => {
                    was_busy = true;
                    self.commit(batch).and_then(|()| self.checkpoint_if_long())
                }
                Turn::Tidy(reply) => match self.tidy() {
                    Ok(tidied) => {
                        let _ = reply.send(Ok(tidied));
                        Ok(())
                    }
                    Err(Failure::Passing(error)) => {
                        let _ = reply.send(Err(error));
                        Ok(())
                    }
                    Err(fatal) => Err(fatal),
                },
                // One tick without a change is idle enough to clean up.
                Turn::Idle if !was_busy => self.rest().map(|more| more_to_free = more),
                Turn::Idle => Ok(()),
                Turn::Close(reply) => break reply,
            };
            let done = done.and_then(|()| {
                let now = Instant::now();
                if now < next_tick {
                    return Ok(());
                }
                next_tick = now + TICK;
                was_busy = false;
                if now >= next_age {
                    next_age = now + AGE_TICK;
                    self.measure_age()?;
                }
                self.tick()
            });
            match done {
                Ok(()) | Err(Failure::Passing(_)) => {}
                Err(Failure::Fatal(why)) => return self.refuse_everything(why, pending),
            }
        };
        self.close(reply);
    }

    /// Waits for something to do, and takes all changes that wait behind the first.
    fn turn(&mut self, pending: &mut Option<Ask>, until: Instant) -> Turn {
        let first = match pending.take() {
            Some(ask) => ask,
            None => match self
                .inbox
                .recv_timeout(until.saturating_duration_since(Instant::now()))
            {
                Ok(ask) => ask,
                Err(RecvTimeoutError::Timeout) => return Turn::Idle,
                Err(RecvTimeoutError::Disconnected) => return Turn::Close(None),
            },
        };
        let mut octets = 0;
        let mut batch = Vec::new();
        let mut next = Some(first);
        while let Some(ask) = next {
            match ask {
                Ask::Change(request) => {
                    octets += request.octets();
                    batch.push(request);
                }
                Ask::Tidy(reply) if batch.is_empty() => return Turn::Tidy(reply),
                Ask::Close(reply) if batch.is_empty() => return Turn::Close(Some(reply)),
                ask => {
                    *pending = Some(ask);
                    break;
                }
            }
            if batch.len() >= MAX_BATCH || octets >= MAX_BATCH_OCTETS {
                break;
            }
            next = self.inbox.try_recv().ok();
        }
        Turn::Commit(batch)
    }

    /// Makes a batch durable and answers all in it.
    fn commit(&mut self, batch: Vec<Request>) -> Result<(), Failure> {
        match self.write(&batch) {
            Ok(results) => {
                self.announce(batch, results);
                Ok(())
            }
            Err(Failure::Passing(error)) => self.commit_without_mail(batch, &error),
            Err(Failure::Fatal(why)) => {
                for request in batch {
                    request.answer(Err(SpoolError::Broken(why.clone())));
                }
                Err(Failure::Fatal(why))
            }
        }
    }

    /// There is no room for the batch. New mail is refused; what delivery and the operator want to
    /// record is small, and after a checkpoint the log is written over from its beginning, which
    /// needs no room. Outcomes that find none even then wait for it: they must not be lost.
    fn commit_without_mail(&mut self, batch: Vec<Request>, error: &SpoolError) -> Result<(), Failure> {
        let (mail, others): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .partition(|it| matches!(it.change, Change::Accept(_)));
        for request in mail {
            request.answer(Err(error.clone()));
        }
        if others.is_empty() {
            return Ok(());
        }
        match self.checkpoint("PASSIVE") {
            Ok(_) | Err(Failure::Passing(_)) => {}
            Err(fatal) => {
                return self.give_up(others, fatal);
            }
        }
        match self.write(&others) {
            Ok(results) => {
                self.announce(others, results);
                Ok(())
            }
            Err(Failure::Passing(error)) => {
                for request in others {
                    match request.change {
                        Change::Settle { .. } | Change::GiveUp { .. } => self.stalled.push(request),
                        _ => request.answer(Err(error.clone())),
                    }
                }
                Ok(())
            }
            Err(fatal) => self.give_up(others, fatal),
        }
    }

    fn give_up(&self, batch: Vec<Request>, failure: Failure) -> Result<(), Failure> {
        if let Failure::Fatal(why) = &failure {
            for request in batch {
                request.answer(Err(SpoolError::Broken(why.clone())));
            }
        }
        Err(failure)
    }

    /// One transaction. When this returns, it is on the disk, or nothing of it is.
    fn write(&mut self, batch: &[Request]) -> Result<Vec<Result<Effect, SpoolError>>, Failure> {
        let started = Instant::now();
        let has_file =
            |it: &Request| matches!(&it.change, Change::Accept(it) if matches!(it.content, Content::File(_)));
        if batch.iter().any(has_file) {
            // The files themselves are synced; their names live in the directory.
            sync_directory(&self.content_directory, &self.meters)?;
            crash_point!("name-synced");
        }
        // To the millisecond, as it is stored.
        let terms = Terms {
            now: now(),
            keep_sent: !self.keep_sent.is_zero(),
            next_id: &self.next_id,
        };
        let tx = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut results = Vec::with_capacity(batch.len());
        for request in batch {
            results.push(store::apply(&tx, &request.change, terms)?);
        }
        if results.iter().any(Result::is_ok) {
            crash_around_commit!(batch, "uncommitted");
            commit(tx, &self.meters)?;
            crash_around_commit!(batch, "committed");
            self.meters.committed.inc_by(batch.len() as u64);
            self.meters
                .commit_duration
                .observe(started.elapsed().as_secs_f64());
        }
        Ok(results)
    }

    /// Tells everyone what is on the disk now.
    fn announce(&self, batch: Vec<Request>, results: Vec<Result<Effect, SpoolError>>) {
        let moves: Vec<Move> = results
            .iter()
            .flatten()
            .flat_map(|it| it.moves.iter().copied())
            .collect();
        self.space.enter(&moves);
        for (request, result) in batch.into_iter().zip(results) {
            match result {
                Ok(effect) => {
                    if let Some(name) = effect.unneeded {
                        self.sweeper
                            .remove(self.directory.join(super::CONTENT).join(name));
                    }
                    match request.change {
                        Change::Accept(acceptance) => {
                            let joined = effect.id != acceptance.id;
                            match acceptance.content {
                                Content::File(file) if !joined => file.keep(),
                                _ => {}
                            }
                            if joined {
                                self.meters.merged.inc();
                            }
                            // The ledger has it; what was set aside for it is free.
                            drop(acceptance.reservation);
                        }
                        Change::BeginAttempt { id, .. } if !effect.arrivals.is_empty() => {
                            let others: Vec<QueueId> = effect.arrivals.iter().map(|it| it.id).collect();
                            self.meters.recipient_groups.inc_by(others.len() as u64 + 1);
                            event::split(&id, &others);
                        }
                        _ => {}
                    }
                    let _ = request.reply.send(Ok(Done {
                        id: effect.id,
                        stored: effect.stored,
                    }));
                    for arrival in effect.arrivals {
                        // Nobody listens where nothing is delivered.
                        let _ = self.arrivals.send(arrival);
                    }
                }
                Err(error) => request.answer(Err(error)),
            }
        }
    }

    /// What has to be done from time to time, busy or not.
    fn tick(&mut self) -> Result<(), Failure> {
        match free_bytes(&self.directory) {
            Ok(free) => self.space.measured(free),
            Err(error) => event::spool_not_measured(&self.directory, &error),
        }
        if !self.stalled.is_empty() {
            let stalled = std::mem::take(&mut self.stalled);
            self.commit(stalled)?;
        }
        self.expire()?;
        Ok(())
    }

    fn measure_age(&self) -> Result<(), Failure> {
        let age = oldest(&self.connection)?.map_or(0, |it| Timestamp::now().duration_since(it).as_secs());
        self.meters.oldest_age.set(age.max(0));
        Ok(())
    }

    /// Removes records that have been kept for long enough: a bounded number. Returns how many.
    fn expire(&mut self) -> Result<u64, Failure> {
        let now = now();
        let keep_sent = self.keep_sent;
        let keep_failed = self.keep_failed;
        let sent = self.space.totals().0.sent;
        // Also an endless stream of mail leaves a bounded history.
        let surplus = sent.saturating_sub(self.max_sent).min(MAX_EXPIRED);
        let before = |keep: Duration| now.checked_sub(keep).unwrap_or(Timestamp::MIN);

        let tx = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Deferred)?;
        let mut removed = store::expire(&tx, State::Sent, before(keep_sent), MAX_EXPIRED)?;
        if surplus > removed.len() as u64 {
            let rest = surplus - removed.len() as u64;
            removed.extend(store::expire(&tx, State::Sent, Timestamp::MAX, rest)?);
        }
        let failed = store::expire(&tx, State::Failed, before(keep_failed), MAX_EXPIRED)?;
        if removed.is_empty() && failed.is_empty() {
            return Ok(0);
        }
        crash_point!("history-uncommitted");
        commit(tx, &self.meters)?;
        crash_point!("history-committed");
        for (id, _) in &failed {
            event::failed_message_removed(id, keep_failed);
        }
        removed.extend(failed);
        let moves: Vec<Move> = removed
            .iter()
            .flat_map(|(_, effect)| effect.moves.iter().copied())
            .collect();
        self.space.enter(&moves);
        for name in removed.iter().filter_map(|(_, effect)| effect.unneeded.as_ref()) {
            self.sweeper
                .remove(self.directory.join(super::CONTENT).join(name));
        }
        Ok(removed.len() as u64)
    }

    /// Nobody wants anything: give back what a drained queue no longer needs, a little at a time.
    /// Returns whether there is more.
    fn rest(&mut self) -> Result<bool, Failure> {
        if self.vacuum_step()? > 0 {
            self.checkpoint_if_long()?;
            return Ok(true);
        }
        let log = self.directory.join(format!("{}-wal", super::DATABASE));
        if std::fs::metadata(log).is_ok_and(|it| it.len() > IDLE_LOG_OCTETS) {
            self.checkpoint("TRUNCATE")?;
        }
        Ok(false)
    }

    /// Gives free pages back to the file system: a bounded number. Returns how many.
    fn vacuum_step(&mut self) -> Result<u64, Failure> {
        let free: u64 = self
            .connection
            .query_row("PRAGMA freelist_count", [], |row| store::count(row, 0))?;
        let pages = free.saturating_sub(KEPT_FREE_PAGES).min(VACUUM_STEP);
        if pages == 0 {
            return Ok(0);
        }
        let mut statement = self
            .connection
            .prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
        // Each step frees one page; a statement that is not stepped to its end frees almost none.
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
        self.meters.syncs.inc();
        Ok(pages)
    }

    fn tidy(&mut self) -> Result<Tidied, Failure> {
        self.tick()?;
        let mut tidied = Tidied::default();
        loop {
            let removed = self.expire()?;
            tidied.removed += removed;
            if removed == 0 {
                break;
            }
        }
        loop {
            let pages = self.vacuum_step()?;
            tidied.pages += pages;
            if pages == 0 {
                break;
            }
        }
        self.checkpoint("TRUNCATE")?;
        self.sweeper.finish();
        Ok(tidied)
    }

    /// Carries the log over into the database when it has become long. Readers that are in its way
    /// only put it off.
    fn checkpoint_if_long(&mut self) -> Result<(), Failure> {
        if self.checkpoint("NOOP")? < CHECKPOINT_PAGES {
            return Ok(());
        }
        self.checkpoint("PASSIVE")?;
        Ok(())
    }

    /// Returns how many pages of the log are not yet in the database.
    fn checkpoint(&self, mode: &str) -> Result<i64, Failure> {
        // TRUNCATE would wait for readers, and everybody for it. It can be had the next time.
        self.connection.busy_timeout(Duration::ZERO)?;
        let result = self
            .connection
            .query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
                Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
            });
        self.connection.busy_timeout(store::BUSY_TIMEOUT)?;
        let (log, done) = result?;
        if mode != "NOOP" {
            // The log before, the database after.
            self.meters.syncs.inc_by(2);
        }
        Ok(log - done)
    }

    /// After a failed commit or fsync: answer all, also those who come, until nobody is left.
    fn refuse_everything(self, why: String, pending: Option<Ask>) {
        // What is not known to be on the disk must not be carried over into the database.
        let _ = self
            .connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        event::spool_broken(&why);
        let error = SpoolError::Broken(why.clone());
        self.broken.0.send_replace(Some(why));
        for request in self.stalled {
            request.answer(Err(error.clone()));
        }
        for ask in pending.into_iter().chain(self.inbox) {
            match ask {
                Ask::Change(request) => request.answer(Err(error.clone())),
                Ask::Tidy(reply) => {
                    let _ = reply.send(Err(error.clone()));
                }
                Ask::Close(reply) => {
                    let _ = reply.send(());
                    break;
                }
            }
        }
    }

    fn close(mut self, reply: Option<oneshot::Sender<()>>) {
        if !self.stalled.is_empty() {
            let stalled = std::mem::take(&mut self.stalled);
            let _ = self.commit(stalled);
        }
        // The last connection to close carries the log over and removes it.
        if let Err((_, error)) = self.connection.close() {
            event::spool_not_closed(&self.directory, &describe(&error));
        }
        self.sweeper.finish();
        // Said, not left to the end of the descriptor: a process that was forked a moment ago and has not
        // yet become another program holds a copy of it, and with it the lock.
        let _ = rustix::fs::flock(&self.lock, rustix::fs::FlockOperation::Unlock);
        if let Some(reply) = reply {
            let _ = reply.send(());
        }
    }
}

impl Request {
    fn octets(&self) -> usize {
        match &self.change {
            Change::Accept(acceptance) => match &acceptance.content {
                Content::Octets(octets) => octets.len(),
                Content::File(_) => 0,
            },
            _ => 0,
        }
    }

    /// Answers; who has gone meanwhile does not mind. A content file that was not kept goes too.
    fn answer(self, answer: Result<Done, SpoolError>) {
        let _ = self.reply.send(answer);
    }
}

/// The time to the millisecond, as it is stored.
pub(super) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}

/// The crash points before and after the commit of each kind of change: `accept-uncommitted` and so on.
macro_rules! crash_around_commit {
    ($batch:expr, $moment:literal) => {
        #[cfg(debug_assertions)]
        for request in $batch {
            crate::crash::reached(&format!("{}-{}", request.change.kind(), $moment));
        }
    };
}
use crash_around_commit;

fn commit(tx: rusqlite::Transaction<'_>, meters: &Meters) -> Result<(), Failure> {
    tx.commit()?;
    meters.syncs.inc();
    Ok(())
}

fn sync_directory(directory: &File, meters: &Meters) -> Result<(), Failure> {
    meters.syncs.inc();
    directory
        .sync_all()
        .map_err(|error| Failure::Fatal(format!("content directory: {error}")))
}
