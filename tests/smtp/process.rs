//! The real binary: what it is started with, and what the operating system denies it.

use std::fs;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// Nothing here takes nearly as long.
const PATIENCE: Duration = Duration::from_secs(60);

fn configuration(directory: &Path, listeners: &str) {
    let text = format!(
        "[tenant]\nid = \"contoso.onmicrosoft.com\"\nclient_id = \"6731de76-14a6-49ae-97bc-6eba6914391e\"\n\
         authority = \"http://127.0.0.1:1\"\ngraph = \"http://127.0.0.1:1\"\n\
         [tenant.credential]\nsecret = \"x\"\n\
         [spool]\ndirectory = \"spool\"\nmin_free_bytes = \"0\"\n[admin]\naddress = \"none\"\n{listeners}\n\
         [[sender]]\naddress = \"*\"\nmailbox = \"service@contoso.com\"\n"
    );
    fs::write(directory.join("graphpost.toml"), text).unwrap();
}

/// The gateway, started by a shell that prepares its process first.
struct Process {
    child: Child,
    log: BufReader<ChildStderr>,
    said: String,
    directory: TempDir,
}

impl Process {
    fn start(listeners: &str, prepare: &str) -> Process {
        let directory = tempfile::tempdir().unwrap();
        configuration(directory.path(), listeners);
        // Not every `sh` can name a descriptor above 9.
        let mut child = Command::new("bash")
            .arg("-c")
            .arg(format!("{prepare}\nexec \"$0\" serve --config \"$1\""))
            .arg(env!("CARGO_BIN_EXE_graphpost"))
            .arg(directory.path().join("graphpost.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Process {
            child,
            log,
            said: String::new(),
            directory,
        }
    }

    /// Reads the log up to a line that contains this, and gives that line.
    fn log_until(&mut self, text: &str) -> String {
        loop {
            let from = self.said.len();
            if self.log.read_line(&mut self.said).unwrap() == 0 {
                panic!("no {text:?} in\n{}", self.said);
            }
            if self.said[from..].contains(text) {
                return self.said[from..].to_owned();
            }
        }
    }

    /// Where it listens: the next that it says.
    fn address(&mut self) -> SocketAddr {
        let line = self.log_until("listening");
        let word = line.split_whitespace().find_map(|it| it.strip_prefix("address="));
        word.unwrap_or_else(|| panic!("no address in {line}"))
            .trim_matches('"')
            .parse()
            .unwrap()
    }

    /// Ends it and gives the rest of the log.
    fn stop(mut self) -> String {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.log.read_to_string(&mut self.said).unwrap();
        assert!(self.child.wait().unwrap().success(), "{}", self.said);
        std::mem::take(&mut self.said)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connects and gives the first line.
fn greeting(address: SocketAddr) -> (TcpStream, String) {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = String::new();
    let _ = BufReader::new(&stream).read_line(&mut line);
    (stream, line)
}

/// As systemd does it: sockets from descriptor 3 on, with names, for this process alone.
fn passed(sockets: &[(&str, &TcpListener)]) -> String {
    let mut script = String::new();
    for (at, (_, socket)) in sockets.iter().enumerate() {
        rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::empty()).unwrap();
        // Out of the way first: it may have the number that another is to get.
        script += &format!("exec {}<&{}\n", at + 200, socket.as_raw_fd());
    }
    for at in 0..sockets.len() {
        script += &format!("exec {}<&{1} {1}<&-\n", at + 3, at + 200);
    }
    let names: Vec<_> = sockets.iter().map(|(name, _)| *name).collect();
    let count = sockets.len();
    script
        + &format!(
            "export LISTEN_FDS={count} LISTEN_PID=$$ LISTEN_FDNAMES={}",
            names.join(":")
        )
}

#[test]
fn sockets_of_the_service_manager_are_taken_by_name() {
    let sockets = ["127.0.0.1:0", "127.0.0.1:0", "[::1]:0"].map(|it| TcpListener::bind(it).unwrap());
    let [other, smtp, smtp6] = &sockets;
    let [_, address, address6] = [other, smtp, smtp6].map(|it| it.local_addr().unwrap());
    let listeners = format!(
        "[[listener]]\nsocket = \"smtp\"\naddress = \"{address6}\"\n[[listener]]\nsocket = \"smtp\"\naddress = \"{address}\"\n"
    );
    let prepare = passed(&[("other", other), ("smtp", smtp), ("smtp", smtp6)]);
    // A client that is there before the gateway is served when it comes.
    let early = TcpStream::connect(address).unwrap();
    early.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut process = Process::start(&listeners, &prepare);
    assert_eq!(process.address(), address6);
    assert_eq!(process.address(), address);
    for address in [address, address6] {
        assert!(greeting(address).1.starts_with("220 "));
    }
    let mut line = String::new();
    BufReader::new(&early).read_line(&mut line).unwrap();
    assert!(line.starts_with("220 "), "{line}");
    drop(early);
    process.stop();
}

#[test]
fn a_socket_that_was_not_passed_is_named() {
    for (name, address, want) in [
        (
            "smtps",
            "127.0.0.1:0",
            "no socket 'smtps' was passed by systemd, only 'smtp'",
        ),
        ("smtp", "127.0.0.2:0", "the socket 'smtp' listens on 127.0.0.1:"),
    ] {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let listeners = format!("[[listener]]\nsocket = \"{name}\"\naddress = \"{address}\"\n");
        let mut process = Process::start(&listeners, &passed(&[("smtp", &socket)]));
        process.log.read_to_string(&mut process.said).unwrap();
        assert!(!process.child.wait().unwrap().success());
        assert!(process.said.contains(want), "{}", process.said);
    }
}

#[test]
fn all_ipv4_and_all_ipv6_addresses_on_one_port() {
    // A port that is free for both at the moment.
    let port = TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port();
    let networks = "networks = [\"127.0.0.0/8\", \"::1/128\"]";
    let listeners = format!(
        "[[listener]]\naddress = \"0.0.0.0:{port}\"\n{networks}\n[[listener]]\naddress = \"[::]:{port}\"\n{networks}\n"
    );
    let mut process = Process::start(&listeners, "");
    process.log_until("ready");
    for address in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        assert!(greeting(address.parse().unwrap()).1.starts_with("220 "));
    }
    process.stop();
}

const LISTENER: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\n";

/// Fewer connections are let in than descriptors would be there for, so that the queue has some.
#[test]
fn descriptors_are_left_for_the_queue() {
    let mut process = Process::start(LISTENER, "ulimit -n 200");
    assert!(
        process
            .log_until("too few file descriptors")
            .contains("connections=36")
    );
    let address = process.address();
    let clients: Vec<_> = (0..50).map(|_| greeting(address)).collect();
    assert_eq!(clients.iter().filter(|it| it.1.starts_with("220 ")).count(), 36);
    assert_eq!(
        clients.iter().filter(|it| it.1.starts_with("421 4.3.2")).count(),
        14
    );

    // And those who are in can send.
    let (stream, _) = &clients[0];
    let mut replies = BufReader::new(stream).lines();
    let mut stream = stream;
    stream
        .write_all(b"HELO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<a@b.example>\r\nDATA\r\n")
        .unwrap();
    stream.write_all(&[b'x'; 300_000]).unwrap();
    stream.write_all(b"\r\n.\r\nQUIT\r\n").unwrap();
    let codes: Vec<String> = replies
        .by_ref()
        .take(5)
        .map(|it| it.unwrap()[..3].to_owned())
        .collect();
    assert_eq!(codes, ["250", "250", "250", "354", "250"]);
    assert!(process.directory.path().join("spool").exists());
    drop(clients);
    process.stop();
}

/// Out of descriptors, accepting waits and goes on; it does not spin and does not end.
#[test]
fn out_of_descriptors_it_waits() {
    let mut process = Process::start(LISTENER, "ulimit -n 30");
    let address = process.address();
    process.log_until("ready");
    // More than there are descriptors; the kernel takes them for us.
    let clients: Vec<_> = (0..60).map(|_| TcpStream::connect(address).unwrap()).collect();
    for _ in 0..4 {
        process.log_until("cannot accept");
    }
    drop(clients);
    // All that waits is worked off, and the next is served.
    assert!(greeting(address).1.starts_with("220 "));
    let log = process.stop();
    // From 5 ms, doubled to a second: spinning would be thousands.
    assert!(log.matches("cannot accept").count() < 100, "{log}");
}
