//! `graphpost queue export`: messages as files, for another tool or another day.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::super::Failure;
use super::{Filter, Reader, failed, pages};
use crate::spool::{Entry, SpoolError, State};

/// Writes `ID.eml`, the message as it was accepted, and `ID.json`, its envelope and all else that is
/// known, for every message of the filter. Files that are there are left alone.
pub(super) fn export(
    out: &mut impl Write,
    reader: &Reader,
    filter: Filter,
    directory: &Path,
) -> Result<(), Failure> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| Failure::new(format_args!("cannot make {}: {error}", directory.display())))?;
    let (mut written, mut passed) = (0u64, 0u64);
    pages(reader, filter, |entries| {
        for entry in entries {
            // A message that was sent or deleted meanwhile has gone its way.
            match one(reader, &entry, directory)? {
                true => written += 1,
                false => passed += 1,
            }
        }
        Ok(true)
    })?;
    let messages = if written == 1 { "message" } else { "messages" };
    writeln!(out, "{written} {messages} written to {}", directory.display())?;
    if passed > 0 {
        writeln!(out, "{passed} left out: already there, or without content")?;
    }
    Ok(out.flush()?)
}

fn one(reader: &Reader, entry: &Entry, directory: &Path) -> Result<bool, Failure> {
    if entry.state == State::Sent {
        return Ok(false);
    }
    let content = match reader.content(entry.id) {
        Ok(content) => content,
        Err(SpoolError::NotFound(_)) => return Ok(false),
        Err(error) => return Err(failed(error)),
    };
    let path = |suffix| directory.join(format!("{}.{suffix}", entry.id));
    let record = serde_json::to_vec_pretty(entry).map_err(Failure::new)?;
    Ok(write(&path("eml"), &content)? && write(&path("json"), &record)?)
}

/// Mail is nobody else's to read.
fn write(path: &Path, content: &[u8]) -> Result<bool, Failure> {
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let written = match file {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        file => file.and_then(|mut it| it.write_all(content)),
    };
    written.map_err(|error| Failure::new(format_args!("cannot write {}: {error}", path.display())))?;
    Ok(true)
}
