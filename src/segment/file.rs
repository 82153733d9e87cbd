//! The file of a segment: written once, checked whenever it is read.
//!
//! Every chunk of the data has a checksum that is bound to the segment's key and to the chunk's place, so neither a flipped bit
//! nor a file or chunk in another's place gets into an output. The checksum (XXH3) is fast, not cryptographic: it guards
//! against accidents in a directory that belongs to the user. What came over the network was verified by SHA-256 before.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

use super::index::Index;
use crate::digest::Digest;

/// Bytes that one checksum covers.
pub const CHUNK: usize = 256 << 10;

const MAGIC: &[u8; 16] = b"prepull-segment1";
const TRAILER: usize = 16 + 32 + 4 * 8 + 16;

/// The most bytes of [`Facts`]: a file that claims more is no segment.
const FACTS_MAX: u64 = 64 << 20;

/// What layers.json says of a layer, and what else is known of it without its entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Digest of the blob as it was received.
    pub blob: Digest,
    /// Size of the blob in bytes.
    pub blob_size: u64,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Size of the uncompressed tar in bytes.
    pub diff_size: u64,
    /// containers/storage's number of the blob's compression.
    pub compression: u8,
    /// Owners that occur in headers, ascending.
    pub uids: Vec<u32>,
    /// Groups that occur in headers, ascending.
    pub gids: Vec<u32>,
    /// Whether an entry `/` gave the layer's root metadata of its own.
    pub root_claimed: bool,
    /// Offsets in the body of header blocks whose time is the store's time stamp.
    pub stamped: Vec<u64>,
    /// Opaque directories and where in the body their headers stand: for an unpacker with attributes they get one more.
    pub opaque: Vec<OpaqueHeader>,
    /// What was left out of the layer on purpose, for a warning: one line each.
    pub warnings: Vec<String>,
}

/// The headers of an opaque directory in a segment's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpaqueHeader {
    /// Its node in the index.
    pub node: u32,
    /// Offset in the body.
    pub start: u64,
    /// Bytes of all its headers.
    pub length: u64,
}

/// Why a segment cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not what its key says, or damaged.
    #[error("damaged cache file")]
    Damaged,
    /// It cannot be read.
    #[error("reading a segment: {0}")]
    Io(#[from] io::Error),
}

/// Writes the data of a segment.
#[derive(Debug)]
pub struct Writer {
    file: File,
    seed: u64,
    buffer: Vec<u8>,
    sums: Vec<u8>,
    written: u64,
}

impl Writer {
    /// Writes to `file`, which must be empty, for `key`.
    #[must_use]
    pub fn new(file: File, key: &Digest) -> Self {
        Self { file, seed: seed(key), buffer: Vec::with_capacity(CHUNK), sums: Vec::new(), written: 0 }
    }

    /// Bytes written so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// The bytes `[offset, offset + buffer.len())` written before.
    ///
    /// # Errors
    /// When they cannot be read back.
    pub fn read_back(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let in_file = self.written.saturating_sub(offset).min(buffer.len() as u64) as usize;
        self.file.read_exact_at(&mut buffer[..in_file], offset)?;
        let start = offset.saturating_sub(self.written) as usize;
        let rest = buffer.len() - in_file;
        buffer[in_file..].copy_from_slice(&self.buffer[start..][..rest]);
        Ok(())
    }

