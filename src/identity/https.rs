//! The HTTPS client for Entra ID and Graph: proxy, more certificate authorities, no redirects.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::{Certificate, ClientBuilder, NoProxy, Proxy, Url, redirect};

use crate::config;

/// How long a connection, its TLS handshake included, may take to be made.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Why no HTTPS client can be made. The texts say what to mend, and never show a proxy's password.
#[derive(Debug)]
pub enum HttpsError {
    /// The file of certificate authorities cannot be read.
    CaFile {
        /// The file.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file has no certificate authority in PEM in it.
    NoAuthority {
        /// The file.
        file: PathBuf,
    },
    /// `proxy` is no address of a proxy.
    Proxy,
    /// TLS could not be set up.
    Tls(reqwest::Error),
}

impl fmt::Display for HttpsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HttpsError::CaFile { file, error } => {
                write!(f, "ca_file {}: cannot be read: {error}", file.display())
            }
            HttpsError::NoAuthority { file } => write!(
                f,
                "ca_file {}: has no certificate in PEM in it; export the certificate authority as Base-64",
                file.display()
            ),
            HttpsError::Proxy => f.write_str(
                "proxy: no address of an HTTP proxy; write it as http://host:port or http://user:password@host:port",
            ),
            HttpsError::Tls(error) => write!(
                f,
                "no TLS client can be made: {}; is the package ca-certificates installed?",
                chain(error)
            ),
        }
    }
}

impl std::error::Error for HttpsError {}

/// Begins a client for `base`, an address of the tenant's configuration. Blocks: it reads the
/// system's certificate authorities.
pub fn client(tenant: &config::Tenant, base: &str) -> Result<ClientBuilder, HttpsError> {
    let plain = base.starts_with("http://");
    let mut client = reqwest::Client::builder()
        .user_agent(concat!("graphpost/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        // A redirect would carry the token, or the assertion, to a place nobody has named.
        .redirect(redirect::Policy::none())
        .referer(false)
        // Plain HTTP is for the stand-in cloud on a loopback address; the configuration sees to that.
        .https_only(!plain);

    client = match &tenant.proxy {
        Some(proxy) => {
            let proxy = Proxy::all(proxy).map_err(|_| HttpsError::Proxy)?;
            client.no_proxy().proxy(proxy.no_proxy(NoProxy::from_env()))
        }
        // A proxy of the environment is meant for the way out of this machine.
        None if is_loopback(base) => client.no_proxy(),
        None => client,
    };

    if plain {
        // No TLS, so no authorities; reading the system's takes longer than the rest of the start.
        return Ok(client.tls_certs_only([]));
    }
    if let Some(file) = &tenant.ca_file {
        let pem = std::fs::read(file).map_err(|error| HttpsError::CaFile {
            file: file.clone(),
            error,
        })?;
        let authorities = Certificate::from_pem_bundle(&pem).unwrap_or_default();
        if authorities.is_empty() {
            return Err(HttpsError::NoAuthority { file: file.clone() });
        }
        client = client.tls_certs_merge(authorities);
    }
    Ok(client)
}

fn is_loopback(base: &str) -> bool {
    let Ok(url) = Url::parse(base) else { return false };
    let Some(host) = url.host_str() else { return false };
    let address = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|it| it.is_loopback())
}

/// An error and its causes in one line, without the URL: `error sending request: dns error: …`.
pub(crate) fn chain(error: &reqwest::Error) -> String {
    let mut error: &dyn std::error::Error = error;
    let mut words: Vec<String> = Vec::new();
    loop {
        let mut text = error.to_string();
        // reqwest puts "for url (…)" into its own text.
        if let Some(at) = text.find(" for url (") {
            text.truncate(at);
        }
        // Many errors repeat the text of their cause.
        if !words.iter().any(|it| it.contains(&text)) {
            words.push(text);
        }
        match error.source() {
            Some(cause) => error = cause,
            None => return words.join(": "),
        }
    }
}
