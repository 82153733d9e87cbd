//! What can go wrong between us and a registry, in words.

use std::fmt;
use std::io;

use ureq::http::{StatusCode, Uri};

use super::url;
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
    /// A proxy variable that is no URL of a proxy. The value is not shown, as it may hold a password.
    #[error("${0} is not a proxy that can be used: expected http://HOST:PORT")]
    Proxy(&'static str),
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
    /// The bytes came compressed although that was ruled out.
    #[error("{what}: the answer has the content-encoding {encoding:?} that was not asked for")]
    Encoding {
        /// What was being done.
        what: String,
        /// What the server says it did.
        encoding: String,
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

/// The step that failed before there was an answer.
#[derive(Debug)]
pub(crate) enum Failure {
    Transport(ureq::Error),
    Redirect(RedirectError, Uri),
}

impl Failure {
    pub(crate) fn into_failed(self, what: &dyn fmt::Display) -> Failed {
        let what = what.to_string();
        match self {
            Self::Transport(error) => {
                let is_transient = super::retry::is_transient(&error);
                let error = Error::Transport { what, reason: reason(&error), attempts: 1 };
                if is_transient { Failed::Again { error, retry_after: None } } else { Failed::Final(error) }
            }
            Self::Redirect(error, at) => Failed::Final(Error::Redirect { what, error, at: url::shown(&at) }),
        }
    }
}

/// ureq's error in a user's words. Texts that may quote a URL or a header are left out.
pub(crate) fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => io_reason(error),
        ureq::Error::Timeout(ureq::Timeout::PerRead | ureq::Timeout::PerWrite) => "the peer has stalled".to_owned(),
        ureq::Error::Timeout(ureq::Timeout::Connect) => "no connection within the time limit".to_owned(),
        ureq::Error::HostNotFound => "host not found".to_owned(),
        ureq::Error::Rustls(error) => tls_reason(error),
        ureq::Error::BadUri(_) => "the URL is malformed".to_owned(),
        other => clean(&other.to_string()),
    }
}

/// [`reason`] for an error while reading.
pub(crate) fn io_reason(error: &io::Error) -> String {
    if let Some(inner) = error.get_ref() {
        if let Some(error) = inner.downcast_ref::<rustls::Error>() {
            return tls_reason(error);
        }
        if let Some(error) = inner.downcast_ref::<ureq::Error>() {
            return reason(error);
        }
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the connection ended early".to_owned(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "the peer has stalled".to_owned(),
        _ => clean(&error.to_string()),
    }
}

fn tls_reason(error: &rustls::Error) -> String {
    use rustls::CertificateError as Certificate;
    match error {
        rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => {
            "the server does not speak TLS (hint: for plain HTTP, --tls-verify=false)".to_owned()
        }
        rustls::Error::InvalidCertificate(Certificate::UnknownIssuer) => {
            "the server's certificate is signed by an unknown authority \
             (hint: put the authority into /etc/containers/certs.d/HOST/ca.crt, or --tls-verify=false)"
                .to_owned()
        }
        rustls::Error::InvalidCertificate(Certificate::Other(error))
            if error.to_string().contains("CaUsedAsEndEntity") =>
        {
            "the server's certificate is that of an authority, which may not serve itself".to_owned()
        }
        other => format!("TLS: {}", clean(&other.to_string())),
    }
}

/// `: ` and what an error answer says, or nothing. Understands the registry's `errors`, and what token servers send.
#[must_use]
pub fn message(body: &[u8]) -> String {
    let Ok(serde_json::Value::Object(body)) = serde_json::from_slice(body) else { return String::new() };
    let text = |object: &serde_json::Map<String, serde_json::Value>, names: [&str; 4]| {
        names.iter().find_map(|name| Some(object.get(*name)?.as_str()?.to_owned()).filter(|text| !text.is_empty()))
    };
    let listed = body.get("errors").and_then(|errors| errors.as_array()).into_iter().flatten().take(ERRORS_SHOWN);
    let listed: Vec<String> = listed
        .filter_map(|error| error.as_object())
        .filter_map(|error| text(error, ["message", "detail", "code", "code"]))
        .collect();
    let text = match listed.is_empty() {
        true => text(&body, ["error_description", "details", "message", "error"]).unwrap_or_default(),
        false => listed.join("; "),
    };
    let text = clean(&text);
    if text.is_empty() { text } else { format!(": {text}") }
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
