//! Images made byte by byte, so that each test knows exactly what it gives to whom.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use prepull::digest::Digest;
use prepull::media_type::{OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
use serde_json::{Value, json};

/// A tar archive of these files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *data).unwrap();
    }
    tar.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

/// A config of an image with these (uncompressed) layers.
pub fn config(architecture: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let config = json!({
        "created": "2024-01-02T03:04:05Z", "architecture": architecture, "os": "linux", "config": {"Cmd": ["/a"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    serde_json::to_vec(&config).unwrap()
}

/// A directory in OCI image layout that grows.
pub struct Layout {
    pub path: PathBuf,
    /// Whether compressed layers are zstd, which skopeo's docker-archive does not take.
    pub zstd: bool,
    entries: Vec<Value>,
}

impl Layout {
    pub fn new(path: PathBuf) -> Self {
        fs_err::create_dir_all(path.join("blobs/sha256")).unwrap();
        fs_err::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let layout = Self { path, zstd: false, entries: Vec::new() };
        layout.write_index();
        layout
    }

    fn write_index(&self) {
        let index = json!({"schemaVersion": 2, "manifests": self.entries});
        fs_err::write(self.path.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    }

    /// Writes a blob and describes it.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        fs_err::write(self.path.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// Writes an image and describes its manifest. Its layers are compressed and plain in turn.
    pub fn image(&self, architecture: &str, layers: &[Vec<u8>]) -> Value {
        let config = self.blob(OCI_CONFIG, &config(architecture, layers));
        let describe = |(at, layer): (usize, &Vec<u8>)| {
            let tar = "application/vnd.oci.image.layer.v1.tar";
            match (at % 2, self.zstd) {
                (0, false) => self.blob(&format!("{tar}+gzip"), &gzip(layer)),
                (0, true) => self.blob(&format!("{tar}+zstd"), &zstd::encode_all(&layer[..], 1).unwrap()),
                _ => self.blob(tar, layer),
            }
        };
        let layers: Vec<Value> = layers.iter().enumerate().map(describe).collect();
        self.manifest(&json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}))
    }

    pub fn manifest(&self, manifest: &Value) -> Value {
        self.blob(OCI_MANIFEST, &serde_json::to_vec(manifest).unwrap())
    }

    /// Writes an index of manifests for `os/architecture/variant`.
    pub fn index(&self, images: &[(&str, Value)]) -> Value {
        let entry = |(platform, descriptor): &(&str, Value)| {
            let parts: Vec<&str> = platform.split('/').collect();
            let mut entry = descriptor.clone();
            entry["platform"] = json!({"os": parts[0], "architecture": parts[1]});
            if let Some(variant) = parts.get(2) {
                entry["platform"]["variant"] = json!(variant);
            }
            entry
        };
        let manifests: Vec<Value> = images.iter().map(entry).collect();
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        self.blob(OCI_INDEX, &serde_json::to_vec(&index).unwrap())
    }

    /// Adds what `descriptor` describes to `index.json`, under a name or none.
    pub fn add(&mut self, name: Option<&str>, mut descriptor: Value) {
        if let Some(name) = name {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        self.entries.push(descriptor);
        self.write_index();
    }
}

/// Two layers that differ, and the first again: `docker save` and skopeo treat a repeated layer in their own way.
pub fn layers() -> Vec<Vec<u8>> {
    let first = tar(&[("a", b"1"), ("b", &[b'x'; 70_000])]);
    vec![first.clone(), tar(&[("c", b"3"), (".wh.a", b"")]), first]
}

/// Runs skopeo, which must be installed.
pub fn skopeo<A: AsRef<OsStr>>(directory: &Path, arguments: &[A]) -> Output {
    Command::new("skopeo")
        // What it leaves when it fails goes with the directory.
        .args(["--insecure-policy", "--tmpdir"])
        .arg(directory)
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap_or_else(|error| panic!("run skopeo, which judges these tests (apt-get install skopeo): {error}"))
}

/// Runs `skopeo copy`, which must succeed.
#[track_caller]
pub fn copy(directory: &Path, arguments: &[&str]) {
    let output = skopeo(directory, &[&["copy", "--quiet"], arguments].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
