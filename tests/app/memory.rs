//! Large mail through the real program: what it needs of memory, measured from outside; and that the
//! addresses of its uploads, which are passwords, are in no log.

use std::process::Stdio;

use base64_simd::STANDARD;
use graphpost::sandbox::{Form, Rule};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::rig::{DEADLINE, Site, body, control};

const FILE_OCTETS: usize = 30_000_000;

/// Octets of a message with such a file: base64, in lines.
const MESSAGE_OCTETS: u64 = FILE_OCTETS as u64 / 3 * 4 / 76 * 78;

fn file(seed: u32) -> Vec<u8> {
    (0..FILE_OCTETS as u32)
        .map(|it| (it.wrapping_mul(seed) >> 7) as u8)
        .collect()
}

fn message(from: &str, seed: u32) -> Vec<u8> {
    let mut message = format!(
        "From: {from}\r\nTo: ann@example.com\r\nSubject: scan {seed}\r\nMIME-Version: 1.0\r\n\
         Content-Type: application/pdf; name=scan.pdf\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    )
    .into_bytes();
    let text = STANDARD.encode_to_string(file(seed));
    for line in text.as_bytes().chunks(76) {
        message.extend_from_slice(line);
        message.extend_from_slice(b"\r\n");
    }
    message.extend_from_slice(b".\r\n");
    message
}

async fn send(server: &str, from: &str, message: &[u8]) {
    let mut stream = BufReader::new(TcpStream::connect(server).await.unwrap());
    let commands = [
        String::new(),
        "EHLO client.example\r\n".to_owned(),
        format!("MAIL FROM:<{from}>\r\n"),
        "RCPT TO:<ann@example.com>\r\n".to_owned(),
        "DATA\r\n".to_owned(),
    ];
    for command in &commands {
        answer(&mut stream, command.as_bytes()).await;
    }
    assert!(answer(&mut stream, message).await.starts_with("250"));
}

async fn answer(stream: &mut BufReader<TcpStream>, octets: &[u8]) -> String {
    stream.write_all(octets).await.unwrap();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        if line.as_bytes().get(3) != Some(&b'-') {
            assert!(line.starts_with(['2', '3']), "{line}");
            return line;
        }
    }
}

/// A figure of the process's memory, in octets.
fn memory(child: &Child, name: &str) -> u64 {
    let pid = child.id().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|it| it.strip_prefix(name)).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// From now on the peak is the peak from now on.
fn forget_peak(child: &Child) {
    std::fs::write(format!("/proc/{}/clear_refs", child.id().unwrap()), "5").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn large_mail_needs_little_more_than_its_size_and_two_no_more_than_one() {
    let site = Site::new().await;
    site.cloud
        .change_tenant(|it| it.roles = vec!["Mail.Send".to_owned(), "Mail.ReadWrite".to_owned()]);
    site.configure(|it| {
        it.replace("[tenant]", "[tenant]\nlarge_messages = true")
            .replace(
                "[spool]",
                "[[sender]]\naddress = \"mfp@contoso.com\"\nmailbox = \"mfp@contoso.com\"\n[spool]",
            )
            .replace("[delivery]", "[delivery]\nmax_memory = \"64MB\"")
            + "[smtp]\nmax_message_size = \"60MB\"\n[log]\nlevel = \"debug\"\n"
    });
    let mut child = Command::new(env!("CARGO_BIN_EXE_graphpost"))
        .args(["serve", "--config"])
        .arg(site.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut log = child.stderr.take().unwrap();
    let log = tokio::spawn(async move {
        let mut text = String::new();
        log.read_to_string(&mut text).await.unwrap();
        text
    });
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).await.unwrap();
    let server = line.split(' ').nth(2).unwrap().trim().to_owned();

    // Both are in the queue before either may go out.
    site.cloud
        .set_faults(vec![Rule {
            operation: Some("createDraft".to_owned()),
            action: "status".to_owned(),
            status: Some(403),
            code: Some("ErrorAccessDenied".into()),
            ..Rule::default()
        }])
        .unwrap();
    let before = memory(&child, "VmRSS:");
    forget_peak(&child);
    send(&server, "erp@contoso.com", &message("erp@contoso.com", 7)).await;
    let held = |count: usize| {
        let socket = site.control_socket();
        async move {
            loop {
                let answer = control(&socket, "GET /api/queue?state=held", "").await;
                let entries: Value = serde_json::from_str(body(&answer)).unwrap();
                if entries.as_array().unwrap().len() == count {
                    return;
                }
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::time::timeout(DEADLINE, held(1)).await.unwrap();
    let one = memory(&child, "VmHWM:").saturating_sub(before);
    send(&server, "mfp@contoso.com", &message("mfp@contoso.com", 11)).await;
    tokio::time::timeout(DEADLINE, held(2)).await.unwrap();

    // Now both at once: each has its content in memory while the cloud takes its time.
    site.cloud
        .set_faults(vec![Rule {
            operation: Some("createDraft".to_owned()),
            action: "delay".to_owned(),
            delay_ms: 2000,
            ..Rule::default()
        }])
        .unwrap();
    forget_peak(&child);
    let order = r#"{"who":"test","reason":"now"}"#;
    let answer = control(&site.control_socket(), "POST /api/flush", order).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let deliveries = tokio::time::timeout(DEADLINE, site.cloud.wait_for(2))
        .await
        .unwrap();
    let two = memory(&child, "VmHWM:").saturating_sub(before);
    println!(
        "a message of {MESSAGE_OCTETS} octets: {:.2} times its size more; two at once: {:.2} times",
        one as f64 / MESSAGE_OCTETS as f64,
        two as f64 / MESSAGE_OCTETS as f64
    );
    assert!(
        one < MESSAGE_OCTETS * 8 / 5,
        "{one} octets for one of {MESSAGE_OCTETS}"
    );
    assert!(
        two < MESSAGE_OCTETS * 9 / 5,
        "{two} octets for two of {MESSAGE_OCTETS}"
    );

    // And they are whole.
    for delivery in &deliveries {
        assert_eq!(delivery.form, Form::Draft);
        let seed = delivery.subject.trim_start_matches("scan ").parse().unwrap();
        let content = &delivery.content.as_ref().unwrap().mail.attachments[0].content;
        assert!(content[..] == file(seed)[..], "{}", delivery.subject);
    }
    child.kill().await.unwrap();
    let log = log.await.unwrap();
    assert!(log.contains("sent"), "{log}");
    for secret in ["authtoken", "uploadSession", "Bearer", "eyJ"] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}
