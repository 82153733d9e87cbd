//! A segment that can be read: its file, and the tar that has its body if that was written there.
//!
//! Every chunk of the data has a checksum that is bound to the segment's key and to the chunk's place, so neither a flipped bit
//! nor a file or chunk in another's place gets into an output. The checksum (XXH3) is fast, not cryptographic: it guards
//! against accidents in a directory that belongs to the user. What came over the network was verified by SHA-256 before, and a body
//! in a tar that others may write to is verified by SHA-256 whenever the tar has changed ([`super::witness`]).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use rustix::fs::{OFlags, fcntl_getfl};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

use super::index::Index;
use super::witness::{Stamp, vouch};
use crate::digest::{Digest, Hasher};
use crate::wire;

/// Bytes that one checksum covers.
pub const CHUNK: usize = 256 << 10;

const MAGIC: &[u8; 16] = b"prepull-segment4";
const TRAILER: usize = 16 + 32 + 6 * 8 + 16;

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
    /// SHA-256 of the body, with zeros for times that are the store's, if the body was written into a tar.
    pub body: Option<Digest>,
}

/// The tar that has a segment's body.
#[derive(Debug)]
pub struct BodyTar {
    /// The tar.
    pub file: Arc<File>,
    /// Whether its content is believed.
    pub trust: Trust,
}

/// What is known of a tar that has a segment's body.
#[derive(Debug, Clone, Copy)]
pub enum Trust {
    /// It is written by this process, and has no name yet under which others could find it.
    Own,
    /// The body was right when the tar had this stamp; `None` if that is not known.
    Seen(Option<Stamp>),
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

/// What ends the file of a segment: what is read first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trailer {
    /// Length of the body.
    pub body: u64,
    /// Length of the tar-split.
    pub split: u64,
    /// Length of the index.
    pub index: u64,
    /// The tar that has the body, by its number in the cache; 0 when the body is in the segment's own file.
    pub tar: u64,
    /// Where in the tar the body begins.
    pub offset: u64,
}

impl Trailer {
    /// The end of a segment's file: checksums of the chunks, facts, this.
    pub fn seal(&self, key: &Digest, sums: Vec<u8>, facts: &Facts) -> io::Result<Vec<u8>> {
        let facts = serde_json::to_vec(facts)?;
        let mut end = sums;
        end.extend_from_slice(&facts);
        end.extend_from_slice(MAGIC);
        end.extend_from_slice(key.as_bytes());
        for number in [self.body, self.split, self.index, facts.len() as u64, self.tar, self.offset] {
            end.extend_from_slice(&number.to_le_bytes());
        }
        let check = xxh3_128_with_seed(&end, seed(key));
        end.extend_from_slice(&check.to_le_bytes());
        Ok(end)
    }

    /// Reads the trailer of `key`'s file; also gives the length of the facts before it.
    pub fn read(file: &File, key: &Digest) -> Result<(Self, u64), Error> {
        let start = file.metadata()?.len().checked_sub(TRAILER as u64).ok_or(Error::Damaged)?;
        let mut bytes = [0; TRAILER];
        read_exact(file, &mut bytes, start)?;
        if &bytes[..16] != MAGIC || bytes[16..48] != key.as_bytes()[..] {
            return Err(Error::Damaged);
        }
        let number = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or(u64::MAX);
        let [body, split, index, facts, tar, offset] = [48, 56, 64, 72, 80, 88].map(number);
        Ok((Self { body, split, index, tar, offset }, facts))
    }

    /// Bytes of all three parts.
    fn data(&self) -> Option<u64> {
        self.body.checked_add(self.split)?.checked_add(self.index)
    }

    /// Bytes of the data that are not in the segment's own file: those before.
    fn elsewhere(&self) -> u64 {
        if self.tar == 0 { 0 } else { self.body }
    }
}

/// The checksum of chunk `number` of the segment with this seed.
pub(super) fn sum(chunk: &[u8], seed: u64, number: u64) -> [u8; 8] {
    xxh3_64_with_seed(chunk, seed.wrapping_add(number)).to_le_bytes()
}

/// A segment that can be read.
#[derive(Debug)]
pub struct Segment {
    files: RwLock<Files>,
    seed: u64,
    sums: Vec<u8>,
    body: u64,
    split: u64,
    index: u64,
    facts: Facts,
}

/// Where the data are.
#[derive(Debug)]
struct Files {
    own: File,
    /// The tar with the body, if that is not in the segment's own file.
    tar: Option<InTar>,
}

/// A body in a tar.
#[derive(Debug)]
struct InTar {
    file: Arc<File>,
    /// The tar's number in the cache.
    number: u64,
    /// Where the body begins.
    offset: u64,
    /// When the body was right; `None` for a tar that only this process can write to.
    seen: Option<Mutex<Seen>>,
}

/// Stamps under which a body was found right, or wrong.
#[derive(Debug, Default)]
struct Seen {
    good: Option<Stamp>,
    bad: Option<Stamp>,
}

