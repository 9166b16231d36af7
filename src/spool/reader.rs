//! Reading the queue on connections that cannot write. Blocking.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row};

use super::content;
use super::failure::describe;
use super::store::{count, timestamp, unreadable};
use super::{Entry, Filter, QueueId, SpoolError, State, Statistics, Submission};
use crate::event;

/// The queue as it stands on the disk, read without disturbing the gateway that may own it.
pub struct Reader {
    connection: Connection,
    directory: PathBuf,
}

/// The columns that [`entry`] takes, in its order.
const COLUMNS: &str = "id, state, sender, mailbox, size, accepted, attempts, due, reason, request_id, changed, submission, draft, group_of";

impl Reader {
    /// Opens the queue of this directory to read, whether or not a gateway runs on it.
    ///
    /// # Errors
    /// [`SpoolError::Unusable`] where there is none or it may not be read.
    pub fn open(directory: &Path) -> Result<Reader, SpoolError> {
        let path = directory.join(super::DATABASE);
        let unusable = |why: &dyn std::fmt::Display| {
            SpoolError::Unusable(format!("cannot read the queue {}: {why}", path.display()))
        };
        // SQLite says only "unable to open"; the system says why.
        std::fs::File::open(&path).map_err(|error| unusable(&error))?;
        let connection = Connection::open_with_flags(
            &path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )
        .and_then(|connection| {
            connection.busy_timeout(Duration::from_secs(5))?;
            connection.pragma_update(None, "trusted_schema", false)?;
            connection.pragma_update(None, "cell_size_check", true)?;
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
            Ok(connection)
        })
        .map_err(|error| unusable(&error))?;
        Ok(Reader {
            connection,
            directory: directory.to_owned(),
        })
    }

    /// As [`Spool::list`](super::Spool::list).
    ///
    /// # Errors
    /// [`SpoolError::Failed`] where the database cannot be read.
    pub fn list(&self, filter: &Filter) -> Result<Vec<Entry>, SpoolError> {
        let mut sql = format!("SELECT {COLUMNS} FROM message WHERE id > ?1 AND accepted < ?2");
        if let Some(whole) = filter.group_of {
            sql.push_str(&format!(" AND group_of = {}", whole.0));
        }
        if !filter.states.is_empty() {
            let words: Vec<&str> = filter.states.iter().map(|it| it.as_str()).collect();
            sql.push_str(&format!(" AND state IN ('{}')", words.join("','")));
        }
        sql.push_str(" ORDER BY id");
        let after = filter.after.map_or(i64::MIN, |it| it.0);
        let before = filter.accepted_before.map_or(i64::MAX, Timestamp::as_millisecond);
        let limit = if filter.limit == 0 {
            usize::MAX
        } else {
            filter.limit
        };

        let matcher = Matcher::new(filter);
        let mut entries = Vec::new();
        let mut statement = self.connection.prepare_cached(&sql).map_err(failed)?;
        let mut rows = statement.query([after, before]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            match matcher.matching(row) {
                Ok(Some(entry)) => entries.push(entry),
                Ok(None) => {}
                // Opening sets such rows aside; one that has become so since must not hide the rest.
                Err(error) => event::row_unreadable(row.get(0).unwrap_or_default(), &error),
            }
            if entries.len() == limit {
                break;
            }
        }
        Ok(entries)
    }

    /// As [`Spool::get`](super::Spool::get).
    ///
    /// # Errors
    /// [`SpoolError::NotFound`].
    pub fn get(&self, id: QueueId) -> Result<Entry, SpoolError> {
        self.find(id).map(|found| found.entry)
    }

    /// As [`Spool::content`](super::Spool::content).
    ///
    /// # Errors
    /// [`SpoolError::NotFound`] also where the message is sent and its content gone,
    /// [`SpoolError::Damaged`].
    pub fn content(&self, id: QueueId) -> Result<Bytes, SpoolError> {
        self.message(id).map(|(_, content)| content)
    }

