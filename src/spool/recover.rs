//! What a crash, a full disk or somebody's hands have left in the queue, put in order when it is
//! opened. Nothing is dropped in silence and nothing found here keeps the gateway from starting.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, TransactionBehavior};

use super::content;
use super::open::{not_read, sync, unusable};
use super::reader::submission;
use super::store::{self, ROW_COLUMNS, Row};
use super::writer::now;
use super::{Arrival, CONTENT, Counts, QueueId, Recovery, SET_ASIDE, SpoolError, State};
use crate::config::UnknownPolicy;
use crate::event;

/// The queue in order, and what delivery begins with.
pub(super) struct Recovered {
    pub recovery: Recovery,
    pub arrivals: Vec<Arrival>,
    pub counts: Counts,
    pub bytes: u64,
    pub next_id: i64,
}

/// Why a row or a file is not as it should be.
enum Finding {
    /// A row that we cannot have written like this.
    Unreadable {
        rowid: i64,
        /// The number under which its content is kept.
        content: i64,
        why: String,
    },
    /// A message whose content file is not there or has another length.
    Damaged { row: Row, why: String },
}

/// Puts the queue in order.
pub(super) fn recover(
    connection: &mut Connection,
    directory: &Path,
    is_new: bool,
    interrupted: UnknownPolicy,
) -> Result<Recovered, SpoolError> {
    let broken = |error: rusqlite::Error| not_read(directory, &error);

    let (mut rows, mut findings, policies) = read_rows(connection).map_err(broken)?;
    let mut recovery = Recovery::default();
    let files = look_at_files(directory, is_new, &rows, &findings, &mut recovery)?;
    rows.retain_mut(|row| {
        let Some(why) = row.file.then(|| files.trouble(row)).flatten() else {
            return true;
        };
        findings.push(Finding::Damaged {
            row: row.clone(),
            why,
        });
        false
    });

    let now = now();
    for row in &mut rows {
        if row.state == State::Sending {
            recovery.interrupted += 1;
        }
    }
    let damaged = findings.iter().filter_map(|it| match it {
        Finding::Damaged { row, .. } => Some(row),
        Finding::Unreadable { .. } => None,
    });
    let needed: HashSet<i64> = rows.iter().chain(damaged).map(|it| it.content_id().0).collect();
    // First onto the disk at the side, then out of the database.
    for finding in &findings {
        if let Finding::Unreadable { rowid, content, why } = finding {
            // What other groups of the message still need stays in its place.
            let content = (!needed.contains(content)).then_some(*content);
            set_row_aside(connection, directory, *rowid, content, why, &mut recovery)?;
        }
    }
    if !recovery.set_aside.is_empty() {
        sync(&directory.join(SET_ASIDE))?;
        sync(&directory.join(CONTENT))?;
    }
    // The rule that a message came by may have a policy of its own.
    let interrupted = |id: QueueId| policies.get(&id).copied().unwrap_or(interrupted);
    crash_point!("recovery-uncommitted");
    put_in_order(
        connection,
        &mut rows,
        findings,
        &needed,
        interrupted,
        now,
        &mut recovery,
    )
    .map_err(broken)?;

    let mut counts = Counts::default();
    let mut bytes = 0;
    let mut arrivals = Vec::new();
    let mut counted = HashSet::new();
    for row in &rows {
        *counts.of_mut(row.state) += 1;
        if row.group_of.is_none_or(|whole| counted.insert(whole)) {
            bytes += row.size;
        }
        if let (State::Queued | State::Held | State::Unknown, Some(due)) = (row.state, row.due) {
            arrivals.push(row.arrival(due));
        }
    }
    recovery.queued = counts.queued;
    counts.sent = connection
        .query_row("SELECT count(*) FROM message WHERE state = 'sent'", [], |row| {
            store::count(row, 0)
        })
        .map_err(broken)?;
    // What was given to messages that were never accepted may be given again: they never were.
    let next_id = connection
        .query_row(
            "SELECT max(coalesce((SELECT max(id) FROM message), 0),
                        coalesce((SELECT max(seq) FROM sqlite_sequence WHERE name = 'message'), 0))",
            [],
            |row| row.get::<_, i64>(0),
        )
        .map_err(broken)?
        .saturating_add(1);
    for path in &recovery.set_aside {
        event::set_aside(path);
    }
    Ok(Recovered {
        recovery,
        arrivals,
        counts,
        bytes,
        next_id,
    })
}

