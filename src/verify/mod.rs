//! Whether a store is whole, and whether CRI-O would keep it: `prepull verify`.
//!
//! ```text
//!  tar ───────┐              ┌─ records ─▶ images ─┐
//!             ├─▶ Contents ──┼─ skeletons, links ──┼─▶ Report
//!  directory ─┘              ├─ replay ─▶ trees ───┤
//!                            └─ the machine ───────┘
//! ```
//!
//! Each layer is put together again from its files, which gives its digest, and what unpacking that would leave is compared
//! with what is there. Rules, and what happens when one is broken, are in [`rule`].

mod beside;
mod image;
mod input;
mod layer;
mod machine;
mod records;
mod replay;
pub mod report;
mod restore;
pub mod rule;
pub mod shown;
mod skeleton;
mod tree;
mod unpacker;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::digest::Digest;
use crate::image::LAYERS_MAX;
use crate::inspect::contents::{Contents, join};
use crate::inspect::find::{self, Found};
use crate::layer::tar::TarError;
use crate::storage::link_name;
use crate::storage::store::Unpacker;
use crate::threads;
use records::{ImageRecord, LayerRecord};
use replay::Replayed;
use report::{Finding, Report, StoreSummary};
use rule::{Fate, Rule, Severity};

/// The most entries that the tar-splits of one store may give, beyond twice as many as there are files: two million, as one layer
/// may have. Each takes some 300 bytes of memory, and a few bytes of gzip can ask for one.
const ENTRIES_SPARE: u64 = 2_000_000;

/// Maximum size of the file `link` of a layer, in bytes: a name has 26.
const LINK_MAX: u64 = 64;

/// Maximum number of findings of one rule about one image.
const IMAGE_FINDINGS_MAX: usize = 5;

/// What is known beside the store.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// What will unpack the tar; `None`: what it was made for, as far as that can be seen.
    pub unpacker: Option<Unpacker>,
    /// Whether the stores are additional ones; `None`: as storage.conf or their place says.
    pub additional: Option<bool>,
}

