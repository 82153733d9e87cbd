//! The same image through every local transport.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use prepull::digest::{Digest, VerifyReader};
use prepull::image::{Image, Platform};
use prepull::reference::{Item, Reference};
use prepull::source::{self, ImageSource, Options};
use serde_json::json;

use crate::made::{Layout, config, copy, gzip, layers, skopeo, tar};

/// Opens an item whose path is relative to `directory`.
fn open(directory: &Path, item: &str) -> Result<Arc<dyn ImageSource>, String> {
    let (transport, path) = item.split_once(':').unwrap();
    let mut typed = OsString::from(format!("{transport}:"));
    typed.push(directory.join(path));
    source::open(&Item::parse(&typed).unwrap().location, &Options::default()).map_err(|error| error.to_string())
}

fn image(directory: &Path, item: &str, platform: &str) -> Result<Image, String> {
    let source = open(directory, item)?;
    Image::open(&*source, None, &platform.parse().unwrap()).map_err(|error| error.to_string())
}

#[track_caller]
fn refused(directory: &Path, item: &str, part: &str) {
    let error = image(directory, item, "linux/amd64").expect_err("it was accepted");
    assert!(error.contains(part) && !error.contains('\n'), "{item}: {error}");
}

/// Reads every layer to its end, all at once, and compares what is inside with the diffIDs.
fn check_layers(source: &dyn ImageSource, image: &Image) {
    thread::scope(|scope| {
        for layer in image.layers() {
            scope.spawn(move || {
                let (digest, size) = (layer.descriptor.digest, layer.descriptor.size);
                let mut bytes = Vec::new();
                VerifyReader::new(source.blob(&layer.descriptor).unwrap(), digest, size)
                    .read_to_end(&mut bytes)
                    .unwrap();
                let plain = match bytes.get(..4) {
                    Some([0x1f, 0x8b, ..]) => {
                        let mut plain = Vec::new();
                        flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut plain).unwrap();
                        plain
                    }
                    Some([0x28, 0xb5, 0x2f, 0xfd]) => zstd::decode_all(&bytes[..]).unwrap(),
                    _ => bytes,
                };
                assert_eq!(Digest::of(&plain), layer.diff_id);
            });
        }
    });
}

fn names(source: &dyn ImageSource) -> Vec<String> {
    source.names().iter().map(Reference::to_string).collect()
}

/// The manifest that skopeo's copy of `item` has.
#[track_caller]
fn manifest_of_skopeo(directory: &Path, item: &str) -> Vec<u8> {
    let copied = tempfile::tempdir_in(directory).unwrap();
    copy(directory, &[item, &format!("dir:{}", copied.path().display())]);
    fs_err::read(copied.path().join("manifest.json")).unwrap()
}

#[test]
fn every_transport_gives_the_same_image() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let mut layout = Layout::new(at.join("layout"));
    let descriptor = layout.image("amd64", &layers());
    layout.add(Some("localhost/app:v1"), descriptor);
    for to in
        ["oci:oci:v1", "oci-archive:oci.tar:localhost/app:v1", "docker-archive:docker.tar:localhost/app:v1", "dir:dir"]
    {
        copy(at, &["oci:layout", to]);
    }
    fs_err::write(at.join("docker.tar.gz"), gzip(&fs_err::read(at.join("docker.tar")).unwrap())).unwrap();
    fs_err::write(at.join("oci.tar.gz"), gzip(&fs_err::read(at.join("oci.tar")).unwrap())).unwrap();

    let id = Digest::of(&config("amd64", &layers()));
    let diff_ids: Vec<Digest> = layers().iter().map(|layer| Digest::of(layer)).collect();
    let full = ["localhost/app:v1"];
    for (item, expected) in [
        ("oci:layout", &full[..]),
        ("oci:layout:localhost/app:v1", &full),
        ("oci:layout:@0", &full),
        ("oci:oci:v1", &[]),
        ("oci-archive:oci.tar", &full),
        ("oci-archive:oci.tar.gz", &full),
        ("docker-archive:docker.tar", &full),
        ("docker-archive:docker.tar:localhost/app:v1", &full),
        ("docker-archive:docker.tar.gz:@0", &full),
        ("dir:dir", &[]),
    ] {
        let source = open(at, item).unwrap();
        let image = Image::open(&*source, None, &Platform::host()).unwrap_or_else(|error| panic!("{item}: {error}"));
        assert_eq!(image.id(), id, "{item}");
        assert_eq!(image.layers().iter().map(|layer| layer.diff_id).collect::<Vec<_>>(), diff_ids, "{item}");
        assert_eq!(names(&*source), expected, "{item}");
        check_layers(&*source, &image);
        if !item.ends_with("@0") {
            assert_eq!(image.manifest().bytes, manifest_of_skopeo(at, item), "{item}");
        }
    }
}

