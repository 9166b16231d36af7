//! Judges what became of an attempt: an [`Answer`] becomes an [`Outcome`]. Pure.
//!
//! The policy in words:
//!
//! - Only 202 is success. Any other 2xx has been seen for mail that was never sent.
//! - `error.code` decides first, the HTTP status only where the code is unknown.
//! - A message fails only where Graph itself, by a code of its own, says that this very message can
//!   never be sent. When in doubt, defer: a bounce cannot be taken back, and the queue lifetime turns
//!   an endless deferral into a failure anyway. An error page of a proxy is not Graph's word.
//! - What an operator can mend holds: the mail is kept, tried slowly, and sent once it is mended.
//! - A throttled or broken mailbox delays only itself. A network that does not reach Graph, or a
//!   credential that Entra ID refuses, concerns every mailbox alike and closes the whole tenant; it
//!   never fails mail.
//! - A request that was written and got no answer, or an answer that Graph is known to give also for
//!   mail it has sent, is unknown, and is not called by a better name.

use std::time::Duration;

use crate::diagnosis;

/// What came back from one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Graph answered.
    Response(Response),
    /// The request never reached Graph: DNS, TCP, TLS or proxy, before any octet of the body.
    NotReached(String),
    /// The request was written, wholly or in part, and no answer came.
    Lost(String),
    /// A message that takes several requests was not sent, because one of those before the last did
    /// not succeed. Nobody has received anything.
    NotSent {
        /// Which of them, in words: `creating the draft`.
        step: &'static str,
        /// What became of that one.
        cause: Box<Answer>,
    },
    /// There was no token, so nothing was tried.
    NoToken {
        /// What Entra or the network said, fit for the log.
        why: String,
        /// Whether an operator must act (a bad credential), or waiting may help (an outage).
        credential: bool,
        /// How long Entra asks us to wait.
        retry_after: Option<Duration>,
    },
}

/// What Graph answered, as far as it matters for judging it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// `error.code` of the body; `None` where there is none.
    pub code: Option<String>,
    /// `error.message` of the body, at most 500 characters of it.
    pub message: Option<String>,
    /// Retry-After, be it seconds, a fraction or a date.
    pub retry_after: Option<Duration>,
    /// Graph's `request-id`, for Microsoft's support.
    pub request_id: Option<String>,
}

/// What becomes of the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Graph has it.
    Sent,
    /// Not sent; try again.
    Deferred {
        /// Why, in words for the log and the queue listing.
        why: String,
        /// The earliest next attempt that the answer asks for, counted from now.
        not_before: Option<Duration>,
        /// What else must wait as long.
        closes: Closes,
    },
    /// Not sent; an operator must mend something. It is tried again slowly by itself.
    Held {
        /// Why, and what to mend.
        why: String,
        /// What else must wait until it is mended.
        closes: Closes,
    },
    /// Never will be sent as it is.
    Failed {
        /// Why.
        why: String,
        /// The enhanced status code (RFC 3463) for the delivery status notification.
        enhanced: &'static str,
    },
    /// Nobody can know whether it was sent.
    Unknown {
        /// What happened.
        why: String,
    },
}

/// What must wait together with the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closes {
    /// Only the message.
    Message,
    /// All messages of its mailbox.
    Mailbox,
    /// All messages of the tenant.
    Tenant,
}

impl Answer {
    /// The answer of the request that decided, where there were several.
    pub fn cause(&self) -> &Answer {
        match self {
            Answer::NotSent { cause, .. } => cause.cause(),
            answer => answer,
        }
    }

    /// Whether Graph refused the request for the company it had, or for its rate: to send fewer at
    /// once helps.
    pub fn is_throttling(&self) -> bool {
        let Answer::Response(response) = self.cause() else {
            return false;
        };
        match response.code.as_deref().unwrap_or_default() {
            "ApplicationThrottled"
            | "TooManyRequests"
            | "ErrorTooManyRequests"
            | "CommandConcurrencyLimitReached" => true,
            // A limit of the day is no matter of pace.
            "ErrorExceededMessageLimit" | "ErrorSubmissionQuotaExceeded" => false,
            _ => response.status == 429,
        }
    }
}

