//! The binary from outside: what it prints, and how it exits.

#![allow(clippy::unwrap_used)]

mod check;
mod gateway;
mod program;
mod usage;
