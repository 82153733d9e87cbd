//! Where an image's bytes lie. One file a transport; all of them answer the two questions of [`ImageSource`].

pub mod registry;

use std::fmt;
use std::io::Read;

use crate::digest::Digest;
use crate::reference::Reference;

/// The largest manifest or index that is read, in bytes: 4 MiB, what containers/image allows
/// (`internal/iolimits`, `MaxManifestBodySize`) and the OCI distribution specification tells registries to accept.
pub const MANIFEST_MAX: u64 = 4 << 20;

/// The largest config that is read, in bytes (containers/image `internal/iolimits`, `MaxConfigBodySize`).
pub const CONFIG_MAX: u64 = 4 << 20;

/// A manifest or index exactly as the source gave it. Never serialised again: its digest is over these bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct RawManifest {
    /// The media type that the source announced (`Content-Type`, descriptor), if it did: a hint, never trusted over the bytes.
    pub media_type: Option<String>,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl RawManifest {
    /// The digest of the bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }
}

impl fmt::Debug for RawManifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawManifest({:?}, {} bytes)", self.media_type, self.bytes.len())
    }
}

/// What names a blob: OCI image spec, descriptor.md.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The media type as written.
    pub media_type: String,
    /// The digest of the bytes.
    pub digest: Digest,
    /// The size in bytes.
    pub size: u64,
}

/// Where one image's bytes come from.
///
/// Nothing it returns is verified; [`crate::image::Image::open`] and the layer reader do that, once, for all transports.
pub trait ImageSource: Send + Sync + fmt::Debug {
    /// The manifest that the reference points at (perhaps an index), or, with `instance`, that manifest of the index.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none; others when it cannot be read. At most [`MANIFEST_MAX`] bytes.
    fn manifest(&self, instance: Option<&Digest>) -> Result<RawManifest, Error>;

    /// The bytes of a blob from its beginning. Retries and resumption happen inside the reader.
    ///
    /// # Errors
    /// As for [`Self::manifest`]; errors while reading come out of the reader.
    fn blob(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>, Error>;

    /// The names that the source itself gives the image, fully normalised; empty where it gives none
    /// (`dir:`, an unnamed archive, an OCI layout whose reference is not a full name).
    fn names(&self) -> Vec<Reference>;
}

/// Why a source cannot give what it was asked for. The text says what was being done; the caller adds for which image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image, manifest or blob is not there.
    #[error("{0}")]
    NotFound(String),
    /// A file of the source cannot be read.
    #[error("{what}: {error}")]
    Io {
        /// What was being done to which file.
        what: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The source is there but is not what its transport says it is.
    #[error("{0}")]
    Invalid(String),
    /// More than one image, and nothing says which.
    #[error("{0}")]
    Ambiguous(String),
    /// The registry's or the daemon's answer.
    #[error(transparent)]
    Registry(#[from] crate::registry::Error),
}
