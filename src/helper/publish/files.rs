//! Files of the store itself, which are small and root's: read and written whole.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::super::root::{DIRECTORY, Dir};

impl Dir {
    /// The directory that a program names by a path of its own: links in it are followed.
    ///
    /// # Errors
    /// The kernel's.
    pub fn at(path: impl rustix::path::Arg) -> Result<Self, Errno> {
        rustix::fs::openat(CWD, path, DIRECTORY.difference(OFlags::NOFOLLOW), Mode::empty()).map(Self)
    }

    /// Makes a file with this content, and has it on the disk.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write(&self, name: &[u8], mode: u32, content: &[u8]) -> Result<(), Errno> {
        let mut file = self.create(name, mode)?;
        file.write_all(content).map_err(errno)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        rustix::fs::fsync(&file)
    }

    /// Writes a file, which is on the disk after the next syncfs(2). A file of this name is replaced.
    ///
    /// # Errors
    /// The kernel's.
    pub fn replace(&self, name: &[u8], mode: u32, content: &[u8]) -> Result<(), Errno> {
        match rustix::fs::unlinkat(self, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        let mut file = self.create(name, mode)?;
        file.write_all(content).map_err(errno)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))
    }

    /// Opens a regular file, made with `mode` if it is not there and `flags` say so.
    ///
    /// # Errors
    /// The kernel's; `EINVAL` for what is no regular file.
    pub fn open_file(&self, name: &[u8], flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
        // A named pipe must not make us wait.
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = self.openat2(name, flags, Mode::from_raw_mode(mode))?;
        if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode).is_file() { Ok(file) } else { Err(Errno::INVAL) }
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
        File::from(file).take(most + 1).read_to_end(&mut content).map_err(errno)?;
        if content.len() as u64 > most { Err(Errno::FBIG) } else { Ok(Some(content)) }
    }

    /// Has its names on the disk.
    ///
    /// # Errors
    /// The kernel's.
    pub fn sync(&self) -> Result<(), Errno> {
        rustix::fs::fsync(self)
    }
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
