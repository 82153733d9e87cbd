//! images.json and layers.json as containers/storage reads them (`images.go`, `layers.go`).

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::go_types::is_time;
use crate::inspect::contents::{Contents, InodeKind, join};
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

    /// Returns whether it was pulled by a table of contents (zstd:chunked, eStargz), of which only the needed files are fetched.
    pub fn has_toc(&self) -> bool {
        self.toc_digest.as_deref().is_some_and(|digest| !digest.is_empty())
    }

    /// Returns whether its table of contents identifies it, since its diffID is not known.
    pub fn is_partial(&self) -> bool {
        self.has_toc() && self.diff_digest().is_none()
    }
}

/// A container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct ContainerRecord {
    layer: Option<String>,
    created: Option<String>,
    // Of these only the type matters.
    id: Option<String>,
    names: Option<Vec<String>>,
    image: Option<String>,
    metadata: Option<String>,
    big_data_names: Option<Vec<String>>,
    big_data_sizes: Option<BTreeMap<String, i64>>,
    big_data_digests: Option<BTreeMap<String, String>>,
    flags: Option<BTreeMap<String, serde_json::Value>>,
    uidmap: Option<Vec<IdMap>>,
    gidmap: Option<Vec<IdMap>>,
}

/// A range of ids in a user namespace (containers/storage `pkg/idtools/idtools.go`, `IDMap`).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct IdMap {
    container_id: Option<i64>,
    host_id: Option<i64>,
    size: Option<i64>,
}

/// Files about containers, below the graphroot (containers/storage `containers.go`, `newContainerStore`; `layers.go`,
/// `newLayerStore`).
const OF_CONTAINERS: [&str; 2] = ["overlay-containers/containers.json", "overlay-containers/volatile-containers.json"];
/// Layers of containers, which a machine without an orderly shutdown forgets.
pub(super) const VOLATILE_LAYERS: &str = "overlay-layers/volatile-layers.json";

/// A file about containers that containers/storage cannot read.
#[derive(Debug)]
pub(super) struct Unreadable {
    /// Its path below the graphroot.
    pub file: &'static str,
    /// The reason.
    pub why: String,
}

/// Reads the layers that containers write to, and the files about containers that cannot be read.
pub(super) fn layers_of_containers(contents: &Contents, graphroot: &str) -> (BTreeSet<String>, Vec<Unreadable>) {
    let (mut layers, mut unreadable) = (BTreeSet::new(), Vec::new());
    for file in OF_CONTAINERS {
        let records = read(contents, graphroot, file, |record: &ContainerRecord| record.created.as_deref());
        match records {
            Ok(records) => layers.extend(records.into_iter().filter_map(|record| record.layer)),
            Err(why) => unreadable.push(Unreadable { file, why }),
        }
    }
    match read(contents, graphroot, VOLATILE_LAYERS, |record: &LayerRecord| record.created.as_deref()) {
        Ok(records) => layers.extend(records.into_iter().map(|record| record.id)),
        Err(why) => unreadable.push(Unreadable { file: VOLATILE_LAYERS, why }),
    }
    (layers, unreadable)
}

/// Reads the records in `file`, which need not exist.
fn read<T: DeserializeOwned>(
    contents: &Contents,
    graphroot: &str,
    file: &str,
    created: impl Fn(&T) -> Option<&str>,
) -> Result<Vec<T>, String> {
    let path = join(graphroot.as_bytes(), file.as_bytes());
    let Some(inode) = contents.rest().get(&path) else { return Ok(Vec::new()) };
    match inode.kind {
        InodeKind::Regular { size, .. } if size > RECORDS_MAX => {
            return Err(format!("has more than {} MiB", RECORDS_MAX >> 20));
        }
        InodeKind::Regular { .. } => {}
        _ => return Err("is not a regular file".to_owned()),
    }
    // A failure to read is remembered by the contents.
    let bytes = contents.small(&path, RECORDS_MAX).ok().flatten().unwrap_or_default();
    Ok(parse(&bytes, created)?.unwrap_or_default())
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
        if let Some(time) = created(&record).filter(|time| !is_time(time)) {
            return Err(format!("record {at}: {time:?} is not a time"));
        }
        all.push(record);
    }
    Ok(Some(all))
}
