use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderMap;
use serde_json::json;

use crate::client::*;

async fn page(client: &Client, path: &str) -> (HeaderMap, String) {
    let answer = client.http.get(client.url(path)).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{path}");
    (answer.headers().clone(), answer.text().await.unwrap())
}

#[tokio::test]
async fn an_empty_inbox_tells_how_to_fill_it() {
    let client = Client::new().await;
    let (_, html) = page(&client, "/").await;
    assert!(
        html.contains(&format!("authority = &quot;{}&quot;", client.cloud.url()))
            || html.contains(&client.cloud.url())
    );
    client.cloud.set_smtp("127.0.0.1:2525".parse().unwrap());
    let (_, html) = page(&client, "/").await;
    assert!(html.contains("swaks --server 127.0.0.1:2525"));
    assert!(html.contains("curl smtp://127.0.0.1:2525"));
}

#[tokio::test]
async fn nothing_in_a_mail_gets_out_of_its_place() {
    let client = Client::new().await;
    let evil = "</title><script>alert(1)</script><img src=x onerror=alert(1)>\"'";
    let html = "<script>alert(1)</script><img src=\"cid:dot@x\"><img src=\"http://tracker.example/x.png\">";
    let message = json!({
        "subject": evil,
        "body": {"contentType": "html", "content": html},
        "from": {"emailAddress": {"name": evil, "address": MAILBOX}},
        "toRecipients": [{"emailAddress": {"name": evil, "address": "\"<b>\"@b.example"}}],
        "bccRecipients": [{"emailAddress": {"address": "secret@b.example"}}],
        "internetMessageHeaders": [{"name": "x-<b>", "value": evil}],
        "attachments": [
            {"@odata.type": "#microsoft.graph.fileAttachment", "name": format!("{evil}\r\nSet-Cookie: a=b.html"),
             "contentType": "text/html", "contentBytes": STANDARD.encode(html)},
            {"@odata.type": "#microsoft.graph.fileAttachment", "name": "dot.png", "contentType": "image/png",
             "contentBytes": "AQID", "isInline": true, "contentId": "dot@x"},
        ],
    });
    assert_eq!(verdict(client.send_mail(message)).await, (202, String::new()));

    for path in ["/", "/inbox/1", "/inbox/list?selected=1"] {
        let (headers, html) = page(&client, path).await;
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(
            policy.starts_with("default-src 'none';") && !policy.contains("unsafe"),
            "{policy}"
        );
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert!(
            !html.contains("<script>") && !html.contains("<img") && !html.contains("<b>\""),
            "{html}"
        );
        assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    }
    let (_, whole) = page(&client, "/inbox/1").await;
    assert!(whole.contains("secret@b.example"));
    assert!(
        whole.contains(
            "<iframe title=\"The message\" sandbox=\"allow-popups allow-popups-to-escape-sandbox\""
        )
    );

    // The mail's own HTML is in a frame that runs nothing and loads nothing.
    let (headers, frame) = page(&client, "/inbox/1/body").await;
    let policy = headers["content-security-policy"].to_str().unwrap();
    assert!(
        policy.starts_with("default-src 'none'; img-src data:;"),
        "{policy}"
    );
    assert!(
        policy.contains("sandbox allow-popups") && !policy.contains("allow-scripts"),
        "{policy}"
    );
    assert!(!policy.contains("allow-same-origin"), "{policy}");
    assert!(frame.contains("src=\"data:image/png;base64,AQID\""));

    let (headers, content) = page(&client, "/sandbox/messages/1/attachments/0").await;
    assert_eq!(headers["content-type"], "application/octet-stream");
    assert!(
        headers["content-disposition"]
            .to_str()
            .unwrap()
            .starts_with("attachment; filename*=UTF-8''%3C%2Ftitle")
    );
    assert!(!headers.contains_key("set-cookie"));
    assert_eq!(content, html);
}

#[tokio::test]
async fn the_panel_breaks_the_cloud_and_mends_it() {
    let mut client = Client::new().await;
    let press = |client: &Client, fault: &str| {
        client
            .http
            .post(client.url("/inbox/break"))
            .send_form(&[("fault", fault)])
            .send()
    };
    for (fault, expected) in [
        ("throttled", (429, "ApplicationThrottled")),
        ("down", (503, "serviceNotAvailable")),
        ("denied", (403, "ErrorAccessDenied")),
        ("lost", (504, "UnknownError")),
        ("expired", (401, "InvalidAuthenticationToken")),
    ] {
        // The form leads back to the page, with the button pressed.
        let html = press(&client, fault).await.unwrap().text().await.unwrap();
        assert!(
            html.contains(&format!("value=\"{fault}\" aria-pressed=\"true\"")),
            "{fault}"
        );
        assert_eq!(
            verdict(client.send_mail(plain())).await,
            (expected.0, expected.1.into())
        );
    }
    let html = press(&client, "none").await.unwrap().text().await.unwrap();
    assert!(html.contains("value=\"none\" aria-pressed=\"true\""));
    client.renew().await;
    assert_eq!(verdict(client.send_mail(plain())).await.0, 202);
    assert_eq!(press(&client, "everything").await.unwrap().status(), 400);

    let (_, list) = page(&client, "/inbox/list").await;
    assert!(list.contains("<span>2 delivered</span>"), "{list}");
    assert!(list.contains("429 <b>×1</b>"), "{list}");
    let emptied = client.http.post(client.url("/inbox/clear")).send().await.unwrap();
    assert!(emptied.text().await.unwrap().contains("Nothing has arrived yet."));
    let foreign = client
        .http
        .post(client.url("/inbox/clear"))
        .header("sec-fetch-site", "cross-site")
        .send()
        .await;
    assert_eq!(foreign.unwrap().status(), 403);
}

#[tokio::test]
async fn a_mail_that_is_not_there() {
    let client = Client::new().await;
    let answer = client.http.get(client.url("/inbox/9")).send().await.unwrap();
    assert_eq!(answer.status(), 404);
    let (headers, css) = page(&client, "/inbox/page.css").await;
    assert_eq!(headers["content-type"], "text/css; charset=utf-8");
    assert!(css.contains("prefers-color-scheme"));
}
