//! One client's dialogue, from greeting to QUIT, without the socket.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::accounts::Login;
use crate::address::Address;
use crate::config::{self, Auth, TlsMode};
use crate::envelope::{Envelope, Origin, ReversePath, Route};
use crate::message::Head;
use crate::policy::{Client, Policy};
use crate::smtp::auth::{self, Credentials, Exchange, Mechanism, Step};
use crate::smtp::command::{self, Command};
use crate::smtp::reply::{self, About, Offer, Reply};
use crate::spool::{Receipt, SpoolError, Submission};

/// What a listener offers and limits.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The listener's own settings.
    pub listener: config::Listener,
    /// What holds for all listeners.
    pub smtp: config::Smtp,
}

/// One client's dialogue. The connection feeds it [`Event`]s and carries out the [`Action`] that
/// each returns. It does no I/O, asks no clock and no dice, so a test, or a fuzzer, can hold the
/// whole conversation in memory.
#[derive(Debug)]
pub struct Session {
    terms: Arc<Terms>,
    client: IpAddr,
    tls: Option<String>,
    greeting: Option<Greeting>,
    account: Option<String>,
    exchange: Option<Exchange>,
    transaction: Option<Transaction>,
    /// The last MAIL was refused, so the RCPT and DATA that came with it in one packet are no
    /// errors of their own.
    mail_refused: bool,
    errors: usize,
    failed_logins: usize,
    messages: usize,
    /// Where CRAM-MD5 is offered: what makes its challenges unlike all others, and how many there
    /// have been.
    cram_md5: Option<(u128, u32)>,
}

/// HELO or EHLO, and the name that came with it.
#[derive(Debug)]
struct Greeting {
    extended: bool,
    name: String,
}

/// A mail transaction: what MAIL and RCPT have said so far (RFC 5321 §3.3).
#[derive(Debug)]
struct Transaction {
    reverse_path: ReversePath,
    route: Route,
    recipients: Vec<Address>,
    /// The same addresses, to find those that come twice.
    known: HashSet<Address>,
}

/// What happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A line came, without its line end.
    Line(&'a [u8]),
    /// A line came that was longer than [`Session::line_limit`]; it is consumed.
    LineTooLong,
    /// The answer to [`Action::Authenticate`].
    Authenticated(Login),
    /// What the session asked for was not done, because a limit over many connections forbids it.
    Refused(Reply),
    /// The mail data came to its end, within the limits.
    DataReceived {
        /// Its header section; `None` where that is larger than is looked at.
        head: Option<Head>,
        /// A number that nobody can guess and that never comes twice.
        nonce: u128,
    },
    /// The mail data came to its end, and was larger than the limit.
    DataTooLarge,
    /// The answer to [`Action::Store`]; or, instead of [`Event::DataReceived`], why there was
    /// nothing to store.
    Stored(Result<Receipt, SpoolError>),
}

/// What to do about it.
#[derive(Debug)]
pub enum Action {
    /// Send this, and wait for the next line.
    Reply(Reply),
    /// Send this, and hang up.
    Close(Reply),
    /// Send this, start TLS, and say so with [`Session::tls_started`].
    StartTls(Reply),
    /// Check these, and report [`Event::Authenticated`].
    Authenticate(Credentials),
    /// Send this, and read mail data up to its end.
    ReceiveData(Reply),
    /// Make the message durable, and report [`Event::Stored`].
    Store(Box<Submission>),
}

impl Session {
    /// A new dialogue with `client`; `tls` is the TLS version where TLS came first.
    pub fn new(terms: Arc<Terms>, client: IpAddr, tls: Option<String>) -> Session {
        Session {
            terms,
            client,
            tls,
            greeting: None,
            account: None,
            exchange: None,
            transaction: None,
            mail_refused: false,
            errors: 0,
            failed_logins: 0,
            messages: 0,
            cram_md5: None,
        }
    }

    /// The same, with CRAM-MD5 offered. The nonce is a number that nobody can guess and that never
    /// comes twice.
    pub fn with_cram_md5(self, nonce: u128) -> Session {
        Session {
            cram_md5: Some((nonce, 0)),
            ..self
        }
    }

    /// What the server says first.
    pub fn greeting(&self) -> Reply {
        reply::greeting(&self.terms.smtp.hostname)
    }

    /// STARTTLS is done. What the client said before it cannot be trusted and is forgotten
    /// (RFC 3207 §4.2).
    pub fn tls_started(&mut self, version: String) {
        self.tls = Some(version);
        self.greeting = None;
        self.account = None;
        self.transaction = None;
        self.mail_refused = false;
    }

