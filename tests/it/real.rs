//! Stores of real images: the real tools list, mount, save and check them as they do skopeo's.
//!
//! `PREPULL_CORPUS=DIR` adds all OCI layouts in that directory; `PREPULL_NEWER_CHROOT=DIR` has a newer release's
//! `containers-storage` check the stores as well, and those of `edge`.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use prepull::digest::Digest;
use serde_json::Value;

use crate::command::{needs_root, prepull};
use crate::edge::Stores;
use crate::stores::{Clock, GRAPHROOT, complaints, in_own_mounts, scratch, skopeo_into, unpack_gnu};

const NAME: &str = "localhost/built:1";

/// Several layers with what builders do: packages, links, devices, deletions, a directory replaced.
const BUILD: &str = r#"
set -e
cd "$1"
b() { buildah --root "$1/root" --runroot "$1/run" --storage-driver overlay "${@:2}"; }
base=$PWD
step() { # name, from, script
    c=$(b "$base" from --pull=false "$2")
    m=$(b "$base" mount "$c")
    (cd "$m" && eval "$3")
    b "$base" umount "$c" >/dev/null
    b "$base" commit --quiet --rm "$c" "$1" >/dev/null
}
step one scratch 'mkdir -p bin etc/conf.d var/lib/app/data tmp home/user; chmod 1777 tmp; cp /bin/busybox bin/busybox
    ln bin/busybox bin/sh; ln -s busybox bin/ls; for n in $(seq 300); do echo $n >var/lib/app/data/f$n; done
    chown -R 1000:1000 home/user var/lib/app; chmod 4755 bin/busybox; mkfifo tmp/fifo; echo old >etc/conf.d/a; echo b >etc/conf.d/b
    ln -s /etc/conf.d/a etc/alternative; ln -s ../../etc home/user/etc'
step two one 'rm -r var/lib/app/data; mkdir var/lib/app/data; echo new >var/lib/app/data/new; rm etc/conf.d/a
    chown 0:42 etc/conf.d; echo more >>etc/conf.d/b'
step three two 'mv var/lib/app/data/new var/lib/app/data/newer; rm -r etc/conf.d; echo file >etc/conf.d
    echo x >bin/x; setcap cap_net_raw+ep bin/x 2>/dev/null || true; touch home/user/.hidden'
b "$base" push --quiet three "oci:$base/oci:$2"
"#;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn ok(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn build(at: &Path) -> String {
    ok(in_own_mounts("bash").args(["-c", BUILD, "bash"]).arg(at).arg(NAME));
    // So that what was built is older than what is made of it.
    std::thread::sleep(std::time::Duration::from_secs(3));
    format!("oci:{}:{NAME}", at.join("oci").display())
}

fn blob(layout: &Path, descriptor: &Value) -> Vec<u8> {
    let digest: Digest = descriptor["digest"].as_str().unwrap().parse().unwrap();
    fs_err::read(layout.join("blobs/sha256").join(digest.hex())).unwrap()
}

/// The diffIDs that the only image of a layout says it has, and those that its layers have.
fn diff_ids(layout: &Path) -> (Vec<String>, Vec<String>) {
    let parse = |bytes: &[u8]| -> Value { serde_json::from_slice(bytes).unwrap() };
    let index = parse(&fs_err::read(layout.join("index.json")).unwrap());
    let manifest = parse(&blob(layout, &index["manifests"][0]));
    let config = parse(&blob(layout, &manifest["config"]));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let said = config["rootfs"]["diff_ids"].as_array().unwrap().iter().map(text).collect();
    let measure = |layer: &Value| {
        let bytes = blob(layout, layer);
        let mut plain = Vec::new();
        if bytes.starts_with(b"\x1f\x8b") {
            flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut plain).unwrap();
        } else {
            plain = bytes;
        }
        Digest::of(&plain).to_string()
    };
    let found = manifest["layers"].as_array().unwrap().iter().map(measure).collect();
    (said, found)
}

/// Damages a file of a store; `containers-storage check` must see it, else it says nothing when it finds nothing wrong.
#[track_caller]
fn check_sees_damage(at: &Path, store: &Path, root: &str, image_store: Option<&str>) {
    let script = r#"f=$(find "$1"/overlay/*/diff/var/lib/app/data/newer) && test -f "$f" && echo x >>"$f""#;
    ok(Command::new("sh").args(["-c", script, "sh"]).arg(store));
    assert_ne!(complaints(at, root, image_store), Some(Vec::new()), "containers-storage check sees no damage");
}

/// Both stores of one image, compared; gives ours.
#[track_caller]
fn compare(at: &Path, item: &str, name: &str) -> PathBuf {
    let begun = Clock::now();
    let theirs = at.join("skopeo");
    let output = skopeo_into(&theirs, item, name);
    assert!(output.status.success(), "{}", said(&output));
    let their_clock = Clock::since(begun);
    let tar = at.join("images.tar");
    ok(prepull(at).args(["make", "--unpacker", "gnu", "--quiet", "--no-cache", "-o"]).arg(&tar).arg(item));
    unpack_gnu(&tar, &at.join("machine")).unwrap();
    let ours = at.join("machine").join(GRAPHROOT);
    let mut report = String::new();
    Stores { ours: &ours, theirs: &theirs, their_clock }.compare(name, &[], &mut report);
    assert!(report.is_empty(), "{name}:\n{report}");
    let [our_complaints, their_complaints] =
        [&format!("machine/{GRAPHROOT}"), "skopeo"].map(|root| complaints(at, root, None));
    assert_eq!(our_complaints, their_complaints, "{name}: containers-storage check");
    ours
}

