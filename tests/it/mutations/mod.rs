//! A good tar, and all that can be done to it: each row of the tables is one change, and what `verify` must say of it.

mod config;
mod images;
mod machine;
mod records;
mod skeleton;
mod tars;
mod trees;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Read as _;
use std::path::Path;

use prepull::digest::Digest;
use prepull::entry::{Device, Entry, Kind, Meta, Timestamp};
use prepull::layer::tar::TarReader;
use prepull::storage::{big_data_file_name, link_name};
use prepull::verify::report::Report;
use prepull::verify::rule::{Fate, Rule, Severity};
use prepull::wire;
use serde_json::Value;

use crate::command::{prepull, succeeds};
use crate::made::{Layout, gzip};
use crate::raw::{archive, block, char, dir, fifo, file, link, mark, sym};
use crate::stores::STAMP;

/// What unpacks a tar, and how its store is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flavour {
    pub busybox: bool,
    pub additional: bool,
}

pub const FLAVOURS: [Flavour; 4] = [
    Flavour { busybox: true, additional: false },
    Flavour { busybox: false, additional: false },
    Flavour { busybox: true, additional: true },
    Flavour { busybox: false, additional: true },
];

/// cap_net_raw+ep, as `setcap` writes it (Linux `include/uapi/linux/capability.h`, revision 2).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Three layers that have everything.
pub fn layers() -> Vec<Vec<u8>> {
    let bottom = archive(&[
        dir("bin/"),
        file("bin/tool").mode(0o755),
        link("bin/tool2", "bin/tool").mode(0o755),
        sym("bin/sh", "tool"),
        file("bin/su").mode(0o4755).owner(1000, 1000),
        file("bin/ping").mode(0o755).xattr("security.capability", CAPABILITY),
        dir("d/"),
        file("d/a"),
        file("d/keep").data("lower"),
        dir("d/s/"),
        file("d/s/b"),
        dir("dev/").mode(0o755),
        char("dev/null", 1, 3).mode(0o666),
        block("dev/loop0", 7, 0),
        fifo("dev/pipe"),
        dir("etc/"),
        mark("etc/empty"),
        file("etc/motd").data("hello\n"),
        file("etc/old"),
        file("etc/shadow").mode(0o640).owner(0, 42),
        sym("etc/owned", "motd").owner(7, 7),
        dir("gone/"),
        file("gone/file"),
        dir("home/").owner(1000, 100).mode(0o2775),
        file("home/file").owner(1000, 100),
        dir("tmp/").mode(0o1777),
        dir("very/"),
        dir("very/deep/"),
        dir("very/deep/down/"),
        file("very/deep/down/file").data(vec![b'x'; 10_000]),
    ]);
    let middle = archive(&[
        dir("etc/"),
        mark("etc/.wh.old").owner(5, 5),
        dir("d/"),
        mark("d/.wh..wh..opq"),
        file("d/keep").data("upper"),
        file("d/new").mode(0o600).owner(1000, 1000),
        dir("d/s/"),
        dir("lonely/"),
        mark("lonely/.wh..wh..opq"),
        file("lonely/file"),
    ]);
    let top =
        archive(&[mark(".wh.gone"), dir("etc/"), file("etc/motd").data("goodbye\n"), dir("app/"), file("app/data")]);
    vec![bottom, middle, top]
}

