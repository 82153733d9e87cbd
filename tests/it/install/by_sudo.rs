//! As an ordinary user, into directories that are root's: by sudo, by a socket, by file capabilities.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::{World, base, full, ok, on_base, skopeo};
use crate::command::{needs_root, stderr};
use crate::corpus;
use crate::edge::{Stores, difference};
use crate::stores::{Clock, chain, in_own_mounts, scratch};
use crate::support::docker_registry::{DockerRegistry, Image};

fn policy(world: &World, more: &str) -> String {
    format!("[[allow]]\nuser = {}\nroot = \"{}\"\nkind = \"storage\"\n{more}\n", super::USER, world.root().display())
}

/// `prepull VERB` as the user.
fn by_user(world: &World, verb: &str, via: &str) -> Command {
    let inner = world.prepull(verb);
    let mut command = world.as_user();
    command.arg(inner.get_program()).args(inner.get_args()).args(["--via", via, "--helper"]).arg(world.helper());
    command
}

#[test]
fn sudo_writes_where_the_user_may_not() {
    if !needs_root("install::by_sudo::sudo_writes_where_the_user_may_not") {
        return;
    }
    let mut world = World::new();
    world.lets_users_write(&policy(&world, ""));
    let (one, two) = (world.image("one", &base()), world.image("two", &on_base("two")));
    let theirs = world.at.join("theirs");
    let begun = Clock::now();
    skopeo(&theirs, &world.at.join("their-run"), &two, &full("two"));
    let their_clock = Clock::since(begun);
    std::thread::sleep(Duration::from_millis(1100));

    // As the user alone there is no way.
    let inner = world.prepull("install");
    let output = world.as_user().arg(inner.get_program()).args(inner.get_args()).arg(&one).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));

    ok(by_user(&world, "install", "sudo").arg(&two));
    world.is_good();
    let mut report = String::new();
    Stores { ours: &world.graph(), theirs: &theirs, their_clock }.compare(&full("two"), &[], &mut report);
    assert!(report.is_empty(), "{report}");
    let before = world.state();
    ok(by_user(&world, "install", "sudo").arg(&two));
    assert!(world.state() == before, "something was written");

    // Lists, mounts, runs, pulls and removes.
    ok(by_user(&world, "install", "sudo").arg(&one));
    assert_eq!(world.listed(), [full("one"), full("two")]);
    assert_eq!(world.reads(&full("two"), "name"), "two\n");
    let container = world.podman(&["create", "--network", "none", &full("two")]);
    let output = by_user(&world, "rm", "sudo").arg(full("two")).output().unwrap();
    assert!(output.status.code() == Some(1) && stderr(&output).contains("in use"), "{}", stderr(&output));
    world.podman(&["rm", &container]);
    let registry = DockerRegistry::start("", "");
    registry.push(&Image::new(), "pulled:1", &[]);
    let pulled = format!("{}/pulled:1", registry.host());
    world.podman(&["pull", "--quiet", "--tls-verify=false", &pulled]);
    world.is_good();
    let mut listed = vec![pulled.clone(), full("one"), full("two")];
    listed.sort();
    assert_eq!(world.listed(), listed);
    world.podman(&["rmi", &full("two")]);
    world.is_good();
    ok(by_user(&world, "rm", "sudo").arg(&pulled));
    world.is_good();
    let output = by_user(&world, "rm", "sudo").arg(full("two")).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    let orphan = world.graph().join("overlay").join("e".repeat(64));
    fs_err::create_dir_all(orphan.join("diff")).unwrap();
    ok(&mut by_user(&world, "gc", "sudo"));
    assert!(!orphan.exists());
    assert_eq!(world.listed(), [full("one")]);
    world.is_good();
}

/// What is in an image that is mounted.
fn merged(graph: &Path, run: &Path, image: &str) -> String {
    let script = r#"m=$(podman --root "$1" --runroot "$2" --tmpdir "$2/libpod" --storage-driver overlay image mount "$3") &&
        cd "$m" && find . -printf '%p %y %m %U:%G %l\n' | sort"#;
    ok(in_own_mounts("sh").args(["-c", script, "sh"]).arg(graph).arg(run).arg(image))
}

