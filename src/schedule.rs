//! What to deliver next, and when. Knows no clock, no disk and no network. ○
//!
//! Every sending mailbox has a lane of its own, because Graph counts requests per application and
//! mailbox: a throttled or broken mailbox holds up itself and nobody else. A lane keeps three limits:
//!
//! - **in flight**: Graph allows 4 requests at once. A request counts until its answer has arrived.
//! - **a minute**: Exchange Online takes 30 messages a minute from a mailbox. A message counts until
//!   a minute after its *answer*, so that however long a request was under way, the server never sees
//!   more than that many in any minute of its own.
//! - **closed**: until the instant that `Retry-After` names, or that the backoff gives.
//!
//! The tenant can be closed as a whole. What was closed reopens for a single message; when that one
//! gets through ([`Way::Clear`]), for the rest.
//!
//! Throttling teaches: when Graph refuses the k-th request in flight, the lane goes below k at once
//! and comes back to k only after long good conduct, longer each time it proves wrong. In the same way it
//! learns how many messages a minute are taken, where that is less than was configured.
//!
//! All operations cost O(log n) in messages and lanes, except [`Schedule::expired`] and
//! [`Schedule::lanes`], which look at all there is.

mod pace;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::spool::QueueId;
use pace::{Pace, Window};

const MINUTE: Duration = Duration::from_secs(60);

/// The first wait of a mailbox or tenant that is closed without a `Retry-After`; doubled each time.
const OUTAGE_FIRST: Duration = Duration::from_secs(1);
/// The longest such wait: an outage that ends is noticed within this time.
const OUTAGE_MAX: Duration = Duration::from_secs(5 * 60);
/// The same for what an operator must mend.
const HOLD_FIRST: Duration = Duration::from_secs(15);
const HOLD_MAX: Duration = Duration::from_secs(15 * 60);
/// The longest `Retry-After` that is believed (MSAL caps at the same hour).
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60 * 60);

/// A lane without messages is forgotten after this time, with what throttling has taught it.
const FORGET_AFTER: Duration = Duration::from_secs(60 * 60);

/// What to do now.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Attempt this message; [`Schedule::answered`] must follow.
    Deliver {
        /// Its number.
        id: QueueId,
        /// Octets of its content.
        size: u64,
    },
    /// Nothing may start before this instant, unless something is added or answered.
    SleepUntil(Instant),
    /// Nothing may start before something is added or answered.
    Idle,
}

/// The limits of the way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests in flight for one mailbox.
    pub concurrency_per_mailbox: usize,
    /// Requests in flight over all mailboxes.
    pub concurrency: usize,
    /// Messages a minute for one mailbox.
    pub messages_per_minute: u32,
}

/// When a message is tried again, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// The wait after the first attempt; doubled after each further one.
    pub first: Duration,
    /// The longest wait.
    pub max: Duration,
}

impl Retry {
    /// The wait after so many attempts. `random` is in 0..1 and spreads the wait by a quarter to
    /// either side, so that messages deferred together do not come back together.
    pub fn wait(&self, attempts: u32, random: f64) -> Duration {
        let doublings = attempts.saturating_sub(1).min(30);
        let wait = self.first.saturating_mul(1 << doublings).min(self.max);
        wait.mul_f64(0.75 + random.clamp(0.0, 1.0) / 2.0)
    }
}

/// A message for the schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its number.
    pub id: QueueId,
    /// The mailbox that sends it. Case is ignored.
    pub mailbox: String,
    /// Octets of content.
    pub size: u64,
    /// The end of its lifetime.
    pub expires: Instant,
}

/// What the answer to an attempt says about the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Graph dealt with the message: the mailbox and the tenant are well, whatever is the matter
    /// with the message.
    Clear,
    /// The request was sent, and no more is known.
    Unclear,
    /// Graph throttled the request.
    Throttled,
    /// The request was never sent.
    NotSent,
}

/// Why a lane or the tenant is closed, the graver last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// We sent faster than Graph likes.
    Throttled,
    /// Something between us and Graph does not work. It passes by itself.
    Outage,
    /// An operator must mend something: a credential, a permission.
    Hold,
}

/// What [`Schedule::close_mailbox`] and [`Schedule::close_tenant`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing {
    /// The next attempt is not before this.
    pub until: Instant,
    /// Whether it was open before, or closed for the other reason: the moment to raise one's voice.
    pub news: bool,
}

/// What a message that got through has reopened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// What the mailbox was closed for.
    pub mailbox: Option<Trouble>,
    /// What the tenant was closed for.
    pub tenant: Option<Trouble>,
}

