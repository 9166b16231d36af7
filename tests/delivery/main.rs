//! The delivery loop over a real queue and the stand-in cloud.

#![allow(clippy::unwrap_used)]

mod bounces;
mod groups;
mod holds;
mod large;
mod outcomes;
mod outlook;
mod pace;
mod rig;
mod stops;
mod unknown;
