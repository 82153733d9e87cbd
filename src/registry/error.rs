//! What can go wrong between us and a registry, in words.

use std::fmt;
use std::io;
use std::sync::Arc;

use ureq::http::{StatusCode, Uri};

use super::connect::{TooSlow, Unresolved};
use super::scrub::Secrets;
use super::tls::verify::Unfit;
use crate::config::{auth, certs, clean};

/// Why a registry did not give what it was asked for.
///
/// `what` says what was being done (`fetching manifest v1 of localhost:5000/app`); what a server said is cleaned of control
/// characters and shortened. No variant holds a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The host cannot be one.
    #[error("{0:?} is not a registry's host[:port]")]
    Host(String),
    /// The repository cannot be one.
    #[error("{0:?} is not a repository's name")]
    Repository(String),
    /// The tag cannot be one.
    #[error("{0:?} is not a tag")]
    Tag(String),
    /// Credentials could not be looked up.
    #[error(transparent)]
    Credentials(#[from] auth::Error),
    /// Certificates could not be read or used.
    #[error(transparent)]
    Certificates(#[from] certs::Error),
    /// A proxy variable that is not the URL of an HTTP proxy, and what more is to be said of it. The value is not shown, as it may hold
    /// a password.
    #[error("${0} is not a proxy that can be used: expected http://HOST:PORT{1}")]
    Proxy(&'static str, &'static str),
    /// There is no such manifest, blob or repository: HTTP 404.
    #[error("{what}: not found (HTTP 404{message})")]
    NotFound {
        /// What was being done.
        what: String,
        /// `: ` and the registry's message, or nothing.
        message: String,
    },
    /// The registry wants to know who asks, or does not believe it: HTTP 401.
    #[error("{what}: HTTP 401 unauthorized{message} ({hint})")]
    Unauthorized {
        /// What was being done.
        what: String,
        /// `: ` and the registry's message, or nothing.
        message: String,
        /// What may help.
        hint: String,
    },
    /// Another status than was hoped for.
    #[error("{what}: HTTP {status}{message}{}", times(.attempts))]
    Status {
        /// What was being done.
        what: String,
        /// The status and its name.
        status: StatusCode,
        /// `: ` and the registry's message, or nothing.
        message: String,
        /// How many attempts failed in a row.
        attempts: u32,
    },
    /// No answer: connection, TLS or protocol.
    #[error("{what}: {reason}{}", times(.attempts))]
    Transport {
        /// What was being done.
        what: String,
        /// What went wrong, with a hint where one is known.
        reason: String,
        /// How many attempts failed in a row.
        attempts: u32,
    },
    /// The answer broke off, and resuming did not help.
    #[error("{what}: {reason} after {offset} bytes{}", times(.attempts))]
    Broken {
        /// What was being done.
        what: String,
        /// What went wrong.
        reason: String,
        /// How far it got.
        offset: u64,
        /// How many attempts failed in a row without a byte of progress.
        attempts: u32,
    },
    /// A redirect that is not followed.
    #[error("{what}: {error}, at {at}")]
    Redirect {
        /// What was being done.
        what: String,
        /// Why not.
        error: RedirectError,
        /// The URL that redirected, without its query.
        at: String,
    },
    /// More bytes than the limit.
    #[error("{what}: more than {limit} bytes")]
    TooBig {
        /// What was being done.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// The registry's challenge, or its token server's answer, cannot be used.
    #[error("{what}: {reason}")]
    Token {
        /// What was being done.
        what: String,
        /// What is wrong.
        reason: &'static str,
    },
}

fn times(attempts: &u32) -> String {
    if *attempts > 1 { format!(" ({attempts} attempts)") } else { String::new() }
}

/// Why a redirect is not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RedirectError {
    /// To a place where it has been.
    #[error("redirect loop")]
    Loop,
    /// More than [`super::REDIRECTS_MAX`].
    #[error("more than {} redirects", super::REDIRECTS_MAX)]
    TooMany,
    /// Nowhere, or to something that is no http or https URL.
    #[error("redirect without a usable Location")]
    Location,
    /// From HTTPS to HTTP, where no digest protects the content.
    #[error("redirect from https to plain http")]
    Downgrade,
    /// Of a request that carries a secret in its body.
    #[error("redirect of a request that must not be redirected")]
    Form,
}

/// A failure of one attempt: whether another one makes sense, and when.
#[derive(Debug)]
pub(crate) enum Failed {
    Again { error: Error, retry_after: Option<std::time::Duration> },
    Final(Error),
}

impl Failed {
    /// The error, which says how many attempts there were.
    pub(crate) fn after(self, failures: u32) -> Error {
        let mut error = match self {
            Self::Again { error, .. } | Self::Final(error) => error,
        };
        match &mut error {
            Error::Status { attempts, .. } | Error::Transport { attempts, .. } | Error::Broken { attempts, .. } => {
                *attempts = failures.max(*attempts);
            }
            _ => {}
        }
        error
    }

    pub(crate) fn error(&self) -> &Error {
        match self {
            Self::Again { error, .. } | Self::Final(error) => error,
        }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// What helps when a proxy does not know its client.
pub(crate) const PROXY_HINT: &str = "hint: put the proxy's user and password into $HTTP_PROXY or $HTTPS_PROXY, as http://USER:PASSWORD@HOST:PORT with percent escapes";

/// The step that failed before there was an answer.
#[derive(Debug)]
pub(crate) enum Failure {
    Transport {
        error: ureq::Error,
        /// The request's.
        uri: Uri,
        /// The proxy that it went to, without user and password.
        proxy: Option<Arc<str>>,
    },
    /// The second is the URL that redirected, fit to be shown.
    Redirect(RedirectError, String),
}

impl Failure {
    pub(crate) fn into_failed(self, what: &dyn fmt::Display) -> Failed {
        let what = what.to_string();
        match self {
            Self::Transport { error, uri, proxy } => {
                let is_transient = super::retry::is_transient(&error);
                let place = Place { host: uri.authority().map_or("", |host| host.as_str()), proxy: proxy.as_deref() };
                let what = proxy.as_ref().map_or(what.clone(), |proxy| format!("{what} through proxy {proxy}"));
                let error = Error::Transport { what, reason: reason(&error, place), attempts: 1 };
                if is_transient { Failed::Again { error, retry_after: None } } else { Failed::Final(error) }
            }
            Self::Redirect(error, at) => Failed::Final(Error::Redirect { what, error, at }),
        }
    }
}

/// Returns whether there is no server to connect to: its name has no address, or its port is closed.
pub(crate) fn is_absent(error: &ureq::Error) -> bool {
    matches!(error, ureq::Error::Io(error)
        if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable))
}

/// The peer of a connection, for messages.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// `HOST[:PORT]` of the request.
    host: &'a str,
    proxy: Option<&'a str>,
}

impl<'a> Place<'a> {
    /// The server to which the connection itself goes.
    fn peer(&self) -> &'a str {
        self.proxy.map_or(self.host, |proxy| proxy.split("://").last().unwrap_or(proxy))
    }
}

