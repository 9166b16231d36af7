//! The queue on a real directory.
#![allow(clippy::unwrap_used)]

mod support;

mod full;
mod groups;
mod kill;
mod life;
mod merging;
mod model;
mod power;
mod recovery;
mod tidy;
mod version;
