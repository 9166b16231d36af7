//! `docs/errors.md` and `docs/credentials.md` say what the code does.
//!
//! `GRAPHPOST_BLESS=1 cargo test --test identity documents` writes the table of AADSTS codes anew.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use graphpost::config::{Config, Environment, Files};
use graphpost::identity::aadsts;
use graphpost::outcome::{Answer, Closes, Outcome, Response, judge};

fn document(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)
}

#[test]
fn every_code_of_entra_is_documented_as_it_is_explained() {
    const MARKS: (&str, &str) = ("<!-- aadsts -->\n", "<!-- /aadsts -->\n");
    let mut table = String::from("| Code | What it means here | What mends it |\n|---|---|---|\n");
    for (codes, explanation) in aadsts::TABLE {
        let codes: Vec<String> = codes.iter().map(|it| format!("AADSTS{it}")).collect();
        table.push_str(&format!(
            "| {} | {} | {} |\n",
            codes.join(", "),
            explanation.meaning,
            explanation.fix
        ));
    }
    let text = std::fs::read_to_string(document("errors.md")).unwrap();
    let (before, rest) = text.split_once(MARKS.0).unwrap();
    let (found, after) = rest.split_once(MARKS.1).unwrap();
    if std::env::var_os("GRAPHPOST_BLESS").is_some() {
        std::fs::write(
            document("errors.md"),
            [before, MARKS.0, &table, MARKS.1, after].concat(),
        )
        .unwrap();
        return;
    }
    assert_eq!(found, table, "see the head of this test for how to renew it");
}

/// The rows of the table of Graph's answers: status, code, what becomes of the mail, what mends it.
fn rows(text: &str) -> Vec<[String; 4]> {
    let (_, section) = text.split_once("## Graph refuses a message\n").unwrap();
    section
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
            cells[0].parse::<u16>().ok()?;
            Some([cells[0], cells[1], cells[2], cells[4]].map(str::to_owned))
        })
        .collect()
}

fn becomes(outcome: &Outcome) -> String {
    let with = |word: &str, closes: &Closes| match closes {
        Closes::Message => word.to_owned(),
        Closes::Mailbox => format!("{word}, with the mailbox"),
        Closes::Tenant => format!("{word}, with everything"),
    };
    match outcome {
        Outcome::Sent => "sent".to_owned(),
        Outcome::Deferred { closes, .. } => with("waits", closes),
        Outcome::Held { closes, .. } => with("held", closes),
        Outcome::Failed { enhanced, .. } => format!("fails, {enhanced}"),
        Outcome::Unknown { .. } => "unknown".to_owned(),
    }
}

#[test]
fn every_answer_of_graph_is_documented_as_it_is_judged() {
    let text = std::fs::read_to_string(document("errors.md")).unwrap();
    let rows = rows(&text);
    assert!(rows.len() > 40, "{} rows", rows.len());
    for [status, code, documented, fix] in &rows {
        let code = match code.as_str() {
            "none" => None,
            "any" => Some("AnotherCode".to_owned()),
            code => Some(code.trim_matches('`').to_owned()),
        };
        let outcome = judge(&Answer::Response(Response {
            status: status.parse().unwrap(),
            code: code.clone(),
            ..Response::default()
        }));
        assert_eq!(&becomes(&outcome), documented, "{status} {code:?}");
        if let Outcome::Held { why, .. } = &outcome {
            // The code may say more, such as the command that does it.
            for part in fix.split("; ") {
                assert!(
                    why.contains(part),
                    "{status} {code:?}: '{part}' is not in '{why}'"
                );
            }
            assert!(!fix.is_empty(), "{status} {code:?}");
        }
    }

    // And none is missing.
    let documented: BTreeSet<&str> = rows.iter().map(|[_, code, ..]| code.trim_matches('`')).collect();
    let source = include_str!("../../src/outcome.rs");
    let (_, judging) = source.split_once("fn judge_response").unwrap();
    let (judging, _) = judging.split_once("#[cfg(test)]").unwrap();
    let judged: BTreeSet<&str> = judging
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|it| it.len() > 8 && it.chars().all(|it| it.is_ascii_alphabetic() || it == '_'))
        .filter(|it| it.chars().filter(char::is_ascii_uppercase).count() > 1 || *it == "generalException")
        .filter(|it| *it != "AccessPolicy")
        .collect();
    assert!(judged.len() > 25, "{judged:?}");
    let missing: Vec<&&str> = judged.difference(&documented).collect();
    assert!(missing.is_empty(), "not in docs/errors.md: {missing:?}");
}

/// Loads what a document shows of a configuration, with all that it leaves out.
fn load(shown: &str) -> Config {
    let mut text = shown.replace("[tenant]\n", "");
    if shown.contains("[tenant]") || !shown.contains("[tenant.credential]") {
        text.push_str("[tenant.credential]\ncertificate = \"app.pem\"\n");
    }
    let text = format!(
        "[tenant]\nid = \"contoso.onmicrosoft.com\"\nclient_id = \"11111111-1111-1111-1111-111111111111\"\n{text}\
         [[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[sender]]\naddress = [\"erp@contoso.com\"]\nmailbox = \"service@contoso.com\"\n\
         [spool]\ndirectory = \"queue\"\n"
    );
    let path = Path::new("/etc/graphpost/graphpost.toml");
    Config::parse(&text, path, &Environment::default(), Files::Named)
        .unwrap_or_else(|it| panic!("{shown}\n{it}"))
}

#[test]
fn every_configuration_shown_is_one() {
    let text = std::fs::read_to_string(document("credentials.md")).unwrap();
    let mut shown = 0;
    for block in text.split("```toml\n").skip(1) {
        let (block, _) = block.split_once("```").unwrap();
        // A block in a list is indented with it.
        let lines: Vec<&str> = block.lines().map(str::trim_start).collect();
        load(&(lines.join("\n") + "\n"));
        shown += 1;
    }
    assert!(shown > 5, "{shown} blocks");
}

#[test]
fn the_hosts_of_every_cloud_are_documented() {
    let text = std::fs::read_to_string(document("credentials.md")).unwrap();
    let mut clouds = 0;
    for cloud in ["global", "us-gov", "us-dod", "china"] {
        let tenant = load(&format!("[tenant]\ncloud = \"{cloud}\"\n")).tenant;
        let row = text
            .lines()
            .find(|it| it.starts_with(&format!("| `{cloud}`")))
            .unwrap();
        for address in [tenant.authority, tenant.graph] {
            let host = address.strip_prefix("https://").unwrap();
            assert!(row.contains(&format!("`{host}`")), "{row}");
            clouds += 1;
        }
    }
    assert_eq!(clouds, 8);
}
