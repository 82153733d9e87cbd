//! Archives, layouts and compressed layers: whatever skopeo takes is taken, within limits that are stated.

use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use prepull::digest::Digest;
use prepull::media_type::{DOCKER_CONFIG, DOCKER_MANIFEST, OCI_CONFIG, OCI_MANIFEST};
use serde_json::{Value, json};

use crate::command::{fails, hello, prepull, stderr, succeeds};
use crate::made::{Layout, config, gzip, tar};

/// Returns `prepull make` without a cache, writing to `out.tar` in `home`.
fn make(home: &Path, item: &str) -> Command {
    let mut command = prepull(home);
    command.args(["make", "--no-cache", "--no-config", "-o"]).arg(home.join("out.tar")).arg(item);
    command
}

/// Adds an image with one layer, whose blob and descriptor are given, and returns the manifest's descriptor.
fn one_layer(layout: &Layout, is_docker: bool, plain: &[u8], layer: Value) -> Value {
    let (manifest, config_type) = if is_docker { (DOCKER_MANIFEST, DOCKER_CONFIG) } else { (OCI_MANIFEST, OCI_CONFIG) };
    let config = layout.blob(config_type, &config("amd64", &[plain.to_vec()]));
    let manifest = json!({"schemaVersion": 2, "mediaType": manifest, "config": config, "layers": [layer]});
    let mut descriptor = layout.manifest(&manifest);
    descriptor["mediaType"] = manifest["mediaType"].clone();
    descriptor
}

#[test]
fn b12_nondistributable_layers_and_parameters_are_taken() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let plain = tar(&[("a", b"1")]);
    let oci = "application/vnd.oci.image.layer";
    let docker = "application/vnd.docker.image.rootfs";
    // What skopeo 1.9 does with each of them is the same, but for the empty error column: it takes it.
    let table = [
        (false, format!("{oci}.nondistributable.v1.tar"), ""),
        (false, format!("{oci}.nondistributable.v1.tar+gzip"), ""),
        (false, format!("{docker}.foreign.diff.tar.gzip"), ""),
        (false, format!("{oci}.v1.tar+gzip; charset=utf-8"), ""),
        (false, format!("{oci}.nondistributable.v1.tar+gzip;a=b;c=d"), ""),
        (true, format!("{docker}.foreign.diff.tar"), ""),
        (true, format!("{docker}.foreign.diff.tar.gzip"), ""),
        (true, format!("{docker}.diff.tar.gzip; charset=utf-8"), "cannot be read by CRI-O"),
        (true, format!("{oci}.nondistributable.v1.tar"), "not a known type of layer"),
        (false, format!("{oci}.v1.tar+gzip+encrypted; a=b"), "decrypt"),
    ];
    for (number, (is_docker, media_type, refused)) in table.iter().enumerate() {
        let mut layout = Layout::new(at.join(number.to_string()));
        let bytes = if media_type.contains("gzip") { gzip(&plain) } else { plain.clone() };
        let mut layer = layout.blob(media_type, &bytes);
        // Nothing is fetched from there: port 1 of this machine refuses everybody.
        layer["urls"] = json!(["http://127.0.0.1:1/layer"]);
        let descriptor = one_layer(&layout, *is_docker, &plain, layer);
        layout.add(Some("localhost/a:1"), descriptor);
        let item = format!("oci:{}", layout.path.display());
        match *refused {
            "" => drop(succeeds(&mut make(at, &item))),
            part => fails(&mut make(at, &item), 1, part),
        }
    }
}

#[test]
fn b12_missing_foreign_layer_is_explained_with_its_urls() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let plain = tar(&[("a", b"1")]);
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let urls = json!(["https://example.com/\u{1b}[31m", "https://example.com/b", "c", "d"]);
    for (urls, part) in [
        (urls, r"distributed with the image but from https://example.com/\u{1b}[31m, https://example.com/b, c ("),
        (json!(null), "from elsewhere (no URL is known)"),
    ] {
        let mut layout = Layout::new(at.join("layout"));
        let mut layer = layout.blob(foreign, &gzip(&plain));
        let digest = layer["digest"].as_str().unwrap().replace(':', "/");
        fs_err::remove_file(layout.path.join("blobs").join(digest)).unwrap();
        layer["urls"] = urls;
        let descriptor = one_layer(&layout, true, &plain, layer);
        layout.add(Some("localhost/a:1"), descriptor);
        fails(&mut make(at, &format!("oci:{}", layout.path.display())), 2, part);
    }
}

