use super::*;
use crate::config::{Listener, Pattern, SenderRule, Smtp};
use crate::envelope::HeaderFrom;
use crate::smtp::auth::Proof;

/// A whole dialogue in memory: what the client says, and what it hears.
struct Dialogue {
    session: Session,
    policy: Policy,
}

impl Dialogue {
    fn with(change: impl FnOnce(&mut Terms)) -> Dialogue {
        let mut terms = terms();
        change(&mut terms);
        let rule = SenderRule {
            name: "erp".into(),
            line: 1,
            addresses: vec![
                Pattern::Exact("erp@contoso.com".into()),
                Pattern::Domain("legacy.local".into()),
            ],
            mailbox: "service@contoso.com".into(),
            networks: vec![],
            accounts: vec![],
            header_from: HeaderFrom::Mailbox,
            save_to_sent_items: false,
            format: None,
            unknown: None,
        };
        Dialogue {
            session: Session::new(Arc::new(terms), "127.0.0.1".parse().expect("an address"), None),
            policy: Policy::new(vec![rule]),
        }
    }

    fn new() -> Dialogue {
        Dialogue::with(|_| {})
    }

    fn event(&mut self, event: Event<'_>) -> Action {
        self.session.handle(event, &self.policy)
    }

    fn line(&mut self, line: &str) -> Action {
        self.event(Event::Line(line.as_bytes()))
    }

    /// The code that answers; a close has a minus before it.
    fn say(&mut self, line: &str) -> i32 {
        code(&self.line(line))
    }

    #[track_caller]
    fn script(&mut self, script: &[(&str, i32)]) {
        for (line, want) in script {
            assert_eq!(self.say(line), *want, "{line}");
        }
    }

    fn data_ends(&mut self, head: Head) -> Action {
        self.event(Event::DataReceived {
            head: Some(head),
            nonce: 255,
        })
    }
}

fn code(action: &Action) -> i32 {
    match action {
        Action::Reply(reply) | Action::StartTls(reply) | Action::ReceiveData(reply) => i32::from(reply.code),
        Action::Close(reply) => -i32::from(reply.code),
        Action::Authenticate(_) => 0,
        Action::Store(_) => 1,
    }
}

fn text(action: &Action) -> String {
    match action {
        Action::Reply(reply) | Action::Close(reply) => reply.to_string(),
        other => panic!("{other:?}"),
    }
}

fn terms() -> Terms {
    Terms {
        listener: Listener {
            name: "test".into(),
            address: "127.0.0.1:0".parse().expect("an address"),
            socket: None,
            proxy_protocol_from: vec![],
            tls: TlsMode::None,
            certificates: Vec::new(),
            tls_profile: crate::config::TlsProfile::Modern,
            legacy_networks: Vec::new(),
            tls_wait: std::time::Duration::ZERO,
            networks: vec![],
            auth: Auth::None,
            cram_md5: false,
            plaintext_auth: vec!["127.0.0.0/8".parse().expect("a network")],
            merge_split: std::time::Duration::ZERO,
        },
        smtp: Smtp {
            hostname: "relay.example".into(),
            max_message_size: 1000,
            max_recipients: 3,
            max_connections: 10,
            max_connections_per_address: 10,
            max_messages_per_connection: 2,
            max_errors: 3,
            max_auth_failures: 3,
            ..Smtp::default()
        },
    }
}

fn head(from: &[&str]) -> Head {
    Head {
        from: from
            .iter()
            .map(|it| Address::parse(it).expect("an address"))
            .collect(),
        ..Head::default()
    }
}

