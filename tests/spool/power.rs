//! Power cuts. A process works on a queue with a witness preloaded (`power.c`) that logs every write,
//! sync and change of a name. From the log we make what a disk may hold when the power goes at some
//! moment: all that was synced before it, and of the rest nothing, all, or any of its pieces. Each of
//! these disks is opened as a queue, and must have all that was acknowledged before the cut.
//!
//! That the method can find a loss is tested too: with a disk that lies about some of the syncs.
//!
//! `GRAPHPOST_POWER_CUTS=5000 cargo test --release --test spool power` makes more cuts.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;

use graphpost::config::UnknownPolicy;
use graphpost::metrics::Metrics;
use graphpost::spool::{QueueId, Settlement, Spool, SpoolError, State};
use jiff::Timestamp;

use crate::support::{content, open_with, ordinary, settings, try_accept};

const DIRECTORY: &str = "POWER_DIRECTORY";
const LOG: &str = "POWER_LOG";
/// In place of a file's number.
const A_DIRECTORY: u32 = u32::MAX;
/// What a disk writes whole or not at all.
const BLOCK: usize = 4096;

fn size(seed: u64) -> usize {
    if seed.is_multiple_of(4) {
        10_001 + (seed % 7 * 9_000) as usize
    } else {
        100 + (seed % 3000) as usize
    }
}

/// The process whose power is cut; not a test by itself.
#[test]
#[ignore = "run by the test below, in a process of its own"]
fn victim() {
    let Ok(directory) = std::env::var(DIRECTORY) else {
        return;
    };
    let directory = PathBuf::from(directory);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let acks = std::sync::Arc::new(
            std::fs::File::options()
                .append(true)
                .create(true)
                .open(directory.join("acks"))
                .unwrap(),
        );
        let say = move |line: String| {
            use std::io::Write;
            (&*acks).write_all(line.as_bytes()).unwrap();
        };
        // Twice, so that what opening and closing do is cut as well.
        for round in 0..2 {
            let (spool, _) = open_with(&settings(&directory.join("queue")), UnknownPolicy::Retry).await;
            let mut arrivals = spool.arrivals();
            let producers: Vec<_> = (0..6)
                .map(|producer| {
                    let (spool, say) = (spool.clone(), say.clone());
                    tokio::spawn(async move {
                        for number in 0..20 {
                            let seed = (round * 10 + producer) * 100 + number + 1;
                            let id = try_accept(&spool, &content(size(seed), seed), ordinary())
                                .await
                                .unwrap();
                            say(format!("accepted {id} {seed}\n"));
                        }
                    })
                })
                .collect();
            let consumer = {
                let (spool, say) = (spool.clone(), say.clone());
                tokio::spawn(async move {
                    for number in 0..70 {
                        let id = arrivals.recv().await.unwrap().id;
                        say(format!("begins {id} 0\n"));
                        spool.begin_attempt(id, 500).await.unwrap();
                        if number % 3 == 0 {
                            let deferred = Settlement::Deferred {
                                due: Timestamp::now(),
                                reason: "later".into(),
                            };
                            spool.settle(id, deferred, None).await.unwrap();
                            say(format!("deferred {id} 0\n"));
                        } else {
                            spool.settle(id, Settlement::Sent, None).await.unwrap();
                            say(format!("sent {id} 0\n"));
                        }
                    }
                })
            };
            for producer in producers {
                producer.await.unwrap();
            }
            consumer.await.unwrap();
            spool.tidy().await.unwrap();
            spool.close().await;
        }
    });
}

#[derive(Debug)]
enum Record {
    Make {
        number: u32,
        is_directory: bool,
        name: String,
    },
    Write {
        number: u32,
        offset: usize,
        octets: Vec<u8>,
    },
    Truncate {
        number: u32,
        length: usize,
    },
    SyncBegins {
        number: u32,
        call: u64,
    },
    SyncEnds {
        number: u32,
        call: u64,
    },
    Unlink {
        name: String,
    },
    Rename {
        from: String,
        to: String,
    },
    MakeDirectory {
        name: String,
    },
}

