//! A tar archive that is read in place: where each member's bytes lie is found in one pass, nothing is ever unpacked.
//!
//! Readers of different members are independent, each keeps its own place (`pread`), so that layers can be read in
//! parallel. An archive that is compressed, or that is a pipe, is first copied to a file that has no name.

mod sparse;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Error, Files, Options};
use crate::compression::{self, Compression, MAGIC_LENGTH};
use crate::reference::show_path;
use sparse::{Part, Pax};

/// The most members of an archive that are looked at: an image has at most 500 layers, an archive few images.
pub const MEMBERS_MAX: usize = 100_000;
/// The longest name of a member, in bytes: `PATH_MAX` of Linux.
pub const MEMBER_NAME_MAX: usize = 4096;
/// The bytes of all members' names and link targets together: bounds what an archive can make us remember.
pub const NAMES_MAX: usize = 16 << 20;
/// The largest PAX or GNU header that describes a member, in bytes (Go `archive/tar`, `maxSpecialFileSize`).
pub const EXTENSION_MAX: u64 = 1 << 20;

const BLOCK: u64 = 512;

/// Why a sparse member cannot be read.
const BAD_SPARSE: &str = "a malformed sparse member";

/// Which member counts when a name occurs twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Duplicates {
    /// As who searches the archive from its beginning (containers/image's docker-archive).
    First,
    /// As who unpacks it (containers/image's oci-archive).
    Last,
}

/// Where a member's bytes lie in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    /// Offset in the archive, in bytes.
    offset: u64,
    /// Size of the member in bytes, with its holes.
    pub size: u64,
    /// The parts of a sparse member that are in the archive, one after the other. All else is zeros.
    parts: Option<Arc<[Part]>>,
}

#[derive(Debug)]
enum Member {
    File(Span),
    /// Relative to the link's own directory.
    Symlink(Box<[u8]>),
    /// Relative to the archive.
    Hardlink(Box<[u8]>),
    Other,
}

/// An indexed archive.
pub(super) struct Archive {
    file: Arc<File>,
    shown: String,
    members: HashMap<Box<[u8]>, Member>,
}

impl Archive {
    /// Opens and indexes the archive at `path`; `transport` is for messages.
    pub(super) fn open(transport: &str, path: &Path, options: &Options, duplicates: Duplicates) -> Result<Self, Error> {
        let shown = format!("{transport}:{}", show_path(path));
        let io = |error| Error::Io { what: shown.clone(), error };
        let metadata = match fs_err::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NotFound(format!("{shown}: no such file{}", hint(path))));
            }
            Err(error) => return Err(io(error)),
        };
        if metadata.is_dir() {
            let hint = if transport == "oci-archive" { "; for a directory write oci:PATH" } else { "" };
            return Err(Error::Invalid(format!("{shown}: a directory, not an archive{hint}")));
        }
        let mut file = fs_err::File::open(path).map_err(io)?.into_file();
        if !metadata.is_file() {
            return Self::from_stream(shown, file, options, duplicates);
        }
        let mut magic = Vec::new();
        (&file).take(MAGIC_LENGTH as u64).read_to_end(&mut magic).map_err(io)?;
        if Compression::detect(&magic) == Compression::None {
            return Self::index(shown, file, duplicates);
        }
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        Self::from_stream(shown, file, options, duplicates)
    }

    /// Copies a stream, decompressed, to a file without a name, and indexes that.
    pub(super) fn from_stream(
        shown: String,
        stream: impl Read + Send + 'static,
        options: &Options,
        duplicates: Duplicates,
    ) -> Result<Self, Error> {
        let read = |error| Error::Io { what: format!("{shown}: read"), error };
        let compressed = Arc::new(AtomicU64::new(0));
        let mut plain = compression::plain(Counted { stream, count: Arc::clone(&compressed) }).map_err(read)?;
        let place = options.tmpdir();
        let write = |error| Error::Io {
            what: format!("{shown}: copy to a temporary file in {} (TMPDIR chooses another place)", show_path(place)),
            error,
        };
        let mut file = tempfile::tempfile_in(place).map_err(write)?;
        let mut buffer = vec![0; 256 << 10];
        let mut size = 0;
        loop {
            match plain.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => {
                    size += read as u64;
                    let check = options.limit.check(size, compressed.load(Ordering::Relaxed));
                    check.map_err(|error| Error::Invalid(format!("{shown}: {error}")))?;
                    file.write_all(&buffer[..read]).map_err(write)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read(error)),
            }
        }
        Self::index(shown, file, duplicates)
    }

    fn index(shown: String, file: File, duplicates: Duplicates) -> Result<Self, Error> {
        let members = match Indexer::new(&file, duplicates).and_then(Indexer::run) {
            Ok(members) => members,
            Err(IndexError::Io(error)) => return Err(Error::Io { what: format!("{shown}: read"), error }),
            Err(IndexError::Format(at, why)) => {
                return Err(Error::Invalid(format!("{shown}: not a good tar archive: at byte {at}: {why}")));
            }
        };
        Ok(Self { file: Arc::new(file), shown, members })
    }

    /// Where the bytes of the member called `name` are, through one link at most; `None` when there is no such member.
    pub(super) fn find(&self, name: &[u8]) -> Result<Option<Span>, Error> {
        let name = clean(name);
        let target = match self.members.get(name.as_slice()) {
            None => return Ok(None),
            Some(Member::File(span)) => return Ok(Some(span.clone())),
            Some(Member::Hardlink(target)) => clean(target),
            Some(Member::Symlink(target)) => {
                let directory = name.iter().rposition(|b| *b == b'/').map_or(&b""[..], |at| &name[..=at]);
                clean(&[directory, target].concat())
            }
            Some(Member::Other) => return Err(self.bad(&name, "not a regular file")),
        };
        match self.members.get(target.as_slice()) {
            Some(Member::File(span)) => Ok(Some(span.clone())),
            Some(Member::Symlink(_) | Member::Hardlink(_)) => Err(self.bad(&name, "a link to a link")),
            _ => Err(self.bad(&name, "a link to nothing in the archive")),
        }
    }

    fn bad(&self, name: &[u8], why: &str) -> Error {
        Error::Invalid(format!("{}: the member {:?} is {why}", self.shown, String::from_utf8_lossy(name)))
    }

    /// Returns the bytes of a member, from its beginning.
    pub(super) fn reader(&self, span: &Span) -> SpanReader {
        SpanReader { file: Arc::clone(&self.file), at: span.offset, span: span.clone(), position: 0, next: 0 }
    }
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Archive({}, {} members)", self.shown, self.members.len())
    }
}

