//! Stores made by the real tools and by prepull, and what is in them: no tests of its own.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use prepull::digest::Digest;
use serde_json::Value;

/// The time stamp that [`crate::command::prepull`] is told to use: no image of these tests has it.
pub const STAMP: i64 = 1_234_567_890;

/// Where the store lies in a machine.
pub const GRAPHROOT: &str = "var/lib/containers/storage";

/// A directory on a real file system: overlayfs wants one below its layers, and tmpfs has no `user.` attributes.
pub fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("prepull-test-").tempdir_in("/var/tmp").unwrap()
}

/// Runs a command.
#[track_caller]
pub fn try_run(program: &str, arguments: &[&dyn AsRef<OsStr>]) -> Output {
    let mut command = Command::new(program);
    for argument in arguments {
        command.arg(argument);
    }
    command.output().unwrap_or_else(|error| panic!("run {program}: {error}"))
}

/// How often the kernel must find too many links before it is believed: one walk in 40 errs while others mount.
const LINKS_COUNTED: usize = 8;

/// `skopeo copy` into the store `root`, umask 022, in a mount namespace of its own: it leaves mounts behind.
pub fn skopeo_into(root: &Path, source: &str, name: &str) -> Output {
    let run = root.with_extension("run");
    let store = format!("containers-storage:[overlay@{}+{}]{name}", root.display(), run.display());
    let script = r#"umask 022 && exec skopeo --insecure-policy copy --quiet "$1" "$2""#;
    let mut asked = 0;
    loop {
        let output = try_run("unshare", &[&"--mount", &"sh", &"-c", &script, &"sh", &source, &store]);
        asked += 1;
        // When something is mounted meanwhile, the kernel walks a path again and counts the links of both walks: half of
        // its 40 may then be too many (fs/namei.c: `filename_lookup` begins again, `total_link_count` does not).
        let too_many_links = String::from_utf8_lossy(&output.stderr).contains("too many levels of symbolic links");
        if output.status.success() || !too_many_links || asked == LINKS_COUNTED {
            return output;
        }
        fs_err::remove_dir_all(root).unwrap();
    }
}

/// A command that runs `arguments` where mounts are its own and vanish with it.
pub fn in_own_mounts(program: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", program]);
    command
}

/// What `containers-storage check` has against the store `root` in the directory `at` (and against `image_store` there,
/// an additional one), a line each. `None` where no release is at hand that can check: Debian 12's cannot.
pub fn complaints(at: &Path, root: &str, image_store: Option<&str>) -> Option<Vec<String>> {
    let chroot = std::env::var_os("PREPULL_NEWER_CHROOT").filter(|path| !path.is_empty());
    if chroot.is_none() {
        let help = Command::new("containers-storage").args(["check", "--help"]).output().unwrap();
        if !help.status.success() {
            return None;
        }
    }
    let script = r#"chroot=$1 at=$2 root=$3 store=$4
        if test -n "$chroot"; then
            mkdir -p "$chroot/mnt" && mount --rbind "$at" "$chroot/mnt" && mount -t proc proc "$chroot/proc" || exit 9
            at=/mnt
        fi
        exec ${chroot:+chroot "$chroot"} containers-storage --graph "$at/$root" --run "$at/check-run" -s overlay \
            ${store:+--storage-opt "overlay.imagestore=$at/$store"} check"#;
    let mut command = in_own_mounts("sh");
    command.args(["-c", script, "sh"]).arg(chroot.unwrap_or_default()).arg(at).arg(root);
    let output = command.arg(image_store.unwrap_or_default()).output().unwrap();
    let (found, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let mut found: Vec<String> = found.lines().map(str::to_owned).collect();
    found.sort();
    // A tool that could not even look at the store has nothing against it.
    let looked = if found.is_empty() { output.status.success() } else { output.status.code() == Some(1) };
    assert!(looked, "containers-storage check: {}: {found:?} {said}", output.status);
    Some(found)
}

/// Unpacks with GNU tar as docs/make.md says; returns what tar printed.
pub fn unpack_gnu(tar: &Path, into: &Path) -> Result<(), String> {
    fs_err::create_dir_all(into).unwrap();
    let options = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "--warning=no-timestamp", "-xpf"];
    let output = Command::new("tar").args(options).arg(tar).arg("-C").arg(into).env("LC_ALL", "C").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    // ACLs on a file system mounted without them: skopeo leaves them out silently.
    let said: Vec<&str> = said.lines().filter(|line| !line.ends_with("Operation not supported")).collect();
    if output.status.success() && said.is_empty() { Ok(()) } else { Err(format!("tar: {said:?}")) }
}

