//! The first message of a TLS client, read before it is known who will answer it (RFC 8446 §4.1.2,
//! RFC 5246 §7.4.1.2). Pure: octets in, what the client offers out. What came is kept whole, so that
//! it can be read once more by the library that does the handshake.

use std::fmt;

/// The most that is read in search of a whole ClientHello, in octets as they come, record headers
/// and all. Real ones have some hundreds, and under two thousand with post-quantum key shares.
pub const MAX_OCTETS: usize = 32 * 1024;

/// A record of handshake messages (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;
/// The handshake message that is a ClientHello, here and in SSL 2.0.
const CLIENT_HELLO: u8 = 1;
/// The largest record (RFC 8446 §5.2 allows ciphertext 256 more, but this one is in the clear).
const MAX_RECORD: usize = 1 << 14;

/// A version of TLS as it stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u16);

impl Version {
    /// TLS 1.0.
    pub const TLS1_0: Version = Version(0x0301);
    /// TLS 1.1.
    pub const TLS1_1: Version = Version(0x0302);
    /// TLS 1.2.
    pub const TLS1_2: Version = Version(0x0303);
    /// TLS 1.3.
    pub const TLS1_3: Version = Version(0x0304);
}

impl Version {
    /// Its name in logs and metrics, such as `TLSv1.2`.
    pub fn name(self) -> String {
        match self.0 {
            0x0300 => "SSLv3".to_owned(),
            minor @ 0x0301..=0x0304 => format!("TLSv1.{}", minor - 0x0301),
            other => format!("{other:#06x}"),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0x0300 => f.write_str("SSL 3.0"),
            minor @ 0x0301..=0x0304 => write!(f, "TLS 1.{}", minor - 0x0301),
            0x0000..0x0300 => f.write_str("SSL 2.0"),
            other => write!(f, "TLS {other:#06x}"),
        }
    }
}

/// What a client offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The newest version among those it offers that exist.
    pub version: Version,
    /// Its cipher suites, in its order.
    pub suites: Vec<u16>,
    /// Its groups for key exchange; `None` where it does not say.
    pub groups: Option<Vec<u16>>,
    /// Its signature schemes; `None` where it does not say, as before TLS 1.2.
    pub signature_schemes: Option<Vec<u16>>,
    /// Whether it takes points of elliptic curves that are not compressed, as all but broken ones do.
    pub uncompressed_points: bool,
    /// The host that it wants to speak to, in lower case.
    pub server_name: Option<String>,
}

/// Why there is no ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoHello {
    /// This is not TLS.
    NotTls,
    /// It begins as TLS does and goes on as nothing does.
    Malformed,
    /// It does not end within [`MAX_OCTETS`].
    TooLong,
}

/// Whether what a client said first is TLS. No SMTP command begins so.
pub fn begins_tls(octets: &[u8]) -> bool {
    match octets {
        [HANDSHAKE, ..] => true,
        [first, _, CLIENT_HELLO, ..] => first & 0x80 != 0,
        _ => false,
    }
}

/// Looks for a whole ClientHello at the beginning of these octets; `None` where more is needed.
///
/// # Errors
/// [`NoHello`] says why there will never be one.
pub fn client_hello(octets: &[u8]) -> Option<Result<ClientHello, NoHello>> {
    Sniffer::default().push(octets)
}

/// Looks for a ClientHello in a stream, over as many pieces and records as it comes in. Each octet is
/// looked at once, however small the pieces.
#[derive(Debug, Default)]
pub struct Sniffer {
    octets: Vec<u8>,
    /// Where the next record begins.
    next: usize,
    /// The handshake message so far, without record headers.
    message: Vec<u8>,
}

