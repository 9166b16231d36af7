//! What is found out about the gateway and what it needs: in the report of `graphpost check`, in the
//! readiness details, on the status page, with the same words. Pure.
//!
//! A reason, wherever one is kept or logged, is one line: what is the matter, and, where someone can
//! mend it, `; fix: ` and the step to take.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What stands between what is the matter and the step to take.
const FIX: &str = "; fix: ";

/// From so many days before its end a certificate is a warning, and then a failure: it is still good,
/// but there is hardly time left to replace it in peace.
const WARN_DAYS: i64 = 30;
const FAIL_DAYS: i64 = 7;

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// In order.
    Ok,
    /// It works, but not for ever, or not as one would wish.
    Warn,
    /// It does not work, or will not much longer.
    Fail,
    /// It could not be checked, which says nothing about how it is.
    Skip,
}

impl Health {
    /// The word in the metrics: that of the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Health::Ok => "ok",
            Health::Warn => "warn",
            Health::Fail => "fail",
            Health::Skip => "skip",
        }
    }
}

/// One thing that was found. The fields are the stable names of the JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// How it is.
    pub status: Health,
    /// What was checked, the same words at every run.
    pub check: String,
    /// What was found.
    pub detail: String,
    /// The step to take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Diagnosis {
    /// It is in order.
    pub fn ok(check: impl Into<String>, detail: impl Into<String>) -> Diagnosis {
        Diagnosis {
            status: Health::Ok,
            check: check.into(),
            detail: detail.into(),
            fix: None,
        }
    }

    /// It works, but.
    pub fn warn(check: impl Into<String>, detail: impl Into<String>, fix: impl Into<String>) -> Diagnosis {
        Diagnosis {
            status: Health::Warn,
            fix: Some(fix.into()),
            ..Diagnosis::ok(check, detail)
        }
    }

    /// It does not work.
    pub fn fail(check: impl Into<String>, detail: impl Into<String>, fix: impl Into<String>) -> Diagnosis {
        Diagnosis {
            status: Health::Fail,
            fix: Some(fix.into()),
            ..Diagnosis::ok(check, detail)
        }
    }

    /// It was not checked, for this reason.
    pub fn skip(check: impl Into<String>, detail: impl Into<String>) -> Diagnosis {
        Diagnosis {
            status: Health::Skip,
            ..Diagnosis::ok(check, detail)
        }
    }

    /// From a reason as it is kept and logged.
    pub fn of_reason(status: Health, check: impl Into<String>, reason: &str) -> Diagnosis {
        let (detail, fix) = parts(reason);
        Diagnosis {
            status,
            fix: fix.map(str::to_owned),
            ..Diagnosis::ok(check, detail)
        }
    }

    /// One line, and one for the step to take; `width` is how much room the name gets.
    pub fn text(&self, width: usize) -> String {
        let word = match self.status {
            Health::Ok => "ok  ",
            Health::Warn => "warn",
            Health::Fail => "FAIL",
            Health::Skip => "skip",
        };
        // A detail of several lines stays below itself.
        let indent = format!("\n{:width$}", "", width = width + 8);
        let detail = self.detail.replace('\n', &indent);
        let mut text = format!("{word}  {:width$}  {detail}\n", self.check);
        if let Some(fix) = &self.fix {
            text.push_str(&format!(
                "        fix: {}\n",
                fix.replace('\n', "\n             ")
            ));
        }
        text
    }

    /// How much longer a certificate lasts. `renew` is how to get another.
    pub fn expiry(check: impl Into<String>, not_after: Timestamp, renew: &str, now: Timestamp) -> Diagnosis {
        let left = not_after.duration_since(now);
        let days = left.as_hours() / 24;
        let detail = if left.is_negative() {
            format!("expired on {not_after}")
        } else {
            let plural = if days == 1 { "" } else { "s" };
            format!("expires in {days} day{plural}, on {not_after}")
        };
        if left.is_negative() || days <= FAIL_DAYS {
            Diagnosis::fail(check, detail, renew)
        } else if days <= WARN_DAYS {
            Diagnosis::warn(check, detail, renew)
        } else {
            Diagnosis::ok(check, detail)
        }
    }
}

/// A reason in one line.
pub fn reason(what: &str, fix: &str) -> String {
    // Microsoft ends its sentences.
    format!("{}{FIX}{fix}", what.strip_suffix('.').unwrap_or(what))
}

/// The two parts of a reason.
pub fn parts(reason: &str) -> (&str, Option<&str>) {
    // What others said stands in the first part, and may have anything in it.
    match reason.rsplit_once(FIX) {
        Some((what, fix)) => (what, Some(fix)),
        None => (reason, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_has_two_parts() {
        for (text, what, fix) in [
            ("403; fix: grant it", "403", Some("grant it")),
            ("no answer", "no answer", None),
            ("said '; fix: x'; fix: y", "said '; fix: x'", Some("y")),
            ("", "", None),
        ] {
            assert_eq!(parts(text), (what, fix));
        }
        assert_eq!(parts(&reason("a", "b")), ("a", Some("b")));
        assert_eq!(reason("Denied.", "grant it"), "Denied; fix: grant it");
    }

    #[test]
    fn an_end_is_seen_from_afar() {
        let now: Timestamp = "2026-01-31T12:00:00Z".parse().expect("a time");
        for (end, status, detail) in [
            ("2027-01-31T12:00:00Z", Health::Ok, "expires in 365 days"),
            ("2026-03-02T12:00:00Z", Health::Warn, "expires in 30 days"),
            ("2026-02-07T12:00:00Z", Health::Fail, "expires in 7 days"),
            ("2026-02-01T12:00:00Z", Health::Fail, "expires in 1 day,"),
            ("2026-01-31T13:00:00Z", Health::Fail, "expires in 0 days"),
            ("2026-01-31T11:00:00Z", Health::Fail, "expired on 2026-01-31"),
        ] {
            let found = Diagnosis::expiry("credential", end.parse().expect("a time"), "renew", now);
            assert_eq!(found.status, status, "{end}");
            assert!(found.detail.starts_with(detail), "{}", found.detail);
        }
    }
}
