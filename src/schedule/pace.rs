//! What throttling has taught a lane: how many requests at once, and how many messages a minute. Nobody
//! says what the limits are, nor when they change. ○

use std::time::{Duration, Instant};

/// Answers at the full window before it grows towards what was never refused.
const GROW_AFTER: u32 = 20;
/// Answers at the full window before it tries again what was refused; doubled at each refusal.
const PATIENCE_FIRST: u32 = 100;
const PATIENCE_MAX: u32 = 800;
/// A refusal that closed the lane for some time is not risked again for so many times as long: it
/// would cost more than a larger window gains.
const PATIENCE_CLOSED: u32 = 40;

/// How long a learned rate is kept to before a larger one is tried; doubled each time that proves wrong.
const RATE_PATIENCE_FIRST: Duration = Duration::from_secs(10 * 60);
const RATE_PATIENCE_MAX: Duration = Duration::from_secs(80 * 60);
/// How long a larger rate has to go well before the next larger one is tried.
const RATE_TRIAL: Duration = Duration::from_secs(5 * 60);
/// From so few messages a minute no rate is learned: that is an outage, not a limit.
const LEAST_RATE: u32 = 3;

/// How many requests a lane may have in flight, as throttling has taught.
#[derive(Debug)]
pub(super) struct Window {
    pub(super) size: usize,
    /// The most that is not known to be refused.
    ceiling: usize,
    /// Answers at full size since it last changed.
    answers: u32,
    /// Answers wanted before it tries again what was refused.
    patience: u32,
    /// It does not try before this, either.
    not_before: Option<Instant>,
    /// Whether it is trying that now.
    trying: bool,
    /// Counts reductions. A refusal of a request from before the last one teaches nothing new.
    pub(super) lesson: u64,
}

impl Window {
    pub(super) fn new(limit: usize) -> Window {
        Window {
            size: limit,
            ceiling: limit,
            answers: 0,
            patience: PATIENCE_FIRST,
            not_before: None,
            trying: false,
            lesson: 0,
        }
    }

    pub(super) fn taken(&mut self, company: usize, limit: usize, now: Instant) {
        // Only a request at the full window shows anything about a larger one.
        if company < self.size {
            return;
        }
        self.answers = self.answers.saturating_add(1);
        if self.trying && self.answers >= GROW_AFTER {
            self.trying = false;
            self.patience = PATIENCE_FIRST;
        }
        let may_grow = if self.size < self.ceiling {
            self.answers >= GROW_AFTER
        } else {
            self.answers >= self.patience && self.not_before.is_none_or(|it| it <= now)
        };
        if may_grow && self.size < limit {
            self.trying = self.size == self.ceiling;
            self.size += 1;
            self.ceiling = self.ceiling.max(self.size);
            self.answers = 0;
        }
    }

    /// A refusal has closed the lane for so long: it is not risked again soon.
    pub(super) fn cost(&mut self, closed: Duration, now: Instant) {
        self.not_before = Some(now + closed * PATIENCE_CLOSED);
    }

    pub(super) fn throttled(&mut self, company: usize, lesson: u64, limit: usize) {
        // A request that was alone was not refused for the company it had.
        if lesson != self.lesson || company < 2 {
            return;
        }
        self.lesson += 1;
        self.answers = 0;
        self.trying = false;
        self.patience = (self.patience * 2).min(PATIENCE_MAX);
        self.ceiling = (company - 1).min(limit);
        self.size = (company - (company / 4).max(1)).min(self.ceiling);
    }
}

/// How many messages a minute a lane may send, as throttling has taught.
///
/// A limit per minute shows itself by this: a request that was alone, so that it was not refused for its
/// company, is refused when as many were taken within the last minute as at the refusal before.
#[derive(Debug)]
pub(super) struct Pace {
    /// The most that is not known to be refused; `None` where the configured limit has never been.
    learned: Option<u32>,
    /// When that was learned or last changed.
    since: Option<Instant>,
    patience: Duration,
    /// What it was before a larger one was tried, while that is on trial.
    before: Option<u32>,
    /// How many were taken within a minute when the last request was refused.
    refused_at: Option<u32>,
}

impl Pace {
    pub(super) fn new() -> Pace {
        Pace {
            learned: None,
            since: None,
            patience: RATE_PATIENCE_FIRST,
            before: None,
            refused_at: None,
        }
    }

    /// Whether less than the configured limit is taken.
    pub(super) fn is_learned(&self) -> bool {
        self.learned.is_some()
    }

    /// Messages a minute at present.
    pub(super) fn rate(&self, limit: u32) -> u32 {
        self.learned.map_or(limit, |it| it.min(limit))
    }

    /// A message was taken, the last of so many within a minute.
    pub(super) fn taken(&mut self, in_minute: u32, limit: u32, now: Instant) {
        let (Some(rate), Some(since)) = (self.learned, self.since) else {
            return;
        };
        // Only at its full rate a lane shows anything about a larger one.
        let wait = self.before.map_or(self.patience, |_| RATE_TRIAL);
        if now < since + wait || in_minute < rate.saturating_sub(1) {
            return;
        }
        if self.before.is_some() {
            self.patience = RATE_PATIENCE_FIRST;
        }
        let larger = rate + (rate / 4).max(1);
        self.learned = (larger < limit).then_some(larger);
        self.before = Some(rate);
        self.since = Some(now);
    }

    /// A request was refused, after so many messages had been taken within a minute.
    pub(super) fn throttled(&mut self, in_minute: u32, alone: bool, limit: u32, now: Instant) {
        let last = self.refused_at.replace(in_minute);
        if let Some(before) = self.before.filter(|_| self.is_on_trial(now)) {
            self.before = None;
            self.learn(before.max(in_minute), limit, now);
            self.patience = (self.patience * 2).min(RATE_PATIENCE_MAX);
            return;
        }
        let again = last.is_some_and(|last| last.abs_diff(in_minute) <= (in_minute / 8).max(1));
        if alone && again && in_minute >= LEAST_RATE {
            self.before = None;
            self.learn(in_minute.min(last.unwrap_or(in_minute)), limit, now);
        }
    }

    fn is_on_trial(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now < since + RATE_TRIAL)
    }

    fn learn(&mut self, rate: u32, limit: u32, now: Instant) {
        self.learned = Some(rate.max(LEAST_RATE).min(self.rate(limit)));
        self.since = Some(now);
    }
}
