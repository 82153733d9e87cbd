//! Images and containers of a machine's own store that lie on layers of another store: an additional one, or a mount.
//!
//! ```text
//!  storage.conf ▶ Stores ▶ Records ─┐
//!  layers that are to be removed ───┴▶ Dependents
//! ```
//!
//! Once such a layer is gone, containers/storage cannot compute the size of the image on it (`store.go`, ImageSize: "locating
//! layer with ID"), and CRI-O, which asks for the size of every image (cri-o `internal/storage/image.go`, ListImages), lists
//! none at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::files::{self, Files};
use super::find::{self, Found, in_directory_at};
use super::list::{self, ImageRecord, LayerRecord};
use super::machine::{self, within};
use super::root::Root;
use super::stores::Stores;

/// Files about containers, relative to the graphroot (containers/storage `containers.go`: containerLocations).
const CONTAINERS: [&str; 2] = ["containers.json", "volatile-containers.json"];

/// Layers that a reboot may remove, relative to the graphroot (containers/storage `layers.go`: jsonPath).
const VOLATILE_LAYERS: &str = "volatile-layers.json";

/// Maximum number of images and containers that a message names.
const NAMED_MAX: usize = 5;

/// Why the stores of the machine cannot be examined.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be read.
    #[error(transparent)]
    Config(#[from] machine::Error),
    /// A store cannot be read.
    #[error(transparent)]
    Find(#[from] find::Error),
    /// A file about containers cannot be read.
    #[error(transparent)]
    File(#[from] files::Error),
    /// Another of the machine's stores cannot be read. The text has the cause.
    #[error("{0}")]
    Additional(String),
    /// A record cannot be parsed.
    #[error(transparent)]
    Record(#[from] list::Error),
}

#[derive(Debug, Deserialize)]
struct ContainerRecord {
    id: String,
    names: Option<Vec<String>>,
    layer: Option<String>,
}

/// Images and containers that would lose a layer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dependents {
    /// The graphroot that has them: an absolute path.
    pub graphroot: PathBuf,
    /// Names of images, or ids of those without a name.
    pub images: BTreeSet<String>,
    /// Names of containers, or ids of those without a name.
    pub containers: BTreeSet<String>,
}

/// The records of a machine's stores, as they are written: read, but not yet parsed.
#[derive(Debug)]
pub struct Records {
    /// The graphroot of the machine's own store: an absolute path.
    graphroot: PathBuf,
    own: Vec<OwnRecords>,
    /// Those of the other stores. An error counts only if one of them is needed.
    additional: Vec<Result<Vec<Found>, find::Error>>,
}

#[derive(Debug)]
struct OwnRecords {
    found: Found,
    volatile_layers: Vec<u8>,
    /// Names of the files about containers, with their content.
    containers: Vec<(String, Vec<u8>)>,
}

impl Records {
    /// Reads the records of the stores that the storage.conf below `machine` names, without the store at `changed` (an absolute
    /// path of that machine).
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn read(machine: &Path, stores: &Stores, changed: &Path) -> Result<Self, Error> {
        let changed = within(&changed.to_string_lossy());
        let root = Arc::new(Root::open(machine).map_err(find::Error::Io)?);
        let files = Files::of_directory(Arc::clone(&root));
        let of_driver = |place: &str| -> Result<Vec<Found>, find::Error> {
            let found = in_directory_at(&root, place)?;
            Ok(found.into_iter().filter(|found| found.driver == stores.driver).collect())
        };
        let mut own = Vec::new();
        let places = stores.image_store.iter().chain([&stores.graphroot]).map(|path| within(path));
        for place in places.filter(|path| *path != changed) {
            for found in of_driver(&place)? {
                find::all_readable(std::slice::from_ref(&found))?;
                let read = |file: &str| files.read(&format!("{place}/{}-{file}", found.driver));
                let volatile_layers = read(&format!("layers/{VOLATILE_LAYERS}"))?.unwrap_or_default();
                let mut containers = Vec::new();
                for name in CONTAINERS {
                    let file = format!("containers/{name}");
                    let bytes = read(&file)?.unwrap_or_default();
                    containers.push((file, bytes));
                }
                own.push(OwnRecords { found, volatile_layers, containers });
            }
        }
        // Most machines have no image of their own on another store's layers: their other stores need not be parsed.
        let additional = stores.additional.iter().map(|path| within(path)).filter(|path| *path != changed);
        Ok(Self {
            graphroot: Path::new("/").join(within(&stores.graphroot)),
            own,
            additional: additional.map(|place| of_driver(&place)).collect(),
        })
    }

    /// Returns what would lose a layer in the machine's own store if the changed store no longer had the layers `gone`. A layer
    /// that another of the machine's stores has as well is not lost.
    ///
    /// # Errors
    /// When a record cannot be parsed, or one that is needed could not be read.
    pub fn dependents(&self, gone: &BTreeSet<String>) -> Result<Dependents, Error> {
        let mut dependents = Dependents { graphroot: self.graphroot.clone(), ..Dependents::default() };
        let mut lost: BTreeSet<&str> = gone.iter().map(String::as_str).collect();
        let (mut images, mut layers, mut containers) = (Vec::new(), Vec::new(), Vec::new());
        for OwnRecords { found, volatile_layers, containers: of_containers } in &self.own {
            layers.extend(list::parse::<LayerRecord>(found, &found.layers, "layers/layers.json")?);
            images.extend(list::parse::<ImageRecord>(found, &found.images, "images/images.json")?);
            let volatile = format!("layers/{VOLATILE_LAYERS}");
            layers.extend(list::parse::<LayerRecord>(found, volatile_layers, &volatile)?);
            for (file, bytes) in of_containers {
                containers.extend(list::parse::<ContainerRecord>(found, bytes, file)?);
            }
        }
        for store in &self.additional {
            if lost.is_empty() || images.is_empty() && containers.is_empty() {
                break;
            }
            let store = store.as_ref().map_err(|error| Error::Additional(error.to_string()))?;
            for found in store {
                for layer in list::parse::<LayerRecord>(found, &found.layers, "layers/layers.json")? {
                    lost.remove(layer.id.as_str());
                }
            }
        }
        for layer in &layers {
            lost.remove(layer.id.as_str());
        }
        // Layers on lost ones, until there are no more: records are in no particular order.
        let mut broken: BTreeSet<&str> = lost;
        loop {
            let before = broken.len();
            let on_broken = |layer: &&LayerRecord| layer.parent.as_deref().is_some_and(|id| broken.contains(id));
            let more: Vec<&str> = layers.iter().filter(on_broken).map(|layer| layer.id.as_str()).collect();
            broken.extend(more);
            if broken.len() == before {
                break;
            }
        }
        let called =
            |names: Option<Vec<String>>, id: String| names.and_then(|names| names.into_iter().next()).unwrap_or(id);
        for image in images {
            let tops = image.layer.iter().chain(image.mapped_layers.iter().flatten());
            if tops.map(String::as_str).any(|id| broken.contains(id)) {
                dependents.images.insert(called(image.names, image.id));
            }
        }
        for container in containers {
            if container.layer.as_deref().is_some_and(|id| broken.contains(id)) {
                dependents.containers.insert(called(container.names, container.id));
            }
        }
        Ok(dependents)
    }
}

impl Dependents {
    /// Finds what would lose a layer in the machine's own store: [`Records::read`], then [`Records::dependents`].
    ///
    /// # Errors
    /// Those of either.
    pub fn find(machine: &Path, stores: &Stores, changed: &Path, gone: &BTreeSet<String>) -> Result<Self, Error> {
        Records::read(machine, stores, changed)?.dependents(gone)
    }

    /// Returns the layers that the store at `graphroot` below `machine` would lose with the images of these names, or with ids
    /// that begin so: those that no other image of the store has. An image goes with its last name.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn layers_freed(
        machine: &Path,
        graphroot: &str,
        names: &[String],
        ids: &[String],
    ) -> Result<BTreeSet<String>, Error> {
        let goes = |image: &ImageRecord| {
            let all = image.names.as_deref().unwrap_or_default();
            let is_untagged = !all.is_empty() && all.iter().all(|name| names.contains(name));
            is_untagged || ids.iter().any(|id| image.id.starts_with(id.as_str()))
        };
        let mut freed = BTreeSet::new();
        for (_, images) in chains(machine, graphroot)? {
            let (gone, kept): (Vec<_>, Vec<_>) = images.into_iter().partition(|(image, _)| goes(image));
            let kept: BTreeSet<_> = kept.into_iter().flat_map(|(_, chain)| chain).collect();
            freed.extend(gone.into_iter().flat_map(|(_, chain)| chain).filter(|id| !kept.contains(id)));
        }
        Ok(freed)
    }

    /// Returns the layers of the store at `graphroot` below `machine` that no image of the store has.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn layers_unreferenced(machine: &Path, graphroot: &str) -> Result<BTreeSet<String>, Error> {
        let mut unreferenced = BTreeSet::new();
        for (layers, images) in chains(machine, graphroot)? {
            let kept: BTreeSet<_> = images.into_iter().flat_map(|(_, chain)| chain).collect();
            unreferenced.extend(layers.into_iter().filter(|id| !kept.contains(id)));
        }
        Ok(unreferenced)
    }

    /// Returns whether nothing would lose a layer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.images.is_empty() && self.containers.is_empty()
    }
}

