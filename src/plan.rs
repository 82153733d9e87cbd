//! From what the user typed to verified images with names: all that is known before a layer is touched.

pub mod saved;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use crate::compression::SizeLimit;
use crate::digest::Digest;
use crate::go_types::seconds_since_epoch;
use crate::image::{self, Image, OLD_LAYERS_MAX, Platform};
use crate::reference::{Item, Location};
use crate::source::{self, Descriptor, ImageSource};
use crate::storage::record::StoreImage;
use crate::threads;
use saved::SavedImage;

/// Images whose manifests are fetched at once.
const PARALLEL: usize = 8;

/// Time to wait for the next item once one has failed: all that fail are reported, but a silent server must not hide them.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why an item cannot be planned. The text begins with the item.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its source cannot be opened.
    #[error("{item}: {}", source::without_place(.item, .error))]
    Source {
        /// As typed.
        item: String,
        /// Why.
        error: source::Error,
    },
    /// Its manifest or config is no good.
    #[error("{item}: {}", source::without_place(.item, .error))]
    Image {
        /// As typed.
        item: String,
        /// Why.
        error: image::Error,
    },
    /// More than one item failed.
    #[error("{} of {total} images failed", failed.len())]
    Several {
        /// The errors of single items, in the order of the items.
        failed: Vec<Error>,
        /// Number of items.
        total: usize,
        /// Number of items that had not been opened when waiting for them ended.
        unfinished: usize,
    },
    /// Nothing says what it is called.
    #[error(
        "{item}: the image has no full name there; say what it shall be called, for instance {item}=localhost/name:tag"
    )]
    Nameless {
        /// As typed.
        item: String,
    },
    /// A name that containers/image cannot read back.
    #[error(
        "{item}: a machine's tools do not understand the name {name}; say what it shall be called, for instance {item}=localhost/name:tag"
    )]
    Unstorable {
        /// As typed.
        item: String,
        /// The name.
        name: String,
    },
    /// Two manifests give one blob two sizes, so at least one of them is wrong.
    #[error("blob {blob} has {size} bytes in the manifest of image {image}, but {other_size} in that of {other}")]
    BlobSize {
        /// Digest of the blob.
        blob: Digest,
        /// Name or id of an image.
        image: String,
        /// Size in its manifest, in bytes.
        size: u64,
        /// Name or id of the other image.
        other: String,
        /// Size in the other's manifest, in bytes.
        other_size: u64,
    },
    /// One name for two images.
    #[error("{first} and {second} are different images ({first_id} and {second_id}), but both would be called {name}")]
    NameTwice {
        /// The name.
        name: String,
        /// An item.
        first: String,
        /// Its image.
        first_id: String,
        /// The other item.
        second: String,
        /// Its image.
        second_id: String,
    },
}

impl Error {
    /// Returns whether the image does not exist, or cannot be asked for like this; of several, whether this holds for all.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        if let Self::Several { failed, .. } = self {
            return failed.iter().all(Self::is_not_found);
        }
        matches!(
            self,
            Self::Source { error: source::Error::NotFound(_) | source::Error::Overlay(_), .. }
                | Self::Nameless { .. }
                | Self::Unstorable { .. }
                | Self::Image { error: image::Error::Source(source::Error::NotFound(_)), .. }
        )
    }
}

/// Where a blob can be read.
#[derive(Debug, Clone)]
pub struct BlobSource {
    /// The item that needs it first, for messages.
    pub item: String,
    /// Where it lies.
    pub source: Arc<dyn ImageSource>,
}

/// What a store is to be made of.
#[derive(Debug, Default)]
pub struct Plan {
    /// Images by id.
    pub images: BTreeMap<Digest, StoreImage>,
    /// Blobs of layers by digest.
    pub blobs: BTreeMap<Digest, BlobSource>,
    /// The newest `created` of the images' configs, in seconds since 1970; 0 if none has a later one.
    pub newest: i64,
    /// For the user: one line each.
    pub warnings: Vec<String>,
    /// How large each image may be when it is uncompressed.
    pub limit: SizeLimit,
    names: BTreeMap<String, (Digest, String)>,
}

impl Plan {
    /// Opens all items and gives every image its names.
    ///
    /// # Errors
    /// All items that fail, in the order given ([`Error::Several`] if there are more than one). Items that a silent server keeps
    /// waiting are not waited for: their threads end with its answer, or with the process.
    pub fn new(items: &[Item], platform: &Platform, options: &source::Options) -> Result<Self, Error> {
        let mut plan = Self::default();
        plan.add(items, platform, options)?;
        Ok(plan)
    }

