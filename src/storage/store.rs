//! The store as one sequence of tar pieces.
//!
//! ```text
//!  skeleton ─▶ layer ─▶ layer ─▶ … ─▶ images ─▶ layers.json, images.json ─▶ the machine's files ─▶ end
//! ```
//!
//! Layers come in an order that follows from the images alone, parents before children. Every piece is either a few bytes made
//! here or a range of a segment, so what is large is never held.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::machine::{self, Losses};
use super::opaque::{MergedView, has_opaque_directories};
use super::record::{StoreImage, layer_record};
use super::restore::{self, Helper, Manifest};
use super::{big_data_file_name, link_name};
use crate::digest::Digest;
use crate::entry::{Device, Entry, Kind, Meta, Timestamp};
use crate::go_types::utc;
use crate::helper::publish::record::LayerRecord;
use crate::helper::receive;
use crate::json;
use crate::layer::tree::InodeKind;
use crate::segment::file::{Error as SegmentError, Segment};
use crate::segment::index::Index;
use crate::wire;

/// Bytes of headers in one piece, about: a layer may have hundreds of thousands of directories.
const TAIL_PIECE: usize = 256 << 10;

/// What the rc script's file `state` says before the script has run.
const PENDING: &[u8] = b"pending\n";

/// How the store will be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// As the machine's own store: `graphroot`.
    Primary,
    /// As a read-only store beside it: `additionalimagestores`.
    Additional,
}

/// What unpacks the tar in the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unpacker {
    /// `busybox tar`, perhaps with `-o`: no extended attributes, perhaps no owners.
    Busybox,
    /// GNU tar with `--xattrs --xattrs-include='*'`, bsdtar, or anything as able.
    Gnu,
    /// prepull's own [`helper`](crate::helper), which gives every directory its metadata when its header comes again, and may
    /// not set `trusted.*`.
    Helper,
    /// The same with all privileges.
    Root,
}

impl Unpacker {
    /// Whether opaque directories are written as whiteouts of all that they hide, since there is no attribute for it.
    fn expands_opaque(self) -> bool {
        matches!(self, Self::Busybox | Self::Helper)
    }

    /// Returns whether the graphroot, the directories above it, and those of the machine's files need entries.
    ///
    /// prepull's own unpacker writes into an empty directory and makes no parents. All others make missing parents (root's,
    /// 0777 without the umask) and follow symbolic links on the way (bsdtar with `-P`), but an entry for a directory that is
    /// there changes its owner, mode and time, and GNU tar and bsdtar replace a link to a directory by a directory, which
    /// hides the machine's files behind it (GNU tar `extract.c`, `extract_dir`; libarchive `archive_write_disk_posix.c`,
    /// `restore_entry`). So their tars have entries only for what is in the store, and for the machine's files.
    fn needs_parents(self) -> bool {
        matches!(self, Self::Helper | Self::Root)
    }
}

/// What of the output does not follow from the images.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the store lies in the machine: absolute, cleaned, not `/`.
    pub graphroot: String,
    /// How it will be used.
    pub kind: StoreKind,
    /// What will unpack it.
    pub unpacker: Unpacker,
    /// Whether the machine's configuration goes along.
    pub config: bool,
    /// Configuration of the stores beside which this one is put.
    pub beside: machine::Beside,
    /// Whether layers and images are for a store that is there ([`helper::receive`](crate::helper::receive)): without the
    /// store's own directories, each with its record behind it.
    pub merge: bool,
    /// The pause image's name in the store.
    pub pause: Option<String>,
    /// The time of everything that no image dates, in seconds since 1970.
    pub stamp: i64,
    /// For [`Unpacker::Busybox`]: what puts back in the machine what it drops.
    pub helper: Option<Helper>,
}

/// A part of the output.
#[derive(Debug)]
pub enum Piece {
    /// Bytes.
    Bytes(Vec<u8>),
    /// Part of a segment's data.
    Segment {
        /// The segment.
        segment: Arc<Segment>,
        /// Whose segment it is.
        layer: Digest,
        /// First byte.
        start: u64,
        /// Number of bytes.
        length: u64,
    },
}

impl Piece {
    /// Bytes in the output.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Segment { length, .. } => *length,
        }
    }

    /// Whether it adds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A layer that a store needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreLayer {
    /// Its id.
    pub id: Digest,
    /// The layer below.
    pub parent: Option<Digest>,
    /// The manifest's and config's view of it.
    pub layer: crate::image::Layer,
}

