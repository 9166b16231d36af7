//! `graphpost init`: from a few answers to a configuration and a certificate.

mod template;

use std::fs::{self, OpenOptions};
use std::io::{self, BufRead as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use ipnet::IpNet;
use jiff::Timestamp;

use super::cert::New;
use super::{Failure, asks};
use crate::config::{Config, Environment, Files};
use template::Answers;

/// Zeros stand for an application that is not registered yet; `entra script` registers one then.
const NO_APPLICATION: &str = "00000000-0000-0000-0000-000000000000";
const DEFAULT_LISTEN: &str = "127.0.0.1:2525";
const CONFIGURATION: &str = "graphpost.toml";

/// Write a configuration and make a certificate
///
/// Asks a few questions at a terminal; what the options answer is not asked. The configuration has
/// every key in it, with its explanation. No file is ever overwritten; a certificate that is there
/// already is used.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  graphpost init\n  graphpost init --tenant contoso.onmicrosoft.com --mailbox \
                  service@contoso.com \\\n    --sender 'erp@contoso.com' --listen 10.1.0.5:25 --network 10.1.0.0/16"
)]
pub(super) struct Init {
    /// The directory to write to
    #[arg(long, value_name = "DIR", default_value = "/etc/graphpost")]
    out: PathBuf,
    /// The tenant: its GUID, or a domain verified in it
    #[arg(long, value_name = "ID")]
    tenant: Option<String>,
    /// The application's id; leave it out while there is none
    #[arg(long, value_name = "GUID")]
    client_id: Option<String>,
    /// Where clients connect
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Who may connect, for an address that other hosts can reach; may be given several times
    #[arg(long, value_name = "CIDR")]
    network: Vec<IpNet>,
    /// The mailbox that sends
    #[arg(long, value_name = "MAILBOX")]
    mailbox: Option<String>,
    /// Who may send through it: an address, *@domain or *; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    sender: Vec<String>,
}

impl Init {
    pub(super) fn run(self) -> Result<(), Failure> {
        let directory = std::path::absolute(&self.out).unwrap_or_else(|_| self.out.clone());
        let path = directory.join(CONFIGURATION);
        if path.exists() {
            return Err(Failure::with_help(
                format_args!("{} is there already, and is not overwritten", path.display()),
                "edit it, or write elsewhere with --out DIR",
            ));
        }
        let answers = self.answers()?;
        fs::create_dir_all(&directory)
            .map_err(|error| Failure::new(format_args!("cannot make {}: {error}", directory.display())))?;
        write_new(&path, &template::fill(&answers))?;
        let made = accept(&path).and_then(|()| certificate(&directory));
        let made = match made {
            Ok(made) => made,
            Err(failure) => {
                // The next run is not to find half of it.
                let _ = fs::remove_file(&path);
                return Err(failure);
            }
        };
        let mut out = io::stdout().lock();
        out.write_all(told(&path, &made, &answers).as_bytes())?;
        Ok(out.flush()?)
    }

    /// From the options, and for what they leave open from whoever sits at the terminal.
    fn answers(self) -> Result<Answers, Failure> {
        let open = self.tenant.is_none() || self.mailbox.is_none() || self.sender.is_empty();
        let ask = open && asks();
        let mut missing = Vec::new();
        let mut needed =
            |given: Option<String>, flag: &'static str, question: &str, default: Option<&str>| match given {
                Some(given) => Ok(given),
                None if ask => asked(question, default),
                None => {
                    missing.push(flag);
                    Ok(String::new())
                }
            };
        let tenant = needed(
            self.tenant,
            "--tenant",
            "The tenant: a domain verified in it, or its GUID",
            None,
        )?;
        let mailbox = needed(
            self.mailbox,
            "--mailbox",
            "The mailbox that sends (user principal name)",
            None,
        )?;
        let own_domain = mailbox.rsplit_once('@').map(|(_, domain)| format!("*@{domain}"));
        let senders = match self.sender.is_empty() {
            false => self.sender,
            true => words(&needed(
                None,
                "--sender",
                "Who may send through it: addresses, or *@domain",
                own_domain.as_deref(),
            )?),
        };
        let client_id = match self.client_id {
            Some(id) => id,
            None if ask => asked(
                "The application's id, if it is registered already",
                Some(NO_APPLICATION),
            )?,
            None => NO_APPLICATION.to_owned(),
        };
        let default = || DEFAULT_LISTEN.parse::<SocketAddr>().map_err(Failure::new);
        let listen = match self.listen {
            Some(listen) => listen,
            None if ask => parsed("Where clients connect: address and port", DEFAULT_LISTEN)?,
            None => default()?,
        };
        let networks = match self.network.is_empty() {
            false => self.network,
            true if listen.ip().is_loopback() => Vec::new(),
            true => {
                let networks = needed(
                    None,
                    "--network",
                    "Who may connect: networks such as 10.1.0.0/16",
                    None,
                )?;
                let network = |it: String| {
                    it.parse::<IpNet>().map_err(|_| {
                        Failure::new(format_args!("'{it}' is no network; write it as 10.1.0.0/16"))
                    })
                };
                words(&networks)
                    .into_iter()
                    .map(network)
                    .collect::<Result<_, _>>()?
            }
        };
        if !missing.is_empty() {
            return Err(Failure::with_help(
                format_args!("missing: {}", missing.join(", ")),
                "give them, or run it at a terminal, where it asks",
            ));
        }
        Ok(Answers {
            tenant,
            client_id,
            listen,
            networks,
            senders,
            mailbox,
        })
    }
}