    /// A message with its content, which is checked to be what was accepted.
    pub(super) fn message(&self, id: QueueId) -> Result<(Entry, Bytes), SpoolError> {
        let found = self.find(id)?;
        if !found.entry.state.has_content() {
            return Err(SpoolError::NotFound(id));
        }
        // All groups of a message have its content.
        let content_id = found.entry.group_of.unwrap_or(id);
        let damaged = |why: String| SpoolError::Damaged(id, why);
        let octets = if found.file {
            let path = self
                .directory
                .join(super::CONTENT)
                .join(content::file_name(content_id));
            match content::read(&path, found.entry.size) {
                Ok(octets) => octets,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Err(damaged(format!("{} is missing", path.display())));
                }
                // Too many open files, no memory: that will pass. An unreadable sector will not, but
                // the queue is told so at every attempt.
                Err(error) => return Err(SpoolError::Failed(format!("{}: {error}", path.display()))),
            }
        } else {
            self.connection
                .prepare_cached("SELECT octets FROM content WHERE id = ?1")
                .and_then(|mut it| {
                    it.query_row([content_id.0], |row| row.get::<_, Vec<u8>>(0))
                        .optional()
                })
                .map_err(failed)?
                .ok_or_else(|| damaged("it is missing from the database".to_owned()))?
        };
        if octets.len() as u64 != found.entry.size {
            return Err(damaged(format!(
                "it has {} octets{}, and {} were accepted",
                octets
                    .len()
                    .min(usize::try_from(found.entry.size).unwrap_or(usize::MAX)),
                if octets.len() as u64 > found.entry.size {
                    " and more"
                } else {
                    ""
                },
                found.entry.size
            )));
        }
        if content::digest_of(&octets) != found.digest {
            return Err(damaged(
                "its octets have changed since it was accepted".to_owned(),
            ));
        }
        Ok((found.entry, Bytes::from(octets)))
    }

    /// As [`Spool::namesakes`](super::Spool::namesakes).
    pub(super) fn namesakes(&self, id: QueueId, slack: Duration) -> Result<u64, SpoolError> {
        let entry = self.get(id)?;
        let since = entry.accepted.checked_sub(slack).unwrap_or(Timestamp::MIN);
        self.connection
            .prepare_cached(
                "SELECT count(*) FROM message
                 WHERE state IN ('sent', 'sending', 'unknown') AND changed >= ?1 AND id <> ?2
                   AND mailbox = ?3 AND json_extract(submission, '$.message_id') = ?4
                   AND group_of IS NOT ?5",
            )
            .and_then(|mut it| {
                it.query_row(
                    rusqlite::params![
                        since.as_millisecond(),
                        id.0,
                        entry.submission.route.mailbox,
                        entry.submission.message_id,
                        // A group is not among its own message's namesakes; 0 is no message.
                        entry.group_of.map_or(0, |it| it.0)
                    ],
                    |row| count(row, 0),
                )
            })
            .map_err(failed)
    }

    /// As [`Spool::statistics`](super::Spool::statistics).
    ///
    /// # Errors
    /// [`SpoolError::Failed`] where the database cannot be read.
    pub fn statistics(&self) -> Result<Statistics, SpoolError> {
        let mut statistics = Statistics::default();
        let mut statement = self
            .connection
            .prepare_cached("SELECT state, count(*) FROM message GROUP BY state")
            .map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            if let Ok(state) = row.get::<_, String>(0).map_err(failed)?.parse::<State>() {
                *statistics.messages.of_mut(state) = count(row, 1).map_err(failed)?;
            }
        }
        statistics.bytes = self
            .connection
            .prepare_cached(
                "SELECT coalesce(sum(size), 0) FROM (
                     SELECT max(size) AS size FROM message
                     WHERE state IN ('queued', 'sending', 'held', 'unknown', 'failed')
                     GROUP BY coalesce(group_of, id))",
            )
            .and_then(|mut it| it.query_row([], |row| count(row, 0)))
            .map_err(failed)?;
        statistics.oldest = self.oldest()?;
        statistics.free_bytes = free_bytes(&self.directory).map_err(|error| {
            SpoolError::Failed(format!("free space of {}: {error}", self.directory.display()))
        })?;
        Ok(statistics)
    }

    /// When the oldest message that is not yet sent or failed was accepted.
    pub(super) fn oldest(&self) -> Result<Option<Timestamp>, SpoolError> {
        oldest(&self.connection).map_err(failed)
    }

    fn find(&self, id: QueueId) -> Result<Found, SpoolError> {
        let sql = format!("SELECT {COLUMNS}, file, digest FROM message WHERE id = ?1");
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut it| {
                it.query_row([id.0], |row| {
                    Ok(Found {
                        entry: entry(row)?,
                        file: row.get(14)?,
                        digest: row.get(15)?,
                    })
                })
                .optional()
            })
            .map_err(failed)?
            .ok_or(SpoolError::NotFound(id))
    }
}

