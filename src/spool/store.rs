//! The database: its tables, and every change that can be made to a message. Blocking; only the
//! writer's thread uses it.

use std::sync::atomic::AtomicI64;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::content::{self, Content};
use super::group;
use super::merge::{self, Merge};
use super::space::{Move, Reservation};
use super::{Action, Arrival, QueueId, Settlement, SpoolError, State, Submission};

/// The tables as of version 1. Content stands apart from its message, so that a retry, which
/// changes the message, never rewrites it. `AUTOINCREMENT`: an id names a file and stands in logs;
/// it is never used again.
pub(super) const SCHEMA: &str = "
CREATE TABLE message (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    state      TEXT    NOT NULL,
    mailbox    TEXT    NOT NULL,
    sender     TEXT    NOT NULL,  -- the envelope sender; <> for none
    size       INTEGER NOT NULL,  -- octets of content
    file       INTEGER NOT NULL,  -- 1: content is in content/<id>.eml, 0: in the table content
    digest     BLOB    NOT NULL,  -- SHA-256 of the content
    accepted   INTEGER NOT NULL,  -- all times in milliseconds since 1970
    attempts   INTEGER NOT NULL,
    due        INTEGER,           -- null: no attempt by itself
    changed    INTEGER NOT NULL,
    reason     TEXT,
    request_id TEXT,
    submission TEXT    NOT NULL   -- JSON
) STRICT;
CREATE INDEX message_by_state ON message (state, changed);
CREATE TABLE content (
    id     INTEGER PRIMARY KEY,
    octets BLOB NOT NULL
) STRICT;
";

/// What makes version 2 of version 1: the draft by which a large message is being sent.
pub(super) const SCHEMA_2: &str = "ALTER TABLE message ADD COLUMN draft TEXT;";

/// What makes version 3 of version 2: recipient groups, which share the content of the message that
/// they are groups of, and what a transaction must have in common with a message to be joined to it.
pub(super) const SCHEMA_3: &str = "
ALTER TABLE message ADD COLUMN group_of INTEGER;  -- null: a message as it was accepted
ALTER TABLE message ADD COLUMN merge BLOB;        -- null: nothing is joined to it
CREATE INDEX message_by_group ON message (group_of) WHERE group_of IS NOT NULL;
CREATE UNIQUE INDEX message_by_merge ON message (merge) WHERE merge IS NOT NULL;
";

/// How long a change waits for someone else's, such as an administrator's with the sqlite3 shell.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest reason kept, in octets.
const MAX_REASON: usize = 2000;

/// A message that is to become durable.
pub(super) struct Acceptance {
    pub id: QueueId,
    pub mailbox: String,
    pub sender: String,
    pub submission: String,
    pub size: u64,
    pub digest: Vec<u8>,
    pub content: Content,
    pub reservation: Reservation,
    /// What it may be joined to, and for how long others may be joined to it.
    pub merge: Option<Merge>,
}

/// What the writer is asked to do to one message.
pub(super) enum Change {
    Accept(Box<Acceptance>),
    BeginAttempt {
        id: QueueId,
        /// With more than these it is split first.
        max_recipients: usize,
    },
    /// The attempt under way has made this draft.
    NoteDraft {
        id: QueueId,
        draft: String,
    },
    Settle {
        id: QueueId,
        settlement: Settlement,
        request_id: Option<String>,
    },
    /// What a look into Sent Items has found out about a message whose outcome was unknown.
    SettleUnknown {
        id: QueueId,
        settlement: Settlement,
    },
    /// It is given up without an attempt.
    GiveUp {
        id: QueueId,
        reason: String,
    },
    Act {
        id: QueueId,
        action: Action,
        reason: String,
    },
    /// The content is not what was stored: no attempt before the operator has looked at it.
    SetDamaged {
        id: QueueId,
        why: String,
    },
}

#[cfg(debug_assertions)]
impl Change {
    /// What its crash points are called by.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Change::Accept(_) => "accept",
            Change::BeginAttempt { .. } => "attempt",
            Change::NoteDraft { .. } => "draft",
            Change::Settle {
                settlement: Settlement::Failed { .. },
                ..
            } => "failure",
            Change::Settle { .. } | Change::SettleUnknown { .. } => "outcome",
            Change::GiveUp { .. } => "given-up",
            Change::Act { .. } => "action",
            Change::SetDamaged { .. } => "damaged",
        }
    }
}

