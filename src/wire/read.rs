//! The strict reader of the canonical tar: the only parser that what comes to the privileged helper has to pass.
//!
//! It does not trust its own parsing: every entry is written again with [`header`](super::header()), and whoever sent other
//! bytes than that is refused. So each entry has one encoding, there is nothing that this reader and another one could
//! understand differently (sizes in two places, numbers in two bases, records twice), and what is not in the canonical tar
//! does not have to be thought of here.

use std::io::{self, Read};

use super::{BLOCK, NAME, NANOSECONDS, PREFIX, header, padding};
use crate::entry::{Device, Entry, Kind, Meta, Timestamp};

/// The most bytes of an `x` header's records. One inode has at most 72 KiB of attributes (Linux `XATTR_SIZE_MAX` is 64 KiB), and
/// two paths.
pub const RECORDS_MAX: u64 = 128 << 10;

/// The longest path: what a layer may have (Linux `PATH_MAX` − 1), below a store's directory.
pub const PATH_MAX: usize = 4095 + 1024;

/// The longest name of one directory entry (Linux `NAME_MAX`).
pub const NAME_MAX: usize = 255;

/// The longest target of a symbolic link (Linux `PATH_MAX` − 1).
pub const TARGET_MAX: usize = 4095;

/// Why a path is refused.
const PATH: &str = "its path is empty, absolute, too long, or has an empty, `.` or `..` component";

/// Why the input is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("reading the tar: {0}")]
    Read(#[from] io::Error),
    /// It ends in the middle.
    #[error("the tar ends before its end")]
    Short,
    /// An entry that is not as the writer writes it, or leads elsewhere.
    #[error("entry {0}: {1}")]
    Entry(u64, &'static str),
}

/// Reads entries one after the other; the content of a regular file by [`Read`].
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    /// Entries so far: errors name the entry by its number, never by what a stranger called it.
    number: u64,
    /// Bytes of the last entry's content that are still to come.
    content: u64,
    /// Zeros after it.
    padding: u64,
    raw: Vec<u8>,
    canonical: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// Reads from `input`, in small pieces: it should be buffered.
    pub fn new(input: R) -> Self {
        Self { input, number: 0, content: 0, padding: 0, raw: Vec::new(), canonical: Vec::new() }
    }

    /// The number of the last entry, from 1.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The next entry, or `None` at the end of the tar; nothing is read after that. The content of the one before must have
    /// been read.
    ///
    /// # Errors
    /// When the next bytes are anything but an entry of the canonical tar.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Error> {
        if self.content > 0 {
            return Err(Error::Entry(self.number, "its content was not taken"));
        }
        self.end_content()?;
        self.number += 1;
        let mut block = self.block()?;
        self.raw.clear();
        self.raw.extend_from_slice(&block);
        if block == [0; BLOCK as usize] {
            return if self.block()? == block { Ok(None) } else { Err(self.refused()) };
        }
        let mut records = 0..0;
        if block[156] == b'x' {
            let size = number(&block[124..136]).filter(|size| *size > 0 && *size as u64 <= RECORDS_MAX);
            let size = size.ok_or_else(|| self.refused())? as u64;
            records = self.raw.len()..self.raw.len() + size as usize;
            self.raw.resize(records.end + padding(size) as usize, 0);
            fill(&mut self.input, &mut self.raw[records.start..])?;
            block = self.block()?;
            self.raw.extend_from_slice(&block);
        }
        let entry = entry(&block, &self.raw[records]).ok_or_else(|| self.refused())?;
        if !is_path(&entry.path) || matches!(&entry.kind, Kind::Hardlink(target) if !is_path(target)) {
            return Err(Error::Entry(self.number, PATH));
        }
        self.canonical.clear();
        header(&entry, &mut self.canonical);
        if self.canonical != self.raw {
            return Err(self.refused());
        }
        if let Kind::Regular { size } = entry.kind {
            (self.content, self.padding) = (size, padding(size));
        }
        Ok(Some(entry))
    }

    fn refused(&self) -> Error {
        Error::Entry(self.number, "it is not in prepull's canonical form")
    }

    fn block(&mut self) -> Result<[u8; BLOCK as usize], Error> {
        let mut block = [0; BLOCK as usize];
        fill(&mut self.input, &mut block)?;
        Ok(block)
    }

    /// Takes the zeros after a file's content.
    fn end_content(&mut self) -> Result<(), Error> {
        let mut rest = [0; BLOCK as usize];
        let rest = &mut rest[..std::mem::take(&mut self.padding) as usize];
        fill(&mut self.input, rest)?;
        if rest.iter().all(|&byte| byte == 0) { Ok(()) } else { Err(self.refused()) }
    }
}

