//! What opening makes of what it finds: after a crash at any point, and after somebody's hands.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use graphpost::config::UnknownPolicy;
use graphpost::metrics::Metrics;
use graphpost::spool::{Filter, QueueId, Settlement, Spool, SpoolError, State};
use jiff::Timestamp;

use crate::support::{accept, content, copy, names, open, open_with, ordinary, settings};

async fn refused(directory: &Path) -> String {
    let result = Spool::open(&settings(directory), UnknownPolicy::Retry, &Metrics::new()).await;
    match result {
        Err(SpoolError::Unusable(why)) => why,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("opened"),
    }
}

fn sql(directory: &Path, text: &str) {
    let connection = rusqlite::Connection::open(directory.join("queue.db")).unwrap();
    connection.execute_batch(text).unwrap();
}

/// The directory is copied after every step; each copy is what a crash at that moment leaves. What
/// is on the disk then must open with the state that the last answered step gave.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_after_any_step_loses_nothing() {
    let home = tempfile::tempdir().unwrap();
    let live = home.path().join("live");
    for size in [1_000, 50_000] {
        let _ = std::fs::remove_dir_all(&live);
        let (spool, _) = open(&live).await;
        let mail = content(size, size as u64);
        let mut copies = 0;
        let mut snapshot = |state: Option<State>| {
            copies += 1;
            let to = home.path().join(format!("{size}-{copies}"));
            copy(&live, &to);
            (to, state)
        };
        let mut crashes = vec![snapshot(None)];

        let mut incoming = spool.incoming().unwrap();
        let id = incoming.id();
        incoming.write(&mail[..size - 10]).await.unwrap();
        crashes.push(snapshot(None));
        incoming.write(&mail[size - 10..]).await.unwrap();
        crashes.push(snapshot(None));
        incoming.accept(ordinary()).await.unwrap();
        crashes.push(snapshot(Some(State::Queued)));

        let due = Timestamp::now();
        let reason = || "because".to_owned();
        for settlement in [
            Settlement::Deferred {
                due,
                reason: reason(),
            },
            Settlement::Held {
                due,
                reason: reason(),
            },
            Settlement::Unknown {
                due: None,
                reason: reason(),
            },
            Settlement::Failed { reason: reason() },
            Settlement::Sent,
        ] {
            let after = match settlement {
                Settlement::Deferred { .. } => State::Queued,
                Settlement::Held { .. } => State::Held,
                Settlement::Unknown { .. } => State::Unknown,
                Settlement::Failed { .. } => State::Failed,
                Settlement::Sent => State::Sent,
            };
            spool.begin_attempt(id, 500).await.unwrap();
            crashes.push(snapshot(Some(State::Sending)));
            spool.settle(id, settlement, None).await.unwrap();
            crashes.push(snapshot(Some(after)));
            if matches!(after, State::Unknown | State::Failed) {
                spool
                    .act(id, graphpost::spool::Action::Retry, "again")
                    .await
                    .unwrap();
                crashes.push(snapshot(Some(State::Queued)));
            }
        }
        spool.close().await;
        assert_eq!(crashes.len(), 16);

        for (copy, state) in crashes {
            let (spool, recovery) = open(&copy).await;
            let all = spool.list(Filter::default()).await.unwrap();
            // The policy is to try again what was interrupted.
            let interrupted = state == Some(State::Sending);
            let want = if interrupted { Some(State::Queued) } else { state };
            let shown = copy.display();
            assert_eq!(all.first().map(|it| it.state), want, "{shown}");
            assert_eq!(recovery.interrupted, u64::from(interrupted), "{shown}");
            assert!(
                recovery.set_aside.is_empty() && recovery.damaged.is_empty(),
                "{shown}"
            );
            match want {
                Some(State::Sent) | None => {
                    assert!(names(&copy.join("content")).is_empty(), "{shown}");
                }
                Some(_) => assert_eq!(spool.content(id).await.unwrap(), mail, "{shown}"),
            }
            let mut arrivals = spool.arrivals();
            let arrived = arrivals.try_recv().ok().map(|it| it.id);
            let expected = matches!(want, Some(State::Queued | State::Held));
            assert_eq!(arrived, expected.then_some(id), "{shown}");
            // Ids are not given again.
            let next = accept(&spool, b"next").await;
            assert_eq!(next > id, want.is_some(), "{shown}");
            spool.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_attempt_follows_the_policy() {
    for (policy, state, waiting) in [
        (UnknownPolicy::Retry, State::Queued, 1),
        (UnknownPolicy::Hold, State::Unknown, 0),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let (spool, _) = open(directory.path()).await;
        let id = accept(&spool, b"x").await;
        spool.begin_attempt(id, 500).await.unwrap();
        spool.close().await;
        let (spool, recovery) = open_with(&settings(directory.path()), policy).await;
        assert_eq!((recovery.interrupted, recovery.queued), (1, waiting));
        let entry = spool.get(id).await.unwrap();
        assert_eq!((entry.state, entry.attempts), (state, 1));
        assert!(entry.reason.unwrap().contains("not known"));
        spool.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_and_orphaned_files_do_not_stop_it() {
    let directory = tempfile::tempdir().unwrap();
    let files = directory.path().join("content");
    let (spool, _) = open(directory.path()).await;
    let id = accept(&spool, &content(20_000, 1)).await;
    spool.close().await;

    std::fs::write(files.join("00000ZZZ.eml"), b"never accepted").unwrap();
    std::fs::write(files.join("core.1234"), b"dumped").unwrap();
    std::fs::write(files.join("0000zzzz.eml"), b"lower case is not how we write it").unwrap();
    std::fs::create_dir(files.join("lost+found")).unwrap();
    std::os::unix::fs::symlink("/nowhere", files.join("link")).unwrap();
    std::os::unix::fs::symlink("/nowhere", files.join("000000ZZ.eml")).unwrap();
    std::fs::write(directory.path().join("set-aside/core.1234"), b"an older one").unwrap();
    std::fs::write(
        directory.path().join("users"),
        b"not in content: none of the queue's business",
    )
    .unwrap();

    let (spool, recovery) = open(directory.path()).await;
    assert_eq!(recovery.orphans, 1);
    let mut aside: Vec<String> = recovery
        .set_aside
        .iter()
        .map(|it| it.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    aside.sort();
    assert_eq!(
        aside,
        [
            "0000zzzz.eml",
            "000000ZZ.eml",
            "core.1234.1",
            "link",
            "lost+found"
        ]
        .map(str::to_owned)
        .into_iter()
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect::<Vec<_>>()
    );
    assert_eq!(names(&files), [format!("{id}.eml")]);
    assert!(directory.path().join("users").exists());
    assert_eq!(spool.content(id).await.unwrap(), content(20_000, 1));
    spool.close().await;
    let (spool, recovery) = open(directory.path()).await;
    assert!(recovery.set_aside.is_empty() && recovery.orphans == 0);
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_and_truncated_content_is_held_and_said() {
    let directory = tempfile::tempdir().unwrap();
    let files = directory.path().join("content");
    let (spool, _) = open(directory.path()).await;
    let mut ids = Vec::new();
    for seed in 0..5 {
        ids.push(accept(&spool, &content(20_000, seed)).await);
    }
    spool.begin_attempt(ids[3], 500).await.unwrap();
    spool
        .settle(
            ids[3],
            Settlement::Failed {
                reason: "no such user".into(),
            },
            None,
        )
        .await
        .unwrap();
    spool.close().await;
    let path = |id: QueueId| files.join(format!("{id}.eml"));
    std::fs::remove_file(path(ids[0])).unwrap();
    std::fs::write(path(ids[1]), &content(20_000, 1)[..19_999]).unwrap();
    std::fs::write(path(ids[2]), content(20_001, 2)).unwrap();
    std::fs::remove_file(path(ids[3])).unwrap();

    let (spool, recovery) = open(directory.path()).await;
    assert_eq!(recovery.damaged, ids[..4]);
    assert_eq!(recovery.queued, 1);
    for (number, word) in [(0, "missing"), (1, "19999"), (2, "20001")] {
        let entry = spool.get(ids[number]).await.unwrap();
        assert_eq!((entry.state, entry.due), (State::Held, None));
        assert!(entry.reason.unwrap().contains(word));
    }
    // What had been given up keeps its reason.
    let entry = spool.get(ids[3]).await.unwrap();
    assert_eq!(
        (entry.state, entry.reason.as_deref()),
        (State::Failed, Some("no such user"))
    );

    // Held by the operator's hand again, it fails again, and is not sent as it is.
    spool
        .act(ids[1], graphpost::spool::Action::Retry, "try")
        .await
        .unwrap();
    assert!(matches!(
        spool.begin_attempt(ids[1], 500).await,
        Err(SpoolError::Damaged(..))
    ));
    assert_eq!(spool.get(ids[1]).await.unwrap().state, State::Held);
    for id in &ids[..4] {
        spool
            .act(*id, graphpost::spool::Action::Delete, "lost")
            .await
            .unwrap();
    }
    assert!(spool.begin_attempt(ids[4], 500).await.is_ok());
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_has_changed_is_never_sent() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path()).await;
    let large = accept(&spool, &content(20_000, 1)).await;
    let small = accept(&spool, b"pay 100 to Ann").await;
    let gone = accept(&spool, b"pay 200 to Ann").await;
    spool.close().await;
    let path = directory.path().join(format!("content/{large}.eml"));
    let mut octets = std::fs::read(&path).unwrap();
    octets[12_345] ^= 1;
    std::fs::write(&path, octets).unwrap();
    sql(
        directory.path(),
        "UPDATE content SET octets = CAST('pay 900 to Ann' AS BLOB) WHERE id = 2; DELETE FROM content WHERE id = 3",
    );

    let (spool, _) = open(directory.path()).await;
    for (id, word) in [(large, "changed"), (small, "changed"), (gone, "missing")] {
        match spool.begin_attempt(id, 500).await {
            Err(SpoolError::Damaged(_, why)) => assert!(why.contains(word), "{why}"),
            other => panic!("{other:?}"),
        }
        let entry = spool.get(id).await.unwrap();
        assert_eq!((entry.state, entry.due, entry.attempts), (State::Held, None, 0));
    }
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_make_no_sense_are_set_aside_whole() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path()).await;
    for seed in 1..=6 {
        accept(&spool, &content(if seed % 2 == 0 { 20_000 } else { 200 }, seed)).await;
    }
    spool.close().await;
    sql(
        directory.path(),
        "UPDATE message SET state = 'lost' WHERE id = 1;
         UPDATE message SET submission = '{\"envelope\":' WHERE id = 2;
         UPDATE message SET size = -1 WHERE id = 3;
         UPDATE message SET accepted = 9223372036854775807 WHERE id = 4;
         UPDATE message SET attempts = 5000000000 WHERE id = 5",
    );
    let (spool, recovery) = open(directory.path()).await;
    assert_eq!(recovery.queued, 1);
    let aside = names(&directory.path().join("set-aside"));
    let want: Vec<String> = (1..=5)
        .flat_map(|it| [format!("0000000{it}.eml"), format!("0000000{it}.json")])
        .collect();
    assert_eq!(aside, want);
    assert_eq!(recovery.set_aside.len(), 10);
    for seed in 1..=5 {
        let octets = std::fs::read(directory.path().join(format!("set-aside/0000000{seed}.eml"))).unwrap();
        assert_eq!(octets, content(if seed % 2 == 0 { 20_000 } else { 200 }, seed));
        let text =
            std::fs::read_to_string(directory.path().join(format!("set-aside/0000000{seed}.json"))).unwrap();
        assert!(
            text.contains("set_aside_because") && text.contains("service@contoso.com"),
            "{text}"
        );
    }
    let left = spool.list(Filter::default()).await.unwrap();
    assert_eq!(
        left.iter().map(|it| it.id.to_string()).collect::<Vec<_>>(),
        ["00000006"]
    );
    // Ids of rows set aside are not given again.
    assert_eq!(accept(&spool, b"x").await.to_string(), "00000007");
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content_without_a_database_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path()).await;
    let id = accept(&spool, &content(20_000, 1)).await;
    spool.close().await;
    std::fs::remove_file(directory.path().join("queue.db")).unwrap();
    let (spool, recovery) = open(directory.path()).await;
    assert_eq!(recovery.orphans, 0);
    assert_eq!(
        recovery.set_aside,
        [directory.path().join(format!("set-aside/{id}.eml"))]
    );
    assert_eq!(std::fs::read(&recovery.set_aside[0]).unwrap(), content(20_000, 1));
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_read_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("queue.db");
    let (spool, _) = open(directory.path()).await;
    for seed in 0..200 {
        accept(&spool, &content(5_000, seed)).await;
    }
    spool.close().await;
    let whole = std::fs::read(&database).unwrap();

    // The header, and then pages in the middle, overwritten.
    let mut header = whole.clone();
    header[..100].fill(b'x');
    let mut middle = whole.clone();
    let length = middle.len();
    middle[16_384..length].fill(0xa5);
    for damaged in [header, middle] {
        std::fs::write(&database, &damaged).unwrap();
        let why = refused(directory.path()).await;
        assert!(
            why.contains("queue.db is damaged") && why.contains(".recover"),
            "{why}"
        );
        let now = std::fs::read(&database).unwrap();
        let changed: Vec<usize> = (0..now.len().max(damaged.len()))
            .filter(|&it| now.get(it) != damaged.get(it))
            .take(20)
            .collect();
        assert!(changed.is_empty(), "changed at {changed:?}; {why}");
    }
    std::fs::write(&database, &whole).unwrap();
    let (spool, recovery) = open(directory.path()).await;
    assert_eq!(recovery.queued, 200);
    spool.close().await;

    sql(directory.path(), "PRAGMA user_version = 99");
    let why = refused(directory.path()).await;
    assert!(why.contains("newer graphpost"), "{why}");
    std::fs::remove_file(&database).unwrap();
    sql(directory.path(), "CREATE TABLE other (it TEXT)");
    let why = refused(directory.path()).await;
    assert!(why.contains("not a graphpost queue"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_directory_has_one_gateway() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path()).await;
    let why = refused(directory.path()).await;
    assert!(
        why.contains(&format!("in use by process {}", std::process::id())),
        "{why}"
    );
    spool.close().await;
    let (spool, _) = open(directory.path()).await;
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_its_user_can_read_it() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("a/b");
    let (spool, _) = open(&directory).await;
    accept(&spool, &content(20_000, 1)).await;
    let mut seen = 0;
    for (path, mode) in [
        ("", 0o700),
        ("content", 0o700),
        ("set-aside", 0o700),
        ("queue.db", 0o600),
        ("queue.db-wal", 0o600),
        ("queue.db-shm", 0o600),
        ("lock", 0o600),
        ("content/00000001.eml", 0o600),
    ] {
        let metadata = directory.join(path).metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{path}");
        seen += 1;
    }
    assert_eq!(seen, 8);
    spool.close().await;
    assert_eq!(names(&directory), ["content", "lock", "queue.db", "set-aside"]);

    std::fs::write(home.path().join("file"), b"").unwrap();
    let why = refused(&home.path().join("file")).await;
    assert!(why.contains("file"), "{why}");
}
