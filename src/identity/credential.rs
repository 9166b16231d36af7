//! Reads the certificate files that the configuration names.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use secrecy::ExposeSecret as _;
use zeroize::Zeroizing;

use super::certificate::{Certificate, CertificateError, KeyPair, OpenError};
use crate::config::Credential;

/// The largest certificate or key file that is read, in octets. A PFX with a long chain has some
/// ten thousand.
const MAX_FILE_OCTETS: u64 = 1024 * 1024;

/// What is wrong with a certificate or key file. The text names the file and the fix.
#[derive(Debug)]
pub enum CredentialError {
    /// It cannot be read.
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It cannot be written, where it is made here.
    Write {
        /// The file.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is far larger than any certificate.
    TooLarge {
        /// The file.
        file: PathBuf,
    },
    /// It can be read but not used.
    Certificate {
        /// The file.
        file: PathBuf,
        /// Why.
        error: CertificateError,
    },
}

impl fmt::Display for CredentialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CredentialError::Read { file, error } => {
                let fix = match error.kind() {
                    io::ErrorKind::NotFound => "; check the path",
                    io::ErrorKind::PermissionDenied => "; let the service's account read it",
                    _ => "",
                };
                write!(f, "{}: cannot be read: {error}{fix}", file.display())
            }
            CredentialError::Write { file, error } => write!(
                f,
                "{}: cannot be written: {error}; let the service's account write there",
                file.display()
            ),
            CredentialError::TooLarge { file } => write!(
                f,
                "{}: larger than {MAX_FILE_OCTETS} octets, so no certificate or key; check the path",
                file.display()
            ),
            CredentialError::Certificate { file, error } => write!(f, "{}: {error}", file.display()),
        }
    }
}

impl std::error::Error for CredentialError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CredentialError::Read { error, .. } | CredentialError::Write { error, .. } => Some(error),
            CredentialError::TooLarge { .. } => None,
            CredentialError::Certificate { error, .. } => Some(error),
        }
    }
}

/// Opens the certificate with which the application proves itself to Entra ID. Blocks: a PFX may ask
/// for hundreds of thousands of rounds of key derivation.
///
/// An expired certificate is opened all the same, for Entra ID is the judge of that, and mail is to
/// be accepted and held meanwhile; [`Certificate::check_validity`] tells.
///
/// # Errors
/// [`CredentialError`] names the file and the fix.
pub fn open_for_entra(credential: &Credential) -> Result<KeyPair, CredentialError> {
    let pair = open(credential)?;
    pair.check_for_entra()
        .map_err(|error| about(&credential.certificate, error))?;
    Ok(pair)
}

/// Opens the certificate of a TLS listener; elliptic curves are welcome here. Blocks.
///
/// [`KeyPair::tls_chain`] and [`KeyPair::tls_key`] give it to rustls. An expired certificate is
/// opened all the same: many devices never look, and a gateway that does not start serves none.
///
/// # Errors
/// [`CredentialError`] names the file and the fix.
pub fn open_for_tls(credential: &Credential) -> Result<KeyPair, CredentialError> {
    let pair = open(credential)?;
    pair.check_for_tls()
        .map_err(|error| about(&credential.certificate, error))?;
    Ok(pair)
}

/// Reads the certificate of any PFX, PEM or DER file, with or without a key, to show it. Blocks.
///
/// # Errors
/// [`CredentialError`] names the file and the fix.
pub fn read_certificate(file: &Path, password: Option<&str>) -> Result<Certificate, CredentialError> {
    let content = read(file)?;
    Certificate::from_file_content(&content, password).map_err(|error| about(file, error))
}

fn open(credential: &Credential) -> Result<KeyPair, CredentialError> {
    let certificate = read(&credential.certificate)?;
    let private_key = credential.private_key.as_deref().map(read).transpose()?;
    let password = credential.password.as_ref().map(|it| it.expose_secret());
    KeyPair::open(
        &certificate,
        private_key.as_ref().map(|it| it.as_slice()),
        password,
    )
    .map_err(|error| match (error, &credential.private_key) {
        (OpenError::PrivateKey(error), Some(file)) => about(file, error),
        (OpenError::Certificate(error) | OpenError::PrivateKey(error), _) => {
            about(&credential.certificate, error)
        }
    })
}

fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>, CredentialError> {
    let failed = |error| CredentialError::Read {
        file: file.to_owned(),
        error,
    };
    let mut content = Zeroizing::new(Vec::new());
    File::open(file)
        .map_err(failed)?
        .take(MAX_FILE_OCTETS + 1)
        .read_to_end(&mut content)
        .map_err(failed)?;
    if content.len() as u64 > MAX_FILE_OCTETS {
        return Err(CredentialError::TooLarge {
            file: file.to_owned(),
        });
    }
    Ok(content)
}

fn about(file: &Path, error: CertificateError) -> CredentialError {
    CredentialError::Certificate {
        file: file.to_owned(),
        error,
    }
}
