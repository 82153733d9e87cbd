//! Where the store's pieces go.
//!
//! A file takes pieces at their offsets, from several threads; a stream takes them one after the other. Neither sees a
//! byte of a segment whose checksum has not been compared.

mod file;
mod stream;

pub use file::{Pieces, TarFile};
pub use stream::TarStream;

use crate::atomic::is_full;
use crate::digest::Digest;
use crate::segment::file::{Error as SegmentError, set_times};
use crate::storage::store::Piece;

/// Why a piece could not be put out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be written. The file of that name, if there is one, is untouched.
    #[error("writing {what}: {error}{}", if is_full(.error) { " (the output is as it was; make room and run again)" } else { "" })]
    Write {
        /// The output.
        what: String,
        /// The cause.
        error: std::io::Error,
    },
    /// The stream cannot be written. Its beginning may have gone out.
    #[error("writing {what}: {error}{}", if is_full(.error) { " (what was written is not a whole tar; make room and run again)" } else { "" })]
    Stream {
        /// The output.
        what: String,
        /// The cause.
        error: std::io::Error,
    },
    /// There is no thread to write with.
    #[error(transparent)]
    Thread(std::io::Error),
    /// A tar that is there is not the one that would be written.
    #[error("the tar in the cache is another one")]
    Different,
    /// The segment of this layer is damaged, or cannot be read.
    #[error("layer {layer}: {error}")]
    Segment {
        /// The layer's id.
        layer: Digest,
        /// Why.
        error: SegmentError,
    },
}

/// Hands a piece's bytes to `write`, with their offsets in the piece.
fn copy(piece: &Piece, stamp: i64, mut write: impl FnMut(u64, &[u8]) -> Result<(), Error>) -> Result<(), Error> {
    let (segment, layer, start, length) = match piece {
        Piece::Bytes(bytes) => return write(0, bytes),
        Piece::Segment { segment, layer, start, length } => (segment, *layer, *start, *length),
    };
    let result = segment.read(start, length, |offset, part| {
        set_times(part, offset, &segment.facts().stamped, stamp);
        write(offset - start, part).map_err(Stop::Write)
    });
    result.map_err(|stop| match stop {
        Stop::Write(error) => error,
        Stop::Segment(error) => Error::Segment { layer, error },
    })
}

enum Stop {
    Write(Error),
    Segment(SegmentError),
}

impl From<SegmentError> for Stop {
    fn from(error: SegmentError) -> Self {
        Self::Segment(error)
    }
}