/// What a change comes to once it is committed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Effect {
    /// The message that was changed. What is accepted may be joined to another.
    pub id: QueueId,
    pub moves: Vec<Move>,
    pub arrivals: Vec<Arrival>,
    /// The content file that nobody needs any more.
    pub unneeded: Option<String>,
    /// What the message is stored with now, where that may not be what it was read with.
    pub stored: Option<Box<Stored>>,
}

/// What a message is stored with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub submission: Submission,
    pub group_of: Option<QueueId>,
}

/// What changes go by.
#[derive(Clone, Copy)]
pub(super) struct Terms<'a> {
    pub now: Timestamp,
    /// Whether the records of sent messages are kept.
    pub keep_sent: bool,
    /// The next number to be given.
    pub next_id: &'a AtomicI64,
}

/// Carries out a change inside a transaction. The inner error is the answer to whoever asked, and
/// changes nothing; the outer one is the database's, and the transaction must be given up.
pub(super) fn apply(
    tx: &Transaction<'_>,
    change: &Change,
    terms: Terms<'_>,
) -> rusqlite::Result<Result<Effect, SpoolError>> {
    let Terms { now, keep_sent, .. } = terms;
    match change {
        Change::Accept(acceptance) => accept(tx, acceptance, now).map(Ok),
        Change::BeginAttempt { id, max_recipients } => begin_attempt(tx, *id, *max_recipients, terms),
        Change::NoteDraft { id, draft } => note_draft(tx, *id, draft),
        Change::Settle {
            id,
            settlement,
            request_id,
        } => settle(tx, *id, settlement, request_id.as_deref(), now, keep_sent),
        Change::SettleUnknown { id, settlement } => settle_unknown(tx, *id, settlement, now, keep_sent),
        Change::GiveUp { id, reason } => give_up(tx, *id, reason, now),
        Change::Act { id, action, reason } => act(tx, *id, *action, reason, now),
        Change::SetDamaged { id, why } => set_damaged(tx, *id, why, now),
    }
}

fn accept(tx: &Transaction<'_>, it: &Acceptance, now: Timestamp) -> rusqlite::Result<Effect> {
    if let Some(merge) = &it.merge
        && let Some(id) = merge::join(tx, merge, &it.submission, now)?
    {
        return Ok(Effect {
            id,
            moves: Vec::new(),
            arrivals: Vec::new(),
            unneeded: None,
            stored: None,
        });
    }
    let file = matches!(it.content, Content::File(_));
    let time = now.as_millisecond();
    // Whole milliseconds, and the window is at most half a minute.
    let due = match &it.merge {
        Some(merge) => now.checked_add(merge.window).unwrap_or(now),
        None => now,
    };
    tx.prepare_cached(
        "INSERT INTO message (id, state, mailbox, sender, size, file, digest, accepted, attempts, due, changed, submission, merge)
         VALUES (?1, 'queued', ?2, ?3, ?4, ?5, ?6, ?7, 0, ?8, ?7, ?9, ?10)",
    )?
    .execute(params![
        it.id.0,
        it.mailbox,
        it.sender,
        it.size.cast_signed(),
        file,
        it.digest,
        time,
        not_before(due),
        it.submission,
        it.merge.as_ref().map(|it| &it.key)
    ])?;
    if let Content::Octets(octets) = &it.content {
        tx.prepare_cached("INSERT INTO content (id, octets) VALUES (?1, ?2)")?
            .execute(params![it.id.0, octets])?;
    }
    Ok(Effect {
        id: it.id,
        moves: vec![Move {
            to: Some(State::Queued),
            came: it.size,
            ..Move::default()
        }],
        arrivals: vec![Arrival {
            id: it.id,
            mailbox: it.mailbox.clone(),
            size: it.size,
            accepted: now,
            attempts: 0,
            due,
            unknown: false,
        }],
        unneeded: None,
        stored: None,
    })
}

