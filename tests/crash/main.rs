//! The promise under crashes: every message that got 250 is delivered, whatever kills the process and
//! when.
//!
//! The real binary over a real queue; clients on real sockets; the stand-in cloud, in this process and so
//! never killed, is the witness: what it delivered is compared with the 250s that the clients saw.

#![allow(clippy::unwrap_used)]

mod points;
mod random;
mod rig;
