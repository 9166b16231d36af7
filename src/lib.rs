//! graphpost: an SMTP-to-REST relay gateway for Microsoft 365.
//!
//! The modules stand in the order a message travels; a module uses only what stands below it.
//! Those marked ○ in `ARCHITECTURE.md` are pure: no I/O, no clock, no task.

pub mod cli;
// The parts are built and stopped by `app`, the only module that knows all of them.
pub mod admin;
pub mod app;

pub mod accounts;
pub mod policy;
pub mod smtp;

pub mod convert;
pub mod delivery;
pub mod graph;
pub mod identity;
pub mod outcome;
pub mod schedule;
pub mod spool;

pub mod address;
pub mod config;
pub mod envelope;
pub mod event;
pub mod message;
pub mod metrics;

pub mod sandbox;
