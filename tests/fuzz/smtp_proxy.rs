//! Whatever comes where a PROXY header should: it is one, or it is not, and never is an octet behind it
//! read.

use graphpost::smtp::proxy::{Header, Source, parse};

/// Reads a header from `data` as the listener does.
pub fn check(data: &[u8]) {
    let mut taken = 0;
    loop {
        match parse(&data[..taken]) {
            Err(_) => return,
            Ok(Header::More(more)) => {
                assert!(more > 0 && taken + more <= 4096, "asks for {more} after {taken}");
                taken += more;
                if taken > data.len() {
                    return;
                }
            }
            Ok(Header::Whole(source)) => {
                let header = &data[..taken];
                assert!(
                    header.starts_with(b"PROXY ") && header.ends_with(b"\r\n") && taken <= 107
                        || header.starts_with(b"\r\n\r\n\0\r\nQUIT\n") && taken >= 16
                );
                if let Source::Client(client) = source {
                    assert_eq!(client, client.to_canonical());
                }
                return;
            }
        }
    }
}
