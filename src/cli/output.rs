//! The one place that prints.
//!
//! Style: what was being done to what; no full stop; what to do about it in brackets; one line.

use std::io::{self, Write};

/// Says things on standard error.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    quiet: bool,
}

impl Printer {
    /// `quiet`: only errors and warnings.
    pub fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// Whether only errors and warnings are wanted.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Something nice to know.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            line(&mut io::stderr(), text);
        }
    }

    /// Something that may surprise later.
    pub fn warn(&self, text: &str) {
        line(&mut io::stderr(), &format!("prepull: warning: {}", printable(text)));
    }

    /// Several such things.
    pub fn warn_all(&self, texts: &[String]) {
        texts.iter().for_each(|text| self.warn(text));
    }

    /// Why it did not work.
    pub fn error(&self, error: &anyhow::Error) {
        let text = printable(&format!("{error:#}"));
        let hint = limit_hint(&text).map(|hint| format!(" ({hint})")).unwrap_or_default();
        line(&mut io::stderr(), &format!("prepull: {text}{hint}"));
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

/// The last word of an interrupted process.
pub fn interrupted() {
    line(&mut io::stderr(), "prepull: interrupted");
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
