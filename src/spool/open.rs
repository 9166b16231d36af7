//! Opening the queue: its directory, its lock, its database. Blocking.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use rustix::fs::FlockOperation;

use super::failure::describe;
use super::{CONTENT, DATABASE, LOCK, SET_ASIDE, SpoolError, store};
use crate::event;

/// How long another process may take to give up the queue: one that is being replaced by us.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// "GPSP": what `file(1)` and we know the database by.
const APPLICATION_ID: i32 = 0x4750_5350;

/// The version of the tables, raised with every change to them.
const SCHEMA_VERSION: i32 = 3;

/// The queue's directory, locked, with its database.
pub(super) struct Opened {
    pub connection: Connection,
    pub lock: File,
    pub content_directory: File,
    /// There was no database.
    pub is_new: bool,
}

/// Makes what is not there and opens what is.
pub(super) fn open(directory: &Path) -> Result<Opened, SpoolError> {
    make_directory(directory)?;
    refuse_unsafe_file_system(directory)?;
    let lock = lock(directory)?;
    make_directory(&directory.join(CONTENT))?;
    make_directory(&directory.join(SET_ASIDE))?;

    let path = directory.join(DATABASE);
    // SQLite gives its log and shared memory the mode of the database.
    let is_new = match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
    {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // A database that a crash left empty is as good as none.
            std::fs::metadata(&path).is_ok_and(|it| it.len() == 0)
                && std::fs::metadata(directory.join(format!("{DATABASE}-wal"))).map_or(0, |it| it.len()) == 0
        }
        Err(error) => return Err(unusable(&path, &error)),
    };
    let connection = database(&path).map_err(|error| not_opened(directory, error))?;

    sync(directory)?;
    let content_directory =
        File::open(directory.join(CONTENT)).map_err(|error| unusable(&directory.join(CONTENT), &error))?;
    Ok(Opened {
        connection,
        lock,
        content_directory,
        is_new,
    })
}

fn make_directory(path: &Path) -> Result<(), SpoolError> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| unusable(path, &error))?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync(parent),
        _ => Ok(()),
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync(directory: &Path) -> Result<(), SpoolError> {
    File::open(directory)
        .and_then(|it| it.sync_all())
        .map_err(|error| unusable(directory, &error))
}

/// File systems by the number that statfs(2) gives them, and why no queue can be kept on them.
const UNSAFE_FILE_SYSTEMS: [(u64, &str, &str); 12] = [
    (0x6969, "NFS", NETWORK),
    (0x517b, "SMB", NETWORK),
    (0xff53_4d42, "CIFS", NETWORK),
    (0xfe53_4d42, "SMB2", NETWORK),
    (0x5346_414f, "AFS", NETWORK),
    (0x6b41_4653, "AFS", NETWORK),
    (0x7375_7245, "Coda", NETWORK),
    (0x0102_1997, "9P", NETWORK),
    (0x00c3_6400, "Ceph", NETWORK),
    (0x0bd0_0bd0, "Lustre", NETWORK),
    (0x786f_4256, "a VirtualBox shared folder", NETWORK),
    (
        0x6573_5546,
        "FUSE",
        "what it makes of locks and of fsync depends on a program that we do not know (Docker Desktop's shared folders are of this kind: use a volume)",
    ),
];
const NETWORK: &str = "its locks and its fsync cannot be relied on, and memory cannot be shared through it";
const TMPFS: u64 = 0x0102_1994;

fn refuse_unsafe_file_system(directory: &Path) -> Result<(), SpoolError> {
    if file_system(directory)? == FileSystem::Memory {
        event::spool_in_memory(directory);
    }
    Ok(())
}

/// What kind of file system a directory is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// One that a queue can be kept on.
    Disk,
    /// One that is lost when the machine stops.
    Memory,
}

/// The file system of a directory.
///
/// # Errors
/// [`SpoolError::Unusable`] where no queue can be kept on it.
pub fn file_system(directory: &Path) -> Result<FileSystem, SpoolError> {
    let kind = File::open(directory)
        .and_then(|it| Ok(rustix::fs::fstatfs(&it)?.f_type))
        .map_err(|error| unusable(directory, &error))?;
    // The field is signed on some machines; the numbers have 32 bits.
    #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)]
    let kind = kind as u64 & 0xffff_ffff;
    match unsafe_file_system(kind) {
        None if kind == TMPFS => Ok(FileSystem::Memory),
        None => Ok(FileSystem::Disk),
        Some((name, why)) => Err(SpoolError::Unusable(format!(
            "{} is on {name}, where mail cannot be kept safely: {why}. Set [spool] directory to a directory on a local disk",
            directory.display()
        ))),
    }
}

fn unsafe_file_system(kind: u64) -> Option<(&'static str, &'static str)> {
    UNSAFE_FILE_SYSTEMS
        .iter()
        .find(|(number, ..)| *number == kind)
        .map(|&(_, name, why)| (name, why))
}

