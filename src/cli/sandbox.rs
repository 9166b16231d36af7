//! `graphpost sandbox`: the gateway beside a stand-in for Microsoft's cloud.

use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use clap::Args;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_RSA_SHA256, RsaKeySize, date_time_ymd,
};

use super::Failure;
use super::cloud::{bind, stopped};
use crate::config::{Config, Environment, Files};
use crate::{app, event, sandbox};

/// The application and the tenant that the sandbox pretends to have.
const CLIENT_ID: &str = "11111111-1111-1111-1111-111111111111";
const TENANT: &str = "contoso.onmicrosoft.com";
/// The mailbox that sends.
const MAILBOX: &str = "service@contoso.com";

/// Try graphpost without a tenant and without a configuration
///
/// Runs the gateway beside a stand-in for Microsoft's cloud, with a certificate of its own: everything
/// is as in production, except that nothing leaves this host. What would have been delivered is shown
/// on a page.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: graphpost sandbox --smtp 0.0.0.0:2525\n  takes mail from private networks too"
)]
pub(super) struct Sandbox {
    /// Where it takes mail; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:2525")]
    smtp: SocketAddr,
    /// Where the page with what arrived is
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8025")]
    http: SocketAddr,
    /// Keep the queue, the certificate and the configuration here, instead of removing them at the end
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Sandbox {
    pub(super) fn run(self) -> Result<(), Failure> {
        let temporary;
        let directory = match &self.dir {
            Some(directory) => {
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(directory)
                    .map_err(|error| {
                        Failure::new(format_args!("cannot make {}: {error}", directory.display()))
                    })?;
                directory.as_path()
            }
            None => {
                temporary = tempfile::Builder::new()
                    .prefix("graphpost-")
                    .tempdir()
                    .map_err(|error| {
                        Failure::with_help(
                            format_args!("cannot make a directory: {error}"),
                            "name one with --dir",
                        )
                    })?;
                temporary.path()
            }
        };
        let runtime = tokio::runtime::Runtime::new()
            .map_err(|error| Failure::new(format_args!("cannot start: {error}")))?;
        runtime.block_on(self.serve(directory))
    }

    async fn serve(&self, directory: &Path) -> Result<(), Failure> {
        let certificate = write_certificate(&directory.join("app.pem"))?;
        let options = sandbox::Options {
            certificates: vec![certificate],
            ..sandbox::Options::default()
        };
        let cloud = bind(self.http, options).await?;
        let url = format!("http://{}", reachable(cloud.address()));
        // Where it listens on all addresses, it is asked at one of them.
        cloud.change_tenant(|it| it.audiences.push(format!("{url}/{TENANT}/oauth2/v2.0/token")));

        let path = directory.join("graphpost.toml");
        let source = configuration(self.smtp, &url);
        write_private(&path, source.as_bytes())?;
        // Nothing of the environment: a sandbox is the same everywhere.
        let config = Config::parse(&source, &path, &Environment::default(), Files::Opened)?;
        event::init(&config.log);
        let gateway = app::start(config).await.map_err(|error| {
            Failure::with_help(
                error,
                "if the address is in use, listen elsewhere with --smtp 127.0.0.1:2526",
            )
        })?;
        let smtp = gateway.smtp_addresses().first().copied().unwrap_or(self.smtp);
        // Other commands read there where a free port was taken.
        write_private(&path, configuration(smtp, &url).as_bytes())?;
        cloud.set_smtp(smtp);
        self.explain(
            &mut io::stdout().lock(),
            smtp,
            &url,
            &path,
            gateway.admin_address(),
        )?;

        stopped().await;
        gateway.shutdown().await;
        cloud.shutdown().await;
        event::flush();
        Ok(())
    }

    /// What to do next.
    fn explain(
        &self,
        out: &mut impl Write,
        smtp: SocketAddr,
        url: &str,
        config: &Path,
        admin: Option<SocketAddr>,
    ) -> io::Result<()> {
        let config = config.display();
        let server = reachable(smtp);
        writeln!(out, "graphpost sandbox: nothing leaves this host\n")?;
        writeln!(
            out,
            "  Mail     smtp://{server}   any sender, any recipient, no login"
        )?;
        writeln!(out, "  Inbox    {url}/   what would have been delivered")?;
        if let Some(admin) = admin {
            writeln!(out, "  Status   http://{admin}/   the queue, and /metrics")?;
        }
        let fate = if self.dir.is_some() {
            ""
        } else {
            "   removed at the end"
        };
        writeln!(out, "  Config   {config}{fate}")?;
        writeln!(out, "\nSend a mail from another terminal:\n")?;
        writeln!(
            out,
            "  printf 'From: erp@contoso.com\\nTo: you@example.org\\nSubject: It works\\n\\nHello.\\n' |"
        )?;
        writeln!(
            out,
            "    curl -sS smtp://{server} --mail-from erp@contoso.com --mail-rcpt you@example.org -T -"
        )?;
        writeln!(
            out,
            "\n  swaks --server {server} --from erp@contoso.com --to you@example.org --attach-name note.txt --attach Hello\n"
        )?;
        writeln!(
            out,
            "  graphpost send --config {config} --from erp@contoso.com --to you@example.org"
        )?;
        writeln!(out, "\nThen look at {url}/ and at the queue:\n")?;
        writeln!(out, "  graphpost queue list --config {config}")?;
        writeln!(
            out,
            "\nBreak something, send again, and watch the queue wait and recover:\n"
        )?;
        writeln!(
            out,
            "  curl -X PUT {url}/sandbox/faults -H 'Content-Type: application/json' \\"
        )?;
        writeln!(
            out,
            "    -d '[{{\"operation\": \"sendMail\", \"action\": \"status\", \"status\": 503, \"retry_after\": 2, \"count\": 3}}]'"
        )?;
        writeln!(out, "\nCtrl-C ends it.\n")?;
        out.flush()
    }
}

/// The address at which this host itself finds a listener.
pub(super) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn configuration(smtp: SocketAddr, cloud: &str) -> String {
    format!(
        r#"# Written by 'graphpost sandbox', which overwrites it at its next start.

[tenant]
id = "{TENANT}"
client_id = "{CLIENT_ID}"
authority = "{cloud}"
graph = "{cloud}"

[tenant.credential]
certificate = "app.pem"

[[listener]]
name = "sandbox"
address = "{smtp}"
networks = [
    "127.0.0.0/8", "::1", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16",
    "fc00::/7", "fe80::/10",
]

[[sender]]
address = ["*", "<>"]
mailbox = "{MAILBOX}"

[spool]
directory = "queue"

[delivery]
# Nobody waits half a minute to see a second attempt.
retry_first = "3s"
# The stand-in cloud has no pace to keep.
messages_per_minute = 100000

[admin]
address = "127.0.0.1:0"
"#
    )
}

/// Makes a certificate and its key, writes both to a file, and returns the certificate in DER.
fn write_certificate(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |error: rcgen::Error| Failure::new(format_args!("cannot make a certificate: {error}"));
    // Entra takes RSA only, of at least 2048 bits.
    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "graphpost sandbox");
    let today = TimeZone::UTC.to_datetime(Timestamp::now()).date();
    let day =
        |date: jiff::civil::Date| date_time_ymd(date.year().into(), date.month() as u8, date.day() as u8);
    params.not_before = day(today.saturating_sub(1.day()));
    params.not_after = day(today.saturating_add(1.year()));
    let certificate = params.self_signed(&key).map_err(failed)?;
    let pem = format!("{}{}", certificate.pem(), key.serialize_pem());
    write_private(path, pem.as_bytes())?;
    Ok(certificate.der().to_vec())
}

/// Writes a file that only its owner may read.
fn write_private(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let failed = |error| Failure::new(format_args!("cannot write {}: {error}", path.display()));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    file.write_all(content).map_err(failed)
}