/// One lane, for the status page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneStatus {
    /// The mailbox.
    pub mailbox: Arc<str>,
    /// Messages waiting.
    pub waiting: usize,
    /// Requests in flight.
    pub in_flight: usize,
    /// Requests that may be in flight at present.
    pub window: usize,
    /// Messages that count against the minute.
    pub in_last_minute: usize,
    /// Messages a minute at present.
    pub per_minute: u32,
    /// Why it is closed, and until when.
    pub closed: Option<(Trouble, Instant)>,
}

/// The messages of all lanes.
#[derive(Debug)]
pub struct Schedule {
    limits: Limits,
    lanes: HashMap<LaneId, Lane>,
    by_mailbox: HashMap<Arc<str>, LaneId>,
    messages: HashMap<QueueId, Place>,
    /// Lanes that may start a message now, the longest unserved first.
    ready: BTreeSet<(u64, LaneId)>,
    /// Lanes that may start a message later, the soonest first.
    later: BTreeSet<(Instant, LaneId)>,
    /// Lanes without messages, the longest empty first.
    empty: BTreeSet<(Instant, LaneId)>,
    tenant: Gate,
    in_flight: usize,
    /// Counts services, to be fair between lanes.
    turn: u64,
    lanes_made: LaneId,
}

type LaneId = u64;

/// Where a message is.
#[derive(Debug)]
enum Place {
    Waiting {
        lane: LaneId,
        due: Instant,
    },
    InFlight {
        lane: LaneId,
        /// How many requests the lane had in flight with it.
        company: usize,
        /// The lane's lesson when it began.
        lesson: u64,
        /// How often the lane and the tenant had been closed when it began: a success from before
        /// the last closing opens nothing.
        closings: (u64, u64),
    },
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    size: u64,
    expires: Instant,
}

/// Closed for a while after trouble, then open for one.
#[derive(Debug, Default)]
struct Gate {
    trouble: Option<Trouble>,
    until: Option<Instant>,
    /// Closings in a row.
    failures: u32,
    /// Closings ever.
    closings: u64,
    /// When it was last opened after a hold.
    mended: Option<Instant>,
}

impl Gate {
    fn close(&mut self, trouble: Trouble, wait: Option<Duration>, now: Instant, random: f64) -> Closing {
        // Answers that arrive while it is closed belong to requests from before. They say the same
        // thing again, or something of less weight; only a longer Retry-After is new.
        let late = self.trouble >= Some(trouble) && self.until.is_some_and(|until| now < until);
        let news = !late && self.trouble != Some(trouble);
        if news {
            self.failures = 0;
        }
        if !late {
            self.trouble = Some(trouble);
            self.failures += 1;
            self.closings += 1;
        }
        let (first, max) = match trouble {
            Trouble::Throttled | Trouble::Outage => (OUTAGE_FIRST, OUTAGE_MAX),
            Trouble::Hold => (HOLD_FIRST, HOLD_MAX),
        };
        let wait = match wait {
            Some(wait) => wait.min(RETRY_AFTER_MAX),
            None if late => Duration::ZERO,
            None => Retry { first, max }.wait(self.failures, random),
        };
        let until = self.until.map_or(now + wait, |it| it.max(now + wait));
        self.until = Some(until);
        Closing { until, news }
    }

    /// A request that began after so many closings got through.
    fn open(&mut self, closings: u64, now: Instant) -> Option<Trouble> {
        if closings != self.closings {
            return None;
        }
        if self.trouble == Some(Trouble::Hold) {
            self.mended = Some(now);
        }
        self.until = None;
        self.failures = 0;
        self.trouble.take()
    }

    fn is_probing(&self) -> bool {
        self.trouble.is_some()
    }
}

/// The messages of one sending mailbox.
#[derive(Debug)]
struct Lane {
    mailbox: Arc<str>,
    /// Oldest due first.
    waiting: BTreeMap<(Instant, QueueId), Waiting>,
    in_flight: usize,
    /// When answers came, back to a minute ago, and whether they refused the request.
    answers: VecDeque<(Instant, bool)>,
    gate: Gate,
    window: Window,
    pace: Pace,
    /// When it was last served.
    turn: u64,
    queue: Queue,
}

/// Which of the schedule's sets a lane is in.
#[derive(Clone, Copy, Debug)]
enum Queue {
    None,
    Ready(u64),
    Later(Instant),
    Empty(Instant),
}

