//! TLS on the connections of a listener: who begins it, who still needs old versions of it, and the
//! certificates while they are replaced.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::{self, Config, TlsMode};
use crate::event;
use crate::identity::credential::CredentialError;
use crate::metrics::{ListenerLabel, TlsLabel};
use crate::smtp::listener::{Handle, Listener};
use crate::smtp::tls::client_hello::begins_tls;
use crate::smtp::tls::devices::{Device, Seen};
use crate::smtp::tls::{self, HandshakeError, Replay, Stream, Tls};

/// What is read before it is known whether a client begins with TLS.
const FIRST_OCTETS: usize = 1024;

/// Certificates that could not be used, and when that was said.
pub(super) struct Complaint {
    text: String,
    said: Option<Instant>,
}

/// How often it is looked whether the file of a certificate has changed.
const CERTIFICATE_WATCH: Duration = Duration::from_secs(30);
/// How often it is said that a certificate still cannot be used.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(3600);

impl Listener {
    /// Does the TLS handshake, and notes what it came to.
    pub(super) async fn secure<S>(
        &self,
        stream: Replay<S>,
        client: IpAddr,
    ) -> Result<Stream<S>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Some(tls) = &self.tls else {
            return Err(HandshakeError::Io(io::ErrorKind::Unsupported.into()));
        };
        let stream = tls
            .accept(stream, client, self.terms.smtp.handshake_timeout)
            .await?;
        let version = stream.tls_version().unwrap_or_default();
        let profile = stream.profile();
        let label = TlsLabel {
            listener: self.terms.listener.name.clone(),
            version: version.clone(),
            profile,
        };
        self.shared
            .metrics
            .smtp_tls_handshakes
            .get_or_create(&label)
            .inc();
        if profile != "modern" {
            let cipher = stream.cipher().unwrap_or_default();
            event::smtp::old_tls(self.name(), client, &version, &cipher, profile);
            let seen = Seen {
                client,
                listener: self.terms.listener.name.clone(),
                needs: Some(profile),
                version,
                cipher: Some(cipher),
                refused: None,
            };
            self.shared.devices().note(seen, Timestamp::now());
        }
        Ok(stream)
    }

    /// Says that a handshake failed, and remembers who was refused for its age.
    pub(super) fn tls_failed(&self, client: IpAddr, error: &HandshakeError) {
        self.count_rejection("tls");
        event::smtp::tls_failed(self.name(), client, error);
        if let HandshakeError::Refused(refusal) = error {
            let seen = Seen {
                client,
                listener: self.terms.listener.name.clone(),
                needs: refusal.needs(),
                version: refusal.offered().name(),
                cipher: None,
                refused: Some(refusal.to_string()),
            };
            self.shared.devices().note(seen, Timestamp::now());
        }
    }

    /// Opens these certificates in place of those in use. `watched` is whether nobody has asked for
    /// it: then a certificate that cannot be used is given until the next look, because certificate
    /// and key are seldom replaced in one moment.
    async fn reload(&self, sources: Vec<config::ListenerCertificate>, watched: bool) {
        let Some(tls) = self.tls.clone().filter(|_| !sources.is_empty()) else {
            return;
        };
        let reloaded = match tokio::task::spawn_blocking(move || tls.reload(&sources)).await {
            Ok(reloaded) => reloaded,
            Err(error) => return event::defect("certificate reload", &error),
        };
        for about in &reloaded.taken {
            event::smtp::certificate_taken(self.name(), &about.file, &about.subject, about.not_after);
        }
        let label = ListenerLabel {
            listener: self.terms.listener.name.clone(),
        };
        self.shared
            .metrics
            .tls_certificate_last_reload_successful
            .get_or_create(&label)
            .set(reloaded.kept.is_empty().into());
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if reloaded.kept.is_empty() {
            *kept = None;
            return;
        }
        let text = reloaded
            .kept
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; ");
        let now = Instant::now();
        let before = kept.take().filter(|it| it.text == text);
        let say = match &before {
            _ if !watched => true,
            None => false,
            Some(before) => before
                .said
                .is_none_or(|it| now.duration_since(it) >= COMPLAINT_INTERVAL),
        };
        let said = match say {
            true => Some(now),
            false => before.and_then(|it| it.said),
        };
        *kept = Some(Complaint { text, said });
        if say {
            for why in &reloaded.kept {
                event::certificate_kept(self.name(), why);
            }
        }
    }
}

