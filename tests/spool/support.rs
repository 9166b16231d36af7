//! What the tests of the queue share: a directory, settings, and mail.

use std::path::Path;
use std::time::Duration;

use graphpost::address::Address;
use graphpost::config::{self, UnknownPolicy};
use graphpost::envelope::{Envelope, HeaderFrom, Origin, ReversePath, Route};
use graphpost::metrics::Metrics;
use graphpost::spool::{QueueId, Recovery, Spool, SpoolError, Submission};

pub const DAY: Duration = Duration::from_secs(86_400);

pub fn settings(directory: &Path) -> config::Spool {
    config::Spool {
        directory: directory.to_owned(),
        file_threshold: 10_000,
        max_bytes: 1 << 30,
        max_messages: 1_000_000,
        min_free_bytes: 0,
        keep_sent: DAY,
        keep_failed: DAY,
    }
}

pub async fn open(directory: &Path) -> (Spool, Recovery) {
    open_with(&settings(directory), UnknownPolicy::Retry).await
}

pub async fn open_with(settings: &config::Spool, policy: UnknownPolicy) -> (Spool, Recovery) {
    Spool::open(settings, policy, &Metrics::new()).await.unwrap()
}

pub fn submission(from: &str, to: &[&str], mailbox: &str) -> Submission {
    Submission {
        envelope: Envelope {
            reverse_path: ReversePath((!from.is_empty()).then(|| Address::parse(from).unwrap())),
            recipients: to.iter().map(|it| Address::parse(it).unwrap()).collect(),
        },
        origin: Origin {
            client: "192.0.2.7".parse().unwrap(),
            helo: "erp".to_owned(),
            account: None,
            listener: "127.0.0.1:2525".to_owned(),
            tls: None,
            protocol: "ESMTP".to_owned(),
        },
        route: Route {
            mailbox: mailbox.to_owned(),
            rule: "sender[1]".to_owned(),
            header_from: HeaderFrom::Mailbox,
            save_to_sent_items: true,
            format: None,
            unknown: None,
        },
        message_id: "1@erp.example".to_owned(),
    }
}

pub fn ordinary() -> Submission {
    submission("erp@contoso.com", &["ann@example.com"], "service@contoso.com")
}

pub async fn try_accept(
    spool: &Spool,
    content: &[u8],
    submission: Submission,
) -> Result<QueueId, SpoolError> {
    let mut incoming = spool.incoming()?;
    incoming.write(content).await?;
    Ok(incoming.accept(submission).await?.id())
}

pub async fn accept(spool: &Spool, content: &[u8]) -> QueueId {
    try_accept(spool, content, ordinary()).await.unwrap()
}

/// Content of this many octets that is different for each seed.
pub fn content(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut octets = Vec::with_capacity(size + 8);
    while octets.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        octets.extend_from_slice(&state.to_le_bytes());
    }
    octets.truncate(size);
    octets
}

/// The names in a directory of the queue, in order.
pub fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A copy of the whole directory as it is on the disk now: what a crash at this moment leaves.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else if entry.file_name() != "queue.db-shm" {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
