//! `graphpost cert`: makes the application's certificate, shows any, and tells how fresh one is.

mod blocks;
mod new;

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use serde_json::json;
use zeroize::Zeroizing;

use crate::identity::certificate::{Certificate, CertificateError};
use crate::identity::credential::{CredentialError, read_certificate};

/// Make, show and check the certificate with which the application proves itself to Entra ID
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:\n  graphpost cert new --out /etc/graphpost\n  graphpost cert show app.pfx \
                  --password-file app.password\n  graphpost cert check app.pem --expires-in 30d || echo 'renew it'"
)]
pub struct Cert {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a key and a self-signed certificate, and say how to upload it
    ///
    /// The key is written apart, for its owner only. No file is ever overwritten.
    New(New),
    /// Show thumbprints, dates and the ways to upload a certificate
    ///
    /// Takes PFX, PEM, CER and DER, with or without a key.
    Show(Show),
    /// Tell by the exit status whether a certificate is valid, and stays so for a while
    Check(Check),
}

const DEFAULT_NAME: &str = "graphpost";
/// Two years.
const DEFAULT_DAYS: u32 = 730;

#[derive(Debug, Args)]
pub(super) struct New {
    /// The directory to write to
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// The name in the certificate (CN)
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NAME, value_parser = common_name)]
    name: String,
    /// The length of the RSA key
    #[arg(long, value_enum, default_value_t = Bits::B3072)]
    bits: Bits,
    /// For how many days it is valid
    #[arg(long, value_name = "DAYS", default_value_t = DEFAULT_DAYS, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Write a PFX with key and certificate, and its password, instead of a PEM key
    #[arg(long)]
    pfx: bool,
    /// As a JSON object
    #[arg(long)]
    json: bool,
}

/// The lengths of RSA keys that can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Bits {
    #[value(name = "2048")]
    B2048,
    #[value(name = "3072")]
    B3072,
    #[value(name = "4096")]
    B4096,
}

#[derive(Debug, Args)]
struct Show {
    #[command(flatten)]
    file: CertificateFile,
    /// As a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Check {
    #[command(flatten)]
    file: CertificateFile,
    /// Fail when it ends within this time, such as 30d, 12h or 2w
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = duration)]
    expires_in: SignedDuration,
}

