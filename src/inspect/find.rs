//! Finds the stores in a tar or a directory, and reads their records. Nothing is unpacked, and no privilege is needed for a tar.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek as _, SeekFrom};
use std::path::Path;

use super::files::{self, Files, Keep, Kept};
use super::input::{Patient, compression_of, plain_stream};
use super::machine::{MachineConfig, within};
use super::root::{Opened, Root, names};
use crate::compression::Compression;
use crate::layer::tar::{TarError, TarReader};

/// The largest images.json or layers.json, in bytes. containers/storage has no limit; at 2 kB each, this is 30,000 images.
pub const RECORDS_MAX: u64 = 64 << 20;
/// The most bytes that all records of one input have together: a small file can hold large ones compressed.
pub const ALL_RECORDS_MAX: u64 = 2 * RECORDS_MAX;
/// The most stores in one input: a machine has a primary one and a few beside it.
pub const STORES_MAX: usize = 64;

/// Where a root directory may have stores, in the order in which they are listed.
const PLACES: [&str; 3] = ["var/lib/containers/storage", "usr/lib/containers/storage", "usr/share/containers/storage"];

/// How much of a tar is read at a time, in bytes.
const BUFFER: usize = 64 << 10;

/// Why stores cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading failed; the text names the file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The tar is damaged, or is not a tar. True if entries of a store came before the damage.
    #[error("{0}")]
    Tar(TarError, bool),
    /// A file in the tar is sparse, as GNU tar's `--sparse` makes them: no busybox unpacks it. True as in [`Self::Tar`].
    #[error("has sparse files (make the tar without --sparse)")]
    Sparse(bool),
    /// No store at all.
    #[error(
        "no store in it (expected is a tar of one, its graphroot, or a root directory with var/lib/containers/storage or \
         usr/lib/containers/storage)"
    )]
    NoStore,
    /// The store of a user's podman, seen from outside its user namespace: owners are not those of the images.
    #[error(
        "a rootless store of user {0}, whose files have other owners outside its user namespace (run as that user: \
         podman unshare prepull {1} ...)"
    )]
    Rootless(u32, &'static str),
    /// A record that is not a regular file, or a link that leads to none within the input.
    #[error("{0} is not a regular file in it")]
    NotRegular(String),
    /// More than [`RECORDS_MAX`].
    #[error("{0} has more than {max} MiB", max = RECORDS_MAX >> 20)]
    Size(String),
    /// More than [`ALL_RECORDS_MAX`].
    #[error("its records have more than {max} MiB together", max = ALL_RECORDS_MAX >> 20)]
    AllSizes,
    /// More than [`STORES_MAX`].
    #[error("more than {STORES_MAX} stores")]
    Stores,
    /// More than [`ENTRIES_MAX`](super::contents::ENTRIES_MAX).
    #[error("more than {max} entries", max = super::contents::ENTRIES_MAX)]
    Entries,
    /// A file beside the stores.
    #[error(transparent)]
    File(#[from] files::Error),
    /// More than [`METADATA_MAX`](super::contents::METADATA_MAX).
    #[error("more than {max} GiB of names, link targets and extended attributes", max = super::contents::METADATA_MAX >> 30)]
    Metadata,
}

impl From<TarError> for Error {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Io(error) => Self::Io(error),
            TarError::Sparse => Self::Sparse(false),
            error => Self::Tar(error, false),
        }
    }
}

impl Error {
    /// Adds that entries of a store came before.
    pub(super) fn after_store(self, has_store: bool) -> Self {
        match self {
            Self::Tar(error, _) => Self::Tar(error, has_store),
            Self::Sparse(_) => Self::Sparse(has_store),
            error => error,
        }
    }
}

/// The records of one store as they are written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Its graphroot within the input; empty when the input is the graphroot itself.
    pub graphroot: String,
    /// The driver that made it: `overlay`, seldom `vfs`.
    pub driver: String,
    /// images.json, or nothing.
    pub images: Vec<u8>,
    /// layers.json, or nothing.
    pub layers: Vec<u8>,
    /// Paths in the input of those of the two that are present but cannot be read, since they are not regular files.
    pub unreadable: Vec<String>,
}

