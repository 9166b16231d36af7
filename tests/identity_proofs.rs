//! Every way to prove the application, against the stand-in cloud: two certificates at once, secrets,
//! other platforms' tokens, managed identities, and Key Vault; and what each says when it fails.
#![allow(clippy::unwrap_used)]

#[path = "graph/server.rs"]
mod server;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair as RsaKey;
use aws_lc_rs::signature::RSA_PKCS1_SHA256;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use graphpost::config::{
    ApplicationCredential, AssertionAlgorithm, Credential, IdentityHost, ManagedIdentity, Tenant,
    VaultCertificate, VaultIdentity, VaultObject, VaultPassword,
};
use graphpost::graph::Request;
use graphpost::graph::client::Graph;
use graphpost::identity::{TokenError, Tokens};
use graphpost::metrics::Metrics;
use graphpost::outcome::Answer;
use graphpost::sandbox::{CertificateForm, Cloud, FederatedCredential, Options, Rule, TOKEN_EXCHANGE};
use jiff::Timestamp;
use secrecy::SecretString;
use serde_json::{Value, json};
use server::{CLIENT, certificate, credential_file, metrics, tenant};

const HEADER: &str = "the header of this sandbox";

async fn cloud() -> Cloud {
    let cloud = Cloud::bind("127.0.0.1:0".parse().unwrap(), Options::default())
        .await
        .unwrap();
    cloud.change_tenant(|it| {
        it.names = vec!["contoso.onmicrosoft.com".to_owned()];
        it.clients = vec![CLIENT.to_owned()];
        it.secrets = vec!["s3cret value".to_owned()];
        it.identity_header = HEADER.to_owned();
        it.trust_presented_certificates = false;
    });
    cloud
}

fn register(cloud: &Cloud, name: &str) {
    let pem = std::fs::read(credential_file(name)).unwrap();
    cloud.register_certificate(&pem).unwrap();
}

fn with(cloud: &Cloud, credential: ApplicationCredential) -> Tenant {
    Tenant {
        credential,
        ..tenant(&cloud.authority(), &cloud.graph())
    }
}

fn tokens(tenant: &Tenant) -> (Tokens, Arc<Metrics>) {
    let metrics = metrics();
    (Tokens::new(tenant, metrics.clone()).unwrap(), metrics)
}

/// Sends one message; the answer's status.
async fn send(tenant: &Tenant) -> Result<u16, Answer> {
    let (tokens, metrics) = tokens(tenant);
    let graph = Graph::new(tenant, Duration::from_secs(30), tokens, metrics).unwrap();
    status(graph.send_mail("service@contoso.com", message()).await)
}

fn status(answer: Answer) -> Result<u16, Answer> {
    match answer {
        Answer::Response(response) => Ok(response.status),
        other => Err(other),
    }
}

fn message() -> Request {
    let json = json!({"message": {
        "subject": "x",
        "body": {"contentType": "text", "content": "y"},
        "toRecipients": [{"emailAddress": {"address": "a@example.com"}}],
    }});
    Request::Json(Bytes::from(json.to_string()))
}

async fn failure(tenant: &Tenant) -> TokenError {
    tokens(tenant).0.get().await.unwrap_err()
}

fn line(metrics: &Metrics, line: &str) -> bool {
    metrics.encode().lines().any(|it| it == line)
}

#[tokio::test]
async fn the_next_certificate_is_used_as_soon_as_it_is_taken() {
    let cloud = cloud().await;
    register(&cloud, "app.pem");
    let tenant = Tenant {
        next_credential: Some(certificate("other.pem", Some("other.key"))),
        ..tenant(&cloud.authority(), &cloud.graph())
    };
    let (tokens, metrics) = tokens(&tenant);

    // It has not been uploaded yet.
    let first = tokens.get().await.unwrap();
    assert!(line(
        &metrics,
        r#"graphpost_credential_in_use{credential="current"} 1"#
    ));
    assert!(line(
        &metrics,
        r#"graphpost_credential_in_use{credential="next"} 0"#
    ));

    register(&cloud, "other.pem");
    tokens.reject(&first, None);
    let second = tokens.get().await.unwrap();
    assert_ne!(first, second);
    assert!(line(
        &metrics,
        r#"graphpost_credential_in_use{credential="current"} 0"#
    ));
    assert!(line(
        &metrics,
        r#"graphpost_credential_in_use{credential="next"} 1"#
    ));
}