impl Files for Archive {
    fn open(&self, name: &str) -> Result<Option<Box<dyn Read + Send>>, Error> {
        Ok(self.find(name.as_bytes())?.map(|span| Box::new(self.reader(&span)) as _))
    }

    fn shown(&self) -> &str {
        &self.shown
    }
}

/// A stream whose bytes are counted.
struct Counted<R> {
    stream: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// One member's bytes. Several readers can be used at once.
#[derive(Debug)]
pub(super) struct SpanReader {
    file: Arc<File>,
    /// Where the next stored byte is in the archive.
    at: u64,
    span: Span,
    /// Offset in the member.
    position: u64,
    /// Number of the part that `position` is in or before.
    next: usize,
}

impl SpanReader {
    /// Returns whether the bytes at the position are a hole, and how many of them are alike.
    fn run(&mut self) -> (bool, u64) {
        let left = self.span.size - self.position;
        let Some(parts) = &self.span.parts else { return (false, left) };
        while parts.get(self.next).is_some_and(|part| part.at + part.length <= self.position) {
            self.next += 1;
        }
        match parts.get(self.next) {
            None => (true, left),
            Some(part) if self.position < part.at => (true, part.at - self.position),
            Some(part) => (false, part.at + part.length - self.position),
        }
    }
}

impl Read for SpanReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (is_hole, run) = self.run();
        let wanted = usize::try_from(run).unwrap_or(usize::MAX).min(buffer.len());
        let part = &mut buffer[..wanted];
        if part.is_empty() {
            return Ok(0);
        }
        let read = if is_hole {
            part.fill(0);
            wanted
        } else {
            let read = self.file.read_at(part, self.at)?;
            if read == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends within a member"));
            }
            self.at += read as u64;
            read
        };
        self.position += read as u64;
        Ok(read)
    }
}

/// Why there may be no such file.
pub(super) fn hint(path: &Path) -> &'static str {
    if path.as_os_str().as_encoded_bytes().contains(&b'=') {
        " (a name after `=` must be a full one, for instance =localhost/app:v1)"
    } else {
        ""
    }
}

/// `path.Clean` of Go, of a path that is always relative: no `.`, no empty component, `..` only in front.
fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." if parts.last().is_some_and(|last| *last != b"..") => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

enum IndexError {
    Io(io::Error),
    Format(u64, String),
}

/// One pass over the headers.
///
/// It reads headers itself, not with `tar::Archive`, which would take a header that claims gigabytes into memory.
struct Indexer<'a> {
    file: &'a File,
    length: u64,
    at: u64,
    duplicates: Duplicates,
    members: HashMap<Box<[u8]>, Member>,
    names: usize,
    /// Number of all sparse members' parts.
    parts: usize,
}

/// What PAX and GNU headers say of the next member.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: sparse::Records,
}

