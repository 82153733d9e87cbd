//! The cache of segments: `segments/<key>` below `$XDG_CACHE_HOME/prepull`.
//!
//! Any number of processes may use it at once: a file gets its name when it is whole, under a name that says all that it
//! depends on, and is checked when it is used. What is found damaged is removed and made again.
//!
//! A tar that was written on the same file system has a second name here, `tars/<number>` (a hard link): it holds the bodies
//! that were written into it, and their segments say where. So the tar and the cache share the space. A user of the tar may change
//! it: `tars/<number>.seen` has the stamp under which its bodies were right, and the segments that this was seen of
//! ([`super::witness`]). A body that has changed is found by its SHA-256, and the layer is converted again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::file::{BodyTar, Error, Segment, Trailer, Trust};
use super::witness::Stamp;
use crate::atomic::{Temporary, Unnamed, is_left, keep_only, remove_unfinished_in};
use crate::digest::{Digest, Hasher};
use crate::source::Descriptor;

/// Changes whenever the bytes of a segment for the same layer would.
const FORMAT: &str = "prepull segment 5";

/// New bytes from which on a tar is shared: less is written twice in a few hundredths of a second.
const SHARED_MIN: u64 = 32 << 20;

/// Where segments are kept, or at least made.
#[derive(Debug)]
pub struct Cache {
    segments: PathBuf,
    tars: PathBuf,
    keeps: bool,
    links: bool,
    /// Where segments are made that are not kept.
    scratch: Option<PathBuf>,
    /// Where they will be once there is no room in the cache.
    spare: Option<PathBuf>,
    open_tars: Mutex<BTreeMap<u64, OpenTar>>,
    /// Whether a segment was removed: its tar may be of no use any more.
    has_evicted: AtomicBool,
}

/// Maximum size of a file that says which segments were seen to be right, in bytes: more than 100,000 of them.
const SEEN_MAX: u64 = 8 << 20;

/// A tar of the cache.
#[derive(Debug, Clone)]
struct OpenTar {
    file: Arc<File>,
    /// Shared, because every segment of the tar takes it.
    seen: Option<Arc<Seen>>,
    /// True if `seen` has more than its file.
    is_ahead: bool,
}

/// The segments whose bodies in a tar were right when it had this stamp.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    stamp: Stamp,
    segments: BTreeSet<Digest>,
}

/// A tar under construction that bodies are written into.
#[derive(Debug)]
pub struct Pack {
    /// Its number in the cache.
    pub number: u64,
    /// The tar.
    pub file: Arc<File>,
    name: Mutex<Name>,
    /// Segments that are kept and have their bodies in it.
    segments: Mutex<BTreeSet<Digest>>,
}

/// The name of a [`Pack`] in the cache.
#[derive(Debug)]
enum Name {
    /// There is no cache.
    None,
    /// No segment needs it yet.
    Hidden(Temporary),
    /// It is there; `true` when a segment needs it.
    Known(PathBuf, bool),
}

/// What is kept or removed as a whole: a segment, or a tar and all segments whose bodies it has.
#[derive(Debug, Clone)]
pub struct Item {
    /// Its files, in the order in which they are removed.
    pub paths: Vec<PathBuf>,
    /// How many segments there are among them.
    pub segments: usize,
    /// Bytes.
    pub size: u64,
    /// How many of them are a tar's that has another name, too: removing the item does not free them.
    pub shared: u64,
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

impl Cache {
    /// The cache below `directory`, to look at: nothing is made.
    #[must_use]
    pub fn at(directory: &Path) -> Self {
        let (segments, tars) = (directory.join("segments"), directory.join("tars"));
        Self {
            segments,
            tars,
            keeps: true,
            links: true,
            scratch: None,
            spare: None,
            open_tars: Mutex::default(),
            has_evicted: AtomicBool::new(false),
        }
    }

    /// The cache below `directory`, which is made if it is missing, for this user alone.
    ///
    /// # Errors
    /// When it cannot be made; of kind `PermissionDenied` when others could put files into it: the checksums of segments
    /// guard against accidents, not against somebody.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let cache = Self::at(directory);
        make_ours(&cache.segments)?;
        // It is made when it is needed.
        if cache.tars.exists() {
            make_ours(&cache.tars)?;
        }
        Ok(cache)
    }

    /// The same, but no tar gets a second name in it.
    #[must_use]
    pub fn without_links(self) -> Self {
        Self { links: false, ..self }
    }

