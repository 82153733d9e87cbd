//! Go's types of image configs and manifests, field by field: what podman and CRI-O can read back from a store.
//!
//! ```text
//!  bytes ─▶ Document ─▶ check_config ──▶ Image, Schema2Image             tables.rs: the fields and their sources
//!                  └──▶ check_manifest ▶ Manifest, Index, Schema2, …     check.rs:  the walk over a document
//!                                                                        time.rs:   time.Time
//! ```
//!
//! Listing images unmarshals the manifest and the config of every image of a store (cri-o `internal/storage/image.go`,
//! `buildImageCacheItem`; containers/common `libimage/image.go`, `inspectInfo`), so one field of the wrong type in one
//! image makes `crictl images` and `podman images` fail for all images. A document that passes these checks is read by
//! containers/image 5.21 (CRI-O 1.24, podman 4.3, skopeo 1.9) and by all later ones up to 5.38 (CRI-O 1.37).
//!
//! Also built into the helper, which checks what it publishes.

mod check;
mod tables;
mod time;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use crate::json::{self, Document, Raw};
use tables::{INDEX, Layout, MANIFEST, MANIFEST_LIST, SCHEMA1, SCHEMA2};

pub use time::{go_time, is_time, seconds_since_epoch, utc};

/// Maximum size of a config, in bytes (containers/image `internal/iolimits`, `MaxConfigBodySize`).
pub const CONFIG_MAX: u64 = 4 << 20;

/// Maximum number of layers of an image that every containers/storage mounts, up to 1.43, which CRI-O 1.24 and 1.25 and podman
/// 4.3 have (`drivers/overlay/overlay.go`, `maxDepth`: 128 up to v1.43.0, 500 since v1.44.0).
pub const OLD_LAYERS_MAX: usize = 128;

/// Error from reading a config or a manifest as Go's types.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are not JSON, or a field has a value of the wrong type.
    #[error(transparent)]
    Json(#[from] json::Error),
    /// The config has more than [`CONFIG_MAX`] bytes.
    #[error("{0} bytes, at most {CONFIG_MAX} are allowed")]
    Size(u64),
    /// The document has a field of another kind of manifest (CVE-2021-41190).
    #[error("ambiguous, it has the field `{0}` of another kind of manifest")]
    Ambiguous(&'static str),
    /// The manifest does not say of which kind it is, so that it is taken for Docker schema 1.
    #[error("`schemaVersion` is {0}, not 2, and `mediaType` is missing: containers/image takes it for Docker schema 1")]
    Unrecognized(i64),
    /// A manifest without a config.
    #[error("no config, so it is not an image")]
    NoConfig,
    /// An OCI manifest whose config is not an image's.
    #[error("an artifact with a config of type {0:?}, not a container image")]
    Artifact(String),
    /// A Docker manifest has, for itself or a layer, a media type that containers/image does not know.
    #[error("`{field}` is {media_type:?}, which containers/image refuses in a Docker manifest")]
    MediaType {
        /// Path of the field.
        field: String,
        /// Media type as written; empty if there is none.
        media_type: String,
    },
}

/// Kind of a manifest, as containers/image guesses it from the bytes alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// OCI image manifest.
    OciManifest,
    /// Docker image manifest, version 2, schema 2.
    DockerManifest,
    /// OCI image index.
    OciIndex,
    /// Docker manifest list.
    DockerList,
    /// Docker image manifest, schema 1. All that is not known is taken for it.
    Schema1,
}

impl Kind {
    /// Returns the kind that has this media type.
    #[must_use]
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        match media_type {
            "application/vnd.oci.image.manifest.v1+json" => Some(Self::OciManifest),
            "application/vnd.docker.distribution.manifest.v2+json" => Some(Self::DockerManifest),
            "application/vnd.oci.image.index.v1+json" => Some(Self::OciIndex),
            "application/vnd.docker.distribution.manifest.list.v2+json" => Some(Self::DockerList),
            _ => None,
        }
    }

    /// Returns whether a document of this kind lists manifests.
    #[must_use]
    pub fn is_index(self) -> bool {
        matches!(self, Self::OciIndex | Self::DockerList)
    }

    fn layout(self) -> &'static Layout {
        match self {
            Self::OciManifest => &MANIFEST,
            Self::DockerManifest => &SCHEMA2,
            Self::OciIndex => &INDEX,
            Self::DockerList => &MANIFEST_LIST,
            Self::Schema1 => &SCHEMA1,
        }
    }

    /// Fields that belong to other kinds (containers/image `internal/manifest/common.go`,
    /// `ValidateUnambiguousManifestFormat`).
    fn foreign_fields(self) -> &'static [&'static str] {
        match self {
            Self::OciManifest | Self::DockerManifest => &["manifests", "fsLayers", "history"],
            Self::OciIndex | Self::DockerList => &["config", "layers", "fsLayers", "history"],
            Self::Schema1 => &["config", "layers", "manifests"],
        }
    }
}

