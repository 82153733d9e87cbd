//! A1, A4, A11, A12 and A13: what podman and CRI-O cannot read back from a store does not get into one, and is found in stores
//! that other tools have made.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use base64::Engine as _;
use prepull::digest::Digest;
use prepull::go_types::Kind;
use prepull::media_type::{
    DOCKER_CONFIG, DOCKER_LAYER, DOCKER_LIST, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST,
};
use serde_json::{Value, json};

use crate::command::{fails, needs_root, prepull, succeeds};
use crate::made::{Layout, config, gzip, tar};

/// A document with one value in it, and what it is checked as.
#[derive(Debug, Clone)]
pub struct Case {
    pub kind: Option<Kind>,
    pub field: String,
    pub text: String,
}

/// Returns the documents that cases change: a config, and a manifest or index of each kind.
pub fn bases() -> (Value, Vec<(Kind, Value)>) {
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}});
    let bytes = serde_json::to_vec(&config).unwrap();
    let descriptor = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()});
    let oci = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(OCI_CONFIG, &bytes),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", b"x")],
    });
    let docker = json!({
        "schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": descriptor(DOCKER_CONFIG, &bytes),
        "layers": [descriptor(DOCKER_LAYER, b"x")],
    });
    let list = |media_type: &str, of: &str, manifest: &Value| {
        let mut entry = descriptor(of, &serde_json::to_vec(manifest).unwrap());
        entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
        json!({"schemaVersion": 2, "mediaType": media_type, "manifests": [entry]})
    };
    let (index, docker_list) = (list(OCI_INDEX, OCI_MANIFEST, &oci), list(DOCKER_LIST, DOCKER_MANIFEST, &docker));
    let manifests = vec![
        (Kind::OciManifest, oci),
        (Kind::DockerManifest, docker),
        (Kind::OciIndex, index),
        (Kind::DockerList, docker_list),
    ];
    (config, manifests)
}

pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

/// Writes a store with images that have no layers: name, `created`, config and manifest.
pub fn write_store(at: &Path, driver: &str, images: &[(String, String, Vec<u8>, Vec<u8>)]) {
    let below = |name: &str| at.join(format!("{driver}{name}"));
    for name in ["", "-images", "-layers"] {
        fs_err::create_dir_all(below(name)).unwrap();
    }
    let mut records = Vec::new();
    for (name, created, config, manifest) in images {
        let (id, digest) = (Digest::of(config), Digest::of(manifest));
        let directory = below("-images").join(id.hex());
        fs_err::create_dir_all(&directory).unwrap();
        let file = base64::engine::general_purpose::STANDARD.encode(id.to_string());
        fs_err::write(directory.join(format!("={file}")), config).unwrap();
        fs_err::write(directory.join("manifest"), manifest).unwrap();
        let config_key = id.to_string();
        records.push(json!({
            "id": id.hex(), "digest": digest, "names": [name], "created": created, "metadata": "{}",
            "big-data-names": [config_key, "manifest"],
            "big-data-sizes": {&config_key: config.len(), "manifest": manifest.len()},
            "big-data-digests": {&config_key: id, "manifest": digest},
        }));
    }
    fs_err::write(below("-images/images.json"), serde_json::to_vec(&records).unwrap()).unwrap();
    fs_err::write(below("-layers/layers.json"), "[]").unwrap();
}

/// An image of a store: that of a case, or a good one.
pub fn stored(name: &str, case: Option<&Case>) -> (String, String, Vec<u8>, Vec<u8>) {
    let (config, manifests) = bases();
    let text = case.map(|case| case.text.clone());
    let is_config = case.is_none_or(|case| case.kind.is_none());
    let config = text.clone().filter(|_| is_config).unwrap_or_else(|| config.to_string()).into_bytes();
    let mut oci = manifests[0].1.clone();
    oci["config"]["digest"] = json!(Digest::of(&config));
    oci["config"]["size"] = json!(config.len());
    let manifest = text.filter(|_| !is_config).unwrap_or_else(|| oci.to_string());
    (name.to_owned(), "2024-01-02T03:04:05Z".to_owned(), config, manifest.into_bytes())
}