#[test]
fn a_message() {
    let mut dialogue = Dialogue::new();
    dialogue.script(&[
        ("EHLO erp.contoso.com", 250),
        ("MAIL FROM:<erp@contoso.com> SIZE=1000", 250),
        ("RCPT TO:<A@b.example>", 250),
        ("RCPT TO:<c@d.example>", 250),
        ("RCPT TO:<a@B.example>", 250),
        ("DATA", 354),
    ]);
    let Action::Store(submission) = dialogue.data_ends(Head {
        hops: 100,
        ..head(&["x@legacy.local"])
    }) else {
        panic!("not stored")
    };
    let recipients: Vec<_> = submission
        .envelope
        .recipients
        .iter()
        .map(Address::as_str)
        .collect();
    assert_eq!(
        recipients,
        ["A@b.example", "c@d.example"],
        "each once, as it came first"
    );
    assert_eq!(submission.envelope.reverse_path.to_string(), "erp@contoso.com");
    assert_eq!(submission.route.mailbox, "service@contoso.com");
    assert_eq!(
        submission.message_id,
        "000000000000000000000000000000ff@contoso.com"
    );
    assert_eq!(
        (
            submission.origin.helo.as_str(),
            submission.origin.protocol.as_str()
        ),
        ("erp.contoso.com", "ESMTP")
    );
    assert_eq!(submission.origin.listener, "test");
}

#[test]
fn the_message_id_of_the_client_is_kept() {
    let mut dialogue = Dialogue::new();
    dialogue.script(&[
        ("HELO x", 250),
        ("MAIL FROM:<erp@contoso.com>", 250),
        ("RCPT TO:<a@b>", 250),
        ("DATA", 354),
    ]);
    let head = Head {
        message_id: Some("1@erp".into()),
        ..Head::default()
    };
    let Action::Store(submission) = dialogue.data_ends(head) else {
        panic!("not stored")
    };
    assert_eq!(
        (
            submission.message_id.as_str(),
            submission.origin.protocol.as_str()
        ),
        ("1@erp", "SMTP")
    );
}

#[test]
fn helo_has_no_extensions() {
    let mut dialogue = Dialogue::with(|it| it.listener.auth = Auth::Optional);
    assert_eq!(text(&dialogue.line("HELO RICOH-IMC2000")), "250 relay.example");
    assert!(text(&dialogue.line("EHLO x")).contains("250-SIZE 1000"));
}

#[test]
fn commands_out_of_their_place() {
    Dialogue::new().script(&[("MAIL FROM:<erp@contoso.com>", 503)]);
    Dialogue::new().script(&[
        ("NOOP", 250),
        ("RSET", 250),
        ("VRFY x", 252),
        ("HELP", 214),
        ("EHLO x", 250),
        ("RCPT TO:<a@b>", 503),
        ("MAIL FROM:<erp@contoso.com>", 250),
        ("MAIL FROM:<erp@contoso.com>", 503),
        // No recipients yet, so no data either, and the transaction survives.
        ("DATA", 554),
        ("RCPT TO:<a@b>", 250),
        ("DATA", 354),
    ]);
    // RSET, EHLO and HELO end a transaction.
    for reset in ["RSET", "EHLO y", "HELO y"] {
        Dialogue::new().script(&[
            ("EHLO x", 250),
            ("MAIL FROM:<erp@contoso.com>", 250),
            ("RCPT TO:<a@b>", 250),
            (reset, 250),
            ("DATA", 503),
            ("MAIL FROM:<erp@contoso.com>", 250),
        ]);
    }
    Dialogue::new().script(&[("QUIT", -221)]);
    Dialogue::new().script(&[("EHLO x", 250), ("EXPN list", 502), ("BDAT 10 LAST", -421)]);
}

#[test]
fn the_policy_is_asked_at_mail_and_at_the_end_of_data() {
    let mut dialogue = Dialogue::new();
    dialogue.say("EHLO x");
    let action = dialogue.line("MAIL FROM:<ceo@contoso.com>");
    assert!(text(&action).starts_with("550 5.7.1 This client may not send as ceo@contoso.com;"));
    dialogue.script(&[
        ("MAIL FROM:<>", 550),
        ("MAIL FROM:<erp@contoso.com>", 250),
        ("RCPT TO:<a@b>", 250),
        ("DATA", 354),
    ]);
    let action = dialogue.data_ends(head(&["erp@contoso.com", "ceo@contoso.com"]));
    assert!(text(&action).starts_with("550 5.7.1 This client may not send with ceo@contoso.com in the From"));
    // The transaction is over.
    assert_eq!(dialogue.say("DATA"), 503);
}

