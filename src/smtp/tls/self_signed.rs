//! A certificate that no authority has signed, made when a listener asks for it: for networks where
//! TLS keeps mail from being read on the way, and no client looks who signed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    PKCS_RSA_SHA256, RsaKeySize, date_time_ymd,
};
use zeroize::Zeroizing;

use crate::config::Credential;
use crate::event;
use crate::identity::certificate::{Certificate, CertificateError, KeyPair};
use crate::identity::credential::{CredentialError, open_for_tls};

/// How long one lasts. Apple's systems take none that lasts longer than 825 days.
const LIFETIME: Duration = Duration::from_secs(820 * 86_400);
/// How long before its end it is replaced.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 86_400);
/// Clocks differ, those of devices above all.
const BEFORE_NOW: Duration = Duration::from_secs(86_400);

/// Where it is kept, and for which host it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// The directory of the state that outlives the process.
    pub directory: PathBuf,
    /// The host's name.
    pub hostname: String,
}

impl Home {
    /// The file with certificate and key.
    pub fn file(&self) -> PathBuf {
        self.directory.join("tls").join("self-signed.pem")
    }
}

/// Whether its end is so near that another must be made.
pub(super) fn must_be_renewed(not_after: Timestamp, now: Timestamp) -> bool {
    not_after.as_second() - now.as_second() < RENEW_BEFORE.as_secs().cast_signed()
}

/// Opens the certificate, or makes it where there is none that will do. The key is kept when the
/// certificate is renewed, for those who have written it down. Blocking.
pub(super) fn open(home: &Home, now: Timestamp) -> Result<KeyPair, CredentialError> {
    let file = home.file();
    let there = match open_for_tls(&credential(&file)) {
        Ok(pair) if is_for(&pair.certificate, &home.hostname) => {
            if !must_be_renewed(pair.certificate.not_after, now) {
                return Ok(pair);
            }
            Some(pair)
        }
        Ok(pair) => Some(pair),
        Err(CredentialError::Read { error, .. }) if error.kind() == io::ErrorKind::NotFound => None,
        // Half written or worse: there is nothing in it that another would not do as well.
        Err(CredentialError::Certificate { .. } | CredentialError::TooLarge { .. }) => None,
        Err(error) => return Err(error),
    };
    let pem = make(&home.hostname, there.as_ref(), now).map_err(|error| CredentialError::Certificate {
        file: file.clone(),
        error: CertificateError::Damaged(error.to_string()),
    })?;
    write(&file, &pem).map_err(|error| CredentialError::Write {
        file: file.clone(),
        error,
    })?;
    let pair = open_for_tls(&credential(&file))?;
    event::smtp::certificate_made(
        &file,
        &pair.certificate.subject,
        pair.certificate.not_after,
        &pair.certificate.sha256_thumbprint(),
    );
    Ok(pair)
}

fn credential(file: &Path) -> Credential {
    Credential {
        certificate: file.to_owned(),
        private_key: None,
        password: None,
    }
}

fn is_for(certificate: &Certificate, hostname: &str) -> bool {
    certificate.subject == format!("CN={hostname}")
}

/// RSA, which every client can do that can do TLS.
fn make(hostname: &str, old: Option<&KeyPair>, now: Timestamp) -> Result<Zeroizing<String>, rcgen::Error> {
    let key = match old {
        Some(old) => rcgen::KeyPair::try_from(old.key.pkcs8())?,
        None => rcgen::KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?,
    };
    let mut params = CertificateParams::new(vec![hostname.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, hostname);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        // Static RSA, where the key decrypts the client's secret.
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let epoch = date_time_ymd(1970, 1, 1);
    let second = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or_default());
    params.not_before = epoch + second.saturating_sub(BEFORE_NOW);
    params.not_after = epoch + second + LIFETIME;
    let certificate = params.self_signed(&key)?;
    Ok(Zeroizing::new(
        certificate.pem() + &Zeroizing::new(key.serialize_pem()),
    ))
}

/// Whole or not at all, and for its owner alone.
fn write(file: &Path, pem: &str) -> io::Result<()> {
    let directory = file.parent().unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let new = file.with_extension("new");
    // What a crash left is not to be written into.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut open = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    open.write_all(pem.as_bytes())?;
    open.sync_all()?;
    fs::rename(&new, file)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn at(day: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + day * 86_400).expect("a time")
    }

    #[test]
    fn made_once_renewed_in_time_with_the_same_key() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = Home {
            directory: directory.path().to_owned(),
            hostname: "Relay.contoso.local".to_owned(),
        };
        let first = open(&home, at(0)).expect("made");
        assert!(first.certificate.not_before < at(0));
        assert_eq!(first.certificate.days_left(at(0)), 820);
        assert_eq!(
            super::super::identity::names(&first.certificate),
            ["relay.contoso.local"]
        );
        let mode = |it: &Path| fs::metadata(it).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&home.file()), 0o600);
        assert_eq!(mode(home.file().parent().expect("a directory")), 0o700);

        let again = open(&home, at(789)).expect("opened");
        assert_eq!(again.certificate, first.certificate);
        let renewed = open(&home, at(791)).expect("renewed");
        assert_eq!(renewed.certificate.days_left(at(791)), 820);
        assert_eq!(renewed.key.pkcs8(), first.key.pkcs8());

        // The host has another name now.
        let other = Home {
            hostname: "smtp.contoso.local".to_owned(),
            ..home.clone()
        };
        let other = open(&other, at(800)).expect("made");
        assert_eq!(other.certificate.subject, "CN=smtp.contoso.local");
        assert_eq!(other.key.pkcs8(), first.key.pkcs8());

        // A file that is none is replaced.
        fs::write(home.file(), "-----BEGIN").expect("written");
        fs::write(home.file().with_extension("new"), "left by a crash").expect("written");
        open(&home, at(800)).expect("made");
        assert_eq!(mode(&home.file()), 0o600);
    }

    #[test]
    fn where_it_cannot_be_kept_the_place_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("tls"), "in the way").expect("written");
        let home = Home {
            directory: directory.path().to_owned(),
            hostname: "relay".to_owned(),
        };
        let error = open(&home, at(0)).expect_err("no place").to_string();
        assert!(error.contains("tls/self-signed.pem"), "{error}");
    }
}
