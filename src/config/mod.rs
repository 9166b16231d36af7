//! The configuration: the file as written (`document.rs`, `section.rs`), then as meant (this module).
//!
//! Nothing after [`Config::load`] checks anything again: making a [`Config`] is the only check
//! there is.

mod check;
mod credential;
mod document;
mod file;
mod finding;
mod form;
mod notices;
mod section;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::SecretString;

use crate::address::Address;
pub use crate::envelope::UnknownPolicy;
use crate::envelope::{Format, HeaderFrom};

pub use finding::{ConfigErrors, Finding, Findings, Place, Severity};

/// The environment variables that matter: `GRAPHPOST__…`, `CREDENTIALS_DIRECTORY`, and those by which
/// Azure says who gives tokens to managed identities.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

/// Any of the values may be a secret.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Environment {
    /// Those of this process.
    pub fn of_process() -> Environment {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }
}

impl Environment {
    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Environment {
        Environment(
            variables
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        )
    }
}

/// Whether the files that a configuration names are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// Passwords are read, and all others must be readable: to run the gateway.
    Opened,
    /// No file is touched, and no password is read: for commands that only need to know where things
    /// are, run by people who may not read the keys.
    Named,
}

/// Everything the gateway needs, in the types it needs it in.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from.
    pub path: PathBuf,
    /// The Microsoft side.
    pub tenant: Tenant,
    /// Where clients connect; never empty.
    pub listeners: Vec<Listener>,
    /// Who may send as what, in order; the first match wins.
    pub senders: Vec<SenderRule>,
    /// What holds for all listeners.
    pub smtp: Smtp,
    /// The accounts file, where any listener has AUTH.
    pub accounts_file: Option<PathBuf>,
    /// The durable queue.
    pub spool: Spool,
    /// The way out.
    pub delivery: Delivery,
    /// Who is told of mail that does not arrive.
    pub bounce: Bounce,
    /// Which of the operator's systems are told of what needs a person.
    pub notify: Notify,
    /// The status page and metrics.
    pub admin: Admin,
    /// The log.
    pub log: Log,
    /// What is allowed, but perhaps not meant.
    pub warnings: Findings,
}

/// The tenant, the application in it, and how to reach both.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// The tenant's GUID or a verified domain.
    pub id: String,
    /// The application (client) id.
    pub client_id: String,
    /// The Entra authority without a trailing slash, e.g. `https://login.microsoftonline.com`.
    pub authority: String,
    /// The Graph root without a trailing slash, e.g. `https://graph.microsoft.com`.
    pub graph: String,
    /// The API that is spoken there.
    pub api: Api,
    /// How the application proves itself.
    pub credential: ApplicationCredential,
    /// The credential that will follow: it is used as soon as Entra ID takes it.
    pub next_credential: Option<ApplicationCredential>,
    /// Whether the certificate and its issuers are sent along (`x5c`), for applications that trust an
    /// issuer and a subject name.
    pub send_certificate_chain: bool,
    /// Whether tokens are asked for that Graph may revoke at any time, and that last a day.
    pub continuous_access_evaluation: bool,
    /// The signature of the client assertion.
    pub assertion: AssertionAlgorithm,
    /// An HTTP proxy for Entra and Graph; `None` takes the environment's (`HTTPS_PROXY`, `NO_PROXY`).
    pub proxy: Option<String>,
    /// More certificate authorities (PEM), for networks that inspect TLS.
    pub ca_file: Option<PathBuf>,
    /// Whether messages that are too large for one request are sent as drafts with uploads: that the
    /// application has Mail.ReadWrite.
    pub large_messages: bool,
}

/// The REST API that takes the mail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Api {
    /// Microsoft Graph v1.0.
    #[default]
    Graph,
    /// The Outlook REST API v2.0, which came before it: single requests in JSON, and nothing else.
    OutlookV2,
}

/// How the application proves itself to Entra ID.
#[derive(Clone, Debug)]
pub enum ApplicationCredential {
    /// A certificate with its key, in files.
    Certificate {
        /// The files.
        files: Credential,
        /// Where the password is, if it is in a vault.
        vault_password: Option<VaultPassword>,
    },
    /// A certificate in Azure Key Vault.
    VaultCertificate(VaultCertificate),
    /// A client secret.
    Secret(SecretString),
    /// A token of another platform, in a file that is replaced from time to time (workload identity
    /// federation).
    FederatedToken(PathBuf),
    /// The identity of the machine in Azure; there is nothing to prove.
    ManagedIdentity(ManagedIdentity),
}

