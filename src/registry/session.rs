//! What all clients of one host share: connections, what the registry speaks and demands, and tokens.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use ureq::http::{StatusCode, header};

use super::challenge::{self, Challenge};
use super::error::{Failed, Failure, broken_reason, is_absent, said};
use super::retry::{self, Attempts};
use super::token::{self, Key, Tokens, lock};
use super::transport::{Answer, Http, Request, Trail};
use super::url::Origin;
use super::{Credentials, ERROR_ANSWER_MAX, Error, Limits, Options, Secret, header as fields, url};
use crate::config::certs;

/// The host under which the world knows Docker Hub.
const DOCKER_HUB: &str = "docker.io";

/// The host where Docker Hub's API is.
const DOCKER_HUB_API: &str = "registry-1.docker.io";

/// Most tokens that are fetched for one request at the registries to which redirects lead.
const TOKENS_ELSEWHERE_MAX: usize = 4;

/// The sessions of one run, by host. Cloning shares them.
#[derive(Clone, Default)]
pub struct Sessions(Arc<Mutex<HashMap<SessionKey, Arc<Session>>>>);

/// What makes two sessions different: the host, and every option that changes how it is talked to.
#[derive(PartialEq, Eq, Hash)]
struct SessionKey {
    host: String,
    tls_verify: bool,
    cert_dir: Option<PathBuf>,
    limits: Limits,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sessions({})", lock(&self.0).len())
    }
}

impl Sessions {
    /// The session with `host`, as references name it.
    pub(crate) fn get(&self, host: &str, options: &Options) -> Result<Arc<Session>, Error> {
        let key = SessionKey {
            host: host.to_owned(),
            tls_verify: options.tls_verify,
            cert_dir: options.cert_dir.clone(),
            limits: options.limits,
        };
        if let Some(session) = lock(&self.0).get(&key) {
            return Ok(Arc::clone(session));
        }
        let session = Arc::new(Session::new(host, options)?);
        Ok(Arc::clone(lock(&self.0).entry(key).or_insert(session)))
    }
}

/// How one registry is talked to.
#[derive(Debug)]
pub(crate) struct Session {
    /// As references name it; also in messages.
    host: String,
    tls_verify: bool,
    http: Http,
    tokens: Tokens,
    contact: Mutex<Option<Contact>>,
}

/// What the first answer told.
#[derive(Debug, Clone)]
pub(crate) struct Contact {
    scheme: &'static str,
    challenges: Vec<Challenge>,
}

/// A GET below `/v2/`, with who asks.
pub(crate) struct Get<'a> {
    pub(crate) repository: &'a str,
    /// Below the repository: `manifests/v1`.
    pub(crate) path: &'a str,
    pub(crate) headers: &'a [(header::HeaderName, &'a str)],
    pub(crate) credentials: Option<&'a Credentials>,
    pub(crate) may_downgrade: bool,
    /// True for a blob, whose body may take long.
    pub(crate) is_long: bool,
    /// What is being done, for messages.
    pub(crate) what: &'a str,
    pub(crate) policy: retry::Policy,
}

impl Session {
    fn new(host: &str, options: &Options) -> Result<Self, Error> {
        let directory = certs::directory(host, options.cert_dir.as_deref(), &options.environment);
        let certificates = match directory {
            Some(directory) => certs::load(&directory, options.cert_dir.is_some())?,
            None => certs::Certificates::default(),
        };
        let proxy = &options.environment.proxy;
        let http = Http::new(&certificates, name(api_host(host)), options.tls_verify, options.limits, proxy)?;
        Ok(Self {
            host: host.to_owned(),
            tls_verify: options.tls_verify,
            http,
            tokens: Tokens::default(),
            contact: Mutex::default(),
        })
    }

    /// What the registry speaks and demands, found out once: the first thread asks, the others wait.
    fn contact(&self, policy: &retry::Policy) -> Result<Contact, Error> {
        let mut contact = lock(&self.contact);
        if let Some(contact) = &*contact {
            return Ok(contact.clone());
        }
        let mut attempts = Attempts::new(policy.clone());
        loop {
            match self.ping() {
                Ok(found) => {
                    *contact = Some(found.clone());
                    return Ok(found);
                }
                Err(Failed::Again { error, retry_after }) => {
                    if !attempts.again(retry_after, &error) {
                        return Err(Failed::Again { error, retry_after }.after(attempts.failures()));
                    }
                }
                Err(failed) => return Err(failed.after(1)),
            }
        }
    }

    /// HTTPS, and without verification also plain HTTP, as containers/image `detectProperties`.
    fn ping(&self) -> Result<Contact, Failed> {
        let secure = match self.ping_over("https") {
            Err(failed) if !self.tls_verify && matches!(failed.error(), Error::Transport { .. }) => failed,
            result => return result,
        };
        tracing::debug!("{}; trying plain http", secure.error());
        match self.ping_over("http") {
            // Neither answers: the first one says more, unless it says no more than that this is not HTTPS.
            Err(plain) if matches!(plain.error(), Error::Transport { .. }) && matches!(secure, Failed::Final(_)) => {
                Err(plain)
            }
            Err(plain) if matches!(plain.error(), Error::Transport { .. }) => Err(secure),
            result => result,
        }
    }

