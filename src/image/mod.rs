//! An image whose every descriptor has been checked: the end of the untrusted world, but for the layers' bytes.
//!
//! ```text
//!  expected digest ─▶ index (perhaps) ─▶ manifest ─┬─▶ config ─▶ diff_ids
//!                       by digest         by digest └─▶ layers' descriptors, one for each diff_id
//! ```
//!
//! Only [`Image::open`] makes an [`Image`], so whoever holds one knows that manifest and config are the bytes that their
//! digests say. The layers are verified by whoever reads them, with [`crate::digest::VerifyReader`].

mod config;
mod manifest;
mod platform;

#[cfg(test)]
mod tests;

use std::io::Read;

use crate::digest::{Digest, ParseDigestError, VerifyReader};
use crate::go_types;
use crate::json;
use crate::media_type::essence;
use crate::source::{self, CONFIG_MAX, Descriptor, ImageSource, MANIFEST_MAX, RawManifest};

pub use platform::{ParsePlatformError, Platform};

pub use crate::go_types::OLD_LAYERS_MAX;

/// The most layers that an image may have: containers/storage's overlay driver refuses a deeper chain
/// (`drivers/overlay/overlay.go`, `maxDepth`).
pub const LAYERS_MAX: usize = 500;

/// Maximum number of indexes, one within the other, on the way to a manifest (OCI image spec, image-index.md: an index may list
/// indexes).
pub const INDEXES_MAX: usize = 4;

/// An image: verified manifest and config, and what is needed to fetch and verify its layers.
#[derive(Debug, Clone)]
pub struct Image {
    manifest: RawManifest,
    manifest_digest: Digest,
    index: Option<(RawManifest, Digest)>,
    config: Vec<u8>,
    id: Digest,
    layers: Vec<Layer>,
    created: Option<String>,
    platform: Platform,
}

/// A layer as the manifest and the config describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The blob: as it comes, perhaps compressed.
    pub descriptor: Descriptor,
    /// The digest of the tar inside it.
    pub diff_id: Digest,
    /// The first [`URLS_SHOWN`] `urls` of the descriptor, shortened, for messages. Nothing is fetched from them: they are
    /// chosen by the image's author and would be asked for from inside the caller's network.
    pub urls: Vec<String>,
}

/// Maximum number of a layer's `urls` that a message lists.
pub const URLS_SHOWN: usize = 3;

impl Layer {
    /// Returns how well other tools can use the blob, as far as the media type tells: 0 for gzip, 1 for a plain tar, 2 for zstd, 3
    /// for bzip2 and xz.
    ///
    /// If several images share the layer, its record in the store names one blob. containers/image up to 5.23 cannot write an
    /// image in a Docker format (`podman save --format docker-dir`) if that blob is in zstd.
    #[must_use]
    pub fn rank(&self) -> u8 {
        let Descriptor { media_type, digest, .. } = &self.descriptor;
        // An archive that docker save has written is plain, although its manifest has Docker's only type.
        match essence(media_type).rsplit(['.', '+']).next() {
            _ if *digest == self.diff_id => 1,
            Some("gzip") => 0,
            Some("zstd") => 2,
            Some("bzip2" | "xz") => 3,
            _ => 1,
        }
    }

    /// Returns the order in which blobs of one layer are preferred.
    pub(crate) fn preference(&self) -> (u8, Digest) {
        (self.rank(), self.descriptor.digest)
    }
}

