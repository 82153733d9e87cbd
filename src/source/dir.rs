//! `dir:`: a directory as skopeo writes it (containers/image `directory/`).
//!
//! ```text
//! version               Directory Transport Version: 1.1
//! manifest.json         the manifest or the index
//! HEX.manifest.json     the manifests of the index
//! HEX                   configs and layers
//! ```

use std::io::Read;
use std::path::Path;

use super::{Descriptor, Directory, Error, Files as _, ImageSource, MANIFEST_MAX, RawManifest};
use crate::digest::Digest;
use crate::reference::Reference;

const VERSION: &[u8] = b"Directory Transport Version: 1.";

#[derive(Debug)]
pub(super) struct Dir(Directory);

/// Opens the directory. A missing `version` is no error, as for containers/image; another version is.
pub(super) fn open(path: &Path) -> Result<Dir, Error> {
    let directory = Directory::open("dir", path)?;
    if directory.read("version", 1024)?.is_some_and(|version| !version.starts_with(VERSION)) {
        return Err(Error::Invalid(format!("{}: its file `version` names a version that is unknown", directory.shown)));
    }
    if directory.open("manifest.json")?.is_none() {
        let hint = if directory.has("index.json") { "; for an OCI layout write oci:PATH" } else { "" };
        return Err(Error::Invalid(format!(
            "{}: no manifest.json, so this is not a directory that skopeo wrote{hint}",
            directory.shown
        )));
    }
    Ok(Dir(directory))
}

impl ImageSource for Dir {
    fn manifest(&self, instance: Option<&Digest>) -> Result<RawManifest, Error> {
        let name = instance.map_or("manifest.json".to_owned(), |digest| format!("{}.manifest.json", digest.hex()));
        match self.0.read(&name, MANIFEST_MAX)? {
            Some(bytes) => Ok(RawManifest { media_type: None, bytes }),
            None => {
                let hint = "was the index copied without --all?";
                Err(Error::NotFound(format!("{}: no {name} ({hint})", self.0.shown)))
            }
        }
    }

    fn blob(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>, Error> {
        let name = blob.digest.hex();
        self.0.open(&name)?.ok_or_else(|| Error::NotFound(format!("{}: no blob {name}", self.0.shown)))
    }

    fn names(&self) -> Vec<Reference> {
        Vec::new()
    }
}
