//! The certificates in use, and the watch over their ends.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::event;
use crate::identity::Tokens;
use crate::identity::expiry::{Expiring, UsedFor, Watch, Watched};
use crate::metrics::{CredentialLabel, ListenerLabel, Metrics};
use crate::notify::{About, Notifier};
use crate::smtp;

/// How often the ends of certificates are looked at. It costs nothing, and what a vault gave is seen
/// soon.
const INTERVAL: Duration = Duration::from_secs(60);

/// Every certificate in use.
pub(super) struct Certificates {
    smtp: smtp::Handle,
    tokens: Mutex<Tokens>,
    said: Mutex<Watch>,
    shown: watch::Sender<Vec<Watched>>,
    metrics: Arc<Metrics>,
    notifier: Notifier,
}

impl Certificates {
    pub(super) fn new(
        smtp: smtp::Handle,
        tokens: Tokens,
        metrics: Arc<Metrics>,
        notifier: Notifier,
    ) -> Certificates {
        Certificates {
            smtp,
            tokens: Mutex::new(tokens),
            said: Mutex::default(),
            shown: watch::Sender::default(),
            metrics,
            notifier,
        }
    }

    /// What is in use, for whoever shows it.
    pub(super) fn subscribe(&self) -> watch::Receiver<Vec<Watched>> {
        self.shown.subscribe()
    }

    /// Takes the application's new credentials, and looks at all certificates.
    pub(super) fn replace(&self, tokens: Tokens) {
        *self.tokens.lock().unwrap_or_else(PoisonError::into_inner) = tokens;
        self.look();
    }

    /// Looks again and again, until the stop.
    pub(super) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.look(),
                () = stop.cancelled() => return,
            }
        }
    }

    /// Shows what is in use, and tells of what is about to end.
    pub(super) fn look(&self) {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut certificates = tokens.certificates();
        for (listener, about) in self.smtp.certificates() {
            certificates.push(Watched {
                used_for: UsedFor::Listener(listener),
                subject: about.subject.clone(),
                thumbprint: about.thumbprint.clone(),
                not_after: about.not_after,
            });
        }
        self.meter(&certificates);
        let expiring = self
            .said
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .look(Timestamp::now(), &certificates);
        self.shown.send_replace(certificates);
        for it in expiring {
            tell(&it);
            self.notifier.tell(About::CertificateExpires { certificate: it });
        }
    }

    fn meter(&self, certificates: &[Watched]) {
        // A credential that is no longer configured is no longer shown.
        for credential in ["current", "next"] {
            let used_for = UsedFor::Application(credential.to_owned());
            if !certificates.iter().any(|it| it.used_for == used_for) {
                let credential = credential.to_owned();
                self.metrics
                    .credential_expiry_timestamp_seconds
                    .remove(&CredentialLabel { credential });
            }
        }
        for it in certificates {
            let end = it.not_after.as_second();
            match &it.used_for {
                UsedFor::Application(credential) => {
                    let label = CredentialLabel {
                        credential: credential.clone(),
                    };
                    self.metrics
                        .credential_expiry_timestamp_seconds
                        .get_or_create(&label)
                        .set(end);
                }
                UsedFor::Listener(name) => {
                    let label = ListenerLabel {
                        listener: name.clone(),
                    };
                    // Of several, the one that ends first.
                    let ends = certificates.iter().filter(|other| other.used_for == it.used_for);
                    let end = ends.map(|it| it.not_after.as_second()).min().unwrap_or(end);
                    self.metrics
                        .tls_certificate_expiry_timestamp_seconds
                        .get_or_create(&label)
                        .set(end);
                }
            }
        }
    }
}

/// Tells the operator of a certificate that is about to end.
fn tell(expiring: &Expiring) {
    event::certificate_expires(
        &expiring.uses(),
        &expiring.subject,
        &expiring.thumbprint,
        expiring.not_after,
        expiring.days_left,
    );
}
