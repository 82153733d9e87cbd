//! The index of a segment: every entry of the layer, so that nobody has to read the body to know what is in it.

use crate::entry::{Device, Entry, Kind, Meta, Timestamp};
use crate::layer::tree::{Inode, InodeKind, Tree, Xattrs};

/// An entry. Node 0 is the layer's root; parents come before children.
#[derive(Debug, Clone)]
pub struct Node {
    /// The directory it is in; the root is its own.
    pub parent: u32,
    name: (u32, u8),
    /// For a second name of an inode: the node that has its content.
    pub link_to: Option<u32>,
    /// Type and metadata; a second name has no attributes of its own.
    pub inode: Inode,
}

/// All entries of a layer.
#[derive(Debug, Default)]
pub struct Index {
    names: Vec<u8>,
    nodes: Vec<Node>,
}

/// The bytes are no index. Only a defect could cause it: the bytes have been checked against their checksum.
#[derive(Debug, thiserror::Error)]
#[error("malformed segment index")]
pub struct Malformed;

impl Index {
    /// A root and nothing else.
    #[must_use]
    pub fn bare() -> Self {
        let mut index = Self::default();
        index.push(0, b"", None, Inode::made_directory());
        index
    }

    /// The final tree of a layer.
    #[must_use]
    pub fn of(tree: &Tree) -> Self {
        let mut index = Self::default();
        let mut number_of_dirent = hashbrown::HashMap::new();
        let mut first_of_inode = hashbrown::HashMap::new();
        index.push(0, b"", None, tree.inode(0).clone());
        number_of_dirent.insert(0, 0);
        for dirent in tree.live() {
            let number = index.nodes.len() as u32;
            number_of_dirent.insert(dirent, number);
            let first = *first_of_inode.entry(tree.inode_number(dirent)).or_insert(number);
            let parent = number_of_dirent.get(&tree.parent(dirent)).copied().unwrap_or(0);
            let link_to = (first != number).then_some(first);
            let inode = tree.inode(dirent);
            let inode = if link_to.is_some() { without_xattrs(inode) } else { inode.clone() };
            index.push(parent, tree.name(dirent), link_to, inode);
        }
        index
    }

    /// Adds an entry, whose directory and, of a second name, first name have been added before.
    pub fn add(&mut self, parent: u32, name: &[u8], link_to: Option<u32>, inode: Inode) {
        let inode = if link_to.is_some() { without_xattrs(&inode) } else { inode };
        self.push(parent, name, link_to, inode);
    }

    fn push(&mut self, parent: u32, name: &[u8], link_to: Option<u32>, inode: Inode) {
        let start = self.names.len() as u32;
        self.names.extend_from_slice(name);
        self.nodes.push(Node { parent, name: (start, name.len() as u8), link_to, inode });
    }

    /// All entries; the root first.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Says where the content of a regular file stands in the body.
    pub fn set_data(&mut self, node: u32, offset: u64) {
        if let InodeKind::Regular { data, .. } = &mut self.nodes[node as usize].inode.kind {
            *data = offset;
        }
    }

    /// The name of a node in its directory; empty for the root.
    #[must_use]
    pub fn name(&self, node: u32) -> &[u8] {
        let (start, length) = self.nodes[node as usize].name;
        &self.names[start as usize..][..length.into()]
    }

    /// The path of a node below the layer's root; empty for the root.
    #[must_use]
    pub fn path(&self, node: u32) -> Vec<u8> {
        let mut chain = Vec::new();
        let mut at = node;
        while at != 0 {
            chain.push(at);
            at = self.nodes[at as usize].parent;
        }
        let mut path = Vec::new();
        for at in chain.into_iter().rev() {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(self.name(at));
        }
        path
    }

