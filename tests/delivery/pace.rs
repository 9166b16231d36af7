//! Limits as the cloud sees them.

use graphpost::config;
use graphpost::sandbox::Limits;

use crate::rig::{Rig, cloud, settings};

/// A request counts until its answer has arrived, so the cloud never sees a fifth.
#[tokio::test(flavor = "multi_thread")]
async fn is_never_throttled_within_the_limits() {
    let limits = Limits {
        concurrency: Some(4),
        latency_ms: 5,
        ..Limits::default()
    };
    let rig = Rig::with(settings(), cloud(limits).await).await;
    for number in 0..200 {
        rig.accept(&format!("m{}@contoso.com", number % 3), &format!("m{number}"))
            .await;
    }
    rig.delivered(200).await;
    assert_eq!(rig.metrics.graph_throttled.get(), 0);
    rig.stop().await;
}

/// No more than 5 a minute: the sixth waits, and another mailbox does not.
#[tokio::test]
async fn keeps_to_so_many_a_minute() {
    let limits = Limits {
        messages_per_minute: Some(5),
        ..Limits::default()
    };
    let settings = config::Delivery {
        messages_per_minute: 5,
        ..settings()
    };
    let rig = Rig::with(settings, cloud(limits).await).await;
    for number in 0..6 {
        rig.accept("a@contoso.com", &format!("a{number}")).await;
    }
    rig.delivered(5).await;
    for number in 0..3 {
        rig.accept("b@contoso.com", &format!("b{number}")).await;
    }
    rig.delivered(8).await;
    let state = rig.control.state().await.unwrap();
    let lane = state
        .lanes
        .iter()
        .find(|it| it.mailbox == "a@contoso.com")
        .unwrap();
    assert_eq!((lane.waiting, lane.in_last_minute), (1, 5));
    assert_eq!(rig.metrics.graph_throttled.get(), 0);
    rig.stop().await;
}

/// The cloud allows less than we think: it says so a few times, and then no more.
#[tokio::test(flavor = "multi_thread")]
async fn learns_what_the_cloud_allows() {
    let limits = Limits {
        concurrency: Some(2),
        concurrency_retry_after_ms: 100,
        retry_after: graphpost::sandbox::RetryAfterForm::Fraction,
        latency_ms: 10,
        ..Limits::default()
    };
    let rig = Rig::with(settings(), cloud(limits).await).await;
    for number in 0..300 {
        rig.accept("a@contoso.com", &format!("m{number}")).await;
    }
    rig.delivered(300).await;
    let throttled = rig.metrics.graph_throttled.get();
    assert!((1..=8).contains(&throttled), "{throttled}");
    rig.stop().await;
}
