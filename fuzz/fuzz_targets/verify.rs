//! Stores as `verify`, `diff` and `why` read them, and tar-splits: whatever is in them gets an answer, always the same one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prepull::inspect::contents::Contents;
use prepull::inspect::diff::diff;
use prepull::layer::tar_split::{Piece, Pieces, TarSplit};
use prepull::verify::{Options, verify};
use prepull_fuzz::{choice, fix_checksums, gzip, scratch};

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = choice(data) else { return };
    if choice & 1 == 1 {
        return split(rest);
    }
    let mut tar = rest.to_vec();
    if choice & 0x80 == 0 {
        fix_checksums(&mut tar);
    }
    let path = scratch().join("store.tar");
    std::fs::write(&path, &tar).expect("a scratch file");
    let options =
        Options { additional: [None, Some(true), Some(false)][usize::from(choice >> 1) % 3], ..Options::default() };
    let report = verify(&path, &options);
    let again = verify(&path, &options);
    assert_eq!(format!("{report:?}"), format!("{again:?}"), "the second time the answer is another one");
    let Ok(contents) = Contents::of(&path) else { return };
    if let Ok(diff) = diff(&contents, &contents) {
        assert!(diff.is_empty(), "it differs from itself: {diff:?}");
    }
});

/// What is read and written again is read as the same.
fn split(lines: &[u8]) {
    let read = |bytes: &[u8]| {
        let mut pieces = Pieces::new(bytes);
        let mut all = Vec::new();
        while let Some(piece) = pieces.next_piece().ok()? {
            all.push(piece);
        }
        Some(all)
    };
    let _ = read(lines);
    let Some(all) = read(&gzip(lines, &[lines.len() / 2])) else { return };
    let mut writer = TarSplit::new(Vec::new());
    for piece in &all {
        match piece {
            Piece::Segment(raw) => writer.segment(raw),
            Piece::File { name, size, crc } => writer.file(name, *size, *crc),
        }
        .expect("memory");
    }
    let kept = |piece: &Piece| match piece {
        // A segment of nothing is not written, nor the checksum of nothing.
        Piece::Segment(raw) => !raw.is_empty(),
        Piece::File { size, crc, .. } => *size > 0 || *crc == 0,
    };
    if all.iter().all(kept) {
        assert_eq!(read(&writer.finish().expect("memory")), Some(all));
    }
}
