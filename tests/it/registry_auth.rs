use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prepull::registry::{Credentials, Error, Options, RedirectError};

use crate::registry::{blob, client, fetch, manifest, options, redirecting, with_creds};
use crate::support::fault_server::{Fault, FaultServer, Reply};

#[test]
fn basic_credentials_are_used_and_never_shown() {
    let registry = redirecting(String::new());
    assert_eq!(manifest(&registry, &with_creds()).unwrap().bytes, b"{}");
    let wrong = Options { credentials: Some(Credentials::basic("user", "geheim")), ..options() };
    let refused = manifest(&registry, &wrong).unwrap_err();
    assert!(matches!(refused, Error::Unauthorized { .. }));
    let shown = format!("{refused} {refused:?} {wrong:?} {:?}", client(&registry, &wrong));
    assert!(!shown.contains("geheim") && !shown.contains("Basic "), "{shown}");
    let anonymous = manifest(&registry, &options()).unwrap_err().to_string();
    let hint = format!("HTTP 401 unauthorized (hint: `podman login {}` or --creds", registry.host());
    assert!(anonymous.contains(&hint), "{anonymous}");
    assert!(registry.seen("/v2/app/manifests").len() <= 4, "nobody knocks for ever");
}

/// A registry with a token server at `/token`. A token is good for `uses` requests.
struct TokenRegistry {
    server: FaultServer,
    fetched: Arc<AtomicUsize>,
}

fn token_registry(uses: usize, bytes: Vec<u8>, fault: Fault) -> TokenRegistry {
    let fetched = Arc::new(AtomicUsize::new(0));
    let (count, used) = (Arc::clone(&fetched), AtomicUsize::new(0));
    let address = Arc::new(std::sync::OnceLock::<String>::new());
    let own = Arc::clone(&address);
    let server = FaultServer::start(move |seen, _| {
        if seen.path.starts_with("/token") {
            std::thread::sleep(Duration::from_millis(20));
            let number = count.fetch_add(1, Ordering::SeqCst) + 1;
            used.store(0, Ordering::SeqCst);
            let member = if number.is_multiple_of(2) { "access_token" } else { "token" };
            return Reply::new(200, format!(r#"{{"{member}":"t{number}","expires_in":3600}}"#));
        }
        let good = format!("Bearer t{}", count.load(Ordering::SeqCst));
        let is_good = seen.header("authorization") == Some(&good) && used.fetch_add(1, Ordering::SeqCst) < uses;
        if is_good {
            return Reply::blob(&bytes, seen).fault(fault);
        }
        let realm = own.wait();
        let challenge = format!(r#"Basic, Bearer realm="http://{realm}/token?a=b",service="s p",scope="x""#);
        Reply::new(401, "").header("WWW-Authenticate", challenge)
    });
    address.set(server.host()).unwrap();
    TokenRegistry { server, fetched }
}

#[test]
fn a_token_is_fetched_once_and_serves_all_threads() {
    let bytes = blob(1000);
    let registry = token_registry(usize::MAX, bytes.clone(), Fault::None);
    let options = options();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            // Eight clients of clones of the options: one session.
            scope.spawn(|| fetch(&client(&registry.server, &options.clone()), &bytes).unwrap());
        }
    });
    assert_eq!(registry.fetched.load(Ordering::SeqCst), 1);
    assert_eq!(registry.server.seen("/v2/").iter().filter(|seen| seen.path == "/v2/").count(), 1);
    let token = &registry.server.seen("/token")[0];
    assert_eq!(token.path, "/token?a=b&service=s%20p&scope=repository%3Aapp%3Apull");
    assert_eq!((token.method.as_str(), token.header("authorization")), ("GET", None));
}

#[test]
fn a_token_that_expires_in_mid_download_is_renewed() {
    let bytes = blob(100_000);
    // Every token is good for one request, every request for 30,000 bytes.
    let registry = token_registry(1, bytes.clone(), Fault::CutAfter(30_000));
    fetch(&client(&registry.server, &options()), &bytes).unwrap();
    assert_eq!(registry.fetched.load(Ordering::SeqCst), 4);
}

#[test]
fn a_registry_that_never_accepts_its_tokens_ends_in_an_error() {
    let registry = token_registry(0, Vec::new(), Fault::None);
    let error = manifest(&registry.server, &with_creds()).unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
    let counts = || (registry.server.seen("/v2/app").len(), registry.fetched.load(Ordering::SeqCst));
    assert_eq!(counts(), (2, 1), "once with Basic, once with a token");
    let error = manifest(&registry.server, &options()).unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
    assert_eq!(counts(), (4, 3), "once with a token, once with a new one");
    assert!(!error.to_string().contains("t2"), "{error}");
}

