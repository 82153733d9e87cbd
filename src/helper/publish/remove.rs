//! Names, images and layers taken out of a store, and what nothing refers to any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::super::receive::is_id;
use super::super::root::Dir;
use super::super::staging::Staging;
use super::super::{Error, Until};
use super::record::LayerRecord;
use super::store::{Container, Image, Layer, Locked, Replaced, Store, Written};

/// A layer that nothing refers to is somebody's who is still pulling, until it is as old as this (containers/storage `check.go`,
/// `defaultMaximumUnreferencedLayerAge`).
const UNREFERENCED_AGE: Duration = Duration::from_secs(24 * 3600);

/// What is to be removed.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    /// One name; the image goes with its last one.
    Name(String),
    /// An image with all its names, by its id or the beginning of that.
    Id(String),
}

/// What was removed.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Gone {
    /// Names.
    pub names: Vec<String>,
    /// Ids of images.
    pub images: Vec<String>,
    /// Layers that were in use by no image any more.
    pub layers: u64,
    /// Directories and files that no record named.
    pub orphans: u64,
}

/// Removes names, and images that have none left.
///
/// # Errors
/// When one of them is not there, or in use by a container; then nothing was removed.
pub fn remove(store: &Store, staging: &Staging, targets: &[Target], until: Until) -> Result<Gone, Error> {
    let locked = store.lock(until)?;
    let (mut images, layers, containers) = (store.read_images()?, store.read_layers()?, store.read_containers()?);
    let unused_before = unused_layers(&layers, &images, &containers, &BTreeSet::new());
    let mut gone = Gone::default();
    for target in targets {
        let at = find(&images, target)?;
        let record = images[at].edit();
        let mut taken = Vec::new();
        match target {
            Target::Name(name) => record.names.retain(|other| {
                other != name || {
                    taken.push(name.clone());
                    false
                }
            }),
            Target::Id(_) => taken = std::mem::take(&mut record.names),
        }
        gone.names.extend(taken);
        if record.names.is_empty() {
            if let Some(container) = containers.iter().find(|container| container.image == record.id) {
                let (image, container) = (&record.id, &container.id);
                let what = format!("image {image} is in use by container {container} (remove the container first)");
                return Err(Error::said(what));
            }
            gone.images.push(images.remove(at).record.id);
        }
    }
    let written = store.write_images(&staging.dir, &images)?;
    // Those that nothing used before either may be somebody's who is still pulling.
    let unused = unused_layers(&layers, &images, &containers, &unused_before);
    let replaced = take_layers(store, staging, &locked, Some(written), layers, &unused, &mut gone)?;
    for id in &gone.images {
        take(&store.images, id.as_bytes(), staging, "image")?;
    }
    drop(locked);
    replaced.sync()?;
    Ok(gone)
}

/// Removes what killed processes have left: layers, images and short names that no record knows, and layers that nothing has
/// referred to for a day.
///
/// # Errors
/// When the records cannot be read, or something cannot be removed.
pub fn collect(store: &Store, staging: &Staging, until: Until) -> Result<Gone, Error> {
    let locked = store.lock(until)?;
    let (images, layers, containers) = (store.read_images()?, store.read_layers()?, store.read_containers()?);
    let mut gone = Gone::default();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
    let is_old = |id: &String| {
        // The kernel's own time of the last rename, which nobody can set.
        let age = store.overlay.stat(id.as_bytes()).map(|found| now - found.st_ctime);
        age.is_ok_and(|age| age > UNREFERENCED_AGE.as_secs() as i64)
    };
    let unused = unused_layers(&layers, &images, &containers, &BTreeSet::new());
    let (_, young): (BTreeSet<_>, BTreeSet<_>) = unused.into_iter().partition(is_old);
    let unused = unused_layers(&layers, &images, &containers, &young);
    let known: BTreeSet<Vec<u8>> = layers.iter().map(|layer| layer.id.clone().into_bytes()).collect();
    let replaced = take_layers(store, staging, &locked, None, layers, &unused, &mut gone)?;

    let listed = |error| Error::system("listing the store", error);
    let is_hex = |name: &Vec<u8>| std::str::from_utf8(name).is_ok_and(is_id);
    for name in store.overlay.names().map_err(listed)? {
        // Other directories (`l`, `staging`, `tempdirs`) are containers/storage's own.
        let is_left = || std::str::from_utf8(&name).is_ok_and(|id| store.is_left(id));
        if is_hex(&name) && !known.contains(&name) && is_left() {
            gone.orphans += take(&store.overlay, &name, staging, "old")?;
        }
    }
    for name in store.layers.names().map_err(listed)? {
        if name.strip_suffix(b".tar-split.gz").is_some_and(|id| is_hex(&id.to_vec()) && !known.contains(id)) {
            gone.orphans += take(&store.layers, &name, staging, "old")?;
        }
    }
    for name in store.images.names().map_err(listed)? {
        if is_hex(&name) && !images.iter().any(|image| image.record.id.as_bytes() == name) {
            gone.orphans += take(&store.images, &name, staging, "old-image")?;
        }
    }
    for name in store.links.names().map_err(listed)? {
        let target = rustix::fs::readlinkat(&store.links, &name[..], []).map(|target| target.to_bytes().to_vec());
        let id = target.ok().and_then(|target| Some(target.strip_prefix(b"../")?.strip_suffix(b"/diff")?.to_vec()));
        if id.is_some_and(|id| is_hex(&id) && !store.overlay.has(&id)) {
            rustix::fs::unlinkat(&store.links, &name[..], AtFlags::empty()).map_err(listed)?;
            gone.orphans += 1;
        }
    }
    drop(locked);
    replaced.sync()?;
    Ok(gone)
}

