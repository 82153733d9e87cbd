//! A directory that is read as a machine reads its `/`: symbolic links in it are followed, but no path leads out of it, and
//! nothing but directories and regular files is opened.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Attempts to resolve a path while other processes rename its directories (openat2(2), `EAGAIN`).
const ATTEMPTS: usize = 8;

/// Never waits for a named pipe, nor makes a terminal the controlling one.
const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// A directory, open.
#[derive(Debug)]
pub struct Root(OwnedFd);

/// The object that a path leads to.
#[derive(Debug)]
pub enum Opened {
    /// There is none, or the path leads through something that is not a directory.
    Missing,
    /// A regular file, and its size in bytes when it was opened.
    File(File, u64),
    /// Anything else. It was not opened.
    Other(FileType),
}

impl Root {
    /// Opens the directory `path`.
    ///
    /// # Errors
    /// When it cannot be opened; the text names it.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(fs_err::File::open(path)?.into_file().into()))
    }

    /// Returns what the file system knows of the object that `path` leads to; `None` if there is none.
    ///
    /// # Errors
    /// The kernel's, without the path.
    pub fn stat(&self, path: &[u8]) -> io::Result<Option<Stat>> {
        match self.resolve(path, OFlags::PATH | OFlags::CLOEXEC)? {
            None => Ok(None),
            Some(object) => Ok(Some(rustix::fs::fstat(object)?)),
        }
    }

    /// Opens the regular file that `path` leads to.
    ///
    /// # Errors
    /// The kernel's, without the path.
    pub fn file(&self, path: &[u8]) -> io::Result<Opened> {
        // Opening a device may do something to it.
        let Some(stat) = self.stat(path)? else { return Ok(Opened::Missing) };
        let file_type = FileType::from_raw_mode(stat.st_mode);
        if file_type != FileType::RegularFile {
            return Ok(Opened::Other(file_type));
        }
        let Some(file) = self.resolve(path, READ)? else { return Ok(Opened::Missing) };
        let file = File::from(file);
        let metadata = file.metadata()?;
        if (metadata.dev(), metadata.ino()) != (stat.st_dev, stat.st_ino) || !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "was replaced while it was opened"));
        }
        Ok(Opened::File(file, metadata.len()))
    }

    /// Returns the content of the regular file that `path` leads to, or [`Opened`] without a file if it is none.
    ///
    /// Not more is read than the size that the file system gives: files of /proc and /sys have none, and some never end.
    ///
    /// # Errors
    /// The kernel's, without the path; [`io::ErrorKind::FileTooLarge`] for more than `max` bytes.
    pub fn read(&self, path: &[u8], max: u64) -> io::Result<Result<Vec<u8>, Opened>> {
        let (file, size) = match self.file(path)? {
            Opened::File(file, size) => (file, size),
            other => return Ok(Err(other)),
        };
        if size > max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut bytes = Vec::new();
        file.take(size).read_to_end(&mut bytes)?;
        Ok(Ok(bytes))
    }

    /// Opens the directory that `path` leads to; `None` if there is none, or it is not a directory.
    ///
    /// # Errors
    /// The kernel's, without the path.
    pub fn directory(&self, path: &[u8]) -> io::Result<Option<OwnedFd>> {
        self.resolve(path, READ | OFlags::DIRECTORY)
    }

    /// Opens `path`; `None` if there is none.
    fn resolve(&self, path: &[u8], flags: OFlags) -> io::Result<Option<OwnedFd>> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut attempts = 0;
        loop {
            attempts += 1;
            match rustix::fs::openat2(&self.0, path, flags, Mode::empty(), resolve) {
                Ok(opened) => return Ok(Some(opened)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if attempts < ATTEMPTS => {}
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                // Before Linux 5.6, or where a container's filter forbids what it does not know.
                Err(Errno::NOSYS | Errno::PERM) => return self.without_links(path, flags),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// As [`Self::resolve`], but a link on the way is an error.
    fn without_links(&self, path: &[u8], flags: OFlags) -> io::Result<Option<OwnedFd>> {
        let parts: Vec<&[u8]> =
            path.split(|&byte| byte == b'/').filter(|part| !matches!(*part, b"" | b"." | b"..")).collect();
        let mut at = self.0.try_clone()?;
        for (number, part) in parts.iter().enumerate() {
            let on_the_way = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let flags = if number + 1 == parts.len() { flags } else { on_the_way };
            at = match rustix::fs::openat(&at, *part, flags | OFlags::NOFOLLOW, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::NOENT) => return Ok(None),
                // With O_DIRECTORY, a link is no directory; the caller must not take it for missing.
                Err(Errno::NOTDIR) if is_link(&at, part) => return Err(Errno::LOOP.into()),
                Err(Errno::NOTDIR) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
        }
        Ok(Some(at))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Returns whether `name` in `directory` is a symbolic link.
fn is_link(directory: impl AsFd, name: &[u8]) -> bool {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_symlink())
}

/// Returns the names in an open directory, in no order.
///
/// # Errors
/// When it cannot be read.
pub fn names(directory: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_within_the_root_and_lead_to_regular_files_only() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("root");
        fs_err::create_dir_all(path.join("a/b")).unwrap();
        fs_err::write(path.join("a/b/file"), "inside").unwrap();
        fs_err::write(scratch.path().join("secret"), "outside").unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, path.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        for (link, target) in [
            ("up", "../secret".as_ref()),
            ("out", scratch.path().join("secret").as_path()),
            ("relative", "a/b/file".as_ref()),
            ("absolute", "/a/b/file".as_ref()),
            ("directory", "/a".as_ref()),
            ("kmsg", "/proc/kmsg".as_ref()),
            ("magic", "/proc/self/fd/0".as_ref()),
        ] {
            std::os::unix::fs::symlink(target, path.join(link)).unwrap();
        }
        let root = Root::open(&path).unwrap();
        for (name, content) in [
            ("a/b/file", Some(&b"inside"[..])),
            ("relative", Some(b"inside")),
            ("absolute", Some(b"inside")),
            ("directory/b/file", Some(b"inside")),
            ("../a/b/file", Some(b"inside")),
            ("up", None),
            ("out", None),
            ("kmsg", None),
            ("magic", None),
            ("pipe", None),
            ("a", None),
            ("none", None),
            ("a/b/file/none", None),
        ] {
            assert_eq!(root.read(name.as_bytes(), 100).unwrap().ok().as_deref(), content, "{name}");
        }
        assert!(matches!(root.file(b"pipe").unwrap(), Opened::Other(FileType::Fifo)));
        assert!(matches!(root.file(b"up").unwrap(), Opened::Missing));
        assert_eq!(root.read(b"relative", 5).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(names(root.directory(b"directory").unwrap().unwrap()).unwrap(), [b"b"]);
        assert!(root.directory(b"a/b/file").unwrap().is_none());

        assert!(root.without_links(b"a/b/file", READ).unwrap().is_some());
        assert!(root.without_links(b"a/none", READ).unwrap().is_none());
        for link in ["relative", "up", "directory/b/file"] {
            assert!(root.without_links(link.as_bytes(), READ).is_err(), "{link}");
        }
        // Where the whole machine is the root, /proc is in it: a file without a size has no content.
        let machine = Root::open("/".as_ref()).unwrap();
        assert_eq!(machine.read(b"/proc/version", 100).unwrap().unwrap(), b"");
    }
}