/// When something was changed last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Time {
    /// When the store was made: by the clock, or by the time stamp that stands for it.
    Made,
    At(i64, i64),
}

/// An entry of a tree as `lstat` and `llistxattr` show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub kind: &'static str,
    pub mode: u32,
    pub owner: (u32, u32),
    pub time: Time,
    pub content: String,
    pub xattrs: BTreeMap<String, String>,
    /// The first name of a file that has several.
    pub link: Option<String>,
}

/// Names are shown as Rust escapes them.
pub type Tree = BTreeMap<String, Node>;

/// The seconds at which prepull's and others' "now" lie.
#[derive(Debug, Clone)]
pub struct Clock {
    from: i64,
    to: i64,
}

impl Clock {
    pub fn now() -> i64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64
    }

    /// From `from` until now; the file system's clock lags behind.
    pub fn since(from: i64) -> Self {
        Self { from: from - 1, to: Self::now() + 1 }
    }

    /// prepull's.
    pub fn stamp() -> Self {
        Self { from: STAMP, to: STAMP }
    }

    fn time(&self, seconds: i64, nanoseconds: i64) -> Time {
        if (self.from..=self.to).contains(&seconds) { Time::Made } else { Time::At(seconds, nanoseconds) }
    }
}

fn escaped(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// All that is below `root`, and `root` itself under the name ".".
pub fn walk(root: &Path, clock: &Clock) -> Tree {
    let mut tree = Tree::new();
    let mut links = BTreeMap::new();
    walk_into(root, b".", clock, &mut tree, &mut links);
    tree
}

/// One entry, without what is below it.
pub fn lone(path: &Path, clock: &Clock) -> Node {
    let mut tree = Tree::new();
    entry_into(path, b".", clock, &mut tree, &mut BTreeMap::new());
    tree.remove(".").unwrap()
}

fn walk_into(path: &Path, name: &[u8], clock: &Clock, tree: &mut Tree, links: &mut BTreeMap<u64, String>) {
    if entry_into(path, name, clock, tree, links) != "dir" {
        return;
    }
    let mut children: Vec<_> = fs_err::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    children.sort();
    for child in children {
        let below = if name == b"." { child.as_bytes().to_vec() } else { [name, b"/", child.as_bytes()].concat() };
        walk_into(&path.join(&child), &below, clock, tree, links);
    }
}

fn entry_into(
    path: &Path,
    name: &[u8],
    clock: &Clock,
    tree: &mut Tree,
    links: &mut BTreeMap<u64, String>,
) -> &'static str {
    let stat = match fs_err::symlink_metadata(path) {
        Ok(stat) => stat,
        // A whiteout in a directory that is not merged shows as a name without a file.
        Err(error) => {
            let ghost = Node {
                kind: "ghost",
                mode: 0,
                owner: (0, 0),
                time: Time::Made,
                content: error.kind().to_string(),
                xattrs: BTreeMap::new(),
                link: None,
            };
            tree.insert(escaped(name), ghost);
            return "ghost";
        }
    };
    let kind = stat.file_type();
    let device = || format!("{}:{}", rustix::fs::major(stat.rdev()), rustix::fs::minor(stat.rdev()));
    let (kind, content) = if kind.is_dir() {
        ("dir", String::new())
    } else if kind.is_symlink() {
        ("symlink", escaped(fs_err::read_link(path).unwrap().as_os_str().as_bytes()))
    } else if kind.is_char_device() {
        ("char", device())
    } else if kind.is_block_device() {
        ("block", device())
    } else if kind.is_fifo() {
        ("fifo", String::new())
    } else {
        ("file", format!("{} {}", stat.len(), Digest::of(&fs_err::read(path).unwrap())))
    };
    let shown = escaped(name);
    let link = (kind != "dir" && stat.nlink() > 1).then(|| links.entry(stat.ino()).or_insert(shown.clone()).clone());
    let node = Node {
        kind,
        mode: stat.mode() & 0o7777,
        owner: (stat.uid(), stat.gid()),
        time: clock.time(stat.mtime(), stat.mtime_nsec()),
        content,
        xattrs: xattrs(path),
        link,
    };
    tree.insert(shown, node);
    kind
}

fn xattrs(path: &Path) -> BTreeMap<String, String> {
    let mut list = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut list).unwrap();
    let names = list[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 65536];
            let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value).unwrap();
            (escaped(name), escaped(&value[..length]))
        })
        .collect()
}

