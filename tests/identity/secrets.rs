//! No secret is ever shown: not in the log, not in an error, not as JSON, not on the admin address, not
//! to who formats a structure, and not in the process list. Each credential is used until it works, and
//! then until it fails.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use graphpost::config::{Config, Environment};
use graphpost::identity::Tokens;
use graphpost::metrics::Metrics;
use graphpost::sandbox::{CertificateForm, FederatedCredential, Rule, TOKEN_EXCHANGE};
use openssl::hash::MessageDigest;
use openssl::pkcs12::Pkcs12;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use openssl::symm::Cipher;
use openssl::x509::X509;
use serde_json::json;

use crate::rig::{Site, credential_file, send};

/// Words that are in no sentence of the program.
const PASSWORD: &str = "Zwölf-Boxkämpfer";
const WRONG_PASSWORD: &str = "Falsches-Üben";
const CLIENT_SECRET: &str = "wMf8Q~quijote-de-la-mancha";
const WRONG_SECRET: &str = "wMf8Q~sancho-panza-rocinante";
const IDENTITY_HEADER: &str = "853b9a84-dulcinea-del-toboso";
const PROXY_PASSWORD: &str = "barataria-insula";

/// What is searched for in all that is said.
fn secrets() -> Vec<String> {
    let mut secrets: Vec<String> = [
        PASSWORD,
        WRONG_PASSWORD,
        CLIENT_SECRET,
        WRONG_SECRET,
        IDENTITY_HEADER,
        PROXY_PASSWORD,
    ]
    .map(str::to_owned)
    .to_vec();
    // A JSON Web Token, be it an access token, an assertion or another platform's: `{"` in base64.
    secrets.push("eyJ".to_owned());
    secrets.push("Bearer ey".to_owned());
    // Private keys, by every line of their base64.
    for key in ["app.key", "pkcs1.key"] {
        let pem = std::fs::read_to_string(credential_file(key)).unwrap();
        let lines = pem.lines().filter(|it| it.len() >= 40 && !it.starts_with('-'));
        secrets.extend(lines.map(str::to_owned));
    }
    // And in the other encodings that octets are shown in.
    let prime = PKey::private_key_from_pem(&std::fs::read(credential_file("app.key")).unwrap())
        .unwrap()
        .rsa()
        .unwrap()
        .p()
        .unwrap()
        .to_vec();
    let piece = &prime[8..40];
    secrets.push(STANDARD.encode(piece).trim_end_matches('=').to_owned());
    secrets.push(URL_SAFE_NO_PAD.encode(piece));
    secrets.push(piece.iter().map(|it| format!("{it:02x}")).collect());
    secrets.push(piece.iter().map(|it| format!("{it:02X}")).collect());
    let numbers: Vec<String> = piece[..8].iter().map(u8::to_string).collect();
    secrets.push(numbers.join(", "));
    secrets
}

#[track_caller]
fn keeps_secrets(what: &str, said: &str) {
    for secret in secrets() {
        if let Some(at) = said.find(&secret) {
            let around: String = said[..at].chars().rev().take(120).collect();
            let around: String = around.chars().rev().collect();
            panic!("{what}: '{secret}' is shown after '{around}'");
        }
    }
}

/// A certificate and key under a password.
fn pfx() -> Vec<u8> {
    let key = PKey::private_key_from_pem(&std::fs::read(credential_file("app.key")).unwrap()).unwrap();
    let certificate = X509::from_pem(&std::fs::read(credential_file("app.pem")).unwrap()).unwrap();
    let mut builder = Pkcs12::builder();
    builder.pkey(&key).cert(&certificate);
    builder.build2(PASSWORD).unwrap().to_der().unwrap()
}

fn encrypted_key() -> Vec<u8> {
    let key = PKey::private_key_from_pem(&std::fs::read(credential_file("app.key")).unwrap()).unwrap();
    key.private_key_to_pem_pkcs8_passphrase(Cipher::aes_256_cbc(), PASSWORD.as_bytes())
        .unwrap()
}

