//! The cache of segments: `$XDG_CACHE_HOME/prepull/segments/<key>`.
//!
//! Any number of processes may use it at once: a file gets its name when it is whole, under a name that says all that it
//! depends on, and is checked when it is used. What is found damaged is removed and made again.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags};

use super::file::{Error, Segment};
use crate::atomic::{Unnamed, is_alive, temporary_process};
use crate::digest::{Digest, Hasher};

/// Changes whenever the bytes of a segment for the same layer would.
const FORMAT: &str = "prepull segment 3";

/// A temporary file that was not written to for this time is nobody's.
const LEFTOVER_AGE: Duration = Duration::from_secs(3600);

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

/// What [`Cache::prune`] leaves.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// At most this many bytes.
    pub max_bytes: u64,
    /// Only what was used since.
    pub used_since: Option<SystemTime>,
}

/// Whether the name is one of a file that has not got its own yet.
fn is_temporary(path: &Path) -> bool {
    temporary_of(path).is_some()
}

/// The process that the temporary file `path` belongs to.
fn temporary_of(path: &Path) -> Option<u32> {
    temporary_process(path.file_name()?.to_str()?)
}

impl Cache {
    /// The cache below `directory`, to look at: nothing is made.
    #[must_use]
    pub fn at(directory: &Path) -> Self {
        Self { directory: directory.join("segments"), keeps: true }
    }

    /// The cache below `directory`, which is made if it is missing, for this user alone.
    ///
    /// # Errors
    /// When it cannot be made; of kind `PermissionDenied` when others could put files into it: the checksums of segments
    /// guard against accidents, not against somebody.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let directory = directory.join("segments");
        let make = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        make.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", directory.display())))?;
        let metadata = fs_err::metadata(&directory)?;
        let owned = [rustix::process::geteuid().as_raw(), 0].contains(&metadata.uid());
        if !owned || metadata.mode() & 0o022 != 0 {
            let text = format!("{} can be written by other users", directory.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
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
        // Neither a link nor a pipe is followed or waited for, and nobody else's file is believed.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(&path, flags, Mode::empty()).ok()?);
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || ![rustix::process::geteuid().as_raw(), 0].contains(&metadata.uid()) {
            self.evict(key);
            return None;
        }
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
        Ok(self.files()?.into_iter().filter(|item| !is_temporary(&item.path)).collect())
    }

    /// Removes what is not worth keeping, and leftovers of killed processes. Gives what was removed.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn prune(&self, keep: &Keep) -> io::Result<Vec<Item>> {
        let mut total: u64 = self.items()?.iter().map(|item| item.size).sum();
        let mut removed = Vec::new();
        for item in self.files()? {
            if is_temporary(&item.path) {
                // The process may be one of another machine or container: then its number says nothing.
                let is_young = item.used.elapsed().map_or(true, |age| age < LEFTOVER_AGE);
                if is_young || temporary_of(&item.path).is_some_and(is_alive) {
                    continue;
                }
            } else if total <= keep.max_bytes && keep.used_since.is_none_or(|since| item.used >= since) {
                continue;
            } else {
                total = total.saturating_sub(item.size);
            }
            match fs_err::remove_file(&item.path) {
                // Another process may prune at the same time.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => removed.push(item),
            }
        }
        Ok(removed)
    }

    /// Segments and temporary files, the longest unused first; nothing else that may lie there.
    fn files(&self) -> io::Result<Vec<Item>> {
        let entries = match fs_err::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut items = Vec::new();
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            let is_segment = entry.file_name().to_str().is_some_and(|name| Digest::from_hex(name).is_ok());
            if !is_segment && !is_temporary(&path) {
                continue;
            }
            // Another process may prune at the same time.
            if let Ok(metadata) = entry.metadata() {
                items.push(Item { path, size: metadata.len(), used: metadata.modified()? });
            }
        }
        items.sort_by(|a, b| (a.used, &a.path).cmp(&(b.used, &b.path)));
        Ok(items)
    }

    fn path(&self, key: &Digest) -> PathBuf {
        self.directory.join(key.hex())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(at: &Path) -> Cache {
        let cache = Cache::open(at).unwrap();
        for number in 0..4u8 {
            let file = fs_err::File::create(cache.path(&Digest::of(&[number]))).unwrap();
            file.set_len(100).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(1000 - u64::from(number))).unwrap();
        }
        cache
    }

    #[test]
    fn the_longest_unused_goes_first() {
        let scratch = tempfile::tempdir().unwrap();
        let cache = cache(scratch.path());
        let names = |items: &[Item]| items.iter().map(|item| item.path.clone()).collect::<Vec<_>>();
        let all = names(&cache.items().unwrap());
        let keep = |max_bytes, age| Keep { max_bytes, used_since: Some(SystemTime::now() - Duration::from_secs(age)) };
        assert_eq!(names(&cache.prune(&keep(300, 2000)).unwrap()), all[..1]);
        assert_eq!(names(&cache.prune(&keep(u64::MAX, 2000)).unwrap()), [""; 0].map(PathBuf::from));
        assert_eq!(names(&cache.prune(&Keep { max_bytes: 150, used_since: None }).unwrap()), all[1..3]);
        assert_eq!(names(&cache.prune(&keep(u64::MAX, 10)).unwrap()), all[3..]);
        assert!(cache.items().unwrap().is_empty());
    }

    #[test]
    fn leftovers_of_dead_processes_go_and_nothing_else() {
        let scratch = tempfile::tempdir().unwrap();
        let cache = cache(scratch.path());
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        let left = format!(".file.prepull-{}-7", dead.id());
        let live = format!(".file.prepull-{}-7", std::process::id());
        let young = format!(".file.prepull-{}-8", dead.id());
        for name in [&left, &live, &young, "notes", ".file.prepull-x-1"] {
            fs_err::write(cache.directory().join(name), "x").unwrap();
        }
        for name in [&left, &live] {
            let file = File::options().append(true).open(cache.directory().join(name)).unwrap();
            file.set_modified(SystemTime::now() - LEFTOVER_AGE).unwrap();
        }
        assert_eq!(cache.items().unwrap().len(), 4);
        let removed = cache.prune(&Keep { max_bytes: u64::MAX, used_since: None }).unwrap();
        assert_eq!(removed.iter().map(|item| item.path.file_name().unwrap()).collect::<Vec<_>>(), [left.as_str()]);
        cache.prune(&Keep { max_bytes: 0, used_since: None }).unwrap();
        let there: Vec<_> =
            fs_err::read_dir(cache.directory()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(there.len(), 4, "{there:?}");
        assert!(Cache::at(&scratch.path().join("none")).items().unwrap().is_empty());
    }
}
