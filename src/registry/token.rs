//! Bearer tokens: fetched from the token server that a challenge names, kept until they expire, fetched by one thread
//! while the others wait ([distribution, "Token Authentication Specification"], [OAuth2 variant]).
//!
//! [distribution, "Token Authentication Specification"]: https://distribution.github.io/distribution/spec/auth/token/
//! [OAuth2 variant]: https://distribution.github.io/distribution/spec/auth/oauth/

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::Value;
use ureq::http::StatusCode;

use super::error::Failed;
use super::transport::{Http, Request, Trail};
use super::url::{self, Origin};
use super::{Credentials, Error, Secret, TOKEN_ANSWER_MAX};
use crate::json::is_key;

/// A token lives at least this long, and this long when the server does not say (the specification's default, and
/// containers/image `minimumTokenLifetimeSeconds`).
pub(crate) const LIFETIME_MIN: Duration = Duration::from_secs(60);

/// A token is not kept for longer, whatever the server says.
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);

/// A token is renewed this long before its end, as a request needs time to arrive.
const MARGIN: Duration = Duration::from_secs(10);

/// As which program we ask for an OAuth2 token.
const CLIENT_ID: &str = "prepull";

/// What a token is good for, and for whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) realm: String,
    pub(crate) service: Option<String>,
    pub(crate) scopes: Vec<String>,
    pub(crate) credentials: Option<Credentials>,
}

#[derive(Debug, Clone)]
struct Token {
    authorization: Secret,
    stale: Instant,
}

/// The tokens of one session. The map is locked for a look only; a slot is locked while its token is fetched, so that
/// one thread fetches and those that need the same token wait for it.
#[derive(Debug, Default)]
pub(crate) struct Tokens(Mutex<HashMap<Key, Arc<Mutex<Option<Token>>>>>);

impl Tokens {
    /// The `Authorization` for `key`: a kept one, unless it is stale or is `refused` (the one that was answered with a 401);
    /// else the one that `fetch` gets.
    pub(crate) fn get<E>(
        &self,
        key: Key,
        refused: Option<&Secret>,
        fetch: impl FnOnce(&Key) -> Result<(Secret, Duration), E>,
    ) -> Result<Secret, E> {
        let slot = Arc::clone(lock(&self.0).entry(key.clone()).or_default());
        let mut slot = lock(&slot);
        if let Some(token) = &*slot
            && Instant::now() < token.stale
            && Some(&token.authorization) != refused
        {
            return Ok(token.authorization.clone());
        }
        *slot = None;
        let (authorization, lifetime) = fetch(&key)?;
        // Counted from now, not from the server's `issued_at`: its clock may be wrong.
        let stale = Instant::now() + lifetime.clamp(LIFETIME_MIN, LIFETIME_MAX) - MARGIN;
        *slot = Some(Token { authorization: authorization.clone(), stale });
        Ok(authorization)
    }
}

/// A lock that does not care about a thread that panicked: what is guarded here is always whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `Basic` and user and password.
pub(crate) fn basic(credentials: &Credentials) -> Secret {
    let pair = format!("{}:{}", credentials.username, credentials.password.expose());
    Secret::new(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)))
}

/// Asks the token server: GET with user and password, or POST with the identity token.
///
/// The server may be on any host, as in the specification. It must be `https:` unless `may_be_plain`, which is set when
/// certificates are not verified either: over plain HTTP, credentials and tokens can be read and exchanged on the way.
pub(crate) fn fetch(http: &Http, key: &Key, may_be_plain: bool, host: &str) -> Result<(Secret, Duration), Failed> {
    let credentials = key.credentials.as_ref();
    let unusable = |reason| Failed::Final(Error::Token { what: format!("authenticating at {host}"), reason });
    let realm = url::target(&key.realm).ok_or_else(|| unusable("the token server's address (realm) is not a URL"))?;
    // User and password in the address count where there are no credentials (Go's `net/http.send`).
    let url::Target { uri: realm, authorization: own } = realm;
    if !Origin::of(&realm).is_https() && !may_be_plain {
        return Err(unusable(
            "the registry names a token server on plain http, where tokens and credentials could be read on the way \
             (hint: --tls-verify=false allows it)",
        ));
    }
    let what = format!("getting a token for {host} from {}", http.shown(&realm));
    let mut fields: Vec<(&str, &str)> = Vec::new();
    if let Some(service) = &key.service {
        fields.push(("service", service));
    }
    fields.extend(key.scopes.iter().map(|scope| ("scope", scope.as_str())));
    let identity = credentials.and_then(|credentials| credentials.identity_token.as_ref());
    let user = credentials.filter(|credentials| !credentials.username.is_empty());
    let (mut form, mut authorization) = (None, None);
    let mut uri = realm.clone();
    if let Some(credentials) = credentials {
        http.secrets.add_credentials(credentials);
    }
    if let Some(token) = identity {
        fields.extend([("grant_type", "refresh_token"), ("refresh_token", token.expose()), ("client_id", CLIENT_ID)]);
        form = Some(Secret::new(query(&fields)));
    } else {
        if let Some(user) = user {
            fields.insert(0, ("account", &user.username));
            authorization = (!user.password.is_empty()).then(|| basic(user));
        }
        let joint = if realm.query().is_some_and(|query| !query.is_empty()) { '&' } else { '?' };
        let query = query(&fields);
        let whole = if query.is_empty() { realm.to_string() } else { format!("{realm}{joint}{query}") };
        uri = url::absolute(&whole).ok_or_else(|| unusable("the token server's address (realm) is not a URL"))?;
    }
    let authorization = authorization.or(own);
    if let Some(authorization) = &authorization {
        http.secrets.add(authorization.expose());
    }
    let request = Request {
        uri,
        headers: &[],
        authorization: authorization.as_ref(),
        form: form.as_ref(),
        may_downgrade: may_be_plain,
        is_long: false,
    };
    let answer = http.send(&request, &mut Trail::default()).map_err(|failure| failure.into_failed(&what))?;
    if answer.status() != StatusCode::OK {
        let status = answer.status();
        return Err(match super::session::refusal(answer, &what, host, credentials.is_some()) {
            // What is not there is the token server, not the image.
            Failed::Final(Error::NotFound { what, message }) => {
                Failed::Final(Error::Status { what, status, message, attempts: 1 })
            }
            failed => failed,
        });
    }
    let mut body = Vec::new();
    let read = answer.response.into_body().into_reader().take(TOKEN_ANSWER_MAX + 1).read_to_end(&mut body);
    read.map_err(|error| super::session::broken(&error, &what, body.len() as u64))?;
    if body.len() as u64 > TOKEN_ANSWER_MAX {
        return Err(Failed::Final(Error::TooBig { what, limit: TOKEN_ANSWER_MAX }));
    }
    let found = parse(&body).ok_or(Failed::Final(Error::Token { what, reason: "the answer holds no usable token" }))?;
    http.secrets.add(found.0.expose());
    Ok(found)
}