impl Sniffer {
    /// Takes what came next; `None` where more is needed.
    ///
    /// # Errors
    /// [`NoHello`] says why there will never be one.
    pub fn push(&mut self, octets: &[u8]) -> Option<Result<ClientHello, NoHello>> {
        self.octets.extend_from_slice(octets);
        if self.octets.first()? & 0x80 != 0 {
            return self.version_2();
        }
        loop {
            let record = self.octets.get(self.next..).unwrap_or_default();
            match record {
                [HANDSHAKE, 3, ..] | [HANDSHAKE] | [] => {}
                // Once it has begun with a record of TLS it is TLS, if a bad one.
                _ if self.next > 0 => return Some(Err(NoHello::Malformed)),
                _ => return Some(Err(NoHello::NotTls)),
            }
            let [_, _, _, high, low, rest @ ..] = record else {
                break;
            };
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            if length > MAX_RECORD {
                return Some(Err(NoHello::Malformed));
            }
            let Some(fragment) = rest.get(..length) else {
                break;
            };
            self.message.extend_from_slice(fragment);
            self.next += 5 + length;
            match self.message.as_slice() {
                [CLIENT_HELLO, high, middle, low, body @ ..] => {
                    let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
                    if length > MAX_OCTETS {
                        return Some(Err(NoHello::TooLong));
                    }
                    if let Some(body) = body.get(..length) {
                        return Some(version_3(body).ok_or(NoHello::Malformed));
                    }
                }
                [CLIENT_HELLO, ..] | [] => {}
                _ => return Some(Err(NoHello::Malformed)),
            }
        }
        self.more()
    }

    /// All that came.
    pub fn into_octets(self) -> Vec<u8> {
        self.octets
    }

    fn more(&self) -> Option<Result<ClientHello, NoHello>> {
        (self.octets.len() >= MAX_OCTETS).then_some(Err(NoHello::TooLong))
    }

    /// A ClientHello in the format of SSL 2.0, in which clients of their time offered newer versions
    /// as well (RFC 5246 appendix E.2).
    fn version_2(&self) -> Option<Result<ClientHello, NoHello>> {
        let [high, low, rest @ ..] = self.octets.as_slice() else {
            return None;
        };
        match rest {
            [CLIENT_HELLO, 3, ..] | [CLIENT_HELLO] | [] => {}
            [CLIENT_HELLO, ..] => return Some(Err(NoHello::Malformed)),
            _ => return Some(Err(NoHello::NotTls)),
        }
        let length = usize::from(u16::from_be_bytes([high & 0x7f, *low]));
        let body = rest.get(..length)?;
        let parse = || {
            let mut reader = Reader(body.get(1..)?);
            let version = Version(reader.u16()?);
            let suites = usize::from(reader.u16()?);
            reader.take(4)?;
            // Three octets each; those that exist in TLS begin with zero.
            let (specs, _) = reader.take(suites)?.as_chunks::<3>();
            let suites = specs
                .iter()
                .filter(|it| it[0] == 0)
                .map(|it| u16::from_be_bytes([it[1], it[2]]))
                .collect();
            Some(ClientHello {
                version: version.min(Version::TLS1_2),
                suites,
                groups: None,
                signature_schemes: None,
                uncompressed_points: true,
                server_name: None,
            })
        };
        Some(parse().ok_or(NoHello::Malformed))
    }
}

/// The body of a ClientHello of SSL 3.0 and all of TLS. Extensions that are not looked at here are
/// left to the library that does the handshake.
fn version_3(body: &[u8]) -> Option<ClientHello> {
    let mut reader = Reader(body);
    // RFC 8446 §4.2.1: newer versions than 1.2 are offered in an extension.
    let version = Version(reader.u16()?).min(Version::TLS1_2);
    reader.take(32)?;
    reader.short()?;
    let suites = reader.numbers()?;
    reader.short()?;
    let mut hello = ClientHello {
        version,
        suites,
        groups: None,
        signature_schemes: None,
        uncompressed_points: true,
        server_name: None,
    };
    if reader.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = Reader(reader.long()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let mut content = Reader(extensions.long()?);
        match kind {
            0 => hello.server_name = server_name(&mut content),
            10 => hello.groups = Some(content.numbers()?),
            11 => hello.uncompressed_points = content.short()?.contains(&0),
            13 => hello.signature_schemes = Some(content.numbers()?),
            43 => {
                let (versions, _) = content.short()?.as_chunks::<2>();
                hello.version = versions
                    .iter()
                    .map(|it| Version(u16::from_be_bytes(*it)))
                    // Some clients mix in values that mean nothing (RFC 8701).
                    .filter(|it| (Version::TLS1_0..=Version::TLS1_3).contains(it))
                    .max()
                    .unwrap_or(Version(0));
            }
            _ => {}
        }
    }
    Some(hello)
}

