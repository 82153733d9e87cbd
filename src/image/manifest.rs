//! Manifests and indexes: what kind the bytes are, and what they say.

use super::{Error, Platform};
use crate::digest::Digest;
use crate::go_types::{self, Kind};
use crate::json::{Document, View};
use crate::media_type::{DOCKER_CONFIG, DOCKER_LAYERS, OCI_LAYERS, essence};
use crate::source::{Descriptor, RawManifest};

/// An entry of an index that says its compression in an annotation (containers/image `internal/manifest/oci_index.go`).
const ZSTD_ANNOTATION: &str = "io.github.containers.compression.zstd";

/// Parses `raw` and returns its kind, once podman and CRI-O can read it back from a store.
///
/// The document's own `mediaType` counts first, then the media type that the source announced, then the fields (containers/image
/// `manifest.GuessMIMEType`). A document that has the fields of another kind as well is refused, as it would be two images.
pub(super) fn classify(raw: &RawManifest, digest: &Digest) -> Result<(Kind, Document), Error> {
    let go = |error| Error::Manifest { digest: *digest, error };
    let document = Document::parse(&raw.bytes).map_err(|error| go(error.into()))?;
    // containers/image guesses the kind of what it reads from a store, also when the answer is in the media type.
    go_types::guess(&document).map_err(go)?;
    let kind = kind_of(raw, &document.top(), digest)?;
    go_types::check_kind(&document, kind).map_err(go)?;
    Ok((kind, document))
}

fn kind_of(raw: &RawManifest, top: &View<'_>, digest: &Digest) -> Result<Kind, Error> {
    let json = |error| Error::manifest(digest, error);
    let own = top.get_text("mediaType").map_err(json)?;
    if let Some(kind) = Kind::of_media_type(&own) {
        return Ok(kind);
    }
    if own.starts_with("application/vnd.docker.distribution.manifest.v1+")
        || top.get_size("schemaVersion").map_err(json)? == 1
    {
        return Err(Error::Schema1 { digest: *digest });
    }
    if !own.is_empty() {
        return Err(Error::MediaType { digest: *digest, media_type: own.into_owned() });
    }
    // A Docker manifest must say what it is: containers/image, hence CRI-O, refuses one that does not.
    let announced = raw.media_type.as_deref().and_then(Kind::of_media_type);
    if let Some(kind) = announced.filter(|kind| *kind != Kind::DockerManifest) {
        return Ok(kind);
    }
    let config = match top.get("config").map_err(json)? {
        Some(config) => Some(config.get_text("mediaType").map_err(json)?),
        None => None,
    };
    match config.as_deref() {
        Some(DOCKER_CONFIG) => {
            let media_type = "a Docker manifest without `mediaType`".to_owned();
            Err(Error::MediaType { digest: *digest, media_type })
        }
        Some(_) => Ok(Kind::OciManifest),
        None if top.get("manifests").map_err(json)?.is_some() => Ok(Kind::OciIndex),
        None => Err(Error::MediaType {
            digest: *digest,
            media_type: raw.media_type.clone().unwrap_or_else(|| "no media type".to_owned()),
        }),
    }
}

/// What an image manifest says.
#[derive(Debug)]
pub(super) struct Manifest {
    pub config: Descriptor,
    /// Each layer's descriptor and its `urls`.
    pub layers: Vec<(Descriptor, Vec<String>)>,
}

impl Manifest {
    pub(super) fn parse(kind: Kind, document: &Document, digest: &Digest) -> Result<Self, Error> {
        let json = |error| Error::manifest(digest, error);
        let top = document.top();
        let Some(config) = top.get("config").map_err(json)? else {
            return Err(Error::Manifest { digest: *digest, error: go_types::Error::NoConfig });
        };
        let config = descriptor(&config, "its config", digest)?;
        let items = top.get_items("layers").map_err(json)?;
        if items.len() > super::LAYERS_MAX {
            return Err(Error::TooManyLayers { digest: *digest, layers: items.len() });
        }
        let mut layers = Vec::with_capacity(items.len());
        for (at, item) in items.iter().enumerate() {
            let media_type = item.get_text("mediaType").map_err(json)?;
            check_layer(kind, &media_type).map_err(|why| Error::LayerMediaType {
                layer: at + 1,
                layers: items.len(),
                media_type: media_type.clone().into_owned(),
                why,
            })?;
            let descriptor = descriptor(item, &format!("layer {} of {}", at + 1, items.len()), digest)?;
            layers.push((descriptor, urls(item).map_err(json)?));
        }
        // The media type that a source announces is not stored, so the bytes must tell which kind of image this is.
        go_types::check_stored(document, kind).map_err(|error| Error::Manifest { digest: *digest, error })?;
        Ok(Self { config, layers })
    }
}

