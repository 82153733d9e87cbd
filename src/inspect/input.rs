//! Gets at the plain bytes of a tar: where it lies when it can be read there, else from a copy without a name.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::find::Error;

/// How much of a stream is read at a time, in bytes.
const BUFFER: usize = 64 << 10;

/// Enough bytes to know a compression by.
const MAGIC: u64 = 6;

/// The plain tar at `path` (`-`: standard input), positioned at its start. What is compressed or comes through a pipe is copied
/// to a temporary file in `$TMPDIR`, else `/var/tmp`, that nobody else sees and that goes when it is closed.
///
/// # Errors
/// When it cannot be read or decompressed, or there is no room for the copy.
pub fn plain_tar(path: &Path) -> Result<File, Error> {
    let mut file = if path == Path::new("-") {
        use std::os::fd::AsFd as _;
        File::from(io::stdin().as_fd().try_clone_to_owned()?)
    } else {
        fs_err::File::open(path)?.into_file()
    };
    // A pipe has no place to go back to.
    if file.metadata()?.is_file() {
        file.seek(SeekFrom::Start(0))?;
        let magic = magic_of(&mut file)?;
        file.seek(SeekFrom::Start(0))?;
        if !is_compressed(&magic) {
            return Ok(file);
        }
    }
    let directory = std::env::var_os("TMPDIR").filter(|text| !text.is_empty());
    let directory = directory.map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let named = |error: io::Error| io::Error::new(error.kind(), format!("copy to {}: {error}", directory.display()));
    let mut copy = tempfile::tempfile_in(&directory).map_err(named)?;
    let mut plain = plain_stream(file)?;
    loop {
        let bytes = plain.fill_buf()?;
        if bytes.is_empty() {
            break;
        }
        let count = bytes.len();
        io::Write::write_all(&mut copy, bytes).map_err(named)?;
        plain.consume(count);
    }
    copy.seek(SeekFrom::Start(0))?;
    Ok(copy)
}

/// Whether these first bytes are those of a compressed file.
pub(super) fn is_compressed(magic: &[u8]) -> bool {
    matches!(magic, [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] | [b'B', b'Z', b'h', ..] | [0xfd, b'7', b'z', ..])
}

/// `stream` decompressed, if it is compressed with gzip or zstd.
///
/// # Errors
/// When it cannot be read, or is compressed with something else.
pub(super) fn plain_stream<'a>(stream: impl Read + 'a) -> Result<Box<dyn BufRead + 'a>, Error> {
    let mut stream = Patient(stream);
    let magic = magic_of(&mut stream)?;
    let stream = BufReader::with_capacity(BUFFER, io::Cursor::new(magic.clone()).chain(stream));
    Ok(match magic[..] {
        [0x1f, 0x8b, ..] => Box::new(BufReader::with_capacity(BUFFER, flate2::bufread::MultiGzDecoder::new(stream))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(BufReader::with_capacity(BUFFER, zstd::stream::read::Decoder::with_buffer(stream)?))
        }
        [b'B', b'Z', b'h', ..] => return Err(Error::Compressed("bzip2")),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => return Err(Error::Compressed("xz")),
        _ => Box::new(stream),
    })
}

/// The first bytes. One read of a pipe may give fewer.
pub(super) fn magic_of(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut magic = Vec::new();
    stream.take(MAGIC).read_to_end(&mut magic)?;
    Ok(magic)
}

/// Reads again when a signal has interrupted it: decoders may not.
pub(super) struct Patient<R>(pub R);

impl<R: Read> Read for Patient<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }
}

impl<R: Seek> Seek for Patient<R> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.0.seek(position)
    }
}
