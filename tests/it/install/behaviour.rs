//! What is in the store afterwards, whoever made it.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{World, base, full, ok, on_base, podman, skopeo, top};
use crate::command::{fails, needs_root, prepull, succeeds};
use crate::edge::{Stores, without_signatures};
use crate::stores::{Clock, GRAPHROOT, chain, in_own_mounts, json};

#[test]
fn an_empty_directory_and_then_nothing_to_do() {
    if !needs_root("install::behaviour::an_empty_directory_and_then_nothing_to_do") {
        return;
    }
    let mut world = World::new();
    let items = [world.image("base", &base()), world.image("app", &on_base("app")), world.image("none", &[])];
    let items: Vec<&str> = items.iter().map(String::as_str).collect();
    let summary = world.installs(&items);
    assert_eq!((&summary["layersWritten"], &summary["layersPresent"]), (&3.into(), &0.into()), "{summary}");
    world.is_good();
    let before = world.state();

    let begun = Instant::now();
    let summary = world.installs(&items);
    let took = begun.elapsed();
    assert_eq!((&summary["layersWritten"], &summary["layersPresent"]), (&0.into(), &3.into()), "{summary}");
    assert!(world.state() == before, "something was written");
    assert!(took < Duration::from_millis(200), "{took:?}");

    assert_eq!(world.listed(), [full("app"), full("base"), full("none")]);
    assert_eq!(world.reads(&full("app"), "name"), "app\n");
    assert_eq!(world.reads(&full("base"), "name"), "base\n");
    // Podman has made files of its own by now.
    world.is_good();
    let before = world.state();
    world.installs(&items);
    assert!(world.state() == before, "something was written after podman");
    for name in ["app", "base", "none"] {
        world.podman(&["rmi", &full(name)]);
        world.is_good();
    }
    assert!(world.layers().is_empty() && world.records().is_empty());
    world.installs(&items);
    world.is_good();
    assert_eq!(world.listed().len(), 3);
}

#[test]
fn layers_that_others_made_are_reused() {
    if !needs_root("install::behaviour::layers_that_others_made_are_reused") {
        return;
    }
    let mut world = World::new();
    let (base_item, app) = (world.image("base", &base()), world.image("app", &on_base("app")));
    world.skopeo(&base_item, &full("base"));
    world.podman(&["tag", &full("base"), "localhost/more:2"]);
    let record = world.record(&full("base"));
    let inodes = |world: &World| -> Vec<u64> {
        let layers = chain(&world.graph(), &full("base"));
        layers.iter().map(|id| fs_err::metadata(world.graph().join("overlay").join(id)).unwrap().ino()).collect()
    };
    let before = inodes(&world);

    let summary = world.installs(&[&app]);
    assert_eq!((&summary["layersWritten"], &summary["layersPresent"]), (&1.into(), &2.into()), "{summary}");
    world.is_good();
    assert_eq!(inodes(&world), before);
    assert_eq!(world.record(&full("base")), record, "another image's record");
    let chain = chain(&world.graph(), &full("app"));
    let overlay = world.graph().join("overlay");
    let link = |id: &String| fs_err::read_to_string(overlay.join(id).join("link")).unwrap();
    let lower = fs_err::read_to_string(overlay.join(&chain[0]).join("lower")).unwrap();
    assert_eq!(lower, format!("l/{}:l/{}", link(&chain[1]), link(&chain[2])));
    assert_eq!(world.listed(), [full("app"), full("base"), "localhost/more:2".to_owned()]);

    // A container: made, mounted, and its program run in it.
    let script = r#"root=$1 run=$2 image=$3
        p() { podman --root "$root" --runroot "$run" --tmpdir "$run/libpod" --storage-driver overlay "$@"; }
        c=$(p create --network none "$image") && m=$(p mount "$c") && chroot "$m" /bin/cat /name && echo new >"$m/name" &&
            chroot "$m" /bin/cat /name && p umount "$c" >/dev/null && p rm "$c" >/dev/null"#;
    let mut command = in_own_mounts("sh");
    command.args(["-c", script, "sh"]).arg(world.graph()).arg(world.at.join("run"));
    assert_eq!(ok(command.arg(full("app"))), "app\nnew\n");
    world.is_good();
    // And the other way round: skopeo on layers of ours.
    let other = world.image("other", &on_base("other"));
    world.skopeo(&other, &full("other"));
    assert_eq!(world.reads(&full("other"), "name"), "other\n");
    world.is_good();
    world.podman(&["rmi", &full("app"), &full("other")]);
    assert_eq!(world.record(&full("base")), record, "another image's record");
    world.is_good();
}

