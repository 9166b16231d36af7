//! One command line, read leniently: sloppy devices are understood where what they mean is plain,
//! and refused where it is not. Never guessed, and never repaired octet by octet.

use std::fmt;

use crate::address::Address;
use crate::envelope::ReversePath;
use crate::smtp::auth::Mechanism;
use crate::smtp::reply::{self, Reply};

/// The longest command line, in octets without its line end. RFC 5321 §4.5.3.1.4 asks for 512, more
/// with extensions.
pub const MAX_LINE_OCTETS: usize = 2048;

/// What a client calls itself is kept up to here.
const MAX_NAME_CHARS: usize = 255;

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// `HELO name`; the name may be missing.
    Helo(String),
    /// `EHLO name`; the name may be missing.
    Ehlo(String),
    /// `MAIL FROM:<reverse-path> parameters`
    Mail {
        /// Who sends.
        reverse_path: ReversePath,
        /// `SIZE=`: how large the client believes the message is (RFC 1870).
        size: Option<u64>,
    },
    /// `RCPT TO:<forward-path> parameters`
    Rcpt(Address),
    /// `DATA`
    Data,
    /// `RSET`
    Rset,
    /// `NOOP`
    Noop,
    /// `QUIT`
    Quit,
    /// `VRFY`
    Vrfy,
    /// `EXPN`
    Expn,
    /// `HELP`
    Help,
    /// `STARTTLS`
    StartTls,
    /// `AUTH mechanism initial-response`
    Auth {
        /// How the client wants to log in.
        mechanism: Mechanism,
        /// The initial response, still in base64.
        initial: Option<Sasl<'a>>,
    },
    /// `BDAT`, which is not offered (RFC 3030).
    Bdat,
}

/// Base64 of a SASL exchange. It may hold a password, so its `Debug` is blind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sasl<'a>(pub &'a [u8]);

impl fmt::Debug for Sasl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sasl(…)")
    }
}