/// Returns ureq's error in a user's words. Texts that may quote a URL or a header are left out.
fn reason(error: &ureq::Error, place: Place<'_>) -> String {
    use ureq::Timeout as Limit;
    match error {
        ureq::Error::Io(error) => io_reason(error, place),
        ureq::Error::Timeout(Limit::PerRead | Limit::PerWrite) => "the peer has stalled".to_owned(),
        ureq::Error::Timeout(Limit::Resolve) => {
            format!("the name server did not tell the address of {} within the time limit", host(place.peer()))
        }
        ureq::Error::Timeout(Limit::Connect) => "no connection within the time limit".to_owned(),
        ureq::Error::Timeout(_) => "no complete answer within the time limit (--timeout)".to_owned(),
        ureq::Error::HostNotFound => format!("{} has no address", host(place.peer())),
        ureq::Error::Rustls(error) => tls_reason(error, place.host),
        ureq::Error::BadUri(_) => "the URL is malformed".to_owned(),
        // ureq: "proxy server responded 403/403".
        ureq::Error::ConnectProxyFailed(text) => match text.split([' ', '/']).find_map(|word| word.parse::<u16>().ok())
        {
            Some(407) => format!("HTTP 407: the proxy wants a user and a password ({PROXY_HINT})"),
            Some(status) => format!("the proxy refuses the connection to {}: HTTP {status}", place.host),
            None => "the proxy did not answer".to_owned(),
        },
        other => clean(&other.to_string()),
    }
}