impl Image {
    /// Fetches manifest and config from `source`, chooses the manifest for `platform` where there is an index, and
    /// verifies all of it. `expected` is the digest in the reference, if it has one: the index's or the manifest's.
    ///
    /// # Errors
    /// When something is missing, is not what its digest says, or is no image that a store can hold.
    pub fn open(source: &dyn ImageSource, expected: Option<Digest>, platform: &Platform) -> Result<Self, Error> {
        let choices = source.choices()?;
        let chosen = match &choices {
            Some(raw) => {
                let (kind, document) = manifest::classify(raw, &raw.digest())?;
                Some(manifest::choose(kind, &document, platform, &raw.digest())?)
            }
            None => None,
        };
        let mut raw = source.manifest(chosen.as_ref().map(|chosen| &chosen.digest))?;
        let mut digest = checked(&raw, expected)?;
        if let Some(chosen) = &chosen {
            check_size(&raw, chosen)?;
        }
        let (mut kind, mut document) = manifest::classify(&raw, &digest)?;
        let mut index = None;
        let mut depth = 0;
        while kind.is_index() {
            depth += 1;
            if depth > INDEXES_MAX {
                return Err(Error::NestedIndex { nested: digest });
            }
            let chosen = manifest::choose(kind, &document, platform, &digest)?;
            let inner = source.manifest(Some(&chosen.digest))?;
            let outer = (std::mem::replace(&mut raw, inner), digest);
            index.get_or_insert(outer);
            digest = checked(&raw, Some(chosen.digest))?;
            check_size(&raw, &chosen)?;
            (kind, document) = manifest::classify(&raw, &digest)?;
        }
        let manifest = manifest::Manifest::parse(kind, &document, &digest)?;
        let config = fetch_config(source, &manifest.config)?;
        let id = manifest.config.digest;
        let parsed = config::Config::parse(&config, &id)?;
        if parsed.diff_ids.len() != manifest.layers.len() {
            return Err(Error::DiffIds { id, diff_ids: parsed.diff_ids.len(), layers: manifest.layers.len() });
        }
        let layers = manifest.layers.into_iter().zip(parsed.diff_ids);
        Ok(Self {
            manifest: raw,
            manifest_digest: digest,
            index,
            config,
            id,
            layers: layers.map(|((descriptor, urls), diff_id)| Layer { descriptor, diff_id, urls }).collect(),
            created: parsed.created,
            platform: parsed.platform,
        })
    }

    /// The manifest as it came.
    #[must_use]
    pub fn manifest(&self) -> &RawManifest {
        &self.manifest
    }

    /// The digest of [`Self::manifest`].
    #[must_use]
    pub fn manifest_digest(&self) -> Digest {
        self.manifest_digest
    }

    /// The outermost index that the manifest was chosen from, if the source gave one.
    #[must_use]
    pub fn index(&self) -> Option<&RawManifest> {
        self.index.as_ref().map(|(raw, _)| raw)
    }

    /// The digest of [`Self::index`].
    #[must_use]
    pub fn index_digest(&self) -> Option<Digest> {
        self.index.as_ref().map(|(_, digest)| *digest)
    }

    /// The digest that the reference resolves to: the index's where there is one, else the manifest's.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.index_digest().unwrap_or(self.manifest_digest)
    }

    /// The config as it came.
    #[must_use]
    pub fn config(&self) -> &[u8] {
        &self.config
    }

    /// The config's digest, which is the image's id.
    #[must_use]
    pub fn id(&self) -> Digest {
        self.id
    }

    /// The layers, lowest first. An image may have none, and may have one twice.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The ids of the layers in a store, lowest first: see [`chain_ids`].
    #[must_use]
    pub fn chain_ids(&self) -> Vec<Digest> {
        let diff_ids: Vec<Digest> = self.layers.iter().map(|layer| layer.diff_id).collect();
        chain_ids(&diff_ids)
    }

    /// The config's `created`, exactly as written, a time of RFC 3339; `None` when absent.
    #[must_use]
    pub fn created(&self) -> Option<&str> {
        self.created.as_deref()
    }

    /// The platform that the config names. Where the source gave a single manifest and no index, it may be another than
    /// the one that was asked for: containers/image takes such an image all the same and warns.
    #[must_use]
    pub fn platform(&self) -> &Platform {
        &self.platform
    }
}

/// Returns the ids that a store gives the layers with these diffIDs, one on top of the other ([`Digest::layer_id`]).
#[must_use]
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(diff_id.layer_id(chain.last()));
    }
    chain
}

/// The digest of `raw`, which is `expected` where there is one.
fn checked(raw: &RawManifest, expected: Option<Digest>) -> Result<Digest, Error> {
    if raw.bytes.len() as u64 > MANIFEST_MAX {
        return Err(Error::ManifestSize { size: raw.bytes.len() as u64 });
    }
    let found = raw.digest();
    match expected {
        Some(expected) if expected != found => Err(Error::ManifestDigest { expected, found }),
        _ => Ok(found),
    }
}

/// Checks that `raw` has the size in the entry of an index that names it.
fn check_size(raw: &RawManifest, entry: &Descriptor) -> Result<(), Error> {
    match raw.bytes.len() {
        found if found as u64 == entry.size => Ok(()),
        found => Err(Error::EntrySize { digest: entry.digest, size: entry.size, found }),
    }
}

fn fetch_config(source: &dyn ImageSource, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
    let (digest, size) = (descriptor.digest, descriptor.size);
    if size > CONFIG_MAX {
        return Err(Error::ConfigSize { digest, size });
    }
    let mut bytes = Vec::new();
    VerifyReader::new(source.blob(descriptor)?, digest, size)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::ReadConfig { digest, error })?;
    Ok(bytes)
}

