//! graphpost: an SMTP-to-REST relay gateway for Microsoft 365.
//!
//! The modules stand in the order a message travels; a module uses only what stands below it.
//! Those marked ○ in `ARCHITECTURE.md` are pure: no I/O, no clock, no task.

// Above all others only because macros are known below their place; it is no part of the path.
#[macro_use]
mod crash;

pub mod cli;
// The parts are built and stopped by `app`, the only module that knows all of them.
pub mod app;
pub mod admin;

pub mod smtp;
pub mod policy;
pub mod accounts;

pub mod delivery;
pub mod schedule;
pub mod postmaster;
pub mod notify;
pub mod spool;
pub mod bounce;
pub mod convert;
pub mod graph;
pub mod identity;
pub mod outcome;

pub mod message;
pub mod event;
pub mod metrics;
pub mod diagnosis;
pub mod config;
pub mod envelope;
pub mod address;

pub mod sandbox;
