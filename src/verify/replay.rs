//! A layer's tar, put together again from its tar-split and the files of its tree: what containers/storage does when it gives a
//! layer out (`layers.go`, `Diff`; tar-split `tar/asm/assemble.go`). What is put together is read as a layer is read before it
//! is unpacked, so the tree can be compared with what it should be.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Read};

use hashbrown::HashSet;
use xxhash_rust::xxh3::xxh3_128;

use super::tree::Paths;
use crate::digest::{Digest, Hasher};
use crate::inspect::contents::{Content, Contents, Files, InodeKind};
use crate::layer::path::clean;
use crate::layer::tar::{TarError, TarReader};
use crate::layer::tar_split::{Piece, Pieces, SplitError};
use crate::layer::tree::{ENTRIES_MAX, PlaceError, Placed, Tree, WHITEOUT_PREFIX};

/// Bytes of content in memory.
const BUFFER: usize = 128 << 10;

/// The most bytes of headers and padding that one tar-split may give, 4 GiB: 2 KiB for each of as many entries as a layer may
/// have. A few MiB of gzip could ask for as much.
const SEGMENTS_MAX: u64 = 4 << 30;

/// How often a tar-split may ask for all the bytes that a tree has. Once is enough, but entries that others replace, and hard
/// links where there should be none, are read again.
const READS_MAX: u64 = 16;

