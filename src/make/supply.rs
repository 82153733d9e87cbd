//! Layers as segments: those there are, and the threads that make the others.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::{Advance, Error, Known, Progress};
use crate::atomic::Unnamed;
use crate::compression::SizeLimit;
use crate::digest::Digest;
use crate::plan::{BlobSource, Plan};
use crate::segment::cache::{Cache, Pack};
use crate::segment::convert::{self, Job, convert};
use crate::segment::file::{BodyTar, Error as SegmentError, Segment, Trust};
use crate::segment::place::{Place, Slot, Ticket, Turns};
use crate::sink::{self, TarFile};
use crate::storage::store::{Settings, StoreLayer, body_prefix};
use crate::threads;

/// Layers fetched at once from a network, at least: it wants more than a processor.
const FETCHED_MIN: usize = 3;

/// Layers converted at once, at most: each takes a few megabytes.
const WORKERS_MAX: usize = 6;

/// Bytes of a body that may be written before its place in the tar is known, where reading the blob costs no time: they have
/// to be moved then, but keep a processor busy.
const AHEAD: u64 = 64 << 20;

/// How often who waits for a layer looks whether the output has failed.
const LOOK: Duration = Duration::from_millis(100);

/// What a thread is at outlives an attempt to write the tar: its result is taken in the next one.
pub(super) struct Supply {
    work: Arc<Work>,
    segments: BTreeMap<Digest, Arc<Segment>>,
    /// Keys of those that somebody else has made.
    keys: BTreeMap<Digest, Digest>,
    /// Files of segments whose bodies are in the tar, until it is certain that they stay there.
    unsettled: BTreeMap<Digest, Unnamed>,
    /// Lengths of what was damaged: the places of later layers followed from them.
    discarded: BTreeMap<Digest, (u64, u64)>,
    /// Layers that are in no cache, in the store's order.
    missing: Vec<StoreLayer>,
    /// Uncompressed sizes of images.
    totals: Totals,
    /// Layers that were queued and whose results have not been taken, and the places that they may get.
    under_way: BTreeMap<Digest, Slot>,
    queue: Sender<(StoreLayer, Slot)>,
    queued: Arc<Mutex<Receiver<(StoreLayer, Slot)>>>,
    done: Sender<Done>,
    results: Receiver<Done>,
    threads: usize,
    /// Threads at most.
    workers: usize,
    /// Bytes of a body that may be written before its place is known.
    ahead: u64,
}

/// A layer, and how its conversion, or the thread, ended.
type Done = (StoreLayer, std::thread::Result<Result<Made, Error>>);

/// A segment, and its file where that has no name yet: when its body is in the tar.
struct Made(Segment, Option<Unnamed>);

/// What the threads know.
struct Work {
    blobs: BTreeMap<Digest, BlobSource>,
    graphroot: String,
    cache: Cache,
    progress: Arc<dyn Progress>,
    turns: Turns,
    limit: SizeLimit,
    /// The tar, if bodies may be written into it, and its path for messages.
    pack: OnceLock<(Pack, String)>,
    stop: Arc<AtomicBool>,
}

impl Supply {
    pub fn new(plan: &Plan, settings: &Settings, cache: Cache, progress: Arc<dyn Progress>) -> Self {
        let (queue, queued) = channel();
        let (done, results) = channel();
        let (blobs, graphroot) = (plan.blobs.clone(), settings.graphroot.clone());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let is_remote = blobs.values().any(|blob| blob.source.is_remote());
        let (workers, turns, ahead) = if is_remote {
            (cores.clamp(FETCHED_MIN, WORKERS_MAX), Turns::unlimited(), u64::MAX)
        } else {
            // One more is read ahead.
            let at_once = cores.min(WORKERS_MAX);
            (at_once + 1, Turns::new(at_once), AHEAD)
        };
        let pack = OnceLock::new();
        Self {
            work: Arc::new(Work {
                blobs,
                graphroot,
                cache,
                progress,
                turns,
                limit: plan.limit,
                pack,
                stop: Arc::default(),
            }),
            segments: BTreeMap::new(),
            keys: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            discarded: BTreeMap::new(),
            missing: Vec::new(),
            totals: Totals::new(plan),
            under_way: BTreeMap::new(),
            queue,
            queued: Arc::new(Mutex::new(queued)),
            done,
            results,
            threads: 0,
            workers,
            ahead,
        }
    }

    /// The same, with nothing done yet, for who has found that there is no room in the cache. `None` if that has been
    /// tried, or cannot be.
    pub fn without_keeping(&self, plan: &Plan, settings: &Settings) -> Option<Self> {
        let cache = self.work.cache.to_read_only()?;
        let mut next = Self::new(plan, settings, cache, Arc::clone(&self.work.progress));
        // What somebody else has made cannot be had again.
        next.keys.clone_from(&self.keys);
        next.segments = self.keys.keys().filter_map(|id| Some((*id, Arc::clone(self.segments.get(id)?)))).collect();
        Some(next)
    }