#[test]
fn after_any_failure_of_data_the_next_message_works() {
    let failures: [(fn() -> Event<'static>, i32); 6] = [
        (|| Event::Refused(reply::TOO_FAST), 450),
        (|| Event::DataTooLarge, 552),
        (|| Event::DataReceived { head: None, nonce: 0 }, 552),
        (
            || Event::DataReceived {
                head: Some(Head {
                    hops: 101,
                    ..Head::default()
                }),
                nonce: 0,
            },
            554,
        ),
        (|| Event::Stored(Err(SpoolError::Full("full".into()))), 452),
        (|| Event::Stored(Err(SpoolError::Broken("broken".into()))), 451),
    ];
    for (event, want) in failures {
        let mut dialogue = Dialogue::new();
        dialogue.say("EHLO x");
        let message = [
            ("MAIL FROM:<erp@contoso.com>", 250),
            ("RCPT TO:<a@b>", 250),
            ("DATA", 354),
        ];
        dialogue.script(&message);
        assert_eq!(code(&dialogue.event(event())), want);
        dialogue.script(&message);
    }
}

#[test]
fn sizes_recipients_and_messages_are_limited() {
    let mut dialogue = Dialogue::new();
    dialogue.script(&[
        ("EHLO x", 250),
        ("MAIL FROM:<erp@contoso.com> SIZE=1001", 552),
        ("MAIL FROM:<erp@contoso.com>", 250),
        ("RCPT TO:<printer>", 553),
        ("RCPT TO:<a@b>", 250),
        ("RCPT TO:<b@b>", 250),
        ("RCPT TO:<c@b>", 250),
        ("RCPT TO:<d@b>", 452),
        // One that is in already is no further one.
        ("RCPT TO:<A@B>", 250),
        ("DATA", 354),
    ]);
    dialogue.data_ends(Head::default());
    dialogue.script(&[
        ("MAIL FROM:<erp@contoso.com>", 250),
        ("RCPT TO:<a@b>", 250),
        ("DATA", 354),
    ]);
    dialogue.data_ends(Head::default());
    dialogue.script(&[("MAIL FROM:<erp@contoso.com>", -421)]);
}

#[test]
fn errors_are_budgeted() {
    Dialogue::new().script(&[
        ("X", 500),
        ("MAIL FROM:<a b>", 501),
        ("RCPT TO:<a@b>", 503),
        ("X", -421),
    ]);
    // What comes in one packet after a refused MAIL is one refusal, not many errors.
    let mut dialogue = Dialogue::new();
    dialogue.script(&[("EHLO x", 250), ("MAIL FROM:<no@b>", 550)]);
    for _ in 0..500 {
        dialogue.script(&[("RCPT TO:<a@b>", 503)]);
    }
    dialogue.script(&[("DATA", 503), ("MAIL FROM:<erp@contoso.com>", 250)]);
    let mut dialogue = Dialogue::new();
    for _ in 0..3 {
        assert_eq!(code(&dialogue.event(Event::LineTooLong)), 500);
    }
    assert_eq!(code(&dialogue.event(Event::LineTooLong)), -421);
}

#[test]
fn a_login_survives_rset_and_a_second_greeting() {
    let mut dialogue = Dialogue::with(|it| it.listener.auth = Auth::Required);
    dialogue.script(&[
        ("NOOP", 250),
        ("EHLO x", 250),
        ("MAIL FROM:<erp@contoso.com>", 530),
        ("AUTH LOGIN", 334),
        ("*", 501),
        ("HELO x", 250),
        ("AUTH login dXNlcg==", 334),
        ("cGFzcw==", 0),
    ]);
    assert_eq!(code(&dialogue.event(Event::Authenticated(Login::Refused))), 535);
    assert!(text(&dialogue.line("MAIL FROM:<erp@contoso.com>")).contains("the login failed"));
    dialogue.script(&[("AUTH PLAIN AHVzZXIAcGFzcw==", 0)]);
    assert_eq!(
        code(&dialogue.event(Event::Authenticated(Login::Accepted("user".into())))),
        235
    );
    dialogue.script(&[
        ("AUTH LOGIN", 503),
        ("RSET", 250),
        ("EHLO x", 250),
        ("MAIL FROM:<erp@contoso.com>", 250),
        ("RCPT TO:<a@b>", 250),
        ("DATA", 354),
    ]);
    let Action::Store(submission) = dialogue.data_ends(Head::default()) else {
        panic!("not stored")
    };
    assert_eq!(submission.origin.account.as_deref(), Some("user"));
    assert_eq!(submission.origin.protocol, "ESMTPA");
}

#[test]
fn failed_logins_are_budgeted() {
    let mut dialogue = Dialogue::with(|it| it.listener.auth = Auth::Optional);
    dialogue.say("EHLO x");
    for want in [535, 535, -421] {
        assert_eq!(dialogue.say("AUTH PLAIN AHVzZXIAcGFzcw=="), 0);
        assert_eq!(code(&dialogue.event(Event::Authenticated(Login::Refused))), want);
    }
}

#[test]
fn auth_where_it_is_not_for() {
    Dialogue::new().script(&[("EHLO x", 250), ("AUTH LOGIN", 502)]);
    let mut dialogue = Dialogue::with(|it| it.listener.auth = Auth::Optional);
    dialogue.script(&[("AUTH LOGIN", 503), ("EHLO x", 250), ("AUTH CRAM-MD5", 504)]);
    // No password without TLS, unless the network is named for it.
    let mut dialogue = Dialogue::with(|it| {
        it.listener.auth = Auth::Required;
        it.listener.tls = TlsMode::StartTls;
        it.listener.plaintext_auth = vec![];
    });
    let greeting = text(&dialogue.line("EHLO x"));
    assert!(
        greeting.contains("STARTTLS") && !greeting.contains("AUTH"),
        "{greeting}"
    );
    dialogue.script(&[("AUTH LOGIN", 538)]);
    assert!(text(&dialogue.line("MAIL FROM:<erp@contoso.com>")).contains("after STARTTLS"));
    dialogue.script(&[("STARTTLS", 220)]);
    dialogue.session.tls_started("TLSv1.3".into());
    let greeting = text(&dialogue.line("EHLO x"));
    assert!(
        !greeting.contains("STARTTLS") && greeting.contains("AUTH LOGIN PLAIN"),
        "{greeting}"
    );
    dialogue.script(&[("AUTH LOGIN", 334)]);
}

#[test]
fn cram_md5_needs_no_tls_and_asks_something_new_each_time() {
    let mut dialogue = Dialogue::with(|it| {
        it.listener.auth = Auth::Required;
        it.listener.plaintext_auth = vec![];
    });
    dialogue.session = dialogue.session.with_cram_md5(0xabc);
    let greeting = text(&dialogue.line("EHLO x"));
    assert!(
        greeting.ends_with("250-AUTH CRAM-MD5\r\n250 AUTH=CRAM-MD5"),
        "{greeting}"
    );
    dialogue.script(&[("AUTH LOGIN", 538)]);
    let first = text(&dialogue.line("AUTH CRAM-MD5"));
    dialogue.script(&[("*", 501)]);
    assert_ne!(text(&dialogue.line("AUTH CRAM-MD5")), first);
    let Action::Authenticate(credentials) = dialogue.line("dGltIGI5MTNhNjAyYzdlZGE3YTQ5NWI0ZTZlNzMzNGQzODkw")
    else {
        panic!("nothing to check")
    };
    let Proof::CramMd5 { challenge, .. } = credentials.proof else {
        panic!("no digest")
    };
    assert_eq!(challenge, "<abc.2@relay.example>");
}

#[test]
fn a_response_has_its_own_limit() {
    let mut dialogue = Dialogue::with(|it| it.listener.auth = Auth::Optional);
    dialogue.script(&[("EHLO x", 250)]);
    assert_eq!(dialogue.session.line_limit(), 2048);
    dialogue.script(&[("AUTH PLAIN", 334)]);
    assert_eq!(dialogue.session.line_limit(), 12_288);
    assert!(text(&dialogue.event(Event::LineTooLong)).starts_with("500 5.5.6"));
    // The exchange is over.
    dialogue.script(&[("NOOP", 250)]);
}

#[test]
fn tls_may_be_required_and_resets_the_dialogue() {
    let mut dialogue = Dialogue::with(|it| it.listener.tls = TlsMode::Required);
    dialogue.script(&[
        ("EHLO x", 250),
        ("MAIL FROM:<erp@contoso.com>", 530),
        ("NOOP", 250),
        ("STARTTLS", 220),
    ]);
    dialogue.session.tls_started("TLSv1.3".into());
    // The greeting is forgotten.
    dialogue.script(&[
        ("MAIL FROM:<erp@contoso.com>", 503),
        ("EHLO x", 250),
        ("STARTTLS", 503),
        ("MAIL FROM:<erp@contoso.com>", 250),
        ("RCPT TO:<a@b>", 250),
        ("DATA", 354),
    ]);
    let Action::Store(submission) = dialogue.data_ends(Head::default()) else {
        panic!("not stored")
    };
    assert_eq!(submission.origin.protocol, "ESMTPS");
    Dialogue::new().script(&[("STARTTLS", 502)]);
}

#[test]
fn http_is_sent_away() {
    Dialogue::new().script(&[("GET / HTTP/1.1", -500)]);
}

#[test]
fn refusals_say_to_the_log_whom_they_concern() {
    let mut dialogue = Dialogue::new();
    dialogue.say("EHLO x");
    let Action::Reply(reply) = dialogue.line("MAIL FROM:<ceo@contoso.com>") else {
        panic!("no reply")
    };
    assert_eq!(
        (reply.reason, reply.about.expect("about").from.as_deref()),
        ("sender", Some("ceo@contoso.com"))
    );
    dialogue.say("MAIL FROM:<erp@contoso.com>");
    let Action::Reply(reply) = dialogue.line("RCPT TO:<printer>") else {
        panic!("no reply")
    };
    let about = reply.about.expect("about");
    assert_eq!(
        (about.from.as_deref(), about.to.as_deref()),
        (Some("erp@contoso.com"), Some("printer"))
    );
}

/// Whatever comes in whatever order: no panic, and no message without a recipient.
#[test]
fn any_order_of_events() {
    let lines = [
        "EHLO x",
        "HELO",
        "MAIL FROM:<erp@contoso.com>",
        "MAIL FROM:<no@b>",
        "RCPT TO:<a@b>",
        "RCPT TO:<x>",
        "DATA",
        "RSET",
        "AUTH LOGIN",
        "AUTH PLAIN AHVzZXIAcGFzcw==",
        "*",
        "dXNlcg==",
        "STARTTLS",
        "X",
    ];
    let mut seed = 1u64;
    let mut next = |below: usize| {
        // A small generator suffices: what matters is that every run is the same.
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let mut stored = 0;
    for _ in 0..3000 {
        let mut dialogue = Dialogue::with(|it| {
            it.listener.auth = Auth::Optional;
            it.listener.tls = TlsMode::StartTls;
            it.smtp.max_errors = 100;
        });
        let mut action = dialogue.line("EHLO x");
        for _ in 0..60 {
            action = match action {
                Action::Reply(_) => match next(20) {
                    0 => dialogue.event(Event::LineTooLong),
                    // Events that no connection would send now.
                    1 => dialogue.event(Event::DataTooLarge),
                    2 => dialogue.data_ends(Head::default()),
                    it => dialogue.line(lines[(it - 3 + next(14)) % lines.len()]),
                },
                Action::Close(_) => break,
                Action::StartTls(_) => {
                    dialogue.session.tls_started("TLSv1.3".into());
                    dialogue.line("EHLO x")
                }
                Action::Authenticate(_) => dialogue.event(Event::Authenticated(match next(3) {
                    0 => Login::Accepted("user".into()),
                    1 => Login::Refused,
                    _ => Login::Unavailable,
                })),
                Action::ReceiveData(_) => dialogue.data_ends(Head {
                    hops: next(110),
                    ..Head::default()
                }),
                Action::Store(submission) => {
                    stored += 1;
                    assert!(!submission.envelope.recipients.is_empty());
                    assert_eq!(submission.route.rule, "erp");
                    dialogue.event(Event::Stored(Err(SpoolError::Full(String::new()))))
                }
            };
        }
    }
    assert!(stored > 100, "{stored}");
}
