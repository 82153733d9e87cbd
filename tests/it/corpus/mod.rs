//! Images at the edge of what a layer may be: what the real tools and prepull must agree about.

mod containers;
mod links;
mod metadata;
mod names;
mod whiteouts;

use prepull::digest::Digest;
use prepull::media_type::{OCI_CONFIG, OCI_MANIFEST};
use serde_json::{Value, json};

use crate::made::{Layout, gzip};
use crate::raw::{Raw, archive};

/// A layer: its bytes, and what is stored of it.
pub struct Layer {
    pub tar: Vec<u8>,
    pub blob: Vec<u8>,
    pub media: &'static str,
}

/// An image.
pub struct Case {
    pub name: String,
    pub layers: Vec<Layer>,
}

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const TAR_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A plain layer of any bytes.
pub fn plain(tar: Vec<u8>) -> Layer {
    Layer { blob: tar.clone(), tar, media: TAR }
}

fn gzipped(tar: Vec<u8>) -> Layer {
    Layer { blob: gzip(&tar), tar, media: TAR_GZIP }
}

/// One layer with these entries.
fn one(name: &str, entries: &[Raw]) -> Case {
    many(name, &[entries])
}

/// Layers with these entries, the lowest first.
fn many(name: &str, layers: &[&[Raw]]) -> Case {
    of(name, layers.iter().map(|entries| plain(archive(entries))).collect())
}

fn of(name: &str, layers: Vec<Layer>) -> Case {
    Case { name: name.to_owned(), layers }
}

/// One layer of any bytes.
fn bytes(name: &str, tar: Vec<u8>) -> Case {
    of(name, vec![plain(tar)])
}

/// All of them; the names differ.
pub fn all() -> Vec<Case> {
    let cases: Vec<Case> = [names::cases(), links::cases(), metadata::cases(), whiteouts::cases(), containers::cases()]
        .into_iter()
        .flatten()
        .collect();
    let names: std::collections::BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len(), "two cases have one name");
    cases
}

impl Case {
    /// The name of the image.
    pub fn image(&self) -> String {
        format!("localhost/{}:1", self.name)
    }

    /// Writes the image into a layout, under [`Self::image`].
    pub fn write(&self, layout: &mut Layout) {
        let diff_ids: Vec<String> = self.layers.iter().map(|layer| Digest::of(&layer.tar).to_string()).collect();
        // The name makes configs differ, so that no two cases are one image.
        let config = json!({
            "created": "2024-01-02T03:04:05.120Z", "architecture": "amd64", "os": "linux",
            "config": {"Labels": {"case": self.name}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = layout.blob(OCI_CONFIG, &serde_json::to_vec(&config).unwrap());
        let layers: Vec<Value> = self.layers.iter().map(|layer| layout.blob(layer.media, &layer.blob)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
        let descriptor = layout.manifest(&manifest);
        layout.add(Some(&self.image()), descriptor);
    }
}
