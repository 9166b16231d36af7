//! The SMTP side: listeners, connections, and the dialogue on them (RFC 5321).
//!
//! What decides is pure and stands in its own files: [`command`] reads a line, [`auth`] runs the
//! SASL exchanges, [`data`] finds the end of mail data, [`session`] holds the dialogue, [`reply`]
//! has every answer.

mod admission;
mod arrival;
mod connection;
mod descriptors;
mod fit;
mod inherited;
mod listener;

pub mod auth;
pub mod command;
pub mod data;
mod limits;
pub mod lines;
pub mod proxy;
pub mod reply;
mod secure;
pub mod session;
pub mod tls;

pub use connection::Connection;
pub use inherited::InheritedError;
pub use listener::{BindError, Handle, Listener, Server, Shared};
