//! A message's life: every state, every way between two.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use graphpost::spool::{Action, Filter, QueueId, Reader, Settlement, SpoolError, State};
use jiff::Timestamp;

use crate::support::{accept, content, names, open, ordinary, settings, submission, try_accept};

fn later() -> Timestamp {
    Timestamp::from_millisecond(Timestamp::now().as_millisecond() + 60_000).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_message_from_the_final_dot_to_sent() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, recovery) = open(directory.path()).await;
    assert_eq!(
        (recovery.queued, recovery.interrupted, recovery.orphans),
        (0, 0, 0)
    );
    let mut arrivals = spool.arrivals();

    let mail = content(2000, 1);
    let mut incoming = spool.incoming().unwrap();
    incoming.write(&mail[..700]).await.unwrap();
    incoming.write(&mail[700..]).await.unwrap();
    assert_eq!(incoming.size(), 2000);
    let id = incoming.id();
    let receipt = incoming.accept(ordinary()).await.unwrap();
    assert_eq!(receipt.id(), id);

    let arrival = arrivals.recv().await.unwrap();
    assert_eq!(
        (arrival.id, arrival.mailbox.as_str(), arrival.size),
        (id, "service@contoso.com", 2000)
    );
    assert_eq!((arrival.attempts, arrival.due), (0, arrival.accepted));

    let (entry, octets) = spool.begin_attempt(id, 500).await.unwrap();
    assert_eq!(octets, mail);
    assert_eq!(entry.submission, ordinary());
    assert_eq!(
        (entry.state, entry.attempts, entry.due),
        (State::Sending, 1, None)
    );
    assert_eq!(
        entry,
        spool
            .get(id)
            .await
            .map(|mut it| {
                it.changed = entry.changed;
                it
            })
            .unwrap()
    );

    let due = later();
    let deferred = Settlement::Deferred {
        due,
        reason: "429 from Graph".to_owned(),
    };
    spool.settle(id, deferred, Some("r-1".to_owned())).await.unwrap();
    let entry = spool.get(id).await.unwrap();
    assert_eq!(
        (entry.state, entry.attempts, entry.due),
        (State::Queued, 1, Some(due))
    );
    assert_eq!(
        (entry.reason.as_deref(), entry.request_id.as_deref()),
        (Some("429 from Graph"), Some("r-1"))
    );

    spool.begin_attempt(id, 500).await.unwrap();
    spool
        .settle(id, Settlement::Sent, Some("r-2".to_owned()))
        .await
        .unwrap();
    let entry = spool.get(id).await.unwrap();
    assert_eq!(
        (entry.state, entry.attempts, entry.due, entry.reason),
        (State::Sent, 2, None, None)
    );
    assert_eq!(spool.content(id).await, Err(SpoolError::NotFound(id)));
    let statistics = spool.statistics().await.unwrap();
    assert_eq!(
        (
            statistics.messages.sent,
            statistics.messages.kept(),
            statistics.bytes
        ),
        (1, 0, 0)
    );
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_content_lives_in_a_file_until_it_is_sent() {
    let directory = tempfile::tempdir().unwrap();
    let files = directory.path().join("content");
    let (spool, _) = open(directory.path()).await;

    // Exactly the threshold is small; one octet more is large, in whatever pieces it comes.
    let small = accept(&spool, &content(10_000, 1)).await;
    assert!(names(&files).is_empty());
    for (seed, piece) in [(2, 1), (3, 999), (4, 10_000), (5, 10_001)] {
        let mail = content(10_001, seed);
        let mut incoming = spool.incoming().unwrap();
        for piece in mail.chunks(piece) {
            incoming.write(piece).await.unwrap();
        }
        let id = incoming.accept(ordinary()).await.unwrap().id();
        let path = files.join(format!("{id}.eml"));
        assert_eq!(std::fs::read(&path).unwrap(), mail);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(spool.content(id).await.unwrap(), mail);
    }
    let big = content(3_000_000, 6);
    let id = accept(&spool, &big).await;
    let (_, octets) = spool.begin_attempt(id, 500).await.unwrap();
    assert_eq!(octets, big);
    spool.settle(id, Settlement::Sent, None).await.unwrap();
    assert_eq!(spool.content(small).await.unwrap(), content(10_000, 1));
    spool.close().await;
    // Closing waits for the removal.
    assert_eq!(names(&files).len(), 4);
    assert!(!names(&files).contains(&format!("{id}.eml")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_accepted_never_was() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path()).await;
    let mut large = spool.incoming().unwrap();
    large.write(&content(200_000, 1)).await.unwrap();
    let mut small = spool.incoming().unwrap();
    small.write(b"half a mess").await.unwrap();
    assert_eq!(names(&directory.path().join("content")).len(), 1);
    drop((large, small));
    // An empty message is a message.
    let id = spool.incoming().unwrap().accept(ordinary()).await.unwrap().id();
    spool.tidy().await.unwrap();
    assert!(names(&directory.path().join("content")).is_empty());
    let all = spool.list(Filter::default()).await.unwrap();
    assert_eq!(
        all.iter().map(|it| (it.id, it.size)).collect::<Vec<_>>(),
        [(id, 0)]
    );
    assert_eq!(spool.content(id).await.unwrap().len(), 0);
    spool.close().await;
    assert!(matches!(
        try_accept(&spool, b"x", ordinary()).await,
        Err(SpoolError::Broken(_))
    ));
}

/// Brings a message into a state.
async fn in_state(spool: &graphpost::spool::Spool, state: State) -> QueueId {
    let id = accept(spool, b"Subject: x\r\n\r\n").await;
    let reason = "because".to_owned();
    let settlement = match state {
        State::Queued => return id,
        State::Sending => {
            spool.begin_attempt(id, 500).await.unwrap();
            return id;
        }
        State::Held => Settlement::Held { due: later(), reason },
        State::Failed => Settlement::Failed { reason },
        State::Unknown => Settlement::Unknown { due: None, reason },
        State::Sent => Settlement::Sent,
    };
    spool.begin_attempt(id, 500).await.unwrap();
    spool.settle(id, settlement, None).await.unwrap();
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_can_do_in_each_state() {
    use Action::{Delete, Hold, Release, Retry};
    use State::{Failed, Held, Queued, Sending, Sent, Unknown};
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path()).await;
    let mut arrivals = spool.arrivals();
    // The state before, the action, and the state after, where it can be done.
    let mut rows = 0;
    for (before, action, after) in [
        (Queued, Retry, Some(Queued)),
        (Queued, Hold, Some(Held)),
        (Queued, Release, None),
        (Sending, Retry, None),
        (Sending, Hold, None),
        (Sending, Release, None),
        (Sending, Delete, None),
        (Held, Retry, Some(Queued)),
        (Held, Hold, Some(Held)),
        (Held, Release, Some(Queued)),
        (Unknown, Retry, Some(Queued)),
        (Unknown, Hold, None),
        (Unknown, Release, Some(Queued)),
        (Failed, Retry, Some(Queued)),
        (Failed, Hold, None),
        (Failed, Release, None),
        (Sent, Retry, None),
        (Sent, Hold, None),
        (Sent, Release, None),
    ] {
        let id = in_state(&spool, before).await;
        assert_eq!(arrivals.recv().await.unwrap().id, id);
        let result = spool.act(id, action, "so be it").await;
        let entry = spool.get(id).await.unwrap();
        match after {
            None => {
                assert_eq!(result, Err(SpoolError::Refused(id, before)), "{before} {action}");
                assert_eq!(entry.state, before);
            }
            Some(after) => {
                assert_eq!(result, Ok(()), "{before} {action}");
                assert_eq!((entry.state, entry.reason.as_deref()), (after, Some("so be it")));
                assert_eq!(entry.due.is_some(), after == Queued);
            }
        }
        if after == Some(Queued) {
            let arrival = arrivals.recv().await.unwrap();
            assert_eq!((arrival.id, Some(arrival.due)), (id, entry.due));
            assert!(arrival.due <= Timestamp::now());
        }
        rows += 1;
    }
    assert_eq!(rows, 19);
    for before in [Queued, Held, Unknown, Failed, Sent] {
        let id = in_state(&spool, before).await;
        spool.act(id, Delete, "not wanted").await.unwrap();
        assert_eq!(spool.get(id).await, Err(SpoolError::NotFound(id)));
        assert_eq!(spool.act(id, Delete, "").await, Err(SpoolError::NotFound(id)));
    }
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_begins_only_where_one_is_due() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path()).await;
    for (state, may) in [
        (State::Queued, true),
        (State::Sending, false),
        (State::Held, true),
        (State::Unknown, false),
        (State::Failed, false),
        (State::Sent, false),
    ] {
        let id = in_state(&spool, state).await;
        assert_eq!(spool.begin_attempt(id, 500).await.is_ok(), may, "{state}");
        let settled = spool.settle(id, Settlement::Sent, None).await;
        assert_eq!(settled.is_ok(), may || state == State::Sending, "{state}");
    }
    let id = in_state(&spool, State::Queued).await;
    spool.act(id, Action::Hold, "wait").await.unwrap();
    assert_eq!(spool.begin_attempt(id, 500).await, Err(SpoolError::NotFound(id)));
    assert_eq!(
        spool
            .begin_attempt("ZZZZ".parse().unwrap(), 500)
            .await
            .unwrap_err(),
        SpoolError::NotFound("ZZZZ".parse().unwrap())
    );
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_what_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path()).await;
    let mut ids = Vec::new();
    for (from, to, mailbox) in [
        ("erp@contoso.com", vec!["ann@example.com"], "service@contoso.com"),
        (
            "ERP@Contoso.com",
            vec!["bob@example.com", "Ann@EXAMPLE.org"],
            "service@contoso.com",
        ),
        ("", vec!["jürgen@müller.example"], "Alerts@contoso.com"),
        ("printer", vec!["cid@example.net"], "alerts@contoso.com"),
    ] {
        ids.push(
            try_accept(&spool, b"x", submission(from, &to, mailbox))
                .await
                .unwrap(),
        );
    }
    spool.act(ids[3], Action::Hold, "wait").await.unwrap();
    let reader = Reader::open(directory.path()).unwrap();
    let all = Filter::default();
    for (filter, want) in [
        (all.clone(), vec![0, 1, 2, 3]),
        (
            Filter {
                limit: 2,
                ..all.clone()
            },
            vec![0, 1],
        ),
        (
            Filter {
                after: Some(ids[1]),
                limit: 1,
                ..all.clone()
            },
            vec![2],
        ),
        (
            Filter {
                sender: Some("erp@CONTOSO.com".into()),
                ..all.clone()
            },
            vec![0, 1],
        ),
        (
            Filter {
                sender: Some("<>".into()),
                ..all.clone()
            },
            vec![2],
        ),
        (
            Filter {
                sender: Some("printer".into()),
                ..all.clone()
            },
            vec![3],
        ),
        (
            Filter {
                mailbox: Some("alerts@contoso.com".into()),
                ..all.clone()
            },
            vec![2, 3],
        ),
        (
            Filter {
                recipient: Some("ann@".into()),
                ..all.clone()
            },
            vec![0, 1],
        ),
        (
            Filter {
                recipient: Some("JÜRGEN@MÜLLER".into()),
                ..all.clone()
            },
            vec![2],
        ),
        (
            Filter {
                recipient: Some("erp@".into()),
                ..all.clone()
            },
            vec![],
        ),
        (
            Filter {
                states: vec![State::Held],
                ..all.clone()
            },
            vec![3],
        ),
        (
            Filter {
                states: vec![State::Held, State::Queued],
                after: Some(ids[2]),
                ..all.clone()
            },
            vec![3],
        ),
        (
            Filter {
                accepted_before: Some(Timestamp::now() - Duration::from_secs(60)),
                ..all.clone()
            },
            vec![],
        ),
        (
            Filter {
                accepted_before: Some(later()),
                limit: 1,
                ..all.clone()
            },
            vec![0],
        ),
    ] {
        let want: Vec<QueueId> = want.into_iter().map(|it| ids[it]).collect();
        let got = spool.list(filter.clone()).await.unwrap();
        assert_eq!(got.iter().map(|it| it.id).collect::<Vec<_>>(), want, "{filter:?}");
        assert_eq!(reader.list(&filter).unwrap(), got);
    }
    assert_eq!(
        reader.statistics().unwrap().messages,
        spool.statistics().await.unwrap().messages
    );
    assert_eq!(reader.content(ids[0]).unwrap().as_ref(), b"x");
    drop(reader);
    spool.close().await;

    // And with no gateway running, by someone who cannot write.
    let reader = Reader::open(directory.path()).unwrap();
    assert_eq!(reader.list(&Filter::default()).unwrap().len(), 4);
    let missing = Reader::open(&directory.path().join("nowhere")).err().unwrap();
    assert!(missing.to_string().contains("nowhere/queue.db"), "{missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_share_commits() {
    let directory = tempfile::tempdir().unwrap();
    let metrics = graphpost::metrics::Metrics::new();
    let (spool, _) = graphpost::spool::Spool::open(&settings(directory.path()), Default::default(), &metrics)
        .await
        .unwrap();
    let tasks: Vec<_> = (0..200)
        .map(|producer: u64| {
            let spool = spool.clone();
            tokio::spawn(async move {
                let mut ids = Vec::new();
                for number in 0..10 {
                    ids.push((
                        accept(&spool, &content(500, producer * 10 + number)).await,
                        producer * 10 + number,
                    ));
                }
                ids
            })
        })
        .collect();
    let mut accepted = Vec::new();
    for task in tasks {
        accepted.extend(task.await.unwrap());
    }
    assert_eq!(metrics.spool_commits.get(), 2000);
    // How few depends on the machine; that sessions wait for each other does not.
    assert!(
        metrics.spool_syncs.get() < 1000,
        "{} syncs",
        metrics.spool_syncs.get()
    );
    let ids: Vec<QueueId> = accepted.iter().map(|it| it.0).collect();
    let results = spool.act_on_all(&ids, Action::Hold, "all of them").await;
    assert!(results.iter().all(|it| it.1.is_ok()));
    assert_eq!(results.len(), 2000);
    assert_eq!(spool.statistics().await.unwrap().messages.held, 2000);
    for (id, seed) in accepted {
        assert_eq!(spool.content(id).await.unwrap(), content(500, seed));
    }
    spool.close().await;
}
