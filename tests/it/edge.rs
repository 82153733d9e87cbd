//! Images at the edge of what layers may be: GNU tar unpacks what skopeo would have made, and what skopeo refuses is refused.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::command::{needs_root, prepull};
use crate::corpus::{self, Case};
use crate::made::Layout;
use crate::stores::{
    Clock, GRAPHROOT, Tree, chain, complaints, differences, each, json as json_of, lone, scratch, tar_split,
    unpack_gnu, walk,
};
use crate::theirs::{Theirs, theirs};

/// What differs on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// skopeo takes it, prepull does not.
    Refused,
    /// prepull leaves out overlayfs's own attributes.
    NoOverlayAttributes,
    /// skopeo before 1.13 (storage before 1.47) does not give a layer's root the owner of its parent's.
    RootOwner,
    /// prepull does not give files the default ACL of the directory they are in.
    InheritedAcls,
    /// skopeo's tar-split lacks bytes, so that it could not export the layer.
    TarSplit,
    /// skopeo takes the blob of a lower layer with the same content for this one's.
    Blob,
}

/// All differences on purpose, with the reason.
pub const DIFFERENCES: &[(&str, Difference, &str)] = &[
    ("pax-sparse-0.0", Difference::Refused, SPARSE),
    ("pax-sparse-0.1", Difference::Refused, SPARSE),
    ("pax-sparse-1.0", Difference::Refused, SPARSE),
    ("xattr-opaque-file", Difference::NoOverlayAttributes, STEERS),
    ("xattr-opaque-symlink", Difference::NoOverlayAttributes, STEERS),
    ("xattr-opaque-fifo", Difference::NoOverlayAttributes, STEERS),
    ("xattr-opaque-char", Difference::NoOverlayAttributes, STEERS),
    ("xattr-opaque-block", Difference::NoOverlayAttributes, STEERS),
    ("xattr-opaque-x", Difference::NoOverlayAttributes, STEERS),
    ("xattr-opaque-dir-x", Difference::NoOverlayAttributes, STEERS),
    ("xattr-redirect", Difference::NoOverlayAttributes, STEERS),
    ("xattr-origin", Difference::NoOverlayAttributes, STEERS),
    ("xattr-user-overlay", Difference::NoOverlayAttributes, STEERS),
    (
        "wh-then-opaque-below",
        Difference::NoOverlayAttributes,
        "an opaque marker on what is no directory has no meaning",
    ),
    ("opq-on-file", Difference::NoOverlayAttributes, "an opaque marker on what is no directory has no meaning"),
    (
        "xattr-acl-default",
        Difference::InheritedAcls,
        "no builder makes such layers, and who means it says it in the files' own headers",
    ),
    ("cut-in-padding", Difference::TarSplit, "the bytes are part of the layer"),
    ("two-blobs", Difference::Blob, "each layer is recorded with the blob that the manifest gives it"),
    ("root-inherited", Difference::RootOwner, OLD_ROOT),
    ("root-claimed-late", Difference::RootOwner, OLD_ROOT),
    ("root-claimed-twice", Difference::RootOwner, OLD_ROOT),
];

const SPARSE: &str = "tar-split cannot record a sparse file: the image could never be exported again";
const STEERS: &str = "overlayfs's own attributes would steer the mount in the machine";
const OLD_ROOT: &str = "as storage 1.64 does it";

/// The difference that a case may show.
pub fn difference(case: &str) -> Option<Difference> {
    DIFFERENCES.iter().find(|(name, ..)| *name == case).map(|(_, difference, _)| *difference)
}

