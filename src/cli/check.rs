//! `graphpost check`: what is in order and what is not.

use clap::Args;

use super::{ConfigFile, Failure};

/// Check the configuration and everything it needs
#[derive(Debug, Args)]
pub(super) struct Check {
    #[command(flatten)]
    config: ConfigFile,
}

impl Check {
    pub(super) fn run(self) -> Result<(), Failure> {
        self.config.load().map(drop)
    }
}
