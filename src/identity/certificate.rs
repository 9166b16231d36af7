//! A certificate and its private key, from PFX, PEM or DER; thumbprints are computed, never asked
//! for. Pure: octets in, values out; the files are read by [`super::credential`].

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use openssl::error::ErrorStack;
use openssl::pkcs12::Pkcs12;
use openssl::pkey::{PKey, Private};
use openssl::provider::Provider;
use openssl::x509::X509;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::{Zeroize as _, Zeroizing};

/// The shortest RSA key that is taken, in bits. Entra ID asks for at least 2048.
pub const MIN_RSA_BITS: usize = 2048;
/// The longest RSA key that our cryptographic library signs with, in bits.
pub const MAX_RSA_BITS: usize = 8192;

/// OpenSSL copies a password into a buffer of 1024 octets.
const MAX_PASSWORD_OCTETS: usize = 1000;

/// A certificate and what matters of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The certificate itself.
    pub der: Vec<u8>,
    /// Its subject, such as `CN=graphpost`.
    pub subject: String,
    /// Who issued it.
    pub issuer: String,
    /// The first instant at which it is valid.
    pub not_before: Timestamp,
    /// The last instant at which it is valid.
    pub not_after: Timestamp,
    /// The kind of its key.
    pub key: KeyKind,
}

/// The kind of a public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA with the plain `rsaEncryption` identifier.
    Rsa {
        /// The length of its modulus.
        bits: usize,
    },
    /// An elliptic curve.
    Ec {
        /// The curve's name, or its object identifier where it has no well-known name.
        curve: String,
    },
    /// Ed25519.
    Ed25519,
    /// Anything else, by its object identifier.
    Other(String),
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyKind::Rsa { bits } => write!(f, "RSA, {bits} bits"),
            KeyKind::Ec { curve } => write!(f, "elliptic curve {curve}"),
            KeyKind::Ed25519 => f.write_str("Ed25519"),
            KeyKind::Other(oid) => write!(f, "key type {oid}"),
        }
    }
}

impl Certificate {
    /// Reads one certificate in DER.
    ///
    /// # Errors
    /// [`CertificateError::NotACertificate`] where it is none.
    pub fn from_der(der: &[u8]) -> Result<Certificate, CertificateError> {
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|_| CertificateError::NotACertificate)?;
        let der = &der[..der.len() - rest.len()];
        let validity = parsed.validity();
        Ok(Certificate {
            der: der.to_vec(),
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            not_before: timestamp(validity.not_before.timestamp()),
            not_after: timestamp(validity.not_after.timestamp()),
            key: key_kind(&parsed),
        })
    }

    /// Reads the first certificate of a PEM, DER (`.cer`, `.crt`) or PFX file; for showing it.
    ///
    /// A PFX is opened with its key, so that its certificate, and not one of its issuers, is shown.
    ///
    /// # Errors
    /// [`CertificateError`] says what is wrong with the file.
    pub fn from_file_content(
        content: &[u8],
        password: Option<&str>,
    ) -> Result<Certificate, CertificateError> {
        let found = Found::read(content, password)?;
        match found.certificate_of_key() {
            Ok(certificate) => Ok(certificate),
            // Without a key the first certificate is meant; its issuers follow it (RFC 8446 §4.4.2).
            Err(CertificateError::NoKey) => {
                let first = found
                    .certificates
                    .first()
                    .ok_or(CertificateError::NoCertificate)?;
                Certificate::from_der(first)
            }
            Err(error) => Err(error),
        }
    }

    /// The SHA-1 thumbprint as the Entra admin centre and Windows show it: upper case, no colons.
    pub fn sha1_thumbprint(&self) -> String {
        hex(&self.sha1())
    }

    /// The SHA-256 thumbprint, upper case, no colons.
    pub fn sha256_thumbprint(&self) -> String {
        hex(&self.sha256())
    }

    /// The `x5t` header of a JWT (RFC 7515 §4.1.7).
    pub fn x5t(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.sha1())
    }

    /// The `x5t#S256` header of a JWT (RFC 7515 §4.1.8).
    pub fn x5t_s256(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.sha256())
    }

    /// `customKeyIdentifier` of a `keyCredential`: the SHA-1 thumbprint in plain base64.
    pub fn custom_key_identifier(&self) -> String {
        STANDARD.encode(self.sha1())
    }

    /// The certificate as PEM (RFC 7468).
    pub fn to_pem(&self) -> String {
        let base64 = STANDARD.encode(&self.der);
        let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
        let mut rest = base64.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(64));
            pem.push_str(line);
            pem.push('\n');
            rest = after;
        }
        pem.push_str("-----END CERTIFICATE-----\n");
        pem
    }

    /// Checks that it is valid at `now`.
    ///
    /// # Errors
    /// [`CertificateError::Expired`] or [`CertificateError::NotYetValid`].
    pub fn check_validity(&self, now: Timestamp) -> Result<(), CertificateError> {
        if now > self.not_after {
            return Err(CertificateError::Expired {
                not_after: self.not_after,
            });
        }
        if now < self.not_before {
            return Err(CertificateError::NotYetValid {
                not_before: self.not_before,
            });
        }
        Ok(())
    }

    /// Checks that Entra ID takes the key: RSA only, of at least 2048 bits.
    ///
    /// # Errors
    /// [`CertificateError`] names what Entra ID would refuse.
    pub fn check_for_entra(&self) -> Result<(), CertificateError> {
        match &self.key {
            KeyKind::Ec { curve } => Err(CertificateError::EllipticCurve(curve.clone())),
            KeyKind::Ed25519 | KeyKind::Other(_) => Err(CertificateError::KeyType(self.key.clone())),
            KeyKind::Rsa { bits } => check_rsa(*bits),
        }
    }

    /// Whole days until it expires; negative where it has.
    pub fn days_left(&self, now: Timestamp) -> i64 {
        super::expiry::days_left(now, self.not_after)
    }

    fn sha1(&self) -> Vec<u8> {
        digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &self.der)
    }

    fn sha256(&self) -> Vec<u8> {
        digest(&aws_lc_rs::digest::SHA256, &self.der)
    }
}

