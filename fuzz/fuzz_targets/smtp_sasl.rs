//! Any octets as the answers of a login: `cargo +nightly fuzz run smtp_sasl`.

#![no_main]

#[path = "../../tests/fuzz/smtp_command.rs"]
#[allow(dead_code)]
mod smtp_command;
#[path = "../../tests/fuzz/smtp_sasl.rs"]
mod smtp_sasl;

libfuzzer_sys::fuzz_target!(|data: &[u8]| smtp_sasl::check(data));
