//! Everything that can be wrong on the way out, with the real program, sockets and certificates: clients
//! get 250, mail waits in the state that tells who has to act, log and metrics say what is wrong, and all
//! of it goes out once that is mended. Nothing fails.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use graphpost::sandbox::{MAIL_READ_WRITE, MAIL_SEND, Rule};

use crate::process::{Process, log_of};
use crate::rig::{DEADLINE, Site, body, http, send};

/// What somebody has to do, once the cause is gone.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    /// Nothing.
    Nothing,
    /// Reload: the configuration itself was mended.
    Reload,
}

struct Outage {
    name: &'static str,
    /// What is wrong in the configuration.
    configuration: fn(String) -> String,
    /// What goes wrong outside.
    breaks: fn(&Site),
    /// `held` where an operator has to act, `queued` where it passes by itself.
    state: &'static str,
    /// What the log says, in one line.
    log: &'static [&'static str],
    /// A line of the metrics.
    metric: &'static str,
    mend: fn(&Site),
    then: Then,
    /// What the log says at the end.
    recovered: &'static str,
}

fn as_it_is(text: String) -> String {
    text
}

fn nothing(_: &Site) {}

fn fault(site: &Site, rule: Rule) {
    site.cloud.set_faults(vec![rule]).unwrap();
}

fn clear(site: &Site) {
    site.cloud.set_faults(Vec::new()).unwrap();
}

fn rule(operation: &str, action: &str) -> Rule {
    Rule {
        operation: Some(operation.to_owned()),
        action: action.to_owned(),
        ..Rule::default()
    }
}

/// The value of a key of the tenant section replaced.
fn set(text: &str, key: &str, value: &str) -> String {
    let lines = text
        .lines()
        .map(|line| match line.starts_with(&format!("{key} =")) {
            true => format!("{key} = \"{value}\"\n"),
            false => format!("{line}\n"),
        });
    lines.collect()
}

