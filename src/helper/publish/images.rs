//! New layers and images, out of staging into the store.
//!
//! ```text
//!  no lock:   the records are read ▶ layers get their files ▶ everything onto the disk (syncfs)
//!  all locks: the records are read again ▶ renames ▶ one syncfs ▶ layers.json, images.json renamed
//!  no lock:   their directories onto the disk
//! ```
//!
//! A layer is complete before anything names it, and an image's layers are there before the image is. A process that is killed
//! in between leaves a store with the old images in it, and directories that no record names. What is read without locks only
//! prepares: if the store has changed when the locks are held, it is prepared again.

use std::collections::{BTreeMap, BTreeSet};

use rustix::fs::{AtFlags, Stat};
use rustix::io::Errno;

use super::super::staging::Staging;
use super::super::{Error, Until};
use super::incoming::{BIG_DATA_MAX, file_name, image_directory};
use super::record::{ImageRecord, LayerRecord, MANIFEST_KEY};
use super::store::{Image, LAYERS_MAX, Layer, Locked, Replaced, Store, Written};
use crate::digest::Digest;

/// Number of times that layers are prepared before it is given up because other programs keep changing the store.
const ATTEMPTS: usize = 5;

/// What has been received, with its records read.
#[derive(Debug)]
pub struct New {
    layers: Vec<LayerRecord>,
    images: Vec<ImageRecord>,
    /// Bytes that were received of all of it.
    bytes: u64,
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

/// What a store has of the layers: its records, without those that count for nothing.
#[derive(Debug)]
struct Stored {
    layers: Vec<Layer>,
    /// Layers that are deleted as soon as containers/storage looks at them, and are replaced now.
    incomplete: BTreeSet<String>,
    /// Layers of containers, which write to them: nothing can stand on them.
    of_containers: BTreeSet<String>,
}

/// Which layers are published, and what their files depend on.
#[derive(Debug, PartialEq, Eq)]
struct Plan<'a> {
    /// The layers, with whether the store has a record of them.
    layers: Vec<(&'a LayerRecord, bool)>,
    /// Every layer that one of these stands on.
    below: BTreeMap<String, Below>,
}

/// A layer on which others stand.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Below {
    parent: String,
    /// Its short name.
    link: Vec<u8>,
    /// Layers below it.
    depth: usize,
}

impl New {
    /// Checks the records of these layers, each with its id and the bytes of its files, and of these images. With `is_metered`, a
    /// layer may not have more bytes than its record counts.
    ///
    /// # Errors
    /// If a record is not valid, or does not belong to what came before it, or a layer's id is not that of its diffIDs.
    pub fn of(received: &[(String, String, u64)], images: Vec<ImageRecord>, is_metered: bool) -> Result<Self, Error> {
        let (mut layers, mut links) = (Vec::new(), BTreeSet::new());
        let mut bytes: u64 = images.iter().flat_map(|image| image.big_data_sizes.values()).sum();
        for (id, text, size) in received {
            let record = LayerRecord::parse(text)?;
            if *id != record.id || record.parent == record.id {
                return Err(Error::request("a layer's record that is not of the layer before it"));
            }
            let parent = Digest::from_hex(&record.parent).ok();
            let expected = record.diff_digest.parse::<Digest>().map(|diff_id| diff_id.layer_id(parent.as_ref()).hex());
            if expected.as_ref() != Ok(id) {
                let why = format!("layer {id}: its id is not the one that its diffID and its parent give");
                return Err(Error::said(why));
            }
            if !links.insert(record.link.clone()) {
                return Err(Error::request("two layers with one short name"));
            }
            if is_metered && record.diff_size < *size {
                let why = format!("layer {id}: it has more bytes than its record counts (max_store_bytes)");
                return Err(Error::said(why));
            }
            bytes = bytes.saturating_add(record.diff_size.max(*size));
            layers.push(record);
        }
        Ok(Self { layers, images, bytes })
    }

