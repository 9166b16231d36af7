//! Each mailbox: what can be known of it without sending, or what comes of sending.

use std::time::Duration;

use tokio::time::Instant;

use super::super::entra::powershell_quoted;
use super::super::terminal::printable;
use crate::address::Address;
use crate::config::{Config, Tenant};
use crate::diagnosis::{Diagnosis, Health, parts};
use crate::graph::Request;
use crate::graph::client::Graph;
use crate::graph::resource::{Body, MAX_REQUEST_OCTETS, Message, Recipient};
use crate::outcome::{Answer, Outcome, judge};

/// How long all mailboxes together may take; those that are left are not tried.
const ALL_TIMEOUT: Duration = Duration::from_secs(180);

/// Why the application must be able to read a mailbox; that can be tried without sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// It need not.
    None,
    /// To draft large messages: Mail.ReadWrite.
    Drafts,
    /// To look for a message whose answer was lost: Mail.ReadBasic.All.
    SentItems,
}

/// A mailbox to look at.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    mailbox: String,
    save_to_sent_items: bool,
    /// Whether a rule sends through it.
    used: bool,
}

impl Chosen {
    pub(super) fn check(&self) -> String {
        format!("mailbox {}", printable(&self.mailbox))
    }
}

/// Those of the sender table, each once; or those that were named.
pub(super) fn chosen(config: &Config, only: &[String]) -> Vec<Chosen> {
    let mut all: Vec<Chosen> = Vec::new();
    for rule in &config.senders {
        if !all
            .iter()
            .any(|it| it.mailbox.eq_ignore_ascii_case(&rule.mailbox))
        {
            all.push(Chosen {
                mailbox: rule.mailbox.clone(),
                save_to_sent_items: rule.save_to_sent_items,
                used: true,
            });
        }
    }
    if only.is_empty() {
        return all;
    }
    let named = |name: &String| {
        let known = all.iter().find(|it| it.mailbox.eq_ignore_ascii_case(name));
        known.cloned().unwrap_or_else(|| Chosen {
            mailbox: name.clone(),
            save_to_sent_items: true,
            used: false,
        })
    };
    only.iter().map(named).collect()
}

/// The lines about the mailboxes.
pub(super) async fn lines(
    tenant: &Tenant,
    graph: &Graph,
    mailboxes: &[Chosen],
    reading: Reading,
    tenant_wide: bool,
    send_to: Option<&Address>,
) -> Vec<Diagnosis> {
    let end = Instant::now() + ALL_TIMEOUT;
    let mut lines = Vec::new();
    for it in mailboxes {
        if !it.used {
            lines.push(Diagnosis::warn(
                it.check(),
                "no rule of the sender table sends through it",
                "add a [[sender]] with this mailbox, or name one of those that are there",
            ));
        }
        if Instant::now() >= end {
            let detail = format!("not tried: the others took {} s", ALL_TIMEOUT.as_secs());
            lines.push(Diagnosis::skip(it.check(), detail));
            continue;
        }
        if reading != Reading::None {
            lines.push(looked_into(it, reading, &graph.look_into(&it.mailbox).await));
        }
        lines.push(match send_to {
            Some(to) => sent(
                tenant,
                it,
                to,
                &graph.send_mail(&it.mailbox, trial(tenant, it, to)).await,
            ),
            None => unsent(tenant, it, tenant_wide),
        });
    }
    lines
}

/// Nothing short of a message shows whether the application may send as a mailbox: the token does not
/// have the roles that Exchange assigns. Exchange itself can be asked.
fn unsent(tenant: &Tenant, it: &Chosen, tenant_wide: bool) -> Diagnosis {
    let known = if tenant_wide {
        "Mail.Send covers it if there is such a mailbox"
    } else {
        "not known without sending"
    };
    Diagnosis::skip(
        it.check(),
        format!(
            "{known}; try it with --send-to, or ask Exchange:\n{}",
            cmdlet(tenant, it)
        ),
    )
}

