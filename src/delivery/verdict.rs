//! What an attempt's result means for the message, its mailbox and the tenant. ○

use std::time::Duration;

use super::attempt::AttemptResult;
use crate::outcome::{self, Answer, Closes, Outcome};
use crate::schedule::{Retry, Trouble, Way};

/// The waits of a message that an operator must mend: nobody is in a hurry to see it refused again.
const HELD_FIRST: Duration = Duration::from_secs(15 * 60);
const HELD_MAX: Duration = Duration::from_secs(4 * 60 * 60);

/// An outcome, and what else follows from the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub outcome: Outcome,
    pub way: Way,
    /// What is closed, and why.
    pub trouble: Option<(Scope, Trouble)>,
    /// The HTTP status.
    pub code: Option<u16>,
    pub request_id: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Mailbox,
    Tenant,
}

impl Verdict {
    pub(super) fn of(result: &AttemptResult) -> Verdict {
        match result {
            AttemptResult::Answered(answer) => Verdict::of_answer(answer),
            // RFC 3463 §3.4: message too big for system.
            AttemptResult::Unsendable(error) => Verdict::not_sent(Outcome::Failed {
                why: error.to_string(),
                enhanced: "5.3.4",
            }),
            AttemptResult::Defect(why) => Verdict::not_sent(Outcome::Held {
                why: format!("an internal error in its conversion: {why}; please report it"),
                closes: Closes::Message,
            }),
        }
    }

    fn not_sent(outcome: Outcome) -> Verdict {
        Verdict {
            outcome,
            way: Way::NotSent,
            trouble: None,
            code: None,
            request_id: None,
        }
    }

    pub(super) fn of_answer(answer: &Answer) -> Verdict {
        let outcome = outcome::judge(answer);
        let (code, request_id) = match answer.cause() {
            Answer::Response(response) => (Some(response.status), response.request_id.clone()),
            _ => (None, None),
        };
        let throttled = answer.is_throttling();
        let way = match (&outcome, answer.cause()) {
            (_, Answer::NotReached(_) | Answer::NoToken { .. }) => Way::NotSent,
            _ if throttled => Way::Throttled,
            (Outcome::Sent | Outcome::Failed { .. }, _) => Way::Clear,
            // Graph had a word to say about this message, so it works.
            (
                Outcome::Held {
                    closes: Closes::Message,
                    ..
                },
                _,
            ) => Way::Clear,
            _ => Way::Unclear,
        };
        let outage = if throttled {
            Trouble::Throttled
        } else {
            Trouble::Outage
        };
        let trouble = match &outcome {
            Outcome::Sent | Outcome::Failed { .. } => None,
            Outcome::Deferred { closes, .. } => scope(*closes).map(|it| (it, outage)),
            Outcome::Held { closes, .. } => scope(*closes).map(|it| (it, Trouble::Hold)),
            // Where one answer was lost the next may be, and each may be a duplicate: one at a time.
            Outcome::Unknown { .. } => Some((Scope::Mailbox, Trouble::Outage)),
        };
        Verdict {
            outcome,
            way,
            trouble,
            code,
            request_id,
        }
    }

    /// Why, in words; empty for success.
    pub(super) fn why(&self) -> &str {
        why(&self.outcome)
    }

    /// How long the answer asks us to leave the mailbox or the tenant alone.
    pub(super) fn closed_for(&self) -> Option<Duration> {
        match &self.outcome {
            Outcome::Deferred { not_before, .. } => *not_before,
            _ => None,
        }
    }

    /// How long the message itself waits after so many attempts. It waits no longer than the mailbox
    /// or the tenant where the trouble is not its own: then it is simply the oldest of many.
    pub(super) fn wait(&self, retry: Retry, attempts: u32, random: f64) -> Duration {
        match &self.outcome {
            Outcome::Sent | Outcome::Failed { .. } => Duration::ZERO,
            Outcome::Unknown { .. } => retry.wait(attempts, random),
            Outcome::Deferred {
                not_before,
                closes: Closes::Message,
                ..
            } => retry
                .wait(attempts, random)
                .max(not_before.unwrap_or(Duration::ZERO)),
            Outcome::Deferred { .. } if self.way == Way::Unclear => retry.wait(attempts, random),
            Outcome::Deferred { .. } => Duration::ZERO,
            Outcome::Held {
                closes: Closes::Message,
                ..
            } => Retry {
                first: HELD_FIRST,
                max: HELD_MAX,
            }
            .wait(attempts, random),
            Outcome::Held { .. } => Duration::ZERO,
        }
    }

    /// Whether a message is given up for this after its lifetime. What an operator must mend never fails
    /// mail, however long it takes: to give it up is for the operator, too.
    pub(super) fn counts_against_lifetime(&self) -> bool {
        !matches!(self.outcome, Outcome::Held { .. })
    }
}

