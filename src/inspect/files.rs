//! Small files beside the stores of a tar or a directory: the machine's configuration, and the configs of its images.
//!
//! A tar may come through a pipe and is read once, so these files are kept while the stores are looked for. A directory is
//! asked later. No path leaves the directory: a link of its owner's is followed as the machine would follow it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use super::root::{Root, names};

/// The largest file that is kept, in bytes: registry configs of images have a limit of 4 MiB, configuration is far smaller.
pub const FILE_MAX: u64 = 4 << 20;
/// The most files of a tar that are kept, and the most of one directory.
pub const FILES_MAX: usize = 65_536;
/// The most bytes of a tar that are kept.
pub const TOTAL_MAX: u64 = 128 << 20;
/// How many links are followed, one to the next (Linux: `MAXSYMLINKS`).
const LINKS_MAX: usize = 40;
/// How deep a directory of drop-ins may be.
const DEPTH_MAX: usize = 8;

/// Directories of the machine's configuration that matter to CRI-O.
pub const CONFIGURATION: [&str; 4] =
    ["etc/containers", "etc/crio", "usr/share/containers", "var/cache/containers/short-name-aliases.conf"];

/// Why a file cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading failed.
    #[error("{0}: {1}")]
    Io(String, io::Error),
    /// More than [`FILE_MAX`].
    #[error("{0} has more than {max} MiB", max = FILE_MAX >> 20)]
    Size(String),
    /// More than [`FILES_MAX`] or [`TOTAL_MAX`].
    #[error("more than {FILES_MAX} files, or {max} MiB, of configuration and image configs", max = TOTAL_MAX >> 20)]
    Count,
}

/// Files by their path within the input.
#[derive(Debug)]
pub struct Files(Source);

#[derive(Debug)]
enum Source {
    Tar(Kept),
    Directory(Arc<Root>),
}

/// What is kept of a tar while it goes by.
#[derive(Debug, Default)]
pub(super) struct Kept {
    entries: BTreeMap<String, Entry>,
    bytes: u64,
}

#[derive(Debug)]
enum Entry {
    File(Vec<u8>),
    Link(String),
    /// More than [`FILE_MAX`]: an error only for who asks for it.
    TooLarge,
}

/// Whether a tar's file is kept. `path` has no `./` and no `/` in front.
fn is_wanted(path: &str) -> bool {
    CONFIGURATION.iter().any(|of| path == *of || path.strip_prefix(of).is_some_and(|rest| rest.starts_with('/')))
        || is_image_document(path)
}

/// Returns whether this is the config or the manifest of an image: `…/DRIVER-images/ID/=BASE64` with a key that begins with
/// `sha256:`, or `…/DRIVER-images/ID/manifest` (containers/storage `store.go`, `makeBigDataBaseName`).
fn is_image_document(path: &str) -> bool {
    let mut parts = path.rsplit('/');
    let (file, _, images) = (parts.next(), parts.next(), parts.next());
    // base64 of `sha256:`, as far as it does not depend on the digest.
    file.is_some_and(|file| file == "manifest" || file.starts_with("=c2hhMjU2O"))
        && images.is_some_and(|directory| directory.ends_with("-images"))
}

/// `./a//b/` is `a/b`; nothing for a path that no file of a machine has.
pub(super) fn normal(path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    (!parts.contains(&"..")).then(|| parts.join("/"))
}

/// What to do with an entry of a tar.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// Nothing.
    No,
    /// Read its content, and give it to [`Kept::file`].
    Content(String),
}

impl Kept {
    /// Whether the entry `name` is kept. Links are, without content.
    pub fn entry(&mut self, typeflag: u8, name: &[u8], link: &[u8], size: u64) -> Result<Keep, Error> {
        let Some(path) = normal(name).filter(|path| is_wanted(path)) else { return Ok(Keep::No) };
        let entry = match typeflag {
            b'0' if size > FILE_MAX => Entry::TooLarge,
            b'0' => {
                self.bytes = self.bytes.saturating_add(size);
                if self.bytes > TOTAL_MAX {
                    return Err(Error::Count);
                }
                return Ok(Keep::Content(path));
            }
            b'1' => Entry::Link(format!("/{}", String::from_utf8_lossy(link))),
            b'2' => Entry::Link(String::from_utf8_lossy(link).into_owned()),
            _ => return Ok(Keep::No),
        };
        self.insert(path, entry)?;
        Ok(Keep::No)
    }

