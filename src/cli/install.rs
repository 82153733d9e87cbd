//! `prepull install`, `rm` and `gc`: the store of a directory.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::anyhow;
use rustix::fs::FileType;
use rustix::io::Errno;
use serde::Serialize;

use super::args::{GcArgs, InstallArgs, RmArgs, TargetArgs, ViaArg};
use super::items::{all_items, plan_failure};
use super::make::{
    GRAPHROOT, STAMP_MAX, add_pause, beside, epoch, graphroot, make_failure, open_cache, source_options,
};
use super::output::{self, Printer};
use super::pins::{self, Pins};
use super::privilege::of_fetching;
use super::progress::Bars;
use super::{Begin, Exit, Failure};
use crate::confine::is_privileged;
use crate::digest::Digest;
use crate::go_types::utc;
use crate::helper::Answer;
use crate::inspect::dependents::{self, Dependents};
use crate::inspect::files::Files;
use crate::inspect::find;
use crate::inspect::list::list;
use crate::inspect::machine::{MachineConfig, is_place_of_additional, within};
use crate::inspect::root::Root;
use crate::inspect::stores::{Stores, User};
use crate::install::{Asked, Error, Request, Target, Way, applier, ask, probe};
use crate::make::{Error as MakeError, Lacking, Output, make};
use crate::plan::Plan;
use crate::reference::{Item, Reference};
use crate::sink::{self, TarStream};
use crate::storage::machine::Beside;
use crate::storage::store::{Settings, StoreKind, Unpacker, layers_of};

/// How often an install begins again when somebody removes layers that it counted on.
const ATTEMPTS: usize = 5;

/// Said when the second request failed.
const LEFT: &str = "what was taken out of the store could not be removed yet, and still takes its room (prepull gc)";

/// What makes CRI-O read `pinned_images` again (cri-o `pkg/config/reload.go`, ReloadPinnedImages).
const RELOAD: &str = "after `systemctl reload crio`";

/// Minimum number of digits of an id: with fewer it may be a name.
const ID_MIN: usize = 12;

/// Minimum number of digits of what a user may mean as an id, as for CRI-O (`internal/storage/image.go`, `minimumTruncatedIDLength`).
const SHORT_ID_MIN: usize = 3;

/// The result of `install`, as docs/json.md describes it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary<'a> {
    root: String,
    graphroot: &'a str,
    via: &'static str,
    images: Vec<ImageSummary>,
    layers_written: u64,
    layers_present: u64,
    names_added: u64,
    pinned: Vec<String>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ImageSummary {
    id: String,
    names: Vec<String>,
    is_new: bool,
}

/// The result of `rm` and `gc`, as docs/json.md describes it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Removed<'a> {
    names: &'a [String],
    images: &'a [String],
    layers: u64,
    orphans: u64,
    warnings: Vec<String>,
}

/// Runs an applier.
#[must_use]
pub fn apply() -> ExitCode {
    applier::run(pins::add)
}

