//! What one client or one account may do in a stretch of time: messages and recipients a minute, and
//! failed logins until it is locked out. Knows no clock.
//!
//! Everything is kept in memory and bounded: who makes the tables full makes them forget.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::config;

/// Clients and accounts that are followed at once.
const MAX_FOLLOWED: usize = 10_000;

/// Account names are followed up to here.
const MAX_NAME_CHARS: usize = 256;

const MINUTE: Duration = Duration::from_secs(60);

/// Who is followed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Who {
    /// Of IPv6 the network, a /64: one host can have as many addresses in it as it likes.
    Address(IpAddr),
    /// In lower case.
    Account(String),
}

fn address(client: IpAddr) -> Who {
    Who::Address(match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    })
}

fn account(name: &str) -> Who {
    Who::Account(
        name.chars()
            .take(MAX_NAME_CHARS)
            .collect::<String>()
            .to_lowercase(),
    )
}

/// Messages and recipients a minute, for each client address and each account.
///
/// Who has been quiet for a minute may send a minute's worth at once: applications send in bursts.
/// The addresses of this machine itself are not followed, for all its applications share them.
#[derive(Debug)]
pub struct Rates {
    messages_per_minute: f64,
    recipients_per_minute: f64,
    left: HashMap<Who, Left>,
}

/// What somebody may still send, as of an instant.
#[derive(Clone, Copy, Debug)]
struct Left {
    messages: f64,
    recipients: f64,
    at: Instant,
}

impl Rates {
    /// The limits of the settings; 0 is none.
    pub fn new(settings: &config::Smtp) -> Rates {
        let rate = |limit: usize| if limit == 0 { f64::INFINITY } else { limit as f64 };
        Rates {
            messages_per_minute: rate(settings.max_messages_per_minute),
            recipients_per_minute: rate(settings.max_recipients_per_minute),
            left: HashMap::new(),
        }
    }

    /// Whether a message to so many recipients may be sent now. If so, it counts.
    pub fn admit(&mut self, client: IpAddr, name: Option<&str>, recipients: usize, now: Instant) -> bool {
        if self.messages_per_minute.is_infinite() && self.recipients_per_minute.is_infinite() {
            return true;
        }
        let address = (!client.is_loopback()).then(|| address(client));
        let who: Vec<Who> = address.into_iter().chain(name.map(account)).collect();
        let left: Vec<Left> = who.iter().map(|it| self.left_at(it, now)).collect();
        // A message to more than a minute's recipients must have a chance too: it may overdraw.
        if left.iter().any(|it| it.messages < 1.0 || it.recipients <= 0.0) {
            return false;
        }
        make_room(&mut self.left, |it| now.saturating_duration_since(it.at) < MINUTE);
        for (who, left) in who.into_iter().zip(left) {
            let left = Left {
                messages: left.messages - 1.0,
                recipients: left.recipients - recipients as f64,
                at: now,
            };
            self.left.insert(who, left);
        }
        true
    }

    fn left_at(&self, who: &Who, now: Instant) -> Left {
        let all = Left {
            messages: self.messages_per_minute,
            recipients: self.recipients_per_minute,
            at: now,
        };
        self.left.get(who).map_or(all, |before| {
            let minutes = now.saturating_duration_since(before.at).as_secs_f64() / 60.0;
            Left {
                messages: (before.messages + minutes * all.messages).min(all.messages),
                recipients: (before.recipients + minutes * all.recipients).min(all.recipients),
                at: now,
            }
        })
    }
}

/// Failed logins, and who may not try again for a while.
///
/// A lock on an account would be a weapon in the hands of those it is meant to keep out. So a client
/// that has logged in to an account before is not locked out of it, whoever else has tried.
#[derive(Debug)]
pub struct Lockouts {
    after: usize,
    time: Duration,
    failures: HashMap<Who, Failures>,
    proven: Proven,
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: usize,
    last: Instant,
}

/// Clients with the accounts that they have logged in to.
#[derive(Debug, Default)]
struct Proven {
    known: HashSet<(IpAddr, Who)>,
    oldest_first: VecDeque<(IpAddr, Who)>,
}

impl Lockouts {
    /// The limits of the settings; after 0 failures is never.
    pub fn new(settings: &config::Smtp) -> Lockouts {
        Lockouts {
            after: settings.lockout_after,
            time: settings.lockout_time,
            failures: HashMap::new(),
            proven: Proven::default(),
        }
    }