    /// The longest line that may come next, in octets without its line end.
    pub fn line_limit(&self) -> usize {
        match self.exchange {
            Some(_) => auth::MAX_LINE_OCTETS,
            None => command::MAX_LINE_OCTETS,
        }
    }

    /// The client's address.
    pub fn client(&self) -> IpAddr {
        self.client
    }

    /// How many recipients the message under way has.
    pub fn recipients(&self) -> usize {
        self.transaction.as_ref().map_or(0, |it| it.recipients.len())
    }

    /// The account the client has logged in as.
    pub fn account(&self) -> Option<&str> {
        self.account.as_deref()
    }

    /// Takes an event and says what to do.
    pub fn handle(&mut self, event: Event<'_>, policy: &Policy) -> Action {
        let result = match event {
            Event::Line(line) => self.line(line, policy),
            Event::LineTooLong => Err(match self.exchange.take() {
                Some(_) => reply::RESPONSE_TOO_LONG,
                None => reply::LINE_TOO_LONG,
            }),
            Event::Authenticated(login) => self.authenticated(login),
            Event::Refused(refusal) => {
                self.transaction = None;
                Err(refusal)
            }
            Event::DataReceived { head, nonce } => self.data_received(head, nonce, policy),
            Event::DataTooLarge => Err(self.data_too_large()),
            Event::Stored(stored) => self.stored(stored),
        };
        result.unwrap_or_else(|refusal| self.refuse(refusal))
    }

    fn refuse(&mut self, refusal: Reply) -> Action {
        // Only what no working client does is counted. A refused sender or recipient is ordinary.
        let echo = self.mail_refused && refusal == reply::MAIL_FIRST;
        if matches!(refusal.code, 500..=504 | 555) && !echo {
            self.errors += 1;
            if self.errors > self.terms.smtp.max_errors {
                return Action::Close(reply::TOO_MANY_ERRORS);
            }
        }
        if refusal.code == 421 || refusal == reply::NOT_HTTP {
            return Action::Close(refusal);
        }
        Action::Reply(refusal)
    }

    fn line(&mut self, line: &[u8], policy: &Policy) -> Result<Action, Reply> {
        if let Some(exchange) = self.exchange.take() {
            return exchange.respond(line).map(|step| self.step(step));
        }
        if self.greeting.is_none() && command::is_http(line) {
            return Err(reply::NOT_HTTP);
        }
        match Command::parse(line)? {
            Command::Helo(name) => Ok(self.helo(name)),
            Command::Ehlo(name) => Ok(self.ehlo(name)),
            Command::Mail { reverse_path, size } => {
                let result = self.mail(reverse_path, size, policy);
                self.mail_refused = result.is_err();
                result
            }
            Command::Rcpt(recipient) => self.rcpt(recipient),
            Command::Data => self.data(),
            Command::Rset => {
                self.transaction = None;
                self.mail_refused = false;
                Ok(Action::Reply(reply::OK))
            }
            Command::Noop => Ok(Action::Reply(reply::OK)),
            Command::Quit => Ok(Action::Close(reply::CLOSING)),
            Command::Vrfy => Ok(Action::Reply(reply::CANNOT_VERIFY)),
            Command::Help => Ok(Action::Reply(reply::HELP)),
            Command::Expn => Err(reply::NOT_IMPLEMENTED),
            // What follows BDAT is content. To read on would be to take it for commands.
            Command::Bdat => Err(reply::NO_CHUNKING),
            Command::StartTls => self.starttls(),
            Command::Auth { mechanism, initial } => {
                self.auth_permitted(mechanism)?;
                Exchange::begin(mechanism, initial, || self.challenge()).map(|step| self.step(step))
            }
        }
    }

    fn helo(&mut self, name: String) -> Action {
        self.greet(false, name);
        Action::Reply(reply::helo(&self.terms.smtp.hostname))
    }

    fn ehlo(&mut self, name: String) -> Action {
        self.greet(true, name);
        let offer = Offer {
            max_message_size: self.terms.smtp.max_message_size,
            starttls: self.starttls_offered(),
            password: self.terms.listener.auth != Auth::None && self.password_permitted(),
            cram_md5: self.terms.listener.auth != Auth::None && self.cram_md5.is_some(),
        };
        Action::Reply(reply::ehlo(&self.terms.smtp.hostname, offer))
    }

    /// RFC 5321 §4.1.4: a second greeting clears the transaction. It does not undo a login: clients
    /// that greet again after AUTH go on to MAIL.
    fn greet(&mut self, extended: bool, name: String) {
        self.greeting = Some(Greeting { extended, name });
        self.transaction = None;
        self.mail_refused = false;
    }