/// How long a throttled or unavailable mailbox is left alone where Graph does not say.
const THROTTLED: Duration = Duration::from_secs(30);
/// How long a mailbox over one of Exchange's daily limits is left alone; they are counted over a
/// sliding day, so that some of it comes free every hour.
const OVER_DAILY_LIMIT: Duration = Duration::from_secs(3600);
/// How long the tenant is left alone when Graph cannot be reached: the next message is the probe.
const NOT_REACHED: Duration = Duration::from_secs(10);
/// No answer makes us wait longer than this, whatever it says.
const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Judges an answer to `sendMail`.
pub fn judge(answer: &Answer) -> Outcome {
    match answer {
        Answer::Response(response) => judge_response(response),

        // Nothing of the message left this machine. The network is the same for all mailboxes.
        Answer::NotReached(why) => Outcome::Deferred {
            why: format!("Graph could not be reached: {why}"),
            not_before: Some(NOT_REACHED),
            closes: Closes::Tenant,
        },

        // Graph may have read the last octet and sent the message before the connection broke.
        Answer::Lost(why) => Outcome::Unknown {
            why: format!("the request was written, but no answer came: {why}"),
        },

        // The message itself was not asked to be sent, so nothing about it is unknown.
        Answer::NotSent { step, cause } => not_sent(step, cause),

        // Without a token nothing was tried. Mail never fails for it, however long it lasts.
        Answer::NoToken {
            why,
            credential: true,
            ..
        } => Outcome::Held {
            why: why.clone(),
            closes: Closes::Tenant,
        },
        Answer::NoToken {
            why,
            credential: false,
            retry_after,
        } => Outcome::Deferred {
            why: why.clone(),
            not_before: Some(retry_after.unwrap_or(NOT_REACHED).min(MAX_WAIT)),
            closes: Closes::Tenant,
        },
    }
}

/// Drafts need a permission of their own, Mail.ReadWrite.
fn not_sent(step: &str, cause: &Answer) -> Outcome {
    let prefix = |why: String| format!("while {step}: {why}");
    match (judge(cause), cause) {
        (Outcome::Held { why, closes }, Answer::Response(Response { status: 403, .. })) => Outcome::Held {
            why: diagnosis::reason(
                &prefix(diagnosis::parts(&why).0.to_owned()),
                "grant Mail.ReadWrite for this mailbox, which drafts need, or set large_messages = false",
            ),
            closes,
        },
        (Outcome::Held { why, closes }, _) => Outcome::Held {
            why: prefix(why),
            closes,
        },
        (Outcome::Failed { why, enhanced }, _) => Outcome::Failed {
            why: prefix(why),
            enhanced,
        },
        (
            Outcome::Deferred {
                why,
                not_before,
                closes,
            },
            _,
        ) => Outcome::Deferred {
            why: prefix(why),
            not_before,
            closes,
        },
        (Outcome::Unknown { why }, _) => Outcome::Deferred {
            why: prefix(why),
            not_before: None,
            closes: Closes::Message,
        },
        (Outcome::Sent, _) => Outcome::Deferred {
            why: prefix("an answer that does not belong there".to_owned()),
            not_before: None,
            closes: Closes::Message,
        },
    }
}