    /// Publishes everything.
    ///
    /// # Errors
    /// [`Error::Missing`] when layers are neither here nor in the store; then nothing was published. Others when the store cannot
    /// be read or written: then it has the old images, and perhaps the new ones.
    pub fn publish(&self, store: &Store, staging: &Staging, max_store: u64, until: Until) -> Result<Done, Error> {
        for _ in 0..ATTEMPTS {
            let prepared = self.plan(store, &self.stored(store)?)?;
            for (record, _) in &prepared.layers {
                until.check()?;
                let made = prepare(store, staging, record, &prepared.below);
                made.map_err(|error| Error::system(format!("preparing layer {}", record.id), error))?;
            }
            for image in &self.images {
                let made = open_image(store, staging, image);
                made.map_err(|error| Error::system(format!("preparing image {}", image.id), error))?;
            }
            let contents = contents(store, &store.read_images()?, &self.images);
            // All content must be on the disk before anything names it: an image that a power cut leaves empty would be believed.
            rustix::fs::syncfs(&staging.dir).map_err(|error| Error::system("writing to the disk", error))?;
            let locked = store.lock(until)?;
            let stored = self.stored(store)?;
            if self.plan(store, &stored)? != prepared {
                continue;
            }
            let mut images = store.read_images()?;
            store.has_room(&stored.layers, &images, self.bytes, max_store)?;
            let mut done = Done::default();
            let place = Place { store, staging, contents: &contents, locked: &locked, until };
            let written = self.publish_layers(&place, &stored.layers, &prepared, &mut done)?;
            let images = self.publish_images(&place, &mut images, &mut done)?;
            if done.layers == 0 && written.is_none() && images.is_none() {
                return Ok(done);
            }
            // All at once: names, links, what says what is below what, and the new records.
            rustix::fs::syncfs(&store.overlay).map_err(|error| Error::system("writing to the disk", error))?;
            let replaced = Replaced::all(store, &locked, &staging.dir, [written, images])?;
            drop(locked);
            replaced.sync()?;
            return Ok(done);
        }
        Err(Error::said("other programs keep changing the store (try again when they are done)"))
    }

    fn stored(&self, store: &Store) -> Result<Stored, Error> {
        let new: BTreeSet<&str> = self.layers.iter().map(|layer| &layer.id[..]).collect();
        let (incomplete, layers): (Vec<_>, Vec<_>) =
            store.read_layers()?.into_iter().partition(|layer| layer.is_incomplete && new.contains(&layer.id[..]));
        Ok(Stored {
            layers,
            incomplete: incomplete.into_iter().map(|layer| layer.id).collect(),
            of_containers: store.read_containers()?.into_iter().map(|container| container.layer).collect(),
        })
    }

