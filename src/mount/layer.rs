//! A layer's tree as it is shown: one table, in which an entry takes about eighty bytes and its name.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use super::wire::Attributes;
use crate::entry::{Device, Meta, Timestamp, Xattr};
use crate::layer::path::{NAME_MAX, PATH_MAX};
use crate::layer::tree::InodeKind;
use crate::segment::file::{CHUNK, Segment};
use crate::segment::index::Index;

/// File types, as in `st_mode`.
pub const DIRECTORY: u32 = 0o040_000;
/// Of a regular file.
pub const REGULAR: u32 = 0o100_000;
/// Of a symbolic link.
pub const SYMLINK: u32 = 0o120_000;
const CHAR_DEVICE: u32 = 0o020_000;
const BLOCK_DEVICE: u32 = 0o060_000;
const FIFO: u32 = 0o010_000;

/// No index.
const NONE: u32 = u32::MAX;

/// The size of a directory, on ext4 and here.
const DIRECTORY_SIZE: u64 = 4096;

/// What marks an opaque directory (Linux `Documentation/filesystems/overlayfs.rst`).
const OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// Where content of files is.
#[derive(Debug)]
pub enum Body {
    /// In a segment, of which those chunks have been checked whose bits are set.
    Segment(Box<Segment>, Vec<AtomicU64>),
    /// In a tar.
    Tar(Arc<File>),
}

