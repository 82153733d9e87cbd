//! Sparse members, as GNU tar's `--sparse` writes them: only the parts that are not holes are in the archive.
//!
//! Read as Go's `archive/tar` reads them (`reader.go`, `handleSparseFile`), which is what skopeo opens archives with:
//!
//! ```text
//! old GNU    typeflag S: 4 parts and the real size in the header, 21 more in each block that follows it
//! PAX 0.0    GNU.sparse.offset and GNU.sparse.numbytes in turn
//! PAX 0.1    GNU.sparse.map: all of them with commas
//! PAX 1.0    GNU.sparse.major=1: a list of decimal lines in front of the member's content
//! ```

use super::BLOCK;

/// Maximum number of parts that all members of an archive have together (Go `archive/tar`, `maxSparseFileEntries`, is the limit
/// for one member).
pub(super) const PARTS_MAX: usize = 1 << 20;

/// A part of a member that is in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Offset in the member.
    pub at: u64,
    /// Length in bytes.
    pub length: u64,
}

/// The sparse records of a PAX header.
#[derive(Debug, Default)]
pub(super) struct Records {
    major: Vec<u8>,
    minor: Vec<u8>,
    pub name: Option<Vec<u8>>,
    size: Option<Vec<u8>>,
    real_size: Option<Vec<u8>>,
    count: Vec<u8>,
    /// Numbers of the map, in turn offset and length.
    map: Vec<Vec<u8>>,
}

/// What PAX records say of a member.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pax {
    /// Not sparse.
    None,
    /// These parts; the size, if it is known.
    Parts(Vec<Part>, Option<u64>),
    /// The list of parts is in front of the content.
    InContent(Option<u64>),
}

impl Records {
    /// Takes a record if it is one of them. `None`: it is malformed.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let Some(key) = key.strip_prefix(b"GNU.sparse.") else { return Some(()) };
        match key {
            b"major" => self.major = value.to_vec(),
            b"minor" => self.minor = value.to_vec(),
            b"name" => self.name = Some(value.to_vec()).filter(|name| !name.is_empty()),
            b"size" => self.size = Some(value.to_vec()).filter(|size| !size.is_empty()),
            b"realsize" => self.real_size = Some(value.to_vec()).filter(|size| !size.is_empty()),
            b"numblocks" => self.count = value.to_vec(),
            b"map" => self.map = value.split(|byte| *byte == b',').map(<[u8]>::to_vec).collect(),
            // Go `parsePAX`: one after the other.
            b"offset" | b"numbytes" => {
                let is_offset = self.map.len().is_multiple_of(2);
                if (key == b"offset") != is_offset || value.contains(&b',') {
                    return None;
                }
                self.map.push(value.to_vec());
            }
            _ => {}
        }
        Some(())
    }

    /// Returns what the records say together (Go `readGNUSparsePAXHeaders`). `None`: they are malformed.
    pub(super) fn finish(&self) -> Option<Pax> {
        let in_content = match (&self.major[..], &self.minor[..]) {
            (b"0", b"0" | b"1") => false,
            (b"1", b"0") => true,
            // Go does not know these versions, and shows the member as it is.
            (major, minor) if !major.is_empty() || !minor.is_empty() => return Some(Pax::None),
            _ if self.map.iter().all(Vec::is_empty) => return Some(Pax::None),
            _ => false,
        };
        let size = match self.size.as_ref().or(self.real_size.as_ref()) {
            Some(size) => Some(decimal(size)?),
            None => None,
        };
        if in_content {
            return Some(Pax::InContent(size));
        }
        let map: &[Vec<u8>] = if matches!(&self.map[..], [only] if only.is_empty()) { &[] } else { &self.map };
        if decimal(&self.count)?.checked_mul(2)? != map.len() as u64 {
            return None;
        }
        let part = |pair: &[Vec<u8>]| Some(Part { at: decimal(&pair[0])?, length: decimal(&pair[1])? });
        Some(Pax::Parts(map.chunks_exact(2).map(part).collect::<Option<_>>()?, size))
    }

    /// Whether a member is renamed: its header has a name that only unpackers without support for sparse files see.
    pub(super) fn is_known(&self) -> bool {
        !matches!(self.finish(), None | Some(Pax::None))
    }
}

fn decimal(text: &[u8]) -> Option<u64> {
    let number: u64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    i64::try_from(number).is_ok().then_some(number)
}

/// Reads the parts of an old GNU header or of a block that follows one. Returns whether another block follows; `None` if it is
/// malformed.
pub(super) fn old_gnu(block: &[u8; BLOCK as usize], is_header: bool, parts: &mut Vec<Part>) -> Option<bool> {
    let (from, count) = if is_header { (386, 4) } else { (0, 21) };
    let extended = from + count * 24;
    for entry in block[from..extended].chunks_exact(24) {
        if entry[0] == 0 {
            break;
        }
        parts.push(Part { at: number(&entry[..12])?, length: number(&entry[12..])? });
    }
    Some(block[extended] > 0)
}

/// The size of an old GNU member with its holes.
pub(super) fn old_gnu_size(header: &[u8; BLOCK as usize]) -> Option<u64> {
    number(&header[483..495])
}

