//! Who does the handshake: rustls for clients that it can serve, OpenSSL for those that only it can,
//! as far as the listener's profile lets it. Pure.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use ipnet::IpNet;
use rustls::crypto::CryptoProvider;
use rustls::sign::SigningKey;
use rustls::{SignatureAlgorithm, SignatureScheme, SupportedCipherSuite};

use super::client_hello::{ClientHello, Version};
use crate::config::TlsProfile;

/// The suites that only OpenSSL serves, and those that both do, strongest first: with forward secrecy
/// before without, authenticated before CBC. Nothing with RC4, 3DES, export keys or no encryption.
const OPENSSL_SUITES: [Suite; 20] = [
    Suite::new(
        0xc02b,
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        Key::Ecdsa,
        Version::TLS1_2,
    ),
    Suite::new(0xc02f, "ECDHE-RSA-AES128-GCM-SHA256", Key::Rsa, Version::TLS1_2),
    Suite::new(
        0xc02c,
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        Key::Ecdsa,
        Version::TLS1_2,
    ),
    Suite::new(0xc030, "ECDHE-RSA-AES256-GCM-SHA384", Key::Rsa, Version::TLS1_2),
    Suite::new(
        0xcca9,
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        Key::Ecdsa,
        Version::TLS1_2,
    ),
    Suite::new(0xcca8, "ECDHE-RSA-CHACHA20-POLY1305", Key::Rsa, Version::TLS1_2),
    Suite::new(0xc023, "ECDHE-ECDSA-AES128-SHA256", Key::Ecdsa, Version::TLS1_2),
    Suite::new(0xc027, "ECDHE-RSA-AES128-SHA256", Key::Rsa, Version::TLS1_2),
    Suite::new(0xc024, "ECDHE-ECDSA-AES256-SHA384", Key::Ecdsa, Version::TLS1_2),
    Suite::new(0xc028, "ECDHE-RSA-AES256-SHA384", Key::Rsa, Version::TLS1_2),
    Suite::new(0xc009, "ECDHE-ECDSA-AES128-SHA", Key::Ecdsa, Version::TLS1_0),
    Suite::new(0xc013, "ECDHE-RSA-AES128-SHA", Key::Rsa, Version::TLS1_0),
    Suite::new(0xc00a, "ECDHE-ECDSA-AES256-SHA", Key::Ecdsa, Version::TLS1_0),
    Suite::new(0xc014, "ECDHE-RSA-AES256-SHA", Key::Rsa, Version::TLS1_0),
    Suite::new(0x009c, "AES128-GCM-SHA256", Key::RsaTransport, Version::TLS1_2),
    Suite::new(0x009d, "AES256-GCM-SHA384", Key::RsaTransport, Version::TLS1_2),
    Suite::new(0x003c, "AES128-SHA256", Key::RsaTransport, Version::TLS1_2),
    Suite::new(0x003d, "AES256-SHA256", Key::RsaTransport, Version::TLS1_2),
    Suite::new(0x002f, "AES128-SHA", Key::RsaTransport, Version::TLS1_0),
    Suite::new(0x0035, "AES256-SHA", Key::RsaTransport, Version::TLS1_0),
];

/// The groups that OpenSSL serves: X25519, P-256, P-384, P-521.
const OPENSSL_GROUPS: [u16; 4] = [29, 23, 24, 25];

/// [`OPENSSL_GROUPS`] as OpenSSL names them.
pub(super) const OPENSSL_GROUP_NAMES: &str = "X25519:P-256:P-384:P-521";

/// [`OPENSSL_SUITES`] as OpenSSL names them. Security level 0, because SHA-1 and MD5 in the handshake
/// are all that old clients have; what else that level would allow is not in the list.
pub(super) fn openssl_cipher_list() -> String {
    let names: Vec<&str> = OPENSSL_SUITES.iter().map(|it| it.name).collect();
    names.join(":") + ":@SECLEVEL=0"
}

struct Suite {
    number: u16,
    name: &'static str,
    key: Key,
    /// The oldest version that has it.
    from: Version,
}

