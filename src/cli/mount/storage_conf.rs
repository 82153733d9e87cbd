//! The storage.conf that `mount --write-storage-conf` leaves: checked before anything is mounted, and written by the keeper.

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, anyhow};
use rustix::fs::{Mode, OFlags};

use crate::atomic;
use crate::inspect::stores::Stores;
use crate::mount::storage_conf::StorageConf;
use crate::storage::machine::{WRITTEN, storage_conf_beside};

/// Returns why containers/storage cannot use a store at `mountpoint`, if it cannot: it takes a comma for the end of an additional
/// store's path (`drivers/overlay/overlay.go`, `parseOptions`), and puts the path into the options of overlay mounts as it is, where
/// the kernel takes a colon for its end and a backslash for an escape.
pub fn unusable(mountpoint: &Path) -> Option<String> {
    let text = mountpoint.to_str()?;
    let bad = text.chars().find(|char| [',', ':', '\\'].contains(char))?;
    Some(format!("{text}: containers/storage cannot use a path with `{bad}` (mount in a directory of another name)"))
}

/// Prepares the file at `path`, which names the store of the user who runs this process and `mountpoint` beside it.
///
/// # Errors
/// When the user's stores are not known, containers/storage could not use the mount, there is no such directory, or something that
/// prepull has not written is in the way and `force` is not given.
pub fn prepare(path: &Path, mountpoint: &Path, force: bool) -> anyhow::Result<StorageConf> {
    if let Some(why) = unusable(mountpoint) {
        return Err(anyhow!(why));
    }
    let shown = path.display();
    let directory = atomic::parent(path);
    if path.file_name().is_none() || !directory.is_dir() {
        return Err(anyhow!("--write-storage-conf {shown}: {}: no such directory", directory.display()));
    }
    let known = match fs_err::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(error) => return Err(error.into()),
        Ok(found) if found.is_dir() => return Err(anyhow!("--write-storage-conf {shown}: is a directory")),
        Ok(found) => found.is_file() && is_ours(path).with_context(|| format!("--write-storage-conf {shown}"))?,
    };
    if !known && !force {
        return Err(anyhow!(
            "--write-storage-conf {shown}: prepull has not written what is there: not replaced (--force, or add the line that \
             `mount` prints to it)"
        ));
    }
    let stores = Stores::of_this_user().context("finding this user's store")?;
    let own = [stores.graphroot.as_str(), stores.runroot.as_str()];
    let text = storage_conf_beside(own, &[&mountpoint.to_string_lossy()]);
    // The keeper works in another directory.
    Ok(StorageConf { path: std::path::absolute(path)?, text })
}

/// Returns whether prepull has written the file at `path`.
fn is_ours(path: &Path) -> anyhow::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = std::fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let mut first = Vec::new();
    file.take(WRITTEN.len() as u64).read_to_end(&mut first)?;
    Ok(first == WRITTEN.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_others_is_not_replaced_and_links_are_not_followed() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        let prepare = |name: &str, force| super::prepare(&at(name), Path::new("/mnt/a\"b"), force);
        prepare("new", false).unwrap().write().unwrap();
        let text = fs_err::read_to_string(at("new")).unwrap();
        assert!(text.starts_with(WRITTEN) && text.contains(r#"additionalimagestores = ["/mnt/a\"b"]"#), "{text}");
        assert!(!text.contains('@'), "{text}");
        // Its own file it replaces.
        prepare("new", false).unwrap().write().unwrap();
        fs_err::write(at("own"), "[storage]\n").unwrap();
        std::os::unix::fs::symlink("new", at("to-ours")).unwrap();
        std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), Mode::RUSR).unwrap();
        for name in ["own", "to-ours", "dangling", "pipe"] {
            let error = prepare(name, false).err().unwrap().to_string();
            assert!(error.contains("prepull has not written what is there"), "{name}: {error}");
            prepare(name, true).unwrap().write().unwrap();
            assert!(fs_err::symlink_metadata(at(name)).unwrap().is_file(), "{name}");
            assert_eq!(fs_err::read_to_string(at(name)).unwrap(), text);
        }
        assert!(fs_err::symlink_metadata(at("nowhere")).is_err());
        fs_err::create_dir(at("directory")).unwrap();
        for name in ["directory", "none/file"] {
            assert!(prepare(name, true).is_err(), "{name}");
        }
    }
}
