//! `prepull why`.

use std::fmt::Write as _;

use super::args::WhyArgs;
use super::common::input;
use super::output::{self, Printer, human, printable};
use super::{Exit, Failure, readable, unreadable};
use crate::inspect::contents::Contents;
use crate::inspect::machine::Origin;
use crate::inspect::why::{self, Fits, FoundBy, Kind, Pinned, Role, StoreInfo, Verdict, Why};
use crate::verify::rule::Fate;
use crate::verify::verify_image;

/// Runs it. The answer is on standard output, also when it is that there is no such image.
pub fn run(args: &WhyArgs, printer: &Printer) -> Result<Exit, Failure> {
    let shown = input(&args.path)?;
    let contents = Contents::without_trees(&args.path).map_err(|error| unreadable(&shown, error))?;
    let stores = contents.stores();
    let config = contents.config().map_err(|error| unreadable(&shown, anyhow::anyhow!("{error}")))?;
    readable(&shown, stores)?;
    let mut why = why::why(&args.name, stores, contents.files(), config).map_err(|error| match error {
        why::Error::Name(_) => Failure::usage(error),
        // A damaged store, not an unreadable input.
        why::Error::Record(_) => anyhow::anyhow!("{shown}: {error}: CRI-O does not start, or lists no image").into(),
        error => unreadable(&shown, error),
    })?;
    judge(&contents, &mut why);
    contents.failure().map_or(Ok(()), |error| Err(unreadable(&shown, error)))?;
    if args.json {
        output::json(&why)?;
    } else if !printer.is_quiet() {
        output::data(&text(&why))?;
    }
    Ok(match why.verdict {
        Verdict::Usable => Exit::Success,
        Verdict::Pulls | Verdict::Broken | Verdict::IdOnly => Exit::Failure,
        Verdict::NotFound | Verdict::Invalid => Exit::Usage,
    })
}

/// Adds what `verify` finds wrong with the image, its layers, and the stores that CRI-O reads.
fn judge(contents: &Contents, why: &mut Why) {
    let number = |path: &str, driver: &str| {
        contents.stores().iter().position(|found| found.graphroot == path && found.driver == driver)
    };
    let used = why.stores.iter().filter(|store| store.role != Role::Unused);
    let used: Vec<(usize, bool)> = used
        .filter_map(|store| Some((number(&store.graphroot, &store.driver)?, store.role == Role::Additional)))
        .collect();
    let image = why.image.as_ref().and_then(|image| {
        let (at, _) = used.iter().find(|(at, _)| contents.stores()[*at].graphroot == image.store)?;
        Some((*at, &image.id[..]))
    });
    let (mut problems, mut notes) = (Vec::new(), Vec::new());
    for finding in verify_image(contents, &used, image) {
        let line = format!("{}: {}: {}", finding.place, finding.what, finding.then);
        if finding.start < Fate::WrongContent || finding.orphan {
            notes.push(line);
        } else {
            problems.push(line);
        }
    }
    why.add(problems, notes);
}

/// The verdict, and below it the steps.
fn text(why: &Why) -> String {
    let mut rows: Vec<(&str, String)> = vec![("name", name(why))];
    rows.extend(why.stores.iter().map(|info| ("store", store(info))));
    if let Some(image) = &why.image {
        let by = match image.found_by {
            FoundBy::Id => "id",
            FoundBy::Name => "name",
            FoundBy::Digest => "repository and digest",
        };
        let resolved = image.resolved.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
        rows.push(("found", format!("in /{}, by its {by}{resolved}", image.store)));
        let platform = image.platform.as_deref().unwrap_or("platform unknown");
        let size = image.size.map_or_else(|| "size unknown".to_owned(), human);
        rows.push(("image", format!("{}, {platform}, {size}", image.id)));
        rows.extend(image.names.iter().map(|name| ("called", name.clone())));
        rows.extend(
            image
                .lost_names
                .iter()
                .map(|name| ("not called", format!("{name}: a later image in images.json has that name"))),
        );
        rows.extend(image.repo_digests.iter().map(|name| ("digest", name.clone())));
        rows.extend(
            image.also_in.iter().map(|store| ("also in", format!("/{store}; the first store that has it is used"))),
        );
    } else {
        rows.push(("found", "nothing".into()));
    }
    rows.extend(
        why.suggestions.iter().map(|near| ("near", format!("{} in /{} ({})", near.name, near.store, near.reason))),
    );
    rows.extend(why.pinned.iter().map(|pin| ("pinned", pinned(pin))));
    rows.push(("pause", pause(why)));
    if let Some(pull) = &why.pull {
        let reason = match (pull.policy, why.image.is_some()) {
            ("Always", _) => "the default for :latest and for no tag; the kubelet asks the registry every time",
            (_, true) => "the default for any other tag and for digests; the kubelet does not ask the registry",
            (_, false) => "the default for any other tag and for digests; it is not there, so it is pulled",
        };
        let never = match (pull.policy, why.image.is_some()) {
            ("Always", true) => " (imagePullPolicy: IfNotPresent or Never does without)",
            _ => "",
        };
        rows.push(("pull", format!("{}: {reason}{never}", pull.policy)));
    }
    rows.extend(why.problems.iter().map(|problem| ("problem", problem.clone())));
    rows.extend(why.notes.iter().map(|note| ("note", note.clone())));
    let shown = match &why.image {
        Some(image) => image.resolved.as_ref().unwrap_or(&why.name),
        None => &why.name,
    };
    let mut text = format!("{}\n", printable(&format!("{shown}: {}", why.summary)));
    let mut last = "";
    for (label, row) in &rows {
        let label = if std::mem::replace(&mut last, label) == *label { "" } else { label };
        let _ = writeln!(text, "  {label:10} {}", printable(row));
    }
    text
}

