//! From the file to a [`Config`]: every key, its default, and what is wrong with it, all at once.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

use super::check::{self, WrittenListener, WrittenSender};
use super::credential;
use super::document::Document;
use super::finding::{ConfigErrors, Findings, line_of};
use super::form;
use super::notices;
use super::section::{Reader, Section, Spot};
use super::value::{self, Problem};
use super::{
    Admin, Api, AssertionAlgorithm, Auth, Config, Credential, Delivery, Environment, Files, LARGEST_DRAFT,
    LARGEST_SINGLE_REQUEST, Listener, ListenerCertificate, Log, LogFormat, Place, SenderRule, Smtp, Spool,
    Tenant, TlsMode, TlsProfile,
};
use crate::envelope::HeaderFrom;

/// The longest configuration read; some thousand sender rules.
const MAX_FILE: u64 = 8 << 20;

impl Config {
    /// Reads a configuration and lays the environment over it.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(path: &Path, environment: &Environment) -> Result<Config, ConfigErrors> {
        Config::load_with(path, environment, Files::Opened)
    }

    /// As [`Config::load`], with a say about the files it names.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load_with(path: &Path, environment: &Environment, files: Files) -> Result<Config, ConfigErrors> {
        let source = read(path).map_err(|(title, help)| {
            ConfigErrors(Findings::unreadable(path.display().to_string(), title, help))
        })?;
        Config::parse(&source, path, environment, files)
    }

    /// As [`Config::load_with`], of a text that would stand in the file `path`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(
        source: &str,
        path: &Path,
        environment: &Environment,
        files: Files,
    ) -> Result<Config, ConfigErrors> {
        let (config, findings, _) = parse(source, path, environment, files);
        let (errors, warnings) = findings.partition();
        match config {
            Some(config) if errors.is_empty() => Ok(Config { warnings, ..config }),
            _ => Err(ConfigErrors(errors)),
        }
    }

    /// Every key that a configuration may have: `smtp.hostname`, `listener.address`.
    pub fn known_keys() -> Vec<String> {
        let source = "[[listener]]\n[[listener.additional_certificate]]\n[[sender]]\n";
        let (_, _, known) = parse(source, Path::new(""), &Environment::default(), Files::Named);
        known
    }
}

/// The text of a configuration file, or what is wrong with it as a whole and what to do.
fn read(path: &Path) -> Result<String, (String, String)> {
    let shown = path.display();
    let unreadable = |error: io::Error| {
        match error.kind() {
        io::ErrorKind::NotFound => (
            format!("there is no configuration file {shown}"),
            "name one with --config FILE or GRAPHPOST_CONFIG; to try graphpost without any: graphpost sandbox"
                .to_owned(),
        ),
        io::ErrorKind::PermissionDenied => (
            format!("{shown} may not be read by this user"),
            "run as the user or in the group that may, or use sudo".to_owned(),
        ),
        _ => (format!("{shown} cannot be read: {error}"), "name a readable file with --config".to_owned()),
    }
    };
    let mut octets = Vec::new();
    let file = fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE + 1)
        .read_to_end(&mut octets)
        .map_err(unreadable)?;
    if octets.len() as u64 > MAX_FILE {
        return Err((
            format!("{shown} is larger than {} MB", MAX_FILE >> 20),
            "this can hardly be a configuration file".to_owned(),
        ));
    }
    String::from_utf8(octets).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = line_of(&String::from_utf8_lossy(&error.as_bytes()[..valid]), valid);
        (
            format!("{shown} is not UTF-8: the first other octet is on line {line}"),
            "save the file as UTF-8".to_owned(),
        )
    })
}

/// Where files are that the configuration names.
pub(super) struct Directories<'p> {
    /// That of the configuration file.
    base: &'p Path,
    /// systemd's `LoadCredential=` puts files here.
    credentials: Option<PathBuf>,
    pub(super) files: Files,
    pub(super) environment: &'p Environment,
}

impl Directories<'_> {
    /// A bare name is looked for among systemd's credentials first; a relative path begins where the
    /// configuration file is.
    fn find(&self, name: &str) -> PathBuf {
        let path = Path::new(name);
        if let Some(credentials) = &self.credentials
            && path.file_name().is_some_and(|it| it == path.as_os_str())
            && credentials.join(path).exists()
        {
            return credentials.join(path);
        }
        self.base.join(path)
    }
}

