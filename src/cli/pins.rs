//! `pinned_images` of a machine whose store is changed: what `install` adds to prepull's own drop-in, and `rm` takes out.
//!
//! CRI-O takes the list of the last file that has one (cri-o `pkg/config/config.go`, UpdateFromDropInFile). Only a file that
//! prepull has written is changed; of every other one is said what to add. The file belongs to root and lies outside of the
//! store, so `prepull-helper` does not write it: this process or its applier does, or says what to do.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::AtFlags;
use serde::{Deserialize, Serialize};

use super::output::printable;
use crate::helper::graphroot;
use crate::helper::root::Dir;
use crate::inspect::files::Files;
use crate::inspect::find::{add_configured, in_directory};
use crate::inspect::list::list;
use crate::inspect::machine::{MachineConfig, pinned_by};
use crate::inspect::root::Root;
use crate::storage::machine::{Beside, CRIO_DROP_INS, CrioConf, drop_in_number, drop_in_path};

/// Maximum number of names that a message has.
const NAMES_SHOWN: usize = 5;

/// What became of the pins.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Pins {
    /// Names that have been pinned, or are no longer pinned.
    pub changed: Vec<String>,
    /// What else the user must know.
    pub warnings: Vec<String>,
}

/// A drop-in of prepull's.
struct DropIn {
    path: String,
    conf: CrioConf,
}

/// Reads the drop-ins that prepull has written.
fn drop_ins(files: &Files, config: &MachineConfig) -> Vec<DropIn> {
    let directory = format!("{CRIO_DROP_INS}/");
    let ours = config.files.iter().filter(|path| path.strip_prefix(&directory).and_then(drop_in_number).is_some());
    let parsed = ours.filter_map(|path| {
        let text = String::from_utf8(files.read(path).ok()??).ok()?;
        Some(DropIn { path: path.clone(), conf: CrioConf::parse(&text)? })
    });
    parsed.collect()
}

/// Pins `names` in the machine at `root`: in the file whose list CRI-O takes, if prepull has written it; with `make`, in a new one
/// where no file has a list.
pub fn add(root: &Path, names: &[String], make: bool) -> Pins {
    let mut pins = Pins::default();
    let opened = match Root::open(root) {
        Ok(opened) => Arc::new(opened),
        Err(error) => {
            pins.warnings.push(format!("the images are not pinned: {error}"));
            return pins;
        }
    };
    let files = Files::of_directory(opened);
    let config = match MachineConfig::read(&files) {
        Ok(config) => config,
        Err(error) => {
            pins.warnings.push(format!("the images are not pinned: {error}"));
            return pins;
        }
    };
    let new: Vec<String> = names.iter().filter(|name| !config.pins(name)).cloned().collect();
    if new.is_empty() {
        return pins;
    }
    let ours = drop_ins(&files, &config);
    let change = match pinned_by(&files, &config) {
        None if !make => {
            if config.files.iter().any(|file| file.starts_with("etc/crio/")) {
                pins.warnings.push(format!(
                    "{} not pinned: the kubelet's garbage collection and `crictl rmi --prune` may remove them (--pin writes \
                     {CRIO_DROP_INS}/10-prepull.conf)",
                    are(&new)
                ));
            }
            return pins;
        }
        None => {
            let path = drop_in_path("", false, &Beside::default());
            match ours.into_iter().find(|drop_in| drop_in.path == path) {
                Some(drop_in) => Some(drop_in),
                None if config.files.contains(&path) => None,
                None => Some(DropIn { path, conf: CrioConf::default() }),
            }
        }
        Some(last) => ours.into_iter().find(|drop_in| drop_in.path == last),
    };
    let Some(DropIn { path, mut conf }) = change else {
        let last = pinned_by(&files, &config).unwrap_or_else(|| drop_in_path("", false, &Beside::default()));
        pins.warnings.push(format!(
            "{} not pinned: {last} was not written by prepull; add them to pinned_images there",
            are(&new)
        ));
        return pins;
    };
    conf.pinned.extend(new.iter().cloned());
    conf.pinned.sort();
    conf.pinned.dedup();
    match replace(root, &path, &conf) {
        Ok(()) => pins.changed = new,
        Err(error) => pins.warnings.push(format!(
            "{} not pinned: writing {path}: {error} (as root, add them to pinned_images there, and reload CRI-O)",
            are(&new)
        )),
    }
    pins
}

/// Takes `names` out of the drop-ins that prepull has written, unless an image in another of the machine's stores has the name.
pub fn remove(root: &Path, names: &[String]) -> Pins {
    let mut pins = Pins::default();
    let Ok(opened) = Root::open(root).map(Arc::new) else { return pins };
    let files = Files::of_directory(Arc::clone(&opened));
    let Ok(config) = MachineConfig::read(&files) else { return pins };
    let still = || {
        let mut stores = in_directory(&opened).ok()?;
        add_configured(&mut stores, &opened, &config).ok()?;
        Some(list(&stores).ok()?.into_iter().flat_map(|image| image.repo_tags).collect::<Vec<_>>())
    };
    let still = still().unwrap_or_default();
    let gone = |name: &String| names.contains(name) && !still.contains(name);
    for DropIn { path, mut conf } in drop_ins(&files, &config) {
        let old: Vec<String> = conf.pinned.iter().filter(|name| gone(name)).cloned().collect();
        if old.is_empty() {
            continue;
        }
        conf.pinned.retain(|name| !gone(name));
        match replace(root, &path, &conf) {
            Ok(()) => pins.changed.extend(old),
            Err(error) => pins.warnings.push(format!(
                "{} still pinned: writing {path}: {error} (as root, remove them from pinned_images there)",
                are(&old)
            )),
        }
    }
    pins.changed.sort();
    pins.changed.dedup();
    pins
}

/// The beginning of a sentence about these names.
fn are(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(NAMES_SHOWN).map(|name| printable(name)).collect();
    let more = names.len().saturating_sub(NAMES_SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let verb = if names.len() == 1 { "is" } else { "are" };
    format!("{}{more} {verb}", shown.join(", "))
}

/// Replaces the file at `path` below `root` atomically. Symbolic links on the way are followed as CRI-O in that machine follows them,
/// and lead nowhere else.
fn replace(root: &Path, path: &str, conf: &CrioConf) -> std::io::Result<()> {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let machine = Dir::at(root)?;
    let parent = graphroot(Dir::at(root)?, directory, 0o755).map_err(std::io::Error::other)?;
    // CRI-O reads every file in the directory: the new one has its name only when it is whole.
    let temporary = format!(".{name}.{}", std::process::id());
    // Of the directory itself, not of a link to it.
    let above = machine.enter(format!("{directory}/..").as_bytes())?;
    let written = above.create(temporary.as_bytes(), 0o644).map_err(std::io::Error::from).and_then(|mut file| {
        file.write_all(conf.render().as_bytes())?;
        file.sync_all()?;
        above.rename(temporary.as_bytes(), &parent, name.as_bytes()).map_err(std::io::Error::from)
    });
    if written.is_err() {
        let _ = rustix::fs::unlinkat(&above, temporary.as_bytes(), AtFlags::empty());
    }
    written
}