/// Copies the machine.
fn twin(world: &World) -> std::path::PathBuf {
    let twin = world.at.join("twin");
    ok(Command::new("cp").args(["-a"]).arg(world.root()).arg(&twin));
    twin.join(GRAPHROOT)
}

/// The records of a store's images, by id, without what depends on when they were made.
fn images(graph: &std::path::Path) -> Vec<Value> {
    let mut all = without_signatures(json(graph, "overlay-images/images.json"));
    let all = all.as_array_mut().unwrap();
    all.sort_by_key(|image| image["id"].as_str().unwrap().to_owned());
    std::mem::take(all)
}

/// The same, without the order of names: podman tag puts a new name last, podman pull and skopeo first, and skopeo moves one
/// that is there already to the front.
fn sorted(graph: &std::path::Path) -> Vec<Value> {
    let mut all = images(graph);
    for image in &mut all {
        for key in ["names", "names-history"] {
            if let Some(names) = image.get_mut(key).and_then(Value::as_array_mut) {
                names.sort_by_key(ToString::to_string);
            }
        }
        if image["names"] == Value::Array(Vec::new()) || image["names"].is_null() {
            image.as_object_mut().unwrap().remove("names");
        }
    }
    all
}

#[test]
fn names_move_as_skopeo_moves_them() {
    if !needs_root("install::behaviour::names_move_as_skopeo_moves_them") {
        return;
    }
    let mut world = World::new();
    let (old, new) = (world.image("old", &base()), world.image("new", &on_base("new")));
    let third = world.image("third", &[top("third")]);
    world.skopeo(&old, "localhost/moves:1");
    world.skopeo(&old, "localhost/stays:1");
    world.skopeo(&third, &full("third"));
    let third = world.record(&full("third"));
    let twin = twin(&world);
    skopeo(&twin, &world.at.join("twin-run"), &new, "localhost/moves:1");
    world.installs(&[&format!("{new}=localhost/moves:1")]);
    world.is_good();
    assert_eq!(images(&world.graph()), images(&twin));
    assert_eq!(world.record(&full("third")), third, "another image's record");

    // The image is there: it gets one name more, which another one had; then the old one's last one.
    for name in ["localhost/stays:1", "localhost/moves:1", "localhost/fresh:1"] {
        skopeo(&twin, &world.at.join("twin-run"), &new, name);
        let summary = world.installs(&[&format!("{new}={name}")]);
        assert_eq!(summary["layersWritten"], 0);
        world.is_good();
        assert_eq!(sorted(&world.graph()), sorted(&twin), "{name}");
    }
    assert_eq!(world.record(&full("third")), third, "another image's record");
    assert_eq!(world.records().len(), 3, "the old one has no name now, but is there");
}

#[test]
fn names_move_as_podman_tags_them() {
    if !needs_root("install::behaviour::names_move_as_podman_tags_them") {
        return;
    }
    let mut world = World::new();
    let (one, two) = (world.image("one", &base()), world.image("two", &on_base("two")));
    world.installs(&[&one, &two]);
    let twin = twin(&world);
    for name in ["localhost/tagged:7", "localhost/one:1"] {
        ok(podman(&twin, &world.at.join("twin-run")).args(["tag", &full("two"), name]));
        world.installs(&[&format!("{two}={name}")]);
        world.is_good();
        assert_eq!(sorted(&world.graph()), sorted(&twin), "{name}");
    }
}

