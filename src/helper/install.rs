//! New layers and images: received into staging, and published together.
//!
//! ```text
//!  no lock:   layer ▶ layer ▶ … ▶ image ▶ …   into .prepull-staging-N, then on the disk (syncfs)
//!  all locks: read the records again ▶ layers renamed in ▶ layers.json ▶ images renamed in ▶ images.json
//! ```
//!
//! A layer is complete before anything names it, and an image's layers are there before the image is. Whoever is killed in
//! between leaves a store with the old images in it, and directories that no record names.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::time::Instant;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use base64::Engine as _;

use super::Error;
use super::apply::{Budget, Tree};
use super::record::{ImageRecord, LayerRecord, Lines, PER_IMAGE_MAX, RECORD_MAX, RECORDS_MAX, is_id};
use super::root::Dir;
use super::staging::Staging;
use super::store::{Image, LAYERS_MAX, Layer, Locked, Store};
use crate::entry::{Entry, Kind};
use crate::wire::read::Reader;

/// The name of the entry that ends a layer: its record.
pub const LAYER: &[u8] = b"prepull-layer";

/// The name of the entry that ends an image: its record.
pub const IMAGE: &[u8] = b"prepull-image";

/// The most bytes of one file of an image: containers/image reads manifests to 4 MiB, and configs are as large at most.
const BIG_DATA_MAX: u64 = 16 << 20;

/// The most layers of one stream: two hundred images of twenty-five. While they are published others wait for the locks.
const LAYERS_RECEIVED_MAX: usize = 5000;

/// What a layer takes beside its content: directories, and files with names of layers.
const LAYER_INODES: usize = 9;

/// The most images of one stream.
const IMAGES_RECEIVED_MAX: usize = 5000;

/// What has come so far.
#[derive(Debug)]
pub struct Received {
    /// Where it is.
    staging: Staging,
    /// The path in front of everything in the stream: the graphroot, with a slash at its end.
    prefix: Vec<u8>,
    layers: Vec<LayerRecord>,
    images: Vec<ImageRecord>,
    /// Bytes of records that may still come.
    records: u64,
    open: Open,
}

/// What the last entries were of.
#[derive(Debug)]
enum Open {
    Nothing,
    Layer { id: String, tree: Box<Tree>, has_split: bool },
    Image { id: String, files: BTreeMap<String, u64> },
}

/// What has been done.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Done {
    /// Layers that were published.
    pub layers: u64,
    /// Images that are new.
    pub images: u64,
    /// Names that an image has got.
    pub names: u64,
}

impl Received {
    /// Nothing yet.
    #[must_use]
    pub fn new(staging: Staging, prefix: Vec<u8>) -> Self {
        Self { staging, prefix, layers: Vec::new(), images: Vec::new(), records: RECORDS_MAX, open: Open::Nothing }
    }

    /// The staging directory, when all is over.
    #[must_use]
    pub fn into_staging(self) -> Staging {
        self.staging
    }

