//! A queue that an older release has left behind.

use graphpost::spool::{Filter, State};

use crate::support::{open, ordinary};

/// The first release's tables had no columns for drafts, groups and joining.
#[tokio::test]
async fn version_1_is_carried_over() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (spool, _) = open(directory.path()).await;
    let mut incoming = spool.incoming().unwrap();
    incoming.write(b"Subject: x\r\n\r\n").await.unwrap();
    let id = incoming.accept(ordinary()).await.unwrap().id();
    spool.close().await;
    let database = rusqlite::Connection::open(directory.path().join("queue.db")).unwrap();
    database
        .execute_batch(
            "DROP INDEX message_by_group; DROP INDEX message_by_merge;
             ALTER TABLE message DROP COLUMN group_of; ALTER TABLE message DROP COLUMN merge;
             ALTER TABLE message DROP COLUMN draft; PRAGMA user_version = 1;",
        )
        .unwrap();
    drop(database);

    let (spool, recovery) = open(directory.path()).await;
    assert_eq!(recovery.queued, 1);
    spool.begin_attempt(id, 500).await.unwrap();
    spool.note_draft(id, "AAMk".to_owned()).await.unwrap();
    let entries = spool.list(Filter::default()).await.unwrap();
    assert_eq!(
        (entries[0].state, entries[0].draft.as_deref()),
        (State::Sending, Some("AAMk"))
    );
    spool.close().await;
}
