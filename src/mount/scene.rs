//! What is shown, as files and a text that says what they are: all that a process needs that has seen nothing of it yet.
//!
//! ```text
//!  images ▶ Plan ▶ segments ─┐                        ┌ small: a tar of all that is in no layer, then indexes of a tar's layers
//!                            ├▶ Scene + files ────────┼ segments, perhaps with the tars that have their bodies
//!  images.tar ▶ Contents ────┘   (any process)  ▶ View└ or the tar
//! ```
//!
//! The files are handed on open: what happens to their names afterwards (`prepull cache prune`, a new `images.tar`) makes no
//! difference.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use xxhash_rust::xxh3::Xxh3;

use super::Error;
use super::layer::{Body, Layer, Style, is_name, is_target};
use super::view::{Layers, Part, PartKind, SLOTS, View, slot_of};
use crate::digest::{Digest, Hasher};
use crate::entry::{Entry, Kind, Meta, Timestamp};
use crate::inspect::contents::{Contents, Files, InodeKind};
use crate::layer::path::below_root;
use crate::layer::tar::TarReader;
use crate::layer::tree::Inode;
use crate::make::{Known, LayerTree, Output, Progress, Trees, make};
use crate::plan::Plan;
use crate::plan::saved::SavedImage;
use crate::segment::cache::Cache;
use crate::segment::file::{BodyTar, Segment, Trust};
use crate::segment::index::Index;
use crate::segment::witness::Stamp;
use crate::sink::TarStream;
use crate::storage::store::{Settings, StoreKind, Unpacker};
use crate::wire;

/// Where the store would lie: its layers' segments are those of `make`.
const GRAPHROOT: &str = "/var/lib/containers/storage";

/// Bytes that are read at once.
const BUFFER: usize = 64 << 10;

/// What is shown.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Scene {
    /// Counts changes.
    pub generation: u64,
    /// The images, to make another scene with some of them.
    pub images: Vec<SavedImage>,
    /// The path of the tar that is shown, if it is one.
    pub tar: Option<String>,
    /// Mode of the root directory, if it is not the store's own.
    pub mode: Option<u16>,
    /// The graphroot in the tar of small files, without slashes around it.
    graphroot: String,
    /// The time of what no image dates.
    pub stamp: i64,
    /// Whether opaque directories are so by an attribute; else by whiteouts.
    pub marks_opaque: bool,
    /// Where in the first file the token is that the locks of the records have: who has read them sees by it that they have changed.
    token: Option<u64>,
    /// Where layers come from that are fetched when somebody needs them; `None` if all are there.
    pub lazy: Option<Sources>,
    layers: Vec<SceneLayer>,
}

/// Where layers come from.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Sources {
    /// Items as they were typed, by the blobs that they have, with the number of the command line.
    pub items: BTreeMap<Digest, (String, usize)>,
    /// Command lines.
    pub commands: Vec<Typed>,
    /// The blob of each layer and the layer below it, by the ids of layers.
    #[serde(default)]
    pub layers: BTreeMap<String, (Digest, Option<String>)>,
}

/// Command lines, each with the items that layers may come from by it.
pub type Allowed = Vec<(Typed, BTreeSet<String>)>;

impl Sources {
    /// Returns where a layer and those below it come from, the layer itself first: items with their command lines.
    #[must_use]
    pub fn of_chain(&self, layer: &str) -> Vec<(&str, &Typed)> {
        let (mut all, mut seen, mut next) = (Vec::new(), BTreeSet::new(), Some(layer));
        // What a fetcher has handed over may be a circle.
        while let Some(id) = next.filter(|id| seen.insert(*id)) {
            let Some((blob, below)) = self.layers.get(id) else { break };
            if let Some((item, number)) = self.items.get(blob)
                && let Some(typed) = self.commands.get(*number)
            {
                all.push((item.as_str(), typed));
            }
            next = below.as_deref();
        }
        all
    }

