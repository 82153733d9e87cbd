//! What a worker of `prepull mount` is given to show: its text, the tar of small files, indexes, segments. They come from the same
//! program, but a worker that dies of them dies again and again: what is no scene is refused, and all others can be walked through.
#![no_main]

use std::os::fd::OwnedFd;

use libfuzzer_sys::fuzz_target;
use prepull::digest::Digest;
use prepull::mount::scene::Scene;
use prepull::segment::file::{CHUNK, Facts};
use prepull_fuzz::fuse::walk;
use prepull_fuzz::{choice, file, fix_checksums, parts};
use serde_json::json;
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = choice(data) else { return };
    match choice % 3 {
        0 => {
            let [text, small, other] = parts(rest);
            if let Ok(scene) = serde_json::from_slice::<Scene>(text) {
                open(&scene, &[&fixed(small), other]);
            }
        }
        kind => composed(choice, kind == 1, rest),
    }
});

fn fixed(tar: &[u8]) -> Vec<u8> {
    let mut tar = tar.to_vec();
    fix_checksums(&mut tar);
    tar
}

/// One layer, of which the index is all that can be wrong; its whiteouts; and what is beside it.
fn composed(choice: u8, is_tar: bool, rest: &[u8]) {
    let [whiteouts, small, index] = parts(rest);
    let key = Digest::of(b"key");
    let mut small = fixed(small);
    let tree = json!({"Tar": {"index": small.len(), "length": index.len()}});
    let (tree, other) = if is_tar {
        small.extend_from_slice(index);
        (tree, b"content".repeat(100))
    } else {
        (json!({"Segment": {"key": key, "files": 1}}), segment(&key, index))
    };
    use base64::Engine as _;
    let base64 = |path| base64::engine::general_purpose::STANDARD.encode(path);
    let whiteouts: Vec<String> =
        whiteouts.split(|byte| *byte == b'\n').filter(|path| !path.is_empty()).map(base64).collect();
    let scene = json!({
        "generation": 1, "images": [], "tar": is_tar.then_some("images.tar"), "graphroot": "g", "stamp": 1,
        "marks_opaque": choice & 0x80 == 0,
        "layers": [{
            "id": "l", "slot": 5, "whiteouts": whiteouts, "tree": tree,
            "root": {"mode": 0o755, "uid": 0, "gid": 0, "mtime": {"seconds": -1, "nanoseconds": 0}, "xattrs": []},
        }],
    });
    open(&serde_json::from_value(scene).expect("a scene"), &[&small, &other]);
}

fn open(scene: &Scene, files: &[&[u8]]) {
    let files: Vec<OwnedFd> = files.iter().map(|bytes| file(bytes).into()).collect();
    let Ok(view) = scene.open(&files, None, None) else { return };
    walk(&view, 3000);
    let (blocks, inodes) = view.size();
    assert!(blocks < 1 << 62 && inodes > 0);
    let again = scene.open(&files, Some(&view), None).expect("the same can be shown again");
    assert_eq!(again.changes(&view), [], "the same is shown as another one");
}

/// A segment with this index, and a body of some bytes.
fn segment(key: &Digest, index: &[u8]) -> Vec<u8> {
    let seed = u64::from_le_bytes(key.as_bytes()[..8].try_into().expect("eight bytes"));
    let facts = Facts {
        blob: *key,
        blob_size: 1,
        diff_id: *key,
        diff_size: 1,
        compression: 0,
        uids: Vec::new(),
        gids: Vec::new(),
        root_claimed: true,
        stamped: Vec::new(),
        opaque: Vec::new(),
        warnings: Vec::new(),
        body: None,
    };
    let facts = serde_json::to_vec(&facts).expect("JSON");
    let body = b"content".repeat(100);
    let data = [&body[..], index].concat();
    let sums = (0u64..).zip(data.chunks(CHUNK));
    let sums = sums.flat_map(|(number, chunk)| xxh3_64_with_seed(chunk, seed.wrapping_add(number)).to_le_bytes());
    let mut end: Vec<u8> = sums.chain(facts.iter().copied()).collect();
    end.extend_from_slice(b"prepull-segment4");
    end.extend_from_slice(key.as_bytes());
    for number in [body.len(), 0, index.len(), facts.len(), 0, 0] {
        end.extend_from_slice(&(number as u64).to_le_bytes());
    }
    let check = xxh3_128_with_seed(&end, seed).to_le_bytes();
    [&data[..], &end, &check].concat()
}