/// An image in a layout, with a member more in its config, or in its manifest.
fn image_with(layout: &mut Layout, name: &str, config_more: Value, manifest_more: Value) {
    let layer = tar(&[("a", b"1")]);
    let merge = |document: &mut Value, more: Value| {
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    };
    let mut config: Value = serde_json::from_slice(&config("amd64", std::slice::from_ref(&layer))).unwrap();
    merge(&mut config, config_more);
    let layer = layout.blob("application/vnd.oci.image.layer.v1.tar+gzip", &gzip(&layer));
    let config = layout.blob(OCI_CONFIG, config.to_string().as_bytes());
    let mut manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]});
    merge(&mut manifest, manifest_more);
    let manifest = layout.manifest(&manifest);
    layout.add(Some(name), manifest);
}

/// `make`, `install` and `mount` of an item; the last two only for root.
fn writers(at: &Path, item: &str, cache: &str) -> Vec<Command> {
    let make = |cache: &str| {
        let mut command = prepull(at);
        command.current_dir(at).args([
            "make",
            "--quiet",
            "--platform",
            "linux/amd64",
            "--cache-dir",
            cache,
            "-o",
            "out.tar",
            item,
        ]);
        command
    };
    let mut all = vec![make(cache)];
    if rustix::process::geteuid().is_root() {
        fs_err::create_dir_all(at.join("machine")).unwrap();
        fs_err::create_dir_all(at.join("mountpoint")).unwrap();
        for words in [["install", "--root", "machine"], ["mount", "--quiet", "mountpoint"]] {
            let mut command = prepull(at);
            command.current_dir(at).args(words).args(["--platform", "linux/amd64", "--cache-dir", cache, item]);
            all.push(command);
        }
    }
    all
}

