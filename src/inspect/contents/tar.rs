//! A tar, entry by entry, as unpacking would leave it.

use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _, SeekFrom};
use std::sync::Arc;

use super::super::find::Error;
use super::super::input::Patient;
use super::{Contents, Inode, InodeKind, OddityKind, parent, xattrs_len};
use crate::entry::Device;
use crate::layer::path::{NAME_MAX, PATH_MAX, below_root};
use crate::layer::tar::{Header, TarError, TarReader};

/// How much is read at a time, in bytes.
const BUFFER: usize = 64 << 10;

/// Reads all of `file`, a plain tar.
pub(super) fn read(contents: &mut Contents, mut file: File) -> Result<(), Error> {
    file.seek(SeekFrom::Start(0))?;
    let length = file.metadata()?.len();
    let mut reader = TarReader::new(BufReader::with_capacity(BUFFER, Patient(file)));
    loop {
        reader.clear_raw();
        let Some(header) = reader.next_header()? else { break };
        let odd_number = reader.numbers_differ(&header);
        let place = Here { header, data: reader.offset(), odd_number };
        place.put(contents)?;
        reader.seek_over_content()?;
    }
    if reader.offset() > length {
        return Err(TarError::Truncated { offset: length, what: "a file's content" }.into());
    }
    if !reader.has_end_marker() && length > 0 {
        contents.odd(OddityKind::NoEnd, b"");
    }
    // GNU tar fills its last record with zeros; anything else is what no unpacker shows.
    let mut rest = reader.into_inner();
    let mut buffer = [0; 4096];
    loop {
        match rest.read(&mut buffer)? {
            0 => return Ok(()),
            count if buffer[..count].iter().any(|&byte| byte != 0) => {
                contents.odd(OddityKind::AfterEnd, b"");
                return Ok(());
            }
            _ => {}
        }
    }
}

/// An entry of a tar.
struct Here {
    header: Header,
    /// Where its content begins.
    data: u64,
    /// Whether a PAX record has another number than the header.
    odd_number: bool,
}

impl Here {
    fn put(self, contents: &mut Contents) -> Result<(), Error> {
        let Self { header, data, odd_number } = self;
        contents.count(header.name.len() + header.link.len() + xattrs_len(&header.xattrs))?;
        if header.typeflag == b'g' {
            contents.odd(OddityKind::Global, b"");
            return Ok(());
        }
        let path = below_root(&header.name);
        if contents.is_left_out(&path) {
            return Ok(());
        }
        if path.len() > PATH_MAX || path.split(|&byte| byte == b'/').any(|part| part.len() > NAME_MAX) {
            contents.odd(OddityKind::LongName, &path[..path.len().min(PATH_MAX)]);
            return Ok(());
        }
        if header.name.split(|&byte| byte == b'/').any(|part| part == b"..") {
            contents.odd(OddityKind::Name, &header.name);
        } else if header.name.starts_with(b"/") {
            contents.odd(OddityKind::Absolute, &header.name);
        }
        if odd_number {
            contents.odd(OddityKind::PaxNumber, &path);
        }
        if !make_parents(contents, &path)? {
            contents.odd(OddityKind::ThroughLink, &path);
            return Ok(());
        }
        if header.typeflag == b'1' {
            link(contents, &header, &path);
            return Ok(());
        }
        let Some(kind) = kind(&header, data) else {
            contents.odd(OddityKind::Type, &path);
            return Ok(());
        };
        let is_directory = kind == InodeKind::Directory;
        let inode = Inode {
            kind,
            mode: (header.mode & 0o7777) as u16,
            uid: header.uid as u32,
            gid: header.gid as u32,
            mtime: header.mtime,
            stamped: false,
            opaque: false,
            whiteout: false,
            xattrs: header.xattrs.into(),
        };
        let (files, start) = contents.files_of(&path);
        let mut odd = None;
        match files.number(&path[start..]) {
            Some(number) if files.inodes[number as usize].kind == InodeKind::Directory => {
                if is_directory {
                    files.inodes[number as usize] = inode;
                } else {
                    odd = Some(OddityKind::OverDirectory);
                }
            }
            old => {
                odd = old.map(|_| OddityKind::Twice);
                files.insert(&path[start..], inode);
            }
        }
        if let Some(odd) = odd {
            contents.odd(odd, &path);
        }
        Ok(())
    }
}

fn kind(header: &Header, data: u64) -> Option<InodeKind> {
    let device = || Device { major: header.major as u32, minor: header.minor as u32 };
    Some(match header.typeflag {
        b'0' => InodeKind::Regular { size: header.size, data },
        b'2' => InodeKind::Symlink(Arc::from(&header.link[..])),
        b'3' => InodeKind::CharDevice(device()),
        b'4' => InodeKind::BlockDevice(device()),
        b'5' => InodeKind::Directory,
        b'6' => InodeKind::Fifo,
        _ => return None,
    })
}

/// Makes the directories that an unpacker makes. False when one of them is something else.
fn make_parents(contents: &mut Contents, path: &[u8]) -> Result<bool, Error> {
    let mut missing = Vec::new();
    let mut at = parent(path);
    while !at.is_empty() {
        match contents.get(at) {
            Some(inode) if inode.kind == InodeKind::Directory => break,
            Some(_) => return Ok(false),
            None => missing.push(at),
        }
        at = parent(at);
    }
    for path in missing.into_iter().rev() {
        contents.count(path.len())?;
        // Directories above the store, and all that are not in it, are the machine's own.
        let in_store = |graphroot: &str| {
            graphroot.is_empty() || path.strip_prefix(graphroot.as_bytes()).is_some_and(|rest| rest.starts_with(b"/"))
        };
        if contents.stores.iter().any(|found| in_store(&found.graphroot)) {
            contents.odd(OddityKind::NoDirectory, path);
        }
        let (files, start) = contents.files_of(path);
        files.insert(&path[start..], Inode::made_directory());
    }
    Ok(true)
}

fn link(contents: &mut Contents, header: &Header, path: &[u8]) {
    let target = below_root(&header.link);
    let (files, start) = contents.files_of(path);
    let prefix = path[..start].to_vec();
    let number = target.strip_prefix(&prefix[..]).and_then(|target| files.number(target));
    match number {
        Some(number) if files.inodes[number as usize].kind != InodeKind::Directory => {
            if files.link(&path[start..], number) {
                contents.odd(OddityKind::Twice, path);
            }
        }
        _ => contents.odd(OddityKind::NoTarget, path),
    }
}
