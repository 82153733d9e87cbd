//! What is on the disk while a layer is unpacked, without a disk.
//!
//! [`Tree::place`] does to a tree in memory what `archive.Unpack` and `extractTarFileEntry` of containers/storage
//! (`pkg/archive/archive.go`) and its overlay whiteout converter (`archive_linux.go`) do to the layer's `diff` directory, chrooted
//! and as root with umask 022: parents made, symlinks walked, entries replaced, hardlinks sharing one inode whose last header
//! wins. Where the kernel would say no, so does this.

use std::cell::Cell;
use std::hash::BuildHasher as _;

use hashbrown::HashTable;

use super::inode::{
    CAPABILITY, Verdict, change_mode, file_time, judge_xattr, new_inode, set_acl, set_owner, symlink_time,
};
pub use super::inode::{Inode, InodeKind, Xattrs};
use super::path::{NAME_MAX, PATH_MAX, below_root, clean, components, split_last};
use super::tar::Header;
use crate::entry::{Device, Timestamp, Xattr};

/// The prefix of a whiteout's name (OCI image spec, layer.md, "Whiteouts").
pub const WHITEOUT_PREFIX: &[u8] = b".wh.";

/// The name of an opaque marker (OCI image spec, layer.md, "Opaque Whiteout").
pub const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";

/// The most entries of one layer: twice what the largest known images have; each takes about 150 bytes of memory.
pub const ENTRIES_MAX: usize = 2_000_000;

/// The most bytes of names, link targets and extended attributes that one layer may have: 64 MiB, thirty times what a
/// Debian with a desktop has. It bounds the memory that a small hostile blob can ask for.
pub const METADATA_MAX: usize = 64 << 20;

/// The most bytes of the paths of all entries of one layer: 256 MiB, more than the most entries have at the usual length. Who
/// puts many short names into one deep directory, through a symbolic link, would have each path written out.
pub const PATHS_MAX: u64 = 256 << 20;

/// The most bytes of extended attributes, names and values, that one inode may have: what one value may have
/// (Linux `XATTR_SIZE_MAX`) and some more. ext4, where most stores lie, takes less than 4 KiB.
pub const XATTRS_MAX: usize = 72 << 10;

/// The most symbolic links followed in one walk (Linux `MAXSYMLINKS`).
const SYMLINKS_MAX: usize = 40;

/// The most components of symbolic links' targets that are walked for one layer. Where every entry of the largest known images
/// lies behind a link it is a tenth of this; without a bound, a megabyte of links that lead through links takes hours.
pub const LINK_STEPS_MAX: u64 = 100_000_000;

/// A name in a directory. The root is number 0.
pub type DirentId = u32;

/// Why an entry cannot be placed: what the kernel would have said, and to what.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlaceError {
    /// A parent is no directory.
    #[error("a parent of it is not a directory")]
    NotDirectory,
    /// A parent is a symbolic link to nothing in this layer.
    #[error("it lies behind a symbolic link that leads nowhere in this layer")]
    DanglingParent,
    /// Too many symbolic links.
    #[error("too many levels of symbolic links")]
    Loop,
    /// More than [`LINK_STEPS_MAX`].
    #[error("more than {LINK_STEPS_MAX} steps through symbolic links in one layer")]
    TooManySteps,
    /// A component or the path is too long.
    #[error("the name is too long for a file system (255 bytes a component, 4095 a path)")]
    NameTooLong,
    /// A hardlink to something that this layer does not have (yet).
    #[error("hardlink to {0:?}, which is not (yet) in this layer")]
    NoTarget(String),
    /// A hardlink to a directory.
    #[error("hardlink to {0:?}, which is a directory")]
    LinkToDirectory(String),
    /// A whiteout of something that the same layer has already.
    #[error("whiteout of an entry that the same layer has already")]
    WhiteoutExists,
    /// The root replaced by something else.
    #[error("it would replace the root directory")]
    Root,
    /// A symbolic link that is empty or too long.
    #[error("symbolic link with an empty or overlong target")]
    BadSymlink,
    /// An unknown type.
    #[error("tar entry type {:?} is not supported", char::from(*.0))]
    Type(u8),
    /// An attribute that the kernel would refuse.
    #[error("extended attribute {0:?} is not valid here")]
    Xattr(String),
    /// Too many entries.
    #[error("more than {ENTRIES_MAX} entries in one layer")]
    TooMany,
    /// Too many bytes of names, link targets and attributes.
    #[error("more than {} MiB of names, link targets and extended attributes in one layer", METADATA_MAX >> 20)]
    TooMuchMetadata,
    /// Too many bytes of paths.
    #[error("more than {} MiB of paths in one layer", PATHS_MAX >> 20)]
    TooManyPaths,
    /// Too many bytes of attributes.
    #[error("more than {} KiB of extended attributes", XATTRS_MAX >> 10)]
    TooManyXattrs,
    /// A directory that was replaced, and now its name leads nowhere when its time is to be set.
    #[error("the directory was replaced by something that has no time to set")]
    DirectoryGone,
}

