use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prepull::config::ProxyVariables;
use prepull::digest::{Digest, VerifyReader};
use prepull::registry::{Client, Credentials, Error, Options, RedirectError, Which};
use prepull::source::registry::RegistrySource;
use prepull::source::{self, Descriptor, ImageSource as _, MANIFEST_MAX};

use crate::support;
use crate::support::docker_registry::Pki;
use crate::support::fault_server::{Fault, FaultServer, Reply, Seen};

/// A blob in which no two parts are alike.
pub(crate) fn blob(size: usize) -> Vec<u8> {
    (0..size as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

pub(crate) fn options() -> Options {
    support::options(Path::new("/nonexistent"))
}

pub(crate) fn with_creds() -> Options {
    Options { credentials: Some(Credentials::basic("user", "hunter2")), ..options() }
}

pub(crate) fn client(server: &FaultServer, options: &Options) -> Client {
    Client::new(&server.host(), "app", options).unwrap()
}

pub(crate) fn manifest(server: &FaultServer, options: &Options) -> Result<prepull::registry::Manifest, Error> {
    client(server, options).manifest(Which::Tag("v1"), MANIFEST_MAX)
}

/// Reads `blob` through to its end, verified.
pub(crate) fn fetch(client: &Client, blob: &[u8]) -> Result<(), String> {
    let (digest, size) = (Digest::of(blob), blob.len() as u64);
    let reader = client.blob(&digest, size).map_err(|error| error.to_string())?;
    let mut out = Vec::new();
    VerifyReader::new(reader, digest, size).read_to_end(&mut out).map_err(|error| error.to_string())?;
    assert!(out == blob);
    Ok(())
}

/// A registry that serves one blob through `reply`, which gets the request and how many came before.
fn blob_server(reply: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> FaultServer {
    FaultServer::start(move |seen, before| if seen.path == "/v2/" { Reply::new(200, "") } else { reply(seen, before) })
}

fn starts(server: &FaultServer) -> Vec<Option<usize>> {
    server.seen("/v2/app/blobs/").iter().map(Seen::range_start).collect()
}

#[test]
fn a_manifest_comes_with_its_type_and_was_asked_for_rightly() {
    let server = blob_server(|_, _| Reply::new(200, "{}").header("Content-Type", "application/x+json; charset=utf-8"));
    let found = manifest(&server, &options()).unwrap();
    assert_eq!((found.media_type.as_deref(), found.bytes.as_slice()), (Some("application/x+json"), &b"{}"[..]));
    let seen = &server.seen("/v2/app/manifests/v1")[0];
    let accept = seen.header("accept").unwrap();
    for wanted in ["oci.image.index.v1", "oci.image.manifest.v1", "manifest.list.v2", "distribution.manifest.v2"] {
        assert!(accept.contains(wanted), "{accept}");
    }
    assert!(!accept.contains("distribution.manifest.v1"), "{accept}");
    assert_eq!(seen.header("accept-encoding"), Some("identity"));
    assert!(seen.header("user-agent").unwrap().starts_with("prepull/"));
    assert_eq!(seen.header("authorization"), None);
}

#[test]
fn a_digest_reference_is_fetched_by_its_digest_and_instances_by_theirs() {
    let server = blob_server(|_, _| Reply::new(200, "{}"));
    let (digest, instance) = (Digest::of(b"a"), Digest::of(b"b"));
    let source = RegistrySource::new(&server.host(), "a/b", Some("v1"), Some(digest), vec![], &options()).unwrap();
    source.manifest(None).unwrap();
    source.manifest(Some(&instance)).unwrap();
    let paths: Vec<_> = server.seen("/v2/a/b/").into_iter().map(|seen| seen.path).collect();
    assert_eq!(paths, [format!("/v2/a/b/manifests/{digest}"), format!("/v2/a/b/manifests/{instance}")]);
}

#[test]
fn what_is_not_there_is_not_found_and_says_so() {
    let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest\u001b unknown"}]}"#;
    let server = blob_server(move |_, _| Reply::new(404, body));
    let source = RegistrySource::new(&server.host(), "app", Some("v1"), None, vec![], &options()).unwrap();
    let error = source.manifest(None).unwrap_err();
    assert!(matches!(error, source::Error::NotFound(_)), "{error:?}");
    let expected = format!("fetching manifest v1 of {}/app: not found (HTTP 404: manifest unknown)", server.host());
    assert_eq!(error.to_string(), expected);
    let layer = Descriptor { media_type: String::new(), digest: Digest::of(b""), size: 0 };
    assert!(matches!(source.blob(&layer).err().unwrap(), source::Error::NotFound(_)));
    assert_eq!(server.seen("/v2/app/").len(), 2, "no attempt is repeated");
}

#[test]
fn a_manifest_that_is_too_big_is_refused_without_being_read() {
    let announced = blob_server(|_, _| Reply::new(200, "").header("Content-Length", "99999999999"));
    let flood = blob_server(|_, _| {
        // Until the connection ends: no Content-Length that could warn.
        let chunk = [b"100000\r\n".to_vec(), vec![b' '; 0x100000], b"\r\n".to_vec()].concat();
        Reply::new(200, chunk.repeat(6)).header("Transfer-Encoding", "chunked")
    });
    for server in [announced, flood] {
        let error = manifest(&server, &options()).unwrap_err();
        assert!(matches!(error, Error::TooBig { limit: MANIFEST_MAX, .. }), "{error:?}");
    }
}

#[test]
fn passing_faults_are_repeated_and_lasting_ones_counted() {
    for (status, requests) in [(429, 4), (408, 4), (500, 4), (503, 4), (501, 1), (403, 1), (400, 1)] {
        let server = blob_server(move |_, _| Reply::new(status, ""));
        let error = manifest(&server, &options()).unwrap_err();
        assert_eq!(server.seen("/v2/app/manifests").len(), requests, "{status}: {error}");
        let text = error.to_string();
        assert!(text.contains(&format!("HTTP {status}")), "{text}");
        assert_eq!(text.contains("(4 attempts)"), requests == 4, "{text}");
    }
    for fault in [Fault::ResetAtOnce, Fault::ResetAfter(5), Fault::CutAfter(5), Fault::StallAfter(5)] {
        let server = blob_server(move |_, before| {
            Reply::new(200, "0123456789").fault(if before < 3 { fault } else { Fault::None })
        });
        assert_eq!(manifest(&server, &options()).unwrap().bytes, b"0123456789", "{fault:?}");
        assert_eq!(server.seen("/v2/app/manifests").len(), 4, "{fault:?}");
        let server = blob_server(move |_, _| Reply::new(200, "0123456789").fault(fault));
        let error = manifest(&server, &options()).unwrap_err().to_string();
        assert!(error.contains("(4 attempts)"), "{error}");
    }
}

#[test]
fn a_registry_that_wakes_up_late_is_waited_for() {
    let server = FaultServer::start(|seen, before| match (seen.path.as_str(), before) {
        ("/v2/", 0) => Reply::new(503, ""),
        ("/v2/", 1) => Reply::new(200, "").fault(Fault::ResetAtOnce),
        _ => Reply::new(200, "{}"),
    });
    manifest(&server, &options()).unwrap();
    let server = FaultServer::start(|_, _| Reply::new(503, ""));
    let error = manifest(&server, &options()).unwrap_err().to_string();
    assert!(error.starts_with("connecting to registry") && error.ends_with("(4 attempts)"), "{error}");
}

#[test]
fn retry_after_is_honoured() {
    let server = blob_server(|_, before| match before {
        0 => Reply::new(429, "").header("Retry-After", "1"),
        _ => Reply::new(200, "{}"),
    });
    let start = Instant::now();
    manifest(&server, &options()).unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn nobody_there_is_said_at_once() {
    let host = FaultServer::start(|_, _| Reply::new(200, "")).host();
    std::thread::sleep(Duration::from_millis(50));
    let options = Options { retry: prepull::registry::retry::Policy { times: 3, ..Default::default() }, ..options() };
    let start = Instant::now();
    let client = Client::new(&host, "app", &options).unwrap();
    let error = client.manifest(Which::Tag("v1"), MANIFEST_MAX).unwrap_err();
    assert!(matches!(error, Error::Transport { .. }) && error.to_string().contains("refused"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(1));
    let start = Instant::now();
    let client = Client::new("registry.invalid", "app", &options).unwrap();
    let error = client.manifest(Which::Tag("v1"), MANIFEST_MAX).unwrap_err().to_string();
    assert!(
        error.starts_with("connecting to registry registry.invalid over http")
            && error.contains("the name registry.invalid has no address"),
        "{error}"
    );
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    for bad in ["", "a/b", "user@host", "a b", "http://x"] {
        assert!(matches!(Client::new(bad, "app", &options), Err(Error::Host(_))), "{bad}");
    }
    for bad in ["", "a/b", "..", "v1?x", "v1#", &"a".repeat(129)] {
        assert!(matches!(client.manifest(Which::Tag(bad), 9), Err(Error::Tag(_))), "{bad}");
    }
    for bad in ["", "a//b", "../x", "A", "a?b", "a/..", "a#"] {
        assert!(matches!(Client::new("localhost", bad, &options), Err(Error::Repository(_))), "{bad}");
    }
}

#[test]
fn plain_http_is_only_spoken_when_allowed() {
    let server = blob_server(|_, _| Reply::new(200, "{}"));
    let strict = Options { tls_verify: true, ..options() };
    let error = manifest(&server, &strict).unwrap_err().to_string();
    assert!(error.contains("does not speak TLS") && error.contains("--tls-verify=false"), "{error}");
    assert!(server.seen("/").is_empty());
}

#[test]
fn a_broken_download_resumes_where_it_broke() {
    let bytes = blob(300_000);
    for fault in [Fault::ResetAfter(40_000), Fault::CutAfter(40_000), Fault::StallAfter(40_000)] {
        let content = bytes.clone();
        let server = blob_server(move |seen, _| Reply::blob(&content, seen).fault(fault));
        // Eight breaks, more than --retry-times: progress forgives.
        fetch(&client(&server, &options()), &bytes).unwrap();
        let starts = starts(&server);
        assert_eq!(starts.len(), 8, "{fault:?}");
        assert_eq!(starts[0], None);
        assert_eq!(starts[7], Some(280_000), "{fault:?}: {starts:?}");
    }
}

#[test]
fn a_download_without_progress_is_given_up() {
    let bytes = blob(100_000);
    let content = bytes.clone();
    let server = blob_server(move |seen, before| {
        Reply::blob(&content, seen).fault(Fault::CutAfter(if before == 0 { 10_000 } else { 0 }))
    });
    let error = fetch(&client(&server, &options()), &bytes).unwrap_err();
    assert_eq!(starts(&server).len(), 4, "{error}");
    let digest = Digest::of(&bytes);
    let expected = format!(
        "fetching blob {digest} of {}/app: the connection ended early after 10000 bytes (4 attempts)",
        server.host()
    );
    assert_eq!(error, expected);
}

#[test]
fn a_server_without_ranges_gets_its_first_bytes_skipped() {
    let bytes = blob(200_000);
    let content = bytes.clone();
    let server =
        blob_server(move |_, before| Reply::new(200, content.clone()).fault(Fault::CutAfter(50_000 * (before + 1))));
    fetch(&client(&server, &options()), &bytes).unwrap();
    assert_eq!(starts(&server).len(), 4);
}

#[test]
fn a_wrong_range_is_never_patched_in() {
    let bytes = blob(100_000);
    for range in ["bytes 0-99999/100000", "bytes 30001-99999/100000", "bytes 30000-29999/100000", "nonsense", ""] {
        let content = bytes.clone();
        let server = blob_server(move |seen, before| match (before, seen.range_start()) {
            (0, _) => Reply::new(200, content.clone()).fault(Fault::CutAfter(30_000)),
            (_, Some(start)) if range.is_empty() => Reply::new(416, &content[start..]),
            (_, Some(start)) => Reply::new(206, &content[start..]).header("Content-Range", range),
            (_, None) => Reply::new(200, content.clone()),
        });
        fetch(&client(&server, &options()), &bytes).unwrap();
        assert_eq!(starts(&server), [None, Some(30_000), None], "{range}");
    }
}

#[test]
fn wrong_bytes_and_wrong_sizes_are_seen_above() {
    let bytes = blob(1000);
    let server = blob_server(|_, _| Reply::new(200, blob(1001)));
    assert!(fetch(&client(&server, &options()), &bytes).unwrap_err().contains("longer than the 1000 bytes"));
    let server = blob_server(|_, _| Reply::new(200, vec![0; 1000]));
    assert!(fetch(&client(&server, &options()), &bytes).unwrap_err().contains("digest mismatch"));
}

#[test]
fn redirects_are_followed_but_not_in_circles() {
    let server = blob_server(|seen, _| match seen.path.as_str() {
        "/v2/app/manifests/v1" => Reply::new(307, "").header("Location", "../blobs/x?y"),
        "/v2/app/blobs/x?y" => Reply::new(302, "moved").header("Location", "/end"),
        _ => Reply::new(200, "{}"),
    });
    assert_eq!(manifest(&server, &options()).unwrap().bytes, b"{}");

    type Answer = fn(&Seen) -> Reply;
    type Check = fn(&Error) -> bool;
    let cases: [(Answer, Check); 4] = [
        (
            |seen| Reply::new(301, "").header("Location", seen.path.as_str()),
            |error| matches!(error, Error::Redirect { error: RedirectError::Loop, .. }),
        ),
        (
            |seen| Reply::new(302, "").header("Location", format!("{}x", seen.path)),
            |error| matches!(error, Error::Redirect { error: RedirectError::TooMany, .. }),
        ),
        (|_| Reply::new(302, ""), |error| matches!(error, Error::Redirect { error: RedirectError::Location, .. })),
        (
            |_| Reply::new(302, "").header("Location", "file:///etc/passwd"),
            |error| matches!(error, Error::Redirect { error: RedirectError::Location, .. }),
        ),
    ];
    for (reply, check) in cases {
        let server = blob_server(move |seen, _| reply(seen));
        let error = manifest(&server, &options()).unwrap_err();
        assert!(check(&error), "{error:?}");
        assert!(server.seen("/v2/app").len() <= 11, "{}", server.seen("/v2/app").len());
    }
}

/// A registry that wants Basic from `user` and sends blobs elsewhere.
pub(crate) fn redirecting(cdn: String) -> FaultServer {
    FaultServer::start(move |seen, before| {
        let unauthorized = || Reply::new(401, "").header("WWW-Authenticate", "Basic realm=x");
        match seen.header("authorization") {
            Some("Basic dXNlcjpodW50ZXIy") if seen.path.starts_with("/v2/app/blobs/") => {
                Reply::new(307, "").header("Location", format!("{cdn}{before}&X-Signature=geheim"))
            }
            Some("Basic dXNlcjpodW50ZXIy") => Reply::new(200, "{}"),
            _ => unauthorized(),
        }
    })
}

#[test]
fn credentials_do_not_follow_to_another_host_and_resuming_asks_the_registry_again() {
    let bytes = blob(100_000);
    let content = bytes.clone();
    // Each signed URL works once.
    let cdn = FaultServer::start(move |seen, before| match before {
        0 => Reply::blob(&content, seen).fault(Fault::CutAfter(30_000)),
        _ => Reply::new(403, "expired"),
    });
    let registry = redirecting(cdn.url("/blob?n="));
    fetch(&client(&registry, &with_creds()), &bytes).unwrap();
    let seen = cdn.seen("/blob");
    let starts: Vec<_> = seen.iter().map(Seen::range_start).collect();
    assert_eq!(starts, [None, Some(30_000), Some(60_000), Some(90_000)]);
    assert!(seen.iter().all(|seen| seen.header("authorization").is_none() && seen.header("cookie").is_none()));
    assert!(registry.seen("/v2/app/blobs").iter().all(|seen| seen.header("authorization").is_some()));
}

#[test]
fn an_error_of_another_host_shows_no_signature_and_gets_no_credentials() {
    let cdn = FaultServer::start(|_, _| Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"give me\""));
    let registry = redirecting(cdn.url("/blob?n="));
    let error = fetch(&client(&registry, &with_creds()), &blob(10)).unwrap_err();
    assert!(error.contains("HTTP 401") && !error.contains("geheim"), "{error}");
    assert!(cdn.seen("/").iter().all(|seen| seen.header("authorization").is_none()));
    let lost = redirecting("ftp://nowhere/?".to_owned());
    let error = fetch(&client(&lost, &with_creds()), &blob(10)).unwrap_err();
    assert!(error.contains("redirect without a usable Location") && !error.contains("geheim"), "{error}");
}

#[test]
fn a_named_registry_is_reached_through_the_proxy_and_loopback_is_not() {
    // A proxy that tunnels to nowhere: it is enough that it is asked.
    let proxy = FaultServer::start(|_, _| Reply::new(502, ""));
    let mut options = options();
    let url = Some(proxy.url("").replace("http://", "http://user:geheim@"));
    options.environment.proxy = ProxyVariables { https: url.clone(), http: url, none: Some("direct.invalid".into()) };
    let error = Client::new("registry.invalid", "app", &options).unwrap().manifest(Which::Tag("v1"), 9).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("geheim"), "{error:?}");
    assert!(proxy.seen("").iter().any(|seen| seen.path.contains("registry.invalid")), "{:?}", proxy.seen(""));
    let asked = proxy.seen("").len();
    Client::new("direct.invalid", "app", &options).unwrap().manifest(Which::Tag("v1"), 9).unwrap_err();
    let server = blob_server(|_, _| Reply::new(200, "{}"));
    manifest(&server, &options).unwrap();
    assert_eq!(proxy.seen("").len(), asked);
}

/// A CONNECT proxy that leads everywhere to `target`, and the request heads that it got.
fn tunnel(target: String) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, heads) = (listener.local_addr().unwrap().to_string(), Arc::new(Mutex::new(Vec::new())));
    let log = Arc::clone(&heads);
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                (&client).read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            log.lock().unwrap().push(String::from_utf8(head).unwrap());
            let server = TcpStream::connect(&target).unwrap();
            (&client).write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            let (client_too, server_too) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut &client, &mut &server));
            std::thread::spawn(move || std::io::copy(&mut &server_too, &mut &client_too));
        }
    });
    (address, heads)
}

