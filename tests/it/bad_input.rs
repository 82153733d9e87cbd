//! Bad input: one line that names the image, the layer and the entry, the right exit code, and no output file.

use std::path::{Path, PathBuf};
use std::process::Output;

use prepull::digest::Digest;
use prepull::media_type::{OCI_CONFIG, OCI_MANIFEST};
use serde_json::{Value, json};

use crate::command::prepull;
use crate::made::{Layout, config, gzip};
use crate::raw::{Raw, archive, dir, entries, file, link, mark, of_type, record, sym};
use crate::stores::scratch;

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const NAME: &str = "localhost/bad:1";

/// A layout with one image, made wrong in one place.
struct Bad {
    directory: tempfile::TempDir,
    layout: Layout,
}

impl Bad {
    fn new() -> Self {
        let directory = scratch();
        let layout = Layout::new(directory.path().join("oci"));
        Self { directory, layout }
    }

    fn at(&self) -> &Path {
        self.directory.path()
    }

    fn item(&self) -> String {
        format!("oci:{}:{NAME}", self.layout.path.display())
    }

    fn blob(&self, digest: &Value) -> PathBuf {
        let digest: Digest = digest.as_str().unwrap().parse().unwrap();
        self.layout.path.join("blobs/sha256").join(digest.hex())
    }

    /// An image with one layer; gives the layer's descriptor.
    fn image(&mut self, tar: &[u8]) -> Value {
        let layer = self.layout.blob(GZIP, &gzip(tar));
        self.image_of(tar, layer)
    }

    fn image_of(&mut self, tar: &[u8], layer: Value) -> Value {
        let config = self.layout.blob(OCI_CONFIG, &config("amd64", &[tar.to_vec()]));
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]});
        let descriptor = self.layout.manifest(&manifest);
        self.layout.add(Some(NAME), descriptor);
        layer
    }

    fn make(&self, items: &[&str]) -> (Output, PathBuf) {
        let tar = self.at().join("out/images.tar");
        fs_err::create_dir_all(tar.parent().unwrap()).unwrap();
        let output = prepull(self.at())
            .args(["make", "-q", "--platform", "linux/amd64", "-o"])
            .arg(&tar)
            .args(items)
            .output()
            .unwrap();
        (output, tar)
    }

    /// Must fail with `code`, saying all of `parts` in one line.
    #[track_caller]
    fn refuses(&self, items: &[&str], code: i32, parts: &[&str]) {
        let _ = fs_err::remove_dir_all(self.at().join("out"));
        let (output, tar) = self.make(items);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.lines().count() == 1 && said.starts_with("prepull: "), "{said}");
        for part in parts {
            assert!(said.contains(part), "{part:?} is not in {said}");
        }
        assert!(output.stdout.is_empty());
        assert_eq!(fs_err::read_dir(tar.parent().unwrap()).unwrap().count(), 0, "something was left behind");
        let kept = self.at().join(".cache/prepull/segments");
        assert!(!kept.exists() || fs_err::read_dir(&kept).unwrap().count() == 0, "a bad layer is in the cache");
        // The old file stays.
        fs_err::write(&tar, "old").unwrap();
        let (output, tar) = self.make(items);
        assert_eq!(output.status.code(), Some(code));
        assert_eq!(fs_err::read(tar).unwrap(), b"old");
    }

    #[track_caller]
    fn accepts(&self, items: &[&str]) {
        let (output, tar) = self.make(items);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(tar.exists());
    }
}

/// One layer with these entries is refused; the line names the image, the layer and `entry`.
#[track_caller]
fn layer(tar: &[u8], entry: &str, why: &str) {
    let mut bad = Bad::new();
    let layer = bad.image(tar);
    bad.refuses(&[&bad.item()], 1, &[NAME, layer["digest"].as_str().unwrap(), entry, why]);
}

fn good() -> Vec<Raw> {
    vec![dir("d/"), file("d/good")]
}

fn with(entries: &[Raw]) -> Vec<u8> {
    archive(&[&good()[..], entries].concat())
}

