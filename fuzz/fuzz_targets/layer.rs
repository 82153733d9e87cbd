//! A whole layer, from its blob to its segment: the layer can be exported again byte for byte, the canonical tar is one by an
//! independent reader, and how the blob is compressed changes nothing.
#![no_main]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use prepull::compression::SizeLimit;
use prepull::digest::Digest;
use prepull::entry::{Device, Entry, Kind, Meta};
use prepull::layer::path::below_root;
use prepull::layer::tar::TarReader;
use prepull::layer::tree::{Inode, InodeKind};
use prepull::segment::convert::{Error, Job, convert};
use prepull::segment::file::{Facts, Segment};
use prepull::segment::index::Index;
use prepull::segment::place::{Slot, Turns};
use prepull::source::Descriptor;
use prepull::wire;
use prepull_fuzz::{Trickle, choice, empty_file, fix_checksums, scratch, split};

const PREFIX: &[u8] = b"s/overlay/l/diff/";

/// The most bytes of a layer: others only take time.
const MOST: u64 = 4 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = choice(data) else { return };
    let mut tar = rest.to_vec();
    if choice & 0x80 == 0 {
        fix_checksums(&mut tar);
    }
    if matches!(tar[..], [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] | [b'B', b'Z', b'h', ..] | [0xfd, ..]) {
        return;
    }
    let plain = converted(&tar, &tar);
    let cut = tar.len() / 2;
    let blob = match choice & 7 {
        1 => prepull_fuzz::gzip(&tar, &[]),
        2 => prepull_fuzz::gzip(&tar, &[cut]),
        3 => prepull_fuzz::zstd(&tar, &[]),
        4 => prepull_fuzz::zstd(&tar, &[cut]),
        _ => Vec::new(),
    };
    if !blob.is_empty() {
        let packed = converted(&blob, &tar);
        match (&plain, &packed) {
            (Ok(plain), Ok(packed)) => {
                assert!(plain.data == packed.data, "the segment depends on the blob's compression");
                let facts =
                    |facts: &Facts| Facts { compression: 0, blob: Digest::of(b""), blob_size: 0, ..facts.clone() };
                assert_eq!(facts(plain.segment.facts()), facts(packed.segment.facts()));
            }
            (Err(plain), Err(packed)) => assert_eq!(plain.to_string(), packed.to_string()),
            (plain, packed) => panic!("{:?}, but compressed {:?}", plain.is_ok(), packed.is_ok()),
        }
    }
    if let Ok(plain) = &plain {
        check(plain, &tar);
    }
});

struct Converted {
    segment: Segment,
    index: Index,
    /// Body and tar-split.
    data: Vec<u8>,
}

fn converted(blob: &[u8], tar: &[u8]) -> Result<Converted, Error> {
    let descriptor = Descriptor { media_type: String::new(), digest: Digest::of(blob), size: blob.len() as u64 };
    let key = Digest::of(b"key");
    let slot = Slot::none();
    let job = Job {
        descriptor: &descriptor,
        diff_id: Digest::of(tar),
        prefix: PREFIX,
        key,
        scratch: scratch(),
        slot: &slot,
        limit: SizeLimit::none(),
    };
    let files: RefCell<Vec<File>> = RefCell::default();
    let new_file = || {
        let file = empty_file()?;
        files.borrow_mut().push(file.try_clone()?);
        Ok(file)
    };
    let turns = Turns::unlimited();
    let blob = Trickle::new(Cursor::new(blob.to_vec()), 5000);
    convert(Box::new(blob), &job, turns.ticket(), &new_file)?;
    let file = files.borrow_mut().pop().expect("a segment's file");
    let segment = Segment::open(file, &key, |_| Ok(None)).expect("what was converted is a segment");
    let mut data = Vec::new();
    let all = segment.body_len() + segment.split_len();
    assert!(all < 64 * MOST, "out of {} bytes come {all}", tar.len());
    segment
        .read(0, all, |_, part| {
            data.extend_from_slice(part);
            Ok::<_, prepull::segment::file::Error>(())
        })
        .expect("what was converted can be read");
    let index = segment.index().expect("what was converted has an index");
    Ok(Converted { segment, index, data })
}

fn check(converted: &Converted, tar: &[u8]) {
    let Converted { segment, index, data } = converted;
    let (body, split) = data.split_at(segment.body_len() as usize);
    let encoded = index.encode();
    assert_eq!(Index::decode(&encoded).expect("an index").encode(), encoded);
    let files = check_index(index, body);
    // Who exports the layer has the files of the store. What the layer itself hides or replaces is only in the layer.
    let named = named(tar);
    let has_links = index.nodes().iter().any(|node| matches!(node.inode.kind, InodeKind::Symlink(_)));
    let exported = split::assemble(split, |file, at| {
        let path = below_root(&file.name);
        match files.get(&path) {
            Some(content) if !has_links && named[&path] == 1 => content.to_vec(),
            _ => tar[at..][..file.size as usize].to_vec(),
        }
    });
    assert!(exported == tar, "the layer that is exported is another one");
    check_entries(index, body);
    check_body(index, body);
}

