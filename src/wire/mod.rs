//! The canonical tar: the only tar that prepull writes.
//!
//! A subset of POSIX.1-2017 pax that GNU tar, bsdtar, Go and `busybox tar` all read to the same result:
//!
//! * ustar headers; a number that does not fit its octal field is written in base-256 (GNU), never as a PAX record, since
//!   busybox ignores `size`, `uid` and `gid` records and would lose its place in the archive;
//! * one `x` header before an entry when, and only when, it is needed, with records in this order: `path`, `linkpath`,
//!   `mtime` (fractions of a second), `SCHILY.xattr.*` in ascending order. Who ignores the last two loses only them;
//! * never GNU `L`, `K` or `S` entries, user or group names;
//! * two zero blocks at the end and no padding to a record.
//!
//! [`read`] takes exactly this and refuses everything else.

pub mod read;
/// What only those need who write whole tars.
#[cfg(feature = "front")]
mod whole;

use crate::entry::{Device, Entry, Kind, Meta, Timestamp};
#[cfg(feature = "front")]
pub use whole::{END, set_mtime, small_file};

/// Bytes in a tar block (POSIX pax, "ustar Interchange Format").
pub const BLOCK: u64 = 512;

const NAME: usize = 100;
const PREFIX: usize = 155;

const NANOSECONDS: i128 = 1_000_000_000;

/// Zero bytes that follow `size` bytes of content, to fill the last block.
#[must_use]
pub const fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK
}

