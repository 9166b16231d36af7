//! Any octets as mail data: `cargo +nightly fuzz run smtp_data`.

#![no_main]

#[path = "../../tests/fuzz/smtp_data.rs"]
mod smtp_data;

libfuzzer_sys::fuzz_target!(|data: &[u8]| smtp_data::check(data));
