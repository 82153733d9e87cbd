//! Files that nobody sees before they are whole.
//!
//! A file without a name (`O_TMPFILE`) cannot be left behind, not even by kill -9; it gets its name by `linkat` when it is
//! complete. Where a file system has no such files (vfat, CIFS, some FUSE ones), or without /proc, a hidden temporary name is
//! used, which is renamed in the end or removed on failure: hard links are not needed then.

use std::fs::File;
use std::io::{self, Seek as _};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::{Errno, retry_on_intr};

/// A file that does not have its name yet.
#[derive(Debug)]
pub struct Unnamed {
    file: File,
    temporary: Option<Temporary>,
}

/// Names to be removed when the process is told to stop.
static TEMPORARY: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Whether a file has taken another's place: what was asked for is done then, and stopping comes too late.
static PUBLISHED: AtomicBool = AtomicBool::new(false);

fn lock() -> MutexGuard<'static, Vec<PathBuf>> {
    // Only a panic of a thread that holds it could poison it, and then the list is still right.
    TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes what is left of unfinished files. For a process that is about to exit while threads are at work: they can make
/// no new ones, but wait for the end.
pub fn remove_temporary_files() {
    remove(lock());
}

/// A file that others use, and how much of it they do, if it stays unfinished.
static PARTIAL: Mutex<Option<(Arc<File>, u64)>> = Mutex::new(None);

/// If the process ends before a file is in its place, cuts `file` off at `length`: what follows is of no use to anybody.
pub fn keep_only(file: &Arc<File>, length: u64) {
    *PARTIAL.lock().unwrap_or_else(PoisonError::into_inner) = Some((Arc::clone(file), length));
}

/// Does that now: the file will not come to its place.
pub fn cut_off() {
    let partial = PARTIAL.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let (Some((file, length)), false) = (partial, PUBLISHED.load(Ordering::Relaxed)) {
        let _ = file.set_len(length);
    }
}

fn remove(mut names: MutexGuard<'_, Vec<PathBuf>>) {
    cut_off();
    for name in names.drain(..) {
        let _ = fs_err::remove_file(name);
    }
    std::mem::forget(names);
}

/// As [`remove_temporary_files`], but not once a file has been put in its place: gives whether the process may stop.
pub fn may_stop() -> bool {
    // Checked under the lock that is held while a file takes its place.
    let names = lock();
    let stop = !PUBLISHED.load(Ordering::Relaxed);
    if stop {
        remove(names);
    }
    stop
}

/// A hidden name, removed when this is dropped or the process is told to stop.
#[derive(Debug)]
pub struct Temporary(PathBuf);

impl Temporary {
    /// Gives the file the name `path` instead, unless that exists.
    ///
    /// # Errors
    /// When it exists, or the file cannot be renamed.
    pub fn rename_new(self, path: &Path) -> io::Result<()> {
        rename_new(&self.0, path).map_err(|error| named(path, error))
    }

    /// Has `make` make the file `path`, while nobody can be about to remove what is left of unfinished files: a file is
    /// there, and known, or neither.
    fn make<T>(path: PathBuf, make: impl FnOnce(&Path) -> Result<T, Errno>) -> Result<(Self, T), Errno> {
        let mut names = lock();
        // Only a killed process with the same number can have left it.
        let _ = fs_err::remove_file(&path);
        let made = make(&path)?;
        names.push(path.clone());
        Ok((Self(path), made))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Gone already when it was renamed.
        let _ = fs_err::remove_file(&self.0);
        lock().retain(|name| *name != self.0);
    }
}

impl Unnamed {
    /// A new empty file in `directory`, with `mode` less the umask.
    ///
    /// # Errors
    /// When no file can be made there; the text names the directory.
    pub fn new_in(directory: &Path, mode: u32) -> io::Result<Self> {
        let mode = Mode::from_raw_mode(mode);
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = match retry_on_intr(|| rustix::fs::openat(CWD, directory, flags, mode)) {
            Ok(file) if is_in_proc(&file) => Ok(Self { file: file.into(), temporary: None }),
            Ok(_) | Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Self::hidden_in(directory, mode),
            Err(error) => Err(error),
        };
        file.map_err(|error| {
            let error = io::Error::from(error);
            io::Error::new(error.kind(), format!("cannot write into directory {}: {error}", directory.display()))
        })
    }

