//! Opaque directories without extended attributes: explicit whiteouts that hide the same names.
//!
//! busybox tar drops `trusted.overlay.opaque`, and then what the layer deleted comes back. A 0:0 device for every name that
//! lower layers have in the directory, and this layer has not, gives the same merged view (Linux
//! `Documentation/filesystems/overlayfs.rst`, "Whiteouts and opaque directories"). Which names lower layers have
//! is fixed for a layer, since its id stands for the whole chain.

use std::collections::BTreeMap;

use crate::entry::Device;
use crate::layer::tree::InodeKind;
use crate::segment::index::Index;

/// The merged names of some layers, as the kernel would show them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct MergedView(BTreeMap<Vec<u8>, Name>);

#[derive(Debug, PartialEq, Eq)]
enum Name {
    Directory(MergedView),
    Other,
}

/// An index with the children of each directory at hand.
struct Children<'a> {
    index: &'a Index,
    first: Vec<u32>,
    of: Vec<u32>,
}

impl<'a> Children<'a> {
    fn new(index: &'a Index) -> Self {
        let count = index.nodes().len();
        // A counting sort of the nodes by their parents.
        let mut first = vec![0; count + 1];
        for node in &index.nodes()[1..] {
            first[node.parent as usize + 1] += 1;
        }
        for parent in 0..count {
            first[parent + 1] += first[parent];
        }
        let mut next = first.clone();
        let mut of = vec![0; count.saturating_sub(1)];
        for (number, node) in index.nodes().iter().enumerate().skip(1) {
            let at = &mut next[node.parent as usize];
            of[*at as usize] = number as u32;
            *at += 1;
        }
        Self { index, first, of }
    }

    fn of(&self, node: u32) -> &[u32] {
        &self.of[self.first[node as usize] as usize..self.first[node as usize + 1] as usize]
    }
}

impl MergedView {
    /// Puts one more layer on top.
    pub fn stack(&mut self, index: &Index) {
        self.stack_directory(&Children::new(index), 0);
    }

    fn stack_directory(&mut self, layer: &Children<'_>, directory: u32) {
        for &child in layer.of(directory) {
            let inode = &layer.index.nodes()[child as usize].inode;
            let name = layer.index.name(child);
            match inode.kind {
                InodeKind::CharDevice(Device::WHITEOUT) => {
                    self.0.remove(name);
                }
                InodeKind::Directory => {
                    let merged = self.0.get(name).is_some_and(|lower| matches!(lower, Name::Directory(_)));
                    if !merged || inode.opaque {
                        self.0.insert(name.to_vec(), Name::Directory(Self::default()));
                    }
                    if let Some(Name::Directory(below)) = self.0.get_mut(name) {
                        below.stack_directory(layer, child);
                    }
                }
                _ => {
                    self.0.insert(name.to_vec(), Name::Other);
                }
            }
        }
    }

    /// The paths, below the layer's root, of the whiteouts that stand for the opaque directories of `index` on top of this
    /// view. A marker on the layer's root counts for nothing: the kernel ignores it there.
    #[must_use]
    pub fn whiteouts_for(&self, index: &Index) -> Vec<Vec<u8>> {
        let mut whiteouts = Vec::new();
        self.expand(&Children::new(index), 0, false, &mut whiteouts);
        whiteouts
    }

    fn expand(&self, layer: &Children<'_>, directory: u32, opaque: bool, whiteouts: &mut Vec<Vec<u8>>) {
        if opaque {
            let here: std::collections::BTreeSet<&[u8]> =
                layer.of(directory).iter().map(|&child| layer.index.name(child)).collect();
            for name in self.0.keys().filter(|name| !here.contains(&name[..])) {
                whiteouts.push([&layer.index.path(directory)[..], b"/", name].concat());
            }
        }
        for &child in layer.of(directory) {
            let inode = &layer.index.nodes()[child as usize].inode;
            // Nothing below to hide where the lower layers have no directory of this name.
            if let (InodeKind::Directory, Some(Name::Directory(below))) =
                (&inode.kind, self.0.get(layer.index.name(child)))
            {
                below.expand(layer, child, opaque || inode.opaque, whiteouts);
            }
        }
    }
}

/// Whether a layer has an opaque directory that counts.
#[must_use]
pub fn has_opaque_directories(index: &Index) -> bool {
    index.nodes().iter().skip(1).any(|node| node.inode.opaque)
}