    fn mail(
        &mut self,
        reverse_path: ReversePath,
        size: Option<u64>,
        policy: &Policy,
    ) -> Result<Action, Reply> {
        if self.greeting.is_none() {
            return Err(reply::GREET_FIRST);
        }
        self.tls_and_login_present()?;
        if self.transaction.is_some() {
            return Err(reply::BAD_SEQUENCE);
        }
        if self.messages >= self.terms.smtp.max_messages_per_connection {
            return Err(reply::TOO_MANY_MESSAGES);
        }
        // RFC 1870 §6.1: a size known beforehand is refused beforehand.
        if size.is_some_and(|size| size > self.terms.smtp.max_message_size) {
            return Err(reply::too_large(&self.terms.smtp).about(about_sender(&reverse_path)));
        }
        let route = policy
            .envelope(self.policy_client(), &reverse_path)
            .map_err(|it| reply::not_permitted(&it))?;
        self.transaction = Some(Transaction {
            reverse_path,
            route,
            recipients: Vec::new(),
            known: HashSet::new(),
        });
        Ok(Action::Reply(reply::SENDER_OK))
    }

    fn tls_and_login_present(&self) -> Result<(), Reply> {
        if self.terms.listener.tls == TlsMode::Required && self.tls.is_none() {
            return Err(reply::TLS_REQUIRED);
        }
        if self.terms.listener.auth == Auth::Required && self.account.is_none() {
            // .NET's SmtpClient goes on after 535, and shows its user only this reply.
            return Err(if self.failed_logins > 0 {
                reply::AUTHENTICATION_REQUIRED.with_text(
                    "Authentication required, and the login failed: wrong account name or password",
                )
            } else if !self.password_permitted() && self.cram_md5.is_none() {
                reply::AUTHENTICATION_REQUIRED.with_text("Authentication required, after STARTTLS")
            } else {
                reply::AUTHENTICATION_REQUIRED
            });
        }
        Ok(())
    }

    fn rcpt(&mut self, recipient: Address) -> Result<Action, Reply> {
        let transaction = self.transaction.as_mut().ok_or(reply::MAIL_FIRST)?;
        let about = |recipient: &Address, transaction: &Transaction| About {
            to: Some(recipient.to_string()),
            ..about_sender(&transaction.reverse_path)
        };
        if recipient.domain().is_none() {
            return Err(reply::RECIPIENT_WITHOUT_DOMAIN.about(about(&recipient, transaction)));
        }
        if !transaction.known.contains(&recipient) {
            if transaction.recipients.len() >= self.terms.smtp.max_recipients {
                return Err(reply::TOO_MANY_RECIPIENTS.about(about(&recipient, transaction)));
            }
            transaction.known.insert(recipient.clone());
            transaction.recipients.push(recipient);
        }
        Ok(Action::Reply(reply::RECIPIENT_OK))
    }

    fn data(&mut self) -> Result<Action, Reply> {
        let transaction = self.transaction.as_ref().ok_or(reply::MAIL_FIRST)?;
        if transaction.recipients.is_empty() {
            return Err(reply::NO_RECIPIENTS.about(about_sender(&transaction.reverse_path)));
        }
        self.messages += 1;
        Ok(Action::ReceiveData(reply::START_MAIL_INPUT))
    }

    /// Whatever becomes of the data, the transaction is over (RFC 5321 §4.1.1.4).
    fn data_received(&mut self, head: Option<Head>, nonce: u128, policy: &Policy) -> Result<Action, Reply> {
        let transaction = self
            .transaction
            .take()
            .filter(|it| !it.recipients.is_empty())
            .ok_or(reply::BAD_SEQUENCE)?;
        let about = || About {
            rule: Some(transaction.route.rule.clone()),
            ..about_sender(&transaction.reverse_path)
        };
        let head = head.ok_or_else(|| reply::HEADER_TOO_LARGE.about(about()))?;
        // RFC 5321 §6.3.
        if head.hops > self.terms.smtp.max_hops {
            return Err(reply::LOOP.about(about()));
        }
        policy
            .header(self.policy_client(), &transaction.route, &head)
            .map_err(|it| reply::not_permitted(&it))?;

        let message_id = head.message_id.unwrap_or_else(|| {
            let sender = transaction.reverse_path.0.as_ref().and_then(Address::domain);
            let mailbox = transaction
                .route
                .mailbox
                .rsplit_once('@')
                .map(|(_, domain)| domain);
            let domain = sender.or(mailbox).unwrap_or(&self.terms.smtp.hostname);
            format!("{nonce:032x}@{domain}")
        });
        Ok(Action::Store(Box::new(Submission {
            envelope: Envelope {
                reverse_path: transaction.reverse_path,
                recipients: transaction.recipients,
            },
            origin: self.origin(),
            route: transaction.route,
            message_id,
        })))
    }