type Parsed = (Option<Config>, Findings, Vec<String>);

fn parse(source: &str, path: &Path, environment: &Environment, files: Files) -> Parsed {
    let mut document = Document::parse(source);
    let variables = environment
        .0
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let misplaced = document.overlay(variables);

    let reader = Reader::new(!document.errors.is_empty());
    let directories = Directories {
        base: path.parent().unwrap_or(Path::new("")),
        credentials: environment.0.get("CREDENTIALS_DIRECTORY").map(PathBuf::from),
        files,
        environment,
    };
    let config = root(&reader, &document, path, &directories);

    let (mut findings, known) = reader.finish();
    // What is found on a line that is no TOML is noise.
    let lines = |it: &Place| match it {
        Place::File(span) => Some(line_of(source, span.start)),
        _ => None,
    };
    let broken: Vec<_> = document.errors.iter().filter_map(|it| lines(&it.place)).collect();
    findings.retain(|it| lines(&it.place).is_none_or(|line| !broken.contains(&line)));
    findings.extend(document.errors);
    findings.extend(misplaced);

    let findings = Findings::new(path.display().to_string(), source, &document.secrets, findings);
    let known = known
        .iter()
        .flat_map(|(section, keys)| {
            keys.iter().map(move |key| match section.as_str() {
                "" => (*key).to_owned(),
                section => format!("{section}.{key}"),
            })
        })
        .collect();
    (config, findings, known)
}

/// `None` where something needed is missing or wrong; the reader knows what.
fn root(reader: &Reader, document: &Document, path: &Path, directories: &Directories<'_>) -> Option<Config> {
    let mut root = Section::root(reader, &document.root);
    let tenant = tenant(reader, root.section("tenant"), directories);

    let listeners: Vec<_> = root
        .sections("listener")
        .into_iter()
        .map(|it| listener(reader, it, directories))
        .collect();
    if !root.has("listener") {
        let help = "[[listener]]\naddress = \"127.0.0.1:2525\"".to_owned();
        reader.missing(
            &Place::Whole,
            "there is no [[listener]]: no client could connect",
            "",
            help,
        );
    }
    let api = tenant.as_ref().map(|it| it.api).unwrap_or_default();
    let senders: Vec<_> = root
        .sections("sender")
        .into_iter()
        .enumerate()
        .map(|(at, it)| sender(reader, it, at, &document.line_starts, api))
        .collect();
    if !root.has("sender") {
        let help = "[[sender]]\naddress = \"*@contoso.com\"\nmailbox = \"service@contoso.com\"".to_owned();
        reader.missing(
            &Place::Whole,
            "there is no [[sender]]: no one could send",
            "",
            help,
        );
    }

    let large_messages = tenant.as_ref().is_some_and(|it| it.large_messages);
    let smtp = smtp(reader, root.section("smtp"), large_messages);
    let accounts_file = accounts(reader, root.section("accounts"), directories, &listeners);
    let spool = spool(reader, root.section("spool"), directories, &smtp);
    let delivery = delivery(reader, root.section("delivery"), api);
    let bounce = notices::bounce(root.section("bounce"));
    let notify = notices::notify(reader, root.section("notify"), directories);
    let admin = admin(reader, root.section("admin"), directories, &spool, &listeners);
    let log = log(root.section("log"));
    root.finish();

    check::listeners(reader, &listeners);
    check::senders(reader, &senders);
    check::open_relay(reader, &listeners, &senders);
    check::unused_accounts(reader, &listeners, &senders);
    check::verifiable(reader, &senders, delivery.unknown);

    Some(Config {
        path: path.to_owned(),
        tenant: tenant?,
        listeners: listeners
            .into_iter()
            .map(|it| it.listener)
            .collect::<Option<_>>()?,
        senders: senders.into_iter().map(|it| it.rule).collect::<Option<_>>()?,
        smtp,
        accounts_file,
        spool,
        delivery,
        bounce,
        notify,
        admin,
        log,
        warnings: Findings::new(String::new(), "", &[], Vec::new()),
    })
}

