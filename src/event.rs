//! The sentences the log can say: one function each, one line each. Never a body, a password, a
//! token or an assertion, at any level. Where a message is concerned its queue id is on the line.
//!
//! The functions write `tracing` events with the target `graphpost`; the shell that formats them as
//! text or JSON is set up by [`init`].

mod shell;
pub mod smtp;

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use tracing::{debug, error, info, warn};

use crate::address::Address;
use crate::envelope::ReversePath;

pub use shell::{flush, init, set_level};

/// An address accepts connections now.
pub fn listening(listener: &str, address: SocketAddr, tls: &str, auth: &str) {
    info!(target: "graphpost", listener, %address, tls, auth, "listening");
}

/// All parts run.
pub fn ready(version: &str, started_in: Duration) {
    info!(target: "graphpost", version, took = started_in.as_secs_f64(), "ready");
}

/// What opening the queue found.
pub fn recovery(queued: u64, interrupted: u64, orphans: u64, took: Duration) {
    info!(target: "graphpost", queued, interrupted, orphans, took = took.as_secs_f64(), "queue opened");
}

/// Something in the queue's directory could not be understood and was set aside.
pub fn set_aside(path: &Path) {
    warn!(target: "graphpost", path = %path.display(), "set aside a file of the queue that cannot be understood");
}

/// A message's content is not what was accepted; it waits for the operator.
pub fn damaged(id: &dyn Display, why: &str) {
    error!(target: "graphpost", id = %id, why, "content damaged; held for the operator");
}

/// A row of the queue cannot be understood, and is left out of what is shown.
pub fn row_unreadable(row: i64, why: &dyn Display) {
    error!(target: "graphpost", row, why = %why, "a row of the queue cannot be understood; it is set aside at the next start");
}

/// The queue is on a file system that forgets everything when the machine stops.
pub fn spool_in_memory(directory: &Path) {
    warn!(target: "graphpost", path = %directory.display(), "the queue is on a file system in memory (tmpfs): a restart of the machine loses accepted mail");
}

/// A content file that is not needed any more cannot be removed.
pub fn content_not_removed(path: &Path, why: &dyn Display) {
    warn!(target: "graphpost", path = %path.display(), why = %why, "content file not removed; it is swept at the next start");
}

/// The free space of the queue's file system cannot be found out.
pub fn spool_not_measured(directory: &Path, why: &dyn Display) {
    warn!(target: "graphpost", path = %directory.display(), why = %why, "free space unknown");
}

/// The queue's database was not closed in order; the next start recovers it.
pub fn spool_not_closed(directory: &Path, why: &str) {
    warn!(target: "graphpost", path = %directory.display(), why, "queue not closed in order; the next start recovers it");
}

/// A failed message was kept for as long as it should be.
pub fn failed_message_removed(id: &dyn Display, kept: Duration) {
    info!(target: "graphpost", id = %id, kept = kept.as_secs_f64(), "failed message removed");
}

/// The queue cannot be written; the process ends.
pub fn spool_broken(why: &str) {
    error!(target: "graphpost", why, "the queue is broken; stopping, because what cannot be stored must not be accepted");
}

/// An attempt to deliver a message, as the log shows it.
pub struct Attempt<'a> {
    /// The queue id.
    pub id: &'a dyn Display,
    /// The mailbox that sends.
    pub mailbox: &'a str,
    /// The envelope sender.
    pub from: &'a ReversePath,
    /// How many recipients.
    pub recipients: usize,
    /// Octets of content.
    pub size: u64,
    /// Attempts so far, with this one.
    pub attempts: u32,
    /// The HTTP status, where there was an answer.
    pub code: Option<u16>,
    /// Graph's `request-id`.
    pub request_id: Option<&'a str>,
    /// From acceptance until the attempt began.
    pub queued: Duration,
    /// From there until the request was made: reading, converting, waiting for memory.
    pub prepared: Duration,
    /// From there until the answer.
    pub answered: Duration,
}

