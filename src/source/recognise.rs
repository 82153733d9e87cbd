//! Recognises files and directories with images, for messages to users who leave out the transport.

use std::path::Path;

use super::archive::{Archive, Duplicates};
use super::{Files as _, Options};

/// What a path holds, as far as a transport reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// `docker-archive:`.
    DockerArchive,
    /// `oci-archive:`.
    OciArchive,
    /// `oci:`.
    OciLayout,
    /// `dir:`.
    Directory,
}

/// Looks into the file or directory at `path`. Returns `None` if no transport reads it.
#[must_use]
pub fn recognise(path: &Path, options: &Options) -> Option<Holding> {
    if path.is_dir() {
        let has = |name: &str| path.join(name).is_file();
        return match (has("index.json"), has("manifest.json")) {
            (true, _) => Some(Holding::OciLayout),
            (false, true) => Some(Holding::Directory),
            (false, false) => None,
        };
    }
    // A named pipe would wait for ever.
    if !path.is_file() {
        return None;
    }
    let archive = Archive::open("docker-archive", path, options, Duplicates::First).ok()?;
    // Docker 25 and later write both, for old readers and new ones.
    match (archive.has("manifest.json"), archive.has("index.json")) {
        (true, _) => Some(Holding::DockerArchive),
        (false, true) => Some(Holding::OciArchive),
        (false, false) => None,
    }
}
