//! A store that others use at the same time: its locks and its records, kept as containers/storage keeps them.
//!
//! * Locks are whole-file `fcntl` locks, taken in the order `storage.lock`, `layers.lock`, `images.lock`, `containers.lock`
//!   (`store.go`). Ours belong to the open file (`F_OFD_SETLK`), which conflicts with those of a process, and are not lost when
//!   somebody else in this process closes the file.
//! * Who has a lock and is about to change the records first writes a new token into it, 64 bytes (`pkg/lockfile`): by that
//!   podman and CRI-O see that they must read again.
//! * Records are replaced by rename. Those that we do not change stay as they are, to the byte.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::Deserialize;
use serde::Serialize;
use serde_json::value::RawValue;

use super::super::receive::is_id;
use super::super::root::{Dir, is_ours};
use super::super::{Error, Until};
use super::record::ImageRecord;
use crate::json;

/// The most bytes of a records file: a store with ten thousand images has 20 MiB.
const RECORDS_MAX: u64 = 256 << 20;

/// The most layers of one image (containers/storage `drivers/overlay/overlay.go`, `maxDepth`).
pub const LAYERS_MAX: usize = 500;

/// Files with records of layers and of images.
const LAYERS: &str = "layers.json";
const IMAGES: &str = "images.json";

/// Maximum size of a file `link`, in bytes.
const LINK_MAX: u64 = 255;

/// Maximum size of a file `lower`, in bytes: as many short names as layers.
const LOWER_MAX: u64 = 64 << 10;

/// How long a lock is waited for at most: a pull of a large layer keeps it for minutes.
const LOCK_PATIENCE: Duration = Duration::from_secs(600);

/// How often a lock that is held is asked for.
const LOCK_POLL: Duration = Duration::from_millis(5);

/// What of a record in layers.json matters here.
#[derive(Debug, Deserialize)]
struct LayerView {
    id: String,
    #[serde(default)]
    parent: String,
    #[serde(default)]
    flags: serde_json::Map<String, serde_json::Value>,
    #[serde(default, rename = "diff-size")]
    diff_size: i64,
}

/// A layer of the store.
#[derive(Debug)]
pub struct Layer {
    /// Its id.
    pub id: String,
    /// The layer below; empty for none.
    pub parent: String,
    /// Whether somebody died while making it: containers/storage deletes it the next time it looks.
    pub is_incomplete: bool,
    /// Bytes of its uncompressed tar.
    diff_size: u64,
    /// The record as it is in the file; `None` if it is in another file (`volatile-layers.json`).
    raw: Option<Box<RawValue>>,
}

/// An image of the store.
#[derive(Debug)]
pub struct Image {
    /// What the record says.
    pub record: ImageRecord,
    /// The record as it is in the file, unless it has been changed.
    raw: Option<Box<RawValue>>,
}

/// What of a container matters here.
#[derive(Debug, Deserialize)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its image.
    #[serde(default)]
    pub image: String,
    /// Its own layer.
    #[serde(default)]
    pub layer: String,
}

/// The directories of a store. They are there when this is.
#[derive(Debug)]
pub struct Store {
    /// The graphroot.
    pub root: Dir,
    /// `overlay`: the layers' files.
    pub overlay: Dir,
    /// `overlay/l`: short names of layers.
    pub links: Dir,
    /// `overlay-layers`.
    pub layers: Dir,
    /// `overlay-images`.
    pub images: Dir,
    /// `overlay-containers`.
    pub containers: Dir,
    /// Whether every user may read it, as an additional store.
    is_readable: bool,
}

/// New records in staging, under the name that they get.
#[derive(Debug)]
pub struct Written(&'static str);

/// Records that have been replaced. Their directories are not on the disk yet, which takes no lock.
#[derive(Debug)]
#[must_use]
pub struct Replaced<'a>(Vec<&'a Dir>);

/// Short names of layers, each looked up once.
#[derive(Debug)]
pub struct Names<'a> {
    store: &'a Store,
    layers: BTreeMap<String, String>,
}

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub struct Lock(OwnedFd);

