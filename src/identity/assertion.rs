//! The client assertion: a signed JWT (RFC 7523, and Microsoft's page "Microsoft identity platform
//! application authentication certificate credentials"). Pure: the time and the id are arguments.

use std::fmt;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair as RsaKey;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::Serialize;

use super::certificate::{Certificate, CertificateError, KeyPair};
use crate::config::AssertionAlgorithm;

/// How long an assertion is valid, in seconds. Microsoft recommends five to ten minutes.
pub const LIFETIME_SECONDS: i64 = 600;

/// The `client_assertion_type` of a JWT (RFC 7523 §2.2).
pub const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Signs assertions with one certificate.
pub struct Signer {
    key: RsaKey,
    header: String,
    encoding: &'static RsaEncodingOf,
}

/// The two encodings of RSA signatures have one type for us.
type RsaEncodingOf = dyn RsaEncoding;

/// What an assertion says.
#[derive(Clone, Copy, Debug)]
pub struct Claims<'a> {
    /// The URL of the token endpoint that it is made for.
    pub audience: &'a str,
    /// The application (client) id.
    pub client_id: &'a str,
    /// A GUID of its own, so that it cannot be replayed.
    pub id: &'a str,
    /// When it is made.
    pub now: Timestamp,
}

impl Signer {
    /// Takes the key of a certificate that [`KeyPair::check_for_entra`] has passed. `with_chain` says
    /// whether the certificate and its issuers are sent along.
    ///
    /// # Errors
    /// [`CertificateError::Damaged`] where the key's numbers make no sense.
    pub fn new(
        pair: &KeyPair,
        algorithm: AssertionAlgorithm,
        with_chain: bool,
    ) -> Result<Signer, CertificateError> {
        let key = RsaKey::from_pkcs8(pair.key.pkcs8())
            .map_err(|error| CertificateError::Damaged(format!("RSA key: {error}")))?;
        Ok(Signer {
            key,
            header: header(
                &pair.certificate,
                algorithm,
                with_chain.then_some(pair.chain.as_slice()),
            ),
            encoding: match algorithm {
                AssertionAlgorithm::Ps256 => &RSA_PSS_SHA256,
                AssertionAlgorithm::Rs256 => &RSA_PKCS1_SHA256,
            },
        })
    }

    /// Makes a signed assertion in the compact form (RFC 7515 §3.1).
    ///
    /// # Errors
    /// [`SigningFailed`]; not with a key that could be loaded.
    pub fn sign(&self, claims: &Claims<'_>) -> Result<String, SigningFailed> {
        let mut assertion = signing_input(&self.header, claims);
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(
                self.encoding,
                &SystemRandom::new(),
                assertion.as_bytes(),
                &mut signature,
            )
            .map_err(|_| SigningFailed)?;
        assertion.push('.');
        URL_SAFE_NO_PAD.encode_string(&signature, &mut assertion);
        Ok(assertion)
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

/// The cryptographic library could not sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SigningFailed;

impl fmt::Display for SigningFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the client assertion could not be signed")
    }
}

impl std::error::Error for SigningFailed {}

/// The header in JSON. The thumbprint goes with the algorithm: Entra ID answers AADSTS700027 to a
/// mixed pair. `chain` are the certificate's issuers, where it is to be sent along with them.
pub fn header(certificate: &Certificate, algorithm: AssertionAlgorithm, chain: Option<&[Vec<u8>]>) -> String {
    #[derive(Serialize)]
    struct Header {
        alg: &'static str,
        typ: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        x5t: Option<String>,
        #[serde(rename = "x5t#S256", skip_serializing_if = "Option::is_none")]
        x5t_s256: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        x5c: Option<Vec<String>>,
    }
    // RFC 7515 §4.1.6: plain base64, the certificate itself first.
    let x5c = chain.map(|issuers| {
        std::iter::once(&certificate.der)
            .chain(issuers)
            .map(|it| STANDARD.encode(it))
            .collect()
    });
    let header = match algorithm {
        AssertionAlgorithm::Ps256 => Header {
            alg: "PS256",
            typ: "JWT",
            x5t: None,
            x5t_s256: Some(certificate.x5t_s256()),
            x5c,
        },
        AssertionAlgorithm::Rs256 => Header {
            alg: "RS256",
            typ: "JWT",
            x5t: Some(certificate.x5t()),
            x5t_s256: None,
            x5c,
        },
    };
    json(&header)
}

/// What is signed: header and claims, each in base64url, joined by a dot (RFC 7515 §5.1).
pub fn signing_input(header: &str, claims: &Claims<'_>) -> String {
    #[derive(Serialize)]
    struct Payload<'a> {
        aud: &'a str,
        exp: i64,
        iat: i64,
        iss: &'a str,
        jti: &'a str,
        nbf: i64,
        sub: &'a str,
    }
    let now = claims.now.as_second();
    let payload = Payload {
        aud: claims.audience,
        exp: now + LIFETIME_SECONDS,
        iat: now,
        iss: claims.client_id,
        jti: claims.id,
        nbf: now,
        sub: claims.client_id,
    };
    let mut input = URL_SAFE_NO_PAD.encode(header);
    input.push('.');
    URL_SAFE_NO_PAD.encode_string(json(&payload), &mut input);
    input
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("strings and integers are always JSON")
}
