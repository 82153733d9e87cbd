//! `prepull make`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, IsTerminal as _, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use serde::Serialize;

use super::args::{CacheArgs, MakeArgs, RegistryArgs, StoreArg, UnpackerArg};
use super::items::{all_items, plan_failure};
use super::output::{self, Printer, human, printable};
use super::privilege::of_fetching;
use super::progress::Bars;
use super::{Begin, Exit, Failure};
use crate::atomic::{chosen_temporary_directory, is_full, temporary_directory};
use crate::compression::SizeLimit;
use crate::config::auth::Credentials;
use crate::digest::Digest;
use crate::image::Platform;
use crate::make::{Error as MakeError, Output, Report, make};
use crate::plan::Plan;
use crate::reference::Item;
use crate::registry::Limits;
use crate::registry::retry::Observer;
use crate::segment::cache::Cache;
use crate::segment::convert;
use crate::sink::{TarFile, TarStream};
use crate::source;
use crate::storage::store::Settings;

/// The largest file that genisoimage puts on a CD: 4 GiB - 1 (it writes one extent per file).
const ISO_FILE_MAX: u64 = (4 << 30) - 1;

/// The latest time stamp: beyond year 9999 no RFC 3339 time can be written.
pub const STAMP_MAX: i64 = 253_402_300_799;

/// Where CRI-O and podman have their store.
pub const GRAPHROOT: &str = "/var/lib/containers/storage";

/// Runs it.
pub fn run(args: MakeArgs, printer: &Printer, begin: &Begin<'_>) -> Result<(), Failure> {
    let items = all_items(&args.items, &args.images, args.allow_empty || args.pause.is_some())?;
    let platform = args.platform.resolve();
    let default = match args.store {
        StoreArg::Primary => GRAPHROOT,
        StoreArg::Additional => "/usr/lib/containers/storage",
    };
    let graphroot = graphroot(args.graphroot.as_deref(), default).map_err(Failure::usage)?;
    let options = source_options(&args.registry, printer)?;
    let epoch = epoch().map_err(Failure::usage)?;
    let helper = match args.unpacker {
        UnpackerArg::Busybox => args.restore_helper.find(&platform).map_err(Failure::usage)?,
        UnpackerArg::Gnu => None,
    };
    let tar = args.tar.clone().unwrap_or_else(default_tar);
    check_name(&tar)?;
    let pause: Vec<Item> = args.pause.iter().filter_map(|typed| Item::parse(typed).ok()).collect();
    let mut needs = of_fetching(items.iter().chain(&pause), &args.registry, &args.cache, Some(&tar));
    needs.reads.extend(args.beside.iter().cloned());
    begin.confined(&needs)?;
    let additional = matches!(args.store, StoreArg::Additional);
    let (beside, warnings) = super::beside::read(&args.beside, &graphroot, additional)?;
    printer.warn_all(&warnings);
    // What cannot be written is said before anything is fetched.
    let target = Target::open(&tar)?;

    let mut plan = Plan::new(&items, &platform, &options).map_err(plan_failure)?;
    let pause = add_pause(args.pause.as_deref(), &mut plan, &platform, &options)?;
    printer.warn_all(&plan.warnings);
    let stamp = epoch.unwrap_or_else(|| plan.newest.clamp(0, STAMP_MAX));
    let settings = Settings {
        graphroot,
        kind: args.store.into(),
        unpacker: args.unpacker.into(),
        config: !args.no_config,
        beside,
        merge: false,
        pause,
        stamp,
        helper,
    };
    let (cache, elsewhere) = open_cache(&args.cache, &tar, printer)?;
    let bars = Arc::new(Bars::new(printer));
    let to_stdout = matches!(target, Target::Stdout);
    let result = make(&plan, &settings, cache, target.output(stamp), bars.clone());
    bars.clear();
    let report = result.map_err(|error| make_failure(error, elsewhere))?;
    printer.warn_all(&report.warnings);
    if report.bytes > ISO_FILE_MAX {
        printer.warn(&format!(
            "the tar has {}: genisoimage (`xc mkcdrom`) takes no file of 4 GiB or more; make several tars with some of the \
             images each, all with --store additional and a --graphroot of their own, and name the earlier ones with --beside \
             (docs/make.md has the commands)",
            human(report.bytes)
        ));
    }
    let summary = Summary::new(&plan, &report, &tar);
    match (args.json, to_stdout) {
        (true, false) => output::json(&summary)?,
        // Standard output is the tar.
        (true, true) => output::json_aside(&summary)?,
        (false, _) => {
            printer.say(&summary.table());
            if additional {
                printer.say(&format!("note: {}", super::beside::OWN_STORE_AT_RISK));
            }
        }
    }
    Ok(())
}

