//! `graphpost send`: a test message through the running gateway, and what becomes of it.

use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use jiff::Timestamp;
use lettre::message::header::ContentType;
use lettre::message::{Attachment, Mailbox, MultiPart, SinglePart};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::{Message, SmtpTransport, Transport as _};

use super::terminal::{age, password, printable, size};
use super::{ConfigFile, Failure};
use crate::config::{self, Auth, Config, Listener, TlsMode};
use crate::spool::{Entry, QueueId, Reader, SpoolError, State};

/// How long the gateway may take for one reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// How often the queue is looked at.
const POLL: Duration = Duration::from_millis(100);

/// The largest file attached; the gateway refuses far less.
const MAX_ATTACHMENT: u64 = 150 << 20;

/// Send a test message through the running gateway, and say what becomes of it
///
/// Hands a message to a listener of the configuration by SMTP, as any client would, then follows it
/// through the queue until it is sent or has failed.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  graphpost send --from erp@contoso.com --to you@example.org --attach report.pdf\n  \
                  graphpost send --from scan@contoso.com --to you@example.org --user scanner"
)]
pub(super) struct Send {
    /// The sender: of the envelope, and in the From field
    #[arg(long, value_name = "ADDRESS")]
    from: Mailbox,
    /// A recipient; may be given several times
    #[arg(long, value_name = "ADDRESS", required = true)]
    to: Vec<Mailbox>,
    /// The subject
    #[arg(long, value_name = "TEXT", default_value = "Test from graphpost")]
    subject: String,
    /// The text
    #[arg(long, value_name = "TEXT")]
    body: Option<String>,
    /// A file to attach; may be given several times
    #[arg(long, value_name = "FILE")]
    attach: Vec<PathBuf>,
    /// Hand it over here, instead of to a listener of the configuration
    #[arg(long, value_name = "ADDR")]
    server: Option<SocketAddr>,
    /// Log in as this account
    #[arg(long, value_name = "ACCOUNT")]
    user: Option<String>,
    /// Read the password from the first line of this file, instead of asking
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// How long to follow it
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = config::duration)]
    wait: Duration,
    #[command(flatten)]
    config: ConfigFile,
}

/// Where a message is handed over.
struct Server {
    address: SocketAddr,
    tls: TlsMode,
    /// In words.
    what: String,
}

impl Send {
    pub(super) fn run(self) -> Result<(), Failure> {
        // Without a configuration a message can be handed over, and not be followed.
        let config = match (self.config.read(), self.server) {
            (Ok(config), _) => Some(config),
            (Err(_), Some(_)) => None,
            (Err(failure), None) => return Err(failure),
        };
        let server = self.server(config.as_ref())?;
        let mut out = io::stdout().lock();
        step(&mut out, "listener", &server.what)?;

        let message = self.message()?;
        step(
            &mut out,
            "message",
            &format!(
                "{} octets, to {} {}",
                message.formatted().len(),
                self.to.len(),
                if self.to.len() == 1 {
                    "recipient"
                } else {
                    "recipients"
                }
            ),
        )?;
        let reply = self.hand_over(&server, &message)?;
        step(&mut out, "accepted", &reply)?;

        let Some(id) = queue_id(&reply) else {
            return Err(Failure::with_help(
                "the reply names no queue id",
                "is this graphpost?",
            ));
        };
        let reader = config.map(|it| Reader::open(&it.spool.directory));
        match reader {
            Some(Ok(reader)) => follow(&mut out, &reader, id, self.wait),
            Some(Err(error)) => {
                step(
                    &mut out,
                    "queued",
                    &format!("as {id}; its fate cannot be read here: {error}"),
                )?;
                Ok(())
            }
            None => {
                step(
                    &mut out,
                    "queued",
                    &format!("as {id}; ask there: graphpost queue show {id}"),
                )?;
                Ok(())
            }
        }
    }