    /// A node as an entry at `prefix`, which ends with a slash unless empty. `stamp` is the time of what no header dated.
    #[must_use]
    pub fn entry(&self, node: u32, prefix: &[u8], stamp: i64) -> Entry {
        let Node { link_to, inode, .. } = &self.nodes[node as usize];
        let below = |node| {
            let mut path = prefix.to_vec();
            path.extend_from_slice(&self.path(node));
            if path.ends_with(b"/") {
                path.pop();
            }
            path
        };
        let kind = match (link_to, &inode.kind) {
            (Some(first), _) => Kind::Hardlink(below(*first)),
            (None, InodeKind::Directory) => Kind::Directory,
            (None, InodeKind::Regular { size, .. }) => Kind::Regular { size: *size },
            (None, InodeKind::Symlink(target)) => Kind::Symlink(target.to_vec()),
            (None, InodeKind::CharDevice(device)) => Kind::CharDevice(*device),
            (None, InodeKind::BlockDevice(device)) => Kind::BlockDevice(*device),
            (None, InodeKind::Fifo) => Kind::Fifo,
        };
        let meta = Meta {
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            mtime: if inode.stamped { Timestamp::whole(stamp) } else { inode.mtime },
            xattrs: if link_to.is_none() { inode.xattrs.to_vec() } else { Vec::new() },
        };
        Entry { path: below(node), meta, kind }
    }

    /// The index as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.nodes.len() * 32 + self.names.len());
        varint(&mut out, self.nodes.len() as u64);
        for number in 0..self.nodes.len() as u32 {
            self.encode_node(number, &mut out);
        }
        out
    }

    fn encode_node(&self, number: u32, out: &mut Vec<u8>) {
        let Node { parent, link_to, inode, .. } = &self.nodes[number as usize];
        let name = self.name(number);
        varint(out, u64::from(*parent));
        out.push(name.len() as u8);
        out.extend_from_slice(name);
        if let Some(first) = link_to {
            out.push(LINK);
            varint(out, u64::from(*first));
            return;
        }
        let flag = |set, bit| if set { bit } else { 0 };
        let flags = flag(inode.stamped, STAMPED) | flag(inode.opaque, OPAQUE) | flag(inode.whiteout, WHITEOUT);
        match &inode.kind {
            InodeKind::Directory => out.push(1 | flags),
            InodeKind::Regular { size, data } => {
                out.push(2 | flags);
                varint(out, *size);
                varint(out, *data);
            }
            InodeKind::Symlink(target) => {
                out.push(3 | flags);
                bytes(out, target);
            }
            InodeKind::CharDevice(device) | InodeKind::BlockDevice(device) => {
                out.push(if matches!(inode.kind, InodeKind::CharDevice(_)) { 4 } else { 5 } | flags);
                varint(out, u64::from(device.major));
                varint(out, u64::from(device.minor));
            }
            InodeKind::Fifo => out.push(6 | flags),
        }
        out.extend_from_slice(&inode.mode.to_le_bytes());
        varint(out, u64::from(inode.uid));
        varint(out, u64::from(inode.gid));
        out.extend_from_slice(&inode.mtime.seconds.to_le_bytes());
        varint(out, u64::from(inode.mtime.nanoseconds));
        varint(out, inode.xattrs.len() as u64);
        for (name, value) in &inode.xattrs {
            bytes(out, name);
            bytes(out, value);
        }
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are anything else.
    pub fn decode(encoded: &[u8]) -> Result<Self, Malformed> {
        let mut input = Input(encoded);
        let count = input.varint()?;
        // A node takes at least three bytes: a count that lies must not reserve memory.
        if count == 0 || count > encoded.len() as u64 / 3 {
            return Err(Malformed);
        }
        let mut index = Self::default();
        index.nodes.reserve(count as usize);
        for number in 0..count as u32 {
            let parent = input.number()?;
            let length = input.take(1)?[0];
            let name = input.take(length.into())?;
            if parent >= number.max(1) {
                return Err(Malformed);
            }
            let tag = input.take(1)?[0];
            if tag == LINK {
                let first = input.number()?;
                let target = index.nodes.get(first as usize).ok_or(Malformed)?;
                let inode = without_xattrs(&target.inode);
                index.push(parent, name, Some(first), inode);
            } else {
                let inode = input.inode(tag)?;
                index.push(parent, name, None, inode);
            }
        }
        if input.0.is_empty() { Ok(index) } else { Err(Malformed) }
    }
}

