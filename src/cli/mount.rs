//! `prepull mount` and `umount`: a store that is shown, not written.

mod status;
mod storage_conf;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use clap::Parser as _;
use serde_json::value::RawValue;

use self::status::{Said, storage_conf_line};
use super::args::{
    Args, CacheArgs, Command, MountAddArgs, MountArgs, MountCommand, MountItems, MountRmArgs, RegistryArgs, UmountArgs,
};
use super::install::{Selected, selected};
use super::items::{all_items, plan_failure};
use super::make::{STAMP_MAX, beside, epoch, make_failure, open_cache, source_options};
use super::output::{self, Printer};
use super::privilege::{of_cache, of_fetching, of_inputs};
use super::progress::Bars;
use super::{Begin, Exit, Failure};
use crate::atomic::temporary_directory;
use crate::channel::{receive, send};
use crate::confine::{Needs, Trees, confine, is_privileged};
use crate::digest::Digest;
use crate::inspect::contents::Contents;
use crate::inspect::dependents::{self, Records};
use crate::inspect::stores::Stores;
use crate::mount::Error;
use crate::mount::attach;
use crate::mount::control::{self, Answer, Ask, FETCHER, Fetched, Kept, Start, Waiting, Wanted, Way};
use crate::mount::kept::{self, Taken};
use crate::mount::relay::Relay;
use crate::mount::scene::{Allowed, Fetch, Scene, Sources, Staged, Typed, sources_in};
use crate::plan::{BlobSource, Plan};
use crate::reference::Item;
use crate::source;
use crate::storage::store::layers_of;
use crate::verify::shown;

/// How often a change begins again when another process has changed the mount meanwhile.
const ATTEMPTS: usize = 10;

/// Maximum number of names that are said of a directory that is not empty.
const NAMES_MAX: usize = 3;

/// Directories that containers/storage makes in an additional store, whatever is in it.
const LEFT_BY_STORAGE: [&str; 3] = ["overlay-containers", "overlay-images", "overlay-layers"];

/// The mode of a store's root directory.
const MODE: u16 = 0o755;

/// Runs `mount`.
pub fn run(args: &MountArgs, printer: &Printer, begin: &Begin<'_>) -> Result<Exit, Failure> {
    match &args.command {
        Some(MountCommand::Add(add)) => self::add(add, printer, begin).map(|()| Exit::Success),
        Some(MountCommand::Rm(rm)) => remove(rm, printer, begin).map(|()| Exit::Success),
        Some(MountCommand::Status(status)) => {
            begin.unconfined()?;
            status::run(status).map(|()| Exit::Success)
        }
        None => mount(args, printer, begin),
    }
}

/// Mounts: with all of this process's privileges until the keeper knows what was typed, then without them.
fn mount(args: &MountArgs, printer: &Printer, begin: &Begin<'_>) -> Result<Exit, Failure> {
    let typed = args.mountpoint.as_deref().unwrap_or(Path::new(""));
    if let Some(kept) = resume(args, typed, printer, begin)? {
        return end(kept);
    }
    let mountpoint = directory(typed, args.force).map_err(Failure::usage)?;
    let storage_conf =
        args.write_storage_conf.as_ref().map(|file| storage_conf::prepare(file, &mountpoint, args.force));
    let storage_conf = storage_conf.transpose().map_err(Failure::usage)?;
    let epoch = epoch().map_err(Failure::usage)?;
    let tar = tar(&args.what);
    let items = if tar.is_none() { items_of(&args.what)? } else { Vec::new() };
    let start = Start {
        others: args.allow_other,
        foreground: args.foreground,
        no_resend: args.no_resend,
        mounted: None,
        turn: 0,
        mountpoint: mountpoint.clone(),
        scene: (),
    };
    let allowed = if args.lazy { allowed(&items)? } else { Allowed::new() };
    let keeper = Waiting::start(&control::Begin { start, allowed, storage_conf });
    let keeper = keeper.map_err(|error| failure(error, ""))?;
    begin.confined(&match &tar {
        Some(tar) => of_inputs(&[tar], Trees::None),
        None => needs_of(&items, &args.what.registry, &args.what.cache),
    })?;
    let mut staged = match tar {
        Some(tar) => checked_tar(&tar)?,
        None => images(args, &items, epoch, printer)?,
    };
    staged.scene.mode = (args.mode != MODE).then_some(args.mode);
    printer.warn_all(&staged.warnings);
    let Staged { scene, files, .. } = staged;
    let kept = keeper.show(&scene, &files).map_err(|error| failure(error, ""))?;
    drop((scene, files));
    printer.warn_all(&kept.status.troubles);
    if let Some(why) = storage_conf::unusable(&mountpoint) {
        printer.warn(&why);
    }
    if args.json {
        output::json(&Said::of(&kept.status))?;
    } else {
        printer.say(&format!("{}: mounted; in [storage.options] of storage.conf:", mountpoint.display()));
        output::data(&format!("{}\n", storage_conf_line(&mountpoint)))?;
        if !rustix::process::geteuid().is_root() {
            printer.say(&for_users(&mountpoint));
        }
    }
    if args.foreground { end(kept) } else { Ok(Exit::Success) }
}

