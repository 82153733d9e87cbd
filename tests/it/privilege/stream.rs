//! Streams, good ones and others.

use prepull::digest::Digest;
use prepull::entry::{Entry, Kind, Meta, Timestamp};
use prepull::helper::publish::record::{ImageRecord, LayerRecord};
use prepull::wire;

use super::Jail;
use crate::stores::GRAPHROOT;

/// Bytes for the helper's standard input.
#[derive(Debug, Clone, Default)]
pub struct Stream(pub Vec<u8>);

/// The id of layer `number`: 1 is a layer of its own, every other one is on top of it.
pub fn id(number: u64) -> String {
    let [base, diff_id] = [1, number].map(|number| digest(number).parse::<Digest>().unwrap());
    diff_id.layer_id((number != 1).then_some(&base)).hex()
}

/// A short name.
pub fn link(number: u64) -> String {
    let digit = |shift: u64| char::from(b'A' + u8::try_from(number >> shift & 15).unwrap());
    format!("AAAAAAAAAAAAAAAAAAAAAAA{}{}{}", digit(8), digit(4), digit(0))
}

/// The diffID of layer `number`.
pub fn digest(number: u64) -> String {
    format!("sha256:{number:064x}")
}

/// Where the files of layer `number` are.
pub fn diff(number: u64) -> String {
    format!("{}/overlay/{}/diff", GRAPHROOT, id(number))
}

pub fn meta(mode: u16) -> Meta {
    Meta { mode, mtime: Timestamp::whole(1_700_000_000), ..Meta::default() }
}

pub fn entry(path: impl AsRef<[u8]>, kind: Kind) -> Entry {
    Entry { path: path.as_ref().to_vec(), meta: meta(0o755), kind }
}

pub fn layer_record(number: u64, parent: Option<u64>) -> LayerRecord {
    LayerRecord {
        id: id(number),
        link: link(number),
        parent: parent.map(id).unwrap_or_default(),
        created: "2024-01-01T00:00:00Z".to_owned(),
        compressed_diff_digest: digest(number),
        compressed_size: 100,
        diff_digest: digest(number),
        diff_size: 1024,
        compression: 2,
        uidset: vec![0],
        gidset: vec![0],
    }
}

/// The record of an image of one layer, and the files that it names.
pub fn image_record(config: &[u8], manifest: &[u8], layer: Option<u64>, name: &str) -> ImageRecord {
    let id = Digest::of(config).hex().to_string();
    let key = format!("sha256:{id}");
    let sizes = [(key.clone(), config.len() as u64), ("manifest".to_owned(), manifest.len() as u64)];
    let digests =
        [(key.clone(), Digest::of(config).to_string()), ("manifest".to_owned(), Digest::of(manifest).to_string())];
    ImageRecord {
        digest: Digest::of(manifest).to_string(),
        names: vec![name.to_owned()],
        layer: layer.map(super::stream::id).unwrap_or_default(),
        big_data_names: vec!["manifest".to_owned(), key],
        big_data_sizes: sizes.into(),
        big_data_digests: digests.into(),
        created: "2024-01-01T00:00:00Z".to_owned(),
        id,
        ..ImageRecord::default()
    }
}

/// The text of the first entry.
pub fn request(word: &str, jail: &Jail) -> String {
    format!("prepull 1\nrequest {word}\ngraphroot /{GRAPHROOT}\nroot {}\n", jail.root_number())
}

impl Stream {
    /// Begins with a request.
    pub fn new(word: &str, jail: &Jail) -> Self {
        Self::default().file("prepull-request", request(word, jail))
    }

    pub fn entry(mut self, entry: &Entry) -> Self {
        wire::header(entry, &mut self.0);
        self
    }

    pub fn at(self, path: impl AsRef<[u8]>, kind: Kind) -> Self {
        self.entry(&entry(path, kind))
    }

    pub fn dir(self, path: impl AsRef<[u8]>) -> Self {
        self.at(path, Kind::Directory)
    }

    pub fn symlink(self, path: impl AsRef<[u8]>, target: &str) -> Self {
        self.at(path, Kind::Symlink(target.as_bytes().to_vec()))
    }

    pub fn hardlink(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.at(path, Kind::Hardlink(target.as_ref().to_vec()))
    }

    pub fn file(self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        self.file_with(path, meta(0o644), content)
    }