fn judge_response(response: &Response) -> Outcome {
    let why = describe(response);
    let deferred = |not_before: Option<Duration>, closes| Outcome::Deferred {
        why: why.clone(),
        not_before: response.retry_after.or(not_before).map(|it| it.min(MAX_WAIT)),
        closes,
    };
    let held = |closes, fix: &str| Outcome::Held {
        why: diagnosis::reason(&why, fix),
        closes,
    };
    let failed = |enhanced| Outcome::Failed {
        why: why.clone(),
        enhanced,
    };
    let unknown = || Outcome::Unknown { why: why.clone() };

    // A 202 is acceptance even with a Retry-After beside it: repeating such a request has sent mail
    // twice (msgraph-sdk-java#1487).
    if response.status == 202 {
        return Outcome::Sent;
    }
    // "200 OK" has been seen for a message over the size limit that was never sent
    // (microsoft-graph-docs#13979).
    if (200..300).contains(&response.status) {
        return unknown();
    }

    match response.code.as_deref().unwrap_or_default() {
        // The message itself, as Graph's own codes say. One bad recipient fails the whole request.
        "ErrorInvalidRecipients" => {
            let none = response
                .message
                .as_deref()
                .is_some_and(|it| it.contains("contains no recipients"));
            failed(if none { "5.5.1" } else { "5.1.3" })
        }
        "ErrorRecipientLimitExceeded" => failed("5.5.3"),
        "ErrorMessageSizeExceeded" => failed("5.3.4"),
        "ErrorParticipantDoesntHaveAnEmailAddress"
        | "ErrorMimeContentInvalidBase64String"
        | "ErrorMimeContentConversionFailed"
        | "ErrorAttachmentSizeShouldNotBeLessThanMinimumSize"
        | "InvalidInternetMessageHeader"
        | "InvalidInternetMessageHeaderCollection"
        | "RequestBodyRead"
        | "UnableToDeserializePostBody" => failed("5.6.0"),

        // This From with this mailbox: other messages of the mailbox may be in order.
        "ErrorSendAsDenied" => held(
            Closes::Message,
            "give the mailbox Send As for this From address, or set header_from = \"mailbox\" in its rule",
        ),

        // An application access policy leaves this mailbox out
        // (<https://learn.microsoft.com/exchange/permissions-exo/application-access-policies>).
        "ErrorAccessDenied"
            if response
                .message
                .as_deref()
                .is_some_and(|it| it.contains("AccessPolicy")) =>
        {
            held(
                Closes::Mailbox,
                "add this mailbox to the group of the application access policy, which takes an hour or more to \
                 work; or replace the policy: 'graphpost entra script'",
            )
        }

        // The application may not use this mailbox (yet: a new grant takes up to two hours or more).
        "ErrorAccessDenied" | "Authorization_RequestDenied" => held(
            Closes::Mailbox,
            "grant Mail.Send for this mailbox ('graphpost entra script'); a new grant takes up to two hours to work",
        ),
        "ErrorAccountDisabled" => held(Closes::Mailbox, "enable the account of this mailbox"),

        // The rule names a mailbox that is not there, or has no licence yet. The mail is kept: the
        // operator mends one line, or waits for the licence.
        "ErrorInvalidUser" | "ResourceNotFound" | "Request_ResourceNotFound" => held(
            Closes::Mailbox,
            "check the mailbox of the sender rule: Graph wants its user principal name, not an alias",
        ),
        "MailboxNotEnabledForRESTAPI" => held(
            Closes::Mailbox,
            "the mailbox needs an Exchange Online licence; a new one takes some hours to work",
        ),

        // The sending mailbox is full: no copy fits into Sent Items. Deleting mail mends it.
        "ErrorQuotaExceeded" => held(
            Closes::Mailbox,
            "the sending mailbox is full: empty it, or set save_to_sent_items = false",
        ),

        // Exchange's limits per day: only time helps.
        "ErrorExceededMessageLimit" | "ErrorSubmissionQuotaExceeded" => {
            deferred(Some(OVER_DAILY_LIMIT), Closes::Mailbox)
        }

        // Throttled: Graph counts per application and mailbox.
        "ApplicationThrottled"
        | "TooManyRequests"
        | "ErrorTooManyRequests"
        | "CommandConcurrencyLimitReached" => deferred(Some(THROTTLED), Closes::Mailbox),

        // The mailbox is being moved, or its server is overloaded. Exchange says so before it sends.
        "ErrorMailboxStoreUnavailable" | "ErrorMailboxMoveInProgress" | "ErrorServerBusy" => {
            deferred(Some(THROTTLED), Closes::Mailbox)
        }

        // Not sent, by their definition, and of no other message's concern.
        "ErrorInternalServerTransientError" | "ErrorIrresolvableConflict" | "ErrorItemNotFound" => {
            deferred(None, Closes::Message)
        }

        // Mail has been seen to be delivered with these.
        "ErrorTimeoutExpired" | "ErrorInternalServerError" | "UnknownError" | "generalException" => unknown(),

        code => match response.status {
            // The client has already tried once more with a fresh token.
            401 => held(
                Closes::Tenant,
                "Graph refuses a token that Entra ID has just issued: check that authority and graph belong \
                 to the same cloud",
            ),
            407 => held(
                Closes::Tenant,
                "the proxy asks for a login: give it in tenant.proxy",
            ),
            403 => held(
                Closes::Mailbox,
                "grant Mail.Send for this mailbox; a new grant takes up to two hours to work",
            ),
            404 => held(
                Closes::Mailbox,
                "check the mailbox of the sender rule, and the Graph address",
            ),
            408 => unknown(),
            // What is left of the Outlook REST API in Exchange Online.
            410 => held(
                Closes::Tenant,
                "this server does not serve that API any more: remove api = \"outlook-v2.0\"",
            ),
            409 | 412 => deferred(None, Closes::Message),
            413 => failed("5.3.4"),
            429 | 509 => deferred(Some(THROTTLED), Closes::Mailbox),
            // RFC 4918 §11.5: no storage left, which for a mailbox means that it is full.
            507 => held(
                Closes::Mailbox,
                "the sending mailbox is full: empty it, or set save_to_sent_items = false",
            ),
            503 => deferred(Some(THROTTLED), Closes::Mailbox),
            // Not Graph's JSON: a proxy, a firewall or a captive portal has spoken in its place.
            400..=499 if code.is_empty() => deferred(None, Closes::Message),
            400..=499 => failed("5.6.0"),
            // 500, 502 and 504 among them: the part of Graph that answered knows no more than we do.
            500..=599 => unknown(),
            // A redirect is never followed: it would carry the token elsewhere.
            _ => deferred(None, Closes::Message),
        },
    }
}