impl Handle {
    /// Opens the certificates of these listeners anew. Where one cannot be used the old one goes on
    /// serving; the log and the metrics say so.
    pub async fn reload_certificates(&self, settings: &[config::Listener]) {
        for listener in &self.listeners {
            if let Some(new) = settings.iter().find(|it| it.name == listener.name()) {
                listener.reload(new.certificates.clone(), false).await;
            }
        }
    }

    /// Opens what has changed on disk since it was read, and renews what we made ourselves.
    pub async fn reload_changed_certificates(&self) {
        for listener in &self.listeners {
            let Some(tls) = listener.tls.clone() else { continue };
            let stale = {
                let tls = tls.clone();
                tokio::task::spawn_blocking(move || tls.is_stale()).await
            };
            if stale.unwrap_or(false) {
                listener.reload(tls.sources(), true).await;
            }
        }
    }

    /// The certificates in use, by the name of their listener.
    pub fn certificates(&self) -> Vec<(String, Arc<tls::About>)> {
        let of = |it: &Arc<Listener>| {
            let certificates = it.tls.as_ref().map(Tls::certificates).unwrap_or_default();
            let name = it.name().to_owned();
            certificates.into_iter().map(move |about| (name.clone(), about))
        };
        self.listeners.iter().flat_map(of).collect()
    }

    /// Which clients still need old TLS, and which were refused for their age.
    pub fn tls_devices(&self) -> Vec<Device> {
        self.shared.devices().list()
    }
}

/// Opens what a listener needs for TLS.
pub(super) async fn open_tls(listener: &config::Listener, config: &Config) -> Result<Tls, CredentialError> {
    let listener = listener.clone();
    let home = tls::Home {
        directory: config.spool.directory.clone(),
        hostname: config.smtp.hostname.clone(),
    };
    match tokio::task::spawn_blocking(move || Tls::open(&listener, home)).await {
        Ok(opened) => opened,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Looks for certificates that have changed, until the end.
pub(super) async fn watch_certificates(handle: Handle, stopping: CancellationToken) {
    if handle.listeners.iter().all(|it| it.tls.is_none()) {
        return;
    }
    loop {
        tokio::select! {
            () = tokio::time::sleep(CERTIFICATE_WATCH) => handle.reload_changed_certificates().await,
            () = stopping.cancelled() => return,
        }
    }
}

/// Begins TLS where it is expected from the first octet, or where the client begins with it and may.
pub(super) async fn begin<S>(
    mut stream: S,
    client: IpAddr,
    listener: &Listener,
) -> Result<Stream<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match listener.terms.listener.tls {
        TlsMode::None | TlsMode::StartTls | TlsMode::Required => Ok(Stream::plain(stream)),
        TlsMode::Implicit => listener.secure(Replay::new(stream, Vec::new()), client).await,
        TlsMode::Auto => {
            // In SMTP the server speaks first, in TLS the client: who is silent for this long waits for
            // the greeting.
            let mut first = Vec::with_capacity(FIRST_OCTETS);
            match timeout(listener.terms.listener.tls_wait, stream.read_buf(&mut first)).await {
                Ok(Ok(_)) | Err(_) => {}
                Ok(Err(error)) => return Err(HandshakeError::Io(error)),
            }
            let tls = begins_tls(&first);
            first.shrink_to_fit();
            let stream = Replay::new(stream, first);
            match tls {
                true => listener.secure(stream, client).await,
                false => Ok(Stream::Plain(stream)),
            }
        }
    }
}
