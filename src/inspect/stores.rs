//! The stores that podman and CRI-O use for one user of a machine, as storage.conf names them.
//!
//! Root's come from [`MachineConfig`]. Those of a user without root's rights follow containers/storage `types/options.go`
//! (loadStoreOptionsFromConfFile, getRootlessStorageOpts) and `types/utils.go` (DefaultConfigFile, expandEnvPath).

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::files::Files;
use super::machine::{Error, MachineConfig};

/// Default graphroot and runroot of root (containers/storage `types/options_linux.go`).
const ROOT_STORE: [&str; 2] = ["/var/lib/containers/storage", "/run/containers/storage"];

/// Environment variable that replaces every storage.conf (containers/storage `types/options.go`: storageConfEnv).
const STORAGE_CONF: &str = "CONTAINERS_STORAGE_CONF";

/// Id of the user who has made this user namespace (`podman unshare`, containers/storage `pkg/unshare`: GetRootlessUID).
const ROOTLESS_ID: &str = "_CONTAINERS_ROOTLESS_UID";

/// The user whose stores are meant.
pub struct User<'a> {
    /// Effective user id of this process.
    pub id: u32,
    /// Returns the value of an environment variable.
    pub variable: &'a dyn Fn(&str) -> Option<OsString>,
}

impl std::fmt::Debug for User<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("id", &self.id).finish_non_exhaustive()
    }
}

impl User<'_> {
    fn text(&self, name: &str) -> Option<String> {
        (self.variable)(name)?.into_string().ok().filter(|value| !value.is_empty())
    }

    /// The id of the user whose own directories have the store; `None` if root's directories do.
    fn rootless(&self) -> Option<u32> {
        let outside = self.text(ROOTLESS_ID).and_then(|id| id.parse().ok()).unwrap_or(self.id);
        (outside != 0).then_some(outside)
    }

    fn home(&self) -> String {
        self.text("HOME").unwrap_or_else(|| "/".to_owned())
    }

    /// Expands `$UID` and the variables of the environment in a path of storage.conf.
    fn expand(&self, path: &str, id: u32) -> String {
        let path = path.replace("$UID", &id.to_string());
        let mut out = String::with_capacity(path.len());
        let mut rest = path.as_str();
        while let Some((before, after)) = rest.split_once('$') {
            out.push_str(before);
            let (name, next) = match after.strip_prefix('{').and_then(|braced| braced.split_once('}')) {
                Some(braced) => braced,
                None => {
                    let end = after.find(|char: char| !char.is_ascii_alphanumeric() && char != '_');
                    after.split_at(end.unwrap_or(after.len()))
                }
            };
            out.push_str(&self.text(name).unwrap_or_default());
            rest = next;
        }
        out + rest
    }
}

/// The stores of a user. All paths are absolute paths of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stores {
    /// The store that images and containers are written to.
    pub graphroot: String,
    /// The directory for locks and mounts until the next boot.
    pub runroot: String,
    /// The store for images alone, if there is one.
    pub image_store: Option<String>,
    /// The additional stores, in their order.
    pub additional: Vec<String>,
    /// The driver of all of them.
    pub driver: String,
}

impl Stores {
    /// Reads them from the configuration of `machine` (the directory that is its `/`).
    ///
    /// # Errors
    /// When a configuration file cannot be read or parsed.
    pub fn of(machine: &Path, user: &User<'_>) -> Result<Self, Error> {
        let files = Files::of_path(machine)?;
        let Some(id) = user.rootless() else {
            let config = match user.text(STORAGE_CONF) {
                Some(path) => MachineConfig::read_with_storage(&files, Some(&path))?,
                None => MachineConfig::read(&files)?,
            };
            return Ok(Self::from_config(config, ROOT_STORE.map(str::to_owned)));
        };
        let system = MachineConfig::read_storage(&files, None)?;
        let data = user.text("XDG_DATA_HOME").unwrap_or_else(|| format!("{}/.local/share", user.home()));
        let runtime = user.text("XDG_RUNTIME_DIR").unwrap_or_else(|| format!("/run/user/{id}"));
        let storage_path =
            |config: &MachineConfig| config.rootless_storage_path.as_ref().map(|set| user.expand(&set.value, id));
        let graphroot = storage_path(&system).unwrap_or_else(|| format!("{data}/containers/storage"));
        let path = user.text(STORAGE_CONF).unwrap_or_else(|| {
            let config = user.text("XDG_CONFIG_HOME").unwrap_or_else(|| format!("{}/.config", user.home()));
            format!("{config}/containers/storage.conf")
        });
        let own = MachineConfig::read_storage(&files, Some(&path))?;
        let graphroot = storage_path(&own).unwrap_or(graphroot);
        let mut stores = Self::from_config(own, [graphroot, format!("{runtime}/containers")]);
        for path in [&mut stores.graphroot, &mut stores.runroot] {
            *path = user.expand(path, id);
        }
        Ok(stores)
    }

