//! Who is told of mail that does not arrive: `[bounce]`; and of all that needs a person: `[notify]`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use secrecy::ExposeSecret as _;

use super::file::{Directories, secret};
use super::section::{Reader, Section};
use super::value::{self, Problem};
use super::{Bounce, Files, Hook, Notify, NotifyEvent, Webhook};
use crate::address::Address;

pub(super) fn bounce(mut section: Section<'_>) -> Bounce {
    let default = Bounce::default();
    let bounce = Bounce {
        to_sender: section
            .boolean("to_sender")
            .map_or(default.to_sender, |it| it.value),
        postmaster: section.text("postmaster", address).map(|it| it.value),
        warn_after: section
            .text("warn_after", warn_after)
            .map_or(default.warn_after, |it| it.value),
    };
    section.finish();
    bounce
}

pub(super) fn notify(reader: &Reader, mut section: Section<'_>, directories: &Directories<'_>) -> Notify {
    const SECOND: Duration = Duration::from_secs(1);
    let url = secret(
        reader,
        &mut section,
        directories,
        "webhook_url",
        "webhook_url_file",
    );
    let secret = secret(
        reader,
        &mut section,
        directories,
        "webhook_secret",
        "webhook_secret_file",
    );
    let webhook_timeout = section.duration("webhook_timeout", 10 * SECOND, SECOND).value;
    let command = section.list("command", |text| match text.contains('\0') {
        true => Err(Problem::new(
            "has a NUL in it",
            "no argument of a command can have one",
        )),
        false => Ok(text.to_owned()),
    });
    let command_timeout = section.duration("command_timeout", 30 * SECOND, SECOND).value;
    let events = section.list("events", event);

    let url = url.filter(|it| match value::webhook_url(it.expose_secret()) {
        Ok(()) => true,
        Err(problem) => {
            reader.problem(&section.key("webhook_url"), section.place.clone(), problem);
            false
        }
    });
    if let Some(program) = command.as_ref().and_then(|it| it.value.first())
        && let Err(problem) = program_of(&program.value, directories)
    {
        reader.problem(&program.key, program.place.clone(), problem);
    }
    section.finish();
    Notify {
        events: events.map_or_else(
            || Notify::default().events,
            |it| it.value.iter().map(|it| it.value).collect(),
        ),
        webhook: url.map(|url| Webhook {
            url,
            secret,
            timeout: webhook_timeout,
        }),
        command: command.map(|it| Hook {
            command: it.value.into_iter().map(|it| it.value).collect(),
            timeout: command_timeout,
        }),
    }
}

fn event(text: &str) -> Result<NotifyEvent, Problem> {
    let known = NotifyEvent::ALL.iter().find(|(word, _)| *word == text.trim());
    known.map(|(_, it)| *it).ok_or_else(|| {
        let words: Vec<_> = NotifyEvent::ALL
            .iter()
            .map(|(word, _)| format!("\"{word}\""))
            .collect();
        Problem::new(
            "has an unknown event",
            format!("expected any of {}", words.join(", ")),
        )
    })
}

/// Whether a command's first word is a program that can be run: there is no shell, and no PATH.
fn program_of(program: &str, directories: &Directories<'_>) -> Result<(), Problem> {
    let path = Path::new(program);
    if !path.is_absolute() {
        return Err(Problem::new(
            "does not begin with an absolute path",
            "expected e.g. \"/usr/local/bin/alert\"",
        )
        .help("there is no shell: write command = [\"/usr/local/bin/alert\", \"an argument\"]"));
    }
    if directories.files == Files::Named {
        return Ok(());
    }
    match path.metadata() {
        Ok(it) if it.is_file() && it.permissions().mode() & 0o111 != 0 => Ok(()),
        Ok(_) => Err(Problem::new(
            "names no program",
            format!("{program} is not executable"),
        )),
        Err(error) => Err(Problem::new("names no program", format!("{program}: {error}"))),
    }
}

fn address(text: &str) -> Result<Address, Problem> {
    let problem =
        |title: String| Problem::new(title, "expected an address, such as \"postmaster@contoso.com\"");
    let address = Address::parse(text.trim()).map_err(|error| problem(format!("has {error}")))?;
    match address.domain() {
        Some(_) => Ok(address),
        None => Err(problem("has no domain".to_owned())),
    }
}

fn warn_after(text: &str) -> Result<Option<Duration>, Problem> {
    match text.trim() {
        "never" => Ok(None),
        text => {
            let duration = value::duration(text).map_err(|it| match it.help {
                Some(_) => it,
                None => it.help("\"never\" turns the warnings off"),
            })?;
            if duration < Duration::from_secs(60) {
                return Err(Problem::new("is too short", "expected at least \"1m\""));
            }
            Ok(Some(duration))
        }
    }
}