impl Lane {
    /// Requests that may be in flight now.
    fn window(&self) -> usize {
        if self.gate.is_probing() {
            1
        } else {
            self.window.size
        }
    }

    /// When it may start its next message; `None` before something is added or answered.
    fn opens(&mut self, now: Instant, limits: &Limits) -> Option<Instant> {
        let due = self.waiting.first_key_value()?.0.0;
        if self.in_flight >= self.window() {
            return None;
        }
        self.forget_answers(now);
        let per_minute = self.pace.rate(limits.messages_per_minute) as usize;
        let counted = self.in_flight + self.answers.len();
        let rate = match counted.checked_sub(per_minute) {
            None => now,
            // One place is free when this many more answers are a minute old.
            Some(excess) => self.answers.get(excess)?.0 + MINUTE,
        };
        Some(due.max(rate).max(self.gate.until.unwrap_or(now)))
    }

    fn forget_answers(&mut self, now: Instant) {
        while self.answers.front().is_some_and(|&(at, _)| at + MINUTE <= now) {
            self.answers.pop_front();
        }
    }

    /// Messages taken within the last minute.
    fn taken(&self) -> u32 {
        let taken = self.answers.iter().filter(|(_, refused)| !refused).count();
        u32::try_from(taken).unwrap_or(u32::MAX)
    }
}

impl Schedule {
    /// An empty schedule. Limits of zero count as one.
    pub fn new(limits: Limits) -> Schedule {
        Schedule {
            limits: at_least_one(limits),
            lanes: HashMap::new(),
            by_mailbox: HashMap::new(),
            messages: HashMap::new(),
            ready: BTreeSet::new(),
            later: BTreeSet::new(),
            empty: BTreeSet::new(),
            tenant: Gate::default(),
            in_flight: 0,
            turn: 0,
            lanes_made: 0,
        }
    }

    /// Changes the limits; what is in flight stays in flight.
    pub fn set_limits(&mut self, limits: Limits, now: Instant) {
        let limits = at_least_one(limits);
        if limits.concurrency_per_mailbox != self.limits.concurrency_per_mailbox {
            for lane in self.lanes.values_mut() {
                lane.window = Window::new(limits.concurrency_per_mailbox);
            }
        }
        if limits.messages_per_minute != self.limits.messages_per_minute {
            for lane in self.lanes.values_mut() {
                lane.pace = Pace::new();
            }
        }
        self.limits = limits;
        let ids: Vec<LaneId> = self.lanes.keys().copied().collect();
        for id in ids {
            self.place(id, now);
        }
    }

    /// Adds a message, or gives a waiting one a new due time. One that is in flight stays so.
    pub fn add(&mut self, message: Message, due: Instant, now: Instant) {
        match self.messages.get(&message.id) {
            Some(Place::InFlight { .. }) => return,
            Some(Place::Waiting { .. }) => {
                self.remove(message.id, now);
            }
            None => {}
        }
        let lane_id = self.lane(&message.mailbox);
        self.messages
            .insert(message.id, Place::Waiting { lane: lane_id, due });
        if let Some(lane) = self.lanes.get_mut(&lane_id) {
            lane.waiting.insert(
                (due, message.id),
                Waiting {
                    size: message.size,
                    expires: message.expires,
                },
            );
        }
        self.place(lane_id, now);
    }

    /// Takes out a waiting message (held or deleted by the operator, expired). Says whether it was
    /// waiting; one in flight is not interrupted.
    pub fn remove(&mut self, id: QueueId, now: Instant) -> bool {
        let Some(&Place::Waiting { lane: lane_id, due }) = self.messages.get(&id) else {
            return false;
        };
        self.messages.remove(&id);
        if let Some(lane) = self.lanes.get_mut(&lane_id) {
            lane.waiting.remove(&(due, id));
        }
        self.place(lane_id, now);
        true
    }