impl Attempt<'_> {
    /// `queue/convert/graph`, in seconds, as Postfix writes its own four.
    fn delays(&self) -> String {
        let seconds = |it: Duration| (it.as_secs_f64() * 1000.0).round() / 1000.0;
        format!(
            "{}/{}/{}",
            seconds(self.queued),
            seconds(self.prepared),
            seconds(self.answered)
        )
    }
}

/// The queue could not record an attempt, so none was made.
pub fn not_begun(id: &dyn Display, why: &dyn Display) {
    warn!(target: "graphpost", id = %id, why = %why, "attempt not begun");
}

/// The envelope sender as SMTP writes it.
fn sender(from: &ReversePath) -> String {
    format!("<{}>", from.0.as_ref().map_or("", |it| it.as_str()))
}

/// The form that a message is sent in, and why.
pub fn converted(id: &dyn Display, form: &dyn Display, why: &dyn Display) {
    debug!(target: "graphpost", id = %id, form = %form, why = %why, "converted");
}

/// A message has more recipients than a request takes: it is one group of them now, and these messages
/// are the others.
pub fn split(id: &dyn Display, others: &[impl Display]) {
    let groups: Vec<String> = others.iter().map(ToString::to_string).collect();
    info!(target: "graphpost", id = %id, groups = groups.join(","), "split into recipient groups");
}

/// Graph has taken a message.
pub fn sent(attempt: &Attempt<'_>) {
    info!(
        target: "graphpost",
        id = %attempt.id,
        mailbox = attempt.mailbox,
        from = sender(attempt.from),
        nrcpt = attempt.recipients,
        size = attempt.size,
        attempts = attempt.attempts,
        delay = (attempt.queued + attempt.prepared + attempt.answered).as_secs_f64(),
        delays = attempt.delays(),
        code = attempt.code,
        request_id = attempt.request_id,
        "sent"
    );
}

/// A message is tried again later.
pub fn deferred(attempt: &Attempt<'_>, reason: &str, retry_in: Duration) {
    info!(
        target: "graphpost",
        id = %attempt.id,
        mailbox = attempt.mailbox,
        attempts = attempt.attempts,
        delays = attempt.delays(),
        code = attempt.code,
        reason,
        retry_in = retry_in.as_secs_f64(),
        request_id = attempt.request_id,
        "deferred"
    );
}

/// A message waits for the operator, and is tried slowly meanwhile.
pub fn held(attempt: &Attempt<'_>, reason: &str, retry_in: Duration) {
    warn!(
        target: "graphpost",
        id = %attempt.id,
        mailbox = attempt.mailbox,
        attempts = attempt.attempts,
        code = attempt.code,
        reason,
        retry_in = retry_in.as_secs_f64(),
        request_id = attempt.request_id,
        "held"
    );
}

/// Nobody can know whether a message was sent. `retry_in` is none where it waits for the operator.
pub fn unknown(attempt: &Attempt<'_>, reason: &str, retry_in: Option<Duration>) {
    warn!(
        target: "graphpost",
        id = %attempt.id,
        mailbox = attempt.mailbox,
        attempts = attempt.attempts,
        delays = attempt.delays(),
        code = attempt.code,
        reason,
        retry_in = retry_in.map(|it| it.as_secs_f64()),
        request_id = attempt.request_id,
        "unknown"
    );
}

/// Nobody can know whether a message was sent, so it is looked for in Sent Items.
pub fn verifying(attempt: &Attempt<'_>, reason: &str, look_in: Duration) {
    warn!(
        target: "graphpost",
        id = %attempt.id,
        mailbox = attempt.mailbox,
        attempts = attempt.attempts,
        delays = attempt.delays(),
        code = attempt.code,
        reason,
        look_in = look_in.as_secs_f64(),
        request_id = attempt.request_id,
        "unknown; looking into Sent Items"
    );
}

/// A message whose answer was lost is in Sent Items.
pub fn verified_sent(id: &dyn Display, mailbox: &str, unknown_for: Duration) {
    info!(target: "graphpost", id = %id, mailbox, unknown_for = unknown_for.as_secs_f64(), "found in Sent Items: sent");
}

/// A message whose answer was lost is not in Sent Items, and is sent again.
pub fn verified_not_sent(id: &dyn Display, mailbox: &str, why: &str) {
    info!(target: "graphpost", id = %id, mailbox, why, "not sent; sending it again");
}

