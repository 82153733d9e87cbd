//! Stores in tars and directories: what unpacking them changes, and what `ls`, `verify`, `why` and `diff` make of them.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::command::{fails, hello, needs_root, prepull, stderr, succeeds};
use crate::made::gzip;
use crate::raw::{archive, dir, file};
use crate::stores::{Clock, GRAPHROOT, Time, Tree, scratch, skopeo_into, unpack_gnu, walk};

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
    fails(&mut command, 1, "opening /var/lib/containers");
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

/// A tar with one image, and the root of a machine that has unpacked it. Needs root.
struct Machine {
    at: tempfile::TempDir,
    tar: PathBuf,
}

impl Machine {
    fn new() -> Self {
        let at = scratch();
        let tar = at.path().join("images.tar");
        make(at.path(), &["--unpacker", "gnu"], &tar);
        let machine = Self { at, tar };
        machine.unpack("root");
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.at.path().join(path)
    }

    fn unpack(&self, root: &str) -> PathBuf {
        let root = self.path(root);
        unpack_gnu(&self.tar, &root).unwrap();
        root
    }

    /// Runs `prepull`, which must not wait for anything.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args(["60", env!("CARGO_BIN_EXE_prepull")]).args(arguments).env("HOME", self.at.path());
        command.current_dir(self.at.path()).output().unwrap()
    }

    /// The exit code of `verify`, and what it says.
    fn verify(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.run(&[&["verify"], arguments].concat());
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned() + &stderr(&output))
    }
}

#[test]
fn a05_diff_and_verify_ignore_labels_of_the_machine() {
    if !needs_root("findings::stores::a05_diff_and_verify_ignore_labels_of_the_machine") {
        return;
    }
    let machine = Machine::new();
    let script = r#"find "$1" -exec setfattr -h -n security.selinux -v u:o:t:s0 {} + &&
        find "$1" ! -type l -exec setfattr -n security.ima -v 0x0404 {} +"#;
    succeeds(Command::new("sh").args(["-c", script, "sh"]).arg(machine.path("root")));
    let output = machine.run(&["diff", "images.tar", "root"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    let (code, text) = machine.verify(&["--strict", "root"]);
    assert_eq!(code, Some(0), "{text}");
    // An attribute of the image's own kind still counts.
    let file = machine.path("root").join(GRAPHROOT).join("overlay/l");
    let layer = fs_err::read_dir(file).unwrap().next().unwrap().unwrap().path();
    succeeds(Command::new("setfattr").args(["-n", "user.note", "-v", "x"]).arg(fs_err::canonicalize(layer).unwrap()));
    assert_eq!(machine.run(&["diff", "images.tar", "root"]).status.code(), Some(1));
}

#[test]
fn a07_records_are_read_within_the_root_and_only_regular_files() {
    if !needs_root("findings::stores::a07_records_are_read_within_the_root_and_only_regular_files") {
        return;
    }
    let machine = Machine::new();
    let graph = machine.path("root").join(GRAPHROOT);
    let image = graph.join("overlay-images");
    let image =
        fs_err::read_dir(&image).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    let config = fs_err::read_dir(&image).unwrap().map(|entry| entry.unwrap().path());
    let config = config.into_iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with("=c2hhMjU2O"));
    let split = fs_err::read_dir(graph.join("overlay-layers")).unwrap().map(|entry| entry.unwrap().path());
    let split = split.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "gz")).unwrap();
    let records = [graph.join("overlay-images/images.json"), graph.join("overlay-layers/layers.json")];
    for path in records.iter().chain([&config.unwrap(), &split]) {
        let original = fs_err::read(path).unwrap();
        let outside = machine.path("outside");
        fs_err::write(&outside, &original).unwrap();
        let is_record = records.contains(path);
        let pipe = |path: &Path| succeeds(Command::new("mkfifo").arg(path));
        type Make<'a> = &'a dyn Fn(&Path);
        let kinds: [(&str, Make<'_>); 5] = [
            ("a link to outside", &|path| symlink(&outside, path).unwrap()),
            ("a relative link to outside", &|path| symlink("../../../../../../../outside", path).unwrap()),
            ("a link to the kernel's log", &|path| symlink("/proc/kmsg", path).unwrap()),
            ("a pipe", &|path| drop(pipe(path))),
            ("a directory", &|path| fs_err::create_dir(path).unwrap()),
        ];
        for (kind, replace) in kinds {
            fs_err::remove_file(path).unwrap();
            replace(path);
            let what = format!("{} is {kind}", path.display());
            let (code, text) = machine.verify(&["root"]);
            assert_eq!(code, Some(1), "{what}: {text}");
            if is_record {
                for arguments in
                    [&["ls", "root"][..], &["why", "root", "localhost/hello:v1"], &["diff", "root", "root"]]
                {
                    let output = machine.run(arguments);
                    assert_eq!(output.status.code(), Some(2), "{what}: {arguments:?}: {}", stderr(&output));
                }
            }
            if path.is_dir() && !path.is_symlink() { fs_err::remove_dir(path) } else { fs_err::remove_file(path) }
                .unwrap();
            fs_err::write(path, &original).unwrap();
        }
        // Within the root, a link is followed as the machine follows it.
        fs_err::rename(path, machine.path("root/elsewhere")).unwrap();
        symlink("/elsewhere", path).unwrap();
        let (code, text) = machine.verify(&["root"]);
        assert_eq!(code, Some(0), "{}: {text}", path.display());
        fs_err::remove_file(path).unwrap();
        fs_err::rename(machine.path("root/elsewhere"), path).unwrap();
    }

    // The way to the store may lead through links of the machine, which are not those of this host.
    let moved = machine.unpack("moved");
    fs_err::create_dir(moved.join("data")).unwrap();
    fs_err::rename(moved.join("var/lib/containers"), moved.join("data/containers")).unwrap();
    symlink("/data/containers", moved.join("var/lib/containers")).unwrap();
    let (code, text) = machine.verify(&["--strict", "moved"]);
    assert_eq!(code, Some(0), "{text}");
    for arguments in [&["ls", "moved"][..], &["why", "moved", "localhost/hello:v1"]] {
        let output = machine.run(arguments);
        assert!(String::from_utf8_lossy(&output.stdout).contains("localhost/hello"), "{arguments:?}: {output:?}");
    }
    assert_eq!(machine.run(&["diff", "images.tar", "moved"]).status.code(), Some(0));
}

