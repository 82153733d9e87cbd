//! As an ordinary user, into directories that are root's: by sudo, by a socket.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::{World, base, full, ok, on_base, skopeo};
use crate::command::{needs_root, stderr};
use crate::corpus;
use crate::edge::{Stores, difference};
use crate::stores::{Clock, in_own_mounts, scratch};
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

/// A whole tree, where the policy lets the user put one.
#[test]
fn sudo_writes_a_tree() {
    if !needs_root("install::by_sudo::sudo_writes_a_tree") {
        return;
    }
    let mut world = World::new();
    let tree = policy(&world, "suid = false\nfilecaps = false").replace("storage", "rootfs");
    world.lets_users_write(&tree);
    let item = world.image("app", &on_base("app"));
    ok(by_user(&world, "install", "sudo").args(["--rootfs", "--graphroot", "/srv/images", &item]));
    let output = crate::command::prepull(&world.at.join("home")).arg("verify").arg(world.root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(world.root().join("srv/images/overlay-images/images.json").exists());
    let names = || fs_err::read_dir(world.root()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    assert!(names().iter().all(|name| !name.as_encoded_bytes().starts_with(b".prepull")), "{:?}", names());
    let output = by_user(&world, "install", "sudo").args(["--rootfs", &item]).output().unwrap();
    assert!(output.status.code() == Some(1) && stderr(&output).contains("not empty"), "{}", stderr(&output));
    // Nothing is fetched for a tree that may not be written.
    world.lets_users_write(&policy(&world, ""));
    let output = by_user(&world, "install", "sudo").args(["--rootfs", "oci:/none=localhost/none:1"]).output().unwrap();
    assert!(output.status.code() == Some(1) && !stderr(&output).contains("/none"), "{}", stderr(&output));
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
