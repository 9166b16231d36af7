//! Who is told of mail that does not arrive: `[bounce]`.

use std::time::Duration;

use super::Bounce;
use super::section::Section;
use super::value::{self, Problem};
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