/// It is not known yet whether a message was sent.
pub fn verify_again(id: &dyn Display, mailbox: &str, why: &str, look_in: Duration) {
    info!(target: "graphpost", id = %id, mailbox, why, look_in = look_in.as_secs_f64(), "still unknown");
}

/// It will not be found out whether a message was sent: the operator decides.
pub fn not_verified(id: &dyn Display, mailbox: &str, why: &str) {
    warn!(target: "graphpost", id = %id, mailbox, why, "unknown; waits for the operator");
}

/// A message is given up.
pub fn failed(attempt: &Attempt<'_>, reason: &str, enhanced: &str) {
    warn!(
        target: "graphpost",
        id = %attempt.id,
        mailbox = attempt.mailbox,
        from = sender(attempt.from),
        nrcpt = attempt.recipients,
        attempts = attempt.attempts,
        code = attempt.code,
        dsn = enhanced,
        reason,
        request_id = attempt.request_id,
        "failed"
    );
}

/// The lifetime of a message has ended.
pub fn expired(id: &dyn Display, mailbox: &str, from: &ReversePath, attempts: u32, reason: &str) {
    warn!(
        target: "graphpost",
        id = %id,
        mailbox,
        from = sender(from),
        attempts,
        dsn = "4.4.7",
        reason,
        "expired"
    );
}

/// A notification about a message is in the queue.
pub fn notified(id: &dyn Display, notification: &dyn Display, to: &Address) {
    info!(target: "graphpost", id = %id, notification = %notification, to = format!("<{to}>"), "notified");
}

/// Somebody who should be told about a message cannot be.
pub fn not_notified(id: &dyn Display, to: &Address, why: &dyn Display) {
    error!(target: "graphpost", id = %id, to = format!("<{to}>"), why = %why, "cannot notify");
}

/// Late mail could not be looked for.
pub fn delays_not_watched(why: &dyn Display) {
    warn!(target: "graphpost", why = %why, "cannot look for late mail");
}

/// A notice to the operator's own systems did not get there; it is repeated.
pub fn notice_deferred(channel: &str, notice: &str, why: &str, retry_in: Duration) {
    warn!(target: "graphpost", channel, notice, reason = why, retry_in = retry_in.as_secs_f64(), "notice not delivered yet");
}

/// A notice to the operator's own systems did not get there, and never will.
pub fn notice_lost(channel: &str, notice: &str, event: &str, why: &str) {
    error!(target: "graphpost", channel, notice, event, reason = why, "notice lost");
}

/// New mail is refused, because there is no room for it.
pub fn queue_full(why: &str) {
    error!(target: "graphpost", reason = why, "queue full: new mail is refused with 452");
}

/// There is room again.
pub fn queue_has_room() {
    info!(target: "graphpost", "queue has room again: new mail is accepted");
}

/// A mailbox is left alone for a while because Graph throttles it.
pub fn mailbox_throttled(mailbox: &str, reason: &str, wait: Duration) {
    warn!(target: "graphpost", mailbox, reason, wait = wait.as_secs_f64(), "mailbox throttled");
}

/// A mailbox does not work for now.
pub fn mailbox_closed(mailbox: &str, reason: &str, wait: Duration) {
    warn!(target: "graphpost", mailbox, reason, wait = wait.as_secs_f64(), "mailbox unavailable; its mail waits");
}

/// A mailbox cannot be used until an operator mends something.
pub fn mailbox_held(mailbox: &str, reason: &str, wait: Duration) {
    error!(target: "graphpost", mailbox, reason, next_try_in = wait.as_secs_f64(), "mailbox held: its mail is kept and goes out once this is mended");
}

/// Nothing can be sent for now.
pub fn tenant_closed(reason: &str, wait: Duration) {
    warn!(target: "graphpost", reason, wait = wait.as_secs_f64(), "Microsoft unavailable; mail is kept and tried again");
}

/// Nothing can be sent until an operator mends something.
pub fn tenant_held(reason: &str, wait: Duration) {
    error!(target: "graphpost", reason, next_try_in = wait.as_secs_f64(), "the credential does not work: all mail is kept and goes out once this is mended");
}

