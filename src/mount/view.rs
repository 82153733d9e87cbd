//! What is shown: a store, as a tree of numbered inodes.
//!
//! ```text
//!  1                       the graphroot
//!  1<<60 | hash            its directories, by path; its small files, by path and content
//!  slot<<32 | entry        layers: the slot follows from the layer's id, the entry is its place in the layer's index
//! ```
//!
//! So a number follows from what it stands for: a new worker, and another mount of the same images, give the same ones. What
//! changes (images.json) gets another number, and who has the old one open reads it to its end. Nothing is ever taken
//! away from a view: what its successor does not show can still be reached by who has it.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_64;

use super::layer::{DIRECTORY, Layer, REGULAR, SYMLINK, blocks};
use super::wire::{Attributes, ROOT};
use crate::digest::Digest;
use crate::entry::{Meta, Xattr};
use crate::layer::path::split_last;

/// Marks inodes that are in no layer.
const OUTSIDE: u64 = 1 << 60;

/// One more than the highest slot.
pub const SLOTS: u32 = 1 << 27;

/// Where entries of a directory begin: `.` and `..` come before.
const FIRST: u64 = 2;

/// The slot of a layer, if it is free.
#[must_use]
pub fn slot_of(layer: &Digest) -> u32 {
    let bytes = layer.as_bytes();
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) % (SLOTS - 1) + 1
}

/// The number of a layer's entry.
const fn inside(slot: u32, number: u32) -> u64 {
    (slot as u64) << 32 | number as u64
}

/// What an inode outside the layers is.
#[derive(Debug)]
enum What {
    Directory(Directory),
    File(Content),
    Symlink(Vec<u8>),
}

/// A small file's content.
#[derive(Debug)]
struct Content {
    file: Arc<File>,
    at: u64,
    length: u64,
}

#[derive(Debug, Default)]
struct Directory {
    by_name: BTreeMap<Vec<u8>, u64>,
    /// By a number that follows from the name: somebody who is reading the directory goes on in the right place when it changes.
    order: BTreeMap<u64, (Vec<u8>, u64)>,
}

#[derive(Debug)]
struct Outside {
    parent: u64,
    meta: Meta,
    what: What,
}

/// An entry outside the layers.
#[derive(Debug)]
pub struct Part {
    /// Where, below the graphroot; empty for the graphroot.
    pub path: Vec<u8>,
    /// Owner, mode, time.
    pub meta: Meta,
    /// What it is.
    pub kind: PartKind,
}

/// What a [`Part`] is.
#[derive(Debug)]
pub enum PartKind {
    /// A directory.
    Directory,
    /// The root of the layer of this slot.
    Layer(u32),
    /// A regular file.
    File {
        /// Where its content is.
        at: u64,
        /// Its bytes.
        length: u64,
        /// A hash of its content.
        hash: u64,
    },
    /// A symbolic link.
    Symlink(Vec<u8>),
}

/// A view.
#[derive(Debug, Default)]
pub struct View {
    outside: HashMap<u64, Arc<Outside>>,
    layers: HashMap<u32, (Arc<Layer>, u64)>,
}

