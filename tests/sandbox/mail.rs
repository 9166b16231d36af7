use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use graphpost::sandbox::{Assignment, Mailbox};
use serde_json::{Value, json};

use crate::client::*;

#[tokio::test]
async fn json_arrives_whole() {
    let client = Client::new().await;
    let image = (0..=255).collect::<Vec<u8>>();
    let message = json!({
        "subject": "Grüße",
        "body": {"contentType": "HTML", "content": "<p>Hi <img src=\"cid:dot@x\"></p>"},
        "from": {"emailAddress": {"name": "Svc", "address": MAILBOX}},
        "toRecipients": [{"emailAddress": {"name": "A", "address": "a@b.example"}}],
        "ccRecipients": [{"emailAddress": {"address": "c@b.example"}}],
        "bccRecipients": [{"emailAddress": {"address": "d@b.example"}}],
        "replyTo": [{"emailAddress": {"address": "app@b.example"}}],
        "importance": "High",
        "isReadReceiptRequested": true,
        "internetMessageId": "<1@app.example>",
        "internetMessageHeaders": [{"name": "x-a", "value": "1"}],
        "singleValueExtendedProperties": [{"id": "String 0x1042", "value": "<0@app.example>"}],
        "attachments": [{
            "@odata.type": "#microsoft.graph.fileAttachment", "name": "dot.png", "contentType": "image/png",
            "contentBytes": STANDARD.encode(&image), "isInline": true, "contentId": "dot@x",
        }],
    });
    let id = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee";
    let answer = client
        .post(&format!("/v1.0/users/{MAILBOX}/sendMail"))
        .header("client-request-id", id)
        .json(&json!({"message": message, "saveToSentItems": "false"}))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 202);
    assert_eq!(answer.headers()["client-request-id"], id);
    assert_eq!(answer.headers()["request-id"].len(), 36);
    assert!(answer.headers().contains_key("date") && answer.headers().contains_key("x-ms-ags-diagnostic"));
    assert_eq!(answer.bytes().await.unwrap().len(), 0);

    let list = client.sandbox("messages").await;
    let [mail] = list.as_array().unwrap().as_slice() else {
        panic!("one mail: {list}")
    };
    assert_eq!(mail["mailbox"], MAILBOX);
    assert_eq!(mail["from"]["address"], MAILBOX);
    assert_eq!(
        mail["recipients"],
        json!(["a@b.example", "c@b.example", "d@b.example"])
    );
    assert_eq!(mail["to"], json!([{"name": "A", "address": "a@b.example"}]));
    assert_eq!(mail["bcc"], json!([{"name": "", "address": "d@b.example"}]));
    assert_eq!(
        (&mail["subject"], &mail["form"]),
        (&json!("Grüße"), &json!("json"))
    );
    assert_eq!(mail["internetMessageId"], "<1@app.example>");
    assert_eq!(mail["clientRequestId"], id);
    let digest: String = openssl::sha::sha256(&image)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(
        mail["attachments"],
        json!([{"name": "dot.png", "contentType": "image/png", "size": 256, "sha256": digest, "isInline": true, "contentId": "dot@x"}])
    );

    let whole = client.sandbox(&format!("messages/{}", mail["id"])).await;
    assert_eq!(whole["body"]["contentType"], "html");
    assert_eq!(whole["importance"], "high");
    assert_eq!(whole["replyTo"][0]["address"], "app@b.example");
    assert_eq!(whole["headers"], json!([{"name": "x-a", "value": "1"}]));
    assert_eq!(
        whole["extendedProperties"],
        json!([{"name": "String 0x1042", "value": "<0@app.example>"}])
    );
    let raw: Value = serde_json::from_str(whole["raw"].as_str().unwrap()).unwrap();
    assert_eq!(raw["message"]["subject"], "Grüße");

    let attachment = client
        .http
        .get(client.url(&format!("/sandbox/messages/{}/attachments/0", mail["id"])))
        .send()
        .await
        .unwrap();
    assert_eq!(attachment.headers()["x-content-type-options"], "nosniff");
    assert_eq!(
        attachment.headers()["content-disposition"],
        "attachment; filename*=UTF-8''dot.png"
    );
    assert_eq!(attachment.bytes().await.unwrap(), image);
}

