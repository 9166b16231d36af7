//! What is our own fault ends one session and no other.

#![cfg(debug_assertions)]

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span;

use crate::relay::{Relay, Settings};

/// Keeps what is logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl Visit for Log {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0.lock().unwrap(), "{field}={value:?} ").unwrap();
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "graphpost"
    }

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut self.clone());
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[tokio::test]
async fn a_panic_in_a_session_is_noticed_by_no_other() {
    let log = Log::default();
    let _logging = tracing::subscriber::set_default(log.clone());
    let relay = Relay::start(&Settings::default()).await;
    let mut honest = relay.connect().await;
    honest.reply().await;
    honest.expect("EHLO x", "250").await;
    honest.expect("MAIL FROM:<erp@contoso.com>", "250").await;

    // One between two commands, one in the middle of mail data.
    for in_data in [false, true] {
        let mut broken = relay.connect().await;
        broken.reply().await;
        broken.expect("EHLO x", "250").await;
        broken.expect("MAIL FROM:<erp@contoso.com>", "250").await;
        broken.expect("RCPT TO:<a@b.example>", "250").await;
        if in_data {
            broken.expect("DATA", "354").await;
        }
        relay.handle.break_next_session();
        broken.send("Subject: x\r\n").await;
        assert!(broken.hung_up().await);
    }

    honest.expect("RCPT TO:<a@b.example>", "250").await;
    honest.expect("DATA", "354").await;
    honest.expect("Subject: whole\r\n\r\nx\r\n.", "250").await;
    let mut next = relay.connect().await;
    assert!(next.reply().await.starts_with("220"));

    assert_eq!(relay.queue().await.len(), 1);
    // Its place is given back, and its session is not counted as open.
    assert_eq!(relay.metric("graphpost_smtp_sessions{listener=\"test\"}"), 2);
    let log = log.0.lock().unwrap();
    assert_eq!(log.matches("a session breaks").count(), 2, "{log}");
    assert!(log.contains("SMTP session"), "{log}");
}