#[test]
fn a08_no_store_and_unreadable_inputs_are_exit_2() {
    let directory = scratch();
    let at = directory.path();
    let good = at.join("good.tar");
    make(at, &["--unpacker", "gnu"], &good);
    let bytes = fs_err::read(&good).unwrap();
    let compressed = gzip(&bytes);
    fs_err::write(at.join("cut.tar.gz"), &compressed[..compressed.len() / 2]).unwrap();
    fs_err::write(at.join("cut.tar"), &bytes[..bytes.len() / 2 + 100]).unwrap();
    fs_err::write(at.join("other.tar"), crate::made::tar(&[("etc/motd", b"hello")])).unwrap();
    fs_err::write(at.join("text"), "hello").unwrap();
    fs_err::write(at.join("empty"), "").unwrap();
    fs_err::create_dir_all(at.join("directory/etc/containers")).unwrap();
    fs_err::write(at.join("directory/etc/containers/policy.json"), "not JSON").unwrap();
    for input in ["/bin/ls", "/etc/passwd", "none", "cut.tar.gz", "other.tar", "text", "empty", "directory"] {
        for command in ["verify", "ls", "why", "diff"] {
            let mut run = prepull(at);
            run.current_dir(at).arg(command).arg(input);
            match command {
                "why" => drop(run.arg("localhost/hello:v1")),
                "diff" => drop(run.arg("good.tar")),
                _ => {}
            }
            fails(&mut run, 2, input);
        }
    }
    // A store that is damaged is something else.
    let output = prepull(at).current_dir(at).args(["verify", "cut.tar"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("[tar]"));
    for command in ["ls", "diff"] {
        let mut run = prepull(at);
        fails(
            run.current_dir(at).args([command, "cut.tar"]).args((command == "diff").then_some("good.tar")),
            2,
            "cut.tar",
        );
    }
}

/// Makes a machine whose store is as CRI-O leaves it before the first image. Returns it, its root and the graphroot.
fn machine_without_images() -> (Machine, PathBuf, PathBuf) {
    let machine = Machine::new();
    let root = machine.path("root");
    let graph = root.join(GRAPHROOT);
    for path in ["overlay-images", "overlay-layers", "overlay"] {
        for entry in fs_err::read_dir(graph.join(path)).unwrap().map(|entry| entry.unwrap().path()) {
            let name = entry.file_name().unwrap().to_string_lossy().into_owned();
            if !name.ends_with(".lock") && !matches!(&name[..], "l" | ".has-mount-program") {
                if entry.is_dir() { fs_err::remove_dir_all(entry) } else { fs_err::remove_file(entry) }.unwrap();
            }
        }
    }
    for entry in fs_err::read_dir(graph.join("overlay/l")).unwrap() {
        fs_err::remove_file(entry.unwrap().path()).unwrap();
    }
    fs_err::remove_dir_all(root.join("etc")).unwrap();
    (machine, root, graph)
}

#[test]
fn a08_a_store_without_images_is_good() {
    if !needs_root("findings::stores::a08_a_store_without_images_is_good") {
        return;
    }
    let (machine, _, graph) = machine_without_images();
    let (code, text) = machine.verify(&["--strict", "root"]);
    assert!(code == Some(0) && text.ends_with("root: good: a store without images\n"), "{text}");
    assert_eq!(machine.verify(&["--strict", graph.to_str().unwrap()]).0, Some(0));
    assert_eq!(machine.run(&["ls", "root"]).status.code(), Some(0));
    assert_eq!(machine.run(&["why", "root", "localhost/hello:v1"]).status.code(), Some(2));

    // Images whose list is gone are no empty store.
    let lost = machine.unpack("lost");
    fs_err::remove_file(lost.join(GRAPHROOT).join("overlay-images/images.json")).unwrap();
    let (code, text) = machine.verify(&["lost"]);
    assert!(code == Some(1) && text.contains("[images-json]"), "{text}");
}

#[test]
fn e02_node_with_an_additional_store_that_has_pulled_nothing_is_good() {
    if !needs_root("findings::stores::e02_node_with_an_additional_store_that_has_pulled_nothing_is_good") {
        return;
    }
    let (machine, root, graph) = machine_without_images();
    let additional = machine.path("additional.tar");
    make(machine.at.path(), &["--unpacker", "gnu", "--store", "additional"], &additional);
    unpack_gnu(&additional, &root).unwrap();
    let is_good = |what: &str| {
        let (code, text) = machine.verify(&["--strict", "root"]);
        assert!(code == Some(0) && !text.contains("images-json"), "{what}: {text}");
        assert_eq!(machine.run(&["why", "root", "localhost/hello:v1"]).status.code(), Some(0), "{what}");
    };
    is_good("an additional store");
    // The same images, shown by a mount.
    let store = root.join("usr/lib/containers/storage");
    fs_err::remove_dir_all(&store).unwrap();
    fs_err::create_dir(&store).unwrap();
    succeeds(prepull(machine.at.path()).args(["mount", "--quiet"]).arg(&store).arg(hello()));
    let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| is_good("a mount")));
    succeeds(prepull(machine.at.path()).args(["umount", "--quiet"]).arg(&store));
    judged.unwrap();
    // CRI-O creates the own store at its first start, so a new machine has none.
    unpack_gnu(&additional, &root).unwrap();
    fs_err::remove_dir_all(graph).unwrap();
    is_good("a missing own store");
}

