//! `prepull mount` and `umount`: a store that is shown, not written.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use serde::Serialize;
use serde_json::value::RawValue;

use super::args::{MountAddArgs, MountArgs, MountCommand, MountRmArgs, MountStatusArgs, UmountArgs};
use super::install::{Selected, selected};
use super::make::{STAMP_MAX, all_items, epoch, make_failure, open_cache, plan_failure, source_options};
use super::output::{self, Printer};
use super::progress::Bars;
use super::{Exit, Failure};
use crate::image::Platform;
use crate::mount::Error;
use crate::mount::attach;
use crate::mount::keeper::{self, Answer, Ask, Start, Status};
use crate::mount::scene::{Scene, Staged};
use crate::plan::Plan;
use crate::storage::machine;

/// How often a change begins again when somebody else has changed the mount meanwhile.
const ATTEMPTS: usize = 10;

/// Runs `mount`.
pub fn run(args: &MountArgs, printer: &Printer) -> Result<Exit, Failure> {
    match &args.command {
        Some(MountCommand::Add(add)) => self::add(add, printer).map(|()| Exit::Success),
        Some(MountCommand::Rm(rm)) => remove(rm, printer).map(|()| Exit::Success),
        Some(MountCommand::Status(status)) => self::status(status).map(|()| Exit::Success),
        None => mount(args, printer),
    }
}

fn mount(args: &MountArgs, printer: &Printer) -> Result<Exit, Failure> {
    let typed = args.mountpoint.as_deref().unwrap_or(Path::new(""));
    let mountpoint = directory(typed).map_err(Failure::usage)?;
    let staged = match tar(&args.items, args.images.is_empty()) {
        Some(tar) => Scene::of_tar(&tar).map_err(|error| failure(error, ""))?,
        None => images(args, printer)?,
    };
    printer.warn_all(&staged.warnings);
    let Staged { scene, files, .. } = staged;
    let start = Start {
        others: args.allow_other || rustix::process::geteuid().is_root(),
        foreground: args.foreground,
        no_resend: args.no_resend,
        mountpoint: mountpoint.clone(),
        scene,
    };
    let kept = keeper::start(&start, &files).map_err(|error| failure(error, ""))?;
    drop((start, files));
    let line = storage_conf_line(&mountpoint);
    if let Some(file) = &args.write_storage_conf {
        let text = machine::storage_conf(&mountpoint.to_string_lossy(), true);
        fs_err::write(file, text)?;
    }
    if args.json {
        output::data(&format!("{}\n", serde_json::to_string(&Said::of(&kept.status))?))?;
    } else {
        printer.say(&format!("{}: mounted; in [storage.options] of storage.conf:", mountpoint.display()));
        output::data(&format!("{line}\n"))?;
    }
    if args.foreground && !kept.wait()? {
        return Ok(Exit::Failure);
    }
    Ok(Exit::Success)
}

/// How it is, for machines.
#[derive(Debug, Serialize)]
struct Said<'a> {
    #[serde(flatten)]
    status: &'a Status,
    storage_conf: String,
}

impl<'a> Said<'a> {
    fn of(status: &'a Status) -> Self {
        Self { status, storage_conf: storage_conf_line(&status.mountpoint) }
    }
}

fn storage_conf_line(mountpoint: &Path) -> String {
    format!("additionalimagestores = [\"{}\"]", machine::toml_escape(&mountpoint.to_string_lossy()))
}

/// The only item, if it is a file: a tar that was made before.
fn tar(items: &[OsString], is_alone: bool) -> Option<PathBuf> {
    let [item] = items else { return None };
    let path = Path::new(item);
    (is_alone && path.is_file()).then(|| path.to_owned())
}

fn images(args: &MountArgs, printer: &Printer) -> Result<Staged, Failure> {
    let items = all_items(&args.items, &args.images)?;
    let platform = args.platform.clone().unwrap_or_else(Platform::host);
    let options = source_options(&args.registry)?;
    let epoch = epoch().map_err(Failure::usage)?;
    let plan = Plan::new(&items, &platform, &options).map_err(plan_failure)?;
    printer.warn_all(&plan.warnings);
    let stamp = epoch.unwrap_or_else(|| plan.newest.clamp(0, STAMP_MAX));
    let settings = Scene::settings(stamp, !args.expand_opaque);
    let (cache, elsewhere) = open_cache(&args.cache, &std::env::temp_dir().join("x"), printer)?;
    let bars = Arc::new(Bars::new(*printer));
    let staged = Scene::of_images(&plan, &settings, cache, bars.clone(), None);
    bars.clear();
    staged.map_err(|error| failure(error, elsewhere))
}

/// Runs `mount add`.
fn add(args: &MountAddArgs, printer: &Printer) -> Result<(), Failure> {
    let items = all_items(&args.items, &args.images)?;
    let platform = args.platform.clone().unwrap_or_else(Platform::host);
    let options = source_options(&args.registry)?;
    let mut change = |plan: &mut Plan| {
        let new = Plan::new(&items, &platform, &options).map_err(plan_failure)?;
        printer.warn_all(&new.warnings);
        plan.take_over(new);
        Ok(())
    };
    self::change(&args.mountpoint, &args.cache, printer, &mut change)
}

