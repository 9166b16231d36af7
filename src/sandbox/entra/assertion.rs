//! The client assertion: a signed JWT by which an application shows that it holds the private key
//! of a registered certificate.
//!
//! <https://learn.microsoft.com/entra/identity-platform/certificate-credentials>. The signature is
//! checked with OpenSSL, which has no part in making it.

use std::collections::{HashMap, VecDeque};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use openssl::asn1::Asn1Time;
use openssl::hash::MessageDigest;
use openssl::pkey::Id;
use openssl::rsa::Padding;
use openssl::sign::{RsaPssSaltlen, Verifier};
use openssl::x509::X509;
use serde_json::{Map, Value};

use super::aadsts::Refusal;
use super::federation;
use crate::sandbox::tenant::Tenant;

/// Certificates registered at the same time.
const CERTIFICATES_MAX: usize = 1000;
/// Assertion ids remembered against replay.
const IDS_MAX: usize = 10_000;

/// The certificates uploaded to the application, and the assertions seen.
#[derive(Default)]
pub(in crate::sandbox) struct Registrations {
    /// By SHA-256 thumbprint.
    certificates: HashMap<Vec<u8>, X509>,
    seen: VecDeque<String>,
}

/// A certificate's two thumbprints, in capitals.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Thumbprints {
    /// What the portal shows.
    pub sha1: String,
    /// What `x5t#S256` encodes.
    pub sha256: String,
}

impl Registrations {
    /// Registers a certificate, DER or PEM.
    ///
    /// # Errors
    /// Why it cannot be one.
    pub(in crate::sandbox) fn register(&mut self, certificate: &[u8]) -> Result<Thumbprints, String> {
        let certificate = X509::from_der(certificate)
            .or_else(|_| X509::from_pem(certificate))
            .map_err(|_| "not a certificate, neither DER nor PEM".to_owned())?;
        if self.certificates.len() >= CERTIFICATES_MAX {
            return Err(format!("{CERTIFICATES_MAX} certificates are registered already"));
        }
        let digest = |kind| {
            certificate
                .digest(kind)
                .map(|it| it.to_vec())
                .map_err(|it| it.to_string())
        };
        let (sha1, sha256) = (digest(MessageDigest::sha1())?, digest(MessageDigest::sha256())?);
        let thumbprints = Thumbprints {
            sha1: hex(&sha1),
            sha256: hex(&sha256),
        };
        self.certificates.insert(sha256, certificate);
        Ok(thumbprints)
    }

    fn find(&self, thumbprint: &Thumbprint) -> Option<&X509> {
        match thumbprint {
            Thumbprint::Sha256(sha256) => self.certificates.get(sha256),
            Thumbprint::Sha1(sha1) => self.certificates.values().find(|it| {
                it.digest(MessageDigest::sha1())
                    .is_ok_and(|digest| digest.as_ref() == sha1.as_slice())
            }),
        }
    }

    fn replayed(&mut self, id: &str) -> bool {
        if self.seen.iter().any(|it| it == id) {
            return true;
        }
        if self.seen.len() >= IDS_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back(id.to_owned());
        false
    }
}

/// What an assertion has to match.
pub(super) struct Expected<'a> {
    pub(super) client: &'a str,
    pub(super) tenant: &'a str,
    pub(super) endpoint: &'a str,
    pub(super) settings: &'a Tenant,
}

enum Thumbprint {
    Sha1(Vec<u8>),
    Sha256(Vec<u8>),
}

impl Thumbprint {
    fn hex(&self) -> String {
        match self {
            Thumbprint::Sha1(bytes) | Thumbprint::Sha256(bytes) => hex(bytes),
        }
    }
}

