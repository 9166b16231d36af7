//! A signed message that went through the conversion still verifies, in either of the two forms of
//! S/MIME (RFC 8551 §3.4 and §3.5.3).

use bytes::Bytes;
use graphpost::address::Address;
use graphpost::convert::{Form, Order, Way, Wishes, convert};
use graphpost::envelope::{Envelope, HeaderFrom, ReversePath, Route};
use graphpost::graph::Request;
use openssl::asn1::Asn1Time;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkcs7::{Pkcs7, Pkcs7Flags};
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::stack::Stack;
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::{X509, X509NameBuilder};

const TEXT: &str =
    "Content-Type: text/plain; charset=utf-8\r\n\r\nGr\u{fc}\u{df}e,  with spaces at the end  \r\n.\r\n";

fn signer() -> Result<(X509, PKey<Private>), ErrorStack> {
    let key = PKey::from_rsa(Rsa::generate(2048)?)?;
    let mut name = X509NameBuilder::new()?;
    name.append_entry_by_text("CN", "ERP")?;
    let name = name.build();
    let mut certificate = X509::builder()?;
    certificate.set_version(2)?;
    certificate.set_subject_name(&name)?;
    certificate.set_issuer_name(&name)?;
    certificate.set_pubkey(&key)?;
    certificate.set_not_before(Asn1Time::days_from_now(0)?.as_ref())?;
    certificate.set_not_after(Asn1Time::days_from_now(1)?.as_ref())?;
    certificate.sign(&key, MessageDigest::sha256())?;
    Ok((certificate.build(), key))
}

/// Signs, sends through the conversion, verifies.
fn round_trip(flags: Pkcs7Flags) -> Result<(), ErrorStack> {
    let (certificate, key) = signer()?;
    let chain = Stack::new()?;
    let signed = Pkcs7::sign(&certificate, &key, &chain, TEXT.as_bytes(), flags)?;
    let entity = signed.to_smime(TEXT.as_bytes(), flags)?;
    let entity = String::from_utf8(entity).expect("text");
    // As the listener hands it on.
    let entity = entity.replace("\r\n", "\n").replace('\n', "\r\n");
    let message = format!(
        "Received: from app by relay; now\r\nFrom: ERP <erp@contoso.example>\r\nTo: nobody-asked@example.org\r\n\
         Bcc: ann@example.org\r\nSubject: Signed\r\n{entity}"
    );

    let envelope = Envelope {
        reverse_path: ReversePath(None),
        recipients: vec![Address::parse("ann@example.org").expect("an address")],
    };
    let route = Route {
        mailbox: "service@contoso.example".to_owned(),
        rule: "erp".to_owned(),
        header_from: HeaderFrom::Mailbox,
        save_to_sent_items: true,
        format: None,
        unknown: None,
    };
    let order = Order {
        envelope: &envelope,
        route: &route,
        message_id: "1@graphpost.example",
        wishes: Wishes::default(),
    };
    let converted = convert(&Bytes::from(message), &order).expect("small enough");
    assert_eq!(converted.form, Form::Mime);
    let Way::Request(Request::Mime(base64)) = converted.way else {
        panic!("not as MIME")
    };
    let mime = base64_simd::STANDARD.decode_to_vec(&base64).expect("base64");
    assert!(!String::from_utf8_lossy(&mime).contains("nobody-asked"));

    let (read, content) = Pkcs7::from_smime(&mime)?;
    let mut store = X509StoreBuilder::new()?;
    store.add_cert(certificate)?;
    let mut verified = Vec::new();
    read.verify(
        &chain,
        &store.build(),
        content.as_deref(),
        Some(&mut verified),
        Pkcs7Flags::empty(),
    )?;
    let verified = String::from_utf8(verified).expect("text");
    assert_eq!(verified.replace("\r\n", "\n"), TEXT.replace("\r\n", "\n"));
    Ok(())
}

#[test]
fn a_detached_signature_verifies() -> Result<(), ErrorStack> {
    round_trip(Pkcs7Flags::DETACHED | Pkcs7Flags::STREAM)
}

#[test]
fn an_opaque_signature_verifies() -> Result<(), ErrorStack> {
    round_trip(Pkcs7Flags::empty())
}