/// Runs `install`.
pub fn install(args: &InstallArgs, printer: &Printer, begin: &Begin<'_>) -> Result<(), Failure> {
    let items = all_items(&args.items, &args.images, args.allow_empty || args.pause.is_some())?;
    let platform = args.platform.resolve();
    let target = target(&args.target, args.rootfs)?;
    let options = source_options(&args.registry, printer)?;
    let epoch = epoch().map_err(Failure::usage)?;
    let _applier = confined(args, &items, &target, begin)?;
    // Whoever may not write is told before anything is fetched.
    let way = working_way(&args.target, &target)?;

    let mut plan = Plan::new(&items, &platform, &options).map_err(plan_failure)?;
    let pause = add_pause(args.pause.as_deref(), &mut plan, &platform, &options)?;
    printer.warn_all(&plan.warnings);
    let settings = Settings {
        graphroot: target.graphroot.clone(),
        kind: if target.is_additional { StoreKind::Additional } else { StoreKind::Primary },
        unpacker: if way == Way::Own { Unpacker::Root } else { Unpacker::Helper },
        config: args.rootfs,
        merge: !args.rootfs,
        helper: None,
        pause,
        beside: Beside::default(),
        stamp: epoch.unwrap_or_else(|| plan.newest.clamp(0, STAMP_MAX)),
    };
    let job = Install { args, plan: &plan, settings: &settings, target: &target, way: &way, printer };
    let (answer, warnings, lacking) = if args.rootfs {
        let (answer, warnings) = job.write(Request::Unpack(&job.identity()), None)?;
        (answer, warnings, job.everything())
    } else {
        job.merge()?
    };

    let all = layers_of(&plan.images).len() as u64;
    let mut warnings = warnings;
    if answer.dropped > 0 {
        let first = answer.dropped_first.join(", ");
        warnings.push(format!("{} extended attribute(s) could not be set: {first}", answer.dropped));
    }
    if answer.left {
        warnings.push(LEFT.to_owned());
    }
    let names: Vec<String> = plan.images.values().flat_map(|image| image.names().map(str::to_owned)).collect();
    // A whole tree has its own drop-in.
    let pins = if args.rootfs { Pins::default() } else { pin(&target, &names, args.pin) };
    warnings.extend(pins.warnings);
    printer.warn_all(&warnings);
    let summary = Summary {
        root: target.root.display().to_string(),
        graphroot: &target.graphroot,
        via: way.name(),
        images: plan
            .images
            .values()
            .map(|image| ImageSummary {
                id: image.id().hex(),
                names: image.names().map(str::to_owned).collect(),
                is_new: lacking.images.contains(image.id()),
            })
            .collect(),
        layers_written: if args.rootfs { all } else { answer.done.layers },
        layers_present: if args.rootfs { 0 } else { all.saturating_sub(answer.done.layers) },
        names_added: answer.done.names,
        pinned: pins.changed,
        warnings,
    };
    if args.json {
        output::json(&summary)?;
    } else if lacking.images.is_empty() && summary.layers_written == 0 {
        printer.say(&format!("{}: everything is there already", summary.root));
    } else {
        printer.say(&format!(
            "{}: {} image(s) written or changed, {} layer(s) written, {} there already",
            summary.root,
            lacking.images.len(),
            summary.layers_written,
            summary.layers_present
        ));
    }
    if !args.json {
        for name in &summary.pinned {
            printer.say(&format!("pinned {name} ({RELOAD})"));
        }
    }
    Ok(())
}

/// Confines this process if it has root's privileges and writes by itself: an applier, which is started before, does so instead.
fn confined(
    args: &InstallArgs,
    items: &[Item],
    target: &Target,
    begin: &Begin<'_>,
) -> Result<Option<applier::Session>, Failure> {
    // sudo and the service are of no use without root's rights.
    if !is_privileged()? || ways(&args.target)? != [Way::Own] {
        begin.unconfined()?;
        return Ok(None);
    }
    let session = applier::start(target, args.pin).map_err(failure)?;
    let pause: Vec<Item> = args.pause.iter().filter_map(|typed| Item::parse(typed).ok()).collect();
    let temporary = beside();
    let needs = of_fetching(items.iter().chain(&pause), &args.registry, &args.cache, Some(&temporary));
    begin.confined(&needs)?;
    Ok(Some(session))
}

/// Pins `names`, by the applier if there is one.
fn pin(target: &Target, names: &[String], make: bool) -> Pins {
    match applier::pin(names) {
        Some(Ok(pins)) => pins,
        Some(Err(error)) => Pins { warnings: vec![format!("the images are not pinned: {error}")], ..Pins::default() },
        None => pins::add(&target.root, names, make),
    }
}

struct Install<'a> {
    args: &'a InstallArgs,
    plan: &'a Plan,
    settings: &'a Settings,
    target: &'a Target,
    way: &'a Way,
    printer: &'a Printer,
}