/// `elsewhere`: how converted layers are written to another file system.
pub fn make_failure(error: MakeError, elsewhere: &str) -> Failure {
    let exit = if error.is_not_found() { Exit::Usage } else { Exit::Failure };
    let is_output = matches!(&error, MakeError::Convert { error, .. } if matches!(**error, convert::Error::Output(_)));
    let text = error.to_string();
    let error =
        if is_output && output::limit_hint(&text).is_none() { anyhow!("{text} ({elsewhere})") } else { error.into() };
    Failure { exit, error }
}

/// Adds the pause image, which is fetched only if no item is called so. Returns its name.
pub fn add_pause(
    typed: Option<&OsStr>,
    plan: &mut Plan,
    platform: &Platform,
    options: &source::Options,
) -> Result<Option<String>, Failure> {
    let Some(typed) = typed else { return Ok(None) };
    let item = Item::parse(typed).map_err(Failure::usage)?;
    if let crate::reference::Location::Registry(reference) = &item.location {
        let name = if reference.tag().is_some() { reference.without_digest() } else { reference.clone() }.to_string();
        if item.name.is_none() && reference.digest().is_none() && plan.has_name(&name) {
            return Ok(Some(name));
        }
    }
    let names = plan.add(&[item], platform, options).map_err(plan_failure)?;
    Ok(names.into_iter().next())
}

/// The place of a store in its machine, cleaned.
pub fn graphroot(typed: Option<&str>, default: &str) -> anyhow::Result<String> {
    let typed = typed.unwrap_or(default);
    let parts: Vec<_> = typed.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if !typed.starts_with('/') || parts.is_empty() || parts.contains(&"..") || typed.chars().any(char::is_control) {
        bail!("--graphroot {typed:?}: not an absolute path in the machine (for instance {default})");
    }
    // A comma ends it in containers/storage, and a colon or a backslash in the options of an overlay mount.
    if typed.contains([',', ':', '\\']) {
        bail!("--graphroot {typed:?}: containers/storage cannot use a path with `,`, `:` or `\\`");
    }
    if parts.starts_with(&["var", "lib", "crio"]) {
        bail!("--graphroot {typed:?}: /var/lib/crio is where CRI-O keeps its own state");
    }
    Ok(format!("/{}", parts.join("/")))
}

pub fn source_options(args: &RegistryArgs, printer: &Printer) -> Result<source::Options, Failure> {
    let mut options = source::Options::from_env();
    options.limit = args.max_size.map_or_else(SizeLimit::default, SizeLimit::of);
    options.registry.tls_verify = args.tls_verify;
    options.registry.auth_file.clone_from(&args.authfile);
    options.registry.cert_dir.clone_from(&args.cert_dir);
    options.registry.limits = Limits::new(args.timeout, args.min_rate);
    options.registry.retry.times = args.retry_times;
    options.registry.retry.delay = args.retry_delay.map(Duration::from_secs);
    let printer = printer.clone();
    options.registry.retry.observer = Observer::new(move |retry| printer.say(&output::printable(&retry.to_string())));
    if args.no_creds {
        options.registry.credentials = Some(Credentials::default());
    }
    if let Some(creds) = &args.creds {
        options.registry.credentials = Some(Credentials::parse(creds).map_err(Failure::usage)?);
    }
    Ok(options)
}

/// `$XCLUSTER_TMP`, else what `$XCLUSTER env` says of it, else here.
fn default_tar() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let directory = variable("XCLUSTER_TMP").map(PathBuf::from).or_else(|| {
        let output = std::process::Command::new(variable("XCLUSTER")?)
            .arg("env")
            .stderr(std::process::Stdio::null())
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let value = text.lines().find_map(|line| line.strip_prefix("XCLUSTER_TMP="))?;
        Some(PathBuf::from(value.trim_matches('\''))).filter(|path| path.is_absolute())
    });
    let directory = directory.unwrap_or_default();
    // xcluster makes its directory when it first needs it; what fails here fails again, with a message, when the tar is made.
    let _ = fs_err::create_dir_all(&directory);
    directory.join("images.tar")
}