#[test]
fn docker_hub_is_reached_at_its_api_through_a_proxy_with_tls_inside() {
    let bytes = blob(500_000);
    let content = bytes.clone();
    let server = FaultServer::start_tls(&Pki::new(), move |seen, _| match seen.path.as_str() {
        "/v2/" => Reply::new(200, ""),
        _ => Reply::blob(&content, seen),
    });
    let (proxy, heads) = tunnel(server.host());
    let mut options = options();
    options.environment.proxy.https = Some(format!("user:geheim@{proxy}"));
    fetch(&Client::new("docker.io", "library/app", &options).unwrap(), &bytes).unwrap();
    let heads = heads.lock().unwrap();
    assert!(heads[0].starts_with("CONNECT registry-1.docker.io:443 "), "{heads:?}");
    assert!(heads[0].to_lowercase().contains("proxy-authorization: basic"), "{heads:?}");
    assert_eq!(server.seen("/v2/library/app/blobs")[0].header("host"), Some("registry-1.docker.io"));
}

#[test]
fn an_image_named_by_a_missing_auth_file_is_not_fetched() {
    let server = blob_server(|_, _| Reply::new(200, "{}"));
    let options = Options { auth_file: Some("/nonexistent/auth.json".into()), ..options() };
    let error = Client::new(&server.host(), "app", &options).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/auth.json"), "{error}");
}

