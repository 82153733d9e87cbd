//! `prepull why` finds what the real tools find, and explains it.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::command::{fails, hello, needs_root, prepull, stderr, succeeds};
use crate::made::{Layout, copy, gzip, layers, skopeo};

const ID: &str = "22abcec99df2b933f8e71768080a9bf45bd04dd3f0994dd6dd4eed5ef54fac9b";
const DIGEST: &str = "sha256:a19380d11085caf15fb89035a83aa91233bc5d4d4a8ccc841e3ec10155a04e61";

fn make(at: &Path, arguments: &[&str]) {
    succeeds(prepull(at).current_dir(at).args(["make", "--quiet"]).args(arguments));
}

/// Runs it; gives the answer and the exit code. It talks on standard output only.
#[track_caller]
fn why(at: &Path, arguments: &[&str]) -> (String, i32) {
    let output: Output = prepull(at).current_dir(at).arg("why").args(arguments).output().unwrap();
    assert_eq!(stderr(&output), "", "{arguments:?}");
    (String::from_utf8(output.stdout).unwrap(), output.status.code().unwrap())
}

#[track_caller]
fn json(at: &Path, input: &str, name: &str) -> Value {
    serde_json::from_str(&why(at, &["--json", input, name]).0).unwrap()
}

fn tar(at: &Path, arguments: &[&str]) {
    succeeds(Command::new("tar").current_dir(at).args(arguments));
}

/// Unpacks the stores and the configuration of a tar, whose images have no device nodes, into a root directory.
fn unpack(at: &Path, archive: &str, root: &str) {
    fs_err::create_dir_all(at.join(root)).unwrap();
    let records = ["--wildcards", "*/overlay/*", "*/overlay-images/*", "*/overlay-layers/*", "etc/*"];
    tar(at, &[&["-xf", archive, "-C", root, "--no-same-owner"], &records[..]].concat());
}

/// A tar with what the tests below ask for, and one without.
fn make_tars(at: &Path) {
    let named = |name: &str| format!("{}={name}", hello());
    let (busybox, latest) = (named("docker.io/library/busybox:1.36"), named("registry.test:5000/x:latest"));
    make(at, &["-o", "all.tar", "--pause", &named("registry.k8s.io/pause:3.9"), &hello(), &busybox, &latest]);
    make(at, &["-o", "bare.tar", "--no-config", &hello()]);
}

#[test]
fn answers_read_well() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    make_tars(at);
    let by_digest = format!("busybox@{DIGEST}");
    let with_tag = format!("docker.io/busybox:other@{DIGEST}");
    for (input, name, shown, code) in [
        ("all.tar", "docker.io/library/busybox:1.36", "found", 0),
        ("all.tar", "docker.io/busybox:1.36", "normalised", 0),
        ("all.tar", "busybox:1.36", "short", 2),
        ("all.tar", &by_digest, "short-digest", 2),
        ("all.tar", &with_tag, "tag-and-digest", 0),
        ("all.tar", "registry.test:5000/x", "latest", 1),
        ("all.tar", "registry.k8s.io/pause:3.9", "pause", 0),
        ("all.tar", "22abcec", "id", 1),
        ("all.tar", "localhost/hallo:v1", "typo", 2),
        ("all.tar", "localhost/Hello:v1", "upper-case", 2),
        ("all.tar", "quite.test/different:9", "different", 2),
        ("bare.tar", "localhost/hello:v1", "no-config", 0),
    ] {
        let (text, exit) = why(at, &[input, name]);
        assert_eq!(exit, code, "{text}");
        insta::assert_snapshot!(format!("why-{shown}"), text);
    }
}

#[test]
fn every_form_of_input_gives_the_same() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    make_tars(at);
    unpack(at, "all.tar", "root");
    tar(at, &["-cf", "dot.tar", "-C", "root", "."]);
    let bytes = fs_err::read(at.join("all.tar")).unwrap();
    fs_err::write(at.join("all.tar.gz"), gzip(&bytes)).unwrap();
    fs_err::write(at.join("all.tar.zst"), zstd::encode_all(&bytes[..], 1).unwrap()).unwrap();
    for name in ["docker.io/library/busybox:1.36", "busybox:1.36", ID, "localhost/hello:v2"] {
        let expected = why(at, &["all.tar", name]);
        for input in ["all.tar.gz", "all.tar.zst", "root", "dot.tar"] {
            assert_eq!(why(at, &[input, name]), expected, "{input}");
        }
        let stdin = fs_err::File::open(at.join("all.tar.gz")).unwrap().into_file();
        let output = prepull(at).args(["why", "-", name]).stdin(stdin).output().unwrap();
        assert_eq!((String::from_utf8(output.stdout).unwrap(), output.status.code().unwrap()), expected);
    }
    // A graphroot alone has no configuration.
    let alone = json(at, "root/var/lib/containers/storage", "localhost/hello:v1");
    assert_eq!((&alone["verdict"], &alone["pinned"]["pinned"]), (&"usable".into(), &false.into()));
}

