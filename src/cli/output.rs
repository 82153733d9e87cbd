//! The one place that prints. Data go to standard output, messages to standard error.
//!
//! A message is one line: what was being done to what, the cause, and in brackets what to do about it; no full stop. Hidden
//! characters ([`crate::text`]) are escaped here, whichever command prints, in text as in JSON.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, Serializer};

pub use crate::text::{human, printable};

/// Several independent errors of one command.
#[derive(Debug, thiserror::Error)]
#[error("{total}")]
pub struct Several {
    /// The errors, in the order in which they are printed.
    pub errors: Vec<anyhow::Error>,
    /// The last line: how many of how many.
    pub total: String,
}

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
        let text = String::from_utf8_lossy(bytes);
        self.0.above(|| text.lines().for_each(|text| line(&mut io::stderr(), text)));
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

    /// Prints what was done, unless `--quiet`. Lines of a table stay lines; cells and names in it must be printable already.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            text.lines().for_each(|text| self.line(text));
        }
    }

    /// Prints a warning.
    pub fn warn(&self, text: &str) {
        self.line(&format!("prepull: warning: {text}"));
    }

    /// Prints several warnings.
    pub fn warn_all(&self, texts: &[String]) {
        texts.iter().for_each(|text| self.warn(text));
    }

    /// Prints why a command failed: one line, or one for each of several errors and a total.
    pub fn error(&self, error: &anyhow::Error) {
        if let Some(several) = error.downcast_ref::<Several>() {
            several.errors.iter().for_each(|error| self.error(error));
            self.line(&format!("prepull: {}", several.total));
            return;
        }
        let text = format!("{error:#}");
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

/// Writes lines for people to standard output. Cells and names in them must be printable already.
///
/// # Errors
/// When standard output is closed or full.
pub fn data(text: &str) -> io::Result<()> {
    let lines: String = text.lines().map(|line| printable(line) + "\n").collect();
    bytes(lines.as_bytes())
}

/// Writes `value` as one line of JSON to standard output.
///
/// # Errors
/// When standard output is closed or full.
pub fn json(value: &impl Serialize) -> io::Result<()> {
    bytes(format!("{}\n", to_json(value)?).as_bytes())
}

/// Writes `value` as one line of JSON to standard error, for a command whose standard output is a tar.
///
/// # Errors
/// When `value` has no form in JSON.
pub fn json_aside(value: &impl Serialize) -> io::Result<()> {
    line(&mut io::stderr(), &to_json(value)?);
    Ok(())
}

/// Writes `bytes` to standard output as they are: completions and other text of prepull itself.
///
/// # Errors
/// When standard output is closed or full.
pub fn bytes(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    written.map_err(|error| io::Error::new(error.kind(), format!("writing standard output: {error}")))
}

/// Returns `value` as JSON in which hidden characters are escaped as `\uXXXX`.
fn to_json(value: &impl Serialize) -> serde_json::Result<String> {
    let mut out = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut out, Printable))?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

struct Printable;

impl Formatter for Printable {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(crate::text::is_hidden) {
            let (plain, hidden) = rest.split_at(at);
            CompactFormatter.write_string_fragment(writer, plain)?;
            let mut chars = hidden.chars();
            for unit in chars.next().into_iter().flat_map(|char| char.encode_utf16(&mut [0; 2]).to_vec()) {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = chars.as_str();
        }
        CompactFormatter.write_string_fragment(writer, rest)
    }
}

fn line(out: &mut dyn Write, text: &str) {
    // If standard error is closed, no other place is left to report that.
    let _ = writeln!(out, "{}", printable(text));
}

/// Returns rows of cells as aligned columns, with hidden characters escaped.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let rows: Vec<_> = rows.iter().map(|row| row.each_ref().map(|cell| printable(cell))).collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_characters_in_json_are_escaped_and_keep_their_value() {
        let text = "\u{0}\n\"\\\u{7f}\u{85}\u{9b}\u{200b}\u{2028}\u{202e}\u{feff}\u{e0041}\u{10fffd} é日😀";
        let json = to_json(&[text]).unwrap();
        assert_eq!(serde_json::from_str::<[String; 1]>(&json).unwrap()[0], text);
        assert!(json.chars().all(|char| !crate::text::is_hidden(char)), "{json}");
        assert!(json.contains(r"\u202e") && json.contains(r"\udb40\udc41") && json.ends_with(" é日😀\"]"), "{json}");
    }

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (43_054, "43.1 kB"),
            (999_499, "999 kB"),
            (999_500, "1.00 MB"),
            (1 << 30, "1.07 GB"),
            (5_000_000_000_000, "5.00 TB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
