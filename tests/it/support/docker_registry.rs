//! Debian's `docker-registry` on a free port of 127.0.0.1, a small image in it, and certificates made by openssl.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use prepull::digest::Digest;

use super::run;

/// A running registry; dropping it kills it.
pub(crate) struct DockerRegistry {
    child: Child,
    host: String,
    directory: tempfile::TempDir,
}

impl DockerRegistry {
    /// Starts one with these members of `http:` and these top-level sections added to its configuration.
    pub(crate) fn start(http: &str, sections: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config.yml");
        // The port that was free may be taken by now: try another one then.
        for _ in 0..5 {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let root = directory.path().join("data");
            let text = format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: {address}\n{http}\n{sections}\n",
                root.display()
            );
            fs_err::write(&config, text).unwrap();
            let mut child = Command::new("docker-registry")
                .arg("serve")
                .arg(&config)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("docker-registry does not start (apt install docker-registry)");
            for _ in 0..500 {
                if TcpStream::connect(address).is_ok() {
                    return Self { child, host: address.to_string(), directory };
                }
                if child.try_wait().unwrap().is_some() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("docker-registry does not listen");
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Pushes `image` as `name` with skopeo.
    pub(crate) fn push(&self, image: &Image, name: &str, options: &[&str]) {
        // Where credentials are by default, nobody but root may be allowed to look: /run/containers, once root used podman.
        let no_credentials = self.directory.path().join("auth.json");
        fs_err::write(&no_credentials, "{}").unwrap();
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["copy", "--insecure-policy", "--quiet", "--dest-tls-verify=false", "--dest-authfile"]);
        skopeo.arg(no_credentials).args(options);
        skopeo.arg(format!("oci:{}:v1", image.directory.path().display()));
        run("skopeo", skopeo.arg(format!("docker://{}/{name}", self.host)));
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An OCI layout with one image of two layers.
pub(crate) struct Image {
    directory: tempfile::TempDir,
    pub(crate) manifest: Vec<u8>,
    /// Config and layers.
    pub(crate) blobs: Vec<Vec<u8>>,
}

impl Image {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let layers: Vec<Vec<u8>> =
            [("small", 10_usize), ("large", 3_000_000)].into_iter().map(|(n, s)| layer(n, s)).collect();
        let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        // skopeo compresses what is not.
        let layers = layers.iter().map(|layer| gzip(layer));
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let blobs: Vec<Vec<u8>> = std::iter::once(config.to_string().into_bytes()).chain(layers).collect();
        let describe = |media_type: &str, bytes: &[u8]| serde_json::json!({"mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len()});
        let layers: Vec<_> =
            blobs[1..].iter().map(|layer| describe("application/vnd.oci.image.layer.v1.tar+gzip", layer)).collect();
        let config = describe("application/vnd.oci.image.config.v1+json", &blobs[0]);
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest =
            serde_json::json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
        let manifest = manifest.to_string().into_bytes();
        let mut entry = describe(media_type, &manifest);
        entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "v1"});
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]});
        let places = directory.path().join("blobs/sha256");
        fs_err::create_dir_all(&places).unwrap();
        for blob in blobs.iter().chain([&manifest]) {
            fs_err::write(places.join(Digest::of(blob).hex()), blob).unwrap();
        }
        fs_err::write(directory.path().join("index.json"), index.to_string()).unwrap();
        fs_err::write(directory.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { directory, manifest, blobs }
    }
}

/// A tar of one file whose bytes do not repeat.
fn layer(name: &str, size: usize) -> Vec<u8> {
    let bytes: Vec<u8> = (0..size as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
    let mut header = tar::Header::new_ustar();
    header.set_size(size as u64);
    header.set_mode(0o644);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Keys and certificates in a directory of their own.
pub(crate) struct Pki(tempfile::TempDir);

impl Pki {
    /// An authority (`ca`), and signed by it a server (`server`, for 127.0.0.1) and a client (`client`); and `own`, a
    /// self-signed server that is its own authority, as Docker's documentation has it made.
    pub(crate) fn new() -> Self {
        let pki = Self(tempfile::tempdir().unwrap());
        // No extension but those that are asked for.
        fs_err::write(pki.path("openssl.cnf"), "[req]\ndistinguished_name = dn\n[dn]\n").unwrap();
        pki.certificate("ca", &["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign"], None);
        pki.certificate("server", &["subjectAltName=IP:127.0.0.1"], Some("ca"));
        pki.certificate("client", &["extendedKeyUsage=clientAuth"], Some("ca"));
        pki.certificate("own", &["basicConstraints=critical,CA:TRUE", "subjectAltName=IP:127.0.0.1"], None);
        pki
    }

    /// `NAME.pem` and `NAME.key`, signed by itself or by `authority`.
    fn certificate(&self, name: &str, extensions: &[&str], authority: Option<&str>) {
        let mut openssl = Command::new("openssl");
        openssl
            .args(["req", "-x509", "-nodes", "-newkey", "rsa:2048", "-days", "2", "-subj"])
            .arg(format!("/CN={name}"));
        openssl.arg("-config").arg(self.path("openssl.cnf"));
        openssl.arg("-keyout").arg(self.path(&format!("{name}.key")));
        openssl.arg("-out").arg(self.path(&format!("{name}.pem")));
        for extension in extensions {
            openssl.args(["-addext", extension]);
        }
        if let Some(authority) = authority {
            openssl.arg("-CA").arg(self.path(&format!("{authority}.pem")));
            openssl.arg("-CAkey").arg(self.path(&format!("{authority}.key")));
        }
        run("openssl", &mut openssl);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Copies files into `directory` under the names that certs.d wants.
    pub(crate) fn install(&self, directory: &Path, files: &[(&str, &str)]) {
        fs_err::create_dir_all(directory).unwrap();
        for (from, to) in files {
            fs_err::copy(self.path(from), directory.join(to)).unwrap();
        }
    }
}
