//! Configuration files: what loads, and what is said about those that do not.
//!
//! `tests/config/valid/*.toml` load; `*.warnings` beside one holds what is said about it nevertheless.
//! `tests/config/invalid/*.toml` do not; `*.errors` beside each holds every word of it. Variables
//! are set by comment lines `#! NAME=value` at the head of a file.
//! `GRAPHPOST_BLESS=1 cargo test --test config` writes what is said now.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use graphpost::config::{
    AssertionAlgorithm, Auth, Config, ConfigErrors, Environment, Files, ListenerCertificate, LogFormat,
    Pattern, TlsMode, TlsProfile, UnknownPolicy,
};
use graphpost::envelope::{Format, HeaderFrom};
use proptest::prelude::*;
use secrecy::ExposeSecret;

/// What everything is relative to, so that no path of this machine is in the texts.
const PLACE: &str = "tests/config";

fn files(directory: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert_eq!(
        std::env::current_dir().unwrap(),
        root,
        "cargo runs tests at the package's root"
    );
    let mut files: Vec<_> = fs::read_dir(Path::new(PLACE).join(directory))
        .unwrap()
        .map(|it| it.unwrap().path())
        .filter(|it| it.extension().is_some_and(|it| it == "toml"))
        .collect();
    files.sort();
    assert!(files.len() >= 5, "found only {files:?}");
    files
}

fn environment(source: &str) -> Environment {
    let variables = source.lines().map_while(|it| it.strip_prefix("#! "));
    variables.map(|it| it.split_once('=').unwrap()).collect()
}

fn load(path: &Path) -> Result<Config, ConfigErrors> {
    let source = String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    Config::load(path, &environment(&source))
}

fn check(expected: &Path, actual: &str, wrong: &mut Vec<String>) {
    let actual = match actual {
        "" => String::new(),
        text => format!("{text}\n"),
    };
    if std::env::var_os("GRAPHPOST_BLESS").is_some() {
        match actual.as_str() {
            "" => drop(fs::remove_file(expected)),
            text => fs::write(expected, text).unwrap(),
        }
    }
    let expected_text = fs::read_to_string(expected).unwrap_or_default();
    if actual != expected_text {
        wrong.push(format!(
            "{}\n--- expected\n{expected_text}\n--- actual\n{actual}",
            expected.display()
        ));
    }
}

