//! `oci:`: a directory in OCI image layout (OCI image spec, image-layout.md), read as containers/image `oci/layout/` does.
//! What is said here of files serves the layout in an archive too.
//!
//! `index.json` is parsed once, however many of its images are used. It is not part of an image: where several of its entries are
//! one image for several platforms, [`ImageSource::choices`] lists them, and the platform decides.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::{Descriptor, Directory, Error, Files, ImageSource, MANIFEST_MAX, RawManifest, bad_json, document};
use crate::digest::Digest;
use crate::json::{self, View};
use crate::media_type::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, essence};
use crate::reference::Reference;

/// The annotation that names an image within a layout (OCI image spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation in which containerd, hence Docker 25 and later, keeps the full name.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// The annotation of what is no image but says something of one (BuildKit `docs/attestations/attestation-storage.md`).
const ATTESTATION: &str = "vnd.docker.reference.type";
/// The annotation of a manifest whose layers are compressed with zstd (containers/image `internal/manifest/oci_index.go`).
const ZSTD: &str = "io.github.containers.compression.zstd";

/// Number of choices that an error lists.
const LISTED: usize = 20;

/// A layout that has been opened.
#[derive(Debug)]
pub(super) struct Layout<F> {
    files: F,
    entries: Vec<Entry>,
    /// Numbers of the entries that have this annotation, either of the two.
    by_name: HashMap<String, Vec<usize>>,
    by_digest: HashMap<String, Vec<usize>>,
}

/// An image of a layout.
#[derive(Debug)]
pub(super) struct LayoutImage<F> {
    layout: Arc<Layout<F>>,
    /// Its entries in `index.json`: one, or one for each platform.
    chosen: Vec<(Digest, usize)>,
    names: Vec<Reference>,
}

/// An entry of `index.json`.
#[derive(Debug)]
struct Entry {
    digest: String,
    /// Size of the manifest, in bytes. It may be wrong, and is compared when the manifest is read.
    size: i64,
    media_type: String,
    ref_name: Option<String>,
    containerd_name: Option<String>,
    platform: Option<Platform>,
    is_zstd: bool,
    /// True for attestations and artifacts, which are never meant by a name.
    is_aside: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

/// Opens a directory in OCI image layout.
pub(super) fn open(path: &Path) -> Result<Layout<Directory>, Error> {
    Layout::new(Directory::open("oci", path)?)
}

impl Entry {
    fn parse(view: &View<'_>) -> Result<Self, json::Error> {
        let text = |key| Ok::<_, json::Error>(view.get_text(key)?.into_owned());
        let annotation = |key| -> Result<Option<String>, json::Error> {
            let Some(annotations) = view.get("annotations")? else { return Ok(None) };
            Ok(annotations.entry(key)?.map(Cow::into_owned))
        };
        let platform = match view.get("platform")? {
            Some(platform) => Some(Platform {
                os: platform.get_text("os")?.into_owned(),
                architecture: platform.get_text("architecture")?.into_owned(),
                variant: platform.get_text("variant")?.into_owned(),
            }),
            None => None,
        };
        let is_unknown = platform.as_ref().is_some_and(|platform| platform.os == "unknown");
        Ok(Self {
            digest: text("digest")?,
            size: view.get("size")?.map(|size| size.number()).transpose()?.flatten().unwrap_or(0),
            media_type: text("mediaType")?,
            ref_name: annotation(REF_NAME)?,
            containerd_name: annotation(CONTAINERD_NAME)?,
            is_zstd: annotation(ZSTD)?.as_deref() == Some("true"),
            is_aside: is_unknown || annotation(ATTESTATION)?.is_some() || !text("artifactType")?.is_empty(),
            platform,
        })
    }

    /// Whether its media type is one of images, or is not given: then the bytes tell.
    fn is_image(&self) -> bool {
        matches!(essence(&self.media_type), "" | OCI_MANIFEST | OCI_INDEX | DOCKER_MANIFEST | DOCKER_LIST)
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        let second = self.ref_name.as_ref().filter(|name| self.containerd_name.as_ref() != Some(name));
        self.containerd_name.iter().chain(second)
    }

