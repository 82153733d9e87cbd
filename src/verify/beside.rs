//! A machine's own store beside an additional one, after a power cut.
//!
//! CRI-O 1.31 and newer check their store then (cri-o `internal/lib/container_server.go`, New). containers/storage looks for the
//! parents of the own store's layers before it knows those of read-only stores (`check.go`, Check), so an image or container of
//! which a parent layer is in an additional store counts as damaged. Repair deletes such an image; of a container that uses the
//! layer it cannot, and CRI-O then deletes the whole store (`repair.go`, Repair: ErrLayerUsedByContainer).

use std::collections::HashMap;

use super::Judge;
use super::image::{short, shown};
use super::records::{ImageRecord, LayerRecord};
use super::rule::Rule;
use crate::inspect::machine::within;

impl Judge<'_> {
    /// Judges the images of the own store, if the machine has an additional store and does not do without the check.
    pub(super) fn beside_additional(&mut self, images: &[ImageRecord], records: &[LayerRecord]) {
        let Ok(config) = self.contents.config() else { return };
        let is_own = !self.additional && config.graphroot_within() == self.found.graphroot;
        let other = config.additional.iter().find(|set| within(&set.value) != self.found.graphroot);
        let (true, Some(other), false) = (is_own && !images.is_empty(), other, config.internal_repair == Some(false))
        else {
            return;
        };
        let (other, count) = (format!("{} ({})", other.value, other.origin), images.len());
        let own: HashMap<&str, &LayerRecord> = records.iter().map(|record| (&record.id[..], record)).collect();
        // Layers that were walked, each with the layer that is missing below it.
        let mut known: HashMap<&str, Option<&str>> = HashMap::new();
        for image in images {
            let mut path = Vec::new();
            let mut next = image.top();
            let missing = loop {
                let Some(id) = next else { break None };
                if let Some(missing) = known.get(id) {
                    break *missing;
                }
                let Some(record) = own.get(id) else { break Some(id) };
                // A circle ends here.
                known.insert(id, None);
                path.push(id);
                next = record.parent();
            };
            if let Some(id) = missing {
                known.extend(path.into_iter().map(|layer| (layer, missing)));
                let what = format!("its layer {} is not in this store, but may be in {other}", short(id));
                self.about = Some(image.id.clone());
                self.add(Rule::OwnImageOnAdditional, shown(image), what);
            }
        }
        self.about = None;
        let images = if count == 1 { "an image".to_owned() } else { format!("{count} images") };
        self.add(Rule::OwnStoreAtRisk, format!("/{}", self.found.graphroot), format!("has {images} beside {other}"));
    }
}