/// [`reason`] for an error while reading an answer.
pub(crate) fn broken_reason(error: &io::Error) -> String {
    io_reason(error, Place { host: "the server", proxy: None })
}

fn io_reason(error: &io::Error, place: Place<'_>) -> String {
    if let Some(inner) = error.get_ref() {
        if let Some(error) = inner.downcast_ref::<rustls::Error>() {
            return tls_reason(error, place.host);
        }
        if let Some(error) = inner.downcast_ref::<ureq::Error>() {
            return reason(error, place);
        }
        if let Some(error) = inner.downcast_ref::<TooSlow>() {
            return error.to_string();
        }
        if let Some(Unresolved(text)) = inner.downcast_ref::<Unresolved>() {
            let text = text.strip_prefix("failed to lookup address information: ").unwrap_or(text);
            return format!("the name {} has no address: {} (is it spelt right?)", host(place.peer()), clean(text));
        }
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            format!("connection refused: no server listens at {}", place.peer())
        }
        io::ErrorKind::UnexpectedEof => "the connection ended early".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset by the server".to_owned(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "the peer has stalled".to_owned(),
        _ => clean(&error.to_string()),
    }
}

/// `HOST[:PORT]` without the port.
fn host(authority: &str) -> &str {
    if authority.ends_with(']') { authority } else { authority.rsplit_once(':').map_or(authority, |(host, _)| host) }
}

/// What helps against a certificate that is not trusted.
const TRUST_HINT: &str = "hint: trust it with --cert-dir DIR or /etc/containers/certs.d/HOST/ca.crt, \
     or do not verify with --tls-verify=false";

/// What helps against a certificate that is not to be trusted.
const INSECURE_HINT: &str = "hint: --tls-verify=false skips this check";

fn tls_reason(error: &rustls::Error, server: &str) -> String {
    use rustls::CertificateError as Certificate;
    let certificate = format!("the certificate of {server}");
    let date = |time: &rustls_pki_types::UnixTime| {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        jiff::Timestamp::from_second(seconds)
            .map_or("?".to_owned(), |time| time.strftime("%Y-%m-%d %H:%M UTC").to_string())
    };
    let error = match error {
        rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => {
            return "the server does not speak TLS (hint: for plain HTTP, --tls-verify=false)".to_owned();
        }
        rustls::Error::AlertReceived(rustls::AlertDescription::HandshakeFailure) => {
            return "the server refuses the handshake: it needs TLS 1.2 or 1.3, and a certificate with a key of RSA (2048 bits \
                    or more), ECDSA (P-256, P-384, P-521) or Ed25519"
                .to_owned();
        }
        rustls::Error::AlertReceived(
            rustls::AlertDescription::CertificateRequired | rustls::AlertDescription::BadCertificate,
        ) => {
            return "the server wants a client certificate (hint: NAME.cert and NAME.key in --cert-dir DIR or \
                    /etc/containers/certs.d/HOST)"
                .to_owned();
        }
        rustls::Error::InvalidCertificate(error) => error,
        other => return format!("TLS: {}", clean(&other.to_string())),
    };
    match error {
        Certificate::UnknownIssuer => format!("{certificate} is signed by an unknown authority ({TRUST_HINT})"),
        Certificate::Expired => format!("{certificate} has expired ({INSECURE_HINT})"),
        Certificate::ExpiredContext { not_after, .. } => {
            format!("{certificate}, or that of its authority, has expired on {} ({INSECURE_HINT})", date(not_after))
        }
        Certificate::NotValidYet => format!("{certificate} is not valid yet ({INSECURE_HINT})"),
        Certificate::NotValidYetContext { not_before, .. } => format!(
            "{certificate}, or that of its authority, is not valid before {} (is this machine's clock right?)",
            date(not_before)
        ),
        Certificate::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            format!("{certificate} {} ({INSECURE_HINT})", Unfit::NoNames)
        }
        Certificate::NotValidForNameContext { presented, .. } => {
            // rustls has `DnsName("a")` for a name.
            let plain = |name: &String| {
                let inner = name.split_once('(').map_or(name.as_str(), |(_, inner)| inner.trim_end_matches(')'));
                clean(inner.trim_matches('"'))
            };
            let names: Vec<String> = presented.iter().take(NAMES_SHOWN).map(plain).collect();
            let more = if presented.len() > NAMES_SHOWN { ", ..." } else { "" };
            format!("{certificate} is not valid for that name, but for {}{more} ({INSECURE_HINT})", names.join(", "))
        }
        Certificate::NotValidForName => format!("{certificate} is not valid for that name ({INSECURE_HINT})"),
        Certificate::InvalidPurpose | Certificate::InvalidPurposeContext { .. } => {
            format!("{certificate} is not meant for servers, by its key usage ({INSECURE_HINT})")
        }
        Certificate::UnsupportedSignatureAlgorithmContext { signature_algorithm_id, .. }
        | Certificate::UnsupportedSignatureAlgorithmForPublicKeyContext { signature_algorithm_id, .. } => format!(
            "{certificate}, or that of its authority, is signed with {}, which is not supported (hint: have it signed with RSA or \
             ECDSA and SHA-256, or do not verify with --tls-verify=false)",
            super::tls::x509::algorithm_name(signature_algorithm_id)
        ),
        Certificate::BadSignature => format!(
            "{certificate}, or that of its authority, has a wrong signature, or an RSA key of fewer than 2048 bits ({INSECURE_HINT})"
        ),
        Certificate::Other(other) => match other.0.downcast_ref::<Unfit>() {
            Some(Unfit::SelfSigned) => format!("{certificate} {} ({TRUST_HINT})", Unfit::SelfSigned),
            Some(unfit) => format!("{certificate} {unfit} ({INSECURE_HINT})"),
            // webpki's error, which has no other text.
            None if other.to_string() == "UnsupportedCriticalExtension" => format!(
                "{certificate}, or that of its authority, has a critical extension that is not known ({INSECURE_HINT})"
            ),
            None => format!("{certificate} is not usable: {} ({INSECURE_HINT})", clean(&other.to_string())),
        },
        other => format!("{certificate} is not usable: {} ({INSECURE_HINT})", clean(&other.to_string())),
    }
}