    /// The same; when there is no room in it, new segments may be made in `directory`.
    #[must_use]
    pub fn with_spare(self, directory: &Path) -> Self {
        Self { spare: Some(directory.to_owned()), ..self }
    }

    /// The same cache, for who has found that there is no room in it: what is there is used, and nothing is added. `None` if
    /// there is no other place.
    #[must_use]
    pub fn to_read_only(&self) -> Option<Self> {
        let scratch = Some(self.spare.clone().filter(|_| self.keeps_new())?);
        let (segments, tars) = (self.segments.clone(), self.tars.clone());
        let (open_tars, has_evicted) = (Mutex::default(), AtomicBool::new(false));
        Some(Self { segments, tars, keeps: true, links: self.links, scratch, spare: None, open_tars, has_evicted })
    }

    /// Whether what is new is kept.
    fn keeps_new(&self) -> bool {
        self.keeps && self.scratch.is_none()
    }

    /// No cache: segments are files without a name in `directory`, gone when the process ends.
    #[must_use]
    pub fn none(directory: &Path) -> Self {
        // Where they must have names, kill -9 leaves them.
        remove_unfinished_in(directory);
        let (segments, tars) = (directory.to_owned(), directory.to_owned());
        Self {
            segments,
            tars,
            keeps: false,
            links: false,
            scratch: None,
            spare: None,
            open_tars: Mutex::default(),
            has_evicted: AtomicBool::new(false),
        }
    }

    /// Has bodies written into the tar `file`, of which about `size` bytes are new, if the cache can have it under a name of
    /// its own too: not on another file system, nor where there are no hard links. Small ones are not worth it: a file with
    /// two names has its surprises (gzip refuses it, for one).
    #[must_use]
    pub fn adopt(&self, file: &Unnamed, size: u64) -> Option<Pack> {
        if self.keeps_new() && (!self.links || size < SHARED_MIN || make_ours(&self.tars).is_err()) {
            return None;
        }
        let name = match self.keeps_new() {
            true => {
                // Nobody shall lend it before it is whole: see [`Self::lend`].
                rustix::fs::flock(file.file(), FlockOperation::NonBlockingLockExclusive).ok()?;
                let name = Name::Hidden(file.also_in(&self.tars).ok()?);
                // What a group may write to, the cache does not believe.
                let metadata = file.file().metadata().ok()?;
                file.file().set_permissions(Permissions::from_mode(metadata.mode() & 0o755)).ok()?;
                name
            }
            false => Name::None,
        };
        // The inode's: processes of two containers may have the same number, and nothing else on this file system has this one.
        let number = file.file().metadata().ok()?.ino();
        let file = Arc::new(file.file().try_clone().ok()?);
        Some(Pack { number, file, name: Mutex::new(name), segments: Mutex::default() })
    }

