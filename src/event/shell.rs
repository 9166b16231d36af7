//! Writes events to standard error, one line each.
//!
//! A line is `key=value` pairs or a JSON object. Whatever a client or a server has put into a value,
//! it cannot end the line or pretend to be another key: values are quoted where they need it, and
//! characters that control a terminal are written as escapes.
//!
//! The lines go through a bounded queue to a thread of their own: a terminal that stands still must
//! not hold up mail. What does not fit is dropped, counted, and the count is logged.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use jiff::Timestamp;
use tracing::field::{Field, Visit};
use tracing::metadata::LevelFilter;
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::config::{self, LogFormat};

/// Lines that may wait to be written.
const QUEUE: usize = 8192;
/// The longest value that is written whole, in octets.
const MAX_VALUE: usize = 2048;
/// Our own events; those of libraries are written from `warn` up.
const TARGET: &str = "graphpost";

static SHELL: OnceLock<&'static Shell> = OnceLock::new();

enum Line {
    Text(String),
    Flush(mpsc::Sender<()>),
}

pub(super) struct Shell {
    format: LogFormat,
    /// Whether systemd's journal reads standard error: it knows the time, and wants a priority.
    journal: bool,
    level: AtomicU8,
    lines: mpsc::SyncSender<Line>,
    dropped: AtomicU64,
}

/// Starts the log. Does nothing when it is already running, or when a program that uses the library
/// has a `tracing` subscriber of its own.
pub fn init(log: &config::Log) {
    let (lines, waiting) = mpsc::sync_channel(QUEUE);
    let shell: &'static Shell = Box::leak(Box::new(Shell {
        format: log.format,
        journal: is_journal(),
        level: AtomicU8::new(rank(log.level)),
        lines,
        dropped: AtomicU64::new(0),
    }));
    if tracing::subscriber::set_global_default(shell).is_err() {
        return;
    }
    let _ = SHELL.set(shell);
    // Without a thread there is no log, but there is mail.
    let _ = std::thread::Builder::new()
        .name("log".into())
        .spawn(move || write(&waiting));
}

/// Changes the least level written, while running.
pub fn set_level(level: Level) {
    if let Some(shell) = SHELL.get() {
        shell.level.store(rank(level), Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }
}

/// Waits until all lines so far are written, at most a second.
pub fn flush() {
    if let Some(shell) = SHELL.get() {
        let (done, wait) = mpsc::channel();
        if shell.lines.try_send(Line::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(Duration::from_secs(1));
        }
    }
}

fn write(waiting: &mpsc::Receiver<Line>) {
    let mut stderr = std::io::stderr();
    while let Ok(line) = waiting.recv() {
        match line {
            // Nobody can be told that the log cannot be written.
            Line::Text(text) => drop(stderr.write_all(text.as_bytes())),
            Line::Flush(done) => {
                let _ = done.send(());
            }
        }
    }
}

/// systemd sets `JOURNAL_STREAM` to the device and inode of the stream it reads; a child may have
/// inherited the variable with another standard error (systemd.exec(5)).
fn is_journal() -> bool {
    let Ok(value) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stat) = rustix::fs::fstat(std::io::stderr()) else {
        return false;
    };
    value == format!("{}:{}", stat.st_dev, stat.st_ino)
}

/// `error` is 1 and `trace` is 5.
fn rank(level: Level) -> u8 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

impl Subscriber for &'static Shell {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let level = self.level.load(Ordering::Relaxed);
        let most = if metadata.target().starts_with(TARGET) {
            level
        } else if level >= rank(Level::DEBUG) {
            // Libraries write headers and bodies at their debug level; those may hold secrets.
            rank(Level::INFO)
        } else {
            rank(Level::WARN).min(level)
        };
        metadata.is_event() && rank(*metadata.level()) <= most
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match self.level.load(Ordering::Relaxed) {
            ..=1 => LevelFilter::ERROR,
            2 => LevelFilter::WARN,
            3 => LevelFilter::INFO,
            4 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        })
    }

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        if !metadata.target().starts_with(TARGET) {
            fields
                .pairs
                .push(("target", Value::Text(metadata.target().into())));
        }
        let line = self.line(*metadata.level(), Timestamp::now(), &fields);
        if self.lines.try_send(Line::Text(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let fields = Fields {
                message: "log lines dropped".into(),
                pairs: vec![("count", Value::Bare(dropped.to_string()))],
            };
            let line = self.line(Level::WARN, Timestamp::now(), &fields);
            if self.lines.try_send(Line::Text(line)).is_err() {
                self.dropped.fetch_add(dropped, Ordering::Relaxed);
            }
        }
    }

    // Nothing here uses spans, and those of libraries are not written.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

