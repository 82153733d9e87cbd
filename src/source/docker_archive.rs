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

use std::collections::HashMap;
use std::io::{self, Cursor, Read};
use std::num::NonZero;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

use super::archive::{Archive, Duplicates, Span};
use super::{CONFIG_MAX, Descriptor, Error, Files as _, ImageSource, Options, RawManifest, bad_json};
use crate::compression::{self, Compression, MAGIC_LENGTH};
use crate::digest::Digest;
use crate::json::{Document, View};
use crate::media_type::{DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST};
use crate::reference::{ArchiveSelect, Reference};
use crate::threads;

/// The largest `manifest.json` that is read, in bytes (containers/image `internal/iolimits`, `MaxTarFileManifestSize`).
pub const ARCHIVE_MANIFEST_MAX: u64 = 1 << 20;

/// One image of an archive.
#[derive(Debug)]
pub(super) struct DockerArchive {
    archive: Archive,
    config: Vec<u8>,
    config_digest: Digest,
    diff_ids: Vec<Digest>,
    /// The member of each diffID.
    layers: HashMap<Digest, Span>,
    names: Vec<Reference>,
    manifest: OnceLock<Vec<u8>>,
}

/// Indexes the archive and finds the image.
pub(super) fn open(path: &Path, select: &ArchiveSelect, options: &Options) -> Result<DockerArchive, Error> {
    let archive = Archive::open("docker-archive", path, options, Duplicates::First)?;
    DockerArchive::find(archive, select)
}

impl DockerArchive {
    /// Finds the image that `select` chooses.
    pub(super) fn find(archive: Archive, select: &ArchiveSelect) -> Result<Self, Error> {
        let Some(bytes) = archive.read("manifest.json", ARCHIVE_MANIFEST_MAX)? else {
            let hint =
                if archive.has("index.json") { "; it looks like an OCI layout: write oci-archive:PATH" } else { "" };
            let shown = archive.shown();
            return Err(Error::Invalid(format!("{shown}: no manifest.json, so docker save did not write it{hint}")));
        };
        let json = |error| bad_json(&archive, "manifest.json", &error);
        let document = Document::parse(&bytes).map_err(json)?;
        let images: Vec<View<'_>> = document.top().items().map_err(json)?.collect();
        let image = choose(&archive, &images, select)?;
        let names = match select {
            ArchiveSelect::Tag(tag) => vec![tag.clone()],
            ArchiveSelect::Only | ArchiveSelect::Index(_) => {
                let mut names = Vec::new();
                for tag in image.get_items("RepoTags").map_err(json)? {
                    names.extend(Reference::parse_or_latest(tag.text().map_err(json)?).ok());
                }
                names
            }
        };
        let config_name = image.get_text("Config").map_err(json)?;
        let config = member(&archive, config_name)?;
        if config.size > CONFIG_MAX {
            let (shown, size) = (archive.shown(), config.size);
            return Err(Error::Invalid(format!(
                "{shown}: config {config_name:?} has {size} bytes, at most {CONFIG_MAX} are allowed"
            )));
        }
        let config = read(&archive, config_name, archive.reader(&config))?;
        let diff_ids = diff_ids(&archive, config_name, &config)?;
        let paths = image.get_items("Layers").map_err(json)?;
        if paths.len() != diff_ids.len() {
            return Err(Error::Invalid(format!(
                "{}: {} layers in manifest.json, {} in the config",
                archive.shown(),
                paths.len(),
                diff_ids.len()
            )));
        }
        let mut layers = HashMap::new();
        for (diff_id, path) in diff_ids.iter().zip(paths) {
            // One layer can occur twice; which of its members is read makes no difference, it is verified.
            if !layers.contains_key(diff_id) {
                layers.insert(*diff_id, member(&archive, path.text().map_err(json)?)?);
            }
        }
        let config_digest = Digest::of(&config);
        Ok(Self { archive, config, config_digest, diff_ids, layers, names, manifest: OnceLock::new() })
    }

    /// As [`Self::find`] for an archive with one image that is called `names`, whatever it says itself.
    pub(super) fn only(archive: Archive, names: Vec<Reference>) -> Result<Self, Error> {
        Ok(Self { names, ..Self::find(archive, &ArchiveSelect::Only)? })
    }

    /// The plain bytes of a layer, and their number if it is known without reading them.
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
            while let Some((diff_id, span)) = next() {
                let io = |error| Error::Io { what: format!("{}: read layer {diff_id}", self.archive.shown()), error };
                let (mut plain, size) = self.layer(span).map_err(io)?;
                sizes.push((*diff_id, size.map_or_else(|| io::copy(&mut plain, &mut io::sink()).map_err(io), Ok)?));
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

/// containers/image `ChooseManifestItem`.
fn choose<'a>(archive: &Archive, images: &'a [View<'a>], select: &ArchiveSelect) -> Result<&'a View<'a>, Error> {
    let shown = archive.shown();
    let json = |error| bad_json(archive, "manifest.json", &error);
    match select {
        ArchiveSelect::Only => match images {
            [only] => Ok(only),
            [] => Err(Error::NotFound(format!("{shown}: no image in the archive"))),
            _ => Err(Error::Ambiguous(format!(
                "{shown}: {} images in the archive, choose one with :NAME:TAG or :@N: {}",
                images.len(),
                tags(images).map_err(json)?
            ))),
        },
        ArchiveSelect::Index(at) => images.get(*at).ok_or_else(|| {
            Error::NotFound(format!("{shown}: no image @{at}, the archive has {} (from @0)", images.len()))
        }),
        ArchiveSelect::Tag(wanted) => {
            for image in images {
                for tag in image.get_items("RepoTags").map_err(json)? {
                    if Reference::parse_or_latest(tag.text().map_err(json)?).is_ok_and(|tag| tag == *wanted) {
                        return Ok(image);
                    }
                }
            }
            let there = tags(images).map_err(json)?;
            Err(Error::NotFound(format!("{shown}: no image {wanted} in the archive; there are: {there}")))
        }
    }
}

/// The names to choose from; an image without a tag is shown as `@N`.
fn tags(images: &[View<'_>]) -> Result<String, crate::json::Error> {
    let mut names = Vec::new();
    for (at, image) in images.iter().enumerate().take(20) {
        let tags = image.get_items("RepoTags")?;
        if tags.is_empty() {
            names.push(format!("@{at}"));
        }
        for tag in tags.iter().take(20) {
            names.push(tag.text()?.escape_debug().to_string());
        }
    }
    Ok(if names.is_empty() { "none".to_owned() } else { names.join(", ") })
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

impl ImageSource for DockerArchive {
    fn manifest(&self, instance: Option<&Digest>) -> Result<RawManifest, Error> {
        if let Some(instance) = instance {
            return Err(Error::NotFound(format!("{}: no manifest {instance} in the archive", self.archive.shown())));
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
        let shown = self.archive.shown();
        let Some(span) = self.layers.get(&blob.digest) else {
            return Err(Error::NotFound(format!("{shown}: no blob {} in the archive", blob.digest)));
        };
        let io = |error| Error::Io { what: format!("{shown}: read layer {}", blob.digest), error };
        Ok(self.layer(span).map_err(io)?.0)
    }

    fn names(&self) -> Vec<Reference> {
        self.names.clone()
    }
}
