#![allow(clippy::unwrap_used)]

use std::collections::BinaryHeap;

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn limits(concurrency_per_mailbox: usize, concurrency: usize, messages_per_minute: u32) -> Limits {
    Limits {
        concurrency_per_mailbox,
        concurrency,
        messages_per_minute,
    }
}

fn message(mailbox: &str, id: i64, t0: Instant) -> Message {
    Message {
        id: QueueId(id),
        mailbox: mailbox.into(),
        size: 100,
        expires: t0 + 3600 * SECOND,
    }
}

fn deliver(id: i64) -> Next {
    Next::Deliver {
        id: QueueId(id),
        size: 100,
    }
}

#[test]
fn a_throttled_mailbox_delays_only_itself() {
    let t0 = Instant::now();
    let mut schedule = Schedule::new(limits(4, 64, 30));
    schedule.add(message("alerts", 1, t0), t0, t0);
    schedule.add(message("billing", 2, t0), t0, t0);
    let closing = schedule.close_mailbox("Alerts", Trouble::Throttled, Some(30 * SECOND), t0, 0.5);
    assert_eq!(
        closing,
        Closing {
            until: t0 + 30 * SECOND,
            news: true
        }
    );

    assert_eq!(schedule.next(t0), deliver(2));
    assert_eq!(schedule.next(t0), Next::SleepUntil(t0 + 30 * SECOND));
    assert_eq!(schedule.next(t0 + 30 * SECOND), deliver(1));
    assert_eq!(schedule.next(t0 + 30 * SECOND), Next::Idle);
}

#[test]
fn oldest_due_first_and_lanes_in_turn() {
    let t0 = Instant::now();
    let mut schedule = Schedule::new(limits(4, 64, 30));
    for (mailbox, id, due) in [("a", 1, 3), ("a", 2, 1), ("a", 3, 2), ("b", 4, 9)] {
        schedule.add(message(mailbox, id, t0), t0 + due * SECOND, t0);
    }
    assert_eq!(schedule.next(t0), Next::SleepUntil(t0 + SECOND));
    let late = t0 + 10 * SECOND;
    let order: Vec<Next> = (0..5).map(|_| schedule.next(late)).collect();
    assert_eq!(
        order,
        [deliver(2), deliver(4), deliver(3), deliver(1), Next::Idle]
    );
}

#[test]
fn a_burst_to_one_mailbox_does_not_delay_another() {
    let t0 = Instant::now();
    let mut schedule = Schedule::new(limits(4, 4, 1_000_000));
    for id in 1..=10_000 {
        schedule.add(message("burst", id, t0), t0, t0);
    }
    for _ in 0..4 {
        assert!(matches!(schedule.next(t0), Next::Deliver { .. }));
    }
    schedule.add(message("other", 20_000, t0), t0, t0);
    // All places are taken; the first that is free goes to the other mailbox.
    assert_eq!(schedule.next(t0), Next::Idle);
    schedule.answered(QueueId(1), Way::Clear, t0);
    assert_eq!(schedule.next(t0), deliver(20_000));
}

#[test]
fn never_more_than_so_many_in_any_minute() {
    let t0 = Instant::now();
    let mut schedule = Schedule::new(limits(4, 64, 2));
    for id in 1..=3 {
        schedule.add(message("a", id, t0), t0, t0);
    }
    assert_eq!(schedule.next(t0), deliver(1));
    assert_eq!(schedule.next(t0), deliver(2));
    // Both are in flight: nobody knows yet when their minute begins.
    assert_eq!(schedule.next(t0), Next::Idle);
    schedule.answered(QueueId(1), Way::Clear, t0 + 5 * SECOND);
    assert_eq!(schedule.next(t0 + 5 * SECOND), Next::SleepUntil(t0 + 65 * SECOND));
    schedule.answered(QueueId(2), Way::Clear, t0 + 6 * SECOND);
    assert_eq!(
        schedule.next(t0 + 64 * SECOND),
        Next::SleepUntil(t0 + 65 * SECOND)
    );
    assert_eq!(schedule.next(t0 + 65 * SECOND), deliver(3));
}