/// Runs a program with `input`, and returns its standard output.
fn through(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(input).unwrap();
    file.rewind().unwrap();
    let output = Command::new(program).args(arguments).stdin(file).output();
    let output = output.unwrap_or_else(|error| panic!("run {program}, which is needed here: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", stderr(&output));
    output.stdout
}

/// Writes a layout with one image of one layer, whose blob is given.
fn layout_of(path: &Path, plain: &[u8], media_type: &str, blob: &[u8]) -> String {
    let mut layout = Layout::new(path.to_owned());
    let layer = layout.blob(media_type, blob);
    let descriptor = one_layer(&layout, false, plain, layer);
    layout.add(Some("localhost/a:1"), descriptor);
    format!("oci:{}", path.display())
}

/// Returns the records in a file of a tar that `make` wrote.
fn records(tar: &Path, name: &str) -> Value {
    let mut archive = tar::Archive::new(fs_err::File::open(tar).unwrap());
    let mut entries = archive.entries().unwrap().map(Result::unwrap);
    let file = entries.find(|entry| entry.path_bytes().ends_with(name.as_bytes())).unwrap();
    serde_json::from_reader(file).unwrap()
}

/// Returns the only record of layers.json in a tar that `make` wrote.
fn layer_record(tar: &Path) -> Value {
    let records = records(tar, "overlay-layers/layers.json");
    assert_eq!(records.as_array().unwrap().len(), 1);
    records[0].clone()
}

#[test]
fn b06_zstd_windows_up_to_512_mib_are_taken() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let plain = tar(&[("a", &[7; 200_000])]);
    // From a pipe zstd knows no size, so it declares the whole window.
    let frame = |long: &str| through("sh", &["-c", &format!("cat | zstd -qc --long={long}")], &plain);
    let half = plain.len() / 2;
    let two = |first: &str, second: &str| {
        let part = |long: &str, part: &[u8]| through("sh", &["-c", &format!("cat | zstd -qc --long={long}")], part);
        [part(first, &plain[..half]), b"\x5e\x2a\x4d\x18\x02\0\0\0ab".to_vec(), part(second, &plain[half..])].concat()
    };
    let zstd = "application/vnd.oci.image.layer.v1.tar+zstd";
    for (name, blob, refused) in [
        ("28", frame("28"), ""),
        ("29", frame("29"), ""),
        ("frames of different windows", two("29", "20"), ""),
        ("a larger window later", two("20", "29"), ""),
        (
            "a skippable frame first",
            [b"\x5e\x2a\x4d\x18\x02\0\0\0ab".to_vec(), frame("20")].concat(),
            "skippable frame",
        ),
        ("30", frame("30"), "zstd stream: a window of 1024 MiB, the limit is 512 MiB"),
        ("31, later", two("20", "31"), "zstd stream: a window of 2048 MiB, the limit is 512 MiB"),
    ] {
        let item = layout_of(&at.join(name), &plain, zstd, &blob);
        match refused {
            "" => drop(succeeds(&mut make(at, &item))),
            part => fails(&mut make(at, &item), 1, part),
        }
    }
    // A compressed archive has the same limit.
    let archive = at.join("archive.tar.zst");
    let layout = through("tar", &["-C", at.join("29").to_str().unwrap(), "-c", "."], b"");
    for (long, refused) in [("29", ""), ("30", "a window of 1024 MiB")] {
        fs_err::write(&archive, through("sh", &["-c", &format!("cat | zstd -qc --long={long}")], &layout)).unwrap();
        let item = format!("oci-archive:{}", archive.display());
        match refused {
            "" => drop(succeeds(&mut make(at, &item))),
            part => fails(&mut make(at, &item), 1, part),
        }
    }
}

#[test]
fn b06_many_large_windows_wait_for_each_other_and_all_succeed() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let mut layout = Layout::new(at.join("layout"));
    let layers: Vec<Vec<u8>> = (0..12_u8).map(|number| tar(&[("a", &vec![number; 3_000_000])])).collect();
    let zstd = |layer: &Vec<u8>| {
        let blob = through("sh", &["-c", "cat | zstd -qc --long=29"], layer);
        layout.blob("application/vnd.oci.image.layer.v1.tar+zstd", &blob)
    };
    let descriptors: Vec<Value> = layers.iter().map(zstd).collect();
    let config = layout.blob(OCI_CONFIG, &config("amd64", &layers));
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": descriptors});
    let descriptor = layout.manifest(&manifest);
    layout.add(Some("localhost/a:1"), descriptor);
    succeeds(&mut make(at, &format!("oci:{}", layout.path.display())));
}