    /// The same with a hidden name.
    fn hidden_in(directory: &Path, mode: Mode) -> Result<Self, Errno> {
        let path = hidden_name(directory, "file");
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let (temporary, file) =
            Temporary::make(path, |path| retry_on_intr(|| rustix::fs::openat(CWD, path, flags, mode)))?;
        Ok(Self { file: file.into(), temporary: Some(temporary) })
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns whether the file has a hidden name, by which other processes could have written to it.
    #[must_use]
    pub fn has_hidden_name(&self) -> bool {
        self.temporary.is_some()
    }

    /// A file that has a name elsewhere, to be given another one.
    #[must_use]
    pub fn of(file: File) -> Self {
        Self { file, temporary: None }
    }

    /// A second, hidden name in `directory`, which must be on the same file system.
    ///
    /// # Errors
    /// When there can be none.
    pub fn also_in(&self, directory: &Path) -> io::Result<Temporary> {
        // Processes of two containers may have the same number, and no other file has this one.
        let inode = rustix::fs::fstat(&self.file)?.st_ino;
        let hidden = hidden_name(directory, &format!("tar-{inode:x}"));
        let made = Temporary::make(hidden, |hidden| link(&self.file, hidden));
        made.map(|(temporary, ())| temporary).map_err(|error| named(directory, error))
    }

    /// Gives the file the name `path` unless that exists: then the one there stays, and this gives `false`.
    ///
    /// # Errors
    /// When it cannot be linked or renamed, or what was written did not reach a server.
    pub fn publish_new(self, path: &Path) -> io::Result<bool> {
        self.arrive().map_err(|error| named(path, error))?;
        let done = match &self.temporary {
            None => link(&self.file, path),
            Some(temporary) => rename_new(&temporary.0, path),
        };
        match done {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(named(path, error)),
        }
    }

    /// Gives the file the name `path`, in place of what has it.
    ///
    /// # Errors
    /// When it cannot be linked or renamed, or what was written did not reach a server; the old file is untouched then.
    pub fn publish_over(mut self, path: &Path) -> io::Result<File> {
        self.arrive().map_err(|error| named(path, error))?;
        let hidden = match self.temporary.take() {
            Some(temporary) => temporary,
            None => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let hidden = hidden_name(parent(path), &name);
                match Temporary::make(hidden, |hidden| link(&self.file, hidden)) {
                    Ok((hidden, ())) => hidden,
                    // It had a name, and somebody has removed that: it cannot get another one.
                    Err(Errno::NOENT) if self.is_orphan() && parent(path).is_dir() => return self.copy_over(path),
                    Err(error) => return Err(named(path, error)),
                }
            }
        };
        let names = lock();
        rustix::fs::rename(&hidden.0, path).map_err(|error| named(path, error))?;
        PUBLISHED.store(true, Ordering::Relaxed);
        drop(names);
        *PARTIAL.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(self.file)
    }

    fn is_orphan(&self) -> bool {
        rustix::fs::fstat(&self.file).is_ok_and(|found| found.st_nlink == 0)
    }

    /// Gives a copy the name `path`.
    fn copy_over(&mut self, path: &Path) -> io::Result<File> {
        let mode = rustix::fs::fstat(&self.file)?.st_mode & 0o777;
        let mut copy = Self::hidden_in(parent(path), Mode::from_raw_mode(mode)).map_err(|error| named(path, error))?;
        self.file.rewind()?;
        io::copy(&mut self.file, &mut copy.file)?;
        copy.publish_over(path)
    }

    /// A network file system may say only now that it has no room. Local ones say it when they are written to.
    fn arrive(&self) -> Result<(), Errno> {
        match rustix::fs::fstatfs(&self.file) {
            Ok(system) if is_remote(system.f_type as u64) => retry_on_intr(|| rustix::fs::fdatasync(&self.file)),
            _ => Ok(()),
        }
    }
}

/// Whether writes to a file system with this magic number (statfs(2)) may fail after the fact: those that a server, or a
/// process, keeps.
fn is_remote(magic: u64) -> bool {
    const NFS: u64 = 0x6969;
    const SMB: u64 = 0x517b;
    const SMB2: u64 = 0xfe53_4d42;
    const CIFS: u64 = 0xff53_4d42;
    const FUSE: u64 = 0x6573_5546;
    const V9FS: u64 = 0x0102_1997;
    const AFS: u64 = 0x5346_414f;
    const CEPH: u64 = 0x00c3_6400;
    // The field may be a signed word of 32 bits.
    [NFS, SMB, SMB2, CIFS, FUSE, V9FS, AFS, CEPH].contains(&(magic & 0xffff_ffff))
}

fn proc_name(file: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Whether /proc shows the file, so that it can be linked by that name.
fn is_in_proc(file: &(impl AsRawFd + AsFd)) -> bool {
    match (rustix::fs::fstat(file), rustix::fs::stat(proc_name(file))) {
        (Ok(file), Ok(shown)) => (file.st_dev, file.st_ino) == (shown.st_dev, shown.st_ino),
        _ => false,
    }
}

fn link(file: &File, path: &Path) -> Result<(), Errno> {
    rustix::fs::linkat(CWD, proc_name(file), CWD, path, AtFlags::SYMLINK_FOLLOW)
}

/// Renames unless `to` exists. Where the file system cannot promise that, who comes later wins.
fn rename_new(from: &Path, to: &Path) -> Result<(), Errno> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match rustix::fs::lstat(to) {
            Ok(_) => Err(Errno::EXIST),
            Err(_) => rustix::fs::rename(from, to),
        },
        done => done,
    }
}

