//! The records of a store: layers.json and images.json.

use std::collections::{BTreeMap, BTreeSet};

use super::link_name;
use crate::digest::Digest;
use crate::go_types::go_time;
pub use crate::helper::publish::record::OWNERS_MAX;
use crate::helper::publish::record::{ImageRecord, LayerRecord, MANIFEST_KEY};
use crate::image::{Image, Layer};
use crate::segment::file::Facts;

/// The record of the layer `id` on top of `parent`, made at `created`.
#[must_use]
pub fn layer_record(id: &Digest, parent: Option<&Digest>, facts: &Facts, created: &str) -> LayerRecord {
    LayerRecord {
        id: id.hex(),
        link: link_name(id),
        parent: parent.map(Digest::hex).unwrap_or_default(),
        created: created.to_owned(),
        compressed_diff_digest: facts.blob.to_string(),
        compressed_size: facts.blob_size,
        diff_digest: facts.diff_id.to_string(),
        diff_size: facts.diff_size,
        compression: facts.compression.into(),
        uidset: owners(&facts.uids),
        gidset: owners(&facts.gids),
    }
}

/// Of more than a store takes the highest: they say how large a user namespace would have to be (containers/storage
/// `userns.go`, `getMaxSizeFromImage`), and nothing else is done with them.
fn owners(all: &[u32]) -> Vec<u32> {
    all[all.len().saturating_sub(OWNERS_MAX)..].to_vec()
}

/// One image of a store: all that refers to one config.
///
/// The record does not depend on the order in which references were given: names and manifests are sorted, an index goes before
/// a manifest, and of several manifests (one config, layers compressed in several ways) the one whose layers have the lowest
/// [`Layer::rank`] is the image's, of those with the same rank the one with the smallest digest.
#[derive(Debug)]
pub struct StoreImage {
    id: Digest,
    config: Vec<u8>,
    created: Option<String>,
    chain: Vec<Digest>,
    names: BTreeSet<String>,
    indexes: BTreeMap<Digest, Vec<u8>>,
    manifests: BTreeMap<Digest, (Vec<u8>, Vec<Layer>)>,
}

impl StoreImage {
    /// An image without names.
    #[must_use]
    pub fn new(image: &Image) -> Self {
        let mut new = Self {
            id: image.id(),
            config: image.config().to_vec(),
            created: image.created().and_then(go_time),
            chain: image.chain_ids(),
            names: BTreeSet::new(),
            indexes: BTreeMap::new(),
            manifests: BTreeMap::new(),
        };
        new.merge(image);
        new
    }

    /// The config, the indexes, and the manifests, as they came.
    #[must_use]
    pub fn documents(&self) -> (&[u8], Vec<&[u8]>, Vec<&[u8]>) {
        let manifests = self.manifests.values().map(|(bytes, _)| &bytes[..]);
        (&self.config, self.indexes.values().map(Vec::as_slice).collect(), manifests.collect())
    }

    /// Takes in an index that the image came through.
    pub fn add_index(&mut self, bytes: Vec<u8>) {
        self.indexes.insert(Digest::of(&bytes), bytes);
    }

    /// Takes in all that is known of the same image elsewhere.
    pub fn absorb(&mut self, other: Self) {
        debug_assert_eq!(self.id, other.id);
        self.names.extend(other.names);
        self.indexes.extend(other.indexes);
        self.manifests.extend(other.manifests);
    }

    /// Takes a name away. Gives whether it had it.
    pub fn remove_name(&mut self, name: &str) -> bool {
        self.names.remove(name)
    }

    /// Takes in another reference to the same config.
    pub fn merge(&mut self, image: &Image) {
        debug_assert_eq!(self.id, image.id());
        if let (Some(index), Some(digest)) = (image.index(), image.index_digest()) {
            self.indexes.insert(digest, index.bytes.clone());
        }
        self.manifests.insert(image.manifest_digest(), (image.manifest().bytes.clone(), image.layers().to_vec()));
    }

    /// Gives the image one more name.
    pub fn add_name(&mut self, name: String) {
        self.names.insert(name);
    }

    /// The digest of the config.
    #[must_use]
    pub fn id(&self) -> &Digest {
        &self.id
    }

