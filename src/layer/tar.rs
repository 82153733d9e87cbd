//! Reads a layer's tar exactly as Go's `archive/tar` does, and keeps the raw bytes that tar-split must record.
//!
//! What containers/storage accepts is what Go's reader accepts, so its rules are followed to the letter (`reader.go`,
//! `strconv.go` and `format.go` of Go 1.19 to 1.25): trimmed octal, base-256, V7, ustar, STAR and both GNU prefix rules, PAX
//! records over GNU long names over header fields. Where it says `ErrHeader` this reader says what is wrong.
//!
//! Differences on purpose: sparse files are refused, and so is an entry with more than [`META_MAX`] bytes of extended headers.

use std::io::{self, BufRead};

use crate::entry::Timestamp;

const BLOCK: usize = 512;

/// The largest body of an `x`, `g`, `L` or `K` header, in bytes: Go's `maxSpecialFileSize`, 1 MiB.
pub const SPECIAL_MAX: u64 = 1 << 20;

/// The most bytes of extended headers that one entry may have: enough for a path, a link target and a kernel's worth of
/// extended attributes (64 KiB each); Go has no limit here.
pub const META_MAX: usize = 8 << 20;

/// What is wrong with a layer's tar.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// Reading failed; also a blob that did not verify.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The bytes are no tar header.
    #[error("invalid tar header at byte {offset}: {what}")]
    Header {
        /// Offset in the uncompressed layer.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The archive ends in the middle of something.
    #[error("the tar ends at byte {offset} in the middle of {what}")]
    Truncated {
        /// Offset in the uncompressed layer.
        offset: u64,
        /// What was being read.
        what: &'static str,
    },
    /// GNU or PAX sparse file.
    #[error(
        "sparse file: tar-split cannot record it, so the image could never be exported again (rebuild the image without --sparse)"
    )]
    Sparse,
}

/// One header with all that extended headers said applied to it.
#[derive(Debug, Clone, Default)]
pub struct Header {
    /// Name as Go gives it: PAX `path`, else GNU long name, else prefix and name.
    pub name: Vec<u8>,
    /// Link target, by the same rule.
    pub link: Vec<u8>,
    /// Type: `\0` has become `0` or, with a trailing slash, `5`.
    pub typeflag: u8,
    /// Mode bits as written.
    pub mode: i64,
    /// Owner as written.
    pub uid: i64,
    /// Group as written.
    pub gid: i64,
    /// Size as written, never negative. Only types with content have that many bytes of it.
    pub size: u64,
    /// Modification time.
    pub mtime: Timestamp,
    /// Device major.
    pub major: i64,
    /// Device minor.
    pub minor: i64,
    /// `SCHILY.xattr.` records, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Header {
    /// Whether content follows. Go's `isHeaderOnlyType`.
    #[must_use]
    pub fn has_body(&self) -> bool {
        !matches!(self.typeflag, b'1'..=b'6')
    }
}

/// Reads headers and content from a stream.
#[derive(Debug)]
pub struct TarReader<R> {
    input: R,
    offset: u64,
    raw: Vec<u8>,
    remaining: u64,
    padding: usize,
    done: bool,
    marked: bool,
}

impl<R: io::Read + io::Seek> TarReader<io::BufReader<R>> {
    /// As [`Self::skip_content`], without reading it: an archive that ends in it is not noticed here.
    ///
    /// # Errors
    /// When seeking fails, also since no file is as long as the content should be.
    pub fn seek_over_content(&mut self) -> Result<(), TarError> {
        let truncated = TarError::Truncated { offset: self.offset, what: "a file's content" };
        let Ok(length) = i64::try_from(self.remaining) else { return Err(truncated) };
        match self.input.seek_relative(length) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(truncated),
            sought => sought?,
        }
        self.offset += std::mem::take(&mut self.remaining);
        Ok(())
    }
}

