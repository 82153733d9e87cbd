//! Directories that are held open, and names in them: the only way in which the helper touches the file system.
//!
//! No path is ever looked up from `/`. A path below a directory is walked by one `openat2` that follows no symbolic link in any
//! of its components, does not leave the directory, and does not enter another mount ([`BENEATH`]); names are made and
//! changed in directories that are held open. So it makes no difference what somebody else renames meanwhile. Only on the way to
//! the target itself are symbolic links followed, inside of the root ([`Dir::enter`]).

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

/// For every component of a path (openat2(2)): stay below, follow no link, not even those of /proc, and stay on the mount.
pub const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// A directory, open.
#[derive(Debug)]
pub struct Dir(pub OwnedFd);

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The directory without what is mounted in it: podman mounts `overlay` onto itself while it runs, and nothing can be renamed
/// from one mount to another. Where this may not be done it is the directory as it was.
pub(crate) fn without_mounts(directory: OwnedFd) -> OwnedFd {
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
    /// The directory at `path` below; `.` for this one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(&self, path: &[u8]) -> Result<Self, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        self.openat2(path, DIRECTORY, Mode::empty()).map(Self)
    }

    /// Opens the directory at `path` below, also where something is mounted or a link leads to it inside of this directory: for
    /// the way to the target, which root has given.
    ///
    /// # Errors
    /// The kernel's.
    pub fn enter(&self, path: &[u8]) -> Result<Self, Errno> {
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
        rustix::io::retry_on_intr(|| rustix::fs::openat2(self, path, flags, Mode::empty(), inside)).map(Self)
    }

    /// The directory of this name, made with `mode` if it is not there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open_or_make(&self, name: &[u8], mode: u32) -> Result<Self, Errno> {
        match self.make(name, mode) {
            Err(Errno::EXIST) => self.open(name),
            made => made,
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
    pub fn create(&self, name: &[u8], mode: u32) -> Result<File, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.openat2(name, flags, Mode::from_raw_mode(mode)).map(File::from)
    }

    /// What a name is; a symbolic link is one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn stat(&self, name: &[u8]) -> Result<Stat, Errno> {
        rustix::fs::statat(self, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Whether there is something of this name.
    pub(crate) fn has(&self, name: &[u8]) -> bool {
        self.stat(name).is_ok()
    }

    /// The names in it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn names(&self) -> Result<Vec<Vec<u8>>, Errno> {
        self.each_name()?.collect()
    }

    /// The names in it, of which there may be more than memory has room for.
    ///
    /// # Errors
    /// The kernel's.
    pub fn each_name(&self) -> Result<impl Iterator<Item = Result<Vec<u8>, Errno>> + use<>, Errno> {
        // A descriptor of its own, since reading moves its place.
        let entries = rustix::fs::Dir::new(self.open(b".")?.0)?;
        let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_bytes().to_vec()));
        Ok(names.filter(|name| !matches!(name.as_deref(), Ok(b"." | b".."))))
    }

    /// Renames into `to`; what has the name there is replaced if the kernel can.
    ///
    /// # Errors
    /// The kernel's.
    pub fn rename(&self, name: &[u8], to: &Self, new_name: &[u8]) -> Result<(), Errno> {
        rustix::fs::renameat(self, name, to, new_name)
    }

    pub(super) fn openat2(&self, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        rustix::io::retry_on_intr(|| rustix::fs::openat2(self, path, flags, mode, BENEATH))
    }
}

pub(super) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Whether it is ours, and nobody else may put anything into it.
pub(crate) fn is_ours(stat: &Stat) -> bool {
    stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_mode & 0o022 == 0
}

/// Whether it is a directory.
pub(crate) fn is_directory(stat: &Stat) -> bool {
    rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir()
}
