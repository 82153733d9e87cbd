//! From a layer's blob to its segment, in one pass.
//!
//! Entries go into the body as they come. Only when a later entry changes an earlier one (a replaced file, a directory's header
//! after its children, a hardlink with metadata of its own) is the body written again from the final tree: rare, and then
//! the content is copied from the first body, not inflated again.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, Write};

use hashbrown::HashSet;
use xxhash_rust::xxh3::xxh3_128;

use super::file::{Facts, OpaqueHeader};
use super::index::Index;
use super::place::{Slot, Ticket};
use super::writer::{WriteError, Writer};
use crate::compression::SizeLimit;
use crate::digest::Digest;
use crate::entry::{Entry, Kind, Meta, Timestamp};
use crate::layer::inflate::{Inflated, inflate};
use crate::layer::path::clean;
use crate::layer::tar::{Header, TarError, TarReader};
use crate::layer::tar_split::{TAIL_CHUNK, TarSplit};
use crate::layer::tree::{DirentId, Inode, InodeKind, PlaceError, Placed, Tree, WHITEOUT_PREFIX};
use crate::source::Descriptor;
use crate::wire;

/// Compressed tar-split that is kept in memory before it goes to a file.
const SPLIT_IN_MEMORY: usize = 1 << 20;

/// What is wrong with a layer, or with the place where its segment is written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tar, or the blob below it.
    #[error("{}{error}", after(.entry))]
    Tar {
        /// The last entry that was read.
        entry: Option<String>,
        /// What is wrong.
        error: TarError,
    },
    /// An entry that cannot be unpacked.
    #[error("entry {entry:?}: {error}")]
    Entry {
        /// Its name in the tar.
        entry: String,
        /// Why not.
        error: PlaceError,
    },
    /// One path twice, which tar-split does not allow (`ErrDuplicatePath`).
    #[error("entry {0:?}: the layer has this path twice")]
    Duplicate(String),
    /// The uncompressed bytes are not those of the config.
    #[error("the layer's diffID is {found}, but the image's config says {expected}")]
    DiffId {
        /// From the config.
        expected: Digest,
        /// Of the bytes.
        found: Digest,
    },
    /// The segment cannot be written.
    #[error("writing the converted layer: {0}")]
    Output(#[source] io::Error),
    /// The tar that has its body cannot be written.
    #[error("writing the tar: {0}")]
    Place(#[source] io::Error),
}

/// Tells the two files apart.
fn output(error: io::Error) -> Error {
    match error.downcast::<WriteError>() {
        Ok(WriteError::Tar(error)) => Error::Place(error),
        Ok(WriteError::Own(error)) | Err(error) => Error::Output(error),
    }
}

fn after(entry: &Option<String>) -> String {
    entry.as_ref().map(|entry| format!("after entry {entry:?}: ")).unwrap_or_default()
}

/// What is to be converted.
#[derive(Debug)]
pub struct Job<'a> {
    /// The blob.
    pub descriptor: &'a Descriptor,
    /// What it must be when uncompressed.
    pub diff_id: Digest,
    /// Where the layer's root lies in the output: `…/overlay/<id>/diff/`.
    pub prefix: &'a [u8],
    /// The segment's key.
    pub key: Digest,
    /// A directory for scratch files.
    pub scratch: &'a std::path::Path,
    /// Where the body may go.
    pub slot: &'a Slot,
    /// The limit for the uncompressed size.
    pub limit: SizeLimit,
}