/// A private key in PKCS#8, wiped when it is dropped. It can be used but not shown.
#[derive(Clone)]
pub struct PrivateKey(Zeroizing<Vec<u8>>);

impl PrivateKey {
    /// The key in PKCS#8 DER (RFC 5958). Never log it.
    pub fn pkcs8(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// A certificate, the certificates of its issuers, and its private key. The key fits the
/// certificate: making one is the check.
#[derive(Clone, Debug)]
pub struct KeyPair {
    /// The certificate of the key.
    pub certificate: Certificate,
    /// Its issuers, each after the one it issued, in DER; then whatever else the file had.
    pub chain: Vec<Vec<u8>>,
    /// The private key.
    pub key: PrivateKey,
}

impl KeyPair {
    /// Opens a certificate with its key: a PFX, or a PEM with both, or a certificate in PEM or DER
    /// with the key in a second file.
    ///
    /// # Errors
    /// [`CertificateError`] says what is wrong, and about which of the two files.
    pub fn open(
        certificate: &[u8],
        private_key: Option<&[u8]>,
        password: Option<&str>,
    ) -> Result<KeyPair, OpenError> {
        let mut found = Found::read(certificate, password).map_err(OpenError::Certificate)?;
        if found.certificates.is_empty() {
            return Err(OpenError::Certificate(CertificateError::NoCertificate));
        }
        if let Some(content) = private_key {
            let file = Found::read(content, password).map_err(OpenError::PrivateKey)?;
            let key = file.key.ok_or(OpenError::PrivateKey(CertificateError::NoKey))?;
            found.key = Some(key);
        }
        let certificate = found.certificate_of_key().map_err(match private_key {
            Some(_) => OpenError::PrivateKey,
            None => OpenError::Certificate,
        })?;
        let key = found
            .key
            .as_ref()
            .ok_or(OpenError::Certificate(CertificateError::NoKey))?;
        let pkcs8 = key
            .private_key_to_pkcs8()
            .map_err(|error| OpenError::Certificate(CertificateError::Damaged(words(&error))))?;
        Ok(KeyPair {
            chain: chain(&certificate, found.certificates),
            certificate,
            key: PrivateKey(Zeroizing::new(pkcs8)),
        })
    }

    /// Checks that Entra ID takes the key.
    ///
    /// # Errors
    /// As [`Certificate::check_for_entra`].
    pub fn check_for_entra(&self) -> Result<(), CertificateError> {
        self.certificate.check_for_entra()
    }

    /// Checks that a TLS listener can use the key: RSA of at least 2048 bits, P-256, P-384, P-521 or
    /// Ed25519.
    ///
    /// # Errors
    /// [`CertificateError`] names what is not supported.
    pub fn check_for_tls(&self) -> Result<(), CertificateError> {
        match &self.certificate.key {
            KeyKind::Rsa { bits } => check_rsa(*bits),
            KeyKind::Ec { curve } if matches!(curve.as_str(), "P-256" | "P-384" | "P-521") => Ok(()),
            KeyKind::Ed25519 => Ok(()),
            other => Err(CertificateError::KeyType(other.clone())),
        }
    }

    /// What a TLS server presents. Unlike `ServerConfig::with_single_cert` this takes certificates of
    /// version 1, which old authorities still issue: that key and certificate belong together is
    /// known already.
    ///
    /// # Errors
    /// [`CertificateError::KeyType`] for a key that [`KeyPair::check_for_tls`] refuses.
    pub fn certified_key(&self) -> Result<CertifiedKey, CertificateError> {
        let key = any_supported_type(&self.tls_key())
            .map_err(|_| CertificateError::KeyType(self.certificate.key.clone()))?;
        Ok(CertifiedKey::new(self.tls_chain(), key))
    }

    /// The certificate, then its issuers, as rustls takes them.
    pub fn tls_chain(&self) -> Vec<CertificateDer<'static>> {
        std::iter::once(&self.certificate.der)
            .chain(&self.chain)
            .map(|der| CertificateDer::from(der.clone()))
            .collect()
    }

    /// The key as rustls takes it.
    pub fn tls_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.pkcs8().to_vec()))
    }
}