    /// Decides which layers are published on top of what is stored.
    fn plan(&self, store: &Store, stored: &Stored) -> Result<Plan<'_>, Error> {
        let parents: BTreeMap<&str, &str> =
            stored.layers.iter().map(|layer| (&layer.id[..], &layer.parent[..])).collect();
        let mut names = store.names();
        let missing = self.missing(stored, |id| names.is_whole(id, &parents));
        if !missing.is_empty() {
            return Err(Error::Missing(missing));
        }
        let mut plan = Plan { layers: Vec::new(), below: BTreeMap::new() };
        // Parents and short names of those that are published.
        let (mut new_parents, mut new_links): (BTreeMap<&str, &str>, BTreeMap<&str, &str>) = Default::default();
        for record in &self.layers {
            let id = &record.id[..];
            let known = parents.get(id);
            if known.is_some() && names.is_whole(id, &parents) {
                // Another program has pulled it meanwhile.
                continue;
            }
            if known.is_some_and(|parent| **parent != record.parent) {
                return Err(Error::request("a layer that the store knows on top of another one"));
            }
            let is_left = || stored.incomplete.contains(id) || store.is_left(id);
            if store.overlay.has(id.as_bytes()) && known.is_none() && !is_left() {
                return Err(Error::request("a layer that is a container's"));
            }
            let mut chain = Vec::new();
            let mut below = &record.parent[..];
            while !below.is_empty() && !plan.below.contains_key(below) {
                let found = match (new_parents.get(below), new_links.get(below)) {
                    (Some(parent), Some(link)) => (*parent, Some(link.as_bytes().to_vec())),
                    _ => (parents.get(below).copied().unwrap_or_default(), store.link_of(below)),
                };
                let (parent, Some(link)) = found else { return Err(Error::Missing(vec![below.to_owned()])) };
                chain.push((below, parent, link));
                below = parent;
                if chain.len() >= LAYERS_MAX {
                    break;
                }
            }
            for (id, parent, link) in chain.into_iter().rev() {
                let depth = plan.below.get(parent).map_or(0, |below| below.depth + 1);
                plan.below.insert(id.to_owned(), Below { parent: parent.to_owned(), link, depth });
            }
            if plan.below.get(&record.parent).is_some_and(|below| below.depth + 2 > LAYERS_MAX) {
                return Err(Error::request("a layer on top of too many others"));
            }
            new_parents.insert(id, &record.parent);
            new_links.insert(id, &record.link);
            plan.layers.push((record, known.is_some()));
        }
        Ok(plan)
    }

    /// Returns the layers that something received stands on, and that are neither received nor stored.
    fn missing(&self, stored: &Stored, mut is_whole: impl FnMut(&str) -> bool) -> Vec<String> {
        let received: BTreeSet<&str> = self.layers.iter().map(|record| &record.id[..]).collect();
        let is_usable =
            |layer: &&Layer| !(layer.is_incomplete || layer.is_volatile() || stored.of_containers.contains(&layer.id));
        let there: BTreeSet<&str> = stored.layers.iter().filter(is_usable).map(|layer| &layer.id[..]).collect();
        let needed = self.layers.iter().map(|record| &record.parent);
        let needed = needed.chain(self.images.iter().map(|image| &image.layer)).filter(|id| !id.is_empty());
        let needed: BTreeSet<&str> = needed.map(|id| &id[..]).filter(|id| !received.contains(id)).collect();
        needed.into_iter().filter(|id| !(there.contains(id) && is_whole(id))).map(str::to_owned).collect()
    }

    fn publish_layers(
        &self,
        place: &Place<'_>,
        layers: &[Layer],
        plan: &Plan<'_>,
        done: &mut Done,
    ) -> Result<Option<Written>, Error> {
        let known: BTreeSet<&str> = layers.iter().map(|layer| &layer.id[..]).collect();
        let known: BTreeSet<&str> =
            known.into_iter().chain(plan.layers.iter().map(|(record, _)| &record.id[..])).collect();
        for (record, _) in &plan.layers {
            place.until.in_time()?;
            let published = place.publish_layer(record, &known);
            published.map_err(|error| Error::system(format!("publishing layer {}", record.id), error))?;
            done.layers += 1;
        }
        let new: Vec<&LayerRecord> =
            plan.layers.iter().filter(|(_, is_known)| !is_known).map(|(record, _)| *record).collect();
        if new.is_empty() { Ok(None) } else { place.store.write_layers(&place.staging.dir, layers, &new).map(Some) }
    }

    fn publish_images(
        &self,
        place: &Place<'_>,
        images: &mut Vec<Image>,
        done: &mut Done,
    ) -> Result<Option<Written>, Error> {
        let mut is_changed = false;
        let mut owner: BTreeMap<String, usize> = BTreeMap::new();
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        for (at, image) in images.iter().enumerate() {
            owner.extend(image.record.names.iter().map(|name| (name.clone(), at)));
            places.insert(image.record.id.clone(), at);
        }
        for new in &self.images {
            place.until.in_time()?;
            let failed = |error| Error::system(format!("publishing image {}", new.id), error);
            // As podman moves them: who has a name loses it to who is given it (`images.go`, `updateNames`).
            for name in &new.names {
                if let Some(at) = owner.get(name).copied().filter(|at| images[*at].record.id != new.id) {
                    images[at].edit().names.retain(|other| other != name);
                    is_changed = true;
                }
            }
            let Some(&at) = places.get(&new.id) else {
                places.insert(new.id.clone(), images.len());
                place.publish_image(&new.id).map_err(failed)?;
                owner.extend(new.names.iter().map(|name| (name.clone(), images.len())));
                images.push(Image::new(new.clone()));
                (done.images, done.names) = (done.images + 1, done.names + new.names.len() as u64);
                is_changed = true;
                continue;
            };
            owner.extend(new.names.iter().map(|name| (name.clone(), at)));
            is_changed |= place.complete_image(&mut images[at], new).map_err(failed)?;
            is_changed |= add_names(&mut images[at], new, done);
        }
        if is_changed { place.store.write_images(&place.staging.dir, images).map(Some) } else { Ok(None) }
    }
}