#[test]
fn b09_layers_of_every_compression_are_recorded_as_skopeo_records_them() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let plain = tar(&[("a", b"1"), ("b", &[b'x'; 70_000])]);
    let tar_type = "application/vnd.oci.image.layer.v1.tar";
    // The numbers are what skopeo 1.9 writes into layers.json for these blobs.
    for (program, media_type, number) in [
        ("xz", tar_type.to_owned(), 3),
        ("xz", format!("{tar_type}+gzip"), 3),
        ("xz", format!("{tar_type}+xz"), 3),
        ("bzip2", tar_type.to_owned(), 1),
        ("gzip", tar_type.to_owned(), 2),
        ("zstd", tar_type.to_owned(), 4),
    ] {
        let blob = through(program, &["-c"], &plain);
        let name = format!("{program} {}", media_type.rsplit('.').next().unwrap());
        let item = layout_of(&at.join(name), &plain, &media_type, &blob);
        succeeds(&mut make(at, &item));
        let record = layer_record(&at.join("out.tar"));
        assert_eq!(record["compression"], number, "{item}");
        assert_eq!(record["compressed-diff-digest"], Digest::of(&blob).to_string(), "{item}");
        assert_eq!(record["compressed-size"], blob.len(), "{item}");
        assert_eq!(record["diff-digest"], Digest::of(&plain).to_string(), "{item}");
    }
    let lz4 = layout_of(&at.join("lz4"), &plain, tar_type, &through("lz4", &["-qc"], &plain));
    fails(&mut make(at, &lz4), 1, "lz4 compression of a layer is not supported");
}

/// Writes what `docker save` writes, but for the layer's bytes, into a directory.
fn docker_directory(path: &Path, plain: &[u8], layer: &[u8]) {
    fs_err::create_dir_all(path).unwrap();
    fs_err::write(path.join("c.json"), config("amd64", &[plain.to_vec()])).unwrap();
    fs_err::write(path.join("l.tar"), layer).unwrap();
    let manifest = json!([{"Config": "c.json", "RepoTags": ["localhost/a:1"], "Layers": ["l.tar"]}]);
    fs_err::write(path.join("manifest.json"), manifest.to_string()).unwrap();
}

#[test]
fn b09_docker_archives_in_any_wrapping_give_the_same_tar() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    // More holes than the header and one more block of an old GNU sparse member have.
    let mut holes = vec![0; 60 * 65_536];
    (0..40).for_each(|number| holes[number * 98_304] = b'x');
    let plain = tar(&[("zeros", &[0; 300_000]), ("holes", &holes), ("a", b"x")]);
    let directory = |name: &str, layer: &[u8]| {
        docker_directory(&at.join(name), &plain, layer);
        at.join(name)
    };
    let good = directory("good", &plain);
    succeeds(Command::new("sh").current_dir(&good).args(["-c", "cp --sparse=always l.tar m && mv m l.tar"]));
    let [in_xz, in_bzip2] = ["xz", "bzip2"].map(|program| directory(program, &through(program, &["-c"], &plain)));
    let pack = |from: &Path, arguments: &[&str]| {
        let path = at.join("packed.tar");
        let names = ["manifest.json", "c.json", "l.tar"];
        succeeds(Command::new("tar").arg("-C").arg(from).arg("-cf").arg(&path).args(arguments).args(names));
        path
    };
    let tar_of = |path: &Path| {
        succeeds(&mut make(at, &format!("docker-archive:{}", path.display())));
        fs_err::read(at.join("out.tar")).unwrap()
    };
    let expected = tar_of(&pack(&good, &[]));
    let posix = |version| ["--format=posix", "-S", version];
    for (name, from, arguments) in [
        ("xz", &good, &["-J"][..]),
        ("bzip2", &good, &["-j"]),
        ("gzip", &good, &["-z"]),
        ("zstd", &good, &["--zstd"]),
        ("lz4", &good, &["-Ilz4"]),
        ("layer in xz", &in_xz, &[]),
        ("layer in bzip2", &in_bzip2, &[]),
        ("old GNU sparse", &good, &["--format=gnu", "-S"]),
        ("PAX sparse 0.0", &good, &posix("--sparse-version=0.0")),
        ("PAX sparse 0.1", &good, &posix("--sparse-version=0.1")),
        ("PAX sparse 1.0", &good, &posix("--sparse-version=1.0")),
        ("PAX sparse 1.0 in xz", &good, &["--format=posix", "-S", "-J"]),
    ] {
        let packed = pack(from, arguments);
        if name.contains("sparse 1.0") || name == "old GNU sparse" {
            let length = fs_err::metadata(&packed).unwrap().len();
            assert!(length < plain.len() as u64 / 2, "{name}: not sparse");
        }
        assert!(tar_of(&packed) == expected, "{name}");
    }
    // The layout's own archive, too.
    let layout = layout_of(&at.join("layout"), &plain, "application/vnd.oci.image.layer.v1.tar", &plain);
    succeeds(&mut make(at, &layout));
    let expected = fs_err::read(at.join("out.tar")).unwrap();
    for arguments in [&["-J"][..], &["-S"], &["--format=posix", "-S", "-j"]] {
        let path = at.join("oci.tar");
        let from = at.join("layout");
        succeeds(Command::new("tar").arg("-C").arg(from).arg("-cf").arg(&path).args(arguments).arg("."));
        succeeds(&mut make(at, &format!("oci-archive:{}", path.display())));
        assert!(fs_err::read(at.join("out.tar")).unwrap() == expected, "{arguments:?}");
    }
}

