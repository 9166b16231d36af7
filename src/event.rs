//! The sentences the log can say: one function each, one line each. Never a body, a password, a
//! token or an assertion, at any level. Where a message is concerned its queue id is on the line.
//!
//! The functions write `tracing` events with the target `graphpost`; the shell that formats them as
//! text or JSON is set up by [`init`].

use crate::config;

/// Starts the log on standard error. Called once, by `main`'s commands that run a server.
pub fn init(log: &config::Log) {
    let _ = log;
    todo!()
}