    fn from_config(config: MachineConfig, [graphroot, runroot]: [String; 2]) -> Self {
        let driver = config.driver_or_default().to_owned();
        Self {
            graphroot: config.graphroot.map_or(graphroot, |set| set.value),
            runroot: config.runroot.map_or(runroot, |set| set.value),
            image_store: config.image_store.map(|set| set.value),
            additional: config.additional.into_iter().map(|set| set.value).collect(),
            driver,
        }
    }

    /// The stores of the user who runs this process, on this machine.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn of_this_user() -> Result<Self, Error> {
        let id = rustix::process::geteuid().as_raw();
        Self::of(&PathBuf::from("/"), &User { id, variable: &|name| std::env::var_os(name) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(id: u32, variables: &[(&str, &str)], files: &[(&str, &str)]) -> Stores {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, text).unwrap();
        }
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into());
        Stores::of(root.path(), &User { id, variable: &variable }).unwrap()
    }

    #[test]
    fn stores_of_root_and_users_are_those_of_containers_storage() {
        let home = ("HOME", "/home/u");
        let system =
            ("etc/containers/storage.conf", "[storage]\ngraphroot='/data'\nrootless_storage_path='/big/$USER/$UID'");
        let own = ".config/containers/storage.conf";
        let own = |text| (format!("home/u/{own}"), text);
        let (with_root, text) = own(
            "[storage]\ngraphroot='${HOME}/store'\nrunroot='/run/x'\n[storage.options]\nadditionalimagestores=['/mnt']",
        );
        let (with_path, other) = own("[storage]\nrootless_storage_path='/own/$UID'");
        for (id, variables, files, graphroot, runroot) in [
            (0, vec![home], vec![], "/var/lib/containers/storage", "/run/containers/storage"),
            (0, vec![home], vec![system], "/data", "/run/containers/storage"),
            (
                0,
                vec![("CONTAINERS_STORAGE_CONF", "/x.conf")],
                vec![("x.conf", "[storage]\ngraphroot='/y'"), system],
                "/y",
                "/run/containers/storage",
            ),
            (7, vec![home], vec![], "/home/u/.local/share/containers/storage", "/run/user/7/containers"),
            (
                7,
                vec![home, ("XDG_DATA_HOME", "/d"), ("XDG_RUNTIME_DIR", "/r")],
                vec![],
                "/d/containers/storage",
                "/r/containers",
            ),
            (7, vec![home, ("USER", "u")], vec![system], "/big/u/7", "/run/user/7/containers"),
            (7, vec![home], vec![system, (&with_root, text)], "/home/u/store", "/run/x"),
            (7, vec![home], vec![system, (&with_path, other)], "/own/7", "/run/user/7/containers"),
            (
                0,
                vec![home, ("_CONTAINERS_ROOTLESS_UID", "7")],
                vec![],
                "/home/u/.local/share/containers/storage",
                "/run/user/7/containers",
            ),
        ] {
            let stores = of(id, &variables, &files);
            assert_eq!(
                (stores.graphroot.as_str(), stores.runroot.as_str()),
                (graphroot, runroot),
                "{id} {variables:?}"
            );
            assert_eq!(stores.additional.len(), usize::from(graphroot.ends_with("/store")));
        }
    }
}