#[test]
fn gnu_tar_unpacks_what_skopeo_makes() {
    if !needs_root("edge::gnu_tar_unpacks_what_skopeo_makes") {
        return;
    }
    let only = std::env::var("PREPULL_EDGE").ok();
    let cases: Vec<Case> =
        corpus::all().into_iter().filter(|case| only.as_ref().is_none_or(|only| case.name.starts_with(only))).collect();
    let directory = scratch();
    let failures = each(&cases, 12, |case| compare(case, &directory.path().join(&case.name)));
    assert!(failures.is_empty(), "{} of {} differ:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

fn compare(case: &Case, at: &Path) -> Result<(), String> {
    let difference = difference(&case.name);
    let Asked { skopeo, prepull, said, report } = ask(case, at, difference.as_slice());
    if std::env::var_os("PREPULL_EDGE").is_some() {
        eprintln!("{}: {said}", case.name);
    }
    let fail = |what: &str| Err(format!("{}: {what}\n  {said}", case.name));
    if !report.is_empty() {
        return fail(&format!("they differ\n{report}"));
    }
    match (skopeo, prepull, difference) {
        (false, false, None) | (true, false, Some(Difference::Refused)) => Ok(()),
        (true, true, difference) if !matches!(difference, Some(Difference::Refused)) => Ok(()),
        (true, false, _) => fail("only prepull refuses"),
        (false, true, _) => fail("only skopeo refuses"),
        (_, _, difference) => fail(&format!("does not show the difference {difference:?}")),
    }
}

/// What the two have to say of an image.
pub struct Asked {
    /// Whether skopeo takes it.
    pub skopeo: bool,
    /// Whether prepull takes it.
    pub prepull: bool,
    /// What they said.
    pub said: String,
    /// What differs that may not, where both take it; or what is wrong with how prepull refuses it.
    pub report: String,
}

/// Has skopeo and prepull make a store of an image, in the new directory `at`, which stays if there is something to report.
pub fn ask(case: &Case, at: &Path, may: &[Difference]) -> Asked {
    fs_err::create_dir_all(at).unwrap();
    let mut layout = Layout::new(at.join("oci"));
    case.write(&mut layout);
    let image = case.image();
    let item = format!("oci:{}:{image}", layout.path.display());

    let theirs = theirs(case, &item, at);
    let tar = at.join("images.tar");
    let ours = prepull(at)
        .args(["make", "--unpacker", "gnu", "--no-cache", "--no-config", "--quiet", "-o"])
        .arg(&tar)
        .arg(&item)
        .output()
        .unwrap();
    let we_said = String::from_utf8_lossy(&ours.stderr);
    let mut report = String::new();
    if !ours.status.success() {
        if ours.status.code() != Some(1) || we_said.lines().count() != 1 || !we_said.contains(&image) {
            report += "  not one line that names the image, and exit code 1\n";
        }
        if tar.exists() {
            report += "  refused, but there is a tar\n";
        }
    }
    if theirs.is_accepted && ours.status.success() {
        compare_installed(at, &item, &image, &theirs, may, &mut report);
        compare_stores(at, &image, &theirs, may, &mut report);
        // Others have overlay's attributes where they may.
        if !may.contains(&Difference::NoOverlayAttributes) {
            report += &crate::verify::false_alarms(&case.name, &theirs.root);
        }
    }
    // Some layers are large: what is right need not stay.
    if report.is_empty() {
        fs_err::remove_dir_all(at).unwrap();
    }
    let said = format!("skopeo: {}\n  prepull: {}", theirs.said.trim(), we_said.trim());
    Asked { skopeo: theirs.is_accepted, prepull: ours.status.success(), said, report }
}

/// `prepull install` as root must write what skopeo writes, to the attribute.
fn compare_installed(at: &Path, item: &str, image: &str, theirs: &Theirs, may: &[Difference], report: &mut String) {
    let root = at.join("installed");
    fs_err::create_dir_all(&root).unwrap();
    let mut command = prepull(at);
    let output = command.args(["install", "--no-cache", "--quiet", "--root"]).arg(&root).arg(item).output().unwrap();
    if !output.status.success() {
        *report += &format!("  install: {}\n", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let mut differences = String::new();
    let stores = Stores { ours: &root.join(GRAPHROOT), theirs: &theirs.root, their_clock: theirs.clock.clone() };
    stores.compare(image, may, &mut differences);
    if !differences.is_empty() {
        *report += &format!("  installed:\n{differences}");
    }
}

fn compare_stores(at: &Path, image: &str, theirs: &Theirs, may: &[Difference], report: &mut String) {
    if let Err(said) = unpack_gnu(&at.join("images.tar"), &at.join("gnu")) {
        *report += &format!("  {said}\n");
        return;
    }
    let ours = at.join("gnu").join(GRAPHROOT);
    let stores = Stores { ours: &ours, theirs: &theirs.root, their_clock: theirs.clock.clone() };
    stores.compare(image, may, report);
    let complaints = |at: &Path, root: &str| -> Vec<String> {
        // When each store was made is no matter, nor is where it lies.
        let plain = |line: &String| without_values(&line.replace(&format!("/{root}/"), "/"), "mtime:0x");
        complaints(at, root, None).unwrap_or_default().iter().map(plain).collect()
    };
    if std::env::var_os("PREPULL_NEWER_CHROOT").is_some() {
        let ours = complaints(at, &format!("gnu/{GRAPHROOT}"));
        let theirs = if ours.is_empty() { Vec::new() } else { complaints(theirs.root.parent().unwrap(), "skopeo") };
        for line in ours.iter().filter(|line| !theirs.contains(line)) {
            let _ = writeln!(report, "  containers-storage check, only ours: {line}");
        }
    }
}

/// Two stores with the same image.
pub struct Stores<'a> {
    pub ours: &'a Path,
    pub theirs: &'a Path,
    /// When theirs was made.
    pub their_clock: Clock,
}

impl Stores<'_> {
    /// Compares them but for what `may` differ; `out` gets a line or more for every difference.
    pub fn compare(&self, image: &str, may: &[Difference], out: &mut String) {
        let (ours, theirs) = (chain(self.ours, image), chain(self.theirs, image));
        if ours != theirs {
            let _ = writeln!(out, "  layers: {ours:?} and {theirs:?}");
            return;
        }
        for id in &ours {
            let diff = format!("overlay/{id}/diff");
            let our_tree = walk(&self.ours.join(&diff), &Clock::stamp());
            let mut their_tree = walk(&self.theirs.join(&diff), &self.their_clock);
            for difference in may {
                match difference {
                    Difference::NoOverlayAttributes => drop_overlay(&mut their_tree),
                    Difference::InheritedAcls => drop_inherited_acls(&mut their_tree),
                    Difference::RootOwner => their_tree.get_mut(".").unwrap().owner = our_tree["."].owner,
                    Difference::Refused | Difference::TarSplit | Difference::Blob => {}
                }
            }
            differences(&id[..8], &our_tree, &their_tree, out);
            if !may.contains(&Difference::TarSplit) && tar_split(self.ours, id) != tar_split(self.theirs, id) {
                let (ours, theirs) = (tar_split(self.ours, id), tar_split(self.theirs, id));
                let lines = ours.iter().zip(&theirs).find(|(ours, theirs)| ours != theirs);
                let _ = writeln!(out, "  {}: tar-split differs: {:.600?}", &id[..8], lines);
            }
        }
        self.compare_links(&ours, out);
        self.compare_records(may, out);
        self.compare_skeletons(out);
    }

    fn compare_links(&self, chain: &[String], out: &mut String) {
        for (at, id) in chain.iter().enumerate() {
            let lowers = &chain[at + 1..];
            for root in [self.ours, self.theirs] {
                let overlay = root.join("overlay");
                let read = |name: &str| fs_err::read_to_string(overlay.join(id).join(name)).ok();
                let target = |link: &str| {
                    let target = fs_err::read_link(overlay.join(link)).unwrap();
                    let text = target.to_str().unwrap();
                    text.strip_prefix("../").and_then(|text| text.strip_suffix("/diff")).unwrap().to_owned()
                };
                let link = read("link").unwrap();
                if target(&format!("l/{link}")) != *id || link.len() != 26 {
                    let _ = writeln!(out, "  {id}: bad link {link}");
                }
                let lower: Vec<String> =
                    read("lower").map(|text| text.split(':').map(target).collect()).unwrap_or_default();
                if lower != *lowers {
                    let _ = writeln!(out, "  {id}: lower is {lower:?}");
                }
                let ours = root == self.ours;
                let wanted = (ours && !lowers.is_empty()).then(|| lowers.join(":"));
                if read("lower-layers") != wanted {
                    let _ = writeln!(out, "  {id}: lower-layers is {:?}", read("lower-layers"));
                }
            }
        }
    }

    fn compare_records(&self, may: &[Difference], out: &mut String) {
        let layers = |root: &Path| {
            let text = fs_err::read_to_string(root.join("overlay-layers/layers.json")).unwrap_or_default();
            without_times(&text)
        };
        // A store without layers has no such file when skopeo made it.
        let no_blobs =
            |text: String| text.split(['{', ',']).filter(|field| !field.contains("compress")).collect::<String>();
        let same = if may.contains(&Difference::Blob) {
            no_blobs(layers(self.ours)) == no_blobs(layers(self.theirs))
        } else {
            layers(self.ours) == layers(self.theirs)
        };
        let none = layers(self.ours) == "[]" && layers(self.theirs).is_empty();
        if !(same || none) {
            let _ = writeln!(out, "  layers.json:\n    {}\n    {}", layers(self.ours), layers(self.theirs));
        }
        let theirs = without_signatures(json_of(self.theirs, "overlay-images/images.json"));
        let ours = json_of(self.ours, "overlay-images/images.json");
        if ours != theirs {
            let _ = writeln!(out, "  images.json:\n    {ours}\n    {theirs}");
        }
        let id = ours[0]["id"].as_str().unwrap();
        let data = |root: &Path| -> BTreeMap<String, Vec<u8>> {
            let directory = root.join("overlay-images").join(id);
            let read = |entry: std::io::Result<fs_err::DirEntry>| {
                let entry = entry.unwrap();
                (entry.file_name().into_string().unwrap(), fs_err::read(entry.path()).unwrap())
            };
            // "=c2lnbmF0dXJl" is "signature" in base64.
            let is_data = |(name, _): &(String, Vec<u8>)| !name.starts_with("=c2lnbmF0dXJl");
            fs_err::read_dir(directory).unwrap().map(read).filter(is_data).collect()
        };
        if data(self.ours) != data(self.theirs) {
            let _ = writeln!(out, "  big data differ");
        }
    }

    /// All that is not a layer's content: types, modes and owners.
    fn compare_skeletons(&self, out: &mut String) {
        let skeleton = |root: &Path, clock: &Clock| -> BTreeMap<String, (&'static str, u32, (u32, u32))> {
            let mut tree = Tree::new();
            shallow(root, root, clock, &mut tree);
            tree.into_iter().map(|(name, node)| (name, (node.kind, node.mode, node.owner))).collect()
        };
        let mut ours = skeleton(self.ours, &Clock::stamp());
        let mut theirs = skeleton(self.theirs, &self.their_clock);
        for gone in ["mounts", "tmp"] {
            theirs.remove(gone);
        }
        ours.retain(|name, _| !name.ends_with("/lower-layers"));
        let fixed = |tree: &mut BTreeMap<String, _>| {
            let before = tree.len();
            tree.retain(|name, _| !name.starts_with("overlay/l/"));
            let links = before - tree.len();
            tree.retain(|name, _| !name.starts_with("overlay-images/") || !name.contains("/=c2lnbmF0dXJl"));
            links
        };
        let (our_links, their_links) = (fixed(&mut ours), fixed(&mut theirs));
        if !theirs.contains_key("overlay-layers/layers.json") {
            ours.remove("overlay-layers/layers.json");
        }
        if ours != theirs || our_links != their_links {
            for (name, node) in &ours {
                if theirs.get(name) != Some(node) {
                    let _ = writeln!(out, "  {name}: {node:?} and {:?}", theirs.get(name));
                }
            }
            for name in theirs.keys().filter(|name| !ours.contains_key(*name)) {
                let _ = writeln!(out, "  {name}: only skopeo has it");
            }
        }
    }
}

/// Like [`walk`], but does not look into layers.
fn shallow(root: &Path, directory: &Path, clock: &Clock, tree: &mut Tree) {
    for entry in fs_err::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().display().to_string();
        if path.is_dir() && !path.is_symlink() {
            if name.ends_with("/diff") {
                continue;
            }
            shallow(root, &path, clock, tree);
        }
        tree.insert(name, lone(&path, clock));
    }
}

pub fn drop_overlay(tree: &mut Tree) {
    for node in tree.values_mut() {
        node.xattrs.retain(|name, value| {
            let is_marker = name == "trusted.overlay.opaque" && value == "y" && node.kind == "dir";
            is_marker || !(name.starts_with("trusted.overlay.") || name.starts_with("user.overlay."))
        });
    }
}

pub fn drop_inherited_acls(tree: &mut Tree) {
    for (_, node) in tree.iter_mut().filter(|(name, _)| *name != "d") {
        node.xattrs.retain(|name, _| !name.starts_with("system.posix_acl"));
    }
}

/// `key` and the two hexadecimal numbers after it, that have an arrow between them, as `key` alone.
fn without_values(text: &str, key: &str) -> String {
    let mut parts = text.split(key);
    let first = parts.next().unwrap_or_default().to_owned();
    let is_value = |char: char| char.is_ascii_hexdigit() || matches!(char, 'x' | '\u{ffeb}');
    parts.fold(first, |all, part| all + key + part.trim_start_matches(is_value))
}

/// With the value of every `created` cut out.
fn without_times(text: &str) -> String {
    let key = r#""created":""#;
    let mut parts = text.split(key);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| all + key + part.split_once('"').map_or("", |(_, rest)| rest))
}

/// skopeo before 1.14 keeps an empty signature item with every image.
pub fn without_signatures(mut images: Value) -> Value {
    for image in images.as_array_mut().unwrap() {
        image["metadata"] = json!("{}");
        image["big-data-names"]
            .as_array_mut()
            .unwrap()
            .retain(|name| !name.as_str().unwrap().starts_with("signature-"));
        for key in ["big-data-sizes", "big-data-digests"] {
            image[key].as_object_mut().unwrap().retain(|name, _| !name.starts_with("signature-"));
        }
    }
    images
}