fn check_rsa(bits: usize) -> Result<(), CertificateError> {
    if bits < MIN_RSA_BITS {
        return Err(CertificateError::WeakKey { bits });
    }
    if bits > MAX_RSA_BITS {
        return Err(CertificateError::KeyType(KeyKind::Rsa { bits }));
    }
    Ok(())
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (OpenError::Certificate(error) | OpenError::PrivateKey(error)) = self;
        error.fmt(f)
    }
}

/// Which of the two files is at fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The one named by `certificate`.
    Certificate(CertificateError),
    /// The one named by `private_key`.
    PrivateKey(CertificateError),
}

/// Everything that can be wrong with a certificate and its key. The text of each says what to do;
/// none ever contains a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateError {
    /// Neither PFX nor PEM nor DER.
    NotACertificate,
    /// A PEM file without a certificate in it.
    NoCertificate,
    /// No private key, in either file.
    NoKey,
    /// Encrypted, and no password is configured.
    PasswordNeeded,
    /// Encrypted with another password.
    WrongPassword,
    /// Encrypted in a way that cannot be undone here.
    Encryption(String),
    /// The key belongs to no certificate of the file.
    Mismatch,
    /// An elliptic curve key, which Entra ID does not take.
    EllipticCurve(String),
    /// A key of a kind or length that is not supported.
    KeyType(KeyKind),
    /// An RSA key that is too short.
    WeakKey {
        /// Its length.
        bits: usize,
    },
    /// No longer valid.
    Expired {
        /// The last instant at which it was.
        not_after: Timestamp,
    },
    /// Not valid yet.
    NotYetValid {
        /// The first instant at which it will be.
        not_before: Timestamp,
    },
    /// It begins as it should but cannot be read to the end.
    Damaged(String),
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CertificateError::NotACertificate => f.write_str(
                "neither a PFX nor a PEM nor a DER file; export the certificate again, as .pfx or .pem",
            ),
            CertificateError::NoCertificate => f.write_str(
                "has no certificate in it; append the certificate in PEM, or name the file that has it",
            ),
            CertificateError::NoKey => f.write_str(
                "has no private key in it; name the key file with private_key, or export the certificate \
                 again together with its private key",
            ),
            CertificateError::PasswordNeeded => {
                f.write_str("is protected by a password; give it with password_file")
            }
            CertificateError::WrongPassword => {
                f.write_str("does not open with the configured password; check password_file")
            }
            CertificateError::Encryption(what) => write!(
                f,
                "is encrypted in a way that is not supported ({what}); export it again with AES-256"
            ),
            CertificateError::Mismatch => f.write_str(
                "the private key does not belong to the certificate; use the key from which the certificate \
                 was requested",
            ),
            CertificateError::EllipticCurve(curve) => write!(
                f,
                "has an elliptic curve key ({curve}); Entra ID takes only RSA for client assertions: make one \
                 with 'graphpost cert new'"
            ),
            CertificateError::KeyType(kind) => write!(
                f,
                "has a key that is not supported ({kind}); make one with 'graphpost cert new'"
            ),
            CertificateError::WeakKey { bits } => write!(
                f,
                "has an RSA key of {bits} bits; at least {MIN_RSA_BITS} are needed: make one with 'graphpost \
                 cert new'"
            ),
            CertificateError::Expired { not_after } => write!(
                f,
                "expired on {not_after}; make a new one with 'graphpost cert new' and upload it to the \
                 application"
            ),
            CertificateError::NotYetValid { not_before } => write!(
                f,
                "is not valid before {not_before}; check this machine's clock, or wait"
            ),
            CertificateError::Damaged(what) => {
                write!(f, "is damaged ({what}); export or copy it again")
            }
        }
    }
}