impl ApplicationCredential {
    /// The certificate's files, where there are some.
    pub fn files(&self) -> Option<&Credential> {
        match self {
            ApplicationCredential::Certificate { files, .. } => Some(files),
            _ => None,
        }
    }
}

/// A password in Azure Key Vault.
#[derive(Clone, Debug)]
pub struct VaultPassword {
    /// The secret that holds it.
    pub secret: VaultObject,
    /// Who asks for it.
    pub identity: VaultIdentity,
}

/// A certificate in Azure Key Vault.
#[derive(Clone, Debug)]
pub struct VaultCertificate {
    /// The certificate.
    pub certificate: VaultObject,
    /// Whether its key is downloaded. Otherwise the vault signs, and the key never leaves it.
    pub download: bool,
    /// Who asks for it.
    pub identity: VaultIdentity,
}

/// Something in Azure Key Vault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultObject {
    /// The vault's root without a trailing slash: `https://contoso.vault.azure.net`.
    pub vault: String,
    /// The object's name.
    pub name: String,
    /// Its version; the newest where there is none.
    pub version: Option<String>,
}

/// How the gateway gets at a vault.
#[derive(Clone, Debug)]
pub enum VaultIdentity {
    /// By the identity of the machine in Azure.
    Managed(ManagedIdentity),
    /// As the application, by a token of another platform.
    Federated(PathBuf),
}

/// An identity that Azure gives to a machine.
#[derive(Clone, Debug)]
pub struct ManagedIdentity {
    /// Which one; the machine's own where there is none.
    pub client_id: Option<String>,
    /// Who gives tokens to it.
    pub host: IdentityHost,
}

/// Who gives tokens to managed identities, as the environment says.
#[derive(Clone, Debug)]
pub enum IdentityHost {
    /// A virtual machine's metadata service.
    VirtualMachine {
        /// Its root: `http://169.254.169.254`.
        root: String,
    },
    /// App Service, Functions and Container Apps.
    AppService {
        /// `$IDENTITY_ENDPOINT`
        endpoint: String,
        /// `$IDENTITY_HEADER`
        header: SecretString,
    },
    /// The agent of Azure Arc.
    Arc {
        /// `$IDENTITY_ENDPOINT`, or where the agent listens.
        endpoint: String,
        /// The one directory whose key files are read and shown to the agent.
        key_directory: PathBuf,
    },
}

/// Where the certificate is, and what opens it.
#[derive(Clone, Debug)]
pub struct Credential {
    /// A PFX, or a PEM with the certificate and perhaps the key.
    pub certificate: PathBuf,
    /// The key, where the certificate file has none.
    pub private_key: Option<PathBuf>,
    /// What opens the PFX or the encrypted key; read from `password_file` where that is given.
    pub password: Option<SecretString>,
}

/// How the client assertion is signed. PS256 goes with `x5t#S256`, RS256 with `x5t`; never mixed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AssertionAlgorithm {
    /// RSASSA-PSS with SHA-256: what Microsoft documents.
    #[default]
    Ps256,
    /// RSASSA-PKCS1-v1_5 with SHA-256: the older form, still accepted.
    Rs256,
}

/// One listening address.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Its name in logs and metrics; the address where none is given.
    pub name: String,
    /// Where it listens. Port 0 takes a free one.
    pub address: SocketAddr,
    /// The name of the socket, listening on that address, that the service manager passes; `None` where
    /// the gateway opens its own.
    pub socket: Option<String>,
    /// Proxies that say in a PROXY header whose connection it is.
    pub proxy_protocol_from: Vec<IpNet>,
    /// Whether and how TLS is spoken.
    pub tls: TlsMode,
    /// The certificates; empty exactly where `tls` is [`TlsMode::None`].
    pub certificates: Vec<ListenerCertificate>,
    /// How old the TLS may be that is served.
    pub tls_profile: TlsProfile,
    /// Who may use TLS 1.0 and 1.1, where the profile is [`TlsProfile::Legacy`].
    pub legacy_networks: Vec<IpNet>,
    /// How long clients may take to begin TLS before they are greeted, where `tls` is
    /// [`TlsMode::Auto`].
    pub tls_wait: Duration,
    /// Who may connect.
    pub networks: Vec<IpNet>,
    /// Whether clients log in.
    pub auth: Auth,
    /// Whether CRAM-MD5 is offered, once an account has a recoverable password.
    pub cram_md5: bool,
    /// Who may send a password without TLS.
    pub plaintext_auth: Vec<IpNet>,
    /// How long a message waits for other transactions with the same mail; zero is not at all.
    pub merge_split: Duration,
}

