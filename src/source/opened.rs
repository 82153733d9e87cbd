//! Layouts and archives that were opened in this run: each is opened, copied where it must be, and parsed once, however many of its
//! images are used.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::archive::Archive;
use super::docker_archive::DockerArchive;
use super::oci_layout::Layout;
use super::{Directory, Error};

/// All of a run's layouts and archives by their paths as typed.
#[derive(Debug, Default)]
pub struct Opened {
    pub(super) layouts: Shelf<Layout<Directory>>,
    pub(super) oci_archives: Shelf<Layout<Archive>>,
    pub(super) docker_archives: Shelf<DockerArchive>,
}

/// Those of one kind.
#[derive(Debug)]
pub(super) struct Shelf<T>(Mutex<HashMap<PathBuf, Place<T>>>);

/// Locked while it is being opened.
type Place<T> = Arc<Mutex<Option<Arc<T>>>>;

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Shelf<T> {
    /// Returns what has been opened at `path`, or opens it. Threads that want the same wait for the first; a failure is not kept.
    pub(super) fn get(&self, path: &Path, open: impl FnOnce() -> Result<T, Error>) -> Result<Arc<T>, Error> {
        let place = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(path.to_owned()).or_default())
        };
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = &*place {
            return Ok(Arc::clone(opened));
        }
        tracing::debug!("opening {}", path.display());
        let opened = Arc::new(open()?);
        *place = Some(Arc::clone(&opened));
        Ok(opened)
    }
}
