//! Rows B1, B2 and B8, and what is said of certificates (D5): curl and skopeo are the reference.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use prepull::registry::{Client, Options, Which, retry};
use prepull::source::MANIFEST_MAX;

use crate::command::{prepull, stderr};
use crate::registry::{blob, client, fetch, options};
use crate::support::fault_server::{FaultServer, Reply};
use crate::support::run;

/// Certificates of every kind, each with its key.
struct Shop(tempfile::TempDir);

impl Shop {
    fn new() -> Self {
        let shop = Self(tempfile::tempdir().unwrap());
        fs_err::write(shop.path("openssl.cnf"), "[req]\ndistinguished_name = dn\n[dn]\n").unwrap();
        shop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Makes `NAME.pem` and `NAME.key` with a key of `key` (arguments of openssl) and further arguments, `-addext` for those with `=`.
    fn make(&self, name: &str, key: &[&str], arguments: &[&str]) {
        let mut openssl = Command::new("openssl");
        openssl.current_dir(self.0.path());
        openssl
            .args(["req", "-x509", "-nodes", "-days", "2", "-config", "openssl.cnf", "-subj"])
            .arg(format!("/CN={name}"));
        openssl.args(key).arg("-keyout").arg(format!("{name}.key")).arg("-out").arg(format!("{name}.pem"));
        for argument in arguments {
            if argument.contains('=') && !argument.starts_with('/') {
                openssl.arg("-addext");
            }
            openssl.arg(argument);
        }
        run("openssl", &mut openssl);
    }

    /// Makes a self-signed certificate that is valid for `days`, which may be negative: of version 1 without extensions.
    fn make_by_request(&self, name: &str, days: &str, extensions: &[&str]) {
        let mut openssl = Command::new("openssl");
        openssl.current_dir(self.0.path());
        openssl.args(["req", "-new", "-nodes", "-config", "openssl.cnf", "-subj"]).arg(format!("/CN={name}"));
        openssl.args(P256).arg("-keyout").arg(format!("{name}.key")).args(["-out", "request"]);
        run("openssl", &mut openssl);
        let mut openssl = Command::new("openssl");
        openssl.current_dir(self.0.path()).args(["x509", "-req", "-days", days, "-in", "request", "-signkey"]);
        openssl.arg(format!("{name}.key")).arg("-out").arg(format!("{name}.pem"));
        if !extensions.is_empty() {
            fs_err::write(self.path("extensions"), extensions.join("\n")).unwrap();
            openssl.args(["-extfile", "extensions"]);
        }
        run("openssl", &mut openssl);
    }

    /// Makes `NAME.pem` of several others.
    fn join(&self, name: &str, parts: &[&str]) {
        let parts: Vec<_> =
            parts.iter().map(|part| fs_err::read_to_string(self.path(&format!("{part}.pem"))).unwrap()).collect();
        fs_err::write(self.path(&format!("{name}.pem")), parts.concat()).unwrap();
    }

    /// A directory for `--cert-dir` with these certificates as authorities.
    fn cert_dir(&self, names: &[&str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for name in names {
            fs_err::copy(self.path(&format!("{name}.pem")), directory.path().join(format!("{name}.crt"))).unwrap();
        }
        directory
    }
}

const P256: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
const SAN: &str = "subjectAltName=IP:127.0.0.1,DNS:localhost";
const CA: &str = "basicConstraints=critical,CA:TRUE";

/// `openssl s_server`, which answers every GET with a page.
struct Server(Child, String);

impl Server {
    fn start(shop: &Shop, certificate: &str, chain: Option<&str>) -> Self {
        let mut openssl = Command::new("openssl");
        openssl.current_dir(shop.0.path()).args(["s_server", "-www", "-accept", "127.0.0.1:0", "-cert"]);
        openssl.arg(format!("{certificate}.pem")).arg("-key").arg(format!("{certificate}.key"));
        // Weak keys are part of the test.
        openssl.args(["-cipher", "DEFAULT:@SECLEVEL=0"]);
        if let Some(chain) = chain {
            openssl.arg("-cert_chain").arg(format!("{chain}.pem"));
        }
        openssl.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = openssl.spawn().expect("openssl does not start (apt install openssl)");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines.find_map(|line| Some(line.unwrap().strip_prefix("ACCEPT ")?.to_owned())).unwrap();
        std::thread::spawn(move || lines.for_each(drop));
        Self(child, address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What prepull says of the server's certificate when `home` and the system's store trust what they do; `None` when it takes it.
fn refusal(host: &str, cert_dir: &Path) -> Option<String> {
    let options = Options {
        tls_verify: true,
        cert_dir: Some(cert_dir.to_owned()),
        retry: retry::Policy { times: 0, delay: None, ..Default::default() },
        ..options()
    };
    match Client::new(host, "app", &options).unwrap().manifest(Which::Tag("v1"), MANIFEST_MAX) {
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    }
}

#[test]
fn b01_certificates_in_the_system_s_store_are_taken_as_curl_and_skopeo_take_them() {
    let shop = Shop::new();
    shop.make("own", P256, &[CA, SAN]);
    shop.make("leaf", P256, &["basicConstraints=CA:FALSE", SAN]);
    shop.make("plain", P256, &[SAN]);
    shop.make_by_request("expired", "-1", &[CA, SAN]);
    shop.make("expired-child", P256, &[SAN, "-CA", "expired.pem", "-CAkey", "expired.key"]);
    shop.make("other-host", P256, &[CA, "subjectAltName=DNS:other.test"]);
    shop.make("for-clients", P256, &[CA, SAN, "extendedKeyUsage=clientAuth"]);
    shop.make("for-servers", P256, &[CA, SAN, "extendedKeyUsage=serverAuth", "keyUsage=digitalSignature,keyCertSign"]);
    shop.make("unknown-extension", P256, &["basicConstraints=CA:FALSE", SAN, "1.2.3.4=critical,DER:0500"]);
    shop.make("root", P256, &[CA]);
    shop.make(
        "middle",
        P256,
        &["basicConstraints=critical,CA:TRUE,pathlen:0", "-CA", "root.pem", "-CAkey", "root.key"],
    );
    // An authority that serves itself, issued by the root, or by one below it.
    shop.make("issued", P256, &[CA, SAN, "-CA", "root.pem", "-CAkey", "root.key"]);
    shop.make("below", P256, &[CA, SAN, "-CA", "middle.pem", "-CAkey", "middle.key"]);
    // A plain one, issued by one that also serves itself.
    shop.make("child", P256, &[SAN, "-CA", "own.pem", "-CAkey", "own.key"]);
    shop.make("leaf-child", P256, &[SAN, "-CA", "leaf.pem", "-CAkey", "leaf.key"]);
    shop.make("plain-child", P256, &[SAN, "-CA", "plain.pem", "-CAkey", "plain.key"]);
    shop.make("crl-only", P256, &[CA, "keyUsage=cRLSign"]);
    shop.make("crl-child", P256, &[SAN, "-CA", "crl-only.pem", "-CAkey", "crl-only.key"]);
    shop.make_by_request("old", "2", &[]);
    shop.make("old-child", P256, &[SAN, "-CA", "old.pem", "-CAkey", "old.key"]);
    let home = tempfile::tempdir().unwrap();
    for (server, chain, trusted, expected) in [
        ("own", None, "own", None),
        ("leaf", None, "leaf", None),
        ("plain", None, "plain", None),
        ("for-servers", None, "for-servers", None),
        ("unknown-extension", None, "unknown-extension", Some("has a critical extension that is not known")),
        ("issued", None, "root", None),
        ("below", Some("middle"), "root", None),
        ("child", Some("own"), "own", None),
        ("old-child", None, "old", None),
        ("own", None, "root", Some("is self-signed, and not trusted here")),
        ("issued", None, "own", Some("is signed by an unknown authority")),
        ("below", None, "root", Some("is signed by an unknown authority")),
        ("expired", None, "expired", Some("has expired")),
        ("expired-child", None, "expired", Some("has expired")),
        ("other-host", None, "other-host", Some("is not valid for that name, but for other.test")),
        ("for-clients", None, "for-clients", Some("is not meant for servers")),
        ("leaf-child", None, "leaf", Some("is signed by an unknown authority")),
        ("plain-child", None, "plain", Some("is signed by an unknown authority")),
        ("crl-child", None, "crl-only", Some("is signed by an unknown authority")),
        ("old", None, "old", Some("has no subject alternative names")),
    ] {
        let running = Server::start(&shop, server, chain);
        let trust = shop.path(&format!("{trusted}.pem"));
        let ours = {
            let mut command = prepull(home.path());
            command.args(["make", "--retry-times=0", "--tar"]).arg(home.path().join("x.tar"));
            command.env("SSL_CERT_FILE", &trust).env_remove("SSL_CERT_DIR");
            stderr(&command.arg(format!("{}/app:v1", running.1)).output().unwrap())
        };
        match expected {
            None => assert!(!ours.contains("the certificate of"), "{server} by {trusted}: {ours}"),
            Some(part) => {
                let certificate = format!("the certificate of {}", running.1);
                assert!(ours.contains(part) && ours.contains(&certificate), "{server} by {trusted}: {ours}");
                assert!(ours.contains("--tls-verify=false"), "{ours}");
            }
        }
        let skopeo = {
            let mut command = Command::new("skopeo");
            command.args(["inspect", "--no-creds"]).arg(format!("docker://{}/app:v1", running.1));
            command.env("SSL_CERT_FILE", &trust).env("SSL_CERT_DIR", "/nonexistent").env("HOME", home.path());
            stderr(&command.output().unwrap())
        };
        assert_eq!(skopeo.contains("x509:"), expected.is_some(), "{server} by {trusted}: {skopeo}");
        // curl takes the name of a version 1 certificate from its subject, and leaves more of the usages alone.
        if !["old", "leaf-child", "plain-child", "crl-child"].contains(&server) {
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--output", "/dev/null", "--max-time", "10", "--cacert"]).arg(&trust);
            let status = curl.arg(format!("https://{}/", running.1)).status().unwrap();
            assert_eq!(status.success(), expected.is_none(), "{server} by {trusted}: {status}");
        }
    }
}

#[test]
fn b02_only_authorities_in_cert_dir_may_sign() {
    let shop = Shop::new();
    shop.make("own", P256, &[CA, SAN]);
    shop.make("leaf", P256, &["basicConstraints=CA:FALSE", SAN]);
    shop.make("plain", P256, &[SAN]);
    shop.make("child", P256, &[SAN, "-CA", "own.pem", "-CAkey", "own.key"]);
    shop.make("ca-child", P256, &[CA, SAN, "-CA", "own.pem", "-CAkey", "own.key"]);
    shop.make("leaf-child", P256, &[SAN, "-CA", "leaf.pem", "-CAkey", "leaf.key"]);
    shop.make("leaf-ca-child", P256, &[CA, SAN, "-CA", "leaf.pem", "-CAkey", "leaf.key"]);
    shop.make("plain-child", P256, &[SAN, "-CA", "plain.pem", "-CAkey", "plain.key"]);
    shop.make_by_request("old", "2", &[]);
    shop.make("old-child", P256, &[SAN, "-CA", "old.pem", "-CAkey", "old.key"]);
    shop.join("bundle", &["plain", "leaf", "own"]);
    for (server, trusted, is_taken) in [
        ("own", "own", true),
        ("child", "own", true),
        ("ca-child", "own", true),
        ("old-child", "old", true),
        ("leaf", "leaf", true),
        ("plain", "plain", true),
        ("plain", "bundle", true),
        ("child", "bundle", true),
        ("leaf-child", "leaf", false),
        ("leaf-ca-child", "leaf", false),
        ("plain-child", "plain", false),
        ("plain-child", "bundle", false),
        ("leaf", "plain", false),
    ] {
        let running = Server::start(&shop, server, None);
        let directory = shop.cert_dir(&[trusted]);
        let refused = refusal(&running.1, directory.path());
        assert_eq!(refused.is_none(), is_taken, "{server} by {trusted}: {refused:?}");
        if let Some(error) = refused {
            assert!(error.contains("--cert-dir DIR or /etc/containers/certs.d/HOST/ca.crt"), "{error}");
        }
    }
}

#[test]
fn b02_a_leaf_in_cert_dir_counts_for_the_registry_itself_only() {
    let shop = Shop::new();
    shop.make("leaf", P256, &["basicConstraints=CA:FALSE", SAN]);
    shop.make("own", P256, &[CA, SAN]);
    let bytes = blob(1000);
    for (name, is_followed) in [("leaf", false), ("own", true)] {
        let (certificate, key) = (shop.path(&format!("{name}.pem")), shop.path(&format!("{name}.key")));
        let content = bytes.clone();
        let store = FaultServer::start_tls_with(&certificate, &key, move |seen, _| Reply::blob(&content, seen));
        let directory = shop.cert_dir(&[name]);
        for (place, follows) in [("127.0.0.1", true), ("localhost", is_followed)] {
            let address = format!("https://{}/x", store.host().replace("127.0.0.1", place));
            let registry = FaultServer::start_tls_with(&certificate, &key, move |seen, _| match seen.path.as_str() {
                "/v2/" => Reply::new(200, ""),
                _ => Reply::new(307, "").header("Location", address.clone()),
            });
            let options = Options {
                tls_verify: true,
                cert_dir: Some(directory.path().to_owned()),
                retry: retry::Policy { times: 0, delay: None, ..Default::default() },
                ..options()
            };
            let fetched = fetch(&client(&registry, &options), &bytes);
            assert_eq!(fetched.is_ok(), follows, "{name} at {place}: {fetched:?}");
            if let Err(error) = fetched {
                assert!(error.contains("the certificate of localhost:") && error.contains("self-signed"), "{error}");
            }
        }
    }
}

#[test]
fn b08_elliptic_curves_and_hashes_that_skopeo_takes_are_taken() {
    let shop = Shop::new();
    let curve = |name: &'static str| ["-newkey", "ec", "-pkeyopt", name];
    let p384 = curve("ec_paramgen_curve:P-384");
    let p521 = curve("ec_paramgen_curve:P-521");
    shop.make("p256-sha512", P256, &[CA, SAN, "-sha512"]);
    shop.make("p384-sha512", &p384, &[CA, SAN, "-sha512"]);
    for hash in ["sha256", "sha384", "sha512"] {
        shop.make(&format!("p521-{hash}"), &p521, &[CA, SAN, &format!("-{hash}")]);
    }
    shop.make("ed25519", &["-newkey", "ed25519"], &[CA, SAN]);
    shop.make("rsa", &["-newkey", "rsa:2048"], &[CA, SAN, "-sha512"]);
    // Signed by each kind of authority.
    for authority in ["p256-sha512", "p384-sha512", "p521-sha512"] {
        for hash in ["sha256", "sha384", "sha512"] {
            let (pem, key) = (format!("{authority}.pem"), format!("{authority}.key"));
            let hash_option = format!("-{hash}");
            shop.make(&format!("{authority}-{hash}"), P256, &[SAN, "-CA", &pem, "-CAkey", &key, &hash_option]);
        }
    }
    let names = ["p256-sha512", "p384-sha512", "p521-sha256", "p521-sha384", "p521-sha512", "ed25519", "rsa"];
    let children = ["p256-sha512", "p384-sha512", "p521-sha512"]
        .into_iter()
        .flat_map(|authority| ["sha256", "sha384", "sha512"].map(|hash| (format!("{authority}-{hash}"), authority)));
    for (server, trusted) in names.into_iter().map(|name| (name.to_owned(), name)).chain(children) {
        let running = Server::start(&shop, &server, None);
        let directory = shop.cert_dir(&[trusted]);
        assert_eq!(refusal(&running.1, directory.path()), None, "{server}");
    }
    // The signature is really looked at: the same names, another key.
    shop.make("p521-other", &p521, &["-subj", "/CN=p521-sha512", CA, SAN, "-sha512"]);
    shop.make("forged", P256, &[SAN, "-CA", "p521-other.pem", "-CAkey", "p521-other.key", "-sha512"]);
    let running = Server::start(&shop, "forged", None);
    let error = refusal(&running.1, shop.cert_dir(&["p521-sha512"]).path()).unwrap();
    assert!(error.contains("has a wrong signature"), "{error}");
}

#[test]
fn b08_what_is_not_taken_is_named_in_one_sentence() {
    let shop = Shop::new();
    shop.make("unknown-extension", P256, &["basicConstraints=CA:FALSE", SAN, "1.2.3.4=critical,DER:0500"]);
    shop.make("root", P256, &[CA]);
    shop.make("sha1", P256, &[SAN, "-CA", "root.pem", "-CAkey", "root.key", "-sha1"]);
    shop.make("weak", &["-newkey", "rsa:1024"], &[CA, SAN]);
    shop.make("ed448", &["-newkey", "ed448"], &[CA, SAN]);
    for (server, trusted, expected) in [
        ("sha1", "root", "is signed with ECDSA with SHA-1, which is not supported"),
        ("weak", "weak", "has an RSA key of 1024 bits; at least 2048 are needed"),
        (
            "ed448",
            "ed448",
            "the server refuses the handshake: it needs TLS 1.2 or 1.3, and a certificate with a key of RSA",
        ),
    ] {
        let running = Server::start(&shop, server, None);
        let error = refusal(&running.1, shop.cert_dir(&[trusted]).path()).unwrap();
        assert!(error.contains(expected), "{server}: {error}");
        assert!(!error.contains('\n') && error.len() < 500, "{error}");
        // The hint is true.
        let insecure = Options {
            tls_verify: false,
            retry: retry::Policy { times: 0, delay: None, ..Default::default() },
            ..options()
        };
        let fetched = Client::new(&running.1, "app", &insecure).unwrap().manifest(Which::Tag("v1"), MANIFEST_MAX);
        assert!(fetched.is_ok(), "{server}: {fetched:?}");
    }
}
