//! New layers and images, out of staging into the store.
//!
//! ```text
//!  no lock:   all that has been received onto the disk (syncfs)
//!  all locks: read the records again ▶ layers renamed in ▶ layers.json ▶ images renamed in ▶ images.json
//! ```
//!
//! A layer is complete before anything names it, and an image's layers are there before the image is. Whoever is killed in
//! between leaves a store with the old images in it, and directories that no record names.

use std::collections::{BTreeMap, BTreeSet};

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::super::staging::Staging;
use super::super::{Error, Until};
use super::incoming::image_directory;
use super::record::{ImageRecord, LayerRecord};
use super::store::{Image, LAYERS_MAX, Layer, Locked, Store};

/// What has been received, with its records read.
#[derive(Debug)]
pub struct New {
    layers: Vec<LayerRecord>,
    images: Vec<ImageRecord>,
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

impl New {
    /// These images, on layers with these ids and records.
    ///
    /// # Errors
    /// When a record is not valid, or not of what came before it.
    pub fn of(received: &[(String, String)], images: Vec<ImageRecord>) -> Result<Self, Error> {
        let mut layers = Vec::new();
        for (id, text) in received {
            let record = LayerRecord::parse(text)?;
            if *id != record.id || record.parent == record.id {
                return Err(Error::request("a layer's record that is not of the layer before it"));
            }
            layers.push(record);
        }
        Ok(Self { layers, images })
    }

    /// Publishes everything.
    ///
    /// # Errors
    /// [`Error::Missing`] when layers are neither here nor in the store; then nothing was published. Others when the store cannot
    /// be read or written: then it has the old images, and perhaps the new ones.
    pub fn publish(&self, store: &Store, staging: &Staging, until: Until) -> Result<Done, Error> {
        // All content must be on the disk before anything names it: an image that a power cut leaves empty would be believed.
        rustix::fs::syncfs(&staging.dir).map_err(|error| Error::system("writing to the disk", error))?;
        let locked = store.lock(until)?;
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
        let place = Place { store, staging, locked: &locked, until };
        self.publish_layers(&place, &layers, &incomplete, &mut done)?;
        self.publish_images(&place, &mut images, &mut done)?;
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
        place: &Place<'_>,
        layers: &[Layer],
        incomplete: &BTreeSet<String>,
        done: &mut Done,
    ) -> Result<(), Error> {
        let Place { store, staging, locked, .. } = place;
        let mut links: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut parents: BTreeMap<String, String> =
            layers.iter().map(|layer| (layer.id.clone(), layer.parent.clone())).collect();
        let mut new = Vec::new();
        for record in &self.layers {
            let id = &record.id;
            place.until.in_time()?;
            let known = parents.get(id).cloned();
            if known.is_some() && store.has_files(id) {
                // Somebody else has pulled it meanwhile.
                continue;
            }
            if known.as_ref().is_some_and(|parent| *parent != record.parent) {
                return Err(Error::request("a layer that the store knows on top of another one"));
            }
            if store.overlay.has(id.as_bytes()) && known.is_none() && !incomplete.contains(id) && !store.is_left(id) {
                return Err(Error::request("a layer that is a container's"));
            }
            let is_known = known.is_some();
            let mut chain = vec![];
            let mut below = record.parent.clone();
            while !below.is_empty() {
                let parent = parents.get(&below).cloned();
                chain.push(below.clone());
                below = parent.ok_or_else(|| Error::Missing(vec![below]))?;
                if chain.len() >= LAYERS_MAX {
                    return Err(Error::request("a layer on top of too many others"));
                }
            }
            place
                .publish_layer(record, &chain, &parents, &mut links)
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
        if new.is_empty() { Ok(()) } else { store.write_layers(locked, &staging.dir, layers, &new) }
    }

    fn publish_images(&self, place: &Place<'_>, images: &mut Vec<Image>, done: &mut Done) -> Result<(), Error> {
        let Place { store, staging, locked, .. } = place;
        let mut is_changed = false;
        let mut owner: BTreeMap<String, usize> = BTreeMap::new();
        for (at, image) in images.iter().enumerate() {
            owner.extend(image.record.names.iter().map(|name| (name.clone(), at)));
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
            let staged = staging.dir.open(image_directory(&new.id).as_bytes()).map_err(failed)?;
            let Some(at) = images.iter().position(|image| image.record.id == new.id) else {
                if store.images.has(new.id.as_bytes()) {
                    let old = format!("old-image-{}", new.id);
                    store.images.rename(new.id.as_bytes(), &staging.dir, old.as_bytes()).map_err(failed)?;
                }
                staged.sync().map_err(failed)?;
                let from = image_directory(&new.id);
                staging.dir.rename(from.as_bytes(), &store.images, new.id.as_bytes()).map_err(failed)?;
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
        store.write_images(locked, &staging.dir, images)
    }
}

/// Where it is published, under which locks, and until when.
struct Place<'a> {
    store: &'a Store,
    staging: &'a Staging,
    locked: &'a Locked,
    until: Until,
}

impl Place<'_> {
    /// `chain`: the layers below, the nearest first. Their short names are what the store says: another tool makes others.
    fn publish_layer(
        &self,
        LayerRecord { id, link, .. }: &LayerRecord,
        chain: &[String],
        known: &BTreeMap<String, String>,
        links: &mut BTreeMap<String, Vec<u8>>,
    ) -> Result<(), Errno> {
        let Self { store, staging, .. } = self;
        let staged = staging.dir.open(id.as_bytes())?;
        staged.make(b"merged", 0o700)?;
        staged.make(b"work", 0o700)?;
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
        } else {
            // What is below a layer that nothing is below (`overlay.go`, `get`).
            staged.make(b"empty", 0o700)?;
        }
        // No record names what is there: somebody died while making it.
        if store.overlay.has(id.as_bytes()) {
            store.overlay.rename(id.as_bytes(), &staging.dir, format!("old-{id}").as_bytes())?;
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
        staging.dir.rename(split.as_bytes(), &store.layers, split.as_bytes())?;
        staging.dir.rename(id.as_bytes(), &store.overlay, id.as_bytes())
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
