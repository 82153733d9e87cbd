//! `prepull diff`: what differs between two stores, and nothing else.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::command::{fails, hello, needs_root, prepull, succeeds};
use crate::made::{Layout, layers, tar};
use crate::stores::{GRAPHROOT, scratch, unpack_gnu};

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn make(&self, tar: &str, arguments: &[&str]) -> PathBuf {
        let path = self.path().join(tar);
        succeeds(prepull(self.path()).args(["make", "--quiet", "--tar"]).arg(&path).args(arguments));
        path
    }

    /// Runs it; gives what it says and its exit code.
    fn diff(&self, old: &Path, new: &Path, options: &[&str]) -> (String, Option<i32>) {
        let output = prepull(self.path()).arg("diff").args([old, new]).args(options).output().unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        (String::from_utf8(output.stdout).unwrap(), output.status.code())
    }

    fn json(&self, old: &Path, new: &Path) -> Value {
        let (text, code) = self.diff(old, new, &["--json"]);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(code, Some(if value["same"] == json!(true) { 0 } else { 1 }));
        value
    }
}

#[test]
fn the_same_bytes_are_the_same() {
    let home = Home::new();
    let tar = home.make("a.tar", &[&hello()]);
    let (text, code) = home.diff(&tar, &tar, &[]);
    assert_eq!(code, Some(0));
    assert!(text.starts_with("the same "), "{text}");
    assert_eq!(home.json(&tar, &tar)["inputs"]["same"], json!(true));
}

