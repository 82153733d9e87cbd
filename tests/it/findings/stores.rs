//! Stores in tars and directories: what unpacking them changes, and what `ls`, `verify`, `why` and `diff` make of them.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{hello, needs_root, prepull, succeeds};
use crate::stores::{Clock, GRAPHROOT, Time, Tree, scratch, walk};

/// The program that unpacks a tar for `--unpacker`, and its arguments before the tar's name.
const UNPACKERS: [(&str, &[&str]); 5] = [
    ("gnu", &["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"]),
    // Without -P, bsdtar refuses to follow any link.
    ("gnu", &["bsdtar", "-xpPf"]),
    ("busybox", &["tar", "-xf"]),
    ("busybox", &["busybox", "tar", "-xf"]),
    ("busybox", &["busybox", "tar", "-o", "-xf"]),
];

/// Directories of a machine that a tar with a store in `var/lib/containers/storage` puts something into.
const DIRECTORIES: [&str; 13] = [
    "etc",
    "etc/containers",
    "etc/crio",
    "etc/crio/crio.conf.d",
    "etc/init.d",
    "usr",
    "usr/share",
    "usr/share/prepull",
    "usr/share/prepull/var-lib-containers-storage",
    "var",
    "var/lib",
    "var/lib/containers",
    GRAPHROOT,
];

/// Makes a machine's root with [`DIRECTORIES`], none of them as a tar would make it, of which `links` are symbolic links.
fn machine(root: &Path, links: &[&str]) {
    for directory in DIRECTORIES {
        let path = root.join(directory);
        if links.contains(&directory) {
            let disk = format!("disk/{}", directory.replace('/', "-"));
            fs_err::create_dir_all(root.join(&disk)).unwrap();
            // From where the link really is: its own path may lead through links.
            let place = fs_err::canonicalize(path.parent().unwrap()).unwrap();
            let depth = place.strip_prefix(fs_err::canonicalize(root).unwrap()).unwrap().components().count();
            symlink(PathBuf::from("../".repeat(depth)).join(&disk), &path).unwrap();
        } else {
            fs_err::create_dir(&path).unwrap();
        }
        fs_err::write(path.join("here"), directory).unwrap();
        // A graphroot of another user is refused by `install`.
        if directory != GRAPHROOT {
            std::os::unix::fs::chown(&path, Some(7), Some(8)).unwrap();
        }
        fs_err::set_permissions(&path, PermissionsExt::from_mode(0o711)).unwrap();
    }
    for directory in DIRECTORIES {
        let status = Command::new("touch").args(["-d", "@77"]).arg(root.join(directory)).status().unwrap();
        assert!(status.success());
    }
}

/// What unpacking must leave of a directory: whether it is a link, mode, owner, and the time if nothing was put into it.
type Kept = (bool, u32, (u32, u32), i64);

fn kept(root: &Path) -> BTreeMap<&'static str, (Kept, BTreeSet<std::ffi::OsString>)> {
    let look = |directory: &'static str| {
        let path = root.join(directory);
        let (itself, target) = (fs_err::symlink_metadata(&path).unwrap(), fs_err::metadata(&path).unwrap());
        let names = fs_err::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(fs_err::read_to_string(path.join("here")).unwrap(), directory, "{directory} is another directory");
        let owner = (target.uid(), target.gid());
        (directory, ((itself.is_symlink(), target.mode(), owner, target.mtime()), names))
    };
    DIRECTORIES.into_iter().map(look).collect()
}

