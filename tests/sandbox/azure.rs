use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use graphpost::sandbox::{CertificateForm, FederatedCredential, TOKEN_EXCHANGE};
use openssl::hash::MessageDigest;
use openssl::pkcs12::Pkcs12;
use openssl::rsa::Padding;
use openssl::sign::{RsaPssSaltlen, Verifier};
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::client::*;

const API: &str = "api-version=7.4";

/// Status, the challenge, and the body.
async fn answer(request: RequestBuilder) -> (u16, String, Value) {
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let challenge = answer
        .headers()
        .get("www-authenticate")
        .map_or("", |it| it.to_str().unwrap())
        .to_owned();
    (status, challenge, answer.json().await.unwrap_or_default())
}

/// A client whose token is for the vault.
async fn vault_client() -> Client {
    let mut client = Client::new().await;
    let assertion = REGISTERED.sign(&REGISTERED.ps256_header(), &claims(&client.cloud));
    let mut form = form(&assertion);
    form[1].1 = "https://vault.azure.net/.default";
    let url = format!("{}/{TENANT}/oauth2/v2.0/token", client.cloud.authority());
    let token: Value = client
        .http
        .post(url)
        .send_form(&form)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    client.token = token["access_token"].as_str().unwrap().to_owned();
    client
}

fn pem(identity: &Identity) -> Vec<u8> {
    [
        identity.certificate.to_pem().unwrap(),
        identity.key.private_key_to_pem_pkcs8().unwrap(),
    ]
    .concat()
}

#[tokio::test]
async fn the_vault_challenges_before_it_answers() {
    let client = vault_client().await;
    client
        .cloud
        .put_secret("password", "s3cret", "text/plain")
        .unwrap();
    let path = format!("/secrets/password?{API}");
    let own = client.cloud.url();
    let (status, challenge, body) = answer(client.http.get(client.url(&path))).await;
    assert_eq!(
        (status, body["error"]["code"].as_str()),
        (401, Some("Unauthorized"))
    );
    assert_eq!(
        challenge,
        format!("Bearer authorization=\"{own}/contoso.onmicrosoft.com\", resource=\"{own}\"")
    );
    let wrong = client.http.get(client.url(&path)).bearer_auth("nonsense");
    assert_eq!(answer(wrong).await.0, 401);

    let (status, _, body) = answer(client.get(&path)).await;
    assert_eq!(
        (status, &body["value"], &body["contentType"]),
        (200, &json!("s3cret"), &json!("text/plain"))
    );
    assert!(
        body["id"]
            .as_str()
            .unwrap()
            .starts_with(&format!("{own}/secrets/password/"))
    );

    // Challenges that lead elsewhere.
    client
        .put(
            "tenant",
            json!({"vault_resource": "https://evil.example", "vault_authority": "https://evil.example"}),
        )
        .await;
    let (_, challenge, _) = answer(client.http.get(client.url(&path))).await;
    assert!(
        challenge.contains("resource=\"https://evil.example\""),
        "{challenge}"
    );
}

