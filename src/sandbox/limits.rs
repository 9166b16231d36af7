//! What the service lets through: sizes, rates, requests in flight. Changed at run time by
//! `PUT /sandbox/limits`; the bookkeeping is pure, time is an argument.
//!
//! <https://learn.microsoft.com/graph/throttling-limits#outlook-service-limits> counts for each
//! application and mailbox; <https://learn.microsoft.com/office365/servicedescriptions/exchange-online-service-description/exchange-online-limits>
//! has the messages a minute.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The limits in force.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests in flight for each application and mailbox.
    pub concurrency: Option<u32>,
    /// Messages a minute from each mailbox. Exchange Online has 30; off here unless set.
    pub messages_per_minute: Option<u64>,
    /// Requests in ten minutes for each application and mailbox.
    pub requests_per_ten_minutes: Option<u64>,
    /// Bytes uploaded in five minutes for each application and mailbox.
    pub bytes_per_five_minutes: Option<u64>,
    /// How long each Graph mail request takes.
    pub latency_ms: u64,
    /// How long each token request takes.
    pub token_latency_ms: u64,
    /// The form of `Retry-After` in a 429 that these limits cause.
    pub retry_after: RetryAfterForm,
    /// What `Retry-After` says when too many requests are in flight.
    pub concurrency_retry_after_ms: u64,
    /// The largest request body.
    pub request_bytes: usize,
    /// Decoded attachments of this size and more need an upload session.
    pub attachment_bytes: usize,
    /// Recipients of one message.
    pub recipients: usize,
    /// How long a sent message takes to appear in Sent Items.
    pub sent_items_delay_ms: u64,
    /// Messages the sandbox remembers; the oldest go first.
    pub keep_messages: usize,
    /// Bytes of content the sandbox keeps; the oldest messages lose theirs, their record stays.
    pub keep_bytes: usize,
}

/// How `Retry-After` is written. RFC 9110 §10.2.3 knows seconds and dates; Graph's own documentation
/// shows a fraction, and some answers have none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RetryAfterForm {
    /// Whole seconds, rounded up.
    #[default]
    Integer,
    /// Seconds with three decimals.
    Fraction,
    /// An HTTP date.
    Date,
    /// No header.
    Absent,
}

impl RetryAfterForm {
    pub(super) fn write(self, wait: Duration) -> Option<String> {
        match self {
            RetryAfterForm::Integer => Some(wait.as_millis().div_ceil(1000).to_string()),
            RetryAfterForm::Fraction => Some(format!("{:.3}", wait.as_secs_f64())),
            RetryAfterForm::Date => {
                let seconds = i64::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
                let now = jiff::Timestamp::now().as_second();
                let at = jiff::Timestamp::from_second(now.saturating_add(seconds)).ok()?;
                Some(at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())
            }
            RetryAfterForm::Absent => None,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            concurrency: Some(4),
            messages_per_minute: None,
            requests_per_ten_minutes: Some(10_000),
            bytes_per_five_minutes: Some(150_000_000),
            latency_ms: 0,
            token_latency_ms: 0,
            retry_after: RetryAfterForm::Integer,
            concurrency_retry_after_ms: 1000,
            request_bytes: 4 * 1024 * 1024,
            attachment_bytes: 3 * 1024 * 1024,
            recipients: 500,
            sent_items_delay_ms: 0,
            keep_messages: 20_000,
            keep_bytes: 256 * 1024 * 1024,
        }
    }
}

/// An application and a mailbox: what Graph counts by.
pub(super) type Lane = (String, String);

/// Lanes whose history is kept; idle ones go first.
const LANES_MAX: usize = 10_000;

/// What each lane has used.
#[derive(Default)]
pub(super) struct Throttle {
    lanes: HashMap<Lane, Usage>,
}

#[derive(Default)]
struct Usage {
    in_flight: u32,
    in_flight_peak: u32,
    messages: Window,
    requests: Window,
    bytes: Window,
}

/// A request that came too soon.
pub(super) struct Throttled {
    pub(super) message: &'static str,
    pub(super) wait: Duration,
}

const MINUTE: Duration = Duration::from_secs(60);

impl Throttle {
    /// Lets a request in, or says when to come again. A request that was let in must [`leave`].
    /// Refused requests count all the same towards the ten minutes.
    ///
    /// [`leave`]: Throttle::leave
    pub(super) fn enter(
        &mut self,
        lane: &Lane,
        limits: &Limits,
        sends: bool,
        bytes: u64,
        now: Instant,
    ) -> Result<(), Throttled> {
        if self.lanes.len() >= LANES_MAX && !self.lanes.contains_key(lane) {
            self.lanes.retain(|_, usage| usage.in_flight > 0);
        }
        let usage = self.lanes.entry(lane.clone()).or_default();
        let refuse = |message, wait| Err(Throttled { message, wait });

        usage.requests.add(1, 10 * MINUTE, now);
        if limits
            .requests_per_ten_minutes
            .is_some_and(|limit| usage.requests.total > limit)
        {
            let wait = usage.requests.wait(10 * MINUTE, now);
            return refuse("Application is over its request limit.", wait);
        }
        if limits.concurrency.is_some_and(|limit| usage.in_flight >= limit) {
            let wait = Duration::from_millis(limits.concurrency_retry_after_ms);
            return refuse("Application is over its MailboxConcurrency limit.", wait);
        }
        usage.bytes.add(0, 5 * MINUTE, now);
        if limits
            .bytes_per_five_minutes
            .is_some_and(|limit| usage.bytes.total + bytes > limit)
        {
            let wait = usage.bytes.wait(5 * MINUTE, now);
            return refuse("Application is over its upload limit.", wait);
        }
        if sends {
            usage.messages.add(0, MINUTE, now);
            if limits
                .messages_per_minute
                .is_some_and(|limit| usage.messages.total >= limit)
            {
                let wait = usage.messages.wait(MINUTE, now);
                return refuse("Application is over its message rate limit.", wait);
            }
            usage.messages.add(1, MINUTE, now);
        }
        usage.bytes.add(bytes, 5 * MINUTE, now);
        usage.in_flight += 1;
        usage.in_flight_peak = usage.in_flight_peak.max(usage.in_flight);
        Ok(())
    }

