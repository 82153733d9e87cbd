//! How the machine is configured, as far as it decides which image CRI-O finds: storage.conf, crio.conf and registries.conf
//! with their drop-ins, from the input itself. What the machine has beside it cannot be known here.
//!
//! Every value has its [`Origin`], since the question that comes next is always where that was written.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::files::{self, Files};

/// The store of a machine without storage.conf (containers/storage `types/options_linux.go`).
pub const DEFAULT_GRAPHROOT: &str = "var/lib/containers/storage";
/// Names in one list, and aliases: more than anybody writes.
pub const NAMES_MAX: usize = 65_536;

/// CRI-O's own pause images: version from which on, and name (`pkg/config/config.go`, `config_linux.go`: DefaultPauseImage).
pub const DEFAULT_PAUSE: [(&str, &str); 4] = [
    ("1.24", "registry.k8s.io/pause:3.6"),
    ("1.27", "registry.k8s.io/pause:3.9"),
    ("1.31", "registry.k8s.io/pause:3.10"),
    ("1.34", "registry.k8s.io/pause:3.10.1"),
];

/// containers/storage `types/options.go`: the first that is there is read, and no other.
const STORAGE: [&str; 2] = ["etc/containers/storage.conf", "usr/share/containers/storage.conf"];
/// CRI-O `pkg/config/config_unix.go`: CrioConfigPath, CrioConfigDropInPath.
const CRIO: &str = "etc/crio/crio.conf";
const CRIO_DIRECTORY: &str = "etc/crio/crio.conf.d";
/// containers/image `pkg/sysregistriesv2/paths_common.go`.
const REGISTRIES: &str = "etc/containers/registries.conf";
const REGISTRIES_DIRECTORY: &str = "etc/containers/registries.conf.d";
/// containers/image `pkg/sysregistriesv2/shortnames.go`: what root's tools wrote; it comes first.
const ALIASES: &str = "var/cache/containers/short-name-aliases.conf";

/// Why the configuration cannot be read. Who it is written for would not start with it either.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be had.
    #[error(transparent)]
    File(#[from] files::Error),
    /// Not what it should be.
    #[error("{origin}: {what}")]
    Form {
        /// Where.
        origin: Origin,
        /// What is wrong, in one line.
        what: String,
    },
    /// More than [`NAMES_MAX`].
    #[error("{0} has more than {NAMES_MAX} names in a list")]
    Names(String),
}

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Origin {
    /// A path within the input.
    #[serde(serialize_with = "super::absolute")]
    pub file: String,
    /// Beginning with 1.
    pub line: usize,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A value, and where it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Set<T> {
    /// The value.
    pub value: T,
    /// Where.
    pub origin: Origin,
}

/// What the files say; nothing where they are silent.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct MachineConfig {
    /// The files that were read, in that order.
    pub files: Vec<String>,
    /// Whether there is a storage.conf.
    pub has_storage_conf: bool,
    /// Whether there is a registries.conf, or a drop-in of it.
    pub has_registries_conf: bool,
    /// The primary store.
    pub graphroot: Option<Set<String>>,
    /// Where locks and mounts of one boot go.
    pub runroot: Option<Set<String>>,
    /// The driver of all stores.
    pub driver: Option<Set<String>>,
    /// A store for images alone, which then comes before the graphroot.
    pub image_store: Option<Set<String>>,
    /// The place of users' stores, with variables in it.
    pub rootless_storage_path: Option<Set<String>>,
    /// The additional stores in their order.
    pub additional: Vec<Set<String>>,
    /// Whether CRI-O checks its store after an unclean shutdown, of the last file that says so; the default is yes since 1.31.
    pub internal_repair: Option<bool>,
    /// pinned_images of the last file that has it: a later list replaces an earlier one.
    pub pinned: Option<Vec<Set<String>>>,
    /// pause_image of the last file that has it.
    pub pause: Option<Set<String>>,
    /// CRI-O's short_name_mode (1.34 and newer).
    pub short_name_mode: Option<Set<String>>,
    /// unqualified-search-registries of the last file that has it.
    pub search: Option<Vec<Set<String>>>,
    /// Short-name aliases; one that is empty takes an earlier one back.
    pub aliases: BTreeMap<String, Set<String>>,
}

#[derive(Deserialize)]
struct StorageFile {
    #[serde(default)]
    storage: StorageTable,
}