#[test]
fn b09_store_tars_of_every_compression_are_read() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    succeeds(&mut make(at, &hello()));
    let tar = at.join("out.tar");
    let bytes = fs_err::read(&tar).unwrap();
    let run = |arguments: &[&str], path: &Path| {
        let mut command = prepull(at);
        succeeds(command.args(arguments).arg(path).env("TMPDIR", at))
    };
    let [list, verdict] = [&["ls"][..], &["verify", "--json"]].map(|arguments| run(arguments, &tar));
    for program in ["gzip", "bzip2", "xz", "zstd", "lz4"] {
        let path = at.join("packed");
        fs_err::write(&path, through(program, &["-c"], &bytes)).unwrap();
        assert_eq!(run(&["ls"], &path), list, "{program}");
        assert_eq!(run(&["verify", "--json"], &path).replace("packed", "out.tar"), verdict, "{program}");
        // The files differ, and nothing in them does.
        let output = prepull(at).arg("diff").arg(&tar).arg(&path).env("TMPDIR", at).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("images: 1 the same, 0 not"), "{program}: {output:?}");
        succeeds(prepull(at).arg("why").arg(&path).arg("localhost/hello:v1"));
        // A truncated one is not taken for the whole.
        fs_err::write(&path, &fs_err::read(&path).unwrap()[..200]).unwrap();
        let output = prepull(at).arg("ls").arg(&path).output().unwrap();
        assert!(!output.status.success() && stderr(&output).contains(program), "{}", stderr(&output));
    }
}

/// Writes `stdin` in four files: its halves as blocks of one stream (`blocks`) and as two streams (`streams`), the second with a
/// dictionary of argv[1] MiB, and the same the other way round (`blocks-first`, `streams-first`).
const XZ: &str = r#"
import lzma, struct, sys, zlib
data = sys.stdin.buffer.read()
halves = data[: len(data) // 2], data[len(data) // 2 :]
sizes = 8 << 20, int(sys.argv[1]) << 20
def stream(half, size):
    return lzma.compress(half, check=lzma.CHECK_CRC32, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": size, "mode": lzma.MODE_FAST, "mf": lzma.MF_HC3}])
def number(value):
    out = b""
    while value > 127: out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])
def block(packed):
    size = (struct.unpack("<I", packed[-8:-4])[0] + 1) * 4
    return packed[12 : -12 - size]
def unpadded(packed):
    index, at, values = packed[-12 - (struct.unpack("<I", packed[-8:-4])[0] + 1) * 4 : -12], 1, []
    while len(values) < 3:
        value, shift = 0, 0
        while True:
            value, shift, at = value | (index[at] & 127) << shift, shift + 7, at + 1
            if index[at - 1] < 128: break
        values.append(value)
    return values[1]
