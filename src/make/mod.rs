//! `make`: the segments of all layers, converted or from the cache, put together to one tar.
//!
//! ```text
//!  largest first            in the store's order
//!  layer ─▶ worker ─┐
//!  layer ─▶ worker ─┼─▶ segments ─▶ Store ─▶ pieces ─▶ file (written at offsets) or stream
//!  layer ─▶ worker ─┘
//! ```

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::digest::Digest;
use crate::plan::{BlobSource, Plan};
use crate::segment::cache::Cache;
use crate::segment::convert::{self, Job, convert};
use crate::segment::file::{Error as SegmentError, Segment};
use crate::sink::{self, TarFile, TarStream};
use crate::source;
use crate::storage::store::{Piece, Settings, Store, StoreLayer, body_prefix, layers_of};

/// Layers fetched and converted at once, at least: a network wants more than a processor.
const WORKERS_MIN: usize = 3;

/// Layers converted at once, at most: each takes a few megabytes.
const WORKERS_MAX: usize = 8;

/// How often one layer's damaged cache file is made again before prepull gives up: then it is the disk.
const ATTEMPTS: usize = 5;

/// How often who waits for a layer looks whether the output has failed.
const LOOK: Duration = Duration::from_millis(100);

/// Takes the number of bytes that have come since it was called last.
pub type Advance = Box<dyn FnMut(u64) + Send>;

/// Told what happens, from several threads.
pub trait Progress: Send + Sync {
    /// A layer is in the cache.
    fn cached(&self, layer: &StoreLayer);
    /// A layer is being fetched; gives what is to be told of its blob's bytes.
    fn begin(&self, layer: &StoreLayer, item: &str) -> Advance;
    /// It is converted.
    fn end(&self, layer: &StoreLayer);
    /// Something for the user to know.
    fn note(&self, text: &str);
}

/// Where the tar goes.
#[derive(Debug)]
pub enum Output<'a> {
    /// Into a file.
    File(TarFile),
    /// Into a stream.
    Stream(TarStream<'a>),
}

/// Why there is no tar.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A layer cannot be fetched.
    #[error("{item}: layer {blob}: {error}")]
    Fetch {
        /// The item it belongs to.
        item: String,
        /// The layer's blob.
        blob: Digest,
        /// Why.
        error: source::Error,
    },
    /// A layer cannot be converted.
    #[error("{item}: layer {blob}: {error}")]
    Convert {
        /// The item it belongs to.
        item: String,
        /// The layer's blob.
        blob: Digest,
        /// Why.
        error: Box<convert::Error>,
    },
    /// The cache cannot be used.
    #[error("cache: {0} (--cache-dir DIR or --no-cache goes around it)")]
    Cache(io::Error),
    /// The output failed.
    #[error(transparent)]
    Sink(#[from] sink::Error),
    /// The records are no JSON.
    #[error("writing the store's records: {0}")]
    Json(#[from] serde_json::Error),
    /// Another thread failed first.
    #[error("stopped")]
    Stopped,
}

impl Error {
    /// Whether something of an image is simply not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Fetch { error: source::Error::NotFound(_), .. })
    }
}

/// What was made.
#[derive(Debug, Clone)]
pub struct Report {
    /// Bytes of the tar.
    pub bytes: u64,
    /// The layers, with the size of each when unpacked.
    pub layers: BTreeMap<Digest, u64>,
    /// How many of them came from the cache.
    pub cached: usize,
    /// What the user should know: one line each.
    pub warnings: Vec<String>,
}

/// Makes the tar.
///
/// # Errors
/// When a layer cannot be had or the tar cannot be written; then there is no file. Threads that wait for a silent server
/// are not waited for: they end at their next byte, or with the process.
pub fn make(
    plan: &Plan,
    settings: &Settings,
    cache: Cache,
    output: Output<'_>,
    progress: Arc<dyn Progress>,
) -> Result<Report, Error> {
    Make { plan, settings }.run(Supply::new(plan, settings, cache, progress), output)
}

struct Make<'a> {
    plan: &'a Plan,
    settings: &'a Settings,
}

