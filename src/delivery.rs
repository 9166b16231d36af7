//! The delivery loop: ask the schedule, attempt, apply the outcome.
//!
//! One task owns the schedule and decides; attempts and settlements run beside it and report back.
//! A message is in the schedule, in an attempt, or in a settlement, never in two of them. A place in
//! flight is free as soon as the answer has arrived; the message comes back into the schedule only
//! after its settlement is on the disk.

mod attempt;
mod budget;
mod control;
mod look;
mod verdict;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bounce::Happening;
use crate::config::{self, UnknownPolicy};
use crate::convert::Wishes;
use crate::event;
use crate::graph::client::Graph;
use crate::metrics::{Metrics, ResultLabel};
use crate::notify::{About, MessageFacts};
use crate::outcome::Outcome;
use crate::postmaster::{Occasion, Postmaster};
use crate::schedule::{Limits, Message, Next, Retry, Schedule, Trouble, Way};
use crate::spool::{self, Arrival, Entry, QueueId, Settlement, Spool, SpoolError};

use attempt::{Begun, Ended, Means};
use budget::Budget;
pub use control::{Closed, Control, LaneState, State, TroubleRecord};
use control::{Reasons, Recent, Request};
use look::{Conclusion, Looked};
use verdict::Verdict;

/// Arrivals taken into the schedule at once, so that a flood of them does not keep answers waiting.
const ARRIVALS_AT_ONCE: usize = 256;
/// A queue that has no room for the record of an attempt is asked again after this time.
const FULL_WAIT: Duration = Duration::from_secs(30);
/// What a settlement may take after the drain: its outcome is known and must not be lost.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Nothing is given up for its age within this time of a start: what was mended meanwhile is not known.
const GRACE: Duration = Duration::from_secs(60 * 60);

/// A lifetime that does not end.
const NEVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Delivery time expired (RFC 3463 §3.5).
const EXPIRED: &str = "4.4.7";

/// What the loop goes by; a reload changes it.
#[derive(Clone)]
pub struct Settings {
    /// The way to Graph.
    pub graph: Graph,
    /// Limits, waits, lifetime.
    pub delivery: config::Delivery,
    /// Who tells senders of what failed.
    pub postmaster: Postmaster,
    /// The form that messages are to have.
    pub wishes: Wishes,
}

/// The delivery loop.
pub struct Delivery {
    spool: Spool,
    metrics: Arc<Metrics>,
    settings: Settings,
    started: Instant,
    schedule: Schedule,
    memory: Arc<Budget>,
    attempts: JoinSet<Ended>,
    /// Which message an attempt is about, for the case that it panics.
    under_way: HashMap<tokio::task::Id, QueueId>,
    /// Messages in the schedule whose outcome is unknown: they are looked for, not sent.
    unknown: HashSet<QueueId>,
    looks: JoinSet<Looked>,
    settlements: JoinSet<Result<Option<Again>, SpoolError>>,
    requests: mpsc::Receiver<Request>,
    recent: Recent,
    reasons: Reasons,
    stop: CancellationToken,
}

/// A settled message that is tried again.
struct Again {
    message: Message,
    due: std::time::Instant,
    /// Whether it is looked for instead.
    unknown: bool,
}

impl Delivery {
    /// Prepares the loop. [`Control`] steers it while it runs.
    pub fn new(spool: Spool, settings: Settings, metrics: Arc<Metrics>) -> (Delivery, Control) {
        let (control, requests) = control::channel();
        let memory = Budget::new(settings.delivery.max_memory);
        let delivery = Delivery {
            spool,
            metrics,
            schedule: Schedule::new(limits(&settings.delivery)),
            settings,
            started: Instant::now(),
            memory,
            attempts: JoinSet::new(),
            under_way: HashMap::new(),
            unknown: HashSet::new(),
            looks: JoinSet::new(),
            settlements: JoinSet::new(),
            requests,
            recent: Recent::default(),
            reasons: Reasons::default(),
            stop: CancellationToken::new(),
        };
        (delivery, control)
    }

