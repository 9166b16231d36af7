//! What becomes of a message by Graph's answer.

use std::time::Duration;

use graphpost::config::{self, UnknownPolicy};
use graphpost::sandbox::{Limits, Rule};
use graphpost::spool::State;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::rig::{MAILBOX, Rig, cloud, code, settings, status};

#[tokio::test]
async fn sends_and_keeps_the_record() {
    let rig = Rig::new().await;
    let id = rig.accept(MAILBOX, "one").await;
    assert_eq!(rig.delivered(1).await, ["one"]);
    let entry = rig.wait(id, State::Sent).await;
    assert_eq!(entry.attempts, 1);
    let delivery = &rig.cloud.deliveries()[0];
    assert_eq!(entry.request_id.as_ref(), Some(&delivery.request_id));
    assert_eq!(delivery.mailbox, MAILBOX);
    assert_eq!(delivery.recipients, ["ann@example.com"]);
    assert_eq!(delivery.internet_message_id, "<one@erp.example>");
    rig.stop().await;
}

#[tokio::test]
async fn obeys_retry_after_in_every_form() {
    let rig = Rig::new().await;
    let in_a_second = (Timestamp::now() + SignedDuration::from_secs(2))
        .strftime("%a, %d %b %Y %H:%M:%S GMT")
        .to_string();
    for (number, (retry_after, least_ms)) in [(json!(1), 1000), (json!("0.4"), 400), (json!(in_a_second), 0)]
        .into_iter()
        .enumerate()
    {
        rig.fault(vec![Rule {
            retry_after: Some(retry_after.clone()),
            ..code(429, "ApplicationThrottled", 1)
        }]);
        let begun = Timestamp::now();
        let id = rig.accept(MAILBOX, &format!("m{number}")).await;
        rig.delivered(number + 1).await;
        assert_eq!(rig.wait(id, State::Sent).await.attempts, 2, "{retry_after}");
        let took = rig.cloud.deliveries()[number].received.duration_since(begun);
        assert!(
            took >= SignedDuration::from_millis(least_ms),
            "{retry_after}: {took}"
        );
    }
    assert_eq!(rig.cloud.deliveries().len(), 3);
    rig.stop().await;
}

#[tokio::test]
async fn throttled_without_retry_after_leaves_the_mailbox_alone() {
    let rig = Rig::new().await;
    rig.fault(vec![code(429, "ApplicationThrottled", 1)]);
    let id = rig.accept(MAILBOX, "one").await;
    let entry = rig.wait_until(id, |it| it.reason.is_some()).await;
    assert_eq!(entry.state, State::Queued);
    let wait = entry.due.unwrap().duration_since(entry.changed);
    assert!(wait > SignedDuration::from_secs(20), "{wait}");
    let state = rig.control.state().await.unwrap();
    assert_eq!(state.lanes[0].closed.as_ref().unwrap().because, "throttled");
    assert_eq!(state.closed, None);
    rig.stop().await;
}

#[tokio::test]
async fn comes_back_after_an_outage() {
    let rig = Rig::new().await;
    rig.fault(vec![Rule {
        retry_after: Some(json!(0)),
        ..status(503, 3)
    }]);
    let id = rig.accept(MAILBOX, "one").await;
    rig.delivered(1).await;
    assert_eq!(rig.wait(id, State::Sent).await.attempts, 4);
    rig.stop().await;
}

#[tokio::test]
async fn a_refused_token_is_replaced_within_the_attempt() {
    let rig = Rig::new().await;
    rig.accept(MAILBOX, "one").await;
    rig.delivered(1).await;
    rig.fault(vec![Rule {
        operation: Some("sendMail".to_owned()),
        count: Some(1),
        action: "expire-tokens".to_owned(),
        ..Rule::default()
    }]);
    let id = rig.accept(MAILBOX, "two").await;
    rig.delivered(2).await;
    assert_eq!(rig.wait(id, State::Sent).await.attempts, 1);
    rig.stop().await;
}

