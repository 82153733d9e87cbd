//! The floor: what no converter of image layers can avoid, and nothing else.
//!
//! Every blob is read and inflated, the compressed and the uncompressed bytes are hashed (SHA-256), and the uncompressed
//! bytes are written, with the libraries that prepull uses. An uncompressed blob is hashed once: its two digests are one.
//!
//! `floor MODE OUTFILE BLOB...`, where a BLOB is a file or `FILE@OFFSET+LENGTH` (a layer inside a docker-archive):
//!
//! * `1`: one thread;
//! * `p2`: two threads, one output: the first reads, hashes and inflates, the second hashes and writes;
//! * `l2`: two threads that share out the layers, largest first, to OUTFILE.0 and OUTFILE.1.
//!
//! Prints `bytes read, bytes written, seconds` on one line, then the diff ids when `FLOOR_IDS` is set.
#![allow(missing_docs, clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

use std::error::Error;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Instant;

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};

/// What passes from thread to thread at a time, and how many of these there are.
const CHUNK: usize = 256 << 10;
const CHUNKS: usize = 8;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Where a layer's bytes are.
#[derive(Clone)]
struct Blob {
    path: PathBuf,
    offset: u64,
    length: u64,
}

impl Blob {
    fn parse(text: &str) -> Result<Blob> {
        if let Some((path, range)) = text.rsplit_once('@')
            && let Some((offset, length)) = range.split_once('+')
        {
            return Ok(Blob { path: path.into(), offset: offset.parse()?, length: length.parse()? });
        }
        let path = PathBuf::from(text);
        let length = path.metadata().map_err(|error| format!("{text}: {error}"))?.len();
        Ok(Blob { path, offset: 0, length })
    }

    fn open(&self) -> io::Result<io::Take<File>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.offset))?;
        Ok(file.take(self.length))
    }
}

/// Hashes what passes through it.
struct Hashed<R> {
    inner: R,
    state: Sha256,
    on: bool,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if self.on {
            self.state.update(&buffer[..count]);
        }
        Ok(count)
    }
}

