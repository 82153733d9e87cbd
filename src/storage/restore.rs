//! What `prepull-helper restore` needs in the machine: its manifest, and itself.
//!
//! Listed is what differs from the image after `busybox tar` and the rc script: what has extended attributes, a fraction of a
//! second, or a time that busybox does not set or disturbs. [`crate::wire`] says what a manifest is made of.

use std::fmt;
use std::sync::Arc;

use crate::digest::Digest;
use crate::entry::{Entry, Kind, Xattr};
use crate::layer::tree::InodeKind;
use crate::segment::index::Index;
use crate::wire;

/// The helper's name in the directory of the store's lists.
pub const HELPER: &str = "prepull-helper";

/// The manifest's name there.
pub const MANIFEST: &str = "manifest.tar";

/// The largest helper, in bytes: 16 MiB, ten times what one has.
pub const HELPER_MAX: u64 = 16 << 20;

/// The most bytes of attributes that an entry of a manifest has, as [`records_len`] counts them: the reader takes no more, with
/// two paths and a time.
const RECORDS_MAX: u64 = wire::read::RECORDS_MAX - (10 << 10);

/// The most program headers that are looked at. Linkers write a dozen.
const PROGRAM_HEADERS_MAX: u64 = 128;

/// A static `prepull-helper`.
#[derive(Clone)]
pub struct Helper(Arc<[u8]>);

impl fmt::Debug for Helper {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Helper({} bytes)", self.0.len())
    }
}

/// Why a file is no helper for a machine.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HelperError {
    /// It is too large.
    #[error("it has more than {} MiB", HELPER_MAX >> 20)]
    TooLarge,
    /// It is no program.
    #[error("it is not an ELF program")]
    NotElf,
    /// The machine may not have the libraries that it wants.
    #[error("it is not statically linked")]
    NotStatic,
    /// It is for other machines.
    #[error("it is not a program for {0}")]
    OtherArchitecture(String),
}

impl Helper {
    /// Takes a program as it is: that it is a helper, only running it would show.
    ///
    /// # Errors
    /// When it is no static program for `architecture` (`GOARCH`).
    pub fn new(bytes: Vec<u8>, architecture: &str) -> Result<Self, HelperError> {
        match static_machine(&bytes)? {
            machine if Some(machine) == machine_of(architecture) => Ok(Self(bytes.into())),
            _ => Err(HelperError::OtherArchitecture(architecture.to_owned())),
        }
    }

    /// The program.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Class, byte order and `e_machine` of a program (System V ABI, "ELF Header").
type Machine = (u8, u8, u16);

/// The machine of a GOARCH; `None` for those that this does not know.
fn machine_of(architecture: &str) -> Option<Machine> {
    const ALL: [(&str, Machine); 11] = [
        ("386", (1, 1, 3)),
        ("amd64", (2, 1, 62)),
        ("arm", (1, 1, 40)),
        ("arm64", (2, 1, 183)),
        ("loong64", (2, 1, 258)),
        ("mips64le", (2, 1, 8)),
        ("mipsle", (1, 1, 8)),
        ("ppc64", (2, 2, 21)),
        ("ppc64le", (2, 1, 21)),
        ("riscv64", (2, 1, 243)),
        ("s390x", (2, 2, 22)),
    ];
    ALL.iter().find(|(name, _)| *name == architecture).map(|(_, machine)| *machine)
}

/// The machine that a static program is for.
///
/// # Errors
/// When it is none: not ELF, or with a program header that names a loader.
pub fn static_machine(bytes: &[u8]) -> Result<Machine, HelperError> {
    const ET_EXEC: u64 = 2;
    const ET_DYN: u64 = 3;
    const PT_INTERP: u64 = 3;
    if bytes.len() as u64 > HELPER_MAX {
        return Err(HelperError::TooLarge);
    }
    let elf = |bytes: &[u8]| {
        let (class, order) = (*bytes.get(4)?, *bytes.get(5)?);
        if !bytes.starts_with(b"\x7fELF") || !matches!((class, order), (1 | 2, 1 | 2)) {
            return None;
        }
        let number = |at: u64, length: usize| {
            let field = bytes.get(usize::try_from(at).ok()?..)?.get(..length)?;
            let push = |value, byte: &u8| value << 8 | u64::from(*byte);
            Some(if order == 1 { field.iter().rev().fold(0, push) } else { field.iter().fold(0, push) })
        };
        let wide = class == 2;
        let (kind, machine) = (number(16, 2)?, number(18, 2)?);
        let start = if wide { number(24, 8)? } else { number(24, 4)? };
        let headers = if wide { number(32, 8)? } else { number(28, 4)? };
        let (size, count) = if wide { (number(54, 2)?, number(56, 2)?) } else { (number(42, 2)?, number(44, 2)?) };
        if !matches!(kind, ET_EXEC | ET_DYN) || start == 0 || count == 0 || count > PROGRAM_HEADERS_MAX {
            return None;
        }
        let mut is_static = true;
        for header in 0..count {
            is_static &= number(headers.checked_add(header * size)?, 4)? != PT_INTERP;
        }
        Some((is_static, (class, order, machine as u16)))
    };
    match elf(bytes) {
        Some((true, machine)) => Ok(machine),
        Some((false, _)) => Err(HelperError::NotStatic),
        None => Err(HelperError::NotElf),
    }
}

/// A store's manifest: which layers have something in it, and how long it is. Its entries are made again when it is written, since
/// images may have hundreds of thousands of symbolic links.
#[derive(Debug, Default)]
pub struct Manifest {
    /// Layers and their roots.
    layers: Vec<(Digest, Entry)>,
    length: u64,
}

impl Manifest {
    /// Takes in the layer `id`, whose root is `root`.
    pub fn add(&mut self, id: &Digest, index: &Index, root: &Entry, stamp: i64) {
        let mut headers = Vec::new();
        let before = self.length;
        for entry in entries(id, index, root, stamp) {
            headers.clear();
            wire::header(&entry, &mut headers);
            self.length += headers.len() as u64;
        }
        if self.length > before {
            self.layers.push((*id, root.clone()));
        }
    }