const OUTAGES: &[Outage] = &[
    Outage {
        name: "Entra ID is down",
        configuration: as_it_is,
        breaks: |site| {
            fault(
                site,
                Rule {
                    status: Some(503),
                    body: Some("html".to_owned()),
                    ..rule("token", "status")
                },
            );
        },
        state: "queued",
        log: &["Microsoft unavailable", "503"],
        metric: "graphpost_token_requests_total{result=\"failed\"}",
        mend: clear,
        then: Then::Nothing,
        recovered: "Microsoft answers again",
    },
    Outage {
        name: "Graph is down",
        configuration: as_it_is,
        breaks: |site| {
            fault(
                site,
                Rule {
                    status: Some(503),
                    retry_after: Some(1.into()),
                    ..rule("sendMail", "status")
                },
            );
        },
        state: "queued",
        log: &["mailbox unavailable", "503"],
        metric: "graphpost_graph_requests_total{operation=\"sendMail\",code=\"503\"}",
        mend: clear,
        then: Then::Nothing,
        recovered: "mailbox works again",
    },
    Outage {
        name: "nothing of Microsoft can be reached",
        configuration: as_it_is,
        breaks: |site| site.cloud.close_for(Duration::from_secs(3_600)),
        state: "queued",
        log: &["Microsoft unavailable", "cannot be reached"],
        metric: "graphpost_delivery_attempts_total{result=\"deferred\"}",
        mend: |site| site.cloud.open(),
        then: Then::Nothing,
        recovered: "Microsoft answers again",
    },
    Outage {
        name: "DNS is gone",
        // RFC 6761 §6.4: this name never exists.
        configuration: |text| set(&text, "authority", "https://login.invalid"),
        breaks: nothing,
        state: "queued",
        log: &["Microsoft unavailable", "dns error"],
        metric: "graphpost_token_requests_total{result=\"failed\"}",
        mend: |site| site.configure(as_it_is),
        then: Then::Reload,
        recovered: "msg=sent",
    },
    Outage {
        name: "the application's certificate has expired",
        configuration: |text| {
            set(
                &set(&text, "certificate", "expired.pem"),
                "private_key",
                "app.key",
            )
        },
        breaks: |site| {
            let expired = std::fs::read(site.directory.path().join("expired.pem")).unwrap();
            site.cloud.register_certificate(&expired).unwrap();
        },
        state: "held",
        log: &["the credential does not work", "AADSTS700027"],
        metric: "graphpost_delivery_attempts_total{result=\"held\"}",
        mend: |site| site.configure(as_it_is),
        then: Then::Reload,
        recovered: "msg=sent",
    },
    Outage {
        name: "this machine's clock is wrong",
        configuration: as_it_is,
        breaks: |site| {
            fault(
                site,
                Rule {
                    code: Some(700_024.into()),
                    ..rule("token", "aadsts")
                },
            );
        },
        state: "held",
        log: &["the credential does not work", "AADSTS700024", "clock"],
        metric: "graphpost_token_requests_total{result=\"failed\"}",
        mend: clear,
        then: Then::Nothing,
        recovered: "Microsoft answers again",
    },
    Outage {
        name: "the permission has been withdrawn",
        configuration: as_it_is,
        breaks: |site| site.cloud.change_tenant(|it| it.roles.clear()),
        state: "held",
        log: &["mailbox held", "403 ErrorAccessDenied", "grant Mail.Send"],
        metric: "graphpost_graph_requests_total{operation=\"sendMail\",code=\"403\"}",
        // The token of the time before does not have it: a new one is asked for by itself.
        mend: |site| {
            site.cloud
                .change_tenant(|it| it.roles = vec![MAIL_SEND.to_owned(), MAIL_READ_WRITE.to_owned()]);
        },
        then: Then::Nothing,
        recovered: "mailbox works again",
    },
    Outage {
        name: "Graph refuses every token",
        configuration: as_it_is,
        breaks: |site| {
            fault(
                site,
                Rule {
                    status: Some(401),
                    code: Some("InvalidAuthenticationToken".into()),
                    ..rule("sendMail", "status")
                },
            );
        },
        state: "held",
        log: &["the credential does not work", "401"],
        metric: "graphpost_graph_requests_total{operation=\"sendMail\",code=\"401\"}",
        mend: clear,
        then: Then::Nothing,
        recovered: "Microsoft answers again",
    },
];

/// Waits until the log says all of it in one line.
pub async fn says(site: &Site, words: &[&str]) {
    let said = async {
        while !log_of(site)
            .lines()
            .any(|line| words.iter().all(|word| line.contains(word)))
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(DEADLINE, said).await.is_err() {
        panic!("{words:?} is not said in\n{}", log_of(site));
    }
}

async fn metrics(process: &Process) -> String {
    let admin: SocketAddr = process.lines[1].rsplit('/').next().unwrap().parse().unwrap();
    let answer = http(admin, "GET /metrics", &admin.to_string()).await;
    body(&answer).to_owned()
}

fn value(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0.0, |it| it.trim().parse().unwrap())
}

async fn accepts(process: &Process, subject: &str) {
    let codes = send(process.smtp, "erp@contoso.com", subject).await;
    assert_eq!(
        codes.last().map(String::as_str),
        Some("250"),
        "{subject}: {codes:?}"
    );
}

/// Waits for the cloud to have exactly these, each once.
async fn arrive(site: &Site, subjects: &[&str]) {
    let arrived = tokio::time::timeout(DEADLINE, site.cloud.wait_for(subjects.len())).await;
    let arrived = arrived.unwrap_or_else(|_| panic!("{}", log_of(site)));
    let mut arrived: Vec<_> = arrived.into_iter().map(|it| it.subject).collect();
    arrived.sort();
    assert_eq!(arrived, subjects);
}