/// Checks that a layer of this media type can be read, and that CRI-O can read the manifest with it.
///
/// containers/image compares the media types of a Docker manifest byte by byte (`SupportedSchema2MediaType`), so one with
/// parameters makes the whole image unreadable there. It looks at the media types of an OCI manifest only to write them.
fn check_layer(kind: Kind, media_type: &str) -> Result<(), &'static str> {
    let plain = essence(media_type);
    if kind == Kind::DockerManifest && plain != media_type && DOCKER_LAYERS.contains(&plain) {
        return Err("a Docker manifest with a parameter in a media type cannot be read by CRI-O and podman");
    }
    if DOCKER_LAYERS.contains(&plain) || (kind == Kind::OciManifest && OCI_LAYERS.contains(&plain)) {
        Ok(())
    } else if plain.ends_with("+encrypted") {
        Err("encrypted layers are not supported, decrypt the image first (skopeo copy --decryption-key)")
    } else {
        Err("not a known type of layer")
    }
}

/// Returns the `urls` of a layer's descriptor, for messages: the layer may not be distributed with the image.
fn urls(view: &View<'_>) -> Result<Vec<String>, crate::json::Error> {
    let urls = view.get_items("urls")?;
    urls.iter().take(super::URLS_SHOWN).map(|url| Ok(url.text()?.escape_debug().take(URL_SHOWN).collect())).collect()
}

/// Characters of a URL that a message shows.
const URL_SHOWN: usize = 200;

fn descriptor(view: &View<'_>, what: &str, manifest: &Digest) -> Result<Descriptor, Error> {
    let json = |error| Error::manifest(manifest, error);
    let text = view.get_text("digest").map_err(json)?;
    let digest = text.parse().map_err(|error| Error::Descriptor { digest: *manifest, what: what.to_owned(), error })?;
    let size = view.get_size("size").map_err(json)?;
    Ok(Descriptor { media_type: view.get_text("mediaType").map_err(json)?.into_owned(), digest, size })
}

/// Returns the descriptor of the manifest in an index that `wanted` gets.
///
/// OCI: the best ranked platform, then zstd before gzip, then the first; an entry without a platform serves everybody, but
/// only where nothing better is. Docker: the best ranked, the first (containers/image `ChooseInstance`).
pub(super) fn choose(kind: Kind, document: &Document, wanted: &Platform, digest: &Digest) -> Result<Descriptor, Error> {
    let json = |error| Error::manifest(digest, error);
    let mut best: Option<((usize, bool), View<'_>)> = None;
    let mut there = Vec::new();
    for entry in document.top().get_items("manifests").map_err(json)? {
        let rank = match entry.get("platform").map_err(json)? {
            Some(platform) => {
                let platform = Platform {
                    os: platform.get_text("os").map_err(json)?.into_owned(),
                    architecture: platform.get_text("architecture").map_err(json)?.into_owned(),
                    variant: platform.get_text("variant").map_err(json)?.into_owned(),
                };
                let rank = wanted.rank(&platform);
                there.push(platform);
                let Some(rank) = rank else { continue };
                rank
            }
            None if kind == Kind::OciIndex => usize::MAX,
            None => continue,
        };
        let zstd = kind == Kind::OciIndex
            && match entry.get("annotations").map_err(json)? {
                Some(annotations) => annotations.entry(ZSTD_ANNOTATION).map_err(json)?.as_deref() == Some("true"),
                None => false,
            };
        let score = (rank, !zstd);
        if best.as_ref().is_none_or(|(best, _)| score < *best) {
            best = Some((score, entry));
        }
    }
    let Some((_, chosen)) = best else {
        let mut there: Vec<String> = there
            .iter()
            .filter(|platform| !(platform.os.is_empty() || platform.os == "unknown")) // attestations
            .map(Platform::to_string)
            .collect();
        there.dedup();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        return Err(Error::NoPlatform { wanted: wanted.clone(), there });
    };
    descriptor(&chosen, &format!("the manifest for {wanted}"), digest)
}
