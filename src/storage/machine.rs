//! What the machine needs beside the store: configuration of its container tools, and the way to mend what its unpacker breaks.
//!
//! The templates lie in `policy/`. Nothing of the build host gets into them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::restore::fit;
use crate::entry::{Meta, Xattr};
use crate::layer::tree::{Inode, InodeKind};
use crate::segment::index::Index;

/// `etc/containers/policy.json`: containers-policy.json(5). CRI-O wants one before it pulls anything else.
pub const POLICY: &str = include_str!("../../policy/policy.json");

const STORAGE: &str = include_str!("../../policy/storage.conf");
const STORAGE_ADDITIONAL: &str = include_str!("../../policy/storage-additional.conf");
const CRIO: &str = include_str!("../../policy/crio.conf");
/// Nobody: the owner of the file `state`, by which the machine sees whether its unpacker kept owners.
pub const NOBODY: u32 = 65534;

/// First words of every storage.conf that prepull writes.
pub const WRITTEN: &str = "# Written by prepull";

/// Default graphroot and runroot of root (containers/storage `types/options_linux.go`).
const ROOT_STORE: [&str; 2] = ["/var/lib/containers/storage", "/run/containers/storage"];

/// CRI-O's directory of drop-ins, relative to the machine's root (crio.conf.d(5)).
pub const CRIO_DROP_INS: &str = "etc/crio/crio.conf.d";
/// Number in the name of a drop-in that depends on no other store. CRI-O reads drop-ins in the order of their names.
pub const DROP_IN_NUMBER: u32 = 10;

/// Configuration of the stores beside which a store is put. Of `pinned_images` and `pause_image` CRI-O takes the last file's value
/// (cri-o `pkg/config/config.go`, UpdateFromDropInFile: TOML is decoded over what there is, and a list replaces a list), and there
/// is one storage.conf, so the files of each store repeat what the files of earlier ones say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beside {
    /// Names that are pinned.
    pub pinned: Vec<String>,
    /// The pause image.
    pub pause: Option<String>,
    /// Graphroots of additional stores, absolute.
    pub stores: Vec<String>,
    /// The largest number of a drop-in that prepull has written.
    pub number: Option<u32>,
}

/// Returns `etc/containers/storage.conf` for a store at `graphroot` (absolute) beside others.
#[must_use]
pub fn storage_conf(graphroot: &str, additional: bool, beside: &Beside) -> String {
    if !additional {
        return STORAGE.replace("@GRAPHROOT@", &toml_escape(graphroot));
    }
    let stores: Vec<&str> = all_stores(graphroot, beside).collect();
    storage_conf_beside(ROOT_STORE, &stores)
}

/// Returns a storage.conf with a store's graphroot and runroot, and the stores `additional` beside it (all absolute).
#[must_use]
pub fn storage_conf_beside([graphroot, runroot]: [&str; 2], additional: &[&str]) -> String {
    let additional: Vec<String> = additional.iter().map(|store| toml_escape(store)).collect();
    let values = [
        ("@GRAPHROOT@", additional.join("\", \"")),
        ("@OWN@", toml_escape(graphroot)),
        ("@RUNROOT@", toml_escape(runroot)),
    ];
    // Each in one pass over the template, since a path may look like one of the marks.
    let mut out = String::new();
    let mut rest = STORAGE_ADDITIONAL;
    while let Some((at, (mark, value))) =
        values.iter().filter_map(|entry| Some((rest.find(entry.0)?, entry))).min_by_key(|(at, _)| *at)
    {
        out += &rest[..at];
        out += value;
        rest = &rest[at + mark.len()..];
    }
    out + rest
}

/// All additional stores, those that were there first in front.
fn all_stores<'a>(graphroot: &'a str, beside: &'a Beside) -> impl Iterator<Item = &'a str> {
    let others = beside.stores.iter().map(String::as_str).filter(move |store| *store != graphroot);
    others.chain([graphroot])
}

/// Returns the path of the drop-in for the store at `graphroot`: of the machine's own store always the same, of an additional store
/// one of its own, which sorts after those that it repeats.
#[must_use]
pub fn drop_in_path(graphroot: &str, additional: bool, beside: &Beside) -> String {
    let number = beside.number.map_or(DROP_IN_NUMBER, |number| number.saturating_add(1));
    let store = graphroot.trim_matches('/').replace('/', "-");
    let store = if additional { format!("-{store}") } else { String::new() };
    format!("{CRIO_DROP_INS}/{number:02}-prepull{store}.conf")
}

/// Returns the number in the name of a drop-in that [`drop_in_path`] has given; `None` for other names.
#[must_use]
pub fn drop_in_number(file_name: &str) -> Option<u32> {
    let (number, rest) = file_name.strip_suffix(".conf")?.split_once("-prepull")?;
    let is_number = (2..=6).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
    if is_number && (rest.is_empty() || rest.starts_with('-')) { number.parse().ok() } else { None }
}

/// A drop-in of crio.conf(5) that prepull has written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CrioConf {
    /// Names that are pinned.
    pub pinned: Vec<String>,
    /// The pause image.
    pub pause: Option<String>,
    /// Graphroots of additional stores. CRI-O joins `storage_option` of all its files, unlike other lists.
    pub stores: Vec<String>,
}