#[test]
fn json_has_the_same_facts() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    make_tars(at);
    let answer = json(at, "all.tar", "docker.io/busybox:1.36");
    assert_eq!(answer["verdict"], "usable");
    assert_eq!(answer["lookup"]["kind"], "full");
    assert_eq!(answer["lookup"]["candidates"][0]["name"], "docker.io/library/busybox:1.36");
    let image = &answer["image"];
    assert_eq!((&image["id"], &image["size"], &image["foundBy"]), (&ID.into(), &43_054.into(), &"name".into()));
    assert_eq!((&image["platform"], &image["store"]), (&"linux/amd64".into(), &"/var/lib/containers/storage".into()));
    assert_eq!(answer["pinned"]["by"]["pattern"], "docker.io/library/busybox:1.36");
    assert_eq!(answer["pinned"]["by"]["origin"]["file"], "/etc/crio/crio.conf.d/10-prepull.conf");
    assert_eq!(answer["pause"]["wanted"][0]["present"], true);
    assert_eq!(answer["pull"], serde_json::json!({"policy": "IfNotPresent", "contactsRegistry": false}));
}

#[test]
fn the_additional_store_comes_after_the_primary_one() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    make_tars(at);
    make(at, &["-o", "more.tar", "--store", "additional", &hello(), &format!("{}=localhost/more:1", hello())]);
    let only = json(at, "more.tar", "localhost/more:1");
    assert_eq!((&only["verdict"], &only["stores"][0]["role"]), (&"usable".into(), &"additional".into()));
    unpack(at, "all.tar", "root");
    unpack(at, "more.tar", "root");
    let both = json(at, "root", "localhost/hello:v1");
    assert_eq!(both["image"]["store"], "/var/lib/containers/storage");
    assert_eq!(both["image"]["alsoIn"][0], "/usr/lib/containers/storage");
    // The same image is in the primary store without that name, which therefore counts as taken away.
    assert_eq!(json(at, "root", "localhost/more:1")["verdict"], "not-found");
}

#[test]
fn stores_elsewhere_are_found_by_the_configuration() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    make(at, &["-o", "a.tar", "--graphroot", "/data/store", &hello()]);
    unpack(at, "a.tar", "root");
    for input in ["a.tar", "root"] {
        assert_eq!(json(at, input, "localhost/hello:v1")["image"]["store"], "/data/store", "{input}");
    }
    fs_err::write(at.join("root/etc/containers/storage.conf"), "[storage]\ngraphroot = '/../elsewhere'\n").unwrap();
    fails(prepull(at).current_dir(at).args(["why", "root", "a:1"]), 2, "root: no store in it");
}

#[test]
fn what_is_no_good_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    make_tars(at);
    unpack(at, "all.tar", "root");
    let run = |arguments: &[&str], code, part: &str| {
        fails(prepull(at).current_dir(at).arg("why").args(arguments), code, part);
    };
    run(&["none", "a:1"], 2, "none: no such file or directory");
    run(&["root/etc", "a:1"], 2, "no store in it");
    run(&["all.tar"], 2, "usage: prepull why");
    run(&["all.tar", &"a".repeat(2000)], 2, "a name of 2000 bytes");
    for (file, text, part) in [
        ("etc/crio/crio.conf.d/20-x.conf", "[crio.image]\npinned_images = 7\n", "20-x.conf:2: invalid type: integer"),
        ("etc/crio/crio.conf", "[crio\n", "root: etc/crio/crio.conf:1: "),
        ("etc/containers/registries.conf", "\n=", "registries.conf:2: "),
        ("var/lib/containers/storage/overlay-images/images.json", "{}", "overlay-images/images.json: "),
    ] {
        let path = at.join("root").join(file);
        let before = fs_err::read(&path).ok();
        fs_err::write(&path, text).unwrap();
        // CRI-O lists nothing with such records: that is an answer. A configuration that cannot be read is none.
        let code = if file.ends_with("images.json") { 1 } else { 2 };
        run(&["root", "a:1"], code, part);
        match before {
            Some(bytes) => fs_err::write(&path, bytes).unwrap(),
            None => fs_err::remove_file(&path).unwrap(),
        }
    }
    // Nothing of a stranger's name gets to the terminal as it is.
    let (text, code) = why(at, &["all.tar", "a\u{1b}[2J:1"]);
    assert!(code == 2 && !text.contains('\u{1b}') && text.contains("\\u{1b}"), "{text}");
}