/// What a [`Tree`] did with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// It names the root without claiming it, or a whiteout that changes nothing.
    Ignored,
    /// A whiteout or an opaque marker: no content of its own.
    Whiteout,
    /// A new name.
    New(DirentId),
    /// Metadata of something that was there.
    Changed,
}

/// How many dropped attributes are remembered by name.
const DROPPED_SHOWN: usize = 10;

/// Extended attributes that were left out.
#[derive(Debug, Default)]
pub struct Dropped {
    /// How many.
    pub count: usize,
    /// The first few: path and attribute.
    pub first: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug)]
struct Dirent {
    parent: DirentId,
    name: (u32, u8),
    /// Length of the whole path: below [`PATH_MAX`], so no walk over the tree is deep.
    path_len: u16,
    inode: u32,
    live: bool,
    /// The name made last in this directory; 0 for none, since the root is in no directory.
    last_child: DirentId,
    /// The name made before this one in the same directory.
    previous: DirentId,
}

enum Walk {
    Found(DirentId),
    /// The directory is there, the name is not.
    Missing(DirentId, Vec<u8>),
}

enum WalkError {
    NotFound,
    NotDirectory,
    Loop,
    TooManySteps,
    NameTooLong,
}

impl From<WalkError> for PlaceError {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::NotFound => Self::DanglingParent,
            WalkError::NotDirectory => Self::NotDirectory,
            WalkError::Loop => Self::Loop,
            WalkError::TooManySteps => Self::TooManySteps,
            WalkError::NameTooLong => Self::NameTooLong,
        }
    }
}

/// A layer's tree under construction.
#[derive(Debug)]
pub struct Tree {
    names: Vec<u8>,
    dirents: Vec<Dirent>,
    inodes: Vec<Inode>,
    /// The name under which each inode was made.
    first_names: Vec<DirentId>,
    lookup: HashTable<DirentId>,
    hasher: hashbrown::DefaultHashBuilder,
    root_claimed: bool,
    disturbed: bool,
    created_parents: Vec<DirentId>,
    /// Bytes counted against [`METADATA_MAX`].
    metadata: usize,
    /// Bytes counted against [`PATHS_MAX`].
    paths: u64,
    /// Components counted against [`LINK_STEPS_MAX`].
    link_steps: Cell<u64>,
    /// Directories with a header that were replaced: path, inode number, time.
    replaced_directories: Vec<(Vec<u8>, u32, Timestamp)>,
    dropped_xattrs: Dropped,
}

impl Default for Tree {
    fn default() -> Self {
        let root = Inode {
            kind: InodeKind::Directory,
            mode: 0o555,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            stamped: true,
            opaque: false,
            whiteout: false,
            xattrs: Xattrs::new(),
        };
        Self {
            names: Vec::new(),
            dirents: vec![Dirent {
                parent: 0,
                name: (0, 0),
                path_len: 0,
                inode: 0,
                live: true,
                last_child: 0,
                previous: 0,
            }],
            inodes: vec![root],
            first_names: vec![0],
            lookup: HashTable::new(),
            hasher: hashbrown::DefaultHashBuilder::default(),
            root_claimed: false,
            disturbed: false,
            created_parents: Vec::new(),
            metadata: 0,
            paths: 0,
            link_steps: Cell::new(0),
            replaced_directories: Vec::new(),
            dropped_xattrs: Dropped::default(),
        }
    }
}