fn read_log(path: &Path) -> Vec<Record> {
    let log = std::fs::read(path).unwrap();
    let mut rest = &log[..];
    let mut records = Vec::new();
    while let Some((head, tail)) = rest.split_at_checked(21) {
        let number = u32::from_ne_bytes(head[1..5].try_into().unwrap());
        let offset = u64::from_ne_bytes(head[5..13].try_into().unwrap());
        let length = u64::from_ne_bytes(head[13..21].try_into().unwrap()) as usize;
        let (octets, tail) = tail.split_at(length);
        rest = tail;
        let text = || String::from_utf8(octets.to_vec()).unwrap();
        records.push(match head[0] {
            1 => Record::Make {
                number,
                is_directory: offset != 0,
                name: text(),
            },
            2 => Record::Write {
                number,
                offset: offset as usize,
                octets: octets.to_vec(),
            },
            3 => Record::Truncate {
                number,
                length: offset as usize,
            },
            4 => Record::SyncBegins { number, call: offset },
            5 => Record::SyncEnds { number, call: offset },
            6 => Record::Unlink { name: text() },
            7 => {
                let (from, to) = octets.split_at(octets.iter().position(|it| *it == 0).unwrap());
                let text = |it: &[u8]| String::from_utf8(it.to_vec()).unwrap();
                Record::Rename {
                    from: text(from),
                    to: text(&to[1..]),
                }
            }
            8 => Record::MakeDirectory { name: text() },
            other => panic!("{other}"),
        });
    }
    records
}

/// xorshift: a cut is found again by its number.
struct Chance(u64);

impl Chance {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % below
    }
}

/// What becomes of what was written and not yet synced.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Unsynced {
    Lost,
    Kept,
    Pieces,
}

#[derive(Clone, Debug)]
enum NameChange {
    Bind(String, u32),
    Unbind(String),
    Rename(String, String),
}

fn parent(name: &str) -> String {
    name.rsplit_once('/')
        .map_or(String::new(), |(parent, _)| parent.to_owned())
}

/// The files that a disk may hold when the power goes before record `cut`. Syncs of files for which
/// `lies` holds do nothing.
fn disk(
    records: &[Record],
    cut: usize,
    chance: &mut Chance,
    lies: fn(&str) -> bool,
) -> BTreeMap<String, Vec<u8>> {
    let unsynced = [Unsynced::Lost, Unsynced::Kept, Unsynced::Pieces, Unsynced::Pieces][chance.next(4)];
    // Up to which record each file and each directory is safe.
    let mut safe: HashMap<u32, usize> = HashMap::new();
    let mut begun: HashMap<(u32, u64), usize> = HashMap::new();
    let mut last_name: HashMap<u32, &str> = HashMap::new();
    let mut directories: HashMap<&str, u32> = HashMap::new();
    for (at, record) in records[..cut].iter().enumerate() {
        match record {
            Record::Make {
                number,
                is_directory,
                name,
            } => {
                last_name.insert(*number, name);
                if *is_directory {
                    directories.insert(name, *number);
                }
            }
            Record::SyncBegins { number, call } => {
                begun.insert((*number, *call), at);
            }
            Record::SyncEnds { number, call } if !lies(last_name[number]) => {
                let begun = begun[&(*number, *call)];
                let safe = safe.entry(*number).or_default();
                *safe = begun.max(*safe);
            }
            _ => {}
        }
    }
    // Names: of the changes in a directory that were not synced, the first few, in their order.
    let mut bound: HashMap<String, u32> = HashMap::new();
    let mut changes: BTreeMap<String, Vec<(usize, NameChange)>> = BTreeMap::new();
    let mut now: HashMap<&str, u32> = HashMap::new();
    for (at, record) in records[..cut].iter().enumerate() {
        let (name, change) = match record {
            Record::Make {
                number,
                is_directory: false,
                name,
            } if now.get(name.as_str()) != Some(number) => {
                now.insert(name, *number);
                (name, NameChange::Bind(name.clone(), *number))
            }
            Record::Unlink { name } => {
                now.remove(name.as_str());
                (name, NameChange::Unbind(name.clone()))
            }
            Record::Rename { from, to } => {
                if let Some(number) = now.remove(from.as_str()) {
                    now.insert(to, number);
                }
                (from, NameChange::Rename(from.clone(), to.clone()))
            }
            Record::MakeDirectory { name } => (name, NameChange::Bind(name.clone(), A_DIRECTORY)),
            _ => continue,
        };
        changes.entry(parent(name)).or_default().push((at, change));
    }
    for (directory, changes) in changes {
        let safe = directories
            .get(directory.as_str())
            .and_then(|it| safe.get(it))
            .copied()
            .unwrap_or(0);
        let certain = changes.iter().take_while(|(at, _)| *at < safe).count();
        let open = changes.len() - certain;
        let more = match unsynced {
            Unsynced::Lost => 0,
            Unsynced::Kept => open,
            Unsynced::Pieces => chance.next(open + 1),
        };
        for (_, change) in changes.into_iter().take(certain + more) {
            match change {
                NameChange::Bind(name, number) => {
                    bound.insert(name, number);
                }
                NameChange::Unbind(name) => {
                    bound.remove(&name);
                }
                NameChange::Rename(from, to) => {
                    if let Some(number) = bound.remove(&from) {
                        bound.insert(to, number);
                    }
                }
            }
        }
    }
    // Content, by file number.
    let mut files: HashMap<u32, Vec<u8>> = HashMap::new();
    for (at, record) in records[..cut].iter().enumerate() {
        let (Record::Write { number, .. } | Record::Truncate { number, .. }) = record else {
            continue;
        };
        let certain = at < safe.get(number).copied().unwrap_or(0) || unsynced == Unsynced::Kept;
        if !certain && unsynced == Unsynced::Lost {
            continue;
        }
        let file = files.entry(*number).or_default();
        match record {
            Record::Truncate { length, .. } if certain || chance.next(2) == 0 => file.resize(*length, 0),
            Record::Write { offset, octets, .. } => {
                let mut start = *offset;
                while start < offset + octets.len() {
                    let end = ((start / BLOCK + 1) * BLOCK).min(offset + octets.len());
                    if certain || chance.next(2) == 0 {
                        if file.len() < end {
                            file.resize(end, 0);
                        }
                        file[start..end].copy_from_slice(&octets[start - offset..end - offset]);
                    }
                    start = end;
                }
            }
            _ => {}
        }
    }
    let there = bound.clone();
    bound
        .into_iter()
        // Shared memory is not on the disk, and a file is not there without its directory.
        .filter(|(name, number)| !name.ends_with("-shm") && *number != A_DIRECTORY)
        .filter(|(name, _)| parent(name).is_empty() || there.get(&parent(name)) == Some(&A_DIRECTORY))
        .map(|(name, number)| (name, files.remove(&number).unwrap_or_default()))
        .collect()
}