impl<R: BufRead> TarReader<R> {
    /// Reads from `input`.
    pub fn new(input: R) -> Self {
        Self { input, offset: 0, raw: Vec::new(), remaining: 0, padding: 0, done: false, marked: false }
    }

    /// Gives the input back.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// Bytes taken from the input so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The input itself. Reading from it would lose this reader its place.
    pub fn input_mut(&mut self) -> &mut R {
        &mut self.input
    }

    /// Whether the archive ended with zero blocks, not with the input: one without may have been cut off.
    pub fn has_end_marker(&self) -> bool {
        self.marked
    }

    /// Whether `header`, the last one read, has its owner, group or size from a PAX record that says something else than the
    /// header itself: busybox would not see it.
    pub fn numbers_differ(&self, header: &Header) -> bool {
        let Some(block) = self.raw.last_chunk::<BLOCK>() else { return false };
        let field = |range: std::ops::Range<usize>| numeric(&block[range]).ok();
        let size = header.has_body().then(|| i64::try_from(header.size).ok()).flatten();
        field(108..116) != Some(header.uid)
            || field(116..124) != Some(header.gid)
            || size.is_some_and(|size| field(124..136) != Some(size))
    }

    /// All bytes but file content since [`Self::clear_raw`]: what tar-split calls a segment.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// Forgets the raw bytes.
    pub fn clear_raw(&mut self) {
        self.raw.clear();
    }