/// The clouds and their hosts:
/// learn.microsoft.com/entra/identity-platform/authentication-national-cloud and
/// learn.microsoft.com/graph/deployments.
#[derive(Clone, Copy)]
struct Cloud {
    authority: &'static str,
    graph: &'static str,
}

const CLOUDS: [(&str, Cloud); 4] = [
    (
        "global",
        Cloud {
            authority: "https://login.microsoftonline.com",
            graph: "https://graph.microsoft.com",
        },
    ),
    (
        "us-gov",
        Cloud {
            authority: "https://login.microsoftonline.us",
            graph: "https://graph.microsoft.us",
        },
    ),
    (
        "us-dod",
        Cloud {
            authority: "https://login.microsoftonline.us",
            graph: "https://dod-graph.microsoft.us",
        },
    ),
    (
        "china",
        Cloud {
            authority: "https://login.partner.microsoftonline.cn",
            graph: "https://microsoftgraph.chinacloudapi.cn",
        },
    ),
];

fn tenant(reader: &Reader, mut section: Section<'_>, directories: &Directories<'_>) -> Option<Tenant> {
    let id = section.text("id", value::tenant_id);
    let client_id = section.text("client_id", value::client_id);
    let cloud = section
        .choice("cloud", &CLOUDS)
        .map_or(CLOUDS[0].1, |it| it.value);
    let authority = section.text("authority", value::base_url);
    let graph = section.text("graph", value::base_url);
    let api = section.choice("api", &[("graph", Api::Graph), ("outlook-v2.0", Api::OutlookV2)]);
    let assertion = section.choice(
        "assertion",
        &[
            ("PS256", AssertionAlgorithm::Ps256),
            ("RS256", AssertionAlgorithm::Rs256),
        ],
    );
    let proxy = section.text("proxy", value::proxy);
    let ca_file = section
        .string("ca_file")
        .and_then(|it| existing(reader, &it, directories));
    let large_messages = section.boolean("large_messages");
    if let Some(api) = api.as_ref().filter(|it| it.value == Api::OutlookV2) {
        form::outlook(reader, api, graph.is_some(), large_messages.as_ref());
    }

    const APP: &str = "Entra admin center > App registrations > your app > Overview";
    let id = section.require("id", id, "\"contoso.onmicrosoft.com\"", APP);
    let client_id = section.require(
        "client_id",
        client_id,
        "\"00000000-0000-0000-0000-000000000000\"",
        APP,
    );
    let credential = credential::application(reader, section.section("credential"), directories, true);
    let has_next = section.has("next_credential");
    let next = section.section("next_credential");
    let next_credential = credential::application(reader, next, directories, has_next);
    let send_certificate_chain = section.boolean("send_certificate_chain");
    let continuous_access_evaluation = section.boolean("continuous_access_evaluation");
    section.finish();
    Some(Tenant {
        id: id?.value,
        client_id: client_id?.value,
        authority: authority.map_or_else(|| cloud.authority.to_owned(), |it| it.value),
        graph: graph.map_or_else(|| cloud.graph.to_owned(), |it| it.value),
        api: api.map(|it| it.value).unwrap_or_default(),
        credential: credential?,
        next_credential: if has_next { Some(next_credential?) } else { None },
        send_certificate_chain: send_certificate_chain.is_some_and(|it| it.value),
        continuous_access_evaluation: continuous_access_evaluation.is_some_and(|it| it.value),
        assertion: assertion.map(|it| it.value).unwrap_or_default(),
        proxy: proxy.map(|it| it.value),
        ca_file,
        large_messages: large_messages.is_some_and(|it| it.value),
    })
}

/// `certificate`, `private_key`, `password` and `password_file`, as the tenant and listeners have them.
pub(super) fn credential(
    reader: &Reader,
    section: &mut Section<'_>,
    directories: &Directories<'_>,
) -> (Option<Spot<()>>, Option<Credential>) {
    let certificate = section.string("certificate");
    let private_key = section.string("private_key");
    let password = secret(reader, section, directories, "password", "password_file");
    let spot = certificate.as_ref().map(|it| it.with(()));
    let private_key = private_key.map(|it| existing(reader, &it, directories));
    let credential = certificate.and_then(|it| {
        let certificate = existing(reader, &it, directories)?;
        Some(Credential {
            certificate,
            private_key: match private_key {
                Some(it) => Some(it?),
                None => None,
            },
            password,
        })
    });
    (spot, credential)
}