/// Checks an assertion whole.
pub(super) fn verify(
    assertion: &str,
    expected: &Expected<'_>,
    registrations: &mut Registrations,
    now: Timestamp,
) -> Result<(), Refusal> {
    let malformed = |what: &str| Refusal::new(50_027, format!("JWT token is invalid or malformed. {what}"));
    // RFC 7515 §7.1: three parts, base64url without padding.
    let (signed, signature) = assertion
        .rsplit_once('.')
        .ok_or_else(|| malformed("It does not have three parts."))?;
    let (header, claims) = signed
        .split_once('.')
        .ok_or_else(|| malformed("It does not have three parts."))?;
    let decode = |part: &str, what: &str| {
        URL_SAFE_NO_PAD
            .decode(part)
            .map_err(|_| malformed(&format!("The {what} is not base64url.")))
    };
    let object = |bytes: Vec<u8>, what: &str| {
        serde_json::from_slice::<Map<String, Value>>(&bytes)
            .map_err(|_| malformed(&format!("The {what} is not a JSON object.")))
    };
    let header = object(decode(header, "header")?, "header")?;
    let claims = object(decode(claims, "payload")?, "payload")?;
    let signature = decode(signature, "signature")?;

    if federation::is_foreign(&claims) {
        return federation::verify(&header, &claims, signed.as_bytes(), &signature, expected, now);
    }
    check_signature(
        &header,
        signed.as_bytes(),
        &signature,
        expected,
        registrations,
        now,
    )?;
    check_claims(&claims, expected, now)?;
    let id = claims
        .get("jti")
        .and_then(Value::as_str)
        .filter(|it| !it.is_empty());
    let id = id.ok_or_else(|| malformed("The claim 'jti' is missing."))?;
    if expected.settings.refuse_replayed_assertions && registrations.replayed(id) {
        return Err(Refusal::new(
            50_013,
            "Assertion failed signature validation. [Reason - The assertion was used before.]",
        ));
    }
    Ok(())
}

/// Which padding goes with the algorithm.
#[derive(Clone, Copy, PartialEq)]
enum Algorithm {
    Ps256,
    Rs256,
}

fn check_signature(
    header: &Map<String, Value>,
    signed: &[u8],
    signature: &[u8],
    expected: &Expected<'_>,
    registrations: &mut Registrations,
    now: Timestamp,
) -> Result<(), Refusal> {
    let text = |name: &str| header.get(name).and_then(Value::as_str);
    let algorithm = match text("alg") {
        Some("PS256") => Algorithm::Ps256,
        Some("RS256") => Algorithm::Rs256,
        other => {
            return Err(Refusal::new(
                5_002_730,
                format!(
                    "Invalid JWT token. The algorithm '{}' is not supported.",
                    other.unwrap_or_default()
                ),
            ));
        }
    };
    // PS256 goes with x5t#S256, RS256 with x5t; a mixture is answered as if the key were unknown.
    let thumbprint = match algorithm {
        Algorithm::Ps256 => text("x5t#S256")
            // MSAL Python pads, in both forms, and is understood.
            .and_then(|it| URL_SAFE_NO_PAD.decode(it.trim_end_matches('=')).ok())
            .filter(|it| it.len() == 32)
            .map(Thumbprint::Sha256),
        // Microsoft's own Rust SDK sends the standard alphabet here.
        Algorithm::Rs256 => text("x5t")
            .and_then(|it| {
                let bare = it.trim_end_matches('=');
                URL_SAFE_NO_PAD
                    .decode(bare)
                    .or_else(|_| STANDARD_NO_PAD.decode(bare))
                    .ok()
            })
            .filter(|it| it.len() == 20)
            .map(Thumbprint::Sha1),
    };
    let unregistered = |reason: &str| {
        Refusal::new(
            700_027,
            format!(
                "The certificate with identifier used to sign the client assertion is not registered on application. \
                 [Reason - {reason}, Please visit the Azure Portal, Graph Explorer or directly use MS Graph to see \
                 configured keys for app Id '{}'.]",
                expected.client,
            ),
        )
    };
    let thumbprint = thumbprint.ok_or_else(|| unregistered("The key was not found."))?;
    if registrations.find(&thumbprint).is_none() && expected.settings.trust_presented_certificates {
        register_presented(header, registrations);
    }
    let certificate = registrations.find(&thumbprint).ok_or_else(|| {
        unregistered(&format!(
            "The key was not found., Thumbprint of key used by client: '{}'",
            thumbprint.hex()
        ))
    })?;

    let failure =
        |_| unregistered("The provided signature value did not match the expected signature value.");
    let now = Asn1Time::from_unix(now.as_second()).map_err(failure)?;
    if certificate.not_after() < now {
        return Err(unregistered(&format!(
            "The key used is expired., Thumbprint of key used by client: '{}'",
            thumbprint.hex()
        )));
    }
    let key = certificate.public_key().map_err(failure)?;
    if key.id() != Id::RSA {
        return Err(Refusal::new(
            5_002_730,
            "Invalid JWT token. The key type does not fit the algorithm.",
        ));
    }
    let mut verifier = Verifier::new(MessageDigest::sha256(), &key).map_err(failure)?;
    if algorithm == Algorithm::Ps256 {
        // RFC 7518 §3.5: MGF1 with SHA-256, and a salt of the size of the hash.
        verifier.set_rsa_padding(Padding::PKCS1_PSS).map_err(failure)?;
        verifier
            .set_rsa_mgf1_md(MessageDigest::sha256())
            .map_err(failure)?;
        verifier
            .set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH)
            .map_err(failure)?;
    }
    match verifier.verify_oneshot(signature, signed) {
        Ok(true) => Ok(()),
        _ => Err(unregistered(&format!(
            "The provided signature value did not match the expected signature value., Thumbprint of key used by client: '{}'",
            thumbprint.hex()
        ))),
    }
}