/// The content of the last entry: ends where that ends.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.content).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let count = self.input.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the tar ends before its end"));
        }
        self.content -= count as u64;
        Ok(count)
    }
}

fn fill(input: &mut impl Read, buffer: &mut [u8]) -> Result<(), Error> {
    input.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::Short,
        _ => Error::Read(error),
    })
}

/// Whether every component is a name that can be made in a directory.
fn is_path(path: &[u8]) -> bool {
    let is_name = |name: &[u8]| !name.is_empty() && name.len() <= NAME_MAX && name != b"." && name != b"..";
    path.len() <= PATH_MAX && !path.contains(&0) && path.split(|&byte| byte == b'/').all(is_name)
}

/// The entry of a header block, and of the records of the `x` header before it. What does not stand where it should is found
/// when it is written again.
fn entry(block: &[u8; BLOCK as usize], mut records: &[u8]) -> Option<Entry> {
    let small = |range: std::ops::Range<usize>| number(&block[range]).and_then(|value| u32::try_from(value).ok());
    let device = || Some(Device { major: small(329..337)?, minor: small(337..345)? });
    let link = text(&block[157..157 + NAME]).to_vec();
    let mut kind = match block[156] {
        b'5' => Kind::Directory,
        b'0' => Kind::Regular { size: number(&block[124..136])?.try_into().ok()? },
        b'2' => Kind::Symlink(link),
        b'1' => Kind::Hardlink(link),
        b'3' => Kind::CharDevice(device()?),
        b'4' => Kind::BlockDevice(device()?),
        b'6' => Kind::Fifo,
        _ => return None,
    };
    let mut path = match text(&block[345..345 + PREFIX]) {
        b"" => text(&block[..NAME]).to_vec(),
        prefix => [prefix, b"/", text(&block[..NAME])].concat(),
    };
    let mut meta = Meta {
        mode: u16::try_from(small(100..108)?).ok().filter(|mode| *mode <= 0o7777)?,
        uid: small(108..116)?,
        gid: small(116..124)?,
        mtime: Timestamp::whole(number(&block[136..148])?),
        xattrs: Vec::new(),
    };
    while !records.is_empty() {
        let space = records.iter().take(8).position(|&byte| byte == b' ')?;
        let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
        let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
        records = &records[length..];
        let equals = record.iter().position(|&byte| byte == b'=')?;
        let (key, value) = (&record[..equals], record[equals + 1..].to_vec());
        match (key, &mut kind) {
            (b"path", _) => path = value,
            (b"linkpath", Kind::Symlink(target) | Kind::Hardlink(target)) => *target = value,
            (b"mtime", _) => meta.mtime = time(&value)?,
            _ => meta.xattrs.push((key.strip_prefix(b"SCHILY.xattr.")?.to_vec(), value)),
        }
    }
    let is_target = |target: &[u8]| !target.is_empty() && target.len() <= TARGET_MAX && !target.contains(&0);
    let is_entry = match &kind {
        Kind::Directory => path.pop() == Some(b'/'),
        Kind::Symlink(target) => is_target(target),
        _ => true,
    };
    // Written again, attributes in another order would be the same.
    (is_entry && meta.xattrs.is_sorted_by(|a, b| a.0 < b.0)).then_some(Entry { path, meta, kind })
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&byte| byte == 0).unwrap_or(field.len())]
}

/// Octal digits and a NUL, or base-256.
fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 == 0 {
        let digits = std::str::from_utf8(field.strip_suffix(b"\0")?).ok()?;
        return i64::from_str_radix(digits, 8).ok();
    }
    // Two's complement; bit 7 of the first byte only says so.
    let (first, rest) = field.split_first()?;
    let first = if first & 0x40 == 0 { i64::from(first & 0x7f) } else { i64::from(*first as i8) };
    rest.iter().try_fold(first, |value, byte| Some(value.checked_mul(256)? | i64::from(*byte)))
}