    /// Bytes of the manifest, without its end; 0: there is nothing to restore.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether there is nothing to restore.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The layers with something to restore, and their roots, in the order of the manifest.
    #[must_use]
    pub fn layers(&self) -> &[(Digest, Entry)] {
        &self.layers
    }
}

/// What is to be mended of a layer, by paths below `overlay`: first what is in directories, then these, the deepest first.
pub fn entries<'a>(
    id: &Digest,
    index: &'a Index,
    root: &'a Entry,
    stamp: i64,
) -> impl Iterator<Item = Entry> + use<'a> {
    let prefix = format!("{}/diff/", id.hex()).into_bytes();
    let nodes = index.nodes();
    let is_directory = |number: &u32| nodes[*number as usize].inode.kind == InodeKind::Directory;
    let disturbed = disturbed(index);
    let wanted = move |number: &u32| {
        let node = &nodes[*number as usize];
        let has_fraction = !node.inode.stamped && node.inode.mtime.nanoseconds != 0;
        // Nobody sees whiteouts.
        node.link_to.is_none()
            && !node.inode.whiteout
            && (disturbed[*number as usize]
                || has_fraction
                || matches!(node.inode.kind, InodeKind::Symlink(_))
                || !node.inode.xattrs.is_empty() && fit(&node.inode.xattrs))
    };
    let numbers = 0..nodes.len() as u32;
    let ordered = numbers.clone().filter(move |number| !is_directory(number));
    ordered.chain(numbers.rev().filter(is_directory)).filter(wanted).map(move |number| {
        let mut entry = index.entry(number, &prefix, stamp);
        if number == 0 {
            entry.meta = root.meta.clone();
        }
        if let Kind::Regular { size } = &mut entry.kind {
            *size = 0;
        }
        if !fit(&entry.meta.xattrs) {
            entry.meta.xattrs.clear();
        }
        entry
    })
}

/// The directories that busybox tar puts links into when everything else is done: hard links, and symbolic links that might lead
/// out (`libarchive/unsafe_symlink_target.c`, `create_or_remember_link`).
fn disturbed(index: &Index) -> Vec<bool> {
    let mut disturbed = vec![false; index.nodes().len()];
    for node in index.nodes() {
        let is_late = match &node.inode.kind {
            InodeKind::Symlink(target) => target.starts_with(b"/") || target.windows(2).any(|pair| pair == b".."),
            _ => false,
        };
        disturbed[node.parent as usize] |= is_late || node.link_to.is_some();
    }
    disturbed
}

/// Whether a manifest takes these attributes. No file system has so many for one file.
#[must_use]
pub fn fit(xattrs: &[Xattr]) -> bool {
    records_len(xattrs) <= RECORDS_MAX
}

