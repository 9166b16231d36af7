use std::time::Duration;

use graphpost::sandbox::Cloud;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::client::*;

async fn delivered(client: &Client) -> usize {
    client.sandbox("messages").await.as_array().unwrap().len()
}

/// What the client hears, and how many mails its recipients have after it.
async fn outcome(client: &Client, fault: Value) -> (String, usize) {
    let before = delivered(client).await;
    client.put("faults", json!([fault])).await;
    let heard = match client.send_mail(plain()).send().await {
        Ok(answer) => {
            let status = answer.status().as_u16();
            let retry_after = answer
                .headers()
                .get("retry-after")
                .map(|it| format!(" after {}", it.to_str().unwrap()));
            let kind = answer
                .headers()
                .get("content-type")
                .map_or("", |it| it.to_str().unwrap())
                .to_owned();
            let body = answer.text().await.unwrap();
            let shape = match serde_json::from_str::<Value>(&body) {
                Ok(json) => json["error"]["code"].as_str().unwrap().to_owned(),
                Err(_) if body.is_empty() => "empty".into(),
                Err(_) => format!("broken {kind}"),
            };
            format!("{status} {shape}{}", retry_after.unwrap_or_default())
        }
        Err(error) if error.is_connect() => "refused".into(),
        Err(_) => "reset".into(),
    };
    (heard, delivered(client).await - before)
}

#[tokio::test]
async fn what_is_answered_and_what_is_delivered_are_two_things() {
    let client = Client::new().await;
    let send_mail = |mut rule: Value| {
        rule["operation"] = "sendMail".into();
        rule["count"] = 1.into();
        rule
    };
    for (rule, heard, count) in [
        (json!({"action": "reset-before-body"}), "reset", 0),
        (json!({"action": "reset-after-body"}), "reset", 0),
        (json!({"action": "reset-after-body", "deliver": true}), "reset", 1),
        (json!({"action": "status", "status": 504}), "504 UnknownError", 0),
        (
            json!({"action": "status", "status": 504, "deliver": true}),
            "504 UnknownError",
            1,
        ),
        (
            json!({"action": "status", "status": 500, "code": "UnknownError", "deliver": true}),
            "500 UnknownError",
            1,
        ),
        (
            json!({"action": "status", "status": 429, "deliver": true, "retry_after": 3}),
            "429 ApplicationThrottled after 3",
            1,
        ),
        (
            json!({"action": "status", "status": 429, "retry_after": 2.128}),
            "429 ApplicationThrottled after 2.128",
            0,
        ),
        (
            json!({"action": "status", "status": 429, "retry_after": "Wed, 21 Oct 2026 07:28:00 GMT"}),
            "429 ApplicationThrottled after Wed, 21 Oct 2026 07:28:00 GMT",
            0,
        ),
        (
            json!({"action": "status", "status": 429}),
            "429 ApplicationThrottled",
            0,
        ),
        (
            json!({"action": "status", "status": 503, "retry_after": 10}),
            "503 serviceNotAvailable after 10",
            0,
        ),
        (
            json!({"action": "status", "status": 503}),
            "503 serviceNotAvailable",
            0,
        ),
        (
            json!({"action": "status", "status": 202, "retry_after": 5, "deliver": true}),
            "202 empty after 5",
            1,
        ),
        (json!({"action": "status", "status": 200}), "200 empty", 0),
        (
            json!({"action": "status", "status": 502, "body": "html"}),
            "502 broken text/html",
            0,
        ),
        (
            json!({"action": "status", "status": 500, "body": "truncated"}),
            "500 broken application/json",
            0,
        ),
        (
            json!({"action": "status", "status": 413, "body": "empty"}),
            "413 empty",
            0,
        ),
        (
            json!({"action": "status", "status": 507}),
            "507 ErrorQuotaExceeded",
            0,
        ),
        (
            json!({"action": "status", "status": 403}),
            "403 ErrorAccessDenied",
            0,
        ),
        (
            json!({"action": "status", "status": 401}),
            "401 InvalidAuthenticationToken",
            0,
        ),
        (
            json!({"action": "status", "statuses": [503]}),
            "503 serviceNotAvailable",
            0,
        ),
        (json!({"action": "delay", "delay_ms": 10}), "202 empty", 1),
    ] {
        let rule = send_mail(rule);
        assert_eq!(
            outcome(&client, rule.clone()).await,
            (heard.to_owned(), count),
            "{rule}"
        );
        assert_eq!(verdict(client.send_mail(plain())).await.0, 202, "once: {rule}");
    }
    let report = client.sandbox("requests").await;
    assert_eq!(report["answers"]["sendMail"]["reset"], 3);
    assert_eq!(report["answers"]["sendMail"]["504"], 2);
    let recent = report["recent"].as_array().unwrap();
    let lost = recent
        .iter()
        .filter(|it| it["answered"] != "202" && !it["delivered"].is_null())
        .count();
    assert_eq!(lost, 4, "delivered, and not said so");
}

