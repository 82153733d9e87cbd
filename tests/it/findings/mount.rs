//! Faults of `prepull mount`. Most tests need root.

use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use prepull::digest::Digest;
use serde_json::Value;

use crate::command::{fails, needs_root, stderr, succeeds};
use crate::mount::podman::{RUN, podman};
use crate::mount::user::{Namespace, OTHER, USER};
use crate::mount::{ADDITIONAL, Mount, World, full, large, noise, ok, on_base};
use crate::raw::{archive, file};

/// Writes a storage.conf with its store in `world` and `mount` as an additional store.
fn storage_conf(world: &World, mount: &Path) -> std::path::PathBuf {
    let path = world.at.join("storage.conf");
    let at = world.at.display();
    let text = format!(
        "[storage]\ndriver = \"overlay\"\ngraphroot = \"{at}/own\"\nrunroot = \"{at}/own-run\"\n[storage.options]\n\
         additionalimagestores = [\"{}\"]\n",
        mount.display()
    );
    fs_err::write(&path, text).unwrap();
    path
}

#[test]
fn e03_mount_rm_refuses_layers_that_the_own_store_needs() {
    if !needs_root("findings::mount::e03_mount_rm_refuses_layers_that_the_own_store_needs") {
        return;
    }
    let mut world = World::new();
    let base = on_base("base");
    let mut derived = base.clone();
    derived.push(archive(&[file("derived")]));
    let (below, other, above) =
        (world.image("base", &base), world.image("other", &on_base("other")), world.image("derived", &derived));
    let mount = world.mount("mnt", &[&below, &other]);
    let conf = storage_conf(&world, &mount.at);
    let skopeo = format!("containers-storage:{}", full("derived"));
    let tool = |program: &str| {
        let mut command = Command::new(program);
        command.env("CONTAINERS_STORAGE_CONF", &conf).env("HOME", world.at.join("home"));
        command
    };
    ok(tool("skopeo").args(["copy", "--quiet", &above, &skopeo]));
    // The own store has the top layer only.
    let layers = crate::stores::json(&world.at, "own/overlay-layers/layers.json");
    assert_eq!(layers.as_array().unwrap().len(), 1);
    let list = || tool("podman").args(["images", "--format", "{{.Repository}} {{.Size}}"]).output().unwrap();
    assert!(String::from_utf8_lossy(&list().stdout).contains("localhost/derived"), "{}", stderr(&list()));

    let changing = |verb: &str, arguments: &[&str]| {
        let mut command = mount.changing(verb, arguments);
        command.env("CONTAINERS_STORAGE_CONF", &conf);
        command
    };
    let expected = format!("image {} of the store {}/own would lose layers", full("derived"), world.at.display());
    fails(&mut changing("rm", &[&full("base")]), 1, &expected);
    // By its id, and when another image takes its only name.
    let images = crate::stores::json(&mount.at, "overlay-images/images.json");
    let record = images.as_array().unwrap().iter().find(|image| image["names"][0] == full("base").as_str()).unwrap();
    fails(&mut changing("rm", &[&record["id"].as_str().unwrap()[..16]]), 1, &expected);
    fails(&mut changing("add", &[&format!("{other}={}", full("base"))]), 1, &expected);
    assert_eq!(mount.names(), [full("base"), full("other")]);
    assert!(list().status.success());
    // An image that no other needs goes, and so does one whose layers others of the mount have.
    succeeds(&mut changing("rm", &[&full("other")]));
    succeeds(&mut changing("add", &[&above]));
    succeeds(&mut changing("rm", &[&full("base")]));
    assert!(list().status.success());
    fails(&mut changing("rm", &[&full("derived")]), 1, &expected);
    // What cannot be checked is refused, too.
    let damaged = world.at.join("own/overlay-images/images.json");
    let records = fs_err::read(&damaged).unwrap();
    fs_err::write(&damaged, "[{").unwrap();
    fails(&mut changing("rm", &[&full("derived")]), 1, "own/overlay-images/images.json: ");
    fs_err::write(&damaged, records).unwrap();
    succeeds(changing("rm", &[&full("derived")]).arg("--force"));
    assert_eq!(mount.names(), [""; 0]);
    // What the refusal is for.
    let output = list();
    assert!(!output.status.success() && stderr(&output).contains("layer not known"), "{}", stderr(&output));
}

