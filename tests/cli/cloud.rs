//! `graphpost cloud`, the real process, and a configuration that points at it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;

use crate::program::{LEAST, Ran, Running, configuration, directory, run};

pub struct Cloud {
    pub url: String,
    pub directory: TempDir,
    pub config: PathBuf,
    _running: Running,
}

impl Cloud {
    /// A cloud that knows the certificate of the configuration.
    pub fn start() -> Cloud {
        let directory = directory();
        let certificate = directory.path().join("graphpost.pem");
        let mut running = Running::start(&[
            "cloud",
            "--http",
            "127.0.0.1:0",
            "--certificate",
            certificate.to_str().unwrap(),
        ]);
        let lines = running.read_until("What arrived");
        let url = lines[0].strip_prefix("stand-in cloud: ").unwrap().to_owned();
        let config = configuration(directory.path(), LEAST);
        let cloud = Cloud {
            url,
            directory,
            config,
            _running: running,
        };
        cloud.change("http://127.0.0.1:9", &cloud.url);
        cloud
    }

    /// Changes the text of the configuration.
    pub fn change(&self, from: &str, to: &str) {
        let text = fs::read_to_string(&self.config).unwrap();
        assert!(text.contains(from), "{from} in {text}");
        fs::write(&self.config, text.replace(from, to)).unwrap();
    }

    pub fn put(&self, path: &str, body: &Value) {
        let answer = self.request("PUT", path, &body.to_string());
        assert!(answer.starts_with("HTTP/1.0 20"), "{answer}");
    }

    pub fn fault(&self, rule: &Value) {
        self.put("/sandbox/faults", &serde_json::json!([rule]));
    }

    fn request(&self, method: &str, path: &str, body: &str) -> String {
        let host = self.url.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(host).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// What has been delivered.
    pub fn delivered(&self) -> Value {
        let answer = self.request("GET", "/sandbox/messages", "");
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    pub fn check(&self, more: &[&str]) -> Report {
        Report::of(run(&[
            &["check", "--json", "--config", self.config.to_str().unwrap()],
            more,
        ]
        .concat()))
    }
}

/// What `check --json` found.
#[derive(Debug)]
pub struct Report {
    pub ran: Ran,
    checks: Vec<Value>,
}

impl Report {
    fn of(ran: Ran) -> Report {
        let json: Value = serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("{ran:?}"));
        let checks = json["checks"].as_array().unwrap().clone();
        assert_eq!(ran.code, i32::from(json["fail"] != 0), "{ran:?}");
        Report { ran, checks }
    }

    /// The line of this name whose detail has these words.
    pub fn find(&self, check: &str, words: &str) -> &Value {
        let found = self
            .checks
            .iter()
            .find(|it| it["check"] == check && it["detail"].as_str().unwrap().contains(words));
        found.unwrap_or_else(|| panic!("no {check} with {words:?} in {:#?}", self.checks))
    }

    pub fn assert(&self, status: &str, check: &str, words: &str, fix: &str) {
        let found = self.find(check, words);
        assert_eq!(found["status"], status, "{found}");
        let said = found["fix"].as_str().unwrap_or_default();
        assert!(said.contains(fix), "{found}");
    }

    /// The line of this name as it is shown, without what differs between runs.
    pub fn golden(&self, check: &str) -> String {
        let found = self.find(check, "");
        let mut text = format!(
            "{} {}",
            found["status"].as_str().unwrap(),
            found["detail"].as_str().unwrap()
        );
        if let Some(fix) = found["fix"].as_str() {
            text.push_str(&format!("\n    fix: {fix}"));
        }
        without_ids_and_times(&text)
    }
}

fn without_ids_and_times(text: &str) -> String {
    let part = |it: char| it.is_ascii_alphanumeric() || it == '-' || it == ':';
    let mut plain = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|it| !part(it)).unwrap_or(rest.len());
        let word = &rest[..end];
        plain.push_str(
            match (word.len(), word.matches('-').count(), word.matches(':').count()) {
                (36, 4, 0) => "GUID",
                (10, 2, 0) if word.starts_with("20") => "DATE",
                (8 | 9, 0, 2) => "TIME",
                _ => word,
            },
        );
        let next = rest[end..].find(part).map_or(rest.len(), |it| end + it);
        plain.push_str(&rest[end..next]);
        rest = &rest[next..];
    }
    plain
}