/// How a listener speaks TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// Not at all.
    #[default]
    None,
    /// STARTTLS is offered.
    StartTls,
    /// STARTTLS is offered, and nothing is accepted before it.
    Required,
    /// TLS from the first octet (RFC 8314).
    Implicit,
    /// TLS from the first octet for clients that begin with it; for the others STARTTLS is offered.
    Auto,
}

/// How old the TLS may be that a listener serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsProfile {
    /// TLS 1.3, and 1.2 with forward secrecy and authenticated encryption.
    #[default]
    Modern,
    /// And 1.2 with what it had at first: CBC and static RSA.
    Compat,
    /// And 1.1 and 1.0, for networks that are named.
    Legacy,
}

/// A certificate of a listener.
#[derive(Clone, Debug)]
pub enum ListenerCertificate {
    /// In files.
    Files(Credential),
    /// Made by us when there is none, and kept beside the queue.
    SelfSigned,
}

impl ListenerCertificate {
    /// Its files, where they are given.
    pub fn files(&self) -> Option<&Credential> {
        match self {
            ListenerCertificate::Files(it) => Some(it),
            ListenerCertificate::SelfSigned => None,
        }
    }

    /// Whether both are in the same file.
    pub fn is_same_place(&self, other: &ListenerCertificate) -> bool {
        match (self, other) {
            (ListenerCertificate::Files(one), ListenerCertificate::Files(other)) => {
                one.certificate == other.certificate
            }
            (ListenerCertificate::SelfSigned, ListenerCertificate::SelfSigned) => true,
            _ => false,
        }
    }
}

/// Whether clients log in on a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// AUTH is not offered.
    #[default]
    None,
    /// AUTH is offered; without it the rules for networks decide.
    Optional,
    /// Nothing is accepted before AUTH.
    Required,
}

/// One row of the sender table.
#[derive(Clone, Debug)]
pub struct SenderRule {
    /// Its name in the log: the `name` key, or `sender[3]` counted from 1.
    pub name: String,
    /// The line of the file it begins on, counted from 1.
    pub line: usize,
    /// What the envelope sender must match: any of these.
    pub addresses: Vec<Pattern>,
    /// The mailbox that sends (its user principal name).
    pub mailbox: String,
    /// Only for clients in these networks; empty means any that may connect.
    pub networks: Vec<IpNet>,
    /// Only for these accounts (lower case); empty means with or without login.
    pub accounts: Vec<String>,
    /// What becomes of the From field.
    pub header_from: HeaderFrom,
    /// Whether Exchange keeps a copy in Sent Items.
    pub save_to_sent_items: bool,
    /// The format for its messages; `None` for that of `[delivery]`.
    pub format: Option<Format>,
    /// What to do when nobody can know whether Graph sent one; `None` for what `[delivery]` says.
    pub unknown: Option<UnknownPolicy>,
}

/// What a sender address is compared with. Case is ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// `erp@contoso.com`, or `printer` for an address without a domain. Lower case.
    Exact(String),
    /// `*@contoso.com`: any local part at exactly this domain. Lower case, without the `@`.
    Domain(String),
    /// `*`: any address, but not the null reverse-path.
    Any,
    /// `<>`: the null reverse-path.
    Null,
}

/// The largest message that fits into one request to Graph, in octets: 3.5 MB of a request, of which an
/// attachment takes as much as it does in the message without its line breaks.
pub const LARGEST_SINGLE_REQUEST: u64 = 3_550_000;

/// The largest message by default where larger ones are sent as drafts: what Exchange Online takes
/// unless an administrator changed it
/// (<https://learn.microsoft.com/graph/api/attachment-createuploadsession>).
pub const LARGEST_DRAFT: u64 = 35 << 20;