/// Most names of a certificate that are shown.
const NAMES_SHOWN: usize = 5;

/// Returns [`message`] without `secrets`.
pub(crate) fn said(body: &[u8], secrets: &Secrets) -> String {
    let text = clean(&secrets.scrub(&text(body)));
    if text.is_empty() { text } else { format!(": {text}") }
}

/// `: ` and what an error answer says, or nothing. Understands the registry's `errors`, and what token servers send.
#[must_use]
pub fn message(body: &[u8]) -> String {
    said(body, &Secrets::default())
}

/// Returns the text of an error answer, as it is.
fn text(body: &[u8]) -> String {
    let Ok(serde_json::Value::Object(body)) = serde_json::from_slice(body) else { return String::new() };
    let text = |object: &serde_json::Map<String, serde_json::Value>, names: [&str; 4]| {
        names.iter().find_map(|name| Some(object.get(*name)?.as_str()?.to_owned()).filter(|text| !text.is_empty()))
    };
    let listed = body.get("errors").and_then(|errors| errors.as_array()).into_iter().flatten().take(ERRORS_SHOWN);
    let listed: Vec<String> = listed
        .filter_map(|error| error.as_object())
        .filter_map(|error| text(error, ["message", "detail", "code", "code"]))
        .collect();
    match listed.is_empty() {
        true => text(&body, ["error_description", "details", "message", "error"]).unwrap_or_default(),
        false => listed.join("; "),
    }
}

/// How many of a registry's `errors` are shown.
const ERRORS_SHOWN: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_bounded_and_clean() {
        for (body, expected) in [
            (
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"v1"}}]}"#,
                ": manifest unknown",
            ),
            (r#"{"errors":[{"code":"DENIED"}]}"#, ": DENIED"),
            (r#"{"errors":[{"message":"a\u001b[31m\r\nb"},{"message":"c"}]}"#, ": a [31m b; c"),
            (r#"{"details":"incorrect username or password"}"#, ": incorrect username or password"),
            (r#"{"error":"invalid_grant","error_description":"expired"}"#, ": expired"),
            (r#"{"errors":"x"}"#, ""),
            ("<html>", ""),
            ("", ""),
        ] {
            assert_eq!(message(body.as_bytes()), expected, "{body}");
        }
        let long = format!(r#"{{"message":"{}"}}"#, "ä".repeat(9999));
        assert_eq!(message(long.as_bytes()).chars().count(), crate::config::SHOWN_MAX + 5);
    }
}
