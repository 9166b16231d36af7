//! A disk that is full, and a disk that fails. Both need a process of its own: one in a mount
//! namespace with a small tmpfs, one under a limit on the size of files.

use std::path::Path;
use std::process::Command;

use graphpost::config::UnknownPolicy;
use graphpost::spool::{Filter, QueueId, Settlement, Spool, SpoolError, State};

use crate::support::{content, open, open_with, ordinary, settings, try_accept};

const DIRECTORY: &str = "GRAPHPOST_TEST_DIRECTORY";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// Runs one of the ignored tests below behind a shell prefix.
fn run(prefix: &[&str], script: &str, test: &str, directory: &Path) -> std::process::Output {
    let mut command = Command::new(prefix.first().copied().unwrap_or("sh"));
    if !prefix.is_empty() {
        command.args(&prefix[1..]).arg("sh");
    }
    command
        .args([
            "-c",
            &format!("{script} exec \"$0\" --exact {test} --ignored --nocapture"),
        ])
        .arg(std::env::current_exe().unwrap())
        .env(DIRECTORY, directory)
        .output()
        .unwrap()
}

fn show(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

async fn intact(spool: &Spool, accepted: &[(QueueId, usize, u64)]) {
    for (id, size, seed) in accepted {
        assert_eq!(spool.content(*id).await.unwrap(), content(*size, *seed), "{id}");
    }
}

#[test]
fn a_full_disk_refuses_mail_and_loses_none() {
    const NAMESPACE: [&str; 2] = ["unshare", "-Urm"];
    let directory = tempfile::tempdir().unwrap();
    let mount = "mount -t tmpfs -o size=8m none \"$GRAPHPOST_TEST_DIRECTORY\"";
    let possible = Command::new(NAMESPACE[0])
        .args([NAMESPACE[1], "sh", "-c", mount])
        .env(DIRECTORY, directory.path())
        .output()
        .is_ok_and(|it| it.status.success());
    if !possible {
        println!("not run: this machine allows no user namespace with a mount of its own");
        return;
    }
    let output = run(
        &NAMESPACE,
        &format!("{mount} &&"),
        "full::on_a_small_disk",
        directory.path(),
    );
    assert!(output.status.success(), "{}", show(&output));
    assert!(show(&output).contains("1 passed"), "{}", show(&output));
}

#[test]
#[ignore = "run by the test above, on a small disk"]
fn on_a_small_disk() {
    let Ok(directory) = std::env::var(DIRECTORY) else {
        return;
    };
    let directory = Path::new(&directory);
    let ballast = directory.join("ballast");
    std::fs::write(&ballast, vec![1; 3 << 20]).unwrap();
    let queue = directory.join("queue");
    runtime().block_on(async {
        let (spool, _) = open(&queue).await;
        let mut accepted = Vec::new();
        let mut refused = 0;
        for seed in 0..4000 {
            // In the database and in files in turn.
            let size = if seed % 2 == 0 { 9_000 } else { 40_000 };
            match try_accept(&spool, &content(size, seed), ordinary()).await {
                Ok(id) => accepted.push((id, size, seed)),
                Err(SpoolError::Full(_)) => refused += 1,
                Err(other) => panic!("{other:?}"),
            }
            if refused == 20 {
                break;
            }
        }
        assert_eq!(refused, 20, "{} accepted", accepted.len());
        assert!(accepted.len() > 20);
        intact(&spool, &accepted).await;

        // Fill what is left, so that not one page can be had, and let an attempt begin and end. It
        // may have to wait for room, and then it is recorded.
        let filler = directory.join("filler");
        let mut file = std::fs::File::create(&filler).unwrap();
        while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
        drop(file);
        let (id, size, seed) = accepted[0];
        let begun = spool.begin_attempt(id, 500).await;
        assert!(matches!(begun, Ok(_) | Err(SpoolError::Full(_))), "{begun:?}");
        std::fs::remove_file(&ballast).unwrap();
        std::fs::remove_file(&filler).unwrap();
        if begun.is_err() {
            spool.begin_attempt(id, 500).await.unwrap();
        }
        spool.settle(id, Settlement::Sent, None).await.unwrap();
        assert_eq!(spool.get(id).await.unwrap().state, State::Sent);
        accepted.remove(0);
        accepted.push((
            try_accept(&spool, &content(size, seed), ordinary())
                .await
                .unwrap(),
            size,
            seed,
        ));
        accepted.push((
            try_accept(&spool, &content(40_000, 1), ordinary()).await.unwrap(),
            40_000,
            1,
        ));
        intact(&spool, &accepted).await;
        spool.close().await;

        let (spool, recovery) = open(&queue).await;
        assert!(recovery.damaged.is_empty() && recovery.set_aside.is_empty());
        assert_eq!(recovery.queued, accepted.len() as u64);
        intact(&spool, &accepted).await;
        spool.close().await;
    });
}

/// A settlement that finds no room waits for it.
#[test]
fn an_outcome_waits_for_room() {
    let directory = tempfile::tempdir().unwrap();
    let mount = "mount -t tmpfs -o size=4m none \"$GRAPHPOST_TEST_DIRECTORY\"";
    let output = run(
        &["unshare", "-Urm"],
        &format!("{mount} || exit 77;"),
        "full::outcome_on_a_small_disk",
        directory.path(),
    );
    if output.status.code() != Some(0) && !show(&output).contains("running 1 test") {
        println!("not run: this machine allows no user namespace with a mount of its own");
        return;
    }
    assert!(output.status.success(), "{}", show(&output));
}

#[test]
#[ignore = "run by the test above, on a small disk"]
fn outcome_on_a_small_disk() {
    let Ok(directory) = std::env::var(DIRECTORY) else {
        return;
    };
    let directory = Path::new(&directory);
    runtime().block_on(async {
        let (spool, _) = open(&directory.join("queue")).await;
        let mut ids = Vec::new();
        for seed in 0..20 {
            ids.push(
                try_accept(&spool, &content(9_000, seed), ordinary())
                    .await
                    .unwrap(),
            );
        }
        for id in &ids {
            spool.begin_attempt(*id, 500).await.unwrap();
        }
        let filler = directory.join("filler");
        let mut file = std::fs::File::create(&filler).unwrap();
        while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
        drop(file);
        let settled: Vec<_> = ids
            .iter()
            .map(|id| {
                let (spool, id) = (spool.clone(), *id);
                tokio::spawn(async move {
                    spool
                        .settle(
                            id,
                            Settlement::Failed {
                                reason: "x".repeat(2000),
                            },
                            None,
                        )
                        .await
                })
            })
            .collect();
        // Mail is refused, and the queue is not broken by it.
        let refused = try_accept(&spool, &content(9_000, 99), ordinary()).await;
        assert!(matches!(refused, Err(SpoolError::Full(_)) | Ok(_)), "{refused:?}");
        std::fs::remove_file(&filler).unwrap();
        for settled in settled {
            settled.await.unwrap().unwrap();
        }
        let failed = Filter {
            states: vec![State::Failed],
            ..Filter::default()
        };
        assert_eq!(spool.list(failed).await.unwrap().len(), ids.len());
        spool.close().await;
    });
}

#[test]
fn a_failing_disk_ends_the_queue_and_loses_no_mail() {
    let directory = tempfile::tempdir().unwrap();
    // A signal that is ignored stays ignored in what is executed; the write then fails with EFBIG,
    // which stands for any error but a full disk.
    let output = run(
        &[],
        "trap '' XFSZ; ulimit -f 8192;",
        "full::under_a_limit",
        directory.path(),
    );
    assert!(output.status.success(), "{}", show(&output));
    assert!(show(&output).contains("1 passed"), "{}", show(&output));

    // What was acknowledged before, in a process without the limit.
    let acknowledged = std::fs::read_to_string(directory.path().join("acknowledged")).unwrap();
    assert!(acknowledged.lines().count() > 10);
    runtime().block_on(async {
        let (spool, recovery) = open(&directory.path().join("queue")).await;
        assert!(recovery.damaged.is_empty());
        for line in acknowledged.lines() {
            let (id, seed) = line.split_once(' ').unwrap();
            let octets = spool.content(id.parse().unwrap()).await.unwrap();
            assert_eq!(octets, content(9_000, seed.parse().unwrap()));
        }
        spool.close().await;
    });
}

#[test]
#[ignore = "run by the test above, under a limit"]
fn under_a_limit() {
    let Ok(directory) = std::env::var(DIRECTORY) else {
        return;
    };
    let directory = Path::new(&directory);
    runtime().block_on(async {
        let (spool, _) = open_with(&settings(&directory.join("queue")), UnknownPolicy::Retry).await;
        // Too large a file is that message's own trouble.
        let mut large = spool.incoming().unwrap();
        let mut result = Ok(());
        for _ in 0..20 {
            result = large.write(&content(1 << 20, 1)).await;
            if result.is_err() {
                break;
            }
        }
        assert!(matches!(result, Err(SpoolError::Full(_))), "{result:?}");
        drop(large);

        let mut acknowledged = String::new();
        let why = loop {
            let seed = acknowledged.len() as u64;
            match try_accept(&spool, &content(9_000, seed), ordinary()).await {
                Ok(id) => acknowledged += &format!("{id} {seed}\n"),
                Err(SpoolError::Broken(why)) => break why,
                Err(other) => panic!("{other:?}"),
            }
        };
        assert_eq!(spool.broken().await, why);
        // Nothing is taken any more, of no kind.
        assert!(matches!(spool.incoming(), Err(SpoolError::Broken(_))));
        assert!(matches!(
            spool.begin_attempt("1".parse().unwrap(), 500).await,
            Err(SpoolError::Broken(_))
        ));
        std::fs::write(directory.join("acknowledged"), acknowledged).unwrap();
    });
}
