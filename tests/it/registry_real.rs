use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use prepull::digest::{Digest, VerifyReader};
use prepull::registry::{Credentials, Error, Limits, Options};
use prepull::source::registry::RegistrySource;
use prepull::source::{self, Descriptor, ImageSource as _};

use crate::support::docker_registry::{DockerRegistry, Image, Pki};
use crate::support::fault_server::{FaultServer, Reply};
use crate::support::{self, run};

fn source(registry: &DockerRegistry, repository: &str, tag: &str, options: &Options) -> RegistrySource {
    RegistrySource::new(registry.host(), repository, Some(tag), None, Vec::new(), options).unwrap()
}

/// Gets the whole image, blobs in parallel, verified.
fn pull(registry: &DockerRegistry, image: &Image, repository: &str, options: &Options) -> Result<(), source::Error> {
    let source = source(registry, repository, "v1", options);
    let manifest = source.manifest(None)?;
    assert_eq!(manifest.media_type.as_deref(), Some("application/vnd.oci.image.manifest.v1+json"));
    assert!(manifest.bytes == image.manifest);
    let digest = manifest.digest();
    assert!(source.manifest(Some(&digest))?.bytes == image.manifest);
    std::thread::scope(|scope| {
        for blob in &image.blobs {
            scope.spawn(|| {
                let (digest, size) = (Digest::of(blob), blob.len() as u64);
                let reader = source.blob(&Descriptor { media_type: String::new(), digest, size }).unwrap();
                let mut out = Vec::new();
                VerifyReader::new(reader, digest, size).read_to_end(&mut out).unwrap();
            });
        }
    });
    Ok(())
}

fn options(home: &Path) -> Options {
    Options { limits: Limits::default(), ..support::options(home) }
}

