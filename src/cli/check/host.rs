//! This host: the user, the queue's directory, the addresses.

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::terminal::size;
use crate::config::Config;
use crate::diagnosis::Diagnosis;
use crate::spool::{FileSystem, file_system};

/// A disk that takes longer to sync than this makes every client wait.
const SLOW_SYNC: Duration = Duration::from_millis(500);

/// Who runs this.
pub(super) fn user() -> Vec<Diagnosis> {
    if rustix::process::geteuid().is_root() {
        return vec![Diagnosis::skip(
            "user",
            "root may read and bind everything; what the service may is shown by: sudo -u graphpost graphpost check",
        )];
    }
    Vec::new()
}

/// Whether a gateway runs with this configuration: it answers at its control socket.
fn is_running(config: &Config) -> bool {
    UnixStream::connect(&config.admin.socket).is_ok()
}

/// The directory of the queue.
pub(super) fn queue(config: &Config) -> Vec<Diagnosis> {
    let directory = &config.spool.directory;
    let shown = directory.display();
    if !directory.exists() {
        // The gateway makes it, or systemd with StateDirectory=.
        let existing = directory.ancestors().skip(1).find(|it| it.exists());
        return match existing.map(try_write) {
            Some(Ok(_)) => vec![Diagnosis::ok(
                "queue",
                format!("{shown} is not there yet; the gateway makes it"),
            )],
            Some(Err(error)) => vec![Diagnosis::fail(
                "queue",
                format!("{shown} is not there, and cannot be made: {error}"),
                format!("install -d -m 700 -o graphpost -g graphpost {shown}"),
            )],
            None => vec![Diagnosis::fail(
                "queue",
                format!("{shown} cannot be made"),
                "set spool.directory",
            )],
        };
    }
    let mut lines = Vec::new();
    match file_system(directory) {
        Ok(FileSystem::Disk) => {}
        Ok(FileSystem::Memory) => lines.push(Diagnosis::warn(
            "queue",
            format!("{shown} is in memory: what it holds is lost when this host stops"),
            "set spool.directory to a directory on a disk",
        )),
        Err(error) => {
            return vec![Diagnosis::fail(
                "queue",
                error.to_string(),
                "set spool.directory to a directory on a local disk",
            )];
        }
    }
    match try_write(directory) {
        Ok(took) if took > SLOW_SYNC => lines.push(Diagnosis::warn(
            "queue",
            format!("{shown} can be written, but a sync took {} ms", took.as_millis()),
            "every message waits for one: use a faster disk, or find out what keeps this one busy",
        )),
        Ok(took) => lines.push(Diagnosis::ok(
            "queue",
            format!(
                "{shown} can be written and synced ({:.1} ms)",
                took.as_secs_f64() * 1000.0
            ),
        )),
        Err(error) => lines.push(Diagnosis::fail(
            "queue",
            format!("{shown} cannot be written: {error}"),
            format!("it must belong to the user the gateway runs as: chown -R graphpost: {shown}"),
        )),
    }
    lines.extend(space(config));
    lines
}

fn space(config: &Config) -> Option<Diagnosis> {
    let statistics = rustix::fs::statvfs(&config.spool.directory).ok()?;
    let free = statistics.f_bavail.saturating_mul(statistics.f_frsize);
    let least = config.spool.min_free_bytes;
    let detail = format!(
        "{} free; mail is taken while there are more than {}",
        size(free),
        size(least)
    );
    let fix = "make room, or set spool.min_free_bytes and spool.max_bytes to what there is";
    Some(if free <= least {
        Diagnosis::fail("disk", detail, fix)
    } else if free - least < config.spool.max_bytes {
        let all = size(config.spool.max_bytes);
        Diagnosis::warn(
            "disk",
            format!("{detail}; less than the {all} that the queue may grow to"),
            fix,
        )
    } else {
        Diagnosis::ok("disk", detail)
    })
}

/// Writes a file, syncs it, removes it. How long the sync took.
fn try_write(directory: &Path) -> io::Result<Duration> {
    let mut file = tempfile::Builder::new()
        .prefix(".graphpost-check-")
        .tempfile_in(directory)?;
    file.write_all(&[0; 4096])?;
    let begin = Instant::now();
    file.as_file().sync_all()?;
    Ok(begin.elapsed())
}

/// The addresses that the gateway listens on.
pub(super) fn addresses(config: &Config) -> Vec<Diagnosis> {
    let running = is_running(config);
    let listeners = config.listeners.iter().map(|it| {
        let named = it.name != it.address.to_string();
        let check = if named {
            format!("listener {}", it.name)
        } else {
            "listener".to_owned()
        };
        address(&check, it.address, running)
    });
    let admin = config.admin.address.map(|it| address("admin", it, running));
    listeners.chain(admin).collect()
}

fn address(check: &str, address: SocketAddr, running: bool) -> Diagnosis {
    let error = match TcpListener::bind(address) {
        Ok(_) if running && address.port() != 0 => {
            return Diagnosis::warn(
                check,
                format!("{address} is free, though a gateway is running"),
                "it runs with another configuration: systemctl restart graphpost",
            );
        }
        Ok(_) => return Diagnosis::ok(check, format!("{address} is free")),
        Err(error) => error,
    };
    let port = address.port();
    match error.kind() {
        io::ErrorKind::AddrInUse if running => {
            Diagnosis::ok(check, format!("{address} is held by the running gateway"))
        }
        io::ErrorKind::AddrInUse => Diagnosis::fail(
            check,
            format!("{address} is held by another program"),
            format!("find it with: ss -ltnp 'sport = :{port}'"),
        ),
        io::ErrorKind::PermissionDenied => Diagnosis::fail(
            check,
            format!("{address}: this user may not listen on ports below 1024"),
            "AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit (see its comments), or a port such as 2525",
        ),
        io::ErrorKind::AddrNotAvailable => Diagnosis::fail(
            check,
            format!("{address}: this host has no such address"),
            "ip address shows those it has; 0.0.0.0 stands for all",
        ),
        _ => Diagnosis::fail(check, format!("{address}: {error}"), "listen on another address"),
    }
}