/// A mailbox works again.
pub fn mailbox_recovered(mailbox: &str) {
    info!(target: "graphpost", mailbox, "mailbox works again");
}

/// Everything works again.
pub fn tenant_recovered() {
    info!(target: "graphpost", "Microsoft answers again; the queue goes out");
}

/// A certificate will soon be of no use: said once at 30, 14, 7, 3 and 1 days before its end, and when
/// it has ended. `used_for` says which it is.
pub fn certificate_expires(
    used_for: &str,
    subject: &str,
    thumbprint: &str,
    not_after: Timestamp,
    days_left: i64,
) {
    if days_left < 0 {
        error!(target: "graphpost", used_for, subject, thumbprint, %not_after, "certificate has expired; replace it");
    } else {
        warn!(target: "graphpost", used_for, subject, thumbprint, %not_after, days_left, "certificate expires soon; replace it");
    }
}

/// A reload was taken.
pub fn reloaded(path: &Path) {
    info!(target: "graphpost", path = %path.display(), "configuration reloaded");
}

/// A reload was not taken.
pub fn reload_refused(path: &Path, why: &str) {
    error!(target: "graphpost", path = %path.display(), why, "configuration not reloaded; the running one stays");
}

/// A listener's new certificate cannot be used.
pub fn certificate_kept(listener: &str, why: &dyn Display) {
    error!(target: "graphpost", listener, why = %why, "certificate not reloaded; the old one stays in use");
}

/// A reload changed what only a restart can change.
pub fn needs_a_restart(what: &str) {
    warn!(target: "graphpost", what, "changed, but needs a restart to take effect");
}

/// A signal asks us to stop.
pub fn stopping(in_flight: usize, limit: Duration) {
    info!(target: "graphpost", in_flight, wait_at_most = limit.as_secs_f64(), "stopping");
}

/// All is stopped and safe. `left` deliveries were still under way; they are tried again at the next
/// start.
pub fn stopped(left: usize) {
    info!(target: "graphpost", left, "stopped");
}

/// A task that should never end has ended: a defect of ours, on one connection or one message.
pub fn defect(what: &str, why: &dyn Display) {
    error!(target: "graphpost", what, why = %why, "internal error");
}

/// The operator did something to messages.
pub fn operator(action: &str, ids: &[String], who: &str, why: Option<&str>) {
    info!(target: "graphpost", action, count = ids.len(), ids = ids.join(","), who, why, "operator");
}

/// The operator had all that waits tried now.
pub fn flushed(count: usize, who: &str, why: &str) {
    info!(target: "graphpost", action = "flush", count, who, why, "operator");
}

/// The control socket cannot be used; everything else works.
pub fn control_unavailable(path: &Path, why: &dyn Display) {
    warn!(target: "graphpost", path = %path.display(), why = %why, "no control socket: 'graphpost queue' cannot change anything");
}

/// The application's certificate was opened.
pub fn credential_opened(what: &str, subject: &str, thumbprint: &str, not_after: Timestamp) {
    info!(target: "graphpost", what, subject, thumbprint, %not_after, "application certificate opened");
}

/// Entra ID issued a token.
pub fn token_obtained(client_id: &str, expires_in: Duration) {
    info!(target: "graphpost", client_id, expires_in = expires_in.as_secs(), "token obtained");
}

/// Entra ID gave no token. Where no other is left the tenant closes and says so itself; where the
/// last good one still serves, only this tells the operator what is coming.
pub fn token_failed(client_id: &str, reason: &str, credential: bool, last_good_in_use: bool) {
    if credential && last_good_in_use {
        error!(target: "graphpost", client_id, reason, "token not renewed: mail stops when the last good one ends");
    } else {
        warn!(target: "graphpost", client_id, reason, last_good_in_use, "no token");
    }
}

/// Of two credentials this one gave the last token; before it was the other, or none yet. `refused` is
/// what was said to the other, where it was tried first.
pub fn credential_in_use(client_id: &str, credential: &str, refused: Option<&str>) {
    info!(target: "graphpost", client_id, credential, refused, "credential in use");
}
