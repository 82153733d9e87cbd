//! What is shown is what tar would unpack, to the last attribute.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Mutex;

use prepull::digest::Digest;
use rustix::fs::{Mode, OFlags, RawDir, SeekFrom};

use super::{Mount, World, full, ok, on_base};
use crate::command::{hello, needs_root};
use crate::corpus;
use crate::made::gzip;
use crate::raw::{archive, dir, mark};
use crate::stores::{Clock, Mount as Overlay, chain, differences, each, in_own_mounts, walk};

/// All that `lstat`, `llistxattr`, `readlink` and `read` say of an inode.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Exact {
    mode: u32,
    owner: (u32, u32),
    time: (i64, i64),
    /// Of a directory, no matter.
    size: u64,
    device: u64,
    links: u64,
    /// Of a regular file without attributes: those may take a block.
    blocks: Option<u64>,
    target: Option<Vec<u8>>,
    content: Option<Digest>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first of the names of this inode.
    first: Vec<u8>,
}

pub(super) type Tree = BTreeMap<Vec<u8>, Exact>;

pub(super) fn exact(root: &Path) -> Tree {
    let mut tree = Tree::new();
    below(root, b"", &mut tree, &mut BTreeMap::new());
    tree
}

fn below(path: &Path, name: &[u8], tree: &mut Tree, firsts: &mut BTreeMap<u64, Vec<u8>>) {
    let stat = fs_err::symlink_metadata(path).unwrap();
    let kind = stat.file_type();
    let xattrs = xattrs(path);
    let exact = Exact {
        mode: stat.mode(),
        owner: (stat.uid(), stat.gid()),
        time: (stat.mtime(), stat.mtime_nsec()),
        size: if kind.is_dir() { 0 } else { stat.size() },
        device: stat.rdev(),
        links: stat.nlink(),
        blocks: (kind.is_file() && xattrs.is_empty()).then(|| stat.blocks()),
        target: kind.is_symlink().then(|| fs_err::read_link(path).unwrap().as_os_str().as_bytes().to_vec()),
        content: kind.is_file().then(|| Digest::of(&fs_err::read(path).unwrap())),
        xattrs,
        first: firsts.entry(stat.ino()).or_insert_with(|| name.to_vec()).clone(),
    };
    tree.insert(name.to_vec(), exact);
    if kind.is_dir() {
        let children: BTreeSet<_> = fs_err::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        for child in children {
            let sub = if name.is_empty() { child.as_bytes().to_vec() } else { [name, b"/", child.as_bytes()].concat() };
            below(&path.join(&child), &sub, tree, firsts);
        }
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut list).unwrap();
    let names = list[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value)
            .unwrap_or_else(|error| panic!("{}: {}: {error}", path.display(), name.escape_ascii()));
        value.truncate(length);
        value
    };
    names.map(|name| (name.to_vec(), value(name))).collect()
}

/// What differs, a line each, at most twenty.
pub(super) fn compare(shown: &Tree, unpacked: &Tree) -> String {
    let mut out = String::new();
    let names: BTreeSet<&Vec<u8>> = shown.keys().chain(unpacked.keys()).collect();
    let different = names.into_iter().filter(|name| shown.get(*name) != unpacked.get(*name));
    for (at, name) in different.enumerate() {
        if at < 20 {
            let (shown, unpacked) = (shown.get(name), unpacked.get(name));
            let _ = writeln!(out, "{}:\n  shown    {shown:?}\n  unpacked {unpacked:?}", name.escape_ascii());
        }
        if at == 20 {
            out += "and more\n";
        }
    }
    out
}

/// Items of all images of the corpus that prepull takes, and the one in the repository; in a file for `--images`.
fn corpus_items(world: &mut World, wanted: fn(&str) -> bool) -> Vec<String> {
    let cases: Vec<_> = corpus::all().into_iter().filter(|case| wanted(&case.name)).collect();
    for case in &cases {
        case.write(&mut world.layout);
    }
    let taken = Mutex::new(BTreeSet::new());
    let world = &*world;
    let wrong = each(&cases, 12, |case| {
        let item = format!("oci:{}:{}", world.layout.path.display(), case.image());
        let mut command = world.prepull();
        command.args(["make", "--store", "additional", "--unpacker", "gnu", "--no-config", "--quiet", "-o", "-"]);
        command.args(["--platform", "linux/amd64", "--cache-dir"]).arg(world.cache()).arg(&item);
        if command.output().unwrap().status.success() {
            taken.lock().unwrap().insert(item);
        }
        Ok(())
    });
    assert!(wrong.is_empty(), "{wrong:?}");
    let mut items: Vec<String> = taken.into_inner().unwrap().into_iter().collect();
    assert!(items.len() > cases.len() / 2, "{} of {}", items.len(), cases.len());
    items.push(hello());
    items
}

