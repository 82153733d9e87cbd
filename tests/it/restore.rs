//! `prepull-helper restore`: after `busybox tar -o` and the rc script, stores are exact, and no manifest does harm.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;

use prepull::entry::{Entry, Kind, Meta, Timestamp};
use prepull::wire;
use serde_json::Value;

use crate::busybox::{Machine, applets};
use crate::command::{fails, needs_root, prepull, static_helper, stderr, succeeds};
use crate::corpus::{self, Case};
use crate::edge::{Difference, difference, drop_inherited_acls, drop_overlay};
use crate::made::Layout;
use crate::raw::{archive, dir, file, link, sym};
use crate::stores::{
    Clock, GRAPHROOT, Mount, STAMP, Tree, chain, complaints, differences, each, scratch, unpack_gnu, walk,
};
use crate::theirs::{Theirs, theirs};

/// cap_net_raw+ep, as `setcap` writes it.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

const LISTS: &str = "usr/share/prepull/var-lib-containers-storage";

/// Without names of whiteouts, which nobody sees.
fn seen(mut tree: Tree) -> Tree {
    tree.retain(|_, node| node.kind != "ghost");
    tree
}

#[test]
fn stores_are_exact_after_a_boot() {
    if !needs_root("restore::stores_are_exact_after_a_boot") {
        return;
    }
    let directory = scratch();
    let at = directory.path();
    let cases: Vec<Case> = corpus::all()
        .into_iter()
        .filter(|case| !matches!(difference(&case.name), Some(Difference::Refused | Difference::RootOwner)))
        .collect();
    let accepted = Mutex::new(BTreeMap::new());
    let failures = each(&cases, 12, |case| {
        let place = at.join(&case.name);
        fs_err::create_dir_all(&place).unwrap();
        let mut layout = Layout::new(place.join("oci"));
        case.write(&mut layout);
        let item = format!("oci:{}:{}", layout.path.display(), case.image());
        let theirs = theirs(case, &item, &place);
        if theirs.is_accepted {
            accepted.lock().unwrap().insert(case.name.clone(), (item, theirs));
        }
        Ok(())
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let accepted = accepted.into_inner().unwrap();
    assert!(accepted.len() > 300, "only {}", accepted.len());

    let tar = at.join("images.tar");
    let mut make = prepull(at);
    make.args(["make", "--quiet", "--no-cache", "--restore-helper"]).arg(static_helper()).arg("-o").arg(&tar);
    let output = make.args(accepted.values().map(|(item, _)| item)).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!stderr(&output).contains("busybox tar will drop"), "{}", stderr(&output));
    let verified = prepull(at).args(["verify", "--strict", "--json"]).arg(&tar).output().unwrap();
    let verified: Value = serde_json::from_slice(&verified.stdout).unwrap();
    let rules: Vec<&str> =
        verified["findings"].as_array().unwrap().iter().filter_map(|finding| finding["rule"].as_str()).collect();
    assert!(!rules.iter().any(|rule| rule.starts_with("xattr-") || rule.starts_with("restore-")), "{rules:?}");

    let applets = applets(at);
    let machine = Machine::new(at.join("machine"), &applets, true);
    machine.unpack(&tar, &["-o"]);
    machine.restore();
    assert_eq!(machine.state(), "done\n");
    let exact = walk(&machine.store(), &Clock::stamp());
    let mut report = String::new();
    // Once more, as after an interruption, changes nothing; unpacking again on top and starting again gives the same.
    fs_err::write(machine.store().join("../../../..").join(LISTS).join("state"), "pending\n").unwrap();
    machine.restore();
    differences("again", &walk(&machine.store(), &Clock::stamp()), &exact, &mut report);
    machine.unpack(&tar, &["-o"]);
    machine.restore();
    let diffs = |tree: &Tree| -> Tree {
        let in_layer = |(name, node): (&String, _)| name.contains("/diff/").then(|| (name.clone(), Clone::clone(node)));
        tree.iter().filter_map(in_layer).filter(|(_, node)| node.kind != "char" || node.content != "0:0").collect()
    };
    // Files that are made anew in a directory with a default ACL have it, too.
    let without_acls = |tree: &Tree| -> Tree {
        let mut tree = diffs(tree);
        tree.values_mut().for_each(|node| node.xattrs.retain(|name, _| !name.starts_with("system.posix_acl")));
        tree
    };
    let again = walk(&machine.store(), &Clock::stamp());
    differences("unpacked again", &without_acls(&again), &without_acls(&exact), &mut report);
    // Where links that lead up come last, and owners are kept.
    let other = Machine::new(at.join("other"), &applets, false);
    other.unpack(&tar, &[]);
    other.restore();
    differences("without -o", &diffs(&walk(&other.store(), &Clock::stamp())), &diffs(&exact), &mut report);
    assert!(report.is_empty(), "{report}");

    let compared: Vec<(&Case, &Theirs)> =
        cases.iter().filter_map(|case| Some((case, &accepted.get(&case.name)?.1))).collect();
    let failures = each(&compared, 4, |(case, theirs)| {
        let place = at.join(&case.name);
        let show = |root: &Path, clock: &Clock, mount: &str| {
            let chain = chain(root, &case.image());
            if chain.is_empty() {
                return Tree::new();
            }
            let mount_point = place.join(mount);
            let _mounted = Mount::overlay(root, &chain, &mount_point);
            let mut tree = seen(walk(&mount_point, clock));
            match difference(&case.name) {
                Some(Difference::NoOverlayAttributes) => drop_overlay(&mut tree),
                Some(Difference::InheritedAcls) => drop_inherited_acls(&mut tree),
                _ => {}
            }
            tree
        };
        let mut report = String::new();
        let ours = show(&machine.store(), &Clock::stamp(), "ours");
        differences("merged", &ours, &show(&theirs.root, &theirs.clock, "theirs"), &mut report);
        if report.is_empty() { Ok(()) } else { Err(format!("{}:\n{report}", case.name)) }
    });
    let _ = writeln!(std::io::stdout(), "{} images are exact", compared.len());
    assert!(failures.is_empty(), "{} of {} differ:\n{}", failures.len(), compared.len(), failures.join("\n"));
}

/// An image with all that busybox tar loses, as a layout.
fn lossy(at: &Path) -> String {
    let layer = archive(&[
        dir("bin/").mtime(1_000_000_001),
        file("bin/ping").mode(0o755).xattr("security.capability", CAPABILITY).mtime(1_000_000_002),
        file("bin/mine")
            .mode(0o4755)
            .owner(1000, 1000)
            .xattr("security.capability", CAPABILITY)
            .xattr("user.note", "hi"),
        sym("bin/sh", "ping").mtime(1_000_000_003),
        sym("bin/up", "../etc/motd").owner(7, 8).mtime(1_000_000_004),
        dir("etc/").mtime(1_000_000_005),
        file("etc/exact").pax("mtime", "1000000006.123456789"),
        file("etc/motd").mtime(1_000_000_007),
        link("etc/motd2", "etc/motd").mtime(1_000_000_007),
        dir("dated/").pax("mtime", "1000000008.5"),
        dir("marked/").xattr("user.dir", "d").mtime(1_000_000_009).mode(0o700).owner(5, 5),
    ]);
    let mut layout = Layout::new(at.join("lossy"));
    let image = layout.image("amd64", &[layer, archive(&[file("top"), sym("abs", "/top").mtime(1_000_000_010)])]);
    layout.add(Some("localhost/lossy:1"), image);
    format!("oci:{}", layout.path.display())
}

fn make(at: &Path, tar: &Path, options: &[&dyn AsRef<OsStr>]) -> Output {
    let mut make = prepull(at);
    make.args(["make", "--no-cache", "--platform", "linux/amd64", "-o"]).arg(tar);
    options.iter().for_each(|option| {
        make.arg(option);
    });
    make.arg(lossy(at)).output().unwrap()
}

#[test]
fn capabilities_and_times_come_back() {
    if !needs_root("restore::capabilities_and_times_come_back") {
        return;
    }
    let directory = scratch();
    let at = directory.path();
    let tar = at.join("images.tar");
    let output = make(at, &tar, &[&"--quiet", &"--restore-helper", &static_helper()]);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
    let machine = Machine::new(at.join("machine"), &applets(at), false);
    machine.unpack(&tar, &["-o"]);
    machine.restore();

    let exact = at.join("gnu.tar");
    assert!(make(at, &exact, &[&"--quiet", &"--unpacker", &"gnu"]).status.success());
    unpack_gnu(&exact, &at.join("gnu")).unwrap();
    let layers = |root: &Path| -> Tree {
        let mut tree = walk(&root.join("overlay"), &Clock::stamp());
        tree.retain(|name, _| name.contains("/diff"));
        tree
    };
    let mut report = String::new();
    differences("gnu", &layers(&machine.store()), &layers(&at.join("gnu").join(GRAPHROOT)), &mut report);
    assert!(report.is_empty(), "{report}");
    // Two stores in one machine have each a helper and a manifest of their own.
    let second = at.join("second.tar");
    let helper = static_helper();
    let with_helper = make(at, &second, &[&"--quiet", &"--store", &"additional", &"--restore-helper", &helper]);
    assert!(with_helper.status.success(), "{}", stderr(&with_helper));
    assert!(make(at, &exact, &[&"--quiet", &"--store", &"additional", &"--unpacker", &"gnu"]).status.success());
    unpack_gnu(&exact, &at.join("gnu")).unwrap();
    machine.unpack(&tar, &["-o"]);
    machine.unpack(&second, &["-o"]);
    machine.restore();
    let additional = |name: &str| layers(&at.join(name).join("usr/lib/containers/storage"));
    differences("additional", &additional("machine"), &additional("gnu"), &mut report);
    differences("primary", &layers(&machine.store()), &layers(&at.join("gnu").join(GRAPHROOT)), &mut report);
    assert!(report.is_empty(), "{report}");

    let ids = chain(&machine.store(), "localhost/lossy:1");
    let output =
        Command::new("getcap").arg("-r").arg(machine.store().join(format!("overlay/{}", ids[1]))).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.lines().count() == 2 && said.lines().all(|line| line.ends_with(" cap_net_raw=ep")), "{said}");
    assert_eq!(complaints(at, &format!("machine/{GRAPHROOT}"), None).unwrap_or_default(), Vec::<String>::new());

    // An image that was removed since is no failure; nor is what was changed since, but it is said.
    let diff = machine.store().join(format!("overlay/{}/diff", ids[1]));
    fs_err::remove_dir_all(machine.store().join(format!("overlay/{}", ids[0]))).unwrap();
    fs_err::set_permissions(diff.join("bin/ping"), PermissionsExt::from_mode(0o700)).unwrap();
    let lists = at.join("machine").join(LISTS);
    let output = Command::new(lists.join("prepull-helper"))
        .arg("restore")
        .current_dir(machine.store().join("overlay"))
        .stdin(fs_err::File::open(lists.join("manifest.tar")).unwrap().into_parts().0)
        .output()
        .unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "restored 8, missing 2, left 1\n");
    assert!(stderr(&output).ends_with(" has another owner or mode\n"), "{}", stderr(&output));
}

