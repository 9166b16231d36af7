//! A notice by a command of the operator's: its JSON on standard input, its essence in variables.

use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{ChildStderr, Command};
use tokio::time::timeout;

use super::Notice;
use crate::config;

/// As much of its complaints as the log shows.
const SHOWN: usize = 500;
/// Variables it gets of ours. Not all: among them may be passwords.
const PASSED_ON: [&str; 5] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ"];

/// The command.
#[derive(Debug)]
pub(super) struct Hook(pub(super) config::Hook);

impl Hook {
    /// Runs it once, without a shell. After the time limit it is killed, and what it has started with it.
    pub(super) async fn run(&self, notice: &Notice) -> Result<(), String> {
        let [program, arguments @ ..] = &self.0.command[..] else {
            return Err("there is no command".to_owned());
        };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(
                PASSED_ON
                    .iter()
                    .filter_map(|it| Some((it, std::env::var_os(it)?))),
            )
            .env("GRAPHPOST_EVENT", notice.kind().as_str())
            .env("GRAPHPOST_ID", &notice.id)
            .env("GRAPHPOST_SUMMARY", notice.summary())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // A group of its own, so that all of it can be ended.
            .process_group(0)
            .kill_on_drop(true);
        if let Some(id) = notice.message() {
            command.env("GRAPHPOST_MESSAGE", id.to_string());
        }
        let mut child = command
            .spawn()
            .map_err(|error| format!("cannot run {program}: {error}"))?;
        // Also when the gateway stops meanwhile.
        let group = Group(child.id());

        let input = child.stdin.take();
        let complaints: Arc<Mutex<Vec<u8>>> = Arc::default();
        let listener = child
            .stderr
            .take()
            .map(|it| tokio::spawn(listen(it, Arc::clone(&complaints))));
        let work = async {
            if let Some(mut input) = input {
                // One that does not read it is free not to.
                let _ = input.write_all(&notice.body).await;
            }
            child.wait().await
        };
        let ended = timeout(self.0.timeout, work).await;
        if let Some(listener) = listener {
            listener.abort();
        }
        match ended {
            Err(_) => {
                drop(group);
                // Takes no time any more; and leaves no zombie behind.
                let _ = child.wait().await;
                Err(format!(
                    "{program} did not end within {:?} and was killed",
                    self.0.timeout
                ))
            }
            Ok(ended) => {
                // Its number may be another's from now on.
                group.forget();
                match ended {
                    Ok(status) if status.success() => Ok(()),
                    Ok(status) => Err(format!("{program} ended with {status}{}", shown(&complaints))),
                    Err(error) => Err(format!("{program}: {error}")),
                }
            }
        }
    }
}

/// A process and all that it has started, killed when dropped.
struct Group(Option<u32>);

impl Group {
    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let group = self.0.and_then(|it| i32::try_from(it).ok());
        if let Some(group) = group.and_then(Pid::from_raw) {
            // It may have ended by itself just now.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Reads what it says, so that it can go on saying it, and keeps the beginning.
async fn listen(mut stderr: ChildStderr, kept: Arc<Mutex<Vec<u8>>>) {
    let mut chunk = [0; 4096];
    while let Ok(read @ 1..) = stderr.read(&mut chunk).await {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let room = SHOWN - kept.len();
        kept.extend_from_slice(&chunk[..read.min(room)]);
    }
}

fn shown(complaints: &Mutex<Vec<u8>>) -> String {
    let complaints = complaints.lock().unwrap_or_else(PoisonError::into_inner);
    match String::from_utf8_lossy(&complaints).trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}
