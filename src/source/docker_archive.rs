//! `docker-archive:`: what `docker save` writes, read as containers/image `docker/internal/tarfile/` does.
//!
//! The archive names config and layers in `manifest.json`, and has no manifest in the sense of a registry. One is made
//! here, byte for byte as containers/image makes it, so that its digest is the one that skopeo's copy has:
//!
//! ```text
//! manifest.json   [{"Config": "HEX.json", "RepoTags": ["a:1"], "Layers": ["HEX/layer.tar"]}]
//! config          as it is
//! layers          always uncompressed; their digests are the diffIDs
//! ```

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, Cursor, Read};
use std::num::NonZero;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use super::archive::{Archive, Duplicates, Span};
use super::{CONFIG_MAX, Descriptor, Error, Files as _, ImageSource, Options, RawManifest, bad_json};
use crate::compression::{self, Compression, MAGIC_LENGTH, SizeLimit};
use crate::digest::Digest;
use crate::json::{self, Document, View};
use crate::media_type::{DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST};
use crate::reference::{ArchiveSelect, Reference};
use crate::threads;

/// Number of images, and of tags of each, that an error lists.
const LISTED: usize = 20;

/// The largest `manifest.json` that is read, in bytes (containers/image `internal/iolimits`, `MaxTarFileManifestSize`).
pub const ARCHIVE_MANIFEST_MAX: u64 = 1 << 20;

/// An archive whose `manifest.json` has been read.
#[derive(Debug)]
pub(super) struct DockerArchive {
    archive: Archive,
    items: Vec<Item>,
    /// The first item that has a tag, by its normalised form.
    by_tag: HashMap<String, usize>,
    limit: SizeLimit,
    /// Uncompressed sizes of layers that had to be read for it, by their members' paths: images share layers.
    sizes: Mutex<HashMap<String, u64>>,
}

/// An item of `manifest.json`.
#[derive(Debug, PartialEq, Eq)]
struct Item {
    config: String,
    layers: Vec<String>,
    tags: Vec<String>,
}

/// One image of an archive.
#[derive(Debug)]
pub(super) struct DockerImage {
    archive: Arc<DockerArchive>,
    config: Vec<u8>,
    config_digest: Digest,
    diff_ids: Vec<Digest>,
    /// The member of each diffID, and its path.
    layers: HashMap<Digest, (Span, String)>,
    names: Vec<Reference>,
    manifest: OnceLock<Vec<u8>>,
}

/// Indexes the archive and reads its `manifest.json`.
pub(super) fn open(path: &Path, options: &Options) -> Result<DockerArchive, Error> {
    DockerArchive::new(Archive::open("docker-archive", path, options, Duplicates::First)?, options.limit)
}

impl DockerArchive {
    /// Reads `manifest.json`.
    pub(super) fn new(archive: Archive, limit: SizeLimit) -> Result<Self, Error> {
        let Some(bytes) = archive.read("manifest.json", ARCHIVE_MANIFEST_MAX)? else {
            let hint =
                if archive.has("index.json") { "; it looks like an OCI layout: write oci-archive:PATH" } else { "" };
            let shown = archive.shown();
            return Err(Error::Invalid(format!("{shown}: no manifest.json, so docker save did not write it{hint}")));
        };
        let json = |error| bad_json(&archive, "manifest.json", &error);
        let items: Vec<Item> = Document::parse(&bytes)
            .and_then(|document| document.top().items()?.map(|item| Item::parse(&item)).collect())
            .map_err(json)?;
        let mut by_tag = HashMap::new();
        for (at, item) in items.iter().enumerate() {
            for tag in item.references() {
                by_tag.entry(tag.to_string()).or_insert(at);
            }
        }
        Ok(Self { archive, items, by_tag, limit, sizes: Mutex::default() })
    }

    /// Finds the image that `select` chooses, with its names.
    pub(super) fn find(self: &Arc<Self>, select: &ArchiveSelect) -> Result<DockerImage, Error> {
        let (item, names) = self.choose(select)?;
        self.image(item, names)
    }

    /// As [`Self::find`] for an archive with one image that is called `names`, whatever the archive calls it.
    pub(super) fn only(self: &Arc<Self>, names: Vec<Reference>) -> Result<DockerImage, Error> {
        let (item, _) = self.choose(&ArchiveSelect::Only)?;
        self.image(item, names)
    }