for name, order in ("", sizes), ("-first", sizes[::-1]):
    packed = [stream(half, size) for half, size in zip(halves, order)]
    open("streams" + name, "wb").write(b"".join(packed))
    index = b"\0" + number(2) + b"".join(number(unpadded(one)) + number(len(half)) for one, half in zip(packed, halves))
    index += bytes(-len(index) % 4)
    index += struct.pack("<I", zlib.crc32(index))
    end = struct.pack("<I", len(index) // 4 - 1) + packed[0][-4:-2]
    footer = struct.pack("<I", zlib.crc32(end)) + end + b"YZ"
    open("blocks" + name, "wb").write(packed[0][:12] + b"".join(map(block, packed)) + index + footer)
"#;

#[test]
fn b09_later_blocks_and_streams_of_xz_are_held_to_the_memory_of_the_first() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    succeeds(&mut make(at, &hello()));
    let tar = at.join("out.tar");
    let list = succeeds(prepull(at).arg("ls").arg(&tar));
    // More than 1 GiB of address space: nothing allocates what a header merely declares.
    let ls = |name: &str| {
        let mut command = Command::new("prlimit");
        command.arg("--data=700000000").arg(env!("CARGO_BIN_EXE_prepull")).arg("ls").arg(at.join(name)).env("HOME", at);
        command
    };
    for (dictionary, is_taken) in [("4", true), ("64", true), ("96", false), ("512", false), ("768", false)] {
        let mut python = Command::new("python3");
        python.args(["-c", XZ, dictionary]).current_dir(at).stdin(fs_err::File::open(&tar).unwrap().into_file());
        succeeds(&mut python);
        for kind in ["blocks", "streams"] {
            let path = at.join(kind);
            succeeds(
                Command::new("xz").arg("-t").arg("--format=xz").stdin(fs_err::File::open(&path).unwrap().into_file()),
            );
            if is_taken {
                assert_eq!(succeeds(&mut ls(kind)), list, "{kind} {dictionary}");
            } else {
                fails(&mut ls(kind), 2, "a later block needs a larger dictionary than 64 MiB and the first one's");
            }
            // The first one's decides, up to a limit.
            let first = format!("{kind}-first");
            match dictionary {
                "768" => fails(&mut ls(&first), 2, "a dictionary of 768 MiB, the limit is 512 MiB"),
                _ => assert_eq!(succeeds(&mut ls(&first)), list, "{first} {dictionary}"),
            }
        }
    }
}

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// Returns a descriptor with annotations and a platform as `os/architecture`.
fn entry(descriptor: &Value, annotations: &[(&str, &str)], platform: &str) -> Value {
    let mut entry = descriptor.clone();
    let annotations: serde_json::Map<_, _> =
        annotations.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    entry["annotations"] = annotations.into();
    if let Some((os, architecture)) = platform.split_once('/') {
        entry["platform"] = json!({"os": os, "architecture": architecture});
    }
    entry
}

