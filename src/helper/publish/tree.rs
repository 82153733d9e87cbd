//! A whole tree into an empty directory. Its parts are renamed into it one by one, and a file says that all of them are there to
//! be renamed: a run that finds it goes on where another one was killed.

use rustix::fs::{AtFlags, RenameFlags, renameat_with, syncfs, unlinkat};

use super::super::Error;
use super::super::receive::{COMPLETE, STAGED, TREE};
use super::super::root::Dir;
use super::super::staging::Staging;

/// Publishes the tree in `staging`, or the rest of one that is in `root`, if that is the same by its identity.
///
/// # Errors
/// The kernel's, and when the rest is of another tree: that is published, but not what was asked for.
pub fn publish(root: &Dir, staging: Option<&Staging>, identity: &str) -> Result<(), Error> {
    let found = root.read(COMPLETE, identity.len() as u64).ok().flatten();
    let is_other = staging.is_none() && found.as_deref() != Some(identity.as_bytes());
    let all = || {
        if let Some(staging) = staging {
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