/// What was said before the cut: the last word about each message, and its seed.
fn said(records: &[Record], cut: usize) -> BTreeMap<QueueId, (String, u64)> {
    let mut acks = None;
    let mut text = Vec::new();
    for record in &records[..cut] {
        match record {
            Record::Make { number, name, .. } if name == "acks" => acks = Some(*number),
            Record::Write { number, octets, .. } if Some(*number) == acks => text.extend_from_slice(octets),
            _ => {}
        }
    }
    let mut said: BTreeMap<QueueId, (String, u64)> = BTreeMap::new();
    for line in String::from_utf8(text).unwrap().lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let (id, seed): (QueueId, u64) = (words[1].parse().unwrap(), words[2].parse().unwrap());
        let entry = said.entry(id).or_default();
        if words[0] == "accepted" {
            entry.1 = seed;
            // Its attempt may have been said before.
            if entry.0.is_empty() {
                entry.0 = "accepted".to_owned();
            }
        } else {
            entry.0 = words[0].to_owned();
        }
    }
    said
}

/// Opens a disk and counts what is missing or wrong of what was said.
async fn losses(directory: &Path, said: &BTreeMap<QueueId, (String, u64)>) -> Vec<String> {
    let queue = directory.join("queue");
    let opened = Spool::open(&settings(&queue), UnknownPolicy::Retry, &Metrics::new()).await;
    let (spool, recovery) = match opened {
        Ok(opened) => opened,
        Err(error) => return vec![error.to_string()],
    };
    let mut losses: Vec<String> = recovery
        .set_aside
        .iter()
        .map(|it| it.display().to_string())
        .collect();
    for (id, (word, seed)) in said {
        let state = match spool.get(*id).await {
            Ok(entry) => entry.state,
            Err(error) => {
                losses.push(format!("{word} {id}: {error}"));
                continue;
            }
        };
        let right = match word.as_str() {
            "accepted" | "deferred" => state == State::Queued,
            // A lease or an outcome may have come onto the disk behind the last word.
            "begins" => matches!(state, State::Queued | State::Sent),
            _ => state == State::Sent,
        };
        // The word may lag behind: accepted, taken up by the other task, settled, and not yet said.
        let right = right || word == "accepted" && state == State::Sent;
        if !right {
            losses.push(format!("{word} {id}: {state}"));
        }
        match spool.content(*id).await {
            Ok(octets) if *seed != 0 && octets != content(size(*seed), *seed) => {
                losses.push(format!("{word} {id}: changed"))
            }
            Ok(_) => {}
            Err(SpoolError::NotFound(_)) if state == State::Sent => {}
            Err(error) => losses.push(format!("{word} {id}: {error}")),
        }
    }
    spool.close().await;
    losses
}