#[test]
fn the_tar_follows_from_images_options_and_helper() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let helper = static_helper();
    let tar = |name: &str, options: &[&dyn AsRef<OsStr>]| {
        let path = at.join(name);
        let output = make(at, &path, options);
        assert!(output.status.success(), "{}", stderr(&output));
        (fs_err::read(path).unwrap(), stderr(&output).contains("busybox tar will drop"))
    };
    let (none, warned) = tar("none.tar", &[&"--restore-helper", &"none"]);
    assert!(warned);
    // The one beside the tested prepull is not static.
    assert!(tar("auto.tar", &[]) == (none.clone(), true));
    let with = tar("with.tar", &[&"--restore-helper", &helper]);
    assert!(!with.1 && with.0.len() > none.len() + 500_000);
    assert!(tar("again.tar", &[&"--restore-helper", &helper]) == with);
    let gnu = tar("gnu.tar", &[&"--unpacker", &"gnu"]);
    assert!(tar("gnu2.tar", &[&"--unpacker", &"gnu", &"--restore-helper", &helper]) == gnu);

    // Found where it is installed.
    let stdout = |program: &Path| {
        let mut make = Command::new(program);
        make.args(["make", "--quiet", "--no-cache", "--platform", "linux/amd64", "--tar", "-"]).arg(lossy(at));
        make.env("HOME", at).env("SOURCE_DATE_EPOCH", STAMP.to_string()).output().unwrap()
    };
    for place in ["bin", "libexec"] {
        let prefix = at.join(place).join("usr");
        fs_err::create_dir_all(prefix.join("bin")).unwrap();
        fs_err::create_dir_all(prefix.join(place)).unwrap();
        let program = prefix.join("bin/prepull");
        fs_err::copy(env!("CARGO_BIN_EXE_prepull"), &program).unwrap();
        fs_err::copy(&helper, prefix.join(place).join("prepull-helper")).unwrap();
        assert!(stdout(&program).stdout == with.0, "{place}");
    }

    // Nothing to restore: it does not go along.
    let mut layout = Layout::new(at.join("plain"));
    let image = layout.image("amd64", &[archive(&[file("a"), dir("b/"), file("b/c")])]);
    layout.add(Some("localhost/plain:1"), image);
    let path = at.join("plain.tar");
    let mut plain = prepull(at);
    plain
        .args(["make", "--no-cache", "--platform", "linux/amd64", "--restore-helper"])
        .arg(&helper)
        .arg("-o")
        .arg(&path);
    succeeds(plain.arg(format!("oci:{}", layout.path.display())));
    assert!(fs_err::metadata(&path).unwrap().len() < 200_000);
}

