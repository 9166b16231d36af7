//! SMTP accounts: hashes of their passwords, and a cache of verified logins.
//!
//! A password check costs memory and tens of milliseconds, on purpose. It runs on a blocking thread,
//! a few at a time, so that a flood of logins can neither stall the listener nor fill the memory. A
//! printer that logs in for every page pays once: what was verified is remembered as a keyed hash.

mod file;
mod verifier;

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::hmac;
use ipnet::IpNet;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use verifier::Verifier;

pub use file::{Account, AccountsError, Added, Fault, add, add_account, list, remove};

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
    known: HashMap<String, Known>,
    /// What the password of an unknown account is checked against, so that it takes as long.
    decoy: Verifier,
    checks: Arc<Semaphore>,
    verified: Verified,
}

struct Known {
    verifier: Verifier,
    /// Where it may be used from; empty is anywhere.
    networks: Vec<IpNet>,
}

impl Known {
    fn permits(&self, client: IpAddr) -> bool {
        self.networks.is_empty() || self.networks.iter().any(|it| it.contains(&client))
    }
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
        let entries = file::parse(path, &text)?.into_iter();
        Ok(Accounts::new(
            entries
                .map(|it| {
                    (
                        it.name,
                        Known {
                            verifier: it.verifier,
                            networks: it.networks,
                        },
                    )
                })
                .collect(),
        ))
    }

    fn new(known: HashMap<String, Known>) -> Accounts {
        let mut key = Zeroizing::new([0; 32]);
        random(&mut *key);
        let dearest = known.values().map(|it| &it.verifier).max_by_key(|it| it.cost());
        Accounts(Arc::new(Inner {
            // Whatever it says, an unknown account is refused.
            decoy: dearest.cloned().unwrap_or_else(Verifier::decoy),
            known,
            checks: Arc::new(Semaphore::new(MAX_CHECKS)),
            verified: Verified {
                key: hmac::Key::new(hmac::HMAC_SHA256, &*key),
                tags: Mutex::default(),
            },
        }))
    }

    /// How many accounts there are.
    pub fn len(&self) -> usize {
        self.0.known.len()
    }

    /// Whether there is no account at all.
    pub fn is_empty(&self) -> bool {
        self.0.known.is_empty()
    }

    /// Whether CRAM-MD5 can succeed for any account.
    pub fn has_recoverable(&self) -> bool {
        let mut known = self.0.known.values();
        known.any(|it| matches!(it.verifier, Verifier::Recoverable(_)))
    }

    /// Checks a password. A wrong one takes as long for an unknown account as for a known one, and so
    /// does a right one from where the account may not be used.
    pub async fn verify(&self, account: &str, password: Zeroizing<Vec<u8>>, client: IpAddr) -> Login {
        let account = account.to_lowercase();
        let known = self.0.known.get(&account);
        let permitted = known.is_some_and(|it| it.permits(client));
        let tag = self.0.verified.tag(&account, &password);
        if permitted && self.0.verified.contains(&tag) {
            return Login::Accepted(account);
        }
        let verifier = known.map_or(&self.0.decoy, |it| &it.verifier).clone();
        let Ok(permit) = Arc::clone(&self.0.checks).acquire_owned().await else {
            return Login::Unavailable;
        };
        // The permit goes along: the check goes on when the client has hung up and nobody waits.
        let check = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            verifier.verify(&password)
        });
        match check.await {
            Ok(true) if permitted => {
                self.0.verified.insert(tag);
                Login::Accepted(account)
            }
            Ok(_) => Login::Refused,
            Err(_) => Login::Unavailable,
        }
    }

    /// Checks the response to a CRAM-MD5 challenge (RFC 2195). Only an account whose password is
    /// recoverable can be right.
    pub fn verify_cram_md5(&self, account: &str, challenge: &[u8], digest: &[u8], client: IpAddr) -> Login {
        let account = account.to_lowercase();
        let known = self.0.known.get(&account);
        let verifier = known.map_or(&self.0.decoy, |it| &it.verifier);
        let right = verifier.verify_cram_md5(challenge, digest);
        match known {
            Some(known) if right && known.permits(client) => Login::Accepted(account),
            _ => Login::Refused,
        }
    }
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

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 2, 3));

    /// A cheap hash, so that the tests are not slow; the real cost is argon2's default.
    fn hash(password: &[u8]) -> String {
        use argon2::{Argon2, Params, PasswordHash, PasswordHasher};
        let params = Params::new(64, 1, 1, None).expect("parameters");
        let hash: PasswordHash = Argon2::from(params).hash_password(password).expect("a hash");
        hash.to_string()
    }

    fn accounts(of: &[(&str, &str)]) -> Accounts {
        let known = of.iter().map(|(name, password)| {
            let verifier = Verifier::parse(&hash(password.as_bytes())).expect("a hash");
            (
                name.to_string(),
                Known {
                    verifier,
                    networks: vec![],
                },
            )
        });
        Accounts::new(known.collect())
    }

    async fn login(accounts: &Accounts, account: &str, password: &str) -> Login {
        accounts
            .verify(account, password.as_bytes().to_vec().into(), CLIENT)
            .await
    }

    #[tokio::test]
    async fn an_account_may_be_bound_to_networks() {
        let verifier = Verifier::parse(&hash(b"secret")).expect("a hash");
        let networks = vec!["10.1.0.0/16".parse().expect("a network")];
        let accounts = Accounts::new(HashMap::from([("fax".to_owned(), Known { verifier, networks })]));
        let elsewhere = "10.2.0.1".parse().expect("an address");
        for _ in 0..2 {
            assert_eq!(
                login(&accounts, "fax", "secret").await,
                Login::Accepted("fax".into())
            );
            // Also where the login is remembered.
            let password = b"secret".to_vec().into();
            assert_eq!(accounts.verify("fax", password, elsewhere).await, Login::Refused);
        }
    }

    #[tokio::test]
    async fn cram_md5_is_for_accounts_with_a_recoverable_password() {
        let fax = Known {
            verifier: Verifier::parse(&verifier::recoverable(b"tanstaaftanstaaf")).expect("recoverable"),
            networks: vec!["10.1.0.0/16".parse().expect("a network")],
        };
        let accounts = Accounts::new(HashMap::from([("tim".to_owned(), fax)]));
        assert!(accounts.has_recoverable());
        let challenge = b"<1896.697170952@postoffice.reston.mci.net>";
        let digest = b"\xb9\x13\xa6\x02\xc7\xed\xa7\xa4\x95\xb4\xe6\xe7\x33\x4d\x38\x90";
        let elsewhere = "10.2.0.1".parse().expect("an address");
        for (account, client, want) in [
            ("Tim", CLIENT, Login::Accepted("tim".into())),
            ("tim", elsewhere, Login::Refused),
            // The decoy is a copy of a real account; it lets nobody in all the same.
            ("nobody", CLIENT, Login::Refused),
        ] {
            assert_eq!(
                accounts.verify_cram_md5(account, challenge, digest, client),
                want,
                "{account}"
            );
        }
        assert_eq!(
            login(&accounts, "tim", "tanstaaftanstaaf").await,
            Login::Accepted("tim".into())
        );
        assert_eq!(
            login(&accounts, "nobody", "tanstaaftanstaaf").await,
            Login::Refused
        );
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
        let dear = "$argon2id$v=19$m=4096,t=3,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        let known = |text: &str| Known {
            verifier: Verifier::parse(text).expect("a hash"),
            networks: vec![],
        };
        let accounts = Accounts::new(HashMap::from([
            ("a".into(), known(&hash(b"x"))),
            ("b".into(), known(dear)),
        ]));
        assert_eq!(accounts.0.decoy.cost(), 4096 * 3 / 2);
        assert_eq!(Accounts::new(HashMap::new()).0.decoy.cost(), 19456);
    }
}