/// Runs a shell command as another user than root.
fn as_user(script: &str, at: &Path) -> std::process::Output {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=1000", "--regid=1000", "--clear-groups", "sh", "-c", script, "sh"]).arg(at);
    command.env("LC_ALL", "C").output().unwrap()
}

#[test]
fn c07_a_mount_of_roots_is_private_and_its_mode_is_chosen() {
    if !needs_root("findings::mount::c07_a_mount_of_roots_is_private_and_its_mode_is_chosen") {
        return;
    }
    let mut world = World::new();
    let items = [world.image("one", &on_base("one")), world.image("two", &on_base("two"))];
    let read = "ls $1 && cat $1/overlay-images/images.json";
    for options in [&[][..], &["--private"], &["--private", "--mode", "0755"]] {
        let mount = world.mount("private", &[options, &[items[0].as_str()]].concat());
        let output = as_user(read, &mount.at);
        assert!(stderr(&output).contains("Permission denied") && output.stdout.is_empty(), "{options:?}: {output:?}");
        assert_eq!(mount.names(), [full("one")]);
    }
    // Containers see it, whoever they run as.
    let mount = world.mount("containers", &[&items[0]]);
    let maps = "--uidmap 0:100000:65536 --gidmap 0:100000:65536";
    let script = format!(
        "podman run --rm {RUN} --user 1000:1000 {image} sh -c 'id -u; cat /name' && podman run --rm {RUN} {maps} {image} cat /name",
        image = full("one")
    );
    assert_eq!(ok(&mut podman(&world, &mount, &script)), "1000\none\none\n");

    let mode = |mount: &Mount| fs_err::metadata(&mount.at).unwrap().permissions().mode() & 0o7777;
    for (options, expected, lists, reads) in [
        (&["--allow-other"][..], 0o755, true, true),
        (&["--allow-other", "--mode", "0711"], 0o711, false, true),
        (&["--allow-other", "--mode", "700"], 0o700, false, false),
        (&["--mode", "0700"], 0o700, false, false),
    ] {
        let mount = world.mount(&format!("with{}", options.concat()), &[options, &[items[0].as_str()]].concat());
        let check = |when: &str| {
            assert_eq!(mode(&mount), expected, "{options:?} {when}");
            assert_eq!(as_user("ls $1", &mount.at).status.success(), lists, "{options:?} {when}");
            let output = as_user("cat $1/overlay-images/images.json", &mount.at);
            assert_eq!(output.status.success(), reads, "{options:?} {when}");
        };
        check("at first");
        mount.adds(&[&items[1]]);
        check("after a change");
        mount.kill_worker();
        check("by another worker");
    }
    for options in [&["--private", "--allow-other"][..], &["--mode", "0444"], &["--mode", "1755"], &["--mode", "rwx"]] {
        let output = world.mounting(&world.at.join("mnt")).args(options).arg(&items[0]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{options:?}: {}", stderr(&output));
    }
}

/// Changes an unpacked store so that it is hostile.
type Change = fn(&Path, &[String]);

#[test]
fn a06_a_tar_with_a_hostile_skeleton_is_not_mounted() {
    if !needs_root("findings::mount::a06_a_tar_with_a_hostile_skeleton_is_not_mounted") {
        return;
    }
    let mut world = World::new();
    let item = world.image("one", &on_base("one"));
    let unpacked = world.unpacked("unpacked", &[&item]);
    // The lowest layer first.
    let mut chain = crate::stores::chain(&unpacked, &full("one"));
    chain.reverse();
    let tar = |name: &str, tree: &Path| {
        let tar = world.at.join(format!("{name}.tar"));
        let mut command = Command::new("tar");
        command.args(["--xattrs", "--xattrs-include=*", "-cf"]).arg(&tar).arg("-C").arg(tree).arg(".");
        ok(&mut command);
        tar
    };
    // An unchanged store is shown.
    let root = world.at.join("unpacked");
    let good = world.mount("good", &[&tar("good", &root)]);
    assert_eq!(good.names(), [full("one")]);

    let link =
        |store: &Path, layer: &str| fs_err::read_to_string(store.join("overlay").join(layer).join("link")).unwrap();
    fn replace(path: impl AsRef<Path>, target: &str) {
        let path = path.as_ref();
        if path.is_dir() && !path.is_symlink() {
            fs_err::rename(path, path.with_extension("moved")).unwrap();
        } else {
            let _ = fs_err::remove_file(path);
        }
        symlink(target, path).unwrap();
    }
    fn l(store: &Path, layer: &str) -> std::path::PathBuf {
        store.join("overlay/l").join(fs_err::read_to_string(store.join("overlay").join(layer).join("link")).unwrap())
    }
    fn image(store: &Path) -> std::path::PathBuf {
        let mut entries = fs_err::read_dir(store.join("overlay-images")).unwrap().map(|entry| entry.unwrap().path());
        entries.find(|path| path.is_dir()).unwrap()
    }
    fn edit(path: impl AsRef<Path>, from: &str, to: &str) {
        let text = fs_err::read_to_string(path.as_ref()).unwrap();
        assert!(text.contains(from), "{text}");
        fs_err::write(path.as_ref(), text.replacen(from, to, 1)).unwrap();
    }
    let cases: &[(&str, Change, &str)] = &[
        ("absolute", |store, chain| replace(l(store, &chain[0]), "/etc"), "podman and CRI-O merge the directory"),
        ("relative", |store, chain| replace(l(store, &chain[1]), "../../../../../../../etc"), "leads to"),
        (
            "host-store",
            |store, chain| {
                replace(l(store, &chain[0]), &format!("/var/lib/containers/storage/overlay/{}/diff", chain[0]));
            },
            "leads to",
        ),
        ("of-another-layer", |store, chain| replace(l(store, &chain[0]), &format!("../{}/diff", chain[2])), "leads to"),
        ("root-of-a-layer", |store, chain| replace(l(store, &chain[0]), &format!("../{}", chain[0])), "leads to"),
        (
            "unused-link",
            |store, _| replace(store.join("overlay/l/ABCDEFGHIJKLMNOPQRSTUVWXYZ"), "/etc"),
            "not a layer of this store",
        ),
        (
            "link-of-another",
            |store, chain| {
                let other = fs_err::read(store.join("overlay").join(&chain[2]).join("link")).unwrap();
                fs_err::write(store.join("overlay").join(&chain[0]).join("link"), other).unwrap();
            },
            "overlay/",
        ),
        (
            "link-up",
            |store, chain| fs_err::write(store.join("overlay").join(&chain[0]).join("link"), "../../x").unwrap(),
            "not the name of a link",
        ),
        (
            "lower-up",
            |store, chain| edit(store.join("overlay").join(chain.last().unwrap()).join("lower"), "l/", "l/../../../"),
            "/lower: has",
        ),
        (
            "lower-more",
            |store, chain| edit(store.join("overlay").join(chain.last().unwrap()).join("lower"), "l/", "../../etc:l/"),
            "/lower: has",
        ),
        (
            "lower-of-bottom",
            |store, chain| fs_err::write(store.join("overlay").join(&chain[0]).join("lower"), "l/x").unwrap(),
            "lowest layer",
        ),
        (
            "lower-missing",
            |store, chain| {
                fs_err::remove_file(store.join("overlay").join(chain.last().unwrap()).join("lower")).unwrap()
            },
            "lower: is missing",
        ),
        (
            "lower-layers",
            |store, chain| {
                fs_err::write(store.join("overlay").join(chain.last().unwrap()).join("lower-layers"), "../../../etc")
                    .unwrap();
            },
            "lower-layers: has",
        ),
        (
            "diff1",
            |store, chain| fs_err::create_dir(store.join("overlay").join(&chain[0]).join("diff1")).unwrap(),
            "diff1: not a part of a layer",
        ),
        (
            "diff1-link",
            |store, chain| replace(store.join("overlay").join(&chain[1]).join("diff1"), "/etc"),
            "diff1: not a part of a layer",
        ),
        (
            "composefs",
            |store, chain| {
                let at = store.join("overlay").join(&chain[0]).join("composefs-data");
                fs_err::create_dir(&at).unwrap();
                fs_err::write(at.join("composefs.blob"), "x").unwrap();
            },
            "composefs-data: not a part of a layer",
        ),
        ("layer-is-a-link", |store, chain| replace(store.join("overlay").join(&chain[0]), "/etc"), "overlay/"),
        (
            "diff-is-a-link",
            |store, chain| replace(store.join("overlay").join(&chain[0]).join("diff"), "/etc"),
            "overlay/",
        ),
        ("manifest-is-a-link", |store, _| replace(image(store).join("manifest"), "/etc/hostname"), "manifest"),
        (
            "split-is-a-link",
            |store, chain| {
                replace(store.join(format!("overlay-layers/{}.tar-split.gz", chain[0])), "/etc/hostname");
            },
            "is a symbolic link",
        ),
        ("images-is-a-link", |store, _| replace(store.join("overlay-layers"), "/var/lib"), "overlay-layers"),
        ("records", |store, _| fs_err::write(store.join("overlay-layers/layers.json"), "[{").unwrap(), "layers.json"),
        ("name", |store, _| edit(store.join("overlay-images/images.json"), "localhost/one:1", "UPPER:CASE:x"), "UPPER"),
    ];
    fs_err::create_dir(world.at.join("mnt")).unwrap();
    for (name, change, part) in cases {
        let tree = world.at.join(name);
        ok(Command::new("cp").arg("-a").arg(&root).arg(&tree));
        change(&tree.join(ADDITIONAL), &chain);
        let tar = tar(name, &tree);
        let output = world.mounting(&world.at.join("mnt")).arg(&tar).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        assert!(said.contains(": not shown: ") && said.contains(part) && said.lines().count() == 1, "{name}: {said}");
        fs_err::remove_dir_all(&tree).unwrap();
    }
    assert!(link(&unpacked, &chain[0]).len() > 5);
}

#[test]
fn a15_mount_writes_storage_conf_only_when_mounted_and_over_its_own() {
    if !needs_root("findings::mount::a15_mount_writes_storage_conf_only_when_mounted_and_over_its_own") {
        return;
    }
    let mut world = World::new();
    let item = world.image("one", &on_base("one"));
    let conf = world.at.join("new.conf");
    let mounting = |at: &Path, item: &str, options: &[&str]| {
        let mut command = world.mounting(at);
        command.args(options).arg("--write-storage-conf").arg(&conf).arg(item);
        command
    };
    let mnt = world.at.join("mnt");
    fs_err::create_dir(&mnt).unwrap();
    // Images that cannot be had leave none.
    fails(&mut mounting(&mnt, &world.item("none"), &[]), 2, "none");
    assert!(!conf.exists());
    // A file of somebody else's, and links, are refused before anything is mounted.
    let own = "[storage]\ndriver = \"overlay\"\n";
    for make in [
        |path: &Path| fs_err::write(path, "[storage]\ndriver = \"overlay\"\n").unwrap(),
        |path: &Path| {
            fs_err::write(path.with_extension("target"), "[storage]\ndriver = \"overlay\"\n").unwrap();
            symlink(path.with_extension("target"), path).unwrap();
        },
    ] {
        make(&conf);
        fails(&mut mounting(&mnt, &item, &[]), 2, "prepull has not written what is there");
        assert_eq!(fs_err::read_to_string(&conf).unwrap(), own);
        fs_err::remove_file(&conf).unwrap();
    }
    symlink(conf.with_extension("target"), &conf).unwrap();
    let said = succeeds(&mut mounting(&mnt, &item, &["--force"]));
    let mount = Mount::of(&world, mnt.clone(), &said);
    assert!(!conf.is_symlink());
    assert_eq!(fs_err::read_to_string(conf.with_extension("target")).unwrap(), own);
    let text = fs_err::read_to_string(&conf).unwrap();
    let expected = format!("additionalimagestores = [\"{}\"]", mnt.display());
    assert!(text.contains(&expected) && text.contains("graphroot = \"/var/lib/containers/storage\""), "{text}");
    drop(mount);
    // Its own file is replaced.
    drop(Mount::of(&world, mnt.clone(), &succeeds(&mut mounting(&mnt, &item, &[]))));

    // podman creates a lock in the directory of an additional store while nothing is mounted there.
    let conf = storage_conf(&world, &mnt);
    ok(Command::new("podman").arg("images").env("CONTAINERS_STORAGE_CONF", conf));
    let left: Vec<_> = fs_err::read_dir(&mnt).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["overlay-images"]);
    drop(Mount::of(&world, mnt.clone(), &succeeds(world.mounting(&mnt).arg(&item))));
    // A store that has images.
    fs_err::write(mnt.join("overlay-images/images.json"), "").unwrap();
    fails(world.mounting(&mnt).arg(&item), 2, "not empty: a mount would hide overlay-images");
    fs_err::remove_dir_all(mnt.join("overlay-images")).unwrap();

    // A directory with something in it.
    fs_err::write(mnt.join("precious"), "").unwrap();
    fails(world.mounting(&mnt).arg(&item), 2, "not empty: a mount would hide precious");
    let mount = Mount::of(&world, mnt.clone(), &succeeds(world.mounting(&mnt).arg("--force").arg(&item)));
    assert!(!mnt.join("precious").exists());
    drop(mount);
    assert!(mnt.join("precious").exists());
}

