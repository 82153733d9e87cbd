//! How CRI-O looks a name up, and what it finds: what `crictl` and the kubelet are told without asking either.
//!
//! The steps are those of CRI-O (`server/image_status.go`, storageImageStatus): an id, or the beginning of one; else a name,
//! made full by containers/image (`pkg/shortnames/shortnames.go`, Resolve); then the stores, one after the other
//! (containers/image `storage/storage_reference.go`, resolveImage; containers/storage `store.go` and `images.go`, lookup).
//! What the machine has beside the input is not known: a note says so where it matters.

mod near;
mod stores;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::files::{self, Files};
use super::find::Found;
use super::list::{self, list};
use super::machine::{DEFAULT_PAUSE, MachineConfig, Origin, Set};
use crate::go_types::OLD_LAYERS_MAX;
use crate::reference::Reference;
use near::suggestions;
use stores::{At, Image, Stores, is_digest, parse};

/// The longest name that is looked up, in bytes: 255 for the repository, 128 for the tag, and a digest fit easily.
pub const NAME_MAX: usize = 1024;
/// The shortest part of an id that CRI-O takes for one (`internal/storage/image.go`, minimumTruncatedIDLength).
const ID_PREFIX_MIN: usize = 3;

/// What it comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Found; a pod with the default pull policy does not ask the registry for it.
    Usable,
    /// Found, but by default the kubelet asks the registry all the same.
    Pulls,
    /// Found, but its pods do not start, or CRI-O does not start, list it or keep it.
    Broken,
    /// Found by its id, or the beginning of it, which only crictl takes: the kubelet refuses 64 digits as a name
    /// (Kubernetes `pkg/util/parsers`, ParseImageName), and asks a registry for fewer.
    IdOnly,
    /// CRI-O would pull it.
    NotFound,
    /// No name at all, or one that CRI-O refuses.
    Invalid,
}

/// All that is known of a name.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Why {
    /// As it was typed.
    pub name: String,
    /// What it comes to.
    pub verdict: Verdict,
    /// The same in a few words.
    pub summary: String,
    /// What the name means.
    pub lookup: Lookup,
    /// The stores of the input, in the order in which CRI-O asks them.
    pub stores: Vec<StoreInfo>,
    /// What is found.
    pub image: Option<ImageInfo>,
    /// Whether the image is left alone by the kubelet's garbage collection.
    pub pinned: Option<Pinned>,
    /// The image that every pod needs.
    pub pause: Pause,
    /// What the kubelet does unless the pod says otherwise; not for ids.
    pub pull: Option<Pull>,
    /// Near misses.
    pub suggestions: Vec<Suggestion>,
    /// What keeps CRI-O from using the image, or from starting.
    pub problems: Vec<String>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
}

/// What a name means.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Lookup {
    /// What it is taken for.
    pub kind: Kind,
    /// What docker would make of it.
    pub normalized: Option<String>,
    /// The full names that CRI-O tries, in this order.
    pub candidates: Vec<Candidate>,
    /// Why there are none.
    pub error: Option<String>,
}

/// What a name is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// 64 hexadecimal digits.
    Id,
    /// The beginning of the id of an image that is there.
    IdPrefix,
    /// With a registry.
    Full,
    /// Without one.
    Short,
    /// No reference.
    Invalid,
}

/// A full name that CRI-O tries.
#[derive(Debug, Serialize)]
pub struct Candidate {
    /// The name.
    pub name: String,
    /// Where the registry comes from, if the name had none.
    pub origin: Option<Origin>,
    /// The registry that would be asked.
    pub registry: String,
}

/// What a store is for CRI-O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// `imagestore`: it comes before the graphroot.
    Imagestore,
    /// graphroot.
    Primary,
    /// One of additionalimagestores.
    Additional,
    /// Not read.
    Unused,
}

/// A store.
#[derive(Debug, Serialize)]
pub struct StoreInfo {
    /// Its graphroot within the input.
    #[serde(serialize_with = "super::absolute")]
    pub graphroot: String,
    /// overlay.
    pub driver: String,
    /// What it is for CRI-O.
    pub role: Role,
    /// Which line says so; nothing where it is the default, or assumed.
    pub origin: Option<Origin>,
    /// How many images it has.
    pub images: usize,
}

