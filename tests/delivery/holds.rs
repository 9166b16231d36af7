//! What an operator must mend is held, and goes out once it is mended.

use graphpost::config::Api;
use graphpost::convert::Wishes;
use graphpost::delivery::Settings;
use graphpost::sandbox::{Cloud, Limits, MAIL_SEND, Options, Rule};
use graphpost::spool::{Action, State};
use serde_json::json;

use crate::rig::{MAILBOX, Rig, cloud, code, graph, postmaster, settings};

#[tokio::test]
async fn a_bad_credential_holds_all_and_fails_nothing() {
    // A cloud that has never seen the certificate.
    let cloud = Cloud::bind("127.0.0.1:0".parse().unwrap(), Options::default())
        .await
        .unwrap();
    let rig = Rig::with(settings(), cloud).await;
    let mut ids = Vec::new();
    for number in 0..10 {
        ids.push(
            rig.accept(&format!("m{number}@contoso.com"), &format!("m{number}"))
                .await,
        );
    }
    let first = rig.wait(ids[0], State::Held).await;
    assert!(
        first.reason.as_ref().unwrap().contains("AADSTS700027"),
        "{first:?}"
    );
    let state = rig.control.state().await.unwrap();
    assert_eq!(state.closed.unwrap().because, "hold");
    for id in &ids {
        let state = rig.spool.get(*id).await.unwrap().state;
        assert!(
            matches!(state, State::Held | State::Queued | State::Sending),
            "{state}"
        );
    }

    // Mended, and told so by a reload.
    let certificate =
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/credentials/app.cer")).unwrap();
    rig.cloud.register_certificate(&certificate).unwrap();
    rig.control
        .change(Settings {
            graph: graph(&rig.cloud, &rig.metrics, rig.settings.request_timeout, Api::Graph),
            delivery: rig.settings.clone(),
            postmaster: postmaster(&rig.spool),
            wishes: Wishes::default(),
        })
        .await;
    rig.delivered(10).await;
    for id in ids {
        rig.wait(id, State::Sent).await;
    }
    assert_eq!(rig.control.state().await.unwrap().closed, None);
    rig.stop().await;
}

#[tokio::test]
async fn entra_down_then_up() {
    let rig = Rig::new().await;
    rig.fault(vec![Rule {
        operation: Some("token".to_owned()),
        count: Some(1),
        action: "status".to_owned(),
        status: Some(503),
        retry_after: Some(json!(1)),
        ..Rule::default()
    }]);
    let id = rig.accept(MAILBOX, "one").await;
    let entry = rig.wait_until(id, |it| it.reason.is_some()).await;
    assert_eq!(entry.state, State::Queued, "an outage is nothing to mend");
    assert_eq!(
        rig.control.state().await.unwrap().closed.unwrap().because,
        "outage"
    );
    rig.delivered(1).await;
    rig.wait(id, State::Sent).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_mailbox_without_permission_holds_only_itself() {
    let rig = Rig::new().await;
    rig.cloud.change_tenant(|tenant| {
        tenant.roles.clear();
        tenant.assignments = vec![graphpost::sandbox::Assignment {
            role: MAIL_SEND.to_owned(),
            mailboxes: vec!["good@contoso.com".to_owned()],
        }];
    });
    let held = rig.accept("bad@contoso.com", "bad").await;
    let entry = rig.wait(held, State::Held).await;
    assert!(entry.reason.unwrap().contains("Mail.Send"));
    assert!(entry.due.is_some(), "it is tried again by itself");
    rig.accept("good@contoso.com", "good").await;
    assert_eq!(rig.delivered(1).await, ["good"]);

    rig.cloud.change_tenant(|tenant| {
        tenant.assignments[0].mailboxes.push("bad@contoso.com".to_owned());
    });
    rig.control.probe().await;
    assert_eq!(rig.delivered(2).await, ["good", "bad"]);
    rig.wait(held, State::Sent).await;
    rig.stop().await;
}

/// Other messages of the mailbox go on.
#[tokio::test]
async fn a_message_without_send_as_waits_alone() {
    let rig = Rig::new().await;
    rig.fault(vec![code(403, "ErrorSendAsDenied", 1)]);
    let id = rig.accept(MAILBOX, "other").await;
    rig.wait(id, State::Held).await;
    rig.accept(MAILBOX, "own").await;
    assert_eq!(rig.delivered(1).await, ["own"]);
    // The operator has mended it.
    rig.spool.act(id, Action::Release, "granted").await.unwrap();
    assert_eq!(rig.delivered(2).await, ["own", "other"]);
    rig.stop().await;
}

#[tokio::test]
async fn what_the_operator_holds_or_deletes_is_not_sent() {
    let rig = Rig::new().await;
    // The first answer keeps the lane closed long enough to act behind it.
    rig.fault(vec![Rule {
        retry_after: Some(json!(2)),
        ..code(429, "ApplicationThrottled", 1)
    }]);
    let first = rig.accept(MAILBOX, "first").await;
    rig.wait_until(first, |it| it.reason.is_some()).await;
    let held = rig.accept(MAILBOX, "held").await;
    let deleted = rig.accept(MAILBOX, "deleted").await;
    rig.spool.act(held, Action::Hold, "wait").await.unwrap();
    rig.spool
        .act(deleted, Action::Delete, "not wanted")
        .await
        .unwrap();
    rig.accept(MAILBOX, "last").await;
    let mut subjects = rig.delivered(2).await;
    subjects.sort();
    assert_eq!(subjects, ["first", "last"]);
    rig.spool.act(held, Action::Release, "now").await.unwrap();
    assert_eq!(rig.delivered(3).await[2], "held");
    rig.stop().await;
}

#[tokio::test]
async fn a_throttled_mailbox_delays_only_itself() {
    let rig = Rig::with(settings(), cloud(Limits::default()).await).await;
    rig.fault(vec![Rule {
        mailbox: Some("slow@contoso.com".to_owned()),
        retry_after: Some(json!(600)),
        ..code(429, "ApplicationThrottled", 1_000_000)
    }]);
    let slow = rig.accept("slow@contoso.com", "slow").await;
    rig.wait_until(slow, |it| it.reason.is_some()).await;
    for number in 0..50 {
        rig.accept("slow@contoso.com", &format!("slow{number}")).await;
        rig.accept("fast@contoso.com", &format!("fast{number}")).await;
    }
    let subjects = rig.delivered(50).await;
    assert!(subjects.iter().all(|it| it.starts_with("fast")), "{subjects:?}");
    let state = rig.control.state().await.unwrap();
    assert_eq!(
        state
            .lanes
            .iter()
            .find(|it| it.mailbox.starts_with("slow"))
            .unwrap()
            .waiting,
        51
    );
    rig.stop().await;
}
