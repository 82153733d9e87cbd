//! The `images` overlay of xcluster: what `xc mkcdrom images` takes the images from.
//!
//! The contract of its `tar` script is that of xcluster's own `ovl/images/tar`.

use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::atomic::{Unnamed, remove_leftovers_of};

/// Name, mode and content of each file of the overlay.
const FILES: [(&str, u32, &str); 2] =
    [("README.md", 0o644, include_str!("../policy/ovl/README.md")), ("tar", 0o755, include_str!("../policy/ovl/tar"))];

/// Why an overlay cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing failed; the text names the file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Somebody else's file is in the way.
    #[error("{0} is there, and is not what this version of prepull writes (--force replaces it)")]
    InTheWay(PathBuf),
}

/// Writes the overlay into `directory`. A file that is there with other content is replaced only with `force`. Gives what
/// was written: nothing the second time.
///
/// # Errors
/// When a file is in the way, or cannot be written. Then none, or some, are written.
pub fn write_overlay(directory: &Path, force: bool) -> Result<Vec<PathBuf>, Error> {
    fs_err::create_dir_all(directory)?;
    let mut missing = Vec::new();
    for (name, mode, content) in FILES {
        let path = directory.join(name);
        remove_leftovers_of(&path);
        match fs_err::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push((path, mode, content)),
            Ok(metadata) if metadata.is_file() && fs_err::read(&path)? == content.as_bytes() => {
                if mode & 0o100 != 0 && metadata.permissions().mode() & 0o100 == 0 {
                    missing.push((path, mode, content));
                }
            }
            Ok(metadata) if force && !metadata.is_dir() => missing.push((path, mode, content)),
            Ok(_) => return Err(Error::InTheWay(path)),
            Err(error) => return Err(error.into()),
        }
    }
    let mut written = Vec::new();
    for (path, mode, content) in missing {
        let file = Unnamed::new_in(directory, mode)?;
        let fail = |error: io::Error| io::Error::new(error.kind(), format!("writing {}: {error}", path.display()));
        file.file().write_all(content.as_bytes()).map_err(fail)?;
        file.publish_over(&path)?;
        written.push(path);
    }
    Ok(written)
}