#[tokio::test]
async fn an_expired_certificate_gives_way_to_the_next() {
    let cloud = cloud().await;
    register(&cloud, "other.pem");
    let tenant = Tenant {
        credential: certificate("expired.pem", None),
        next_credential: Some(certificate("other.pem", Some("other.key"))),
        ..tenant(&cloud.authority(), &cloud.graph())
    };
    assert_eq!(send(&tenant).await.unwrap(), 202);

    // And where neither is taken, both are named.
    let error = failure(&Tenant {
        next_credential: Some(certificate("both.pem", None)),
        ..tenant
    })
    .await;
    assert!(error.credential);
    assert_eq!(error.code, Some(700027));
    assert!(error.why.contains("the next credential:"), "{}", error.why);
}

/// What is said in an outage is said about neither.
#[tokio::test]
async fn an_outage_does_not_change_over() {
    let cloud = cloud().await;
    register(&cloud, "app.pem");
    cloud
        .set_faults(vec![Rule {
            operation: Some("token".to_owned()),
            action: "status".to_owned(),
            status: Some(503),
            count: Some(1),
            ..Rule::default()
        }])
        .unwrap();
    let error = failure(&Tenant {
        next_credential: Some(certificate("other.pem", Some("other.key"))),
        ..tenant(&cloud.authority(), &cloud.graph())
    })
    .await;
    assert!(!error.credential, "{}", error.why);
}

#[tokio::test]
async fn a_chain_is_sent_where_it_is_wanted() {
    let cloud = cloud().await;
    cloud.change_tenant(|it| it.trust_presented_certificates = true);
    let chained = Tenant {
        send_certificate_chain: true,
        credential: certificate("full-chain.pem", None),
        ..tenant(&cloud.authority(), &cloud.graph())
    };
    for assertion in [AssertionAlgorithm::Ps256, AssertionAlgorithm::Rs256] {
        let tenant = Tenant {
            assertion,
            ..chained.clone()
        };
        assert_eq!(send(&tenant).await.unwrap(), 202);
    }
    let error = failure(&Tenant {
        credential: certificate("other.pem", Some("other.key")),
        send_certificate_chain: false,
        ..chained
    })
    .await;
    assert_eq!(error.code, Some(700027), "{}", error.why);
}

#[tokio::test]
async fn a_client_secret_proves_the_application() {
    let cloud = cloud().await;
    let right = ApplicationCredential::Secret(SecretString::from("s3cret value"));
    assert_eq!(send(&with(&cloud, right)).await.unwrap(), 202);

    let wrong = ApplicationCredential::Secret(SecretString::from("s3cret id"));
    let tenant = with(&cloud, wrong);
    let error = failure(&tenant).await;
    assert_eq!(error.code, Some(7000215), "{}", error.why);
    assert!(error.why.contains("not its id"), "{}", error.why);
    let shown = format!("{tenant:?} {:?} {}", tokens(&tenant).0, error.why);
    assert!(!shown.contains("s3cret"), "{shown}");
}

