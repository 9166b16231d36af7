//! kill -9 under load: what was acknowledged on a pipe is compared with what opening finds.
//!
//! `GRAPHPOST_KILLS=500 cargo test --release --test spool kill` runs longer and prints its count.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use graphpost::config::UnknownPolicy;
use graphpost::spool::{QueueId, Settlement, SpoolError, State};
use jiff::Timestamp;

use crate::support::{content, names, open, open_with, ordinary, settings, try_accept};

const DIRECTORY: &str = "GRAPHPOST_TEST_DIRECTORY";
const ROUND: &str = "GRAPHPOST_TEST_ROUND";

/// A line in one write, so that a kill leaves none by halves that could be read as another.
fn say(line: std::fmt::Arguments<'_>) {
    let line = format!("@{line};\n");
    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
}

fn size(seed: u64) -> usize {
    // Mostly small, some in files.
    if seed.is_multiple_of(5) {
        30_000
    } else {
        100 + (seed % 3000) as usize
    }
}

/// The process that is killed; not a test by itself.
#[test]
#[ignore = "run by the test below, in a process of its own"]
fn victim() {
    let Ok(directory) = std::env::var(DIRECTORY) else {
        return;
    };
    let round: u64 = std::env::var(ROUND).unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (spool, _) = open_with(&settings(Path::new(&directory)), UnknownPolicy::Retry).await;
        let mut arrivals = spool.arrivals();
        for producer in 0..16 {
            let spool = spool.clone();
            tokio::spawn(async move {
                for number in 0.. {
                    let seed = round << 32 | producer << 24 | number;
                    let id = try_accept(&spool, &content(size(seed), seed), ordinary())
                        .await
                        .unwrap();
                    say(format_args!("accepted {id} {seed}"));
                }
            });
        }
        let (hand, hands) = tokio::sync::mpsc::channel::<QueueId>(1);
        let hands = std::sync::Arc::new(tokio::sync::Mutex::new(hands));
        for _ in 0..4 {
            let (spool, hands) = (spool.clone(), hands.clone());
            tokio::spawn(async move {
                loop {
                    let Some(id) = hands.lock().await.recv().await else {
                        return;
                    };
                    say(format_args!("begins {id} 0"));
                    let (entry, _) = spool.begin_attempt(id, 500).await.unwrap();
                    if entry.submission.message_id.is_empty() || id.to_string().ends_with('7') {
                        let deferred = Settlement::Deferred {
                            due: Timestamp::now(),
                            reason: "later".into(),
                        };
                        spool.settle(id, deferred, None).await.unwrap();
                        say(format_args!("deferred {id} 0"));
                    } else {
                        spool.settle(id, Settlement::Sent, None).await.unwrap();
                        say(format_args!("sent {id} 0"));
                    }
                }
            });
        }
        while let Some(arrival) = arrivals.recv().await {
            hand.send(arrival.id).await.unwrap();
        }
    });
}

/// What the pipe has said about a message.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Said {
    Accepted,
    Begun,
    Deferred,
    Sent,
}

#[test]
fn nothing_acknowledged_is_lost() {
    let kills: u64 = std::env::var("GRAPHPOST_KILLS")
        .ok()
        .and_then(|it| it.parse().ok())
        .unwrap_or(8);
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut said: HashMap<QueueId, (Said, u64)> = HashMap::new();
    let (mut accepted, mut interrupted, mut orphans) = (0, 0, 0);
    for round in 1..=kills {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "kill::victim",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(DIRECTORY, directory.path())
            .env(ROUND, round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        // At another point of the work each time.
        let mut until = 20 + round * 37 % 400;
        let mut killed = false;
        // What is still in the pipe after the kill was said before it.
        while let Some(Ok(line)) = lines.next() {
            // The harness writes before the first line, without a line of its own.
            let Some((_, line)) = line.split_once('@') else {
                continue;
            };
            let Some(line) = line.strip_suffix(';') else {
                continue;
            };
            let mut words = line.split(' ');
            let (word, id) = (words.next().unwrap(), words.next().unwrap().parse().unwrap());
            let seed: u64 = words.next().unwrap().parse().unwrap();
            if word == "accepted" {
                accepted += 1;
                // The pipe of the one who delivers may have been faster.
                said.entry(id).or_insert((Said::Accepted, 0)).1 = seed;
            } else {
                let what = match word {
                    "begins" => Said::Begun,
                    "deferred" => Said::Deferred,
                    "sent" => Said::Sent,
                    other => panic!("{other}"),
                };
                said.entry(id).or_insert((what, 0)).0 = what;
            }
            until = until.saturating_sub(1);
            if until == 0 && !killed {
                victim.kill().unwrap();
                killed = true;
            }
        }
        assert!(killed, "it ended by itself: {:?}", victim.wait());
        victim.wait().unwrap();

        runtime.block_on(async {
            let (spool, recovery) = open(directory.path()).await;
            assert!(
                recovery.set_aside.is_empty() && recovery.damaged.is_empty(),
                "{recovery:?}"
            );
            interrupted += recovery.interrupted;
            orphans += recovery.orphans;
            for (id, (said, seed)) in &mut said {
                let state = match spool.get(*id).await {
                    Ok(entry) => entry.state,
                    // Begun, and never heard to be accepted: it must not be missing all the same.
                    Err(error) => panic!("round {round}: {id}, {said:?}: {error}"),
                };
                match said {
                    Said::Accepted | Said::Deferred => assert_eq!(state, State::Queued, "{id}"),
                    Said::Sent => assert_eq!(state, State::Sent, "{id}"),
                    // The answer may have come or not, the outcome may be on the disk or not.
                    Said::Begun => assert!(matches!(state, State::Queued | State::Sent), "{id} {state}"),
                }
                match spool.content(*id).await {
                    Ok(octets) if *seed != 0 => assert_eq!(octets, content(size(*seed), *seed), "{id}"),
                    Ok(_) => {}
                    Err(error) => assert_eq!((error, state), (SpoolError::NotFound(*id), State::Sent)),
                }
                *said = match state {
                    State::Sent => Said::Sent,
                    _ => Said::Accepted,
                };
            }
            let queued = spool.statistics().await.unwrap();
            assert!(names(&directory.path().join("content")).len() as u64 <= queued.messages.kept());
            // What is sent needs no further watching.
            said.retain(|_, (said, _)| *said != Said::Sent);
            spool.close().await;
        });
    }
    println!(
        "{kills} kills, {accepted} accepted, 0 lost, {interrupted} attempts interrupted, {orphans} orphans swept"
    );
    assert!(accepted > 0);
}
