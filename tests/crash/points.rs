//! A crash at every step between the final dot and the removal of a sent message: named points in test
//! builds, at which the process kills itself (`src/crash.rs`). For each there is exactly one right end.

use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::path::Path;

use graphpost::sandbox::{Cloud, Rule};

use crate::rig::{Client, DEADLINE, Gateway, binary, cloud, configure, is_busy};

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mail {
    /// Kept in the database.
    Small,
    /// Kept in a file of its own.
    Large,
    /// Larger than one request: sent as a draft.
    Huge,
    /// The same, and Microsoft will have no such draft: its sender is told, in a request.
    Hopeless,
}

impl Mail {
    /// What follows the subject.
    fn rest(self) -> String {
        match self {
            Mail::Small => "\r\nAn invoice.".to_owned(),
            Mail::Large => format!("\r\n{}", "An invoice line.\r\n".repeat(2000)),
            Mail::Huge | Mail::Hopeless => format!(
                "MIME-Version: 1.0\r\nContent-Type: application/pdf; name=scan.pdf\r\n\
                 Content-Transfer-Encoding: base64\r\n\r\n{}",
                "QW4gaW52b2ljZSwgc2Nhbm5lZCBsaW5lIGJ5IGxpbmUgYW5kIHBhZ2UgYnkgcGFnZSE=\r\n".repeat(54_000)
            ),
        }
    }
}

/// What the client has heard.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Heard {
    /// The connection was cut before the answer.
    Nothing,
    /// 250.
    Accepted,
    /// Delivery and answer go side by side: either.
    Either,
}
use Heard::{Accepted, Either, Nothing};

struct Case {
    mail: Mail,
    /// Where the process ends; what comes after the first ends its next starts.
    points: &'static [&'static str],
    heard: Heard,
    /// How often it is delivered in the end. Twice is right exactly where the cloud has delivered and
    /// nobody could write it down.
    delivered: RangeInclusive<usize>,
}

const fn case(
    mail: Mail,
    points: &'static [&'static str],
    heard: Heard,
    delivered: RangeInclusive<usize>,
) -> Case {
    Case {
        mail,
        points,
        heard,
        delivered,
    }
}

/// In place of a crash point: killed from outside while the cloud, which has delivered, does not answer.
const UNANSWERED: &str = "unanswered";

const CASES: &[Case] = &[
    // Until the commit the message never was; no 250 was said.
    case(Mail::Small, &["final-dot"], Nothing, 0..=0),
    case(Mail::Small, &["accept-uncommitted"], Nothing, 0..=0),
    case(Mail::Large, &["content-written"], Nothing, 0..=0),
    case(Mail::Large, &["content-synced"], Nothing, 0..=0),
    case(Mail::Large, &["name-synced"], Nothing, 0..=0),
    case(Mail::Large, &["accept-uncommitted"], Nothing, 0..=0),
    // From the commit on it is delivered, whether or not the client has heard of it.
    case(Mail::Small, &["accept-committed"], Nothing, 1..=1),
    case(Mail::Large, &["accept-committed"], Nothing, 1..=1),
    case(Mail::Small, &["stored"], Either, 1..=1),
    case(Mail::Small, &["answered-250"], Accepted, 1..=1),
    case(Mail::Small, &["attempt-uncommitted"], Either, 1..=1),
    case(Mail::Small, &["attempt-committed"], Either, 1..=1),
    case(Mail::Large, &["attempt-committed"], Either, 1..=1),
    case(Mail::Small, &["converted"], Either, 1..=1),
    case(Mail::Small, &["request-begun"], Either, 1..=1),
    // The cloud has delivered, and the answer is lost: twice rather than never.
    case(Mail::Small, &[UNANSWERED], Either, 2..=2),
    case(Mail::Small, &["answered"], Either, 2..=2),
    case(Mail::Small, &["outcome-known"], Either, 2..=2),
    case(Mail::Small, &["outcome-uncommitted"], Either, 2..=2),
    // From here on it is known to be sent.
    case(Mail::Small, &["outcome-committed"], Either, 1..=1),
    case(Mail::Small, &["outcome-settled"], Either, 1..=1),
    case(Mail::Large, &["outcome-committed"], Either, 1..=1),
    case(Mail::Large, &["content-unneeded"], Either, 1..=1),
    case(Mail::Large, &["content-removed"], Either, 1..=1),
    case(Mail::Small, &["history-uncommitted"], Either, 1..=1),
    case(Mail::Small, &["history-committed"], Either, 1..=1),
    // A draft that has been sent is found to have been sent: never twice.
    case(Mail::Huge, &["draft-made"], Either, 1..=1),
    case(Mail::Huge, &["draft-committed"], Either, 1..=1),
    case(Mail::Huge, &["draft-filled"], Either, 1..=1),
    case(Mail::Huge, &["answered"], Either, 1..=1),
    case(Mail::Huge, &["outcome-committed"], Either, 1..=1),
    // Recovery itself is cut short.
    case(
        Mail::Small,
        &["attempt-committed", "recovery-uncommitted"],
        Either,
        1..=1,
    ),
    case(
        Mail::Small,
        &["attempt-committed", "recovery-committed", "recovery-uncommitted"],
        Either,
        1..=1,
    ),
    case(Mail::Small, &["answered", "recovery-committed"], Either, 2..=2),
    case(
        Mail::Large,
        &["accept-uncommitted", "recovery-uncommitted"],
        Nothing,
        0..=0,
    ),
    // What counts here are the notifications to its sender: told twice rather than never. One may be on its
    // way already at the crash, and so go out once more.
    case(Mail::Hopeless, &["bounce-queued"], Either, 2..=3),
    case(Mail::Hopeless, &["failure-uncommitted"], Either, 2..=3),
    case(Mail::Hopeless, &["failure-committed"], Either, 1..=2),
];