/// Config's media type in an OCI manifest.
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Config's media type in a Docker manifest.
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Checks that Go can unmarshal the config of an image.
///
/// # Errors
/// [`Error::Size`] if it is too large, [`Error::Json`] if it is not JSON or has a field of the wrong type.
pub fn check_config(bytes: &[u8]) -> Result<(), Error> {
    if bytes.len() as u64 > CONFIG_MAX {
        return Err(Error::Size(bytes.len() as u64));
    }
    check_config_document(&Document::parse(bytes)?)
}

/// Checks that Go can unmarshal the config of an image, which has been parsed.
///
/// The config is unmarshalled into two types. For an OCI manifest these are `imgspecv1.Image` and `Schema2V1Image`, for a
/// Docker one `imgspecv1.Image` and `Schema2Image`, which has all fields of `Schema2V1Image` (containers/image
/// `internal/image/oci.go` and `docker_schema2.go`, `OCIConfig`; `manifest/oci.go` and `docker_schema2.go`, `Inspect`).
///
/// # Errors
/// As [`check_config`].
pub fn check_config_document(document: &Document) -> Result<(), Error> {
    check::check(document.raw(), &tables::IMAGE)?;
    check::check(document.raw(), &tables::SCHEMA2_IMAGE)?;
    Ok(())
}

/// Checks that containers/image can read a manifest back from a store, and returns its kind.
///
/// # Errors
/// If it is not JSON, has a field of the wrong type, or is of no kind that a store's image can have: an index too.
pub fn check_manifest(bytes: &[u8]) -> Result<Kind, Error> {
    let document = Document::parse(bytes)?;
    let kind = guess(&document)?;
    if kind.is_index() {
        return Err(Error::Ambiguous("manifests"));
    }
    check_kind(&document, kind)?;
    check_stored(&document, kind)?;
    Ok(kind)
}

/// Checks a manifest or an index that a store keeps beside the image's own manifest, for names with its digest.
///
/// # Errors
/// As [`check_manifest`] and [`check_index`].
pub fn check_further_manifest(bytes: &[u8]) -> Result<Kind, Error> {
    let kind = guess(&Document::parse(bytes)?)?;
    if kind.is_index() { check_index(bytes) } else { check_manifest(bytes) }
}

/// Checks that Go can unmarshal an index or a manifest list. A store keeps it beside the image's manifest, and
/// containers/image reads it for a name with the index's digest.
///
/// # Errors
/// If it is not JSON, has a field of the wrong type, or does not look like an index.
pub fn check_index(bytes: &[u8]) -> Result<Kind, Error> {
    let document = Document::parse(bytes)?;
    let kind = match guess(&document)? {
        kind if kind.is_index() => kind,
        _ => Kind::OciIndex,
    };
    check_kind(&document, kind)?;
    Ok(kind)
}

/// Checks that containers/image can unmarshal a parsed document as `kind`, and that it has no field of another kind.
///
/// # Errors
/// [`Error`] if it cannot.
pub fn check_kind(document: &Document, kind: Kind) -> Result<(), Error> {
    check::check(document.raw(), kind.layout())?;
    check::check(document.raw(), &tables::OF_SOME_KINDS)?;
    let top = document.top();
    for field in kind.foreign_fields() {
        if top.get(field)?.is_some() {
            return Err(Error::Ambiguous(field));
        }
    }
    match kind {
        Kind::OciManifest => {
            let media_type = config_type(document)?.ok_or(Error::NoConfig)?;
            if media_type != OCI_CONFIG {
                return Err(Error::Artifact(media_type));
            }
        }
        // containers/image `manifest/docker_schema1.go`, `Schema1FromManifest`.
        Kind::Schema1 => match version(document) {
            1 => {}
            other => return Err(Error::Unrecognized(other)),
        },
        Kind::DockerManifest | Kind::OciIndex | Kind::DockerList => {}
    }
    Ok(())
}

