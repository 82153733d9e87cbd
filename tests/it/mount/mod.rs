//! `prepull mount`: the file system beside the tree that `make` writes, under overlays and podman, and when all fails.

mod broken;
mod confined;
mod death;
mod kept;
mod large;
mod lazy;
mod no_resend;
mod overlay;
pub mod podman;
mod same;
pub mod user;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;
use prepull::digest::Digest;
use prepull::media_type::{OCI_CONFIG, OCI_MANIFEST};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::command::{prepull, stderr, succeeds};
use crate::made::{Layout, gzip};
use crate::raw::{archive, dir, file, sym};
use crate::stores::{scratch, unpack_gnu};

/// Where `make --store additional` has the store in a machine.
pub const ADDITIONAL: &str = "usr/lib/containers/storage";

/// How long something may take on a machine that does other things, too.
const PATIENCE: Duration = Duration::from_secs(30);

/// A directory with images, a cache and mountpoints.
pub struct World {
    _scratch: tempfile::TempDir,
    pub at: PathBuf,
    pub layout: Layout,
}

impl World {
    /// In mounts of its own: who makes itself a copy of the machine's mounts meanwhile, as other tests and containers do, does not
    /// keep what is mounted here from ending.
    pub fn new() -> Self {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS).unwrap();
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let scratch = scratch();
        let at = scratch.path().canonicalize().unwrap();
        fs_err::create_dir(at.join("home")).unwrap();
        // Users other than root are to come through to the mountpoints.
        fs_err::set_permissions(&at, PermissionsExt::from_mode(0o755)).unwrap();
        let layout = Layout::new(at.join("oci"));
        Self { _scratch: scratch, at, layout }
    }

    /// Adds `localhost/NAME:1`, with a config of its own; gives its item.
    pub fn image(&mut self, name: &str, layers: &[Vec<u8>]) -> String {
        let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        let config = json!({
            "created": "2024-01-02T03:04:05Z", "architecture": "amd64", "os": "linux",
            "config": {"Cmd": ["/bin/cat", "/name"], "Env": ["PATH=/bin"], "Labels": {"name": name}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.layout.blob(OCI_CONFIG, &serde_json::to_vec(&config).unwrap());
        let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
        let layers: Vec<Value> = layers.iter().map(|layer| self.layout.blob(tar, &gzip(layer))).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
        let manifest = self.layout.manifest(&manifest);
        self.layout.add(Some(&full(name)), manifest);
        self.item(name)
    }

    pub fn item(&self, name: &str) -> String {
        format!("oci:{}:{}", self.layout.path.display(), full(name))
    }

    pub fn prepull(&self) -> Command {
        prepull(&self.at.join("home"))
    }

    pub fn cache(&self) -> PathBuf {
        self.at.join("cache")
    }

    /// `prepull mount`, with this world's cache.
    pub fn mounting(&self, at: &Path) -> Command {
        let mut command = self.prepull();
        command.args(["mount", "--quiet", "--json", "--platform", "linux/amd64", "--cache-dir"]);
        command.arg(self.cache()).arg(at);
        command
    }

    /// Mounts at a new directory.
    #[track_caller]
    pub fn mount<A: AsRef<std::ffi::OsStr>>(&self, name: &str, arguments: &[A]) -> Mount {
        let at = self.at.join(name);
        fs_err::create_dir_all(&at).unwrap();
        let said = succeeds(self.mounting(&at).args(arguments));
        Mount::of(self, at, &said)
    }

    /// `make --store additional` of the same, as a tar.
    #[track_caller]
    pub fn make<A: AsRef<std::ffi::OsStr>>(&self, name: &str, options: &[&str], items: &[A]) -> PathBuf {
        let tar = self.at.join(name);
        let mut command = self.prepull();
        command.args(["make", "--store", "additional", "--no-config", "--quiet", "--platform", "linux/amd64"]);
        succeeds(command.arg("--cache-dir").arg(self.cache()).arg("-o").arg(&tar).args(options).args(items));
        tar
    }

    /// The same, unpacked by GNU tar; gives the graphroot.
    #[track_caller]
    pub fn unpacked<A: AsRef<std::ffi::OsStr>>(&self, name: &str, items: &[A]) -> PathBuf {
        let tar = self.make(&format!("{name}.tar"), &["--unpacker", "gnu"], items);
        let root = self.at.join(name);
        unpack_gnu(&tar, &root).unwrap();
        root.join(ADDITIONAL)
    }
}

/// Something mounted; unmounted when dropped, whoever uses it, and its keeper has ended then.
pub struct Mount {
    pub at: PathBuf,
    pub keeper: u32,
    home: PathBuf,
    cache: PathBuf,
}

impl Mount {
    pub fn of(world: &World, at: PathBuf, said: &str) -> Self {
        let status: Value = serde_json::from_str(said).unwrap_or_else(|error| panic!("{error}: {said}"));
        let keeper = number(&status["keeper"]);
        Self { at, keeper, home: world.at.join("home"), cache: world.cache() }
    }

    pub fn prepull(&self, words: &[&str]) -> Command {
        let mut command = prepull(&self.home);
        command.args(words).arg(&self.at);
        command
    }

    #[track_caller]
    pub fn status(&self) -> Value {
        serde_json::from_str(&succeeds(&mut self.prepull(&["mount", "status", "--json"]))).unwrap()
    }

    pub fn changing(&self, verb: &str, arguments: &[&str]) -> Command {
        let mut command = self.prepull(&["mount", verb, "--quiet"]);
        if verb == "add" {
            command.args(["--platform", "linux/amd64"]);
        }
        command.arg("--cache-dir").arg(&self.cache).args(arguments);
        command
    }

    #[track_caller]
    pub fn adds(&self, items: &[&str]) {
        succeeds(&mut self.changing("add", items));
    }

    #[track_caller]
    pub fn removes(&self, names: &[&str]) {
        succeeds(&mut self.changing("rm", names));
    }

    /// Kills the worker, and waits until there is another one.
    #[track_caller]
    pub fn kill_worker(&self) {
        let before = self.status();
        kill(number(&before["worker"]), Signal::KILL);
        wait_for("another worker", || {
            let now = self.status();
            number(&now["restarts"]) > number(&before["restarts"]) && now["worker"] != 0
        });
    }

    /// Names of the images that it shows.
    pub fn names(&self) -> Vec<String> {
        let images = crate::stores::json(&self.at, "overlay-images/images.json");
        let mut names: Vec<String> = images
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|image| image["names"].as_array().cloned().unwrap_or_default())
            .map(|name| name.as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        while rustix::mount::unmount(&self.at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
        let ended = until(|| has_ended(self.keeper));
        // A test that fails already is not to end by this.
        assert!(ended || std::thread::panicking(), "{}: its keeper has not ended", self.at.display());
    }
}

pub fn full(name: &str) -> String {
    format!("localhost/{name}:1")
}

#[track_caller]
pub fn number(value: &Value) -> u32 {
    u32::try_from(value.as_u64().unwrap()).unwrap()
}

pub fn kill(process: u32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(process as i32).unwrap(), signal);
}

/// Whether a process has ended, waited for or not.
pub fn has_ended(process: u32) -> bool {
    match fs_err::read_to_string(format!("/proc/{process}/stat")) {
        Ok(stat) => stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')),
        Err(_) => true,
    }
}

/// Waits until it is so; gives whether it is.
pub fn until(mut is_so: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if is_so() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

#[track_caller]
pub fn wait_for(what: &str, is_so: impl FnMut() -> bool) {
    assert!(until(is_so), "waited for {what}");
}

/// Runs it; gives what it said on standard output.
#[track_caller]
pub fn ok(command: &mut Command) -> String {
    let output: Output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (said, out) = (stderr(&output), String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{command:?}: {}: {said}{out}", output.status);
    out.into_owned()
}

/// Layers with a program to run.
pub fn base() -> Vec<Vec<u8>> {
    let busybox = fs_err::read("/bin/busybox").unwrap();
    let programs = ["cat", "sh", "sleep", "ls", "id", "stat", "sha256sum", "find"];
    let mut entries = vec![dir("bin/"), file("bin/busybox").mode(0o755).data(&busybox)];
    entries.extend(programs.iter().map(|name| sym(format!("bin/{name}"), "busybox")));
    entries.extend(["proc/", "sys/", "dev/", "etc/", "tmp/", "run/"].map(dir));
    vec![archive(&entries), archive(&[dir("root/").mode(0o700), file("name").data("base\n")])]
}

/// The same, and a layer of its own on top.
pub fn on_base(name: &str) -> Vec<Vec<u8>> {
    let mut layers = base();
    layers.push(archive(&[file("name").data(format!("{name}\n")), file(format!("only-{name}")).data(large(name))]));
    layers
}

/// Bytes that no compression and no page cache makes nothing of: 300,000 that follow from `seed`.
pub fn large(seed: &str) -> Vec<u8> {
    noise(seed, 300_000)
}

pub fn noise(seed: &str, length: usize) -> Vec<u8> {
    let mut state =
        Digest::of(seed.as_bytes()).as_bytes()[..8].iter().fold(1, |all, &byte| all << 8 | u64::from(byte)) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
