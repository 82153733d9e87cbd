//! A layer's tree as it is shown: one table, in which an entry takes about eighty bytes and its name.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use super::wire::Attributes;
use crate::entry::{Device, Meta, Timestamp, Xattr};
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
        for number in offset / chunk..(offset + buffer.len() as u64).div_ceil(chunk) {
            let (word, bit) = (&seen[(number / 64) as usize], 1 << (number % 64));
            if word.load(Ordering::Acquire) & bit == 0 {
                let at = number * chunk;
                let length = chunk.min(segment.body_len() - at);
                segment
                    .read(at, length, |_, _| Ok::<_, crate::segment::file::Error>(()))
                    .map_err(|error| error.to_string())?;
                word.fetch_or(bit, Ordering::Release);
            }
        }
        segment.read_unchecked(offset, buffer).map_err(|error| error.to_string())
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
    /// The tree of `index`, whose content is in `body`.
    #[must_use]
    pub fn new(index: &Index, body: Body, style: &Style<'_>) -> Self {
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
            layer.add(node, index.name(number as u32), number, style);
        }
        layer.sort();
        if !style.whiteouts.is_empty() {
            style.whiteouts.iter().for_each(|path| layer.add_whiteout(path, style.stamp));
            layer.sort();
        }
        layer
    }

    /// A layer of which nothing but its root is known any more.
    #[must_use]
    pub fn lost(root: &Meta) -> Self {
        let xattrs = if root.xattrs.is_empty() { Vec::new() } else { vec![root.xattrs.clone()] };
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
        let mut xattrs = if number == 0 { style.root.xattrs.clone() } else { inode.xattrs.clone() };
        if style.marks_opaque && inode.opaque && kind == DIRECTORY && !xattrs.iter().any(|(name, _)| name == OPAQUE) {
            xattrs.push((OPAQUE.to_vec(), b"y".to_vec()));
            xattrs.sort();
        }
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
        self.blocks += blocks(kind, size);
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
                mode: mode | kind as u16,
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

    fn node(&self, number: u32) -> Result<&Node, Errno> {
        self.nodes.get(number as usize).ok_or(if self.is_lost() { Errno::IO } else { Errno::STALE })
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
mod tests {
    use super::*;
    use crate::layer::tree::Inode;

    fn inode(kind: InodeKind) -> Inode {
        Inode {
            kind,
            mode: 0o644,
            uid: 1,
            gid: 2,
            mtime: Timestamp { seconds: 5, nanoseconds: 6 },
            stamped: false,
            opaque: false,
            whiteout: false,
            xattrs: Vec::new(),
        }
    }

    fn layer(index: &Index, marks_opaque: bool, whiteouts: &[Vec<u8>]) -> Layer {
        let root = Meta { mode: 0o555, xattrs: vec![(b"user.root".to_vec(), b"1".to_vec())], ..Meta::default() };
        let body = Body::Tar(Arc::new(tempfile::tempfile().unwrap()));
        Layer::new(index, body, &Style { stamp: 99, marks_opaque, whiteouts, root: &root })
    }

    /// `/a`, `/d/` (opaque), `/d/b` (a second name of `/a`), `/d/e/`, `/null`.
    fn index() -> Index {
        let mut index = Index::default();
        index.add(0, b"", None, inode(InodeKind::Directory));
        index.add(0, b"d", None, Inode { opaque: true, stamped: true, ..inode(InodeKind::Directory) });
        index.add(0, b"a", None, inode(InodeKind::Regular { size: 5000, data: 512 }));
        index.add(1, b"b", Some(2), inode(InodeKind::Regular { size: 5000, data: 512 }));
        index.add(1, b"e", None, inode(InodeKind::Directory));
        index.add(0, b"null", None, inode(InodeKind::CharDevice(Device { major: 0x1ff, minor: 0xabcde })));
        index
    }

    #[test]
    fn links_are_counted_and_names_are_found() {
        let layer = layer(&index(), true, &[]);
        let links = |number| layer.attributes(number, 7).unwrap().links;
        assert_eq!([links(0), links(1), links(2), links(4)], [3, 3, 2, 2]);
        assert_eq!(layer.find(0, b"a").unwrap(), layer.find(1, b"b").unwrap());
        assert_eq!(layer.find(1, b"a").unwrap(), None);
        assert_eq!(layer.find(2, b"a").unwrap_err(), Errno::NOTDIR);
        let names: Vec<&[u8]> = (0..4).map_while(|at| layer.entry(0, at).unwrap()).map(|(name, _)| name).collect();
        assert_eq!(names, [&b"a"[..], b"d", b"null"]);
        assert_eq!((layer.parent(4).unwrap(), layer.parent(0).unwrap()), (1, 0));
        let file = layer.attributes(2, 7).unwrap();
        assert_eq!((file.size, file.blocks, file.mode), (5000, 16, 0o100_644));
        let device = layer.attributes(5, 7).unwrap();
        // As in `MKDEV` of 32 bits: twelve bits of the major number between those of the minor.
        assert_eq!((device.device, device.size, device.blocks), (0xabc1_ffde, 0, 0));
        // The root is as the store has it, and what no header has dated is of the store's time.
        assert_eq!(layer.attributes(0, 7).unwrap().mode, 0o040_555);
        assert_eq!(layer.attributes(1, 7).unwrap().time, Timestamp::whole(99));
        assert_eq!(layer.xattrs(0).unwrap()[0].0, b"user.root");
        assert_eq!(layer.xattrs(1).unwrap(), [(OPAQUE.to_vec(), b"y".to_vec())]);
        assert_eq!(layer.attributes(9, 7).unwrap_err(), Errno::STALE);
    }

    #[test]
    fn opaque_directories_are_expanded() {
        let paths = [b"d/hidden".to_vec(), b"d/e/hidden".to_vec(), b"nowhere/hidden".to_vec()];
        let layer = layer(&index(), false, &paths);
        assert!(layer.xattrs(1).unwrap().is_empty());
        let names: Vec<&[u8]> = (0..9).map_while(|at| layer.entry(1, at).unwrap()).map(|(name, _)| name).collect();
        assert_eq!(names, [&b"b"[..], b"e", b"hidden"]);
        let whiteout = layer.find(4, b"hidden").unwrap().unwrap();
        let found = layer.attributes(whiteout, 7).unwrap();
        assert_eq!((found.mode, found.device, found.time), (CHAR_DEVICE, 0, Timestamp::whole(99)));
        // Counted once, though the order was made twice.
        assert_eq!([0, 1, 2].map(|number| layer.attributes(number, 7).unwrap().links), [3, 3, 2]);
    }

    #[test]
    fn of_a_layer_that_is_lost_only_the_root_is_there() {
        let root = Meta { mode: 0o555, uid: 3, ..Meta::default() };
        let layer = Layer::lost(&root);
        assert!(layer.is_lost() && layer.len() == 1);
        let found = layer.attributes(0, 7).unwrap();
        assert_eq!((found.mode, found.uid, found.links), (0o040_555, 3, 2));
        assert!(layer.xattrs(0).unwrap().is_empty());
        assert_eq!(layer.find(0, b"a").unwrap_err(), Errno::IO);
        assert_eq!(layer.entry(0, 0).unwrap_err(), Errno::IO);
        assert_eq!(layer.attributes(1, 7).unwrap_err(), Errno::IO);
        assert_eq!(layer.body().unwrap_err(), Errno::IO);
    }
}
