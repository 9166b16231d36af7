//! Which certificate is about to end, and when to say so. Pure: the time is an argument.
//!
//! A certificate is spoken of once at each threshold. What has been said is remembered for as long as
//! the process runs, so a certificate that is below a threshold already is spoken of at the start too.

use std::collections::HashMap;
use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::certificate::Certificate;

/// Days left at which a certificate is spoken of; at 0 it has expired. Falling.
pub const THRESHOLDS: [i64; 6] = [30, 14, 7, 3, 1, 0];

/// As many certificates as are remembered at most. Each renewal adds one.
const REMEMBERED_MAX: usize = 256;

/// How the certificate of the application is replaced.
pub const RENEW_APPLICATION: &str = "graphpost cert new --out DIR, upload the new certificate beside this one, name it \
                                     in [tenant.next_credential], and reload";
/// How the certificate of a listener is replaced.
pub const RENEW_LISTENER: &str = "get a new certificate, then: systemctl reload graphpost";

/// What a certificate is used for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UsedFor {
    /// It proves the application to Entra ID: `current` or `next`.
    Application(String),
    /// The TLS of the listener of this name.
    Listener(String),
}

impl UsedFor {
    /// How it is replaced.
    pub fn renewal(&self) -> &'static str {
        match self {
            UsedFor::Application(_) => RENEW_APPLICATION,
            UsedFor::Listener(_) => RENEW_LISTENER,
        }
    }
}

impl fmt::Display for UsedFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UsedFor::Application(credential) => write!(f, "application ({credential})"),
            UsedFor::Listener(name) => write!(f, "listener {name}"),
        }
    }
}

/// A certificate whose end is watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// What it is used for.
    pub used_for: UsedFor,
    /// Its subject.
    pub subject: String,
    /// Its SHA-1 thumbprint, as the portal shows it.
    pub thumbprint: String,
    /// When it ends.
    pub not_after: Timestamp,
}

impl Watched {
    /// A certificate in use.
    pub fn new(used_for: UsedFor, certificate: &Certificate) -> Watched {
        Watched {
            used_for,
            subject: certificate.subject.clone(),
            thumbprint: certificate.sha1_thumbprint(),
            not_after: certificate.not_after,
        }
    }
}

/// A certificate that is about to end, or has ended: worth telling an operator now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Expiring {
    /// Everything it is used for.
    pub used_for: Vec<UsedFor>,
    /// Its subject.
    pub subject: String,
    /// Its SHA-1 thumbprint.
    pub thumbprint: String,
    /// When it ends.
    pub not_after: Timestamp,
    /// Whole days until then; negative once it has ended.
    pub days_left: i64,
    /// The one of [`THRESHOLDS`] that has been reached.
    pub threshold: i64,
}

impl Expiring {
    /// Whether it has ended.
    pub fn has_expired(&self) -> bool {
        self.threshold == 0
    }

    /// What it is used for, in words: `application (current), listener relay`.
    pub fn uses(&self) -> String {
        let uses: Vec<String> = self.used_for.iter().map(UsedFor::to_string).collect();
        uses.join(", ")
    }
}

/// Whole days left, rounded down: negative from the instant after the end.
pub fn days_left(now: Timestamp, not_after: Timestamp) -> i64 {
    // Certificates know no fractions of a second: one that has just been made has all its days. But the
    // second of its end is its last.
    let begun = i64::from(now > not_after && now.subsec_nanosecond() > 0);
    (not_after.as_second() - now.as_second() - begun).div_euclid(86_400)
}

/// The threshold to speak of now, if any: the lowest that has been reached, unless it or a lower one was
/// spoken of already.
pub fn due(now: Timestamp, not_after: Timestamp, last_said: Option<i64>) -> Option<i64> {
    let left = not_after.duration_since(now);
    let reached = THRESHOLDS.into_iter().rev().find(|days| match days {
        // `notAfter` is the last instant at which a certificate is valid (RFC 5280 §4.1.2.5).
        0 => left.is_negative(),
        days => left <= SignedDuration::from_hours(24 * days),
    })?;
    last_said.is_none_or(|said| reached < said).then_some(reached)
}

/// What was said of which certificate.
#[derive(Debug, Default)]
pub struct Watch {
    /// By thumbprint: the lowest threshold spoken of.
    said: HashMap<String, i64>,
}