    /// The next part of the current entry's content; empty at its end. To be followed by [`Self::consume`].
    ///
    /// # Errors
    /// When the archive ends too early, or reading fails.
    pub fn content(&mut self) -> Result<&[u8], TarError> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let bytes = self.input.fill_buf()?;
        if bytes.is_empty() {
            return Err(TarError::Truncated { offset: self.offset, what: "a file's content" });
        }
        Ok(&bytes[..bytes.len().min(usize::try_from(self.remaining).unwrap_or(usize::MAX))])
    }

    /// Marks `count` bytes of what [`Self::content`] gave as used.
    pub fn consume(&mut self, count: usize) {
        self.input.consume(count);
        self.offset += count as u64;
        self.remaining -= count as u64;
    }

    /// Passes over the rest of the current entry's content.
    ///
    /// # Errors
    /// When the archive ends too early, or reading fails.
    pub fn skip_content(&mut self) -> Result<(), TarError> {
        while self.remaining > 0 {
            let count = self.content()?.len();
            self.consume(count);
        }
        Ok(())
    }

    /// Takes the rest of the current entry's content as passed over: who gives the input knows it already, and leaves it out.
    pub fn content_is_left_out(&mut self) {
        self.offset = self.offset.saturating_add(std::mem::take(&mut self.remaining));
    }

    /// The next entry, or `None` at the end of the archive. A global header (`g`) is an entry, as in Go.
    ///
    /// The content of the entry before must have been consumed.
    ///
    /// # Errors
    /// As Go's reader; see [`TarError`].
    pub fn next_header(&mut self) -> Result<Option<Header>, TarError> {
        debug_assert_eq!(self.remaining, 0, "content must be consumed first");
        let mut pax: Option<Pax> = None;
        let (mut long_name, mut long_link) = (Vec::new(), Vec::new());
        loop {
            let padding = std::mem::take(&mut self.padding);
            self.take(padding)?;
            if self.raw.len() > META_MAX {
                return Err(self.invalid("more than 8 MiB of extended headers before one entry"));
            }
            let Some(block) = self.header_block()? else { return Ok(None) };
            let mut header = self.parse(&block)?;
            match header.typeflag {
                b'x' | b'g' => {
                    let body = self.special(header.size)?;
                    let records = Pax::parse(&body).map_err(|what| self.invalid(what))?;
                    if header.typeflag == b'g' {
                        // Only the name of what it says has a meaning: tar-split records it. Numbers in it may be anything:
                        // Go's reader merges the records and does not look at the error.
                        let path = records.get(b"path").to_vec();
                        match records.merge(&mut header) {
                            Err(Some(error)) => return Err(error),
                            Ok(()) | Err(None) if !path.is_empty() => header.name = path,
                            Ok(()) | Err(None) => {}
                        }
                        return Ok(Some(Header { name: header.name, typeflag: b'g', ..Header::default() }));
                    }
                    pax = Some(records);
                }
                b'L' => long_name = until_nul(&self.special(header.size)?).to_vec(),
                b'K' => long_link = until_nul(&self.special(header.size)?).to_vec(),
                b'S' => return Err(TarError::Sparse),
                _ => {
                    // Go merges the records first and lets a long name override them.
                    if let Some(pax) = pax.take() {
                        pax.merge(&mut header).map_err(|error| error.unwrap_or_else(|| self.invalid("PAX record")))?;
                    }
                    if !long_name.is_empty() {
                        header.name = long_name;
                    }
                    if !long_link.is_empty() {
                        header.link = long_link;
                    }
                    if header.typeflag == 0 {
                        header.typeflag = if header.name.ends_with(b"/") { b'5' } else { b'0' };
                    }
                    self.remaining = if header.has_body() { header.size } else { 0 };
                    self.padding = (self.remaining.wrapping_neg() % BLOCK as u64) as usize;
                    return Ok(Some(header));
                }
            }
        }
    }

    /// Hands the rest of the input, after the end of the archive, to `sink` in pieces.
    ///
    /// # Errors
    /// Those of the input and of `sink`.
    pub fn drain<E: From<TarError>>(&mut self, mut sink: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        loop {
            let bytes = self.input.fill_buf().map_err(TarError::from)?;
            if bytes.is_empty() {
                return Ok(());
            }
            let count = bytes.len();
            sink(bytes)?;
            self.input.consume(count);
            self.offset += count as u64;
        }
    }

    fn invalid(&self, what: &'static str) -> TarError {
        TarError::Header { offset: self.offset, what }
    }

    /// Moves up to `count` bytes to `raw`; fewer only at the end of the input.
    fn take(&mut self, count: usize) -> Result<usize, TarError> {
        let mut taken = 0;
        while taken < count {
            let bytes = self.input.fill_buf()?;
            if bytes.is_empty() {
                break;
            }
            let part = bytes.len().min(count - taken);
            self.raw.extend_from_slice(&bytes[..part]);
            self.input.consume(part);
            self.offset += part as u64;
            taken += part;
        }
        Ok(taken)
    }

    fn one_block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        match self.take(BLOCK)? {
            0 => Ok(None),
            BLOCK => {
                let mut block = [0; BLOCK];
                block.copy_from_slice(&self.raw[self.raw.len() - BLOCK..]);
                Ok(Some(block))
            }
            _ => Err(TarError::Truncated { offset: self.offset, what: "a header" }),
        }
    }

    /// Two zero blocks, one zero block and nothing, or nothing at all end the archive.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        if self.done {
            return Ok(None);
        }
        let block = self.one_block()?;
        let zero = [0; BLOCK];
        match block {
            Some(block) if block != zero => return Ok(Some(block)),
            Some(_) => match self.one_block()? {
                Some(block) if block != zero => return Err(self.invalid("a single zero block")),
                _ => self.marked = true,
            },
            None => {}
        }
        self.done = true;
        Ok(None)
    }

    /// The body of an extended header, with its padding left for the next header.
    fn special(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > SPECIAL_MAX {
            return Err(self.invalid("an extended header of more than 1 MiB"));
        }
        let size = size as usize;
        self.padding = size.wrapping_neg() % BLOCK;
        if self.take(size)? < size {
            return Err(TarError::Truncated { offset: self.offset, what: "an extended header" });
        }
        Ok(self.raw[self.raw.len() - size..].to_vec())
    }

    fn parse(&self, block: &[u8; BLOCK]) -> Result<Header, TarError> {
        let number = |range: std::ops::Range<usize>| numeric(&block[range]).map_err(|what| self.invalid(what));
        self.verify_checksum(block)?;
        let mut header = Header {
            typeflag: block[156],
            name: until_nul(&block[..100]).to_vec(),
            link: until_nul(&block[157..257]).to_vec(),
            mode: number(100..108)?,
            uid: number(108..116)?,
            gid: number(116..124)?,
            mtime: Timestamp::whole(number(136..148)?),
            ..Header::default()
        };
        let size = number(124..136)?;
        let mut prefix: &[u8] = b"";
        if &block[257..263] == b"ustar\0" {
            header.major = number(329..337)?;
            header.minor = number(337..345)?;
            if &block[508..512] == b"tar\0" {
                prefix = until_nul(&block[345..476]);
                number(476..488)?;
                number(488..500)?;
            } else {
                prefix = until_nul(&block[345..500]);
            }
        } else if &block[257..265] == b"ustar  \0" {
            header.major = number(329..337)?;
            header.minor = number(337..345)?;
            // Go before 1.8 wrote a ustar prefix into GNU headers: told by times that are no numbers.
            let time_is_bad = |field: &[u8]| field[0] != 0 && numeric(field).is_err();
            if time_is_bad(&block[345..357]) || time_is_bad(&block[357..369]) {
                prefix = Some(until_nul(&block[345..500])).filter(|text| text.is_ascii()).unwrap_or_default();
            }
        }
        if !prefix.is_empty() {
            header.name = [prefix, b"/", &header.name].concat();
        }
        if header.has_body() && size < 0 {
            return Err(self.invalid("a negative size"));
        }
        header.size = size.max(0) as u64;
        Ok(header)
    }

    fn verify_checksum(&self, block: &[u8; BLOCK]) -> Result<(), TarError> {
        let wanted = octal(&block[148..156]).map_err(|_| self.invalid("no checksum (is this a tar?)"))?;
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (index, &byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&index) { b' ' } else { byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte as i8);
        }
        if wanted != unsigned && wanted != signed {
            return Err(self.invalid("wrong checksum (is this a tar?)"));
        }
        Ok(())
    }
}

