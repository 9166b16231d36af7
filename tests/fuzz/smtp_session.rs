//! Whatever a client says in whatever order, and whatever becomes of it: the dialogue does not panic, is
//! not let past its rules, and comes to an end.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use graphpost::accounts::Login;
use graphpost::address::Address;
use graphpost::config::{Auth, Config, Environment, Files, TlsMode};
use graphpost::message::HeadCollector;
use graphpost::policy::{Client, Policy};
use graphpost::smtp::data::DataDecoder;
use graphpost::smtp::lines::{Found, Lines};
use graphpost::smtp::reply::{Reply, TOO_FAST};
use graphpost::smtp::session::{Action, Event, Session, Terms};
use graphpost::spool::{SpoolError, Submission};

use super::smtp_command::wire;

/// Who asks.
const CLIENT: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// The shipped configuration, for a listener that has everything.
fn shipped() -> &'static Config {
    static SHIPPED: OnceLock<Config> = OnceLock::new();
    SHIPPED.get_or_init(|| {
        let mut root = Path::new(env!("CARGO_MANIFEST_DIR"));
        if root.ends_with("fuzz") {
            root = root.parent().expect("fuzz/ is in the repository");
        }
        let file = root.join("config/graphpost.toml");
        Config::load_with(&file, &Environment::default(), Files::Named).expect("the shipped file is right")
    })
}

/// A connection without a socket.
struct Conversation<'a> {
    session: Session,
    terms: Arc<Terms>,
    policy: Policy,
    lines: Lines,
    /// Decides what becomes of logins and mail data.
    fates: &'a [u8],
    logged_in: bool,
    tls: bool,
}

/// Holds a conversation: the last four octets of `data` choose the listener and the fates, the rest is
/// what the client sends.
pub fn check(data: &[u8]) {
    let Some((sent, choices)) = data.split_last_chunk::<4>() else {
        return;
    };
    let config = shipped();
    let mut listener = config.listeners[0].clone();
    listener.auth = [Auth::None, Auth::Optional, Auth::Required][usize::from(choices[0] & 3) % 3];
    listener.tls =
        [TlsMode::None, TlsMode::StartTls, TlsMode::Required][usize::from(choices[0] >> 2 & 3) % 3];
    listener.cram_md5 = choices[0] & 16 != 0;
    if choices[0] & 32 != 0 {
        listener.plaintext_auth.clear();
    }
    let mut smtp = config.smtp.clone();
    (
        smtp.max_message_size,
        smtp.max_recipients,
        smtp.max_messages_per_connection,
    ) = (2000, 5, 3);
    let cram_md5 = listener.cram_md5;
    let terms = Arc::new(Terms { listener, smtp });
    let mut session = Session::new(Arc::clone(&terms), CLIENT, None);
    if cram_md5 {
        session = session.with_cram_md5(7);
    }
    wire(&session.greeting());
    let mut lines = Lines::default();
    lines.extend(sent);
    Conversation {
        session,
        terms,
        policy: Policy::new(config.senders.clone()),
        lines,
        fates: &choices[1..],
        logged_in: false,
        tls: false,
    }
    .hold();
}

impl Conversation<'_> {
    fn hold(&mut self) {
        loop {
            let event = match self.lines.next(self.session.line_limit()) {
                Found::Incomplete => return,
                Found::TooLong => Event::LineTooLong,
                Found::Line(line) => Event::Line(line),
            };
            let mut action = self.session.handle(event, &self.policy);
            loop {
                let event = match action {
                    Action::Reply(reply) => {
                        wire(&reply);
                        assert_ne!(reply.code, 421, "421 is the end");
                        break;
                    }
                    Action::Close(reply) => return wire(&reply),
                    Action::StartTls(reply) => {
                        assert!(self.terms.listener.tls != TlsMode::None && !self.tls && reply.code == 220);
                        self.session.tls_started("TLSv1.3".to_owned());
                        (self.tls, self.logged_in) = (true, false);
                        break;
                    }
                    Action::Authenticate(credentials) => self.login(&credentials.account),
                    Action::ReceiveData(start) => match self.receive(&start) {
                        Some(event) => event,
                        // The client has hung up.
                        None => return,
                    },
                    Action::Store(submission) => self.store(*submission),
                };
                action = self.session.handle(event, &self.policy);
            }
            assert_eq!(self.session.account().is_some(), self.logged_in);
        }
    }

    /// What becomes of the next login or message; 0 when the choices are used up.
    fn fate(&mut self) -> u8 {
        self.fates.split_off_first().copied().unwrap_or(0)
    }

    fn login(&mut self, account: &str) -> Event<'static> {
        assert!(self.terms.listener.auth != Auth::None && !self.logged_in);
        match self.fate() & 3 {
            0 => Event::Authenticated(Login::Refused),
            1 => Event::Authenticated(Login::Unavailable),
            _ => {
                self.logged_in = true;
                Event::Authenticated(Login::Accepted(account.to_lowercase()))
            }
        }
    }

    fn receive(&mut self, start: &Reply) -> Option<Event<'static>> {
        assert_eq!(start.code, 354);
        assert!((1..=5).contains(&self.session.recipients()));
        self.may_send();
        if self.fate() & 7 == 7 {
            return Some(Event::Refused(TOO_FAST));
        }
        let (mut decoder, mut head, mut size) = (DataDecoder::default(), HeadCollector::default(), 0);
        let data = self.lines.take();
        let taken = decoder.feed(&data, |slice| {
            head.push(slice);
            size += slice.len() as u64;
        });
        if !decoder.is_done() {
            return None;
        }
        self.lines.extend(&data[taken..]);
        if size > self.terms.smtp.max_message_size {
            return Some(Event::DataTooLarge);
        }
        Some(Event::DataReceived {
            head: head.finish(),
            nonce: 9,
        })
    }

    /// What must be so before any mail is taken.
    fn may_send(&self) {
        assert!(self.terms.listener.tls != TlsMode::Required || self.tls);
        assert!(self.terms.listener.auth != Auth::Required || self.logged_in);
    }

    fn store(&mut self, submission: Submission) -> Event<'static> {
        self.may_send();
        let Submission {
            envelope,
            route,
            message_id,
            ..
        } = submission;
        assert!((1..=5).contains(&envelope.recipients.len()));
        assert!(
            envelope
                .recipients
                .iter()
                .all(|it| Address::parse(it.as_str()).is_ok())
        );
        assert!(!message_id.contains(['\r', '\n', '\0']), "{message_id:?}");
        // The sender is one that the policy permits, and to this rule.
        let client = Client {
            address: CLIENT,
            account: self.session.account(),
        };
        let rule = self
            .policy
            .rule(client, &envelope.reverse_path)
            .expect("a rule permits it");
        assert_eq!(rule.name, route.rule);
        Event::Stored(Err(match self.fate() & 1 {
            0 => SpoolError::Full(String::new()),
            _ => SpoolError::Broken(String::new()),
        }))
    }
}