    fn flush_chunk(&mut self) -> io::Result<()> {
        let number = self.sums.len() as u64 / 8;
        let sum = xxh3_64_with_seed(&self.buffer, self.seed.wrapping_add(number));
        self.sums.extend_from_slice(&sum.to_le_bytes());
        self.file.write_all(&self.buffer)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Ends the segment. `body`, `split` and the rest (the index) are the lengths of the three parts of the data.
    ///
    /// # Errors
    /// When the rest cannot be written.
    pub fn finish(mut self, key: &Digest, body: u64, split: u64, facts: &Facts) -> io::Result<File> {
        let index = self.position() - body - split;
        if !self.buffer.is_empty() {
            self.flush_chunk()?;
        }
        let facts = serde_json::to_vec(facts)?;
        let mut end = self.sums;
        end.extend_from_slice(&facts);
        end.extend_from_slice(MAGIC);
        end.extend_from_slice(key.as_bytes());
        for length in [body, split, index, facts.len() as u64] {
            end.extend_from_slice(&length.to_le_bytes());
        }
        let check = xxh3_128_with_seed(&end, self.seed);
        end.extend_from_slice(&check.to_le_bytes());
        self.file.write_all(&end)?;
        Ok(self.file)
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..part]);
        if self.buffer.len() == CHUNK {
            self.flush_chunk()?;
        }
        Ok(part)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A segment that can be read.
#[derive(Debug)]
pub struct Segment {
    file: File,
    seed: u64,
    sums: Vec<u8>,
    body: u64,
    split: u64,
    index: u64,
    facts: Facts,
}

impl Segment {
    /// Opens the file of `key`.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it is anything else. The data are checked when they are read.
    pub fn open(file: File, key: &Digest) -> Result<Self, Error> {
        let size = file.metadata()?.len();
        let start = size.checked_sub(TRAILER as u64).ok_or(Error::Damaged)?;
        let mut trailer = [0; TRAILER];
        read_exact(&file, &mut trailer, start)?;
        if &trailer[..16] != MAGIC || trailer[16..48] != key.as_bytes()[..] {
            return Err(Error::Damaged);
        }
        let number = |at: usize| trailer[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or(u64::MAX);
        let [body, split, index, facts_length] = [48, 56, 64, 72].map(number);
        let data = body.checked_add(split).and_then(|sum| sum.checked_add(index)).ok_or(Error::Damaged)?;
        let sums_length = data.div_ceil(CHUNK as u64).checked_mul(8).ok_or(Error::Damaged)?;
        let end = data.checked_add(sums_length).and_then(|sum| sum.checked_add(facts_length));
        if end != Some(start) || facts_length > FACTS_MAX {
            return Err(Error::Damaged);
        }
        let mut rest = vec![0; (size - data) as usize];
        read_exact(&file, &mut rest, data)?;
        let seed = seed(key);
        let (checked, check) = rest.split_at(rest.len() - 16);
        if xxh3_128_with_seed(checked, seed).to_le_bytes() != check {
            return Err(Error::Damaged);
        }
        let facts = serde_json::from_slice(&rest[sums_length as usize..][..facts_length as usize])
            .map_err(|_| Error::Damaged)?;
        rest.truncate(sums_length as usize);
        Ok(Self { file, seed, sums: rest, body, split, index, facts })
    }

    /// What is known of the layer.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Length of the body in bytes.
    #[must_use]
    pub fn body_len(&self) -> u64 {
        self.body
    }

    /// Length of the compressed tar-split in bytes.
    #[must_use]
    pub fn split_len(&self) -> u64 {
        self.split
    }

    /// Bytes that the file takes.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn file_len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// The index.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it is not what was written.
    pub fn index(&self) -> Result<Index, Error> {
        let mut encoded = Vec::with_capacity(self.index as usize);
        self.read(self.body + self.split, self.index, |_, part| {
            encoded.extend_from_slice(part);
            Ok::<_, Error>(())
        })?;
        Index::decode(&encoded).map_err(|_| Error::Damaged)
    }

    /// Hands `[start, start + length)` of the data to `sink` in pieces, each with its offset in the data and only after
    /// its checksum was found right. The body begins at 0, the tar-split after it.
    ///
    /// # Errors
    /// [`Error::Damaged`], what reading gives, or what `sink` gives.
    pub fn read<E: From<Error>>(
        &self,
        start: u64,
        length: u64,
        mut sink: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let data = self.body + self.split + self.index;
        let end = start + length;
        debug_assert!(end <= data);
        let mut buffer = vec![0; CHUNK.min(usize::try_from(data).unwrap_or(CHUNK))];
        let mut number = start / CHUNK as u64;
        while number * (CHUNK as u64) < end {
            let at = number * CHUNK as u64;
            let chunk = &mut buffer[..(data - at).min(CHUNK as u64) as usize];
            read_exact(&self.file, chunk, at)?;
            let sum = xxh3_64_with_seed(chunk, self.seed.wrapping_add(number)).to_le_bytes();
            if self.sums.get(number as usize * 8..number as usize * 8 + 8) != Some(&sum) {
                return Err(Error::Damaged.into());
            }
            let from = start.saturating_sub(at) as usize;
            let to = (end - at).min(chunk.len() as u64) as usize;
            sink(at + from as u64, &mut chunk[from..to])?;
            number += 1;
        }
        Ok(())
    }
}

fn read_exact(file: &File, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
    file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::Damaged,
        _ => Error::Io(error),
    })
}

fn seed(key: &Digest) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&key.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_can_be_read_back_from_file_and_buffer() {
        let mut writer = Writer::new(tempfile::tempfile().unwrap(), &Digest::of(b"key"));
        let bytes: Vec<u8> = (0..2 * CHUNK + 1000).map(|at| (at % 251) as u8).collect();
        writer.write_all(&bytes).unwrap();
        for offset in [0, 1, CHUNK - 1, CHUNK, 2 * CHUNK - 7, 2 * CHUNK, 2 * CHUNK + 993] {
            let mut part = [0; 7];
            writer.read_back(offset as u64, &mut part).unwrap();
            assert_eq!(part, bytes[offset..offset + 7], "at {offset}");
        }
    }
}
