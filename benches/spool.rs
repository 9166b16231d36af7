//! The queue by itself: how many messages a second become durable, at what price in syncs, and
//! beside it, on the same disk in the same minute, what a synced file and a synced directory for
//! each message give. Trust the ratios more than the figures.
//!
//! `cargo bench --bench spool`

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use graphpost::address::Address;
use graphpost::config::{self, UnknownPolicy};
use graphpost::envelope::{Envelope, HeaderFrom, Origin, ReversePath, Route};
use graphpost::metrics::Metrics;
use graphpost::spool::{Filter, QueueId, Settlement, Spool, Submission};

/// How long each figure is measured.
const PERIOD: Duration = Duration::from_millis(1500);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(512)
        .build()
        .unwrap();
    runtime.block_on(async {
        println!("accepted: one message after the other by each producer");
        println!(
            "{:>9} {:>9} | {:>10} {:>8} {:>8} {:>9} {:>9} | {:>10} {:>8} {:>8} | {:>6}",
            "octets", "producers", "messages/s", "p50 ms", "p99 ms", "commits/m", "syncs/m", "file a m.", "p50 ms", "p99 ms", "ratio"
        );
        for size in [2_000, 50_000, 1_000_000] {
            for producers in [1, 20, 200] {
                if size == 1_000_000 && producers != 20 {
                    continue;
                }
                let ours = accept(size, producers).await;
                let theirs = file_per_message(size, producers).await;
                println!(
                    "{size:>9} {producers:>9} | {:>10.0} {:>8.2} {:>8.2} {:>9.3} {:>9.3} | {:>10.0} {:>8.2} {:>8.2} | {:>5.1}x",
                    ours.rate,
                    ours.p50,
                    ours.p99,
                    ours.commits,
                    ours.syncs,
                    theirs.rate,
                    theirs.p50,
                    theirs.p99,
                    ours.rate / theirs.rate
                );
            }
        }
        println!();
        println!("accepted, leased, read and settled as sent, at the same time");
        for (size, producers) in [(2_000, 64), (50_000, 64), (1_000_000, 20)] {
            let (rate, syncs) = whole_life(size, producers).await;
            println!("{size:>9} {producers:>9} | {rate:>10.0} messages/s, {syncs:.3} syncs a message");
        }
        println!();
        many_waiting().await;
    });
}

fn settings(directory: &Path) -> config::Spool {
    config::Spool {
        directory: directory.to_owned(),
        file_threshold: 100_000,
        max_bytes: 64 << 30,
        max_messages: 10_000_000,
        min_free_bytes: 0,
        keep_sent: Duration::ZERO,
        keep_failed: Duration::ZERO,
    }
}

fn submission() -> Submission {
    Submission {
        envelope: Envelope {
            reverse_path: ReversePath(Some(Address::parse("erp@contoso.com").unwrap())),
            recipients: vec![Address::parse("ann@example.com").unwrap()],
        },
        origin: Origin {
            client: "192.0.2.7".parse().unwrap(),
            helo: "erp.contoso.local".to_owned(),
            account: None,
            listener: "127.0.0.1:2525".to_owned(),
            tls: None,
            protocol: "ESMTP".to_owned(),
        },
        route: Route {
            mailbox: "service@contoso.com".to_owned(),
            rule: "sender[1]".to_owned(),
            header_from: HeaderFrom::Mailbox,
            save_to_sent_items: true,
            format: None,
            unknown: None,
        },
        message_id: "20260101120000.1@erp.contoso.local".to_owned(),
    }
}

fn directory() -> tempfile::TempDir {
    // On the disk that the build is on; /tmp may be in memory.
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

struct Figures {
    rate: f64,
    p50: f64,
    p99: f64,
    commits: f64,
    syncs: f64,
}

fn figures(mut waits: Vec<Duration>, took: Duration, commits: u64, syncs: u64) -> Figures {
    waits.sort();
    let at = |part: f64| waits[((waits.len() - 1) as f64 * part) as usize].as_secs_f64() * 1000.0;
    let messages = waits.len() as f64;
    Figures {
        rate: messages / took.as_secs_f64(),
        p50: at(0.5),
        p99: at(0.99),
        commits: commits as f64 / messages,
        syncs: syncs as f64 / messages,
    }
}

/// The count of a histogram is only in its text.
fn commits(metrics: &Metrics) -> u64 {
    let text = metrics.encode();
    let line = text
        .lines()
        .find(|it| it.starts_with("graphpost_spool_commit_duration_seconds_count"));
    line.and_then(|it| it.rsplit(' ').next())
        .and_then(|it| it.parse().ok())
        .unwrap()
}

async fn accept(size: usize, producers: usize) -> Figures {
    let directory = directory();
    let metrics = Metrics::new();
    let (spool, _) = Spool::open(&settings(directory.path()), UnknownPolicy::Retry, &metrics)
        .await
        .unwrap();
    let mail = Arc::new(vec![b'x'; size]);
    let started = Instant::now();
    let tasks: Vec<_> = (0..producers)
        .map(|_| {
            let (spool, mail) = (spool.clone(), mail.clone());
            tokio::spawn(async move {
                let mut waits = Vec::new();
                while started.elapsed() < PERIOD {
                    let begun = Instant::now();
                    put(&spool, &mail).await;
                    waits.push(begun.elapsed());
                }
                waits
            })
        })
        .collect();
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await.unwrap());
    }
    let figures = figures(
        waits,
        started.elapsed(),
        commits(&metrics),
        metrics.spool_syncs.get(),
    );
    spool.close().await;
    figures
}