/// The locks that protect what is in a store.
#[derive(Debug)]
pub struct Locked {
    _storage: Lock,
    layers: Lock,
    images: Lock,
    _containers: Lock,
    // Dropped last, when the locks are free.
    _held: Held,
}

/// That locks are held, or waited for, until this is dropped.
#[derive(Debug)]
struct Held(fn(bool));

impl Drop for Held {
    fn drop(&mut self) {
        (self.0)(false);
    }
}

impl Layer {
    /// Whether it is a container's that goes with the machine's next boot.
    #[must_use]
    pub fn is_volatile(&self) -> bool {
        self.raw.is_none()
    }
}

impl Image {
    /// A new image.
    #[must_use]
    pub fn new(record: ImageRecord) -> Self {
        Self { record, raw: None }
    }

    /// The record, to be changed.
    pub fn edit(&mut self) -> &mut ImageRecord {
        self.raw = None;
        &mut self.record
    }
}

impl Store {
    /// Opens the store in `root`, and makes what is missing of its directories. A new store is for every user to read if
    /// `is_readable`; one that exists is if its `overlay` directory is.
    ///
    /// # Errors
    /// If they cannot be opened or made.
    pub fn open(root: Dir, is_readable: bool) -> Result<Self, Error> {
        let is_readable = root.stat(b"overlay").map_or(is_readable, |found| found.st_mode & 0o005 == 0o005);
        let (mode, file_mode) = modes(is_readable);
        let make = |name: &'static str, parent: &Dir, mode| {
            parent.open_or_make(name.as_bytes(), mode).map_err(|error| Error::system(format!("opening {name}"), error))
        };
        let overlay = make("overlay", &root, mode)?;
        if !rustix::fs::fstat(&overlay).is_ok_and(|found| is_ours(&found)) {
            return Err(Error::said("overlay belongs to another user, or others may write to it (chown, chmod go-w)"));
        }
        if !overlay.has(b".has-mount-program") && !root.has(b"overlay-layers/layers.json") {
            // Without it the first start looks at every file of every layer (`overlay.go`, `SupportsNativeOverlay`).
            let written = overlay.write(b".has-mount-program", file_mode, b"false");
            written.map_err(|error| Error::system("writing overlay/.has-mount-program", error))?;
        }
        let links = overlay.open_or_make(b"l", 0o755).map_err(|error| Error::system("opening overlay/l", error))?;
        let layers = make("overlay-layers", &root, mode)?;
        let images = make("overlay-images", &root, mode)?;
        let containers = make("overlay-containers", &root, mode)?;
        let store = Self { root, overlay, links, layers, images, containers, is_readable };
        // podman and CRI-O make it when they start, and want to be able to.
        store.lock_file(&store.root, "userns.lock")?;
        Ok(store)
    }

    /// Returns the mode of directories.
    #[must_use]
    pub fn directory_mode(&self) -> u32 {
        modes(self.is_readable).0
    }

    /// Gives a directory in staging, which is root's alone, the mode of directories in the store.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open_directory(&self, directory: &Dir) -> Result<(), Errno> {
        let mode = Mode::from_raw_mode(self.directory_mode());
        if self.is_readable { rustix::fs::fchmod(directory, mode) } else { Ok(()) }
    }

    /// Gives a file in staging, which is root's alone, the mode of files in the store.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open_file(&self, directory: &Dir, name: &[u8]) -> Result<(), Errno> {
        if !self.is_readable {
            return Ok(());
        }
        let file = directory.open_file(name, OFlags::RDONLY, 0)?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(modes(true).1))
    }

    /// Returns an empty table of short names.
    #[must_use]
    pub fn names(&self) -> Names<'_> {
        Names { store: self, layers: BTreeMap::new() }
    }

    /// Whether somebody has begun a store in `root`.
    #[must_use]
    pub fn is_in(root: &Dir) -> bool {
        [&b"overlay"[..], b"overlay-layers", b"overlay-images", b"overlay-containers"].iter().all(|name| root.has(name))
    }

    fn lock_file(&self, directory: &Dir, name: &str) -> Result<OwnedFd, Error> {
        let made = match directory.open_file(name.as_bytes(), OFlags::RDWR, 0) {
            // Whatever the umask: others may have to lock a store that they read.
            Err(Errno::NOENT) => directory
                .open_file(name.as_bytes(), OFlags::RDWR | OFlags::CREATE, 0o644)
                .and_then(|file| rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644)).map(|()| file)),
            found => found,
        };
        made.map_err(|error| Error::system(format!("opening {name}"), error))
    }

    /// Takes all locks, in containers/storage's order.
    ///
    /// # Errors
    /// When one is still held by somebody else when the time is over, or cannot be had at all.
    pub fn lock(&self, until: Until) -> Result<Locked, Error> {
        let lock = |directory, name| self.take(directory, name, until);
        (until.holds)(true);
        let held = Held(until.holds);
        Ok(Locked {
            _storage: lock(&self.root, "storage.lock")?,
            layers: lock(&self.layers, "layers.lock")?,
            images: lock(&self.images, "images.lock")?,
            _containers: lock(&self.containers, "containers.lock")?,
            _held: held,
        })
    }

    fn take(&self, directory: &Dir, name: &str, until: Until) -> Result<Lock, Error> {
        let deadline = until.deadline.min(Instant::now() + LOCK_PATIENCE);
        let file = self.lock_file(directory, name)?;
        let whole = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole)) {
                Ok(_) => return Ok(Lock(file)),
                Err(nix::Error::EAGAIN | nix::Error::EACCES | nix::Error::EINTR) if Instant::now() < deadline => {
                    until.wanted()?;
                    std::thread::sleep(LOCK_POLL);
                }
                Err(nix::Error::EAGAIN | nix::Error::EACCES) => {
                    let hint = "is a pull under way?";
                    return Err(Error::said(format!("{name} is locked by another process for too long ({hint})")));
                }
                Err(error) => {
                    return Err(Error::system(format!("locking {name}"), Errno::from_raw_os_error(error as i32)));
                }
            }
        }
    }

    /// All layers, those of containers included.
    ///
    /// # Errors
    /// When the records cannot be read or understood.
    pub fn read_layers(&self) -> Result<Vec<Layer>, Error> {
        let mut all = Vec::new();
        for (name, is_ours) in [("layers.json", true), ("volatile-layers.json", false)] {
            for raw in records(&self.layers, name)? {
                let view: LayerView = parse(&raw, name)?;
                let is_incomplete = view.flags.get("incomplete").is_some_and(|flag| flag == true);
                let diff_size = u64::try_from(view.diff_size).unwrap_or_default();
                let raw = is_ours.then_some(raw);
                all.push(Layer { id: view.id, parent: view.parent, is_incomplete, diff_size, raw });
            }
        }
        Ok(all)
    }

    /// All images.
    ///
    /// # Errors
    /// When the records cannot be read or understood.
    pub fn read_images(&self) -> Result<Vec<Image>, Error> {
        let read = |raw: Box<RawValue>| Ok(Image { record: parse(&raw, "images.json")?, raw: Some(raw) });
        records(&self.images, "images.json")?.into_iter().map(read).collect()
    }

    /// All containers.
    ///
    /// # Errors
    /// When the records cannot be read or understood.
    pub fn read_containers(&self) -> Result<Vec<Container>, Error> {
        let mut all = Vec::new();
        for name in ["containers.json", "volatile-containers.json"] {
            for raw in records(&self.containers, name)? {
                all.push(parse(&raw, name)?);
            }
        }
        Ok(all)
    }

    /// Writes a new layers.json into `scratch`: the records of `layers`, and `new` ones after them.
    ///
    /// # Errors
    /// If it cannot be written, or could not be read again.
    pub fn write_layers(&self, scratch: &Dir, layers: &[Layer], new: &[impl Serialize]) -> Result<Written, Error> {
        let mut all: Vec<Vec<u8>> =
            layers.iter().filter_map(|layer| layer.raw.as_ref()).map(|raw| raw.get().as_bytes().to_vec()).collect();
        for record in new {
            all.push(json::write::to_vec(record).map_err(|_| damaged("layers.json"))?);
        }
        self.write(&self.layers, scratch, LAYERS, &all)
    }

    /// Writes a new images.json into `scratch`.
    ///
    /// # Errors
    /// If it cannot be written, or could not be read again.
    pub fn write_images(&self, scratch: &Dir, images: &[Image]) -> Result<Written, Error> {
        let mut all = Vec::new();
        for image in images {
            all.push(match &image.raw {
                Some(raw) => raw.get().as_bytes().to_vec(),
                None => json::write::to_vec(&image.record).map_err(|_| damaged("images.json"))?,
            });
        }
        self.write(&self.images, scratch, IMAGES, &all)
    }

    fn write(&self, place: &Dir, scratch: &Dir, name: &'static str, records: &[Vec<u8>]) -> Result<Written, Error> {
        let failed = |error| Error::system(format!("writing {name}"), error);
        // Others may read a store that root has opened to them.
        let mode = place.stat(name.as_bytes()).map_or(modes(self.is_readable).1, |found| found.st_mode & 0o666);
        let content = [b"[", &records.join(&b","[..])[..], b"]"].concat();
        // What could not be read any more is not written.
        if content.len() as u64 > RECORDS_MAX {
            return Err(failed(Errno::FBIG));
        }
        scratch.replace(name.as_bytes(), mode, &content).map_err(failed)?;
        Ok(Written(name))
    }

    /// Checks that `new` more bytes leave the store with at most `most`: contents of layers and images, and tar-splits.
    ///
    /// # Errors
    /// If there would be more.
    pub fn has_room(&self, layers: &[Layer], images: &[Image], new: u64, most: u64) -> Result<(), Error> {
        if most == u64::MAX {
            return Ok(());
        }
        let split = |layer: &Layer| self.layers.stat(format!("{}.tar-split.gz", layer.id).as_bytes());
        let layers = layers.iter().map(|layer| {
            layer
                .diff_size
                .saturating_add(split(layer).map_or(0, |found| u64::try_from(found.st_size).unwrap_or_default()))
        });
        let images = images.iter().flat_map(|image| image.record.big_data_sizes.values().copied());
        let all = layers.chain(images).fold(new, u64::saturating_add);
        if all <= most { Ok(()) } else { Err(Error::said("the store would have too many bytes (max_store_bytes)")) }
    }

    /// Whether a directory of a layer that no record names is what somebody has left who was killed. The layers of containers
    /// have their records elsewhere in some configurations; they have a short name and no tar-split.
    #[must_use]
    pub fn is_left(&self, id: &str) -> bool {
        let has_link = self.overlay.open(id.as_bytes()).is_ok_and(|layer| layer.has(b"link"));
        self.layers.has(format!("{id}.tar-split.gz").as_bytes()) || !has_link
    }

    /// Returns the short name of a layer as its file `link` has it; `None` if it is missing or no name.
    #[must_use]
    pub fn link_of(&self, id: &str) -> Option<Vec<u8>> {
        let layer = is_id(id).then(|| self.overlay.open(id.as_bytes()).ok())??;
        let link = layer.read(b"link", LINK_MAX).ok()??.trim_ascii().to_vec();
        let is_name = !link.is_empty() && !link.contains(&b'/') && !link.starts_with(b".");
        is_name.then_some(link)
    }
}

