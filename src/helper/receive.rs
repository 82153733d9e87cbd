//! With the four capabilities: the stream becomes files in a staging directory, as far as that takes one. What they are called in
//! the store, what its records say of them, and images, whose files are root's, are [`publish`](super::publish)'s business, which
//! has no capability any more.
//!
//! ```text
//!  request ▶ (query)    ……………………………………………………………▶ nothing
//!          ▶ (install)  layer ▶ record ▶ layer ▶ record ▶ files in .prepull-staging-N, records kept as text
//!          ▶ (unpack)   a whole tree …………………………………▶ files in .prepull-staging-N/tree
//!          ▶ (sweep, clear) what somebody has left is removed, whoever owns it
//! ```

use std::io::Read;

use super::apply::{self, Budget, Tree, copy, shown};
use super::confine::Powers;
use super::policy::{Allow, Kind as Root};
use super::root::{Dir, is_directory};
use super::staging::{self, Staging};
use super::{Error, Job, REQUEST, VERSION};
use crate::entry::{Entry, Kind};
use crate::wire::read::Reader;

/// The name of the entry that ends a layer: its record.
pub const LAYER: &[u8] = b"prepull-layer";

/// The name of the entry that ends an image: its record.
pub const IMAGE: &[u8] = b"prepull-image";

/// The most bytes of one record: as many owners and groups as a layer may have are three quarters of it.
const RECORD_MAX: u64 = 2 << 20;

/// The most bytes of all records of one stream, which are held until it ends.
const RECORDS_MAX: u64 = 64 << 20;

/// The most layers of one stream: two hundred images of twenty-five. While they are published others wait for the locks.
const LAYERS_MAX: usize = 5000;

/// The most bytes that tell one tree from another.
const IDENTITY_MAX: usize = 128;

/// What an entry is refused for.
pub(super) const OPEN: &str = "another layer or image is not complete yet";
pub(super) const NO_FILE: &str = "it is not a file of a layer or an image";

/// What the stream is refused for at its end.
pub(super) const INCOMPLETE: &str = "the last layer or image is not complete";

/// A tree in staging.
pub const STAGED: &[u8] = b"tree";

/// A tree in its root, of which parts may have their places already.
pub const TREE: &[u8] = b".prepull-tree";

/// Says that all of a tree is in [`TREE`] or in its place.
pub const COMPLETE: &[u8] = b".prepull-complete";

/// A directory that mkfs makes in an otherwise empty file system, and that stays as it is.
const LOST_FOUND: &[u8] = b"lost+found";

/// What a layer takes beside its content: directories, and files with names of layers.
const LAYER_INODES: usize = 9;

/// What is to be done without capabilities; the texts are lines that nobody has looked into.
#[derive(Debug)]
pub enum Work {
    /// Say what is lacking of these layers, and of images with the records that come.
    Query(String, Option<Entry>),
    /// Publish these, and the images that come.
    Install(Received),
    /// Remove these names and ids.
    Remove(String),
    /// Remove what no record names; so many left-overs have been removed already.
    Collect(u64),
    /// Nothing: so many left-overs have been removed.
    Swept(u64),
    /// Publish a tree, or the rest of one that was interrupted (then the flag is true); the text tells one tree from another.
    Tree(Staging, bool, String),
}

/// Layers in staging.
#[derive(Debug)]
pub struct Received {
    /// Where they are: layers and tar-splits by their names in the store.
    pub staging: Staging,
    /// Their ids, their records, and the bytes of their files.
    pub layers: Vec<(String, String, u64)>,
    /// The first entry after them.
    pub next: Option<Entry>,
}

/// A layer of which more may come.
struct Layer {
    id: String,
    tree: Tree,
    has_split: bool,
    /// Bytes that the budget had left before it, then the bytes of its files.
    bytes: u64,
}

/// The stream.
#[derive(Debug)]
pub struct Stream<'a, R> {
    /// What comes.
    pub input: &'a mut Reader<R>,
    /// What may still come.
    pub budget: &'a mut Budget,
    /// Bytes of records that may still come.
    records: u64,
}

