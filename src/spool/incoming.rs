//! A message on its way in: small content in memory, larger in a file from the moment it is larger.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::content::{self, Content, ContentFile, Sweeper};
use super::failure;
use super::merge::Merge;
use super::space::Reservation;
use super::store::{Acceptance, Change};
use super::{QueueId, Receipt, Shared, SpoolError, Submission};

/// What is gathered before it is written to a content file.
const CHUNK: usize = 128 << 10;

/// A message on its way in. Dropped without [`Incoming::accept`], it never was.
pub struct Incoming {
    shared: Arc<Shared>,
    id: QueueId,
    reservation: Reservation,
    size: u64,
    /// Not yet in the file; all there is while there is no file.
    buffer: Vec<u8>,
    file: Option<ContentFile>,
    /// What went wrong once; then nothing of the message is taken any more.
    failed: Option<SpoolError>,
}

impl Incoming {
    pub(super) fn new(shared: Arc<Shared>, id: QueueId, reservation: Reservation) -> Incoming {
        Incoming {
            shared,
            id,
            reservation,
            size: 0,
            buffer: Vec::new(),
            file: None,
            failed: None,
        }
    }

    /// The number the message will have if it is accepted.
    pub fn id(&self) -> QueueId {
        self.id
    }

    /// Octets taken so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Takes more content. Beyond the threshold it goes to a file.
    ///
    /// # Errors
    /// [`SpoolError::Full`] over a high-water mark or on a full disk. The message cannot be accepted
    /// after an error.
    pub async fn write(&mut self, content: &[u8]) -> Result<(), SpoolError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.take(content).await;
        if let Err(error) = &result {
            self.failed = Some(error.clone());
            // What is there already is of no use and only takes room.
            self.buffer = Vec::new();
            self.file = None;
        }
        result
    }

    async fn take(&mut self, content: &[u8]) -> Result<(), SpoolError> {
        for piece in content.chunks(CHUNK) {
            self.reservation.grow(piece.len() as u64)?;
            if self.buffer.len() + piece.len() > self.room() {
                self.spill().await?;
            }
            self.buffer.extend_from_slice(piece);
            if self.buffer.len() > self.room() {
                // One piece alone is over a small threshold.
                self.spill().await?;
            }
            self.size += piece.len() as u64;
        }
        Ok(())
    }

    /// All the content, to be looked at before it is accepted.
    ///
    /// # Errors
    /// As [`Incoming::write`]: the message cannot be accepted after an error.
    pub async fn content(&mut self) -> Result<Bytes, SpoolError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.file.is_none() {
            return Ok(Bytes::copy_from_slice(&self.buffer));
        }
        let result = self.read_back().await;
        if let Err(error) = &result {
            self.failed = Some(error.clone());
            self.file = None;
        }
        result
    }

    async fn read_back(&mut self) -> Result<Bytes, SpoolError> {
        self.spill().await?;
        let path = self.shared.content.join(content::file_name(self.id));
        let size = self.size;
        blocking(move || {
            let octets = content::read(&path, size).map_err(|error| failure::of_content(&error))?;
            Ok(octets.into())
        })
        .await
    }

    /// What the buffer may hold: content of the threshold's size still goes into the database.
    fn room(&self) -> usize {
        match self.file {
            None => self.shared.file_threshold,
            Some(_) => CHUNK,
        }
    }

    /// Writes the buffer to the file, off the async threads. Should the session end meanwhile, the
    /// file goes with it.
    async fn spill(&mut self) -> Result<(), SpoolError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let file = self.file.take();
        let id = self.id;
        let shared = Arc::clone(&self.shared);
        let (file, buffer) = blocking(move || {
            let mut file = open(file, &shared.content, id, &shared.sweeper)?;
            file.write(&buffer).map_err(|error| failure::of_content(&error))?;
            buffer.clear();
            Ok((file, buffer))
        })
        .await?;
        self.file = Some(file);
        self.buffer = buffer;
        Ok(())
    }

    /// Makes the message durable. When this returns `Ok`, 250 is true. When it is dropped before it
    /// returns, the message may or may not have been accepted.
    ///
    /// # Errors
    /// [`SpoolError::Full`], [`SpoolError::Failed`], [`SpoolError::Broken`]: the message never was.
    pub async fn accept(self, submission: Submission) -> Result<Receipt, SpoolError> {
        self.accept_within(submission, Duration::ZERO).await
    }

    /// As [`Incoming::accept`]. Where a transaction with the same mail, from the same client and by the
    /// same rule, was accepted less than `window` ago, the recipients of this one are added to that
    /// message, which the receipt then names. Else the message waits that long for others, and its first
    /// attempt with it. Whatever happens meanwhile, each recipient of each transaction that was accepted
    /// is in the queue exactly once.
    ///
    /// # Errors
    /// As [`Incoming::accept`].
    pub async fn accept_within(
        mut self,
        submission: Submission,
        window: Duration,
    ) -> Result<Receipt, SpoolError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let text = serde_json::to_string(&submission)
            .map_err(|error| SpoolError::Failed(format!("submission: {error}")))?;
        let (content, digest) = self.finish().await?;
        let merge = Merge::of(&submission, &digest, window)?;
        let done = self
            .shared
            .change(Change::Accept(Box::new(Acceptance {
                id: self.id,
                mailbox: submission.route.mailbox,
                sender: submission.envelope.reverse_path.to_string(),
                submission: text,
                size: self.size,
                digest,
                content,
                reservation: self.reservation,
                merge,
            })))
            .await?;
        Ok(Receipt {
            id: done.id,
            joined: done.id != self.id,
        })
    }

    /// The whole content, a file's durable, and its digest.
    async fn finish(&mut self) -> Result<(Content, Vec<u8>), SpoolError> {
        let buffer = std::mem::take(&mut self.buffer);
        let Some(mut file) = self.file.take() else {
            let digest = content::digest_of(&buffer);
            return Ok((Content::Octets(buffer), digest));
        };
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            file.write(&buffer).map_err(|error| failure::of_content(&error))?;
            drop(buffer);
            crash_point!("content-written");
            shared.syncs.inc();
            match file.sync() {
                Ok(()) => {
                    crash_point!("content-synced");
                }
                // Some file systems find out only now that there is no room: this file's loss alone.
                Err(error) if failure::is_full(&error) => return Err(failure::of_content(&error)),
                Err(error) => {
                    return Err(shared.declare_broken(format!("fdatasync of {}: {error}", file.name())));
                }
            }
            let digest = file.digest();
            Ok((Content::File(file), digest))
        })
        .await
    }
}

fn open(
    file: Option<ContentFile>,
    directory: &Path,
    id: QueueId,
    sweeper: &Sweeper,
) -> Result<ContentFile, SpoolError> {
    match file {
        Some(file) => Ok(file),
        None => {
            ContentFile::create(directory, id, sweeper.clone()).map_err(|error| failure::of_content(&error))
        }
    }
}

/// Runs what may wait for the disk on a thread that may wait.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SpoolError> + Send + 'static,
) -> Result<T, SpoolError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // A panic of ours, or the runtime is shutting down.
        Err(error) => Err(SpoolError::Failed(error.to_string())),
    }
}
