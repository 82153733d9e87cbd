//! What the entries of a stream may say, and what is refused of them: paths, links, kinds, metadata; and what the directory
//! may look like that they go into.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use prepull::entry::{Device, Entry, Kind, Meta};
use prepull::wire;

use super::stream::{Stream, diff, good, meta};
use super::{By, Jail, USER, figure};
use crate::command::needs_root;
use crate::stores::{GRAPHROOT, scratch};

/// A store with layer 1 and image `localhost/good:1`, which podman lists.
pub fn jail(policy: &str) -> Jail {
    let jail = Jail::new(policy);
    jail.run(By::ForUser).feed(&good(&jail, 1, None).end()).succeeded("a good stream");
    jail.outside_is_unchanged("a good stream");
    jail
}

/// A stream: what it is, parts of the answer (`a|b`), and its bytes.
pub type Attack = (String, &'static str, Vec<u8>);

/// All of them are refused; then the store is as it was, and takes a good one.
#[track_caller]
pub fn all_refused(what: &str, jail: &Jail, attacks: &[Attack]) {
    for (number, (name, why, stream)) in attacks.iter().enumerate() {
        // sudo takes its time.
        let by = if number % 8 == 0 { By::Sudo } else { By::ForUser };
        jail.refuses(by, name, why, stream);
    }
    still_works(jail, attacks.len());
    figure(&format!("hostile streams to the helper, {what}"), attacks.len());
}

#[track_caller]
pub fn still_works(jail: &Jail, tried: usize) {
    let podman = jail.podman();
    assert!(podman.contains("localhost/good:1 "), "after {tried}: {podman}");
    jail.run(By::Sudo).feed(&good(jail, 9, Some(1)).end()).succeeded("a good stream after all");
    assert!(jail.podman().contains("localhost/good:9 "));
    assert_eq!(jail.staging(), 0);
}

/// A stream with one layer, in which `make` puts something after a good file.
pub fn in_layer(jail: &Jail, make: impl FnOnce(Stream, &str) -> Stream) -> Vec<u8> {
    let at = diff(2);
    let stream = Stream::new("install", jail).dir(&at).file(format!("{at}/file"), b"good");
    make(stream, &at).end_layer(2, Some(1)).end()
}

/// The header of an entry whose path is replaced after it was made; the checksum is right.
fn with_path(path: &[u8], kind: Kind) -> Vec<u8> {
    let mut out = Vec::new();
    wire::header(&Entry { path: path.to_vec(), meta: meta(0o644), kind }, &mut out);
    out
}

#[test]
fn paths_that_lead_elsewhere() {
    if !needs_root("privilege::attacks::paths_that_lead_elsewhere") {
        return;
    }
    let jail = jail("");
    let at = diff(2);
    let outside = jail.at("outside").display().to_string();
    let mut attacks: Vec<Attack> = Vec::new();
    let (path, store, file, layer) =
        ("its path", "not in the store", "not a file of a layer", "not belong to the layer");
    let mut paths: Vec<(Vec<u8>, &str)> = [
        ("/etc/passwd", path),
        ("../x", path),
        ("..", path),
        (".", path),
        ("", "its path|canonical"),
        ("/", path),
        ("//", path),
        ("etc/passwd", store),
        ("x", store),
        ("prepull-request", store),
        ("overlay", store),
        ("./x", path),
        ("x/..", path),
        ("var", store),
        ("var/lib/containers/storage", store),
        ("var/lib/containers/storage/x", file),
        ("var/lib/containers/storage/overlay", file),
        ("var/lib/containers/storage/overlay/x", file),
        ("var/lib/containers/storage/overlay/l/AAAA", file),
        ("var/lib/containers/storage/overlay/l", file),
        ("var/lib/containers/storage/storage.lock", file),
        ("var/lib/containers/storage/overlay-layers/layers.json", layer),
        ("var/lib/containers/storage/overlay-images/images.json", file),
        ("var/lib/containers/storage/overlay-layers/layers.lock", layer),
        ("var/lib/containers/storage/overlay-containers/containers.json", file),
        ("var/lib/containers/storage/../../../../etc/passwd", path),
        ("var/lib/containers/storage//overlay", path),
        ("var/lib/containers/storage/overlay/diff", file),
        ("var/lib/containers/storage/overlay/../../x/diff", path),
        ("var/lib/containers/storage/.prepull-staging-0", file),
        ("var/lib/containers/storage/.prepull-staging-0/x", file),
        ("var/lib/containers/storage/overlay/.has-mount-program", file),
        ("var/lib/containers/storage/overlay-images/x/manifest", "is not complete"),
    ]
    .map(|(path, why)| (path.as_bytes().to_vec(), why))
    .to_vec();
    for below in
        ["../x", "a/../../x", "..", ".", "./x", "a//b", "/", "x/.", "x/", "x/..", "../../diff/x", "../link", "../lower"]
    {
        paths.push((format!("{at}/{below}").into_bytes(), path));
    }
    paths.push((format!("{}/link", at.trim_end_matches("/diff")).into_bytes(), file));
    paths.push((format!("{}/work", at.trim_end_matches("/diff")).into_bytes(), file));
    paths.push((format!("{}/x", diff(1)).into_bytes(), "not complete yet"));
    paths.push((format!("{}/x", diff(3)).into_bytes(), "not complete yet"));
    paths.push((format!("{outside}/secret").into_bytes(), path));
    paths.push((format!("{at}/a\0b").into_bytes(), "canonical|its path"));
    paths.push(([at.as_bytes(), b"/", &[b'a'; 256]].concat(), path));
    paths.push(([at.as_bytes(), b"/", &b"a/".repeat(2600), b"a"].concat(), path));
    paths.push(([at.as_bytes(), b"/", &b"a".repeat(100_000)].concat(), path));
    paths.push(([at.as_bytes(), b"/missing/x"].concat(), "No such file"));
    paths.push(([at.as_bytes(), b"/file/x"].concat(), "Not a directory"));
    for (path, why) in &paths {
        let shown: String = String::from_utf8_lossy(path).chars().take(100).collect();
        for kind in [Kind::Regular { size: 0 }, Kind::Directory, Kind::Fifo, Kind::Symlink(b"/etc".to_vec())] {
            if path.ends_with(b"/")
                && kind == Kind::Directory
                && path.len() > 1
                && path[..path.len() - 1].ends_with(b"x")
            {
                // `x//` is refused, `x/` of a directory is how it is written.
                continue;
            }
            let name = format!("path {shown:?} as {kind:?}");
            attacks.push((name, why, in_layer(&jail, |stream, _| stream.raw(&with_path(path, kind.clone())))));
        }
        let target = Kind::Hardlink(path.clone());
        let stream = in_layer(&jail, |stream, at| stream.raw(&with_path(format!("{at}/h").as_bytes(), target)));
        let why = if ["its path", "canonical|its path", "its path|canonical", "No such file", "Not a directory"]
            .contains(why)
        {
            why
        } else {
            "outside its tree"
        };
        attacks.push((format!("hard link to {shown:?}"), why, stream));
    }
    all_refused("paths", &jail, &attacks);
}

#[test]
fn links_and_names() {
    if !needs_root("privilege::attacks::links_and_names") {
        return;
    }
    let jail = jail("");
    let outside = jail.at("outside").display().to_string();
    let up = "../".repeat(20);
    let mut attacks: Vec<Attack> = Vec::new();
    let mut add = |name: String, why, make: &dyn Fn(Stream, &str) -> Stream| {
        attacks.push((name, why, in_layer(&jail, make)));
    };
    let (no_directory, there) = ("Not a directory", "File exists");
    for target in
        [&outside[..], &format!("{up}{}", &outside[1..]), "/", "..", ".", "file", "/proc/self/root", "/proc/self/fd/0"]
    {
        let below = |at: &str| format!("{at}/s/x");
        add(format!("file below a link to {target}"), no_directory, &|s, at| {
            s.symlink(format!("{at}/s"), target).file(below(at), b"x")
        });
        add(format!("directory below a link to {target}"), no_directory, &|s, at| {
            s.symlink(format!("{at}/s"), target).dir(below(at))
        });
        add(format!("link below a link to {target}"), no_directory, &|s, at| {
            s.symlink(format!("{at}/s"), target).symlink(below(at), "x")
        });
        add(format!("pipe below a link to {target}"), no_directory, &|s, at| {
            s.symlink(format!("{at}/s"), target).at(below(at), Kind::Fifo)
        });
        add(format!("whiteout below a link to {target}"), no_directory, &|s, at| {
            s.symlink(format!("{at}/s"), target).at(below(at), Kind::CharDevice(Device::WHITEOUT))
        });
        add(format!("hard link below a link to {target}"), no_directory, &|s, at| {
            s.symlink(format!("{at}/s"), target).hardlink(below(at), format!("{at}/file"))
        });
        add(format!("hard link through a link to {target}"), no_directory, &|s, at| {
            s.symlink(format!("{at}/s"), target).hardlink(format!("{at}/h"), format!("{at}/s/secret"))
        });
        add(format!("file where a link to {target} is"), there, &|s, at| {
            s.symlink(format!("{at}/s"), target).file(format!("{at}/s"), b"x")
        });
        add(format!("directory where a link to {target} is"), no_directory, &|s, at| {
            s.symlink(format!("{at}/s"), target).dir(format!("{at}/s"))
        });
        add(format!("file in a directory that a link to {target} has replaced"), there, &|s, at| {
            s.dir(format!("{at}/d")).file(format!("{at}/d/x"), b"").symlink(format!("{at}/d"), target)
        });
    }
    let kinds = [
        Kind::Directory,
        Kind::Regular { size: 0 },
        Kind::Symlink(b"file".to_vec()),
        Kind::Fifo,
        Kind::CharDevice(Device::WHITEOUT),
    ];
    for first in &kinds {
        for second in &kinds {
            if (first, second) == (&Kind::Directory, &Kind::Directory) {
                continue;
            }
            add(
                format!("{first:?}, then {second:?} of the same name"),
                if *second == Kind::Directory { no_directory } else { there },
                &|s, at| s.at(format!("{at}/n"), first.clone()).at(format!("{at}/n"), second.clone()),
            );
        }
        add(format!("{first:?}, then a hard link of the same name"), there, &|s, at| {
            s.at(format!("{at}/n"), first.clone()).hardlink(format!("{at}/n"), format!("{at}/file"))
        });
        if *first != Kind::Directory {
            add(format!("a file below {first:?}"), no_directory, &|s, at| {
                s.at(format!("{at}/n"), first.clone()).file(format!("{at}/n/x"), b"")
            });
            add(format!("{first:?} as a layer"), "not complete yet", &|s, _| s.at(diff(7), first.clone()));
            add(format!("{first:?} instead of the layer"), "the root of a tree is a directory", &|s, at| {
                s.at(at, first.clone())
            });
        }
    }
    for (target, why) in [
        (diff(1), "outside its tree"),
        (format!("{}/file", diff(1)), "outside its tree"),
        (format!("{}/file", diff(3)), "outside its tree"),
        (GRAPHROOT.to_owned(), "outside its tree"),
        ("etc/passwd".to_owned(), "outside its tree"),
        (format!("{GRAPHROOT}/overlay-layers/layers.json"), "outside its tree"),
        (format!("{GRAPHROOT}/storage.lock"), "outside its tree"),
        ("file".to_owned(), "outside its tree"),
        (diff(2), "outside its tree"),
        (format!("{}/missing", diff(2)), "No such file"),
        (format!("{}/h", diff(2)), "No such file"),
        (format!("{}/dir", diff(2)), "a directory"),
        (format!("{}x/file", diff(2)), "outside its tree"),
        (format!("{}/file/x", diff(2)), "Not a directory"),
        (format!("{}/../link", diff(2)), "its path"),
    ] {
        add(format!("hard link to {target}"), why, &|s, at| {
            s.dir(format!("{at}/dir")).hardlink(format!("{at}/h"), &target)
        });
    }
    add("hard link as the layer".to_owned(), "the root of a tree is a directory", &|s, at| {
        s.hardlink(at, format!("{at}/file"))
    });
    add("hard link in another layer".to_owned(), "not complete yet", &|s, at| {
        s.hardlink(format!("{}/h", diff(1)), format!("{at}/file"))
    });
    let linked =
        |s: Stream, at: &str| s.dir(format!("{at}/d")).dir(format!("{at}/d/e")).symlink(format!("{at}/s"), "d");
    let further_up = "Too many levels of symbolic links";
    add("a link further up".to_owned(), further_up, &|s, at| linked(s, at).file(format!("{at}/s/e/x"), b"x"));
    add("a directory behind a link further up".to_owned(), further_up, &|s, at| {
        linked(s, at).dir(format!("{at}/s/e/x"))
    });
    add("a hard link through a link further up".to_owned(), further_up, &|s, at| {
        linked(s, at).file(format!("{at}/d/e/f"), b"").hardlink(format!("{at}/h"), format!("{at}/s/e/f"))
    });
    all_refused("links", &jail, &attacks);
}

#[test]
fn kinds_and_metadata_that_no_policy_allows() {
    if !needs_root("privilege::attacks::kinds_and_metadata_that_no_policy_allows") {
        return;
    }
    let jail = jail("suid = false\nfilecaps = false");
    let mut attacks: Vec<Attack> = Vec::new();
    let one = |jail: &Jail, meta: &Meta, kind: &Kind| {
        let entry = Entry { path: format!("{}/n", diff(2)).into_bytes(), meta: meta.clone(), kind: kind.clone() };
        // A directory has its attributes when it stands there the second time.
        let twice = if *kind == Kind::Directory { 2 } else { 1 };
        in_layer(jail, |stream, _| (0..twice).fold(stream, |stream, _| stream.entry(&entry)))
    };
    let mut add = |name: String, why, meta: Meta, kind: &Kind| attacks.push((name, why, one(&jail, &meta, kind)));
    let empty = Kind::Regular { size: 0 };
    let nodes = [Kind::Fifo, Kind::Symlink(b"x".to_vec()), Kind::CharDevice(Device::WHITEOUT)];
    for kind in [&[empty.clone(), Kind::Directory], &nodes[..]].concat() {
        let why = "4294967295 is not the id of a user or group";
        add(format!("uid of nobody, {kind:?}"), why, Meta { uid: u32::MAX, ..meta(0o644) }, &kind);
        add(format!("gid of nobody, {kind:?}"), why, Meta { gid: u32::MAX, ..meta(0o644) }, &kind);
    }
    let no_devices = "the policy allows no devices";
    for (major, minor) in [(1, 3), (8, 0), (0, 1), (1, 0), (7, 0), (10, 229), (u32::MAX, u32::MAX), (259, 0)] {
        let device = Device { major, minor };
        add(format!("char device {major}:{minor}"), no_devices, meta(0o666), &Kind::CharDevice(device));
        add(format!("block device {major}:{minor}"), no_devices, meta(0o666), &Kind::BlockDevice(device));
    }
    add("block device 0:0".to_owned(), no_devices, meta(0), &Kind::BlockDevice(Device::WHITEOUT));
    let every_kind = [empty.clone(), Kind::Directory].into_iter().chain(nodes.clone());
    for kind in every_kind.chain([Kind::Hardlink(format!("{}/file", diff(2)).into_bytes())]) {
        for mode in [0o4755, 0o2755, 0o6755, 0o7777, 0o4000] {
            add(format!("mode {mode:o} of {kind:?}"), "the policy allows no setuid", meta(mode), &kind);
        }
    }
    let xattr = |name: &[u8], value: &[u8]| Meta { xattrs: vec![(name.to_vec(), value.to_vec())], ..meta(0o755) };
    let capability = xattr(b"security.capability", &[&b"\x01\0\0\x02\0\x04"[..], &[0; 14]].concat());
    add("a file capability".to_owned(), "the policy allows no file capabilities", capability.clone(), &empty);
    add(
        "a capability of a directory".to_owned(),
        "the policy allows no file cap",
        capability.clone(),
        &Kind::Directory,
    );
    let names = ["metacopy", "redirect", "origin", "impure", "nlink", "upper", "uuid", "opaque", "whiteout", ""];
    for name in names.iter().copied().chain(["overlay.opaque"]) {
        for space in ["trusted", "user"] {
            let name = format!("{space}.overlay.{name}");
            let value = if name.contains("redirect") { &b"/etc"[..] } else { b"x" };
            for kind in [&empty, &Kind::Directory, &nodes[0], &nodes[1], &nodes[2]] {
                let why = "an attribute that would steer the overlay";
                add(format!("{name} of {kind:?}"), why, xattr(name.as_bytes(), value), kind);
            }
        }
    }
    let opaque = xattr(b"trusted.overlay.opaque", b"y");
    add("opaque file".to_owned(), "an attribute that would steer the overlay", opaque, &empty);
    all_refused("metadata", &jail, &attacks);

    // What is accepted on purpose: (what, why, meta, kind, attributes that are left out).
    let accepted = [
        ("sticky", "gives nobody anything", meta(0o1755), &empty, 0),
        ("a capability of a pipe", "means nothing, and is left out", capability.clone(), &nodes[0], 1),
        ("a capability of a link", "means nothing, and is left out", capability.clone(), &nodes[1], 1),
        ("a capability of a whiteout", "means nothing, and is left out", capability, &nodes[2], 1),
        ("an attribute of programs", "is left out", xattr(b"trusted.x", b"y"), &empty, 1),
        ("an attribute without a name", "is none, and is left out", xattr(b"", b"y"), &empty, 1),
        ("an attribute of the system", "is left out", xattr(b"security.ima", b"y"), &empty, 1),
    ];
    for (what, why, meta, kind, dropped) in &accepted {
        let jail = Jail::new("suid = false\nfilecaps = false");
        jail.run(By::ForUser).feed(&good(&jail, 1, None).end()).succeeded("a good stream");
        let outcome = jail.run(By::ForUser).feed(&one(&jail, meta, kind));
        assert_eq!(outcome.succeeded(what).dropped, *dropped, "{what} {why}");
        jail.outside_is_unchanged(what);
    }
}

#[test]
fn garbage_for_capabilities() {
    if !needs_root("privilege::attacks::garbage_for_capabilities") {
        return;
    }
    let jail = jail("");
    let of_file = |name: &[u8], value: &[u8]| {
        let meta = Meta { xattrs: vec![(name.to_vec(), value.to_vec())], ..meta(0o755) };
        let entry = Entry { path: format!("{}/n", diff(2)).into_bytes(), meta, kind: Kind::Regular { size: 0 } };
        in_layer(&jail, |stream, _| stream.entry(&entry))
    };
    let garbage = [&b"x"[..], b"garbage", &[0; 4], &[0xff; 20], &[0; 65536], b"\x01\0\0\x09aaaabbbbccccdddd", &[1; 24]];
    let mut attacks: Vec<Attack> = garbage
        .iter()
        .map(|value| (format!("{value:.9?} as capability"), "Invalid argument", of_file(b"security.capability", value)))
        .collect();
    for (name, why) in [
        (&b"user."[..], "Invalid argument"),
        (&[&b"user."[..], &[b'u'; 300]].concat(), "Numerical result"),
        (b"user.a\0b", "canonical|Invalid argument"),
    ] {
        attacks.push((format!("attribute {:.20?}", String::from_utf8_lossy(name)), why, of_file(name, b"v")));
    }
    all_refused("attributes", &jail, &attacks);
    // A name that other readers of tar cut at its first `=`: written again it is the same, so it means one thing only.
    jail.run(By::ForUser).feed(&of_file(b"user.a=b", b"v")).succeeded("an attribute with `=`");
    jail.outside_is_unchanged("an attribute with `=`");
}

#[test]
fn a_root_with_links_in_it() {
    if !needs_root("privilege::attacks::a_root_with_links_in_it") {
        return;
    }
    // Whoever owns the root directory puts links into it before root comes.
    let mut tried = 0;
    for link in [
        "var",
        "var/lib",
        "var/lib/containers",
        "var/lib/containers/storage",
        "var/lib/containers/storage/overlay",
        "var/lib/containers/storage/overlay/l",
        "var/lib/containers/storage/overlay-layers",
        "var/lib/containers/storage/overlay-images",
        "var/lib/containers/storage/overlay-containers",
        "var/lib/containers/storage/storage.lock",
        "var/lib/containers/storage/overlay-layers/layers.lock",
        "var/lib/containers/storage/overlay-images/images.lock",
        "var/lib/containers/storage/overlay-layers/layers.json",
        "var/lib/containers/storage/overlay-images/images.json",
        "var/lib/containers/storage/userns.lock",
    ] {
        let up = "../".repeat(link.matches('/').count() + 1);
        for target in [jail_target(link, ""), jail_target(link, &up)] {
            let jail = Jail::new("");
            let path = jail.root().join(link);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            // As every store has it: where users can enter it, nothing is served at all.
            let _ = fs_err::set_permissions(jail.store().join("overlay"), std::fs::Permissions::from_mode(0o700));
            let outside = jail.at("outside").display().to_string();
            symlink(target.replace("OUTSIDE", &outside), &path).unwrap();
            let what = format!("{link} is a link to {target}");
            let error = jail.run(By::ForUser).feed(&good(&jail, 1, None).end()).refused(&what);
            // On the way to the store links are followed, but never out of the root: there it is not, or it leads to itself.
            let is_way = GRAPHROOT.starts_with(link);
            let parts =
                ["Not a directory", "Too many levels of symbolic links", "a symbolic link to a missing directory"];
            let parts = if is_way { &parts[1..] } else { &parts[..2] };
            // A link in the place of `overlay` is no directory that keeps users out.
            let is_open = link.ends_with("/overlay") && error.contains("users can reach it");
            let is_link = is_open || parts.iter().any(|part| error.contains(part));
            assert!(is_link, "{what}: {error}");
            jail.outside_is_unchanged(&what);
            tried += 1;
        }
    }
    for kind in ["file", "pipe"] {
        for name in ["storage.lock", "overlay", "overlay-layers/layers.json", "overlay-images/images.lock", "overlay/l"]
        {
            let jail = Jail::new("");
            let path = jail.store().join(name);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            let _ = fs_err::set_permissions(jail.store().join("overlay"), std::fs::Permissions::from_mode(0o700));
            if kind == "pipe" {
                jail.ok(&format!("mkfifo {}", path.display()));
            } else if name.ends_with(".json") {
                fs_err::write(&path, "[{").unwrap();
            } else if name.ends_with("lock") {
                fs_err::create_dir(&path).unwrap();
            } else {
                fs_err::write(&path, "").unwrap();
            }
            let error = jail.run(By::ForUser).feed(&good(&jail, 1, None).end()).refused(&format!("{name} is a {kind}"));
            let parts = ["Not a directory", "Invalid argument", "Is a directory", "is damaged", "No such device"];
            let is_open = name == "overlay" && error.contains("users can reach it");
            assert!(is_open || parts.iter().any(|part| error.contains(part)), "{name} is a {kind}: {error}");
            jail.outside_is_unchanged(name);
            tried += 1;
        }
    }
    figure("roots that were prepared for the helper", tried);
}

fn jail_target(link: &str, up: &str) -> String {
    let file = if link.ends_with(".lock") || link.ends_with(".json") { "OUTSIDE/inner/file" } else { "OUTSIDE/inner" };
    if up.is_empty() { file.to_owned() } else { format!("{up}../outside{}", file.strip_prefix("OUTSIDE").unwrap()) }
}

#[test]
fn trees_into_an_empty_directory() {
    if !needs_root("privilege::attacks::trees_into_an_empty_directory") {
        return;
    }
    let mut tried = 0;
    let outside = scratch();
    let target = outside.path().display().to_string();
    let file = |meta: Meta| Entry { path: b"n".to_vec(), meta, kind: Kind::Regular { size: 0 } };
    let capability = Meta { xattrs: vec![(b"security.capability".to_vec(), vec![1; 20])], ..meta(0o755) };
    let own = "the name is prepull's own";
    let linked = || Stream::default().symlink("s", &target);
    let attacks: Vec<(&str, &str, Stream)> = vec![
        ("setuid", "no setuid", Stream::default().entry(&file(meta(0o4755)))),
        ("setgid", "no setuid", Stream::default().entry(&file(meta(0o2755)))),
        ("a capability", "no file capabilities", Stream::default().entry(&file(capability))),
        ("a device", "no devices", Stream::default().at("n", Kind::CharDevice(Device { major: 1, minor: 3 }))),
        ("our tree", own, Stream::default().dir(".prepull-tree")),
        ("our mark", own, Stream::default().file(".prepull-complete", b"")),
        ("our staging", own, Stream::default().dir(".prepull-staging-0")),
        ("a file through a link", "Not a directory", linked().file("s/x", b"")),
        ("a directory through a link", "Not a directory", linked().dir("s/x")),
        ("a hard link through a link", "Not a directory", linked().file("f", b"").hardlink("s/x", "f")),
        ("a hard link out", "its path", Stream::default().hardlink("x", "../canary")),
        ("a path out", "its path", Stream::default().raw(&with_path(b"../x", Kind::Directory))),
        ("an absolute path", "its path", Stream::default().raw(&with_path(b"/x", Kind::Directory))),
        ("a missing directory", "No such file", Stream::default().file("a/b", b"")),
        ("a file twice", "File exists", Stream::default().file("a", b"").file("a", b"")),
    ];
    let empty = || {
        let jail = Jail::rootfs("suid = false\nfilecaps = false");
        fs_err::remove_dir_all(jail.root().join("etc")).unwrap();
        jail
    };
    let jail = empty();
    for (what, why, stream) in attacks {
        let whole = Stream::new("unpack", &jail).file("good", b"x").raw(&stream.0).end();
        let error = jail.run(By::ForUser).feed(&whole).refused(what);
        assert!(error.contains(why), "{what}: {error}");
        assert_eq!(fs_err::read_dir(jail.root()).unwrap().count(), 0, "{what}");
        assert_eq!(fs_err::read_dir(outside.path()).unwrap().count(), 0, "{what}");
        tried += 1;
    }
    // Where users can get to them, setuid programs are for nobody: neither named in the policy nor left to its defaults.
    for more in ["", "suid = true\nfilecaps = false", "suid = false", "suid = false\nfilecaps = false\ndevices = true"]
    {
        let jail = Jail::rootfs(more);
        let error = jail.run(By::Sudo).feed(&Stream::new("unpack", &jail).end()).refused(more);
        assert!(error.contains("users can reach it"), "{more}: {error}");
        jail.outside_is_unchanged(more);
        tried += 1;
    }
    let jail = Jail::rootfs("suid = false\nfilecaps = false");
    for (word, why) in [
        ("unpack", "not empty"),
        ("clear", "not belong to this request"),
        ("install", "another `kind`"),
        ("query", "another `kind`"),
        ("collect", "another `kind`"),
        ("remove", "another `kind`"),
        ("sweep", "another `kind`"),
    ] {
        let error = jail.run(By::ForUser).feed(&Stream::new(word, &jail).file("x", b"").end()).refused(word);
        assert!(error.contains(why), "{word}: {error}");
        jail.outside_is_unchanged(word);
        tried += 1;
    }
    // It is the attack that is refused, and nothing else.
    let jail = empty();
    let stream = Stream::new("unpack", &jail).file("good", b"x").end();
    jail.run(By::Sudo).feed(&stream).succeeded("a good tree");
    assert_eq!(fs_err::read(jail.root().join("good")).unwrap(), b"x");
    figure("hostile trees to the helper", tried);
}

#[test]
fn what_is_not_ours_is_not_taken_for_a_left_over() {
    if !needs_root("privilege::attacks::what_is_not_ours_is_not_taken_for_a_left_over") {
        return;
    }
    // A directory of root's that the user, who owns the one above it, has renamed.
    let mut tried = 0;
    let renamed = |at: &Path| {
        for name in [".prepull-staging-7", ".prepull-tree"] {
            fs_err::create_dir_all(at.join(name)).unwrap();
            fs_err::write(at.join(name).join("of-root"), "x").unwrap();
            fs_err::set_permissions(at.join(name), std::fs::Permissions::from_mode(0o700)).unwrap();
        }
        std::os::unix::fs::chown(at, Some(USER), Some(USER)).unwrap();
    };
    let is_there = |at: &Path, name: &str| at.join(name).join("of-root").exists();
    for word in ["unpack", "clear"] {
        let jail = Jail::rootfs("suid = false\nfilecaps = false");
        fs_err::remove_dir_all(jail.root().join("etc")).unwrap();
        renamed(&jail.root());
        let outcome = jail.run(By::Sudo).feed(&Stream::new(word, &jail).end());
        assert!(word == "clear" || outcome.refused(word).contains("belongs to another user"), "{outcome:?}");
        for name in [".prepull-staging-7", ".prepull-tree"] {
            assert!(is_there(&jail.root(), name), "{word}: {name} is gone");
        }
        tried += 1;
    }
    let jail = jail("");
    renamed(&jail.store());
    for word in ["install", "query", "sweep", "collect"] {
        let outcome = jail.run(By::Sudo).feed(&Stream::new(word, &jail).end());
        assert!(outcome.answer.is_some(), "{word}: {outcome:?}");
        assert!(is_there(&jail.store(), ".prepull-staging-7"), "{word}: {outcome:?}");
        tried += 1;
    }
    std::os::unix::fs::chown(jail.store(), Some(0), Some(0)).unwrap();
    // What others could have made, or is no directory, stays, wherever it is.
    let store = jail.store();
    for (number, mode, owner) in [(1, 0o755, 0), (2, 0o700, USER), (3, 0o770, 0), (4, 0o1700, 0)] {
        let at = store.join(format!(".prepull-staging-{number}"));
        fs_err::create_dir(&at).unwrap();
        fs_err::set_permissions(&at, std::fs::Permissions::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(&at, Some(owner), None).unwrap();
    }
    symlink(jail.at("outside"), store.join(".prepull-staging-5")).unwrap();
    fs_err::write(store.join(".prepull-staging-6"), "").unwrap();
    let outcome = jail.run(By::Sudo).feed(&Stream::new("sweep", &jail).end());
    assert_eq!(outcome.succeeded("sweep").gone.orphans, 1, "the one that is ours: {outcome:?}");
    let left = (1..=7).filter(|number| store.join(format!(".prepull-staging-{number}")).symlink_metadata().is_ok());
    assert_eq!(left.collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    jail.outside_is_unchanged("left-overs");
    figure("left-overs that are not the helper's", tried + 6);
}
