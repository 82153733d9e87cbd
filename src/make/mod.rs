//! `make`: the segments of all layers, converted or from the cache, put together to one tar.
//!
//! ```text
//!  in the store's order, all the way
//!  layer ─▶ worker ─┐
//!  layer ─▶ worker ─┼─▶ segments ─▶ Store ─▶ pieces ─▶ file (written at offsets) or stream
//!  layer ─▶ worker ─┘ ╲                               ╱
//!                      ╲___ the body, straight away _╱     once its place in the file is known
//! ```

mod supply;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::atomic::{cut_off, is_full};
use crate::compression::Compression;
use crate::compression::limit::TooLarge;
use crate::digest::Digest;
use crate::entry::Meta;
use crate::image;
use crate::media_type::essence;
use crate::plan::{BlobSource, Plan};
use crate::segment::cache::Cache;
use crate::segment::convert;
use crate::segment::file::{Error as SegmentError, Segment};
use crate::sink::{self, Pieces, TarFile, TarStream};
use crate::source;
use crate::storage::record::StoreImage;
use crate::storage::store::{Piece, Settings, Store, StoreLayer, layers_of};
use supply::Supply;

/// How often one layer's damaged cache file is made again before prepull gives up: then it is the disk.
const ATTEMPTS: usize = 5;

/// Takes the number of bytes that have come since it was called last.
pub type Advance = Box<dyn FnMut(u64) + Send>;

/// Told what happens, from several threads.
pub trait Progress: Send + Sync {
    /// A layer is in the cache.
    fn cached(&self, layer: &StoreLayer);
    /// A layer waits to be fetched from `item`, which is remote or on this machine. Called for all layers before the first of
    /// them begins, and again if a layer has to be converted once more.
    fn queued(&self, layer: &StoreLayer, item: &str, is_remote: bool);
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
    /// Into a stream, what a store lacks: to who writes it there.
    Store(TarStream<'a>, Lacking),
    /// To who shows layers' trees.
    Trees(Trees<'a>),
}

/// Segments that are open already, by their layers, with their keys.
pub type Known = BTreeMap<Digest, (Digest, Segment)>;

/// Layers' trees, and what is beside them.
#[derive(Debug)]
pub struct Trees<'a> {
    /// Takes all that is in no tree.
    pub stream: TarStream<'a>,
    /// The trees, in the store's order.
    pub trees: &'a mut Vec<LayerTree>,
    /// What need not be made.
    pub known: Known,
    /// The layers that are fetched, if not all.
    pub wanted: Option<&'a BTreeSet<Digest>>,
}

/// A layer's tree, for who shows it.
#[derive(Debug)]
pub struct LayerTree {
    /// The layer's id.
    pub id: Digest,
    /// The key of its segment.
    pub key: Digest,
    /// Its entries, and the content of its files; `None` if it has not been fetched.
    pub segment: Option<Arc<Segment>>,
    /// Its root's metadata.
    pub root: Meta,
    /// Whiteouts that stand for its opaque directories, by their paths below its root.
    pub whiteouts: Vec<Vec<u8>>,
}

/// What a store lacks.
#[derive(Debug, Clone, Default)]
pub struct Lacking {
    /// Layers by their ids.
    pub layers: BTreeSet<Digest>,
    /// Images by their ids, or names of theirs.
    pub images: BTreeSet<Digest>,
}

impl Lacking {
    /// The layers that have to be at hand, in the store's order: what a layer's files are depends on those below it.
    fn needed(&self, plan: &Plan, layers: Vec<StoreLayer>) -> Vec<StoreLayer> {
        let is_touched = |chain: &&[Digest]| chain.iter().any(|id| self.layers.contains(id));
        let chains = plan.images.values().map(StoreImage::chain).filter(is_touched);
        let needed: BTreeSet<&Digest> = chains.flatten().collect();
        layers.into_iter().filter(|layer| needed.contains(&layer.id)).collect()
    }
}

/// Why there is no tar.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A layer cannot be fetched.
    #[error("{item}: layer {blob}: {}", source::without_place(.item, .error))]
    Fetch {
        /// The item it belongs to.
        item: String,
        /// The layer's blob.
        blob: Digest,
        /// Why.
        error: source::Error,
    },
    /// A layer is not where the image is: its descriptor says that it is distributed elsewhere.
    #[error(
        "{item}: layer {blob}: {error}; it is not distributed with the image but from {urls} (fetch it from there and put it beside the other layers)"
    )]
    NotDistributed {
        /// The item that the layer belongs to.
        item: String,
        /// The layer's blob.
        blob: Digest,
        /// The source's answer.
        error: source::Error,
        /// The descriptor's `urls`, or a word for none.
        urls: String,
    },
    /// An image is too large.
    #[error("{image}: with layer {layer} its layers have {error}")]
    TooLarge {
        /// A name of the image.
        image: String,
        /// The layer with which it is too large.
        layer: Digest,
        /// The sizes.
        error: TooLarge,
    },
    /// A layer cannot be converted.
    #[error("{item}: layer {blob}: {}", source::without_place(.item, .error))]
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
    /// There is no thread to convert with.
    #[error(transparent)]
    Thread(io::Error),
    /// A layer was there, and is damaged now.
    #[error("layer {0}: it is damaged, and nothing says where it came from (give its image again)")]
    NoSource(Digest),
    /// Another thread failed first.
    #[error("stopped")]
    Stopped,
}

