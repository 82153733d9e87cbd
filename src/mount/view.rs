//! What is shown: a store, as a tree of numbered inodes.
//!
//! ```text
//!  1                       the graphroot
//!  1<<60 | hash            its directories, by path; its small files, by path and content
//!  slot<<32 | entry        layers: the slot follows from the layer's id, the entry is its place in the layer's index
//! ```
//!
//! So a number follows from what it stands for: a new worker, and another mount of the same images, give the same ones. What
//! changes (images.json) gets another number, and who has the old one open reads it to its end: the next view still has it. Layers are
//! never taken away: what is not shown any more can still be reached by who has it, as the containers that run on it.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_64;

use super::layer::{DIRECTORY, Layer, REGULAR, SYMLINK, blocks, is_name, is_target, tidy};
use super::wire::{Attributes, ROOT};
use crate::digest::Digest;
use crate::entry::{Meta, Xattr};
use crate::layer::path::{NAME_MAX, split_last};

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

/// Layers, by their slots.
#[derive(Debug, Default)]
pub struct Layers {
    /// Those that can be shown.
    pub there: HashMap<u32, Arc<Layer>>,
    /// Ids of those that have not been fetched.
    pub absent: HashMap<u32, String>,
}

/// A view.
#[derive(Debug, Default)]
pub struct View {
    outside: HashMap<u64, Arc<Outside>>,
    /// What was shown before this, which somebody may have open.
    before: HashMap<u64, Arc<Outside>>,
    layers: HashMap<u32, (Arc<Layer>, u64)>,
    absent: HashMap<u32, String>,
}

impl View {
    /// The view of these parts, whose files are in `small`, and layers, which takes the place of `before`. Directories come
    /// before what is in them.
    #[must_use]
    pub fn new(parts: Vec<Part>, small: &Arc<File>, layers: Layers, before: Option<&Self>) -> Self {
        let Layers { there: layers, absent } = layers;
        let mut paths: HashMap<Vec<u8>, u64> = HashMap::new();
        let mut outside: HashMap<u64, Outside> = HashMap::new();
        let mut shown: HashMap<u32, (Arc<Layer>, u64)> = HashMap::new();
        for Part { path, mut meta, kind } in parts {
            let (directory, name) = split_last(&path);
            let parent = if path.is_empty() { Some(ROOT) } else { paths.get(directory).copied() };
            // A store has no files outside its directories; a tar of somebody else may.
            let Some(parent) = parent else { continue };
            let is_odd = match &kind {
                PartKind::Directory => paths.contains_key(&path),
                PartKind::Symlink(target) => path.is_empty() || !is_target(target),
                PartKind::Layer(_) | PartKind::File { .. } => path.is_empty(),
            };
            if is_odd || !path.is_empty() && !is_name(name) {
                continue;
            }
            tidy(&mut meta.xattrs);
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
            } else {
                paths.remove(&path);
            }
            outside.insert(id, Outside { parent, meta, what });
        }
        let mut view = Self {
            outside: outside.into_iter().map(|(id, node)| (id, Arc::new(node))).collect(),
            before: HashMap::new(),
            layers: shown,
            absent,
        };
        if let Some(before) = before {
            view.before.clone_from(&before.outside);
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

    /// The layer that must be fetched before it can be said what this name is.
    #[must_use]
    pub fn awaits(&self, directory: u64, name: &[u8]) -> Option<(u32, &str)> {
        if self.absent.is_empty() {
            return None;
        }
        let What::Directory(entries) = &self.outside.get(&directory)?.what else { return None };
        let slot = (entries.by_name.get(name)? >> 32) as u32;
        self.absent.get(&slot).map(|layer| (slot, layer.as_str()))
    }

    /// The same of an inode that is in a directory: then nothing is known of it but that it is one, too.
    #[must_use]
    pub fn is_awaited(&self, id: u64) -> bool {
        id & OUTSIDE == 0 && self.absent.contains_key(&((id >> 32) as u32))
    }

    /// Whether any layer has not been fetched.
    #[must_use]
    pub fn lacks_any(&self) -> bool {
        !self.absent.is_empty()
    }

    /// Whether the layer of this slot is that one, and has not been fetched.
    #[must_use]
    pub fn lacks_layer(&self, slot: u32, layer: &str) -> bool {
        self.absent.get(&slot).is_some_and(|id| id == layer)
    }

    /// Whether a layer of this slot has not been fetched.
    #[must_use]
    pub fn lacks(&self, slot: u32) -> bool {
        self.absent.contains_key(&slot)
    }

    /// Names in directories that are not what they were in `before`, in the order in which the kernel is to be told: locks come
    /// last, since who reads them believes that it has seen the rest.
    #[must_use]
    pub fn changes(&self, before: &Self) -> Vec<(u64, Vec<u8>)> {
        let mut changes = Vec::new();
        for (id, node) in &before.outside {
            let (What::Directory(old), Some(new)) = (&node.what, self.outside.get(id)) else { continue };
            let What::Directory(new) = &new.what else { continue };
            let gone = old.by_name.iter().filter(|(name, id)| new.by_name.get(*name) != Some(*id));
            let come = new.by_name.iter().filter(|(name, _)| !old.by_name.contains_key(*name));
            changes.extend(gone.chain(come).map(|(name, _)| (*id, name.clone())));
        }
        let [layers, images] = [&b"overlay-layers"[..], b"overlay-images"].map(|path| number(path, b""));
        // Layers before the images that have them.
        changes.sort_by_cached_key(|(id, name)| {
            (name.ends_with(b".lock"), *id == images, *id == layers, *id, name.clone())
        });
        changes
    }

    fn locate(&self, id: u64) -> Result<Place<'_>, Errno> {
        if id == ROOT || id & OUTSIDE != 0 {
            let found = self.outside.get(&id).or_else(|| self.before.get(&id));
            return found.map(|node| Place::Outside(node)).ok_or(Errno::STALE);
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
            // The kernel passes on up to 1,024 bytes.
            (_, name) if name.len() > NAME_MAX => return Err(Errno::NAMETOOLONG),
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
        if count == 0 {
            return Ok(0);
        }
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
        let blocks = layers().fold(0_u64, |sum, layer| sum.saturating_add(layer.blocks() / 8));
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
mod tests;