    /// containers/image `docker/internal/tarfile/reader.go`, `ChooseManifestItem`. Items with one config and the same layers are one
    /// image with the tags of all.
    fn choose(&self, select: &ArchiveSelect) -> Result<(&Item, Vec<Reference>), Error> {
        let shown = self.archive.shown();
        match select {
            ArchiveSelect::Only => match &self.items[..] {
                [] => Err(Error::NotFound(format!("{shown}: no image in the archive"))),
                [first, others @ ..] if others.iter().all(|item| item.is_image_of(first)) => {
                    let mut names: Vec<Reference> = Vec::new();
                    for name in self.items.iter().flat_map(Item::references) {
                        if !names.contains(&name) {
                            names.push(name);
                        }
                    }
                    Ok((first, names))
                }
                items => Err(Error::Ambiguous(format!(
                    "{shown}: {} images in the archive, choose one with :NAME:TAG or :@N: {}",
                    items.len(),
                    self.list()
                ))),
            },
            ArchiveSelect::Index(at) => match self.items.get(*at) {
                Some(item) => Ok((item, item.references().collect())),
                None => {
                    let count = self.items.len();
                    Err(Error::NotFound(format!("{shown}: no image @{at}, the archive has {count} (from @0)")))
                }
            },
            ArchiveSelect::Tag(wanted) => match self.by_tag.get(&wanted.to_string()) {
                Some(at) => Ok((&self.items[*at], vec![wanted.clone()])),
                None => {
                    let there = self.list();
                    Err(Error::NotFound(format!("{shown}: no image {wanted} in the archive; there are: {there}")))
                }
            },
        }
    }

    /// The tags to choose from; an image without a tag is shown as `@N`.
    fn list(&self) -> String {
        let mut names = Vec::new();
        for (at, item) in self.items.iter().enumerate().take(LISTED) {
            if item.tags.is_empty() {
                names.push(format!("@{at}"));
            }
            names.extend(item.tags.iter().take(LISTED).cloned());
        }
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }

    fn image(self: &Arc<Self>, item: &Item, names: Vec<Reference>) -> Result<DockerImage, Error> {
        let (archive, config_name) = (&self.archive, &item.config[..]);
        let config = member(archive, config_name)?;
        if config.size > CONFIG_MAX {
            let (shown, size) = (archive.shown(), config.size);
            return Err(Error::Invalid(format!(
                "{shown}: config {config_name:?} has {size} bytes, at most {CONFIG_MAX} are allowed"
            )));
        }
        let config = read(archive, config_name, archive.reader(&config))?;
        let diff_ids = diff_ids(archive, config_name, &config)?;
        if item.layers.len() != diff_ids.len() {
            return Err(Error::Invalid(format!(
                "{}: {} layers in manifest.json, {} in the config",
                archive.shown(),
                item.layers.len(),
                diff_ids.len()
            )));
        }
        let mut layers = HashMap::new();
        for (diff_id, path) in diff_ids.iter().zip(&item.layers) {
            // One layer can occur twice. Any of its members can be read, because it is verified.
            if !layers.contains_key(diff_id) {
                layers.insert(*diff_id, (member(archive, path)?, path.clone()));
            }
        }
        let config_digest = Digest::of(&config);
        let archive = Arc::clone(self);
        Ok(DockerImage { archive, config, config_digest, diff_ids, layers, names, manifest: OnceLock::new() })
    }

    /// Returns the uncompressed size of a layer. A compressed one must be read to its end for it.
    fn layer_size(&self, span: &Span, path: &str) -> io::Result<u64> {
        let sizes = || self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(size) = sizes().get(path) {
            return Ok(*size);
        }
        let (mut plain, size) = self.layer(span)?;
        let size = match size {
            Some(size) => size,
            None => self.count(&mut plain, span.size)?,
        };
        sizes().insert(path.to_owned(), size);
        Ok(size)
    }

    /// Reads `plain` to its end, and returns its size; `compressed` bytes are in the archive for it.
    fn count(&self, plain: &mut dyn Read, compressed: u64) -> io::Result<u64> {
        let (mut buffer, mut size) = (vec![0; 256 << 10], 0);
        loop {
            match plain.read(&mut buffer) {
                Ok(0) => return Ok(size),
                Ok(count) => size += count as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            self.limit.check(size, compressed).map_err(io::Error::other)?;
        }
    }

    /// Returns the plain bytes of a layer, and their number if it is known without reading them.
    fn layer(&self, span: &Span) -> io::Result<(Box<dyn Read + Send>, Option<u64>)> {
        let mut magic = Vec::with_capacity(MAGIC_LENGTH);
        self.archive.reader(span).take(MAGIC_LENGTH as u64).read_to_end(&mut magic)?;
        let reader = self.archive.reader(span);
        match Compression::detect(&magic) {
            Compression::None => Ok((Box::new(reader), Some(span.size))),
            Compression::Lz4 => {
                let text = "lz4 compression of a layer is not supported (use gzip or zstd)";
                Err(io::Error::new(io::ErrorKind::Unsupported, text))
            }
            _ => Ok((Box::new(compression::plain(reader)?), None)),
        }
    }
}

impl Item {
    fn parse(view: &View<'_>) -> Result<Self, json::Error> {
        let texts = |key| -> Result<Vec<String>, json::Error> {
            view.get_items(key)?.iter().map(|item| item.text().map(Cow::into_owned)).collect()
        };
        Ok(Self { config: view.get_text("Config")?.into_owned(), layers: texts("Layers")?, tags: texts("RepoTags")? })
    }

    fn references(&self) -> impl Iterator<Item = Reference> {
        self.tags.iter().filter_map(|tag| Reference::parse_or_latest(tag).ok())
    }