#[test]
fn entries_that_cannot_be_unpacked() {
    layer(&with(&[file("d/x"), file("d/x")]), "d/x", "twice");
    layer(&with(&[dir("./d/")]), "./d/", "twice");
    layer(&with(&[link("l", "nothing")]), "\"l\"", "nothing");
    layer(&with(&[link("l", "d")]), "\"l\"", "directory");
    layer(&with(&[sym("out", "/etc/passwd"), file("out/x")]), "out/x", "symbolic link");
    layer(&with(&[sym("out", "../../../../.."), file("out/proc/x"), sym("o", "../tmp"), file("o/x")]), "o/x", "link");
    layer(&with(&[file("f"), file("f/below")]), "f/below", "not a directory");
    layer(&with(&[sym("a", "b"), sym("b", "a"), file("a/x")]), "a/x", "symbolic links");
    layer(&with(&[file("n".repeat(256))]), "nnnn", "too long");
    layer(&with(&[of_type("odd", b'Z')]), "odd", "type");
    layer(&with(&[file("w"), mark(".wh.w")]), ".wh.w", "whiteout");
    layer(&with(&[file("f").xattr("security.capability", "rubbish")]), "\"f\"", "security.capability");
    layer(&with(&[file("bad\x1b[31m\nname"), file("bad\x1b[31m\nname")]), "name", "twice");
}

#[test]
fn archives_that_cannot_be_read() {
    layer(&with(&[of_type("sparse", b'S')]), "d/good", "sparse");
    let pax = mark("f").pax("GNU.sparse.major", "1").pax("GNU.sparse.minor", "0").pax("GNU.sparse.name", "sparse");
    layer(&with(&[pax]), "d/good", "sparse");
    layer(&with(&[file("huge").size(1 << 60)]), "huge", "ends");
    layer(&with(&[file("f").pax("size", "9223372036854775807")]), "\"f\"", "ends");
    layer(&with(&[file("f").pax("size", "99999999999999999999")]), "d/good", "PAX");
    layer(&with(&[file("f").patch(124, [0xff; 12])]), "d/good", "negative size");
    layer(&with(&[file("f").after(b'x', record(b"comment", &vec![b'x'; 2 << 20]))]), "d/good", "1 MiB");
    let bomb = (0..12).fold(file("f"), |entry, n| {
        entry.after(b'x', record(format!("comment{n}").as_bytes(), &vec![b'x'; 1_000_000]))
    });
    layer(&with(&[bomb]), "d/good", "extended headers");
    layer(&with(&[file("f").after(b'x', "12 nonsense")]), "d/good", "PAX");
    layer(b"no tar at all".repeat(100).as_slice(), "layer", "tar");
    let cut = entries(&[file("f").data(vec![b'x'; 2000])]);
    layer(&cut[..1500], "\"f\"", "ends");
    layer(&cut[..100], "layer", "ends");
}

