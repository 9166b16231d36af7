//! Answers that are lost: what each policy makes of each, as the cloud witnessed it.

use std::time::Duration;

use graphpost::config;
use graphpost::envelope::UnknownPolicy::{self, Hold, Retry, Verify};
use graphpost::sandbox::{Limits, MAIL_READ, MAIL_READ_BASIC, MAIL_READ_WRITE, MAIL_SEND, Rule};
use graphpost::spool::{Action, QueueId, State};

use crate::rig::{DEADLINE, MAILBOX, Rig, cloud, settings, status, submission};

/// How long a copy takes to appear in Sent Items.
const SENT_ITEMS_DELAY_MS: u64 = 300;

/// Longer than any copy takes to appear, also on a slow machine.
const VERIFY_TIME: Duration = Duration::from_secs(3);

fn verifying(unknown: UnknownPolicy) -> config::Delivery {
    config::Delivery {
        unknown,
        verify_time: VERIFY_TIME,
        request_timeout: Duration::from_secs(2),
        ..settings()
    }
}

async fn rig(unknown: UnknownPolicy, reads: &str) -> Rig {
    let limits = Limits {
        sent_items_delay_ms: SENT_ITEMS_DELAY_MS,
        ..Limits::default()
    };
    let rig = Rig::with(verifying(unknown), cloud(limits).await).await;
    rig.cloud
        .change_tenant(|it| it.roles = vec![MAIL_SEND.to_owned(), reads.to_owned()]);
    rig
}

/// Every fault after which nobody can know, once with the message delivered and once without.
fn faults() -> Vec<(&'static str, bool, Rule)> {
    let answer = |code: u16| status(code, 1);
    let coded = |code: u16, word: &str| Rule {
        code: Some(word.into()),
        ..answer(code)
    };
    let late = Rule {
        delay_ms: 60_000,
        ..answer(504)
    };
    let reset = |action: &str| Rule {
        action: action.to_owned(),
        ..answer(504)
    };
    let mut table = Vec::new();
    for (name, rule) in [
        ("504", answer(504)),
        ("502", answer(502)),
        ("408", answer(408)),
        ("200", answer(200)),
        ("500-UnknownError", coded(500, "UnknownError")),
        (
            "500-ErrorInternalServerError",
            coded(500, "ErrorInternalServerError"),
        ),
        (
            "504-in-HTML",
            Rule {
                body: Some("html".to_owned()),
                ..answer(504)
            },
        ),
        ("reset-after-body", reset("reset-after-body")),
        ("timeout", late),
    ] {
        for deliver in [true, false] {
            table.push((
                name,
                deliver,
                Rule {
                    deliver,
                    ..rule.clone()
                },
            ));
        }
    }
    table.push(("reset-before-body", false, reset("reset-before-body")));
    table
}

