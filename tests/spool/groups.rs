//! Messages with more recipients than one request takes.

use graphpost::spool::{Action, Entry, Filter, QueueId, Reader, Settlement, Spool, State};
use jiff::Timestamp;

use crate::support::{content, copy, names, open, submission, try_accept};

const MAX: usize = 3;

fn addresses(count: usize) -> Vec<String> {
    (0..count).map(|it| format!("r{it}@example.com")).collect()
}

async fn accept(spool: &Spool, size: usize, recipients: usize) -> QueueId {
    let addresses = addresses(recipients);
    let to: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let submission = submission("erp@contoso.com", &to, "service@contoso.com");
    try_accept(spool, &content(size, 7), submission).await.unwrap()
}

async fn groups(spool: &Spool, id: QueueId) -> Vec<Entry> {
    let filter = Filter {
        group_of: Some(id),
        ..Filter::default()
    };
    spool.list(filter).await.unwrap()
}

fn recipients(entries: &[Entry]) -> Vec<Vec<String>> {
    entries
        .iter()
        .map(|it| {
            it.submission
                .envelope
                .recipients
                .iter()
                .map(ToString::to_string)
                .collect()
        })
        .collect()
}

fn failed() -> Settlement {
    Settlement::Failed {
        reason: "no".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_split_when_its_first_attempt_begins() {
    for size in [2000, 20_000] {
        let directory = tempfile::tempdir().unwrap();
        let (spool, _) = open(directory.path()).await;
        let mut arrivals = spool.arrivals();
        let id = accept(&spool, size, 8).await;
        let whole = arrivals.recv().await.unwrap();
        assert_eq!(spool.get(id).await.unwrap().group_of, None);

        let (first, octets) = spool.begin_attempt(id, MAX).await.unwrap();
        assert_eq!(octets, content(size, 7));
        let all = addresses(8);
        assert_eq!(recipients(std::slice::from_ref(&first)), [all[..3].to_vec()]);
        let entries = groups(&spool, id).await;
        assert_eq!(
            recipients(&entries),
            [all[..3].to_vec(), all[3..6].to_vec(), all[6..].to_vec()]
        );
        let stands: Vec<_> = entries
            .iter()
            .map(|it| (it.state, it.attempts, it.group_of))
            .collect();
        assert_eq!(
            stands,
            [
                (State::Sending, 1, Some(id)),
                (State::Queued, 0, Some(id)),
                (State::Queued, 0, Some(id))
            ]
        );
        // The others come by themselves, as old as their message.
        for entry in &entries[1..] {
            let arrival = arrivals.recv().await.unwrap();
            assert_eq!((arrival.id, arrival.accepted), (entry.id, whole.accepted));
        }
        // Content is there once, and counted once.
        let statistics = spool.statistics().await.unwrap();
        assert_eq!((statistics.bytes, statistics.messages.kept()), (size as u64, 3));
        let reader = Reader::open(directory.path()).unwrap();
        assert_eq!(reader.statistics().unwrap().bytes, size as u64);
        assert_eq!(statistics.oldest, Some(whole.accepted));

        // Each group goes its own way: the message's own number first, and its content stays.
        spool.settle(id, Settlement::Sent, None).await.unwrap();
        let (second, third) = (entries[1].id, entries[2].id);
        let (_, octets) = spool.begin_attempt(second, MAX).await.unwrap();
        assert_eq!(octets, content(size, 7));
        spool.settle(second, failed(), None).await.unwrap();
        assert_eq!(spool.content(second).await.unwrap(), content(size, 7));
        spool.begin_attempt(third, MAX).await.unwrap();
        let deferred = Settlement::Deferred {
            due: Timestamp::now(),
            reason: "later".to_owned(),
        };
        spool.settle(third, deferred, None).await.unwrap();
        spool.begin_attempt(third, MAX).await.unwrap();
        spool.settle(third, Settlement::Sent, None).await.unwrap();
        assert_eq!(spool.statistics().await.unwrap().bytes, size as u64);

        // With the last group that needs it, the content goes.
        spool.act(second, Action::Delete, "test").await.unwrap();
        assert_eq!(spool.statistics().await.unwrap().bytes, 0);
        spool.tidy().await.unwrap();
        assert_eq!(names(&directory.path().join("content")), [""; 0]);
        spool.close().await;
        let database = rusqlite::Connection::open(directory.path().join("queue.db")).unwrap();
        let left: i64 = database
            .query_row("SELECT count(*) FROM content", [], |it| it.get(0))
            .unwrap();
        assert_eq!(left, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn as_few_groups_as_possible_and_none_where_they_fit() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path()).await;
    for (count, want) in [(1, 0), (3, 0), (4, 2), (6, 2), (7, 3), (31, 11)] {
        let id = accept(&spool, 10, count).await;
        let (entry, _) = spool.begin_attempt(id, MAX).await.unwrap();
        assert_eq!(entry.group_of.is_some(), want > 0);
        let entries = groups(&spool, id).await;
        assert_eq!(entries.len(), want, "{count}");
        if want > 0 {
            assert_eq!(recipients(&entries).concat(), addresses(count));
        }
    }
    // A limit of nothing would make endless groups of nobody.
    let id = accept(&spool, 10, 2).await;
    spool.begin_attempt(id, 0).await.unwrap();
    assert_eq!(groups(&spool, id).await.len(), 2);
    spool.close().await;
}

/// The administrator lowers the limit: a group is split further, and shares the same content.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_split_further() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path()).await;
    let id = accept(&spool, 20_000, 8).await;
    spool.begin_attempt(id, 4).await.unwrap();
    spool.settle(id, Settlement::Sent, None).await.unwrap();
    let second = groups(&spool, id).await[1].id;
    spool.begin_attempt(second, 4).await.unwrap();
    let deferred = Settlement::Deferred {
        due: Timestamp::now(),
        reason: "too many".to_owned(),
    };
    spool.settle(second, deferred, None).await.unwrap();
    let (entry, octets) = spool.begin_attempt(second, 3).await.unwrap();
    assert_eq!(octets, content(20_000, 7));
    assert_eq!((entry.attempts, entry.group_of), (2, Some(id)));
    let entries = groups(&spool, id).await;
    let all = addresses(8);
    assert_eq!(
        recipients(&entries),
        [all[..4].to_vec(), all[4..7].to_vec(), all[7..].to_vec()]
    );
    // What was tried for all of them was tried for each.
    assert_eq!(
        (entries[2].attempts, entries[2].reason.as_deref()),
        (1, Some("too many"))
    );
    spool.close().await;
}

/// Whether a draft was sent is a question about all its recipients.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_with_a_draft_is_not_split() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path()).await;
    let id = accept(&spool, 10, 4).await;
    spool.begin_attempt(id, 10).await.unwrap();
    spool.note_draft(id, "AAMk".to_owned()).await.unwrap();
    let deferred = Settlement::Deferred {
        due: Timestamp::now(),
        reason: "503".to_owned(),
    };
    spool.settle(id, deferred, None).await.unwrap();
    let (entry, _) = spool.begin_attempt(id, MAX).await.unwrap();
    assert_eq!(
        (entry.submission.envelope.recipients.len(), entry.group_of),
        (4, None)
    );
    spool.close().await;
}

/// What stands on the disk at every moment has every recipient exactly once, and a crash at any of them
/// leaves the content of those that are not sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_loses_no_group() {
    let directory = tempfile::tempdir().unwrap();
    let crashes = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path()).await;
    let id = accept(&spool, 20_000, 7).await;
    let mut crash = 0;
    let mut crash_here = || {
        crash += 1;
        let to = crashes.path().join(crash.to_string());
        copy(directory.path(), &to);
        to
    };
    let mut moments = vec![crash_here()];
    spool.begin_attempt(id, MAX).await.unwrap();
    moments.push(crash_here());
    spool.settle(id, Settlement::Sent, None).await.unwrap();
    moments.push(crash_here());
    let others: Vec<QueueId> = groups(&spool, id).await[1..].iter().map(|it| it.id).collect();
    spool.begin_attempt(others[0], MAX).await.unwrap();
    spool.settle(others[0], failed(), None).await.unwrap();
    moments.push(crash_here());
    spool.begin_attempt(others[1], MAX).await.unwrap();
    moments.push(crash_here());
    spool.settle(others[1], Settlement::Sent, None).await.unwrap();
    moments.push(crash_here());
    spool.close().await;

    for moment in &moments {
        let (spool, recovery) = open(moment).await;
        assert_eq!((recovery.damaged.len(), recovery.set_aside.len()), (0, 0));
        let entries = spool.list(Filter::default()).await.unwrap();
        let mut all = recipients(&entries).concat();
        all.sort();
        assert_eq!(all, addresses(7), "{}", moment.display());
        let mut waiting = 0;
        for entry in entries {
            if entry.state != State::Sent {
                assert_eq!(spool.content(entry.id).await.unwrap(), content(20_000, 7));
                waiting += 1;
            }
        }
        let bytes = if waiting > 0 { 20_000 } else { 0 };
        assert_eq!(spool.statistics().await.unwrap().bytes, bytes);
        spool.close().await;
    }
}

