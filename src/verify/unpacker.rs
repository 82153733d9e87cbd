//! What busybox tar does to a store, and what is there to mend it: attributes are dropped, with `-o` all owners become root's.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::restore::Restored;
use super::rule::Rule;
use super::tree::is_opaque;
use super::{Judge, small_text};
use crate::entry::Xattr;
use crate::inspect::contents::{Contents, Files, InodeKind};
use crate::storage::machine::{NOBODY, RESTORE, lists_directory, xattr_dump};
use crate::storage::store::Unpacker;

/// The rc script that gives owners back.
const SCRIPT: &str = "etc/init.d/25prepull.rc";
/// Where its lists are.
const LISTS: &str = "usr/share/prepull";
/// What the attributes were, as `setfattr --restore` reads it.
const XATTRS: &str = "usr/share/prepull/xattrs";
/// The longest list that is read, in bytes: 64 MiB, half a million files with long names.
const LIST_MAX: u64 = 64 << 20;

/// What the tar was made for: prepull puts its script and lists into those for busybox.
pub(super) fn made_for(contents: &Contents) -> Unpacker {
    let has = |path: &str| contents.rest().get(path.as_bytes()).is_some();
    if has(SCRIPT) || has(LISTS) { Unpacker::Busybox } else { Unpacker::Gnu }
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
        // Without the script nobody calls the helper.
        let has_script = self.contents.rest().get(SCRIPT.as_bytes()).is_some();
        let restored = if has_script { self.restore() } else { Restored::new() };
        self.xattrs(&restored);
        match small_text(self.contents, SCRIPT, LIST_MAX) {
            None => self.owners_lost(),
            Some(script) => {
                if script != RESTORE {
                    self.add(Rule::OwnersScript, SCRIPT.to_owned(), "is not this prepull's".to_owned());
                }
                let inode = self.contents.rest().get(SCRIPT.as_bytes());
                if inode.is_some_and(|inode| inode.mode & 0o111 == 0) {
                    self.add(Rule::OwnersScript, SCRIPT.to_owned(), "is not executable".to_owned());
                }
                self.owners_listed();
            }
        }
    }

    fn xattrs(&mut self, restored: &Restored) {
        let contents = self.contents;
        let dump = contents.small(XATTRS.as_bytes(), LIST_MAX).ok().flatten().unwrap_or_default();
        let listed: HashSet<&[u8]> = records(&dump).collect();
        let titles: HashSet<&[u8]> = listed.iter().map(|record| title(record)).collect();
        for (id, files) in contents.layers(self.store) {
            let tree = self.below(&format!("overlay/{id}/diff"));
            // A file with several names is listed under one of them.
            let mut found: BTreeMap<u32, (Listed, &[u8], String)> = BTreeMap::new();
            for (path, inode) in files.iter() {
                if is_opaque(inode) && !path.is_empty() {
                    let place = format!("{tree}/{}", String::from_utf8_lossy(path));
                    self.add(Rule::OpaqueDropped, place, "is opaque by an attribute".to_owned());
                }
                let of_image = |xattr: &&Xattr| !xattr.0.starts_with(b"trusted.overlay.");
                let xattrs: Vec<Xattr> = inode.xattrs.iter().filter(of_image).cloned().collect();
                let (false, Some(number)) = (xattrs.is_empty(), files.number(path)) else { continue };
                if restored.get(id).is_some_and(|numbers| numbers.contains(&number)) {
                    continue;
                }
                let expected = xattr_dump(&below(id, path), &xattrs);
                let is_listed = match (listed.contains(&expected[..]), titles.contains(title(&expected))) {
                    (true, _) => Listed::So,
                    (_, true) => Listed::Otherwise,
                    _ => Listed::Not,
                };
                let names: Vec<_> = xattrs.iter().map(|(name, _)| String::from_utf8_lossy(name)).collect();
                let new = (is_listed, path, names.join(", "));
                let old = found.entry(number).or_insert_with(|| new.clone());
                if new.0 < old.0 {
                    *old = new;
                }
            }
            for (is_listed, path, names) in found.into_values() {
                let (rule, but) = match is_listed {
                    Listed::So => (Rule::XattrListed, ""),
                    Listed::Otherwise => (Rule::XattrDropped, ", and the list says something else"),
                    Listed::Not => (Rule::XattrDropped, ""),
                };
                self.add(rule, format!("{tree}/{}", String::from_utf8_lossy(path)), format!("has {names}{but}"));
            }
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
            let what = format!("is not \"pending\" and owned by user {NOBODY}: the script would do nothing");
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

/// What the list of attributes says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Listed {
    /// What the tar says.
    So,
    /// Something else.
    Otherwise,
    /// Nothing.
    Not,
}

/// The files in the list of attributes: each ends with an empty line, and no name has one in it.
fn records(dump: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = dump;
    std::iter::from_fn(move || {
        let end = rest.windows(2).position(|pair| pair == b"\n\n").map_or(rest.len(), |at| at + 2);
        let (record, more) = rest.split_at(end);
        rest = more;
        (!record.is_empty()).then_some(record)
    })
}

/// The line of a record that has the file's name.
fn title(record: &[u8]) -> &[u8] {
    record.split(|&byte| byte == b'\n').next().unwrap_or_default()
}

/// A path in a layer's tree as a path below `overlay`.
pub(super) fn below(id: &str, path: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
    [id.as_bytes(), b"/diff", slash, path].concat()
}