/// What a second name of an inode says of it. Copied along, the attributes of one inode would be a gigabyte in a layer with
/// ten thousand names for it.
fn without_xattrs(inode: &Inode) -> Inode {
    let Inode { mode, uid, gid, mtime, stamped, opaque, whiteout, .. } = *inode;
    Inode { kind: inode.kind.clone(), mode, uid, gid, mtime, stamped, opaque, whiteout, xattrs: Xattrs::new() }
}

const LINK: u8 = 7;
const STAMPED: u8 = 0x10;
const OPAQUE: u8 = 0x20;
const WHITEOUT: u8 = 0x40;

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn number(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.varint()?).map_err(|_| Malformed)
    }

    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
        self.take(length)
    }

    fn inode(&mut self, tag: u8) -> Result<Inode, Malformed> {
        let kind = match tag & 0xf {
            1 => InodeKind::Directory,
            2 => InodeKind::Regular { size: self.varint()?, data: self.varint()? },
            3 => InodeKind::Symlink(self.bytes()?.into()),
            device @ (4 | 5) => {
                let number = Device { major: self.number()?, minor: self.number()? };
                if device == 4 { InodeKind::CharDevice(number) } else { InodeKind::BlockDevice(number) }
            }
            6 => InodeKind::Fifo,
            _ => return Err(Malformed),
        };
        let mode = u16::from_le_bytes(self.array()?);
        let (uid, gid) = (self.number()?, self.number()?);
        let mtime = Timestamp { seconds: i64::from_le_bytes(self.array()?), nanoseconds: self.number()? };
        if mode > 0o7777 || mtime.nanoseconds >= 1_000_000_000 {
            return Err(Malformed);
        }
        let mut xattrs = Vec::new();
        for _ in 0..self.varint()? {
            xattrs.push((self.bytes()?.to_vec(), self.bytes()?.to_vec()));
        }
        Ok(Inode {
            kind,
            mode,
            uid,
            gid,
            mtime,
            stamped: tag & STAMPED != 0,
            opaque: tag & OPAQUE != 0,
            whiteout: tag & WHITEOUT != 0,
            xattrs: xattrs.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::tar::Header;
    use proptest::prelude::*;

    #[test]
    fn second_names_do_not_copy_attributes() {
        let mut tree = Tree::new();
        let xattrs = vec![(b"user.a".to_vec(), vec![0; 60_000])];
        let file = Header { typeflag: b'0', name: b"f".to_vec(), xattrs, ..Header::default() };
        tree.place(&file).unwrap();
        for number in 0..1000 {
            let name = format!("l{number}").into_bytes();
            tree.place(&Header { typeflag: b'1', name, link: b"f".to_vec(), ..Header::default() }).unwrap();
        }
        let index = Index::of(&tree);
        let decoded = Index::decode(&index.encode()).unwrap();
        for index in [index, decoded] {
            assert_eq!(index.nodes().iter().map(|node| node.inode.xattrs.len()).sum::<usize>(), 1);
        }
    }

    #[test]
    fn modes_and_times_that_no_file_has_are_refused() {
        let encoded = Index::of(&Tree::new()).encode();
        // Count, parent, name and type of the root come before its mode; its time before the number of its attributes.
        for (at, byte) in [(5, 0x10), (encoded.len() - 2, 0xff)] {
            let mut bad = encoded.clone();
            bad[at] = byte;
            if byte == 0xff {
                bad.splice(at + 1..at + 1, [0xff, 0xff, 0xff, 0x0f]);
            }
            assert!(Index::decode(&bad).is_err());
        }
    }

    proptest! {
        #[test]
        fn decoding_anything_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(index) = Index::decode(&bytes) {
                for node in 0..index.nodes().len() as u32 {
                    let _ = index.path(node);
                }
            }
        }
    }
}