/// Why a layer cannot be put together.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The tar-split itself.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// What it gives is no layer.
    #[error("what it restores is not a layer: {0}")]
    Tar(#[from] TarError),
    /// An entry that cannot be unpacked.
    #[error("what it restores is not a layer: entry {0:?}: {1}")]
    Place(String, PlaceError),
    /// More than any layer gives.
    #[error("it gives more than {0}")]
    TooMuch(&'static str),
    /// tar-split gives no archive out in which two entries have one name (`tar/storage/packer.go`, `ErrDuplicatePath`).
    #[error("two of its entries have the same name")]
    Twice,
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
    Size,
    /// It has another checksum.
    Checksum,
    /// It cannot be read.
    Unreadable(String),
}

/// A layer put together.
#[derive(Debug)]
pub(super) struct Replayed {
    /// What unpacking it would leave.
    pub tree: Tree,
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
        content: Vec::new(),
        at: 0,
        hash: Hasher::new(),
        size: 0,
        segments: 0,
        // Somebody may write to the files meanwhile.
        readable: files.bytes().saturating_mul(READS_MAX),
        wrong: Vec::new(),
        gone: Vec::new(),
        failed: None,
    });
    match read(&mut reader) {
        Ok((tree, uids, gids)) => {
            let mut replay = reader.into_inner();
            let (mut wrong, mut gone) = (Vec::new(), std::mem::take(&mut replay.gone));
            // Content that is gone, since a later entry replaced the file or took its name, is nobody's damage.
            let names = names_of(&tree, &replay.wrong);
            for Mismatch { path, inode, size, crc, wrong: what } in std::mem::take(&mut replay.wrong) {
                match names.get(&inode).map(Vec::as_slice) {
                    None | Some([]) => gone.push(path),
                    Some(names) if names.contains(&path) => wrong.push((path, what)),
                    // It has another name left.
                    Some([name, ..]) => match replay.file(name, size, crc)? {
                        Ok(()) => gone.push(path),
                        Err(what) => wrong.push((name.clone(), what)),
                    },
                }
            }
            Ok(Replayed {
                tree,
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

/// A file without the content that it should have.
struct Mismatch {
    /// Where it was put, and its inode.
    path: Vec<u8>,
    inode: u32,
    size: u64,
    crc: u64,
    wrong: Wrong,
}

/// The names that the inodes of these files have in the end.
fn names_of(tree: &Tree, files: &[Mismatch]) -> hashbrown::HashMap<u32, Vec<Vec<u8>>> {
    let wanted: HashSet<u32> = files.iter().map(|file| file.inode).collect();
    let mut names: hashbrown::HashMap<u32, Vec<Vec<u8>>> = hashbrown::HashMap::new();
    if !wanted.is_empty() {
        for dirent in tree.live().filter(|&dirent| wanted.contains(&tree.inode_number(dirent))) {
            names.entry(tree.inode_number(dirent)).or_default().push(tree.path(dirent));
        }
    }
    names
}

fn read(reader: &mut TarReader<Replay<'_>>) -> Result<(Tree, BTreeSet<u32>, BTreeSet<u32>), Error> {
    let mut tree = Tree::new();
    let (mut uids, mut gids) = (BTreeSet::new(), BTreeSet::new());
    let (mut seen, mut paths) = (Seen::default(), Paths::default());
    loop {
        reader.clear_raw();
        let Some(header) = reader.next_header()? else { break };
        let shown = || String::from_utf8_lossy(&header.name).into_owned();
        let base = header.name.split(|&byte| byte == b'/').rfind(|part| !part.is_empty()).unwrap_or_default();
        if !base.starts_with(WHITEOUT_PREFIX) {
            uids.insert(header.uid as u32);
            gids.insert(header.gid as u32);
        }
        seen.names.push(xxh3_128(&clean(&header.name)));
        if seen.names.len() > ENTRIES_MAX {
            return Err(Error::TooMuch("as many entries as a layer may have"));
        }
        let placed = tree.place(&header).map_err(|error| Error::Place(shown(), error))?;
        tree.take_created_parents();
        let path = match placed {
            Placed::New(dirent) if header.typeflag == b'0' => {
                Some((paths.of(&tree, dirent).to_vec(), tree.inode_number(dirent)))
            }
            _ => None,
        };
        let (has_body, size) = (header.has_body(), header.size);
        let expected = Expected { name: header.name, size, has_body, path };
        reader.input_mut().content(expected)?;
        reader.content_is_left_out();
    }
    reader.drain(|_| Ok::<_, Error>(()))?;
    if seen.has_twice() {
        return Err(Error::Twice);
    }
    tree.settle().map_err(|(path, error)| Error::Place(String::from_utf8_lossy(&path).into_owned(), error))?;
    Ok((tree, uids, gids))
}

/// Hashes of the names of all entries. A set of them would take twice the room.
#[derive(Default)]
struct Seen {
    names: Vec<u128>,
}

impl Seen {
    /// Returns whether two names are the same.
    fn has_twice(mut self) -> bool {
        self.names.sort_unstable();
        self.names.windows(2).any(|pair| pair[0] == pair[1])
    }
}

/// What a header says of the content that comes next.
struct Expected {
    name: Vec<u8>,
    size: u64,
    has_body: bool,
    /// Where its content is in the tree, and the inode; `None` for a whiteout's and the like, which nothing keeps.
    path: Option<(Vec<u8>, u32)>,
}

#[derive(Clone, Copy)]
struct Source<'a> {
    contents: &'a Contents,
    files: &'a Files,
    prefix: &'a [u8],
}

/// The archive as a stream, without the contents of its files: those are read, hashed and compared on the way.
struct Replay<'a> {
    pieces: Pieces<io::BufReader<Content<'a>>>,
    source: Source<'a>,
    buffer: Vec<u8>,
    /// Room for a part of a file, for all files: to clear it for each would cost more than small files do.
    content: Vec<u8>,
    at: usize,
    hash: Hasher,
    size: u64,
    /// Bytes that came from the tar-split itself.
    segments: u64,
    /// Bytes of files that may still be read.
    readable: u64,
    wrong: Vec<Mismatch>,
    gone: Vec<Vec<u8>>,
    failed: Option<Error>,
}

impl<'a> Replay<'a> {
    /// Fills the buffer with what comes next; leaves it empty at the end.
    fn fill(&mut self) -> Result<(), Error> {
        self.buffer.clear();
        self.at = 0;
        while self.buffer.is_empty() {
            match self.pieces.next_piece()? {
                None => break,
                Some(Piece::Segment(bytes)) => self.buffer = bytes,
                // Contents come after their headers, which ask for them.
                Some(Piece::File { name, .. }) => return Err(order(&name)),
            }
        }
        self.hash.update(&self.buffer);
        self.size = self.size.saturating_add(self.buffer.len() as u64);
        self.segments += self.buffer.len() as u64;
        if self.segments > SEGMENTS_MAX { Err(Error::TooMuch("4 GiB of headers and padding")) } else { Ok(()) }
    }

    /// Takes in the content that belongs to the header that was read last.
    fn content(&mut self, expected: Expected) -> Result<(), Error> {
        if self.at < self.buffer.len() {
            return Err(order(&expected.name));
        }
        let (name, size, crc) = loop {
            match self.pieces.next_piece()? {
                Some(Piece::Segment(bytes)) if bytes.is_empty() => {}
                Some(Piece::File { name, size, crc }) => break (name, size, crc),
                _ => return Err(order(&expected.name)),
            }
        };
        if expected.name != name || expected.size != size {
            return Err(order(&name));
        }
        if size == 0 || !expected.has_body {
            return Ok(());
        }
        self.size = self.size.saturating_add(size);
        let Some((path, inode)) = expected.path else {
            // A whiteout's and the like, which no tree keeps.
            self.gone.push(name);
            return Ok(());
        };
        if let Err(wrong) = self.file(&path, size, crc)? {
            self.wrong.push(Mismatch { path, inode, size, crc, wrong });
        }
        Ok(())
    }

    /// Reads a file. One that has not its size is wrong whatever is in it, and is not read: a header may say any size.
    fn file(&mut self, path: &[u8], size: u64, expected_crc: u64) -> Result<Result<(), Wrong>, Error> {
        let Source { contents, files, prefix } = self.source;
        let Some(inode) = files.get(path) else { return Ok(Err(Wrong::Missing)) };
        let InodeKind::Regular { size: found, .. } = inode.kind else { return Ok(Err(Wrong::Missing)) };
        if found != size {
            return Ok(Err(Wrong::Size));
        }
        let Some(readable) = self.readable.checked_sub(size) else {
            return Err(Error::TooMuch("all files of the tree many times over"));
        };
        self.readable = readable;
        let unreadable = |error: io::Error| Ok(Err(Wrong::Unreadable(error.to_string())));
        let mut content = match contents.open(&[prefix, path].concat(), inode) {
            Ok(content) => content.take(size),
            Err(error) => return unreadable(error),
        };
        let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64GoIso);
        let mut left = size;
        self.content.resize(BUFFER, 0);
        while left > 0 {
            match content.read(&mut self.content) {
                Ok(0) => return unreadable(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.hash.update(&self.content[..count]);
                    crc.update(&self.content[..count]);
                    left -= count as u64;
                }
                Err(error) => return unreadable(error),
            }
        }
        Ok(if crc.finalize() == expected_crc { Ok(()) } else { Err(Wrong::Checksum) })
    }
}

fn order(name: &[u8]) -> Error {
    Error::Order(String::from_utf8_lossy(name).into_owned())
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