#[derive(Debug, Args)]
struct CertificateFile {
    /// A PFX, PEM, CER or DER file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Read the password from the first line of this file
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

/// Why a `cert` command fails.
#[derive(Debug)]
pub enum CertError {
    /// A file that is to be read.
    Credential(CredentialError),
    /// The password file.
    PasswordFile {
        /// The file.
        file: PathBuf,
        /// Why it cannot be read.
        error: io::Error,
    },
    /// A file that is to be written.
    Write {
        /// The file.
        file: PathBuf,
        /// Why it cannot be.
        error: io::Error,
    },
    /// The key or the certificate could not be made.
    Make(String),
    /// `cert check`: it is no longer, or not much longer, valid.
    NotFresh(String),
}

impl fmt::Display for CertError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CertError::Credential(error) => error.fmt(f),
            CertError::PasswordFile { file, error } => {
                write!(f, "{}: the password cannot be read: {error}", file.display())
            }
            CertError::Write { file, error } if error.kind() == io::ErrorKind::AlreadyExists => write!(
                f,
                "{}: is there already, and is not overwritten; name another directory with --out",
                file.display()
            ),
            CertError::Write { file, error } => {
                write!(f, "{}: cannot be written: {error}", file.display())
            }
            CertError::Make(why) => write!(f, "no certificate could be made: {why}"),
            CertError::NotFresh(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for CertError {}

impl Cert {
    /// Runs the command. The text is for standard output.
    ///
    /// # Errors
    /// [`CertError`] names the file and the fix.
    pub fn run(&self) -> Result<String, CertError> {
        let now = Timestamp::now();
        match &self.verb {
            Verb::New(new) => new.run(now),
            Verb::Show(show) => show.run(now),
            Verb::Check(check) => check.run(now),
        }
    }
}

impl Show {
    fn run(&self, now: Timestamp) -> Result<String, CertError> {
        let certificate = self.file.read()?;
        if self.json {
            return Ok(blocks::pretty(&json(&certificate)));
        }
        let upload = blocks::Upload::of_file(&self.file.file, &certificate);
        Ok(format!(
            "{}\n{}",
            facts(&certificate, now),
            upload.text(&certificate)
        ))
    }
}

impl Check {
    fn run(&self, now: Timestamp) -> Result<String, CertError> {
        let certificate = self.file.read()?;
        let file = self.file.file.display();
        let not_fresh = |what: &dyn fmt::Display| CertError::NotFresh(format!("{file}: {what}"));
        certificate
            .check_validity(now)
            .map_err(|error: CertificateError| not_fresh(&error))?;
        let days = certificate.days_left(now);
        let not_after = certificate.not_after;
        if certificate.not_after.duration_since(now) <= self.expires_in {
            return Err(not_fresh(&format_args!(
                "expires in {days} days, on {not_after}; make a new one with 'graphpost cert new'"
            )));
        }
        Ok(format!("{file}: valid for {days} more days, until {not_after}\n"))
    }
}

impl CertificateFile {
    fn read(&self) -> Result<Certificate, CertError> {
        let password = self.password_file.as_deref().map(first_line).transpose()?;
        read_certificate(&self.file, password.as_ref().map(|it| it.as_str())).map_err(CertError::Credential)
    }
}

/// The first line of a file, without its end.
fn first_line(file: &Path) -> Result<Zeroizing<String>, CertError> {
    let mut content = Zeroizing::new(String::new());
    File::open(file)
        .and_then(|it| it.take(64 * 1024).read_to_string(&mut content))
        .map_err(|error| CertError::PasswordFile {
            file: file.to_owned(),
            error,
        })?;
    Ok(Zeroizing::new(
        content.lines().next().unwrap_or_default().to_owned(),
    ))
}

/// A common name has at most 64 characters (RFC 5280, appendix A.1, ub-common-name).
fn common_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.chars().count() > 64 || text.chars().any(char::is_control) {
        return Err("a name has 1 to 64 characters, and no control characters".to_owned());
    }
    Ok(text.to_owned())
}

fn duration(text: &str) -> Result<SignedDuration, String> {
    let wrong = || format!("'{text}' is no time; write it as 30d, 12h or 2w");
    let span: Span = text.parse().map_err(|_| wrong())?;
    let duration = span
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .map_err(|_| wrong())?;
    if duration.is_negative() {
        return Err(wrong());
    }
    Ok(duration)
}

/// What a person wants to see of a certificate.
fn facts(certificate: &Certificate, now: Timestamp) -> String {
    let days = certificate.days_left(now);
    let left = match certificate.check_validity(now) {
        Ok(()) => format!("{days} days left"),
        Err(CertificateError::NotYetValid { .. }) => "not valid yet".to_owned(),
        Err(_) => "EXPIRED".to_owned(),
    };
    format!(
        "subject              {}\n\
         issuer               {}\n\
         key                  {}\n\
         valid from           {}\n\
         valid until          {} ({left})\n\
         SHA-1 thumbprint     {}\n\
         SHA-256 thumbprint   {}\n\
         x5t                  {}\n\
         x5t#S256             {}\n\
         customKeyIdentifier  {}\n",
        printable(&certificate.subject),
        printable(&certificate.issuer),
        certificate.key,
        certificate.not_before,
        certificate.not_after,
        certificate.sha1_thumbprint(),
        certificate.sha256_thumbprint(),
        certificate.x5t(),
        certificate.x5t_s256(),
        certificate.custom_key_identifier(),
    )
}

fn json(certificate: &Certificate) -> serde_json::Value {
    json!({
        "subject": certificate.subject,
        "issuer": certificate.issuer,
        "key": certificate.key.to_string(),
        "not_before": certificate.not_before.to_string(),
        "not_after": certificate.not_after.to_string(),
        "sha1_thumbprint": certificate.sha1_thumbprint(),
        "sha256_thumbprint": certificate.sha256_thumbprint(),
        "x5t": certificate.x5t(),
        "x5t#S256": certificate.x5t_s256(),
        "customKeyIdentifier": certificate.custom_key_identifier(),
        "keyCredentials": [blocks::key_credential(certificate)],
    })
}

/// A name in a certificate may be anything; a terminal must not obey it.
fn printable(text: &str) -> String {
    text.chars()
        .map(|it| if it.is_control() { '\u{fffd}' } else { it })
        .collect()
}