impl<'a> Command<'a> {
    /// Reads a line without its line end.
    ///
    /// # Errors
    /// The reply that refuses it.
    pub fn parse(line: &'a [u8]) -> Result<Command<'a>, Reply> {
        let line = line.trim_ascii();
        let (verb, rest) = split_word(line);
        let verb = verb.to_ascii_uppercase();
        Ok(match verb.as_slice() {
            b"HELO" => Command::Helo(client_name(rest)),
            b"EHLO" => Command::Ehlo(client_name(rest)),
            b"MAIL" => mail(rest)?,
            b"RCPT" => rcpt(rest)?,
            // Arguments are noise here, and devices make some.
            b"DATA" => Command::Data,
            b"RSET" => Command::Rset,
            b"NOOP" => Command::Noop,
            b"QUIT" => Command::Quit,
            b"VRFY" => Command::Vrfy,
            b"EXPN" => Command::Expn,
            b"HELP" => Command::Help,
            b"STARTTLS" => Command::StartTls,
            b"AUTH" => auth(rest)?,
            b"BDAT" => Command::Bdat,
            _ => return Err(reply::UNKNOWN_COMMAND),
        })
    }
}

/// Whether a line is the first of an HTTP request: browsers and scanners come to any port.
pub fn is_http(line: &[u8]) -> bool {
    const METHODS: [&[u8]; 8] = [
        b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"CONNECT", b"DELETE", b"PATCH",
    ];
    let (method, rest) = split_word(line);
    METHODS.contains(&method)
        && rest
            .trim_ascii_end()
            .split(|&it| it == b' ')
            .any(|it| it.starts_with(b"HTTP/"))
}

/// Up to the first blank, and what follows the blanks.
fn split_word(line: &[u8]) -> (&[u8], &[u8]) {
    let end = line
        .iter()
        .position(u8::is_ascii_whitespace)
        .unwrap_or(line.len());
    (&line[..end], line[end..].trim_ascii_start())
}

/// A name fit for the log and the Received field, whatever the client said. RFC 5321 §4.1.4: a
/// server must not refuse mail because the name is wrong, and nothing here rests on it.
fn client_name(argument: &[u8]) -> String {
    String::from_utf8_lossy(argument)
        .chars()
        .take(MAX_NAME_CHARS)
        .map(|c| {
            if c.is_control() || c.is_whitespace() {
                '?'
            } else {
                c
            }
        })
        .collect()
}

fn mail<'a>(rest: &[u8]) -> Result<Command<'a>, Reply> {
    let argument = after_keyword(rest, b"FROM").ok_or(reply::BAD_ARGUMENTS)?;
    let (path, parameters) = split_path(argument).ok_or(reply::BAD_SENDER)?;
    let reverse_path = match path {
        Path::Null => ReversePath(None),
        Path::Mailbox(mailbox) => ReversePath(Some(address(mailbox, reply::BAD_SENDER)?)),
    };
    let mut size = None;
    for parameter in Parameters(parameters) {
        let (keyword, value) = parameter?;
        match keyword.as_slice() {
            b"SIZE" if value.is_empty() => {}
            b"SIZE" => size = Some(number(value).ok_or(reply::BAD_ARGUMENTS)?),
            b"BODY" if value.eq_ignore_ascii_case(b"7BIT") || value.eq_ignore_ascii_case(b"8BITMIME") => {}
            b"BODY" => return Err(reply::UNKNOWN_PARAMETER),
            // To send at another time, or not without TLS, is a promise we could not keep
            // (RFC 4865, RFC 2852, RFC 8689).
            b"HOLDFOR" | b"HOLDUNTIL" | b"BY" | b"REQUIRETLS" => return Err(reply::UNKNOWN_PARAMETER),
            // SMTPUTF8, AUTH=, RET, ENVID and whatever else does no harm when ignored.
            _ => {}
        }
    }
    Ok(Command::Mail { reverse_path, size })
}

fn rcpt<'a>(rest: &[u8]) -> Result<Command<'a>, Reply> {
    let argument = after_keyword(rest, b"TO").ok_or(reply::BAD_ARGUMENTS)?;
    let recipient = match split_path(argument) {
        Some((Path::Mailbox(mailbox), parameters)) => {
            // NOTIFY and ORCPT are not offered and do no harm.
            for parameter in Parameters(parameters) {
                parameter?;
            }
            address(mailbox, reply::BAD_RECIPIENT)?
        }
        Some((Path::Null, _)) | None => return Err(reply::BAD_RECIPIENT),
    };
    Ok(Command::Rcpt(recipient))
}

fn auth(rest: &[u8]) -> Result<Command<'_>, Reply> {
    let (mechanism, initial) = split_word(rest);
    let mechanism = match mechanism.to_ascii_uppercase().as_slice() {
        b"PLAIN" => Mechanism::Plain,
        b"LOGIN" => Mechanism::Login,
        b"CRAM-MD5" => Mechanism::CramMd5,
        b"" => return Err(reply::BAD_ARGUMENTS),
        _ => return Err(reply::UNKNOWN_MECHANISM),
    };
    // `=` stands for an empty initial response (RFC 4954 §4). An empty one says nothing in either
    // mechanism, so it is answered as if there were none.
    let initial = (!initial.is_empty() && initial != b"=").then_some(Sasl(initial));
    Ok(Command::Auth { mechanism, initial })
}

/// What follows `FROM:` or `TO:`. Blanks around the colon are common, and a missing colon before
/// `<` is plain enough.
fn after_keyword<'a>(rest: &'a [u8], keyword: &[u8]) -> Option<&'a [u8]> {
    let (found, rest) = rest.split_at_checked(keyword.len())?;
    let rest = rest.trim_ascii_start();
    if !found.eq_ignore_ascii_case(keyword) {
        return None;
    }
    match rest {
        [b':', rest @ ..] => Some(rest.trim_ascii_start()),
        [b'<', ..] => Some(rest),
        _ => None,
    }
}

enum Path<'a> {
    /// `<>`
    Null,
    /// The mailbox without brackets and source route.
    Mailbox(&'a [u8]),
}