/// A good tar.
pub struct Base {
    pub flavour: Flavour,
    pub tar: Vec<u8>,
    layers: Vec<String>,
    images: Vec<(&'static str, String)>,
}

/// The good tars of all flavours: an image of two layers, one of three that shares them, and one without layers.
pub fn bases(at: &Path) -> Vec<Base> {
    bases_with(at, &FLAVOURS, "none".as_ref())
}

/// The good tars for GNU tar: a machine's own store, and an additional one.
pub fn gnu_bases(at: &Path) -> Vec<Base> {
    bases_with(at, &[FLAVOURS[1], FLAVOURS[3]], "none".as_ref())
}

/// One for busybox with a helper that puts back what that drops.
pub fn base_with_helper(at: &Path) -> Base {
    bases_with(at, &FLAVOURS[..1], crate::command::static_helper().as_ref()).remove(0)
}

fn bases_with(at: &Path, flavours: &[Flavour], helper: &OsStr) -> Vec<Base> {
    let mut layout = Layout::new(at.join("layout"));
    let layers = layers();
    let mut images = Vec::new();
    for (name, count) in [("base", 2), ("app", 3), ("zero", 0)] {
        let descriptor = layout.image("amd64", &layers[..count]);
        let config = crate::made::config("amd64", &layers[..count]);
        images.push((name, Digest::of(&config).hex()));
        layout.add(Some(&format!("localhost/{name}:1")), descriptor);
    }
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let ids: Vec<String> = prepull::image::chain_ids(&diff_ids).iter().map(Digest::hex).collect();
    let make = |flavour: Flavour| {
        let tar = at.join(format!("{}-{}.tar", flavour.busybox, flavour.additional));
        let mut command = prepull(at);
        command.args(["make", "--quiet", "--platform", "linux/amd64", "-o"]).arg(&tar);
        command.arg("--restore-helper").arg(helper);
        command.args(["--unpacker", if flavour.busybox { "busybox" } else { "gnu" }]);
        command.args(["--store", if flavour.additional { "additional" } else { "primary" }]);
        let item = |(name, _): &(&str, String)| format!("oci:{}:localhost/{name}:1", layout.path.display());
        succeeds(command.args(images.iter().map(item)));
        Base { flavour, tar: fs_err::read(&tar).unwrap(), layers: ids.clone(), images: images.clone() }
    };
    flavours.iter().copied().map(make).collect()
}

/// Directories of the machine have no entries.
fn is_at_or_below(entry: &[u8], path: &[u8]) -> bool {
    entry.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// An entry of a tar that is being changed.
#[derive(Clone)]
pub struct Item {
    pub entry: Entry,
    pub content: Vec<u8>,
    /// Instead of both: anything.
    pub raw: Option<Vec<u8>>,
}

/// A tar that is being changed. Paths are those of the store, unless they begin with a slash; `{0}` to `{2}` are the ids of
/// layers, `{l0}` to `{l2}` their links, `{base}`, `{app}` and `{zero}` the ids of images; `=KEY` at the end is a big data file.
pub struct Archive<'a> {
    base: &'a Base,
    pub items: Vec<Item>,
    /// What comes after the last entry.
    pub end: Vec<u8>,
    /// What is done to the bytes in the end.
    pub bytes: Option<fn(&mut Vec<u8>)>,
}

impl<'a> Archive<'a> {
    pub fn of(base: &'a Base) -> Self {
        let mut reader = TarReader::new(&base.tar[..]);
        let mut items = Vec::new();
        while let Some(header) = reader.next_header().unwrap() {
            let mut content = Vec::new();
            loop {
                let part = reader.content().unwrap().to_vec();
                if part.is_empty() {
                    break;
                }
                reader.consume(part.len());
                content.extend(part);
            }
            let device = Device { major: header.major as u32, minor: header.minor as u32 };
            let kind = match header.typeflag {
                b'0' => Kind::Regular { size: header.size },
                b'1' => Kind::Hardlink(header.link),
                b'2' => Kind::Symlink(header.link),
                b'3' => Kind::CharDevice(device),
                b'4' => Kind::BlockDevice(device),
                b'5' => Kind::Directory,
                b'6' => Kind::Fifo,
                other => panic!("type {other}"),
            };
            let path = header.name.strip_suffix(b"/").unwrap_or(&header.name).to_vec();
            let meta = Meta {
                mode: header.mode as u16,
                uid: header.uid as u32,
                gid: header.gid as u32,
                mtime: header.mtime,
                xattrs: header.xattrs,
            };
            items.push(Item { entry: Entry { path, meta, kind }, content, raw: None });
        }
        Self { base, items, end: wire::END.to_vec(), bytes: None }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for Item { entry, content, raw } in &self.items {
            if let Some(raw) = raw {
                bytes.extend_from_slice(raw);
                continue;
            }
            let mut entry = entry.clone();
            let mut content = &content[..];
            match &mut entry.kind {
                Kind::Regular { size } => *size = content.len() as u64,
                _ => content = &[],
            }
            wire::header(&entry, &mut bytes);
            bytes.extend_from_slice(content);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        bytes.extend_from_slice(&self.end);
        if let Some(change) = self.bytes {
            change(&mut bytes);
        }
        bytes
    }

    pub fn flavour(&self) -> Flavour {
        self.base.flavour
    }

    pub fn graphroot(&self) -> &'static str {
        if self.flavour().additional { "usr/lib/containers/storage" } else { "var/lib/containers/storage" }
    }

