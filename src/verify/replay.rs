//! A layer's tar, put together again from its tar-split and the files of its tree: what containers/storage does when it gives a
//! layer out (`layers.go`, `Diff`; tar-split `tar/asm/assemble.go`). What is put together is read as a layer is read before it
//! is unpacked, so the tree can be compared with what it should be.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Read};

use hashbrown::HashSet;
use xxhash_rust::xxh3::xxh3_128;

use crate::digest::{Digest, Hasher};
use crate::inspect::contents::{Content, Contents, Files, InodeKind};
use crate::layer::path::clean;
use crate::layer::tar::{TarError, TarReader};
use crate::layer::tar_split::{Piece, Pieces, SplitError};
use crate::layer::tree::{PlaceError, Placed, Tree, WHITEOUT_PREFIX};
use crate::segment::index::Index;

/// Bytes of content in memory.
const BUFFER: usize = 128 << 10;

/// Why a layer cannot be put together.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The tar-split itself.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// What it gives is no layer.
    #[error("what it gives is no layer: {0}")]
    Tar(#[from] TarError),
    /// An entry that cannot be unpacked.
    #[error("what it gives is no layer: entry {0:?}: {1}")]
    Place(String, PlaceError),
    /// Headers and contents do not belong together.
    #[error("entry {0:?}: its header and its content do not belong together")]
    Order(String),
}

/// What is wrong with a file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wrong {
    /// There is no such file in the tree.
    Missing,
    /// It has another size.
    Size { expected: u64, found: u64 },
    /// It has another checksum.
    Checksum,
    /// It cannot be read.
    Unreadable(String),
}

/// A layer put together.
#[derive(Debug)]
pub(super) struct Replayed {
    /// What unpacking it would leave.
    pub index: Index,
    /// Whether an entry gave the root its own mode and owner.
    pub root_claimed: bool,
    /// Its digest; `None` when a content was not there to be hashed.
    pub diff_id: Option<Digest>,
    /// Bytes.
    pub size: u64,
    /// Owners of its entries.
    pub uids: BTreeSet<u32>,
    /// Their groups.
    pub gids: BTreeSet<u32>,
    /// Files that do not have the content that they should.
    pub wrong: Vec<(Vec<u8>, Wrong)>,
    /// Files that a later entry of the layer replaced, so that their content is gone.
    pub gone: Vec<Vec<u8>>,
}

/// Puts the layer together whose tree is `files`, at `prefix` in the input (`…/diff/`).
///
/// # Errors
/// When the tar-split cannot be read, or what it gives cannot be unpacked.
pub(super) fn replay(contents: &Contents, files: &Files, prefix: &[u8], split: Content<'_>) -> Result<Replayed, Error> {
    let source = Source { contents, files, prefix };
    let mut reader = TarReader::new(Replay {
        pieces: Pieces::new(io::BufReader::new(split)),
        source,
        buffer: Vec::new(),
        at: 0,
        file: None,
        next: Next::Nothing,
        hash: Hasher::new(),
        size: 0,
        wrong: Vec::new(),
        gone: Vec::new(),
        failed: None,
    });
    match read(&mut reader) {
        Ok((tree, uids, gids, placed)) => {
            let replay = reader.into_inner();
            let index = Index::of(&tree);
            // Whose content is gone, since the name or the inode was replaced, is nobody's damage.
            let live: HashSet<u32> = tree.live().map(|dirent| tree.inode_number(dirent)).collect();
            let was_replaced = |path: &Vec<u8>| placed.get(path).is_some_and(|inode| !live.contains(inode));
            let (replaced, wrong): (Vec<_>, Vec<_>) =
                replay.wrong.into_iter().partition(|(path, _)| was_replaced(path));
            let mut gone = replay.gone;
            gone.extend(replaced.into_iter().map(|(path, _)| path));
            Ok(Replayed {
                root_claimed: tree.root_claimed(),
                index,
                diff_id: (gone.is_empty() && wrong.is_empty()).then(|| replay.hash.finish()),
                size: replay.size,
                uids,
                gids,
                wrong,
                gone,
            })
        }
        // The reader knows only that its input failed.
        Err(error) => Err(reader.into_inner().failed.unwrap_or(error)),
    }
}

/// The inodes of the files whose content is wrong, by the paths where they were put.
type Placements = hashbrown::HashMap<Vec<u8>, u32>;

fn read(reader: &mut TarReader<Replay<'_>>) -> Result<(Tree, BTreeSet<u32>, BTreeSet<u32>, Placements), Error> {
    let mut tree = Tree::new();
    let (mut uids, mut gids) = (BTreeSet::new(), BTreeSet::new());
    let mut seen = HashSet::new();
    let mut wrong_inodes = Placements::new();
    loop {
        reader.clear_raw();
        let Some(header) = reader.next_header()? else { break };
        let shown = || String::from_utf8_lossy(&header.name).into_owned();
        let base = header.name.split(|&byte| byte == b'/').rfind(|part| !part.is_empty()).unwrap_or_default();
        if !base.starts_with(WHITEOUT_PREFIX) {
            uids.insert(header.uid as u32);
            gids.insert(header.gid as u32);
        }
        if !seen.insert(xxh3_128(&clean(&header.name))) {
            return Err(Error::Order(shown()));
        }
        let placed = tree.place(&header).map_err(|error| Error::Place(shown(), error))?;
        tree.take_created_parents();
        let path = match placed {
            Placed::New(dirent) if header.typeflag == b'0' => {
                let path = tree.path(dirent);
                Some((path, tree.inode_number(dirent)))
            }
            _ => None,
        };
        let wrong = reader.input_mut().wrong.len();
        let inode = path.as_ref().map(|(_, inode)| *inode);
        let next = Expected {
            name: header.name.clone(),
            size: header.size,
            has_body: header.has_body(),
            path: path.map(|(path, _)| path),
        };
        reader.input_mut().next = Next::Header(next);
        reader.skip_content()?;
        if let (true, Some(inode)) = (reader.input_mut().wrong.len() > wrong, inode) {
            let path = reader.input_mut().wrong[wrong].0.clone();
            wrong_inodes.insert(path, inode);
        }
    }
    reader.drain(|_| Ok::<_, Error>(()))?;
    tree.settle().map_err(|(path, error)| Error::Place(String::from_utf8_lossy(&path).into_owned(), error))?;
    Ok((tree, uids, gids, wrong_inodes))
}

