//! How the application proves itself to Entra ID: certificate, assertion, token.

pub mod assertion;
pub mod certificate;
mod token;

pub use token::{TokenError, Tokens};
