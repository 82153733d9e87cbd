//! A layer's tree compared with what unpacking the layer leaves.

use std::collections::HashSet;

use super::Judge;
use super::replay::{Replayed, Wrong};
use super::rule::{Rule, Severity};
use crate::entry::{Device, Xattr};
use crate::inspect::contents::{Files, Inode, InodeKind, is_machine_label};
use crate::layer::tree::{self as layer_tree, DirentId, WHITEOUT_PREFIX};
use crate::segment::index::Index;
use crate::storage::opaque::MergedView;

/// overlayfs's own attributes begin with this, where root mounts.
const OVERLAY: &[u8] = b"trusted.overlay.";
/// The marker of an opaque directory (Linux `Documentation/filesystems/overlayfs.rst`).
const OPAQUE: &[u8] = b"trusted.overlay.opaque";
/// Who mounts without root has these instead.
const USER_OVERLAY: &[u8] = b"user.overlay.";

/// Whether this is a directory that hides what is below it.
pub(super) fn is_opaque(inode: &Inode) -> bool {
    inode.kind == InodeKind::Directory && inode.xattrs.iter().any(|(name, value)| name == OPAQUE && value == b"y")
}

/// Whether this is overlay's whiteout.
pub(super) fn is_whiteout(inode: &Inode) -> bool {
    inode.kind == InodeKind::CharDevice(Device::WHITEOUT)
}

/// A layer's tree and where it lies.
pub(super) struct Tree<'a> {
    pub files: &'a Files,
    /// `…/overlay/<id>/diff`.
    pub path: &'a str,
}

impl Tree<'_> {
    fn place(&self, path: &[u8]) -> String {
        let slash = if path.is_empty() { "" } else { "/" };
        format!("{}{slash}{}", self.path, String::from_utf8_lossy(path))
    }
}

/// Writes paths of a layer's names, most of which are in the same directory as the one before.
#[derive(Debug, Default)]
pub(super) struct Paths {
    directory: DirentId,
    /// The directory's path, with a slash at its end unless it is the root.
    prefix: usize,
    path: Vec<u8>,
}

impl Paths {
    /// Returns the path of a name below the layer's root.
    pub fn of(&mut self, tree: &layer_tree::Tree, dirent: DirentId) -> &[u8] {
        let directory = tree.parent(dirent);
        if directory != self.directory {
            self.directory = directory;
            self.path = tree.path(directory);
            if directory != 0 {
                self.path.push(b'/');
            }
            self.prefix = self.path.len();
        }
        self.path.truncate(self.prefix);
        self.path.extend_from_slice(tree.name(dirent));
        &self.path
    }
}