    /// Adds more items; gives the names of their images.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn add(
        &mut self,
        items: &[Item],
        platform: &Platform,
        options: &source::Options,
    ) -> Result<Vec<String>, Error> {
        self.limit = options.limit;
        let opened = open_all(items, platform, options)?;
        let (mut remote, mut names) = (Vec::new(), Vec::new());
        for (item, (source, image)) in items.iter().zip(opened) {
            for name in names_of(item, source.as_ref())? {
                self.name(&image, name.clone(), &item.typed)?;
                names.push(name);
            }
            if image.platform() != platform && image.index().is_none() && platform.rank(image.platform()).is_none() {
                self.warnings.push(format!("{item}: the image is for {}, not for {platform}", image.platform()));
            }
            if image.layers().len() > OLD_LAYERS_MAX {
                let layers = image.layers().len();
                self.warnings.push(format!(
                    "{item}: the image has {layers} layers: CRI-O 1.24 and 1.25 and podman up to 4.3 start no container of an image \
                     with more than {OLD_LAYERS_MAX}"
                ));
            }
            let seconds = image.created().and_then(seconds_since_epoch).unwrap_or(0);
            self.newest = self.newest.max(seconds);
            let blob = BlobSource { item: item.typed.clone(), source };
            if matches!(item.location, Location::Registry(_)) {
                remote.push((image, blob));
            } else {
                self.add_blobs(&image, &blob);
            }
        }
        // What also lies on this machine is not fetched.
        for (image, blob) in remote {
            self.add_blobs(&image, &blob);
        }
        self.check_sizes()?;
        Ok(names)
    }

    /// What was in a store before: its layers must be at hand.
    ///
    /// # Errors
    /// When an image is not what was saved.
    pub fn of_saved(images: &[SavedImage]) -> Result<Self, image::Error> {
        let mut plan = Self::default();
        for image in images {
            let image = image.restore()?;
            for name in image.names() {
                plan.names.insert(name.to_owned(), (*image.id(), name.to_owned()));
            }
            plan.images.insert(*image.id(), image);
        }
        Ok(plan)
    }

    /// Takes in the images of another plan. An image that had one of their names loses it, and goes with its last name.
    ///
    /// # Errors
    /// [`Error::BlobSize`] if an image here and one there disagree on the size of a blob.
    pub fn take_over(&mut self, other: Self) -> Result<(), Error> {
        for name in other.names.keys() {
            self.forget_name(name);
        }
        for (id, image) in other.images {
            match self.images.entry(id) {
                Entry::Vacant(place) => drop(place.insert(image)),
                Entry::Occupied(mut place) => place.get_mut().absorb(image),
            }
        }
        self.limit = other.limit;
        self.names.extend(other.names);
        self.blobs.extend(other.blobs);
        self.check_sizes()
    }

    /// Checks that all manifests agree on the size of each blob. Only one of them would be compared with the blob.
    fn check_sizes(&self) -> Result<(), Error> {
        let mut sizes: BTreeMap<Digest, (u64, &StoreImage)> = BTreeMap::new();
        for image in self.images.values() {
            for Descriptor { digest, size, .. } in image.manifest_layers().flatten().map(|layer| &layer.descriptor) {
                let (first, of) = *sizes.entry(*digest).or_insert((*size, image));
                if first != *size {
                    let shown =
                        |image: &StoreImage| image.names().next().map_or_else(|| image.id().hex(), str::to_owned);
                    let (image, other) = (shown(of), shown(image));
                    return Err(Error::BlobSize { blob: *digest, image, size: first, other, other_size: *size });
                }
            }
        }
        Ok(())
    }

    /// Takes a name from the image that has it, which goes with its last. Gives whether there was one.
    pub fn forget_name(&mut self, name: &str) -> bool {
        let Some((id, _)) = self.names.remove(name) else { return false };
        if let Entry::Occupied(mut image) = self.images.entry(id) {
            image.get_mut().remove_name(name);
            if image.get().names().next().is_none() {
                image.remove();
            }
        }
        true
    }

    /// Removes the image whose id begins so.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn forget_image(&mut self, begin: &str) -> Result<(), &'static str> {
        let mut found = self.images.keys().filter(|id| id.hex().starts_with(begin));
        let (Some(&id), None) = (found.next(), found.next()) else { return Err("not the id of exactly one image") };
        self.images.remove(&id);
        self.names.retain(|_, (of, _)| *of != id);
        Ok(())
    }

    /// Whether an image has this name.
    #[must_use]
    pub fn has_name(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    fn name(&mut self, image: &Image, name: String, item: &str) -> Result<(), Error> {
        let id = image.id();
        let (first_id, first) = self.names.entry(name.clone()).or_insert_with(|| (id, item.to_owned()));
        if *first_id != id {
            let (first, first_id, id) = (first.clone(), first_id.hex(), id.hex());
            return Err(Error::NameTwice { name, first, first_id, second: item.to_owned(), second_id: id });
        }
        let stored = self.images.entry(id).or_insert_with(|| StoreImage::new(image));
        stored.merge(image);
        stored.add_name(name);
        Ok(())
    }

    fn add_blobs(&mut self, image: &Image, source: &BlobSource) {
        for layer in image.layers() {
            self.blobs.entry(layer.descriptor.digest).or_insert_with(|| source.clone());
        }
    }
}

