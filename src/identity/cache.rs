//! What to do for a token now: use it, renew it, ask for one, or wait. Pure: the time is an argument.
//!
//! A token is renewed well before its end, and kept while Entra ID cannot be reached. Entra ID is
//! never asked more often than the backoff allows: asking in a loop earns AADSTS50196.

use std::time::{Duration, Instant};

use super::token::{Token, TokenError};
use crate::diagnosis;

/// Tokens are renewed this long before their end, or at half their life where that is shorter.
const RENEW_BEFORE_END: Duration = Duration::from_secs(300);

/// After a failure that may pass by itself: doubled each time, up to the second value.
const TRANSIENT_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// After a failure that an operator must mend; he should not have to wait long once he has.
const CREDENTIAL_BACKOFF: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
/// A younger token than this has all the permissions there are; an older one is renewed where one is
/// missing.
const PERMISSIONS_KNOWN: Duration = Duration::from_secs(10);
/// No Retry-After makes us wait longer.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// What Entra ID granted.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The token.
    pub token: Token,
    /// `expires_in`.
    pub expires_in: Duration,
    /// `refresh_in`, which long-lived tokens have.
    pub refresh_in: Option<Duration>,
    /// `ext_expires_in`: how long it may be used while Entra ID is down.
    pub extended_expires_in: Option<Duration>,
}

/// What to do for a token.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Use this one.
    Use(Token),
    /// Use this one, and ask for the next beside.
    Renew(Token),
    /// There is none: ask for one.
    Ask,
    /// There is none, and it is too soon to ask again.
    Wait(TokenError),
}

/// The tokens of one application for one resource: at most one.
#[derive(Debug, Default)]
pub struct Cache {
    held: Option<Held>,
    failure: Option<Failure>,
    /// Tokens in a row that Graph refused, with none in between that it took.
    refused: u32,
}

#[derive(Debug)]
struct Held {
    token: Token,
    granted: Instant,
    renew: Instant,
    expires: Instant,
    /// The end of its use while Entra ID is down.
    extended: Instant,
}

#[derive(Debug)]
struct Failure {
    error: TokenError,
    count: u32,
    ask_again: Instant,
}

impl Cache {
    /// What to do now.
    pub fn advise(&self, now: Instant) -> Advice {
        let closed = self.failure.as_ref().filter(|it| now < it.ask_again);
        match (&self.held, closed) {
            (Some(held), _) if now < held.renew => Advice::Use(held.token.clone()),
            (Some(held), None) if now < held.expires => Advice::Renew(held.token.clone()),
            (Some(held), Some(_)) if now < held.expires => Advice::Use(held.token.clone()),
            (Some(held), Some(failure)) if now < held.extended && !failure.error.credential => {
                Advice::Use(held.token.clone())
            }
            (_, Some(failure)) => Advice::Wait(TokenError {
                retry_after: Some(failure.ask_again - now),
                ..failure.error.clone()
            }),
            (_, None) => Advice::Ask,
        }
    }

    /// Why the last request failed, until one succeeds.
    pub fn failure(&self) -> Option<&TokenError> {
        self.failure.as_ref().map(|it| &it.error)
    }

    /// Takes what Entra ID granted.
    pub fn granted(&mut self, grant: Grant, now: Instant) {
        let life = grant.expires_in;
        let renew_in = grant
            .refresh_in
            .unwrap_or_else(|| life.saturating_sub(RENEW_BEFORE_END).max(life / 2))
            .min(life);
        self.failure = None;
        self.held = Some(Held {
            token: grant.token,
            granted: now,
            renew: later(now, renew_in),
            expires: later(now, life),
            extended: later(now, grant.extended_expires_in.unwrap_or(life).max(life)),
        });
    }

    /// Takes the word that there is no token. One that is held is kept as long as it lasts.
    pub fn failed(&mut self, error: TokenError, now: Instant) {
        let count = self.failure.as_ref().map_or(0, |it| it.count).saturating_add(1);
        self.failure = Some(Failure {
            ask_again: later(now, backoff(&error, count)),
            count,
            error,
        });
    }

    /// Notes that Graph took a token.
    pub fn accepted(&mut self, token: &Token) {
        if self.held.as_ref().is_some_and(|it| it.token == *token) {
            self.refused = 0;
        }
    }

    /// An operator says that something has been mended: the next question is asked at once.
    pub fn ask_now(&mut self, now: Instant) {
        if let Some(failure) = &mut self.failure {
            failure.ask_again = now;
        }
    }

    /// Whether a newer token may have a permission that this one has not: a token has those of the time
    /// it was made.
    pub fn is_dated(&self, token: &Token, now: Instant) -> bool {
        self.held
            .as_ref()
            .is_some_and(|it| it.token != *token || now >= it.granted + PERMISSIONS_KNOWN)
    }