/// Appends the headers of `entry` to `out`: all that stands before its content.
///
/// The entry's own header is always the last block of what is appended.
pub fn header(entry: &Entry, out: &mut Vec<u8>) {
    let mut path = entry.path.clone();
    if entry.kind == Kind::Directory {
        path.push(b'/');
    }
    let (typeflag, size, link, device) = match &entry.kind {
        Kind::Directory => (b'5', 0, &[][..], None),
        Kind::Regular { size } => (b'0', *size, &[][..], None),
        Kind::Symlink(target) => (b'2', 0, &target[..], None),
        Kind::Hardlink(target) => (b'1', 0, &target[..], None),
        Kind::CharDevice(device) => (b'3', 0, &[][..], Some(*device)),
        Kind::BlockDevice(device) => (b'4', 0, &[][..], Some(*device)),
        Kind::Fifo => (b'6', 0, &[][..], None),
    };
    let split = split_path(&path);
    let mut records = Vec::new();
    if split.is_none() {
        record(&mut records, b"path", &path);
    }
    if link.len() > NAME {
        record(&mut records, b"linkpath", link);
    }
    if entry.meta.mtime.nanoseconds != 0 {
        record(&mut records, b"mtime", decimal(entry.meta.mtime).as_bytes());
    }
    for (name, value) in &entry.meta.xattrs {
        record(&mut records, &[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    if !records.is_empty() {
        let meta = Meta { mode: 0o644, ..Meta::default() };
        out.extend_from_slice(&block(b"", b"PaxHeader", &meta, b'x', records.len() as u64, b"", None));
        out.extend_from_slice(&records);
        out.resize(out.len() + padding(records.len() as u64) as usize, 0);
    }
    // Where the path is in the x header, the header keeps its last bytes: something for a human with a hex editor.
    let (prefix, name) = split.unwrap_or((b"", &path[path.len().saturating_sub(NAME)..]));
    let link = &link[..link.len().min(NAME)];
    out.extend_from_slice(&block(prefix, name, &entry.meta, typeflag, size, link, device));
}

fn block(
    prefix: &[u8],
    name: &[u8],
    meta: &Meta,
    typeflag: u8,
    size: u64,
    link: &[u8],
    device: Option<Device>,
) -> [u8; BLOCK as usize] {
    let mut block = [0; BLOCK as usize];
    block[..name.len()].copy_from_slice(name);
    number(&mut block[100..108], meta.mode.into());
    number(&mut block[108..116], meta.uid.into());
    number(&mut block[116..124], meta.gid.into());
    number(&mut block[124..136], size as i64);
    number(&mut block[136..148], meta.mtime.seconds);
    block[156] = typeflag;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    if let Some(device) = device {
        number(&mut block[329..337], device.major.into());
        number(&mut block[337..345], device.minor.into());
    }
    block[345..345 + prefix.len()].copy_from_slice(prefix);
    checksum(&mut block);
    block
}

fn checksum(block: &mut [u8; BLOCK as usize]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Octal with a closing NUL where it fits, else base-256: bit 7 of the first byte set, two's complement, big-endian.
fn number(field: &mut [u8], value: i64) {
    let digits = field.len() - 1;
    if value >= 0 && (value as u64) < 1 << (3 * digits) {
        let text = format!("{value:0digits$o}\0");
        field.copy_from_slice(text.as_bytes());
        return;
    }
    for (position, byte) in field.iter_mut().rev().enumerate() {
        *byte = (i128::from(value) >> (8 * position)) as u8;
    }
    field[0] |= 0x80;
}

/// The path as ustar's prefix and name, if there is a slash in the right place.
fn split_path(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= NAME {
        return Some((b"", path));
    }
    if path.len() > PREFIX + 1 + NAME {
        return None;
    }
    // The first slash that leaves a short enough name, so that the prefix is as short as can be.
    let first = path.len() - NAME - 1;
    let slash = first + path[first..path.len() - 1].iter().position(|&byte| byte == b'/')?;
    (slash <= PREFIX && slash > 0).then(|| (&path[..slash], &path[slash + 1..]))
}

/// A PAX record: its length counts itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + digits(rest);
    length = rest + digits(length);
    out.extend_from_slice(&[length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat());
}

fn digits(number: usize) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

/// Seconds with a fraction, without trailing zeros, as pax wants a time: -2 s + 0.75 s is `-1.25`.
fn decimal(time: Timestamp) -> String {
    let total = i128::from(time.seconds) * NANOSECONDS + i128::from(time.nanoseconds);
    let (sign, whole, fraction) = (if total < 0 { "-" } else { "" }, total / NANOSECONDS, total % NANOSECONDS);
    let text = format!("{sign}{}.{:09}", whole.abs(), fraction.abs());
    text.trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &[u8], size: u64) -> Entry {
        Entry { path: path.to_vec(), meta: Meta { mode: 0o644, ..Meta::default() }, kind: Kind::Regular { size } }
    }

    #[test]
    fn numbers_are_octal_while_they_fit() {
        let mut field = [0; 8];
        number(&mut field, 0o7_777_777);
        assert_eq!(&field, b"7777777\0");
        number(&mut field, 0o10_000_000);
        assert_eq!(field, [0x80, 0, 0, 0, 0, 0x20, 0, 0]);
        let mut field = [0; 12];
        number(&mut field, -1);
        assert_eq!(field, [0xff; 12]);
        number(&mut field, 8 << 30);
        assert_eq!(field, [0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
    }

    #[test]
    fn a_pax_record_counts_its_own_length() {
        for (value, wanted) in [(1, "9 path=a\n"), (91, "101 path="), (90, "99 path=")] {
            let mut out = Vec::new();
            record(&mut out, b"path", &vec![b'a'; value]);
            assert!(out.starts_with(wanted.as_bytes()), "{value}: {}", String::from_utf8_lossy(&out));
            assert_eq!(out.len().to_string().as_bytes(), out.split(|&byte| byte == b' ').next().unwrap());
        }
    }

    #[test]
    fn times_keep_their_fraction() {
        let at = |seconds, nanoseconds| decimal(Timestamp { seconds, nanoseconds });
        assert_eq!(at(1, 500_000_000), "1.5");
        assert_eq!(at(0, 1), "0.000000001");
        assert_eq!(at(-2, 750_000_000), "-1.25");
        assert_eq!(at(-1, 500_000_000), "-0.5");
    }

    #[test]
    fn long_paths_are_split_at_a_slash_or_go_into_the_x_header() {
        let long = [vec![b'p'; 155], vec![b'/'], vec![b'n'; 100]].concat();
        assert_eq!(split_path(&long).map(|(prefix, name)| (prefix.len(), name.len())), Some((155, 100)));
        let mut out = Vec::new();
        header(&file(&long, 0), &mut out);
        assert_eq!(out.len(), 512);
        out.clear();
        header(&file(&[vec![b'p'; 156], vec![b'/'], vec![b'n'; 99]].concat(), 0), &mut out);
        assert_eq!(out.len(), 512 * 3);
        assert!(out[512..].starts_with(b"266 path=ppp"));
    }

    #[test]
    fn the_tar_crate_reads_what_is_written() {
        let mut bytes = Vec::new();
        let mut entry = file(b"a/b", 3);
        entry.meta.uid = 3_000_000;
        entry.meta.mtime = Timestamp { seconds: 1_700_000_000, nanoseconds: 5 };
        entry.meta.xattrs = vec![(b"user.x".to_vec(), b"\0\xff".to_vec())];
        small_file(&mut bytes, &entry, b"abc");
        bytes.extend_from_slice(&END);
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut entries = archive.entries().unwrap();
        let mut read = entries.next().unwrap().unwrap();
        assert_eq!(read.path_bytes().as_ref(), b"a/b");
        assert_eq!(read.header().uid().unwrap(), 3_000_000);
        let records: Vec<_> =
            read.pax_extensions().unwrap().unwrap().map(|record| record.unwrap().value_bytes().to_vec()).collect();
        assert_eq!(records, [&b"1700000000.000000005"[..], b"\0\xff"]);
        assert!(entries.next().is_none());
    }
}