/// What the reader expects where the next content stands.
enum Next {
    Nothing,
    Header(Expected),
}

struct Expected {
    name: Vec<u8>,
    size: u64,
    has_body: bool,
    /// Where its content is in the tree; `None` for a whiteout's and the like, which nothing keeps.
    path: Option<Vec<u8>>,
}

#[derive(Clone, Copy)]
struct Source<'a> {
    contents: &'a Contents,
    files: &'a Files,
    prefix: &'a [u8],
}

/// Content on its way into the archive.
struct Current<'a> {
    path: Vec<u8>,
    content: Option<Content<'a>>,
    left: u64,
    crc: crc_fast::Digest,
    expected_crc: u64,
    wrong: Option<Wrong>,
    /// Whether a tree keeps it at all.
    is_kept: bool,
}

/// The archive as a stream.
struct Replay<'a> {
    pieces: Pieces<io::BufReader<Content<'a>>>,
    source: Source<'a>,
    buffer: Vec<u8>,
    at: usize,
    file: Option<Current<'a>>,
    next: Next,
    hash: Hasher,
    size: u64,
    wrong: Vec<(Vec<u8>, Wrong)>,
    gone: Vec<Vec<u8>>,
    failed: Option<Error>,
}

impl<'a> Replay<'a> {
    /// Fills the buffer with what comes next; leaves it empty at the end.
    fn fill(&mut self) -> Result<(), Error> {
        self.buffer.clear();
        self.at = 0;
        while self.buffer.is_empty() {
            if self.file.is_some() {
                self.fill_from_file();
                continue;
            }
            match self.pieces.next_piece()? {
                None => break,
                Some(Piece::Segment(bytes)) => self.buffer = bytes,
                Some(Piece::File { name, size, crc }) => self.begin(name, size, crc)?,
            }
        }
        self.hash.update(&self.buffer);
        self.size += self.buffer.len() as u64;
        Ok(())
    }

    fn begin(&mut self, name: Vec<u8>, size: u64, crc: u64) -> Result<(), Error> {
        let Next::Header(expected) = std::mem::replace(&mut self.next, Next::Nothing) else {
            return Err(Error::Order(String::from_utf8_lossy(&name).into_owned()));
        };
        if expected.name != name || expected.size != size {
            return Err(Error::Order(String::from_utf8_lossy(&name).into_owned()));
        }
        if size == 0 || !expected.has_body {
            return Ok(());
        }
        let (path, content, wrong) = match expected.path {
            Some(path) => self.open(path, size),
            None => {
                self.gone.push(name.clone());
                (name, None, None)
            }
        };
        let is_kept = wrong.is_some() || content.is_some();
        let crc64 = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64GoIso);
        self.file = Some(Current { path, content, left: size, crc: crc64, expected_crc: crc, wrong, is_kept });
        Ok(())
    }

    fn open(&self, path: Vec<u8>, size: u64) -> (Vec<u8>, Option<Content<'a>>, Option<Wrong>) {
        let Source { contents, files, prefix } = self.source;
        let Some(inode) = files.get(&path) else { return (path, None, Some(Wrong::Missing)) };
        let InodeKind::Regular { size: found, .. } = inode.kind else { return (path, None, Some(Wrong::Missing)) };
        let wrong = (found != size).then_some(Wrong::Size { expected: size, found });
        match contents.open(&[prefix, &path].concat(), inode) {
            Ok(content) => (path, Some(content), wrong),
            Err(error) => (path, None, Some(Wrong::Unreadable(error.to_string()))),
        }
    }

    /// The next part of a file's content. What is not there is zeros, so that the rest of the layer can be read.
    fn fill_from_file(&mut self) {
        let Some(file) = &mut self.file else { return };
        let wanted = file.left.min(BUFFER as u64) as usize;
        self.buffer.resize(wanted, 0);
        let mut filled = 0;
        while filled < wanted {
            let Some(content) = &mut file.content else { break };
            match content.read(&mut self.buffer[filled..]) {
                Ok(0) => file.content = None,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    file.content = None;
                    file.wrong.get_or_insert(Wrong::Unreadable(error.to_string()));
                }
            }
        }
        file.crc.update(&self.buffer);
        file.left -= wanted as u64;
        if file.left == 0
            && let Some(file) = self.file.take()
        {
            let checksum = (file.is_kept && file.crc.finalize() != file.expected_crc).then_some(Wrong::Checksum);
            if let Some(wrong) = file.wrong.or(checksum) {
                self.wrong.push((file.path, wrong));
            }
        }
    }
}

impl Read for Replay<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Replay<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.buffer.len()
            && let Err(error) = self.fill()
        {
            self.failed = Some(error);
            return Err(io::Error::new(io::ErrorKind::InvalidData, "tar-split"));
        }
        Ok(&self.buffer[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}
