//! Tells senders, and the postmaster, what became of mail that does not arrive: puts delivery status
//! notifications into the queue.
//!
//! A notification has the null reverse-path, so that there is never one about it, whoever it is for
//! (RFC 5321 §4.5.5). It goes out through the mailbox of the message it is about. It is in the queue
//! before its occasion is recorded: a crash in between tells the sender twice, never not at all.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::address::Address;
use crate::bounce::{self, Happening, Notification};
use crate::config;
use crate::envelope::{Envelope, HeaderFrom, Origin, ReversePath, Route, UnknownPolicy};
use crate::event;
use crate::notify::{About, MessageFacts, Notifier};
use crate::spool::{Entry, Filter, QueueId, Spool, SpoolError, State, Submission};

/// How often late mail is looked for.
const WATCH: Duration = Duration::from_secs(60);
/// Late messages looked at in one go.
const PAGE: usize = 500;
/// Remembers, in the queue's directory, up to which message late mail has been looked for.
const WATCHED: &str = "delay-warnings";

/// Writes and queues notifications. Cheap to clone.
#[derive(Clone)]
pub struct Postmaster {
    spool: Spool,
    settings: config::Bounce,
    hostname: String,
    notifier: Option<Notifier>,
}

/// What a notification is about.
#[derive(Clone, Copy, Debug)]
pub struct Occasion<'a> {
    /// What happened.
    pub happening: Happening,
    /// Why, in words.
    pub reason: &'a str,
    /// The enhanced status code (RFC 3463).
    pub enhanced: &'a str,
    /// Graph's `request-id`.
    pub request_id: Option<&'a str>,
}

impl Postmaster {
    /// `hostname` is the name that notifications call this gateway by.
    pub fn new(spool: Spool, settings: config::Bounce, hostname: String) -> Postmaster {
        Postmaster {
            spool,
            settings,
            hostname,
            notifier: None,
        }
    }

    /// One that tells the operator's own systems as well.
    pub fn notifying(self, notifier: Notifier) -> Postmaster {
        Postmaster {
            notifier: Some(notifier),
            ..self
        }
    }

    /// Tells the operator's own systems.
    pub fn notify(&self, about: About) {
        if let Some(notifier) = &self.notifier {
            notifier.tell(about);
        }
    }

    /// Tells all who are to be told about a message. What cannot be queued is logged: the message
    /// itself stays in the queue with its reason in any case.
    pub async fn tell(&self, entry: &Entry, occasion: Occasion<'_>) {
        // Also of a notification that fails, about which nobody else is told.
        if !matches!(occasion.happening, Happening::Delayed { .. }) {
            self.notify(About::Failed {
                message: MessageFacts::of(entry, occasion.request_id),
                reason: occasion.reason.to_owned(),
                enhanced: occasion.enhanced.to_owned(),
            });
        }
        for to in self.whom(entry, occasion.happening) {
            match self.queue(entry, occasion, &to).await {
                Ok(notification) => event::notified(&entry.id, &notification, &to),
                Err(error) => event::not_notified(&entry.id, &to, &error),
            }
        }
    }

    /// Nobody is told about a notification, whether ours or another's.
    fn whom(&self, entry: &Entry, happening: Happening) -> Vec<Address> {
        let Some(sender) = &entry.submission.envelope.reverse_path.0 else {
            return Vec::new();
        };
        let mut whom = Vec::new();
        // `printer` is nobody's address at Graph.
        if self.settings.to_sender && sender.domain().is_some() {
            whom.push(sender.clone());
        }
        // To be late is no business of the postmaster's: monitoring says it better.
        let failed = !matches!(happening, Happening::Delayed { .. });
        if failed
            && let Some(postmaster) = &self.settings.postmaster
            && !whom.contains(postmaster)
        {
            whom.push(postmaster.clone());
        }
        whom
    }

