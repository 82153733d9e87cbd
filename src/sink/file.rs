//! A tar into a file that has no name until it is whole.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{Scope, ScopedJoinHandle};

use super::{Error, copy};
use crate::atomic::{Unnamed, parent};
use crate::segment::file::CHUNK;
use crate::storage::store::Piece;

/// Threads that copy: more would only wait for the memory.
const COPIERS: usize = 2;

/// Bytes that one thread copies at a time: a multiple of a segment's chunk, so that no chunk is checked twice.
const RANGE: u64 = 64 * CHUNK as u64;

/// A tar file under construction.
#[derive(Debug)]
pub struct TarFile {
    file: Arc<Unnamed>,
    path: PathBuf,
}

/// Takes the pieces of one attempt.
#[derive(Debug)]
pub struct Pieces<'scope> {
    sender: SyncSender<(u64, Piece)>,
    copiers: Vec<ScopedJoinHandle<'scope, Result<(), Error>>>,
    position: u64,
}

impl TarFile {
    /// A file that shall be called `path` when it is whole. The directory must allow it: said before any work is done.
    ///
    /// # Errors
    /// When no file can be made there.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let fail = |error| Error::Write { what: path.display().to_string(), error };
        // A link stays one: the file it points at is replaced.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if path.is_dir() {
            return Err(fail(io::Error::new(
                io::ErrorKind::IsADirectory,
                "it is a directory (name a file, for instance images.tar in it)",
            )));
        }
        let file = Unnamed::new_in(parent(&path), 0o666).map_err(fail)?;
        Ok(Self { file: Arc::new(file), path })
    }

    /// Starts over, and starts the threads that will write what is pushed.
    ///
    /// # Errors
    /// When the file cannot be emptied.
    pub fn begin<'scope>(&self, scope: &'scope Scope<'scope, '_>, stamp: i64) -> Result<Pieces<'scope>, Error> {
        self.file.file().set_len(0).map_err(|error| self.error(error))?;
        let (sender, receiver) = sync_channel(2 * COPIERS);
        let receiver = Arc::new(Mutex::new(receiver));
        let copier = |_| {
            let (file, receiver, name) =
                (Arc::clone(&self.file), Arc::clone(&receiver), self.path.display().to_string());
            scope.spawn(move || copy_all(&file, &receiver, stamp, &name))
        };
        Ok(Pieces { sender, copiers: (0..COPIERS).map(copier).collect(), position: 0 })
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// When it cannot be linked or renamed; the old file is untouched then.
    pub fn publish(self) -> Result<(), Error> {
        let path = self.path;
        let fail = |error| Error::Write { what: path.display().to_string(), error };
        // All threads have ended: nobody else holds it.
        let file = Arc::into_inner(self.file).ok_or_else(|| fail(io::Error::other("still being written")))?;
        file.publish_over(&path).map_err(fail)?;
        Ok(())
    }

    fn error(&self, error: io::Error) -> Error {
        Error::Write { what: self.path.display().to_string(), error }
    }
}

impl Pieces<'_> {
    /// Has a piece written after those before. A failure shows here or in [`Self::finish`].
    ///
    /// # Errors
    /// `Err(())` when writing has failed already: [`Self::finish`] says why.
    pub fn push(&mut self, piece: Piece) -> Result<(), ()> {
        let length = piece.len();
        for part in split(piece) {
            let (offset, length) = (self.position, part.len());
            self.sender.send((offset, part)).map_err(|_| ())?;
            self.position += length;
        }
        debug_assert!(length <= self.position);
        Ok(())
    }

    /// Waits until everything is written; gives the length.
    ///
    /// # Errors
    /// The first failure of a thread.
    pub fn finish(self) -> Result<u64, Error> {
        drop(self.sender);
        let mut result = Ok(self.position);
        for copier in self.copiers {
            match copier.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => result = result.and(Err(error)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        result
    }
}

fn split(piece: Piece) -> Vec<Piece> {
    let Piece::Segment { segment, layer, start, length, stamped } = piece else { return vec![piece] };
    let end = start + length;
    let mut parts = Vec::new();
    let mut at = start;
    while at < end {
        let next = ((at / RANGE + 1) * RANGE).min(end);
        let stamped = stamped.iter().copied().filter(|stamped| (at..next).contains(stamped)).collect();
        parts.push(Piece::Segment { segment: Arc::clone(&segment), layer, start: at, length: next - at, stamped });
        at = next;
    }
    parts
}

fn copy_all(file: &Unnamed, receiver: &Mutex<Receiver<(u64, Piece)>>, stamp: i64, name: &str) -> Result<(), Error> {
    loop {
        // The lock is held while waiting: the other thread waits for the lock instead of the piece.
        let Ok(next) = receiver.lock().map(|receiver| receiver.recv()) else { return Ok(()) };
        let Ok((base, piece)) = next else { return Ok(()) };
        copy(&piece, stamp, |offset, part| {
            let write = file.file().write_all_at(part, base + offset);
            write.map_err(|error| Error::Write { what: name.to_owned(), error })
        })?;
    }
}
