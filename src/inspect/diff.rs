//! What differs between two stores: names, images, layers, and what containers see.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

use serde::Serialize;
use serde_json::Value;

use super::contents::{Contents, Files, Inode, InodeKind, is_machine_label, join};
use super::list::{self, Listed, Parents, list};
use super::merged::{Merged, Seen};
use crate::entry::{Device, Xattr};

/// The largest config that is compared, in bytes: what registries take, and more.
const CONFIG_MAX: u64 = 8 << 20;
/// Content compared at a time, in bytes.
const BUFFER: usize = 64 << 10;

/// Characters of an id.
const ID_LEN: usize = 64;

/// Why two stores cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The records of one of them.
    #[error(transparent)]
    List(#[from] list::Error),
    /// A file of one of them.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What happened to a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FileChange {
    /// Its path.
    #[serde(serialize_with = "lossy")]
    pub path: Vec<u8>,
    /// How.
    pub change: Change,
    /// Its size before, in bytes.
    pub old_size: u64,
    /// Its size after.
    pub new_size: u64,
    /// What of it is different, for people.
    pub what: Vec<String>,
}

fn lossy<S: serde::Serializer>(path: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    super::absolute(&String::from_utf8_lossy(path), serializer)
}

/// A kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Only the second has it.
    Added,
    /// Only the first has it.
    Removed,
    /// Both have it, and not the same.
    Changed,
}

/// An image that is not the same in both.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageChange {
    /// Its names, or its id when it has none.
    pub names: Vec<String>,
    /// How.
    pub change: Change,
    /// Its id in the first.
    pub old_id: Option<String>,
    /// Its id in the second.
    pub new_id: Option<String>,
    /// Layers that both have.
    pub layers_same: usize,
    /// Layers that only the first's has.
    pub layers_removed: usize,
    /// Layers that only the second's has.
    pub layers_added: usize,
    /// Fields of the config that differ.
    pub config: Vec<ConfigChange>,
    /// What containers see.
    pub files: Vec<FileChange>,
    /// Files in which nothing but the time is different.
    pub times: usize,
}

/// A field of an image's config that differs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigChange {
    /// The field, as a path from the top: `config.Env`.
    pub field: String,
    /// Its value in the first; null if it is missing there.
    pub old: Value,
    /// Its value in the second.
    pub new: Value,
}

/// All that is different.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Diff {
    /// Images.
    pub images: Vec<ImageChange>,
    /// Images that are the same under the same names.
    pub images_same: usize,
    /// Layers of the first that the second has not.
    #[serde(rename = "removedLayers")]
    pub layers_removed: Vec<String>,
    /// Layers of the second that the first has not.
    #[serde(rename = "addedLayers")]
    pub layers_added: Vec<String>,
    /// Layers that both have.
    pub layers_same: usize,
    /// Files in layers that both have and that should be the same: one of them is damaged, or made for another unpacker.
    pub layer_files: Vec<FileChange>,
    /// Files beside the layers: records, links, the machine's configuration.
    #[serde(rename = "otherFiles")]
    pub others: Vec<FileChange>,
}

impl Diff {
    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
            && self.layers_removed.is_empty()
            && self.layers_added.is_empty()
            && self.layer_files.is_empty()
            && self.others.is_empty()
    }
}

type AllLayers<'a> = BTreeMap<(&'a str, &'a str), (usize, &'a Files)>;

/// A side of the comparison.
struct Side<'a> {
    contents: &'a Contents,
    images: Vec<Listed>,
    parents: Parents,
}

impl<'a> Side<'a> {
    fn new(contents: &'a Contents) -> Result<Self, Error> {
        Ok(Self { contents, images: list(contents.stores())?, parents: Parents::of(contents.stores())? })
    }

    /// The ids of an image's layers, the top one first.
    fn chain(&self, image: Option<&Listed>) -> Vec<String> {
        self.parents.chain(image.and_then(|image| image.top.as_deref()))
    }

