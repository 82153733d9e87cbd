//! By an ordinary user, through `fusermount3`: for himself, and for others where root lets him.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::chown;
use std::process::{Child, Command, Stdio};

use prepull::digest::Digest;
use serde_json::Value;

use super::podman::{PODMAN, RUN};
use super::{World, full, has_ended, large, number, ok, on_base, wait_for};
use crate::command::{fails, needs_root, stderr, succeeds};
use crate::raw::{archive, dir, file, mark};

/// `nobody` and `daemon`, whom every machine knows: fusermount3 wants a name.
pub const USER: u32 = 65534;
pub const OTHER: u32 = 1;

/// Mounts of its own, in which root lets users mount for others, or not.
pub struct Namespace {
    pub world: World,
    holder: Child,
}

impl Namespace {
    pub fn new(lets_others: bool) -> Self {
        let world = World::new();
        for (name, user) in [("home", USER), ("run", USER), ("mnt", USER), ("cache", USER), ("other", OTHER)] {
            let path = world.at.join(name);
            fs_err::create_dir_all(&path).unwrap();
            chown(&path, Some(user), Some(user)).unwrap();
        }
        // Where it was built others may not go.
        fs_err::copy(env!("CARGO_BIN_EXE_prepull"), world.at.join("prepull")).unwrap();
        let line = if lets_others { "user_allow_other\n" } else { "# user_allow_other\n" };
        fs_err::write(world.at.join("fuse.conf"), line).unwrap();
        // Where no udev runs, /dev/fuse is root's alone.
        let script = r#"mknod -m 666 "$1/fuse" c 10 229 && mount --bind "$1/fuse" /dev/fuse || exit 1
            mount --bind "$1/fuse.conf" /etc/fuse.conf && mount -t tmpfs tmpfs /tmp && chmod 1777 /tmp && echo && exec cat"#;
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh"]).arg(&world.at);
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "\n", "fuse3 is installed");
        Self { world, holder }
    }

    /// Runs `arguments` there as `user`.
    pub fn run(&self, user: u32, arguments: &[&str]) -> Command {
        let at = &self.world.at;
        let mut command = Command::new("nsenter");
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
        let home = if user == OTHER { "other" } else { "home" };
        command.env("HOME", at.join(home)).env("SOURCE_DATE_EPOCH", "1234567890");
        if user != 0 {
            command.env("XDG_RUNTIME_DIR", at.join(if user == OTHER { "other" } else { "run" }));
        }
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()));
        let user = user.to_string();
        command.args(["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"]);
        command.args(arguments).current_dir("/");
        command
    }

    pub fn prepull(&self, user: u32, words: &[&str]) -> Command {
        let mut command = self.run(user, &[self.world.at.join("prepull").to_str().unwrap()]);
        command.args(words);
        command
    }

    pub fn mnt(&self) -> String {
        self.world.at.join("mnt").to_str().unwrap().to_owned()
    }

    /// `prepull mount` by the user.
    pub fn mounting(&self, options: &[&str]) -> Command {
        let mut command =
            self.prepull(USER, &["mount", "--quiet", "--json", "--platform", "linux/amd64", "--cache-dir"]);
        command.arg(self.world.cache()).arg(self.mnt()).args(options);
        command
    }

    pub fn changing(&self, user: u32, verb: &str, what: &str) -> Command {
        let mut command = self.prepull(user, &["mount", verb, "--quiet", "--cache-dir"]);
        command.arg(if user == USER { self.world.cache() } else { self.world.at.join("other/cache") });
        command.args([&self.mnt(), what]);
        command
    }

    /// Names of the images, as the user sees them.
    pub fn names(&self, user: u32) -> Vec<String> {
        let said = ok(&mut self.run(user, &["cat", &format!("{}/overlay-images/images.json", self.mnt())]));
        let images: Value = serde_json::from_str(&said).unwrap();
        images.as_array().unwrap().iter().map(|image| image["names"][0].as_str().unwrap().to_owned()).collect()
    }

    pub fn is_mounted(&self) -> bool {
        ok(&mut self.run(0, &["cat", "/proc/self/mountinfo"])).contains(" - fuse.prepull ")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.run(0, &["umount", "-l", &self.mnt()]).stderr(Stdio::null()).status();
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[test]
fn a_user_mounts_for_himself() {
    if !needs_root("mount::user::a_user_mounts_for_himself") {
        return;
    }
    let mut space = Namespace::new(false);
    let opaque = [
        archive(&[dir("d/"), file("d/hidden")]),
        archive(&[
            dir("d/").xattr("user.a", "1"),
            mark("d/.wh..wh..opq"),
            file("d/secret").mode(0o600),
            file("d/open"),
        ]),
    ];
    let items = [space.world.image("one", &opaque), space.world.image("two", &on_base("two"))];
    let status: Value = serde_json::from_str(&succeeds(space.mounting(&[]).arg(&items[0]))).unwrap();
    let (keeper, worker) = (number(&status["keeper"]), number(&status["worker"]));
    for process in [keeper, worker] {
        let text = fs_err::read_to_string(format!("/proc/{process}/status")).unwrap();
        assert!(text.contains(&format!("\nUid:\t{USER}\t{USER}\t{USER}\t{USER}\n")), "{text}");
    }
    let options = ok(&mut space.run(0, &["findmnt", "-n", "-o", "OPTIONS,FSTYPE", &space.mnt()]));
    for option in ["ro", "nosuid", "nodev", "noatime", "default_permissions", "user_id=65534", "fuse.prepull"] {
        assert!(options.split([',', ' ', '\n']).any(|other| other == option), "{option}: {options}");
    }
    assert!(!options.contains("allow_other"), "{options}");
    assert_eq!(space.names(USER), [full("one")]);
    // As anybody may look at it.
    let top = |what: &str| {
        let script = format!(
            "cd {}/overlay; for d in */diff/d; do test ! -e $d/open || {{ cd $d; break; }}; done; {what}",
            space.mnt()
        );
        space.run(USER, &["sh", "-c", &script]).output().unwrap()
    };
    assert_eq!(String::from_utf8_lossy(&top("cat open").stdout), "d/open");
    assert!(stderr(&top("cat secret")).contains("Permission denied"));
    let said = String::from_utf8_lossy(&top("getfattr -d -m - .").stdout).into_owned();
    assert_eq!(said, "# file: .\nuser.a=\"1\"\n\n", "trusted.* is for root");

    // Neither root nor another user sees it or changes it.
    for user in [0, OTHER] {
        let output = space.run(user, &["ls", &space.mnt()]).output().unwrap();
        assert!(stderr(&output).contains("Permission denied"), "{user}: {}", stderr(&output));
        fails(&mut space.prepull(user, &["mount", "status", &space.mnt()]), 1, "it belongs to another user");
        fails(&mut space.changing(user, "add", &items[1]), 1, "it belongs to another user");
        fails(&mut space.changing(user, "rm", &full("one")), 1, "it belongs to another user");
    }
    fails(&mut space.prepull(OTHER, &["umount", &space.mnt()]), 1, "");
    assert!(space.is_mounted());
    // Even if the other one comes to the socket.
    let mut spying = space.prepull(OTHER, &["mount", "status", &space.mnt()]);
    fails(spying.env("XDG_RUNTIME_DIR", space.world.at.join("run")), 1, "");

    succeeds(&mut space.changing(USER, "add", &items[1]));
    assert_eq!(space.names(USER).len(), 2);
    succeeds(&mut space.changing(USER, "rm", &full("one")));
    assert_eq!(space.names(USER), [full("two")]);
    fails(&mut space.changing(USER, "rm", "localhost/none:1"), 2, "no such image in the mount");
    super::kill(worker, rustix::process::Signal::KILL);
    let said =
        ok(&mut space.run(USER, &["sh", "-c", &format!("cat {}/overlay/*/diff/only-two | sha256sum", space.mnt())]));
    assert_eq!(said, format!("{}  -\n", Digest::of(&large("two")).hex()));
    let status: Value =
        serde_json::from_str(&succeeds(&mut space.prepull(USER, &["mount", "status", "--json", &space.mnt()])))
            .unwrap();
    assert_eq!((number(&status["keeper"]), &status["restarts"]), (keeper, &1.into()));
    succeeds(&mut space.prepull(USER, &["umount", "--quiet", &space.mnt()]));
    assert!(!space.is_mounted());
    wait_for("the keeper", || has_ended(keeper));

    // Root may unmount what is a user's.
    let status: Value = serde_json::from_str(&succeeds(space.mounting(&[]).arg(&items[0]))).unwrap();
    succeeds(&mut space.prepull(0, &["umount", "--quiet", &space.mnt()]));
    assert!(!space.is_mounted());
    wait_for("the keeper", || has_ended(number(&status["keeper"])));
    // As SIGTERM does.
    let status: Value = serde_json::from_str(&succeeds(space.mounting(&[]).arg(&items[0]))).unwrap();
    super::kill(number(&status["keeper"]), rustix::process::Signal::TERM);
    wait_for("the keeper", || has_ended(number(&status["keeper"])));
    assert!(!space.is_mounted());
    assert_eq!(fs_err::read_dir(space.world.at.join("run/prepull/mounts")).unwrap().count(), 0);
}

#[test]
fn what_a_user_may_not() {
    if !needs_root("mount::user::what_a_user_may_not") {
        return;
    }
    let mut space = Namespace::new(false);
    let item = space.world.image("one", &on_base("one"));
    fails(space.mounting(&["--allow-other"]).arg(&item), 1, "a line user_allow_other in /etc/fuse.conf");
    assert!(!space.is_mounted());
    chown(space.mnt(), Some(0), Some(0)).unwrap();
    fails(space.mounting(&[]).arg(&item), 1, "fusermount3: ");
    chown(space.mnt(), Some(USER), Some(USER)).unwrap();
    let prepull = space.world.at.join("prepull").to_str().unwrap().to_owned();
    let words = [
        "/usr/bin/env",
        "PATH=/nowhere",
        &prepull,
        "mount",
        "--no-cache",
        "--platform",
        "linux/amd64",
        &space.mnt(),
        &item,
    ];
    fails(&mut space.run(USER, &words), 1, "apt-get install fuse3");
    assert!(!space.is_mounted());
    // A directory for the socket that somebody else has made: mounted, but nobody is asked there.
    succeeds(&mut space.run(OTHER, &["mkdir", "-p", "-m", "777", &format!("/tmp/prepull-mounts-{USER}")]));
    let said = succeeds(space.mounting(&[]).env_remove("XDG_RUNTIME_DIR").arg(&item));
    let status: Value = serde_json::from_str(&said).unwrap();
    assert!(
        status["troubles"].to_string().contains("belongs to another user (1) (remove it, or set XDG_RUNTIME_DIR"),
        "{said}"
    );
    let mut asking = space.prepull(USER, &["mount", "status", &space.mnt()]);
    fails(asking.env_remove("XDG_RUNTIME_DIR"), 1, "belongs to another user (1)");
    assert_eq!(space.names(USER), [full("one")]);
    succeeds(&mut space.prepull(USER, &["umount", "--quiet", &space.mnt()]));
    // His own is good.
    succeeds(&mut space.run(0, &["rm", "-r", &format!("/tmp/prepull-mounts-{USER}")]));
    succeeds(space.mounting(&[]).env_remove("XDG_RUNTIME_DIR").arg(&item));
    let mut asking = space.prepull(USER, &["mount", "status", &space.mnt()]);
    succeeds(asking.env_remove("XDG_RUNTIME_DIR"));
    succeeds(&mut space.prepull(USER, &["umount", "--quiet", &space.mnt()]));
}

#[test]
fn roots_podman_runs_from_a_users_mount() {
    if !needs_root("mount::user::roots_podman_runs_from_a_users_mount") {
        return;
    }
    let mut space = Namespace::new(true);
    let item = space.world.image("one", &on_base("one"));
    let status: Value = serde_json::from_str(&succeeds(space.mounting(&["--allow-other"]).arg(&item))).unwrap();
    assert_eq!(space.names(0), [full("one")]);
    assert_eq!(space.names(OTHER), [full("one")]);
    fails(&mut space.changing(OTHER, "rm", &full("one")), 1, "it belongs to another user");
    let script = format!(
        r#"{PODMAN} podman images --format '{{{{.Repository}}}}:{{{{.Tag}}}} {{{{.ReadOnly}}}}' &&
            podman run --rm {RUN} localhost/one:1 sh -c 'cat /name; sha256sum </only-one; id -u; echo x >/new && cat /new'"#
    );
    let mut podman = space.run(0, &["unshare", "--mount", "sh", "-c", &script, "sh"]);
    podman.stdin(Stdio::piped());
    let said = ok(podman.arg(&space.world.at).arg(space.mnt()).env("HOME", space.world.at.join("other")));
    let expected = format!("{} true\none\n{}  -\n0\nx\n", full("one"), Digest::of(&large("one")).hex());
    assert_eq!(said, expected);
    succeeds(&mut space.prepull(USER, &["umount", "--quiet", &space.mnt()]));
    wait_for("the keeper", || has_ended(number(&status["keeper"])));
}

/// Root in a namespace of his own mounts without fusermount3.
#[test]
fn in_a_users_own_namespace() {
    if !needs_root("mount::user::in_a_users_own_namespace") {
        return;
    }
    let mut space = Namespace::new(false);
    let item = space.world.image("one", &on_base("one"));
    let script = r#"prepull=$1 mnt=$2 cache=$3 item=$4
        "$prepull" mount --quiet --json --platform linux/amd64 --cache-dir "$cache" "$mnt" "$item" >/dev/null && cat "$mnt"/overlay/*/diff/name | sort &&
            stat -c %u:%g "$mnt/overlay" && "$prepull" umount --quiet "$mnt" && ls -A "$mnt" && echo gone"#;
    let words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"];
    let mut command = space.run(USER, &words);
    command.arg(space.world.at.join("prepull")).arg(space.mnt()).arg(space.world.cache()).arg(&item);
    assert_eq!(ok(&mut command), "base\none\n0:0\ngone\n");
}
