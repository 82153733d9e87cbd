//! `busybox tar -o` and the rc script leave machines with the very files that skopeo's stores show when they are mounted.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::command::{needs_root, prepull};
use crate::corpus::{self, Case};
use crate::edge::{Difference, difference};
use crate::made::Layout;
use crate::raw::{archive, dir, file};
use crate::stores::{Clock, GRAPHROOT, Mount, Time, Tree, chain, differences, each, scratch, walk};
use crate::theirs::{Theirs, theirs};

/// Cases that differ only in how a tar says the same, or in attributes that busybox drops.
const NOT_HERE: [&str; 23] = [
    // A second name for a whiteout: made late, and nobody sees it.
    "link-to-whiteout",
    "xattr-",
    "acl-",
    "pax-",
    "number-",
    "gzip",
    "zstd",
    "cut-",
    "zeros-",
    "global",
    "type-",
    "name-",
    "dup-",
    "dot",
    "sym-chain",
    "time-pax",
    "padd",
    "garbage",
    "text",
    "star",
    "gnu",
    "v7",
    "plain",
];

/// A machine's root with only busybox in its path.
pub struct Machine {
    root: PathBuf,
    applets: PathBuf,
    /// As xcluster sets it: else busybox makes links that lead up only at the end, and directories lose their times.
    unsafe_symlinks: bool,
}

impl Machine {
    pub fn new(root: PathBuf, applets: &Path, unsafe_symlinks: bool) -> Self {
        fs_err::create_dir_all(&root).unwrap();
        Self { root, applets: applets.to_owned(), unsafe_symlinks }
    }

    #[track_caller]
    fn busybox(&self, arguments: &[&str]) {
        let mut command = Command::new("busybox");
        if self.unsafe_symlinks {
            command.env("EXTRACT_UNSAFE_SYMLINKS", "1");
        }
        let output = command.args(arguments).env("PATH", &self.applets).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.is_empty(), "busybox {arguments:?}: {said}");
    }

    pub fn unpack(&self, tar: &Path, options: &[&str]) {
        let into = ["tar", "-C", self.root.to_str().unwrap()];
        self.busybox(&[&into[..], options, &["-xf", tar.to_str().unwrap()]].concat());
    }

    /// Runs the rc script by its path; gives how long it took.
    pub fn restore(&self) -> Duration {
        let begun = Instant::now();
        self.busybox(&["sh", self.root.join("etc/init.d/25prepull.rc").to_str().unwrap()]);
        begun.elapsed()
    }

    pub fn store(&self) -> PathBuf {
        self.root.join(GRAPHROOT)
    }

    /// The store without the times of directories that are none of the layers'.
    fn tree(&self) -> Tree {
        let mut tree = plain(walk(&self.store(), &Clock::stamp()));
        for (_, node) in tree.iter_mut().filter(|(name, _)| !name.contains("/diff")) {
            node.time = Time::Made;
        }
        tree
    }

    pub fn state(&self) -> String {
        fs_err::read_to_string(self.root.join("usr/share/prepull/var-lib-containers-storage/state")).unwrap()
    }
}

/// A directory of links to busybox.
pub fn applets(at: &Path) -> PathBuf {
    let directory = at.join("applets");
    fs_err::create_dir(&directory).unwrap();
    let output = Command::new("busybox").args(["--install", "-s"]).arg(&directory).output().unwrap();
    assert!(output.status.success(), "busybox --install: {}", String::from_utf8_lossy(&output.stderr));
    directory
}

/// What busybox can keep of a tree.
fn plain(tree: Tree) -> Tree {
    let keep = |(name, mut node): (String, crate::stores::Node)| {
        node.xattrs.clear();
        node.link = None;
        node.time = match node.time {
            _ if node.kind == "symlink" => Time::Made,
            Time::At(seconds, _) => Time::At(seconds, 0),
            Time::Made => Time::Made,
        };
        // Names of whiteouts in directories that are not merged: skopeo's stores show them, too.
        (node.kind != "ghost").then_some((name, node))
    };
    tree.into_iter().filter_map(keep).collect()
}

/// Without whiteouts: nobody sees whose they are.
fn hidden_free(mut tree: Tree) -> Tree {
    tree.retain(|_, node| node.kind != "char" || node.content != "0:0");
    tree
}

/// busybox makes hardlinks, and links that may lead out of the tree, only at the end: their directories lose their times.
fn late_links(mut tree: Tree) -> Tree {
    let leads_out = |node: &crate::stores::Node| {
        node.link.is_some()
            || node.kind == "symlink"
                && (node.content.starts_with('/') || node.content.split('/').any(|part| part == ".."))
    };
    let directory = |name: &str| name.rsplit_once('/').map_or(".", |(directory, _)| directory).to_owned();
    let late: Vec<String> = tree.iter().filter(|(_, node)| leads_out(node)).map(|(name, _)| directory(name)).collect();
    for name in late {
        tree.get_mut(&name).unwrap().time = Time::Made;
    }
    tree
}