#[tokio::test]
async fn what_the_vault_refuses() {
    let client = vault_client().await;
    let put = |name: &str, value: Value| {
        client
            .http
            .put(client.url(&format!("/sandbox/vault/secrets/{name}")))
            .json(&value)
            .send()
    };
    assert_eq!(put("a", json!({"value": "1"})).await.unwrap().status(), 201);
    assert_eq!(
        put("off", json!({"value": "1", "enabled": false}))
            .await
            .unwrap()
            .status(),
        201
    );
    assert_eq!(put("no_name", json!({"value": "1"})).await.unwrap().status(), 400);
    for (path, status, code) in [
        ("/secrets/a".to_owned(), 400, "BadParameter"),
        ("/secrets/a?api-version=1".into(), 400, "BadParameter"),
        (format!("/secrets/b?{API}"), 404, "SecretNotFound"),
        (format!("/secrets/a/0123?{API}"), 404, "SecretNotFound"),
        (format!("/secrets/off?{API}"), 403, "Forbidden"),
        (format!("/keys/a?{API}"), 404, "KeyNotFound"),
        (format!("/certificates/a?{API}"), 404, "CertificateNotFound"),
        (format!("/secrets/A?{API}"), 200, ""),
    ] {
        let (found, _, body) = answer(client.get(&path)).await;
        assert_eq!(
            (found, body["error"]["code"].as_str().unwrap_or_default()),
            (status, code),
            "{path}"
        );
    }
    client.put("tenant", json!({"vault_permissions": []})).await;
    let (status, _, body) = answer(client.get(&format!("/secrets/a?{API}"))).await;
    assert_eq!(
        (status, &body["error"]["innererror"]["code"]),
        (403, &json!("ForbiddenByRbac"))
    );

    client
        .put(
            "faults",
            json!([{"operation": "vault", "action": "status", "status": 429, "retry_after": 2}]),
        )
        .await;
    assert_eq!(answer(client.get(&format!("/secrets/a?{API}"))).await.0, 429);
    client
        .put(
            "faults",
            json!([{"operation": "vault", "action": "reset-after-body"}]),
        )
        .await;
    assert!(client.get(&format!("/secrets/a?{API}")).send().await.is_err());
    let graph = client.send_mail(plain());
    assert_eq!(
        verdict(graph).await.0,
        401,
        "a token for the vault is none for Graph"
    );
}

#[tokio::test]
async fn a_certificate_is_a_secret_and_a_key() {
    let client = vault_client().await;
    client
        .cloud
        .put_certificate("app", &pem(&REGISTERED), CertificateForm::Pfx)
        .unwrap();
    let (_, _, secret) = answer(client.get(&format!("/secrets/app?{API}"))).await;
    assert_eq!(secret["contentType"], "application/x-pkcs12");
    let pfx = STANDARD.decode(secret["value"].as_str().unwrap()).unwrap();
    let opened = Pkcs12::from_der(&pfx).unwrap().parse2("").unwrap();
    assert!(opened.pkey.unwrap().public_eq(&REGISTERED.key));

    let (_, _, certificate) = answer(client.get(&format!("/certificates/app?{API}"))).await;
    assert_eq!(
        STANDARD.decode(certificate["cer"].as_str().unwrap()).unwrap(),
        REGISTERED.der()
    );
    assert_eq!(certificate["x5t"], URL_SAFE_NO_PAD.encode(REGISTERED.sha1()));
    let (_, _, key) = answer(client.get(&format!("/keys/app?{API}"))).await;
    assert_eq!(key["key"]["kty"], "RSA");

    client
        .cloud
        .put_certificate("signer", &pem(&REGISTERED), CertificateForm::None)
        .unwrap();
    assert_eq!(
        answer(client.get(&format!("/secrets/signer?{API}"))).await.0,
        404,
        "its key never leaves"
    );
    let upload = client
        .http
        .put(client.url("/sandbox/vault/certificates/pem?form=pem"))
        .body(pem(&STRANGER))
        .send()
        .await
        .unwrap();
    assert_eq!(upload.status(), 201);
    let (_, _, secret) = answer(client.get(&format!("/secrets/pem?{API}"))).await;
    assert_eq!(secret["contentType"], "application/x-pem-file");
}