impl CrioConf {
    /// Returns the drop-in for a store at `graphroot` with the images `names`, beside others.
    #[must_use]
    pub fn new<'a>(
        names: impl Iterator<Item = &'a str>,
        pause: Option<&str>,
        (graphroot, additional): (&str, bool),
        beside: &Beside,
    ) -> Self {
        let mut pinned: Vec<String> = names.map(str::to_owned).collect();
        if !beside.pinned.is_empty() {
            pinned.extend(beside.pinned.iter().cloned());
            pinned.sort();
            pinned.dedup();
        }
        let stores = if additional { all_stores(graphroot, beside).map(str::to_owned).collect() } else { Vec::new() };
        Self { pinned, pause: pause.or(beside.pause.as_deref()).map(str::to_owned), stores }
    }

    /// Returns the file's text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut pinned = String::new();
        for name in &self.pinned {
            let _ = write!(pinned, "\n    \"{}\",", toml_escape(name));
        }
        if !pinned.is_empty() {
            pinned.push('\n');
        }
        let pause = self.pause.as_ref().map(|name| format!("pause_image = \"{}\"\n", toml_escape(name)));
        let mut text = CRIO.replace("@PINNED@", &pinned).replace("@PAUSE@\n", &pause.unwrap_or_default());
        if !self.stores.is_empty() {
            let option = |store: &String| format!("\"overlay.imagestore={}\"", toml_escape(store));
            let options: Vec<String> = self.stores.iter().map(option).collect();
            let _ = write!(text, "\n[crio]\nstorage_option = [{}]\n", options.join(", "));
        }
        text
    }

    /// Parses a text that [`Self::render`] has given; `None` for every other one, even if only its comments differ.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let table: toml::Table = text.parse().ok()?;
        let crio = table.get("crio")?;
        let texts = |value: Option<&toml::Value>| -> Vec<String> {
            let items = value.and_then(toml::Value::as_array).into_iter().flatten();
            items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
        };
        let image = crio.get("image")?;
        let stores = texts(crio.get("storage_option")).into_iter();
        let conf = Self {
            pinned: texts(image.get("pinned_images")),
            pause: image.get("pause_image").and_then(toml::Value::as_str).map(str::to_owned),
            stores: stores.filter_map(|option| option.strip_prefix("overlay.imagestore=").map(str::to_owned)).collect(),
        };
        (conf.render() == text).then_some(conf)
    }
}

/// The rc script: the same for every store.
pub const RESTORE: &str = include_str!("../../policy/25prepull.rc");

/// The directory, relative to the machine's root, of the lists for the store at `graphroot`.
#[must_use]
pub fn lists_directory(graphroot: &str) -> String {
    format!("usr/share/prepull/{}", graphroot.trim_matches('/').replace('/', "-"))
}

/// Text for a basic string of TOML.
#[must_use]
pub fn toml_escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '\\' | '"' => out.extend(['\\', char]),
            char if char.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(char));
            }
            char => out.push(char),
        }
    }
    out
}

/// What an unpacker without owners or extended attributes loses, collected over all layers.
#[derive(Debug, Default)]
pub struct Losses {
    owners: BTreeMap<String, Vec<u8>>,
    modes: BTreeMap<String, Vec<u8>>,
    links: BTreeMap<String, Vec<u8>>,
    xattrs: Vec<u8>,
    lost_xattrs: Vec<String>,
}

impl Losses {
    /// Takes in the layer `id`, whose root has `root`. `helper`: attributes are put back, as far as a manifest takes them.
    pub fn add(&mut self, id: &str, index: &Index, root: &Meta, helper: bool) {
        for (number, node) in index.nodes().iter().enumerate() {
            let inode = &node.inode;
            // A root may have its parent's owner.
            let (uid, gid) = if number == 0 { (root.uid, root.gid) } else { (inode.uid, inode.gid) };
            // Unpacked once more, a file in a setgid directory gets the group that the directory was given back.
            let parent = &index.nodes()[node.parent as usize].inode;
            let inherits = number != 0 && node.parent != 0 && parent.mode & 0o2000 != 0 && parent.gid != 0;
            let inherits = inherits || number != 0 && node.parent == 0 && root.mode & 0o2000 != 0 && root.gid != 0;
            let owned = (uid, gid) != (0, 0) || inherits && !inode.whiteout;
            if node.link_to.is_some() || !owned && inode.xattrs.is_empty() {
                continue;
            }
            let mut path = [id.as_bytes(), b"/diff"].concat();
            if number != 0 {
                path.push(b'/');
                path.extend_from_slice(&index.path(number as u32));
            }
            if owned {
                self.add_owner(&path, uid, gid, inode);
            }
            if !inode.xattrs.is_empty() {
                self.xattrs.extend(xattr_dump(&path, &inode.xattrs));
                if !helper || !fit(&inode.xattrs) {
                    self.add_lost(&path, &inode.xattrs);
                }
            }
        }
    }

