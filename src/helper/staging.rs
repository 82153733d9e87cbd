//! A directory in the target in which everything is made before it is published, and which goes with its run.
//!
//! It is locked (flock) as long as its run lives. What a killed run has left is nobody's, and removed by the next one.

use rustix::fs::{AtFlags, FlockOperation, flock};
use rustix::io::Errno;

use super::Error;
use super::apply::remove;
use super::confine::Powers;
use super::root::{Dir, is_directory};

/// What they are called. containers/storage looks at no name in a graphroot that it does not know.
pub const PREFIX: &[u8] = b".prepull-staging-";

/// Runs at once on one target, at most.
const RUNS_MAX: u32 = 1000;

/// The directory of this run.
#[derive(Debug)]
pub struct Staging {
    /// Open.
    pub dir: Dir,
    name: Vec<u8>,
}

impl Staging {
    /// Makes one in `root`, and removes what killed runs have left.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(root: &Dir, powers: Powers) -> Result<Self, Error> {
        sweep(root, powers);
        let failed = |error| Error::system("making a directory for what is not complete yet", error);
        for number in 0..RUNS_MAX {
            let name = [PREFIX, number.to_string().as_bytes()].concat();
            let dir = match root.make(&name, 0o700) {
                // Taken; or somebody who sweeps has removed it before it was open.
                Err(Errno::EXIST | Errno::NOENT) => continue,
                made => made.map_err(failed)?,
            };
            // Somebody who sweeps may have it between the two.
            if flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok() && is_there(root, &name, &dir) {
                return Ok(Self { dir, name });
            }
        }
        Err(failed(Errno::EXIST))
    }

    /// Removes it and all that is in it. What cannot be removed is left for the next run.
    pub fn remove(self, root: &Dir, powers: Powers) {
        let _ = empty(root, &self.name, &self.dir, powers);
    }
}

/// Removes what killed runs have left in `root`; gives how many that were.
pub fn sweep(root: &Dir, powers: Powers) -> u64 {
    let mut swept = 0;
    for name in root.names().unwrap_or_default().iter().filter(|name| name.starts_with(PREFIX)) {
        let Ok(dir) = root.open(name) else { continue };
        if flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok() && empty(root, name, &dir, powers).is_ok() {
            swept += 1;
        }
    }
    swept
}

fn is_there(root: &Dir, name: &[u8], dir: &Dir) -> bool {
    match (root.stat(name), rustix::fs::fstat(dir)) {
        (Ok(named), Ok(open)) => (named.st_dev, named.st_ino) == (open.st_dev, open.st_ino),
        _ => false,
    }
}

fn empty(root: &Dir, name: &[u8], dir: &Dir, powers: Powers) -> Result<(), Errno> {
    for child in dir.names()? {
        if is_directory(&dir.stat(&child)?) {
            remove(powers, dir, &child)?;
        } else {
            rustix::fs::unlinkat(dir, &child[..], AtFlags::empty())?;
        }
    }
    rustix::fs::unlinkat(root, name, AtFlags::REMOVEDIR)
}
