//! What an access token says about the application, for people to read. Pure.
//!
//! A token is Graph's to read, and its form may change (Microsoft's page "Access tokens"); so nothing
//! here decides what the gateway does.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

/// The claims of an access token
/// (<https://learn.microsoft.com/entra/identity-platform/access-token-claims-reference>).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenClaims {
    /// `tid`: the tenant's GUID.
    pub tenant: Option<String>,
    /// `appid`, or `azp` in the newer version: the application's.
    pub application: Option<String>,
    /// `roles`: permissions of the application, for the whole tenant.
    pub roles: Vec<String>,
    /// `scp`: permissions on behalf of a user, which no token of ours should have.
    pub delegated: Option<String>,
}

/// Reads the payload of a signed JWT (RFC 7519 §3). `None` where it is none.
pub fn read(token: &str) -> Option<TokenClaims> {
    let claims = payload(token)?;
    let text = |name: &str| Some(shown(claims.get(name)?.as_str()?));
    Some(TokenClaims {
        tenant: text("tid"),
        application: text("appid").or_else(|| text("azp")),
        roles: claims["roles"]
            .as_array()
            .map(|it| it.iter().filter_map(Value::as_str).map(shown).collect())
            .unwrap_or_default(),
        delegated: text("scp"),
    })
}

/// The payload of a JWT, unverified.
pub fn payload(token: &str) -> Option<Value> {
    let mut parts = token.trim().split('.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    let octets = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    serde_json::from_slice::<Value>(&octets)
        .ok()
        .filter(Value::is_object)
}

fn shown(text: &str) -> String {
    super::refusal::line(text, 200)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn reads_what_an_application_may_do() {
        let claims = read(&token(
            r#"{"tid":"t","appid":"a","roles":["Mail.Send",7],"idtyp":"app"}"#,
        ));
        assert_eq!(
            claims,
            Some(TokenClaims {
                tenant: Some("t".into()),
                application: Some("a".into()),
                roles: vec!["Mail.Send".into()],
                delegated: None,
            })
        );
        let claims = read(&token(r#"{"azp":"a","scp":"Mail.Send User.Read"}"#)).expect("claims");
        assert_eq!(claims.application.as_deref(), Some("a"));
        assert_eq!(claims.delegated.as_deref(), Some("Mail.Send User.Read"));
        assert!(claims.roles.is_empty());
    }

    #[test]
    fn what_is_no_jwt_has_no_claims() {
        for text in ["", "opaque", "a.b", "a.!.c", "a.bnVsbA.c", "a.W10.c"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(
            read(&token(r#"{"roles":"x","tid":7}"#)),
            Some(TokenClaims::default())
        );
    }
}