/// All layers of `images`, each once, parents before children.
///
/// The order follows from the set of images. Of several blobs for one layer (compressed differently in several manifests) the
/// one of the lowest [`Layer::rank`](crate::image::Layer::rank) is taken, of those with the same rank the one with the smallest digest.
#[must_use]
pub fn layers_of(images: &BTreeMap<Digest, StoreImage>) -> Vec<StoreLayer> {
    let mut order: Vec<StoreLayer> = Vec::new();
    let mut place: BTreeMap<Digest, usize> = BTreeMap::new();
    for image in images.values() {
        let mut parent = None;
        for (number, id) in image.chain().iter().enumerate() {
            for layer in image.manifest_layers().filter_map(|layers| layers.get(number)) {
                match place.get(id) {
                    Some(&at) if order[at].layer.preference() <= layer.preference() => {}
                    Some(&at) => order[at].layer = layer.clone(),
                    None => {
                        place.insert(*id, order.len());
                        order.push(StoreLayer { id: *id, parent, layer: layer.clone() });
                    }
                }
            }
            parent = Some(*id);
        }
    }
    order
}

/// The path in front of a layer's entries: what its segment depends on beside the layer.
#[must_use]
pub fn body_prefix(graphroot: &str, layer: &Digest) -> Vec<u8> {
    format!("{}/overlay/{}/diff/", graphroot.trim_start_matches('/'), layer.hex()).into_bytes()
}

/// Mode and owner of a layer's root directory.
#[derive(Debug, Clone, Copy)]
struct Root {
    mode: u16,
    uid: u32,
    gid: u32,
}

/// What [`Store::tail`] needs to know of a layer.
#[derive(Debug)]
pub struct Tail {
    index: Index,
    /// The root's entry.
    pub root: Entry,
    /// Whiteouts that stand for opaque directories: paths below the layer's root.
    pub whiteouts: Vec<Vec<u8>>,
}

/// What has been put into a store so far.
#[derive(Debug)]
pub struct Store<'a> {
    settings: &'a Settings,
    images: &'a BTreeMap<Digest, StoreImage>,
    segments: BTreeMap<Digest, (Option<Digest>, Arc<Segment>)>,
    roots: BTreeMap<Digest, Root>,
    records: Vec<LayerRecord>,
    losses: Losses,
    manifest: Manifest,
    /// The merged view of the layer named and all below it.
    view: (Option<Digest>, MergedView),
    warnings: Vec<String>,
}

impl<'a> Store<'a> {
    /// An empty store for `images`.
    #[must_use]
    pub fn new(settings: &'a Settings, images: &'a BTreeMap<Digest, StoreImage>) -> Self {
        Self {
            settings,
            images,
            segments: BTreeMap::new(),
            roots: BTreeMap::new(),
            records: Vec::new(),
            losses: Losses::default(),
            manifest: Manifest::default(),
            view: (None, MergedView::default()),
            warnings: Vec::new(),
        }
    }

    /// What could not be kept, one line each; complete after [`Self::finish`].
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Returns the store's directories, and its files that do not depend on images.
    ///
    /// A tar has no entry for the graphroot or for a directory above it: see `Unpacker::needs_parents`.
    #[must_use]
    pub fn skeleton(&self) -> Piece {
        let mut out = Vec::new();
        let graphroot = self.graphroot();
        if self.settings.unpacker.needs_parents() {
            for (slash, _) in graphroot.match_indices('/') {
                self.directory(&mut out, &graphroot[..slash], 0o755);
            }
            self.directory(&mut out, graphroot, self.directory_mode());
        }
        for directory in ["overlay", "overlay-layers", "overlay-images", "overlay-containers"] {
            self.directory(&mut out, &self.below(directory), self.directory_mode());
        }
        self.directory(&mut out, &self.below("overlay/l"), 0o755);
        self.file(&mut out, &self.below("overlay/.has-mount-program"), self.file_mode(), b"false");
        let locks = [
            "storage.lock",
            "userns.lock",
            "overlay-layers/layers.lock",
            "overlay-images/images.lock",
            "overlay-containers/containers.lock",
        ];
        for lock in locks {
            self.file(&mut out, &self.below(lock), 0o644, b"");
        }
        Piece::Bytes(out)
    }

    /// Bytes before the header of a layer's root directory, which its body follows.
    #[must_use]
    pub fn head_len(&self, layer: &StoreLayer) -> u64 {
        let mut head = Vec::new();
        if !self.settings.merge {
            self.layer_head(&mut head, layer);
        }
        head.len() as u64
    }

