//! What the log says about clients, their connections and their mail.

use std::fmt::Display;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use tracing::{debug, info, warn};

use crate::envelope::{Origin, ReversePath, Route};

/// A message that was accepted, as the log shows it.
pub struct Accepted<'a> {
    /// The queue id.
    pub id: &'a dyn Display,
    /// Who handed it over, and how.
    pub origin: &'a Origin,
    /// The envelope sender.
    pub from: &'a ReversePath,
    /// How many recipients.
    pub recipients: usize,
    /// Octets of content.
    pub size: u64,
    /// Its Message-ID.
    pub message_id: &'a str,
    /// The mailbox that sends it, and the rule that permits it.
    pub route: &'a Route,
    /// Another address that From shows as a name: nothing to refuse, for people may write what they
    /// like there, but worth knowing when somebody has been fooled.
    pub shown_as: Option<&'a str>,
    /// Whether its recipients were added to a message that was there already (`merge_split`).
    pub joined: bool,
}

/// A message is on the disk, and the client is told 250.
pub fn accepted(accepted: &Accepted<'_>) {
    let Accepted {
        id,
        origin,
        from,
        recipients,
        size,
        message_id,
        route,
        shown_as,
        joined,
    } = accepted;
    info!(
        target: "graphpost",
        id = %id,
        client = %origin.client,
        helo = origin.helo,
        account = origin.account,
        from = format_args!("<{}>", from.0.as_ref().map_or("", |it| it.as_str())),
        nrcpt = recipients,
        size,
        message_id,
        tls = origin.tls,
        listener = origin.listener,
        rule = route.rule,
        mailbox = route.mailbox,
        shown_as,
        joined = joined.then_some(true),
        "accepted"
    );
}

/// A refusal, as the log shows it.
pub struct Refused<'a> {
    /// The listener's name.
    pub listener: &'a str,
    /// The client's address.
    pub client: IpAddr,
    /// The account it has logged in as.
    pub account: Option<&'a str>,
    /// The sender it concerns.
    pub from: Option<&'a str>,
    /// The recipient it concerns.
    pub to: Option<&'a str>,
    /// The rule of the sender table that decided.
    pub rule: Option<&'a str>,
    /// The reply code.
    pub code: u16,
    /// The enhanced status code.
    pub enhanced: &'a str,
    /// The reason in one word, as metrics have it.
    pub reason: &'a str,
    /// What the client is told.
    pub text: &'a str,
}

/// A command or a message was refused. What no mail hangs on, such as a typing error, is for those
/// who look closely.
pub fn refused(refused: &Refused<'_>) {
    let Refused {
        listener,
        client,
        account,
        from,
        to,
        rule,
        code,
        enhanced,
        reason,
        text,
    } = refused;
    if from.is_none() && to.is_none() {
        debug!(
            target: "graphpost",
            %client, account, code, dsn = enhanced, reason, listener, text, "refused"
        );
    } else {
        info!(
            target: "graphpost",
            %client, account, from, to, code, dsn = enhanced, rule, reason, listener, text, "refused"
        );
    }
}

/// The queue could not take a message.
pub fn not_stored(listener: &str, client: IpAddr, error: &dyn Display) {
    warn!(target: "graphpost", %client, listener, reason = %error, "message not stored; the client is told to try again");
}

/// A client gave a wrong account or password, or (`checked` is false) nothing could check it.
pub fn login_failed(listener: &str, client: IpAddr, account: &str, checked: bool) {
    // The account is what the client typed, and people type passwords in the wrong place: it is cut.
    let account: String = account.chars().take(64).collect();
    warn!(target: "graphpost", %client, account, checked, listener, "login failed");
}

/// A TLS handshake failed.
pub fn tls_failed(listener: &str, client: IpAddr, why: &dyn Display) {
    warn!(target: "graphpost", %client, listener, reason = %why, "no TLS");
}

/// A TLS handshake succeeded with a device that could not do better. `profile` is the one that it
/// needs.
pub fn old_tls(listener: &str, client: IpAddr, version: &str, cipher: &str, profile: &str) {
    if profile == "legacy" {
        warn!(target: "graphpost", %client, version, cipher, profile, listener, "old TLS");
    } else {
        info!(target: "graphpost", %client, version, cipher, profile, listener, "old TLS");
    }
}

/// A client began TLS where it is not expected.
pub fn unexpected_tls(listener: &str, client: IpAddr) {
    warn!(
        target: "graphpost",
        %client, listener,
        "the client began TLS at once, but this listener expects plain SMTP: set tls = \"auto\" here, which serves both, or set the client to STARTTLS or no encryption"
    );
}

/// The same where it would have been served, had it come sooner.
pub fn late_tls(listener: &str, client: IpAddr, wait: Duration) {
    warn!(
        target: "graphpost",
        %client, listener, tls_wait = wait.as_secs_f64(),
        "the client began TLS after it was greeted: set a longer tls_wait for this listener, or give the client one with tls = \"implicit\""
    );
}

/// A certificate was made for a listener that asks for one.
pub fn certificate_made(path: &Path, subject: &str, not_after: Timestamp, sha256: &str) {
    info!(
        target: "graphpost",
        path = %path.display(), subject, %not_after, sha256, "self-signed certificate made"
    );
}

/// A listener has a new certificate.
pub fn certificate_taken(listener: &str, path: &Path, subject: &str, not_after: Timestamp) {
    info!(
        target: "graphpost",
        listener, path = %path.display(), subject, %not_after, "new certificate in use"
    );
}

/// A client was not let in.
/// `others` were refused since the last such line.
pub fn connection_refused(listener: &str, client: IpAddr, code: u16, reason: &str, others: u64) {
    info!(target: "graphpost", %client, code, reason, others, listener, "connection refused");
}

/// A connection of a named proxy did not say whose it is. `others` were refused since the last such line.
pub fn no_proxy_header(listener: &str, proxy: IpAddr, why: &dyn Display, others: u64) {
    warn!(
        target: "graphpost",
        %proxy, reason = %why, others, listener,
        "connection refused: the listener's proxy_protocol_from expects a PROXY header from this address"
    );
}

/// The file descriptors are enough for fewer connections than the settings permit.
pub fn few_descriptors(limit: u64, connections: usize, wanted: usize) {
    warn!(
        target: "graphpost",
        limit, connections, max_connections = wanted,
        "too few file descriptors for max_connections: fewer are admitted; raise LimitNOFILE= or 'ulimit -n'"
    );
}

/// A client hung up without QUIT.
pub fn hung_up(listener: &str, client: IpAddr) {
    debug!(target: "graphpost", %client, listener, "client hung up");
}

/// A connection failed.
pub fn io_failed(listener: &str, client: IpAddr, error: &std::io::Error) {
    debug!(target: "graphpost", %client, listener, %error, "connection failed");
}

/// A connection could not be accepted.
pub fn accept_failed(listener: &str, error: &std::io::Error, wait: Duration) {
    warn!(target: "graphpost", listener, %error, wait = wait.as_secs_f64(), "cannot accept connections");
}
