//! The stores as containers/storage reads them: in which order, and which image of theirs is the one.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{FoundBy, Role};
use crate::inspect::find::Found;
use crate::inspect::list;
use crate::inspect::machine::{DEFAULT_GRAPHROOT, MachineConfig, Origin, Set, within};
use crate::reference::Reference;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Record {
    id: String,
    digest: Option<String>,
    names: Option<Vec<String>>,
    big_data_names: Option<Vec<String>>,
    big_data_digests: Option<BTreeMap<String, String>>,
}

pub(super) struct Image {
    pub id: String,
    pub names: Vec<String>,
    /// Names that a later one has taken.
    pub lost: Vec<String>,
    pub digests: Vec<String>,
    /// The keys of its big data.
    pub big_data: Vec<String>,
}

impl From<Record> for Image {
    /// containers/storage `images.go`, recomputeDigests: the top one, and those of all `manifest*`.
    fn from(record: Record) -> Self {
        let mut digests: Vec<String> = record.digest.into_iter().filter(|digest| !digest.is_empty()).collect();
        for (key, digest) in record.big_data_digests.unwrap_or_default() {
            if key.starts_with("manifest") && !digests.contains(&digest) {
                digests.push(digest);
            }
        }
        Self {
            id: record.id,
            names: record.names.unwrap_or_default(),
            lost: Vec::new(),
            digests,
            big_data: record.big_data_names.unwrap_or_default(),
        }
    }
}

pub(super) struct Store<'a> {
    pub found: &'a Found,
    pub role: Role,
    pub origin: Option<Origin>,
    pub images: Vec<Image>,
}

/// The stores that CRI-O reads, in its order.
pub(super) struct Stores<'a>(pub Vec<Store<'a>>);

/// An image of a store, by number.
pub(super) type At = (usize, usize);

impl<'a> Stores<'a> {
    pub fn load(found: &'a [Found], config: &MachineConfig, notes: &mut Vec<String>) -> Result<Self, list::Error> {
        let mut places: Vec<(String, Role, Option<Origin>)> = Vec::new();
        let place = |set: &Set<String>, role| (within(&set.value), role, Some(set.origin.clone()));
        // containers/storage `store.go`, load: with an imagestore, the graphroot is the first of the others.
        places.extend(config.image_store.iter().map(|set| place(set, Role::Imagestore)));
        let origin = config.graphroot.as_ref().map(|set| set.origin.clone());
        places.push((config.graphroot_within(), Role::Primary, origin));
        places.extend(config.additional.iter().map(|set| place(set, Role::Additional)));
        let silent = config.graphroot.is_none() && config.image_store.is_none() && config.additional.is_empty();
        if silent {
            // Then it is the machine's own storage.conf that says so.
            let default = found.iter().any(|store| store.graphroot == DEFAULT_GRAPHROOT);
            for (at, store) in found.iter().enumerate() {
                let role = if at == 0 && !default { Role::Primary } else { Role::Additional };
                places.push((store.graphroot.clone(), role, None));
            }
            if found.len() > 1 || found.iter().any(|store| store.graphroot.starts_with("usr/")) {
                notes.push(
                    "no storage.conf in it: that CRI-O reads all of these stores is assumed (additionalimagestores)"
                        .into(),
                );
            }
        }
        let mut stores = Vec::new();
        let mut taken = BTreeSet::new();
        for (path, role, origin) in places {
            for (at, found) in found.iter().enumerate() {
                if found.graphroot == path && found.driver == config.driver_or_default() && taken.insert(at) {
                    stores.push((found, role, origin.clone()));
                }
            }
            if role == Role::Additional && !found.iter().any(|store| store.graphroot == path) {
                let origin = origin.map(|origin| origin.to_string()).unwrap_or_default();
                notes.push(format!(
                    "additional store /{path} ({origin}) is not in it: CRI-O does not start where it is missing"
                ));
            }
        }
        for (at, found) in found.iter().enumerate() {
            if !taken.contains(&at) {
                stores.push((found, Role::Unused, None));
                let driver = if found.driver == config.driver_or_default() { "" } else { ", of another driver" };
                notes.push(format!("store /{}{driver}: CRI-O does not read it", found.graphroot));
            }
        }
        let load = |(found, role, origin): (&'a Found, Role, Option<Origin>)| {
            let records: Vec<Record> = list::parse(found, &found.images, "images/images.json")?;
            Ok(Store { found, role, origin, images: records.into_iter().map(Image::from).collect() })
        };
        Ok(Self(stores.into_iter().map(load).collect::<Result<_, _>>()?))
    }