async fn put(spool: &Spool, mail: &[u8]) -> QueueId {
    let mut incoming = spool.incoming().unwrap();
    for piece in mail.chunks(16 << 10) {
        incoming.write(piece).await.unwrap();
    }
    incoming.accept(submission()).await.unwrap().id()
}

/// A file for each message, synced, and its directory, synced: no acknowledgement before both.
async fn file_per_message(size: usize, producers: usize) -> Figures {
    let directory = directory();
    let mail = Arc::new(vec![b'x'; size]);
    let next = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let tasks: Vec<_> = (0..producers)
        .map(|_| {
            let (mail, next, path) = (mail.clone(), next.clone(), directory.path().to_owned());
            tokio::task::spawn_blocking(move || {
                let mut waits = Vec::new();
                while started.elapsed() < PERIOD {
                    let begun = Instant::now();
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let mut file = File::create_new(path.join(format!("{number:08}.eml"))).unwrap();
                    file.write_all(&mail).unwrap();
                    file.sync_all().unwrap();
                    File::open(&path).unwrap().sync_all().unwrap();
                    waits.push(begun.elapsed());
                }
                waits
            })
        })
        .collect();
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await.unwrap());
    }
    figures(waits, started.elapsed(), 0, 0)
}

async fn whole_life(size: usize, producers: usize) -> (f64, f64) {
    let directory = directory();
    let metrics = Metrics::new();
    let (spool, _) = Spool::open(&settings(directory.path()), UnknownPolicy::Retry, &metrics)
        .await
        .unwrap();
    let mail = Arc::new(vec![b'x'; size]);
    let mut arrivals = spool.arrivals();
    let started = Instant::now();
    let tasks: Vec<_> = (0..producers)
        .map(|_| {
            let (spool, mail) = (spool.clone(), mail.clone());
            tokio::spawn(async move {
                let mut count = 0;
                while started.elapsed() < PERIOD {
                    put(&spool, &mail).await;
                    count += 1;
                }
                count
            })
        })
        .collect();
    let sent = Arc::new(AtomicU64::new(0));
    let permits = Arc::new(tokio::sync::Semaphore::new(64));
    let consumer = {
        let (spool, sent) = (spool.clone(), sent.clone());
        tokio::spawn(async move {
            while let Some(arrival) = arrivals.recv().await {
                let permit = permits.clone().acquire_owned().await.unwrap();
                let (spool, sent) = (spool.clone(), sent.clone());
                tokio::spawn(async move {
                    spool.begin_attempt(arrival.id, 500).await.unwrap();
                    spool.settle(arrival.id, Settlement::Sent, None).await.unwrap();
                    sent.fetch_add(1, Ordering::Relaxed);
                    drop(permit);
                });
            }
        })
    };
    let mut accepted = 0;
    for task in tasks {
        accepted += task.await.unwrap();
    }
    while sent.load(Ordering::Relaxed) < accepted {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let rate = accepted as f64 / started.elapsed().as_secs_f64();
    let syncs = metrics.spool_syncs.get() as f64 / accepted as f64;
    spool.close().await;
    consumer.await.unwrap();
    (rate, syncs)
}

/// Opening with 100,000 messages waiting, from a copy of the directory of a queue that still runs:
/// what a crash leaves.
async fn many_waiting() {
    const COUNT: usize = 100_000;
    let home = directory();
    let live = home.path().join("live");
    let (spool, _) = Spool::open(&settings(&live), UnknownPolicy::Retry, &Metrics::new())
        .await
        .unwrap();
    let mail = Arc::new(vec![b'x'; 2_000]);
    let tasks: Vec<_> = (0..200)
        .map(|_| {
            let (spool, mail) = (spool.clone(), mail.clone());
            tokio::spawn(async move {
                for _ in 0..COUNT / 200 {
                    put(&spool, &mail).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let crashed = home.path().join("crashed");
    std::fs::create_dir_all(crashed.join("content")).unwrap();
    for name in ["queue.db", "queue.db-wal"] {
        std::fs::copy(live.join(name), crashed.join(name)).unwrap();
    }
    spool.close().await;
    let started = Instant::now();
    let (spool, recovery) = Spool::open(&settings(&crashed), UnknownPolicy::Retry, &Metrics::new())
        .await
        .unwrap();
    let opened = started.elapsed();
    put(&spool, &mail).await;
    let accepted = started.elapsed();
    let listed = Instant::now();
    let entries = spool.list(Filter::default()).await.unwrap();
    println!(
        "{} messages of 2 KB waiting after a crash: opened in {:.0} ms, the first message accepted after {:.0} ms; listing all {} takes {:.0} ms",
        recovery.queued,
        opened.as_secs_f64() * 1000.0,
        accepted.as_secs_f64() * 1000.0,
        entries.len(),
        listed.elapsed().as_secs_f64() * 1000.0
    );
    spool.close().await;
}