    /// Returns the key of a segment: of the layer (which stands for all layers below it), the blob it comes from and the path
    /// in front.
    ///
    /// The blob's size is the descriptor's, so that a wrong one finds no segment: the blob is read again and refused, as it is
    /// with an empty cache.
    #[must_use]
    pub fn key(layer_id: &Digest, blob: &Descriptor, prefix: &[u8]) -> Digest {
        let mut hasher = Hasher::new();
        hasher.update(FORMAT.as_bytes());
        hasher.update(layer_id.as_bytes());
        hasher.update(blob.digest.as_bytes());
        hasher.update(&blob.size.to_le_bytes());
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
        let Some(file) = open_ours(&path).ok()? else {
            self.evict(key);
            return None;
        };
        let tar = |number| Ok(self.tar(number)?.map(|tar| tar.body_of(key)));
        let opened = Segment::open(file, key, tar).and_then(|segment| {
            if let Some(stamp) = segment.assure()? {
                self.note(segment.tar_number(), key, stamp);
            }
            Ok(segment)
        });
        match opened {
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

    /// The tar of this number, if it is there and ours.
    fn tar(&self, number: u64) -> io::Result<Option<OpenTar>> {
        let mut tars = self.open_tars.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tar) = tars.get(&number) {
            return Ok(Some(tar.clone()));
        }
        let file = match open_ours(&self.tar_path(number)) {
            Ok(Some(file)) => Arc::new(file),
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let seen = Seen::read(&self.seen_path(number)).map(Arc::new);
        let tar = OpenTar { file, seen, is_ahead: false };
        tars.insert(number, tar.clone());
        Ok(Some(tar))
    }

    /// Notes that the body of `key` was right when the tar had this stamp. A convenience: without it the body is hashed again.
    fn note(&self, number: u64, key: &Digest, stamp: Stamp) {
        let mut tars = self.open_tars.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(tar) = tars.get_mut(&number) else { return };
        let seen = tar.seen.take().filter(|seen| seen.stamp == stamp);
        let mut seen = seen.unwrap_or_else(|| Arc::new(Seen { stamp, segments: BTreeSet::new() }));
        if !seen.segments.contains(key) {
            Arc::make_mut(&mut seen).segments.insert(*key);
            // Written for each of them, the file would take time that grows with the square of their number.
            tar.is_ahead = !seen.segments.len().is_power_of_two();
            if !tar.is_ahead {
                seen.write(&self.seen_path(number));
            }
        }
        tar.seen = Some(seen);
    }

    /// Writes down which segments [`Self::get`] has found to be right, as far as it has not done so itself.
    pub fn save_seen(&self) {
        let mut tars = self.open_tars.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, tar) in tars.iter_mut() {
            if let (true, Some(seen)) = (std::mem::take(&mut tar.is_ahead), &tar.seen) {
                seen.write(&self.seen_path(*number));
            }
        }
    }

    /// Has `publish` give a tar its name, and notes what was written into it. Nothing else could write to it before; if its size or
    /// its time of modification is another one afterwards, something has.
    ///
    /// # Errors
    /// Those of `publish`.
    pub fn publish<T, E>(&self, pack: &Pack, publish: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let before = Stamp::of(&pack.file);
        let done = publish()?;
        let segments = pack.segments.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let (Ok(before), Ok(stamp)) = (before, Stamp::of(&pack.file))
            && (before.size, before.modified) == (stamp.size, stamp.modified)
            && !segments.is_empty()
        {
            Seen { stamp, segments }.write(&self.seen_path(pack.number));
        }
        Ok(done)
    }

    /// Has `change` change the names and times of `tar`, one of the cache's. What was right before, still is.
    ///
    /// # Errors
    /// Those of `change`.
    pub fn touch<T, E>(&self, tar: &File, change: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let before = Stamp::of(tar);
        let done = change()?;
        if let (Ok(before), Ok(stamp), Ok(metadata)) = (before, Stamp::of(tar), tar.metadata()) {
            let mut tars = self.open_tars.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(seen) = tars.get_mut(&metadata.ino()).and_then(|tar| tar.seen.as_mut())
                && seen.stamp == before
                && stamp.size == before.size
            {
                Arc::make_mut(seen).stamp = stamp;
                seen.write(&self.seen_path(metadata.ino()));
            }
        }
        Ok(done)
    }

    /// The tar of this number, to be given another name beside the cache's own. `None` if somebody has it under another
    /// one than `path` (a file that two people think theirs is changed by both), or another process is about to.
    #[must_use]
    pub fn lend(&self, number: u64, path: &Path) -> Option<Arc<File>> {
        let file = self.links.then(|| self.tar(number).ok().flatten())??.file;
        // Also held by who is writing it; released when the process ends.
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        let metadata = file.metadata().ok()?;
        let identity = |metadata: &std::fs::Metadata| (metadata.dev(), metadata.ino());
        let is_there = fs_err::symlink_metadata(path).is_ok_and(|found| identity(&found) == identity(&metadata));
        let is_named_here =
            fs_err::symlink_metadata(self.tar_path(number)).is_ok_and(|found| identity(&found) == identity(&metadata));
        (is_named_here && metadata.nlink() == 1 + u64::from(is_there)).then_some(file)
    }

    /// An empty file for a new segment.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new_file(&self) -> io::Result<Unnamed> {
        Unnamed::new_in(self.directory(), 0o600)
    }

    /// Keeps a finished segment; `pack` is the tar that has its body, up to the offset that comes with it.
    ///
    /// # Errors
    /// When it cannot be given its name.
    pub fn keep(&self, file: Unnamed, key: &Digest, pack: Option<(&Pack, u64)>) -> io::Result<()> {
        if !self.keeps_new() {
            return Ok(());
        }
        let Some((pack, end)) = pack else { return file.publish_new(&self.path(key)).map(drop) };
        let mut name = pack.name.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.tar_path(pack.number);
        *name = match std::mem::replace(&mut *name, Name::None) {
            Name::Hidden(temporary) => match temporary.rename_new(&path) {
                Ok(()) => Name::Known(path, false),
                // Somebody has emptied the cache meanwhile: then it keeps nothing of this tar.
                Err(_) => Name::None,
            },
            other => other,
        };
        if matches!(*name, Name::None) {
            return Ok(());
        }
        let is_needed = file.publish_new(&self.path(key))?;
        if let Name::Known(_, is_used) = &mut *name {
            *is_used |= is_needed;
            if is_needed {
                pack.segments.lock().unwrap_or_else(PoisonError::into_inner).insert(*key);
            }
            keep_only(&pack.file, end);
        }
        Ok(())
    }

