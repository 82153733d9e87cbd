//! What busybox tar does to a store, and what is there to mend it: attributes are dropped, with `-o` all owners become root's.

use std::collections::{BTreeSet, HashMap};

use super::rule::Rule;
use super::tree::is_opaque;
use super::{Judge, small_text};
use crate::inspect::contents::{Contents, Files, InodeKind};
use crate::storage::machine::{NOBODY, lists_directory};
use crate::storage::store::Unpacker;

/// The rc script that gives owners back.
const SCRIPT: &str = "etc/init.d/25prepull.rc";
/// What the attributes were, as `setfattr --restore` reads it.
const XATTRS: &str = "usr/share/prepull/xattrs";
/// The longest list that is read, in bytes: 64 MiB, half a million files with long names.
const LIST_MAX: u64 = 64 << 20;

/// What the tar was made for: prepull puts its script into those for busybox.
pub(super) fn made_for(contents: &Contents) -> Unpacker {
    if contents.rest().get(SCRIPT.as_bytes()).is_some() { Unpacker::Busybox } else { Unpacker::Gnu }
}

/// What the lists give to each path below the store's `overlay`.
#[derive(Default)]
struct Lists {
    /// From `owners` and `links`: `uid:gid`, and the list.
    owners: HashMap<Vec<u8>, (String, &'static str)>,
    /// From `modes`, in octal.
    modes: HashMap<Vec<u8>, String>,
}

impl Judge<'_> {
    /// What is lost when the tar is unpacked with busybox.
    pub(super) fn unpacking(&mut self) {
        if self.unpacker != Unpacker::Busybox || !self.contents.is_tar() {
            return;
        }
        self.xattrs();
        if self.contents.rest().get(SCRIPT.as_bytes()).is_some() {
            self.owners_listed();
        } else {
            self.owners_lost();
        }
    }

