//! `prepull install`, `rm` and `gc` on stores that podman and skopeo make, read and change, too.

mod behaviour;
mod by_sudo;
mod faults;
mod removal;
mod together;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use prepull::digest::Digest;
use prepull::media_type::{OCI_CONFIG, OCI_MANIFEST};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::command::{prepull, stderr};
use crate::made::{Layout, gzip};
use crate::raw::{archive, dir, file, sym};
use crate::stores::{GRAPHROOT, in_own_mounts, scratch};

/// A machine with a store in it, and images to put there.
struct World {
    _scratch: tempfile::TempDir,
    at: PathBuf,
    layout: Layout,
}

/// An ordinary user, of whom no machine knows but in these tests.
const USER: u32 = 4321;

/// What a path is: its inode, times in nanoseconds, and size.
type State = BTreeMap<PathBuf, (u64, i128, i128, u64)>;

impl World {
    /// An empty machine.
    fn new() -> Self {
        let scratch = scratch();
        let at = scratch.path().canonicalize().unwrap();
        for name in ["machine", "home"] {
            fs_err::create_dir(at.join(name)).unwrap();
        }
        let layout = Layout::new(at.join("oci"));
        Self { _scratch: scratch, at, layout }
    }

    fn root(&self) -> PathBuf {
        self.at.join("machine")
    }

    fn graph(&self) -> PathBuf {
        self.root().join(GRAPHROOT)
    }

    /// Adds `localhost/NAME:1`, with a config of its own; gives its item.
    fn image(&mut self, name: &str, layers: &[Vec<u8>]) -> String {
        let manifest = self.manifest(name, layers);
        self.layout.add(Some(&full(name)), manifest);
        self.item(name)
    }