/// `SOURCE_DATE_EPOCH` (reproducible-builds.org), if it is set.
pub fn epoch() -> anyhow::Result<Option<i64>> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH").filter(|text| !text.is_empty()) else { return Ok(None) };
    match text.to_str().and_then(|text| text.parse().ok()) {
        Some(seconds @ 0..=STAMP_MAX) => Ok(Some(seconds)),
        _ => bail!("SOURCE_DATE_EPOCH={text:?} is not a number of seconds since 1970"),
    }
}

/// `$XDG_CACHE_HOME/prepull` unless `--cache-dir` says otherwise.
pub fn cache_dir(typed: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(typed) = typed {
        return Ok(typed.to_owned());
    }
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    match (absolute("XDG_CACHE_HOME"), absolute("HOME")) {
        (Some(cache), _) => Ok(cache.join("prepull")),
        (None, Some(home)) => Ok(home.join(".cache/prepull")),
        (None, None) => {
            bail!("neither XDG_CACHE_HOME nor HOME is set: where is the cache? (--cache-dir DIR)")
        }
    }
}

/// Returns the path of a file that is never made, in place of an output for [`open_cache`] and confinement: a command that writes no
/// tar keeps layers in the directory for temporary files if there is no room in the cache.
pub fn beside() -> PathBuf {
    temporary_directory().join("x")
}

/// A cache that was asked for must work, unless its disk is full; the usual one is only a convenience (a user in a
/// container may have no home). Also gives what to do when there is no room.
pub fn open_cache(args: &CacheArgs, tar: &Path, printer: &Printer) -> anyhow::Result<(Cache, &'static str)> {
    let hint = "opening the cache (--cache-dir DIR or --no-cache goes around it)";
    let kept = "--cache-dir DIR puts the cache on another file system";
    let as_asked = |cache: Cache| if args.no_link { cache.without_links() } else { cache };
    let beside = if tar == Path::new("-") { Path::new("/var/tmp") } else { crate::atomic::parent(tar) };
    let scratch = chosen_temporary_directory().unwrap_or_else(|| beside.to_owned());
    let as_asked = |cache: Cache| as_asked(cache.with_spare(&scratch));
    if let Some(typed) = &args.cache_dir {
        match Cache::open(typed) {
            Ok(cache) => return Ok((as_asked(cache), kept)),
            Err(error) if is_full(&error) => printer.warn(&format!("no cache: {error}")),
            Err(error) => return Err(error).context(hint),
        }
    } else if !args.no_cache {
        match cache_dir(None).and_then(|directory| Ok(Cache::open(&directory)?)) {
            Ok(cache) => return Ok((as_asked(cache), kept)),
            Err(error) => printer.warn(&format!("no cache: {error:#}")),
        }
    }
    Ok((Cache::none(&scratch), "TMPDIR=DIR puts it on another file system"))
}

/// Endings of file names that promise a compressed tar, with what compresses: without names and times, so that the same images
/// give the same bytes.
const COMPRESSED: [(&str, &str); 15] = [
    (".gz", "gzip -n"),
    (".tgz", "gzip -n"),
    (".taz", "gzip -n"),
    (".zst", "zstd"),
    (".zstd", "zstd"),
    (".tzst", "zstd"),
    (".xz", "xz"),
    (".txz", "xz"),
    (".bz2", "bzip2"),
    (".tbz", "bzip2"),
    (".tbz2", "bzip2"),
    (".lz4", "lz4"),
    (".lzma", "xz --format=lzma"),
    (".lz", "lzip"),
    (".br", "brotli"),
];

