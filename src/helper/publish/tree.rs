//! A whole tree into an empty directory. Its parts are renamed into it one by one, and a file says that all of them are there to
//! be renamed: a run that finds it goes on where another one was killed.

use rustix::fs::{AtFlags, RenameFlags, renameat_with, syncfs, unlinkat};

use super::super::Error;
use super::super::receive::{COMPLETE, STAGED, TREE};
use super::super::root::Dir;
use super::super::staging::Staging;

/// Publishes the tree in `staging`, or the rest of one that is in `root`.
///
/// # Errors
/// The kernel's.
pub fn publish(root: &Dir, staging: Option<&Staging>) -> Result<(), Error> {
    let all = || {
        if let Some(staging) = staging {
            syncfs(&staging.dir)?;
            staging.dir.rename(STAGED, root, TREE)?;
            root.write(COMPLETE, 0o600, b"")?;
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
    all().map_err(|error| Error::system("publishing the tree", error))
}
