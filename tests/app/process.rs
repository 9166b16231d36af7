//! The real process: signals, and the service manager.

use std::io::Read as _;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::rig::{DEADLINE, Site, send};

pub struct Process {
    child: Child,
    pub smtp: SocketAddr,
    notifications: UnixDatagram,
    pub lines: Vec<String>,
}

impl Process {
    pub async fn start(site: &Site) -> Process {
        let socket = site.directory.path().join("notify.sock");
        let _ = std::fs::remove_file(&socket);
        let notifications = UnixDatagram::bind(&socket).unwrap();
        notifications.set_read_timeout(Some(DEADLINE)).unwrap();
        let log = std::fs::File::create(site.directory.path().join("log")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_graphpost"))
            .args(["serve", "--config"])
            .arg(site.path())
            .env("NOTIFY_SOCKET", &socket)
            .env("WATCHDOG_USEC", "200000")
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut lines = Vec::new();
        while lines.len() < 2 {
            let mut line = String::new();
            let read = output.read_line(&mut line).await.unwrap();
            assert!(read > 0, "it does not start:\n{}", log_of(site));
            lines.push(line.trim_end().to_owned());
        }
        let smtp = lines[0].split(' ').nth(2).unwrap().parse().unwrap();
        Process {
            child,
            smtp,
            notifications,
            lines,
        }
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        let status = std::process::Command::new("kill")
            .args(["-s", name, &pid])
            .status();
        assert!(status.unwrap().success());
    }

    /// Waits for its end.
    pub async fn ended(mut self) -> std::process::ExitStatus {
        let ended = tokio::time::timeout(DEADLINE, self.child.wait()).await;
        ended.expect("it ends").unwrap()
    }

    /// The next notification that is no sign of life.
    fn notification(&self) -> String {
        loop {
            let text = self.any_notification();
            if text.trim() != "WATCHDOG=1" {
                return text;
            }
        }
    }

    fn any_notification(&self) -> String {
        let mut text = [0; 512];
        let length = self.notifications.recv(&mut text).expect("a notification");
        String::from_utf8(text[..length].to_vec()).unwrap()
    }
}

pub fn log_of(site: &Site) -> String {
    let mut text = String::new();
    std::fs::File::open(site.directory.path().join("log"))
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    text
}

#[tokio::test]
async fn starts_reloads_and_stops_as_a_service_does() {
    let site = Site::new().await;
    let mut process = Process::start(&site).await;
    assert_eq!(
        process.lines[0],
        format!("listening smtp {} tls=none auth=none", process.smtp)
    );
    assert!(
        process.lines[1].starts_with("listening admin http://127.0.0.1:"),
        "{:?}",
        process.lines
    );
    assert_eq!(process.notification().trim(), "READY=1");
    while process.any_notification().trim() != "WATCHDOG=1" {}

    let last = |codes: Vec<String>| codes.last().unwrap().clone();
    assert_eq!(last(send(process.smtp, "erp@contoso.com", "one").await), "250");
    assert_eq!(last(send(process.smtp, "new@contoso.com", "two").await), "550");

    // A bad file keeps the running configuration.
    std::fs::write(site.path(), "[tenant]\nnonsense = 1\n").unwrap();
    process.signal("HUP");
    let reloading = process.notification();
    assert!(
        reloading.contains("RELOADING=1") && reloading.contains("MONOTONIC_USEC="),
        "{reloading}"
    );
    assert_eq!(process.notification().trim(), "READY=1");
    assert!(
        log_of(&site).contains("configuration not reloaded"),
        "{}",
        log_of(&site)
    );
    assert_eq!(last(send(process.smtp, "erp@contoso.com", "three").await), "250");

    // A good one is taken; what it cannot change is said.
    site.configure(|it| {
        it.replace(
            "[\"erp@contoso.com\"]",
            "[\"erp@contoso.com\", \"new@contoso.com\"]",
        )
        .replace("directory = \"queue\"", "directory = \"elsewhere\"")
    });
    process.signal("HUP");
    assert!(process.notification().contains("RELOADING=1"));
    assert_eq!(process.notification().trim(), "READY=1");
    assert_eq!(last(send(process.smtp, "new@contoso.com", "four").await), "250");
    let log = log_of(&site);
    assert!(
        log.contains("configuration reloaded") && log.contains("needs a restart"),
        "{log}"
    );
    assert!(!site.directory.path().join("elsewhere").exists());

    tokio::time::timeout(DEADLINE, site.cloud.wait_for(3))
        .await
        .unwrap();
    process.signal("TERM");
    assert_eq!(process.notification().trim(), "STOPPING=1");
    let status = tokio::time::timeout(DEADLINE, process.child.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(status.code(), Some(0), "{}", log_of(&site));
    assert!(log_of(&site).contains("msg=stopped"));
}

#[tokio::test]
async fn a_wrong_configuration_is_exit_78_and_a_failed_start_1() {
    let site = Site::new().await;
    let run = || async {
        let run = Command::new(env!("CARGO_BIN_EXE_graphpost"))
            .args(["serve", "--config"])
            .arg(site.path())
            .stdin(Stdio::null())
            .output();
        let output = tokio::time::timeout(DEADLINE, run).await.unwrap().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    site.configure(|it| it.replace("[spool]", "[spoool]"));
    let (code, text) = run().await;
    assert_eq!(code, Some(78), "{text}");
    assert!(text.contains("spoool"), "{text}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    site.configure(|it| it.replacen("127.0.0.1:0", &address, 1));
    let (code, text) = run().await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("another program listens there"), "{text}");
}