fn begin_attempt(
    tx: &Transaction<'_>,
    id: QueueId,
    max_recipients: usize,
    terms: Terms<'_>,
) -> rusqlite::Result<Result<Effect, SpoolError>> {
    let Some(row) = find(tx, id)?.filter(Row::is_waiting) else {
        return Ok(Err(SpoolError::NotFound(id)));
    };
    let (stored, groups) = match group::split(tx, &row, max_recipients, terms)? {
        Some(split) => (Some(split.first), split.others),
        // What reads it and what joins to it are not in one transaction.
        None => (merge::joined(tx, id)?, Vec::new()),
    };
    // Also nothing is joined to it any more.
    tx.prepare_cached(
        "UPDATE message SET state = 'sending', attempts = attempts + 1, due = NULL, changed = ?2, merge = NULL
         WHERE id = ?1",
    )?
    .execute(params![id.0, terms.now.as_millisecond()])?;
    let mut effect = row.moved(Some(State::Sending));
    effect.moves.extend(groups.iter().map(|_| Move {
        to: Some(State::Queued),
        ..Move::default()
    }));
    effect.arrivals = groups;
    effect.stored = stored.map(Box::new);
    Ok(Ok(effect))
}

fn give_up(
    tx: &Transaction<'_>,
    id: QueueId,
    reason: &str,
    now: Timestamp,
) -> rusqlite::Result<Result<Effect, SpoolError>> {
    let Some(row) = find(tx, id)?.filter(Row::is_waiting) else {
        return Ok(Err(SpoolError::NotFound(id)));
    };
    set_state(tx, &row, State::Failed, None, reason, now)?;
    Ok(Ok(row.moved(Some(State::Failed))))
}

fn note_draft(
    tx: &Transaction<'_>,
    id: QueueId,
    draft: &str,
) -> rusqlite::Result<Result<Effect, SpoolError>> {
    let row = match find(tx, id)? {
        Some(row) if row.state == State::Sending => row,
        _ => return Ok(Err(SpoolError::NotFound(id))),
    };
    tx.prepare_cached("UPDATE message SET draft = ?2 WHERE id = ?1")?
        .execute(params![id.0, draft])?;
    Ok(Ok(row.moved(Some(State::Sending))))
}

fn settle(
    tx: &Transaction<'_>,
    id: QueueId,
    settlement: &Settlement,
    request_id: Option<&str>,
    now: Timestamp,
    keep_sent: bool,
) -> rusqlite::Result<Result<Effect, SpoolError>> {
    let row = match find(tx, id)? {
        Some(row) if row.state == State::Sending => row,
        _ => return Ok(Err(SpoolError::NotFound(id))),
    };
    let (state, due, reason) = match settlement {
        Settlement::Sent if !keep_sent => return remove(tx, &row).map(Ok),
        Settlement::Sent => (State::Sent, None, None),
        Settlement::Deferred { due, reason } => (State::Queued, Some(*due), Some(reason)),
        Settlement::Held { due, reason } => (State::Held, Some(*due), Some(reason)),
        Settlement::Failed { reason } => (State::Failed, None, Some(reason)),
        Settlement::Unknown { due, reason } => (State::Unknown, *due, Some(reason)),
    };
    tx.prepare_cached(
        "UPDATE message SET state = ?2, due = ?3, reason = ?4, request_id = ?5, changed = ?6 WHERE id = ?1",
    )?
    .execute(params![
        id.0,
        state.as_str(),
        due.map(not_before),
        reason.map(|it| shortened(it)),
        request_id.map(shortened),
        now.as_millisecond()
    ])?;
    let mut effect = row.moved(Some(state));
    if state == State::Sent {
        remove_content(tx, &row, &mut effect)?;
    }
    Ok(Ok(effect))
}

/// Only while it is still unknown: the operator may have decided meanwhile. As long as it stays so its
/// state has not changed, and `changed` tells since when nobody knows.
fn settle_unknown(
    tx: &Transaction<'_>,
    id: QueueId,
    settlement: &Settlement,
    now: Timestamp,
    keep_sent: bool,
) -> rusqlite::Result<Result<Effect, SpoolError>> {
    let row = match find(tx, id)? {
        Some(row) if row.state == State::Unknown && row.due.is_some() => row,
        _ => return Ok(Err(SpoolError::NotFound(id))),
    };
    let (state, due, reason) = match settlement {
        Settlement::Sent => {
            if !keep_sent {
                return remove(tx, &row).map(Ok);
            }
            tx.prepare_cached(
                "UPDATE message SET state = 'sent', due = NULL, reason = NULL, changed = ?2 WHERE id = ?1",
            )?
            .execute(params![id.0, now.as_millisecond()])?;
            let mut effect = row.moved(Some(State::Sent));
            remove_content(tx, &row, &mut effect)?;
            return Ok(Ok(effect));
        }
        Settlement::Unknown { due, reason } => {
            tx.prepare_cached("UPDATE message SET due = ?2, reason = ?3 WHERE id = ?1")?
                .execute(params![id.0, due.map(not_before), shortened(reason)])?;
            return Ok(Ok(row.moved(Some(State::Unknown))));
        }
        Settlement::Deferred { due, reason } => (State::Queued, Some(*due), reason),
        Settlement::Held { due, reason } => (State::Held, Some(*due), reason),
        Settlement::Failed { reason } => (State::Failed, None, reason),
    };
    set_state(tx, &row, state, due, reason, now)?;
    Ok(Ok(row.moved(Some(state))))
}