    pub fn file_with(mut self, path: impl AsRef<[u8]>, meta: Meta, content: impl AsRef<[u8]>) -> Self {
        let content = content.as_ref();
        let entry = Entry { path: path.as_ref().to_vec(), meta, kind: Kind::Regular { size: content.len() as u64 } };
        wire::small_file(&mut self.0, &entry, content);
        self
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Ends layer `number`: its metadata once more, its tar-split, its record.
    pub fn end_layer(self, number: u64, parent: Option<u64>) -> Self {
        let lines = layer_record(number, parent).to_lines();
        self.split(number).file("prepull-layer", lines)
    }

    pub fn split(self, number: u64) -> Self {
        let path = format!("{}/overlay-layers/{}.tar-split.gz", GRAPHROOT, id(number));
        self.dir(diff(number)).file(path, b"split")
    }

    /// A whole layer with one file.
    pub fn layer(self, number: u64, parent: Option<u64>) -> Self {
        self.dir(diff(number)).file(format!("{}/file", diff(number)), b"content").end_layer(number, parent)
    }

    /// The files of an image.
    pub fn data(mut self, image: &str, files: &[(&str, &[u8])]) -> Self {
        for (key, content) in files {
            self = self.file(format!("{}/overlay-images/{image}/{key}", GRAPHROOT), content);
        }
        self
    }

    /// A whole image on top of `layer`.
    pub fn image(self, config: &[u8], layer: Option<u64>, name: &str) -> Self {
        let manifest = &manifest_of(config)[..];
        let record = image_record(config, manifest, layer, name);
        let key = format!("sha256:{}", record.id);
        self.data(&record.id, &[("manifest", manifest), (&key, config)]).file("prepull-image", record.to_lines())
    }

    pub fn end(self) -> Vec<u8> {
        self.raw(&wire::END).0
    }
}

/// A config that podman reads, of an image that ends in layer `number`.
pub fn config_of(number: u64) -> String {
    let digests: Vec<_> = std::collections::BTreeSet::from([1, number]).into_iter().map(digest).collect();
    let root = format!("{{\"type\":\"layers\",\"diff_ids\":[\"{}\"]}}", digests.join("\",\""));
    format!("{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{{}},\"rootfs\":{root}}}")
}

/// A manifest that podman reads.
pub fn manifest_of(config: &[u8]) -> Vec<u8> {
    let oci = "application/vnd.oci.image";
    let of_config = format!(
        "{{\"mediaType\":\"{oci}.config.v1+json\",\"digest\":\"{}\",\"size\":{}}}",
        Digest::of(config),
        config.len()
    );
    // One descriptor for each diffID. What they name is not in the stream.
    let layers = String::from_utf8_lossy(config).matches("sha256:").count();
    let of_layer = format!("{{\"mediaType\":\"{oci}.layer.v1.tar+gzip\",\"digest\":\"{}\",\"size\":100}}", digest(1));
    let of_layers = vec![of_layer; layers].join(",");
    let head = format!("{{\"schemaVersion\":2,\"mediaType\":\"{oci}.manifest.v1+json\"");
    format!("{head},\"config\":{of_config},\"layers\":[{of_layers}]}}").into_bytes()
}

/// A stream with everything that a layer may have, which must be taken.
pub fn good(jail: &Jail, number: u64, parent: Option<u64>) -> Stream {
    let at = diff(number);
    let of_user = Meta { uid: 1000, gid: 1000, mode: 0o755, ..meta(0) };
    Stream::new("install", jail)
        .dir(&at)
        .dir(format!("{at}/d"))
        .file_with(format!("{at}/d/f"), of_user, b"content")
        .hardlink(format!("{at}/d/h"), format!("{at}/d/f"))
        .symlink(format!("{at}/d/s"), "/etc/passwd")
        .at(format!("{at}/d/w"), Kind::CharDevice(prepull::entry::Device::WHITEOUT))
        .at(format!("{at}/d/p"), Kind::Fifo)
        .dir(format!("{at}/d"))
        .end_layer(number, parent)
        .image(config_of(number).as_bytes(), Some(number), &format!("localhost/good:{number}"))
}

/// Layers on top of each other, the lowest on none.
pub fn stack(jail: &Jail, layers: u64) -> Vec<u8> {
    let mut stream = Stream::new("install", jail);
    let mut below: Option<Digest> = None;
    for number in 1..=layers {
        let number = number + 5000;
        let diff_id: Digest = digest(number).parse().unwrap();
        let id = diff_id.layer_id(below.as_ref());
        let parent = below.map(|id| id.hex()).unwrap_or_default();
        let record = LayerRecord { id: id.hex(), parent, link: link(number - 4000), ..layer_record(number, None) };
        let at = format!("{GRAPHROOT}/overlay/{}/diff", record.id);
        let split = format!("{GRAPHROOT}/overlay-layers/{}.tar-split.gz", record.id);
        stream = stream.dir(&at).file(format!("{at}/file"), b"content").dir(&at).file(split, b"split");
        stream = stream.file("prepull-layer", record.to_lines());
        below = Some(id);
    }
    stream.end()
}
