//! `prepull cache`.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::Failure;
use super::args::{CacheCommand, CacheCommandArgs, PruneArgs};
use super::make::cache_dir;
use super::output::{self, Printer, human};
use crate::go_types::utc;
use crate::segment::cache::{Cache, Item, Keep};

/// What `prune` leaves when nothing is said.
const MAX_SIZE: u64 = 10_000_000_000;

/// The result of `cache` and `cache prune`, as docs/json.md describes it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    directory: String,
    layers: usize,
    size: u64,
    shared_size: u64,
    oldest_use: Option<String>,
    newest_use: Option<String>,
    #[serde(flatten)]
    removed: Option<Removed>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Removed {
    removed_layers: usize,
    freed_size: u64,
}

/// Runs it.
pub fn run(args: &CacheCommandArgs, printer: &Printer) -> Result<(), Failure> {
    let directory = cache_dir(args.cache_dir.as_deref()).map_err(Failure::usage)?;
    let cache = Cache::at(&directory);
    let removed = match &args.command {
        None => None,
        Some(CacheCommand::Prune(prune)) => {
            let items = cache.prune(&keep(prune))?;
            let removed = Removed { removed_layers: segments(&items), freed_size: bytes(&items) - shared(&items) };
            printer.say(&format!("removed {} layer(s), {}", removed.removed_layers, human(removed.freed_size)));
            Some(removed)
        }
    };
    let items = cache.items()?;
    let used = |item: Option<&Item>| item.map(|item| utc(seconds(item.used)));
    let summary = Summary {
        directory: directory.display().to_string(),
        layers: segments(&items),
        size: bytes(&items),
        shared_size: shared(&items),
        oldest_use: used(items.first()),
        newest_use: used(items.last()),
        removed,
    };
    if args.json {
        output::json(&summary)?;
    } else if summary.removed.is_none() {
        output::data(&summary.table())?;
    }
    Ok(())
}

fn keep(args: &PruneArgs) -> Keep {
    if args.all {
        return Keep { max_bytes: 0, used_since: None };
    }
    let default = if args.older_than.is_some() { u64::MAX } else { MAX_SIZE };
    Keep {
        max_bytes: args.max_size.unwrap_or(default),
        used_since: args.older_than.and_then(|age| SystemTime::now().checked_sub(age)),
    }
}

fn segments(items: &[Item]) -> usize {
    items.iter().map(|item| item.segments).sum()
}

fn bytes(items: &[Item]) -> u64 {
    items.iter().map(|item| item.size).sum()
}

fn shared(items: &[Item]) -> u64 {
    items.iter().map(|item| item.shared).sum()
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or_default()
}

impl Summary {
    fn table(&self) -> String {
        let row = |key: &str, value: &str| [key.to_owned(), value.to_owned()];
        let mut rows = vec![
            row("Directory", &self.directory),
            row("Layers", &self.layers.to_string()),
            row("Size", &human(self.size)),
        ];
        if self.shared_size > 0 {
            rows.push(row("Shared", &format!("{} with tars that are still there", human(self.shared_size))));
        }
        if let (Some(oldest), Some(newest)) = (&self.oldest_use, &self.newest_use) {
            rows.extend([row("Oldest use", oldest), row("Newest use", newest)]);
        }
        output::table(&rows)
    }
}

/// `5G`, `500M`, `1.5GiB`: k, M, G, T are powers of 1000, Ki, Mi, Gi, Ti of 1024; a `B` may follow.
pub fn parse_size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 9] = [
        ("", 1),
        ("k", 1000),
        ("m", 1_000_000),
        ("g", 1_000_000_000),
        ("t", 1_000_000_000_000),
        ("ki", 1 << 10),
        ("mi", 1 << 20),
        ("gi", 1 << 30),
        ("ti", 1 << 40),
    ];
    let lower = text.to_ascii_lowercase();
    let (number, unit) = split(&lower);
    let unit = unit.strip_suffix('b').unwrap_or(unit);
    let scale = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale);
    scaled(number, scale).ok_or_else(|| "not a size such as 5G or 500M".to_owned())
}

/// `30d`, `12h`, `90m`, `45s`, `2w`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let scale = match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        "d" => Some(86400),
        "w" => Some(7 * 86400),
        _ => None,
    };
    let seconds = scaled(number, scale);
    seconds.map(Duration::from_secs).ok_or_else(|| "not a duration such as 30d, 12h or 90m".to_owned())
}

fn split(text: &str) -> (&str, &str) {
    let unit = text.find(|char: char| !char.is_ascii_digit() && char != '.').unwrap_or(text.len());
    (&text[..unit], text[unit..].trim_start())
}

fn scaled(number: &str, scale: Option<u64>) -> Option<u64> {
    let scale = scale?;
    match number.parse::<u64>() {
        Ok(number) => number.checked_mul(scale),
        Err(_) if number.contains('.') => {
            let product = number.parse::<f64>().ok()? * scale as f64;
            (product < 2f64.powi(63)).then_some(product as u64)
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, size) in [
            ("0", 0),
            ("500M", 500_000_000),
            ("5G", 5_000_000_000),
            ("5 GB", 5_000_000_000),
            ("1.5k", 1500),
            ("1KiB", 1024),
            ("2gi", 2 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for bad in ["", "G", "-1", "1X", "1.2.3G", "99999999999T", "9e9", "."] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, seconds) in [("45s", 45), ("90m", 5400), ("12h", 43200), ("30d", 2_592_000), ("1.5h", 5400)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "5", "d", "1y", "-1d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