/// What the rules say about interrupted messages, where they say something.
type Policies = HashMap<QueueId, UnknownPolicy>;

/// All messages that have content, by age, and the rows that are none.
fn read_rows(connection: &Connection) -> rusqlite::Result<(Vec<Row>, Vec<Finding>, Policies)> {
    // Said in this way, the index finds them without reading the records of what was sent.
    let mut statement = connection.prepare(&format!(
        "SELECT {ROW_COLUMNS}, submission FROM message WHERE state < 'sent' OR state > 'sent' ORDER BY id"
    ))?;
    let mut rows = statement.query([])?;
    let mut good = Vec::new();
    let mut bad = Vec::new();
    let mut policies = Policies::new();
    while let Some(row) = rows.next()? {
        let read = Row::read(row).and_then(|it| {
            let submission = submission(9, row)?;
            if let (State::Sending, Some(policy)) = (it.state, submission.route.unknown) {
                policies.insert(it.id, policy);
            }
            Ok(it)
        });
        match read {
            Ok(row) => good.push(row),
            Err(error) => bad.push(Finding::Unreadable {
                rowid: row.get(0)?,
                content: row.get::<_, Option<i64>>(8)?.map_or_else(|| row.get(0), Ok)?,
                why: error.to_string(),
            }),
        }
    }
    Ok((good, bad, policies))
}

/// The lengths of the content files.
struct Files(HashMap<i64, u64>);

impl Files {
    fn trouble(&self, row: &Row) -> Option<String> {
        let name = content::file_name(row.content_id());
        match self.0.get(&row.content_id().0) {
            None => Some(format!("its content file {CONTENT}/{name} is missing")),
            Some(&length) if length != row.size => Some(format!(
                "its content file {CONTENT}/{name} has {length} octets, and {} were accepted",
                row.size
            )),
            Some(_) => None,
        }
    }
}

/// Looks at every name in `content/`: sweeps files of messages that are not there, sets aside what
/// is not ours.
fn look_at_files(
    directory: &Path,
    is_new: bool,
    rows: &[Row],
    findings: &[Finding],
    recovery: &mut Recovery,
) -> Result<Files, SpoolError> {
    let known: HashMap<i64, ()> = rows
        .iter()
        .filter(|it| it.file)
        .map(|it| (it.content_id().0, ()))
        .chain(findings.iter().filter_map(|it| match it {
            Finding::Unreadable { content, .. } => Some((*content, ())),
            Finding::Damaged { .. } => None,
        }))
        .collect();
    let content = directory.join(CONTENT);
    let trouble = |error: io::Error| unusable(&content, &error);
    let mut files = Files(HashMap::new());
    for entry in std::fs::read_dir(&content).map_err(trouble)? {
        let entry = entry.map_err(trouble)?;
        let name = entry.file_name();
        let id = name.to_str().and_then(content::id_of);
        let is_file = entry.file_type().map_err(trouble)?.is_file();
        match id {
            Some(id) if is_file && known.contains_key(&id.0) => {
                let length = entry.metadata().map_err(trouble)?.len();
                files.0.insert(id.0, length);
            }
            // Begun and never accepted, or sent and not yet removed. With a database that is new,
            // though, they are what is left of a lost one.
            Some(_) if is_file && !is_new => {
                std::fs::remove_file(entry.path()).map_err(trouble)?;
                recovery.orphans += 1;
            }
            _ => {
                let to = free_name(directory, &name.to_string_lossy());
                std::fs::rename(entry.path(), &to).map_err(trouble)?;
                recovery.set_aside.push(to);
            }
        }
    }
    Ok(files)
}

/// A name in `set-aside/` that is not taken.
fn free_name(directory: &Path, name: &str) -> PathBuf {
    let aside = directory.join(SET_ASIDE);
    let mut path = aside.join(name);
    let mut number = 1;
    // The name of a link that leads nowhere is taken, too.
    while path.symlink_metadata().is_ok() {
        path = aside.join(format!("{name}.{number}"));
        number += 1;
    }
    path
}