/// How many images are compared, and how many entries.
fn figures(what: &str, images: usize, entries: usize) {
    eprintln!("{what}: {images} images, {entries} entries");
}

/// What ext4 makes of times before its first (`EXT4_TIMESTAMP_MIN`); and tar touches the directories above the layers.
fn as_on_ext4(tree: &mut Tree) {
    const EXT4_MIN: i64 = -(1 << 31);
    for (name, entry) in tree.iter_mut() {
        if entry.time.0 < EXT4_MIN {
            entry.time = (EXT4_MIN, 0);
        }
        if ABOVE.contains(&name.as_slice()) {
            entry.time = (0, 0);
        }
        // Those of a mount of images have a token, by which it is seen that it changes.
        if LOCKS.contains(&name.as_slice()) && matches!(entry.size, 0 | 64) {
            (entry.size, entry.blocks, entry.content) = (0, None, None);
        }
    }
}

/// The store's directory, which has no entry in the tar, and directories that tar has to write into after it has dated them.
const ABOVE: [&[u8]; 6] = [b"", b"overlay", b"overlay/l", b"overlay-containers", b"overlay-images", b"overlay-layers"];

const LOCKS: [&[u8]; 2] = [b"overlay-layers/layers.lock", b"overlay-images/images.lock"];

fn shown(mount: &Mount) -> Tree {
    let mut tree = exact(&mount.at);
    as_on_ext4(&mut tree);
    tree
}

#[test]
fn the_corpus_as_it_is_unpacked() {
    if !needs_root("mount::same::the_corpus_as_it_is_unpacked") {
        return;
    }
    let mut world = World::new();
    let items = corpus_items(&mut world, |_| true);
    let list = world.at.join("items");
    fs_err::write(&list, items.join("\n")).unwrap();
    let options = ["--images", list.to_str().unwrap()];
    let unpacked = world.unpacked("unpacked", &options);
    // Blocks are not given to files before they are written.
    rustix::fs::syncfs(fs_err::File::open(&unpacked).unwrap()).unwrap();
    let mut expected = exact(&unpacked);
    as_on_ext4(&mut expected);
    let mount = world.mount("mnt", &options);
    let of_images = shown(&mount);
    figures("a mount beside what GNU tar unpacks", items.len(), of_images.len());
    assert!(of_images.len() > 5000, "{}", of_images.len());
    let report = compare(&of_images, &expected);
    assert!(report.is_empty(), "{report}");
    // The same out of the tar, plain and compressed.
    let tar = world.at.join("unpacked.tar");
    let packed = world.at.join("unpacked.tar.gz");
    fs_err::write(&packed, gzip(&fs_err::read(&tar).unwrap())).unwrap();
    for tar in [&tar, &packed] {
        let name = format!("of-{}", tar.extension().unwrap().display());
        let report = compare(&shown(&world.mount(&name, &[tar])), &expected);
        assert!(report.is_empty(), "{name}:\n{report}");
    }
    // A tar for busybox has whiteouts for opaque directories, and lists of attributes beside the store.
    let expanded = shown(&world.mount("expanded", &["--expand-opaque", "--images", list.to_str().unwrap()]));
    assert!(expanded.len() > of_images.len() + 50, "{}", expanded.len());
    let busybox = world.make("busybox.tar", &["--unpacker", "busybox", "--restore-helper", "none"], &options);
    let report = compare(&shown(&world.mount("busybox", &[&busybox])), &expanded);
    assert!(report.is_empty(), "for busybox:\n{report}");
}

