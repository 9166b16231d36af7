//! The queue on a real directory.
#![allow(clippy::unwrap_used)]

mod support;

mod full;
mod kill;
mod life;
mod model;
mod power;
mod recovery;
mod tidy;
mod version;
