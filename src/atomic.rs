//! Files that nobody sees before they are whole.
//!
//! A file without a name (`O_TMPFILE`) cannot be left behind, not even by kill -9; it gets its name by `linkat` when it is
//! complete. Where a file system has no such files (some network and FUSE ones), a hidden temporary name is used and removed
//! again on failure.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

/// A file that does not have its name yet.
#[derive(Debug)]
pub struct Unnamed {
    file: File,
    temporary: Option<Temporary>,
}

/// Names to be removed when the process is told to stop.
static TEMPORARY: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes what is left of unfinished files. For a process that is about to exit without unwinding.
pub fn remove_temporary_files() {
    if let Ok(mut names) = TEMPORARY.lock() {
        for name in names.drain(..) {
            let _ = fs_err::remove_file(name);
        }
    }
}

#[derive(Debug)]
struct Temporary(PathBuf);

impl Temporary {
    fn new(path: PathBuf) -> Self {
        if let Ok(mut names) = TEMPORARY.lock() {
            names.push(path.clone());
        }
        Self(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Gone already when it was renamed.
        let _ = fs_err::remove_file(&self.0);
        if let Ok(mut names) = TEMPORARY.lock() {
            names.retain(|name| *name != self.0);
        }
    }
}

impl Unnamed {
    /// A new empty file in `directory`, with `mode` less the umask.
    ///
    /// # Errors
    /// When no file can be made there; the text names the directory.
    pub fn new_in(directory: &Path, mode: u32) -> io::Result<Self> {
        let context = |error: io::Error| {
            io::Error::new(error.kind(), format!("cannot write into directory {}: {error}", directory.display()))
        };
        let mode = Mode::from_raw_mode(mode);
        match rustix::fs::openat(CWD, directory, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) {
            Ok(file) => Ok(Self { file: file.into(), temporary: None }),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::INVAL) => {
                let path = hidden_name(directory, "file");
                let _ = fs_err::remove_file(&path);
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
                let file = rustix::fs::openat(CWD, &path, flags, mode).map_err(|error| context(error.into()))?;
                Ok(Self { file: file.into(), temporary: Some(Temporary::new(path)) })
            }
            Err(error) => Err(context(error.into())),
        }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file the name `path` unless that exists: then the one there stays.
    ///
    /// # Errors
    /// When it cannot be linked.
    pub fn publish_new(self, path: &Path) -> io::Result<File> {
        match self.link(path) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(self.file),
            Err(error) => Err(named(path, error)),
        }
    }

    /// Gives the file the name `path`, in place of what has it.
    ///
    /// # Errors
    /// When it cannot be linked or renamed; the old file is untouched then.
    pub fn publish_over(self, path: &Path) -> io::Result<File> {
        let directory = parent(path);
        let hidden = hidden_name(directory, &path.file_name().unwrap_or_default().to_string_lossy());
        // Only a killed process with the same number can have left it.
        let _ = fs_err::remove_file(&hidden);
        let hidden = Temporary::new(hidden);
        self.link(&hidden.0).map_err(|error| named(path, error))?;
        fs_err::rename(&hidden.0, path)?;
        Ok(self.file)
    }

    fn link(&self, path: &Path) -> Result<(), rustix::io::Errno> {
        match &self.temporary {
            None => {
                let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                rustix::fs::linkat(CWD, own, CWD, path, AtFlags::SYMLINK_FOLLOW)
            }
            Some(temporary) => rustix::fs::linkat(CWD, &temporary.0, CWD, path, AtFlags::empty()),
        }
    }
}

fn named(path: &Path, error: rustix::io::Errno) -> io::Error {
    let error = io::Error::from(error);
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
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

/// The process that gave a temporary file this name, if it is such a name.
#[must_use]
pub fn temporary_process(name: &str) -> Option<u32> {
    let (_, numbers) = name.strip_prefix('.')?.rsplit_once(".prepull-")?;
    let (process, number) = numbers.split_once('-')?;
    number.parse::<u64>().ok()?;
    process.parse().ok()
}