/// The same of a listener, which can ask for one to be made.
fn listener_certificate(
    reader: &Reader,
    section: &mut Section<'_>,
    directories: &Directories<'_>,
) -> (Option<Spot<()>>, Option<ListenerCertificate>) {
    if section.says("certificate", SELF_SIGNED) {
        let asked = section.string("certificate");
        for key in ["private_key", "password", "password_file"] {
            if let Some(unused) = section.string(key) {
                reader.warning(
                    &unused.place,
                    format!("{} is not used", unused.key),
                    "",
                    "the certificate is made by graphpost, and its key with it".to_owned(),
                );
            }
        }
        return (asked.map(|it| it.with(())), Some(ListenerCertificate::SelfSigned));
    }
    let (spot, files) = credential(reader, section, directories);
    (spot, files.map(ListenerCertificate::Files))
}

/// A secret that is written out in one key, or stands in the file that another names.
pub(super) fn secret(
    reader: &Reader,
    section: &mut Section<'_>,
    directories: &Directories<'_>,
    key: &'static str,
    file_key: &'static str,
) -> Option<SecretString> {
    let written = section.text(key, |text| Ok(SecretString::from(text)));
    let file = section.string(file_key);
    match (written, file) {
        (Some(_), Some(file)) => {
            let help =
                "remove one of the two; the file is better, because it can be readable to the service alone";
            let title = format!("{} and {} are both given", section.key(key), file.key);
            reader.error(&file.place, title, "", help.to_owned());
            None
        }
        (Some(written), None) => Some(written.value),
        (None, Some(file)) => {
            let path = existing(reader, &file, directories)?;
            if directories.files == Files::Named {
                return None;
            }
            match read_secret(&path) {
                Ok(secret) => Some(secret),
                Err(problem) => {
                    reader.problem(&file.key, file.place, problem);
                    None
                }
            }
        }
        (None, None) => None,
    }
}

/// The first line of a file.
fn read_secret(path: &Path) -> Result<SecretString, Problem> {
    const LIMIT: u64 = 4096;
    let shown = path.display();
    let mut text = String::new();
    let result = fs::File::open(path).and_then(|it| it.take(LIMIT + 1).read_to_string(&mut text));
    match result {
        Err(error) => Err(Problem::new("cannot be read", format!("{shown}: {error}"))),
        Ok(_) if text.len() as u64 > LIMIT => Err(Problem::new(
            "names no password file",
            format!("{shown} is larger than {LIMIT} octets"),
        )),
        Ok(_) => {
            // Editors end files with a newline, which is no part of the password.
            let secret = text.strip_suffix('\n').unwrap_or(&text);
            let secret = secret.strip_suffix('\r').unwrap_or(secret);
            if secret.contains('\n') {
                return Err(Problem::new(
                    "names no password file",
                    format!("{shown} has more than one line"),
                ));
            }
            Ok(SecretString::from(secret))
        }
    }
}

