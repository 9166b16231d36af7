//! `graphpost check` against the stand-in cloud, and against networks that are broken in every way.
//!
//! `GRAPHPOST_BLESS=1 cargo test --test cli microsoft` writes what is said now.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use graphpost::identity::aadsts;
use serde_json::json;

use crate::cloud::Cloud;
use crate::program::run;

fn golden(name: &str, text: &str) {
    let path = Path::new("tests/cli/findings").join(name);
    if std::env::var_os("GRAPHPOST_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap();
    for (expected, found) in expected.split("\n\n").zip(text.split("\n\n")) {
        assert_eq!(found, expected, "in {}", path.display());
    }
    assert_eq!(text, expected, "{}", path.display());
}

/// Every code that we explain, raised by the cloud in Entra's own words.
#[test]
fn every_aadsts_code_is_explained() {
    let cloud = Cloud::start();
    let (mut text, mut count) = (String::new(), 0);
    for code in aadsts::TABLE.iter().flat_map(|(codes, _)| *codes) {
        cloud.fault(&json!({"operation": "token", "action": "aadsts", "code": code}));
        let report = cloud.check(&[]);
        let found = report.golden("token");
        let explanation = aadsts::explain(*code).unwrap();
        assert!(
            found.contains(explanation.meaning) && found.contains(explanation.fix),
            "{found}"
        );
        // The cloud has words of its own for it.
        assert!(!found.contains("An error has occurred"), "{found}");
        report.assert("skip", "permissions", "rests on the token", "");
        report.assert("skip", "mailbox a@b.example", "rests on the token", "");
        text.push_str(&format!("AADSTS{code}\n{found}\n\n"));
        count += 1;
    }
    assert!(count > 30, "{count} codes");
    golden("aadsts.txt", &text);
}

/// What Graph says to a message, and what to do.
#[test]
fn what_graph_refuses_is_explained() {
    let cloud = Cloud::start();
    let mut text = String::new();
    for (status, code, message) in [
        (
            403,
            "ErrorAccessDenied",
            "Access is denied. Check credentials and try again.",
        ),
        (
            403,
            "ErrorAccessDenied",
            "Access to OData is disabled: [RAOP] : Blocked by tenant configured AppOnly AccessPolicy settings.",
        ),
        (
            403,
            "ErrorSendAsDenied",
            "The user account does not have permission to send as this user.",
        ),
        (
            403,
            "Authorization_RequestDenied",
            "Insufficient privileges to complete the operation.",
        ),
        (403, "ErrorAccountDisabled", "The account is disabled."),
        (
            404,
            "ErrorInvalidUser",
            "The requested user 'a@b.example' is invalid.",
        ),
        (404, "ResourceNotFound", "Resource could not be discovered."),
        (
            404,
            "Request_ResourceNotFound",
            "Resource 'a@b.example' does not exist.",
        ),
        (
            404,
            "MailboxNotEnabledForRESTAPI",
            "The mailbox is either inactive, soft-deleted, or is hosted on-premise.",
        ),
        (403, "ErrorQuotaExceeded", "The mailbox is full."),
        (
            429,
            "ErrorExceededMessageLimit",
            "Cannot send mail. Daily Message limit exceeded.",
        ),
        (
            429,
            "ApplicationThrottled",
            "Application is over its MailboxConcurrency limit.",
        ),
        (
            400,
            "ErrorInvalidRecipients",
            "At least one recipient is not valid.",
        ),
        (
            401,
            "InvalidAuthenticationToken",
            "Access token validation failure. Invalid audience.",
        ),
        (503, "ErrorServerBusy", "The server is busy."),
        (
            500,
            "ErrorInternalServerError",
            "An internal server error occurred.",
        ),
    ] {
        cloud.fault(&json!({
            "operation": "sendMail", "action": "status", "status": status, "code": code, "message": message,
        }));
        let report = cloud.check(&["--send-to", "you@example.org"]);
        text.push_str(&format!(
            "{status} {code}\n{}\n\n",
            report.golden("mailbox a@b.example")
        ));
    }
    golden("graph.txt", &text);
    assert_eq!(cloud.delivered(), json!([]));
}

#[test]
fn sends_for_real_from_each_mailbox() {
    let cloud = Cloud::start();
    let more = "[[sender]]\naddress = \"x@b.example\"\nmailbox = \"second@b.example\"\n[[sender]]\naddress = \
                \"y@b.example\"\nmailbox = \"A@b.example\"\nsave_to_sent_items = false\n[[sender]]\naddress = \"*\"";
    cloud.change("[[sender]]\naddress = \"*\"", more);
    // What RBAC for Applications grants is not in the token, and holds for its mailboxes only.
    cloud.put(
        "/sandbox/tenant",
        &json!({"roles": [], "assignments": [{"role": "Mail.Send", "mailboxes": ["a@b.example"]}]}),
    );
    let report = cloud.check(&[]);
    assert_eq!(report.ran.code, 0, "{report:?}");
    report.assert("skip", "permissions", "unknown until tried", "");
    report.assert(
        "skip",
        "mailbox A@b.example",
        "Test-ServicePrincipalAuthorization -Identity '11111111-1111-1111-1111-111111111111' -Resource 'A@b.example'",
        "",
    );
    assert_eq!(cloud.delivered(), json!([]), "nothing is sent unasked");

    let report = cloud.check(&["--send-to", "you@example.org"]);
    assert_eq!(report.ran.code, 1);
    report.assert(
        "ok",
        "mailbox A@b.example",
        "sent a message to you@example.org (request-id ",
        "",
    );
    report.assert(
        "fail",
        "mailbox second@b.example",
        "403 ErrorAccessDenied",
        "grant Mail.Send",
    );
    let delivered = cloud.delivered();
    assert_eq!(delivered.as_array().unwrap().len(), 1, "{delivered}");
    assert_eq!(delivered[0]["recipients"], json!(["you@example.org"]));

    let report = cloud.check(&["--send-to", "you@example.org", "--mailbox", "a@b.example"]);
    assert_eq!(report.ran.code, 0);
    assert!(!report.ran.out.contains("second@b.example"));
    let report = cloud.check(&["--mailbox", "other@b.example"]);
    report.assert(
        "warn",
        "mailbox other@b.example",
        "no rule of the sender table",
        "[[sender]]",
    );

    for wrong in [
        &["--send-to", "you@example.org", "--offline"][..],
        &["--send-to", "you"],
    ] {
        assert_eq!(run(&[&["check"], wrong].concat()).code, 2, "{wrong:?}");
    }
}

#[test]
fn permissions_are_read_from_the_token() {
    let cloud = Cloud::start();
    cloud.put(
        "/sandbox/tenant",
        &json!({"roles": ["Mail.Send", "Directory.Read.All"]}),
    );
    let report = cloud.check(&[]);
    assert_eq!(report.ran.code, 0);
    report.assert(
        "warn",
        "permissions",
        "Mail.Send is granted for the whole tenant",
        "graphpost entra script",
    );
    report.assert(
        "warn",
        "permissions",
        "more than this gateway needs: Directory.Read.All",
        "remove",
    );
    report.assert("skip", "mailbox a@b.example", "Mail.Send covers it", "");

    // Drafts need more, and whether that is granted can be tried without sending.
    cloud.change("[tenant]", "[tenant]\nlarge_messages = true");
    cloud.put(
        "/sandbox/tenant",
        &json!({"roles": ["Mail.Send", "Mail.ReadWrite"]}),
    );
    let report = cloud.check(&[]);
    report.assert(
        "warn",
        "permissions",
        "Mail.ReadWrite is granted for the whole tenant",
        "graphpost entra script",
    );
    report.assert(
        "ok",
        "mailbox a@b.example",
        "large messages are drafted in it",
        "",
    );
    cloud.put("/sandbox/tenant", &json!({"roles": ["Mail.Send"]}));
    let report = cloud.check(&[]);
    assert_eq!(report.ran.code, 1);
    report.assert("skip", "permissions", "Mail.ReadWrite is not in the token", "");
    report.assert(
        "fail",
        "mailbox a@b.example",
        "no drafts for large messages: 403",
        "large_messages = false",
    );
    // Looking into Sent Items takes less.
    cloud.change("large_messages = true", "large_messages = false");
    cloud.change("[spool]", "[delivery]\nunknown = \"verify\"\n[spool]");
    let report = cloud.check(&[]);
    report.assert(
        "skip",
        "permissions",
        "Mail.ReadBasic.All is not in the token",
        "",
    );
    report.assert(
        "fail",
        "mailbox a@b.example",
        "Sent Items cannot be looked into: 403",
        "grant Mail.ReadBasic.All",
    );
    let inactive = json!({"mailboxes": [{"address": "a@b.example", "inactive": true}]});
    cloud.put("/sandbox/tenant", &inactive);
    cloud.check(&[]).assert(
        "fail",
        "mailbox a@b.example",
        "404 MailboxNotEnabledForRESTAPI",
        "needs an Exchange Online licence",
    );
    assert_eq!(cloud.delivered(), json!([]));
}

#[test]
fn other_credentials_are_told_apart() {
    let cloud = Cloud::start();
    let files = "certificate = \"graphpost.pem\"\nprivate_key = \"graphpost.key\"";
    // Two at once: the next one is not registered yet, and that fails nothing.
    let next = cloud.directory.path().join("next");
    fs::create_dir(&next).unwrap();
    let made = run(&["cert", "new", "--bits", "2048", "--out", next.to_str().unwrap()]);
    assert_eq!(made.code, 0, "{made:?}");
    let two = format!(
        "{files}\n[tenant.next_credential]\ncertificate = \"next/graphpost.pem\"\nprivate_key = \"next/graphpost.key\""
    );
    cloud.change(files, &two);
    let report = cloud.check(&[]);
    assert_eq!(report.ran.code, 0, "{report:?}");
    report.assert("ok", "credential", "CN=graphpost", "");
    report.assert("ok", "next credential", "next/graphpost.pem", "");
    report.assert("ok", "token", "given", "");
    report.assert("warn", "next token", "AADSTS700027", "upload this certificate");
    cloud.change(&two, files);

    cloud.change(files, "secret = \"hunter2\"");
    cloud.put("/sandbox/tenant", &json!({"secrets": ["hunter2"]}));
    let report = cloud.check(&[]);
    report.assert(
        "warn",
        "configuration",
        "tenant.credential is a client secret",
        "a certificate is better",
    );
    report.assert(
        "skip",
        "credential",
        "when it ends is shown only in the portal",
        "",
    );
    report.assert("ok", "token", "given", "");
    assert!(!report.ran.out.contains("hunter2"), "{report:?}");
    cloud.put("/sandbox/tenant", &json!({"secrets": ["other"]}));
    let report = cloud.check(&[]);
    report.assert("fail", "token", "AADSTS7000215", "the secret's value, not its id");
    assert!(!report.ran.out.contains("hunter2"), "{report:?}");

    // The payload alone is read: {"iss":"https://k8s.contoso.com","sub":"system:mail","aud":["api://x"],"exp":1}
    let token = "e30.eyJpc3MiOiJodHRwczovL2s4cy5jb250b3NvLmNvbSIsInN1YiI6InN5c3RlbTptYWlsIiwiYXVkIjpbImFwaTovL3giXSwiZXhwIjoxfQ.c2ln";
    fs::write(cloud.directory.path().join("federated"), token).unwrap();
    cloud.change("secret = \"hunter2\"", "federated_token_file = \"federated\"");
    let report = cloud.check(&[]);
    report.assert(
        "ok",
        "credential",
        "issuer https://k8s.contoso.com\nsubject system:mail\naudience api://x",
        "",
    );
    report.assert(
        "fail",
        "credential",
        "the token ended on 1970-01-01",
        "look at what writes it",
    );
    assert!(!report.ran.out.contains("c2ln"), "{report:?}");
    fs::write(cloud.directory.path().join("federated"), "no token").unwrap();
    cloud
        .check(&[])
        .assert("fail", "credential", "is no token (JWT)", "name the file");

    cloud.change(
        "federated_token_file = \"federated\"",
        "vault_certificate = \"https://contoso.vault.azure.net/certificates/mail\"",
    );
    let path = cloud.config.to_str().unwrap();
    let ran = run(&["check", "--offline", "--config", path]);
    assert!(
        ran.out.contains("the certificate mail in https://contoso.vault.azure.net; its key signs there; asked by this machine's managed identity"),
        "{ran:?}"
    );
    cloud.change(
        "vault_certificate = \"https://contoso.vault.azure.net/certificates/mail\"",
        "managed_identity = \"system\"",
    );
    let ran = run(&["check", "--offline", "--config", path]);
    assert!(
        ran.out
            .contains("this machine's managed identity (a virtual machine's metadata service"),
        "{ran:?}"
    );
}

/// A server that answers every connection in this way.
fn server(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|it| it > 2) {
                line.clear();
            }
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

fn refusing() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn a_network_that_does_not_let_us_through() {
    let cloud = Cloud::start();
    let authority = format!("authority = \"{}\"", cloud.url);
    let with = |line: &str| {
        cloud.change(&authority, line);
        let report = cloud.check(&[]);
        cloud.change(line, &authority);
        report.assert("skip", "clock", "rests on the connection to the authority", "");
        report.assert("skip", "token", "rests on the connection to the authority", "");
        report
    };

    let report = with("authority = \"https://login.contoso.invalid\"");
    report.assert(
        "fail",
        "dns authority",
        "login.contoso.invalid has no address",
        "/etc/resolv.conf",
    );
    report.assert("ok", "tls graph", "plain HTTP", "");

    let closed = refusing();
    let report = with(&format!("authority = \"https://{closed}\""));
    report.assert(
        "fail",
        "connection authority",
        "refuses the connection",
        "let the firewall pass TCP to 127.0.0.1",
    );

    let proxy =
        format!("authority = \"https://login.contoso.invalid\"\nproxy = \"http://user:hunter2@{closed}\"");
    let report = with(&proxy);
    report.assert(
        "ok",
        "proxy authority",
        "login.contoso.invalid is asked through 127.0.0.1",
        "",
    );
    report.assert(
        "fail",
        "connection authority",
        "refuses the connection",
        "correct tenant.proxy",
    );
    assert!(!report.ran.out.contains("hunter2"), "{report:?}");

    let login = server("HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n");
    let report = with(&format!(
        "authority = \"https://login.contoso.invalid\"\nproxy = \"http://{login}\""
    ));
    report.assert(
        "fail",
        "tls authority",
        "no answer",
        "give the proxy's login in tenant.proxy",
    );

    let forbidding = server("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
    let report = with(&format!(
        "authority = \"https://login.contoso.invalid\"\nproxy = \"http://{forbidding}\""
    ));
    report.assert("fail", "tls authority", "no answer", "let the proxy pass CONNECT");
}

#[test]
fn a_clock_that_is_wrong() {
    let cloud = Cloud::start();
    let past = server(
        "HTTP/1.1 404 Not Found\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    );
    cloud.change(
        &format!("authority = \"{}\"", cloud.url),
        &format!("authority = \"http://{past}\""),
    );
    let report = cloud.check(&[]);
    report.assert(
        "fail",
        "clock",
        "s ahead of the authority's; Entra ID takes five minutes",
        "timedatectl set-ntp true",
    );
    report.assert(
        "fail",
        "token",
        "Entra ID answers 404 (an empty body)",
        "check tenant.authority",
    );
}

/// An inspecting proxy, as a host sees it that does not know its authority.
#[test]
fn a_certificate_from_a_stranger() {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority
        .distinguished_name
        .push(DnType::CommonName, "Contoso Inspection CA");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_pem = authority.self_signed(&authority_key).unwrap().pem();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let leaf = leaf
        .signed_by(&key, &Issuer::new(authority, authority_key))
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let tls = Arc::new(tls);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            let session = rustls::ServerConnection::new(Arc::clone(&tls)).unwrap();
            let mut stream = rustls::StreamOwned::new(session, stream);
            // A client that does not trust us hangs up here.
            if stream.read(&mut [0; 4096]).is_ok_and(|it| it > 0) {
                let _ = stream
                    .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
    });

    let cloud = Cloud::start();
    let authority = format!("authority = \"https://localhost:{port}\"");
    cloud.change(&format!("authority = \"{}\"", cloud.url), &authority);
    let report = cloud.check(&[]);
    report.assert(
        "fail",
        "tls authority",
        "its certificate is from CN=Contoso Inspection CA, whom this host does not trust",
        "tenant.ca_file",
    );
    fs::write(cloud.directory.path().join("inspection-ca.pem"), authority_pem).unwrap();
    cloud.change(
        &authority,
        &format!("{authority}\nca_file = \"inspection-ca.pem\""),
    );
    let report = cloud.check(&[]);
    report.assert(
        "ok",
        "tls authority",
        "its certificate is from CN=Contoso Inspection CA",
        "",
    );
    report.assert("skip", "clock", "did not say what time it is", "");
}
