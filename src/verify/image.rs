//! Images: their records, their names, and the files that hold manifest and config.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};

use super::records::{ImageRecord, LayerRecord};
use super::rule::{Rule, Severity};
use super::{End, Judge, Layers};
use crate::digest::{Digest, Hasher};
use crate::go_types;
use crate::image::{LAYERS_MAX, OLD_LAYERS_MAX};
use crate::inspect::contents::InodeKind;
use crate::json::Document;
use crate::reference::{ParseReferenceError, Reference};
use crate::storage::big_data_file_name;

/// The largest big data item that is parsed, in bytes: what registries take (4 MiB manifests) and more.
const DOCUMENT_MAX: u64 = 8 << 20;

/// The key of an image's own manifest, and how the keys of others begin (containers/storage `images.go`, `ImageDigestBigDataKey`).
const MANIFEST: &str = "manifest";

impl Judge<'_> {
    /// All images of the store.
    pub(super) fn images(&mut self, images: &[ImageRecord], layers: &Layers<'_>) {
        let (mut ids, mut names) = (BTreeSet::new(), BTreeMap::new());
        for image in images {
            let shown = shown(image);
            self.about = Some(image.id.clone());
            if Digest::from_hex(&image.id).is_err() {
                let what = format!("its id {:?} is not 64 hexadecimal digits", image.id);
                self.add(Rule::ImageId, self.records("images/images.json"), what);
                continue;
            }
            if !ids.insert(&image.id) {
                self.add(Rule::ImageTwice, shown, "images.json has it twice".to_owned());
                continue;
            }
            self.names(image, &shown, &mut names);
            let config = self.data(image, &shown, layers);
            self.chain(image, &shown, config.as_deref(), layers);
        }
        self.about = None;
        self.image_orphans(&ids);
    }

    fn names<'a>(&mut self, image: &'a ImageRecord, shown: &str, all: &mut BTreeMap<&'a str, &'a str>) {
        for name in image.names() {
            if let Some(other) = all.insert(name, &image.id)
                && other != image.id
            {
                let what = format!("{name:?} is also the name of image {other}");
                self.add(Rule::ImageNameTwice, shown.to_owned(), what);
            }
            match Reference::parse(name) {
                Ok(reference) if reference.to_string() == *name => {}
                Ok(reference) => {
                    let what = format!("is called {name:?}, which in full is {reference}");
                    self.add(Rule::ImageNameShort, shown.to_owned(), what);
                }
                Err(ParseReferenceError::Version(_)) => {
                    let what = format!("is called {name:?}, without a tag or digest");
                    self.add(Rule::ImageName, shown.to_owned(), what);
                }
                Err(error) => self.add(Rule::ImageName, shown.to_owned(), error.to_string()),
            }
        }
        if !image.names().iter().any(|name| !name.contains('@')) {
            let what = if image.names().is_empty() { "has no name" } else { "has no name with a tag" };
            self.add(Rule::ImageNoName, shown.to_owned(), what.to_owned());
        }
    }

    /// The files of an image; gives the config.
    fn data(&mut self, image: &ImageRecord, shown: &str, layers: &Layers<'_>) -> Option<Vec<u8>> {
        let directory = self.below(&format!("overlay-images/{}", image.id));
        let config_key = format!("sha256:{}", image.id);
        let mut files = BTreeSet::new();
        let mut digests = BTreeSet::new();
        let (mut config, mut has_config) = (None, false);
        for key in image.data() {
            let name = big_data_file_name(key);
            let path = format!("{directory}/{name}");
            // Once is enough, however often it is listed.
            if !files.insert(name.into_bytes()) {
                continue;
            }
            has_config |= key.starts_with("sha256:");
            let (size, digest) = match self.file_digest(&path) {
                Ok(found) => found,
                Err(why) => {
                    let rule = match &key[..] {
                        MANIFEST => Rule::ImageManifest,
                        key if key == config_key => Rule::ImageConfig,
                        _ => Rule::ImageData,
                    };
                    self.add(rule, path, format!("{key} of {shown} {why}"));
                    continue;
                }
            };
            let listed = image.big_data_sizes.as_ref().and_then(|sizes| sizes.get(key));
            if listed.copied() != i64::try_from(size).ok() {
                let listed = listed.map_or_else(|| "no size".to_owned(), |size| format!("{size} bytes"));
                let what = format!("has {size} bytes; images.json says {listed}");
                self.add(Rule::ImageDataSize, path.clone(), what);
            }
            self.data_digest(image, key, &path, &digest);
            let is_further = key.starts_with(MANIFEST) && key != MANIFEST;
            if is_further
                && let Some(bytes) = self.document(&path)
                && let Err(error) = go_types::check_further_manifest(&bytes)
            {
                self.add(Rule::ImageManifestMalformed, path.clone(), error.to_string());
            }
            if key.starts_with(MANIFEST) {
                digests.insert(digest);
            }
            // The key of the config, and of manifests, is a digest.
            let in_key = key.strip_prefix("manifest-").unwrap_or(key).parse::<Digest>();
            if in_key.is_ok_and(|in_key| in_key != digest) {
                let is_config = key.starts_with("sha256:");
                let rule = if is_config { Rule::ImageConfigContent } else { Rule::ImageDataContent };
                self.add(rule, path.clone(), format!("its digest is {digest}, not {key}"));
            }
            if key.starts_with("sha256:") {
                // Where the id is no config's digest, the first is as good as any.
                if *key == config_key || config.is_none() {
                    config = self.document(&path).or(config);
                }
            } else if key == MANIFEST {
                self.manifest(&path, image);
            }
        }
        // Nothing but the file's name is needed to read an item: one that is not listed is found all the same.
        let there = |judge: &Self, key: &str| {
            let path = format!("{directory}/{}", big_data_file_name(key));
            Some(path).filter(|path| judge.contents.rest().get(path.as_bytes()).is_some())
        };
        if !image.data().iter().any(|key| key == MANIFEST) {
            match there(self, MANIFEST) {
                Some(path) => self.manifest(&path, image),
                None => {
                    let what = "has no manifest among its big-data-names".to_owned();
                    self.add(Rule::ImageManifest, shown.to_owned(), what);
                }
            }
        }
        if !has_config && let Some(path) = there(self, &config_key) {
            config = self.document(&path);
        } else if !has_config {
            self.add(Rule::ImageConfig, shown.to_owned(), "has no config among its big-data-names".to_owned());
        } else if !image.data().contains(&config_key) && !layers.is_on_partial(image.top()) {
            self.add(Rule::ImageIdConfig, shown.to_owned(), "its id is not the digest of its config".to_owned());
        }
        let sizes = image.big_data_sizes.iter().flat_map(BTreeMap::keys);
        let listed: BTreeSet<&String> = sizes.chain(image.big_data_digests.iter().flat_map(BTreeMap::keys)).collect();
        let names: BTreeSet<&String> = image.data().iter().collect();
        for key in listed.difference(&names) {
            let what = format!("images.json has a size or digest of {key}, and not its name");
            self.add(Rule::ImageDataUnlisted, shown.to_owned(), what);
        }
        self.image_digest(image, shown, &digests);
        // By such a name containers/image opens the item with the digest (`storage/storage_reference.go`, `resolveImage`).
        for name in image.names() {
            let digest = name.split_once('@').and_then(|(_, digest)| digest.parse::<Digest>().ok());
            if digest.is_some_and(|digest| !digests.contains(&digest)) {
                self.add(Rule::ImageNameDigest, shown.to_owned(), format!("has the name {name} without its manifest"));
            }
        }
        let unlisted: Vec<String> = self
            .contents
            .rest()
            .children(directory.as_bytes())
            .filter(|(name, _)| !files.contains(*name))
            .map(|(name, _)| format!("{directory}/{}", String::from_utf8_lossy(name)))
            .collect();
        for path in unlisted {
            self.add(Rule::ImageDataUnlisted, path, format!("is not among the big-data-names of {shown}"));
        }
        config
    }

    fn data_digest(&mut self, image: &ImageRecord, key: &str, path: &str, digest: &Digest) {
        let Some(listed) = image.big_data_digests.as_ref().and_then(|digests| digests.get(key)) else { return };
        match listed.parse::<Digest>() {
            // `images.go`, recomputeDigests: the whole file is refused.
            Err(error) if key.starts_with(MANIFEST) => {
                self.add(Rule::ImagesJsonSyntax, self.records("images/images.json"), format!("{key}: {error}"));
            }
            Ok(listed) if listed == *digest => {}
            _ => {
                let what = format!("has digest {digest}; images.json says {listed}");
                self.add(Rule::ImageDataDigest, path.to_owned(), what);
            }
        }
    }

    fn image_digest(&mut self, image: &ImageRecord, shown: &str, digests: &BTreeSet<Digest>) {
        let Some(listed) = image.digest.as_deref().filter(|digest| !digest.is_empty()) else { return };
        match listed.parse::<Digest>() {
            Err(error) => {
                self.add(Rule::ImagesJsonSyntax, self.records("images/images.json"), format!("digest: {error}"));
            }
            Ok(digest) if digests.contains(&digest) || digests.is_empty() => {}
            Ok(digest) => {
                self.add(Rule::ImageDigest, shown.to_owned(), format!("none of its manifests has its digest {digest}"));
            }
        }
    }

    /// Checks that the image's own manifest can be read, and that it names a config that the record has.
    fn manifest(&mut self, path: &str, image: &ImageRecord) {
        let Some(bytes) = self.document(path) else { return };
        if let Err(error) = go_types::check_manifest(&bytes) {
            self.add(Rule::ImageMalformed, path.to_owned(), error.to_string());
            return;
        }
        let config = Document::parse(&bytes).and_then(|document| {
            let config = document.top().get("config")?;
            config.map(|config| config.get_text("digest").map(|text| text.into_owned())).transpose()
        });
        match config {
            Err(error) => self.add(Rule::ImageMalformed, path.to_owned(), error.to_string()),
            Ok(Some(digest)) if !image.data().contains(&digest) && digest != format!("sha256:{}", image.id) => {
                self.add(Rule::ImageConfig, path.to_owned(), format!("its config {digest} is not in the store"));
            }
            Ok(_) => {}
        }
    }

    /// The layers of an image: all there, and those that the config wants.
    fn chain(&mut self, image: &ImageRecord, shown: &str, config: Option<&[u8]>, layers: &Layers<'_>) {
        let (chain, end) = layers.chain(image.top());
        let lowest = short(chain.last().map_or("", |layer| &layer.id));
        match end {
            End::Missing(id) if chain.is_empty() => {
                self.add(Rule::ImageLayer, shown.to_owned(), format!("layers.json has no layer {id}"));
                return;
            }
            End::Missing(id) => {
                let what = format!("layers.json has no layer {id}, on which {lowest} lies");
                self.add(Rule::LayerParent, shown.to_owned(), what);
                return;
            }
            End::Circle(id) => {
                let what = format!("layer {lowest} lies on {}, which lies on it", short(id));
                self.add(Rule::LayerParent, shown.to_owned(), what);
                return;
            }
            End::TooLong => {
                self.add(Rule::LayerCount, shown.to_owned(), format!("has more than {LAYERS_MAX} layers"));
                return;
            }
            End::Bottom if chain.len() > LAYERS_MAX => {
                self.add(Rule::LayerCount, shown.to_owned(), format!("has {} layers", chain.len()));
            }
            End::Bottom if chain.len() > OLD_LAYERS_MAX => {
                self.add(Rule::LayerCountOld, shown.to_owned(), format!("has {} layers", chain.len()));
            }
            End::Bottom => {}
        }
        // containers/image `storage/storage_image.go`, `getSize`.
        for layer in chain.iter().filter(|layer| !layer.has_toc()) {
            let what = match (layer.diff_digest(), layer.diff_size) {
                (None, _) => format!("layer {} has no diff-digest", short(&layer.id)),
                (_, Some(size)) if size < 0 => format!("layer {} has diff-size {size}", short(&layer.id)),
                _ => continue,
            };
            self.add(Rule::LayerSizeUnknown, shown.to_owned(), what);
        }
        let Some(config) = config else { return };
        if let Err(error) = go_types::check_config(config) {
            self.add(Rule::ImageMalformed, shown.to_owned(), format!("its config: {error}"));
            return;
        }
        match diff_ids(config) {
            Err(error) => {
                self.add(Rule::ImageMalformed, shown.to_owned(), format!("its config: {error}"));
            }
            Ok(diff_ids) => {
                let have: Vec<&str> =
                    chain.iter().rev().map(|layer: &&LayerRecord| layer.diff_digest().unwrap_or("")).collect();
                // A partial layer has no diffID to compare.
                let differs = |(at, layer): (usize, &&LayerRecord)| !layer.is_partial() && have[at] != diff_ids[at];
                if have.len() != diff_ids.len() || chain.iter().rev().enumerate().any(differs) {
                    let what = format!(
                        "its config has {} diffIDs, and its {} layers do not have the same",
                        diff_ids.len(),
                        have.len()
                    );
                    self.add(Rule::ImageLayers, shown.to_owned(), what);
                }
            }
        }
    }

    /// Names of the directories of images.
    pub(super) fn image_directories(&self) -> Vec<String> {
        let directory = self.below("overlay-images");
        let children = self.contents.rest().children(directory.as_bytes());
        let directories = children.filter(|(_, inode)| inode.kind == InodeKind::Directory);
        directories.map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect()
    }

    /// Directories of images that no record has.
    fn image_orphans(&mut self, ids: &BTreeSet<&String>) {
        let directory = self.below("overlay-images");
        // Without any record, the record is what is missing, which has been said.
        for name in self.image_directories().into_iter().filter(|name| !ids.is_empty() && !ids.contains(name)) {
            let severity = if Digest::from_hex(&name).is_ok() { Severity::Error } else { Severity::Warning };
            let what = "images.json has no such image".to_owned();
            self.add_as(Rule::ImageDirectory, severity, format!("{directory}/{name}"), what);
        }
    }

    /// Size and digest of a file, or why there is none.
    fn file_digest(&mut self, path: &str) -> Result<(u64, Digest), String> {
        let unreadable = |error: io::Error| format!("cannot be read: {error}");
        let inode = self.contents.rest().get(path.as_bytes()).ok_or("is missing")?;
        // A tar can give one large file any number of names.
        let number = self.contents.rest().number(path.as_bytes()).unwrap_or_default();
        if let Some(known) = self.digests.get(&number) {
            return Ok(*known);
        }
        let InodeKind::Regular { size, .. } = inode.kind else { return Err("is not a regular file".to_owned()) };
        let mut content = self.contents.open(path.as_bytes(), inode).map_err(unreadable)?.take(size);
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; 64 << 10];
        let mut left = size;
        while left > 0 {
            match content.read(&mut buffer).map_err(unreadable)? {
                0 => return Err(unreadable(io::ErrorKind::UnexpectedEof.into())),
                count => {
                    hasher.update(&buffer[..count]);
                    left -= count as u64;
                }
            }
        }
        let found = (size, hasher.finish());
        self.digests.insert(number, found);
        Ok(found)
    }

    fn document(&mut self, path: &str) -> Option<Vec<u8>> {
        match self.contents.small(path.as_bytes(), DOCUMENT_MAX) {
            Ok(Some(bytes)) => Some(bytes),
            _ => {
                self.add(Rule::ImageMalformed, path.to_owned(), format!("has more than {} MiB", DOCUMENT_MAX >> 20));
                None
            }
        }
    }
}

fn diff_ids(config: &[u8]) -> Result<Vec<String>, crate::json::Error> {
    let document = Document::parse(config)?;
    let Some(rootfs) = document.top().get("rootfs")? else { return Ok(Vec::new()) };
    rootfs.get_items("diff_ids")?.iter().map(|item| item.text().map(|text| text.into_owned())).collect()
}

/// An image for people: its first name, else its id.
pub(super) fn shown(image: &ImageRecord) -> String {
    let id = short(&image.id);
    image.names().first().map_or_else(|| format!("image {id}"), |name| format!("image {name} ({id})"))
}

/// As many digits of an id as crictl shows.
pub(super) fn short(id: &str) -> &str {
    id.get(..13).unwrap_or(id)
}