#[test]
fn valid_files_load() {
    let mut wrong = Vec::new();
    for path in files("valid") {
        match load(&path) {
            Ok(config) => check(
                &path.with_extension("warnings"),
                &config.warnings.to_string(),
                &mut wrong,
            ),
            Err(errors) => wrong.push(errors.to_string()),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn invalid_files_are_explained() {
    let mut wrong = Vec::new();
    for path in files("invalid") {
        let Err(errors) = load(&path) else {
            wrong.push(format!("{} loads", path.display()));
            continue;
        };
        let text = errors.to_string();
        for secret in ["hunter2", "s3cr3t"] {
            assert!(!text.contains(secret), "{text}");
        }
        assert!(!errors.findings().is_empty());
        check(&path.with_extension("errors"), &text, &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
#[test]
fn every_value_arrives() {
    let config = load(&Path::new(PLACE).join("valid/everything.toml")).unwrap();
    let text = format!("{config:#?}");
    for secret in ["hunter2", "s3cr3t"] {
        // The proxy's password is part of its URL.
        assert!(
            !text.replace("http://user:s3cr3t@", "").contains(secret),
            "{text}"
        );
    }
    assert_eq!(config.tenant.authority, "http://127.0.0.1:8025");
    assert_eq!(config.tenant.graph, "http://[::1]:8025");
    assert_eq!(config.tenant.assertion, AssertionAlgorithm::Rs256);
    assert!(config.tenant.large_messages);
    let password = config
        .tenant
        .credential
        .files()
        .unwrap()
        .password
        .as_ref()
        .unwrap();
    assert_eq!(password.expose_secret(), "hunter2");
    let names: Vec<_> = config.listeners.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["printers", "submission", "127.0.0.1:465"]);
    assert_eq!(config.listeners[0].socket.as_deref(), Some("smtp"));
    assert_eq!(config.listeners[0].proxy_protocol_from.len(), 2);
    assert!(config.listeners[1].socket.is_none() && config.listeners[1].proxy_protocol_from.is_empty());
    assert!(config.listeners[0].certificates.is_empty());
    let files: Vec<_> = config.listeners[1]
        .certificates
        .iter()
        .map(ListenerCertificate::files)
        .collect();
    assert_eq!(files.len(), 3);
    assert!(files[0].unwrap().password.is_some() && files[1].unwrap().password.is_some());
    assert!(files[2].is_none(), "self-signed");
    assert_eq!(config.listeners[1].tls_profile, TlsProfile::Legacy);
    assert_eq!(config.listeners[1].legacy_networks.len(), 2);
    assert_eq!(config.listeners[2].tls, TlsMode::Auto);
    assert_eq!(config.listeners[2].tls_profile, TlsProfile::Compat);
    assert_eq!(config.listeners[2].tls_wait, Duration::from_millis(250));
    assert_eq!(config.listeners[1].tls, TlsMode::Required);
    assert_eq!(config.listeners[1].auth, Auth::Required);
    assert!(config.listeners[1].plaintext_auth.is_empty());
    assert_eq!(config.listeners[2].plaintext_auth.len(), 2);
    assert_eq!(config.listeners[1].merge_split, Duration::from_secs(2));
    assert_eq!(config.listeners[2].merge_split, Duration::ZERO);
    assert!(config.listeners[2].cram_md5 && !config.listeners[1].cram_md5);
    assert_eq!(
        config.accounts_file,
        Some(PathBuf::from("tests/config/valid/../app.pem"))
    );
    let erp = &config.senders[0];
    assert_eq!((erp.name.as_str(), erp.line), ("erp", 58));
    assert_eq!(erp.accounts, ["erp", "erp2"]);
    assert_eq!(erp.header_from, HeaderFrom::Keep);
    assert!(!erp.save_to_sent_items);
    assert_eq!(erp.format, Some(Format::Mime));
    assert_eq!(erp.unknown, Some(UnknownPolicy::Retry));
    assert_eq!(config.senders[1].unknown, None);
    assert_eq!(config.senders[1].format, None);
    assert_eq!(
        config.senders[1].addresses,
        [Pattern::Null, Pattern::Exact("printer".to_owned()), Pattern::Any]
    );
    assert_eq!(config.senders[1].name, "sender[2]");
    assert_eq!(config.smtp.hostname, "relay.contoso.local");
    assert_eq!(config.smtp.max_message_size, 2900 * 1024);
    assert_eq!(config.smtp.data_timeout, Duration::from_secs(90));
    assert_eq!(config.smtp.max_connections_per_network, 20);
    assert_eq!(
        (
            config.smtp.max_messages_per_minute,
            config.smtp.max_recipients_per_minute
        ),
        (0, 100)
    );
    assert_eq!(
        (config.smtp.auth_failure_delay, config.smtp.lockout_after),
        (Duration::ZERO, 0)
    );
    assert_eq!(config.smtp.lockout_time, Duration::from_secs(3600));
    assert_eq!(config.smtp.min_data_rate, 1000);
    assert_eq!(config.spool.directory, Path::new("tests/config/valid/spool"));
    assert_eq!(config.spool.file_threshold, 65_536);
    assert_eq!(config.spool.keep_failed, Duration::from_secs(14 * 86_400));
    assert_eq!(config.delivery.concurrency_per_mailbox, 3);
    assert_eq!(config.delivery.max_recipients, 400);
    assert_eq!(config.delivery.max_memory, 64 << 20);
    assert_eq!(config.delivery.unknown, UnknownPolicy::Hold);
    assert_eq!(config.delivery.verify_time, Duration::from_secs(600));
    assert_eq!(config.delivery.format, Format::Json);
    assert!(config.delivery.keep_text_alternative);
    assert_eq!(config.admin.address, None);
    assert_eq!(config.log.format, LogFormat::Json);
}

#[test]
fn the_environment_is_enough() {
    let config = load(&Path::new(PLACE).join("valid/environment.toml")).unwrap();
    assert_eq!(config.tenant.id, "contoso.com");
    assert_eq!(config.tenant.graph, "https://graph.microsoft.com");
    assert_eq!(
        config.tenant.credential.files().unwrap().certificate,
        Path::new("tests/config/app.pem")
    );
    assert_eq!(config.listeners.len(), 2);
    assert_eq!(config.listeners[0].networks.len(), 2);
    assert_eq!(
        config.senders[0].addresses,
        [Pattern::Domain("contoso.com".to_owned()), Pattern::Null]
    );
    assert!(!config.senders[0].save_to_sent_items);
    assert_eq!(config.smtp.max_recipients, 50);
    assert_eq!(config.smtp.max_message_size, 1 << 20);
}

/// For commands that only need to know where the queue is.
#[test]
fn named_files_need_not_be_there() {
    let source = fs::read_to_string("tests/config/valid/everything.toml").unwrap();
    let elsewhere = Path::new("/nonexistent/graphpost.toml");
    let config = Config::parse(&source, elsewhere, &Environment::default(), Files::Named).unwrap();
    assert!(config.tenant.credential.files().unwrap().password.is_none());
    assert!(Config::parse(&source, elsewhere, &Environment::default(), Files::Opened).is_err());
}

#[test]
fn a_missing_file_says_what_to_do() {
    let errors = Config::load(Path::new("/nonexistent/graphpost.toml"), &Environment::default()).unwrap_err();
    let text = errors.to_string();
    assert!(
        text.contains("there is no configuration file /nonexistent/graphpost.toml"),
        "{text}"
    );
    assert!(text.contains("graphpost sandbox"), "{text}");
}

/// A password file holds one line, whose end is no part of the password.
#[test]
fn password_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("graphpost.toml");
    fs::copy("tests/config/valid/least.toml", &path).unwrap();
    let certificate = fs::canonicalize("tests/config/app.pem").unwrap();
    let environment = || {
        [
            (
                "GRAPHPOST__TENANT__CREDENTIAL__CERTIFICATE",
                certificate.to_str().unwrap(),
            ),
            ("GRAPHPOST__TENANT__CREDENTIAL__PASSWORD_FILE", "secret"),
        ]
        .into_iter()
        .collect::<Environment>()
    };
    for (content, password) in [
        ("pw", Some("pw")),
        ("pw\n", Some("pw")),
        (" pw \r\n", Some(" pw ")),
        ("", Some("")),
        ("a\nb\n", None),
        (&"x".repeat(5000), None),
    ] {
        fs::write(directory.path().join("secret"), content).unwrap();
        match (Config::load(&path, &environment()), password) {
            (Ok(config), Some(password)) => {
                assert_eq!(
                    config
                        .tenant
                        .credential
                        .files()
                        .unwrap()
                        .password
                        .as_ref()
                        .unwrap()
                        .expose_secret(),
                    password
                );
            }
            (Err(errors), None) => assert!(errors.to_string().contains("names no password file")),
            (other, _) => panic!("{content:?}: {other:?}"),
        }
    }
}

const SHIPPED: &str = include_str!("../config/graphpost.toml");

/// The shipped file with every key that it shows as a comment.
fn uncommented() -> String {
    let shown = |line: &str| {
        let key = line.strip_prefix('#')?;
        key.starts_with(|c: char| c.is_ascii_lowercase())
            .then(|| key.to_owned())
    };
    let lines: Vec<_> = SHIPPED
        .lines()
        .map(|it| shown(it).unwrap_or_else(|| it.to_owned()))
        .collect();
    lines.join("\n")
}

fn keys(prefix: &str, table: &toml::Table, keys: &mut BTreeSet<String>) {
    for (key, value) in table {
        let name = if prefix.is_empty() {
            key.clone()
        } else {
            format!("{prefix}.{key}")
        };
        match value {
            toml::Value::Table(table) => self::keys(&name, table, keys),
            toml::Value::Array(items) if items.iter().all(toml::Value::is_table) => {
                items
                    .iter()
                    .for_each(|it| self::keys(&name, it.as_table().unwrap(), keys));
            }
            _ => {}
        }
        keys.insert(name);
    }
}

#[test]
fn the_shipped_file_documents_every_key() {
    let mut documented = BTreeSet::new();
    keys("", &uncommented().parse().unwrap(), &mut documented);
    let known: BTreeSet<_> = Config::known_keys().into_iter().collect();
    // The next credential has the keys of the current one, which are documented there.
    let (next, known): (BTreeSet<_>, BTreeSet<_>) = known
        .into_iter()
        .partition(|it| it.starts_with("tenant.next_credential."));
    // And so with a listener's further certificates.
    let (additional, known): (BTreeSet<_>, BTreeSet<_>) = known
        .into_iter()
        .partition(|it| it.starts_with("listener.additional_certificate."));
    let names = |keys: &BTreeSet<String>, prefix: &str| -> BTreeSet<String> {
        keys.iter()
            .filter_map(|it| it.strip_prefix(prefix).map(str::to_owned))
            .collect()
    };
    assert_eq!(
        names(&next, "tenant.next_credential."),
        names(&known, "tenant.credential.")
    );
    let additional = names(&additional, "listener.additional_certificate.");
    assert_eq!(additional.len(), 4);
    assert!(
        additional.is_subset(&names(&known, "listener.")),
        "{additional:?}"
    );
    documented.retain(|it| !it.starts_with("tenant.next_credential."));
    documented.retain(|it| !it.starts_with("listener.additional_certificate."));
    assert_eq!(documented, known);
    for (number, line) in SHIPPED.lines().enumerate() {
        assert!(line.chars().count() <= 105, "line {} is long", number + 1);
    }
}

#[test]
fn the_shipped_file_loads() {
    let path = Path::new("/etc/graphpost/graphpost.toml");
    let shipped = Config::parse(SHIPPED, path, &Environment::default(), Files::Named).unwrap();
    assert!(shipped.warnings.is_empty(), "{}", shipped.warnings);

    // What it says is the default is the default.
    // Of the ways to prove the application there can be only one.
    let others = [
        "password = ",
        "vault_",
        "managed_identity",
        "federated_token_file",
        "secret",
        "webhook_url_file",
        "webhook_secret = ",
    ];
    let all: Vec<_> = uncommented()
        .lines()
        .filter(|line| !others.iter().any(|it| line.starts_with(it)))
        .map(str::to_owned)
        .collect();
    let all = all.join("\n");
    let mut all = Config::parse(&all, path, &Environment::default(), Files::Named).unwrap();
    assert_eq!(all.smtp.hostname, "relay.contoso.local");
    all.smtp.hostname = shipped.smtp.hostname.clone();
    for (shipped, all) in [
        (format!("{:#?}", shipped.smtp), format!("{:#?}", all.smtp)),
        (format!("{:#?}", shipped.spool), format!("{:#?}", all.spool)),
        (format!("{:#?}", shipped.delivery), format!("{:#?}", all.delivery)),
        (format!("{:#?}", shipped.admin), format!("{:#?}", all.admin)),
        (format!("{:#?}", shipped.log), format!("{:#?}", all.log)),
        (
            format!("{:?}", shipped.listeners[0].networks),
            format!("{:?}", all.listeners[0].networks),
        ),
        (
            format!("{:?}", shipped.listeners[0].tls),
            format!("{:?}", all.listeners[0].tls),
        ),
        (
            format!(
                "{:?}",
                (shipped.listeners[0].tls_profile, shipped.listeners[0].tls_wait)
            ),
            format!("{:?}", (all.listeners[0].tls_profile, all.listeners[0].tls_wait)),
        ),
        (
            format!("{:?}", shipped.listeners[0].auth),
            format!("{:?}", all.listeners[0].auth),
        ),
        (
            format!("{:?}", shipped.listeners[0].plaintext_auth),
            format!("{:?}", all.listeners[0].plaintext_auth),
        ),
        (
            format!("{:?}", shipped.senders[0].header_from),
            format!("{:?}", all.senders[0].header_from),
        ),
        (shipped.tenant.authority, all.tenant.authority),
        (shipped.tenant.graph, all.tenant.graph),
        (
            format!("{:?}", shipped.tenant.assertion),
            format!("{:?}", all.tenant.assertion),
        ),
    ] {
        assert_eq!(shipped, all);
    }
}

proptest! {
    /// Whatever a file holds, the answer is a configuration or an explanation.
    #[test]
    fn nothing_panics(lines in prop::collection::vec(prop_oneof![
        ".*",
        "\\[{0,2}(tenant|listener|sender|smtp|x)\\.?(credential)?\\]{0,2}",
        "(address|networks|id|password|lifetime|é|max_errors) ?[=:] ?(\"?[*@<>a-z0-9./: ü-]*\"?|\\[.*|[{].*)",
    ], 0..12), variable in "GRAPHPOST__[A-Z0-9_]{0,20}", value in ".*") {
        let source = lines.join("\n");
        let environment = Environment::from_iter([(variable, value)]);
        if let Err(errors) = Config::parse(&source, Path::new("x.toml"), &environment, Files::Named) {
            prop_assert!(!errors.render(true).is_empty());
        }
    }
}
