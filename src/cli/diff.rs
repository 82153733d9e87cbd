//! `prepull diff`.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::args::DiffArgs;
use super::common::input;
use super::output::{self, Printer, human, printable};
use super::{Exit, Failure, readable, unreadable};
use crate::inspect::contents::Contents;
use crate::inspect::diff::{Change, ConfigChange, Diff, FileChange, ImageChange, diff, same};
use crate::inspect::find;

/// How many files of one kind are shown to people, unless they ask for all.
const SHOWN: usize = 10;
/// How much of a config's value is shown to people, in characters.
const VALUE_SHOWN: usize = 60;

/// The inputs as files.
struct Bytes {
    old: u64,
    new: u64,
    same: bool,
}

/// Runs it. As diff(1): 0 for the same, 1 for a difference, 2 for trouble.
pub fn run(args: &DiffArgs, printer: &Printer) -> Result<Exit, Failure> {
    compare(args, printer).map_err(|failure| Failure { exit: Exit::Usage, ..failure })
}

fn compare(args: &DiffArgs, printer: &Printer) -> Result<Exit, Failure> {
    input(&args.old)?;
    input(&args.new)?;
    // Two rootless stores can be compared from outside; one of them and another store would differ in all owners.
    let rootless = |path: &Path| find::rootless_owner(path).ok().flatten();
    if rootless(&args.old).is_some() != rootless(&args.new).is_some() {
        for path in [&args.old, &args.new] {
            find::refuse_rootless(path, "diff").map_err(|error| unreadable(&path.display().to_string(), error))?;
        }
    }
    let bytes = bytes(&args.old, &args.new)?;
    let (old, new) = (open(&args.old)?, open(&args.new)?);
    let diff = diff(&old, &new)?;
    let is_same = diff.is_empty() && bytes.as_ref().is_none_or(|bytes| bytes.same);
    if args.json {
        let mut value = serde_json::to_value(&diff)?;
        value["same"] = json!(is_same);
        value["inputs"] =
            bytes.map_or(Value::Null, |bytes| json!({"oldSize": bytes.old, "newSize": bytes.new, "same": bytes.same}));
        output::json(&value)?;
    } else if !printer.is_quiet() {
        output::data(&text(&diff, bytes.as_ref(), if args.all { usize::MAX } else { SHOWN }))?;
    }
    Ok(if is_same { Exit::Success } else { Exit::Failure })
}

fn open(path: &Path) -> Result<Contents, Failure> {
    let shown = path.display().to_string();
    let contents = Contents::of(path).map_err(|error| unreadable(&shown, error))?;
    readable(&shown, contents.stores())?;
    Ok(contents)
}

/// Compares two files as they are; nothing where one is a directory or a pipe.
fn bytes(old: &Path, new: &Path) -> Result<Option<Bytes>, Failure> {
    let is_file =
        |path: &Path| -> std::io::Result<bool> { Ok(path != Path::new("-") && fs_err::metadata(path)?.is_file()) };
    if !is_file(old)? || !is_file(new)? {
        return Ok(None);
    }
    let (mut a, mut b) = (fs_err::File::open(old)?, fs_err::File::open(new)?);
    let (old, new) = (a.metadata()?.len(), b.metadata()?.len());
    Ok(Some(Bytes { old, new, same: old == new && same(&mut a, &mut b)? }))
}

fn text(diff: &Diff, bytes: Option<&Bytes>, shown: usize) -> String {
    let mut text = String::new();
    match bytes {
        Some(Bytes { same: true, old, .. }) => {
            let _ = writeln!(text, "the same {}", human(*old));
        }
        Some(Bytes { old, new, .. }) => {
            let _ = writeln!(text, "bytes: {old} -> {new}");
        }
        None => {}
    }
    let (added, removed) = (diff.layers_added.len(), diff.layers_removed.len());
    let _ = writeln!(text, "images: {} the same, {} not", diff.images_same, diff.images.len());
    for image in &diff.images {
        image_text(&mut text, image, shown);
    }
    let _ = writeln!(text, "layers: {} in both, {removed} removed, {added} added", diff.layers_same);
    if !diff.layer_files.is_empty() {
        let _ = writeln!(text, "layers in both, in which files differ (see `prepull verify`):");
        files(&mut text, &diff.layer_files, shown);
    }
    if !diff.others.is_empty() {
        let _ = writeln!(text, "other files:");
        files(&mut text, &diff.others, shown);
    }
    text
}

fn image_text(text: &mut String, image: &ImageChange, shown: usize) {
    let short = |id: &Option<String>| id.as_ref().map_or_else(String::new, |id| id.chars().take(13).collect());
    let _ = write!(text, "{} {}", mark(image.change), printable(&image.names.join(", ")));
    if image.change != Change::Changed {
        let id = short(&image.new_id) + &short(&image.old_id);
        let _ = writeln!(text, " ({})", printable(&id));
        return;
    }
    let _ = writeln!(text, " ({} -> {})", printable(&short(&image.old_id)), printable(&short(&image.new_id)));
    let _ = writeln!(
        text,
        "    layers: {} the same, {} removed, {} added",
        image.layers_same, image.layers_removed, image.layers_added
    );
    for ConfigChange { field, old, new } in &image.config {
        let value = |value: &Value| {
            let text = value.to_string();
            let cut: String = text.chars().take(VALUE_SHOWN).collect();
            printable(&if cut.len() < text.len() { cut + "..." } else { cut })
        };
        let _ = writeln!(text, "    config: {}: {} -> {}", printable(field), value(old), value(new));
    }
    let count = |change| image.files.iter().filter(|file| file.change == change).count();
    let grown = image.files.iter().map(|file| i128::from(file.new_size) - i128::from(file.old_size)).sum::<i128>();
    let sign = if grown < 0 { "-" } else { "+" };
    let _ = writeln!(
        text,
        "    files: {} added, {} removed, {} changed ({sign}{}), of {} the time only",
        count(Change::Added),
        count(Change::Removed),
        count(Change::Changed),
        human(u64::try_from(grown.unsigned_abs()).unwrap_or(u64::MAX)),
        image.times
    );
    files(text, &image.files, shown);
}

fn files(text: &mut String, files: &[FileChange], shown: usize) {
    for file in files.iter().take(shown) {
        let path = printable(&String::from_utf8_lossy(&file.path));
        let _ = writeln!(text, "    {} /{path}: {}", mark(file.change), printable(&file.what.join(", ")));
    }
    if files.len() > shown {
        let _ = writeln!(text, "    and {} more (--all shows them)", files.len() - shown);
    }
}

fn mark(change: Change) -> char {
    match change {
        Change::Added => '+',
        Change::Removed => '-',
        Change::Changed => '~',
    }
}