impl Shell {
    fn line(&self, level: Level, now: Timestamp, fields: &Fields) -> String {
        match self.format {
            LogFormat::Text => self.text(level, now, fields),
            LogFormat::Json => json(level, now, fields),
        }
    }

    fn text(&self, level: Level, now: Timestamp, fields: &Fields) -> String {
        let mut line = String::with_capacity(256);
        // Writing to a String cannot fail.
        let _ = if self.journal {
            write!(line, "<{}>", priority(level))
        } else {
            write!(line, "time={now:.3} level={} ", name(level))
        };
        line.push_str("msg=");
        push_text(&mut line, &fields.message);
        for (key, value) in &fields.pairs {
            let _ = write!(line, " {key}=");
            match value {
                Value::Bare(text) => line.push_str(text),
                Value::Text(text) => push_text(&mut line, text),
            }
        }
        line.push('\n');
        line
    }
}

fn json(level: Level, now: Timestamp, fields: &Fields) -> String {
    let mut line = String::with_capacity(256);
    let _ = write!(line, r#"{{"time":"{now:.3}","level":"{}","msg":"#, name(level));
    push_json(&mut line, &fields.message);
    for (key, value) in &fields.pairs {
        let _ = write!(line, r#","{key}":"#);
        match value {
            Value::Bare(text) => line.push_str(text),
            Value::Text(text) => push_json(&mut line, text),
        }
    }
    line.push_str("}\n");
    line
}

fn name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// The priorities of syslog(3) (sd-daemon(3)).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    pairs: Vec<(&'static str, Value)>,
}

enum Value {
    /// A number or a boolean.
    Bare(String),
    Text(String),
}

impl Fields {
    fn push(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::Bare(text) | Value::Text(text)) => self.message = text,
            (name, value) => self.pairs.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field, Value::Text(format!("{value:?}")));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, Value::Text(value.into()));
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, Value::Bare(value.to_string()));
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, Value::Bare(value.to_string()));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, Value::Bare(value.to_string()));
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        let text = if value.is_finite() {
            format!("{value:.3}")
        } else {
            "0".into()
        };
        self.push(field, Value::Bare(text));
    }
}

/// Whether a character may stand in the log as it is: not what controls a terminal, ends a line, or
/// reorders the text around it (Unicode's bidirectional controls).
fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{feff}')
        && !matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn cut(text: &str) -> (&str, bool) {
    if text.len() <= MAX_VALUE {
        return (text, false);
    }
    let end = (0..=MAX_VALUE)
        .rev()
        .find(|&it| text.is_char_boundary(it))
        .unwrap_or(0);
    (&text[..end], true)
}

fn push_text(line: &mut String, text: &str) {
    let plain = |c: char| is_harmless(c) && !c.is_whitespace() && !matches!(c, '"' | '=' | '\\');
    let (text, is_cut) = cut(text);
    if !text.is_empty() && !is_cut && text.chars().all(plain) {
        line.push_str(text);
        return;
    }
    line.push('"');
    push_escaped(line, text, |line, c| {
        let _ = write!(line, "\\u{{{:x}}}", u32::from(c));
    });
    line.push_str(if is_cut { "…\"" } else { "\"" });
}

fn push_json(line: &mut String, text: &str) {
    let (text, is_cut) = cut(text);
    line.push('"');
    // All that is not harmless lies in the basic plane: four digits are enough (RFC 8259 §7).
    push_escaped(line, text, |line, c| {
        let _ = write!(line, "\\u{:04x}", u32::from(c));
    });
    line.push_str(if is_cut { "…\"" } else { "\"" });
}

