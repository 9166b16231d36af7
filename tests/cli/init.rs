//! `graphpost init`: from nothing to a configuration that `check` has nothing against.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::program::{Ran, graphpost, run};

fn init(out: &Path, more: &[&str]) -> Ran {
    run(&[&["init", "--out", out.to_str().unwrap()], more].concat())
}

const ALL: [&str; 6] = [
    "--tenant",
    "contoso.onmicrosoft.com",
    "--mailbox",
    "service@contoso.com",
    "--sender",
    "erp@contoso.com",
];

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn options_answer_everything() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("new/graphpost");
    let more = ["--listen", "127.0.0.1:0", "--sender", "*@legacy.contoso.local"];
    let ran = init(&out, &[&ALL[..], &more].concat());
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let config = out.join("graphpost.toml");
    for line in [
        format!("{}  the configuration", config.display()),
        format!(
            "{}  the certificate: this is what is uploaded",
            out.join("graphpost.pem").display()
        ),
        format!(
            "  graphpost entra script --config {} > register.ps1",
            config.display()
        ),
        format!(
            "  graphpost check --config {} --send-to you@example.org",
            config.display()
        ),
        format!("  graphpost serve --config {}", config.display()),
    ] {
        assert!(ran.out.lines().any(|it| it == line), "{line}\n{}", ran.out);
    }
    assert_eq!(mode(&out.join("graphpost.key")), 0o600);
    assert_eq!(mode(&out.join("graphpost.pem")), 0o644);
    // Every key stands there with its explanation.
    let text = fs::read_to_string(&config).unwrap();
    assert!(
        text.contains("#large_messages = false") && text.contains("# The mailbox that sends"),
        "{text}"
    );
    assert!(
        text.contains("address = [\"erp@contoso.com\", \"*@legacy.contoso.local\"]"),
        "{text}"
    );

    // What it wrote is right, but for the queue of the real service.
    let queue = format!("[spool]\ndirectory = \"{}\"", out.join("queue").display());
    let admin = "[admin]\naddress = \"127.0.0.1:0\"\nsocket = \"control.sock\"";
    let text = text.replace("[spool]", &queue).replace("[admin]", admin);
    fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    let ran = run(&["check", "--offline", "--config", config]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains(", 0 warnings, 0 failed, "), "{}", ran.out);
    let script = run(&["entra", "script", "--config", config]);
    assert!(
        script.out.contains("New-MgApplication -DisplayName"),
        "{script:?}"
    );
}

#[test]
fn nothing_is_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path();
    fs::write(out.join("graphpost.toml"), "mine").unwrap();
    let ran = init(out, &ALL);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("graphpost.toml is there already"), "{ran:?}");
    assert_eq!(fs::read_to_string(out.join("graphpost.toml")).unwrap(), "mine");
    assert_eq!(fs::read_dir(out).unwrap().count(), 1);

    // Half a certificate is somebody's; a whole one is used.
    fs::remove_file(out.join("graphpost.toml")).unwrap();
    fs::write(out.join("graphpost.key"), "mine").unwrap();
    let ran = init(out, &ALL);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("graphpost.key: is there already"), "{ran:?}");
    assert_eq!(
        fs::read_dir(out).unwrap().count(),
        1,
        "half of it was left behind"
    );
    fs::write(out.join("graphpost.pem"), "mine too").unwrap();
    let ran = init(out, &ALL);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.out.contains("was there already: the private key"),
        "{}",
        ran.out
    );
    assert_eq!(fs::read_to_string(out.join("graphpost.key")).unwrap(), "mine");
}

#[test]
fn what_is_missing_or_wrong_is_named_and_nothing_written() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path();
    let ran = init(out, &["--tenant", "contoso.com", "--listen", "0.0.0.0:25"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("missing: --mailbox, --sender, --network"),
        "{ran:?}"
    );
    let mut wrong = ALL;
    wrong[1] = "no tenant";
    let ran = init(out, &wrong);
    assert_eq!(ran.code, 78, "{ran:?}");
    assert!(ran.err.contains("tenant.id"), "{ran:?}");
    let ran = init(
        out,
        &[&ALL[..], &["--listen", "0.0.0.0:25", "--network", "0.0.0.0/0"]].concat(),
    );
    assert_eq!(ran.code, 78, "an open relay: {ran:?}");
    assert_eq!(fs::read_dir(out).unwrap().count(), 0);
}

/// At a terminal it asks for what the options leave open.
#[test]
fn a_terminal_is_asked() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("asked");
    let program = graphpost().get_program().to_str().unwrap().to_owned();
    let command = format!(
        "'{program}' init --out '{}' --tenant contoso.onmicrosoft.com",
        out.display()
    );
    let Ok(mut script) = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
    else {
        eprintln!("no script(1) on this machine: not tested");
        return;
    };
    let answers = "\nservice@contoso.com\n\n\nnowhere\n10.1.0.5:25\n10.1.0.0/16, 10.2.0.0/16\n";
    script
        .stdin
        .take()
        .unwrap()
        .write_all(answers.as_bytes())
        .unwrap();
    let output = script.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    for question in [
        "The mailbox that sends",
        "[*@contoso.com]",
        "'nowhere' is no address and port",
        "Who may connect",
    ] {
        assert!(said.contains(question), "{question} in {said}");
    }
    assert!(!said.contains("The tenant"), "{said}");
    let text = fs::read_to_string(out.join("graphpost.toml")).unwrap();
    for line in [
        "client_id = \"00000000-0000-0000-0000-000000000000\"",
        "address = \"10.1.0.5:25\"",
        "networks = [\"10.1.0.0/16\", \"10.2.0.0/16\"]",
        "address = [\"*@contoso.com\"]",
        "mailbox = \"service@contoso.com\"",
    ] {
        assert!(text.lines().any(|it| it == line), "{line}");
    }
}