/// What holds for all listeners.
#[derive(Clone, Debug)]
pub struct Smtp {
    /// The name in the greeting and the Received field.
    pub hostname: String,
    /// The largest message, in octets of content after dot-unstuffing. Advertised as SIZE.
    pub max_message_size: u64,
    /// The most Received fields of one message; with more it is going in circles.
    pub max_hops: usize,
    /// The most recipients of one transaction.
    pub max_recipients: usize,
    /// The most connections at once, over all listeners.
    pub max_connections: usize,
    /// The most connections at once from one address.
    pub max_connections_per_address: usize,
    /// The most connections at once from one network: 256 IPv4 addresses (/24), or an IPv6 /64.
    pub max_connections_per_network: usize,
    /// The most messages on one connection.
    pub max_messages_per_connection: usize,
    /// The most messages a minute from one address and from one account; 0 is no limit. Clients on
    /// this machine are limited by account only.
    pub max_messages_per_minute: usize,
    /// The most recipients a minute, counted in the same way.
    pub max_recipients_per_minute: usize,
    /// Unknown or misplaced commands after which we hang up.
    pub max_errors: usize,
    /// Failed logins after which we hang up.
    pub max_auth_failures: usize,
    /// How long the answer to a failed login is held back, times the failures on the connection.
    pub auth_failure_delay: Duration,
    /// Failed logins from one address or to one account after which it is locked out; 0 is never.
    pub lockout_after: usize,
    /// How long it is locked out, and how long a failure counts.
    pub lockout_time: Duration,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long we wait for a command.
    pub command_timeout: Duration,
    /// How long we wait for the next octet of mail data.
    pub data_timeout: Duration,
    /// Octets a second that mail data must come at in the mean, once `data_timeout` has passed.
    pub min_data_rate: usize,
    /// How long the data of one message may take in all.
    pub message_timeout: Duration,
    /// How long a connection may last.
    pub session_timeout: Duration,
}

impl Default for Smtp {
    fn default() -> Smtp {
        let minute = Duration::from_secs(60);
        Smtp {
            hostname: "localhost".to_owned(),
            max_message_size: LARGEST_SINGLE_REQUEST,
            max_hops: 100,
            max_recipients: 2000,
            max_connections: 1000,
            max_connections_per_address: 200,
            max_connections_per_network: 500,
            max_messages_per_connection: 1000,
            max_messages_per_minute: 6000,
            max_recipients_per_minute: 60_000,
            max_errors: 20,
            max_auth_failures: 3,
            auth_failure_delay: Duration::from_secs(1),
            lockout_after: 20,
            lockout_time: 15 * minute,
            handshake_timeout: Duration::from_secs(30),
            // RFC 5321 §4.5.3.2.7.
            command_timeout: 5 * minute,
            data_timeout: 3 * minute,
            // A line of text in a minute or so: some devices are that slow, and no slower.
            min_data_rate: 1,
            message_timeout: 30 * minute,
            session_timeout: 120 * minute,
        }
    }
}

/// The durable queue.
#[derive(Clone, Debug)]
pub struct Spool {
    /// Where it lives. Must be on a local file system.
    pub directory: PathBuf,
    /// Content of more octets than this goes to a file of its own.
    pub file_threshold: usize,
    /// The most octets of content kept; over it clients get 452 4.3.1.
    pub max_bytes: u64,
    /// The most messages kept; over it clients get 452 4.3.1.
    pub max_messages: u64,
    /// The free space on the file system under which clients get 452 4.3.1.
    pub min_free_bytes: u64,
    /// How long the record of a sent message is kept, for "what became of this mail?".
    pub keep_sent: Duration,
    /// How long a failed message is kept.
    pub keep_failed: Duration,
}

impl Default for Spool {
    fn default() -> Spool {
        let day = Duration::from_secs(86_400);
        Spool {
            directory: PathBuf::from("/var/lib/graphpost"),
            file_threshold: 100 << 10,
            max_bytes: 10 << 30,
            max_messages: 200_000,
            min_free_bytes: 200 << 20,
            keep_sent: 7 * day,
            keep_failed: 30 * day,
        }
    }
}

/// The way out.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Requests in flight for one mailbox. Graph allows 4.
    pub concurrency_per_mailbox: usize,
    /// Requests in flight over all mailboxes.
    pub concurrency: usize,
    /// Messages a minute for one mailbox. Exchange Online allows 30.
    pub messages_per_minute: u32,
    /// What messages on their way out may hold in memory together, in octets.
    pub max_memory: u64,
    /// Recipients of one request; a message with more is sent in several.
    pub max_recipients: usize,
    /// How long a message is tried before it fails.
    pub lifetime: Duration,
    /// The wait after the first failed attempt; doubled after each further one.
    pub retry_first: Duration,
    /// The longest wait between two attempts.
    pub retry_max: Duration,
    /// How long one request may take in all.
    pub request_timeout: Duration,
    /// How long deliveries under way may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// What to do when nobody can know whether Graph sent a message.
    pub unknown: UnknownPolicy,
    /// How long a message is looked for in Sent Items before it counts as not sent.
    pub verify_time: Duration,
    /// The format that messages are sent in.
    pub format: Format,
    /// Whether the text beside an HTML body is sent as well, which only MIME can.
    pub keep_text_alternative: bool,
}

