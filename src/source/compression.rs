//! Archives and layers that are themselves compressed: told by their first bytes, as containers/image does
//! (`pkg/compression`, `DetectCompressionFormat`), never by a name or a media type.

use std::io::{self, BufReader, Chain, Cursor, Read};

/// How many bytes tell.
pub(super) const MAGIC_LENGTH: usize = 6;

/// How much compressed data is read at a time, in bytes.
const BUFFER: usize = 128 << 10;

/// How bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
    /// Recognised, not supported.
    Other(&'static str),
}

impl Compression {
    /// What begins with `magic`, which may be shorter than [`MAGIC_LENGTH`] where there is no more.
    pub(super) fn detect(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            // Also a skippable frame, 0x184D2A50 to 0x184D2A5F: zstd:chunked may begin with one.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', ..] => Self::Other("bzip2"),
            [0xfd, b'7', b'z', b'X', b'Z', 0x00, ..] => Self::Other("xz"),
            _ => Self::None,
        }
    }

    /// The plain bytes of `compressed`; all frames or members of it.
    ///
    /// # Errors
    /// When the compression is not supported.
    pub(super) fn plain(self, compressed: impl Read + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
        let buffered = BufReader::with_capacity(BUFFER, compressed);
        Ok(match self {
            Self::None => Box::new(buffered),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(buffered)),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(buffered)?),
            Self::Other(name) => {
                let text = format!("compressed with {name}, only gzip and zstd are supported");
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
        })
    }
}

/// A stream with the bytes that were taken from it in front again.
type Whole<R> = Chain<Cursor<Vec<u8>>, R>;

/// Takes the first bytes of a stream and gives them back with it.
pub(super) fn peek<R: Read>(mut stream: R) -> io::Result<(Compression, Whole<R>)> {
    let mut magic = Vec::with_capacity(MAGIC_LENGTH);
    (&mut stream).take(MAGIC_LENGTH as u64).read_to_end(&mut magic)?;
    Ok((Compression::detect(&magic), Cursor::new(magic).chain(stream)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn plain(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        let (compression, stream) = peek(Cursor::new(bytes))?;
        let mut out = Vec::new();
        compression.plain(stream)?.read_to_end(&mut out).map(|_| out)
    }

    #[test]
    fn compression_is_told_by_the_bytes() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"hello").unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(&b"hello"[..], 1).unwrap();
        for bytes in [b"hello".to_vec(), gzip.clone(), zstd] {
            assert_eq!(plain(bytes).unwrap(), b"hello");
        }
        assert_eq!(plain([gzip.clone(), gzip.clone()].concat()).unwrap(), b"hellohello");
        assert!(plain(gzip[..gzip.len() - 3].to_vec()).is_err());
        assert_eq!(plain(Vec::new()).unwrap(), b"");
        assert!(plain(b"BZh91".to_vec()).unwrap_err().to_string().contains("bzip2"));
    }
}