/// Sends a message into each fault, each from a mailbox of its own, and says how often each arrived.
async fn table(rig: &Rig, ends: State) -> Vec<(&'static str, bool, usize)> {
    let faults = faults();
    let name = |name: &str, delivered: bool| format!("{name}-{delivered}").to_lowercase();
    rig.fault(
        faults
            .iter()
            .map(|(fault, delivered, rule)| Rule {
                mailbox: Some(format!("{}@contoso.com", name(fault, *delivered))),
                ..rule.clone()
            })
            .collect(),
    );
    let mut ids = Vec::new();
    for (fault, delivered, _) in &faults {
        let name = name(fault, *delivered);
        ids.push(rig.accept(&format!("{name}@contoso.com"), &name).await);
    }
    for id in ids {
        rig.wait_until(id, |it| {
            it.state == ends && (ends == State::Sent || it.due.is_none())
        })
        .await;
    }
    let deliveries = rig.cloud.deliveries();
    faults
        .iter()
        .map(|(fault, delivered, _)| {
            let subject = name(fault, *delivered);
            let count = deliveries.iter().filter(|it| it.subject == subject).count();
            (*fault, *delivered, count)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_sends_twice_rather_than_never() {
    let rig = rig(Retry, MAIL_READ_WRITE).await;
    for (fault, delivered, count) in table(&rig, State::Sent).await {
        assert_eq!(count, 1 + usize::from(delivered), "{fault} delivered={delivered}");
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_sends_once() {
    let rig = rig(Verify, MAIL_READ_BASIC).await;
    for (fault, delivered, count) in table(&rig, State::Sent).await {
        assert_eq!(count, 1, "{fault} delivered={delivered}");
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hold_never_sends_twice() {
    let rig = rig(Hold, MAIL_READ_WRITE).await;
    for (fault, delivered, count) in table(&rig, State::Unknown).await {
        assert_eq!(count, usize::from(delivered), "{fault} delivered={delivered}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_rule_overrides_the_configuration() {
    let rig = rig(Retry, MAIL_READ).await;
    let lost = || Rule {
        deliver: true,
        ..status(504, 1)
    };
    for (policy, ends, deliveries) in [
        (None, State::Sent, 2),
        (Some(Retry), State::Sent, 2),
        (Some(Verify), State::Sent, 1),
        (Some(Hold), State::Unknown, 1),
    ] {
        let subject = format!("{policy:?}");
        let mailbox = format!("m{deliveries}{}@contoso.com", subject.len());
        let mut submission = submission(&mailbox, &subject);
        submission.route.unknown = policy;
        rig.fault(vec![lost()]);
        let id = rig.accept_as(submission, &subject).await;
        rig.wait_until(id, |it| it.state == ends && it.due.is_none())
            .await;
        let arrived = rig.cloud.deliveries();
        let arrived = arrived.iter().filter(|it| it.subject == subject).count();
        assert_eq!(arrived, deliveries, "{policy:?}");
    }
    rig.stop().await;
}

/// The attempt is on the disk before the request, so the next start knows of it and does what the rule
/// says.
#[tokio::test]
async fn an_interrupted_attempt_follows_the_rule() {
    let settings = config::Delivery {
        drain_timeout: Duration::from_millis(100),
        ..verifying(Retry)
    };
    let limits = Limits {
        sent_items_delay_ms: SENT_ITEMS_DELAY_MS,
        ..Limits::default()
    };
    let rig = Rig::with(settings.clone(), cloud(limits).await).await;
    // It delivers at once, and does not say so.
    rig.fault(vec![Rule {
        action: "delay".to_owned(),
        delay_ms: 60_000,
        ..status(504, 1_000)
    }]);
    let mut ids: Vec<(UnknownPolicy, QueueId)> = Vec::new();
    for policy in [Retry, Verify, Hold] {
        let subject = format!("{policy:?}");
        let mut submission = submission(&format!("{subject}@contoso.com"), &subject);
        submission.route.unknown = Some(policy);
        ids.push((policy, rig.accept_as(submission, &subject).await));
    }
    rig.delivered(3).await;
    let (directory, cloud, left) = tokio::time::timeout(DEADLINE, rig.stop()).await.unwrap();
    assert_eq!(left, 3);

    cloud.set_faults(Vec::new()).unwrap();
    let rig = Rig::over(directory, settings, cloud).await;
    for (policy, id) in ids {
        let ends = if policy == Hold {
            State::Unknown
        } else {
            State::Sent
        };
        rig.wait_until(id, |it| it.state == ends && it.due.is_none())
            .await;
        let subject = format!("{policy:?}");
        let deliveries = rig.cloud.deliveries();
        let count = deliveries.iter().filter(|it| it.subject == subject).count();
        assert_eq!(count, if policy == Retry { 2 } else { 1 }, "{policy:?}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn without_the_permission_it_is_held_and_says_which() {
    let rig = rig(Verify, "Mail.Unrelated").await;
    rig.fault(vec![status(504, 1)]);
    let id = rig.accept(MAILBOX, "one").await;
    let entry = rig
        .wait_until(id, |it| {
            it.reason
                .as_ref()
                .is_some_and(|it| it.contains("permission") || it.contains("Mail.Read"))
        })
        .await;
    assert_eq!(entry.state, State::Unknown);
    let reason = entry.reason.unwrap();
    assert!(
        reason.starts_with("504") && reason.contains("grant") && reason.contains("Mail.ReadBasic.All"),
        "{reason}"
    );
    // The mailbox is not to blame.
    rig.accept(MAILBOX, "two").await;
    assert_eq!(rig.delivered(1).await, ["two"]);
    // The operator decides.
    rig.spool.act(id, Action::Release, "not there").await.unwrap();
    assert_eq!(rig.delivered(2).await, ["two", "one"]);
    rig.stop().await;
}

/// A rule that kept no copy when the message was accepted cannot be verified later.
#[tokio::test]
async fn without_a_copy_it_is_held() {
    let rig = rig(Verify, MAIL_READ).await;
    rig.fault(vec![status(504, 1)]);
    let mut submission = submission(MAILBOX, "one");
    submission.route.save_to_sent_items = false;
    let id = rig.accept_as(submission, "one").await;
    let entry = rig
        .wait_until(id, |it| it.state == State::Unknown && it.due.is_none())
        .await;
    assert!(entry.reason.unwrap().contains("save_to_sent_items"));
    rig.stop().await;
}

/// There are devices that give all their mail one Message-ID. The copy of one message proves nothing
/// about another.
#[tokio::test]
async fn a_namesake_in_sent_items_proves_nothing() {
    let rig = rig(Verify, MAIL_READ).await;
    let named = |subject: &str| {
        let mut submission = submission(MAILBOX, subject);
        submission.message_id = "scan@device.local".to_owned();
        submission
    };
    let first = rig.accept_as(named("first"), "first").await;
    rig.wait(first, State::Sent).await;

    rig.fault(vec![status(504, 1)]);
    let lost = rig.accept_as(named("lost"), "lost").await;
    let entry = rig
        .wait_until(lost, |it| it.state == State::Unknown && it.due.is_none())
        .await;
    assert!(entry.reason.unwrap().contains("same Message-ID"));
    assert_eq!(rig.delivered(1).await, ["first"]);
    rig.spool
        .act(lost, Action::Delete, "scanned again")
        .await
        .unwrap();

    // Two copies and one other message: one of them is this one's.
    rig.fault(vec![Rule {
        deliver: true,
        ..status(504, 1)
    }]);
    let delivered = rig.accept_as(named("delivered"), "delivered").await;
    rig.wait(delivered, State::Sent).await;
    assert_eq!(rig.delivered(2).await, ["first", "delivered"]);
    rig.stop().await;
}

/// While it is looked for, the operator may know better.
#[tokio::test]
async fn the_operator_may_decide_while_it_is_looked_for() {
    let settings = config::Delivery {
        verify_time: Duration::from_secs(3_600),
        ..verifying(Verify)
    };
    let rig = Rig::with(settings, cloud(Limits::default()).await).await;
    rig.fault(vec![status(504, 1)]);
    let id = rig.accept(MAILBOX, "one").await;
    let entry = rig.wait(id, State::Unknown).await;
    assert!(entry.due.is_some());
    rig.spool.act(id, Action::Retry, "not there").await.unwrap();
    assert_eq!(rig.delivered(1).await, ["one"]);
    rig.wait(id, State::Sent).await;
    rig.stop().await;
}

/// The cloud is away while it is looked for: that proves nothing, and passes.
#[tokio::test]
async fn an_outage_is_no_proof_of_absence() {
    let rig = rig(Verify, MAIL_READ).await;
    let unreadable = Rule {
        operation: Some("read".to_owned()),
        ..status(503, 2)
    };
    rig.fault(vec![
        Rule {
            deliver: true,
            ..status(504, 1)
        },
        Rule {
            retry_after: Some("0.1".into()),
            ..unreadable
        },
    ]);
    let id = rig.accept(MAILBOX, "one").await;
    rig.wait(id, State::Sent).await;
    assert_eq!(rig.delivered(1).await, ["one"]);
    rig.stop().await;
}