    fn add_owner(&mut self, path: &[u8], uid: u32, gid: u32, Inode { kind, mode, .. }: &Inode) {
        let owner = format!("{uid}:{gid}");
        let list = if matches!(kind, InodeKind::Symlink(_)) { &mut self.links } else { &mut self.owners };
        let push = |list: &mut BTreeMap<String, Vec<u8>>, key| {
            let list = list.entry(key).or_default();
            list.extend_from_slice(path);
            list.push(0);
        };
        push(list, owner);
        if mode & 0o6000 != 0 && !matches!(kind, InodeKind::Symlink(_) | InodeKind::Directory) {
            push(&mut self.modes, format!("{mode:04o}"));
        }
    }

    fn add_lost(&mut self, path: &[u8], xattrs: &[(Vec<u8>, Vec<u8>)]) {
        let names: Vec<_> = xattrs.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect();
        self.lost_xattrs.push(format!("{} ({})", String::from_utf8_lossy(path), names.join(", ")));
    }

    /// Lists of paths for the rc script: (path below [`lists_directory`], content).
    pub fn lists(&self) -> impl Iterator<Item = (String, &[u8])> {
        [("owners", &self.owners), ("modes", &self.modes), ("links", &self.links)].into_iter().flat_map(
            |(directory, lists)| lists.iter().map(move |(key, list)| (format!("{directory}/{key}"), &list[..])),
        )
    }

    /// The dump of all extended attributes.
    #[must_use]
    pub fn xattrs(&self) -> &[u8] {
        &self.xattrs
    }

    /// The files that lose theirs, with the names of these, for a warning.
    #[must_use]
    pub fn lost_xattrs(&self) -> &[String] {
        &self.lost_xattrs
    }
}

/// Attributes as `getfattr --dump --absolute-names -e base64` writes them, for `setfattr --restore` in the overlay directory.
#[must_use]
pub fn xattr_dump(path: &[u8], xattrs: &[Xattr]) -> Vec<u8> {
    use base64::Engine as _;
    let mut dump = b"# file: ".to_vec();
    quote(&mut dump, path);
    dump.push(b'\n');
    for (name, value) in xattrs {
        quote(&mut dump, name);
        dump.extend_from_slice(b"=0s");
        dump.extend_from_slice(base64::engine::general_purpose::STANDARD.encode(value).as_bytes());
        dump.push(b'\n');
    }
    dump.push(b'\n');
    dump
}

/// getfattr's quoting: what is no printable ASCII, `\` and `=` in octal.
fn quote(out: &mut Vec<u8>, bytes: &[u8]) {
    for &byte in bytes {
        if matches!(byte, b' '..=b'~') && !matches!(byte, b'\\' | b'=') {
            out.push(byte);
        } else {
            out.extend_from_slice(format!("\\{byte:03o}").as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_in_of_prepull_is_read_back_and_another_is_not() {
        let beside = Beside {
            pinned: vec!["h.io/b:1".into()],
            pause: Some("h.io/p:1".into()),
            stores: vec!["/x".into(), "/s".into()],
            number: Some(10),
        };
        let none = Beside::default();
        for (pause, additional, beside) in [
            (None, false, &none),
            (Some("p:1"), true, &none),
            (None, true, &beside),
            (Some("\u{7}\"\\"), false, &beside),
        ] {
            let conf = CrioConf::new(["h.io/a:1", "h.io/c:1"].into_iter(), pause, ("/s", additional), beside);
            let text = conf.render();
            assert_eq!(CrioConf::parse(&text), Some(conf), "{text}");
            for other in [text.replace("[crio.image]", "[crio.image] "), format!("{text}\n"), format!("{text}a = [")] {
                assert_eq!(CrioConf::parse(&other), None, "{other}");
            }
        }
        let conf = CrioConf::new(["h.io/a:1"].into_iter(), None, ("/s", true), &beside);
        assert_eq!(conf.pinned, ["h.io/a:1", "h.io/b:1"]);
        assert_eq!((conf.pause.as_deref(), conf.stores), (Some("h.io/p:1"), vec!["/x".to_owned(), "/s".to_owned()]));
        assert!(storage_conf("/s", true, &beside).contains("additionalimagestores = [\"/x\", \"/s\"]"));
    }

    #[test]
    fn drop_in_of_a_later_store_sorts_behind() {
        let path = |number| drop_in_path("/usr/lib/a", true, &Beside { number, ..Beside::default() });
        assert_eq!(path(None), "etc/crio/crio.conf.d/10-prepull-usr-lib-a.conf");
        assert_eq!(path(Some(10)), "etc/crio/crio.conf.d/11-prepull-usr-lib-a.conf");
        assert_eq!(
            drop_in_path("/var/lib/containers/storage", false, &Beside::default()),
            "etc/crio/crio.conf.d/10-prepull.conf"
        );
        for (name, number) in [
            ("10-prepull.conf", Some(10)),
            ("11-prepull-usr-lib-a.conf", Some(11)),
            ("10-prepulled.conf", None),
            ("-prepull.conf", None),
            ("10-crio.conf", None),
        ] {
            assert_eq!(drop_in_number(name), number, "{name}");
        }
    }
}