impl Default for Delivery {
    fn default() -> Delivery {
        Delivery {
            concurrency_per_mailbox: 4,
            concurrency: 32,
            messages_per_minute: 30,
            // What Exchange Online takes unless an administrator changed it.
            max_recipients: 500,
            max_memory: 128 << 20,
            // RFC 5321 §4.5.4.1: at least four to five days.
            lifetime: Duration::from_secs(4 * 86_400),
            retry_first: Duration::from_secs(30),
            retry_max: Duration::from_secs(30 * 60),
            request_timeout: Duration::from_secs(120),
            drain_timeout: Duration::from_secs(30),
            unknown: UnknownPolicy::default(),
            verify_time: Duration::from_secs(5 * 60),
            format: Format::default(),
            keep_text_alternative: false,
        }
    }
}

/// Who is told of mail that does not arrive.
#[derive(Clone, Debug)]
pub struct Bounce {
    /// Whether the envelope sender gets a delivery status notification (RFC 3464).
    pub to_sender: bool,
    /// Who gets one for every failed message besides.
    pub postmaster: Option<Address>,
    /// After what time the sender of a waiting message is told that it is late; `None` for never.
    pub warn_after: Option<Duration>,
}

impl Default for Bounce {
    fn default() -> Bounce {
        Bounce {
            to_sender: true,
            postmaster: None,
            warn_after: None,
        }
    }
}

/// Which of the operator's systems are told of what needs a person, and of what.
#[derive(Clone, Debug)]
pub struct Notify {
    /// What they are told of.
    pub events: Vec<NotifyEvent>,
    /// A receiver of HTTP requests.
    pub webhook: Option<Webhook>,
    /// A command.
    pub command: Option<Hook>,
}

impl Default for Notify {
    fn default() -> Notify {
        Notify {
            events: NotifyEvent::ALL.iter().map(|(_, it)| *it).collect(),
            webhook: None,
            command: None,
        }
    }
}

/// What the operator's systems can be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotifyEvent {
    /// A message has failed, or was given up for its age.
    Failed,
    /// A message or a mailbox waits for somebody to mend something or to decide.
    Held,
    /// All mail waits, because the application's credential is refused.
    CredentialHeld,
    /// A certificate is about to end.
    CertificateExpires,
    /// New mail is refused, because there is no room for it.
    QueueFull,
}

impl NotifyEvent {
    /// All of them, by their words.
    const ALL: [(&'static str, NotifyEvent); 5] = [
        ("failed", NotifyEvent::Failed),
        ("held", NotifyEvent::Held),
        ("credential-held", NotifyEvent::CredentialHeld),
        ("certificate-expires", NotifyEvent::CertificateExpires),
        ("queue-full", NotifyEvent::QueueFull),
    ];
}

/// A receiver of HTTP requests.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// Where they go; often as good as a password.
    pub url: SecretString,
    /// What they are signed with.
    pub secret: Option<SecretString>,
    /// How long one may take in all.
    pub timeout: Duration,
}

/// A command of the operator's.
#[derive(Clone, Debug)]
pub struct Hook {
    /// The program, by its absolute path, and its arguments; never empty.
    pub command: Vec<String>,
    /// How long it may take.
    pub timeout: Duration,
}

/// The status page and metrics.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where it listens; `None` for nowhere.
    pub address: Option<SocketAddr>,
    /// The control socket of the command line.
    pub socket: PathBuf,
}

impl Default for Admin {
    fn default() -> Admin {
        Admin {
            address: Some(SocketAddr::from(([127, 0, 0, 1], 8025))),
            socket: PathBuf::from("/var/lib/graphpost/control.sock"),
        }
    }
}

/// The log.
#[derive(Clone, Debug)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// The least level written: `error`, `warn`, `info` or `debug`.
    pub level: tracing::Level,
}

impl Default for Log {
    fn default() -> Log {
        Log {
            format: LogFormat::default(),
            level: tracing::Level::INFO,
        }
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// `key=value` pairs.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// A duration as it is written in the configuration: `15m`, `12h`, `5d`.
///
/// # Errors
/// What was expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    value::duration(text).map_err(|it| format!("'{text}' {}, {}", it.title, it.label))
}