impl std::error::Error for CertificateError {}

/// What a file had in it.
struct Found {
    /// In the order of the file, in DER.
    certificates: Vec<Vec<u8>>,
    key: Option<PKey<Private>>,
}

impl Found {
    fn read(content: &[u8], password: Option<&str>) -> Result<Found, CertificateError> {
        // Neither a C string nor OpenSSL's buffer could hold it, so it cannot be the right one.
        if password.is_some_and(|it| it.len() > MAX_PASSWORD_OCTETS || it.contains('\0')) {
            return Err(CertificateError::WrongPassword);
        }
        let text = pem_text(content);
        if find(&text, b"-----BEGIN ").is_some() {
            return Found::read_pem(&text, password);
        }
        if let Ok(certificate) = Certificate::from_der(content) {
            return Ok(Found {
                certificates: vec![certificate.der],
                key: None,
            });
        }
        if let Ok(pfx) = Pkcs12::from_der(content) {
            return Found::read_pfx(&pfx, password);
        }
        let key = match PKey::private_key_from_der(content) {
            Ok(key) => key,
            Err(_) => read_key(password, |it| {
                PKey::private_key_from_pkcs8_passphrase(content, it)
            })
            .map_err(|error| match error {
                // A file of which nothing was understood has no password to be wrong.
                KeyError::Asn1 => CertificateError::NotACertificate,
                KeyError::Other(error) => error,
            })?,
        };
        Ok(Found {
            certificates: Vec::new(),
            key: Some(key),
        })
    }

    fn read_pem(text: &[u8], password: Option<&str>) -> Result<Found, CertificateError> {
        let mut found = Found {
            certificates: Vec::new(),
            key: None,
        };
        for section in pem_sections(text) {
            match section.label {
                b"CERTIFICATE" | b"X509 CERTIFICATE" | b"TRUSTED CERTIFICATE" => {
                    let certificate = X509::from_pem(section.pem)
                        .and_then(|it| it.to_der())
                        .map_err(|error| CertificateError::Damaged(words(&error)))?;
                    found.certificates.push(certificate);
                }
                label if label.ends_with(b"PRIVATE KEY") && found.key.is_none() => {
                    let encrypted = label.starts_with(b"ENCRYPTED")
                        || find(section.pem, b"Proc-Type: 4,ENCRYPTED").is_some();
                    let password = if encrypted { password } else { Some("") };
                    let key = read_key(password, |it| {
                        PKey::private_key_from_pem_passphrase(section.pem, it)
                    })
                    .map_err(|error| match error {
                        KeyError::Other(CertificateError::WrongPassword) | KeyError::Asn1 if !encrypted => {
                            CertificateError::Damaged("the private key cannot be read".to_owned())
                        }
                        // A wrong password now and then leaves plausible padding and senseless octets.
                        KeyError::Asn1 => CertificateError::WrongPassword,
                        KeyError::Other(error) => error,
                    })?;
                    found.key = Some(key);
                }
                // Parameters, requests and public keys that tools put beside.
                _ => {}
            }
        }
        Ok(found)
    }