/// The records of one `x` header that matter.
#[derive(Debug, Default)]
struct Pax {
    records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Pax {
    /// Go's `parsePAX` and `parsePAXRecord`; a later record of the same key replaces an earlier one.
    fn parse(mut body: &[u8]) -> Result<Self, &'static str> {
        const MALFORMED: &str = "malformed PAX record";
        let mut records: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        while !body.is_empty() {
            let space = body.iter().position(|&byte| byte == b' ').ok_or(MALFORMED)?;
            let length = usize::try_from(integer(&body[..space]).ok_or(MALFORMED)?).map_err(|_| MALFORMED)?;
            if length < 5 || length > body.len() || length < space + 3 {
                return Err(MALFORMED);
            }
            let (record, rest) = body.split_at(length);
            body = rest;
            let record = record[space + 1..].strip_suffix(b"\n").ok_or(MALFORMED)?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or(MALFORMED)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let no_nul = match key {
                b"path" | b"linkpath" | b"uname" | b"gname" => value,
                _ => key,
            };
            if key.is_empty() || no_nul.contains(&0) {
                return Err(MALFORMED);
            }
            records.push((key.to_vec(), value.to_vec()));
        }
        // Stable: of equal keys the last one stays last.
        records.sort_by(|a, b| a.0.cmp(&b.0));
        let mut unique: Vec<(Vec<u8>, Vec<u8>)> = Vec::with_capacity(records.len());
        for record in records {
            match unique.last_mut() {
                Some(last) if last.0 == record.0 => *last = record,
                _ => unique.push(record),
            }
        }
        Ok(Self { records: unique })
    }

