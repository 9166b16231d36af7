//! `graphpost check`: every kind of line.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::Value;

use crate::program::{LEAST, Ran, configuration, directory, run};

fn check(config: &Path, more: &[&str]) -> Ran {
    run(&[
        &["check", "--offline", "--config", config.to_str().unwrap()],
        more,
    ]
    .concat())
}

/// Whether the report has a line with these words.
fn has(ran: &Ran, status: &str, words: &str) -> bool {
    ran.out
        .lines()
        .any(|it| it.starts_with(status) && it.contains(words))
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn all_in_order() {
    let directory = directory();
    let config = configuration(directory.path(), LEAST);
    let ran = check(&config, &[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    for (status, words) in [
        ("ok", "1 listener, 1 sender rule"),
        ("ok", "CN=graphpost"),
        ("ok", "expires in "),
        ("ok", "is kept from other users (mode 600)"),
        ("ok", "the gateway makes it"),
        ("ok", "127.0.0.1:0 is free"),
        ("skip", "not asked: --offline"),
    ] {
        assert!(has(&ran, status, words), "{words}\n{}", ran.out);
    }
    let summary = ran.out.lines().last().unwrap();
    assert!(summary.contains(", 0 warnings, 0 failed, "), "{summary}");
    // A report leaves nothing behind.
    assert!(!directory.path().join("queue").exists());

    let json: Value = serde_json::from_str(&check(&config, &["--json"]).out).unwrap();
    assert_eq!(json["fail"], 0);
    let credential = json["checks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["check"] == "credential");
    assert_eq!(credential.unwrap()["status"], "ok");
}

#[test]
fn the_queue_is_tried() {
    let directory = directory();
    let config = configuration(directory.path(), LEAST);
    fs::create_dir(directory.path().join("queue")).unwrap();
    let ran = check(&config, &[]);
    assert!(has(&ran, "ok", "can be written and synced"), "{}", ran.out);
    assert_eq!(fs::read_dir(directory.path().join("queue")).unwrap().count(), 0);

    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace("[spool]", "[spool]\nmin_free_bytes = \"1000000TB\""),
    )
    .unwrap();
    let ran = check(&config, &[]);
    assert_eq!(ran.code, 1);
    assert!(has(&ran, "FAIL", "free; mail is taken while"), "{}", ran.out);

    fs::write(&config, text.replace("\"queue\"", "\"/proc/queue\"")).unwrap();
    let ran = check(&config, &[]);
    assert!(has(&ran, "FAIL", "cannot be made"), "{}", ran.out);
}

#[test]
fn keys_and_passwords_are_for_the_service_alone() {
    let directory = directory();
    let path = directory.path();
    let rest = format!(
        "{}[accounts]\nfile = \"accounts\"\n",
        LEAST.replace(
            "[[sender]]",
            "auth = \"optional\"\n[[sender]]\naccounts = [\"erp\", \"crm\"]"
        )
    );
    let config = configuration(path, &rest);
    let accounts = path.join("accounts");
    let config_text = config.to_str().unwrap();
    let ran = crate::program::run_with_input(&["user", "add", "erp", "--config", config_text], "pw\n");
    assert_eq!(ran.code, 0, "{ran:?}");
    mode(&accounts, 0o644);
    mode(&path.join("graphpost.key"), 0o644);
    let ran = check(&config, &[]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        has(&ran, "FAIL", "every user of this host may read the key in"),
        "{}",
        ran.out
    );
    assert!(has(&ran, "warn", "may read the password hashes"), "{}", ran.out);
    assert!(has(&ran, "ok", "1 account in"), "{}", ran.out);
    assert!(has(&ran, "warn", "for crm, which is no account"), "{}", ran.out);
    assert!(!ran.out.contains("for erp"), "{}", ran.out);
    assert!(
        ran.out.contains("        fix: graphpost user add crm"),
        "{}",
        ran.out
    );

    // Holding a password makes a secret of the configuration itself.
    mode(&path.join("graphpost.key"), 0o600);
    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace("private_key", "password = \"hunter2\"\nprivate_key"),
    )
    .unwrap();
    mode(&config, 0o644);
    let ran = check(&config, &[]);
    assert!(has(&ran, "FAIL", "holds a password"), "{}", ran.out);
    assert!(!ran.out.contains("hunter2"));
    mode(&config, 0o600);
    assert!(!has(&check(&config, &[]), "FAIL", "holds a password"));
}

#[test]
fn certificates_of_all_kinds() {
    let directory = directory();
    let path = directory.path();
    // Made by another program, for one name, ending soon.
    let openssl = |name: &str, days: &str, extension: &str| {
        let status = std::process::Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-subj",
                "/CN=relay",
                "-days",
                days,
            ])
            .args(["-addext", extension, "-keyout"])
            .arg(path.join(format!("{name}.key")))
            .arg("-out")
            .arg(path.join(format!("{name}.pem")))
            .output();
        status.is_ok_and(|it| it.status.success())
    };
    if !openssl("soon", "20", "subjectAltName=DNS:relay.contoso.local") {
        eprintln!("no openssl on this machine: not tested");
        return;
    }
    assert!(openssl(
        "now",
        "5",
        "subjectAltName=DNS:*.contoso.local,IP:10.1.2.3"
    ));
    let listener = |name: &str, certificate: &str, key: &str| {
        format!(
            "[[listener]]\nname = \"{name}\"\naddress = \"127.0.0.1:0\"\ntls = \"starttls\"\n\
             certificate = \"{certificate}.pem\"\nprivate_key = \"{key}.key\"\n"
        )
    };
    let rest = format!(
        "{LEAST}{}{}{}[smtp]\nhostname = \"mail.contoso.local\"\n",
        listener("soon", "soon", "soon"),
        listener("now", "now", "now"),
        listener("mixed", "soon", "now"),
    );
    let ran = check(&configuration(path, &rest), &[]);
    assert_eq!(ran.code, 1, "{ran:?}");
    for (status, check, words) in [
        (
            "warn",
            "certificate of soon ",
            "is for relay.contoso.local, not for mail.contoso.local",
        ),
        ("warn", "certificate of soon ", "expires in "),
        ("ok", "certificate of now ", "is for *.contoso.local, 10.1.2.3"),
        ("FAIL", "certificate of now ", "expires in "),
        (
            "FAIL",
            "certificate of mixed",
            "now.key: the private key does not belong to the certificate",
        ),
    ] {
        let found = ran
            .out
            .lines()
            .any(|it| it.starts_with(status) && it.contains(check) && it.contains(words));
        assert!(found, "{status} {check} {words}\n{}", ran.out);
    }
}