#[test]
fn a09_a_rootless_store_is_recognised_outside_its_user_namespace() {
    if !needs_root("findings::stores::a09_a_rootless_store_is_recognised_outside_its_user_namespace") {
        return;
    }
    let machine = Machine::new();
    let graph = machine.path("root").join(GRAPHROOT);
    succeeds(Command::new("chown").args(["-Rh", "1000:1000"]).arg(&graph));
    let path = graph.to_str().unwrap();
    for (arguments, named) in [
        (&["verify", path][..], "podman unshare prepull verify"),
        (&["verify", "root"], "podman unshare prepull verify"),
        (&["diff", "images.tar", "root"], "podman unshare prepull diff"),
    ] {
        let output = machine.run(arguments);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(
            text.contains("user 1000") && text.contains(named) && text.lines().count() == 1,
            "{arguments:?}: {text}"
        );
        assert!(output.stdout.is_empty());
    }
    // Its records say the same everywhere.
    assert!(String::from_utf8(machine.run(&["ls", path]).stdout).unwrap().contains("localhost/hello"));
    assert_eq!(machine.run(&["diff", "root", "root"]).status.code(), Some(0));
    // One directory of another user's is a fault of a machine's own store, and the graphroot itself has a name.
    succeeds(Command::new("chown").args(["-Rh", "0:0"]).arg(&graph));
    succeeds(Command::new("chown").arg("1000").arg(&graph));
    let (_, text) = machine.verify(&[path]);
    assert!(text.contains("warning: .: belongs to 1000:0 [store-owner]"), "{text}");
}

