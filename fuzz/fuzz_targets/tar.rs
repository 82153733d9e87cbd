//! The reader of a layer's tar: every byte is accounted for, buffers stay small, and what the canonical tar says of an entry
//! is what was read.
#![no_main]

use std::io::BufReader;

use libfuzzer_sys::fuzz_target;
use prepull::entry::{Device, Entry, Kind, Meta};
use prepull::layer::path::{below_root, clean};
use prepull::layer::tar::{Header, META_MAX, SPECIAL_MAX, TarError, TarReader};
use prepull::wire;
use prepull_fuzz::{Trickle, choice, fix_checksums};

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = choice(data) else { return };
    let mut tar = rest.to_vec();
    if choice & 0x80 == 0 {
        fix_checksums(&mut tar);
    }
    let whole = read(TarReader::new(&tar[..]), &tar);
    let trickling = BufReader::with_capacity(usize::from(choice & 0x7f) + 1, Trickle::new(&tar[..], 7));
    let pieces = read(TarReader::new(trickling), &tar);
    assert_eq!(whole, pieces, "what is read depends on how it comes");
});

/// The headers, or the error's text.
fn read<R: std::io::BufRead>(mut reader: TarReader<R>, tar: &[u8]) -> Result<Vec<String>, String> {
    let result = entries(&mut reader, tar);
    assert!(reader.offset() <= tar.len() as u64);
    result.map_err(|error| error.to_string())
}

fn entries<R: std::io::BufRead>(reader: &mut TarReader<R>, tar: &[u8]) -> Result<Vec<String>, TarError> {
    let (mut all, mut bytes) = (Vec::new(), Vec::new());
    while let Some(header) = reader.next_header()? {
        assert!(reader.raw().len() <= META_MAX + SPECIAL_MAX as usize + 4 * 512);
        bytes.extend_from_slice(reader.raw());
        reader.clear_raw();
        check(&header);
        let mut size = 0;
        loop {
            let part = reader.content()?;
            if part.is_empty() {
                break;
            }
            bytes.extend_from_slice(part);
            let count = part.len();
            reader.consume(count);
            size += count as u64;
        }
        assert_eq!(size, if header.has_body() && header.typeflag != b'g' { header.size } else { 0 });
        all.push(format!("{header:?}"));
    }
    bytes.extend_from_slice(reader.raw());
    reader.drain(|rest| {
        bytes.extend_from_slice(rest);
        Ok::<_, TarError>(())
    })?;
    assert!(bytes == tar, "bytes of the archive are lost or made up");
    Ok(all)
}

fn check(header: &Header) {
    assert!(header.mtime.nanoseconds < 1_000_000_000);
    assert!(header.xattrs.is_sorted_by(|a, b| a.0 < b.0));
    let cleaned = clean(&header.name);
    assert_eq!(clean(&cleaned), cleaned, "cleaning twice is cleaning once");
    let path = below_root(&cleaned);
    assert_eq!(below_root(&header.name), path);
    assert!(path.split(|byte| *byte == b'/').all(|part| part != b".." && part != b"."));
    let kind = match header.typeflag {
        b'0' => Kind::Regular { size: header.size },
        b'1' => Kind::Hardlink(header.link.clone()),
        b'2' => Kind::Symlink(header.link.clone()),
        b'3' | b'4' => {
            let device = Device { major: header.major as u32, minor: header.minor as u32 };
            if header.typeflag == b'3' { Kind::CharDevice(device) } else { Kind::BlockDevice(device) }
        }
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        _ => return,
    };
    // A record with an empty value is as good as none.
    let has_nul = |bytes: &[u8]| bytes.contains(&0);
    if path.is_empty() || has_nul(&path) || has_nul(&header.link) {
        return;
    }
    let meta = Meta {
        mode: (header.mode & 0o7777) as u16,
        uid: header.uid as u32,
        gid: header.gid as u32,
        mtime: header.mtime,
        xattrs: header.xattrs.iter().filter(|(name, _)| !name.contains(&b'=')).cloned().collect(),
    };
    let entry = Entry { path, meta, kind };
    let mut written = Vec::new();
    wire::header(&entry, &mut written);
    assert!(written.len().is_multiple_of(512));
    if written.len() > SPECIAL_MAX as usize {
        return;
    }
    let mut reader = TarReader::new(&written[..]);
    let again = reader.next_header().expect("what was written can be read").expect("an entry");
    let mut path = again.name.clone();
    if entry.kind == Kind::Directory {
        assert_eq!(path.pop(), Some(b'/'));
    }
    assert_eq!(path, entry.path);
    let kind = match again.typeflag {
        b'0' => Kind::Regular { size: again.size },
        b'1' => Kind::Hardlink(again.link),
        b'2' => Kind::Symlink(again.link),
        b'3' => Kind::CharDevice(Device { major: again.major as u32, minor: again.minor as u32 }),
        b'4' => Kind::BlockDevice(Device { major: again.major as u32, minor: again.minor as u32 }),
        b'5' => Kind::Directory,
        _ => Kind::Fifo,
    };
    assert_eq!(kind, entry.kind);
    let meta = Meta {
        mode: again.mode as u16,
        uid: again.uid as u32,
        gid: again.gid as u32,
        mtime: again.mtime,
        xattrs: again.xattrs,
    };
    assert_eq!(meta, entry.meta);
}
