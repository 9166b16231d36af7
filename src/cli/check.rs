//! `graphpost check`: what is in order and what is not, and the step that mends it.

mod files;
mod host;

use std::fmt::Write as _;
use std::io::{self, Write};

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::{ConfigFile, Failure, colours};
use crate::config::{Config, ConfigErrors, Environment, Findings};

/// Check the configuration and everything it needs
///
/// Each line begins with ok, warn, FAIL or skip; below what is not in order stands the step that mends
/// it. Run it as the user that the gateway runs as, or it tells what another user may read.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 nothing fails, 1 something does, 78 error in the configuration.\n\n\
                  Example: sudo -u graphpost graphpost check"
)]
pub(super) struct Check {
    #[command(flatten)]
    config: ConfigFile,
    /// Ask nothing of Microsoft
    #[arg(long)]
    offline: bool,
    /// As a JSON object
    #[arg(long)]
    json: bool,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// It works, but not for ever, or not as one would wish.
    Warn,
    Fail,
    /// It could not be checked, which says nothing about how it is.
    Skip,
}

/// One line of the report. The fields are the stable names of `--json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Line {
    status: Verdict,
    /// What was checked, the same word at every run.
    check: String,
    /// What was found.
    detail: String,
    /// The step to take.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Line {
    fn ok(check: impl Into<String>, detail: impl Into<String>) -> Line {
        Line {
            status: Verdict::Ok,
            check: check.into(),
            detail: detail.into(),
            fix: None,
        }
    }

    fn warn(check: impl Into<String>, detail: impl Into<String>, fix: impl Into<String>) -> Line {
        Line {
            status: Verdict::Warn,
            fix: Some(fix.into()),
            ..Line::ok(check, detail)
        }
    }

    fn fail(check: impl Into<String>, detail: impl Into<String>, fix: impl Into<String>) -> Line {
        Line {
            status: Verdict::Fail,
            fix: Some(fix.into()),
            ..Line::ok(check, detail)
        }
    }

    fn skip(check: impl Into<String>, detail: impl Into<String>) -> Line {
        Line {
            status: Verdict::Skip,
            ..Line::ok(check, detail)
        }
    }
}

/// All that was found.
#[derive(Debug, Serialize)]
struct Report {
    checks: Vec<Line>,
    ok: usize,
    warn: usize,
    fail: usize,
    skip: usize,
}

impl Report {
    fn new(checks: Vec<Line>) -> Report {
        let count = |status| checks.iter().filter(|it| it.status == status).count();
        Report {
            ok: count(Verdict::Ok),
            warn: count(Verdict::Warn),
            fail: count(Verdict::Fail),
            skip: count(Verdict::Skip),
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
            let (word, style) = match line.status {
                Verdict::Ok => ("ok  ", "32"),
                Verdict::Warn => ("warn", "33"),
                Verdict::Fail => ("FAIL", "1;31"),
                Verdict::Skip => ("skip", "2"),
            };
            let word = if colour {
                format!("\u{1b}[{style}m{word}\u{1b}[0m")
            } else {
                word.to_owned()
            };
            // A detail of several lines stays below itself.
            let indent = format!("\n{:width$}", "", width = width + 8);
            let detail = line.detail.replace('\n', &indent);
            let _ = writeln!(text, "{word}  {:width$}  {detail}", line.check);
            if let Some(fix) = &line.fix {
                let _ = writeln!(text, "        fix: {}", fix.replace('\n', "\n             "));
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
        let report = Report::new(self.lines(&config, Timestamp::now()));
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

    fn lines(&self, config: &Config, now: Timestamp) -> Vec<Line> {
        let mut lines = vec![Line::ok(
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
        lines.extend(files::credential(config, now));
        lines.extend(files::listeners(config, now));
        lines.extend(files::accounts(config));
        lines.extend(host::queue(config));
        lines.extend(host::addresses(config));
        if self.offline {
            lines.push(Line::skip("microsoft", "not asked: --offline"));
        } else {
            lines.push(Line::skip(
                "microsoft",
                "not asked by this version: 'graphpost send' tries the token and the mailbox for real",
            ));
        }
        lines
    }

    /// The configuration itself has errors, so nothing else can be checked.
    fn refuse(&self, errors: ConfigErrors) -> Result<(), Failure> {
        if !self.json {
            return Err(errors.into());
        }
        let findings = errors.findings();
        let lines = findings.iter().map(|it| Line {
            fix: it.help.clone(),
            ..Line::fail("configuration", described(findings, it), "")
        });
        let json = serde_json::to_string_pretty(&Report::new(lines.collect())).map_err(Failure::new)?;
        writeln!(io::stdout().lock(), "{json}")?;
        Err(Failure::Config(format!("{} has errors", findings.path())))
    }
}

fn warnings(findings: &Findings) -> Vec<Line> {
    let line = |it| Line {
        status: Verdict::Warn,
        ..Line::ok("configuration", described(findings, it))
    };
    findings
        .iter()
        .map(|it| Line {
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
            Line::ok("configuration", "a.toml"),
            Line::warn("disk", "2 GB free\nof 3", "make room"),
            Line::fail("key", "readable by all", "chmod 600\nchown root"),
            Line::skip("microsoft", "not asked"),
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
