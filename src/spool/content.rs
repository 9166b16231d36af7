//! Content on its way to a file of its own, and the files' names and removal.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use aws_lc_rs::digest;

use super::QueueId;
use crate::event;

/// The name of a message's content file in `content/`.
pub(super) fn file_name(id: QueueId) -> String {
    format!("{id}.eml")
}

/// The message that a file of this name belongs to; `None` for a name that we do not give.
pub(super) fn id_of(name: &str) -> Option<QueueId> {
    let id: QueueId = name.strip_suffix(".eml")?.parse().ok()?;
    (file_name(id) == name).then_some(id)
}

/// A message's content as it is kept.
pub(super) enum Content {
    /// In the database.
    Octets(Vec<u8>),
    /// In a file of its own.
    File(ContentFile),
}

/// A content file while its message arrives. Dropped before [`ContentFile::keep`], it is removed.
pub(super) struct ContentFile {
    path: PathBuf,
    file: File,
    digest: digest::Context,
    sweeper: Sweeper,
    kept: bool,
}

impl ContentFile {
    /// Makes the file. It must not be there: ids are given once.
    pub(super) fn create(directory: &Path, id: QueueId, sweeper: Sweeper) -> io::Result<ContentFile> {
        let path = directory.join(file_name(id));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        Ok(ContentFile {
            path,
            file,
            digest: digest::Context::new(&digest::SHA256),
            sweeper,
            kept: false,
        })
    }

    pub(super) fn write(&mut self, octets: &[u8]) -> io::Result<()> {
        self.file.write_all(octets)?;
        self.digest.update(octets);
        Ok(())
    }

    /// Makes content and length durable; the name is durable when the directory has been synced too.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Its name, for an error.
    pub(super) fn name(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// The SHA-256 of all that was written.
    pub(super) fn digest(&self) -> Vec<u8> {
        self.digest.clone().finish().as_ref().to_vec()
    }

    /// The message is accepted; the file stays.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for ContentFile {
    fn drop(&mut self) {
        if !self.kept {
            self.sweeper.remove(std::mem::take(&mut self.path));
        }
    }
}

/// The SHA-256 of content in memory.
pub(super) fn digest_of(octets: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, octets).as_ref().to_vec()
}

/// Reads a content file of a known length, and not an octet more.
pub(super) fn read(path: &Path, size: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut octets = Vec::new();
    octets
        .try_reserve_exact(usize::try_from(size).unwrap_or(usize::MAX))
        .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    file.take(size.saturating_add(1)).read_to_end(&mut octets)?;
    Ok(octets)
}

/// Removes files on a thread of its own: the removal of a large one takes milliseconds, which
/// neither a commit nor a session should wait for. What it does not get to is an orphan, swept at
/// the next start.
#[derive(Clone)]
pub(super) struct Sweeper(mpsc::Sender<Sweep>);

enum Sweep {
    Remove(PathBuf),
    Answer(mpsc::SyncSender<()>),
}

impl Sweeper {
    pub(super) fn start() -> io::Result<Sweeper> {
        let (sender, inbox) = mpsc::channel();
        std::thread::Builder::new()
            .name("spool-sweeper".to_owned())
            .spawn(move || {
                for sweep in inbox {
                    match sweep {
                        Sweep::Remove(path) => {
                            crash_point!("content-unneeded");
                            match std::fs::remove_file(&path) {
                                Ok(()) => {}
                                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                                Err(error) => event::content_not_removed(&path, &error),
                            }
                            crash_point!("content-removed");
                        }
                        Sweep::Answer(reply) => {
                            let _ = reply.send(());
                        }
                    }
                }
            })?;
        Ok(Sweeper(sender))
    }

    pub(super) fn remove(&self, path: PathBuf) {
        // A sweeper that has ended leaves an orphan.
        let _ = self.0.send(Sweep::Remove(path));
    }

    /// Waits until all that was to be removed is.
    pub(super) fn finish(&self) {
        let (reply, answer) = mpsc::sync_channel(1);
        if self.0.send(Sweep::Answer(reply)).is_ok() {
            let _ = answer.recv();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_we_give_are_ours() {
        assert_eq!(id_of(&file_name(QueueId(47))), Some(QueueId(47)));
        for name in [
            "",
            ".eml",
            "1.eml",
            "0000001f.eml",
            "0000000O.eml",
            "0000001F",
            "x.eml",
            "0000001F.eml.tmp",
        ] {
            assert_eq!(id_of(name), None, "{name}");
        }
    }
}