/// Refuses names that promise another format: the tar is plain.
fn check_name(tar: &Path) -> Result<(), Failure> {
    let shown = tar.display();
    let name = tar.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    if let Some((_, program)) = COMPRESSED.iter().find(|(ending, _)| name.ends_with(ending)) {
        return Err(Failure::usage(anyhow!(
            "{shown}: the tar is written uncompressed (prepull make -o - ITEM | {program} > {shown})"
        )));
    }
    let formats = [".zip", ".7z", ".rar", ".img", ".iso", ".qcow2", ".raw", ".cpio", ".squashfs", ".erofs", ".ext4"];
    if let Some(ending) = formats.iter().find(|ending| name.ends_with(**ending)) {
        return Err(Failure::usage(anyhow!("{shown}: a tar is written, not a {} file (-o FILE.tar)", &ending[1..])));
    }
    if tar.is_dir() {
        return Err(Failure::usage(anyhow!(
            "{shown}: a directory (-o {shown}/images.tar; prepull install --root {shown} writes into a machine's directory)"
        )));
    }
    Ok(())
}

/// Where the tar goes, opened.
enum Target {
    Stdout,
    File(TarFile),
    Device(fs_err::File),
}

impl Target {
    fn open(path: &Path) -> Result<Self, Failure> {
        if path == Path::new("-") {
            if io::stdout().is_terminal() {
                return Err(Failure::usage(anyhow!(
                    "standard output is a terminal (-o FILE, or redirect it: -o - > FILE)"
                )));
            }
            return Ok(Self::Stdout);
        }
        // Renaming over a pipe or a device (`-o /dev/null`) would replace it.
        let kind = fs_err::metadata(path).map(|metadata| metadata.file_type());
        if kind.is_ok_and(|kind| kind.is_fifo() || kind.is_char_device() || kind.is_block_device()) {
            return Ok(Self::Device(fs_err::File::options().write(true).open(path)?));
        }
        Ok(Self::File(TarFile::create(path)?))
    }

    fn output(self, stamp: i64) -> Output<'static> {
        let stream = |out: Box<dyn Write>, name: &str| Output::Stream(TarStream::new(out, name, stamp));
        match self {
            Self::Stdout => stream(Box::new(io::stdout().lock()), "standard output"),
            Self::File(file) => Output::File(file),
            Self::Device(file) => {
                let name = file.path().display().to_string();
                stream(Box::new(file), &name)
            }
        }
    }
}

/// The result of `make`, for people and, as docs/json.md describes it, for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    tar: String,
    size: u64,
    layers: usize,
    cached_layers: usize,
    images: Vec<ImageSummary>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ImageSummary {
    names: Vec<String>,
    id: String,
    digest: Digest,
    layers: usize,
    size: u64,
    shared_size: u64,
}

impl Summary {
    fn new(plan: &Plan, report: &Report, tar: &Path) -> Self {
        let mut uses: BTreeMap<&Digest, usize> = BTreeMap::new();
        for image in plan.images.values() {
            let unique: std::collections::BTreeSet<_> = image.chain().iter().collect();
            unique.into_iter().for_each(|id| *uses.entry(id).or_default() += 1);
        }
        let size = |id: &Digest| report.layers.get(id).copied().unwrap_or(0);
        let mut images: Vec<_> = plan
            .images
            .values()
            .map(|image| ImageSummary {
                names: image.names().map(str::to_owned).collect(),
                id: image.id().hex(),
                digest: image.digest(),
                layers: image.chain().len(),
                size: image.chain().iter().map(size).sum::<u64>() + image.big_data_size(),
                shared_size: image.chain().iter().filter(|id| uses[id] > 1).map(size).sum(),
            })
            .collect();
        images.sort_by(|a, b| a.names.cmp(&b.names));
        Self {
            tar: tar.display().to_string(),
            size: report.bytes,
            layers: report.layers.len(),
            cached_layers: report.cached,
            images,
            warnings: plan.warnings.iter().chain(&report.warnings).cloned().collect(),
        }
    }

    fn table(&self) -> String {
        let mut rows = vec![["IMAGE", "IMAGE ID", "LAYERS", "SIZE", "SHARED"].map(str::to_owned)];
        for image in &self.images {
            for name in &image.names {
                rows.push([
                    name.clone(),
                    image.id[..13].to_owned(),
                    image.layers.to_string(),
                    human(image.size),
                    human(image.shared_size),
                ]);
            }
        }
        let mut text = output::table(&rows);
        text += &format!(
            "{}: {}, {} image(s), {} layer(s), {} of them from the cache",
            printable(&self.tar),
            human(self.size),
            self.images.len(),
            self.layers,
            self.cached_layers
        );
        text
    }
}