#[test]
fn a01_make_install_and_mount_name_the_field_and_its_type() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let mut layout = Layout::new(at.join("oci"));
    let config = |more: Value| (json!({"config": more}), json!({}));
    for (number, ((config, manifest), error)) in [
        (
            config(json!({"Entrypoint": "/bin/x"})),
            r#"`config.Entrypoint` is the string "/bin/x", not a list of strings"#,
        ),
        (config(json!({"User": 1000})), "`config.User` is the number 1000, not a string"),
        (config(json!({"Labels": {"version": 2}})), r#"`config.Labels["version"]` is the number 2, not a string"#),
        (config(json!({"ExposedPorts": ["80/tcp"]})), "`config.ExposedPorts` is a list, not an object"),
        (config(json!({"Cmd": ["sh"], "cmd": "sh"})), r#"`config.cmd` is the string "sh", not a list of strings"#),
        (config(json!({"StopTimeout": "10s"})), r#"`config.StopTimeout` is the string "10s", not an integer"#),
        ((json!({"history": [{"created": ""}]}), json!({})), r#"`history[0].created` is the string "", not a time"#),
        ((json!({"docker_version": 20}), json!({})), "`docker_version` is the number 20, not a string"),
        ((json!({}), json!({"annotations": {"a": 1}})), r#"`annotations["a"]` is the number 1, not a string"#),
        ((json!({}), json!({"subject": "x"})), r#"`subject` is the string "x", not an object"#),
        ((json!({}), json!({"schemaVersion": null, "mediaType": null})), "`schemaVersion` is 0, not 2"),
        ((json!({}), json!({"history": []})), "ambiguous, it has the field `history`"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("localhost/image{number}:1");
        image_with(&mut layout, &name, config, manifest);
        for mut command in writers(at, &format!("oci:oci:{name}"), "cache") {
            fails(&mut command, 1, error);
            fails(&mut command, 1, &name);
        }
    }
}

#[test]
fn a01_verify_and_why_tell_that_no_image_can_be_listed() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let case = |kind, field: &str, text: String| Case { kind, field: field.to_owned(), text };
    let (config, manifests) = bases();
    let with = |document: &Value, key: &str, value: Value| {
        let mut document = document.clone();
        document[key] = value;
        document.to_string()
    };
    for (number, bad) in [
        case(None, "author", with(&config, "author", json!(5))),
        case(Some(Kind::OciManifest), "annotations", with(&manifests[0].1, "annotations", json!("x"))),
        case(
            Some(Kind::OciManifest),
            "schemaVersion",
            json!({"config": manifests[0].1["config"], "layers": []}).to_string(),
        ),
        case(Some(Kind::DockerManifest), "layers", with(&manifests[1].1, "layers", json!([{"mediaType": "x"}]))),
        case(
            Some(Kind::OciManifest),
            "layers",
            with(&manifests[0].1, "layers", json!([{"x": "HERE"}])).replace("\"HERE\"", "1e400"),
        ),
        case(
            Some(Kind::OciManifest),
            "signatures",
            with(&manifests[0].1, "signatures", json!("HERE")).replace("\"HERE\"", "[-1e999]"),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let root = at.join(number.to_string()).join("var/lib/containers/storage");
        let mut bad_image = stored("localhost/bad:1", Some(&bad));
        if bad.kind.is_some() {
            // Another config, so another id, than the good image's.
            bad_image.2.push(b' ');
            bad_image.3 = String::from_utf8(bad_image.3)
                .unwrap()
                .replace(&Digest::of(&stored("", None).2).to_string(), &Digest::of(&bad_image.2).to_string())
                .into_bytes();
        }
        write_store(&root, "overlay", &[stored("localhost/good:1", None), bad_image]);
        let input = at.join(number.to_string());
        let output = prepull(at).arg("verify").arg(&input).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("CRI-O cannot list any image") && output.status.code() == Some(1), "{text}");
        for name in ["localhost/good:1", "localhost/bad:1"] {
            let output = prepull(at).arg("why").arg(&input).arg(name).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(output.status.code(), Some(1), "{name}: {text}");
            assert!(text.contains("  problem    ") && text.contains("CRI-O cannot list any image"), "{name}: {text}");
        }
    }
}

#[test]
fn a04_a_wrong_layer_size_is_refused_with_a_cold_and_a_warm_cache() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let mut layout = Layout::new(at.join("oci"));
    image_with(&mut layout, "localhost/right:1", json!({}), json!({}));
    succeeds(&mut writers(at, "oci:oci:localhost/right:1", "warm")[0]);
    let layer = gzip(&tar(&[("a", b"1")]));
    let size = layer.len();
    for (number, wrong) in
        [json!(size + 1), json!(size - 1), json!(0), json!(null), json!(-1), json!(size << 20)].into_iter().enumerate()
    {
        let name = format!("localhost/wrong{number}:1");
        let mut descriptor = layout.blob("application/vnd.oci.image.layer.v1.tar+gzip", &layer);
        descriptor["size"] = wrong.clone();
        image_with(&mut layout, &name, json!({}), json!({"layers": [descriptor]}));
        let item = format!("oci:oci:{name}");
        let errors: Vec<BTreeSet<String>> = ["cold", "warm"]
            .into_iter()
            .map(|cache| {
                let outputs = writers(at, &item, cache).into_iter().map(|mut command| command.output().unwrap());
                outputs
                    .map(|output| {
                        assert_eq!(output.status.code(), Some(1), "{wrong} {cache}: {}", said(&output));
                        said(&output)
                    })
                    .collect()
            })
            .collect();
        assert_eq!(errors[0], errors[1], "{wrong}");
        // Beside the right one, in any order.
        if wrong.as_u64().is_some() {
            for items in [["oci:oci:localhost/right:1", &item], [&item, "oci:oci:localhost/right:1"]] {
                let mut command = prepull(at);
                command.current_dir(at).args(["make", "--quiet", "--cache-dir", "warm", "-o", "out.tar"]).args(items);
                fails(&mut command, 1, "");
            }
        }
    }
    let images = at.join("machine/var/lib/containers/storage/overlay-images/images.json");
    assert!(fs_err::read_to_string(images).unwrap_or_default().len() < 5, "an image was installed");
}

/// The bytes of one file in a tar.
fn content(at: &Path, archive: &str, file: &str) -> Vec<u8> {
    let output = Command::new("tar").current_dir(at).args(["-xOf", archive, file]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    output.stdout
}

#[test]
fn a12_a_shared_layer_is_recorded_as_gzip_in_any_order() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let mut layout = Layout::new(at.join("oci"));
    let shared = tar(&[("shared", &[b'x'; 9000])]);
    let kind = "application/vnd.oci.image.layer.v1.tar";
    let blobs = [
        ("zstd", layout.blob(&format!("{kind}+zstd"), &zstd::encode_all(&shared[..], 1).unwrap())),
        ("plain", layout.blob(kind, &shared)),
        ("gzip", layout.blob(&format!("{kind}+gzip"), &gzip(&shared))),
    ];
    let config_of = |name: &str| {
        let mut document: Value = serde_json::from_slice(&config("amd64", std::slice::from_ref(&shared))).unwrap();
        document["author"] = json!(name);
        document.to_string().into_bytes()
    };
    for (name, blob) in &blobs {
        // `same` is one image three times; the others have the layer in common.
        for (name, author) in [(format!("localhost/{name}:1"), *name), (format!("localhost/same:{name}"), "same")] {
            let config = layout.blob(OCI_CONFIG, &config_of(author));
            let manifest = layout
                .manifest(&json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [blob]}));
            layout.add(Some(&name), manifest);
        }
    }
    let item = |name: &str| format!("oci:oci:localhost/{name}");
    let make = |items: &[&str], cache: &str| {
        let mut command = prepull(at);
        command.current_dir(at).args(["make", "--quiet", "--cache-dir", cache, "--unpacker", "gnu", "-o", "out.tar"]);
        succeeds(command.args(items.iter().map(|name| item(name))));
        let tar = fs_err::read(at.join("out.tar")).unwrap();
        let layers = content(at, "out.tar", "var/lib/containers/storage/overlay-layers/layers.json");
        (Digest::of(&tar), serde_json::from_slice::<Value>(&layers).unwrap()[0].clone())
    };
    // The cache then has the layer as zstd.
    make(&["zstd:1"], "warm");
    for (all, best) in [
        (&["zstd:1", "plain:1", "gzip:1"][..], "gzip"),
        (&["zstd:1", "plain:1"], "plain"),
        (&["zstd:1", "gzip:1"], "gzip"),
        (&["same:zstd", "same:plain", "same:gzip"], "gzip"),
        (&["same:zstd", "same:plain"], "plain"),
        (&["same:zstd", "gzip:1"], "gzip"),
    ] {
        let blob = &blobs.iter().find(|(name, _)| *name == best).unwrap().1;
        let mut tars = BTreeSet::new();
        let reversed: Vec<&str> = all.iter().rev().copied().collect();
        for (items, cache) in [(all, "warm"), (&reversed[..], "warm"), (all, "cold"), (&reversed[..], "cold2")] {
            let (tar, layer) = make(items, cache);
            assert_eq!(layer["compressed-diff-digest"], blob["digest"], "{items:?}");
            assert_eq!(layer["compressed-size"], blob["size"], "{items:?}");
            tars.insert(tar);
        }
        assert_eq!(tars.len(), 1, "{all:?}");
        if let ["same:zstd", "same:plain", ..] = all {
            let images = content(at, "out.tar", "var/lib/containers/storage/overlay-images/images.json");
            let id = serde_json::from_slice::<Value>(&images).unwrap()[0]["id"].as_str().unwrap().to_owned();
            let path = format!("var/lib/containers/storage/overlay-images/{id}/manifest");
            let manifest: Value = serde_json::from_slice(&content(at, "out.tar", &path)).unwrap();
            assert_eq!(manifest["layers"][0], *blob, "the image's own manifest");
        }
    }
    if !needs_root("findings::go_types::a12_a_shared_layer_is_recorded_as_gzip_in_any_order, as podman saves it") {
        return;
    }
    make(&["zstd:1", "gzip:1"], "warm");
    let script = r#"mkdir machine && tar -C machine -xf out.tar && cd machine/var/lib/containers/storage &&
        podman --root "$PWD" --runroot "$1/run" --storage-driver overlay save --quiet --format docker-dir -o "$1/saved" localhost/gzip:1"#;
    let mut podman = crate::stores::in_own_mounts("sh");
    succeeds(podman.current_dir(at).args(["-c", script, "sh"]).arg(at));
    let saved: Value = serde_json::from_slice(&fs_err::read(at.join("saved/manifest.json")).unwrap()).unwrap();
    assert_eq!(saved["mediaType"], DOCKER_MANIFEST);
}

#[test]
fn a11_more_layers_than_old_versions_mount_are_warned_of() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let mut layout = Layout::new(at.join("oci"));
    for count in [128, 129] {
        let layers: Vec<Vec<u8>> = (0..count).map(|number: u32| tar(&[(&format!("f{number}"), b"")])).collect();
        let manifest = layout.image("amd64", &layers);
        layout.add(Some(&format!("localhost/of{count}:1")), manifest);
    }
    for (count, warns) in [(128, false), (129, true)] {
        let name = format!("localhost/of{count}:1");
        let mut make = prepull(at);
        make.current_dir(at).args(["make", "--platform", "linux/amd64", "--cache-dir", "cache", "-o", "out.tar"]);
        let output = make.arg(format!("oci:oci:{name}")).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(said(&output).contains("the image has 129 layers: CRI-O 1.24 and 1.25"), warns, "{}", said(&output));
        let verify = prepull(at).current_dir(at).args(["verify", "out.tar"]).output().unwrap();
        let text = String::from_utf8_lossy(&verify.stdout).into_owned();
        assert_eq!(text.contains("containers/storage before 1.44"), warns, "{text}");
        assert!(verify.status.success(), "{text}");
        let why = prepull(at).current_dir(at).args(["why", "out.tar", &name]).output().unwrap();
        let text = String::from_utf8_lossy(&why.stdout).into_owned();
        assert_eq!(text.contains("containers/storage before 1.44"), warns, "{text}");
    }
}

#[test]
fn a13_a_descriptor_with_a_wrong_size_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let layout = Layout::new(at.join("oci"));
    let image = layout.image("amd64", &[tar(&[("a", b"1")])]);
    let size = image["size"].as_u64().unwrap();
    let mut cases = Vec::new();
    for (number, wrong) in
        [json!(size + 1), json!(size - 1), json!(0), json!(null), json!(-1), json!("7")].into_iter().enumerate()
    {
        let mut entry = image.clone();
        entry["size"] = wrong.clone();
        let index = layout.index(&[("linux/amd64", entry.clone())]);
        let list = {
            let mut entry = entry.clone();
            entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
            let list = json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [entry]});
            layout.blob(DOCKER_LIST, list.to_string().as_bytes())
        };
        for (what, descriptor) in [("entry", entry), ("index", index), ("list", list)] {
            let name = format!("localhost/{what}{number}:1");
            // One layout each: an `index.json` with one wrong size is another case than one with many.
            let mut one = Layout::new(at.join(format!("{what}{number}")));
            fs_err::remove_dir_all(one.path.join("blobs")).unwrap();
            std::os::unix::fs::symlink("../oci/blobs", one.path.join("blobs")).unwrap();
            one.add(Some(&name), descriptor);
            cases.push((format!("oci:{what}{number}:{name}"), wrong.clone()));
        }
    }
    for (item, wrong) in cases {
        let mut make = prepull(at);
        make.current_dir(at).args([
            "make",
            "--quiet",
            "--platform",
            "linux/amd64",
            "--no-cache",
            "-o",
            "out.tar",
            &item,
        ]);
        let output = make.output().unwrap();
        assert!(output.status.code() == Some(1) && said(&output).contains("size"), "{item} {wrong}: {}", said(&output));
    }
}