/// Returns the names of the images in the tar that `make` wrote, sorted.
fn images(at: &Path) -> Vec<String> {
    let images = records(&at.join("out.tar"), "overlay-images/images.json");
    let names = images.as_array().unwrap().iter().flat_map(|image| image["names"].as_array().unwrap());
    let mut names: Vec<String> = names.map(|name| name.as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// What it is, the entries of index.json, what follows the path, an architecture, and the names or a part of the error.
type Case<'a> = (&'a str, Vec<Value>, &'a str, &'a str, Result<&'a [&'a str], &'a str>);

#[test]
fn b11_index_entries_of_one_image_are_one_image() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let layout = Layout::new(at.join("oci"));
    let [a, b] = [b"A", b"B"].map(|text| layout.image("amd64", &[tar(&[("a", text)])]));
    let arm = layout.image("arm64", &[tar(&[("a", b"C")])]);
    let attestation = layout.manifest(&json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}));
    let platforms = layout.index(&[("linux/amd64", a.clone()), ("linux/arm64", arm.clone())]);
    let aside = || {
        let mut aside =
            entry(&attestation, &[("vnd.docker.reference.type", "attestation-manifest")], "unknown/unknown");
        aside["annotations"]["vnd.docker.reference.digest"] = a["digest"].clone();
        aside
    };
    let nested = layout.index(&[("linux/amd64", platforms.clone())]);
    let latest = |descriptor, name| entry(descriptor, &[(CONTAINERD_NAME, name), (REF_NAME, "latest")], "");
    let two = || [latest(&a, "docker.io/library/a:latest"), latest(&b, "docker.io/library/b:latest")].to_vec();
    let direct = || {
        vec![
            entry(&a, &[(REF_NAME, "localhost/x:1")], "linux/amd64"),
            aside(),
            entry(&arm, &[(REF_NAME, "localhost/x:1")], "linux/arm64"),
        ]
    };
    let table: Vec<Case<'_>> = vec![
        (
            "two names",
            vec![entry(&a, &[(REF_NAME, "localhost/a:1")], ""), entry(&a, &[(REF_NAME, "localhost/a:2")], "")],
            "",
            "amd64",
            Ok(&["localhost/a:1", "localhost/a:2"]),
        ),
        (
            "one of two names",
            vec![entry(&a, &[(REF_NAME, "localhost/a:1")], ""), entry(&a, &[(REF_NAME, "localhost/a:2")], "")],
            ":localhost/a:2",
            "amd64",
            Ok(&["localhost/a:2"]),
        ),
        ("twice without names", vec![a.clone(), a.clone()], "=localhost/x:1", "amd64", Ok(&["localhost/x:1"])),
        ("platforms, amd64", direct(), "", "amd64", Ok(&["localhost/x:1"])),
        ("platforms, arm64", direct(), ":localhost/x:1", "arm64", Ok(&["localhost/x:1"])),
        ("platforms, none", direct(), "", "s390x", Err("there are: linux/amd64, linux/arm64")),
        (
            "platforms of two images",
            vec![
                entry(&a, &[(REF_NAME, "localhost/a:1")], "linux/amd64"),
                entry(&arm, &[(REF_NAME, "localhost/b:1")], "linux/arm64"),
            ],
            "",
            "amd64",
            Err("choose an image: localhost/a:1, localhost/b:1"),
        ),
        (
            "one platform twice",
            vec![entry(&a, &[], "linux/amd64"), entry(&b, &[], "linux/amd64")],
            "=localhost/x:1",
            "amd64",
            Err("choose an image: @0, @1"),
        ),
        (
            "an image and its attestation",
            vec![entry(&a, &[(REF_NAME, "localhost/a:1")], "linux/amd64"), aside()],
            "",
            "amd64",
            Ok(&["localhost/a:1"]),
        ),
        (
            "two latest",
            two(),
            "",
            "amd64",
            Err("choose an image: docker.io/library/a:latest, docker.io/library/b:latest"),
        ),
        (
            "two latest, by it",
            two(),
            ":latest",
            "amd64",
            Err(
                "more than one image called latest in oci, choose an image: docker.io/library/a:latest, docker.io/library/b:latest",
            ),
        ),
        ("two latest, full", two(), ":docker.io/library/b:latest", "amd64", Ok(&["docker.io/library/b:latest"])),
        ("two latest, short", two(), ":b:latest", "amd64", Ok(&["docker.io/library/b:latest"])),
        ("two latest, by number", two(), ":@1", "amd64", Ok(&["docker.io/library/b:latest"])),
        (
            "two latest, another",
            two(),
            ":c",
            "amd64",
            Err("there are: docker.io/library/a:latest, docker.io/library/b:latest"),
        ),
        ("an index", vec![entry(&platforms, &[(REF_NAME, "localhost/i:1")], "")], "", "arm64", Ok(&["localhost/i:1"])),
        (
            "an index within an index",
            vec![entry(&nested, &[(REF_NAME, "localhost/i:1")], "")],
            "",
            "amd64",
            Ok(&["localhost/i:1"]),
        ),
        (
            "a media type with a parameter",
            vec![{
                let mut entry = entry(&a, &[(REF_NAME, "localhost/a:1")], "");
                entry["mediaType"] = json!(format!("{OCI_MANIFEST}; charset=utf-8"));
                entry
            }],
            ":localhost/a:1",
            "amd64",
            Ok(&["localhost/a:1"]),
        ),
    ];
    for (name, entries, reference, architecture, expected) in table {
        let index = json!({"schemaVersion": 2, "manifests": entries});
        fs_err::write(layout.path.join("index.json"), index.to_string()).unwrap();
        succeeds(Command::new("tar").arg("-C").arg(&layout.path).arg("-cf").arg(at.join("oci.tar")).arg("."));
        for place in ["oci:oci", "oci-archive:oci.tar"] {
            let mut command = make(at, &format!("{place}{reference}"));
            command.current_dir(at).args(["--platform", &format!("linux/{architecture}")]);
            match expected {
                Ok(names) => {
                    succeeds(&mut command);
                    assert_eq!(images(at), names, "{name}: {place}");
                }
                Err(part) => {
                    let output = command.output().unwrap();
                    let said = stderr(&output);
                    assert!(!output.status.success() && said.contains(part), "{name}: {place}: {said}");
                }
            }
        }
    }
}

#[test]
fn b11_docker_archive_items_of_one_image_are_one_image() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let plain = tar(&[("a", b"1")]);
    docker_directory(at, &plain, &plain);
    let item = |tag: &str| json!({"Config": "c.json", "RepoTags": [tag], "Layers": ["l.tar"]});
    fs_err::write(at.join("manifest.json"), json!([item("localhost/a:1"), item("localhost/a:2")]).to_string()).unwrap();
    succeeds(Command::new("tar").arg("-C").arg(at).args(["-cf"]).arg(at.join("d.tar")).args([
        "manifest.json",
        "c.json",
        "l.tar",
    ]));
    for (reference, names) in [("", &["localhost/a:1", "localhost/a:2"][..]), (":@1", &["localhost/a:2"])] {
        succeeds(make(at, &format!("docker-archive:d.tar{reference}")).current_dir(at));
        assert_eq!(images(at), names);
    }
}

/// How often a file of this name was opened, by strace's word.
/// Returns how often a file of this name was opened; not the places that Landlock rules name.
fn opens(trace: &Path, name: &str) -> usize {
    let text = fs_err::read_to_string(trace).unwrap();
    text.lines()
        .filter(|line| {
            line.contains(&format!("{name}\"")) && !["ENOENT", "O_PATH"].iter().any(|part| line.contains(part))
        })
        .count()
}