    /// Drops a token that Graph refused with 401; one that has been replaced meanwhile is gone
    /// already. The next one is asked for at once, unless new ones are refused again and again.
    pub fn rejected(&mut self, token: &Token, now: Instant) {
        if self.held.take_if(|it| it.token == *token).is_none() {
            return;
        }
        self.refused = self.refused.saturating_add(1);
        if self.refused >= 2 {
            let error = TokenError {
                why: diagnosis::reason(
                    "Graph refuses the tokens that Entra ID issues (401)",
                    "check that authority and graph belong to the same cloud",
                ),
                credential: true,
                code: None,
                retry_after: None,
            };
            self.failure = Some(Failure {
                ask_again: later(now, backoff(&error, self.refused - 1)),
                count: self.refused - 1,
                error,
            });
        }
    }
}

/// How long not to ask again after the `count`th failure in a row, counted from 1.
fn backoff(error: &TokenError, count: u32) -> Duration {
    let (first, most) = if error.credential {
        CREDENTIAL_BACKOFF
    } else {
        TRANSIENT_BACKOFF
    };
    let wait = first
        .saturating_mul(2u32.saturating_pow(count.saturating_sub(1)))
        .min(most);
    wait.max(error.retry_after.unwrap_or_default().min(MAX_RETRY_AFTER))
}

