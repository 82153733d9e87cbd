//! Everything that a tar or a directory holds, as unpacking leaves it: entries with their metadata, and where their content is.
//!
//! Entries of layers' trees are kept apart, each layer by itself, since there are a thousand times more of them than of all others.

mod directory;
mod tar;

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::BuildHasher as _;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};

use super::files as small;
use super::find::{self, Found};
use super::input;
use super::machine::{self, MachineConfig};
use super::root::{Opened, Root};
use crate::entry::Xattr;
use crate::layer::path::split_last;
pub use crate::layer::tree::{Inode, InodeKind};

/// The most entries of one input, layers included: fifty times what the largest known node images have.
pub const ENTRIES_MAX: usize = 20_000_000;

/// The most bytes of names, link targets and extended attributes of one input: 1 GiB, twenty times what large node images have.
/// It bounds the memory that a small hostile tar with deep paths can ask for.
pub const METADATA_MAX: u64 = 1 << 30;

/// Extended attributes by which a machine labels its own files: they say nothing about an image (SELinux; Linux
/// `Documentation/ABI/testing/evm` and `security/integrity/ima`). Policies and keys differ from machine to machine.
const MACHINE_LABELS: [&[u8]; 3] = [b"security.selinux", b"security.ima", b"security.evm"];

/// Returns whether a machine labels its files with the extended attribute `name`, so that it is not compared.
#[must_use]
pub fn is_machine_label(name: &[u8]) -> bool {
    MACHINE_LABELS.contains(&name)
}

/// How many oddities of one kind are remembered with their path; all are counted.
pub const ODDITIES_SHOWN: usize = 50;

/// Entries by their path, below whatever they belong to.
///
/// A node image has a million of them, so they are kept in few allocations: some 100 bytes each, most of that the inode.
#[derive(Debug, Default)]
pub struct Files {
    /// All paths, one after the other.
    text: Vec<u8>,
    names: Vec<Name>,
    /// Names by their paths.
    lookup: HashTable<u32>,
    hasher: DefaultHashBuilder,
    inodes: Vec<Inode>,
    /// Names in ascending order of their paths, once that was asked for.
    sorted: OnceLock<Vec<u32>>,
}

/// A path in [`Files::text`], and its inode. [`METADATA_MAX`] bounds the offset.
#[derive(Debug, Clone, Copy)]
struct Name {
    start: u32,
    length: u32,
    inode: u32,
}

impl Files {
    fn path(&self, name: u32) -> &[u8] {
        let Name { start, length, .. } = self.names[name as usize];
        &self.text[start as usize..][..length as usize]
    }

    fn find(&self, path: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(path);
        self.lookup.find(hash, |&name| self.path(name) == path).copied()
    }

    fn entry(&self, name: u32) -> (&[u8], &Inode) {
        (self.path(name), &self.inodes[self.names[name as usize].inode as usize])
    }

    fn sorted(&self) -> &[u32] {
        self.sorted.get_or_init(|| {
            let mut sorted: Vec<u32> = (0..self.names.len() as u32).collect();
            sorted.sort_unstable_by(|a, b| self.path(*a).cmp(self.path(*b)));
            sorted
        })
    }

    /// The inode at `path`; the empty path is the root.
    #[must_use]
    pub fn get(&self, path: &[u8]) -> Option<&Inode> {
        self.number(path).map(|number| &self.inodes[number as usize])
    }

    /// The number of the inode at `path`: names with the same number are hard links of one another.
    #[must_use]
    pub fn number(&self, path: &[u8]) -> Option<u32> {
        self.find(path).map(|name| self.names[name as usize].inode)
    }