#[test]
fn opaque_directories_expanded_merge_to_the_same() {
    if !needs_root("mount::same::opaque_directories_expanded_merge_to_the_same") {
        return;
    }
    let mut world = World::new();
    let items = corpus_items(&mut world, |name| name.starts_with("opq") || name.starts_with("wh"));
    let marked = world.mount("marked", &items);
    let options: Vec<&str> = ["--expand-opaque"].into_iter().chain(items.iter().map(String::as_str)).collect();
    let expanded = world.mount("expanded", &options);
    let merged = |mount: &Mount, image: &str| {
        let chain = chain(&mount.at, image);
        let at = world.at.join("merged");
        let overlay = Overlay::overlay(&mount.at, &chain, &at);
        let mut tree = walk(&at, &Clock::stamp());
        drop(overlay);
        tree.retain(|_, node| node.kind != "ghost");
        tree
    };
    let (mut report, mut entries) = (String::new(), 0);
    for image in marked.names() {
        let (marked, expanded) = (merged(&marked, &image), merged(&expanded, &image));
        entries += marked.len();
        differences(&image, &marked, &expanded, &mut report);
    }
    figures("merged, opaque directories marked beside expanded", items.len(), entries);
    assert!(report.is_empty(), "{report}");
}

/// Inode numbers, by path.
fn numbers(root: &Path) -> BTreeMap<Vec<u8>, u64> {
    let said = ok(in_own_mounts("find").arg(root).args(["-printf", "%i %P\\n"]));
    said.lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(number, path)| (path.as_bytes().to_vec(), number.parse().unwrap()))
        .collect()
}

#[test]
fn inode_numbers_follow_from_what_they_stand_for() {
    if !needs_root("mount::same::inode_numbers_follow_from_what_they_stand_for") {
        return;
    }
    let mut world = World::new();
    let items = [world.image("one", &on_base("one")), world.image("two", &on_base("two")), hello()];
    let one = world.mount("one", &items);
    // Some of it is known to the kernel before the worker dies, some is not.
    let images = numbers(&one.at.join("overlay-images"));
    one.kill_worker();
    let first = numbers(&one.at);
    assert_eq!(numbers(&one.at.join("overlay-images")), images);
    assert!(first.len() > 80, "{}", first.len());
    let other: Vec<&String> = items.iter().rev().collect();
    let two = world.mount("two", &other);
    assert_eq!(numbers(&two.at), first, "in another mount, with the items the other way round");
    one.kill_worker();
    drop(two);
    // Names that are removed and added again are the same again.
    one.removes(&[&full("two")]);
    one.adds(&[&items[1]]);
    assert_eq!(numbers(&one.at), first);
    let known: BTreeSet<u64> = first.values().copied().collect();
    let three = world.mount("three", &items[..1]);
    let fewer = numbers(&three.at);
    let layers = fewer.iter().filter(|(path, _)| path.starts_with(b"overlay/"));
    for (path, number) in layers {
        assert_eq!(first.get(path), Some(number), "{}", path.escape_ascii());
    }
    assert!(fewer.values().any(|number| !known.contains(number)), "images.json differs, and has another number");
}

/// A directory's names and where each next one is, read in `size` bytes at a time, from `start` on.
fn listing(at: &Path, start: u64, size: usize) -> Vec<(Vec<u8>, u64)> {
    let directory = rustix::fs::open(at, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    rustix::fs::seek(&directory, SeekFrom::Start(start)).unwrap();
    let mut buffer = vec![MaybeUninit::uninit(); size];
    let mut entries = RawDir::new(&directory, &mut buffer);
    let mut all = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry.unwrap();
        all.push((entry.file_name().to_bytes().to_vec(), entry.next_entry_cookie()));
    }
    all
}