impl Found {
    /// Sets the content of `path`, which is images.json or layers.json; `None`: it is not a regular file.
    fn set(&mut self, kind: &Kind, path: &str, content: Option<Vec<u8>>) {
        self.unreadable.retain(|other| other != path);
        let is_regular = content.is_some();
        match kind {
            Kind::Images => self.images = content.unwrap_or_default(),
            Kind::Layers => self.layers = content.unwrap_or_default(),
            Kind::Lock => return,
        }
        if !is_regular {
            self.unreadable.push(path.to_owned());
        }
    }
}

/// Fails if a record of `stores` cannot be read: what a list of their images would leave out is not known.
///
/// # Errors
/// [`Error::NotRegular`].
pub fn all_readable(stores: &[Found]) -> Result<(), Error> {
    match stores.iter().flat_map(|found| &found.unreadable).next() {
        Some(path) => Err(Error::NotRegular(path.clone())),
        None => Ok(()),
    }
}

type Stores = BTreeMap<(String, String), Found>;

/// The stores in the tar `file`, which may be compressed.
///
/// # Errors
/// When it is no tar, or its records are too large.
pub fn in_tar(file: File) -> Result<Vec<Found>, Error> {
    tar(file, None)
}

/// As [`in_tar`], and the small files beside them.
///
/// # Errors
/// As [`in_tar`], and when there are too many files.
pub fn in_tar_with_files(file: File) -> Result<(Vec<Found>, Files), Error> {
    let mut kept = Kept::default();
    let found = tar(file, Some(&mut kept))?;
    Ok((found, Files::of_tar(kept)))
}

/// As [`in_stream`], and the small files beside them.
///
/// # Errors
/// As [`in_tar_with_files`].
pub fn in_stream_with_files(input: impl Read) -> Result<(Vec<Found>, Files), Error> {
    let mut kept = Kept::default();
    let found = stream(input, Some(&mut kept))?;
    Ok((found, Files::of_tar(kept)))
}

fn tar(mut file: File, kept: Option<&mut Kept>) -> Result<Vec<Found>, Error> {
    // A pipe has no place to go back to.
    if file.metadata()?.is_file() && file.stream_position().is_ok() {
        let compression = compression_of(&mut file)?;
        file.seek(SeekFrom::Start(0))?;
        if compression == Compression::None {
            let length = file.metadata()?.len();
            let mut reader = TarReader::new(BufReader::with_capacity(BUFFER, Patient(file)));
            let found = scan(&mut reader, kept, TarReader::seek_over_content)?;
            if reader.offset() > length {
                let error = TarError::Truncated { offset: length, what: "a file's content" };
                return Err(Error::Tar(error, !found.is_empty()));
            }
            return Ok(found);
        }
    }
    stream(file, kept)
}

/// The stores in a stream of a tar, which is read to its end.
///
/// # Errors
/// As [`in_tar`].
pub fn in_stream(input: impl Read) -> Result<Vec<Found>, Error> {
    stream(input, None)
}

fn stream(stream: impl Read, kept: Option<&mut Kept>) -> Result<Vec<Found>, Error> {
    let plain = plain_stream(stream)?;
    let mut reader = TarReader::new(plain);
    let found = scan(&mut reader, kept, TarReader::skip_content)?;
    // A writer into a pipe would be killed in the middle of the padding.
    reader.drain(|_| Ok::<_, Error>(())).map_err(|error| error.after_store(!found.is_empty()))?;
    Ok(found)
}

fn scan<R: BufRead>(
    reader: &mut TarReader<R>,
    kept: Option<&mut Kept>,
    skip: impl Fn(&mut TarReader<R>) -> Result<(), TarError>,
) -> Result<Vec<Found>, Error> {
    let (mut stores, mut has_store) = (Stores::new(), false);
    match entries(reader, kept, skip, &mut stores, &mut has_store) {
        Ok(()) => Ok(without_nested(stores)),
        Err(error) => Err(error.after_store(has_store)),
    }
}

