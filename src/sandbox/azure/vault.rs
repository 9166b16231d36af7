//! Key Vault: secrets to be read, keys to sign with, and certificates, which are both.
//!
//! <https://learn.microsoft.com/rest/api/keyvault/>,
//! <https://learn.microsoft.com/azure/key-vault/general/authentication-requests-and-responses>

use std::collections::HashMap;

use axum::body::Bytes;
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::md::Md;
use openssl::nid::Nid;
use openssl::pkcs12::Pkcs12;
use openssl::pkey::{PKey, Private};
use openssl::pkey_ctx::PkeyCtx;
use openssl::rsa::Padding;
use openssl::sign::RsaPssSaltlen;
use openssl::x509::X509;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, parameter};
use crate::sandbox::entra::{VAULT, bearer_token};
use crate::sandbox::{World, origin, percent_decode, random};

/// Objects of each kind held at the same time.
const OBJECTS_MAX: usize = 1000;

/// What is in the vault, each under its name, the newest version last.
#[derive(Default)]
pub(in crate::sandbox) struct Vault {
    secrets: HashMap<String, Vec<Secret>>,
    keys: HashMap<String, Vec<Key>>,
    certificates: HashMap<String, Vec<Certificate>>,
    signatures: u64,
}

struct Secret {
    version: String,
    value: String,
    content_type: String,
    enabled: bool,
}

struct Key {
    version: String,
    key: PKey<Private>,
}

struct Certificate {
    version: String,
    certificate: X509,
}

/// The form in which a certificate's secret gives the private key away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CertificateForm {
    /// `application/x-pkcs12`: a PFX without a password, as base64.
    Pfx,
    /// `application/x-pem-file`.
    Pem,
    /// Not at all: the key can only sign.
    None,
}

impl Vault {
    /// Adds a version of a secret.
    pub(in crate::sandbox) fn put_secret(
        &mut self,
        name: &str,
        value: String,
        content_type: String,
        enabled: bool,
    ) -> Result<String, String> {
        room(&self.secrets, name)?;
        let version = version();
        let secret = Secret {
            version: version.clone(),
            value,
            content_type,
            enabled,
        };
        self.secrets.entry(name.to_owned()).or_default().push(secret);
        Ok(version)
    }

    /// Adds a version of a certificate: its key can sign, and its secret holds both unless the key
    /// is not exportable.
    pub(in crate::sandbox) fn put_certificate(
        &mut self,
        name: &str,
        pem: &[u8],
        form: CertificateForm,
    ) -> Result<String, String> {
        room(&self.certificates, name)?;
        let certificate = X509::from_pem(pem).map_err(|_| "no certificate in the PEM".to_owned())?;
        let key = PKey::private_key_from_pem(pem).map_err(|_| "no private key in the PEM".to_owned())?;
        if !certificate.public_key().is_ok_and(|it| it.public_eq(&key)) {
            return Err("the key does not belong to the certificate".into());
        }
        let version = version();
        let secret = match form {
            CertificateForm::None => None,
            CertificateForm::Pem => Some((
                String::from_utf8_lossy(pem).into_owned(),
                "application/x-pem-file",
            )),
            CertificateForm::Pfx => {
                let pfx = pfx(name, &key, &certificate).map_err(|it| it.to_string())?;
                Some((STANDARD.encode(pfx), "application/x-pkcs12"))
            }
        };
        if let Some((value, content_type)) = secret {
            let secret = Secret {
                version: version.clone(),
                value,
                content_type: content_type.into(),
                enabled: true,
            };
            self.secrets.entry(name.to_owned()).or_default().push(secret);
        }
        self.keys.entry(name.to_owned()).or_default().push(Key {
            version: version.clone(),
            key,
        });
        let certificate = Certificate {
            version: version.clone(),
            certificate,
        };
        self.certificates
            .entry(name.to_owned())
            .or_default()
            .push(certificate);
        Ok(version)
    }

    /// How many objects there are, and how often a key has signed.
    pub(in crate::sandbox) fn report(&self) -> Value {
        json!({
            "secrets": self.secrets.len(), "keys": self.keys.len(), "certificates": self.certificates.len(),
            "signatures": self.signatures,
        })
    }
}

fn room<T>(objects: &HashMap<String, Vec<T>>, name: &str) -> Result<(), String> {
    let valid =
        (1..=127).contains(&name.len()) && name.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-');
    if !valid {
        return Err("a name has 1 to 127 letters, digits and hyphens".into());
    }
    if objects.len() >= OBJECTS_MAX || objects.get(name).is_some_and(|it| it.len() >= OBJECTS_MAX) {
        return Err(format!("more than {OBJECTS_MAX} objects"));
    }
    Ok(())
}

