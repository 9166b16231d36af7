//! A certificate that a listener serves, made ready for both libraries.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::ssl::{SslContext, SslMethod, SslMode, SslOptions, SslSessionCacheMode, SslVersion};
use openssl::x509::X509;
use rustls::ServerConfig;
use rustls::server::ResolvesServerCert;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::choice::{OPENSSL_GROUP_NAMES, PROVIDER, openssl_cipher_list};
use super::client_hello::Version;
use super::self_signed::{self, Home};
use crate::config::{ListenerCertificate, TlsProfile};
use crate::identity::certificate::{Certificate, CertificateError, KeyPair};
use crate::identity::credential::{CredentialError, open_for_tls};

/// A certificate in use, for whoever watches its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Its file.
    pub file: PathBuf,
    /// Its subject.
    pub subject: String,
    /// Its SHA-1 thumbprint.
    pub thumbprint: String,
    /// When it ends.
    pub not_after: Timestamp,
}

/// A certificate with its key, and what each library does a handshake with.
pub(super) struct Identity {
    pub about: Arc<About>,
    /// The hosts that it is for, in lower case.
    pub names: Vec<String>,
    pub certified: Arc<CertifiedKey>,
    pub rustls: Arc<ServerConfig>,
    /// From TLS 1.2; where the profile has OpenSSL, and OpenSSL has a use for the key.
    pub compat: Option<SslContext>,
    /// From TLS 1.0; the same.
    pub legacy: Option<SslContext>,
    /// What the configuration says about it.
    pub source: ListenerCertificate,
    /// The files as they were before they were read.
    pub stamp: Stamp,
}

/// By what a changed file is known: it need not be read for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp(Vec<Option<FileStamp>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    size: u64,
}

impl Stamp {
    /// Blocking.
    pub fn of(source: &ListenerCertificate, home: &Home) -> Stamp {
        let files = match source {
            ListenerCertificate::SelfSigned => vec![home.file()],
            ListenerCertificate::Files(it) => {
                let mut files = vec![it.certificate.clone()];
                files.extend(it.private_key.clone());
                files
            }
        };
        let stamp = |file: PathBuf| {
            // Through symbolic links, which certbot and Kubernetes replace.
            let it = fs::metadata(file).ok()?;
            Some(FileStamp {
                device: it.dev(),
                inode: it.ino(),
                modified: (it.mtime(), it.mtime_nsec()),
                size: it.size(),
            })
        };
        Stamp(files.into_iter().map(stamp).collect())
    }
}

impl Identity {
    /// Opens a certificate. Blocking.
    pub fn open(
        source: &ListenerCertificate,
        home: &Home,
        profile: TlsProfile,
        now: Timestamp,
    ) -> Result<Identity, CredentialError> {
        let stamp = Stamp::of(source, home);
        let (file, pair) = match source {
            ListenerCertificate::Files(credential) => {
                (credential.certificate.clone(), open_for_tls(credential)?)
            }
            ListenerCertificate::SelfSigned => (home.file(), self_signed::open(home, now)?),
        };
        let about = |error| CredentialError::Certificate {
            file: file.clone(),
            error,
        };
        let certified = Arc::new(pair.certified_key().map_err(about)?);
        let context = |oldest| {
            openssl(&pair, oldest).map_err(|error| about(CertificateError::Damaged(error.to_string())))
        };
        let (compat, legacy) = match profile {
            TlsProfile::Modern => (None, None),
            TlsProfile::Compat => (Some(context(Version::TLS1_2)?), None),
            TlsProfile::Legacy => (Some(context(Version::TLS1_2)?), Some(context(Version::TLS1_0)?)),
        };
        Ok(Identity {
            names: names(&pair.certificate),
            rustls: rustls(Arc::clone(&certified)),
            certified,
            compat,
            legacy,
            source: source.clone(),
            // One that was made just now has changed since.
            stamp: match source {
                ListenerCertificate::SelfSigned => Stamp::of(source, home),
                ListenerCertificate::Files(_) => stamp,
            },
            about: Arc::new(About {
                subject: pair.certificate.subject.clone(),
                thumbprint: pair.certificate.sha1_thumbprint(),
                not_after: pair.certificate.not_after,
                file,
            }),
        })
    }

    /// Whether there is something newer to open, or soon must be. Blocking.
    pub fn is_stale(&self, home: &Home, now: Timestamp) -> bool {
        let renew = match self.source {
            ListenerCertificate::SelfSigned => self_signed::must_be_renewed(self.about.not_after, now),
            ListenerCertificate::Files(_) => false,
        };
        renew || Stamp::of(&self.source, home) != self.stamp
    }
}

fn rustls(certified: Arc<CertifiedKey>) -> Arc<ServerConfig> {
    let resolver: Arc<dyn ResolvesServerCert> = Arc::new(SingleCertAndKey::from(certified));
    let config = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_safe_default_protocol_versions()
        .expect("the provider has the suites of TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    Arc::new(config)
}

/// What OpenSSL serves old clients with. Everything that a system-wide `openssl.cnf` might have set is
/// set here.
fn openssl(pair: &KeyPair, oldest: Version) -> Result<SslContext, ErrorStack> {
    let mut context = SslContext::builder(SslMethod::tls_server())?;
    context.set_security_level(0);
    context.set_min_proto_version(Some(match oldest {
        Version::TLS1_0 => SslVersion::TLS1,
        _ => SslVersion::TLS1_2,
    }))?;
    context.set_max_proto_version(None)?;
    context.clear_options(
        SslOptions::NO_TLSV1 | SslOptions::NO_TLSV1_1 | SslOptions::NO_TLSV1_2 | SslOptions::NO_TLSV1_3,
    );
    context.set_options(
        SslOptions::NO_SSLV2
            | SslOptions::NO_SSLV3
            | SslOptions::NO_COMPRESSION
            // A client could have us do handshakes for ever (CVE-2011-1473).
            | SslOptions::NO_RENEGOTIATION
            | SslOptions::CIPHER_SERVER_PREFERENCE
            // Records without content guard TLS 1.0 against clients that let strangers choose what is
            // sent to them (CVE-2011-3389); no SMTP client does, and some old ones choke on them.
            | SslOptions::DONT_INSERT_EMPTY_FRAGMENTS,
    );
    context.set_cipher_list(&openssl_cipher_list())?;
    context.set_groups_list(OPENSSL_GROUP_NAMES)?;
    // Tickets let a device resume; a cache of our own would grow with every client.
    context.set_session_cache_mode(SslSessionCacheMode::OFF);
    context.set_session_id_context(b"graphpost")?;
    // An idle connection keeps no buffers.
    context.set_mode(SslMode::RELEASE_BUFFERS);

    let certificate = X509::from_der(&pair.certificate.der)?;
    context.set_certificate(&certificate)?;
    for issuer in &pair.chain {
        context.add_extra_chain_cert(X509::from_der(issuer)?)?;
    }
    let key = PKey::private_key_from_pkcs8(pair.key.pkcs8())?;
    context.set_private_key(&key)?;
    context.check_private_key()?;
    Ok(context.build())
}

/// The hosts that a certificate is for, in lower case.
pub(super) fn names(certificate: &Certificate) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(&certificate.der) else {
        return Vec::new();
    };
    let Ok(Some(extension)) = parsed.subject_alternative_name() else {
        return Vec::new();
    };
    let name = |it: &GeneralName<'_>| match it {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    };
    extension.value.general_names.iter().filter_map(name).collect()
}