impl Judge<'_> {
    /// What can be seen without knowing the layer.
    pub(super) fn tree_alone(&mut self, tree: &Tree<'_>) {
        for (path, inode) in tree.files.iter() {
            for (name, _) in &inode.xattrs {
                if name.starts_with(OVERLAY) && !(name == OPAQUE && is_opaque(inode)) {
                    self.add(Rule::OverlayXattr, tree.place(path), format!("has {}", String::from_utf8_lossy(name)));
                }
            }
        }
    }

    /// All that differs from the layer. `view` is the merged view of the layers below, where it is known.
    pub(super) fn tree(&mut self, tree: &Tree<'_>, layer: &Replayed, view: Option<&MergedView>) {
        for (path, wrong) in &layer.wrong {
            let what = match wrong {
                // Said when the entries are compared.
                Wrong::Missing | Wrong::Size => continue,
                Wrong::Checksum => "its content has another checksum".to_owned(),
                Wrong::Unreadable(error) => format!("cannot be read: {error}"),
            };
            self.add(Rule::EntryContent, tree.place(path), what);
        }
        for path in &layer.gone {
            self.add(Rule::ContentGone, tree.place(path), "its content is no longer there".to_owned());
        }
        let mut paths = Paths::default();
        // By the numbers of inodes, of which there are no more than names.
        let mut first_names = vec![DirentId::MAX; layer.tree.len()];
        let mut found = 0;
        for dirent in layer.tree.live() {
            let first = &mut first_names[layer.tree.inode_number(dirent) as usize];
            *first = (*first).min(dirent);
            let first = *first;
            let first = (first != dirent).then_some(first);
            found += usize::from(self.entry(tree, layer, dirent, first, paths.of(&layer.tree, dirent)));
        }
        let wanted = self.explicit_whiteouts(tree, layer, view);
        // Usually all files are the layer's: then none has to be looked up. The root is not among the names of the layer.
        if found + usize::from(tree.files.get(b"").is_some()) == tree.files.len() {
            return;
        }
        for (path, inode) in tree.files.iter().filter(|(path, _)| layer.tree.find(path).is_none()) {
            let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
            if is_whiteout(inode) && wanted.contains(path) {
                continue;
            }
            if is_whiteout(inode) && in_opaque(tree.files, path) {
                self.add(Rule::OpaqueTwice, tree.place(path), "a whiteout in an opaque directory".to_owned());
            } else if name.starts_with(WHITEOUT_PREFIX) {
                self.add(Rule::WhiteoutFile, tree.place(path), "a file, where overlay wants a device 0:0".to_owned());
            } else {
                self.add(Rule::EntryUnexpected, tree.place(path), "is not in the layer".to_owned());
            }
        }
    }

    /// Compares the file of a name with the layer's, and returns whether it exists. `first`: of a further name of an inode, the first.
    fn entry(
        &mut self,
        tree: &Tree<'_>,
        layer: &Replayed,
        dirent: DirentId,
        first: Option<DirentId>,
        path: &[u8],
    ) -> bool {
        let expected = layer.tree.inode(dirent);
        let Some(found) = tree.files.get(path) else {
            if expected.whiteout {
                let what = "its whiteout is missing".to_owned();
                self.add(Rule::WhiteoutMissing, tree.place(path), what);
            } else {
                self.add(Rule::EntryMissing, tree.place(path), "is missing".to_owned());
            }
            return false;
        };
        let same_kind = match (&expected.kind, &found.kind) {
            (InodeKind::Regular { .. }, InodeKind::Regular { .. }) => true,
            (expected, found) => expected == found,
        };
        if !same_kind {
            let rule = if expected.whiteout { Rule::WhiteoutMissing } else { Rule::EntryType };
            let what = format!("is {}, not {}", describe(&found.kind), describe(&expected.kind));
            self.add(rule, tree.place(path), what);
            return true;
        }
        if let (InodeKind::Regular { size: expected, .. }, InodeKind::Regular { size: found, .. }) =
            (&expected.kind, &found.kind)
            && expected != found
        {
            self.add(Rule::EntryContent, tree.place(path), format!("has {found} bytes, not {expected}"));
        }
        // A whiteout's metadata are nobody's.
        if !expected.whiteout {
            self.metadata(tree, expected, found, path);
        }
        if is_opaque(found) && !expected.opaque {
            self.add(Rule::OverlayXattr, tree.place(path), "is opaque, which the layer does not say".to_owned());
        }
        if let Some(first) = first {
            let first = layer.tree.path(first);
            if tree.files.number(path) != tree.files.number(&first) && tree.files.get(&first).is_some() {
                let what = format!("is not a hard link of {:?}", String::from_utf8_lossy(&first));
                self.add(Rule::EntryHardlink, tree.place(path), what);
            }
        }
        true
    }

    /// Mode, owner, time and attributes.
    fn metadata(&mut self, tree: &Tree<'_>, expected: &Inode, found: &Inode, path: &[u8]) {
        let is_symlink = matches!(expected.kind, InodeKind::Symlink(_));
        if expected.mode != found.mode && !is_symlink {
            let what = format!("has mode {:04o}, not {:04o}", found.mode, expected.mode);
            self.add(Rule::EntryMode, tree.place(path), what);
        }
        if (expected.uid, expected.gid) != (found.uid, found.gid) {
            let what = format!("belongs to {}:{}, not {}:{}", found.uid, found.gid, expected.uid, expected.gid);
            self.add(Rule::EntryOwner, tree.place(path), what);
        }
        if !expected.stamped && expected.mtime.seconds != found.mtime.seconds {
            let what = format!("has time {}, not {}", found.mtime.seconds, expected.mtime.seconds);
            self.add(Rule::EntryTime, tree.place(path), what);
        }
        let (missing, extra) = differing(&expected.xattrs, &found.xattrs);
        for (what, names) in [("has lost or changed", missing), ("has", extra)] {
            for name in names {
                let what = format!("{what} {}", String::from_utf8_lossy(name));
                self.add(Rule::EntryXattr, tree.place(path), what);
            }
        }
    }

    /// The whiteouts that stand for opaque directories without a marker; says which of them are missing.
    fn explicit_whiteouts(&mut self, tree: &Tree<'_>, layer: &Replayed, view: Option<&MergedView>) -> HashSet<Vec<u8>> {
        let mut wanted = HashSet::new();
        let Some(view) = view else {
            // A layer below is not known: whatever whiteouts there are where the layer wants a directory opaque may be right.
            let opaque = layer.tree.live().filter(|&dirent| layer.tree.inode(dirent).opaque);
            let opaque: HashSet<Vec<u8>> = opaque.map(|dirent| layer.tree.path(dirent)).collect();
            if !opaque.is_empty() {
                let whiteouts = tree.files.iter().filter(|(_, inode)| is_whiteout(inode)).map(|(path, _)| path);
                wanted.extend(whiteouts.filter(|path| above(path).any(|at| opaque.contains(at))).map(<[u8]>::to_vec));
            }
            return wanted;
        };
        for path in view.whiteouts_for(&Index::of(&layer.tree)) {
            let found = tree.files.get(&path).is_some_and(is_whiteout);
            if in_opaque(tree.files, &path) {
                // A marker hides it already; both make ghosts, which is said elsewhere.
                continue;
            }
            if !found {
                if self.blind {
                    self.add(Rule::OpaqueUnreadable, tree.place(&path), "nothing hides it that is seen".to_owned());
                } else {
                    self.add(Rule::OpaqueLost, tree.place(&path), "nothing hides what lower layers have".to_owned());
                }
            }
            wanted.insert(path);
        }
        wanted
    }

    /// Mode and owner of a layer's root. `must_be_open`: containers see it, and no layer below says otherwise. `claimed`: what the layer itself says they are; `parent`: the root of the layer below.
    ///
    /// Where the layer says nothing, containers/storage gives the lowest layer 0555 (before 1.23.8: 0755) and root, and others what
    /// their parents have (before 1.47: only the mode) (`drivers/overlay/overlay.go`, `getLayerPermissions`).
    pub(super) fn tree_root(
        &mut self,
        tree: &Tree<'_>,
        claimed: Option<&Inode>,
        parent: Option<&Inode>,
        must_be_open: bool,
    ) {
        let Some(root) = tree.files.get(b"").filter(|root| root.kind == InodeKind::Directory) else { return };
        let expected = claimed.map(|inode| inode.mode);
        let inherited = parent.map_or(0o555, |parent| parent.mode);
        let is_usual = [0o555, 0o755, inherited, inherited & 0o755].contains(&root.mode);
        if expected.is_some_and(|mode| mode != root.mode)
            || expected.is_none() && root.mode & 0o005 == 0o005 && !is_usual
        {
            let what = format!("has mode {:04o}, not {:04o}", root.mode, expected.unwrap_or(inherited));
            self.add(Rule::EntryMode, tree.place(b""), what);
        } else if root.mode & 0o005 != 0o005 {
            // Below the top it is never seen.
            let severity = if must_be_open && expected.is_none() { Severity::Error } else { Severity::Warning };
            self.add_as(Rule::LayerRootMode, severity, tree.place(b""), format!("has mode {:04o}", root.mode));
        }
        let inherited = parent.map_or((0, 0), |parent| (parent.uid, parent.gid));
        let expected = claimed.map_or(inherited, |inode| (inode.uid, inode.gid));
        let found = (root.uid, root.gid);
        if found != expected && (claimed.is_some() || found != (0, 0)) {
            let what = format!("belongs to {}:{}, not {}:{}", found.0, found.1, expected.0, expected.1);
            self.add(Rule::EntryOwner, tree.place(b""), what);
        }
    }
}