    /// The last of two is what an unpacker leaves.
    pub fn file(&mut self, path: String, content: Vec<u8>) -> Result<(), Error> {
        self.insert(path, Entry::File(content))
    }

    fn insert(&mut self, path: String, entry: Entry) -> Result<(), Error> {
        if self.entries.len() >= FILES_MAX {
            return Err(Error::Count);
        }
        self.entries.insert(path, entry);
        Ok(())
    }

    fn get(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        let mut path = path.to_owned();
        for _ in 0..LINKS_MAX {
            match self.entries.get(&path) {
                Some(Entry::File(content)) => return Ok(Some(content.clone())),
                Some(Entry::TooLarge) => return Err(Error::Size(path)),
                Some(Entry::Link(target)) => path = resolve(&path, target),
                // A directory on the way may be a link: `etc/crio -> ../usr/etc/crio`.
                None => match self.through_link(&path) {
                    Some(next) => path = next,
                    None => return Ok(None),
                },
            }
        }
        Err(Error::Io(path, Errno::LOOP.into()))
    }

    fn through_link(&self, path: &str) -> Option<String> {
        path.match_indices('/').find_map(|(at, _)| match self.entries.get(&path[..at]) {
            Some(Entry::Link(target)) => Some(format!("{}{}", resolve(&path[..at], target), &path[at..])),
            _ => None,
        })
    }
}

/// Where the link at `path` leads, with the input's root as `/`.
fn resolve(path: &str, target: &str) -> String {
    let mut parts: Vec<&str> = if target.starts_with('/') { Vec::new() } else { path.split('/').collect() };
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

impl Files {
    /// Those that were kept of a tar.
    pub(super) fn of_tar(kept: Kept) -> Self {
        Self(Source::Tar(kept))
    }

    /// Those of a directory.
    #[must_use]
    pub fn of_directory(root: Arc<Root>) -> Self {
        Self(Source::Directory(root))
    }

    /// Those of the directory at `path`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn of_path(path: &Path) -> Result<Self, Error> {
        match Root::open(path) {
            Ok(root) => Ok(Self::of_directory(Arc::new(root))),
            Err(error) => Err(Error::Io(path.display().to_string(), error)),
        }
    }

    /// The content of a file; nothing if there is none at `path`, or it is no file.
    ///
    /// # Errors
    /// When it cannot be read, or is too large.
    pub fn read(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        match &self.0 {
            Source::Tar(kept) => kept.get(path),
            Source::Directory(root) => match root.read(path.as_bytes(), FILE_MAX) {
                Ok(content) => Ok(content.ok()),
                Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Err(Error::Size(path.to_owned())),
                Err(error) => Err(Error::Io(path.to_owned(), error)),
            },
        }
    }

    /// The paths of all files below a directory, in the order of Go's `filepath.Walk`: by name, directory by directory.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn below(&self, directory: &str) -> Result<Vec<String>, Error> {
        match &self.0 {
            Source::Tar(kept) => {
                let prefix = format!("{directory}/");
                let mut paths: Vec<String> =
                    kept.entries.keys().filter(|path| path.starts_with(&prefix)).cloned().collect();
                paths.sort_by(|a, b| a.split('/').cmp(b.split('/')));
                Ok(paths)
            }
            Source::Directory(root) => {
                let mut paths = Vec::new();
                walk(root, directory, 0, &mut paths)?;
                Ok(paths)
            }
        }
    }
}

