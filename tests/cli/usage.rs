//! Help, usage errors, exit statuses, and the commands that need no gateway.

use std::fs;
use std::io::Read as _;
use std::process::Stdio;

use crate::program::{LEAST, configuration, directory, graphpost, run, run_with_input};

#[test]
fn help_and_version() {
    let ran = run(&["--version"]);
    assert_eq!(
        (ran.out.as_str(), ran.code),
        (concat!("graphpost ", env!("CARGO_PKG_VERSION"), "\n"), 0)
    );
    let help = run(&["--help"]);
    assert_eq!(help.code, 0);
    for command in [
        "serve",
        "sandbox",
        "cloud",
        "check",
        "send",
        "queue",
        "cert",
        "user",
        "healthcheck",
    ] {
        assert!(help.out.contains(&format!("  {command} ")), "{}", help.out);
        let help = run(&[command, "--help"]);
        assert_eq!(help.code, 0, "{help:?}");
        assert!(
            help.out.lines().all(|it| it.chars().count() <= 120),
            "{}",
            help.out
        );
    }
}

#[test]
fn wrong_usage_is_2() {
    for arguments in [
        &[][..],
        &["fly"],
        &["serve", "--port", "25"],
        &["queue"],
        &["queue", "show"],
        &["queue", "show", "not-an-id"],
        &["queue", "delete"],
        &["queue", "list", "--state", "lost"],
        &["queue", "list", "--older", "yesterday"],
        &["send", "--from", "a@b.example"],
        &["user", "add", "erp", "--password", "hunter2"],
        &["sandbox", "--smtp", "localhost"],
    ] {
        let ran = run(arguments);
        assert_eq!(ran.code, 2, "{arguments:?} {ran:?}");
        assert!(!ran.err.is_empty());
    }
}

/// Every command that reads a configuration exits with 78 for a wrong one, and says all of it.
#[test]
fn a_wrong_configuration_is_78() {
    let config = "tests/config/invalid/open-relay.toml";
    for command in [
        &["serve"][..],
        &["check"],
        &["queue", "list"],
        &["queue", "retry", "1"],
        &["user", "list"],
        &["healthcheck"],
        &["send", "--from", "a@b.example", "--to", "c@d.example"],
    ] {
        let ran = run(&[command, &["--config", config]].concat());
        assert_eq!(ran.code, 78, "{command:?} {ran:?}");
        let expected = fs::read_to_string("tests/config/invalid/open-relay.errors").unwrap();
        assert_eq!(ran.err, expected, "{command:?}");
    }
    let ran = run(&["serve", "--config", "/nonexistent/graphpost.toml"]);
    assert_eq!(ran.code, 78);
    assert!(ran.err.contains("graphpost sandbox"), "{}", ran.err);
}

#[test]
fn the_configuration_can_be_named_by_a_variable() {
    let output = graphpost()
        .args(["check", "--offline"])
        .env("GRAPHPOST_CONFIG", "tests/config/invalid/empty.toml")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("tests/config/invalid/empty.toml"), "{said}");
}

#[test]
fn accounts_are_added_listed_and_removed() {
    let directory = directory();
    let rest = format!("{LEAST}[accounts]\nfile = \"accounts\"\n");
    let config = configuration(directory.path(), &rest);
    let config = config.to_str().unwrap();
    let user = |arguments: &[&str], input: &str| {
        let arguments = [&["user"], arguments, &["--config", config]].concat();
        run_with_input(&arguments, input)
    };

    let ran = user(&["list"], "");
    assert_eq!((ran.out.as_str(), ran.code), ("", 0), "{ran:?}");

    let ran = user(&["add", "Scanner"], "pass word\nsecond line\n");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.starts_with("Scanner added to "), "{}", ran.out);
    fs::write(directory.path().join("pw"), "other\n").unwrap();
    let password_file = directory.path().join("pw");
    let ran = user(
        &["add", "erp", "--password-file", password_file.to_str().unwrap()],
        "",
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    let ran = user(&["add", "scanner"], "new\n");
    assert!(ran.out.contains("has a new password"), "{}", ran.out);

    let ran = user(&["list", "--json"], "");
    assert_eq!(ran.out, "[\"scanner\",\"erp\"]\n");
    assert_eq!(user(&["remove", "SCANNER"], "").code, 0);
    let ran = user(&["remove", "scanner"], "");
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("there is no account scanner"), "{}", ran.err);
    assert_eq!(user(&["list"], "").out, "erp\n");

    // The hash, and never the password.
    let written = fs::read_to_string(directory.path().join("accounts")).unwrap();
    assert!(
        written.contains("$argon2id$") && !written.contains("other"),
        "{written}"
    );

    for (input, arguments) in [
        ("", &["add", "x"][..]),
        ("\n", &["add", "x"]),
        ("pw\n", &["add", "a:b"]),
    ] {
        let ran = user(arguments, input);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.err.starts_with("error: "), "{}", ran.err);
    }
}

/// The reader of a pipe may have seen enough.
#[test]
fn a_closed_pipe_is_no_error() {
    let directory = directory();
    let accounts = directory.path().join("accounts");
    let hash = "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    // More than a pipe holds.
    let lines: String = (0..20_000).map(|it| format!("account-{it}:{hash}\n")).collect();
    fs::write(&accounts, lines).unwrap();
    let mut child = graphpost()
        .args(["user", "list", "--file", accounts.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(&first, b"account-0\n");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn what_needs_a_gateway_or_a_queue_says_so() {
    let directory = directory();
    let config = configuration(directory.path(), LEAST);
    let config = config.to_str().unwrap();
    for arguments in [
        &["queue", "retry", "1"][..],
        &["healthcheck"],
        &["queue", "list"],
        &["queue", "flush"],
        &["send", "--from", "a@b.example", "--to", "c@d.example"],
    ] {
        let ran = run(&[arguments, &["--config", config]].concat());
        assert_eq!(ran.code, 1, "{arguments:?} {ran:?}");
        assert!(ran.err.starts_with("error: "), "{}", ran.err);
    }
}

#[test]
fn a_port_in_use_is_named() {
    let directory = directory();
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap().to_string();
    let config = configuration(directory.path(), &LEAST.replace("127.0.0.1:0", &address));
    let ran = run(&["serve", "--config", config.to_str().unwrap()]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains(&address), "{}", ran.err);

    let ran = run(&["cloud", "--http", &address]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains(&address) && ran.err.contains("help: "),
        "{}",
        ran.err
    );
}