#[derive(Deserialize, Default)]
struct StorageTable {
    driver: Option<Spanned<String>>,
    graphroot: Option<Spanned<String>>,
    runroot: Option<Spanned<String>>,
    imagestore: Option<Spanned<String>>,
    rootless_storage_path: Option<Spanned<String>>,
    #[serde(default)]
    options: StorageOptions,
}

#[derive(Deserialize, Default)]
struct StorageOptions {
    #[serde(default)]
    additionalimagestores: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
struct CrioFile {
    #[serde(default)]
    crio: CrioTable,
}

#[derive(Deserialize, Default)]
struct CrioTable {
    root: Option<Spanned<String>>,
    runroot: Option<Spanned<String>>,
    storage_driver: Option<Spanned<String>>,
    imagestore: Option<Spanned<String>>,
    internal_repair: Option<bool>,
    #[serde(default)]
    storage_option: Vec<Spanned<String>>,
    #[serde(default)]
    image: CrioImage,
}

#[derive(Deserialize, Default)]
struct CrioImage {
    pause_image: Option<Spanned<String>>,
    pinned_images: Option<Vec<Spanned<String>>>,
    short_name_mode: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RegistriesFile {
    unqualified_search_registries: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    aliases: BTreeMap<String, Spanned<String>>,
    /// Version 1 of the format, which is still read: `[registries.search] registries`.
    #[serde(default)]
    registries: OldRegistries,
}

#[derive(Deserialize, Default)]
struct OldRegistries {
    #[serde(default)]
    search: OldSearch,
}

#[derive(Deserialize, Default)]
struct OldSearch {
    registries: Option<Vec<Spanned<String>>>,
}

/// One file while it is read.
struct Text<'a> {
    path: &'a str,
    text: String,
}

impl<'a> Text<'a> {
    /// The file at `path`, if there is one.
    fn of(files: &Files, path: &'a str) -> Result<Option<Self>, Error> {
        let Some(bytes) = files.read(path)? else { return Ok(None) };
        let text = String::from_utf8(bytes).map_err(|error| {
            let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            Error::Form { origin: Origin { file: path.to_owned(), line }, what: "not UTF-8".into() }
        })?;
        Ok(Some(Self { path, text }))
    }

    fn origin(&self, at: usize) -> Origin {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        Origin { file: self.path.to_owned(), line: 1 + before.iter().filter(|byte| **byte == b'\n').count() }
    }

    fn parse<T: for<'de> Deserialize<'de>>(&self) -> Result<T, Error> {
        toml::from_str(&self.text).map_err(|error| Error::Form {
            origin: self.origin(error.span().map_or(0, |span| span.start)),
            // The whole text would show the line below it.
            what: error.message().replace('\n', ", "),
        })
    }

    fn set(&self, value: Spanned<String>) -> Set<String> {
        let origin = self.origin(value.span().start);
        Set { value: value.into_inner(), origin }
    }

    /// An empty string is no value (CRI-O UpdateFromDropInFile for the store; containers/storage for all).
    fn set_if_any(&self, out: &mut Option<Set<String>>, value: Option<Spanned<String>>) {
        if let Some(value) = value.filter(|value| !value.get_ref().is_empty()) {
            *out = Some(self.set(value));
        }
    }

    fn list(&self, values: Vec<Spanned<String>>) -> Result<Vec<Set<String>>, Error> {
        if values.len() > NAMES_MAX {
            return Err(Error::Names(self.path.to_owned()));
        }
        // Counting lines from the start for each of many names would take long.
        let (mut line, mut counted) = (1, 0);
        let bytes = self.text.as_bytes();
        let set = |value: Spanned<String>| {
            let at = value.span().start.clamp(counted, bytes.len());
            line += bytes[counted..at].iter().filter(|byte| **byte == b'\n').count();
            counted = at;
            Set { value: value.into_inner(), origin: Origin { file: self.path.to_owned(), line } }
        };
        Ok(values.into_iter().map(set).collect())
    }
}

impl MachineConfig {
    /// Reads all of it.
    ///
    /// # Errors
    /// When a file is too large, no TOML, or has a value of a wrong type.
    pub fn read(files: &Files) -> Result<Self, Error> {
        Self::read_with_storage(files, None)
    }