#[test]
fn an_index_and_its_manifest_are_one_image() {
    if !needs_root("install::behaviour::an_index_and_its_manifest_are_one_image") {
        return;
    }
    let mut world = World::new();
    let manifest = world.manifest("both", &on_base("both"));
    let index = world.layout.index(&[("linux/amd64", manifest.clone()), ("linux/s390x", manifest.clone())]);
    world.layout.add(Some(&full("plain")), manifest);
    world.layout.add(Some(&full("listed")), index);
    let (plain, listed) = (world.item("plain"), world.item("listed"));

    world.installs(&[&plain]);
    let id = world.id(&full("plain"));
    let before: Value = serde_json::from_str(&world.record(&full("plain"))).unwrap();
    world.installs(&[&listed]);
    world.is_good();
    let after: Value = serde_json::from_str(&world.record(&full("listed"))).unwrap();
    assert_eq!(after["id"], id.as_str());
    // An image that is there gets names, and the index as one more item, as skopeo adds it.
    let (mut after, before) = (after["big-data-digests"].clone(), &before["big-data-digests"]);
    let items = after.as_object_mut().unwrap();
    let added: Vec<String> = items.keys().filter(|key| before.get(key).is_none()).cloned().collect();
    assert!(added.len() == 1 && added[0].starts_with("manifest-sha256:"), "{added:?}");
    items.remove(&added[0]);
    assert_eq!(after, *before);
    assert_eq!(world.listed(), [full("listed"), full("plain")]);

    // Each on its own is what skopeo makes of it.
    for name in ["plain", "listed"] {
        let other = World::new();
        let begun = Clock::now();
        let theirs = other.at.join("theirs");
        skopeo(&theirs, &other.at.join("their-run"), &world.item(name), &full(name));
        let their_clock = Clock::since(begun);
        std::thread::sleep(Duration::from_millis(1100));
        other.installs(&[&world.item(name)]);
        other.is_good();
        let mut report = String::new();
        Stores { ours: &other.graph(), theirs: &theirs, their_clock }.compare(&full(name), &[], &mut report);
        assert!(report.is_empty(), "{name}:\n{report}");
    }
}

#[test]
fn another_graphroot_and_no_such_directory() {
    if !needs_root("install::behaviour::another_graphroot_and_no_such_directory") {
        return;
    }
    let mut world = World::new();
    let item = world.image("app", &base());
    succeeds(world.prepull("install").args(["--graphroot", "/srv/images", &item]));
    assert!(world.root().join("srv/images/overlay-images/images.json").exists());
    assert!(!world.graph().exists());
    let mode = |path: &str| fs_err::metadata(world.root().join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("srv"), mode("srv/images")), (0o755, 0o700));
    succeeds(world.prepull("rm").args(["--graphroot", "/srv/images", &full("app")]));
    succeeds(world.prepull("gc").args(["--graphroot", "/srv/images"]));
    fails(world.prepull("install").args(["--graphroot", "srv", &item]), 2, "--graphroot");
    fails(world.prepull("install").args(["--graphroot", "/srv/../etc", &item]), 2, "--graphroot");

    let home = world.at.join("home");
    let none = world.at.join("none");
    for verb in ["install", "rm", "gc"] {
        let mut command = prepull(&home);
        command.args([verb, "--root"]).arg(&none);
        if verb != "gc" {
            command.arg(if verb == "rm" { "localhost/app:1" } else { &item });
        }
        fails(&mut command, 2, "no such directory");
    }
    // A question makes nothing, nor does what cannot be found.
    let empty = world.at.join("empty");
    fs_err::create_dir(&empty).unwrap();
    let at_empty = |words: &[&str]| {
        let mut command = prepull(&home);
        command.args(words).arg("--root").arg(&empty);
        command
    };
    fails(&mut at_empty(&["rm", "localhost/app:1"]), 2, "no such image");
    succeeds(&mut at_empty(&["gc"]));
    fails(&mut at_empty(&["install", "--no-cache", "oci:/none=localhost/none:1"]), 2, "/none");
    assert_eq!(fs_err::read_dir(&empty).unwrap().count(), 0);
    let file = world.at.join("file");
    fs_err::write(&file, "").unwrap();
    fails(prepull(&home).args(["gc", "--root"]).arg(&file), 2, "not a directory");
    // A link is followed within the root only, where there is no such directory.
    fs_err::create_dir_all(world.root().join("var")).unwrap();
    std::os::unix::fs::symlink("/tmp", world.root().join("var/lib")).unwrap();
    fails(world.prepull("install").arg(&item), 1, "/var/lib");
}

#[test]
fn a_damaged_store_stays_as_it_is() {
    if !needs_root("install::behaviour::a_damaged_store_stays_as_it_is") {
        return;
    }
    let mut world = World::new();
    let (one, two) = (world.image("one", &base()), world.image("two", &on_base("two")));
    world.installs(&[&one]);
    for (path, bad) in [
        ("overlay-images/images.json", "["),
        ("overlay-images/images.json", "{}"),
        ("overlay-images/images.json", "[{\"id\": 1}]"),
        ("overlay-images/images.json", "[1]"),
        ("overlay-layers/layers.json", "nonsense"),
        ("overlay-layers/layers.json", "[{}]"),
        ("overlay-layers/volatile-layers.json", "["),
        ("overlay-containers/containers.json", "[[]]"),
        ("overlay-containers/volatile-containers.json", "\0"),
    ] {
        let path = world.graph().join(path);
        let good = fs_err::read(&path).ok();
        fs_err::write(&path, bad).unwrap();
        let before = world.state_inside();
        let name = path.file_name().unwrap().to_str().unwrap();
        let one_name = full("one");
        for (verb, argument) in [("install", Some(&two)), ("rm", Some(&one_name)), ("gc", None)] {
            // An install has nothing to do with containers.
            if verb == "install" && name.contains("containers") {
                continue;
            }
            fails(world.prepull(verb).args(argument), 1, name);
            assert!(world.state_inside() == before, "{verb} with a bad {name}");
        }
        match good {
            Some(good) => fs_err::write(&path, good).unwrap(),
            None => fs_err::remove_file(&path).unwrap(),
        }
    }
    world.is_good();
    world.installs(&[&two]);
    world.is_good();
}