/// Options that verify certificates, and trust those of `pki`.
fn strict(pki: &Pki, home: &Path) -> Options {
    pki.install(home, &[("ca.pem", "ca.crt")]);
    Options { tls_verify: true, cert_dir: Some(home.to_owned()), ..with_creds() }
}

#[test]
fn nothing_secret_or_unpinned_goes_from_https_to_plain_http() {
    let (pki, home) = (Pki::new(), tempfile::tempdir().unwrap());
    let bytes = blob(1000);
    let content = bytes.clone();
    let plain = FaultServer::start(move |seen, _| Reply::blob(&content, seen));
    let place = plain.url("/x");
    let registry = FaultServer::start_tls(&pki, move |seen, _| match seen.header("authorization") {
        _ if seen.path == "/v2/" => Reply::new(401, "").header("WWW-Authenticate", "Basic realm=x"),
        Some(_) => Reply::new(307, "").header("Location", place.clone()),
        None => Reply::new(401, ""),
    });
    let strict = strict(&pki, home.path());
    let error = manifest(&registry, &strict).unwrap_err();
    assert!(matches!(error, Error::Redirect { error: RedirectError::Downgrade, .. }), "{error:?}");
    assert!(plain.seen("/").is_empty());
    // A blob's digest protects it, but the credentials stay behind.
    fetch(&client(&registry, &strict), &bytes).unwrap();
    assert_eq!(plain.seen("/x")[0].header("authorization"), None);

    let realm = plain.url("/token");
    let registry = FaultServer::start_tls(&pki, move |_, _| {
        Reply::new(401, "").header("WWW-Authenticate", format!("Bearer realm=\"{realm}\""))
    });
    let error = manifest(&registry, &strict).unwrap_err();
    assert!(matches!(error, Error::Token { .. }) && error.to_string().contains("plain http"), "{error}");
    assert!(plain.seen("/token").is_empty());
}

