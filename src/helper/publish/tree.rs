//! A whole tree into an empty directory. Its parts are renamed into it one by one, and a file says that all of them are there to
//! be renamed: a run that finds it goes on where another one was killed.

use rustix::fs::{AtFlags, RenameFlags, renameat_with, syncfs, unlinkat};

use super::super::Error;
use super::super::receive::{COMPLETE, STAGED, TREE};
use super::super::root::Dir;
use super::super::staging::Staging;

/// Publishes the tree in `staging`, or with `is_rest` what is left of one in `root`, if that is the same by its identity. `staging` is
/// the lock of `root`.
///
/// # Errors
/// The kernel's, and when the rest is of another tree: that is published, but not what was asked for.
pub fn publish(root: &Dir, staging: &Staging, is_rest: bool, identity: &str) -> Result<(), Error> {
    let found = root.read(COMPLETE, identity.len() as u64).ok().flatten();
    let is_other = is_rest && found.as_deref() != Some(identity.as_bytes());
    let all = || {
        if !is_rest {
            syncfs(&staging.dir)?;
            staging.dir.rename(STAGED, root, TREE)?;
            root.write(COMPLETE, 0o600, identity.as_bytes())?;
            root.sync()?;
        }
        if root.has(TREE) {
            let tree = root.open(TREE)?;
            for name in tree.names()? {
                renameat_with(&tree, &name[..], root, &name[..], RenameFlags::NOREPLACE)?;
            }
            root.sync()?;
            unlinkat(root, TREE, AtFlags::REMOVEDIR)?;
        }
        unlinkat(root, COMPLETE, AtFlags::empty())
    };
    all().map_err(|error| Error::system("publishing the tree", error))?;
    if is_other {
        return Err(Error::said("an interrupted run had another tree complete here: that is in its place now"));
    }
    Ok(())
}