/// As podman leaves it as long as a container runs.
#[test]
fn an_overlay_directory_that_is_mounted_onto_itself() {
    if !needs_root("install::behaviour::an_overlay_directory_that_is_mounted_onto_itself") {
        return;
    }
    let mut world = World::new();
    let (one, two) = (world.image("one", &base()), world.image("two", &on_base("two")));
    world.skopeo(&one, &full("one"));
    let run = |verb: &str, argument: &str| {
        let script = r#"o=$1; shift; mount --bind "$o" "$o" && mount --make-private "$o" && exec "$@""#;
        let inner = world.prepull(verb);
        let mut command = in_own_mounts("sh");
        command.args(["-c", script, "sh"]).arg(world.graph().join("overlay"));
        command.arg(inner.get_program()).args(inner.get_args());
        command.args((!argument.is_empty()).then_some(argument)).env("HOME", world.at.join("home"));
        ok(&mut command)
    };
    run("install", &two);
    world.is_good();
    assert_eq!(world.reads(&full("two"), "name"), "two\n");
    let orphan = world.graph().join("overlay").join("e".repeat(64));
    fs_err::create_dir_all(orphan.join("diff")).unwrap();
    run("gc", "");
    assert!(!orphan.exists());
    run("rm", &full("two"));
    world.is_good();
    assert_eq!((world.listed(), world.layers().len()), (vec![full("one")], 2));
}

#[test]
fn a_whole_tree_into_an_empty_directory() {
    if !needs_root("install::behaviour::a_whole_tree_into_an_empty_directory") {
        return;
    }
    let mut world = World::new();
    let item = world.image("app", &on_base("app"));
    // What a new file system has.
    fs_err::create_dir(world.root().join("lost+found")).unwrap();
    succeeds(world.prepull("install").args(["--rootfs", &item]));
    assert_eq!(world.reads(&full("app"), "name"), "app\n");
    world.is_good();
    let left = |world: &World| {
        let names = fs_err::read_dir(world.root()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_str().unwrap().starts_with(".prepull")).collect::<Vec<_>>()
    };
    assert!(left(&world).is_empty());
    // What GNU tar makes of the tar.
    let tar = world.at.join("tar");
    ok(prepull(&world.at.join("home"))
        .args(["make", "-q", "--no-cache", "--unpacker", "gnu", "-o"])
        .arg(&tar)
        .arg(&item));
    let names = ok(Command::new("tar").arg("-tf").arg(&tar));
    for name in names.lines().filter(|name| name.starts_with("etc/") || name.starts_with("usr/")) {
        assert!(world.root().join(name).symlink_metadata().is_ok(), "{name} is missing");
    }
    let before = world.state();
    fails(world.prepull("install").args(["--rootfs", &item]), 1, "not empty");
    assert!(world.state() == before && left(&world).is_empty());
    let odd = world.at.join("odd");
    fs_err::create_dir(&odd).unwrap();
    fs_err::write(odd.join("file"), "").unwrap();
    let mut command = prepull(&world.at.join("home"));
    fails(command.args(["install", "-q", "--no-cache", "--rootfs", "--root"]).arg(&odd).arg(&item), 1, "file");
}

/// Only the tree of the same images goes on where another run was killed.
#[test]
fn another_tree_that_was_interrupted() {
    if !needs_root("install::behaviour::another_tree_that_was_interrupted") {
        return;
    }
    let mut world = World::new();
    let item = world.image("app", &on_base("app"));
    let tree = world.root().join(".prepull-tree");
    fs_err::create_dir_all(&tree).unwrap();
    fs_err::write(tree.join("theirs"), "x").unwrap();
    fs_err::write(world.root().join(".prepull-complete"), "tree of another\n").unwrap();
    fails(world.prepull("install").args(["--rootfs", &item]), 1, "another tree");
    let names: Vec<_> = fs_err::read_dir(world.root()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["theirs"]);
}

