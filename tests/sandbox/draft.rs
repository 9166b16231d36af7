use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::*;

const MESSAGES: &str = "/v1.0/users/service@contoso.com/messages";
const SENT: &str = "/v1.0/users/service@contoso.com/mailFolders/sentitems/messages";
const IMMUTABLE: (&str, &str) = ("Prefer", "IdType=\"ImmutableId\"");

async fn create(client: &Client, message: Value) -> Value {
    let answer = client
        .post(MESSAGES)
        .header(IMMUTABLE.0, IMMUTABLE.1)
        .json(&message)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 201);
    answer.json().await.unwrap()
}

async fn open_session(client: &Client, id: &str, size: usize) -> String {
    let item = json!({"AttachmentItem": {"attachmentType": "file", "name": "big.bin", "size": size, "contentType": "application/x-big"}});
    let answer = client
        .post(&format!("{MESSAGES}/{id}/attachments/createUploadSession"))
        .json(&item)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 201);
    let session: Value = answer.json().await.unwrap();
    assert_eq!(session["nextExpectedRanges"], json!(["0-"]));
    assert!(session["expirationDateTime"].is_string());
    session["uploadUrl"].as_str().unwrap().to_owned()
}

fn put(client: &Client, url: &str, content: &[u8], range: &str) -> reqwest::RequestBuilder {
    client
        .http
        .put(url)
        .header("content-range", range)
        .body(content.to_vec())
}

async fn filtered(client: &Client, path: &str, id: &str) -> Vec<Value> {
    let filter = format!("internetMessageId eq '{}'", id.replace('\'', "''"));
    let answer: Value = client
        .get(&format!("{path}?$select=id,isDraft&$filter={}", escape(&filter)))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    answer["value"]
        .as_array()
        .unwrap_or_else(|| panic!("{answer}"))
        .clone()
}

