//! From a blob to the uncompressed layer, on two threads of its own.
//!
//! ```text
//!  blob reader ─▶ SHA-256 of the blob ─▶ inflate ═════▶ SHA-256 of the layer ═════▶ Inflated (BufRead) ─▶ tar
//!  `─────────────── a thread ───────────────────´       `──── a thread ────´       `─── the caller's thread ───´
//! ```
//!
//! Inflating costs about as much as all the rest, so that one large layer can keep two cores busy. A plain blob takes the
//! first thread only.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::Scope;

use crate::compression::{self, Compression, Decoder, SizeLimit};
use crate::digest::{Digest, Hasher, VerifyReader};
use crate::source::Descriptor;
use crate::threads;

/// Bytes in one buffer between the threads: small enough for both to stay in a core's second-level cache.
const BUFFER: usize = 256 << 10;

/// The first byte of a zstd frame that is not skippable.
const ZSTD_FIRST: u8 = 0x28;

/// Buffers under way between the threads.
const BUFFERS: usize = 8;

enum Message<End> {
    Buffer(Vec<u8>),
    End(io::Result<End>),
}

/// What is known when the whole layer has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inflation {
    /// The compression of the blob.
    pub compression: Compression,
    /// Digest of the uncompressed bytes.
    pub diff_id: Digest,
    /// Number of uncompressed bytes.
    pub size: u64,
}

/// The uncompressed bytes of a layer, hashed as they pass. An error of the other threads comes out as a read error.
#[derive(Debug)]
pub struct Inflated {
    full: Receiver<Message<Inflation>>,
    empty: Sender<Vec<u8>>,
    buffer: Vec<u8>,
    at: usize,
    end: Option<Inflation>,
}

/// Starts to read and inflate `blob`, which must be what `descriptor` says, and whose content must be within `limit`.
///
/// # Errors
/// When there is no thread for it.
pub fn inflate<'scope>(
    scope: &'scope Scope<'scope, '_>,
    blob: Box<dyn Read + Send>,
    descriptor: &Descriptor,
    limit: SizeLimit,
) -> io::Result<Inflated> {
    let (full_sender, full) = sync_channel(BUFFERS);
    let (empty, empty_receiver) = channel();
    for _ in 0..BUFFERS {
        // Zeroed memory costs nothing before it is used, unlike growing a buffer for each layer, however small.
        let _ = empty.send(vec![0; BUFFER]);
    }
    let verified = VerifyReader::new(blob, descriptor.digest, descriptor.size);
    let blob = descriptor.digest;
    let check = Check { compressed: descriptor.size, limit };
    threads::spawn_in(scope, move || {
        if let Err(error) = read(scope, verified, blob, check, &empty_receiver, &full_sender) {
            // Nobody listens any more when the other side gave up.
            let _ = full_sender.send(Message::End(Err(error)));
        }
    })?;
    Ok(Inflated { full, empty, buffer: Vec::new(), at: 0, end: None })
}

/// The size of a blob, and the limit for its content.
#[derive(Debug, Clone, Copy)]
struct Check {
    compressed: u64,
    limit: SizeLimit,
}

/// Reads the blob to its end; who hashes says when that is, but for errors.
fn read<'scope>(
    scope: &'scope Scope<'scope, '_>,
    verified: VerifyReader<Box<dyn Read + Send>>,
    blob: Digest,
    check: Check,
    empty: &Receiver<Vec<u8>>,
    full: &SyncSender<Message<Inflation>>,
) -> io::Result<()> {
    let (compression, whole) = compression::peek(verified)?;
    let first = whole.get_ref().0.get_ref().first();
    if compression == Compression::Zstd && first != Some(&ZSTD_FIRST) {
        let text = "a skippable frame comes first: containers/storage does not take that for zstd (compress it again)";
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    if compression == Compression::Lz4 {
        let text = "lz4 compression of a layer is not supported, as in containers/storage (use gzip or zstd)";
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    let input = BufReader::with_capacity(128 << 10, whole);
    if compression == Compression::None {
        // It has been hashed already, and that is its diffID.
        let size = pump(compression, input, check, empty, full)?;
        return full.send(Message::End(Ok(Inflation { compression, diff_id: blob, size }))).map_err(gone);
    }
    let (inflated, unhashed) = sync_channel(BUFFERS);
    let hashed = full.clone();
    threads::spawn_in(scope, move || {
        // As above.
        let _ = hash(&unhashed, &hashed, compression);
    })?;
    let end = pump(compression, input, check, empty, &inflated);
    inflated.send(Message::End(end)).map_err(gone)
}

/// Passes the buffers on, and hashes them.
fn hash(
    unhashed: &Receiver<Message<u64>>,
    hashed: &SyncSender<Message<Inflation>>,
    compression: Compression,
) -> io::Result<()> {
    let mut hasher = Hasher::new();
    for message in unhashed {
        match message {
            Message::Buffer(buffer) => {
                hasher.update(&buffer);
                hashed.send(Message::Buffer(buffer)).map_err(gone)?;
            }
            Message::End(end) => {
                let end = end.map(|size| Inflation { compression, diff_id: hasher.finish(), size });
                return hashed.send(Message::End(end)).map_err(gone);
            }
        }
    }
    Ok(())
}

fn gone<T>(_: T) -> io::Error {
    io::Error::from(io::ErrorKind::BrokenPipe)
}

/// Sends the uncompressed bytes, and returns their number.
fn pump<End>(
    compression: Compression,
    mut input: impl BufRead,
    check: Check,
    empty: &Receiver<Vec<u8>>,
    full: &SyncSender<Message<End>>,
) -> io::Result<u64> {
    let mut size = 0;
    let mut send = |reader: &mut dyn Read| -> io::Result<()> {
        while let Ok(mut buffer) = empty.recv() {
            buffer.resize(BUFFER, 0);
            let mut filled = 0;
            while filled < BUFFER {
                match reader.read(&mut buffer[filled..]) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            buffer.truncate(filled);
            if filled == 0 {
                return Ok(());
            }
            size += filled as u64;
            check.limit.check(size, check.compressed).map_err(io::Error::other)?;
            full.send(Message::Buffer(buffer)).map_err(gone)?;
        }
        Err(gone(()))
    };
    send(&mut Decoder::new(compression, &mut input))?;
    // What follows the compressed stream is part of the blob's digest; only the end of file gives the verdict.
    io::copy(&mut input, &mut io::sink())?;
    Ok(size)
}

impl Inflated {
    /// What the layer was. To be called when it has been read to its end.
    ///
    /// # Errors
    /// When it was not.
    pub fn finish(mut self) -> io::Result<Inflation> {
        let unread = self.fill_buf()?.len();
        self.end.filter(|_| unread == 0).ok_or_else(|| io::Error::other("the layer was not read to its end"))
    }
}

impl Read for Inflated {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let count = bytes.len().min(buffer.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Inflated {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.buffer.len() && self.end.is_none() {
            match self.full.recv() {
                Ok(Message::Buffer(buffer)) => {
                    let used = std::mem::replace(&mut self.buffer, buffer);
                    // The other thread may have ended already.
                    let _ = self.empty.send(used);
                    self.at = 0;
                }
                Ok(Message::End(end)) => self.end = Some(end?),
                Err(_) => return Err(io::Error::other("the reading thread died")),
            }
        }
        Ok(&self.buffer[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}
