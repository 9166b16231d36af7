//! The header of the PROXY protocol, versions 1 and 2, in which a load balancer says whose connection
//! it passes on (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>).
//!
//! Whoever may send it may claim any address, so it is read from named proxies alone, and from them
//! it must come. It is read to its last octet and no further: what follows is the client's.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How version 1 begins (§2.1).
const V1_BEGIN: &[u8] = b"PROXY ";

/// The longest header of version 1, with its CRLF (§2.1).
const V1_MAX_OCTETS: usize = 107;

/// The shortest: `PROXY UNKNOWN` and CRLF.
const V1_MIN_OCTETS: usize = 15;

/// How version 2 begins (§2.2).
const V2_BEGIN: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version, family and length of version 2.
const V2_FIXED_OCTETS: usize = 16;

/// The longest header of version 2 that is read. Beside the addresses it may have all sorts of things,
/// such as the subject of a certificate; they are not looked at.
const V2_MAX_OCTETS: usize = 4096;

/// What the octets so far are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// The beginning of a header, to which at least so many more octets belong.
    More(usize),
    /// A whole header.
    Whole(Source),
}

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A client's with this address.
    Client(IpAddr),
    /// The proxy's own (LOCAL), such as a health check; or one of whose client it cannot say the
    /// address (UNKNOWN). It counts as the proxy's.
    Proxy,
}

/// What is wrong with a header. Its `Display` is for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// It does not begin like one.
    NoHeader,
    /// It does not end where it should.
    TooLong,
    /// A version that is not 1 or 2, or a command that is not known.
    Version,
    /// Neither TCP over IPv4 nor over IPv6.
    Protocol,
    /// Addresses that are none.
    Addresses,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Malformed::NoHeader => "the connection does not begin with a PROXY header",
            Malformed::TooLong => "the PROXY header is too long",
            Malformed::Version => "the PROXY header has an unknown version or command",
            Malformed::Protocol => "the PROXY header is not for TCP",
            Malformed::Addresses => "the PROXY header has no proper addresses",
        })
    }
}

/// Reads a header: of `octets`, which are all that have come, and never more than [`Header::More`] has
/// asked for.
///
/// # Errors
/// [`Malformed`] as soon as it cannot become a header any more.
pub fn parse(octets: &[u8]) -> Result<Header, Malformed> {
    let begins = |with: &[u8]| octets.iter().zip(with).all(|(one, other)| one == other);
    if begins(V1_BEGIN) {
        parse_v1(octets)
    } else if begins(V2_BEGIN) {
        parse_v2(octets)
    } else {
        Err(Malformed::NoHeader)
    }
}

