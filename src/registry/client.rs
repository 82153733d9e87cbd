//! The client of one repository: manifests whole, blobs as streams.

use std::fmt;
use std::io::Read;
use std::sync::Arc;

use ureq::http::{StatusCode, header};

use super::download::{BlobReader, decoded};
use super::error::Failed;
use super::retry::{Attempts, Policy};
use super::session::{Get, Session, broken, refusal};
use super::transport::Answer;
use super::{Credentials, Error, MinRate, Options};
use crate::config::auth;
use crate::digest::Digest;

/// What we take for a manifest: OCI and Docker, index and image. Not Docker schema 1, which has no config.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// The longest repository name (distribution/reference `NameTotalLengthMax`).
const REPOSITORY_MAX: usize = 255;

/// The longest tag (distribution/reference `TagRegexp`).
const TAG_MAX: usize = 128;

/// Which manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which<'a> {
    /// The one that the tag points at now.
    Tag(&'a str),
    /// This very one.
    Digest(&'a Digest),
}

impl fmt::Display for Which<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// A manifest as the registry gave it, not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// `Content-Type` without its parameters, when the registry sent one.
    pub media_type: Option<String>,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// A client of one repository. Cheap to clone; threads may use one at once.
#[derive(Clone)]
pub struct Client {
    /// In the order in which they are asked: mirrors will come before the registry itself.
    endpoints: Arc<[Arc<Endpoint>]>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.endpoints.iter().map(|endpoint| endpoint.name())).finish()
    }
}

/// One place to get a repository from: a host, the repository's name there, and who asks.
pub(crate) struct Endpoint {
    session: Arc<Session>,
    repository: String,
    credentials: Option<Credentials>,
    pub(crate) policy: Policy,
    pub(crate) rate: MinRate,
}

impl Client {
    /// A client of `repository` (`library/alpine`) at `host` (`docker.io`, `localhost:5000`): normalised, as the parts of a
    /// reference are. Looks up certificates and credentials (which may run a credential helper), but does not connect.
    ///
    /// # Errors
    /// When host or repository are not well-formed, and when credentials or certificates that are there cannot be used.
    pub fn new(host: &str, repository: &str, options: &Options) -> Result<Self, Error> {
        let fits_host = |c: char| c.is_ascii_alphanumeric() || "._-:[]".contains(c);
        if host.is_empty() || host.starts_with('.') || !host.chars().all(fits_host) {
            return Err(Error::Host(host.to_owned()));
        }
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        let is_part = |part: &str| !part.is_empty() && !part.starts_with('.') && part.chars().all(fits);
        if repository.len() > REPOSITORY_MAX || !repository.split('/').all(is_part) {
            return Err(Error::Repository(repository.to_owned()));
        }
        let credentials = match &options.credentials {
            Some(given) => Some(given.clone()).filter(|given| !given.is_empty()),
            None => auth::find(&format!("{host}/{repository}"), options.auth_file.as_deref(), &options.environment)?,
        };
        let session = options.sessions.get(host, options)?;
        let endpoint = Endpoint {
            session,
            repository: repository.to_owned(),
            credentials,
            policy: options.retry.clone(),
            rate: options.limits.rate,
        };
        Ok(Self { endpoints: [Arc::new(endpoint)].into() })
    }

    /// Fetches a manifest of at most `limit` bytes. With a tag, a redirect to plain HTTP is refused; with a digest the
    /// caller verifies.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none, [`Error::TooBig`], [`Error::Tag`] when it cannot be one, and whatever else can go wrong, after all attempts.
    pub fn manifest(&self, which: Which<'_>, limit: u64) -> Result<Manifest, Error> {
        if let Which::Tag(tag) = which {
            let fits = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
            if tag.is_empty() || tag.len() > TAG_MAX || tag.starts_with(['.', '-']) || !tag.chars().all(fits) {
                return Err(Error::Tag(tag.to_owned()));
            }
        }
        self.first(|endpoint| endpoint.manifest(which, limit))
    }

