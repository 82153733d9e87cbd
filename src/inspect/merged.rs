//! What a container of an image sees: its layers, one on top of the other, as the kernel's overlay shows them
//! (Linux `Documentation/filesystems/overlayfs.rst`).

use std::collections::BTreeMap;
use std::ops::Bound;

use super::contents::{Contents, Inode, InodeKind, join};
use crate::entry::Device;

/// The marker of an opaque directory.
const OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// An entry and the layer that it comes from.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Its metadata.
    pub inode: &'a Inode,
    /// The layer's id.
    pub layer: &'a str,
    /// Which store the layer is in.
    pub store: usize,
}

/// All that is seen, by its path below the container's root.
#[derive(Debug, Default)]
pub struct Merged<'a>(BTreeMap<&'a [u8], Seen<'a>>);

impl<'a> Merged<'a> {
    /// The view of the layers `chain`, the top one first. Layers that are not there add nothing.
    #[must_use]
    pub fn of(contents: &'a Contents, chain: &[String]) -> Self {
        let mut merged = Self::default();
        for id in chain.iter().rev() {
            let stores = 0..contents.stores().len();
            let found = stores.filter_map(|store| Some((store, contents.layers(store).get_key_value(id)?))).next();
            let Some((store, (layer, files))) = found else { continue };
            // Directories come before what is in them.
            for (path, inode) in files.iter() {
                merged.stack(path, Seen { inode, layer, store });
            }
        }
        merged
    }

    fn stack(&mut self, path: &'a [u8], seen: Seen<'a>) {
        let is_directory = seen.inode.kind == InodeKind::Directory;
        let was_directory = self.0.get(path).is_some_and(|lower| lower.inode.kind == InodeKind::Directory);
        let is_opaque = seen.inode.xattrs.iter().any(|(name, value)| name == OPAQUE && value == b"y");
        // A marker on a layer's root counts for nothing.
        if was_directory && !path.is_empty() && (!is_directory || is_opaque) {
            self.remove_below(path);
        }
        if seen.inode.kind == InodeKind::CharDevice(Device::WHITEOUT) {
            self.0.remove(path);
        } else {
            self.0.insert(path, seen);
        }
    }

    fn remove_below(&mut self, directory: &[u8]) {
        let prefix = join(directory, b"");
        let range = (Bound::Included(&prefix[..]), Bound::Unbounded);
        let these: Vec<&[u8]> = self
            .0
            .range::<[u8], _>(range)
            .map(|(path, _)| *path)
            .take_while(|path| path.starts_with(&prefix))
            .collect();
        for path in these {
            self.0.remove(path);
        }
    }

    /// All entries in ascending order of their paths; the root is the empty path.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], Seen<'a>)> + '_ {
        self.0.iter().map(|(path, seen)| (*path, *seen))
    }

    /// The entry at `path`.
    #[must_use]
    pub fn get(&self, path: &[u8]) -> Option<Seen<'a>> {
        self.0.get(path).copied()
    }
}