/// Whether a directory above `path` is marked opaque.
fn in_opaque(files: &Files, path: &[u8]) -> bool {
    above(path).any(|at| files.get(at).is_some_and(is_opaque))
}

/// The directories above a path, the nearest first, without the root.
fn above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors(Some(path), |at| at.iter().rposition(|&byte| byte == b'/').map(|slash| &at[..slash])).skip(1)
}

/// Names of attributes that are missing or have another value, and of those that should not be there.
fn differing<'a>(expected: &'a [Xattr], found: &'a [Xattr]) -> (Vec<&'a [u8]>, Vec<&'a [u8]>) {
    // Labels of the machine and marks of overlay are neither missing nor too much.
    let counts = |name: &[u8]| !name.starts_with(OVERLAY) && !name.starts_with(USER_OVERLAY) && !is_machine_label(name);
    let missing = expected.iter().filter(|xattr| counts(&xattr.0) && !found.contains(xattr));
    let extra = found.iter().filter(|(name, _)| counts(name) && !expected.iter().any(|(other, _)| other == name));
    (missing.map(|(name, _)| &name[..]).collect(), extra.map(|(name, _)| &name[..]).collect())
}

fn describe(kind: &InodeKind) -> String {
    match kind {
        InodeKind::Directory => "a directory".to_owned(),
        InodeKind::Regular { .. } => "a file".to_owned(),
        InodeKind::Symlink(target) => format!("a symbolic link to {:?}", String::from_utf8_lossy(target)),
        InodeKind::CharDevice(Device::WHITEOUT) => "a whiteout".to_owned(),
        InodeKind::CharDevice(Device { major, minor }) => format!("a character device {major}:{minor}"),
        InodeKind::BlockDevice(Device { major, minor }) => format!("a block device {major}:{minor}"),
        InodeKind::Fifo => "a fifo".to_owned(),
    }
}
