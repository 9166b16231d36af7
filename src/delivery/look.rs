//! `unknown = "verify"`: finds out what became of a message whose answer was lost.
//!
//! A look changes nothing: the message stays unknown on the disk until one is conclusive, so that a crash
//! in between only means another look. Found is found. Not found is believed only after several looks over
//! `verify_time`, because a copy takes its time to appear; and not after a day, because by then somebody
//! may have tidied the folder.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;

use super::verdict::Verdict;
use crate::graph::client::Graph;
use crate::graph::draft::{DraftId, Standing};
use crate::outcome::{self, Answer, Outcome};
use crate::spool::{Entry, QueueId, Settlement, Spool, SpoolError, State};

/// What our clock and Exchange's may differ by: with more than that, Entra ID gives no token.
const CLOCK_SLACK: Duration = Duration::from_secs(5 * 60);

/// The looks are spread over `verify_time`: at a sixteenth, an eighth, a quarter, half and all of it.
const FIRST_LOOK: u32 = 16;

/// After this time the folder proves nothing any more.
const BELIEVED: Duration = Duration::from_secs(24 * 60 * 60);

/// While the permission is missing, a look is only a question whether it is there now.
const NOT_PERMITTED_FIRST: Duration = Duration::from_secs(15 * 60);
const NOT_PERMITTED_MAX: Duration = Duration::from_secs(4 * 60 * 60);

/// The permission that is missing, in words for the log and the queue listing.
const GRANT: &str = "verifying needs Mail.ReadBasic.All or Mail.Read for this mailbox beside Mail.Send: grant it and it is \
     verified by itself, or decide with 'graphpost queue retry' or 'delete'";

/// What came of a look; `None` where the message is not unknown any more, because the operator has decided.
pub(super) type Looked = Result<Option<(Entry, Finding)>, SpoolError>;

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// It was sent.
    Sent,
    /// It is not in Sent Items.
    Absent,
    /// Something with its Message-ID is there, which may belong to another message.
    Namesakes,
    /// No copy is kept, so there is nothing to look for.
    NotSaved,
    /// The mailbox could not be read.
    Refused(Answer),
}

/// What follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Conclusion {
    Sent,
    /// It is not there, and would be: send it again.
    NotSent(String),
    /// Another look after this time.
    LookAgain(Duration, String),
    /// It will not be found out.
    Hold(String),
}

