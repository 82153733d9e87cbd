//! Where the store's pieces go.
//!
//! A file takes pieces at their offsets, from several threads; a stream takes them one after the other. Neither sees a
//! byte of a segment whose checksum has not been compared.

mod file;
mod stream;

pub use file::TarFile;
pub use stream::TarStream;

use crate::digest::Digest;
use crate::segment::file::Error as SegmentError;
use crate::storage::store::Piece;
use crate::wire;

/// Why a piece could not be put out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The output cannot be written.
    #[error("writing {what}: {error}{}", hint(.error))]
    Write {
        /// The output.
        what: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The segment of this layer is damaged, or cannot be read.
    #[error("layer {layer}: {error}")]
    Segment {
        /// The layer's id.
        layer: Digest,
        /// Why.
        error: SegmentError,
    },
}

fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            " (nothing was left behind; make room and run again)"
        }
        _ => "",
    }
}

/// Hands a piece's bytes to `write`, with their offsets in the piece.
fn copy(piece: &Piece, stamp: i64, mut write: impl FnMut(u64, &[u8]) -> Result<(), Error>) -> Result<(), Error> {
    let (segment, layer, start, length, stamped) = match piece {
        Piece::Bytes(bytes) => return write(0, bytes),
        Piece::Segment { segment, layer, start, length, stamped } => (segment, *layer, *start, *length, stamped),
    };
    let mut stamped = stamped.iter().skip_while(|&&at| at < start).peekable();
    let result = segment.read(start, length, |offset, part| {
        let end = offset + part.len() as u64;
        while let Some(at) = stamped.next_if(|&&at| at < end) {
            // Bodies begin at offset 0 of a segment and chunks are multiples of a block: a header is never cut in two.
            let at = (at - offset) as usize;
            if let Ok(block) = <&mut [u8; wire::BLOCK as usize]>::try_from(&mut part[at..at + wire::BLOCK as usize]) {
                wire::set_mtime(block, stamp);
            }
        }
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
