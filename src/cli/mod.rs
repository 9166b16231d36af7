//! The command line: one file a command group.

pub mod cert;
mod check;
mod cloud;
mod control;
mod entra;
mod policy;
mod healthcheck;
mod init;
mod queue;
mod sandbox;
mod send;
mod serve;
mod status;
mod terminal;
mod user;

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigErrors, Environment, Files};

/// Takes mail by SMTP and sends it through Microsoft 365 with Microsoft Graph.
#[derive(Debug, Parser)]
#[command(
    name = "graphpost",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    subcommand_required = true,
    max_term_width = 100,
    after_help = "To see it work without a tenant or any configuration: graphpost sandbox\n\n\
                  Exit status: 0 done, 1 failed, 2 wrong usage, 78 error in the configuration."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Sandbox(sandbox::Sandbox),
    Cloud(cloud::Cloud),
    Init(init::Init),
    Check(check::Check),
    Send(send::Send),
    Queue(queue::Queue),
    Status(status::ShowStatus),
    Policy(policy::PolicyCommand),
    User(user::User),
    Cert(cert::Cert),
    #[command(subcommand)]
    Entra(entra::Entra),
    Healthcheck(healthcheck::Healthcheck),
}

/// Runs a command to its end.
///
/// # Errors
/// How it ended, where it did not succeed.
pub fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Serve(it) => it.run(),
        Command::Sandbox(it) => it.run(),
        Command::Cloud(it) => it.run(),
        Command::Init(it) => it.run(),
        Command::Check(it) => it.run(),
        Command::Send(it) => it.run(),
        Command::Queue(it) => it.run(),
        Command::Status(it) => it.run(),
        Command::Policy(it) => it.run(),
        Command::User(it) => it.run(),
        Command::Entra(it) => it.run(),
        Command::Healthcheck(it) => it.run(),
        Command::Cert(it) => {
            let text = it.run().map_err(Failure::new)?;
            let mut out = io::stdout().lock();
            out.write_all(text.as_bytes())?;
            Ok(out.flush()?)
        }
    }
}

/// How a command ends that does not succeed.
#[derive(Debug)]
pub enum Failure {
    /// In these words, which say what to do; they begin with "error: ".
    Failed(String),
    /// What is wrong with the configuration.
    Config(String),
    /// It has been said already, on standard output.
    Told,
    /// Nobody reads standard output any more.
    OutputClosed,
}

impl Failure {
    fn new(what: impl Display) -> Failure {
        Failure::Failed(format!("error: {what}"))
    }

    /// With the step to take.
    fn with_help(what: impl Display, help: impl Display) -> Failure {
        Failure::Failed(format!("error: {what}\nhelp: {help}"))
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Failure {
        Failure::Config(errors.render(colours(&io::stderr())))
    }
}

/// Of writing to standard output: nothing else is turned into a failure without words of its own.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::new(format_args!("cannot write to standard output: {error}")),
        }
    }
}

/// Says on standard error why a command failed.
pub fn complain(text: &str) {
    // If nobody reads it, the exit status remains.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Whether a stream takes colours: <https://no-color.org>.
fn colours(stream: &impl io::IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty())
}

/// `--config`, for the commands that need one.
#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration file
    #[arg(
        long,
        value_name = "FILE",
        env = "GRAPHPOST_CONFIG",
        hide_env_values = true,
        default_value = "/etc/graphpost/graphpost.toml"
    )]
    config: PathBuf,
}

impl ConfigFile {
    /// With all files it names, to run the gateway. Warnings are said on standard error.
    fn load(&self) -> Result<Config, Failure> {
        let config = Config::load(&self.config, &Environment::of_process())?;
        if !config.warnings.is_empty() {
            let _ = writeln!(
                io::stderr(),
                "{}\n",
                config.warnings.render(colours(&io::stderr()))
            );
        }
        Ok(config)
    }

    /// Without the files it names: to find the queue or the accounts.
    fn read(&self) -> Result<Config, Failure> {
        Ok(Config::load_with(
            &self.config,
            &Environment::of_process(),
            Files::Named,
        )?)
    }
}

/// The runtime of commands that talk to a server.
fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format_args!("cannot start: {error}")))?
        .block_on(future)
}

/// Whether a person sits at standard input.
fn asks() -> bool {
    io::stdin().is_terminal()
}
