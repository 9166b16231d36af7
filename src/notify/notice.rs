//! What is told, and its JSON: documented in `docs/operations.md`, and so never changed but added to.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::config::NotifyEvent;
use crate::identity::expiry::Expiring;
use crate::spool::{Entry, QueueId};

/// What a notice is about, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A message has failed for good, or was given up for its age.
    Failed,
    /// A message, or all mail of a mailbox, waits for somebody to mend something or to decide.
    Held,
    /// All mail waits, because the application's credential is refused.
    CredentialHeld,
    /// A certificate is about to end, or has ended.
    CertificateExpires,
    /// New mail is refused, because there is no room for it.
    QueueFull,
}

impl Kind {
    /// As the configuration and the JSON have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Failed => "failed",
            Kind::Held => "held",
            Kind::CredentialHeld => "credential-held",
            Kind::CertificateExpires => "certificate-expires",
            Kind::QueueFull => "queue-full",
        }
    }
}

impl From<NotifyEvent> for Kind {
    fn from(event: NotifyEvent) -> Kind {
        match event {
            NotifyEvent::Failed => Kind::Failed,
            NotifyEvent::Held => Kind::Held,
            NotifyEvent::CredentialHeld => Kind::CredentialHeld,
            NotifyEvent::CertificateExpires => Kind::CertificateExpires,
            NotifyEvent::QueueFull => Kind::QueueFull,
        }
    }
}

/// What has happened.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum About {
    /// A message has failed.
    Failed {
        /// Which.
        message: MessageFacts,
        /// Why.
        reason: String,
        /// The enhanced status code (RFC 3463).
        enhanced: String,
    },
    /// One message is held.
    MessageHeld {
        /// Which.
        message: MessageFacts,
        /// Why.
        reason: String,
        /// Whether it is held because nobody can know if it was sent.
        outcome_unknown: bool,
    },
    /// All mail of a mailbox is held.
    MailboxHeld {
        /// Which.
        mailbox: String,
        /// Why.
        reason: String,
    },
    /// All mail is held for the credential.
    CredentialHeld {
        /// Why.
        reason: String,
    },
    /// A certificate is about to end.
    CertificateExpires {
        /// Which, and when.
        certificate: Expiring,
    },
    /// There is no room for mail.
    QueueFull {
        /// Why.
        reason: String,
    },
}

impl About {
    /// In one word.
    pub fn kind(&self) -> Kind {
        match self {
            About::Failed { .. } => Kind::Failed,
            About::MessageHeld { .. } | About::MailboxHeld { .. } => Kind::Held,
            About::CredentialHeld { .. } => Kind::CredentialHeld,
            About::CertificateExpires { .. } => Kind::CertificateExpires,
            About::QueueFull { .. } => Kind::QueueFull,
        }
    }

    /// In one sentence.
    fn summary(&self) -> String {
        match self {
            About::Failed { message, reason, .. } => {
                format!(
                    "message {} from {} has failed: {reason}",
                    message.id, message.from
                )
            }
            About::MessageHeld {
                message,
                reason,
                outcome_unknown: false,
            } => format!("message {} from {} is held: {reason}", message.id, message.from),
            About::MessageHeld { message, reason, .. } => format!(
                "message {} from {} is held, because it is not known whether it was sent: {reason}",
                message.id, message.from
            ),
            About::MailboxHeld { mailbox, reason } => format!("all mail of {mailbox} is held: {reason}"),
            About::CredentialHeld { reason } => format!("all mail is held: {reason}"),
            About::CertificateExpires { certificate } if certificate.has_expired() => {
                format!("the certificate of {} has expired", certificate.uses())
            }
            About::CertificateExpires { certificate } => format!(
                "the certificate of {} expires in {} days",
                certificate.uses(),
                certificate.days_left
            ),
            About::QueueFull { reason } => format!("new mail is refused (452): {reason}"),
        }
    }
}