#[test]
fn e04_records_of_containers_are_judged() {
    if !needs_root("findings::stores::e04_records_of_containers_are_judged") {
        return;
    }
    let machine = Machine::new();
    let graph = machine.path("root").join(GRAPHROOT);
    for (file, rule, fates) in [
        ("overlay-containers/containers.json", "[containers-json]", ("no-start", "no-start")),
        ("overlay-containers/volatile-containers.json", "[containers-json]", ("no-start", "no-start")),
        ("overlay-layers/volatile-layers.json", "[volatile-layers-json]", ("list-fails", "store-wiped")),
    ] {
        let path = graph.join(file);
        for good in ["", "[]", "null", r#"[{"id": "ab", "created": "2024-01-02T03:04:05Z", "layer": "cd", "x": 1}]"#] {
            fs_err::write(&path, good).unwrap();
            let (code, text) = machine.verify(&["root"]);
            assert_eq!(code, Some(0), "{file}: {good}: {text}");
        }
        for bad in
            ["garbage", "{}", "[1]", r#"[{"id": 1}]"#, r#"[{"names": "x"}]"#, r#"[{"created": "now"}]"#, "[", "\0\0"]
        {
            fs_err::write(&path, bad).unwrap();
            let (code, text) = machine.verify(&["root"]);
            assert!(code == Some(1) && text.contains(rule), "{file}: {bad}: {text}");
            let report: serde_json::Value =
                serde_json::from_slice(&machine.run(&["verify", "--json", "root"]).stdout).unwrap();
            assert_eq!(
                (&report["start"], &report["afterPowerCut"]),
                (&fates.0.into(), &fates.1.into()),
                "{file}: {bad}"
            );
        }
        fs_err::remove_file(&path).unwrap();
        succeeds(Command::new("mkfifo").arg(&path));
        let (code, text) = machine.verify(&["root"]);
        assert!(code == Some(1) && text.contains(rule), "{file}: a pipe: {text}");
        fs_err::remove_file(&path).unwrap();
    }
}

#[test]
fn e10_images_that_others_pulled_are_judged_by_their_maker() {
    if !needs_root("findings::stores::e10_images_that_others_pulled_are_judged_by_their_maker") {
        return;
    }
    let machine = Machine::new();
    let graph = machine.path("root").join(GRAPHROOT);
    let mut layout = crate::made::Layout::new(machine.path("oci"));
    let descriptor = layout.image("amd64", &crate::made::layers());
    layout.add(Some("localhost/pulled:1"), descriptor);
    let item = format!("oci:{}:localhost/pulled:1", layout.path.display());
    let output = skopeo_into(&graph, &item, "localhost/pulled:1");
    assert!(output.status.success(), "{}", stderr(&output));
    let (code, text) = machine.verify(&["--strict", "root"]);
    assert_eq!(code, Some(0), "{text}");
    // prepull's own image is one that the drop-in should pin.
    let dropin = machine.path("root/etc/crio/crio.conf.d/10-prepull.conf");
    let pinned = fs_err::read_to_string(&dropin).unwrap();
    fs_err::write(&dropin, pinned.replace("localhost/hello:v1", "localhost/other:v1")).unwrap();
    let (_, text) = machine.verify(&["root"]);
    assert!(text.contains("[crio-pinned]") && !text.contains("does not have localhost/pulled"), "{text}");
    fs_err::write(&dropin, pinned).unwrap();

    // Layers that lie in an additional store are not missing, and a graphroot alone does not say.
    let own = graph.join("overlay-layers/layers.json");
    let layers: serde_json::Value = serde_json::from_slice(&fs_err::read(&own).unwrap()).unwrap();
    let lowest: Vec<_> =
        layers.as_array().unwrap().iter().filter(|layer| layer.get("parent").is_none()).cloned().collect();
    let rest: Vec<_> =
        layers.as_array().unwrap().iter().filter(|layer| layer.get("parent").is_some()).cloned().collect();
    assert!(!rest.is_empty());
    fs_err::write(&own, serde_json::to_vec(&rest).unwrap()).unwrap();
    let (code, text) = machine.verify(&[graph.to_str().unwrap()]);
    assert!(code == Some(1) && text.contains("unless an additional store has the layer"), "{text}");
    let other = machine.path("root/usr/lib/containers/storage");
    fs_err::create_dir_all(other.join("overlay-images")).unwrap();
    fs_err::create_dir_all(other.join("overlay-layers")).unwrap();
    fs_err::write(other.join("overlay-layers/layers.json"), serde_json::to_vec(&lowest).unwrap()).unwrap();
    let (_, text) = machine.verify(&["root"]);
    assert!(!text.contains("[layer-parent]"), "{text}");
}

/// Entries of the large layer: a tenth of what the largest node images have.
const MANY: usize = 100_000;

/// Runs `prepull` by itself; returns its processor time in seconds, and the most memory that it had, in KiB.
fn measured(at: &Path, arguments: &[&str]) -> (f64, u64) {
    let script = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); \
                  used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime, used.ru_maxrss)";
    let mut command = Command::new("python3");
    command.args(["-c", script, env!("CARGO_BIN_EXE_prepull")]).args(arguments).env("HOME", at).current_dir(at);
    let said = succeeds(&mut command);
    let (time, memory) = said.trim().split_once(' ').unwrap();
    (time.parse().unwrap(), memory.parse().unwrap())
}