/// Runs `mount rm`.
fn remove(args: &MountRmArgs, printer: &Printer) -> Result<(), Failure> {
    let Selected { names, ids } = selected(&args.names)?;
    let mut change = |plan: &mut Plan| {
        for name in &names {
            if !plan.forget_name(name) {
                return Err(Failure::usage(anyhow!("{name}: no such image in the mount")));
            }
        }
        for id in &ids {
            plan.forget_image(id).map_err(|why| Failure::usage(anyhow!("{id}: {why}")))?;
        }
        Ok(())
    };
    self::change(&args.mountpoint, &args.cache, printer, &mut change)
}

/// Shows something else: again when somebody else has changed the mount meanwhile.
fn change(
    typed: &Path,
    cache_args: &super::args::CacheArgs,
    printer: &Printer,
    change: &mut dyn FnMut(&mut Plan) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mountpoint = place(typed)?;
    for _ in 0..ATTEMPTS {
        let asked: Ask<()> = Ask::Get;
        let (answer, files) = keeper::ask::<Scene>(&mountpoint, &asked, &[]).map_err(|error| failure(error, ""))?;
        let before = match answer {
            Answer::Scene(scene) => scene,
            Answer::Failed(text) => return Err(anyhow!("{}: {text}", mountpoint.display()).into()),
            _ => return Err(anyhow!("{}: its keeper is of another version of prepull", mountpoint.display()).into()),
        };
        if let Some(tar) = &before.tar {
            return Err(Failure::usage(anyhow!(
                "{}: it shows the tar {tar}, which has what it has",
                mountpoint.display()
            )));
        }
        let mut plan = Plan::of_saved(&before.images).context("reading what is mounted")?;
        change(&mut plan)?;
        let settings = Scene::settings(before.stamp, before.marks_opaque);
        let (cache, elsewhere) = open_cache(cache_args, &std::env::temp_dir().join("x"), printer)?;
        let known: BTreeMap<_, _> = before.segments(&files).map_err(|error| failure(error, ""))?;
        let bars = Arc::new(Bars::new(*printer));
        let staged = Scene::of_images(&plan, &settings, cache.with_known(known), bars.clone(), Some(&before));
        bars.clear();
        let Staged { mut scene, files: mut shown, warnings } = staged.map_err(|error| failure(error, elsewhere))?;
        printer.warn_all(&warnings);
        let _ = scene.keep(&before, files, &mut shown);
        let borrowed: Vec<_> = shown.iter().map(std::os::fd::AsFd::as_fd).collect();
        let put = Ask::Put { scene: &scene, generation: before.generation };
        let (answer, _) =
            keeper::ask::<Box<RawValue>>(&mountpoint, &put, &borrowed).map_err(|error| failure(error, ""))?;
        match answer {
            Answer::Done => {
                printer.say(&format!("{}: {} image(s)", mountpoint.display(), scene.images.len()));
                return Ok(());
            }
            Answer::Changed => {}
            Answer::Failed(text) => return Err(anyhow!("{}: {text}", mountpoint.display()).into()),
            _ => return Err(anyhow!("{}: its keeper is of another version of prepull", mountpoint.display()).into()),
        }
    }
    Err(anyhow!("{}: others change it all the time", mountpoint.display()).into())
}

/// Runs `mount status`.
fn status(args: &MountStatusArgs) -> Result<(), Failure> {
    let mountpoint = place(&args.mountpoint)?;
    let asked: Ask<()> = Ask::Status;
    let (answer, _) = keeper::ask::<()>(&mountpoint, &asked, &[]).map_err(|error| failure(error, ""))?;
    let Answer::Status(status) = answer else {
        return Err(anyhow!("{}: its keeper is of another version of prepull", mountpoint.display()).into());
    };
    if args.json {
        return Ok(output::data(&format!("{}\n", serde_json::to_string(&Said::of(&status))?))?);
    }
    let mut text = format!(
        "{}: keeper {}, worker {} ({} before it)\n{}\n",
        status.mountpoint.display(),
        status.keeper,
        status.worker,
        status.restarts,
        storage_conf_line(&status.mountpoint)
    );
    for trouble in &status.troubles {
        text += &format!("trouble: {trouble}\n");
    }
    Ok(output::data(&text)?)
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
            Err(anyhow!("{shown}: somebody uses it (prepull umount --lazy {shown}: it ends when nobody does)").into())
        }
        Err((_, text)) => Err(anyhow!("{shown}: {text}").into()),
    }
}

/// A directory to mount at, absolute and without links.
fn directory(typed: &Path) -> anyhow::Result<PathBuf> {
    let shown = typed.display();
    let path = fs_err::canonicalize(typed).with_context(|| format!("{shown}: make the directory first"))?;
    if !path.is_dir() {
        return Err(anyhow!("{shown}: not a directory"));
    }
    if path.to_str().is_none() {
        return Err(anyhow!("{shown}: not UTF-8: storage.conf cannot name it"));
    }
    if attach::device_of(&path).is_some() {
        return Err(anyhow!("{shown}: prepull has mounted something there already (prepull mount add, or umount)"));
    }
    Ok(path)
}

/// Where something is mounted: also if nobody serves it, so that it cannot be looked at.
fn place(typed: &Path) -> Result<PathBuf, Failure> {
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