impl Names<'_> {
    /// Returns whether a layer has the files that a store cannot do without: its content, its short name, and in `lower` the
    /// short names of exactly those layers that its record and its parents' records say are below it.
    pub fn is_whole(&mut self, id: &str, parents: &BTreeMap<&str, &str>) -> bool {
        let Ok(layer) = self.store.overlay.open(id.as_bytes()) else { return false };
        if !layer.has(b"diff") || self.store.link_of(id).is_none() {
            return false;
        }
        let lower = layer.read(b"lower", LOWER_MAX).ok().flatten().unwrap_or_default();
        let mut lowers = lower.trim_ascii().split(|&byte| byte == b':').filter(|name| !name.is_empty());
        let mut at = parents.get(id).copied().unwrap_or_default();
        for _ in 0..=LAYERS_MAX {
            if at.is_empty() {
                return lowers.next().is_none();
            }
            // A layer of another store has no record here, and what is below it is that store's.
            let Some(parent) = parents.get(at) else { return true };
            if !lowers.next().and_then(|name| name.strip_prefix(b"l/")).is_some_and(|name| self.is_name_of(name, at)) {
                return false;
            }
            at = parent;
        }
        false
    }

    /// Returns whether a short name leads to a layer. containers/storage makes a link again that is missing (`overlay.go`,
    /// `recreateSymlinks`).
    fn is_name_of(&mut self, name: &[u8], id: &str) -> bool {
        let name = String::from_utf8_lossy(name).into_owned();
        if !self.layers.contains_key(&name) {
            let target = rustix::fs::readlinkat(&self.store.links, &name, []).unwrap_or_default();
            let layer = target.to_str().ok().and_then(|target| target.strip_prefix("../")?.strip_suffix("/diff"));
            self.layers.insert(name.clone(), layer.unwrap_or_default().to_owned());
        }
        let layer = self.layers.get(&name).map_or("", String::as_str);
        layer == id || layer.is_empty() && self.store.link_of(id).as_deref() == Some(name.as_bytes())
    }
}

