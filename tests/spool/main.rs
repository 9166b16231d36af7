//! The queue on a real directory.
#![allow(clippy::unwrap_used)]

mod support;

mod life;
