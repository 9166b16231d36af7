//! Messages that are too large for one request: sent as drafts, whole, once, and to exactly the
//! envelope, whatever fails on the way.

use std::time::Duration;

use base64_simd::STANDARD;
use graphpost::address::Address;
use graphpost::config::{self, UnknownPolicy};
use graphpost::convert::Wishes;
use graphpost::sandbox::{Form, Limits, Rule};
use graphpost::spool::{QueueId, State};

use crate::rig::{MAILBOX, Rig, cloud, settings, submission};

const FILE_OCTETS: usize = 8_000_000;

async fn rig(large_messages: bool) -> Rig {
    rig_with(large_messages, settings(), Limits::default()).await
}

async fn rig_with(large_messages: bool, settings: config::Delivery, limits: Limits) -> Rig {
    let cloud = cloud(limits).await;
    cloud.change_tenant(|it| it.roles = vec!["Mail.Send".to_owned(), "Mail.ReadWrite".to_owned()]);
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let wishes = Wishes {
        large_messages,
        ..Wishes::default()
    };
    Rig::wishing(wishes, directory, settings, cloud).await
}

fn file() -> Vec<u8> {
    (0..FILE_OCTETS as u32)
        .map(|it| (it * 7 + it / 251) as u8)
        .collect()
}

/// A message with a text, a small image in it, and a large file; one of its recipients is blind.
async fn accept(rig: &Rig) -> QueueId {
    let text = STANDARD.encode_to_string(file());
    let lines: Vec<&[u8]> = text.as_bytes().chunks(76).collect();
    let mut content = b"From: erp@contoso.com\r\nTo: ann@example.com, nobody-asked@example.com\r\nSubject: Scan\r\n\
        MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n\
        --b\r\nContent-Type: text/html\r\n\r\n<img src=\"cid:i\">\r\n\
        --b\r\nContent-Type: image/png; name=i.png\r\nContent-ID: <i>\r\nContent-Transfer-Encoding: base64\r\n\r\nAAAA\r\n\
        --b\r\nContent-Type: application/pdf; name=scan.pdf\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        .to_vec();
    content.extend(lines.join(&b"\r\n"[..]));
    content.extend(b"\r\n--b--\r\n");
    let mut submission = submission(MAILBOX, "Scan");
    submission
        .envelope
        .recipients
        .push(Address::parse("secret@example.com").unwrap());
    let mut incoming = rig.spool.incoming().unwrap();
    incoming.write(&content).await.unwrap();
    incoming.accept(submission).await.unwrap().id()
}

async fn is_delivered_whole(rig: Rig, id: QueueId) {
    let entry = rig.wait(id, State::Sent).await;
    assert!(entry.draft.is_some());
    let deliveries = rig.cloud.wait_for(1).await;
    let [delivery] = &deliveries[..] else {
        panic!("once: {deliveries:?}")
    };
    assert_eq!(delivery.form, Form::Draft);
    let mut recipients = delivery.recipients.clone();
    recipients.sort();
    assert_eq!(recipients, ["ann@example.com", "secret@example.com"]);
    assert_eq!(delivery.bcc.len(), 1);
    let names: Vec<_> = delivery.attachments.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["i.png", "scan.pdf"]);
    assert!(delivery.attachments[0].is_inline && !delivery.attachments[1].is_inline);
    let content = &delivery.content.as_ref().unwrap().mail.attachments[1].content;
    assert!(content[..] == file()[..]);
    rig.stop().await;
}

fn once(operation: &str, action: &str, status: Option<u16>) -> Rule {
    Rule {
        operation: Some(operation.to_owned()),
        count: Some(1),
        action: action.to_owned(),
        status,
        ..Rule::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_message_arrives_whole() {
    let rig = rig(true).await;
    let id = accept(&rig).await;
    is_delivered_whole(rig, id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_on_the_way_leaves_nothing_behind() {
    for fault in [
        once("createUploadSession", "status", Some(500)),
        once("send", "status", Some(503)),
    ] {
        let rig = rig(true).await;
        rig.fault(vec![fault]);
        let id = accept(&rig).await;
        is_delivered_whole(rig, id).await;
    }
}

/// The answer to the last step is lost. A draft that has left Drafts was sent, whether or not it has come
/// to Sent Items yet; one that stays was not.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_found_out_by_the_draft() {
    for deliver in [true, false] {
        let settings = config::Delivery {
            unknown: UnknownPolicy::Verify,
            verify_time: Duration::from_secs(3),
            ..settings()
        };
        let limits = Limits {
            sent_items_delay_ms: 500,
            ..Limits::default()
        };
        let rig = rig_with(true, settings, limits).await;
        rig.fault(vec![Rule {
            deliver,
            ..once("send", "status", Some(504))
        }]);
        let id = accept(&rig).await;
        let entry = rig
            .wait_until(id, |it| it.state != State::Queued && it.state != State::Sending)
            .await;
        assert_eq!(entry.state, State::Unknown, "{entry:?}");
        is_delivered_whole(rig, id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_drafts_it_fails_with_words() {
    let rig = rig(false).await;
    let id = accept(&rig).await;
    let entry = rig.wait(id, State::Failed).await;
    let reason = entry.reason.unwrap_or_default();
    assert!(reason.contains("large_messages"), "{reason}");
    rig.stop().await;
}