    pub fn layer(&self, number: usize) -> &str {
        &self.base.layers[number]
    }

    pub fn image(&self, name: &str) -> &str {
        &self.base.images.iter().find(|(other, _)| *other == name).unwrap().1
    }

    pub fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (number, id) in self.base.layers.iter().enumerate() {
            text = text.replace(&format!("{{{number}}}"), id);
            text = text.replace(&format!("{{l{number}}}"), &link_name(&Digest::from_hex(id).unwrap()));
        }
        for (name, id) in &self.base.images {
            text = text.replace(&format!("{{{name}}}"), id);
        }
        text
    }

    pub fn path(&self, path: &str) -> Vec<u8> {
        let path = self.text(path);
        let path = match path.rsplit_once("/=") {
            Some((directory, key)) => format!("{directory}/{}", big_data_file_name(key)),
            None => path,
        };
        match path.strip_prefix('/') {
            Some(path) => path.to_owned(),
            None if path.is_empty() => self.graphroot().to_owned(),
            None => format!("{}/{path}", self.graphroot()),
        }
        .into_bytes()
    }

    #[track_caller]
    fn positions(&self, path: &str) -> Vec<usize> {
        let wanted = self.path(path);
        let found: Vec<usize> =
            self.items.iter().enumerate().filter(|(_, item)| item.entry.path == wanted).map(|(at, _)| at).collect();
        assert!(!found.is_empty(), "no {path}");
        found
    }

    /// Changes all entries of a path: directories come twice.
    #[track_caller]
    pub fn edit(&mut self, path: &str, change: impl Fn(&mut Entry)) {
        for at in self.positions(path) {
            change(&mut self.items[at].entry);
        }
    }

    #[track_caller]
    pub fn content(&mut self, path: &str) -> &mut Vec<u8> {
        let at = *self.positions(path).last().unwrap();
        &mut self.items[at].content
    }

    #[track_caller]
    pub fn set(&mut self, path: &str, content: impl AsRef<[u8]>) {
        let content = self.text(std::str::from_utf8(content.as_ref()).unwrap()).into_bytes();
        *self.content(path) = content;
    }

    #[track_caller]
    pub fn remove(&mut self, path: &str) {
        self.positions(path);
        let path = self.path(path);
        self.items.retain(|item| item.entry.path != path);
    }

    /// With all that is below.
    #[track_caller]
    pub fn remove_tree(&mut self, path: &str) {
        let (path, count) = (self.path(path), self.items.len());
        self.items.retain(|item| !is_at_or_below(&item.entry.path, &path));
        assert!(self.items.len() < count, "nothing at or below it");
    }

    /// Everything at `path` and below moves.
    #[track_caller]
    pub fn rename(&mut self, path: &str, to: &str) {
        assert!(self.items.iter().any(|item| is_at_or_below(&item.entry.path, &self.path(path))), "no {path}");
        let (path, to) = (self.path(path), self.path(to));
        let rename = |old: &mut Vec<u8>| {
            let rest = old.strip_prefix(&path[..]).filter(|rest| rest.is_empty() || rest.starts_with(b"/"));
            if let Some(rest) = rest {
                *old = [&to[..], rest].concat();
            }
        };
        for item in &mut self.items {
            rename(&mut item.entry.path);
            if let Kind::Hardlink(target) = &mut item.entry.kind {
                rename(target);
            }
        }
    }

