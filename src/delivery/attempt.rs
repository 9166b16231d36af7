//! One attempt: read the message, convert it, send it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::budget::Budget;
use crate::convert::{self, ConvertError, Order, Wishes};
use crate::event;
use crate::graph::client::Graph;
use crate::graph::draft::{DraftId, LeftOver};
use crate::outcome::Answer;
use crate::spool::{Entry, QueueId, Spool, SpoolError};

/// Converting this many octets takes long enough to be no business of an async thread.
const BLOCKING_OCTETS: usize = 128 * 1024;

/// What came of an attempt.
#[derive(Debug)]
pub(super) enum Ended {
    /// The message was not there, or not to be sent: nothing to settle.
    NotBegun(Result<(), SpoolError>),
    /// It was begun, and this came of it.
    Begun(Box<Begun>),
}

/// An attempt that the spool knows of.
#[derive(Debug)]
pub(super) struct Begun {
    pub entry: Entry,
    pub result: AttemptResult,
    /// From acceptance until the attempt began.
    pub queued: Duration,
    /// Reading and converting.
    pub prepared: Duration,
    /// From the request to the answer.
    pub answered: Duration,
}

/// How far it got.
#[derive(Debug)]
pub(super) enum AttemptResult {
    Answered(Answer),
    /// It cannot be sent in any form.
    Unsendable(ConvertError),
    /// The conversion is defective. Another release may do better, so the message is kept.
    Defect(String),
}

/// What an attempt is made with.
pub(super) struct Means {
    pub spool: Spool,
    pub graph: Graph,
    pub wishes: Wishes,
    /// A message with more is split.
    pub max_recipients: usize,
    /// Shared by all attempts.
    pub memory: Arc<Budget>,
    /// No attempt is begun once this is cancelled.
    pub stop: CancellationToken,
}

/// Makes one attempt.
pub(super) async fn attempt(id: QueueId, size: u64, means: Means) -> Ended {
    let Means {
        spool,
        graph,
        wishes,
        max_recipients,
        memory,
        stop,
    } = means;
    let _memory = tokio::select! {
        permit = memory.take(size) => match permit {
            Some(permit) => permit,
            None => return Ended::NotBegun(Ok(())),
        },
        () = stop.cancelled() => return Ended::NotBegun(Ok(())),
    };
    let start = Instant::now();
    let (entry, content) = match spool.begin_attempt(id, max_recipients).await {
        Ok(begun) => begun,
        Err(error) => return Ended::NotBegun(Err(error)),
    };
    let queued = super::since(entry.accepted);
    let (entry, request) = convert(entry, content, wishes).await;
    let prepared = start.elapsed();
    crash_point!("converted");
    let asked = Instant::now();
    let result = match request {
        Ok(way) => AttemptResult::Answered(send(&entry, way, &spool, &graph).await),
        Err(result) => result,
    };
    crash_point!("answered");
    Ended::Begun(Box::new(Begun {
        entry,
        result,
        queued,
        prepared,
        answered: asked.elapsed(),
    }))
}

async fn send(entry: &Entry, way: convert::Way, spool: &Spool, graph: &Graph) -> Answer {
    let mailbox = &entry.submission.route.mailbox;
    match way {
        convert::Way::Request(request) => graph.send_mail(mailbox, request).await,
        convert::Way::Draft(draft) => {
            let noted = entry.draft.clone().map(DraftId);
            let left_over = match &noted {
                Some(draft) => LeftOver::Draft(draft),
                // The attempt may have ended between making the draft and noting it.
                None if entry.attempts > 1 => LeftOver::Perhaps,
                None => LeftOver::Nothing,
            };
            let note = async |draft: &DraftId| {
                let noted = spool.note_draft(entry.id, draft.0.clone()).await;
                noted.map_err(|error| error.to_string())
            };
            graph.send_draft(mailbox, &draft, left_over, note).await
        }
    }
}

async fn convert(
    entry: Entry,
    content: Bytes,
    wishes: Wishes,
) -> (Entry, Result<convert::Way, AttemptResult>) {
    if content.len() < BLOCKING_OCTETS {
        let request = convert_now(&entry, &content, wishes);
        return (entry, request);
    }
    let entry = Arc::new(entry);
    let shared = entry.clone();
    let request = tokio::task::spawn_blocking(move || convert_now(&shared, &content, wishes))
        .await
        // A blocking task is not cancelled, and a panic is caught inside.
        .unwrap_or_else(|error| Err(AttemptResult::Defect(error.to_string())));
    (Arc::unwrap_or_clone(entry), request)
}

fn convert_now(entry: &Entry, content: &Bytes, wishes: Wishes) -> Result<convert::Way, AttemptResult> {
    let order = Order {
        envelope: &entry.submission.envelope,
        route: &entry.submission.route,
        message_id: &entry.submission.message_id,
        wishes,
    };
    // No message may stop the others, not even one that finds a defect of ours.
    match catch_unwind(AssertUnwindSafe(|| convert::convert(content, &order))) {
        Ok(Ok(converted)) => {
            event::converted(&entry.id, &converted.form, &converted.reason);
            Ok(converted.way)
        }
        Ok(Err(error)) => Err(AttemptResult::Unsendable(error)),
        Err(panic) => Err(AttemptResult::Defect(words(panic.as_ref()))),
    }
}

/// What a panic said.
fn words(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|&it| it.to_owned()))
        .unwrap_or_default()
}
