//! Every reply we can give, with its enhanced status code (RFC 5321 §4.2, RFC 2034, RFC 3463).

use std::borrow::Cow;
use std::fmt;

use crate::config;

/// The longest reply line, without its CRLF (RFC 5321 §4.5.3.1.5: 512 octets with it).
const MAX_LINE_OCTETS: usize = 510;

/// An answer to the client. Whatever the text holds, what goes out is printable ASCII in lines of
/// at most 512 octets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The three-digit code.
    pub code: u16,
    /// The enhanced status code; empty where the RFC has none (greeting, EHLO, 334, 354).
    pub enhanced: &'static str,
    /// The words. A line feed begins the next line of a multi-line reply.
    pub text: Cow<'static, str>,
    /// Why something is refused, in one word for metrics and the log; empty where nothing is.
    pub reason: &'static str,
    /// Whom the refusal concerns: for the log, never for the client.
    pub about: Option<Box<About>>,
}

/// Whom a refusal concerns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// The envelope sender or the From address.
    pub from: Option<String>,
    /// The recipient.
    pub to: Option<String>,
    /// The rule of the sender table that decided.
    pub rule: Option<String>,
}

impl Reply {
    /// A reply that refuses nothing.
    pub const fn new(code: u16, enhanced: &'static str, text: &'static str) -> Reply {
        Reply {
            code,
            enhanced,
            text: Cow::Borrowed(text),
            reason: "",
            about: None,
        }
    }

    /// A refusal; `reason` is its word in metrics and the log.
    pub const fn refusal(
        code: u16,
        enhanced: &'static str,
        reason: &'static str,
        text: &'static str,
    ) -> Reply {
        Reply {
            code,
            enhanced,
            text: Cow::Borrowed(text),
            reason,
            about: None,
        }
    }

    /// The same reply in other words.
    pub fn with_text(self, text: impl Into<Cow<'static, str>>) -> Reply {
        Reply {
            text: text.into(),
            ..self
        }
    }

    /// The same reply with a note for the log.
    pub fn about(self, about: About) -> Reply {
        Reply {
            about: Some(Box::new(about)),
            ..self
        }
    }

    /// 4yz: the client keeps the message and tries again (RFC 5321 §4.2.1).
    pub fn is_transient(&self) -> bool {
        self.code / 100 == 4
    }

    /// 4yz or 5yz.
    pub fn is_negative(&self) -> bool {
        self.code >= 400
    }

    /// Appends the reply as it goes over the wire. Whoever sends it does so in one write: some
    /// clients take the first segment for the whole reply.
    pub fn encode(&self, wire: &mut Vec<u8>) {
        let mut lines = self.text.split('\n').peekable();
        while let Some(line) = lines.next() {
            let start = wire.len();
            wire.extend_from_slice(self.code.to_string().as_bytes());
            wire.push(if lines.peek().is_some() { b'-' } else { b' ' });
            if !self.enhanced.is_empty() {
                wire.extend_from_slice(self.enhanced.as_bytes());
                wire.push(b' ');
            }
            // A reply may repeat what the client said. A CR or LF in it would begin a reply of the
            // client's own making, and octets above 127 need SMTPUTF8 (RFC 6531 §3.7.4).
            let room = MAX_LINE_OCTETS - (wire.len() - start);
            wire.extend(line.chars().take(room).map(printable));
            wire.extend_from_slice(b"\r\n");
        }
    }
}

fn printable(c: char) -> u8 {
    match c {
        ' '..='~' => c as u8,
        _ => b'?',
    }
}

/// The reply without its line end; a multi-line reply by its lines.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut wire = Vec::new();
        self.encode(&mut wire);
        f.write_str(String::from_utf8_lossy(&wire).trim_end())
    }
}

// Positive replies.

/// 250 to what has nothing to say.
pub const OK: Reply = Reply::new(250, "2.0.0", "Ok");
/// 250 to MAIL.
pub const SENDER_OK: Reply = Reply::new(250, "2.1.0", "Sender ok");
/// 250 to RCPT.
pub const RECIPIENT_OK: Reply = Reply::new(250, "2.1.5", "Recipient ok");
/// 354 to DATA. It has words: some clients wait for them.
pub const START_MAIL_INPUT: Reply = Reply::new(354, "", "Start mail input; end with <CRLF>.<CRLF>");
/// 220 to STARTTLS.
pub const READY_FOR_TLS: Reply = Reply::new(220, "2.0.0", "Ready to start TLS");
/// 221 to QUIT.
pub const CLOSING: Reply = Reply::new(221, "2.0.0", "Bye");
/// 214 to HELP.
pub const HELP: Reply = Reply::new(
    214,
    "2.0.0",
    "Commands: HELO EHLO MAIL RCPT DATA RSET NOOP QUIT VRFY STARTTLS AUTH",
);
/// 252 to VRFY: the relay knows no mailboxes (RFC 5321 §3.5.3).
pub const CANNOT_VERIFY: Reply = Reply::new(252, "2.5.2", "Cannot verify; send the message and see");
/// 235 to a login.
pub const AUTHENTICATED: Reply = Reply::new(235, "2.7.0", "Authentication succeeded");
/// 334 of `AUTH LOGIN`: `Username:`. Devices compare it octet by octet.
pub const CHALLENGE_USERNAME: Reply = Reply::new(334, "", "VXNlcm5hbWU6");
/// 334 of `AUTH LOGIN`: `Password:`.
pub const CHALLENGE_PASSWORD: Reply = Reply::new(334, "", "UGFzc3dvcmQ6");
/// 334 with an empty challenge. The space after the code stays (RFC 4954 §4).
pub const CHALLENGE_EMPTY: Reply = Reply::new(334, "", "");