#[test]
fn zstd_layers_are_passed_on() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let mut layout = Layout::new(at.join("layout"));
    layout.zstd = true;
    let descriptor = layout.image("amd64", &layers());
    layout.add(None, descriptor);
    copy(at, &["oci:layout", "dir:dir"]);
    for item in ["oci:layout", "dir:dir"] {
        let source = open(at, item).unwrap();
        let image = Image::open(&*source, None, &Platform::host()).unwrap();
        assert_eq!(image.manifest().bytes, manifest_of_skopeo(at, item), "{item}");
        check_layers(&*source, &image);
    }
}

#[test]
fn docker_archives_of_all_ages_have_skopeos_manifest() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let layers = layers();
    let config = config("amd64", &layers);
    let hex = |bytes: &[u8]| Digest::of(bytes).hex();
    let manifest = |config: &str, layers: &[String]| {
        serde_json::to_vec(&json!([{"Config": config, "RepoTags": ["app:v1", "r.io/b:2"], "Layers": layers}])).unwrap()
    };

    // Docker up to 24: a directory a layer, a repeated layer is a link.
    let paths: Vec<String> = (0..3).map(|at| format!("id{at}/layer.tar")).collect();
    let mut old = tar::Builder::new(Vec::new());
    let mut file = |name: &str, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        old.append_data(&mut header, name, data).unwrap();
    };
    file(&paths[0], &layers[0]);
    file(&paths[1], &layers[1]);
    file("config.json", &config);
    file("manifest.json", &manifest("config.json", &paths));
    let mut link = tar::Header::new_ustar();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    old.append_link(&mut link, &paths[2], "../id0/layer.tar").unwrap();
    fs_err::write(at.join("old.tar"), old.into_inner().unwrap()).unwrap();

    // Docker 25 and later: an OCI layout with a manifest.json. With containerd's store the layers are compressed, and
    // index.json may name an index with images that are not there.
    let packed: Vec<Vec<u8>> = layers.iter().map(|layer| gzip(layer)).collect();
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", hex(bytes));
    let oci = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&config), "size": config.len()},
        "layers": packed.iter().map(|layer| json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": Digest::of(layer), "size": layer.len()})).collect::<Vec<_>>()});
    let oci = serde_json::to_vec(&oci).unwrap();
    let absent = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": Digest::of(b"absent"),
        "size": 6, "platform": {"os": "linux", "architecture": "s390x"}});
    let present = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": Digest::of(&oci),
        "size": oci.len(), "platform": {"os": "linux", "architecture": "amd64"}});
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [absent, present]}))
    .unwrap();
    let top = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": Digest::of(&index), "size": index.len(), "annotations": {"io.containerd.image.name": "docker.io/library/app:v1",
        "org.opencontainers.image.ref.name": "v1"}}]})).unwrap();
    let paths: Vec<String> = packed.iter().map(|layer| blob(layer)).collect();
    let new = tar(&[
        (&blob(&config), &config),
        (&paths[0], &packed[0]),
        (&paths[1], &packed[1]),
        (&blob(&oci), &oci),
        (&blob(&index), &index),
        ("index.json", &top),
        ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
        ("manifest.json", &manifest(&blob(&config), &paths)),
    ]);
    fs_err::write(at.join("new.tar"), new).unwrap();

    for item in ["docker-archive:old.tar", "docker-archive:new.tar", "docker-archive:new.tar:r.io/b:2"] {
        let source = open(at, item).unwrap();
        let image = Image::open(&*source, None, &Platform::host()).unwrap();
        assert_eq!(image.manifest().bytes, manifest_of_skopeo(at, item), "{item}");
        assert_eq!(image.id(), Digest::of(&config));
        check_layers(&*source, &image);
    }
    assert_eq!(names(&*open(at, "docker-archive:old.tar").unwrap()), ["docker.io/library/app:v1", "r.io/b:2"]);
    assert_eq!(names(&*open(at, "docker-archive:new.tar:app:v1").unwrap()), ["docker.io/library/app:v1"]);

    let source = open(at, "oci-archive:new.tar").unwrap();
    let image = Image::open(&*source, None, &"linux/amd64".parse().unwrap()).unwrap();
    assert_eq!((image.manifest_digest(), image.index_digest()), (Digest::of(&oci), Some(Digest::of(&index))));
    assert_eq!(names(&*source), ["docker.io/library/app:v1"]);
    let error = Image::open(&*source, None, &"linux/s390x".parse().unwrap()).unwrap_err().to_string();
    assert!(error.contains("only some of the index's images"), "{error}");
}