/// Returns what a user who is not root must know of a mount outside of a user namespace.
fn for_users(mountpoint: &Path) -> String {
    let shown = mountpoint.display();
    format!(
        "{shown}: rootless podman cannot start containers from here, since the images' files belong to no user of its namespace: \
         use `podman unshare prepull mount`, or sudo and root's podman"
    )
}

/// Stages a tar, whose records and skeleton podman and CRI-O can believe.
fn checked_tar(path: &Path) -> Result<Staged, Failure> {
    let shown = path.display();
    let contents = Contents::of(path).with_context(|| shown.to_string())?;
    shown::check(&contents).map_err(|why| anyhow!("{shown}: not shown: {why}"))?;
    Scene::of_tar(path, &contents).map_err(|error| failure(error, ""))
}

/// Waits until it is mounted nowhere any more.
fn end(kept: Kept) -> Result<Exit, Failure> {
    Ok(if kept.wait()? { Exit::Success } else { Exit::Failure })
}

/// Goes on with a mount whose keeper has died, if systemd has kept it.
fn resume(args: &MountArgs, typed: &Path, printer: &Printer, begin: &Begin<'_>) -> Result<Option<Kept>, Failure> {
    let kept = kept::take::<Start<Box<RawValue>>>().context("taking back what systemd has kept")?;
    let (start, files, turn) = match kept {
        Taken::Whole { message, files, turn } if args.foreground => (message, files, turn),
        Taken::Lost if args.foreground => {
            // Nobody can serve it any more, and nothing can be mounted in its place.
            let at = place(typed)?;
            if attach::device_of(&at).is_some() {
                printer.warn(&format!("{}: what systemd has kept of it is lost: mounted anew", at.display()));
                let _ = attach::unmount(&at, true);
            }
            return Ok(None);
        }
        _ => return Ok(None),
    };
    if place(typed)? != start.mountpoint || attach::device_of(&start.mountpoint).is_none() {
        // Another one, or somebody has unmounted it.
        return Ok(None);
    }
    printer.say(&format!("{}: goes on", start.mountpoint.display()));
    begin.unconfined()?;
    let Start { mountpoint, others, foreground, no_resend, mounted, scene, .. } = start;
    let start = Start { mountpoint, others, foreground, no_resend, mounted, turn, scene: () };
    let keeper = Waiting::start(&control::Begin { start, allowed: Allowed::new(), storage_conf: None });
    keeper.and_then(|keeper| keeper.show(&scene, &files)).map(Some).map_err(|error| failure(error, ""))
}

/// The only item, if it is a file: a tar that was made before.
fn tar(what: &MountItems) -> Option<PathBuf> {
    let [item] = &what.items[..] else { return None };
    let path = Path::new(item);
    (what.images.is_empty() && path.is_file()).then(|| path.to_owned())
}

/// Returns the items that were typed.
fn items_of(what: &MountItems) -> Result<Vec<Item>, Failure> {
    all_items(&what.items, &what.images, what.allow_empty)
}

