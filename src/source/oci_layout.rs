//! `oci:`: a directory in OCI image layout (OCI image spec, image-layout.md), read as containers/image `oci/layout/` does.
//! What is said here of files serves the layout in an archive too.

use std::io::Read;
use std::path::Path;

use super::{Descriptor, Directory, Error, Files, ImageSource, MANIFEST_MAX, RawManifest, bad_json, document};
use crate::digest::Digest;
use crate::json::{self, View};
use crate::media_type::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::reference::Reference;

/// The annotation that names an image within a layout (OCI image spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation in which containerd, hence Docker 25 and later, keeps the full name.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// How many names an error lists.
const LISTED: usize = 20;

/// One image of a layout.
#[derive(Debug)]
pub(super) struct Layout<F> {
    files: F,
    entry: Entry,
}

/// An entry of `index.json`.
#[derive(Debug)]
struct Entry {
    digest: Digest,
    media_type: Option<String>,
    names: Vec<Reference>,
}

/// Opens the directory and finds the image.
pub(super) fn open(path: &Path, reference: Option<&str>) -> Result<Layout<Directory>, Error> {
    Layout::find(Directory::open("oci", path)?, reference)
}

impl<F: Files> Layout<F> {
    /// Finds the image that `reference` names: an annotation, `@N`, or `None` for the only one.
    pub(super) fn find(files: F, reference: Option<&str>) -> Result<Self, Error> {
        check_version(&files)?;
        let Some(index) = document(&files, "index.json", MANIFEST_MAX)? else {
            let hint = if !files.has("manifest.json") {
                ""
            } else if files.has("version") {
                "; it looks like skopeo's own layout: write dir:PATH"
            } else {
                "; it looks like what docker save writes: write docker-archive:PATH"
            };
            return Err(Error::Invalid(format!("{}: no index.json, so this is no OCI layout{hint}", files.shown())));
        };
        let json = |error| bad_json(&files, "index.json", &error);
        let manifests = index.top().get_items("manifests").map_err(json)?;
        let chosen = choose(&files, &manifests, reference)?;
        let text = chosen.get_text("digest").map_err(json)?;
        let digest = text.parse().map_err(|error| Error::Invalid(format!("{}: index.json: {error}", files.shown())))?;
        let media_type = chosen.get_text("mediaType").map_err(json)?;
        let entry = Entry {
            digest,
            media_type: Some(media_type).filter(|media_type| !media_type.is_empty()).map(str::to_owned),
            names: full_names(chosen).map_err(json)?,
        };
        Ok(Self { files, entry })
    }
}

/// An `oci-layout` that is not there is no error, as for containers/image; one of another version is.
fn check_version(files: &dyn Files) -> Result<(), Error> {
    let Some(document) = document(files, "oci-layout", MANIFEST_MAX)? else { return Ok(()) };
    let top = document.top();
    let version = top.get_text("imageLayoutVersion").map_err(|error| bad_json(files, "oci-layout", &error))?;
    if version.starts_with("1.") {
        return Ok(());
    }
    let shown = files.shown();
    Err(Error::Invalid(format!("{shown}: oci-layout: imageLayoutVersion {version:?} is unknown, expected \"1.0.0\"")))
}

/// containers/image `oci/layout/oci_transport.go`, `getManifestDescriptor`.
fn choose<'a>(files: &dyn Files, manifests: &'a [View<'a>], reference: Option<&str>) -> Result<&'a View<'a>, Error> {
    let shown = files.shown();
    let json = |error| bad_json(files, "index.json", &error);
    let Some(reference) = reference else {
        return match manifests {
            [only] => Ok(only),
            [] => Err(Error::NotFound(format!("{shown}: no image in oci, index.json is empty"))),
            _ => Err(Error::Ambiguous(format!(
                "{shown}: more than one image in oci, choose an image: {}",
                list(manifests).map_err(json)?
            ))),
        };
    };
    if let Some(number) = reference.strip_prefix('@').and_then(|number| number.parse::<usize>().ok()) {
        return manifests.get(number).ok_or_else(|| {
            Error::NotFound(format!("{shown}: no image @{number}, index.json has {} (from @0)", manifests.len()))
        });
    }
    let mut other = None;
    for entry in manifests {
        if annotation(entry, REF_NAME).map_err(json)? != Some(reference) {
            continue;
        }
        match entry.get_text("mediaType").map_err(json)? {
            OCI_MANIFEST | OCI_INDEX | DOCKER_MANIFEST | DOCKER_LIST => return Ok(entry),
            media_type => other = Some(media_type),
        }
    }
    if let Some(media_type) = other {
        return Err(Error::Invalid(format!("{shown}: {reference} is not an image but {media_type:?}")));
    }
    let there = list(manifests).map_err(json)?;
    Err(Error::NotFound(format!("{shown}: no image {reference} in index.json; there are: {there}")))
}

fn annotation<'a>(entry: &View<'a>, key: &str) -> Result<Option<&'a str>, json::Error> {
    match entry.get("annotations")? {
        Some(annotations) => annotations.entry(key),
        None => Ok(None),
    }
}

/// The names to choose from; an entry without a name is shown as `@N`.
fn list(manifests: &[View<'_>]) -> Result<String, json::Error> {
    let mut names = Vec::new();
    for (at, entry) in manifests.iter().enumerate().take(LISTED) {
        let name = annotation(entry, REF_NAME)?.filter(|name| !name.is_empty() && !name.contains(char::is_control));
        names.push(name.map_or_else(|| format!("@{at}"), str::to_owned));
    }
    if manifests.len() > LISTED {
        names.push("...".to_owned());
    }
    Ok(if names.is_empty() { "none".to_owned() } else { names.join(", ") })
}

fn full_names(entry: &View<'_>) -> Result<Vec<Reference>, json::Error> {
    let mut names = Vec::new();
    for key in [CONTAINERD_NAME, REF_NAME] {
        let Some(text) = annotation(entry, key)? else { continue };
        if let Some(name) = Reference::parse_full(text).ok().filter(|name| !names.contains(name)) {
            names.push(name);
        }
    }
    Ok(names)
}

impl<F: Files> ImageSource for Layout<F> {
    fn manifest(&self, instance: Option<&Digest>) -> Result<RawManifest, Error> {
        let digest = instance.unwrap_or(&self.entry.digest);
        let name = blob_name(digest);
        let Some(bytes) = self.files.read(&name, MANIFEST_MAX)? else {
            let hint = if instance.is_some() { " (the layout has only some of the index's images)" } else { "" };
            return Err(Error::NotFound(format!("{}: no {name}{hint}", self.files.shown())));
        };
        // index.json is not covered by any digest, but what it points at is.
        if Digest::of(&bytes) != *digest {
            return Err(Error::Invalid(format!(
                "{}: {name} is damaged: its digest is {}",
                self.files.shown(),
                Digest::of(&bytes)
            )));
        }
        Ok(RawManifest { media_type: if instance.is_none() { self.entry.media_type.clone() } else { None }, bytes })
    }

    fn blob(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>, Error> {
        let name = blob_name(&blob.digest);
        self.files.open(&name)?.ok_or_else(|| Error::NotFound(format!("{}: no {name}", self.files.shown())))
    }

    fn names(&self) -> Vec<Reference> {
        self.entry.names.clone()
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