/// In a release there are no crash points.
#[test]
fn crash_points_are_in_test_builds_alone() {
    let binary = std::fs::read(binary()).unwrap();
    let name = b"GRAPHPOST_CRASH_AT";
    let there = binary.windows(name.len()).any(|it| it == name);
    assert_eq!(there, cfg!(debug_assertions));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_step_loses_nothing() {
    if !cfg!(debug_assertions) {
        println!("no crash points in a release");
        return;
    }
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let cloud = cloud(home.path()).await;
    let mut table = String::new();
    let mut wrong = Vec::new();
    let (mut kills, mut acknowledged, mut lost, mut duplicates) = (0, 0, 0, 0);
    for (number, case) in CASES.iter().enumerate() {
        let subject = format!("case {number}");
        let directory = home.path().join(number.to_string());
        std::fs::create_dir(&directory).unwrap();
        configure(&directory, &cloud.url(), home.path(), |it| match case.mail {
            Mail::Huge | Mail::Hopeless => it
                .replace(
                    "[tenant.credential]",
                    "large_messages = true\n[tenant.credential]",
                )
                .replace("file_threshold = \"10KB\"", "file_threshold = \"1MB\""),
            _ if case.points[0].starts_with("history") => {
                it.replace("[spool]", "[spool]\nkeep_sent = \"1s\"")
            }
            _ => it,
        });
        let (heard, delivered) = tokio::time::timeout(DEADLINE, run(&cloud, case, &directory, &subject))
            .await
            .unwrap_or_else(|_| panic!("{:?} of {:?} does not come to an end", case.points, case.mail));

        kills += case.points.len();
        acknowledged += usize::from(heard);
        lost += usize::from(heard && delivered == 0);
        duplicates += delivered.saturating_sub(1);
        let _ = writeln!(
            table,
            "{:<60} {:<8} {:<3} delivered {delivered}",
            case.points.join(", "),
            format!("{:?}", case.mail).to_lowercase(),
            if heard { "250" } else { "-" },
        );
        let heard_right = match case.heard {
            Nothing => !heard,
            Accepted => heard,
            Either => true,
        };
        if !heard_right || !case.delivered.contains(&delivered) {
            wrong.push(format!(
                "{:?} of {:?}: 250 heard: {heard}, delivered {delivered}",
                case.points, case.mail
            ));
        }
    }
    println!(
        "{table}kills {kills}, messages {}, acknowledged {acknowledged}, lost {lost}, duplicates {duplicates}",
        CASES.len()
    );
    assert!(wrong.is_empty(), "{table}{wrong:#?}");
}

/// Whether the client heard 250, and how often the message, or the notification about it, was delivered.
async fn run(cloud: &Cloud, case: &Case, directory: &Path, subject: &str) -> (bool, usize) {
    let seen = cloud.deliveries().len();
    let unanswered = case.points[0] == UNANSWERED;
    if unanswered {
        cloud
            .set_faults(vec![Rule {
                operation: Some("sendMail".to_owned()),
                action: "delay".to_owned(),
                delay_ms: 600_000,
                count: Some(1),
                ..Rule::default()
            }])
            .unwrap();
    }

    if case.mail == Mail::Hopeless {
        cloud
            .set_faults(vec![Rule {
                operation: Some("createDraft".to_owned()),
                action: "status".to_owned(),
                status: Some(400),
                code: Some("ErrorInvalidRecipients".into()),
                ..Rule::default()
            }])
            .unwrap();
    }

    // The first process takes the mail, and ends at the first point.
    let mut gateway = start(directory, Some(case.points[0])).await;
    let (port, subject, rest) = (gateway.listening(), subject.to_owned(), case.mail.rest());
    let client = tokio::task::spawn_blocking(move || {
        Client::connect(port)
            .and_then(|mut it| it.send(&subject, &rest))
            .is_ok()
    });
    if unanswered {
        cloud.wait_for(seen + 1).await;
        gateway.kill();
    } else {
        gateway = tokio::task::spawn_blocking(move || {
            gateway.killed();
            gateway
        })
        .await
        .unwrap();
    }
    let heard = client.await.unwrap();
    drop(gateway);
    if unanswered {
        cloud.set_faults(Vec::new()).unwrap();
    }

    // Its successors end on their own ways.
    for point in &case.points[1..] {
        let mut gateway = start(directory, Some(point)).await;
        tokio::task::spawn_blocking(move || gateway.killed())
            .await
            .unwrap();
    }

    // And one is left alone.
    let gateway = start(directory, None).await;
    gateway.listening();
    let spool = directory.join("spool");
    while is_busy(&spool) {
        tokio::task::yield_now().await;
    }
    tokio::task::spawn_blocking(move || gateway.stop()).await.unwrap();
    cloud.set_faults(Vec::new()).unwrap();
    assert!(!is_busy(&spool), "{:?}", case.points);
    let content: Vec<_> = std::fs::read_dir(spool.join("content")).unwrap().collect();
    let kept = usize::from(case.mail == Mail::Hopeless);
    assert_eq!(content.len(), kept, "{:?} leaves {content:?}", case.points);
    let aside = std::fs::read_dir(spool.join("set-aside")).unwrap().count();
    assert_eq!(aside, 0, "{:?}", case.points);
    (heard, cloud.deliveries().len() - seen)
}

async fn start(directory: &Path, point: Option<&str>) -> Gateway {
    let (directory, point) = (directory.to_owned(), point.map(str::to_owned));
    tokio::task::spawn_blocking(move || Gateway::start(&directory, point.as_deref()))
        .await
        .unwrap()
}