/// Seconds with a fraction: `12.5`, `-1.25`.
fn time(value: &[u8]) -> Option<Timestamp> {
    let (whole, fraction) = std::str::from_utf8(value).ok()?.split_once('.')?;
    let total = format!("{whole}{fraction:0<9}").parse::<i128>().ok()?;
    let (seconds, nanoseconds) = (total.div_euclid(NANOSECONDS), total.rem_euclid(NANOSECONDS));
    Some(Timestamp { seconds: seconds.try_into().ok()?, nanoseconds: nanoseconds as u32 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{END, small_file};
    use super::*;

    fn name() -> impl Strategy<Value = Vec<u8>> {
        let byte = any::<u8>().prop_filter("no separator", |byte| !matches!(byte, 0 | b'/'));
        proptest::collection::vec(byte, 1..120).prop_filter("a name", |name| name != b"." && name != b"..")
    }

    fn path() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(name(), 1..6).prop_map(|names| names.join(&b'/'))
    }

    fn kind() -> impl Strategy<Value = Kind> {
        let device = (any::<u32>(), any::<u32>()).prop_map(|(major, minor)| Device { major, minor });
        prop_oneof![
            Just(Kind::Directory),
            (0_u64..3000).prop_map(|size| Kind::Regular { size }),
            path().prop_map(Kind::Symlink),
            path().prop_map(Kind::Hardlink),
            device.clone().prop_map(Kind::CharDevice),
            device.prop_map(Kind::BlockDevice),
            Just(Kind::Fifo),
        ]
    }

    prop_compose! {
        fn any_entry()(
            path in path(), kind in kind(), mode in 0_u16..=0o7777, uid in any::<u32>(), gid in any::<u32>(),
            seconds in -(1_i64 << 40)..1 << 40, nanoseconds in prop_oneof![Just(0), 0_u32..1_000_000_000],
            xattrs in proptest::collection::btree_map("[a-z.]{1,20}", proptest::collection::vec(any::<u8>(), 0..50), 0..3),
        ) -> Entry {
            let xattrs = xattrs.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect();
            Entry { path, kind, meta: Meta { mode, uid, gid, mtime: Timestamp { seconds, nanoseconds }, xattrs } }
        }
    }

    fn tar_of(entries: &[Entry]) -> Vec<u8> {
        let mut tar = Vec::new();
        for entry in entries {
            match entry.kind {
                Kind::Regular { size } => small_file(&mut tar, entry, &vec![b'c'; size as usize]),
                _ => header(entry, &mut tar),
            }
        }
        tar.extend_from_slice(&END);
        tar
    }

    fn read_all(tar: &[u8]) -> Result<Vec<Entry>, Error> {
        let mut reader = Reader::new(tar);
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            let mut content = Vec::new();
            reader.read_to_end(&mut content)?;
            entries.push(entry);
        }
        Ok(entries)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(entries in proptest::collection::vec(any_entry(), 0..8)) {
            prop_assert_eq!(read_all(&tar_of(&entries)).unwrap(), entries);
        }

        #[test]
        fn no_other_bytes_mean_anything(
            entries in proptest::collection::vec(any_entry(), 1..4), at in any::<prop::sample::Index>(), flip in 1_u8..,
        ) {
            let mut tar = tar_of(&entries);
            let at = at.index(tar.len());
            tar[at] ^= flip;
            if let Ok(read) = read_all(&tar) {
                // A byte of content, or another value in a header, whose checksum then would not be right.
                let again = tar_of(&read);
                let differ = again.iter().zip(&tar).filter(|(a, b)| a != b).count();
                prop_assert!(again.len() == tar.len() && differ <= 1);
            }
        }

        #[test]
        fn a_tar_that_is_cut_off_is_refused(entries in proptest::collection::vec(any_entry(), 1..4), at in any::<prop::sample::Index>()) {
            let tar = tar_of(&entries);
            prop_assert!(read_all(&tar[..at.index(tar.len())]).is_err());
        }

        #[test]
        fn anything_else_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let _ = read_all(&bytes);
        }
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for path in [&b"/etc/passwd"[..], b"", b"..", b"a/../b", b"a//b", b"./a", b"a/.", b"a/", b"a\0b", &[b'a'; 256]]
        {
            assert!(!is_path(path), "{path:?}");
        }
        assert!(!is_path(&b"a/".repeat(2561)[..5121]) && is_path(&b"a/".repeat(2560)[..5119]) && is_path(b"a/..b/.c"));
    }
}
