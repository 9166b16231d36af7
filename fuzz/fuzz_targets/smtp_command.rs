//! Any octets as command lines: `cargo +nightly fuzz run smtp_command`.

#![no_main]

#[path = "../../tests/fuzz/smtp_command.rs"]
mod smtp_command;

libfuzzer_sys::fuzz_target!(|data: &[u8]| smtp_command::check(data));