/// How often a layer names each path.
fn named(tar: &[u8]) -> BTreeMap<Vec<u8>, usize> {
    let mut named = BTreeMap::new();
    let mut reader = TarReader::new(tar);
    while let Ok(Some(header)) = reader.next_header() {
        reader.clear_raw();
        *named.entry(below_root(&header.name)).or_default() += 1;
        reader.skip_content().expect("it was read before");
    }
    named
}

/// The regular files, by their paths.
fn check_index<'a>(index: &Index, body: &'a [u8]) -> BTreeMap<Vec<u8>, &'a [u8]> {
    let mut files = BTreeMap::new();
    for (number, node) in (0..).zip(index.nodes()) {
        let name = index.name(number);
        assert!(!name.contains(&0) && !name.contains(&b'/') && name != b".." && name != b".");
        if let (InodeKind::Regular { size, data }, None) = (&node.inode.kind, node.link_to) {
            files.insert(index.path(number), &body[*data as usize..][..*size as usize]);
        }
    }
    files
}

/// The last header of each path says what the index says.
fn check_entries(index: &Index, body: &[u8]) {
    let bytes = [body, &wire::END].concat();
    let mut reader = TarReader::new(&bytes[..]);
    let mut entries = BTreeMap::new();
    while let Some(header) = reader.next_header().expect("a tar that can be read") {
        reader.clear_raw();
        let path = header.name.strip_suffix(b"/").unwrap_or(&header.name).to_vec();
        let device = Device { major: header.major as u32, minor: header.minor as u32 };
        let kind = match header.typeflag {
            b'0' => Kind::Regular { size: header.size },
            b'1' => Kind::Hardlink(header.link),
            b'2' => Kind::Symlink(header.link),
            b'3' => Kind::CharDevice(device),
            b'4' => Kind::BlockDevice(device),
            b'5' => Kind::Directory,
            _ => Kind::Fifo,
        };
        let (uid, gid) = (header.uid as u32, header.gid as u32);
        let meta = Meta { mode: header.mode as u16, uid, gid, mtime: header.mtime, xattrs: header.xattrs };
        entries.insert(path.clone(), (Entry { path, meta, kind }, reader.offset()));
        reader.skip_content().expect("content");
    }
    for (number, node) in (1u32..).zip(index.nodes().iter().skip(1)).filter(|(_, node)| !node.inode.whiteout) {
        let mut wanted = index.entry(number, PREFIX, 0);
        // An attribute without a value cannot be said in a tar.
        wanted.meta.xattrs.retain(|(_, value)| !value.is_empty());
        let (found, at) = &entries[&wanted.path];
        assert_eq!(*found, wanted);
        if let (InodeKind::Regular { data, .. }, None) = (&node.inode.kind, node.link_to) {
            assert_eq!(data, at, "the content of another file");
        }
    }
}

/// Reads the canonical tar as others do.
fn check_body(index: &Index, body: &[u8]) {
    let nodes = || (1u32..).zip(index.nodes().iter().skip(1)).filter(|(_, node)| !node.inode.whiteout);
    let wanted = nodes().map(|(number, node)| ([PREFIX, &index.path(number)].concat(), &node.inode));
    let wanted: BTreeMap<Vec<u8>, &Inode> = wanted.collect();
    // The tar crate takes a line end in a PAX value for the end of the record.
    let has_line_end = |bytes: &[u8]| bytes.contains(&b'\n');
    let confuses = nodes().any(|(number, node)| {
        let target = matches!(&node.inode.kind, InodeKind::Symlink(target) if has_line_end(target));
        target
            || has_line_end(index.name(number))
            || node.inode.xattrs.iter().any(|(name, value)| has_line_end(name) || has_line_end(value))
    });
    if confuses {
        return;
    }
    let bytes = [body, &wire::END].concat();
    let mut archive = tar::Archive::new(&bytes[..]);
    let mut seen: BTreeSet<Vec<u8>> = BTreeSet::new();
    for entry in archive.entries().expect("an archive") {
        let entry = entry.expect("an entry that the tar crate understands");
        let mut path = entry.path_bytes().into_owned();
        let is_directory = entry.header().entry_type().is_dir();
        if is_directory {
            assert_eq!(path.pop(), Some(b'/'));
        }
        let parent = &path[..path.iter().rposition(|byte| *byte == b'/').expect("a directory")];
        assert!(parent.len() < PREFIX.len() || seen.contains(parent), "a parent that comes later");
        if entry.header().entry_type().is_hard_link() {
            let target = entry.link_name_bytes().expect("a target").into_owned();
            assert!(seen.contains(&target), "a hardlink to what is not there yet");
        }
        let (header, inode) = (entry.header(), wanted.get(&path).expect("an entry of the index"));
        assert_eq!(header.mode().expect("a mode"), u32::from(inode.mode));
        assert_eq!(header.uid().expect("an owner"), u64::from(inode.uid));
        assert_eq!(header.gid().expect("a group"), u64::from(inode.gid));
        if let (InodeKind::Regular { size, .. }, false) = (&inode.kind, header.entry_type().is_hard_link()) {
            assert_eq!(entry.size(), *size);
        }
        assert!(seen.insert(path) || is_directory, "one path twice");
    }
    assert!(seen.iter().eq(wanted.keys()), "other entries than the index has");
}
