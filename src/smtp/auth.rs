//! The SASL exchanges PLAIN (RFC 4616), LOGIN (an old draft, and the commoner of the two) and CRAM-MD5
//! (RFC 2195), in all the spellings that clients use.

use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::prelude::BASE64_STANDARD;
use zeroize::Zeroizing;

use crate::smtp::command::Sasl;
use crate::smtp::reply::{self, Reply};

/// The longest line of an exchange, in octets without its line end (RFC 4954 §4.3).
pub const MAX_LINE_OCTETS: usize = 12_288;

/// How a client logs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// Account and password in one response.
    Plain,
    /// Account, then password.
    Login,
    /// A digest of a challenge under the password.
    CramMd5,
}

/// An account name and what proves that the client may use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// As the client wrote it.
    pub account: String,
    /// What proves it.
    pub proof: Proof,
}

/// What proves that a client may use an account.
#[derive(Clone, PartialEq, Eq)]
pub enum Proof {
    /// The password: octets, for nobody says in which charset a device sends it.
    Password(Zeroizing<Vec<u8>>),
    /// The digest of a challenge under the password.
    CramMd5 {
        /// What was asked.
        challenge: String,
        /// The answer.
        digest: Vec<u8>,
    },
}

/// Blind.
impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Proof::Password(_) => "Password(..)",
            Proof::CramMd5 { .. } => "CramMd5(..)",
        })
    }
}

/// An exchange under way: what the next response will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// The message of PLAIN.
    Plain,
    /// The account name of LOGIN.
    LoginName,
    /// The password of LOGIN.
    LoginPassword {
        /// The account name.
        account: String,
    },
    /// The digest of CRAM-MD5.
    CramMd5 {
        /// What it must be a digest of.
        challenge: String,
    },
}

/// What to do next in an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send the challenge, and wait for the response.
    Challenge(Reply, Exchange),
    /// Check these.
    Check(Credentials),
}

impl Exchange {
    /// Begins an exchange (`AUTH mechanism initial-response`). `challenge` is what CRAM-MD5 asks: it
    /// must never have been asked before.
    ///
    /// # Errors
    /// The reply that ends it.
    pub fn begin(
        mechanism: Mechanism,
        initial: Option<Sasl<'_>>,
        challenge: impl FnOnce() -> String,
    ) -> Result<Step, Reply> {
        let (first, exchange) = match mechanism {
            Mechanism::Plain => (reply::CHALLENGE_EMPTY, Exchange::Plain),
            Mechanism::Login => (reply::CHALLENGE_USERNAME, Exchange::LoginName),
            // There is nothing to say before the challenge (RFC 4954 §4).
            Mechanism::CramMd5 if initial.is_some() => return Err(reply::BAD_ARGUMENTS),
            Mechanism::CramMd5 => {
                let challenge = challenge();
                let encoded = BASE64_STANDARD.encode(&challenge);
                (
                    reply::CHALLENGE_EMPTY.with_text(encoded),
                    Exchange::CramMd5 { challenge },
                )
            }
        };
        match initial {
            Some(Sasl(response)) => exchange.respond(response),
            None => Ok(Step::Challenge(first, exchange)),
        }
    }

    /// Takes the client's response to the last challenge.
    ///
    /// # Errors
    /// The reply that ends it.
    pub fn respond(self, line: &[u8]) -> Result<Step, Reply> {
        let line = line.trim_ascii();
        if line == b"*" {
            return Err(reply::CANCELLED);
        }
        let response = decode(line)?;
        match self {
            Exchange::Plain => plain(&response).map(Step::Check),
            Exchange::LoginName => {
                let account = account_name(&response)?;
                Ok(Step::Challenge(
                    reply::CHALLENGE_PASSWORD,
                    Exchange::LoginPassword { account },
                ))
            }
            Exchange::LoginPassword { account } => Ok(Step::Check(Credentials {
                account,
                proof: Proof::Password(response),
            })),
            Exchange::CramMd5 { challenge } => cram_md5(challenge, &response).map(Step::Check),
        }
    }
}