    /// Delivers until `stop` is cancelled, then waits for what is under way, up to the drain timeout.
    /// Returns how many attempts it had to leave; the next start finds them.
    ///
    /// # Errors
    /// The queue is broken: nothing may go on.
    pub async fn run(mut self, stop: CancellationToken) -> Result<usize, SpoolError> {
        let mut arrivals = self.spool.arrivals();
        self.stop = stop.clone();
        loop {
            let wake = self.start_what_may_start();
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = self.attempts.join_next_with_id() => self.ended(ended),
                Some(looked) = self.looks.join_next_with_id() => self.looked(looked),
                Some(settled) = self.settlements.join_next() => self.settled(settled)?,
                Some(arrival) = arrivals.recv() => {
                    self.arrived(arrival);
                    for _ in 1..ARRIVALS_AT_ONCE {
                        let Ok(arrival) = arrivals.try_recv() else { break };
                        self.arrived(arrival);
                    }
                }
                Some(request) = self.requests.recv() => self.serve(request),
                () = sleep_until(wake) => {}
            }
        }
        self.drain().await
    }

    /// Starts attempts as long as the schedule has any, and says when it has more.
    fn start_what_may_start(&mut self) -> Option<std::time::Instant> {
        loop {
            match self.schedule.next(now()) {
                Next::Deliver { id, .. } if self.unknown.contains(&id) => {
                    let look = look::look(id, self.spool.clone(), self.settings.graph.clone());
                    let task = self.looks.spawn(look);
                    self.under_way.insert(task.id(), id);
                }
                Next::Deliver { id, size } => {
                    let means = Means {
                        spool: self.spool.clone(),
                        graph: self.settings.graph.clone(),
                        wishes: self.settings.wishes,
                        max_recipients: self.settings.delivery.max_recipients,
                        memory: self.memory.clone(),
                        stop: self.stop.clone(),
                    };
                    let attempt = attempt::attempt(id, size, means);
                    let task = self.attempts.spawn(attempt);
                    self.under_way.insert(task.id(), id);
                }
                Next::SleepUntil(instant) => return Some(instant),
                Next::Idle => return None,
            }
        }
    }

    fn arrived(&mut self, arrival: Arrival) {
        match arrival.unknown {
            true => self.unknown.insert(arrival.id),
            false => self.unknown.remove(&arrival.id),
        };
        let message = Message {
            id: arrival.id,
            mailbox: arrival.mailbox,
            size: arrival.size,
            expires: match arrival.unknown {
                true => instant(arrival.accepted, NEVER),
                false => instant(arrival.accepted, self.settings.delivery.lifetime),
            },
        };
        self.schedule
            .add(message, instant(arrival.due, Duration::ZERO), now());
    }

    fn ended(&mut self, ended: Result<(tokio::task::Id, Ended), JoinError>) {
        let task = match &ended {
            Ok((task, _)) => *task,
            Err(error) => error.id(),
        };
        let Some(id) = self.under_way.remove(&task) else {
            return;
        };
        match ended {
            Ok((_, Ended::Begun(begun))) => self.begun(*begun),
            Ok((_, Ended::NotBegun(result))) => {
                self.schedule.answered(id, Way::NotSent, now());
                match result {
                    // Deleted, held, or stopped: it comes back by itself if it is to be sent.
                    Ok(()) | Err(SpoolError::NotFound(_)) => {}
                    Err(SpoolError::Damaged(_, why)) => event::damaged(&id, &why),
                    Err(error) => {
                        // A full disk passes; a broken queue is seen by whoever watches it.
                        event::not_begun(&id, &error);
                        self.look_up_again(id, FULL_WAIT);
                    }
                }
            }
            Err(error) if error.is_panic() => {
                // Where it got to is not known, so the message must not simply go out again.
                event::defect("delivery", &error);
                self.schedule.answered(id, Way::NotSent, now());
                let reason =
                    "an internal error ended the attempt; whether it was sent is not known".to_owned();
                self.settle(id, Settlement::Unknown { due: None, reason }, None, None);
            }
            Err(_) => {
                self.schedule.answered(id, Way::NotSent, now());
            }
        }
    }

    /// Applies what came of an attempt: to the schedule now, to the queue beside the loop.
    fn begun(&mut self, begun: Begun) {
        let Begun { entry, result, .. } = &begun;
        let id = entry.id;
        let now = now();
        let verdict = Verdict::of(result);
        let recovered = self.schedule.answered(id, verdict.way, now);
        if recovered.tenant >= Some(Trouble::Outage) {
            event::tenant_recovered();
        }
        let mailbox = entry.submission.route.mailbox.clone();
        if recovered.mailbox >= Some(Trouble::Outage) {
            event::mailbox_recovered(&mailbox);
        }
        let until = self.close(&verdict, &mailbox, now);
        // In the schedule it waits for its own sake only: what is closed may open earlier than it said.
        let due = now + self.wait(&verdict, entry.attempts);
        let expected = due.max(until.unwrap_or(now));
        let settlement = self.settlement(&verdict, entry, timestamp(expected));
        self.log(
            &begun,
            &verdict,
            &settlement,
            expected.saturating_duration_since(now),
        );
        self.recent.push(entry, &verdict.outcome);
        self.tell_if_held(entry, &verdict, &settlement);

        let again = match settlement {
            Settlement::Deferred { .. } | Settlement::Held { .. } => Some(Again {
                message: self.message(entry),
                due,
                unknown: false,
            }),
            Settlement::Unknown { due: Some(_), .. } => Some(Again {
                message: looked_for(entry),
                due: now + look::first(self.settings.delivery.verify_time),
                unknown: true,
            }),
            Settlement::Sent | Settlement::Failed { .. } | Settlement::Unknown { due: None, .. } => None,
        };
        match &settlement {
            Settlement::Failed { .. } => self.fail(begun.entry, &verdict, settlement),
            _ => self.settle(id, settlement, verdict.request_id.clone(), again),
        }
        if verdict.trouble.is_some() {
            self.expire(&verdict.outcome);
        }
    }

    /// Tells the operator's systems of a message that waits for somebody; not again at each attempt. Of a
    /// mailbox or a credential that holds all of them they are told by itself.
    fn tell_if_held(&self, entry: &Entry, verdict: &Verdict, settlement: &Settlement) {
        let (reason, outcome_unknown) = match settlement {
            Settlement::Held { reason, .. } if verdict.trouble.is_none() => (reason, false),
            Settlement::Unknown { due: None, reason } => (reason, true),
            _ => return,
        };
        if entry.reason.as_deref() != Some(reason) {
            self.settings.postmaster.notify(About::MessageHeld {
                message: MessageFacts::of(entry, verdict.request_id.as_deref()),
                reason: reason.clone(),
                outcome_unknown,
            });
        }
    }

    /// Closes what the outcome says, and raises the voice when that is news.
    fn close(
        &mut self,
        verdict: &Verdict,
        mailbox: &str,
        now: std::time::Instant,
    ) -> Option<std::time::Instant> {
        let (scope, trouble) = verdict.trouble?;
        let random = random();
        let (wait, why) = (verdict.closed_for(), verdict.why());
        let closing = match scope {
            verdict::Scope::Mailbox => self.schedule.close_mailbox(mailbox, trouble, wait, now, random),
            verdict::Scope::Tenant => self.schedule.close_tenant(trouble, wait, now, random),
        };
        match scope {
            verdict::Scope::Mailbox => self.reasons.of_mailbox(mailbox, why),
            verdict::Scope::Tenant => self.reasons.of_tenant(why),
        }
        if closing.news {
            let wait = closing.until.saturating_duration_since(now);
            match (scope, trouble) {
                (verdict::Scope::Mailbox, Trouble::Throttled) => event::mailbox_throttled(mailbox, why, wait),
                (verdict::Scope::Mailbox, Trouble::Outage) => event::mailbox_closed(mailbox, why, wait),
                (verdict::Scope::Mailbox, Trouble::Hold) => {
                    event::mailbox_held(mailbox, why, wait);
                    self.settings.postmaster.notify(About::MailboxHeld {
                        mailbox: mailbox.to_owned(),
                        reason: why.to_owned(),
                    });
                }
                (verdict::Scope::Tenant, Trouble::Hold) => {
                    event::tenant_held(why, wait);
                    self.settings.postmaster.notify(About::CredentialHeld {
                        reason: why.to_owned(),
                    });
                }
                (verdict::Scope::Tenant, _) => event::tenant_closed(why, wait),
            }
        }
        Some(closing.until)
    }

    /// How long the message itself waits after so many attempts, whatever else is closed.
    fn wait(&self, verdict: &Verdict, attempts: u32) -> Duration {
        let retry = Retry {
            first: self.settings.delivery.retry_first,
            max: self.settings.delivery.retry_max,
        };
        verdict.wait(retry, attempts, random())
    }

    /// What the queue records.
    fn settlement(&self, verdict: &Verdict, entry: &Entry, due: Timestamp) -> Settlement {
        let reason = verdict.why().to_owned();
        let lifetime = self.settings.delivery.lifetime;
        let expired = verdict.counts_against_lifetime()
            && since(entry.accepted) >= lifetime
            && self.may_expire(&entry.submission.route.mailbox);
        match &verdict.outcome {
            Outcome::Sent => Settlement::Sent,
            Outcome::Failed { .. } => Settlement::Failed { reason },
            Outcome::Unknown { .. } if self.policy(entry) == UnknownPolicy::Hold => {
                Settlement::Unknown { due: None, reason }
            }
            Outcome::Unknown { .. } if self.policy(entry) == UnknownPolicy::Verify => Settlement::Unknown {
                due: Some(timestamp(now() + look::first(self.settings.delivery.verify_time))),
                reason,
            },
            _ if expired => Settlement::Failed {
                reason: verdict::expired(lifetime, &reason),
            },
            Outcome::Deferred { .. } | Outcome::Unknown { .. } => Settlement::Deferred { due, reason },
            Outcome::Held { .. } => Settlement::Held { due, reason },
        }
    }

    /// Whether a message of this mailbox may be given up for its age. While an operator had to mend
    /// something it could not be sent; and soon after a start nobody knows what was mended before.
    fn may_expire(&self, mailbox: &str) -> bool {
        let lifetime = self.settings.delivery.lifetime;
        self.started.elapsed() >= lifetime.min(GRACE)
            && self
                .schedule
                .last_mended(mailbox)
                .is_none_or(|it| it.elapsed() >= lifetime)
    }

    /// What is to be done where nobody can know: what its rule says, or else the configuration.
    fn policy(&self, entry: &Entry) -> UnknownPolicy {
        let rule = entry.submission.route.unknown;
        rule.unwrap_or(self.settings.delivery.unknown)
    }

    /// Applies what a look into Sent Items has found out.
    fn looked(&mut self, looked: Result<(tokio::task::Id, Looked), JoinError>) {
        let task = match &looked {
            Ok((task, _)) => *task,
            Err(error) => error.id(),
        };
        let Some(id) = self.under_way.remove(&task) else {
            return;
        };
        self.unknown.remove(&id);
        let looked = match looked {
            Ok((_, looked)) => looked,
            Err(error) => {
                event::defect("delivery", &error);
                Err(SpoolError::Failed(error.to_string()))
            }
        };
        let now = now();
        let (entry, finding) = match looked {
            Ok(Some(found)) => found,
            Ok(None) => {
                self.schedule.answered(id, Way::NotSent, now);
                return self.look_up_again(id, Duration::ZERO);
            }
            Err(error) => {
                self.schedule.answered(id, Way::NotSent, now);
                event::not_begun(&id, &error);
                return self.look_up_again(id, FULL_WAIT);
            }
        };
        let trouble = look::trouble(&finding);
        // A look is no message: it counts for the minute only where Graph would not have it.
        let throttled = trouble.as_ref().is_some_and(|it| it.way == Way::Throttled);
        let way = if throttled { Way::Throttled } else { Way::NotSent };
        self.schedule.answered(id, way, now);
        if let Some(verdict) = trouble {
            self.close(&verdict, &entry.submission.route.mailbox, now);
        }
        let unknown_for = since(entry.changed);
        let conclusion = look::conclude(&finding, unknown_for, self.settings.delivery.verify_time);
        let settlement = look::settlement(&conclusion, &entry, Timestamp::now());
        let again = match &conclusion {
            Conclusion::NotSent(_) => Some(Again {
                message: self.message(&entry),
                due: now,
                unknown: false,
            }),
            Conclusion::LookAgain(wait, _) => Some(Again {
                message: looked_for(&entry),
                due: now + *wait,
                unknown: true,
            }),
            Conclusion::Sent | Conclusion::Hold(_) => None,
        };
        let lifetime = self.settings.delivery.lifetime;
        let (spool, metrics) = (self.spool.clone(), self.metrics.clone());
        self.settlements.spawn(async move {
            match spool.settle_unknown(id, settlement).await {
                Ok(()) => {}
                // The operator has decided, or there is no room to record it: it is looked up.
                Err(SpoolError::NotFound(_)) => return look_up(&spool, id, lifetime, Duration::ZERO).await,
                Err(SpoolError::Full(_) | SpoolError::Failed(_)) => {
                    return look_up(&spool, id, lifetime, FULL_WAIT).await;
                }
                Err(error) => return Err(error),
            }
            let mailbox = &entry.submission.route.mailbox;
            let result = match &conclusion {
                Conclusion::Sent => {
                    event::verified_sent(&id, mailbox, unknown_for);
                    count(&metrics.messages, "sent");
                    "sent"
                }
                Conclusion::NotSent(why) => {
                    event::verified_not_sent(&id, mailbox, why);
                    "not_sent"
                }
                Conclusion::LookAgain(wait, why) => {
                    event::verify_again(&id, mailbox, why, *wait);
                    "open"
                }
                Conclusion::Hold(why) => {
                    event::not_verified(&id, mailbox, why);
                    "held"
                }
            };
            count(&metrics.verifications, result);
            Ok(again)
        });
    }

    fn log(&self, begun: &Begun, verdict: &Verdict, settlement: &Settlement, retry_in: Duration) {
        let submission = &begun.entry.submission;
        let attempt = event::Attempt {
            id: &begun.entry.id,
            mailbox: &submission.route.mailbox,
            from: &submission.envelope.reverse_path,
            recipients: submission.envelope.recipients.len(),
            size: begun.entry.size,
            attempts: begun.entry.attempts,
            code: verdict.code,
            request_id: verdict.request_id.as_deref(),
            queued: begun.queued,
            prepared: begun.prepared,
            answered: begun.answered,
        };
        let result = match &verdict.outcome {
            Outcome::Sent => "sent",
            Outcome::Deferred { .. } => "deferred",
            Outcome::Held { .. } => "held",
            Outcome::Failed { .. } => "failed",
            Outcome::Unknown { .. } => "unknown",
        };
        count(&self.metrics.delivery_attempts, result);
        match (settlement, &verdict.outcome) {
            (Settlement::Sent, _) => {
                event::sent(&attempt);
                count(&self.metrics.messages, "sent");
                let duration = since(begun.entry.accepted);
                self.metrics
                    .delivery_duration_seconds
                    .observe(duration.as_secs_f64());
            }
            (Settlement::Failed { reason }, Outcome::Failed { enhanced, .. }) => {
                event::failed(&attempt, reason, enhanced);
                count(&self.metrics.messages, "failed");
            }
            (Settlement::Failed { reason }, _) => {
                event::expired(
                    attempt.id,
                    attempt.mailbox,
                    attempt.from,
                    attempt.attempts,
                    reason,
                );
                count(&self.metrics.messages, "expired");
            }
            (Settlement::Unknown { due: None, reason }, _) => event::unknown(&attempt, reason, None),
            (Settlement::Unknown { due: Some(_), reason }, _) => {
                event::verifying(&attempt, reason, look::first(self.settings.delivery.verify_time));
            }
            (Settlement::Deferred { reason, .. }, Outcome::Unknown { .. }) => {
                event::unknown(&attempt, reason, Some(retry_in));
            }
            (Settlement::Deferred { reason, .. }, _) => event::deferred(&attempt, reason, retry_in),
            (Settlement::Held { reason, .. }, _) => event::held(&attempt, reason, retry_in),
        }
    }

    /// Records an outcome beside the loop.
    fn settle(
        &mut self,
        id: QueueId,
        settlement: Settlement,
        request_id: Option<String>,
        again: Option<Again>,
    ) {
        let spool = self.spool.clone();
        self.settlements.spawn(async move {
            let there = settle(&spool, id, settlement, request_id).await?;
            Ok(again.filter(|_| there))
        });
    }

    /// Tells whom it concerns, and records the failure, beside the loop.
    fn fail(&mut self, entry: Entry, verdict: &Verdict, settlement: Settlement) {
        let Settlement::Failed { reason } = &settlement else {
            return;
        };
        let (happening, enhanced) = match &verdict.outcome {
            Outcome::Failed { enhanced, .. } => (Happening::Failed, *enhanced),
            _ => (Happening::Expired, EXPIRED),
        };
        let reason = reason.clone();
        let request_id = verdict.request_id.clone();
        let (spool, postmaster) = (self.spool.clone(), self.settings.postmaster.clone());
        self.settlements.spawn(async move {
            let occasion = Occasion {
                happening,
                reason: &reason,
                enhanced,
                request_id: request_id.as_deref(),
            };
            postmaster.tell(&entry, occasion).await;
            crash_point!("bounce-queued");
            settle(&spool, entry.id, settlement, request_id).await?;
            Ok(None)
        });
    }

    fn settled(
        &mut self,
        settled: Result<Result<Option<Again>, SpoolError>, JoinError>,
    ) -> Result<(), SpoolError> {
        match settled {
            Ok(Ok(Some(again))) => {
                match again.unknown {
                    true => self.unknown.insert(again.message.id),
                    false => self.unknown.remove(&again.message.id),
                };
                self.schedule.add(again.message, again.due, now());
                Ok(())
            }
            Ok(Ok(None)) => Ok(()),
            // An outcome that cannot be recorded would be forgotten by the next start: the message
            // would go out again. So nothing more may go out.
            Ok(Err(error)) => Err(error),
            Err(error) => Err(SpoolError::Broken(error.to_string())),
        }
    }

    /// Gives up what is beyond its lifetime while its mailbox, or Microsoft, does not work.
    fn expire(&mut self, outcome: &Outcome) {
        let lifetime = self.settings.delivery.lifetime;
        if self.started.elapsed() < lifetime.min(GRACE) {
            return;
        }
        for id in self.schedule.expired(lifetime, now()) {
            self.schedule.remove(id, now());
            let spool = self.spool.clone();
            let metrics = self.metrics.clone();
            let postmaster = self.settings.postmaster.clone();
            let lifetime = self.settings.delivery.lifetime;
            let reason = verdict::expired(lifetime, verdict::why(outcome));
            self.settlements.spawn(async move {
                let entry = match spool.get(id).await {
                    Ok(entry) if entry.is_waiting() => entry,
                    Ok(_) | Err(SpoolError::NotFound(_)) => return Ok(None),
                    // It is given up another time.
                    Err(SpoolError::Full(_) | SpoolError::Failed(_)) => {
                        return look_up(&spool, id, lifetime, FULL_WAIT).await;
                    }
                    Err(error) => return Err(error),
                };
                let submission = &entry.submission;
                event::expired(
                    &id,
                    &submission.route.mailbox,
                    &submission.envelope.reverse_path,
                    entry.attempts,
                    &reason,
                );
                count(&metrics.messages, "expired");
                let occasion = Occasion {
                    happening: Happening::Expired,
                    reason: &reason,
                    enhanced: EXPIRED,
                    request_id: entry.request_id.as_deref(),
                };
                postmaster.tell(&entry, occasion).await;
                match spool.give_up(id, &reason).await {
                    // Or the operator has put it on hold or deleted it meanwhile: as he wishes.
                    Ok(()) | Err(SpoolError::NotFound(_)) => Ok(None),
                    Err(SpoolError::Full(_) | SpoolError::Failed(_)) => {
                        look_up(&spool, id, lifetime, FULL_WAIT).await
                    }
                    Err(error) => Err(error),
                }
            });
        }
    }

    /// Brings a message back whose attempt could not be begun.
    fn look_up_again(&mut self, id: QueueId, wait: Duration) {
        let spool = self.spool.clone();
        let lifetime = self.settings.delivery.lifetime;
        self.settlements
            .spawn(async move { look_up(&spool, id, lifetime, wait).await });
    }

    /// Begins nothing more, and waits for what is under way.
    async fn drain(mut self) -> Result<usize, SpoolError> {
        let limit = self.settings.delivery.drain_timeout;
        event::stopping(self.attempts.len(), limit);
        // A look that is left leaves nothing behind.
        self.looks.abort_all();
        self.looks.detach_all();
        let end = Instant::now() + limit;
        let mut left = 0;
        while !(self.attempts.is_empty() && self.settlements.is_empty()) {
            tokio::select! {
                Some(ended) = self.attempts.join_next_with_id() => self.ended(ended),
                Some(settled) = self.settlements.join_next() => self.settled(settled)?,
                () = tokio::time::sleep_until(end), if !self.attempts.is_empty() => {
                    left = self.attempts.len();
                    self.attempts.abort_all();
                    self.attempts.detach_all();
                }
                // What is known by now must not be lost; but a full disk may never have room again.
                () = tokio::time::sleep_until(end + SETTLE_TIMEOUT) => {
                    return Ok(left + self.settlements.len());
                }
            }
        }
        Ok(left)
    }

    fn message(&self, entry: &Entry) -> Message {
        message(entry, self.settings.delivery.lifetime)
    }
}