impl Install<'_> {
    fn everything(&self) -> Lacking {
        Lacking { layers: BTreeSet::new(), images: self.plan.images.keys().copied().collect() }
    }

    /// What tells this tree from others: all that its bytes depend on.
    fn identity(&self) -> String {
        let Settings { graphroot, stamp, pause, .. } = self.settings;
        let mut text = format!("{} {graphroot} {stamp}", env!("CARGO_PKG_VERSION"));
        text.extend(pause.iter().flat_map(|name| [" pause ", name]));
        for image in self.plan.images.values() {
            text.extend([" ", &image.id().hex()]);
            text.extend(image.names().flat_map(|name| [" ", name]));
        }
        Digest::of(text.as_bytes()).hex()
    }

    /// Asks what is lacking, and sends that; again when somebody has removed some of the rest meanwhile.
    fn merge(&self) -> Result<(Answer, Vec<String>, Lacking), Failure> {
        let layers: Vec<String> = layers_of(&self.plan.images).iter().map(|layer| layer.id.hex()).collect();
        let stamp = utc(self.settings.stamp);
        let images: Vec<_> = self.plan.images.values().map(|image| image.record(&stamp)).collect();
        for attempt in 1.. {
            let found = ask(self.way, self.target, Request::Query(&layers, &images)).map_err(failure)?;
            let digests = |ids: &[String]| ids.iter().filter_map(|id| Digest::from_hex(id).ok()).collect();
            let lacking = Lacking { layers: digests(&found.missing_layers), images: digests(&found.missing_images) };
            if lacking.layers.is_empty() && lacking.images.is_empty() {
                return Ok((found, Vec::new(), lacking));
            }
            let (answer, warnings) = self.write(Request::Install, Some(&lacking))?;
            if answer.error.is_empty() {
                return Ok((answer, warnings, lacking));
            }
            if attempt == ATTEMPTS {
                return Err(anyhow!("{}: {}", self.target.root.display(), answer.error).into());
            }
        }
        unreachable!("the loop ends with an attempt")
    }

    /// Sends what is lacking, or everything.
    fn write(&self, request: Request<'_>, lacking: Option<&Lacking>) -> Result<(Answer, Vec<String>), Failure> {
        let (cache, elsewhere) = open_cache(&self.args.cache, &beside(), self.printer)?;
        let mut asked = Asked::new(self.way, self.target, request).map_err(failure)?;
        let name = self.target.root.display().to_string();
        let stream = TarStream::new(Box::new(asked.input()), &name, self.settings.stamp);
        let output = match lacking {
            Some(lacking) => Output::Store(stream, lacking.clone()),
            None => Output::Stream(stream),
        };
        let bars = Arc::new(Bars::new(self.printer));
        let made = make(self.plan, self.settings, cache, output, bars.clone());
        bars.clear();
        let answer = asked.answer();
        match made {
            Ok(report) => Ok((answer.map_err(failure)?, report.warnings)),
            // Who stops reading says why, or has the tree already: all but the last renames of an interrupted run.
            Err(MakeError::Sink(sink::Error::Stream { .. }))
                if matches!((&answer, request), (Err(Error::Refused { .. }), _) | (Ok(_), Request::Unpack(_))) =>
            {
                answer.map(|answer| (answer, Vec::new())).map_err(failure)
            }
            Err(error) => Err(make_failure(error, elsewhere)),
        }
    }
}

/// Images as they are named on the command line.
pub struct Selected {
    /// By full names.
    pub names: Vec<String>,
    /// By ids, or their beginnings.
    pub ids: Vec<String>,
}

/// What is an id, and what a name.
pub fn selected(typed: &[String]) -> Result<Selected, Failure> {
    let (mut names, mut ids) = (Vec::new(), Vec::new());
    for typed in typed {
        let hex = typed.strip_prefix("sha256:").unwrap_or(typed);
        let is_id =
            (ID_MIN..=64).contains(&hex.len()) && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if is_id {
            ids.push(hex.to_owned());
        } else {
            let name =
                Reference::parse_or_latest(typed).map_err(|error| Failure::usage(anyhow!("{typed}: {error}")))?;
            names.push(name.to_string());
        }
    }
    Ok(Selected { names, ids })
}

/// Runs `rm`.
pub fn remove(args: &RmArgs, printer: &Printer) -> Result<(), Failure> {
    let Selected { names, ids } = selected(&args.names)?;
    check_short_ids(args)?;
    if !args.force {
        refuse_if_used(&target(&args.target, false)?, |target| {
            Dependents::layers_freed(&target.root, &target.graphroot, &names, &ids)
        })?;
    }
    let answer = ask_any(&args.target, Request::Remove(&names, &ids))?;
    report(&answer, args.json, printer)?;
    let pins = pins::remove(&args.target.root, &answer.gone.names);
    printer.warn_all(&pins.warnings);
    if !args.json {
        for name in &pins.changed {
            printer.say(&format!("no longer pinned {name} ({RELOAD})"));
        }
    }
    Ok(())
}