/// Writes all that a row has to a file, and its content to another.
fn set_row_aside(
    connection: &Connection,
    directory: &Path,
    rowid: i64,
    content: Option<i64>,
    why: &str,
    recovery: &mut Recovery,
) -> Result<(), SpoolError> {
    let name = QueueId(rowid).to_string();
    let dump = dump_row(connection, rowid, why).map_err(|error| not_read(directory, &error))?;
    let path = free_name(directory, &format!("{name}.json"));
    let text = serde_json::to_vec_pretty(&dump).unwrap_or_default();
    write_aside(&path, &text).map_err(|error| unusable(&path, &error))?;
    recovery.set_aside.push(path);

    let Some(content) = content else {
        return Ok(());
    };
    let to = free_name(directory, &format!("{name}.eml"));
    let file = directory.join(CONTENT).join(content::file_name(QueueId(content)));
    match std::fs::rename(&file, &to) {
        Ok(()) => {
            recovery.set_aside.push(to);
            return Ok(());
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(unusable(&file, &error)),
    }
    let octets: Result<Vec<u8>, _> =
        connection.query_row("SELECT octets FROM content WHERE id = ?1", [content], |row| {
            row.get(0)
        });
    match octets {
        Ok(octets) => {
            write_aside(&to, &octets).map_err(|error| unusable(&to, &error))?;
            recovery.set_aside.push(to);
            Ok(())
        }
        Err(rusqlite::Error::QueryReturnedNoRows) => Ok(()),
        Err(error) => Err(not_read(directory, &error)),
    }
}

fn dump_row(
    connection: &Connection,
    rowid: i64,
    why: &str,
) -> rusqlite::Result<serde_json::Map<String, serde_json::Value>> {
    let mut statement = connection.prepare("SELECT * FROM message WHERE id = ?1")?;
    let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
    statement.query_row([rowid], |row| {
        let mut dump = serde_json::Map::new();
        dump.insert("set_aside_because".to_owned(), why.into());
        for (column, name) in names.iter().enumerate() {
            let value = match row.get_ref(column)? {
                ValueRef::Null => serde_json::Value::Null,
                ValueRef::Integer(number) => number.into(),
                ValueRef::Real(number) => number.into(),
                ValueRef::Text(text) => String::from_utf8_lossy(text).into(),
                ValueRef::Blob(octets) => octets
                    .iter()
                    .map(|it| format!("{it:02x}"))
                    .collect::<String>()
                    .into(),
            };
            dump.insert(name.clone(), value);
        }
        Ok(dump)
    })
}

fn write_aside(path: &Path, octets: &[u8]) -> io::Result<()> {
    let mut file: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(octets)?;
    file.sync_all()
}

/// Makes the database agree with what was found, in one transaction.
fn put_in_order(
    connection: &mut Connection,
    rows: &mut Vec<Row>,
    findings: Vec<Finding>,
    needed: &HashSet<i64>,
    interrupted: impl Fn(QueueId) -> UnknownPolicy,
    now: Timestamp,
    recovery: &mut Recovery,
) -> rusqlite::Result<()> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for row in rows.iter_mut().filter(|it| it.state == State::Sending) {
        let (state, due) = match interrupted(row.id) {
            UnknownPolicy::Retry => (State::Queued, Some(now)),
            UnknownPolicy::Verify => (State::Unknown, Some(now)),
            UnknownPolicy::Hold => (State::Unknown, None),
        };
        let why = "the gateway stopped during an attempt; whether it was sent is not known";
        store::set_state(&tx, row, state, due, why, now)?;
        row.state = state;
        row.due = due;
    }
    for finding in findings {
        match finding {
            Finding::Unreadable { rowid, content, .. } => {
                tx.execute("DELETE FROM message WHERE id = ?1", [rowid])?;
                if !needed.contains(&content) {
                    tx.execute("DELETE FROM content WHERE id = ?1", [content])?;
                }
            }
            Finding::Damaged { mut row, why } => {
                event::damaged(&row.id, &why);
                recovery.damaged.push(row.id);
                // What waits for the operator or is given up stays so.
                if matches!(row.state, State::Queued | State::Sending | State::Held) {
                    store::set_state(&tx, &row, State::Held, None, &why, now)?;
                    row.state = State::Held;
                    row.due = None;
                }
                rows.push(row);
            }
        }
    }
    tx.commit()?;
    crash_point!("recovery-committed");
    Ok(())
}