/// A message as the queue has it, to be tried after a while; `None` when it is gone. What keeps the
/// queue from answering for now is waited for: only a broken queue ends the delivery.
async fn look_up(
    spool: &Spool,
    id: QueueId,
    lifetime: Duration,
    wait: Duration,
) -> Result<Option<Again>, SpoolError> {
    loop {
        match spool.get(id).await {
            Ok(entry) => {
                let unknown = match entry.state {
                    spool::State::Queued | spool::State::Sending => false,
                    spool::State::Held if entry.due.is_some() => false,
                    spool::State::Unknown if entry.due.is_some() => true,
                    // Nothing comes of it by itself.
                    _ => return Ok(None),
                };
                let message = match unknown {
                    true => looked_for(&entry),
                    false => message(&entry, lifetime),
                };
                let due = now() + wait;
                return Ok(Some(Again {
                    message,
                    due,
                    unknown,
                }));
            }
            Err(SpoolError::NotFound(_)) => return Ok(None),
            Err(SpoolError::Full(_) | SpoolError::Failed(_)) => tokio::time::sleep(FULL_WAIT).await,
            Err(error) => return Err(error),
        }
    }
}

/// Records an outcome. Whether the message was still there to be settled.
async fn settle(
    spool: &Spool,
    id: QueueId,
    settlement: Settlement,
    request_id: Option<String>,
) -> Result<bool, SpoolError> {
    crash_point!("outcome-known");
    match spool.settle(id, settlement, request_id).await {
        Ok(()) => {
            crash_point!("outcome-settled");
            Ok(true)
        }
        Err(SpoolError::NotFound(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn message(entry: &Entry, lifetime: Duration) -> Message {
    Message {
        id: entry.id,
        mailbox: entry.submission.route.mailbox.clone(),
        size: entry.size,
        expires: instant(entry.accepted, lifetime),
    }
}

/// A message whose outcome is to be found out: that is not given up for its age.
fn looked_for(entry: &Entry) -> Message {
    message(entry, NEVER)
}

fn limits(settings: &config::Delivery) -> Limits {
    Limits {
        concurrency_per_mailbox: settings.concurrency_per_mailbox,
        concurrency: settings.concurrency,
        messages_per_minute: settings.messages_per_minute,
    }
}

fn count(family: &Family<ResultLabel, Counter>, result: &'static str) {
    family.get_or_create(&ResultLabel { result }).inc();
}

/// A number in 0..1. It spreads retries; nothing secret hangs on it.
fn random() -> f64 {
    // Every `RandomState` has keys of its own.
    RandomState::new().hash_one(0u8) as f64 / u64::MAX as f64
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// How long ago; nothing where our clock has been set back.
fn since(then: Timestamp) -> Duration {
    Duration::try_from(Timestamp::now().duration_since(then)).unwrap_or(Duration::ZERO)
}

/// The instant of a point in time plus `after`. What lies too far back for this clock is now.
fn instant(then: Timestamp, after: Duration) -> std::time::Instant {
    let now = now();
    let ahead = then.duration_since(Timestamp::now());
    let at = match Duration::try_from(ahead) {
        Ok(ahead) => now.checked_add(ahead),
        Err(_) => now.checked_sub(ahead.unsigned_abs()),
    };
    at.unwrap_or(now).checked_add(after).unwrap_or(now)
}

/// The point in time of an instant.
fn timestamp(instant: std::time::Instant) -> Timestamp {
    let ahead = instant.saturating_duration_since(now());
    Timestamp::now()
        .checked_add(jiff::SignedDuration::try_from(ahead).unwrap_or(jiff::SignedDuration::MAX))
        .unwrap_or(Timestamp::MAX)
}

async fn sleep_until(wake: Option<std::time::Instant>) {
    match wake {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}