/// Revoked tokens: Graph demands claims of the next one, and gets them.
#[tokio::test]
async fn a_revoked_token_is_replaced_by_one_with_the_claims_demanded() {
    let cloud = cloud().await;
    register(&cloud, "app.pem");
    let tenant = Tenant {
        continuous_access_evaluation: true,
        ..tenant(&cloud.authority(), &cloud.graph())
    };
    let (tokens, metrics) = tokens(&tenant);
    let graph = Graph::new(&tenant, Duration::from_secs(30), tokens.clone(), metrics).unwrap();
    assert_eq!(
        status(graph.send_mail("service@contoso.com", message()).await).unwrap(),
        202
    );
    assert_eq!(
        last_claims(&cloud).await,
        json!({"access_token": {"xms_cc": {"values": ["cp1"]}}})
    );

    cloud
        .set_faults(vec![Rule {
            operation: Some("sendMail".to_owned()),
            action: "revoke-tokens".to_owned(),
            count: Some(1),
            ..Rule::default()
        }])
        .unwrap();
    assert_eq!(
        status(graph.send_mail("service@contoso.com", message()).await).unwrap(),
        202
    );
    let claims = last_claims(&cloud).await;
    assert_eq!(claims["access_token"]["nbf"]["essential"], true, "{claims}");
    assert_eq!(claims["access_token"]["xms_cc"]["values"][0], "cp1", "{claims}");

    // A challenge is answered once.
    let token = tokens.get().await.unwrap();
    tokens.reject(&token, None);
    tokens.get().await.unwrap();
    let claims = last_claims(&cloud).await;
    assert!(claims["access_token"]["nbf"].is_null(), "{claims}");
}

/// What the last token request had in `claims`.
async fn last_claims(cloud: &Cloud) -> Value {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/sandbox/requests", cloud.url());
    let answer = client.get(url).send().await.unwrap();
    let report: Value = answer.json().await.unwrap();
    report["tokens"]["last_claims"].clone()
}

