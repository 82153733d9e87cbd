//! One HTTP exchange: proxies, TLS and redirects. Knows nothing of registries, tokens and retries.
//!
//! Redirects are followed here and not by ureq, since what goes along is ours to say: `Authorization` goes to the origin
//! that it was meant for and, once a redirect has left that, nowhere any more.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::http::{self, HeaderValue, Method, Response, StatusCode, Uri, header};
use ureq::unversioned::transport::{ConnectProxyConnector, Connector as _};
use ureq::{Agent, Body};

use super::connect::{AbsoluteForm, Names, Socket};
use super::error::{Failure, RedirectError};
use super::proxy::Proxies;
use super::scrub::Secrets;
use super::tls::TlsConnector;
use super::url::{self, Origin};
use super::{CONNECT_TIMEOUT, Error, Limits, REDIRECTS_MAX, Secret, tls};
use crate::config::ProxyVariables;
use crate::config::certs::Certificates;

/// What registries and proxies log of us.
const USER_AGENT: &str = concat!("prepull/", env!("CARGO_PKG_VERSION"));

/// Idle connections that are kept to one host: as many as layers may be fetched at once.
const IDLE_PER_HOST: usize = 8;

/// Connections by one way.
struct Way {
    agent: Agent,
    /// The proxy, without user and password; `None` for direct connections.
    proxy: Option<Arc<str>>,
    /// `Proxy-Authorization` of plain requests; with CONNECT, ureq writes it.
    authorization: Option<Secret>,
}

pub(crate) struct Http {
    proxies: Proxies,
    direct: Way,
    https: Option<Way>,
    http: Option<Way>,
    limits: Limits,
    pub(crate) secrets: Arc<Secrets>,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}

pub(crate) struct Request<'a> {
    pub(crate) uri: Uri,
    pub(crate) headers: &'a [(http::HeaderName, &'a str)],
    pub(crate) authorization: Option<&'a Secret>,
    /// The body of a POST, which is never redirected; a GET without.
    pub(crate) form: Option<&'a Secret>,
    /// Whether a redirect may lead from https to http: when a digest protects the content, or nobody cares.
    pub(crate) may_downgrade: bool,
    /// True if the body of the answer may take longer than [`Limits::timeout`]: a blob.
    pub(crate) is_long: bool,
}

pub(crate) struct Answer {
    pub(crate) response: Response<Body>,
    /// Whether it comes from the origin that was asked, so that it may speak of credentials.
    pub(crate) is_own: bool,
    /// Where the last redirect led.
    pub(crate) uri: Uri,
    /// The proxy that it came through.
    pub(crate) proxy: Option<Arc<str>>,
    pub(crate) secrets: Arc<Secrets>,
}

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// A header field's text, when there is exactly one that is text.
    pub(crate) fn field(&self, name: &http::HeaderName) -> Option<&str> {
        let mut fields = self.response.headers().get_all(name).iter();
        let field = fields.next()?.to_str().ok();
        if fields.next().is_some() { None } else { field }
    }
}

impl Answer {
    /// Returns whether the server says that the body is compressed with gzip. Stores of the S3 kind say so of bytes that are not.
    pub(crate) fn is_gzip(&self) -> bool {
        let encoding = self.field(&header::CONTENT_ENCODING).unwrap_or_default().trim();
        encoding.eq_ignore_ascii_case("gzip") || encoding.eq_ignore_ascii_case("x-gzip")
    }

    /// Returns whether the body has this length, or its length is not said.
    pub(crate) fn has_length(&self, length: u64) -> bool {
        self.field(&header::CONTENT_LENGTH).is_none_or(|field| field.parse() == Ok(length))
    }
}

/// The redirects of one piece of work, which may be several requests.
#[derive(Default)]
pub(crate) struct Trail(Vec<Uri>);

impl Http {
    /// Connections for the registry at `host` (a name or an address, without port).
    pub(crate) fn new(
        certificates: &Certificates,
        host: &str,
        verify: bool,
        limits: Limits,
        proxy: &ProxyVariables,
    ) -> Result<Self, Error> {
        let tls = tls::config(certificates, host, verify)?;
        let proxies = Proxies::new(proxy)?;
        let secrets = Arc::<Secrets>::default();
        let config = |proxy: Option<ureq::Proxy>| {
            Agent::config_builder()
                .proxy(proxy)
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .user_agent(USER_AGENT)
                // Otherwise a server or a proxy may compress a blob, and its digest is lost.
                .accept_encoding("identity")
                .timeout_connect(Some(CONNECT_TIMEOUT.min(limits.timeout)))
                .timeout_resolve(Some(CONNECT_TIMEOUT.min(limits.timeout)))
                .timeout_send_request(Some(limits.timeout))
                .timeout_recv_response(Some(limits.timeout))
                .timeout_per_read(Some(limits.silence))
                .timeout_per_write(Some(limits.silence))
                .max_idle_connections_per_host(IDLE_PER_HOST)
                .build()
        };
        let socket = || Socket(limits.rate);
        let wrap = |server: Option<Uri>| TlsConnector { config: Arc::clone(&tls), server };
        let connect = |proxy: Option<ureq::Proxy>| {
            let connector = ().chain(ConnectProxyConnector::default()).chain(socket()).chain(wrap(None));
            Agent::with_parts(config(proxy), connector, Names { proxy: None })
        };
        let shown = |proxy: &ureq::Proxy| Some(url::shown(proxy.uri()).trim_end_matches('/').into());
        let direct = Way { agent: connect(None), proxy: None, authorization: None };
        let https = proxies.https.as_ref().map(|proxy| Way {
            agent: connect(Some(proxy.clone())),
            proxy: shown(proxy),
            authorization: None,
        });
        let http = proxies.http.as_ref().map(|proxy| {
            let server = Some(proxy.uri().clone());
            let connector = ().chain(socket()).chain(wrap(server.clone())).chain(AbsoluteForm);
            let agent = Agent::with_parts(config(None), connector, Names { proxy: server });
            Way { agent, proxy: shown(proxy), authorization: super::proxy::authorization(proxy) }
        });
        for proxy in [&proxies.https, &proxies.http].into_iter().flatten() {
            secrets.add(proxy.password().unwrap_or_default());
            secrets.add(super::proxy::authorization(proxy).as_ref().map_or("", Secret::expose));
        }
        Ok(Self { proxies, direct, https, http, limits, secrets })
    }