/// Converts `blob` into a segment, when it has its turn; until then it is only read ahead. `new_file` gives empty files
/// for the segment, the last one is the segment's. Nothing counts before `Ok`.
///
/// # Errors
/// When the blob does not verify, cannot be unpacked, or the segment cannot be written.
pub fn convert(
    blob: Box<dyn Read + Send>,
    job: &Job<'_>,
    ticket: Ticket<'_>,
    new_file: &dyn Fn() -> io::Result<File>,
) -> Result<(), Error> {
    std::thread::scope(|scope| {
        let inflated = inflate(scope, blob, job.descriptor, job.limit)
            .map_err(|error| Error::Tar { entry: None, error: error.into() })?;
        let _turn = ticket.take();
        let split = tempfile::spooled_tempfile_in(SPLIT_IN_MEMORY, job.scratch);
        let mut pass = Pass {
            job,
            tree: Tree::new(),
            body: Writer::new(new_file().map_err(Error::Output)?, &job.key, job.slot.clone()).map_err(Error::Output)?,
            split: TarSplit::new(split),
            seen: HashSet::new(),
            uids: BTreeSet::new(),
            gids: BTreeSet::new(),
            directories: Vec::new(),
            headers: Vec::new(),
            last: 0,
        };
        let mut reader = TarReader::new(inflated);
        pass.lead().map_err(output)?;
        pass.read(&mut reader)?;
        pass.tree
            .settle()
            .map_err(|(path, error)| Error::Entry { entry: String::from_utf8_lossy(&path).into_owned(), error })?;
        let inflation =
            reader.into_inner().finish().map_err(|error| Error::Tar { entry: None, error: error.into() })?;
        if inflation.diff_id != job.diff_id {
            return Err(Error::DiffId { expected: job.diff_id, found: inflation.diff_id });
        }
        pass.finish(inflation.compression as u8, inflation.size, new_file)
    })
}

struct Pass<'a> {
    job: &'a Job<'a>,
    tree: Tree,
    body: Writer,
    split: TarSplit<tempfile::SpooledTempFile>,
    seen: HashSet<u128>,
    uids: BTreeSet<u32>,
    gids: BTreeSet<u32>,
    /// Start and length of the headers of each directory but the root, in the order of the index.
    directories: Vec<(u64, u64)>,
    headers: Vec<u8>,
    /// The name that was written last.
    last: DirentId,
}