/// One process at a time. The lock goes with the process, however it ends; the number in the file is
/// only there to be read.
fn lock(directory: &Path) -> Result<File, SpoolError> {
    let path = directory.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| unusable(&path, &error))?;
    let begun = Instant::now();
    let locked = loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // A process that is just ending, or one forked from it that is not yet another program, gives it
            // up in a moment.
            Err(rustix::io::Errno::WOULDBLOCK) if begun.elapsed() < LOCK_WAIT => {
                std::thread::sleep(LOCK_WAIT / 100);
            }
            locked => break locked,
        }
    };
    match locked {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut owner = String::new();
            let _ = file.take(20).read_to_string(&mut owner);
            let owner = match owner.trim().parse::<u32>() {
                Ok(pid) => format!("process {pid}"),
                Err(_) => "another process".to_owned(),
            };
            return Err(SpoolError::Unusable(format!(
                "{} is in use by {owner}; one queue has one gateway. Stop the other one, or set [spool] directory to another directory",
                directory.display()
            )));
        }
        Err(error) => return Err(unusable(&path, &error.into())),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(|error| unusable(&path, &error))?;
    Ok(file)
}

enum Refusal {
    Database(rusqlite::Error),
    Foreign,
    Newer(i32),
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Refusal {
        Refusal::Database(error)
    }
}

fn database(path: &Path) -> Result<Connection, Refusal> {
    let mut connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    // Looked at before anything is set: a foreign database is left as it is.
    let application: i32 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let version: i32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables > 0 && application != APPLICATION_ID {
        return Err(Refusal::Foreign);
    }
    if version > SCHEMA_VERSION {
        return Err(Refusal::Newer(version));
    }
    store::configure(&connection, tables == 0)?;
    if version < 1 {
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute_batch(store::SCHEMA)?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.pragma_update(None, "user_version", 1)?;
        tx.commit()?;
    }
    if version < 2 {
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute_batch(store::SCHEMA_2)?;
        tx.pragma_update(None, "user_version", 2)?;
        tx.commit()?;
    }
    if version < 3 {
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute_batch(store::SCHEMA_3)?;
        tx.pragma_update(None, "user_version", 3)?;
        tx.commit()?;
    }
    Ok(connection)
}

/// What kept the database from being opened, and what to do about it.
fn not_opened(directory: &Path, refusal: Refusal) -> SpoolError {
    let path = directory.join(DATABASE);
    let path = path.display();
    SpoolError::Unusable(match refusal {
        Refusal::Foreign => format!(
            "{path} is a database, but not a graphpost queue. It was left as it is; set [spool] directory to another directory"
        ),
        Refusal::Newer(version) => format!(
            "{path} was written by a newer graphpost (its version is {version}, this one knows up to {SCHEMA_VERSION}). Nothing was changed; start the newer one"
        ),
        Refusal::Database(error) => return not_read(directory, &error),
    })
}

/// What an error of the database means to whoever starts the gateway. Never begins with an empty
/// queue in place of a damaged one: that would hide accepted mail.
pub(super) fn not_read(directory: &Path, error: &rusqlite::Error) -> SpoolError {
    let path = directory.join(DATABASE);
    let path = path.display();
    SpoolError::Unusable(match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => format!(
            "{path} is damaged ({error}). It was left as it is, because to begin with an empty queue would hide accepted mail. \
             To save what can be saved: copy {directory} away, then in it run \
             'sqlite3 {DATABASE} .recover | sqlite3 recovered.db', remove {DATABASE}-wal and {DATABASE}-shm, \
             move recovered.db over {DATABASE}, and start again; large messages are files of their own in {CONTENT}/",
            directory = directory.display()
        ),
        _ => format!("cannot open the queue {path}: {}", describe(error)),
    })
}

pub(super) fn unusable(path: &Path, error: &io::Error) -> SpoolError {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => "; the directory must belong to the user that the gateway runs as",
        io::ErrorKind::ReadOnlyFilesystem => "; the file system is mounted read-only",
        _ => "",
    };
    SpoolError::Unusable(format!(
        "cannot use {} for the queue: {error}{hint}",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_refused_and_local_ones_are_not() {
        for (kind, safe) in [
            (0xef53, true),      // ext2, 3, 4
            (0x5846_5342, true), // XFS
            (0x9123_683e, true), // btrfs
            (0x794c_7630, true), // overlayfs
            (0x2fc1_2fc1, true), // ZFS
            (TMPFS, true),
            (0x6969, false),
            (0xff53_4d42, false),
            (0x6573_5546, false),
        ] {
            assert_eq!(unsafe_file_system(kind).is_none(), safe, "{kind:x}");
        }
    }
}