fn words(text: &str) -> Vec<String> {
    text.split([',', ' '])
        .filter(|it| !it.is_empty())
        .map(str::to_owned)
        .collect()
}

/// A line from the terminal; an empty one is the default, where there is one.
fn asked(question: &str, default: Option<&str>) -> Result<String, Failure> {
    let cannot = |error: io::Error| Failure::new(format_args!("cannot ask: {error}"));
    loop {
        let mut err = io::stderr();
        match default {
            Some(default) => write!(err, "{question} [{default}]: "),
            None => write!(err, "{question}: "),
        }
        .and_then(|()| err.flush())
        .map_err(cannot)?;
        let mut line = String::new();
        if io::stdin().lock().read_line(&mut line).map_err(cannot)? == 0 {
            return Err(Failure::new("no answer; nothing was written"));
        }
        match (line.trim(), default) {
            ("", Some(default)) => return Ok(default.to_owned()),
            ("", None) => {}
            (answer, _) => return Ok(answer.to_owned()),
        }
    }
}

/// Asks until there is an answer that can be read.
fn parsed(question: &str, default: &str) -> Result<SocketAddr, Failure> {
    loop {
        let answer = asked(question, Some(default))?;
        match answer.parse() {
            Ok(address) => return Ok(address),
            Err(_) => super::complain(&format!("'{answer}' is no address and port, such as 10.1.0.5:25")),
        }
    }
}

fn write_new(path: &Path, content: &str) -> Result<(), Failure> {
    let mut open = OpenOptions::new();
    open.write(true).create_new(true).mode(0o644);
    open.open(path)
        .and_then(|mut file| {
            file.write_all(content.as_bytes())?;
            file.sync_all()
        })
        .map_err(|error| Failure::new(format_args!("cannot write {}: {error}", path.display())))
}

/// Whether the configuration is one; the certificate need not be there yet.
fn accept(path: &Path) -> Result<(), Failure> {
    Config::load_with(path, &Environment::default(), Files::Named)?;
    Ok(())
}

/// The certificate and its key: those that are there, or new ones.
struct Certificate {
    public: PathBuf,
    secret: PathBuf,
    new: bool,
}

fn certificate(directory: &Path) -> Result<Certificate, Failure> {
    let (public, secret) = (
        directory.join(template::CERTIFICATE),
        directory.join(template::PRIVATE_KEY),
    );
    if public.exists() && secret.exists() {
        return Ok(Certificate {
            public,
            secret,
            new: false,
        });
    }
    let made = New::in_directory(directory)
        .write(Timestamp::now())
        .map_err(Failure::new)?;
    Ok(Certificate {
        public: made.public,
        secret: made.secret,
        new: true,
    })
}

/// What was done, and what comes next.
fn told(path: &Path, made: &Certificate, answers: &Answers) -> String {
    let new = if made.new { "" } else { "was there already: " };
    let mut text = format!(
        "{}  the configuration\n{}  {new}the certificate: this is what is uploaded\n{}  {new}the private key: it \
         stays here, readable by its owner only\n\nNext:\n\n",
        path.display(),
        made.public.display(),
        made.secret.display()
    );
    let config = match path == Path::new("/etc/graphpost/graphpost.toml") {
        true => String::new(),
        false => format!(" --config {}", path.display()),
    };
    let mut step = |command: String, why: &str| text.push_str(&format!("  {command}\n      {why}\n"));
    if rustix::process::geteuid().is_root() {
        step(
            format!("chown graphpost: {}", made.secret.display()),
            "the service's account reads the key; 'useradd --system graphpost' makes the account",
        );
    }
    let registers = match answers.client_id == NO_APPLICATION {
        true => {
            "registers the application and permits it this mailbox: read it, run it in PowerShell, and put the \
                 client_id it prints into the configuration"
        }
        false => {
            "uploads the certificate and permits the application this mailbox: read it, run it in PowerShell"
        }
    };
    step(
        format!("graphpost entra script{config} > register.ps1"),
        registers,
    );
    step(
        format!("graphpost check{config} --send-to you@example.org"),
        "tells what is still missing, and sends a message when nothing is",
    );
    step(
        match config.is_empty() {
            true => "systemctl enable --now graphpost".to_owned(),
            false => format!("graphpost serve{config}"),
        },
        "takes mail from now on",
    );
    text
}
