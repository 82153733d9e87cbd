//! The machine's configuration in the input: whether its container tools find the stores, start, pull, and keep the images.

use std::collections::BTreeSet;

use super::is_made_by_prepull;
use super::report::{Finding, Report};
use super::rule::Rule;
use crate::inspect::contents::Contents;
use crate::inspect::list::{Listed, list};
use crate::inspect::machine::{Error, MachineConfig, is_place_of_additional, within};
use crate::inspect::why::fits;
use crate::json::Document;

/// containers/image `signature/policy_config.go`, where root's tools look.
const POLICY: &str = "etc/containers/policy.json";
/// The largest policy.json that is read, in bytes.
const POLICY_MAX: u64 = 4 << 20;

/// The kinds of requirements (containers-policy.json(5)).
const REQUIREMENTS: [&str; 5] = ["insecureAcceptAnything", "reject", "signedBy", "sigstoreSigned", "signedBaseLayer"];

/// File systems that are empty after a boot: where a runroot belongs.
const VOLATILE: [&str; 4] = ["run/", "var/run/", "tmp/", "dev/shm/"];

/// Returns whether a store is an additional one: as the configuration says, else by its place.
pub(super) fn is_additional(contents: &Contents, graphroot: &str) -> bool {
    contents.config().map_or_else(|_| is_place_of_additional(graphroot), |config| config.is_additional(graphroot))
}

/// Judges all of it.
pub(super) fn judge(contents: &Contents, report: &mut Report) {
    let mut add = |rule: Rule, place: String, what: String| {
        report.add(rule, rule.info().primary, true, Finding { place, what });
    };
    policy(contents, &mut add);
    match contents.config() {
        Err(error) => {
            let text = error.to_string();
            let place = match error {
                Error::Form { origin, .. } => origin.file.clone(),
                _ => text.split(':').next().unwrap_or_default().to_owned(),
            };
            // The name of a drop-in for CRI-O may end like that of another file.
            let rule = if place.starts_with("etc/crio") {
                Rule::CrioConf
            } else if place.ends_with("storage.conf") {
                Rule::StorageConf
            } else {
                Rule::RegistriesConf
            };
            add(rule, place, text);
        }
        Ok(config) => {
            storage(contents, config, &mut add);
            crio(contents, config, &mut add);
        }
    }
}

fn storage(contents: &Contents, config: &MachineConfig, add: &mut impl FnMut(Rule, String, String)) {
    if let Some(driver) =
        config.driver.as_ref().filter(|driver| driver.value != "overlay" && driver.value != "overlay2")
    {
        add(Rule::StorageDriver, driver.origin.to_string(), format!("driver is {:?}", driver.value));
    }
    if let Some(runroot) = &config.runroot {
        let path = within(&runroot.value);
        if !runroot.value.starts_with('/') || !VOLATILE.iter().any(|place| path.starts_with(place)) {
            let what = format!("runroot is {:?}, which is not below /run", runroot.value);
            add(Rule::StorageRunroot, runroot.origin.to_string(), what);
        }
    }
    let graphroot = config.graphroot_within();
    let is_configured = config.has_storage_conf || config.graphroot.is_some();
    for store in contents.stores().iter().filter(|store| !store.graphroot.is_empty()) {
        let is_additional = config.additional.iter().any(|set| within(&set.value) == store.graphroot);
        let is_image_store = config.image_store.as_ref().is_some_and(|set| within(&set.value) == store.graphroot);
        if store.graphroot == graphroot || is_additional || is_image_store || !is_configured {
            continue;
        }
        let place =
            config.graphroot.as_ref().map_or_else(|| format!("/{}", store.graphroot), |set| set.origin.to_string());
        if store.graphroot.starts_with("usr/") {
            let what = format!("additionalimagestores does not have /{}", store.graphroot);
            add(Rule::StorageAdditional, place, what);
        } else {
            let what = format!("graphroot is /{graphroot}, and the store is in /{}", store.graphroot);
            add(Rule::StorageGraphroot, place, what);
        }
    }
}

fn crio(contents: &Contents, config: &MachineConfig, add: &mut impl FnMut(Rule, String, String)) {
    // Records that cannot be read have been reported.
    let Ok(images) = list(contents.stores()) else { return };
    let names = || images.iter().flat_map(|image| image.repo_tags.iter().chain(&image.repo_digests));
    if let Some(pause) = &config.pause
        && !names().any(|name| *name == pause.value)
    {
        let what = format!("pause_image {:?} is in no store here", pause.value);
        add(Rule::CrioPause, pause.origin.to_string(), what);
    }
    // Who pins nothing at all has not meant to.
    let Some(pinned) = &config.pinned else { return };
    let patterns = || pinned.iter().chain(&config.pause).map(|set| &set.value[..]);
    // Most have no `*`, and there may be many.
    let exact: BTreeSet<String> = patterns().map(str::to_lowercase).collect();
    let globs: Vec<&str> = patterns().filter(|pattern| pattern.ends_with('*')).collect();
    let is_pinned = |name: &String| {
        exact.contains(&name.to_lowercase()) || globs.iter().any(|pattern| fits(pattern, name).is_some())
    };
    // On a machine, CRI-O pulls images for pods, which the kubelet may remove when none uses them any more.
    let is_judged = |image: &Listed| {
        let is_own = |top: &String| is_made_by_prepull(contents, &image.store, top);
        contents.is_tar() || image.top.as_ref().is_some_and(is_own)
    };
    for image in images.iter().filter(|image| !image.repo_tags.is_empty() && is_judged(image)) {
        if !image.repo_tags.iter().any(is_pinned) {
            let what = format!("pinned_images does not have {}", image.repo_tags.join(" or "));
            let place = pinned.first().map_or_else(|| "etc/crio".to_owned(), |set| set.origin.file.clone());
            add(Rule::CrioPinned, place, what);
        }
    }
}

fn policy(contents: &Contents, add: &mut impl FnMut(Rule, String, String)) {
    if contents.rest().get(POLICY.as_bytes()).is_none() {
        return;
    }
    let bytes = contents.small(POLICY.as_bytes(), POLICY_MAX).ok().flatten().unwrap_or_default();
    match default_requirements(&bytes) {
        Err(error) => add(Rule::PolicyJson, POLICY.to_owned(), error),
        Ok(types) if types.iter().any(|kind| kind == "reject") => {
            add(Rule::PolicyReject, POLICY.to_owned(), "its default is to reject".to_owned());
        }
        Ok(_) => {}
    }
}

/// The types of the default's requirements (`policy_config.go`: unknown keys, unknown types and an empty list are refused).
fn default_requirements(bytes: &[u8]) -> Result<Vec<String>, String> {
    let document: serde_json::Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let object = document.as_object().ok_or("is not an object")?;
    if let Some(key) = object.keys().find(|key| !matches!(&key[..], "default" | "transports")) {
        return Err(format!("has an unknown key {key:?}"));
    }
    let document = Document::parse(bytes).map_err(|error| error.to_string())?;
    let items = document.top().get_items("default").map_err(|error| error.to_string())?;
    if items.is_empty() {
        return Err("has no default".to_owned());
    }
    let types: Result<Vec<String>, _> =
        items.iter().map(|item| item.get_text("type").map(|text| text.into_owned())).collect();
    let types = types.map_err(|error| error.to_string())?;
    match types.iter().find(|kind| !REQUIREMENTS.contains(&&kind[..])) {
        Some(kind) => Err(format!("has an unknown requirement {kind:?}")),
        None => Ok(types),
    }
}
