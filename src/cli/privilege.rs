//! What commands need when root runs them: everything else is given up before they fetch or parse anything ([`crate::confine`]).

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::args::{CacheArgs, RegistryArgs};
use super::make::cache_dir;
use crate::atomic::{self, temporary_directory};
use crate::config::{Environment, auth};
use crate::confine::{Needs, Trees};
use crate::reference::{Item, Location};

/// What credential helpers write to, below HOME: their caches and locks (docker-credential-ecr-login, -gcloud, -acr, -pass).
const OF_HELPERS: [&str; 6] = [".aws", ".azure", ".config/gcloud", ".ecr", ".gnupg", ".password-store"];

/// What they read there besides.
const CREDENTIALS: [&str; 4] = [".config/containers", ".docker", ".dockercfg", ".kube"];

/// Returns the needs of a process that reads `inputs`: tars, of which compressed ones are copied to a temporary file, and
/// directories, of which it reads what `trees` says.
pub fn of_inputs(inputs: &[&Path], trees: Trees) -> Needs {
    let has_directory = inputs.iter().any(|path| path.is_dir());
    // Without an input, standard input is one.
    let has_tar = inputs.is_empty() || !inputs.iter().all(|path| path.is_dir());
    Needs {
        reads: inputs.iter().map(|path| (*path).to_owned()).collect(),
        writes: if has_tar { vec![temporary_directory()] } else { Vec::new() },
        local_sockets: false,
        trees: if has_directory { trees } else { Trees::None },
    }
}

/// Returns the needs of a process that fetches `items` into the cache, and for a tar writes into its directory.
pub fn of_fetching<'a>(
    items: impl Iterator<Item = &'a Item>,
    registry: &RegistryArgs,
    cache: &CacheArgs,
    tar: Option<&Path>,
) -> Needs {
    let environment = Environment::of_process();
    let mut needs = Needs::default();
    for item in items {
        match &item.location {
            Location::OciLayout { path, .. }
            | Location::OciArchive { path, .. }
            | Location::DockerArchive { path, .. }
            | Location::Dir { path } => needs.reads.push(path.clone()),
            Location::DockerDaemon(_) => needs.local_sockets = true,
            Location::Registry(_) | Location::Overlay(_) => {}
        }
    }
    // Many images may come from one layout or archive.
    needs.reads.sort();
    needs.reads.dedup();
    let home = |names: &[&str]| -> Vec<PathBuf> { names.iter().map(|name| environment.home.join(name)).collect() };
    needs.reads.extend(home(&CREDENTIALS));
    needs.reads.extend(registry.authfile.iter().chain(&registry.cert_dir).cloned());
    needs.reads.extend(auth::files(registry.authfile.as_deref(), &environment));
    for name in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
        needs.reads.extend(std::env::var_os(name).map(PathBuf::from));
    }
    if auth::asks_helpers(registry.authfile.as_deref(), &environment) {
        needs.local_sockets = true;
        needs.reads.extend(home(&OF_HELPERS));
        needs.writes.extend(home(&OF_HELPERS));
        // A helper may lie anywhere in PATH.
        needs.reads.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    }
    needs.writes.push(temporary_directory());
    needs.writes.extend(of_cache(cache));
    if let Some(tar) = tar.filter(|tar| *tar != Path::new("-")) {
        // Pipes and devices are written to themselves; a link is followed.
        let target = fs_err::canonicalize(tar).unwrap_or_else(|_| tar.to_owned());
        let is_special = fs_err::metadata(&target).is_ok_and(|found| !found.is_file() && !found.is_dir());
        needs.writes.push(if is_special { target } else { atomic::parent(&target).to_owned() });
        // Where layers go that find no room in the cache.
        needs.writes.push(atomic::parent(tar).to_owned());
    }
    needs
}

/// Returns the directory of the cache, made if it was missing; `None` if there is no cache.
pub fn of_cache(cache: &CacheArgs) -> Option<PathBuf> {
    if cache.no_cache {
        return None;
    }
    let directory = cache.cache_dir.clone().map_or_else(|| cache_dir(None), Ok).ok()?;
    // Landlock rules need existing directories. If a cache directory cannot be created, opening the cache reports the error.
    let _ = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
    Some(directory)
}