#[tokio::test]
async fn the_vault_signs_an_assertion_that_entra_takes() {
    let client = vault_client().await;
    client
        .cloud
        .put_certificate("app", &pem(&REGISTERED), CertificateForm::None)
        .unwrap();
    let sign = |alg: &str, value: String| {
        client
            .post(&format!("/keys/app/sign?{API}"))
            .json(&json!({"alg": alg, "value": value}))
    };
    for (alg, header) in [
        ("PS256", REGISTERED.ps256_header()),
        ("RS256", REGISTERED.rs256_header()),
    ] {
        let signed = [&header, &claims(&client.cloud)]
            .map(|it| URL_SAFE_NO_PAD.encode(it.to_string()))
            .join(".");
        let digest = URL_SAFE_NO_PAD.encode(openssl::sha::sha256(signed.as_bytes()));
        let (status, _, body) = answer(sign(alg, digest)).await;
        assert_eq!(status, 200, "{body}");
        assert!(body["kid"].as_str().unwrap().contains("/keys/app/"));
        let signature = body["value"].as_str().unwrap();

        let mut verifier = Verifier::new(MessageDigest::sha256(), &REGISTERED.key).unwrap();
        if alg == "PS256" {
            verifier.set_rsa_padding(Padding::PKCS1_PSS).unwrap();
            verifier.set_rsa_pss_saltlen(RsaPssSaltlen::custom(32)).unwrap();
        }
        let raw = URL_SAFE_NO_PAD.decode(signature).unwrap();
        assert!(verifier.verify_oneshot(&raw, signed.as_bytes()).unwrap());

        let assertion = format!("{signed}.{signature}");
        let url = format!("{}/{TENANT}/oauth2/v2.0/token", client.cloud.authority());
        assert_eq!(
            client
                .http
                .post(url)
                .send_form(&form(&assertion))
                .send()
                .await
                .unwrap()
                .status(),
            200
        );
    }
    let digest = URL_SAFE_NO_PAD.encode([0; 32]);
    assert_eq!(answer(sign("ES256", digest)).await.0, 400);
    assert_eq!(
        answer(sign("PS256", URL_SAFE_NO_PAD.encode([0; 20]))).await.0,
        400
    );
    assert_eq!(answer(sign("PS256", STANDARD.encode([255; 32]))).await.0, 400);
    assert_eq!(client.sandbox("requests").await["vault"]["signatures"], 2);
}

#[tokio::test]
async fn a_virtual_machine_has_an_identity() {
    let client = Client::new().await;
    let resource = "resource=https://graph.microsoft.com/";
    let get = |query: &str| {
        let url = client.url(&format!("/metadata/identity/oauth2/token?{query}"));
        client.http.get(url).header("metadata", "true")
    };
    let good = format!("api-version=2018-02-01&{resource}");
    let (status, _, body) = answer(get(&good)).await;
    assert_eq!(status, 200, "{body}");
    for name in ["expires_in", "expires_on", "ext_expires_in", "not_before"] {
        assert!(
            body[name].as_str().unwrap().parse::<i64>().is_ok(),
            "{name} is a number in a string"
        );
    }
    assert_eq!(
        (&body["token_type"], &body["resource"]),
        (&json!("Bearer"), &json!("https://graph.microsoft.com"))
    );

    let token = body["access_token"].as_str().unwrap();
    let send = client
        .http
        .post(client.url(&format!("/v1.0/users/{MAILBOX}/sendMail")))
        .bearer_auth(token)
        .json(&json!({"message": plain()}));
    assert_eq!(verdict(send).await.0, 202);

    let no_header = client
        .http
        .get(client.url(&format!("/metadata/identity/oauth2/token?{good}")));
    for (request, error) in [
        (no_header, "bad_request_102"),
        (
            get(&good).header("x-forwarded-for", "192.0.2.1"),
            "bad_request_102",
        ),
        (get(resource), "invalid_request"),
        (get("api-version=2018-02-01"), "invalid_request"),
        (get(&format!("api-version=1&{resource}")), "bad_request_100"),
        (
            get("api-version=2018-02-01&resource=https://x.example"),
            "invalid_resource",
        ),
        (get(&format!("{good}&client_id=someone")), "invalid_request"),
        (
            get(&format!("api-version=2020-06-01&{resource}")),
            "bad_request_100",
        ),
    ] {
        let (status, _, body) = answer(request).await;
        assert_eq!((status, body["error"].as_str()), (400, Some(error)), "{body}");
    }
    client
        .put("tenant", json!({"managed_identities": [CLIENT]}))
        .await;
    assert_eq!(
        answer(get(&format!("{good}&client_id={CLIENT}"))).await.2["client_id"],
        CLIENT
    );
    client
        .put(
            "faults",
            json!([{"operation": "identity", "count": 1, "action": "status", "status": 410}]),
        )
        .await;
    assert_eq!(answer(get(&good)).await.0, 410);
    assert_eq!(answer(get(&good)).await.0, 200);
}

