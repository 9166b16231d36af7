//! Tells the operator's own systems what needs a person: by a webhook, by a command, or by both. Mail about
//! it goes another way (`postmaster.rs`); but what is broken may be the way that mail takes.
//!
//! Never in the way of mail: a notice is handed over without waiting, is kept in memory, and there are
//! only so many of them. One that is not delivered is lost, with a line in the log; what it was about is
//! in the queue and in the log all the same.

mod hook;
mod notice;
mod webhook;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::event;
use crate::identity::HttpsError;
use crate::metrics::{Metrics, NoticeLabel};

use hook::Hook;
pub use notice::{About, Kind, MessageFacts, Notice};
use webhook::Webhook;

/// Notices that wait for a way; more are lost.
const WAITING: usize = 1000;
/// How long what waits may still be delivered after the stop.
const GRACE: Duration = Duration::from_secs(5);

/// Where notices go, as the configuration has it.
#[derive(Clone, Debug, Default)]
pub struct Ways {
    kinds: Vec<Kind>,
    webhook: Option<Arc<Webhook>>,
    hook: Option<Arc<Hook>>,
    hostname: String,
}

impl Ways {
    /// Makes the HTTPS client of the webhook. Blocks: it reads certificate authorities.
    ///
    /// # Errors
    /// As [`HttpsError`] says.
    pub fn new(config: &config::Config) -> Result<Ways, HttpsError> {
        let settings = &config.notify;
        let webhook = match &settings.webhook {
            Some(webhook) => Some(Arc::new(Webhook::new(webhook, &config.tenant)?)),
            None => None,
        };
        Ok(Ways {
            kinds: settings.events.iter().copied().map(Kind::from).collect(),
            webhook,
            hook: settings.command.clone().map(|it| Arc::new(Hook(it))),
            hostname: config.smtp.hostname.clone(),
        })
    }
}

/// Takes notices. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Notifier {
    ways: watch::Sender<Ways>,
    webhook: mpsc::Sender<Ask>,
    hook: mpsc::Sender<Ask>,
    stop: CancellationToken,
    metrics: Arc<Metrics>,
}

enum Ask {
    Deliver(Arc<Notice>),
    Finish(oneshot::Sender<()>),
}

/// One of the two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Webhook,
    Hook,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Webhook => "webhook",
            Way::Hook => "command",
        }
    }
}

impl Notifier {
    /// Starts the two workers. They end when the last notifier is dropped.
    pub fn start(ways: Ways, metrics: Arc<Metrics>) -> Notifier {
        let (ways, _) = watch::channel(ways);
        let stop = CancellationToken::new();
        let start = |way| {
            let (sender, inbox) = mpsc::channel(WAITING);
            let worker = Worker {
                way,
                inbox,
                ways: ways.subscribe(),
                stop: stop.clone(),
                metrics: Arc::clone(&metrics),
            };
            tokio::spawn(worker.run());
            sender
        };
        let (webhook, hook) = (start(Way::Webhook), start(Way::Hook));
        Notifier {
            ways,
            webhook,
            hook,
            stop,
            metrics,
        }
    }

    /// Goes by another configuration from now on; what waits goes the new way.
    pub fn change(&self, ways: Ways) {
        self.ways.send_replace(ways);
    }

    /// Tells of something, if that is wanted. Never waits.
    pub fn tell(&self, about: About) {
        let ways = self.ways.borrow().clone();
        if !ways.kinds.contains(&about.kind()) {
            return;
        }
        let notice = Arc::new(Notice::new(about, &ways.hostname));
        let wanted = [
            (Way::Webhook, &self.webhook, ways.webhook.is_some()),
            (Way::Hook, &self.hook, ways.hook.is_some()),
        ];
        for (way, sender, wanted) in wanted {
            if wanted && sender.try_send(Ask::Deliver(Arc::clone(&notice))).is_err() {
                lost(&self.metrics, way, &notice, "too many wait already");
            }
        }
    }

    /// Delivers what waits, but not for long, and takes nothing more.
    pub async fn finish(&self) {
        let mut answers = Vec::new();
        for sender in [&self.webhook, &self.hook] {
            let (reply, answer) = oneshot::channel();
            if sender.try_send(Ask::Finish(reply)).is_ok() {
                answers.push(answer);
            }
        }
        let finished = async {
            for answer in answers {
                // A worker that has ended has nothing left.
                let _ = answer.await;
            }
        };
        let _ = timeout(GRACE, finished).await;
        self.stop.cancel();
    }
}

fn lost(metrics: &Metrics, way: Way, notice: &Notice, why: &str) {
    event::notice_lost(way.name(), &notice.id, notice.kind().as_str(), why);
    count(metrics, way, "lost");
}

fn count(metrics: &Metrics, way: Way, result: &'static str) {
    let label = NoticeLabel {
        channel: way.name(),
        result,
    };
    metrics.notices.get_or_create(&label).inc();
}

/// Delivers one notice after the other.
struct Worker {
    way: Way,
    inbox: mpsc::Receiver<Ask>,
    ways: watch::Receiver<Ways>,
    stop: CancellationToken,
    metrics: Arc<Metrics>,
}

impl Worker {
    async fn run(mut self) {
        while let Some(ask) = self.inbox.recv().await {
            match ask {
                Ask::Deliver(notice) => match self.deliver(&notice).await {
                    Ok(()) => count(&self.metrics, self.way, "delivered"),
                    Err(why) => lost(&self.metrics, self.way, &notice, &why),
                },
                Ask::Finish(reply) => {
                    // Whoever asked may have stopped waiting.
                    let _ = reply.send(());
                }
            }
        }
    }

    /// Tries for as long as it makes sense; the error says why it does not any more.
    async fn deliver(&mut self, notice: &Notice) -> Result<(), String> {
        const STOPPED: &str = "the gateway stops";
        let mut failures = 0;
        loop {
            let ways = self.ways.borrow_and_update().clone();
            let attempt = async {
                match self.way {
                    Way::Webhook => match &ways.webhook {
                        Some(webhook) => webhook.post(notice).await,
                        None => Err(Failed::Final("there is no webhook any more".to_owned())),
                    },
                    Way::Hook => match &ways.hook {
                        Some(hook) => hook.run(notice).await.map_err(Failed::Final),
                        None => Err(Failed::Final("there is no command any more".to_owned())),
                    },
                }
            };
            let result = tokio::select! {
                result = attempt => result,
                () = self.stop.cancelled() => return Err(STOPPED.to_owned()),
            };
            let why = match result {
                Ok(()) => return Ok(()),
                Err(Failed::Final(why)) => return Err(why),
                Err(Failed::Passing(why)) => why,
            };
            let Some(wait) = webhook::wait(failures, notice.age()) else {
                return Err(format!("given up; the last attempt said: {why}"));
            };
            failures += 1;
            event::notice_deferred(self.way.name(), &notice.id, &why, wait);
            count(&self.metrics, self.way, "deferred");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // A new configuration may have mended it.
                Ok(()) = self.ways.changed() => {}
                () = self.stop.cancelled() => return Err(format!("{STOPPED}; the last attempt said: {why}")),
            }
        }
    }
}

/// Why a notice did not get there.
#[derive(Debug, PartialEq, Eq)]
enum Failed {
    /// Later it may.
    Passing(String),
    /// It never will.
    Final(String),
}