    /// Takes what somebody else has open of `layers`; gives how many that were. A blob may have been compressed in another way
    /// than the one that its layer is now said to come from: the tree is the same.
    pub fn take(&mut self, mut known: Known, layers: &[StoreLayer]) -> usize {
        for layer in layers {
            if let Some((key, segment)) = known.remove(&layer.id) {
                self.work.progress.cached(layer);
                self.keys.insert(layer.id, key);
                self.segments.insert(layer.id, Arc::new(segment));
            }
        }
        self.keys.len()
    }

    /// Takes what is in the cache; gives how many layers that were.
    pub fn look(&mut self, layers: &[StoreLayer]) -> usize {
        let mut cached = 0;
        self.missing.clear();
        for layer in layers {
            if self.segments.contains_key(&layer.id) || self.under_way.contains_key(&layer.id) {
                continue;
            }
            if let Some(segment) = self.work.cache.get(&self.work.key(layer)) {
                self.work.progress.cached(layer);
                self.segments.insert(layer.id, Arc::new(segment));
                cached += 1;
            } else {
                self.missing.push(layer.clone());
            }
        }
        self.work.cache.save_seen();
        cached
    }

    /// Has nothing converted but `wanted`.
    pub fn only(&mut self, wanted: &BTreeSet<Digest>) {
        self.missing.retain(|layer| wanted.contains(&layer.id));
    }

    /// Whether the layer is there, or under way.
    pub fn has(&self, layer: &StoreLayer) -> bool {
        self.segments.contains_key(&layer.id) || self.under_way.contains_key(&layer.id)
    }

    /// Has the bodies of the missing layers written into `file`, where the cache can keep it; but not if most of it were
    /// what the cache has already.
    pub fn write_into(&self, file: &TarFile) {
        let new: u64 = self.missing.iter().map(|layer| layer.layer.descriptor.size).sum();
        let old: u64 = self.segments.values().map(|segment| segment.body_len()).sum();
        // A body is larger than its blob.
        if new > 0
            && new >= old / 2
            && let Some(pack) = self.work.cache.adopt(file.unnamed(), new)
        {
            let _ = self.work.pack.set((pack, file.path().display().to_string()));
        }
    }

