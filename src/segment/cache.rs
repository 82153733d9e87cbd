//! The cache of segments: `$XDG_CACHE_HOME/prepull/segments/<key>`.
//!
//! Any number of processes may use it at once: a file gets its name when it is whole, under a name that says all that it
//! depends on, and is checked when it is used. What is found damaged is removed and made again.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::file::{Error, Segment};
use crate::atomic::Unnamed;
use crate::digest::{Digest, Hasher};

/// Changes whenever the bytes of a segment for the same layer would.
const FORMAT: &str = "prepull segment 2";

/// Where segments are kept, or at least made.
#[derive(Debug)]
pub struct Cache {
    directory: PathBuf,
    keeps: bool,
}

/// A file of the cache, for `prepull cache`.
#[derive(Debug, Clone)]
pub struct Item {
    /// Where it lies.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// When a `make` last used it.
    pub used: SystemTime,
}

impl Cache {
    /// The cache below `directory`, which is made if it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let directory = directory.join("segments");
        fs_err::create_dir_all(&directory)?;
        Ok(Self { directory, keeps: true })
    }

    /// No cache: segments are files without a name in `directory`, gone when the process ends.
    #[must_use]
    pub fn none(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), keeps: false }
    }

    /// What a segment depends on: the layer (which stands for all layers below it), the blob it comes from and the path in front.
    #[must_use]
    pub fn key(layer_id: &Digest, blob: &Digest, prefix: &[u8]) -> Digest {
        let mut hasher = Hasher::new();
        hasher.update(FORMAT.as_bytes());
        hasher.update(layer_id.as_bytes());
        hasher.update(blob.as_bytes());
        hasher.update(prefix);
        hasher.finish()
    }

    /// The segment of `key`, if it is there and not obviously damaged.
    #[must_use]
    pub fn get(&self, key: &Digest) -> Option<Segment> {
        if !self.keeps {
            return None;
        }
        let path = self.path(key);
        let file = File::options().read(true).open(&path).ok()?;
        match Segment::open(file, key) {
            Ok(segment) => {
                // The time of last use decides what is pruned first; a cache that is read-only is still a cache.
                let _ = File::options().append(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
                Some(segment)
            }
            Err(Error::Damaged) => {
                self.evict(key);
                None
            }
            Err(Error::Io(_)) => None,
        }
    }

    /// An empty file for a new segment.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new_file(&self) -> io::Result<Unnamed> {
        Unnamed::new_in(&self.directory, 0o600)
    }

    /// Keeps a finished segment.
    ///
    /// # Errors
    /// When it cannot be given its name.
    pub fn keep(&self, file: Unnamed, key: &Digest) -> io::Result<File> {
        if self.keeps { file.publish_new(&self.path(key)) } else { Ok(file.file().try_clone()?) }
    }

    /// Removes the segment of `key`.
    pub fn evict(&self, key: &Digest) {
        if self.keeps {
            let _ = fs_err::remove_file(self.path(key));
        }
    }

    /// Where scratch files may go.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// All segments, the longest unused first.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn items(&self) -> io::Result<Vec<Item>> {
        let mut items = Vec::new();
        for entry in fs_err::read_dir(&self.directory)? {
            let entry = entry?;
            // Another process may prune at the same time.
            if let Ok(metadata) = entry.metadata() {
                items.push(Item { path: entry.path(), size: metadata.len(), used: metadata.modified()? });
            }
        }
        items.sort_by(|a, b| (a.used, &a.path).cmp(&(b.used, &b.path)));
        Ok(items)
    }

    /// Removes the longest unused segments until at most `max_bytes` are left, and leftovers of killed processes. Gives what was removed.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn prune(&self, max_bytes: u64) -> io::Result<Vec<Item>> {
        let items = self.items()?;
        let mut total: u64 = items.iter().map(|item| item.size).sum();
        let mut removed = Vec::new();
        for item in items {
            if total <= max_bytes {
                break;
            }
            match fs_err::remove_file(&item.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            total -= item.size;
            removed.push(item);
        }
        Ok(removed)
    }

    fn path(&self, key: &Digest) -> PathBuf {
        self.directory.join(key.hex())
    }
}