    /// Reads only storage.conf: the one at `path`, or the machine's.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_storage(files: &Files, path: Option<&str>) -> Result<Self, Error> {
        let mut config = Self::default();
        match path {
            Some(path) => config.storage(files, &[&within(path)])?,
            None => config.storage(files, &STORAGE)?,
        }
        Ok(config)
    }

    /// Reads all of it, but storage.conf from `path`, if there is one (`CONTAINERS_STORAGE_CONF`).
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_with_storage(files: &Files, path: Option<&str>) -> Result<Self, Error> {
        let mut config = Self::read_storage(files, path)?;
        config.crio(files, CRIO)?;
        // Whatever they are called: crio.conf.d(5) speaks of *.conf, but UpdateFromPath takes every file below the directory.
        for path in files.below(CRIO_DIRECTORY)? {
            config.crio(files, &path)?;
        }
        let conf = |path: &String| path.ends_with(".conf");
        config.registries(files, REGISTRIES)?;
        for path in files.below(REGISTRIES_DIRECTORY)?.iter().filter(|path| conf(path)) {
            config.registries(files, path)?;
        }
        config.has_registries_conf |= config.search.is_some();
        if let Some(text) = Text::of(files, ALIASES)? {
            config.files.push(ALIASES.to_owned());
            let parsed: RegistriesFile = text.parse()?;
            config.add_aliases(&text, parsed.aliases)?;
        }
        Ok(config)
    }

    /// Reads the first of `paths` that is present.
    fn storage(&mut self, files: &Files, paths: &[&str]) -> Result<(), Error> {
        for path in paths {
            let Some(text) = Text::of(files, path)? else { continue };
            let StorageFile { storage } = text.parse()?;
            self.files.push((*path).to_owned());
            self.has_storage_conf = true;
            text.set_if_any(&mut self.graphroot, storage.graphroot);
            text.set_if_any(&mut self.runroot, storage.runroot);
            text.set_if_any(&mut self.driver, storage.driver);
            text.set_if_any(&mut self.image_store, storage.imagestore);
            text.set_if_any(&mut self.rootless_storage_path, storage.rootless_storage_path);
            self.additional = text.list(storage.options.additionalimagestores)?;
            return Ok(());
        }
        Ok(())
    }

    fn crio(&mut self, files: &Files, path: &str) -> Result<(), Error> {
        let Some(text) = Text::of(files, path)? else { return Ok(()) };
        let CrioFile { crio } = text.parse()?;
        self.files.push(path.to_owned());
        text.set_if_any(&mut self.graphroot, crio.root);
        text.set_if_any(&mut self.runroot, crio.runroot);
        text.set_if_any(&mut self.driver, crio.storage_driver);
        text.set_if_any(&mut self.image_store, crio.imagestore);
        for option in text.list(crio.storage_option)? {
            // containers/storage `drivers/overlay/overlay.go`, parseOptions: with the driver's name in front, a dot, or neither.
            let Some((key, value)) = option.value.split_once('=') else { continue };
            let key = key.trim().to_lowercase();
            let key = ["overlay.", "overlay2.", "."]
                .iter()
                .fold(&*key, |key, prefix| key.strip_prefix(prefix).unwrap_or(key));
            if matches!(key, "imagestore" | "additionalimagestore") {
                for store in value.split(',').filter(|store| !store.trim().is_empty()) {
                    self.additional.push(Set { value: store.trim().to_owned(), origin: option.origin.clone() });
                }
            }
        }
        // CRI-O removeDupStorageOpts keeps the last of two.
        let mut seen = std::collections::BTreeSet::new();
        self.additional.reverse();
        self.additional.retain(|store| seen.insert(store.value.clone()));
        self.additional.reverse();
        self.internal_repair = crio.internal_repair.or(self.internal_repair);
        let CrioImage { pause_image, pinned_images, short_name_mode } = crio.image;
        if let Some(pause) = pause_image {
            self.pause = Some(text.set(pause));
        }
        if let Some(pinned) = pinned_images {
            self.pinned = Some(text.list(pinned)?);
        }
        if let Some(mode) = short_name_mode {
            self.short_name_mode = Some(text.set(mode));
        }
        Ok(())
    }