    /// Takes the next entry.
    ///
    /// # Errors
    /// When it does not belong here, may not be, or cannot be made.
    pub fn take<R: Read>(&mut self, budget: &mut Budget, entry: &Entry, input: &mut Reader<R>) -> Result<(), Error> {
        if entry.path == LAYER {
            let record = LayerRecord::parse(&read_text(entry, input, &mut self.records)?)?;
            return self.end_layer(record);
        }
        if entry.path == IMAGE {
            let record = ImageRecord::parse(&read_text(entry, input, &mut self.records)?)?;
            return self.end_image(record);
        }
        let path = entry.path.strip_prefix(&self.prefix[..]).ok_or_else(|| refuse(entry, "it is not in the store"))?;
        let mut parts = path.splitn(4, |&byte| byte == b'/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(b"overlay"), Some(id), Some(b"diff"), below) => {
                self.in_layer(budget, id, below.unwrap_or_default(), entry, input)
            }
            (Some(b"overlay-layers"), Some(name), None, None) => self.split(budget, name, entry, input),
            (Some(b"overlay-images"), Some(id), Some(key), None) => self.in_image(budget, id, key, entry, input),
            _ => Err(refuse(entry, "it is no file of a layer or image")),
        }
    }

    fn in_layer<R: Read>(
        &mut self,
        budget: &mut Budget,
        id: &[u8],
        below: &[u8],
        entry: &Entry,
        input: &mut Reader<R>,
    ) -> Result<(), Error> {
        match &mut self.open {
            Open::Layer { id: open, tree, .. } if open.as_bytes() == id => tree.place(budget, below, entry, input),
            Open::Nothing if below.is_empty() && entry.kind == Kind::Directory => {
                let id = text_id(id).ok_or_else(|| refuse(entry, "its layer has no valid id"))?;
                let failed = |error| Error::system(format!("making layer {id}"), error);
                (0..LAYER_INODES).try_for_each(|_| budget.take(entry, 0))?;
                let layer = self.staging.dir.make(id.as_bytes(), 0o700).map_err(failed)?;
                let diff = layer.make(b"diff", 0o700).map_err(failed)?;
                let prefix = [&entry.path[..], b"/"].concat();
                let tree = Box::new(Tree::new(diff, prefix, false).map_err(failed)?);
                self.open = Open::Layer { id, tree, has_split: false };
                Ok(())
            }
            _ => Err(refuse(entry, "another layer or image is not complete yet")),
        }
    }

    fn split<R: Read>(
        &mut self,
        budget: &mut Budget,
        name: &[u8],
        entry: &Entry,
        input: &mut Reader<R>,
    ) -> Result<(), Error> {
        match &mut self.open {
            Open::Layer { id, has_split, .. } if name == format!("{id}.tar-split.gz").as_bytes() && !*has_split => {
                *has_split = true;
                file(budget, &self.staging.dir, name, entry, input)
            }
            _ => Err(refuse(entry, "it does not belong to the layer before it")),
        }
    }

    fn in_image<R: Read>(
        &mut self,
        budget: &mut Budget,
        id: &[u8],
        key: &[u8],
        entry: &Entry,
        input: &mut Reader<R>,
    ) -> Result<(), Error> {
        let id = text_id(id).ok_or_else(|| refuse(entry, "its image has no valid id"))?;
        if matches!(self.open, Open::Nothing) {
            let made = self.staging.dir.make(image_directory(&id).as_bytes(), 0o700);
            made.map_err(|error| Error::system(format!("making image {id}"), error))?;
            self.open = Open::Image { id: id.clone(), files: BTreeMap::new() };
        }
        let (Open::Image { id: open, files }, Ok(key), Kind::Regular { size }) =
            (&mut self.open, std::str::from_utf8(key), &entry.kind)
        else {
            return Err(refuse(entry, "it does not belong to the image before it"));
        };
        if *open != id || *size > BIG_DATA_MAX {
            return Err(refuse(entry, "it does not belong to the image before it, or is too large"));
        }
        if files.len() == PER_IMAGE_MAX {
            return Err(refuse(entry, "too many files of one image"));
        }
        files.insert(key.to_owned(), *size);
        let directory = self.staging.dir.open(image_directory(&id).as_bytes());
        let directory = directory.map_err(|error| Error::system(format!("opening image {id}"), error))?;
        file(budget, &directory, file_name(key).as_bytes(), entry, input)
    }

    fn end_layer(&mut self, record: LayerRecord) -> Result<(), Error> {
        let Open::Layer { id, has_split: true, .. } = &self.open else {
            return Err(Error::Request("a layer's record without its files"));
        };
        if *id != record.id || record.parent == record.id {
            return Err(Error::Request("a layer's record that is not of the layer before it"));
        }
        let made = self.staging.dir.open(id.as_bytes()).and_then(|layer| {
            layer.make(b"merged", 0o700)?;
            layer.make(b"work", 0o700)?;
            // What is below a layer that nothing is below (`overlay.go`, `get`).
            if record.parent.is_empty() { layer.make(b"empty", 0o700).map(drop) } else { Ok(()) }
        });
        made.map_err(|error| Error::system(format!("making layer {id}"), error))?;
        if self.layers.len() == LAYERS_RECEIVED_MAX {
            return Err(Error::Request("too many layers at once"));
        }
        self.layers.push(record);
        self.open = Open::Nothing;
        Ok(())
    }

    fn end_image(&mut self, record: ImageRecord) -> Result<(), Error> {
        let Open::Image { id, files } = &self.open else {
            return Err(Error::Request("an image's record without its files"));
        };
        if *id != record.id || *files != record.big_data_sizes {
            return Err(Error::Request("an image's record that is not of the image before it"));
        }
        if self.images.len() == IMAGES_RECEIVED_MAX {
            return Err(Error::Request("too many images at once"));
        }
        self.images.push(record);
        self.open = Open::Nothing;
        Ok(())
    }

    /// Publishes everything. Nothing has been received after the end of the stream.
    ///
    /// # Errors
    /// [`Error::Missing`] when layers are neither here nor in the store; then nothing was published. Others when the store cannot
    /// be read or written: then it has the old images, and perhaps the new ones.
    pub fn publish(&self, store: &Store, deadline: Instant) -> Result<Done, Error> {
        if !matches!(self.open, Open::Nothing) {
            return Err(Error::Request("the last layer or image is not complete"));
        }
        // All content must be on the disk before anything names it: an image that a power cut leaves empty would be believed.
        rustix::fs::syncfs(&self.staging.dir).map_err(|error| Error::system("writing to the disk", error))?;
        let locked = store.lock(deadline)?;
        let mut layers = store.read_layers()?;
        let mut images = store.read_images()?;
        // containers/storage deletes what is incomplete as soon as it looks.
        let new: BTreeSet<&str> = self.layers.iter().map(|layer| &layer.id[..]).collect();
        let (incomplete, kept): (Vec<_>, Vec<_>) =
            layers.into_iter().partition(|layer| layer.is_incomplete && new.contains(&layer.id[..]));
        layers = kept;
        let incomplete: BTreeSet<String> = incomplete.into_iter().map(|layer| layer.id).collect();
        // What a container writes to is nothing to stand on.
        let containers: BTreeSet<String> =
            store.read_containers()?.into_iter().map(|container| container.layer).collect();
        let is_containers = |layer: &Layer| layer.is_volatile() || containers.contains(&layer.id);
        let missing = self.missing(store, layers.iter().filter(|layer| !is_containers(layer)));
        if !missing.is_empty() {
            return Err(Error::Missing(missing));
        }
        let mut done = Done::default();
        let over =
            || if Instant::now() < deadline { Ok(()) } else { Err(Error::Request("it takes too long (max_seconds)")) };
        self.publish_layers(store, &locked, &layers, &incomplete, &over, &mut done)?;
        self.publish_images(store, &locked, &mut images, &over, &mut done)?;
        Ok(done)
    }

    /// Layers that something received stands on, and that are nowhere.
    fn missing<'a>(&self, store: &Store, layers: impl Iterator<Item = &'a Layer>) -> Vec<String> {
        let received: BTreeSet<&str> = self.layers.iter().map(|record| &record.id[..]).collect();
        let there: BTreeSet<&str> = layers.filter(|layer| !layer.is_incomplete).map(|layer| &layer.id[..]).collect();
        let needed = self.layers.iter().map(|record| &record.parent);
        let needed = needed.chain(self.images.iter().map(|image| &image.layer)).filter(|id| !id.is_empty());
        let is_missing = |id: &&String| !(received.contains(&id[..]) || there.contains(&id[..]) && store.has_files(id));
        needed.filter(is_missing).cloned().collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn publish_layers(
        &self,
        store: &Store,
        locked: &Locked,
        layers: &[Layer],
        incomplete: &BTreeSet<String>,
        over: &impl Fn() -> Result<(), Error>,
        done: &mut Done,
    ) -> Result<(), Error> {
        let mut links: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut parents: BTreeMap<String, String> =
            layers.iter().map(|layer| (layer.id.clone(), layer.parent.clone())).collect();
        let mut new = Vec::new();
        for record in &self.layers {
            let id = &record.id;
            over()?;
            let known = parents.get(id).cloned();
            if known.is_some() && store.has_files(id) {
                // Somebody else has pulled it meanwhile.
                continue;
            }
            if known.as_ref().is_some_and(|parent| *parent != record.parent) {
                return Err(Error::Request("a layer that the store knows on top of another one"));
            }
            if store.overlay.has(id.as_bytes()) && known.is_none() && !incomplete.contains(id) && !store.is_left(id) {
                return Err(Error::Request("a layer that is a container's"));
            }
            let is_known = known.is_some();
            let mut chain = vec![];
            let mut below = record.parent.clone();
            while !below.is_empty() {
                let parent = parents.get(&below).cloned();
                chain.push(below.clone());
                below = parent.ok_or_else(|| Error::Missing(vec![below]))?;
                if chain.len() >= LAYERS_MAX {
                    return Err(Error::Request("a layer on top of too many others"));
                }
            }
            self.publish_layer(store, record, &chain, &parents, &mut links)
                .map_err(|error| Error::system(format!("publishing layer {id}"), error))?;
            parents.insert(id.clone(), record.parent.clone());
            if !is_known {
                new.push(record);
            }
            done.layers += 1;
        }
        if done.layers == 0 {
            return Ok(());
        }
        // All at once: names, links and what says what is below what.
        rustix::fs::syncfs(&store.overlay).map_err(|error| Error::system("writing to the disk", error))?;
        if new.is_empty() { Ok(()) } else { store.write_layers(locked, &self.staging.dir, layers, &new) }
    }

    /// `chain`: the layers below, the nearest first. Their short names are what the store says: another tool makes others.
    fn publish_layer(
        &self,
        store: &Store,
        LayerRecord { id, link, .. }: &LayerRecord,
        chain: &[String],
        known: &BTreeMap<String, String>,
        links: &mut BTreeMap<String, Vec<u8>>,
    ) -> Result<(), Errno> {
        let staged = self.staging.dir.open(id.as_bytes())?;
        staged.write(b"link", 0o644, link.as_bytes())?;
        let mut lower = Vec::new();
        for id in chain {
            if !links.contains_key(id) {
                let link = store.overlay.open(id.as_bytes())?.read(b"link", 255)?.ok_or(Errno::NOENT)?;
                links.insert(id.clone(), link);
            }
            let link = &links[id];
            lower.extend_from_slice(if lower.is_empty() { b"l/" } else { b":l/" });
            lower.extend_from_slice(link.trim_ascii());
        }
        if !chain.is_empty() {
            staged.write(b"lower", 0o644, &lower)?;
            staged.write(b"lower-layers", 0o644, chain.join(":").as_bytes())?;
        }
        // No record names what is there: somebody died while making it.
        if store.overlay.has(id.as_bytes()) {
            store.overlay.rename(id.as_bytes(), &self.staging.dir, format!("old-{id}").as_bytes())?;
        }
        let target = format!("../{id}/diff");
        match rustix::fs::symlinkat(&target, &store.links, link) {
            Err(Errno::EXIST) => {
                let found = rustix::fs::readlinkat(&store.links, link, [])?;
                let other = found.to_str().ok().and_then(|found| found.strip_prefix("../")?.strip_suffix("/diff"));
                // What another layer is found by is not taken from it.
                if other.is_some_and(|other| other != id && known.contains_key(other)) {
                    return Err(Errno::EXIST);
                }
                rustix::fs::unlinkat(&store.links, link, AtFlags::empty())?;
                rustix::fs::symlinkat(&target, &store.links, link)?;
            }
            made => made?,
        }
        let split = format!("{id}.tar-split.gz");
        self.staging.dir.rename(split.as_bytes(), &store.layers, split.as_bytes())?;
        self.staging.dir.rename(id.as_bytes(), &store.overlay, id.as_bytes())
    }

    fn publish_images(
        &self,
        store: &Store,
        locked: &Locked,
        images: &mut Vec<Image>,
        over: &impl Fn() -> Result<(), Error>,
        done: &mut Done,
    ) -> Result<(), Error> {
        let mut is_changed = false;
        let mut owner: BTreeMap<String, usize> = BTreeMap::new();
        for (at, image) in images.iter().enumerate() {
            owner.extend(image.record.names.iter().map(|name| (name.clone(), at)));
        }
        for new in &self.images {
            over()?;
            let failed = |error| Error::system(format!("publishing image {}", new.id), error);
            // As podman moves them: who has a name loses it to who is given it (`images.go`, `updateNames`).
            for name in &new.names {
                if let Some(at) = owner.get(name).copied().filter(|at| images[*at].record.id != new.id) {
                    images[at].edit().names.retain(|other| other != name);
                    is_changed = true;
                }
            }
            let staged = self.staging.dir.open(image_directory(&new.id).as_bytes()).map_err(failed)?;
            let Some(at) = images.iter().position(|image| image.record.id == new.id) else {
                if store.images.has(new.id.as_bytes()) {
                    let old = format!("old-image-{}", new.id);
                    store.images.rename(new.id.as_bytes(), &self.staging.dir, old.as_bytes()).map_err(failed)?;
                }
                staged.sync().map_err(failed)?;
                let from = image_directory(&new.id);
                self.staging.dir.rename(from.as_bytes(), &store.images, new.id.as_bytes()).map_err(failed)?;
                owner.extend(new.names.iter().map(|name| (name.clone(), images.len())));
                images.push(Image::new(new.clone()));
                (done.images, done.names) = (done.images + 1, done.names + new.names.len() as u64);
                is_changed = true;
                continue;
            };
            owner.extend(new.names.iter().map(|name| (name.clone(), at)));
            is_changed |= add_names(&mut images[at], new, done);
        }
        if !is_changed {
            return Ok(());
        }
        store.images.sync().map_err(|error| Error::system("writing to the disk", error))?;
        store.write_images(locked, &self.staging.dir, images)
    }
}

