//! Recipient groups: a message with more recipients than one request takes becomes several, which share
//! its content and nothing else. Each has its own envelope, so that it can be sent, deferred, failed or
//! held by itself, and a notification names exactly its recipients.

use std::sync::atomic::Ordering;

use rusqlite::{OptionalExtension, Transaction, params};

use super::store::{Row, Stored, Terms};
use super::{Arrival, QueueId, Submission};

/// What has become of a message.
pub(super) struct Split {
    /// What the first group is stored with, under the number of the message.
    pub first: Stored,
    /// The other groups, due now.
    pub others: Vec<Arrival>,
}

/// Splits a waiting message into as few groups as possible, in the order of the recipients. `None` where
/// it has no more than `max_recipients`.
///
/// A message whose last attempt has made a draft stays as it is: whether that draft was sent is a
/// question about all its recipients.
pub(super) fn split(
    tx: &Transaction<'_>,
    row: &Row,
    max_recipients: usize,
    terms: Terms<'_>,
) -> rusqlite::Result<Option<Split>> {
    let max = max_recipients.max(1);
    let text: Option<String> = tx
        .prepare_cached(
            "SELECT submission FROM message
             WHERE id = ?1 AND draft IS NULL AND json_array_length(submission, '$.envelope.recipients') > ?2",
        )?
        .query_row(params![row.id.0, i64::try_from(max).unwrap_or(i64::MAX)], |it| {
            it.get(0)
        })
        .optional()?;
    // Whoever begins the attempt has just read it.
    let Some(mut first) = text.and_then(|it| serde_json::from_str::<Submission>(&it).ok()) else {
        return Ok(None);
    };
    let whole = row.content_id();
    let recipients = std::mem::take(&mut first.envelope.recipients);
    let mut groups = recipients.chunks(max);
    first.envelope.recipients = groups.next().unwrap_or_default().to_vec();
    tx.prepare_cached("UPDATE message SET submission = ?2, group_of = ?3 WHERE id = ?1")?
        .execute(params![row.id.0, json(&first)?, whole.0])?;

    let mut others = Vec::with_capacity(groups.len());
    for recipients in groups {
        let id = QueueId(terms.next_id.fetch_add(1, Ordering::Relaxed));
        let mut group = first.clone();
        group.envelope.recipients = recipients.to_vec();
        // What earlier attempts were is true of each group: they were for all of them.
        tx.prepare_cached(
            "INSERT INTO message (id, state, mailbox, sender, size, file, digest, accepted, attempts, due,
                                  changed, reason, request_id, submission, group_of)
             SELECT ?2, 'queued', mailbox, sender, size, file, digest, accepted, attempts, ?3,
                    ?3, reason, request_id, ?4, ?5
             FROM message WHERE id = ?1",
        )?
        .execute(params![
            row.id.0,
            id.0,
            terms.now.as_millisecond(),
            json(&group)?,
            whole.0
        ])?;
        others.push(Arrival {
            id,
            ..row.arrival(terms.now)
        });
    }
    let first = Stored {
        submission: first,
        group_of: Some(whole),
    };
    Ok(Some(Split { first, others }))
}

/// Whether another group of the same message still needs its content.
pub(super) fn shares_content(tx: &Transaction<'_>, row: &Row) -> rusqlite::Result<bool> {
    let Some(whole) = row.group_of else {
        return Ok(false);
    };
    tx.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM message WHERE group_of = ?1 AND id <> ?2 AND state <> 'sent')",
    )?
    .query_row([whole.0, row.id.0], |it| it.get(0))
}

/// As it is stored.
pub(super) fn json(submission: &Submission) -> rusqlite::Result<String> {
    serde_json::to_string(submission)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}