    fn way(&self, uri: &Uri) -> &Way {
        let proxied = if uri.scheme_str() == Some("https") { &self.https } else { &self.http };
        proxied.as_ref().filter(|_| !self.proxies.is_direct(uri)).unwrap_or(&self.direct)
    }

    /// [`url::shown`], without secrets that a server has put into it.
    pub(crate) fn shown(&self, uri: &Uri) -> String {
        self.secrets.scrub(&url::shown(uri))
    }

    /// Sends `request`, and follows redirects. `trail` has the redirects before this request, and gets those of this one.
    pub(crate) fn send(&self, request: &Request<'_>, trail: &mut Trail) -> Result<Answer, Failure> {
        let home = Origin::of(&request.uri);
        let mut uri = request.uri.clone();
        let (mut authorization, mut has_left) = (request.authorization.cloned(), false);
        let deadline = Instant::now() + self.limits.timeout;
        loop {
            let way = self.way(&uri);
            let response = self.send_once(request, &uri, authorization.as_ref(), way, deadline)?;
            let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            if !is_redirect {
                let (proxy, secrets) = (way.proxy.clone(), Arc::clone(&self.secrets));
                return Ok(Answer { response, is_own: Origin::of(&uri) == home, uri, proxy, secrets });
            }
            let refuse = |error| Err(Failure::Redirect(error, self.shown(&uri)));
            if request.form.is_some() {
                return refuse(RedirectError::Form);
            }
            let location = response.headers().get(header::LOCATION);
            let Some(next) = location.and_then(|location| url::resolve(&uri, location.as_bytes())) else {
                return refuse(RedirectError::Location);
            };
            let url::Target { uri: next, authorization: own } = next;
            trail.0.push(uri.clone());
            if trail.0.contains(&next) {
                return refuse(RedirectError::Loop);
            }
            if trail.0.len() > REDIRECTS_MAX {
                return refuse(RedirectError::TooMany);
            }
            let target = Origin::of(&next);
            if Origin::of(&uri).is_https() && !target.is_https() && !request.may_downgrade {
                return refuse(RedirectError::Downgrade);
            }
            // User and password in a `Location` are for that target only, and count where the request has no credentials
            // (Go's `net/http.send`).
            has_left |= target != home;
            authorization = if has_left { None } else { request.authorization.cloned() }.or(own);
            if let Some(own) = &authorization {
                self.secrets.add(own.expose());
            }
            tracing::debug!("redirected to {}", self.shown(&next));
            uri = next;
        }
    }

    fn send_once(
        &self,
        request: &Request<'_>,
        uri: &Uri,
        authorization: Option<&Secret>,
        way: &Way,
        deadline: Instant,
    ) -> Result<Response<Body>, Failure> {
        let method = if request.form.is_some() { Method::POST } else { Method::GET };
        tracing::debug!("{method} {}", self.shown(uri));
        let fail = |error| Failure::Transport { error, uri: uri.clone(), proxy: way.proxy.clone() };
        let bad = |error: http::Error| fail(ureq::Error::Http(error));
        let mut builder = http::Request::builder().method(method).uri(uri);
        for (name, value) in request.headers {
            builder = builder.header(name, *value);
        }
        let secrets =
            [(header::AUTHORIZATION, authorization), (header::PROXY_AUTHORIZATION, way.authorization.as_ref())];
        for (name, secret) in secrets {
            if let Some(secret) = secret {
                let mut value = HeaderValue::from_str(secret.expose()).map_err(|error| bad(error.into()))?;
                value.set_sensitive(true);
                builder = builder.header(name, value);
            }
        }
        // A request-level configuration shares the pool of connections: only its time limit differs.
        let whole = if request.is_long { None } else { Some(deadline.saturating_duration_since(Instant::now())) };
        let limited = |whole: Option<Duration>| whole.map(|left| left.max(Duration::from_millis(1)));
        let result = match request.form {
            Some(form) => {
                let builder = builder.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
                let request = builder.body(form.expose()).map_err(bad)?;
                way.agent.run(way.agent.configure_request(request).timeout_global(limited(whole)).build())
            }
            None => {
                let request = builder.body(()).map_err(bad)?;
                way.agent.run(way.agent.configure_request(request).timeout_global(limited(whole)).build())
            }
        };
        result.map_err(fail)
    }
}
