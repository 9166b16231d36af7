//! The Outlook REST API v2.0 in place of Graph, as far as it goes.

use base64_simd::STANDARD;
use graphpost::config::Api;
use graphpost::convert::Wishes;
use graphpost::sandbox::{Form, Limits};
use graphpost::spool::{QueueId, State};

use crate::rig::{MAILBOX, Rig, cloud, settings, submission};

async fn rig(served: bool) -> Rig {
    let cloud = cloud(Limits::default()).await;
    cloud.change_tenant(|it| it.outlook_rest = served);
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let wishes = Wishes {
        api: Api::OutlookV2,
        ..Wishes::default()
    };
    Rig::wishing(wishes, directory, settings(), cloud).await
}

async fn accept(rig: &Rig, content: &str) -> QueueId {
    let mut incoming = rig.spool.incoming().unwrap();
    incoming.write(content.as_bytes()).await.unwrap();
    incoming.accept(submission(MAILBOX, "Report")).await.unwrap().id()
}

const HEAD: &str = "From: ERP <erp@contoso.com>\r\nTo: Ann <ann@example.com>, nobody-asked@example.com\r\n\
    Subject: Report\r\nX-Order: 4711\r\nIn-Reply-To: <0@erp.example>\r\nImportance: high\r\nMIME-Version: 1.0\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_message_arrives_whole() {
    let rig = rig(true).await;
    let id = accept(
        &rig,
        &format!(
            "{HEAD}Content-Type: multipart/mixed; boundary=b\r\n\r\n\
             --b\r\nContent-Type: text/html\r\n\r\n<img src=\"cid:i\">\r\n\
             --b\r\nContent-Type: image/png; name=i.png\r\nContent-ID: <i>\r\nContent-Transfer-Encoding: base64\r\n\r\nAAAA\r\n\
             --b\r\nContent-Type: application/pdf; name=scan.pdf\r\n\r\nscan\r\n--b--\r\n"
        ),
    )
    .await;
    rig.wait(id, State::Sent).await;
    let deliveries = rig.cloud.wait_for(1).await;
    let [delivery] = &deliveries[..] else {
        panic!("once: {deliveries:?}")
    };
    assert_eq!((delivery.form, delivery.subject.as_str()), (Form::Json, "Report"));
    assert_eq!(delivery.recipients, ["ann@example.com"]);
    let names: Vec<_> = delivery.attachments.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["i.png", "scan.pdf"]);
    assert!(delivery.attachments[0].is_inline);
    rig.stop().await;
}

/// Without MIME a signature survives only in an enclosure.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_signed_is_enclosed() {
    let rig = rig(true).await;
    let signed = "Content-Type: multipart/signed; boundary=b; protocol=\"application/pkcs7-signature\"\r\n\r\n\
        --b\r\nContent-Type: text/plain\r\n\r\nSigned text\r\n\
        --b\r\nContent-Type: application/pkcs7-signature; name=smime.p7s\r\n\r\nx\r\n--b--\r\n";
    let id = accept(&rig, &format!("{HEAD}{signed}")).await;
    rig.wait(id, State::Sent).await;
    let deliveries = rig.cloud.wait_for(1).await;
    let [attachment] = &deliveries[0].content.as_ref().unwrap().mail.attachments[..] else {
        panic!("one attachment: {deliveries:?}")
    };
    assert!(attachment.content.ends_with(signed.as_bytes()));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exchange_online_says_that_it_is_gone_and_the_mail_waits() {
    let rig = rig(false).await;
    let id = accept(&rig, &format!("{HEAD}\r\nHello\r\n")).await;
    let entry = rig.wait(id, State::Held).await;
    let reason = entry.reason.unwrap_or_default();
    assert!(reason.contains("remove api = \"outlook-v2.0\""), "{reason}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_fails_with_words() {
    let rig = rig(true).await;
    let file = STANDARD.encode_to_string(vec![7; 3_000_000]);
    let id = accept(
        &rig,
        &format!("{HEAD}Content-Type: application/pdf; name=scan.pdf\r\nContent-Transfer-Encoding: base64\r\n\r\n{file}\r\n"),
    )
    .await;
    let entry = rig.wait(id, State::Failed).await;
    let reason = entry.reason.unwrap_or_default();
    assert!(reason.contains("outlook-v2.0"), "{reason}");
    rig.stop().await;
}
