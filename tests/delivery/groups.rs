//! Messages with more recipients than one request takes: each group is sent once, or fails with exactly
//! its recipients.

use std::collections::BTreeSet;
use std::time::Duration;

use graphpost::address::Address;
use graphpost::config::{self, UnknownPolicy};
use graphpost::sandbox::{Delivery, Rule};
use graphpost::spool::{Entry, Filter, QueueId, State};

use crate::rig::{DEADLINE, MAILBOX, Rig, cloud, code, settings, status, submission};

const RECIPIENTS: usize = 1203;
/// Those that the header shows; the others are blind copies.
const SHOWN: usize = 700;

fn address(number: usize) -> String {
    format!("r{number:04}@example.com")
}

async fn accept(rig: &Rig) -> QueueId {
    let mut submission = submission(MAILBOX, "circular");
    submission.envelope.recipients = (0..RECIPIENTS)
        .map(|it| Address::parse(&address(it)).unwrap())
        .collect();
    let to: Vec<String> = (0..SHOWN).map(address).collect();
    let content = format!(
        "From: {MAILBOX}\r\nTo: {}\r\nSubject: circular\r\n\r\nHello\r\n",
        to.join(",\r\n ")
    );
    let mut incoming = rig.spool.incoming().unwrap();
    incoming.write(content.as_bytes()).await.unwrap();
    incoming.accept(submission).await.unwrap().id()
}