impl Pass<'_> {
    fn read(&mut self, reader: &mut TarReader<Inflated>) -> Result<(), Error> {
        let mut last = None;
        loop {
            let header = reader.next_header().map_err(|error| Error::Tar { entry: last.take(), error })?;
            let Some(header) = header else { break };
            self.split.segment(reader.raw()).map_err(output)?;
            reader.clear_raw();
            let size = self.entry(&header, reader)?;
            last = Some(shown(&header));
            // A header without content may still carry a size: tar-split records it with the CRC of nothing.
            let (size, crc) = size;
            self.split.file(&header.name, size, crc).map_err(output)?;
        }
        self.split.segment(reader.raw()).map_err(output)?;
        let (split, mut piece) = (&mut self.split, Vec::new());
        reader.drain(|mut bytes| {
            while !bytes.is_empty() {
                let (part, rest) = bytes.split_at(bytes.len().min(TAIL_CHUNK - piece.len()));
                piece.extend_from_slice(part);
                bytes = rest;
                if piece.len() == TAIL_CHUNK {
                    split.segment(&piece).map_err(output)?;
                    piece.clear();
                }
            }
            Ok::<_, Error>(())
        })?;
        split.segment(&piece).map_err(output)
    }

    /// Places one entry and writes it to the body; gives the size and CRC for tar-split.
    fn entry(&mut self, header: &Header, reader: &mut TarReader<Inflated>) -> Result<(u64, u64), Error> {
        if !self.seen.insert(xxh3_128(&clean(&header.name))) {
            return Err(Error::Duplicate(shown(header)));
        }
        // Go's path.Base of a name with a trailing slash is the component before it.
        let base = header.name.split(|&byte| byte == b'/').rfind(|part| !part.is_empty()).unwrap_or_default();
        if !base.starts_with(WHITEOUT_PREFIX) {
            self.uids.insert(header.uid as u32);
            self.gids.insert(header.gid as u32);
        }
        let was_claimed = self.tree.root_claimed();
        let placed = self.tree.place(header).map_err(|error| Error::Entry { entry: shown(header), error })?;
        if self.tree.root_claimed() && !was_claimed {
            self.lead().map_err(output)?;
        }
        for parent in self.tree.take_created_parents() {
            self.write_new(parent).map_err(output)?;
        }
        let mut to_body = false;
        if let Placed::New(dirent) = placed {
            self.write_new(dirent).map_err(output)?;
            let position = self.body.position();
            if let (b'0', InodeKind::Regular { data, .. }) = (header.typeflag, &mut self.tree.inode_mut(dirent).kind) {
                *data = position;
                to_body = true;
            }
        }
        if header.size == 0 {
            return Ok((0, 0));
        }
        let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64GoIso);
        loop {
            let fail = |error| Error::Tar { entry: Some(shown(header)), error };
            let part = reader.content().map_err(fail)?;
            if part.is_empty() {
                break;
            }
            crc.update(part);
            if to_body {
                self.body.write_all(part).map_err(output)?;
            }
            let count = part.len();
            reader.consume(count);
        }
        if to_body {
            pad(&mut self.body, header.size).map_err(output)?;
        }
        // The CRC of nothing is 0; the crate's initial state is not.
        let crc = if header.has_body() { crc.finalize() } else { 0 };
        Ok((header.size, crc))
    }

    /// Says how long the root's header will be: it stands before the body, and who puts it there knows it only later. In most
    /// layers that have an entry for it, that is the first one.
    fn lead(&mut self) -> io::Result<()> {
        let Inode { mode, uid, gid, mtime, stamped, ref xattrs, .. } = *self.tree.inode(0);
        let mtime = if stamped { Timestamp::whole(0) } else { mtime };
        let path = self.job.prefix.strip_suffix(b"/").unwrap_or(self.job.prefix).to_vec();
        let meta = Meta { mode, uid, gid, mtime, xattrs: xattrs.to_vec() };
        self.headers.clear();
        wire::header(&Entry { path, meta, kind: Kind::Directory }, &mut self.headers);
        self.body.lead(self.headers.len() as u64)
    }

    fn write_new(&mut self, dirent: DirentId) -> io::Result<()> {
        let start = self.body.position();
        self.write_header(dirent)?;
        if self.tree.inode(dirent).kind == InodeKind::Directory {
            self.directories.push((start, self.body.position() - start));
        }
        Ok(())
    }

    fn write_header(&mut self, dirent: DirentId) -> io::Result<()> {
        let parent = self.tree.parent(dirent);
        if is_made_late(&self.tree.inode(dirent).kind) && !is_within(self.last, parent, |at| self.tree.parent(at)) {
            self.write_header(parent)?;
        }
        self.last = dirent;
        let first = self.tree.first_name(dirent);
        let inode = self.tree.inode(dirent);
        let below = |dirent| [self.job.prefix, &self.tree.path(dirent)].concat();
        let kind = match &inode.kind {
            _ if first != dirent => Kind::Hardlink(below(first)),
            InodeKind::Directory => Kind::Directory,
            InodeKind::Regular { size, .. } => Kind::Regular { size: *size },
            InodeKind::Symlink(target) => Kind::Symlink(target.to_vec()),
            InodeKind::CharDevice(device) => Kind::CharDevice(*device),
            InodeKind::BlockDevice(device) => Kind::BlockDevice(*device),
            InodeKind::Fifo => Kind::Fifo,
        };
        // A second name says nothing of the inode's attributes: the first one has.
        let xattrs = if first == dirent { inode.xattrs.to_vec() } else { Vec::new() };
        // A body that is read back from a tar with the store's time has to be what it was before.
        let mtime = if inode.stamped { Timestamp::whole(0) } else { inode.mtime };
        let meta = Meta { mode: inode.mode, uid: inode.uid, gid: inode.gid, mtime, xattrs };
        let entry = Entry { path: below(dirent), meta, kind };
        write_entry(&mut self.body, &entry, inode.stamped, &mut self.headers)
    }

    fn finish(mut self, compression: u8, diff_size: u64, new_file: &dyn Fn() -> io::Result<File>) -> Result<(), Error> {
        let mut index = Index::of(&self.tree);
        if self.tree.is_disturbed() {
            self.rewrite(&mut index, new_file).map_err(output)?;
        }
        let directories =
            index.nodes().iter().enumerate().skip(1).filter(|(_, node)| node.inode.kind == InodeKind::Directory);
        let opaque = directories.zip(self.directories).filter(|((_, node), _)| node.inode.opaque);
        let opaque = opaque.map(|((node, _), (start, length))| OpaqueHeader { node: node as u32, start, length });
        let mut facts = Facts {
            blob: self.job.descriptor.digest,
            blob_size: self.job.descriptor.size,
            diff_id: self.job.diff_id,
            diff_size,
            compression,
            uids: self.uids.into_iter().collect(),
            gids: self.gids.into_iter().collect(),
            root_claimed: self.tree.root_claimed(),
            stamped: Vec::new(),
            opaque: opaque.collect(),
            warnings: warnings(&self.tree),
            // The writer knows it.
            body: None,
        };
        let close = || {
            self.body.end_body()?;
            let mut split = self.split.finish()?;
            split.rewind()?;
            let split = io::copy(&mut split, &mut self.body)?;
            self.body.write_all(&index.encode())?;
            let written = self.body.finish()?;
            facts.stamped = written.stamped().to_vec();
            written.seal(split, &facts)
        };
        close().map_err(output)
    }

    /// Writes the body again, from the final tree.
    fn rewrite(&mut self, index: &mut Index, new_file: &dyn Fn() -> io::Result<File>) -> io::Result<()> {
        // In the tar the second body would overwrite the first one.
        let (file, slot) = (new_file()?, Slot::none());
        let second = Writer::new(file, &self.job.key, slot)?;
        let first = std::mem::replace(&mut self.body, second).finish()?;
        self.directories.clear();
        let mut buffer = vec![0; 256 << 10];
        let mut last = 0;
        for number in 1..index.nodes().len() as u32 {
            let node = &index.nodes()[number as usize];
            if node.inode.whiteout {
                continue;
            }
            let (parent, parent_of) = (node.parent, |at: u32| index.nodes()[at as usize].parent);
            if is_made_late(&node.inode.kind) && !is_within(last, parent, parent_of) {
                let stamped = index.nodes()[parent as usize].inode.stamped;
                let entry = index.entry(parent, self.job.prefix, 0);
                write_entry(&mut self.body, &entry, stamped, &mut self.headers)?;
            }
            last = number;
            let entry = index.entry(number, self.job.prefix, 0);
            let start = self.body.position();
            write_entry(&mut self.body, &entry, node.inode.stamped, &mut self.headers)?;
            if node.inode.kind == InodeKind::Directory {
                self.directories.push((start, self.body.position() - start));
            }
            if let (None, InodeKind::Regular { size, data }) = (node.link_to, &node.inode.kind) {
                let (size, data) = (*size, *data);
                index.set_data(number, self.body.position());
                let mut copied = 0;
                while copied < size {
                    let part = buffer.len().min(usize::try_from(size - copied).unwrap_or(usize::MAX));
                    first.read_back(data + copied, &mut buffer[..part])?;
                    self.body.write_all(&buffer[..part])?;
                    copied += part as u64;
                }
                pad(&mut self.body, size)?;
            }
        }
        Ok(())
    }
}