    /// A layer, whose parent must have been added before: its first pieces, down to the end of its body. The rest must be
    /// taken from [`Self::tail`].
    ///
    /// # Errors
    /// When a segment turns out to be damaged: whose, and how.
    pub fn layer(
        &mut self,
        layer: &StoreLayer,
        segment: &Arc<Segment>,
    ) -> Result<(Vec<Piece>, Tail), (Digest, SegmentError)> {
        let index = segment.index().map_err(|error| (layer.id, error))?;
        let whiteouts = self.opaque_whiteouts(layer, &index)?;
        let id = layer.id.hex();
        self.warnings.extend(segment.facts().warnings.iter().map(|warning| format!("layer {id}: {warning}")));
        let created = utc(self.settings.stamp);
        self.records.push(layer_record(&layer.id, layer.parent.as_ref(), segment.facts(), &created));
        self.segments.insert(layer.id, (layer.parent, Arc::clone(segment)));

        let mut root = self.root_entry(layer, &index, segment.facts().root_claimed);
        if self.settings.unpacker == Unpacker::Busybox {
            self.losses.add(&id, &index, &root.meta, self.settings.helper.is_some());
            if self.settings.helper.is_some() {
                self.manifest.add(&layer.id, &index, &root, self.settings.stamp);
            }
        }
        if index.nodes()[0].inode.opaque && !self.settings.unpacker.expands_opaque() {
            set_opaque(&mut root);
        }
        let mut head = Vec::new();
        if !self.settings.merge {
            self.layer_head(&mut head, layer);
        }
        wire::header(&root, &mut head);

        let range = |start, end| part_of(segment, layer, start, end);
        let mut pieces = vec![Piece::Bytes(head)];
        let mut at = 0;
        if self.settings.unpacker == Unpacker::Gnu {
            // Who ignores a directory's second header (mksquashfs -tar) must find the marker in its first.
            let prefix = body_prefix(&self.settings.graphroot, &layer.id);
            for header in &segment.facts().opaque {
                let mut entry = index.entry(header.node, &prefix, self.settings.stamp);
                set_opaque(&mut entry);
                let mut bytes = Vec::new();
                wire::header(&entry, &mut bytes);
                pieces.extend([range(at, header.start), Piece::Bytes(bytes)]);
                at = header.start + header.length;
            }
        }
        pieces.push(range(at, segment.body_len()));
        Ok((pieces, Tail { index, root, whiteouts }))
    }

    /// Hands out what comes after a layer's body: what of its tree is not in there (whiteouts, and directories once more),
    /// its link and its tar-split.
    ///
    /// # Errors
    /// What `push` gives.
    pub fn tail<E>(
        &self,
        layer: &StoreLayer,
        segment: &Arc<Segment>,
        tail: &Tail,
        mut push: impl FnMut(Piece) -> Result<(), E>,
    ) -> Result<(), E> {
        let Tail { index, root, whiteouts } = tail;
        let mut out = Vec::new();
        let mut add = |entry: &Entry| {
            wire::header(entry, &mut out);
            if out.len() < TAIL_PIECE { Ok(()) } else { push(Piece::Bytes(std::mem::take(&mut out))) }
        };
        let prefix = body_prefix(&self.settings.graphroot, &layer.id);
        for (number, _) in index.nodes().iter().enumerate().filter(|(_, node)| node.inode.whiteout) {
            add(&index.entry(number as u32, &prefix, self.settings.stamp))?;
        }
        for path in whiteouts {
            let meta = Meta { mtime: Timestamp::whole(self.settings.stamp), ..Meta::default() };
            let path = [&prefix[..], path].concat();
            add(&Entry { path, meta, kind: Kind::CharDevice(Device::WHITEOUT) })?;
        }
        let touched = match self.settings.unpacker {
            Unpacker::Gnu => filled_after_left(index),
            // busybox sets a directory's time before it fills the directory.
            _ => vec![true; index.nodes().len()],
        };
        for (number, node) in index.nodes().iter().enumerate().rev() {
            if node.inode.kind != InodeKind::Directory || !touched[number] {
                continue;
            }
            let opaque = node.inode.opaque && !self.settings.unpacker.expands_opaque();
            let mut entry =
                if number == 0 { root.clone() } else { index.entry(number as u32, &prefix, self.settings.stamp) };
            if opaque && number != 0 {
                set_opaque(&mut entry);
            }
            add(&entry)?;
        }
        push(Piece::Bytes(out))?;
        self.beside(layer, segment, push)
    }