    /// What to do now.
    pub fn next(&mut self, now: Instant) -> Next {
        self.forget(now);
        while let Some(&(instant, lane)) = self.later.first()
            && instant <= now
        {
            self.place(lane, now);
        }
        if let Some(until) = self.tenant.until
            && now < until
        {
            // In flight or not: nothing starts before.
            return if self.ready.is_empty() && self.later.is_empty() {
                Next::Idle
            } else {
                Next::SleepUntil(until)
            };
        }
        let cap = if self.tenant.is_probing() {
            1
        } else {
            self.limits.concurrency
        };
        if self.in_flight >= cap {
            return Next::Idle;
        }
        let Some((_, lane_id)) = self.ready.pop_first() else {
            return match self.later.first() {
                Some(&(instant, _)) => Next::SleepUntil(instant),
                None => Next::Idle,
            };
        };
        let Some(lane) = self.lanes.get_mut(&lane_id) else {
            return Next::Idle;
        };
        lane.queue = Queue::None;
        let Some(((_, id), message)) = lane.waiting.pop_first() else {
            return Next::Idle;
        };
        self.turn += 1;
        self.in_flight += 1;
        lane.turn = self.turn;
        lane.in_flight += 1;
        let place = Place::InFlight {
            lane: lane_id,
            company: lane.in_flight,
            lesson: lane.window.lesson,
            closings: (lane.gate.closings, self.tenant.closings),
        };
        self.messages.insert(id, place);
        self.place(lane_id, now);
        Next::Deliver {
            id,
            size: message.size,
        }
    }

    /// The answer to an attempt has arrived: the message is out of the schedule. Whoever wants it
    /// tried again adds it again.
    pub fn answered(&mut self, id: QueueId, way: Way, now: Instant) -> Recovered {
        let Some(&Place::InFlight {
            lane: lane_id,
            company,
            lesson,
            closings,
        }) = self.messages.get(&id)
        else {
            return Recovered::default();
        };
        self.messages.remove(&id);
        self.in_flight -= 1;
        let mut recovered = Recovered::default();
        if let Some(lane) = self.lanes.get_mut(&lane_id) {
            lane.in_flight -= 1;
            lane.forget_answers(now);
            let limit = self.limits.concurrency_per_mailbox;
            let per_minute = self.limits.messages_per_minute;
            if way == Way::Throttled {
                // What belongs together is refused together: the first says it all.
                if lesson == lane.window.lesson {
                    let taken = lane.taken();
                    lane.pace.throttled(taken, company < 2, per_minute, now);
                }
            }
            if way != Way::NotSent {
                // Throttled requests count against the limits, too.
                lane.answers.push_back((now, way == Way::Throttled));
            }
            match way {
                Way::Clear => {
                    lane.window.taken(company, limit, now);
                    if lane.pace.is_learned() {
                        let taken = lane.taken();
                        lane.pace.taken(taken, per_minute, now);
                    }
                    recovered.mailbox = lane.gate.open(closings.0, now);
                    recovered.tenant = self.tenant.open(closings.1, now);
                }
                Way::Throttled => lane.window.throttled(company, lesson, limit),
                Way::Unclear | Way::NotSent => {}
            }
        }
        self.place(lane_id, now);
        recovered
    }

    /// Closes a mailbox for `wait`, or for as long as the backoff says.
    pub fn close_mailbox(
        &mut self,
        mailbox: &str,
        trouble: Trouble,
        wait: Option<Duration>,
        now: Instant,
        random: f64,
    ) -> Closing {
        let lane_id = self.lane(mailbox);
        let closing = match self.lanes.get_mut(&lane_id) {
            Some(lane) => {
                let closing = lane.gate.close(trouble, wait, now, random);
                if trouble == Trouble::Throttled {
                    let cost = closing.until.saturating_duration_since(now);
                    lane.window.cost(cost, now);
                }
                closing
            }
            None => Closing {
                until: now,
                news: false,
            },
        };
        self.place(lane_id, now);
        closing
    }

    /// Closes all mailboxes for `wait`, or for as long as the backoff says.
    pub fn close_tenant(
        &mut self,
        trouble: Trouble,
        wait: Option<Duration>,
        now: Instant,
        random: f64,
    ) -> Closing {
        self.tenant.close(trouble, wait, now, random)
    }

    /// The operator has mended something, or wants to see: what is closed lets one message through
    /// now. `Retry-After` is not cut short, because retrying earlier only prolongs it.
    pub fn probe_now(&mut self, now: Instant) {
        if self.tenant.trouble == Some(Trouble::Hold) {
            self.tenant.until = Some(now);
        }
        let held: Vec<LaneId> = self
            .lanes
            .iter()
            .filter(|(_, lane)| lane.gate.trouble == Some(Trouble::Hold))
            .map(|(&id, _)| id)
            .collect();
        for id in held {
            if let Some(lane) = self.lanes.get_mut(&id) {
                lane.gate.until = Some(now);
            }
            self.place(id, now);
        }
    }

