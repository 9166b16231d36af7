//! The application's identity in the real program: the ends of certificates, and that no secret is ever
//! shown.
#![allow(clippy::unwrap_used)]

mod documents;
mod expiry;
mod reload;
mod rig;
mod secrets;
