//! A directory in the target in which everything is made before it is published, and which goes with its run.
//!
//! It is locked (flock) as long as its run lives. What a killed run has left is nobody's, and removed by the next one.

use rustix::fs::{FlockOperation, flock, fstat};
use rustix::io::Errno;

use super::Error;
use super::apply::remove;
use super::confine::Powers;
use super::root::{Dir, is_ours};

/// What they are called. containers/storage looks at no name in a graphroot that it does not know.
pub const PREFIX: &[u8] = b".prepull-staging-";

const NOT_OURS: &str = "the store's directory belongs to another user, or others may write to it (chown, chmod go-w)";

/// Maximum number of runs at a time in one store.
pub const RUNS_MAX: u32 = 1000;

/// The directory of this run.
#[derive(Debug)]
pub struct Staging {
    /// Open.
    pub dir: Dir,
    name: Vec<u8>,
}

impl Staging {
    /// Makes one in `root`, if fewer than `runs` are there. With one it locks `root`: only root can open the directory, and so
    /// nobody else can hold that lock.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(root: &Dir, runs: u32) -> Result<Self, Error> {
        if !is_safe(root) {
            return Err(Error::said(NOT_OURS));
        }
        let failed = |error| Error::system("making a directory for what is not complete yet", error);
        for number in 0..runs {
            let name = [PREFIX, number.to_string().as_bytes()].concat();
            let dir = match root.make(&name, 0o700) {
                // Another run's; or ours, but who sweeps was faster.
                Err(Errno::EXIST | Errno::NOENT) => continue,
                made => made.map_err(failed)?,
            };
            // Somebody who sweeps may have it between the two.
            if flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok() && is_there(root, &name, &dir) {
                return Ok(Self { dir, name });
            }
        }
        Err(if runs == 1 {
            Error::said("another install into this directory is under way")
        } else {
            failed(Errno::EXIST)
        })
    }

    /// Removes it, since this has happened.
    ///
    /// # Errors
    /// With that.
    pub fn abandon<T>(self, root: &Dir, powers: Powers, error: Error) -> Result<T, Error> {
        self.remove(root, powers);
        Err(error)
    }

    /// Removes it and all that is in it; gives whether that is done. What cannot be removed is left for the next run.
    pub fn remove(self, root: &Dir, powers: Powers) -> bool {
        remove(powers, root, &self.name).is_ok()
    }
}

/// Removes what killed runs have left in `root`; gives how many that were.
pub fn sweep(root: &Dir, powers: Powers) -> u64 {
    let mut swept = 0;
    // What somebody else has made or put there, or could have, is not touched.
    let names = if is_safe(root) { root.names().unwrap_or_default() } else { Vec::new() };
    for name in names.iter().filter(|name| name.starts_with(PREFIX)) {
        let Ok(dir) = root.open(name) else { continue };
        let is_ours = fstat(&dir).is_ok_and(|found| is_ours(&found) && found.st_mode & 0o7777 == 0o700);
        // While it is locked and has its name, it is nobody else's.
        let is_left = is_ours && flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok();
        if is_left && is_there(root, name, &dir) && remove(powers, root, name).is_ok() {
            swept += 1;
        }
    }
    swept
}

/// Whether nobody else can put another directory in the place of one of ours.
fn is_safe(root: &Dir) -> bool {
    fstat(root).is_ok_and(|found| is_ours(&found))
}

fn is_there(root: &Dir, name: &[u8], dir: &Dir) -> bool {
    root.stat(name).is_ok_and(|a| fstat(dir).is_ok_and(|b| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)))
}