    /// All paths in ascending order, with their inodes.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Inode)> {
        self.sorted().iter().map(|&name| self.entry(name))
    }

    /// How many names there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Bytes of content of all regular files, each once, however many names it has.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let size = |inode: &Inode| match inode.kind {
            InodeKind::Regular { size, .. } => size,
            _ => 0,
        };
        self.inodes.iter().map(size).fold(0, u64::saturating_add)
    }

    /// The names in the directory `path`, in ascending order, with their inodes.
    pub fn children(&self, path: &[u8]) -> impl Iterator<Item = (&[u8], &Inode)> {
        let prefix = if path.is_empty() { Vec::new() } else { [path, b"/"].concat() };
        let length = prefix.len();
        self.below(prefix).filter_map(move |(path, inode)| {
            let name = &path[length..];
            (!name.is_empty() && !name.contains(&b'/')).then_some((name, inode))
        })
    }

    /// All whose paths begin with `prefix`.
    fn below(&self, prefix: Vec<u8>) -> impl Iterator<Item = (&[u8], &Inode)> {
        let sorted = self.sorted();
        let first = sorted.partition_point(|&name| self.path(name) < &prefix[..]);
        let these = sorted[first..].iter().map(|&name| self.entry(name));
        these.take_while(move |(path, _)| path.starts_with(&prefix))
    }

    /// Adds an inode at `path`, in the place of one that is there.
    fn insert(&mut self, path: &[u8], inode: Inode) {
        let number = self.inodes.len() as u32;
        self.inodes.push(inode);
        self.link(path, number);
    }

    /// Gives the inode `number` the name `path`; returns whether there was something of that name.
    fn link(&mut self, path: &[u8], number: u32) -> bool {
        let Self { lookup, hasher, names, text, sorted, .. } = self;
        let path_of = |name: &u32| {
            let Name { start, length, .. } = names[*name as usize];
            &text[start as usize..][..length as usize]
        };
        let is_there = |name: &u32| path_of(name) == path;
        match lookup.entry(hasher.hash_one(path), is_there, |name| hasher.hash_one(path_of(name))) {
            Entry::Occupied(place) => {
                names[*place.get() as usize].inode = number;
                true
            }
            Entry::Vacant(place) => {
                place.insert(names.len() as u32);
                sorted.take();
                names.push(Name { start: text.len() as u32, length: path.len() as u32, inode: number });
                text.extend_from_slice(path);
                false
            }
        }
    }
}

/// What is strange in a tar, whoever unpacks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OddityKind {
    /// A name with `..`.
    Name,
    /// A name that no file system takes.
    LongName,
    /// An absolute name.
    Absolute,
    /// An entry whose directory has not come before it.
    NoDirectory,
    /// An entry in something that is no directory.
    ThroughLink,
    /// The same path twice, unless both are directories.
    Twice,
    /// A directory's path again, for something else.
    OverDirectory,
    /// A hard link to what has not come before it, or is a directory.
    NoTarget,
    /// A type that unpackers do not know.
    Type,
    /// A PAX header for all entries that follow.
    Global,
    /// A number in a PAX record, which busybox does not read, is not that of the header.
    PaxNumber,
    /// The archive ends without its end marker.
    NoEnd,
    /// There is something after the end marker.
    AfterEnd,
    /// A socket.
    Socket,
    /// Gone while the directory was read.
    Vanished,
}

/// The oddities of one kind.
#[derive(Debug, Default)]
pub struct Oddities {
    /// How many.
    pub count: usize,
    /// The paths of the first few; empty paths where there is none.
    pub first: Vec<Vec<u8>>,
}

/// What an input holds.
#[derive(Debug)]
pub struct Contents {
    source: Source,
    stores: Vec<Found>,
    config: Result<MachineConfig, machine::Error>,
    failure: OnceLock<(io::ErrorKind, String)>,
    rest: Files,
    layers: Vec<BTreeMap<String, Files>>,
    oddities: BTreeMap<OddityKind, Oddities>,
    entries: usize,
    metadata: u64,
    /// `GRAPHROOT/overlay/` of each store.
    overlays: Vec<Vec<u8>>,
    /// True if layers' trees are read, and not only their roots.
    trees: bool,
    /// Configuration, and the configs of images.
    files: small::Files,
}

#[derive(Debug)]
enum Source {
    Tar(File),
    Directory(Arc<Root>),
}

/// Where a path belongs.
enum Area<'a> {
    Rest,
    Layer { store: usize, id: &'a str, path: &'a [u8] },
}

impl Contents {
    /// What the tar or directory at `path` holds (`-`: standard input). A tar is read where it lies; one that is compressed or
    /// comes through a pipe is first copied to a nameless temporary file.
    ///
    /// # Errors
    /// As [`find`], and when a directory cannot be read.
    pub fn of(path: &Path) -> Result<Self, find::Error> {
        Self::read(path, true)
    }