impl<'a> Replaced<'a> {
    /// Moves new records to their places, in this order, each after a new token (`layers.go`, `saveLayers`): a program that reads
    /// between the two reads once more.
    ///
    /// # Errors
    /// If one cannot be replaced; then the old one is there.
    pub fn all(store: &'a Store, locked: &Locked, scratch: &Dir, written: [Option<Written>; 2]) -> Result<Self, Error> {
        let mut directories = Vec::new();
        for Written(name) in written.into_iter().flatten() {
            let failed = |error| Error::system(format!("writing {name}"), error);
            let (lock, directory) =
                if name == LAYERS { (&locked.layers, &store.layers) } else { (&locked.images, &store.images) };
            write_token(lock).map_err(failed)?;
            scratch.rename(name.as_bytes(), directory, name.as_bytes()).map_err(failed)?;
            directories.push(directory);
        }
        Ok(Self(directories))
    }

    /// Has the new names on the disk.
    ///
    /// # Errors
    /// The kernel's.
    pub fn sync(self) -> Result<(), Error> {
        self.0.into_iter().try_for_each(Dir::sync).map_err(|error| Error::system("writing to the disk", error))
    }
}

/// Returns the modes of directories and files in a store.
fn modes(is_readable: bool) -> (u32, u32) {
    if is_readable { (0o755, 0o644) } else { (0o700, 0o600) }
}

