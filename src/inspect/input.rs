//! Gets at the plain bytes of a tar: where it lies when it can be read there, else from a copy without a name.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use super::find::Error;
use crate::atomic::temporary_directory;
use crate::compression::{self, Compression};

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
        let compression = compression_of(&mut file)?;
        file.seek(SeekFrom::Start(0))?;
        if compression == Compression::None {
            return Ok(file);
        }
    }
    let directory = temporary_directory();
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

/// Returns the decompressed bytes of `stream`.
///
/// # Errors
/// When it cannot be read.
pub(super) fn plain_stream<'a>(stream: impl Read + 'a) -> Result<impl BufRead + 'a, Error> {
    Ok(BufReader::with_capacity(BUFFER, compression::plain(Patient(stream))?))
}

/// Returns how a stream that begins here is compressed.
pub(super) fn compression_of(stream: &mut impl Read) -> io::Result<Compression> {
    Ok(compression::peek(stream)?.0)
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
