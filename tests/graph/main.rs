//! The Graph client against raw sockets that misbehave, HTTP/2, proxies and the stand-in cloud.
#![allow(clippy::unwrap_used)]

mod cloud;
mod drafts;
mod http1;
mod http2;
mod server;
