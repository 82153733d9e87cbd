//! What the cache has: damage of any kind is noticed, and what has the right checksums by accident does no harm.
#![no_main]

use std::io::Write as _;

use libfuzzer_sys::fuzz_target;
use prepull::digest::Digest;
use prepull::segment::cache::{Cache, Keep};
use prepull::segment::file::{CHUNK, Error, Facts, Segment, set_times};
use prepull::segment::index::Index;
use prepull::segment::place::Slot;
use prepull::segment::writer::Writer;
use prepull::wire;
use prepull_fuzz::{choice, empty_file, file, parts, scratch};
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = choice(data) else { return };
    match choice % 5 {
        0 => index(rest),
        1 => composed(rest),
        2 => raw(rest),
        3 => damaged(rest),
        _ => times(rest),
    }
});

fn index(encoded: &[u8]) {
    let Ok(index) = Index::decode(encoded) else { return };
    for number in 0..index.nodes().len().min(1000) as u32 {
        let entry = index.entry(number, b"p/", 1);
        let mut written = Vec::new();
        wire::header(&entry, &mut written);
        assert!(written.len().is_multiple_of(512));
    }
    let again = index.encode();
    assert_eq!(Index::decode(&again).expect("what was encoded can be decoded").encode(), again);
}

fn seed(key: &Digest) -> u64 {
    u64::from_le_bytes(key.as_bytes()[..8].try_into().expect("eight bytes"))
}

/// A segment's file with the right checksums, and anything in it.
fn composed(rest: &[u8]) {
    let [facts, index, split, body] = parts(rest);
    let key = Digest::of(b"key");
    let data = [body, split, index].concat();
    let sums = (0u64..).zip(data.chunks(CHUNK));
    let sums = sums.flat_map(|(number, chunk)| xxh3_64_with_seed(chunk, seed(&key).wrapping_add(number)).to_le_bytes());
    let mut end: Vec<u8> = sums.collect();
    end.extend_from_slice(facts);
    end.extend_from_slice(b"prepull-segment4");
    end.extend_from_slice(key.as_bytes());
    for number in [body.len(), split.len(), index.len(), facts.len(), 0, 0] {
        end.extend_from_slice(&(number as u64).to_le_bytes());
    }
    let check = xxh3_128_with_seed(&end, seed(&key)).to_le_bytes();
    let all = [&data[..], &end, &check].concat();
    assert!(matches!(Segment::open(file(&all), &Digest::of(b"another"), |_| Ok(None)), Err(Error::Damaged)));
    let is_facts = serde_json::from_slice::<Facts>(facts).is_ok();
    let opened = Segment::open(file(&all), &key, |_| Ok(None));
    assert_eq!(opened.is_ok(), is_facts && !index.is_empty());
    let Ok(segment) = opened else { return };
    assert_eq!(segment.index().is_ok(), Index::decode(index).is_ok());
    let mut read = Vec::new();
    let length = segment.body_len() + segment.split_len();
    let take = |_, part: &mut [u8]| {
        read.extend_from_slice(part);
        Ok::<_, Error>(())
    };
    segment.read(0, length, take).expect("the checksums are right");
    assert!(read == data[..length as usize]);
    segment.move_to(empty_file().expect("memory"), &key).expect("a segment moves");
}

/// Any bytes as a file of the cache.
fn raw(bytes: &[u8]) {
    let directory = scratch().join("cache");
    let cache = Cache::open(&directory).expect("a cache");
    let key = Digest::of(b"key");
    let path = directory.join("segments").join(key.hex());
    fs_err::write(&path, bytes).expect("a scratch file");
    let items = cache.items().expect("items");
    assert_eq!(items.iter().map(|item| item.segments).sum::<usize>(), 1);
    let opened = Segment::open(file(bytes), &key, |_| Ok(None));
    assert_eq!(cache.get(&key).is_some(), opened.is_ok());
    assert_eq!(path.exists(), opened.is_ok(), "what is damaged goes");
    cache.prune(&Keep { max_bytes: 0, used_since: None }).expect("prune");
    assert!(cache.items().expect("items").is_empty());
}

/// A good segment of which one byte is changed, or the end is missing.
fn damaged(rest: &[u8]) {
    let Some((&[at0, at1, at2, flip], rest)) = rest.split_first_chunk::<4>() else { return };
    let [warning, split, body] = parts(rest);
    let key = Digest::of(b"key");
    let own = empty_file().expect("memory");
    let mut writer = Writer::new(own.try_clone().expect("a file"), &key, Slot::none()).expect("a thread");
    // Some with more than one chunk.
    let repeat = if at0 & 0x80 != 0 && !body.is_empty() { CHUNK / body.len() + 2 } else { 1 };
    for _ in 0..repeat {
        writer.write_all(body).expect("memory");
    }
    writer.end_body().expect("memory");
    writer.write_all(split).expect("memory");
    let index = Index::of(&prepull::layer::tree::Tree::new()).encode();
    writer.write_all(&index).expect("memory");
    let facts = Facts {
        blob: key,
        blob_size: 1,
        diff_id: key,
        diff_size: 1,
        compression: 0,
        uids: vec![0, 1],
        gids: Vec::new(),
        root_claimed: true,
        stamped: vec![0],
        opaque: Vec::new(),
        warnings: vec![String::from_utf8_lossy(warning).into_owned()],
        body: None,
    };
    writer.finish().and_then(|written| written.seal(split.len() as u64, &facts)).expect("memory");
    let good = Segment::open(own.try_clone().expect("a file"), &key, |_| Ok(None)).expect("a good segment");
    assert_eq!(*good.facts(), facts);
    let length = own.metadata().expect("a file").len() as usize;
    let mut bytes = vec![0; length];
    std::os::unix::fs::FileExt::read_exact_at(&own, &mut bytes, 0).expect("memory");
    let at = usize::from(at1) << 8 | usize::from(at2);
    let at = if at0 & 0x40 == 0 { at % length } else { length - 1 - at % length };
    if flip == 0 {
        bytes.truncate(at);
    } else {
        bytes[at] ^= flip;
    }
    let found = Segment::open(file(&bytes), &key, |_| Ok(None)).and_then(|segment| {
        segment.index()?;
        segment.read(0, segment.body_len() + segment.split_len(), |_, _| Ok(()))
    });
    assert!(matches!(found, Err(Error::Damaged)), "damage at {at} of {length}: {found:?}");
}

/// Times are set in header blocks, wherever the bytes are cut.
fn times(rest: &[u8]) {
    let Some((&[offset, cut, a, b], rest)) = rest.split_first_chunk::<4>() else { return };
    let offset = u64::from(offset) * 512;
    let mut stamped: Vec<u64> = [a, b].iter().map(|at| u64::from(*at) * 512).collect();
    stamped.sort_unstable();
    stamped.dedup();
    let mut whole = rest.to_vec();
    set_times(&mut whole, offset, &stamped, 1_000_000);
    let mut pieces = rest.to_vec();
    let cut = (usize::from(cut) * 512).min(pieces.len() / 512 * 512);
    let (first, second) = pieces.split_at_mut(cut);
    set_times(first, offset, &stamped, 1_000_000);
    set_times(second, offset + cut as u64, &stamped, 1_000_000);
    assert!(whole == pieces, "times depend on where the body is cut");
}
