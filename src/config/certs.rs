//! Certificates for one registry: containers-certs.d(5).
//!
//! The first of `~/.config/containers/certs.d/HOST`, `/etc/containers/certs.d/HOST` and `/etc/docker/certs.d/HOST` that
//! exists is used alone (containers/image `dockerCertDir`); `--cert-dir` names a directory directly. In it, `*.crt` are
//! certificates that are trusted besides the system's, and `NAME.cert` with `NAME.key` is a client certificate. What a trusted
//! certificate may do depends on what it is: an authority signs others, any other one only stands for the registry itself
//! (`registry::tls`).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::Environment;

/// The largest certificate or key file that is read, in bytes. A bundle of all public authorities has about 250 KB.
pub const CERTIFICATE_FILE_MAX: u64 = 4 << 20;

/// What a directory holds, as PEM text.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Certificates {
    /// Trusted certificates: `*.crt`, in the order of their names.
    pub authorities: Vec<PemFile>,
    /// The client's certificate chain and key: the first `*.cert` in the order of names.
    pub client: Option<(PemFile, PemFile)>,
}

/// A file that should hold PEM, not yet parsed.
#[derive(Clone, PartialEq, Eq)]
pub struct PemFile {
    /// Where it lies.
    pub path: PathBuf,
    /// What is in it: perhaps a private key, so never shown.
    pub text: Vec<u8>,
}

impl fmt::Debug for PemFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PemFile({:?})", self.path)
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("authorities", &self.authorities).field("client", &self.client).finish()
    }
}

/// Why a registry's certificates cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory, or a file in it, cannot be read.
    #[error("reading {}: {error}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Larger than [`CERTIFICATE_FILE_MAX`].
    #[error("{} has more than {CERTIFICATE_FILE_MAX} bytes", path.display())]
    TooBig {
        /// Which file.
        path: PathBuf,
    },
    /// A certificate without its key.
    #[error("{} is missing for client certificate {} (certificate authorities end in .crt)", key.display(), certificate.display())]
    MissingKey {
        /// The key that is missing.
        key: PathBuf,
        /// The certificate that is there.
        certificate: PathBuf,
    },
    /// A key without its certificate.
    #[error("client certificate {} is missing for key {}", certificate.display(), key.display())]
    MissingCertificate {
        /// The certificate that is missing.
        certificate: PathBuf,
        /// The key that is there.
        key: PathBuf,
    },
    /// Not a PEM certificate or key, or the two do not belong together.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What is wrong; never a piece of the file.
        reason: String,
    },
}

/// The directory that counts for `host` (`host[:port]` as in the reference: `docker.io`, not its API's host).
#[must_use]
pub fn directory(host: &str, named: Option<&Path>, environment: &Environment) -> Option<PathBuf> {
    if let Some(named) = named {
        return Some(named.to_owned());
    }
    let home = environment.home.join(".config/containers/certs.d");
    [home.as_path(), Path::new("/etc/containers/certs.d"), Path::new("/etc/docker/certs.d")]
        .into_iter()
        .map(|directory| directory.join(host))
        .find(|directory| directory.exists())
}

/// Reads the certificates in `directory`. With `must_exist` (`--cert-dir`) a missing directory is an error.
///
/// # Errors
/// When a file cannot be read or a client certificate and its key are not both there. A directory that may not be
/// looked into is skipped, as containers/image does.
pub fn load(directory: &Path, must_exist: bool) -> Result<Certificates, Error> {
    let fail =
        |path: &Path, error: io::Error| Error::Read { path: path.to_owned(), error: super::without_path(error.kind()) };
    let mut names = Vec::new();
    match fs_err::read_dir(directory) {
        Ok(entries) => {
            for entry in entries {
                names.push(entry.map_err(|error| fail(directory, error))?.path());
            }
        }
        Err(error) if !must_exist && matches!(error.kind(), io::ErrorKind::NotFound) => {}
        Err(error) if !must_exist && matches!(error.kind(), io::ErrorKind::PermissionDenied) => {
            tracing::warn!("skipping certificates in {}: {}", directory.display(), error.kind());
        }
        Err(error) => return Err(fail(directory, error)),
    }
    names.sort();
    let mut certificates = Certificates::default();
    for path in &names {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => match read(path) {
                Err(Error::Read { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                    tracing::warn!("skipping certificate {}: dangling link?", path.display());
                }
                text => certificates.authorities.push(text?),
            },
            Some("cert") => {
                let key = path.with_extension("key");
                if !names.contains(&key) {
                    return Err(Error::MissingKey { key, certificate: path.clone() });
                }
                if certificates.client.is_none() {
                    certificates.client = Some((read(path)?, read(&key)?));
                }
            }
            Some("key") => {
                let certificate = path.with_extension("cert");
                if !names.contains(&certificate) {
                    return Err(Error::MissingCertificate { certificate, key: path.clone() });
                }
            }
            _ => {}
        }
    }
    Ok(certificates)
}

fn read(path: &Path) -> Result<PemFile, Error> {
    use io::Read as _;
    let fail = |error: io::Error| Error::Read { path: path.to_owned(), error: super::without_path(error.kind()) };
    let file = fs_err::File::open(path).map_err(fail)?;
    let mut text = Vec::new();
    file.take(CERTIFICATE_FILE_MAX + 1).read_to_end(&mut text).map_err(fail)?;
    if text.len() as u64 > CERTIFICATE_FILE_MAX {
        return Err(Error::TooBig { path: path.to_owned() });
    }
    Ok(PemFile { path: path.to_owned(), text })
}
