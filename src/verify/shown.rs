//! What a tar must be before `prepull mount` shows it: records, names and the skeleton beside the layers' trees.
//!
//! podman and CRI-O believe the skeleton of an additional store. They follow `overlay/l/LINK` without asking where it leads
//! (containers/storage `drivers/overlay/overlay.go`, get: the path is joined and mounted), so a link or a `lower` that leads elsewhere
//! puts other layers, or directories of the host, into containers. Layers' trees are not compared with their digests
//! here, which takes as long as reading all of them: that is `prepull verify`.

use super::report::Finding;
use super::rule::{Rule, Severity};
use super::{Judge, Layers, Options};
use crate::inspect::contents::{Contents, InodeKind, join};
use crate::storage::store::Unpacker;

/// What containers/storage uses of a layer's directory in an additional store. It would also merge `diff1`, `diff2`, … and mount
/// `composefs-data/composefs.blob` in the kernel (`drivers/overlay/overlay.go`, get: nameWithSuffix, getComposefsData).
const OF_LAYER: [&[u8]; 7] = [b"diff", b"empty", b"link", b"lower", b"lower-layers", b"merged", b"work"];

/// Checks every store of a tar as the additional store that it is when it is shown.
///
/// # Errors
/// When something is wrong for which a store must not be shown: one line that says what, where, and what would happen.
pub fn check(contents: &Contents) -> Result<(), String> {
    for store in 0..contents.stores().len() {
        let options = Options { additional: Some(true), ..Options::default() };
        let mut judge = Judge::new(contents, store, &options, Unpacker::Root);
        judge.skeleton_only();
        if let Some(place) = judge.unknown_of_layer() {
            return Err(format!("{place}: not a part of a layer (podman and CRI-O would merge or mount it)"));
        }
        let mut groups = judge.report.groups();
        let must_not = |rule, severity| severity == Severity::Error || rule == Rule::LinkAbsolute;
        if let Some((rule, _, group)) = groups.find(|(rule, severity, _)| must_not(*rule, *severity)) {
            let Finding { place, what } = group
                .first
                .first()
                .cloned()
                .unwrap_or_else(|| Finding { place: String::new(), what: rule.info().name.to_owned() });
            return Err(format!("{place}: {what} ({})", rule.info().then));
        }
    }
    contents.failure().map_or(Ok(()), |error| Err(error.to_string()))
}

impl Judge<'_> {
    fn skeleton_only(&mut self) {
        if self.found.driver != "overlay" {
            let what = format!("the store is of the driver {:?}", self.found.driver);
            self.add(Rule::Driver, self.below(&format!("{}-images", self.found.driver)), what);
            return;
        }
        let images = self.image_records();
        let records = self.layer_records_or_none(images.iter().any(|image| image.top().is_some()));
        let mut layers = Layers::new(&records, &[], &images);
        // Also those of no image: a pull takes a layer from wherever there is one with its digest.
        layers.used.extend(records.iter().map(|record| &record.id[..]));
        // A tar says itself which layers are of containers.
        self.containers.clear();
        self.images(&images, &layers);
        self.layer_records(&records, &layers);
        self.skeletons(&records, &images, &layers);
        self.store_files();
        self.other_links();
    }

    /// Returns the path of something in a layer's directory that no layer of an additional store has.
    fn unknown_of_layer(&self) -> Option<String> {
        let overlay = self.below("overlay");
        let files = self.contents.rest();
        for (id, _) in files.children(overlay.as_bytes()).filter(|(id, _)| *id != b"l") {
            let layer = join(overlay.as_bytes(), id);
            if let Some((name, _)) = files.children(&layer).find(|(name, _)| !OF_LAYER.contains(name)) {
                return Some(String::from_utf8_lossy(&join(&layer, name)).into_owned());
            }
        }
        None
    }

    /// Checks the symbolic links outside of layers' trees: there are only those in `overlay/l`, each to a layer of this store.
    fn other_links(&mut self) {
        let (contents, store) = (self.contents, self.store);
        let graphroot = self.below("");
        let links = self.below("overlay/l/");
        for (path, inode) in contents.rest().iter() {
            let InodeKind::Symlink(target) = &inode.kind else { continue };
            let Some(below) = path.strip_prefix(graphroot.as_bytes()) else { continue };
            let place = String::from_utf8_lossy(path).into_owned();
            let what = format!("is a symbolic link to {:?}", String::from_utf8_lossy(target));
            if !path.starts_with(links.as_bytes()) || below.is_empty() {
                self.add(Rule::StoreType, place, what);
                continue;
            }
            let layer = target.strip_prefix(b"../").and_then(|rest| rest.strip_suffix(b"/diff"));
            let layer = layer.and_then(|id| std::str::from_utf8(id).ok());
            if layer.is_none_or(|id| !contents.layers(store).contains_key(id)) {
                self.add(Rule::LinkTarget, place, format!("{what}, which is not a layer of this store"));
            }
        }
    }
}