fn named(path: &Path, error: Errno) -> io::Error {
    let error = io::Error::from(error);
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Returns the directory that the user has chosen for temporary files by `$TMPDIR`. An empty variable counts as none.
#[must_use]
pub fn chosen_temporary_directory() -> Option<PathBuf> {
    std::env::var_os("TMPDIR").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Returns the directory for temporary files, which can be as large as images: `$TMPDIR`, else `/var/tmp`, since `/tmp` is often in
/// memory.
#[must_use]
pub fn temporary_directory() -> PathBuf {
    chosen_temporary_directory().unwrap_or_else(|| PathBuf::from("/var/tmp"))
}

/// Whether there was no room to write to.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The directory of `path`, `.` for a bare name.
#[must_use]
pub fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn hidden_name(directory: &Path, name: &str) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    directory.join(format!(".{name}.prepull-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)))
}

/// A temporary file that was not written to for this time is nobody's.
pub const LEFTOVER_AGE: Duration = Duration::from_secs(3600);

/// Whether a file of this name, last written to at that time, is what a killed process has left.
#[must_use]
pub fn is_left(name: &str, written: SystemTime) -> bool {
    // The process may be one of another machine or container: then its number says nothing.
    let is_old = written.elapsed().is_ok_and(|age| age >= LEFTOVER_AGE);
    is_old && temporary_process(name).is_some_and(|process| !is_alive(process))
}

/// The process that gave a temporary file this name, if it is such a name.
fn temporary_process(name: &str) -> Option<u32> {
    let (_, numbers) = name.strip_prefix('.')?.rsplit_once(".prepull-")?;
    let (process, number) = numbers.split_once('-')?;
    number.parse::<u64>().ok()?;
    process.parse().ok()
}

/// Whether a process of this number runs here.
fn is_alive(process: u32) -> bool {
    Path::new("/proc").join(process.to_string()).exists()
}

/// What all unfinished files are called that have a name.
const UNFINISHED: &str = ".file.prepull-";

/// Removes what processes that were killed have left beside `path`: files that were about to get that name, and older
/// ones that were never whole. A convenience: what cannot be removed stays.
pub fn remove_leftovers_of(path: &Path) {
    // Its last name was given to a whole file, just before it got that of `path`. Others take their time.
    let prefix = format!(".{}.prepull-", path.file_name().unwrap_or_default().to_string_lossy());
    remove_left(parent(path), |name| {
        name.starts_with(&prefix) && temporary_process(name).is_some_and(|process| !is_alive(process))
    });
    remove_unfinished_in(parent(path));
}

/// Removes what processes that were killed a while ago have left unfinished in `directory`. A convenience, too.
pub fn remove_unfinished_in(directory: &Path) {
    let written = |name: &str| fs_err::symlink_metadata(directory.join(name)).and_then(|found| found.modified());
    remove_left(directory, |name| {
        name.starts_with(UNFINISHED) && written(name).is_ok_and(|written| is_left(name, written))
    });
}

fn remove_left(directory: &Path, is_left: impl Fn(&str) -> bool) {
    let Ok(entries) = fs_err::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(&is_left) {
            let _ = fs_err::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs_err::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn both_kinds_get_their_names_and_leave_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let at = scratch.path();
        let hidden = || Unnamed::hidden_in(at, Mode::from_raw_mode(0o644)).unwrap();
        assert!(hidden().has_hidden_name());
        let unnamed = || Unnamed::new_in(at, 0o644).unwrap();
        for make in [&hidden as &dyn Fn() -> Unnamed, &unnamed] {
            let path = at.join("a");
            for text in ["1", "2"] {
                let file = make();
                file.file().write_all(text.as_bytes()).unwrap();
                file.publish_over(&path).unwrap();
                assert_eq!(fs_err::read_to_string(&path).unwrap(), text);
            }
            make().publish_new(&path).unwrap();
            assert_eq!(fs_err::read_to_string(&path).unwrap(), "2", "what is there stays");
            make().publish_new(&at.join("b")).unwrap();
            drop(make());
            assert!(make().publish_over(&at.join("none/a")).is_err());
            assert!(make().publish_new(&at.join("none/a")).is_err());
            assert_eq!(names(at), ["a", "b"]);
            fs_err::remove_file(at.join("b")).unwrap();
        }
    }

    #[test]
    fn a_hidden_file_needs_no_hard_link() {
        use std::os::unix::fs::MetadataExt as _;
        let scratch = tempfile::tempdir().unwrap();
        let file = Unnamed::hidden_in(scratch.path(), Mode::from_raw_mode(0o600)).unwrap();
        let number = file.file().metadata().unwrap().ino();
        assert_eq!(temporary_process(&names(scratch.path())[0]), Some(std::process::id()));
        let path = scratch.path().join("a");
        file.publish_new(&path).unwrap();
        let metadata = fs_err::metadata(&path).unwrap();
        assert_eq!((metadata.ino(), metadata.nlink()), (number, 1));
    }

    #[test]
    fn remote_file_systems_are_known() {
        assert!(is_remote(0x6969) && is_remote(0xffff_ffff_ff53_4d42), "a sign does not matter");
        assert!(!is_remote(0xef53) && !is_remote(0x0102_1994), "ext4, tmpfs");
    }
}
