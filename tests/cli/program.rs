//! Runs the real binary, to its end or beside the test.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

/// What a command wrote, and how it exited.
#[derive(Debug)]
pub struct Ran {
    pub out: String,
    pub err: String,
    pub code: i32,
}

/// The binary, without anything of this process's environment that it reads.
pub fn graphpost() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graphpost"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("GRAPHPOST") {
            command.env_remove(name);
        }
    }
    command.env_remove("CREDENTIALS_DIRECTORY");
    command.stdin(Stdio::null());
    command
}

pub fn run(arguments: &[&str]) -> Ran {
    run_with_input(arguments, "")
}

pub fn run_with_input(arguments: &[&str], input: &str) -> Ran {
    let mut child = graphpost()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that reads nothing may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Ran {
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
        code: output.status.code().expect("not killed by a signal"),
    }
}

/// A program that runs until it is told to stop.
pub struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
    err: Option<std::thread::JoinHandle<String>>,
}

impl Running {
    pub fn start(arguments: &[&str]) -> Running {
        let mut child = graphpost()
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let err = child.stderr.take().unwrap();
        let err = std::thread::spawn(move || std::io::read_to_string(err).unwrap());
        Running {
            child,
            out,
            err: Some(err),
        }
    }

    /// All lines up to the first that contains `text`.
    pub fn read_until(&mut self, text: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.out.read_line(&mut line).unwrap() == 0 {
                let err = self.err.take().unwrap().join().unwrap();
                panic!("no {text:?} in {lines:#?}\n{err}");
            }
            lines.push(line.trim_end().to_owned());
            if line.contains(text) {
                return lines;
            }
        }
    }

    /// Sends SIGTERM, waits for the end, and returns what was said on standard error.
    pub fn stop(mut self) -> (Option<i32>, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        (status.code(), self.err.take().unwrap().join().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory with a certificate made by `graphpost cert new`, which is made once.
pub fn directory() -> TempDir {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().to_str().unwrap();
        let ran = run(&["cert", "new", "--bits", "2048", "--out", out]);
        assert_eq!(ran.code, 0, "{ran:?}");
        directory
    });
    let directory = tempfile::tempdir().unwrap();
    for name in ["graphpost.pem", "graphpost.key"] {
        // The mode is copied too.
        fs::copy(made.path().join(name), directory.path().join(name)).unwrap();
    }
    directory
}

/// A configuration in a directory of that kind, with these lines after the tenant.
pub fn configuration(directory: &Path, rest: &str) -> PathBuf {
    let path = directory.join("graphpost.toml");
    let text = format!(
        "[tenant]\nid = \"contoso.onmicrosoft.com\"\nclient_id = \"11111111-1111-1111-1111-111111111111\"\n\
         authority = \"http://127.0.0.1:9\"\ngraph = \"http://127.0.0.1:9\"\n\
         [tenant.credential]\ncertificate = \"graphpost.pem\"\nprivate_key = \"graphpost.key\"\n\
         [spool]\ndirectory = \"queue\"\n[admin]\naddress = \"127.0.0.1:0\"\n{rest}"
    );
    fs::write(&path, text).unwrap();
    path
}

/// What most configurations need besides.
pub const LEAST: &str =
    "[[listener]]\naddress = \"127.0.0.1:0\"\n[[sender]]\naddress = \"*\"\nmailbox = \"a@b.example\"\n";
