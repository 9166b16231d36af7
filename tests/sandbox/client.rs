//! A client of the cloud that shares no code with the gateway or the cloud.

use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use graphpost::sandbox::{Cloud, Options};
use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::{Padding, Rsa};
use openssl::sign::{RsaPssSaltlen, Signer};
use openssl::x509::{X509, X509NameBuilder};
use serde_json::{Value, json};

pub const CLIENT: &str = "11111111-2222-4333-8444-555555555555";
pub const TENANT: &str = "contoso.onmicrosoft.com";
pub const MAILBOX: &str = "service@contoso.com";

/// A private key and its certificate.
pub struct Identity {
    pub key: PKey<Private>,
    pub certificate: X509,
}

pub static REGISTERED: LazyLock<Identity> = LazyLock::new(|| Identity::rsa(365));
pub static STRANGER: LazyLock<Identity> = LazyLock::new(|| Identity::rsa(365));
pub static EXPIRED: LazyLock<Identity> = LazyLock::new(|| Identity::rsa(-1));
pub static ELLIPTIC: LazyLock<Identity> = LazyLock::new(|| {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    Identity::new(PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap(), 365)
});

impl Identity {
    fn rsa(days: i64) -> Identity {
        Identity::new(PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap(), days)
    }

    fn new(key: PKey<Private>, days: i64) -> Identity {
        let mut name = X509NameBuilder::new().unwrap();
        name.append_entry_by_text("CN", "sandbox test").unwrap();
        let name = name.build();
        let at = |days: i64| Asn1Time::from_unix(now() + days * 86_400).unwrap();
        let mut builder = X509::builder().unwrap();
        builder.set_version(2).unwrap();
        builder
            .set_serial_number(&BigNum::from_u32(7).unwrap().to_asn1_integer().unwrap())
            .unwrap();
        builder.set_subject_name(&name).unwrap();
        builder.set_issuer_name(&name).unwrap();
        builder.set_not_before(&at(days.min(0) - 1)).unwrap();
        builder.set_not_after(&at(days)).unwrap();
        builder.set_pubkey(&key).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        Identity {
            key,
            certificate: builder.build(),
        }
    }

    pub fn der(&self) -> Vec<u8> {
        self.certificate.to_der().unwrap()
    }

    pub fn sha1(&self) -> Vec<u8> {
        self.certificate.digest(MessageDigest::sha1()).unwrap().to_vec()
    }

    pub fn sha256(&self) -> Vec<u8> {
        self.certificate.digest(MessageDigest::sha256()).unwrap().to_vec()
    }

    pub fn ps256_header(&self) -> Value {
        json!({"alg": "PS256", "typ": "JWT", "x5t#S256": URL_SAFE_NO_PAD.encode(self.sha256())})
    }

    pub fn rs256_header(&self) -> Value {
        json!({"alg": "RS256", "typ": "JWT", "x5t": URL_SAFE_NO_PAD.encode(self.sha1())})
    }