#[test]
fn what_was_never_sent_does_not_count_against_the_minute() {
    let t0 = Instant::now();
    let mut schedule = Schedule::new(limits(4, 64, 1));
    schedule.add(message("a", 1, t0), t0, t0);
    assert_eq!(schedule.next(t0), deliver(1));
    schedule.answered(QueueId(1), Way::NotSent, t0);
    schedule.add(message("a", 1, t0), t0, t0);
    assert_eq!(schedule.next(t0), deliver(1));
}

#[test]
fn a_closed_tenant_reopens_for_one() {
    let t0 = Instant::now();
    let mut schedule = Schedule::new(limits(4, 64, 30));
    for id in 1..=4 {
        schedule.add(message(&format!("m{id}"), id, t0), t0, t0);
    }
    assert!(schedule.close_tenant(Trouble::Hold, None, t0, 0.5).news);
    let Next::SleepUntil(first) = schedule.next(t0) else {
        panic!("closed")
    };
    assert_eq!(first, t0 + HOLD_FIRST);
    assert_eq!(schedule.next(first), deliver(1));
    assert_eq!(schedule.next(first), Next::Idle);

    // The probe fails: it waits twice as long, and this is no news.
    schedule.answered(QueueId(1), Way::NotSent, first);
    let closing = schedule.close_tenant(Trouble::Hold, None, first, 0.5);
    assert_eq!(
        closing,
        Closing {
            until: first + 2 * HOLD_FIRST,
            news: false
        }
    );
    schedule.add(message("m1", 1, t0), closing.until, first);

    // It gets through: all may go.
    assert_eq!(schedule.next(closing.until), deliver(2));
    let recovered = schedule.answered(QueueId(2), Way::Clear, closing.until);
    assert_eq!(recovered.tenant, Some(Trouble::Hold));
    assert_eq!(recovered.mailbox, None);
    let rest: Vec<Next> = (0..4).map(|_| schedule.next(closing.until)).collect();
    assert_eq!(rest, [deliver(3), deliver(4), deliver(1), Next::Idle]);
}

#[test]
fn a_success_from_before_does_not_open() {
    let t0 = Instant::now();
    let mut schedule = Schedule::new(limits(4, 64, 30));
    for id in 1..=3 {
        schedule.add(message("a", id, t0), t0, t0);
    }
    assert_eq!(schedule.next(t0), deliver(1));
    assert_eq!(schedule.next(t0), deliver(2));
    schedule.answered(QueueId(1), Way::Throttled, t0);
    schedule.close_mailbox("a", Trouble::Throttled, Some(10 * SECOND), t0, 0.5);
    let late = schedule.answered(QueueId(2), Way::Clear, t0 + SECOND);
    assert_eq!(late, Recovered::default());
    assert_eq!(schedule.next(t0 + SECOND), Next::SleepUntil(t0 + 10 * SECOND));
}

#[test]
fn late_answers_do_not_lengthen_the_backoff() {
    let t0 = Instant::now();
    let mut gate = Gate::default();
    assert!(gate.close(Trouble::Outage, None, t0, 0.5).news);
    for _ in 0..50 {
        assert_eq!(
            gate.close(Trouble::Outage, None, t0, 0.5),
            Closing {
                until: t0 + OUTAGE_FIRST,
                news: false
            }
        );
    }
    // Unless they carry a Retry-After.
    let longer = gate.close(Trouble::Outage, Some(20 * SECOND), t0, 0.5);
    assert_eq!(longer.until, t0 + 20 * SECOND);
    // What is graver is news, and lesser things do not hide it.
    assert!(gate.close(Trouble::Hold, None, t0, 0.5).news);
    assert!(!gate.close(Trouble::Throttled, None, t0, 0.5).news);
    assert_eq!(gate.open(gate.closings, t0), Some(Trouble::Hold));
}

#[test]
fn an_unbelievable_retry_after_is_cut() {
    let t0 = Instant::now();
    let closing = Gate::default().close(Trouble::Throttled, Some(Duration::MAX), t0, 0.5);
    assert_eq!(closing.until, t0 + RETRY_AFTER_MAX);
}