/// Reads all entries. `has_store` says whether some of a store have been among them.
fn entries<R: BufRead>(
    reader: &mut TarReader<R>,
    mut kept: Option<&mut Kept>,
    skip: impl Fn(&mut TarReader<R>) -> Result<(), TarError>,
    stores: &mut Stores,
    has_store: &mut bool,
) -> Result<(), Error> {
    let mut all_sizes = 0;
    loop {
        reader.clear_raw();
        let Some(header) = reader.next_header()? else { return Ok(()) };
        *has_store |= is_of_store(&header.name);
        let is_file = header.typeflag == b'0';
        if let Some(record) = Record::of(&header.name).filter(|record| is_file || record.kind != Kind::Lock) {
            let path = files::normal(&header.name).unwrap_or_default();
            if is_file && header.size > RECORDS_MAX {
                return Err(Error::Size(path));
            }
            all_sizes += if is_file { header.size } else { 0 };
            if all_sizes > ALL_RECORDS_MAX {
                return Err(Error::AllSizes);
            }
            // The last of two is what an unpacker leaves.
            let content = if is_file && record.kind != Kind::Lock { Some(content(reader)?) } else { None };
            record.store(stores)?.set(&record.kind, &path, content);
        } else if let Some(kept) = &mut kept
            && let Keep::Content(path) = kept.entry(header.typeflag, &header.name, &header.link, header.size)?
        {
            kept.file(path, content(reader)?)?;
        }
        skip(reader)?;
    }
}

/// Returns whether an entry of this name is one of a store's directories, or a file in one of them.
fn is_of_store(name: &[u8]) -> bool {
    const DIRECTORIES: [&[u8]; 6] =
        [b"overlay-images", b"overlay-layers", b"overlay-containers", b"vfs-images", b"vfs-layers", b"vfs-containers"];
    let mut parts = name.rsplit(|&byte| byte == b'/').filter(|part| !part.is_empty());
    parts.by_ref().take(2).any(|part| DIRECTORIES.contains(&part))
}

fn content<R: BufRead>(reader: &mut TarReader<R>) -> Result<Vec<u8>, TarError> {
    let mut bytes = Vec::new();
    loop {
        let part = reader.content()?;
        if part.is_empty() {
            return Ok(bytes);
        }
        bytes.extend_from_slice(part);
        let count = part.len();
        reader.consume(count);
    }
}

/// The file of a store that a name is.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    graphroot: String,
    driver: String,
    kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Images,
    Layers,
    /// It says only that there is a store.
    Lock,
}

impl Record {
    /// `…/DRIVER-images/images.json`, `…/DRIVER-layers/layers.json`; `./` and `/` in front do not count.
    fn of(name: &[u8]) -> Option<Self> {
        let name = std::str::from_utf8(name).ok()?;
        let parts: Vec<&str> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        let [graphroot @ .., directory, file] = &parts[..] else { return None };
        let (suffix, kind) = match *file {
            "images.json" => ("-images", Kind::Images),
            "images.lock" => ("-images", Kind::Lock),
            "layers.json" => ("-layers", Kind::Layers),
            _ => return None,
        };
        let driver = directory.strip_suffix(suffix).filter(|driver| !driver.is_empty())?;
        Some(Self { graphroot: graphroot.join("/"), driver: driver.to_owned(), kind })
    }

    /// The store that it belongs to.
    fn store<'a>(&self, stores: &'a mut Stores) -> Result<&'a mut Found, Error> {
        let key = (self.graphroot.clone(), self.driver.clone());
        if stores.len() >= STORES_MAX && !stores.contains_key(&key) {
            return Err(Error::Stores);
        }
        Ok(stores.entry(key).or_insert_with(|| Found {
            graphroot: self.graphroot.clone(),
            driver: self.driver.clone(),
            ..Found::default()
        }))
    }
}

/// A layer of an image may hold a store itself (the image of a node): that is not a store of this machine.
fn without_nested(stores: Stores) -> Vec<Found> {
    let layers: Vec<String> = stores
        .keys()
        .map(|(graphroot, driver)| [graphroot, driver, ""].join("/").trim_start_matches('/').to_owned())
        .collect();
    let nested = |found: &Found| layers.iter().any(|layer| found.graphroot.starts_with(layer));
    stores.into_values().filter(|found| !nested(found)).collect()
}

/// The stores in the directory `root`: it is a graphroot, or a root with stores at the usual places.
///
/// # Errors
/// When a record cannot be read, or is too large.
pub fn in_directory(root: &Root) -> Result<Vec<Found>, Error> {
    let mut all = drivers(root, "")?;
    if all.is_empty() {
        for place in PLACES {
            all.extend(drivers(root, place)?);
        }
    }
    Ok(all)
}

/// The stores whose graphroot is `place` within the directory `root`.
///
/// # Errors
/// As [`in_directory`].
pub fn in_directory_at(root: &Root, place: &str) -> Result<Vec<Found>, Error> {
    drivers(root, place)
}