/// Registers the first certificate of `x5c` (RFC 7515 §4.1.6: an array of standard base64; MSAL.NET
/// sends a single string).
fn register_presented(header: &Map<String, Value>, registrations: &mut Registrations) {
    let first = match header.get("x5c") {
        Some(Value::Array(list)) => list.first().and_then(Value::as_str),
        Some(Value::String(text)) => Some(text.as_str()),
        _ => None,
    };
    if let Some(der) = first.and_then(|it| STANDARD.decode(it).ok()) {
        // What cannot be registered is not found afterwards, which is the answer.
        let _ = registrations.register(&der);
    }
}

fn check_claims(claims: &Map<String, Value>, expected: &Expected<'_>, now: Timestamp) -> Result<(), Refusal> {
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    // RFC 7523 §3: the audience identifies the token endpoint.
    let audience = text("aud").unwrap_or_default();
    if audience != expected.endpoint && !expected.settings.audiences.iter().any(|it| it == audience) {
        return Err(Refusal::new(
            700_023,
            format!(
                "Client assertion audience claim does not match Realm issuer. Review the documentation at \
                 https://docs.microsoft.com/azure/active-directory/develop/active-directory-certificate-credentials. \
                 The audience is '{audience}', '{}' was expected for tenant '{}'.",
                expected.endpoint, expected.tenant,
            ),
        ));
    }
    if text("iss") != Some(expected.client) || text("sub") != Some(expected.client) {
        return Err(Refusal::new(
            700_021,
            "Client assertion application identifier doesn't match 'client_id' parameter. Review the documentation at \
             https://docs.microsoft.com/azure/active-directory/develop/active-directory-certificate-credentials .",
        ));
    }

    check_times(claims, expected.settings.clock_skew_seconds, now)
}

/// Whether a token is in its time, give or take `skew` seconds.
pub(super) fn check_times(claims: &Map<String, Value>, skew: i64, now: Timestamp) -> Result<(), Refusal> {
    let now = now.as_second();
    let not_before = seconds(claims.get("nbf"));
    let expires = seconds(claims.get("exp"));
    let early = not_before.is_some_and(|it| it > now.saturating_add(skew));
    let late = expires.is_none_or(|it| it < now.saturating_sub(skew));
    if early || late {
        let show = |second: Option<i64>| {
            second
                .and_then(|it| Timestamp::from_second(it).ok())
                .map_or_else(String::new, |it| {
                    it.strftime("%Y-%m-%dT%H:%M:%S.0000000Z").to_string()
                })
        };
        return Err(Refusal::new(
            700_024,
            format!(
                "Client assertion is not within its valid time range. Current time: {}, assertion valid from {}, \
                 expiry time of assertion {}.",
                show(Some(now)),
                show(not_before),
                show(expires),
            ),
        ));
    }
    Ok(())
}

/// A NumericDate (RFC 7519 §2), which MSAL.NET writes as a string.
fn seconds(value: Option<&Value>) -> Option<i64> {
    match value? {
        // MSAL Python has fractions of a second.
        Value::Number(number) => number.as_f64().filter(|it| it.abs() < 1e15).map(|it| it as i64),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}