fn podman(root: &Path, run: &Path, arguments: &[&str]) -> String {
    let script =
        r#"root=$1 run=$2; shift 2; exec podman --root "$root" --runroot "$run" --storage-driver overlay "$@""#;
    ok(in_own_mounts("sh").args(["-c", script, "sh"]).arg(root).arg(run).args(arguments))
}

#[test]
fn the_real_tools_use_it() {
    if !needs_root("real::the_real_tools_use_it") {
        return;
    }
    let directory = scratch();
    let at = directory.path();
    let item = build(at);
    let ours = compare(at, &item, NAME);
    let (expected, _) = diff_ids(&at.join("oci"));

    let run = at.join("run");
    let list = podman(&ours, &run, &["images", "--format", "{{.Repository}}:{{.Tag}} {{.ReadOnly}}"]);
    assert_eq!(list.trim(), format!("{NAME} false"));
    let show = r#"m=$(podman --root "$1" --runroot "$2" --storage-driver overlay image mount "$3") && cd "$m" &&
        find . -printf '%p %y %m %U:%G %l\n' | sort"#;
    let shown = |root: &Path| ok(in_own_mounts("sh").args(["-c", show, "sh"]).arg(root).arg(&run).arg(NAME));
    let merged = shown(&ours);
    assert_eq!(merged, shown(&at.join("skopeo")));
    assert!(merged.contains("./var/lib/app/data/newer f") && !merged.contains("data/f1 "), "{merged}");
    podman(&ours, &run, &["save", "--quiet", "--format", "oci-dir", "-o", at.join("saved").to_str().unwrap(), NAME]);
    assert_eq!(diff_ids(&at.join("saved")), (expected.clone(), expected.clone()), "podman save");
    let store = format!("containers-storage:[overlay@{}+{}]{NAME}", ours.display(), run.display());
    let to = format!("oci:{}:x", at.join("copied").display());
    ok(in_own_mounts("skopeo").args(["--insecure-policy", "copy", "--quiet", &store, &to]));
    assert_eq!(diff_ids(&at.join("copied")), (expected.clone(), expected), "skopeo copy");
    check_sees_damage(at, &ours, &format!("machine/{GRAPHROOT}"), None);
}

#[test]
fn an_additional_store_is_read_only_and_for_all() {
    if !needs_root("real::an_additional_store_is_read_only_and_for_all") {
        return;
    }
    let directory = scratch();
    let at = directory.path();
    let item = build(at);
    let tar = at.join("images.tar");
    let options = ["make", "--store", "additional", "--unpacker", "gnu", "--quiet", "--no-cache", "-o"];
    ok(prepull(at).args(options).arg(&tar).arg(&item));
    unpack_gnu(&tar, &at.join("machine")).unwrap();
    let image_store = "machine/usr/lib/containers/storage";
    let store = at.join(image_store);
    let script = r#"mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && touch "$1/x" 2>/dev/null && exit 9
        p() { podman --root "$2/primary" --runroot "$2/run" --storage-driver overlay --storage-opt "overlay.imagestore=$1" "${@:3}"; }
        p "$1" "$2" images --format '{{.Repository}}:{{.Tag}} {{.ReadOnly}}' && c=$(p "$1" "$2" create --network none "$3" /bin/sh) &&
            m=$(p "$1" "$2" mount "$c") && cat "$m/var/lib/app/data/newer"
    "#;
    let said = ok(in_own_mounts("bash").args(["-c", script, "bash"]).arg(&store).arg(at).arg(NAME));
    assert_eq!(said, format!("{NAME} true\nnew\n"));
    // Every user may list the images.
    for (path, is_directory) in [
        ("", true),
        ("overlay", true),
        ("overlay/l", true),
        ("overlay-images", true),
        ("overlay-images/images.json", false),
        ("overlay-images/images.lock", false),
        ("overlay-layers/layers.json", false),
        ("overlay-layers/layers.lock", false),
    ] {
        let mode = fs_err::metadata(store.join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, if is_directory { 0o755 } else { 0o644 }, "{path}");
    }
    for layer in fs_err::read_dir(store.join("overlay-layers")).unwrap() {
        assert_eq!(layer.unwrap().metadata().unwrap().permissions().mode() & 0o444, 0o444);
    }
    // Nothing of an additional store is mounted or walked when it is checked: so it is checked as a primary one as well.
    for (root, image_store) in [("checker", Some(image_store)), (image_store, None)] {
        assert!(complaints(at, root, image_store).is_none_or(|found| found.is_empty()));
    }
    check_sees_damage(at, &store, "checker", Some(image_store));
}

#[test]
fn images_of_the_corpus() {
    let Some(corpus) = std::env::var_os("PREPULL_CORPUS") else { return };
    if !needs_root("real::images_of_the_corpus") {
        return;
    }
    let mut layouts = Vec::new();
    let mut pending = vec![PathBuf::from(corpus)];
    while let Some(directory) = pending.pop() {
        if directory.join("index.json").exists() {
            layouts.push(directory);
        } else if directory.is_dir() {
            pending.extend(fs_err::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    assert!(!layouts.is_empty());
    for (number, layout) in layouts.iter().enumerate() {
        let directory = scratch();
        let name = format!("localhost/corpus{number}:1");
        let copied = directory.path().join("oci");
        fs_err::create_dir_all(&copied).unwrap();
        let script = r#"cp -r --reflink=auto "$1/." "$2""#;
        ok(Command::new("sh").args(["-c", script, "sh"]).arg(layout).arg(&copied));
        let index = fs_err::read(copied.join("index.json")).unwrap();
        let mut index: Value = serde_json::from_slice(&index).unwrap();
        index["manifests"].as_array_mut().unwrap().truncate(1);
        index["manifests"][0]["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
        fs_err::write(copied.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
        eprintln!("{}", layout.display());
        compare(directory.path(), &format!("oci:{}:{name}", copied.display()), &name);
    }
}
