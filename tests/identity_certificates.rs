//! Certificates and keys in every form that tools have written them, and everything that is refused.
//! The files are made by `credentials/make.sh`; what they must yield is what openssl computes.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use graphpost::config::{AssertionAlgorithm, Credential};
use graphpost::identity::assertion::{Claims, Signer};
use graphpost::identity::certificate::{Certificate, CertificateError, KeyKind};
use graphpost::identity::credential::{CredentialError, open_for_entra, open_for_tls, read_certificate};
use jiff::Timestamp;
use openssl::hash::MessageDigest;
use openssl::rsa::Padding;
use openssl::sign::{RsaPssSaltlen, Verifier};
use openssl::x509::X509;
use secrecy::SecretString;

const PASSWORD: &str = "secret";
const UTF8_PASSWORD: &str = "pässwörd-密碼";

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/credentials")
        .join(name)
}

fn credential(certificate: &str, private_key: Option<&str>, password: Option<&str>) -> Credential {
    Credential {
        certificate: file(certificate),
        private_key: private_key.map(file),
        password: password.map(SecretString::from),
    }
}

/// What openssl says about `app.cer`.
fn values() -> BTreeMap<String, String> {
    std::fs::read_to_string(file("values.txt"))
        .unwrap()
        .lines()
        .map(|it| it.split_once('=').unwrap())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// certificate, private_key, password
type Named = (&'static str, Option<&'static str>, Option<&'static str>);

/// Everything that opens and has the key of `app.cer`.
const OPENS: &[Named] = &[
    ("aes256-sha256.pfx", None, Some(PASSWORD)),
    ("aes256-sha512-mac.pfx", None, Some(PASSWORD)),
    ("aes256-sha1-mac.pfx", None, Some(PASSWORD)),
    ("aes128.pfx", None, Some(PASSWORD)),
    ("aes256-600000-rounds.pfx", None, Some(PASSWORD)),
    ("windows-aes256-sha256.pfx", None, Some(PASSWORD)),
    ("windows-tripledes-sha1.pfx", None, Some(PASSWORD)),
    ("legacy-rc2-40.pfx", None, Some(PASSWORD)),
    ("legacy-rc2-128.pfx", None, Some(PASSWORD)),
    ("legacy-rc4-128.pfx", None, Some(PASSWORD)),
    ("plain-certificate.pfx", None, Some(PASSWORD)),
    ("no-mac.pfx", None, Some(PASSWORD)),
    ("chain.pfx", None, Some(PASSWORD)),
    ("utf8-password.pfx", None, Some(UTF8_PASSWORD)),
    ("utf8-password-legacy.pfx", None, Some(UTF8_PASSWORD)),
    ("empty-password.pfx", None, None),
    ("empty-password.pfx", None, Some("")),
    ("empty-password-legacy.pfx", None, None),
    ("no-encryption.pfx", None, None),
    ("both.pem", None, None),
    ("both.pem", None, Some("not needed")),
    ("key-first.pem", None, None),
    ("full-chain.pem", None, None),
    ("chain-backwards.pem", None, None),
    ("both-encrypted.pem", None, Some(PASSWORD)),
    ("bag-attributes.pem", None, None),
    ("utf-16.pem", None, None),
    ("bom-and-crlf.pem", None, None),
    ("app.pem", Some("app.key"), None),
    ("app.cer", Some("app.key"), None),
    ("app.cer", Some("both.pem"), None),
    ("app.pem", Some("pkcs1.key"), None),
    ("app.pem", Some("pkcs1-des3.key"), Some(PASSWORD)),
    ("app.pem", Some("pkcs1-aes128.key"), Some(PASSWORD)),
    ("app.pem", Some("pkcs1-des.key"), Some(PASSWORD)),
    ("app.pem", Some("pkcs8-aes256.key"), Some(PASSWORD)),
    ("app.pem", Some("pkcs8-scrypt.key"), Some(PASSWORD)),
    ("app.pem", Some("pkcs8-3des.key"), Some(PASSWORD)),
    ("app.pem", Some("pkcs8-rc2.key"), Some(PASSWORD)),
    ("app.pem", Some("pkcs8-md5-des.key"), Some(PASSWORD)),
    ("app.pem", Some("pkcs1.der"), None),
    ("app.cer", Some("pkcs8.der"), None),
    ("app.cer", Some("pkcs8-encrypted.der"), Some(PASSWORD)),
    // The certificate of the key is found among the others, wherever it stands.
    ("no-key.pfx", Some("app.key"), Some(PASSWORD)),
];

#[test]
fn every_form_yields_the_same_certificate_and_key() {
    let der = STANDARD.decode(&values()["der"]).unwrap();
    let key = openssl::pkey::PKey::private_key_from_pem(&std::fs::read(file("app.key")).unwrap()).unwrap();
    for (certificate, private_key, password) in OPENS {
        let named = format!("{certificate} {private_key:?} {password:?}");
        let pair = open_for_entra(&credential(certificate, *private_key, *password))
            .unwrap_or_else(|error| panic!("{named}: {error}"));
        assert_eq!(pair.certificate.der, der, "{named}");
        let opened = openssl::pkey::PKey::private_key_from_pkcs8(pair.key.pkcs8()).unwrap();
        assert!(opened.public_eq(&key), "{named}");
    }
}

/// Everything that does not, and why. None of the texts may show the password.
#[test]
fn what_is_refused_has_a_text_of_its_own() {
    use CertificateError::*;
    let strange = Some("not the password");
    let rows: &[(Named, &str, CertificateError)] = &[
        (
            ("aes256-sha256.pfx", None, strange),
            "aes256-sha256.pfx",
            WrongPassword,
        ),
        (
            ("aes256-sha256.pfx", None, Some("")),
            "aes256-sha256.pfx",
            WrongPassword,
        ),
        (
            ("aes256-sha256.pfx", None, None),
            "aes256-sha256.pfx",
            PasswordNeeded,
        ),
        (
            ("aes256-sha256.pfx", None, Some("a\0b")),
            "aes256-sha256.pfx",
            WrongPassword,
        ),
        (
            ("legacy-rc2-40.pfx", None, strange),
            "legacy-rc2-40.pfx",
            WrongPassword,
        ),
        (
            ("legacy-rc2-40.pfx", None, None),
            "legacy-rc2-40.pfx",
            PasswordNeeded,
        ),
        (
            ("legacy-rc2-128.pfx", None, strange),
            "legacy-rc2-128.pfx",
            WrongPassword,
        ),
        (
            ("legacy-rc4-128.pfx", None, strange),
            "legacy-rc4-128.pfx",
            WrongPassword,
        ),
        (
            ("windows-tripledes-sha1.pfx", None, strange),
            "windows-tripledes-sha1.pfx",
            WrongPassword,
        ),
        (
            ("windows-aes256-sha256.pfx", None, strange),
            "windows-aes256-sha256.pfx",
            WrongPassword,
        ),
        (
            ("aes256-600000-rounds.pfx", None, strange),
            "aes256-600000-rounds.pfx",
            WrongPassword,
        ),
        (
            ("plain-certificate.pfx", None, strange),
            "plain-certificate.pfx",
            WrongPassword,
        ),
        (
            ("utf8-password.pfx", None, strange),
            "utf8-password.pfx",
            WrongPassword,
        ),
        (
            ("empty-password.pfx", None, strange),
            "empty-password.pfx",
            WrongPassword,
        ),
        (("no-mac.pfx", None, strange), "no-mac.pfx", WrongPassword),
        (("no-mac.pfx", None, None), "no-mac.pfx", PasswordNeeded),
        (
            ("both-encrypted.pem", None, strange),
            "both-encrypted.pem",
            WrongPassword,
        ),
        (
            ("both-encrypted.pem", None, None),
            "both-encrypted.pem",
            PasswordNeeded,
        ),
        (
            ("app.pem", Some("pkcs1-des3.key"), strange),
            "pkcs1-des3.key",
            WrongPassword,
        ),
        (
            ("app.pem", Some("pkcs1-des3.key"), None),
            "pkcs1-des3.key",
            PasswordNeeded,
        ),
        (
            ("app.pem", Some("pkcs1-aes128.key"), strange),
            "pkcs1-aes128.key",
            WrongPassword,
        ),
        (
            ("app.pem", Some("pkcs1-des.key"), strange),
            "pkcs1-des.key",
            WrongPassword,
        ),
        (
            ("app.pem", Some("pkcs8-aes256.key"), strange),
            "pkcs8-aes256.key",
            WrongPassword,
        ),
        (
            ("app.pem", Some("pkcs8-scrypt.key"), strange),
            "pkcs8-scrypt.key",
            WrongPassword,
        ),
        (
            ("app.pem", Some("pkcs8-3des.key"), strange),
            "pkcs8-3des.key",
            WrongPassword,
        ),
        (
            ("app.pem", Some("pkcs8-rc2.key"), strange),
            "pkcs8-rc2.key",
            WrongPassword,
        ),
        (
            ("app.pem", Some("pkcs8-md5-des.key"), strange),
            "pkcs8-md5-des.key",
            WrongPassword,
        ),
        (
            ("app.pem", Some("pkcs8-encrypted.der"), strange),
            "pkcs8-encrypted.der",
            WrongPassword,
        ),
        (
            ("app.pem", Some("pkcs8-encrypted.der"), None),
            "pkcs8-encrypted.der",
            PasswordNeeded,
        ),
        (("app.pem", None, None), "app.pem", NoKey),
        (("app.cer", None, None), "app.cer", NoKey),
        (("no-key.pfx", None, Some(PASSWORD)), "no-key.pfx", NoKey),
        (("app.pem", Some("app.pem"), None), "app.pem", NoKey),
        (("app.key", None, None), "app.key", NoCertificate),
        (("app.key", Some("app.key"), None), "app.key", NoCertificate),
        (("app.pem", Some("other.key"), None), "other.key", Mismatch),
        (("issuing.pem", Some("app.key"), None), "app.key", Mismatch),
        (
            ("aes256-sha256.pfx", Some("other.key"), Some(PASSWORD)),
            "other.key",
            Mismatch,
        ),
        (
            ("ec.pem", None, None),
            "ec.pem",
            EllipticCurve("P-256".to_owned()),
        ),
        (
            ("ec.pfx", None, Some(PASSWORD)),
            "ec.pfx",
            EllipticCurve("P-256".to_owned()),
        ),
        (
            ("ec.pem", Some("ec-sec1.key"), None),
            "ec.pem",
            EllipticCurve("P-256".to_owned()),
        ),
        (
            ("ed25519.pem", None, None),
            "ed25519.pem",
            KeyType(KeyKind::Ed25519),
        ),
        (
            ("rsa-pss.pem", None, None),
            "rsa-pss.pem",
            KeyType(KeyKind::Other("1.2.840.113549.1.1.10".to_owned())),
        ),
        (("weak.pem", None, None), "weak.pem", WeakKey { bits: 1024 }),
        (("text.crt", None, None), "text.crt", NotACertificate),
        (("empty.crt", None, None), "empty.crt", NotACertificate),
        (("zeros.crt", None, None), "zeros.crt", NotACertificate),
        (
            ("truncated.cer", Some("app.key"), None),
            "truncated.cer",
            NotACertificate,
        ),
        (
            ("truncated.pfx", None, Some(PASSWORD)),
            "truncated.pfx",
            NotACertificate,
        ),
        (("app.pem", Some("text.crt"), None), "text.crt", NotACertificate),
        (
            ("app.pem", Some("text.crt"), Some(PASSWORD)),
            "text.crt",
            NotACertificate,
        ),
    ];
    let mut texts = BTreeSet::new();
    let mut said = Vec::new();
    let directory = format!("{}/", file("").display().to_string().trim_end_matches('/'));
    for ((certificate, private_key, password), at_fault, want) in rows {
        let named = format!("{certificate} {private_key:?} {password:?}");
        let error = open_for_entra(&credential(certificate, *private_key, *password)).unwrap_err();
        let text = error.to_string();
        let CredentialError::Certificate { file, error } = error else {
            panic!("{named}: {text}")
        };
        assert_eq!(error, *want, "{named}");
        assert_eq!(file.file_name().unwrap(), *at_fault, "{named}");
        assert!(text.contains(at_fault), "{named}: {text}");
        for secret in [PASSWORD, "not the password"] {
            assert!(!text.contains(secret), "{named}: {text}");
        }
        let key = private_key.map_or(String::new(), |it| format!(" with {it}"));
        let password = match password {
            None => "",
            Some(PASSWORD) => ", the right password",
            Some(_) => ", a wrong password",
        };
        said.push(format!(
            "{certificate}{key}{password}\n    {}\n",
            text.replace(&directory, "")
        ));
        texts.insert(want.to_string());
    }
    assert!(texts.len() >= 10, "{texts:#?}");
    // What has expired, or is not valid yet, opens: Entra ID is the judge of that. It is told all the same.
    for name in ["expired.pem", "not-yet.pem"] {
        let certificate = read_certificate(&file(name), None).unwrap();
        let error = certificate
            .check_validity("2027-01-01T00:00:00Z".parse().unwrap())
            .unwrap_err();
        said.push(format!("{name}\n    {name}: {error}\n"));
    }
    golden(&said.join("\n"));

    let error = open_for_entra(&credential("truncated.pem", Some("app.key"), None)).unwrap_err();
    assert!(error.to_string().contains("truncated.pem: is damaged"), "{error}");
    let error = open_for_entra(&credential("missing.pfx", None, None)).unwrap_err();
    assert!(
        error.to_string().contains("missing.pfx: cannot be read"),
        "{error}"
    );
    let error = open_for_entra(&credential("", None, None)).unwrap_err();
    assert!(
        error.to_string().contains("cannot be read"),
        "a directory: {error}"
    );
}

/// `GRAPHPOST_BLESS=1 cargo test --test identity_certificates` writes what is said now.
fn golden(said: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/identity/refusals.txt");
    if std::env::var_os("GRAPHPOST_BLESS").is_some() {
        std::fs::write(&path, said).unwrap();
    }
    assert_eq!(said, std::fs::read_to_string(path).unwrap());
}

/// A file that is added to the directory and to no table tests nothing.
#[test]
fn every_file_is_in_a_table() {
    let source = include_str!("identity_certificates.rs");
    let mut files = 0;
    for entry in std::fs::read_dir(file("")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            name == "make.sh" || source.contains(&format!("\"{name}\"")),
            "{name} is in no table"
        );
        files += 1;
    }
    assert!(files > 50, "{files}");
}

#[test]
fn values_are_those_that_openssl_computes() {
    let values = values();
    for (name, password) in [
        ("app.cer", None),
        ("app.pem", None),
        ("chain-backwards.pem", None),
        ("utf-16.pem", None),
        ("legacy-rc2-40.pfx", Some(PASSWORD)),
        ("no-key.pfx", Some(PASSWORD)),
    ] {
        let certificate = read_certificate(&file(name), password).unwrap();
        assert_eq!(certificate.sha1_thumbprint(), values["sha1"], "{name}");
        assert_eq!(certificate.sha256_thumbprint(), values["sha256"], "{name}");
        assert_eq!(certificate.x5t(), values["x5t"], "{name}");
        assert_eq!(certificate.x5t_s256(), values["x5t#S256"], "{name}");
        assert_eq!(
            certificate.custom_key_identifier(),
            values["customKeyIdentifier"],
            "{name}"
        );
        assert_eq!(certificate.not_before.to_string(), values["notBefore"], "{name}");
        assert_eq!(certificate.not_after.to_string(), values["notAfter"], "{name}");
        assert_eq!(certificate.key, KeyKind::Rsa { bits: 2048 }, "{name}");
        assert_eq!(certificate.subject, "O=Contoso Ltd, CN=graphpost", "{name}");
        assert_eq!(certificate.issuer, "CN=Test Issuing", "{name}");
        let pem = certificate.to_pem();
        assert_eq!(
            X509::from_pem(pem.as_bytes()).unwrap().to_der().unwrap(),
            certificate.der
        );
        assert_eq!(pem, std::fs::read_to_string(file("app.pem")).unwrap(), "{name}");
    }
    assert_eq!(values["x5t"].len(), 27);
    assert_eq!(values["x5t#S256"].len(), 43);
    assert_eq!(values["customKeyIdentifier"].len(), 28);
}

#[test]
fn issuers_follow_in_the_order_of_tls() {
    let subjects = |pair: &graphpost::identity::certificate::KeyPair| -> Vec<String> {
        pair.tls_chain()
            .iter()
            .map(|der| Certificate::from_der(der).unwrap().subject)
            .collect()
    };
    for (name, password) in [
        ("full-chain.pem", None),
        ("chain-backwards.pem", None),
        ("chain.pfx", Some(PASSWORD)),
    ] {
        let pair = open_for_tls(&credential(name, None, password)).unwrap();
        assert_eq!(
            subjects(&pair),
            ["O=Contoso Ltd, CN=graphpost", "CN=Test Issuing", "CN=Test Root"],
            "{name}"
        );
    }
    // A self-signed certificate is its own issuer; it must be sent once.
    for name in ["root.pem", "other.pem"] {
        let certificate = read_certificate(&file(name), None).unwrap();
        assert_eq!(certificate.subject, certificate.issuer);
    }
    let pair = open_for_tls(&credential("other.pem", Some("other.key"), None)).unwrap();
    assert_eq!(subjects(&pair), ["CN=other"]);
}

#[test]
fn a_listener_takes_curves_but_no_weak_keys() {
    for (name, private_key, password) in [
        ("ec.pem", None, None),
        ("ec.pfx", None, Some(PASSWORD)),
        ("ec.pem", Some("ec-sec1.key"), None),
        ("ed25519.pem", None, None),
        ("both.pem", None, None),
        ("expired.pem", None, None),
    ] {
        let pair = open_for_tls(&credential(name, private_key, password)).unwrap();
        let certified = pair
            .certified_key()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(certified.cert[0].as_ref(), pair.certificate.der, "{name}");
    }
    let error = open_for_tls(&credential("weak.pem", None, None)).unwrap_err();
    assert!(error.to_string().contains("1024 bits"), "{error}");
    let error = open_for_tls(&credential("rsa-pss.pem", None, None)).unwrap_err();
    assert!(error.to_string().contains("not supported"), "{error}");
}

#[test]
fn knows_when_a_certificate_is_valid() {
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let now = at("2027-01-01T00:00:00Z");

    // It opens all the same: mail is accepted and held until there is a new one.
    let expired = open_for_entra(&credential("expired.pem", None, None))
        .unwrap()
        .certificate;
    let not_after = at("2020-01-01T00:00:00Z");
    assert_eq!(
        expired.check_validity(now),
        Err(CertificateError::Expired { not_after })
    );
    assert_eq!(expired.check_validity(not_after), Ok(()), "its last second");
    assert_eq!(expired.days_left(at("2019-12-31T12:00:00Z")), 0);
    assert_eq!(expired.days_left(at("2019-12-30T00:00:00Z")), 2);
    assert_eq!(expired.days_left(at("2020-01-01T00:00:01Z")), -1);

    let early = read_certificate(&file("not-yet.pem"), None).unwrap();
    let not_before = at("2090-01-01T00:00:00Z");
    assert_eq!(
        early.check_validity(now),
        Err(CertificateError::NotYetValid { not_before })
    );

    let endless = read_certificate(&file("no-end.pem"), None).unwrap();
    assert_eq!(endless.check_validity(now), Ok(()));
    assert!(endless.days_left(now) > 2_000_000);
}

const CLAIMS: Claims<'_> = Claims {
    audience: "https://login.microsoftonline.com/contoso.onmicrosoft.com/oauth2/v2.0/token",
    client_id: "11111111-2222-3333-4444-555555555555",
    id: "66666666-7777-8888-9999-000000000000",
    now: Timestamp::constant(1_800_000_000, 999_999_999),
};