/// A number of a header: octal, or base 256 if its first bit is set (Go `strconv.go`, `parseNumeric`).
fn number(field: &[u8]) -> Option<u64> {
    if let [first, rest @ ..] = field
        && first & 0x80 != 0
    {
        // Negative numbers begin with 0xff.
        let begin = u64::from(first & 0x7f);
        let add = |number: u64, byte: &u8| number.checked_mul(256)?.checked_add(u64::from(*byte));
        return rest.iter().try_fold(begin, add).filter(|number| i64::try_from(*number).is_ok());
    }
    let text = field.split(|byte| *byte == 0).next().unwrap_or_default().trim_ascii();
    if text.is_empty() {
        return Some(0);
    }
    u64::from_str_radix(std::str::from_utf8(text).ok()?, 8).ok()
}

/// The list of parts in front of the content, as far as it has been read.
#[derive(Debug, Default)]
pub(super) struct List {
    pub parts: Vec<Part>,
    count: Option<u64>,
    digits: Vec<u8>,
    offset: Option<u64>,
}

impl List {
    /// Takes a block of the list. Returns whether the list ends in it; `None` if it is malformed.
    pub(super) fn block(&mut self, block: &[u8]) -> Option<bool> {
        for byte in block {
            if *byte != b'\n' {
                self.digits.push(*byte);
                // A number of 64 bits has 20 digits.
                if self.digits.len() > 20 {
                    return None;
                }
                continue;
            }
            let number = decimal(&self.digits)?;
            self.digits.clear();
            match (self.count, self.offset) {
                (None, _) if number > PARTS_MAX as u64 => return None,
                (None, _) => self.count = Some(number),
                (Some(_), None) => self.offset = Some(number),
                (Some(_), Some(at)) => {
                    self.parts.push(Part { at, length: number });
                    self.offset = None;
                }
            }
            if self.count == Some(self.parts.len() as u64) {
                return Some(true);
            }
        }
        Some(false)
    }
}

/// Returns whether the parts can be those of a member with this size, and fill `stored` bytes (Go `validateSparseEntries`, and
/// `sparseFileReader`, which misses no byte and leaves none).
pub(super) fn are_valid(parts: &[Part], size: u64, stored: u64) -> bool {
    let mut end = 0;
    let mut sum = 0_u64;
    for part in parts {
        let Some(next) = part.at.checked_add(part.length).filter(|next| *next <= size && part.at >= end) else {
            return false;
        };
        (end, sum) = (next, sum.saturating_add(part.length));
    }
    sum == stored
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(records: &[(&str, &str)]) -> Option<Pax> {
        let mut all = Records::default();
        records
            .iter()
            .try_for_each(|(key, value)| all.take(format!("GNU.sparse.{key}").as_bytes(), value.as_bytes()))?;
        all.finish()
    }

    #[test]
    fn records_mean_what_go_takes_them_for() {
        let two = || vec![Part { at: 1, length: 2 }, Part { at: 5, length: 0 }];
        let numbers = [("numblocks", "2"), ("offset", "1"), ("numbytes", "2"), ("offset", "5"), ("numbytes", "0")];
        assert_eq!(records(&[&numbers[..], &[("size", "5")]].concat()), Some(Pax::Parts(two(), Some(5))));
        assert_eq!(records(&[("numblocks", "2"), ("map", "1,2,5,0"), ("name", "a")]), Some(Pax::Parts(two(), None)));
        assert_eq!(records(&[("major", "1"), ("minor", "0"), ("realsize", "7")]), Some(Pax::InContent(Some(7))));
        for none in [&[][..], &[("major", "2"), ("minor", "0")], &[("name", "a")], &[("realsize", "7")]] {
            assert_eq!(records(none), Some(Pax::None), "{none:?}");
        }
        for bad in [
            &[("numblocks", "1"), ("map", "1,2,5,0")][..],
            &[("map", "1,2")],
            &[("numbytes", "1")],
            &[("offset", "1"), ("offset", "1")],
            &[("numblocks", "1"), ("map", "1,-2")],
            &[("major", "1"), ("minor", "0"), ("size", "x")],
            &[("numblocks", "9223372036854775808"), ("map", "1,2")],
        ] {
            assert_eq!(records(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn lists_and_parts_have_their_limits() {
        let mut list = List::default();
        assert_eq!(list.block(b"2\n1\n2\n"), Some(false));
        assert_eq!(list.block(b"5\n0\n\0\0"), Some(true));
        assert_eq!(list.parts, [Part { at: 1, length: 2 }, Part { at: 5, length: 0 }]);
        assert_eq!(List::default().block(b"0\n"), Some(true));
        for bad in [&b"\n"[..], b"1048577\n", b"1\nx\n", b"111111111111111111111", b"-1\n"] {
            assert_eq!(List::default().block(bad), None, "{bad:?}");
        }
        let parts = |pairs: &[(u64, u64)]| -> Vec<Part> {
            pairs.iter().map(|(at, length)| Part { at: *at, length: *length }).collect()
        };
        assert!(are_valid(&parts(&[(0, 1), (1, 2), (7, 0)]), 7, 3));
        assert!(!are_valid(&parts(&[(0, 2), (1, 2)]), 7, 4), "overlap");
        assert!(!are_valid(&parts(&[(6, 2)]), 7, 2), "beyond the end");
        assert!(!are_valid(&parts(&[(0, 2)]), 7, 3), "bytes are left");
        assert!(!are_valid(&parts(&[(u64::MAX, 2)]), 7, 2), "overflow");
        assert_eq!(number(b"\x80\0\0\0\0\0\0\0\0\0\x01\x02"), Some(258));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), None);
        assert_eq!([number(b"00000000017\0"), number(b"\0"), number(b"9")], [Some(15), Some(0), None]);
    }
}
