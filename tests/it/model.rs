//! What layers on top of each other are, said as plainly as it goes, after the OCI image spec (layer.md): no tests of its own.
//!
//! A map from path to node, and nothing of prepull's. A layer is applied in two steps, as containers/storage does it:
//! first its entries become a tree of their own, then that tree goes on top of what is there. Where this is not what
//! layer.md says of one root file system that layers are unpacked into one after the other, a comment says so.

use std::collections::BTreeMap;

use prepull::digest::Digest;

use crate::raw::{Raw, char, dir, fifo, file, link, mark, sym};
use crate::stores::{Node as Shown, Time, Tree as ShownTree};

/// Components below the root.
pub type Path = Vec<&'static str>;

/// What an entry says of its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    pub mode: u32,
    pub owner: (u32, u32),
    /// The value of `user.k`.
    pub attribute: Option<u8>,
}

/// One entry of a layer.
#[derive(Debug, Clone)]
pub enum Op {
    Dir(Path, Meta),
    File(Path, Meta, String),
    Symlink(Path, (u32, u32), String),
    Fifo(Path, Meta),
    /// Also 0:0, which overlayfs takes for a whiteout wherever it comes from.
    Char(Path, Meta, u8),
    /// The new name, and the one that is there.
    Link(Path, Path, Meta),
    Whiteout(Path),
    Opaque(Path),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Dir,
    File(String),
    Symlink(String),
    Fifo,
    Char(u8),
    Whiteout,
}

#[derive(Debug, Clone)]
struct Inode {
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
    attribute: Option<u8>,
}

/// A layer's entries as a tree.
#[derive(Debug, Default)]
struct Layer {
    inodes: Vec<Inode>,
    names: BTreeMap<Path, usize>,
    opaque: Vec<Path>,
    root: Option<Meta>,
    /// Directories with a header of their own: also those that were replaced.
    dated: Vec<Path>,
    /// As written in the tar, cleaned.
    written: Vec<String>,
}

/// How a path is written: entries with one path are told apart by it, so that a layer can have a name again.
const SPELLINGS: [&str; 3] = ["", "/", "../"];

fn below(path: &Path, above: &[&str]) -> bool {
    path.len() > above.len() && path.starts_with(above)
}