/// A token of another platform, such as a Kubernetes service account's.
fn foreign_token(subject: &str, audience: &str) -> String {
    let now = Timestamp::now().as_second();
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!(
        "{}.{}",
        part(json!({"alg": "RS256", "typ": "JWT", "kid": "1"})),
        part(json!({
            "iss": "https://cluster.example", "sub": subject, "aud": audience,
            "iat": now, "nbf": now, "exp": now + 3600, "jti": "1",
        }))
    );
    let key = std::fs::read(credential_file("pkcs8.der")).unwrap();
    let key = RsaKey::from_pkcs8(&key).unwrap();
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(
        &RSA_PKCS1_SHA256,
        &SystemRandom::new(),
        signed.as_bytes(),
        &mut signature,
    )
    .unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

const SUBJECT: &str = "system:serviceaccount:mail:graphpost";

fn federate(cloud: &Cloud) {
    let certificate =
        openssl::x509::X509::from_pem(&std::fs::read(credential_file("app.pem")).unwrap()).unwrap();
    let key = certificate.public_key().unwrap().public_key_to_pem().unwrap();
    cloud.change_tenant(|it| {
        it.federated_credentials = vec![FederatedCredential {
            issuer: "https://cluster.example".to_owned(),
            subject: SUBJECT.to_owned(),
            audience: TOKEN_EXCHANGE.to_owned(),
            public_key: String::from_utf8(key).unwrap(),
        }];
    });
}

#[tokio::test]
async fn another_platforms_token_proves_the_application() {
    let cloud = cloud().await;
    federate(&cloud);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    let tenant = with(&cloud, ApplicationCredential::FederatedToken(file.clone()));

    let error = failure(&tenant).await;
    assert!(
        error.credential && error.why.contains("federated_token_file"),
        "{}",
        error.why
    );
    std::fs::write(&file, "\n").unwrap();
    assert!(failure(&tenant).await.why.contains("it is empty"));

    // It is read anew each time.
    let (tokens, _) = tokens(&tenant);
    std::fs::write(&file, foreign_token(SUBJECT, TOKEN_EXCHANGE) + "\n").unwrap();
    let first = tokens.get().await.unwrap();
    tokens.reject(&first, None);
    std::fs::write(&file, foreign_token(SUBJECT, TOKEN_EXCHANGE)).unwrap();
    tokens.get().await.unwrap();
    assert_eq!(send(&tenant).await.unwrap(), 202);

    for (token, code, words) in [
        (foreign_token("another", TOKEN_EXCHANGE), 700213, "subject"),
        (foreign_token(SUBJECT, "https://elsewhere"), 700212, "audience"),
    ] {
        std::fs::write(&file, &token).unwrap();
        let error = failure(&tenant).await;
        assert_eq!(error.code, Some(code), "{}", error.why);
        assert!(error.why.contains(words), "{}", error.why);
        assert!(!error.why.contains(&token), "{}", error.why);
    }
}

fn machine(host: IdentityHost) -> ManagedIdentity {
    ManagedIdentity {
        client_id: None,
        host,
    }
}

fn virtual_machine(cloud: &Cloud) -> ManagedIdentity {
    machine(IdentityHost::VirtualMachine { root: cloud.url() })
}

#[tokio::test]
async fn a_managed_identity_needs_no_proof() {
    let cloud = cloud().await;
    for host in [
        IdentityHost::VirtualMachine { root: cloud.url() },
        IdentityHost::AppService {
            endpoint: format!("{}/msi/token", cloud.url()),
            header: SecretString::from(HEADER),
        },
    ] {
        let shown = format!("{host:?}");
        assert!(!shown.contains(HEADER), "{shown}");
        let tenant = with(&cloud, ApplicationCredential::ManagedIdentity(machine(host)));
        assert_eq!(send(&tenant).await.unwrap(), 202, "{shown}");
    }
}

#[tokio::test]
async fn a_managed_identity_that_is_not_there_is_named() {
    let cloud = cloud().await;
    cloud.change_tenant(|it| it.managed_identities = vec!["11111111-0000-4000-8000-000000000001".to_owned()]);
    let unknown = ManagedIdentity {
        client_id: Some("22222222-0000-4000-8000-000000000001".to_owned()),
        host: IdentityHost::VirtualMachine { root: cloud.url() },
    };
    let error = failure(&with(&cloud, ApplicationCredential::ManagedIdentity(unknown))).await;
    assert!(error.credential, "{}", error.why);
    assert!(error.why.contains("Identity not found"), "{}", error.why);

    let wrong_header = machine(IdentityHost::AppService {
        endpoint: format!("{}/msi/token", cloud.url()),
        header: SecretString::from("another"),
    });
    let error = failure(&with(
        &cloud,
        ApplicationCredential::ManagedIdentity(wrong_header),
    ))
    .await;
    assert!(error.credential, "{}", error.why);

    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let root = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let nowhere = machine(IdentityHost::VirtualMachine { root });
    let error = failure(&with(&cloud, ApplicationCredential::ManagedIdentity(nowhere))).await;
    assert!(!error.credential, "{}", error.why);
    assert!(
        error.why.contains("give this machine an identity in Azure"),
        "{}",
        error.why
    );

    // The metadata service is busy, or only just starting.
    for status in [404, 410, 429, 500] {
        cloud
            .set_faults(vec![Rule {
                operation: Some("identity".to_owned()),
                action: "status".to_owned(),
                status: Some(status),
                body: Some("empty".to_owned()),
                count: Some(1),
                ..Rule::default()
            }])
            .unwrap();
        let tenant = with(
            &cloud,
            ApplicationCredential::ManagedIdentity(virtual_machine(&cloud)),
        );
        let error = failure(&tenant).await;
        assert!(!error.credential, "{status}: {}", error.why);
    }
}

#[tokio::test]
async fn azure_arc_is_shown_its_own_files_and_no_others() {
    let cloud = cloud().await;
    let directory = tempfile::tempdir().unwrap();
    let arc = |key_directory: &Path| {
        let host = IdentityHost::Arc {
            endpoint: format!("{}/metadata/identity/oauth2/token", cloud.url()),
            key_directory: key_directory.to_owned(),
        };
        with(&cloud, ApplicationCredential::ManagedIdentity(machine(host)))
    };
    cloud.connect_arc(directory.path().to_owned(), None);
    assert_eq!(send(&arc(directory.path())).await.unwrap(), 202);

    // Another directory than the agent's.
    let error = failure(&arc(Path::new("/var/opt/azcmagent/tokens"))).await;
    assert!(
        error.credential && error.why.contains("names no key file"),
        "{}",
        error.why
    );

    let secret = directory.path().join("secret.txt");
    std::fs::write(&secret, "precious").unwrap();
    for realm in ["/etc/passwd", &secret.display().to_string(), "/etc/shadow.key"] {
        cloud.connect_arc(directory.path().to_owned(), Some(realm.to_owned()));
        let error = failure(&arc(directory.path())).await;
        assert!(
            error.credential && error.why.contains("names no key file"),
            "{}",
            error.why
        );
    }
    let large = directory.path().join("large.key");
    std::fs::write(&large, "x".repeat(5000)).unwrap();
    cloud.connect_arc(directory.path().to_owned(), Some(large.display().to_string()));
    let error = failure(&arc(directory.path())).await;
    assert!(error.why.contains("larger than any key"), "{}", error.why);
}

fn object(cloud: &Cloud, name: &str) -> VaultObject {
    VaultObject {
        vault: cloud.url(),
        name: name.to_owned(),
        version: None,
    }
}

fn in_vault(cloud: &Cloud, download: bool, identity: VaultIdentity) -> Tenant {
    with(
        cloud,
        ApplicationCredential::VaultCertificate(VaultCertificate {
            certificate: object(cloud, "graphpost"),
            download,
            identity,
        }),
    )
}

fn both() -> Vec<u8> {
    std::fs::read(credential_file("both.pem")).unwrap()
}

#[tokio::test]
async fn a_vault_signs_and_the_key_stays_there() {
    let cloud = cloud().await;
    register(&cloud, "app.pem");
    // No secret: the key cannot be had.
    cloud
        .put_certificate("graphpost", &both(), CertificateForm::None)
        .unwrap();
    cloud.change_tenant(|it| {
        it.vault_permissions = vec!["certificates/get".to_owned(), "keys/sign".to_owned()];
    });
    let tenant = in_vault(&cloud, false, VaultIdentity::Managed(virtual_machine(&cloud)));
    for assertion in [AssertionAlgorithm::Ps256, AssertionAlgorithm::Rs256] {
        let tenant = Tenant {
            assertion,
            ..tenant.clone()
        };
        let (tokens, _) = tokens(&tenant);
        let first = tokens.get().await.unwrap();
        let watched = tokens.certificates();
        assert_eq!(
            watched[0].thumbprint,
            std::fs::read_to_string(credential_file("values.txt"))
                .unwrap()
                .lines()
                .find_map(|it| it.strip_prefix("sha1="))
                .unwrap()
        );
        tokens.reject(&first, None);
        tokens.get().await.unwrap();
    }
    assert_eq!(send(&tenant).await.unwrap(), 202);
}

#[tokio::test]
async fn a_certificate_is_downloaded_in_both_forms() {
    let cloud = cloud().await;
    register(&cloud, "app.pem");
    for form in [CertificateForm::Pfx, CertificateForm::Pem] {
        cloud.put_certificate("graphpost", &both(), form).unwrap();
        let tenant = in_vault(&cloud, true, VaultIdentity::Managed(virtual_machine(&cloud)));
        assert_eq!(send(&tenant).await.unwrap(), 202, "{form:?}");
    }
    // As somebody stored it by hand: no type, and lines.
    let pfx = std::fs::read(credential_file("no-encryption.pfx")).unwrap();
    let lines: Vec<String> = base64::engine::general_purpose::STANDARD
        .encode(pfx)
        .as_bytes()
        .chunks(64)
        .map(|it| String::from_utf8(it.to_vec()).unwrap())
        .collect();
    for value in [lines.join("\n"), String::from_utf8(both()).unwrap()] {
        cloud.put_secret("graphpost", &value, "").unwrap();
        let tenant = in_vault(&cloud, true, VaultIdentity::Managed(virtual_machine(&cloud)));
        assert_eq!(send(&tenant).await.unwrap(), 202);
    }
}

/// A certificate that is renewed in the vault is taken up when the old one is refused.
#[tokio::test]
async fn a_certificate_that_was_renewed_in_the_vault_is_taken_up() {
    let cloud = cloud().await;
    register(&cloud, "app.pem");
    let other = [
        std::fs::read(credential_file("other.pem")).unwrap(),
        std::fs::read(credential_file("other.key")).unwrap(),
    ]
    .concat();
    cloud
        .put_certificate("graphpost", &other, CertificateForm::None)
        .unwrap();
    let tenant = in_vault(&cloud, false, VaultIdentity::Managed(virtual_machine(&cloud)));
    let mut tenant_tokens = Tokens::new(&tenant, metrics()).unwrap();
    assert_eq!(tenant_tokens.get().await.unwrap_err().code, Some(700027));

    cloud
        .put_certificate("graphpost", &both(), CertificateForm::None)
        .unwrap();
    // The backoff of the first is not waited for here.
    tenant_tokens = Tokens::new(&tenant, metrics()).unwrap();
    tenant_tokens.get().await.unwrap();
}

#[tokio::test]
async fn a_vault_opens_to_another_platforms_token() {
    let cloud = cloud().await;
    register(&cloud, "app.pem");
    federate(&cloud);
    cloud
        .put_certificate("graphpost", &both(), CertificateForm::None)
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, foreign_token(SUBJECT, TOKEN_EXCHANGE)).unwrap();
    let tenant = in_vault(&cloud, false, VaultIdentity::Federated(file));
    assert_eq!(send(&tenant).await.unwrap(), 202);
}