impl Suite {
    const fn new(number: u16, name: &'static str, key: Key, from: Version) -> Suite {
        Suite {
            number,
            name,
            key,
            from,
        }
    }
}

/// What a suite needs the certificate's key for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    /// To sign, after an exchange on elliptic curves.
    Ecdsa,
    /// The same.
    Rsa,
    /// To decrypt the client's secret (static RSA).
    RsaTransport,
}

/// A certificate as the choice sees it.
pub(super) struct Candidate<'a> {
    /// The hosts that it is for, in lower case.
    pub names: &'a [String],
    /// Its key.
    pub key: &'a dyn SigningKey,
}

/// Who does the handshake, with the certificate of this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// rustls. Where it cannot, that is why, and what could be done about it.
    Rustls(usize, Option<Refusal>),
    /// OpenSSL, from this version on.
    OpenSsl(usize, Version),
    /// Nobody.
    Refuse(Refusal),
}

/// Why a client is not served, and what would serve it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It offers no version newer than this, which only the profile `legacy` serves.
    NeedsLegacy(Version),
    /// The same, and the profile is `legacy`, but not for its network.
    NotNamed(Version),
    /// It offers TLS 1.2, but only with suites that the profile `compat` serves.
    NeedsCompat,
    /// It offers nothing that any profile serves: SSL 3.0, or only RC4 and 3DES.
    Hopeless(Version),
}

impl Refusal {
    /// The profile that would serve the client.
    pub fn needs(self) -> Option<&'static str> {
        match self {
            Refusal::NeedsLegacy(_) | Refusal::NotNamed(_) => Some("legacy"),
            Refusal::NeedsCompat => Some("compat"),
            Refusal::Hopeless(_) => None,
        }
    }

    /// The newest version that the client offers.
    pub fn offered(self) -> Version {
        match self {
            Refusal::NeedsLegacy(it) | Refusal::NotNamed(it) | Refusal::Hopeless(it) => it,
            Refusal::NeedsCompat => Version::TLS1_2,
        }
    }

    /// The alert that says so to the client (RFC 8446 §6.2).
    pub(super) fn alert(self) -> u8 {
        match self {
            // protocol_version
            Refusal::NeedsLegacy(_) | Refusal::NotNamed(_) => 70,
            Refusal::Hopeless(version) if version < Version::TLS1_0 => 70,
            // handshake_failure
            Refusal::NeedsCompat | Refusal::Hopeless(_) => 40,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NeedsLegacy(version) => write!(
                f,
                "the client offers no TLS newer than {version}: update it, or set tls_profile = \"legacy\" for \
                 this listener and name the client in legacy_networks"
            ),
            Refusal::NotNamed(version) => write!(
                f,
                "the client offers no TLS newer than {version}, and is not in this listener's \
                 legacy_networks: update it, or name it there"
            ),
            Refusal::NeedsCompat => f.write_str(
                "the client offers TLS 1.2, but only with cipher suites of its early days (CBC or static RSA): \
                 update it, or set tls_profile = \"compat\" for this listener",
            ),
            Refusal::Hopeless(version) => write!(
                f,
                "the client offers {version}, with nothing that is still served: update it, or give it a \
                 listener without TLS on a network that can be trusted"
            ),
        }
    }
}