/// The differences between two trees, one line each.
pub fn differences(what: &str, ours: &Tree, theirs: &Tree, out: &mut String) {
    for (name, node) in ours {
        match theirs.get(name) {
            None => {
                let _ = writeln!(out, "  {what}/{name}: only ours: {node:?}");
            }
            Some(other) if other != node => {
                let _ = writeln!(out, "  {what}/{name}:\n    ours   {node:?}\n    theirs {other:?}");
            }
            Some(_) => {}
        }
    }
    for (name, node) in theirs.iter().filter(|(name, _)| !ours.contains_key(*name)) {
        let _ = writeln!(out, "  {what}/{name}: only theirs: {node:?}");
    }
}

/// A JSON file of a store.
pub fn json(root: &Path, path: &str) -> Value {
    serde_json::from_slice(&fs_err::read(root.join(path)).unwrap()).unwrap()
}

/// The ids of an image's layers, the top first, by the name of the image; as layers.json links them.
pub fn chain(root: &Path, image: &str) -> Vec<String> {
    let images = json(root, "overlay-images/images.json");
    let layers = if root.join("overlay-layers/layers.json").exists() {
        json(root, "overlay-layers/layers.json")
    } else {
        Value::Array(Vec::new())
    };
    let found = images
        .as_array()
        .unwrap()
        .iter()
        .find(|record| record["names"].as_array().is_some_and(|names| names.iter().any(|name| name == image)));
    let found = found.unwrap_or_else(|| panic!("{image} is not in {}", root.display()));
    let mut chain = Vec::new();
    let mut next = found.get("layer").and_then(Value::as_str).map(str::to_owned);
    while let Some(id) = next {
        let record = layers.as_array().unwrap().iter().find(|record| record["id"] == id.as_str()).unwrap();
        next = record.get("parent").and_then(Value::as_str).map(str::to_owned);
        chain.push(id);
    }
    chain
}

/// The lines of a layer's tar-split, with adjacent segments as one: how the bytes after the end of an archive are cut
/// follows from how skopeo happened to read them, and old releases add an empty segment.
pub fn tar_split(root: &Path, id: &str) -> Vec<Value> {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let gzip = fs_err::read(root.join(format!("overlay-layers/{id}.tar-split.gz"))).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(&gzip[..]).read_to_string(&mut text).unwrap();
    let mut lines: Vec<Value> = Vec::new();
    let mut segment: Vec<u8> = Vec::new();
    for (position, line) in text.lines().enumerate() {
        let mut line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["position"], position);
        line.as_object_mut().unwrap().remove("position");
        if line["type"] == 2 {
            segment.extend(STANDARD.decode(line["payload"].as_str().unwrap()).unwrap());
            continue;
        }
        lines.push(Value::from(STANDARD.encode(std::mem::take(&mut segment))));
        lines.push(line);
    }
    lines.push(Value::from(STANDARD.encode(segment)));
    lines
}

/// An overlay mount; unmounted when dropped.
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts an image's merged layers (`chain`, the top first) read-only, by the links as containers/storage does.
    pub fn overlay(root: &Path, chain: &[String], at: &Path) -> Self {
        let overlay = root.join("overlay");
        fs_err::create_dir_all(at).unwrap();
        // One lower layer alone is no overlay: an empty one goes below.
        let empty = at.with_extension("empty");
        fs_err::create_dir_all(&empty).unwrap();
        let links = chain.iter().map(|id| {
            let link = fs_err::read_to_string(overlay.join(id).join("link")).unwrap();
            format!("l/{link}")
        });
        let lower = links.chain([empty.display().to_string()]).collect::<Vec<_>>().join(":");
        // mount(8) looks for whole paths, so the links are walked from the store's directory by mount(2) itself.
        let output = Command::new("mount")
            .args(["-i", "-t", "overlay", "overlay", "-o"])
            .arg(format!("ro,lowerdir={lower}"))
            .arg(at)
            .current_dir(&overlay)
            .output()
            .unwrap();
        assert!(output.status.success(), "mount: {}", String::from_utf8_lossy(&output.stderr));
        Self(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn said(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_default()
}

/// Runs `work` on all inputs on several threads (the real tools mostly wait for the disk); gives what went wrong, by input.
pub fn each<T: Sync>(inputs: &[T], threads: usize, work: impl Fn(&T) -> Result<(), String> + Sync) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((at, input)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, inputs.get(at)?)))
                {
                    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(input)));
                    if let Err(error) = result.unwrap_or_else(|panic| Err(format!("panic: {}", said(&*panic)))) {
                        failures.lock().unwrap().push((at, error));
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap();
    failures.sort();
    failures.into_iter().map(|(_, failure)| failure).collect()
}
