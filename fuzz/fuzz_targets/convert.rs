//! Any octets as a message, with an envelope and limits: `cargo +nightly fuzz run convert`.

#![no_main]

#[path = "../../tests/fuzz/convert.rs"]
mod convert;

libfuzzer_sys::fuzz_target!(|data: &[u8]| convert::check(data));