impl<'a> Indexer<'a> {
    fn new(file: &'a File, duplicates: Duplicates) -> Result<Self, IndexError> {
        let length = file.metadata().map_err(IndexError::Io)?.len();
        Ok(Self { file, length, at: 0, duplicates, members: HashMap::new(), names: 0, parts: 0 })
    }

    fn wrong<T>(&self, why: impl Into<String>) -> Result<T, IndexError> {
        Err(IndexError::Format(self.at, why.into()))
    }

    fn block(&self) -> Result<Option<tar::Header>, IndexError> {
        if self.at >= self.length {
            return Ok(None);
        }
        if self.length - self.at < BLOCK {
            return self.wrong("truncated header");
        }
        let mut header = tar::Header::new_old();
        self.file.read_exact_at(header.as_mut_bytes(), self.at).map_err(IndexError::Io)?;
        Ok(Some(header))
    }

    fn run(mut self) -> Result<HashMap<Box<[u8]>, Member>, IndexError> {
        let mut extensions = Extensions::default();
        let mut pending = false;
        while let Some(header) = self.block()? {
            if header.as_bytes().iter().all(|b| *b == 0) {
                break;
            }
            self.check_sum(&header)?;
            let kind = header.entry_type();
            let special = kind.is_pax_local_extensions()
                || kind.is_pax_global_extensions()
                || kind.is_gnu_longname()
                || kind.is_gnu_longlink();
            let Ok(size) = header.entry_size() else { return self.wrong("the size is not a number") };
            let size = if special { size } else { extensions.size.unwrap_or(size) };
            let has_data = special || !matches!(kind.as_byte(), b'1'..=b'6');
            let size = if has_data { size } else { 0 };
            let mut parts = None;
            let blocks = if kind.is_gnu_sparse() { self.old_gnu(&header, &mut parts)? } else { 0 };
            let mut span = Span { offset: self.at + BLOCK + blocks * BLOCK, size, parts: None };
            let end = span.offset.checked_add(span.size).filter(|end| *end <= self.length);
            let Some(end) = end else {
                return self.wrong(format!("truncated: a member of {size} bytes goes beyond the archive's end"));
            };
            if special {
                self.extend(&mut extensions, kind, &span)?;
                pending = !kind.is_pax_global_extensions() || pending;
            } else {
                if has_data {
                    self.expand(&mut span, &extensions, parts)?;
                }
                self.add(&header, std::mem::take(&mut extensions), span)?;
                pending = false;
            }
            self.at = end.next_multiple_of(BLOCK);
        }
        if pending { self.wrong("the archive ends after a header that describes a member") } else { Ok(self.members) }
    }

    fn check_sum(&self, header: &tar::Header) -> Result<(), IndexError> {
        let bytes = header.as_bytes();
        let sum: u32 = bytes[..148].iter().chain(&bytes[156..]).map(|b| u32::from(*b)).sum::<u32>() + 8 * 32;
        match header.cksum() {
            Ok(expected) if expected == sum => Ok(()),
            _ => self.wrong("wrong checksum, so this is not a tar header"),
        }
    }