/// The path, and the parameters after it.
fn split_path(argument: &[u8]) -> Option<(Path<'_>, &[u8])> {
    let bracketed = if argument.starts_with(b"<") {
        Some(0)
    } else {
        // `MAIL FROM:a@b SIZE=1`, without brackets; or `MAIL FROM:Some Name <a@b>`, which is a From
        // field's content in the wrong place, but says who sends.
        let word = &argument[..unquoted(argument, |it| it.is_ascii_whitespace())];
        let open = unquoted(argument, |it| it == b'<');
        (!word.contains(&b'@') && open < argument.len()).then_some(open)
    };
    let Some(open) = bracketed else {
        let end = unquoted(argument, |it| it.is_ascii_whitespace());
        // A quoted string without its end would be an address that nobody else can read.
        return (end > 0 && is_closed(&argument[..end])).then_some((
            Path::Mailbox(&argument[..end]),
            argument[end..].trim_ascii_start(),
        ));
    };
    let inner = &argument[open + 1..];
    let close = unquoted(inner, |it| it == b'>');
    let rest = inner.get(close + 1..)?;
    // After `>` comes a blank or nothing.
    if !rest.is_empty() && !rest[0].is_ascii_whitespace() {
        return None;
    }
    let mut mailbox = inner[..close].trim_ascii();
    // RFC 5321 §4.1.1.3: a source route must be accepted and may be ignored.
    if mailbox.starts_with(b"@")
        && let Some(colon) = mailbox.iter().position(|&it| it == b':')
    {
        mailbox = mailbox[colon + 1..].trim_ascii();
    }
    let path = if mailbox.is_empty() {
        Path::Null
    } else {
        Path::Mailbox(mailbox)
    };
    Some((path, rest.trim_ascii_start()))
}

/// Where the first octet stands that is `wanted` and not within a quoted string; the length of the
/// text if there is none.
fn unquoted(text: &[u8], wanted: impl Fn(u8) -> bool) -> usize {
    let mut quoted = false;
    let mut octets = text.iter().enumerate();
    while let Some((at, &octet)) = octets.next() {
        match octet {
            b'"' => quoted = !quoted,
            b'\\' if quoted => {
                octets.next();
            }
            octet if !quoted && wanted(octet) => return at,
            _ => {}
        }
    }
    text.len()
}

/// Whether every quoted string in the text has its end.
fn is_closed(text: &[u8]) -> bool {
    // With a blank behind it, only an open string takes the blank for its own.
    unquoted(&[text, b" "].concat(), |it| it == b' ') == text.len()
}

/// An address is kept as it came or refused; octets that are not UTF-8 cannot be kept, and to
/// replace them would be to send to, or as, somebody else.
fn address(mailbox: &[u8], refusal: Reply) -> Result<Address, Reply> {
    let text = std::str::from_utf8(mailbox).map_err(|_| {
        refusal
            .clone()
            .with_text("The address is neither ASCII nor UTF-8")
    })?;
    Address::parse(text).map_err(|why| refusal.with_text(format!("Bad address syntax: {why}")))
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // RFC 1870 §4 has up to twenty digits; what does not fit is larger than any limit.
    Some(std::str::from_utf8(digits).ok()?.parse().unwrap_or(u64::MAX))
}

/// `KEYWORD` or `KEYWORD=value`, separated by blanks (RFC 5321 §4.1.2). Keywords come in upper case.
struct Parameters<'a>(&'a [u8]);

