//! Stores as `ls` finds and reads them: in a tar, compressed, through a pipe, and their records.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use prepull::inspect::find::{Found, STORES_MAX, in_stream, in_tar};
use prepull::inspect::list::{list, tag_at};
use prepull_fuzz::{Trickle, choice, file, fix_checksums, parts};

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = choice(data) else { return };
    if choice & 1 == 1 {
        let [images, layers, more] = parts(rest);
        let store = |graphroot: &str, images: &[u8], layers: &[u8]| Found {
            graphroot: graphroot.to_owned(),
            driver: "overlay".to_owned(),
            images: images.to_vec(),
            layers: layers.to_vec(),
            ..Found::default()
        };
        return check(&[store("", images, layers), store("s", b"", more)]);
    }
    let mut tar = rest.to_vec();
    if choice & 0x80 == 0 {
        fix_checksums(&mut tar);
    }
    let found = in_stream(Trickle::new(Cursor::new(&tar), usize::from(choice >> 1 & 0x3f) * 100 + 1));
    let in_file = in_tar(file(&tar));
    match (&found, &in_file) {
        (Ok(found), Ok(in_file)) => assert_eq!(found, in_file, "a pipe has other stores than a file"),
        // Content is passed over in a file, so where one says that it is cut off, the other may not see it.
        (Err(_), Err(_)) => {}
        (found, in_file) => panic!("{found:?}, but of a file {in_file:?}"),
    }
    let is_plain = !matches!(tar[..], [0x1f, 0x8b, ..] | [0x28, 0xb5, ..] | [b'B', b'Z', ..] | [0xfd, b'7', ..]);
    if let Ok(found) = &found {
        assert!(found.len() <= STORES_MAX);
        if is_plain {
            for packed in [prepull_fuzz::gzip(&tar, &[tar.len() / 2]), prepull_fuzz::zstd(&tar, &[])] {
                assert_eq!(in_tar(file(&packed)).as_ref().ok(), Some(found), "compressed, it has other stores");
            }
        }
        check(found);
    }
});

fn check(stores: &[Found]) {
    let Ok(images) = list(stores) else { return };
    for image in &images {
        assert!(image.repo_tags.is_sorted() && image.repo_digests.is_sorted());
        assert!(image.repo_tags.iter().all(|name| !name.contains('@')));
        for name in &image.repo_tags {
            let at = tag_at(name);
            assert!(at.is_none_or(|at| name[at..].starts_with(':') && !name[at..].contains('/')));
        }
    }
    assert!(images.is_sorted_by(|a, b| a.repo_tags <= b.repo_tags));
    serde_json::to_string(&images).expect("a list is JSON");
}
