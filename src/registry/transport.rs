//! One HTTP exchange: proxies, TLS and redirects. Knows nothing of registries, tokens and retries.
//!
//! Redirects are followed here and not by ureq, since what goes along is ours to say: `Authorization` goes to the origin
//! that it was meant for and, once a redirect has left that, nowhere any more.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use ureq::config::Config;
use ureq::http::{self, HeaderValue, Method, Response, StatusCode, Uri, header};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{ConnectProxyConnector, Connector as _, NextTimeout, TcpConnector, time};
use ureq::{Agent, Body};

use super::error::{Failure, RedirectError};
use super::proxy::Proxies;
use super::url::{self, Origin};
use super::{CONNECT_TIMEOUT, Error, REDIRECTS_MAX, Secret, tls};
use crate::config::ProxyVariables;
use crate::config::certs::Certificates;
use crate::threads;

/// What registries and proxies log of us.
const USER_AGENT: &str = concat!("prepull/", env!("CARGO_PKG_VERSION"));

/// Idle connections that are kept to one host: as many as layers may be fetched at once.
const IDLE_PER_HOST: usize = 8;

pub(crate) struct Http {
    proxies: Proxies,
    direct: Agent,
    https: Option<Agent>,
    http: Option<Agent>,
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
}

pub(crate) struct Answer {
    pub(crate) response: Response<Body>,
    /// Whether it comes from the origin that was asked, so that it may speak of credentials.
    pub(crate) is_own: bool,
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

impl Http {
    pub(crate) fn new(
        certificates: &Certificates,
        verify: bool,
        read_timeout: Duration,
        proxy: &ProxyVariables,
    ) -> Result<Self, Error> {
        let tls = tls::config(certificates, verify)?;
        let proxies = Proxies::new(proxy)?;
        let agent = |proxy: Option<ureq::Proxy>| -> Agent {
            let config = Agent::config_builder()
                .proxy(proxy)
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .user_agent(USER_AGENT)
                // Otherwise a server or a proxy may compress a blob, and its digest is lost.
                .accept_encoding("identity")
                .timeout_connect(Some(CONNECT_TIMEOUT))
                .timeout_resolve(Some(CONNECT_TIMEOUT))
                .timeout_per_read(Some(read_timeout))
                .timeout_per_write(Some(read_timeout))
                .max_idle_connections_per_host(IDLE_PER_HOST)
                .build();
            let connector = ().chain(ConnectProxyConnector::default());
            let connector = connector.chain(TcpConnector::default()).chain(tls::TlsConnector(Arc::clone(&tls)));
            Agent::with_parts(config, connector, Names)
        };
        let direct = agent(None);
        let https = proxies.https.clone().map(|proxy| agent(Some(proxy)));
        let http = proxies.http.clone().map(|proxy| agent(Some(proxy)));
        Ok(Self { proxies, direct, https, http })
    }

    fn agent(&self, uri: &Uri) -> &Agent {
        let proxied = if uri.scheme_str() == Some("https") { &self.https } else { &self.http };
        proxied.as_ref().filter(|_| !self.proxies.is_direct(uri)).unwrap_or(&self.direct)
    }

    pub(crate) fn send(&self, request: &Request<'_>) -> Result<Answer, Failure> {
        let home = Origin::of(&request.uri);
        let mut uri = request.uri.clone();
        let mut been: Vec<Uri> = Vec::new();
        let mut authorization = request.authorization;
        loop {
            let response = self.send_once(request, &uri, authorization)?;
            let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            if !is_redirect {
                return Ok(Answer { response, is_own: Origin::of(&uri) == home });
            }
            let refuse = |error| Err(Failure::Redirect(error, uri.clone()));
            if request.form.is_some() {
                return refuse(RedirectError::Form);
            }
            let location = response.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
            let Some(next) = location.and_then(|location| url::resolve(&uri, location)) else {
                return refuse(RedirectError::Location);
            };
            been.push(uri.clone());
            if been.contains(&next) {
                return refuse(RedirectError::Loop);
            }
            if been.len() > REDIRECTS_MAX {
                return refuse(RedirectError::TooMany);
            }
            let target = Origin::of(&next);
            if Origin::of(&uri).is_https() && !target.is_https() && !request.may_downgrade {
                return refuse(RedirectError::Downgrade);
            }
            if target != home {
                authorization = None;
            }
            tracing::debug!("redirected to {}", url::shown(&next));
            uri = next;
        }
    }

    fn send_once(
        &self,
        request: &Request<'_>,
        uri: &Uri,
        authorization: Option<&Secret>,
    ) -> Result<Response<Body>, Failure> {
        let method = if request.form.is_some() { Method::POST } else { Method::GET };
        tracing::debug!("{method} {}", url::shown(uri));
        let mut builder = http::Request::builder().method(method).uri(uri);
        for (name, value) in request.headers {
            builder = builder.header(name, *value);
        }
        if let Some(secret) = authorization {
            let mut value = HeaderValue::from_str(secret.expose()).map_err(|error| failure(error.into()))?;
            value.set_sensitive(true);
            builder = builder.header(header::AUTHORIZATION, value);
        }
        let agent = self.agent(uri);
        let result = match request.form {
            Some(form) => {
                let builder = builder.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
                builder.body(form.expose()).map_err(failure).map(|request| agent.run(request))
            }
            None => builder.body(()).map_err(failure).map(|request| agent.run(request)),
        };
        result?.map_err(Failure::Transport)
    }
}

/// The system's resolver, whose errors have no kind by which they could be told from others, on a thread of our own: ureq
/// panics where there is none to be had.
#[derive(Debug)]
struct Names;

impl Resolver for Names {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let (sender, receiver) = channel();
        let (uri, config) = (uri.clone(), config.clone());
        let patient = NextTimeout { after: time::Duration::NotHappening, ..timeout };
        let resolve = move || {
            // Nobody listens any more when it took too long.
            let _ = sender.send(DefaultResolver::default().resolve(&uri, &config, patient));
        };
        threads::spawn(resolve).map_err(ureq::Error::Io)?;
        match receiver.recv_timeout(CONNECT_TIMEOUT.min(*timeout.after)) {
            Ok(Err(ureq::Error::Io(error))) => {
                Err(ureq::Error::Io(io::Error::new(io::ErrorKind::HostUnreachable, error.to_string())))
            }
            Ok(done) => done,
            Err(_) => Err(ureq::Error::Timeout(timeout.reason)),
        }
    }
}

fn failure(error: http::Error) -> Failure {
    Failure::Transport(ureq::Error::Http(error))
}
