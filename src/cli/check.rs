//! `graphpost check`: what is in order and what is not, and the step that mends it.

mod credential;
mod files;
mod host;
mod mailbox;
mod microsoft;
mod network;

use std::fmt::Write as _;
use std::io::{self, Write};

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::{ConfigFile, Failure, colours};
use crate::address::Address;
use crate::config::{Config, ConfigErrors, Environment, Findings};
use crate::diagnosis::{Diagnosis, Health};

/// Check the configuration and everything it needs
///
/// Each line begins with ok, warn, FAIL or skip; below what is not in order stands the step that mends
/// it. Run it as the user that the gateway runs as, or it tells what another user may read.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 nothing fails, 1 something does, 78 error in the configuration.\n\n\
                  Example: sudo -u graphpost graphpost check --send-to you@example.org"
)]
pub(super) struct Check {
    #[command(flatten)]
    config: ConfigFile,
    /// Ask nothing of Microsoft
    #[arg(long)]
    offline: bool,
    /// Send a message to this address from each mailbox of the sender table: only that shows for sure
    /// that the application may
    #[arg(long, value_name = "ADDRESS", conflicts_with = "offline", value_parser = address)]
    send_to: Option<Address>,
    /// Only this mailbox; may be given several times
    #[arg(long, value_name = "MAILBOX", conflicts_with = "offline")]
    mailbox: Vec<String>,
    /// As a JSON object: "checks", each with "status" (ok, warn, fail, skip), "check", "detail" and
    /// perhaps "fix"; and how many there are of each status
    #[arg(long)]
    json: bool,
}

fn address(text: &str) -> Result<Address, String> {
    Address::parse(text)
        .ok()
        .filter(|it| it.domain().is_some())
        .ok_or_else(|| "expected an address such as you@example.org".to_owned())
}

/// All that was found.
#[derive(Debug, Serialize)]
struct Report {
    checks: Vec<Diagnosis>,
    ok: usize,
    warn: usize,
    fail: usize,
    skip: usize,
}

impl Report {
    fn new(checks: Vec<Diagnosis>) -> Report {
        let count = |status| checks.iter().filter(|it| it.status == status).count();
        Report {
            ok: count(Health::Ok),
            warn: count(Health::Warn),
            fail: count(Health::Fail),
            skip: count(Health::Skip),
            checks,
        }
    }

    /// For a person: one line each, the summary last, where it is not scrolled away.
    fn text(&self, colour: bool) -> String {
        let mut text = String::new();
        let width = self
            .checks
            .iter()
            .map(|it| it.check.chars().count())
            .max()
            .unwrap_or(0);
        for line in &self.checks {
            let plain = line.text(width);
            let style = match line.status {
                Health::Ok => "32",
                Health::Warn => "33",
                Health::Fail => "1;31",
                Health::Skip => "2",
            };
            match plain.split_at_checked(4).filter(|_| colour) {
                Some((word, rest)) => {
                    let _ = write!(text, "\u{1b}[{style}m{word}\u{1b}[0m{rest}");
                }
                None => text.push_str(&plain),
            }
        }
        let _ = writeln!(
            text,
            "\n{} ok, {}, {} failed, {} skipped",
            self.ok,
            match self.warn {
                1 => "1 warning".to_owned(),
                number => format!("{number} warnings"),
            },
            self.fail,
            self.skip
        );
        text
    }
}

impl Check {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = match Config::load(&self.config.config, &Environment::of_process()) {
            Ok(config) => config,
            Err(errors) => return self.refuse(errors),
        };
        let report = Report::new(self.lines(&config, Timestamp::now())?);
        let mut out = io::stdout().lock();
        if self.json {
            let json = serde_json::to_string_pretty(&report).map_err(Failure::new)?;
            writeln!(out, "{json}")?;
        } else {
            out.write_all(report.text(colours(&io::stdout())).as_bytes())?;
        }
        out.flush()?;
        if report.fail > 0 {
            Err(Failure::Told)
        } else {
            Ok(())
        }
    }

    fn lines(&self, config: &Config, now: Timestamp) -> Result<Vec<Diagnosis>, Failure> {
        let mut lines = vec![Diagnosis::ok(
            "configuration",
            format!(
                "{}: {}, {}",
                config.path.display(),
                plural(config.listeners.len(), "listener"),
                plural(config.senders.len(), "sender rule")
            ),
        )];
        lines.extend(warnings(&config.warnings));
        lines.extend(host::user());
        lines.extend(files::configuration(config));
        lines.extend(credential::lines(&config.tenant, now));
        lines.extend(files::listeners(config, now));
        lines.extend(files::accounts(config));
        lines.extend(host::queue(config));
        lines.extend(host::addresses(config));
        if self.offline {
            lines.push(Diagnosis::skip("microsoft", "not asked: --offline"));
        } else {
            lines.extend(microsoft::lines(config, &self.mailbox, self.send_to.as_ref())?);
        }
        Ok(lines)
    }

    /// The configuration itself has errors, so nothing else can be checked.
    fn refuse(&self, errors: ConfigErrors) -> Result<(), Failure> {
        if !self.json {
            return Err(errors.into());
        }
        let findings = errors.findings();
        let lines = findings.iter().map(|it| Diagnosis {
            fix: it.help.clone(),
            ..Diagnosis::fail("configuration", described(findings, it), "")
        });
        let json = serde_json::to_string_pretty(&Report::new(lines.collect())).map_err(Failure::new)?;
        writeln!(io::stdout().lock(), "{json}")?;
        Err(Failure::Config(format!("{} has errors", findings.path())))
    }
}

fn warnings(findings: &Findings) -> Vec<Diagnosis> {
    let line = |it| Diagnosis {
        status: Health::Warn,
        ..Diagnosis::ok("configuration", described(findings, it))
    };
    findings
        .iter()
        .map(|it| Diagnosis {
            fix: it.help.clone(),
            ..line(it)
        })
        .collect()
}

/// A finding without its excerpt.
fn described(findings: &Findings, finding: &crate::config::Finding) -> String {
    let place = match (findings.line(finding), &finding.place) {
        (Some(line), _) => format!("line {line}: "),
        (None, crate::config::Place::Variable(name)) => format!("{name}: "),
        _ => String::new(),
    };
    let label = if finding.label.is_empty() {
        String::new()
    } else {
        format!(" ({})", finding.label)
    };
    format!("{place}{}{label}", finding.title)
}

fn plural(number: usize, what: &str) -> String {
    if number == 1 {
        format!("1 {what}")
    } else {
        format!("{number} {what}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_from_its_end() {
        let report = Report::new(vec![
            Diagnosis::ok("configuration", "a.toml"),
            Diagnosis::warn("disk", "2 GB free\nof 3", "make room"),
            Diagnosis::fail("key", "readable by all", "chmod 600\nchown root"),
            Diagnosis::skip("microsoft", "not asked"),
        ]);
        assert_eq!(
            report.text(false),
            "ok    configuration  a.toml\n\
             warn  disk           2 GB free\n                     of 3\n        fix: make room\n\
             FAIL  key            readable by all\n        fix: chmod 600\n             chown root\n\
             skip  microsoft      not asked\n\
             \n1 ok, 1 warning, 1 failed, 1 skipped\n"
        );
    }
}
