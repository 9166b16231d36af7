//! `graphpost status`: the running gateway on one screen.

use std::io::{self, Write};

use clap::Args;
use jiff::Timestamp;

use super::control::Control;
use super::terminal::{age, printable, size, table};
use super::{ConfigFile, Failure, block_on};
use crate::admin::Status;
use crate::config::Config;
use crate::delivery::Closed;
use crate::smtp::tls::devices::Device;
use crate::spool::State;

/// Mailboxes shown; those in trouble come first.
const MAX_LANES: usize = 30;
/// Troubles shown, the newest.
const MAX_TROUBLES: usize = 10;

/// Show how the running gateway is doing
///
/// Queue, mailboxes, certificate and token, and the last troubles, with the health at the bottom. The
/// exit status is 0 while mail is accepted, also when Microsoft does not take it.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples: graphpost status --json | jq .messages.queued\n          graphpost status --tls"
)]
pub(super) struct ShowStatus {
    /// Instead, the clients that still need old TLS, and those refused for their age, since the start
    #[arg(long)]
    tls: bool,
    /// As one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigFile,
}

impl ShowStatus {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.config.read()?;
        if self.tls {
            return self.show_tls(&config);
        }
        let status: Status = block_on(Control::new(&config)?.status())?;
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(&status).map_err(Failure::new)?)?;
        } else {
            show(&mut out, &status, Timestamp::now())?;
        }
        out.flush()?;
        if status.ready { Ok(()) } else { Err(Failure::Told) }
    }
}

impl ShowStatus {
    fn show_tls(&self, config: &Config) -> Result<(), Failure> {
        let devices = block_on(Control::new(config)?.tls_devices())?;
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(&devices).map_err(Failure::new)?)?;
        } else {
            show_devices(&mut out, &devices, Timestamp::now())?;
        }
        Ok(out.flush()?)
    }
}

fn show_devices(out: &mut impl Write, devices: &[Device], now: Timestamp) -> io::Result<()> {
    if devices.is_empty() {
        return writeln!(out, "since the gateway started, no client needed old TLS");
    }
    let row = |it: &Device| {
        vec![
            it.client.to_string(),
            printable(&it.listener),
            it.version.clone(),
            it.needs.clone().unwrap_or_else(|| "-".to_owned()),
            it.count.to_string(),
            age(now.duration_since(it.last).as_secs()),
            printable(it.refused.as_ref().or(it.cipher.as_ref()).map_or("", |it| it)),
        ]
    };
    let served: Vec<_> = devices
        .iter()
        .filter(|it| it.refused.is_none())
        .map(row)
        .collect();
    let refused: Vec<_> = devices
        .iter()
        .filter(|it| it.refused.is_some())
        .map(row)
        .collect();
    let head = |last| ["CLIENT", "LISTENER", "VERSION", "NEEDS", "TIMES", "AGO", last];
    if !served.is_empty() {
        table(out, &head("CIPHER"), &served)?;
    }
    if !refused.is_empty() {
        if !served.is_empty() {
            writeln!(out)?;
        }
        table(out, &head("REFUSED"), &refused)?;
    }
    Ok(())
}

fn show(out: &mut impl Write, status: &Status, now: Timestamp) -> io::Result<()> {
    let counts: Vec<String> = State::ALL
        .into_iter()
        .map(|state| format!("{} {state}", status.messages.of(state)))
        .collect();
    writeln!(out, "queue        {}", counts.join(", "))?;
    let oldest = status.oldest.map_or_else(
        || "none waits".to_owned(),
        |it| format!("the oldest waits {}", age(now.duration_since(it).as_secs())),
    );
    writeln!(
        out,
        "             {} of content, {oldest}, {} of disk free",
        size(status.bytes),
        size(status.free_bytes)
    )?;
    let left = |end: Timestamp| match end.duration_since(now).as_secs() {
        left @ 1.. => format!("ends in {}", age(left)),
        _ => "has ended".to_owned(),
    };
    // Nothing is known before the first token; that is not the same as bad.
    let token = status.token_expires.map_or_else(|| "none yet".to_owned(), left);
    writeln!(out, "token        {token}")?;
    for it in &status.certificates {
        writeln!(out, "certificate  {}, {}", left(it.not_after), it.used_for)?;
    }

    if let Some(delivery) = &status.delivery {
        let mut lanes: Vec<_> = delivery.lanes.iter().collect();
        lanes.sort_by_key(|lane| (lane.closed.is_none(), std::cmp::Reverse(lane.waiting)));
        let rows: Vec<Vec<String>> = lanes
            .iter()
            .take(MAX_LANES)
            .map(|lane| {
                vec![
                    printable(&lane.mailbox),
                    lane.waiting.to_string(),
                    format!("{}/{}", lane.in_flight, lane.window),
                    lane.in_last_minute.to_string(),
                    lane.closed.as_ref().map_or(String::new(), |it| because(it, now)),
                ]
            })
            .collect();
        if !rows.is_empty() {
            writeln!(out)?;
            table(
                out,
                &["MAILBOX", "WAITING", "IN FLIGHT", "LAST MINUTE", "CLOSED"],
                &rows,
            )?;
            if lanes.len() > MAX_LANES {
                writeln!(out, "and {} more", lanes.len() - MAX_LANES)?;
            }
        }
        if !delivery.troubles.is_empty() {
            let rows: Vec<Vec<String>> = delivery
                .troubles
                .iter()
                .rev()
                .take(MAX_TROUBLES)
                .map(|it| {
                    vec![
                        age(now.duration_since(it.at).as_secs()),
                        it.id.clone(),
                        it.result.clone(),
                        printable(&it.reason),
                    ]
                })
                .collect();
            writeln!(out)?;
            table(out, &["AGO", "ID", "RESULT", "REASON"], &rows)?;
        }
    }

    writeln!(out)?;
    match status.delivery.as_ref().map(|it| &it.closed) {
        Some(Some(closed)) => writeln!(out, "Microsoft: not sending: {}", because(closed, now))?,
        Some(None) => writeln!(out, "Microsoft: sending")?,
        None => writeln!(out, "Microsoft: stopping")?,
    }
    match status.ready {
        true => writeln!(out, "graphpost {}: accepting mail", status.version),
        false => {
            writeln!(out, "graphpost {}: NOT accepting mail", status.version)?;
            status
                .causes
                .iter()
                .try_for_each(|it| writeln!(out, "  {}", printable(it)))
        }
    }
}

fn because(closed: &Closed, now: Timestamp) -> String {
    let why = match closed.because.as_str() {
        "hold" => "something must be mended",
        other => other,
    };
    match closed.until.duration_since(now).as_secs() {
        left @ 1.. => format!("{why}; next try in {}", age(left)),
        _ => format!("{why}; trying now"),
    }
}