/// Who serves this client.
pub(super) fn choose(
    hello: &ClientHello,
    profile: TlsProfile,
    legacy_networks: &[IpNet],
    client: IpAddr,
    candidates: &[Candidate<'_>],
) -> Choice {
    let order = order(hello, candidates);
    let find = |serves: &dyn Fn(&dyn SigningKey) -> bool| {
        order.iter().copied().find(|at| serves(candidates[*at].key))
    };
    if let Some(at) = find(&|key| rustls_serves(hello, key)) {
        return Choice::Rustls(at, None);
    }
    let first = order.first().copied().unwrap_or(0);
    let openssl = find(&|key| openssl_serves(hello, key));
    let named = legacy_networks.iter().any(|it| it.contains(&client));
    match (profile, openssl) {
        _ if hello.version < Version::TLS1_0 => Choice::Refuse(Refusal::Hopeless(hello.version)),
        (TlsProfile::Legacy, Some(at)) if named => Choice::OpenSsl(at, Version::TLS1_0),
        (TlsProfile::Compat | TlsProfile::Legacy, Some(at)) if hello.version >= Version::TLS1_2 => {
            Choice::OpenSsl(at, Version::TLS1_2)
        }
        (TlsProfile::Legacy, Some(_)) => Choice::Refuse(Refusal::NotNamed(hello.version)),
        (_, Some(_)) if hello.version < Version::TLS1_2 => {
            Choice::Refuse(Refusal::NeedsLegacy(hello.version))
        }
        // rustls knows best what it can do.
        (_, Some(_)) => Choice::Rustls(first, Some(Refusal::NeedsCompat)),
        (_, None) if hello.version >= Version::TLS1_2 => {
            Choice::Rustls(first, Some(Refusal::Hopeless(hello.version)))
        }
        (_, None) => Choice::Refuse(Refusal::Hopeless(hello.version)),
    }
}

/// The certificates in the order in which they are tried: those for the host that the client names
/// before the others, elliptic curves before RSA, and then as configured. A client that names a host
/// that no certificate is for gets one all the same: many devices do not look.
fn order(hello: &ClientHello, candidates: &[Candidate<'_>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by_key(|at| {
        let candidate = &candidates[*at];
        let named = hello
            .server_name
            .as_deref()
            .is_some_and(|host| candidate.names.iter().any(|it| matches(it, host)));
        (!named, candidate.key.algorithm() == SignatureAlgorithm::RSA)
    });
    order
}

/// RFC 6125 §6.4.3: a wildcard stands for one whole label, the leftmost.
fn matches(name: &str, host: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(domain) => host.split_once('.').is_some_and(|(_, it)| it == domain),
        None => name == host,
    }
}

/// What rustls does a handshake with.
pub(super) static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));

/// Whether rustls finds a version, a suite, a group and a signature scheme with this key.
fn rustls_serves(hello: &ClientHello, key: &dyn SigningKey) -> bool {
    if hello.version < Version::TLS1_2 {
        return false;
    }
    let tls13 = hello.version >= Version::TLS1_3;
    let version = match tls13 {
        true => rustls::ProtocolVersion::TLSv1_3,
        false => rustls::ProtocolVersion::TLSv1_2,
    };
    let suite = PROVIDER.cipher_suites.iter().any(|suite| {
        suite.version().version == version
            && hello.suites.contains(&u16::from(suite.suite()))
            && match suite {
                SupportedCipherSuite::Tls13(_) => true,
                SupportedCipherSuite::Tls12(it) => key.choose_scheme(it.sign).is_some(),
            }
    });
    let group = hello.groups.iter().flatten().any(|offered| {
        PROVIDER
            .kx_groups
            .iter()
            .any(|it| u16::from(it.name()) == *offered && it.usable_for_version(version))
    });
    // Signatures with SHA-1 and, in TLS 1.3, with PKCS #1 padding are not for us to make
    // (RFC 8446 §4.2.3).
    let schemes: Vec<SignatureScheme> = hello
        .signature_schemes
        .iter()
        .flatten()
        .filter(|it| !tls13 || !matches!(**it, 0x0401 | 0x0501 | 0x0601))
        .map(|it| SignatureScheme::from(*it))
        .collect();
    suite && group && hello.uncompressed_points && key.choose_scheme(&schemes).is_some()
}

