//! A directory that is read as a machine reads its `/`: symbolic links in it are followed, but no path leads out of it, and
//! nothing but directories and regular files is opened.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Attempts to resolve a path while other processes rename its directories (openat2(2), `EAGAIN`).
const ATTEMPTS: usize = 8;

/// Maximum number of symbolic links on the way of a path (Linux: `MAXSYMLINKS`).
const LINKS_MAX: usize = 40;

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
                // Before Linux 5.6, where a container's filter forbids what it does not know, and in a process that
                // [`crate::confine`] has left a directory to write to.
                Err(Errno::NOSYS | Errno::PERM) => return self.step_by_step(path, flags),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// As [`Self::resolve`], without openat2(2): each component is opened by itself, and links are read.
    fn step_by_step(&self, path: &[u8], flags: OFlags) -> io::Result<Option<OwnedFd>> {
        let split = |path: &[u8]| -> Vec<Vec<u8>> {
            let parts = path.split(|&byte| byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
            parts.map(<[u8]>::to_vec).rev().collect()
        };
        // Components that are left, the next one at the end; and the directories on the way, of which `..` never leaves the first.
        let (mut left, mut on_the_way, mut links) = (split(path), vec![self.0.try_clone()?], 0);
        loop {
            let at = on_the_way.last().unwrap_or(&self.0);
            let Some(part) = left.pop() else {
                return Ok(Some(rustix::fs::openat(at, ".", flags, Mode::empty())?));
            };
            if part == b".." {
                on_the_way.truncate((on_the_way.len() - 1).max(1));
                continue;
            }
            let next = match rustix::fs::openat(
                at,
                &*part,
                OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            ) {
                Ok(next) => next,
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let stat = rustix::fs::fstat(&next)?;
            if FileType::from_raw_mode(stat.st_mode).is_symlink() {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Errno::LOOP.into());
                }
                let target = rustix::fs::readlinkat(&next, "", Vec::new())?.into_bytes();
                if target.starts_with(b"/") {
                    on_the_way.truncate(1);
                }
                left.extend(split(&target));
            } else if left.is_empty() {
                // A link that has taken its place meanwhile is an error.
                return match rustix::fs::openat(at, &*part, flags | OFlags::NOFOLLOW, Mode::empty()) {
                    Ok(opened) => Ok(Some(opened)),
                    Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
                    Err(error) => Err(error.into()),
                };
            } else if FileType::from_raw_mode(stat.st_mode).is_dir() {
                on_the_way.push(next);
            } else {
                return Ok(None);
            }
        }
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
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

        std::os::unix::fs::symlink("loop", path.join("loop")).unwrap();
        for name in [
            "a/b/file",
            "relative",
            "absolute",
            "directory",
            "directory/b/file",
            "directory/../a",
            "../a/b/file",
            "..",
            ".",
            "up",
            "out",
            "kmsg",
            "magic",
            "pipe",
            "none",
            "a/none",
            "a/b/file/none",
            "loop",
            "a/b/file/../file",
        ] {
            for flags in [OFlags::PATH | OFlags::CLOEXEC, READ | OFlags::DIRECTORY] {
                let inode = |opened: io::Result<Option<OwnedFd>>| {
                    opened
                        .map(|opened| opened.map(|file| rustix::fs::fstat(file).unwrap().st_ino))
                        .map_err(|error| error.kind())
                };
                let (one, other) = (root.resolve(name.as_bytes(), flags), root.step_by_step(name.as_bytes(), flags));
                assert_eq!(inode(one), inode(other), "{name} {flags:?}");
            }
        }
        // Where the whole machine is the root, /proc is in it: a file without a size has no content.
        let machine = Root::open("/".as_ref()).unwrap();
        assert_eq!(machine.read(b"/proc/version", 100).unwrap().unwrap(), b"");
    }
}