    /// Removes the segment of `key`.
    pub fn evict(&self, key: &Digest) {
        if self.keeps {
            let _ = fs_err::remove_file(self.path(key));
            self.has_evicted.store(true, Ordering::Relaxed);
        }
    }

    /// Removes tars that no segment needs any more, if there can be any: somebody has changed them. A convenience.
    pub fn sweep(&self) {
        if self.has_evicted.swap(false, Ordering::Relaxed) {
            // What was not lent after all is not in use.
            for tar in self.open_tars.lock().unwrap_or_else(PoisonError::into_inner).values() {
                let _ = rustix::fs::flock(&tar.file, FlockOperation::Unlock);
            }
            let items = self.items().unwrap_or_default();
            for path in items.iter().filter(|item| item.segments == 0).flat_map(|item| &item.paths) {
                let _ = fs_err::remove_file(path);
            }
        }
    }

    /// Where scratch files may go.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.scratch.as_deref().unwrap_or(&self.segments)
    }

    /// All that is kept, the longest unused first.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn items(&self) -> io::Result<Vec<Item>> {
        let mut items = Vec::new();
        let mut of_tars: BTreeMap<u64, Item> = BTreeMap::new();
        for Found { path, size, used, .. } in files(&self.segments)? {
            let key = path.file_name().and_then(|name| name.to_str()).and_then(|name| Digest::from_hex(name).ok());
            let Some(key) = key else { continue };
            let file = open_ours(&path).ok().flatten();
            let tar = file.and_then(|file| Trailer::read(&file, &key).ok()).map_or(0, |(at, _)| at.tar);
            let item = Item { paths: vec![path], segments: 1, size, shared: 0, used };
            if tar == 0 {
                items.push(item);
                continue;
            }
            let all =
                of_tars.entry(tar).or_insert_with(|| Item { paths: Vec::new(), segments: 0, size: 0, shared: 0, used });
            all.paths.extend(item.paths);
            (all.segments, all.size, all.used) = (all.segments + 1, all.size + size, all.used.max(used));
        }
        for Found { path, size, used, names } in files(&self.tars)? {
            let Some(number) = tar_number(&path) else { continue };
            let seen = self.seen_path(number);
            let seen = seen.try_exists().unwrap_or(true).then_some(seen);
            // Removing one of several names frees nothing, also if no segment is known to be in the tar.
            let shared = if names > 1 { size } else { 0 };
            match of_tars.get_mut(&number) {
                Some(item) => {
                    item.shared += shared;
                    item.size += size;
                    item.paths.extend(seen);
                    item.paths.push(path);
                }
                // Between its name and its first segment, or all of them were damaged.
                None if is_in_use(&path) => {}
                None => {
                    let paths = seen.into_iter().chain([path]).collect();
                    items.push(Item { paths, segments: 0, size, shared, used });
                }
            }
        }
        items.extend(of_tars.into_values());
        items.sort_by(|a, b| (a.used, &a.paths).cmp(&(b.used, &b.paths)));
        Ok(items)
    }

    /// Removes what is not worth keeping, and leftovers of killed processes. Gives what was removed.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn prune(&self, keep: &Keep) -> io::Result<Vec<Item>> {
        let mut removed = self.leftovers()?;
        let items = self.items()?;
        let mut total: u64 = items.iter().map(|item| item.size).sum();
        for item in items {
            let is_wanted = total <= keep.max_bytes && keep.used_since.is_none_or(|since| item.used >= since);
            if item.paths.last().is_some_and(|path| tar_number(path).is_some() && is_in_use(path)) {
                continue;
            }
            if !is_wanted || item.segments == 0 {
                total = total.saturating_sub(item.size);
                removed.push(item);
            }
        }
        for path in removed.iter().flat_map(|item| &item.paths) {
            match fs_err::remove_file(path) {
                // Another process may prune at the same time.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(removed)
    }

    /// Temporary files of killed processes.
    fn leftovers(&self) -> io::Result<Vec<Item>> {
        let mut left = Vec::new();
        for Found { path, size, used, .. } in files(&self.segments)?.into_iter().chain(files(&self.tars)?) {
            let is_unfinished = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| is_left(name, used));
            // Its tar was removed by hand. A tar that cannot be looked at may be present.
            let is_alone = path.extension().is_some_and(|end| end == SEEN)
                && path.with_extension("").try_exists().is_ok_and(|exists| !exists);
            if is_unfinished || is_alone {
                left.push(Item { paths: vec![path], segments: 0, size, shared: 0, used });
            }
        }
        Ok(left)
    }

    fn path(&self, key: &Digest) -> PathBuf {
        self.segments.join(key.hex())
    }

    fn tar_path(&self, number: u64) -> PathBuf {
        self.tars.join(format!("{number:016x}"))
    }

    fn seen_path(&self, number: u64) -> PathBuf {
        self.tar_path(number).with_extension(SEEN)
    }
}

