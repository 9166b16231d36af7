//! The stand-in cloud, over real HTTP, with assertions made here by OpenSSL.
#![allow(clippy::unwrap_used, missing_docs)]

mod azure;
mod client;
mod draft;
mod fault;
mod mail;
mod page;
mod token;