    fn ping_over(&self, scheme: &'static str) -> Result<Contact, Failed> {
        let what = format!("connecting to registry {} over {scheme}", self.host);
        let uri = url::absolute(&format!("{scheme}://{}/v2/", api_host(&self.host)));
        let uri = uri.ok_or_else(|| Error::Host(self.host.clone()))?;
        let request =
            Request { uri, headers: &[], authorization: None, form: None, may_downgrade: false, is_long: false };
        let answer = self.http.send(&request, &mut Trail::default()).map_err(|failure| {
            // There is no server at all: with a mistyped name, waiting does not help. Later, it may.
            let is_absent = matches!(&failure, Failure::Transport { error, .. } if is_absent(error));
            match failure.into_failed(&what) {
                Failed::Again { error, .. } if is_absent => Failed::Final(error),
                failed => failed,
            }
        })?;
        if retry::is_transient_status(answer.status()) {
            return Err(refusal(answer, &what, &self.host, false));
        }
        // Any other status is a registry too: some static ones have no `/v2/`.
        let challenges = if answer.is_own { challenges(&answer) } else { Vec::new() };
        Ok(Contact { scheme, challenges })
    }

    /// One attempt, with one renewal of the token if the registry does not like the one it got.
    pub(crate) fn get_once(&self, get: &Get<'_>) -> Result<Answer, Failed> {
        let Contact { scheme, mut challenges } = self.contact(&get.policy)?;
        let address = format!("{scheme}://{}/v2/{}/{}", api_host(&self.host), get.repository, get.path);
        let uri = url::absolute(&address).ok_or_else(|| Error::Repository(get.repository.to_owned()))?;
        let mut refused: Option<Secret> = None;
        let mut scope = None;
        for is_last in [false, true] {
            let authorization = self.authorization(&challenges, get, scope.as_deref(), refused.as_ref())?;
            let request = Request {
                uri: uri.clone(),
                headers: get.headers,
                authorization: authorization.as_ref(),
                form: None,
                may_downgrade: get.may_downgrade,
                is_long: get.is_long,
            };
            let mut trail = Trail::default();
            let answer = self.http.send(&request, &mut trail).map_err(|failure| failure.into_failed(&get.what))?;
            if !answer.is_own {
                return self.get_elsewhere(get, answer, trail);
            }
            if answer.status() != StatusCode::UNAUTHORIZED || is_last {
                return Ok(answer);
            }
            let fresh = self::challenges(&answer);
            if !fresh.is_empty() {
                challenges.clone_from(&fresh);
                if let Some(contact) = &mut *lock(&self.contact) {
                    contact.challenges = fresh;
                }
            }
            let bearer = challenges.iter().find(|challenge| challenge.scheme == "bearer");
            scope = bearer
                .filter(|bearer| bearer.get("error") == Some("insufficient_scope"))
                .and_then(|bearer| bearer.get("scope").map(str::to_owned));
            let has_another_way = bearer.is_some() || (authorization.is_none() && get.credentials.is_some());
            if !has_another_way {
                return Ok(answer);
            }
            refused = authorization;
        }
        unreachable!("the last round returns")
    }

    /// Authenticates without credentials at a registry to which the registry redirects, if that one wants a token, and goes on
    /// from there. A mirror may be such a registry.
    ///
    /// It is asked for the scope that its challenge names. Each place gets a token, and a new one if it does not accept the
    /// first; further answers are returned as they are.
    fn get_elsewhere(&self, get: &Get<'_>, mut answer: Answer, mut trail: Trail) -> Result<Answer, Failed> {
        let mut refused: Option<(Origin, Secret)> = None;
        for _ in 0..TOKENS_ELSEWHERE_MAX {
            if answer.status() != StatusCode::UNAUTHORIZED {
                break;
            }
            let challenges = challenges(&answer);
            let bearer = challenges.iter().find(|challenge| challenge.scheme == "bearer");
            let Some((bearer, realm)) = bearer.and_then(|bearer| Some((bearer, bearer.get("realm")?))) else { break };
            let scopes = bearer.get("scope").unwrap_or_default().split(' ').filter(|scope| !scope.is_empty());
            let key = Key {
                realm: realm.to_owned(),
                service: bearer.get("service").map(str::to_owned),
                scopes: scopes.map(str::to_owned).collect(),
                credentials: None,
            };
            let origin = Origin::of(&answer.uri);
            let last = refused.take().filter(|(at, _)| *at == origin).map(|(_, token)| token);
            let token = self.token(key, last.as_ref())?;
            if last.as_ref() == Some(&token) {
                break;
            }
            tracing::debug!("authenticating without credentials for {}", self.http.shown(&answer.uri));
            let request = Request {
                uri: answer.uri.clone(),
                headers: get.headers,
                authorization: Some(&token),
                form: None,
                may_downgrade: get.may_downgrade,
                is_long: get.is_long,
            };
            answer = self.http.send(&request, &mut trail).map_err(|failure| failure.into_failed(&get.what))?;
            // It is never the registry's own, so that it does not speak of its credentials.
            answer.is_own = false;
            refused = Some((origin, token));
        }
        Ok(answer)
    }