/// Takes what needs capabilities from the stream.
///
/// # Errors
/// When it is not what it should be, or not allowed, or something cannot be made: then nothing is left of it.
pub fn receive<R: Read>(stream: &mut Stream<'_, R>, job: &Job) -> Result<Work, Error> {
    let (root, powers, allow) = (&job.target, stream.budget.powers, stream.budget.allow.clone());
    let first = stream.input.next_entry()?.filter(|entry| entry.path == REQUEST);
    let text = stream.text(&first.ok_or_else(|| Error::request("the stream does not begin with it"))?)?;
    let (word, rest) = request(&text, job.root, &allow)?;
    if !(rest.is_empty() || matches!(word, "query" | "remove") || word == "unpack" && rest.len() <= IDENTITY_MAX) {
        return Err(Error::request("it has more lines than belong to it"));
    }
    match (word, allow.kind) {
        ("query", Root::Storage) => {
            let first = stream.input.next_entry()?;
            // An install begins so, also one that has nothing to do.
            if !(rest.is_empty() && first.is_none()) {
                staging::sweep(root, powers);
            }
            Ok(Work::Query(rest.to_owned(), first))
        }
        ("install", Root::Storage) => {
            staging::sweep(root, powers);
            let mut received =
                Received { staging: Staging::new(root, staging::RUNS_MAX)?, layers: Vec::new(), next: None };
            // Who has gone meanwhile wants nothing published; later it could not be removed.
            match stream.layers(&mut received).and_then(|()| job.until.check()) {
                Ok(()) => Ok(Work::Install(received)),
                Err(error) => received.staging.abandon(root, powers, error),
            }
        }
        ("unpack", Root::Rootfs) => {
            staging::sweep(root, powers);
            // First of all: it makes sure that nobody else can put something there that `clear` would remove, and while it is there
            // nobody else writes a tree here.
            let staging = Staging::new(root, 1)?;
            // The rest of a run that was interrupted when its tree was complete.
            if root.has(COMPLETE) {
                return Ok(Work::Tree(staging, true, rest.to_owned()));
            }
            match clear(root, powers).and_then(|()| stream.tree(&staging)) {
                Ok(()) => Ok(Work::Tree(staging, false, rest.to_owned())),
                Err(error) => staging.abandon(root, powers, error),
            }
        }
        ("look", Root::Rootfs) => Ok(Work::Swept(0)),
        ("remove" | "collect" | "sweep", Root::Storage) | ("clear", Root::Rootfs) => {
            if let Some(entry) = stream.input.next_entry()? {
                return Err(Error::refused(&entry, "it does not belong to this request"));
            }
            let swept = staging::sweep(root, powers);
            Ok(match word {
                "remove" => Work::Remove(rest.to_owned()),
                "collect" => Work::Collect(swept),
                _ => Work::Swept(swept),
            })
        }
        _ => Err(Error::request("the policy has another `kind` for this directory, or the word is unknown")),
    }
}

/// The word of the request, and the lines that belong to it, if it is meant for this directory.
fn request<'a>(text: &'a str, served: (u64, u64), allow: &Allow) -> Result<(&'a str, &'a str), Error> {
    let take = |text: &'a str, field| text.strip_prefix(field)?.split_once('\n');
    let Some((VERSION, text)) = take(text, "prepull ") else {
        return Err(Error::request("another version of prepull has made it (install both programs of one version)"));
    };
    let (word, text) = take(text, "request ").ok_or_else(|| Error::request("it has no word"))?;
    let (asked, text) = take(text, "graphroot ").ok_or_else(|| Error::request("it has no graphroot"))?;
    if allow.kind == Root::Storage && asked != allow.graphroot() {
        return Err(Error::request("the policy has another graphroot for this directory (--graphroot)"));
    }
    // A service serves the directory that its unit names, whatever its caller has in mind.
    match take(text, "root ") {
        Some((root, rest)) if root == format!("{}:{}", served.0, served.1) => Ok((word, rest)),
        _ => Err(Error::request("another directory than the one that is served")),
    }
}

/// # Errors
/// When there are more than that.
pub fn at_most(count: usize, most: usize) -> Result<(), Error> {
    if count <= most { Ok(()) } else { Err(Error::request("too many layers or images at once")) }
}

/// Makes sure that nothing is in the root of a tree.
fn clear(root: &Dir, powers: Powers) -> Result<(), Error> {
    let failed = |error| Error::system("looking into the directory", error);
    if root.stat(TREE).is_ok_and(|found| is_directory(&found)) {
        apply::remove(powers, root, TREE).map_err(failed)?;
    }
    let listed = root.names().map_err(failed)?;
    match listed.iter().find(|name| *name != LOST_FOUND && !name.starts_with(staging::PREFIX)) {
        Some(name) => Err(Error::said(format!("the directory is not empty: {} is in it", shown(name)))),
        None => Ok(()),
    }
}

impl<'a, R: Read> Stream<'a, R> {
    /// The beginning of one.
    pub fn new(input: &'a mut Reader<R>, budget: &'a mut Budget) -> Self {
        Self { input, budget, records: RECORDS_MAX }
    }