/// Refuses to remove the layers `freed` from an additional store if an image or a container of the machine's own store needs them.
fn refuse_if_used(
    target: &Target,
    freed: impl FnOnce(&Target) -> Result<BTreeSet<String>, dependents::Error>,
) -> Result<(), Failure> {
    let shown = format!("{}{}", target.root.display(), target.graphroot);
    // The machine's tools run as its root, whoever runs this process.
    let root = User { id: 0, variable: &|_| None };
    let used = Stores::of(&target.root, &root).map_err(dependents::Error::from).and_then(|stores| {
        if within(&stores.graphroot) == within(&target.graphroot) {
            return Ok(Dependents::default());
        }
        Dependents::find(&target.root, &stores, Path::new(&target.graphroot), &freed(target)?)
    });
    match used {
        Ok(used) if used.is_empty() => Ok(()),
        // What is the machine's own unless its configuration says otherwise, whatever is wrong with that.
        Err(_) if target.graphroot == GRAPHROOT => Ok(()),
        Ok(used) => Err(anyhow!(
            "{shown}: nothing removed: {used} would lose layers that only this store has, and CRI-O and podman could not list any \
             image then (remove those first, or --force)"
        )
        .into()),
        Err(error) => Err(anyhow!(
            "{shown}: nothing removed: checking whether the machine's own store needs these layers: {error} (--force: remove them \
             unchecked)"
        )
        .into()),
    }
}

/// Runs `gc`.
pub fn collect(args: &GcArgs, printer: &Printer) -> Result<(), Failure> {
    if !args.force {
        refuse_if_used(&target(&args.target, false)?, |target| {
            Dependents::layers_unreferenced(&target.root, &target.graphroot)
        })?;
    }
    report(&ask_any(&args.target, Request::Collect)?, args.json, printer)
}

fn ask_any(args: &TargetArgs, request: Request<'_>) -> Result<Answer, Failure> {
    let target = target(args, false)?;
    let way = working_way(args, &target)?;
    ask(&way, &target, request).map_err(failure)
}

fn report(answer: &Answer, json: bool, printer: &Printer) -> Result<(), Failure> {
    let gone = &answer.gone;
    let warnings: Vec<_> = answer.left.then(|| LEFT.to_owned()).into_iter().collect();
    printer.warn_all(&warnings);
    if json {
        let removed =
            Removed { names: &gone.names, images: &gone.images, layers: gone.layers, orphans: gone.orphans, warnings };
        return Ok(output::json(&removed)?);
    }
    for name in &gone.names {
        printer.say(&format!("untagged {name}"));
    }
    for id in &gone.images {
        printer.say(&format!("removed image {id}"));
    }
    printer.say(&format!("removed {} layer(s) and {} left-over(s)", gone.layers, gone.orphans));
    Ok(())
}

fn target(args: &TargetArgs, is_rootfs: bool) -> Result<Target, Failure> {
    let graphroot = graphroot(args.graphroot.as_deref(), GRAPHROOT).map_err(Failure::usage)?;
    check_root(&args.root)?;
    let place = within(&graphroot);
    // A root of its own has no configuration yet.
    let root = if is_rootfs { None } else { Root::open(&args.root).ok() };
    let config = root.and_then(|root| MachineConfig::read(&Files::of_directory(root.into())).ok());
    let is_additional = config.map_or_else(|| is_place_of_additional(&place), |config| config.is_additional(&place));
    Ok(Target { root: args.root.clone(), graphroot, is_rootfs, is_additional })
}

