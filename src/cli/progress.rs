//! Progress bars on a terminal, silence elsewhere.

use std::collections::BTreeMap;
use std::sync::Mutex;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::Printer;
use crate::digest::Digest;
use crate::make::{Advance, Progress};
use crate::storage::store::StoreLayer;

/// One bar for each blob under way.
#[derive(Debug)]
pub struct Bars {
    printer: Printer,
    bars: MultiProgress,
    of_layer: Mutex<BTreeMap<Digest, ProgressBar>>,
}

impl Bars {
    /// Draws on standard error if that is a terminal and the user wants to be told things.
    pub fn new(printer: Printer) -> Self {
        let target = if printer.is_quiet() { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        Self { printer, bars: MultiProgress::with_draw_target(target), of_layer: Mutex::default() }
    }

    /// Takes the bars away, also those of downloads that still run.
    pub fn clear(&self) {
        // A terminal that is gone shows no bars.
        let _ = self.bars.clear();
        self.bars.set_draw_target(ProgressDrawTarget::hidden());
    }
}

impl Progress for Bars {
    fn cached(&self, layer: &StoreLayer) {
        tracing::info!("layer {} is in the cache", layer.id);
    }

    fn begin(&self, layer: &StoreLayer, item: &str) -> Advance {
        tracing::info!(
            "fetching layer {} ({} bytes) of {item}",
            layer.layer.descriptor.digest,
            layer.layer.descriptor.size
        );
        let bar = self.bars.add(ProgressBar::new(layer.layer.descriptor.size));
        if let Ok(style) = ProgressStyle::with_template(
            "{prefix:.dim} {bar:30} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {msg}",
        ) {
            bar.set_style(style);
        }
        bar.set_prefix(layer.layer.descriptor.digest.hex()[..12].to_owned());
        bar.set_message(super::output::printable(item));
        if let Ok(mut bars) = self.of_layer.lock() {
            bars.insert(layer.id, bar.clone());
        }
        Box::new(move |bytes| bar.inc(bytes))
    }

    fn end(&self, layer: &StoreLayer) {
        if let Some(bar) = self.of_layer.lock().ok().and_then(|mut bars| bars.remove(&layer.id)) {
            bar.finish_and_clear();
        }
    }

    fn note(&self, text: &str) {
        self.bars.suspend(|| self.printer.warn(text));
    }
}