    /// Returns all command lines, each with the items that layers come from by it.
    #[must_use]
    pub fn allowed(&self) -> Allowed {
        let mut all: Allowed = self.commands.iter().map(|typed| (typed.clone(), BTreeSet::new())).collect();
        for (item, number) in self.items.values() {
            if let Some((_, items)) = all.get_mut(*number) {
                items.insert(item.clone());
            }
        }
        all
    }
}

/// Returns where the layers of an encoded scene come from, if any are still to be fetched.
///
/// # Errors
/// When it is not a scene.
pub fn sources_in(scene: &RawValue) -> Result<Option<Sources>, Error> {
    #[derive(Deserialize)]
    struct Lazy {
        lazy: Option<Sources>,
    }
    serde_json::from_str::<Lazy>(scene.get()).map(|scene| scene.lazy).map_err(|_| Error::Scene)
}

/// Checks that layers of an encoded scene come only from where they may: a fetcher follows these command lines with root's
/// privileges until it knows which of them it needs.
///
/// # Errors
/// When they come from elsewhere, or it is not a scene.
pub fn are_allowed(scene: &RawValue, allowed: &Allowed) -> Result<(), Error> {
    let is_allowed = |(typed, items): &(Typed, BTreeSet<String>)| {
        items.is_empty() || allowed.iter().any(|(other, of_it)| other == typed && items.is_subset(of_it))
    };
    match sources_in(scene)? {
        Some(sources) if !sources.allowed().iter().all(is_allowed) => {
            Err(Error::Other("layers come from elsewhere than was typed".to_owned()))
        }
        _ => Ok(()),
    }
}

/// A command line as it was typed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Typed {
    /// Its words.
    pub words: Vec<OsString>,
    /// The directory that it was typed in.
    pub directory: PathBuf,
    /// Of the environment, what says where images come from and how they are kept.
    pub environment: Vec<(OsString, OsString)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct SceneLayer {
    /// The name of its directory.
    id: String,
    slot: u32,
    root: Meta,
    whiteouts: Vec<String>,
    tree: TreeAt,
}

/// Where a layer's tree is: how many of the files, or where in the first of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum TreeAt {
    Absent,
    /// The stamp is the one under which the body was right, if it is in a tar that the cache shares.
    Segment {
        key: Digest,
        files: usize,
        stamp: Option<Stamp>,
    },
    Tar {
        index: u64,
        length: u64,
    },
}

/// A scene and its files.
#[derive(Debug)]
pub struct Staged {
    /// What they are.
    pub scene: Scene,
    /// The files: small ones and indexes; then those of each layer; then the tar.
    pub files: Vec<OwnedFd>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

fn memory() -> Result<File, Error> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
    let made = rustix::fs::memfd_create("prepull", flags);
    made.map(File::from).map_err(|error| Error::system("making a file in memory", error))
}