#[test]
fn merged_layers_are_what_skopeo_shows() {
    if !needs_root("busybox::merged_layers_are_what_skopeo_shows") {
        return;
    }
    let directory = scratch();
    let at = directory.path();
    let cases: Vec<Case> = corpus::all()
        .into_iter()
        .filter(|case| !NOT_HERE.iter().any(|prefix| case.name.starts_with(prefix)))
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
    assert!(accepted.len() > 200, "only {}", accepted.len());

    let tar = at.join("images.tar");
    let items = accepted.values().map(|(item, _)| item);
    let output = prepull(at).args(["make", "--quiet", "--no-cache", "-o"]).arg(&tar).args(items).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let applets = applets(at);
    let machine = Machine::new(at.join("machine"), &applets, true);
    machine.unpack(&tar, &["-o"]);
    assert_eq!(machine.state(), "pending\n");
    machine.restore();
    assert_eq!(machine.state(), "done\n");
    let alpine = Machine::new(at.join("alpine"), &applets, false);
    alpine.unpack(&tar, &[]);
    alpine.restore();
    assert_eq!(alpine.state(), "done\n");

    let restored = machine.tree();
    let mut report = String::new();
    let timeless = |mut tree: Tree| {
        tree.values_mut().filter(|node| node.kind == "dir").for_each(|node| node.time = Time::Made);
        tree
    };
    differences("with and without -o", &timeless(alpine.tree()), &timeless(restored.clone()), &mut report);
    // Once more does nothing; unpacking again on top and starting again gives the same.
    machine.restore();
    differences("again", &machine.tree(), &restored, &mut report);
    machine.unpack(&tar, &["-o"]);
    assert_eq!(machine.state(), "pending\n");
    machine.restore();
    differences(
        "unpacked again",
        &timeless(hidden_free(machine.tree())),
        &timeless(hidden_free(restored)),
        &mut report,
    );
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
            plain(late_links(walk(&mount_point, clock)))
        };
        let mut report = String::new();
        let theirs = show(&theirs.root, &theirs.clock, "theirs");
        differences("merged", &show(&machine.store(), &Clock::stamp(), "ours"), &theirs, &mut report);
        if report.is_empty() { Ok(()) } else { Err(format!("{}:\n{report}", case.name)) }
    });
    assert!(failures.is_empty(), "{} of {} differ:\n{}", failures.len(), compared.len(), failures.join("\n"));
}

#[test]
fn twenty_thousand_owners_take_a_moment() {
    if !needs_root("busybox::twenty_thousand_owners_take_a_moment") {
        return;
    }
    let directory = scratch();
    let at = directory.path();
    let mut entries = Vec::new();
    for group in 0..200 {
        entries.push(dir(format!("home/user{group}/")).owner(1000 + group % 5, 100));
        entries.extend((0..100).map(|n| {
            let mode = if n == 7 { 0o4755 } else { 0o644 };
            file(format!("home/user{group}/some longer name {n}")).mode(mode).owner(1000 + group % 5, 100)
        }));
    }
    let mut layout = Layout::new(at.join("oci"));
    let image = layout.image("amd64", &[archive(&entries)]);
    layout.add(Some("localhost/owners:1"), image);
    let tar = at.join("images.tar");
    let output = prepull(at)
        .args(["make", "--quiet", "--no-cache", "--platform", "linux/amd64", "-o"])
        .arg(&tar)
        .arg(format!("oci:{}", layout.path.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let machine = Machine::new(at.join("machine"), &applets(at), true);
    machine.unpack(&tar, &["-o"]);
    // The best of three: other tests run at the same time.
    let pending = |_| {
        fs_err::write(machine.root.join("usr/share/prepull/var-lib-containers-storage/state"), "pending\n").unwrap();
        machine.restore()
    };
    let best = (0..3).map(pending).min().unwrap();
    let idle = (0..3).map(|_| machine.restore()).min().unwrap();
    let _ = writeln!(std::io::stdout(), "20,000 owners: {best:?}; nothing to do: {idle:?}");
    assert!(best < Duration::from_secs(2), "{best:?}");
    assert!(idle < Duration::from_millis(500), "{idle:?}");
    let id = &chain(&machine.store(), "localhost/owners:1")[0];
    let diff = machine.store().join(format!("overlay/{id}/diff/home/user3"));
    for (name, mode) in [("some longer name 7", 0o4755), ("some longer name 8", 0o644)] {
        let stat = fs_err::metadata(diff.join(name)).unwrap();
        assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (1003, 100, mode));
    }
}
