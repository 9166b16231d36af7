//! Any octets as all that a client says: `cargo +nightly fuzz run smtp_session`.

#![no_main]

#[path = "../../tests/fuzz/smtp_command.rs"]
#[allow(dead_code)]
mod smtp_command;
#[path = "../../tests/fuzz/smtp_session.rs"]
mod smtp_session;

libfuzzer_sys::fuzz_target!(|data: &[u8]| smtp_session::check(data));