impl View {
    /// The view of these parts, whose files are in `small`, and layers, which takes the place of `before`. Directories come
    /// before what is in them.
    #[must_use]
    pub fn new(parts: Vec<Part>, small: &Arc<File>, layers: HashMap<u32, Arc<Layer>>, before: Option<&Self>) -> Self {
        let mut paths: HashMap<Vec<u8>, u64> = HashMap::new();
        let mut outside: HashMap<u64, Outside> = HashMap::new();
        let mut shown: HashMap<u32, (Arc<Layer>, u64)> = HashMap::new();
        for Part { path, meta, kind } in parts {
            let (directory, name) = split_last(&path);
            let parent = if path.is_empty() { Some(ROOT) } else { paths.get(directory).copied() };
            // A store has no files outside its directories; a tar of somebody else may.
            let Some(parent) = parent else { continue };
            let id = match &kind {
                PartKind::Directory => number(&path, b""),
                PartKind::Layer(slot) => inside(*slot, 0),
                PartKind::File { hash, .. } => number(&path, &hash.to_le_bytes()),
                PartKind::Symlink(target) => number(&path, target),
            };
            if !path.is_empty()
                && let Some(Outside { what: What::Directory(entries), .. }) = outside.get_mut(&parent)
            {
                entries.add(name.to_vec(), id);
            }
            let what = match kind {
                PartKind::Layer(slot) => {
                    if let Some(layer) = layers.get(&slot) {
                        shown.insert(slot, (Arc::clone(layer), parent));
                    }
                    continue;
                }
                PartKind::Directory => What::Directory(Directory::default()),
                PartKind::File { at, length, .. } => What::File(Content { file: Arc::clone(small), at, length }),
                PartKind::Symlink(target) => What::Symlink(target),
            };
            if matches!(what, What::Directory(_)) {
                paths.insert(path, id);
            }
            outside.insert(id, Outside { parent, meta, what });
        }
        let mut view =
            Self { outside: outside.into_iter().map(|(id, node)| (id, Arc::new(node))).collect(), layers: shown };
        if let Some(before) = before {
            for (id, node) in &before.outside {
                view.outside.entry(*id).or_insert_with(|| Arc::clone(node));
            }
            for (slot, (layer, parent)) in &before.layers {
                view.layers.entry(*slot).or_insert_with(|| (Arc::clone(layer), *parent));
            }
        }
        for (slot, layer) in layers {
            // Shown no more, but perhaps in use since before this process began.
            view.layers.entry(slot).or_insert((layer, ROOT));
        }
        view
    }

    /// The layer of a slot, to be shown in another view, too.
    #[must_use]
    pub fn layer(&self, slot: u32) -> Option<&Arc<Layer>> {
        self.layers.get(&slot).map(|(layer, _)| layer)
    }

    /// Directories whose entries are not those of `before`, and the names that changed in each.
    #[must_use]
    pub fn changes(&self, before: &Self) -> Vec<(u64, Vec<Vec<u8>>)> {
        let mut changes = Vec::new();
        for (id, node) in &before.outside {
            let (What::Directory(old), Some(new)) = (&node.what, self.outside.get(id)) else { continue };
            let What::Directory(new) = &new.what else { continue };
            let gone = old.by_name.iter().filter(|(name, id)| new.by_name.get(*name) != Some(*id));
            let come = new.by_name.iter().filter(|(name, _)| !old.by_name.contains_key(*name));
            let names: Vec<Vec<u8>> = gone.chain(come).map(|(name, _)| name.clone()).collect();
            if !names.is_empty() {
                changes.push((*id, names));
            }
        }
        changes
    }

