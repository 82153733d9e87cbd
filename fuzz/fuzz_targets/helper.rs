//! The helper's receiving end in a directory: whatever comes, there is one answer, nothing outside is touched, and the store can
//! be read.
#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use prepull::entry::{Device, Entry, Kind, Meta};
use prepull::helper::apply::Budget;
use prepull::helper::confine::Powers;
use prepull::helper::policy::{Allow, Kind as Root};
use prepull::helper::root::Dir;
use prepull::helper::{Job, Until, serve};
use prepull::wire;
use prepull_fuzz::{choice, fix_checksums, scratch};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = choice(data) else { return };
    let at = scratch().join("jail");
    let _ = fs_err::remove_dir_all(&at);
    fs_err::create_dir_all(at.join("store")).expect("a directory");
    fs_err::write(at.join("canary"), "canary").expect("a file");
    let is_tree = choice & 2 != 0;
    let request = if is_tree { "unpack" } else { "install" };
    let mut stream = file("prepull-request", &format!("prepull 1\nrequest {request}\ngraphroot /g\nroot 0:0\n"));
    if choice & 1 == 0 {
        let mut tar = rest.to_vec();
        fix_checksums(&mut tar);
        stream.extend_from_slice(&tar);
    } else {
        rest.chunks(6).for_each(|step| add(&mut stream, step, is_tree));
        stream.extend_from_slice(&wire::END);
    }
    let job = |stream: &[u8]| {
        let allow = Allow {
            user: None,
            group: None,
            root: String::new(),
            kind: if is_tree { Root::Rootfs } else { Root::Storage },
            graphroot: Some("/g".into()),
            max_bytes: 1 << 20,
            max_store_bytes: u64::MAX,
            keep_free: 0,
            additional: None,
            max_inodes: 200,
            max_seconds: 5,
            devices: false,
            suid: true,
            filecaps: true,
        };
        let target = Dir::at(at.join("store").as_path()).expect("a directory");
        let budget = Budget::new(Powers::Own, allow, &target).expect("a budget");
        let deadline = Instant::now() + Duration::from_secs(5);
        let until = Until { deadline, is_gone: || false, holds: |_| () };
        serve(stream, &Job { root: (0, 0), target, until, is_readable: false, place: None }, budget)
    };
    let answer = job(&stream);
    assert!(!answer.error.contains('\n'), "{}", answer.error);
    let mut left: Vec<_> =
        fs_err::read_dir(&at).expect("a directory").map(|entry| entry.expect("an entry").file_name()).collect();
    left.sort();
    assert_eq!(left, ["canary", "store"]);
    assert_eq!(fs_err::read(at.join("canary")).expect("a file"), b"canary");
    for entry in fs_err::read_dir(at.join("store")).expect("a directory") {
        let name = entry.expect("an entry").file_name().into_encoded_bytes();
        assert!(!name.starts_with(b".prepull-staging"), "something was left");
    }
    if answer.error.is_empty() && !is_tree {
        for records in ["overlay-layers/layers.json", "overlay-images/images.json"] {
            if let Ok(json) = fs_err::read(at.join("store").join(records)) {
                serde_json::from_slice::<Vec<serde_json::Value>>(&json).expect("records");
            }
        }
        // The same once more changes nothing, and is no error.
        assert_eq!(job(&stream).error, "");
    }
});

/// An entry that six bytes describe: likelier to be taken than bytes that are no tar.
fn add(stream: &mut Vec<u8>, step: &[u8], is_tree: bool) {
    let byte = |at: usize| step.get(at).copied().unwrap_or_default();
    let name = ["", "/a", "/b", "/a/c", "/a/c/d", "/e", "/../x", "/a/../../y", "/.prepull-x"];
    let path = |index: u8| {
        let path = name[usize::from(index) % name.len()];
        if is_tree {
            path.trim_start_matches('/').to_owned()
        } else {
            format!("g/overlay/{}/diff{path}", if index & 0x80 == 0 { A } else { B })
        }
    };
    let digest = format!("sha256:{B}");
    match byte(0) % 12 {
        9 => {
            stream.extend(file(&format!("g/overlay-layers/{A}.tar-split.gz"), "x"));
            let parent = if byte(1) & 1 == 0 { String::new() } else { format!("parent {B}\n") };
            let link = "A".repeat(26);
            stream.extend(file(
                "prepull-layer",
                &format!(
                    "id {A}\nlink {link}\n{parent}created 2024-01-02T03:04:05Z\ncompressed-diff-digest {digest}\ncompressed-size 1\n\
                     diff-digest {digest}\ndiff-size 1\ncompression 0\n"
                ),
            ));
            return;
        }
        10 | 11 => {
            for key in [&format!("sha256:{B}")[..], "manifest"] {
                stream.extend(file(&format!("g/overlay-images/{B}/{key}"), "{}"));
            }
            stream.extend(file(
                "prepull-image",
                &format!(
                    "id {B}\ndigest {digest}\nlayer {A}\ncreated 2024-01-02T03:04:05Z\nname localhost/b:1\n\
                     data sha256:{B} 2 {digest}\ndata manifest 2 {digest}\n"
                ),
            ));
            return;
        }
        _ => {}
    }
    let kind = match byte(0) % 12 {
        0..=2 => Kind::Directory,
        3 | 4 => Kind::Regular { size: u64::from(byte(5)) },
        5 => Kind::Symlink([&b"/a"[..], b"../..", b"b", b"/"][usize::from(byte(5)) % 4].to_vec()),
        6 => Kind::Hardlink(path(byte(5)).into_bytes()),
        7 => Kind::CharDevice(Device { major: u32::from(byte(5) & 1), minor: 0 }),
        _ => Kind::Fifo,
    };
    let xattrs = match byte(4) % 8 {
        1 => vec![(b"user.x".to_vec(), b"1".to_vec())],
        2 => vec![(b"trusted.overlay.opaque".to_vec(), b"y".to_vec())],
        3 => vec![(b"trusted.overlay.redirect".to_vec(), b"/".to_vec())],
        _ => Vec::new(),
    };
    let meta = Meta {
        mode: u16::from_le_bytes([byte(2), byte(3)]) & 0o7777,
        uid: u32::from(byte(3)),
        xattrs,
        ..Meta::default()
    };
    let entry = Entry { path: path(byte(1)).into_bytes(), meta, kind };
    match entry.kind {
        Kind::Regular { size } => wire::small_file(stream, &entry, &vec![b'c'; size as usize]),
        _ => wire::header(&entry, stream),
    }
}

fn file(path: &str, content: &str) -> Vec<u8> {
    let kind = Kind::Regular { size: content.len() as u64 };
    let mut tar = Vec::new();
    wire::small_file(
        &mut tar,
        &Entry { path: path.as_bytes().to_vec(), meta: Meta::default(), kind },
        content.as_bytes(),
    );
    tar
}
