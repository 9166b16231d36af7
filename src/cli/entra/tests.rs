#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::process::{Command, Stdio};

use super::*;

fn certificate() -> Certificate {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let parameters = rcgen::CertificateParams::new(vec!["app.contoso.com".to_owned()]).unwrap();
    Certificate::from_der(parameters.self_signed(&key).unwrap().der()).unwrap()
}

const NASTY: &str = "o'brien'; Remove-Item -Recurse / #\u{2019}$(whoami)`@contoso.com";

fn application<'a>(certificate: &'a Certificate, restriction: Restriction) -> Application<'a> {
    Application {
        name: "graphpost",
        tenant: "contoso.onmicrosoft.com",
        client_id: Some("11111111-2222-3333-4444-555555555555"),
        cloud: GLOBAL,
        certificate,
        mailboxes: vec!["service@contoso.com", NASTY],
        permissions: vec![MAIL_SEND],
        restriction,
    }
}

/// What of a script is code to PowerShell: all but comments and the text of strings
/// (about_Quoting_Rules). Enough to see that no text of ours gets out of its quotes, and that what is
/// opened is closed.
fn code_of(script: &str) -> String {
    let mut code = String::new();
    read_code(&mut script.chars().peekable(), &mut code, false);
    code
}

type Characters<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// Reads code to its end, or, in a subexpression, to the bracket that closes it.
fn read_code(script: &mut Characters<'_>, code: &mut String, subexpression: bool) {
    let single = |it: char| matches!(it, '\'' | '\u{2018}' | '\u{2019}' | '\u{201a}' | '\u{201b}');
    let mut depth = 0;
    while let Some(character) = script.next() {
        match character {
            '#' => while script.next_if(|it| *it != '\n').is_some() {},
            '`' => _ = script.next(),
            '"' => read_expandable(script, code),
            it if single(it) => loop {
                if single(script.next().expect("a closing quote"))
                    && script.next_if(|it| single(*it)).is_none()
                {
                    break;
                }
            },
            ')' if subexpression && depth == 0 => return,
            it => {
                depth += i32::from(it == '(') - i32::from(it == ')');
                code.push(it);
            }
        }
    }
    assert!(!subexpression, "a subexpression is not closed");
}

/// Reads a double-quoted string, in which `$(…)` is code.
fn read_expandable(script: &mut Characters<'_>, code: &mut String) {
    loop {
        match script.next().expect("a closing double quote") {
            '"' => return,
            '`' => _ = script.next(),
            '$' if script.next_if_eq(&'(').is_some() => read_code(script, code, true),
            _ => {}
        }
    }
}

#[test]
fn nothing_from_the_configuration_is_code_in_powershell() {
    let certificate = certificate();
    for restriction in [Restriction::Rbac, Restriction::AccessPolicy] {
        let script = powershell::script(&application(&certificate, restriction));
        assert!(script.contains("o''brien''; Remove-Item"), "{script}");
        // Double-quoted strings hold only our own text.
        let code = code_of(&script);
        assert!(
            !code.contains("Remove-Item") && !code.contains("whoami"),
            "{code}"
        );
    }
}

#[test]
fn brackets_in_powershell_are_closed() {
    let certificate = certificate();
    for restriction in [Restriction::Rbac, Restriction::AccessPolicy] {
        let script = powershell::script(&application(&certificate, restriction));
        let code = code_of(&script);
        for (open, close) in [('(', ')'), ('{', '}'), ('[', ']')] {
            let count = |it| code.matches(it).count();
            assert_eq!(count(open), count(close), "{open} {close}\n{script}");
        }
    }
}

#[test]
fn grants_exactly_the_mailboxes_by_rbac_and_removes_the_tenant_wide_grant() {
    let certificate = certificate();
    let script = powershell::script(&application(&certificate, Restriction::Rbac));
    for expected in [
        "'service@contoso.com'",
        "-Role 'Application Mail.Send'",
        "-CustomResourceScope $scope",
        "Remove-MgServicePrincipalAppRoleAssignment",
        "AppRoleId -eq 'b633e1c5-b582-4048-a93e-9f11b44c7e96'",
        "Test-ServicePrincipalAuthorization",
        "11111111-2222-3333-4444-555555555555",
        &certificate.sha1_thumbprint(),
    ] {
        assert!(script.contains(expected), "{expected} in {script}");
    }
    assert!(!script.contains("New-MgServicePrincipalAppRoleAssignment"));
    assert!(!script.contains("New-ApplicationAccessPolicy"));
}

