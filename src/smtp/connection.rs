//! Carries a [`Session`] over a stream: reads lines and mail data, carries out what the session
//! says, and keeps the deadlines.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::accounts::Login;
use crate::config::TlsMode;
use crate::event::smtp as event;
use crate::graph::resource::MAX_RECIPIENTS;
use crate::message::HeadCollector;
use crate::smtp::auth::{Credentials, Proof};
use crate::smtp::data::DataDecoder;
use crate::smtp::lines::{Found, Lines};
use crate::smtp::listener::Listener;
use crate::smtp::reply::{self, Reply};
use crate::smtp::session::{Action, Event, Session};
use crate::smtp::tls::client_hello::begins_tls;
use crate::smtp::tls::{HandshakeError, Stream};
use crate::spool::{Incoming, SpoolError, Submission};

/// How much is read at once while commands are expected. An idle connection keeps this much.
const COMMAND_READ_OCTETS: usize = 1024;

/// How much is read at once while mail data comes: line by line, or in small pieces, a large message
/// takes many times longer.
const DATA_READ_OCTETS: usize = 64 * 1024;

/// Replies to pipelined commands wait for each other up to here.
const MAX_BATCH_OCTETS: usize = 16 * 1024;

/// How long we go on reading from a client that we hang up on. Closing a socket with unread octets
/// resets the connection, and the reset can overtake the reply that says why.
const LINGER: Duration = Duration::from_secs(1);

/// How a connection ended, where nothing more can be said to the client.
#[derive(Debug)]
pub enum Ended {
    /// A reply has said it: QUIT, 421 or a refusal.
    Closed,
    /// The client hung up.
    HungUp,
    /// The client did not read our replies, or the network failed.
    Io(io::Error),
    /// STARTTLS failed.
    Handshake(HandshakeError),
    /// TLS began where it is not expected.
    UnexpectedTls,
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Ended {
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Ended::HungUp,
            _ => Ended::Io(error),
        }
    }
}

/// A connection under way.
pub struct Connection<S> {
    stream: Stream<S>,
    session: Session,
    listener: Arc<Listener>,
    /// What has come and is not read yet.
    lines: Lines,
    /// Replies that are not sent yet.
    replies: Vec<u8>,
    /// No line has been read yet.
    fresh: bool,
    /// When the connection ends between two commands, whatever the client does.
    ends: Instant,
    /// The gateway stops: hang up when nothing is under way.
    stopping: CancellationToken,
    /// Mail data that came to its end and is not accepted yet.
    incoming: Option<Incoming>,
    /// Another address that its From field shows as a name.
    shown_as: Option<String>,
    /// Whether it has a Message-ID of its own. Without one it is joined to nothing.
    has_message_id: bool,
    failed_logins: u32,
    /// 354 is said, and the answer to the data is not.
    receiving: bool,
}

/// Why mail data is no longer stored while its end is awaited.
enum Discarding {
    TooLarge,
    Spool(SpoolError),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// A connection on which nothing has been said yet.
    pub fn new(
        stream: Stream<S>,
        session: Session,
        listener: Arc<Listener>,
        stopping: CancellationToken,
    ) -> Connection<S> {
        let ends = Instant::now() + listener.terms.smtp.session_timeout;
        Connection {
            stream,
            session,
            listener,
            lines: Lines::default(),
            replies: Vec::new(),
            fresh: true,
            ends,
            stopping,
            incoming: None,
            shown_as: None,
            has_message_id: false,
            failed_logins: 0,
            receiving: false,
        }
    }

    /// Holds the dialogue to its end. Never fails: what goes wrong is the end of this connection and
    /// of nothing else.
    pub async fn run(mut self) {
        let Err(ended) = self.dialogue().await;
        let client = self.session.client();
        let listener = &self.listener.terms.listener.name;
        match ended {
            Ended::Closed => {}
            Ended::HungUp => event::hung_up(listener, client),
            Ended::Io(error) => event::io_failed(listener, client, &error),
            Ended::Handshake(error) => {
                self.listener.tls_failed(client, &error);
            }
            Ended::UnexpectedTls => {
                self.listener.count_rejection("protocol");
                match self.listener.terms.listener.tls {
                    TlsMode::Auto => event::late_tls(listener, client, self.listener.terms.listener.tls_wait),
                    _ => event::unexpected_tls(listener, client),
                }
            }
        }
    }