#[test]
fn a13_years_from_0000_to_9999_are_taken_by_every_command() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let mut layout = Layout::new(at.join("oci"));
    for (number, created) in
        ["0000-01-01T00:00:00Z", "0000-12-31T23:59:59.5+23:59", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999-23:59"]
            .into_iter()
            .enumerate()
    {
        let name = format!("localhost/of{number}:1");
        image_with(&mut layout, &name, json!({"created": created}), json!({}));
        let item = format!("oci:oci:{name}");
        let mut make = prepull(at);
        make.current_dir(at).args([
            "make",
            "--quiet",
            "--platform",
            "linux/amd64",
            "--cache-dir",
            "cache",
            "-o",
            "out.tar",
            &item,
        ]);
        succeeds(&mut make);
        let images = content(at, "out.tar", "var/lib/containers/storage/overlay-images/images.json");
        assert_eq!(serde_json::from_slice::<Value>(&images).unwrap()[0]["created"], created);
        succeeds(prepull(at).current_dir(at).args(["verify", "out.tar"]));
        if !needs_root("findings::go_types::a13_years_from_0000_to_9999_are_taken_by_every_command, by install") {
            continue;
        }
        fs_err::create_dir_all(at.join("machine")).unwrap();
        let mut install = prepull(at);
        install.current_dir(at).args([
            "install",
            "--quiet",
            "--platform",
            "linux/amd64",
            "--cache-dir",
            "cache",
            "--root",
            "machine",
            &item,
        ]);
        succeeds(&mut install);
    }
}
