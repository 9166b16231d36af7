//! A queue, the loop, and the cloud.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use graphpost::address::Address;
use graphpost::config::{self, Api, ApplicationCredential, AssertionAlgorithm, Credential, Tenant};
use graphpost::convert::Wishes;
use graphpost::delivery::{Control, Delivery, Settings};
use graphpost::envelope::{Envelope, HeaderFrom, Origin, ReversePath, Route};
use graphpost::graph::client::Graph;
use graphpost::identity::Tokens;
use graphpost::metrics::Metrics;
use graphpost::postmaster::Postmaster;
use graphpost::sandbox::{Cloud, Limits, Options, Rule};
use graphpost::spool::{Entry, QueueId, Spool, SpoolError, State, Submission};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The mailbox that sends where a test does not care.
pub const MAILBOX: &str = "service@contoso.com";
/// Nothing here takes this long when all is well.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub struct Rig {
    pub directory: TempDir,
    pub cloud: Cloud,
    pub spool: Spool,
    pub control: Control,
    pub metrics: Arc<Metrics>,
    pub settings: config::Delivery,
    stop: CancellationToken,
    task: JoinHandle<Result<usize, SpoolError>>,
}

/// Short waits, no pace of its own.
pub fn settings() -> config::Delivery {
    config::Delivery {
        messages_per_minute: 1_000_000,
        retry_first: Duration::from_millis(50),
        retry_max: Duration::from_millis(200),
        request_timeout: Duration::from_secs(10),
        drain_timeout: Duration::from_secs(20),
        ..config::Delivery::default()
    }
}

/// A cloud that knows the application's certificate.
pub async fn cloud(limits: Limits) -> Cloud {
    let options = Options {
        limits,
        certificates: vec![std::fs::read(credential("app.cer")).unwrap()],
        ..Options::default()
    };
    Cloud::bind("127.0.0.1:0".parse().unwrap(), options)
        .await
        .unwrap()
}

fn credential(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/credentials")
        .join(name)
}

pub fn graph(cloud: &Cloud, metrics: &Arc<Metrics>, request_timeout: Duration, api: Api) -> Graph {
    let tenant = Tenant {
        id: "contoso.onmicrosoft.com".to_owned(),
        client_id: "11111111-1111-1111-1111-111111111111".to_owned(),
        authority: cloud.authority(),
        graph: cloud.graph(),
        api,
        credential: ApplicationCredential::Certificate {
            files: Credential {
                certificate: credential("app.pem"),
                private_key: Some(credential("app.key")),
                password: None,
            },
            vault_password: None,
        },
        next_credential: None,
        send_certificate_chain: false,
        continuous_access_evaluation: false,
        assertion: AssertionAlgorithm::Ps256,
        proxy: None,
        ca_file: None,
        large_messages: false,
    };
    let tokens = Tokens::new(&tenant, Arc::clone(metrics)).unwrap();
    Graph::new(&tenant, request_timeout, tokens, Arc::clone(metrics)).unwrap()
}

pub fn postmaster(spool: &Spool) -> Postmaster {
    let bounce = config::Bounce {
        postmaster: Some(Address::parse("postmaster@contoso.com").unwrap()),
        ..config::Bounce::default()
    };
    Postmaster::new(spool.clone(), bounce, "gateway.example".to_owned())
}

impl Rig {
    pub async fn new() -> Rig {
        Rig::with(settings(), cloud(Limits::default()).await).await
    }

    pub async fn with(settings: config::Delivery, cloud: Cloud) -> Rig {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Rig::over(directory, settings, cloud).await
    }

    /// Over a queue that may already have something in it.
    pub async fn over(directory: TempDir, settings: config::Delivery, cloud: Cloud) -> Rig {
        Rig::wishing(Wishes::default(), directory, settings, cloud).await
    }

