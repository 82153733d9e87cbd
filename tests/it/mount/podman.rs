//! podman lists and runs what is mounted, while it changes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use super::{Mount, World, full, large, ok, on_base};
use crate::command::{fails, needs_root, stderr};
use crate::made::Layout;
use crate::stores::in_own_mounts;
use prepull::digest::Digest;

/// podman with the mount as an additional store, in mounts of its own: with cgroups as a machine of today has them, where this one
/// has those of yesterday. podman 4.3 of Debian 12 cannot do `image mount` from an additional store (`layer not known`): what is
/// in an image is seen by `run`, and by `mount` of a container. crun gives what a container has as standard input to the container's
/// root: with other ids that must not be the machine's /dev/null, so there is another one.
pub const PODMAN: &str = r#"at=$1 store=$2; shift 2
    test -e "$at/null" || mknod -m 666 "$at/null" c 1 3
    mount --bind "$at/null" /dev/null || exit 99
    umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit 99
    store="--root $at/primary --runroot $at/run --tmpdir $at/run/libpod --storage-driver overlay --cgroup-manager cgroupfs
        --storage-opt additionalimagestore=$store"
    podman() { command podman $store "$@"; }
"#;

/// What `podman run` needs where it may not make groups, networks, and rlimits.
pub const RUN: &str = "--cgroups=disabled --network=host --ulimit nofile=1024:1024 --ulimit nproc=1024:1024";

/// A shell with podman on `mount`.
pub fn podman(world: &World, mount: &Mount, script: &str) -> Command {
    let mut command = in_own_mounts("sh");
    command
        .stdin(Stdio::piped())
        .args(["-c", &format!("{PODMAN}{script}"), "sh"])
        .arg(&world.at)
        .arg(&mount.at)
        .env("HOME", world.at.join("home"));
    command
}

/// What podman lists, sorted, with who may write.
#[track_caller]
pub fn listed(world: &World, mount: &Mount) -> Vec<String> {
    let said = ok(&mut podman(world, mount, "podman images --format '{{.Repository}}:{{.Tag}} {{.ReadOnly}}'"));
    let mut lines: Vec<String> = said.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Runs a shell in a container.
#[track_caller]
pub fn runs(world: &World, mount: &Mount, options: &str, image: &str, script: &str) -> String {
    let command = format!(r#"podman run --rm {RUN} {options} {image} sh -c "$1""#);
    ok(podman(world, mount, &command).arg(script))
}

#[test]
fn several_images_run() {
    if !needs_root("mount::podman::several_images_run") {
        return;
    }
    let mut world = World::new();
    let items = ["one", "two", "three"].map(|name| world.image(name, &on_base(name)));
    let mount = world.mount("mnt", &items);
    let expected: Vec<String> = ["one", "three", "two"].iter().map(|name| format!("{} true", full(name))).collect();
    assert_eq!(listed(&world, &mount), expected);
    for name in ["one", "two", "three"] {
        let script = format!("cat /name; sha256sum </only-{name}; echo changed >/name; cat /name; ls -ld /root");
        let said = runs(&world, &mount, "", &full(name), &script);
        let digest = Digest::of(&large(name)).hex();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[..3], [name, &format!("{digest}  -"), "changed"], "{said}");
        assert!(lines[3].starts_with("drwx------"), "{said}");
    }
    // Read-only, as another user, and the default command.
    assert_eq!(runs(&world, &mount, "--read-only --user 1000:1000", &full("one"), "cat /name; id -u"), "one\n1000\n");
    assert_eq!(ok(&mut podman(&world, &mount, &format!("podman run --rm {RUN} {}", full("two")))), "two\n");
    // A container's mount, and an image by its id.
    let script = r#"id=$(podman images --no-trunc --format '{{.ID}}' localhost/three:1) && c=$(podman create --network none "$id") &&
        m=$(podman mount "$c") && cat "$m/name" && find "$m" | wc -l && podman umount "$c" >/dev/null && podman rm "$c" >/dev/null"#;
    let said = ok(&mut podman(&world, &mount, script));
    assert!(said.starts_with("three\n") && said.lines().nth(1).unwrap().parse::<u32>().unwrap() == 20, "{said}");
}

#[test]
fn in_a_namespace_of_other_ids() {
    if !needs_root("mount::podman::in_a_namespace_of_other_ids") {
        return;
    }
    let mut world = World::new();
    let item = world.image("one", &on_base("one"));
    let mount = world.mount("mnt", &[item]);
    let maps = "--uidmap 0:100000:65536 --gidmap 0:100000:65536";
    let said =
        runs(&world, &mount, maps, &full("one"), "id -u; cat /name; stat -c %u:%g /root /name; cat /proc/self/uid_map");
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words, ["0", "one", "0:0", "0:0", "0", "100000", "65536"], "{said}");
}