    fn locate(&self, id: u64) -> Result<Place<'_>, Errno> {
        if id == ROOT || id & OUTSIDE != 0 {
            return self.outside.get(&id).map(|node| Place::Outside(node)).ok_or(Errno::STALE);
        }
        let slot = (id >> 32) as u32;
        let (layer, parent) = self.layers.get(&slot).ok_or(Errno::STALE)?;
        Ok(Place::Inside(layer, id as u32, slot, *parent))
    }

    /// What a name in a directory is.
    ///
    /// # Errors
    /// When there is no such directory.
    pub fn lookup(&self, directory: u64, name: &[u8]) -> Result<Option<Attributes>, Errno> {
        let found = match (self.locate(directory)?, name) {
            // From who has kept a handle of an inode that the kernel has forgotten.
            (_, b".") => Some(directory),
            (_, b"..") => Some(self.parent(directory)?),
            (Place::Outside(node), _) => match &node.what {
                What::Directory(entries) => entries.by_name.get(name).copied(),
                _ => return Err(Errno::NOTDIR),
            },
            (Place::Inside(layer, number, slot, _), _) => layer.find(number, name)?.map(|number| inside(slot, number)),
        };
        found.map(|id| self.attributes(id)).transpose()
    }

    fn parent(&self, id: u64) -> Result<u64, Errno> {
        Ok(match self.locate(id)? {
            Place::Outside(node) => node.parent,
            Place::Inside(_, 0, _, parent) => parent,
            Place::Inside(layer, number, slot, _) => inside(slot, layer.parent(number)?),
        })
    }

    /// What `stat` says.
    ///
    /// # Errors
    /// When there is no such inode.
    pub fn attributes(&self, id: u64) -> Result<Attributes, Errno> {
        let Outside { meta, what, .. } = match self.locate(id)? {
            Place::Outside(node) => node,
            Place::Inside(layer, number, ..) => return layer.attributes(number, id),
        };
        let (kind, size, links) = match what {
            What::Directory(entries) => (DIRECTORY, 4096, 2 + self.directories(entries)),
            What::File(content) => (REGULAR, content.length, 1),
            What::Symlink(target) => (SYMLINK, target.len() as u64, 1),
        };
        Ok(Attributes {
            node: id,
            mode: kind | u32::from(meta.mode),
            links,
            uid: meta.uid,
            gid: meta.gid,
            device: 0,
            size,
            blocks: blocks(kind, size),
            time: meta.mtime,
        })
    }

    fn directories(&self, entries: &Directory) -> u32 {
        let is_directory = |id: &&u64| match self.outside.get(*id) {
            Some(node) => matches!(node.what, What::Directory(_)),
            None => **id & OUTSIDE == 0,
        };
        entries.by_name.values().filter(is_directory).count() as u32
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// When it is none.
    pub fn target(&self, id: u64) -> Result<&[u8], Errno> {
        match self.locate(id)? {
            Place::Outside(Outside { what: What::Symlink(target), .. }) => Ok(target),
            Place::Outside(_) => Err(Errno::INVAL),
            Place::Inside(layer, number, ..) => layer.target(number),
        }
    }

    /// Extended attributes.
    ///
    /// # Errors
    /// When there is no such inode.
    pub fn xattrs(&self, id: u64) -> Result<&[Xattr], Errno> {
        match self.locate(id)? {
            Place::Outside(node) => Ok(&node.meta.xattrs),
            Place::Inside(layer, number, ..) => layer.xattrs(number),
        }
    }

    /// Reads a file's content at `offset` into `buffer`; gives how many bytes that were: fewer only at its end.
    ///
    /// # Errors
    /// When it is no file, or cannot be read.
    pub fn read(&self, id: u64, offset: u64, buffer: &mut [u8]) -> Result<usize, Failed> {
        let (size, at) = match self.locate(id)? {
            Place::Inside(layer, number, ..) => {
                let (start, size) = layer.content(number)?;
                (size, (Some(layer.body()?), None, start))
            }
            Place::Outside(Outside { what: What::File(content), .. }) => {
                (content.length, (None, Some(&content.file), content.at))
            }
            Place::Outside(_) => return Err(Errno::INVAL.into()),
        };
        let count = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..count];
        let done = match at {
            (Some(body), _, start) => body.read(start.saturating_add(offset), buffer),
            (_, Some(file), start) => file.read_exact_at(buffer, start + offset).map_err(|error| error.to_string()),
            _ => Ok(()),
        };
        done.map_err(Failed::Damaged).map(|()| count)
    }

    /// Hands out the entries of a directory from `offset` on, until `each` has enough: inode, where the next one is, name.
    ///
    /// # Errors
    /// When there is no such directory.
    pub fn list(&self, id: u64, offset: u64, mut each: impl FnMut(u64, u64, &[u8]) -> bool) -> Result<(), Errno> {
        let place = self.locate(id)?;
        if offset == 0 && !each(id, 1, b".") || offset <= 1 && !each(self.parent(id)?, FIRST, b"..") {
            return Ok(());
        }
        match place {
            Place::Outside(node) => {
                let What::Directory(entries) = &node.what else { return Err(Errno::NOTDIR) };
                for (place, (name, id)) in entries.order.range(offset.max(FIRST)..) {
                    if !each(*id, place + 1, name) {
                        break;
                    }
                }
            }
            Place::Inside(layer, number, slot, _) => {
                let mut at = offset.max(FIRST);
                while let Some((name, child)) = layer.entry(number, (at - FIRST) as usize)? {
                    at += 1;
                    if !each(inside(slot, child), at, name) {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Blocks of 4 KiB, and inodes.
    #[must_use]
    pub fn size(&self) -> (u64, u64) {
        let layers = || self.layers.values().map(|(layer, _)| layer);
        let blocks: u64 = layers().map(|layer| layer.blocks() / 8).sum();
        let inodes: u64 = layers().map(|layer| layer.len() as u64).sum();
        (blocks, inodes + self.outside.len() as u64)
    }
}

/// Why a file cannot be read.
#[derive(Debug)]
pub enum Failed {
    /// There is no such file.
    Asked(Errno),
    /// Its content is not there, or not what it was.
    Damaged(String),
}

impl From<Errno> for Failed {
    fn from(error: Errno) -> Self {
        Self::Asked(error)
    }
}

enum Place<'a> {
    Outside(&'a Outside),
    /// In a layer: the number there, the layer's slot, and the directory that its root is in.
    Inside(&'a Arc<Layer>, u32, u32, u64),
}

impl Directory {
    fn add(&mut self, name: Vec<u8>, id: u64) {
        // The kernel takes it for a signed number.
        let mut place = xxh3_64(&name) >> 2 | FIRST << 1;
        while self.order.get(&place).is_some_and(|(other, _)| *other != name) {
            place += 1;
        }
        self.order.insert(place, (name.clone(), id));
        self.by_name.insert(name, id);
    }
}

/// The number of what is at `path`, and has this content.
fn number(path: &[u8], content: &[u8]) -> u64 {
    if path.is_empty() { ROOT } else { xxh3_64(&[path, b"\0", content].concat()) >> 4 | OUTSIDE }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, b"old, new").unwrap();
        Arc::new(file)
    }

    /// A view of directories (names with a slash at the end) and files with a place, length and hash.
    fn view(parts: &[(&str, u64, u64, u64)], small: &Arc<File>, before: Option<&View>) -> View {
        let root = Part { path: Vec::new(), meta: Meta::default(), kind: PartKind::Directory };
        let part = |&(path, at, length, hash): &(&str, u64, u64, u64)| match path.strip_suffix('/') {
            Some(path) => Part { path: path.into(), meta: Meta::default(), kind: PartKind::Directory },
            None => Part { path: path.into(), meta: Meta::default(), kind: PartKind::File { at, length, hash } },
        };
        View::new(std::iter::once(root).chain(parts.iter().map(part)).collect(), small, HashMap::new(), before)
    }

    fn find(view: &View, directory: u64, name: &str) -> Option<u64> {
        view.lookup(directory, name.as_bytes()).unwrap().map(|attributes| attributes.node)
    }

    fn content(view: &View, id: u64) -> Vec<u8> {
        let mut buffer = [0; 100];
        let count = view.read(id, 0, &mut buffer).unwrap();
        buffer[..count].to_vec()
    }

    #[test]
    fn a_file_that_changes_is_another_and_the_old_one_is_read_to_its_end() {
        let small = small();
        let old = view(&[("d/", 0, 0, 0), ("d/f", 0, 3, 1), ("d/same", 0, 3, 7), ("gone", 0, 3, 1)], &small, None);
        let new =
            view(&[("d/", 0, 0, 0), ("d/f", 5, 3, 2), ("d/same", 0, 3, 7), ("come/", 0, 0, 0)], &small, Some(&old));
        let directory = find(&old, ROOT, "d").unwrap();
        assert_eq!(find(&new, ROOT, "d"), Some(directory));
        let [before, after] = [&old, &new].map(|view| find(view, directory, "f").unwrap());
        assert_ne!(before, after);
        assert_eq!(find(&old, directory, "same"), find(&new, directory, "same"));
        assert_eq!((content(&new, after), content(&new, before)), (b"new".to_vec(), b"old".to_vec()));
        let gone = find(&old, ROOT, "gone").unwrap();
        assert_eq!((find(&new, ROOT, "gone"), content(&new, gone)), (None, b"old".to_vec()));
        assert!(matches!(old.attributes(after), Err(Errno::STALE)));

        let mut changes = new.changes(&old);
        changes.sort();
        assert_eq!(changes, [(ROOT, vec![b"gone".to_vec(), b"come".to_vec()]), (directory, vec![b"f".to_vec()])]);
        assert!(new.changes(&new).is_empty());
        assert_eq!((old.attributes(ROOT).unwrap().links, new.attributes(ROOT).unwrap().links), (3, 4));
    }

    #[test]
    fn a_listing_goes_on_in_the_right_place_when_names_come_and_go() {
        let small = small();
        let names: Vec<String> = (0..50).map(|number| format!("name{number}")).collect();
        let of = |range: std::ops::Range<usize>, before: Option<&View>| {
            let parts: Vec<_> = names[range].iter().map(|name| (name.as_str(), 0, 3, 1)).collect();
            view(&parts, &small, before)
        };
        let old = of(0..40, None);
        let new = of(10..50, Some(&old));
        let list = |view: &View, from: u64, most: usize| {
            let mut all: Vec<(Vec<u8>, u64)> = Vec::new();
            view.list(ROOT, from, |_, next, name| {
                let is_taken = all.len() < most;
                if is_taken {
                    all.push((name.to_vec(), next));
                }
                is_taken
            })
            .unwrap();
            all
        };
        for some in 0..43 {
            let first = list(&old, 0, some);
            let rest = list(&new, first.last().map_or(0, |(_, next)| *next), usize::MAX);
            let mut all: Vec<&[u8]> = first.iter().chain(&rest).map(|(name, _)| name.as_slice()).collect();
            let count = all.len();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), count, "twice, after {some}");
            for name in &names[10..40] {
                assert!(all.contains(&name.as_bytes()), "{name} is missing after {some}");
            }
        }
        assert!(list(&new, 0, 100).iter().all(|(_, next)| *next < 1 << 63), "a signed number to the kernel");
    }

    #[test]
    fn what_is_no_directory_has_no_names() {
        let small = small();
        let view = view(&[("f", 0, 3, 1), ("lost/f", 0, 3, 1)], &small, None);
        let file = find(&view, ROOT, "f").unwrap();
        assert_eq!(view.lookup(file, b"x").unwrap_err(), Errno::NOTDIR);
        assert_eq!(view.list(file, 2, |_, _, _| true).unwrap_err(), Errno::NOTDIR);
        assert_eq!(view.target(file).unwrap_err(), Errno::INVAL);
        assert!(matches!(view.read(ROOT, 0, &mut [0]), Err(Failed::Asked(Errno::INVAL))));
        // A file whose directory is not there.
        assert_eq!(find(&view, ROOT, "lost"), None);
        for unknown in [0, 2, 5 << 32, OUTSIDE | 5] {
            assert_eq!(view.attributes(unknown).unwrap_err(), Errno::STALE);
        }
        assert_eq!(content(&view, file), b"old");
        assert_eq!(view.read(file, 3, &mut [0]).unwrap(), 0);
        assert_eq!(view.read(file, u64::MAX, &mut [0]).unwrap(), 0);
    }
}