/// RFC 6066 §3. A name that cannot be one of ours is no name.
fn server_name(extension: &mut Reader<'_>) -> Option<String> {
    let mut list = Reader(extension.long()?);
    let [0] = list.take(1)? else { return None };
    let name = str::from_utf8(list.long()?).ok()?;
    (!name.is_empty() && name.len() <= 253).then(|| name.trim_end_matches('.').to_ascii_lowercase())
}

/// What is not read yet of a part of the message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        let (taken, rest) = self.0.split_first_chunk::<2>()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*taken))
    }

    /// A vector whose length is in one octet.
    fn short(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(usize::from(length))
    }

    /// A vector whose length is in two octets.
    fn long(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    fn numbers(&mut self) -> Option<Vec<u16>> {
        let (numbers, []) = self.long()?.as_chunks::<2>() else {
            return None;
        };
        Some(numbers.iter().map(|it| u16::from_be_bytes(*it)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vector with its length before it.
    fn long(content: &[u8]) -> Vec<u8> {
        [
            &u16::try_from(content.len()).expect("short").to_be_bytes(),
            content,
        ]
        .concat()
    }

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [kind.to_be_bytes().to_vec(), long(content)].concat()
    }

    fn message(version: [u8; 2], suites: &[u8], extensions: &[u8]) -> Vec<u8> {
        let mut body = [&version[..], &[7; 32], &[0], &long(suites), &[1, 0]].concat();
        if !extensions.is_empty() {
            body.extend(long(extensions));
        }
        let length = u32::try_from(body.len()).expect("short").to_be_bytes();
        [&[1, length[1], length[2], length[3]], body.as_slice()].concat()
    }

    /// A message in records of at most so many octets.
    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message
            .chunks(size)
            .flat_map(|it| [vec![22, 3, 1], long(it)].concat())
            .collect()
    }

    fn modern() -> Vec<u8> {
        let extensions = [
            extension(0, &long(&[vec![0], long(b"Relay.Contoso.COM.")].concat())),
            extension(10, &long(&[0x1a, 0x1a, 0, 29, 0, 23])),
            extension(11, &[1, 0]),
            extension(13, &long(&[8, 4, 4, 3])),
            extension(43, &[6, 0x7a, 0x7a, 3, 4, 3, 3]),
            extension(0xff01, &[0]),
        ]
        .concat();
        message([3, 3], &[0x13, 1, 0xc0, 0x2f], &extensions)
    }

    #[test]
    fn what_a_client_offers() {
        let hello = client_hello(&records(&modern(), 4096))
            .expect("whole")
            .expect("good");
        assert_eq!(
            hello,
            ClientHello {
                version: Version::TLS1_3,
                suites: vec![0x1301, 0xc02f],
                groups: Some(vec![0x1a1a, 29, 23]),
                signature_schemes: Some(vec![0x0804, 0x0403]),
                uncompressed_points: true,
                server_name: Some("relay.contoso.com".to_owned()),
            }
        );

        let old = client_hello(&records(&message([3, 1], &[0, 0x2f, 0, 0x35], &[]), 4096));
        let old = old.expect("whole").expect("good");
        assert_eq!(old.version, Version::TLS1_0);
        assert_eq!(
            (old.suites, old.groups, old.server_name),
            (vec![0x2f, 0x35], None, None)
        );
    }

    #[test]
    fn a_hello_in_the_format_of_ssl_2() {
        let body = [
            &[1, 3, 1, 0, 9, 0, 0, 0, 16][..],
            &[0, 0, 0x2f, 0, 0, 0x35, 7, 0, 0xc0],
            &[9; 16],
        ]
        .concat();
        let octets = [&[0x80, u8::try_from(body.len()).expect("short")], body.as_slice()].concat();
        assert!(begins_tls(&octets));
        for end in 0..octets.len() {
            assert_eq!(client_hello(&octets[..end]), None, "{end}");
        }
        let hello = client_hello(&octets).expect("whole").expect("good");
        assert_eq!((hello.version, hello.suites), (Version::TLS1_0, vec![0x2f, 0x35]));
    }

    /// Cut at every octet, in records of every size: always the same, and never too early.
    #[test]
    fn pieces_make_no_difference() {
        let message = modern();
        let want = client_hello(&records(&message, 4096));
        assert!(matches!(want, Some(Ok(_))));
        for size in 1..=message.len() {
            let octets = records(&message, size);
            assert_eq!(client_hello(&octets), want, "records of {size}");
        }
        for octets in [records(&message, 4096), records(&message, 7)] {
            for cut in 0..octets.len() {
                let mut sniffer = Sniffer::default();
                assert_eq!(sniffer.push(&octets[..cut]), None, "cut at {cut}");
                assert_eq!(sniffer.push(&octets[cut..]), want, "cut at {cut}");
                assert_eq!(sniffer.into_octets(), octets);
            }
            let mut sniffer = Sniffer::default();
            let mut last = None;
            for octet in &octets {
                assert_eq!(last, None);
                last = sniffer.push(&[*octet]);
            }
            assert_eq!(last, want);
        }
    }

    #[test]
    fn what_is_no_hello() {
        use NoHello::{Malformed, NotTls, TooLong};
        let record = |content: &[u8]| records(content, 16_384);
        for (octets, want) in [
            (b"EHLO x\r\n".to_vec(), Some(NotTls)),
            (b"\x16EHLO".to_vec(), Some(NotTls)),
            (vec![0xef, 0xbb, 0xbf, b'E'], Some(NotTls)),
            (vec![0x15, 3, 1, 0, 2, 1, 0], Some(NotTls)),
            (vec![22, 3, 1, 0xff, 0xff], Some(Malformed)),
            (record(&[2, 0, 0, 0]), Some(Malformed)),
            (record(&[1, 0, 0, 0]), Some(Malformed)),
            (record(&[1, 0xff, 0, 0]), Some(TooLong)),
            (
                [record(&[1, 0, 1]), vec![23, 3, 1, 0, 1, 0]].concat(),
                Some(Malformed),
            ),
            (vec![0x80, 0x2e, 1, 0, 2], Some(Malformed)),
            (vec![22], None),
            (vec![], None),
        ] {
            assert_eq!(
                client_hello(&octets).map(|it| it.expect_err("no hello")),
                want,
                "{octets:?}"
            );
        }
        // Records without content, for ever.
        let endless = [22, 3, 1, 0, 0].repeat(MAX_OCTETS / 5 + 1);
        assert_eq!(client_hello(&endless), Some(Err(TooLong)));
        let message = [&[1, 0, 0x7f, 0xff][..], &[0; MAX_OCTETS]].concat();
        let mut sniffer = Sniffer::default();
        let mut pushed = 0;
        let error = records(&message, 1).chunks(1000).find_map(|it| {
            pushed += it.len();
            sniffer.push(it)
        });
        assert_eq!(error, Some(Err(TooLong)));
        assert!(pushed <= MAX_OCTETS + 1000);
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(start in 0usize..200, noise in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let mut octets = records(&modern(), 50);
            let start = start.min(octets.len());
            for (at, octet) in noise.iter().enumerate() {
                if let Some(place) = octets.get_mut(start + at) {
                    *place = *octet;
                }
            }
            let whole = client_hello(&octets);
            // The pieces make no difference to nonsense either.
            let mut sniffer = Sniffer::default();
            let pieces = octets.chunks(3).find_map(|it| sniffer.push(it));
            proptest::prop_assert_eq!(whole, pieces);
            let _ = client_hello(&noise);
        }
    }
}