/// How an image was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FoundBy {
    /// It has this id.
    Id,
    /// It has exactly this name.
    Name,
    /// It has a name of this repository, and this digest.
    Digest,
}

/// What was found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageInfo {
    /// Its id.
    pub id: String,
    /// How it was found.
    pub found_by: FoundBy,
    /// The full name it was found by, unless by its id.
    pub resolved: Option<String>,
    /// The graphroot of its store: a path within the input.
    #[serde(serialize_with = "super::absolute")]
    pub store: String,
    /// The names that it has.
    pub names: Vec<String>,
    /// The names that a later image in images.json has taken.
    pub lost_names: Vec<String>,
    /// Names with digests, as CRI-O shows them.
    pub repo_digests: Vec<String>,
    /// Bytes.
    pub size: Option<u64>,
    /// Number of layers.
    #[serde(skip)]
    pub layers: usize,
    /// `linux/amd64`; nothing when its config is not there.
    pub platform: Option<String>,
    /// Other stores that have the image too; CRI-O lists it once more for each.
    #[serde(serialize_with = "super::all_absolute")]
    pub also_in: Vec<String>,
}

/// Whether it is pinned.
#[derive(Debug, Serialize)]
pub struct Pinned {
    /// Whether.
    pub pinned: bool,
    /// By what.
    pub by: Option<PinnedBy>,
}

/// What pins it.
#[derive(Debug, Serialize)]
pub struct PinnedBy {
    /// The entry of pinned_images, or pause_image.
    pub pattern: String,
    /// The name of the image that it fits.
    pub name: String,
    /// How it fits.
    pub fits: Fits,
    /// Whether it is pause_image.
    pub pause: bool,
    /// Where it was written; nothing for a default.
    pub origin: Option<Origin>,
}

/// How an entry of pinned_images fits a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fits {
    /// The whole name.
    Exactly,
    /// `abc*` and `*abc*`: anywhere in the name.
    Anywhere,
}

/// The image that every pod needs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pause {
    /// Whether this is it.
    pub is_pause_image: bool,
    /// pause_image, if it is set.
    pub configured: Option<Set<String>>,
    /// What is wanted, and whether it is there: one, or CRI-O's own of each version.
    pub wanted: Vec<PauseImage>,
}

/// An image that CRI-O wants for every pod.
#[derive(Debug, Serialize)]
pub struct PauseImage {
    /// From which version of CRI-O on; nothing when it is configured.
    pub since: Option<&'static str>,
    /// Its name.
    pub name: String,
    /// Whether a store has it.
    pub present: bool,
}

/// What the kubelet does by default.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pull {
    /// The default of imagePullPolicy for this name.
    pub policy: &'static str,
    /// Whether the registry would be asked, as things are.
    pub contacts_registry: bool,
}

/// A near miss.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Suggestion {
    /// How near.
    #[serde(skip)]
    rank: u8,
    /// A name that is there.
    pub name: String,
    /// The graphroot of its store: a path within the input.
    #[serde(serialize_with = "super::absolute")]
    pub store: String,
    /// The difference.
    pub reason: Nearness,
}

/// Reasons for which a name is suggested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Nearness {
    /// It is the name that was asked for, in a store that CRI-O does not read.
    UnusedStore,
    /// It is the name that was asked for, but the primary store has this image under another one.
    HiddenByPrimary,
    /// The record has a short name, by which CRI-O never finds the image.
    StoredShort,
    /// The full name of the short one that was asked for.
    FullName,
    /// The same name, which was not written as a name is.
    Spelling,
    /// Another tag or digest.
    SameRepository,
    /// The same path and tag in another registry.
    OtherRegistry,
    /// The same last component and tag.
    OtherRepository,
    /// A few letters differ.
    Typo,
}

impl std::fmt::Display for Nearness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::UnusedStore => "in a store that CRI-O does not read",
            Self::HiddenByPrimary => "the primary store has this image too, and not under this name",
            Self::StoredShort => "stored under a short name, by which CRI-O never finds it",
            Self::FullName => "its full name",
            Self::Spelling => "as it must be written",
            Self::SameRepository => "the same repository",
            Self::OtherRegistry => "another registry",
            Self::OtherRepository => "another repository of this name",
            Self::Typo => "a few letters differ",
        })
    }
}