fn damaged(name: &str) -> Error {
    Error::said(format!("{name} of the store is damaged (podman system check --repair, or remove the store)"))
}

fn records(directory: &Dir, name: &'static str) -> Result<Vec<Box<RawValue>>, Error> {
    let bytes = directory.read(name.as_bytes(), RECORDS_MAX);
    let bytes = bytes.map_err(|error| Error::system(format!("reading {name}"), error))?.unwrap_or_default();
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    // Go writes `null` for no records at all.
    let records: Option<Vec<Box<RawValue>>> = serde_json::from_slice(&bytes).map_err(|_| damaged(name))?;
    Ok(records.unwrap_or_default())
}

fn parse<'a, T: Deserialize<'a>>(raw: &'a RawValue, name: &'static str) -> Result<T, Error> {
    serde_json::from_str(raw.get()).map_err(|_| damaged(name))
}

/// A token that nobody has written before: the time, and who we are (`pkg/lockfile`, `newLastWrite`).
fn write_token(lock: &Lock) -> Result<(), Errno> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let nanoseconds = now.as_nanos() as u64;
    let mut token = [0; 64];
    token[..8].copy_from_slice(&nanoseconds.to_le_bytes());
    token[16..20].copy_from_slice(&rustix::process::getpid().as_raw_nonzero().get().to_le_bytes());
    match rustix::io::pwrite(lock.0.as_fd(), &token, 0)? {
        64 => Ok(()),
        _ => Err(Errno::IO),
    }
}
