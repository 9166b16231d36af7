//! Workload identity federation: another platform's token in place of the client assertion.
//!
//! <https://learn.microsoft.com/entra/workload-id/workload-identity-federation>. The real Entra
//! fetches the issuer's keys; here they are part of the federated credential.

use jiff::Timestamp;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Verifier;
use serde_json::{Map, Value};

use super::aadsts::Refusal;
use super::assertion::{Expected, check_times};

/// Whether this is another platform's token: its issuer is a URL, an application's is its id.
pub(super) fn is_foreign(claims: &Map<String, Value>) -> bool {
    claims
        .get("iss")
        .and_then(Value::as_str)
        .is_some_and(|it| it.contains("://"))
}

/// Checks the token against the federated credentials of the application.
pub(super) fn verify(
    header: &Map<String, Value>,
    claims: &Map<String, Value>,
    signed: &[u8],
    signature: &[u8],
    expected: &Expected<'_>,
    now: Timestamp,
) -> Result<(), Refusal> {
    let credentials = &expected.settings.federated_credentials;
    let text = |name: &str| claims.get(name).and_then(Value::as_str).unwrap_or_default();
    let (issuer, subject) = (text("iss"), text("sub"));
    let audiences: Vec<&str> = match claims.get("aud") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let unmatched = |code, what: &str, value: &str| {
        Refusal::new(
            code,
            format!(
                "No matching federated identity record found for presented assertion {what} '{value}'. Check your \
                 federated identity credential Subject, Audience and Issuer against the presented assertion. \
                 https://learn.microsoft.com/entra/workload-id/workload-identity-federation"
            ),
        )
    };
    if credentials.is_empty() {
        return Err(Refusal::new(
            70_021,
            "No matching federated identity record found for presented assertion.",
        ));
    }
    if !credentials.iter().any(|it| it.issuer == issuer) {
        return Err(unmatched(700_211, "issuer", issuer));
    }
    if !credentials
        .iter()
        .any(|it| it.issuer == issuer && it.subject == subject)
    {
        return Err(unmatched(700_213, "subject", subject));
    }
    let credential = credentials
        .iter()
        .find(|it| it.issuer == issuer && it.subject == subject && audiences.contains(&it.audience.as_str()));
    let Some(credential) = credential else {
        return Err(unmatched(
            700_212,
            "audience",
            audiences.first().copied().unwrap_or_default(),
        ));
    };
    check_times(claims, expected.settings.clock_skew_seconds, now)?;

    let unsigned = || {
        Refusal::new(
            50_013,
            "Assertion failed signature validation. [Reason - The key was not found.]",
        )
    };
    if header.get("alg").and_then(Value::as_str) != Some("RS256") {
        return Err(unsigned());
    }
    let verified = PKey::public_key_from_pem(credential.public_key.as_bytes()).and_then(|key| {
        Verifier::new(MessageDigest::sha256(), &key)
            .and_then(|mut verifier| verifier.verify_oneshot(signature, signed))
    });
    match verified {
        Ok(true) => Ok(()),
        _ => Err(unsigned()),
    }
}