impl BlobSource {
    /// The bytes of `blob`, not verified.
    ///
    /// # Errors
    /// Those of the source.
    pub fn open(&self, blob: &Descriptor) -> Result<Box<dyn std::io::Read + Send>, source::Error> {
        self.source.blob(blob)
    }
}

type Opened = (Arc<dyn ImageSource>, Image);

fn open(item: &Item, platform: &Platform, options: &source::Options) -> Result<Opened, Error> {
    let typed = || item.typed.clone();
    let source = source::open(&item.location, options).map_err(|error| Error::Source { item: typed(), error })?;
    let reference = match &item.location {
        Location::Registry(reference) => Some(reference),
        _ => item.name.as_ref(),
    };
    let expected = reference.and_then(|reference| reference.digest().copied());
    let image =
        Image::open(source.as_ref(), expected, platform).map_err(|error| Error::Image { item: typed(), error })?;
    Ok((source, image))
}

/// `name:tag@digest` says which image `name:tag` must be; the store then calls it `name:tag`, which CRI-O finds by
/// either (containers/image `storage/storage_reference.go`, `resolveImage`).
fn names_of(item: &Item, source: &dyn ImageSource) -> Result<Vec<String>, Error> {
    let given = item.name.as_ref().map_or_else(|| source.names(), |name| vec![name.clone()]);
    if given.is_empty() {
        return Err(Error::Nameless { item: item.typed.clone() });
    }
    match given.iter().find(|name| !name.is_storable()) {
        Some(name) => Err(Error::Unstorable { item: item.typed.clone(), name: name.to_string() }),
        None => Ok(given.iter().map(|name| name.without_digest().to_string()).collect()),
    }
}

/// Opens items at once; gives them in their order.
fn open_all(items: &[Item], platform: &Platform, options: &source::Options) -> Result<Vec<Opened>, Error> {
    let shared = Arc::new((items.to_vec(), platform.clone(), options.clone(), AtomicUsize::new(0)));
    let (sender, receiver) = channel();
    for number in 0..PARALLEL.min(items.len()) {
        let (shared, sender) = (Arc::clone(&shared), sender.clone());
        let work = move || {
            let (items, platform, options, next) = &*shared;
            while let Some((at, item)) =
                Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, items.get(at)?)))
            {
                let result = catch_unwind(AssertUnwindSafe(|| open(item, platform, options)));
                if sender.send((at, result)).is_err() {
                    return;
                }
            }
        };
        match threads::spawn(work.clone()) {
            Ok(_) => {}
            Err(_) if number > 0 => break,
            // Then without.
            Err(_) => work(),
        }
    }
    drop(sender);
    let mut all: Vec<Option<Opened>> = items.iter().map(|_| None).collect();
    let mut failed: BTreeMap<usize, Error> = BTreeMap::new();
    let mut left = items.len();
    while left > 0 {
        let received = match failed.is_empty() {
            true => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => receiver.recv_timeout(PATIENCE),
        };
        let Ok((at, result)) = received else { break };
        left -= 1;
        match result.unwrap_or_else(|panic| resume_unwind(panic)) {
            Ok(opened) => all[at] = Some(opened),
            Err(error) => drop(failed.insert(at, error)),
        }
    }
    // No further item is begun.
    shared.3.store(items.len(), Ordering::Relaxed);
    let mut failed: Vec<Error> = failed.into_values().collect();
    match failed.len() {
        0 => Ok(all.into_iter().flatten().collect()),
        1 => Err(failed.remove(0)),
        _ => Err(Error::Several { failed, total: items.len(), unfinished: left }),
    }
}
