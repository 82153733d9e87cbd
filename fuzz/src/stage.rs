//! A small store with everything in it that a file system can have, as `prepull mount` shows it; and what is in its files, as
//! another program's tar reader finds it in the tar that `prepull make` writes of the same images.

#![allow(dead_code, reason = "the tests' generators do more than is needed here")]

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::sync::Arc;

use prepull::image::Platform;
use prepull::inspect::contents::Contents;
use prepull::make::{Advance, Output, Progress, make};
use prepull::mount::scene::{Fetch, Scene, Staged};
use prepull::mount::view::View;
use prepull::mount::wire::ROOT;
use prepull::plan::Plan;
use prepull::reference::Item;
use prepull::segment::cache::Cache;
use prepull::sink::TarStream;
use prepull::source::Options;
use prepull::storage::store::StoreLayer;

use crate::fuse::{Answered, exchange, opcode, range, request};
use crate::scratch;

#[path = "../../tests/it/made.rs"]
mod made;
#[path = "../../tests/it/raw.rs"]
mod raw;

use raw::{archive, block, char, dir, fifo, file, link, mark, sym};

/// What is shown, and what it is.
#[derive(Debug)]
pub struct Stage {
    /// What is shown.
    pub view: View,
    /// The content of every regular file, by its node.
    pub files: HashMap<u64, Vec<u8>>,
}

#[derive(Debug)]
struct Silent;

impl Progress for Silent {
    fn queued(&self, _: &StoreLayer, _: &str, _: bool) {}

    fn cached(&self, _: &StoreLayer) {}
    fn begin(&self, _: &StoreLayer, _: &str) -> Advance {
        Box::new(|_| ())
    }
    fn end(&self, _: &StoreLayer) {}
    fn note(&self, _: &str) {}
}