fn push_escaped(line: &mut String, text: &str, escape: impl Fn(&mut String, char)) {
    for c in text.chars() {
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            c if is_harmless(c) => line.push(c),
            c => escape(line, c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines that `log` writes, without their time.
    fn lines(format: LogFormat, journal: bool, level: Level, log: impl FnOnce()) -> Vec<String> {
        let (lines, waiting) = mpsc::sync_channel(QUEUE);
        let shell: &'static Shell = Box::leak(Box::new(Shell {
            format,
            journal,
            level: AtomicU8::new(rank(level)),
            lines,
            dropped: AtomicU64::new(0),
        }));
        tracing::subscriber::with_default(shell, log);
        waiting
            .try_iter()
            .map(|line| match line {
                Line::Text(text) => text,
                Line::Flush(_) => unreachable!("nobody flushes"),
            })
            .collect()
    }

    fn say(value: &str) {
        tracing::info!(target: "graphpost", id = %"0000004F", value, count = 2, ok = true, delay = 0.5, none = None::<u64>, "sent");
    }

    #[test]
    fn writes_one_line_an_event() {
        let text = lines(LogFormat::Text, false, Level::INFO, || say("a@b"));
        assert_eq!(text.len(), 1);
        let (time, rest) = text[0].split_once(' ').expect("a time");
        assert!(
            time.starts_with("time=20") && time.ends_with('Z') && time.len() == 29,
            "{time}"
        );
        assert_eq!(
            rest,
            "level=info msg=sent id=0000004F value=a@b count=2 ok=true delay=0.500\n"
        );

        let journal = lines(LogFormat::Text, true, Level::INFO, || say("a@b"));
        assert_eq!(
            journal,
            ["<6>msg=sent id=0000004F value=a@b count=2 ok=true delay=0.500\n"]
        );

        let json = lines(LogFormat::Json, false, Level::INFO, || say("a@b"));
        let value: serde_json::Value = serde_json::from_str(&json[0]).expect("JSON");
        assert_eq!(value["msg"], "sent");
        assert_eq!(value["count"], 2);
        assert_eq!(value["ok"], true);
    }

    #[test]
    fn no_value_can_make_a_line_or_a_key() {
        for (value, want) in [
            ("", r#""""#),
            ("two words", r#""two words""#),
            ("a\nmsg=accepted", r#""a\nmsg=accepted""#),
            ("a\r\n", r#""a\r\n""#),
            ("x id=1", r#""x id=1""#),
            ("k=v", r#""k=v""#),
            ("say \"hi\"", r#""say \"hi\"""#),
            ("back\\slash", r#""back\\slash""#),
            ("\x1b[31mred", r#""\u{1b}[31mred""#),
            ("\u{85}next", r#""\u{85}next""#),
            ("a\u{2028}b", r#""a\u{2028}b""#),
            ("a\u{202e}b", r#""a\u{202e}b""#),
            ("\0", r#""\u{0}""#),
            ("jürgen@müller.example", "jürgen@müller.example"),
            ("<scan@contoso.com>", "<scan@contoso.com>"),
        ] {
            let text = lines(LogFormat::Text, true, Level::INFO, || say(value));
            assert_eq!(
                text,
                [format!(
                    "<6>msg=sent id=0000004F value={want} count=2 ok=true delay=0.500\n"
                )],
                "{value:?}"
            );
            let json = lines(LogFormat::Json, false, Level::INFO, || say(value));
            assert_eq!((json.len(), json[0].matches('\n').count()), (1, 1));
            assert!(json[0].trim_end().chars().all(is_harmless), "{}", json[0]);
            let parsed: serde_json::Value = serde_json::from_str(&json[0]).expect("JSON");
            assert_eq!(parsed["value"], value);
        }
    }

    #[test]
    fn a_long_value_is_cut() {
        let text = lines(LogFormat::Text, true, Level::INFO, || say(&"ü".repeat(100_000)));
        assert!(text[0].len() < MAX_VALUE + 200 && text[0].contains("…\""));
    }

    #[test]
    fn levels() {
        let log = || {
            tracing::debug!(target: "graphpost", "debug");
            tracing::info!(target: "graphpost::smtp", "info");
            tracing::info!(target: "hyper", "library info");
            tracing::warn!(target: "hyper", "library warn");
            tracing::debug!(target: "h2", "library debug");
        };
        let count = |level| lines(LogFormat::Text, true, level, log).len();
        assert_eq!(count(Level::ERROR), 0);
        assert_eq!(count(Level::WARN), 1);
        assert_eq!(count(Level::INFO), 2);
        assert_eq!(count(Level::DEBUG), 4);
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let written = lines(LogFormat::Text, true, Level::INFO, || {
            for _ in 0..QUEUE + 7 {
                say("x");
            }
        });
        assert_eq!(written.len(), QUEUE);
    }
}