/// What podman finds by an id, and by a name what skopeo finds: it looks names up with containers/image's code, as CRI-O does
/// (podman takes any repository for a digest).
fn really(at: &Path, root: &str, run: &str, name: &str) -> Option<String> {
    if name.contains('/') {
        let output = skopeo(at, &["inspect", "--raw", &format!("containers-storage:[overlay@{root}+{run}]{name}")]);
        let manifest: Value = serde_json::from_slice(&output.stdout).ok()?;
        return manifest["config"]["digest"].as_str().map(|digest| digest.trim_start_matches("sha256:").to_owned());
    }
    let mut command = Command::new("podman");
    command.args(["--root", root, "--runroot", run, "image", "inspect", "--format", "{{.Id}}", name]);
    let output = command.output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

#[test]
fn the_real_tools_find_the_same() {
    if !needs_root("why: names as skopeo and podman find them") {
        return;
    }
    let scratch = tempfile::Builder::new().prefix("prepull-test-").tempdir_in("/var/tmp").unwrap();
    let at = scratch.path();
    let mut layout = Layout::new(at.join("layout"));
    let descriptor = layout.image("amd64", &layers());
    let other = descriptor["digest"].as_str().unwrap().to_owned();
    layout.add(None, descriptor);
    let (root, run) = (at.join("g").display().to_string(), at.join("r").display().to_string());
    let store = format!("containers-storage:[overlay@{root}+{run}]");
    copy(at, &["oci:layout", &format!("{store}localhost/app:v1")]);
    copy(at, &["oci:layout", &format!("{store}host.test:5000/a/b:v2")]);
    copy(at, &[&hello(), &format!("{store}docker.io/library/hello:v1")]);
    // A store that prepull made, as it is when it is unpacked.
    make(at, &["-o", "made.tar", &hello(), &format!("{}=host.test/x/y:latest", hello())]);
    fs_err::create_dir(at.join("made")).unwrap();
    tar(at, &["-xpf", "made.tar", "-C", "made"]);
    let made = at.join("made/var/lib/containers/storage").display().to_string();
    for (graphroot, input) in [(&root, "g"), (&made, "made/var/lib/containers/storage")] {
        let mut found = 0;
        for name in [
            "localhost/app:v1".to_owned(),
            "localhost/app:v2".into(),
            "localhost/app".into(),
            "host.test:5000/a/b:v2".into(),
            "host.test:5000/a/b".into(),
            "host.test/x/y".into(),
            "docker.io/library/hello:v1".into(),
            "docker.io/hello:v1".into(),
            "localhost/hello:v1".into(),
            format!("localhost/app@{other}"),
            format!("localhost/app@{DIGEST}"),
            format!("docker.io/library/hello@{DIGEST}"),
            format!("localhost/hello@{DIGEST}"),
            format!("localhost/hello:v1@{DIGEST}"),
            format!("host.test/other@{DIGEST}"),
            ID.into(),
            ID[..12].into(),
            "0".repeat(64),
        ] {
            let here = json(at, input, &name)["image"]["id"].as_str().map(str::to_owned);
            let there = really(at, graphroot, &run, &name);
            assert_eq!(here, there, "{input}: {name}");
            found += usize::from(here.is_some());
        }
        assert!(found >= 5, "{input}: {found}");
    }
    for graphroot in ["g", "made/var/lib/containers/storage"] {
        let mount = at.join(graphroot).join("overlay");
        let _ = Command::new("umount").arg(mount).stderr(std::process::Stdio::null()).status();
    }
}