fn act(
    tx: &Transaction<'_>,
    id: QueueId,
    action: Action,
    reason: &str,
    now: Timestamp,
) -> rusqlite::Result<Result<Effect, SpoolError>> {
    let Some(row) = find(tx, id)? else {
        return Ok(Err(SpoolError::NotFound(id)));
    };
    if !action.applies_to(row.state) {
        return Ok(Err(SpoolError::Refused(id, row.state)));
    }
    let (state, due) = match action {
        Action::Delete => return remove(tx, &row).map(Ok),
        Action::Retry | Action::Release => (State::Queued, Some(now)),
        Action::Hold => (State::Held, None),
    };
    set_state(tx, &row, state, due, reason, now)?;
    let mut effect = row.moved(Some(state));
    effect.arrivals.extend(due.map(|due| Arrival {
        unknown: false,
        ..row.arrival(due)
    }));
    Ok(Ok(effect))
}

fn set_damaged(
    tx: &Transaction<'_>,
    id: QueueId,
    why: &str,
    now: Timestamp,
) -> rusqlite::Result<Result<Effect, SpoolError>> {
    let row = match find(tx, id)? {
        Some(row) if matches!(row.state, State::Queued | State::Held) => row,
        _ => return Ok(Err(SpoolError::NotFound(id))),
    };
    set_state(tx, &row, State::Held, None, why, now)?;
    Ok(Ok(row.moved(Some(State::Held))))
}

/// Changes the state of a message otherwise than by an attempt.
pub(super) fn set_state(
    tx: &Transaction<'_>,
    row: &Row,
    state: State,
    due: Option<Timestamp>,
    reason: &str,
    now: Timestamp,
) -> rusqlite::Result<()> {
    tx.prepare_cached("UPDATE message SET state = ?2, due = ?3, reason = ?4, changed = ?5 WHERE id = ?1")?
        .execute(params![
            row.id.0,
            state.as_str(),
            due.map(not_before),
            shortened(reason),
            now.as_millisecond()
        ])?;
    Ok(())
}

/// Removes the records of messages in this state that last changed before a time, the oldest first.
/// Returns what it removed, at most `limit`.
pub(super) fn expire(
    tx: &Transaction<'_>,
    state: State,
    before: Timestamp,
    limit: u64,
) -> rusqlite::Result<Vec<(QueueId, Effect)>> {
    let ids: Vec<i64> = tx
        .prepare_cached("SELECT id FROM message WHERE state = ?1 AND changed < ?2 ORDER BY changed LIMIT ?3")?
        .query_map(
            params![state.as_str(), before.as_millisecond(), limit.cast_signed()],
            |row| row.get(0),
        )?
        .collect::<Result<_, _>>()?;
    let mut removed = Vec::with_capacity(ids.len());
    for id in ids {
        let id = QueueId(id);
        if let Some(row) = find(tx, id)? {
            removed.push((id, remove(tx, &row)?));
        }
    }
    Ok(removed)
}

/// What a change needs to know of a message.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub id: QueueId,
    pub state: State,
    pub mailbox: String,
    pub size: u64,
    pub file: bool,
    pub accepted: Timestamp,
    pub attempts: u32,
    pub due: Option<Timestamp>,
    pub group_of: Option<QueueId>,
}

/// The columns that [`Row::read`] takes, in its order.
pub(super) const ROW_COLUMNS: &str = "id, state, mailbox, size, file, accepted, attempts, due, group_of";