    /// Opens a blob. The answer is there when this returns; the reader resumes after that.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none, and whatever else can go wrong, after all attempts.
    pub fn blob(&self, digest: &Digest, size: u64) -> Result<BlobReader, Error> {
        self.first(|endpoint| BlobReader::open(Arc::clone(endpoint), digest, size))
    }

    /// The first endpoint that has it, else what the last one said.
    fn first<T>(&self, ask: impl Fn(&Arc<Endpoint>) -> Result<T, Error>) -> Result<T, Error> {
        let (last, mirrors) = self.endpoints.split_last().ok_or_else(|| Error::Host(String::new()))?;
        for endpoint in mirrors {
            match ask(endpoint) {
                Err(error) => tracing::info!("{error}; asking the next"),
                found => return found,
            }
        }
        ask(last)
    }
}

impl Endpoint {
    /// `HOST/REPOSITORY` for messages.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.session.host(), self.repository)
    }

    /// One attempt at a GET whose answer must have one of the statuses in `good`.
    pub(crate) fn get_once(
        &self,
        path: &str,
        headers: &[(header::HeaderName, &str)],
        may_downgrade: bool,
        good: &[StatusCode],
        what: &str,
    ) -> Result<Answer, Failed> {
        let credentials = self.credentials.as_ref();
        let repository = self.repository.as_str();
        let is_long = path.starts_with("blobs/");
        let get =
            Get { repository, path, headers, credentials, may_downgrade, is_long, what, policy: self.policy.clone() };
        let answer = self.session.get_once(&get)?;
        if !good.contains(&answer.status()) {
            return Err(refusal(answer, what, self.session.host(), credentials.is_some()));
        }
        // Stores of the S3 kind keep `aws-chunked`, `gzip` and the like as metadata of bytes that were never encoded on the way.
        // The digest of the bytes decides.
        if let Some(encoding) = answer.field(&header::CONTENT_ENCODING) {
            tracing::debug!(
                "{what}: the answer says Content-Encoding {:?}",
                crate::config::clean(&answer.secrets.scrub(encoding))
            );
        }
        Ok(answer)
    }

    fn manifest(&self, which: Which<'_>, limit: u64) -> Result<Manifest, Error> {
        let what = format!("fetching manifest {which} of {}", self.name());
        let mut attempts = Attempts::new(self.policy.clone());
        loop {
            match self.manifest_once(which, limit, &what) {
                Err(Failed::Again { error, retry_after }) => {
                    if !attempts.again(retry_after, &error) {
                        return Err(Failed::Again { error, retry_after }.after(attempts.failures()));
                    }
                }
                result => return result.map_err(|failed| failed.after(attempts.failures() + 1)),
            }
        }
    }

    fn manifest_once(&self, which: Which<'_>, limit: u64, what: &str) -> Result<Manifest, Failed> {
        let path = format!("manifests/{which}");
        let headers = [(header::ACCEPT, MANIFEST_TYPES)];
        let is_pinned = matches!(which, Which::Digest(_));
        let answer = self.get_once(&path, &headers, is_pinned, &[StatusCode::OK], what)?;
        let too_big = || Failed::Final(Error::TooBig { what: what.to_owned(), limit });
        let length = answer.field(&header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
        if length.is_some_and(|length| length > limit) {
            return Err(too_big());
        }
        let media_type = answer.field(&header::CONTENT_TYPE).and_then(|field| field.split(';').next());
        let media_type = media_type.map(|field| answer.secrets.scrub(field.trim())).filter(|field| !field.is_empty());
        let is_gzip = answer.is_gzip();
        let mut body: Box<dyn Read + Send> = Box::new(answer.response.into_body().into_reader());
        if is_gzip {
            // No manifest begins as gzip does.
            body = decoded(body).map_err(|error| broken(&error, what, 0))?;
        }
        let mut bytes = Vec::new();
        let read = body.take(limit + 1).read_to_end(&mut bytes);
        if bytes.len() as u64 > limit {
            return Err(too_big());
        }
        read.map_err(|error| broken(&error, what, bytes.len() as u64))?;
        Ok(Manifest { media_type, bytes })
    }
}