    /// Layers, each ended by its record, and the first entry after them.
    fn layers(&mut self, received: &mut Received) -> Result<(), Error> {
        let mut open: Option<Layer> = None;
        // The tar-split ends the layer's files, whose bytes are counted then.
        let is_open = |layer: &Layer, id: &[u8]| layer.id.as_bytes() == id && !layer.has_split;
        while let Some(entry) = self.input.next_entry()? {
            if entry.path == LAYER {
                let record = self.text(&entry)?;
                match open.take() {
                    Some(Layer { id, has_split: true, bytes, .. }) => received.layers.push((id, record, bytes)),
                    _ => return Err(Error::refused(&entry, "a record without its files")),
                }
                at_most(received.layers.len(), LAYERS_MAX)?;
                continue;
            }
            if entry.path == IMAGE {
                received.next = Some(entry);
                break;
            }
            let why = match (self.parts(&entry)?, &mut open) {
                ([Some(b"overlay"), Some(id), Some(b"diff"), _], Some(layer)) if is_open(layer, id) => {
                    layer.tree.place(self.budget, &entry, self.input)?;
                    continue;
                }
                ([Some(b"overlay"), Some(id), Some(b"diff"), None], None) if entry.kind == Kind::Directory => {
                    open = Some(self.layer(&received.staging, id, &entry)?);
                    continue;
                }
                ([Some(b"overlay-layers"), Some(name), None, None], Some(layer))
                    if name == format!("{}.tar-split.gz", layer.id).as_bytes() && !layer.has_split =>
                {
                    layer.has_split = true;
                    layer.bytes -= self.budget.allow.max_bytes;
                    self.file(&received.staging.dir, name, &entry)?;
                    continue;
                }
                ([Some(b"overlay-images"), _, Some(_), None], _) => {
                    received.next = Some(entry);
                    break;
                }
                ([Some(b"overlay"), _, Some(b"diff"), _], _) => OPEN,
                ([Some(b"overlay-layers"), Some(_), None, None], _) => "it does not belong to the layer before it",
                _ => NO_FILE,
            };
            return Err(Error::refused(&entry, why));
        }
        if open.is_none() { Ok(()) } else { Err(Error::request(INCOMPLETE)) }
    }

    /// Begins a layer.
    fn layer(&mut self, to: &Staging, id: &[u8], entry: &Entry) -> Result<Layer, Error> {
        let id = text_id(id).ok_or_else(|| Error::refused(entry, "its layer has no valid id"))?;
        (0..LAYER_INODES).try_for_each(|_| self.budget.take(entry, 0))?;
        let diff = to.dir.make(id.as_bytes(), 0o700).and_then(|layer| layer.make(b"diff", 0o700));
        let tree = diff.and_then(|diff| Tree::new(diff, [&entry.path[..], b"/"].concat(), false));
        let tree = tree.map_err(|error| Error::system(format!("making layer {id}"), error))?;
        Ok(Layer { id, tree, has_split: false, bytes: self.budget.allow.max_bytes })
    }

    /// The first components of a path in the store, and the rest of it.
    ///
    /// # Errors
    /// When it is not in there.
    pub fn parts<'e>(&self, entry: &'e Entry) -> Result<[Option<&'e [u8]>; 4], Error> {
        let graphroot = self.budget.allow.graphroot().trim_start_matches('/').as_bytes();
        let below = entry.path.strip_prefix(graphroot).and_then(|path| path.strip_prefix(b"/"));
        let mut parts =
            below.ok_or_else(|| Error::refused(entry, "it is not in the store"))?.splitn(4, |&byte| byte == b'/');
        Ok([parts.next(), parts.next(), parts.next(), parts.next()])
    }

    /// A whole tree.
    fn tree(&mut self, staging: &Staging) -> Result<(), Error> {
        let tree = staging.dir.make(STAGED, 0o700).and_then(|tree| Tree::new(tree, Vec::new(), true));
        let mut tree = tree.map_err(|error| Error::system("making the tree", error))?;
        while let Some(entry) = self.input.next_entry()? {
            if entry.path.starts_with(b".prepull-") {
                return Err(Error::refused(&entry, "the name is prepull's own"));
            }
            // It would never find its place.
            if entry.path.split(|&byte| byte == b'/').next() == Some(LOST_FOUND) {
                return Err(Error::refused(&entry, "the directory of this name belongs to the file system"));
            }
            tree.place(self.budget, &entry, self.input)?;
        }
        Ok(())
    }

    /// The lines of an entry that is a record.
    ///
    /// # Errors
    /// When it is none, or cannot be read.
    pub fn text(&mut self, entry: &Entry) -> Result<String, Error> {
        let Kind::Regular { size: size @ 1..=RECORD_MAX } = entry.kind else {
            return Err(Error::refused(entry, "it is not a small file"));
        };
        let left = self.records.checked_sub(size);
        self.records = left.ok_or_else(|| Error::refused(entry, "too many records at once"))?;
        let mut text = String::new();
        self.input.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Big data files and tar-splits: root's, and for nobody else, whatever the header says.
    ///
    /// # Errors
    /// When it is none, or cannot be made.
    pub fn file(&mut self, directory: &Dir, name: &[u8], entry: &Entry) -> Result<(), Error> {
        let Kind::Regular { size } = entry.kind else { return Err(Error::refused(entry, "it is not a regular file")) };
        self.budget.take(entry, size)?;
        let failed = |error| Error::system(format!("making {}", shown(&entry.path)), error);
        let file = directory.create(name, 0o600).map_err(failed)?;
        copy(self.input, &file, size, entry)
    }
}

/// An id in a path.
#[must_use]
pub fn text_id(id: &[u8]) -> Option<String> {
    std::str::from_utf8(id).ok().filter(|id| is_id(id)).map(str::to_owned)
}

/// 64 lower-case hexadecimal digits.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
