//! Images of a stream: they come after its layers. Their files are root's, whatever the headers say, and are what their names
//! and the image's record say. One config or manifest that is not makes podman and CRI-O unable to list any image of the store.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use base64::Engine as _;

use super::super::Error;
use super::super::receive::{IMAGE, INCOMPLETE, NO_FILE, OPEN, Stream, at_most, text_id};
use super::super::staging::Staging;
use super::record::{ImageRecord, MANIFEST_KEY};
use crate::digest::Digest;
use crate::entry::{Entry, Kind};
use crate::go_types;
use crate::json::{self, Document};

/// The most bytes of one file of an image: containers/image reads manifests to 4 MiB, and configs are as large at most.
pub(super) const BIG_DATA_MAX: u64 = 16 << 20;

/// The most images of one stream.
const IMAGES_MAX: usize = 5000;

/// The most files of one image.
const FILES_MAX: usize = 1000;

/// An image in staging, as `image-ID`: its files by key, with their sizes.
#[derive(Debug, PartialEq, Eq)]
struct Files {
    id: String,
    sizes: BTreeMap<String, u64>,
}

/// Takes records of images that somebody asks for, the first of which has begun with `next`.
///
/// # Errors
/// When something else comes.
pub fn asked<R: Read>(stream: &mut Stream<'_, R>, mut next: Option<Entry>) -> Result<Vec<ImageRecord>, Error> {
    let mut records = Vec::new();
    while let Some(entry) = next {
        if entry.path != IMAGE {
            return Err(Error::refused(&entry, "it does not belong to a query"));
        }
        records.push(ImageRecord::parse(&stream.text(&entry)?)?);
        at_most(records.len(), IMAGES_MAX)?;
        next = stream.input.next_entry()?;
    }
    Ok(records)
}

/// Takes images to staging, each ended by its record.
///
/// # Errors
/// When something else comes, or cannot be made.
pub fn images<R: Read>(
    stream: &mut Stream<'_, R>,
    to: &Staging,
    mut next: Option<Entry>,
) -> Result<Vec<ImageRecord>, Error> {
    let (mut records, mut open) = (Vec::new(), None);
    while let Some(entry) = next {
        if entry.path == IMAGE {
            let record = ImageRecord::parse(&stream.text(&entry)?)?;
            let files: Files = open.take().ok_or_else(|| Error::refused(&entry, "a record without its files"))?;
            if files != (Files { id: record.id.clone(), sizes: record.big_data_sizes.clone() }) {
                return Err(Error::request("an image's record that is not of the image before it"));
            }
            check(to, &record)?;
            records.push(record);
            at_most(records.len(), IMAGES_MAX)?;
        } else {
            file(stream, to, &mut open, &entry)?;
        }
        next = stream.input.next_entry()?;
    }
    if open.is_none() { Ok(records) } else { Err(Error::request(INCOMPLETE)) }
}

fn file<R: Read>(
    stream: &mut Stream<'_, R>,
    to: &Staging,
    open: &mut Option<Files>,
    entry: &Entry,
) -> Result<(), Error> {
    let (id, key) = match stream.parts(entry)? {
        [Some(b"overlay-images"), Some(id), Some(key), None] => (id, key),
        [Some(b"overlay"), _, Some(b"diff"), _] if open.is_some() => return Err(Error::refused(entry, OPEN)),
        [Some(b"overlay"), _, Some(b"diff"), _] => return Err(Error::refused(entry, "layers come before images")),
        _ => return Err(Error::refused(entry, NO_FILE)),
    };
    let id = text_id(id).ok_or_else(|| Error::refused(entry, "its image has no valid id"))?;
    let directory = image_directory(&id);
    let failed = |error| Error::system(format!("making image {id}"), error);
    if open.is_none() {
        stream.budget.take(entry, 0)?;
        to.dir.make(directory.as_bytes(), 0o700).map_err(failed)?;
        *open = Some(Files { id: id.clone(), sizes: BTreeMap::new() });
    }
    match (open, std::str::from_utf8(key), &entry.kind) {
        (Some(files), Ok(key), Kind::Regular { size: size @ 0..=BIG_DATA_MAX })
            if files.id == id && files.sizes.len() < FILES_MAX =>
        {
            let directory = to.dir.open(directory.as_bytes()).map_err(failed)?;
            files.sizes.insert(key.to_owned(), *size);
            stream.file(&directory, file_name(key).as_bytes(), entry)
        }
        _ => Err(Error::refused(entry, "it does not belong to the image before it, or is too much")),
    }
}