    /// The digest that a registry answers for the image: the index's if it came through one.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.indexes.keys().next().or(self.manifest_digest()).copied().unwrap_or(self.id)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Layer ids, lowest first.
    #[must_use]
    pub fn chain(&self) -> &[Digest] {
        &self.chain
    }

    /// Returns the layers of each manifest, lowest first, as many as [`Self::chain`].
    pub fn manifest_layers(&self) -> impl Iterator<Item = &[Layer]> {
        self.manifests.values().map(|(_, layers)| &layers[..])
    }

    /// Returns the digest of the image's own manifest.
    #[must_use]
    pub fn manifest_digest(&self) -> Option<&Digest> {
        self.own_manifest().map(|(digest, _)| digest)
    }

    fn own_manifest(&self) -> Option<(&Digest, &[u8])> {
        let rank = |layers: &[Layer]| layers.iter().map(Layer::rank).max();
        let own = self.manifests.iter().min_by_key(|(digest, (_, layers))| (rank(layers), **digest));
        own.map(|(digest, (bytes, _))| (digest, &bytes[..]))
    }

    /// Time of creation in Go's form, if the config has one.
    #[must_use]
    pub fn created(&self) -> Option<&str> {
        self.created.as_deref()
    }

    /// Big data items in the order of containers/image: config, indexes, manifests, the manifest once more under its own key.
    #[must_use]
    pub fn big_data(&self) -> Vec<(String, &[u8])> {
        let mut items = vec![(self.id.to_string(), &self.config[..])];
        let manifests = self.manifests.iter().map(|(digest, (bytes, _))| (digest, bytes));
        for (digest, bytes) in self.indexes.iter().chain(manifests) {
            items.push((format!("{MANIFEST_KEY}-{digest}"), bytes));
        }
        if let Some((_, bytes)) = self.own_manifest() {
            items.push((MANIFEST_KEY.to_owned(), bytes));
        }
        items
    }

    /// Returns the size of the config, the manifests and the indexes, in bytes: what containers/storage (`store.go`, `ImageSize`) adds
    /// to the layers for the size of an image.
    #[must_use]
    pub fn big_data_size(&self) -> u64 {
        self.big_data().iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// The record for images.json. `stamp` is the time of an image whose config has none.
    #[must_use]
    pub fn record(&self, stamp: &str) -> ImageRecord {
        let big_data = self.big_data();
        let names: Vec<String> = self.names.iter().cloned().collect();
        ImageRecord {
            id: self.id.hex(),
            digest: self.digest().to_string(),
            names: names.clone(),
            names_history: names,
            layer: self.chain.last().map(Digest::hex).unwrap_or_default(),
            metadata: "{}".to_owned(),
            big_data_sizes: big_data.iter().map(|(key, bytes)| (key.clone(), bytes.len() as u64)).collect(),
            big_data_digests: big_data
                .iter()
                .map(|(key, bytes)| (key.clone(), Digest::of(bytes).to_string()))
                .collect(),
            big_data_names: big_data.into_iter().map(|(key, _)| key).collect(),
            created: self.created.clone().unwrap_or_else(|| stamp.to_owned()),
            ..ImageRecord::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_layer_has_more_owners_than_a_store_takes() {
        let digest = Digest::of(b"");
        let facts = Facts {
            blob: digest,
            blob_size: 1,
            diff_id: digest,
            diff_size: 1,
            compression: 0,
            uids: (u32::MAX - 70_000..u32::MAX).collect(),
            gids: (0..70_000).collect(),
            root_claimed: false,
            stamped: Vec::new(),
            opaque: Vec::new(),
            warnings: Vec::new(),
            body: None,
        };
        let record = layer_record(&digest, None, &facts, "2024-01-02T03:04:05Z");
        let read = LayerRecord::parse(&record.to_lines()).unwrap();
        assert_eq!((read.uidset.len(), read.gidset.len()), (OWNERS_MAX, OWNERS_MAX));
        assert_eq!((read.uidset.last(), read.gidset.last()), (Some(&(u32::MAX - 1)), Some(&69_999)));
        let few = Facts { uids: vec![0, 7], gids: vec![0], ..facts };
        assert_eq!(layer_record(&digest, None, &few, "").uidset, [0, 7]);
    }
}