/// Looks once.
pub(super) async fn look(id: QueueId, spool: Spool, graph: Graph) -> Looked {
    match spool.get(id).await {
        Ok(entry) if entry.state == State::Unknown && entry.due.is_some() => find(&entry, &spool, &graph)
            .await
            .map(|finding| Some((entry, finding))),
        Ok(_) | Err(SpoolError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn find(entry: &Entry, spool: &Spool, graph: &Graph) -> Result<Finding, SpoolError> {
    let route = &entry.submission.route;
    if let Some(draft) = &entry.draft {
        match graph.standing(&route.mailbox, &DraftId(draft.clone())).await {
            Ok(Standing::Sent) => return Ok(Finding::Sent),
            Ok(Standing::Draft) => return Ok(Finding::Absent),
            // It may be on its way from the one folder to the other.
            Ok(Standing::Gone) => {}
            Err(answer) => return Ok(Finding::Refused(answer)),
        }
    } else if !route.save_to_sent_items {
        return Ok(Finding::NotSaved);
    }
    // What was there before the message was accepted is of another one.
    let since = entry.accepted.checked_sub(CLOCK_SLACK).unwrap_or(Timestamp::MIN);
    let message_id = format!("<{}>", entry.submission.message_id);
    let mut copies = match graph.sent_copies(&route.mailbox, &message_id, since).await {
        Ok(copies) => copies,
        Err(answer) => return Ok(Finding::Refused(answer)),
    };
    if entry.group_of.is_some() {
        // The other groups have the same Message-ID, and none of these recipients.
        let own: HashSet<String> = entry
            .submission
            .envelope
            .recipients
            .iter()
            .map(|it| it.as_str().to_lowercase())
            .collect();
        copies.retain(|it| it.recipients.iter().any(|it| own.contains(it)));
    }
    let copies = copies.len() as u64;
    if copies == 0 {
        return Ok(Finding::Absent);
    }
    // There are devices that give all their mail the same Message-ID: then a copy is this message's only
    // if there are more copies than others of the name.
    let namesakes = spool.namesakes(entry.id, CLOCK_SLACK).await?;
    Ok(match copies > namesakes {
        true => Finding::Sent,
        false => Finding::Namesakes,
    })
}

/// The first look comes this long after the attempt.
pub(super) fn first(verify_time: Duration) -> Duration {
    verify_time / FIRST_LOOK
}

/// What follows from a look at a message that has been unknown for so long.
pub(super) fn conclude(finding: &Finding, unknown_for: Duration, verify_time: Duration) -> Conclusion {
    let too_late = unknown_for >= BELIEVED.max(verify_time * 2);
    // Each look after twice the time of the one before, and one at the end.
    let next = || {
        unknown_for
            .max(first(verify_time))
            .min(verify_time.saturating_sub(unknown_for).max(first(verify_time)))
    };
    match finding {
        Finding::Sent => Conclusion::Sent,
        Finding::Absent if too_late => Conclusion::Hold(
            "not found in Sent Items, but looked for too late to say that it was not sent".to_owned(),
        ),
        Finding::Absent if unknown_for >= verify_time => Conclusion::NotSent(format!(
            "not in Sent Items after {} seconds",
            unknown_for.as_secs()
        )),
        Finding::Absent => Conclusion::LookAgain(next(), "not in Sent Items yet".to_owned()),
        Finding::Namesakes => Conclusion::Hold(
            "Sent Items has other messages with the same Message-ID, so that this one cannot be told from \
             them: let the application give each message an id of its own"
                .to_owned(),
        ),
        Finding::NotSaved => Conclusion::Hold(
            "cannot be verified: its rule keeps no copy in Sent Items (save_to_sent_items = false)"
                .to_owned(),
        ),
        Finding::Refused(answer) => refused(answer, unknown_for, too_late, next()),
    }
}

fn refused(answer: &Answer, unknown_for: Duration, too_late: bool, next: Duration) -> Conclusion {
    let judged = outcome::judge(answer);
    let why = super::verdict::why(&judged);
    if is_forbidden(answer) {
        let why = format!("{}; {GRANT}", said(answer));
        return match too_late {
            true => Conclusion::Hold(why),
            false => Conclusion::LookAgain(unknown_for.clamp(NOT_PERMITTED_FIRST, NOT_PERMITTED_MAX), why),
        };
    }
    match judged {
        // Graph does not take the question, and will not the next time.
        Outcome::Failed { why, .. } => {
            Conclusion::Hold(format!("Sent Items cannot be searched for it: {why}"))
        }
        _ if too_late => Conclusion::Hold(format!("Sent Items could not be read for a day: {why}")),
        _ => Conclusion::LookAgain(next, format!("Sent Items could not be read: {why}")),
    }
}

/// What the look says about the way to Graph: a reading that got no answer leaves nothing unknown, and one
/// that is not permitted says nothing about sending.
pub(super) fn trouble(finding: &Finding) -> Option<Verdict> {
    match finding {
        Finding::Refused(answer) if !is_forbidden(answer) => {
            let verdict = Verdict::of_answer(answer);
            matches!(verdict.outcome, Outcome::Deferred { .. } | Outcome::Held { .. }).then_some(verdict)
        }
        _ => None,
    }
}

fn is_forbidden(answer: &Answer) -> bool {
    matches!(answer, Answer::Response(response) if response.status == 403)
}

/// `403 ErrorAccessDenied`
fn said(answer: &Answer) -> String {
    match answer {
        Answer::Response(response) => match &response.code {
            Some(code) => format!("Sent Items may not be read ({} {code})", response.status),
            None => format!("Sent Items may not be read ({})", response.status),
        },
        _ => String::new(),
    }
}

/// Between what made a message unknown and what the looks have found out since.
const SINCE: &str = " — ";

/// What the queue records.
pub(super) fn settlement(conclusion: &Conclusion, entry: &Entry, now: Timestamp) -> Settlement {
    let what = entry.reason.as_deref().unwrap_or("its outcome is unknown");
    let what = what.split(SINCE).next().unwrap_or_default();
    let after = |wait: Duration| {
        now.checked_add(jiff::SignedDuration::try_from(wait).unwrap_or(jiff::SignedDuration::MAX))
            .unwrap_or(Timestamp::MAX)
    };
    match conclusion {
        Conclusion::Sent => Settlement::Sent,
        Conclusion::NotSent(why) => Settlement::Deferred {
            due: now,
            reason: format!("{what}{SINCE}{why}, so it is sent again"),
        },
        Conclusion::LookAgain(wait, why) => Settlement::Unknown {
            due: Some(after(*wait)),
            reason: format!("{what}{SINCE}{why}"),
        },
        Conclusion::Hold(why) => Settlement::Unknown {
            due: None,
            reason: format!("{what}{SINCE}{why}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Response;

    const VERIFY_TIME: Duration = Duration::from_secs(320);

    fn response(status: u16, code: &str) -> Finding {
        Finding::Refused(Answer::Response(Response {
            status,
            code: (!code.is_empty()).then(|| code.into()),
            ..Response::default()
        }))
    }

    fn word(finding: &Finding, seconds: u64) -> String {
        match conclude(finding, Duration::from_secs(seconds), VERIFY_TIME) {
            Conclusion::Sent => "sent".into(),
            Conclusion::NotSent(_) => "not sent".into(),
            Conclusion::LookAgain(wait, _) => format!("look in {}", wait.as_secs()),
            Conclusion::Hold(_) => "hold".into(),
        }
    }

    #[test]
    fn looks_several_times_before_it_believes() {
        let (mut at, mut looks) = (first(VERIFY_TIME).as_secs(), vec![]);
        loop {
            looks.push(at);
            match conclude(&Finding::Absent, Duration::from_secs(at), VERIFY_TIME) {
                Conclusion::LookAgain(wait, _) => at += wait.as_secs(),
                Conclusion::NotSent(_) => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(looks, [20, 40, 80, 160, 320]);
    }

    #[test]
    fn what_follows_from_a_look() {
        for (finding, seconds, want) in [
            (Finding::Sent, 1, "sent"),
            (Finding::Sent, 1_000_000, "sent"),
            (Finding::Absent, 0, "look in 20"),
            (Finding::Absent, 319, "look in 20"),
            (Finding::Absent, 320, "not sent"),
            (Finding::Absent, 86_399, "not sent"),
            (Finding::Absent, 86_400, "hold"),
            (Finding::Namesakes, 1, "hold"),
            (Finding::NotSaved, 1, "hold"),
            (response(403, "ErrorAccessDenied"), 1, "look in 900"),
            (response(403, "ErrorAccessDenied"), 3_600, "look in 3600"),
            (response(403, "ErrorAccessDenied"), 86_399, "look in 14400"),
            (response(403, "ErrorAccessDenied"), 86_400, "hold"),
            (response(400, "RequestBodyRead"), 1, "hold"),
            (response(503, ""), 40, "look in 40"),
            // An outage is no proof of absence.
            (response(503, ""), 5_000, "look in 20"),
            (response(503, ""), 86_400, "hold"),
        ] {
            assert_eq!(word(&finding, seconds), want, "{finding:?} after {seconds} s");
        }
    }

    #[test]
    fn a_missing_permission_is_named() {
        let Conclusion::LookAgain(_, why) = conclude(
            &response(403, "ErrorAccessDenied"),
            Duration::from_secs(1),
            VERIFY_TIME,
        ) else {
            panic!("it is asked again")
        };
        assert!(
            why.contains("403 ErrorAccessDenied") && why.contains("Mail.ReadBasic.All or Mail.Read"),
            "{why}"
        );
        assert_eq!(trouble(&response(403, "ErrorAccessDenied")), None);
    }

    #[test]
    fn a_lost_reading_is_no_trouble_of_the_mailbox() {
        assert_eq!(trouble(&Finding::Refused(Answer::Lost("reset".into()))), None);
        assert!(trouble(&response(429, "ApplicationThrottled")).is_some());
        assert!(trouble(&Finding::Refused(Answer::NotReached("dns".into()))).is_some());
        assert_eq!(trouble(&Finding::Absent), None);
    }
}