    /// Hands out what of a layer is beside its tree: its link and its tar-split.
    ///
    /// # Errors
    /// What `push` gives.
    pub fn beside<E>(
        &self,
        layer: &StoreLayer,
        segment: &Arc<Segment>,
        mut push: impl FnMut(Piece) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut out = Vec::new();
        let id = layer.id.hex();
        if !self.settings.merge {
            let link = Kind::Symlink(format!("../{id}/diff").into_bytes());
            let path = self.below(&format!("overlay/l/{}", link_name(&layer.id)));
            wire::header(&self.entry(&path, 0o777, link), &mut out);
        }
        if segment.split_len() == 0 {
            // Not before the layer is there.
            return push(Piece::Bytes(out));
        }
        let split = self.below(&format!("overlay-layers/{id}.tar-split.gz"));
        wire::header(&self.entry(&split, self.file_mode(), Kind::Regular { size: segment.split_len() }), &mut out);
        push(Piece::Bytes(out))?;
        let (start, length) = (segment.body_len(), segment.split_len());
        push(part_of(segment, layer, start, start + length))?;
        let mut end = vec![0; wire::padding(length) as usize];
        if self.settings.merge {
            let record = self.records.iter().rev().find(|record| record.id == id);
            self.record(&mut end, receive::LAYER, &record.map(LayerRecord::to_lines).unwrap_or_default());
        }
        push(Piece::Bytes(end))
    }

    /// The images for a store that is there: those in `wanted`, and the end of the stream.
    #[must_use]
    pub fn images(&self, wanted: &BTreeSet<Digest>) -> Piece {
        let mut out = Vec::new();
        let stamp = utc(self.settings.stamp);
        for image in self.images.values().filter(|image| wanted.contains(image.id())) {
            for (key, bytes) in image.big_data() {
                let path = self.below(&format!("overlay-images/{}/{key}", image.id().hex()));
                self.file(&mut out, &path, 0o600, bytes);
            }
            self.record(&mut out, receive::IMAGE, &image.record(&stamp).to_lines());
        }
        out.extend_from_slice(&wire::END);
        Piece::Bytes(out)
    }

    /// An entry of the helper's protocol.
    fn record(&self, out: &mut Vec<u8>, name: &[u8], lines: &str) {
        self.file(out, &String::from_utf8_lossy(name), 0o600, lines.as_bytes());
    }

    /// Hands out what comes after the last layer.
    ///
    /// # Errors
    /// When a record cannot be JSON, which would be a defect; as [`Self::layer`]; and what `push` gives.
    pub fn finish<E>(&mut self, mut push: impl FnMut(Piece) -> Result<(), E>) -> Result<(), E>
    where
        E: From<serde_json::Error> + From<(Digest, SegmentError)>,
    {
        let mut out = Vec::new();
        for image in self.images.values() {
            let directory = self.below(&format!("overlay-images/{}", image.id().hex()));
            self.directory(&mut out, &directory, self.directory_mode());
            for (key, bytes) in image.big_data() {
                self.file(&mut out, &format!("{directory}/{}", big_data_file_name(&key)), self.file_mode(), bytes);
            }
        }
        self.machine_files(&mut out);
        if self.settings.unpacker == Unpacker::Busybox {
            self.restore_manifest(&mut out, &mut push)?;
            let mut state = self.entry(&self.list("state"), 0o644, Kind::Regular { size: PENDING.len() as u64 });
            (state.meta.uid, state.meta.gid) = (machine::NOBODY, machine::NOBODY);
            wire::small_file(&mut out, &state, PENDING);
        }
        let stamp = utc(self.settings.stamp);
        let images: Vec<_> = self.images.values().map(|image| image.record(&stamp)).collect();
        let layers = json::write::to_vec(&self.records)?;
        self.file(&mut out, &self.below("overlay-layers/layers.json"), self.file_mode(), &layers);
        self.file(
            &mut out,
            &self.below("overlay-images/images.json"),
            self.file_mode(),
            &json::write::to_vec(&images)?,
        );
        out.extend_from_slice(&wire::END);
        if !self.losses.lost_xattrs().is_empty() {
            let files = self.losses.lost_xattrs();
            self.warnings.push(format!(
                "busybox tar will drop the extended attributes of {} file(s) (listed in usr/share/prepull/xattrs{}): {}",
                files.len(),
                if self.settings.helper.is_some() { "" } else { "; a static prepull-helper, given as --restore-helper, puts them back" },
                some_of(files)
            ));
        }
        push(Piece::Bytes(out))
    }

