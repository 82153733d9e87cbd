//! Where an image's bytes lie. One file a transport; all of them answer the two questions of [`ImageSource`].
//! [`open`] chooses the transport that a [`Location`] names.

mod archive;
mod dir;
mod docker_archive;
mod docker_daemon;
mod oci_archive;
mod oci_layout;
mod opened;
mod recognise;

pub mod registry;

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::atomic::chosen_temporary_directory;
use crate::compression::SizeLimit;
use crate::digest::Digest;
use crate::json::{self, Document};
use crate::reference::{Location, Reference, show_path};

pub use archive::{EXTENSION_MAX, MEMBER_NAME_MAX, MEMBERS_MAX, NAMES_MAX};
pub use docker_archive::ARCHIVE_MANIFEST_MAX;
pub use docker_daemon::DEFAULT_DOCKER_HOST;
pub use opened::Opened;
pub use recognise::{Holding, recognise};

/// The largest manifest or index that is read, in bytes: 4 MiB, what containers/image allows
/// (`internal/iolimits`, `MaxManifestBodySize`) and the OCI distribution specification tells registries to accept.
pub const MANIFEST_MAX: u64 = 4 << 20;

pub use crate::go_types::CONFIG_MAX;

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

    /// An OCI index, which is not part of the image, of the manifests that [`Self::manifest`] may have for the image: the
    /// platform decides, and the chosen one is asked for as an `instance`. `None` where there is only one.
    ///
    /// # Errors
    /// As for [`Self::manifest`].
    fn choices(&self) -> Result<Option<RawManifest>, Error> {
        Ok(None)
    }

    /// The bytes of a blob from its beginning. Retries and resumption happen inside the reader.
    ///
    /// # Errors
    /// As for [`Self::manifest`]; errors while reading come out of the reader.
    fn blob(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>, Error>;

    /// The names that the source itself gives the image, fully normalised; empty where it gives none
    /// (`dir:`, an unnamed archive, an OCI layout whose reference is not a full name).
    fn names(&self) -> Vec<Reference>;

    /// Whether its blobs come over a network, which is slower than a processor.
    fn is_remote(&self) -> bool {
        false
    }
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
    /// An item without a colon.
    #[error(
        "without a `:` it is an xcluster overlay, and those are not read yet; for an image the version must be included \
         ({0}:TAG)"
    )]
    Overlay(String),
    /// More than one image, and nothing says which.
    #[error("{0}")]
    Ambiguous(String),
    /// The registry's or the daemon's answer.
    #[error(transparent)]
    Registry(Box<crate::registry::Error>),
}

impl Error {
    /// Returns whether the image, manifest or blob is missing, or cannot be named like this.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_))
    }
}

/// What the transports need to know besides the location.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where the Docker daemon listens: `unix:///PATH` or `tcp://HOST:PORT`; [`DEFAULT_DOCKER_HOST`] if `None`.
    pub docker_host: Option<String>,
    /// Where large temporary files go; `/var/tmp` if `None`, as for containers/image, since `/tmp` may be memory.
    pub tmpdir: Option<PathBuf>,
    /// How registries are spoken to.
    pub registry: crate::registry::Options,
    /// How large images and archives may be when they are uncompressed.
    pub limit: SizeLimit,
    /// What has been opened with these options or a clone of them.
    pub opened: Arc<Opened>,
}

impl Options {
    /// What the environment says: `DOCKER_HOST` and `TMPDIR`.
    #[must_use]
    pub fn from_env() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            docker_host: variable("DOCKER_HOST").map(|value| value.to_string_lossy().into_owned()),
            tmpdir: chosen_temporary_directory(),
            registry: crate::registry::Options::default(),
            limit: SizeLimit::default(),
            opened: Arc::default(),
        }
    }

    fn tmpdir(&self) -> &Path {
        self.tmpdir.as_deref().unwrap_or(Path::new("/var/tmp"))
    }
}

/// Returns the text of an error of a source, or of what is above it, for a message that begins with `item`. Such an error begins with
/// the transport and the path, which the item has as well.
#[must_use]
pub fn without_place(item: &str, error: &dyn fmt::Display) -> String {
    let text = error.to_string();
    match text.split_once(": ") {
        Some((place, rest)) if place.contains(':') && item.starts_with(place) => rest.to_owned(),
        _ => text,
    }
}