#[tokio::test]
async fn mime_arrives_whole() {
    let client = Client::new().await;
    let mime = "From: Svc <service@contoso.com>\r\nTo: A <a@b.example>\r\nBcc: d@b.example\r\nSubject: Hi\r\n\
                Message-ID: <2@app.example>\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n\
                --b\r\n\r\nBody\r\n--b\r\nContent-Type: text/plain; charset=iso-8859-1; name=x.txt\r\n\
                Content-Disposition: attachment\r\nContent-Transfer-Encoding: base64\r\n\r\n/A==\r\n\
                --b\r\nContent-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\ninside\r\n--b--\r\n";
    assert_eq!(verdict(client.send_mime(mime)).await, (202, String::new()));
    let list = client.sandbox("messages").await;
    let mail = &list[0];
    assert_eq!(mail["recipients"], json!(["a@b.example", "d@b.example"]));
    assert_eq!(
        (&mail["form"], &mail["internetMessageId"]),
        (&json!("mime"), &json!("<2@app.example>"))
    );
    let attachment = |number: usize| {
        let url = client.url(&format!("/sandbox/messages/{}/attachments/{number}", mail["id"]));
        async { client.http.get(url).send().await.unwrap().bytes().await.unwrap() }
    };
    assert_eq!(attachment(0).await.as_ref(), [0xfc], "not converted to Unicode");
    assert_eq!(attachment(1).await.as_ref(), b"Subject: inner\r\n\r\ninside");
}

