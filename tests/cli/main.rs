//! The binary from outside: what it prints, and how it exits.

#![allow(clippy::unwrap_used)]

mod check;
mod cloud;
mod gateway;
mod init;
mod microsoft;
mod program;
mod usage;
