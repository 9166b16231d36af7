//! `graphpost policy test`: the verdict, the rule, and its line.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

const CONFIG: &str = r#"[tenant]
id = "contoso.onmicrosoft.com"
client_id = "6731de76-14a6-49ae-97bc-6eba6914391e"
[tenant.credential]
certificate = "app.pem"

[[listener]]
address = "127.0.0.1:2525"
networks = ["10.1.0.0/16", "127.0.0.0/8"]
auth = "optional"
[accounts]
file = "users"

[[sender]]
name = "erp"
address = ["erp@contoso.com", "*@legacy.local"]
mailbox = "service@contoso.com"

[[sender]]
address = "scan@contoso.com"
accounts = ["Scanner1"]
mailbox = "scan@contoso.com"
header_from = "refuse"
"#;

fn verdict(config: &Path, arguments: &str) -> (Option<i32>, String) {
    let run = Command::new(env!("CARGO_BIN_EXE_graphpost"))
        .args(["policy", "test", "--config"])
        .arg(config)
        .args(arguments.split(' '))
        .env_remove("GRAPHPOST_CONFIG")
        .output()
        .unwrap();
    let said = String::from_utf8(run.stdout).unwrap() + &String::from_utf8(run.stderr).unwrap();
    (
        run.status.code(),
        said.replace(&config.display().to_string(), "FILE"),
    )
}

#[test]
fn says_the_verdict_the_rule_and_its_line() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("graphpost.toml");
    std::fs::write(&config, CONFIG).unwrap();
    let check = |arguments: &str, code: i32, wanted: &[&str]| {
        let (status, said) = verdict(&config, arguments);
        assert_eq!(status, Some(code), "{arguments}: {said}");
        for words in wanted {
            assert!(said.contains(words), "{arguments}: no {words:?} in {said}");
        }
    };
    check(
        "--client 10.1.2.3 --from ERP@contoso.com --header-from x@legacy.local",
        0,
        &[
            "permitted",
            "erp (FILE:14)",
            "service@contoso.com",
            "becomes the mailbox",
        ],
    );
    check(
        "--client 10.1.2.3 --from erp@contoso.com --header-from ceo@contoso.com",
        1,
        &[
            "refused: 550 5.7.1",
            "ceo@contoso.com in the From field",
            "erp (FILE:14) permits the envelope",
        ],
    );
    check(
        "--client 10.1.2.3 --from erp@contoso.com --sender ceo@contoso.com",
        1,
        &["ceo@contoso.com in the Sender field"],
    );
    check("--client 10.1.2.3 --from scan@contoso.com", 1, &["none matches"]);
    check(
        "--client 10.1.2.3 --account SCANNER1 --from scan@contoso.com --header-from scan@contoso.com",
        0,
        &["sender[2] (FILE:19)"],
    );
    check("--client 10.1.2.3 --from <>", 1, &["MAIL FROM:<>"]);
    check(
        "--client 192.0.2.1 --from erp@contoso.com",
        0,
        &["no listener lets 192.0.2.1 connect"],
    );
    check("--client 10.1.2.3 --from a@b@@", 1, &["--from"]);
    check("--client nonsense --from a@b", 2, &["--client"]);
}
