//! Any octets as a PROXY header: `cargo +nightly fuzz run smtp_proxy`.

#![no_main]

#[path = "../../tests/fuzz/smtp_proxy.rs"]
mod smtp_proxy;

libfuzzer_sys::fuzz_target!(|data: &[u8]| smtp_proxy::check(data));