/// `[authzid] NUL authcid NUL passwd`. Whom the client wants to act for does not matter: it acts as
/// the account whose password it knows.
fn plain(message: &[u8]) -> Result<Credentials, Reply> {
    let mut parts = message.splitn(3, |&it| it == 0);
    match (parts.next(), parts.next(), parts.next()) {
        (Some(_authzid), Some(authcid), Some(password)) => Ok(Credentials {
            account: account_name(authcid)?,
            proof: Proof::Password(password.to_vec().into()),
        }),
        _ => Err(reply::BAD_RESPONSE),
    }
}

/// `name SP digest`, where the digest is 32 hexadecimal digits. A name may have blanks.
fn cram_md5(challenge: String, response: &[u8]) -> Result<Credentials, Reply> {
    let blank = response
        .iter()
        .rposition(|it| *it == b' ')
        .ok_or(reply::BAD_RESPONSE)?;
    let digits = std::str::from_utf8(&response[blank + 1..]).map_err(|_| reply::BAD_RESPONSE)?;
    if digits.len() != 32 || !digits.bytes().all(|it| it.is_ascii_hexdigit()) {
        return Err(reply::BAD_RESPONSE);
    }
    let octet = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| reply::BAD_RESPONSE);
    let digest = (0..32).step_by(2).map(octet).collect::<Result<_, _>>()?;
    Ok(Credentials {
        account: account_name(&response[..blank])?,
        proof: Proof::CramMd5 { challenge, digest },
    })
}

fn account_name(name: &[u8]) -> Result<String, Reply> {
    String::from_utf8(name.to_vec()).map_err(|_| reply::BAD_RESPONSE)
}