    fn extend(&self, extensions: &mut Extensions, kind: tar::EntryType, span: &Span) -> Result<(), IndexError> {
        if span.size > EXTENSION_MAX {
            return self
                .wrong(format!("an extended header of {} bytes, at most {EXTENSION_MAX} are allowed", span.size));
        }
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        let mut data = vec![0; usize::try_from(span.size).unwrap_or(0)];
        self.file.read_exact_at(&mut data, span.offset).map_err(IndexError::Io)?;
        if kind.is_gnu_longname() || kind.is_gnu_longlink() {
            data.truncate(data.iter().position(|b| *b == 0).unwrap_or(data.len()));
            *(if kind.is_gnu_longname() { &mut extensions.path } else { &mut extensions.link }) = Some(data);
            return Ok(());
        }
        let mut rest = data.as_slice();
        while !rest.is_empty() {
            let Some((key, value, after)) = pax_record(rest) else { return self.wrong("a malformed PAX header") };
            rest = after;
            match key {
                b"path" => extensions.path = Some(value.to_vec()),
                b"linkpath" => extensions.link = Some(value.to_vec()),
                b"size" => match std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()) {
                    Some(size) => extensions.size = Some(size),
                    None => return self.wrong("a PAX size that is not a number"),
                },
                _ if extensions.sparse.take(key, value).is_none() => return self.wrong(BAD_SPARSE),
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads the parts of an old GNU sparse member and its size. Returns the number of blocks that they take after the header.
    fn old_gnu(&mut self, header: &tar::Header, sparse: &mut Option<(Vec<Part>, u64)>) -> Result<u64, IndexError> {
        let mut block = *header.as_bytes();
        // Go's reader refuses one with another magic number.
        let size = Some(&block).filter(|block| block[257..265] == *b"ustar  \0").and_then(sparse::old_gnu_size);
        let Some(size) = size else { return self.wrong(BAD_SPARSE) };
        let (mut parts, mut blocks) = (Vec::new(), 0);
        loop {
            match sparse::old_gnu(&block, blocks == 0, &mut parts) {
                None => return self.wrong(BAD_SPARSE),
                Some(false) => break,
                Some(true) => {}
            }
            self.count_parts(parts.len())?;
            blocks += 1;
            let at = self.at + blocks * BLOCK;
            if self.length.saturating_sub(at) < BLOCK {
                return self.wrong("truncated: a sparse member goes beyond the archive's end");
            }
            self.file.read_exact_at(&mut block, at).map_err(IndexError::Io)?;
        }
        *sparse = Some((parts, size));
        Ok(blocks)
    }

    fn count_parts(&self, more: usize) -> Result<(), IndexError> {
        if self.parts + more > sparse::PARTS_MAX {
            return self.wrong(format!("its sparse members have more than {} parts", sparse::PARTS_MAX));
        }
        Ok(())
    }

    /// Makes of the stored bytes of a member those that it has with its holes, if it is sparse.
    fn expand(
        &mut self,
        span: &mut Span,
        extensions: &Extensions,
        old_gnu: Option<(Vec<Part>, u64)>,
    ) -> Result<(), IndexError> {
        let stored = span.size;
        let (parts, size) = match (old_gnu, extensions.sparse.finish()) {
            (Some((parts, size)), _) => (parts, size),
            (None, Some(Pax::None)) => return Ok(()),
            (None, Some(Pax::Parts(parts, size))) => (parts, size.unwrap_or(stored)),
            (None, Some(Pax::InContent(size))) => {
                let mut list = sparse::List::default();
                let mut block = [0; BLOCK as usize];
                loop {
                    if span.size < BLOCK {
                        return self.wrong(BAD_SPARSE);
                    }
                    self.file.read_exact_at(&mut block, span.offset).map_err(IndexError::Io)?;
                    (span.offset, span.size) = (span.offset + BLOCK, span.size - BLOCK);
                    let is_end = list.block(&block);
                    self.count_parts(list.parts.len())?;
                    match is_end {
                        None => return self.wrong(BAD_SPARSE),
                        Some(true) => break,
                        Some(false) => {}
                    }
                }
                (list.parts, size.unwrap_or(stored))
            }
            (None, None) => return self.wrong(BAD_SPARSE),
        };
        if !sparse::are_valid(&parts, size, span.size) {
            return self.wrong(BAD_SPARSE);
        }
        self.count_parts(parts.len())?;
        self.parts += parts.len();
        (span.size, span.parts) = (size, Some(parts.into()));
        Ok(())
    }

    fn add(&mut self, header: &tar::Header, mut extensions: Extensions, span: Span) -> Result<(), IndexError> {
        if extensions.sparse.is_known()
            && let Some(name) = extensions.sparse.name.take()
        {
            extensions.path = Some(name);
        }
        let name = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
        if name.len() > MEMBER_NAME_MAX {
            return self.wrong(format!("a name of {} bytes, at most {MEMBER_NAME_MAX} are allowed", name.len()));
        }
        let name = clean(&name);
        let link = || {
            let link = extensions.link.or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
            link.unwrap_or_default().into_boxed_slice()
        };
        let member = match header.entry_type().as_byte() {
            b'0' | 0 | b'7' | b'S' => Member::File(span),
            b'1' => Member::Hardlink(link()),
            b'2' => Member::Symlink(link()),
            _ => Member::Other,
        };
        let target = match &member {
            Member::Symlink(target) | Member::Hardlink(target) => target.len(),
            _ => 0,
        };
        if target > MEMBER_NAME_MAX {
            return self.wrong(format!("a link target of {target} bytes, at most {MEMBER_NAME_MAX} are allowed"));
        }
        if self.duplicates == Duplicates::First && self.members.contains_key(name.as_slice()) {
            return Ok(());
        }
        self.names += name.len() + target;
        if self.names > NAMES_MAX {
            return self.wrong(format!("the names of its members have more than {NAMES_MAX} bytes"));
        }
        self.members.insert(name.into_boxed_slice(), member);
        if self.members.len() > MEMBERS_MAX {
            return self.wrong(format!("more than {MEMBERS_MAX} members"));
        }
        Ok(())
    }
}

/// The first of `LENGTH KEY=VALUE\n` and what follows. Not `tar::PaxExtensions`, which takes a line end in a value, as an
/// xattr may have, for the end of the record.
fn pax_record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(20).position(|b| *b == b' ')?;
    let length: usize = std::str::from_utf8(&data[..space]).ok()?.parse().ok()?;
    let record = data.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &data[length..]))
}

#[cfg(test)]
mod tests;