/// Every image at the edge that has no difference on purpose.
#[test]
fn sudo_writes_what_skopeo_writes() {
    if !needs_root("install::by_sudo::sudo_writes_what_skopeo_writes") {
        return;
    }
    let mut world = World::new();
    world.lets_users_write(&policy(&world, "devices = true"));
    let cases = corpus::all();
    let cases = cases.iter().filter(|case| difference(&case.name).is_none());
    let step = if crate::faults::is_all() { 1 } else { 8 };
    let (mut compared, mut left_out, mut wrong) = (0, 0, Vec::new());
    for case in cases.step_by(step) {
        case.write(&mut world.layout);
        let item = format!("oci:{}:{}", world.layout.path.display(), case.image());
        let other = scratch();
        let theirs = other.path().join("theirs");
        let begun = Clock::now();
        if !crate::stores::skopeo_into(&theirs, &item, &case.image()).status.success() {
            continue;
        }
        let their_clock = Clock::since(begun);
        let _ = fs_err::remove_dir_all(world.graph());
        let output = by_user(&world, "install", "sudo").arg(&item).output().unwrap();
        // Attributes that only root sets.
        if output.status.success() && stderr(&output).contains("could not be set") {
            left_out += 1;
            continue;
        }
        if !output.status.success() || !stderr(&output).is_empty() {
            wrong.push(format!("{}: {}", case.name, stderr(&output)));
            continue;
        }
        let mut report = String::new();
        Stores { ours: &world.graph(), theirs: &theirs, their_clock }.compare(&case.image(), &[], &mut report);
        // Only root may say that a directory hides what is below it; the helper hides each name: mounted it is the same.
        if report.contains("trusted.overlay.opaque") {
            let ours = merged(&world.graph(), &world.at.join("run"), &case.image());
            let theirs = merged(&theirs, &other.path().join("run"), &case.image());
            report = if ours == theirs { String::new() } else { format!("{ours}\n{theirs}") };
        }
        if !report.is_empty() {
            wrong.push(format!("{}:\n{report}", case.name));
        }
        compared += 1;
    }
    crate::faults::figures(&format!(
        "install: images at the edge by sudo: {compared} compared with skopeo's, {left_out} more lack attributes"
    ));
    crate::faults::all_right(&wrong);
    assert!(compared > 10, "{compared}");
}

#[test]
fn a_service_behind_a_socket() {
    if !needs_root("install::by_sudo::a_service_behind_a_socket") {
        return;
    }
    if Command::new("systemd-socket-activate").arg("--version").output().is_err() {
        crate::command::not_run("install::by_sudo::a_service_behind_a_socket", "systemd-socket-activate");
        return;
    }
    let mut world = World::new();
    world.lets_users_write(&policy(&world, ""));
    let item = world.image("app", &on_base("app"));
    let script = r#"run=$1 root=$2 helper=$3 user=$4; shift 4
        mkdir -p /run/prepull && mount -t tmpfs tmpfs /run/prepull && chmod 755 /run/prepull
        (cd "$root" && exec systemd-socket-activate --accept --inetd -l /run/prepull/helper.sock "$helper" stdio) 2>"$run.log" &
        server=$!
        n=0
        until test -S /run/prepull/helper.sock; do n=$((n + 1)); test $n -lt 500 || exit 9; sleep 0.01; done
        chmod 666 /run/prepull/helper.sock
        setpriv --reuid "$user" --regid "$user" --clear-groups "$@"
        code=$?
        kill $server
        exit $code"#;
    let through = |verb: &str, user: &str, argument: &str| {
        let inner = world.prepull(verb);
        let mut command = world.as_root();
        command.args(["timeout", "60", "sh", "-c", script, "sh"]).arg(world.at.join("socket")).arg(world.root());
        command.arg(world.helper()).arg(user);
        command.arg(inner.get_program()).args(inner.get_args()).args(["--via", "socket", argument]);
        command.output().unwrap()
    };
    let user = super::USER.to_string();
    let output = through("install", &user, &item);
    let log = fs_err::read_to_string(world.at.join("socket.log")).unwrap_or_default();
    assert!(output.status.success(), "{}\n{log}", stderr(&output));
    world.is_good();
    assert_eq!(world.reads(&full("app"), "name"), "app\n");
    // Another user is known by the socket, and may not.
    let output = through("rm", "4444", &full("app"));
    assert!(output.status.code() == Some(1) && stderr(&output).contains("does not allow"), "{}", stderr(&output));
    let output = through("rm", &user, &full("app"));
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(world.layers().is_empty());
}

#[test]
fn file_capabilities_on_a_directory_of_ones_own() {
    if !needs_root("install::by_sudo::file_capabilities_on_a_directory_of_ones_own") {
        return;
    }
    let mut world = World::new();
    world.lets_users_write(&policy(&world, ""));
    std::os::unix::fs::chown(world.root(), Some(super::USER), Some(super::USER)).unwrap();
    let caps = "cap_chown,cap_fowner,cap_fsetid,cap_setfcap,cap_sys_chroot=p";
    ok(Command::new("setcap").arg(caps).arg(world.helper()));
    let item = world.image("app", &on_base("app"));
    ok(by_user(&world, "install", "helper").arg(&item));
    use std::os::unix::fs::MetadataExt as _;
    let user = world.graph().join("overlay").join(&chain(&world.graph(), &full("app"))[0]).join("diff/home/user");
    let found = fs_err::metadata(user).unwrap();
    assert_eq!((found.uid(), found.gid()), (1000, 1000));
    assert_eq!(world.reads(&full("app"), "name"), "app\n");
    ok(by_user(&world, "install", "helper").arg(&item));
    ok(by_user(&world, "rm", "helper").arg(full("app")));
    assert!(world.layers().is_empty());
}