    fn read_pfx(pfx: &Pkcs12, password: Option<&str>) -> Result<Found, CertificateError> {
        let parsed = with_legacy(|| pfx.parse2(password.unwrap_or_default())).map_err(|error| {
            match reasons(&error) {
                it if it.wrong_password => wrong_password(password),
                it if it.unsupported => CertificateError::Encryption(words(&error)),
                // Without a MAC only the decryption tells that the password was wrong.
                _ => CertificateError::Damaged(words(&error)),
            }
        })?;
        let others = parsed.ca.into_iter().flatten();
        let certificates = parsed
            .cert
            .into_iter()
            .chain(others)
            .map(|it| it.to_der())
            .collect::<Result<Vec<_>, ErrorStack>>()
            .map_err(|error| CertificateError::Damaged(words(&error)))?;
        Ok(Found {
            certificates,
            key: parsed.pkey,
        })
    }

    /// The certificate that the key belongs to.
    fn certificate_of_key(&self) -> Result<Certificate, CertificateError> {
        let key = self.key.as_ref().ok_or(CertificateError::NoKey)?;
        if self.certificates.is_empty() {
            return Err(CertificateError::NoCertificate);
        }
        let fits = |der: &&Vec<u8>| {
            X509::from_der(der)
                .and_then(|it| it.public_key())
                .is_ok_and(|it| it.public_eq(key))
        };
        let der = self
            .certificates
            .iter()
            .find(fits)
            .ok_or(CertificateError::Mismatch)?;
        Certificate::from_der(der)
    }
}

/// Orders the other certificates as TLS wants them (RFC 8446 §4.4.2): each certifies the one before.
fn chain(certificate: &Certificate, mut others: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    others.retain(|it| *it != certificate.der);
    let mut ordered = Vec::with_capacity(others.len());
    let mut issuer = certificate.issuer.clone();
    while let Some(at) = others
        .iter()
        .position(|it| Certificate::from_der(it).is_ok_and(|it| it.subject == issuer))
    {
        let next = others.remove(at);
        if let Ok(parsed) = Certificate::from_der(&next) {
            issuer = parsed.issuer;
        }
        ordered.push(next);
    }
    ordered.append(&mut others);
    ordered
}

enum KeyError {
    /// The octets, as they are or once decrypted, are no key.
    Asn1,
    Other(CertificateError),
}

fn read_key(
    password: Option<&str>,
    read: impl Fn(&[u8]) -> Result<PKey<Private>, ErrorStack>,
) -> Result<PKey<Private>, KeyError> {
    with_legacy(|| read(password.unwrap_or_default().as_bytes())).map_err(|error| match reasons(&error) {
        it if it.wrong_password => KeyError::Other(wrong_password(password)),
        it if it.asn1 => KeyError::Asn1,
        it if it.unsupported => KeyError::Other(CertificateError::Encryption(words(&error))),
        _ => KeyError::Other(CertificateError::Damaged(words(&error))),
    })
}

fn wrong_password(password: Option<&str>) -> CertificateError {
    match password {
        None => CertificateError::PasswordNeeded,
        Some(_) => CertificateError::WrongPassword,
    }
}

/// Old exports are encrypted with RC2 (Windows before Server 2019, `openssl pkcs12 -legacy`) or DES,
/// which OpenSSL 3 keeps in its legacy provider. It is there only for this one reading.
fn with_legacy<T>(read: impl Fn() -> Result<T, ErrorStack>) -> Result<T, ErrorStack> {
    match read() {
        Err(error) if reasons(&error).unsupported => {
            let _legacy = Provider::try_load(None, "legacy", true)?;
            read()
        }
        result => result,
    }
}

struct Reasons {
    wrong_password: bool,
    unsupported: bool,
    asn1: bool,
}

fn reasons(error: &ErrorStack) -> Reasons {
    let any = |texts: &[&str]| {
        error
            .errors()
            .iter()
            .any(|it| it.reason().is_some_and(|reason| texts.contains(&reason)))
    };
    Reasons {
        wrong_password: any(&[
            "mac verify failure",
            "bad decrypt",
            "bad password read",
            "pkcs12 cipherfinal error",
            "wrong final block length",
        ]),
        unsupported: any(&["unsupported", "unsupported algorithm", "unsupported encryption"]),
        asn1: error.errors().iter().any(|it| {
            it.library()
                .is_some_and(|it| it.starts_with("asn1 encoding") || it.starts_with("DECODER"))
        }),
    }
}