    fn is_image_of(&self, other: &Self) -> bool {
        (&self.config, &self.layers) == (&other.config, &other.layers)
    }
}

impl DockerImage {
    /// Go's `json.Marshal` of containers/image's `manifest.Schema2`. Every layer has the media type of a gzip one,
    /// although it is plain.
    fn make_manifest(&self) -> Result<Vec<u8>, Error> {
        let sizes = self.layer_sizes()?;
        let layer = |diff_id| {
            let size: u64 = sizes[diff_id];
            format!(r#"{{"mediaType":"{DOCKER_LAYER}","size":{size},"digest":"{diff_id}"}}"#)
        };
        let layers: Vec<String> = self.diff_ids.iter().map(layer).collect();
        let (size, digest) = (self.config.len(), self.config_digest);
        let config = format!(r#"{{"mediaType":"{DOCKER_CONFIG}","size":{size},"digest":"{digest}"}}"#);
        let layers = layers.join(",");
        Ok(format!(r#"{{"schemaVersion":2,"mediaType":"{DOCKER_MANIFEST}","config":{config},"layers":[{layers}]}}"#)
            .into_bytes())
    }

    /// The uncompressed size of every layer. Compressed ones must be read to their ends for it, on all cores.
    fn layer_sizes(&self) -> Result<HashMap<Digest, u64>, Error> {
        let todo = Mutex::new(self.layers.iter());
        let next = || todo.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            let mut sizes = Vec::new();
            while let Some((diff_id, (span, path))) = next() {
                let shown = self.archive.archive.shown();
                let io = |error| Error::Io { what: format!("{shown}: read layer {diff_id}"), error };
                sizes.push((*diff_id, self.archive.layer_size(span, path).map_err(io)?));
            }
            Ok(sizes)
        };
        let workers = thread::available_parallelism().map_or(1, NonZero::get).min(self.layers.len());
        let results: Vec<Result<Vec<(Digest, u64)>, Error>> = thread::scope(|scope| {
            // With fewer it takes longer.
            let workers: Vec<_> = (1..workers).map_while(|_| threads::spawn_in(scope, work).ok()).collect();
            let own = work();
            let join =
                |worker: thread::ScopedJoinHandle<'_, _>| worker.join().unwrap_or_else(|panic| resume_unwind(panic));
            workers.into_iter().map(join).chain([own]).collect()
        });
        let mut sizes = HashMap::new();
        for result in results {
            sizes.extend(result?);
        }
        Ok(sizes)
    }
}

fn member(archive: &Archive, name: &str) -> Result<Span, Error> {
    let missing =
        || Error::Invalid(format!("{}: manifest.json names {name:?}, which is not in the archive", archive.shown()));
    archive.find(name.as_bytes())?.ok_or_else(missing)
}

fn read(archive: &Archive, name: &str, mut reader: impl Read) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    reader
        .read_to_end(&mut bytes)
        .map_err(|error| Error::Io { what: format!("{}: read {name:?}", archive.shown()), error })?;
    Ok(bytes)
}

fn diff_ids(archive: &Archive, name: &str, config: &[u8]) -> Result<Vec<Digest>, Error> {
    let invalid = |why: String| Error::Invalid(format!("{}: config {name:?}: {why}", archive.shown()));
    let json = |error: crate::json::Error| invalid(error.to_string());
    let document = Document::parse(config).map_err(json)?;
    let Some(rootfs) = document.top().get("rootfs").map_err(json)? else {
        return Err(invalid("no rootfs, so it is not an image config".to_owned()));
    };
    let items = rootfs.get_items("diff_ids").map_err(json)?;
    items
        .iter()
        .map(|item| item.text().map_err(json)?.parse().map_err(|error| invalid(format!("rootfs.diff_ids: {error}"))))
        .collect()
}

impl ImageSource for DockerImage {
    fn manifest(&self, instance: Option<&Digest>) -> Result<RawManifest, Error> {
        if let Some(instance) = instance {
            let shown = self.archive.archive.shown();
            return Err(Error::NotFound(format!("{shown}: no manifest {instance} in the archive")));
        }
        let bytes = match self.manifest.get() {
            Some(bytes) => bytes.clone(),
            None => {
                let bytes = self.make_manifest()?;
                self.manifest.get_or_init(|| bytes).clone()
            }
        };
        Ok(RawManifest { media_type: Some(DOCKER_MANIFEST.to_owned()), bytes })
    }

    fn blob(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>, Error> {
        if blob.digest == self.config_digest {
            return Ok(Box::new(Cursor::new(self.config.clone())));
        }
        let shown = self.archive.archive.shown();
        let Some((span, _)) = self.layers.get(&blob.digest) else {
            return Err(Error::NotFound(format!("{shown}: no blob {} in the archive", blob.digest)));
        };
        let io = |error| Error::Io { what: format!("{shown}: read layer {}", blob.digest), error };
        Ok(self.archive.layer(span).map_err(io)?.0)
    }

    fn names(&self) -> Vec<Reference> {
        self.names.clone()
    }
}