/// Gives an image that is there the names that it lacks; gives whether that were any. Its files stay those that it has: what is
/// sent is not looked into.
fn add_names(image: &mut Image, new: &ImageRecord, done: &mut Done) -> bool {
    let names: Vec<_> = new.names.iter().filter(|name| !image.record.names.contains(name)).cloned().collect();
    if names.is_empty() {
        return false;
    }
    done.names += names.len() as u64;
    let record = image.edit();
    let new: Vec<_> = names.iter().filter(|name| !record.names_history.contains(name)).cloned().collect();
    record.names_history.extend(new);
    record.names.splice(0..0, names);
    true
}

/// What of `images` and `layers` a store lacks: ids of layers, and of images that an install would change.
///
/// # Errors
/// When its records cannot be read.
pub fn lacking(store: &Store, layers: &[String], images: &[ImageRecord]) -> Result<(Vec<String>, Vec<String>), Error> {
    let there = store.read_layers()?;
    let stored = store.read_images()?;
    let has = |id: &str| there.iter().any(|layer| layer.id == id && !layer.is_incomplete) && store.has_files(id);
    let layers = layers.iter().filter(|id| !has(id)).cloned().collect();
    let is_complete = |new: &&ImageRecord| {
        let Some(image) = stored.iter().find(|image| image.record.id == new.id) else { return false };
        new.names.iter().all(|name| image.record.names.contains(name))
    };
    Ok((layers, images.iter().filter(|new| !is_complete(new)).map(|new| new.id.clone()).collect()))
}