fn parse_v1(octets: &[u8]) -> Result<Header, Malformed> {
    if octets.len() < V1_BEGIN.len() {
        // Enough to tell the versions apart.
        return Ok(Header::More(V1_BEGIN.len() - octets.len()));
    }
    let Some(line) = octets.strip_suffix(b"\r\n") else {
        if octets.contains(&b'\n') {
            return Err(Malformed::Addresses);
        }
        let missing = if octets.ends_with(b"\r") { 1 } else { 2 };
        let more = missing.max(V1_MIN_OCTETS.saturating_sub(octets.len()));
        if octets.len() + more > V1_MAX_OCTETS {
            return Err(Malformed::TooLong);
        }
        return Ok(Header::More(more));
    };
    let line = std::str::from_utf8(line).map_err(|_| Malformed::Addresses)?;
    let mut words = line.split(' ').skip(1);
    let ip: fn(&str) -> Option<IpAddr> = match words.next() {
        Some("TCP4") => |text| text.parse::<Ipv4Addr>().ok().map(IpAddr::from),
        Some("TCP6") => |text| text.parse::<Ipv6Addr>().ok().map(IpAddr::from),
        // Whatever else the line says is to be ignored.
        Some("UNKNOWN") => return Ok(Header::Whole(Source::Proxy)),
        _ => return Err(Malformed::Protocol),
    };
    let mut word = || words.next().ok_or(Malformed::Addresses);
    let [source, destination, source_port, destination_port] = [word()?, word()?, word()?, word()?];
    if words.next().is_some() || !is_port(source_port) || !is_port(destination_port) {
        return Err(Malformed::Addresses);
    }
    match (ip(source), ip(destination)) {
        (Some(client), Some(_)) => Ok(Header::Whole(Source::Client(client.to_canonical()))),
        _ => Err(Malformed::Addresses),
    }
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|it| it.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

fn parse_v2(octets: &[u8]) -> Result<Header, Malformed> {
    let Some((fixed, rest)) = octets.split_first_chunk::<V2_FIXED_OCTETS>() else {
        return Ok(Header::More(V2_FIXED_OCTETS - octets.len()));
    };
    let [.., version_and_command, family_and_protocol, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if version_and_command >> 4 != 2 {
        return Err(Malformed::Version);
    }
    if V2_FIXED_OCTETS + length > V2_MAX_OCTETS {
        return Err(Malformed::TooLong);
    }
    let Some(missing) = length.checked_sub(rest.len()) else {
        return Err(Malformed::TooLong);
    };
    if missing > 0 {
        return Ok(Header::More(missing));
    }
    let source = match (version_and_command & 0xf, family_and_protocol) {
        // LOCAL: what the rest says is to be ignored.
        (0, _) => Source::Proxy,
        (1, 0x11) => {
            let address: [u8; 4] = *rest
                .first_chunk::<12>()
                .ok_or(Malformed::Addresses)?
                .first_chunk()
                .expect("12 octets begin with 4");
            Source::Client(Ipv4Addr::from(address).into())
        }
        (1, 0x21) => {
            let address: [u8; 16] = *rest
                .first_chunk::<36>()
                .ok_or(Malformed::Addresses)?
                .first_chunk()
                .expect("36 octets begin with 16");
            Source::Client(IpAddr::from(address).to_canonical())
        }
        // UNSPEC, or a UNIX socket of the proxy's own machine.
        (1, 0x00 | 0x31) => Source::Proxy,
        (1, _) => return Err(Malformed::Protocol),
        _ => return Err(Malformed::Version),
    };
    Ok(Header::Whole(source))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads as the listener does, and gives what is left too.
    fn read(wire: &[u8]) -> Result<(Source, &[u8]), Option<Malformed>> {
        let mut taken = 0;
        loop {
            match parse(&wire[..taken]).map_err(Some)? {
                Header::Whole(source) => return Ok((source, &wire[taken..])),
                Header::More(0) => panic!("asks for nothing"),
                // None: the wire has no more.
                Header::More(more) if taken + more > wire.len() => return Err(None),
                Header::More(more) => taken += more,
            }
        }
    }

    fn client(text: &str) -> Source {
        Source::Client(text.parse().expect("an address"))
    }

    fn v2(version_and_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = (rest.len() as u16).to_be_bytes();
        [V2_BEGIN, &[version_and_command, family], &length, rest].concat()
    }

    #[test]
    fn version_1() {
        for (line, want) in [
            (
                "PROXY TCP4 192.168.0.1 192.168.0.11 56324 25\r\n",
                client("192.168.0.1"),
            ),
            (
                "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
                client("255.255.255.255"),
            ),
            ("PROXY TCP6 fd00::1 fd00::2 1 25\r\n", client("fd00::1")),
            ("PROXY TCP6 ::ffff:10.0.0.1 fd00::2 1 25\r\n", client("10.0.0.1")),
            ("PROXY UNKNOWN\r\n", Source::Proxy),
            (
                "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
                Source::Proxy,
            ),
        ] {
            let wire = format!("{line}EHLO x\r\n");
            assert_eq!(read(wire.as_bytes()), Ok((want, &b"EHLO x\r\n"[..])), "{line}");
            for end in 0..line.len() {
                assert_eq!(read(&line.as_bytes()[..end]), Err(None), "{line} up to {end}");
            }
        }
    }

    #[test]
    fn what_is_no_version_1() {
        for (line, want) in [
            ("EHLO x\r\n", Malformed::NoHeader),
            ("proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n", Malformed::NoHeader),
            (" PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n", Malformed::NoHeader),
            ("PROXYTCP4 1.2.3.4 1.2.3.4 1 2\r\n", Malformed::NoHeader),
            ("PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n", Malformed::Protocol),
            ("PROXY tcp4 1.2.3.4 1.2.3.4 1 2\r\n", Malformed::Protocol),
            ("PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n", Malformed::Protocol),
            ("PROXY TCP4 fd00::1 fd00::2 1 2\r\n", Malformed::Addresses),
            ("PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n", Malformed::Addresses),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n", Malformed::Addresses),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n", Malformed::Addresses),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n", Malformed::Addresses),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n", Malformed::Addresses),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n", Malformed::Addresses),
            ("PROXY TCP4 1.2.3.400 1.2.3.4 1 2\r\n", Malformed::Addresses),
            ("PROXY TCP4 1.2.3.4\r1.2.3.4 1 2\r\n", Malformed::Addresses),
            ("PROXY TCP4 \u{e9}.2.3.4 1.2.3.4 1 2\r\n", Malformed::Addresses),
        ] {
            let wire = [line.as_bytes(), b"EHLO x\r\nEHLO y\r\n"].concat();
            assert_eq!(read(&wire), Err(Some(want)), "{line}");
        }
        let endless = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat();
        assert_eq!(read(&endless), Err(Some(Malformed::TooLong)));
    }

    #[test]
    fn version_2() {
        let v4 = [192, 168, 0, 1, 10, 0, 0, 1, 0xdc, 4, 0, 25];
        let mut v6 = [0; 36];
        v6[..2].copy_from_slice(&[0xfd, 0]);
        v6[15] = 1;
        let mapped = [&[0; 10][..], &[0xff, 0xff, 10, 0, 0, 1], &[0; 20]].concat();
        let with_more = [&v4[..], &[0x04, 0, 3, 1, 2, 3]].concat();
        for (wire, want) in [
            (v2(0x21, 0x11, &v4), client("192.168.0.1")),
            (v2(0x21, 0x11, &with_more), client("192.168.0.1")),
            (v2(0x21, 0x21, &v6), client("fd00::1")),
            (v2(0x21, 0x21, &mapped), client("10.0.0.1")),
            (v2(0x20, 0x00, &[]), Source::Proxy),
            (v2(0x20, 0x11, &v4), Source::Proxy),
            (v2(0x21, 0x00, &[1, 2, 3]), Source::Proxy),
            (v2(0x21, 0x31, &[0; 216]), Source::Proxy),
        ] {
            let whole = [&wire[..], b"EHLO x\r\n"].concat();
            assert_eq!(read(&whole), Ok((want, &b"EHLO x\r\n"[..])));
            for end in 0..wire.len() {
                assert_eq!(read(&wire[..end]), Err(None));
            }
        }
    }

    #[test]
    fn what_is_no_version_2() {
        let v4 = [192, 168, 0, 1, 10, 0, 0, 1, 0xdc, 4, 0, 25];
        for (wire, want) in [
            (v2(0x11, 0x11, &v4), Malformed::Version),
            (v2(0x31, 0x11, &v4), Malformed::Version),
            (v2(0x22, 0x11, &v4), Malformed::Version),
            (v2(0x21, 0x12, &v4), Malformed::Protocol),
            (v2(0x21, 0x51, &v4), Malformed::Protocol),
            (v2(0x21, 0x11, &v4[..11]), Malformed::Addresses),
            (v2(0x21, 0x21, &v4), Malformed::Addresses),
            (v2(0x21, 0x11, &[0; 5000]), Malformed::TooLong),
            (b"\r\n\r\n\0\r\nQUIT \x21\x11\0\0".to_vec(), Malformed::NoHeader),
        ] {
            assert_eq!(read(&wire), Err(Some(want)), "{}", wire.escape_ascii());
        }
    }
}
