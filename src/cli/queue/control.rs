//! What only the running gateway can do to the queue.

use std::io::Write;

use super::super::gateway::{Gateway, operator};
use super::super::{Failure, block_on};
use crate::admin::{Act, Acted, Flush, Flushed};
use crate::config::Config;
use crate::spool::{Action, QueueId};

/// Messages in one request.
const BATCH: usize = 1000;

/// Has an action carried out, and prints what came of it.
pub(super) fn act(
    out: &mut impl Write,
    config: &Config,
    action: Action,
    ids: &[QueueId],
    reason: &str,
    json: bool,
) -> Result<(), Failure> {
    let acted = block_on(ask(config, action, ids, reason))?;
    let refused = acted.iter().filter(|it| it.error.is_some()).count();
    if json {
        writeln!(out, "{}", serde_json::to_string(&acted).map_err(Failure::new)?)?;
    } else {
        for Acted { id, error } in &acted {
            match error {
                None => writeln!(out, "{id}  {}", done(action))?,
                Some(why) => writeln!(out, "{id}  not {}: {why}", done(action))?,
            }
        }
        match acted.len() {
            0 => writeln!(out, "no messages")?,
            1 => {}
            all => writeln!(out, "{} of {all} messages {}", all - refused, done(action))?,
        }
    }
    out.flush()?;
    if refused > 0 { Err(Failure::Told) } else { Ok(()) }
}

fn done(action: Action) -> &'static str {
    match action {
        Action::Retry => "to be tried now",
        Action::Hold => "held",
        Action::Release => "released",
        Action::Delete => "deleted",
    }
}

async fn ask(config: &Config, action: Action, ids: &[QueueId], reason: &str) -> Result<Vec<Acted>, Failure> {
    let gateway = Gateway::new(config)?;
    let mut acted = Vec::with_capacity(ids.len());
    for batch in ids.chunks(BATCH) {
        let order = Act {
            action,
            ids: batch.to_vec(),
            who: operator(),
            reason: reason.to_owned(),
        };
        let batch: Vec<Acted> = gateway.post("/api/queue", &order).await?;
        acted.extend(batch);
    }
    Ok(acted)
}

/// Has all that waits tried now.
pub(super) fn flush(out: &mut impl Write, config: &Config, reason: &str, json: bool) -> Result<(), Failure> {
    let order = Flush {
        who: operator(),
        reason: reason.to_owned(),
    };
    let flushed: Flushed = block_on(async { Gateway::new(config)?.post("/api/flush", &order).await })?;
    match (json, flushed.messages) {
        (true, _) => writeln!(out, "{}", serde_json::to_string(&flushed).map_err(Failure::new)?)?,
        (false, 0) => writeln!(out, "no messages wait")?,
        (false, 1) => writeln!(out, "1 message to be tried now")?,
        (false, all) => writeln!(out, "{all} messages to be tried now")?,
    }
    Ok(out.flush()?)
}