#[test]
fn backoff_doubles_up_to_the_longest() {
    let retry = Retry {
        first: 10 * SECOND,
        max: 60 * SECOND,
    };
    for (attempts, random, want) in [
        (0, 0.5, 10.0),
        (1, 0.5, 10.0),
        (2, 0.5, 20.0),
        (3, 0.5, 40.0),
        (4, 0.5, 60.0),
        (u32::MAX, 0.5, 60.0),
        (1, 0.0, 7.5),
        (1, 1.0, 12.5),
    ] {
        assert_eq!(
            retry.wait(attempts, random).as_secs_f64(),
            want,
            "{attempts} {random}"
        );
    }
}

#[test]
fn a_new_due_time_replaces_the_old_one() {
    let t0 = Instant::now();
    let mut schedule = Schedule::new(limits(4, 64, 30));
    schedule.add(message("a", 1, t0), t0 + 50 * SECOND, t0);
    schedule.add(message("a", 1, t0), t0, t0);
    assert_eq!(schedule.len(), 1);
    assert_eq!(schedule.next(t0), deliver(1));
    // While it is in flight a second copy is nothing new.
    schedule.add(message("a", 1, t0), t0, t0);
    assert_eq!(schedule.next(t0), Next::Idle);
    assert!(!schedule.remove(QueueId(1), t0));
    schedule.answered(QueueId(1), Way::Clear, t0);
    assert!(schedule.is_empty());
}

#[test]
fn only_broken_lanes_expire() {
    let t0 = Instant::now();
    let late = t0 + 4000 * SECOND;
    let mut schedule = Schedule::new(limits(1, 64, 30));
    for (mailbox, id) in [("well", 1), ("slow", 2), ("broken", 3), ("held", 4)] {
        schedule.add(message(mailbox, id, t0), late + SECOND, t0);
    }
    schedule.close_mailbox("slow", Trouble::Throttled, None, t0, 0.5);
    schedule.close_mailbox("broken", Trouble::Outage, None, t0, 0.5);
    schedule.close_mailbox("held", Trouble::Hold, None, t0, 0.5);
    let expired = |schedule: &Schedule, now| {
        let mut ids = schedule.expired(3600 * SECOND, now);
        ids.sort_unstable();
        ids
    };
    assert_eq!(expired(&schedule, t0), []);
    assert_eq!(expired(&schedule, late), [QueueId(3)]);
    schedule.close_tenant(Trouble::Hold, None, t0, 0.5);
    assert_eq!(expired(&schedule, late), []);
}

/// The time of a hold is no fault of the mail: it gets its lifetime once more.
#[test]
fn nothing_expires_soon_after_a_hold() {
    let t0 = Instant::now();
    let hour = 3600 * SECOND;
    let mut schedule = Schedule::new(limits(1, 64, 30));
    for id in [1, 2] {
        schedule.add(message("a", id, t0), t0, t0);
    }
    let days = t0 + 100 * hour;
    schedule.close_tenant(Trouble::Hold, None, t0, 0.5);
    assert_eq!(schedule.next(days), deliver(1));
    assert_eq!(
        schedule.answered(QueueId(1), Way::Clear, days).tenant,
        Some(Trouble::Hold)
    );
    assert_eq!(schedule.last_mended("A"), Some(days));
    schedule.close_mailbox("a", Trouble::Outage, None, days, 0.5);
    assert_eq!(schedule.expired(hour, days), []);
    assert_eq!(schedule.expired(hour, days + hour), [QueueId(2)]);
}

#[test]
fn a_lane_long_empty_is_forgotten() {
    let t0 = Instant::now();
    let mut schedule = Schedule::new(limits(4, 64, 30));
    schedule.add(message("a", 1, t0), t0, t0);
    assert_eq!(schedule.next(t0), deliver(1));
    schedule.answered(QueueId(1), Way::Clear, t0);
    assert_eq!(schedule.lanes(t0).len(), 1);
    assert_eq!(schedule.next(t0 + FORGET_AFTER), Next::Idle);
    assert_eq!(schedule.lanes(t0).len(), 0);
    assert!(schedule.by_mailbox.is_empty() && schedule.lanes.is_empty());
}