#[test]
fn what_is_no_helper_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let image = lossy(at);
    let refused = |helper: &Path, platform: &str, part: &str| {
        let mut make = prepull(at);
        make.args(["make", "--quiet", "--no-cache", "--platform", platform, "-o"]).arg(at.join("x.tar"));
        fails(make.arg("--restore-helper").arg(helper).arg(&image), 2, part);
        assert!(!at.join("x.tar").exists());
    };
    refused(Path::new("/bin/sh"), "linux/amd64", "not statically linked");
    refused(&static_helper(), "linux/s390x", "not a program for s390x");
    refused(&at.join("lossy/index.json"), "linux/amd64", "not an ELF program");
    refused(at, "linux/amd64", "not a regular file");
    refused(&at.join("nowhere"), "linux/amd64", "nowhere");
    let large = at.join("large");
    fs_err::File::create(&large).unwrap().set_len((16 << 20) + 1).unwrap();
    refused(&large, "linux/amd64", "more than 16 MiB");
}

/// Runs the helper in a directory.
fn helper(at: &Path, arguments: &[&str], manifest: &[u8]) -> (Option<i32>, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_prepull-helper"))
        .args(arguments)
        .current_dir(at)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end before it has read all.
    let _ = child.stdin.take().unwrap().write_all(manifest);
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), stderr(&output))
}