    pub(super) fn leave(&mut self, lane: &Lane) {
        if let Some(usage) = self.lanes.get_mut(lane) {
            usage.in_flight = usage.in_flight.saturating_sub(1);
        }
    }

    /// The most requests that were ever in flight at once, by mailbox.
    pub(super) fn peaks(&self) -> impl Iterator<Item = (&str, u32)> {
        self.lanes
            .iter()
            .map(|((_, mailbox), usage)| (mailbox.as_str(), usage.in_flight_peak))
    }
}

/// A sum over the last while, kept in sixty slices.
#[derive(Default)]
struct Window {
    slices: VecDeque<(Instant, u64)>,
    total: u64,
}

impl Window {
    fn add(&mut self, amount: u64, span: Duration, now: Instant) {
        while self
            .slices
            .front()
            .is_some_and(|(at, _)| now.duration_since(*at) >= span)
        {
            if let Some((_, old)) = self.slices.pop_front() {
                self.total -= old;
            }
        }
        if amount == 0 {
            return;
        }
        self.total += amount;
        match self.slices.back_mut() {
            Some((at, sum)) if now.duration_since(*at) < span / 60 => *sum += amount,
            _ => self.slices.push_back((now, amount)),
        }
    }

    /// How long until the oldest slice no longer counts.
    fn wait(&self, span: Duration, now: Instant) -> Duration {
        self.slices
            .front()
            .map_or(Duration::ZERO, |(at, _)| {
                span.saturating_sub(now.duration_since(*at))
            })
            .max(Duration::from_millis(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(mailbox: &str) -> Lane {
        ("app".into(), mailbox.into())
    }

    #[test]
    fn four_in_flight_for_each_mailbox() {
        let (mut throttle, limits, now) = (Throttle::default(), Limits::default(), Instant::now());
        for _ in 0..4 {
            assert!(throttle.enter(&lane("a"), &limits, true, 10, now).is_ok());
        }
        let refused = throttle.enter(&lane("a"), &limits, true, 10, now).err();
        assert_eq!(
            refused.map(|it| it.message),
            Some("Application is over its MailboxConcurrency limit.")
        );
        assert!(
            throttle.enter(&lane("b"), &limits, true, 10, now).is_ok(),
            "another mailbox is free"
        );

        throttle.leave(&lane("a"));
        assert!(throttle.enter(&lane("a"), &limits, true, 10, now).is_ok());
        let peaks: HashMap<&str, u32> = throttle.peaks().collect();
        assert_eq!(peaks, HashMap::from([("a", 4), ("b", 1)]));
    }

    #[test]
    fn messages_a_minute_and_the_wait_until_the_next() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        let limits = Limits {
            messages_per_minute: Some(2),
            concurrency: None,
            ..Limits::default()
        };
        let second = Duration::from_secs(1);
        assert!(throttle.enter(&lane("a"), &limits, true, 0, start).is_ok());
        assert!(
            throttle
                .enter(&lane("a"), &limits, true, 0, start + 10 * second)
                .is_ok()
        );
        let refused = throttle
            .enter(&lane("a"), &limits, true, 0, start + 20 * second)
            .err();
        assert_eq!(refused.map(|it| it.wait), Some(40 * second));
        assert!(
            throttle
                .enter(&lane("a"), &limits, false, 0, start + 20 * second)
                .is_ok(),
            "reads are free"
        );
        assert!(
            throttle
                .enter(&lane("a"), &limits, true, 0, start + 60 * second)
                .is_ok()
        );
    }

    #[test]
    fn bytes_in_five_minutes() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        let limits = Limits {
            bytes_per_five_minutes: Some(100),
            concurrency: None,
            ..Limits::default()
        };
        assert!(throttle.enter(&lane("a"), &limits, false, 60, start).is_ok());
        assert!(throttle.enter(&lane("a"), &limits, false, 60, start).is_err());
        assert!(
            throttle
                .enter(&lane("a"), &limits, false, 60, start + 5 * MINUTE)
                .is_ok()
        );
    }

    #[test]
    fn retry_after_in_its_forms() {
        let wait = Duration::from_millis(2128);
        assert_eq!(RetryAfterForm::Integer.write(wait).as_deref(), Some("3"));
        assert_eq!(RetryAfterForm::Fraction.write(wait).as_deref(), Some("2.128"));
        assert_eq!(RetryAfterForm::Absent.write(wait), None);
        assert!(
            RetryAfterForm::Date
                .write(wait)
                .is_some_and(|it| it.ends_with(" GMT"))
        );
    }
}