    fn xattrs(&mut self) {
        let dump = self.contents.small(XATTRS.as_bytes(), LIST_MAX).ok().flatten().unwrap_or_default();
        let listed: BTreeSet<&[u8]> = dump.split(|&byte| byte == b'\n').collect();
        let mut found = Vec::new();
        for (id, files) in self.contents.layers(self.store) {
            let tree = self.below(&format!("overlay/{id}/diff"));
            for (path, inode) in files.iter() {
                let place = || format!("{tree}/{}", String::from_utf8_lossy(path));
                if is_opaque(inode) && !path.is_empty() {
                    found.push((Rule::OpaqueDropped, place(), "is opaque by an attribute".to_owned()));
                }
                let names: Vec<_> = inode.xattrs.iter().map(|(name, _)| &name[..]).collect();
                let names: Vec<_> = names.into_iter().filter(|name| !name.starts_with(b"trusted.overlay.")).collect();
                if names.is_empty() {
                    continue;
                }
                // As `storage::machine` writes it, for names that need no quoting; others count as listed when there is a list.
                let line = [b"# file: ".as_slice(), &below(id, path)].concat();
                let is_plain = line.iter().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'\\' | b'='));
                let is_listed = if is_plain { listed.contains(&line[..]) } else { !dump.is_empty() };
                let rule = if is_listed { Rule::XattrListed } else { Rule::XattrDropped };
                found.push((rule, place(), format!("has {}", String::from_utf8_lossy(&names.join(&b", "[..])))));
            }
        }
        for (rule, place, what) in found {
            self.add(rule, place, what);
        }
    }

    /// Without the script, owners are gone after `-o`.
    fn owners_lost(&mut self) {
        let owned = |files: &Files| {
            files.iter().find(|(_, inode)| (inode.uid, inode.gid) != (0, 0)).map(|(path, inode)| {
                format!("/{} belongs to {}:{}", String::from_utf8_lossy(path), inode.uid, inode.gid)
            })
        };
        let layers = self.contents.layers(self.store);
        let found: Vec<_> = layers.iter().filter_map(|(id, files)| Some((id.clone(), owned(files)?))).collect();
        for (id, what) in found {
            self.add(
                Rule::OwnersLost,
                self.below(&format!("overlay/{id}/diff")),
                format!("{what}, perhaps others, too"),
            );
        }
    }

    /// The lists give each file its own owner and mode, and no file another one's.
    fn owners_listed(&mut self) {
        let directory = lists_directory(&self.found.graphroot);
        let overlay = small_text(self.contents, &format!("{directory}/overlay"), 4096);
        if overlay.as_deref().map(str::trim_end) != Some(&self.below("overlay")) {
            let what = "does not say where the store is".to_owned();
            self.add(Rule::OwnersList, format!("{directory}/overlay"), what);
        }
        let state = format!("{directory}/state");
        let pending = small_text(self.contents, &state, 64).is_some_and(|text| text.trim_end() == "pending");
        if !pending || self.contents.rest().get(state.as_bytes()).is_none_or(|inode| inode.uid != NOBODY) {
            let what = "is not \"pending\" and nobody's: the script would do nothing".to_owned();
            self.add(Rule::OwnersList, state, what);
        }
        let mut lists = self.lists(&directory);
        let mut found = Vec::new();
        for (id, files) in self.contents.layers(self.store) {
            // One name of an inode is enough.
            let (mut owned, mut moded) = (BTreeSet::new(), BTreeSet::new());
            for (path, inode) in files.iter() {
                let key = below(id, path);
                let is_symlink = matches!(inode.kind, InodeKind::Symlink(_));
                let list = if is_symlink { "links" } else { "owners" };
                if let Some((owner, of)) = lists.owners.remove(&key) {
                    if (&owner[..], of) == (&format!("{}:{}", inode.uid, inode.gid)[..], list) {
                        owned.insert(files.number(path));
                    } else {
                        found.push((format!("{of}/{owner}"), key.clone(), "has another owner"));
                    }
                }
                if let Some(mode) = lists.modes.remove(&key) {
                    if mode == format!("{:04o}", inode.mode) {
                        moded.insert(files.number(path));
                    } else {
                        found.push((format!("modes/{mode}"), key.clone(), "has another mode"));
                    }
                }
            }
            for (path, inode) in files.iter().filter(|(_, inode)| (inode.uid, inode.gid) != (0, 0)) {
                let is_symlink = matches!(inode.kind, InodeKind::Symlink(_));
                if owned.insert(files.number(path)) {
                    let list = if is_symlink { "links" } else { "owners" };
                    found.push((format!("{list}/{}:{}", inode.uid, inode.gid), below(id, path), "is not in it"));
                }
                let changes_owner = !is_symlink && inode.kind != InodeKind::Directory && inode.mode & 0o6000 != 0;
                if changes_owner && moded.insert(files.number(path)) {
                    found.push((format!("modes/{:04o}", inode.mode), below(id, path), "is not in it"));
                }
            }
        }
        let left = lists.owners.into_iter().map(|(path, (owner, of))| (format!("{of}/{owner}"), path));
        let left = left.chain(lists.modes.into_iter().map(|(path, mode)| (format!("modes/{mode}"), path)));
        found.extend(left.map(|(list, path)| (list, path, "is not in the store")));
        found.sort();
        for (list, path, what) in found {
            let what = format!("{} {what}", String::from_utf8_lossy(&path));
            self.add(Rule::OwnersList, format!("{directory}/{list}"), what);
        }
    }

    fn lists(&self, directory: &str) -> Lists {
        let mut lists = Lists::default();
        for kind in ["owners", "links", "modes"] {
            let place = format!("{directory}/{kind}");
            for (name, _) in self.contents.rest().children(place.as_bytes()) {
                let name = String::from_utf8_lossy(name).into_owned();
                let path = format!("{place}/{name}");
                let bytes = self.contents.small(path.as_bytes(), LIST_MAX).ok().flatten().unwrap_or_default();
                for entry in bytes.split(|&byte| byte == 0).filter(|entry| !entry.is_empty()) {
                    if kind == "modes" {
                        lists.modes.insert(entry.to_vec(), name.clone());
                    } else {
                        lists.owners.insert(entry.to_vec(), (name.clone(), kind));
                    }
                }
            }
        }
        lists
    }
}

/// A path in a layer's tree as a path below `overlay`.
fn below(id: &str, path: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
    [id.as_bytes(), b"/diff", slash, path].concat()
}