#[test]
fn large_queues_are_quick() {
    // A scan per step would make this take hours, not fail: the count is what is asserted.
    let t0 = Instant::now();
    let mut schedule = Schedule::new(limits(4, 64, 1_000_000));
    for id in 0..200_000 {
        schedule.add(message(&format!("m{}", id % 5_000), id, t0), t0, t0);
    }
    let mut delivered = 0;
    while let Next::Deliver { id, .. } = schedule.next(t0) {
        delivered += 1;
        schedule.answered(id, Way::Clear, t0);
    }
    assert_eq!(delivered, 200_000);
}

/// A server that allows so many requests at once and refuses the rest at once, in a time of its own.
struct Server {
    allowed: usize,
    latency: Duration,
    retry_after: Option<Duration>,
    working: usize,
    /// When which answer is due; the negative id of a refused one.
    answers: BinaryHeap<std::cmp::Reverse<(Instant, i64)>>,
    sent: usize,
    throttled: usize,
}

impl Server {
    fn new(allowed: usize, latency: Duration, retry_after: Option<Duration>) -> Server {
        Server {
            allowed,
            latency,
            retry_after,
            working: 0,
            answers: BinaryHeap::new(),
            sent: 0,
            throttled: 0,
        }
    }

    /// Runs a full queue against the server until `end`.
    fn run(&mut self, schedule: &mut Schedule, start: Instant, end: Instant) {
        let mut now = start;
        while now < end {
            let wake = match schedule.next(now) {
                Next::Deliver { id, .. } => {
                    let (delay, id) = if self.working < self.allowed {
                        self.working += 1;
                        (self.latency, id.0)
                    } else {
                        (10 * MS, -id.0)
                    };
                    self.answers.push(std::cmp::Reverse((now + delay, id)));
                    continue;
                }
                Next::SleepUntil(instant) => Some(instant),
                Next::Idle => None,
            };
            let answer = self.answers.peek().map(|it| it.0.0);
            now = match (wake, answer) {
                (Some(wake), Some(answer)) => wake.min(answer),
                (Some(instant), None) | (None, Some(instant)) => instant,
                (None, None) => panic!("nothing moves"),
            };
            while let Some(&std::cmp::Reverse((instant, id))) = self.answers.peek()
                && instant <= now
            {
                self.answers.pop();
                if id > 0 {
                    self.working -= 1;
                    self.sent += 1;
                    schedule.answered(QueueId(id), Way::Clear, now);
                } else {
                    self.throttled += 1;
                    schedule.answered(QueueId(-id), Way::Throttled, now);
                    let closing = schedule.close_mailbox("a", Trouble::Throttled, self.retry_after, now, 0.5);
                    schedule.add(message("a", -id, now), closing.until, now);
                }
            }
        }
    }
}

/// 4 in flight and 150 ms a request are possible; the limit tightens without notice, then relaxes.
#[test]
fn adapts_to_what_the_server_allows() {
    let t0 = Instant::now();
    let latency = 150 * MS;
    for retry_after in [None, Some(SECOND), Some(3 * SECOND)] {
        let mut schedule = Schedule::new(limits(4, 64, u32::MAX));
        for id in 1..=200_000 {
            schedule.add(message("a", id, t0), t0, t0);
        }
        let mut server = Server::new(4, latency, retry_after);
        let mut now = t0;
        let mut before = 4;
        for (allowed, minutes) in [(4, 5), (2, 20), (3, 20), (1, 20), (4, 20)] {
            server.allowed = allowed;
            if allowed > before {
                // It takes a while to find out that more is allowed: nobody says so.
                server.run(&mut schedule, now, now + 10 * MINUTE);
                now += 10 * MINUTE;
            }
            before = allowed;
            (server.sent, server.throttled) = (0, 0);
            let end = now + minutes * MINUTE;
            server.run(&mut schedule, now, end);
            let possible = (end - now).as_secs_f64() / latency.as_secs_f64() * allowed as f64;
            let goodput = server.sent as f64 / possible;
            let throttled = server.throttled as f64 / (server.sent + server.throttled) as f64;
            eprintln!(
                "allowed {allowed}, Retry-After {retry_after:?}: goodput {:.1} %, throttled {:.2} %",
                goodput * 100.0,
                throttled * 100.0
            );
            assert!(
                goodput >= 0.95 && throttled < 0.01,
                "{allowed} {retry_after:?}: {goodput} {throttled}"
            );
            now = end;
        }
    }
}

