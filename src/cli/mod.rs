//! The command line: what is typed, what is said, and how it ends.
//!
//! Data go to standard output, talk goes to standard error; `make --tar -` and the `tar` contract of xcluster depend on it.

pub mod args;
mod beside;
mod cache;
mod common;
mod diff;
mod doctor;
mod generate;
mod install;
mod items;
mod ls;
mod make;
mod mount;
mod output;
mod ovl;
mod pins;
mod privilege;
mod progress;
mod restore_helper;
mod verify;
mod why;
mod words;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::FromArgMatches as _;

pub use args::Args;
use args::Command;
use output::Printer;

use crate::confine::{Needs, Trees, confine};
use crate::inspect::find::{self, Found};
use crate::install::applier;
use crate::mount::{control, keeper, relay};

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All done.
    Success = 0,
    /// Something failed; `why`: the image is there, but a pod that names it does not just start.
    Failure = 1,
    /// Wrong usage, or an image that is not there (as skopeo).
    Usage = 2,
    /// Stopped by SIGINT or SIGTERM (as a shell reports it).
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error with the exit code that it asks for.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    error: anyhow::Error,
}

impl Failure {
    fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self { exit: Exit::Usage, error: error.into() }
    }
}

/// Reports that the input `shown` cannot be read, or has no store: exit code 2 in all commands that look into one.
fn unreadable(shown: &str, error: impl Into<anyhow::Error>) -> Failure {
    let error = error.into();
    let cause = |error: &anyhow::Error| match error.downcast_ref::<find::Error>() {
        Some(find::Error::Io(error)) => Some(error.kind()),
        _ => None,
    };
    let is_denied = cause(&error) == Some(ErrorKind::PermissionDenied);
    let hint = match (is_denied, rustix::process::geteuid().is_root(), find::rootless_owner(Path::new(shown))) {
        (false, ..) | (_, true, _) => "",
        (.., Ok(Some(_))) => " (run this in podman unshare)",
        _ => " (run this as root)",
    };
    Failure::usage(anyhow::anyhow!("{shown}: {error}{hint}"))
}

/// Returns `stores` of the input `shown`, if there are some, and each record of theirs can be read.
fn readable<'a>(shown: &str, stores: &'a [Found]) -> Result<&'a [Found], Failure> {
    if stores.is_empty() {
        return Err(unreadable(shown, find::Error::NoStore));
    }
    find::all_readable(stores).map_err(|error| unreadable(shown, error))?;
    Ok(stores)
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { exit: Exit::Failure, error: error.into() }
    }
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    // Processes of `prepull mount` and `install`, which these start themselves.
    let process = match std::env::args_os().nth(1).as_deref().and_then(std::ffi::OsStr::to_str) {
        Some(control::KEEPER) => Some(keeper::run as fn() -> ExitCode),
        Some(control::WORKER) => Some(crate::mount::worker::run as fn() -> ExitCode),
        Some(control::FETCHER) => Some(mount::fetch as fn() -> ExitCode),
        Some(control::RELAY) => Some(relay::run as fn() -> ExitCode),
        Some(applier::APPLIER) => Some(install::apply as fn() -> ExitCode),
        _ => None,
    };
    if let Some(run) = process {
        // What a caller has left open is not held open by who stays, nor seen by who reads what strangers have packed.
        if let Err(error) = crate::helper::confine::close_inherited() {
            Printer::new(false).error(&anyhow::Error::new(error).context("closing what was left open"));
            return Exit::Failure.into();
        }
        raise_file_limit();
        return run();
    }
    let args = match parse(std::env::args_os().collect()) {
        Ok(args) => args,
        Err(exit) => return exit.into(),
    };
    let printer = Printer::new(args.quiet);
    init_log(args.verbose, &printer);
    raise_file_limit();
    let told = Arc::new(AtomicBool::new(false));
    let begin = Begin { told: &told, printer: &printer };
    let done = |()| Exit::Success;
    let begun = match &args.command {
        // They begin when they know what they need.
        Command::Make(_) | Command::Mount(_) | Command::Install(_) => Ok(()),
        Command::Ls(ls) => begin.with_inputs(&[&ls.path], Trees::Files),
        Command::Verify(verify) => {
            begin.with_inputs(&verify.path.iter().map(PathBuf::as_path).collect::<Vec<_>>(), Trees::Attributes)
        }
        Command::Why(why) => begin.with_inputs(&[&why.path], Trees::Files),
        Command::Diff(diff) => begin.with_inputs(&[&diff.old, &diff.new], Trees::Attributes),
        _ => begin.unconfined(),
    };
    let result = begun.and_then(|()| match args.command {
        Command::Make(make) => make::run(*make, &printer, &begin).map(done),
        Command::Install(install) => install::install(&install, &printer, &begin).map(done),
        Command::Rm(rm) => install::remove(&rm, &printer).map(done),
        Command::Gc(gc) => install::collect(&gc, &printer).map(done),
        Command::Mount(mount) => mount::run(&mount, &printer, &begin),
        Command::Umount(umount) => mount::unmount(&umount, &printer).map(done),
        Command::Doctor(doctor) => doctor::run(&doctor, &printer),
        Command::Ls(ls) => ls::run(&ls, &printer).map(done),
        Command::Verify(verify) => verify::run(&verify, &printer),
        Command::Why(why) => why::run(&why, &printer),
        Command::Diff(diff) => diff::run(&diff, &printer),
        Command::Ovl(ovl) => ovl::run(&ovl, &printer).map(done),
        Command::Cache(cache) => cache::run(&cache, &printer).map(done),
        Command::Completions { shell } => generate::completions(shell).map(done),
        Command::Man { directory } => generate::man(&directory, &printer).map(done),
    });
    let exit = match result {
        Ok(exit) => exit.into(),
        // Whoever read our output has seen enough.
        Err(failure) if is_broken_pipe(&failure.error) => Exit::Success.into(),
        // The terminal tells the helper and others, too: what fails because they have ended is an interruption. Nothing is said
        // twice: of this thread and that of the signals one comes no further than `may_stop`.
        Err(_) if told.load(Ordering::Acquire) && !control::passes_on() && crate::atomic::may_stop() => {
            printer.interrupted();
            crate::install::way::stop();
            return Exit::Interrupted.into();
        }
        Err(failure) => {
            printer.error(&failure.error);
            failure.exit.into()
        }
    };
    // A download may still be under way when another one has failed. Last, since signals do nothing after it.
    crate::atomic::remove_temporary_files();
    exit
}

