//! Exit codes; nothing else.

use std::process::ExitCode;

use clap::Parser as _;
use graphpost::cli::{self, Cli, Failure};

/// sysexits(3). The unit has RestartPreventExitStatus=78: restarting does not mend a file.
const EX_CONFIG: u8 = 78;

fn main() -> ExitCode {
    // A usage error ends the process with 2 here.
    let cli = Cli::parse();
    match cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has seen enough, as in `graphpost queue list | head`.
        Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(Failure::Told) => ExitCode::FAILURE,
        Err(Failure::Config(text)) => {
            cli::complain(&text);
            ExitCode::from(EX_CONFIG)
        }
        Err(Failure::Failed(text)) => {
            cli::complain(&text);
            ExitCode::FAILURE
        }
    }
}
