//! Directories that are held open, and names in them: the only way in which the helper touches the file system.
//!
//! No path is ever looked up from `/`. A path below a directory is walked by one `openat2` that follows no symbolic link in any
//! of its components, does not leave the directory, and does not enter another mount ([`BENEATH`]); names are made and
//! changed in directories that are held open. So it makes no difference what somebody else renames meanwhile.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

/// For every component of a path (openat2(2)): stay below, follow no link, not even those of /proc, and stay on the mount.
pub const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// A directory, open.
#[derive(Debug)]
pub struct Dir(OwnedFd);

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Dir {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<Dir> for OwnedFd {
    fn from(dir: Dir) -> Self {
        dir.0
    }
}

/// The directory without what is mounted in it: podman mounts `overlay` onto itself while it runs, and nothing can be renamed
/// from one mount to another. Where this may not be done it is the directory as it was.
#[must_use]
pub fn without_mounts(directory: OwnedFd) -> OwnedFd {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let Ok(view) = rustix::mount::open_tree(&directory, c"", flags) else { return directory };
    // A file system of its own in there must be seen: then renaming fails, and says why.
    let what = |root: &OwnedFd, path| {
        rustix::fs::statat(root, path, AtFlags::SYMLINK_NOFOLLOW).ok().map(|found| (found.st_dev, found.st_ino))
    };
    let parts = [c"overlay", c"overlay/l", c"overlay-layers", c"overlay-images", c"overlay-containers"];
    if parts.iter().all(|part| what(&view, *part) == what(&directory, *part)) { view } else { directory }
}

impl Dir {
    /// The directory that a program names by a path of its own: links in it are followed.
    ///
    /// # Errors
    /// The kernel's.
    pub fn at(path: impl rustix::path::Arg) -> Result<Self, Errno> {
        rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty()).map(Self)
    }

    /// The directory at `path` below; `.` for this one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(&self, path: &[u8]) -> Result<Self, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        self.openat2(path, DIRECTORY, Mode::empty()).map(Self)
    }

    /// The same, also where something is mounted: for the way to the target, which root has given.
    ///
    /// # Errors
    /// The kernel's.
    pub fn enter(&self, path: &[u8]) -> Result<Self, Errno> {
        let mounts_too = BENEATH.difference(ResolveFlags::NO_XDEV);
        rustix::io::retry_on_intr(|| rustix::fs::openat2(self, path, DIRECTORY, Mode::empty(), mounts_too)).map(Self)
    }

    /// The directory of this name, made with `mode` if it is not there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open_or_make(&self, name: &[u8], mode: u32) -> Result<Self, Errno> {
        match self.make(name, mode) {
            Ok(made) => Ok(made),
            Err(Errno::EXIST) => self.open(name),
            Err(error) => Err(error),
        }
    }

    /// Makes a directory, which has exactly `mode`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn make(&self, name: &[u8], mode: u32) -> Result<Self, Errno> {
        rustix::fs::mkdirat(self, name, Mode::from_raw_mode(mode))?;
        let made = self.open(name)?;
        rustix::fs::fchmod(&made, Mode::from_raw_mode(mode))?;
        Ok(made)
    }

    /// Makes a file, which must not be there in any form.
    ///
    /// # Errors
    /// The kernel's.
    pub fn create(&self, name: &[u8], mode: u32) -> Result<OwnedFd, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.openat2(name, flags, Mode::from_raw_mode(mode))
    }

    /// Makes a file with this content, and has it on the disk.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write(&self, name: &[u8], mode: u32, content: &[u8]) -> Result<(), Errno> {
        let file = self.create(name, mode)?;
        write_all(&file, content)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        rustix::fs::fsync(&file)
    }

    /// Opens a regular file, made with `mode` if it is not there and `flags` say so.
    ///
    /// # Errors
    /// The kernel's; `EINVAL` for what is no regular file.
    pub fn open_file(&self, name: &[u8], flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
        // A named pipe must not make us wait.
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = self.openat2(name, flags, Mode::from_raw_mode(mode))?;
        if is_regular(&rustix::fs::fstat(&file)?) { Ok(file) } else { Err(Errno::INVAL) }
    }

    /// The content of a file, or `None` when there is none.
    ///
    /// # Errors
    /// The kernel's; `EFBIG` for more than `most` bytes.
    pub fn read(&self, path: &[u8], most: u64) -> Result<Option<Vec<u8>>, Errno> {
        let file = match self.open_file(path, OFlags::RDONLY, 0) {
            Err(Errno::NOENT) => return Ok(None),
            file => file?,
        };
        let mut content = Vec::new();
        let read = io::Read::read_to_end(&mut io::Read::take(std::fs::File::from(file), most + 1), &mut content);
        read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        if content.len() as u64 > most { Err(Errno::FBIG) } else { Ok(Some(content)) }
    }

    /// What a name is; a symbolic link is one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn stat(&self, name: &[u8]) -> Result<Stat, Errno> {
        rustix::fs::statat(self, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Whether there is something of this name.
    #[must_use]
    pub fn has(&self, name: &[u8]) -> bool {
        self.stat(name).is_ok()
    }

    /// The names in it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn names(&self) -> Result<Vec<Vec<u8>>, Errno> {
        // A descriptor of its own, since reading moves its place.
        let entries = rustix::fs::Dir::new(self.open(b".")?.0)?;
        let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_bytes().to_vec()));
        names.filter(|name| !matches!(name.as_deref(), Ok(b"." | b".."))).collect()
    }

    /// Renames into `to`; what has the name there is replaced if the kernel can.
    ///
    /// # Errors
    /// The kernel's.
    pub fn rename(&self, name: &[u8], to: &Self, new_name: &[u8]) -> Result<(), Errno> {
        rustix::fs::renameat(self, name, to, new_name)
    }

    /// Has its names on the disk.
    ///
    /// # Errors
    /// The kernel's.
    pub fn sync(&self) -> Result<(), Errno> {
        rustix::fs::fsync(self)
    }

    fn openat2(&self, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        rustix::io::retry_on_intr(|| rustix::fs::openat2(self, path, flags, mode, BENEATH))
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Whether it is ours, and nobody else may put anything into it.
#[must_use]
pub fn is_ours(stat: &Stat) -> bool {
    stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_mode & 0o022 == 0
}

/// Whether it is a regular file.
#[must_use]
pub fn is_regular(stat: &Stat) -> bool {
    rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file()
}

/// Whether it is a directory.
#[must_use]
pub fn is_directory(stat: &Stat) -> bool {
    rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir()
}

/// Writes all of it.
///
/// # Errors
/// The kernel's.
pub fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