impl Make<'_> {
    fn run(&self, mut supply: Supply, mut output: Output<'_>) -> Result<Report, Error> {
        let layers = layers_of(&self.plan.images);
        let mut cached = None;
        let mut attempts: BTreeMap<Digest, usize> = BTreeMap::new();
        loop {
            let found = supply.request(&layers);
            let cached = *cached.get_or_insert(found);
            let result = match &mut output {
                Output::File(file) => self.to_file(file, &layers, &mut supply),
                Output::Stream(stream) => self.to_stream(stream, &layers, &mut supply),
            };
            match result {
                Err(Error::Sink(sink::Error::Segment { layer, error: SegmentError::Damaged }))
                    if *attempts.entry(layer).and_modify(|count| *count += 1).or_insert(1) < ATTEMPTS =>
                {
                    let note = format!("cache file of layer {layer} is damaged: converting the layer again");
                    supply.work.progress.note(&note);
                    layers.iter().filter(|other| other.id == layer).for_each(|layer| supply.discard(layer));
                }
                Err(error) => return Err(error),
                Ok((bytes, warnings)) => {
                    let bytes = match output {
                        Output::File(file) => file.publish().map(|()| bytes)?,
                        Output::Stream(stream) => stream.finish()?,
                    };
                    let layers = supply.segments.iter().map(|(id, segment)| (*id, segment.facts().diff_size)).collect();
                    return Ok(Report { bytes, layers, cached, warnings });
                }
            }
        }
    }

    /// Layers are converted while those before them are written.
    fn to_file(&self, file: &TarFile, layers: &[StoreLayer], supply: &mut Supply) -> Result<(u64, Vec<String>), Error> {
        std::thread::scope(|scope| {
            let mut pieces = file.begin(scope, self.settings.stamp)?;
            let mut warnings = Vec::new();
            let has_failed = pieces.has_failed();
            let mut next = |layer: &StoreLayer| supply.wait(layer, &has_failed);
            let assembled = self
                .assemble(layers, &mut next, &mut warnings, |piece| pieces.push(piece).map_err(|()| Error::Stopped));
            // Where a thread that writes failed, its error is the cause.
            let bytes = pieces.finish()?;
            assembled.map(|()| (bytes, warnings))
        })
    }

    /// Nothing goes out before every layer is verified: who reads a pipe cannot take bytes back.
    fn to_stream(
        &self,
        stream: &mut TarStream<'_>,
        layers: &[StoreLayer],
        supply: &mut Supply,
    ) -> Result<(u64, Vec<String>), Error> {
        let mut next = |layer: &StoreLayer| supply.wait(layer, &AtomicBool::new(false));
        layers.iter().try_for_each(|layer| next(layer).map(drop))?;
        stream.restart();
        let mut warnings = Vec::new();
        self.assemble(layers, &mut next, &mut warnings, |piece| Ok(stream.push(&piece)?))?;
        Ok((0, warnings))
    }

    fn assemble(
        &self,
        layers: &[StoreLayer],
        next: &mut dyn FnMut(&StoreLayer) -> Result<Arc<Segment>, Error>,
        warnings: &mut Vec<String>,
        mut push: impl FnMut(Piece) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut store = Store::new(self.settings, &self.plan.images);
        push(store.skeleton())?;
        for layer in layers {
            let segment = next(layer)?;
            let pieces =
                store.layer(layer, &segment).map_err(|(layer, error)| sink::Error::Segment { layer, error })?;
            pieces.into_iter().try_for_each(&mut push)?;
        }
        push(store.finish()?)?;
        warnings.extend_from_slice(store.warnings());
        Ok(())
    }
}

/// Layers as segments: those there are, and the threads that make the others.
///
/// What a thread is at outlives an attempt to write the tar: its result is taken in the next one.
struct Supply {
    work: Arc<Work>,
    segments: BTreeMap<Digest, Arc<Segment>>,
    /// Layers that were queued and whose results have not been taken.
    under_way: BTreeSet<Digest>,
    queue: Sender<StoreLayer>,
    queued: Arc<Mutex<Receiver<StoreLayer>>>,
    done: Sender<Done>,
    results: Receiver<Done>,
    threads: usize,
}

/// A layer, and how its conversion, or the thread, ended.
type Done = (Digest, std::thread::Result<Result<Segment, Error>>);

/// What the threads know.
struct Work {
    blobs: BTreeMap<Digest, BlobSource>,
    graphroot: String,
    cache: Cache,
    progress: Arc<dyn Progress>,
    stop: Arc<AtomicBool>,
}

impl Supply {
    fn new(plan: &Plan, settings: &Settings, cache: Cache, progress: Arc<dyn Progress>) -> Self {
        let (queue, queued) = channel();
        let (done, results) = channel();
        let (blobs, graphroot) = (plan.blobs.clone(), settings.graphroot.clone());
        Self {
            work: Arc::new(Work { blobs, graphroot, cache, progress, stop: Arc::default() }),
            segments: BTreeMap::new(),
            under_way: BTreeSet::new(),
            queue,
            queued: Arc::new(Mutex::new(queued)),
            done,
            results,
            threads: 0,
        }
    }