/// Lost after delivery: a second copy, with the same Message-ID, rather than none.
#[tokio::test]
async fn an_unknown_outcome_is_tried_again() {
    let rig = Rig::new().await;
    let lost = |rule: Rule| Rule {
        deliver: true,
        ..rule
    };
    let reset = Rule {
        operation: Some("sendMail".to_owned()),
        count: Some(1),
        action: "reset-after-body".to_owned(),
        ..Rule::default()
    };
    for (number, rule) in [
        lost(status(504, 1)),
        lost(code(500, "UnknownError", 1)),
        lost(reset),
    ]
    .into_iter()
    .enumerate()
    {
        rig.fault(vec![rule.clone()]);
        let id = rig.accept(MAILBOX, &format!("m{number}")).await;
        rig.delivered(2 * number + 2).await;
        assert_eq!(rig.wait(id, State::Sent).await.attempts, 2, "{rule:?}");
        let deliveries = rig.cloud.deliveries();
        let [first, second] = &deliveries[2 * number..] else {
            panic!("two copies")
        };
        assert_eq!(first.internet_message_id, second.internet_message_id);
    }
    rig.stop().await;
}

#[tokio::test]
async fn an_unknown_outcome_waits_for_the_operator_where_that_is_the_policy() {
    let settings = config::Delivery {
        unknown: UnknownPolicy::Hold,
        ..settings()
    };
    let rig = Rig::with(settings, cloud(Limits::default()).await).await;
    rig.fault(vec![Rule {
        deliver: true,
        ..status(504, 1)
    }]);
    let id = rig.accept(MAILBOX, "one").await;
    let entry = rig.wait(id, State::Unknown).await;
    assert_eq!((entry.attempts, entry.due), (1, None));
    // The mailbox goes on with the next message.
    rig.accept(MAILBOX, "two").await;
    assert_eq!(rig.delivered(2).await, ["one", "two"]);
    rig.stop().await;
}

/// 200 has been seen for mail that was never sent.
#[tokio::test]
async fn only_202_is_success() {
    let rig = Rig::new().await;
    rig.fault(vec![status(200, 1)]);
    let id = rig.accept(MAILBOX, "one").await;
    assert_eq!(rig.delivered(1).await, ["one"]);
    assert_eq!(rig.wait(id, State::Sent).await.attempts, 2);
    rig.stop().await;
}

#[tokio::test]
async fn what_graph_refuses_for_good_fails_alone() {
    let rig = Rig::new().await;
    rig.fault(vec![code(400, "ErrorInvalidRecipients", 1)]);
    let bad = rig.accept(MAILBOX, "bad").await;
    let entry = rig.wait(bad, State::Failed).await;
    assert!(entry.reason.unwrap().contains("ErrorInvalidRecipients"));
    assert!(entry.request_id.is_some());
    rig.accept(MAILBOX, "good").await;
    // Beside the two who are told about the bad one.
    assert!(rig.delivered(3).await.contains(&"good".to_owned()));
    assert_eq!(rig.control.state().await.unwrap().troubles.len(), 1);
    rig.stop().await;
}

/// The one that is tried, and those that wait behind it.
#[tokio::test]
async fn a_lifetime_ends() {
    let settings = config::Delivery {
        lifetime: Duration::from_millis(300),
        ..settings()
    };
    let rig = Rig::with(settings, cloud(Limits::default()).await).await;
    rig.fault(vec![Rule {
        retry_after: Some(json!("0.1")),
        ..status(503, 1_000_000)
    }]);
    let mut ids = Vec::new();
    for number in 0..20 {
        ids.push(rig.accept(MAILBOX, &format!("m{number}")).await);
    }
    for id in ids {
        let reason = rig.wait(id, State::Failed).await.reason.unwrap();
        assert!(
            reason.contains("not delivered within") && reason.contains("503"),
            "{reason}"
        );
    }
    rig.stop().await;
}
