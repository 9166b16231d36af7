//! The access tokens that have been issued. Pure: the time is an argument.
//!
//! A token looks like a real one, because clients look into it; it is known again by its text, and
//! nobody but this cloud can say whether it is good.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::sandbox::{guid, object_id, random};

/// Tokens remembered; the ones that expire first are forgotten first.
const TOKENS_MAX: usize = 2000;

/// What a token is issued for.
pub(in crate::sandbox) struct Grant {
    pub(in crate::sandbox) tenant: String,
    pub(in crate::sandbox) client: String,
    pub(in crate::sandbox) resource: String,
    pub(in crate::sandbox) roles: Vec<String>,
    pub(in crate::sandbox) claims: Option<Value>,
    pub(in crate::sandbox) lifetime_seconds: i64,
}

/// An issued token.
#[derive(Clone, Debug)]
pub(in crate::sandbox) struct Token {
    pub(in crate::sandbox) client: String,
    pub(in crate::sandbox) resource: String,
    pub(in crate::sandbox) roles: Vec<String>,
    expires: i64,
    revoked: Option<i64>,
}

/// What is wrong with a token.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::sandbox) enum Invalid {
    /// Its time is over.
    Expired,
    /// It was revoked at this time; a client that can, asks for a new one with a claim that says so.
    Revoked(i64),
}

/// All tokens.
#[derive(Default)]
pub(in crate::sandbox) struct Tokens {
    issued: HashMap<String, Token>,
    total: u64,
    last_claims: Option<Value>,
}

impl Tokens {
    pub(in crate::sandbox) fn issue(&mut self, grant: Grant, now: Timestamp) -> String {
        let now = now.as_second();
        if self.issued.len() >= TOKENS_MAX {
            self.issued.retain(|_, token| token.expires > now);
        }
        if self.issued.len() >= TOKENS_MAX
            && let Some(first) = self
                .issued
                .iter()
                .min_by_key(|(_, it)| it.expires)
                .map(|(text, _)| text.clone())
        {
            self.issued.remove(&first);
        }
        let expires = now + grant.lifetime_seconds;
        let text = encode(&grant, now, expires);
        self.last_claims = grant.claims;
        self.total += 1;
        let token = Token {
            client: grant.client,
            resource: grant.resource,
            roles: grant.roles,
            expires,
            revoked: None,
        };
        self.issued.insert(text.clone(), token);
        text
    }

    pub(in crate::sandbox) fn find(&self, text: &str) -> Option<&Token> {
        self.issued.get(text)
    }

    pub(in crate::sandbox) fn expire_all(&mut self) {
        for token in self.issued.values_mut() {
            token.expires = i64::MIN;
        }
    }

    pub(in crate::sandbox) fn revoke_all(&mut self, now: Timestamp) {
        for token in self.issued.values_mut() {
            token.revoked.get_or_insert(now.as_second());
        }
    }

    /// How many there have been, and what the last request for one had in `claims`.
    pub(in crate::sandbox) fn report(&self) -> Value {
        json!({"issued": self.total, "last_claims": self.last_claims})
    }
}

impl Token {
    pub(in crate::sandbox) fn check(&self, now: Timestamp) -> Result<(), Invalid> {
        match self.revoked {
            Some(at) => Err(Invalid::Revoked(at)),
            None if self.expires <= now.as_second() => Err(Invalid::Expired),
            None => Ok(()),
        }
    }
}

/// <https://learn.microsoft.com/entra/identity-platform/access-token-claims-reference>
fn encode(grant: &Grant, now: i64, expires: i64) -> String {
    let header = json!({"typ": "JWT", "alg": "RS256", "kid": "sandbox"});
    let mut payload = json!({
        "aud": grant.resource,
        "iss": format!("https://sts.windows.net/{}/", grant.tenant),
        "iat": now, "nbf": now, "exp": expires,
        "app_displayname": "sandbox",
        "appid": grant.client,
        "appidacr": "2",
        "idtyp": "app",
        "oid": object_id(&grant.client),
        "tid": grant.tenant,
        "uti": guid(),
        "ver": "1.0",
    });
    // With RBAC for Applications alone there is no such claim.
    if !grant.roles.is_empty() {
        payload["roles"] = grant.roles.clone().into();
    }
    if grant
        .claims
        .as_ref()
        .is_some_and(|it| it.pointer("/access_token/xms_cc").is_some())
    {
        payload["xms_cc"] = json!(["CP1"]);
    }
    [
        header.to_string().as_bytes(),
        payload.to_string().as_bytes(),
        &random::<256>(),
    ]
    .map(|part| URL_SAFE_NO_PAD.encode(part))
    .join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(lifetime_seconds: i64) -> Grant {
        Grant {
            tenant: "contoso.com".into(),
            client: guid(),
            resource: "https://graph.microsoft.com".into(),
            roles: vec!["Mail.Send".into()],
            claims: None,
            lifetime_seconds,
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn a_token_lives_its_life() {
        let mut tokens = Tokens::default();
        let text = tokens.issue(grant(100), at(1000));
        let token = tokens.find(&text).expect("it was issued");
        assert_eq!(token.check(at(1099)), Ok(()));
        assert_eq!(token.check(at(1100)), Err(Invalid::Expired));
        assert_eq!(text.split('.').count(), 3);
    }

    #[test]
    fn revoked_and_expired_tokens_stay_so_and_new_ones_are_good() {
        let mut tokens = Tokens::default();
        let first = tokens.issue(grant(100), at(1000));
        tokens.revoke_all(at(1010));
        let second = tokens.issue(grant(100), at(1010));
        assert_eq!(
            tokens.find(&first).expect("known").check(at(1011)),
            Err(Invalid::Revoked(1010))
        );
        assert_eq!(tokens.find(&second).expect("known").check(at(1011)), Ok(()));
        tokens.expire_all();
        assert_eq!(
            tokens.find(&second).expect("known").check(at(1011)),
            Err(Invalid::Expired)
        );
    }

    #[test]
    fn memory_is_bounded() {
        let mut tokens = Tokens::default();
        for second in 0..(TOKENS_MAX as i64 + 10) {
            tokens.issue(grant(100_000), at(second));
        }
        assert_eq!(tokens.issued.len(), TOKENS_MAX);
    }
}
