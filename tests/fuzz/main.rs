//! What the fuzz targets check, on stable Rust and in seconds: every seed, and a few thousand inputs
//! made of seeds. `fuzz/` runs the same checks for as long as one likes.

#![allow(clippy::unwrap_used)]

mod convert;
mod client_hello;
mod smtp_command;
mod smtp_data;
mod smtp_proxy;
mod smtp_sasl;
mod smtp_session;

use std::fs;
use std::path::Path;

/// Mutated inputs for each target.
const INPUTS: usize = 3000;

/// Runs a target's check on the seeds, and on what mutation makes of them: always the same, so that
/// what fails once fails again.
fn run(seeds: &[Vec<u8>], check: fn(&[u8])) {
    assert!(!seeds.is_empty());
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mutated = (0..INPUTS).map(|_| random.mutated(seeds));
    for input in seeds.iter().cloned().chain(mutated) {
        let shown = Shown(&input);
        check(&input);
        std::mem::forget(shown);
    }
}

/// Says what the input was when the check of it panics.
struct Shown<'a>(&'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        eprintln!("the input was b\"{}\"", self.0.escape_ascii());
    }
}

/// The files in a directory of the repository with this extension.
fn seeds(directory: &str, extension: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<_> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(directory))
        .unwrap()
        .map(|it| it.unwrap().path())
        .filter(|it| it.extension().is_some_and(|it| it == extension))
        .collect();
    paths.sort();
    paths.into_iter().map(|it| fs::read(it).unwrap()).collect()
}

/// xorshift64: which mutations there are, and nothing more, hangs on it.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end.max(1) as u64) as usize
    }

    /// A seed with one to eight changes, and other octets at the end, where the targets read their
    /// choices.
    fn mutated(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut input = seeds[self.below(seeds.len())].clone();
        input.truncate(20_000);
        for _ in 0..=self.below(8) {
            let at = self.below(input.len() + 1);
            let to = at + self.below((input.len() - at).min(60) + 1);
            match self.below(6) {
                0 => drop(input.drain(at..to)),
                1 => {
                    let again = input[at..to].to_vec();
                    input.splice(at..at, again);
                }
                2 => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len() + 1);
                    let end = from + self.below((other.len() - from).min(200) + 1);
                    input.splice(at..to, other[from..end].iter().copied());
                }
                3 => {
                    let odd = b"\0\r\n\t \"\\<>():;,@=?\x80\xff\xc3--";
                    input.insert(at, odd[self.below(odd.len())]);
                }
                4 => input.truncate(to),
                _ => {
                    if let Some(octet) = input.get_mut(at) {
                        *octet ^= 1 << self.below(8);
                    }
                }
            }
        }
        input.extend((0..4).map(|_| self.below(256) as u8));
        input
    }
}

#[test]
fn conversion() {
    run(&seeds("tests/convert", "eml"), convert::check);
}

/// The dialogues of `tests/dialogues/`: what their clients send.
fn dialogues() -> Vec<Vec<u8>> {
    seeds("tests/dialogues", "txt")
        .iter()
        .map(|script| {
            let mut sent = Vec::new();
            for line in String::from_utf8_lossy(script).lines() {
                if let Some(text) = line.strip_prefix("C: ") {
                    sent.extend_from_slice(text.replace("\\r\\n", "\r\n").as_bytes());
                    sent.extend_from_slice(b"\r\n");
                }
            }
            sent.extend([0xff; 4]);
            sent
        })
        .collect()
}

#[test]
fn smtp_commands() {
    let mut seeds = dialogues();
    // A finding.
    seeds.push(b"RCPT TO:FAXb\"@c.example\r\n\xff".to_vec());
    run(&seeds, smtp_command::check);
}

#[test]
fn smtp_dialogues() {
    run(&dialogues(), smtp_session::check);
}

#[test]
fn smtp_logins() {
    let plain = b"AHNjYW5uZXIxAHNlY3JldA==";
    let login = b"c2Nhbm5lcjE=\nc2VjcmV0";
    let cram_md5 = b"dGltIGI5MTNhNjAyYzdlZGE3YTQ5NWI0ZTZlNzMzNGQzODkw";
    let seeds = [&plain[..], login, cram_md5, b"*", b"="]
        .map(|it| (0..8).map(move |choice| [it, &[choice]].concat()));
    run(&seeds.into_iter().flatten().collect::<Vec<_>>(), smtp_sasl::check);
}

#[test]
fn smtp_mail_data() {
    let seeds = [
        "a\r\n.\r\n",
        "a\n.\n..\r\n.\r\nQUIT",
        "..\r\n.x\r.\r\r\n\0.\r\n.\n.\r\n",
    ];
    run(&seeds.map(|it| it.as_bytes().to_vec()), smtp_data::check);
}

#[test]
fn tls_client_hellos() {
    let old = [
        &[0x16, 3, 1, 0, 47, 1, 0, 0, 43, 3, 1][..],
        &[7; 32],
        &[0, 0, 4, 0, 0x2f, 0, 0x35, 1, 0],
    ]
    .concat();
    let ssl_2 = [
        &[0x80, 31, 1, 3, 1, 0, 6, 0, 0, 0, 16, 0, 0, 0x2f, 0, 0, 0x35][..],
        &[7; 16],
    ]
    .concat();
    let modern = openssl_client_hello();
    // The same in records of a few octets.
    let pieces = modern[5..]
        .chunks(100)
        .flat_map(|it| [&[0x16, 3, 1, 0, it.len() as u8], it].concat())
        .collect();
    run(&[old, ssl_2, modern, pieces], client_hello::check);
}

/// What OpenSSL says first.
fn openssl_client_hello() -> Vec<u8> {
    use openssl::ssl::{SslConnector, SslMethod};
    use std::io::{self, Read, Write};
    struct Sent(Vec<u8>);
    impl Read for Sent {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }
    impl Write for Sent {
        fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
            self.0.extend_from_slice(octets);
            Ok(octets.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let client = SslConnector::builder(SslMethod::tls_client()).unwrap().build();
    match client.connect("relay.example", Sent(Vec::new())) {
        Err(openssl::ssl::HandshakeError::WouldBlock(stream)) => stream.get_ref().0.clone(),
        _ => panic!("a client waits for the answer"),
    }
}

#[test]
fn smtp_proxy_headers() {
    let seeds = [
        &b"PROXY TCP4 10.1.2.3 10.0.0.5 40000 25\r\nEHLO x\r\n"[..],
        b"PROXY TCP6 fd00::1 fd00::2 40000 25\r\n",
        b"PROXY UNKNOWN\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\x0a\x01\x02\x03\x0a\0\0\x05\x9c\x40\0\x19",
        b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00",
    ];
    run(&seeds.map(<[u8]>::to_vec), smtp_proxy::check);
}
