//! What a password is checked against: an argon2id or bcrypt hash, or the password itself.

use std::fmt;

use argon2::{Argon2, Params, PasswordHash, PasswordVerifier};
use aws_lc_rs::constant_time;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use zeroize::Zeroizing;

use super::Fault;

/// Where argon2 would take more memory than this for one check, the hash is refused: in KiB.
const MAX_MEMORY_KIB: u32 = 1024 * 1024;

/// Where argon2 would pass over that memory more often, the hash is refused.
const MAX_PASSES: u32 = 64;

/// Where bcrypt would do more than two to this power of rounds, the hash is refused.
const MAX_BCRYPT_COST: u32 = 16;

/// What stands before a password that is kept as it is.
const RECOVERABLE: &str = "{cram-md5}";

/// What a password is checked against.
#[derive(Clone)]
pub(super) enum Verifier {
    /// `$argon2id$…`: what `graphpost user add` writes.
    Argon2id(Box<PasswordHash>),
    /// `$2y$…`: what `htpasswd -B` writes.
    Bcrypt { hash: String, cost: u32 },
    /// `{cram-md5}base64`: the password itself, for CRAM-MD5 can be checked with nothing less.
    Recoverable(Zeroizing<Vec<u8>>),
}

impl Verifier {
    pub(super) fn parse(text: &str) -> Result<Verifier, Fault> {
        if let Some(encoded) = text.strip_prefix(RECOVERABLE) {
            let password = BASE64_STANDARD.decode(encoded).map_err(|_| Fault::Hash)?;
            return if password.is_empty() {
                Err(Fault::Hash)
            } else {
                Ok(Verifier::Recoverable(password.into()))
            };
        }
        if text.starts_with("$2") {
            let parts: bcrypt::HashParts = text.parse().map_err(|_| Fault::Hash)?;
            let cost = parts.get_cost();
            return if cost > MAX_BCRYPT_COST {
                Err(Fault::Cost)
            } else {
                Ok(Verifier::Bcrypt {
                    hash: text.to_owned(),
                    cost,
                })
            };
        }
        let hash = PasswordHash::new(text).map_err(|_| Fault::Hash)?;
        if hash.algorithm != argon2::ARGON2ID_IDENT {
            return Err(Fault::Algorithm(hash.algorithm.as_str().to_owned()));
        }
        if hash.salt.is_none() || hash.hash.is_none() {
            return Err(Fault::Hash);
        }
        let params = Params::try_from(&hash).map_err(|_| Fault::Hash)?;
        if params.m_cost() > MAX_MEMORY_KIB || params.t_cost() > MAX_PASSES {
            return Err(Fault::Cost);
        }
        Ok(Verifier::Argon2id(Box::new(hash)))
    }

    /// A hash that costs what argon2's defaults cost, and that nobody knows a password for.
    pub(super) fn decoy() -> Verifier {
        const DECOY: &str = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        Verifier::parse(DECOY).expect("a constant that a test reads")
    }

    /// Whether the password is the right one. Slow, on purpose.
    pub(super) fn verify(&self, password: &[u8]) -> bool {
        match self {
            Verifier::Argon2id(hash) => Argon2::default().verify_password(password, hash.as_ref()).is_ok(),
            Verifier::Bcrypt { hash, .. } => bcrypt::verify(password, hash).unwrap_or(false),
            Verifier::Recoverable(secret) => {
                // It must take as long as for an account with a hash, and for no account at all.
                Verifier::decoy().verify(password);
                constant_time::verify_slices_are_equal(secret, password).is_ok()
            }
        }
    }

    /// About how long a check takes, in microseconds.
    pub(super) fn cost(&self) -> u64 {
        match self {
            Verifier::Argon2id(hash) => Params::try_from(hash.as_ref())
                .map_or(0, |it| u64::from(it.m_cost()) * u64::from(it.t_cost()) / 2),
            Verifier::Bcrypt { cost, .. } => 50 << cost,
            Verifier::Recoverable(_) => Verifier::decoy().cost(),
        }
    }

    /// Whether the digest is that of the challenge under the password (RFC 2195 §2). Never so for a
    /// hash.
    pub(super) fn verify_cram_md5(&self, challenge: &[u8], digest: &[u8]) -> bool {
        let (secret, known) = match self {
            Verifier::Recoverable(secret) => (secret.as_slice(), true),
            Verifier::Argon2id(_) | Verifier::Bcrypt { .. } => (&b"decoy"[..], false),
        };
        hmac_md5(secret, challenge)
            .is_ok_and(|right| constant_time::verify_slices_are_equal(&right, digest).is_ok())
            && known
    }
}

fn hmac_md5(secret: &[u8], text: &[u8]) -> Result<Vec<u8>, openssl::error::ErrorStack> {
    let key = PKey::hmac(secret)?;
    Signer::new(MessageDigest::md5(), &key)?.sign_oneshot_to_vec(text)
}

/// A password as it stands in the file where it must be recoverable.
pub(super) fn recoverable(password: &[u8]) -> String {
    format!("{RECOVERABLE}{}", BASE64_STANDARD.encode(password))
}

/// Blind: a hash is something to try passwords on.
impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verifier::Argon2id(_) => "Argon2id(..)",
            Verifier::Bcrypt { .. } => "Bcrypt(..)",
            Verifier::Recoverable(_) => "Recoverable(..)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_htpasswd_writes_is_taken() {
        for kind in ["2a", "2b", "2y"] {
            let hash = bcrypt::hash_with_salt("secret", 4, [7; 16])
                .expect("a hash")
                .to_string();
            let hash = format!("${kind}{}", &hash[3..]);
            let verifier = Verifier::parse(&hash).expect("bcrypt");
            assert!(verifier.verify(b"secret") && !verifier.verify(b"Secret") && !verifier.verify(b""));
        }
        for text in [
            "$2y$",
            "$2y$05$short",
            "$2y$17$abcdefghijklmnopqrstuuPZGSnZv9dN0zJ5Fv8jhR9sHwYx0FJqG",
        ] {
            assert!(Verifier::parse(text).is_err(), "{text}");
        }
    }

    /// RFC 2195 §2 has the example.
    #[test]
    fn cram_md5_as_the_rfc_has_it() {
        let verifier = Verifier::parse(&recoverable(b"tanstaaftanstaaf")).expect("recoverable");
        let challenge = b"<1896.697170952@postoffice.reston.mci.net>";
        let digest = b"\xb9\x13\xa6\x02\xc7\xed\xa7\xa4\x95\xb4\xe6\xe7\x33\x4d\x38\x90";
        assert!(verifier.verify_cram_md5(challenge, digest));
        assert!(!verifier.verify_cram_md5(b"<other>", digest));
        assert!(!verifier.verify_cram_md5(challenge, b""));
        assert!(verifier.verify(b"tanstaaftanstaaf") && !verifier.verify(b"tanstaaf"));
        // An account with a hash cannot be reached by it, not even with what stands for its secret.
        let right_for_the_decoy = hmac_md5(b"decoy", challenge).expect("a digest");
        assert!(!Verifier::decoy().verify_cram_md5(challenge, &right_for_the_decoy));
    }

    #[test]
    fn is_not_shown() {
        assert_eq!(
            format!("{:?}", Verifier::parse(&recoverable(b"x")).expect("recoverable")),
            "Recoverable(..)"
        );
    }
}
