//! `graphpost healthcheck`: whether the running gateway takes mail, for containers.

use clap::Args;

use super::control::Control;
use super::{ConfigFile, Failure, block_on};

/// Tell by the exit status whether the running gateway takes mail
///
/// Asks it by its control socket, so that it works with any address, or none, for the status page. It
/// is healthy while it stores mail durably, also while Microsoft cannot be reached.
#[derive(Debug, Args)]
pub(super) struct Healthcheck {
    #[command(flatten)]
    config: ConfigFile,
}

impl Healthcheck {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.config.read()?;
        match block_on(Control::new(&config)?.not_ready())? {
            None => Ok(()),
            Some(why) => Err(Failure::new(why)),
        }
    }
}