/// Another platform's token for us.
fn foreign_token() -> String {
    let key = PKey::private_key_from_pem(&std::fs::read(credential_file("app.key")).unwrap()).unwrap();
    let now = jiff::Timestamp::now().as_second();
    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!(
        "{}.{}",
        part(json!({"alg": "RS256", "typ": "JWT", "kid": "1"})),
        part(json!({
            "iss": "https://cluster.example", "sub": "graphpost", "aud": TOKEN_EXCHANGE,
            "iat": now, "nbf": now, "exp": now + 3600, "jti": "1",
        }))
    );
    let mut signer = Signer::new(MessageDigest::sha256(), &key).unwrap();
    let signature = signer.sign_oneshot_to_vec(signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// A way to prove the application.
struct Kind {
    name: &'static str,
    credential: String,
    environment: Vec<(String, String)>,
}

fn kinds(site: &Site) -> Vec<Kind> {
    let cloud = site.cloud.url();
    let kind = |name, credential: &str| Kind {
        name,
        credential: format!("[tenant.credential]\n{credential}\n"),
        environment: Vec::new(),
    };
    let with = |kind: Kind, environment: &[(&str, &str)]| Kind {
        environment: environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        ..kind
    };
    let machine = ("AZURE_POD_IDENTITY_AUTHORITY_HOST", cloud.as_str());
    vec![
        kind(
            "a PFX, its password in the file",
            &format!("certificate = \"app.pfx\"\npassword = \"{PASSWORD}\""),
        ),
        kind(
            "a PFX, its password in another file",
            "certificate = \"app.pfx\"\npassword_file = \"app.password\"",
        ),
        with(
            kind(
                "a PFX, its password in the environment",
                "certificate = \"app.pfx\"",
            ),
            &[("GRAPHPOST__TENANT__CREDENTIAL__PASSWORD", PASSWORD)],
        ),
        with(
            kind(
                "a PFX, its password among systemd's credentials",
                "certificate = \"app.pfx\"\npassword_file = \"systemd.password\"",
            ),
            &[(
                "CREDENTIALS_DIRECTORY",
                site.file("credentials").to_str().unwrap(),
            )],
        ),
        kind(
            "an encrypted key",
            "certificate = \"app.pem\"\nprivate_key = \"encrypted.key\"\npassword_file = \"app.password\"",
        ),
        kind(
            "a plain key",
            "certificate = \"app.pem\"\nprivate_key = \"app.key\"",
        ),
        kind(
            "a client secret in the file",
            &format!("secret = \"{CLIENT_SECRET}\""),
        ),
        with(
            kind("a client secret in the environment", ""),
            &[("GRAPHPOST__TENANT__CREDENTIAL__SECRET", CLIENT_SECRET)],
        ),
        kind("another platform's token", "federated_token_file = \"token\""),
        with(
            kind("a virtual machine", "managed_identity = \"system\""),
            &[machine],
        ),
        with(
            kind("an app service", "managed_identity = \"system\""),
            &[
                ("IDENTITY_ENDPOINT", &format!("{cloud}/msi/token")),
                ("IDENTITY_HEADER", IDENTITY_HEADER),
            ],
        ),
        with(
            kind(
                "a vault that signs",
                &format!("vault_certificate = \"{cloud}/certificates/graphpost\""),
            ),
            &[machine],
        ),
        with(
            kind(
                "a vault that gives the certificate",
                &format!("vault_certificate = \"{cloud}/certificates/graphpost\"\nvault_download = true"),
            ),
            &[machine],
        ),
        kind(
            "a vault that gives the password",
            &format!(
                "certificate = \"app.pfx\"\nvault_password = \"{cloud}/secrets/pfx\"\n\
                 vault_identity = \"federated\"\nfederated_token_file = \"token\""
            ),
        ),
    ]
}

async fn site() -> Site {
    let site = Site::new().await;
    let cloud = &site.cloud;
    let both = std::fs::read(credential_file("both.pem")).unwrap();
    let certificate = std::fs::read(credential_file("app.pem")).unwrap();
    cloud.register_certificate(&certificate).unwrap();
    cloud.put_secret("pfx", PASSWORD, "text/plain").unwrap();
    cloud
        .put_certificate("graphpost", &both, CertificateForm::Pem)
        .unwrap();
    let public = X509::from_pem(&certificate).unwrap().public_key().unwrap();
    cloud.change_tenant(|it| {
        it.secrets = vec![CLIENT_SECRET.to_owned()];
        it.identity_header = IDENTITY_HEADER.to_owned();
        it.federated_credentials = vec![FederatedCredential {
            issuer: "https://cluster.example".to_owned(),
            subject: "graphpost".to_owned(),
            audience: TOKEN_EXCHANGE.to_owned(),
            public_key: String::from_utf8(public.public_key_to_pem().unwrap()).unwrap(),
        }];
    });
    for name in ["app.pem", "app.key", "pkcs1.key"] {
        site.copy(name);
    }
    site.write("app.pfx", &pfx());
    site.write("encrypted.key", &encrypted_key());
    site.write("app.password", PASSWORD.as_bytes());
    site.write("wrong.password", WRONG_PASSWORD.as_bytes());
    site.write("token", foreign_token().as_bytes());
    std::fs::create_dir(site.file("credentials")).unwrap();
    site.write("credentials/systemd.password", PASSWORD.as_bytes());
    site
}

const LISTENER: &str = "[log]\nlevel = \"debug\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n";

fn fault(operation: &str, action: &str) -> Rule {
    Rule {
        operation: Some(operation.to_owned()),
        action: action.to_owned(),
        ..Rule::default()
    }
}

/// What the process list shows of a process.
fn command_line(pid: u32) -> String {
    String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/cmdline")).unwrap()).into_owned()
}

#[tokio::test]
async fn no_credential_is_shown_whether_it_works_or_not() {
    let site = site().await;
    for kind in kinds(&site) {
        let name = kind.name;
        site.configure(&kind.credential, LISTENER);
        let _ = std::fs::remove_dir_all(site.file("queue"));
        site.cloud.set_faults(Vec::new()).unwrap();
        let start = || {
            let mut command = site.command(&["serve"]);
            command.envs(kind.environment.iter().cloned());
            command
        };
        let mut gateway = site.serve_with(start()).await;
        keeps_secrets(name, &command_line(gateway.pid()));
        send(&gateway).await;
        gateway.says("msg=sent").await;

        // Now nothing works: Graph refuses the token, and nobody gives another.
        let mut refused = vec![
            Rule {
                status: Some(401),
                ..fault("sendMail", "status")
            },
            Rule {
                code: Some(json!(7_000_215)),
                ..fault("token", "aadsts")
            },
        ];
        for operation in ["identity", "vault"] {
            refused.push(Rule {
                status: Some(403),
                ..fault(operation, "status")
            });
        }
        site.cloud.set_faults(refused).unwrap();
        send(&gateway).await;
        let held = gateway
            .says("all mail is kept and goes out once this is mended")
            .await;
        assert!(held.contains("level=error"), "{name}: {held}");

        for path in ["/", "/metrics", "/readyz?verbose", "/api/status", "/api/queue"] {
            keeps_secrets(name, &gateway.get(path).await);
        }
        for arguments in [
            &["check", "--json"][..],
            &["check"],
            &["check", "--offline", "--json"],
            &["status", "--json"],
            &["queue", "list", "--json"],
            &["queue", "list"],
            &["cert", "show", "--json", "app.pem"],
        ] {
            let mut command = site.command(arguments);
            command.envs(kind.environment.iter().cloned());
            let output = command.output().await.unwrap();
            let said = [output.stdout, output.stderr].concat();
            keeps_secrets(name, &String::from_utf8_lossy(&said));
        }
        let said = gateway.stop().await;
        assert!(
            said.contains("no token") || said.contains("token not renewed"),
            "{name}: {said}"
        );
        keeps_secrets(name, &said);

        // Who formats what he has been given sees nothing either.
        let environment: Environment = kind.environment.iter().cloned().collect();
        let config = Config::load(&site.file("graphpost.toml"), &environment).unwrap();
        keeps_secrets(name, &format!("{config:?} {environment:?}"));
        let tokens = Tokens::new(&config.tenant, Arc::new(Metrics::new())).unwrap();
        let error = tokens.get().await.unwrap_err();
        keeps_secrets(
            name,
            &format!("{tokens:?} {:#?} {error:?} {error}", tokens.certificates()),
        );
    }
}

/// What does not even start says why, and no more.
#[tokio::test]
async fn no_mistake_shows_the_secret_it_was_made_with() {
    let site = site().await;
    site.write("garbage.pfx", &[pfx()[..400].to_vec(), vec![0; 9]].concat());
    let key = std::fs::read_to_string(credential_file("app.key")).unwrap();
    let torn: Vec<&str> = key.lines().collect();
    let torn = [&torn[..5], &torn[7..]].concat().join("\n");
    site.write("torn.key", torn.as_bytes());
    let credential = |text: &str| format!("[tenant.credential]\n{text}\n");
    let mistakes: BTreeMap<&str, String> = [
        (
            "a wrong password",
            format!("certificate = \"app.pfx\"\npassword = \"{WRONG_PASSWORD}\""),
        ),
        (
            "a wrong password file",
            "certificate = \"app.pfx\"\npassword_file = \"wrong.password\"".to_owned(),
        ),
        (
            "a wrong password of a key",
            format!("certificate = \"app.pem\"\nprivate_key = \"encrypted.key\"\npassword = \"{WRONG_PASSWORD}\""),
        ),
        (
            "a broken PFX",
            format!("certificate = \"garbage.pfx\"\npassword = \"{PASSWORD}\""),
        ),
        (
            "a torn key",
            "certificate = \"app.pem\"\nprivate_key = \"torn.key\"".to_owned(),
        ),
        (
            "a key of another certificate",
            "certificate = \"pkcs1.key\"\nprivate_key = \"app.key\"".to_owned(),
        ),
        (
            "two ways",
            format!("certificate = \"app.pfx\"\npassword = \"{PASSWORD}\"\nsecret = \"{CLIENT_SECRET}\""),
        ),
        (
            "a password where a file is meant",
            format!("certificate = \"app.pfx\"\npassword_file = \"app.password\"\npassword = \"{PASSWORD}\""),
        ),
        ("a misspelt key", format!("certificate = \"app.pfx\"\npasword = \"{PASSWORD}\"")),
        ("another misspelt key", format!("client_secret = \"{CLIENT_SECRET}\"")),
        ("no string", format!("certificate = \"app.pfx\"\npassword = [\"{PASSWORD}\"]")),
        ("no end", format!("certificate = \"app.pfx\"\npassword = \"{PASSWORD}")),
        ("no quotes", format!("certificate = \"app.pfx\"\npassword = {PASSWORD}")),
        ("twice", format!("secret = \"{CLIENT_SECRET}\"\nsecret = \"{WRONG_SECRET}\"")),
        ("a secret for a path", format!("secret_file = \"missing\"\nsecret = \"{CLIENT_SECRET}\"")),
    ]
    .map(|(name, text)| (name, credential(&text)))
    .into_iter()
    .chain([(
        "a proxy that is none",
        format!("proxy = \"http://scanner:{PROXY_PASSWORD}@\"\n[tenant.credential]\nsecret = \"{CLIENT_SECRET}\"\n"),
    )])
    .collect();
    for (name, tenant) in mistakes {
        site.configure(&tenant, LISTENER);
        for arguments in [
            &["serve"][..],
            &["check", "--offline"],
            &["check", "--offline", "--json"],
        ] {
            let (said, content) = site.run(arguments).await;
            assert!(!content && !said.is_empty(), "{name}: {said}");
            keeps_secrets(name, &said);
        }
    }

    // A wrong secret is found out only by asking; and a proxy that does not answer names itself.
    for (name, tenant, words) in [
        (
            "a wrong secret",
            format!("[tenant.credential]\nsecret = \"{WRONG_SECRET}\"\n"),
            "AADSTS7000215",
        ),
        (
            "a dead proxy",
            format!(
                "proxy = \"http://scanner:{PROXY_PASSWORD}@127.0.0.1:1\"\n\
                 [tenant.credential]\nsecret = \"{CLIENT_SECRET}\"\n"
            ),
            "cannot be reached",
        ),
    ] {
        site.configure(&tenant, LISTENER);
        let _ = std::fs::remove_dir_all(site.file("queue"));
        let mut gateway = site.serve().await;
        send(&gateway).await;
        gateway.says(words).await;
        let said = gateway.stop().await;
        keeps_secrets(name, &said);
    }
}

#[test]
fn what_is_searched_for_is_found() {
    let key = std::fs::read_to_string(credential_file("app.key")).unwrap();
    for said in [
        &key[200..],
        "token eyJ0eXAiOiJKV1QifQ.e30.x",
        &format!("why=\"{PASSWORD}\""),
    ] {
        assert!(
            std::panic::catch_unwind(|| keeps_secrets("", said)).is_err(),
            "{said}"
        );
    }
    keeps_secrets("", "nothing to see here");
    assert!(Path::new(&credential_file("pkcs1.key")).exists());
}
