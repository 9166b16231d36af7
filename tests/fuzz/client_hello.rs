//! Any octets as the first of a TLS client: they are a ClientHello or they are not, in whatever pieces
//! they come, and what was read can be read once more.

use graphpost::smtp::tls::client_hello::{MAX_OCTETS, Sniffer, Version, client_hello};

/// Looks for a ClientHello in `data`, whole and in pieces; the last octet chooses their size.
pub fn check(data: &[u8]) {
    let size = usize::from(data.last().copied().unwrap_or(0)).max(1);
    let whole = client_hello(data);
    let mut sniffer = Sniffer::default();
    let mut pushed = 0;
    let pieces = data.chunks(size).find_map(|it| {
        pushed += it.len();
        assert!(pushed <= MAX_OCTETS + size, "reads for ever");
        sniffer.push(it)
    });
    assert_eq!(whole, pieces);
    assert_eq!(sniffer.into_octets(), data[..pushed]);
    if let Some(Ok(hello)) = whole {
        assert!(hello.version <= Version::TLS1_3);
        if let Some(name) = hello.server_name {
            assert!(name.len() <= 253 && name == name.to_ascii_lowercase());
        }
    }
}