/// Nobody who gets it can change it.
fn seal(file: &File) -> io::Result<()> {
    use rustix::fs::SealFlags;
    Ok(rustix::fs::fcntl_add_seals(file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?)
}

/// 64 digits that follow from what has been written (containers/storage `pkg/lockfile`: a lock's token has 64 bytes).
fn token_of(file: &File) -> io::Result<String> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; BUFFER];
    let mut content = At { file, at: 0 };
    loop {
        match content.read(&mut buffer)? {
            0 => return Ok(hasher.finish().hex()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// Bytes of a token.
const TOKEN: u64 = 64;

/// The locks that have it: who reads them trusts in what was read before as long as it is the same.
const LOCKS: [&[u8]; 2] = [b"overlay-layers/layers.lock", b"overlay-images/images.lock"];

impl Scene {
    /// The settings of a store that is shown.
    #[must_use]
    pub fn settings(stamp: i64, marks_opaque: bool) -> Settings {
        Settings {
            graphroot: GRAPHROOT.to_owned(),
            kind: StoreKind::Additional,
            unpacker: if marks_opaque { Unpacker::Root } else { Unpacker::Helper },
            config: false,
            beside: crate::storage::machine::Beside::default(),
            merge: false,
            pause: None,
            stamp,
            helper: None,
        }
    }

    /// The images of `plan`, with all their layers. Those of `before`, which it takes the place of, keep their slots, and what it
    /// has of them ([`Self::segments`]) is not made again.
    ///
    /// # Errors
    /// When a layer cannot be had.
    pub fn of_images(
        plan: &Plan,
        settings: &Settings,
        cache: Cache,
        progress: Arc<dyn Progress>,
        before: Option<(&Self, Known)>,
        fetch: Fetch<'_>,
    ) -> Result<Staged, Error> {
        let (before, known) = before.unzip();
        let small = memory()?;
        let stream = TarStream::new(Box::new(&small), "memory", settings.stamp);
        let mut trees = Vec::new();
        let wanted = fetch.lazily.map(|(_, wanted)| wanted);
        let output = Output::Trees(Trees { stream, trees: &mut trees, known: known.unwrap_or_default(), wanted });
        let report = make(plan, settings, cache, output, progress)?;
        let mut slots = Slots::of(before);
        let token = (&small).stream_position().map_err(|error| Error::system("making a file in memory", error))?;
        let named = token_of(&small).and_then(|token| (&small).write_all(token.as_bytes()).and_then(|()| seal(&small)));
        named.map_err(|error| Error::system("making a file in memory", error))?;
        let mut files = vec![OwnedFd::from(small)];
        let mut layers = Vec::new();
        for LayerTree { id, key, segment, root, whiteouts } in trees {
            let handles = segment.as_ref().map_or(Ok(Vec::new()), |segment| segment.handles());
            let handles = handles.map_err(|error| Error::system("keeping a layer open", error))?;
            layers.push(SceneLayer {
                id: id.hex(),
                slot: slots.take(&id),
                root,
                whiteouts: whiteouts.iter().map(|path| BASE64.encode(path)).collect(),
                tree: match segment {
                    Some(segment) => TreeAt::Segment { key, files: handles.len(), stamp: segment.stamp() },
                    None => TreeAt::Absent,
                },
            });
            files.extend(handles.into_iter().map(OwnedFd::from));
        }
        let saved = plan.images.values().map(|image| {
            SavedImage::of(image)
                .ok_or_else(|| Error::Other(format!("image {}: its config or manifest is not text", image.id())))
        });
        let scene = Self {
            generation: before.map_or(1, |before| before.generation + 1),
            images: saved.collect::<Result<_, _>>()?,
            tar: None,
            mode: before.and_then(|before| before.mode),
            graphroot: GRAPHROOT.trim_matches('/').to_owned(),
            stamp: settings.stamp,
            marks_opaque: matches!(settings.unpacker, Unpacker::Root),
            token: Some(token),
            lazy: fetch.lazily.map(|(sources, _)| sources.clone()),
            layers,
        };
        Ok(Staged { scene, files, warnings: report.warnings })
    }

    /// Stages the store in the tar at `path`, whose `contents` have been checked, as unpacking would leave it.
    ///
    /// # Errors
    /// When the tar has not exactly one store, or cannot be read.
    pub fn of_tar(path: &Path, contents: &Contents) -> Result<Staged, Error> {
        let [store] = contents.stores() else {
            let count = contents.stores().len();
            return Err(Error::Other(format!("{}: {count} stores in it, and one can be shown", path.display())));
        };
        let graphroot = store.graphroot.clone();
        let mut small = io::BufWriter::new(memory()?);
        let failed = |error: io::Error| Error::system(format!("reading {}", path.display()), error);
        write_small(contents, &graphroot, &mut small).map_err(failed)?;
        let mut small = small.into_inner().map_err(|error| failed(error.into_error()))?;
        let mut slots = Slots::of(None);
        let mut layers = Vec::new();
        for (id, files) in contents.layers(0) {
            let index = index_of(files).encode();
            let at = small.stream_position().map_err(failed)?;
            small.write_all(&index).map_err(failed)?;
            let slot = slots.take(&Digest::from_hex(id).unwrap_or_else(|_| Digest::of(id.as_bytes())));
            let tree = TreeAt::Tar { index: at, length: index.len() as u64 };
            let root = files.get(b"").map(meta_of).unwrap_or_default();
            layers.push(SceneLayer { id: id.clone(), slot, root, whiteouts: Vec::new(), tree });
        }
        seal(&small).map_err(failed)?;
        let tar = contents.tar().ok_or_else(|| Error::Other(format!("{}: not a tar", path.display())))?;
        let tar = tar.try_clone().map_err(failed)?;
        let scene = Self {
            generation: 1,
            images: Vec::new(),
            tar: Some(path.display().to_string()),
            mode: None,
            graphroot,
            stamp: 0,
            marks_opaque: false,
            token: None,
            lazy: None,
            layers,
        };
        Ok(Staged { scene, files: vec![small.into(), tar.into()], warnings: Vec::new() })
    }

    /// The segments of its layers, by their ids and with their keys, to make another scene with.
    ///
    /// # Errors
    /// When `files` are not those of this scene.
    pub fn segments(&self, files: &[OwnedFd]) -> Result<Known, Error> {
        let mut files = Handles(files.iter());
        files.next()?;
        let mut segments = Known::new();
        for layer in &self.layers {
            if let TreeAt::Segment { key, files: count, stamp } = layer.tree {
                let id = Digest::from_hex(&layer.id).map_err(|_| Error::Scene)?;
                match files.segment(layer, &key, count, stamp) {
                    Ok(segment) => drop(segments.insert(id, (key, segment))),
                    // It is made again.
                    Err(Error::Layer(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(segments)
    }

    /// Layers of `before` that are shown no more, but may be in use: they follow those of this scene, with their files.
    pub fn keep(&mut self, before: &Self, files_before: Vec<OwnedFd>, files: &mut Vec<OwnedFd>) {
        let there: HashSet<u32> = self.layers.iter().map(|layer| layer.slot).collect();
        let mut rest = files_before.into_iter().skip(1);
        for layer in &before.layers {
            let count = match layer.tree {
                TreeAt::Segment { files, .. } => files,
                // Nobody can be in a layer that is not there, and a tar has all that it has.
                TreeAt::Absent | TreeAt::Tar { .. } => continue,
            };
            let own: Vec<OwnedFd> = rest.by_ref().take(count).collect();
            if !there.contains(&layer.slot) && own.len() == count {
                self.layers.push(layer.clone());
                files.extend(own);
            }
        }
    }

    /// The view of it. What `before` has is not read again. With `lost` a layer that is damaged takes no other with it: it is shown
    /// without its files, and `lost` is told.
    ///
    /// # Errors
    /// When the files are not what the scene says.
    pub fn open(&self, files: &[OwnedFd], before: Option<&View>, lost: Option<fn(&Error)>) -> Result<View, Error> {
        let mut handles = Handles(files.iter());
        let small = Arc::new(handles.next()?);
        let tar = match self.tar {
            Some(_) => Some(Arc::new(File::from(
                files.last().ok_or(Error::Scene)?.try_clone().map_err(|error| Error::system("opening a tar", error))?,
            ))),
            None => None,
        };
        let parts = self.parts(&small)?;
        let (mut layers, mut absent) = (HashMap::new(), HashMap::new());
        let length_of_small = small.metadata().map_err(|_| Error::Scene)?.len();
        for layer in &self.layers {
            if !(1..SLOTS).contains(&layer.slot) || layers.contains_key(&layer.slot) {
                return Err(Error::Scene);
            }
            let known = before.and_then(|before| before.layer(layer.slot));
            let was_lost = known.is_some_and(|known| known.is_lost());
            let opened = match &layer.tree {
                TreeAt::Absent => {
                    absent.insert(layer.slot, layer.id.clone());
                    continue;
                }
                TreeAt::Segment { key, files, stamp } => {
                    let segment = handles.segment(layer, key, *files, *stamp);
                    let opened = match known {
                        Some(known) if !was_lost => Ok(Arc::clone(known)),
                        _ => segment.and_then(|segment| {
                            let index = segment.index().map_err(|_| Error::Layer(layer.id.clone()))?;
                            self.layer(layer, &index, Body::of(segment))
                        }),
                    };
                    match opened {
                        Err(error @ Error::Layer(_)) if lost.is_some() || was_lost => {
                            lost.into_iter().for_each(|lost| lost(&error));
                            Arc::new(Layer::lost(&layer.root))
                        }
                        opened => opened?,
                    }
                }
                TreeAt::Tar { index, length } => {
                    if index.checked_add(*length).is_none_or(|end| end > length_of_small) {
                        return Err(Error::Scene);
                    }
                    let mut bytes = vec![0; usize::try_from(*length).map_err(|_| Error::Scene)?];
                    small.read_exact_at(&mut bytes, *index).map_err(|_| Error::Scene)?;
                    let index = Index::decode(&bytes).map_err(|_| Error::Scene)?;
                    let body = Body::Tar(tar.clone().ok_or(Error::Scene)?);
                    self.layer(layer, &index, body)?
                }
            };
            layers.insert(layer.slot, opened);
        }
        Ok(View::new(parts, &small, Layers { there: layers, absent }, before))
    }

    fn layer(&self, layer: &SceneLayer, index: &Index, body: Body) -> Result<Arc<Layer>, Error> {
        let whiteouts: Result<Vec<_>, _> = layer.whiteouts.iter().map(|path| BASE64.decode(path)).collect();
        let style = Style {
            stamp: self.stamp,
            marks_opaque: self.marks_opaque,
            whiteouts: &whiteouts.map_err(|_| Error::Scene)?,
            root: &layer.root,
        };
        Layer::new(index, body, &style).map(Arc::new).ok_or(Error::Scene)
    }

    /// Everything outside the layers.
    fn parts(&self, small: &File) -> Result<Vec<Part>, Error> {
        let slots: HashMap<Vec<u8>, u32> =
            self.layers.iter().map(|layer| (format!("overlay/{}/diff", layer.id).into_bytes(), layer.slot)).collect();
        let mut parts = Vec::new();
        let mut reader = TarReader::new(BufReader::with_capacity(BUFFER, At { file: small, at: 0 }));
        let bad = |_| Error::Scene;
        loop {
            reader.clear_raw();
            let Some(header) = reader.next_header().map_err(bad)? else { break };
            let (at, length) = (reader.offset(), header.size);
            reader.seek_over_content().map_err(bad)?;
            let path = below_root(&header.name);
            let path = match path.strip_prefix(self.graphroot.as_bytes()) {
                Some(b"") => Vec::new(),
                Some(rest) if self.graphroot.is_empty() => rest.to_vec(),
                Some(rest) if rest.starts_with(b"/") => rest[1..].to_vec(),
                _ => continue,
            };
            let meta = Meta {
                mode: (header.mode & 0o7777) as u16,
                uid: header.uid as u32,
                gid: header.gid as u32,
                mtime: header.mtime,
                xattrs: header.xattrs,
            };
            let kind = match (header.typeflag, slots.get(&path)) {
                (b'5', Some(&slot)) => PartKind::Layer(slot),
                (b'5', None) => PartKind::Directory,
                (b'2', _) => PartKind::Symlink(header.link),
                (b'0', _) => {
                    let token = self.token.filter(|_| LOCKS.contains(&&path[..]));
                    let (at, length) = token.map_or((at, length), |token| (token, TOKEN));
                    PartKind::File { at, length, hash: hash(small, at, length)? }
                }
                _ => continue,
            };
            parts.push(Part { path, meta, kind });
        }
        if !parts.iter().any(|part| part.path.is_empty() && matches!(part.kind, PartKind::Directory)) {
            // A tar may begin below its graphroot.
            let meta = Meta { mode: 0o755, mtime: Timestamp::whole(self.stamp), ..Meta::default() };
            parts.insert(0, Part { path: Vec::new(), meta, kind: PartKind::Directory });
        }
        if let Some(mode) = self.mode {
            let roots = parts.iter_mut().filter(|part| part.path.is_empty());
            roots.for_each(|root| root.meta.mode = mode & 0o7777);
        }
        Ok(parts)
    }

    /// The layer with this id and those below it, as far as they have not been fetched.
    #[must_use]
    pub fn absent_below(&self, plan: &Plan, id: &str) -> BTreeSet<Digest> {
        let chains = plan.images.values().map(|image| image.chain());
        let upto = chains.filter_map(|chain| {
            let at = chain.iter().position(|layer| layer.hex() == id)?;
            chain.get(..=at)
        });
        let absent: HashSet<&str> = self
            .layers
            .iter()
            .filter(|layer| matches!(layer.tree, TreeAt::Absent))
            .map(|layer| layer.id.as_str())
            .collect();
        upto.flatten().filter(|layer| absent.contains(layer.hex().as_str())).copied().collect()
    }
}

/// Which layers are fetched at once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fetch<'a> {
    /// If not all: where the others come from, and which are.
    pub lazily: Option<(&'a Sources, &'a BTreeSet<Digest>)>,
}

/// Reads a file that several have open from a place of its own.
struct At<'a> {
    file: &'a File,
    at: u64,
}

impl io::Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl io::Seek for At<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.file.metadata()?.len().checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

fn hash(file: &File, at: u64, length: u64) -> Result<u64, Error> {
    let mut hasher = Xxh3::new();
    let mut buffer = vec![0; usize::try_from(length).map_or(BUFFER, |length| length.min(BUFFER))];
    let (mut content, mut left) = (At { file, at }.take(length), length);
    while left > 0 {
        match content.read(&mut buffer).map_err(|_| Error::Scene)? {
            0 => return Err(Error::Scene),
            count => {
                hasher.update(&buffer[..count]);
                left -= count as u64;
            }
        }
    }
    Ok(hasher.digest())
}

/// The files of a scene, one after the other.
struct Handles<'a>(std::slice::Iter<'a, OwnedFd>);

impl Handles<'_> {
    fn next(&mut self) -> Result<File, Error> {
        let next = self.0.next().ok_or(Error::Scene)?.try_clone();
        next.map(File::from).map_err(|error| Error::system("opening a layer", error))
    }

    fn segment(
        &mut self,
        layer: &SceneLayer,
        key: &Digest,
        files: usize,
        stamp: Option<Stamp>,
    ) -> Result<Segment, Error> {
        let own = self.next()?;
        let tar = if files > 1 { Some(Arc::new(self.next()?)) } else { None };
        let tar = tar.map(|file| BodyTar { file, trust: Trust::Seen(stamp) });
        Segment::open(own, key, |_| Ok(tar)).map_err(|_| Error::Layer(layer.id.clone()))
    }
}

/// The slots of layers: what a layer has it keeps.
struct Slots {
    known: HashMap<String, u32>,
    taken: HashSet<u32>,
}

impl Slots {
    fn of(before: Option<&Scene>) -> Self {
        let layers = || before.into_iter().flat_map(|before| &before.layers);
        Self {
            known: layers().map(|layer| (layer.id.clone(), layer.slot)).collect(),
            taken: layers().map(|layer| layer.slot).collect(),
        }
    }

    fn take(&mut self, layer: &Digest) -> u32 {
        if let Some(&slot) = self.known.get(&layer.hex()) {
            return slot;
        }
        let mut slot = slot_of(layer);
        while !self.taken.insert(slot) {
            slot = slot % (SLOTS - 1) + 1;
        }
        slot
    }
}

/// Everything of the store that is in no layer's tree, and the roots of those, as a tar.
fn write_small(contents: &Contents, graphroot: &str, out: &mut impl io::Write) -> io::Result<()> {
    let is_in = |path: &[u8]| {
        graphroot.is_empty()
            || path.strip_prefix(graphroot.as_bytes()).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    };
    let entry = |path: &[u8], inode: &Inode, kind: Kind| Entry { path: path.to_vec(), meta: meta_of(inode), kind };
    let mut put = |path: &[u8], inode: &Inode| -> io::Result<()> {
        let kind = match &inode.kind {
            InodeKind::Directory => Kind::Directory,
            InodeKind::Symlink(target) => Kind::Symlink(target.to_vec()),
            InodeKind::Regular { size, .. } => Kind::Regular { size: *size },
            _ => return Ok(()),
        };
        let mut header = Vec::new();
        wire::header(&entry(path, inode, kind.clone()), &mut header);
        out.write_all(&header)?;
        if let Kind::Regular { size } = kind {
            let copied = io::copy(&mut contents.open(path, inode)?.take(size), out)?;
            if copied != size {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            out.write_all(&vec![0; wire::padding(size) as usize])?;
        }
        Ok(())
    };
    for (path, inode) in contents.rest().iter().filter(|(path, _)| !path.is_empty() && is_in(path)) {
        put(path, inode)?;
    }
    for (id, files) in contents.layers(0) {
        if let Some(root) = files.get(b"") {
            let path = crate::inspect::contents::join(graphroot.as_bytes(), format!("overlay/{id}/diff").as_bytes());
            put(&path, root)?;
        }
    }
    out.write_all(&wire::END)
}

fn meta_of(inode: &Inode) -> Meta {
    let (mode, uid, gid, mtime) = (inode.mode, inode.uid, inode.gid, inode.mtime);
    Meta { mode, uid, gid, mtime, xattrs: inode.xattrs.to_vec() }
}

/// The entries of a layer in a tar; where their content is, is where it is in the tar.
fn index_of(files: &Files) -> Index {
    let mut numbers: HashMap<&[u8], u32> = HashMap::new();
    let mut firsts: HashMap<u32, u32> = HashMap::new();
    let mut index = Index::default();
    for (path, inode) in files.iter() {
        let (directory, name) = crate::layer::path::split_last(path);
        let number = index.nodes().len() as u32;
        let parent = if path.is_empty() { Some(0) } else { numbers.get(directory).copied() };
        let is_odd = match &inode.kind {
            InodeKind::Symlink(target) => !is_target(target),
            InodeKind::Regular { size, .. } => i64::try_from(*size).is_err(),
            InodeKind::Directory => false,
            _ => path.is_empty(),
        };
        // A tar may have what no unpacker would make.
        let Some(parent) = parent.filter(|_| !is_odd && (path.is_empty() || is_name(name))) else { continue };
        let first = files.number(path).map_or(number, |inode| *firsts.entry(inode).or_insert(number));
        index.add(parent, name, (first != number).then_some(first), inode.clone());
        if inode.kind == InodeKind::Directory {
            numbers.insert(path, number);
        }
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_keep_their_slots_and_no_two_have_one() {
        let digest = |last: u8| {
            let mut bytes = [7; 32];
            bytes[31] = last;
            Digest::from_hex(&bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()).unwrap()
        };
        let mut slots = Slots::of(None);
        // Their first bytes, from which slots follow, are the same.
        let taken: Vec<u32> = (0..5).map(|last| slots.take(&digest(last))).collect();
        assert_eq!(taken[0], slot_of(&digest(0)));
        assert_eq!(taken.iter().collect::<HashSet<_>>().len(), 5);
        assert!(taken.iter().all(|slot| (1..SLOTS).contains(slot)));
        let layer = |last: u8, slot: u32| SceneLayer {
            id: digest(last).hex(),
            slot,
            root: Meta::default(),
            whiteouts: Vec::new(),
            tree: TreeAt::Tar { index: 0, length: 0 },
        };
        let before = Scene {
            generation: 1,
            images: Vec::new(),
            tar: None,
            mode: None,
            graphroot: String::new(),
            stamp: 0,
            marks_opaque: true,
            lazy: None,
            token: None,
            layers: vec![layer(3, taken[3]), layer(1, taken[1])],
        };
        let mut slots = Slots::of(Some(&before));
        assert_eq!(slots.take(&digest(3)), taken[3]);
        assert_eq!(slots.take(&digest(0)), taken[0]);
        assert_eq!(slots.take(&digest(1)), taken[1]);
        assert!(!taken[..2].contains(&slots.take(&digest(2))));
    }
}
