//! `prepull ls` agrees with podman, whoever made the store.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::command::{fails, hello, needs_root, prepull, succeeds};
use crate::made::{Layout, copy, layers};

const ID: &str = "22abcec99df2b933f8e71768080a9bf45bd04dd3f0994dd6dd4eed5ef54fac9b";

fn make(at: &Path, arguments: &[&str]) {
    succeeds(prepull(at).current_dir(at).args(["make", "--quiet"]).args(arguments));
}

fn ls(at: &Path, arguments: &[&str]) -> String {
    succeeds(prepull(at).current_dir(at).arg("ls").args(arguments))
}

fn tar(at: &Path, arguments: &[&str]) {
    succeeds(Command::new("tar").current_dir(at).args(arguments));
}

#[test]
fn a_tar_of_make_is_listed() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    make(at, &["-o", "images.tar", &hello(), &format!("{}=localhost:5000/b/c:v2", hello())]);
    let table = "IMAGE                TAG   IMAGE ID        SIZE\n\
                 localhost/hello      v1    22abcec99df2b   43.1 kB\n\
                 localhost:5000/b/c   v2    22abcec99df2b   43.1 kB\n";
    assert_eq!(ls(at, &["images.tar"]), table);
    assert!(
        ls(at, &["--digests", "images.tar"])
            .contains("   sha256:a19380d11085caf15fb89035a83aa91233bc5d4d4a8ccc841e3ec10155a04e61   ")
    );
    let json: Value = serde_json::from_str(&ls(at, &["--json", "images.tar"])).unwrap();
    let image = &json["images"][0];
    assert_eq!(image["id"], ID);
    assert_eq!(image["repoTags"], serde_json::json!(["localhost/hello:v1", "localhost:5000/b/c:v2"]));
    assert_eq!((image["size"].as_u64(), image["layers"].as_u64()), (Some(43_054), Some(3)));
    assert_eq!(image["store"], "/var/lib/containers/storage");

    // From a pipe, and as a file that is none.
    let output =
        prepull(at).args(["ls", "-"]).stdin(fs_err::File::open(at.join("images.tar")).unwrap().into_file()).output();
    assert_eq!(String::from_utf8(output.unwrap().stdout).unwrap(), table);
    tar(at, &["-czf", "images.tgz", "images.tar"]);
    fails(prepull(at).current_dir(at).args(["ls", "images.tgz"]), 2, "no store in it");
    succeeds(Command::new("gzip").current_dir(at).args(["-k", "images.tar"]));
    assert_eq!(ls(at, &["images.tar.gz"]), table);
}

#[test]
fn two_stores_in_one_root_are_both_listed() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    make(at, &["-o", "a.tar", &hello()]);
    make(at, &["-o", "b.tar", "--store", "additional", &hello()]);
    fs_err::create_dir(at.join("root")).unwrap();
    // As an ordinary user, who makes no device nodes: the records are enough.
    for archive in ["a.tar", "b.tar"] {
        let records = ["--wildcards", "*/overlay-images/*", "*/overlay-layers/*"];
        tar(at, &[&["-xf", archive, "-C", "root", "--no-same-owner"], &records[..]].concat());
    }
    tar(at, &["-cf", "both.tar", "-C", "root", "."]);
    for input in ["root", "both.tar"] {
        let table = ls(at, &[input]);
        let rows: Vec<&str> = table.lines().collect();
        assert_eq!(rows.len(), 3, "{table}");
        assert!(
            rows[1].ends_with("   /usr/lib/containers/storage") && rows[2].ends_with("   /var/lib/containers/storage")
        );
    }
    assert_eq!(ls(at, &["root/var/lib/containers/storage"]).lines().count(), 2);
}

#[test]
fn what_is_no_store_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    fs_err::write(at.join("text"), "This is no tar at all, but there is enough of it. ".repeat(20)).unwrap();
    let path = |name: &str| at.join(name).display().to_string();
    fails(prepull(at).args(["ls", &path("none")]), 2, "none: no such file or directory");
    fails(prepull(at).args(["ls", &path("text")]), 2, "is this a tar?");
    fails(prepull(at).args(["ls", &path("")]), 2, "no store in it");
    fails(prepull(at).args(["ls", "-"]).stdin(Stdio::null()), 2, "standard input: no store in it");
    fails(prepull(at).arg("ls"), 2, "usage: prepull ls");
}

#[test]
fn a_store_of_skopeo_is_listed_as_podman_lists_it() {
    if !needs_root("ls: a store of skopeo") {
        return;
    }
    let scratch = tempfile::Builder::new().prefix("prepull-test-").tempdir_in("/var/tmp").unwrap();
    let at = scratch.path();
    let mut layout = Layout::new(at.join("layout"));
    let descriptor = layout.image("amd64", &layers());
    layout.add(None, descriptor);
    let (root, run) = (at.join("g").display().to_string(), at.join("r").display().to_string());
    let store = format!("containers-storage:[overlay@{root}+{run}]");
    copy(at, &["oci:layout", &format!("{store}localhost/app:v1")]);
    copy(at, &["oci:layout", &format!("{store}host.test:5000/a/b:v2")]);
    copy(at, &[&hello(), &format!("{store}docker.io/library/hello:v1")]);
    let format = "{{.Repository}} {{.Tag}} {{.ID}} {{.Digest}}";
    let podman = |arguments: &[&str]| {
        succeeds(Command::new("podman").args(["--root", &root, "--runroot", &run, "images"]).args(arguments))
    };
    let mut expected: Vec<String> = podman(&["--no-trunc", "--format", format]).lines().map(str::to_owned).collect();
    expected.sort();
    let sizes: Value = serde_json::from_str(&podman(&["--format", "json"])).unwrap();
    // podman makes files of its own in a store; they are not in the way.
    tar(at, &["-cf", "store.tar", "-C", "g", "."]);
    tar(at, &["-cf", "deep.tar", "g"]);
    for input in ["g", "store.tar", "deep.tar"] {
        let json: Value = serde_json::from_str(&ls(at, &["--json", input])).unwrap();
        let mut rows = Vec::new();
        for image in json["images"].as_array().unwrap() {
            let id = image["id"].as_str().unwrap();
            let (_, digest) = image["repoDigests"][0].as_str().unwrap().split_once('@').unwrap();
            for name in image["repoTags"].as_array().unwrap() {
                let (name, tag) = name.as_str().unwrap().rsplit_once(':').unwrap();
                rows.push(format!("{name} {tag} sha256:{id} {digest}"));
            }
            let podman = sizes.as_array().unwrap().iter().find(|other| other["Id"] == id).unwrap();
            assert_eq!(image["size"], podman["Size"], "{id}");
        }
        rows.sort();
        assert_eq!(rows, expected, "{input}");
    }
    let _ = Command::new("umount").arg(at.join("g/overlay")).stderr(Stdio::null()).status();
}