/// Verifies all stores in the tar or directory at `path` (`-`: standard input).
///
/// # Errors
/// When `path` cannot be read, or has no store. A damaged store is not an error: the report says so. The report about a tar that
/// is damaged before its records has no store.
pub fn verify(path: &Path, options: &Options) -> Result<Report, find::Error> {
    let mut report = Report::default();
    let damaged = |error: &dyn std::fmt::Display| Finding { place: "the tar".to_owned(), what: error.to_string() };
    find::refuse_rootless(path, "verify")?;
    let contents = match Contents::of(path) {
        Ok(contents) => contents,
        // What has nothing of a store is not a damaged store.
        Err(find::Error::Tar(error @ (TarError::Header { .. } | TarError::Truncated { .. }), true)) => {
            report.add(Rule::TarDamaged, Severity::Error, true, damaged(&error));
            return Ok(report);
        }
        Err(error @ find::Error::Sparse(true)) => {
            report.add(Rule::TarSparse, Severity::Error, true, damaged(&error));
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    if contents.stores().is_empty() {
        return Err(find::Error::NoStore);
    }
    let unpacker = options.unpacker.unwrap_or_else(|| unpacker::made_for(&contents));
    let checked = contents.stores().iter().any(|found| !is_additional(&contents, found, options));
    input::judge(&contents, unpacker, checked, &mut report);
    machine::judge(&contents, &mut report);
    for store in 0..contents.stores().len() {
        let mut judge = Judge::new(&contents, store, options, unpacker);
        let summary = judge.judge(None);
        report.merge(judge.report);
        report.stores.push(summary);
    }
    // Not what is wrong with the store, but that nobody knows.
    contents.failure().map_or(Ok(report), |error| Err(error.into()))
}

/// A finding about one image.
#[derive(Debug)]
pub struct ImageFinding {
    /// Place of the fault: a path in the input, or an image.
    pub place: String,
    /// The fault.
    pub what: String,
    /// Consequence for people.
    pub then: &'static str,
    /// Fate at a start of CRI-O.
    pub start: Fate,
    /// True if it is about data that no record names any more.
    pub orphan: bool,
}

/// Verifies what `image` (the number of its store, and its id) needs to be listed and run by a machine that reads the stores
/// `used` (number, and whether it is an additional one): records and files, its layers' directories and links, and whatever
/// keeps CRI-O from starting or from listing every image. No layer's files are compared. Returns the errors, the worst first.
#[must_use]
pub fn verify_image(contents: &Contents, used: &[(usize, bool)], image: Option<(usize, &str)>) -> Vec<ImageFinding> {
    let judge = |(store, additional)| {
        let options = Options { additional: Some(additional), ..Options::default() };
        Judge::new(contents, store, &options, Unpacker::Root)
    };
    let mut focus = BTreeSet::new();
    if let Some((store, id)) = image {
        let mut judge = judge((store, false));
        let (images, foreign) = (judge.image_records(), judge.foreign_layers());
        let records = judge.layer_records_or_none(false);
        let layers = Layers::new(&records, &foreign, &images);
        let top = images.iter().find(|image| image.id == id).and_then(ImageRecord::top);
        focus.insert(id.to_owned());
        focus.extend(layers.chain(top).0.into_iter().map(|layer| layer.id.clone()));
    }
    let mut all = Vec::new();
    for &(store, additional) in used {
        let mut judge = judge((store, additional));
        judge.judge(Some(&focus));
        for (rule, _, group) in judge.report.groups().filter(|(_, severity, _)| *severity == Severity::Error) {
            let (start, _) = if additional { rule.fates_in_additional() } else { rule.fates() };
            let first = group.first.iter().take(IMAGE_FINDINGS_MAX).cloned();
            let (then, orphan) = (rule.info().then, rule.is_orphan());
            all.extend(first.map(|Finding { place, what }| ImageFinding { place, what, then, start, orphan }));
        }
    }
    all.sort_by_key(|finding| std::cmp::Reverse(finding.start));
    all
}

fn is_additional(contents: &Contents, found: &Found, options: &Options) -> bool {
    options.additional.unwrap_or_else(|| machine::is_additional(contents, &found.graphroot))
}

/// One store under examination.
struct Judge<'a> {
    contents: &'a Contents,
    store: usize,
    found: &'a Found,
    additional: bool,
    unpacker: Unpacker,
    /// Whether attributes that only root sees may be there and not be seen.
    blind: bool,
    /// Layers of containers: they change, and no image has them.
    containers: BTreeSet<String>,
    /// Files about containers that cannot be read.
    unreadable: Vec<records::Unreadable>,
    /// Size and digest of files beside the layers, by the numbers of their inodes.
    digests: HashMap<u32, (u64, Digest)>,
    /// Id of the image or layer that findings are about; `None`: the store as a whole.
    about: Option<String>,
    /// Ids of the image and layers whose findings are kept, beside those that concern every image; `None`: all.
    focus: Option<BTreeSet<String>>,
    report: Report,
}

impl<'a> Judge<'a> {
    fn new(contents: &'a Contents, store: usize, options: &Options, unpacker: Unpacker) -> Self {
        let found = &contents.stores()[store];
        let (containers, unreadable) = records::layers_of_containers(contents, &found.graphroot);
        Self {
            contents,
            store,
            found,
            additional: is_additional(contents, found, options),
            unpacker,
            blind: !contents.is_tar() && !rustix::process::geteuid().is_root(),
            containers,
            unreadable,
            digests: HashMap::new(),
            about: None,
            focus: None,
            report: Report::default(),
        }
    }

    fn add(&mut self, rule: Rule, place: String, what: String) {
        let info = rule.info();
        self.add_as(rule, if self.additional { info.additional } else { info.primary }, place, what);
    }

    fn add_as(&mut self, rule: Rule, severity: Severity, place: String, what: String) {
        if let (Some(focus), Some(about)) = (&self.focus, &self.about)
            && !focus.contains(about)
            && !rule.concerns_all_images(self.additional)
        {
            return;
        }
        self.report.add(rule, severity, !self.additional, Finding { place, what });
    }

    /// A path in the store as a path in the input.
    fn below(&self, path: &str) -> String {
        if self.found.graphroot.is_empty() { path.to_owned() } else { format!("{}/{path}", self.found.graphroot) }
    }

    /// `overlay-images/images.json` or `overlay-layers/layers.json`, in the input.
    fn records(&self, file: &str) -> String {
        self.below(&format!("{}-{file}", self.found.driver))
    }

    /// Judges the store; with `focus`, only what these images and layers, or all, depend on, without comparing files.
    fn judge(&mut self, focus: Option<&BTreeSet<String>>) -> StoreSummary {
        let mut summary = StoreSummary {
            graphroot: self.found.graphroot.clone(),
            additional: self.additional,
            ..StoreSummary::default()
        };
        self.focus = focus.cloned();
        if self.found.driver != "overlay" {
            let what = format!("the store is of the driver {:?}", self.found.driver);
            self.add(Rule::Driver, self.below(&format!("{}-images", self.found.driver)), what);
            return summary;
        }
        let images = self.image_records();
        let foreign = self.foreign_layers();
        let others = foreign.iter().any(|layer| images.iter().any(|image| image.top() == Some(&layer.id)));
        let records = self.layer_records_or_none(!others && images.iter().any(|image| image.top().is_some()));
        let layers = Layers::new(&records, &foreign, &images);
        // What an image has is compared, whoever says that it is a container's.
        self.containers.retain(|id| !layers.is_used(id));
        self.images(&images, &layers);
        self.layer_records(&records, &layers);
        self.skeletons(&records, &images, &layers);
        self.store_files();
        self.runtime_records();
        self.beside_additional(&images, &records);
        if focus.is_some() {
            return summary;
        }
        let replayed = self.replay_all(&records);
        for (record, layer) in records.iter().zip(&replayed) {
            if let Some(layer) = layer {
                self.replayed(record, layer);
                let recorded = layer.diff_id.map(|digest| digest.to_string());
                summary.replayed += usize::from(recorded.as_deref() == record.diff_digest());
            }
        }
        self.trees(&records, &replayed, &layers);
        self.unpacking();
        summary.images = images.len();
        summary.layers = records.len();
        for files in self.contents.layers(self.store).values() {
            summary.entries += files.len();
        }
        // As `ls` and containers/storage `store.go`, ImageSize, count an image; a layer that several images share counts once.
        let layer_sizes = records.iter().filter_map(|layer| layer.diff_size);
        let data_sizes = images.iter().flat_map(|image| image.big_data_sizes.iter().flatten()).map(|(_, size)| *size);
        let sizes = layer_sizes.chain(data_sizes).filter_map(|size| u64::try_from(size).ok());
        summary.bytes = sizes.fold(0, u64::saturating_add);
        summary
    }

    /// Reports files about containers that cannot be read. An additional store has no containers.
    fn runtime_records(&mut self) {
        for records::Unreadable { file, why } in std::mem::take(&mut self.unreadable) {
            let rule = if file == records::VOLATILE_LAYERS { Rule::VolatileLayers } else { Rule::ContainersJson };
            if !(self.additional && rule == Rule::ContainersJson) {
                self.add(rule, self.below(file), why);
            }
        }
    }

    /// The layers of the other stores: an image may have some of them (containers/storage `store.go`, `putLayer`).
    fn foreign_layers(&self) -> Vec<LayerRecord> {
        let others = self
            .contents
            .stores()
            .iter()
            .enumerate()
            .filter(|(store, found)| *store != self.store && found.driver == self.found.driver);
        let parsed = others.filter_map(|(_, found)| {
            records::parse(&found.layers, |layer: &LayerRecord| layer.created.as_deref()).ok().flatten()
        });
        parsed.flatten().collect()
    }

    /// Returns whether the record at `place` is not a regular file, which is then reported.
    fn is_unreadable(&mut self, place: &str) -> bool {
        let is_unreadable = self.found.unreadable.iter().any(|path| path == place);
        if is_unreadable {
            self.add(Rule::StoreType, place.to_owned(), "is not a regular file in it".to_owned());
        }
        is_unreadable
    }

    fn image_records(&mut self) -> Vec<ImageRecord> {
        let place = self.records("images/images.json");
        if self.is_unreadable(&place) {
            return Vec::new();
        }
        match records::parse(&self.found.images, |image: &ImageRecord| image.created.as_deref()) {
            Ok(Some(images)) if !images.is_empty() => return images,
            // CRI-O and podman write no images.json before their first image (containers/storage `images.go`, `load`, takes a
            // missing or empty file for no images), and `rm` leaves an empty list.
            Ok(_) if self.image_directories().is_empty() => {}
            Ok(_) => self.add(Rule::ImagesJson, place, "is missing or empty".to_owned()),
            Err(error) => self.add(Rule::ImagesJsonSyntax, place, error),
        }
        Vec::new()
    }

    /// `needed`: an image has layers. Where none has, containers/storage writes no such file.
    fn layer_records_or_none(&mut self, needed: bool) -> Vec<LayerRecord> {
        let place = self.records("layers/layers.json");
        if self.is_unreadable(&place) {
            return Vec::new();
        }
        match records::parse(&self.found.layers, |layer: &LayerRecord| layer.created.as_deref()) {
            Ok(Some(layers)) => return layers,
            Ok(None) if needed => self.add(Rule::LayersJson, place, "is missing or empty".to_owned()),
            Ok(None) => {}
            Err(error) => self.add(Rule::LayersJsonSyntax, place, error),
        }
        Vec::new()
    }

    /// All layers, several at a time.
    fn replay_all(&mut self, records: &[LayerRecord]) -> Vec<Option<Replayed>> {
        let next = AtomicUsize::new(0);
        let mut all: Vec<Option<Replayed>> = records.iter().map(|_| None).collect();
        // Findings in the order of the layers, whoever is ready first.
        let mut reports: Vec<Report> = records.iter().map(|_| Report::default()).collect();
        let results = Mutex::new((&mut all, &mut reports));
        let (contents, store, found) = (self.contents, self.store, self.found);
        let (additional, unpacker, blind, containers) = (self.additional, self.unpacker, self.blind, &self.containers);
        let spare = AtomicU64::new(2 * contents.entries() as u64 + ENTRIES_SPARE);
        let work = || loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(record) = records.get(number).filter(|record| !containers.contains(&record.id)) else {
                if number < records.len() {
                    continue;
                }
                break;
            };
            let Some(files) = contents.layers(store).get(&record.id) else { continue };
            let report = Report::default();
            let containers = BTreeSet::new();
            let digests = HashMap::new();
            let (unreadable, about, focus) = (Vec::new(), None, None);
            let mut judge = Judge {
                contents,
                store,
                found,
                additional,
                unpacker,
                blind,
                containers,
                unreadable,
                digests,
                about,
                focus,
                report,
            };
            let replayed = judge.replay(record, files, &spare);
            let mut results = results.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            results.0[number] = replayed;
            results.1[number] = judge.report;
        };
        let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(records.len());
        std::thread::scope(|scope| {
            // Where there are no more threads to have, fewer do.
            for _ in 1..workers {
                if threads::spawn_in(scope, work).is_err() {
                    break;
                }
            }
            work();
        });
        for report in reports {
            self.report.merge(report);
        }
        all
    }
}

