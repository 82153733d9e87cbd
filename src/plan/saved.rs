//! An image of a plan as text, for another process that makes a plan with it: all but its layers.

use std::collections::BTreeSet;
use std::io::{Cursor, Read};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::image::{Error, Image, Platform};
use crate::reference::Reference;
use crate::source::{self, Descriptor, ImageSource, RawManifest};
use crate::storage::record::StoreImage;

/// An image, verified again when it is read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedImage {
    names: BTreeSet<String>,
    config: String,
    indexes: Vec<String>,
    manifests: Vec<String>,
}

/// One of its manifests, and the config.
#[derive(Debug)]
struct Saved<'a>(&'a str, &'a str);

impl ImageSource for Saved<'_> {
    fn manifest(&self, _instance: Option<&Digest>) -> Result<RawManifest, source::Error> {
        Ok(RawManifest { media_type: None, bytes: self.0.as_bytes().to_vec() })
    }

    fn blob(&self, _blob: &Descriptor) -> Result<Box<dyn Read + Send>, source::Error> {
        Ok(Box::new(Cursor::new(self.1.as_bytes().to_vec())))
    }

    fn names(&self) -> Vec<Reference> {
        Vec::new()
    }
}

impl SavedImage {
    /// Saves `image`. `None` if any of its documents is no text: then it was no JSON.
    #[must_use]
    pub fn of(image: &StoreImage) -> Option<Self> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let (config, indexes, manifests) = image.documents();
        Some(Self {
            names: image.names().map(str::to_owned).collect(),
            config: text(config)?,
            indexes: indexes.into_iter().map(text).collect::<Option<_>>()?,
            manifests: manifests.into_iter().map(text).collect::<Option<_>>()?,
        })
    }

    /// The image.
    ///
    /// # Errors
    /// When it is not what was saved.
    pub fn restore(&self) -> Result<StoreImage, Error> {
        let mut restored: Option<StoreImage> = None;
        for manifest in &self.manifests {
            let image = Image::open(&Saved(manifest, &self.config), None, &Platform::host())?;
            restored.get_or_insert_with(|| StoreImage::new(&image)).merge(&image);
        }
        let none = || Error::Source(source::Error::NotFound("an image without a manifest".to_owned()));
        let mut restored = restored.ok_or_else(none)?;
        self.names.iter().for_each(|name| restored.add_name(name.clone()));
        self.indexes.iter().for_each(|index| restored.add_index(index.clone().into_bytes()));
        Ok(restored)
    }
}
