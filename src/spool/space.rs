//! Room in the queue: what is kept, what is on its way in, and the marks over which mail is refused.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;

use super::{Counts, SpoolError, State};
use crate::config;
use crate::metrics::{Metrics, StateLabel, StateValue};

/// The ledger of the queue, shared by the sessions that fill it and the thread that writes it.
pub(super) struct Space {
    max_bytes: u64,
    max_messages: u64,
    min_free_bytes: u64,
    ledger: Mutex<Ledger>,
    /// How often there was no room, and why the last time.
    refusals: watch::Sender<(u64, String)>,
    messages_gauge: Family<StateLabel, Gauge>,
    bytes_gauge: Gauge,
    free_gauge: Gauge,
}

struct Ledger {
    counts: Counts,
    bytes: u64,
    arriving_messages: u64,
    arriving_bytes: u64,
    /// Free on the file system when last measured, less what has arrived since.
    free_bytes: u64,
}

/// A change of one message, as the ledger sees it. `None` is outside the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Move {
    pub from: Option<State>,
    pub to: Option<State>,
    /// Octets of content that come with it.
    pub came: u64,
    /// Octets of content that go: none as long as another recipient group still needs them.
    pub went: u64,
}

impl Space {
    pub(super) fn new(settings: &config::Spool, counts: Counts, bytes: u64, metrics: &Metrics) -> Space {
        let space = Space {
            max_bytes: settings.max_bytes,
            max_messages: settings.max_messages,
            min_free_bytes: settings.min_free_bytes,
            ledger: Mutex::new(Ledger {
                counts,
                bytes,
                arriving_messages: 0,
                arriving_bytes: 0,
                free_bytes: u64::MAX,
            }),
            refusals: watch::Sender::default(),
            messages_gauge: metrics.queue_messages.clone(),
            bytes_gauge: metrics.queue_bytes.clone(),
            free_gauge: metrics.spool_free_bytes.clone(),
        };
        space.show(&space.ledger());
        space
    }

    // Every change is complete before the guard is dropped, so a poisoned lock guards a whole ledger.
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more message of this many octets would be taken now.
    pub(super) fn admits(&self, size: u64) -> Result<(), SpoolError> {
        self.check(&self.ledger(), 1, size)
    }

    /// How often there was no room, and why the last time.
    pub(super) fn refusals(&self) -> watch::Receiver<(u64, String)> {
        self.refusals.subscribe()
    }

    fn check(&self, ledger: &Ledger, messages: u64, bytes: u64) -> Result<(), SpoolError> {
        let checked = self.check_marks(ledger, messages, bytes);
        if let Err(error) = &checked {
            self.refusals.send_modify(|(times, why)| {
                *times += 1;
                *why = error.to_string();
            });
        }
        checked
    }

    fn check_marks(&self, ledger: &Ledger, messages: u64, bytes: u64) -> Result<(), SpoolError> {
        let total = ledger.counts.kept() + ledger.arriving_messages + messages;
        if total > self.max_messages {
            return Err(SpoolError::Full(format!(
                "it holds {} of at most {} messages",
                total - messages,
                self.max_messages
            )));
        }
        let total = (ledger.bytes + ledger.arriving_bytes).saturating_add(bytes);
        if total > self.max_bytes {
            return Err(SpoolError::Full(format!(
                "it holds {} of at most {} octets",
                ledger.bytes + ledger.arriving_bytes,
                self.max_bytes
            )));
        }
        if ledger.free_bytes < self.min_free_bytes.saturating_add(bytes) {
            return Err(SpoolError::Full(format!(
                "its file system has {} octets free, and {} are to stay free",
                ledger.free_bytes, self.min_free_bytes
            )));
        }
        Ok(())
    }

    /// Sets room for one message aside.
    pub(super) fn reserve(self: &Arc<Space>) -> Result<Reservation, SpoolError> {
        let mut ledger = self.ledger();
        self.check(&ledger, 1, 0)?;
        ledger.arriving_messages += 1;
        drop(ledger);
        Ok(Reservation {
            space: Arc::clone(self),
            bytes: 0,
        })
    }

    /// Enters what a commit has changed.
    pub(super) fn enter(&self, moves: &[Move]) {
        let mut ledger = self.ledger();
        for &Move { from, to, came, went } in moves {
            if let Some(from) = from {
                let count = ledger.counts.of_mut(from);
                *count = count.saturating_sub(1);
            }
            if let Some(to) = to {
                *ledger.counts.of_mut(to) += 1;
            }
            ledger.bytes = (ledger.bytes + came).saturating_sub(went);
        }
        self.show(&ledger);
    }

