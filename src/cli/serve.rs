//! `graphpost serve`: the gateway itself.

use clap::Args;

use super::{ConfigFile, Failure};
use crate::app;

/// Run the gateway in the foreground
///
/// Prints one line for each address it listens on. Ready, and so told to systemd, when all of them
/// accept. SIGTERM lets deliveries under way end; SIGHUP reads the configuration and certificates
/// again, and keeps the old ones if the new ones have errors.
#[derive(Debug, Args)]
#[command(after_help = "Example: graphpost serve --config /etc/graphpost/graphpost.toml")]
pub(super) struct Serve {
    #[command(flatten)]
    config: ConfigFile,
}

impl Serve {
    pub(super) fn run(self) -> Result<(), Failure> {
        app::serve(self.config.load()?).map_err(Failure::new)
    }
}