    fn token(&self, key: Key, refused: Option<&Secret>) -> Result<Secret, Failed> {
        let may_be_plain = !self.tls_verify;
        let fetch = |key: &Key| token::fetch(&self.http, key, may_be_plain, &self.host);
        self.tokens.get(key, refused, fetch)
    }

    /// What to send for the first challenge that can be met; nothing when there is none.
    fn authorization(
        &self,
        challenges: &[Challenge],
        get: &Get<'_>,
        scope: Option<&str>,
        refused: Option<&Secret>,
    ) -> Result<Option<Secret>, Failed> {
        let user = get.credentials.filter(|credentials| !credentials.username.is_empty());
        if let Some(credentials) = get.credentials {
            self.http.secrets.add_credentials(credentials);
        }
        for challenge in challenges {
            match (challenge.scheme.as_str(), challenge.get("realm")) {
                ("basic", _) => {
                    let basic = user.map(token::basic);
                    if basic.is_some() && basic.as_ref() != refused {
                        return Ok(basic);
                    }
                }
                ("bearer", Some(realm)) => {
                    let mut scopes = vec![format!("repository:{}:pull", get.repository)];
                    scopes.extend(scope.filter(|scope| **scope != scopes[0]).map(str::to_owned));
                    let key = Key {
                        realm: realm.to_owned(),
                        service: challenge.get("service").map(str::to_owned),
                        scopes,
                        credentials: get.credentials.cloned(),
                    };
                    return self.token(key, refused).map(Some);
                }
                (scheme, _) => {
                    let scheme = self.http.secrets.scrub(scheme);
                    tracing::debug!("{}: cannot authenticate with {scheme:?}", self.host);
                }
            }
        }
        Ok(None)
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }
}

/// Returns the host of the API of the registry that references call `host`.
fn api_host(host: &str) -> &str {
    if host == DOCKER_HUB { DOCKER_HUB_API } else { host }
}

/// Returns `host` without its port, and an address without brackets.
fn name(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(address) => address.split(']').next().unwrap_or(address),
        None => host.split(':').next().unwrap_or(host),
    }
}

fn challenges(answer: &Answer) -> Vec<Challenge> {
    let fields = answer.response.headers().get_all(header::WWW_AUTHENTICATE);
    challenge::parse(fields.iter().filter_map(|field| std::str::from_utf8(field.as_bytes()).ok()))
}

/// Turns an answer that is not the one hoped for into a failure. `host` is for the hint about logging in there.
pub(crate) fn refusal(answer: Answer, what: &str, host: &str, has_credentials: bool) -> Failed {
    let status = answer.status();
    let what = match &answer.proxy {
        Some(proxy) => format!("{what} through proxy {proxy}"),
        None => what.to_owned(),
    };
    let retry_after =
        answer.field(&header::RETRY_AFTER).and_then(|field| fields::retry_after(field, SystemTime::now()));
    let (is_own, secrets) = (answer.is_own, answer.secrets);
    let place = answer.uri.authority().map_or("", |authority| authority.as_str()).to_owned();
    let mut body = Vec::new();
    // A body that breaks off only costs us its message.
    let _ = answer.response.into_body().into_reader().take(ERROR_ANSWER_MAX).read_to_end(&mut body);
    let message = said(&body, &secrets);
    match status {
        StatusCode::NOT_FOUND => Failed::Final(Error::NotFound { what, message }),
        StatusCode::UNAUTHORIZED => {
            let hint = if !is_own {
                format!("the registry redirects to {place}, which wants credentials; prepull sends none there")
            } else if has_credentials {
                format!("hint: the registry does not accept these credentials; `podman login {host}` or --creds")
            } else {
                format!("hint: `podman login {host}` or --creds; some registries say this of what is not there")
            };
            Failed::Final(Error::Unauthorized { what, message, hint })
        }
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            let message = format!("{message} ({})", super::error::PROXY_HINT);
            Failed::Final(Error::Status { what, status, message, attempts: 1 })
        }
        _ => {
            let error = Error::Status { what, status, message, attempts: 1 };
            if retry::is_transient_status(status) { Failed::Again { error, retry_after } } else { Failed::Final(error) }
        }
    }
}

/// Turns an error while reading an answer into a failure.
pub(crate) fn broken(error: &io::Error, what: &str, offset: u64) -> Failed {
    let is_transient = retry::is_transient_io(error);
    let error = Error::Broken { what: what.to_owned(), reason: broken_reason(error), offset, attempts: 1 };
    if is_transient { Failed::Again { error, retry_after: None } } else { Failed::Final(error) }
}