    /// Signs as the header says.
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        let signed = [header, claims]
            .map(|it| URL_SAFE_NO_PAD.encode(it.to_string()))
            .join(".");
        let mut signer = Signer::new(MessageDigest::sha256(), &self.key).unwrap();
        if header["alg"] == "PS256" && self.key.rsa().is_ok() {
            signer.set_rsa_padding(Padding::PKCS1_PSS).unwrap();
            signer.set_rsa_mgf1_md(MessageDigest::sha256()).unwrap();
            signer.set_rsa_pss_saltlen(RsaPssSaltlen::custom(32)).unwrap();
        }
        let signature = signer.sign_oneshot_to_vec(signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

pub fn claims(cloud: &Cloud) -> Value {
    let id: [u8; 16] = {
        let mut bytes = [0; 16];
        openssl::rand::rand_bytes(&mut bytes).unwrap();
        bytes
    };
    json!({
        "aud": format!("{}/{TENANT}/oauth2/v2.0/token", cloud.authority()),
        "iss": CLIENT, "sub": CLIENT,
        "jti": STANDARD.encode(id),
        "nbf": now(), "iat": now(), "exp": now() + 600,
    })
}

pub fn form(assertion: &str) -> Vec<(&str, &str)> {
    vec![
        ("client_id", CLIENT),
        ("scope", "https://graph.microsoft.com/.default"),
        (
            "client_assertion_type",
            "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        ),
        ("client_assertion", assertion),
        ("grant_type", "client_credentials"),
    ]
}

/// A cloud with one registered certificate, and a client that holds its key.
pub struct Client {
    pub cloud: Cloud,
    pub http: reqwest::Client,
    pub token: String,
}

pub fn http() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

pub async fn cloud() -> Cloud {
    let options = Options {
        certificates: vec![REGISTERED.der()],
        ..Options::default()
    };
    Cloud::bind("127.0.0.1:0".parse().unwrap(), options)
        .await
        .unwrap()
}

impl Client {
    pub async fn new() -> Client {
        let cloud = cloud().await;
        let mut client = Client {
            cloud,
            http: http(),
            token: String::new(),
        };
        client.renew().await;
        client
    }

    pub async fn renew(&mut self) {
        let answer = self.ask_token().await;
        self.token = answer["access_token"]
            .as_str()
            .unwrap_or_else(|| panic!("no token: {answer}"))
            .to_owned();
    }

    pub async fn ask_token(&self) -> Value {
        let assertion = REGISTERED.sign(&REGISTERED.ps256_header(), &claims(&self.cloud));
        let url = format!("{}/{TENANT}/oauth2/v2.0/token", self.cloud.authority());
        self.http
            .post(url)
            .send_form(&form(&assertion))
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap()
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.cloud.graph())
    }

    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, self.url(path)).bearer_auth(&self.token)
    }

    pub fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.request(reqwest::Method::POST, path)
    }

    pub fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.request(reqwest::Method::GET, path)
    }

    /// `sendMail` with JSON, from the usual mailbox.
    pub fn send_mail(&self, message: Value) -> reqwest::RequestBuilder {
        self.post(&format!("/v1.0/users/{MAILBOX}/sendMail"))
            .json(&json!({"message": message}))
    }

    /// `sendMail` with MIME, from the usual mailbox.
    pub fn send_mime(&self, mime: &str) -> reqwest::RequestBuilder {
        self.post(&format!("/v1.0/users/{MAILBOX}/sendMail"))
            .header("content-type", "text/plain")
            .body(STANDARD.encode(mime))
    }

    /// `GET` of the cloud's own interface.
    pub async fn sandbox(&self, path: &str) -> Value {
        self.http
            .get(self.url(&format!("/sandbox/{path}")))
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap()
    }

    pub async fn put(&self, path: &str, value: Value) {
        let answer = self
            .http
            .put(self.url(&format!("/sandbox/{path}")))
            .json(&value)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    }
}

/// A message nobody can object to.
pub fn plain() -> Value {
    json!({
        "subject": "Hello",
        "body": {"contentType": "text", "content": "World"},
        "toRecipients": [{"emailAddress": {"name": "A", "address": "a@b.example"}}],
    })
}

/// Status and `error.code`.
pub async fn verdict(request: reqwest::RequestBuilder) -> (u16, String) {
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.text().await.unwrap();
    let code = serde_json::from_str::<Value>(&body)
        .ok()
        .and_then(|it| it["error"]["code"].as_str().map(str::to_owned));
    (status, code.unwrap_or_default())
}

/// RFC 3986 §2.1, every octet that is not unreserved.
pub fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => (byte as char).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// A form by RFC 3986 escapes, every octet that is not unreserved.
pub trait FormExt {
    fn send_form(self, form: &[(&str, &str)]) -> reqwest::RequestBuilder;
}

impl FormExt for reqwest::RequestBuilder {
    fn send_form(self, form: &[(&str, &str)]) -> reqwest::RequestBuilder {
        let body: Vec<String> = form
            .iter()
            .map(|(name, value)| format!("{}={}", escape(name), escape(value)))
            .collect();
        self.header("content-type", "application/x-www-form-urlencoded")
            .body(body.join("&"))
    }
}
