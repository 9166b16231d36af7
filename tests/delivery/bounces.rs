//! Whom a failure is told.

use std::time::Duration;

use graphpost::config;
use graphpost::postmaster::Postmaster;
use graphpost::sandbox::{Limits, Rule};
use graphpost::spool::{Entry, Filter, State};
use jiff::Timestamp;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::rig::{DEADLINE, MAILBOX, Rig, cloud, code, settings, status};

/// The envelope sender of all mail here.
const SENDER: &str = "erp@contoso.com";

#[tokio::test]
async fn sender_and_postmaster_are_told() {
    let rig = Rig::new().await;
    rig.fault(vec![code(400, "ErrorInvalidRecipients", 1)]);
    let id = rig.accept(MAILBOX, "invoice").await;
    rig.wait(id, State::Failed).await;
    rig.delivered(2).await;
    let mut told = Vec::new();
    for delivery in rig.cloud.deliveries() {
        assert_eq!(delivery.mailbox, MAILBOX);
        assert_eq!(delivery.subject, "Undelivered mail returned to sender");
        let raw = delivery.content.as_ref().unwrap().raw.clone();
        let text = format!("{:?}", delivery.content.as_ref().unwrap().mail);
        for word in ["ErrorInvalidRecipients", "ann@example.com", &id.to_string()] {
            assert!(text.contains(word), "{word} in {text}\n{raw:?}");
        }
        told.extend(delivery.recipients);
    }
    told.sort();
    assert_eq!(told, [SENDER, "postmaster@contoso.com"]);
    rig.stop().await;
}

/// Everything fails, the notifications too: there it ends.
#[tokio::test]
async fn nobody_is_told_about_a_notification() {
    let rig = Rig::new().await;
    rig.fault(vec![code(400, "ErrorInvalidRecipients", 1_000)]);
    rig.accept(MAILBOX, "invoice").await;
    let failed = async {
        loop {
            let filter = Filter {
                states: vec![State::Failed],
                ..Filter::default()
            };
            let failed = rig.spool.list(filter).await.unwrap();
            if failed.len() >= 3 {
                return failed;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let failed = tokio::time::timeout(DEADLINE, failed).await.unwrap();
    // A later message is delivered, so there was time for a fourth.
    rig.fault(Vec::new());
    rig.accept(MAILBOX, "next").await;
    assert_eq!(rig.delivered(1).await, ["next"]);
    assert_eq!(failed.len(), 3);
    assert_eq!(rig.spool.list(Filter::default()).await.unwrap().len(), 4);
    for notification in &failed[1..] {
        assert_eq!(notification.submission.envelope.reverse_path.0, None);
    }
    rig.stop().await;
}

#[tokio::test]
async fn an_expired_message_is_told_as_such() {
    let settings = config::Delivery {
        lifetime: Duration::from_millis(300),
        ..settings()
    };
    let rig = Rig::with(settings, cloud(Limits::default()).await).await;
    rig.fault(vec![Rule {
        mailbox: Some("broken@contoso.com".to_owned()),
        retry_after: Some(json!("0.1")),
        ..status(503, 1_000)
    }]);
    let id = rig.accept("broken@contoso.com", "late").await;
    rig.wait(id, State::Failed).await;
    // It goes out through the mailbox of its message once that works.
    rig.fault(Vec::new());
    let filter = Filter {
        mailbox: Some("broken@contoso.com".to_owned()),
        ..Filter::default()
    };
    let entries = rig.spool.list(filter).await.unwrap();
    assert_eq!(entries.len(), 3, "{entries:?}");
    let content = rig.spool.content(entries[1].id).await.unwrap();
    let text = String::from_utf8_lossy(&content);
    assert!(
        text.contains("within the time allowed") && text.contains("Status: 4.4.7"),
        "{text}"
    );
    rig.stop().await;
}

#[tokio::test]
async fn late_mail_is_told_once() {
    let rig = Rig::new().await;
    rig.fault(vec![code(403, "ErrorAccessDenied", 1_000)]);

    let bounce = config::Bounce {
        warn_after: Some(Duration::from_millis(1)),
        ..config::Bounce::default()
    };
    let postmaster = Postmaster::new(rig.spool.clone(), bounce, "gateway.example".to_owned());
    let directory = rig.directory.path().to_owned();
    // The second run remembers what the first has told. A notification is no mail to be told about.
    for messages in 1..=2 {
        let id = rig.accept(MAILBOX, &format!("slow{messages}")).await;
        // The watch looks at once, and then not for a minute: the message has to be late already.
        let late = |it: &Entry| Timestamp::now().duration_since(it.accepted).as_millis() > 1;
        rig.wait_until(id, |it| late(it) && (it.reason.is_some() || messages == 2))
            .await;
        let stop = CancellationToken::new();
        let lifetime = Duration::from_secs(86_400);
        let watch = tokio::spawn(
            postmaster
                .clone()
                .watch(directory.clone(), lifetime, stop.clone()),
        );
        let told = async {
            while rig.spool.list(Filter::default()).await.unwrap().len() < 2 * messages {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(DEADLINE, told).await.unwrap();
        stop.cancel();
        watch.await.unwrap();
    }
    let entries = rig.spool.list(Filter::default()).await.unwrap();
    assert_eq!(entries.len(), 4, "{entries:?}");
    let content = rig.spool.content(entries[1].id).await.unwrap();
    let text = String::from_utf8_lossy(&content);
    for word in [
        "Delayed mail",
        "Action: delayed",
        "Will-Retry-Until:",
        "ErrorAccessDenied",
    ] {
        assert!(text.contains(word), "{word} in {text}");
    }
    rig.stop().await;
}
