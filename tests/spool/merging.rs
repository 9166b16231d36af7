//! Joining the transactions that a smarthost has made of one mail.

use std::time::Duration;

use graphpost::spool::{Action, Filter, QueueId, Receipt, Spool, State, Submission};
use jiff::Timestamp;

use crate::support::{content, names, open, submission};

/// Longer than any of these tests takes.
const WINDOW: Duration = Duration::from_secs(3600);

async fn hand_over(spool: &Spool, octets: &[u8], submission: Submission, window: Duration) -> Receipt {
    let mut incoming = spool.incoming().unwrap();
    incoming.write(octets).await.unwrap();
    incoming.accept_within(submission, window).await.unwrap()
}

fn to(recipients: &[&str]) -> Submission {
    submission("erp@contoso.com", recipients, "service@contoso.com")
}

async fn recipients(spool: &Spool, id: QueueId) -> Vec<String> {
    let envelope = spool.get(id).await.unwrap().submission.envelope;
    envelope.recipients.iter().map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_with_one_mail_become_one_message() {
    for size in [2000, 20_000] {
        let directory = tempfile::tempdir().unwrap();
        let (spool, _) = open(directory.path()).await;
        let mut arrivals = spool.arrivals();
        let mail = content(size, 1);
        let first = hand_over(&spool, &mail, to(&["a@x.example", "b@x.example"]), WINDOW).await;
        let second = hand_over(&spool, &mail, to(&["c@x.example"]), WINDOW).await;
        // A recipient that is there already is not there twice.
        let third = hand_over(&spool, &mail, to(&["B@X.example", "d@x.example"]), WINDOW).await;
        assert_eq!(
            (first.is_joined(), second.is_joined(), third.is_joined()),
            (false, true, true)
        );
        assert_eq!((second.id(), third.id()), (first.id(), first.id()));
        assert_eq!(
            recipients(&spool, first.id()).await,
            ["a@x.example", "b@x.example", "c@x.example", "d@x.example"]
        );

        // One message, one content, which waits for the end of its window.
        let arrival = arrivals.recv().await.unwrap();
        assert_eq!(
            arrival.due.duration_since(arrival.accepted).as_secs(),
            WINDOW.as_secs() as i64
        );
        assert!(arrivals.try_recv().is_err());
        let statistics = spool.statistics().await.unwrap();
        assert_eq!((statistics.bytes, statistics.messages.kept()), (size as u64, 1));
        let (entry, octets) = spool.begin_attempt(first.id(), 3).await.unwrap();
        assert_eq!(octets, mail);
        // The union is over the limit: as any other message it is split.
        assert_eq!(entry.submission.envelope.recipients.len(), 3);
        let next = arrivals.recv().await.unwrap();
        assert_eq!(recipients(&spool, next.id).await, ["d@x.example"]);
        spool.tidy().await.unwrap();
        let files = names(&directory.path().join("content"));
        assert_eq!(files.len(), usize::from(size > 10_000));

        // Its attempt has begun: what comes now is a message of its own.
        let late = hand_over(&spool, &mail, to(&["e@x.example"]), WINDOW).await;
        assert!(!late.is_joined());
        assert_eq!(recipients(&spool, late.id()).await, ["e@x.example"]);
        spool.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_joined_across_what_differs() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path()).await;
    let mail = content(500, 1);
    let first = hand_over(&spool, &mail, to(&["a@x.example"]), WINDOW).await;
    let other = |change: fn(&mut Submission)| {
        let mut submission = to(&["b@x.example"]);
        change(&mut submission);
        submission
    };
    let others = [
        other(|it| it.message_id = "2@erp.example".to_owned()),
        other(|it| it.origin.client = "192.0.2.8".parse().unwrap()),
        other(|it| it.origin.account = Some("erp".to_owned())),
        other(|it| it.origin.listener = "smarthost".to_owned()),
        other(|it| it.route.rule = "sender[2]".to_owned()),
        other(|it| it.route.mailbox = "other@contoso.com".to_owned()),
        other(|it| it.envelope.reverse_path.0 = None),
        submission("ERP2@contoso.com", &["b@x.example"], "service@contoso.com"),
    ];
    for submission in others {
        let receipt = hand_over(&spool, &mail, submission.clone(), WINDOW).await;
        assert!(!receipt.is_joined(), "{submission:?}");
    }
    let receipt = hand_over(&spool, &content(500, 2), to(&["b@x.example"]), WINDOW).await;
    assert!(!receipt.is_joined(), "other octets");
    let receipt = hand_over(&spool, &mail, to(&["b@x.example"]), Duration::ZERO).await;
    assert!(!receipt.is_joined(), "merging is off");
    let entry = spool.get(receipt.id()).await.unwrap();
    assert_eq!(entry.due, Some(entry.accepted), "and nothing waits");
    // What a client calls itself is no difference.
    let greeted = other(|it| it.origin.helo = "mx2".to_owned());
    let receipt = hand_over(&spool, &mail, greeted, WINDOW).await;
    assert_eq!(receipt.id(), first.id());
    spool.close().await;
}

/// The window ends, or the operator ends it, or takes the message: nothing is joined to it then, and the
/// next transaction opens a window of its own.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_joined_to_what_does_not_wait_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path()).await;
    let mail = content(500, 1);
    for action in [Action::Retry, Action::Hold, Action::Delete] {
        let first = hand_over(&spool, &mail, to(&["a@x.example"]), WINDOW).await;
        assert!(!first.is_joined(), "{action}");
        spool.act(first.id(), action, "test").await.unwrap();
        let second = hand_over(&spool, &mail, to(&["b@x.example"]), WINDOW).await;
        assert!(!second.is_joined(), "{action}");
        let third = hand_over(&spool, &mail, to(&["c@x.example"]), WINDOW).await;
        assert_eq!(third.id(), second.id(), "{action}");
        spool.act(second.id(), Action::Delete, "test").await.unwrap();
    }
    let first = hand_over(&spool, &mail, to(&["a@x.example"]), Duration::from_millis(1)).await;
    let due = spool.get(first.id()).await.unwrap().due.unwrap();
    while Timestamp::now() <= due {
        std::thread::yield_now();
    }
    let second = hand_over(&spool, &mail, to(&["b@x.example"]), WINDOW).await;
    assert!(!second.is_joined());
    spool.close().await;
}