    async fn dialogue(&mut self) -> Result<Infallible, Ended> {
        let greeting = self.session.greeting();
        self.send(&greeting).await?;
        loop {
            let mut action = self.next_line().await?;
            while let Some(event) = self.carry_out(action).await? {
                action = self.session.handle(event, &self.listener.shared.policy());
            }
            self.incoming = None;
        }
    }

    /// Waits for the next line and gives it to the session.
    async fn next_line(&mut self) -> Result<Action, Ended> {
        let limits = &self.listener.terms.smtp;
        // For the whole line: a client that sends an octet now and then gets no longer.
        let deadline = self.ends.min(Instant::now() + limits.command_timeout);
        loop {
            let event = match self.lines.next(self.session.line_limit()) {
                Found::Line(line) => Some(Event::Line(line)),
                Found::TooLong => Some(Event::LineTooLong),
                Found::Incomplete => None,
            };
            if let Some(event) = event {
                self.fresh = false;
                return Ok(self.session.handle(event, &self.listener.shared.policy()));
            }
            if self.fresh && begins_tls(self.lines.unread()) {
                return Err(Ended::UnexpectedTls);
            }
            flush(&mut self.stream, &mut self.replies, limits.command_timeout).await?;
            let room = self.lines.room(COMMAND_READ_OCTETS);
            let read = tokio::select! {
                biased;
                () = self.stopping.cancelled() => return Ok(Action::Close(reply::SHUTTING_DOWN)),
                read = timeout_at(deadline, self.stream.read_buf(room)) => read,
            };
            match read {
                Ok(Ok(0)) => return Err(Ended::HungUp),
                Ok(Ok(_)) => self.listener.shared.break_if_asked(),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => return Ok(Action::Close(reply::TIMEOUT)),
            }
        }
    }

