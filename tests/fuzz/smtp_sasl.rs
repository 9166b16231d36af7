//! Whatever a client answers in a login: credentials or a refusal, and nothing of it is shown.

use graphpost::smtp::auth::{Credentials, Exchange, Mechanism, Proof, Step};
use graphpost::smtp::command::{Command, Sasl};

use super::smtp_command::wire;

/// Holds the exchange that the last octet of `data` chooses, with the lines of the rest as answers.
pub fn check(data: &[u8]) {
    let Some((choice, rest)) = data.split_last() else {
        return;
    };
    let mechanism = [Mechanism::Plain, Mechanism::Login, Mechanism::CramMd5][usize::from(choice & 3) % 3];
    let mut answers = rest.split(|it| *it == b'\n');
    let initial = (choice & 4 != 0).then(|| Sasl(answers.next().unwrap_or_default()));
    let mut step = Exchange::begin(mechanism, initial, || "<1.1@relay.example>".to_owned());
    for _ in 0..4 {
        step = match step {
            Err(refusal) => return wire(&refusal),
            Ok(Step::Check(credentials)) => return credentials_are_blind(&credentials),
            Ok(Step::Challenge(reply, exchange)) => {
                assert_eq!(reply.code, 334);
                wire(&reply);
                exchange.respond(answers.next().unwrap_or_default())
            }
        };
    }
    panic!("a login is at most a name and a password");
}

fn credentials_are_blind(credentials: &Credentials) {
    let shown = format!("{:?}", credentials.proof);
    match &credentials.proof {
        Proof::Password(_) => assert_eq!(shown, "Password(..)"),
        Proof::CramMd5 { digest, .. } => {
            assert_eq!((shown.as_str(), digest.len()), ("CramMd5(..)", 16));
        }
    }
    // As a command line with the response in it, the same account comes out of PLAIN.
    if let Proof::Password(password) = &credentials.proof
        && !credentials.account.contains('\0')
    {
        use base64::prelude::{BASE64_STANDARD, Engine as _};
        let message = [b"\0", credentials.account.as_bytes(), b"\0", password].concat();
        let line = format!("AUTH PLAIN {}", BASE64_STANDARD.encode(message));
        let Ok(Command::Auth { mechanism, initial }) = Command::parse(line.as_bytes()) else {
            panic!("{line}")
        };
        assert_eq!(
            Exchange::begin(mechanism, initial, String::new),
            Ok(Step::Check(credentials.clone()))
        );
    }
}