impl Watch {
    /// Looks at all certificates in use, and gives those to speak of now, each once, however many uses it
    /// has.
    pub fn look(&mut self, now: Timestamp, certificates: &[Watched]) -> Vec<Expiring> {
        let mut found: Vec<Expiring> = Vec::new();
        for it in certificates {
            if let Some(known) = found.iter_mut().find(|known| known.thumbprint == it.thumbprint) {
                known.used_for.push(it.used_for.clone());
                continue;
            }
            let last_said = self.said.get(&it.thumbprint).copied();
            let Some(threshold) = due(now, it.not_after, last_said) else {
                continue;
            };
            found.push(Expiring {
                used_for: vec![it.used_for.clone()],
                subject: it.subject.clone(),
                thumbprint: it.thumbprint.clone(),
                not_after: it.not_after,
                days_left: days_left(now, it.not_after),
                threshold,
            });
        }
        if self.said.len() + found.len() > REMEMBERED_MAX {
            self.said
                .retain(|said, _| certificates.iter().any(|it| it.thumbprint == *said));
        }
        for it in &found {
            self.said.insert(it.thumbprint.clone(), it.threshold);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn watched(used_for: UsedFor, thumbprint: &str, not_after: Timestamp) -> Watched {
        Watched {
            used_for,
            subject: "CN=graphpost".to_owned(),
            thumbprint: thumbprint.to_owned(),
            not_after,
        }
    }

    fn current() -> UsedFor {
        UsedFor::Application("current".to_owned())
    }

    #[test]
    fn speaks_at_each_threshold_and_not_between() {
        let end = time("2026-12-31T12:00:00Z");
        for (now, last_said, want) in [
            ("2026-12-01T11:59:59Z", None, None),
            ("2026-12-01T12:00:00Z", None, Some(30)),
            ("2026-12-01T12:00:00Z", Some(30), None),
            ("2026-12-17T11:59:59Z", Some(30), None),
            ("2026-12-17T12:00:00Z", Some(30), Some(14)),
            ("2026-12-24T12:00:00Z", Some(14), Some(7)),
            ("2026-12-28T12:00:00Z", Some(7), Some(3)),
            ("2026-12-30T12:00:00Z", Some(3), Some(1)),
            ("2026-12-31T11:59:59Z", Some(1), None),
            // The last instant at which it is valid.
            ("2026-12-31T12:00:00Z", Some(1), None),
            ("2026-12-31T12:00:00Z", None, Some(1)),
            ("2026-12-31T12:00:01Z", Some(1), Some(0)),
            ("2027-12-31T12:00:00Z", Some(0), None),
            // At the start everything is news, and only the last threshold counts.
            ("2026-12-27T00:00:00Z", None, Some(7)),
            ("2027-12-31T12:00:00Z", None, Some(0)),
            // Asleep for a week: only where we are now.
            ("2026-12-31T00:00:00Z", Some(14), Some(1)),
            // A clock that is set back is no news.
            ("2026-12-01T12:00:00Z", Some(7), None),
        ] {
            assert_eq!(due(time(now), end, last_said), want, "{now} {last_said:?}");
        }
    }

    #[test]
    fn counts_days_down_to_the_end_and_on() {
        let end = time("2026-12-31T12:00:00Z");
        for (now, want) in [
            ("2026-12-01T12:00:00Z", 30),
            ("2026-12-01T12:00:00.999Z", 30),
            ("2026-12-01T12:00:01Z", 29),
            ("2026-12-31T12:00:00Z", 0),
            ("2026-12-31T12:00:00.001Z", -1),
            ("2026-12-31T12:00:01Z", -1),
            ("2027-01-01T12:00:00Z", -1),
            ("2027-01-01T12:00:00.001Z", -2),
            ("2027-01-01T12:00:01Z", -2),
        ] {
            assert_eq!(days_left(time(now), end), want, "{now}");
        }
    }

    #[test]
    fn says_each_thing_once_for_each_certificate() {
        let end = time("2026-12-31T12:00:00Z");
        let mut watch = Watch::default();
        let listener = |name: &str| UsedFor::Listener(name.to_owned());
        let all = [
            watched(current(), "A", end),
            watched(listener("relay"), "B", time("2027-12-31T12:00:00Z")),
            watched(listener("submission"), "A", end),
        ];
        assert_eq!(watch.look(time("2026-11-01T00:00:00Z"), &all), []);

        let said = watch.look(time("2026-12-20T12:00:00Z"), &all);
        assert_eq!(said.len(), 1);
        assert_eq!(said[0].uses(), "application (current), listener submission");
        assert_eq!((said[0].threshold, said[0].days_left), (14, 11));
        assert!(!said[0].has_expired());
        assert_eq!(watch.look(time("2026-12-20T12:01:00Z"), &all), []);
        // What a vault gave may be away for a while; that makes it no news.
        assert_eq!(watch.look(time("2026-12-20T12:02:00Z"), &[]), []);
        assert_eq!(watch.look(time("2026-12-20T12:03:00Z"), &all), []);

        // A new certificate is looked at anew.
        let renewed = [watched(current(), "C", time("2026-12-25T12:00:00Z"))];
        assert_eq!(watch.look(time("2026-12-20T12:04:00Z"), &renewed)[0].threshold, 7);

        let said = watch.look(time("2027-01-02T12:00:00Z"), &all);
        assert!(said[0].has_expired());
        assert_eq!(said[0].days_left, -2);
    }

    #[test]
    fn remembers_a_bounded_number() {
        let end = time("2026-12-31T12:00:00Z");
        let now = time("2026-12-31T00:00:00Z");
        let mut watch = Watch::default();
        for number in 0..1000 {
            let all = [
                watched(current(), "A", end),
                watched(UsedFor::Application("next".to_owned()), &number.to_string(), end),
            ];
            let said = watch.look(now, &all);
            assert_eq!(said.len(), if number == 0 { 2 } else { 1 });
        }
        assert!(watch.said.len() <= REMEMBERED_MAX);
    }

    #[test]
    fn thresholds_fall_to_the_end() {
        assert!(THRESHOLDS.is_sorted_by(|a, b| a > b));
        assert_eq!(THRESHOLDS.last(), Some(&0));
    }
}