#[test]
fn blobs_that_are_not_what_they_are_called() {
    let tar = with(&[
        file("f").data((0..200_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect::<Vec<u8>>())
    ]);
    type Damage = fn(&mut Vec<u8>);
    let damage: [(&str, Damage); 4] = [
        ("truncated", |bytes| bytes.truncate(bytes.len() / 2)),
        ("empty", Vec::clear),
        ("longer", |bytes| bytes.extend_from_slice(b"more")),
        ("one bit", |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }),
    ];
    for (_, damage) in damage {
        let mut bad = Bad::new();
        let layer = bad.image(&tar);
        let path = bad.blob(&layer["digest"]);
        let mut bytes = fs_err::read(&path).unwrap();
        damage(&mut bytes);
        fs_err::write(&path, bytes).unwrap();
        bad.refuses(&[&bad.item()], 1, &[NAME, layer["digest"].as_str().unwrap()]);
    }
    // The compressed stream is cut, and all digests say so, but the one of what is inside.
    let cut = gzip(&tar);
    let mut bad = Bad::new();
    let layer = bad.layout.blob(GZIP, &cut[..cut.len() - 100]);
    let layer = bad.image_of(&tar, layer);
    bad.refuses(&[&bad.item()], 1, &[NAME, layer["digest"].as_str().unwrap(), "gzip"]);
    // The descriptor lies about the size.
    for size in [5, 50_000_000] {
        let mut bad = Bad::new();
        let mut layer = bad.layout.blob(GZIP, &gzip(&tar));
        layer["size"] = json!(size);
        let layer = bad.image_of(&tar, layer);
        bad.refuses(&[&bad.item()], 1, &[NAME, layer["digest"].as_str().unwrap()]);
    }
    // Another layer's content.
    let mut bad = Bad::new();
    let layer = bad.layout.blob(GZIP, &gzip(&tar));
    let layer = bad.image_of(&with(&[]), layer);
    bad.refuses(&[&bad.item()], 1, &[NAME, layer["digest"].as_str().unwrap(), "diffID"]);
    // No layer at all is legal; more diffIDs than layers is not.
    let mut bad = Bad::new();
    let empty = bad.layout.blob(OCI_CONFIG, &config("amd64", &[]));
    let manifest =
        bad.layout.manifest(&json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": empty, "layers": []}));
    bad.layout.add(Some(NAME), manifest);
    bad.accepts(&[&bad.item()]);
    let mut bad = Bad::new();
    let two = bad.layout.blob(OCI_CONFIG, &config("amd64", &[tar.clone(), tar.clone()]));
    let layer = bad.layout.blob(GZIP, &gzip(&tar));
    let manifest =
        bad.layout.manifest(&json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": two, "layers": [layer]}));
    bad.layout.add(Some(NAME), manifest);
    bad.refuses(&[&bad.item()], 1, &[NAME]);
    // Compression and media types that nobody knows.
    for media in ["application/vnd.oci.image.layer.v1.tar+rot13", "text/plain"] {
        let mut bad = Bad::new();
        let layer = bad.layout.blob(media, &gzip(&tar));
        bad.image_of(&tar, layer);
        bad.refuses(&[&bad.item()], 1, &[NAME, media]);
    }
}

#[test]
fn manifests_and_items_that_will_not_do() {
    let tar = with(&[]);
    // Too large, and no JSON, and not what index.json says.
    let mut bad = Bad::new();
    let large = format!("{{\"schemaVersion\": 2, \"x\": \"{}\"}}", "x".repeat(5 << 20));
    let descriptor = bad.layout.blob(OCI_MANIFEST, large.as_bytes());
    bad.layout.add(Some(NAME), descriptor);
    bad.refuses(&[&bad.item()], 1, &[NAME, "4"]);
    let mut bad = Bad::new();
    let descriptor = bad.layout.blob(OCI_MANIFEST, b"{not json");
    bad.layout.add(Some(NAME), descriptor);
    bad.refuses(&[&bad.item()], 1, &[NAME]);
    let mut bad = Bad::new();
    bad.image(&tar);
    let index: Value = serde_json::from_slice(&fs_err::read(bad.layout.path.join("index.json")).unwrap()).unwrap();
    let path = bad.blob(&index["manifests"][0]["digest"]);
    let mut manifest = fs_err::read(&path).unwrap();
    manifest.push(b' ');
    fs_err::write(&path, manifest).unwrap();
    bad.refuses(&[&bad.item()], 1, &[NAME]);

    // Not there: 2.
    let mut bad = Bad::new();
    let layer = bad.image(&tar);
    bad.refuses(&["oci:/nowhere/at/all:x"], 2, &["/nowhere/at/all"]);
    let other = format!("oci:{}:localhost/other:1", bad.layout.path.display());
    bad.refuses(&[&other], 2, &["localhost/other:1"]);
    bad.refuses(&["alpine"], 2, &["alpine", "version"]);
    bad.refuses(&["docker-archive:/nowhere.tar"], 2, &["/nowhere.tar"]);
    fs_err::remove_file(bad.blob(&layer["digest"])).unwrap();
    bad.refuses(&[&bad.item()], 2, &[NAME, layer["digest"].as_str().unwrap()]);

    // One name for two images, and a platform that is not there.
    let mut bad = Bad::new();
    bad.image(&tar);
    let second = bad.layout.image("amd64", &[with(&[file("second")])]);
    bad.layout.add(Some("localhost/second:1"), second.clone());
    let renamed = format!("oci:{}:localhost/second:1={NAME}", bad.layout.path.display());
    bad.refuses(&[&bad.item(), &renamed], 1, &[NAME, "different images"]);
    let index = bad.layout.index(&[("linux/arm64", second.clone()), ("linux/s390x", second)]);
    bad.layout.add(Some("localhost/index:1"), index);
    let index = format!("oci:{}:localhost/index:1", bad.layout.path.display());
    bad.refuses(&[&index], 1, &["localhost/index:1", "linux/amd64", "linux/arm64", "linux/s390x"]);
}

#[test]
fn outputs_that_cannot_be_written() {
    let mut bad = Bad::new();
    bad.image(&with(&[]));
    let directory = bad.at().join("directory");
    fs_err::create_dir(&directory).unwrap();
    for (out, code) in [
        (directory.clone(), 2),
        (bad.at().join("no/such/directory/images.tar"), 1),
        (bad.at().join("oci/oci-layout/x"), 1),
    ] {
        let output = prepull(bad.at()).args(["make", "-q", "-o"]).arg(&out).arg(bad.item()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.lines().count() == 1 && said.contains(bad.at().to_str().unwrap()), "{said}");
    }
    assert_eq!(fs_err::read_dir(&directory).unwrap().count(), 0);
}
