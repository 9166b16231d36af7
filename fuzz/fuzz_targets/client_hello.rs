//! Any octets as the first of a TLS client: `cargo +nightly fuzz run client_hello`.

#![no_main]

#[path = "../../tests/fuzz/client_hello.rs"]
mod client_hello;

libfuzzer_sys::fuzz_target!(|data: &[u8]| client_hello::check(data));
