//! Everything that talks to a registry: a client of the [OCI distribution specification] for pulling.
//!
//! ```text
//!  Client ──▶ Endpoint ──▶ Session ──▶ Http ──▶ the network
//!  (one       (one place   (one host:  (proxies, TLS,
//!   image's    to get it    scheme,     redirects)
//!   repository) from)       tokens)
//!     │
//!     └▶ BlobReader: resumes where a connection broke
//! ```
//!
//! * [`Client`] asks its endpoints in their order. Today there is one, the registry itself; mirrors of
//!   containers-registries.conf(5) become further ones, built by `config::registries`, and nothing else changes.
//! * A `Session` is shared by all clients of one host that were made from one [`Options`] (and its clones): connections,
//!   what the registry speaks, and tokens. Threads that need the same token wait for the one that fetches it.
//! * Nothing here is verified: digests are the business of whoever reads.
//!
//! Rules that hold everywhere: credentials are never sent to another origin than the registry's own or that of the token server
//! it names, which must be `https:` when certificates are verified; secrets are [`Secret`]s, and are taken out of what servers
//! say before it is shown; URLs are shown without user and query; every limit is a named constant.
//!
//! [OCI distribution specification]: https://github.com/opencontainers/distribution-spec/blob/main/spec.md

pub mod challenge;
mod client;
mod connect;
mod download;
mod error;
pub mod header;
mod proxy;
pub mod retry;
mod scrub;
mod session;
mod tls;
mod token;
mod transport;
mod url;

use std::path::PathBuf;
use std::time::Duration;

pub use client::{Client, Manifest, Which};
pub use connect::MinRate;
pub use download::BlobReader;
pub use error::{Error, RedirectError};
pub use session::Sessions;

use crate::config::Environment;
pub use crate::config::auth::{Credentials, Secret};

/// Parsers of what servers send, for tests of the parsers alone (`fuzz/`). All else that servers say goes through [`Client`].
pub mod foreign {
    pub use super::error::message;
    pub use super::tls::x509::Certificate;
    pub use super::token::parse as token_answer;
    pub use super::url::{absolute, resolve, shown};
}

/// Time limit for opening a connection, TLS handshake and proxy included (containers/image `tlsclientconfig.NewTransport`).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Default of `--timeout`, in seconds. Registries that fetch from another one before they answer need some of it.
pub const TIMEOUT_SECONDS: u64 = 60;

/// Default of `--min-rate`, in bytes a second: slower lines take an hour for the smallest base image.
pub const MIN_RATE: u64 = 1024;

/// Time over which the rate of a connection is measured (curl `--speed-time`).
pub const RATE_WINDOW: Duration = Duration::from_secs(30);

/// Time limits of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limits {
    /// `--timeout`: for a whole manifest, token or error, with all redirects; and for the head of the answer with a blob. Each
    /// attempt has it anew.
    pub timeout: Duration,
    /// Longest gap between two bytes. `--timeout` as well, but for tests.
    pub silence: Duration,
    /// `--min-rate`, for all bodies, so in effect for blobs.
    pub rate: MinRate,
}

impl Limits {
    /// `--timeout` and `--min-rate`, in seconds and bytes a second.
    #[must_use]
    pub fn new(timeout: u64, min_rate: u64) -> Self {
        let timeout = Duration::from_secs(timeout);
        Self { timeout, silence: timeout, rate: MinRate { bytes: min_rate, window: RATE_WINDOW } }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::new(TIMEOUT_SECONDS, MIN_RATE)
    }
}

/// The most redirects that are followed for one request (as Go's `net/http`).
pub const REDIRECTS_MAX: usize = 10;

/// The largest answer of a token server that is read, in bytes (containers/image `MaxAuthTokenBodySize`).
pub const TOKEN_ANSWER_MAX: u64 = 1 << 20;

/// The largest error answer that is looked at for a message, in bytes.
pub const ERROR_ANSWER_MAX: u64 = 64 << 10;

/// How a registry is to be talked to: the command line's options and the environment.
///
/// Clones share their sessions: give clones of one value to all sources of one run.
#[derive(Debug, Clone)]
pub struct Options {
    /// `--tls-verify`: when false, any certificate is taken, and plain HTTP where HTTPS is not spoken.
    pub tls_verify: bool,
    /// `--creds`: used for every registry, in place of all files. Empty ones (`--no-creds`): none are used.
    pub credentials: Option<Credentials>,
    /// `--authfile`: searched alone, and must exist.
    pub auth_file: Option<PathBuf>,
    /// `--cert-dir`: `*.crt`, `*.cert` and `*.key` for every registry that is named on the command line, in place of certs.d,
    /// and for the servers that these registries lead to.
    pub cert_dir: Option<PathBuf>,
    /// `--retry-times`, `--retry-delay`.
    pub retry: retry::Policy,
    /// `--timeout` and `--min-rate`.
    pub limits: Limits,
    /// Where configuration lies, and the proxies.
    pub environment: Environment,
    /// What clients made from clones of these options share.
    pub sessions: Sessions,
}

impl Options {
    /// The defaults, in `environment`.
    #[must_use]
    pub fn new(environment: Environment) -> Self {
        Self {
            tls_verify: true,
            credentials: None,
            auth_file: None,
            cert_dir: None,
            retry: retry::Policy::default(),
            limits: Limits::default(),
            environment,
            sessions: Sessions::default(),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new(Environment::of_process())
    }
}
