//! `graphpost queue`: what is in the queue, and what an operator can do about it.
//!
//! Reading goes to the queue on the disk, also while no gateway runs. Changing goes through the running
//! gateway, by its control socket: only one process ever writes.

mod export;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::control::Control;
use super::terminal::{age, printable, size, table};
use super::{ConfigFile, Failure, asks, block_on};
use crate::admin::Acted;
use crate::config::{self, Config};
use crate::spool::{Action, Entry, Filter, QueueId, Reader, SpoolError, State};

/// Entries read at once. A queue may hold millions; they are never all in memory.
const PAGE: usize = 1000;

/// Show the queue, and hold, release, retry or delete messages
///
/// 'list', 'show', 'cat' and 'export' read the queue on the disk, also while no gateway runs. The others ask the
/// running gateway.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:\n  graphpost queue list --state failed,held\n  graphpost queue show 0000004F\n  \
                  graphpost queue retry 0000004F 0000004G\n  graphpost queue delete --state failed --older 2d"
)]
pub(super) struct Queue {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List messages, oldest first; sent ones only if asked for
    List {
        #[command(flatten)]
        select: Select,
        /// Sent messages too
        #[arg(long, conflicts_with = "state")]
        all: bool,
        /// At most this many
        #[arg(long, value_name = "NUMBER")]
        limit: Option<usize>,
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Show all that is known about messages
    Show {
        /// The messages' ids
        #[arg(required = true, value_name = "ID")]
        ids: Vec<QueueId>,
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Print a message as it was accepted
    Cat {
        /// The message's id
        #[arg(value_name = "ID")]
        id: QueueId,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Write messages to files: ID.eml as accepted, ID.json with the envelope
    Export {
        /// Where to; made if it is not there
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        #[command(flatten)]
        select: Select,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Try messages now: queued, held, failed or of unknown fate
    Retry(Order),
    /// Keep queued messages from being tried, until they are released
    Hold(Order),
    /// Let held messages, and those of unknown fate, be tried again
    Release(Order),
    /// Delete messages for good
    Delete(Order),
    /// Try all that waits now; pace and Retry-After are kept
    Flush {
        /// Why, for the log
        #[arg(long, value_name = "TEXT", default_value = "flushed by the operator")]
        reason: String,
        /// The answers as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigFile,
    },
}

/// How messages are printed: for people unless one of these is given.
#[derive(Clone, Copy, Debug, Args)]
#[group(multiple = false)]
struct Form {
    /// As one JSON array; what 'show' shows of a single message, as one object
    #[arg(long)]
    json: bool,
    /// One JSON object a line
    #[arg(long)]
    jsonl: bool,
}

/// An action on messages that are named or selected.
#[derive(Debug, Args)]
struct Order {
    /// The messages' ids
    #[arg(value_name = "ID", required_unless_present_any = ["state", "sender", "mailbox", "recipient", "older"])]
    ids: Vec<QueueId>,
    #[command(flatten)]
    select: Select,
    /// Do not ask before changing messages that were selected and not named
    #[arg(long)]
    yes: bool,
    /// Why, for the log and the queue
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// The answers as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigFile,
}

/// Which messages.
#[derive(Debug, Args)]
struct Select {
    /// Only messages in these states: queued, sending, held, unknown, failed, sent
    #[arg(long, value_name = "STATE", value_delimiter = ',')]
    state: Vec<State>,
    /// Only from this envelope sender; '<>' for the empty one
    #[arg(long, value_name = "ADDRESS")]
    sender: Option<String>,
    /// Only through this mailbox
    #[arg(long, value_name = "ADDRESS")]
    mailbox: Option<String>,
    /// Only with a recipient that contains this
    #[arg(long, value_name = "TEXT")]
    recipient: Option<String>,
    /// Only accepted longer ago than this, such as 2d
    #[arg(long, value_name = "AGE", value_parser = config::duration)]
    older: Option<Duration>,
}

impl Select {
    fn filter(self, states: &[State]) -> Filter {
        let states = if self.state.is_empty() {
            states.to_vec()
        } else {
            self.state
        };
        Filter {
            states,
            sender: self.sender,
            mailbox: self.mailbox,
            recipient: self.recipient,
            // Before the beginning of time there is nothing.
            accepted_before: self
                .older
                .map(|it| Timestamp::now().checked_sub(it).unwrap_or(Timestamp::MIN)),
            group_of: None,
            after: None,
            limit: PAGE,
        }
    }
}

impl Queue {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        match self.verb {
            Verb::List {
                select,
                all,
                limit,
                form,
                config,
            } => {
                let states: &[State] = if all { &[] } else { &UNSENT };
                let reader = open(&config.read()?)?;
                list(
                    &mut out,
                    &reader,
                    select.filter(states),
                    limit.unwrap_or(usize::MAX),
                    form,
                )
            }
            Verb::Show { ids, form, config } => {
                let reader = open(&config.read()?)?;
                let mut array = Array::new(form.json && ids.len() > 1);
                for (number, id) in ids.into_iter().enumerate() {
                    let entry = reader.get(id).map_err(failed)?;
                    if form.json || form.jsonl {
                        array.print(&mut out, &entry)?;
                    } else {
                        if number > 0 {
                            writeln!(out)?;
                        }
                        show(&mut out, &entry, Timestamp::now())?;
                        if let Some(whole) = entry.group_of {
                            show_groups(&mut out, &reader, whole)?;
                        }
                    }
                }
                array.end(&mut out)?;
                Ok(out.flush()?)
            }
            Verb::Cat { id, config } => {
                let reader = open(&config.read()?)?;
                let content = match reader.content(id) {
                    Err(SpoolError::NotFound(_))
                        if reader.get(id).is_ok_and(|it| it.state == State::Sent) =>
                    {
                        return Err(Failure::with_help(
                            format_args!("{id} has been sent; only the record is kept, not its content"),
                            format_args!("graphpost queue show {id}"),
                        ));
                    }
                    other => other.map_err(failed)?,
                };
                out.write_all(&content)?;
                Ok(out.flush()?)
            }
            Verb::Export {
                out: directory,
                select,
                config,
            } => {
                let reader = open(&config.read()?)?;
                export::export(&mut out, &reader, select.filter(&UNSENT), &directory)
            }
            Verb::Retry(order) => order.carry_out(&mut out, Action::Retry),
            Verb::Hold(order) => order.carry_out(&mut out, Action::Hold),
            Verb::Release(order) => order.carry_out(&mut out, Action::Release),
            Verb::Delete(order) => order.carry_out(&mut out, Action::Delete),
            Verb::Flush { reason, json, config } => flush(&mut out, &config.read()?, &reason, json),
        }
    }
}

/// What a list shows unless more is asked for.
const UNSENT: [State; 5] = [
    State::Queued,
    State::Sending,
    State::Held,
    State::Unknown,
    State::Failed,
];

impl Order {
    fn carry_out(self, out: &mut impl Write, action: Action) -> Result<(), Failure> {
        let config = self.config.read()?;
        let named = !self.ids.is_empty();
        let ids = if named {
            self.ids
        } else {
            let states: Vec<State> = State::ALL
                .into_iter()
                .filter(|it| action.applies_to(*it))
                .collect();
            select(&open(&config)?, self.select.filter(&states))?
        };
        if !named && !self.yes && !ids.is_empty() {
            confirm(action, ids.len())?;
        }
        let reason = self.reason.unwrap_or_else(|| format!("{action} by the operator"));
        act(out, &config, action, &ids, &reason, self.json)
    }
}

/// Has an action carried out, and prints what came of it.
fn act(
    out: &mut impl Write,
    config: &Config,
    action: Action,
    ids: &[QueueId],
    reason: &str,
    json: bool,
) -> Result<(), Failure> {
    let acted = block_on(Control::new(config)?.act(action, ids, reason))?;
    let refused = acted.iter().filter(|it| it.error.is_some()).count();
    let done = match action {
        Action::Retry => "to be tried now",
        Action::Hold => "held",
        Action::Release => "released",
        Action::Delete => "deleted",
    };
    if json {
        writeln!(out, "{}", serde_json::to_string(&acted).map_err(Failure::new)?)?;
    } else {
        for Acted { id, error } in &acted {
            match error {
                None => writeln!(out, "{id}  {done}")?,
                Some(why) => writeln!(out, "{id}  not {done}: {}", printable(why))?,
            }
        }
        match acted.len() {
            0 => writeln!(out, "no messages")?,
            1 => {}
            all => writeln!(out, "{} of {all} messages {done}", all - refused)?,
        }
    }
    out.flush()?;
    if refused > 0 { Err(Failure::Told) } else { Ok(()) }
}

/// Has all that waits tried now.
fn flush(out: &mut impl Write, config: &Config, reason: &str, json: bool) -> Result<(), Failure> {
    let flushed = block_on(Control::new(config)?.flush(reason))?;
    match (json, flushed.messages) {
        (true, _) => writeln!(out, "{}", serde_json::to_string(&flushed).map_err(Failure::new)?)?,
        (false, 0) => writeln!(out, "no messages wait")?,
        (false, 1) => writeln!(out, "1 message to be tried now")?,
        (false, all) => writeln!(out, "{all} messages to be tried now")?,
    }
    Ok(out.flush()?)
}

/// Asks before many messages are changed at once.
fn confirm(action: Action, number: usize) -> Result<(), Failure> {
    let messages = if number == 1 {
        "1 message".to_owned()
    } else {
        format!("{number} messages")
    };
    if !asks() {
        return Err(Failure::with_help(
            format_args!("this would {action} {messages}"),
            "add --yes to do it, or name the messages by their ids",
        ));
    }
    let mut prompt = io::stderr();
    // If the question cannot be asked, the answer is no.
    let _ = write!(prompt, "{action} {messages}? [y/N] ");
    let _ = prompt.flush();
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    if read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Failure::new("nothing was changed"))
}

fn open(config: &Config) -> Result<Reader, Failure> {
    Reader::open(&config.spool.directory).map_err(failed)
}

fn failed(error: SpoolError) -> Failure {
    match error {
        SpoolError::NotFound(id) => Failure::with_help(
            format_args!("there is no message {id} in the queue"),
            "graphpost queue list --all shows what there is; sent messages are forgotten after spool.keep_sent",
        ),
        error => Failure::new(error),
    }
}

/// All pages of a filter, one by one.
fn pages(
    reader: &Reader,
    mut filter: Filter,
    mut page: impl FnMut(Vec<Entry>) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    loop {
        let entries = reader.list(&filter).map_err(failed)?;
        filter.after = entries.last().map(|it| it.id);
        let last = entries.len() < PAGE;
        if entries.is_empty() || !page(entries)? || last {
            return Ok(());
        }
    }
}

fn select(reader: &Reader, filter: Filter) -> Result<Vec<QueueId>, Failure> {
    let mut ids = Vec::new();
    pages(reader, filter, |entries| {
        ids.extend(entries.iter().map(|it| it.id));
        Ok(true)
    })?;
    Ok(ids)
}

fn list(
    out: &mut impl Write,
    reader: &Reader,
    filter: Filter,
    limit: usize,
    form: Form,
) -> Result<(), Failure> {
    let mut left = limit;
    let mut octets = 0;
    let mut counted = [0u64; State::ALL.len()];
    let mut array = Array::new(form.json);
    let for_people = !(form.json || form.jsonl);
    pages(reader, filter, |mut entries| {
        entries.truncate(left);
        left -= entries.len();
        if for_people {
            print_table(out, &entries, Timestamp::now())?;
        } else {
            entries.iter().try_for_each(|it| array.print(out, it))?;
        }
        for entry in &entries {
            octets += entry.size;
            counted[State::ALL.iter().position(|it| *it == entry.state).unwrap_or(0)] += 1;
        }
        Ok(left > 0)
    })?;
    array.end(out)?;
    if for_people {
        let counts: Vec<String> = State::ALL
            .into_iter()
            .zip(counted)
            .filter(|(_, number)| *number > 0)
            .map(|(state, number)| format!("{number} {state}"))
            .collect();
        match counts.as_slice() {
            [] => writeln!(out, "no messages")?,
            counts => writeln!(out, "{}; {}", counts.join(", "), size(octets))?,
        }
    }
    Ok(out.flush()?)
}

/// Entries as JSON while they are read, one a line: with brackets and commas for an array, else without.
struct Array {
    brackets: bool,
    empty: bool,
}

impl Array {
    fn new(brackets: bool) -> Array {
        Array {
            brackets,
            empty: true,
        }
    }

    fn print(&mut self, out: &mut impl Write, entry: &Entry) -> io::Result<()> {
        if self.brackets {
            out.write_all(if self.empty { b"[" } else { b",\n" })?;
        }
        self.empty = false;
        serde_json::to_writer(&mut *out, entry)?;
        if self.brackets { Ok(()) } else { writeln!(out) }
    }

    fn end(self, out: &mut impl Write) -> io::Result<()> {
        match (self.brackets, self.empty) {
            (false, _) => Ok(()),
            (true, true) => writeln!(out, "[]"),
            (true, false) => writeln!(out, "]"),
        }
    }
}

fn print_table(out: &mut impl Write, entries: &[Entry], now: Timestamp) -> io::Result<()> {
    let rows: Vec<Vec<String>> = entries
        .iter()
        .map(|entry| {
            let recipients = &entry.submission.envelope.recipients;
            let mut to = recipients
                .first()
                .map_or(String::new(), |it| printable(it.as_str()));
            if recipients.len() > 1 {
                to.push_str(&format!(" +{}", recipients.len() - 1));
            }
            vec![
                entry.id.to_string(),
                entry.state.to_string(),
                age(now.duration_since(entry.accepted).as_secs()),
                size(entry.size),
                entry.attempts.to_string(),
                next(entry, now),
                printable(&entry.submission.envelope.reverse_path.to_string()),
                to,
                entry
                    .reason
                    .as_deref()
                    .map_or(String::new(), |it| shorten(&printable(it))),
            ]
        })
        .collect();
    table(
        out,
        &[
            "ID", "STATE", "AGE", "SIZE", "TRIES", "NEXT", "FROM", "TO", "REASON",
        ],
        &rows,
    )
}

/// When it is tried next.
fn next(entry: &Entry, now: Timestamp) -> String {
    match entry.due {
        Some(due) if due > now => age(due.duration_since(now).as_secs()),
        Some(_) => "now".to_owned(),
        None => "-".to_owned(),
    }
}

fn shorten(text: &str) -> String {
    const LONGEST: usize = 60;
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    let short: String = text.chars().take(LONGEST - 1).collect();
    format!("{short}…")
}

/// Where the recipient groups of a message stand.
fn show_groups(out: &mut impl Write, reader: &Reader, whole: QueueId) -> Result<(), Failure> {
    let filter = Filter {
        group_of: Some(whole),
        ..Filter::default()
    };
    for group in reader.list(&filter).map_err(failed)? {
        writeln!(
            out,
            "{:<12}{} {}, {} recipients",
            "group",
            group.id,
            group.state,
            group.submission.envelope.recipients.len()
        )?;
    }
    Ok(())
}

fn show(out: &mut impl Write, entry: &Entry, now: Timestamp) -> io::Result<()> {
    let submission = &entry.submission;
    let (origin, route) = (&submission.origin, &submission.route);
    let seconds = |it: Timestamp| format!("{it:.0}");
    let mut line = |key: &str, value: &str| writeln!(out, "{key:<12}{}", printable(value));
    line("id", &entry.id.to_string())?;
    line("state", entry.state.as_str())?;
    if let Some(whole) = entry.group_of {
        line("group of", &whole.to_string())?;
    }
    if let Some(reason) = &entry.reason {
        line("reason", reason)?;
    }
    line("attempts", &entry.attempts.to_string())?;
    if let Some(due) = entry.due {
        line("next", &format!("{} ({})", seconds(due), next(entry, now)))?;
    }
    if let Some(id) = &entry.request_id {
        line("request-id", id)?;
    }
    let since = age(now.duration_since(entry.accepted).as_secs());
    line("accepted", &format!("{} ({since} ago)", seconds(entry.accepted)))?;
    line("changed", &seconds(entry.changed))?;
    line("size", &format!("{} octets", entry.size))?;
    line("from", &submission.envelope.reverse_path.to_string())?;
    for recipient in &submission.envelope.recipients {
        line("to", recipient.as_str())?;
    }
    line("mailbox", &route.mailbox)?;
    line("rule", &route.rule)?;
    line("message-id", &format!("<{}>", submission.message_id))?;
    let account = origin
        .account
        .as_deref()
        .map_or(String::new(), |it| format!(" as {it}"));
    let tls = origin
        .tls
        .as_deref()
        .map_or(String::new(), |it| format!(", {it}"));
    line(
        "client",
        &format!(
            "{} ({}){account} by {} through {}{tls}",
            origin.client, origin.helo, origin.protocol, origin.listener
        ),
    )
}