    fn server(&self, config: Option<&Config>) -> Result<Server, Failure> {
        let listeners = config.map_or(&[][..], |it| &it.listeners);
        if let Some(address) = self.server {
            let listener = listeners.iter().find(|it| it.address == address);
            return Ok(match listener {
                Some(listener) => described(listener, address),
                None => Server {
                    address,
                    tls: TlsMode::StartTls,
                    what: format!("{address}, STARTTLS if offered"),
                },
            });
        }
        let usable = |it: &&Listener| {
            let here = reachable(it.address);
            // A connection to one's own address comes from that address.
            it.address.port() != 0 && it.networks.iter().any(|network| network.contains(&here.ip()))
        };
        let wanted: fn(&&Listener) -> bool = match self.user {
            Some(_) => |it| it.auth != Auth::None,
            None => |it| it.auth != Auth::Required,
        };
        match listeners.iter().find(|it| usable(it) && wanted(it)) {
            Some(listener) => Ok(described(listener, reachable(listener.address))),
            None if listeners.iter().any(|it| usable(&it)) => Err(Failure::with_help(
                match self.user {
                    Some(_) => "no listener lets clients log in",
                    None => "every listener that this host may connect to asks for a login",
                },
                match self.user {
                    Some(_) => "leave --user out",
                    None => "add --user NAME, and --password-file FILE unless it is to be asked for",
                },
            )),
            None => Err(Failure::with_help(
                "this host may connect to no listener of the configuration",
                "name an address with --server, or add 127.0.0.1 to the networks of a listener",
            )),
        }
    }

    fn message(&self) -> Result<Message, Failure> {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let body = self.body.clone().unwrap_or_else(|| {
            format!(
                "This message was sent by 'graphpost send' on {host} at {:.0}.\n",
                Timestamp::now()
            )
        });
        let mut builder = Message::builder()
            .from(self.from.clone())
            .subject(&self.subject)
            .message_id(Some(format!("<{}@{host}>", crate::identity::guid())));
        for to in &self.to {
            builder = builder.to(to.clone());
        }
        let text = SinglePart::plain(body);
        let message = if self.attach.is_empty() {
            builder.singlepart(text)
        } else {
            let mut parts = MultiPart::mixed().singlepart(text);
            for path in &self.attach {
                parts = parts.singlepart(attachment(path)?);
            }
            builder.multipart(parts)
        };
        message.map_err(|error| Failure::new(format_args!("this cannot be made a message: {error}")))
    }

    fn hand_over(&self, server: &Server, message: &Message) -> Result<String, Failure> {
        let host = server.address.ip().to_string();
        let parameters = || {
            let parameters = TlsParameters::builder(host.clone());
            // The certificate is for the name that clients use, and this is the host itself.
            let own = is_own(server.address.ip());
            parameters
                .dangerous_accept_invalid_certs(own)
                .build()
                .map_err(|error| Failure::new(format_args!("cannot use TLS: {error}")))
        };
        let tls = match server.tls {
            TlsMode::None => Tls::None,
            TlsMode::StartTls | TlsMode::Auto => Tls::Opportunistic(parameters()?),
            TlsMode::Required => Tls::Required(parameters()?),
            TlsMode::Implicit => Tls::Wrapper(parameters()?),
        };
        let mut transport = SmtpTransport::builder_dangerous(host.clone())
            .port(server.address.port())
            .tls(tls)
            .timeout(Some(REPLY_TIMEOUT));
        if let Some(user) = &self.user {
            let password = password(
                self.password_file.as_deref(),
                &format!("Password for {user}: "),
                false,
            )?;
            transport = transport.credentials(Credentials::new(user.clone(), password.to_string()));
        }
        let response = transport.build().send(message).map_err(|error| {
            let text = printable(&error.to_string());
            let address = server.address;
            if error.is_permanent() || error.is_transient() {
                let later = if error.is_permanent() {
                    "refused"
                } else {
                    "refused for now"
                };
                Failure::with_help(
                    format_args!("{later}: {text}"),
                    "the log of the gateway names the rule; the rules are the [[sender]] sections",
                )
            } else {
                Failure::with_help(
                    format_args!("cannot hand it over to {address}: {text}"),
                    "is the gateway running? systemctl status graphpost, or: graphpost serve",
                )
            }
        })?;
        let lines: Vec<&str> = response.message().collect();
        Ok(printable(&format!("{} {}", response.code(), lines.join(" "))))
    }
}

/// A line of the report, at once: the next may take a while.
fn step(out: &mut impl Write, what: &str, detail: &str) -> io::Result<()> {
    writeln!(out, "{what:<10}{detail}")?;
    out.flush()
}

/// The address at which this host itself finds a listener.
fn reachable(address: SocketAddr) -> SocketAddr {
    super::sandbox::reachable(address)
}

fn is_own(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback() || std::net::UdpSocket::bind((ip, 0)).is_ok()
}

fn described(listener: &Listener, address: SocketAddr) -> Server {
    let tls = match listener.tls {
        TlsMode::None => "no TLS",
        TlsMode::StartTls | TlsMode::Required | TlsMode::Auto => "STARTTLS",
        TlsMode::Implicit => "TLS",
    };
    let name = if listener.name == listener.address.to_string() {
        String::new()
    } else {
        format!(" ({})", listener.name)
    };
    Server {
        address,
        tls: listener.tls,
        what: format!("{address}{name}, {tls}"),
    }
}