/// Where it is published, under which locks, and until when.
struct Place<'a> {
    store: &'a Store,
    staging: &'a Staging,
    contents: &'a Contents,
    #[expect(dead_code, reason = "shows that the locks are held")]
    locked: &'a Locked,
    until: Until,
}

/// Makes what a layer in staging has beside its content: what another attempt has made is replaced. The short names of the
/// layers below are those of the store, since another tool makes others.
fn prepare(
    store: &Store,
    staging: &Staging,
    LayerRecord { id, link, parent, .. }: &LayerRecord,
    below: &BTreeMap<String, Below>,
) -> Result<(), Errno> {
    let mode = store.directory_mode();
    let staged = staging.dir.open(id.as_bytes())?;
    store.open_directory(&staged)?;
    store.open_file(&staging.dir, format!("{id}.tar-split.gz").as_bytes())?;
    staged.open_or_make(b"merged", mode)?;
    staged.open_or_make(b"work", mode)?;
    staged.replace(b"link", 0o644, link.as_bytes())?;
    if parent.is_empty() {
        // What is below a layer that nothing is below (`overlay.go`, `get`).
        return staged.open_or_make(b"empty", mode).map(drop);
    }
    let (mut lower, mut ids) = (Vec::new(), String::new());
    let mut at = &parent[..];
    while let Some(layer) = below.get(at) {
        lower.extend_from_slice(if lower.is_empty() { b"l/" } else { b":l/" });
        lower.extend_from_slice(&layer.link);
        ids.push_str(if ids.is_empty() { "" } else { ":" });
        ids.push_str(at);
        at = &layer.parent;
    }
    staged.replace(b"lower", 0o644, &lower)?;
    staged.replace(b"lower-layers", 0o644, ids.as_bytes())
}

/// Gives the files of an image in staging the modes of the store.
fn open_image(store: &Store, staging: &Staging, image: &ImageRecord) -> Result<(), Errno> {
    let staged = staging.dir.open(image_directory(&image.id).as_bytes())?;
    store.open_directory(&staged)?;
    image.big_data_names.iter().try_for_each(|key| store.open_file(&staged, file_name(key).as_bytes()))
}