/// The ids of a store's layers, and its images with the ids of their layers.
type Chains = (Vec<String>, Vec<(ImageRecord, BTreeSet<String>)>);

/// Returns the chains of the store at `graphroot` below `machine`, for each storage driver that it has.
fn chains(machine: &Path, graphroot: &str) -> Result<Vec<Chains>, Error> {
    let root = Root::open(machine).map_err(find::Error::Io)?;
    let mut all = Vec::new();
    for found in in_directory_at(&root, &within(graphroot))? {
        find::all_readable(std::slice::from_ref(&found))?;
        let layers = list::parse::<LayerRecord>(&found, &found.layers, "layers/layers.json")?;
        let images = list::parse::<ImageRecord>(&found, &found.images, "images/images.json")?;
        let parents: BTreeMap<&str, Option<&str>> =
            layers.iter().map(|layer| (layer.id.as_str(), layer.parent.as_deref())).collect();
        let chain = |image: &ImageRecord| {
            let mut chain = BTreeSet::new();
            let mut next = image.layer.as_deref();
            // A damaged chain may be a circle.
            while let Some(id) = next.filter(|id| chain.insert((*id).to_owned())) {
                next = parents.get(id).copied().flatten();
            }
            chain
        };
        let images = images
            .into_iter()
            .map(|image| {
                let chain = chain(&image);
                (image, chain)
            })
            .collect();
        all.push((layers.iter().map(|layer| layer.id.clone()).collect(), images));
    }
    Ok(all)
}