fn find(images: &[Image], target: &Target) -> Result<usize, Error> {
    let matches = |image: &Image| match target {
        Target::Name(name) => image.record.names.contains(name),
        Target::Id(id) => image.record.id.starts_with(&id[..]),
    };
    let mut found = images.iter().enumerate().filter(|(_, image)| matches(image));
    let name = match target {
        Target::Name(name) | Target::Id(name) => name,
    };
    match (found.next(), found.next()) {
        (Some((at, _)), None) => Ok(at),
        // One name belongs to one image, but a damaged store may say otherwise: the last one counts.
        (Some(_), Some((at, _))) if matches!(target, Target::Name(_)) => Ok(at),
        (Some(_), Some(_)) => Err(Error::said(format!("{name}: several images begin so"))),
        (None, _) => Err(Error::NotFound(name.clone())),
    }
}

/// Layers that no image, no container, and none of `others` stands on.
fn unused_layers(
    layers: &[Layer],
    images: &[Image],
    containers: &[Container],
    others: &BTreeSet<String>,
) -> BTreeSet<String> {
    let parents: BTreeMap<&str, &str> = layers.iter().map(|layer| (&layer.id[..], &layer.parent[..])).collect();
    let tops = images.iter().flat_map(|image| image.record.mapped_layers.iter().chain([&image.record.layer]));
    // A container's layer may be there before its record is.
    let volatile = layers.iter().filter(|layer| layer.is_volatile()).map(|layer| &layer.id);
    let mut used = BTreeSet::new();
    for top in tops.chain(containers.iter().map(|container| &container.layer)).chain(volatile).chain(others) {
        let mut at = &top[..];
        while let Some(parent) = parents.get(at) {
            if !used.insert(at) {
                break;
            }
            at = parent;
        }
    }
    layers.iter().map(|layer| &layer.id).filter(|id| !used.contains(&id[..])).cloned().collect()
}

/// Replaces the records: `images` that have been written, and those of layers without the unused ones. Then moves these away.
fn take_layers<'a>(
    store: &'a Store,
    staging: &Staging,
    locked: &Locked,
    images: Option<Written>,
    mut layers: Vec<Layer>,
    unused: &BTreeSet<String>,
    gone: &mut Gone,
) -> Result<Replaced<'a>, Error> {
    layers.retain(|layer| !unused.contains(&layer.id));
    let written = if unused.is_empty() {
        None
    } else {
        Some(store.write_layers(&staging.dir, &layers, &[] as &[LayerRecord])?)
    };
    if images.is_some() || written.is_some() {
        // The new records are on the disk before they replace the old ones.
        rustix::fs::syncfs(&staging.dir).map_err(|error| Error::system("writing to the disk", error))?;
    }
    let replaced = Replaced::all(store, locked, &staging.dir, [images, written])?;
    for id in unused {
        let link = store.link_of(id);
        take(&store.overlay, id.as_bytes(), staging, "old")?;
        take(&store.layers, format!("{id}.tar-split.gz").as_bytes(), staging, "old")?;
        // Big data of a layer.
        take(&store.layers, id.as_bytes(), staging, "old-data")?;
        if let Some(link) = link {
            let _ = rustix::fs::unlinkat(&store.links, link, AtFlags::empty());
        }
        gone.layers += 1;
    }
    Ok(replaced)
}

/// Moves what nothing names any more out of the store, to be removed when the locks are free. Gives how much that was.
fn take(directory: &Dir, name: &[u8], staging: &Staging, kind: &str) -> Result<u64, Error> {
    let new_name = [kind.as_bytes(), b"-", name].concat();
    match directory.rename(name, &staging.dir, &new_name) {
        Ok(()) => Ok(1),
        Err(Errno::NOENT) => Ok(0),
        Err(error) => Err(Error::system(format!("removing {}", super::super::apply::shown(name)), error)),
    }
}
