//! A tar into a pipe or a device: in order, each byte once.

use std::io::Write;

use super::{Error, copy};
use crate::storage::store::Piece;

/// Writes pieces to a stream. What has gone out stays out: after [`Self::restart`] the same bytes are passed over.
pub struct TarStream<'a> {
    out: Box<dyn Write + 'a>,
    name: String,
    stamp: i64,
    written: u64,
    position: u64,
}

impl std::fmt::Debug for TarStream<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TarStream({})", self.name)
    }
}

impl<'a> TarStream<'a> {
    /// Writes to `out`, called `name` in errors. `stamp` is the store's time stamp.
    pub fn new(out: Box<dyn Write + 'a>, name: &str, stamp: i64) -> Self {
        Self { out, name: name.to_owned(), stamp, written: 0, position: 0 }
    }

    /// The next [`Self::push`] is the first piece again. The pieces must be the same as before.
    pub fn restart(&mut self) {
        self.position = 0;
    }

    /// Writes a piece.
    ///
    /// # Errors
    /// When the stream or the segment fails.
    pub fn push(&mut self, piece: &Piece) -> Result<(), Error> {
        let base = self.position;
        let (out, name, written) = (&mut self.out, &self.name, &mut self.written);
        copy(piece, self.stamp, |offset, part| {
            let done = written.saturating_sub(base + offset).min(part.len() as u64) as usize;
            out.write_all(&part[done..]).map_err(|error| Error::Stream { what: name.clone(), error })?;
            *written += (part.len() - done) as u64;
            Ok(())
        })?;
        self.position += piece.len();
        Ok(())
    }

    /// Ends the tar; gives its length.
    ///
    /// # Errors
    /// When the stream fails.
    pub fn finish(mut self) -> Result<u64, Error> {
        self.out.flush().map_err(|error| Error::Stream { what: self.name.clone(), error })?;
        Ok(self.written)
    }
}
