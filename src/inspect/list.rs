//! What images a store has, read from its records: as CRI-O tells crictl (cri-o `internal/storage/image.go`).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::find::Found;

/// The most layers of one image (containers/storage `drivers/overlay/overlay.go`, `maxDepth`).
pub const CHAIN_MAX: usize = 500;

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// Its id: the digest of its config, without `sha256:`.
    pub id: String,
    /// Its names with tags.
    pub repo_tags: Vec<String>,
    /// Its names with digests.
    pub repo_digests: Vec<String>,
    /// The bytes of its layers, unpacked, and of its records; `None` when the store does not know.
    pub size: Option<u64>,
    /// How many layers it has.
    pub layers: usize,
    /// The top one's id.
    #[serde(skip)]
    pub top: Option<String>,
    /// The time in its config.
    pub created: String,
    /// The graphroot of its store: a path within the input.
    #[serde(serialize_with = "super::absolute")]
    pub store: String,
}

/// Why the records of a store cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {error}")]
pub struct Error {
    /// Which record.
    pub file: String,
    /// What is wrong.
    pub error: serde_json::Error,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ImageRecord {
    pub(super) id: String,
    digest: Option<String>,
    pub(super) names: Option<Vec<String>>,
    pub(super) layer: Option<String>,
    /// The same top layer with other owners, for user namespaces.
    pub(super) mapped_layers: Option<Vec<String>>,
    big_data_names: Option<Vec<String>>,
    big_data_sizes: Option<BTreeMap<String, u64>>,
    #[serde(default)]
    created: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct LayerRecord {
    pub(super) id: String,
    pub(super) parent: Option<String>,
    diff_digest: Option<String>,
    diff_size: Option<u64>,
}

/// The images of all `stores`, sorted by name. A layer may be in another store than its image (additional stores).
///
/// # Errors
/// When a record is no JSON, or lacks what a store needs.
pub fn list(stores: &[Found]) -> Result<Vec<Listed>, Error> {
    let mut layers: BTreeMap<String, LayerRecord> = BTreeMap::new();
    for store in stores {
        let records: Vec<LayerRecord> = parse(store, &store.layers, "layers/layers.json")?;
        layers.extend(records.into_iter().map(|layer| (layer.id.clone(), layer)));
    }
    let mut chains = Chains { layers: &layers, known: HashMap::new() };
    let mut images = Vec::new();
    for store in stores {
        let records: Vec<ImageRecord> = parse(store, &store.images, "images/images.json")?;
        images.extend(records.into_iter().map(|image| listed(image, &mut chains, store)));
    }
    let key =
        |image: &Listed| (image.repo_tags.clone(), image.repo_digests.clone(), image.id.clone(), image.store.clone());
    images.sort_by_cached_key(key);
    Ok(images)
}

pub(super) fn parse<T: for<'a> Deserialize<'a>>(store: &Found, bytes: &[u8], file: &str) -> Result<Vec<T>, Error> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    // Go writes `null` for an empty list.
    let records: Result<Option<Vec<T>>, _> = serde_json::from_slice(bytes);
    // Of a key that occurs twice Go takes the last, which only a value that is parsed first does here.
    let records = records.or_else(|error| {
        let value = serde_json::from_slice::<serde_json::Value>(bytes);
        value.and_then(serde_json::from_value).map_err(|_| error)
    });
    let slash = if store.graphroot.is_empty() { "" } else { "/" };
    let file = || format!("{}{slash}{}-{file}", store.graphroot, store.driver);
    Ok(records.map_err(|error| Error { file: file(), error })?.unwrap_or_default())
}

/// The layer below each layer of some stores.
#[derive(Debug)]
pub struct Parents(BTreeMap<String, LayerRecord>);

impl Parents {
    /// Reads layers.json of all `stores`.
    ///
    /// # Errors
    /// As [`list`].
    pub fn of(stores: &[Found]) -> Result<Self, Error> {
        let mut layers = BTreeMap::new();
        for store in stores {
            let records: Vec<LayerRecord> = parse(store, &store.layers, "layers/layers.json")?;
            layers.extend(records.into_iter().map(|layer| (layer.id.clone(), layer)));
        }
        Ok(Self(layers))
    }