/// Whether OpenSSL finds a suite with this key, and a group where the suite needs one.
fn openssl_serves(hello: &ClientHello, key: &dyn SigningKey) -> bool {
    let group = hello.uncompressed_points
        && hello
            .groups
            .iter()
            .flatten()
            .any(|offered| OPENSSL_GROUPS.contains(offered));
    OPENSSL_SUITES.iter().any(|suite| {
        hello.suites.contains(&suite.number)
            && hello.version >= suite.from
            && match (suite.key, key.algorithm()) {
                (Key::Ecdsa, SignatureAlgorithm::ECDSA) | (Key::Rsa, SignatureAlgorithm::RSA) => group,
                (Key::RsaTransport, SignatureAlgorithm::RSA) => true,
                _ => false,
            }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kind: &str) -> Arc<dyn SigningKey> {
        let pair = match kind {
            "rsa" => rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048),
            _ => rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        };
        let der = rustls::pki_types::PrivatePkcs8KeyDer::from(pair.expect("a key").serialize_der());
        rustls::crypto::aws_lc_rs::sign::any_supported_type(&der.into()).expect("a key")
    }

    fn hello(version: Version, suites: &[u16]) -> ClientHello {
        let extensions = version >= Version::TLS1_2;
        ClientHello {
            version,
            suites: suites.to_vec(),
            groups: (extensions || suites.iter().any(|it| it >> 8 == 0xc0)).then(|| vec![29, 23]),
            signature_schemes: extensions.then(|| vec![0x0804, 0x0401, 0x0403, 0x0201]),
            uncompressed_points: true,
            server_name: None,
        }
    }

    #[test]
    fn who_serves_whom() {
        use Choice::{OpenSsl, Refuse, Rustls};
        use Refusal::{Hopeless, NeedsCompat, NeedsLegacy, NotNamed};
        use TlsProfile::{Compat, Legacy, Modern};
        let (rsa, ec) = (key("rsa"), key("ec"));
        let tls13 = hello(Version::TLS1_3, &[0x1301]);
        let aead_rsa = hello(Version::TLS1_2, &[0xc02f]);
        // What Windows Server 2012 R2 offers: AEAD with ECDSA alone.
        let schannel = hello(Version::TLS1_2, &[0xc02b, 0xc027, 0xc013, 0x3c, 0x2f]);
        let static_rsa = hello(Version::TLS1_2, &[0x2f]);
        let cbc_ecdsa = hello(Version::TLS1_2, &[0xc009]);
        let old = hello(Version::TLS1_0, &[0x2f, 0x0a]);
        let rc4 = hello(Version::TLS1_0, &[0x05, 0x0a]);
        let rc4_12 = hello(Version::TLS1_2, &[0x05]);
        let ssl3 = hello(Version(0x0300), &[0x2f]);
        let (v10, v12) = (Version::TLS1_0, Version::TLS1_2);
        let table = [
            // client, RSA alone, ECDSA alone, both (RSA first in the file); each modern, compat, legacy
            // for a network that is named and one that is not
            (
                &tls13,
                [[Rustls(0, None); 4], [Rustls(0, None); 4], [Rustls(1, None); 4]],
            ),
            (
                &aead_rsa,
                [
                    [Rustls(0, None); 4],
                    [Rustls(0, Some(Hopeless(v12))); 4],
                    [Rustls(0, None); 4],
                ],
            ),
            (
                &schannel,
                [
                    [
                        Rustls(0, Some(NeedsCompat)),
                        OpenSsl(0, v12),
                        OpenSsl(0, v10),
                        OpenSsl(0, v12),
                    ],
                    [Rustls(0, None); 4],
                    [Rustls(1, None); 4],
                ],
            ),
            (
                &static_rsa,
                [
                    [
                        Rustls(0, Some(NeedsCompat)),
                        OpenSsl(0, v12),
                        OpenSsl(0, v10),
                        OpenSsl(0, v12),
                    ],
                    [Rustls(0, Some(Hopeless(v12))); 4],
                    [
                        Rustls(1, Some(NeedsCompat)),
                        OpenSsl(0, v12),
                        OpenSsl(0, v10),
                        OpenSsl(0, v12),
                    ],
                ],
            ),
            (
                &cbc_ecdsa,
                [
                    [Rustls(0, Some(Hopeless(v12))); 4],
                    [
                        Rustls(0, Some(NeedsCompat)),
                        OpenSsl(0, v12),
                        OpenSsl(0, v10),
                        OpenSsl(0, v12),
                    ],
                    [
                        Rustls(1, Some(NeedsCompat)),
                        OpenSsl(1, v12),
                        OpenSsl(1, v10),
                        OpenSsl(1, v12),
                    ],
                ],
            ),
            (
                &old,
                [
                    [
                        Refuse(NeedsLegacy(v10)),
                        Refuse(NeedsLegacy(v10)),
                        OpenSsl(0, v10),
                        Refuse(NotNamed(v10)),
                    ],
                    [Refuse(Hopeless(v10)); 4],
                    [
                        Refuse(NeedsLegacy(v10)),
                        Refuse(NeedsLegacy(v10)),
                        OpenSsl(0, v10),
                        Refuse(NotNamed(v10)),
                    ],
                ],
            ),
            (&rc4, [[Refuse(Hopeless(v10)); 4]; 3]),
            (
                &rc4_12,
                [
                    [Rustls(0, Some(Hopeless(v12))); 4],
                    [Rustls(0, Some(Hopeless(v12))); 4],
                    [Rustls(1, Some(Hopeless(v12))); 4],
                ],
            ),
            (&ssl3, [[Refuse(Hopeless(Version(0x0300))); 4]; 3]),
        ];
        let networks: Vec<IpNet> = vec!["10.1.9.0/24".parse().expect("a network")];
        let (named, other) = (
            "10.1.9.7".parse().expect("an address"),
            "10.1.8.7".parse().expect("an address"),
        );
        let of = |key: &'static [&str]| -> Vec<&dyn SigningKey> {
            key.iter()
                .map(|it| if *it == "rsa" { &*rsa } else { &*ec })
                .collect()
        };
        for (hello, rows) in table {
            for (keys, row) in [of(&["rsa"]), of(&["ec"]), of(&["rsa", "ec"])].iter().zip(rows) {
                let candidates: Vec<_> = keys
                    .iter()
                    .map(|key| Candidate {
                        names: &[],
                        key: *key,
                    })
                    .collect();
                let choose = |profile, client| choose(hello, profile, &networks, client, &candidates);
                let got = [
                    choose(Modern, named),
                    choose(Compat, named),
                    choose(Legacy, named),
                    choose(Legacy, other),
                ];
                assert_eq!(got, row, "{hello:?} with {} certificates", keys.len());
            }
        }
    }

    /// What the key can do counts, not only what the suite is called.
    #[test]
    fn a_suite_alone_does_not_do() {
        let rsa = key("rsa");
        let good = hello(Version::TLS1_2, &[0xc02f, 0x2f]);
        assert!(rustls_serves(&good, &*rsa));
        let tls13 = hello(Version::TLS1_3, &[0x1301]);
        for bad in [
            ClientHello {
                groups: None,
                ..good.clone()
            },
            ClientHello {
                groups: Some(vec![25]),
                ..good.clone()
            },
            ClientHello {
                signature_schemes: None,
                ..good.clone()
            },
            ClientHello {
                signature_schemes: Some(vec![0x0201, 0x0403]),
                ..good.clone()
            },
            ClientHello {
                uncompressed_points: false,
                ..good.clone()
            },
            ClientHello {
                signature_schemes: Some(vec![0x0401]),
                ..tls13.clone()
            },
            ClientHello {
                version: Version::TLS1_3,
                ..good.clone()
            },
        ] {
            assert!(!rustls_serves(&bad, &*rsa), "{bad:?}");
        }
        let bad = ClientHello { groups: None, ..good };
        assert!(openssl_serves(&bad, &*rsa), "static RSA needs no group");
    }

    #[test]
    fn the_name_decides_then_the_key() {
        let (rsa, ec) = (key("rsa"), key("ec"));
        let (one, two) = (vec!["a.example".to_owned()], vec!["*.b.example".to_owned()]);
        let candidates = [
            Candidate {
                names: &one,
                key: &*rsa,
            },
            Candidate {
                names: &two,
                key: &*rsa,
            },
            Candidate {
                names: &two,
                key: &*ec,
            },
        ];
        for (name, want) in [
            (None, [2, 0, 1]),
            (Some("a.example"), [0, 2, 1]),
            (Some("relay.b.example"), [2, 1, 0]),
            (Some("b.example"), [2, 0, 1]),
            (Some("x.relay.b.example"), [2, 0, 1]),
        ] {
            let hello = ClientHello {
                server_name: name.map(str::to_owned),
                ..hello(Version::TLS1_3, &[0x1301])
            };
            assert_eq!(order(&hello, &candidates), want, "{name:?}");
        }
    }
}
