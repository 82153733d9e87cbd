//! The helper that puts back what busybox tar drops, and its manifest.

use std::collections::{HashMap, HashSet};
use std::io::BufReader;

use super::Judge;
use super::rule::Rule;
use super::tree::is_whiteout;
use super::unpacker::below;
use crate::entry::{Entry, Kind};
use crate::inspect::contents::{Inode, InodeKind};
use crate::storage::machine::lists_directory;
use crate::storage::restore::{HELPER, HELPER_MAX, MANIFEST, static_machine};
use crate::wire::read::Reader;

/// The longest manifest that is read, in bytes: 1 GiB, a million symbolic links.
const MANIFEST_MAX: u64 = 1 << 30;

/// The numbers of the inodes that the machine gets back as they are here, by layer.
pub(super) type Restored = HashMap<String, HashSet<u32>>;

impl Judge<'_> {
    /// Judges the helper and its manifest, if they are there.
    pub(super) fn restore(&mut self) -> Restored {
        let directory = lists_directory(&self.found.graphroot);
        let (helper, manifest) = (format!("{directory}/{HELPER}"), format!("{directory}/{MANIFEST}"));
        let rest = self.contents.rest();
        if rest.get(helper.as_bytes()).is_none() && rest.get(manifest.as_bytes()).is_none() {
            return Restored::new();
        }
        let runs = self.helper(&helper);
        let entries = match self.entries(&manifest) {
            Ok(entries) => entries,
            Err(what) => {
                self.add(Rule::RestoreManifest, manifest, what);
                return Restored::new();
            }
        };
        let restored = self.compare(&manifest, entries);
        if runs { restored } else { Restored::new() }
    }

    /// Whether the script can run it.
    fn helper(&mut self, path: &str) -> bool {
        let bytes = self.contents.small(path.as_bytes(), HELPER_MAX).ok().flatten();
        let mode = self.contents.rest().get(path.as_bytes()).map(|inode| inode.mode);
        let what = match (bytes, mode) {
            (_, None) => Some("is not there".to_owned()),
            (_, Some(mode)) if mode & 0o111 == 0 => Some("is not executable".to_owned()),
            (None, _) => Some("is not a regular file, or is too large".to_owned()),
            (Some(bytes), _) => static_machine(&bytes).err().map(|error| error.to_string()),
        };
        let runs = what.is_none();
        if let Some(what) = what {
            self.add(Rule::RestoreHelper, path.to_owned(), what);
        }
        runs
    }

    /// What the helper will read.
    fn entries(&self, path: &str) -> Result<HashMap<Vec<u8>, Entry>, String> {
        let inode = self.contents.rest().get(path.as_bytes()).ok_or("is not there")?;
        let InodeKind::Regular { size, .. } = inode.kind else { return Err("is not a regular file".to_owned()) };
        if size > MANIFEST_MAX {
            return Err(format!("has more than {} MiB", MANIFEST_MAX >> 20));
        }
        let content = self.contents.open(path.as_bytes(), inode).map_err(|error| error.to_string())?;
        let mut reader = Reader::new(BufReader::new(content));
        let mut entries = HashMap::new();
        while let Some(entry) = reader.next_entry().map_err(|error| error.to_string())? {
            let number = reader.number();
            if matches!(entry.kind, Kind::Hardlink(_) | Kind::Regular { size: 1.. }) {
                return Err(format!("entry {number} is none that can be restored"));
            }
            if entries.insert(entry.path.clone(), entry).is_some() {
                return Err(format!("entry {number} is there twice"));
            }
        }
        Ok(entries)
    }

    /// Every entry must be as its file in the tar, and none may be missing of which only the manifest knows the time.
    fn compare(&mut self, manifest: &str, mut entries: HashMap<Vec<u8>, Entry>) -> Restored {
        let mut found = Vec::new();
        let mut restored = Restored::new();
        for (id, files) in self.contents.layers(self.store) {
            let same = restored.entry(id.clone()).or_default();
            let mut listed = HashSet::new();
            for (name, inode) in files.iter() {
                let path = below(id, name);
                let (Some(entry), Some(number)) = (entries.remove(&path), files.number(name)) else { continue };
                listed.insert(number);
                if is_same(&entry, inode) {
                    same.insert(number);
                } else {
                    found.push((path, "is not so in the store"));
                }
            }
            for (path, inode) in files.iter().filter(|(_, inode)| !is_whiteout(inode)) {
                let is_needed = matches!(inode.kind, InodeKind::Symlink(_)) || inode.mtime.nanoseconds != 0;
                if is_needed && files.number(path).is_some_and(|number| listed.insert(number)) {
                    found.push((below(id, path), "is not in it"));
                }
            }
        }
        found.extend(entries.into_keys().map(|path| (path, "is not in the store")));
        found.sort();
        for (path, what) in found {
            let what = format!("{} {what}", String::from_utf8_lossy(&path));
            self.add(Rule::RestoreManifest, manifest.to_owned(), what);
        }
        restored
    }
}

fn is_same(entry: &Entry, inode: &Inode) -> bool {
    let kind = match (&entry.kind, &inode.kind) {
        (Kind::Directory, InodeKind::Directory)
        | (Kind::Regular { .. }, InodeKind::Regular { .. })
        | (Kind::Fifo, InodeKind::Fifo) => true,
        (Kind::Symlink(a), InodeKind::Symlink(b)) => a[..] == b[..],
        (Kind::CharDevice(a), InodeKind::CharDevice(b)) | (Kind::BlockDevice(a), InodeKind::BlockDevice(b)) => a == b,
        _ => false,
    };
    let meta = &entry.meta;
    kind && (meta.mode, meta.uid, meta.gid, meta.mtime) == (inode.mode, inode.uid, inode.gid, inode.mtime)
        && meta.xattrs[..] == inode.xattrs[..]
}