    /// Images by name, as places in the list; those without one by their id.
    fn by_name(&self) -> BTreeMap<&str, usize> {
        let mut names = BTreeMap::new();
        for (at, image) in self.images.iter().enumerate() {
            names.extend(image.repo_tags.iter().map(|name| (&name[..], at)));
            if image.repo_tags.is_empty() {
                names.insert(image.repo_digests.first().unwrap_or(&image.id), at);
            }
        }
        names
    }

    /// The layers of all stores, by the store's place and their id.
    fn layers(&self) -> AllLayers<'a> {
        let stores = self.contents.stores().iter().enumerate();
        let layers = stores.flat_map(|(store, found)| {
            let layers = self.contents.layers(store).iter();
            layers.map(move |(id, files)| ((&found.graphroot[..], &id[..]), (store, files)))
        });
        layers.collect()
    }

    fn config(&self, image: &Listed) -> io::Result<Value> {
        let key = crate::storage::big_data_file_name(&format!("sha256:{}", image.id));
        let path = join(image.store.as_bytes(), format!("overlay-images/{}/{key}", image.id).as_bytes());
        let bytes = self.contents.small(&path, CONFIG_MAX)?.unwrap_or_default();
        Ok(serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    /// The path of something in a layer.
    fn path(&self, store: usize, layer: &str, path: &[u8]) -> Vec<u8> {
        let graphroot = self.contents.stores()[store].graphroot.as_bytes();
        join(&join(graphroot, format!("overlay/{layer}/diff").as_bytes()), path)
    }
}

/// Compares two stores.
///
/// # Errors
/// When one of them cannot be read.
pub fn diff(old: &Contents, new: &Contents) -> Result<Diff, Error> {
    let (old, new) = (Side::new(old)?, Side::new(new)?);
    let (old_layers, new_layers) = (old.layers(), new.layers());
    let mut layer_files = Vec::new();
    let mut layers_same = 0;
    let anywhere: BTreeMap<&str, (usize, &Files)> = new_layers.iter().map(|((_, id), found)| (*id, *found)).collect();
    for (&(graphroot, id), (old_store, old_files)) in &old_layers {
        // In the store of the same place, where several have it.
        let same_place = new_layers.get(&(graphroot, id));
        let Some((new_store, new_files)) = same_place.or_else(|| anywhere.get(id)) else { continue };
        layers_same += 1;
        let prefix = |path: &[u8]| join(format!("overlay/{id}/diff").as_bytes(), path);
        let compare = Compare { old: &old, new: &new };
        let seen = |store: usize, inode| Seen { inode, layer: id, store };
        let old_entries = old_files.iter().map(|(path, inode)| (path, seen(*old_store, inode)));
        let new_entries = new_files.iter().map(|(path, inode)| (path, seen(*new_store, inode)));
        let (changes, _) = compare.entries(old_entries, new_entries, true)?;
        layer_files.extend(changes.into_iter().map(|change| FileChange { path: prefix(&change.path), ..change }));
    }
    let (images, images_same) = images(&old, &new)?;
    let ids = |layers: &AllLayers<'_>| layers.keys().map(|(_, id)| (*id).to_owned()).collect::<BTreeSet<String>>();
    let (old_ids, new_ids) = (ids(&old_layers), ids(&new_layers));
    let layers_removed: Vec<String> = old_ids.difference(&new_ids).cloned().collect();
    let layers_added: Vec<String> = new_ids.difference(&old_ids).cloned().collect();
    let mut others = others(&old, &new)?;
    // What must differ since images or layers do says nothing more.
    let ids: Vec<&str> =
        images.iter().flat_map(|image| [image.old_id.as_deref(), image.new_id.as_deref()]).flatten().collect();
    let ids: Vec<&str> = ids.into_iter().chain(layers_removed.iter().chain(&layers_added).map(|id| &id[..])).collect();
    if !ids.is_empty() {
        others.retain(|change| !follows(change, &ids));
    }
    Ok(Diff { images, images_same, layers_removed, layers_added, layers_same, layer_files, others })
}

/// Whether a file is a record of an image or layer that has one of these ids, or of all of them.
fn follows(change: &FileChange, ids: &[&str]) -> bool {
    let path = String::from_utf8_lossy(&change.path);
    let is_record = path.ends_with("/images.json") || path.ends_with("/layers.json");
    let about = |text: &str| ids.iter().any(|id| id.len() == ID_LEN && text.contains(id));
    is_record || about(&path) || change.what.iter().any(|what| about(what))
}

/// Images that differ, each pair once with all the names under which it is one.
fn images(old: &Side<'_>, new: &Side<'_>) -> Result<(Vec<ImageChange>, usize), Error> {
    let (old_names, new_names) = (old.by_name(), new.by_name());
    let mut pairs: BTreeMap<_, Vec<&str>> = BTreeMap::new();
    let names: BTreeSet<&str> = old_names.keys().chain(new_names.keys()).copied().collect();
    for name in names {
        pairs.entry((old_names.get(name), new_names.get(name))).or_default().push(name);
    }
    let (mut same, mut changes) = (0, Vec::new());
    for ((a, b), names) in pairs {
        let (a, b) = (a.map(|&at| &old.images[at]), b.map(|&at| &new.images[at]));
        match (a, b) {
            (Some(a), Some(b)) if a.id == b.id && old.chain(Some(a)) == new.chain(Some(b)) => same += 1,
            _ => changes.push(image(old, new, a, b, &names)?),
        }
    }
    Ok((changes, same))
}

fn image(
    old: &Side<'_>,
    new: &Side<'_>,
    old_image: Option<&Listed>,
    new_image: Option<&Listed>,
    names: &[&str],
) -> Result<ImageChange, Error> {
    let (old_chain, new_chain) = (old.chain(old_image), new.chain(new_image));
    let layers_same = old_chain.iter().filter(|id| new_chain.contains(id)).count();
    let mut change = ImageChange {
        names: names.iter().map(|&name| name.to_owned()).collect(),
        change: match (old_image, new_image) {
            (None, _) => Change::Added,
            (_, None) => Change::Removed,
            _ => Change::Changed,
        },
        old_id: old_image.map(|image| image.id.clone()),
        new_id: new_image.map(|image| image.id.clone()),
        layers_same,
        layers_removed: old_chain.len().saturating_sub(layers_same),
        layers_added: new_chain.len().saturating_sub(layers_same),
        config: Vec::new(),
        files: Vec::new(),
        times: 0,
    };
    if let (Some(old_image), Some(new_image)) = (old_image, new_image) {
        change.config = config(&old.config(old_image)?, &new.config(new_image)?);
        // The same layers are compared by themselves.
        if old_chain != new_chain {
            let (a, b) = (Merged::of(old.contents, &old_chain), Merged::of(new.contents, &new_chain));
            (change.files, change.times) = Compare { old, new }.entries(a.iter(), b.iter(), false)?;
        }
    }
    Ok(change)
}

/// The fields that differ: those of `config` one by one, and those beside it, but for what says how it was built.
fn config(old: &Value, new: &Value) -> Vec<ConfigChange> {
    let mut changes = Vec::new();
    let mut compare = |old: &Value, new: &Value, skip: &[&str]| {
        let keys = |value: &Value| value.as_object().map(|map| map.keys().cloned().collect()).unwrap_or_default();
        let all: BTreeSet<String> = [keys(old), keys(new)].into_iter().flat_map(|keys: Vec<String>| keys).collect();
        for key in all.into_iter().filter(|key| !skip.contains(&&key[..])) {
            let (old, new) = (old.get(&key).unwrap_or(&Value::Null), new.get(&key).unwrap_or(&Value::Null));
            if old != new {
                changes.push(ConfigChange { field: key, old: old.clone(), new: new.clone() });
            }
        }
    };
    compare(&old["config"], &new["config"], &[]);
    compare(old, new, &["config", "rootfs", "history", "container_config", "container"]);
    changes
}

struct Compare<'a> {
    old: &'a Side<'a>,
    new: &'a Side<'a>,
}

