//! Asks the running gateway, by its control socket.

use std::io::Write;
use std::time::Duration;

use reqwest::StatusCode;

use super::super::{Failure, block_on};
use crate::admin::{Act, Acted};
use crate::config::Config;
use crate::spool::{Action, QueueId};

/// Messages in one request.
const BATCH: usize = 1000;

/// How long the gateway may take for one request.
const TIMEOUT: Duration = Duration::from_secs(60);

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
    let socket = &config.admin.socket;
    let client = reqwest::Client::builder()
        .unix_socket(socket.as_path())
        .timeout(TIMEOUT)
        .build()
        .map_err(|error| Failure::new(format_args!("cannot use {}: {error}", socket.display())))?;
    let mut acted = Vec::with_capacity(ids.len());
    for batch in ids.chunks(BATCH) {
        let order = Act {
            action,
            ids: batch.to_vec(),
            who: operator(),
            reason: reason.to_owned(),
        };
        let answer = client
            .post("http://graphpost/api/queue")
            .json(&order)
            .send()
            .await;
        let answer = answer.map_err(|error| {
            let cause = root_cause(&error);
            if !error.is_connect() {
                return Failure::new(format_args!("the gateway did not answer: {cause}"));
            }
            Failure::with_help(
                format_args!("no gateway answers at {}: {cause}", socket.display()),
                "start it, or run this as root or as its user: only the running gateway changes the queue",
            )
        })?;
        match answer.status() {
            StatusCode::OK => {
                let batch: Vec<Acted> = answer.json().await.map_err(|error| {
                    Failure::new(format_args!("the gateway's answer makes no sense: {error}"))
                })?;
                acted.extend(batch);
            }
            status => {
                let text = answer.text().await.unwrap_or_default();
                let shown: String = text.chars().take(300).collect();
                return Err(Failure::new(format_args!(
                    "the gateway answered {status}: {shown}"
                )));
            }
        }
    }
    Ok(acted)
}

/// Who sits at the keyboard, for the log. Whoever may open the socket may call himself anything.
fn operator() -> String {
    let name = ["SUDO_USER", "USER", "LOGNAME"]
        .iter()
        .find_map(|it| std::env::var(it).ok());
    name.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
