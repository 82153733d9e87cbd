//! The directories and files of a store that belong to no image and no layer: locks, modes, owners, and what should not be there.

use super::Judge;
use super::rule::Rule;
use crate::inspect::contents::InodeKind;

/// The locks of a store. The first two are those without which a read-only store cannot be used.
const LOCKS: [&str; 5] = [
    "overlay-images/images.lock",
    "overlay-layers/layers.lock",
    "overlay-containers/containers.lock",
    "storage.lock",
    "userns.lock",
];

/// The directories of a store.
const DIRECTORIES: [&str; 5] = ["overlay", "overlay/l", "overlay-containers", "overlay-images", "overlay-layers"];

/// What only a running store has: containers and their layers, podman's databases.
const STATE: [&str; 8] = [
    "libpod",
    "db.sql",
    "defaultNetworkBackend",
    "volumes",
    "overlay-containers/containers.json",
    "overlay-containers/volatile-containers.json",
    "overlay-layers/volatile-layers.json",
    "secrets",
];

impl Judge<'_> {
    /// All of them.
    pub(super) fn store_files(&mut self) {
        let count = if self.additional { 2 } else { LOCKS.len() };
        for lock in &LOCKS[..count] {
            let path = self.below(lock);
            match self.contents.rest().get(path.as_bytes()).map(|inode| &inode.kind) {
                None => self.add(Rule::Lock, path, "is missing".to_owned()),
                Some(InodeKind::Regular { .. }) => {}
                Some(_) => self.add(Rule::StoreType, path, "is not a regular file".to_owned()),
            }
        }
        // Of containers an additional store has none.
        let additional = self.additional;
        for directory in DIRECTORIES.iter().filter(|name| !additional || **name != "overlay-containers") {
            let path = self.below(directory);
            let inode = self.contents.rest().get(path.as_bytes());
            if inode.is_some_and(|inode| inode.kind != InodeKind::Directory) {
                self.add(Rule::StoreType, path, "is not a directory".to_owned());
            }
        }
        for state in STATE.iter().filter(|_| self.contents.is_tar()) {
            let path = self.below(state);
            if self.contents.rest().get(path.as_bytes()).is_some() {
                self.add(Rule::RuntimeState, path, "is there".to_owned());
            }
        }
        self.mount_program();
        self.modes();
    }

    /// `overlay.go`, `SupportsNativeOverlay`.
    fn mount_program(&mut self) {
        let path = self.below("overlay/.has-mount-program");
        match super::small_text(self.contents, &path, 64) {
            None if self.additional => {}
            None => self.add(Rule::MountProgram, path, "is missing".to_owned()),
            Some(text) if text == "false" => {}
            Some(text) if text == "true" => self.add(Rule::MountProgramTrue, path, "is true".to_owned()),
            Some(text) => self.add(Rule::MountProgram, path, format!("has {text:?}, not \"false\"")),
        }
    }

    /// Owners and modes of everything that is not in a layer's tree.
    fn modes(&mut self) {
        let graphroot = self.found.graphroot.clone();
        let prefix = if graphroot.is_empty() { String::new() } else { format!("{graphroot}/") };
        let contents = self.contents;
        for (path, inode) in contents.rest().iter() {
            if !path.starts_with(prefix.as_bytes()) && path != graphroot.as_bytes() || inode.stamped {
                continue;
            }
            // The input may be the graphroot itself.
            let place = || String::from_utf8_lossy(if path.is_empty() { b"." } else { path }).into_owned();
            if (inode.uid, inode.gid) != (0, 0) {
                self.add(Rule::StoreOwner, place(), format!("belongs to {}:{}", inode.uid, inode.gid));
            }
            let readable = match inode.kind {
                InodeKind::Symlink(_) => continue,
                InodeKind::Directory => 0o005,
                _ => 0o004,
            };
            let is_lock = path.ends_with(b".lock");
            if inode.mode & 0o022 != 0 {
                let what = format!("has mode {:04o}: others may write to it", inode.mode);
                self.add(Rule::StoreMode, place(), what);
            } else if self.additional && inode.mode & readable != readable && !is_lock {
                self.add(Rule::StoreUnreadable, place(), format!("has mode {:04o}", inode.mode));
            }
        }
    }
}
