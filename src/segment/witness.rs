//! Whether a tar that the cache shares with its user is still what was checked.
//!
//! A segment's own checksums (XXH3) find accidents. They do not stop a writer of the shared tar, who can compute them: the tar is
//! the user's file, and may be reached through a bind mount, a network file system or a machine's share. So a body in a shared tar
//! is believed only while the tar's size, times of modification and of change are those under which its SHA-256 was last right:
//!
//! ```text
//!  conversion ─▶ SHA-256 of the body, in the segment's own file (private to the user)
//!  publication ─▶ Stamp of the tar, in the cache (private) ──┐
//!  each read ─▶ bytes, then the tar's Stamp ── the same ─────┴──▶ believed
//!                                      └────── another ─▶ SHA-256 of the whole body ─▶ the same: the new Stamp is kept
//!                                                                                   └─▶ another: damaged
//! ```
//!
//! The kernel changes the time of change (ctime) with every write, link, unlink, rename and change of times, and no call sets it.
//! So removing `images.tar` costs one reading of each body that is used afterwards, not more.
//!
//! # What remains
//! * A writer that hits the same tick of the kernel's clock (4 ms; less since Linux 6.13) in which the tar got its name or its time
//!   from prepull, and restores the time of modification within that tick.
//! * Stores through a writable memory mapping of a file on tmpfs, of which the kernel keeps no time. Elsewhere the first store after
//!   each write-back changes the times, and a check writes back before it begins.
//! * A file system whose server lies about the times, and the owner of the cache directory, who can write the segments themselves.
//! * What the kernel has in its page cache of a mount was right when it was read.

use std::fs::File;
use std::io;

use rustix::fs::{AtFlags, StatxFlags};
use serde::{Deserialize, Serialize};

/// Size and times of a file at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Size in bytes.
    pub size: u64,
    /// Time of modification: seconds and nanoseconds.
    pub modified: (i64, u32),
    /// Time of change: seconds and nanoseconds.
    pub changed: (i64, u32),
}

impl Stamp {
    /// Returns the stamp of a file now; a network file system asks its server.
    ///
    /// # Errors
    /// Those of statx(2).
    pub fn of(file: &File) -> io::Result<Self> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
        let found = rustix::fs::statx(file, c"", flags, StatxFlags::BASIC_STATS)?;
        let time = |time: rustix::fs::StatxTimestamp| (time.tv_sec, time.tv_nsec);
        Ok(Self { size: found.stx_size, modified: time(found.stx_mtime), changed: time(found.stx_ctime) })
    }
}

/// Returns the stamp that `file` has before and after `check` says that its content is right; `None` if it is not, or if the
/// file changes all the time.
///
/// # Errors
/// Those of reading the stamp, and of `check`.
pub fn vouch<E: From<io::Error>>(file: &File, mut check: impl FnMut() -> Result<bool, E>) -> Result<Option<Stamp>, E> {
    /// A build that replaces the tar meanwhile changes it a few times, not for ever.
    const ATTEMPTS: usize = 5;
    for _ in 0..ATTEMPTS {
        let before = Stamp::of(file)?;
        // Afterwards the kernel notices the next store through any memory mapping. Not all files can be written back.
        let _ = rustix::fs::fdatasync(file);
        if !check()? {
            return Ok(None);
        }
        if Stamp::of(file)? == before {
            return Ok(Some(before));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn stamps_change_with_every_write_even_if_the_time_is_restored() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"x").unwrap();
        let before = Stamp::of(&file).unwrap();
        assert_eq!(Stamp::of(&file).unwrap(), before);
        let modified = file.metadata().unwrap().modified().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::os::unix::fs::FileExt::write_all_at(&file, b"y", 0).unwrap();
        file.set_modified(modified).unwrap();
        let after = Stamp::of(&file).unwrap();
        assert_eq!((after.size, after.modified), (before.size, before.modified));
        assert_ne!(after, before);
    }

    #[test]
    fn a_file_that_changes_while_it_is_checked_is_checked_again() {
        let file = tempfile::tempfile().unwrap();
        let mut writer = file.try_clone().unwrap();
        let mut checks = 0;
        let stamp = vouch(&file, || {
            checks += 1;
            if checks == 1 {
                std::thread::sleep(std::time::Duration::from_millis(20));
                writer.write_all(b"x").unwrap();
            }
            Ok::<_, io::Error>(true)
        });
        assert_eq!((stamp.unwrap().unwrap().size, checks), (1, 2));
        assert!(vouch(&file, || Ok::<_, io::Error>(false)).unwrap().is_none());
        let always = vouch(&file, || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            writer.write_all(b"x").map(|()| true)
        });
        assert!(always.unwrap().is_none());
    }
}