fn layers() -> Vec<Vec<u8>> {
    let large: Vec<u8> = (0..300_000_u32).map(|at| (at ^ at >> 8) as u8).collect();
    let mut first = vec![
        dir("bin").owner(0, 50).mode(0o2755),
        file("bin/large").data(&large),
        file("bin/sudo")
            .mode(0o4755)
            .xattr("security.capability", [1, 0, 0, 2, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        mark("empty"),
        file("with").xattr("user.a", "1").xattr("user.b", "").xattr("user.long", [b'x'; 300]),
        link("twice", "with"),
        sym("link", "bin/large"),
        sym("far", "/a/".repeat(60)),
        char("null", 1, 3),
        block("disk", 259, 70_000),
        fifo("fifo"),
        dir("gone"),
        file("gone/a"),
        dir("full").xattr("user.d", "e"),
        file("n".repeat(255)),
        file([&b"not"[..], &[0xff, 0xfe], b"utf8 \n"].concat()),
        file("old").mtime(-5).owner(3_000_000_000, 70_000),
    ];
    first.extend((0..120).map(|number| file(format!("full/{number}"))));
    let second = [
        mark(".wh.twice"),
        mark("full/.wh..wh..opq"),
        file("full/new"),
        file("gone"),
        dir("bin"),
        mark("bin/.wh.sudo"),
        dir("a"),
        dir("a/b"),
        link("a/b/c", "full/new"),
    ];
    let third = [dir("a"), mark("a/.wh..wh..opq"), file("a/d").data([7; 5000])];
    vec![archive(&first), archive(&second), archive(&third)]
}

/// The images as a plan; the cache for their layers.
fn plan() -> (Plan, Cache) {
    let layers = layers();
    let mut layout = made::Layout::new(scratch().join("layout"));
    for (name, layers) in [("all", &layers[..]), ("first", &layers[..1])] {
        let image = layout.image("amd64", layers);
        layout.add(Some(name), image);
    }
    let items = ["all", "first"].map(|name| {
        let typed = format!("oci:{}:{name}=localhost/{name}:v1", layout.path.display());
        Item::parse(OsStr::new(&typed)).expect("an item")
    });
    let platform = "linux/amd64".parse::<Platform>().expect("a platform");
    let plan = Plan::new(&items, &platform, &Options::default()).expect("a plan");
    (plan, Cache::open(&scratch().join("stage-cache")).expect("a cache"))
}

/// The images' scene, and that of their tar, which is given with it.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn staged() -> ([Staged; 2], Vec<u8>) {
    let (plan, cache) = plan();
    let settings = Scene::settings(plan.newest, true);
    let images = Scene::of_images(&plan, &settings, cache, Arc::new(Silent), None, Fetch::default()).expect("a scene");
    let mut bytes = Vec::new();
    let stream = TarStream::new(Box::new(&mut bytes), "memory", settings.stamp);
    let cache = Cache::open(&scratch().join("stage-cache")).expect("a cache");
    make(&plan, &settings, cache, Output::Stream(stream), Arc::new(Silent)).expect("a tar");
    let path = scratch().join("stage.tar");
    fs_err::write(&path, &bytes).expect("a scratch file");
    let contents = Contents::of(&path).expect("a tar");
    let tar = Scene::of_tar(&path, &contents).expect("a scene");
    fs_err::remove_file(&path).expect("a scratch file");
    ([images, tar], bytes)
}

/// The same two, shown.
///
/// # Panics
/// When something of the tar is not shown, or not as it is there.
#[must_use]
pub fn stages() -> [Stage; 2] {
    let (staged, tar) = staged();
    let [images, of_tar] = staged;
    // A tar is shown as it is, with its locks.
    [(images, true), (of_tar, false)].map(|(Staged { scene, files, .. }, has_tokens)| {
        let view = scene.open(&files, None, None).expect("a view");
        let files = found(&view, &tar, has_tokens);
        Stage { view, files }
    })
}

/// The locks that are not empty where the store is shown.
const LOCKS: [&[u8]; 2] = [b"overlay-layers/layers.lock", b"overlay-images/images.lock"];

fn token(view: &View, node: u64) -> Vec<u8> {
    let read = exchange(view, &request(opcode::READ, node, 0, &range(0, 1000)));
    let Answered::Bytes(token) = read else { panic!("a lock cannot be read") };
    assert!(token.len() == 64 && token.iter().all(u8::is_ascii_hexdigit), "{token:?} is no token");
    token
}

/// All files in `tar`, by the node that has their path.
fn found(view: &View, tar: &[u8], has_tokens: bool) -> HashMap<u64, Vec<u8>> {
    let mut archive = tar::Archive::new(tar);
    let mut files = HashMap::new();
    let mut count = 0;
    for entry in archive.entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        let path = entry.path_bytes().into_owned();
        let path = path.strip_prefix(b"/").unwrap_or(&path);
        let below = path.strip_prefix(b"var/lib/containers/storage");
        let Some(below) = below else { continue };
        let mut node = ROOT;
        for part in below.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            let found = view.lookup(node, part).expect("a directory");
            node = found.unwrap_or_else(|| panic!("{}: not shown", String::from_utf8_lossy(path))).node;
        }
        let attributes = view.attributes(node).expect("an inode");
        count += 1;
        if entry.header().entry_type().is_file() {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("content");
            if has_tokens && LOCKS.contains(&below.strip_prefix(b"/").unwrap_or(below)) {
                // Other programs see by it that the store has changed.
                content = token(view, node);
            }
            assert_eq!(attributes.size, content.len() as u64);
            assert_eq!(attributes.mode & 0o7777, entry.header().mode().expect("a mode"));
            files.insert(node, content);
        }
    }
    assert!(count > 150, "only {count} entries are shown");
    files
}

/// What is in an open file.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn bytes_of(file: &std::os::fd::OwnedFd) -> Vec<u8> {
    let mut file = File::from(file.try_clone().expect("a descriptor"));
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).expect("a file");
    file.read_to_end(&mut bytes).expect("a file");
    bytes
}
