//! The one place that prints.
//!
//! Style: what was being done to what; no full stop; what to do about it in brackets; one line.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use indicatif::ProgressBar;

/// Prints messages on standard error.
#[derive(Debug, Clone)]
pub struct Printer {
    quiet: bool,
    screen: Screen,
}

/// The lines of progress on the terminal, if any are drawn: all other output goes above them. Clones share these lines.
#[derive(Debug, Clone, Default)]
pub struct Screen(Arc<Mutex<Option<ProgressBar>>>);

impl Screen {
    /// Makes `bar` the lines that stay below all other output.
    pub fn show(&self, bar: ProgressBar) {
        self.swap(Some(bar));
    }

    /// Removes these lines.
    pub fn hide(&self) {
        if let Some(bar) = self.swap(None) {
            bar.finish_and_clear();
        }
    }

    /// Runs `write`, which writes to the terminal, while the lines are not there.
    pub fn above<R>(&self, write: impl FnOnce() -> R) -> R {
        let bar = self.0.lock().ok().and_then(|bar| bar.clone());
        match bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    fn swap(&self, bar: Option<ProgressBar>) -> Option<ProgressBar> {
        self.0.lock().ok().and_then(|mut place| std::mem::replace(&mut *place, bar))
    }
}

/// Writes to standard error, above the lines of progress. The log is written through it: one event at a time.
#[derive(Debug)]
pub struct Above(pub Screen);

impl Write for Above {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.above(|| io::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Printer {
    /// `quiet`: only errors and warnings.
    pub fn new(quiet: bool) -> Self {
        Self { quiet, screen: Screen::default() }
    }

    /// Returns the lines of progress that this printer's messages stay above.
    pub fn screen(&self) -> &Screen {
        &self.screen
    }

    fn line(&self, text: &str) {
        self.screen.above(|| line(&mut io::stderr(), text));
    }

    /// Whether only errors and warnings are wanted.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Something nice to know.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            self.line(text);
        }
    }

    /// Something that may surprise later.
    pub fn warn(&self, text: &str) {
        self.line(&format!("prepull: warning: {}", printable(text)));
    }

    /// Several such things.
    pub fn warn_all(&self, texts: &[String]) {
        texts.iter().for_each(|text| self.warn(text));
    }

    /// Why it did not work.
    pub fn error(&self, error: &anyhow::Error) {
        let text = printable(&format!("{error:#}"));
        let hint = limit_hint(&text).map(|hint| format!(" ({hint})")).unwrap_or_default();
        self.line(&format!("prepull: {text}{hint}"));
    }

    /// Prints the last line of an interrupted process.
    pub fn interrupted(&self) {
        self.screen.hide();
        self.line("prepull: interrupted");
    }
}

/// What to do when there are too many open files, wherever that happened: the system's number is in every error's text.
pub fn limit_hint(error: &str) -> Option<&'static str> {
    // EMFILE, ENFILE.
    if error.contains("(os error 24)") {
        Some("raise `ulimit -n`")
    } else if error.contains("(os error 23)") {
        Some("end other programs, or raise `sysctl fs.file-max`")
    } else if error.contains("starting a thread: ") {
        Some("end other programs, or raise `ulimit -u`")
    } else {
        None
    }
}

/// Writes data to standard error, where standard output is taken.
pub fn data_aside(text: &str) {
    line(&mut io::stderr(), text);
}

/// Writes data to standard output.
///
/// # Errors
/// When standard output is closed or full.
pub fn data(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| io::Error::new(error.kind(), format!("writing standard output: {error}")))
}

fn line(out: &mut dyn Write, text: &str) {
    // Nobody is left to be told that nobody listens.
    let _ = writeln!(out, "{text}");
}

/// Names come from strangers: no escape sequence of theirs reaches the terminal, and a message stays one line.
pub fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|char| {
            let escaped: Box<dyn Iterator<Item = char>> =
                if char.is_control() { Box::new(char.escape_default()) } else { Box::new(std::iter::once(char)) };
            escaped
        })
        .collect()
}

/// Bytes for people: `1.5 MB`, three digits, as docker and crictl count.
pub fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in ["kB", "MB", "GB", "TB"] {
        if value < 999.5 {
            break;
        }
        (value, unit) = (value / 1000.0, larger);
    }
    let decimals = if unit == "B" || value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.decimals$} {unit}")
}

/// Rows of cells as aligned columns.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        text += cells.join("   ").trim_end();
        text.push('\n');
    }
    text
}
