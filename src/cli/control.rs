//! Asks the running gateway, by its control socket.

use std::time::Duration;

use reqwest::{Client, Method, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Failure;
use crate::admin::{Act, Acted, Flush, Flushed, Status};
use crate::config::Config;
use crate::smtp::tls::devices::Device;
use crate::spool::{Action, QueueId};

/// Messages in one request.
const BATCH: usize = 1000;

/// How long the gateway may take for one request.
const TIMEOUT: Duration = Duration::from_secs(60);

/// As much of an answer as is shown.
const SHOWN: usize = 300;

/// A gateway that may be running.
pub(super) struct Control<'c> {
    config: &'c Config,
    client: Client,
}

impl Control<'_> {
    pub(super) fn new(config: &Config) -> Result<Control<'_>, Failure> {
        let socket = &config.admin.socket;
        let client = Client::builder()
            .unix_socket(socket.as_path())
            .timeout(TIMEOUT)
            // No TLS here: reading the system's certificate authorities would take longer than the rest.
            .tls_certs_only([])
            .build()
            .map_err(|error| Failure::new(format_args!("cannot use {}: {error}", socket.display())))?;
        Ok(Control { config, client })
    }

    /// Has an action carried out.
    pub(super) async fn act(
        &self,
        action: Action,
        ids: &[QueueId],
        reason: &str,
    ) -> Result<Vec<Acted>, Failure> {
        let mut acted = Vec::with_capacity(ids.len());
        for batch in ids.chunks(BATCH) {
            let order = Act {
                action,
                ids: batch.to_vec(),
                who: operator(),
                reason: reason.to_owned(),
            };
            let batch: Vec<Acted> = self.ask(Method::POST, "/api/queue", Some(&order)).await?;
            acted.extend(batch);
        }
        Ok(acted)
    }

    /// Why the gateway does not take mail; `None` while it does.
    pub(super) async fn not_ready(&self) -> Result<Option<String>, Failure> {
        let request = self.client.get("http://graphpost/readyz?verbose");
        let answer = request.send().await.map_err(|error| self.silent(&error))?;
        if answer.status() == StatusCode::OK {
            return Ok(None);
        }
        Ok(Some(shown(answer).await))
    }

    /// Has all that waits tried now.
    pub(super) async fn flush(&self, reason: &str) -> Result<Flushed, Failure> {
        let order = Flush {
            who: operator(),
            reason: reason.to_owned(),
        };
        self.ask(Method::POST, "/api/flush", Some(&order)).await
    }

    /// How it is doing.
    pub(super) async fn status(&self) -> Result<Status, Failure> {
        self.ask(Method::GET, "/api/status", None::<&()>).await
    }

    /// Which clients still need old TLS, and which were refused for their age.
    pub(super) async fn tls_devices(&self) -> Result<Vec<Device>, Failure> {
        self.ask(Method::GET, "/api/tls", None::<&()>).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        order: Option<&impl Serialize>,
    ) -> Result<T, Failure> {
        let mut request = self.client.request(method, format!("http://graphpost{path}"));
        if let Some(order) = order {
            request = request.json(order);
        }
        let answer = request.send().await.map_err(|error| self.silent(&error))?;
        if answer.status() != StatusCode::OK {
            let status = answer.status();
            let text = shown(answer).await;
            return Err(Failure::new(format_args!(
                "the gateway answered {status}: {text}"
            )));
        }
        let answer = answer.json().await;
        answer.map_err(|error| Failure::new(format_args!("the gateway's answer makes no sense: {error}")))
    }

    fn silent(&self, error: &reqwest::Error) -> Failure {
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        if !error.is_connect() {
            return Failure::new(format_args!("the gateway did not answer: {cause}"));
        }
        Failure::with_help(
            format_args!(
                "no gateway answers at {}: {cause}",
                self.config.admin.socket.display()
            ),
            "start it, or run this as root or as its user: only the running gateway changes the queue",
        )
    }
}

async fn shown(answer: Response) -> String {
    let text = answer.text().await.unwrap_or_default();
    super::terminal::printable(&text.trim().chars().take(SHOWN).collect::<String>())
}

/// Who sits at the keyboard, for the log. Whoever may open the socket may call himself anything.
fn operator() -> String {
    let name = ["SUDO_USER", "USER", "LOGNAME"]
        .iter()
        .find_map(|it| std::env::var(it).ok());
    name.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}