#[track_caller]
fn unpack(unpacker: &[&str], tar: &Path, root: &Path) {
    let mut command = Command::new(unpacker[0]);
    let output = command.args(&unpacker[1..]).arg(tar).arg("-C").arg(root).env("LC_ALL", "C").output().unwrap();
    assert!(output.status.success(), "{unpacker:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What is in the graphroot, without the graphroot itself and without the machine's own file.
fn store(root: &Path) -> Tree {
    let mut tree = walk(&root.join(GRAPHROOT).join("."), &Clock::stamp());
    tree.remove(".");
    tree.remove("here");
    // busybox does not set the times of links, and fills directories after it has set theirs.
    for node in tree.values_mut().filter(|node| matches!(node.kind, "dir" | "symlink")) {
        node.time = Time::Made;
    }
    tree
}

fn make(at: &Path, arguments: &[&str], tar: &Path) {
    let mut command = prepull(at);
    succeeds(
        command.args(["make", "--quiet", "--platform", "linux/amd64", "-o"]).arg(tar).args(arguments).arg(hello()),
    );
}

#[test]
fn a18_tar_has_no_entry_for_directories_outside_the_graphroot() {
    let directory = scratch();
    let tar = directory.path().join("images.tar");
    for (arguments, graphroot) in [
        (&["--unpacker", "busybox"][..], "var/lib/containers/storage/"),
        (&["--unpacker", "gnu"], "var/lib/containers/storage/"),
        (&["--unpacker", "gnu", "--store", "additional"], "usr/lib/containers/storage/"),
        (&["--unpacker", "busybox", "--graphroot", "/data/images"], "data/images/"),
        (&["--unpacker", "busybox", "--no-config", "--graphroot", "/images"], "images/"),
    ] {
        make(directory.path(), arguments, &tar);
        let output = Command::new("tar").arg("-tf").arg(&tar).output().unwrap();
        let names = String::from_utf8(output.stdout).unwrap();
        let strange: Vec<&str> = names
            .lines()
            .filter(|name| name.ends_with('/') && (*name == graphroot || !name.starts_with(graphroot)))
            .collect();
        assert_eq!(strange, Vec::<&str>::new(), "{arguments:?}");
        assert!(names.lines().any(|name| name == format!("{graphroot}overlay/")), "{arguments:?}: {names}");
        let verified = succeeds(prepull(directory.path()).args(["verify", "--strict"]).arg(&tar));
        assert!(verified.contains("good"), "{arguments:?}: {verified}");
        assert!(succeeds(prepull(directory.path()).arg("ls").arg(&tar)).contains("localhost/hello"), "{arguments:?}");
    }
}

#[test]
fn a18_unpacking_leaves_the_machines_directories_and_follows_links() {
    if !needs_root("findings::stores::a18_unpacking_leaves_the_machines_directories_and_follows_links") {
        return;
    }
    let directory = scratch();
    let at = directory.path();
    for unpacker in ["gnu", "busybox"] {
        make(at, &["--unpacker", unpacker], &at.join(unpacker));
    }
    let mut cases: Vec<Vec<&str>> = DIRECTORIES.iter().map(|directory| vec![*directory]).collect();
    cases.extend([vec![], vec!["var/lib/containers", GRAPHROOT], DIRECTORIES.to_vec()]);
    for (tar, unpacker) in UNPACKERS {
        let tar = at.join(tar);
        let fresh = at.join("fresh");
        fs_err::create_dir(&fresh).unwrap();
        unpack(unpacker, &tar, &fresh);
        for (path, node) in walk(&fresh, &Clock::stamp()) {
            let is_outside = path != "." && !path.starts_with(&format!("{GRAPHROOT}/")) && node.kind == "dir";
            assert!(!is_outside || (node.mode, node.owner) == (0o755, (0, 0)), "{unpacker:?}: {path}: {node:?}");
        }
        for links in &cases {
            let root = at.join("root");
            fs_err::create_dir(&root).unwrap();
            machine(&root, links);
            let before = kept(&root);
            unpack(unpacker, &tar, &root);
            for (path, (after, names)) in kept(&root) {
                let (mut expected, old_names) = before[path].clone();
                if names != old_names {
                    expected.3 = after.3;
                }
                assert_eq!(after, expected, "{unpacker:?}, links {links:?}: {path}");
            }
            assert!(store(&root) == store(&fresh), "{unpacker:?}, links {links:?}: another store");
            assert!(root.join("etc/crio/crio.conf.d/10-prepull.conf").is_file());
            let listed = succeeds(prepull(at).arg("ls").arg(&root));
            assert!(listed.contains("localhost/hello"), "{unpacker:?}, links {links:?}: {listed}");
            fs_err::remove_dir_all(&root).unwrap();
        }
        fs_err::remove_dir_all(&fresh).unwrap();
    }
}

#[test]
fn a18_install_leaves_the_machines_directories_and_follows_links() {
    if !needs_root("findings::stores::a18_install_leaves_the_machines_directories_and_follows_links") {
        return;
    }
    let directory = scratch();
    let at = directory.path();
    let levels = ["var", "var/lib", "var/lib/containers", GRAPHROOT];
    for links in [&[][..], &levels[..1], &levels[1..2], &levels[2..3], &levels[3..], &levels] {
        let root = at.join("root");
        fs_err::create_dir(&root).unwrap();
        machine(&root, links);
        let before = kept(&root);
        succeeds(
            prepull(at).args(["install", "--quiet", "--platform", "linux/amd64", "--root"]).arg(&root).arg(hello()),
        );
        let mut after = kept(&root);
        for (path, (before, _)) in before.iter().filter(|(path, _)| **path != GRAPHROOT) {
            assert_eq!(after.remove(path).unwrap().0, *before, "links {links:?}: {path}");
        }
        assert!(succeeds(prepull(at).arg("ls").arg(&root)).contains("localhost/hello"), "links {links:?}");
        succeeds(prepull(at).args(["rm", "--root"]).arg(&root).arg("localhost/hello:v1"));
        assert!(!succeeds(prepull(at).arg("ls").arg(&root)).contains("localhost/hello"), "links {links:?}");
        fs_err::remove_dir_all(&root).unwrap();
    }

    // A link leads nowhere but into the root, and a missing disk is no directory to make.
    let root = at.join("root");
    fs_err::create_dir_all(root.join("var/lib")).unwrap();
    fs_err::create_dir(at.join("outside")).unwrap();
    symlink(at.join("outside"), root.join("var/lib/containers")).unwrap();
    let mut command = prepull(at);
    command.args(["install", "--platform", "linux/amd64", "--root"]).arg(&root).arg(hello());
    crate::command::fails(&mut command, 1, "opening /var/lib/containers");
    assert_eq!(fs_err::read_dir(at.join("outside")).unwrap().count(), 0);

    let empty = at.join("empty");
    fs_err::create_dir(&empty).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", r#"umask 077 && exec "$@""#, "sh", env!("CARGO_BIN_EXE_prepull")]).env("HOME", at);
    command.args(["install", "--rootfs", "--quiet", "--platform", "linux/amd64", "--root"]).arg(&empty).arg(hello());
    succeeds(&mut command);
    for (path, node) in walk(&empty, &Clock::stamp()) {
        let is_outside = path != "." && !path.starts_with(GRAPHROOT) && node.kind == "dir";
        assert!(!is_outside || (node.mode, node.owner) == (0o755, (0, 0)), "{path}: {node:?}");
    }
}
