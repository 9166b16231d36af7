//! Admits connections: so many in all, from one address, and from one network.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::config;

/// Clients that are told at once why they are not admitted; further ones are told nothing. A refusal
/// takes a file descriptor as a connection does.
const MAX_REFUSALS: usize = 64;

/// Refused connections are logged no more often than this.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Who is connected, and how many may be.
pub(super) struct Admissions {
    connections: Arc<Semaphore>,
    /// Taken while a client is told that it is not admitted.
    pub(super) refusals: Arc<Semaphore>,
    max_per_address: usize,
    max_per_network: usize,
    places: Mutex<Places>,
    /// When the last refusal was logged, and how many have not been since. A flood of connections
    /// must not become a flood of lines.
    logged: Mutex<(Option<Instant>, u64)>,
}

/// How many are connected, by address and by network.
#[derive(Default)]
struct Places {
    by_address: HashMap<IpAddr, usize>,
    by_network: HashMap<IpAddr, usize>,
}

/// One connection of those that there may be in all, whoever the client is: a proxy says it later.
pub(super) struct Entry {
    admissions: Arc<Admissions>,
    permit: OwnedSemaphorePermit,
}

/// A connection's place within the limits, given back when it is dropped.
pub(super) struct Admission {
    admissions: Arc<Admissions>,
    client: IpAddr,
    _permit: OwnedSemaphorePermit,
}

/// The network that is counted as one: a /24 of IPv4, a /64 of IPv6, whose addresses one host can
/// have as many of as it likes.
fn network(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & !0xff).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

impl Admissions {
    /// The limits of the settings; and no more than `connections` in all.
    pub(super) fn new(settings: &config::Smtp, connections: usize) -> Admissions {
        let connections = settings.max_connections.min(connections);
        Admissions {
            connections: Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS))),
            refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
            max_per_address: settings.max_connections_per_address,
            max_per_network: settings.max_connections_per_network,
            places: Mutex::default(),
            logged: Mutex::default(),
        }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets one in, if there are not too many in all.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Entry> {
        Some(Entry {
            admissions: Arc::clone(self),
            permit: Arc::clone(&self.connections).try_acquire_owned().ok()?,
        })
    }

    /// Whether a refusal at `now` is to be logged, and how many before it were not.
    pub(super) fn log_refusal(&self, now: Instant) -> Option<u64> {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, others) = &mut *logged;
        if last.is_some_and(|last| now < last + REFUSAL_LOG_INTERVAL) {
            *others += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(others))
    }
}

impl Entry {
    /// Gives it to this client, if the client and its network have not too many.
    pub(super) fn of(self, client: IpAddr) -> Option<Admission> {
        let Entry { admissions, permit } = self;
        let mut places = admissions.places();
        let count = |of: &HashMap<IpAddr, usize>, who| of.get(&who).copied().unwrap_or(0);
        // This machine's own programs share one address and are no network.
        let network_full =
            !client.is_loopback() && count(&places.by_network, network(client)) >= admissions.max_per_network;
        if count(&places.by_address, client) >= admissions.max_per_address || network_full {
            return None;
        }
        *places.by_address.entry(client).or_insert(0) += 1;
        *places.by_network.entry(network(client)).or_insert(0) += 1;
        drop(places);
        Some(Admission {
            admissions,
            client,
            _permit: permit,
        })
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut places = self.admissions.places();
        give_back(&mut places.by_address, self.client);
        give_back(&mut places.by_network, network(self.client));
    }
}

fn give_back(counts: &mut HashMap<IpAddr, usize>, who: IpAddr) {
    if let Some(count) = counts.get_mut(&who) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&who);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_in_all_and_by_address_and_given_back() {
        let settings = config::Smtp {
            max_connections: 3,
            max_connections_per_address: 2,
            ..config::Smtp::default()
        };
        let limits = Arc::new(Admissions::new(&settings, usize::MAX));
        let [one, two] = ["10.0.0.1", "10.0.0.2"].map(|it| it.parse::<IpAddr>().expect("an address"));

        let admit = |client| limits.enter()?.of(client);
        let first = admit(one).expect("a place");
        let _second = admit(one).expect("a place");
        assert!(admit(one).is_none(), "two from one address");
        let _third = admit(two).expect("a place");
        assert!(admit(two).is_none(), "three in all");
        drop(first);
        let again = admit(one).expect("a place again");
        drop(again);
        assert_eq!(limits.places().by_address.len(), 2);
        assert_eq!(limits.places().by_network.len(), 1);
    }

    #[test]
    fn a_network_has_its_share() {
        let settings = config::Smtp {
            max_connections_per_network: 2,
            ..config::Smtp::default()
        };
        let limits = Arc::new(Admissions::new(&settings, usize::MAX));
        let admit = |address: &str| limits.enter()?.of(address.parse().expect("an address"));
        let held = [
            admit("10.0.0.1"),
            admit("10.0.0.2"),
            admit("fd00::1"),
            admit("fd00::2"),
        ];
        assert!(held.iter().all(Option::is_some));
        assert!(admit("10.0.0.3").is_none() && admit("fd00::3:0:0:1").is_none());
        assert!(admit("10.0.1.1").is_some() && admit("fd00:0:0:1::1").is_some());
        // Programs on this machine are no network.
        let here: Vec<_> = (0..10).map(|_| admit("127.0.0.1")).collect();
        assert!(here.iter().all(Option::is_some));
        drop((held, here));
        assert!(limits.places().by_network.is_empty() && limits.places().by_address.is_empty());
    }

    #[test]
    fn a_flood_is_one_line_a_second() {
        let limits = Admissions::new(&config::Smtp::default(), usize::MAX);
        let start = Instant::now();
        assert_eq!(limits.log_refusal(start), Some(0));
        for milliseconds in [0, 1, 999] {
            assert_eq!(
                limits.log_refusal(start + Duration::from_millis(milliseconds)),
                None
            );
        }
        assert_eq!(limits.log_refusal(start + REFUSAL_LOG_INTERVAL), Some(3));
        assert_eq!(limits.log_refusal(start + 2 * REFUSAL_LOG_INTERVAL), Some(0));
    }
}
