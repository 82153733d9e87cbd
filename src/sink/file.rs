//! A tar into a file that has no name until it is whole.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::{Errno, retry_on_intr};

use super::{Error, copy};
use crate::atomic::{Unnamed, parent, remove_leftovers_of};
use crate::segment::file::CHUNK;
use crate::storage::store::Piece;
use crate::threads;

/// Threads that copy: more would only wait for the memory.
const COPIERS: usize = 2;

/// Pieces that may wait to be copied: who pushes them also gives layers their places, and should not have to wait.
const PIECES: usize = 64;

/// Bytes that one thread copies at a time: a multiple of a segment's chunk, so that no chunk is checked twice.
const RANGE: u64 = 64 * CHUNK as u64;

/// A tar file under construction.
#[derive(Debug)]
pub struct TarFile {
    file: Arc<Unnamed>,
    path: PathBuf,
}

/// A thread that writes, or compares, has failed.
#[derive(Debug)]
pub struct HasFailed;

/// Takes the pieces of one attempt.
#[derive(Debug)]
pub struct Pieces<'scope> {
    sender: SyncSender<(u64, Piece)>,
    copiers: Vec<ScopedJoinHandle<'scope, Result<(), Error>>>,
    /// Not all that they share: who holds the receiver lets [`Self::push`] wait for nobody.
    task: Arc<Task>,
    /// The file, if others write to it, too.
    written: Option<Arc<File>>,
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

    /// What it shall be called.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file.
    #[must_use]
    pub fn unnamed(&self) -> &Unnamed {
        &self.file
    }

    /// Starts the threads that will write what is pushed. What was `written` in an attempt before, or by others, and is in
    /// its place already, is not written again.
    ///
    /// # Errors
    /// When there are no threads.
    pub fn begin<'scope>(
        &self,
        scope: &'scope Scope<'scope, '_>,
        stamp: i64,
        written: Option<Arc<File>>,
    ) -> Result<Pieces<'scope>, Error> {
        let name = self.path.display().to_string();
        Pieces::new(scope, Task::Write { file: Arc::clone(&self.file), turn: Mutex::new(()), name }, stamp, written)
    }

    /// Starts threads that compare what is pushed with the tar `lent`; a difference is [`Error::Different`].
    ///
    /// # Errors
    /// When there are no threads.
    pub fn begin_comparing<'scope>(
        &self,
        scope: &'scope Scope<'scope, '_>,
        stamp: i64,
        lent: Arc<File>,
    ) -> Result<Pieces<'scope>, Error> {
        Pieces::new(scope, Task::Compare(lent), stamp, None)
    }

    /// Whether `lent` could take this file's place: it belongs to the same user and has the same mode, but for others who
    /// may write.
    #[must_use]
    pub fn is_like(&self, lent: &File) -> bool {
        let who =
            |file: &File| file.metadata().map(|found| (found.dev(), found.uid(), found.gid(), found.mode() & !0o022));
        matches!((who(self.file.file()), who(lent)), (Ok(ours), Ok(theirs)) if ours == theirs)
    }

    /// Gives `lent` the name instead.
    ///
    /// # Errors
    /// When it cannot have it; nothing has changed then but its time.
    pub fn publish_lent(&self, lent: &File) -> io::Result<()> {
        let lent = lent.try_clone()?;
        // Who rebuilds what is older than the tar must see that it was made now.
        lent.set_modified(SystemTime::now())?;
        Unnamed::of(lent).publish_over(&self.path).map(drop)
    }

    /// Returns whether other processes could have written to the file.
    #[must_use]
    pub fn has_hidden_name(&self) -> bool {
        self.file.has_hidden_name()
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
}

impl<'scope> Pieces<'scope> {
    fn new(
        scope: &'scope Scope<'scope, '_>,
        task: Task,
        stamp: i64,
        written: Option<Arc<File>>,
    ) -> Result<Self, Error> {
        let (sender, receiver) = sync_channel(PIECES);
        let has_failed = Arc::new(AtomicBool::new(false));
        let receiver = Mutex::new(receiver);
        let task = Arc::new(task);
        let copying =
            Arc::new(Copying { task: Arc::clone(&task), receiver, stamp, has_failed: Arc::clone(&has_failed) });
        let mut copiers = Vec::new();
        while copiers.len() < COPIERS {
            let copying = Arc::clone(&copying);
            let run = move || copying.run().inspect_err(|_| copying.has_failed.store(true, Ordering::Relaxed));
            match threads::spawn_in(scope, run) {
                Ok(copier) => copiers.push(copier),
                // One can do all.
                Err(_) if !copiers.is_empty() => break,
                Err(error) => return Err(Error::Thread(error)),
            }
        }
        Ok(Self { sender, copiers, task, written, position: 0, has_failed })
    }

    /// Where the next piece goes.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether this range of a segment's data is where it belongs if it comes at `position`.
    #[must_use]
    pub fn is_in_place(&self, piece: &Piece, position: u64) -> bool {
        let (Some(written), Piece::Segment { segment, start, length, .. }) = (&self.written, piece) else {
            return false;
        };
        let in_body = start + length <= segment.body_len();
        segment.tar().is_some_and(|(tar, offset)| in_body && Arc::ptr_eq(&tar, written) && offset + start == position)
    }