    /// A manifest of an image with a config that only this name gives.
    fn manifest(&mut self, name: &str, layers: &[Vec<u8>]) -> Value {
        let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        let config = json!({
            "created": "2024-01-02T03:04:05Z", "architecture": "amd64", "os": "linux",
            "config": {"Cmd": ["/bin/cat", "/name"], "Labels": {"name": name}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.layout.blob(OCI_CONFIG, &serde_json::to_vec(&config).unwrap());
        let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
        let layers: Vec<Value> = layers.iter().map(|layer| self.layout.blob(tar, &gzip(layer))).collect();
        self.layout.manifest(&json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers,
        }))
    }

    fn item(&self, name: &str) -> String {
        format!("oci:{}:{}", self.layout.path.display(), full(name))
    }

    /// `prepull VERB --root MACHINE`.
    fn prepull(&self, verb: &str) -> Command {
        let mut command = prepull(&self.at.join("home"));
        command.args([verb, "--quiet", "--root"]).arg(self.root());
        if verb == "install" {
            command.args(["--no-cache", "--platform", "linux/amd64"]);
        }
        command
    }

    /// Runs `prepull VERB`; gives what it says as JSON.
    #[track_caller]
    fn does(&self, verb: &str, arguments: &[&str]) -> Value {
        let said = ok(self.prepull(verb).arg("--json").args(arguments));
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{verb} {arguments:?}: {error}: {said}"))
    }

    #[track_caller]
    fn installs(&self, items: &[&str]) -> Value {
        self.does("install", items)
    }

    /// `podman` on the store, in mounts of its own.
    fn try_podman(&self, arguments: &[&str]) -> Output {
        podman(&self.graph(), &self.at.join("run")).args(arguments).output().unwrap()
    }

    #[track_caller]
    fn podman(&self, arguments: &[&str]) -> String {
        let output = self.try_podman(arguments);
        assert!(output.status.success(), "podman {arguments:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// `skopeo copy` of an item into the store.
    #[track_caller]
    fn skopeo(&self, item: &str, name: &str) {
        skopeo(&self.graph(), &self.at.join("run"), item, name);
    }

    /// The helper, a copy that is root's, on a path that everybody may go.
    fn helper(&self) -> PathBuf {
        self.at.join("libexec/prepull-helper")
    }

    /// Has the helper there, and this policy for [`Self::as_root`] and [`Self::as_user`].
    fn lets_users_write(&self, policy: &str) {
        fs_err::set_permissions(&self.at, std::fs::Permissions::from_mode(0o711)).unwrap();
        fs_err::set_permissions(self.at.join("home"), std::fs::Permissions::from_mode(0o777)).unwrap();
        if !self.helper().exists() {
            fs_err::create_dir_all(self.at.join("libexec")).unwrap();
            fs_err::copy(env!("CARGO_BIN_EXE_prepull-helper"), self.helper()).unwrap();
        }
        fs_err::write(self.at.join("helper.toml"), policy).unwrap();
        let line = format!("#{USER} ALL=(root) NOPASSWD: {} stdio\n", self.helper().display());
        fs_err::write(self.at.join("sudoers"), line).unwrap();
    }

    /// The same for root: it may write to the machine by the helper.
    fn lets_root_write(&self, more: &str) {
        let root = self.root();
        let policy = format!("[[allow]]\nuser = \"root\"\nroot = \"{}\"\nkind = \"storage\"\n{more}\n", root.display());
        self.lets_users_write(&policy);
    }

    /// Runs what is added to it as root, with an /etc of its own.
    fn as_root(&self) -> Command {
        let script = r#"at=$1; shift
            o=$(mktemp -d "$at/etc-XXXXXX") && mount -t tmpfs tmpfs "$o" && mkdir "$o/up" "$o/work" || exit 99
            mount -t overlay overlay -o "lowerdir=/etc,upperdir=$o/up,workdir=$o/work" /etc || exit 99
            mkdir -p /run/prepull && mount -t tmpfs -o mode=755 none /run/prepull || exit 99
            mkdir -p -m 755 /etc/prepull && cp "$at/helper.toml" /etc/prepull/ && chmod 644 /etc/prepull/helper.toml || exit 99
            mkdir -p -m 755 /etc/sudoers.d && cp "$at/sudoers" /etc/sudoers.d/prepull && chmod 440 /etc/sudoers.d/prepull || exit 99
            echo 'prepulltester:x:4321:4321::/:/bin/sh' >>/etc/passwd
            echo 'prepulltester:*:19000:0:99999:7:::' >>/etc/shadow
            exec "$@""#;
        let mut command = in_own_mounts("sh");
        command.args(["-c", script, "sh"]).arg(&self.at);
        command.env("HOME", self.at.join("home")).env("SOURCE_DATE_EPOCH", "1234567890");
        command
    }

    /// Has the prepull that `command` runs start the helper without sudo.
    fn directly(&self, command: &mut Command) {
        let directory = self.at.join("direct");
        crate::command::direct_sudo(&directory);
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", directory.display()));
    }

    /// The same as [`USER`].
    fn as_user(&self) -> Command {
        let user = USER.to_string();
        let mut command = self.as_root();
        command.args(["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"]);
        command
    }

    /// What podman lists, sorted.
    #[track_caller]
    fn listed(&self) -> Vec<String> {
        let said = self.podman(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
        let mut names: Vec<String> = said.lines().map(str::to_owned).collect();
        names.sort();
        names
    }

    /// A file of an image, as podman mounts it.
    #[track_caller]
    fn reads(&self, image: &str, file: &str) -> String {
        let script = r#"root=$1 run=$2 image=$3 file=$4
            p() { podman --root "$root" --runroot "$run" --tmpdir "$run/libpod" --storage-driver overlay "$@"; }
            m=$(p image mount "$image") && cat "$m/$file""#;
        let mut command = in_own_mounts("sh");
        ok(command.args(["-c", script, "sh"]).arg(self.graph()).arg(self.at.join("run")).args([image, file]))
    }

    /// Nothing is wrong with the store, and nothing is left in it.
    #[track_caller]
    fn is_good(&self) {
        self.is_sound();
        let names = fs_err::read_dir(self.graph()).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = names.filter(|name| name.to_str().unwrap().starts_with(".prepull-")).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }

    /// Nothing is wrong with the store.
    #[track_caller]
    fn is_sound(&self) {
        ok(prepull(&self.at.join("home")).arg("verify").arg(self.root()));
    }

    /// The record of the image of this name, as it is in the file.
    #[track_caller]
    fn record(&self, name: &str) -> String {
        let is_it = |record: &String| {
            let value: Value = serde_json::from_str(record).unwrap();
            value["names"].as_array().is_some_and(|names| names.iter().any(|other| other == name))
        };
        self.records().into_iter().find(is_it).unwrap_or_else(|| panic!("no {name}"))
    }

    fn records(&self) -> Vec<String> {
        let text = fs_err::read_to_string(self.graph().join("overlay-images/images.json")).unwrap();
        let records: Vec<Box<RawValue>> = serde_json::from_str(&text).unwrap();
        records.iter().map(|record| record.get().to_owned()).collect()
    }

    #[track_caller]
    fn id(&self, name: &str) -> String {
        let record: Value = serde_json::from_str(&self.record(name)).unwrap();
        record["id"].as_str().unwrap().to_owned()
    }

    /// Ids of layers whose directory is there.
    fn layers(&self) -> Vec<String> {
        hex_names(&self.graph().join("overlay"))
    }

    /// All of the store, as it is.
    fn state(&self) -> State {
        let mut all = State::new();
        look(&self.graph(), &self.graph(), &mut all);
        all
    }

    /// The same, but for the directory itself, in which the staging directory comes and goes.
    fn state_inside(&self) -> State {
        let mut all = self.state();
        all.remove(Path::new(""));
        all
    }
}

fn full(name: &str) -> String {
    format!("localhost/{name}:1")
}

/// Names of 64 hexadecimal digits in a directory, sorted.
fn hex_names(directory: &Path) -> Vec<String> {
    let names = fs_err::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> =
        names.filter(|name| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())).collect();
    names.sort();
    names
}

fn look(root: &Path, path: &Path, all: &mut State) {
    let found = fs_err::symlink_metadata(path).unwrap();
    let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    let times = [nanoseconds(found.mtime(), found.mtime_nsec()), nanoseconds(found.ctime(), found.ctime_nsec())];
    all.insert(path.strip_prefix(root).unwrap().to_owned(), (found.ino(), times[0], times[1], found.size()));
    if found.is_dir() {
        for entry in fs_err::read_dir(path).unwrap() {
            look(root, &entry.unwrap().path(), all);
        }
    }
}

/// Runs it; gives what it said on standard output.
#[track_caller]
fn ok(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (said, out) = (stderr(&output), String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{command:?}: {}: {said}{out}", output.status);
    out.into_owned()
}

/// `podman` on a store, in mounts of its own.
fn podman(graph: &Path, run: &Path) -> Command {
    let script = r#"root=$1 run=$2; shift 2
        exec podman --root "$root" --runroot "$run" --tmpdir "$run/libpod" --storage-driver overlay "$@""#;
    let mut command = in_own_mounts("sh");
    command.args(["-c", script, "sh"]).arg(graph).arg(run);
    command
}

/// `skopeo copy` into a store that may be in use.
#[track_caller]
fn skopeo(graph: &Path, run: &Path, item: &str, name: &str) {
    let store = format!("containers-storage:[overlay@{}+{}]{name}", graph.display(), run.display());
    let script = r#"umask 022 && exec skopeo --insecure-policy copy --quiet "$1" "$2""#;
    ok(in_own_mounts("sh").args(["-c", script, "sh", item, &store]));
}

/// Layers that several images have: a program to run, and something on top.
fn base() -> Vec<Vec<u8>> {
    let busybox = fs_err::read("/bin/busybox").unwrap();
    vec![
        archive(&[
            dir("bin/"),
            file("bin/busybox").mode(0o755).data(&busybox),
            sym("bin/cat", "busybox"),
            dir("proc/"),
            dir("etc/"),
            file("etc/one").data("1"),
        ]),
        archive(&[dir("root/").mode(0o700), file("root/secret").mode(0o600).data("s"), file("name").data("base\n")]),
    ]
}

/// The same, and a layer of its own on top.
fn on_base(name: &str) -> Vec<Vec<u8>> {
    let mut layers = base();
    layers.push(top(name));
    layers
}

fn top(name: &str) -> Vec<u8> {
    archive(&[file("name").data(format!("{name}\n")), dir("home/"), dir("home/user/").owner(1000, 1000).mode(0o750)])
}