    /// The layer `top` and those below it, nearest first; at most [`CHAIN_MAX`].
    #[must_use]
    pub fn chain(&self, top: Option<&str>) -> Vec<String> {
        let parent = |id: &&str| self.0.get(*id)?.parent.as_deref().filter(|id| !id.is_empty());
        let mut seen = BTreeSet::new();
        let chain = std::iter::successors(top, parent).take(CHAIN_MAX);
        // One that comes back to itself ends there.
        chain.take_while(|id| seen.insert(*id)).map(str::to_owned).collect()
    }
}

/// How many layers there are from one down to the lowest, and their bytes unpacked; `None` when the store does not know.
type Chain = (usize, Option<u64>);

/// The chains of layers. Each part is looked at once, however many images share it.
struct Chains<'a> {
    layers: &'a BTreeMap<String, LayerRecord>,
    known: HashMap<&'a str, Chain>,
}

impl Chains<'_> {
    fn of(&mut self, top: &str) -> Chain {
        let mut chain = (0, Some(0));
        let mut walked: Vec<(&str, &LayerRecord)> = Vec::new();
        let mut places = HashMap::new();
        let mut next = Some(top);
        while let Some(id) = next {
            let Some((id, layer)) = self.layers.get_key_value(id) else {
                chain = (1, None);
                break;
            };
            let id = id.as_str();
            if let Some(known) = self.known.get(id) {
                chain = *known;
                break;
            }
            if let Some(at) = places.insert(id, walked.len()) {
                // A chain that comes back to itself ends there: each layer of the circle has all of it.
                let circle = walked.split_off(at);
                chain = circle.iter().fold(chain, |chain, (_, layer)| on_top(chain, layer));
                self.known.extend(circle.iter().map(|(id, _)| (*id, chain)));
                break;
            }
            walked.push((id, layer));
            next = layer.parent.as_deref().filter(|id| !id.is_empty());
        }
        for (id, layer) in walked.into_iter().rev() {
            chain = on_top(chain, layer);
            self.known.insert(id, chain);
        }
        chain
    }
}

fn on_top((layers, size): Chain, layer: &LayerRecord) -> Chain {
    // containers/storage `store.go`, ImageSize: the size counts only where there is a digest.
    let has_digest = layer.diff_digest.as_ref().is_some_and(|digest| !digest.is_empty());
    let bytes = has_digest.then(|| layer.diff_size.unwrap_or(0));
    (layers + 1, size.zip(bytes).and_then(|(size, bytes)| size.checked_add(bytes)))
}

fn listed(image: ImageRecord, chains: &mut Chains<'_>, store: &Found) -> Listed {
    let top = image.layer.filter(|id| !id.is_empty());
    let (layers, mut size) = top.as_deref().map_or((0, Some(0)), |top| chains.of(top));
    let mut add = |bytes: Option<u64>| size = size.zip(bytes).and_then(|(size, bytes)| size.checked_add(bytes));
    let sizes = image.big_data_sizes.unwrap_or_default();
    for name in image.big_data_names.unwrap_or_default() {
        add(sizes.get(&name).copied());
    }
    let (mut repo_tags, mut repo_digests) = (BTreeSet::new(), BTreeSet::new());
    for name in image.names.unwrap_or_default() {
        if name.contains('@') {
            repo_digests.insert(name);
        } else {
            let repository = tag_at(&name).map_or(&*name, |at| &name[..at]);
            if let Some(digest) = image.digest.as_ref().filter(|digest| !digest.is_empty()) {
                repo_digests.insert(format!("{repository}@{digest}"));
            }
            repo_tags.insert(name);
        }
    }
    Listed {
        id: image.id,
        repo_tags: repo_tags.into_iter().collect(),
        repo_digests: repo_digests.into_iter().collect(),
        size,
        layers,
        top,
        created: image.created,
        store: store.graphroot.clone(),
    }
}

