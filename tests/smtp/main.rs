//! The SMTP server against clients that are slow, rude, hostile or many.

#![allow(clippy::unwrap_used)]

mod deadlines;
mod limits;
mod listener;
mod messages;
mod relay;
mod wire;
