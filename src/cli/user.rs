//! `graphpost user`: the accounts that clients log in with.

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::terminal::{password, printable};
use super::{ConfigFile, Failure};
use crate::accounts::{self, Account, AccountsError, Added};

/// Add, list and remove the accounts that clients log in with
///
/// Changes the file that the configuration names in [accounts]. A running gateway takes the change up
/// when it is told to reload: systemctl reload graphpost, or SIGHUP.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:\n  graphpost user add scanner\n  graphpost user add erp --password-file erp.password\n  \
                  openssl rand -base64 18 | tee /dev/stderr | graphpost user add backup"
)]
pub(super) struct User {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Add an account, or change its password
    Add {
        /// The name to log in with; its case does not matter
        name: String,
        /// Read the password from the first line of this file, instead of asking
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// Where it may be used from, such as 10.1.0.0/16; may be given more than once
        #[arg(long, value_name = "NETWORK")]
        network: Vec<ipnet::IpNet>,
        /// Keep the password itself, for a device that can log in only with CRAM-MD5
        #[arg(long)]
        cram_md5: bool,
        #[command(flatten)]
        file: AccountsFile,
    },
    /// List the accounts
    List {
        /// As a JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        file: AccountsFile,
    },
    /// Remove an account
    Remove {
        /// The name
        name: String,
        #[command(flatten)]
        file: AccountsFile,
    },
}

#[derive(Debug, Args)]
struct AccountsFile {
    #[command(flatten)]
    config: ConfigFile,
    /// The accounts file, instead of the one that the configuration names
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

impl AccountsFile {
    fn path(self) -> Result<PathBuf, Failure> {
        if let Some(file) = self.file {
            return Ok(file);
        }
        let config = self.config.read()?;
        config.accounts_file.ok_or_else(|| {
            Failure::with_help(
                format_args!("{} names no accounts file", config.path.display()),
                "add these lines to it, or name a file with --file:\n\n[accounts]\nfile = \"accounts\"",
            )
        })
    }
}

impl User {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        match self.verb {
            Verb::Add {
                name,
                password_file,
                network,
                cram_md5,
                file,
            } => {
                let path = file.path()?;
                let prompt = format!("Password for {}: ", printable(&name));
                let password = password(password_file.as_deref(), &prompt, true)?;
                let account = Account {
                    name: &name,
                    password: password.as_bytes(),
                    recoverable: cram_md5,
                    networks: (!network.is_empty()).then_some(network.as_slice()),
                };
                let added = accounts::add_account(&path, &account).map_err(failed)?;
                let done = match added {
                    Added::New => "added to",
                    Added::PasswordChanged => "has a new password in",
                };
                writeln!(out, "{} {done} {}", printable(&name), path.display())?;
                writeln!(
                    out,
                    "A running gateway takes it up with: systemctl reload graphpost (or SIGHUP)"
                )?;
            }
            Verb::List { json, file } => {
                let path = file.path()?;
                let names = match accounts::list(&path) {
                    // No one has been added yet.
                    Err(AccountsError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                        Vec::new()
                    }
                    other => other.map_err(failed)?,
                };
                if json {
                    writeln!(out, "{}", serde_json::json!(names))?;
                } else {
                    names
                        .iter()
                        .try_for_each(|name| writeln!(out, "{}", printable(name)))?;
                }
            }
            Verb::Remove { name, file } => {
                let path = file.path()?;
                if !accounts::remove(&path, &name).map_err(failed)? {
                    return Err(Failure::with_help(
                        format_args!("there is no account {} in {}", printable(&name), path.display()),
                        "graphpost user list shows them all",
                    ));
                }
                writeln!(out, "{} removed from {}", printable(&name), path.display())?;
                writeln!(
                    out,
                    "A running gateway takes it up with: systemctl reload graphpost (or SIGHUP)"
                )?;
            }
        }
        Ok(())
    }
}

fn failed(error: AccountsError) -> Failure {
    match &error {
        AccountsError::Io { error: io, .. } if io.kind() == io::ErrorKind::PermissionDenied => {
            Failure::with_help(error, "run as root or as the owner of the file")
        }
        AccountsError::Lines { .. } => Failure::with_help(error, "mend these lines; nothing was changed"),
        _ => Failure::new(error),
    }
}