    fn registries(&mut self, files: &Files, path: &str) -> Result<(), Error> {
        let Some(text) = Text::of(files, path)? else { return Ok(()) };
        let parsed: RegistriesFile = text.parse()?;
        self.files.push(path.to_owned());
        self.has_registries_conf = true;
        if let Some(search) = parsed.unqualified_search_registries.or(parsed.registries.search.registries) {
            self.search = Some(text.list(search)?);
        }
        self.add_aliases(&text, parsed.aliases)
    }

    fn add_aliases(&mut self, text: &Text<'_>, aliases: BTreeMap<String, Spanned<String>>) -> Result<(), Error> {
        let mut aliases: Vec<(String, Spanned<String>)> = aliases.into_iter().collect();
        aliases.sort_by_key(|(_, value)| value.span().start);
        let (names, values): (Vec<_>, Vec<_>) = aliases.into_iter().unzip();
        self.aliases.extend(names.into_iter().zip(text.list(values)?));
        Ok(())
    }

    /// Returns whether `pinned_images` or `pause_image` pins this name (cri-o `internal/storage/image.go`,
    /// CompileRegexpsForPinnedImages).
    #[must_use]
    pub fn pins(&self, name: &str) -> bool {
        self.pinned.iter().flatten().chain(&self.pause).any(|set| super::why::fits(&set.value, name).is_some())
    }

    /// The graphroot as a path within the input.
    #[must_use]
    pub fn graphroot_within(&self) -> String {
        self.graphroot.as_ref().map_or_else(|| DEFAULT_GRAPHROOT.to_owned(), |set| within(&set.value))
    }

    /// Returns whether the store at `graphroot`, a path within the input, is an additional one: as the configuration says, else by
    /// its place.
    #[must_use]
    pub fn is_additional(&self, graphroot: &str) -> bool {
        self.additional.iter().any(|set| within(&set.value) == graphroot)
            || is_place_of_additional(graphroot) && self.graphroot_within() != graphroot
    }

    /// The driver: `overlay` where nobody says otherwise.
    #[must_use]
    pub fn driver_or_default(&self) -> &str {
        self.driver.as_ref().map_or("overlay", |set| &set.value)
    }
}

/// Returns the path of the file whose `pinned_images` CRI-O takes: the last one of those read that has the key.
#[must_use]
pub fn pinned_by(files: &Files, config: &MachineConfig) -> Option<String> {
    let has = |path: &&String| {
        let text = Text::of(files, path).ok().flatten();
        text.and_then(|text| text.parse::<CrioFile>().ok()).is_some_and(|file| file.crio.image.pinned_images.is_some())
    };
    config.files.iter().rev().filter(|path| path.starts_with("etc/crio/")).find(has).cloned()
}

/// Returns whether a store at `graphroot` is an additional one where no configuration says what it is: below /usr, which no
/// program writes to while a machine runs.
#[must_use]
pub fn is_place_of_additional(graphroot: &str) -> bool {
    graphroot.starts_with("usr/")
}