#[test]
fn a_power_cut_at_any_moment_loses_nothing() {
    let cuts: u64 = std::env::var("GRAPHPOST_POWER_CUTS")
        .ok()
        .and_then(|it| it.parse().ok())
        .unwrap_or(40);
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let witness = home.path().join("power.so");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let compiled = Command::new(compiler)
        .args(["-O1", "-shared", "-fPIC", "-o"])
        .arg(&witness)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/spool/power.c"))
        .args(["-ldl", "-lpthread"])
        .status()
        .unwrap();
    assert!(compiled.success());
    let (work, log) = (home.path().join("work"), home.path().join("log"));
    std::fs::create_dir(&work).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "power::victim", "--ignored", "--nocapture"])
        .env("LD_PRELOAD", &witness)
        .env(DIRECTORY, &work)
        .env(LOG, &log)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let records = read_log(&log);
    let syncs = records
        .iter()
        .filter(|it| matches!(it, Record::SyncEnds { .. }))
        .count();
    assert!(syncs > 20, "{syncs} syncs: the witness does not see them");
    let acknowledgements = said(&records, records.len());
    assert_eq!(acknowledgements.values().filter(|it| it.1 != 0).count(), 240);
    // With no cut at all the log must agree with the disk.
    let whole = disk(&records, records.len(), &mut Chance(4), |_| false);
    assert!(whole.contains_key("queue/queue.db"));

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let acks: Vec<usize> = {
        let mut number = None;
        let mut at = Vec::new();
        for (index, record) in records.iter().enumerate() {
            match record {
                Record::Make { number: it, name, .. } if name == "acks" => number = Some(*it),
                Record::Write { number: it, .. } if Some(*it) == number => at.push(index + 1),
                _ => {}
            }
        }
        at
    };
    let try_cuts = |cuts: u64, lies: fn(&str) -> bool| -> (usize, Vec<String>) {
        let mut lost = Vec::new();
        let mut checked = 0;
        for number in 1..=cuts {
            let mut chance = Chance(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            chance.next(1);
            // Half of them at the worst moment: just after something was acknowledged.
            let cut = if number % 2 == 0 {
                acks[chance.next(acks.len())]
            } else {
                chance.next(records.len())
            };
            let said = said(&records, cut);
            let files = disk(&records, cut, &mut chance, lies);
            let place = home.path().join("disk");
            let _ = std::fs::remove_dir_all(&place);
            for (name, octets) in files {
                let path = place.join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, octets).unwrap();
            }
            checked += said.len();
            let losses = runtime.block_on(losses(&place, &said));
            if !losses.is_empty() {
                lost.push(format!(
                    "cut {number} before record {cut} of {}: {losses:?}",
                    records.len()
                ));
            }
        }
        (checked, lost)
    };

    let (checked, lost) = try_cuts(cuts, |_| false);
    assert!(
        lost.is_empty(),
        "{} of {cuts} cuts lose mail; the first: {}",
        lost.len(),
        lost[0]
    );
    println!("{cuts} power cuts, {checked} acknowledged messages looked for, 0 lost");

    // The controls: a disk that says synced and is not.
    let (_, lost) = try_cuts(12, |name| name.ends_with("-wal"));
    assert!(
        !lost.is_empty(),
        "a log that is never synced loses nothing: the test is blind"
    );
    println!("control, log not synced: {} of 12 cuts lose mail", lost.len());
    let (_, lost) = try_cuts(12, |name| name == "queue/content");
    assert!(
        !lost.is_empty(),
        "names of content files that are never synced lose nothing: the test is blind"
    );
    println!(
        "control, content directory not synced: {} of 12 cuts lose mail",
        lost.len()
    );
    let (_, lost) = try_cuts(12, |name| name.ends_with(".eml"));
    assert!(
        !lost.is_empty(),
        "content files that are never synced lose nothing: the test is blind"
    );
    println!(
        "control, content files not synced: {} of 12 cuts lose mail",
        lost.len()
    );
}