impl Tree {
    /// An empty layer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether something changed that had been placed before: then entries in order of arrival are not the final tree.
    pub fn is_disturbed(&self) -> bool {
        self.disturbed
    }

    /// Whether an entry `/` gave the root owner, mode and time of its own.
    pub fn root_claimed(&self) -> bool {
        self.root_claimed
    }

    /// Directories made since the last call because an entry's parents were missing, outermost first.
    pub fn take_created_parents(&mut self) -> Vec<DirentId> {
        std::mem::take(&mut self.created_parents)
    }

    /// Attributes left out since they would steer the overlay mount.
    pub fn dropped_xattrs(&self) -> &Dropped {
        &self.dropped_xattrs
    }

    /// All names that are left, in order of arrival, which puts parents before children. The root is not among them.
    pub fn live(&self) -> impl Iterator<Item = DirentId> + '_ {
        (1..self.dirents.len() as u32).filter(|&dirent| self.dirents[dirent as usize].live)
    }

    /// Returns how many names there are or have been, the root included.
    pub fn len(&self) -> usize {
        self.dirents.len()
    }

    /// Returns whether there is nothing but the root.
    pub fn is_empty(&self) -> bool {
        self.len() == 1
    }

    /// The directory that holds a name.
    pub fn parent(&self, dirent: DirentId) -> DirentId {
        self.dirents[dirent as usize].parent
    }

    /// A name without its directory.
    pub fn name(&self, dirent: DirentId) -> &[u8] {
        let (start, length) = self.dirents[dirent as usize].name;
        &self.names[start as usize..][..length.into()]
    }

    /// The number of the inode behind a name.
    pub fn inode_number(&self, dirent: DirentId) -> u32 {
        self.dirents[dirent as usize].inode
    }

    /// The name under which the inode behind a name was made. It is gone if the tree [is disturbed](Self::is_disturbed).
    pub fn first_name(&self, dirent: DirentId) -> DirentId {
        self.first_names[self.inode_number(dirent) as usize]
    }

    /// The inode behind a name.
    pub fn inode(&self, dirent: DirentId) -> &Inode {
        &self.inodes[self.dirents[dirent as usize].inode as usize]
    }

    /// The inode behind a name, to be changed.
    pub fn inode_mut(&mut self, dirent: DirentId) -> &mut Inode {
        &mut self.inodes[self.dirents[dirent as usize].inode as usize]
    }

    /// The path of a name below the layer's root.
    pub fn path(&self, dirent: DirentId) -> Vec<u8> {
        let mut chain = Vec::new();
        let mut at = dirent;
        while at != 0 {
            chain.push(at);
            at = self.parent(at);
        }
        let mut path = Vec::new();
        for at in chain.into_iter().rev() {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(self.name(at));
        }
        path
    }

    /// Returns the name at `path`, which is relative and clean; no link is followed.
    #[must_use]
    pub fn find(&self, path: &[u8]) -> Option<DirentId> {
        let mut parts = components(path);
        parts.try_fold(0, |at, part| self.child(at, part))
    }

    /// Does what unpacking `header` would do. Content is the caller's to write.
    ///
    /// # Errors
    /// When unpacking would fail.
    pub fn place(&mut self, header: &Header) -> Result<Placed, PlaceError> {
        if self.dirents.len() > ENTRIES_MAX {
            return Err(PlaceError::TooMany);
        }
        let xattrs: usize = header.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.metadata += xattrs + if header.typeflag == b'2' { header.link.len() } else { 0 };
        if self.metadata + self.names.len() > METADATA_MAX {
            return Err(PlaceError::TooMuchMetadata);
        }
        let name = clean(&header.name);
        let path = below_root(&name);
        if path.len() >= PATH_MAX {
            return Err(PlaceError::NameTooLong);
        }
        let (directory, base) = split_last(&path);
        if !name.ends_with(b"/") {
            // Lexists: only "no such file" makes parents; other errors show up below.
            let parent = below_root(split_last(&name).0);
            if let Err(WalkError::NotFound) | Ok(Walk::Missing(..)) = self.walk(&parent, false) {
                self.make_parents(&parent)?;
            }
        }
        let is_directory = header.typeflag == b'5';
        if let Ok(Walk::Found(old)) = self.walk(&path, false) {
            let old_is_directory = self.inode(old).kind == InodeKind::Directory;
            if old_is_directory && name == b"." {
                return Ok(Placed::Ignored);
            }
            if !(old_is_directory && is_directory) {
                if old == 0 {
                    return Err(PlaceError::Root);
                }
                self.remove(old);
                if self.metadata > METADATA_MAX {
                    return Err(PlaceError::TooMuchMetadata);
                }
            }
        }
        if base == OPAQUE_MARKER {
            return self.mark_opaque(directory);
        }
        if let Some(hidden) = base.strip_prefix(WHITEOUT_PREFIX) {
            return self.place_whiteout(header, directory, hidden);
        }
        self.create(header, &path)
    }

    fn mark_opaque(&mut self, directory: &[u8]) -> Result<Placed, PlaceError> {
        match self.walk(directory, true)? {
            Walk::Found(found) => {
                let inode = self.inode_mut(found);
                if inode.kind == InodeKind::Directory {
                    inode.opaque = true;
                }
                Ok(Placed::Whiteout)
            }
            Walk::Missing(..) => Err(PlaceError::DanglingParent),
        }
    }

    fn place_whiteout(&mut self, header: &Header, directory: &[u8], hidden: &[u8]) -> Result<Placed, PlaceError> {
        let path = below_root(&[directory, b"/", hidden].concat());
        match self.walk(&path, false) {
            // `rm -rf foo` leaves `.wh.foo` and then `foo/.wh.bar` in some builders' layers.
            Err(WalkError::NotDirectory) => Ok(Placed::Ignored),
            Err(error) => Err(error.into()),
            Ok(Walk::Found(_)) => Err(PlaceError::WhiteoutExists),
            Ok(Walk::Missing(parent, name)) => {
                let mut inode = new_inode(InodeKind::CharDevice(Device::WHITEOUT));
                (inode.stamped, inode.whiteout) = (true, true);
                set_owner(&mut inode, header);
                self.add(parent, &name, inode)?;
                Ok(Placed::Whiteout)
            }
        }
    }

    fn create(&mut self, header: &Header, path: &[u8]) -> Result<Placed, PlaceError> {
        if header.typeflag == b'1' {
            return self.create_hardlink(header, path);
        }
        let device = Device { major: (header.major & 0xfff) as u32, minor: (header.minor & 0xf_ffff) as u32 };
        let kind = match header.typeflag {
            // A global header has had its parents made and its name cleared; then it is ignored.
            b'g' => return Ok(Placed::Ignored),
            b'0' => InodeKind::Regular { size: header.size, data: 0 },
            b'2' if header.link.is_empty() || header.link.len() > PATH_MAX => return Err(PlaceError::BadSymlink),
            b'2' => InodeKind::Symlink(header.link.clone().into()),
            b'3' => InodeKind::CharDevice(device),
            b'4' => InodeKind::BlockDevice(device),
            b'5' => InodeKind::Directory,
            b'6' => InodeKind::Fifo,
            other => return Err(PlaceError::Type(other)),
        };
        match self.walk(path, false)? {
            // Only a directory is left in place, and only for a directory.
            Walk::Found(found) => {
                self.disturbed |= found != 0;
                self.root_claimed |= found == 0;
                self.apply(found, header)?;
                Ok(Placed::Changed)
            }
            Walk::Missing(parent, name) => {
                let dirent = self.add(parent, &name, new_inode(kind))?;
                self.apply(dirent, header)?;
                Ok(Placed::New(dirent))
            }
        }
    }

    fn create_hardlink(&mut self, header: &Header, path: &[u8]) -> Result<Placed, PlaceError> {
        let shown = || String::from_utf8_lossy(&header.link).into_owned();
        let target = match self.walk(&below_root(&header.link), false) {
            Ok(Walk::Found(target)) => target,
            Ok(Walk::Missing(..)) | Err(WalkError::NotFound) => return Err(PlaceError::NoTarget(shown())),
            Err(error) => return Err(error.into()),
        };
        if self.inode(target).kind == InodeKind::Directory {
            return Err(PlaceError::LinkToDirectory(shown()));
        }
        let Walk::Missing(parent, name) = self.walk(path, false)? else { return Err(PlaceError::WhiteoutExists) };
        let inode = self.inode_number(target);
        let dirent = self.add_name(parent, &name, inode)?;
        let stat = |inode: &Inode| (inode.mode, inode.uid, inode.gid, inode.mtime, inode.stamped);
        let before = &self.inodes[inode as usize];
        let (stat_before, xattrs_before) = (stat(before), before.xattrs.clone());
        self.apply(dirent, header)?;
        let after = &self.inodes[inode as usize];
        self.disturbed |= stat_before != stat(after) || xattrs_before != after.xattrs;
        Ok(Placed::New(dirent))
    }

    /// `chown`, `chmod`, `utimes` and `setxattr` as `extractTarFileEntry` calls them.
    fn apply(&mut self, dirent: DirentId, header: &Header) -> Result<(), PlaceError> {
        let mut dropped = Vec::new();
        // A hardlink's mode and time count only where `lstat` takes its target as it is written.
        let counts = header.typeflag != b'1' || self.has(&header.link);
        let inode = self.inode_mut(dirent);
        // `SafeLchown` does nothing where the owner is right; chown takes capabilities away.
        if inode.kind != InodeKind::Directory && (header.uid, header.gid) != (inode.uid.into(), inode.gid.into()) {
            inode.xattrs.remove(CAPABILITY);
            // And setuid, and setgid where the group may execute (`setattr_should_drop_suidgid`); chmod mostly gives them back.
            if !counts && !matches!(inode.kind, InodeKind::Symlink(_)) {
                let sgid = if inode.mode & 0o010 != 0 { 0o2000 } else { 0 };
                inode.mode &= !(0o4000 | sgid);
            }
        }
        set_owner(inode, header);
        let is_symlink = matches!(inode.kind, InodeKind::Symlink(_));
        if !is_symlink && counts {
            change_mode(inode, (header.mode & 0o7777) as u16);
        }
        // A hardlink's header does not change the times of a symbolic link.
        if counts && !(is_symlink && header.typeflag == b'1') {
            inode.mtime = if is_symlink { symlink_time(header.mtime) } else { file_time(header.mtime) };
            inode.stamped = false;
        }
        for (name, value) in &header.xattrs {
            match judge_xattr(&inode.kind, name, value) {
                Verdict::Keep => inode.xattrs.set(name, value.clone()),
                Verdict::Acl(acl) => set_acl(inode, name, &acl),
                Verdict::Opaque => inode.opaque = true,
                Verdict::Skip => {}
                Verdict::Drop => dropped.push(name.clone()),
                Verdict::Refuse => return Err(PlaceError::Xattr(String::from_utf8_lossy(name).into_owned())),
            }
        }
        let bytes = |xattrs: &[Xattr]| xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        if bytes(&inode.xattrs) > XATTRS_MAX {
            return Err(PlaceError::TooManyXattrs);
        }
        if !dropped.is_empty() {
            let path = self.path(dirent);
            for name in dropped {
                self.dropped_xattrs.count += 1;
                if self.dropped_xattrs.first.len() < DROPPED_SHOWN {
                    self.dropped_xattrs.first.push((path.clone(), name));
                }
            }
        }
        Ok(())
    }

    /// `idtools.MkdirAllAndChownNew(path, 0777 &^ 022, 0, 0)`.
    fn make_parents(&mut self, path: &[u8]) -> Result<(), PlaceError> {
        let mut at = 0;
        for component in components(path) {
            at = match self.walk_from(at, component, true) {
                Ok(Walk::Found(found)) if self.inode(found).kind == InodeKind::Directory => found,
                Ok(Walk::Found(_)) => return Err(PlaceError::NotDirectory),
                Ok(Walk::Missing(..)) | Err(WalkError::NotFound) => {
                    // mkdir does not follow a dangling link in the last place: EEXIST.
                    let Walk::Missing(parent, name) = self.walk_from(at, component, false)? else {
                        return Err(PlaceError::DanglingParent);
                    };
                    let mut inode = new_inode(InodeKind::Directory);
                    inode.mode = 0o755 | self.inode(parent).mode & 0o2000;
                    inode.stamped = true;
                    let dirent = self.add(parent, &name, inode)?;
                    self.created_parents.push(dirent);
                    dirent
                }
                Err(error) => return Err(error.into()),
            };
        }
        Ok(())
    }

    /// To be called after the last entry: the times of directories are set at the end, by their paths, so one that was
    /// replaced gives its time to what has its name now, or to where that leads.
    ///
    /// # Errors
    /// The path that leads nowhere.
    pub fn settle(&mut self) -> Result<(), (Vec<u8>, PlaceError)> {
        for (path, replaced, time) in std::mem::take(&mut self.replaced_directories) {
            let Ok(Walk::Found(found)) = self.walk(&path, true) else { return Err((path, PlaceError::DirectoryGone)) };
            // A directory whose own header came later has the last word.
            if self.inode(found).kind != InodeKind::Directory || self.inode_number(found) < replaced {
                let inode = self.inode_mut(found);
                (inode.mtime, inode.stamped) = (time, false);
                self.disturbed = true;
            }
        }
        Ok(())
    }

    fn add(&mut self, parent: DirentId, name: &[u8], mut inode: Inode) -> Result<DirentId, PlaceError> {
        // A new inode in a setgid directory gets its group; a header's group replaces it unless it is -1.
        if self.inode(parent).mode & 0o2000 != 0 && inode.gid == 0 && !inode.stamped {
            inode.gid = self.inode(parent).gid;
        }
        let number = self.inodes.len() as u32;
        self.inodes.push(inode);
        self.first_names.push(self.dirents.len() as DirentId);
        self.add_name(parent, name, number)
    }

    fn add_name(&mut self, parent: DirentId, name: &[u8], inode: u32) -> Result<DirentId, PlaceError> {
        let path_len = usize::from(self.dirents[parent as usize].path_len) + 1 + name.len();
        if path_len > PATH_MAX {
            return Err(PlaceError::NameTooLong);
        }
        self.paths += path_len as u64;
        if self.paths > PATHS_MAX {
            return Err(PlaceError::TooManyPaths);
        }
        debug_assert!(!name.is_empty() && name.len() <= NAME_MAX);
        let dirent = self.dirents.len() as DirentId;
        let start = self.names.len() as u32;
        self.names.extend_from_slice(name);
        let previous = std::mem::replace(&mut self.dirents[parent as usize].last_child, dirent);
        let name_at = (start, name.len() as u8);
        let path_len = path_len as u16;
        self.dirents.push(Dirent { parent, name: name_at, path_len, inode, live: true, last_child: 0, previous });
        let hash = self.hash(parent, name);
        let (names, dirents, hasher) = (&self.names, &self.dirents, &self.hasher);
        self.lookup.insert_unique(hash, dirent, |&other| {
            let other = &dirents[other as usize];
            hasher.hash_one((other.parent, &names[other.name.0 as usize..][..other.name.1.into()]))
        });
        Ok(dirent)
    }

    fn remove(&mut self, dirent: DirentId) {
        // What was never written to the body may go without a trace.
        self.disturbed |= !self.inode(dirent).whiteout;
        let inode = self.inode(dirent);
        if inode.kind == InodeKind::Directory && !inode.stamped {
            let time = inode.mtime;
            let path = self.path(dirent);
            // Names are short, but their paths need not be.
            self.metadata += path.len();
            if self.metadata <= METADATA_MAX {
                self.replaced_directories.push((path, self.inode_number(dirent), time));
            }
        }
        let hash = self.hash(self.parent(dirent), self.name(dirent));
        if let Ok(found) = self.lookup.find_entry(hash, |&other| other == dirent) {
            found.remove();
        }
        self.dirents[dirent as usize].live = false;
        let mut child = self.dirents[dirent as usize].last_child;
        while child != 0 {
            if self.dirents[child as usize].live {
                self.remove(child);
            }
            child = self.dirents[child as usize].previous;
        }
    }

    fn hash(&self, parent: DirentId, name: &[u8]) -> u64 {
        self.hasher.hash_one((parent, name))
    }

    fn child(&self, parent: DirentId, name: &[u8]) -> Option<DirentId> {
        let hash = self.hash(parent, name);
        self.lookup.find(hash, |&other| self.parent(other) == parent && self.name(other) == name).copied()
    }

    /// Whether `lstat` finds this path from the root: with a slash at its end, only a directory.
    fn has(&self, path: &[u8]) -> bool {
        let is_directory = path.ends_with(b"/");
        match self.walk(path, is_directory) {
            Ok(Walk::Found(found)) => !is_directory || self.inode(found).kind == InodeKind::Directory,
            _ => false,
        }
    }

    /// The kernel's path walk below the layer's root: `..` stops there, absolute links start there.
    fn walk(&self, path: &[u8], follow_last: bool) -> Result<Walk, WalkError> {
        self.walk_from(0, path, follow_last)
    }

    fn walk_from(&self, start: DirentId, path: &[u8], follow_last: bool) -> Result<Walk, WalkError> {
        let mut pending: Vec<&[u8]> = components(path).rev().collect();
        let mut at = start;
        let mut links = 0;
        while let Some(component) = pending.pop() {
            if self.inode(at).kind != InodeKind::Directory {
                return Err(WalkError::NotDirectory);
            }
            match component {
                b"." => continue,
                b".." => {
                    at = self.parent(at);
                    continue;
                }
                _ => {}
            }
            if component.len() > NAME_MAX {
                return Err(WalkError::NameTooLong);
            }
            let Some(next) = self.child(at, component) else {
                return if pending.is_empty() {
                    Ok(Walk::Missing(at, component.to_vec()))
                } else {
                    Err(WalkError::NotFound)
                };
            };
            match &self.inode(next).kind {
                InodeKind::Symlink(target) if !pending.is_empty() || follow_last => {
                    links += 1;
                    if links > SYMLINKS_MAX {
                        return Err(WalkError::Loop);
                    }
                    if target.starts_with(b"/") {
                        at = 0;
                    }
                    let before = pending.len();
                    pending.extend(components(target).rev());
                    self.link_steps.set(self.link_steps.get() + (pending.len() - before) as u64);
                    if self.link_steps.get() > LINK_STEPS_MAX {
                        return Err(WalkError::TooManySteps);
                    }
                }
                _ => at = next,
            }
        }
        Ok(Walk::Found(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(typeflag: u8, name: impl Into<Vec<u8>>, link: impl Into<Vec<u8>>) -> Header {
        Header { typeflag, name: name.into(), link: link.into(), ..Header::default() }
    }

    #[test]
    fn links_that_lead_through_links_do_not_take_hours() {
        let mut tree = Tree::new();
        tree.place(&header(b'5', "d/", "")).unwrap();
        for number in 0..SYMLINKS_MAX {
            let target = "../d/".repeat(700) + &format!("l{}", number + 1);
            tree.place(&header(b'2', format!("d/l{number}"), target)).unwrap();
        }
        tree.place(&header(b'5', format!("d/l{SYMLINKS_MAX}"), "")).unwrap();
        let error = (0..1_000_000).find_map(|number| tree.place(&header(b'0', format!("d/l0/{number}"), "")).err());
        assert_eq!(error, Some(PlaceError::TooManySteps));
    }

    #[test]
    fn short_names_in_a_deep_directory_are_bounded() {
        let mut tree = Tree::new();
        let deep = ("d".repeat(250) + "/").repeat(16);
        tree.place(&header(b'2', "short", deep.as_str())).unwrap();
        tree.place(&header(b'5', deep, "")).unwrap();
        let error = (0..100_000).find_map(|number| tree.place(&header(b'0', format!("short/{number}"), "")).err());
        assert_eq!(error, Some(PlaceError::TooManyPaths));
    }

    #[test]
    fn paths_of_replaced_directories_count_as_metadata() {
        let mut tree = Tree::new();
        let deep = "d".repeat(250) + "/";
        let deep = deep.repeat(16);
        tree.place(&header(b'2', "short", deep.as_str())).unwrap();
        tree.place(&header(b'5', deep, "")).unwrap();
        for number in 0..20_000 {
            tree.place(&header(b'5', format!("short/{number}"), "")).unwrap();
        }
        let top = "d".repeat(250);
        assert_eq!(tree.place(&header(b'0', top, "")), Err(PlaceError::TooMuchMetadata));
        let bytes: usize = tree.replaced_directories.iter().map(|(path, ..)| path.len()).sum();
        assert!(bytes <= METADATA_MAX, "{bytes}");
    }
}