#[tokio::test]
async fn so_has_an_app_service() {
    let client = Client::new().await;
    let get = |query: &str| client.http.get(client.url(&format!("/msi/token?{query}")));
    let good = "api-version=2019-08-01&resource=https://vault.azure.net";
    assert_eq!(answer(get(good)).await.0, 401);
    assert_eq!(
        answer(get(good).header("x-identity-header", "guess")).await.0,
        401
    );
    let known = |query: &str| get(query).header("x-identity-header", "sandbox-identity-header");
    assert_eq!(answer(known("resource=https://vault.azure.net")).await.0, 400);
    let (status, _, body) = answer(known(good)).await;
    assert_eq!(status, 200);
    assert!(body["expires_on"].as_str().unwrap().parse::<i64>().unwrap() > now());
    assert!(body["access_token"].is_string());
}

#[tokio::test]
async fn azure_arc_asks_for_a_file() {
    let client = Client::new().await;
    let directory = tempfile::tempdir().unwrap();
    client.cloud.connect_arc(directory.path().to_owned(), None);
    let get = || {
        let query = "api-version=2020-06-01&resource=https://graph.microsoft.com";
        let url = client.url(&format!("/metadata/identity/oauth2/token?{query}"));
        client.http.get(url).header("metadata", "true")
    };
    let (status, challenge, _) = answer(get()).await;
    assert_eq!(status, 401);
    let path = challenge.strip_prefix("Basic realm=").unwrap();
    assert!(
        path.starts_with(directory.path().to_str().unwrap()) && path.ends_with(".key"),
        "{path}"
    );
    let key = std::fs::read_to_string(path).unwrap();
    assert!(key.len() <= 4096);
    let with_key = |key: &str| get().header("authorization", format!("Basic {key}"));
    assert_eq!(answer(with_key(&key)).await.0, 200);
    assert_eq!(answer(with_key(&key)).await.0, 401, "each key serves once");
    answer(get()).await;
    assert_eq!(answer(with_key("guess")).await.0, 401);

    client
        .cloud
        .connect_arc(directory.path().to_owned(), Some("/etc/passwd".into()));
    assert_eq!(answer(get()).await.1, "Basic realm=/etc/passwd");
}

#[tokio::test]
async fn another_platforms_token_stands_for_the_application() {
    let client = Client::new().await;
    let (issuer, subject) = (
        "https://oidc.cluster.example/",
        "system:serviceaccount:mail:graphpost",
    );
    let url = format!("{}/{TENANT}/oauth2/v2.0/token", client.cloud.authority());
    let token = |changes: Value| {
        let mut claims = json!({"iss": issuer, "sub": subject, "aud": [TOKEN_EXCHANGE], "exp": now() + 600});
        claims
            .as_object_mut()
            .unwrap()
            .extend(changes.as_object().unwrap().clone());
        STRANGER.sign(&json!({"alg": "RS256", "kid": "1"}), &claims)
    };
    let ask = |token: String| {
        let request = client.http.post(&url).send_form(&form(&token));
        async {
            let (status, _, body) = answer(request).await;
            (status, body["error_codes"][0].as_u64().unwrap_or_default())
        }
    };
    assert_eq!(ask(token(json!({}))).await, (400, 70_021));
    client.cloud.change_tenant(|tenant| {
        tenant.federated_credentials = vec![FederatedCredential {
            issuer: issuer.into(),
            subject: subject.into(),
            audience: TOKEN_EXCHANGE.into(),
            public_key: String::from_utf8(STRANGER.key.public_key_to_pem().unwrap()).unwrap(),
        }];
    });
    assert_eq!(ask(token(json!({}))).await, (200, 0));
    assert_eq!(ask(token(json!({"aud": TOKEN_EXCHANGE}))).await, (200, 0));
    for (changes, code) in [
        (json!({"iss": "https://other.example"}), 700_211),
        (json!({"aud": "api://other"}), 700_212),
        (json!({"sub": "system:serviceaccount:mail:other"}), 700_213),
        (json!({"exp": now() - 400}), 700_024),
    ] {
        assert_eq!(ask(token(changes.clone())).await, (401, code), "{changes}");
    }
    let forged = REGISTERED.sign(
        &json!({"alg": "RS256"}),
        &json!({"iss": issuer, "sub": subject, "aud": TOKEN_EXCHANGE, "exp": now() + 600}),
    );
    assert_eq!(ask(forged).await, (400, 50_013));
}