    /// Has the missing layers converted.
    ///
    /// # Errors
    /// When there is not even one thread for it.
    pub fn start(&mut self) -> io::Result<()> {
        for layer in &self.missing {
            if let Some(from) = self.work.blobs.get(&layer.layer.descriptor.digest) {
                self.work.progress.queued(layer, &from.item, from.source.is_remote());
            }
        }
        for layer in self.missing.drain(..) {
            let slot = if self.work.pack.get().is_some() { Slot::new(self.ahead) } else { Slot::none() };
            self.under_way.insert(layer.id, slot.clone());
            // We hold the other end.
            let _ = self.queue.send((layer, slot));
        }
        while self.threads < self.workers.min(self.under_way.len()) {
            let (work, queued, done) = (Arc::clone(&self.work), Arc::clone(&self.queued), self.done.clone());
            match threads::spawn(move || work.run(&queued, &done)) {
                Ok(_) => self.threads += 1,
                Err(_) if self.threads > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The file that bodies are written into.
    pub fn written(&self) -> Option<Arc<File>> {
        self.work.pack.get().map(|(pack, _)| Arc::clone(&pack.file))
    }

    /// The tar of the cache that has the first body, if every layer is in the cache and it may be given the name `path`.
    pub fn lend(&self, layers: &[StoreLayer], path: &Path) -> Option<Arc<File>> {
        if !self.missing.is_empty() {
            return None;
        }
        let number = self.segments.get(&layers.first()?.id)?.tar_number();
        (number != 0).then(|| self.work.cache.lend(number, path))?
    }

    /// Has the tar published by `publish`, and notes that what was written into it is right.
    pub fn publish<T, E>(&self, publish: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        match self.work.pack.get() {
            Some((pack, _)) => self.work.cache.publish(pack, publish),
            None => publish(),
        }
    }

    /// Has a lent tar published by `publish`, which changes its times: what was right in it still is.
    pub fn publish_lent<T, E>(&self, lent: &File, publish: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.work.cache.touch(lent, publish)
    }

    /// The body of `layer`, if it is still being written, belongs behind its root's header at `offset`.
    pub fn place(&self, layer: &StoreLayer, offset: u64, stamp: i64) {
        if let (Some((pack, _)), Some(slot)) = (self.work.pack.get(), self.under_way.get(&layer.id)) {
            slot.give(Place { tar: Arc::clone(&pack.file), number: pack.number, offset, stamp });
        }
    }

    /// The segment of a layer, as soon as there is one. The first failure of any layer ends the wait, and so does `is_over`.
    pub fn wait(&mut self, layer: &StoreLayer, is_over: &AtomicBool) -> Result<Arc<Segment>, Error> {
        loop {
            if let Some(segment) = self.segments.get(&layer.id) {
                self.totals.add(layer, segment.facts().diff_size)?;
                return Ok(Arc::clone(segment));
            }
            match self.results.recv_timeout(LOOK) {
                Ok((ended, result)) => {
                    let id = ended.id;
                    self.under_way.remove(&id);
                    let Made(segment, file) = result.unwrap_or_else(|panic| resume_unwind(panic))?;
                    // Not only when its turn comes: while a server keeps one layer waiting, all others could exceed the limit.
                    self.totals.add(&ended, segment.facts().diff_size)?;
                    let lengths = (segment.body_len(), segment.split_len());
                    if self.discarded.get(&id).is_some_and(|before| *before != lengths) {
                        // By another program: then it would not have this key.
                        let text = format!("layer {id} was converted differently before; run again");
                        return Err(Error::Cache(io::Error::other(text)));
                    }
                    self.segments.insert(id, Arc::new(segment));
                    self.unsettled.extend(file.map(|file| (id, file)));
                }
                Err(RecvTimeoutError::Timeout) if !is_over.load(Ordering::Relaxed) => {}
                Err(_) => return Err(Error::Stopped),
            }
        }
    }

    /// Keeps the segment of a layer whose body is in the tar, if it is in its place. Else it gets a file of its own.
    pub fn settle(&mut self, layer: &StoreLayer, is_in_place: bool) -> Result<(), Error> {
        let Some(file) = self.unsettled.remove(&layer.id) else { return Ok(()) };
        let key = self.work.key(layer);
        let cache = &self.work.cache;
        let segment = self.segments.get(&layer.id).ok_or(Error::Stopped)?;
        if is_in_place {
            let end = segment.tar().map_or(0, |(_, offset)| offset + segment.body_len());
            let pack = self.work.pack.get().map(|(pack, _)| (pack, end));
            return cache.keep(file, &key, pack).map_err(Error::Cache);
        }
        let own = cache.new_file().map_err(Error::Cache)?;
        let handle = own.file().try_clone().map_err(Error::Cache)?;
        segment.move_to(handle, &key).map_err(|error| match error {
            SegmentError::Io(error) => Error::Cache(error),
            error => sink::Error::Segment { layer: layer.id, error }.into(),
        })?;
        cache.keep(own, &key, None).map_err(Error::Cache)
    }

    /// Forgets the segment of `layer`, which is damaged.
    pub fn discard(&mut self, layer: &StoreLayer) {
        // The next attempt waits for this layer, which is converted after those that are under way: they must not wait for it.
        self.under_way.values().for_each(Slot::refuse);
        self.work.cache.evict(&self.work.key(layer));
        self.unsettled.remove(&layer.id);
        self.keys.remove(&layer.id);
        if let Some(segment) = self.segments.remove(&layer.id) {
            self.discarded.insert(layer.id, (segment.body_len(), segment.split_len()));
        }
    }

    /// The key of a layer's segment.
    pub fn key(&self, layer: &StoreLayer) -> Digest {
        self.keys.get(&layer.id).copied().unwrap_or_else(|| self.work.key(layer))
    }

    /// Something for the user to know.
    pub fn note(&self, text: &str) {
        self.work.progress.note(text);
    }

    /// Removes what turned out to be of no use in the cache.
    pub fn sweep(&self) {
        self.work.cache.sweep();
    }

    /// The sizes of all layers when unpacked.
    pub fn sizes(&self) -> BTreeMap<Digest, u64> {
        self.segments.iter().map(|(id, segment)| (*id, segment.facts().diff_size)).collect()
    }
}

impl Drop for Supply {
    fn drop(&mut self) {
        // Threads that still convert see it at their next read.
        self.work.stop.store(true, Ordering::Relaxed);
        self.under_way.values().for_each(Slot::refuse);
        // They hold it, too.
        if let Some((pack, _)) = self.work.pack.get() {
            pack.close();
        }
    }
}

impl Work {
    fn run(&self, queued: &Mutex<Receiver<(StoreLayer, Slot)>>, done: &Sender<Done>) {
        loop {
            // The lock is held while waiting: the other threads wait for the lock instead of the layer.
            let Ok((Ok((layer, slot)), ticket)) = queued.lock().map(|queued| (queued.recv(), self.turns.ticket()))
            else {
                return;
            };
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let result = catch_unwind(AssertUnwindSafe(|| self.convert(&layer, &slot, ticket)));
            if done.send((layer, result)).is_err() {
                return;
            }
        }
    }

    fn convert(&self, layer: &StoreLayer, slot: &Slot, ticket: Ticket<'_>) -> Result<Made, Error> {
        let blob = &layer.layer.descriptor;
        let from = self.blobs.get(&blob.digest).ok_or(Error::NoSource(layer.id))?;
        let inner = from.open(blob).map_err(|error| Error::fetch(from, &layer.layer, error))?;
        let blob_reader =
            Watched { inner, stop: Arc::clone(&self.stop), advance: self.progress.begin(layer, &from.item) };
        let key = self.key(layer);
        let prefix = body_prefix(&self.graphroot, &layer.id);
        let scratch = self.cache.directory();
        let job = Job {
            descriptor: blob,
            diff_id: layer.layer.diff_id,
            prefix: &prefix,
            key,
            scratch,
            slot,
            limit: self.limit,
        };
        // A body that has to be written again gets a second file; the last one is the segment.
        let last = RefCell::new(None);
        let new_file = || {
            let file = self.cache.new_file()?;
            let handle = file.file().try_clone()?;
            *last.borrow_mut() = Some(file);
            Ok(handle)
        };
        convert(Box::new(blob_reader), &job, ticket, &new_file).map_err(|error| match error {
            convert::Error::Place(error) => {
                let what = self.pack.get().map(|(_, path)| path.clone()).unwrap_or_default();
                sink::Error::Write { what, error }.into()
            }
            error => Error::Convert { item: from.item.clone(), blob: blob.digest, error: Box::new(error) },
        })?;
        self.progress.end(layer);
        let file = last.into_inner().ok_or(Error::Stopped)?;
        let fail = |error| sink::Error::Segment { layer: layer.id, error };
        let handle = file.file().try_clone().map_err(Error::Cache)?;
        let tar = |_| {
            let own = |(pack, _): &(Pack, String)| BodyTar { file: Arc::clone(&pack.file), trust: Trust::Own };
            Ok(self.pack.get().map(own))
        };
        let segment = Segment::open(handle, &key, tar).map_err(fail)?;
        if segment.tar().is_some() {
            return Ok(Made(segment, Some(file)));
        }
        self.cache.keep(file, &key, None).map_err(Error::Cache)?;
        Ok(Made(segment, None))
    }

    fn key(&self, layer: &StoreLayer) -> Digest {
        Cache::key(&layer.id, &layer.layer.descriptor, &body_prefix(&self.graphroot, &layer.id))
    }
}

/// Uncompressed and compressed sizes of images, as far as their layers are known.
#[derive(Debug)]
struct Totals {
    limit: SizeLimit,
    /// The numbers of the images that have a layer.
    images: HashMap<Digest, Vec<usize>>,
    /// A name, and the two sizes.
    totals: Vec<(String, u64, u64)>,
    counted: HashSet<Digest>,
}

impl Totals {
    fn new(plan: &Plan) -> Self {
        let mut images: HashMap<Digest, Vec<usize>> = HashMap::new();
        let mut totals = Vec::with_capacity(plan.images.len());
        for (number, (id, image)) in plan.images.iter().enumerate() {
            image.chain().iter().for_each(|layer| images.entry(*layer).or_default().push(number));
            totals.push((image.names().next().map_or_else(|| id.to_string(), str::to_owned), 0, 0));
        }
        Self { limit: plan.limit, images, totals, counted: HashSet::new() }
    }

    /// Counts a layer of `plain` bytes to all its images, once.
    fn add(&mut self, layer: &StoreLayer, plain: u64) -> Result<(), Error> {
        if !self.counted.insert(layer.id) {
            return Ok(());
        }
        for number in self.images.get(&layer.id).into_iter().flatten() {
            let (image, total, compressed) = &mut self.totals[*number];
            *total = total.saturating_add(plain);
            *compressed = compressed.saturating_add(layer.layer.descriptor.size);
            let check = self.limit.check(*total, *compressed);
            check.map_err(|error| Error::TooLarge { image: image.clone(), layer: layer.id, error })?;
        }
        Ok(())
    }
}

/// A blob on its way: seen by the user, and cut off when another layer has failed.
struct Watched {
    inner: Box<dyn Read + Send>,
    stop: Arc<AtomicBool>,
    advance: Advance,
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("stopped"));
        }
        let count = self.inner.read(buffer)?;
        (self.advance)(count as u64);
        Ok(count)
    }
}