/// A registry whose token server is `tokens`.
fn bearer_only(tokens: &FaultServer) -> FaultServer {
    let realm = tokens.url("/token");
    FaultServer::start(move |seen, _| match seen.header("authorization") {
        Some("Bearer good") => Reply::new(200, "{}"),
        _ => Reply::new(401, "").header("WWW-Authenticate", format!("Bearer realm=\"{realm}\",service=s")),
    })
}

#[test]
fn the_token_server_gets_basic_or_the_identity_token_in_a_post() {
    let tokens = FaultServer::start(|_, _| Reply::new(200, r#"{"access_token":"good"}"#));
    let registry = bearer_only(&tokens);
    manifest(&registry, &with_creds()).unwrap();
    let identity = Options { credentials: Some(Credentials::identity("ref resh&")), ..options() };
    manifest(&registry, &identity).unwrap();
    let seen = tokens.seen("/token");
    assert_eq!(seen[0].header("authorization"), Some("Basic dXNlcjpodW50ZXIy"));
    assert_eq!(seen[0].path, "/token?account=user&service=s&scope=repository%3Aapp%3Apull");
    assert_eq!((seen[1].method.as_str(), seen[1].path.as_str()), ("POST", "/token"));
    assert_eq!(seen[1].header("content-type"), Some("application/x-www-form-urlencoded"));
    let form = "service=s&scope=repository%3Aapp%3Apull&grant_type=refresh_token&refresh_token=ref%20resh%26&client_id=prepull";
    assert_eq!(seen[1].body, form);
}

#[test]
fn a_token_server_has_bad_days_too() {
    let tokens = FaultServer::start(|_, before| match before {
        0 => Reply::new(503, ""),
        1 => Reply::new(200, "").fault(Fault::ResetAtOnce),
        2 => Reply::new(200, r#"{"token":"good"}"#).fault(Fault::CutAfter(3)),
        _ => Reply::new(200, r#"{"token":"good"}"#),
    });
    manifest(&bearer_only(&tokens), &options()).unwrap();

    for (reply, expected) in [
        (Reply::new(401, r#"{"details":"incorrect username or password"}"#), "incorrect username or password"),
        (Reply::new(200, "{}"), "the answer holds no usable token"),
        (Reply::new(200, vec![b' '; 2 << 20]), "more than 1048576 bytes"),
        (Reply::new(403, ""), "HTTP 403"),
        (Reply::new(404, ""), "HTTP 404 Not Found"),
    ] {
        let tokens = FaultServer::start(move |_, _| reply.clone());
        let error = manifest(&bearer_only(&tokens), &with_creds()).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("getting a token"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn an_identity_token_is_not_redirected() {
    let other = FaultServer::start(|_, _| Reply::new(200, r#"{"token":"good"}"#));
    let place = other.url("/");
    let tokens = FaultServer::start(move |_, _| Reply::new(307, "").header("Location", place.clone()));
    let identity = Options { credentials: Some(Credentials::identity("refresh")), ..options() };
    let error = manifest(&bearer_only(&tokens), &identity).unwrap_err();
    assert!(matches!(error, Error::Redirect { error: RedirectError::Form, .. }), "{error:?}");
    assert!(other.seen("/").is_empty());
    // A token server that moved may be asked without credentials there.
    manifest(&bearer_only(&tokens), &with_creds()).unwrap();
    assert_eq!(other.seen("/")[0].header("authorization"), None);
}

#[test]
fn a_wider_scope_is_asked_for_when_the_registry_wants_one() {
    let tokens = FaultServer::start(|seen, _| {
        let token = if seen.path.contains("extra") { "good" } else { "narrow" };
        Reply::new(200, format!(r#"{{"token":"{token}"}}"#))
    });
    let realm = tokens.url("/token");
    let server = FaultServer::start(move |seen, _| match seen.header("authorization") {
        Some("Bearer good") => Reply::new(200, "{}"),
        Some(_) => Reply::new(401, "").header(
            "WWW-Authenticate",
            format!("Bearer realm=\"{realm}\",scope=\"repository:extra:pull\",error=insufficient_scope"),
        ),
        None => Reply::new(401, "").header("WWW-Authenticate", format!("Bearer realm=\"{realm}\"")),
    });
    manifest(&server, &options()).unwrap();
}