/// A server that takes so many messages in any minute and refuses the rest, saying when to come again.
struct Meter {
    allowed: usize,
    taken: VecDeque<Instant>,
    sent: usize,
    throttled: usize,
}

impl Meter {
    /// Runs a full queue against it until `end`, 150 ms a request.
    fn run(&mut self, schedule: &mut Schedule, start: Instant, end: Instant) {
        let mut now = start;
        let mut answers: VecDeque<(Instant, QueueId, Option<Duration>)> = VecDeque::new();
        while now < end {
            let wake = match schedule.next(now) {
                Next::Deliver { id, .. } => {
                    while self.taken.front().is_some_and(|&it| it + MINUTE <= now) {
                        self.taken.pop_front();
                    }
                    // It says until when the oldest counts.
                    let refused = (self.taken.len() >= self.allowed)
                        .then(|| self.taken.front().map_or(SECOND, |&it| it + MINUTE - now));
                    if refused.is_none() {
                        self.taken.push_back(now);
                    }
                    answers.push_back((now + 150 * MS, id, refused));
                    continue;
                }
                Next::SleepUntil(instant) => Some(instant),
                Next::Idle => None,
            };
            let answer = answers.front().map(|it| it.0);
            now = wake.into_iter().chain(answer).min().expect("something moves");
            while let Some(&(at, id, refused)) = answers.front()
                && at <= now
            {
                answers.pop_front();
                match refused {
                    None => {
                        self.sent += 1;
                        schedule.answered(id, Way::Clear, now);
                    }
                    Some(wait) => {
                        self.throttled += 1;
                        schedule.answered(id, Way::Throttled, now);
                        let closing = schedule.close_mailbox("a", Trouble::Throttled, Some(wait), now, 0.5);
                        schedule.add(message("a", id.0, now), closing.until, now);
                    }
                }
            }
        }
    }
}

/// 30 messages a minute are configured and taken; then fewer, without notice; then 30 again.
#[test]
fn adapts_to_what_is_taken_in_a_minute() {
    let t0 = Instant::now();
    let mut schedule = Schedule::new(limits(4, 64, 30));
    for id in 1..=200_000 {
        schedule.add(message("a", id, t0), t0, t0);
    }
    let mut server = Meter {
        allowed: 30,
        taken: VecDeque::new(),
        sent: 0,
        throttled: 0,
    };
    let mut now = t0;
    for allowed in [30, 10, 20, 6, 30] {
        server.allowed = allowed;
        // It takes a while to find out: nobody says so.
        let end = now + 120 * MINUTE;
        server.run(&mut schedule, now, end);
        now = end;
        (server.sent, server.throttled) = (0, 0);
        let end = now + 240 * MINUTE;
        server.run(&mut schedule, now, end);
        let possible = allowed as f64 * (end - now).as_secs_f64() / 60.0;
        let goodput = server.sent as f64 / possible;
        let throttled = server.throttled as f64 / (server.sent + server.throttled) as f64;
        eprintln!(
            "{allowed} a minute: goodput {:.1} %, throttled {:.2} %",
            goodput * 100.0,
            throttled * 100.0
        );
        assert!(
            goodput >= 0.95 && throttled < 0.01,
            "{allowed}: {goodput} {throttled}"
        );
        now = end;
    }
}