#[test]
fn directories_are_read_from_anywhere() {
    if !needs_root("mount::same::directories_are_read_from_anywhere") {
        return;
    }
    let mut world = World::new();
    let mut entries = vec![dir("many/"), dir("none/")];
    entries.extend((0..20_000).map(|number| mark(format!("many/a file with a name of some length {number}"))));
    let item = world.image("many", &[archive(&entries)]);
    let mount = world.mount("mnt", &[item]);
    let diff = mount.at.join("overlay").join(&chain(&mount.at, &full("many"))[0]).join("diff");
    let many = diff.join("many");
    let whole = listing(&many, 0, 1 << 16);
    assert_eq!(whole.len(), 20_002);
    assert_eq!((&whole[0].0[..], &whole[1].0[..]), (&b"."[..], &b".."[..]));
    let names: BTreeSet<&[u8]> = whole.iter().map(|(name, _)| name.as_slice()).collect();
    assert_eq!(names.len(), whole.len(), "names come twice");
    assert_eq!(listing(&many, 0, 300), whole, "an entry or a few at a time");
    for at in (0..whole.len()).step_by(617).chain([0, 1, 2, whole.len() - 1]) {
        let (_, next) = &whole[at];
        assert_eq!(listing(&many, *next, 5000), whole[at + 1..], "from after entry {at}");
    }
    assert_eq!(listing(&many, 1 << 62, 5000), []);
    // Beyond what 32 bits hold; and where no entry is.
    assert_eq!(listing(&many, (1 << 32) + 5, 5000), []);
    assert_eq!(listing(&diff.join("none"), 0, 300).len(), 2);
    let said = ok(std::process::Command::new("ls").args(["-a", "-f"]).arg(diff.join("none")));
    assert_eq!(said, ".\n..\n");
    let said = ok(std::process::Command::new("ls").args(["-ai"]).arg(&diff));
    let inode = |path: &Path| fs_err::metadata(path).unwrap().ino();
    let lines: Vec<Vec<&str>> = said.lines().map(|line| line.split_whitespace().collect()).collect();
    let number = |name: &str| lines.iter().find(|words| words[1] == name).unwrap()[0].parse::<u64>().unwrap();
    assert_eq!(number("."), inode(&diff));
    assert_eq!(number(".."), inode(diff.parent().unwrap()));
    assert_eq!(number("many"), inode(&many));
    // Outside the layers: who is in the middle of it when it changes gets all that stays, and nothing twice.
    let overlay = mount.at.join("overlay");
    let directory = rustix::fs::open(&overlay, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let mut buffer = vec![MaybeUninit::uninit(); 100];
    let mut reading = RawDir::new(&directory, &mut buffer);
    let mut seen: Vec<Vec<u8>> =
        (0..3).map(|_| reading.next().unwrap().unwrap().file_name().to_bytes().to_vec()).collect();
    let before: BTreeSet<Vec<u8>> = listing(&overlay, 0, 4096).into_iter().map(|(name, _)| name).collect();
    mount.adds(&[&hello()]);
    while let Some(entry) = reading.next() {
        seen.push(entry.unwrap().file_name().to_bytes().to_vec());
    }
    let once: BTreeSet<Vec<u8>> = seen.iter().cloned().collect();
    assert_eq!(once.len(), seen.len());
    assert!(before.is_subset(&once), "{before:?} {once:?}");
    assert_eq!(listing(&overlay, 0, 4096).len(), before.len() + 3);
}

#[test]
fn the_file_system_is_full_and_counted() {
    if !needs_root("mount::same::the_file_system_is_full_and_counted") {
        return;
    }
    let mut world = World::new();
    let item = world.image("one", &on_base("one"));
    let mount = world.mount("mnt", &[item]);
    let found = rustix::fs::statvfs(&mount.at).unwrap();
    assert_eq!((found.f_bsize, found.f_frsize, found.f_namemax), (4096, 4096, 255));
    assert_eq!((found.f_bfree, found.f_bavail, found.f_ffree), (0, 0, 0));
    let inodes = numbers(&mount.at).values().collect::<BTreeSet<_>>().len() as u64;
    assert_eq!(found.f_files, inodes);
    let bytes = fs_err::metadata("/bin/busybox").unwrap().len() + 300_000;
    assert!((bytes / 4096..bytes / 4096 + 100).contains(&found.f_blocks), "{} blocks, {bytes} bytes", found.f_blocks);
    // Root's alone, and only to be looked at.
    let options = ok(std::process::Command::new("findmnt").args(["-n", "-o", "OPTIONS,FSTYPE"]).arg(&mount.at));
    for option in ["ro", "nosuid", "nodev", "noatime", "default_permissions"] {
        assert!(options.split([',', ' ']).any(|other| other == option), "{option}: {options}");
    }
    assert!(!options.contains("allow_other"), "{options}");
    assert!(options.trim().ends_with(" fuse.prepull"), "{options}");
}