/// What shows in Exchange Online's PowerShell which roles the application has for a mailbox: InScope.
fn cmdlet(tenant: &Tenant, it: &Chosen) -> String {
    format!(
        "Test-ServicePrincipalAuthorization -Identity {} -Resource {}",
        powershell_quoted(&tenant.client_id),
        powershell_quoted(&it.mailbox),
    )
}

/// Mail.ReadWrite, which large messages need, is the right to read as well.
fn looked_into(it: &Chosen, reading: Reading, answer: &Answer) -> Diagnosis {
    if let Answer::Response(response) = answer
        && response.status == 200
    {
        let detail = match reading {
            Reading::SentItems => "may be read, and so Sent Items can be looked into",
            _ => {
                "may be read; large messages are drafted in it with the same grant, if that is Mail.ReadWrite"
            }
        };
        return Diagnosis::ok(it.check(), detail);
    }
    let (status, reason) = reason(answer);
    if let Answer::Response(response) = answer
        && response.status == 403
    {
        let (what, fix) = match reading {
            Reading::SentItems => (
                "Sent Items cannot be looked into",
                "grant Mail.ReadBasic.All for this mailbox ('graphpost entra script' does; it takes up to two \
                 hours to work), or set unknown = \"retry\" or \"hold\"",
            ),
            _ => (
                "no drafts for large messages",
                "grant Mail.ReadWrite for this mailbox ('graphpost entra script' does; it takes up to two hours \
                 to work), or set large_messages = false",
            ),
        };
        return Diagnosis::fail(it.check(), format!("{what}: {}", parts(&reason).0), fix);
    }
    Diagnosis::of_reason(status, it.check(), &reason)
}

fn sent(tenant: &Tenant, it: &Chosen, to: &Address, answer: &Answer) -> Diagnosis {
    let id = match answer.cause() {
        Answer::Response(response) => response.request_id.as_deref(),
        _ => None,
    };
    let with_id = |text: &str| match id {
        Some(id) => format!("{text} (request-id {})", printable(id)),
        None => text.to_owned(),
    };
    if judge(answer) == Outcome::Sent {
        return Diagnosis::ok(it.check(), with_id(&format!("sent a message to {to}")));
    }
    let (status, reason) = reason(answer);
    let mut found = Diagnosis::of_reason(status, it.check(), &reason);
    found.detail = with_id(&printable(&found.detail));
    if let (Answer::Response(response), Some(fix)) = (answer.cause(), &mut found.fix)
        && response.status == 403
        && response.code.as_deref() == Some("ErrorAccessDenied")
    {
        // What is granted already, without the cache that Graph looks into.
        let by_policy = response
            .message
            .as_deref()
            .is_some_and(|it| it.contains("AccessPolicy"));
        let cmdlet = match by_policy {
            false => cmdlet(tenant, it),
            true => format!(
                "Test-ApplicationAccessPolicy -Identity {} -AppId {}",
                powershell_quoted(&it.mailbox),
                powershell_quoted(&tenant.client_id)
            ),
        };
        fix.push_str(&format!("\nsee what is granted: {cmdlet}"));
    }
    found
}

/// What the gateway would make of an answer that is no success.
fn reason(answer: &Answer) -> (Health, String) {
    match judge(answer) {
        Outcome::Sent => (Health::Ok, String::new()),
        Outcome::Deferred { why, .. } => (Health::Warn, why),
        Outcome::Held { why, .. } | Outcome::Failed { why, .. } => (Health::Fail, why),
        Outcome::Unknown { why } => (
            Health::Warn,
            crate::diagnosis::reason(&why, "look in Sent Items whether it was sent, and try again"),
        ),
    }
}

/// The message that is sent.
fn trial(tenant: &Tenant, it: &Chosen, to: &Address) -> Request {
    let message = Message {
        subject: Some("graphpost check".to_owned()),
        body: Body::Text(format!(
            "graphpost check --send-to sent this from {}.\nSo the application may send as this mailbox.\n",
            it.mailbox
        )),
        to: vec![Recipient {
            name: None,
            address: to.clone(),
        }],
        ..Message::default()
    };
    let json = message.send_mail(tenant.api, it.save_to_sent_items, MAX_REQUEST_OCTETS);
    Request::Json(json.expect("a few lines fit into a request"))
}