/// The answer in one line: `403 ErrorSendAsDenied: The user account …`.
fn describe(response: &Response) -> String {
    let mut why = response.status.to_string();
    if let Some(code) = &response.code {
        why.push(' ');
        why.push_str(code);
    }
    if let Some(message) = &response.message {
        why.push_str(": ");
        why.push_str(message);
    }
    why
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An outcome without its words.
    #[derive(Debug, PartialEq)]
    enum Kind {
        Sent,
        Deferred(Option<u64>, Closes),
        Held(Closes),
        Failed(&'static str),
        Unknown,
    }
    use Closes::{Mailbox, Message, Tenant};
    use Kind::{Deferred, Failed, Held, Sent, Unknown};

    fn kind(outcome: Outcome) -> Kind {
        match outcome {
            Outcome::Sent => Sent,
            Outcome::Deferred {
                not_before, closes, ..
            } => Deferred(not_before.map(|it| it.as_secs()), closes),
            Outcome::Held { closes, .. } => Held(closes),
            Outcome::Failed { enhanced, .. } => Failed(enhanced),
            Outcome::Unknown { .. } => Unknown,
        }
    }

    fn response(status: u16, code: &str) -> Response {
        Response {
            status,
            code: (!code.is_empty()).then(|| code.to_owned()),
            ..Response::default()
        }
    }

    #[test]
    fn every_row_of_the_table() {
        for (status, code, want) in [
            (202, "", Sent),
            (200, "", Unknown),
            (201, "", Unknown),
            (204, "", Unknown),
            (400, "ErrorInvalidRecipients", Failed("5.1.3")),
            (400, "ErrorRecipientLimitExceeded", Failed("5.5.3")),
            (400, "ErrorParticipantDoesntHaveAnEmailAddress", Failed("5.6.0")),
            (400, "ErrorMimeContentInvalidBase64String", Failed("5.6.0")),
            (400, "RequestBodyRead", Failed("5.6.0")),
            (400, "UnableToDeserializePostBody", Failed("5.6.0")),
            (400, "BadRequest", Failed("5.6.0")),
            (400, "InvalidInternetMessageHeader", Failed("5.6.0")),
            (400, "InvalidInternetMessageHeaderCollection", Failed("5.6.0")),
            (
                400,
                "ErrorAttachmentSizeShouldNotBeLessThanMinimumSize",
                Failed("5.6.0"),
            ),
            (400, "ErrorMessageSizeExceeded", Failed("5.3.4")),
            (413, "ErrorMessageSizeExceeded", Failed("5.3.4")),
            (500, "ErrorMessageSizeExceeded", Failed("5.3.4")),
            (413, "", Failed("5.3.4")),
            (400, "ErrorMimeContentConversionFailed", Failed("5.6.0")),
            (500, "ErrorMimeContentConversionFailed", Failed("5.6.0")),
            (400, "ErrorQuotaExceeded", Held(Mailbox)),
            (507, "", Held(Mailbox)),
            (400, "ErrorExceededMessageLimit", Deferred(Some(3600), Mailbox)),
            (403, "ErrorExceededMessageLimit", Deferred(Some(3600), Mailbox)),
            (429, "ErrorExceededMessageLimit", Deferred(Some(3600), Mailbox)),
            (429, "ErrorSubmissionQuotaExceeded", Deferred(Some(3600), Mailbox)),
            (401, "InvalidAuthenticationToken", Held(Tenant)),
            (401, "", Held(Tenant)),
            (403, "ErrorSendAsDenied", Held(Message)),
            (403, "ErrorAccessDenied", Held(Mailbox)),
            (403, "Authorization_RequestDenied", Held(Mailbox)),
            (403, "ErrorAccountDisabled", Held(Mailbox)),
            (403, "", Held(Mailbox)),
            (403, "SomethingNew", Held(Mailbox)),
            (404, "ErrorInvalidUser", Held(Mailbox)),
            (404, "ResourceNotFound", Held(Mailbox)),
            (404, "Request_ResourceNotFound", Held(Mailbox)),
            (404, "MailboxNotEnabledForRESTAPI", Held(Mailbox)),
            (404, "ErrorItemNotFound", Deferred(None, Message)),
            (404, "", Held(Mailbox)),
            (407, "", Held(Tenant)),
            (408, "ErrorTimeoutExpired", Unknown),
            (408, "", Unknown),
            (409, "ErrorIrresolvableConflict", Deferred(None, Message)),
            (409, "", Deferred(None, Message)),
            (412, "ErrorIrresolvableConflict", Deferred(None, Message)),
            (429, "ApplicationThrottled", Deferred(Some(30), Mailbox)),
            (429, "TooManyRequests", Deferred(Some(30), Mailbox)),
            (429, "ErrorTooManyRequests", Deferred(Some(30), Mailbox)),
            (429, "CommandConcurrencyLimitReached", Deferred(Some(30), Mailbox)),
            (429, "", Deferred(Some(30), Mailbox)),
            (500, "ErrorInternalServerError", Unknown),
            (500, "UnknownError", Unknown),
            (500, "generalException", Unknown),
            (500, "", Unknown),
            (500, "ErrorInternalServerTransientError", Deferred(None, Message)),
            (503, "ErrorInternalServerTransientError", Deferred(None, Message)),
            (500, "ErrorMailboxStoreUnavailable", Deferred(Some(30), Mailbox)),
            (503, "ErrorMailboxMoveInProgress", Deferred(Some(30), Mailbox)),
            (503, "ErrorServerBusy", Deferred(Some(30), Mailbox)),
            (502, "", Unknown),
            (503, "serviceNotAvailable", Deferred(Some(30), Mailbox)),
            (503, "", Deferred(Some(30), Mailbox)),
            (504, "", Unknown),
            (504, "UnknownError", Unknown),
            (509, "", Deferred(Some(30), Mailbox)),
            // Codes that no table has, by class.
            (400, "SomethingNew", Failed("5.6.0")),
            (422, "SomethingNew", Failed("5.6.0")),
            (500, "SomethingNew", Unknown),
            (599, "SomethingNew", Unknown),
            // An error page that is not Graph's bounces nothing.
            (400, "", Deferred(None, Message)),
            (405, "", Deferred(None, Message)),
            (302, "", Deferred(None, Message)),
            (101, "", Deferred(None, Message)),
            (999, "", Deferred(None, Message)),
        ] {
            let outcome = judge(&Answer::Response(response(status, code)));
            assert_eq!(kind(outcome), want, "{status} {code}");
        }
    }

    #[test]
    fn without_recipients_says_so() {
        let answer = Answer::Response(Response {
            message: Some("A message can't be sent because it contains no recipients.".to_owned()),
            ..response(400, "ErrorInvalidRecipients")
        });
        assert_eq!(kind(judge(&answer)), Failed("5.5.1"));
    }

    #[test]
    fn retry_after_is_obeyed_within_reason_and_never_on_202() {
        let after = |status, seconds| {
            kind(judge(&Answer::Response(Response {
                retry_after: Some(Duration::from_secs(seconds)),
                ..response(status, "")
            })))
        };
        assert_eq!(after(429, 7), Deferred(Some(7), Mailbox));
        assert_eq!(after(503, 120), Deferred(Some(120), Mailbox));
        assert_eq!(after(429, u64::MAX), Deferred(Some(86400), Mailbox));
        assert_eq!(after(202, 7), Sent);
    }

    #[test]
    fn what_never_got_an_answer() {
        let token = |credential, retry_after| Answer::NoToken {
            why: String::new(),
            credential,
            retry_after,
        };
        for (answer, want) in [
            (
                Answer::NotReached("dns error".to_owned()),
                Deferred(Some(10), Tenant),
            ),
            (Answer::Lost("connection reset".to_owned()), Unknown),
            (token(true, None), Held(Tenant)),
            (token(true, Some(Duration::from_secs(60))), Held(Tenant)),
            (token(false, None), Deferred(Some(10), Tenant)),
            (
                token(false, Some(Duration::from_secs(60))),
                Deferred(Some(60), Tenant),
            ),
        ] {
            assert_eq!(kind(judge(&answer)), want, "{answer:?}");
        }
    }

    #[test]
    fn what_fails_before_the_sending_is_never_unknown() {
        for (cause, want) in [
            (Answer::Lost(String::new()), Deferred(None, Message)),
            (Answer::NotReached(String::new()), Deferred(Some(10), Tenant)),
            (Answer::Response(response(504, "")), Deferred(None, Message)),
            (Answer::Response(response(202, "")), Deferred(None, Message)),
            (Answer::Response(response(201, "")), Deferred(None, Message)),
            (
                Answer::Response(response(429, "ApplicationThrottled")),
                Deferred(Some(30), Mailbox),
            ),
            (
                Answer::Response(response(403, "ErrorAccessDenied")),
                Held(Mailbox),
            ),
            (
                Answer::Response(response(404, "ErrorItemNotFound")),
                Deferred(None, Message),
            ),
            (
                Answer::Response(response(400, "ErrorMessageSizeExceeded")),
                Failed("5.3.4"),
            ),
        ] {
            let answer = Answer::NotSent {
                step: "attaching",
                cause: Box::new(cause),
            };
            assert_eq!(kind(judge(&answer)), want, "{answer:?}");
            assert_eq!(answer.is_throttling(), want == Deferred(Some(30), Mailbox));
        }
    }

    /// "It never fails mail": whatever goes wrong with tokens, permissions or the network, and
    /// whatever a server that is not Graph says.
    #[test]
    fn fails_only_on_the_word_of_graph() {
        for status in 0..=999 {
            if let Outcome::Failed { .. } = judge(&Answer::Response(response(status, ""))) {
                assert_eq!(status, 413);
            }
        }
        for status in [401, 403, 404, 407, 408, 429] {
            let outcome = judge(&Answer::Response(response(status, "SomethingNew")));
            assert!(!matches!(outcome, Outcome::Failed { .. }), "{status}");
        }
    }

    #[test]
    fn says_what_graph_said_and_what_to_do() {
        let answer = Answer::Response(Response {
            message: Some("The requested user 'x' is invalid.".to_owned()),
            ..response(404, "ErrorInvalidUser")
        });
        let Outcome::Held { why, .. } = judge(&answer) else {
            panic!("not held")
        };
        assert!(
            why.starts_with(
                "404 ErrorInvalidUser: The requested user 'x' is invalid; fix: check the mailbox"
            ),
            "{why}"
        );
    }
}