/// A container that waits for a line before it goes on.
struct Waiting {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Waiting {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn go_on(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    #[track_caller]
    fn ends_well(mut self) {
        drop(self.child.stdin.take());
        let output = self.child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
}

#[test]
fn images_come_and_go_while_containers_run() {
    if !needs_root("mount::podman::images_come_and_go_while_containers_run") {
        return;
    }
    let mut world = World::new();
    let one = world.image("one", &on_base("one"));
    let two = world.image("two", &on_base("two"));
    let mount = world.mount("mnt", &[&one]);
    assert_eq!(listed(&world, &mount), [format!("{} true", full("one"))]);
    mount.adds(&[&two]);
    assert_eq!(listed(&world, &mount), ["one", "two"].map(|name| format!("{} true", full(name))));
    assert_eq!(runs(&world, &mount, "", &full("two"), "cat /name"), "two\n");

    // What it has not looked at yet when the image goes.
    let inside = "echo begun; read x; cat /name; sha256sum </only-two; find / -xdev -type f | wc -l; read x; ls -l /root; cat /bin/busybox | sha256sum";
    let script = format!(r#"podman run -i --rm {RUN} {} sh -c "$1""#, full("two"));
    let mut container = Waiting::start(podman(&world, &mount, &script).arg(inside));
    assert_eq!(container.line(), "begun");
    mount.removes(&[&full("two")]);
    assert_eq!(mount.names(), [full("one")]);
    let gone =
        podman(&world, &mount, &format!("podman run --rm --pull never {RUN} {} true", full("two"))).output().unwrap();
    assert!(!gone.status.success() && stderr(&gone).contains("image not known"), "{}", stderr(&gone));
    container.go_on();
    assert_eq!(container.line(), "two");
    assert_eq!(container.line(), format!("{}  -", Digest::of(&large("two")).hex()));
    assert!(container.line().parse::<u32>().unwrap() > 3);
    // Also by a worker that has never shown this image.
    mount.kill_worker();
    container.go_on();
    assert_eq!(container.line(), "total 0");
    assert_eq!(container.line(), format!("{}  -", Digest::of(&fs_err::read("/bin/busybox").unwrap()).hex()));
    container.ends_well();
    mount.adds(&[&two]);
    assert_eq!(runs(&world, &mount, "", &full("two"), "cat /name"), "two\n");
}

/// podman that runs all the time reads images.json again when the lock's token is another one.
#[test]
fn a_service_notices() {
    if !needs_root("mount::podman::a_service_notices") {
        return;
    }
    let mut world = World::new();
    let one = world.image("one", &on_base("one"));
    let two = world.image("two", &on_base("two"));
    let mount = world.mount("mnt", &[&one]);
    let ask = r#"
import http.client, json, socket, sys, time
def ask():
    for attempt in range(200):
        try:
            to = socket.socket(socket.AF_UNIX); to.connect(sys.argv[1]); break
        except OSError: time.sleep(0.1)
    connection = http.client.HTTPConnection("d"); connection.sock = to
    connection.request("GET", "/v4.0.0/libpod/images/json")
    images = json.loads(connection.getresponse().read())
    print(sorted(name for image in images for name in image["Names"] or []), flush=True)
ask()
for line in sys.stdin: ask()
"#;
    let script = r#"command podman $store system service --time 0 "unix://$at/socket" >/dev/null 2>&1 </dev/null & service=$!
        python3 -c "$1" "$at/socket"; kill $service; wait; exit 0"#;
    let mut asking = Waiting::start(podman(&world, &mount, script).arg(ask));
    assert_eq!(asking.line(), "['localhost/one:1']");
    mount.adds(&[&two]);
    asking.go_on();
    assert_eq!(asking.line(), "['localhost/one:1', 'localhost/two:1']");
    mount.removes(&[&full("one")]);
    asking.go_on();
    assert_eq!(asking.line(), "['localhost/two:1']");
    asking.ends_well();
}

#[test]
fn a_name_moves() {
    if !needs_root("mount::podman::a_name_moves") {
        return;
    }
    let mut world = World::new();
    let old = world.image("app", &on_base("old"));
    let place = std::mem::replace(&mut world.layout, Layout::new(world.at.join("other")));
    let new = world.image("app", &on_base("new"));
    world.layout = place;
    let mount = world.mount("mnt", &[&old]);
    let id = |mount: &Mount| {
        ok(&mut podman(&world, mount, "podman images --no-trunc --format '{{.ID}}' localhost/app:1")).trim().to_owned()
    };
    let before = id(&mount);
    mount.adds(&[&new]);
    assert_ne!(id(&mount), before);
    assert_eq!(mount.names(), [full("app")]);
    assert_eq!(runs(&world, &mount, "", &full("app"), "cat /name"), "new\n");
    // Its last name was this one.
    let images = || crate::stores::json(&mount.at, "overlay-images/images.json").as_array().unwrap().len();
    assert_eq!(images(), 1);
    // With another name it stays; and it goes by its id.
    mount.adds(&[&format!("{new}={}", full("second"))]);
    mount.adds(&[&old]);
    assert_eq!((images(), id(&mount)), (2, before));
    assert_eq!(mount.names(), [full("app"), full("second")]);
    assert_eq!(runs(&world, &mount, "", &full("second"), "cat /name"), "new\n");
    let by_id = id(&mount);
    mount.removes(&[&by_id["sha256:".len()..][..16]]);
    assert_eq!(mount.names(), [full("second")]);
}

#[test]
fn two_who_add_at_once() {
    if !needs_root("mount::podman::two_who_add_at_once") {
        return;
    }
    let mut world = World::new();
    let names: Vec<String> = (0..12).map(|number| format!("image{number:02}")).collect();
    let items: Vec<String> = names.iter().map(|name| world.image(name, &on_base(name))).collect();
    let mount = world.mount("mnt", &items[..1]);
    let mut expected = vec![full(&names[0])];
    for (at, some) in items[1..].chunks(4).enumerate() {
        let children: Vec<Child> = some.iter().map(|item| mount.changing("add", &[item]).spawn().unwrap()).collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
        expected.extend(names[1..].chunks(4).nth(at).unwrap().iter().map(|name| full(name)));
        assert_eq!(mount.names(), expected);
    }
    // Some come while others go.
    let mut children: Vec<Child> = Vec::new();
    for name in &expected[1..7] {
        children.push(mount.changing("rm", &[name]).spawn().unwrap());
    }
    children.push(mount.changing("add", &[&format!("{}={}", items[0], full("another"))]).spawn().unwrap());
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let mut left: Vec<String> =
        expected.iter().enumerate().filter(|(at, _)| !(1..7).contains(at)).map(|(_, name)| name.clone()).collect();
    left.push(full("another"));
    left.sort();
    assert_eq!(mount.names(), left);
    let listed: Vec<String> = listed(&world, &mount);
    assert_eq!(listed.len(), left.len());
}

#[test]
fn what_cannot_be_changes_nothing() {
    if !needs_root("mount::podman::what_cannot_be_changes_nothing") {
        return;
    }
    let mut world = World::new();
    let one = world.image("one", &on_base("one"));
    let two = world.image("two", &on_base("two"));
    let broken = world.image("broken", &[b"not a tar".repeat(100)]);
    let mount = world.mount("mnt", &[&one]);
    let images = || fs_err::read(mount.at.join("overlay-images/images.json")).unwrap();
    let before = images();
    let missing = format!("oci:{}:localhost/no-such:1", world.layout.path.display());
    for (verb, arguments, code, part) in [
        ("add", vec![two.as_str(), missing.as_str()], 2, "localhost/no-such:1"),
        ("add", vec![two.as_str(), broken.as_str()], 1, "localhost/broken:1"),
        ("add", vec!["oci:/no/such/directory:x"], 2, "/no/such/directory"),
        ("rm", vec!["localhost/none:1"], 2, "localhost/none:1: no such image in the mount"),
        ("rm", vec!["localhost/one:1", "localhost/none:1"], 2, "localhost/none:1: no such image in the mount"),
        ("rm", vec!["0123456789abcdef"], 2, "0123456789abcdef"),
    ] {
        fails(&mut mount.changing(verb, &arguments), code, part);
        assert_eq!(images(), before, "{verb} {arguments:?}");
    }
    assert_eq!(mount.names(), [full("one")]);
    assert_eq!(mount.status()["restarts"], 0);
    // The last one may go, and the mount is there for the next.
    mount.removes(&[&full("one")]);
    assert_eq!(mount.names(), [""; 0]);
    assert_eq!(listed(&world, &mount), [""; 0]);
    mount.adds(&[&two]);
    assert_eq!(runs(&world, &mount, "", &full("two"), "cat /name"), "two\n");
    // A tar has what it has.
    let tar = world.make("images.tar", &["--unpacker", "gnu"], &[&one]);
    let of_tar = world.mount("of-tar", &[&tar]);
    fails(&mut of_tar.changing("add", &[&two]), 2, "which has what it has");
    fails(&mut of_tar.changing("rm", &[&full("one")]), 2, "which has what it has");
    assert_eq!(runs(&world, &of_tar, "", &full("one"), "cat /name"), "one\n");
}