#[test]
fn a16_layouts_and_archives_are_opened_once_a_run() {
    const IMAGES: usize = 60;
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let mut layout = Layout::new(at.join("oci"));
    let mut saved = Vec::new();
    let plain = tar(&[("a", b"1")]);
    docker_directory(&at.join("docker"), &plain, &plain);
    for number in 0..IMAGES {
        let descriptor = layout.image("amd64", &[tar(&[("a", number.to_string().as_bytes())])]);
        layout.add(Some(&format!("localhost/a:{number}")), descriptor);
        saved.push(json!({"Config": "c.json", "RepoTags": [format!("localhost/d:{number}")], "Layers": ["l.tar"]}));
    }
    fs_err::write(at.join("docker/manifest.json"), json!(saved).to_string()).unwrap();
    for (from, packed) in [("oci", "oci.tar"), ("docker", "docker.tar")] {
        succeeds(Command::new("tar").arg("-C").arg(at.join(from)).arg("-cf").arg(at.join(packed)).arg("."));
    }
    for (item, name, opened) in [
        ("oci:oci:localhost/a:", "oci/index.json", 1),
        ("oci-archive:oci.tar:localhost/a:", "oci.tar", 1),
        ("docker-archive:docker.tar:localhost/d:", "docker.tar", 1),
    ] {
        for run in ["cold", "warm"] {
            let items: String = (0..IMAGES).map(|number| format!("{item}{number}\n")).collect();
            fs_err::write(at.join("list"), items).unwrap();
            let inner = prepull(at);
            let mut command = Command::new("strace");
            command.args(["-f", "-qq", "-e", "trace=openat,open", "-o"]).arg(at.join("trace"));
            command.arg(inner.get_program()).args([
                "make",
                "--no-config",
                "--cache-dir",
                "cache",
                "-o",
                "out.tar",
                "--images",
                "list",
            ]);
            for (key, value) in inner.get_envs().filter_map(|(key, value)| Some((key, value?))) {
                command.env(key, value);
            }
            succeeds(command.current_dir(at));
            assert_eq!(opens(&at.join("trace"), name), opened, "{item} {run}");
        }
    }
}

#[test]
fn b14_uncompressed_sizes_are_limited_for_every_command() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let layers: Vec<Vec<u8>> = (0..2_u8).map(|number| tar(&[("zeros", &vec![number; 8_000_000])])).collect();
    let tar_type = "application/vnd.oci.image.layer.v1.tar";
    let one = layout_of(&at.join("one"), &layers[0], tar_type, &through("xz", &["-0c"], &layers[0]));
    let mut layout = Layout::new(at.join("two"));
    let descriptor = layout.image("amd64", &layers);
    layout.add(Some("localhost/two:1"), descriptor);
    let two = format!("oci:{}", layout.path.display());
    docker_directory(&at.join("saved"), &layers[0], &through("bzip2", &["-c"], &layers[0]));
    for (name, option) in [("saved.tar", "-c"), ("saved.tar.xz", "-cJ")] {
        let mut pack = Command::new("tar");
        succeeds(pack.arg("-C").arg(at.join("saved")).arg(option).arg("-f").arg(at.join(name)).arg("."));
    }
    docker_directory(&at.join("plain"), &layers[0], &layers[0]);
    succeeds(Command::new("tar").arg("-C").arg(at.join("plain")).arg("-cJf").arg(at.join("plain.tar.xz")).arg("."));
    let saved = |name: &str| format!("docker-archive:{}", at.join(name).display());
    let command = |arguments: &[&str], item: &str| {
        let mut command = prepull(at);
        command.args(arguments).arg(item).current_dir(at);
        command
    };
    ["mnt", "root"].iter().for_each(|name| fs_err::create_dir_all(at.join(name)).unwrap());
    let made = ["make", "--no-config", "--cache-dir", "cache", "-o", "out.tar"];
    let mut commands = vec![&made[..], &["mount", "--no-cache", "mnt"]];
    if rustix::process::geteuid().is_root() {
        commands.push(&["install", "--root", "root", "--no-cache"]);
    }
    let layer = "layer sha256:";
    for (item, max, part) in [
        (&one, "4M", "more than 4.00 MB uncompressed, of "),
        (&one, "4M", layer),
        (&one, "4M", ":1); --max-size SIZE allows more"),
        (&two, "10M", "localhost/two:1: with layer "),
        (&saved("saved.tar"), "4M", "more than 4.00 MB uncompressed"),
        (&saved("saved.tar.xz"), "4M", "more than 4.00 MB uncompressed"),
        (&saved("plain.tar.xz"), "4M", "docker-archive:"),
    ] {
        for begin in &commands {
            fails(command(begin, item).args(["--max-size", max]), 1, part);
        }
    }
    // What is in the cache has the same limit.
    succeeds(command(&made, &two).args(["--max-size", "17M"]));
    fails(command(&made, &two).args(["--max-size", "10M"]), 1, "localhost/two:1: with layer ");
    succeeds(&mut command(&made, &two));
}