// The client said something we do not understand.

/// No such command.
pub const UNKNOWN_COMMAND: Reply = Reply::refusal(500, "5.5.1", "syntax", "Command not recognised");
/// A command line over the limit.
pub const LINE_TOO_LONG: Reply = Reply::refusal(500, "5.5.2", "syntax", "Line too long");
/// A SASL response over the limit (RFC 4954 §6).
pub const RESPONSE_TOO_LONG: Reply =
    Reply::refusal(500, "5.5.6", "syntax", "Authentication exchange line is too long");
/// An HTTP request.
pub const NOT_HTTP: Reply = Reply::refusal(
    500,
    "5.5.1",
    "protocol",
    "This is an SMTP server, not an HTTP server",
);
/// Arguments that make no sense.
pub const BAD_ARGUMENTS: Reply =
    Reply::refusal(501, "5.5.4", "syntax", "Syntax error in parameters or arguments");
/// MAIL with something that is no address.
pub const BAD_SENDER: Reply = Reply::refusal(501, "5.1.7", "syntax", "Bad sender address syntax");
/// RCPT with something that is no address.
pub const BAD_RECIPIENT: Reply = Reply::refusal(501, "5.1.3", "syntax", "Bad recipient address syntax");
/// A SASL response that is not base64, or not what the mechanism wants.
pub const BAD_RESPONSE: Reply =
    Reply::refusal(501, "5.5.2", "auth", "Cannot decode the authentication response");
/// `*` in a SASL exchange.
pub const CANCELLED: Reply = Reply::refusal(501, "5.7.0", "auth", "Authentication cancelled");
/// A command we know and do not have.
pub const NOT_IMPLEMENTED: Reply = Reply::refusal(502, "5.5.1", "syntax", "Command not implemented");
/// A command out of its place.
pub const BAD_SEQUENCE: Reply = Reply::refusal(503, "5.5.1", "sequence", "Bad sequence of commands");
/// MAIL or AUTH before any greeting.
pub const GREET_FIRST: Reply = Reply::refusal(503, "5.5.1", "sequence", "Send EHLO or HELO first");
/// RCPT or DATA without MAIL.
pub const MAIL_FIRST: Reply = Reply::refusal(503, "5.5.1", "sequence", "Send MAIL first");
/// DATA when no recipient was accepted (RFC 5321 §3.3, RFC 2920 §3.2).
pub const NO_RECIPIENTS: Reply = Reply::refusal(554, "5.5.1", "no_recipients", "No valid recipients");
/// AUTH by a mechanism we do not have (RFC 4954 §4).
pub const UNKNOWN_MECHANISM: Reply =
    Reply::refusal(504, "5.5.4", "auth", "Authentication mechanism not offered");
/// A parameter that asks for something we cannot do, and must not ignore.
pub const UNKNOWN_PARAMETER: Reply =
    Reply::refusal(555, "5.5.4", "syntax", "MAIL or RCPT parameter not implemented");

// The client may not.

/// Nothing before a login.
pub const AUTHENTICATION_REQUIRED: Reply =
    Reply::refusal(530, "5.7.0", "auth_required", "Authentication required");