fn at(origin: Option<&Origin>) -> String {
    origin.map(|origin| format!(" ({origin})")).unwrap_or_default()
}

fn name(why: &Why) -> String {
    let lookup = &why.lookup;
    let tried: Vec<String> =
        lookup.candidates.iter().map(|to| format!("{}{}", to.name, at(to.origin.as_ref()))).collect();
    match (lookup.kind, &lookup.error) {
        (Kind::Id, _) => "an image id".into(),
        (Kind::IdPrefix, _) => "the beginning of an image id".into(),
        (Kind::Full, _) if tried == [why.name.as_str()] => "a full name".into(),
        (Kind::Full, _) if lookup.normalized.as_deref() == lookup.candidates.first().map(|to| &*to.name) => {
            format!("{} in full", tried.concat())
        }
        (Kind::Full, _) => format!("{} in full: beside a digest, the tag does not count", tried.concat()),
        (Kind::Short, Some(error)) => {
            let normalized = lookup.normalized.as_ref().map(|name| format!(" (docker would take {name})"));
            format!("{error}{}", normalized.unwrap_or_default())
        }
        (Kind::Short, None) => format!("a short name: CRI-O takes {}", tried.join(", else ")),
        (Kind::Invalid, error) => {
            format!(
                "no name: {} (kubelet: InvalidImageName; CRI-O: cannot parse input)",
                error.as_deref().unwrap_or("it is empty")
            )
        }
    }
}

fn store(info: &StoreInfo) -> String {
    let role = match info.role {
        Role::Imagestore => "imagestore",
        Role::Primary => "primary",
        Role::Additional => "additional",
        Role::Unused => "not read by CRI-O",
    };
    let plural = if info.images == 1 { "" } else { "s" };
    format!("/{}: {role}, {} image{plural}{}", info.graphroot, info.images, at(info.origin.as_ref()))
}

fn pinned(pin: &Pinned) -> String {
    let Some(by) = &pin.by else {
        return "no: the kubelet's garbage collection and `crictl rmi --prune` may remove it when no container uses it"
            .into();
    };
    let what = if by.pause { "as the pause_image" } else { "by pinned_images" };
    let fits = match by.fits {
        Fits::Exactly => String::new(),
        Fits::Anywhere => format!(", which fits {}", by.name),
    };
    format!(
        "{what} {}{fits}{}: garbage collection leaves it alone (CRI-O 1.28 and newer)",
        by.pattern,
        at(by.origin.as_ref())
    )
}

fn pause(why: &Why) -> String {
    let pause = &why.pause;
    let this = if pause.is_pause_image { "this is it; " } else { "" };
    let there = |present| if present { "is there" } else { "is not there: every pod pulls it" };
    if let (Some(set), [image]) = (&pause.configured, &pause.wanted[..]) {
        return format!("{this}pause_image {} ({}) {}", image.name, set.origin, there(image.present));
    }
    // As a table would say it: from which version on which name.
    let wanted = pause.wanted.iter().map(|image| {
        let present = if image.present { ", there" } else { "" };
        format!("{} from {} on{present}", image.name, image.since.unwrap_or_default())
    });
    let none =
        if pause.wanted.iter().any(|image| image.present) { "" } else { ", and it is not there: every pod pulls it" };
    format!("{this}no pause_image is set, so CRI-O takes its own{none} ({})", wanted.collect::<Vec<_>>().join("; "))
}