/// Killed at each of its renames; the next run completes it.
#[test]
fn a_whole_tree_that_was_interrupted() {
    if !needs_root("install::behaviour::a_whole_tree_that_was_interrupted") {
        return;
    }
    let mut world = World::new();
    let item = world.image("app", &on_base("app"));
    succeeds(world.prepull("install").args(["--rootfs", &item]));
    let good = ok(Command::new("find").arg(".").args(["-printf", "%p %y %m %U %s\n"]).current_dir(world.root()));
    let sorted = |text: String| {
        // A directory's size depends on what has been in it.
        let mut lines: Vec<String> = text
            .lines()
            .map(|line| match line.contains(" d ") {
                true => line.rsplit_once(' ').unwrap().0.to_owned(),
                false => line.to_owned(),
            })
            .collect();
        lines.sort();
        lines
    };
    let good = sorted(good);
    let mut kills = 0;
    for call in ["renameat", "renameat2", "unlinkat", "mkdirat", "fsync", "syncfs", "openat2"] {
        for number in 1.. {
            // Some of the many.
            if call == "openat2" && number % 5 != 1 {
                continue;
            }
            fs_err::remove_dir_all(world.root()).unwrap();
            fs_err::create_dir(world.root()).unwrap();
            let inner = world.prepull("install");
            let mut command = Command::new("strace");
            let inject = format!("inject={call}:signal=SIGKILL:when={number}");
            command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject]);
            command.arg(inner.get_program()).args(inner.get_args()).args(["--rootfs", &item]);
            command.env("HOME", world.at.join("home"));
            command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
            let output = command.output().unwrap();
            if output.status.success() {
                break;
            }
            kills += 1;
            // What an interruption in the middle of the last step leaves is complete already.
            let again = world.prepull("install").args(["--rootfs", &item]).output().unwrap();
            let said = crate::command::stderr(&again);
            let is_done = said.contains("not empty") && number > 1;
            assert!(again.status.success() || is_done, "{call} {number}: {said}");
            let now = ok(Command::new("find").arg(".").args(["-printf", "%p %y %m %U %s\n"]).current_dir(world.root()));
            assert_eq!(sorted(now), good, "{call} {number}: {said}");
        }
    }
    assert!(kills > 10, "{kills}");
}

#[test]
fn in_a_user_namespace_a_directory_of_ones_own() {
    if !needs_root("install::behaviour::in_a_user_namespace_a_directory_of_ones_own") {
        return;
    }
    let mut world = World::new();
    let item = world.image("app", &on_base("app"));
    fs_err::set_permissions(&world.at, std::fs::Permissions::from_mode(0o755)).unwrap();
    fs_err::set_permissions(world.at.join("home"), std::fs::Permissions::from_mode(0o777)).unwrap();
    std::os::unix::fs::chown(world.root(), Some(4321), Some(4321)).unwrap();
    // As `podman unshare` has it: one's own id as root's, and 65536 more.
    let inner = world.prepull("install");
    let outer = r#"
        go=$1/go; shift
        mkfifo -m 644 "$go"
        setpriv --reuid 4321 --regid 4321 --clear-groups unshare -U sh -c \
            'read -r x <"$0"; exec setpriv --reuid 0 --regid 0 --clear-groups "$@"' "$go" "$@" &
        pid=$!
        n=0
        until test "$(readlink /proc/$pid/ns/user)" != "$(readlink /proc/self/ns/user)"; do
            n=$((n + 1)); test $n -lt 500 || { kill $pid; exit 9; }; sleep 0.01
        done
        for map in uid_map gid_map; do
            printf '0 4321 1\n1 100000 65536\n' >/proc/$pid/$map || { kill $pid; exit 8; }
        done
        echo go >"$go"
        wait $pid"#;
    let mut command = Command::new("timeout");
    command
        .args(["20", "sh", "-c", outer, "sh"])
        .arg(&world.at)
        .arg(inner.get_program())
        .args(inner.get_args())
        .arg(&item);
    ok(command.env("HOME", world.at.join("home")));
    let user = world.graph().join("overlay").join(&chain(&world.graph(), &full("app"))[0]).join("diff/home/user");
    let found = fs_err::metadata(user).unwrap();
    assert_eq!((found.uid(), found.gid()), (100_999, 100_999));
    assert_eq!(fs_err::metadata(world.graph()).unwrap().uid(), 4321);
}