/// An absolute path of the machine as one within the input.
#[must_use]
pub fn within(path: &str) -> String {
    path.split('/').filter(|part| !matches!(*part, "" | ".")).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::super::files::Kept;
    use super::*;

    fn read(files: &[(&str, &str)]) -> Result<MachineConfig, Error> {
        let mut kept = Kept::default();
        for (path, text) in files {
            kept.file((*path).to_owned(), text.as_bytes().to_vec()).unwrap();
        }
        MachineConfig::read(&Files::of_tar(kept))
    }

    fn values(sets: &[Set<String>]) -> Vec<(&str, usize)> {
        sets.iter().map(|set| (set.value.as_str(), set.origin.line)).collect()
    }

    #[test]
    fn nothing_is_the_default() {
        let config = read(&[]).unwrap();
        assert_eq!(config, MachineConfig::default());
        assert_eq!((config.graphroot_within().as_str(), config.driver_or_default()), (DEFAULT_GRAPHROOT, "overlay"));
    }

    #[test]
    fn the_last_drop_in_wins() {
        let config = read(&[
            ("etc/crio/crio.conf", "[crio.image]\npause_image = \"p:1\"\npinned_images = [\"a\"]\n"),
            ("etc/crio/crio.conf.d/10-a", "[crio.image]\npinned_images = [\n  \"b\",\n  # c\n  'd', 'e' ]\n"),
            ("etc/crio/crio.conf.d/20-b.conf", "[crio]\nroot = \"\"\n[crio.image]\npause_image = \"p:2\"\n"),
        ])
        .unwrap();
        assert_eq!(values(config.pinned.as_deref().unwrap()), [("b", 3), ("d", 5), ("e", 5)]);
        let pause = config.pause.unwrap();
        assert_eq!(
            (pause.value.as_str(), pause.origin.to_string().as_str()),
            ("p:2", "etc/crio/crio.conf.d/20-b.conf:4")
        );
        assert_eq!(config.graphroot, None);
        let emptied = [
            ("etc/crio/crio.conf", "crio.image.pinned_images = ['a']"),
            ("etc/crio/crio.conf.d/1", "crio.image.pinned_images = []"),
        ];
        assert_eq!(read(&emptied).unwrap().pinned, Some(Vec::new()));
    }

    #[test]
    fn stores_come_in_their_order() {
        let config = read(&[
            (
                "etc/containers/storage.conf",
                "[storage]\ndriver='overlay'\ngraphroot='/data//s/'\n[storage.options]\nadditionalimagestores=['/a','/b']",
            ),
            ("usr/share/containers/storage.conf", "[storage]\ngraphroot='/other'"),
            ("etc/crio/crio.conf", "[crio]\nstorage_option = ['overlay.mountopt=x', 'overlay.imagestore=/a,/c']"),
        ])
        .unwrap();
        assert_eq!(config.graphroot_within(), "data/s");
        assert_eq!(values(&config.additional), [("/b", 5), ("/a", 2), ("/c", 2)]);
        assert_eq!(config.files.len(), 2);
    }

    #[test]
    fn registries_are_merged() {
        let config = read(&[
            (
                "etc/containers/registries.conf",
                "unqualified-search-registries = ['docker.io']\n[[registry]]\nlocation='x'\n[aliases]\na='q.io/a'\nb='q.io/b'",
            ),
            ("etc/containers/registries.conf.d/1.conf", "unqualified-search-registries = ['a.io','b.io']\n[aliases]\nb=''"),
            ("etc/containers/registries.conf.d/README", "not { toml"),
            ("var/cache/containers/short-name-aliases.conf", "[aliases]\na='z.io/a'"),
        ])
        .unwrap();
        assert_eq!(values(config.search.as_deref().unwrap()), [("a.io", 1), ("b.io", 1)]);
        assert_eq!((config.aliases["a"].value.as_str(), config.aliases["b"].value.as_str()), ("z.io/a", ""));
        let old = read(&[("etc/containers/registries.conf", "[registries.search]\nregistries=['r.io']")]).unwrap();
        assert_eq!(values(old.search.as_deref().unwrap()), [("r.io", 2)]);
    }

    #[test]
    fn errors_name_file_and_line() {
        for (path, text, begin) in [
            ("etc/crio/crio.conf", "[crio.image]\npinned_images = 3", "etc/crio/crio.conf:2: invalid type"),
            ("etc/crio/crio.conf.d/x", "\n\n[crio", "etc/crio/crio.conf.d/x:3: "),
            ("etc/containers/storage.conf", "storage = 1", "etc/containers/storage.conf:1: "),
            ("etc/containers/registries.conf", "[aliases]\na = ['x']", "etc/containers/registries.conf:2: "),
        ] {
            let error = read(&[(path, text)]).unwrap_err().to_string();
            assert!(error.starts_with(begin) && !error.contains('\n'), "{error}");
        }
        let mut kept = Kept::default();
        kept.file("etc/crio/crio.conf".into(), b"\n#\xff".to_vec()).unwrap();
        let error = MachineConfig::read(&Files::of_tar(kept)).unwrap_err();
        assert_eq!(error.to_string(), "etc/crio/crio.conf:2: not UTF-8");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), text in "[\\[\\]{}=\"',.a-z#\n ]{0,120}") {
            for path in [STORAGE[0], CRIO, REGISTRIES, ALIASES] {
                for content in [bytes.clone(), text.clone().into_bytes()] {
                    let mut kept = Kept::default();
                    kept.file(path.to_owned(), content).unwrap();
                    let _ = MachineConfig::read(&Files::of_tar(kept));
                }
            }
            let deep = format!("{}{}", "[".repeat(bytes.len() * 50), text);
            let _ = read(&[(CRIO, &format!("a = {deep}"))]);
        }
    }
}
