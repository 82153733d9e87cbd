//! Rows B1 to B5, B7, B8, B10 and B13: registries, TLS and proxies.

use std::net::TcpListener;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use prepull::config::ProxyVariables;
use prepull::registry::{Client, Credentials, Error, Limits, MinRate, Options, RedirectError, Which, retry};
use prepull::source::MANIFEST_MAX;

use crate::command::{prepull, stderr};
use crate::registry::{blob, client, fetch, manifest, options, with_creds};
use crate::support::docker_registry::Pki;
use crate::support::fault_server::{Fault, FaultServer, Reply, Seen};

#[test]
fn b04_a_content_encoding_label_does_not_matter_when_the_digest_is_right() {
    let bytes = blob(10_000);
    for encoding in
        ["aws-chunked", "utf-8", "", "identity", "x-gzip", "gzip", "gzip, aws-chunked", "UTF-8,identity", "ä"]
    {
        let content = bytes.clone();
        let server = FaultServer::start(move |seen, _| {
            let reply =
                if seen.path.contains("manifests") { Reply::new(200, "{}") } else { Reply::blob(&content, seen) };
            reply.header("Content-Encoding", encoding)
        });
        fetch(&client(&server, &options()), &bytes).unwrap();
        assert_eq!(manifest(&server, &options()).unwrap().bytes, b"{}", "{encoding}");
        // Wrong bytes stay wrong, whatever their label.
        let error = fetch(&client(&server, &options()), &blob(9_999)).unwrap_err();
        assert!(error.contains("9999 bytes"), "{error}");
    }
}

#[test]
fn b04_what_a_proxy_compresses_unasked_is_decompressed() {
    let gzip = crate::made::gzip;
    // Long enough for a connection that breaks in the middle.
    let bytes = blob(300_000);
    for encoding in ["gzip", "GZip", "x-gzip"] {
        let content = bytes.clone();
        let server = FaultServer::start(move |seen, number| {
            let is_manifest = seen.path.contains("manifests");
            let body = if is_manifest { gzip(b"{}") } else { gzip(&content) };
            let reply = Reply::new(200, body).header("Content-Encoding", encoding);
            // The first attempt at the blob breaks off: the second one is not asked for a range of the compressed bytes.
            if is_manifest || number > 2 { reply } else { reply.fault(Fault::CutAfter(50_000)) }
        });
        fetch(&client(&server, &options()), &bytes).unwrap_or_else(|error| panic!("{encoding}: {error}"));
        assert_eq!(manifest(&server, &options()).unwrap().bytes, b"{}", "{encoding}");
    }
}

#[test]
fn b05_locations_that_go_follows_are_followed() {
    let bytes = blob(1000);
    for (location, path) in [
        ("/x/a\"b<c>d`e|f{g}h", "/x/a%22b%3Cc%3Ed%60e%7Cf%7Bg%7Dh"),
        ("/x/ä €", "/x/%C3%A4%20%E2%82%AC"),
        ("../../y", "/v2/y"),
        ("/x/q?a=\"b\"&c=<ä>#fragment", "/x/q?a=%22b%22&c=%3C%C3%A4%3E"),
        ("/x/r?next=https://h/p?q", "/x/r?next=https://h/p?q"),
        ("/x/a%2Fb", "/x/a%2Fb"),
    ] {
        let content = bytes.clone();
        let server = FaultServer::start(move |seen, _| match seen.path.as_str() {
            found if found == path => Reply::blob(&content, seen),
            blob if blob.starts_with("/v2/app/blobs/") => Reply::new(307, "").header("Location", location),
            _ => Reply::new(404, ""),
        });
        fetch(&client(&server, &options()), &bytes).unwrap_or_else(|error| panic!("{location}: {error}"));
        assert_eq!(server.seen(path).len(), 1, "{location}");
    }
}