impl Compare<'_> {
    /// What differs between two lists of entries, both in ascending order. `same_layers`: layers with one id are what is
    /// compared; else they count as the same.
    fn entries<'a>(
        &self,
        old: impl Iterator<Item = (&'a [u8], Seen<'a>)>,
        new: impl Iterator<Item = (&'a [u8], Seen<'a>)>,
        same_layers: bool,
    ) -> Result<(Vec<FileChange>, usize), Error> {
        let (mut old, mut new) = (old.peekable(), new.peekable());
        let (mut changes, mut times) = (Vec::new(), 0);
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return Ok((changes, times)),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some((old, _)), Some((new, _))) => old.cmp(new),
            };
            let a = if order.is_le() { old.next() } else { None };
            let b = if order.is_ge() { new.next() } else { None };
            let Some((path, _)) = a.or(b) else { continue };
            let (a, b) = (a.map(|(_, seen)| seen), b.map(|(_, seen)| seen));
            let (old_size, new_size) = (a.map_or(0, |seen| size(seen.inode)), b.map_or(0, |seen| size(seen.inode)));
            let (change, what) = match (a, b) {
                (Some(a), Some(b)) if !same_layers && a.layer == b.layer => continue,
                (Some(a), Some(b)) => (Change::Changed, self.differences(path, a, b, &mut times)?),
                (None, Some(b)) => (Change::Added, vec![describe(b.inode)]),
                (Some(a), None) => (Change::Removed, vec![describe(a.inode)]),
                (None, None) => continue,
            };
            if !what.is_empty() {
                changes.push(FileChange { path: path.to_vec(), change, old_size, new_size, what });
            }
        }
    }

    fn differences(&self, path: &[u8], a: Seen<'_>, b: Seen<'_>, times: &mut usize) -> Result<Vec<String>, Error> {
        let mut what = Vec::new();
        // A whiteout's metadata are nobody's.
        let whiteout = InodeKind::CharDevice(Device::WHITEOUT);
        if a.inode.kind == whiteout && b.inode.kind == whiteout {
            return Ok(what);
        }
        match (&a.inode.kind, &b.inode.kind) {
            (InodeKind::Regular { size: x, .. }, InodeKind::Regular { size: y, .. }) => {
                if x != y {
                    what.push(format!("{x} bytes -> {y}"));
                } else if !self.same_content(path, a, b)? {
                    what.push("content".to_owned());
                }
            }
            (x, y) if x != y => what.push(format!("{} -> {}", describe(a.inode), describe(b.inode))),
            _ => {}
        }
        if a.inode.mode != b.inode.mode {
            what.push(format!("mode {:04o} -> {:04o}", a.inode.mode, b.inode.mode));
        }
        if (a.inode.uid, a.inode.gid) != (b.inode.uid, b.inode.gid) {
            what.push(format!("owner {}:{} -> {}:{}", a.inode.uid, a.inode.gid, b.inode.uid, b.inode.gid));
        }
        // Containers do not see what steers the overlay, and labels are the machine's, not the image's.
        let seen = |(name, _): &&Xattr| {
            !is_machine_label(name) && (a.layer == b.layer || !name.starts_with(b"trusted.overlay."))
        };
        if !a.inode.xattrs.iter().filter(seen).eq(b.inode.xattrs.iter().filter(seen)) {
            what.push("extended attributes".to_owned());
        }
        if what.is_empty() && a.inode.mtime != b.inode.mtime {
            *times += 1;
        }
        Ok(what)
    }

    fn same_content(&self, path: &[u8], a: Seen<'_>, b: Seen<'_>) -> io::Result<bool> {
        let (old, new) = (self.old.path(a.store, a.layer, path), self.new.path(b.store, b.layer, path));
        same(&mut self.old.contents.open(&old, a.inode)?, &mut self.new.contents.open(&new, b.inode)?)
    }
}