#[tokio::test]
async fn a_draft_with_a_large_attachment_is_uploaded_and_sent() {
    let client = Client::new().await;
    let mut message = plain();
    message["internetMessageId"] = "<big'1@app.example>".into();
    let draft = create(&client, message).await;
    let id = draft["id"].as_str().unwrap();
    assert_eq!(
        (&draft["isDraft"], &draft["internetMessageId"]),
        (&json!(true), &json!("<big'1@app.example>"))
    );

    let small = json!({"@odata.type": "#microsoft.graph.fileAttachment", "name": "small.txt", "contentBytes": STANDARD.encode("small")});
    let answer = client
        .post(&format!("{MESSAGES}/{id}/attachments"))
        .json(&small)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 201);
    assert_eq!(answer.json::<Value>().await.unwrap()["size"], 5);

    let content: Vec<u8> = (0..4_000_000u32)
        .map(|it| (it.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let url = open_session(&client, id, content.len()).await;
    let (first, second) = content.split_at(3_276_800);
    let answer = put(&client, &url, first, "bytes 0-3276799/4000000")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    let progress: Value = answer.json().await.unwrap();
    assert_eq!(progress["nextExpectedRanges"], json!(["3276800"]));
    let answer = put(&client, &url, second, "bytes 3276800-3999999/4000000")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 201);
    assert!(answer.headers().contains_key("location"));
    assert_eq!(answer.bytes().await.unwrap().len(), 0);
    assert_eq!(
        verdict(put(&client, &url, &[0], "bytes 0-0/4000000")).await.0,
        404,
        "a session ends with its last chunk"
    );

    assert_eq!(
        client.sandbox("messages").await,
        json!([]),
        "nothing is delivered yet"
    );
    assert_eq!(
        filtered(&client, MESSAGES, "<big'1@app.example>").await[0]["isDraft"],
        true
    );
    assert_eq!(
        filtered(&client, SENT, "<big'1@app.example>").await,
        Vec::<Value>::new()
    );

    let send = client
        .post(&format!("{MESSAGES}/{id}/send"))
        .header("content-length", "0");
    assert_eq!(verdict(send).await, (202, String::new()));
    let list = client.sandbox("messages").await;
    let mail = &list[0];
    assert_eq!(
        (&mail["form"], &mail["recipients"]),
        (&json!("draft"), &json!(["a@b.example"]))
    );
    assert_eq!(mail["internetMessageId"], "<big'1@app.example>");
    assert_eq!(mail["attachments"].as_array().unwrap().len(), 2);
    let digest: String = openssl::sha::sha256(&content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(mail["attachments"][1]["sha256"], digest.as_str());
    assert_eq!(mail["attachments"][1]["contentType"], "application/x-big");

    // By its immutable id the item is found again, sent now.
    let found: Value = client
        .get(&format!("{MESSAGES}/{id}"))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(found["isDraft"], false);
    assert_eq!(filtered(&client, SENT, "<big'1@app.example>").await.len(), 1);
    let again = client
        .post(&format!("{MESSAGES}/{id}/send"))
        .header("content-length", "0");
    assert_eq!(verdict(again).await, (400, "ErrorInvalidOperation".into()));
}

#[tokio::test]
async fn without_the_preference_the_id_changes_when_the_draft_is_sent() {
    let client = Client::new().await;
    let draft: Value = client
        .post(MESSAGES)
        .json(&plain())
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let path = format!("{MESSAGES}/{}", draft["id"].as_str().unwrap());
    assert_eq!(verdict(client.get(&path)).await.0, 200);
    assert_eq!(
        verdict(client.post(&format!("{path}/send")).header("content-length", "0"))
            .await
            .0,
        202
    );
    assert_eq!(
        verdict(client.get(&path)).await,
        (404, "ErrorItemNotFound".into())
    );
}

#[tokio::test]
async fn what_is_refused_of_drafts_and_chunks() {
    let client = Client::new().await;
    let draft = create(&client, json!({"subject": "to nobody"})).await;
    let path = format!("{MESSAGES}/{}", draft["id"].as_str().unwrap());
    let send = |path: &str| client.post(&format!("{path}/send")).header("content-length", "0");
    assert_eq!(verdict(send(&path)).await, (400, "ErrorInvalidRecipients".into()));
    assert_eq!(
        verdict(send(&format!("{MESSAGES}/nonsense"))).await,
        (404, "ErrorItemNotFound".into())
    );
    let elsewhere = path.replace("service@", "other@");
    assert_eq!(
        verdict(client.get(&elsewhere)).await,
        (404, "ErrorItemNotFound".into()),
        "another's mailbox"
    );

    let session = |item: Value| {
        client
            .post(&format!("{path}/attachments/createUploadSession"))
            .json(&json!({"AttachmentItem": item}))
    };
    for (item, code) in [
        (
            json!({"attachmentType": "file", "name": "x", "size": 3_000_000}),
            "ErrorAttachmentSizeShouldNotBeLessThanMinimumSize",
        ),
        (
            json!({"attachmentType": "file", "name": "x", "size": 200_000_000}),
            "ErrorMessageSizeExceeded",
        ),
        (
            json!({"attachmentType": "file", "name": "x"}),
            "ErrorInvalidParameter",
        ),
        (
            json!({"attachmentType": "file", "size": 4_000_000}),
            "ErrorInvalidParameter",
        ),
        (json!({"name": "x", "size": 4_000_000}), "ErrorInvalidParameter"),
        (
            json!({"attachmentType": "file", "name": "x", "size": 4_000_000, "colour": 1}),
            "RequestBodyRead",
        ),
    ] {
        assert_eq!(verdict(session(item.clone())).await, (400, code.into()), "{item}");
    }

    let id = draft["id"].as_str().unwrap();
    let url = open_session(&client, id, 4_000_000).await;
    let chunk = vec![0; 1000];
    for (range, status) in [
        ("bytes 0-999/4000001", 400),
        ("bytes 0-998/4000000", 400),
        ("bytes 999-0/4000000", 400),
        ("bytes 4000000-4000999/4000000", 400),
        ("bytes=0-999", 400),
        ("0-999/4000000", 400),
        ("bytes 1000-1999/4000000", 416),
        ("bytes 0-999/4000000", 200),
        ("bytes 0-999/4000000", 416),
        ("bytes 500-1499/4000000", 416),
    ] {
        assert_eq!(
            verdict(put(&client, &url, &chunk, range)).await.0,
            status,
            "{range}"
        );
    }
    assert_eq!(
        verdict(client.http.put(&url).body(chunk.clone())).await.0,
        400,
        "no range"
    );
    let authorized = put(&client, &url, &chunk, "bytes 1000-1999/4000000").bearer_auth(&client.token);
    assert_eq!(
        verdict(authorized).await,
        (401, "InvalidAuthenticationToken".into())
    );
    let huge = vec![0; 4 * 1024 * 1024 + 1];
    assert_eq!(
        verdict(put(&client, &url, &huge, "bytes 1000-4195304/4000000"))
            .await
            .0,
        413
    );
    let stands: Value = client.http.get(&url).send().await.unwrap().json().await.unwrap();
    assert_eq!(stands["nextExpectedRanges"], json!(["1000"]));
    assert_eq!(client.http.delete(&url).send().await.unwrap().status(), 204);
    assert_eq!(
        verdict(put(&client, &url, &chunk, "bytes 1000-1999/4000000"))
            .await
            .0,
        404
    );

    assert_eq!(verdict(client.request(Method::DELETE, &path)).await.0, 204);
    assert_eq!(verdict(client.get(&path)).await.0, 404);
    assert_eq!(client.sandbox("requests").await["store"]["drafts"], 0);
}

#[tokio::test]
async fn a_mime_draft_is_sent() {
    let client = Client::new().await;
    let mime = STANDARD.encode("To: a@b.example\r\nSubject: Hi\r\n\r\nBody");
    let request = client
        .post(MESSAGES)
        .header("content-type", "text/plain")
        .body(mime);
    let draft: Value = request.send().await.unwrap().json().await.unwrap();
    let send = client
        .post(&format!("{MESSAGES}/{}/send", draft["id"].as_str().unwrap()))
        .header("content-length", "0");
    assert_eq!(verdict(send).await.0, 202);
    assert_eq!(
        client.sandbox("messages").await[0]["recipients"],
        json!(["a@b.example"])
    );
}

#[tokio::test]
async fn sent_items_honour_the_wish_and_the_delay() {
    let client = Client::new().await;
    let send = |id: &str, save: bool| {
        let mut message = plain();
        message["internetMessageId"] = id.into();
        client
            .post("/v1.0/users/service@contoso.com/sendMail")
            .json(&json!({"message": message, "saveToSentItems": save}))
    };
    assert_eq!(verdict(send("<kept@x>", true)).await.0, 202);
    assert_eq!(verdict(send("<not@x>", false)).await.0, 202);
    assert_eq!(filtered(&client, SENT, "<kept@x>").await.len(), 1);
    assert_eq!(filtered(&client, SENT, "<not@x>").await.len(), 0);
    client
        .put("limits", json!({"sent_items_delay_ms": 3_600_000}))
        .await;
    assert_eq!(verdict(send("<later@x>", true)).await.0, 202);
    assert_eq!(filtered(&client, SENT, "<later@x>").await.len(), 0);
    assert_eq!(
        verdict(client.get(&format!("{SENT}?$filter=subject%20eq%20'x'"))).await,
        (400, "BadRequest".into())
    );
}
