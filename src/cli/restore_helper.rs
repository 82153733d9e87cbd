//! `--restore-helper`: which program goes into the tar to mend what busybox tar breaks.

use std::ffi::{OsStr, OsString};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};

use crate::image::Platform;
use crate::storage::restore::{HELPER, HELPER_MAX, Helper, HelperError};

/// What was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoreHelper {
    /// One that is installed beside prepull, if it fits.
    Auto,
    /// This one.
    File(PathBuf),
    /// None.
    None,
}

impl From<OsString> for RestoreHelper {
    fn from(typed: OsString) -> Self {
        match typed.to_str() {
            Some("auto") => Self::Auto,
            Some("none") => Self::None,
            _ => Self::File(typed.into()),
        }
    }
}

impl RestoreHelper {
    /// The program for machines of `platform`.
    ///
    /// # Errors
    /// When the file that was asked for cannot be read, or is no static program for them.
    pub fn find(&self, platform: &Platform) -> anyhow::Result<Option<Helper>> {
        match self {
            Self::None => Ok(None),
            Self::File(path) => match read(path, platform) {
                Ok(helper) => Ok(Some(helper)),
                Err(error) => Err(error).with_context(|| format!("--restore-helper {}", path.display())),
            },
            // Most builds of the helper are for this machine, and not static: no reason to complain.
            Self::Auto => Ok(installed().iter().find_map(|path| read(path, platform).ok())),
        }
    }
}

/// Where a helper is installed, by where this program is.
fn installed() -> Vec<PathBuf> {
    let own = std::env::current_exe().ok();
    let directory = own.as_deref().and_then(Path::parent);
    let beside = directory.map(|directory| directory.join(HELPER));
    let libexec = directory.and_then(Path::parent).map(|prefix| prefix.join("libexec").join(HELPER));
    beside.into_iter().chain(libexec).chain([Path::new("/usr/libexec").join(OsStr::new(HELPER))]).collect()
}

fn read(path: &Path, platform: &Platform) -> anyhow::Result<Helper> {
    // Opening a fifo waits.
    let metadata = fs_err::metadata(path)?;
    if !metadata.is_file() {
        return Err(anyhow!("it is not a regular file"));
    }
    if metadata.len() > HELPER_MAX {
        return Err(HelperError::TooLarge.into());
    }
    let mut bytes = Vec::new();
    fs_err::File::open(path)?.take(HELPER_MAX + 1).read_to_end(&mut bytes)?;
    let helper = Helper::new(bytes, &platform.architecture)?;
    Ok(helper)
}