impl fmt::Display for Dependents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (what, names)) in [("image", &self.images), ("container", &self.containers)]
            .into_iter()
            .filter(|(_, all)| !all.is_empty())
            .enumerate()
        {
            let and = if at > 0 { " and " } else { "" };
            let plural = if names.len() > 1 { "s" } else { "" };
            let shown: Vec<&str> = names.iter().take(NAMED_MAX).map(String::as_str).collect();
            write!(f, "{and}{what}{plural} {}", shown.join(", "))?;
            if names.len() > NAMED_MAX {
                write!(f, " and {} more", names.len() - NAMED_MAX)?;
            }
        }
        write!(f, " of the store {}", self.graphroot.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a store below `root`: layers as (id, parent), images as (id, name, top layer).
    fn store(root: &Path, place: &str, layers: &[(&str, &str)], images: &[(&str, &str, &str)]) {
        let at = root.join(place);
        for directory in ["overlay-images", "overlay-layers", "overlay-containers"] {
            fs_err::create_dir_all(at.join(directory)).unwrap();
        }
        let layers: Vec<_> =
            layers.iter().map(|(id, parent)| serde_json::json!({"id": id, "parent": parent})).collect();
        let image = |(id, name, layer): &(&str, &str, &str)| match *name {
            "" => serde_json::json!({"id": id, "layer": layer}),
            name => serde_json::json!({"id": id, "names": [name], "layer": layer}),
        };
        let images: Vec<_> = images.iter().map(image).collect();
        fs_err::write(at.join("overlay-layers/layers.json"), serde_json::to_vec(&layers).unwrap()).unwrap();
        fs_err::write(at.join("overlay-images/images.json"), serde_json::to_vec(&images).unwrap()).unwrap();
    }

    fn find(root: &Path, gone: &[&str]) -> Result<Dependents, Error> {
        let stores = Stores {
            graphroot: "/own".to_owned(),
            runroot: "/run".to_owned(),
            image_store: None,
            additional: vec!["/mnt".to_owned(), "/other".to_owned()],
            driver: "overlay".to_owned(),
        };
        Dependents::find(root, &stores, Path::new("/mnt"), &gone.iter().map(|id| (*id).to_owned()).collect())
    }

    #[test]
    fn images_and_containers_on_layers_of_another_store_are_found() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        // A machine that has no store of its own yet.
        assert!(find(root, &["a"]).unwrap().is_empty());
        store(root, "mnt", &[("a", ""), ("b", "a"), ("c", ""), ("d", ""), ("e", "")], &[]);
        store(root, "other", &[("d", "")], &[]);
        let layers = [("z", "y"), ("y", "b"), ("x", "c"), ("w", ""), ("e", ""), ("v", "d"), ("u", "e")];
        let images =
            [("1", "on-a", "z"), ("2", "", "x"), ("3", "own", "w"), ("4", "elsewhere", "v"), ("5", "both", "u")];
        store(root, "own", &layers, &images);
        let file = |name: &str, text: &str| fs_err::write(root.join("own").join(name), text).unwrap();
        file(
            "overlay-containers/containers.json",
            r#"[{"id": "c1", "names": ["web"], "layer": "rw"}, {"id": "c2", "layer": "w"}]"#,
        );
        file("overlay-layers/volatile-layers.json", r#"[{"id": "rw", "parent": "c"}]"#);
        for (gone, images, containers) in [
            (&["a", "b"][..], &["on-a"][..], &[][..]),
            (&["b"], &["on-a"], &[]),
            (&["c"], &["2"], &["web"]),
            // Another additional store has it, or the own one; or no store needs it.
            (&["d"], &[], &[]),
            (&["e"], &[], &[]),
            (&["unknown"], &[], &[]),
        ] {
            let found = find(root, gone).unwrap();
            assert_eq!(Vec::from_iter(&found.images), images, "{gone:?}");
            assert_eq!(Vec::from_iter(&found.containers), containers, "{gone:?}");
        }
        let found = find(root, &["a", "b", "c"]).unwrap();
        assert_eq!(found.to_string(), "images 2, on-a and container web of the store /own");
        let many = Dependents { images: (0..7).map(|number| number.to_string()).collect(), ..Dependents::default() };
        assert!(many.to_string().starts_with("images 0, 1, 2, 3, 4 and 2 more of"), "{many}");
        file("overlay-containers/containers.json", "{");
        assert!(find(root, &["a"]).unwrap_err().to_string().contains("own/overlay-containers/containers.json: "));
    }
}
