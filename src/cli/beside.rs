//! `make --beside`: the stores that a machine has already.

use std::path::Path;

use anyhow::{Context as _, anyhow};

use super::Failure;
use crate::inspect::contents::Contents;
use crate::inspect::list::list;
use crate::inspect::machine::within;
use crate::storage::machine::{Beside, CRIO_DROP_INS, drop_in_number};

/// Reads which stores `paths` (tars, or roots of machines) have, and what their configuration pins. `graphroot` is that of the
/// store that is made, an additional one if `additional`. Also returns warnings.
pub fn read(paths: &[impl AsRef<Path>], graphroot: &str, additional: bool) -> Result<(Beside, Vec<String>), Failure> {
    let (mut beside, mut warnings) = (Beside::default(), Vec::new());
    for path in paths {
        let path = path.as_ref();
        let shown = path.display().to_string();
        let contents = Contents::without_trees(path).context(shown.clone()).map_err(Failure::usage)?;
        let config = contents.config().map_err(|error| Failure::usage(anyhow!("{shown}: {error}")))?;
        let listed = list(contents.stores()).context(shown.clone()).map_err(Failure::usage)?;
        if contents.stores().is_empty() {
            return Err(Failure::usage(anyhow!("--beside {shown}: no store in it")));
        }
        if let Some(other) = contents.stores().iter().find(|store| format!("/{}", store.graphroot) == graphroot) {
            return Err(Failure::usage(anyhow!(
                "--beside {shown}: it has a store at /{} as well, and one of the two would be lost (--graphroot puts this one \
                 elsewhere)",
                other.graphroot
            )));
        }
        let primary = config.graphroot_within();
        let is_additional = |place: &str| config.additional.iter().any(|set| within(&set.value) == place);
        if let Some(image) = listed.iter().find(|image| image.store == primary && !is_additional(&primary)) {
            if !additional {
                return Err(Failure::usage(anyhow!(
                    "--beside {shown}: a machine has one store of its own, and that is /{primary} (`prepull install` puts more \
                     images into it, and `make --store additional` makes a store beside it)"
                )));
            }
            warnings.push(format!(
                "{shown}: /{primary} has {}: {OWN_STORE_AT_RISK}",
                image.repo_tags.first().unwrap_or(&image.id)
            ));
        }
        beside.pinned.extend(config.pinned.iter().flatten().map(|set| set.value.clone()));
        beside.pause = config.pause.as_ref().map(|set| set.value.clone()).or(beside.pause.take());
        let stores = config.additional.iter().map(|set| set.value.clone());
        for store in stores {
            if !beside.stores.contains(&store) {
                beside.stores.push(store);
            }
        }
        let directory = format!("{CRIO_DROP_INS}/");
        let names = config.files.iter().filter_map(|file| file.strip_prefix(&directory));
        beside.number = names.filter_map(drop_in_number).max().max(beside.number);
    }
    beside.pinned.sort();
    beside.pinned.dedup();
    Ok((beside, warnings))
}

/// What CRI-O does with a machine's own store beside an additional one (cri-o `internal/lib/container_server.go`, New;
/// containers/storage `check.go`: a layer's parent is looked for before the layers of read-only stores are known).
pub const OWN_STORE_AT_RISK: &str = "after a power cut CRI-O 1.31 and newer delete the machine's own store if a pod or container \
    has its image in an additional one; images that must stay belong into additional stores, all of them";