#[tokio::test]
async fn a_password_comes_from_a_vault() {
    let cloud = cloud().await;
    register(&cloud, "app.pem");
    cloud.put_secret("pfx-password", "secret", "text/plain").unwrap();
    let pfx = |secret: &str| {
        with(
            &cloud,
            ApplicationCredential::Certificate {
                files: Credential {
                    certificate: credential_file("legacy-rc2-40.pfx"),
                    private_key: None,
                    password: None,
                },
                vault_password: Some(VaultPassword {
                    secret: object(&cloud, secret),
                    identity: VaultIdentity::Managed(virtual_machine(&cloud)),
                }),
            },
        )
    };
    assert_eq!(send(&pfx("pfx-password")).await.unwrap(), 202);

    cloud.put_secret("wrong", "s3cret", "text/plain").unwrap();
    let error = failure(&pfx("wrong")).await;
    assert!(error.credential, "{}", error.why);
    assert!(
        error.why.contains("does not open with the configured password"),
        "{}",
        error.why
    );
    assert!(!error.why.contains("s3cret"), "{}", error.why);
}

#[tokio::test]
async fn what_a_vault_refuses_says_what_to_mend() {
    let cloud = cloud().await;
    register(&cloud, "app.pem");
    let identity = || VaultIdentity::Managed(virtual_machine(&cloud));
    let error = failure(&in_vault(&cloud, false, identity())).await;
    assert!(
        error.credential && error.why.contains("CertificateNotFound"),
        "{}",
        error.why
    );
    assert!(error.why.contains("check the name"), "{}", error.why);

    cloud
        .put_certificate("graphpost", &both(), CertificateForm::None)
        .unwrap();
    cloud.change_tenant(|it| it.vault_permissions.clear());
    let error = failure(&in_vault(&cloud, false, identity())).await;
    assert!(
        error.credential && error.why.contains("give the identity the role"),
        "{}",
        error.why
    );

    cloud.change_tenant(|it| it.vault_permissions = vec!["certificates/get".to_owned()]);
    let error = failure(&in_vault(&cloud, false, identity())).await;
    assert!(error.why.contains("keys/sign"), "{}", error.why);

    // A key that Entra ID would not take.
    let ec = std::fs::read(credential_file("ec.pem")).unwrap();
    if cloud
        .put_certificate("graphpost", &ec, CertificateForm::Pem)
        .is_ok()
    {
        cloud.change_tenant(|it| it.vault_permissions = vec!["secrets/get".to_owned()]);
        let error = failure(&in_vault(&cloud, true, identity())).await;
        assert!(error.why.contains("elliptic curve"), "{}", error.why);
    }

    cloud
        .set_faults(vec![Rule {
            operation: Some("vault".to_owned()),
            action: "status".to_owned(),
            status: Some(503),
            ..Rule::default()
        }])
        .unwrap();
    let error = failure(&in_vault(&cloud, false, identity())).await;
    assert!(!error.credential, "{}", error.why);
}