/// A sum that cannot overflow: no token lives longer than a year.
fn later(now: Instant, wait: Duration) -> Instant {
    now + wait.min(Duration::from_secs(365 * 24 * 3600))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn token(text: &str) -> Token {
        Token::new(text).expect("a token")
    }

    fn grant(text: &str, expires_in: u32) -> Grant {
        Grant {
            token: token(text),
            expires_in: SECOND * expires_in,
            refresh_in: None,
            extended_expires_in: None,
        }
    }

    fn outage() -> TokenError {
        TokenError {
            why: "down".to_owned(),
            credential: false,
            code: None,
            retry_after: None,
        }
    }

    fn waits(cache: &Cache, now: Instant) -> Option<u64> {
        match cache.advise(now) {
            Advice::Wait(error) => error.retry_after.map(|it| it.as_secs()),
            _ => None,
        }
    }

    #[test]
    fn renews_five_minutes_before_the_end() {
        let t0 = Instant::now();
        let mut cache = Cache::default();
        assert_eq!(cache.advise(t0), Advice::Ask);
        cache.granted(grant("a", 3599), t0);
        assert_eq!(cache.advise(t0 + SECOND * 3298), Advice::Use(token("a")));
        assert_eq!(cache.advise(t0 + SECOND * 3299), Advice::Renew(token("a")));
        assert_eq!(cache.advise(t0 + SECOND * 3598), Advice::Renew(token("a")));
        assert_eq!(cache.advise(t0 + SECOND * 3599), Advice::Ask);
    }

    #[test]
    fn a_new_token_has_all_the_permissions_there_are() {
        let t0 = Instant::now();
        let mut cache = Cache::default();
        assert!(!cache.is_dated(&token("a"), t0));
        cache.granted(grant("a", 3600), t0);
        assert!(!cache.is_dated(&token("a"), t0 + SECOND));
        assert!(cache.is_dated(&token("a"), t0 + SECOND * 20));
        assert!(cache.is_dated(&token("older"), t0 + SECOND));
    }

    #[test]
    fn an_operator_need_not_wait() {
        let t0 = Instant::now();
        let mut cache = Cache::default();
        cache.failed(TokenError::credential("AADSTS700027"), t0);
        assert_eq!(waits(&cache, t0 + SECOND), Some(9));
        cache.ask_now(t0 + SECOND);
        assert_eq!(cache.advise(t0 + SECOND), Advice::Ask);
    }

    #[test]
    fn renews_short_tokens_at_half_their_life_and_long_ones_when_told() {
        let t0 = Instant::now();
        let mut cache = Cache::default();
        cache.granted(grant("short", 60), t0);
        assert_eq!(cache.advise(t0 + SECOND * 29), Advice::Use(token("short")));
        assert_eq!(cache.advise(t0 + SECOND * 30), Advice::Renew(token("short")));

        cache.granted(
            Grant {
                refresh_in: Some(SECOND * 43200),
                ..grant("long", 86400)
            },
            t0,
        );
        assert_eq!(cache.advise(t0 + SECOND * 43199), Advice::Use(token("long")));
        assert_eq!(cache.advise(t0 + SECOND * 43200), Advice::Renew(token("long")));
    }

    #[test]
    fn keeps_the_last_good_token_through_an_outage() {
        let t0 = Instant::now();
        let mut cache = Cache::default();
        cache.granted(
            Grant {
                extended_expires_in: Some(SECOND * 7200),
                ..grant("a", 3600)
            },
            t0,
        );
        let late = t0 + SECOND * 3500;
        cache.failed(outage(), late);
        assert_eq!(
            cache.advise(late),
            Advice::Use(token("a")),
            "not renewed in the backoff"
        );
        assert_eq!(cache.advise(late + SECOND), Advice::Renew(token("a")));
        // Past its end Entra ID is asked first, and only its failure lets the old token live on.
        let past = t0 + SECOND * 3600;
        assert_eq!(cache.advise(past), Advice::Ask);
        cache.failed(outage(), past);
        assert_eq!(cache.advise(past), Advice::Use(token("a")));
        cache.failed(outage(), t0 + SECOND * 7200);
        assert!(waits(&cache, t0 + SECOND * 7200).is_some());
    }

    #[test]
    fn a_refused_credential_does_not_stretch_a_token() {
        let t0 = Instant::now();
        let mut cache = Cache::default();
        cache.granted(
            Grant {
                extended_expires_in: Some(SECOND * 7200),
                ..grant("a", 3600)
            },
            t0,
        );
        let refused = TokenError {
            credential: true,
            ..outage()
        };
        cache.failed(refused.clone(), t0 + SECOND * 3599);
        assert_eq!(cache.advise(t0 + SECOND * 3599), Advice::Use(token("a")));
        assert_eq!(waits(&cache, t0 + SECOND * 3600), Some(9));
    }

    #[test]
    fn asks_no_more_often_than_the_backoff_allows() {
        let t0 = Instant::now();
        for (credential, want) in [
            (false, [1, 2, 4, 8, 16, 32, 60, 60]),
            (true, [10, 20, 40, 80, 160, 300, 300, 300]),
        ] {
            let mut cache = Cache::default();
            let mut now = t0;
            for seconds in want {
                assert_eq!(cache.advise(now), Advice::Ask);
                cache.failed(
                    TokenError {
                        credential,
                        ..outage()
                    },
                    now,
                );
                assert_eq!(waits(&cache, now), Some(seconds));
                now += SECOND * seconds as u32;
            }
            cache.granted(grant("a", 3600), now);
            assert_eq!(cache.advise(now), Advice::Use(token("a")));
        }
    }

    #[test]
    fn obeys_retry_after_up_to_an_hour() {
        let t0 = Instant::now();
        for (asked, want) in [(7, 7), (u64::MAX, 3600), (0, 1)] {
            let mut cache = Cache::default();
            cache.failed(
                TokenError {
                    retry_after: Some(Duration::from_secs(asked)),
                    ..outage()
                },
                t0,
            );
            assert_eq!(waits(&cache, t0), Some(want));
        }
    }

    #[test]
    fn a_401_drops_the_token_and_a_second_one_waits() {
        let t0 = Instant::now();
        let mut cache = Cache::default();
        cache.granted(grant("a", 3600), t0);
        cache.rejected(&token("a"), t0);
        assert_eq!(cache.advise(t0), Advice::Ask, "at once");

        cache.granted(grant("b", 3600), t0);
        cache.rejected(&token("a"), t0);
        assert_eq!(
            cache.advise(t0),
            Advice::Use(token("b")),
            "a late 401 for the old one"
        );

        cache.rejected(&token("b"), t0);
        assert_eq!(waits(&cache, t0), Some(10));
        let later = t0 + SECOND * 10;
        assert_eq!(cache.advise(later), Advice::Ask);
        cache.granted(grant("c", 3600), later);
        cache.rejected(&token("c"), later);
        assert_eq!(waits(&cache, later), Some(20));

        // One that worked was good: its end is news, not a habit.
        let later = later + SECOND * 20;
        cache.granted(grant("d", 3600), later);
        cache.accepted(&token("d"));
        cache.rejected(&token("d"), later);
        assert_eq!(cache.advise(later), Advice::Ask);
    }

    #[test]
    fn absurd_lifetimes_do_no_harm() {
        let t0 = Instant::now();
        let mut cache = Cache::default();
        cache.granted(
            Grant {
                expires_in: Duration::MAX,
                refresh_in: Some(Duration::MAX),
                extended_expires_in: Some(Duration::ZERO),
                ..grant("a", 0)
            },
            t0,
        );
        assert_eq!(cache.advise(t0), Advice::Use(token("a")));
        cache.granted(grant("b", 0), t0);
        assert_eq!(cache.advise(t0), Advice::Ask);
    }
}