/// The lines of an entry that is a record; takes their bytes from `left`.
///
/// # Errors
/// When it is no small file, or too much has come.
pub fn read_text<R: Read>(entry: &Entry, input: &mut Reader<R>, left: &mut u64) -> Result<Vec<u8>, Error> {
    let Kind::Regular { size: size @ 0..=RECORD_MAX } = entry.kind else {
        return Err(refuse(entry, "it is no small file"));
    };
    *left = left.checked_sub(size).ok_or_else(|| refuse(entry, "too many records at once"))?;
    let mut text = Vec::new();
    input.read_to_end(&mut text)?;
    Lines::new(&text)?;
    Ok(text)
}

/// Big data files and tar-splits: root's, and for nobody else, whatever the header says.
fn file<R: Read>(
    budget: &mut Budget,
    directory: &Dir,
    name: &[u8],
    entry: &Entry,
    input: &mut Reader<R>,
) -> Result<(), Error> {
    let Kind::Regular { size } = entry.kind else { return Err(refuse(entry, "it is no regular file")) };
    budget.take(entry, size)?;
    let failed = |error| Error::system(format!("making {}", super::apply::shown(&entry.path)), error);
    let file = directory.create(name, 0o600).map_err(failed)?;
    super::apply::copy(input, &file, size, failed)
}

fn text_id(id: &[u8]) -> Option<String> {
    std::str::from_utf8(id).ok().filter(|id| is_id(id)).map(str::to_owned)
}

fn image_directory(id: &str) -> String {
    format!("image-{id}")
}

/// The file of a big data item (containers/storage `store.go`, `makeBigDataBaseName`).
#[must_use]
pub fn file_name(key: &str) -> String {
    if key.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'.')) {
        return key.to_owned();
    }
    format!("={}", base64::engine::general_purpose::STANDARD.encode(key))
}

fn refuse(entry: &Entry, why: &'static str) -> Error {
    Error::refused(entry, why)
}
