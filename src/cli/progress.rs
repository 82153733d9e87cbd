//! Progress of a run that fetches or reads layers.
//!
//! On a terminal, standard error shows one line for each image that is not complete, one line for each of its layers in flight,
//! and a total:
//!
//! ```text
//! docker.io/library/alpine:3.20                        2 of 5 layers
//!   a1b2c3d4e5f6 [===========>            ]       12.3 MB / 40.0 MB
//!   77c0de24aa01 [===>                    ]       1.20 MB / 9.30 MB
//! total [==========>            ]   52.3 MB / 120 MB  12.1 MB/s  6 s
//! ```
//!
//! A finished layer counts in the line of its image, and a complete image leaves one line above the others. Elsewhere (a pipe, a
//! log, `TERM=dumb`) there is one plain line when an image starts and one when it is complete.
//!
//! [`State`] knows what happened, [`render`] turns it into lines for a width, and one thread draws these lines ten times a second.

use std::collections::{BTreeMap, VecDeque};
use std::io::{IsTerminal as _, stderr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::{Printer, human, printable};
use crate::digest::Digest;
use crate::make::{Advance, Progress};
use crate::storage::store::StoreLayer;
use crate::threads;

/// Interval between two drawings.
const INTERVAL: Duration = Duration::from_millis(100);

/// Period over which the rate is measured: long enough to be calm, short enough to show a stall.
const WINDOW: Duration = Duration::from_secs(5);

/// Columns of a terminal that does not tell its size.
const COLUMNS: usize = 80;

/// Rows of a terminal that does not tell its size.
const ROWS: usize = 24;

/// Columns below which the total has no bar.
const COLUMNS_FOR_TOTAL_BAR: usize = 60;

/// Digits of a layer's digest that are shown, as podman does.
const DIGITS: usize = 12;

/// Progress on standard error.
#[derive(Debug)]
pub struct Bars {
    printer: Printer,
    state: Arc<Mutex<State>>,
    screen: Mutex<Option<Drawing>>,
}

/// The thread that draws.
#[derive(Debug)]
struct Drawing {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

/// Progress of all images and layers.
#[derive(Debug, Default)]
struct State {
    images: Vec<ImageState>,
    layers: BTreeMap<Digest, LayerState>,
    /// Total bytes at past times, the newest last: what the rate is measured from.
    samples: VecDeque<(Instant, u64)>,
}

#[derive(Debug)]
struct ImageState {
    item: String,
    is_remote: bool,
    layers: usize,
    finished: usize,
    bytes: u64,
    is_started: bool,
}

#[derive(Debug)]
struct LayerState {
    image: usize,
    digest: Digest,
    size: u64,
    phase: Phase,
    done: Arc<AtomicU64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Queued,
    InFlight,
    Finished,
}

impl Bars {
    /// Draws on standard error if that is a terminal, and prints plain lines if it is not. Does neither for a quiet printer.
    pub fn new(printer: &Printer) -> Self {
        let state = Arc::<Mutex<State>>::default();
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let wants_bars = !printer.is_quiet() && stderr().is_terminal() && !is_dumb;
        let drawing = wants_bars.then(|| Drawing::start(printer, &state)).flatten();
        Self { printer: printer.clone(), state, screen: Mutex::new(drawing) }
    }

    /// Removes the lines, also those of downloads that still run.
    pub fn clear(&self) {
        let drawing = self.screen.lock().ok().and_then(|mut drawing| drawing.take());
        if let Some(Drawing { stop, thread }) = drawing {
            drop(stop);
            // A thread that panicked draws nothing more either.
            let _ = thread.join();
        }
    }

    fn state(&self) -> Option<MutexGuard<'_, State>> {
        self.state.lock().ok()
    }
}

impl Drawing {
    /// Returns `None` if the system gives no thread: the run goes on without bars.
    fn start(printer: &Printer, state: &Arc<Mutex<State>>) -> Option<Self> {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(ProgressStyle::with_template("{msg}").ok()?);
        let (stop, stopped) = channel();
        let (printer, state) = (printer.clone(), Arc::clone(state));
        printer.screen().show(bar.clone());
        let screen = printer.screen().clone();
        let thread = threads::spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(INTERVAL) {
                let (columns, rows) = terminal_size();
                let Ok(mut state) = state.lock() else { break };
                state.sample(Instant::now());
                let lines = render(&state, columns, rows);
                drop(state);
                bar.set_message(lines.join("\n"));
            }
            printer.screen().hide();
        });
        if thread.is_err() {
            screen.hide();
        }
        Some(Self { stop, thread: thread.ok()? })
    }
}