impl Place<'_> {
    /// Moves a prepared layer to its place.
    fn publish_layer(&self, LayerRecord { id, link, .. }: &LayerRecord, known: &BTreeSet<&str>) -> Result<(), Errno> {
        let Self { store, staging, .. } = self;
        // No record names what is there, or it is damaged.
        if store.overlay.has(id.as_bytes()) {
            store.overlay.rename(id.as_bytes(), &staging.dir, format!("old-{id}").as_bytes())?;
        }
        let target = format!("../{id}/diff");
        match rustix::fs::symlinkat(&target, &store.links, link) {
            Err(Errno::EXIST) => {
                let found = rustix::fs::readlinkat(&store.links, link, [])?;
                let other = found.to_str().ok().and_then(|found| found.strip_prefix("../")?.strip_suffix("/diff"));
                // What another layer is found by is not taken from it.
                if other.is_some_and(|other| other != id && known.contains(other)) {
                    return Err(Errno::EXIST);
                }
                rustix::fs::unlinkat(&store.links, link, AtFlags::empty())?;
                rustix::fs::symlinkat(&target, &store.links, link)?;
            }
            made => made?,
        }
        let split = format!("{id}.tar-split.gz");
        staging.dir.rename(split.as_bytes(), &store.layers, split.as_bytes())?;
        staging.dir.rename(id.as_bytes(), &store.overlay, id.as_bytes())
    }

    /// Moves the files of an image to their place; what no record names there is moved away.
    fn publish_image(&self, id: &str) -> Result<(), Errno> {
        let Self { store, staging, .. } = self;
        if store.images.has(id.as_bytes()) {
            store.images.rename(id.as_bytes(), &staging.dir, format!("old-image-{id}").as_bytes())?;
        }
        staging.dir.rename(image_directory(id).as_bytes(), &store.images, id.as_bytes())
    }

    /// Gives an image that the store has the items that it lacks, as containers/image's `Commit` does for an image that exists
    /// (`storage/storage_dest.go`, `SetImageBigData` of each item). Returns whether there were any.
    fn complete_image(&self, image: &mut Image, new: &ImageRecord) -> Result<bool, Errno> {
        let Self { store, staging, contents, .. } = self;
        let lacking = lacking_items(store, contents, &image.record, new);
        if lacking.is_empty() {
            return Ok(false);
        }
        let staged = staging.dir.open(image_directory(&new.id).as_bytes())?;
        let there = store.images.open_or_make(new.id.as_bytes(), store.directory_mode())?;
        let record = image.edit();
        for key in lacking {
            let name = file_name(key);
            staged.rename(name.as_bytes(), &there, name.as_bytes())?;
            if !record.big_data_names.contains(key) {
                record.big_data_names.push(key.clone());
            }
            record.big_data_sizes.insert(key.clone(), new.big_data_sizes[key]);
            record.big_data_digests.insert(key.clone(), new.big_data_digests[key].clone());
        }
        // An item without its file is of no use to anyone, and no program can mend it.
        record.big_data_names.retain(|key| there.has(file_name(key).as_bytes()));
        record.big_data_sizes.retain(|key, _| record.big_data_names.contains(key));
        record.big_data_digests.retain(|key, _| record.big_data_names.contains(key));
        Ok(true)
    }
}

/// Returns the items of `new` that the image of the same id lacks in the store: without an entry in its record that says the same, or
/// without a file that has that content. Its own manifest counts as one that it has: which of several is the image's own
/// (`manifest`) is for the last install that added one.
fn lacking_items<'a>(store: &Store, contents: &Contents, image: &ImageRecord, new: &'a ImageRecord) -> Vec<&'a String> {
    let directory = store.images.open(image.id.as_bytes()).ok();
    let has_content = |key: &str| {
        let known = contents.get(&(image.id.clone(), key.to_owned()));
        let found = directory.as_ref().and_then(|directory| directory.stat(file_name(key).as_bytes()).ok());
        known.zip(found).filter(|(known, found)| known.stamp == stamp(found)).map(|(known, _)| known)
    };
    let is_there = |key: &str, digest: Option<&String>, size: Option<&u64>| {
        image.big_data_names.iter().any(|name| name == key)
            && image.big_data_digests.get(key) == digest
            && image.big_data_sizes.get(key) == size
            && has_content(key).is_some_and(|found| Some(&found.digest) == digest && Some(&found.size) == size)
    };
    let has = |key: &str| is_there(key, new.big_data_digests.get(key), new.big_data_sizes.get(key));
    let own = image.big_data_digests.get(MANIFEST_KEY);
    let is_own_known = own.is_some_and(|digest| image.big_data_names.contains(&format!("{MANIFEST_KEY}-{digest}")))
        && is_there(MANIFEST_KEY, own, image.big_data_sizes.get(MANIFEST_KEY));
    let mut lacking: Vec<&String> = new.big_data_names.iter().filter(|key| *key != MANIFEST_KEY && !has(key)).collect();
    if !lacking.is_empty() || !is_own_known && !has(MANIFEST_KEY) {
        lacking.extend(new.big_data_names.iter().filter(|key| *key == MANIFEST_KEY));
    }
    lacking
}