/// Returns what fetching `items` takes, with the directory for temporary files.
fn needs_of(items: &[Item], registry: &RegistryArgs, cache: &CacheArgs) -> Needs {
    of_fetching(items.iter(), registry, cache, Some(&beside()))
}

/// Fetches what `items` are, without their layers.
fn plan_of(what: &MountItems, items: &[Item], printer: &Printer) -> Result<Plan, Failure> {
    let platform = what.platform.resolve();
    let options = source_options(&what.registry, printer)?;
    let plan = Plan::new(items, &platform, &options).map_err(plan_failure)?;
    printer.warn_all(&plan.warnings);
    Ok(plan)
}

fn images(args: &MountArgs, items: &[Item], epoch: Option<i64>, printer: &Printer) -> Result<Staged, Failure> {
    let plan = plan_of(&args.what, items, printer)?;
    let stamp = epoch.unwrap_or_else(|| plan.newest.clamp(0, STAMP_MAX));
    let settings = Scene::settings(stamp, !args.expand_opaque);
    let (cache, elsewhere) = open_cache(&args.what.cache, &beside(), printer)?;
    let bars = Arc::new(Bars::new(printer));
    let (mut sources, none) = (Sources::default(), BTreeSet::new());
    if args.lazy {
        note_sources(&mut sources, &plan)?;
    }
    let fetch = Fetch { lazily: args.lazy.then_some((&sources, &none)) };
    let staged = Scene::of_images(&plan, &settings, cache, bars.clone(), None, fetch);
    bars.clear();
    staged.map_err(|error| failure(error, elsewhere))
}

/// Notes where the layers of `plan` come from: from what is typed here.
fn note_sources(sources: &mut Sources, plan: &Plan) -> Result<(), Failure> {
    let number = sources.commands.len();
    sources.commands.push(typed_here()?);
    for (blob, source) in &plan.blobs {
        sources.items.insert(*blob, (source.item.clone(), number));
    }
    for layer in layers_of(&plan.images) {
        let below = layer.parent.map(|id| id.hex());
        sources.layers.insert(layer.id.hex(), (layer.layer.descriptor.digest, below));
    }
    Ok(())
}

/// Returns this process's command line, with where it was typed.
fn typed_here() -> std::io::Result<Typed> {
    let (words, directory) = (std::env::args_os().collect(), std::env::current_dir()?);
    Ok(Typed { words, directory, environment: environment() })
}

/// Returns where layers may come from by this command line.
fn allowed(items: &[Item]) -> Result<Allowed, Failure> {
    Ok(vec![(typed_here()?, items.iter().map(|item| item.typed.clone()).collect())])
}

/// What says where images come from and how they are kept: directories of users and their credentials, credential helpers, the
/// Docker daemon, proxies, certificates.
const VARIABLES: [&str; 18] = [
    "HOME",
    "PATH",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "XDG_CACHE_HOME",
    "REGISTRY_AUTH_FILE",
    "DOCKER_CONFIG",
    "DBUS_SESSION_BUS_ADDRESS",
    "DOCKER_HOST",
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

fn environment() -> Vec<(OsString, OsString)> {
    VARIABLES.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?))).collect()
}

