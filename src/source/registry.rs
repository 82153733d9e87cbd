//! `docker://`: an image in a registry.

use std::io::Read;

use super::{Descriptor, Error, ImageSource, MANIFEST_MAX, RawManifest};
use crate::config::{auth, certs};
use crate::digest::Digest;
use crate::reference::Reference;
use crate::registry::{self, Client, Options, Which};

/// One image of a registry, named by tag or digest.
#[derive(Debug)]
pub struct RegistrySource {
    client: Client,
    tag: Option<String>,
    digest: Option<Digest>,
    names: Vec<Reference>,
}

impl RegistrySource {
    /// The image `domain/path:tag@digest`, the parts being those of a normalised reference. With a digest the tag is not
    /// asked for, with neither it is `latest` (both as containers/image). `names` is what the image is to be called.
    ///
    /// Does not connect, but reads credentials and certificates.
    ///
    /// # Errors
    /// [`Error::Registry`], as [`Client::new`].
    pub fn new(
        domain: &str,
        path: &str,
        tag: Option<&str>,
        digest: Option<Digest>,
        names: Vec<Reference>,
        options: &Options,
    ) -> Result<Self, Error> {
        let client = Client::new(domain, path, options).map_err(classify)?;
        Ok(Self { client, tag: tag.map(str::to_owned), digest, names })
    }
}

impl ImageSource for RegistrySource {
    fn manifest(&self, instance: Option<&Digest>) -> Result<RawManifest, Error> {
        let which = match (instance, &self.digest) {
            (Some(digest), _) | (None, Some(digest)) => Which::Digest(digest),
            (None, None) => Which::Tag(self.tag.as_deref().unwrap_or("latest")),
        };
        let manifest = self.client.manifest(which, MANIFEST_MAX).map_err(classify)?;
        Ok(RawManifest { media_type: manifest.media_type, bytes: manifest.bytes })
    }

    fn blob(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>, Error> {
        Ok(Box::new(self.client.blob(&blob.digest, blob.size).map_err(classify)?))
    }

    fn names(&self) -> Vec<Reference> {
        self.names.clone()
    }

    fn is_remote(&self) -> bool {
        true
    }
}

/// What is not there has its own exit code.
fn classify(error: registry::Error) -> Error {
    let is_missing = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    match &error {
        registry::Error::NotFound { .. } => Error::NotFound(error.to_string()),
        // The file of `--authfile`, the directory of `--cert-dir`.
        registry::Error::Credentials(auth::Error::Read { error: cause, .. })
        | registry::Error::Certificates(certs::Error::Read { error: cause, .. })
            if is_missing(cause) =>
        {
            Error::NotFound(error.to_string())
        }
        _ => Error::Registry(Box::new(error)),
    }
}