#[test]
fn images_layers_config_and_files_that_differ_are_named() {
    let home = Home::new();
    let mut layout = Layout::new(home.path().join("layout"));
    let base = layers();
    let image = layout.image("amd64", &base);
    layout.add(Some("v1"), image);
    let mut changed = base.clone();
    // Over a file, a whiteout of another, a new one, one with the same content.
    changed.push(tar(&[("c", b"333"), (".wh.b", b""), ("new", b"n"), ("a", b"1")]));
    let image = layout.image("arm64", &changed);
    layout.add(Some("v2"), image);
    let layout = layout.path.display().to_string();
    let old =
        home.make("old.tar", &["--platform", "linux/amd64", &format!("oci:{layout}:v1=localhost/app:1"), &hello()]);
    let new = home.make(
        "new.tar",
        &[
            "--platform",
            "linux/arm64",
            &format!("oci:{layout}:v2=localhost/app:1"),
            &format!("oci:{layout}:v2=localhost/other:1"),
        ],
    );
    let value = home.json(&old, &new);
    assert_eq!(value["imagesSame"], json!(0));
    let images = value["images"].as_array().unwrap();
    let by_name = |name: &str| {
        images.iter().find(|image| image["names"] == json!([name])).unwrap_or_else(|| panic!("{name} in {images:?}"))
    };
    assert_eq!(by_name("localhost/hello:v1")["change"], "removed");
    assert_eq!(by_name("localhost/other:1")["change"], "added");
    let app = by_name("localhost/app:1");
    assert_eq!((&app["layersSame"], &app["layersRemoved"], &app["layersAdded"]), (&json!(3), &json!(0), &json!(1)));
    assert_eq!(app["config"], json!([{"field": "architecture", "old": "amd64", "new": "arm64"}]));
    let files: Vec<(&str, &str)> = app["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| (file["path"].as_str().unwrap(), file["change"].as_str().unwrap()))
        .collect();
    assert_eq!(files, [("/b", "removed"), ("/c", "changed"), ("/new", "added")]);
    assert_eq!(value["layersSame"], json!(3));
    assert_eq!(value["addedLayers"].as_array().unwrap().len(), 1);
    assert_eq!(value["layerFiles"], json!([]));
    let (text, _) = home.diff(&old, &new, &[]);
    for part in ["- localhost/hello:v1 (", "+ localhost/other:1 (", "~ localhost/app:1 (", "    ~ /c: 1 bytes -> 3\n"] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    // What differs anyway is not said again.
    assert!(!text.contains("images.json") && !text.contains("tar-split"), "{text}");
}

#[test]
fn a_layer_that_should_be_the_same_and_is_not_is_named() {
    let home = Home::new();
    let old = home.make("old.tar", &[&hello()]);
    let mut bytes = fs_err::read(&old).unwrap();
    let text = b"Hello from an image";
    let at = bytes.windows(text.len()).position(|window| window == text).unwrap();
    bytes[at] ^= 1;
    let new = home.path().join("new.tar");
    fs_err::write(&new, bytes).unwrap();
    let value = home.json(&old, &new);
    assert_eq!(value["imagesSame"], json!(1));
    // It has two names.
    assert_eq!(value["layerFiles"].as_array().unwrap().len(), 2, "{value}");
    assert_eq!(value["layerFiles"][0]["what"], json!(["content"]));
}

#[test]
fn trouble_is_2() {
    let home = Home::new();
    let tar = home.make("a.tar", &[&hello()]);
    let missing = home.path().join("missing.tar");
    fails(prepull(home.path()).arg("diff").args([&tar, &missing]), 2, "missing.tar");
    let empty = home.path().join("empty");
    fs_err::create_dir(&empty).unwrap();
    fails(prepull(home.path()).arg("diff").args([&tar, &empty]), 2, "no store in it");
}

#[test]
fn a_tar_is_the_same_as_what_it_is_unpacked_to() {
    if !needs_root("diff::a_tar_is_the_same_as_what_it_is_unpacked_to") {
        return;
    }
    let home = Home::new();
    let tar = home.make("a.tar", &["--unpacker", "gnu", &hello()]);
    let unpacked = scratch();
    unpack_gnu(&tar, unpacked.path()).unwrap();
    let (text, code) = home.diff(&tar, unpacked.path(), &[]);
    assert_eq!(code, Some(0), "{text}");
    let (text, code) = home.diff(unpacked.path(), &tar, &[]);
    assert_eq!(code, Some(0), "{text}");
    // The store itself may be behind a link of the machine.
    let store = unpacked.path().join(GRAPHROOT);
    fs_err::rename(&store, unpacked.path().join("disk")).unwrap();
    std::os::unix::fs::symlink("/disk", &store).unwrap();
    let (text, code) = home.diff(&tar, unpacked.path(), &[]);
    assert_eq!(code, Some(0), "{text}");
    // What containers.json says of an image's layer does not spare it.
    let mut file = None;
    for layer in fs_err::read_dir(unpacked.path().join("disk/overlay")).unwrap() {
        let layer = layer.unwrap().path();
        file = file.or(Some(layer.join("diff/bin/hello")).filter(|path| path.exists()));
    }
    let file = file.unwrap();
    let layer = file.ancestors().nth(3).unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    fs_err::write(&file, [0; 196]).unwrap();
    let containers = format!(r#"[{{"id":"c","layer":"{layer}"}}]"#);
    fs_err::write(unpacked.path().join("disk/overlay-containers/containers.json"), containers).unwrap();
    let output = prepull(home.path()).arg("verify").arg(unpacked.path()).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("[entry-content]"), "{said}");
}

#[test]
fn a_layer_on_itself_is_no_trouble() {
    let home = Home::new();
    let store = |name: &str, layers: &str| {
        let path = home.path().join(name);
        let images = br#"[{"id":"i","names":["localhost/a:1"],"layer":"l"}]"#;
        let files = [("overlay-images/images.json", &images[..]), ("overlay-layers/layers.json", layers.as_bytes())];
        fs_err::write(&path, tar(&files)).unwrap();
        path
    };
    let circle = store("circle.tar", r#"[{"id":"l","parent":"l"}]"#);
    let one = store("one.tar", r#"[{"id":"l"}]"#);
    for (old, new) in [(&circle, &one), (&one, &circle)] {
        let (_, code) = home.diff(old, new, &[]);
        assert!(matches!(code, Some(0 | 1)), "{code:?}");
    }
}

#[test]
fn an_image_may_have_its_layers_in_another_store() {
    if !needs_root("diff::an_image_may_have_its_layers_in_another_store") {
        return;
    }
    let home = Home::new();
    let root = scratch();
    for store in ["primary", "additional"] {
        let tar = home.make("a.tar", &["--unpacker", "gnu", "--store", store, &hello()]);
        unpack_gnu(&tar, root.path()).unwrap();
    }
    // As when CRI-O pulls what an additional store has the layers of.
    let store = root.path().join(GRAPHROOT);
    fs_err::write(store.join("overlay-layers/layers.json"), "[]").unwrap();
    for layer in fs_err::read_dir(store.join("overlay")).unwrap() {
        let path = layer.unwrap().path();
        if path.is_dir() && !path.ends_with("l") {
            fs_err::remove_dir_all(path).unwrap();
        }
    }
    let output = prepull(home.path()).args(["verify", "--json"]).arg(root.path()).output().unwrap();
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    // Nothing but what CRI-O does to such a store after a power cut.
    let errors = said["findings"].as_array().unwrap().iter().filter(|finding| finding["severity"] == "error");
    let rules: Vec<_> = errors.map(|finding| finding["rule"].as_str().unwrap()).collect();
    assert!(rules.iter().all(|rule| rule.starts_with("own-")), "{said:#}");
}