fn unauthorized(result: Result<(), source::Error>) -> String {
    match result {
        Err(source::Error::Registry(error)) if matches!(*error, Error::Unauthorized { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn anonymous_over_plain_http() {
    let (registry, image, home) = (DockerRegistry::start("", ""), Image::new(), tempfile::tempdir().unwrap());
    registry.push(&image, "some/app:v1", &[]);
    let options = options(home.path());
    pull(&registry, &image, "some/app", &options).unwrap();
    for (repository, tag) in [("some/app", "v2"), ("no/app", "v1")] {
        let error = source(&registry, repository, tag, &options).manifest(None).unwrap_err();
        let expected = format!(
            "fetching manifest {tag} of {}/{repository}: not found (HTTP 404: manifest unknown)",
            registry.host()
        );
        assert!(matches!(&error, source::Error::NotFound(text) if *text == expected), "{error:?}");
    }
    let missing = Descriptor { media_type: String::new(), digest: Digest::of(b"missing"), size: 7 };
    let error = source(&registry, "some/app", "v1", &options).blob(&missing).err().unwrap();
    assert!(matches!(error, source::Error::NotFound(_)), "{error:?}");
}

#[test]
fn basic_with_htpasswd() {
    let (image, home) = (Image::new(), tempfile::tempdir().unwrap());
    let table = home.path().join("htpasswd");
    let output = run("apache2-utils", Command::new("htpasswd").args(["-Bbn", "user", "hunter2"]));
    fs_err::write(&table, output.stdout).unwrap();
    let auth = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}", table.display());
    let registry = DockerRegistry::start("", &auth);
    registry.push(&image, "org/app:v1", &["--dest-creds", "user:hunter2"]);

    let anonymous = options(home.path());
    let text = unauthorized(pull(&registry, &image, "org/app", &anonymous));
    assert!(text.contains(&format!("podman login {}", registry.host())), "{text}");

    let given = Options { credentials: Some(Credentials::parse("user:hunter2").unwrap()), ..options(home.path()) };
    pull(&registry, &image, "org/app", &given).unwrap();
    let wrong = Options { credentials: Some(Credentials::basic("user", "geheim")), ..options(home.path()) };
    let text = unauthorized(pull(&registry, &image, "org/app", &wrong));
    assert!(!text.contains("geheim"), "{text}");

    // From auth.json, for one namespace only.
    let pair = base64::engine::general_purpose::STANDARD.encode("user:hunter2");
    let file = serde_json::json!({"auths": {format!("{}/org", registry.host()): {"auth": pair}}});
    let path = home.path().join(".config/containers/auth.json");
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    fs_err::write(&path, file.to_string()).unwrap();
    pull(&registry, &image, "org/app", &options(home.path())).unwrap();
    unauthorized(pull(&registry, &image, "other/app", &options(home.path())));
}

#[test]
fn tls_with_a_private_authority() {
    let (pki, image, home) = (Pki::new(), Image::new(), tempfile::tempdir().unwrap());
    let http = format!(
        "  tls: {{certificate: {}, key: {}}}",
        pki.path("server.pem").display(),
        pki.path("server.key").display()
    );
    let registry = DockerRegistry::start(&http, "");
    registry.push(&image, "app:v1", &[]);

    let strict = Options { tls_verify: true, ..options(home.path()) };
    let error = pull(&registry, &image, "app", &strict).unwrap_err().to_string();
    assert!(error.contains("unknown authority") && error.contains("certs.d"), "{error}");
    pull(&registry, &image, "app", &options(home.path())).unwrap();

    let named = home.path().join("named");
    pki.install(&named, &[("ca.pem", "ca.crt")]);
    pull(&registry, &image, "app", &Options { cert_dir: Some(named), ..strict }).unwrap();

    pki.install(&home.path().join(".config/containers/certs.d").join(registry.host()), &[("ca.pem", "x.crt")]);
    pull(&registry, &image, "app", &Options { tls_verify: true, ..options(home.path()) }).unwrap();
}

/// Says to [`ssl_cert_file_replaces_the_system_s_authorities`], run again as a process of its own, which registry to ask.
const HOST_VARIABLE: &str = "PREPULL_TEST_REGISTRY";

#[test]
fn ssl_cert_file_replaces_the_system_s_authorities() {
    if let Ok(host) = std::env::var(HOST_VARIABLE) {
        let strict = Options { tls_verify: true, ..options(Path::new("/nonexistent")) };
        let source = RegistrySource::new(&host, "app", Some("v1"), None, Vec::new(), &strict).unwrap();
        // Nobody pushed it; who gets to hear that has been through TLS.
        assert!(matches!(source.manifest(None), Err(source::Error::NotFound(_))));
        return;
    }
    let pki = Pki::new();
    let http = format!(
        "  tls: {{certificate: {}, key: {}}}",
        pki.path("server.pem").display(),
        pki.path("server.key").display()
    );
    let registry = DockerRegistry::start(&http, "");
    let again = |authority: &str| {
        let mut test = Command::new(std::env::current_exe().unwrap());
        test.args(["--exact", "registry_real::ssl_cert_file_replaces_the_system_s_authorities"]);
        test.env(HOST_VARIABLE, registry.host()).env("SSL_CERT_FILE", pki.path(authority));
        test.output().unwrap().status.success()
    };
    assert!(again("ca.pem"));
    assert!(!again("own.pem"));
}

#[test]
fn tls_with_a_self_signed_certificate_that_is_its_own_authority() {
    let (pki, image, home) = (Pki::new(), Image::new(), tempfile::tempdir().unwrap());
    let http =
        format!("  tls: {{certificate: {}, key: {}}}", pki.path("own.pem").display(), pki.path("own.key").display());
    let registry = DockerRegistry::start(&http, "");
    registry.push(&image, "app:v1", &[]);
    let certificates = home.path().join("certificates");
    pki.install(&certificates, &[("own.pem", "ca.crt")]);
    let strict = Options { tls_verify: true, cert_dir: Some(certificates), ..options(home.path()) };
    pull(&registry, &image, "app", &strict).unwrap();
    // The certificate is for 127.0.0.1, whoever trusts it.
    let host = registry.host().replace("127.0.0.1", "localhost");
    let source = RegistrySource::new(&host, "app", Some("v1"), None, Vec::new(), &strict).unwrap();
    let error = source.manifest(None).unwrap_err().to_string();
    assert!(error.contains("is not valid for that name, but for"), "{error}");
}

#[test]
fn tls_with_a_client_certificate() {
    let (pki, image, home) = (Pki::new(), Image::new(), tempfile::tempdir().unwrap());
    let http = format!(
        "  tls: {{certificate: {}, key: {}, clientcas: [{}]}}",
        pki.path("server.pem").display(),
        pki.path("server.key").display(),
        pki.path("ca.pem").display()
    );
    let registry = DockerRegistry::start(&http, "");
    let certificates = home.path().join("certificates");
    pki.install(&certificates, &[("ca.pem", "ca.crt"), ("client.pem", "client.cert"), ("client.key", "client.key")]);
    registry.push(&image, "app:v1", &["--dest-cert-dir", certificates.to_str().unwrap()]);
    let with =
        |directory: &Path| Options { tls_verify: true, cert_dir: Some(directory.to_owned()), ..options(home.path()) };
    pull(&registry, &image, "app", &with(&certificates)).unwrap();

    let new = |directory: &Path| {
        RegistrySource::new(registry.host(), "app", Some("v1"), None, Vec::new(), &with(directory))
            .map(|source| source.manifest(None).unwrap_err().to_string())
            .map_err(|error| error.to_string())
    };
    let without = home.path().join("without");
    pki.install(&without, &[("ca.pem", "ca.crt")]);
    assert!(new(&without).unwrap().contains("connecting to registry"));
    for (files, expected) in [
        (&[("client.pem", "client.cert")][..], "client.key is missing"),
        (&[("client.key", "client.key")], "client.cert is missing"),
        (&[("client.pem", "client.cert"), ("server.key", "client.key")], "not a usable private key"),
        (&[("client.key", "ca.crt")], "no PEM certificate"),
        (&[("openssl.cnf", "client.cert"), ("client.key", "client.key")], "no PEM certificate"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        pki.install(directory.path(), files);
        let error = new(directory.path()).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    assert!(new(Path::new("/nonexistent/certs")).unwrap_err().contains("/nonexistent/certs"));
}

/// A token server as docker-registry wants it: JSON web tokens, signed with the key whose certificate it trusts.
fn token_server(pki: &Pki) -> FaultServer {
    let key = pki.path("ca.key");
    let pem = fs_err::read_to_string(pki.path("ca.pem")).unwrap();
    let der: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    FaultServer::start(move |seen, _| {
        // user:hunter2 may push, anybody may pull public/app.
        let is_user = seen.header("authorization") == Some("Basic dXNlcjpodW50ZXIy");
        let access = match seen.path.split("scope=repository%3A").nth(1) {
            Some(scope) if is_user || scope.starts_with("public%2Fapp") => {
                let name = scope.split("%3A").next().unwrap().replace("%2F", "/");
                let actions: &[&str] = if is_user { &["pull", "push"] } else { &["pull"] };
                serde_json::json!([{"type": "repository", "name": name, "actions": actions}])
            }
            _ => serde_json::json!([]),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let encode = |value: serde_json::Value| encode_url(value.to_string().as_bytes());
        let header = encode(serde_json::json!({"typ": "JWT", "alg": "RS256", "x5c": [der]}));
        let claims = encode(serde_json::json!({
            "iss": "tests", "sub": "", "aud": "test service", "jti": "1", "access": access,
            "exp": now + 300, "nbf": now - 10, "iat": now - 10,
        }));
        let signature = sign(&key, format!("{header}.{claims}").as_bytes());
        Reply::new(200, format!(r#"{{"token":"{header}.{claims}.{}"}}"#, encode_url(&signature)))
    })
}

fn encode_url(bytes: &[u8]) -> String {
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

fn sign(key: &Path, bytes: &[u8]) -> Vec<u8> {
    let mut openssl = Command::new("openssl");
    openssl.args(["dgst", "-sha256", "-sign"]).arg(key).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = openssl.spawn().expect("openssl does not start (apt install openssl)");
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    child.wait_with_output().unwrap().stdout
}

#[test]
fn tokens_of_a_token_server() {
    let (pki, image, home) = (Pki::new(), Image::new(), tempfile::tempdir().unwrap());
    let tokens = token_server(&pki);
    let auth = format!(
        "auth: {{token: {{realm: '{}', service: test service, issuer: tests, rootcertbundle: {}}}}}",
        tokens.url("/token"),
        pki.path("ca.pem").display()
    );
    let registry = DockerRegistry::start("", &auth);
    for name in ["public/app:v1", "private/app:v1"] {
        registry.push(&image, name, &["--dest-creds", "user:hunter2"]);
    }
    let before = tokens.seen("/token").len();
    pull(&registry, &image, "public/app", &options(home.path())).unwrap();
    assert_eq!(tokens.seen("/token").len(), before + 1);
    unauthorized(pull(&registry, &image, "private/app", &options(home.path())));
    let given = Options { credentials: Some(Credentials::basic("user", "hunter2")), ..options(home.path()) };
    pull(&registry, &image, "private/app", &given).unwrap();
}
