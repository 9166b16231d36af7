//! The HTTPS client for Entra ID and Graph: proxy, more certificate authorities, no redirects.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use jiff::Timestamp;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Certificate, ClientBuilder, NoProxy, Proxy, Response, Url, redirect};

use crate::config;

/// How long a connection, its TLS handshake included, may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

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
    /// The address of Entra ID or Graph is none.
    Root(String),
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
            HttpsError::Root(root) => write!(f, "'{root}' is no address; write it as https://host"),
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
pub(crate) fn client(tenant: &config::Tenant, base: &str) -> Result<ClientBuilder, HttpsError> {
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

/// The proxy that a [`client`] for this address goes through, without its password: host, port, and
/// whether the configuration or the environment names it.
pub(crate) fn proxy(tenant: &config::Tenant, base: &str) -> Option<(String, u16, ProxyFrom)> {
    let (matcher, from) = match &tenant.proxy {
        Some(proxy) => {
            let spared = std::env::var("NO_PROXY").or_else(|_| std::env::var("no_proxy"));
            let matcher = Matcher::builder()
                .all(proxy.as_str())
                .no(spared.unwrap_or_default())
                .build();
            (matcher, ProxyFrom::Configuration)
        }
        None if is_loopback(base) => return None,
        None => (Matcher::from_system(), ProxyFrom::Environment),
    };
    let intercept = matcher.intercept(&base.parse().ok()?)?;
    let uri = intercept.uri();
    let port = match uri.port_u16() {
        Some(port) => port,
        None if uri.scheme_str() == Some("https") => 443,
        None => 80,
    };
    Some((uri.host()?.to_owned(), port, from))
}

/// Who names a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyFrom {
    /// `tenant.proxy`.
    Configuration,
    /// `HTTPS_PROXY` and the like.
    Environment,
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

/// Reads a body to its end, or to `limit` octets of it.
pub(crate) async fn read_at_most(response: &mut Response, limit: usize) -> reqwest::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        let room = limit - body.len();
        if chunk.len() >= room {
            body.extend_from_slice(&chunk[..room]);
            break;
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Retry-After (RFC 9110 §10.2.3): seconds, a date, or, as Graph writes it, a fraction of seconds.
pub(crate) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let wait = http_date(value)?.duration_since(now);
    Some(Duration::try_from(wait).unwrap_or_default())
}

/// A date as HTTP servers write it, `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 §5.6.7).
pub(crate) fn http_date(value: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::parse(value).ok().map(|it| it.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_retry_after_in_every_form() {
        let now: Timestamp = "1994-11-06T08:49:00Z".parse().expect("a time");
        for (value, want) in [
            ("7", Some(7.0)),
            (" 7 ", Some(7.0)),
            ("2.128", Some(2.128)),
            ("0", Some(0.0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(37.0)),
            ("Sun, 06 Nov 1994 08:48:00 GMT", Some(0.0)),
            ("-1", None),
            ("NaN", None),
            ("inf", None),
            ("1e300", None),
            ("soon", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().expect("a header value"));
            let got = retry_after(&headers, now).map(|it| it.as_secs_f64());
            assert_eq!(got, want, "{value:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn knows_loopback() {
        for (base, want) in [
            ("http://127.0.0.1:8025", true),
            ("http://127.3.2.1", true),
            ("http://[::1]:8025/graph", true),
            ("http://localhost:8025", true),
            ("https://graph.microsoft.com", false),
            ("https://localhost.example.com", false),
            ("https://10.0.0.1", false),
            ("nonsense", false),
        ] {
            assert_eq!(is_loopback(base), want, "{base}");
        }
    }
}
