//! The stand-in cloud, over real HTTP, with assertions made here by OpenSSL.
#![allow(clippy::unwrap_used, missing_docs)]

mod client;
mod mail;
mod token;
