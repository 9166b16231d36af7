//! The commands that speak with a running gateway, with `graphpost sandbox` for one.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::program::{Running, run};

/// A sandbox with free ports.
struct Sandbox {
    running: Running,
    smtp: String,
    http: String,
    config: String,
}

impl Sandbox {
    fn start(more: &[&str]) -> Sandbox {
        let arguments = [
            &["sandbox", "--smtp", "127.0.0.1:0", "--http", "127.0.0.1:0"],
            more,
        ]
        .concat();
        let mut running = Running::start(&arguments);
        let lines = running.read_until("Ctrl-C");
        let word = |prefix: &str| {
            let line = lines.iter().find(|it| it.trim_start().starts_with(prefix));
            let line = line.unwrap_or_else(|| panic!("no {prefix} in {lines:#?}"));
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        Sandbox {
            smtp: word("Mail").trim_start_matches("smtp://").to_owned(),
            http: word("Inbox"),
            config: word("Config"),
            running,
        }
    }

    fn run(&self, arguments: &[&str]) -> crate::program::Ran {
        run(&[arguments, &["--config", &self.config]].concat())
    }

    fn request(&self, method: &str, path: &str, body: &str) -> String {
        use std::io::{Read as _, Write as _};
        let host = self.http.trim_start_matches("http://").trim_end_matches('/');
        let mut stream = std::net::TcpStream::connect(host).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.0 20"), "{answer}");
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// What the stand-in cloud has delivered.
    fn delivered(&self) -> Vec<Value> {
        serde_json::from_str(&self.request("GET", "/sandbox/messages", "")).unwrap()
    }
}

/// Asks again until there is an answer; a minute is far more than it takes.
fn until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "it never happened");
    }
}

const SEND: [&str; 5] = ["send", "--from", "erp@contoso.com", "--to", "you@example.org"];

#[test]
fn a_message_goes_all_the_way() {
    let sandbox = Sandbox::start(&[]);
    let ran = sandbox.run(&["healthcheck"]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "", ""));

    let more = [
        "--to",
        "b@example.org",
        "--subject",
        "Grüße",
        "--body",
        "Hallo\n.\n",
        "--attach",
        "Cargo.toml",
    ];
    let ran = sandbox.run(&[&SEND[..], &more].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains(&sandbox.smtp), "{}", ran.out);
    assert!(ran.out.contains("queued as 00000001"), "{}", ran.out);
    let last = ran.out.lines().last().unwrap();
    assert!(
        last.starts_with("sent      through service@contoso.com after "),
        "{last}"
    );

    let delivered = sandbox.delivered();
    assert_eq!(delivered.len(), 1);
    assert_eq!(delivered[0]["subject"], "Grüße");
    assert_eq!(
        delivered[0]["recipients"],
        serde_json::json!(["you@example.org", "b@example.org"])
    );
    assert_eq!(delivered[0]["attachments"][0]["name"], "Cargo.toml");

    assert_eq!(sandbox.run(&["queue", "list"]).out, "no messages\n");
    let list = sandbox.run(&["queue", "list", "--all"]).out;
    assert!(list.contains("you@example.org +1"), "{list}");
    let show = sandbox.run(&["queue", "show", "1"]).out;
    assert!(
        show.contains("state       sent\n") && show.contains("request-id  "),
        "{show}"
    );
    let json: Value = serde_json::from_str(&sandbox.run(&["queue", "show", "1", "--json"]).out).unwrap();
    assert_eq!(json["state"], "sent");
    let lines = sandbox.run(&["queue", "show", "1", "1", "--jsonl"]).out;
    assert_eq!(lines.lines().count(), 2, "{lines}");
    let both = sandbox.run(&["queue", "show", "1", "1", "--json"]).out;
    assert_eq!(serde_json::from_str::<Value>(&both).unwrap()[1], json);
    // Only the record is kept.
    let ran = sandbox.run(&["queue", "cat", "1"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("has been sent"), "{}", ran.err);
    let ran = sandbox.run(&["queue", "show", "2"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("there is no message 00000002"), "{}", ran.err);

    let ran = sandbox.run(&["check", "--offline"]);
    assert!(ran.out.contains("is held by the running gateway"), "{}", ran.out);
    assert_eq!(ran.code, 0, "{}", ran.out);

    let directory = Path::new(&sandbox.config).parent().unwrap().to_owned();
    assert!(directory.exists());
    let (code, log) = sandbox.running.stop();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("id=00000001"), "{log}");
    assert!(!directory.exists());
}

