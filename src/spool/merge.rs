//! Joining what a smarthost has split: several transactions with the same mail for different recipients
//! become one message with all of them (`merge_split`).
//!
//! There is no state between: a transaction makes a message, or adds its recipients to one, in the same
//! commit that its 250 waits for. A message can be joined as long as its window lasts, it is queued, and
//! no attempt has begun.

use std::collections::HashSet;
use std::time::Duration;

use aws_lc_rs::digest;
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Transaction, params};

use super::group::json;
use super::store::{Stored, timestamp};
use super::{QueueId, SpoolError, Submission};

/// A message that takes up more recipients than these is joined no more, so that no client can make the
/// queue write an ever longer envelope anew with each transaction.
const MAX_RECIPIENTS: usize = 5_000;

/// What a transaction brings for being joined.
#[derive(Debug)]
pub(super) struct Merge {
    /// What transactions that are joined have in common: all but their recipients.
    pub key: Vec<u8>,
    /// How long others may be joined to it.
    pub window: Duration,
}

impl Merge {
    /// `None` where nothing is joined.
    pub(super) fn of(
        submission: &Submission,
        content: &[u8],
        window: Duration,
    ) -> Result<Option<Merge>, SpoolError> {
        if window.is_zero() {
            return Ok(None);
        }
        let Submission {
            envelope,
            origin,
            route,
            message_id,
        } = submission;
        // What a client calls itself, and how it connects, is its own affair.
        let common = (
            &envelope.reverse_path,
            (origin.client, &origin.account, &origin.listener),
            route,
            message_id,
        );
        let common = serde_json::to_vec(&common)
            .map_err(|error| SpoolError::Failed(format!("submission: {error}")))?;
        let mut context = digest::Context::new(&digest::SHA256);
        // Its length is always the same, so that nothing can be taken for something else.
        context.update(content);
        context.update(&common);
        Ok(Some(Merge {
            key: context.finish().as_ref().to_vec(),
            window,
        }))
    }
}

/// Adds the recipients of a transaction to the message that it can be joined to, and says which it is.
/// Where that message can take no more, nothing is joined to it from now on.
pub(super) fn join(
    tx: &Transaction<'_>,
    merge: &Merge,
    submission: &str,
    now: Timestamp,
) -> rusqlite::Result<Option<QueueId>> {
    let found: Option<(QueueId, String, Option<i64>, String)> = tx
        .prepare_cached("SELECT id, state, due, submission FROM message WHERE merge = ?1")?
        .query_row([&merge.key], |row| {
            Ok((QueueId(row.get(0)?), row.get(1)?, row.get(2)?, row.get(3)?))
        })
        .optional()?;
    let Some((id, state, due, there)) = found else {
        return Ok(None);
    };
    let due = due.map(|it| timestamp(2, it)).transpose()?;
    let is_open = state == "queued" && due.is_some_and(|it| it > now);
    if is_open && let Some(joined) = united(&there, submission) {
        tx.prepare_cached("UPDATE message SET submission = ?2 WHERE id = ?1")?
            .execute(params![id.0, json(&joined)?])?;
        return Ok(Some(id));
    }
    tx.prepare_cached("UPDATE message SET merge = NULL WHERE id = ?1")?
        .execute([id.0])?;
    Ok(None)
}

/// The message with the recipients of both, each once. `None` where they are too many.
fn united(there: &str, more: &str) -> Option<Submission> {
    // Both were written by us; what is not readable after all is not touched.
    let mut there: Submission = serde_json::from_str(there).ok()?;
    let more: Submission = serde_json::from_str(more).ok()?;
    let known: HashSet<_> = there.envelope.recipients.iter().cloned().collect();
    let new = more
        .envelope
        .recipients
        .into_iter()
        .filter(|it| !known.contains(it));
    there.envelope.recipients.extend(new);
    (there.envelope.recipients.len() <= MAX_RECIPIENTS).then_some(there)
}

/// What a message is stored with, where others may have been joined to it.
pub(super) fn joined(tx: &Transaction<'_>, id: QueueId) -> rusqlite::Result<Option<Stored>> {
    let text: Option<String> = tx
        .prepare_cached("SELECT submission FROM message WHERE id = ?1 AND merge IS NOT NULL")?
        .query_row([id.0], |row| row.get(0))
        .optional()?;
    let submission = text.and_then(|it| serde_json::from_str(&it).ok());
    Ok(submission.map(|submission| Stored {
        submission,
        // A group has been attempted, or comes of what was.
        group_of: None,
    }))
}
