use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use graphpost::sandbox::{Cloud, Options};
use serde_json::{Value, json};

use crate::client::*;

async fn post(cloud: &Cloud, tenant: &str, form: &[(&str, &str)]) -> (u16, Value) {
    let url = format!("{}/{tenant}/oauth2/v2.0/token", cloud.authority());
    let answer = http().post(url).send_form(form).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// Status, OAuth error, and AADSTS code.
fn refusal((status, body): &(u16, Value)) -> (u16, String, u64) {
    let error = body["error"]
        .as_str()
        .unwrap_or_else(|| panic!("no error: {body}"))
        .to_owned();
    (*status, error, body["error_codes"][0].as_u64().unwrap())
}

#[tokio::test]
async fn a_signed_assertion_gets_a_token() {
    let cloud = cloud().await;
    for header in [REGISTERED.ps256_header(), REGISTERED.rs256_header(), {
        // Microsoft's Rust SDK encodes x5t with the standard alphabet.
        json!({"alg": "RS256", "x5t": STANDARD.encode(REGISTERED.sha1())})
    }] {
        let assertion = REGISTERED.sign(&header, &claims(&cloud));
        let (status, body) = post(&cloud, TENANT, &form(&assertion)).await;
        assert_eq!(status, 200, "{body}");
        assert_eq!(body["token_type"], "Bearer");
        assert_eq!(body["expires_in"], 3599);
        assert_eq!(body["ext_expires_in"], 3599);
        let payload = body["access_token"].as_str().unwrap().split('.').nth(1).unwrap();
        let payload: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap();
        assert_eq!(payload["aud"], "https://graph.microsoft.com");
        assert_eq!(payload["appid"], CLIENT);
        assert_eq!(payload["roles"], json!(["Mail.Send", "Mail.ReadWrite"]));
    }
    // MSAL Python pads the thumbprint and has fractions of a second.
    let header = json!({"alg": "PS256", "x5t#S256": URL_SAFE.encode(REGISTERED.sha256())});
    let mut fractions = claims(&cloud);
    fractions["exp"] = (now() as f64 + 600.25).into();
    let assertion = REGISTERED.sign(&header, &fractions);
    assert_eq!(post(&cloud, TENANT, &form(&assertion)).await.0, 200);
    // MSAL.NET writes the times as strings.
    let mut texts = claims(&cloud);
    texts["nbf"] = now().to_string().into();
    texts["exp"] = (now() + 600).to_string().into();
    let assertion = REGISTERED.sign(&REGISTERED.ps256_header(), &texts);
    assert_eq!(post(&cloud, TENANT, &form(&assertion)).await.0, 200);
}

#[tokio::test]
async fn every_flaw_of_an_assertion_has_its_code() {
    let cloud = cloud().await;
    cloud.register_certificate(&EXPIRED.der()).unwrap();
    cloud.register_certificate(&ELLIPTIC.der()).unwrap();
    let with = |name: &str, value: Value| {
        let mut changed = claims(&cloud);
        changed[name] = value;
        changed
    };
    let good = REGISTERED.sign(&REGISTERED.ps256_header(), &claims(&cloud));
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let padded = format!("{signed}.{signature}==");
    let tampered = {
        let header = signed.split('.').next().unwrap();
        let other = URL_SAFE_NO_PAD.encode(with("jti", "another".into()).to_string());
        format!("{header}.{other}.{signature}")
    };
    let sign = |claims: &Value| REGISTERED.sign(&REGISTERED.ps256_header(), claims);
    let mut ps256_with_sha1 = REGISTERED.rs256_header();
    ps256_with_sha1["alg"] = "PS256".into();
    let mut rs256_with_sha256 = REGISTERED.ps256_header();
    rs256_with_sha256["alg"] = "RS256".into();
    let mut pss_called_pkcs1 = REGISTERED.rs256_header();
    pss_called_pkcs1["alg"] = "PS256".into();
    let pss_called_pkcs1 = {
        let pss = REGISTERED.sign(&REGISTERED.ps256_header(), &claims(&cloud));
        let (_, signature) = pss.rsplit_once('.').unwrap();
        let pkcs1 = REGISTERED.sign(&REGISTERED.rs256_header(), &claims(&cloud));
        let (signed, _) = pkcs1.rsplit_once('.').unwrap();
        format!("{signed}.{signature}")
    };

    for (what, assertion, code, fragment) in [
        ("one part", "nonsense".to_owned(), 50_027, "three parts"),
        ("not base64", "a.b.c!".to_owned(), 50_027, "base64url"),
        ("padding", padded, 50_027, "signature is not base64url"),
        (
            "not JSON",
            format!("{0}.{0}.{0}", URL_SAFE_NO_PAD.encode("x")),
            50_027,
            "not a JSON object",
        ),
        ("no jti", sign(&with("jti", Value::Null)), 50_027, "'jti'"),
        (
            "symmetric",
            REGISTERED.sign(&json!({"alg": "HS256"}), &claims(&cloud)),
            5_002_730,
            "HS256",
        ),
        (
            "unsigned",
            REGISTERED.sign(&json!({"alg": "none"}), &claims(&cloud)),
            5_002_730,
            "none",
        ),
        (
            "PS256 with x5t",
            REGISTERED.sign(&ps256_with_sha1, &claims(&cloud)),
            700_027,
            "not found",
        ),
        (
            "RS256 with x5t#S256",
            REGISTERED.sign(&rs256_with_sha256, &claims(&cloud)),
            700_027,
            "not found",
        ),
        (
            "unknown key",
            STRANGER.sign(&STRANGER.ps256_header(), &claims(&cloud)),
            700_027,
            "Thumbprint of key used by client",
        ),
        (
            "expired key",
            EXPIRED.sign(&EXPIRED.ps256_header(), &claims(&cloud)),
            700_027,
            "The key used is expired.",
        ),
        (
            "elliptic key",
            ELLIPTIC.sign(&ELLIPTIC.ps256_header(), &claims(&cloud)),
            5_002_730,
            "key type",
        ),
        (
            "another's signature",
            STRANGER.sign(&REGISTERED.ps256_header(), &claims(&cloud)),
            700_027,
            "signature value did not match",
        ),
        ("tampered", tampered, 700_027, "signature value did not match"),
        (
            "PSS called PKCS1",
            pss_called_pkcs1,
            700_027,
            "signature value did not match",
        ),
        (
            "audience",
            sign(&with(
                "aud",
                "https://login.microsoftonline.com/x/oauth2/v2.0/token".into(),
            )),
            700_023,
            "audience",
        ),
        (
            "issuer",
            sign(&with("iss", "someone".into())),
            700_021,
            "client_id",
        ),
        (
            "subject",
            sign(&with("sub", "someone".into())),
            700_021,
            "client_id",
        ),
        (
            "too early",
            sign(&with("nbf", (now() + 400).into())),
            700_024,
            "valid time range",
        ),
        (
            "too late",
            sign(&with("exp", (now() - 400).into())),
            700_024,
            "valid time range",
        ),
        (
            "no end",
            sign(&with("exp", Value::Null)),
            700_024,
            "valid time range",
        ),
    ] {
        let answer = post(&cloud, TENANT, &form(&assertion)).await;
        assert_eq!(
            refusal(&answer),
            (401, "invalid_client".into(), code),
            "{what}: {}",
            answer.1
        );
        let description = answer.1["error_description"].as_str().unwrap();
        assert!(
            description.starts_with(&format!("AADSTS{code}: ")),
            "{what}: {description}"
        );
        assert!(description.contains(fragment), "{what}: {description}");
    }
    // Within the tolerance of five minutes.
    assert_eq!(
        post(&cloud, TENANT, &form(&sign(&with("nbf", (now() + 200).into()))))
            .await
            .0,
        200
    );
    assert_eq!(
        post(&cloud, TENANT, &form(&sign(&with("exp", (now() - 200).into()))))
            .await
            .0,
        200
    );
}

#[tokio::test]
async fn every_flaw_of_a_request_has_its_code() {
    let mut options = Options {
        certificates: vec![REGISTERED.der()],
        ..Options::default()
    };
    options.tenant.names = vec![TENANT.into()];
    options.tenant.clients = vec![CLIENT.into()];
    options.tenant.secrets = vec!["s3cret".into()];
    let cloud = Cloud::bind("127.0.0.1:0".parse().unwrap(), options)
        .await
        .unwrap();
    let assertion = REGISTERED.sign(&REGISTERED.ps256_header(), &claims(&cloud));
    let good = form(&assertion);
    let with = |name: &'static str, value: &'static str| {
        let mut changed: Vec<(&str, &str)> = good.iter().copied().filter(|it| it.0 != name).collect();
        changed.push((name, value));
        changed
    };
    let both = [good.clone(), vec![("client_secret", "s3cret")]].concat();
    let secret = |value: &'static str| {
        vec![
            good[0],
            good[1],
            ("client_secret", value),
            ("grant_type", "client_credentials"),
        ]
    };
    assert_eq!(post(&cloud, TENANT, &good).await.0, 200);
    assert_eq!(post(&cloud, TENANT, &secret("s3cret")).await.0, 200);

    for (what, tenant, form, expected) in [
        (
            "tenant no name",
            "not_a_name",
            good.clone(),
            (400, "invalid_request", 900_023),
        ),
        (
            "tenant unknown",
            "fabrikam.com",
            good.clone(),
            (400, "invalid_request", 90_002),
        ),
        (
            "grant type",
            TENANT,
            with("grant_type", "password"),
            (400, "unsupported_grant_type", 70_003),
        ),
        (
            "no grant type",
            TENANT,
            with("grant_type", ""),
            (400, "invalid_request", 900_144),
        ),
        (
            "no client",
            TENANT,
            with("client_id", ""),
            (400, "invalid_request", 900_144),
        ),
        (
            "client unknown",
            TENANT,
            with("client_id", "99999999-2222-4333-8444-555555555555"),
            (400, "unauthorized_client", 700_016),
        ),
        (
            "client no GUID",
            TENANT,
            with("client_id", "app"),
            (400, "unauthorized_client", 700_016),
        ),
        (
            "scope",
            TENANT,
            with("scope", "https://graph.microsoft.com/Mail.Send"),
            (400, "invalid_scope", 1_002_012),
        ),
        (
            "scopes",
            TENANT,
            with("scope", "https://graph.microsoft.com/.default openid"),
            (400, "invalid_scope", 70_011),
        ),
        (
            "no scope",
            TENANT,
            with("scope", ""),
            (400, "invalid_request", 900_144),
        ),
        (
            "resource",
            TENANT,
            with("scope", "https://graph.example/.default"),
            (400, "invalid_resource", 500_011),
        ),
        (
            "assertion type",
            TENANT,
            with("client_assertion_type", "jwt"),
            (401, "invalid_client", 7_000_218),
        ),
        (
            "no assertion",
            TENANT,
            with("client_assertion", ""),
            (401, "invalid_client", 7_000_218),
        ),
        (
            "secret and assertion",
            TENANT,
            both,
            (401, "invalid_client", 7_000_218),
        ),
        (
            "wrong secret",
            TENANT,
            secret("guess"),
            (401, "invalid_client", 7_000_215),
        ),
        (
            "claims",
            TENANT,
            with("claims", "{"),
            (400, "invalid_request", 1_400_000),
        ),
        (
            "twice",
            TENANT,
            [good.clone(), vec![("scope", "x")]].concat(),
            (400, "invalid_request", 9_002_313),
        ),
    ] {
        let answer = post(&cloud, tenant, &form).await;
        let (status, error, code) = expected;
        assert_eq!(
            refusal(&answer),
            (status, error.into(), code),
            "{what}: {}",
            answer.1
        );
    }

    let url = format!("{}/{TENANT}/oauth2/v2.0/token", cloud.authority());
    let got = http().get(&url).send().await.unwrap();
    assert_eq!(got.status(), 405);
    let json = http()
        .post(&url)
        .json(&json!({"grant_type": "client_credentials"}))
        .send()
        .await
        .unwrap();
    assert_eq!(json.status(), 400);
}