    /// Whether a login of this client to this account is not even tried.
    pub fn is_locked(&self, client: IpAddr, name: &str, now: Instant) -> bool {
        let account = account(name);
        let locked = |who: &Who| {
            self.failures.get(who).is_some_and(|it| {
                it.count >= self.after && now.saturating_duration_since(it.last) < self.time
            })
        };
        self.after > 0
            && (locked(&account) || locked(&address(client)))
            && !self.proven.known.contains(&(client, account))
    }

    /// A login has failed.
    pub fn failed(&mut self, client: IpAddr, name: &str, now: Instant) {
        let time = self.time;
        let recent = |it: &Failures| now.saturating_duration_since(it.last) < time;
        make_room(&mut self.failures, recent);
        for who in [address(client), account(name)] {
            let before = self
                .failures
                .get(&who)
                .filter(|it| recent(it))
                .map_or(0, |it| it.count);
            self.failures.insert(
                who,
                Failures {
                    count: before + 1,
                    last: now,
                },
            );
        }
    }

    /// A login has succeeded.
    pub fn succeeded(&mut self, client: IpAddr, name: &str) {
        let pair = (client, account(name));
        if self.proven.known.insert(pair.clone()) {
            self.proven.oldest_first.push_back(pair);
            if self.proven.oldest_first.len() > MAX_FOLLOWED
                && let Some(oldest) = self.proven.oldest_first.pop_front()
            {
                self.proven.known.remove(&oldest);
            }
        }
    }
}