    /// Does what the session says, and tells what came of it where the session wants to know.
    async fn carry_out(&mut self, action: Action) -> Result<Option<Event<'static>>, Ended> {
        match action {
            Action::Reply(reply) => {
                self.note(&reply);
                reply.encode(&mut self.replies);
                // RFC 2920 §3.2: replies to commands that came together go together.
                if !self.lines.has_line() || self.replies.len() > MAX_BATCH_OCTETS {
                    self.flush().await?;
                    crash_point!("answered-250", if reply.text.starts_with("Ok: queued as"));
                }
                Ok(None)
            }
            Action::Close(reply) => Err(self.close(&reply).await),
            Action::StartTls(ready) => self.start_tls(&ready).await.map(|()| None),
            Action::Authenticate(credentials) => self.authenticate(credentials).await.map(Some),
            Action::ReceiveData(start) => self.receive_data(&start).await.map(Some),
            Action::Store(submission) => Ok(Some(self.store(*submission).await)),
        }
    }

    async fn start_tls(&mut self, ready: &Reply) -> Result<(), Ended> {
        if self.listener.tls.is_none() {
            return self.send(&reply::TLS_UNAVAILABLE).await;
        }
        // What came together with STARTTLS came in the clear, and would be taken for commands of the
        // encrypted session (the injection of CVE-2011-0411).
        let replayed = matches!(&self.stream, Stream::Plain(plain) if !plain.is_drained());
        if !self.lines.unread().is_empty() || replayed {
            return Err(self.close(&reply::PIPELINED_STARTTLS).await);
        }
        self.send(ready).await?;
        let Stream::Plain(plain) = std::mem::replace(&mut self.stream, Stream::Taken) else {
            // The session offers STARTTLS only without TLS.
            return Err(Ended::Closed);
        };
        self.stream = self
            .listener
            .secure(plain, self.session.client())
            .await
            .map_err(Ended::Handshake)?;
        self.session
            .tls_started(self.stream.tls_version().unwrap_or_default());
        Ok(())
    }

    async fn authenticate(&mut self, credentials: Credentials) -> Result<Event<'static>, Ended> {
        // The check takes a while; the client need not wait for earlier replies as well.
        self.flush().await?;
        let Credentials { account, proof } = credentials;
        let (client, shared) = (self.session.client(), &self.listener.shared);
        if shared.lockouts().is_locked(client, &account, now()) {
            return Ok(Event::Refused(reply::LOCKED_OUT));
        }
        let login = match shared.accounts() {
            None => Login::Unavailable,
            Some(accounts) => match proof {
                Proof::Password(password) => accounts.verify(&account, password, client).await,
                Proof::CramMd5 { challenge, digest } => {
                    accounts.verify_cram_md5(&account, challenge.as_bytes(), &digest, client)
                }
            },
        };
        // The guesses of many connections wait for their checks at once. The lock-out that the first of
        // them brought about is for all.
        if shared.lockouts().is_locked(client, &account, now()) {
            return Ok(Event::Refused(reply::LOCKED_OUT));
        }
        self.listener.count_login(&login);
        match login {
            Login::Accepted(_) => shared.lockouts().succeeded(client, &account),
            Login::Refused | Login::Unavailable => {
                let refused = login == Login::Refused;
                event::login_failed(&self.listener.terms.listener.name, client, &account, refused);
                if refused {
                    shared.lockouts().failed(client, &account, now());
                    self.failed_logins += 1;
                    // Guessing on one connection gets slower and slower.
                    let delay = self.listener.terms.smtp.auth_failure_delay * self.failed_logins;
                    tokio::select! {
                        () = tokio::time::sleep(delay) => {}
                        () = self.stopping.cancelled() => {}
                    }
                }
            }
        }
        Ok(Event::Authenticated(login))
    }

    /// Takes the mail data to its end, and keeps it in `incoming` until the session has judged it.
    async fn receive_data(&mut self, start: &Reply) -> Result<Event<'static>, Ended> {
        self.receiving = true;
        let (client, account) = (self.session.client(), self.session.account());
        let recipients = self.session.recipients();
        if !self
            .listener
            .shared
            .rates()
            .admit(client, account, recipients, now())
        {
            return Ok(Event::Refused(reply::TOO_FAST));
        }
        let mut incoming = match self.listener.shared.spool.incoming() {
            Ok(incoming) => incoming,
            // Instead of 354: the client need not send what cannot be stored.
            Err(error) => return Ok(self.not_stored(error)),
        };
        self.send(start).await?;

        let limits = &self.listener.terms.smtp;
        let begun = Instant::now();
        let deadline = begun + limits.message_timeout;
        let mut decoder = DataDecoder::default();
        let mut head = HeadCollector::default();
        let mut content = Vec::new();
        let mut size = 0u64;
        let mut received = 0;
        let mut discarding = None;
        // The data may begin in the same packet as the commands.
        let mut chunk = self.lines.take();
        loop {
            content.clear();
            let taken = decoder.feed(&chunk, |slice| content.extend_from_slice(slice));
            size += content.len() as u64;
            if size > limits.max_message_size && discarding.is_none() {
                discarding = Some(Discarding::TooLarge);
            }
            if discarding.is_none() && !content.is_empty() {
                head.push(&content);
                discarding = incoming.write(&content).await.err().map(Discarding::Spool);
            }
            if decoder.is_done() {
                self.lines.extend(&chunk[taken..]);
                break;
            }
            // A message that is too large is read to its end, to stay in step with the client. But
            // not for ever.
            if size > limits.max_message_size.saturating_mul(2) {
                return Err(self.close(&reply::too_large(limits)).await);
            }
            received += chunk.len() as u64;
            let elapsed = begun.elapsed();
            let due = elapsed.as_secs().saturating_mul(limits.min_data_rate as u64);
            if elapsed > limits.data_timeout && received < due {
                return Err(self.close(&reply::TOO_SLOW).await);
            }
            chunk.clear();
            chunk.reserve(DATA_READ_OCTETS);
            let until = deadline.min(Instant::now() + limits.data_timeout);
            match timeout_at(until, self.stream.read_buf(&mut chunk)).await {
                Ok(Ok(0)) => return Err(Ended::HungUp),
                Ok(Ok(_)) => self.listener.shared.break_if_asked(),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => return Err(self.close(&reply::TIMEOUT).await),
            }
        }
        Ok(match discarding {
            None => {
                let head = head.finish();
                self.incoming = Some(incoming);
                self.shown_as = head.as_ref().and_then(|it| it.shown_as.clone());
                self.has_message_id = head.as_ref().is_some_and(|it| it.message_id.is_some());
                Event::DataReceived { head, nonce: nonce() }
            }
            Some(Discarding::TooLarge) => Event::DataTooLarge,
            Some(Discarding::Spool(error)) => self.not_stored(error),
        })
    }

    async fn store(&mut self, submission: Submission) -> Event<'static> {
        let Some(mut incoming) = self.incoming.take() else {
            // Only mail data that is received leads here.
            return Event::Stored(Err(SpoolError::Broken("no content to store".to_owned())));
        };
        let size = incoming.size();
        let about = submission.clone();
        let window = if self.has_message_id {
            self.listener.terms.listener.merge_split
        } else {
            Duration::ZERO
        };
        // Those that are joined to it come on top.
        let more = if window.is_zero() { 0 } else { MAX_RECIPIENTS };
        match self
            .listener
            .shared
            .fit
            .check(&mut incoming, &submission, more)
            .await
        {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Event::Refused(reply::does_not_fit(&error, &about)),
            Err(error) => return self.not_stored(error),
        }
        crash_point!("final-dot");
        let stored = incoming.accept_within(submission, window).await;
        crash_point!("stored");
        match &stored {
            Ok(receipt) => event::accepted(&event::Accepted {
                id: &receipt.id(),
                origin: &about.origin,
                from: &about.envelope.reverse_path,
                recipients: about.envelope.recipients.len(),
                size,
                message_id: &about.message_id,
                route: &about.route,
                shown_as: self.shown_as.as_deref(),
                joined: receipt.is_joined(),
            }),
            Err(error) => self.log_not_stored(error),
        }
        Event::Stored(stored)
    }

    fn not_stored(&self, error: SpoolError) -> Event<'static> {
        self.log_not_stored(&error);
        Event::Stored(Err(error))
    }

    fn log_not_stored(&self, error: &SpoolError) {
        event::not_stored(&self.listener.terms.listener.name, self.session.client(), error);
    }

    /// Counts a reply and logs a refusal.
    fn note(&mut self, reply: &Reply) {
        if std::mem::take(&mut self.receiving) {
            self.listener.count_message(!reply.is_negative());
        }
        if reply.reason.is_empty() {
            return;
        }
        self.listener.count_rejection(reply.reason);
        let about = reply.about.as_deref();
        event::refused(&event::Refused {
            listener: &self.listener.terms.listener.name,
            client: self.session.client(),
            account: self.session.account(),
            from: about.and_then(|it| it.from.as_deref()),
            to: about.and_then(|it| it.to.as_deref()),
            rule: about.and_then(|it| it.rule.as_deref()),
            code: reply.code,
            enhanced: reply.enhanced,
            reason: reply.reason,
            text: &reply.text,
        });
    }

    async fn send(&mut self, reply: &Reply) -> Result<(), Ended> {
        reply.encode(&mut self.replies);
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), Ended> {
        let limit = self.listener.terms.smtp.command_timeout;
        flush(&mut self.stream, &mut self.replies, limit).await
    }

    /// Says a last word and hangs up.
    async fn close(&mut self, reply: &Reply) -> Ended {
        self.note(reply);
        reply.encode(&mut self.replies);
        let limit = LINGER.max(self.listener.terms.smtp.command_timeout.min(10 * LINGER));
        match flush(&mut self.stream, &mut self.replies, limit).await {
            Ok(()) => {
                hang_up(&mut self.stream).await;
                Ended::Closed
            }
            Err(ended) => ended,
        }
    }
}