/// Columns and rows of the terminal on standard error.
fn terminal_size() -> (usize, usize) {
    let size = rustix::termios::tcgetwinsize(stderr()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
    size.map_or((COLUMNS, ROWS), |size| (size.ws_col.into(), size.ws_row.into()))
}

impl State {
    /// Returns the number of the image that `item` names.
    fn image(&mut self, item: &str, is_remote: bool) -> usize {
        if let Some(at) = self.images.iter().position(|image| image.item == item) {
            return at;
        }
        self.images.push(ImageState {
            item: item.to_owned(),
            is_remote,
            layers: 0,
            finished: 0,
            bytes: 0,
            is_started: false,
        });
        self.images.len() - 1
    }

    fn queue(&mut self, layer: &StoreLayer, item: &str, is_remote: bool) {
        if self.layers.contains_key(&layer.id) {
            // The layer is converted again.
            return;
        }
        let image = self.image(item, is_remote);
        let size = layer.layer.descriptor.size;
        self.images[image].layers += 1;
        self.images[image].bytes += size;
        let digest = layer.layer.descriptor.digest;
        let new = LayerState { image, digest, size, phase: Phase::Queued, done: Arc::default() };
        self.layers.insert(layer.id, new);
    }

    /// Starts a layer. Returns its counter of bytes, and the line that says that its image starts, if it does.
    fn begin(&mut self, id: &Digest) -> Option<(Arc<AtomicU64>, Option<String>)> {
        let layer = self.layers.get_mut(id)?;
        let image = &mut self.images[layer.image];
        if layer.phase == Phase::Finished {
            image.finished -= 1;
        }
        layer.phase = Phase::InFlight;
        layer.done.store(0, Ordering::Relaxed);
        let line = (!image.is_started).then(|| {
            let verb = if image.is_remote { "fetching" } else { "reading" };
            format!("{verb} {}: {}", printable(&image.item), image.amount())
        });
        image.is_started = true;
        Some((Arc::clone(&layer.done), line))
    }

    /// Finishes a layer. Returns the line that says that its image is complete, if it is.
    fn end(&mut self, id: &Digest) -> Option<String> {
        let layer = self.layers.get_mut(id)?;
        if layer.phase != Phase::InFlight {
            return None;
        }
        layer.phase = Phase::Finished;
        layer.done.store(layer.size, Ordering::Relaxed);
        let image = &mut self.images[layer.image];
        image.finished += 1;
        (image.finished == image.layers).then(|| {
            let verb = if image.is_remote { "fetched" } else { "read" };
            format!("{verb} {}: {}", printable(&image.item), image.amount())
        })
    }

    /// Returns the bytes that have come, and those that there are.
    fn total(&self) -> (u64, u64) {
        let done = self.layers.values().map(|layer| layer.done.load(Ordering::Relaxed)).sum();
        (done, self.layers.values().map(|layer| layer.size).sum())
    }

    /// Notes how far the run is at `now`.
    fn sample(&mut self, now: Instant) {
        self.samples.push_back((now, self.total().0));
        while self.samples.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Returns the bytes per second within [`WINDOW`]; `None` if nothing was measured yet.
    fn rate(&self) -> Option<f64> {
        let ((first, from), (last, to)) = (self.samples.front()?, self.samples.back()?);
        let seconds = last.duration_since(*first).as_secs_f64();
        (seconds > 0.0).then(|| to.saturating_sub(*from) as f64 / seconds)
    }
}

impl ImageState {
    fn amount(&self) -> String {
        let plural = if self.layers == 1 { "" } else { "s" };
        format!("{} layer{plural}, {}", self.layers, human(self.bytes))
    }
}

/// Returns the lines that show `state` on a terminal of this size. No line is wider than `columns`, and there are fewer than
/// `rows`.
fn render(state: &State, columns: usize, rows: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for (at, image) in state.images.iter().enumerate().filter(|(_, image)| image.is_started) {
        if image.finished == image.layers {
            continue;
        }
        let count = format!("{} of {} layers", image.finished, image.layers);
        let room = columns.saturating_sub(count.len() + 1);
        lines.push(format!("{:room$} {count}", shorten(&printable(&image.item), room)));
        let in_flight = state.layers.values().filter(|layer| layer.image == at && layer.phase == Phase::InFlight);
        lines.extend(in_flight.map(|layer| layer_line(layer, columns)));
    }
    let (done, size) = state.total();
    if lines.is_empty() || size == 0 {
        return Vec::new();
    }
    // One row for the total, and one for the cursor.
    let most = rows.saturating_sub(2).max(1);
    if lines.len() > most {
        let hidden = lines.len() - (most - 1);
        lines.truncate(most - 1);
        lines.push(format!("... and {hidden} more"));
    }
    let rate = state.rate();
    let rate_text = rate.map_or_else(|| "-".to_owned(), |rate| format!("{}/s", human(rate as u64)));
    let left = rate.filter(|rate| *rate >= 1.0).map(|rate| duration(size.saturating_sub(done) as f64 / rate));
    let text = format!("{} / {}  {rate_text}  {}", human(done), human(size), left.as_deref().unwrap_or("-"));
    lines.push(if columns < COLUMNS_FOR_TOTAL_BAR { text } else { with_bar("total", done, size, &text, columns) });
    lines.iter_mut().for_each(|line| *line = line.chars().take(columns).collect());
    lines
}

fn layer_line(layer: &LayerState, columns: usize) -> String {
    let done = layer.done.load(Ordering::Relaxed);
    let name = format!("  {}", &layer.digest.hex()[..DIGITS]);
    with_bar(&name, done, layer.size, &format!("{} / {}", human(done), human(layer.size)), columns)
}

/// Returns `NAME [===>   ] TEXT` in exactly `columns` columns, if there is room for a bar.
fn with_bar(name: &str, done: u64, size: u64, text: &str, columns: usize) -> String {
    // Sizes change their length as they grow: the bar's end shall not dance.
    const TEXT_MIN: usize = 17;
    let text_len = text.len().max(TEXT_MIN);
    let width = columns.saturating_sub(name.len() + " [".len() + "] ".len() + text_len);
    let filled = if size == 0 { 0 } else { (done.min(size) as f64 / size as f64 * width as f64) as usize };
    let head = if filled > 0 && filled < width { ">" } else { "" };
    let body = "=".repeat(filled - head.len());
    format!("{name} [{:width$}] {text:>text_len$}", format!("{body}{head}"))
}

/// Returns `text` in at most `room` characters: the middle is left out, since images differ in their ends.
fn shorten(text: &str, room: usize) -> String {
    const GAP: &str = "...";
    let length = text.chars().count();
    if length <= room {
        return text.to_owned();
    }
    let kept = room.saturating_sub(GAP.len());
    let head = kept / 3;
    let mut short: String = text.chars().take(head).collect();
    short += &GAP[..GAP.len().min(room)];
    short.extend(text.chars().skip(length - (kept - head)));
    short
}

/// Returns a time to wait, for people: two digits at most and a unit.
fn duration(seconds: f64) -> String {
    match seconds.ceil() as u64 {
        seconds @ 0..=99 => format!("{seconds} s"),
        seconds @ 100..=5_999 => format!("{} min", seconds.div_ceil(60)),
        seconds @ 6_000..=356_400 => format!("{} h", seconds.div_ceil(3_600)),
        _ => "days".to_owned(),
    }
}

impl Progress for Bars {
    fn cached(&self, layer: &StoreLayer) {
        tracing::info!("layer {} is in the cache", layer.id);
    }

    fn queued(&self, layer: &StoreLayer, item: &str, is_remote: bool) {
        if let Some(mut state) = self.state() {
            state.queue(layer, item, is_remote);
        }
    }

    fn begin(&self, layer: &StoreLayer, item: &str) -> Advance {
        let descriptor = &layer.layer.descriptor;
        tracing::info!("fetching layer {} ({} bytes) of {item}", descriptor.digest, descriptor.size);
        let begun = self.state().and_then(|mut state| state.begin(&layer.id));
        let Some((done, line)) = begun else { return Box::new(|_| {}) };
        let draws = self.screen.lock().is_ok_and(|drawing| drawing.is_some());
        // The bars show it, too.
        if let Some(line) = line.filter(|_| !draws) {
            self.printer.say(&line);
        }
        Box::new(move |bytes| {
            done.fetch_add(bytes, Ordering::Relaxed);
        })
    }

    fn end(&self, layer: &StoreLayer) {
        let line = self.state().and_then(|mut state| state.end(&layer.id));
        if let Some(line) = line {
            self.printer.say(&line);
        }
    }

    fn note(&self, text: &str) {
        self.printer.warn(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds an image whose layers have these sizes, of which so many bytes have come; `None` for a layer that is queued.
    fn add(state: &mut State, item: &str, layers: &[(u64, Option<u64>)]) {
        let at = state.image(item, true);
        for (number, (size, done)) in layers.iter().enumerate() {
            let digest = Digest::of(format!("{item} {number}").as_bytes());
            let phase = match done {
                None => Phase::Queued,
                Some(done) if done == size => Phase::Finished,
                Some(_) => Phase::InFlight,
            };
            let done = Arc::new(AtomicU64::new(done.unwrap_or(0)));
            let layer = LayerState { image: at, digest, size: *size, phase, done };
            let image = &mut state.images[at];
            image.layers += 1;
            image.bytes += size;
            image.finished += usize::from(phase == Phase::Finished);
            image.is_started |= phase != Phase::Queued;
            state.layers.insert(digest, layer);
        }
    }

    fn two_images() -> State {
        let mut state = State::default();
        add(&mut state, "docker.io/library/alpine:3.20", &[(9_300_000, Some(1_200_000)), (40_000_000, None)]);
        let name = "registry.example.org/team/product/a-rather-long-name-for-an-image/server:v1.2.3@sha256:0123";
        add(&mut state, name, &[(1_000, Some(1_000)), (999_900_000, Some(123_400_000)), (5, Some(0))]);
        state
    }

    #[test]
    fn lines_fit_every_width_and_show_every_layer_in_flight() {
        for columns in 1..=300 {
            let lines = render(&two_images(), columns, ROWS);
            assert_eq!(lines.len(), 6, "{lines:#?}");
            for line in &lines {
                assert!(line.chars().count() <= columns, "{columns}: {line:?}");
            }
            if columns >= 40 {
                // Names keep their ends, bars have room, and counts are complete.
                assert!(lines[0].ends_with("0 of 2 layers") && lines[2].ends_with("1 of 3 layers"), "{lines:#?}");
                assert!(lines[1].contains('[') && lines[1].ends_with("1.20 MB / 9.30 MB"), "{lines:#?}");
                assert!(lines[2].starts_with("regi") && (columns > 100 || lines[2].contains("...")), "{lines:#?}");
                assert!(lines[5].contains("125 MB / 1.05 GB"), "{lines:#?}");
            }
        }
    }

    #[test]
    fn lines_fit_every_height() {
        for rows in 0..12 {
            let lines = render(&two_images(), 80, rows);
            assert!(lines.len() < rows.max(3), "{rows}: {lines:#?}");
            assert!(lines.last().unwrap().starts_with("total "), "{lines:#?}");
        }
    }

    #[test]
    fn rate_and_time_come_from_the_last_seconds() {
        let mut state = State::default();
        add(&mut state, "app", &[(100_000_000, Some(0))]);
        let start = Instant::now();
        let advance = |state: &mut State, seconds: f64, bytes: u64| {
            state.layers.values().for_each(|layer| layer.done.store(bytes, Ordering::Relaxed));
            state.sample(start + Duration::from_secs_f64(seconds));
        };
        advance(&mut state, 0.0, 0);
        assert!(render(&state, 80, ROWS)[2].ends_with("0 B / 100 MB  -  -"));
        advance(&mut state, 2.0, 20_000_000);
        assert!(render(&state, 80, ROWS)[2].ends_with("20.0 MB / 100 MB  10.0 MB/s  8 s"));
        // A stall shows within the window.
        (1..=60).for_each(|tenths| advance(&mut state, 2.0 + f64::from(tenths) / 10.0, 20_000_000));
        assert!(render(&state, 80, ROWS)[2].ends_with("20.0 MB / 100 MB  0 B/s  -"), "{:#?}", render(&state, 80, ROWS));
    }

    #[test]
    fn layer_that_begins_again_counts_once() {
        let mut state = State::default();
        add(&mut state, "app", &[(100, Some(100)), (100, Some(40))]);
        let ids: Vec<_> = state.layers.iter().map(|(id, layer)| (*id, layer.phase)).collect();
        let finished = ids.iter().find(|(_, phase)| *phase == Phase::Finished).unwrap().0;
        let (done, line) = state.begin(&finished).unwrap();
        assert_eq!((done.load(Ordering::Relaxed), line, state.images[0].finished), (0, None, 0));
        assert_eq!(state.end(&finished), None);
        assert_eq!(state.end(&finished), None, "it has ended already");
        let other = ids.iter().find(|(_, phase)| *phase == Phase::InFlight).unwrap().0;
        assert_eq!(state.end(&other).unwrap(), "fetched app: 2 layers, 200 B");
        assert_eq!(render(&state, 80, ROWS), Vec::<String>::new());
    }

    #[test]
    fn times_have_two_digits_and_a_unit() {
        let table =
            [(0.0, "0 s"), (0.2, "1 s"), (99.0, "99 s"), (100.0, "2 min"), (5999.0, "100 min"), (6000.0, "2 h")];
        for (seconds, text) in table {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!((duration(1e9), duration(f64::INFINITY)), ("days".to_owned(), "days".to_owned()));
    }
}