/// Opens the source that `location` names. A layout or archive is opened and parsed once for all images of it, as long as `options`
/// or their clones live. The Docker daemon's answer and compressed archives are copied to a temporary
/// file here; all other sources only look for the image.
///
/// # Errors
/// When the source, or the image in it, is not there or cannot be read.
pub fn open(location: &Location, options: &Options) -> Result<Arc<dyn ImageSource>, Error> {
    Ok(match location {
        Location::Registry(reference) => Arc::new(registry::RegistrySource::new(
            reference.domain(),
            reference.path(),
            reference.tag(),
            reference.digest().copied(),
            vec![reference.clone()],
            &options.registry,
        )?),
        Location::DockerDaemon(image) => Arc::new(docker_daemon::open(image, options)?),
        Location::OciLayout { path, reference } => {
            let layout = options.opened.layouts.get(path, || oci_layout::open(path))?;
            Arc::new(layout.find(reference.as_deref())?)
        }
        Location::OciArchive { path, reference } => {
            let layout = options.opened.oci_archives.get(path, || oci_archive::open(path, options))?;
            Arc::new(layout.find(reference.as_deref())?)
        }
        Location::DockerArchive { path, select } => {
            let archive = options.opened.docker_archives.get(path, || docker_archive::open(path, options))?;
            Arc::new(archive.find(select)?)
        }
        Location::Dir { path } => Arc::new(dir::open(path)?),
        Location::Overlay(overlay) => {
            return Err(Error::Overlay(overlay.clone()));
        }
    })
}

/// Files by name: a directory's, or an archive's. The names are made here, of constants and verified digests, so that
/// nothing in an image can choose a path.
trait Files: Send + Sync + fmt::Debug {
    /// The file's bytes; `None` when there is no such file.
    fn open(&self, name: &str) -> Result<Option<Box<dyn Read + Send>>, Error>;

    /// The transport and the path, for messages.
    fn shown(&self) -> &str;

    /// Whether there is such a file: for hints in errors.
    fn has(&self, name: &str) -> bool {
        matches!(self.open(name), Ok(Some(_)))
    }

    /// The whole file, which has at most `max` bytes; `None` when there is no such file.
    fn read(&self, name: &str, max: u64) -> Result<Option<Vec<u8>>, Error> {
        let Some(file) = self.open(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(max + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| Error::Io { what: format!("{}: read {name}", self.shown()), error })?;
        if bytes.len() as u64 > max {
            return Err(Error::Invalid(format!("{}: {name} has more than {max} bytes", self.shown())));
        }
        Ok(Some(bytes))
    }
}

/// The files below a directory.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    shown: String,
}

impl Directory {
    /// The directory must be there; `transport` is for messages.
    fn open(transport: &str, path: &Path) -> Result<Self, Error> {
        let shown = format!("{transport}:{}", show_path(path));
        match fs_err::metadata(path) {
            Ok(metadata) if metadata.is_dir() => Ok(Self { path: path.to_owned(), shown }),
            Ok(_) => {
                let hint = if transport == "oci" { "; for an archive write oci-archive:PATH" } else { "" };
                Err(Error::Invalid(format!("{shown}: not a directory{hint}")))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::NotFound(format!("{shown}: no such directory{}", archive::hint(path))))
            }
            Err(error) => Err(Error::Io { what: shown, error }),
        }
    }
}

impl Files for Directory {
    fn open(&self, name: &str) -> Result<Option<Box<dyn Read + Send>>, Error> {
        let path = self.path.join(name);
        let io = |error| Error::Io { what: self.shown.clone(), error };
        // Looked at before it is opened: opening a named pipe would wait for ever.
        match fs_err::metadata(&path) {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => return Err(Error::Invalid(format!("{}: {name} is not a regular file", self.shown))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        }
        Ok(Some(Box::new(fs_err::File::open(&path).map_err(io)?.into_file())))
    }

    fn shown(&self) -> &str {
        &self.shown
    }
}

/// Reads and parses a JSON file of a source.
fn document(files: &dyn Files, name: &str, max: u64) -> Result<Option<Document>, Error> {
    let Some(bytes) = files.read(name, max)? else { return Ok(None) };
    Document::parse_first(&bytes).map(Some).map_err(|error| bad_json(files, name, &error))
}

fn bad_json(files: &dyn Files, name: &str, error: &json::Error) -> Error {
    Error::Invalid(format!("{}: {name}: {error}", files.shown()))
}
