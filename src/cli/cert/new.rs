//! `graphpost cert new`: a key, a self-signed certificate, and the files they are written to.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use openssl::pkcs12::Pkcs12;
use openssl::pkey::PKey;
use openssl::x509::X509;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256,
    RsaKeySize, date_time_ymd,
};
use serde_json::json;
use zeroize::Zeroizing;

use super::blocks::Upload;
use super::{Bits, CertError, New};
use crate::identity::certificate::Certificate;

/// Clocks differ; a certificate that begins now would be refused by one that is a little behind.
const BEFORE_NOW: Duration = Duration::from_secs(300);

/// A certificate, and the files it is in.
pub(in crate::cli) struct Made {
    pub(in crate::cli) certificate: Certificate,
    pub(in crate::cli) public: PathBuf,
    /// The key, or the PFX with key and certificate.
    pub(in crate::cli) secret: PathBuf,
    /// That of the PFX, where there is one.
    password: PathBuf,
}

/// Files written so far, removed again unless all could be.
struct Written {
    files: Vec<PathBuf>,
    complete: bool,
}

impl New {
    /// With everything at its default.
    pub(in crate::cli) fn in_directory(out: &Path) -> New {
        New {
            out: out.to_owned(),
            name: super::DEFAULT_NAME.to_owned(),
            bits: Bits::B3072,
            days: super::DEFAULT_DAYS,
            pfx: false,
            json: false,
        }
    }

    /// Makes the key and the certificate, and writes them.
    pub(in crate::cli) fn write(&self, now: Timestamp) -> Result<Made, CertError> {
        let (key, certificate) = self.make(now)?;
        let directory = std::path::absolute(&self.out).unwrap_or_else(|_| self.out.clone());
        let file = |extension: &str| directory.join(format!("graphpost.{extension}"));
        let (public, secret, password) = (
            file("pem"),
            file(if self.pfx { "pfx" } else { "key" }),
            file("password"),
        );

        let mut written = Written {
            files: Vec::new(),
            complete: false,
        };
        if self.pfx {
            let secret_word = Zeroizing::new(random_password());
            let pfx = pfx(&key, &certificate, &self.name, &secret_word)?;
            written.write(&password, format!("{}\n", *secret_word).as_bytes(), 0o600)?;
            written.write(&secret, &pfx, 0o600)?;
        } else {
            let pem = Zeroizing::new(key.serialize_pem().replace("\r\n", "\n"));
            written.write(&secret, pem.as_bytes(), 0o600)?;
        }
        written.write(&public, certificate.to_pem().as_bytes(), 0o644)?;
        written.complete = true;
        Ok(Made {
            certificate,
            public,
            secret,
            password,
        })
    }

    pub(super) fn run(&self, now: Timestamp) -> Result<String, CertError> {
        let Made {
            certificate,
            public,
            secret,
            password,
        } = self.write(now)?;
        if self.json {
            let mut value = super::json(&certificate);
            value["certificate_file"] = json!(public);
            value[if self.pfx { "pfx_file" } else { "private_key_file" }] = json!(secret);
            if self.pfx {
                value["password_file"] = json!(password);
            }
            return Ok(super::blocks::pretty(&value));
        }
        Ok(format!(
            "{}\n{}\n{}\n{}",
            self.files(&public, &secret, &password),
            super::facts(&certificate, now),
            self.configuration(&public, &secret, &password),
            Upload::File(public).text(&certificate)
        ))
    }

    fn make(&self, now: Timestamp) -> Result<(KeyPair, Certificate), CertError> {
        let made = |error: rcgen::Error| CertError::Make(error.to_string());
        let size = match self.bits {
            Bits::B2048 => RsaKeySize::_2048,
            Bits::B3072 => RsaKeySize::_3072,
            Bits::B4096 => RsaKeySize::_4096,
        };
        let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, size).map_err(made)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, self.name.as_str());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let epoch = date_time_ymd(1970, 1, 1);
        let second = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or_default());
        params.not_before = epoch + second.saturating_sub(BEFORE_NOW);
        params.not_after = epoch + second + Duration::from_secs(86_400 * u64::from(self.days));
        let certificate = params.self_signed(&key).map_err(made)?;
        let certificate =
            Certificate::from_der(certificate.der()).map_err(|error| CertError::Make(error.to_string()))?;
        Ok((key, certificate))
    }

    fn files(&self, public: &Path, secret: &Path, password: &Path) -> String {
        let mut text = format!(
            "{}  the certificate: this is what you upload\n{}  the private key: it stays here, readable by its owner only\n",
            public.display(),
            secret.display(),
        );
        if self.pfx {
            text.push_str(&format!("{}  the password of the PFX\n", password.display()));
        }
        text
    }

    fn configuration(&self, public: &Path, secret: &Path, password: &Path) -> String {
        let quoted = |file: &Path| toml::Value::from(file.to_string_lossy().into_owned()).to_string();
        let mut text =
            String::from("In the configuration, with the service's account as the owner of these files:\n\n");
        text.push_str("   [tenant.credential]\n");
        if self.pfx {
            text.push_str(&format!("   certificate   = {}\n", quoted(secret)));
            text.push_str(&format!("   password_file = {}\n", quoted(password)));
        } else {
            text.push_str(&format!("   certificate = {}\n", quoted(public)));
            text.push_str(&format!("   private_key = {}\n", quoted(secret)));
        }
        text
    }
}

/// 120 random bits, in letters that no shell and no editor minds.
fn random_password() -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut octets = Zeroizing::new([0; 24]);
    aws_lc_rs::rand::fill(&mut *octets).expect("the system has random numbers");
    octets
        .iter()
        .map(|it| ALPHABET[usize::from(it & 31)] as char)
        .collect()
}

/// A PFX with AES-256 and a SHA-256 MAC, which Windows Server 2019 and all newer systems open.
fn pfx(key: &KeyPair, certificate: &Certificate, name: &str, password: &str) -> Result<Vec<u8>, CertError> {
    let made = |error: openssl::error::ErrorStack| CertError::Make(error.to_string());
    let key = PKey::private_key_from_pkcs8(key.serialized_der()).map_err(made)?;
    let certificate = X509::from_der(&certificate.der).map_err(made)?;
    Pkcs12::builder()
        .name(name)
        .pkey(&key)
        .cert(&certificate)
        .build2(password)
        .and_then(|it| it.to_der())
        .map_err(made)
}

impl Written {
    fn write(&mut self, file: &Path, content: &[u8], mode: u32) -> Result<(), CertError> {
        let failed = |error: io::Error| CertError::Write {
            file: file.to_owned(),
            error,
        };
        let mut open = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(file)
            .map_err(failed)?;
        self.files.push(file.to_owned());
        open.write_all(content).map_err(failed)?;
        open.sync_all().map_err(failed)
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        if !self.complete {
            for file in &self.files {
                // The error that brought us here is the one to tell.
                let _ = fs::remove_file(file);
            }
        }
    }
}