    /// Takes a name that two images of a store have from all but the last, as containers/storage does (`images.go`, load).
    pub fn settle(&mut self) {
        for store in &mut self.0 {
            let mut owner: BTreeMap<String, usize> = BTreeMap::new();
            for number in 0..store.images.len() {
                for name in store.images[number].names.clone() {
                    if let Some(other) = owner.insert(name.clone(), number).filter(|other| *other != number) {
                        let other = &mut store.images[other];
                        other.names.retain(|kept| *kept != name);
                        other.lost.push(name);
                    }
                }
            }
        }
    }

    pub fn image(&self, (store, image): At) -> &Image {
        &self.0[store].images[image]
    }

    pub fn used(&self) -> impl Iterator<Item = (usize, &Store<'a>)> {
        self.0.iter().enumerate().filter(|(_, store)| store.role != Role::Unused)
    }

    /// containers/storage `store.go`, Image: by id, by name, by the beginning of an id that only one has.
    pub fn get(&self, key: &str) -> Option<At> {
        self.used().find_map(|(at, store)| {
            // The last of two with one id is the one that is known by it.
            let find = |fits: &dyn Fn(&Image) -> bool| store.images.iter().rposition(fits);
            let number = find(&|image| image.id == key)
                .or_else(|| find(&|image| image.names.iter().any(|name| name == key)))
                .or_else(|| {
                    let mut begin = store.images.iter().enumerate().filter(|(_, image)| image.id.starts_with(key));
                    let (number, first) = begin.next().filter(|_| !key.is_empty())?;
                    begin.all(|(_, image)| image.id == first.id).then_some(number)
                })?;
            // The name was taken from it when it was copied into the store that can be written.
            let written = matches!(self.0[0].role, Role::Imagestore | Role::Primary);
            let hidden = at != 0 && written && self.0[0].images.iter().any(|image| image.id == store.images[number].id);
            (!hidden).then_some((at, number))
        })
    }

    /// containers/image `storage/storage_reference.go`, resolveImage.
    pub fn resolve(&self, name: &Reference) -> Option<(At, FoundBy)> {
        if let Some(at) = self.get(&name.to_string()) {
            return Some((at, FoundBy::Name));
        }
        let digest = name.digest()?.to_string();
        let repository = name.name();
        let fits = |image: &Image| {
            image.digests.contains(&digest)
                && image.names.iter().any(|name| parse(name).is_some_and(|name| name.name() == repository))
        };
        self.used().find_map(|(at, store)| Some(((at, store.images.iter().position(fits)?), FoundBy::Digest)))
    }
}

/// go-digest's Validate.
pub(super) fn is_digest(text: &str) -> bool {
    let hex = |hex: &str, length| hex.len() == length && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    match text.split_once(':') {
        Some(("sha256", rest)) => hex(rest, 64),
        Some(("sha384", rest)) => hex(rest, 96),
        Some(("sha512", rest)) => hex(rest, 128),
        _ => false,
    }
}

/// containers/image's ParseNormalizedNamed and TagNameOnly.
pub(super) fn parse(name: &str) -> Option<Reference> {
    Reference::parse_or_latest(name).ok().filter(Reference::is_storable)
}
