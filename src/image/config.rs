//! The image's config: the few fields that a store needs. All others stay in the bytes.

use super::{Error, Platform};
use crate::digest::Digest;
use crate::go_types;
use crate::json::{self, Document};

/// Fields of a config (OCI image spec, config.md; Docker's config has the same fields).
#[derive(Debug)]
pub(super) struct Config {
    pub diff_ids: Vec<Digest>,
    pub created: Option<String>,
    pub platform: Platform,
}

impl Config {
    /// Parses a config that podman and CRI-O can read back from a store.
    pub(super) fn parse(bytes: &[u8], id: &Digest) -> Result<Self, Error> {
        let go = |error| Error::Config { id: *id, error };
        let json = |error: json::Error| go(error.into());
        let document = Document::parse(bytes).map_err(json)?;
        go_types::check_config_document(&document).map_err(go)?;
        let top = document.top();
        let mut diff_ids = Vec::new();
        if let Some(rootfs) = top.get("rootfs").map_err(json)? {
            for item in rootfs.get_items("diff_ids").map_err(json)? {
                let text = item.text().map_err(json)?;
                diff_ids.push(text.parse().map_err(|error| Error::DiffId { id: *id, error })?);
            }
        }
        let text = |key| top.get_text(key).map(|text| text.into_owned()).map_err(json);
        Ok(Self {
            diff_ids,
            created: Some(text("created")?).filter(|created| !created.is_empty()),
            platform: Platform { os: text("os")?, architecture: text("architecture")?, variant: text("variant")? },
        })
    }
}