    async fn queue(
        &self,
        entry: &Entry,
        occasion: Occasion<'_>,
        to: &Address,
    ) -> Result<QueueId, SpoolError> {
        let original = match self.spool.content(entry.id).await {
            Ok(content) => content,
            // The report is worth sending without the header section.
            Err(SpoolError::Damaged(..)) => Bytes::new(),
            Err(error) => return Err(error),
        };
        let now = Timestamp::now();
        let mut incoming = self.spool.incoming()?;
        let message_id = format!(
            "bounce-{}-{}-{}@{}",
            entry.id,
            incoming.id(),
            now.as_millisecond(),
            self.hostname
        );
        let submission = &entry.submission;
        let content = bounce::notification(&Notification {
            happening: occasion.happening,
            to,
            from: &submission.route.mailbox,
            recipients: &submission.envelope.recipients,
            reason: occasion.reason,
            enhanced: occasion.enhanced,
            request_id: occasion.request_id,
            queue_id: &entry.id.to_string(),
            original_message_id: &submission.message_id,
            reporting_mta: &self.hostname,
            arrival: entry.accepted,
            last_attempt: entry.changed,
            now,
            message_id: &message_id,
            original: &original,
        });
        incoming.write(&content).await?;
        let receipt = incoming
            .accept(Submission {
                envelope: Envelope {
                    reverse_path: ReversePath(None),
                    recipients: vec![to.clone()],
                },
                origin: Origin {
                    client: IpAddr::V4(Ipv4Addr::LOCALHOST),
                    helo: String::new(),
                    account: None,
                    listener: "postmaster".to_owned(),
                    tls: None,
                    protocol: "LOCAL".to_owned(),
                },
                route: Route {
                    header_from: HeaderFrom::Mailbox,
                    save_to_sent_items: false,
                    // Two notifications do less harm than none, and nobody waits for one by hand.
                    unknown: Some(UnknownPolicy::Retry),
                    ..submission.route.clone()
                },
                message_id,
            })
            .await?;
        Ok(receipt.id())
    }

    /// Warns the senders of mail that is late, each once, until `stop`. `lifetime` is how long mail is
    /// tried in all.
    pub async fn watch(self, directory: PathBuf, lifetime: Duration, stop: CancellationToken) {
        let Some(warn_after) = self.settings.warn_after else {
            return;
        };
        let path = directory.join(WATCHED);
        let mut watched = read_watched(&path).await;
        let mut ticks = interval(WATCH);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
            let before = watched;
            if let Err(error) = self.warn(warn_after, lifetime, &mut watched, &stop).await {
                event::delays_not_watched(&error);
            }
            if watched != before
                && let Some(id) = watched
            {
                // If this is lost, some senders are warned twice.
                let _ = tokio::fs::write(&path, format!("{id}\n")).await;
            }
        }
    }

    /// Looks at all messages that have become late since `watched`.
    async fn warn(
        &self,
        warn_after: Duration,
        lifetime: Duration,
        watched: &mut Option<QueueId>,
        stop: &CancellationToken,
    ) -> Result<(), SpoolError> {
        let ago = |it: Duration| SignedDuration::try_from(it).unwrap_or(SignedDuration::MAX);
        let Ok(late) = Timestamp::now().checked_sub(ago(warn_after)) else {
            return Ok(());
        };
        while !stop.is_cancelled() {
            let page = self
                .spool
                .list(Filter {
                    states: vec![State::Queued, State::Sending, State::Held, State::Unknown],
                    accepted_before: Some(late),
                    after: *watched,
                    limit: PAGE,
                    ..Filter::default()
                })
                .await?;
            let Some(last) = page.last() else { break };
            let next = last.id;
            for entry in page {
                let until = entry.accepted.checked_add(ago(lifetime));
                let reason = entry.reason.as_deref().unwrap_or("it has not been its turn yet");
                let occasion = Occasion {
                    happening: Happening::Delayed {
                        until: until.unwrap_or(Timestamp::MAX),
                    },
                    reason,
                    // RFC 3463 §3.5: delivery time expired; of class 4, so not given up.
                    enhanced: "4.4.7",
                    request_id: entry.request_id.as_deref(),
                };
                self.tell(&entry, occasion).await;
            }
            *watched = Some(next);
        }
        Ok(())
    }
}

async fn read_watched(path: &std::path::Path) -> Option<QueueId> {
    let text = tokio::fs::read_to_string(path).await.ok()?;
    text.trim().parse().ok()
}