#[test]
fn grants_what_the_configuration_needs_and_no_more() {
    let certificate = certificate();
    let with = |permissions: Vec<Permission>, restriction| {
        powershell::script(&Application {
            permissions,
            ..application(&certificate, restriction)
        })
    };
    let least = with(vec![MAIL_SEND], Restriction::Rbac);
    assert!(!least.contains("-Role 'Application Mail.Read"), "{least}");
    assert!(
        least.contains("-Identity \"$name Mail.ReadWrite\" -ErrorAction SilentlyContinue |"),
        "{least}"
    );
    let large = with(vec![MAIL_SEND, MAIL_READ_WRITE], Restriction::Rbac);
    assert!(large.contains("-Role 'Application Mail.ReadWrite'"), "{large}");
    let verified = with(vec![MAIL_SEND, MAIL_READ_BASIC], Restriction::Rbac);
    assert!(
        verified.contains("-Role 'Application Mail.ReadBasic'"),
        "{verified}"
    );
    let older = with(vec![MAIL_SEND, MAIL_READ_WRITE], Restriction::AccessPolicy);
    assert!(
        older.contains("-AppRoleId 'e2a3a72e-5f79-4c64-b1b1-878b674786c9'"),
        "{older}"
    );
}

#[test]
fn the_older_variant_says_that_it_is_old() {
    let certificate = certificate();
    let script = powershell::script(&application(&certificate, Restriction::AccessPolicy));
    assert!(script.contains("New-ApplicationAccessPolicy -AppId"));
    assert!(script.contains("is replacing application access policies"));
    assert!(script.contains("New-MgServicePrincipalAppRoleAssignment"));
    assert!(!script.contains("New-ManagementRoleAssignment"));
}

#[test]
fn a_configuration_with_zeros_registers_a_new_application() {
    let certificate = certificate();
    let new = Application {
        client_id: None,
        ..application(&certificate, Restriction::Rbac)
    };
    assert!(powershell::script(&new).contains("New-MgApplication -DisplayName $name"));
    assert!(azure_cli::script(&new).contains("az ad app create"));
    let known = application(&certificate, Restriction::Rbac);
    assert!(!powershell::script(&known).contains("New-MgApplication "));
    assert!(!azure_cli::script(&known).contains("az ad app create"));
}

#[test]
fn the_shell_understands_the_azure_cli_script() {
    let certificate = certificate();
    for restriction in [Restriction::Rbac, Restriction::AccessPolicy] {
        for client_id in [None, Some("11111111-2222-3333-4444-555555555555")] {
            let script = azure_cli::script(&Application {
                client_id,
                ..application(&certificate, restriction)
            });
            let mut shell = Command::new("sh")
                .arg("-n")
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
            let output = shell.wait_with_output().unwrap();
            assert!(
                output.status.success(),
                "{}\n{script}",
                String::from_utf8_lossy(&output.stderr)
            );
            assert!(script.contains("--append"));
        }
    }
}

/// Runs the script with an `az` that only writes down how it was called.
#[test]
fn the_azure_cli_script_runs_to_its_end() {
    let certificate = certificate();
    let directory = tempfile::tempdir().unwrap();
    let az = directory.path().join("az");
    std::fs::write(
        &az,
        "#!/bin/sh\necho \"$@\" >>calls\ncase \"$*\" in *'--query id'*) echo principal-id;; esac\n",
    )
    .unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&az, std::fs::Permissions::from_mode(0o755)).unwrap();
    let nasty = Application {
        name: NASTY,
        ..application(&certificate, Restriction::Rbac)
    };
    let path = format!(
        "{}:{}",
        directory.path().display(),
        std::env::var("PATH").unwrap()
    );
    let output = Command::new("sh")
        .args(["-c", &azure_cli::script(&nasty)])
        .current_dir(directory.path())
        .env("PATH", path)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains("./exchange.ps1 -AppId 11111111-2222-3333-4444-555555555555 -PrincipalId principal-id"),
        "{said}"
    );
    let calls = std::fs::read_to_string(directory.path().join("calls")).unwrap();
    assert!(
        calls.contains("ad app credential reset --id 11111111-2222-3333-4444-555555555555 --cert @"),
        "{calls}"
    );
    let exchange = std::fs::read_to_string(directory.path().join("exchange.ps1")).unwrap();
    assert!(
        exchange.starts_with("param(") && exchange.contains("New-ManagementScope"),
        "{exchange}"
    );
    assert!(!code_of(&exchange).contains("Remove-Item"), "{exchange}");
}

#[test]
fn clouds_have_their_own_names() {
    for (graph, module) in [
        ("https://graph.microsoft.com", "Global"),
        ("https://graph.microsoft.us", "USGov"),
        ("https://dod-graph.microsoft.us", "USGovDoD"),
        ("https://microsoftgraph.chinacloudapi.cn", "China"),
        ("http://127.0.0.1:8025", "Global"),
    ] {
        assert_eq!(cloud(graph).graph_module, module, "{graph}");
    }
}