fn query(fields: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={}", url::escape(value))).collect();
    pairs.join("&")
}

/// The `Authorization` and the lifetime in a token server's answer, whose keys may be in any letter case, as Go reads them. The
/// token must be what a header field can carry.
#[must_use]
pub fn parse(body: &[u8]) -> Option<(Secret, Duration)> {
    let answer: serde_json::Map<String, Value> = serde_json::from_slice(body).ok()?;
    let get = |name: &str| {
        let folded = || answer.iter().find(|(key, _)| is_key(key, name)).map(|(_, value)| value);
        answer.get(name).or_else(folded).unwrap_or(&Value::Null)
    };
    let mut token = "";
    for name in ["access_token", "token"] {
        match get(name) {
            Value::Null => {}
            Value::String(text) if text.is_empty() => {}
            Value::String(text) => token = text,
            _ => return None,
        }
    }
    let fits = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    let seconds = get("expires_in").as_f64().unwrap_or(0.0).clamp(0.0, LIFETIME_MAX.as_secs_f64());
    fits.then(|| (Secret::new(format!("Bearer {token}")), Duration::from_secs_f64(seconds)))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn key(scope: &str) -> Key {
        Key { realm: "r".into(), service: None, scopes: vec![scope.into()], credentials: None }
    }

    #[test]
    fn both_members_are_taken_and_nonsense_is_not() {
        let bearer =
            |body: &str| parse(body.as_bytes()).map(|(token, life)| (token.expose().to_owned(), life.as_secs()));
        assert_eq!(bearer(r#"{"token":"a","expires_in":300}"#), Some(("Bearer a".into(), 300)));
        assert_eq!(bearer(r#"{"token":"","access_token":"b"}"#), Some(("Bearer b".into(), 0)));
        assert_eq!(bearer(r#"{"access_token":"b","expires_in":-5}"#), Some(("Bearer b".into(), 0)));
        assert_eq!(bearer(r#"{"token":"b","expires_in":1e300}"#), Some(("Bearer b".into(), LIFETIME_MAX.as_secs())));
        assert_eq!(bearer(r#"{"Token":"a","EXPIRES_IN":300}"#), Some(("Bearer a".into(), 300)));
        for bad in [
            "",
            "[]",
            r#"["a"]"#,
            "{}",
            r#"{"token":""}"#,
            r#"{"token":"a\r\nX: y"}"#,
            r#"{"token":5}"#,
            r#"{"token":null}"#,
        ] {
            assert_eq!(bearer(bad), None, "{bad}");
        }
    }

    #[test]
    fn one_thread_fetches_and_the_others_wait() {
        let (tokens, fetched) = (Tokens::default(), AtomicUsize::new(0));
        let fetch = |_: &Key| {
            std::thread::sleep(Duration::from_millis(30));
            let number = fetched.fetch_add(1, Ordering::SeqCst);
            Ok::<_, ()>((Secret::new(format!("Bearer {number}")), Duration::ZERO))
        };
        let all = |refused: Option<&Secret>| {
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| tokens.get(key("a"), refused, fetch))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect::<Vec<_>>()
            })
        };
        let first = all(None);
        assert_eq!((fetched.load(Ordering::SeqCst), first[0].expose()), (1, "Bearer 0"));
        let second = all(Some(&first[0]));
        assert_eq!(fetched.load(Ordering::SeqCst), 2, "all were refused the same token: one renews it");
        assert!(second.iter().all(|token| token.expose() == "Bearer 1"));
        tokens.get(key("b"), None, fetch).unwrap();
        assert_eq!(fetched.load(Ordering::SeqCst), 3, "another scope is another token");
    }

    #[test]
    fn a_stale_token_is_renewed() {
        let tokens = Tokens::default();
        let get = |text: &str| {
            tokens
                .get(key("a"), None, |_| Ok::<_, ()>((Secret::new(text), Duration::ZERO)))
                .unwrap()
                .expose()
                .to_owned()
        };
        assert_eq!((get("1"), get("2")), ("1".into(), "1".into()));
        for slot in lock(&tokens.0).values() {
            lock(slot).as_mut().unwrap().stale = Instant::now();
        }
        assert_eq!(get("3"), "3");
    }
}