/// A storm of refusals is no limit per minute.
#[test]
fn a_storm_does_not_slow_a_mailbox_down_for_long() {
    let t0 = Instant::now();
    let mut now = t0;
    let mut schedule = Schedule::new(limits(4, 64, 30));
    for id in 1..=1_000 {
        schedule.add(message("a", id, t0), t0, t0);
    }
    // Everything is refused for ten minutes, from the first message on.
    while now < t0 + 10 * MINUTE {
        match schedule.next(now) {
            Next::Deliver { id, .. } => {
                schedule.answered(id, Way::Throttled, now);
                let closing = schedule.close_mailbox("a", Trouble::Throttled, None, now, 0.5);
                schedule.add(message("a", id.0, now), closing.until, now);
            }
            Next::SleepUntil(instant) => now = instant,
            Next::Idle => panic!("nothing moves"),
        }
    }
    assert_eq!(schedule.lanes(now)[0].per_minute, 30);
}

/// What happens in the world around a schedule.
#[derive(Clone, Debug)]
enum Step {
    Add {
        mailbox: u8,
        due_in: u16,
    },
    Remove(prop::sample::Index),
    Start,
    Answer {
        which: prop::sample::Index,
        way: Way,
        again: Option<u16>,
    },
    CloseMailbox {
        mailbox: u8,
        wait: Option<u16>,
    },
    CloseTenant {
        wait: Option<u16>,
    },
    Pass {
        seconds: u16,
    },
    Limits {
        per_mailbox: u8,
        all: u8,
        per_minute: u8,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let way = prop_oneof![
        4 => Just(Way::Clear),
        1 => Just(Way::Throttled),
        1 => Just(Way::NotSent),
        1 => Just(Way::Unclear)
    ];
    prop_oneof![
        6 => (0..4u8, 0..90u16).prop_map(|(mailbox, due_in)| Step::Add { mailbox, due_in }),
        1 => any::<prop::sample::Index>().prop_map(Step::Remove),
        12 => Just(Step::Start),
        6 => (any::<prop::sample::Index>(), way, prop::option::of(0..90u16))
            .prop_map(|(which, way, again)| Step::Answer { which, way, again }),
        1 => (0..4u8, prop::option::of(0..200u16))
            .prop_map(|(mailbox, wait)| Step::CloseMailbox { mailbox, wait }),
        1 => prop::option::of(0..200u16).prop_map(|wait| Step::CloseTenant { wait }),
        4 => (0..70u16).prop_map(|seconds| Step::Pass { seconds }),
        1 => (1..6u8, 1..9u8, 1..9u8).prop_map(|(per_mailbox, all, per_minute)| Step::Limits {
            per_mailbox,
            all,
            per_minute
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever happens: no limit is exceeded, nothing starts before its time, nothing is lost or
    /// delivered twice at once, and in the end everything gets through.
    #[test]
    fn keeps_its_promises(steps in prop::collection::vec(step(), 1..300)) {
        let t0 = Instant::now();
        let mut now = t0;
        let mut bounds = limits(3, 6, 5);
        let mut schedule = Schedule::new(bounds);
        let mut next_id = 0;
        // What the schedule should hold: mailbox and due time.
        let mut waiting: HashMap<QueueId, (u8, Instant)> = HashMap::new();
        let mut in_flight: BTreeMap<QueueId, u8> = BTreeMap::new();
        let mut closed: HashMap<Option<u8>, Instant> = HashMap::new();
        // Starts and answers of what was sent, for the minute as the server may count it.
        let mut answered: Vec<(u8, Instant)> = Vec::new();
        // A changed limit holds for what starts after it.
        let mut changed = false;

        let name = |mailbox: u8| format!("m{mailbox}");
        for step in steps {
            match step {
                Step::Add { mailbox, due_in } => {
                    next_id += 1;
                    let due = now + u32::from(due_in) * SECOND;
                    waiting.insert(QueueId(next_id), (mailbox, due));
                    schedule.add(message(&name(mailbox), next_id, t0), due, now);
                }
                Step::Remove(which) => {
                    let mut ids: Vec<QueueId> = waiting.keys().copied().collect();
                    ids.sort_unstable();
                    if !ids.is_empty() {
                        let id = *which.get(&ids);
                        waiting.remove(&id);
                        prop_assert!(schedule.remove(id, now));
                        prop_assert!(!schedule.remove(id, now));
                    }
                }
                Step::Start => match schedule.next(now) {
                    Next::Deliver { id, .. } => {
                        let (mailbox, due) = waiting.remove(&id).expect("it was waiting");
                        prop_assert!(due <= now);
                        for scope in [None, Some(mailbox)] {
                            prop_assert!(closed.get(&scope).is_none_or(|&until| until <= now));
                        }
                        // The oldest due of its lane.
                        prop_assert!(waiting.values().all(|&(other, it)| other != mailbox || it >= due));
                        in_flight.insert(id, mailbox);
                        prop_assert!(in_flight.len() <= bounds.concurrency || changed);
                        let lane = in_flight.values().filter(|&&it| it == mailbox).count();
                        prop_assert!(lane <= bounds.concurrency_per_mailbox || changed);
                        let recent = answered
                            .iter()
                            .filter(|&&(it, at)| it == mailbox && at + MINUTE > now)
                            .count();
                        prop_assert!(lane + recent <= bounds.messages_per_minute as usize);
                    }
                    Next::SleepUntil(instant) => prop_assert!(instant > now),
                    Next::Idle => {}
                },
                Step::Answer { which, way, again } => {
                    let ids: Vec<QueueId> = in_flight.keys().copied().collect();
                    if !ids.is_empty() {
                        let id = *which.get(&ids);
                        let mailbox = in_flight.remove(&id).expect("in flight");
                        let recovered = schedule.answered(id, way, now);
                        if recovered.tenant.is_some() {
                            closed.remove(&None);
                        }
                        if recovered.mailbox.is_some() {
                            closed.remove(&Some(mailbox));
                        }
                        prop_assert!(way == Way::Clear || recovered == Recovered::default());
                        if way != Way::NotSent {
                            answered.push((mailbox, now));
                        }
                        if let Some(again) = again {
                            let due = now + u32::from(again) * SECOND;
                            waiting.insert(id, (mailbox, due));
                            schedule.add(message(&name(mailbox), id.0, t0), due, now);
                        }
                    }
                }
                Step::CloseMailbox { mailbox, wait } => {
                    let wait = wait.map(|it| u32::from(it) * SECOND);
                    let closing =
                        schedule.close_mailbox(&name(mailbox), Trouble::Throttled, wait, now, 0.3);
                    prop_assert!(wait.is_none_or(|wait| closing.until >= now + wait));
                    closed.insert(Some(mailbox), closing.until);
                }
                Step::CloseTenant { wait } => {
                    let wait = wait.map(|it| u32::from(it) * SECOND);
                    let closing = schedule.close_tenant(Trouble::Outage, wait, now, 0.3);
                    prop_assert!(wait.is_none_or(|wait| closing.until >= now + wait));
                    closed.insert(None, closing.until);
                }
                Step::Pass { seconds } => now += u32::from(seconds) * SECOND,
                Step::Limits { per_mailbox, all, per_minute } => {
                    bounds = limits(per_mailbox.into(), all.into(), per_minute.into());
                    schedule.set_limits(bounds, now);
                    changed = true;
                }
            }
            changed &= !in_flight.is_empty();
            prop_assert_eq!(schedule.len(), waiting.len() + in_flight.len());
            prop_assert_eq!(schedule.in_flight(), in_flight.len());
        }

        // Everything gets through, each once, if answers come.
        for _ in 0..100_000 {
            if schedule.is_empty() {
                break;
            }
            match schedule.next(now) {
                Next::Deliver { id, .. } => {
                    let (mailbox, _) = waiting.remove(&id).expect("it was waiting");
                    in_flight.insert(id, mailbox);
                }
                Next::SleepUntil(instant) if in_flight.is_empty() => now = instant,
                _ => {
                    let (id, _) = in_flight.pop_first().expect("nothing waits for nothing");
                    now += MS;
                    schedule.answered(id, Way::Clear, now);
                }
            }
        }
        prop_assert!(schedule.is_empty() && waiting.is_empty());
    }
}