    fn data_too_large(&mut self) -> Reply {
        let refusal = reply::too_large(&self.terms.smtp);
        match self.transaction.take() {
            Some(transaction) => refusal.about(about_sender(&transaction.reverse_path)),
            None => refusal,
        }
    }

    fn stored(&mut self, stored: Result<Receipt, SpoolError>) -> Result<Action, Reply> {
        self.transaction = None;
        match stored {
            Ok(receipt) => {
                self.errors = 0;
                Ok(Action::Reply(reply::queued(&receipt)))
            }
            Err(SpoolError::Full(_)) => Err(reply::SPOOL_FULL),
            Err(_) => Err(reply::SPOOL_BROKEN),
        }
    }

    fn origin(&self) -> Origin {
        let extended = self.greeting.as_ref().is_some_and(|it| it.extended);
        // RFC 3848. For HELO there are no such words.
        let protocol = match (extended, &self.tls, &self.account) {
            (false, _, _) => "SMTP",
            (true, None, None) => "ESMTP",
            (true, Some(_), None) => "ESMTPS",
            (true, None, Some(_)) => "ESMTPA",
            (true, Some(_), Some(_)) => "ESMTPSA",
        };
        Origin {
            client: self.client,
            helo: self
                .greeting
                .as_ref()
                .map(|it| it.name.clone())
                .unwrap_or_default(),
            account: self.account.clone(),
            listener: self.terms.listener.name.clone(),
            tls: self.tls.clone(),
            protocol: protocol.to_owned(),
        }
    }

    fn starttls_offered(&self) -> bool {
        self.tls.is_none()
            && matches!(
                self.terms.listener.tls,
                TlsMode::StartTls | TlsMode::Required | TlsMode::Auto
            )
    }

    fn starttls(&mut self) -> Result<Action, Reply> {
        if self.tls.is_some() {
            return Err(reply::BAD_SEQUENCE);
        }
        if !self.starttls_offered() {
            return Err(reply::NOT_IMPLEMENTED);
        }
        Ok(Action::StartTls(reply::READY_FOR_TLS))
    }

    /// Whether a password may be sent here: under TLS, or from a network that is named for it.
    fn password_permitted(&self) -> bool {
        self.tls.is_some()
            || self
                .terms
                .listener
                .plaintext_auth
                .iter()
                .any(|it| it.contains(&self.client))
    }

    /// What CRAM-MD5 asks: in the form of a Message-ID (RFC 2195 §2).
    fn challenge(&mut self) -> String {
        let (nonce, count) = self.cram_md5.get_or_insert((0, 0));
        *count += 1;
        format!("<{nonce:x}.{count}@{}>", self.terms.smtp.hostname)
    }

    fn auth_permitted(&self, mechanism: Mechanism) -> Result<(), Reply> {
        if self.terms.listener.auth == Auth::None {
            return Err(reply::NOT_IMPLEMENTED);
        }
        if mechanism == Mechanism::CramMd5 {
            if self.cram_md5.is_none() {
                return Err(reply::UNKNOWN_MECHANISM);
            }
        } else if !self.password_permitted() {
            return Err(reply::ENCRYPTION_REQUIRED);
        }
        if self.greeting.is_none() {
            return Err(reply::GREET_FIRST);
        }
        // RFC 4954 §4: once, and not during a transaction.
        if self.account.is_some() || self.transaction.is_some() {
            return Err(reply::BAD_SEQUENCE);
        }
        Ok(())
    }

    fn step(&mut self, step: Step) -> Action {
        match step {
            Step::Challenge(challenge, exchange) => {
                self.exchange = Some(exchange);
                Action::Reply(challenge)
            }
            Step::Check(credentials) => Action::Authenticate(credentials),
        }
    }

    fn authenticated(&mut self, login: Login) -> Result<Action, Reply> {
        match login {
            Login::Accepted(account) => {
                self.account = Some(account);
                self.failed_logins = 0;
                Ok(Action::Reply(reply::AUTHENTICATED))
            }
            Login::Refused => {
                self.failed_logins += 1;
                Err(if self.failed_logins >= self.terms.smtp.max_auth_failures {
                    reply::TOO_MANY_LOGINS
                } else {
                    reply::BAD_CREDENTIALS
                })
            }
            Login::Unavailable => Err(reply::LOGIN_UNAVAILABLE),
        }
    }

    fn policy_client(&self) -> Client<'_> {
        Client {
            address: self.client,
            account: self.account.as_deref(),
        }
    }
}

fn about_sender(reverse_path: &ReversePath) -> About {
    About {
        from: Some(reverse_path.to_string()),
        ..About::default()
    }
}

#[cfg(test)]
mod tests;
