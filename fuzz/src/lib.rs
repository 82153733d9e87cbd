//! What several fuzz targets need: files in memory, inputs cut into parts, archives whose checksums are right.

pub mod fuse;
pub mod split;
pub mod stage;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::OnceLock;

/// Ends the parts of an input: no text in UTF-8 has this byte.
pub const SEPARATOR: u8 = 0xff;

/// An input whose first byte chooses what is done with the rest.
#[must_use]
pub fn choice(data: &[u8]) -> Option<(u8, &[u8])> {
    data.split_first().map(|(choice, rest)| (*choice, rest))
}

/// The parts of an input; those that are missing are empty, the last one is all that is left.
#[must_use]
pub fn parts<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    let mut rest = data.splitn(N, |byte| *byte == SEPARATOR);
    std::array::from_fn(|_| rest.next().unwrap_or_default())
}

/// A file in memory with `bytes`, at its beginning.
#[must_use]
pub fn file(bytes: &[u8]) -> File {
    let file = empty_file().expect("a file in memory");
    file.write_all_at(bytes, 0).expect("memory");
    file
}

/// An empty file in memory.
///
/// # Errors
/// Those of `memfd_create`.
pub fn empty_file() -> io::Result<File> {
    let file = rustix::fs::memfd_create("prepull-fuzz", rustix::fs::MemfdFlags::CLOEXEC)?;
    Ok(File::from(file))
}

/// A directory for this process, below `$TMPDIR`. It stays there: `fuzz/run` removes what is left.
///
/// # Panics
/// When there is no place for it.
#[must_use]
pub fn scratch() -> &'static Path {
    static SCRATCH: OnceLock<tempfile::TempDir> = OnceLock::new();
    SCRATCH.get_or_init(|| tempfile::tempdir().expect("a scratch directory")).path()
}

const BLOCK: usize = 512;

/// Makes the checksum right in every block of `tar` that is where a header should be: what a mutation has changed is then
/// read, and not only refused.
pub fn fix_checksums(tar: &mut [u8]) {
    let mut at = 0;
    while let Some(block) = tar.get_mut(at..at + BLOCK) {
        at += BLOCK;
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let digits = block[124..136].iter().copied().skip_while(|byte| matches!(byte, b' ' | 0));
        let size = digits.take_while(u8::is_ascii_digit).fold(0usize, |size, digit| size << 3 | usize::from(digit & 7));
        if !matches!(block[156], b'1'..=b'6') {
            at = at.saturating_add(size.next_multiple_of(BLOCK)).min(tar.len());
        }
    }
}

/// `bytes` compressed by gzip, as members that end where `cuts` say.
#[must_use]
pub fn gzip(bytes: &[u8], cuts: &[usize]) -> Vec<u8> {
    compressed(bytes, cuts, |part, out| {
        let mut member = flate2::write::GzEncoder::new(out, flate2::Compression::fast());
        member.write_all(part).and_then(|()| member.finish().map(drop)).expect("memory");
    })
}

/// `bytes` compressed by zstd, as frames that end where `cuts` say.
#[must_use]
pub fn zstd(bytes: &[u8], cuts: &[usize]) -> Vec<u8> {
    compressed(bytes, cuts, |part, out| out.extend(zstd::encode_all(part, 1).expect("memory")))
}

fn compressed(mut bytes: &[u8], cuts: &[usize], write: impl Fn(&[u8], &mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    for cut in cuts {
        let (part, rest) = bytes.split_at((*cut).min(bytes.len()));
        write(part, &mut out);
        bytes = rest;
    }
    write(bytes, &mut out);
    out
}

/// A reader that gives a few bytes at a time, as a network does.
#[derive(Debug)]
pub struct Trickle<R> {
    inner: R,
    most: usize,
}

impl<R: Read> Trickle<R> {
    /// Gives at most `most` bytes at a time.
    pub fn new(inner: R, most: usize) -> Self {
        Self { inner, most: most.max(1) }
    }
}

impl<R: Read> Read for Trickle<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.most.min(buffer.len());
        self.inner.read(&mut buffer[..most])
    }
}
