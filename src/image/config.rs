//! The image's config: the few fields that a store needs. All others stay in the bytes.

use super::{Error, Platform};
use crate::digest::Digest;
use crate::json::{self, Document};

/// What a config says (OCI image spec, config.md; Docker's is the same in these fields).
#[derive(Debug)]
pub(super) struct Config {
    pub diff_ids: Vec<Digest>,
    pub created: Option<String>,
    pub platform: Platform,
}

impl Config {
    pub(super) fn parse(bytes: &[u8], id: &Digest) -> Result<Self, Error> {
        let json = |error: json::Error| Error::Config { id: *id, error };
        let document = Document::parse(bytes).map_err(json)?;
        let top = document.top();
        let mut diff_ids = Vec::new();
        if let Some(rootfs) = top.get("rootfs").map_err(json)? {
            for item in rootfs.get_items("diff_ids").map_err(json)? {
                let text = item.text().map_err(json)?;
                diff_ids.push(text.parse().map_err(|error| Error::DiffId { id: *id, error })?);
            }
        }
        let created = top.get_text("created").map_err(json)?;
        let text = |key| top.get_text(key).map(str::to_owned).map_err(json);
        Ok(Self {
            diff_ids,
            created: Some(created).filter(|created| !created.is_empty()).map(str::to_owned),
            platform: Platform { os: text("os")?, architecture: text("architecture")?, variant: text("variant")? },
        })
    }
}