/// Checks the files of an image in staging against its record: each has the digest that its key names and is a document that Go can
/// unmarshal, the manifest is of this config, the config's layers end in the image's layer, and a digest in a name is that of one of
/// its manifests.
fn check(to: &Staging, record: &ImageRecord) -> Result<(), Error> {
    let wrong = |what: &str| Error::said(format!("image {}: {what}", record.id));
    let directory = to.dir.open(image_directory(&record.id).as_bytes());
    let directory = directory.map_err(|error| Error::system(format!("reading image {}", record.id), error))?;
    let read = |key: &str| {
        let content = directory.read(file_name(key).as_bytes(), BIG_DATA_MAX).ok().flatten();
        content.ok_or_else(|| wrong("one of its files is missing"))
    };
    let (config, of_manifest) = (format!("sha256:{}", record.id), format!("{MANIFEST_KEY}-"));
    let mut manifests = BTreeSet::new();
    for key in &record.big_data_names {
        let content = read(key)?;
        let digest = Digest::of(&content).to_string();
        let named = if *key == config { Some(&config[..]) } else { key.strip_prefix(&of_manifest) };
        if named.is_some_and(|named| named != digest) || record.big_data_digests.get(key) != Some(&digest) {
            return Err(wrong(&format!("the content of {key} has another digest, {digest}")));
        }
        let checked = match &key[..] {
            MANIFEST_KEY => go_types::check_manifest(&content).map(drop),
            key if key == config => go_types::check_config(&content),
            _ => go_types::check_further_manifest(&content).map(drop),
        };
        checked.map_err(|error| wrong(&format!("{key}: {error}")))?;
        if *key != config {
            manifests.insert(digest);
        }
    }
    if !manifests.contains(&record.digest) {
        return Err(wrong("its digest is that of none of its manifests"));
    }
    let named = record.names.iter().filter_map(|name| name.split_once('@'));
    if let Some((_, digest)) = named.into_iter().find(|(_, digest)| !manifests.contains(*digest)) {
        return Err(wrong(&format!("a name has {digest}, which is the digest of none of its manifests")));
    }
    let json = |error: json::Error| wrong(&error.to_string());
    let manifest = Document::parse(&read(MANIFEST_KEY)?).map_err(json)?;
    let of_config = manifest.top().get("config").map_err(json)?;
    let of_config = of_config.map(|view| view.get_text("digest").map(|digest| digest == config));
    if !of_config.transpose().map_err(json)?.unwrap_or(false) {
        return Err(wrong("its manifest is of another config"));
    }
    let document = Document::parse(&read(&config)?).map_err(json)?;
    let mut top: Option<Digest> = None;
    if let Some(rootfs) = document.top().get("rootfs").map_err(json)? {
        for diff_id in rootfs.get_items("diff_ids").map_err(json)? {
            let diff_id = diff_id.text().map_err(json)?.parse::<Digest>().map_err(|error| wrong(&error.to_string()))?;
            top = Some(diff_id.layer_id(top.as_ref()));
        }
    }
    if top.map(|id| id.hex()).unwrap_or_default() != record.layer {
        return Err(wrong("the layers of its config do not end in its layer"));
    }
    Ok(())
}

/// Where the files of an image are in staging.
pub(super) fn image_directory(id: &str) -> String {
    format!("image-{id}")
}

/// The file of a big data item (containers/storage `store.go`, `makeBigDataBaseName`).
#[must_use]
pub fn file_name(key: &str) -> String {
    if key.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'.')) {
        return key.to_owned();
    }
    format!("={}", base64::engine::general_purpose::STANDARD.encode(key))
}