#[test]
fn the_same_platform_is_chosen_as_by_skopeo() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let mut layout = Layout::new(at.join("layout"));
    let layer = |name: &str| vec![tar(&[(name, b"")])];
    let platforms = ["linux/arm/v6", "linux/amd64", "linux/arm64/v8", "linux/arm/v7", "windows/amd64", "linux/amd64"];
    let images: Vec<_> = platforms
        .iter()
        .enumerate()
        .map(|(at, platform)| (*platform, layout.image(platform.split('/').nth(1).unwrap(), &layer(&at.to_string()))))
        .collect();
    let index = layout.index(&images);
    layout.add(Some("multi"), index);
    copy(at, &["--all", "oci:layout:multi", "dir:all"]);
    for wanted in ["linux/amd64", "linux/arm64", "linux/arm/v7", "linux/arm/v6", "linux/arm64/v8", "windows/amd64"] {
        let parts: Vec<&str> = wanted.split('/').collect();
        let copied = tempfile::tempdir_in(at).unwrap();
        let to = format!("dir:{}", copied.path().display());
        let mut arguments = vec!["--override-os", parts[0], "--override-arch", parts[1]];
        if let Some(variant) = parts.get(2) {
            arguments.extend(["--override-variant", variant]);
        }
        arguments.extend(["copy", "--quiet", "oci:layout:multi", &to]);
        let output = skopeo(at, &arguments);
        assert!(output.status.success(), "{wanted}: {}", String::from_utf8_lossy(&output.stderr));
        let expected = fs_err::read(copied.path().join("manifest.json")).unwrap();
        for item in ["oci:layout:multi", "dir:all"] {
            let image = image(at, item, wanted).unwrap_or_else(|error| panic!("{item} {wanted}: {error}"));
            assert_eq!(image.manifest().bytes, expected, "{item} {wanted}");
            assert_eq!(image.index().unwrap().bytes, fs_err::read(at.join("all/manifest.json")).unwrap());
        }
    }
    let error = image(at, "oci:layout:multi", "linux/riscv64").unwrap_err();
    assert!(error.contains("linux/riscv64") && error.contains("linux/arm/v6, linux/amd64"), "{error}");
}