impl Body {
    /// In a segment, of which nothing has been checked.
    #[must_use]
    pub fn of(segment: Segment) -> Self {
        let chunks = (segment.body_len()).div_ceil(CHUNK as u64);
        let seen = (0..chunks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self::Segment(Box::new(segment), seen)
    }

    /// Reads all of `buffer` at `offset`.
    ///
    /// # Errors
    /// When it cannot be read, or is not what was put there.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), String> {
        let (segment, seen) = match self {
            Self::Tar(file) => return file.read_exact_at(buffer, offset).map_err(|error| error.to_string()),
            Self::Segment(segment, seen) => (segment, seen),
        };
        let chunk = CHUNK as u64;
        if offset.saturating_add(buffer.len() as u64) > segment.body_len() {
            return Err("it lies outside its segment".to_owned());
        }
        let end = offset + buffer.len() as u64;
        for number in offset / chunk..end.div_ceil(chunk) {
            let at = number * chunk;
            let (from, to) = (at.max(offset), (at + chunk).min(end));
            let part = &mut buffer[(from - offset) as usize..(to - offset) as usize];
            let (word, bit) = (&seen[(number / 64) as usize], 1 << (number % 64));
            let read = if word.load(Ordering::Acquire) & bit == 0 {
                let length = chunk.min(segment.body_len() - at);
                let read = segment.read(at, length, |begin, checked| {
                    part.copy_from_slice(&checked[(from - begin) as usize..(to - begin) as usize]);
                    Ok::<_, crate::segment::file::Error>(())
                });
                read.map(|()| _ = word.fetch_or(bit, Ordering::Release))
            } else {
                segment.read_unchecked(from, part)
            };
            read.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

/// An entry.
#[derive(Debug)]
struct Node {
    /// Bytes; of a link the number of the entry that it is another name of; of a device its number; of a symbolic link the
    /// target's length.
    size: u64,
    /// Where the content is; of a directory where its entries are in the order, and how many; of a symbolic link where its target
    /// is among the names.
    data: u64,
    seconds: i64,
    nanoseconds: u32,
    uid: u32,
    gid: u32,
    parent: u32,
    name: u32,
    links: u32,
    xattrs: u32,
    mode: u16,
    name_len: u8,
    is_link: bool,
}

/// All entries of a layer; number 0 is its root.
#[derive(Debug)]
pub struct Layer {
    nodes: Vec<Node>,
    /// Names and targets.
    names: Vec<u8>,
    /// The entries of each directory, one directory after the other, by name.
    order: Vec<u32>,
    xattrs: Vec<Vec<Xattr>>,
    blocks: u64,
    /// Nothing to read from: nobody knows what is in this layer.
    body: Option<Body>,
}

/// How a tree is shown.
#[derive(Debug, Clone, Copy)]
pub struct Style<'a> {
    /// The time of what no header dated.
    pub stamp: i64,
    /// Whether opaque directories have an attribute that says so.
    pub marks_opaque: bool,
    /// Whiteouts beside those of the layer, by their paths.
    pub whiteouts: &'a [Vec<u8>],
    /// The root's metadata.
    pub root: &'a Meta,
}

impl Layer {
    /// The tree of `index`, whose content is in `body`. `None` when no file system could have such a tree: the kernel, and
    /// what is here, count upon it.
    #[must_use]
    pub fn new(index: &Index, body: Body, style: &Style<'_>) -> Option<Self> {
        let count = index.nodes().len() + style.whiteouts.len();
        let mut layer = Self {
            nodes: Vec::with_capacity(count),
            names: Vec::new(),
            order: Vec::new(),
            xattrs: Vec::new(),
            blocks: 0,
            body: Some(body),
        };
        for (number, node) in index.nodes().iter().enumerate() {
            let name = index.name(number as u32);
            if !layer.can_have(node, name, number) {
                return None;
            }
            layer.add(node, name, number, style);
        }
        layer.sort();
        if !style.whiteouts.is_empty() {
            style
                .whiteouts
                .iter()
                .collect::<BTreeSet<_>>()
                .into_iter()
                .for_each(|path| layer.add_whiteout(path, style.stamp));
            layer.sort();
        }
        let is_twice = |pair: &[u32]| {
            let (a, b) = (&layer.nodes[pair[0] as usize], &layer.nodes[pair[1] as usize]);
            a.parent == b.parent && layer.name(a) == layer.name(b)
        };
        (!layer.order.windows(2).any(is_twice)).then_some(layer)
    }

    /// Whether `node` can be the next one. That its name is the only one of its kind is seen later.
    fn can_have(&self, node: &crate::segment::index::Node, name: &[u8], number: usize) -> bool {
        let is_there = |number: u32, kind: &dyn Fn(u32) -> bool| {
            let found = self.nodes.get(number as usize);
            found.is_some_and(|found| !found.is_link && kind(u32::from(found.mode) & 0o170_000))
        };
        let is_kind_right = match (&node.link_to, &node.inode.kind) {
            (Some(first), _) => is_there(*first, &|kind| kind != DIRECTORY),
            (None, InodeKind::Regular { size, .. }) => i64::try_from(*size).is_ok(),
            (None, InodeKind::Symlink(target)) => is_target(target),
            (None, _) => true,
        };
        if number == 0 {
            return node.link_to.is_none() && node.inode.kind == InodeKind::Directory;
        }
        is_kind_right && is_name(name) && is_there(node.parent, &|kind| kind == DIRECTORY)
    }

    /// A layer of which nothing but its root is known any more.
    #[must_use]
    pub fn lost(root: &Meta) -> Self {
        let mut xattrs = root.xattrs.clone();
        tidy(&mut xattrs);
        let xattrs = if xattrs.is_empty() { Vec::new() } else { vec![xattrs] };
        let node = Node {
            size: DIRECTORY_SIZE,
            data: 0,
            seconds: root.mtime.seconds,
            nanoseconds: root.mtime.nanoseconds,
            uid: root.uid,
            gid: root.gid,
            parent: 0,
            name: 0,
            links: 2,
            xattrs: if xattrs.is_empty() { NONE } else { 0 },
            mode: root.mode | DIRECTORY as u16,
            name_len: 0,
            is_link: false,
        };
        Self { nodes: vec![node], names: Vec::new(), order: Vec::new(), xattrs, blocks: 0, body: None }
    }

    /// Whether nothing but its root is known.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.body.is_none()
    }

    fn add(&mut self, node: &crate::segment::index::Node, name: &[u8], number: usize, style: &Style<'_>) {
        let inode = &node.inode;
        let time = if inode.stamped { Timestamp::whole(style.stamp) } else { inode.mtime };
        let (uid, gid, mode) = match number {
            0 => (style.root.uid, style.root.gid, style.root.mode),
            _ => (inode.uid, inode.gid, inode.mode),
        };
        let (kind, size, data) = match &inode.kind {
            _ if node.link_to.is_some() => (0, u64::from(node.link_to.unwrap_or(0)), 0),
            InodeKind::Directory => (DIRECTORY, DIRECTORY_SIZE, 0),
            InodeKind::Regular { size, data } => (REGULAR, *size, *data),
            InodeKind::Symlink(target) => {
                let at = self.names.len() as u64;
                self.names.extend_from_slice(target);
                (SYMLINK, target.len() as u64, at)
            }
            InodeKind::CharDevice(device) => (CHAR_DEVICE, number_of(*device), 0),
            InodeKind::BlockDevice(device) => (BLOCK_DEVICE, number_of(*device), 0),
            InodeKind::Fifo => (FIFO, 0, 0),
        };
        let mut xattrs = if number == 0 { style.root.xattrs.clone() } else { inode.xattrs.to_vec() };
        if style.marks_opaque && inode.opaque && kind == DIRECTORY && !xattrs.iter().any(|(name, _)| name == OPAQUE) {
            xattrs.push((OPAQUE.to_vec(), b"y".to_vec()));
        }
        tidy(&mut xattrs);
        let xattrs = match self.xattrs.last() {
            _ if xattrs.is_empty() => NONE,
            // Files of one package often have the same.
            Some(last) if *last == xattrs => self.xattrs.len() as u32 - 1,
            _ => {
                self.xattrs.push(xattrs);
                self.xattrs.len() as u32 - 1
            }
        };
        if let Some(first) = node.link_to {
            self.nodes[first as usize].links += 1;
        }
        self.blocks = self.blocks.saturating_add(blocks(kind, size));
        self.push(
            Node {
                size,
                data,
                seconds: time.seconds,
                nanoseconds: time.nanoseconds,
                uid,
                gid,
                parent: node.parent,
                name: 0,
                links: 1,
                xattrs,
                mode: mode & 0o7777 | kind as u16,
                name_len: 0,
                is_link: node.link_to.is_some(),
            },
            name,
        );
    }

    fn push(&mut self, node: Node, name: &[u8]) {
        let at = self.names.len() as u32;
        self.names.extend_from_slice(name);
        self.nodes.push(Node { name: at, name_len: name.len() as u8, ..node });
    }

    /// The directory is one of the layer's.
    fn add_whiteout(&mut self, path: &[u8], stamp: i64) {
        let (directory, name) = crate::layer::path::split_last(path);
        let parts = directory.split(|&byte| byte == b'/').filter(|part| !part.is_empty());
        let found = parts.into_iter().try_fold(0, |parent, part| self.find(parent, part).ok().flatten());
        let Some(parent) = found else { return };
        if !is_name(name) || !matches!(self.find(parent, name), Ok(None)) {
            return;
        }
        self.push(
            Node {
                size: 0,
                data: 0,
                seconds: stamp,
                nanoseconds: 0,
                uid: 0,
                gid: 0,
                parent,
                name: 0,
                links: 1,
                xattrs: NONE,
                mode: CHAR_DEVICE as u16,
                name_len: 0,
                is_link: false,
            },
            name,
        );
    }

    /// Makes the order, and counts what is in each directory.
    fn sort(&mut self) {
        let mut order: Vec<u32> = (1..self.nodes.len() as u32).collect();
        order.sort_unstable_by(|&a, &b| {
            let (a, b) = (&self.nodes[a as usize], &self.nodes[b as usize]);
            a.parent.cmp(&b.parent).then_with(|| self.name(a).cmp(self.name(b)))
        });
        for node in self.nodes.iter_mut().filter(|node| u32::from(node.mode) & 0o170_000 == DIRECTORY) {
            // Its name, and its own entry `.`; then the `..` of each directory in it.
            (node.links, node.data) = (2, 0);
        }
        let mut at = 0;
        while at < order.len() {
            let parent = self.nodes[order[at] as usize].parent;
            let count = order[at..].iter().take_while(|&&child| self.nodes[child as usize].parent == parent).count();
            let is_directory = |&&child: &&u32| u32::from(self.nodes[child as usize].mode) & 0o170_000 == DIRECTORY;
            let directories = order[at..at + count].iter().filter(is_directory).count();
            let node = &mut self.nodes[parent as usize];
            node.data = (at as u64) << 32 | count as u64;
            node.links += directories as u32;
            at += count;
        }
        self.order = order;
    }

    fn name(&self, node: &Node) -> &[u8] {
        &self.names[node.name as usize..][..node.name_len.into()]
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none, which cannot be.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Units of 512 bytes that the tree would take on a disk.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Of an inode: the number of a second name is none.
    fn node(&self, number: u32) -> Result<&Node, Errno> {
        let none = if self.is_lost() { Errno::IO } else { Errno::STALE };
        self.nodes.get(number as usize).filter(|node| !node.is_link).ok_or(none)
    }

    /// The number of what the entry `number` is a name of.
    fn inode(&self, number: u32) -> u32 {
        let node = &self.nodes[number as usize];
        if node.is_link { node.size as u32 } else { number }
    }

    /// The numbers of the entries in a directory.
    fn children(&self, number: u32) -> Result<&[u32], Errno> {
        let node = self.node(number)?;
        if u32::from(node.mode) & 0o170_000 != DIRECTORY {
            return Err(Errno::NOTDIR);
        }
        if self.is_lost() {
            return Err(Errno::IO);
        }
        Ok(&self.order[(node.data >> 32) as usize..][..node.data as u32 as usize])
    }

    /// The inode called `name` in a directory.
    ///
    /// # Errors
    /// When there is no such directory.
    pub fn find(&self, directory: u32, name: &[u8]) -> Result<Option<u32>, Errno> {
        let children = self.children(directory)?;
        let found = children.binary_search_by(|&child| self.name(&self.nodes[child as usize]).cmp(name));
        Ok(found.ok().map(|at| self.inode(children[at])))
    }

    /// The entry number `at` of a directory: name and inode.
    ///
    /// # Errors
    /// When there is no such directory.
    pub fn entry(&self, directory: u32, at: usize) -> Result<Option<(&[u8], u32)>, Errno> {
        let child = self.children(directory)?.get(at);
        Ok(child.map(|&child| (self.name(&self.nodes[child as usize]), self.inode(child))))
    }

    /// The directory that an entry is in; the root is its own.
    ///
    /// # Errors
    /// When there is no such entry.
    pub fn parent(&self, number: u32) -> Result<u32, Errno> {
        Ok(self.node(number)?.parent)
    }

    /// What `stat` says; `id` is what the inode is called outside.
    ///
    /// # Errors
    /// When there is no such inode.
    pub fn attributes(&self, number: u32, id: u64) -> Result<Attributes, Errno> {
        let node = self.node(number)?;
        let kind = u32::from(node.mode) & 0o170_000;
        let is_device = kind == CHAR_DEVICE || kind == BLOCK_DEVICE;
        Ok(Attributes {
            node: id,
            mode: node.mode.into(),
            links: node.links,
            uid: node.uid,
            gid: node.gid,
            device: if is_device { node.size as u32 } else { 0 },
            size: if is_device { 0 } else { node.size },
            blocks: blocks(kind, node.size),
            time: Timestamp { seconds: node.seconds, nanoseconds: node.nanoseconds },
        })
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// When it is none.
    pub fn target(&self, number: u32) -> Result<&[u8], Errno> {
        let node = self.node(number)?;
        if u32::from(node.mode) & 0o170_000 != SYMLINK {
            return Err(Errno::INVAL);
        }
        Ok(&self.names[node.data as usize..][..node.size as usize])
    }

    /// Extended attributes, by name.
    ///
    /// # Errors
    /// When there is no such inode.
    pub fn xattrs(&self, number: u32) -> Result<&[Xattr], Errno> {
        let node = self.node(number)?;
        Ok(self.xattrs.get(node.xattrs as usize).map_or(&[], Vec::as_slice))
    }

    /// Where in the body a regular file's content is, and its length.
    ///
    /// # Errors
    /// When it is none.
    pub fn content(&self, number: u32) -> Result<(u64, u64), Errno> {
        let node = self.node(number)?;
        if u32::from(node.mode) & 0o170_000 != REGULAR {
            return Err(Errno::INVAL);
        }
        Ok((node.data, node.size))
    }

    /// Where the content is.
    ///
    /// # Errors
    /// When nobody knows.
    pub fn body(&self) -> Result<&Body, Errno> {
        self.body.as_ref().ok_or(Errno::IO)
    }
}

/// Whether a directory can have this name.
#[must_use]
pub fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && name.len() <= NAME_MAX && !name.contains(&b'/') && !name.contains(&0)
}

/// Whether a symbolic link can lead there.
#[must_use]
pub fn is_target(target: &[u8]) -> bool {
    !target.is_empty() && target.len() <= PATH_MAX && !target.contains(&0)
}

/// Whether a file can have an extended attribute of this name: `None` where no file system knows its namespace, `Some(false)` where
/// nothing follows on that (Linux, `fs/xattr.c`).
#[must_use]
pub fn is_attribute(name: &[u8]) -> Option<bool> {
    let space = [&b"user."[..], b"trusted.", b"security."].into_iter().find(|space| name.starts_with(space));
    match space {
        Some(space) => Some(name.len() > space.len()),
        None => matches!(name, b"system.posix_acl_access" | b"system.posix_acl_default").then_some(true),
    }
}

/// Makes of attributes what a file has: each once, the last that was given, in the order in which they are looked up. Others than
/// a file can have are left out, as unpacking leaves them out (containers/storage `pkg/archive/archive.go`: ENOTSUP is no error).
pub fn tidy(xattrs: &mut Vec<Xattr>) {
    xattrs.retain(|(name, _)| is_attribute(name) == Some(true) && name.len() <= NAME_MAX && !name.contains(&0));
    if !xattrs.is_sorted_by(|(a, _), (b, _)| a < b) {
        xattrs.reverse();
        xattrs.sort_by(|(a, _), (b, _)| a.cmp(b));
        xattrs.dedup_by(|(a, _), (b, _)| a == b);
    }
}

/// The kernel's `new_encode_dev`.
fn number_of(device: Device) -> u64 {
    let Device { major, minor } = device;
    (minor & 0xff | major << 8 | (minor & !0xff) << 12).into()
}

/// What a file takes on a file system with blocks of 4 KiB. A short symbolic link is in its inode.
#[must_use]
pub fn blocks(kind: u32, size: u64) -> u64 {
    match kind {
        REGULAR | DIRECTORY => size.div_ceil(4096) * 8,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
