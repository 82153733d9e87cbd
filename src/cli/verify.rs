//! `prepull verify`.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::args::VerifyArgs;
use super::common::input;
use super::output::{self, Printer, human, printable};
use super::{Exit, Failure, unreadable};
use crate::storage::store::{StoreKind, Unpacker};
use crate::verify::report::{Group, Report};
use crate::verify::rule::{Fate, Rule, Severity};
use crate::verify::{Options, verify};

/// How many findings of one rule are shown to people.
const SHOWN: usize = 5;

/// Runs it.
pub fn run(args: &VerifyArgs, printer: &Printer) -> Result<Exit, Failure> {
    if args.rules {
        output::data(&rules())?;
        return Ok(Exit::Success);
    }
    let path = args.path.as_deref().unwrap_or(Path::new("-"));
    let shown = input(path)?;
    let options = Options {
        unpacker: args.unpacker.map(Unpacker::from),
        additional: args.store.map(|store| StoreKind::from(store) == StoreKind::Additional),
    };
    let report = verify(path, &options).map_err(|error| unreadable(&shown, error))?;
    if args.json {
        output::json(&json(&report))?;
    } else if !printer.is_quiet() {
        output::data(&text(&report, &printable(&shown)))?;
    }
    let good = report.is_good() && !(args.strict && report.count(Severity::Warning) > 0);
    Ok(if good { Exit::Success } else { Exit::Failure })
}

fn text(report: &Report, shown: &str) -> String {
    let mut text = String::new();
    for store in &report.stores {
        let kind = if store.additional { "additional store" } else { "store" };
        let _ = writeln!(
            text,
            "{shown}: {kind} /{}: {}, {} ({} verified), {}, {}",
            printable(&store.graphroot),
            counted(store.images, "image"),
            counted(store.layers, "layer"),
            store.replayed,
            counted(store.entries, "file"),
            human(store.bytes)
        );
    }
    for (rule, severity, group) in report.groups() {
        finding(&mut text, rule, severity, group);
    }
    let (start, crash) = report.fate();
    let (errors, warnings) = (report.count(Severity::Error), report.count(Severity::Warning));
    let is_empty = !report.stores.is_empty() && report.stores.iter().all(|store| store.images == 0);
    let verdict = match (errors, warnings) {
        (0, 0) if is_empty => "good: a store without images".to_owned(),
        (0, _) if is_empty => format!("good, with {}: a store without images", counted(warnings, "warning")),
        (0, 0) => "good: every file is as its image says, and CRI-O keeps the images".to_owned(),
        (0, _) => format!("good, with {}: CRI-O keeps the images", counted(warnings, "warning")),
        _ => {
            let warnings = if warnings == 0 { String::new() } else { format!(" and {}", counted(warnings, "warning")) };
            let crash = if crash == start { String::new() } else { format!("; after a power cut, {}", outcome(crash)) };
            // Where the input is not a whole machine, it does not say which stores there are.
            let mut broken = report.groups().filter(|(_, severity, _)| *severity == Severity::Error);
            let is_elsewhere = broken.all(|(rule, ..)| matches!(rule, Rule::ImageLayer | Rule::LayerParent));
            let unless = if is_elsewhere { ", unless an additional store has the layers" } else { "" };
            format!("{}{warnings}: {}{unless}{crash}", counted(errors, "error"), outcome(start))
        }
    };
    let _ = writeln!(text, "{shown}: {verdict}");
    text
}

fn finding(text: &mut String, rule: Rule, severity: Severity, group: &Group) {
    let info = rule.info();
    let label = label(severity);
    for finding in group.first.iter().take(SHOWN) {
        let _ = writeln!(text, "{label}: {}: {} [{}]", printable(&finding.place), printable(&finding.what), info.name);
    }
    if group.count > SHOWN {
        let _ = writeln!(text, "{label}: and {} more [{}]", group.count - SHOWN, info.name);
    }
    let _ = writeln!(text, "    then: {}\n    do:   {}", info.then, info.remedy);
}

fn label(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "note",
    }
}

/// What CRI-O does, as the end of a sentence.
fn outcome(fate: Fate) -> &'static str {
    match fate {
        Fate::Kept | Fate::Healed => "CRI-O keeps the images",
        Fate::Removed => "CRI-O removes what nothing refers to",
        Fate::WrongContent => "containers see other files than the image has",
        Fate::PodFails => "pods fail, or pull",
        Fate::Unseen => "CRI-O does not see the images",
        Fate::ListFails => "CRI-O cannot list any image",
        Fate::NoStart => "CRI-O does not start",
        Fate::ImageDeleted => "CRI-O deletes images",
        Fate::StoreWiped => "CRI-O deletes the whole store",
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Returns the report as docs/json.md describes it.
fn json(report: &Report) -> Value {
    let stores: Vec<_> = report
        .stores
        .iter()
        .map(|store| {
            json!({
                "graphroot": format!("/{}", store.graphroot),
                "additional": store.additional,
                "images": store.images,
                "layers": store.layers,
                "verifiedLayers": store.replayed,
                "files": store.entries,
                "size": store.bytes,
            })
        })
        .collect();
    let findings: Vec<_> = report
        .groups()
        .map(|(rule, severity, group)| {
            let info = rule.info();
            let places: Vec<_> =
                group.first.iter().map(|finding| json!({"place": finding.place, "what": finding.what})).collect();
            json!({
                "rule": info.name,
                "severity": severity,
                "count": group.count,
                "places": places,
                "then": info.then,
                "do": info.remedy,
                "start": info.start,
                "afterPowerCut": info.crash,
            })
        })
        .collect();
    let (start, crash) = report.fate();
    json!({
        "good": report.is_good(),
        "errors": report.count(Severity::Error),
        "warnings": report.count(Severity::Warning),
        "notes": report.count(Severity::Note),
        "start": start,
        "afterPowerCut": crash,
        "stores": stores,
        "findings": findings,
    })
}

fn rules() -> String {
    let row = |rule: &Rule| {
        let info = rule.info();
        [info.name.to_owned(), label(info.primary).to_owned(), label(info.additional).to_owned(), info.then.to_owned()]
    };
    let head = ["RULE", "OWN STORE", "ADDITIONAL", "WHAT HAPPENS WHEN IT IS BROKEN"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head).chain(Rule::ALL.iter().map(row)).collect();
    output::table(&rows)
}
