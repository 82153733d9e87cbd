//! Compressed streams: recognised by their first bytes, as containers/image (`pkg/compression`, `DetectCompressionFormat`) and
//! containers/storage (`pkg/archive`, `DetectCompression`) do, and decompressed with bounded memory.
//!
//! ```text
//!  first bytes ─▶ Compression ─▶ Decoder ─▶ plain bytes
//!                                   │
//!                                   └─ window: a share of the process's budget, before libzstd or the xz decoder allocates
//! ```
//!
//! A window (zstd) or dictionary (xz) is what the decoder must remember of its output. Both come from the stream's header, which
//! is untrusted: at most [`WINDOW_MAX`] bytes are accepted, and all decoders of the process together have [`WINDOW_MAX`] bytes
//! for windows of more than 8 MiB. The memory is touched only as far as output fills it.

pub mod limit;
mod lz4;
pub mod window;
mod xz;
mod zstd;

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use limit::SizeLimit;
pub use window::WINDOW_MAX;

/// Number of bytes that tell how a stream is compressed.
pub const MAGIC_LENGTH: usize = 6;

/// Size of the buffer for compressed data, in bytes.
const BUFFER: usize = 128 << 10;

/// How a stream is compressed. The numbers are those of layers.json (containers/storage `pkg/archive/archive.go`, `Compression`);
/// lz4 has none there, because no layer may be compressed with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not compressed.
    None = 0,
    /// bzip2.
    Bzip2 = 1,
    /// gzip (RFC 1952).
    Gzip = 2,
    /// xz (The .xz file format, 1.2.1).
    Xz = 3,
    /// Zstandard (RFC 8878), also zstd:chunked.
    Zstd = 4,
    /// LZ4 frames: store tars only, such as minikube's preloads.
    Lz4 = 250,
}

impl Compression {
    /// Returns the compression of a stream that begins with `magic`, which is shorter than [`MAGIC_LENGTH`] only if the stream is.
    #[must_use]
    pub fn detect(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            // A skippable frame, 0x184D2A50 to 0x184D2A5F, comes first in what pzstd writes.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0x00, ..] => Self::Xz,
            [0x04, 0x22, 0x4d, 0x18, ..] => Self::Lz4,
            _ => Self::None,
        }
    }

    /// The name of the format, for messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "plain",
            Self::Bzip2 => "bzip2",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
        }
    }
}

/// A stream with the bytes that were taken from it in front again.
pub type Whole<R> = Chain<Cursor<Vec<u8>>, R>;

/// Reads the first bytes of a stream, and returns its compression and the whole stream.
///
/// # Errors
/// Those of the stream.
pub fn peek<R: Read>(mut stream: R) -> io::Result<(Compression, Whole<R>)> {
    let mut magic = Vec::with_capacity(MAGIC_LENGTH);
    // One read of a socket or pipe may return fewer bytes.
    stream.by_ref().take(MAGIC_LENGTH as u64).read_to_end(&mut magic)?;
    Ok((Compression::detect(&magic), Cursor::new(magic).chain(stream)))
}

/// Returns the decompressed bytes of `stream`, however it is compressed.
///
/// # Errors
/// Those of reading its first bytes.
pub fn plain<R: Read>(stream: R) -> io::Result<Decoder<BufReader<Whole<R>>>> {
    let (compression, whole) = peek(stream)?;
    Ok(Decoder::new(compression, BufReader::with_capacity(BUFFER, whole)))
}

/// Decompresses all frames, members or streams of its input, one after the other.
///
/// An error of the input comes out unchanged. An error of the decoder names the format.
pub struct Decoder<R: BufRead> {
    compression: Compression,
    input_failed: Arc<AtomicBool>,
    decoder: Kind<Input<R>>,
}

enum Kind<R: BufRead> {
    None(R),
    Bzip2(bzip2::bufread::MultiBzDecoder<R>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<R>>),
    Lz4(Box<lz4::Reader<R>>),
    Xz(Box<xz::Reader<R>>),
    Zstd(Box<zstd::Reader<R>>),
}

impl<R: BufRead> Decoder<R> {
    /// Decompresses `input`, which is compressed like that.
    pub fn new(compression: Compression, input: R) -> Self {
        let input_failed = Arc::new(AtomicBool::new(false));
        let input = Input { inner: input, failed: Arc::clone(&input_failed) };
        let decoder = match compression {
            Compression::None => Kind::None(input),
            Compression::Bzip2 => Kind::Bzip2(bzip2::bufread::MultiBzDecoder::new(input)),
            Compression::Gzip => Kind::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(input))),
            Compression::Lz4 => Kind::Lz4(Box::new(lz4::Reader::new(input))),
            Compression::Xz => Kind::Xz(Box::new(xz::Reader::new(input))),
            Compression::Zstd => Kind::Zstd(Box::new(zstd::Reader::new(input))),
        };
        Self { compression, input_failed, decoder }
    }
}

impl<R: BufRead> std::fmt::Debug for Decoder<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Decoder({})", self.compression.name())
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match &mut self.decoder {
            Kind::None(input) => return input.read(buffer),
            Kind::Bzip2(decoder) => decoder.read(buffer),
            Kind::Gzip(decoder) => decoder.read(buffer),
            Kind::Lz4(decoder) => decoder.read(buffer),
            Kind::Xz(decoder) => decoder.read(buffer),
            Kind::Zstd(decoder) => decoder.read(buffer),
        };
        read.map_err(|error| {
            if self.input_failed.load(Ordering::Relaxed) {
                return error;
            }
            let name = self.compression.name();
            match error.kind() {
                // Well formed, but beyond a limit.
                io::ErrorKind::Unsupported => io::Error::new(error.kind(), format!("{name} stream: {error}")),
                kind => io::Error::new(kind, format!("corrupt {name} stream: {error}")),
            }
        })
    }
}

/// The input of a decoder. Decoders lose their place when a read is interrupted, so it is repeated here.
struct Input<R> {
    inner: R,
    failed: Arc<AtomicBool>,
}

impl<R> Input<R> {
    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|_| self.failed.store(true, Ordering::Relaxed))
    }
}

impl<R: BufRead> Read for Input<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = loop {
            match self.inner.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        self.note(result)
    }
}

impl<R: BufRead> BufRead for Input<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let result = loop {
            match self.inner.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result.map(drop),
            }
        };
        self.note(result)?;
        // The bytes are buffered: this returns them without a read.
        self.inner.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.inner.consume(count);
    }
}

/// An error of a decoder: its input is corrupt.
fn corrupt(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

/// An error of a decoder: its input needs more than the limits allow.
fn unsupported(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, text.into())
}

#[cfg(test)]
mod tests;