/// Why it cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// images.json or layers.json.
    #[error(transparent)]
    Record(#[from] list::Error),
    /// A config of an image.
    #[error(transparent)]
    File(#[from] files::Error),
    /// More than [`NAME_MAX`].
    #[error("a name of {0} bytes (at most {NAME_MAX} are looked up)")]
    Name(usize),
}

/// CRI-O `internal/storage/references`, RegistryImageReferenceFromRaw: of a tag and a digest, the digest stays.
fn without_tag_beside_digest(name: Reference) -> Reference {
    match name.digest().cloned() {
        Some(digest) => name.with_digest(digest),
        None => name,
    }
}

/// containers/image `pkg/shortnames/shortnames.go`, parseUnnormalizedShortName.
fn is_short(name: &str) -> bool {
    name.split_once('/').is_none_or(|(first, _)| first != "localhost" && !first.contains(['.', ':']))
}

/// Where the repository of a reference ends: before `@`, and before the `:` of a tag.
fn repository(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or(name);
    list::tag_at(name).map_or(name, |at| &name[..at])
}

/// The full names that CRI-O tries for a name that is no id.
fn candidates(
    name: &str,
    config: &MachineConfig,
    problems: &mut Vec<String>,
) -> Result<Vec<(Reference, Option<Origin>)>, String> {
    let invalid = |error: crate::reference::ParseReferenceError| error.to_string();
    if !is_short(name) {
        let reference = Reference::parse_or_latest(name).map_err(invalid)?;
        if !reference.is_storable() {
            return Err(format!("{name:?}: containers/image does not understand this registry's name"));
        }
        return Ok(vec![(without_tag_beside_digest(reference), None)]);
    }
    // A registry in front makes no name valid that was not.
    Reference::parse_or_latest(name)
        .and_then(|_| Reference::parse_or_latest(&format!("docker.io/{name}")))
        .map_err(invalid)?;
    let repository = repository(name);
    if let Some(alias) = config.aliases.get(repository).filter(|alias| !alias.value.is_empty()) {
        let full = format!("{}{}", alias.value, &name[repository.len()..]);
        let reference =
            parse(&full).filter(|_| !is_short(&alias.value) && alias.value == self::repository(&alias.value));
        let reference =
            reference.ok_or_else(|| format!("{}: {:?} cannot be the name of an alias", alias.origin, alias.value))?;
        return Ok(vec![(without_tag_beside_digest(reference), Some(alias.origin.clone()))]);
    }
    let mut all = Vec::new();
    for registry in config.search.as_deref().unwrap_or_default() {
        let reference = parse(&format!("{}/{name}", registry.value))
            .ok_or_else(|| format!("{}: {:?} is not a registry", registry.origin, registry.value))?;
        all.push((without_tag_beside_digest(reference), Some(registry.origin.clone())));
    }
    // CRI-O `pkg/config/config.go`: enforcing is the default since 1.34; up to 1.33 there is no other than disabled.
    let disabled = config.short_name_mode.as_ref().is_some_and(|mode| mode.value == "disabled");
    if all.len() > 1 && !disabled {
        problems.push(
            "a short name, and several unqualified-search registries: CRI-O 1.34 and newer refuse it (\"short name mode is \
             enforcing\") unless short_name_mode is \"disabled\"; older ones try them in turn"
                .into(),
        );
    }
    Ok(all)
}

/// CRI-O `internal/storage/image.go`, CompileRegexpsForPinnedImages: whatever the case; only `*` at the end, or on both sides.
pub fn fits(pattern: &str, name: &str) -> Option<Fits> {
    let (pattern, name) = (pattern.to_lowercase(), name.to_lowercase());
    let Some(begin) = pattern.strip_suffix('*') else {
        return (pattern == name).then_some(Fits::Exactly);
    };
    name.contains(begin.strip_prefix('*').unwrap_or(begin)).then_some(Fits::Anywhere)
}

fn pinned(image: &Image, resolved: Option<&String>, config: &MachineConfig) -> Pinned {
    // Any of its names will do; the one that was asked for explains most.
    let asked = image.names.iter().filter(|name| Some(*name) == resolved);
    let names: Vec<&String> = asked.chain(&image.names).collect();
    let listed = config.pinned.iter().flatten().map(|set| (set, false));
    let lines: Vec<(&Set<String>, bool)> = listed.chain(config.pause.iter().map(|set| (set, true))).collect();
    let by = names.into_iter().find_map(|name| {
        let (set, pause, fits) = lines.iter().find_map(|(set, pause)| Some((*set, *pause, fits(&set.value, name)?)))?;
        let origin = Some(set.origin.clone());
        Some(PinnedBy { pattern: set.value.clone(), name: name.clone(), fits, pause, origin })
    });
    Pinned { pinned: by.is_some(), by }
}

/// Its names with CRI-O's makeRepoDigests: each repository with each digest.
fn repo_digests(image: &Image) -> Vec<String> {
    let mut all: BTreeSet<String> = image.names.iter().filter(|name| name.contains('@')).cloned().collect();
    for name in &image.names {
        all.extend(image.digests.iter().map(|digest| format!("{}@{digest}", repository(name))));
    }
    all.into_iter().collect()
}

/// Returns the config of an image, if the store has it.
fn config(files: &Files, found: &Found, image: &Image) -> Result<Option<Vec<u8>>, files::Error> {
    use base64::Engine as _;
    let Some(key) = image.big_data.iter().find(|key| is_digest(key)) else { return Ok(None) };
    data(files, found, image, &format!("={}", base64::engine::general_purpose::STANDARD.encode(key)))
}

/// Returns a file of an image, if the store has it.
fn data(files: &Files, found: &Found, image: &Image, file: &str) -> Result<Option<Vec<u8>>, files::Error> {
    // An id names a directory, so images.json must not lead out of the store.
    if image.id.contains(['/', '\0']) {
        return Ok(None);
    }
    let directory = format!("{}-images/{}/{file}", found.driver, image.id);
    files.read(&if found.graphroot.is_empty() { directory } else { format!("{}/{directory}", found.graphroot) })
}

/// Returns the platform in the image's config, if that can be read.
fn platform(files: &Files, found: &Found, image: &Image) -> Result<Option<String>, files::Error> {
    #[derive(Deserialize)]
    struct Config {
        os: Option<String>,
        architecture: Option<String>,
        variant: Option<String>,
    }
    let Some(bytes) = config(files, found, image)? else { return Ok(None) };
    let Ok(Config { os, architecture, variant }) = serde_json::from_slice(&bytes) else { return Ok(None) };
    let parts = [os, architecture, variant].into_iter().flatten().filter(|part| !part.is_empty());
    Ok(Some(parts.collect::<Vec<_>>().join("/")))
}

fn pause(stores: &Stores<'_>, config: &MachineConfig, candidates: &[Reference], problems: &mut Vec<String>) -> Pause {
    let normal = |name: &str| parse(name).map(without_tag_beside_digest);
    let look = |since, name: &str| {
        let present = normal(name).is_some_and(|name| stores.resolve(&name).is_some());
        PauseImage { since, name: name.to_owned(), present }
    };
    let wanted: Vec<PauseImage> = match &config.pause {
        Some(set) => {
            if normal(&set.value).is_none() {
                problems.push(format!(
                    "{}: {:?} is not an image: CRI-O does not start (\"invalid pause image\")",
                    set.origin, set.value
                ));
            }
            vec![look(None, &set.value)]
        }
        None => DEFAULT_PAUSE.into_iter().map(|(since, name)| look(Some(since), name)).collect(),
    };
    let is = |image: &PauseImage| normal(&image.name).is_some_and(|name| candidates.contains(&name));
    Pause { is_pause_image: wanted.iter().any(is), configured: config.pause.clone(), wanted }
}

/// Looks `name` up in the stores `found`, with the small `files` beside them.
///
/// # Errors
/// When a record of a store cannot be understood, or a file not be read.
pub fn why(name: &str, found: &[Found], files: &Files, config: &MachineConfig) -> Result<Why, Error> {
    if name.len() > NAME_MAX {
        return Err(Error::Name(name.len()));
    }
    let (mut notes, mut problems) = (Vec::new(), Vec::new());
    let mut stores = Stores::load(found, config, &mut notes)?;
    stores.settle();
    if let Some(set) = config.pinned.iter().flatten().find(|set| set.value == "*") {
        // `pattern[1 : len(pattern)-1]` of one byte.
        problems.push(format!(
            "{}: \"*\" in pinned_images ends CRI-O at its start (a Go panic); \"**\" is every image",
            set.origin
        ));
    }

    let mut hit = None;
    let mut names = Vec::new();
    let mut lookup = Lookup { kind: Kind::Invalid, normalized: None, candidates: Vec::new(), error: None };
    let hex = |b: u8| b.is_ascii_digit() || matches!(b, b'a'..=b'f');
    if name.len() == 64 && name.bytes().all(hex) {
        lookup.kind = Kind::Id;
        hit = stores.get(name).filter(|at| stores.image(*at).id == name).map(|at| (at, FoundBy::Id, None));
    } else if name.len() >= ID_PREFIX_MIN
        && let Some(at) = stores.get(name).filter(|at| stores.image(*at).id.starts_with(name))
    {
        lookup.kind = Kind::IdPrefix;
        hit = Some((at, FoundBy::Id, None));
    } else {
        lookup.normalized = parse(name).map(|name| name.to_string());
        match candidates(name, config, &mut problems) {
            Ok(found) => {
                lookup.kind = if is_short(name) { Kind::Short } else { Kind::Full };
                for (reference, origin) in found {
                    let registry = reference.domain().to_owned();
                    lookup.candidates.push(Candidate { name: reference.to_string(), origin, registry });
                    names.push(reference);
                }
                if names.is_empty() {
                    let where_ = if config.has_registries_conf { "registries.conf names" } else { "there is" };
                    lookup.error = Some(format!("a short name, and {where_} no unqualified-search registry"));
                }
                hit = names.iter().find_map(|name| {
                    let (at, by) = stores.resolve(name)?;
                    Some((at, by, Some(name.to_string())))
                });
            }
            Err(error) => lookup.error = Some(error),
        }
    }
    if lookup.kind == Kind::Short {
        if !config.has_registries_conf {
            notes.push("no registries.conf in it: the machine may have one, which decides about short names".into());
        }
        notes.push("pods should have full names: the kubelet passes a short name on as it is".into());
    }

    if !config.files.iter().any(|file| file.starts_with("etc/crio/")) {
        notes.push(
            "no crio.conf in it: the machine may have one, which decides what is pinned and which pause image it is"
                .into(),
        );
    }

    let pause = pause(&stores, config, &names, &mut problems);
    let mut pin = None;
    let image = match &hit {
        Some((at, found_by, resolved)) => {
            pin = Some(pinned(stores.image(*at), resolved.as_ref(), config));
            Some(image_info(&stores, *at, *found_by, resolved.clone(), found, files)?)
        }
        None => None,
    };
    if let Some(layers) = image.as_ref().map(|image| image.layers).filter(|layers| *layers > OLD_LAYERS_MAX) {
        notes.push(format!(
            "the image has {layers} layers: CRI-O 1.24 and 1.25 and podman up to 4.3 start none of its containers \
             (containers/storage before 1.44 mounts {OLD_LAYERS_MAX} layers)"
        ));
    }
    let is_name = matches!(lookup.kind, Kind::Full | Kind::Short);
    let pull = (is_name && !names.is_empty()).then(|| pull(name, image.is_some()));
    let suggestions = if image.is_some() { Vec::new() } else { suggestions(name, &names, &stores) };
    let stores = stores.0.iter().map(|store| StoreInfo {
        graphroot: store.found.graphroot.clone(),
        driver: store.found.driver.clone(),
        role: store.role,
        origin: store.origin.clone(),
        images: store.images.len(),
    });
    let mut why = Why {
        name: name.to_owned(),
        verdict: Verdict::NotFound,
        summary: String::new(),
        lookup,
        stores: stores.collect(),
        image,
        pinned: pin,
        pause,
        pull,
        suggestions,
        problems,
        notes,
    };
    why.conclude();
    Ok(why)
}

fn image_info(
    stores: &Stores<'_>,
    at: At,
    found_by: FoundBy,
    resolved: Option<String>,
    found: &[Found],
    files: &Files,
) -> Result<ImageInfo, Error> {
    let (store, image) = (&stores.0[at.0], stores.image(at));
    let listed = list(found)?.into_iter().find(|listed| listed.id == image.id && listed.store == store.found.graphroot);
    let layers = listed.as_ref().map_or(0, |listed| listed.layers);
    let size = listed.and_then(|listed| listed.size);
    let platform = platform(files, store.found, image)?;
    let others = stores
        .used()
        .filter(|(number, store)| *number != at.0 && store.images.iter().any(|other| other.id == image.id));
    Ok(ImageInfo {
        id: image.id.clone(),
        found_by,
        resolved,
        store: store.found.graphroot.clone(),
        names: image.names.clone(),
        lost_names: image.lost.clone(),
        repo_digests: repo_digests(image),
        size,
        layers,
        platform,
        also_in: others.map(|(_, store)| store.found.graphroot.clone()).collect(),
    })
}

/// Kubernetes `pkg/apis/core/v1/defaults.go`, SetDefaults_Container, and `pkg/util/parsers`: the tag `latest`, or neither tag
/// nor digest, is Always; all else is IfNotPresent.
fn pull(name: &str, present: bool) -> Pull {
    let (tagged, digest) = name.split_once('@').map_or((name, false), |(tagged, _)| (tagged, true));
    let always = list::tag_at(tagged).map_or(!digest, |at| &tagged[at + 1..] == "latest");
    Pull { policy: if always { "Always" } else { "IfNotPresent" }, contacts_registry: always || !present }
}

impl Why {
    /// Adds what was found wrong with the image, its layers or the stores, and what is worth knowing of them.
    pub fn add(&mut self, problems: Vec<String>, notes: Vec<String>) {
        self.problems.extend(problems);
        self.notes.extend(notes);
        self.conclude();
    }

    /// Sets the verdict and the summary, which follow from the rest.
    fn conclude(&mut self) {
        let Lookup { kind, candidates, .. } = &self.lookup;
        let is_name = matches!(kind, Kind::Full | Kind::Short);
        self.verdict = match (&self.image, &self.pull) {
            (None, _) if *kind == Kind::Invalid || (is_name && candidates.is_empty()) => Verdict::Invalid,
            (None, _) => Verdict::NotFound,
            (Some(_), _) if !self.problems.is_empty() => Verdict::Broken,
            (Some(_), None) => Verdict::IdOnly,
            (Some(_), Some(pull)) if pull.contacts_registry => Verdict::Pulls,
            (Some(_), Some(_)) => Verdict::Usable,
        };
        self.summary = self.summarize();
    }

    fn summarize(&self) -> String {
        let Some(image) = &self.image else {
            return match (self.verdict, &self.lookup.error) {
                (_, Some(error)) if self.lookup.kind == Kind::Short => {
                    format!("not found: {error}, so CRI-O refuses it")
                }
                (_, Some(error)) => format!("not found: {error}"),
                _ if self.lookup.kind == Kind::Id => {
                    "not found: no image has this id, and none can be pulled by it".into()
                }
                _ => {
                    let pulls: Vec<String> =
                        self.lookup.candidates.iter().map(|to| format!("{} ({})", to.registry, to.name)).collect();
                    format!("not found: CRI-O would pull from {}", pulls.join(", else "))
                }
            };
        };
        let pinned = if self.pinned.as_ref().is_some_and(|pinned| pinned.pinned) { "pinned" } else { "not pinned" };
        let found = if image.found_by == FoundBy::Digest { "found by its digest" } else { "found" };
        let rest = match self.verdict {
            Verdict::Broken => "but its pods do not start, or CRI-O does not keep it",
            Verdict::Pulls => "but by default the kubelet asks the registry (imagePullPolicy Always)",
            Verdict::IdOnly => "crictl takes an id, but a pod needs a name",
            _ if !self.pause.wanted.iter().any(|image| image.present) => {
                "it is not pulled, but every pod pulls the pause image"
            }
            _ => "pods start without a pull",
        };
        format!("{found}, {pinned}; {rest}")
    }
}

#[cfg(test)]
mod tests;
