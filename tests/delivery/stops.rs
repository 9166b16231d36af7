//! Stopping and starting.

use std::time::Duration;

use graphpost::config::{self, UnknownPolicy};
use graphpost::sandbox::{Limits, Rule};
use graphpost::spool::State;

use crate::rig::{DEADLINE, MAILBOX, Rig, cloud, settings};

fn slow(delay_ms: u64) -> Rule {
    Rule {
        operation: Some("sendMail".to_owned()),
        action: "delay".to_owned(),
        delay_ms,
        ..Rule::default()
    }
}

#[tokio::test]
async fn a_drain_waits_for_what_is_under_way_and_begins_nothing() {
    let settings = config::Delivery {
        concurrency: 1,
        ..settings()
    };
    let rig = Rig::with(settings.clone(), cloud(Limits::default()).await).await;
    rig.fault(vec![slow(300)]);
    let first = rig.accept(MAILBOX, "first").await;
    let second = rig.accept(MAILBOX, "second").await;
    rig.wait(first, State::Sending).await;
    let (directory, cloud, left) = rig.stop().await;
    assert_eq!(left, 0);
    let subjects: Vec<_> = cloud.deliveries().into_iter().map(|it| it.subject).collect();
    assert_eq!(subjects, ["first"]);

    // The next start goes on where this one stopped.
    cloud.set_faults(Vec::new()).unwrap();
    let rig = Rig::over(directory, settings, cloud).await;
    assert_eq!(rig.spool.get(first).await.unwrap().state, State::Sent);
    assert_eq!(rig.delivered(2).await, ["first", "second"]);
    rig.wait(second, State::Sent).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_drain_has_an_end_and_the_next_start_knows() {
    let settings = config::Delivery {
        drain_timeout: Duration::from_millis(100),
        unknown: UnknownPolicy::Hold,
        ..settings()
    };
    let rig = Rig::with(settings.clone(), cloud(Limits::default()).await).await;
    rig.fault(vec![slow(60_000)]);
    let id = rig.accept(MAILBOX, "one").await;
    rig.wait(id, State::Sending).await;
    let (directory, cloud, left) = tokio::time::timeout(DEADLINE, rig.stop()).await.unwrap();
    assert_eq!(left, 1);

    cloud.set_faults(Vec::new()).unwrap();
    let rig = Rig::over(directory, settings, cloud).await;
    assert_eq!(rig.wait(id, State::Unknown).await.attempts, 1);
    rig.stop().await;
}
