//! The strict reader of the canonical tar: what it takes is, written again, the same bytes, and no path of it leads anywhere.
#![no_main]

use std::io::Read as _;

use libfuzzer_sys::fuzz_target;
use prepull::entry::Kind;
use prepull::wire::read::{Error, NAME_MAX, PATH_MAX, Reader};
use prepull::wire::{END, header, padding};
use prepull_fuzz::{Trickle, choice, fix_checksums};

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = choice(data) else { return };
    let mut tar = rest.to_vec();
    if choice & 1 == 0 {
        fix_checksums(&mut tar);
    }
    let whole = read(Reader::new(&tar[..]));
    let pieces = read(Reader::new(Trickle::new(&tar[..], 7)));
    assert_eq!(whole.as_ref().map_err(ToString::to_string), pieces.as_ref().map_err(ToString::to_string));
    if let Ok(again) = whole {
        assert!(tar.starts_with(&again), "another encoding was taken");
    }
});

/// What was read, written again.
fn read<R: std::io::Read>(mut reader: Reader<R>) -> Result<Vec<u8>, Error> {
    let mut again = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let is_path = |path: &[u8]| {
            let is_name =
                |name: &[u8]| !matches!(name, b"" | b"." | b"..") && name.len() <= NAME_MAX && !name.contains(&0);
            path.len() <= PATH_MAX && path.split(|&byte| byte == b'/').all(is_name)
        };
        assert!(is_path(&entry.path) && entry.meta.mode <= 0o7777 && entry.meta.mtime.nanoseconds < 1_000_000_000);
        header(&entry, &mut again);
        match entry.kind {
            Kind::Regular { size } => {
                let start = again.len();
                reader.read_to_end(&mut again)?;
                assert_eq!((again.len() - start) as u64, size);
                again.resize(again.len() + padding(size) as usize, 0);
            }
            Kind::Hardlink(target) => assert!(is_path(&target)),
            Kind::Symlink(target) => assert!(!target.is_empty() && !target.contains(&0)),
            _ => {}
        }
    }
    again.extend_from_slice(&END);
    Ok(again)
}