/// Base64 with or without its padding, as RFC 4954 does not have it and devices do.
fn decode(line: &[u8]) -> Result<Zeroizing<Vec<u8>>, Reply> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true),
    );
    if line == b"=" {
        return Ok(Zeroizing::default());
    }
    LENIENT
        .decode(line)
        .map(Zeroizing::new)
        .map_err(|_| reply::BAD_RESPONSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(mechanism: Mechanism, initial: Option<Sasl<'_>>) -> Result<Step, Reply> {
        Exchange::begin(mechanism, initial, || {
            "<1896.697170952@postoffice.reston.mci.net>".to_owned()
        })
    }

    /// RFC 2195 §2 has the example.
    #[test]
    fn cram_md5_asks_for_a_digest() {
        let Ok(Step::Challenge(challenge, exchange)) = begin(Mechanism::CramMd5, None) else {
            panic!("no challenge")
        };
        assert_eq!(
            challenge.to_string(),
            "334 PDE4OTYuNjk3MTcwOTUyQHBvc3RvZmZpY2UucmVzdG9uLm1jaS5uZXQ+"
        );
        let step = exchange
            .clone()
            .respond(b"dGltIGI5MTNhNjAyYzdlZGE3YTQ5NWI0ZTZlNzMzNGQzODkw");
        let Ok(Step::Check(Credentials {
            account,
            proof: Proof::CramMd5 { challenge, digest },
        })) = step
        else {
            panic!("{step:?}")
        };
        assert_eq!(
            (account.as_str(), challenge.as_str()),
            ("tim", "<1896.697170952@postoffice.reston.mci.net>")
        );
        assert_eq!((digest.len(), digest[0], digest[15]), (16, 0xb9, 0x90));
        for response in [
            "tim",
            "tim b913",
            "tim B913A602C7EDA7A495B4E6E7334D389\u{e9}",
            " ",
            "",
        ] {
            assert_eq!(
                exchange.clone().respond(&base64(response.as_bytes())),
                Err(reply::BAD_RESPONSE)
            );
        }
        assert_eq!(
            begin(Mechanism::CramMd5, Some(Sasl(b"dGlt"))),
            Err(reply::BAD_ARGUMENTS)
        );
    }

    fn base64(text: &[u8]) -> Vec<u8> {
        BASE64_STANDARD.encode(text).into_bytes()
    }

    fn credentials(account: &str, password: &[u8]) -> Result<Step, Reply> {
        let proof = Proof::Password(password.to_vec().into());
        Ok(Step::Check(Credentials {
            account: account.to_owned(),
            proof,
        }))
    }

    #[test]
    fn login_asks_for_the_name_and_the_password() {
        // The challenges are compared octet by octet by Xerox devices.
        let Ok(Step::Challenge(challenge, exchange)) = begin(Mechanism::Login, None) else {
            panic!("no challenge")
        };
        assert_eq!(challenge.to_string(), "334 VXNlcm5hbWU6");
        let Ok(Step::Challenge(challenge, exchange)) = exchange.respond(b"dXNlcg==") else {
            panic!("no challenge")
        };
        assert_eq!(challenge.to_string(), "334 UGFzc3dvcmQ6");
        assert_eq!(exchange.respond(b"cGFzcw=="), credentials("user", b"pass"));
    }

    #[test]
    fn login_takes_the_name_as_initial_response() {
        // .NET's SmtpClient.
        let Ok(Step::Challenge(challenge, exchange)) = begin(Mechanism::Login, Some(Sasl(b"dXNlcg==")))
        else {
            panic!("no challenge")
        };
        assert_eq!(challenge, reply::CHALLENGE_PASSWORD);
        assert_eq!(exchange.respond(b"cGFzcw"), credentials("user", b"pass"));
    }

    #[test]
    fn plain_in_all_its_forms() {
        for (message, account, password) in [
            (&b"\0user\0pass"[..], "user", &b"pass"[..]),
            (b"other\0user\0pass", "user", b"pass"),
            (b"\0user\0", "user", b""),
            (b"\0user\0pa\0ss", "user", b"pa\0ss"),
            (b"\0\0", "", b""),
        ] {
            let line = base64(message);
            assert_eq!(
                begin(Mechanism::Plain, Some(Sasl(&line))),
                credentials(account, password)
            );
            assert_eq!(Exchange::Plain.respond(&line), credentials(account, password));
            // Without padding, and with a stray blank.
            let bare = [line.trim_ascii_end().strip_suffix(b"=").unwrap_or(&line), b" "].concat();
            assert_eq!(Exchange::Plain.respond(&bare), credentials(account, password));
        }
        let Ok(Step::Challenge(challenge, _)) = begin(Mechanism::Plain, None) else {
            panic!("no challenge")
        };
        assert_eq!(challenge.to_string(), "334 ".trim_end());
        assert_eq!(challenge, reply::CHALLENGE_EMPTY);
    }

    #[test]
    fn what_is_no_response() {
        for (line, want) in [
            (&b"*"[..], reply::CANCELLED),
            (b" * ", reply::CANCELLED),
            (b"!!", reply::BAD_RESPONSE),
            (b"dXNlcg==", reply::BAD_RESPONSE),
            (b"", reply::BAD_RESPONSE),
            (b"=", reply::BAD_RESPONSE),
            (b"\xff", reply::BAD_RESPONSE),
        ] {
            assert_eq!(
                Exchange::Plain.respond(line),
                Err(want),
                "{}",
                line.escape_ascii()
            );
        }
        // A name that is not UTF-8 is nobody's.
        assert_eq!(
            Exchange::LoginName.respond(&base64(b"\xfc")),
            Err(reply::BAD_RESPONSE)
        );
        // An empty password is a password; it is wrong.
        let exchange = Exchange::LoginPassword {
            account: "user".into(),
        };
        assert_eq!(exchange.clone().respond(b""), credentials("user", b""));
        assert_eq!(exchange.respond(b"="), credentials("user", b""));
    }

    #[test]
    fn a_password_is_not_shown() {
        let shown = format!("{:?}", credentials("user", b"secret"));
        assert!(
            !shown.contains("secret") && !shown.contains("115, 101"),
            "{shown}"
        );
    }
}