#[test]
fn only_one_word_is_a_mode() {
    let scratch = tempfile::tempdir().unwrap();
    for arguments in [&[][..], &["restore", "more"], &["--help"], &["Restore"]] {
        let (status, stdout, stderr) = helper(scratch.path(), arguments, b"");
        assert_eq!((status, &stdout[..]), (Some(2), ""));
        assert!(stderr.starts_with("usage: prepull-helper ") && stderr.lines().count() == 1, "{stderr}");
    }
}

/// A place with an inside, and an outside that must stay as it is.
struct Place {
    _scratch: tempfile::TempDir,
    at: PathBuf,
    owner: (u32, u32),
}

impl Place {
    fn new() -> Self {
        let scratch = scratch();
        let at = scratch.path().to_owned();
        for directory in ["outside/sub", "in/real"] {
            fs_err::create_dir_all(at.join(directory)).unwrap();
        }
        for file in ["outside/file", "outside/sub/file", "in/file", "in/real/file"] {
            fs_err::write(at.join(file), "x").unwrap();
            fs_err::set_permissions(at.join(file), PermissionsExt::from_mode(0o644)).unwrap();
        }
        for (target, link) in [("../outside", "dir"), ("../outside/file", "link"), ("..", "up"), ("real", "near")] {
            std::os::unix::fs::symlink(target, at.join("in").join(link)).unwrap();
        }
        std::os::unix::fs::symlink(at.join("outside"), at.join("in/abs")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at.join("in/fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o644),
            0,
        )
        .unwrap();
        let stat = fs_err::metadata(at.join("in/file")).unwrap();
        Self { _scratch: scratch, at, owner: (stat.uid(), stat.gid()) }
    }

    fn tree(&self, of: &str) -> Tree {
        walk(&self.at.join(of), &Clock::stamp())
    }

    fn entry(&self, path: &str, kind: Kind) -> Entry {
        let (uid, gid) = self.owner;
        let mode = if kind == Kind::Directory { 0o755 } else { 0o644 };
        let mtime = Timestamp { seconds: 1_000_000_000, nanoseconds: 7 };
        let xattrs = match kind {
            Kind::Regular { .. } | Kind::Directory => vec![(b"user.evil".to_vec(), b"1".to_vec())],
            _ => Vec::new(),
        };
        Entry { path: path.into(), meta: Meta { mode, uid, gid, mtime, xattrs }, kind }
    }

    fn run(&self, entries: &[Entry]) -> (Option<i32>, String, String) {
        let mut tar = Vec::new();
        entries.iter().for_each(|entry| wire::header(entry, &mut tar));
        tar.extend_from_slice(&wire::END);
        helper(&self.at.join("in"), &["restore"], &tar)
    }
}

const FILE: Kind = Kind::Regular { size: 0 };

#[test]
fn only_what_is_as_listed_is_changed() {
    let place = Place::new();
    let link = |target: &str| Kind::Symlink(target.into());
    let entries =
        [place.entry("real/file", FILE), place.entry("near", link("real")), place.entry("real", Kind::Directory)];
    assert_eq!(place.run(&entries), (Some(0), "restored 3, missing 0, left 0\n".to_owned(), String::new()));
    let exact = place.tree("in");
    for name in ["real/file", "real", "near"] {
        assert_eq!(exact[name].time, crate::stores::Time::At(1_000_000_000, 7), "{name}");
        assert_eq!(exact[name].xattrs.len(), usize::from(name != "near"), "{name}");
    }
    assert_eq!(place.run(&entries).1, "restored 3, missing 0, left 0\n");

    let (before, outside) = (place.tree("in"), place.tree("outside"));
    let mut other = place.entry("file", FILE);
    other.meta.mode = 0o600;
    let mut owner = place.entry("file", FILE);
    owner.meta.uid += 1;
    let device = prepull::entry::Device { major: 1, minor: 3 };
    let left = [
        place.entry("dir/file", FILE),
        place.entry("abs/file", FILE),
        place.entry("up/outside/file", FILE),
        place.entry("near/file", FILE),
        place.entry("dir", Kind::Directory),
        place.entry("link", FILE),
        place.entry("link", link("../outside")),
        place.entry("fifo", FILE),
        place.entry("file", Kind::Directory),
        place.entry("file", Kind::Fifo),
        place.entry("file", Kind::CharDevice(device)),
        place.entry("real", FILE),
        place.entry("file/file", FILE),
        other,
        owner,
    ];
    for entry in &left {
        let (status, stdout, stderr) = place.run(std::slice::from_ref(entry));
        assert_eq!((status, &stdout[..]), (Some(0), "restored 0, missing 0, left 1\n"), "{entry:?}");
        assert!(stderr.starts_with("prepull-helper: 1 left as they are") && stderr.lines().count() == 1, "{stderr}");
    }
    let (_, stdout, stderr) = place.run(&left);
    assert_eq!((&stdout[..], stderr.lines().count()), ("restored 0, missing 0, left 15\n", 1));
    let missing = [place.entry("gone", FILE), place.entry("gone/file", FILE), place.entry("real/gone", FILE)];
    assert_eq!(place.run(&missing).1, "restored 0, missing 3, left 0\n");
    assert_eq!((place.tree("in"), place.tree("outside")), (before, outside));
}

#[test]
fn hostile_manifests_change_nothing() {
    let place = Place::new();
    let (before, outside) = (place.tree("in"), place.tree("outside"));
    let steering = |name: &str| {
        let mut entry = place.entry("real", Kind::Directory);
        entry.meta.xattrs = vec![(name.into(), b"y".to_vec())];
        entry
    };
    let mut refused = vec![
        place.entry("../outside/file", FILE),
        place.entry("real/../../outside/file", FILE),
        place.entry("/etc/hostname", FILE),
        place.entry("./file", FILE),
        place.entry("real//file", FILE),
        place.entry("", Kind::Directory),
        place.entry("file", Kind::Regular { size: 512 }),
        place.entry("file", Kind::Hardlink(b"real/file".to_vec())),
        place.entry("file", Kind::Hardlink(b"../outside/file".to_vec())),
        steering("trusted.overlay.opaque"),
        steering("user.overlay.redirect"),
        place.entry(&"n".repeat(256), FILE),
        place.entry(&"d/".repeat(3000), Kind::Directory),
    ];
    let mut nul = place.entry("real", Kind::Directory);
    nul.path.push(0);
    refused.push(nul);
    for entry in &refused {
        let (status, stdout, stderr) = place.run(std::slice::from_ref(entry));
        assert_eq!((status, &stdout[..]), (Some(1), ""), "{entry:?}: {stderr}");
        assert!(stderr.starts_with("prepull-helper: the manifest: ") && stderr.lines().count() == 1, "{stderr}");
    }
    let mut good = Vec::new();
    wire::header(&place.entry("gone", FILE), &mut good);
    good.extend_from_slice(&wire::END);
    let endless = vec![b'x'; 1 << 20];
    let (mut gnu, mut sum) = (good.clone(), good.clone());
    gnu[156] = b'L';
    sum[148] ^= 1;
    for garbage in [&b""[..], b"\0", &endless, &[0; 1023], &good[..good.len() - 1], &good[..700], &gnu, &sum] {
        let (status, stdout, stderr) = helper(&place.at.join("in"), &["restore"], garbage);
        assert_eq!((status, &stdout[..], stderr.lines().count()), (Some(1), "", 1), "{stderr}");
    }
    assert_eq!((place.tree("in"), place.tree("outside")), (before, outside));
}
