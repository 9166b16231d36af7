//! SMTP accounts: argon2id hashes, and a cache of verified logins.
//!
//! A password check costs memory and tens of milliseconds, on purpose. It runs on a blocking thread,
//! a few at a time, so that a flood of logins can neither stall the listener nor fill the memory. A
//! printer that logs in for every page pays once: what was verified is remembered as a keyed hash.

mod file;

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use argon2::{Argon2, Params, PasswordHash, PasswordVerifier};
use aws_lc_rs::hmac;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

pub use file::{AccountsError, Added, Fault, add, list, remove};

/// Verified logins remembered; the oldest makes room.
const MAX_REMEMBERED: usize = 1024;

/// Password checks at once. Each may take the memory that its hash says.
const MAX_CHECKS: usize = 2;

/// The accounts of the users file, as it was when read. Cheap to clone; all clones share the cache.
/// A reload makes a new one, and so forgets every verified login.
#[derive(Clone)]
pub struct Accounts(Arc<Inner>);

struct Inner {
    /// By name in lower case.
    hashes: HashMap<String, PasswordHash>,
    /// What the password of an unknown account is checked against, so that it takes as long.
    decoy: PasswordHash,
    checks: Arc<Semaphore>,
    verified: Verified,
}

/// What came of a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// The account, in lower case.
    Accepted(String),
    /// Wrong account or wrong password.
    Refused,
    /// The check could not be made.
    Unavailable,
}

impl Accounts {
    /// Reads the users file. Blocking.
    ///
    /// # Errors
    /// Every line that is wrong, by its number. Nothing of such a file is used.
    pub fn load(path: &Path) -> Result<Accounts, AccountsError> {
        let text = file::read(path)?;
        let hashes = file::parse(path, &text)?
            .into_iter()
            .map(|it| (it.name, it.hash))
            .collect();
        Ok(Accounts::new(hashes))
    }

    fn new(hashes: HashMap<String, PasswordHash>) -> Accounts {
        let mut key = Zeroizing::new([0; 32]);
        random(&mut *key);
        Accounts(Arc::new(Inner {
            decoy: decoy(hashes.values()),
            hashes,
            checks: Arc::new(Semaphore::new(MAX_CHECKS)),
            verified: Verified {
                key: hmac::Key::new(hmac::HMAC_SHA256, &*key),
                tags: Mutex::default(),
            },
        }))
    }

    /// How many accounts there are.
    pub fn len(&self) -> usize {
        self.0.hashes.len()
    }

    /// Whether there is no account at all.
    pub fn is_empty(&self) -> bool {
        self.0.hashes.is_empty()
    }

    /// Checks a password. A wrong one takes as long for an unknown account as for a known one.
    pub async fn verify(&self, account: &str, password: Zeroizing<Vec<u8>>) -> Login {
        let account = account.to_lowercase();
        let tag = self.0.verified.tag(&account, &password);
        if self.0.verified.contains(&tag) {
            return Login::Accepted(account);
        }
        let known = self.0.hashes.get(&account);
        let hash = known.unwrap_or(&self.0.decoy).clone();
        let Ok(permit) = Arc::clone(&self.0.checks).acquire_owned().await else {
            return Login::Unavailable;
        };
        // The permit goes along: the check goes on when the client has hung up and nobody waits.
        let check = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            Argon2::default().verify_password(&password, &hash).is_ok()
        });
        match check.await {
            Ok(true) if known.is_some() => {
                self.0.verified.insert(tag);
                Login::Accepted(account)
            }
            Ok(_) => Login::Refused,
            Err(_) => Login::Unavailable,
        }
    }
}