#[test]
fn addresses_are_tried() {
    let directory = directory();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let rest = format!(
        "{LEAST}[[listener]]\nname = \"held\"\naddress = \"{}\"\n\
         [[listener]]\nname = \"elsewhere\"\naddress = \"192.0.2.1:2525\"\nnetworks = [\"10.0.0.0/8\"]\n",
        held.local_addr().unwrap()
    );
    let ran = check(&configuration(directory.path(), &rest), &[]);
    assert_eq!(ran.code, 1);
    assert!(has(&ran, "FAIL", "is held by another program"), "{}", ran.out);
    assert!(has(&ran, "FAIL", "this host has no such address"), "{}", ran.out);
}

#[test]
fn a_wrong_configuration_is_one_of_the_findings() {
    let ran = check(Path::new("tests/config/invalid/limits.toml"), &["--json"]);
    assert_eq!(ran.code, 78);
    let json: Value = serde_json::from_str(&ran.out).unwrap();
    assert!(json["fail"].as_u64().unwrap() > 10, "{json}");
    assert_eq!(json["checks"][0]["check"], "configuration");
    assert!(
        json["checks"][0]["detail"]
            .as_str()
            .unwrap()
            .starts_with("line 15: smtp.max_message_size")
    );

    let ran = check(Path::new("tests/config/valid/warnings.toml"), &[]);
    assert!(has(&ran, "warn", "sender[2] never matches"), "{}", ran.out);
}
