//! Gets at the plain bytes of a tar: where it lies when it can be read there, else from a copy without a name.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use super::find::Error;

/// How much of a stream is read at a time, in bytes.
const BUFFER: usize = 64 << 10;

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
        let mut magic = Vec::new();
        file.by_ref().take(6).read_to_end(&mut magic)?;
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
    let mut stream = BufReader::with_capacity(BUFFER, stream);
    Ok(match stream.fill_buf()? {
        [0x1f, 0x8b, ..] => Box::new(BufReader::with_capacity(BUFFER, flate2::bufread::MultiGzDecoder::new(stream))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(BufReader::with_capacity(BUFFER, zstd::stream::read::Decoder::with_buffer(stream)?))
        }
        [b'B', b'Z', b'h', ..] => return Err(Error::Compressed("bzip2")),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => return Err(Error::Compressed("xz")),
        _ => Box::new(stream),
    })
}