#[test]
fn b05_user_and_password_in_a_location_go_to_that_target_only() {
    let bytes = blob(1000);
    let content = bytes.clone();
    let last = FaultServer::start(move |seen, _| Reply::blob(&content, seen));
    let place = last.url("/last");
    let middle = FaultServer::start(move |_, _| Reply::new(302, "").header("Location", place.clone()));
    let place = middle.url("/middle").replace("http://", "http://us%65r:word@");
    let registry = FaultServer::start(move |seen, _| match seen.header("authorization") {
        None => Reply::new(401, "").header("WWW-Authenticate", "Basic realm=x"),
        Some(_) if seen.path == "/v2/" => Reply::new(200, ""),
        Some(_) => Reply::new(307, "").header("Location", place.clone()),
    });
    fetch(&client(&registry, &with_creds()), &bytes).unwrap();
    let authorizations = |server: &FaultServer, path: &str| -> Vec<Option<String>> {
        server.seen(path).iter().map(|seen| seen.header("authorization").map(str::to_owned)).collect()
    };
    assert_eq!(authorizations(&middle, "/middle"), [Some("Basic dXNlcjp3b3Jk".to_owned())]);
    assert_eq!(authorizations(&last, "/last"), [None]);
}

#[test]
fn b07_auths_entries_with_username_and_password_are_used() {
    let home = tempfile::tempdir().unwrap();
    let registry = FaultServer::start(|seen: &Seen, _| match seen.header("authorization") {
        Some("Basic dXNlcjpodW50ZXIy") => Reply::new(200, "{}"),
        _ => Reply::new(401, "").header("WWW-Authenticate", "Basic realm=x"),
    });
    let file = home.path().join("config.json");
    let entry = serde_json::json!({"username": "user", "password": "hunter2", "email": "a@b"});
    for key in [registry.host(), format!("{}/app", registry.host()), format!("https://{}/v1/", registry.host())] {
        fs_err::write(&file, serde_json::json!({"auths": {key: entry}}).to_string()).unwrap();
        let options = Options { auth_file: Some(file.clone()), ..options() };
        assert_eq!(manifest(&registry, &options).unwrap().bytes, b"{}");
    }
}