/// Files of images in the store, by image and key.
type Contents = BTreeMap<(String, String), Content>;

/// A file that has been read.
#[derive(Debug)]
struct Content {
    digest: String,
    size: u64,
    /// Fields of the file's status that differ if the file has been changed.
    stamp: Stamp,
}

/// Number, size, and times of modification and change.
type Stamp = (u64, i64, [i64; 4]);

fn stamp(found: &Stat) -> Stamp {
    let times = [found.st_mtime, found.st_mtime_nsec as i64, found.st_ctime, found.st_ctime_nsec as i64];
    (found.st_ino, found.st_size, times)
}

/// Hashes the files of those images of the store that are in `new`. It takes no lock, since it may take long: a file that has
/// another stamp when the locks are held counts for nothing, and is replaced.
fn contents(store: &Store, images: &[Image], new: &[ImageRecord]) -> Contents {
    let new: BTreeSet<&str> = new.iter().map(|image| &image.id[..]).collect();
    let mut contents = Contents::new();
    for ImageRecord { id, big_data_names, .. } in images.iter().map(|image| &image.record) {
        let Some(directory) = new.contains(&id[..]).then(|| store.images.open(id.as_bytes()).ok()).flatten() else {
            continue;
        };
        for key in big_data_names {
            let name = file_name(key);
            let Ok(found) = directory.stat(name.as_bytes()) else { continue };
            if let Ok(Some(content)) = directory.read(name.as_bytes(), BIG_DATA_MAX) {
                let (digest, size) = (Digest::of(&content).to_string(), content.len() as u64);
                let content = Content { digest, size, stamp: stamp(&found) };
                contents.insert((id.clone(), key.clone()), content);
            }
        }
    }
    contents
}

/// Gives an image that is there the names that it lacks. Returns whether there were any.
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

/// Returns what of `layers` and `images` a store lacks: ids of layers, and of images that an install would change.
///
/// # Errors
/// If its records cannot be read.
pub fn lacking(store: &Store, layers: &[String], images: &[ImageRecord]) -> Result<(Vec<String>, Vec<String>), Error> {
    let there = store.read_layers()?;
    let parents: BTreeMap<&str, &str> = there.iter().map(|layer| (&layer.id[..], &layer.parent[..])).collect();
    let complete: BTreeSet<&str> =
        there.iter().filter(|layer| !layer.is_incomplete).map(|layer| &layer.id[..]).collect();
    let stored = store.read_images()?;
    let contents = contents(store, &stored, images);
    let places: BTreeMap<String, usize> =
        stored.iter().enumerate().map(|(at, image)| (image.record.id.clone(), at)).collect();
    let mut names = store.names();
    let mut has = |id: &str| complete.contains(id) && names.is_whole(id, &parents);
    let layers = layers.iter().filter(|id| !has(id)).cloned().collect();
    let is_complete = |new: &&ImageRecord| {
        let Some(record) = places.get(&new.id).map(|at| &stored[*at].record) else { return false };
        new.names.iter().all(|name| record.names.contains(name))
            && lacking_items(store, &contents, record, new).is_empty()
    };
    Ok((layers, images.iter().filter(|new| !is_complete(new)).map(|new| new.id.clone()).collect()))
}
