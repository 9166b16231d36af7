//! `graphpost cloud`: the stand-in Microsoft cloud alone.

use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, block_on};
use crate::sandbox;

/// Run a stand-in for Microsoft's cloud, and nothing else
///
/// It issues tokens and takes mail as Entra ID and Microsoft Graph do, is as strict, and shows on a
/// page what would have been delivered. Nothing leaves this host. Point a configuration at it with
/// 'authority' and 'graph' in [tenant].
#[derive(Debug, Args)]
#[command(after_help = "Example: graphpost cloud --certificate app.crt")]
pub(super) struct Cloud {
    /// Where it listens; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8025")]
    http: SocketAddr,
    /// A certificate (PEM or DER) registered for the application; may be given several times
    #[arg(long, value_name = "FILE")]
    certificate: Vec<PathBuf>,
}

impl Cloud {
    pub(super) fn run(self) -> Result<(), Failure> {
        block_on(self.serve())
    }

    async fn serve(self) -> Result<(), Failure> {
        let mut certificates = Vec::new();
        for path in &self.certificate {
            let content = fs::read(path)
                .map_err(|error| Failure::new(format_args!("cannot read {}: {error}", path.display())))?;
            certificates.push(content);
        }
        let registered = certificates.len();
        let options = sandbox::Options {
            certificates,
            ..sandbox::Options::default()
        };
        let cloud = bind(self.http, options).await?;
        let (url, mut out) = (cloud.url(), io::stdout());
        writeln!(out, "stand-in cloud: {url}")?;
        writeln!(out)?;
        writeln!(out, "  [tenant]")?;
        writeln!(out, "  authority = \"{}\"", cloud.authority())?;
        writeln!(out, "  graph     = \"{}\"", cloud.graph())?;
        writeln!(out)?;
        if registered == 0 {
            writeln!(
                out,
                "No certificate is registered, so no one gets a token: --certificate FILE"
            )?;
        }
        writeln!(out, "What arrived: {url}/ and {url}/sandbox/messages")?;
        out.flush()?;
        stopped().await;
        cloud.shutdown().await;
        Ok(())
    }
}

/// Starts a cloud, or says what is in the way.
pub(super) async fn bind(address: SocketAddr, options: sandbox::Options) -> Result<sandbox::Cloud, Failure> {
    sandbox::Cloud::bind(address, options)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => Failure::with_help(
                format_args!("{address} is in use by another program"),
                "end it, or listen elsewhere with --http 127.0.0.1:8026",
            ),
            _ => Failure::new(format_args!(
                "cannot start the stand-in cloud on {address}: {error}"
            )),
        })
}

/// Waits for Ctrl-C or SIGTERM.
pub(super) async fn stopped() {
    // Without a handler the signal ends the process, which is a stop as well.
    if let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    } else {
        std::future::pending::<()>().await;
    }
}