/// Makes room for two more: first what matters no more goes, and if that does not help, all.
fn make_room<K: Hash + Eq, V>(followed: &mut HashMap<K, V>, still_matters: impl Fn(&V) -> bool) {
    if followed.len() + 2 > MAX_FOLLOWED {
        followed.retain(|_, it| still_matters(it));
    }
    if followed.len() + 2 > MAX_FOLLOWED {
        followed.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ip(last: u32) -> IpAddr {
        IpAddr::V4(std::net::Ipv4Addr::from_bits(0x0a00_0000 + last))
    }

    fn rates(messages: usize, recipients: usize) -> Rates {
        Rates::new(&config::Smtp {
            max_messages_per_minute: messages,
            max_recipients_per_minute: recipients,
            ..config::Smtp::default()
        })
    }

    fn lockouts() -> Lockouts {
        Lockouts::new(&config::Smtp {
            lockout_after: 3,
            lockout_time: 10 * MINUTE,
            ..config::Smtp::default()
        })
    }

    #[test]
    fn a_minutes_worth_at_once_and_then_at_that_pace() {
        let mut rates = rates(60, 0);
        let start = Instant::now();
        for _ in 0..60 {
            assert!(rates.admit(ip(1), None, 1, start));
        }
        assert!(!rates.admit(ip(1), None, 1, start));
        // Others do not feel it.
        assert!(rates.admit(ip(2), None, 1, start));
        assert!(!rates.admit(ip(1), None, 1, start + SECOND / 2));
        assert!(rates.admit(ip(1), None, 1, start + SECOND));
        assert!(!rates.admit(ip(1), None, 1, start + SECOND));
        // An hour of silence is worth one minute.
        for _ in 0..60 {
            assert!(rates.admit(ip(1), None, 1, start + 60 * MINUTE));
        }
        assert!(!rates.admit(ip(1), None, 1, start + 60 * MINUTE));
    }

    #[test]
    fn recipients_count_and_one_large_message_may_overdraw() {
        let mut rates = rates(0, 100);
        let start = Instant::now();
        assert!(rates.admit(ip(1), None, 400, start));
        assert!(!rates.admit(ip(1), None, 1, start + 3 * MINUTE));
        assert!(rates.admit(ip(1), None, 1, start + 4 * MINUTE));
    }

    #[test]
    fn an_account_is_one_wherever_it_comes_from() {
        let mut rates = rates(2, 0);
        let start = Instant::now();
        assert!(rates.admit(ip(1), Some("scanner"), 1, start));
        assert!(rates.admit(ip(2), Some("Scanner"), 1, start));
        assert!(!rates.admit(ip(3), Some("scanner"), 1, start));
        // What is refused does not count.
        assert!(rates.admit(ip(3), None, 1, start) && rates.admit(ip(3), None, 1, start));
        // This machine has no limit, its accounts have.
        let here = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
        assert!((0..100).all(|_| rates.admit(here, None, 1, start)));
        assert!(!rates.admit(here, Some("scanner"), 1, start));
    }

    #[test]
    fn who_fails_too_often_is_locked_out_for_a_while() {
        let mut lockouts = lockouts();
        let start = Instant::now();
        for second in 0..3 {
            assert!(!lockouts.is_locked(ip(1), "erp", start + second * SECOND));
            lockouts.failed(ip(1), "erp", start + second * SECOND);
        }
        let then = start + 3 * SECOND;
        // The address, for whichever account; and the account, from wherever.
        assert!(lockouts.is_locked(ip(1), "ERP", then));
        assert!(lockouts.is_locked(ip(1), "other", then));
        assert!(lockouts.is_locked(ip(2), "erp", then));
        assert!(!lockouts.is_locked(ip(2), "other", then));
        assert!(!lockouts.is_locked(ip(1), "erp", start + 2 * SECOND + 10 * MINUTE));
        // Old failures are forgotten.
        lockouts.failed(ip(1), "erp", start + 20 * MINUTE);
        assert!(!lockouts.is_locked(ip(1), "erp", start + 20 * MINUTE));
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_are_one() {
        let (mut rates, mut lockouts) = (rates(2, 0), lockouts());
        let start = Instant::now();
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        for host in 1..=3 {
            lockouts.failed(ip(&format!("fd00::{host}")), &format!("guess{host}"), start);
        }
        assert!(lockouts.is_locked(ip("fd00::9"), "erp", start));
        assert!(!lockouts.is_locked(ip("fd00:0:0:1::9"), "erp", start));
        // Who has logged in before is known by the whole address: its neighbours are not.
        lockouts.succeeded(ip("fd00::1"), "erp");
        assert!(!lockouts.is_locked(ip("fd00::1"), "erp", start));
        assert!(lockouts.is_locked(ip("fd00::2"), "erp", start));

        assert!(rates.admit(ip("fd00::1"), None, 1, start) && rates.admit(ip("fd00::2"), None, 1, start));
        assert!(!rates.admit(ip("fd00::3"), None, 1, start));
        assert!(rates.admit(ip("fd00:0:0:1::3"), None, 1, start));
    }

    #[test]
    fn an_attacker_locks_out_nobody_who_has_logged_in_before() {
        let mut lockouts = lockouts();
        let start = Instant::now();
        lockouts.succeeded(ip(1), "Scanner");
        for _ in 0..100 {
            lockouts.failed(ip(2), "scanner", start);
            // Even one behind the same address.
            lockouts.failed(ip(1), "other", start);
        }
        assert!(!lockouts.is_locked(ip(1), "scanner", start));
        assert!(lockouts.is_locked(ip(1), "other", start));
        assert!(lockouts.is_locked(ip(2), "scanner", start));
        assert!(lockouts.is_locked(ip(3), "scanner", start));
    }

    #[test]
    fn may_be_switched_off() {
        let settings = config::Smtp {
            lockout_after: 0,
            ..config::Smtp::default()
        };
        let mut lockouts = Lockouts::new(&settings);
        let start = Instant::now();
        for _ in 0..100 {
            lockouts.failed(ip(1), "erp", start);
        }
        assert!(!lockouts.is_locked(ip(1), "erp", start));
        let mut rates = rates(0, 0);
        assert!((0..100_000).all(|_| rates.admit(ip(1), Some("erp"), 500, start)));
        assert!(rates.left.is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let (mut rates, mut lockouts) = (rates(10, 10), lockouts());
        let start = Instant::now();
        for number in 0..50_000 {
            let now = start + number * Duration::from_millis(1);
            rates.admit(ip(number), Some(&number.to_string()), 1, now);
            lockouts.failed(ip(number), &number.to_string(), now);
            lockouts.succeeded(ip(number), &number.to_string());
            assert!(rates.left.len() <= MAX_FOLLOWED && lockouts.failures.len() <= MAX_FOLLOWED);
        }
        assert_eq!(
            (lockouts.proven.known.len(), lockouts.proven.oldest_first.len()),
            (MAX_FOLLOWED, MAX_FOLLOWED)
        );
    }
}