    fn full_names(&self) -> impl Iterator<Item = Reference> {
        self.names().filter_map(|name| Reference::parse_full(name).ok())
    }
}

impl<F: Files> Layout<F> {
    /// Reads `index.json`.
    pub(super) fn new(files: F) -> Result<Self, Error> {
        check_version(&files)?;
        let Some(index) = document(&files, "index.json", MANIFEST_MAX)? else {
            let hint = if !files.has("manifest.json") {
                ""
            } else if files.has("version") {
                "; it looks like skopeo's own layout: write dir:PATH"
            } else {
                "; it looks like what docker save writes: write docker-archive:PATH"
            };
            return Err(Error::Invalid(format!(
                "{}: no index.json, so this is not an OCI layout{hint}",
                files.shown()
            )));
        };
        let json = |error| bad_json(&files, "index.json", &error);
        let manifests = index.top().get_items("manifests").map_err(json)?;
        let entries: Vec<Entry> = manifests.iter().map(Entry::parse).collect::<Result<_, _>>().map_err(json)?;
        let mut by_name: HashMap<String, Vec<usize>> = HashMap::new();
        let mut by_digest: HashMap<String, Vec<usize>> = HashMap::new();
        for (at, entry) in entries.iter().enumerate() {
            entry.names().for_each(|name| by_name.entry(name.clone()).or_default().push(at));
            by_digest.entry(entry.digest.clone()).or_default().push(at);
        }
        Ok(Self { files, entries, by_name, by_digest })
    }

    /// Finds the image that `reference` names: an annotation's text, `@N`, or `None` for the only one.
    ///
    /// As containers/image `oci/layout/oci_transport.go`, `getManifestDescriptor`, but entries with one digest are one image,
    /// entries for different platforms are one, and of different images none is taken silently.
    pub(super) fn find(self: &Arc<Self>, reference: Option<&str>) -> Result<LayoutImage<F>, Error> {
        let shown = self.files.shown();
        let named = match reference {
            None => self.images(0..self.entries.len()),
            Some(reference) => match reference.strip_prefix('@').and_then(|number| number.parse::<usize>().ok()) {
                Some(number) if number < self.entries.len() => vec![number],
                Some(number) => {
                    let count = self.entries.len();
                    return Err(Error::NotFound(format!(
                        "{shown}: no image @{number}, index.json has {count} (from @0)"
                    )));
                }
                None => self.named(reference)?,
            },
        };
        let mut by_digest: Vec<(&str, Vec<usize>)> = Vec::new();
        let mut place: HashMap<&str, usize> = HashMap::new();
        for at in named {
            let digest = &self.entries[at].digest[..];
            let place = *place.entry(digest).or_insert_with(|| {
                by_digest.push((digest, Vec::new()));
                by_digest.len() - 1
            });
            by_digest[place].1.push(at);
        }
        if by_digest.is_empty() {
            return Err(Error::NotFound(format!("{shown}: no image in oci, index.json is empty")));
        }
        if by_digest.len() > 1 && !self.are_platforms(&by_digest) {
            let called = reference.map(|reference| format!(" called {reference}")).unwrap_or_default();
            let numbers: Vec<usize> = by_digest.iter().map(|(_, entries)| entries[0]).collect();
            let choices = self.list(&numbers);
            return Err(Error::Ambiguous(format!(
                "{shown}: more than one image{called} in oci, choose an image: {choices}"
            )));
        }
        let mut chosen = Vec::with_capacity(by_digest.len());
        for (digest, entries) in &by_digest {
            let digest = digest.parse().map_err(|error| Error::Invalid(format!("{shown}: index.json: {error}")))?;
            let size = self.entries[entries[0]].size;
            if let Some(other) = entries.iter().map(|at| self.entries[*at].size).find(|other| *other != size) {
                return Err(Error::Invalid(format!(
                    "{shown}: index.json has the sizes {size} and {other} for {digest}"
                )));
            }
            chosen.push((digest, entries[0]));
        }
        let mut names = Vec::new();
        for name in by_digest.iter().flat_map(|(_, entries)| entries).flat_map(|at| self.entries[*at].full_names()) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Ok(LayoutImage { layout: Arc::clone(self), chosen, names })
    }

    /// Of these entries, those that are images. If none is, all of them: then the error says what they are.
    fn images(&self, entries: impl IntoIterator<Item = usize>) -> Vec<usize> {
        let all: Vec<usize> = entries.into_iter().collect();
        let is_image = |at: &&usize| self.entries[**at].is_image() && !self.entries[**at].is_aside;
        let images: Vec<usize> = all.iter().filter(is_image).copied().collect();
        if images.is_empty() { all } else { images }
    }