fn scope(closes: Closes) -> Option<Scope> {
    match closes {
        Closes::Message => None,
        Closes::Mailbox => Some(Scope::Mailbox),
        Closes::Tenant => Some(Scope::Tenant),
    }
}

/// Why, in words; empty for success.
pub(super) fn why(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Sent => "",
        Outcome::Deferred { why, .. }
        | Outcome::Held { why, .. }
        | Outcome::Failed { why, .. }
        | Outcome::Unknown { why } => why,
    }
}

/// The reason of a message that is given up for its age.
pub(super) fn expired(lifetime: Duration, why: &str) -> String {
    let seconds = lifetime.as_secs();
    let age = match seconds {
        0..120 => format!("{seconds} seconds"),
        120..7_200 => format!("{} minutes", seconds / 60),
        7_200..172_800 => format!("{} hours", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    };
    format!("not delivered within {age}; the last attempt said: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Api;
    use crate::outcome::Response;

    fn answer(status: u16, code: &str) -> AttemptResult {
        AttemptResult::Answered(Answer::Response(Response {
            status,
            code: (!code.is_empty()).then(|| code.into()),
            ..Response::default()
        }))
    }

    fn no_token(credential: bool) -> AttemptResult {
        AttemptResult::Answered(Answer::NoToken {
            why: "AADSTS700027".into(),
            credential,
            retry_after: None,
        })
    }

    #[test]
    fn what_follows() {
        use Scope::{Mailbox, Tenant};
        use Trouble::{Hold, Outage, Throttled};
        for (result, way, trouble) in [
            (answer(202, ""), Way::Clear, None),
            (answer(400, "ErrorInvalidRecipients"), Way::Clear, None),
            (answer(403, "ErrorSendAsDenied"), Way::Clear, None),
            (
                answer(403, "ErrorAccessDenied"),
                Way::Unclear,
                Some((Mailbox, Hold)),
            ),
            (
                answer(429, "ApplicationThrottled"),
                Way::Throttled,
                Some((Mailbox, Throttled)),
            ),
            (answer(503, ""), Way::Unclear, Some((Mailbox, Outage))),
            (answer(504, ""), Way::Unclear, Some((Mailbox, Outage))),
            (answer(200, ""), Way::Unclear, Some((Mailbox, Outage))),
            (answer(407, ""), Way::Unclear, Some((Tenant, Hold))),
            (
                AttemptResult::Answered(Answer::NotReached("dns".into())),
                Way::NotSent,
                Some((Tenant, Outage)),
            ),
            (
                AttemptResult::Answered(Answer::Lost("reset".into())),
                Way::Unclear,
                Some((Mailbox, Outage)),
            ),
            (no_token(true), Way::NotSent, Some((Tenant, Hold))),
            (no_token(false), Way::NotSent, Some((Tenant, Outage))),
            (
                AttemptResult::Unsendable(crate::convert::ConvertError::TooLarge {
                    request: 2,
                    limit: 1,
                    api: Api::Graph,
                }),
                Way::NotSent,
                None,
            ),
            (AttemptResult::Defect("boom".into()), Way::NotSent, None),
        ] {
            let verdict = Verdict::of(&result);
            assert_eq!((verdict.way, verdict.trouble), (way, trouble), "{result:?}");
        }
    }

    #[test]
    fn what_is_held_never_fails() {
        assert!(!Verdict::of(&no_token(true)).counts_against_lifetime());
        assert!(Verdict::of(&no_token(false)).counts_against_lifetime());
        assert!(!Verdict::of(&answer(403, "ErrorAccessDenied")).counts_against_lifetime());
        assert!(!Verdict::of(&answer(403, "ErrorSendAsDenied")).counts_against_lifetime());
        assert!(Verdict::of(&answer(503, "")).counts_against_lifetime());
    }

    #[test]
    fn a_message_waits_for_its_own_troubles_only() {
        let retry = Retry {
            first: Duration::from_secs(60),
            max: Duration::from_secs(3600),
        };
        let wait = |result, attempts| Verdict::of(&result).wait(retry, attempts, 0.5).as_secs();
        assert_eq!(wait(answer(504, ""), 1), 60);
        assert_eq!(wait(answer(504, ""), 3), 240);
        assert_eq!(wait(answer(503, ""), 2), 120);
        assert_eq!(wait(answer(429, ""), 9), 0);
        assert_eq!(wait(no_token(true), 9), 0);
        assert_eq!(wait(answer(403, "ErrorAccessDenied"), 9), 0);
        assert_eq!(wait(answer(403, "ErrorSendAsDenied"), 1), 15 * 60);
    }

    #[test]
    fn says_how_long_it_tried() {
        let said = |seconds| expired(Duration::from_secs(seconds), "503");
        assert_eq!(
            said(432_000),
            "not delivered within 5 days; the last attempt said: 503"
        );
        assert_eq!(
            said(2),
            "not delivered within 2 seconds; the last attempt said: 503"
        );
    }
}