/// Bytes of the attributes' records, at most: `SCHILY.xattr.`, a length, and what separates them.
fn records_len(xattrs: &[Xattr]) -> u64 {
    xattrs.iter().map(|(name, value)| (name.len() + value.len() + 24) as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Meta, Timestamp};
    use crate::layer::tar::Header;
    use crate::layer::tree::Tree;

    /// A header of a 64-bit program with these program headers.
    fn elf(machine: u16, types: &[u32]) -> Vec<u8> {
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        for (at, value) in [(16, 3), (18, machine), (24, 0x1000), (32, 64), (54, 56), (56, types.len() as u16)] {
            elf[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        for kind in types {
            elf.extend_from_slice(&kind.to_le_bytes());
            elf.resize(elf.len() + 52, 0);
        }
        elf
    }

    #[test]
    fn only_static_programs_for_the_machine_are_helpers() {
        let new = |bytes: &[u8], architecture| Helper::new(bytes.to_vec(), architecture).map(drop);
        let amd64 = elf(62, &[1, 2, 1]);
        assert_eq!(new(&amd64, "amd64"), Ok(()));
        for other in ["arm64", "386", "none"] {
            assert_eq!(new(&amd64, other), Err(HelperError::OtherArchitecture(other.to_owned())));
        }
        assert_eq!(new(&elf(62, &[1, 3]), "amd64"), Err(HelperError::NotStatic));
        assert_eq!(new(b"#!/bin/sh\n", "amd64"), Err(HelperError::NotElf));
        assert_eq!(new(&vec![0; HELPER_MAX as usize + 1], "amd64"), Err(HelperError::TooLarge));
        for length in 0..amd64.len() - 52 {
            assert_eq!(new(&amd64[..length], "amd64"), Err(HelperError::NotElf), "{length}");
        }
        let mut far = amd64.clone();
        far[32..40].fill(0xff);
        assert_eq!(new(&far, "amd64"), Err(HelperError::NotElf));
        assert_eq!(static_machine(&fs_err::read("/proc/self/exe").unwrap()).map(drop), Err(HelperError::TooLarge));
    }

    #[test]
    fn what_busybox_loses_is_listed_and_nothing_else() {
        let mut tree = Tree::new();
        let mut place = |typeflag, name: &str, link: &str, nanoseconds, xattrs: &[(&[u8], usize)]| {
            let xattrs = xattrs.iter().map(|(name, length)| (name.to_vec(), vec![b'v'; *length])).collect();
            let (name, link) = (name.as_bytes().to_vec(), link.as_bytes().to_vec());
            let mtime = Timestamp { seconds: 7, nanoseconds };
            let header = Header { typeflag, name, link, mtime, xattrs, mode: 0o755, ..Header::default() };
            tree.place(&header).unwrap();
        };
        place(b'5', "a", "", 0, &[]);
        place(b'0', "a/plain", "", 0, &[]);
        place(b'0', "a/exact", "", 5, &[]);
        place(b'2', "a/near", "plain", 0, &[]);
        place(b'5', "b", "", 0, &[]);
        place(b'2', "b/far", "x..y", 0, &[]);
        place(b'5', "b/c", "", 0, &[]);
        place(b'1', "b/c/second", "a/plain", 0, &[]);
        place(b'0', "able", "", 0, &[(b"user.note", 20)]);
        place(b'0', ".wh.gone", "", 0, &[]);
        let index = Index::of(&tree);
        let id = Digest::of(b"");
        let meta = Meta { mode: 0o555, ..Meta::default() };
        let root = Entry { path: b"elsewhere".to_vec(), meta: meta.clone(), kind: Kind::Directory };
        let below = |path: &[u8]| path.strip_prefix(format!("{}/diff", id.hex()).as_bytes()).unwrap().to_vec();
        let all: Vec<Entry> = entries(&id, &index, &root, 3).collect();
        let paths: Vec<_> = all.iter().map(|entry| String::from_utf8(below(&entry.path)).unwrap()).collect();
        assert_eq!(paths, ["/a/exact", "/a/near", "/b/far", "/able", "/b/c", "/b"]);
        let mut manifest = Manifest::default();
        manifest.add(&id, &index, &root, 3);
        let mut bytes = Vec::new();
        all.iter().for_each(|entry| wire::header(entry, &mut bytes));
        assert_eq!((manifest.len(), manifest.layers().len()), (bytes.len() as u64, 1));

        // A link in the layer's root: the root is listed as it will be, wherever its meta comes from.
        let mut tree = Tree::new();
        tree.place(&Header { typeflag: b'2', name: b"l".to_vec(), link: b"/".to_vec(), ..Header::default() }).unwrap();
        let index = Index::of(&tree);
        let all: Vec<Entry> = entries(&id, &index, &root, 3).collect();
        assert_eq!((below(&all[1].path), &all[1].meta), (Vec::new(), &meta));
    }

    #[test]
    fn attributes_that_no_reader_takes_are_not_listed() {
        let few: Vec<Xattr> = vec![(b"user.a".to_vec(), vec![0; 65536])];
        let many: Vec<Xattr> = (0..6000).map(|number| (format!("user.{number:04}").into_bytes(), Vec::new())).collect();
        assert!(fit(&few) && !fit(&many));
        let mut tar = Vec::new();
        let meta = Meta { xattrs: few, mtime: Timestamp { seconds: 1, nanoseconds: 1 }, ..Meta::default() };
        let path = [b"a/".repeat(2500), b"z".to_vec()].concat();
        wire::header(&Entry { path, meta, kind: Kind::Symlink(vec![b't'; 4095]) }, &mut tar);
        assert!(wire::read::Reader::new(&tar[..]).next_entry().unwrap().is_some());
    }
}