fn walk(root: &Root, directory: &str, depth: usize, out: &mut Vec<String>) -> Result<(), Error> {
    let failed = |error| Error::Io(directory.to_owned(), error);
    let Some(opened) = root.directory(directory.as_bytes()).map_err(failed)? else { return Ok(()) };
    if depth > DEPTH_MAX {
        return Ok(());
    }
    let mut names = names(&opened).map_err(failed)?;
    if names.len() > FILES_MAX {
        return Err(Error::Count);
    }
    names.sort();
    for name in names {
        let stat = rustix::fs::statat(&opened, &name[..], rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
        let is_directory = stat.is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir());
        let path = format!("{directory}/{}", String::from_utf8_lossy(&name));
        if is_directory {
            walk(root, &path, depth + 1, out)?;
        } else {
            out.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_little() {
        for path in [
            "etc/crio/crio.conf",
            "etc/crio/crio.conf.d/x/10-a",
            "etc/containers/registries.conf",
            "var/cache/containers/short-name-aliases.conf",
            "s/overlay-images/ab/=c2hhMjU2OjIyYWJjZWM5OWRmMmI5MzNm",
            "s/overlay-images/ab/manifest",
        ] {
            assert!(is_wanted(path), "{path}");
        }
        for path in ["etc/criomore/a", "etc/passwd", "s/overlay/ab/manifest", "=c2hhMjU2OjIy", ""] {
            assert!(!is_wanted(path), "{path}");
        }
    }

    #[test]
    fn links_in_a_tar_are_followed_within_it() {
        let mut kept = Kept::default();
        kept.file("usr/share/containers/a.conf".into(), b"a".to_vec()).unwrap();
        for (name, typeflag, target) in [
            ("etc/containers/abs.conf", b'2', "/usr/share/containers/a.conf"),
            ("./etc/containers/rel.conf", b'2', "../../../../usr/share/containers/./a.conf"),
            ("etc/containers/hard.conf", b'1', "usr/share/containers/a.conf"),
            ("etc/crio", b'2', "/usr/share/containers"),
            ("etc/containers/loop", b'2', "loop"),
            ("etc/containers/gone", b'2', "/gone"),
        ] {
            assert_eq!(kept.entry(typeflag, name.as_bytes(), target.as_bytes(), 0).unwrap(), Keep::No);
        }
        let files = Files::of_tar(kept);
        for path in
            ["etc/containers/abs.conf", "etc/containers/rel.conf", "etc/containers/hard.conf", "etc/crio/a.conf"]
        {
            assert_eq!(files.read(path).unwrap().as_deref(), Some(&b"a"[..]), "{path}");
        }
        assert_eq!(files.read("etc/containers/gone").unwrap(), None);
        assert!(files.read("etc/containers/loop").is_err());
    }

    #[test]
    fn limits_are_kept() {
        let mut kept = Kept::default();
        let name = b"etc/crio/crio.conf";
        assert_eq!(kept.entry(b'0', name, b"", FILE_MAX + 1).unwrap(), Keep::No);
        assert!(matches!(Files::of_tar(kept).read("etc/crio/crio.conf"), Err(Error::Size(_))));
        let mut kept = Kept::default();
        for _ in 0..TOTAL_MAX / FILE_MAX {
            assert!(matches!(kept.entry(b'0', name, b"", FILE_MAX), Ok(Keep::Content(_))));
        }
        assert!(matches!(kept.entry(b'0', name, b"", 1), Err(Error::Count)));
    }

    #[test]
    fn a_directory_is_its_own_root() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("root");
        fs_err::create_dir_all(root.join("etc/crio/crio.conf.d/b")).unwrap();
        for file in ["c", "a", "b/z"] {
            fs_err::write(root.join("etc/crio/crio.conf.d").join(file), file).unwrap();
        }
        fs_err::write(scratch.path().join("outside"), "secret").unwrap();
        std::os::unix::fs::symlink("../outside", root.join("leak")).unwrap();
        std::os::unix::fs::symlink("/etc/crio/crio.conf.d/a", root.join("inside")).unwrap();
        let files = Files::of_directory(Arc::new(Root::open(&root).unwrap()));
        let directory = "etc/crio/crio.conf.d";
        let expected = ["a", "b/z", "c"].map(|name| format!("{directory}/{name}"));
        assert_eq!(files.below(directory).unwrap(), expected);
        assert_eq!(files.below("etc/none").unwrap(), Vec::<String>::new());
        assert_eq!(files.read("leak").unwrap(), None);
        assert_eq!(files.read("inside").unwrap().as_deref(), Some(&b"a"[..]));
        assert_eq!(files.read("etc/crio").unwrap(), None);
    }
}