#[test]
fn b07_keys_of_credentials_files_and_token_answers_are_read_in_any_case() {
    let home = tempfile::tempdir().unwrap();
    let registry = FaultServer::start(|seen: &Seen, _| {
        let (is_user, is_bearer) = match seen.header("authorization") {
            Some("Basic dXNlcjpodW50ZXIy") => (true, false),
            Some("Bearer good") => (false, true),
            _ => (false, false),
        };
        match seen.path.starts_with("/token") {
            true if is_user => Reply::new(200, r#"{"Token":"good","EXPIRES_IN":300}"#),
            false if is_bearer => Reply::new(200, "{}"),
            _ => {
                let host = seen.header("host").unwrap_or_default();
                Reply::new(401, "").header("WWW-Authenticate", format!("Bearer realm=\"http://{host}/token\""))
            }
        }
    });
    let host = registry.host();
    let file = home.path().join("config.json");
    let read = |text: &str| {
        fs_err::write(&file, text).unwrap();
        let options = Options { auth_file: Some(file.clone()), ..options() };
        Client::new(&host, "app", &options)?.manifest(Which::Tag("v1"), MANIFEST_MAX)
    };
    for text in [
        format!(r#"{{"Auths":{{"{host}":{{"Auth":"dXNlcjpodW50ZXIy"}}}}}}"#),
        format!(r#"{{"AUTHS":{{"{host}":{{"UserName":"user","PASSWORD":"hunter2"}}}},"credhelpers":null}}"#),
        // As in Go, objects under one key are joined.
        format!(r#"{{"auths":{{"{host}":{{"auth":"dXNlcjpodW50ZXIy"}}}},"auths":{{"other.test":{{}}}}}}"#),
    ] {
        assert_eq!(read(&text).unwrap().bytes, b"{}", "{text}");
    }
    // A list is no file of credentials.
    let error = read("[]").unwrap_err();
    assert!(error.to_string().contains("not valid JSON for this file at line 1"), "{error}");
}

#[test]
fn b05_user_and_password_in_a_realm_go_to_the_token_server() {
    let registry =
        FaultServer::start(|seen: &Seen, _| match (seen.path.starts_with("/token"), seen.header("authorization")) {
            (true, Some("Basic dXM6d29yZA==")) => Reply::new(200, r#"{"token":"good"}"#),
            (false, Some("Bearer good")) => Reply::new(200, "{}"),
            (is_token, sent) => {
                let host = seen.header("host").unwrap_or_default();
                let said = if is_token { sent.unwrap_or_default() } else { "" };
                Reply::new(401, format!(r#"{{"message":"you sent {said}"}}"#))
                    .header("WWW-Authenticate", format!("Bearer realm=\"http://us:word@{host}/token\""))
            }
        });
    assert_eq!(manifest(&registry, &options()).unwrap().bytes, b"{}");
    // The user's own credentials count first.
    let error = manifest(&registry, &with_creds()).unwrap_err().to_string();
    assert!(error.contains("you sent ***") && !error.contains("word"), "{error}");
}

/// Options with a proxy at `address` (`[USER:PASSWORD@]HOST:PORT`) for all but `direct.invalid`.
fn through(address: &str) -> Options {
    let mut options = options();
    let url = Some(format!("http://{address}"));
    options.environment.proxy = ProxyVariables { https: url.clone(), http: url, none: Some("direct.invalid".into()) };
    options
}

/// A proxy that refuses CONNECT, as squid does for ports other than 443, and the registry `registry.test` behind it, which
/// wants a token for the identity token `refresh`, and redirects blobs to `cdn.test`.
fn proxied_registry(content: Vec<u8>) -> FaultServer {
    FaultServer::start(move |seen, _| {
        let is_known = seen.header("proxy-authorization") == Some("Basic cHJveHk6cEBzcw==");
        let has_token = seen.header("authorization") == Some("Bearer good");
        match seen.path.as_str() {
            _ if seen.method == "CONNECT" => Reply::new(403, ""),
            _ if !is_known => Reply::new(407, ""),
            "http://registry.test/token" if seen.body.contains("refresh_token=refresh") => {
                Reply::new(200, r#"{"token":"good"}"#)
            }
            path if path.starts_with("http://cdn.test/x?") && !has_token => Reply::blob(&content, seen),
            path if path.starts_with("http://registry.test/v2/") && !has_token => Reply::new(401, "")
                .header("WWW-Authenticate", r#"Bearer realm="http://registry.test/token",service="s""#),
            path if path.contains("/blobs/") => Reply::new(307, "").header("Location", "http://cdn.test/x?signature"),
            path if path.starts_with("http://registry.test/v2/") => Reply::new(200, "{}"),
            _ => Reply::new(404, ""),
        }
    })
}

#[test]
fn b03_plain_http_goes_to_the_proxy_in_absolute_form() {
    let bytes = blob(200_000);
    let proxy = proxied_registry(bytes.clone());
    let identity = Some(Credentials::identity("refresh"));
    let options = Options { credentials: identity, ..through(&format!("proxy:p%40ss@{}", proxy.host())) };
    let client = Client::new("registry.test", "app", &options).unwrap();
    assert_eq!(client.manifest(Which::Tag("v1"), MANIFEST_MAX).unwrap().bytes, b"{}");
    fetch(&client, &bytes).unwrap();
    let plain: Vec<Seen> = proxy.seen("").into_iter().filter(|seen| seen.method != "CONNECT").collect();
    let requests: Vec<String> = plain.iter().map(|seen| format!("{} {}", seen.method, seen.path)).collect();
    let digest = prepull::digest::Digest::of(&bytes);
    assert_eq!(
        requests,
        [
            "GET http://registry.test/v2/".to_owned(),
            "POST http://registry.test/token".to_owned(),
            "GET http://registry.test/v2/app/manifests/v1".to_owned(),
            format!("GET http://registry.test/v2/app/blobs/{digest}"),
            "GET http://cdn.test/x?signature".to_owned(),
        ]
    );
    let hosts: Vec<_> = plain.iter().filter_map(|seen| seen.header("host")).collect();
    assert_eq!(hosts, ["registry.test", "registry.test", "registry.test", "registry.test", "cdn.test"]);
    // HTTPS was tried first, by CONNECT.
    assert!(proxy.seen("registry.test:443").iter().any(|seen| seen.method == "CONNECT"));
    assert!(proxy.connections() <= 4, "connections to the proxy are used again: {}", proxy.connections());
}

#[test]
fn b03_the_proxy_s_password_goes_to_the_proxy_only() {
    let registry = FaultServer::start(|_, _| Reply::new(200, "{}"));
    let options = through("proxy:p%40ss@127.0.0.1:9");
    // Loopback is reached directly.
    assert_eq!(manifest(&registry, &options).unwrap().bytes, b"{}");
    assert!(registry.seen("/v2/").iter().all(|seen| seen.header("proxy-authorization").is_none()));
}

#[test]
fn b03_a_proxy_that_speaks_tls_gets_absolute_form_too() {
    let proxy = FaultServer::start_tls(&Pki::new(), |seen, _| match seen.path.as_str() {
        "http://registry.test/v2/" => Reply::new(200, ""),
        "http://registry.test/v2/app/manifests/v1" => Reply::new(200, "{}"),
        _ => Reply::new(403, ""),
    });
    let mut options = options();
    let url = Some(format!("https://{}", proxy.host()));
    options.environment.proxy = ProxyVariables { https: url.clone(), http: url, none: None };
    let client = Client::new("registry.test", "app", &options).unwrap();
    assert_eq!(client.manifest(Which::Tag("v1"), MANIFEST_MAX).unwrap().bytes, b"{}");
    assert!(proxy.seen("registry.test:443").iter().any(|seen| seen.method == "CONNECT"));
}

#[test]
fn b03_skopeo_asks_the_proxy_the_same() {
    let proxy = FaultServer::start(|seen, _| match seen.method.as_str() {
        "CONNECT" => Reply::new(403, ""),
        _ => Reply::new(404, ""),
    });
    let home = tempfile::tempdir().unwrap();
    let image = "registry.test/app:v1";
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["inspect", "--no-creds", "--tls-verify=false"]).arg(format!("docker://{image}"));
    let mut ours = prepull(home.path());
    ours.args(["make", "--tls-verify=false", "--retry-times=0", "--tar"]).arg(home.path().join("x.tar"));
    for command in [skopeo, {
        ours.arg(image);
        ours
    }] {
        let before = proxy.seen("").len();
        let mut command = command;
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "NO_PROXY", "no_proxy"] {
            command.env_remove(name);
        }
        command.env("http_proxy", proxy.url("")).env("https_proxy", proxy.url("")).env("HOME", home.path());
        assert!(!command.output().unwrap().status.success());
        let seen = proxy.seen("").split_off(before);
        let asked = |method: &str, path: &str| seen.iter().any(|seen| seen.method == method && seen.path == path);
        assert!(asked("CONNECT", "registry.test:443") && asked("GET", "http://registry.test/v2/"), "{seen:?}");
    }
}

#[test]
fn b03_errors_name_the_proxy_and_not_its_password() {
    let error = |options: &Options, host: &str| {
        let client = Client::new(host, "app", options).unwrap();
        let error = client.manifest(Which::Tag("v1"), MANIFEST_MAX).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("p@ss"), "{error:?}");
        error.to_string()
    };
    let refusing = FaultServer::start(|_, _| Reply::new(403, r#"{"message":"not here, proxy:p@ss"}"#));
    let shown = format!("through proxy {}", refusing.url(""));
    let options =
        |host: &str| Options { retry: retry::Policy { times: 0, delay: None, ..Default::default() }, ..through(host) };
    let plain = error(&options(&format!("proxy:p%40ss@{}", refusing.host())), "registry.test");
    assert!(plain.contains(&shown) && plain.contains("HTTP 403") && plain.contains("proxy:***"), "{plain}");
    let strict = Options { tls_verify: true, ..options(&format!("proxy:p%40ss@{}", refusing.host())) };
    let tunnel = error(&strict, "registry.test");
    let expected = format!(
        "connecting to registry registry.test over https {shown}: the proxy refuses the connection to registry.test: HTTP 403"
    );
    assert_eq!(tunnel, expected);
    let unknown = FaultServer::start(|_, _| Reply::new(407, ""));
    for verify in [false, true] {
        let error = error(&Options { tls_verify: verify, ..options(&unknown.host()) }, "registry.test");
        assert!(error.contains(&unknown.url("")) && error.contains("407"), "{error}");
        assert!(error.contains("$HTTP_PROXY or $HTTPS_PROXY"), "{error}");
    }
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let error = error(&options(&format!("proxy:p%40ss@{closed}")), "registry.test");
    let expected = format!("through proxy http://{closed}: connection refused: no server listens at {closed}");
    assert!(error.ends_with(&expected), "{error}");
}

/// A registry that wants user:hunter2, and redirects everything below `/v2/app/` to `mirror`, and the mirror, which wants a
/// token, with its token server. `good` is the token that the mirror takes.
fn redirecting_to_registry(content: Vec<u8>, good: &'static str) -> (FaultServer, FaultServer, FaultServer) {
    let tokens = FaultServer::start(|_, _| Reply::new(200, r#"{"token":"anonymous"}"#));
    let realm = tokens.url("/token");
    let mirror = FaultServer::start(move |seen, _| match seen.header("authorization") {
        Some(header) if header == format!("Bearer {good}") && seen.path.contains("/blobs/") => {
            Reply::blob(&content, seen).fault(Fault::CutAfter(60_000))
        }
        Some(header) if header == format!("Bearer {good}") => Reply::new(200, "{}"),
        _ => Reply::new(401, "").header(
            "WWW-Authenticate",
            format!(r#"Bearer realm="{realm}",service="m",scope="repository:mirrored/app:pull""#),
        ),
    });
    let place = mirror.url("");
    let registry = FaultServer::start(move |seen, _| match seen.header("authorization") {
        Some("Basic dXNlcjpodW50ZXIy") if seen.path.starts_with("/v2/app/") => {
            let path = seen.path.replace("/v2/app/", "/v2/mirrored/app/");
            Reply::new(307, "").header("Location", format!("{place}{path}"))
        }
        Some("Basic dXNlcjpodW50ZXIy") => Reply::new(200, ""),
        _ => Reply::new(401, "").header("WWW-Authenticate", "Basic realm=x"),
    });
    (registry, mirror, tokens)
}

#[test]
fn b10_a_redirect_to_another_registry_gets_an_anonymous_token_there() {
    let bytes = blob(100_000);
    let (registry, mirror, tokens) = redirecting_to_registry(bytes.clone(), "anonymous");
    assert_eq!(manifest(&registry, &with_creds()).unwrap().bytes, b"{}");
    fetch(&client(&registry, &with_creds()), &bytes).unwrap();
    let options = with_creds();
    assert_eq!(manifest(&registry, &options).unwrap().bytes, b"{}");
    fetch(&client(&registry, &options), &bytes).unwrap();
    let asked = tokens.seen("/");
    assert!(asked.iter().all(|seen| seen.path == "/token?service=m&scope=repository%3Amirrored%2Fapp%3Apull"));
    assert!(asked.iter().all(|seen| seen.header("authorization").is_none() && seen.body.is_empty()));
    assert_eq!(asked.len(), 3, "one for each session");
    let sent: Vec<_> =
        mirror.seen("/").iter().filter_map(|seen| seen.header("authorization").map(str::to_owned)).collect();
    assert!(sent.iter().all(|value| value == "Bearer anonymous"), "{sent:?}");
    assert!(mirror.seen("/").iter().any(|seen| seen.range_start().is_some()), "the broken blob was resumed");
}

#[test]
fn b10_a_registry_that_is_never_content_ends_in_an_error() {
    let (registry, mirror, tokens) = redirecting_to_registry(Vec::new(), "other");
    let error = manifest(&registry, &with_creds()).unwrap_err();
    let hint =
        format!("the registry redirects to {}, which wants credentials; prepull sends none there", mirror.host());
    assert!(matches!(error, Error::Unauthorized { .. }) && error.to_string().contains(&hint), "{error}");
    assert!(mirror.seen("/").len() <= 4 && tokens.seen("/").len() <= 2, "{:?}", mirror.seen("/"));

    // Two registries that lead to each other for ever, each with a token.
    let address = Arc::new(OnceLock::<(String, String)>::new());
    let start = |index: usize| {
        let address = Arc::clone(&address);
        FaultServer::start(move |seen, before| {
            let (first, second) = address.wait();
            let other = if index == 0 { second } else { first };
            match seen.path.split('?').next().unwrap() {
                "/v2/" => Reply::new(200, ""),
                "/token" => Reply::new(200, r#"{"token":"t"}"#),
                _ if index == 1 && seen.header("authorization").is_none() => {
                    Reply::new(401, "").header("WWW-Authenticate", format!(r#"Bearer realm="http://{second}/token""#))
                }
                path => Reply::new(307, "").header("Location", format!("http://{other}{path}?{before}")),
            }
        })
    };
    let (first, second) = (start(0), start(1));
    address.set((first.host(), second.host())).unwrap();
    let error = manifest(&first, &options()).unwrap_err();
    let is_bounded = matches!(
        error,
        Error::Redirect { error: RedirectError::Loop | RedirectError::TooMany, .. } | Error::Unauthorized { .. }
    );
    assert!(is_bounded, "{error:?}");
    assert!(first.seen("/").len() + second.seen("/").len() < 40);
}

type Answer = Box<dyn Fn(&Seen) -> Reply + Send + Sync>;

/// Options with these limits and retries.
fn limited(timeout: Duration, rate: MinRate, retries: u32) -> Options {
    let limits = Limits { timeout, silence: timeout, rate };
    Options {
        limits,
        retry: retry::Policy { times: retries, delay: Some(Duration::ZERO), ..Default::default() },
        ..options()
    }
}

const ANY_RATE: MinRate = MinRate { bytes: 0, window: Duration::from_secs(1) };

#[test]
fn b13_what_comes_byte_by_byte_is_not_waited_for() {
    const PAUSE: Duration = Duration::from_millis(20);
    // A head has about 40 bytes.
    const HEAD_PAUSE: Duration = Duration::from_millis(100);
    let tokens = FaultServer::start(|_, _| Reply::new(200, vec![b' '; 2000]).fault(Fault::DripBody(PAUSE)));
    let realm = tokens.url("/token");
    let cases: [(&str, Answer); 5] = [
        ("manifest", Box::new(|_| Reply::new(200, vec![b' '; 2000]).fault(Fault::DripBody(PAUSE)))),
        ("manifest's head", Box::new(|_| Reply::new(200, "{}").fault(Fault::DripHead(HEAD_PAUSE)))),
        (
            "first head",
            Box::new(|seen| match seen.path.as_str() {
                "/v2/" => Reply::new(200, "").fault(Fault::DripHead(HEAD_PAUSE)),
                _ => Reply::new(200, "{}"),
            }),
        ),
        (
            "redirects",
            Box::new(|seen| {
                std::thread::sleep(Duration::from_millis(250));
                Reply::new(307, "").header("Location", format!("{}x", seen.path))
            }),
        ),
        (
            "token",
            Box::new(move |_| Reply::new(401, "").header("WWW-Authenticate", format!("Bearer realm=\"{realm}\""))),
        ),
    ];
    std::thread::scope(|scope| {
        for (name, reply) in cases {
            scope.spawn(move || {
                let server = FaultServer::start(move |seen, _| match seen.path.as_str() {
                    "/v2/" if name == "first head" || name == "token" => reply(seen),
                    "/v2/" => Reply::new(200, ""),
                    _ => reply(seen),
                });
                let start = Instant::now();
                let options = limited(Duration::from_millis(1500), ANY_RATE, 0);
                let error = manifest(&server, &options).unwrap_err().to_string();
                assert!(error.contains("no complete answer within the time limit (--timeout)"), "{name}: {error}");
                assert!(start.elapsed() < Duration::from_secs(15), "{name}: {:?}", start.elapsed());
            });
        }
    });
}

#[test]
fn b13_a_blob_slower_than_the_minimum_rate_is_given_up() {
    let bytes = blob(100_000);
    for (fault, tls) in [
        (Fault::DripBody(Duration::from_millis(2)), false),
        (Fault::DripBody(Duration::from_millis(2)), true),
        (Fault::StallAfter(10), false),
    ] {
        let content = bytes.clone();
        let handler = move |seen: &Seen, _: usize| match seen.path.as_str() {
            "/v2/" => Reply::new(200, ""),
            _ => Reply::blob(&content, seen).fault(fault),
        };
        let server = if tls { FaultServer::start_tls(&Pki::new(), handler) } else { FaultServer::start(handler) };
        let start = Instant::now();
        let rate = MinRate { bytes: 50_000, window: Duration::from_millis(300) };
        let error = fetch(&client(&server, &limited(Duration::from_secs(20), rate, 1)), &bytes).unwrap_err();
        // Though some bytes came each time, the attempts are counted.
        assert!(error.contains("fewer than 50000 bytes a second came for 0.3 s (--min-rate)"), "{error}");
        assert!(error.contains("(2 attempts)"), "{error}");
        assert_eq!(server.seen("/v2/app/blobs").len(), 2, "{error}");
        assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    }
}

#[test]
fn b13_a_slow_reader_or_a_late_answer_is_not_a_slow_server() {
    let bytes = blob(3_000_000);
    let content = bytes.clone();
    let server = FaultServer::start(move |seen, _| {
        if seen.path.contains("/blobs/") {
            // Longer than the window, shorter than the time limit.
            std::thread::sleep(Duration::from_millis(1200));
        }
        Reply::blob(&content, seen)
    });
    let rate = MinRate { bytes: 1000, window: Duration::from_secs(1) };
    let options = limited(Duration::from_secs(20), rate, 0);
    let mut reader = client(&server, &options).blob(&prepull::digest::Digest::of(&bytes), bytes.len() as u64).unwrap();
    let mut received = 0;
    let mut buffer = vec![0; 300_000];
    loop {
        let count = std::io::Read::read(&mut reader, &mut buffer).unwrap();
        if count == 0 {
            break;
        }
        if received / 2_000_000 != (received + count) / 2_000_000 {
            // Longer than the window.
            std::thread::sleep(Duration::from_millis(1500));
        }
        received += count;
    }
    assert_eq!(received, bytes.len());
}

#[test]
fn b13_a_token_server_on_plain_http_is_refused_when_certificates_are_verified() {
    let (pki, home) = (Pki::new(), tempfile::tempdir().unwrap());
    pki.install(home.path(), &[("ca.pem", "ca.crt")]);
    let tokens = FaultServer::start(|_, _| Reply::new(200, r#"{"token":"t"}"#));
    let realm = tokens.url("/token");
    let registry = FaultServer::start_tls(&pki, move |seen, _| match seen.header("authorization") {
        Some("Bearer t") => Reply::new(200, "{}"),
        _ => Reply::new(401, "").header("WWW-Authenticate", format!("Bearer realm=\"{realm}\"")),
    });
    let strict = |options: Options| Options { tls_verify: true, cert_dir: Some(home.path().to_owned()), ..options };
    for options in [with_creds(), options()] {
        let error = manifest(&registry, &strict(options.clone())).unwrap_err().to_string();
        assert!(error.contains("a token server on plain http") && error.contains("--tls-verify=false"), "{error}");
        assert!(tokens.seen("/").is_empty());
    }
    assert_eq!(manifest(&registry, &options()).unwrap().bytes, b"{}");
}

#[test]
fn b13_what_a_server_repeats_of_credentials_is_not_shown() {
    let home = tempfile::tempdir().unwrap();
    let token = "tok-3f7a91";
    let password = "hunt r2&\u{e9}x";
    let basic = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(format!("user:{password}"))
    };
    let forms = [password, &basic, "hunt%20r2%26%C3%A9x", "hunt%20r2%26%c3%a9x", "hunt+r2%26%C3%A9x", token];
    let said = forms.join(" | ");
    let message = serde_json::json!({"errors": [{"message": format!("no: {said}")}]}).to_string();
    let path = format!("/moved/{}/{basic}/hunt%20r2%26%C3%A9x", token);
    let answers: [Answer; 4] = [
        {
            let message = message.clone();
            Box::new(move |_| Reply::new(403, message.clone()))
        },
        {
            let path = path.clone();
            Box::new(move |seen| {
                if seen.path.starts_with("/moved") {
                    Reply::new(404, "")
                } else {
                    Reply::new(307, "").header("Location", path.clone())
                }
            })
        },
        {
            let path = path.clone();
            Box::new(move |seen| {
                Reply::new(307, "").header("Location", if seen.path.starts_with("/moved") { "ftp://x/" } else { &path })
            })
        },
        {
            let said = said.replace('\u{e9}', "e");
            Box::new(move |_| {
                Reply::new(200, "not json")
                    .header("Content-Type", said.clone())
                    .header("Content-Encoding", said.clone())
            })
        },
    ];
    for (at, reply) in answers.into_iter().enumerate() {
        let address = Arc::new(OnceLock::<String>::new());
        let own = Arc::clone(&address);
        let server = FaultServer::start(move |seen, _| match seen.header("authorization") {
            _ if seen.path.starts_with("/token") => Reply::new(200, format!(r#"{{"token":"{token}"}}"#)),
            Some(_) => reply(seen),
            None => {
                let realm = format!("http://{}/token", own.wait());
                Reply::new(401, "").header("WWW-Authenticate", format!("Bearer realm=\"{realm}\""))
            }
        });
        address.set(server.host()).unwrap();
        let mut command = prepull(home.path());
        command.args([
            "-vvv",
            "make",
            "--no-config",
            "--tls-verify=false",
            "--retry-times=1",
            "--retry-delay=0",
            "--creds",
        ]);
        command.arg(format!("user:{password}")).arg("--tar").arg(home.path().join("x.tar"));
        let output = command.arg(format!("{}/app:v1", server.host())).output().unwrap();
        let shown = stderr(&output);
        assert!(!output.status.success() && shown.contains("***"), "{at}: {shown}");
        assert!(server.seen("/token")[0].header("authorization") == Some(&format!("Basic {basic}")), "{shown}");
        for form in forms {
            assert!(!shown.contains(form), "{at}: {form}: {shown}");
        }
    }
}

#[test]
fn b13_limits_are_options_and_variables() {
    let home = tempfile::tempdir().unwrap();
    let server = FaultServer::start(|_, _| Reply::new(200, "{}").fault(Fault::DripHead(Duration::from_millis(40))));
    let run = |change: &dyn Fn(&mut Command)| {
        let mut command = prepull(home.path());
        command.args(["make", "--tls-verify=false", "--retry-times=0", "--tar"]).arg(home.path().join("x.tar"));
        change(command.arg(format!("{}/app:v1", server.host())));
        stderr(&command.output().unwrap())
    };
    let by_option = run(&|command| {
        command.arg("--timeout=1");
    });
    let by_variable = run(&|command| {
        command.env("PREPULL_TIMEOUT", "1");
    });
    for shown in [by_option, by_variable] {
        assert!(shown.contains("no complete answer within the time limit (--timeout)"), "{shown}");
    }
    for (option, value) in [("--timeout", "0"), ("--timeout", "x"), ("--min-rate", "-1")] {
        let shown = run(&|command| {
            command.arg(format!("{option}={value}"));
        });
        assert!(shown.contains(option) && shown.contains(&format!("{value:?}")), "{shown}");
    }
}
