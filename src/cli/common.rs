//! What several commands do with their arguments.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, anyhow};

use super::Failure;

/// Checks that there is an input at `path` (`-`: standard input). Returns its name for messages.
///
/// # Errors
/// With exit code 2 when it does not exist or cannot be looked up.
pub fn input(path: &Path) -> Result<String, Failure> {
    if path == Path::new("-") {
        return Ok("standard input".to_owned());
    }
    let shown = path.display().to_string();
    match rustix::fs::stat(path).map_err(std::io::Error::from) {
        Ok(_) => Ok(shown),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(Failure::usage(anyhow!("{shown}: no such file or directory")))
        }
        Err(error) => Err(error).context(shown).map_err(Failure::usage),
    }
}