#[test]
fn a15_c09_d07_a_users_mount_names_the_users_store_and_refuses_other_users_unread() {
    if !needs_root("findings::mount::a15_c09_d07_a_users_mount_names_the_users_store_and_refuses_other_users_unread") {
        return;
    }
    let mut space = Namespace::new(false);
    let item = space.world.image("one", &on_base("one"));
    let home = space.world.at.join("home");
    let conf = home.join("storage.conf");
    // A mount that fails leaves none.
    let mut failing = space.mounting(&["--allow-other", "--write-storage-conf"]);
    fails(failing.arg(&conf).arg(&item), 1, "user_allow_other");
    assert!(!conf.exists());
    let mut mounting = space.mounting(&["--write-storage-conf"]);
    let status: Value = serde_json::from_str(&succeeds(mounting.arg(&conf).arg(&item))).unwrap();
    let text = fs_err::read_to_string(&conf).unwrap();
    for (key, value) in [
        ("graphroot", home.join(".local/share/containers/storage")),
        ("runroot", space.world.at.join("run/containers")),
    ] {
        assert!(text.contains(&format!("{key} = \"{}\"", value.display())), "{key}: {text}");
    }
    // Lists of mounts: the user's, none of another user's, root's of all.
    let list = |user: u32| -> Value {
        serde_json::from_str(&succeeds(&mut space.prepull(user, &["mount", "status", "--json"]))).unwrap()
    };
    let own = list(USER);
    assert_eq!(own["mounts"].as_array().unwrap().len(), 1, "{own}");
    let one = &own["mounts"][0];
    assert_eq!(
        (&one["mountpoint"], &one["user"], &one["state"]),
        (&space.mnt().into(), &USER.into(), &"serving".into())
    );
    assert_eq!(one["keeper"], status["keeper"]);
    assert_eq!(list(OTHER)["mounts"].as_array().unwrap().len(), 0);
    let all = list(0);
    let of_user = all["mounts"].as_array().unwrap().iter().find(|mount| mount["user"] == USER).unwrap();
    assert_eq!((&of_user["mountpoint"], &of_user["state"]), (&space.mnt().into(), &"unreachable".into()));
    let table = succeeds(&mut space.prepull(USER, &["mount", "status"]));
    assert!(table.starts_with("MOUNTPOINT") && table.lines().nth(1).unwrap().contains("serving"), "{table}");

    // Another user who comes to the socket is refused before anything is read; one who sends slowly delays nobody.
    let sockets = space.world.at.join("run/prepull/mounts");
    let socket = fs_err::read_dir(&sockets).unwrap().next().unwrap().unwrap().path();
    for (path, mode) in [
        (&space.world.at.join("run"), 0o755),
        (&space.world.at.join("run/prepull"), 0o755),
        (&sockets, 0o755),
        (&socket, 0o666),
    ] {
        fs_err::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
    let script = r#"
import socket, sys
asks = socket.socket(socket.AF_UNIX)
asks.settimeout(20)
asks.connect(sys.argv[1])
print(b"".join(iter(lambda: asks.recv(1000), b""))[8:].decode())
"#;
    let said = ok(space.run(OTHER, &["python3", "-c", script]).arg(&socket));
    assert_eq!(said, "{\"Failed\":\"the mount is another user's\"}\n");
    fs_err::set_permissions(&sockets, PermissionsExt::from_mode(0o700)).unwrap();
    let slow = r#"
import socket, subprocess, sys
some = [socket.socket(socket.AF_UNIX) for _ in range(4)]
for each in some:
    each.connect(sys.argv[1])
    each.send(bytes([255, 255, 255, 0]))
sys.exit(subprocess.call(sys.argv[2:]))
"#;
    let mut asking = space.run(USER, &["python3", "-c", slow]);
    asking.arg(&socket).arg(space.world.at.join("prepull")).args(["mount", "status", &space.mnt()]);
    assert!(ok(&mut asking).contains("keeper"));
    succeeds(&mut space.prepull(USER, &["umount", "--quiet", &space.mnt()]));

    // A directory for sockets that another user has made: said, and how to help it.
    let squatted = format!("/tmp/prepull-mounts-{USER}");
    let words: &[&[&str]] =
        &[&["mkdir", "-m", "777", &squatted], &["ln", "-s", "/tmp", &squatted], &["touch", &squatted]];
    for make in words {
        ok(&mut space.run(OTHER, make));
        let output = space.mounting(&[]).env_remove("XDG_RUNTIME_DIR").arg(&item).output().unwrap();
        let said = stderr(&output);
        assert!(
            output.status.success() && said.contains("prepull: warning: prepull mount add, rm and status cannot reach"),
            "{said}"
        );
        assert!(
            said.contains(&squatted) && said.contains("set XDG_RUNTIME_DIR to a directory of yours"),
            "{make:?}: {said}"
        );
        succeeds(&mut space.prepull(USER, &["umount", "--quiet", &space.mnt()]));
        ok(&mut space.run(0, &["rm", "-rf", &squatted]));
    }
}

/// What README says for users without root: a mount in the namespace of podman's own ids, which podman then runs from.
#[test]
fn d01_rootless_podman_runs_from_a_mount_in_its_namespace() {
    if !needs_root("findings::mount::d01_rootless_podman_runs_from_a_mount_in_its_namespace") {
        return;
    }
    let mut space = Namespace::new(false);
    let mut layers = on_base("one");
    layers.push(archive(&[file("owned").owner(1000, 1001).mode(0o640).data("owned\n")]));
    let item = space.world.image("one", &layers);
    // Ids of its own for nobody; root's mounts and cgroups as a machine of today has them.
    let script = format!(
        r#"at=$1 user=$2 item=$3
        echo nobody:100000:65536 >"$at/subids" && mount --bind "$at/subids" /etc/subuid && mount --bind "$at/subids" /etc/subgid &&
            umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit 99
        mknod -m 666 "$at/null" c 1 3 && mount --bind "$at/null" /dev/null || exit 99
        as() {{ setpriv --reuid "$user" --regid "$user" --clear-groups env HOME="$at/home" XDG_RUNTIME_DIR="$at/run" "$@"; }}
        podman() {{ as podman --storage-opt additionalimagestore="$at/mnt" "$@"; }}
        as podman unshare "$at/prepull" mount --quiet --no-cache --platform linux/amd64 "$at/mnt" "$item" || exit 98
        podman images --format '{{{{.Repository}}}}:{{{{.Tag}}}} {{{{.ReadOnly}}}}'
        podman run --rm {RUN} localhost/one:1 sh -c 'cat /name; sha256sum </only-one; stat -c %u:%g:%a /owned /root; cat /owned; id -u'
        code=$?
        as podman unshare "$at/prepull" umount --quiet "$at/mnt"
        # The process that keeps podman's namespaces.
        kill "$(cat "$at/run/libpod/tmp/pause.pid")"
        exit $code"#
    );
    let user = USER.to_string();
    let mut command = space.run(0, &["unshare", "--mount", "sh", "-c", &script, "sh"]);
    command.stdin(std::process::Stdio::piped()).arg(&space.world.at).args([&user, &item]);
    let said = ok(&mut command);
    let digest = Digest::of(&large("one")).hex();
    let expected = format!("{} true\none\n{digest}  -\n1000:1001:640\n0:0:700\nowned\n0\n", full("one"));
    assert_eq!(
        said.lines().filter(|line| !line.starts_with("additionalimagestores")).collect::<Vec<_>>().join("\n") + "\n",
        expected
    );
    // Without the namespace the mount itself says what to do.
    let output = space.mounting(&[]).arg(&item).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    succeeds(&mut space.prepull(USER, &["umount", "--quiet", &space.mnt()]));
}

/// Whoever can write the tar that a cache shares can compute the checksums of a segment.
#[test]
fn c04_forged_bytes_of_a_shared_tar_are_not_shown() {
    if !needs_root("findings::mount::c04_forged_bytes_of_a_shared_tar_are_not_shown") {
        return;
    }
    // More than may be written before its place in the tar is known: so it is shared.
    const SIZE: usize = 66 << 20;
    let mut world = World::new();
    let content = noise("content", SIZE);
    let item = world.image("one", &[archive(&[file("content").data(&content), file("other").data("other")])]);
    let tar = world.at.join("images.tar");
    let make = |name: &str| {
        let mut command = world.prepull();
        command.args(["make", "--quiet", "--json", "--platform", "linux/amd64", "--cache-dir"]).arg(world.cache());
        let said = succeeds(command.arg("-o").arg(world.at.join(name)).arg(&item));
        serde_json::from_str::<Value>(&said).unwrap()["cachedLayers"].as_u64().unwrap()
    };
    make("images.tar");
    assert_eq!(std::os::unix::fs::MetadataExt::nlink(&fs_err::metadata(&tar).unwrap()), 2, "it is not shared");
    let at = fs_err::read(&tar).unwrap().windows(64).position(|bytes| bytes == &content[..64]).unwrap() as u64;
    let forge = || {
        let before = fs_err::metadata(&tar).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let forged = std::fs::File::options().write(true).open(&tar).unwrap();
        for offset in [0, SIZE as u64 / 2, SIZE as u64 - 100] {
            std::os::unix::fs::FileExt::write_all_at(&forged, b"forged", at + offset).unwrap();
        }
        forged.set_modified(before.modified().unwrap()).unwrap();
        assert_eq!(fs_err::metadata(&tar).unwrap().len(), before.len());
    };
    let read = |mount: &Mount| {
        let layer = crate::stores::chain(&mount.at, &full("one")).pop().unwrap();
        let path = mount.at.join("overlay").join(layer).join("diff/content");
        let mut bytes = Vec::new();
        // The error is the system's own, without a path.
        fs_err::File::open(path).unwrap().into_file().read_to_end(&mut bytes).map(|_| bytes)
    };

    // Forged while it is mounted: what has not been read yet cannot be read any more.
    let mount = world.mount("mnt", &[&item]);
    forge();
    assert_eq!(read(&mount).unwrap_err().raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    drop(mount);
    // Forged before: the layer is converted again, and is right.
    let mount = world.mount("mnt", &[&item]);
    assert!(read(&mount).unwrap() == content);
    drop(mount);
    assert_eq!(make("again.tar"), 1);
    assert!(fs_err::read(world.at.join("again.tar")).unwrap().windows(64).any(|bytes| bytes == &content[..64]));
    let unread = fs_err::read(&tar).unwrap();
    assert!(unread.windows(6).any(|bytes| bytes == b"forged"), "the user's own file is left alone");
}

/// containers/storage takes a comma for the end of an additional store's path (`drivers/overlay/overlay.go`, `parseOptions`), and gives
/// the path to the kernel as it is, for which a colon ends it and a backslash is an escape.
#[test]
fn a15_storage_conf_names_any_mount_point_that_podman_can_use() {
    if !needs_root("findings::mount::a15_storage_conf_names_any_mount_point_that_podman_can_use") {
        return;
    }
    let mut world = World::new();
    let item = world.image("one", &on_base("one"));
    let conf = world.at.join("storage.conf");
    let mounting = |at: &Path| {
        fs_err::create_dir_all(at).unwrap();
        let mut command = world.mounting(at);
        command.arg("--write-storage-conf").arg(&conf).arg(&item);
        command
    };
    let podman = r#"mount -t tmpfs tmpfs /var/lib/containers && umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit 99
        podman images --format '{{.Repository}}:{{.Tag}} {{.ReadOnly}}' &&
            c=$(podman create --network none localhost/one:1) && m=$(podman mount "$c") && cat "$m/name" && podman umount "$c" >/dev/null"#;
    for name in
        ["quo\"te's \u{e9}", "new\nline\ttab", "bell\u{7}\u{1b}[31m", "\u{7f}\u{85}\u{202e}", "# not = a [comment]"]
    {
        let at = world.at.join(name);
        let mount = Mount::of(&world, at.clone(), &succeeds(&mut mounting(&at)));
        let text = fs_err::read_to_string(&conf).unwrap();
        assert!(!text.contains(|char: char| char.is_control() && char != '\n'), "{text:?}");
        let parsed: toml::Table = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        let stores = &parsed["storage"]["options"]["additionalimagestores"];
        assert_eq!(stores.as_array().unwrap().len(), 1, "{text}");
        assert_eq!(stores[0].as_str(), at.to_str(), "{text}");
        let mut command = crate::stores::in_own_mounts("sh");
        command.args(["-c", podman]).env("CONTAINERS_STORAGE_CONF", &conf).env("HOME", world.at.join("home"));
        assert_eq!(ok(&mut command), format!("{} true\none\n", full("one")), "{name:?}");
        let text = succeeds(&mut mount.prepull(&["mount", "status"]));
        assert!(!text.contains(|char: char| char.is_control() && char != '\n'), "{text:?}");
        drop(mount);
        fs_err::remove_file(&conf).unwrap();
    }
    for (name, bad) in [("a,b", "`,`"), ("a:b", "`:`"), ("a\\b", "`\\`")] {
        let at = world.at.join(name);
        fails(&mut mounting(&at), 2, &format!("containers/storage cannot use a path with {bad}"));
        assert!(!conf.exists() && !at.join("overlay").exists(), "{name}");
        // Others may look at it.
        let output = world.mounting(&at).arg(&item).output().unwrap();
        let mount = Mount::of(&world, at, &String::from_utf8(output.stdout.clone()).unwrap());
        assert!(
            stderr(&output).contains(&format!("containers/storage cannot use a path with {bad}")),
            "{}",
            stderr(&output)
        );
        drop(mount);
    }
    let other = std::os::unix::ffi::OsStringExt::from_vec(b"no\xfftext".to_vec());
    fails(&mut mounting(&world.at.join::<std::ffi::OsString>(other)), 2, "not UTF-8: storage.conf cannot name it");
    assert!(!conf.exists());
}