#[tokio::test]
async fn the_outlook_api_is_gone_unless_wanted() {
    let client = Client::new().await;
    let send = || {
        let message = json!({
            "Subject": "Hello", "Body": {"ContentType": "Text", "Content": "World"},
            "ToRecipients": [{"EmailAddress": {"Address": "a@b.example"}}],
            "Attachments": [{"@odata.type": "#Microsoft.OutlookServices.FileAttachment", "Name": "a", "ContentBytes": "AA=="}],
        });
        client
            .post(&format!("/api/v2.0/users/{MAILBOX}/sendmail"))
            .json(&json!({"Message": message, "SaveToSentItems": "false"}))
    };
    assert_eq!(verdict(send()).await, (410, "Gone".into()));
    client.put("tenant", json!({"outlook_rest": true})).await;
    // A token for Graph is none for Outlook.
    assert_eq!(verdict(send()).await.0, 401);
    let assertion = REGISTERED.sign(&REGISTERED.ps256_header(), &claims(&client.cloud));
    let mut form = form(&assertion);
    form[1].1 = "https://outlook.office.com/.default";
    let url = format!("{}/{TENANT}/oauth2/v2.0/token", client.cloud.authority());
    let token: Value = client
        .http
        .post(url)
        .send_form(&form)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let client = Client {
        token: token["access_token"].as_str().unwrap().to_owned(),
        ..client
    };
    let post = |body: Value| {
        client
            .post(&format!("/api/v2.0/users/{MAILBOX}/sendmail"))
            .json(&body)
    };
    let good = json!({"Message": {"ToRecipients": [{"EmailAddress": {"Address": "a@b.example"}}]}});
    assert_eq!(verdict(post(good)).await.0, 202);
    assert_eq!(
        verdict(post(json!({"message": plain()}))).await,
        (400, "RequestBodyRead".into())
    );
    assert_eq!(
        client.sandbox("messages").await[0]["recipients"],
        json!(["a@b.example"])
    );
}

#[tokio::test]
async fn libraries_find_the_token_endpoint() {
    let client = Client::new().await;
    let url = client.url(&format!("/{TENANT}/v2.0/.well-known/openid-configuration"));
    let (status, _, body) = answer(client.http.get(url)).await;
    assert_eq!(status, 200);
    assert_eq!(
        body["token_endpoint"],
        format!("{}/{TENANT}/oauth2/v2.0/token", client.cloud.url())
    );

    // Behind a proxy that speaks TLS the endpoint's URL, and so the audience, says https.
    let https = client.cloud.url().replace("http://", "https://");
    let mut claims = claims(&client.cloud);
    claims["aud"] = format!("{https}/{TENANT}/oauth2/v2.0/token").into();
    let assertion = REGISTERED.sign(&REGISTERED.ps256_header(), &claims);
    let url = format!("{}/{TENANT}/oauth2/v2.0/token", client.cloud.url());
    let ask = || client.http.post(&url).send_form(&form(&assertion));
    assert_eq!(answer(ask()).await.2["error_codes"], json!([700_023]));
    assert_eq!(answer(ask().header("x-forwarded-proto", "https")).await.0, 200);
}