/// Calls `take` with every uncompressed chunk of the blob, having hashed the compressed bytes.
fn inflate(
    blob: &Blob,
    mut next: impl FnMut() -> Result<Vec<u8>>,
    mut take: impl FnMut(Vec<u8>) -> Result<()>,
) -> Result<()> {
    let mut magic = [0; 4];
    blob.open()?.read_exact(&mut magic)?;
    let gzip = magic[..2] == [0x1f, 0x8b];
    let zstd = magic == [0x28, 0xb5, 0x2f, 0xfd];
    let mut source =
        BufReader::with_capacity(CHUNK, Hashed { inner: blob.open()?, state: Sha256::new(), on: gzip || zstd });
    let mut reader: Box<dyn Read + '_> = if gzip {
        Box::new(MultiGzDecoder::new(&mut source))
    } else if zstd {
        Box::new(zstd::Decoder::with_buffer(&mut source)?)
    } else {
        Box::new(&mut source)
    };
    loop {
        let mut chunk = next()?;
        chunk.resize(CHUNK, 0);
        let mut filled = 0;
        while filled < CHUNK {
            match reader.read(&mut chunk[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        chunk.truncate(filled);
        let last = filled < CHUNK;
        take(chunk)?;
        if last {
            break;
        }
    }
    drop(reader);
    // The digest must have been computed to the end for the comparison to be fair.
    io::copy(&mut source, &mut io::sink())?;
    std::hint::black_box(source.into_inner().state.finalize());
    Ok(())
}

/// Takes the uncompressed bytes: hashes each layer, writes all to one file.
struct Sink {
    file: File,
    state: Sha256,
    written: u64,
    ids: Vec<String>,
}

impl Sink {
    fn create(path: PathBuf) -> Result<Sink> {
        Ok(Sink { file: File::create(path)?, state: Sha256::new(), written: 0, ids: Vec::new() })
    }

    fn chunk(&mut self, data: &[u8]) -> Result<()> {
        self.state.update(data);
        self.file.write_all(data)?;
        self.written += data.len() as u64;
        Ok(())
    }

    fn end_of_layer(&mut self) {
        let digest = std::mem::take(&mut self.state).finalize();
        self.ids.push(digest.iter().map(|byte| format!("{byte:02x}")).collect());
    }
}

/// One thread does all; `blobs` is shared with others of its kind or not.
fn alone(blobs: &Mutex<Vec<Blob>>, out: PathBuf) -> Result<Sink> {
    let mut sink = Sink::create(out)?;
    let mut buffer = Vec::new();
    loop {
        let Some(blob) = blobs.lock().map_err(|_| "a thread failed")?.pop() else { return Ok(sink) };
        let spare = std::cell::RefCell::new(std::mem::take(&mut buffer));
        inflate(
            &blob,
            || Ok(spare.take()),
            |chunk| {
                sink.chunk(&chunk)?;
                spare.replace(chunk);
                Ok(())
            },
        )?;
        buffer = spare.into_inner();
        sink.end_of_layer();
    }
}

/// A pipeline of two threads; chunks go round in a circle.
fn pipeline(blobs: &[Blob], out: PathBuf) -> Result<Sink> {
    let mut sink = Sink::create(out)?;
    let (full, take) = sync_channel::<Option<Vec<u8>>>(CHUNKS);
    let (give, empty) = sync_channel::<Vec<u8>>(CHUNKS);
    for _ in 0..CHUNKS {
        give.send(Vec::with_capacity(CHUNK))?;
    }
    thread::scope(|scope| {
        let reader = scope.spawn(move || -> Result<()> {
            for blob in blobs {
                inflate(blob, || Ok(empty.recv()?), |chunk| Ok(full.send(Some(chunk)).map_err(|_| "writer ended")?))?;
                full.send(None).map_err(|_| "writer ended")?;
            }
            Ok(())
        });
        let written = (|| {
            while let Ok(message) = take.recv() {
                let Some(chunk) = message else {
                    sink.end_of_layer();
                    continue;
                };
                sink.chunk(&chunk)?;
                // The reader may have come to its end: then nobody wants the chunk back.
                let _ = give.send(chunk);
            }
            Ok(())
        })();
        // A reader that waits for us must hear of our end.
        drop((take, give));
        let read = reader.join().map_err(|_| "the reader panicked")?;
        written.and(read)
    })?;
    Ok(sink)
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, out, blobs @ ..] = arguments.as_slice() else {
        return Err("usage: floor p2|l2|1 OUTFILE BLOB...".into());
    };
    let mut blobs = blobs.iter().map(|text| Blob::parse(text)).collect::<Result<Vec<_>>>()?;
    let read: u64 = blobs.iter().map(|blob| blob.length).sum();
    let start = Instant::now();
    let sinks = match mode.as_str() {
        "p2" => vec![pipeline(&blobs, out.into())?],
        "1" => {
            blobs.reverse();
            vec![alone(&Mutex::new(blobs), out.into())?]
        }
        "l2" => {
            blobs.sort_by_key(|blob| blob.length);
            let queue = Mutex::new(blobs);
            thread::scope(|scope| {
                let threads: Vec<_> = (0..2)
                    .map(|number| {
                        scope.spawn({
                            let queue = &queue;
                            move || alone(queue, format!("{out}.{number}").into())
                        })
                    })
                    .collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().map_err(|_| "a thread panicked")?)
                    .collect::<Result<Vec<_>>>()
            })?
        }
        _ => return Err(format!("{mode}: no such mode (p2, l2, 1)").into()),
    };
    let written: u64 = sinks.iter().map(|sink| sink.written).sum();
    println!("{read} bytes read, {written} bytes written, {:.3} s", start.elapsed().as_secs_f64());
    if std::env::var_os("FLOOR_IDS").is_some() {
        for id in sinks.iter().flat_map(|sink| &sink.ids) {
            println!("sha256:{id}");
        }
    }
    Ok(())
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("floor: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