    fn get(&self, key: &[u8]) -> &[u8] {
        self.records.iter().find(|record| record.0 == key).map_or(b"", |record| &record.1)
    }

    /// Go's `mergePAX`. `Err(None)` is a malformed number.
    fn merge(self, header: &mut Header) -> Result<(), Option<TarError>> {
        let (major, minor) = (self.get(b"GNU.sparse.major"), self.get(b"GNU.sparse.minor"));
        let versioned = matches!((major, minor), (b"0", b"0" | b"1") | (b"1", b"0"));
        let unversioned = major.is_empty() && minor.is_empty() && !self.get(b"GNU.sparse.map").is_empty();
        // Version 0.0 repeats `offset` and `numbytes`; which Go turns into a map.
        let pairs = !self.get(b"GNU.sparse.offset").is_empty() || !self.get(b"GNU.sparse.numbytes").is_empty();
        if versioned || unversioned || pairs {
            return Err(Some(TarError::Sparse));
        }
        for (key, value) in self.records {
            // An attribute without a value is not there, as for Go.
            if value.is_empty() {
                continue;
            }
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                header.xattrs.push((name.to_vec(), value));
                continue;
            }
            match &key[..] {
                b"path" => header.name = value,
                b"linkpath" => header.link = value,
                b"uid" => header.uid = integer(&value).ok_or(None)?,
                b"gid" => header.gid = integer(&value).ok_or(None)?,
                b"size" => header.size = u64::try_from(integer(&value).ok_or(None)?).map_err(|_| None)?,
                b"mtime" => header.mtime = time(&value).ok_or(None)?,
                b"atime" | b"ctime" => {
                    time(&value).ok_or(None)?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Go's `parseNumeric`: base-256 when the top bit is set, else octal.
fn numeric(field: &[u8]) -> Result<i64, &'static str> {
    if field[0] & 0x80 == 0 {
        return octal(field);
    }
    let invert = if field[0] & 0x40 != 0 { 0xff } else { 0 };
    let mut value = 0u64;
    for (index, byte) in field.iter().enumerate() {
        let byte = byte ^ invert;
        let byte = if index == 0 { byte & 0x7f } else { byte };
        if value >> 56 != 0 {
            return Err("a base-256 number beyond 63 bits");
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).map_err(|_| "a base-256 number beyond 63 bits")?;
    Ok(if invert == 0 { value } else { !value })
}

/// Go's `parseOctal`: spaces and NULs around it do not count, and nothing at all is 0.
fn octal(field: &[u8]) -> Result<i64, &'static str> {
    const ERROR: &str = "a number that is not octal";
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(start) = field.iter().position(|byte| !blank(byte)) else { return Ok(0) };
    let end = field.iter().rposition(|byte| !blank(byte)).unwrap_or(start);
    let digits = until_nul(&field[start..=end]);
    digits.iter().try_fold(0i64, |value, byte| match byte {
        b'0'..=b'7' => Ok(value << 3 | i64::from(byte - b'0')),
        _ => Err(ERROR),
    })
}

/// Go's `strconv.ParseInt(text, 10, 64)`.
fn integer(text: &[u8]) -> Option<i64> {
    // Rust's parser takes the same signs and digits.
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Go's `parsePAXTime`.
fn time(text: &[u8]) -> Option<Timestamp> {
    let dot = text.iter().position(|&byte| byte == b'.').unwrap_or(text.len());
    let seconds = integer(&text[..dot])?;
    let fraction = text.get(dot + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanoseconds =
        (0..9).fold(0, |value, index| value * 10 + u32::from(fraction.get(index).map_or(0, |digit| digit - b'0')));
    Some(if text.starts_with(b"-") && nanoseconds > 0 {
        Timestamp { seconds: seconds.saturating_sub(1), nanoseconds: 1_000_000_000 - nanoseconds }
    } else {
        Timestamp { seconds, nanoseconds }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tar_with(build: impl FnOnce(&mut tar::Builder<&mut Vec<u8>>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut builder = tar::Builder::new(&mut bytes);
        build(&mut builder);
        builder.finish().unwrap();
        drop(builder);
        bytes
    }

    fn read_all(bytes: &[u8]) -> Result<Vec<(Header, Vec<u8>)>, TarError> {
        let mut reader = TarReader::new(bytes);
        let mut all = Vec::new();
        while let Some(header) = reader.next_header()? {
            let mut body = Vec::new();
            loop {
                let part = reader.content()?.to_vec();
                if part.is_empty() {
                    break;
                }
                reader.consume(part.len());
                body.extend(part);
            }
            all.push((header, body));
        }
        Ok(all)
    }

    #[test]
    fn long_names_times_and_attributes_come_from_where_go_takes_them() {
        let long = "d/".repeat(120) + "f";
        let bytes = tar_with(|builder| {
            builder
                .append_pax_extensions([
                    ("mtime", &b"-1.5"[..]),
                    ("SCHILY.xattr.user.b", b"\0\xff"),
                    ("SCHILY.xattr.user.a", b"1"),
                    ("uid", b"3000000"),
                ])
                .unwrap();
            let mut header = tar::Header::new_gnu();
            header.set_size(3);
            builder.append_data(&mut header, &long, &b"abc"[..]).unwrap();
        });
        let all = read_all(&bytes).unwrap();
        assert_eq!(all.len(), 1);
        let (header, body) = &all[0];
        assert_eq!(header.name, long.as_bytes());
        assert_eq!(header.mtime, Timestamp { seconds: -2, nanoseconds: 500_000_000 });
        assert_eq!(header.uid, 3_000_000);
        assert_eq!(header.xattrs[0].0, b"user.a");
        assert_eq!(header.xattrs[1].1, b"\0\xff");
        assert_eq!(body, b"abc");
    }

    #[test]
    fn numbers_are_read_as_go_reads_them() {
        assert_eq!(numeric(b" 0000644\0").unwrap(), 0o644);
        assert_eq!(numeric(b"\0\0\0 17 \0").unwrap(), 0o17);
        assert_eq!(numeric(b"        ").unwrap(), 0);
        assert_eq!(numeric(&[0xff; 12]).unwrap(), -1);
        assert_eq!(numeric(&[0x80, 0, 0, 0, 0, 0, 0, 1, 0]).unwrap(), 256);
        assert!(numeric(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(numeric(b"12x45678").is_err());
        assert!(numeric(b"0000008\0").is_err());
    }

    #[test]
    fn pax_records_are_refused_when_malformed() {
        for bad in ["5 a=\n", "x a=b\n", "7 a=bc", "6 ab\n\n", "99 path=a\n", "6 =ab\n", "12 path=a\0b\n\n"] {
            let exact = bad.as_bytes();
            let result = Pax::parse(exact);
            // `5 a=\n` is legal: an empty value.
            assert_eq!(result.is_ok(), bad == "5 a=\n", "{bad:?}: {result:?}");
        }
    }

    #[test]
    fn an_archive_may_end_without_zero_blocks_but_not_within_a_header() {
        let bytes = tar_with(|builder| {
            let mut header = tar::Header::new_ustar();
            header.set_size(1);
            builder.append_data(&mut header, "a", &b"x"[..]).unwrap();
        });
        for (length, ok) in
            [(1024, true), (513, true), (600, true), (512, false), (1536, true), (2048, true), (100, false)]
        {
            assert_eq!(read_all(&bytes[..length]).is_ok(), ok, "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let _ = read_all(&bytes);
            // With a right checksum the rest of the parser is reached.
            if bytes.len() >= 512 {
                bytes[148..156].fill(b' ');
                let sum: u32 = bytes[..512].iter().map(|&byte| u32::from(byte)).sum();
                bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                let _ = read_all(&bytes);
            }
        }
    }
}
