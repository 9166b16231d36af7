//! How others ask the running loop something, or tell it something.

use std::collections::{HashMap, VecDeque};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::Settings;
use super::budget::Budget;
use super::verdict;
use crate::diagnosis::{Diagnosis, Health};
use crate::outcome::Outcome;
use crate::schedule::Trouble;
use crate::spool::Entry;

/// Requests that may wait for the loop.
const REQUESTS: usize = 16;
/// Troubles that are remembered.
const RECENT: usize = 20;

/// Steers a running [`Delivery`](super::Delivery). Cheap to clone.
#[derive(Clone)]
pub struct Control(mpsc::Sender<Request>);

pub(super) enum Request {
    State(oneshot::Sender<State>),
    Probe,
    Change(Box<Settings>),
}

/// What the loop is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Why nothing is sent at all, if so.
    pub closed: Option<Closed>,
    /// The lanes that have messages or are closed, by mailbox.
    pub lanes: Vec<LaneState>,
    /// Requests under way.
    pub in_flight: usize,
    /// The last attempts that did not end well, the newest last.
    pub troubles: Vec<TroubleRecord>,
    /// What must be mended, or is waited for, in the words of `graphpost check`.
    #[serde(default)]
    pub findings: Vec<Diagnosis>,
}

/// Why something is closed, and until when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// `throttled`, `outage` or `hold`.
    pub because: String,
    /// The next attempt.
    pub until: Timestamp,
}

/// One lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneState {
    /// The mailbox.
    pub mailbox: String,
    /// Messages waiting.
    pub waiting: usize,
    /// Requests under way.
    pub in_flight: usize,
    /// Requests that may be under way at present.
    pub window: usize,
    /// Messages that count against the limit per minute.
    pub in_last_minute: usize,
    /// That limit, as it is at present: what was configured, or what throttling has taught.
    #[serde(default)]
    pub per_minute: u32,
    /// Why it is closed, if it is.
    pub closed: Option<Closed>,
}

/// An attempt that did not end well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TroubleRecord {
    /// When.
    pub at: Timestamp,
    /// The message.
    pub id: String,
    /// The mailbox.
    pub mailbox: String,
    /// `deferred`, `held`, `failed` or `unknown`.
    pub result: String,
    /// Why.
    pub reason: String,
}

pub(super) fn channel() -> (Control, mpsc::Receiver<Request>) {
    let (sender, receiver) = mpsc::channel(REQUESTS);
    (Control(sender), receiver)
}

impl Control {
    /// What the loop is doing; `None` when it has ended.
    pub async fn state(&self) -> Option<State> {
        let (answer, wait) = oneshot::channel();
        self.0.send(Request::State(answer)).await.ok()?;
        wait.await.ok()
    }

    /// Lets what is held for an operator try one message now.
    pub async fn probe(&self) {
        // A loop that has ended tries nothing.
        let _ = self.0.send(Request::Probe).await;
    }

    /// Goes by other settings from now on.
    pub async fn change(&self, settings: Settings) {
        let _ = self.0.send(Request::Change(Box::new(settings))).await;
    }
}

/// Why what is closed is closed. There are no more of them than mailboxes in the sender table.
#[derive(Debug, Default)]
pub(super) struct Reasons {
    tenant: String,
    mailboxes: HashMap<String, String>,
}

impl Reasons {
    pub(super) fn of_tenant(&mut self, why: &str) {
        why.clone_into(&mut self.tenant);
    }

    pub(super) fn of_mailbox(&mut self, mailbox: &str, why: &str) {
        self.mailboxes.insert(mailbox.to_owned(), why.to_owned());
    }

    /// What is closed now, with the reasons.
    fn findings(&self, tenant: Option<&Closed>, lanes: &[LaneState]) -> Vec<Diagnosis> {
        let health = |closed: &Closed| match closed.because.as_str() {
            "hold" => Health::Fail,
            _ => Health::Warn,
        };
        let mut findings = Vec::new();
        if let Some(closed) = tenant {
            findings.push(Diagnosis::of_reason(health(closed), "delivery", &self.tenant));
        }
        for lane in lanes {
            if let (Some(closed), Some(why)) = (&lane.closed, self.mailboxes.get(&lane.mailbox)) {
                let check = format!("mailbox {}", lane.mailbox);
                findings.push(Diagnosis::of_reason(health(closed), check, why));
            }
        }
        findings
    }
}

/// The last attempts that did not end well.
#[derive(Debug, Default)]
pub(super) struct Recent(VecDeque<TroubleRecord>);

impl Recent {
    pub(super) fn push(&mut self, entry: &Entry, outcome: &Outcome) {
        let result = match outcome {
            Outcome::Sent => return,
            Outcome::Deferred { .. } => "deferred",
            Outcome::Held { .. } => "held",
            Outcome::Failed { .. } => "failed",
            Outcome::Unknown { .. } => "unknown",
        };
        if self.0.len() == RECENT {
            self.0.pop_front();
        }
        self.0.push_back(TroubleRecord {
            at: Timestamp::now(),
            id: entry.id.to_string(),
            mailbox: entry.submission.route.mailbox.clone(),
            result: result.into(),
            reason: verdict::why(outcome).into(),
        });
    }
}

impl super::Delivery {
    pub(super) fn serve(&mut self, request: Request) {
        match request {
            Request::State(answer) => {
                // Whoever asked may have gone.
                let _ = answer.send(self.state());
            }
            Request::Probe => {
                self.settings.graph.probe();
                self.schedule.probe_now(super::now());
            }
            Request::Change(settings) => {
                if settings.delivery.max_memory != self.settings.delivery.max_memory {
                    // What is under way has its share of the old one.
                    self.memory = Budget::new(settings.delivery.max_memory);
                }
                self.settings = *settings;
                self.schedule
                    .set_limits(super::limits(&self.settings.delivery), super::now());
                // What was wrong may just have been mended.
                self.schedule.probe_now(super::now());
            }
        }
    }

    fn state(&self) -> State {
        let closed = |(trouble, until): (Trouble, std::time::Instant)| Closed {
            because: match trouble {
                Trouble::Throttled => "throttled",
                Trouble::Outage => "outage",
                Trouble::Hold => "hold",
            }
            .into(),
            until: super::timestamp(until),
        };
        let mut lanes: Vec<LaneState> = self
            .schedule
            .lanes(super::now())
            .into_iter()
            .filter(|lane| lane.waiting + lane.in_flight > 0 || lane.closed.is_some())
            .map(|lane| LaneState {
                mailbox: lane.mailbox.to_string(),
                waiting: lane.waiting,
                in_flight: lane.in_flight,
                window: lane.window,
                in_last_minute: lane.in_last_minute,
                per_minute: lane.per_minute,
                closed: lane.closed.map(closed),
            })
            .collect();
        lanes.sort_by(|a, b| a.mailbox.cmp(&b.mailbox));
        let tenant = self.schedule.tenant().map(closed);
        let mut findings = self.reasons.findings(tenant.as_ref(), &lanes);
        // While the last token still does, only the token itself knows that there is no other.
        if let Some(trouble) = self.settings.graph.token_trouble() {
            let health = if trouble.credential {
                Health::Fail
            } else {
                Health::Warn
            };
            let token = Diagnosis::of_reason(health, "token", &trouble.why);
            // What holds the delivery is this very thing.
            findings.retain(|it| it.check != "delivery" || it.detail != token.detail);
            findings.insert(0, token);
        }
        State {
            closed: tenant,
            findings,
            lanes,
            in_flight: self.schedule.in_flight(),
            troubles: self.recent.0.iter().cloned().collect(),
        }
    }
}