/// Sends what waits, in one write. A client that does not read is not waited for for ever.
async fn flush<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut Stream<S>,
    replies: &mut Vec<u8>,
    limit: Duration,
) -> Result<(), Ended> {
    if replies.is_empty() {
        return Ok(());
    }
    let sending = async {
        stream.write_all(replies).await?;
        stream.flush().await
    };
    match timeout(limit, sending).await {
        Ok(sent) => sent?,
        Err(_) => return Err(Ended::Io(io::ErrorKind::TimedOut.into())),
    }
    replies.clear();
    if replies.capacity() > COMMAND_READ_OCTETS {
        // An idle connection does not keep the room that a burst needed.
        *replies = Vec::new();
    }
    Ok(())
}

/// Ends our side, and for a moment throws away what the client still sends.
pub(super) async fn hang_up<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    let drain = async {
        stream.shutdown().await?;
        let mut discarded = [0; 1024];
        while stream.read(&mut discarded).await? > 0 {}
        io::Result::Ok(())
    };
    // Whether the client hangs up first does not matter any more.
    let _ = timeout(LINGER, drain).await;
}

/// The time as the limits count it; a paused clock in a test is followed.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// A number that nobody can guess and that never comes twice.
pub(super) fn nonce() -> u128 {
    let mut octets = [0; 16];
    aws_lc_rs::rand::fill(&mut octets).expect("the operating system has random numbers");
    u128::from_be_bytes(octets)
}
