//! What an error of the database or the file system means for the queue. ○

use std::io;

use rusqlite::ErrorCode;

use super::SpoolError;

/// Why something could not be written.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing was changed, and later it may work: no room, or something else was busy.
    Passing(SpoolError),
    /// What the disk holds is no longer known. A failed fsync drops what it could not write, so the
    /// next one may succeed without it: never try again, stop.
    Fatal(String),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Failure {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Failure::Passing(SpoolError::Full("the disk is full".to_owned())),
            Some(
                ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::OutOfMemory
                | ErrorCode::TooBig
                | ErrorCode::OperationInterrupted,
            ) => Failure::Passing(SpoolError::Failed(format!("queue.db: {error}"))),
            _ => Failure::Fatal(format!("queue.db: {}", describe(&error))),
        }
    }
}

/// SQLite's words, with the extended code that names the operation where it is an I/O error.
pub(super) fn describe(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(code, _) => {
            format!("{error} (SQLite code {})", code.extended_code)
        }
        _ => error.to_string(),
    }
}

/// Whether there is no room, rather than something wrong.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// An error while writing one message's content file.
pub(super) fn of_content(error: &io::Error) -> SpoolError {
    if is_full(error) {
        SpoolError::Full(format!("content file: {error}"))
    } else {
        SpoolError::Failed(format!("content file: {error}"))
    }
}