    /// Adds an entry at the end.
    pub fn add(&mut self, path: &str, kind: Kind, content: &[u8]) {
        let entry = self.entry(path, kind);
        self.items.push(Item { entry, content: content.to_vec(), raw: None });
    }

    /// Puts an entry in front of all others.
    pub fn prepend(&mut self, path: &str, kind: Kind) -> &mut Entry {
        let entry = self.entry(path, kind);
        self.items.insert(0, Item { entry, content: Vec::new(), raw: None });
        &mut self.items[0].entry
    }

    pub fn entry(&self, path: &str, kind: Kind) -> Entry {
        let mode = if kind == Kind::Directory { 0o755 } else { 0o644 };
        let meta = Meta { mode, mtime: Timestamp::whole(STAMP), ..Meta::default() };
        Entry { path: self.path(path), meta, kind }
    }

    pub fn add_file(&mut self, path: &str, content: &str) {
        self.add(path, Kind::Regular { size: 0 }, content.as_bytes());
    }

    pub fn add_directory(&mut self, path: &str) {
        self.add(path, Kind::Directory, b"");
    }

    pub fn add_raw(&mut self, bytes: Vec<u8>) {
        let entry = self.entry("/raw", Kind::Fifo);
        self.items.push(Item { entry, content: Vec::new(), raw: Some(bytes) });
    }

    fn json(&mut self, path: &str, change: impl FnOnce(&mut Value)) {
        let content = self.content(path);
        let mut value = serde_json::from_slice(content).unwrap();
        change(&mut value);
        *content = serde_json::to_vec(&value).unwrap();
    }

    pub fn images_json(&mut self, change: impl FnOnce(&mut Vec<Value>)) {
        self.json("overlay-images/images.json", |value| change(value.as_array_mut().unwrap()));
    }

    pub fn layers_json(&mut self, change: impl FnOnce(&mut Vec<Value>)) {
        self.json("overlay-layers/layers.json", |value| change(value.as_array_mut().unwrap()));
    }

    /// Changes the record of an image.
    pub fn image_record(&mut self, name: &str, change: impl FnOnce(&mut Value)) {
        let id = self.image(name).to_owned();
        self.images_json(|images| change(images.iter_mut().find(|image| image["id"] == id.as_str()).unwrap()));
    }

    /// Changes the record of a layer.
    pub fn layer_record(&mut self, number: usize, change: impl FnOnce(&mut Value)) {
        let id = self.layer(number).to_owned();
        self.layers_json(|layers| change(layers.iter_mut().find(|layer| layer["id"] == id.as_str()).unwrap()));
    }

    /// Changes the lines of a layer's tar-split.
    pub fn split(&mut self, number: usize, change: impl FnOnce(&mut Vec<Value>)) {
        let content = self.content(&format!("overlay-layers/{{{number}}}.tar-split.gz"));
        let mut text = String::new();
        flate2::read::GzDecoder::new(&content[..]).read_to_string(&mut text).unwrap();
        let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        change(&mut lines);
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        *content = gzip(text.as_bytes());
    }
}

/// Removes a key, which must be there.
#[track_caller]
pub fn drop_key(record: &mut Value, key: &str) {
    assert!(record.as_object_mut().unwrap().remove(key).is_some(), "no {key}");
}

/// Which flavours a row is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Only {
    All,
    Busybox,
    Gnu,
}