#[test]
fn layouts_are_refused_when_skopeo_refuses_them() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let mut layout = Layout::new(at.join("layout"));
    let (one, two) = (layout.image("amd64", &layers()[..1]), layout.image("amd64", &layers()));
    refused(at, "oci:layout", "index.json is empty");
    layout.add(Some("one"), one.clone());
    layout.add(Some("r.io/two:2"), two);
    layout.add(None, one);
    layout.add(Some("chart"), json!({"mediaType": "application/json", "digest": "sha256:x", "size": 1}));
    for (item, part) in [
        ("oci:layout", "more than one image in oci, choose an image: one, r.io/two:2"),
        ("oci:layout:three", "no image three in index.json; there are: one, r.io/two:2, @2"),
        ("oci:layout:chart", "not an image"),
        ("oci:layout:@7", "no image @7"),
        ("oci:nothing", "no such directory"),
        ("oci-archive:layout", "write oci:PATH"),
        ("oci-archive:nothing", "no such file"),
        ("dir:layout", "write oci:PATH"),
        ("docker-archive:layout", "a directory"),
        ("dir:nothing", "no such directory"),
    ] {
        refused(at, item, part);
        if !item.contains('@') {
            let output = skopeo(at, &["inspect", "--raw", item]);
            assert!(!output.status.success(), "skopeo accepts {item}");
        }
    }
    for item in ["oci:layout:one", "oci:layout:r.io/two:2", "oci:layout:@2"] {
        assert!(image(at, item, "linux/amd64").is_ok(), "{item}");
    }
}

