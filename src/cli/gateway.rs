//! Asks the running gateway, by its control socket.

use std::time::Duration;

use reqwest::{Client, Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Failure;
use crate::config::Config;

/// How long the gateway may take for one request.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The control socket of a gateway.
pub(super) struct Gateway<'c> {
    config: &'c Config,
    client: Client,
}

impl Gateway<'_> {
    pub(super) fn new(config: &Config) -> Result<Gateway<'_>, Failure> {
        let socket = &config.admin.socket;
        let client = Client::builder()
            .unix_socket(socket.as_path())
            .timeout(TIMEOUT)
            .build()
            .map_err(|error| Failure::new(format_args!("cannot use {}: {error}", socket.display())))?;
        Ok(Gateway { config, client })
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.ask(Method::GET, path, None::<&()>).await
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        order: &impl Serialize,
    ) -> Result<T, Failure> {
        self.ask(Method::POST, path, Some(order)).await
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
        let answer = request.send().await.map_err(|error| {
            let cause = root_cause(&error);
            if !error.is_connect() {
                return Failure::new(format_args!("the gateway did not answer: {cause}"));
            }
            Failure::with_help(
                format_args!(
                    "no gateway answers at {}: {cause}",
                    self.config.admin.socket.display()
                ),
                "start it, or run this as root or as its user",
            )
        })?;
        match answer.status() {
            StatusCode::OK => answer
                .json()
                .await
                .map_err(|error| Failure::new(format_args!("the gateway's answer makes no sense: {error}"))),
            status => {
                let text = answer.text().await.unwrap_or_default();
                let shown: String = text.chars().take(300).collect();
                Err(Failure::new(format_args!(
                    "the gateway answered {status}: {shown}"
                )))
            }
        }
    }
}

/// Who sits at the keyboard, for the log. Whoever may open the socket may call himself anything.
pub(super) fn operator() -> String {
    let name = ["SUDO_USER", "USER", "LOGNAME"]
        .iter()
        .find_map(|it| std::env::var(it).ok());
    name.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