/// Refuses beginnings of ids that are too short to be told from names, if the store has images with such ids and none with such
/// a name. A store that this user cannot read is left to the helper.
fn check_short_ids(args: &RmArgs) -> Result<(), Failure> {
    let is_short = |typed: &&String| {
        (SHORT_ID_MIN..ID_MIN).contains(&typed.len()) && typed.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let short: Vec<_> = args.names.iter().filter(is_short).collect();
    if short.is_empty() {
        return Ok(());
    }
    let graphroot = graphroot(args.target.graphroot.as_deref(), GRAPHROOT).map_err(Failure::usage)?;
    let store = args.target.root.join(&graphroot[1..]);
    let images = Root::open(&store)
        .ok()
        .and_then(|root| find::in_directory(&root).ok())
        .and_then(|found| list(&found).ok())
        .unwrap_or_default();
    for typed in short {
        let name = Reference::parse_or_latest(typed).map(|name| name.to_string()).unwrap_or_default();
        let matches: Vec<_> = images.iter().filter(|image| image.id.starts_with(&typed.to_ascii_lowercase())).collect();
        if matches.is_empty() || images.iter().any(|image| image.repo_tags.contains(&name)) {
            continue;
        }
        let shown: Vec<_> = matches
            .iter()
            .map(|image| {
                let id: String = image.id.chars().take(ID_MIN).collect();
                if image.repo_tags.is_empty() { id } else { format!("{id} is {}", image.repo_tags.join(", ")) }
            })
            .collect();
        return Err(Failure::usage(anyhow!(
            "{typed}: an id needs at least {ID_MIN} digits, since with fewer it may be a name ({})",
            shown.join("; ")
        )));
    }
    Ok(())
}

/// Checks `--root`: it is the root directory of a machine. For podman and CRI-O, `--root` is the store.
///
/// # Errors
/// When it is not a directory, or is a store itself.
pub fn check_root(root: &Path) -> Result<(), Failure> {
    let shown = root.display();
    let why = match rustix::fs::stat(root) {
        Ok(found) if FileType::from_raw_mode(found.st_mode).is_dir() => None,
        Ok(_) | Err(Errno::NOTDIR) => Some("not a directory".to_owned()),
        Err(Errno::NOENT) => Some("no such directory".to_owned()),
        // It may exist: the way to it that is tried next says what this user lacks.
        Err(Errno::ACCESS) => return Ok(()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(why) = why {
        return Err(Failure::usage(anyhow!("--root {shown}: {why}")));
    }
    // containers/storage `images.go`: a store with the overlay driver keeps its records there.
    if !root.join("overlay-images").is_dir() {
        return Ok(());
    }
    let absolute = fs_err::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    let place = |graphroot: &str| {
        let depth = Path::new(graphroot).components().count() - 1;
        let machine = absolute.ancestors().nth(depth).filter(|machine| machine.join(&graphroot[1..]) == absolute)?;
        Some(format!("--root {} --graphroot {graphroot}", machine.display()))
    };
    let what = [GRAPHROOT, "/usr/lib/containers/storage"]
        .into_iter()
        .find_map(place)
        .unwrap_or_else(|| format!("--root / --graphroot {}", absolute.display()));
    Err(Failure::usage(anyhow!(
        "--root {shown}: this is a store; here --root is the root directory of the machine ({what})"
    )))
}

fn ways(args: &TargetArgs) -> Result<Vec<Way>, Failure> {
    let mut ways = Way::all(&args.helper.helper, &args.helper.socket);
    if let Some(via) = args.via {
        ways = vec![match via {
            ViaArg::Own => Way::Own,
            ViaArg::Socket => Way::Socket(args.helper.socket.clone()),
            ViaArg::Sudo => Way::Sudo(args.helper.helper.clone()),
        }];
    }
    if ways.is_empty() {
        return Err(failure(Error::NoWay(args.root.display().to_string())));
    }
    Ok(ways)
}

/// The first way by which somebody answers; if none does, what the last one said.
fn working_way(args: &TargetArgs, target: &Target) -> Result<Way, Failure> {
    let mut last = None;
    for way in ways(args)? {
        match probe(&way, target) {
            Ok(()) => return Ok(way),
            Err(error) => last = Some(error),
        }
    }
    Err(failure(last.unwrap_or(Error::NoWay(args.root.display().to_string()))))
}

fn failure(error: Error) -> Failure {
    let exit = match &error {
        Error::Refused { not_found: true, .. } => Exit::Usage,
        _ => Exit::Failure,
    };
    Failure { exit, error: error.into() }
}
