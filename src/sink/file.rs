//! A tar into a file that has no name until it is whole.

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread::{Scope, ScopedJoinHandle};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::{Error, copy};
use crate::atomic::{Unnamed, parent, remove_leftovers_of};
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
    has_failed: Arc<AtomicBool>,
}

impl TarFile {
    /// A file that shall be called `path` when it is whole. The directory must allow it: said before any work is done.
    ///
    /// # Errors
    /// When no file can be made there, or what is there cannot be replaced.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let fail = |error| Error::Write { what: path.display().to_string(), error };
        let path = target(path).map_err(fail)?;
        remove_leftovers_of(&path);
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
        let has_failed = Arc::new(AtomicBool::new(false));
        let copying = Arc::new(Copying {
            file: Arc::clone(&self.file),
            receiver: Mutex::new(receiver),
            writing: Mutex::new(()),
            stamp,
            name: self.path.display().to_string(),
            has_failed: Arc::clone(&has_failed),
        });
        let copier = |_| {
            let copying = Arc::clone(&copying);
            scope.spawn(move || copying.run().inspect_err(|_| copying.has_failed.store(true, Ordering::Relaxed)))
        };
        let copiers = (0..COPIERS).map(copier).collect();
        Ok(Pieces { sender, copiers, position: 0, has_failed })
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
    /// Becomes true when a thread has failed: then no piece is worth waiting for.
    #[must_use]
    pub fn has_failed(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.has_failed)
    }

    /// Has a piece written after those before. A failure shows here or in [`Self::finish`].
    ///
    /// # Errors
    /// `Err(())` when writing has failed already: [`Self::finish`] says why.
    pub fn push(&mut self, piece: Piece) -> Result<(), ()> {
        let length = piece.len();
        for part in split(piece) {
            if self.has_failed.load(Ordering::Relaxed) {
                return Err(());
            }
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

/// The file that is to be made or replaced. A link stays one: what it points at is replaced.
fn target(typed: &Path) -> io::Result<PathBuf> {
    let refuse = |kind, text: &str| Err(io::Error::new(kind, text));
    let is_directory =
        || refuse(io::ErrorKind::IsADirectory, "it is a directory (name a file, for instance images.tar in it)");
    if typed.as_os_str().as_bytes().ends_with(b"/") {
        return match rustix::fs::stat(typed).map(|found| FileType::from_raw_mode(found.st_mode)) {
            Ok(FileType::Directory) => is_directory(),
            _ => {
                refuse(io::ErrorKind::NotADirectory, "there is no such directory (a file's name has no `/` at its end)")
            }
        };
    }
    let found = match rustix::fs::lstat(typed) {
        Err(Errno::NOENT) => return Ok(typed.to_owned()),
        found => found?,
    };
    let path = match FileType::from_raw_mode(found.st_mode) {
        FileType::Symlink => follow(typed)?,
        _ => typed.canonicalize()?,
    };
    if path.is_dir() {
        return is_directory();
    }
    let is_mount = rustix::fs::statx(CWD, &path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)
        .is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    if is_mount {
        return refuse(
            io::ErrorKind::ResourceBusy,
            "it is a mount point and cannot be replaced (name another file, or write into it with `--tar - >FILE`)",
        );
    }
    Ok(path)
}

/// Where the link `typed` leads to. The kernel judges whether it may be followed (`fs.protected_symlinks`: not one that
/// somebody else has put into /tmp); resolving the path would not ask it.
fn follow(typed: &Path) -> io::Result<PathBuf> {
    let opened = match rustix::fs::open(typed, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => {
            let text = "it is a symbolic link to nothing (remove it, or name the file)";
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        Err(error) => {
            let error = io::Error::from(error);
            return Err(io::Error::new(error.kind(), format!("following the symbolic link: {error}")));
        }
        Ok(opened) => rustix::fs::fstat(opened)?,
    };
    let path = typed.canonicalize()?;
    let resolved = rustix::fs::lstat(&path)?;
    if (resolved.st_dev, resolved.st_ino) != (opened.st_dev, opened.st_ino) {
        return Err(io::Error::other("the symbolic link was changed while it was followed"));
    }
    Ok(path)
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

/// Copies until there is nothing more, or the other thread has failed.
/// What the threads of one attempt share.
struct Copying {
    file: Arc<Unnamed>,
    receiver: Mutex<Receiver<(u64, Piece)>>,
    /// Held by the one that writes: see [`Self::turn`].
    writing: Mutex<()>,
    stamp: i64,
    name: String,
    has_failed: Arc<AtomicBool>,
}

impl Copying {
    /// The kernel lets one thread at a time write to a file, and lets the others burn their processor meanwhile, which the
    /// converting threads can use better. Where there are none, going to sleep and being woken would take longer than the wait.
    fn turn(&self) -> MutexGuard<'_, ()> {
        loop {
            match self.writing.try_lock() {
                Ok(turn) => return turn,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => std::thread::yield_now(),
            }
        }
    }

    fn run(&self) -> Result<(), Error> {
        loop {
            // The lock is held while waiting: the other thread waits for the lock instead of the piece.
            let Ok(Ok((base, piece))) = self.receiver.lock().map(|receiver| receiver.recv()) else { return Ok(()) };
            if self.has_failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            copy(&piece, self.stamp, |offset, part| {
                let _one_at_a_time = self.turn();
                let write = self.file.file().write_all_at(part, base + offset);
                write.map_err(|error| Error::Write { what: self.name.clone(), error })
            })?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[track_caller]
    fn refused(path: &Path, part: &str) {
        let error = TarFile::create(path).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains('\n'), "{error}");
    }

    #[test]
    fn what_cannot_be_replaced_is_refused_at_once() {
        let scratch = tempfile::tempdir().unwrap();
        let at = scratch.path();
        fs_err::write(at.join("old"), "old").unwrap();
        symlink("nothing", at.join("dangling")).unwrap();
        symlink("loop", at.join("loop")).unwrap();
        symlink(".", at.join("directory")).unwrap();
        refused(&at.join("new/"), "there is no such directory");
        refused(&at.join("old/"), "there is no such directory");
        refused(at, "it is a directory");
        refused(&at.join("directory"), "it is a directory");
        refused(&at.join("directory/"), "it is a directory");
        refused(&at.join("dangling"), "a symbolic link to nothing");
        refused(&at.join("loop"), "following the symbolic link");
        refused(&at.join("none/new"), "cannot write into directory");
        // In every container and on every machine something is mounted on a file or directory; /proc is a directory.
        refused(Path::new("/proc"), "it is a directory");
        assert_eq!(fs_err::read_dir(at).unwrap().count(), 4);
    }

    #[test]
    fn a_link_stays_one() {
        let scratch = tempfile::tempdir().unwrap();
        let at = scratch.path().canonicalize().unwrap();
        fs_err::create_dir_all(at.join("below")).unwrap();
        fs_err::write(at.join("below/old"), "old").unwrap();
        symlink("below/old", at.join("link")).unwrap();
        assert_eq!(target(&at.join("link")).unwrap(), at.join("below/old"));
        TarFile::create(&at.join("link")).unwrap().publish().unwrap();
        assert!(at.join("link").is_symlink());
        assert_eq!(fs_err::read(at.join("below/old")).unwrap(), b"");
    }
}
