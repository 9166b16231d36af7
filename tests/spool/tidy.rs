//! Room: the marks over which mail is refused, what is kept for how long, and what is given back.

use std::time::Duration;

use graphpost::config::{self, UnknownPolicy};
use graphpost::spool::{Action, Filter, Settlement, Spool, SpoolError, State};

use crate::support::{accept, content, names, open_with, ordinary, settings, try_accept};

async fn send(spool: &Spool, size: usize) -> graphpost::spool::QueueId {
    let id = accept(spool, &content(size, 1)).await;
    spool.begin_attempt(id, 500).await.unwrap();
    spool.settle(id, Settlement::Sent, None).await.unwrap();
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_mark_mail_is_refused_and_under_it_taken_again() {
    let directory = tempfile::tempdir().unwrap();
    let settings = config::Spool {
        max_bytes: 50_000,
        max_messages: 4,
        ..settings(directory.path())
    };
    let (spool, _) = open_with(&settings, UnknownPolicy::Retry).await;
    let first = accept(&spool, &content(30_000, 1)).await;
    let mut second = spool.incoming().unwrap();
    second.write(&content(15_000, 2)).await.unwrap();
    // What is on its way in counts, and a refused message cannot go on.
    assert!(matches!(
        second.write(&content(5_001, 2)).await,
        Err(SpoolError::Full(_))
    ));
    assert!(matches!(second.write(b"x").await, Err(SpoolError::Full(_))));
    assert!(matches!(
        second.accept(ordinary()).await,
        Err(SpoolError::Full(_))
    ));
    assert!(spool.has_room(20_000).is_ok());
    assert!(matches!(spool.has_room(20_001), Err(SpoolError::Full(_))));
    for _ in 0..3 {
        accept(&spool, b"small").await;
    }
    let why = spool.incoming().err().unwrap();
    assert!(why.to_string().contains("4 of at most 4 messages"), "{why}");
    spool.close().await;

    // The marks know what was there before.
    let (spool, _) = open_with(&settings, UnknownPolicy::Retry).await;
    assert!(matches!(spool.incoming(), Err(SpoolError::Full(_))));
    spool.act(first, Action::Delete, "room").await.unwrap();
    assert!(spool.has_room(49_985).is_ok());
    accept(&spool, &content(49_985, 1)).await;
    spool.close().await;

    let settings = config::Spool {
        max_messages: 100,
        min_free_bytes: u64::MAX / 2,
        ..settings
    };
    let (spool, _) = open_with(&settings, UnknownPolicy::Retry).await;
    let why = spool.incoming().err().unwrap();
    assert!(why.to_string().contains("stay free"), "{why}");
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_kept_for_as_long_as_they_should_be() {
    let directory = tempfile::tempdir().unwrap();
    let keep = settings(directory.path());
    let (spool, _) = open_with(&keep, UnknownPolicy::Retry).await;
    let sent = send(&spool, 20_000).await;
    let failed = accept(&spool, &content(20_000, 2)).await;
    spool.begin_attempt(failed, 500).await.unwrap();
    spool
        .settle(failed, Settlement::Failed { reason: "no".into() }, None)
        .await
        .unwrap();
    let queued = accept(&spool, &content(20_000, 3)).await;
    assert_eq!(spool.tidy().await.unwrap().removed, 0);
    assert_eq!(spool.get(sent).await.unwrap().state, State::Sent);
    spool.close().await;

    let short = config::Spool {
        keep_failed: Duration::from_nanos(1),
        ..keep.clone()
    };
    let (spool, _) = open_with(&short, UnknownPolicy::Retry).await;
    spool.tidy().await.unwrap();
    assert_eq!(spool.get(failed).await, Err(SpoolError::NotFound(failed)));
    assert_eq!(spool.get(sent).await.unwrap().state, State::Sent);
    spool.close().await;

    let none = config::Spool {
        keep_sent: Duration::ZERO,
        ..keep.clone()
    };
    let (spool, _) = open_with(&none, UnknownPolicy::Retry).await;
    spool.tidy().await.unwrap();
    send(&spool, 20_000).await;
    send(&spool, 20).await;
    let left = spool.list(Filter::default()).await.unwrap();
    assert_eq!(left.iter().map(|it| it.id).collect::<Vec<_>>(), [queued]);
    spool.close().await;
    assert_eq!(names(&directory.path().join("content")).len(), 1);

    // Also of what is kept by age, only so many.
    let few = config::Spool {
        max_messages: 3,
        ..keep
    };
    let (spool, _) = open_with(&few, UnknownPolicy::Retry).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(send(&spool, 20).await);
    }
    spool.tidy().await.unwrap();
    let sent = spool
        .list(Filter {
            states: vec![State::Sent],
            ..Filter::default()
        })
        .await
        .unwrap();
    assert_eq!(sent.iter().map(|it| it.id).collect::<Vec<_>>(), ids[2..]);
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_comes_back_after_a_drain() {
    let directory = tempfile::tempdir().unwrap();
    let mut settings = settings(directory.path());
    settings.file_threshold = 100_000;
    settings.keep_sent = Duration::ZERO;
    let (spool, _) = open_with(&settings, UnknownPolicy::Retry).await;
    let size = |name: &str| std::fs::metadata(directory.path().join(name)).map_or(0, |it| it.len());
    let mut ids = Vec::new();
    for seed in 0..30 {
        ids.extend(ten(&spool, seed).await);
    }
    assert!(size("queue.db") + size("queue.db-wal") > 20 << 20);
    for id in ids {
        spool.begin_attempt(id, 500).await.unwrap();
        spool.settle(id, Settlement::Sent, None).await.unwrap();
    }
    let tidied = spool.tidy().await.unwrap();
    // Part of it may have been given back already by itself.
    assert!(
        size("queue.db") < 4 << 20,
        "{} after {tidied:?}",
        size("queue.db")
    );
    assert_eq!(size("queue.db-wal"), 0);
    accept(&spool, b"and on").await;
    spool.close().await;
}

/// Ten messages at once, so that they share a commit.
async fn ten(spool: &Spool, seed: u64) -> Vec<graphpost::spool::QueueId> {
    let tasks: Vec<_> = (0..10)
        .map(|number| {
            let spool = spool.clone();
            tokio::spawn(
                async move { try_accept(&spool, &content(90_000, seed * 10 + number), ordinary()).await },
            )
        })
        .collect();
    let mut ids = Vec::new();
    for task in tasks {
        ids.push(task.await.unwrap().unwrap());
    }
    ids
}