/// Nothing before STARTTLS (RFC 3207 §4).
pub const TLS_REQUIRED: Reply = Reply::refusal(
    530,
    "5.7.0",
    "tls_required",
    "Must issue a STARTTLS command first",
);
/// A wrong account or password; which of them is not said.
pub const BAD_CREDENTIALS: Reply = Reply::refusal(
    535,
    "5.7.8",
    "auth",
    "Authentication failed: wrong account name or password",
);
/// No password without TLS here (RFC 4954 §6).
pub const ENCRYPTION_REQUIRED: Reply = Reply::refusal(
    538,
    "5.7.11",
    "tls_required",
    "A password is accepted only after STARTTLS on this listener",
);
/// The sender policy said no.
pub const NOT_PERMITTED: Reply = Reply::refusal(550, "5.7.1", "sender", "Sender not permitted");
/// RCPT without a domain: we relay, we have no local mailboxes.
pub const RECIPIENT_WITHOUT_DOMAIN: Reply = Reply::refusal(
    553,
    "5.1.3",
    "recipient",
    "A recipient needs a domain, as in name@example.com",
);
/// A client from a network that may not connect.
pub const CLIENT_NOT_PERMITTED: Reply = Reply::refusal(
    554,
    "5.7.1",
    "network",
    "This address may not connect; ask the administrator of this relay to add it to the listener's networks",
);

// Too much of something.

/// Over the message size limit, told by SIZE= or found in the data (RFC 1870 §6).
pub const TOO_LARGE: Reply = Reply::refusal(
    552,
    "5.3.4",
    "size",
    "Message size exceeds fixed maximum message size",
);
/// Over the limit of recipients (RFC 5321 §4.5.3.1.10).
pub const TOO_MANY_RECIPIENTS: Reply = Reply::refusal(452, "4.5.3", "recipients", "Too many recipients");
/// A header section larger than the policy can look at.
pub const HEADER_TOO_LARGE: Reply = Reply::refusal(
    552,
    "5.3.4",
    "header",
    "The header section of the message is too large",
);
/// Too many Received fields (RFC 5321 §6.3).
pub const LOOP: Reply = Reply::refusal(
    554,
    "5.4.6",
    "loop",
    "Too many hops: the message is going in circles",
);
/// The spool is full.
pub const SPOOL_FULL: Reply = Reply::refusal(
    452,
    "4.3.1",
    "spool_full",
    "Insufficient system storage; try again later",
);
/// The spool is broken.
pub const SPOOL_BROKEN: Reply = Reply::refusal(
    451,
    "4.3.0",
    "spool",
    "The message could not be stored; try again later",
);
/// The password check could not be done.
pub const LOGIN_UNAVAILABLE: Reply = Reply::refusal(
    454,
    "4.7.0",
    "auth_unavailable",
    "Temporary authentication failure",
);

/// Over the messages or recipients a minute.
pub const TOO_FAST: Reply = Reply::refusal(
    450,
    "4.7.1",
    "rate",
    "Too many messages or recipients in a minute; try again later",
);

// The end of a connection.

/// Over the failed logins of an address or an account.
pub const LOCKED_OUT: Reply = Reply::refusal(
    421,
    "4.7.0",
    "lockout",
    "Too many failed logins from this address or to this account; try again later",
);
/// Under the rate that mail data must come at.
pub const TOO_SLOW: Reply = Reply::refusal(
    421,
    "4.4.2",
    "slow",
    "The data comes too slowly; closing the connection",
);

/// Over a limit of connections.
pub const TOO_MANY_CONNECTIONS: Reply = Reply::refusal(
    421,
    "4.3.2",
    "connections",
    "Too many connections; try again later",
);
/// The gateway stops.
pub const SHUTTING_DOWN: Reply = Reply::refusal(421, "4.3.2", "shutdown", "Service shutting down; try again");
/// Nothing came for too long.
pub const TIMEOUT: Reply = Reply::refusal(421, "4.4.2", "timeout", "Timeout; closing the connection");
/// Over the budget of errors.
pub const TOO_MANY_ERRORS: Reply = Reply::refusal(421, "4.7.0", "errors", "Too many errors");
/// Over the budget of failed logins.
pub const TOO_MANY_LOGINS: Reply = Reply::refusal(421, "4.7.0", "auth", "Too many failed logins");
/// Over the limit of messages on one connection.
pub const TOO_MANY_MESSAGES: Reply = Reply::refusal(
    421,
    "4.7.0",
    "messages",
    "Too many messages on one connection; connect again",
);
/// Commands sent along with STARTTLS: an injection, or a client that cannot be followed.
pub const PIPELINED_STARTTLS: Reply = Reply::refusal(
    421,
    "4.7.0",
    "injection",
    "Nothing may be sent together with STARTTLS",
);
/// BDAT was not offered, and the octets that follow it are not commands.
pub const NO_CHUNKING: Reply = Reply::refusal(
    421,
    "4.7.0",
    "syntax",
    "CHUNKING is not offered; closing the connection",
);
/// TLS could not be set up after 220.
pub const TLS_UNAVAILABLE: Reply =
    Reply::refusal(454, "4.7.0", "tls", "TLS not available due to temporary reason");

/// The greeting.
pub fn greeting(hostname: &str) -> Reply {
    Reply::new(220, "", "").with_text(format!("{hostname} ESMTP graphpost"))
}