#[tokio::test]
async fn a_request_can_wait_for_deliveries() {
    let client = Client::new().await;
    let waiting = client.sandbox("messages?at_least=2");
    let sending = async {
        for _ in 0..2 {
            assert_eq!(verdict(client.send_mail(plain())).await.0, 202);
        }
    };
    let (list, ()) = tokio::join!(waiting, sending);
    assert_eq!(list.as_array().unwrap().len(), 2);
    assert_eq!(client.sandbox("messages?after=1").await[0]["id"], 2);

    let answer = client
        .http
        .delete(client.url("/sandbox/messages"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 204);
    assert_eq!(client.sandbox("messages").await, json!([]));
}

#[tokio::test]
async fn tokens() {
    let client = Client::new().await;
    let url = client.url(&format!("/v1.0/users/{MAILBOX}/sendMail"));
    let send = |authorization: Option<String>| {
        let mut request = client.http.post(&url).json(&json!({"message": plain()}));
        if let Some(value) = authorization {
            request = request.header("authorization", value);
        }
        async {
            let answer = request.send().await.unwrap();
            let status = answer.status().as_u16();
            let challenge = answer
                .headers()
                .get("www-authenticate")
                .map(|it| it.to_str().unwrap().to_owned());
            let body: Value = answer.json().await.unwrap_or_default();
            (
                status,
                body["error"]["message"].as_str().unwrap_or_default().to_owned(),
                challenge,
            )
        }
    };
    for (authorization, message) in [
        (None, "Access token is empty."),
        (Some("Bearer ".to_owned()), "Access token is empty."),
        (Some("Basic abc".to_owned()), "Access token is empty."),
        (
            Some("Bearer abc".to_owned()),
            "CompactToken parsing failed with error code: 80049217",
        ),
        (
            Some("Bearer a.b.c".to_owned()),
            "Access token validation failure. Invalid signature.",
        ),
    ] {
        let (status, found, challenge) = send(authorization).await;
        assert_eq!((status, found.as_str()), (401, message));
        assert!(
            challenge
                .unwrap()
                .contains(r#"client_id="00000003-0000-0000-c000-000000000000""#)
        );
    }

    let assertion = REGISTERED.sign(&REGISTERED.ps256_header(), &claims(&client.cloud));
    let mut vault = form(&assertion);
    vault[1].1 = "https://vault.azure.net/.default";
    let token: Value = client
        .http
        .post(format!("{}/{TENANT}/oauth2/v2.0/token", client.cloud.authority()))
        .send_form(&vault)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let (status, message, _) = send(Some(format!(
        "Bearer {}",
        token["access_token"].as_str().unwrap()
    )))
    .await;
    assert_eq!(
        (status, message.as_str()),
        (401, "Access token validation failure. Invalid audience.")
    );
    assert_eq!(send(Some(format!("Bearer {}", client.token))).await.0, 202);
    assert_eq!(client.sandbox("messages").await.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn mailboxes_and_permissions() {
    let client = Client::new().await;
    client.cloud.change_tenant(|tenant| {
        tenant.any_mailbox = false;
        tenant.mailboxes = vec![
            Mailbox {
                address: MAILBOX.into(),
                id: Some("12345678-1234-4234-8234-123456789012".into()),
                aliases: vec!["alias@contoso.com".into()],
                send_as: vec!["team@contoso.com".into()],
                ..Mailbox::default()
            },
            Mailbox {
                address: "$odd@contoso.com".into(),
                ..Mailbox::default()
            },
            Mailbox {
                address: "gone@contoso.com".into(),
                inactive: true,
                ..Mailbox::default()
            },
        ];
    });
    let to = |user: &str| {
        client
            .post(&format!("/v1.0/users/{user}/sendMail"))
            .json(&json!({"message": plain()}))
    };
    assert_eq!(verdict(to("SERVICE@contoso.com")).await.0, 202);
    assert_eq!(verdict(to("service%40contoso.com")).await.0, 202);
    assert_eq!(verdict(to("12345678-1234-4234-8234-123456789012")).await.0, 202);
    assert_eq!(
        verdict(
            client
                .post("/v1.0/users('$odd@contoso.com')/sendMail")
                .json(&json!({"message": plain()}))
        )
        .await
        .0,
        202
    );
    assert_eq!(
        verdict(to("nobody@contoso.com")).await,
        (404, "ErrorInvalidUser".into())
    );
    assert_eq!(
        verdict(to("alias@contoso.com")).await,
        (404, "ErrorInvalidUser".into())
    );
    assert_eq!(
        verdict(to("gone@contoso.com")).await,
        (404, "MailboxNotEnabledForRESTAPI".into())
    );
    assert_eq!(
        verdict(client.post("/v1.0/me/sendMail")).await,
        (400, "BadRequest".into())
    );
    assert_eq!(
        verdict(client.post(&format!("/v1.0/users/{MAILBOX}/teleport"))).await,
        (400, "BadRequest".into())
    );

    for (from, expected) in [
        (MAILBOX, (202, "")),
        ("alias@contoso.com", (202, "")),
        ("team@contoso.com", (202, "")),
        ("ceo@contoso.com", (403, "ErrorSendAsDenied")),
    ] {
        for property in ["from", "sender"] {
            let mut message = plain();
            message[property] = json!({"emailAddress": {"address": from}});
            assert_eq!(
                verdict(client.send_mail(message)).await,
                (expected.0, expected.1.into()),
                "{property} {from}"
            );
        }
        let mime = format!("From: {from}\r\nTo: a@b.example\r\n\r\nHi");
        assert_eq!(
            verdict(client.send_mime(&mime)).await,
            (expected.0, expected.1.into()),
            "{from}"
        );
    }
}

#[tokio::test]
async fn consent_role_assignments_and_access_policy() {
    let mut client = Client::new().await;
    client
        .cloud
        .change_tenant(|tenant| tenant.access_policy = Some(vec!["other@contoso.com".into()]));
    let answer = client.send_mail(plain()).send().await.unwrap();
    assert_eq!(answer.status(), 403);
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["error"]["code"], "ErrorAccessDenied");
    assert!(body["error"]["message"].as_str().unwrap().contains("[RAOP]"));

    client.cloud.change_tenant(|tenant| {
        tenant.access_policy = None;
        tenant.roles = vec!["Mail.Send".into()];
    });
    client.renew().await;
    assert_eq!(verdict(client.send_mail(plain())).await.0, 202);
    let draft = client
        .post(&format!("/v1.0/users/{MAILBOX}/messages"))
        .json(&plain());
    assert_eq!(verdict(draft).await, (403, "ErrorAccessDenied".into()));

    client.cloud.change_tenant(|tenant| {
        tenant.roles = Vec::new();
        tenant.assignments = vec![Assignment {
            role: "Mail.Send".into(),
            mailboxes: vec![MAILBOX.into()],
        }];
    });
    client.renew().await;
    assert_eq!(verdict(client.send_mail(plain())).await.0, 202);
    let other = client
        .post("/v1.0/users/ceo@contoso.com/sendMail")
        .json(&json!({"message": plain()}));
    assert_eq!(verdict(other).await, (403, "ErrorAccessDenied".into()));
}

#[tokio::test]
async fn what_json_is_refused() {
    let client = Client::new().await;
    client
        .cloud
        .change_limits(|limits| limits.attachment_bytes = 50_000);
    let send = |body: String, content_type: &'static str| {
        client
            .post(&format!("/v1.0/users/{MAILBOX}/sendMail"))
            .header("content-type", content_type)
            .body(body)
    };
    let json = "application/json";
    for (body, content_type, status, code) in [
        (String::new(), json, 400, "UnableToDeserializePostBody"),
        ("{".into(), json, 400, "UnableToDeserializePostBody"),
        ("[]".into(), json, 400, "UnableToDeserializePostBody"),
        (
            r#"{"message":{"subject":"a","subject":"b"}}"#.into(),
            json,
            400,
            "UnableToDeserializePostBody",
        ),
        (json!({}).to_string(), json, 400, "ErrorInvalidParameter"),
        (
            json!({"saveToSentItems": true}).to_string(),
            json,
            400,
            "ErrorInvalidParameter",
        ),
        (json!({"message": "x"}).to_string(), json, 400, "RequestBodyRead"),
        (
            json!({"message": plain(), "extra": 1}).to_string(),
            json,
            400,
            "RequestBodyRead",
        ),
        (
            json!({"message": plain(), "saveToSentItems": "perhaps"}).to_string(),
            json,
            400,
            "RequestBodyRead",
        ),
        (
            json!({"message": plain()}).to_string(),
            "application/xml",
            415,
            "UnsupportedMediaType",
        ),
        (
            json!({"Message": plain(), "SaveToSentItems": "True"}).to_string(),
            "application/json; charset=utf-8",
            202,
            "",
        ),
    ] {
        assert_eq!(
            verdict(send(body.clone(), content_type)).await,
            (status, code.into()),
            "{content_type} {body}"
        );
    }

    let address = |address: &str| json!([{"emailAddress": {"address": address}}]);
    let file = |bytes: &str| json!([{"@odata.type": "#microsoft.graph.fileAttachment", "name": "a", "contentBytes": bytes}]);
    let headers = |count: usize| -> Value {
        (0..count)
            .map(|number| json!({"name": format!("x-{number}"), "value": "v"}))
            .collect()
    };
    let many = |count: usize| -> Value {
        (0..count)
            .map(|number| json!({"emailAddress": {"address": format!("u{number}@b.example")}}))
            .collect()
    };
    for (property, value, status, code) in [
        ("Subject", json!("x"), 400, "RequestBodyRead"),
        ("odata.type", json!("x"), 400, "RequestBodyRead"),
        ("hasAttachments", json!(false), 400, "ErrorInvalidPropertySet"),
        ("toRecipients", json!([]), 400, "ErrorInvalidRecipients"),
        ("toRecipients", json!([{}]), 400, "ErrorInvalidRecipients"),
        (
            "toRecipients",
            address("not an address"),
            400,
            "ErrorInvalidRecipients",
        ),
        (
            "ccRecipients",
            address("<a@b.example>"),
            400,
            "ErrorInvalidRecipients",
        ),
        ("ccRecipients", many(500), 400, "ErrorRecipientLimitExceeded"),
        ("ccRecipients", many(499), 202, ""),
        (
            "replyTo",
            address(""),
            400,
            "ErrorParticipantDoesntHaveAnEmailAddress",
        ),
        ("replyTo", json!([]), 202, ""),
        (
            "internetMessageHeaders",
            json!([]),
            400,
            "InvalidInternetMessageHeaderCollection",
        ),
        ("internetMessageHeaders", headers(5), 202, ""),
        (
            "internetMessageHeaders",
            headers(6),
            400,
            "InvalidInternetMessageHeaderCollection",
        ),
        (
            "internetMessageHeaders",
            json!([{"name": "In-Reply-To", "value": "x"}]),
            400,
            "InvalidInternetMessageHeader",
        ),
        (
            "internetMessageHeaders",
            json!([{"name": "x-a", "value": "v\r\nBcc: e@b.example"}]),
            400,
            "InvalidInternetMessageHeader",
        ),
        (
            "internetMessageId",
            json!("<a@b>\r\nBcc: e@b.example"),
            400,
            "ErrorInvalidArgument",
        ),
        ("attachments", file("AA=="), 202, ""),
        ("attachments", file("AA"), 400, "UnableToDeserializePostBody"),
        ("attachments", file("_-=="), 400, "UnableToDeserializePostBody"),
        (
            "attachments",
            json!([{"@odata.type": "#microsoft.graph.fileAttachment", "contentBytes": "AA=="}]),
            400,
            "ErrorInvalidArgument",
        ),
        (
            "attachments",
            json!([{"@odata.type": "#microsoft.graph.fileAttachment", "name": "a"}]),
            400,
            "ErrorInvalidArgument",
        ),
        (
            "attachments",
            json!([{"@odata.type": "#microsoft.graph.referenceAttachment", "name": "a"}]),
            400,
            "ErrorInvalidArgument",
        ),
        (
            "attachments",
            file(&STANDARD.encode(vec![0; 50_000])),
            400,
            "ErrorMessageSizeExceeded",
        ),
        (
            "singleValueExtendedProperties",
            json!([{"id": "Integer 0x0036", "value": "2"}]),
            202,
            "",
        ),
        (
            "singleValueExtendedProperties",
            json!([{"id": "String {00020386-0000-0000-C000-000000000046} Name X-Foo", "value": "v"}]),
            202,
            "",
        ),
        (
            "singleValueExtendedProperties",
            json!([{"id": "Integer 0x0036", "value": "two"}]),
            400,
            "ErrorInvalidExtendedProperty",
        ),
        (
            "singleValueExtendedProperties",
            json!([{"id": "Text 0x0036", "value": "2"}]),
            400,
            "ErrorInvalidExtendedProperty",
        ),
    ] {
        let mut message = plain();
        message[property] = value;
        let shown: String = message[property].to_string().chars().take(200).collect();
        assert_eq!(
            verdict(client.send_mail(message)).await,
            (status, code.into()),
            "{property}: {shown}"
        );
    }
}

#[tokio::test]
async fn what_mime_is_refused() {
    let client = Client::new().await;
    let raw = |body: &'static str| {
        client
            .post(&format!("/v1.0/users/{MAILBOX}/sendMail"))
            .header("content-type", "text/plain")
            .body(body)
    };
    assert_eq!(
        verdict(raw("To: a@b.example")).await,
        (400, "ErrorMimeContentInvalidBase64String".into())
    );
    for (mime, code) in [
        (
            "To: a@b.example\n\nbare line feeds",
            "UnableToDeserializePostBody",
        ),
        ("Subject: to nobody\r\n\r\nHi", "ErrorInvalidRecipients"),
        ("To: undisclosed-recipients:;\r\n\r\nHi", "ErrorInvalidRecipients"),
        ("To: broken\r\n\r\nHi", "ErrorInvalidRecipients"),
    ] {
        assert_eq!(
            verdict(client.send_mime(mime)).await,
            (400, code.into()),
            "{mime:?}"
        );
    }
}

#[tokio::test]
async fn more_than_four_megabytes_are_refused_without_a_word() {
    let client = Client::new().await;
    let mut message = plain();
    message["body"]["content"] = "x".repeat(4 * 1024 * 1024).into();
    let answer = client.send_mail(message).send().await.unwrap();
    assert_eq!(answer.status(), 413);
    assert_eq!(answer.bytes().await.unwrap().len(), 0);
    assert_eq!(client.sandbox("messages").await, json!([]));
}