    /// Takes what is in the cache, and has the rest converted, the largest first. Gives how many were in the cache.
    fn request(&mut self, layers: &[StoreLayer]) -> usize {
        let mut cached = 0;
        let mut missing = Vec::new();
        for layer in layers {
            if self.segments.contains_key(&layer.id) || self.under_way.contains(&layer.id) {
                continue;
            }
            if let Some(segment) = self.work.cache.get(&self.work.key(layer)) {
                self.work.progress.cached(layer);
                self.segments.insert(layer.id, Arc::new(segment));
                cached += 1;
            } else {
                missing.push(layer);
            }
        }
        missing.sort_by_key(|layer| std::cmp::Reverse(layer.layer.descriptor.size));
        for layer in missing {
            self.under_way.insert(layer.id);
            // We hold the other end.
            let _ = self.queue.send(layer.clone());
        }
        let most = std::thread::available_parallelism()
            .map_or(WORKERS_MIN, |cores| cores.get().clamp(WORKERS_MIN, WORKERS_MAX));
        while self.threads < most.min(self.under_way.len()) {
            let (work, queued, done) = (Arc::clone(&self.work), Arc::clone(&self.queued), self.done.clone());
            std::thread::spawn(move || work.run(&queued, &done));
            self.threads += 1;
        }
        cached
    }

    /// The segment of a layer that was requested, as soon as there is one. The first failure of any layer ends the wait, and
    /// so does `is_over`.
    fn wait(&mut self, layer: &StoreLayer, is_over: &AtomicBool) -> Result<Arc<Segment>, Error> {
        loop {
            if let Some(segment) = self.segments.get(&layer.id) {
                return Ok(Arc::clone(segment));
            }
            match self.results.recv_timeout(LOOK) {
                Ok((id, result)) => {
                    self.under_way.remove(&id);
                    let segment = result.unwrap_or_else(|panic| resume_unwind(panic))?;
                    self.segments.insert(id, Arc::new(segment));
                }
                Err(RecvTimeoutError::Timeout) if !is_over.load(Ordering::Relaxed) => {}
                Err(_) => return Err(Error::Stopped),
            }
        }
    }

    /// Forgets the segment of `layer`, which is damaged.
    fn discard(&mut self, layer: &StoreLayer) {
        self.work.cache.evict(&self.work.key(layer));
        self.segments.remove(&layer.id);
    }
}

impl Drop for Supply {
    fn drop(&mut self) {
        // Threads that still convert see it at their next read.
        self.work.stop.store(true, Ordering::Relaxed);
    }
}

impl Work {
    fn run(&self, queued: &Mutex<Receiver<StoreLayer>>, done: &Sender<Done>) {
        loop {
            // The lock is held while waiting: the other threads wait for the lock instead of the layer.
            let Ok(Ok(layer)) = queued.lock().map(|queued| queued.recv()) else { return };
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let result = catch_unwind(AssertUnwindSafe(|| self.convert(&layer)));
            if done.send((layer.id, result)).is_err() {
                return;
            }
        }
    }

    fn convert(&self, layer: &StoreLayer) -> Result<Segment, Error> {
        let blob = &layer.layer.descriptor;
        let from = self.blobs.get(&blob.digest).ok_or(Error::Stopped)?;
        let inner =
            from.open(blob).map_err(|error| Error::Fetch { item: from.item.clone(), blob: blob.digest, error })?;
        let blob_reader =
            Watched { inner, stop: Arc::clone(&self.stop), advance: self.progress.begin(layer, &from.item) };
        let key = self.key(layer);
        let prefix = body_prefix(&self.graphroot, &layer.id);
        let scratch = self.cache.directory();
        let job = Job { descriptor: blob, diff_id: layer.layer.diff_id, prefix: &prefix, key, scratch };
        // A body that has to be written again gets a second file; the last one is the segment.
        let last = RefCell::new(None);
        let new_file = || {
            let file = self.cache.new_file()?;
            let handle = file.file().try_clone()?;
            *last.borrow_mut() = Some(file);
            Ok(handle)
        };
        convert(Box::new(blob_reader), &job, &new_file).map_err(|error| Error::Convert {
            item: from.item.clone(),
            blob: blob.digest,
            error: Box::new(error),
        })?;
        self.progress.end(layer);
        let file = last.into_inner().ok_or(Error::Stopped)?;
        let file = self.cache.keep(file, &key).map_err(Error::Cache)?;
        Segment::open(file, &key).map_err(|error| sink::Error::Segment { layer: layer.id, error }.into())
    }

    fn key(&self, layer: &StoreLayer) -> Digest {
        Cache::key(&layer.id, &layer.layer.descriptor.digest, &body_prefix(&self.graphroot, &layer.id))
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
