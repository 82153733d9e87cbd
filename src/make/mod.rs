//! `make`: the segments of all layers, converted or from the cache, put together to one tar.
//!
//! ```text
//!  largest first            in the store's order
//!  layer ─▶ worker ─┐
//!  layer ─▶ worker ─┼─▶ segments ─▶ Store ─▶ pieces ─▶ file (written at offsets) or stream
//!  layer ─▶ worker ─┘
//! ```

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use crate::digest::Digest;
use crate::plan::Plan;
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

/// Takes the number of bytes that have come since it was called last.
pub type Advance = Box<dyn FnMut(u64) + Send>;

/// Told what happens, from several threads.
pub trait Progress: Sync {
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
/// When a layer cannot be had or the tar cannot be written; then there is no file.
pub fn make(
    plan: &Plan,
    settings: &Settings,
    cache: &Cache,
    output: Output<'_>,
    progress: &dyn Progress,
) -> Result<Report, Error> {
    Make { plan, settings, cache, progress, stop: Arc::default() }.run(output)
}

struct Make<'a> {
    plan: &'a Plan,
    settings: &'a Settings,
    cache: &'a Cache,
    progress: &'a dyn Progress,
    stop: Arc<AtomicBool>,
}

type Segments = BTreeMap<Digest, Arc<Segment>>;

impl Make<'_> {
    fn run(&self, mut output: Output<'_>) -> Result<Report, Error> {
        let layers = layers_of(&self.plan.images);
        let mut segments = Segments::new();
        for layer in &layers {
            if let Some(segment) = self.cache.get(&self.key(layer)) {
                self.progress.cached(layer);
                segments.insert(layer.id, Arc::new(segment));
            }
        }
        let cached = segments.len();
        let mut attempts: BTreeMap<Digest, usize> = BTreeMap::new();
        loop {
            let result = match &mut output {
                Output::File(file) => self.to_file(file, &layers, &mut segments),
                Output::Stream(stream) => self.to_stream(stream, &layers, &mut segments),
            };
            match result {
                Err(Error::Sink(sink::Error::Segment { layer, error: SegmentError::Damaged }))
                    if *attempts.entry(layer).and_modify(|count| *count += 1).or_insert(1) < ATTEMPTS =>
                {
                    self.progress.note(&format!("cache file of layer {layer} is damaged: converting the layer again"));
                    for layer in layers.iter().filter(|other| other.id == layer) {
                        self.cache.evict(&self.key(layer));
                    }
                    segments.remove(&layer);
                }
                Err(error) => return Err(error),
                Ok((bytes, warnings)) => {
                    let bytes = match output {
                        Output::File(file) => file.publish().map(|()| bytes)?,
                        Output::Stream(stream) => stream.finish()?,
                    };
                    let layers = segments.iter().map(|(id, segment)| (*id, segment.facts().diff_size)).collect();
                    return Ok(Report { bytes, layers, cached, warnings });
                }
            }
        }
    }

    /// Layers are converted while those before them are written.
    fn to_file(
        &self,
        file: &TarFile,
        layers: &[StoreLayer],
        segments: &mut Segments,
    ) -> Result<(u64, Vec<String>), Error> {
        self.with_segments(layers, segments, |next| {
            std::thread::scope(|scope| {
                let mut pieces = file.begin(scope, self.settings.stamp)?;
                let mut warnings = Vec::new();
                let assembled =
                    self.assemble(layers, next, &mut warnings, |piece| pieces.push(piece).map_err(|()| Error::Stopped));
                // Where a thread that writes failed, its error is the cause.
                let bytes = pieces.finish()?;
                assembled.map(|()| (bytes, warnings))
            })
        })
    }

    /// Nothing goes out before every layer is verified: who reads a pipe cannot take bytes back.
    fn to_stream(
        &self,
        stream: &mut TarStream<'_>,
        layers: &[StoreLayer],
        segments: &mut Segments,
    ) -> Result<(u64, Vec<String>), Error> {
        self.with_segments(layers, segments, |next| layers.iter().try_for_each(|layer| next(layer).map(drop)))?;
        stream.restart();
        let mut warnings = Vec::new();
        let mut get = |layer: &StoreLayer| segments.get(&layer.id).cloned().ok_or(Error::Stopped);
        self.assemble(layers, &mut get, &mut warnings, |piece| Ok(stream.push(&piece)?))?;
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

    /// Runs `consume` with a function that gives the segment of a layer as soon as there is one, while workers convert
    /// the layers that have none, the largest first.
    fn with_segments<T>(
        &self,
        layers: &[StoreLayer],
        segments: &mut Segments,
        consume: impl FnOnce(&mut dyn FnMut(&StoreLayer) -> Result<Arc<Segment>, Error>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.stop.store(false, Ordering::Relaxed);
        let mut missing: Vec<_> = layers.iter().filter(|layer| !segments.contains_key(&layer.id)).collect();
        missing.sort_by_key(|layer| std::cmp::Reverse(layer.layer.descriptor.size));
        let workers = std::thread::available_parallelism()
            .map_or(WORKERS_MIN, |cores| cores.get().clamp(WORKERS_MIN, WORKERS_MAX));
        let queue = Mutex::new(VecDeque::from(missing));
        std::thread::scope(|scope| {
            let (sender, receiver) = channel();
            for _ in 0..workers {
                let (sender, queue) = (sender.clone(), &queue);
                scope.spawn(move || {
                    while let Some(layer) = queue.lock().ok().and_then(|mut queue| queue.pop_front()) {
                        if self.stop.load(Ordering::Relaxed) || sender.send((layer.id, self.convert(layer))).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            let mut next = |layer: &StoreLayer| wait_for(layer, segments, &receiver);
            let result = consume(&mut next);
            // Workers that still convert see it at their next read.
            self.stop.store(result.is_err(), Ordering::Relaxed);
            result
        })
    }

    fn convert(&self, layer: &StoreLayer) -> Result<Segment, Error> {
        let blob = &layer.layer.descriptor;
        let from = self.plan.blobs.get(&blob.digest).ok_or(Error::Stopped)?;
        let inner =
            from.open(blob).map_err(|error| Error::Fetch { item: from.item.clone(), blob: blob.digest, error })?;
        let blob_reader =
            Watched { inner, stop: Arc::clone(&self.stop), advance: self.progress.begin(layer, &from.item) };
        let key = self.key(layer);
        let prefix = body_prefix(&self.settings.graphroot, &layer.id);
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
        Cache::key(&layer.id, &layer.layer.descriptor.digest, &body_prefix(&self.settings.graphroot, &layer.id))
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

fn wait_for(
    layer: &StoreLayer,
    segments: &mut Segments,
    receiver: &Receiver<(Digest, Result<Segment, Error>)>,
) -> Result<Arc<Segment>, Error> {
    loop {
        if let Some(segment) = segments.get(&layer.id) {
            return Ok(Arc::clone(segment));
        }
        let (id, converted) = receiver.recv().map_err(|_| Error::Stopped)?;
        segments.insert(id, Arc::new(converted?));
    }
}