#[test]
fn a17_a_large_tar_is_verified_in_little_time_and_memory() {
    let directory = scratch();
    let at = directory.path();
    let mut entries = Vec::with_capacity(MANY + MANY / 100);
    for number in 0..MANY {
        if number % 100 == 0 {
            entries.push(dir(format!("d{:05}/", number / 100)));
        }
        let path = format!("d{:05}/file{:03}", number / 100, number % 100);
        entries.push(file(path).data(format!("{number}")).mtime(number as i64));
    }
    let mut layout = crate::made::Layout::new(at.join("oci"));
    let descriptor = layout.image("amd64", &[archive(&entries)]);
    drop(entries);
    layout.add(Some("localhost/large:1"), descriptor);
    let make = ["make", "--quiet", "--no-cache", "--unpacker", "gnu", "--platform", "linux/amd64", "-o", "large.tar"];
    let (made, _) = measured(at, &[&make[..], &["oci:oci"]].concat());
    let (verified, memory) = measured(at, &["verify", "large.tar"]);
    eprintln!("{MANY} files: make {made:.2} s, verify {verified:.2} s and {memory} KiB");
    // A million files have 1.5 times make's time, and 256 MiB with what every process needs; there is some slack here.
    assert!(verified < 2.0 * made, "verify {verified} s, make {made} s");
    assert!(memory < 48 << 10, "{memory} KiB");
}