#[tokio::test]
async fn answers_have_their_headers_and_errors_their_seven_fields() {
    let cloud = cloud().await;
    let url = format!("{}/{TENANT}/oauth2/v2.0/token", cloud.authority());
    let id = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee";
    let assertion = REGISTERED.sign(&REGISTERED.ps256_header(), &claims(&cloud));
    for (form, status) in [(form(&assertion), 200), (form("x"), 401)] {
        let answer = http()
            .post(&url)
            .header("client-request-id", id)
            .header("return-client-request-id", "true")
            .send_form(&form)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), status);
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("content-type"), "application/json; charset=utf-8");
        assert_eq!(header("cache-control"), "no-store, no-cache");
        assert_eq!(header("pragma"), "no-cache");
        assert_eq!(header("client-request-id"), id);
        assert_eq!(header("x-ms-request-id").len(), 36);
        let body: Value = answer.json().await.unwrap();
        if status == 401 {
            let mut fields: Vec<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
            fields.sort_unstable();
            assert_eq!(
                fields,
                [
                    "correlation_id",
                    "error",
                    "error_codes",
                    "error_description",
                    "error_uri",
                    "timestamp",
                    "trace_id"
                ]
            );
            assert_eq!(body["correlation_id"], id);
        }
    }
}

#[tokio::test]
async fn the_knobs() {
    let client = Client::new().await;
    client
        .put(
            "tenant",
            json!({"token_lifetime_seconds": 60, "refresh_in_seconds": 30, "roles": [], "refuse_replayed_assertions": true}),
        )
        .await;
    let assertion = REGISTERED.sign(&REGISTERED.ps256_header(), &claims(&client.cloud));
    let mut form = form(&assertion);
    form.push(("claims", r#"{"access_token":{"xms_cc":{"values":["cp1"]}}}"#));
    let (status, body) = post(&client.cloud, TENANT, &form).await;
    assert_eq!(
        (status, &body["expires_in"], &body["refresh_in"]),
        (200, &json!(60), &json!(30))
    );
    let payload = body["access_token"].as_str().unwrap().split('.').nth(1).unwrap();
    let payload: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap();
    assert_eq!(
        payload.get("roles"),
        None,
        "with RBAC for Applications alone the token names no role"
    );
    assert_eq!(payload["xms_cc"], json!(["CP1"]));
    assert_eq!(
        client.sandbox("requests").await["tokens"]["last_claims"]["access_token"]["xms_cc"]["values"][0],
        "cp1"
    );

    let replayed = post(&client.cloud, TENANT, &form).await;
    assert_eq!(refusal(&replayed).2, 50_013);

    // A certificate that comes along is registered on first sight, if the tenant wants that.
    let mut header = STRANGER.ps256_header();
    header["x5c"] = json!([STANDARD.encode(STRANGER.der())]);
    let cloud = &client.cloud;
    let ask = || {
        let assertion = STRANGER.sign(&header, &claims(cloud));
        async move { post(cloud, TENANT, &crate::client::form(&assertion)).await }
    };
    assert_eq!(refusal(&ask().await).2, 700_027);
    client
        .put("tenant", json!({"trust_presented_certificates": true}))
        .await;
    assert_eq!(ask().await.0, 200);
}

#[tokio::test]
async fn certificates_are_registered_over_http() {
    let client = Client::new().await;
    let register = |body: Vec<u8>| {
        client
            .http
            .post(client.url("/sandbox/certificates"))
            .body(body)
            .send()
    };
    let answer = register(STRANGER.certificate.to_pem().unwrap()).await.unwrap();
    assert_eq!(answer.status(), 201);
    let thumbprints: Value = answer.json().await.unwrap();
    let hex: String = STRANGER
        .sha256()
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    assert_eq!(thumbprints["sha256"], hex.as_str());
    let assertion = STRANGER.sign(&STRANGER.ps256_header(), &claims(&client.cloud));
    assert_eq!(post(&client.cloud, TENANT, &form(&assertion)).await.0, 200);
    assert_eq!(register(b"nonsense".to_vec()).await.unwrap().status(), 400);
}