/// Why a source's image cannot be used. The caller adds which image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source cannot give what it was asked for.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// More than [`MANIFEST_MAX`] bytes.
    #[error("the manifest has {size} bytes, at most {MANIFEST_MAX} are allowed")]
    ManifestSize {
        /// Its size.
        size: u64,
    },
    /// Not the manifest that was asked for.
    #[error(
        "the manifest has the digest {found}, expected {expected} (the source gave another image, or damaged bytes)"
    )]
    ManifestDigest {
        /// What the reference or the index says.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// A manifest or index that podman and CRI-O cannot read back from a store.
    #[error("manifest {digest}: {error}")]
    Manifest {
        /// Digest of the manifest.
        digest: Digest,
        /// Field and type.
        error: go_types::Error,
    },
    /// An entry of an index has another size than the manifest that it names.
    #[error("manifest {digest}: the index has the size {size} for it, but it has {found} bytes")]
    EntrySize {
        /// Digest of the manifest.
        digest: Digest,
        /// Size in the index, in bytes.
        size: u64,
        /// Size of the manifest, in bytes.
        found: usize,
    },
    /// A kind of manifest that is unknown.
    #[error("manifest {digest}: {media_type} is not a media type of an image (OCI and Docker schema 2 are)")]
    MediaType {
        /// Which.
        digest: Digest,
        /// What it says it is.
        media_type: String,
    },
    /// The format before 2016.
    #[error(
        "manifest {digest}: Docker schema 1 is not supported, convert the image first (skopeo copy --format v2s2 ...)"
    )]
    Schema1 {
        /// Which.
        digest: Digest,
    },
    /// More than [`INDEXES_MAX`] indexes, one within the other.
    #[error("index {nested}: more than {INDEXES_MAX} indexes within each other; name the image by its own digest")]
    NestedIndex {
        /// The innermost one.
        nested: Digest,
    },
    /// The index has no image for the platform.
    #[error("no image for the platform {wanted}; there are: {there} (choose one with --platform)")]
    NoPlatform {
        /// What was asked for.
        wanted: Platform,
        /// What there is.
        there: String,
    },
    /// A digest that is none.
    #[error("manifest {digest}: {what}: {error}")]
    Descriptor {
        /// Which manifest.
        digest: Digest,
        /// Whose descriptor.
        what: String,
        /// What is wrong.
        error: ParseDigestError,
    },
    /// More than [`LAYERS_MAX`] layers.
    #[error("manifest {digest}: {layers} layers, containers/storage allows at most {LAYERS_MAX}")]
    TooManyLayers {
        /// Which.
        digest: Digest,
        /// How many.
        layers: usize,
    },
    /// A layer that is not read.
    #[error("layer {layer} of {layers}: media type {media_type:?}: {why}")]
    LayerMediaType {
        /// The layer, from 1.
        layer: usize,
        /// Of how many.
        layers: usize,
        /// As written.
        media_type: String,
        /// The reason.
        why: &'static str,
    },
    /// More than [`CONFIG_MAX`] bytes.
    #[error("config {digest}: {size} bytes, at most {CONFIG_MAX} are allowed")]
    ConfigSize {
        /// Which.
        digest: Digest,
        /// Its size.
        size: u64,
    },
    /// It cannot be read, or is not what its descriptor says.
    #[error("read config {digest}: {error}")]
    ReadConfig {
        /// Which.
        digest: Digest,
        /// What is wrong.
        error: std::io::Error,
    },
    /// A config that podman and CRI-O cannot read back from a store.
    #[error("config {id}: {error}")]
    Config {
        /// Digest of the config.
        id: Digest,
        /// Field and type.
        error: go_types::Error,
    },
    /// A diffID that is none.
    #[error("config {id}: rootfs.diff_ids: {error}")]
    DiffId {
        /// Which config.
        id: Digest,
        /// What is wrong.
        error: ParseDigestError,
    },
    /// Not as many diffIDs as layers.
    #[error("config {id}: {diff_ids} rootfs.diff_ids, but the manifest has {layers} layers")]
    DiffIds {
        /// Which config.
        id: Digest,
        /// How many it has.
        diff_ids: usize,
        /// How many the manifest has.
        layers: usize,
    },
}

impl Error {
    fn manifest(digest: &Digest, error: json::Error) -> Self {
        Self::Manifest { digest: *digest, error: error.into() }
    }
}