impl From<(Digest, SegmentError)> for Error {
    fn from((layer, error): (Digest, SegmentError)) -> Self {
        Self::Sink(sink::Error::Segment { layer, error })
    }
}

impl Error {
    /// Returns the error for a layer that its source does not give.
    fn fetch(from: &BlobSource, layer: &image::Layer, error: source::Error) -> Self {
        let (item, blob) = (from.item.clone(), layer.descriptor.digest);
        let is_foreign = layer.descriptor.media_type.contains(".foreign.")
            || layer.descriptor.media_type.contains(".nondistributable.");
        if error.is_not_found() && (is_foreign || !layer.urls.is_empty()) {
            let urls =
                if layer.urls.is_empty() { "elsewhere (no URL is known)".to_owned() } else { layer.urls.join(", ") };
            return Self::NotDistributed { item, blob, error, urls };
        }
        Self::Fetch { item, blob, error }
    }

    /// Whether there is no room for what is to be kept.
    fn is_full_cache(&self) -> bool {
        match self {
            Self::Convert { error, .. } => matches!(&**error, convert::Error::Output(error) if is_full(error)),
            Self::Cache(error) => is_full(error),
            _ => false,
        }
    }

    /// Whether something of an image is simply not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Fetch { error, .. } | Self::NotDistributed { error, .. } if error.is_not_found())
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

/// What a store is put together into.
trait Assembly {
    /// The segment of a layer whose root's header will begin `head` bytes after what was pushed last.
    fn segment(&mut self, layer: &StoreLayer, head: u64) -> Result<Arc<Segment>, Error>;

    /// Takes the first pieces of a layer.
    fn layer(&mut self, layer: &StoreLayer, pieces: Vec<Piece>) -> Result<(), Error>;

    /// Takes any other piece.
    fn push(&mut self, piece: Piece) -> Result<(), Error>;
}

impl Make<'_> {
    fn run(&self, mut supply: Supply, mut output: Output<'_>) -> Result<Report, Error> {
        let mut layers = layers_of(&self.plan.images);
        if let Output::Store(_, lacking) = &output {
            layers = lacking.needed(self.plan, layers);
        }
        let mut cached = 0;
        if let Output::Trees(Trees { known, .. }) = &mut output {
            cached = supply.take(std::mem::take(known), &layers);
        }
        cached += supply.look(&layers);
        if let Output::File(file) = &output {
            if let Some((bytes, warnings)) = self.lent(file, &layers, &mut supply)? {
                return Ok(report(bytes, cached, warnings, &supply));
            }
            supply.write_into(file);
        }
        let mut attempts: BTreeMap<Digest, usize> = BTreeMap::new();
        loop {
            supply.look(&layers);
            if let Output::Trees(Trees { wanted: Some(wanted), .. }) = &output {
                supply.only(wanted);
            }
            supply.start().map_err(Error::Thread)?;
            let result = match &mut output {
                Output::File(file) => self.to_file(file, &layers, &mut supply),
                Output::Stream(stream) => self.to_stream(stream, &layers, &mut supply),
                Output::Store(stream, lacking) => self.to_store(stream, lacking, &layers, &mut supply),
                Output::Trees(trees) => self.to_trees(trees, &layers, &mut supply),
            };
            match result {
                Err(Error::Sink(sink::Error::Segment { layer, error: SegmentError::Damaged }))
                    if *attempts.entry(layer).and_modify(|count| *count += 1).or_insert(1) < ATTEMPTS =>
                {
                    supply.note(&format!("cache file of layer {layer} is damaged: converting the layer again"));
                    layers.iter().filter(|other| other.id == layer).for_each(|layer| supply.discard(layer));
                }
                Err(error) if error.is_full_cache() => {
                    let Some(next) = supply.without_keeping(self.plan, self.settings) else { return Err(error) };
                    supply.note(&format!("{error}: nothing more is kept in the cache"));
                    supply = next;
                    supply.look(&layers);
                    if let Output::File(file) = &mut output {
                        // Threads that are still at work write into the first one.
                        *file = TarFile::create(file.path())?;
                        cut_off();
                        supply.write_into(file);
                    }
                }
                Err(error) => return Err(error),
                Ok((bytes, warnings)) => {
                    let bytes = match output {
                        // Its segments are hashed when they are used next.
                        Output::File(file) if file.has_hidden_name() => file.publish().map(|()| bytes)?,
                        Output::File(file) => supply.publish(|| file.publish()).map(|()| bytes)?,
                        Output::Stream(stream) | Output::Store(stream, _) | Output::Trees(Trees { stream, .. }) => {
                            stream.finish()?
                        }
                    };
                    supply.sweep();
                    return Ok(report(bytes, cached, warnings, &supply));
                }
            }
        }
    }