/// Each transaction is on the disk before its 250, and a restart within the window changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_within_the_window_loses_nothing_and_doubles_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mail = content(500, 1);
    let mut id = None;
    for recipient in ["a@x.example", "b@x.example", "c@x.example"] {
        let (spool, _) = open(directory.path()).await;
        let receipt = hand_over(&spool, &mail, to(&[recipient]), WINDOW).await;
        assert_eq!(*id.get_or_insert(receipt.id()), receipt.id());
        spool.close().await;
    }
    let (spool, recovery) = open(directory.path()).await;
    assert_eq!(recovery.queued, 1);
    let arrival = spool.arrivals().recv().await.unwrap();
    assert!(
        arrival.due > arrival.accepted,
        "the window lasts as long as it would have"
    );
    let entries = spool.list(Filter::default()).await.unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].state, State::Queued);
    assert_eq!(
        recipients(&spool, arrival.id).await,
        ["a@x.example", "b@x.example", "c@x.example"]
    );
    spool.close().await;
}

/// No client can make the queue write an ever longer envelope.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_takes_up_a_bounded_number_of_recipients() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path()).await;
    let many = |from: usize| {
        let addresses: Vec<String> = (from..from + 2000)
            .map(|it| format!("r{it}@example.com"))
            .collect();
        to(&addresses.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let mail = content(500, 1);
    let first = hand_over(&spool, &mail, many(0), WINDOW).await;
    assert!(hand_over(&spool, &mail, many(2000), WINDOW).await.is_joined());
    let third = hand_over(&spool, &mail, many(4000), WINDOW).await;
    assert!(!third.is_joined());
    assert_eq!(recipients(&spool, first.id()).await.len(), 4000);
    assert_eq!(recipients(&spool, third.id()).await.len(), 2000);
    assert_eq!(
        hand_over(&spool, &mail, many(6000), WINDOW).await.id(),
        third.id()
    );
    spool.close().await;
}