impl Layer {
    fn kind(&self, path: &[&'static str]) -> Option<&Kind> {
        self.names.get(path).map(|&inode| &self.inodes[inode].kind)
    }

    /// Takes the name out with all below it. False where containers/storage would refuse the layer: it gives a directory its
    /// time at the end, and must find something by its path.
    fn clear(&mut self, path: &Path, follows: bool) -> bool {
        let gone = |dated: &Path| below(dated, path) || follows && dated == path;
        if self.names.contains_key(path) && self.dated.iter().any(gone) {
            return false;
        }
        self.names.retain(|name, _| name != path && !below(name, path));
        self.opaque.retain(|name| name != path && !below(name, path));
        true
    }

    /// Parents that have no entry of their own are made: root's, 0755. So a layer that has no entry for a directory of a
    /// layer below changes its owner and mode all the same, as it does in every containers/storage.
    fn parents(&mut self, path: &[&'static str]) {
        for length in 1..path.len() {
            if !self.names.contains_key(&path[..length]) {
                self.make(path[..length].to_vec(), Kind::Dir, &Meta { mode: 0o755, owner: (0, 0), attribute: None });
            }
        }
    }

    fn make(&mut self, path: Path, kind: Kind, meta: &Meta) {
        self.names.insert(path, self.inodes.len());
        self.inodes.push(Inode { kind, mode: meta.mode, owner: meta.owner, attribute: meta.attribute });
    }

    fn replace(&mut self, path: &Path, kind: Kind, meta: &Meta) -> bool {
        let follows = matches!(kind, Kind::Symlink(_));
        self.clear(path, follows) && {
            self.parents(path);
            self.make(path.clone(), kind, meta);
            true
        }
    }

    /// False for what containers/storage refuses, and for paths through symbolic links: those are for other tests.
    fn apply(&mut self, op: &Op) -> bool {
        let path = op.path();
        if (1..path.len()).any(|length| self.kind(&path[..length]).is_some_and(|kind| *kind != Kind::Dir)) {
            return false;
        }
        match op {
            Op::Dir(path, meta) if path.is_empty() => self.root = Some(meta.clone()),
            Op::Dir(path, meta) => {
                if self.kind(path) == Some(&Kind::Dir) {
                    let inode = self.names[path];
                    let inode = &mut self.inodes[inode];
                    (inode.mode, inode.owner) = (meta.mode, meta.owner);
                    inode.attribute = meta.attribute.or(inode.attribute);
                } else if !self.replace(path, Kind::Dir, meta) {
                    return false;
                }
                self.dated.push(path.clone());
            }
            Op::File(path, meta, data) => return self.replace(path, Kind::File(data.clone()), meta),
            Op::Symlink(path, owner, target) => {
                let meta = Meta { mode: 0o777, owner: *owner, attribute: None };
                return self.replace(path, Kind::Symlink(target.clone()), &meta);
            }
            Op::Fifo(path, meta) => return self.replace(path, Kind::Fifo, meta),
            Op::Char(path, meta, 0) => return self.replace(path, Kind::Whiteout, meta),
            Op::Char(path, meta, minor) => return self.replace(path, Kind::Char(*minor), meta),
            Op::Link(path, target, meta) => {
                let Some(&number) = self.names.get(target) else { return false };
                let kind = &self.inodes[number].kind;
                let is_symlink = matches!(kind, Kind::Symlink(_));
                let is_gone = target == path || below(target, path);
                if matches!(kind, Kind::Dir | Kind::Whiteout) || is_gone || !self.clear(path, is_symlink) {
                    return false;
                }
                self.parents(path);
                self.names.insert(path.clone(), number);
                // One inode, and the last header counts.
                let inode = &mut self.inodes[number];
                inode.owner = meta.owner;
                if !is_symlink {
                    inode.mode = meta.mode;
                }
                if matches!(inode.kind, Kind::File(_)) {
                    inode.attribute = meta.attribute.or(inode.attribute);
                }
            }
            Op::Whiteout(path) => {
                // Of a name that the layer itself has: refused, though layer.md says that only lower layers count.
                if self.names.contains_key(path) {
                    return false;
                }
                self.parents(path);
                self.make(path.clone(), Kind::Whiteout, &Meta { mode: 0, owner: (0, 0), attribute: None });
            }
            // layer.md would have all of the lower layers hidden; overlayfs does not look for it on a layer's root.
            Op::Opaque(path) if path.is_empty() => {}
            Op::Opaque(path) => {
                if self.kind(path).is_some_and(|kind| *kind != Kind::Dir) {
                    return false;
                }
                self.parents(&[&path[..], &[""]].concat());
                self.opaque.push(path.clone());
            }
        }
        true
    }
}

impl Op {
    fn path(&self) -> &Path {
        match self {
            Self::Dir(path, _)
            | Self::File(path, ..)
            | Self::Symlink(path, ..)
            | Self::Fifo(path, _)
            | Self::Char(path, ..)
            | Self::Link(path, ..)
            | Self::Whiteout(path)
            | Self::Opaque(path) => path,
        }
    }

    /// As an entry of a tar.
    fn entry(&self, spelling: &str) -> Raw {
        let name = format!("{spelling}{}", self.path().join("/"));
        let with = |raw: Raw, meta: &Meta| {
            let raw = raw.mode(meta.mode.into()).owner(meta.owner.0.into(), meta.owner.1.into());
            match meta.attribute {
                Some(value) => raw.xattr("user.k", value.to_string()),
                None => raw,
            }
        };
        match self {
            Self::Dir(path, meta) => with(dir(if path.is_empty() { "/".to_owned() } else { name }), meta),
            Self::File(_, meta, data) => with(file(name), meta).data(data),
            Self::Symlink(_, owner, target) => sym(name, target).owner(owner.0.into(), owner.1.into()),
            // No other kind takes attributes of users.
            Self::Fifo(_, meta) => with(fifo(name), &Meta { attribute: None, ..meta.clone() }),
            Self::Char(_, meta, minor) => {
                let major = if *minor == 0 { 0 } else { 1 };
                with(char(name, major, i64::from(*minor)), &Meta { attribute: None, ..meta.clone() })
            }
            Self::Link(_, target, meta) => with(link(name, target.join("/")), meta),
            Self::Whiteout(path) => {
                let (last, directory) = path.split_last().unwrap();
                let directory: String = directory.iter().map(|part| format!("{part}/")).collect();
                mark(format!("{spelling}{directory}.wh.{last}"))
            }
            Self::Opaque(path) if path.is_empty() => mark(format!("{spelling}.wh..wh..opq")),
            Self::Opaque(_) => mark(format!("{name}/.wh..wh..opq")),
        }
    }
}

#[derive(Debug, Clone)]
struct Merged {
    inode: Inode,
    /// Which layer's which inode it is, and how many names it has there.
    identity: (usize, usize),
    names: usize,
}

/// Layers on top of each other.
#[derive(Debug, Default)]
pub struct Model {
    merged: BTreeMap<Path, Merged>,
    root: Option<Meta>,
    layers: usize,
}

impl Model {
    /// Puts a layer with those of `ops` on top that make a valid layer; gives its entries.
    pub fn layer(&mut self, ops: &[Op]) -> Vec<Raw> {
        let (mut layer, mut entries) = (Layer::default(), Vec::new());
        for op in ops {
            // What a path was written as may not come again: neither tar-split nor prepull takes it.
            let entry = SPELLINGS.iter().map(|spelling| (spelling, op.entry(spelling).name()));
            let mut fresh = entry.filter(|(_, name)| !layer.written.contains(name));
            let Some((spelling, name)) = fresh.next() else { continue };
            // A link may not have attributes that what it leads to cannot take.
            let mut op = op.clone();
            if let Op::Link(_, target, meta) = &mut op
                && !matches!(layer.kind(target), Some(Kind::File(_)))
            {
                meta.attribute = None;
            }
            if layer.apply(&op) {
                layer.written.push(name);
                entries.push(op.entry(spelling));
            }
        }
        self.stack(&layer);
        entries
    }

    fn stack(&mut self, layer: &Layer) {
        // A layer's root without an entry has the owner of the root below it, and of its mode what umask 022 leaves.
        let inherited = self.root.take().map(|root| Meta { mode: root.mode & 0o755, ..root });
        self.root = layer.root.clone().or(inherited);
        for (path, &number) in &layer.names {
            let inode = &layer.inodes[number];
            let is_dir = |merged: &Merged| merged.inode.kind == Kind::Dir;
            // What a whiteout hid and the same layer then made a directory of is merged: the marker had the same name in
            // the layer's own tree, and is gone. layer.md would have the lower directory stay hidden.
            let stays = inode.kind == Kind::Dir && self.merged.get(path).is_some_and(is_dir);
            if !stays || layer.opaque.contains(path) {
                self.merged.retain(|name, _| name != path && !below(name, path));
            }
            if inode.kind != Kind::Whiteout {
                let names = layer.names.values().filter(|&&other| other == number).count();
                let node = Merged { inode: inode.clone(), identity: (self.layers, number), names };
                self.merged.insert(path.clone(), node);
            }
        }
        self.layers += 1;
    }

    /// What a mount shows.
    pub fn shown(&self) -> ShownTree {
        let mut first = BTreeMap::new();
        let show = |(path, node): (&Path, &Merged)| {
            let Inode { kind, mode, owner, attribute } = &node.inode;
            let (kind, content) = match kind {
                Kind::Dir => ("dir", String::new()),
                Kind::File(data) => ("file", format!("{} {}", data.len(), Digest::of(data.as_bytes()))),
                Kind::Symlink(target) => ("symlink", target.clone()),
                Kind::Fifo => ("fifo", String::new()),
                Kind::Char(minor) => ("char", format!("1:{minor}")),
                Kind::Whiteout => unreachable!("no whiteout is merged"),
            };
            let name = path.join("/");
            let link = (kind != "dir" && node.names > 1)
                .then(|| first.entry(node.identity).or_insert_with(|| name.clone()).clone());
            let attribute = attribute.filter(|_| matches!(kind, "file" | "dir"));
            let xattrs = attribute.map(|value| ("user.k".to_owned(), value.to_string())).into_iter().collect();
            (name, Shown { kind, mode: *mode, owner: *owner, time: Time::Made, content, xattrs, link })
        };
        let mut shown: ShownTree = self.merged.iter().map(show).collect();
        let root = self.root.clone().unwrap_or(Meta { mode: 0o555, owner: (0, 0), attribute: None });
        let (kind, mode, owner) = ("dir", root.mode, root.owner);
        let node =
            Shown { kind, mode, owner, time: Time::Made, content: String::new(), xattrs: BTreeMap::new(), link: None };
        shown.insert(".".to_owned(), node);
        shown
    }

    /// All of it as one layer that has the same names: directories, and others.
    pub fn flat(&self) -> Vec<Raw> {
        let entry = |(path, node): (&Path, &Merged)| {
            let name = path.join("/");
            if node.inode.kind == Kind::Dir { dir(name) } else { file(name) }
        };
        self.merged.iter().map(entry).collect()
    }
}