    fn layer_head(&self, out: &mut Vec<u8>, layer: &StoreLayer) {
        let directory = self.below(&format!("overlay/{}", layer.id.hex()));
        self.directory(out, &directory, self.directory_mode());
        self.file(out, &format!("{directory}/link"), 0o644, link_name(&layer.id).as_bytes());
        let lowers = self.lowers(layer.parent);
        if lowers.is_empty() {
            self.directory(out, &format!("{directory}/empty"), self.directory_mode());
        } else {
            let links: Vec<_> = lowers.iter().map(|id| format!("l/{}", link_name(id))).collect();
            let ids: Vec<_> = lowers.iter().map(Digest::hex).collect();
            self.file(out, &format!("{directory}/lower"), 0o644, links.join(":").as_bytes());
            self.file(out, &format!("{directory}/lower-layers"), 0o644, ids.join(":").as_bytes());
        }
        self.directory(out, &format!("{directory}/merged"), self.directory_mode());
        self.directory(out, &format!("{directory}/work"), self.directory_mode());
    }

    /// A root that no entry `/` claims has its parent's owner, and its mode as far as `mkdir` with umask 022 takes it
    /// (containers/storage `drivers/overlay/overlay.go`, `getLayerPermissions`).
    fn root_entry(&mut self, layer: &StoreLayer, index: &Index, claimed: bool) -> Entry {
        let mut entry = index.entry(0, &body_prefix(&self.settings.graphroot, &layer.id), self.settings.stamp);
        let inherited = layer.parent.and_then(|parent| self.roots.get(&parent).copied());
        if let (false, Some(Root { mode, uid, gid })) = (claimed, inherited) {
            entry.meta = Meta { mode: mode & 0o755, uid, gid, ..entry.meta };
        }
        let Meta { mode, uid, gid, .. } = entry.meta;
        self.roots.insert(layer.id, Root { mode, uid, gid });
        entry
    }

    /// Ids of the layers from `parent` down, nearest first.
    fn lowers(&self, parent: Option<Digest>) -> Vec<Digest> {
        let below = |id: &Digest| self.segments.get(id).and_then(|(parent, _)| *parent);
        std::iter::successors(parent, below).collect()
    }

    fn opaque_whiteouts(&mut self, layer: &StoreLayer, index: &Index) -> Result<Vec<Vec<u8>>, (Digest, SegmentError)> {
        let is_needed = self.settings.unpacker.expands_opaque() && layer.parent.is_some();
        if !is_needed || !has_opaque_directories(index) {
            return Ok(Vec::new());
        }
        // Chains come from the bottom up, so what is at hand is often a part of what is needed.
        let lowers = self.lowers(layer.parent);
        let have = lowers.iter().position(|id| self.view.0.as_ref() == Some(id)).unwrap_or(lowers.len());
        if have == lowers.len() {
            self.view = (None, MergedView::default());
        }
        for id in lowers[..have].iter().rev() {
            if let Some((_, segment)) = self.segments.get(id) {
                let index = segment.index().map_err(|error| (*id, error))?;
                self.view.1.stack(&index);
            }
        }
        self.view.0 = layer.parent;
        Ok(self.view.1.whiteouts_for(index))
    }

    fn machine_files(&self, out: &mut Vec<u8>) {
        let settings = self.settings;
        let mut made = BTreeSet::new();
        let mut add = |path: &str, mode, content: &[u8]| {
            for (slash, _) in path.match_indices('/') {
                if settings.unpacker.needs_parents() && made.insert(path[..slash].to_owned()) {
                    self.directory(out, &path[..slash], 0o755);
                }
            }
            self.file(out, path, mode, content);
        };
        if settings.config {
            let names: BTreeSet<_> = self.images.values().flat_map(StoreImage::names).collect();
            let (graphroot, beside) = (&settings.graphroot[..], &settings.beside);
            let additional = settings.kind == StoreKind::Additional;
            let crio =
                machine::CrioConf::new(names.into_iter(), settings.pause.as_deref(), (graphroot, additional), beside);
            let storage = machine::storage_conf(graphroot, additional, beside);
            add("etc/containers/policy.json", 0o644, machine::POLICY.as_bytes());
            add("etc/containers/storage.conf", 0o644, storage.as_bytes());
            add(&machine::drop_in_path(graphroot, additional, beside), 0o644, crio.render().as_bytes());
        }
        if settings.unpacker == Unpacker::Busybox {
            add("etc/init.d/25prepull.rc", 0o755, machine::RESTORE.as_bytes());
            if !self.losses.xattrs().is_empty() {
                add("usr/share/prepull/xattrs", 0o644, self.losses.xattrs());
            }
            add(&self.list("overlay"), 0o644, format!("{}\n", self.below("overlay")).as_bytes());
            for (path, list) in self.losses.lists() {
                add(&self.list(&path), 0o644, list);
            }
            if let (Some(helper), false) = (&settings.helper, self.manifest.is_empty()) {
                add(&self.list(restore::HELPER), 0o755, helper.bytes());
            }
        }
    }