/// Whether `path` is in one of the stores.
fn in_store(side: &Side<'_>, path: &[u8]) -> bool {
    let graphroots = side.contents.stores().iter().map(|found| found.graphroot.as_bytes());
    graphroots.into_iter().any(|graphroot| graphroot.is_empty() || path.starts_with(&join(graphroot, b"")))
}

/// Files beside the layers.
fn others(old: &Side<'_>, new: &Side<'_>) -> Result<Vec<FileChange>, Error> {
    let (a, b) = (old.contents.rest(), new.contents.rest());
    let paths: BTreeSet<&[u8]> = a.iter().chain(b.iter()).map(|(path, _)| path).collect();
    let mut changes = Vec::new();
    for path in paths {
        let (x, y) = (a.get(path), b.get(path));
        let what = match (x, y) {
            (Some(x), Some(y)) => {
                let mut what = Vec::new();
                let kinds = match (&x.kind, &y.kind) {
                    (InodeKind::Regular { .. }, InodeKind::Regular { .. }) => {
                        let is_same = size(x) == size(y)
                            && same(&mut old.contents.open(path, x)?, &mut new.contents.open(path, y)?)?;
                        if !is_same {
                            what.push("content".to_owned());
                        }
                        true
                    }
                    (x, y) => x == y,
                };
                if !kinds {
                    what.push(format!("{} -> {}", describe(x), describe(y)));
                }
                let is_made = x.stamped || y.stamped;
                if !is_made && (x.mode, x.uid, x.gid) != (y.mode, y.uid, y.gid) {
                    what.push("mode or owner".to_owned());
                }
                (Change::Changed, what)
            }
            // Of directories above a store, a directory says only what stands in it.
            (None, Some(y)) if y.kind == InodeKind::Directory && !in_store(new, path) => continue,
            (Some(x), None) if x.kind == InodeKind::Directory && !in_store(old, path) => continue,
            (None, Some(y)) => (Change::Added, vec![describe(y)]),
            (Some(x), None) => (Change::Removed, vec![describe(x)]),
            (None, None) => continue,
        };
        let (change, what) = what;
        if !what.is_empty() {
            let (old_size, new_size) = (x.map_or(0, size), y.map_or(0, size));
            changes.push(FileChange { path: path.to_vec(), change, old_size, new_size, what });
        }
    }
    Ok(changes)
}

