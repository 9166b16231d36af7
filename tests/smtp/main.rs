//! The SMTP server against clients that are slow, rude, hostile or many.

#![allow(clippy::unwrap_used)]

mod deadlines;
mod defects;
mod limits;
mod listener;
mod messages;
mod process;
mod proxy;
mod relay;
mod tls;
mod wire;