#[tokio::test]
async fn a_request_that_is_itself_wrong_hears_so_and_not_the_fault() {
    let client = Client::new().await;
    client
        .put(
            "faults",
            json!([{"action": "status", "status": 504, "deliver": true}]),
        )
        .await;
    assert_eq!(
        verdict(client.send_mail(json!({"subject": "to nobody"}))).await,
        (400, "ErrorInvalidRecipients".into())
    );
    assert_eq!(delivered(&client).await, 0);
}

#[tokio::test]
async fn a_client_that_goes_away_does_not_undo_the_delivery() {
    let client = Client::new().await;
    client
        .put(
            "faults",
            json!([{"operation": "sendMail", "action": "delay", "delay_ms": 600_000}]),
        )
        .await;
    let request = client.send_mail(plain()).send();
    let deliveries = tokio::select! {
        _ = request => panic!("the answer takes ten minutes"),
        deliveries = client.cloud.wait_for(1) => deliveries,
    };
    assert_eq!(deliveries.len(), 1);
    assert_eq!(delivered(&client).await, 1);
}

/// The reset is a real one, and not an end of file.
#[tokio::test]
async fn a_reset_is_a_reset() {
    let client = Client::new().await;
    client
        .put("faults", json!([{"action": "reset-before-body"}]))
        .await;
    let mut stream = TcpStream::connect(client.cloud.address()).await.unwrap();
    let head = "POST /v1.0/users/a@b.example/sendMail HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let error = stream.read(&mut [0; 100]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn tokens_expire_and_are_revoked_at_will() {
    let mut client = Client::new().await;
    client
        .put(
            "faults",
            json!([{"operation": "sendMail", "count": 1, "action": "expire-tokens"}]),
        )
        .await;
    let answer = client.send_mail(plain()).send().await.unwrap();
    assert_eq!(answer.status(), 401);
    let body: Value = answer.json().await.unwrap();
    assert_eq!(
        body["error"]["message"],
        "Lifetime validation failed, the token is expired."
    );
    assert_eq!(
        verdict(client.send_mail(plain())).await.0,
        401,
        "the same token stays expired"
    );
    client.renew().await;
    assert_eq!(verdict(client.send_mail(plain())).await.0, 202);

    client
        .put(
            "faults",
            json!([{"operation": "sendMail", "count": 1, "action": "revoke-tokens"}]),
        )
        .await;
    let answer = client.send_mail(plain()).send().await.unwrap();
    assert_eq!(answer.status(), 401);
    let challenge = answer.headers()["www-authenticate"].to_str().unwrap();
    assert!(
        challenge.contains(r#"error="insufficient_claims""#),
        "{challenge}"
    );
    let encoded = challenge.split("claims=\"").nth(1).unwrap().trim_end_matches('"');
    let claims: Value = {
        use base64::Engine as _;
        serde_json::from_slice(&base64::engine::general_purpose::STANDARD.decode(encoded).unwrap()).unwrap()
    };
    assert_eq!(claims["access_token"]["nbf"]["essential"], true);
    client.renew().await;
    assert_eq!(verdict(client.send_mail(plain())).await.0, 202);
}

#[tokio::test]
async fn the_token_endpoint_fails_in_every_way() {
    let client = Client::new().await;
    // Every code of the documentation's table, with the OAuth error that goes with it.
    let codes = [
        (700_027, 401, "invalid_client"),
        (700_024, 401, "invalid_client"),
        (7_000_215, 401, "invalid_client"),
        (7_000_222, 401, "invalid_client"),
        (7_000_218, 401, "invalid_client"),
        (700_016, 400, "unauthorized_client"),
        (90_002, 400, "invalid_request"),
        (900_023, 400, "invalid_request"),
        (70_011, 400, "invalid_scope"),
        (1_002_012, 400, "invalid_scope"),
        (500_011, 400, "invalid_resource"),
        (50_034, 400, "invalid_grant"),
        (700_025, 401, "invalid_client"),
        (700_030, 401, "invalid_client"),
        (50_012, 401, "invalid_client"),
        (50_027, 401, "invalid_client"),
        (50_048, 401, "invalid_client"),
        (5_002_730, 401, "invalid_client"),
        (7_000_112, 400, "unauthorized_client"),
        (53_003, 400, "access_denied"),
        (700_021, 401, "invalid_client"),
        (700_023, 401, "invalid_client"),
        (70_021, 400, "invalid_request"),
        (700_211, 401, "invalid_client"),
        (700_212, 401, "invalid_client"),
        (700_213, 401, "invalid_client"),
        (900_382, 400, "invalid_request"),
        (90_033, 503, "temporarily_unavailable"),
        (90_024, 503, "temporarily_unavailable"),
        (50_033, 503, "temporarily_unavailable"),
        (90_006, 503, "temporarily_unavailable"),
        (90_012, 503, "temporarily_unavailable"),
        (90_055, 429, "temporarily_unavailable"),
        (50_196, 400, "invalid_request"),
    ];
    let ask = || async {
        let assertion = REGISTERED.sign(&REGISTERED.ps256_header(), &claims(&client.cloud));
        let url = format!("{}/{TENANT}/oauth2/v2.0/token", client.cloud.authority());
        client.http.post(url).send_form(&form(&assertion)).send().await
    };
    for (code, status, error) in codes {
        client
            .put(
                "faults",
                json!([{"operation": "token", "action": "aadsts", "code": code}]),
            )
            .await;
        let answer = ask().await.unwrap();
        assert_eq!(answer.status(), status, "AADSTS{code}");
        let body: Value = answer.json().await.unwrap();
        assert_eq!(
            (&body["error"], &body["error_codes"]),
            (&json!(error), &json!([code]))
        );
        assert!(
            body["error_description"]
                .as_str()
                .unwrap()
                .starts_with(&format!("AADSTS{code}: "))
        );
    }

    client
        .put(
            "faults",
            json!([{"operation": "token", "action": "status", "status": 429, "retry_after": 7}]),
        )
        .await;
    let answer = ask().await.unwrap();
    assert_eq!(
        (
            answer.status().as_u16(),
            answer.headers()["retry-after"].to_str().unwrap()
        ),
        (429, "7")
    );
    client
        .put(
            "faults",
            json!([{"operation": "token", "action": "status", "status": 502, "body": "html"}]),
        )
        .await;
    let answer = ask().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/html");
    client
        .put(
            "faults",
            json!([{"operation": "token", "action": "status", "status": 200, "body": "truncated"}]),
        )
        .await;
    assert!(ask().await.unwrap().json::<Value>().await.is_err());
    for action in ["reset-before-body", "reset-after-body"] {
        client
            .put("faults", json!([{"operation": "token", "action": action}]))
            .await;
        assert!(ask().await.is_err());
    }
    let answer = client
        .http
        .delete(client.url("/sandbox/faults"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 204);
    assert_eq!(ask().await.unwrap().status(), 200);
}

#[tokio::test]
async fn drafts_vanish_and_uploads_expire() {
    let client = Client::new().await;
    let path = "/v1.0/users/service@contoso.com/messages";
    let draft = || async {
        let draft: Value = client
            .post(path)
            .json(&plain())
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        format!("{path}/{}", draft["id"].as_str().unwrap())
    };
    let session = |draft: String| {
        let item = json!({"AttachmentItem": {"attachmentType": "file", "name": "x", "size": 4_000_000}});
        client
            .post(&format!("{draft}/attachments/createUploadSession"))
            .json(&item)
    };
    client
        .put(
            "faults",
            json!([{"operation": "createUploadSession", "count": 1, "action": "vanish"}]),
        )
        .await;
    assert_eq!(
        verdict(session(draft().await)).await,
        (404, "ErrorItemNotFound".into())
    );

    let opened: Value = session(draft().await).send().await.unwrap().json().await.unwrap();
    let url = opened["uploadUrl"].as_str().unwrap();
    let put = |range: &str| {
        client
            .http
            .put(url)
            .header("content-range", range)
            .body(vec![0; 1000])
    };
    let chunk = |extra: Value| {
        let mut rule = json!({"operation": "chunk", "mailbox": MAILBOX, "count": 1, "skip": 1});
        rule.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        json!([rule])
    };
    // The second chunk is taken, and its answer lost.
    client
        .put(
            "faults",
            chunk(json!({"action": "status", "status": 503, "deliver": true})),
        )
        .await;
    assert_eq!(verdict(put("bytes 0-999/4000000")).await.0, 200);
    assert_eq!(verdict(put("bytes 1000-1999/4000000")).await.0, 503);
    let stands: Value = client.http.get(url).send().await.unwrap().json().await.unwrap();
    assert_eq!(stands["nextExpectedRanges"], json!(["2000"]));
    client
        .put(
            "faults",
            json!([{"operation": "chunk", "action": "expire-upload"}]),
        )
        .await;
    assert_eq!(
        verdict(put("bytes 2000-2999/4000000")).await,
        (404, "ErrorItemNotFound".into())
    );
}

#[tokio::test]
async fn four_requests_at_a_time_for_each_mailbox() {
    let client = Client::new().await;
    client
        .put(
            "limits",
            json!({"retry_after": "fraction", "concurrency_retry_after_ms": 2128}),
        )
        .await;
    client
        .put(
            "faults",
            json!([{"operation": "sendMail", "mailbox": MAILBOX, "action": "delay", "delay_ms": 600_000}]),
        )
        .await;
    let hang = || {
        let request = client.send_mail(plain());
        tokio::spawn(async move { request.send().await })
    };
    let hanging: Vec<_> = (0..4).map(|_| hang()).collect();
    client.cloud.wait_for(4).await;
    let answer = client.send_mail(plain()).send().await.unwrap();
    assert_eq!(answer.status(), 429);
    assert_eq!(answer.headers()["retry-after"], "2.128");
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["error"]["code"], "ApplicationThrottled");
    assert_eq!(
        body["error"]["message"],
        "Application is over its MailboxConcurrency limit."
    );
    let other = client
        .post("/v1.0/users/other@contoso.com/sendMail")
        .json(&json!({"message": plain()}));
    assert_eq!(verdict(other).await.0, 202);
    assert_eq!(client.sandbox("requests").await["in_flight_peak"][MAILBOX], 4);
    hanging.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn rates_are_limited_at_run_time() {
    let client = Client::new().await;
    client
        .put(
            "limits",
            json!({"messages_per_minute": 2, "retry_after": "absent"}),
        )
        .await;
    assert_eq!(verdict(client.send_mail(plain())).await.0, 202);
    assert_eq!(verdict(client.send_mail(plain())).await.0, 202);
    let answer = client.send_mail(plain()).send().await.unwrap();
    assert_eq!(answer.status(), 429);
    assert!(!answer.headers().contains_key("retry-after"));

    client
        .put(
            "limits",
            json!({"messages_per_minute": null, "requests_per_ten_minutes": 3}),
        )
        .await;
    assert_eq!(
        verdict(client.send_mail(plain())).await.0,
        429,
        "refused requests count"
    );
    client
        .put(
            "limits",
            json!({"requests_per_ten_minutes": null, "bytes_per_five_minutes": 100}),
        )
        .await;
    assert_eq!(verdict(client.send_mail(plain())).await.0, 429);
    client
        .http
        .delete(client.url("/sandbox/limits"))
        .send()
        .await
        .unwrap();
    assert_eq!(verdict(client.send_mail(plain())).await.0, 202);
    let bad = client
        .http
        .put(client.url("/sandbox/limits"))
        .json(&json!({"speed": 1}))
        .send()
        .await
        .unwrap();
    assert_eq!(bad.status(), 400);
    assert!(bad.text().await.unwrap().contains("speed"));
}

async fn refused(cloud: &Cloud) -> bool {
    TcpStream::connect(cloud.address()).await.is_err()
}

async fn until(what: impl AsyncFn() -> bool) {
    tokio::time::timeout(Duration::from_secs(20), async {
        while !what().await {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it never came");
}

#[tokio::test]
async fn the_port_closes_and_opens() {
    let client = Client::new().await;
    client.cloud.close_for(Duration::from_secs(3600));
    until(async || refused(&client.cloud).await).await;
    assert!(
        client
            .send_mail(plain())
            .send()
            .await
            .is_err_and(|it| it.is_connect())
    );
    client.cloud.open();
    until(async || !refused(&client.cloud).await).await;
    assert_eq!(verdict(client.send_mail(plain())).await.0, 202);

    let answer = client
        .http
        .post(client.url("/sandbox/outage?ms=200"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 202);
    until(async || !refused(&client.cloud).await).await;
    assert_eq!(delivered(&client).await, 1);
}

#[tokio::test]
async fn memory_is_bounded_and_records_outlive_contents() {
    let client = Client::new().await;
    client
        .put(
            "limits",
            json!({"keep_messages": 5, "keep_bytes": 20_000, "retry_after": "integer"}),
        )
        .await;
    let mut message = plain();
    message["body"]["content"] = "x".repeat(4000).into();
    for _ in 0..7 {
        assert_eq!(verdict(client.send_mail(message.clone())).await.0, 202);
    }
    let list = client.sandbox("messages").await;
    let ids: Vec<u64> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["id"].as_u64().unwrap())
        .collect();
    assert_eq!(ids, [3, 4, 5, 6, 7]);
    assert_eq!(client.sandbox("messages/3").await["contentKept"], false);
    assert_eq!(client.sandbox("messages/7").await["contentKept"], true);
    assert_eq!(client.sandbox("requests").await["delivered"], 7);
    assert_eq!(client.sandbox("messages/1").await["error"], "no such message");
}

#[tokio::test]
async fn another_site_cannot_turn_the_knobs() {
    let client = Client::new().await;
    let from = |site: &str| {
        client
            .http
            .put(client.url("/sandbox/faults"))
            .header("sec-fetch-site", site)
            .json(&json!([]))
            .send()
    };
    assert_eq!(from("cross-site").await.unwrap().status(), 403);
    assert_eq!(from("same-site").await.unwrap().status(), 403);
    assert_eq!(from("same-origin").await.unwrap().status(), 200);
    let bad = client
        .http
        .put(client.url("/sandbox/faults"))
        .json(&json!([{"action": "explode"}]))
        .send()
        .await
        .unwrap();
    assert_eq!(bad.status(), 400);
    assert_eq!(
        bad.json::<Value>().await.unwrap()["error"],
        "rule 0: no such action: explode"
    );
}