/// The answer to HELO: one line, no extensions, for clients that know neither.
pub fn helo(hostname: &str) -> Reply {
    Reply::new(250, "", "").with_text(hostname.to_owned())
}

/// What EHLO offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The advertised SIZE.
    pub max_message_size: u64,
    /// Whether STARTTLS is offered now.
    pub starttls: bool,
    /// Whether AUTH is offered now with a password.
    pub password: bool,
    /// Whether AUTH is offered with CRAM-MD5.
    pub cram_md5: bool,
}

/// The answer to EHLO (RFC 5321 §4.1.1.1).
pub fn ehlo(hostname: &str, offer: Offer) -> Reply {
    let mut text = format!(
        "{hostname}\nPIPELINING\nSIZE {}\n8BITMIME\nSMTPUTF8\nENHANCEDSTATUSCODES",
        offer.max_message_size
    );
    if offer.starttls {
        text.push_str("\nSTARTTLS");
    }
    // Only what can succeed: a client that sees CRAM-MD5 and fails tries nothing else.
    let mechanisms = match (offer.password, offer.cram_md5) {
        (true, true) => "LOGIN PLAIN CRAM-MD5",
        (true, false) => "LOGIN PLAIN",
        (false, true) => "CRAM-MD5",
        (false, false) => "",
    };
    if !mechanisms.is_empty() {
        // The second form is what clients of the draft that became RFC 2554 look for, among them
        // .NET's SmtpClient.
        text.push_str(&format!("\nAUTH {mechanisms}\nAUTH={mechanisms}"));
    }
    Reply::new(250, "", "").with_text(text)
}

/// The only 250 that mail data can get: there is no receipt without a durable copy.
pub fn queued(receipt: &crate::spool::Receipt) -> Reply {
    OK.with_text(format!("Ok: queued as {}", receipt.id()))
}

/// The refusal of the sender policy.
pub fn not_permitted(denied: &crate::policy::Denied) -> Reply {
    let (from, rule) = denied.for_log();
    NOT_PERMITTED.with_text(denied.to_string()).about(About {
        from: Some(from.to_owned()),
        rule: rule.map(str::to_owned),
        to: None,
    })
}

/// Within the message size limit, and yet larger than Microsoft takes once it is converted.
pub fn does_not_fit(error: &crate::convert::ConvertError, submission: &crate::spool::Submission) -> Reply {
    TOO_LARGE.with_text(error.to_string()).about(About {
        from: Some(submission.envelope.reverse_path.to_string()),
        rule: Some(submission.route.rule.clone()),
        to: None,
    })
}

/// Over the message size limit, with the limit named.
pub fn too_large(smtp: &config::Smtp) -> Reply {
    // Whoever reads this asks the administrator, who then knows what to look up.
    let more = match smtp.max_message_size {
        0..=config::LARGEST_SINGLE_REQUEST => " (large_messages in [tenant] allows more)",
        _ => "",
    };
    TOO_LARGE.with_text(format!(
        "Message size exceeds fixed maximum message size of {} octets{more}",
        smtp.max_message_size
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(reply: &Reply) -> String {
        let mut wire = Vec::new();
        reply.encode(&mut wire);
        String::from_utf8(wire).expect("ASCII")
    }

    #[test]
    fn is_written_as_rfc_5321_says() {
        assert_eq!(wire(&OK), "250 2.0.0 Ok\r\n");
        assert_eq!(wire(&CHALLENGE_USERNAME), "334 VXNlcm5hbWU6\r\n");
        assert_eq!(wire(&CHALLENGE_EMPTY), "334 \r\n");
        assert_eq!(wire(&helo("mx.example")), "250 mx.example\r\n");
        let offer = Offer {
            max_message_size: 1000,
            starttls: true,
            password: true,
            cram_md5: false,
        };
        assert_eq!(
            wire(&ehlo("mx.example", offer)),
            "250-mx.example\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n\
             250-ENHANCEDSTATUSCODES\r\n250-STARTTLS\r\n250-AUTH LOGIN PLAIN\r\n250 AUTH=LOGIN PLAIN\r\n"
        );
    }

    #[test]
    fn cannot_be_broken_by_what_it_repeats() {
        let reply = BAD_SENDER.with_text("a\r250 2.0.0 b\0\u{85}jürgen\u{2028}");
        assert_eq!(wire(&reply), "501 5.1.7 a?250 2.0.0 b??j?rgen?\r\n");
        let long = wire(&BAD_SENDER.with_text("x".repeat(2000)));
        assert_eq!(long.len(), 512);
        // A line feed makes a further line of the same reply, never a reply of its own.
        assert_eq!(
            wire(&BAD_SENDER.with_text("a\n250 ok")),
            "501-5.1.7 a\r\n501 5.1.7 250 ok\r\n"
        );
    }
}
