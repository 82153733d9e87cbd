//! A storage.conf that has a mount as an additional store, written once it is mounted.

use std::io::Write as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Error;
use crate::atomic::{self, Unnamed};

/// Mode of the file, less the umask.
const MODE: u32 = 0o644;

/// A storage.conf to write.
#[derive(Debug, Serialize, Deserialize)]
pub struct StorageConf {
    /// Where: absolute.
    pub path: PathBuf,
    /// Its content.
    pub text: String,
}

impl StorageConf {
    /// Writes it. What was there is replaced as a whole, also if it is a symbolic link.
    ///
    /// # Errors
    /// When it cannot be written; what was there is untouched then.
    pub fn write(&self) -> Result<(), Error> {
        let failed = |error| Error::system(self.path.display(), error);
        let file = Unnamed::new_in(atomic::parent(&self.path), MODE).map_err(failed)?;
        file.file().write_all(self.text.as_bytes()).and_then(|()| file.file().sync_all()).map_err(failed)?;
        file.publish_over(&self.path).map_err(failed)?;
        Ok(())
    }
}
