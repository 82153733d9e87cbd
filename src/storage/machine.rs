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

/// Returns `etc/containers/storage.conf` for a store at `graphroot` (absolute).
#[must_use]
pub fn storage_conf(graphroot: &str, additional: bool) -> String {
    if additional {
        return storage_conf_beside(ROOT_STORE, graphroot);
    }
    STORAGE.replace("@GRAPHROOT@", &toml_escape(graphroot))
}

/// Returns a storage.conf with a store's graphroot and runroot, and `additional` as an additional store (all absolute).
#[must_use]
pub fn storage_conf_beside([graphroot, runroot]: [&str; 2], additional: &str) -> String {
    let values = [("@GRAPHROOT@", additional), ("@OWN@", graphroot), ("@RUNROOT@", runroot)];
    // Each in one pass over the template, since a path may look like one of the marks.
    let mut out = String::new();
    let mut rest = STORAGE_ADDITIONAL;
    while let Some((at, (mark, value))) =
        values.iter().filter_map(|entry| Some((rest.find(entry.0)?, entry))).min_by_key(|(at, _)| *at)
    {
        out += &rest[..at];
        out += &toml_escape(value);
        rest = &rest[at + mark.len()..];
    }
    out + rest
}

/// `etc/crio/crio.conf.d/10-prepull.conf`: pins `names`, and sets the pause image if there is one.
#[must_use]
pub fn crio_conf<'a>(names: impl Iterator<Item = &'a str>, pause: Option<&str>) -> String {
    let mut pinned = String::new();
    for name in names {
        let _ = write!(pinned, "\n    \"{}\",", toml_escape(name));
    }
    if !pinned.is_empty() {
        pinned.push('\n');
    }
    let pause = pause.map(|name| format!("pause_image = \"{}\"\n", toml_escape(name))).unwrap_or_default();
    CRIO.replace("@PINNED@", &pinned).replace("@PAUSE@\n", &pause)
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