    /// With wishes for the form of messages.
    pub async fn wishing(
        wishes: Wishes,
        directory: TempDir,
        settings: config::Delivery,
        cloud: Cloud,
    ) -> Rig {
        let metrics = Arc::new(Metrics::new());
        let spool_settings = config::Spool {
            directory: directory.path().to_owned(),
            min_free_bytes: 0,
            ..config::Spool::default()
        };
        let (spool, _) = Spool::open(&spool_settings, settings.unknown, &metrics)
            .await
            .unwrap();
        let loop_settings = Settings {
            graph: graph(&cloud, &metrics, settings.request_timeout, wishes.api),
            delivery: settings.clone(),
            postmaster: postmaster(&spool),
            wishes,
        };
        let (delivery, control) = Delivery::new(spool.clone(), loop_settings, Arc::clone(&metrics));
        let stop = CancellationToken::new();
        Rig {
            directory,
            cloud,
            spool,
            control,
            metrics,
            settings,
            task: tokio::spawn(delivery.run(stop.clone())),
            stop,
        }
    }

    /// Stops the loop; how many attempts it had to leave.
    pub async fn stop(self) -> (TempDir, Cloud, usize) {
        self.stop.cancel();
        let left = self.task.await.unwrap().unwrap();
        self.spool.close().await;
        (self.directory, self.cloud, left)
    }

    /// Puts faults between the loop and the cloud.
    pub fn fault(&self, rules: Vec<Rule>) {
        self.cloud.set_faults(rules).unwrap();
    }

    pub async fn accept(&self, mailbox: &str, subject: &str) -> QueueId {
        self.accept_as(submission(mailbox, subject), subject).await
    }

    /// Takes a message with an envelope, a route or a Message-ID of its own.
    pub async fn accept_as(&self, submission: Submission, subject: &str) -> QueueId {
        let mailbox = &submission.route.mailbox;
        let content =
            format!("From: {mailbox}\r\nTo: ann@example.com\r\nSubject: {subject}\r\n\r\nHello\r\n");
        let mut incoming = self.spool.incoming().unwrap();
        incoming.write(content.as_bytes()).await.unwrap();
        incoming.accept(submission).await.unwrap().id()
    }

    /// Waits until a message is in this state.
    pub async fn wait(&self, id: QueueId, state: State) -> Entry {
        self.wait_until(id, |entry| entry.state == state).await
    }

    pub async fn wait_until(&self, id: QueueId, is_so: impl Fn(&Entry) -> bool) -> Entry {
        let waiting = async {
            loop {
                let entry = self.spool.get(id).await.unwrap();
                if is_so(&entry) {
                    return entry;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        match tokio::time::timeout(DEADLINE, waiting).await {
            Ok(entry) => entry,
            Err(_) => panic!("it stays so: {:?}", self.spool.get(id).await),
        }
    }

    /// Waits until so many are delivered, and says which.
    pub async fn delivered(&self, count: usize) -> Vec<String> {
        tokio::time::timeout(DEADLINE, self.cloud.wait_for(count))
            .await
            .expect("they are delivered")
            .into_iter()
            .map(|it| it.subject)
            .collect()
    }
}

pub fn submission(mailbox: &str, subject: &str) -> Submission {
    Submission {
        envelope: Envelope {
            reverse_path: ReversePath(Some(Address::parse("erp@contoso.com").unwrap())),
            recipients: vec![Address::parse("ann@example.com").unwrap()],
        },
        origin: Origin {
            client: [192, 0, 2, 7].into(),
            helo: "erp".to_owned(),
            account: None,
            listener: "plain".to_owned(),
            tls: None,
            protocol: "ESMTP".to_owned(),
        },
        route: Route {
            mailbox: mailbox.to_owned(),
            rule: "sender[1]".to_owned(),
            header_from: HeaderFrom::Mailbox,
            save_to_sent_items: true,
            format: None,
            unknown: None,
        },
        message_id: format!("{subject}@erp.example"),
    }
}

/// What a rule does to the next requests to send.
pub fn status(status: u16, count: u64) -> Rule {
    Rule {
        operation: Some("sendMail".to_owned()),
        count: Some(count),
        action: "status".to_owned(),
        status: Some(status),
        ..Rule::default()
    }
}

pub fn code(status_: u16, code: &str, count: u64) -> Rule {
    Rule {
        code: Some(code.into()),
        ..status(status_, count)
    }
}