/// Whether GNU tar makes it only at the end, since it might lead out of the tree (`extract.c`, `extract_symlink`). It then
/// restores its directory's time if it knows it: the directory must have been named since it was last left.
fn is_made_late(kind: &InodeKind) -> bool {
    let InodeKind::Symlink(target) = kind else { return false };
    target.starts_with(b"/") || target.split(|&byte| byte == b'/').any(|part| part == b"..")
}

/// Whether `directory` is `at` or above it. Number 0 is the root.
fn is_within(mut at: u32, directory: u32, parent: impl Fn(u32) -> u32) -> bool {
    while at != directory && at != 0 {
        at = parent(at);
    }
    at == directory
}

fn write_entry(body: &mut Writer, entry: &Entry, is_stamped: bool, headers: &mut Vec<u8>) -> io::Result<()> {
    headers.clear();
    wire::header(entry, headers);
    body.header(headers, is_stamped && !matches!(entry.kind, Kind::Hardlink(_)))
}

fn pad(body: &mut Writer, size: u64) -> io::Result<()> {
    body.write_all(&[0; wire::BLOCK as usize][..wire::padding(size) as usize])
}

fn warnings(tree: &Tree) -> Vec<String> {
    let dropped = tree.dropped_xattrs();
    let lossy = String::from_utf8_lossy;
    let shown: Vec<_> =
        dropped.first.iter().map(|(path, name)| format!("{:?} ({})", lossy(path), lossy(name))).collect();
    let more = dropped.count - shown.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let text = || format!("attributes left out that would steer the overlay mount: {}{more}", shown.join(", "));
    (dropped.count > 0).then(text).into_iter().collect()
}

fn shown(header: &Header) -> String {
    String::from_utf8_lossy(&header.name).into_owned()
}

impl From<TarError> for Error {
    fn from(error: TarError) -> Self {
        Self::Tar { entry: None, error }
    }
}