    /// The helper's manifest, if there is something to restore.
    fn restore_manifest<E: From<(Digest, SegmentError)>>(
        &self,
        out: &mut Vec<u8>,
        push: &mut impl FnMut(Piece) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.manifest.is_empty() {
            return Ok(());
        }
        let size = self.manifest.len() + wire::END.len() as u64;
        wire::header(&self.entry(&self.list(restore::MANIFEST), 0o644, Kind::Regular { size }), out);
        for (id, root) in self.manifest.layers() {
            let Some((_, segment)) = self.segments.get(id) else { continue };
            let index = segment.index().map_err(|error| (*id, error))?;
            for entry in restore::entries(id, &index, root, self.settings.stamp) {
                wire::header(&entry, out);
                if out.len() >= TAIL_PIECE {
                    push(Piece::Bytes(std::mem::take(out)))?;
                }
            }
        }
        // Its length is one of whole blocks.
        out.extend_from_slice(&wire::END);
        Ok(())
    }

    /// A path in the directory of the lists for the machine.
    fn list(&self, path: &str) -> String {
        format!("{}/{path}", machine::lists_directory(&self.settings.graphroot))
    }

    fn graphroot(&self) -> &str {
        self.settings.graphroot.trim_start_matches('/')
    }

    fn below(&self, path: &str) -> String {
        format!("{}/{path}", self.graphroot())
    }

    /// An additional store is read by users who are not root, too.
    fn directory_mode(&self) -> u16 {
        if self.settings.kind == StoreKind::Additional { 0o755 } else { 0o700 }
    }

    fn file_mode(&self) -> u16 {
        if self.settings.kind == StoreKind::Additional { 0o644 } else { 0o600 }
    }

    fn entry(&self, path: &str, mode: u16, kind: Kind) -> Entry {
        let meta = Meta { mode, mtime: Timestamp::whole(self.settings.stamp), ..Meta::default() };
        Entry { path: path.as_bytes().to_vec(), meta, kind }
    }

    fn directory(&self, out: &mut Vec<u8>, path: &str, mode: u16) {
        wire::header(&self.entry(path, mode, Kind::Directory), out);
    }

    fn file(&self, out: &mut Vec<u8>, path: &str, mode: u16, content: &[u8]) {
        wire::small_file(out, &self.entry(path, mode, Kind::Regular { size: content.len() as u64 }), content);
    }
}

/// A range of a segment's data.
fn part_of(segment: &Arc<Segment>, layer: &StoreLayer, start: u64, end: u64) -> Piece {
    Piece::Segment { segment: Arc::clone(segment), layer: layer.id, start, length: end - start }
}

fn set_opaque(directory: &mut Entry) {
    directory.meta.xattrs.push((b"trusted.overlay.opaque".to_vec(), b"y".to_vec()));
    directory.meta.xattrs.sort();
}

/// The directories into which something is put after GNU tar has left them, which is when it sets their times
/// (`extract.c`, `apply_nonancestor_delayed_set_stat`). Whiteouts come after the body, so their directories are among them.
fn filled_after_left(index: &Index) -> Vec<bool> {
    let nodes = index.nodes();
    let mut touched = vec![false; nodes.len()];
    let mut last = 0;
    for (number, node) in nodes.iter().enumerate().skip(1) {
        if node.inode.whiteout {
            touched[node.parent as usize] = true;
            continue;
        }
        // Still inside the directory if it is the last entry or one of its parents.
        let mut at = last;
        while at > node.parent as usize {
            at = nodes[at].parent as usize;
        }
        touched[node.parent as usize] |= at != node.parent as usize;
        last = number;
    }
    touched
}

/// The first few of a list, for a line that a person reads.
fn some_of(list: &[String]) -> String {
    const SHOWN: usize = 10;
    let mut text = list[..list.len().min(SHOWN)].join(", ");
    if list.len() > SHOWN {
        text += &format!(" and {} more", list.len() - SHOWN);
    }
    text
}