/// The end of the single-threaded part of a command: it gives up what it does not need, then signals are handled.
struct Begin<'a> {
    told: &'a Arc<AtomicBool>,
    printer: &'a Printer,
}

impl Begin<'_> {
    /// Confines this process to `needs` if root has started it.
    fn confined(&self, needs: &Needs) -> Result<(), Failure> {
        self.printer.warn_all(&confine(needs)?);
        self.unconfined()
    }

    /// Confines a process that only reads `inputs`, and of directories among them what `trees` says.
    fn with_inputs(&self, inputs: &[&Path], trees: Trees) -> Result<(), Failure> {
        self.confined(&privilege::of_inputs(inputs, trees))
    }

    fn unconfined(&self) -> Result<(), Failure> {
        if let Err(error) = stop_on_signals(self.told, self.printer) {
            self.printer.warn(&format!("signals cannot be handled: {error}"));
        }
        Ok(())
    }
}

/// Parses a command line. If there is nothing to run, prints help or what is wrong, and returns how to end.
fn parse(typed: Vec<std::ffi::OsString>) -> Result<Args, Exit> {
    use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    let refuse = |text: String| {
        Printer::new(false).error(&anyhow::Error::msg(text));
        Exit::Usage
    };
    let mut typed = words::translate(typed).map_err(refuse)?;
    // Messages have the name that users know, also if the program is run by another one.
    if let Some(name) = typed.first_mut() {
        *name = "prepull".into();
    }
    let parsed = args::command().try_get_matches_from(typed).and_then(|matches| Args::from_arg_matches(&matches));
    parsed.map_err(|error| {
        // Help and version are data and end well; clap knows which is which.
        match error.use_stderr() {
            true if error.kind() != DisplayHelpOnMissingArgumentOrSubcommand => refuse(words::usage_error(&error)),
            true => {
                // Nothing is left to do if it cannot be printed.
                let _ = error.print();
                Exit::Usage
            }
            false => match error.print() {
                Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                    let error = anyhow::Error::new(error).context("writing standard output");
                    Printer::new(false).error(&error);
                    Exit::Failure
                }
                _ => Exit::Success,
            },
        }
    })
}

/// Only of what is printed: a tar that could not be written to its end is a failure, whoever closed the pipe.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

fn init_log(verbose: u8, printer: &Printer) {
    use tracing_subscriber::EnvFilter;
    let default = match verbose {
        0 => "error",
        1 => "prepull=info",
        2 => "prepull=debug",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("PREPULL_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let screen = printer.screen().clone();
    let writer = move || output::Above(screen.clone());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    // Only a second initialisation could fail.
    let _ = subscriber.try_init();
}

/// Every layer is an open file: as many as this user may have.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // The limit as it was may do.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// On SIGINT, SIGTERM and SIGHUP: no rubbish, one line, 130. What is ignored stays ignored. `told` is set before anything else
/// goes on in this process.
fn stop_on_signals(told: &Arc<AtomicBool>, printer: &Printer) -> std::io::Result<()> {
    let handled = crate::signals::ending();
    for signal in &handled {
        signal_hook::flag::register(*signal, Arc::clone(told))?;
    }
    let printer = printer.clone();
    let mut signals = signal_hook::iterator::Signals::new(handled)?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        // Once the tar is in its place there is nothing left to interrupt: the last lines are printed.
        if signals.forever().any(|signal| !control::pass_on(signal) && crate::atomic::may_stop()) {
            printer.interrupted();
            // Who does not want to wait says it again.
            let stopping = std::thread::Builder::new().spawn(|| {
                crate::install::way::stop();
                std::process::exit(Exit::Interrupted as i32);
            });
            if stopping.is_ok() {
                signals.forever().next();
            }
            std::process::exit(Exit::Interrupted as i32);
        }
    })?;
    Ok(())
}