/// Returns whether prepull made the layer `id` of the store at `graphroot`: it derives the short link from the id, where
/// containers/storage draws it at random.
fn is_made_by_prepull(contents: &Contents, graphroot: &str, id: &str) -> bool {
    let path = join(graphroot.as_bytes(), format!("overlay/{id}/link").as_bytes());
    let link = contents.small(&path, LINK_MAX).ok().flatten();
    Digest::from_hex(id).is_ok_and(|id| link.as_deref() == Some(link_name(&id).as_bytes()))
}

/// The text of a small file outside of layers' trees; `None` when it is not there or too large.
fn small_text(contents: &Contents, path: &str, max: u64) -> Option<String> {
    let bytes = contents.small(path.as_bytes(), max).ok()??;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// What is below the lowest layer that a chain has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End<'a> {
    /// Nothing: it is the lowest.
    Bottom,
    /// A layer without a record.
    Missing(&'a str),
    /// A layer that the chain has already.
    Circle(&'a str),
    /// Some more, beyond what overlay takes.
    TooLong,
}

/// The layers of a store by their ids, and which of them images have.
struct Layers<'a> {
    by_id: HashMap<&'a str, &'a LayerRecord>,
    used: BTreeSet<&'a str>,
    tops: BTreeSet<&'a str>,
}

impl<'a> Layers<'a> {
    /// `foreign`: those of other stores, which count where this one has none of that id.
    fn new(records: &'a [LayerRecord], foreign: &'a [LayerRecord], images: &'a [ImageRecord]) -> Self {
        let by_id = foreign.iter().chain(records).map(|record| (&record.id[..], record)).collect();
        let mut layers = Self { by_id, used: BTreeSet::new(), tops: BTreeSet::new() };
        for image in images {
            layers.tops.extend(image.top());
            let mut next = image.top();
            while let Some(record) = next.and_then(|id| layers.by_id.get(id)) {
                if !layers.used.insert(&record.id) {
                    break;
                }
                next = record.parent();
            }
        }
        layers
    }

    /// The layer `top` and those below it, nearest first, as far as there are records, each once; and what is below. No more
    /// than one beyond what overlay takes: every layer's chain is walked.
    fn chain<'b>(&'b self, top: Option<&'b str>) -> (Vec<&'a LayerRecord>, End<'b>) {
        let mut chain: Vec<&'a LayerRecord> = Vec::new();
        let mut seen = HashSet::new();
        let mut next = top;
        let end = loop {
            let Some(id) = next else { break End::Bottom };
            let Some(&record) = self.by_id.get(id) else { break End::Missing(id) };
            if !seen.insert(id) {
                break End::Circle(id);
            }
            if chain.len() > LAYERS_MAX {
                break End::TooLong;
            }
            chain.push(record);
            next = record.parent();
        };
        (chain, end)
    }

    /// Returns whether the image with the layer `top` has a layer that its table of contents identifies: the image's id is then
    /// not its config's digest (containers/image `storage/storage_dest.go`, `computeID`).
    fn is_on_partial(&self, top: Option<&str>) -> bool {
        self.chain(top).0.iter().any(|layer| layer.is_partial())
    }

    fn is_used(&self, id: &str) -> bool {
        self.used.contains(id)
    }

    fn is_top(&self, id: &str) -> bool {
        self.tops.contains(id)
    }
}