/// What `verify` must find: rules by name, and how bad. Everything else may be a note or a warning, but no error.
type Expected = Vec<(&'static str, Severity)>;

/// One change.
pub struct Row {
    pub name: &'static str,
    pub change: fn(&mut Archive<'_>),
    pub only: Only,
    primary: Expected,
    additional: Option<Expected>,
    /// Errors that follow from it.
    also: Vec<&'static str>,
    start: Option<Fate>,
    crash: Option<Fate>,
}

pub fn row(name: &'static str, change: fn(&mut Archive<'_>)) -> Row {
    Row {
        name,
        change,
        only: Only::All,
        primary: Vec::new(),
        additional: None,
        also: Vec::new(),
        start: None,
        crash: None,
    }
}

impl Row {
    pub fn error(mut self, rule: &'static str) -> Self {
        self.primary.push((rule, Severity::Error));
        self
    }
    pub fn warning(mut self, rule: &'static str) -> Self {
        self.primary.push((rule, Severity::Warning));
        self
    }
    pub fn note(mut self, rule: &'static str) -> Self {
        self.primary.push((rule, Severity::Note));
        self
    }
    /// In an additional store it is something else.
    pub fn additional(mut self, severity: Severity, rule: &'static str) -> Self {
        self.additional.get_or_insert_default().push((rule, severity));
        self
    }
    /// In an additional store it is nothing.
    pub fn not_additional(mut self) -> Self {
        self.additional = Some(Vec::new());
        self
    }
    pub fn also(mut self, rules: &[&'static str]) -> Self {
        self.also.extend(rules);
        self
    }
    /// What CRI-O makes of the machine's own store.
    pub fn fate(mut self, start: Fate, crash: Fate) -> Self {
        (self.start, self.crash) = (Some(start), Some(crash));
        self
    }
    pub fn busybox(mut self) -> Self {
        self.only = Only::Busybox;
        self
    }
    pub fn gnu(mut self) -> Self {
        self.only = Only::Gnu;
        self
    }

    pub fn is_for(&self, flavour: Flavour) -> bool {
        match self.only {
            Only::All => true,
            Only::Busybox => flavour.busybox,
            Only::Gnu => !flavour.busybox,
        }
    }

    /// Compares what was found with what was to be found; `known` is what is found in the good tar.
    pub fn judge(
        &self,
        flavour: Flavour,
        report: &Report,
        known: &BTreeSet<(Severity, &'static str)>,
    ) -> Result<(), String> {
        let found = findings(report);
        let expected = match &self.additional {
            Some(additional) if flavour.additional => additional,
            _ => &self.primary,
        };
        let fail = |what: &str| Err(format!("{} ({flavour:?}): {what}; found {:?}", self.name, &found - known));
        for &(rule, severity) in expected {
            if !found.contains(&(severity, rule)) || known.contains(&(severity, rule)) {
                return fail(&format!("{severity:?} {rule} is not found"));
            }
        }
        let errors = expected.iter().filter(|(_, severity)| *severity == Severity::Error).map(|(rule, _)| *rule);
        let errors: BTreeSet<&str> = errors.chain(self.also.iter().copied()).collect();
        let is_error = |(severity, _): &&(Severity, &str)| *severity == Severity::Error;
        for (_, rule) in found.iter().filter(is_error) {
            if !errors.contains(rule) {
                return fail(&format!("error {rule} is not expected"));
            }
        }
        if expected.is_empty() && errors.is_empty() && !found.is_subset(known) {
            return fail("it is harmless");
        }
        let (start, crash) = report.fate();
        if flavour.additional {
            // An additional store is not repaired, but may cost the machine its own.
            if start != crash && crash != Fate::StoreWiped {
                return fail(&format!("an additional store has no check: {start:?} and {crash:?}"));
            }
        } else if let (Some(expected_start), Some(expected_crash)) = (self.start, self.crash)
            && (expected_start, expected_crash) != (start, crash)
        {
            return fail(&format!("fate is {start:?} and {crash:?}"));
        }
        Ok(())
    }
}

/// Which rules are broken, and how badly.
pub fn findings(report: &Report) -> BTreeSet<(Severity, &'static str)> {
    report.groups().map(|(rule, severity, _): (Rule, _, _)| (severity, rule.info().name)).collect()
}

/// All rows.
pub use machine::helper_rows;

pub fn rows() -> Vec<Row> {
    [skeleton::rows(), records::rows(), images::rows(), trees::rows(), tars::rows(), machine::rows(), config::rows()]
        .into_iter()
        .flatten()
        .collect()
}