fn version() -> String {
    random::<16>().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn pfx(name: &str, key: &PKey<Private>, certificate: &X509) -> Result<Vec<u8>, ErrorStack> {
    let mut builder = Pkcs12::builder();
    builder.name(name).pkey(key).cert(certificate);
    builder.key_algorithm(Nid::PBE_WITHSHA1AND3_KEY_TRIPLEDES_CBC);
    builder.cert_algorithm(Nid::PBE_WITHSHA1AND3_KEY_TRIPLEDES_CBC);
    builder.build2("")?.to_der()
}

/// Answers one request to the vault.
pub(super) fn answer(world: &World, parts: &Parts, body: &Bytes) -> Answer {
    match respond(world, parts, body) {
        Ok(body) => Answer::ok(body),
        Err(answer) => answer,
    }
}

fn respond(world: &World, parts: &Parts, body: &Bytes) -> Result<Value, Answer> {
    authenticate(world, parts)?;
    match parameter(parts, "api-version").as_deref() {
        Some("7.0" | "7.1" | "7.2" | "7.3" | "7.4" | "7.5" | "7.6" | "2025-07-01") => {}
        Some(other) => {
            return Err(problem(
                StatusCode::BAD_REQUEST,
                "BadParameter",
                format!("The specified version ({other}) is not recognized."),
            ));
        }
        None => {
            return Err(problem(
                StatusCode::BAD_REQUEST,
                "BadParameter",
                "api-version must be specified",
            ));
        }
    }
    let path = percent_decode(parts.uri.path());
    let segments: Vec<&str> = path.split('/').filter(|it| !it.is_empty()).collect();
    let permit = |permission: &str| match world.tenant().vault_permissions.iter().any(|it| it == permission) {
        true => Ok(()),
        false => {
            let message =
                format!("Caller is not authorized to perform action on resource. Action: '{permission}'.");
            let mut refusal = problem(StatusCode::FORBIDDEN, "Forbidden", message);
            refusal.body["error"]["innererror"] = json!({"code": "ForbiddenByRbac"});
            Err(refusal)
        }
    };
    let root = origin(&parts.headers);
    let vault = world.vault();
    match (&parts.method, segments.as_slice()) {
        (&Method::GET, ["secrets", name, rest @ ..]) if rest.len() <= 1 => {
            permit("secrets/get")?;
            let found = find(&vault.secrets, name, rest.first().copied(), |it| &it.version);
            let secret = found.ok_or_else(|| not_found("Secret", name))?;
            if !secret.enabled {
                let mut refusal = problem(
                    StatusCode::FORBIDDEN,
                    "Forbidden",
                    "Operation get is not allowed on a disabled secret.",
                );
                refusal.body["error"]["innererror"] = json!({"code": "SecretDisabled"});
                return Err(refusal);
            }
            let mut shown = json!({
                "value": secret.value,
                "contentType": secret.content_type,
                "id": format!("{root}/secrets/{name}/{}", secret.version),
                "attributes": attributes(),
            });
            if vault.certificates.contains_key(*name) {
                shown["kid"] = format!("{root}/keys/{name}/{}", secret.version).into();
                shown["managed"] = true.into();
            }
            Ok(shown)
        }
        (&Method::GET, ["keys", name, rest @ ..]) if rest.len() <= 1 => {
            permit("keys/get")?;
            let found = find(&vault.keys, name, rest.first().copied(), |it| &it.version);
            let key = found.ok_or_else(|| not_found("Key", name))?;
            let rsa = key.key.rsa().map_err(|_| not_found("Key", name))?;
            Ok(json!({
                "key": {
                    "kid": format!("{root}/keys/{name}/{}", key.version),
                    "kty": "RSA",
                    "key_ops": ["sign", "verify"],
                    "n": URL_SAFE_NO_PAD.encode(rsa.n().to_vec()),
                    "e": URL_SAFE_NO_PAD.encode(rsa.e().to_vec()),
                },
                "attributes": attributes(),
            }))
        }
        (&Method::GET, ["certificates", name, rest @ ..]) if rest.len() <= 1 => {
            permit("certificates/get")?;
            let found = find(&vault.certificates, name, rest.first().copied(), |it| &it.version);
            let found = found.ok_or_else(|| not_found("Certificate", name))?;
            let der = found
                .certificate
                .to_der()
                .map_err(|_| not_found("Certificate", name))?;
            let version = &found.version;
            Ok(json!({
                "id": format!("{root}/certificates/{name}/{version}"),
                "kid": format!("{root}/keys/{name}/{version}"),
                "sid": format!("{root}/secrets/{name}/{version}"),
                "x5t": URL_SAFE_NO_PAD.encode(openssl::sha::sha1(&der)),
                "cer": STANDARD.encode(der),
                "attributes": attributes(),
            }))
        }
        (&Method::POST, ["keys", name, rest @ .., "sign"]) if rest.len() <= 1 => {
            permit("keys/sign")?;
            let found = find(&vault.keys, name, rest.first().copied(), |it| &it.version);
            let key = found.ok_or_else(|| not_found("Key", name))?;
            let signature = sign(&key.key, body)?;
            let kid = format!("{root}/keys/{name}/{}", key.version);
            drop(vault);
            world.vault().signatures += 1;
            Ok(json!({"kid": kid, "value": URL_SAFE_NO_PAD.encode(signature)}))
        }
        _ => Err(problem(
            StatusCode::NOT_FOUND,
            "BadParameter",
            "There is no such operation.",
        )),
    }
}

fn find<'a, T>(
    objects: &'a HashMap<String, Vec<T>>,
    name: &str,
    version: Option<&str>,
    of: impl Fn(&T) -> &String,
) -> Option<&'a T> {
    // Names in a vault are compared without case.
    let (_, versions) = objects.iter().find(|(it, _)| it.eq_ignore_ascii_case(name))?;
    match version {
        Some(version) => versions.iter().find(|it| of(it) == version),
        None => versions.last(),
    }
}