/// What is said of a message: never its subject or its content.
#[derive(Clone, Debug, Serialize)]
pub struct MessageFacts {
    /// The queue id.
    pub id: QueueId,
    /// The envelope sender.
    pub from: String,
    /// The envelope recipients.
    pub recipients: Vec<String>,
    /// The mailbox that sends.
    pub mailbox: String,
    /// The rule it came by.
    pub rule: String,
    /// The account it came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// The client it came from.
    pub client: String,
    /// Its Message-ID, without angle brackets.
    pub message_id: String,
    /// Octets of content.
    pub size: u64,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// Attempts to send it.
    pub attempts: u32,
    /// Graph's `request-id` of the last of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

impl MessageFacts {
    /// Of a message as the queue has it.
    pub fn of(entry: &Entry, request_id: Option<&str>) -> MessageFacts {
        let submission = &entry.submission;
        let recipients = submission.envelope.recipients.iter();
        MessageFacts {
            id: entry.id,
            from: submission.envelope.reverse_path.to_string(),
            recipients: recipients.map(|it| it.as_str().to_owned()).collect(),
            mailbox: submission.route.mailbox.clone(),
            rule: submission.route.rule.clone(),
            account: submission.origin.account.clone(),
            client: submission.origin.client.to_string(),
            message_id: submission.message_id.clone(),
            size: entry.size,
            accepted: entry.accepted,
            attempts: entry.attempts,
            request_id: request_id.or(entry.request_id.as_deref()).map(str::to_owned),
        }
    }
}

/// A notice, ready to be sent.
#[derive(Debug)]
pub struct Notice {
    /// Its own id, the same at each attempt: by it a receiver knows one that comes twice.
    pub id: String,
    at: Timestamp,
    about: About,
    summary: String,
    /// Its JSON.
    pub body: Vec<u8>,
}

impl Notice {
    /// `gateway` is the name this one calls itself by.
    pub fn new(about: About, gateway: &str) -> Notice {
        #[derive(Serialize)]
        struct Body<'a> {
            event: Kind,
            id: &'a str,
            at: Timestamp,
            gateway: &'a str,
            summary: &'a str,
            #[serde(flatten)]
            about: &'a About,
        }
        let (id, at, summary) = (crate::identity::guid(), Timestamp::now(), about.summary());
        let body = serde_json::to_vec(&Body {
            event: about.kind(),
            id: &id,
            at,
            gateway,
            summary: &summary,
            about: &about,
        });
        Notice {
            // Strings and numbers alone: this is always JSON.
            body: body.unwrap_or_default(),
            id,
            at,
            about,
            summary,
        }
    }

    /// What it is about, in one word.
    pub fn kind(&self) -> Kind {
        self.about.kind()
    }

    /// What it is about, in one sentence and on one line.
    pub fn summary(&self) -> String {
        self.summary
            .chars()
            .map(|it| if it.is_control() { ' ' } else { it })
            .collect()
    }

    /// The message it is about.
    pub fn message(&self) -> Option<QueueId> {
        match &self.about {
            About::Failed { message, .. } | About::MessageHeld { message, .. } => Some(message.id),
            _ => None,
        }
    }

    /// How old it is.
    pub fn age(&self) -> Duration {
        Duration::try_from(Timestamp::now().duration_since(self.at)).unwrap_or(Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_and_no_more() {
        let about = About::MailboxHeld {
            mailbox: "service@contoso.com".into(),
            reason: "ErrorAccessDenied\r\nX: y".into(),
        };
        let notice = Notice::new(about, "relay.contoso.com");
        let json: serde_json::Value = serde_json::from_slice(&notice.body).expect("JSON");
        assert_eq!(json["event"], "held");
        assert_eq!(json["mailbox"], "service@contoso.com");
        assert_eq!(json["gateway"], "relay.contoso.com");
        assert_eq!(json["id"], notice.id.as_str());
        assert!(!notice.summary().contains(['\r', '\n']));
    }
}