impl Row {
    /// Reads a row of [`ROW_COLUMNS`].
    pub(super) fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
        let state: String = row.get(1)?;
        Ok(Row {
            id: QueueId(row.get(0)?),
            state: state.parse().map_err(|error| unreadable(1, error))?,
            mailbox: row.get(2)?,
            size: count(row, 3)?,
            file: row.get(4)?,
            accepted: timestamp(5, row.get(5)?)?,
            attempts: row.get(6)?,
            due: row
                .get::<_, Option<i64>>(7)?
                .map(|it| timestamp(7, it))
                .transpose()?,
            group_of: row.get::<_, Option<i64>>(8)?.map(QueueId),
        })
    }

    /// The message under whose number the content is kept: its groups share it.
    pub(super) fn content_id(&self) -> QueueId {
        self.group_of.unwrap_or(self.id)
    }

    /// Whether an attempt comes by itself.
    pub(super) fn is_waiting(&self) -> bool {
        self.state == State::Queued || self.state == State::Held && self.due.is_some()
    }

    pub(super) fn arrival(&self, due: Timestamp) -> Arrival {
        Arrival {
            id: self.id,
            mailbox: self.mailbox.clone(),
            size: self.size,
            accepted: self.accepted,
            attempts: self.attempts,
            due,
            unknown: self.state == State::Unknown,
        }
    }

    /// Its content stays where it is.
    fn moved(&self, to: Option<State>) -> Effect {
        Effect {
            id: self.id,
            moves: vec![Move {
                from: Some(self.state),
                to,
                ..Move::default()
            }],
            arrivals: Vec::new(),
            unneeded: None,
            stored: None,
        }
    }
}

pub(super) fn timestamp(column: usize, milliseconds: i64) -> rusqlite::Result<Timestamp> {
    Timestamp::from_millisecond(milliseconds).map_err(|error| unreadable(column, error))
}

/// A number that is never negative.
pub(super) fn count(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<u64> {
    u64::try_from(row.get::<_, i64>(column)?).map_err(|error| unreadable(column, error))
}

/// A value that we cannot have written.
pub(super) fn unreadable(
    column: usize,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Null, Box::new(error))
}

fn find(tx: &Transaction<'_>, id: QueueId) -> rusqlite::Result<Option<Row>> {
    tx.prepare_cached(concat!(
        "SELECT id, state, mailbox, size, file, accepted, attempts, due, group_of",
        " FROM message WHERE id = ?1"
    ))?
    .query_row([id.0], Row::read)
    .optional()
}

fn remove(tx: &Transaction<'_>, row: &Row) -> rusqlite::Result<Effect> {
    tx.prepare_cached("DELETE FROM message WHERE id = ?1")?
        .execute([row.id.0])?;
    let mut effect = row.moved(None);
    remove_content(tx, row, &mut effect)?;
    Ok(effect)
}

/// Removes the content of a message that does not need it any more, unless another group of the same
/// message does. The file, where there is one, goes after the commit: an orphan can be swept, but a
/// message without its content cannot be sent.
fn remove_content(tx: &Transaction<'_>, row: &Row, effect: &mut Effect) -> rusqlite::Result<()> {
    if !row.state.has_content() || group::shares_content(tx, row)? {
        return Ok(());
    }
    if row.file {
        effect.unneeded = Some(content::file_name(row.content_id()));
    } else {
        tx.prepare_cached("DELETE FROM content WHERE id = ?1")?
            .execute([row.content_id().0])?;
    }
    if let Some(moved) = effect.moves.first_mut() {
        moved.went = row.size;
    }
    Ok(())
}

/// Milliseconds, rounded up: never before.
pub(super) fn not_before(time: Timestamp) -> i64 {
    let milliseconds = time.as_millisecond();
    let exact = Timestamp::from_millisecond(milliseconds).is_ok_and(|it| it >= time);
    if exact { milliseconds } else { milliseconds + 1 }
}

fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_REASON)]
}

/// What the connection that writes is set to, before its first statement.
pub(super) fn configure(connection: &Connection, is_empty: bool) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    if is_empty {
        // Before the first table, or never.
        connection.pragma_update(None, "page_size", 16384)?;
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // NORMAL would sync only at checkpoints, and lose what was acknowledged since.
    connection.pragma_update(None, "synchronous", "FULL")?;
    // The writer checkpoints by itself: SQLite's own attempt, inside COMMIT, hides its errors.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    connection.pragma_update(None, "cache_size", -16384)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}
