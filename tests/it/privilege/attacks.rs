//! What a stream may say, and what is refused of it: paths, links, kinds, metadata, records, requests, order, limits.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use prepull::entry::{Device, Entry, Kind, Meta};
use prepull::wire;

use super::stream::{Stream, diff, digest, entry, good, id, image_record, layer_record, link, meta, request};
use super::{By, Jail, USER, figure};
use crate::command::needs_root;
use crate::stores::{GRAPHROOT, scratch};

/// A store with layer 1 and image `localhost/good:1`, which podman lists.
fn jail(policy: &str) -> Jail {
    let jail = Jail::new(policy);
    jail.run(By::ForUser).feed(&good(&jail, 1, None).end()).succeeded("a good stream");
    jail.outside_is_unchanged("a good stream");
    jail
}

/// A stream: what it is, parts of the answer (`a|b`), and its bytes.
type Attack = (String, &'static str, Vec<u8>);

/// All of them are refused; then the store is as it was, and takes a good one.
#[track_caller]
fn all_refused(what: &str, jail: &Jail, attacks: &[Attack]) {
    for (number, (name, why, stream)) in attacks.iter().enumerate() {
        // sudo takes its time.
        let by = if number % 8 == 0 { By::Sudo } else { By::ForUser };
        jail.refuses(by, name, why, stream);
    }
    still_works(jail, attacks.len());
    figure(&format!("hostile streams to the helper, {what}"), attacks.len());
}

#[track_caller]
fn still_works(jail: &Jail, tried: usize) {
    let podman = jail.podman();
    assert!(podman.contains("localhost/good:1 "), "after {tried}: {podman}");
    jail.run(By::Sudo).feed(&good(jail, 9, Some(1)).end()).succeeded("a good stream after all");
    assert!(jail.podman().contains("localhost/good:9 "));
    assert_eq!(jail.staging(), 0);
}

/// A stream with one layer, in which `make` puts something after a good file.
fn in_layer(jail: &Jail, make: impl FnOnce(Stream, &str) -> Stream) -> Vec<u8> {
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
    let (path, store, file, layer) = ("its path", "not in the store", "no file of a layer", "not belong to the layer");
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
        ("var/lib/containers/storage/overlay-images/x/manifest", "its image has no valid id"),
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
        let why = "4294967295 is nobody's number";
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
    for mode in [0o4755, 0o2755, 0o6755, 0o7777, 0o4000] {
        add(format!("mode {mode:o}"), "the policy allows no setuid", meta(mode), &empty);
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
        ("setgid directory", "starts no program as anybody", meta(0o2755), &Kind::Directory, 0),
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
fn records_that_do_not_fit() {
    if !needs_root("privilege::attacks::records_that_do_not_fit") {
        return;
    }
    let jail = jail("");
    let mut attacks: Vec<Attack> = Vec::new();
    let lines = layer_record(2, Some(1)).to_lines();
    let many = |count: u32| (0..count).map(|number| (4_000_000_000 + number).to_string()).collect::<Vec<_>>().join(" ");
    let mut records = vec![
        (String::new(), "no small file"),
        ("\n".to_owned(), "`id`"),
        ("id".to_owned(), "`text`"),
        (lines.trim_end().to_owned(), "`text`"),
        ("x".repeat(2 << 20), "`text`"),
        ("x".repeat((2 << 20) + 1), "no small file"),
    ];
    let (time, parent) = ("2024-01-01T00:00:00Z", format!("parent {}\n", id(1)));
    for (from, to, why) in [
        (&id(2)[..], &id(3)[..], "not of the layer before it"),
        (&id(2), "../../x", "`id`"),
        (&id(2), "short", "`id`"),
        (&id(2), "", "`id`"),
        (&id(2), &"F".repeat(64), "`id`"),
        ("id ", "ID ", "`id`"),
        (&link(2), "../../../x", "`link`"),
        (&link(2), "", "`link`"),
        (&link(2), "l/AAAAAAAAAAAAAAAAAAAAAAAA", "`link`"),
        (&link(2), "AAAAAAAAAAAAAAAAAAAAAAAAA/", "`link`"),
        (&link(2), "AAAAAAAAAAAAAAAAAAAAAAAAAAA", "`link`"),
        (&link(2), &link(1), "File exists"),
        (&id(1), &id(2), "not of the layer before it"),
        (&id(1), &id(77), "layers are missing"),
        (&id(1), "x", "`parent`"),
        ("parent", "Parent", "`created`"),
        ("link", &format!("{parent}link"), "`link`"),
        ("created", &format!("{parent}created"), "`created`"),
        (time, "2024-02-30T00:00:00Z", "`created`"),
        (time, "now", "`created`"),
        (time, "", "`created`"),
        (time, "2024-01-01T00:00:00", "`created`"),
        (time, "2024-01-01T00:00:00Z\",\"x\":\"", "`created`"),
        (time, "2024-01-01T24:00:00Z", "`created`"),
        (time, "2024-01-01T00:00:00+24:00", "`created`"),
        ("sha256", "sha512", "`compressed-diff-digest`"),
        ("sha256:", "", "`compressed-diff-digest`"),
        (&digest(2), "sha256:", "`compressed-diff-digest`"),
        ("\ndiff-digest sha256", "\ndiff-digest md5", "`diff-digest`"),
        ("compressed-size 100", "compressed-size -1", "`compressed-size`"),
        ("compressed-size 100", "compressed-size 1e3", "`compressed-size`"),
        ("compressed-size 100", "compressed-size 18446744073709551616", "`compressed-size`"),
        ("compressed-size 100", "compressed-size 9223372036854775808", "`compressed-size`"),
        ("diff-size 1024", "diff-size 99999999999999999999", "`diff-size`"),
        ("diff-size 1024", "diff-size 1024 ", "`diff-size`"),
        ("compression 2", "compression 5", "`compression`"),
        ("compression 2", "compression 9", "`compression`"),
        ("compression 2", "compression x", "`compression`"),
        ("uidset 0", "uidset 4294967296", "`uidset`"),
        ("uidset 0", "uidset 0  1", "`uidset`"),
        ("uidset 0", "uidset 0 x", "`uidset`"),
        ("uidset 0", "uidset ", "`uidset`"),
        ("uidset 0", "uidset +0", "`uidset`"),
        ("uidset 0", "uidset 1 0", "`uidset`"),
        ("uidset 0", "uidset 0 0", "`uidset`"),
        ("uidset 0", "uidset 0 1 1 2", "`uidset`"),
        ("uidset 0", &format!("uidset {}", many(65_537)), "`uidset`"),
        ("gidset 0", "gidset 5 4", "`gidset`"),
        ("gidset 0", "gidset 5 5", "`gidset`"),
        ("gidset 0", &format!("gidset {}", many(65_537)), "`gidset`"),
        ("gidset 0\n", "gidset 0\ngidset 0\n", "`end`"),
        ("gidset 0\n", "gidset 0\nflags incomplete\n", "`end`"),
        ("created", "creaeted", "`created`"),
        ("\n", "\r\n", "`text`"),
        ("id ", "id \u{e9}", "`text`"),
        ("\n", "\0\n", "`text`"),
    ] {
        let changed = lines.replacen(from, to, 1);
        assert_ne!(changed, lines, "{from}");
        records.push((changed, why));
    }
    for (record, why) in &records {
        let stream = Stream::new("install", &jail).dir(diff(2)).split(2).file("prepull-layer", record);
        let shown: String = record.chars().take(500).collect();
        attacks.push((format!("layer record {shown:?}"), why, stream.end()));
    }

    let (config, manifest) = (&b"{}"[..], &b"{\"schemaVersion\":2}"[..]);
    let record = image_record(config, manifest, Some(1), "localhost/bad:1");
    let (key, lines) = (format!("sha256:{}", record.id), record.to_lines());
    let manifest_line = lines.lines().find(|line| line.starts_with("data manifest ")).unwrap();
    let config_line = lines.lines().find(|line| line.starts_with("data sha256:")).unwrap();
    let name = "name localhost/bad:1\n";
    let mut images = vec![(String::new(), "no small file")];
    let more = format!("{name}{name}");
    for (from, to, why) in [
        (&record.id[..], &id(5)[..], "`data`"),
        ("digest sha256:", "digest sha1:", "`digest`"),
        (&id(1), &id(78), "layers are missing"),
        (&id(1), "../x", "`layer`"),
        (name, &more, "`name`"),
        ("localhost/bad:1", "bad", "`name`"),
        ("localhost/bad:1", "bad:1", "`name`"),
        ("localhost/bad:1", "localhost/bad", "`name`"),
        ("localhost/bad:1", "localhost/../bad:1", "`name`"),
        ("localhost/bad:1", "localhost/bad:1\",\"x", "`name`"),
        ("localhost/bad:1", "localhost/bad:1\",\"id\":\"x", "`name`"),
        ("localhost/bad:1", "localhost/Bad:1", "`name`"),
        ("localhost/bad:1", "localhost/bad:", "`name`"),
        ("localhost/bad:1", "", "`name`"),
        ("localhost/bad:1", "localhost/bad:1@sha256:x", "`name`"),
        ("localhost/bad:1", "localhost/bad@sha256:1", "`name`"),
        ("name", "names", "`data`|`end`"),
        (&format!("{manifest_line}\n"), "", "`data`"),
        (&format!("{config_line}\n"), "", "`data`"),
        ("data manifest 19", "data manifest 18", "not of the image before it"),
        ("data manifest 19", "data manifest -1", "`data`"),
        ("data manifest 19", "data manifest", "`data`"),
        ("data manifest", "data ../../x", "`data`"),
        ("data manifest", "data ../manifest", "`data`"),
        ("data manifest", "data =bWFuaWZlc3Q=", "`data`"),
        ("data manifest", "data signature", "`data`"),
        (manifest_line, &format!("{manifest_line}\n{manifest_line}"), "`data`"),
        (manifest_line, &format!("{manifest_line} x"), "`data`"),
        ("created 2024", "created 20x4", "`created`"),
        (time, "2024-01-01 00:00:00", "`created`"),
        (name, "metadata {}\n", "`data`|`end`"),
        ("\n", "\n\n", "`digest`"),
        (" ", "  ", "`id`"),
    ] {
        let changed = lines.replacen(from, to, 1);
        assert_ne!(changed, lines, "{from}");
        images.push((changed, why));
    }
    let files = [("manifest", manifest), (&key[..], config)];
    for (changed, why) in &images {
        let stream = Stream::new("install", &jail).data(&record.id, &files).file("prepull-image", changed);
        attacks.push((format!("image record {changed:?}"), why, stream.end()));
    }
    let fits_not = "an image's record that is not of the image before it";
    for (what, why, files) in [
        ("no files", "a record without its files", vec![]),
        ("no config", fits_not, vec![("manifest", manifest)]),
        ("no manifest", fits_not, vec![(&key[..], config)]),
        ("one more file", fits_not, vec![("manifest", manifest), (&key[..], config), ("more", b"x")]),
        ("a longer config", fits_not, vec![("manifest", manifest), (&key[..], b"{ }")]),
        ("the manifest twice", "File exists", vec![("manifest", manifest), ("manifest", manifest), (&key[..], config)]),
        ("a long key", fits_not, vec![("manifest", manifest), (&key[..], config), (&"k".repeat(254)[..], b"x")]),
        ("a longer key", "its path", vec![("manifest", manifest), (&key[..], config), (&"k".repeat(256)[..], b"x")]),
    ] {
        let stream = Stream::new("install", &jail).data(&record.id, &files).file("prepull-image", &lines);
        attacks.push((format!("image with {what}"), why, stream.end()));
    }
    let directory = format!("{GRAPHROOT}/overlay-images/{}", record.id);
    for (what, kind) in [
        ("a link", Kind::Symlink(b"/etc/passwd".to_vec())),
        ("a directory", Kind::Directory),
        ("a pipe", Kind::Fifo),
        ("a whiteout", Kind::CharDevice(Device::WHITEOUT)),
        ("a hard link", Kind::Hardlink(b"etc/passwd".to_vec())),
    ] {
        let stream = Stream::new("install", &jail).at(format!("{directory}/manifest"), kind.clone());
        let stream = stream.data(&record.id, &files[1..]).file("prepull-image", &lines).end();
        attacks.push((format!("{what} as the manifest"), "not belong to the image", stream));
        let split = format!("{GRAPHROOT}/overlay-layers/{}.tar-split.gz", id(2));
        let stream = Stream::new("install", &jail).dir(diff(2)).at(split, kind.clone());
        let stream = stream.file("prepull-layer", layer_record(2, None).to_lines()).end();
        attacks.push((format!("{what} as the tar-split"), "no regular file", stream));
        for (name, why) in [
            ("prepull-layer", "no small file"),
            ("prepull-image", "no small file"),
            ("prepull-request", "not in the store"),
        ] {
            let stream = Stream::new("install", &jail).dir(diff(2)).split(2).at(name, kind.clone()).end();
            attacks.push((format!("{what} as {name}"), why, stream));
        }
    }
    // Its record is read when the layer is there, which others' directories are in: what publishes may not remove them.
    let of_user = Meta { uid: 1000, gid: 1000, ..meta(0o700) };
    let theirs = Entry { path: format!("{}/d", diff(2)).into_bytes(), meta: of_user, kind: Kind::Directory };
    let stream = Stream::new("install", &jail).dir(diff(2)).entry(&theirs).file(format!("{}/d/f", diff(2)), b"x");
    let stream = stream.entry(&theirs).split(2).file("prepull-layer", "id x\n").end();
    attacks.push(("a bad record of a layer of others' directories".to_owned(), "`id`", stream));
    all_refused("records", &jail, &attacks);

    // What is accepted on purpose. As many owners as a layer may have.
    let lines = layer_record(2, Some(1)).to_lines().replace("uidset 0\n", &format!("uidset {}\n", many(65_536)));
    let lines = lines.replace("gidset 0\n", &format!("gidset {}\n", many(65_536)));
    let stream = Stream::new("install", &jail).dir(diff(2)).split(2).file("prepull-layer", lines).end();
    jail.run(By::ForUser).feed(&stream).succeeded("65536 owners and groups");
    // Content is not looked into: who may install is trusted with that of all images (`src/helper/mod.rs`).
    let files = [("manifest", manifest), (&key[..], &b"[]"[..])];
    let stream = Stream::new("install", &jail).data(&record.id, &files).file("prepull-image", record.to_lines()).end();
    jail.run(By::ForUser).feed(&stream).succeeded("another config of the same length");
    jail.outside_is_unchanged("records that are accepted");
}

#[test]
fn requests_and_order() {
    if !needs_root("privilege::attacks::requests_and_order") {
        return;
    }
    let jail = jail("");
    let mut attacks: Vec<Attack> = Vec::new();
    let good_lines = request("install", &jail);
    let here = jail.root_number();
    let (device, inode) = here.split_once(':').unwrap();
    let store = &format!("/{GRAPHROOT}")[..];
    let graphroot = format!("graphroot {store}\n");
    let (version, word, no_graphroot) = ("another version", "the word is unknown", "it has no graphroot");
    let (elsewhere, other_store, more) = ("another directory", "another graphroot", "more lines");
    let mut requests = vec![
        (String::new(), "no small file"),
        ("\n".to_owned(), version),
        ("prepull 1".to_owned(), version),
        ("prepull 1\n".to_owned(), "it has no word"),
        ("x".repeat(2 << 20), version),
        ("x".repeat((2 << 20) + 1), "no small file"),
        (format!("{good_lines}\n"), more),
        (format!("{good_lines}layer {}\n", id(1)), more),
        (good_lines.trim_end().to_owned(), elsewhere),
        (format!("\u{feff}{good_lines}"), version),
        (good_lines.to_uppercase(), version),
        (good_lines.replace('\n', "\r\n"), version),
        ("{\"request\":\"install\"}\n".to_owned(), version),
        (format!("{}name bad\n", good_lines.replace("install", "sweep")), more),
        (format!("{}name bad\n", good_lines.replace("install", "collect")), more),
        (format!("{}x\n", good_lines.replace("install", "query")), "`end`"),
        (format!("{}layer ../x\n", good_lines.replace("install", "query")), "`layer`"),
        (format!("{}layer {}0\n", good_lines.replace("install", "query"), id(1)), "`layer`"),
    ];
    for (from, to, why) in [
        ("prepull 1", "prepull 2", version),
        ("prepull 1", "prepull 1 ", version),
        ("prepull 1", "prepull 01", version),
        ("prepull 1", "prepull", version),
        ("prepull 1\n", "", version),
        ("install", "Install", word),
        ("install", "", word),
        ("install", "install ", word),
        ("install", "everything", word),
        ("install", "unpack", word),
        ("install", "clear", word),
        ("install", "restore", word),
        ("install", "query\0", word),
        (store, "/", other_store),
        (store, "/etc", other_store),
        (store, "/srv", other_store),
        (store, "/var/lib/containers/storage/", other_store),
        (store, "/var/lib/../lib/containers/storage", other_store),
        (store, "", other_store),
        (&graphroot, "", no_graphroot),
        (&here, "0:0", elsewhere),
        (&here, "", elsewhere),
        (&here, &format!("{device}:1"), elsewhere),
        (&here, &format!("0{here}"), elsewhere),
        (&here, &format!("1{here}"), elsewhere),
        (&here, &format!("{device}:+{inode}"), elsewhere),
        (&here, &format!("{here}:"), elsewhere),
        ("root ", "root  ", other_store),
        ("\nroot ", "\nroot  ", elsewhere),
        ("request install\n", "request install\nrequest install\n", no_graphroot),
        ("request install\n", "request remove\nname ../x\n", no_graphroot),
        ("request install", "request collect", "not belong to this request"),
    ] {
        let changed = good_lines.replacen(from, to, 1);
        assert_ne!(changed, good_lines, "{from}");
        requests.push((changed, why));
    }
    for (lines, why) in &requests {
        let is_query = lines.contains("request query\n");
        let stream = Stream::default().file("prepull-request", lines);
        let stream = if is_query { stream } else { stream.layer(2, Some(1)) };
        attacks.push((format!("request {:?}", lines.chars().take(150).collect::<String>()), why, stream.end()));
    }
    for (line, why) in [
        ("name bad", "`name`"),
        ("name localhost/absent:1", "no such image"),
        ("id ../x", "`id`"),
        ("id ", "`id`"),
        // As few digits are a slip.
        ("id 5", "`id`"),
        ("id 5f", "`id`"),
        ("id 5F3", "`id`"),
        ("id 5f4", "no such image"),
        (&format!("id {}", id(1)), "no such image"),
        (&format!("id {}0", id(1)), "`id`"),
        ("id 5f3\nname localhost/good:1\n", "`end`"),
        ("x", "`end`"),
    ] {
        let lines = format!("{}{line}\n", request("remove", &jail));
        attacks.push((format!("remove {line}"), why, Stream::default().file("prepull-request", lines).end()));
    }
    let other_inode = std::os::unix::fs::MetadataExt::ino(&fs_err::metadata(jail.at("outside")).unwrap());
    let text = good_lines.replace(&here, &format!("{device}:{other_inode}"));
    let stream = Stream::default().file("prepull-request", text).layer(2, None).end();
    attacks.push(("another directory".to_owned(), elsewhere, stream));

    let start = || Stream::new("install", &jail);
    let second = diff(3);
    let image = b"{}";
    let name = "localhost/a:1";
    let zipped = crate::made::gzip(&start().layer(2, None).end());
    attacks.push(("a compressed tar".to_owned(), "canonical|ends before its end", zipped));
    let (begin, open, incomplete) = ("the stream does not begin with it", "not complete yet", "is not complete");
    let (alone, none) = ("a record without its files", "layers are missing");
    let mut add = |name: &str, why, stream: Stream| attacks.push((name.to_owned(), why, stream.end()));
    add("no request", begin, Stream::default().layer(2, None));
    add("nothing at all", begin, Stream::default());
    add("the request twice", "not in the store", start().raw(&start().0));
    add("two open layers", open, start().dir(diff(2)).dir(&second).end_layer(2, None).end_layer(3, None));
    add("a file of the next layer", open, start().dir(diff(2)).file(format!("{second}/x"), b"").end_layer(2, None));
    add("a layer without a record", incomplete, start().dir(diff(2)).split(2));
    let lines = layer_record(2, None).to_lines();
    add("a layer without a tar-split", alone, start().dir(diff(2)).file("prepull-layer", &lines));
    add("two tar-splits", "not belong to the layer", start().dir(diff(2)).split(2).split(2).end_layer(2, None));
    add("a tar-split of another", open, start().dir(diff(2)).split(3));
    let split = format!("{GRAPHROOT}/overlay-layers/{}.tar-split.gz", id(2));
    add("a tar-split before its layer", "not belong to the layer", start().file(split, b""));
    add("a record alone", alone, start().file("prepull-layer", &lines));
    add("a record twice", alone, start().layer(2, None).file("prepull-layer", &lines));
    add("a layer twice", "File exists", start().layer(2, None).layer(2, None));
    let lines = image_record(image, image, None, name).to_lines();
    add("an image's record alone", alone, start().file("prepull-image", lines));
    add("an image twice", "File exists", start().image(image, Some(1), name).image(image, Some(1), name));
    add("an image in a layer", "not belong to the image", start().dir(diff(2)).image(image, Some(1), name));
    add("a layer in an image", open, start().data(&id(4), &[("manifest", b"")]).layer(2, None));
    let two = start().data(&id(4), &[("manifest", b"")]).data(&id(5), &[("manifest", b"")]);
    add("two open images", "not belong to the image", two);
    add("an image without a record", incomplete, start().data(&id(4), &[("manifest", b"")]));
    add("a layer that begins with a file", open, start().file(format!("{}/x", diff(2)), b"").end_layer(2, None));
    add("a parent that is nowhere", none, start().layer(2, Some(50)));
    add("an image of a layer that is nowhere", none, start().image(image, Some(50), name));
    add("a layer on itself", "not of the layer before it", start().layer(2, Some(2)));
    add("parents in a circle", none, start().layer(2, Some(3)).layer(3, Some(2)));
    add("a child before its parent", none, start().layer(3, Some(2)).layer(2, None));
    add(
        "an entry after the end of a collect",
        "not belong to this request",
        Stream::new("collect", &jail).dir(diff(2)),
    );
    add("an entry after the end of a sweep", "not belong to this request", Stream::new("sweep", &jail).dir(diff(2)));
    add("an entry after the end of a remove", "not belong to this request", Stream::new("remove", &jail).dir(diff(2)));
    add("a file in a query", "not belong to a query", Stream::new("query", &jail).file("x", b""));
    add("a layer in a query", "not belong to a query", Stream::new("query", &jail).dir(diff(2)));
    add("a tree into a store", word, Stream::new("unpack", &jail).file("x", b""));
    let (no_id, no_image) = ("its layer has no valid id", "its image has no valid id");
    add("a layer id of 63 digits", no_id, start().dir(format!("{GRAPHROOT}/overlay/{}/diff", &id(2)[1..])));
    add("a layer id in capitals", no_id, start().dir(format!("{GRAPHROOT}/overlay/{}/diff", "A".repeat(64))));
    add("an image id of 63 digits", no_image, start().data(&id(2)[1..], &[("manifest", b"")]));
    let mut many = start();
    for number in 100..601 {
        many = many.layer(number, (number > 100).then(|| number - 1));
    }
    let too_deep = many.end();
    all_refused("requests and order", &jail, &attacks);

    // What these two publish before they fail is named by no record, and goes with `gc`.
    let before = records(&jail);
    jail.run(By::ForUser).feed(&too_deep).refused("501 layers on each other");
    let twice = layer_record(3, Some(1)).to_lines().replace(&link(3), &link(2));
    let stream = start().layer(2, Some(1)).dir(diff(3)).split(3).file("prepull-layer", twice);
    jail.run(By::ForUser).feed(&stream.end()).refused("one short name for two new layers");
    jail.outside_is_unchanged("layers that are not published");
    assert_eq!(records(&jail), before);
    let gone = jail.run(By::ForUser).feed(&Stream::new("collect", &jail).end());
    assert!(gone.succeeded("collect").gone.orphans > 0);
    still_works(&jail, 2);

    // What is there already is taken for done, not made again.
    let again = jail.run(By::Sudo).feed(&good(&jail, 1, None).end());
    let done = &again.succeeded("a layer id that is there").done;
    assert_eq!((done.layers, done.images, done.names), (0, 0, 0));
    // Three digits are enough, when they are no other image's.
    let lines = format!("{}id 5f3\n", request("remove", &jail));
    let gone = jail.run(By::ForUser).feed(&Stream::default().file("prepull-request", lines).end());
    assert_eq!(gone.succeeded("an id of three digits").gone.names, ["localhost/good:1"]);
}

fn records(jail: &Jail) -> Vec<String> {
    jail.published().lines().filter(|line| line.contains(".json: ")).map(str::to_owned).collect()
}

#[test]
fn over_the_limits() {
    if !needs_root("privilege::attacks::over_the_limits") {
        return;
    }
    let jail = jail("max_bytes = 100000\nmax_inodes = 40\nmax_seconds = 30");
    let mut attacks: Vec<Attack> = Vec::new();
    let sized = |size| entry(format!("{}/big", diff(2)), Kind::Regular { size });
    for size in [100_001, 1 << 20, 1 << 40, i64::MAX as u64] {
        attacks.push((format!("{size} bytes"), "max_bytes", in_layer(&jail, |stream, _| stream.entry(&sized(size)))));
    }
    attacks.push((
        "many small files".to_owned(),
        "max_bytes",
        in_layer(&jail, |mut stream, at| {
            for number in 0..20 {
                stream = stream.file(format!("{at}/{number}"), vec![b'x'; 6000]);
            }
            stream
        }),
    ));
    for (what, kind) in [
        ("files", Kind::Regular { size: 0 }),
        ("directories", Kind::Directory),
        ("links", Kind::Symlink(b"x".to_vec())),
        ("pipes", Kind::Fifo),
        ("whiteouts", Kind::CharDevice(Device::WHITEOUT)),
    ] {
        attacks.push((
            format!("too many {what}"),
            "max_inodes",
            in_layer(&jail, |mut stream, at| {
                for number in 0..40 {
                    stream = stream.at(format!("{at}/{number}"), kind.clone());
                }
                stream
            }),
        ));
    }
    let mut many = Stream::new("install", &jail);
    for number in 10..51 {
        many = many.dir(diff(number)).end_layer(number, None);
    }
    attacks.push(("too many layers".to_owned(), "max_inodes", many.end()));
    let mut many = Stream::new("install", &jail);
    for number in 10..51_u32 {
        many = many.image(number.to_string().as_bytes(), Some(1), &format!("localhost/a:{number}"));
    }
    attacks.push(("too many images".to_owned(), "max_inodes", many.end()));
    let big = vec![b'x'; (16 << 20) + 1];
    attacks.push((
        "a big manifest".to_owned(),
        "is too much",
        Stream::new("install", &jail).data(&id(4), &[("manifest", &big)]).end(),
    ));
    all_refused("limits", &jail, &attacks);
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
            let outside = jail.at("outside").display().to_string();
            symlink(target.replace("OUTSIDE", &outside), &path).unwrap();
            let what = format!("{link} is a link to {target}");
            let error = jail.run(By::ForUser).feed(&good(&jail, 1, None).end()).refused(&what);
            let is_link = error.contains("Not a directory") || error.contains("Too many levels of symbolic links");
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
            assert!(parts.iter().any(|part| error.contains(part)), "{name} is a {kind}: {error}");
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

#[test]
fn records_that_could_not_be_read_again_are_not_written() {
    if !needs_root("privilege::attacks::records_that_could_not_be_read_again_are_not_written") {
        return;
    }
    let jail = jail("");
    // As large as is read, to the byte (`RECORDS_MAX` in the helper's store).
    let path = jail.store().join("overlay-layers/layers.json");
    let records = fs_err::read_to_string(&path).unwrap();
    let (head, tail) = ("[{\"metadata\":\"", format!("\",{}", records.strip_prefix("[{").unwrap()));
    let full = [head, &"x".repeat((256 << 20) - head.len() - tail.len()), &tail].concat();
    fs_err::write(&path, &full).unwrap();
    let error = jail.run(By::ForUser).feed(&good(&jail, 2, Some(1)).end()).refused("one layer too many");
    assert!(error.contains("writing layers.json: File too large"), "{error}");
    assert!(fs_err::read_to_string(&path).unwrap() == full, "the records have changed");
    // The way out.
    let lines = format!("{}name localhost/good:1\n", request("remove", &jail));
    let outcome = jail.run(By::ForUser).feed(&Stream::default().file("prepull-request", lines).end());
    assert_eq!(outcome.succeeded("rm").gone.layers, 1);
    assert!(fs_err::metadata(&path).unwrap().len() < 1000);
    jail.run(By::ForUser).feed(&good(&jail, 1, None).end()).succeeded("a good stream again");
}