/// The path of a file that must be there and readable.
pub(super) fn existing(
    reader: &Reader,
    name: &Spot<String>,
    directories: &Directories<'_>,
) -> Option<PathBuf> {
    let path = directories.find(&name.value);
    if directories.files == Files::Named {
        return Some(path);
    }
    let shown = path.display();
    let (title, label, help) = match fs::File::open(&path).and_then(|it| it.metadata()) {
        Ok(metadata) if metadata.is_dir() => {
            ("names a directory", format!("{shown} is no file"), "name the file in it".to_owned())
        }
        Ok(_) => return Some(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (
            "names a file that does not exist",
            format!("there is no {shown}"),
            match &directories.credentials {
                Some(_) => "relative paths begin at the directory of the configuration file; a bare name is \
                            looked for in $CREDENTIALS_DIRECTORY first"
                    .to_owned(),
                None => "relative paths begin at the directory of the configuration file".to_owned(),
            },
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => (
            "names a file that this user may not read",
            format!("{shown}: permission denied"),
            "the service's user needs to read it: chgrp graphpost and chmod 640, or LoadCredential= in the unit"
                .to_owned(),
        ),
        Err(error) => ("names a file that cannot be read", format!("{shown}: {error}"), "mend the path".to_owned()),
    };
    reader.problem(
        &name.key,
        name.place.clone(),
        Problem::new(title, label).help(help),
    );
    None
}

/// What `certificate` says where one is to be made.
const SELF_SIGNED: &str = "self-signed";

/// A device on the same network has sent its ClientHello long before; people do not notice it.
const DEFAULT_TLS_WAIT: Duration = Duration::from_millis(500);

fn listener(reader: &Reader, mut section: Section<'_>, directories: &Directories<'_>) -> WrittenListener {
    let name = section.text("name", value::name);
    let address = section.text("address", value::socket_address);
    let address = section.require("address", address, "\"127.0.0.1:2525\"", "");
    let socket = section.text("socket", value::socket_name);
    let proxy_protocol_from = section.list("proxy_protocol_from", value::network);
    let tls = section.choice(
        "tls",
        &[
            ("none", TlsMode::None),
            ("starttls", TlsMode::StartTls),
            ("required", TlsMode::Required),
            ("implicit", TlsMode::Implicit),
            ("auto", TlsMode::Auto),
        ],
    );
    let (certificate, first) = listener_certificate(reader, &mut section, directories);
    let mut certificates = Vec::from_iter(first);
    for mut more in section.sections("additional_certificate") {
        let (spot, another) = listener_certificate(reader, &mut more, directories);
        more.require("certificate", spot, "\"relay-rsa.pem\"", "");
        more.finish();
        certificates.extend(another);
    }
    let tls_profile = section.choice(
        "tls_profile",
        &[
            ("modern", TlsProfile::Modern),
            ("compat", TlsProfile::Compat),
            ("legacy", TlsProfile::Legacy),
        ],
    );
    let legacy_networks = section.list("legacy_networks", value::network);
    let has_tls_wait = section.has("tls_wait");
    let tls_wait = section.duration("tls_wait", DEFAULT_TLS_WAIT, Duration::ZERO);
    let networks = section.list("networks", value::network);
    let auth = section.choice(
        "auth",
        &[
            ("none", Auth::None),
            ("optional", Auth::Optional),
            ("required", Auth::Required),
        ],
    );
    let plaintext_auth = section.list_or_none("plaintext_auth", value::network);
    let merge_split = section.duration("merge_split", Duration::ZERO, Duration::ZERO);
    if merge_split.value > MAX_MERGE_WINDOW {
        reader.error(
            &merge_split.place,
            format!("{} is too long", merge_split.key),
            "at most 30s",
            "mail waits that long before it is sent".to_owned(),
        );
    }
    let cram_md5 = section.boolean("cram_md5").is_some_and(|it| it.value);

    let values = |it: &Spot<Vec<Spot<ipnet::IpNet>>>| it.value.iter().map(|it| it.value).collect::<Vec<_>>();
    let listener = address.as_ref().map(|address| Listener {
        name: name
            .as_ref()
            .map_or_else(|| address.value.to_string(), |it| it.value.clone()),
        address: address.value,
        socket: socket.map(|it| it.value),
        proxy_protocol_from: proxy_protocol_from.as_ref().map(values).unwrap_or_default(),
        tls: tls.as_ref().map(|it| it.value).unwrap_or_default(),
        certificates: match tls.as_ref().map(|it| it.value).unwrap_or_default() {
            TlsMode::None => Vec::new(),
            _ => certificates,
        },
        tls_profile: tls_profile.as_ref().map(|it| it.value).unwrap_or_default(),
        legacy_networks: legacy_networks.as_ref().map(values).unwrap_or_default(),
        tls_wait: tls_wait.value,
        networks: networks.as_ref().map_or_else(check::loopback, values),
        auth: auth.as_ref().map(|it| it.value).unwrap_or_default(),
        cram_md5,
        plaintext_auth: plaintext_auth.as_ref().map_or_else(check::loopback, values),
        merge_split: merge_split.value,
    });
    let written = WrittenListener {
        place: section.place.clone(),
        listener,
        name: name.map(|it| it.with(())),
        address: address.map(|it| it.with(())),
        tls: tls.map(|it| it.with(())),
        certificate,
        has_certificate: section.has("certificate"),
        tls_profile: tls_profile.map(|it| it.with(())),
        legacy_networks: legacy_networks.map(|it| it.with(())),
        has_legacy_networks: section.has("legacy_networks"),
        tls_wait: has_tls_wait.then(|| tls_wait.with(())),
        networks: networks.map(|it| it.with(())),
        proxy_protocol_from: proxy_protocol_from.map(|it| it.with(())),
        auth: auth.map(|it| it.with(())),
        plaintext_auth: plaintext_auth.map(|it| it.with(())),
    };
    section.finish();
    written
}

fn sender(
    reader: &Reader,
    mut section: Section<'_>,
    at: usize,
    line_starts: &[usize],
    api: Api,
) -> WrittenSender {
    let name = section.text("name", value::name);
    let addresses = section.list("address", value::pattern);
    let addresses = section.require("address", addresses, "\"*@contoso.com\"", "");
    let mailbox = section.text("mailbox", value::mailbox);
    let mailbox = section.require(
        "mailbox",
        mailbox,
        "\"service@contoso.com\"",
        "the mailbox that sends",
    );
    let networks = section.list("networks", value::network);
    let accounts = section.list("accounts", |text| match text.trim() {
        "" => Err(Problem::new(
            "has an empty name",
            "expected an account of 'graphpost user list'",
        )),
        text => Ok(text.to_lowercase()),
    });
    let header_from = section.choice(
        "header_from",
        &[
            ("mailbox", HeaderFrom::Mailbox),
            ("keep", HeaderFrom::Keep),
            ("refuse", HeaderFrom::Refuse),
        ],
    );
    let save_to_sent_items = section.boolean("save_to_sent_items");
    let format = form::format(reader, &mut section, api);
    let unknown = form::unknown(reader, &mut section, api);

    let place = section.place.clone();
    let line = match &place {
        Place::File(span) => line_starts.partition_point(|it| *it <= span.start),
        Place::Variable(_) | Place::Whole => 0,
    };
    section.finish();
    let rule = match (&addresses, &mailbox) {
        (Some(addresses), Some(mailbox)) => Some(SenderRule {
            name: name.map_or_else(|| format!("sender[{}]", at + 1), |it| it.value),
            line,
            addresses: addresses.value.iter().map(|it| it.value.clone()).collect(),
            mailbox: mailbox.value.clone(),
            networks: networks
                .iter()
                .flat_map(|it| &it.value)
                .map(|it| it.value)
                .collect(),
            accounts: accounts
                .iter()
                .flat_map(|it| &it.value)
                .map(|it| it.value.clone())
                .collect(),
            header_from: header_from.map(|it| it.value).unwrap_or_default(),
            save_to_sent_items: save_to_sent_items.as_ref().is_none_or(|it| it.value),
            format,
            unknown: unknown.as_ref().map(|it| it.value),
        }),
        _ => None,
    };
    WrittenSender {
        place,
        rule,
        addresses,
        accounts: accounts.map(|it| it.with(it.value.len())),
        save_to_sent_items,
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// The longest time that mail may wait for the rest of what a smarthost has split.
const MAX_MERGE_WINDOW: Duration = Duration::from_secs(30);

fn smtp(reader: &Reader, mut section: Section<'_>, large_messages: bool) -> Smtp {
    let mut default = Smtp::default();
    if large_messages {
        default.max_message_size = LARGEST_DRAFT;
    }
    let max_message_size = section.size("max_message_size", default.max_message_size, 1024);
    if max_message_size.value > LARGEST_SINGLE_REQUEST && !large_messages {
        reader.warning(
            &max_message_size.place,
            format!("{} is more than Graph takes in one request", max_message_size.key),
            "about 3.5 MB are usable",
            "grant Mail.ReadWrite and set large_messages = true in [tenant], or larger messages are accepted and \
             then fail"
                .to_owned(),
        );
    }
    let smtp = Smtp {
        hostname: section
            .text("hostname", value::hostname)
            .map_or_else(system_name, |it| it.value),
        max_message_size: max_message_size.value,
        max_hops: number(&mut section, "max_hops", default.max_hops, 1000),
        max_recipients: number(&mut section, "max_recipients", default.max_recipients, 50_000),
        max_connections: number(&mut section, "max_connections", default.max_connections, 100_000),
        max_connections_per_address: number(
            &mut section,
            "max_connections_per_address",
            default.max_connections_per_address,
            100_000,
        ),
        max_connections_per_network: number(
            &mut section,
            "max_connections_per_network",
            default.max_connections_per_network,
            100_000,
        ),
        max_messages_per_minute: number_or_none(
            &mut section,
            "max_messages_per_minute",
            default.max_messages_per_minute,
        ),
        max_recipients_per_minute: number_or_none(
            &mut section,
            "max_recipients_per_minute",
            default.max_recipients_per_minute,
        ),
        max_messages_per_connection: number(
            &mut section,
            "max_messages_per_connection",
            default.max_messages_per_connection,
            1_000_000,
        ),
        max_errors: number(&mut section, "max_errors", default.max_errors, 10_000),
        max_auth_failures: number(&mut section, "max_auth_failures", default.max_auth_failures, 1000),
        auth_failure_delay: section
            .duration("auth_failure_delay", default.auth_failure_delay, Duration::ZERO)
            .value,
        lockout_after: number_or_none(&mut section, "lockout_after", default.lockout_after),
        lockout_time: section
            .duration("lockout_time", default.lockout_time, SECOND)
            .value,
        min_data_rate: number_or_none(&mut section, "min_data_rate", default.min_data_rate),
        handshake_timeout: section
            .duration("handshake_timeout", default.handshake_timeout, SECOND)
            .value,
        command_timeout: section
            .duration("command_timeout", default.command_timeout, SECOND)
            .value,
        data_timeout: section
            .duration("data_timeout", default.data_timeout, SECOND)
            .value,
        message_timeout: section
            .duration("message_timeout", default.message_timeout, SECOND)
            .value,
        session_timeout: section
            .duration("session_timeout", default.session_timeout, SECOND)
            .value,
    };
    section.finish();
    smtp
}

fn number(section: &mut Section<'_>, key: &'static str, default: usize, most: usize) -> usize {
    // What is at most `most` fits.
    section.number(key, default as u64, 1..=most as u64) as usize
}

/// A limit where 0 stands for none.
fn number_or_none(section: &mut Section<'_>, key: &'static str, default: usize) -> usize {
    section.number(key, default as u64, 0..=1_000_000_000) as usize
}

/// What this host calls itself.
fn system_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    value::hostname(&name).unwrap_or_else(|_| Smtp::default().hostname)
}

fn accounts(
    reader: &Reader,
    mut section: Section<'_>,
    directories: &Directories<'_>,
    listeners: &[WrittenListener],
) -> Option<PathBuf> {
    let file = section.string("file");
    let file = match file {
        // Without logins nobody reads it.
        Some(file) if listeners.iter().any(WrittenListener::has_auth) => {
            let path = existing(reader, &file, directories);
            path.or_else(|| Some(directories.find(&file.value)))
        }
        Some(file) => Some(directories.find(&file.value)),
        None => {
            if let Some(listener) = listeners.iter().find(|it| it.has_auth())
                && !section.has("file")
            {
                let place = listener.auth.as_ref().map_or(&listener.place, |it| &it.place);
                reader.missing(
                    place,
                    "clients log in here, but there is no accounts file",
                    "needs accounts",
                    "[accounts]\nfile = \"accounts\"\nand then: graphpost user add NAME".to_owned(),
                );
            }
            None
        }
    };
    section.finish();
    file
}

fn spool(reader: &Reader, mut section: Section<'_>, directories: &Directories<'_>, smtp: &Smtp) -> Spool {
    let default = Spool::default();
    let directory = section.string("directory");
    let max_bytes = section.size("max_bytes", default.max_bytes, 1024);
    if max_bytes.value < smtp.max_message_size {
        reader.error(
            &max_bytes.place,
            format!("{} is less than one message may have", max_bytes.key),
            "",
            format!("smtp.max_message_size is {} octets", smtp.max_message_size),
        );
    }
    let spool = Spool {
        directory: directory.map_or(default.directory, |it| directories.base.join(it.value)),
        file_threshold: section
            .size("file_threshold", default.file_threshold as u64, 1)
            .value as usize,
        max_bytes: max_bytes.value,
        max_messages: section.number("max_messages", default.max_messages, 1..=1_000_000_000),
        min_free_bytes: section.size("min_free_bytes", default.min_free_bytes, 0).value,
        keep_sent: section
            .duration("keep_sent", default.keep_sent, Duration::ZERO)
            .value,
        keep_failed: section
            .duration("keep_failed", default.keep_failed, Duration::ZERO)
            .value,
    };
    section.finish();
    spool
}

fn delivery(reader: &Reader, mut section: Section<'_>, api: Api) -> Delivery {
    let default = Delivery::default();
    let lifetime = section.duration("lifetime", default.lifetime, SECOND);
    let retry_first = section.duration("retry_first", default.retry_first, SECOND);
    let retry_max = section.duration("retry_max", default.retry_max, SECOND);
    if retry_first.value > retry_max.value {
        reader.error(
            &retry_first.place,
            format!("{} is longer than {}", retry_first.key, retry_max.key),
            "",
            "the wait begins with the one and grows to the other".to_owned(),
        );
    }
    if retry_first.value > lifetime.value {
        reader.error(
            &lifetime.place,
            format!("{} is shorter than {}", lifetime.key, retry_first.key),
            "",
            "no message would be tried twice".to_owned(),
        );
    }
    let delivery = Delivery {
        concurrency_per_mailbox: number(
            &mut section,
            "concurrency_per_mailbox",
            default.concurrency_per_mailbox,
            64,
        ),
        concurrency: number(&mut section, "concurrency", default.concurrency, 1024),
        messages_per_minute: section.number(
            "messages_per_minute",
            default.messages_per_minute.into(),
            1..=1_000_000,
        ) as u32,
        max_memory: section.size("max_memory", default.max_memory, 16 << 20).value,
        // The most that a mailbox can be allowed (Set-Mailbox -RecipientLimits).
        max_recipients: number(&mut section, "max_recipients", default.max_recipients, 1000),
        lifetime: lifetime.value,
        retry_first: retry_first.value,
        retry_max: retry_max.value,
        request_timeout: section
            .duration("request_timeout", default.request_timeout, SECOND)
            .value,
        drain_timeout: section
            .duration("drain_timeout", default.drain_timeout, Duration::ZERO)
            .value,
        unknown: form::unknown(reader, &mut section, api)
            .map(|it| it.value)
            .unwrap_or_default(),
        verify_time: section.duration("verify_time", default.verify_time, SECOND).value,
        format: form::format(reader, &mut section, api).unwrap_or_default(),
        keep_text_alternative: form::keeps_alternative(reader, &mut section, api),
    };
    section.finish();
    delivery
}

/// The longest path a Unix socket can have, without the final NUL: unix(7).
const MAX_SOCKET_PATH: usize = 107;

fn admin(
    reader: &Reader,
    mut section: Section<'_>,
    directories: &Directories<'_>,
    spool: &Spool,
    listeners: &[WrittenListener],
) -> Admin {
    let address = section.text("address", |text| match text.trim() {
        "none" => Ok(None),
        text => value::socket_address(text).map(Some).map_err(|it| match it.help {
            Some(_) => it,
            None => it.help("\"none\" turns the status page and metrics off"),
        }),
    });
    if let Some(Spot {
        value: Some(it),
        place,
        key,
    }) = &address
    {
        check::admin(reader, *it, place, key, listeners);
    }
    let written = section.string("socket");
    let socket = match &written {
        Some(it) => directories.base.join(&it.value),
        None => spool.directory.join("control.sock"),
    };
    if socket.as_os_str().len() > MAX_SOCKET_PATH {
        reader.error(
            written.as_ref().map_or(&section.place, |it| &it.place),
            format!("the path of the control socket is longer than {MAX_SOCKET_PATH} octets"),
            &format!("{}", socket.display()),
            "set a shorter one: socket = \"/run/graphpost/control.sock\" in [admin]".to_owned(),
        );
    }
    section.finish();
    Admin {
        address: address.map_or(Admin::default().address, |it| it.value),
        socket,
    }
}

fn log(mut section: Section<'_>) -> Log {
    let default = Log::default();
    let format = section.choice("format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]);
    let level = section.choice(
        "level",
        &[
            ("error", tracing::Level::ERROR),
            ("warn", tracing::Level::WARN),
            ("info", tracing::Level::INFO),
            ("debug", tracing::Level::DEBUG),
        ],
    );
    section.finish();
    Log {
        format: format.map_or(default.format, |it| it.value),
        level: level.map_or(default.level, |it| it.value),
    }
}