/// A challenge that leads elsewhere gets no token: it could be used there.
#[tokio::test]
async fn a_vault_that_asks_for_a_foreign_token_gets_none() {
    let cloud = cloud().await;
    cloud
        .put_certificate("graphpost", &both(), CertificateForm::None)
        .unwrap();
    for resource in [
        "https://evil.example",
        "https://graph.microsoft.com",
        "http://127.0.0.1:1",
    ] {
        cloud.change_tenant(|it| it.vault_resource = Some(resource.to_owned()));
        let tenant = in_vault(&cloud, false, VaultIdentity::Managed(virtual_machine(&cloud)));
        let error = failure(&tenant).await;
        assert!(error.credential, "{}", error.why);
        assert!(
            error.why.contains("asks for a token for another place"),
            "{}",
            error.why
        );
    }
    // Where tokens come from is ours to know; a foreign authority in the challenge changes nothing.
    cloud.change_tenant(|it| {
        it.vault_resource = None;
        it.vault_authority = Some("https://evil.example".to_owned());
    });
    register(&cloud, "app.pem");
    let tenant = in_vault(&cloud, false, VaultIdentity::Managed(virtual_machine(&cloud)));
    assert_eq!(send(&tenant).await.unwrap(), 202);
}

/// Whoever asks the metadata service through a proxy, or follows where it points, gives the machine's
/// token away.
#[tokio::test]
async fn a_metadata_service_is_asked_directly_and_not_followed_elsewhere() {
    let mut elsewhere = server::Server::start(vec![]).await;
    let redirect = format!(
        "HTTP/1.1 307 Moved\r\nLocation: {}/metadata/identity/oauth2/token\r\nContent-Length: 0\r\n\r\n",
        elsewhere.url()
    );
    for path in ["/metadata/identity/oauth2/token", "/msi/token"] {
        let metadata = answering(&redirect).await;
        let host = match path {
            "/msi/token" => IdentityHost::AppService {
                endpoint: format!("{metadata}{path}"),
                header: SecretString::from(HEADER),
            },
            _ => IdentityHost::VirtualMachine { root: metadata },
        };
        let tenant = Tenant {
            // For Graph; not for the machine's own service.
            proxy: Some(elsewhere.url()),
            credential: ApplicationCredential::ManagedIdentity(machine(host)),
            ..tenant("http://127.0.0.1:1", "http://127.0.0.1:1")
        };
        let error = failure(&tenant).await;
        assert!(error.credential, "{}", error.why);
        assert!(error.why.contains("answers 307"), "{}", error.why);
    }
    assert!(elsewhere.seen.try_recv().is_err());
}

/// A server that answers every request with this.
async fn answering(answer: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = answer.to_owned();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.unwrap_or(0) > 0 {}
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    url
}