#[test]
fn an_operator_steers_the_queue() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("sandbox");
    let sandbox = Sandbox::start(&["--dir", place.to_str().unwrap()]);
    let rules = r#"[{"operation": "sendMail", "action": "status", "status": 503, "retry_after": 1}]"#;
    sandbox.request("PUT", "/sandbox/faults", rules);
    let ran = sandbox.run(&[&SEND[..], &["--wait", "0s"]].concat());
    assert_eq!(ran.code, 1, "{ran:?}");
    let ran = sandbox.run(&[&SEND[..], &["--wait", "0s", "--subject", "second"]].concat());
    assert_eq!(ran.code, 1, "{ran:?}");

    let cat = sandbox.run(&["queue", "cat", "2"]);
    assert!(cat.out.contains("Subject: second\r\n"), "{cat:?}");
    let content = cat.out.split_once("\r\n\r\n").unwrap().1;
    assert!(content.contains("graphpost send"), "{content}");

    // An attempt under way cannot be held up; a moment later it can.
    for id in ["00000001", "00000002"] {
        let held = until(|| {
            let ran = sandbox.run(&["queue", "hold", id, "--reason", "looking into it"]);
            (!ran.out.contains("under way")).then_some(ran)
        });
        assert_eq!((held.out, held.code), (format!("{id}  held\n"), 0));
    }
    let list = sandbox.run(&["queue", "list", "--state", "held"]).out;
    assert!(
        list.contains("looking into it") && list.contains("2 held; "),
        "{list}"
    );
    let one = ["queue", "list", "--state", "held", "--limit", "1"];
    let line = sandbox.run(&[&one[..], &["--jsonl"]].concat()).out;
    let entry: Value = serde_json::from_str(line.trim()).unwrap();
    assert_eq!(entry["id"], "00000001");
    let array: Value = serde_json::from_str(&sandbox.run(&[&one[..], &["--json"]].concat()).out).unwrap();
    assert_eq!(array, serde_json::json!([entry]));
    let all = sandbox.run(&["queue", "list", "--json"]).out;
    assert_eq!(serde_json::from_str::<Vec<Value>>(&all).unwrap().len(), 2);
    let none = sandbox.run(&["queue", "list", "--json", "--state", "failed"]).out;
    assert_eq!(none, "[]\n");
    assert_eq!(sandbox.run(&["queue", "flush"]).out, "no messages wait\n");

    // Many at once are only changed when that is said.
    let ran = sandbox.run(&["queue", "delete", "--state", "held"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("would delete 2 messages") && ran.err.contains("--yes"),
        "{}",
        ran.err
    );
    let ran = sandbox.run(&["queue", "delete", "1", "--json"]);
    assert_eq!(
        (ran.out.as_str(), ran.code),
        ("[{\"id\":\"00000001\"}]\n", 0),
        "{ran:?}"
    );
    let ran = sandbox.run(&["queue", "release", "1"]);
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("00000001  not released: "), "{ran:?}");

    // What is released is sent when the cloud is well again.
    sandbox.request("PUT", "/sandbox/faults", "[]");
    let ran = sandbox.run(&["queue", "release", "--state", "held", "--yes"]);
    assert_eq!(
        (ran.out.as_str(), ran.code),
        ("00000002  released\n", 0),
        "{ran:?}"
    );
    let sent = until(|| {
        let list = sandbox.run(&["queue", "list", "--state", "sent"]).out;
        list.contains("1 sent").then_some(list)
    });
    assert!(sent.contains("00000002"), "{sent}");
    assert_eq!(sandbox.delivered().len(), 1);

    let (code, log) = sandbox.running.stop();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("looking into it"), "{log}");
    assert!(place.join("graphpost.toml").exists());

    // Without a gateway the queue can be read, and not be changed.
    let config = place.join("graphpost.toml");
    let config = config.to_str().unwrap();
    let list = run(&["queue", "list", "--all", "--config", config]);
    assert!(list.out.contains("1 sent"), "{list:?}");
    let ran = run(&["queue", "delete", "2", "--config", config]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("no gateway answers at"), "{}", ran.err);
}

/// What a client is refused with is what the operator sees.
#[test]
fn a_refusal_is_shown() {
    let sandbox = Sandbox::start(&[]);
    let many: Vec<String> = (0..2001)
        .flat_map(|it| ["--to".to_owned(), format!("r{it}@example.org")])
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let ran = sandbox.run(&[&SEND[..], &many].concat());
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.err.starts_with("error: refused for now: ") && ran.err.contains("4.5.3"),
        "{}",
        ran.err
    );

    let ran = run(&[&SEND[..], &["--server", "127.0.0.1:1"]].concat());
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("cannot hand it over to 127.0.0.1:1"),
        "{}",
        ran.err
    );
}