async fn endure(outage: &'static Outage) {
    let site = Site::new().await;
    let expired = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/credentials/expired.pem");
    std::fs::copy(expired, site.directory.path().join("expired.pem")).unwrap();
    site.configure(outage.configuration);
    (outage.breaks)(&site);
    let process = Process::start(&site).await;

    accepts(&process, "one").await;
    says(&site, outage.log).await;
    // Whatever is wrong outside, it is no business of the client's.
    accepts(&process, "two").await;
    // What is said is on the disk a moment later.
    let settled = async {
        loop {
            let metrics = metrics(&process).await;
            let count = |state: &str| {
                value(
                    &metrics,
                    &format!("graphpost_queue_messages{{state=\"{state}\"}}"),
                )
            };
            let passing = outage.state == "queued";
            if count("queued") + count("held") == 2.0
                && count(outage.state) >= 1.0
                && (count("held") == 0.0) == passing
                && value(&metrics, outage.metric) >= 1.0
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(DEADLINE, settled).await.is_err() {
        panic!("{}: {}\n{}", outage.name, metrics(&process).await, log_of(&site));
    }
    assert!(site.cloud.deliveries().is_empty());

    (outage.mend)(&site);
    if outage.then == Then::Reload {
        process.signal("HUP");
    }
    arrive(&site, &["one", "two"]).await;
    says(&site, &[outage.recovered]).await;
    let metrics_now = metrics(&process).await;
    for result in ["failed", "expired"] {
        let name = format!("graphpost_messages_total{{result=\"{result}\"}}");
        assert_eq!(value(&metrics_now, &name), 0.0, "{}", outage.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_is_taken_kept_and_sent_when_it_is_over() {
    assert!(OUTAGES.len() >= 8);
    let mut all = tokio::task::JoinSet::new();
    for outage in OUTAGES {
        all.spawn(endure(outage));
    }
    while let Some(endured) = all.join_next().await {
        endured.unwrap();
    }
}

/// The proxy is away, and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_gone() {
    let site = Site::new().await;
    let proxy = {
        let reserved = TcpListener::bind("127.0.0.1:0").unwrap();
        reserved.local_addr().unwrap()
    };
    site.configure(|it| {
        it.replace(
            "[tenant.credential]",
            &format!("proxy = \"http://{proxy}\"\n[tenant.credential]"),
        )
    });
    let process = Process::start(&site).await;
    accepts(&process, "one").await;
    says(&site, &["Microsoft unavailable"]).await;
    accepts(&process, "two").await;
    assert!(site.cloud.deliveries().is_empty());

    // A proxy for plain HTTP gets the whole URL, which the cloud understands as well.
    let listener = tokio::net::TcpListener::bind(proxy).await.unwrap();
    let cloud = site.cloud.address();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = tokio::net::TcpStream::connect(cloud).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    arrive(&site, &["one", "two"]).await;
    says(&site, &["Microsoft answers again"]).await;
}

/// Tokens that are revoked, or refused without a word, are replaced within the attempt: nothing waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_holds_nothing_up() {
    for (action, evaluation) in [
        ("expire-tokens", "false"),
        ("revoke-tokens", "false"),
        ("revoke-tokens", "true"),
    ] {
        let site = Site::new().await;
        site.configure(|it| {
            it.replace(
                "[tenant.credential]",
                &format!("continuous_access_evaluation = {evaluation}\n[tenant.credential]"),
            )
        });
        let process = Process::start(&site).await;
        accepts(&process, "one").await;
        arrive(&site, &["one"]).await;
        fault(
            &site,
            Rule {
                count: Some(1),
                ..rule("sendMail", action)
            },
        );
        accepts(&process, "two").await;
        arrive(&site, &["one", "two"]).await;
        let metrics = metrics(&process).await;
        assert_eq!(
            value(&metrics, "graphpost_token_requests_total{result=\"ok\"}"),
            2.0,
            "{action}"
        );
        assert_eq!(
            value(&metrics, "graphpost_delivery_attempts_total{result=\"held\"}"),
            0.0,
            "{action}"
        );
        assert!(!log_of(&site).contains("the credential does not work"));
    }
}