#[test]
fn damaged_and_hostile_layouts_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let mut layout = Layout::new(at.join("l"));
    let descriptor = layout.image("amd64", &layers());
    layout.add(None, descriptor.clone());
    let manifest = at.join("l/blobs/sha256").join(&descriptor["digest"].as_str().unwrap()[7..]);
    let good = fs_err::read(&manifest).unwrap();

    fs_err::write(&manifest, &good[1..]).unwrap();
    refused(at, "oci:l", "is damaged");
    fs_err::write(&manifest, vec![b' '; (4 << 20) + 1]).unwrap();
    refused(at, "oci:l", "more than 4194304 bytes");
    fs_err::remove_file(&manifest).unwrap();
    refused(at, "oci:l", "no blobs/sha256/");
    fs_err::create_dir_all(&manifest).unwrap();
    refused(at, "oci:l", "not a regular file");

    for (index, part) in [
        ("garbage", "not JSON"),
        ("[]", "not an object"),
        (r#"{"manifests":{}}"#, "not a list"),
        (r#"{"manifests":[{"digest":"sha256:../../../etc/passwd"}]}"#, "is not a digest"),
        (r#"{"manifests":[{"digest":7}]}"#, "not a string"),
        (r#"{"manifests":[1]}"#, "not an object"),
    ] {
        fs_err::write(at.join("l/index.json"), index).unwrap();
        refused(at, "oci:l", part);
    }
    fs_err::write(at.join("l/oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    refused(at, "oci:l", "\"2.0.0\" is unknown");
    fs_err::remove_file(at.join("l/oci-layout")).unwrap();
    fs_err::remove_file(at.join("l/index.json")).unwrap();
    refused(at, "oci:l", "not an OCI layout");
    let status = std::process::Command::new("mkfifo").arg(at.join("l/index.json")).status().unwrap();
    assert!(status.success());
    refused(at, "oci:l", "not a regular file");
    refused(at, "dir:l", "no manifest.json");
    fs_err::write(at.join("l/version"), "Directory Transport Version: 9\n").unwrap();
    refused(at, "dir:l", "version that is unknown");
}

#[test]
fn damaged_and_hostile_docker_archives_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let layer = tar(&[("a", b"1")]);
    let config = config("amd64", std::slice::from_ref(&layer));
    let two = config_of_two(&layer);
    let image = |manifest: &str, files: &[(&str, &[u8])]| {
        fs_err::write(at.join("a.tar"), tar(&[files, &[("manifest.json", manifest.as_bytes())]].concat())).unwrap();
    };
    let files: &[(&str, &[u8])] = &[("c", &config), ("l", &layer), ("two", &two), ("bad", b"{")];
    let good = r#"[{"Config":"c","Layers":["l"]}]"#;
    for (manifest, part) in [
        ("garbage", "not JSON"),
        ("{}", "not a list"),
        ("[]", "no image in the archive"),
        (
            r#"[{"Config":"c","Layers":["l"]},{"RepoTags":["a:1"]}]"#,
            "2 images in the archive, choose one with :NAME:TAG or :@N: @0, a:1",
        ),
        (r#"[{"Config":"c"}]"#, "0 layers in manifest.json, 1 in the config"),
        (r#"[{"Config":"c","Layers":["../../etc/passwd"]}]"#, "not in the archive"),
        (r#"[{"Config":"x","Layers":["l"]}]"#, "not in the archive"),
        (r#"[{"Config":"l","Layers":["l"]}]"#, "not JSON"),
        (r#"[{"Config":"bad","Layers":["l"]}]"#, "not JSON"),
        (r#"[{"Config":"manifest.json","Layers":["l"]}]"#, "not an object"),
        (r#"[{"Config":"two","Layers":["l"]}]"#, "1 layers in manifest.json, 2 in the config"),
    ] {
        image(manifest, files);
        refused(at, "docker-archive:a.tar", part);
    }
    image(good, files);
    refused(at, "docker-archive:a.tar:r.io/x:1", "no image r.io/x:1 in the archive; there are: @0");
    refused(at, "docker-archive:a.tar:@1", "no image @1");
    refused(at, "oci-archive:a.tar", "write docker-archive:PATH");
    let bytes = fs_err::read(at.join("a.tar")).unwrap();
    fs_err::write(at.join("a.tar"), &bytes[..bytes.len() / 2]).unwrap();
    refused(at, "docker-archive:a.tar", "truncated");

    // The layer is another than the config says: seen by who reads it to its end.
    image(r#"[{"Config":"c","Layers":["bad"]}]"#, files);
    let source = open(at, "docker-archive:a.tar").unwrap();
    let opened = Image::open(&*source, None, &Platform::host()).unwrap();
    let descriptor = &opened.layers()[0].descriptor;
    let mut reader = VerifyReader::new(source.blob(descriptor).unwrap(), descriptor.digest, descriptor.size);
    assert!(reader.read_to_end(&mut Vec::new()).is_err());
}

fn config_of_two(layer: &[u8]) -> Vec<u8> {
    config("amd64", &[layer.to_vec(), layer.to_vec()])
}

#[test]
fn the_daemons_archive_is_read_as_skopeo_reads_it() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let mut layout = Layout::new(at.join("layout"));
    let descriptor = layout.image("amd64", &layers());
    layout.add(None, descriptor);
    copy(at, &["oci:layout", "docker-archive:a.tar:localhost/app:v1"]);
    let listener = UnixListener::bind(at.join("s")).unwrap();
    let archive = fs_err::read(at.join("a.tar")).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).unwrap();
        stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Type: application/x-tar\r\n\r\n").unwrap();
        stream.write_all(&archive).unwrap();
    });
    let item = Item::parse("docker-daemon:localhost/app:v1".as_ref()).unwrap();
    let options = Options { docker_host: Some(format!("unix://{}", at.join("s").display())), ..Options::default() };
    let source = source::open(&item.location, &options).unwrap();
    server.join().unwrap();
    let image = Image::open(&*source, None, &Platform::host()).unwrap();
    assert_eq!(names(&*source), ["localhost/app:v1"]);
    assert_eq!(image.manifest().bytes, manifest_of_skopeo(at, "docker-archive:a.tar"));
    check_layers(&*source, &image);
}
