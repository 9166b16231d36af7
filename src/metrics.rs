//! Every metric, named once (Prometheus naming: base units, `_total`; no addresses as labels).

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// A listener by its configured name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ListenerLabel {
    /// Its name.
    pub listener: String,
}

/// A listener and what came of something on it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ListenerResult {
    /// Its name.
    pub listener: String,
    /// One of a few fixed words.
    pub result: &'static str,
}

/// A TLS handshake that succeeded.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TlsLabel {
    /// The listener's name.
    pub listener: String,
    /// `TLSv1.0` to `TLSv1.3`.
    pub version: String,
    /// The least profile that serves it: `modern`, `compat` or `legacy`.
    pub profile: &'static str,
}

/// What came of something.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabel {
    /// One of a few fixed words.
    pub result: &'static str,
}

/// An HTTP request by its operation and status.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabel {
    /// `sendMail`, `token` and so on.
    pub operation: &'static str,
    /// The HTTP status, or 0 where no answer came.
    pub code: u16,
}

/// One of the application's two credentials.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CredentialLabel {
    /// `current` or `next`.
    pub credential: String,
}

/// What was found, and how it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FindingLabel {
    /// One of a few fixed words; no address.
    pub check: &'static str,
    /// `warn` or `fail`.
    pub status: &'static str,
}

/// A way to the operator's own systems, and what came of a notice on it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NoticeLabel {
    /// `webhook` or `command`.
    pub channel: &'static str,
    /// `delivered`, `deferred` or `lost`.
    pub result: &'static str,
}

/// A state of the queue.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StateLabel {
    /// In lower case, as `queue list` shows it.
    pub state: StateValue,
}

/// The states counted by `graphpost_queue_messages`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, missing_docs)]
pub enum StateValue {
    queued,
    sending,
    held,
    failed,
    unknown,
    sent,
}

