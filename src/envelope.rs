//! What SMTP said: who sends, who receives, and who handed it over (RFC 5321 §2.3.1).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::address::Address;

/// The argument of `MAIL FROM`. `None` is the null reverse-path `<>` of a bounce (RFC 5321 §4.5.5),
/// which must never be bounced again: a type, not an empty string, so that no one can forget it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReversePath(pub Option<Address>);

impl std::fmt::Display for ReversePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Some(address) => write!(f, "{address}"),
            None => f.write_str("<>"),
        }
    }
}

/// The truth about who sends and who receives. Headers are only text beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Who to tell if it fails.
    pub reverse_path: ReversePath,
    /// The `RCPT TO` addresses in the order they came, each once.
    pub recipients: Vec<Address>,
}

/// Who handed a message over, and how: for the log, the queue listing and the Received field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The client's address.
    pub client: IpAddr,
    /// What it called itself in EHLO or HELO; empty if it did not say.
    pub helo: String,
    /// The account it logged in as.
    pub account: Option<String>,
    /// The name of the listener it came through.
    pub listener: String,
    /// The TLS version, such as `TLSv1.3`; `None` on a plain connection.
    pub tls: Option<String>,
    /// The protocol in the terms of RFC 3848: `SMTP`, `ESMTP`, `ESMTPS`, `ESMTPA` or `ESMTPSA`.
    pub protocol: String,
}

/// The mailbox that sends a message, and how: the verdict of the policy, kept with the message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The user principal name of the sending mailbox.
    pub mailbox: String,
    /// The name of the `[[sender]]` rule that permitted it.
    pub rule: String,
    /// What becomes of the From field.
    pub header_from: HeaderFrom,
    /// Whether Exchange keeps a copy in Sent Items.
    pub save_to_sent_items: bool,
    /// The format for this rule's messages; `None` for that of `[delivery]`.
    #[serde(default)]
    pub format: Option<Format>,
    /// What to do when nobody can know whether Graph sent it; `None` for what `[delivery]` says.
    #[serde(default)]
    pub unknown: Option<UnknownPolicy>,
}

/// What to do when nobody can know whether Graph sent a message (`unknown`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownPolicy {
    /// Send again: twice rather than never.
    #[default]
    Retry,
    /// Look for it in Sent Items, and send again only what is not there. The mailbox must be readable.
    Verify,
    /// Wait for the operator: never twice.
    Hold,
}

/// The format that messages are sent in (`format`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// JSON, and MIME for what JSON would damage.
    #[default]
    Auto,
    /// JSON.
    Json,
    /// MIME, where it fits.
    Mime,
}

/// What becomes of the From field of a message (`header_from` of a `[[sender]]` rule).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeaderFrom {
    /// From becomes the sending mailbox; the original goes to Reply-To unless there is one.
    #[default]
    Mailbox,
    /// From stays. The mailbox needs Send As for it.
    Keep,
    /// From must be the sending mailbox already, or the message is refused.
    Refuse,
}