/// Header and claims to the letter, and a signature that openssl verifies.
#[test]
fn an_assertion_is_what_microsoft_documents() {
    let pair = open_for_entra(&credential("both.pem", None, None)).unwrap();
    let claims = concat!(
        r#"{"aud":"https://login.microsoftonline.com/contoso.onmicrosoft.com/oauth2/v2.0/token","#,
        r#""exp":1800000600,"iat":1800000000,"iss":"11111111-2222-3333-4444-555555555555","#,
        r#""jti":"66666666-7777-8888-9999-000000000000","nbf":1800000000,"#,
        r#""sub":"11111111-2222-3333-4444-555555555555"}"#,
    );
    let values = values();
    for (algorithm, header) in [
        (
            AssertionAlgorithm::Ps256,
            format!(
                r#"{{"alg":"PS256","typ":"JWT","x5t#S256":"{}"}}"#,
                values["x5t#S256"]
            ),
        ),
        (
            AssertionAlgorithm::Rs256,
            format!(r#"{{"alg":"RS256","typ":"JWT","x5t":"{}"}}"#, values["x5t"]),
        ),
    ] {
        let assertion = Signer::new(&pair, algorithm, false)
            .unwrap()
            .sign(&CLAIMS)
            .unwrap();
        let (signed, signature) = assertion.rsplit_once('.').unwrap();
        let (got_header, got_claims) = signed.split_once('.').unwrap();
        let text = |part: &str| String::from_utf8(URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
        assert_eq!(text(got_header), header);
        assert_eq!(text(got_claims), claims);

        let certificate = X509::from_der(&pair.certificate.der).unwrap();
        let key = certificate.public_key().unwrap();
        let mut verifier = Verifier::new(MessageDigest::sha256(), &key).unwrap();
        if algorithm == AssertionAlgorithm::Ps256 {
            verifier.set_rsa_padding(Padding::PKCS1_PSS).unwrap();
            // Exactly 32, not "whatever the signature has".
            verifier.set_rsa_pss_saltlen(RsaPssSaltlen::custom(32)).unwrap();
            verifier.set_rsa_mgf1_md(MessageDigest::sha256()).unwrap();
        }
        verifier.update(signed.as_bytes()).unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        assert!(verifier.verify(&signature).unwrap(), "{algorithm:?}");
    }
}

#[test]
fn keys_are_not_shown() {
    let pair = open_for_entra(&credential("both.pem", None, None)).unwrap();
    let shown = format!("{:?}", pair.key);
    assert_eq!(shown, "PrivateKey(..)");
    let signer = Signer::new(&pair, AssertionAlgorithm::Ps256, false).unwrap();
    assert!(format!("{signer:?}").len() < 200);
}