/// A hash that no password fits, and that costs as much as the dearest of the real ones.
fn decoy<'a>(hashes: impl Iterator<Item = &'a PasswordHash>) -> PasswordHash {
    let cost = |hash: &PasswordHash| {
        Params::try_from(hash).map_or(0, |it| u64::from(it.m_cost()) * u64::from(it.t_cost()))
    };
    let mut decoy = hashes.max_by_key(|it| cost(it)).cloned().unwrap_or_else(|| {
        PasswordHash::new(
            "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        )
        .expect("a constant that a test reads")
    });
    let mut output = [0; 32];
    random(&mut output);
    decoy.hash = argon2::password_hash::phc::Output::new(&output).ok();
    decoy
}

fn random(octets: &mut [u8]) {
    aws_lc_rs::rand::fill(octets).expect("the operating system has random numbers");
}

/// Logins that were verified before, as keyed hashes: the memory of the process has no password and
/// nothing to try passwords on without the key.
struct Verified {
    key: hmac::Key,
    tags: Mutex<Tags>,
}

#[derive(Default)]
struct Tags {
    known: HashSet<[u8; 32]>,
    oldest_first: VecDeque<[u8; 32]>,
}

impl Verified {
    fn tag(&self, account: &str, password: &[u8]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        // The length keeps "ab" + "c" apart from "a" + "bc".
        context.update(&(account.len() as u64).to_be_bytes());
        context.update(account.as_bytes());
        context.update(password);
        let mut tag = [0; 32];
        tag.copy_from_slice(context.sign().as_ref());
        tag
    }

    fn contains(&self, tag: &[u8; 32]) -> bool {
        self.tags
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .known
            .contains(tag)
    }

    fn insert(&self, tag: [u8; 32]) {
        let mut tags = self.tags.lock().unwrap_or_else(PoisonError::into_inner);
        if !tags.known.insert(tag) {
            return;
        }
        tags.oldest_first.push_back(tag);
        if tags.oldest_first.len() > MAX_REMEMBERED
            && let Some(oldest) = tags.oldest_first.pop_front()
        {
            tags.known.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cheap hash, so that the tests are not slow; the real cost is argon2's default.
    fn hash(password: &[u8]) -> PasswordHash {
        use argon2::PasswordHasher;
        let params = Params::new(64, 1, 1, None).expect("parameters");
        Argon2::from(params).hash_password(password).expect("a hash")
    }

    fn accounts(of: &[(&str, &str)]) -> Accounts {
        Accounts::new(
            of.iter()
                .map(|(name, password)| (name.to_string(), hash(password.as_bytes())))
                .collect(),
        )
    }

    async fn login(accounts: &Accounts, account: &str, password: &str) -> Login {
        accounts
            .verify(account, password.as_bytes().to_vec().into())
            .await
    }

    #[tokio::test]
    async fn only_the_right_password_of_a_known_account() {
        let accounts = accounts(&[("scanner1", "secret"), ("jürgen@contoso.com", "other")]);
        let accepted = |name: &str| Login::Accepted(name.to_owned());
        // Twice: the second time from the cache.
        for _ in 0..2 {
            assert_eq!(login(&accounts, "scanner1", "secret").await, accepted("scanner1"));
            assert_eq!(login(&accounts, "Scanner1", "secret").await, accepted("scanner1"));
            assert_eq!(
                login(&accounts, "JÜRGEN@contoso.com", "other").await,
                accepted("jürgen@contoso.com")
            );
            for (account, password) in [
                ("scanner1", "Secret"),
                ("scanner1", "other"),
                ("scanner1", ""),
                ("scanner1s", "ecret"),
                ("scanner", "1secret"),
                ("nobody", "secret"),
                ("", ""),
            ] {
                assert_eq!(
                    login(&accounts, account, password).await,
                    Login::Refused,
                    "{account} {password}"
                );
            }
        }
    }

    #[tokio::test]
    async fn a_verified_login_is_not_computed_again() {
        let accounts = accounts(&[("scanner1", "secret")]);
        assert_eq!(
            login(&accounts, "scanner1", "secret").await,
            Login::Accepted("scanner1".into())
        );
        // With no check permitted, only what is remembered can be answered.
        accounts.0.checks.close();
        assert_eq!(
            login(&accounts, "scanner1", "secret").await,
            Login::Accepted("scanner1".into())
        );
        assert_eq!(login(&accounts, "scanner1", "wrong").await, Login::Unavailable);
    }

    #[test]
    fn the_cache_is_bounded() {
        let accounts = accounts(&[]);
        let verified = &accounts.0.verified;
        let tag = |number: usize| verified.tag("a", &number.to_be_bytes());
        for number in 0..=MAX_REMEMBERED {
            verified.insert(tag(number));
            verified.insert(tag(number));
        }
        let tags = verified.tags.lock().expect("no panic");
        assert_eq!(
            (tags.known.len(), tags.oldest_first.len()),
            (MAX_REMEMBERED, MAX_REMEMBERED)
        );
        assert!(!tags.known.contains(&tag(0)) && tags.known.contains(&tag(MAX_REMEMBERED)));
    }

    #[test]
    fn the_decoy_costs_as_much_as_the_dearest_account() {
        let dear = PasswordHash::new(
            "$argon2id$v=19$m=4096,t=3,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        )
        .expect("a hash");
        let decoy_of = decoy([&hash(b"x"), &dear].into_iter());
        assert_eq!(decoy_of.params, dear.params);
        assert_ne!(decoy_of.hash, dear.hash);
        assert_eq!(
            Params::try_from(&decoy([].into_iter()))
                .expect("parameters")
                .m_cost(),
            Params::DEFAULT_M_COST
        );
    }
}