    /// The entries that `reference` names: by one of the annotations, else by the normalised form of a full name.
    fn named(&self, reference: &str) -> Result<Vec<usize>, Error> {
        let shown = self.files.shown();
        let mut found = self.by_name.get(reference).cloned().unwrap_or_default();
        if found.is_empty()
            && let Ok(wanted) = Reference::parse_or_latest(reference)
        {
            let is_wanted = |at: &usize| self.entries[*at].full_names().any(|name| name == wanted);
            found = (0..self.entries.len()).filter(is_wanted).collect();
        }
        let found = self.images(found);
        match found.first().map(|at| &self.entries[*at]) {
            Some(entry) if !entry.is_image() => {
                let media_type = &entry.media_type;
                Err(Error::Invalid(format!("{shown}: {reference} is not an image but {media_type:?}")))
            }
            Some(_) => Ok(found),
            None => {
                let there = self.list(&self.images(0..self.entries.len()));
                Err(Error::NotFound(format!("{shown}: no image {reference} in index.json; there are: {there}")))
            }
        }
    }

    /// Returns whether these are one image for different platforms: each says for which, and none has a name that another has not.
    fn are_platforms(&self, by_digest: &[(&str, Vec<usize>)]) -> bool {
        let mut platforms = BTreeSet::new();
        let names = |entries: &[usize]| -> BTreeSet<&String> {
            entries.iter().flat_map(|at| self.entries[*at].names()).collect()
        };
        let first = names(&by_digest[0].1);
        by_digest.iter().all(|(_, entries)| {
            let entry = &self.entries[entries[0]];
            let is_new = entry.platform.as_ref().is_some_and(|platform| platforms.insert((platform, entry.is_zstd)));
            is_new && names(entries) == first
        })
    }

    /// What to type for each of these entries: a name that no other entry has, the full one first, else `@N`.
    fn list(&self, entries: &[usize]) -> String {
        let is_typed = |name: &&String| {
            !name.is_empty()
                && !name.contains(char::is_control)
                && self.by_name.get(*name).is_some_and(|with| with.len() == 1)
        };
        let shown = |at: &usize| self.entries[*at].names().find(is_typed).cloned().unwrap_or_else(|| format!("@{at}"));
        let mut choices: Vec<String> = entries.iter().take(LISTED).map(shown).collect();
        if entries.len() > LISTED {
            choices.push("...".to_owned());
        }
        if choices.is_empty() { "none".to_owned() } else { choices.join(", ") }
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

impl<F: Files> ImageSource for LayoutImage<F> {
    fn choices(&self) -> Result<Option<RawManifest>, Error> {
        if self.chosen.len() < 2 {
            return Ok(None);
        }
        let describe = |(digest, at): &(Digest, usize)| {
            let Entry { size, media_type, platform, is_zstd, .. } = &self.layout.entries[*at];
            let platform = platform.as_ref().map(|Platform { os, architecture, variant }| {
                json!({"os": os, "architecture": architecture, "variant": variant})
            });
            let annotations = json!({ZSTD: is_zstd.to_string()});
            json!({
                "mediaType": media_type, "digest": digest, "size": size, "platform": platform, "annotations": annotations,
            })
        };
        let manifests: Vec<_> = self.chosen.iter().map(describe).collect();
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        Ok(Some(RawManifest { media_type: Some(OCI_INDEX.to_owned()), bytes: index.to_string().into_bytes() }))
    }

    fn manifest(&self, instance: Option<&Digest>) -> Result<RawManifest, Error> {
        let Layout { files, entries, by_digest, .. } = &*self.layout;
        let (first, at) = &self.chosen[0];
        let digest = instance.unwrap_or(first);
        let name = blob_name(digest);
        let Some(bytes) = files.read(&name, MANIFEST_MAX)? else {
            let hint = if instance.is_some() { " (the layout has only some of the index's images)" } else { "" };
            return Err(Error::NotFound(format!("{}: no {name}{hint}", files.shown())));
        };
        // index.json is not covered by any digest, but what it points at is.
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(Error::Invalid(format!("{}: {name} is damaged: its digest is {found}", files.shown())));
        }
        let (size, found) = (entries[*at].size, bytes.len());
        // The size of another entry is compared with what chose it.
        if instance.is_none() && i64::try_from(found).ok() != Some(size) {
            let shown = files.shown();
            return Err(Error::Invalid(format!(
                "{shown}: index.json has the size {size} for {name}, which has {found} bytes"
            )));
        }
        let entry = by_digest.get(&digest.to_string()).and_then(|entries| entries.first()).map(|at| &entries[*at]);
        let media_type = entry.map(|entry| essence(&entry.media_type).to_owned()).filter(|text| !text.is_empty());
        Ok(RawManifest { media_type, bytes })
    }

    fn blob(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>, Error> {
        let (files, name) = (&self.layout.files, blob_name(&blob.digest));
        files.open(&name)?.ok_or_else(|| Error::NotFound(format!("{}: no {name}", files.shown())))
    }

    fn names(&self) -> Vec<Reference> {
        self.names.clone()
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