/// An image whose tar shares its bytes with the cache.
struct Shared {
    scratch: tempfile::TempDir,
    /// The layer.
    plain: Vec<u8>,
    item: String,
}

impl Shared {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        // More than may be written before its place in the tar is known: so it is shared. Each file is in another chunk.
        let file = |number: u8| vec![number; 6_000_000];
        let contents: Vec<(String, Vec<u8>)> = (0..12).map(|number| (format!("f{number}"), file(number))).collect();
        let files: Vec<(&str, &[u8])> = contents.iter().map(|(name, data)| (&name[..], &data[..])).collect();
        let plain = tar(&files);
        let item = layout_of(&scratch.path().join("oci"), &plain, "application/vnd.oci.image.layer.v1.tar", &plain);
        Self { scratch, plain, item }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Makes the tar `out`, with the words `before` in front of the command. Returns its bytes and the messages.
    fn make(&self, before: &[&str], out: &str) -> (Vec<u8>, String) {
        let prepull = prepull(self.scratch.path());
        let mut command = match before {
            [] => Command::new(prepull.get_program()),
            [program, words @ ..] => {
                let mut command = Command::new(program);
                command.args(words).arg(prepull.get_program());
                command
            }
        };
        for (name, value) in prepull.get_envs() {
            let _ = match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.args(["make", "--no-config", "--cache-dir"]).arg(self.path("cache"));
        let said = command.arg("-o").arg(self.path(out)).arg(&self.item).output().unwrap();
        assert!(said.status.success(), "{}", stderr(&said));
        (fs_err::read(self.path(out)).unwrap(), stderr(&said))
    }

    /// Returns whether the cache has another link to the tar.
    fn has_link(&self, tar: &str) -> bool {
        std::os::unix::fs::MetadataExt::nlink(&fs_err::metadata(self.path(tar)).unwrap()) == 2
    }

    /// Returns the files that say which bytes of shared tars are right.
    fn seen(&self) -> Vec<(std::ffi::OsString, Vec<u8>)> {
        let entries = fs_err::read_dir(self.path("cache/tars")).unwrap().map(Result::unwrap);
        let records = entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "seen"));
        records.map(|entry| (entry.file_name(), fs_err::read(entry.path()).unwrap())).collect()
    }
}

#[test]
fn c04_tar_with_a_name_while_it_is_written_is_hashed_before_it_is_used() {
    let shared = Shared::new();
    // As on a file system that knows no files without a name. Each process opens the directory twice before it writes.
    let directory = shared.scratch.path().display().to_string();
    let before = [
        "strace",
        "--quiet=all",
        "--output=/dev/null",
        "--follow-forks",
        "--trace-path",
        &directory,
        "--inject=openat:error=EOPNOTSUPP:when=3+",
    ];
    let (expected, _) = shared.make(&before, "images.tar");
    assert!(shared.has_link("images.tar"));
    assert_eq!(shared.seen(), []);
    let (again, said) = shared.make(&[], "second.tar");
    assert!(again == expected && said.contains("1 of them from the cache"), "{said}");
    assert_eq!(shared.seen().len(), 1);
}

#[test]
fn c04_a_changed_shared_tar_gives_no_wrong_content_and_a_removed_one_is_still_used() {
    let image = Shared::new();
    let run = |out: &str| image.make(&[], out);
    let seen = || image.seen();
    let (expected, _) = run("images.tar");
    assert!(image.has_link("images.tar"));
    let shared = image.path("images.tar");
    let published = seen();
    assert_eq!(published.len(), 1);
    let (again, said) = run("second.tar");
    assert!(again == expected && said.contains("1 of them from the cache"), "{said}");
    assert_eq!(seen(), published, "it had to be hashed");
    // One byte in the middle of a file, and the time restored.
    let modified = fs_err::metadata(&shared).unwrap().modified().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    let tampered = std::fs::File::options().write(true).open(&shared).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&tampered, b"!", image.plain.len() as u64 / 2).unwrap();
    tampered.set_modified(modified).unwrap();
    let (again, said) = run("third.tar");
    assert!(again == expected && said.contains("0 of them from the cache"), "{said}");
    // Removing the new one only makes it be hashed.
    fs_err::remove_file(image.path("third.tar")).unwrap();
    let before = seen();
    let (again, said) = run("fourth.tar");
    assert!(again == expected && said.contains("1 of them from the cache"), "{said}");
    assert_ne!(seen(), before);
}