impl<'a> Iterator for Parameters<'a> {
    type Item = Result<(Vec<u8>, &'a [u8]), Reply>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let (parameter, rest) = split_word(self.0);
        self.0 = rest;
        let (keyword, value) = match parameter.iter().position(|&it| it == b'=') {
            Some(at) => (&parameter[..at], &parameter[at + 1..]),
            None => (parameter, &b""[..]),
        };
        let well_formed = keyword.first().is_some_and(u8::is_ascii_alphanumeric)
            && keyword.iter().all(|it| it.is_ascii_alphanumeric() || *it == b'-')
            && !value.iter().any(u8::is_ascii_control);
        Some(if well_formed {
            Ok((keyword.to_ascii_uppercase(), value))
        } else {
            Err(reply::BAD_ARGUMENTS)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[u8]) -> Result<Command<'_>, Reply> {
        Command::parse(line)
    }

    fn sender(line: &[u8]) -> Result<(String, Option<u64>), u16> {
        match parse(line) {
            Ok(Command::Mail { reverse_path, size }) => Ok((reverse_path.to_string(), size)),
            Ok(other) => panic!("{other:?}"),
            Err(reply) => Err(reply.code),
        }
    }

    fn recipient(line: &[u8]) -> Result<String, u16> {
        match parse(line) {
            Ok(Command::Rcpt(recipient)) => Ok(recipient.to_string()),
            Ok(other) => panic!("{other:?}"),
            Err(reply) => Err(reply.code),
        }
    }

    #[test]
    fn senders_as_devices_write_them() {
        for (line, want, size) in [
            ("MAIL FROM:<a@b>", "a@b", None),
            ("MAIL FROM: <a@b>", "a@b", None),
            ("MAIL FROM : <a@b> ", "a@b", None),
            ("MAIL FROM <a@b>", "a@b", None),
            ("MAIL  FROM:a@b", "a@b", None),
            ("mail from:<a@b> size=123 body=8bitmime", "a@b", Some(123)),
            ("MAIL FROM:a@b SIZE=5", "a@b", Some(5)),
            ("MAIL FROM:<a@b> SIZE=", "a@b", None),
            ("MAIL FROM:<a@b> SIZE=99999999999999999999", "a@b", Some(u64::MAX)),
            ("MAIL FROM:<>", "<>", None),
            ("MAIL FROM: <> BODY=7BIT", "<>", None),
            ("MAIL FROM:< a@b >", "a@b", None),
            ("MAIL FROM:<printer>", "printer", None),
            ("MAIL FROM:printer", "printer", None),
            ("MAIL FROM:<a@[10.0.0.1]>", "a@[10.0.0.1]", None),
            ("MAIL FROM:<@relay,@other:a@b>", "a@b", None),
            ("MAIL FROM:<\"a b\"@c>", "\"a b\"@c", None),
            ("MAIL FROM:<\"a>b\"@c>", "\"a>b\"@c", None),
            ("MAIL FROM:<\"a\\\">b\"@c>", "\"a\\\">b\"@c", None),
            ("MAIL FROM:\"a b\"@c SIZE=1", "\"a b\"@c", Some(1)),
            ("MAIL FROM:Some Name <a@b>", "a@b", None),
            ("MAIL FROM:\"Name, Some\" <a@b> SIZE=7", "a@b", Some(7)),
            (
                "MAIL FROM:<jürgen@müller.example> SMTPUTF8",
                "jürgen@müller.example",
                None,
            ),
            (
                "MAIL FROM:<a@b> AUTH=<> RET=HDRS ENVID=x+20y X-THING",
                "a@b",
                None,
            ),
            ("\tMAIL\tFROM:<a@b>\t", "a@b", None),
        ] {
            assert_eq!(sender(line.as_bytes()), Ok((want.to_owned(), size)), "{line}");
        }
    }

    #[test]
    fn senders_that_are_refused() {
        for (line, want) in [
            (&b"MAIL"[..], 501),
            (b"MAIL FROM", 501),
            (b"MAIL FROM:", 501),
            (b"MAIL FROM a@b", 501),
            (b"MAIL TO:<a@b>", 501),
            (b"MAIL FROM:<a@b", 501),
            (b"MAIL FROM:<a@b>x", 501),
            (b"MAIL FROM:<a@b>SIZE=1", 501),
            (b"MAIL FROM:<a b@c>", 501),
            (b"MAIL FROM:<a@b\0>", 501),
            (b"MAIL FROM:<a\r@b>", 501),
            (b"MAIL FROM:<\"a@b>", 501),
            (b"MAIL FROM:<<a@b>>", 501),
            (b"MAIL FROM:<@>", 501),
            (b"MAIL FROM:<\xfcser@b>", 501),
            (b"MAIL FROM:<a@b> SIZE=12x", 501),
            (b"MAIL FROM:<a@b> SIZE=-1", 501),
            (b"MAIL FROM:<a@b> =1", 501),
            (b"MAIL FROM:<a@b> ;", 501),
            (b"MAIL FROM:<a@b> X=\0", 501),
            (b"MAIL FROM:<a@b> BODY=BINARYMIME", 555),
            (b"MAIL FROM:<a@b> HOLDFOR=60", 555),
            (b"MAIL FROM:<a@b> requiretls", 555),
        ] {
            assert_eq!(sender(line), Err(want), "{}", line.escape_ascii());
        }
    }

    #[test]
    fn recipients() {
        for (line, want) in [
            ("RCPT TO:<a@b>", "a@b"),
            ("RCPT TO: a@b", "a@b"),
            (
                "rcpt to:<FAX=+49123@sap.example> NOTIFY=NEVER ORCPT=rfc822;a@b",
                "FAX=+49123@sap.example",
            ),
            ("RCPT TO:<@a:b@c>", "b@c"),
            ("RCPT TO:<nobody>", "nobody"),
            ("RCPT TO:\"a b\"@c NOTIFY=NEVER", "\"a b\"@c"),
        ] {
            assert_eq!(recipient(line.as_bytes()), Ok(want.to_owned()), "{line}");
        }
        for (line, want) in [
            (&b"RCPT TO:<>"[..], 501),
            (b"RCPT TO:", 501),
            (b"RCPT FROM:<a@b>", 501),
            (b"RCPT TO:<a@b>,<c@d>", 501),
            (b"RCPT TO:<a@b,c@d>", 501),
            (b"RCPT TO:<\xff@b>", 501),
            // Found by fuzzing: in brackets it was refused, without them it was taken.
            (b"RCPT TO:fax\"@b.example", 501),
            (b"RCPT TO:<fax\"@b.example>", 501),
        ] {
            assert_eq!(recipient(line), Err(want), "{}", line.escape_ascii());
        }
    }

    #[test]
    fn other_commands_take_any_argument() {
        assert_eq!(parse(b"rset now"), Ok(Command::Rset));
        assert_eq!(parse(b"NOOP \0\xff"), Ok(Command::Noop));
        assert_eq!(parse(b"quit "), Ok(Command::Quit));
        assert_eq!(parse(b"DATA x"), Ok(Command::Data));
        assert_eq!(parse(b"StartTLS"), Ok(Command::StartTls));
        assert_eq!(parse(b"HELO"), Ok(Command::Helo(String::new())));
        assert_eq!(
            parse(b"EHLO [192.168.1.21]"),
            Ok(Command::Ehlo("[192.168.1.21]".into()))
        );
        assert_eq!(parse(b"EHLO a b\0c"), Ok(Command::Ehlo("a?b?c".into())));
        for line in [
            &b""[..],
            b" ",
            b"XYZZY",
            b"MAILFROM:<a@b>",
            b"\0",
            b"\xff\xfe",
            b"HELOa",
        ] {
            assert_eq!(parse(line), Err(reply::UNKNOWN_COMMAND));
        }
    }

    #[test]
    fn logins() {
        let auth = |mechanism, initial: Option<&'static [u8]>| {
            Ok(Command::Auth {
                mechanism,
                initial: initial.map(Sasl),
            })
        };
        assert_eq!(parse(b"AUTH LOGIN"), auth(Mechanism::Login, None));
        assert_eq!(
            parse(b"AUTH login dXNlcg=="),
            auth(Mechanism::Login, Some(b"dXNlcg=="))
        );
        assert_eq!(parse(b"auth Plain ="), auth(Mechanism::Plain, None));
        assert_eq!(parse(b"AUTH PLAIN "), auth(Mechanism::Plain, None));
        assert_eq!(parse(b"AUTH DIGEST-MD5"), Err(reply::UNKNOWN_MECHANISM));
        assert_eq!(parse(b"AUTH"), Err(reply::BAD_ARGUMENTS));
        let shown = format!("{:?}", parse(b"AUTH PLAIN c2VjcmV0"));
        assert!(
            !shown.contains("c2VjcmV0") && !shown.contains("99, 50"),
            "{shown}"
        );
    }

    #[test]
    fn http_is_recognised() {
        for line in [
            &b"GET / HTTP/1.1"[..],
            b"POST /a HTTP/1.0",
            b"CONNECT a:1 HTTP/1.1",
        ] {
            assert!(is_http(line));
        }
        for line in [&b"HELP"[..], b"GET", b"GET /", b"MAIL FROM:<HTTP/@b>"] {
            assert!(!is_http(line));
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(line: Vec<u8>) {
            for verb in [&b""[..], b"MAIL FROM:", b"RCPT TO:<", b"AUTH ", b"MAIL FROM:<a@b> "] {
                let _ = Command::parse(&[verb, &line].concat());
            }
            is_http(&line);
        }
    }
}