/// Fails if `path` is a directory with a store that belongs to a user, as rootless podman has one, unless this process is in
/// that store's user namespace, where the user is root. `command` is the one to run there.
///
/// # Errors
/// [`Error::Rootless`], and when the directory cannot be read.
pub fn refuse_rootless(path: &Path, command: &'static str) -> Result<(), Error> {
    match rootless_owner(path)? {
        Some(uid) => Err(Error::Rootless(uid, command)),
        None => Ok(()),
    }
}

/// Returns the owner of the store in the directory `path` if it is not root, and has all of the store's directories.
///
/// # Errors
/// When the directory cannot be read.
pub fn rootless_owner(path: &Path) -> Result<Option<u32>, Error> {
    if path == Path::new("-") || !fs_err::metadata(path)?.is_dir() {
        return Ok(None);
    }
    let root = Root::open(path)?;
    for found in in_directory(&root)? {
        let owner = |name: &str| {
            let stat = root.stat([found.graphroot.as_str(), name].join("/").trim_start_matches('/').as_bytes());
            stat.ok().flatten().map(|stat| stat.st_uid)
        };
        let owners = ["", &found.driver, &format!("{}-images", found.driver)].map(owner);
        if let [Some(uid), others @ ..] = owners
            && uid != 0
            && others.iter().flatten().all(|other| *other == uid)
        {
            return Ok(Some(uid));
        }
    }
    Ok(None)
}

/// Adds the stores that a machine's own configuration names: a tar is searched as a whole, a directory only where stores
/// usually are.
///
/// # Errors
/// As [`in_directory`].
pub fn add_configured(stores: &mut Vec<Found>, root: &Root, config: &MachineConfig) -> Result<(), Error> {
    let places = config.graphroot.iter().chain(&config.image_store).chain(&config.additional);
    for place in places.map(|set| within(&set.value)) {
        let known = place.is_empty() || place.split('/').any(|part| part == "..");
        if !known && !stores.iter().any(|store| store.graphroot == place) {
            stores.extend(in_directory_at(root, &place)?);
        }
    }
    Ok(())
}

fn drivers(root: &Root, graphroot: &str) -> Result<Vec<Found>, Error> {
    let below = |path: String| if graphroot.is_empty() { path } else { format!("{graphroot}/{path}") };
    let failed = |path: &str, error: io::Error| match error.kind() {
        io::ErrorKind::FileTooLarge => Error::Size(path.to_owned()),
        kind => Error::Io(io::Error::new(kind, format!("{path}: {error}"))),
    };
    let shown = if graphroot.is_empty() { "." } else { graphroot };
    let Some(directory) = root.directory(graphroot.as_bytes()).map_err(|error| failed(shown, error))? else {
        return Ok(Vec::new());
    };
    let names = names(&directory).map_err(|error| failed(shown, error))?;
    let names = names.iter().filter_map(|name| std::str::from_utf8(name).ok()?.strip_suffix("-images"));
    let mut drivers: Vec<&str> = names.filter(|driver| !driver.is_empty()).collect();
    drivers.sort_unstable();
    let mut all = Vec::new();
    for driver in drivers {
        let mut found = Found { graphroot: graphroot.to_owned(), driver: driver.to_owned(), ..Found::default() };
        for (kind, file) in [(Kind::Images, "images/images.json"), (Kind::Layers, "layers/layers.json")] {
            let path = below(format!("{driver}-{file}"));
            match root.read(path.as_bytes(), RECORDS_MAX).map_err(|error| failed(&path, error))? {
                Ok(content) => found.set(&kind, &path, Some(content)),
                // A store that has never had an image has none yet.
                Err(Opened::Missing) if !is_there(root, &path) => {}
                Err(_) => found.set(&kind, &path, None),
            }
        }
        all.push(found);
    }
    Ok(all)
}