impl InTar {
    fn seen(&self) -> Option<MutexGuard<'_, Seen>> {
        // It is changed in one step.
        self.seen.as_ref().map(|seen| seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Segment {
    /// Opens the file of `key`; `tar` returns the tar of a number, if there is one.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it is anything else, or its tar is not there. The data are checked when they are read.
    pub fn open(file: File, key: &Digest, tar: impl FnOnce(u64) -> io::Result<Option<BodyTar>>) -> Result<Self, Error> {
        let size = file.metadata()?.len();
        let (at, facts_length) = Trailer::read(&file, key)?;
        let data = at.data().ok_or(Error::Damaged)?;
        let sums_length = data.div_ceil(CHUNK as u64).checked_mul(8).ok_or(Error::Damaged)?;
        let own = data - at.elsewhere();
        let end = own.checked_add(sums_length).and_then(|sum| sum.checked_add(facts_length));
        let is_whole = end.and_then(|end| end.checked_add(TRAILER as u64)) == Some(size);
        // Without an index it would be taken for what [`Self::absent`] makes.
        if !is_whole || facts_length > FACTS_MAX || at.index == 0 {
            return Err(Error::Damaged);
        }
        let mut rest = vec![0; (size - own) as usize];
        read_exact(&file, &mut rest, own)?;
        let seed = seed(key);
        let (checked, check) = rest.split_at(rest.len() - 16);
        if xxh3_128_with_seed(checked, seed).to_le_bytes() != check {
            return Err(Error::Damaged);
        }
        let facts = serde_json::from_slice(&rest[sums_length as usize..][..facts_length as usize])
            .map_err(|_| Error::Damaged)?;
        rest.truncate(sums_length as usize);
        let tar = match at.tar {
            0 => None,
            number => {
                let BodyTar { file, trust } = tar(number)?.ok_or(Error::Damaged)?;
                let seen = match trust {
                    Trust::Own => None,
                    Trust::Seen(good) => Some(Mutex::new(Seen { good, bad: None })),
                };
                Some(InTar { file, number, offset: at.offset, seen })
            }
        };
        if let Some(tar) = &tar
            && at.offset.checked_add(at.body).is_none_or(|end| tar.file.metadata().is_ok_and(|found| found.len() < end))
        {
            return Err(Error::Damaged);
        }
        let Trailer { body, split, index, .. } = at;
        Ok(Self { files: RwLock::new(Files { own: file, tar }), seed, sums: rest, body, split, index, facts })
    }

    /// What stands for a layer of which only the manifest is known: it has no content, no tar-split and a bare index.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn absent(blob: Digest, blob_size: u64, compression: u8, diff_id: Digest) -> io::Result<Self> {
        let facts = Facts {
            blob,
            blob_size,
            diff_id,
            diff_size: 0,
            compression,
            uids: Vec::new(),
            gids: Vec::new(),
            root_claimed: false,
            stamped: Vec::new(),
            opaque: Vec::new(),
            warnings: Vec::new(),
            body: None,
        };
        let files = RwLock::new(Files { own: fs_err::File::open("/dev/null")?.into_file(), tar: None });
        Ok(Self { files, seed: 0, sums: Vec::new(), body: 0, split: 0, index: 0, facts })
    }

    fn files(&self) -> RwLockReadGuard<'_, Files> {
        // It is changed in one step: right, whoever panicked.
        self.files.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tar that has the body, if it is not in the segment's own file, and where the body begins in it.
    #[must_use]
    pub fn tar(&self) -> Option<(Arc<File>, u64)> {
        self.files().tar.as_ref().map(|tar| (Arc::clone(&tar.file), tar.offset))
    }

    /// The tar's number in the cache; 0 for none.
    #[must_use]
    pub fn tar_number(&self) -> u64 {
        self.files().tar.as_ref().map_or(0, |tar| tar.number)
    }

    /// Returns the stamp of the tar under which the body was found right last; `None` if it is not in a shared tar.
    #[must_use]
    pub fn stamp(&self) -> Option<Stamp> {
        self.files().tar.as_ref().and_then(|tar| tar.seen()?.good)
    }

    /// Sees that the body is right: by the tar's stamp, or by its SHA-256. Returns the stamp, if it is in a shared tar.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is not, or what reading gives.
    pub fn assure(&self) -> Result<Option<Stamp>, Error> {
        if let Some(tar) = &self.files().tar {
            self.read_body(tar, &mut [], 0)?;
        }
        Ok(self.stamp())
    }

    /// Moves a segment whose body is in a tar to a file of its own, `file`, which must be empty. It is read from there from
    /// then on.
    ///
    /// # Errors
    /// What [`Self::read`] gives, or that `file` cannot be written.
    pub fn move_to(&self, file: File, key: &Digest) -> Result<(), Error> {
        let data = self.body + self.split + self.index;
        self.read(0, data, |offset, part| file.write_all_at(part, offset).map_err(Error::Io))?;
        let at = Trailer { body: self.body, split: self.split, index: self.index, tar: 0, offset: 0 };
        file.write_all_at(&at.seal(key, self.sums.clone(), &self.facts)?, data)?;
        *self.files.write().unwrap_or_else(PoisonError::into_inner) = Files { own: file, tar: None };
        Ok(())
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

    /// The index.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it is not what was written.
    pub fn index(&self) -> Result<Index, Error> {
        if self.index == 0 {
            return Ok(Index::bare());
        }
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
            self.read_chunk(chunk, at)?;
            let sum = sum(chunk, self.seed, number);
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

    /// Reads all of `buffer` at `at` of the data without their checksums, for a caller that has read them with [`Self::read`] before
    /// and has kept the files open. A shared tar is still looked at ([`super::witness`]). Only for the content of files, because a
    /// tar has its own times in its headers.
    ///
    /// # Errors
    /// What reading gives.
    pub fn read_unchecked(&self, at: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let files = self.files();
        match &files.tar {
            Some(tar) if at < self.body => self.read_body(tar, buffer, at),
            Some(_) => read_exact(&files.own, buffer, at - self.body),
            None => read_exact(&files.own, buffer, at),
        }
    }

    /// The files that it is read from: its own, and the tar that has its body, if one has.
    ///
    /// # Errors
    /// When they cannot be opened again.
    pub fn handles(&self) -> io::Result<Vec<File>> {
        let files = self.files();
        // They are read-only, so that their receiver cannot change the bytes of which the checksums were made. One that is read-only
        // is not opened again: a confined process may not open a file whose cache has been removed.
        let open = |file: &File| {
            if fcntl_getfl(file)? & OFlags::RWMODE == OFlags::RDONLY {
                return file.try_clone();
            }
            fs_err::File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).map(fs_err::File::into_file)
        };
        std::iter::once(&files.own).chain(files.tar.as_ref().map(|tar| &*tar.file)).map(open).collect()
    }

    /// Reads `[at, at + chunk.len())` of the data from where it is.
    fn read_chunk(&self, chunk: &mut [u8], at: u64) -> Result<(), Error> {
        let files = self.files();
        let Some(tar) = &files.tar else { return read_exact(&files.own, chunk, at) };
        let in_tar = self.body.saturating_sub(at).min(chunk.len() as u64) as usize;
        let (body, rest) = chunk.split_at_mut(in_tar);
        if !body.is_empty() {
            self.read_body(tar, body, at)?;
            // There they have the time of that store.
            set_times(body, at, &self.facts.stamped, 0);
        }
        if !rest.is_empty() {
            read_exact(&files.own, rest, (at + in_tar as u64) - self.body)?;
        }
        Ok(())
    }

    /// Reads all of `part` at `at` of the body. The tar's stamp is compared after the bytes have been read: the kernel changes it
    /// before it changes the bytes.
    fn read_body(&self, tar: &InTar, part: &mut [u8], at: u64) -> Result<(), Error> {
        loop {
            read_exact(&tar.file, part, tar.offset + at)?;
            let Some(mut seen) = tar.seen() else { return Ok(()) };
            let now = Stamp::of(&tar.file)?;
            if seen.good == Some(now) {
                return Ok(());
            }
            if seen.bad == Some(now) {
                return Err(Error::Damaged);
            }
            // Other threads wait for the lock meanwhile.
            match vouch(&tar.file, || self.is_body_right(tar))? {
                // The part may have been read before something was put right.
                Some(stamp) => *seen = Seen { good: Some(stamp), bad: None },
                None => {
                    *seen = Seen { good: None, bad: Some(now) };
                    return Err(Error::Damaged);
                }
            }
        }
    }

    /// Returns whether the whole body has the digest that it had when it was written.
    fn is_body_right(&self, tar: &InTar) -> Result<bool, Error> {
        let Some(expected) = self.facts.body else { return Ok(false) };
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; CHUNK.min(usize::try_from(self.body).unwrap_or(CHUNK))];
        let mut at = 0;
        while at < self.body {
            let part = &mut buffer[..(self.body - at).min(CHUNK as u64) as usize];
            read_exact(&tar.file, part, tar.offset + at)?;
            set_times(part, at, &self.facts.stamped, 0);
            hasher.update(part);
            at += part.len() as u64;
        }
        Ok(hasher.finish() == expected)
    }
}

/// Sets the time of those header blocks in `part`, which begins at `offset` of the body, that are in the ascending list
/// `stamped`.
pub fn set_times(part: &mut [u8], offset: u64, stamped: &[u64], time: i64) {
    let from = stamped.partition_point(|&at| at < offset);
    for at in stamped[from..].iter().map(|at| at - offset) {
        // Bodies begin at offset 0 of a segment and chunks are multiples of a block: a header is never cut in two.
        let block = usize::try_from(at).ok().and_then(|at| part.get_mut(at..at + wire::BLOCK as usize));
        let Some(Ok(block)) = block.map(<&mut [u8; wire::BLOCK as usize]>::try_from) else { return };
        wire::set_mtime(block, time);
    }
}

fn read_exact(file: &File, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
    file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::Damaged,
        _ => Error::Io(error),
    })
}

pub(super) fn seed(key: &Digest) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&key.as_bytes()[..8]);
    u64::from_le_bytes(first)
}