/// Without a good token: where to get one, and for what.
fn authenticate(world: &World, parts: &Parts) -> Result<(), Answer> {
    let own = origin(&parts.headers);
    let settings = world.tenant().clone();
    let challenge = |message: &str| {
        let tenant = settings
            .names
            .first()
            .map_or("contoso.onmicrosoft.com", String::as_str);
        let resource = settings.vault_resource.as_deref().unwrap_or(&own);
        let authority = settings.vault_authority.as_deref().unwrap_or(&own);
        problem(StatusCode::UNAUTHORIZED, "Unauthorized", message).with(
            header::WWW_AUTHENTICATE,
            format!("Bearer authorization=\"{authority}/{tenant}\", resource=\"{resource}\""),
        )
    };
    let Some(text) = bearer_token(&parts.headers).filter(|it| !it.is_empty()) else {
        return Err(challenge("AKV10000: Request is missing a Bearer or PoP token."));
    };
    let tokens = world.tokens();
    let Some(token) = tokens.find(text) else {
        return Err(challenge("AKV10022: Invalid token."));
    };
    if token.check(Timestamp::now()).is_err() {
        return Err(challenge("AKV10005: Token is expired."));
    }
    let expected = settings.vault_resource.as_deref().unwrap_or(&own);
    if token.resource != VAULT && token.resource != expected {
        return Err(challenge("AKV10022: Invalid audience."));
    }
    Ok(())
}

#[derive(Deserialize)]
struct Sign {
    alg: String,
    value: String,
}

/// <https://learn.microsoft.com/rest/api/keyvault/keys/sign/sign>: the digest is the client's.
fn sign(key: &PKey<Private>, body: &[u8]) -> Result<Vec<u8>, Answer> {
    let bad = |what: &str| problem(StatusCode::BAD_REQUEST, "BadParameter", what.to_owned());
    let Sign { alg, value } =
        serde_json::from_slice(body).map_err(|_| bad("The request body is not valid."))?;
    let padding = match alg.as_str() {
        "PS256" => Padding::PKCS1_PSS,
        "RS256" => Padding::PKCS1,
        _ => return Err(bad("Property alg has invalid value")),
    };
    let digest = URL_SAFE_NO_PAD
        .decode(value)
        .map_err(|_| bad("Property value is not base64url"))?;
    if digest.len() != MessageDigest::sha256().size() {
        return Err(bad("Property value has invalid length"));
    }
    let signature = || -> Result<Vec<u8>, ErrorStack> {
        let mut context = PkeyCtx::new(key)?;
        context.sign_init()?;
        context.set_rsa_padding(padding)?;
        context.set_signature_md(Md::sha256())?;
        if padding == Padding::PKCS1_PSS {
            context.set_rsa_mgf1_md(Md::sha256())?;
            context.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH)?;
        }
        let mut signature = Vec::new();
        context.sign_to_vec(&digest, &mut signature)?;
        Ok(signature)
    };
    signature().map_err(|_| bad("The key type does not support the algorithm"))
}

fn attributes() -> Value {
    let now = Timestamp::now().as_second();
    json!({"enabled": true, "created": now, "updated": now, "recoveryLevel": "Recoverable+Purgeable"})
}

fn not_found(kind: &str, name: &str) -> Answer {
    let message = format!(
        "A {} with (name/id) {name} was not found in this key vault. If you recently deleted this {} you may be able \
         to recover it using the correct recovery command.",
        kind.to_ascii_lowercase(),
        kind.to_ascii_lowercase(),
    );
    problem(StatusCode::NOT_FOUND, &format!("{kind}NotFound"), message)
}

fn problem(status: StatusCode, code: &str, message: impl Into<String>) -> Answer {
    Answer::new(
        status,
        json!({"error": {"code": code, "message": message.into()}}),
    )
}