    /// Gives a tar of the cache the file's name, if it is, byte by byte, what would be written.
    fn lent(
        &self,
        file: &TarFile,
        layers: &[StoreLayer],
        supply: &mut Supply,
    ) -> Result<Option<(u64, Vec<String>)>, Error> {
        let Some(lent) = supply.lend(layers, file.path()).filter(|lent| file.is_like(lent)) else { return Ok(None) };
        let result = std::thread::scope(|scope| {
            let pieces = file.begin_comparing(scope, self.settings.stamp, Arc::clone(&lent))?;
            self.to_pieces(pieces, layers, supply)
        });
        match result {
            Ok(made) => Ok(supply.publish_lent(&lent, || file.publish_lent(&lent)).ok().map(|()| made)),
            // What is damaged shows again, and is made again.
            Err(Error::Stopped | Error::Sink(sink::Error::Different | sink::Error::Segment { .. })) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Layers are converted while those before them are written.
    fn to_file(&self, file: &TarFile, layers: &[StoreLayer], supply: &mut Supply) -> Result<(u64, Vec<String>), Error> {
        std::thread::scope(|scope| {
            let pieces = file.begin(scope, self.settings.stamp, supply.written())?;
            self.to_pieces(pieces, layers, supply)
        })
    }

    fn to_pieces(
        &self,
        pieces: Pieces<'_>,
        layers: &[StoreLayer],
        supply: &mut Supply,
    ) -> Result<(u64, Vec<String>), Error> {
        let has_failed = pieces.has_failed();
        let mut assembly = ToFile { pieces, supply, has_failed, stamp: self.settings.stamp };
        let assembled = self.assemble(layers, &mut assembly);
        // Where a thread that writes failed, its error is the cause.
        let bytes = assembly.pieces.finish(assembled.is_ok())?;
        assembled.map(|warnings| (bytes, warnings))
    }

    /// Nothing goes out before every layer is verified: who reads a pipe cannot take bytes back.
    fn to_stream(
        &self,
        stream: &mut TarStream<'_>,
        layers: &[StoreLayer],
        supply: &mut Supply,
    ) -> Result<(u64, Vec<String>), Error> {
        let mut assembly = ToStream { stream, supply };
        layers.iter().try_for_each(|layer| assembly.segment(layer, 0).map(drop))?;
        assembly.stream.restart();
        self.assemble(layers, &mut assembly).map(|warnings| (0, warnings))
    }

    /// Layers go out while others are converted: who gets them keeps nothing of a stream that does not come to its end.
    fn to_store(
        &self,
        stream: &mut TarStream<'_>,
        lacking: &Lacking,
        layers: &[StoreLayer],
        supply: &mut Supply,
    ) -> Result<(u64, Vec<String>), Error> {
        stream.restart();
        let mut store = Store::new(self.settings, &self.plan.images);
        for layer in layers {
            let segment = supply.wait(layer, &AtomicBool::new(false))?;
            let (pieces, tail) =
                store.layer(layer, &segment).map_err(|(layer, error)| sink::Error::Segment { layer, error })?;
            if lacking.layers.contains(&layer.id) {
                pieces.iter().try_for_each(|piece| stream.push(piece))?;
                store.tail(layer, &segment, &tail, |piece| stream.push(&piece))?;
            }
        }
        stream.push(&store.images(&lacking.images))?;
        Ok((0, store.warnings().to_vec()))
    }

    /// What is in the trees is not even read.
    fn to_trees(
        &self,
        Trees { stream, trees, .. }: &mut Trees<'_>,
        layers: &[StoreLayer],
        supply: &mut Supply,
    ) -> Result<(u64, Vec<String>), Error> {
        stream.restart();
        trees.clear();
        let mut store = Store::new(self.settings, &self.plan.images);
        stream.push(&store.skeleton())?;
        let mut there = BTreeSet::new();
        for layer in layers {
            // What a layer's root is like, and what it hides, follows from those below it.
            let is_there = supply.has(layer) && layer.parent.is_none_or(|parent| there.contains(&parent));
            if is_there {
                there.insert(layer.id);
            }
            let segment = if is_there { supply.wait(layer, &AtomicBool::new(false))? } else { absent(layer)? };
            let (mut pieces, tail) = store.layer(layer, &segment)?;
            pieces.truncate(1);
            pieces.iter().try_for_each(|head| stream.push(head))?;
            store.beside(layer, &segment, |piece| stream.push(&piece))?;
            let key = supply.key(layer);
            let segment = is_there.then_some(segment);
            trees.push(LayerTree { id: layer.id, key, segment, root: tail.root.meta, whiteouts: tail.whiteouts });
        }
        store.finish(|piece| stream.push(&piece).map_err(Error::from))?;
        Ok((0, store.warnings().to_vec()))
    }

    /// Gives what the user should know.
    fn assemble(&self, layers: &[StoreLayer], assembly: &mut impl Assembly) -> Result<Vec<String>, Error> {
        let mut store = Store::new(self.settings, &self.plan.images);
        assembly.push(store.skeleton())?;
        for layer in layers {
            let segment = assembly.segment(layer, store.head_len(layer))?;
            let (pieces, tail) = store.layer(layer, &segment)?;
            assembly.layer(layer, pieces)?;
            store.tail(layer, &segment, &tail, |piece| assembly.push(piece))?;
        }
        store.finish(|piece| assembly.push(piece))?;
        Ok(store.warnings().to_vec())
    }
}

/// What stands for a layer that has not been fetched. How it is compressed is what its manifest says.
fn absent(layer: &StoreLayer) -> Result<Arc<Segment>, Error> {
    let descriptor = &layer.layer.descriptor;
    let compression = match essence(&descriptor.media_type).rsplit(['.', '+']).next() {
        Some("gzip") => Compression::Gzip,
        Some("xz") => Compression::Xz,
        Some("bzip2") => Compression::Bzip2,
        Some("zstd") => Compression::Zstd,
        _ => Compression::None,
    };
    let segment = Segment::absent(descriptor.digest, descriptor.size, compression as u8, layer.layer.diff_id);
    segment.map(Arc::new).map_err(Error::Cache)
}

fn report(bytes: u64, cached: usize, warnings: Vec<String>, supply: &Supply) -> Report {
    Report { bytes, layers: supply.sizes(), cached, warnings }
}

/// Into a file, where bodies may be in their places already.
struct ToFile<'a, 'scope> {
    pieces: Pieces<'scope>,
    supply: &'a mut Supply,
    has_failed: Arc<AtomicBool>,
    stamp: i64,
}

impl Assembly for ToFile<'_, '_> {
    fn segment(&mut self, layer: &StoreLayer, head: u64) -> Result<Arc<Segment>, Error> {
        self.supply.place(layer, self.pieces.position() + head, self.stamp);
        self.supply.wait(layer, &self.has_failed)
    }

    fn layer(&mut self, layer: &StoreLayer, pieces: Vec<Piece>) -> Result<(), Error> {
        // Where opaque directories get an attribute, or the root came late, the body cannot stay where it was put.
        let is_in_place = match &pieces[..] {
            [head, body] => self.pieces.is_in_place(body, self.pieces.position() + head.len()),
            _ => false,
        };
        self.supply.settle(layer, is_in_place)?;
        pieces.into_iter().try_for_each(|piece| self.push(piece))
    }

    fn push(&mut self, piece: Piece) -> Result<(), Error> {
        self.pieces.push(piece).map_err(|_| Error::Stopped)
    }
}

/// Into a stream, one piece after the other.
struct ToStream<'a, 'out> {
    stream: &'a mut TarStream<'out>,
    supply: &'a mut Supply,
}

impl Assembly for ToStream<'_, '_> {
    fn segment(&mut self, layer: &StoreLayer, _head: u64) -> Result<Arc<Segment>, Error> {
        self.supply.wait(layer, &AtomicBool::new(false))
    }

    fn layer(&mut self, _layer: &StoreLayer, pieces: Vec<Piece>) -> Result<(), Error> {
        pieces.into_iter().try_for_each(|piece| self.push(piece))
    }

    fn push(&mut self, piece: Piece) -> Result<(), Error> {
        Ok(self.stream.push(&piece)?)
    }
}