    /// Becomes true when a thread has failed: then no piece is worth waiting for.
    #[must_use]
    pub fn has_failed(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.has_failed)
    }

    /// Has a piece written after those before. A failure shows here or in [`Self::finish`].
    ///
    /// # Errors
    /// When writing has failed already: [`Self::finish`] says why.
    pub fn push(&mut self, piece: Piece) -> Result<(), HasFailed> {
        if self.is_in_place(&piece, self.position) {
            self.position += piece.len();
            return Ok(());
        }
        for part in split(piece) {
            if self.has_failed.load(Ordering::Relaxed) {
                return Err(HasFailed);
            }
            let (offset, length) = (self.position, part.len());
            self.sender.send((offset, part)).map_err(|_| HasFailed)?;
            self.position += length;
        }
        Ok(())
    }

    /// Waits until everything is written; gives the length. The file ends there if all has been pushed (`is_all`).
    ///
    /// # Errors
    /// The first failure of a thread.
    pub fn finish(self, is_all: bool) -> Result<u64, Error> {
        drop(self.sender);
        let mut result = Ok(());
        for copier in self.copiers {
            match copier.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => result = result.and(Err(error)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        result?;
        // Else an attempt before may have written more, which the next one will find in its place.
        if is_all {
            self.task.end(self.position)?;
        }
        Ok(self.position)
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
            _ => refuse(io::ErrorKind::NotADirectory, "no such directory (the name of a file does not end with `/`)"),
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
    let opened = match retry_on_intr(|| rustix::fs::open(typed, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())) {
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
    let Piece::Segment { segment, layer, start, length } = piece else { return vec![piece] };
    let end = start + length;
    let mut parts = Vec::new();
    let mut at = start;
    while at < end {
        let next = ((at / RANGE + 1) * RANGE).min(end);
        parts.push(Piece::Segment { segment: Arc::clone(&segment), layer, start: at, length: next - at });
        at = next;
    }
    parts
}

/// What the threads of one attempt share.
#[derive(Debug)]
struct Copying {
    task: Arc<Task>,
    receiver: Mutex<Receiver<(u64, Piece)>>,
    stamp: i64,
    has_failed: Arc<AtomicBool>,
}

/// What is done with a piece.
#[derive(Debug)]
enum Task {
    /// It is written.
    Write {
        file: Arc<Unnamed>,
        /// Held by the thread that writes: see [`turn`].
        turn: Mutex<()>,
        name: String,
    },
    /// It is compared with what is there.
    Compare(Arc<File>),
}

/// The kernel lets one thread at a time write to a file, and lets the others burn their processor meanwhile, which the
/// converting threads can use better. Where there are none, going to sleep and being woken would take longer than the wait.
fn turn(writing: &Mutex<()>) -> MutexGuard<'_, ()> {
    loop {
        match writing.try_lock() {
            Ok(turn) => return turn,
            Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => std::thread::yield_now(),
        }
    }
}

impl Task {
    fn part(&self, offset: u64, part: &[u8], buffer: &mut Vec<u8>) -> Result<(), Error> {
        match self {
            Self::Write { file, turn: writing, name } => {
                let _one_at_a_time = turn(writing);
                let write = file.file().write_all_at(part, offset);
                write.map_err(|error| Error::Write { what: name.clone(), error })
            }
            Self::Compare(file) => {
                buffer.resize(part.len(), 0);
                let is_same = file.read_exact_at(buffer, offset).is_ok() && buffer[..] == *part;
                if is_same { Ok(()) } else { Err(Error::Different) }
            }
        }
    }

    /// There is nothing after `length` bytes.
    fn end(&self, length: u64) -> Result<(), Error> {
        match self {
            Self::Write { file, name, .. } => {
                file.file().set_len(length).map_err(|error| Error::Write { what: name.clone(), error })
            }
            Self::Compare(file) => {
                let is_same = file.metadata().is_ok_and(|found| found.len() == length);
                if is_same { Ok(()) } else { Err(Error::Different) }
            }
        }
    }
}

impl Copying {
    /// Takes pieces until there is nothing more, or the other thread has failed.
    fn run(&self) -> Result<(), Error> {
        let mut buffer = Vec::new();
        loop {
            // The lock is held while waiting: the other thread waits for the lock instead of the piece.
            let Ok(Ok((base, piece))) = self.receiver.lock().map(|receiver| receiver.recv()) else { return Ok(()) };
            if self.has_failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            copy(&piece, self.stamp, |offset, part| self.task.part(base + offset, part, &mut buffer))?;
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
        refused(&at.join("new/"), "no such directory");
        refused(&at.join("old/"), "no such directory");
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
    fn who_pushes_hears_that_all_threads_have_failed() {
        let lent = Arc::new(tempfile::tempfile().unwrap());
        let scratch = tempfile::tempdir().unwrap();
        let file = TarFile::create(&scratch.path().join("a")).unwrap();
        let (sender, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            std::thread::scope(|scope| {
                let mut pieces = file.begin_comparing(scope, 0, lent).unwrap();
                while !pieces.copiers.iter().all(ScopedJoinHandle::is_finished) {
                    let _ = pieces.sender.try_send((0, Piece::Bytes(vec![1])));
                }
                // As if it was not known yet when it was looked at.
                pieces.has_failed.store(false, Ordering::Relaxed);
                let pushed = (0..=PIECES).try_for_each(|_| pieces.push(Piece::Bytes(vec![1])));
                sender.send((pushed.is_err(), pieces.finish(true).is_err())).unwrap();
            });
        });
        assert_eq!(ended.recv_timeout(std::time::Duration::from_secs(10)), Ok((true, true)));
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