/// Media types that a Docker manifest and its layers may have (containers/image `manifest/manifest.go`,
/// `SupportedSchema2MediaType`).
const DOCKER_TYPES: [&str; 10] = [
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    DOCKER_CONFIG,
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// Guesses the kind of a manifest (containers/image `internal/manifest/manifest.go`, `GuessMIMEType` and
/// `NormalizedMIMEType`).
///
/// # Errors
/// If a field that tells the kind has the wrong type.
pub fn guess(document: &Document) -> Result<Kind, Error> {
    check::check(document.raw(), &tables::VERSIONED)?;
    let top = document.top();
    if let Some(kind) = Kind::of_media_type(&top.get_text("mediaType")?) {
        return Ok(kind);
    }
    if version(document) != 2 {
        return Ok(Kind::Schema1);
    }
    Ok(match &*config_type(document)?.unwrap_or_default() {
        OCI_CONFIG => Kind::OciManifest,
        DOCKER_CONFIG => Kind::DockerManifest,
        "" if !top.get_items("manifests")?.is_empty() => Kind::OciIndex,
        _ => Kind::OciManifest,
    })
}

/// Checks that containers/image reads a parsed manifest, once [`check_kind`] has been done, back from a store as an image of
/// `kind`. A store keeps the bytes alone, without a media type.
///
/// # Errors
/// [`Error::Unrecognized`] if it is taken for another kind, [`Error::MediaType`] if a Docker manifest has an unknown one.
pub fn check_stored(document: &Document, kind: Kind) -> Result<(), Error> {
    if guess(document)? != kind {
        return Err(Error::Unrecognized(version(document)));
    }
    if kind == Kind::DockerManifest {
        let top = document.top();
        check_docker_type("mediaType", top.get_text("mediaType")?)?;
        for (layer, item) in top.get_items("layers")?.iter().enumerate() {
            check_docker_type(&format!("layers[{layer}].mediaType"), item.get_text("mediaType")?)?;
        }
    }
    Ok(())
}

/// Checks a media type in a Docker manifest (containers/image `manifest/docker_schema2.go`, `Schema2FromManifest`).
fn check_docker_type(field: &str, media_type: Cow<'_, str>) -> Result<(), Error> {
    if DOCKER_TYPES.contains(&&*media_type) {
        return Ok(());
    }
    Err(Error::MediaType { field: field.to_owned(), media_type: media_type.into_owned() })
}

/// Returns the paths of all fields whose type is checked in a document of `kind`, or in a config. An element of a list is `[]`, a value
/// of a map `{}`: `history[].created`, `config.Labels{}`. Tests take them to compare prepull with other programs.
#[must_use]
pub fn fields(kind: Option<Kind>) -> Vec<String> {
    let mut paths = Vec::new();
    match kind {
        Some(kind) => tables::paths(kind.layout(), "", &mut paths),
        None => {
            [&tables::IMAGE, &tables::SCHEMA2_IMAGE].iter().for_each(|layout| tables::paths(layout, "", &mut paths))
        }
    }
    paths.sort_unstable();
    paths.dedup();
    paths
}

/// Returns the `schemaVersion` of a document that fits [`tables::VERSIONED`]; 0 if it has none.
fn version(document: &Document) -> i64 {
    let value = document.top().get("schemaVersion").ok().flatten();
    value.and_then(|value| value.number().ok().flatten()).unwrap_or(0)
}

/// Returns the media type of the config; empty if the config has none.
fn config_type(document: &Document) -> Result<Option<String>, json::Error> {
    let config = document.top().get("config")?;
    config.map(|config| config.get_text("mediaType").map(|text| text.into_owned())).transpose()
}

/// Returns whether Go reads the value as a `time.Time`.
fn is_time_value(value: Raw<'_>) -> bool {
    // `time.Time.UnmarshalJSON` compares the text as it is written: no escapes.
    value.text().strip_prefix('"').and_then(|text| text.strip_suffix('"')).is_some_and(is_time)
}