struct Found {
    entry: Entry,
    file: bool,
    digest: Vec<u8>,
}

/// The part of a filter that the database does not know: its `lower` knows only ASCII.
struct Matcher {
    sender: Option<String>,
    mailbox: Option<String>,
    recipient: Option<String>,
}

impl Matcher {
    fn new(filter: &Filter) -> Matcher {
        let lower = |it: &Option<String>| it.as_ref().map(|it| it.to_lowercase());
        Matcher {
            sender: lower(&filter.sender),
            mailbox: lower(&filter.mailbox),
            recipient: lower(&filter.recipient),
        }
    }

    fn matching(&self, row: &Row<'_>) -> rusqlite::Result<Option<Entry>> {
        let differs = |wanted: &Option<String>, column: usize| -> rusqlite::Result<bool> {
            Ok(match wanted {
                Some(wanted) => row.get::<_, String>(column)?.to_lowercase() != *wanted,
                None => false,
            })
        };
        if differs(&self.sender, 2)? || differs(&self.mailbox, 3)? {
            return Ok(None);
        }
        let entry = entry(row)?;
        let wanted = self.recipient.as_ref().is_none_or(|wanted| {
            let recipients = &entry.submission.envelope.recipients;
            recipients
                .iter()
                .any(|it| it.as_str().to_lowercase().contains(wanted))
        });
        Ok(wanted.then_some(entry))
    }
}

/// Reads a row of [`COLUMNS`].
fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let state: String = row.get(1)?;
    Ok(Entry {
        id: QueueId(row.get(0)?),
        state: state.parse().map_err(|error| unreadable(1, error))?,
        size: count(row, 4)?,
        accepted: timestamp(5, row.get(5)?)?,
        attempts: row.get(6)?,
        due: row
            .get::<_, Option<i64>>(7)?
            .map(|it| timestamp(7, it))
            .transpose()?,
        reason: row.get(8)?,
        request_id: row.get(9)?,
        changed: timestamp(10, row.get(10)?)?,
        submission: submission(11, row)?,
        draft: row.get(12)?,
        group_of: row.get::<_, Option<i64>>(13)?.map(QueueId),
    })
}

/// Reads the JSON of a submission.
pub(super) fn submission(column: usize, row: &Row<'_>) -> rusqlite::Result<Submission> {
    let text = row
        .get_ref(column)?
        .as_str()
        .map_err(|error| unreadable(column, error))?;
    serde_json::from_str(text).map_err(|error| unreadable(column, error))
}

/// When the oldest message that is not yet sent or failed was accepted.
pub(super) fn oldest(connection: &Connection) -> rusqlite::Result<Option<Timestamp>> {
    // Ids are given in the order of arrival, so the least id of each state is its oldest.
    let mut oldest: Option<i64> = None;
    for state in [State::Queued, State::Sending, State::Held, State::Unknown] {
        let accepted: Option<i64> = connection
            .prepare_cached("SELECT min(id), accepted FROM message WHERE state = ?1")?
            .query_row([state.as_str()], |row| row.get(1))?;
        oldest = oldest.into_iter().chain(accepted).min();
    }
    // Groups are as old as their message, and have later numbers.
    let group: Option<i64> = connection
        .prepare_cached(
            "SELECT min(accepted) FROM message
             WHERE group_of IS NOT NULL AND state IN ('queued', 'sending', 'held', 'unknown')",
        )?
        .query_row([], |row| row.get(0))?;
    oldest = oldest.into_iter().chain(group).min();
    oldest.map(|it| timestamp(1, it)).transpose()
}

/// Octets that this process may still write on the file system.
pub(super) fn free_bytes(directory: &Path) -> std::io::Result<u64> {
    let statistics = rustix::fs::statvfs(directory)?;
    Ok(statistics.f_bavail.saturating_mul(statistics.f_frsize))
}

fn failed(error: rusqlite::Error) -> SpoolError {
    SpoolError::Failed(format!("queue.db: {}", describe(&error)))
}
