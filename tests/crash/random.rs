//! kill -9 under load, again and again.
//!
//! `GRAPHPOST_CRASH_KILLS=500 cargo test --test crash every_250 -- --nocapture` makes a longer run.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use crate::rig::{Client, DEADLINE, Gateway, IN_FLIGHT, cloud, configure, is_busy};

/// Connections that send at the same time.
const CLIENTS: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn every_250_is_delivered() {
    let kills: usize = std::env::var("GRAPHPOST_CRASH_KILLS").map_or(6, |it| it.parse().unwrap());
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let cloud = cloud(directory.path()).await;
    configure(directory.path(), &cloud.url(), directory.path(), |it| it);

    let acknowledged: Arc<Mutex<Vec<String>>> = Arc::default();
    let (hears, mut heard) = watch::channel(0);
    let next = Arc::new(AtomicUsize::new(0));
    for kill in 0..kills {
        let mut gateway = Gateway::start(directory.path(), None);
        // A different moment each time, spread over what happens to a message.
        let until = acknowledged.lock().unwrap().len() + 20 + (kill * 37) % 80;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let (port, next) = (gateway.listening(), next.clone());
                let (acknowledged, hears) = (acknowledged.clone(), hears.clone());
                tokio::task::spawn_blocking(move || {
                    // The kill ends the connection, and so the client: an error here is expected.
                    let _ = send_until_cut(port, &acknowledged, &hears, &next);
                })
            })
            .collect();
        tokio::time::timeout(DEADLINE, heard.wait_for(|it| *it >= until))
            .await
            .expect("the gateway accepts mail")
            .unwrap();
        gateway.kill();
        for client in clients {
            client.await.unwrap();
        }
    }

    // Once more, undisturbed: what is still in the queue goes out.
    let gateway = Gateway::start(directory.path(), None);
    let spool = directory.path().join("spool");
    let drained = async {
        while is_busy(&spool) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE * (1 + kills as u32 / 50), drained)
        .await
        .expect("the queue drains");
    let log = gateway.log();
    gateway.stop();
    let acknowledged = acknowledged.lock().unwrap().clone();
    let mut delivered: BTreeMap<String, usize> = BTreeMap::new();
    for delivery in cloud.deliveries() {
        *delivered.entry(delivery.subject).or_default() += 1;
    }
    let lost: Vec<_> = acknowledged
        .iter()
        .filter(|it| !delivered.contains_key(*it))
        .collect();
    assert!(
        lost.is_empty(),
        "{} of {} lost: {lost:?}\n{log}",
        lost.len(),
        acknowledged.len()
    );

    let duplicates: usize = delivered.values().map(|times| times - 1).sum();
    println!(
        "kills {kills}, acknowledged {}, delivered {}, lost 0, duplicates {duplicates}",
        acknowledged.len(),
        delivered.len()
    );
    // Only a request in flight at a kill may be sent twice: its answer is what got lost.
    assert!(duplicates <= kills * IN_FLIGHT, "{duplicates} duplicates");
    // A message is one or it is none: sizes tell that none was cut.
    let sizes: HashMap<String, usize> = cloud
        .deliveries()
        .into_iter()
        .map(|it| (it.subject, it.size))
        .collect();
    for (subject, size) in sizes {
        let number: usize = subject.parse().unwrap();
        assert!(
            size > body_lines(number) * LINE.len(),
            "{subject} has {size} octets"
        );
    }
}

const LINE: &str = "An invoice line that says what was bought, and what it costs.\r\n";

/// Every fifth message is large enough for a file of its own.
fn body_lines(number: usize) -> usize {
    if number.is_multiple_of(5) { 600 } else { 20 }
}

/// One client: message after message on one connection, until it is cut.
fn send_until_cut(
    port: u16,
    acknowledged: &Mutex<Vec<String>>,
    hears: &watch::Sender<usize>,
    next: &AtomicUsize,
) -> std::io::Result<()> {
    let mut client = Client::connect(port)?;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        client.send(
            &number.to_string(),
            &format!("\r\n{}", LINE.repeat(body_lines(number))),
        )?;
        acknowledged.lock().unwrap().push(number.to_string());
        hears.send_modify(|it| *it += 1);
    }
}