    /// Reads the same without what is below the roots of the layers' trees, which a directory is then not searched for.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn without_trees(path: &Path) -> Result<Self, find::Error> {
        Self::read(path, false)
    }

    fn read(path: &Path, trees: bool) -> Result<Self, find::Error> {
        if path != Path::new("-") && fs_err::metadata(path)?.is_dir() {
            let root = Arc::new(Root::open(path)?);
            let files = small::Files::of_directory(Arc::clone(&root));
            let config = MachineConfig::read(&files);
            let mut stores = find::in_directory(&root)?;
            if let Ok(config) = &config {
                find::add_configured(&mut stores, &root, config)?;
            }
            let mut contents = Self::new(Source::Directory(Arc::clone(&root)), stores, config, files, trees);
            directory::read(&mut contents, &root)?;
            return Ok(contents);
        }
        let file = input::plain_tar(path)?;
        let (stores, files) = find::in_tar_with_files(file.try_clone()?)?;
        let config = MachineConfig::read(&files);
        let mut contents = Self::new(Source::Tar(file.try_clone()?), stores, config, files, trees);
        let has_store = !contents.stores.is_empty();
        tar::read(&mut contents, file).map_err(|error| error.after_store(has_store))?;
        Ok(contents)
    }

    fn new(
        source: Source,
        stores: Vec<Found>,
        config: Result<MachineConfig, machine::Error>,
        files: small::Files,
        trees: bool,
    ) -> Self {
        let overlay = |found: &Found| join(found.graphroot.as_bytes(), b"overlay/");
        Self {
            source,
            overlays: stores.iter().map(overlay).collect(),
            layers: stores.iter().map(|_| BTreeMap::new()).collect(),
            stores,
            config,
            failure: OnceLock::new(),
            rest: Files::default(),
            oddities: BTreeMap::new(),
            entries: 0,
            metadata: 0,
            trees,
            files,
        }
    }

    /// The stores in it.
    #[must_use]
    pub fn stores(&self) -> &[Found] {
        &self.stores
    }

    /// How the machine is configured, as far as the input says.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn config(&self) -> Result<&MachineConfig, &machine::Error> {
        self.config.as_ref()
    }

    /// Returns the small files beside the stores: configuration, and the configs of images.
    #[must_use]
    pub fn files(&self) -> &small::Files {
        &self.files
    }

    /// All that is in no layer's tree, by its path in the input.
    #[must_use]
    pub fn rest(&self) -> &Files {
        &self.rest
    }

    /// The trees of a store's layers (`overlay/<id>/diff`) by their directory's name. In each the root is the empty path.
    #[must_use]
    pub fn layers(&self, store: usize) -> &BTreeMap<String, Files> {
        &self.layers[store]
    }

    /// What is strange.
    #[must_use]
    pub fn oddities(&self) -> &BTreeMap<OddityKind, Oddities> {
        &self.oddities
    }

    /// Whether it is a tar.
    #[must_use]
    pub fn is_tar(&self) -> bool {
        matches!(self.source, Source::Tar(_))
    }

    /// The tar, if it is one; plain, whatever it was when it came.
    #[must_use]
    pub fn tar(&self) -> Option<&File> {
        match &self.source {
            Source::Tar(file) => Some(file),
            Source::Directory(_) => None,
        }
    }

    /// How many entries it has.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// The content of the regular file `inode`, whose path in the input is `path`.
    ///
    /// # Errors
    /// When it cannot be opened, or is no longer a regular file.
    pub fn open(&self, path: &[u8], inode: &Inode) -> io::Result<Content<'_>> {
        // What the store is like is no failure to read it.
        if !matches!(inode.kind, InodeKind::Regular { .. }) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let place = self.place(path, inode).map_err(|error| self.fail(path, error))?;
        Ok(Content { contents: self, path: path.to_vec(), place })
    }

    fn place(&self, path: &[u8], inode: &Inode) -> io::Result<Place<'_>> {
        let InodeKind::Regular { size, data } = inode.kind else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        };
        Ok(match &self.source {
            Source::Tar(file) => Place::Tar { file, at: data, end: data + size },
            Source::Directory(root) => match root.file(path)? {
                Opened::File(file, _) => Place::File(file),
                Opened::Missing => return Err(io::ErrorKind::NotFound.into()),
                Opened::Other(_) => {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, "no longer a regular file"));
                }
            },
        })
    }

    /// Remembers an error, and gives it back with the file's name.
    fn fail(&self, path: &[u8], error: io::Error) -> io::Error {
        let text = format!("read {}: {error}", String::from_utf8_lossy(path));
        let _ = self.failure.set((error.kind(), text.clone()));
        io::Error::new(error.kind(), text)
    }

    /// The first error that the system gave when something was read: whatever was concluded since may be wrong.
    #[must_use]
    pub fn failure(&self) -> Option<io::Error> {
        self.failure.get().map(|(kind, text)| io::Error::new(*kind, text.clone()))
    }

    /// The whole content of the small file at `path`, which is in no layer's tree; `None` when it is not there, is no regular
    /// file, or has more than `max` bytes.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn small(&self, path: &[u8], max: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(inode) = self.rest.get(path) else { return Ok(None) };
        let InodeKind::Regular { size, .. } = inode.kind else { return Ok(None) };
        if size > max {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        self.open(path, inode)?.take(max).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn area<'a>(&self, path: &'a [u8]) -> Area<'a> {
        for (store, overlay) in self.overlays.iter().enumerate() {
            let Some(below) = path.strip_prefix(&overlay[..]) else { continue };
            let mut parts = below.splitn(3, |&byte| byte == b'/');
            let (id, diff) = (parts.next().unwrap_or_default(), parts.next());
            if let (Ok(id), Some(b"diff")) = (std::str::from_utf8(id), diff) {
                return Area::Layer { store, id, path: parts.next().unwrap_or_default() };
            }
        }
        Area::Rest
    }

    /// Returns whether `path` is one that [`Self::without_trees`] leaves out.
    fn is_left_out(&self, path: &[u8]) -> bool {
        !self.trees && matches!(self.area(path), Area::Layer { path, .. } if !path.is_empty())
    }

    /// Returns whether [`Self::without_trees`] does not look into the directory `path`: a layer's root, or an empty directory that may
    /// be closed to this user.
    fn is_left_closed(&self, path: &[u8]) -> bool {
        !self.trees && (matches!(self.area(path), Area::Layer { .. }) || path.ends_with(b"/empty"))
    }

    fn files_of(&mut self, path: &[u8]) -> (&mut Files, usize) {
        match self.area(path) {
            Area::Rest => (&mut self.rest, 0),
            Area::Layer { store, id, path: below } => {
                let layers = &mut self.layers[store];
                // Not `entry`: a key for each of a million entries.
                if !layers.contains_key(id) {
                    layers.insert(id.to_owned(), Files::default());
                }
                let start = path.len() - below.len();
                (layers.get_mut(id).unwrap_or(&mut self.rest), start)
            }
        }
    }

    /// The inode at `path` in the input.
    #[must_use]
    pub fn get(&self, path: &[u8]) -> Option<&Inode> {
        match self.area(path) {
            Area::Rest => self.rest.get(path),
            Area::Layer { store, id, path } => self.layers[store].get(id)?.get(path),
        }
    }

    fn odd(&mut self, kind: OddityKind, path: &[u8]) {
        let oddities = self.oddities.entry(kind).or_default();
        oddities.count += 1;
        if oddities.first.len() < ODDITIES_SHOWN {
            oddities.first.push(path.to_vec());
        }
    }

    /// Counts an entry with so many bytes of metadata.
    fn count(&mut self, metadata: usize) -> Result<(), find::Error> {
        self.entries += 1;
        self.metadata = self.metadata.saturating_add(metadata as u64);
        match (self.entries, self.metadata) {
            (entries, _) if entries > ENTRIES_MAX => Err(find::Error::Entries),
            (_, metadata) if metadata > METADATA_MAX => Err(find::Error::Metadata),
            _ => Ok(()),
        }
    }
}

/// `directory/name`, or `name` in the root.
pub(crate) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

/// The directory of a path.
fn parent(path: &[u8]) -> &[u8] {
    split_last(path).0
}

/// Bytes of names and values.
fn xattrs_len(xattrs: &[Xattr]) -> usize {
    xattrs.iter().map(|(name, value)| name.len() + value.len()).sum()
}

/// A regular file's content, to be read once.
#[derive(Debug)]
pub struct Content<'a> {
    contents: &'a Contents,
    path: Vec<u8>,
    place: Place<'a>,
}

#[derive(Debug)]
enum Place<'a> {
    Tar { file: &'a File, at: u64, end: u64 },
    File(File),
}

impl Place<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Place::Tar { file, at, end } => {
                let wanted = buffer.len().min(usize::try_from(*end - *at).unwrap_or(usize::MAX));
                let read = file.read_at(&mut buffer[..wanted], *at)?;
                *at += read as u64;
                Ok(read)
            }
            Place::File(file) => file.read(buffer),
        }
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.place.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read.map_err(|error| self.contents.fail(&self.path, error)),
            }
        }
    }
}
