//! The process that answers the kernel. It holds nothing that cannot be made again, and can do nothing but answer.

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use nix::sys::signal::{SigSet, Signal};
use serde::{Deserialize, Serialize};

use super::Error;
use super::channel::{receive, send};
use super::scene::Scene;
use super::serve::Server;
use crate::threads;

/// What the keeper tells the worker.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order<S> {
    /// To serve a scene. The first file is the mount; with `resend`, another worker has died.
    Serve {
        /// What.
        scene: S,
        /// Whether another worker has served it.
        again: bool,
        /// Whether the kernel is to send again what nobody has answered.
        resend: bool,
    },
    /// To show another scene.
    Show {
        /// What.
        scene: S,
    },
}

/// What the worker tells the keeper.
#[derive(Debug, Serialize, Deserialize)]
pub enum Said {
    /// What it was told is done.
    Done,
    /// It cannot be done.
    Failed(String),
    /// Something for users to know.
    Trouble(String),
}

/// The way to the keeper, for threads that have something to say.
static KEEPER: OnceLock<Mutex<UnixStream>> = OnceLock::new();

fn say(said: &Said) {
    if let Some(keeper) = KEEPER.get() {
        // Who does not listen has gone.
        let _ = send(&keeper.lock().unwrap_or_else(PoisonError::into_inner), said, &[]);
    }
}

fn report(text: &str) {
    say(&Said::Trouble(text.to_owned()));
}

/// Runs the worker: its standard input is the keeper.
#[must_use]
pub fn run() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error.to_string());
            let _ = writeln!(io::stderr(), "prepull: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Error> {
    // The keeper decides when this ends, also where a terminal sends signals to both.
    let blocked: SigSet =
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE].into_iter().collect();
    blocked.thread_block().map_err(|error| Error::system("blocking signals", error))?;
    let keeper = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from);
    let keeper = keeper.map_err(|error| Error::system("opening standard input", error))?;
    let lost = |error| Error::system("listening to the keeper", error);
    let reply_to = keeper.try_clone().map_err(lost)?;
    let _ = KEEPER.set(Mutex::new(reply_to));
    let Some((Order::Serve { scene, again, resend }, mut files)) = receive::<Order<Scene>>(&keeper).map_err(lost)?
    else {
        return Err(Error::Scene);
    };
    if files.is_empty() {
        return Err(Error::Scene);
    }
    let fuse = files.remove(0);
    confine()?;
    // What has been shown is shown on, as far as it is still there.
    let gone: Option<fn(&Error)> = again.then_some(|error| report(&error.to_string()));
    let view = match scene.open(&files, None, gone) {
        Ok(view) => view,
        Err(error) => {
            say(&Said::Failed(error.to_string()));
            return Err(error);
        }
    };
    drop(files);
    let server = Arc::new(Server::new(fuse, view, report));
    start(&server)?;
    if resend {
        server.resend();
    }
    say(&Said::Done);
    while let Some((order, files)) = receive::<Order<Scene>>(&keeper).map_err(lost)? {
        let Order::Show { scene } = order else { return Err(Error::Scene) };
        say(&match show(&server, &scene, &files) {
            Ok(()) => Said::Done,
            Err(error) => Said::Failed(error.to_string()),
        });
    }
    // The keeper has died: nobody would start another worker, but this one still serves.
    loop {
        std::thread::park();
    }
}

fn show(server: &Server, scene: &Scene, files: &[OwnedFd]) -> Result<(), Error> {
    let view = scene.open(files, Some(&server.view()), None)?;
    server.show(view);
    Ok(())
}

/// Threads that answer: as many as there are processors, but not one alone, since it may wait for a disk.
fn start(server: &Arc<Server>) -> Result<(), Error> {
    let count = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4);
    let running = Arc::new(std::sync::atomic::AtomicUsize::new(count));
    for _ in 0..count {
        let (server, running) = (Arc::clone(server), Arc::clone(&running));
        let task = move || {
            let result = server.run();
            if let Err(error) = &result {
                report(&format!("reading /dev/fuse: {error}"));
            }
            // The last one ends the process, which otherwise waits for orders.
            if running.fetch_sub(1, std::sync::atomic::Ordering::AcqRel) == 1 {
                std::process::exit(if result.is_ok() { 0 } else { 1 });
            }
        };
        threads::spawn(task).map_err(|error| Error::system("serving", error))?;
    }
    Ok(())
}

/// What serves has all that it needs open: no capability, no file, no program, no network is left to it.
fn confine() -> Result<(), Error> {
    use landlock::{ABI, Access as _, AccessFs, AccessNet, Ruleset, RulesetAttr as _, Scope};
    let failed = |what: &'static str| move |error: rustix::io::Errno| Error::system(what, error);
    let not_dumpable = rustix::process::DumpableBehavior::NotDumpable;
    rustix::process::set_dumpable_behavior(not_dumpable).map_err(failed("PR_SET_DUMPABLE"))?;
    rustix::thread::set_no_new_privs(true).map_err(failed("PR_SET_NO_NEW_PRIVS"))?;
    let none = rustix::thread::CapabilitySet::empty();
    let none = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, none).map_err(failed("giving up capabilities"))?;
    // A kernel without Landlock has less to forbid it with.
    let abi = ABI::V6;
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(abi)))
        .and_then(|rules| rules.scope(Scope::from_all(abi)))
        .and_then(|rules| rules.create())
        .and_then(|rules| rules.restrict_self());
    rules.map(drop).map_err(|error| Error::Other(format!("Landlock: {error}")))
}