/// Whether two streams have the same bytes.
///
/// # Errors
/// When one of them cannot be read.
pub fn same(a: &mut impl Read, b: &mut impl Read) -> io::Result<bool> {
    let (mut x, mut y) = (Vec::with_capacity(BUFFER), Vec::with_capacity(BUFFER));
    loop {
        x.clear();
        y.clear();
        a.take(BUFFER as u64).read_to_end(&mut x)?;
        b.take(BUFFER as u64).read_to_end(&mut y)?;
        if x != y {
            return Ok(false);
        }
        if x.is_empty() {
            return Ok(true);
        }
    }
}

fn size(inode: &Inode) -> u64 {
    match inode.kind {
        InodeKind::Regular { size, .. } => size,
        _ => 0,
    }
}

fn describe(inode: &Inode) -> String {
    match &inode.kind {
        InodeKind::Directory => "directory".to_owned(),
        InodeKind::Regular { .. } => "file".to_owned(),
        InodeKind::Symlink(target) => format!("symbolic link to {}", String::from_utf8_lossy(target)),
        InodeKind::CharDevice(Device::WHITEOUT) => "whiteout".to_owned(),
        InodeKind::CharDevice(Device { major, minor }) => format!("character device {major}:{minor}"),
        InodeKind::BlockDevice(Device { major, minor }) => format!("block device {major}:{minor}"),
        InodeKind::Fifo => "fifo".to_owned(),
    }
}