/// All metrics and the registry that writes them out.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Connections accepted.
    pub smtp_connections: Family<ListenerLabel, Counter>,
    /// Connections open now.
    pub smtp_sessions: Family<ListenerLabel, Gauge>,
    /// Messages answered at end of data: `accepted` or `refused`.
    pub smtp_messages: Family<ListenerResult, Counter>,
    /// Refusals of any command, by reason word.
    pub smtp_rejections: Family<ListenerResult, Counter>,
    /// Logins: `ok`, `failed`.
    pub smtp_auth: Family<ListenerResult, Counter>,
    /// TLS handshakes that succeeded, by version and by the profile that they needed.
    pub smtp_tls_handshakes: Family<TlsLabel, Counter>,
    /// Messages in the queue.
    pub queue_messages: Family<StateLabel, Gauge>,
    /// Octets of content in the queue.
    pub queue_bytes: Gauge,
    /// The age of the oldest message not yet sent, in seconds.
    pub queue_oldest_age_seconds: Gauge,
    /// Free octets on the spool's file system.
    pub spool_free_bytes: Gauge,
    /// How long one durable commit of the queue takes, whatever the number of messages in it.
    pub spool_commit_duration_seconds: Histogram,
    /// Changes of messages made durable by those commits; over their count it is the group commit's
    /// size.
    pub spool_commits: Counter,
    /// Calls of fsync and fdatasync for the queue: the price of those messages.
    pub spool_syncs: Counter,
    /// Transactions whose recipients were added to a message that was there already.
    pub merged: Counter,
    /// Recipient groups made of messages with more recipients than a request takes.
    pub recipient_groups: Counter,
    /// Attempts by how they ended: `sent`, `deferred`, `held`, `failed`, `unknown`.
    pub delivery_attempts: Family<ResultLabel, Counter>,
    /// Looks into Sent Items for messages whose answer was lost: `sent`, `not_sent`, `open`, `held`.
    pub verifications: Family<ResultLabel, Counter>,
    /// Messages by how they left the queue: `sent`, `failed`, `expired`, `deleted`.
    pub messages: Family<ResultLabel, Counter>,
    /// From acceptance to Graph's 202.
    pub delivery_duration_seconds: Histogram,
    /// Requests to Graph.
    pub graph_requests: Family<RequestLabel, Counter>,
    /// How long those requests took.
    pub graph_request_duration_seconds: Histogram,
    /// Requests that Graph throttled.
    pub graph_throttled: Counter,
    /// Token requests: `ok`, `failed`.
    pub token_requests: Family<ResultLabel, Counter>,
    /// When the token in use ends (Unix time).
    pub token_expiry_timestamp_seconds: Gauge,
    /// When the application's certificates end (Unix time).
    pub credential_expiry_timestamp_seconds: Family<CredentialLabel, Gauge>,
    /// Which of the application's credentials gave the last token: 1 or 0.
    pub credential_in_use: Family<CredentialLabel, Gauge>,
    /// When a listener's certificate ends (Unix time).
    pub tls_certificate_expiry_timestamp_seconds: Family<ListenerLabel, Gauge>,
    /// What must be mended, or is waited for, as `/readyz?verbose` tells it.
    pub findings: Family<FindingLabel, Gauge>,
    /// Whether all of a listener's certificates could be used when they were last read: 1 or 0.
    pub tls_certificate_last_reload_successful: Family<ListenerLabel, Gauge>,
    /// Notices to the operator's own systems.
    pub notices: Family<NoticeLabel, Counter>,
    /// Whether the last reload was taken: 1 or 0.
    pub config_last_reload_successful: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers every metric.
    pub fn new() -> Metrics {
        const SECONDS: [f64; 12] = [
            0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
        ];
        const LONG_SECONDS: [f64; 12] = [
            0.1, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0,
        ];
        let mut registry = Registry::with_prefix("graphpost");
        macro_rules! register {
            ($name:literal, $help:literal, $metric:expr) => {{
                let metric = $metric;
                registry.register($name, $help, metric.clone());
                metric
            }};
        }
        Metrics {
            smtp_connections: register!("smtp_connections", "Connections accepted", Family::default()),
            smtp_sessions: register!("smtp_sessions", "Connections open now", Family::default()),
            smtp_messages: register!(
                "smtp_messages",
                "Messages answered at end of data",
                Family::default()
            ),
            smtp_rejections: register!("smtp_rejections", "Refusals by reason", Family::default()),
            smtp_auth: register!("smtp_auth", "Logins", Family::default()),
            smtp_tls_handshakes: register!(
                "smtp_tls_handshakes",
                "TLS handshakes by version and profile",
                Family::default()
            ),
            queue_messages: register!("queue_messages", "Messages in the queue", Family::default()),
            queue_bytes: register!("queue_bytes", "Octets of content in the queue", Gauge::default()),
            queue_oldest_age_seconds: register!(
                "queue_oldest_age_seconds",
                "Age of the oldest message not yet sent",
                Gauge::default()
            ),
            spool_free_bytes: register!(
                "spool_free_bytes",
                "Free octets on the file system of the spool",
                Gauge::default()
            ),
            spool_commit_duration_seconds: register!(
                "spool_commit_duration_seconds",
                "Duration of one durable commit",
                Histogram::new(SECONDS)
            ),
            spool_commits: register!(
                "spool_committed_messages",
                "Messages made durable",
                Counter::default()
            ),
            spool_syncs: register!(
                "spool_syncs",
                "Calls of fsync and fdatasync for the queue",
                Counter::default()
            ),
            merged: register!(
                "messages_merged",
                "Transactions joined to a message that was there already",
                Counter::default()
            ),
            recipient_groups: register!(
                "recipient_groups",
                "Groups made of messages with more recipients than a request takes",
                Counter::default()
            ),
            delivery_attempts: register!(
                "delivery_attempts",
                "Attempts by how they ended",
                Family::default()
            ),
            verifications: register!(
                "verifications",
                "Looks into Sent Items by what they found out",
                Family::default()
            ),
            messages: register!(
                "messages",
                "Messages by how they left the queue",
                Family::default()
            ),
            delivery_duration_seconds: register!(
                "delivery_duration_seconds",
                "From acceptance to 202",
                Histogram::new(LONG_SECONDS)
            ),
            graph_requests: register!("graph_requests", "Requests to Graph", Family::default()),
            graph_request_duration_seconds: register!(
                "graph_request_duration_seconds",
                "Duration of requests to Graph",
                Histogram::new(SECONDS)
            ),
            graph_throttled: register!(
                "graph_throttled",
                "Requests that Graph throttled",
                Counter::default()
            ),
            token_requests: register!("token_requests", "Token requests", Family::default()),
            token_expiry_timestamp_seconds: register!(
                "token_expiry_timestamp_seconds",
                "End of the token in use",
                Gauge::default()
            ),
            credential_expiry_timestamp_seconds: register!(
                "credential_expiry_timestamp_seconds",
                "End of the application's certificate",
                Family::default()
            ),
            credential_in_use: register!(
                "credential_in_use",
                "Whether this credential gave the last token",
                Family::default()
            ),
            tls_certificate_expiry_timestamp_seconds: register!(
                "tls_certificate_expiry_timestamp_seconds",
                "End of a listener's certificate",
                Family::default()
            ),
            findings: register!(
                "findings",
                "What must be mended, or is waited for; /readyz?verbose tells what it is",
                Family::default()
            ),
            tls_certificate_last_reload_successful: register!(
                "tls_certificate_last_reload_successful",
                "Whether a listener's certificates could all be used when last read",
                Family::default()
            ),
            notices: register!(
                "notices",
                "Notices to the operator's own systems by how they ended",
                Family::default()
            ),
            config_last_reload_successful: register!(
                "config_last_reload_successful",
                "Whether the last reload was taken",
                Gauge::default()
            ),
            registry,
        }
    }

    /// All metrics in the Prometheus text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}
