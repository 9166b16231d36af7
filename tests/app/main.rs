//! The gateway as a whole: what it shows, how it starts, reloads and stops.

#![allow(clippy::unwrap_used)]

mod admin;
mod drain;
mod envelopes;
mod notices;
mod memory;
mod operator;
mod outages;
mod process;
mod rig;
mod start;