    /// Enters a measurement of the file system.
    pub(super) fn measured(&self, free_bytes: u64) {
        self.ledger().free_bytes = free_bytes;
        self.free_gauge.set(i64::try_from(free_bytes).unwrap_or(i64::MAX));
    }

    /// Messages in each state and octets kept.
    pub(super) fn totals(&self) -> (Counts, u64) {
        let ledger = self.ledger();
        (ledger.counts, ledger.bytes)
    }

    fn show(&self, ledger: &Ledger) {
        let gauge = |it: u64| i64::try_from(it).unwrap_or(i64::MAX);
        for state in State::ALL {
            self.messages_gauge
                .get_or_create(&StateLabel {
                    state: StateValue::from(state),
                })
                .set(gauge(ledger.counts.of(state)));
        }
        self.bytes_gauge.set(gauge(ledger.bytes));
    }
}

impl From<State> for StateValue {
    fn from(state: State) -> StateValue {
        match state {
            State::Queued => StateValue::queued,
            State::Sending => StateValue::sending,
            State::Held => StateValue::held,
            State::Failed => StateValue::failed,
            State::Unknown => StateValue::unknown,
            State::Sent => StateValue::sent,
        }
    }
}

/// Room for a message on its way in, given back when dropped. A message that is accepted is first
/// entered in the ledger, then its reservation dropped: never uncounted between.
pub(super) struct Reservation {
    space: Arc<Space>,
    bytes: u64,
}

impl Reservation {
    /// Takes room for more octets.
    pub(super) fn grow(&mut self, bytes: u64) -> Result<(), SpoolError> {
        let mut ledger = self.space.ledger();
        self.space.check(&ledger, 0, bytes)?;
        ledger.arriving_bytes += bytes;
        // Between two measurements a flood must not pass the mark.
        ledger.free_bytes = ledger.free_bytes.saturating_sub(bytes);
        drop(ledger);
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut ledger = self.space.ledger();
        ledger.arriving_messages -= 1;
        ledger.arriving_bytes -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    fn space(max_bytes: u64, max_messages: u64) -> Arc<Space> {
        let settings = config::Spool {
            directory: "/nowhere".into(),
            file_threshold: 1,
            max_bytes,
            max_messages,
            min_free_bytes: 1000,
            keep_sent: Duration::ZERO,
            keep_failed: Duration::ZERO,
        };
        Arc::new(Space::new(&settings, Counts::default(), 0, &Metrics::new()))
    }

    fn is_full(result: Result<impl Sized, SpoolError>) -> bool {
        matches!(result, Err(SpoolError::Full(_)))
    }

    #[test]
    fn what_is_on_its_way_counts() {
        let space = space(100, 3);
        let mut first = space.reserve().unwrap();
        first.grow(60).unwrap();
        let mut second = space.reserve().unwrap();
        assert!(is_full(second.grow(41)));
        second.grow(40).unwrap();
        assert!(is_full(space.admits(1)));
        assert_eq!(space.admits(0), Ok(()));
        let third = space.reserve().unwrap();
        assert!(is_full(space.reserve()));
        drop((first, third));
        assert_eq!(space.admits(60), Ok(()));
        assert!(is_full(space.admits(61)));
        assert!(is_full(space.admits(u64::MAX)));
    }

    #[test]
    fn an_accepted_message_is_counted_all_along() {
        let space = space(100, 10);
        let mut reservation = space.reserve().unwrap();
        reservation.grow(70).unwrap();
        space.enter(&[Move {
            to: Some(State::Queued),
            came: 70,
            ..Move::default()
        }]);
        assert!(is_full(space.admits(31)));
        drop(reservation);
        assert_eq!(space.admits(30), Ok(()));
        space.enter(&[Move {
            from: Some(State::Queued),
            to: Some(State::Sent),
            went: 70,
            ..Move::default()
        }]);
        let (counts, bytes) = space.totals();
        assert_eq!((counts.sent, counts.kept(), bytes), (1, 0, 0));
        space.enter(&[Move {
            from: Some(State::Sent),
            ..Move::default()
        }]);
        assert_eq!(space.totals(), (Counts::default(), 0));
    }

    #[test]
    fn a_flood_between_two_measurements_stops_at_the_mark() {
        let space = space(u64::MAX, 10);
        space.measured(1500);
        let mut reservation = space.reserve().unwrap();
        reservation.grow(500).unwrap();
        assert!(is_full(reservation.grow(1)));
        assert!(is_full(space.admits(1)));
        space.measured(2000);
        reservation.grow(1000).unwrap();
    }
}
