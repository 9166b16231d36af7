//! A notice by HTTP: `POST`, signed.

use std::fmt;
use std::fmt::Write as _;
use std::time::Duration;

use aws_lc_rs::hmac;
use jiff::Timestamp;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};

use super::{Failed, Notice};
use crate::config;
use crate::identity::{HttpsError, https};

/// The signature: `t=SECONDS,v1=HEX`, the HMAC-SHA256 of `SECONDS.BODY`. The time is signed, so that a
/// receiver can refuse what is repeated later.
const SIGNATURE: &str = "graphpost-signature";
/// The notice's id.
const ID: &str = "graphpost-id";
/// What it is about, in one word.
const EVENT: &str = "graphpost-event";

/// The wait after the first failure; doubled after each further one.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(5 * 60);
/// How old a notice may become: later nobody needs it any more.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// How long until the next attempt, after so many failures before this one; `None` for never.
pub(super) fn wait(failures: u32, age: Duration) -> Option<Duration> {
    let wait = FIRST_WAIT.saturating_mul(1 << failures.min(16)).min(LONGEST_WAIT);
    (age + wait < LIFETIME).then_some(wait)
}

/// Where notices are posted to.
pub(super) struct Webhook {
    url: SecretString,
    secret: Option<SecretString>,
    client: Client,
}

// Neither the secret nor the URL, which is often one.
impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Webhook")
    }
}

impl Webhook {
    pub(super) fn new(settings: &config::Webhook, tenant: &config::Tenant) -> Result<Webhook, HttpsError> {
        let client = https::client(tenant, settings.url.expose_secret())?
            // For all of it: a receiver that answers an octet a minute is no better than a silent one.
            .timeout(settings.timeout)
            .build()
            .map_err(HttpsError::Tls)?;
        Ok(Webhook {
            url: settings.url.clone(),
            secret: settings.secret.clone(),
            client,
        })
    }

    pub(super) async fn post(&self, notice: &Notice) -> Result<(), Failed> {
        let mut request = self
            .client
            .post(self.url.expose_secret())
            .header(CONTENT_TYPE, "application/json")
            .header(ID, &notice.id)
            .header(EVENT, notice.kind().as_str())
            .body(notice.body.clone());
        if let Some(secret) = &self.secret {
            let signature = signature(secret, Timestamp::now().as_second(), &notice.body);
            request = request.header(SIGNATURE, signature);
        }
        // What the answer says beyond its status interests nobody, and is not read.
        let answer = request.send().await;
        match answer.map(|it| it.status()) {
            Ok(status) if status.is_success() => Ok(()),
            // It is this notice that the receiver does not take; others must not wait behind it.
            Ok(
                status @ (StatusCode::BAD_REQUEST
                | StatusCode::PAYLOAD_TOO_LARGE
                | StatusCode::UNPROCESSABLE_ENTITY),
            ) => Err(Failed::Final(format!("the receiver answered {status}"))),
            Ok(status) => Err(Failed::Passing(format!("the receiver answered {status}"))),
            Err(error) => Err(Failed::Passing(https::chain(&error))),
        }
    }
}

fn signature(secret: &SecretString, seconds: i64, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret().as_bytes());
    let mut context = hmac::Context::with_key(&key);
    context.update(format!("{seconds}.").as_bytes());
    context.update(body);
    let mut text = format!("t={seconds},v1=");
    for octet in context.sign().as_ref() {
        // Writing to a String cannot fail.
        let _ = write!(text, "{octet:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_time_and_body() {
        // printf '1764000000.{"event":"held"}' | openssl dgst -sha256 -hmac key
        assert_eq!(
            signature(&SecretString::from("key"), 1_764_000_000, br#"{"event":"held"}"#),
            "t=1764000000,v1=975cc75dbb778020170327ef9d452081c2a2343e53c69fed05693536cb1e41d6"
        );
    }

    #[test]
    fn waits_longer_each_time_and_gives_up_after_a_day() {
        let minute = Duration::from_secs(60);
        let seconds = |failures| wait(failures, minute).map(|it| it.as_secs());
        assert_eq!(
            [seconds(0), seconds(1), seconds(5), seconds(9), seconds(u32::MAX)],
            [Some(1), Some(2), Some(32), Some(300), Some(300)]
        );
        assert_eq!(wait(20, LIFETIME - minute), None);
    }
}
