//! How the application proves itself to Entra ID: certificate, assertion, token.

pub mod aadsts;
pub mod assertion;
mod cache;
pub mod certificate;
pub mod claims;
pub mod credential;
mod entra;
pub mod expiry;
pub(crate) mod https;
mod managed;
mod proof;
mod refusal;
mod token;
mod vault;

pub use https::HttpsError;
pub use token::{Examined, Token, TokenError, Tokens};

/// Why the application's identity cannot be set up.
#[derive(Debug)]
pub enum IdentityError {
    /// A certificate or key file.
    Credential(credential::CredentialError),
    /// The proxy or the certificate authorities.
    Https(HttpsError),
    /// A managed identity, where an application is meant.
    NoApplication,
}

impl std::fmt::Display for IdentityError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            IdentityError::Credential(error) => error.fmt(f),
            IdentityError::Https(error) => error.fmt(f),
            IdentityError::NoApplication => f.write_str("a managed identity cannot prove an application"),
        }
    }
}

impl std::error::Error for IdentityError {}

/// A random GUID (RFC 9562 §5.4): the id of an assertion or of a request.
pub(crate) fn guid() -> String {
    let mut octets = [0; 16];
    aws_lc_rs::rand::fill(&mut octets).expect("the system has random numbers");
    octets[6] = octets[6] & 0x0f | 0x40;
    octets[8] = octets[8] & 0x3f | 0x80;
    let hex: String = octets.iter().map(|it| format!("{it:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}
