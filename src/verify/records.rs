//! images.json and layers.json as containers/storage reads them (`images.go`, `layers.go`).

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::image::is_rfc3339;
use crate::inspect::contents::{Contents, join};
use crate::inspect::find::RECORDS_MAX;

/// An image.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct ImageRecord {
    pub id: String,
    pub digest: Option<String>,
    pub names: Option<Vec<String>>,
    pub layer: Option<String>,
    pub big_data_names: Option<Vec<String>>,
    pub big_data_sizes: Option<BTreeMap<String, i64>>,
    pub big_data_digests: Option<BTreeMap<String, String>>,
    pub created: Option<String>,
    // Of these only the type matters: with another one the whole file is refused.
    pub names_history: Option<Vec<String>>,
    pub mapped_layers: Option<Vec<String>>,
    pub metadata: Option<String>,
    pub flags: Option<BTreeMap<String, serde_json::Value>>,
}

impl ImageRecord {
    pub fn names(&self) -> &[String] {
        self.names.as_deref().unwrap_or_default()
    }

    pub fn data(&self) -> &[String] {
        self.big_data_names.as_deref().unwrap_or_default()
    }

    pub fn top(&self) -> Option<&str> {
        self.layer.as_deref().filter(|id| !id.is_empty())
    }
}

/// A layer.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct LayerRecord {
    pub id: String,
    pub parent: Option<String>,
    pub created: Option<String>,
    pub compressed_diff_digest: Option<String>,
    pub diff_digest: Option<String>,
    pub diff_size: Option<i64>,
    pub toc_digest: Option<String>,
    pub uidset: Option<Vec<u32>>,
    pub gidset: Option<Vec<u32>>,
    pub flags: Option<BTreeMap<String, serde_json::Value>>,
    // As above.
    pub names: Option<Vec<String>>,
    pub metadata: Option<String>,
    pub mountlabel: Option<String>,
    pub compressed_size: Option<i64>,
    pub compression: Option<i64>,
    pub big_data_names: Option<Vec<String>>,
}

impl LayerRecord {
    pub fn parent(&self) -> Option<&str> {
        self.parent.as_deref().filter(|id| !id.is_empty())
    }

    pub fn diff_digest(&self) -> Option<&str> {
        self.diff_digest.as_deref().filter(|digest| !digest.is_empty())
    }

    /// Half written: deleted when the store is opened.
    pub fn is_incomplete(&self) -> bool {
        self.flags.as_ref().and_then(|flags| flags.get("incomplete")) == Some(&serde_json::Value::Bool(true))
    }

    /// Known by its table of contents, not by its diffID.
    pub fn is_partial(&self) -> bool {
        self.toc_digest.as_deref().is_some_and(|digest| !digest.is_empty())
    }
}

/// Files about containers, below the graphroot, and the key that has the layer's id (containers/storage `containers.go`, `layers.go`).
const OF_CONTAINERS: [(&str, &str); 3] = [
    ("overlay-containers/containers.json", "layer"),
    ("overlay-containers/volatile-containers.json", "layer"),
    ("overlay-layers/volatile-layers.json", "id"),
];

/// The layers that containers write to. What cannot be read gives none.
pub(super) fn layers_of_containers(contents: &Contents, graphroot: &str) -> BTreeSet<String> {
    let mut layers = BTreeSet::new();
    for (file, key) in OF_CONTAINERS {
        let path = join(graphroot.as_bytes(), file.as_bytes());
        let bytes = contents.small(&path, RECORDS_MAX).ok().flatten().unwrap_or_default();
        let records: Vec<serde_json::Value> = serde_json::from_slice(&bytes).unwrap_or_default();
        layers.extend(records.iter().filter_map(|record| record.get(key)?.as_str().map(str::to_owned)));
    }
    layers
}

/// A list of records: `Ok(None)` for an empty file. As in Go, a key that occurs twice counts the last time, `null` is nothing, and
/// times must be RFC 3339.
pub(super) fn parse<T: DeserializeOwned>(
    bytes: &[u8],
    created: impl Fn(&T) -> Option<&str>,
) -> Result<Option<Vec<T>>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let records: Option<Vec<Option<T>>> = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let records = records.unwrap_or_default();
    let mut all = Vec::with_capacity(records.len());
    for (at, record) in records.into_iter().enumerate() {
        let record = record.ok_or_else(|| format!("record {at} is null"))?;
        if let Some(time) = created(&record).filter(|time| !is_rfc3339(time)) {
            return Err(format!("record {at}: {time:?} is no time"));
        }
        all.push(record);
    }
    Ok(Some(all))
}