/// OpenSSL's reason in its own words, without the file names of its source.
fn words(error: &ErrorStack) -> String {
    let mut reasons: Vec<&str> = error.errors().iter().filter_map(|it| it.reason()).collect();
    reasons.dedup();
    if reasons.is_empty() {
        return "unreadable".to_owned();
    }
    reasons.join(", ")
}

struct PemSection<'a> {
    label: &'a [u8],
    /// From BEGIN to END, both included.
    pem: &'a [u8],
}

/// The sections of a PEM file; text around them ("Bag Attributes") is skipped (RFC 7468 §2).
fn pem_sections(text: &[u8]) -> Vec<PemSection<'_>> {
    let mut sections = Vec::new();
    let mut rest = text;
    while let Some(begin) = find(rest, b"-----BEGIN ") {
        rest = &rest[begin..];
        let label = &rest[b"-----BEGIN ".len()..];
        let Some(length) = find(label, b"-----") else {
            break;
        };
        let label = &label[..length];
        let end_line = [b"-----END ".as_slice(), label, b"-----"].concat();
        let Some(end) = find(rest, &end_line) else {
            // No end: what follows may still be whole.
            rest = &rest[b"-----BEGIN ".len()..];
            continue;
        };
        let (pem, after) = rest.split_at(end + end_line.len());
        sections.push(PemSection { label, pem });
        rest = after;
    }
    sections
}

/// Windows PowerShell's `Out-File` writes UTF-16; everything else is ASCII already.
fn pem_text(content: &[u8]) -> Zeroizing<Vec<u8>> {
    let units = |unit: fn([u8; 2]) -> u16| {
        let (pairs, _) = content[2..].as_chunks::<2>();
        let mut units: Vec<u16> = pairs.iter().map(|it| unit(*it)).collect();
        let mut text = String::from_utf16_lossy(&units);
        units.zeroize();
        let bytes = Zeroizing::new(text.as_bytes().to_vec());
        text.zeroize();
        bytes
    };
    match content {
        [0xff, 0xfe, ..] => units(u16::from_le_bytes),
        [0xfe, 0xff, ..] => units(u16::from_be_bytes),
        _ => Zeroizing::new(content.to_vec()),
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|it| it == needle)
}

fn key_kind(certificate: &X509Certificate<'_>) -> KeyKind {
    use x509_parser::oid_registry as oid;
    let spki = certificate.public_key();
    let algorithm = &spki.algorithm.algorithm;
    if *algorithm == oid::OID_PKCS1_RSAENCRYPTION {
        return match spki.parsed() {
            Ok(x509_parser::public_key::PublicKey::RSA(rsa)) => KeyKind::Rsa {
                bits: modulus_bits(rsa.modulus),
            },
            _ => KeyKind::Other(algorithm.to_id_string()),
        };
    }
    if *algorithm == oid::OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = spki.algorithm.parameters.as_ref().and_then(|it| it.as_oid().ok());
        let curve = match curve {
            Some(it) if it == oid::OID_EC_P256 => "P-256".to_owned(),
            Some(it) if it == oid::OID_NIST_EC_P384 => "P-384".to_owned(),
            Some(it) if it == oid::OID_NIST_EC_P521 => "P-521".to_owned(),
            Some(it) => it.to_id_string(),
            None => "with explicit parameters".to_owned(),
        };
        return KeyKind::Ec { curve };
    }
    if *algorithm == oid::OID_SIG_ED25519 {
        return KeyKind::Ed25519;
    }
    KeyKind::Other(algorithm.to_id_string())
}

fn modulus_bits(modulus: &[u8]) -> usize {
    let first = modulus.iter().position(|&it| it != 0).unwrap_or(modulus.len());
    match modulus[first..] {
        [] => 0,
        [top, ..] => (modulus.len() - first) * 8 - top.leading_zeros() as usize,
    }
}

/// "No expiry" is written as the last second of the year 9999 (RFC 5280 §4.1.2.5), which is past the
/// last instant that [`Timestamp`] knows.
fn timestamp(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap_or(if second < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    })
}

fn digest(algorithm: &'static aws_lc_rs::digest::Algorithm, content: &[u8]) -> Vec<u8> {
    aws_lc_rs::digest::digest(algorithm, content).as_ref().to_vec()
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|it| format!("{it:02X}")).collect()
}
