//! How the application proves itself to Entra ID: certificate, assertion, token.

pub mod assertion;
pub mod certificate;
pub mod credential;
mod https;
mod token;

pub use https::HttpsError;
pub(crate) use https::{chain, client};
pub use token::{Token, TokenError, Tokens};

/// Why the application's identity cannot be set up.
#[derive(Debug)]
pub enum IdentityError {
    /// A certificate or key file.
    Credential(credential::CredentialError),
    /// The proxy or the certificate authorities.
    Https(HttpsError),
}

impl std::fmt::Display for IdentityError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            IdentityError::Credential(error) => error.fmt(f),
            IdentityError::Https(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for IdentityError {}