/// Runs a fetcher: its standard input is the keeper, which says what is wanted, and its standard output a connection with it as
/// users have one. With an argument it has been told before, and has since begun again with another environment.
#[must_use]
pub fn fetch() -> ExitCode {
    let copy = |file: BorrowedFd<'_>| file.try_clone_to_owned().map(UnixStream::from);
    let (Ok(keeper), Ok(asks)) = (copy(std::io::stdin().as_fd()), copy(std::io::stdout().as_fd())) else {
        return ExitCode::FAILURE;
    };
    // Nobody else wants it.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM));
    let told = std::env::args().nth(2);
    let is_again = told.is_some();
    let wanted = || receive::<Wanted>(&keeper).ok().flatten().map(|(wanted, _)| wanted.layer);
    let Some(layer) = told.or_else(wanted) else { return ExitCode::FAILURE };
    let mut notes = Vec::new();
    let failed = fetch_layer(&layer, &asks, is_again, &mut notes).err();
    let failed = failed.map(|failure| format!("{:#}", failure.error));
    match send(&keeper, &Fetched { notes, failed }, &[]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Fetches a layer, and those below it, since its readers need them as well.
fn fetch_layer(wanted: &str, asks: &UnixStream, is_again: bool, notes: &mut Vec<String>) -> Result<(), Failure> {
    let way = Way::Open(asks);
    let (answer, _) = control::ask::<Box<RawValue>>(way, &Ask::<()>::Get, &[]).map_err(|error| failure(error, ""))?;
    // Of the scene, only where layers come from is parsed before this process is confined.
    let sources = match answer {
        Answer::Scene(scene) => sources_in(&scene).map_err(|error| failure(error, ""))?,
        other => return Err(refused("fetching a layer", other)),
    };
    let sources = sources.ok_or_else(|| anyhow!("nothing is to be fetched"))?;
    let chain = sources.of_chain(wanted);
    if let Some((_, typed)) = chain.first()
        && !is_again
        && typed.environment != environment()
    {
        return Err(begin_again(wanted, &typed.environment).into());
    }
    *notes = confine_fetcher(&chain)?;
    let mut what = |plan: &mut Plan, before: &Scene, _: &mut Option<Sources>| {
        let sources = before.lazy.as_ref().ok_or_else(|| anyhow!("nothing is to be fetched"))?;
        let layers = before.absent_below(plan, wanted);
        if layers.is_empty() {
            // They have come with one above them.
            return Ok(None);
        }
        let mut cache = None;
        for layer in layers_of(&plan.images).iter().filter(|layer| layers.contains(&layer.id)) {
            let blob = layer.layer.descriptor.digest;
            let (item, number) =
                sources.items.get(&blob).ok_or_else(|| anyhow!("no source is recorded for blob {blob}"))?;
            let Typed { words, directory, .. } =
                sources.commands.get(*number).context("its command line is not recorded")?;
            std::env::set_current_dir(directory)?;
            let (registry, typed) = options_of(words)?;
            let location = Item::parse(std::ffi::OsStr::new(item))?.location;
            let options = source_options(&registry, &Printer::new(true))?;
            plan.limit = options.limit;
            let source = source::open(&location, &options).with_context(|| item.clone())?;
            plan.blobs.insert(blob, BlobSource { item: item.clone(), source });
            cache = Some(typed);
        }
        Ok(Some(Change { wanted: layers, cache }))
    };
    change(way, &CacheArgs::default(), None, &Printer::new(true), &mut what)
}

/// Leaves this process what it needs to fetch layers from these items. Returns notes for the user.
fn confine_fetcher(chain: &[(&str, &Typed)]) -> Result<Vec<String>, Failure> {
    let mut needs = Needs::default();
    for (item, Typed { words, directory, .. }) in chain {
        std::env::set_current_dir(directory)?;
        let (registry, cache) = options_of(words)?;
        let item = Item::parse(std::ffi::OsStr::new(item))?;
        let mut more = of_fetching(std::iter::once(&item), &registry, &cache, Some(&beside()));
        // Each in the directory in which it was typed.
        for path in more.reads.iter_mut().chain(&mut more.writes) {
            *path = std::path::absolute(&*path)?;
        }
        needs.reads.append(&mut more.reads);
        needs.writes.append(&mut more.writes);
        needs.local_sockets |= more.local_sockets;
    }
    for paths in [&mut needs.reads, &mut needs.writes] {
        paths.sort();
        paths.dedup();
    }
    Ok(confine(&needs)?)
}

/// Becomes a fetcher with this environment. Gives why it has not.
fn begin_again(wanted: &str, environment: &[(OsString, OsString)]) -> std::io::Error {
    let mut command = std::process::Command::new("/proc/self/exe");
    command.arg0("prepull").args([FETCHER, wanted]);
    for name in VARIABLES {
        command.env_remove(name);
    }
    command.envs(environment.iter().cloned()).exec()
}

/// How a command line of `mount` or `mount add` says that layers are fetched and kept.
fn options_of(words: &[OsString]) -> anyhow::Result<(RegistryArgs, CacheArgs)> {
    match Args::try_parse_from(words)?.command {
        Command::Mount(mount) => match mount.command {
            Some(MountCommand::Add(add)) => Ok((add.what.registry, add.what.cache)),
            _ => Ok((mount.what.registry, mount.what.cache)),
        },
        _ => Err(anyhow!("the recorded command line is not one of `prepull mount`")),
    }
}

/// Changes a plan that was made of what is shown now; `None` if there is nothing to change.
type ToChange<'a> = &'a mut dyn FnMut(&mut Plan, &Scene, &mut Option<Sources>) -> Result<Option<Change>, Failure>;

/// What a change wants.
#[derive(Debug, Default)]
struct Change {
    /// Layers that are to be fetched, if others are not.
    wanted: BTreeSet<Digest>,
    /// Where they are kept.
    cache: Option<CacheArgs>,
}

/// Runs `mount add`.
fn add(args: &MountAddArgs, printer: &Printer, begin: &Begin<'_>) -> Result<(), Failure> {
    let mountpoint = place(&args.mountpoint)?;
    let items = items_of(&args.what)?;
    let mut change = |plan: &mut Plan, _: &Scene, sources: &mut Option<Sources>| {
        let new = plan_of(&args.what, &items, printer)?;
        if let Some(sources) = sources {
            note_sources(sources, &new)?;
        }
        plan.take_over(new).map_err(plan_failure)?;
        Ok(Some(Change::default()))
    };
    let needs = needs_of(&items, &args.what.registry, &args.what.cache);
    let own = (!args.force).then(|| OwnStore::read(&mountpoint));
    change_at(&mountpoint, allowed(&items)?, &needs, begin, |way| {
        self::change(way, &args.what.cache, own, printer, &mut change)
    })
}

/// Runs `mount rm`.
fn remove(args: &MountRmArgs, printer: &Printer, begin: &Begin<'_>) -> Result<(), Failure> {
    let mountpoint = place(&args.mountpoint)?;
    let Selected { names, ids } = selected(&args.names)?;
    let mut change = |plan: &mut Plan, _: &Scene, _: &mut Option<Sources>| {
        for name in &names {
            if !plan.forget_name(name) {
                return Err(Failure::usage(anyhow!("{name}: no such image in the mount")));
            }
        }
        for id in &ids {
            plan.forget_image(id).map_err(|why| Failure::usage(anyhow!("{id}: {why}")))?;
        }
        Ok(Some(Change::default()))
    };
    let mut needs = Needs::default();
    needs.writes.extend([temporary_directory()].into_iter().chain(of_cache(&args.cache)));
    let own = (!args.force).then(|| OwnStore::read(&mountpoint));
    change_at(&mountpoint, Allowed::new(), &needs, begin, |way| {
        self::change(way, &args.cache, own, printer, &mut change)
    })
}

/// Confines this process to `needs`, and then has `change` change the mount: through a relay if root runs this, which would lose
/// its way to the keeper otherwise.
fn change_at(
    mountpoint: &Path,
    allowed: Allowed,
    needs: &Needs,
    begin: &Begin<'_>,
    change: impl FnOnce(Way<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let relay = if is_privileged()? { Some(Relay::start(mountpoint, allowed)) } else { None };
    let relay = relay.transpose().map_err(|error| failure(error, ""))?;
    begin.confined(needs)?;
    change(relay.as_ref().map_or(Way::At(mountpoint), |relay| relay.way(mountpoint)))
}

/// Shows something else: again when somebody else has changed the mount meanwhile.
fn change(
    way: Way<'_>,
    cache_args: &CacheArgs,
    own: Option<OwnStore>,
    printer: &Printer,
    change: ToChange<'_>,
) -> Result<(), Failure> {
    let mount = match way {
        Way::At(mountpoint) | Way::Relayed { mountpoint, .. } => mountpoint.display().to_string(),
        Way::Open(_) => "fetching a layer".to_owned(),
    };
    for _ in 0..ATTEMPTS {
        let asked: Ask<()> = Ask::Get;
        let (answer, files) = control::ask::<Scene>(way, &asked, &[]).map_err(|error| failure(error, ""))?;
        let before = match answer {
            Answer::Scene(scene) => scene,
            other => return Err(refused(&mount, other)),
        };
        if let Some(tar) = &before.tar {
            return Err(Failure::usage(anyhow!("{mount}: it shows the tar {tar}, which has what it has")));
        }
        let mut plan = Plan::of_saved(&before.images).context("reading what is mounted")?;
        let layers = layer_ids(&plan);
        let mut sources = before.lazy.clone();
        let Some(Change { wanted, cache }) = change(&mut plan, &before, &mut sources)? else { return Ok(()) };
        if let Some(own) = &own {
            own.refuse_if_used(&mount, &(&layers - &layer_ids(&plan)))?;
        }
        let settings = Scene::settings(before.stamp, before.marks_opaque);
        let (cache, elsewhere) = open_cache(cache.as_ref().unwrap_or(cache_args), &beside(), printer)?;
        let fetch = Fetch { lazily: sources.as_ref().map(|sources| (sources, &wanted)) };
        let known = before.segments(&files).map_err(|error| failure(error, ""))?;
        let bars = Arc::new(Bars::new(printer));
        let staged = Scene::of_images(&plan, &settings, cache, bars.clone(), Some((&before, known)), fetch);
        bars.clear();
        let Staged { mut scene, files: mut shown, warnings } = staged.map_err(|error| failure(error, elsewhere))?;
        printer.warn_all(&warnings);
        scene.keep(&before, files, &mut shown);
        let borrowed: Vec<_> = shown.iter().map(std::os::fd::AsFd::as_fd).collect();
        let put = Ask::Put { scene: &scene, generation: before.generation };
        let (answer, _) = control::ask::<Box<RawValue>>(way, &put, &borrowed).map_err(|error| failure(error, ""))?;
        match answer {
            Answer::Done => {
                printer.say(&format!("{mount}: {} image(s)", scene.images.len()));
                return Ok(());
            }
            Answer::Changed => {}
            other => return Err(refused(&mount, other)),
        }
    }
    Err(anyhow!("{mount}: gave up after {ATTEMPTS} attempts: other processes keep changing it").into())
}

/// Returns the ids of all layers of the images.
fn layer_ids(plan: &Plan) -> BTreeSet<String> {
    layers_of(&plan.images).iter().map(|layer| layer.id.hex()).collect()
}

/// The records of the user's own store, as they were before this process gave up its privileges.
struct OwnStore(Result<Records, dependents::Error>);

impl OwnStore {
    /// Reads them, for a change of what is mounted at `mountpoint`. What cannot be read counts only if layers are to be removed.
    fn read(mountpoint: &Path) -> Self {
        let stores = Stores::of_this_user().map_err(dependents::Error::from);
        Self(stores.and_then(|stores| Records::read(Path::new("/"), &stores, mountpoint)))
    }

    /// Refuses to remove the layers `gone` from the mount `shown` if an image or a container of the store needs one of them.
    fn refuse_if_used(&self, shown: &str, gone: &BTreeSet<String>) -> Result<(), Failure> {
        if gone.is_empty() {
            return Ok(());
        }
        let used = match &self.0 {
            Ok(records) => records.dependents(gone).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match used {
            Ok(used) if used.is_empty() => Ok(()),
            Ok(used) => Err(anyhow!(
                "{shown}: not changed: {used} would lose layers that only this mount has, and CRI-O and podman could not list \
                 any image then (remove those first, or --force)"
            )
            .into()),
            Err(error) => Err(anyhow!(
                "{shown}: not changed: checking whether the machine's own store needs these layers: {error} (--force: change it \
                 unchecked)"
            )
            .into()),
        }
    }
}

/// What it means when a keeper gives another answer than the one that was asked for.
fn refused<S>(shown: &str, answer: Answer<S>) -> Failure {
    let why = match answer {
        Answer::Failed(text) => text,
        _ => "its keeper is of another version of prepull".to_owned(),
    };
    anyhow!("{shown}: {why}").into()
}

/// Runs `umount`.
pub fn unmount(args: &UmountArgs, printer: &Printer) -> Result<(), Failure> {
    let mountpoint = place(&args.mountpoint)?;
    let shown = mountpoint.display();
    if attach::device_of(&mountpoint).is_none() {
        return Err(Failure::usage(anyhow!("{shown}: prepull has mounted nothing there")));
    }
    match attach::unmount(&mountpoint, args.lazy) {
        Ok(()) => {
            printer.say(&format!("{shown}: unmounted"));
            Ok(())
        }
        Err((attach::NotUnmounted::Busy, _)) => {
            Err(anyhow!("{shown}: in use (prepull umount --lazy {shown} unmounts it as soon as it is not)").into())
        }
        Err((_, text)) => Err(anyhow!("{shown}: {text}").into()),
    }
}

/// Returns the directory to mount at, absolute and without links. It must be empty unless `force` is given.
fn directory(typed: &Path, force: bool) -> anyhow::Result<PathBuf> {
    let shown = typed.display();
    // Also one that nobody serves any more.
    if attach::device_of(&place(typed)?).is_some() {
        return Err(anyhow!("{shown}: prepull has mounted something there already (prepull mount add, or umount)"));
    }
    let path = rustix::fs::stat(typed)
        .map_err(std::io::Error::from)
        .and_then(|_| fs_err::canonicalize(typed))
        .with_context(|| format!("{shown}: make the directory first"))?;
    if !path.is_dir() {
        return Err(anyhow!("{shown}: not a directory (prepull mount MOUNTPOINT {shown} shows a tar)"));
    }
    if path.to_str().is_none() {
        return Err(anyhow!("{shown}: not UTF-8: storage.conf cannot name it"));
    }
    if !force {
        let mut names: Vec<String> = Vec::new();
        for entry in fs_err::read_dir(&path)? {
            let entry = entry?;
            if !is_left_by_storage(&entry.path()) {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
            if names.len() > NAMES_MAX {
                break;
            }
        }
        if !names.is_empty() {
            let more = if names.len() > NAMES_MAX { ", ..." } else { "" };
            names.truncate(NAMES_MAX);
            names.sort();
            return Err(anyhow!(
                "{shown}: not empty: a mount would hide {}{more} (choose an empty directory, or --force)",
                names.join(", ")
            ));
        }
    }
    Ok(path)
}

/// Returns whether `path` is a directory that containers/storage has made, with nothing but locks in it. It makes
/// `overlay-images/images.lock` in the directory of an additional store when nothing is mounted there (`images.go`,
/// newROImageStore), so this must not keep a unit from mounting again.
fn is_left_by_storage(path: &Path) -> bool {
    let is_lock = |entry: std::io::Result<fs_err::DirEntry>| {
        let entry = entry?;
        let found = entry.metadata()?;
        Ok::<_, std::io::Error>(
            found.is_file() && found.len() == 0 && entry.path().extension() == Some("lock".as_ref()),
        )
    };
    LEFT_BY_STORAGE.iter().any(|name| path.ends_with(name))
        && fs_err::symlink_metadata(path).is_ok_and(|found| found.is_dir())
        && fs_err::read_dir(path).is_ok_and(|mut entries| entries.all(|entry| is_lock(entry).unwrap_or(false)))
}

/// Where something is mounted: also if nobody serves it, so that it cannot be looked at.
fn place(typed: &Path) -> anyhow::Result<PathBuf> {
    let absolute = std::path::absolute(typed)?;
    let named = |parent: PathBuf| absolute.file_name().map(|name| parent.join(name));
    let parent = absolute.parent().and_then(|parent| fs_err::canonicalize(parent).ok()).and_then(named);
    match parent.filter(|path| attach::device_of(path).is_some()) {
        Some(path) => Ok(path),
        None => Ok(fs_err::canonicalize(&absolute).unwrap_or(absolute)),
    }
}

fn failure(error: Error, elsewhere: &str) -> Failure {
    match error {
        Error::Make(error) => make_failure(error, elsewhere),
        error => Failure { exit: Exit::Failure, error: error.into() },
    }
}