/// The end of the names of files that say which segments were seen to be right.
const SEEN: &str = "seen";

impl OpenTar {
    /// The tar for the body of `key`.
    fn body_of(&self, key: &Digest) -> BodyTar {
        let seen = self.seen.as_ref().filter(|seen| seen.segments.contains(key));
        BodyTar { file: Arc::clone(&self.file), trust: Trust::Seen(seen.map(|seen| seen.stamp)) }
    }
}

impl Seen {
    /// Reads what was noted; `None` if it cannot be read, or is not this user's.
    fn read(path: &Path) -> Option<Self> {
        let mut text = Vec::new();
        open_ours(path).ok()??.take(SEEN_MAX).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Writes it; what cannot be written, or is cut off, is seen again.
    fn write(&self, path: &Path) {
        let Ok(text) = serde_json::to_vec(self) else { return };
        let flags = OFlags::NOFOLLOW.bits() as i32;
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).custom_flags(flags).open(path);
        let _ = file.and_then(|mut file| file.write_all(&text));
    }
}

impl Pack {
    /// Removes the cache's name for it unless a segment needs it: nothing was finished, or another process was faster.
    pub fn close(&self) {
        let mut name = self.name.lock().unwrap_or_else(PoisonError::into_inner);
        if let Name::Known(path, false) = std::mem::replace(&mut *name, Name::None) {
            let _ = fs_err::remove_file(path);
        }
    }
}

/// Makes a directory for this user alone, or sees that it is one.
fn make_ours(directory: &Path) -> io::Result<()> {
    let make = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    make.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", directory.display())))?;
    if is_ours_alone(&fs_err::metadata(directory)?) {
        return Ok(());
    }
    let text = format!("{} can be written by other users", directory.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

fn tar_number(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    (name.len() == 16).then(|| u64::from_str_radix(name, 16).ok())?
}

/// Whether a process writes the tar, or is about to give it a name: see [`Cache::lend`]. A tar that loses its only name
/// before it gets the user's cannot get that any more.
fn is_in_use(tar: &Path) -> bool {
    let lock = |file: File| rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared);
    matches!(open_ours(tar).ok().flatten().map(lock), Some(Err(rustix::io::Errno::WOULDBLOCK)))
}

/// Whether nobody but this user, or root, may write.
fn is_ours_alone(metadata: &std::fs::Metadata) -> bool {
    let owned = [rustix::process::geteuid().as_raw(), 0].contains(&metadata.uid());
    owned && metadata.mode() & 0o022 == 0
}

/// Opens a file; `None` if it is none, or others may write to it.
fn open_ours(path: &Path) -> io::Result<Option<File>> {
    // Neither a link nor a pipe is followed or waited for, and nobody else's file is believed.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::io::retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))?);
    let metadata = file.metadata()?;
    Ok((metadata.is_file() && is_ours_alone(&metadata)).then_some(file))
}

/// A file in a directory of the cache.
#[derive(Debug)]
struct Found {
    path: PathBuf,
    size: u64,
    used: SystemTime,
    names: u64,
}

/// The files in a directory; none if it is not there.
fn files(directory: &Path) -> io::Result<Vec<Found>> {
    let entries = match fs_err::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        let metadata = match entry.metadata() {
            // Another process may prune at the same time.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        let (size, used, names) = (metadata.len(), metadata.modified()?, metadata.nlink());
        files.push(Found { path: entry.path(), size, used, names });
    }
    Ok(files)
}

#[cfg(test)]
mod tests;