    /// Waiting messages whose lifetime has ended and whose mailbox or tenant does not work: those that
    /// no attempt can help now. One that waits behind the pace of a healthy or throttled lane is none
    /// of them, and nothing expires while it waits for an operator, nor within its `lifetime` after that.
    pub fn expired(&self, lifetime: Duration, now: Instant) -> Vec<QueueId> {
        let outage = |gate: &Gate| gate.trouble == Some(Trouble::Outage);
        let held = |gate: &Gate| gate.trouble == Some(Trouble::Hold);
        if held(&self.tenant) {
            return Vec::new();
        }
        self.lanes
            .values()
            .filter(|lane| !held(&lane.gate) && (outage(&self.tenant) || outage(&lane.gate)))
            .filter(|lane| self.mended(lane).is_none_or(|it| it + lifetime <= now))
            .flat_map(|lane| &lane.waiting)
            .filter(|(_, message)| message.expires <= now)
            .map(|(&(_, id), _)| id)
            .collect()
    }

    /// When what held up this mailbox was last mended: that time is no fault of its mail.
    pub fn last_mended(&self, mailbox: &str) -> Option<Instant> {
        let lane = self.by_mailbox.get(mailbox.to_lowercase().as_str());
        match lane.and_then(|id| self.lanes.get(id)) {
            Some(lane) => self.mended(lane),
            None => self.tenant.mended,
        }
    }

    fn mended(&self, lane: &Lane) -> Option<Instant> {
        self.tenant.mended.max(lane.gate.mended)
    }

    /// Why the tenant is closed, and until when.
    pub fn tenant(&self) -> Option<(Trouble, Instant)> {
        self.tenant.trouble.zip(self.tenant.until)
    }

    /// Messages in the schedule, waiting or in flight.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether there is no message in it.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Messages whose answer has not arrived.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// All lanes, in no order.
    pub fn lanes(&self, now: Instant) -> Vec<LaneStatus> {
        let status = |lane: &Lane| LaneStatus {
            mailbox: lane.mailbox.clone(),
            waiting: lane.waiting.len(),
            in_flight: lane.in_flight,
            window: lane.window(),
            in_last_minute: lane.in_flight + lane.answers.iter().filter(|it| it.0 + MINUTE > now).count(),
            per_minute: lane.pace.rate(self.limits.messages_per_minute),
            closed: lane.gate.trouble.zip(lane.gate.until),
        };
        self.lanes.values().map(status).collect()
    }

    fn lane(&mut self, mailbox: &str) -> LaneId {
        let mailbox = mailbox.to_lowercase();
        if let Some(&id) = self.by_mailbox.get(mailbox.as_str()) {
            return id;
        }
        let mailbox: Arc<str> = mailbox.into();
        self.lanes_made += 1;
        let id = self.lanes_made;
        self.by_mailbox.insert(mailbox.clone(), id);
        let lane = Lane {
            mailbox,
            waiting: BTreeMap::new(),
            in_flight: 0,
            answers: VecDeque::new(),
            gate: Gate::default(),
            window: Window::new(self.limits.concurrency_per_mailbox),
            pace: Pace::new(),
            turn: 0,
            queue: Queue::None,
        };
        self.lanes.insert(id, lane);
        id
    }

    /// Puts a lane into the set where it belongs now.
    fn place(&mut self, id: LaneId, now: Instant) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        match lane.queue {
            Queue::None => {}
            Queue::Ready(turn) => {
                self.ready.remove(&(turn, id));
            }
            Queue::Later(instant) => {
                self.later.remove(&(instant, id));
            }
            Queue::Empty(since) => {
                self.empty.remove(&(since, id));
            }
        }
        lane.queue = match lane.opens(now, &self.limits) {
            Some(instant) if instant <= now => {
                self.ready.insert((lane.turn, id));
                Queue::Ready(lane.turn)
            }
            Some(instant) => {
                self.later.insert((instant, id));
                Queue::Later(instant)
            }
            None if lane.waiting.is_empty() && lane.in_flight == 0 => {
                self.empty.insert((now, id));
                Queue::Empty(now)
            }
            None => Queue::None,
        };
    }

    fn forget(&mut self, now: Instant) {
        while let Some(&(since, id)) = self.empty.first()
            && since + FORGET_AFTER <= now
        {
            self.empty.remove(&(since, id));
            if let Some(lane) = self.lanes.remove(&id) {
                self.by_mailbox.remove(&lane.mailbox);
            }
        }
    }
}

fn at_least_one(limits: Limits) -> Limits {
    Limits {
        concurrency_per_mailbox: limits.concurrency_per_mailbox.max(1),
        concurrency: limits.concurrency.max(1),
        messages_per_minute: limits.messages_per_minute.max(1),
    }
}

#[cfg(test)]
mod tests;