/// Returns whether `path`, which leads to nothing, is a link that should.
fn is_there(root: &Root, path: &str) -> bool {
    let (directory, name) = path.rsplit_once('/').unwrap_or((".", path));
    let Ok(Some(directory)) = root.directory(directory.as_bytes()) else { return false };
    rustix::fs::statat(directory, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, data) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            tar.append_data(&mut header, name, *data).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn graphroots(found: &[Found]) -> Vec<&str> {
        found.iter().map(|found| found.graphroot.as_str()).collect()
    }

    #[test]
    fn records_are_found_at_any_depth() {
        for (name, graphroot) in [
            ("overlay-images/images.json", ""),
            ("./overlay-images/images.json", ""),
            ("/var//lib/./s/overlay-images/images.json", "var/lib/s"),
        ] {
            let record = Record::of(name.as_bytes()).unwrap();
            assert_eq!((record.graphroot.as_str(), record.driver.as_str()), (graphroot, "overlay"));
        }
        assert_eq!(Record::of(b"s/vfs-layers/layers.json").unwrap().driver, "vfs");
        for name in ["images.json", "a/images.json", "-images/images.json", "overlay-layers/images.json"] {
            assert_eq!(Record::of(name.as_bytes()), None, "{name}");
        }
    }

    #[test]
    fn several_stores_are_found_but_none_in_a_layer() {
        let bytes = tar(&[
            ("a/overlay-images/images.json", b"old"),
            ("a/overlay/ab/diff/var/lib/s/overlay-images/images.json", b"in a layer"),
            ("b/overlay-layers/layers.json", b"[]"),
            ("a/overlay-images/images.json", b"new"),
            ("c/overlay-images/images.lock", b""),
        ]);
        let found = in_stream(&bytes[..]).unwrap();
        assert_eq!(graphroots(&found), ["a", "b", "c"]);
        assert_eq!(found[0].images, b"new");
        let gzip = {
            use std::io::Write as _;
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&bytes).unwrap();
            gzip.finish().unwrap()
        };
        assert_eq!(in_stream(&gzip[..]).unwrap(), found);
        assert_eq!(in_stream(&zstd::encode_all(&bytes[..], 1).unwrap()[..]).unwrap(), found);
    }

    #[test]
    fn what_is_no_good_is_refused() {
        let mut header = tar::Header::new_gnu();
        header.set_path("overlay-images/images.json").unwrap();
        header.set_size(RECORDS_MAX + 1);
        header.set_cksum();
        assert!(matches!(in_stream(&header.as_bytes()[..]), Err(Error::Size(_))));
        for (magic, name) in [(&b"BZh91AY"[..], "bzip2"), (b"\xfd7zXZ\0\0", "xz"), (b"\x04\x22\x4d\x18", "lz4")] {
            let error = in_stream(magic).unwrap_err();
            assert!(matches!(&error, Error::Io(error) if error.to_string().contains(name)), "{error}");
        }
        assert!(matches!(in_stream(&[b'x'; 1024][..]), Err(Error::Tar(_, false))));
        let record = |number: u64| {
            let mut header = tar::Header::new_gnu();
            header.set_path(format!("{number}/o-images/images.json")).unwrap();
            header.set_size(RECORDS_MAX);
            header.set_cksum();
            io::Cursor::new(header.as_bytes().to_vec()).chain(io::repeat(0).take(RECORDS_MAX))
        };
        assert!(matches!(in_stream(record(0).chain(record(1)).chain(record(2))), Err(Error::AllSizes)));
        let names: Vec<String> = (0..=STORES_MAX).map(|number| format!("{number}/o-layers/layers.json")).collect();
        let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"[]"[..])).collect();
        assert!(matches!(in_stream(&tar(&files)[..]), Err(Error::Stores)));
        assert_eq!(in_stream(&b""[..]).unwrap(), []);
    }

    /// One byte at a time, and every other read is interrupted.
    struct Bits<'a>(&'a [u8], bool);

    impl Read for Bits<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            let most = buffer.len().min(1);
            if self.1 { Err(io::ErrorKind::Interrupted.into()) } else { self.0.read(&mut buffer[..most]) }
        }
    }

    #[test]
    fn a_stream_may_come_in_bits() {
        use std::io::Write as _;
        let bytes = tar(&[("a/overlay-images/images.json", b"[]")]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&bytes).unwrap();
        for stream in [&gzip.finish().unwrap(), &zstd::encode_all(&bytes[..], 1).unwrap(), &bytes] {
            assert_eq!(graphroots(&in_stream(Bits(stream, false)).unwrap()), ["a"]);
        }
    }

    #[test]
    fn a_tar_file_that_is_cut_off_is_refused() {
        use std::io::Write as _;
        let bytes = tar(&[("overlay-images/images.json", b"[]"), ("big", &[0; 200_000])]);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes[..100_000]).unwrap();
        file.rewind().unwrap();
        assert!(matches!(in_tar(file), Err(Error::Tar(TarError::Truncated { .. }, true))));
    }
}