fn attachment(path: &Path) -> Result<SinglePart, Failure> {
    let failed = |error: io::Error| Failure::new(format_args!("cannot attach {}: {error}", path.display()));
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > MAX_ATTACHMENT {
        return Err(Failure::new(format_args!(
            "cannot attach {}: it has {}",
            path.display(),
            size(length)
        )));
    }
    let content = fs::read(path).map_err(failed)?;
    let name = path
        .file_name()
        .map_or_else(|| "file".into(), |it| it.to_string_lossy());
    let kind = match path
        .extension()
        .and_then(|it| it.to_str())
        .map(str::to_ascii_lowercase)
        .as_deref()
    {
        Some("pdf") => "application/pdf",
        Some("txt" | "log" | "md") => "text/plain; charset=utf-8",
        Some("csv") => "text/csv; charset=utf-8",
        Some("html" | "htm") => "text/html; charset=utf-8",
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("zip") => "application/zip",
        _ => "application/octet-stream",
    };
    let kind = ContentType::parse(kind).map_err(Failure::new)?;
    Ok(Attachment::new(name.into_owned()).body(content, kind))
}

/// The id at the end of `250 2.0.0 Ok: queued as 0000004F`.
fn queue_id(reply: &str) -> Option<QueueId> {
    reply
        .rsplit_once("queued as ")?
        .1
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// Says what happens to a message until it is sent, or nothing more happens by itself.
fn follow(out: &mut impl Write, reader: &Reader, id: QueueId, wait: Duration) -> Result<(), Failure> {
    let begin = Instant::now();
    let mut seen = None;
    loop {
        let entry = match reader.get(id) {
            Ok(entry) => entry,
            Err(SpoolError::NotFound(_)) => {
                return Err(Failure::new(format_args!(
                    "{id} is no longer in the queue: someone has deleted it"
                )));
            }
            Err(error) => return Err(Failure::new(error)),
        };
        let stands = (entry.state, entry.attempts);
        if seen != Some(stands) {
            seen = Some(stands);
            say(out, &entry)?;
        }
        match entry.state {
            State::Sent => return Ok(()),
            State::Failed | State::Unknown => return Err(Failure::Told),
            State::Queued | State::Sending | State::Held => {}
        }
        if begin.elapsed() >= wait {
            step(
                out,
                "waiting",
                &format!("still {}; graphpost queue show {id}", entry.state),
            )?;
            return Err(Failure::Told);
        }
        std::thread::sleep(POLL);
    }
}

fn say(out: &mut impl Write, entry: &Entry) -> io::Result<()> {
    let because = entry
        .reason
        .as_deref()
        .map_or(String::new(), |it| format!(": {}", printable(it)));
    let request = entry
        .request_id
        .as_deref()
        .map_or(String::new(), |it| format!(", request-id {}", printable(it)));
    let next = entry.due.map_or(String::new(), |due| {
        let seconds = due.duration_since(Timestamp::now()).as_secs();
        if seconds > 0 {
            format!(", next try in {}", age(seconds))
        } else {
            String::new()
        }
    });
    match entry.state {
        State::Queued if entry.attempts == 0 => step(out, "queued", &format!("as {}", entry.id)),
        State::Queued => step(
            out,
            "deferred",
            &format!("after attempt {}{because}{next}{request}", entry.attempts),
        ),
        State::Sending => step(
            out,
            "sending",
            &format!(
                "through {}, attempt {}",
                entry.submission.route.mailbox, entry.attempts
            ),
        ),
        State::Held => step(
            out,
            "held",
            &format!("{}{next}{request}", because.trim_start_matches(": ")),
        ),
        State::Unknown => step(out, "unknown", &format!("whether it was sent{because}{request}")),
        State::Failed => step(
            out,
            "failed",
            &format!("{}{request}", because.trim_start_matches(": ")),
        ),
        State::Sent => {
            let took = entry.changed.duration_since(entry.accepted).as_secs_f64();
            step(
                out,
                "sent",
                &format!(
                    "through {} after {took:.1} s{request}",
                    entry.submission.route.mailbox
                ),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_in_the_reply() {
        let id = queue_id("250 2.0.0 Ok: queued as 0000004F");
        assert_eq!(id.map(|it| it.to_string()).as_deref(), Some("0000004F"));
        for reply in ["250 2.0.0 Ok", "250 queued as ", "250 queued as !"] {
            assert_eq!(queue_id(reply), None);
        }
    }
}