/// What is no group any more does not take the content away from the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_set_aside_leaves_the_others_their_content() {
    for size in [2000, 20_000] {
        let directory = tempfile::tempdir().unwrap();
        let (spool, _) = open(directory.path()).await;
        let id = accept(&spool, size, 7).await;
        spool.begin_attempt(id, MAX).await.unwrap();
        let others: Vec<QueueId> = groups(&spool, id).await[1..].iter().map(|it| it.id).collect();
        spool.close().await;
        let database = rusqlite::Connection::open(directory.path().join("queue.db")).unwrap();
        database
            .execute("UPDATE message SET submission = '{' WHERE group_of = id", [])
            .unwrap();
        drop(database);

        let (spool, recovery) = open(directory.path()).await;
        assert_eq!(recovery.set_aside.len(), 1, "only the row");
        for id in &others {
            assert_eq!(spool.content(*id).await.unwrap(), content(size, 7));
        }
        spool.close().await;

        // And where none is left that can be read, the content is set aside with them.
        let database = rusqlite::Connection::open(directory.path().join("queue.db")).unwrap();
        database
            .execute("UPDATE message SET submission = '{'", [])
            .unwrap();
        drop(database);
        let (spool, recovery) = open(directory.path()).await;
        let aside = recovery.set_aside.iter().map(|it| std::fs::read(it).unwrap());
        assert!(aside.into_iter().any(|it| it == content(size, 7)));
        spool.close().await;
    }
}