/// Where the `:` of the tag is, if `name` has one: a port also comes after a colon.
#[must_use]
pub fn tag_at(name: &str) -> Option<usize> {
    name.rfind(':').filter(|at| !name[*at..].contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(images: &str, layers: &str) -> Found {
        let (images, layers) = (images.as_bytes().to_vec(), layers.as_bytes().to_vec());
        Found { graphroot: "s".into(), driver: "overlay".into(), images, layers, ..Found::default() }
    }

    #[test]
    fn sizes_are_those_of_containers_storage() {
        let layers = r#"[{"id":"l1","diff-digest":"sha256:1","diff-size":100},
            {"id":"l2","parent":"l1","diff-digest":"sha256:2"},{"id":"l3","diff-size":5},
            {"id":"l4","parent":"l4","diff-digest":"sha256:4","diff-size":7}]"#;
        let image = |more: &str| format!(r#"[{{"id":"i",{more}}}]"#);
        for (more, layers_of, size) in [
            (r#""layer":"l2","big-data-names":["a","b"],"big-data-sizes":{"a":1,"b":2,"c":9}"#, 2, Some(103)),
            (r#""layer":"""#, 0, Some(0)),
            (r#""names":null"#, 0, Some(0)),
            (r#""layer":"l3""#, 1, None),
            (r#""layer":"l4""#, 1, Some(7)),
            (r#""layer":"gone""#, 1, None),
            (r#""big-data-names":["a"]"#, 0, None),
            (r#""layer":"l1","big-data-names":["a"],"big-data-sizes":{"a":18446744073709551615}"#, 1, None),
        ] {
            let listed = list(&[store(&image(more), layers)]).unwrap().remove(0);
            assert_eq!((listed.layers, listed.size), (layers_of, size), "{more}");
        }
    }

    #[test]
    fn names_are_split_as_crio_splits_them() {
        let images = r#"[{"id":"i","digest":"sha256:d","names":["h:5000/a:1","h:5000/a","b@sha256:e"]}]"#;
        let listed = list(&[store(images, "null")]).unwrap().remove(0);
        assert_eq!(listed.repo_tags, ["h:5000/a", "h:5000/a:1"]);
        assert_eq!(listed.repo_digests, ["b@sha256:e", "h:5000/a@sha256:d"]);
    }

    #[test]
    fn a_layer_may_be_in_another_store() {
        let primary = store(r#"[{"id":"i","layer":"l"}]"#, "");
        let additional = store("", r#"[{"id":"l","diff-digest":"sha256:1","diff-size":3}]"#);
        assert_eq!(list(&[primary, additional]).unwrap()[0].size, Some(3));
    }

    #[test]
    fn many_images_of_one_long_chain_take_no_longer_than_their_records() {
        const COUNT: usize = 30_000;
        let layer = |number: usize| {
            // The lowest ones are a circle.
            let parent = number.checked_sub(1).unwrap_or(9);
            format!(r#"{{"id":"{number}","parent":"{parent}","diff-digest":"sha256:1","diff-size":1}}"#)
        };
        let image = |number: usize| format!(r#"{{"id":"{number}","layer":"{}"}}"#, COUNT - 1 - number);
        let all = |one: &dyn Fn(usize) -> String| format!("[{}]", (0..COUNT).map(one).collect::<Vec<_>>().join(","));
        let listed = list(&[store(&all(&image), &all(&layer))]).unwrap();
        for image in listed {
            let layers = (COUNT - image.id.parse::<usize>().unwrap()).max(10);
            assert_eq!((image.layers, image.size), (layers, Some(layers as u64)), "{}", image.id);
        }
    }

    #[test]
    fn errors_name_the_file() {
        for bad in ["{", "{}", "[{}]", r#"[{"id":"i","names":"x"}]"#] {
            let error = list(&[store(bad, "")]).unwrap_err().to_string();
            assert!(error.starts_with("s/overlay-images/images.json: "), "{error}");
        }
    }
}
