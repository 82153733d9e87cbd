//! Layers: their records, what stands beside their trees, and the short links.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};

use super::image::short;
use super::records::{ImageRecord, LayerRecord};
use super::replay::{Error, Replayed, replay};
use super::rule::{Rule, Severity};
use super::tree::Tree;
use super::{End, Judge, Layers, small_text};
use crate::digest::Digest;
use crate::image::chain_ids;
use crate::inspect::contents::{Files, Inode, InodeKind};
use crate::segment::index::Index;
use crate::storage::opaque::MergedView;
use crate::storage::record::OWNERS_MAX;

/// The largest `link`, `lower` or `lower-layers`, in bytes: 500 layers with 64 digits each, and room.
const SMALL_MAX: u64 = 64 << 10;

/// Directories below `overlay/` that are no layers (containers/storage `drivers/overlay/overlay.go`, `ListLayers`).
const NO_LAYERS: [&str; 4] = ["l", "staging", "tempdirs", "backingFsBlockDev"];

/// The links of a store: target by name.
type Links = BTreeMap<String, String>;

impl Judge<'_> {
    /// The records of all layers.
    pub(super) fn layer_records(&mut self, records: &[LayerRecord], layers: &Layers<'_>) {
        let place = self.records("layers/layers.json");
        let mut ids = BTreeSet::new();
        for record in records {
            let id = short(&record.id).to_owned();
            self.about = Some(record.id.clone());
            if Digest::from_hex(&record.id).is_err() {
                let what = format!("id {:?} is not 64 hexadecimal digits", record.id);
                self.add(Rule::LayerId, place.clone(), what);
            }
            if !ids.insert(&record.id) {
                self.add(Rule::LayerTwice, place.clone(), format!("has layer {id} twice"));
            }
            if record.is_incomplete() {
                self.add(Rule::LayerIncomplete, place.clone(), format!("layer {id} is flagged as incomplete"));
            }
            if !layers.is_used(&record.id) && !self.containers.contains(&record.id) {
                self.add(Rule::LayerUnused, place.clone(), format!("no image has layer {id}"));
            }
            if let (Some(digest), false) = (record.diff_digest(), record.is_partial()) {
                self.layer_id(&place, record, digest);
            }
        }
        self.about = None;
    }

    /// An id follows from the layer's diffID and the layer below (containers/image `storage/storage_dest.go`, `layerID`).
    fn layer_id(&mut self, place: &str, record: &LayerRecord, digest: &str) {
        let id = short(&record.id);
        let Ok(diff_id) = digest.parse::<Digest>() else {
            let what = format!("layer {id}: diff-digest {digest:?} is not a digest");
            self.add(Rule::LayerDigest, place.to_owned(), what);
            return;
        };
        let expected = match record.parent() {
            None => diff_id,
            Some(parent) => match Digest::from_hex(parent) {
                Ok(parent) => chain_ids(&[parent, diff_id])[1],
                Err(_) => return,
            },
        };
        if expected.hex() != record.id {
            let what = format!("layer {id} should be {}, by its diff-digest and parent", short(&expected.hex()));
            self.add(Rule::LayerChain, place.to_owned(), what);
        }
    }

    /// What stands in `overlay/` beside the trees.
    pub(super) fn skeletons(&mut self, records: &[LayerRecord], images: &[ImageRecord], layers: &Layers<'_>) {
        let links = self.links(records);
        let targets: HashSet<&str> = links.values().map(String::as_str).collect();
        let mut used = BTreeMap::new();
        let mut link_of = HashMap::new();
        for record in records {
            self.about = Some(record.id.clone());
            let Some(link) = self.skeleton(record, &links, &targets, layers) else { continue };
            link_of.insert(&record.id[..], link.clone());
            if let Some(other) = used.insert(link.clone(), record.id.clone())
                && other != record.id
            {
                let what = format!("layers {} and {} have the same link {link}", short(&other), short(&record.id));
                self.add(Rule::LayerLinkContent, self.below(&format!("overlay/{}/link", record.id)), what);
            }
        }
        for record in records.iter().filter(|record| layers.is_used(&record.id)) {
            self.about = Some(record.id.clone());
            self.lowers(record, layers, &link_of);
        }
        self.about = None;
        for id in &self.containers {
            let path = self.below(&format!("overlay/{id}/link"));
            used.extend(small_text(self.contents, &path, SMALL_MAX).map(|link| (link, id.clone())));
        }
        for link in links.keys().filter(|link| !used.contains_key(*link)) {
            let what = "is the link of no layer".to_owned();
            self.add(Rule::LinkUnused, self.below(&format!("overlay/l/{link}")), what);
        }
        self.unknown(records, images);
    }

    fn links(&mut self, records: &[LayerRecord]) -> Links {
        let directory = self.below("overlay/l");
        let found: Vec<(String, Option<String>)> = self
            .contents
            .rest()
            .children(directory.as_bytes())
            .map(|(name, inode)| {
                let target = match &inode.kind {
                    InodeKind::Symlink(target) => Some(String::from_utf8_lossy(target).into_owned()),
                    _ => None,
                };
                (String::from_utf8_lossy(name).into_owned(), target)
            })
            .collect();
        let mut links = Links::new();
        for (name, target) in found {
            match target {
                Some(target) => drop(links.insert(name, target)),
                None => {
                    // Images that do not have the layer of this name run.
                    self.about = records
                        .iter()
                        .find(|record| self.link_of(record).as_ref() == Some(&name))
                        .map(|record| record.id.clone());
                    self.add(Rule::LinkLayer, format!("{directory}/{name}"), "is not a symbolic link".to_owned());
                    self.about = None;
                }
            }
        }
        links
    }

    /// Returns what the file `link` of a layer has, if the layer has one.
    fn link_of(&self, record: &LayerRecord) -> Option<String> {
        small_text(self.contents, &self.below(&format!("overlay/{}/link", record.id)), SMALL_MAX)
    }

    /// Directories and `link` of a layer; gives the link's name.
    fn skeleton(
        &mut self,
        record: &LayerRecord,
        links: &Links,
        targets: &HashSet<&str>,
        layers: &Layers<'_>,
    ) -> Option<String> {
        let directory = self.below(&format!("overlay/{}", record.id));
        let has = |judge: &Self, name: &str| {
            let inode = judge.contents.rest().get(format!("{directory}/{name}").as_bytes());
            inode.is_some_and(|inode| inode.kind == InodeKind::Directory)
        };
        let diff = self.contents.layers(self.store).get(&record.id).and_then(|files| files.get(b""));
        if diff.is_none_or(|inode| inode.kind != InodeKind::Directory) {
            self.add(Rule::LayerDirectory, format!("{directory}/diff"), "is missing, or is not a directory".to_owned());
        }
        if record.parent().is_none() && !has(self, "empty") {
            self.add(Rule::LayerEmpty, format!("{directory}/empty"), "is missing, or is not a directory".to_owned());
        }
        for name in ["merged", "work"] {
            let path = format!("{directory}/{name}");
            if !has(self, name) && self.contents.rest().get(path.as_bytes()).is_some() {
                self.add(Rule::LayerMountpoint, path, "is not a directory".to_owned());
            }
        }
        let missing: Vec<&str> = ["merged", "work"].into_iter().filter(|name| !has(self, name)).collect();
        if !missing.is_empty() && !self.additional {
            self.add(Rule::LayerWork, directory.clone(), format!("has no {}", missing.join(" and ")));
        }
        let path = format!("{directory}/link");
        let Some(link) = small_text(self.contents, &path, SMALL_MAX) else {
            // `drivers/overlay/overlay.go`, recreateSymlinks and getLowerDirs: `lower` leads to the layers below by overlay/l alone.
            let is_linked = targets.contains(&format!("../{}/diff", record.id)[..]);
            let is_needed = !is_linked || self.additional && layers.is_top(&record.id);
            let severity = if is_needed { Severity::Error } else { Severity::Warning };
            self.add_as(Rule::LayerLink, severity, path, "is missing".to_owned());
            return None;
        };
        if link.is_empty() || !link.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            self.add(Rule::LayerLinkContent, path, format!("has {link:?}, which is not the name of a link"));
            return None;
        }
        let expected = format!("../{}/diff", record.id);
        let place = self.below(&format!("overlay/l/{link}"));
        match links.get(&link) {
            None if targets.contains(&expected[..]) => {
                let what = format!("has {link:?}, and overlay/l has another link to this layer");
                self.add(Rule::LayerLinkContent, path, what);
            }
            None => self.add(Rule::Link, place, format!("the link of layer {} is missing", short(&record.id))),
            Some(target) if *target == expected => {}
            Some(target) if target.starts_with('/') && target.ends_with(&format!("/overlay/{}/diff", record.id)) => {
                self.add(Rule::LinkAbsolute, place, format!("leads to {target:?}, not to {expected:?}"));
            }
            Some(target) => {
                // Within `overlay` there are only layers, or nothing.
                let name = target.strip_prefix("../").and_then(|rest| rest.strip_suffix("/diff"));
                let is_layer = name.is_some_and(|name| !name.contains('/') && name != "..");
                let rule = if is_layer { Rule::LinkLayer } else { Rule::LinkTarget };
                self.add(rule, place, format!("leads to {target:?}, not to {expected:?}"));
            }
        }
        Some(link)
    }

    /// `lower` and `lower-layers`.
    fn lowers(&mut self, record: &LayerRecord, layers: &Layers<'_>, link_of: &HashMap<&str, String>) {
        let directory = self.below(&format!("overlay/{}", record.id));
        let (below, end) = layers.chain(record.parent());
        // That a layer is missing has been said.
        if end != End::Bottom {
            return;
        }
        let lower = small_text(self.contents, &format!("{directory}/lower"), SMALL_MAX);
        let lower_layers = small_text(self.contents, &format!("{directory}/lower-layers"), SMALL_MAX);
        if record.parent().is_none() {
            for (name, found) in [("lower", lower), ("lower-layers", lower_layers)] {
                if let Some(found) = found {
                    let what = format!("has {found:?}, although this is the lowest layer");
                    self.add(Rule::LayerLowerContent, format!("{directory}/{name}"), what);
                }
            }
            return;
        }
        let link = |layer: &&LayerRecord| link_of.get(&layer.id[..]).map(|link| format!("l/{link}"));
        let links: Option<Vec<String>> = below.iter().map(link).collect();
        match (lower, links) {
            (None, _) => self.add(Rule::LayerLower, format!("{directory}/lower"), "is missing".to_owned()),
            (Some(lower), Some(links)) if lower != links.join(":") => {
                let what = format!("has {}, not {}", abridged(&lower), abridged(&links.join(":")));
                self.add(Rule::LayerLowerContent, format!("{directory}/lower"), what);
            }
            // That a link is missing has been said.
            _ => {}
        }
        let ids: Vec<&str> = below.iter().map(|layer| &layer.id[..]).collect();
        let place = format!("{directory}/lower-layers");
        match lower_layers {
            None => self.add(Rule::LayerLowerLayersMissing, place, "is missing".to_owned()),
            Some(found) if found != ids.join(":") => {
                let what = format!("has {}, not {}", abridged(&found), abridged(&ids.join(":")));
                self.add(Rule::LayerLowerLayers, place, what);
            }
            Some(_) => {}
        }
    }

    /// What lies in `overlay/` and `overlay-layers/` and belongs to no layer.
    fn unknown(&mut self, records: &[LayerRecord], images: &[ImageRecord]) {
        let containers = self.containers.clone();
        let known = records.iter().map(|record| &record.id[..]).chain(containers.iter().map(String::as_str));
        let known: BTreeSet<&str> = known.collect();
        let tops = images.iter().filter_map(ImageRecord::top);
        let wanted: BTreeSet<&str> = records.iter().filter_map(LayerRecord::parent).chain(tops).collect();
        let directory = self.below("overlay");
        let names = |directory: &str| -> Vec<(String, bool)> {
            let children = self.contents.rest().children(directory.as_bytes());
            let named = children
                .map(|(name, inode)| (String::from_utf8_lossy(name).into_owned(), inode.kind == InodeKind::Directory));
            named.collect()
        };
        let (overlay, splits) = (names(&directory), names(&self.below("overlay-layers")));
        let directories = overlay.into_iter().filter(|(_, is_directory)| *is_directory).map(|(name, _)| name);
        let mut directories: BTreeSet<String> = directories.collect();
        directories.extend(self.contents.layers(self.store).keys().cloned());
        for name in directories {
            // Releases that do not know `tempdirs` take it for a layer; those that do have it in every store they use.
            let is_known = NO_LAYERS.contains(&&name[..]) && (name != "tempdirs" || !self.contents.is_tar());
            if known.contains(&name[..]) || is_known {
                continue;
            }
            let what = "layers.json has no such layer".to_owned();
            // A record that is missing where another one refers to it has been reported.
            let is_wanted = records.is_empty() || wanted.contains(&name[..]);
            let has_tree = self.contents.layers(self.store).contains_key(&name);
            let is_orphan = has_tree && Digest::from_hex(&name).is_ok() && !is_wanted;
            let rule = if is_orphan { Rule::LayerOrphan } else { Rule::OverlayUnknown };
            self.add(rule, format!("{directory}/{name}"), what);
        }
        for (name, _) in splits {
            if let Some(id) = name.strip_suffix(".tar-split.gz").filter(|id| !known.contains(id)) {
                let what = format!("layers.json has no layer {}", short(id));
                self.add(Rule::TarSplitUnused, self.below(&format!("overlay-layers/{name}")), what);
            }
        }
    }

    /// Puts a layer together from its files; `None` when that cannot be done, which is then said.
    ///
    /// `spare` is how many entries all layers together may still give.
    pub(super) fn replay(&mut self, record: &LayerRecord, files: &Files, spare: &AtomicU64) -> Option<Replayed> {
        let split = self.below(&format!("overlay-layers/{}.tar-split.gz", record.id));
        let Some(inode) = self.contents.rest().get(split.as_bytes()) else {
            if record.has_toc() {
                // containers/storage keeps none of a layer that it has pulled in part.
                self.add_as(Rule::TarSplit, Severity::Note, split, "is missing".to_owned());
            } else {
                self.add(Rule::TarSplit, split, "is missing".to_owned());
            }
            return None;
        };
        if matches!(inode.kind, InodeKind::Regular { size: 0, .. }) {
            self.add(Rule::TarSplit, split, "is empty".to_owned());
            return None;
        }
        let prefix = format!("{}/", self.below(&format!("overlay/{}/diff", record.id)));
        let content = self.contents.open(split.as_bytes(), inode).map_err(|error| error.to_string());
        let replayed = content.and_then(|content| {
            replay(self.contents, files, prefix.as_bytes(), content).map_err(|error: Error| error.to_string())
        });
        let within = |replayed: Replayed| {
            let entries = replayed.tree.len() as u64;
            let take = |left: u64| left.checked_sub(entries);
            match spare.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
                Ok(_) => Ok(replayed),
                Err(_) => Err("the layers have far more entries than there are files".to_owned()),
            }
        };
        match replayed.and_then(within) {
            Ok(replayed) => Some(replayed),
            Err(error) => {
                self.add(Rule::TarSplitMalformed, split, error);
                None
            }
        }
    }

    /// What the layer's record says of it, against what it is.
    pub(super) fn replayed(&mut self, record: &LayerRecord, replayed: &Replayed) {
        let place = self.below(&format!("overlay/{}", record.id));
        if record.is_partial() {
            self.add(Rule::LayerUnverified, place.clone(), "has a toc-digest".to_owned());
        }
        let recorded = record.diff_digest().and_then(|digest| digest.parse::<Digest>().ok());
        if let (Some(found), Some(recorded)) = (replayed.diff_id, recorded)
            && found != recorded
        {
            let what = format!("its files give {found}; layers.json says {recorded}");
            self.add(Rule::LayerDigest, place.clone(), what);
        }
        // Of a layer that was pulled by a table of contents, the size is that of its files.
        if !record.has_toc() && u64::try_from(record.diff_size.unwrap_or(0)).ok() != Some(replayed.size) {
            let what = format!("has {} bytes; layers.json says {}", replayed.size, record.diff_size.unwrap_or(0));
            self.add(Rule::LayerSize, place.clone(), what);
        }
        for (name, recorded, found) in
            [("uidset", &record.uidset, &replayed.uids), ("gidset", &record.gidset, &replayed.gids)]
        {
            if let Some(recorded) = recorded
                // Of more the store may have a part only.
                && found.len() <= OWNERS_MAX
                && recorded.iter().copied().collect::<BTreeSet<_>>() != *found
            {
                self.add(Rule::LayerIds, place.clone(), format!("layers.json has another {name} than its entries"));
            }
        }
    }

    /// The trees of all layers, compared with what they should be. `replayed` is in the order of `records`.
    pub(super) fn trees(&mut self, records: &[LayerRecord], replayed: &[Option<Replayed>], layers: &Layers<'_>) {
        let by_id: HashMap<&str, &Replayed> = records
            .iter()
            .zip(replayed)
            .filter_map(|(record, layer)| Some((&record.id[..], layer.as_ref()?)))
            .collect();
        // The merged view of the layer named and all below it.
        let mut view: (Option<&str>, MergedView) = (None, MergedView::default());
        for (record, layer) in records.iter().zip(replayed) {
            if self.containers.contains(&record.id) {
                continue;
            }
            let Some(files) = self.contents.layers(self.store).get(&record.id) else { continue };
            let path = self.below(&format!("overlay/{}/diff", record.id));
            let tree = Tree { files, path: &path };
            self.tree_alone(&tree);
            let claimed =
                layer.as_ref().filter(|layer| layer.tree.root_claimed()).map(|layer| layer.tree.inode(0).clone());
            let root = |id: &str| self.contents.layers(self.store).get(id)?.get(b"").cloned();
            let parent: Option<Inode> = record.parent().and_then(root);
            let (below, end) = layers.chain(record.parent());
            // The image may want its root closed, and says so in any layer.
            let may_be_closed =
                below.iter().any(|layer| by_id.get(&layer.id[..]).is_some_and(|layer| layer.tree.root_claimed()));
            let is_closed_top = layers.is_top(&record.id) && !may_be_closed;
            self.tree_root(&tree, claimed.as_ref(), parent.as_ref(), is_closed_top);
            let Some(layer) = layer else { continue };
            let mut known = None;
            let has_opaque = layer.tree.live().any(|dirent| layer.tree.inode(dirent).opaque);
            if end == End::Bottom && has_opaque && below.iter().all(|layer| by_id.contains_key(&layer.id[..])) {
                let have = below.iter().position(|layer| view.0 == Some(&layer.id[..])).unwrap_or(below.len());
                if have == below.len() {
                    view = (None, MergedView::default());
                }
                for lower in below[..have].iter().rev() {
                    view.1.stack(&Index::of(&by_id[&lower.id[..]].tree));
                }
                view.0 = below.first().map(|layer| &layer.id[..]);
                known = Some(&view.1);
            }
            self.tree(&tree, layer, known);
        }
    }
}

/// A long list for people.
fn abridged(text: &str) -> String {
    const SHOWN: usize = 80;
    match text.char_indices().nth(SHOWN) {
        None => format!("{text:?}"),
        Some((at, _)) => format!("{:?}... ({} bytes)", &text[..at], text.len()),
    }
}