/// The groups of a message, once none of them waits or is under way.
async fn settled(rig: &Rig, id: QueueId) -> Vec<Entry> {
    let settled = async {
        loop {
            let filter = Filter {
                group_of: Some(id),
                ..Filter::default()
            };
            let groups = rig.spool.list(filter).await.unwrap();
            let open = |it: &Entry| matches!(it.state, State::Queued | State::Sending);
            if !groups.is_empty() && !groups.iter().any(open) {
                return groups;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(DEADLINE, settled).await.unwrap()
}

fn recipients(groups: &[Entry], state: State) -> BTreeSet<String> {
    groups
        .iter()
        .filter(|it| it.state == state)
        .flat_map(|it| &it.submission.envelope.recipients)
        .map(ToString::to_string)
        .collect()
}

/// Everybody's, each once; and nobody sees a recipient that the header does not show.
fn reached(deliveries: &[Delivery]) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for delivery in deliveries {
        assert!(delivery.recipients.len() <= 500);
        for recipient in &delivery.recipients {
            assert!(all.insert(recipient.clone()), "{recipient} twice");
        }
        for recipient in delivery.to.iter().chain(&delivery.cc) {
            assert!(
                recipient.address < address(SHOWN),
                "{} is shown",
                recipient.address
            );
        }
        assert!(delivery.bcc.iter().all(|it| it.address >= address(SHOWN)));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_unsent_groups_are_tried_again_and_a_failed_one_fails_alone() {
    let rig = Rig::new().await;
    let soon = Rule {
        retry_after: Some(1.into()),
        ..status(503, 1)
    };
    rig.fault(vec![code(400, "ErrorInvalidRecipients", 1), soon]);
    let id = accept(&rig).await;
    let groups = settled(&rig, id).await;
    assert_eq!(groups.len(), 3, "as few as possible");
    let sent = recipients(&groups, State::Sent);
    let failed = recipients(&groups, State::Failed);
    assert_eq!(sent.len() + failed.len(), RECIPIENTS);
    assert_eq!(groups.iter().filter(|it| it.state == State::Failed).count(), 1);
    // One request for each, and one more for the one that was deferred.
    assert_eq!(groups.iter().map(|it| it.attempts).sum::<u32>(), 4);

    // The notifications, one to the sender and one to the postmaster, are deliveries of their own.
    let deliveries = tokio::time::timeout(DEADLINE, rig.cloud.wait_for(4))
        .await
        .unwrap();
    let (circular, notices): (Vec<Delivery>, Vec<Delivery>) =
        deliveries.into_iter().partition(|it| it.subject == "circular");
    assert_eq!(circular.len(), 2);
    assert_eq!(reached(&circular), sent);
    let ids: BTreeSet<&str> = circular
        .iter()
        .map(|it| it.internet_message_id.as_str())
        .collect();
    assert_eq!(ids.len(), 1, "one message");
    let notice = &notices[0].content.as_ref().unwrap().raw;
    let notice = base64_simd::STANDARD.decode_to_vec(notice).unwrap();
    let notice = String::from_utf8_lossy(&notice);
    let named: BTreeSet<String> = notice
        .lines()
        .filter_map(|it| it.strip_prefix("Final-Recipient: rfc822; "))
        .map(|it| it.trim_end().to_owned())
        .collect();
    assert_eq!(named, failed, "exactly those that failed");
    let text = rig.metrics.encode();
    assert!(text.contains("graphpost_recipient_groups_total 3"), "{text}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_outcome_is_one_group_s() {
    let settings = config::Delivery {
        unknown: UnknownPolicy::Hold,
        ..settings()
    };
    let rig = Rig::with(settings, cloud(graphpost::sandbox::Limits::default()).await).await;
    rig.fault(vec![Rule {
        deliver: true,
        ..status(504, 1)
    }]);
    let id = accept(&rig).await;
    let groups = settled(&rig, id).await;
    let states: Vec<State> = groups.iter().map(|it| it.state).collect();
    assert_eq!(states.iter().filter(|it| **it == State::Sent).count(), 2);
    assert_eq!(states.iter().filter(|it| **it == State::Unknown).count(), 1);
    let deliveries = tokio::time::timeout(DEADLINE, rig.cloud.wait_for(3))
        .await
        .unwrap();
    assert_eq!(reached(&deliveries).len(), RECIPIENTS);
    rig.stop().await;
}

/// The groups share a Message-ID; a copy of one proves nothing about another.
#[tokio::test(flavor = "multi_thread")]
async fn each_group_is_verified_by_itself() {
    for deliver in [true, false] {
        let settings = config::Delivery {
            unknown: UnknownPolicy::Verify,
            verify_time: Duration::from_secs(3),
            ..settings()
        };
        let rig = Rig::with(settings, cloud(graphpost::sandbox::Limits::default()).await).await;
        // The other groups are in Sent Items before anybody looks.
        rig.fault(vec![Rule {
            skip: 1,
            deliver,
            ..status(504, 1)
        }]);
        let id = accept(&rig).await;
        let groups = async {
            loop {
                let groups = settled(&rig, id).await;
                if groups.len() == 3 && groups.iter().all(|it| it.state == State::Sent) {
                    return;
                }
                assert!(
                    groups
                        .iter()
                        .all(|it| it.state == State::Sent || it.due.is_some()),
                    "{groups:?}"
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(DEADLINE, groups).await.unwrap();
        let deliveries = rig.cloud.deliveries();
        assert_eq!((deliveries.len(), reached(&deliveries).len()), (3, RECIPIENTS));
        rig.stop().await;
    }
}

/// The gateway stops in between, and goes on where it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_in_between_sends_the_rest() {
    let rig = Rig::new().await;
    // One group goes through, the others do not for now.
    rig.fault(vec![Rule {
        skip: 1,
        retry_after: Some(1.into()),
        ..status(503, 1_000)
    }]);
    let id = accept(&rig).await;
    rig.delivered(1).await;
    let (directory, cloud, _) = rig.stop().await;
    cloud.set_faults(Vec::new()).unwrap();
    let rig = Rig::over(directory, settings(), cloud).await;
    let groups = settled(&rig, id).await;
    assert!(groups.iter().all(|it| it.state == State::Sent));
    let deliveries = tokio::time::timeout(DEADLINE, rig.cloud.wait_for(3))
        .await
        .unwrap();
    assert_eq!((deliveries.len(), reached(&deliveries).len()), (3, RECIPIENTS));
    rig.stop().await;
}