#[test]
fn a_download_over_tls_resumes_too() {
    let (pki, home) = (Pki::new(), tempfile::tempdir().unwrap());
    let bytes = blob(100_000);
    for fault in [Fault::ResetAfter(40_000), Fault::CutAfter(40_000), Fault::StallAfter(40_000)] {
        let content = bytes.clone();
        let server = FaultServer::start_tls(&pki, move |seen, _| match seen.path.as_str() {
            "/v2/" => Reply::new(200, ""),
            _ => Reply::blob(&content, seen).fault(fault),
        });
        let result = fetch(&client(&server, &strict(&pki, home.path())), &bytes);
        assert_eq!(result, Ok(()), "{fault:?}: {:?}", starts(&server));
        assert_eq!(starts(&server), [None, Some(40_000), Some(80_000)], "{fault:?}");
    }
}

#[test]
fn a_connection_that_was_closed_in_the_meantime_costs_no_attempt() {
    let server = FaultServer::start(|_, _| Reply::new(200, "{}").fault(Fault::CloseAfter));
    let options = Options { retry: prepull::registry::retry::Policy { times: 0, ..Default::default() }, ..options() };
    for _ in 0..5 {
        assert_eq!(manifest(&server, &options).unwrap().bytes, b"{}");
        std::thread::sleep(Duration::from_millis(30));
    }
}

#[test]
fn connections_are_used_again() {
    let bytes = blob(1000);
    let content = bytes.clone();
    let server = blob_server(move |seen, _| Reply::blob(&content, seen));
    let client = client(&server, &options());
    for _ in 0..10 {
        fetch(&client, &bytes).unwrap();
    }
    // One for the failed attempt at TLS, one for all else.
    assert!(server.connections() <= 2, "{}", server.connections());
}
