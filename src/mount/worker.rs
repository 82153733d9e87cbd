//! The process that answers the kernel. It holds nothing that cannot be made again, and can do nothing but answer.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, OnceLock, PoisonError};

use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use serde::{Deserialize, Serialize};

use super::Error;
use super::scene::Scene;
use super::serve::{Server, THREADS_MAX};
use crate::channel::{receive, send};
use crate::threads;

/// What the keeper tells the worker.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order<S> {
    /// To serve a scene. The first file is the mount, the second the journal if there is one.
    Serve {
        /// What.
        scene: S,
        /// Whether another worker has served it.
        again: bool,
        /// Whether the kernel is to send again what nobody has answered.
        resend: bool,
        /// Whether it is to be noted what is being answered.
        journal: bool,
    },
    /// To show another scene.
    Show {
        /// What.
        scene: S,
    },
    /// To fail what waits for these layers: they cannot be had.
    Refuse {
        /// Their ids.
        layers: Vec<String>,
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
    /// Somebody needs this layer.
    Wanted(String),
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

fn want(layer: &str) {
    say(&Said::Wanted(layer.to_owned()));
}

/// Runs the worker: its standard input is the keeper.
#[must_use]
pub fn run() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Says of panics what they are.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        // The thread may have been saying something.
        if let Some(Ok(keeper)) = KEEPER.get().map(Mutex::try_lock) {
            let _ = send(&keeper, &Said::Trouble(panic.to_string()), &[]);
        }
    }));
}

/// The whole process dies with a thread that panics: else the others would serve on, fewer each time, and at last none.
struct Together;

impl Drop for Together {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

fn serve() -> Result<(), Error> {
    report_panics();
    // The keeper decides when this ends, also where a terminal sends signals to both.
    let blocked: SigSet =
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE].into_iter().collect();
    blocked.thread_block().map_err(|error| Error::system("blocking signals", error))?;
    let keeper = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from);
    let keeper = keeper.map_err(|error| Error::system("opening standard input", error))?;
    let lost = |error| Error::system("listening to the keeper", error);
    let reply_to = keeper.try_clone().map_err(lost)?;
    let _ = KEEPER.set(Mutex::new(reply_to));
    let Some((Order::Serve { scene, again, resend, journal }, files)) =
        receive::<Order<Scene>>(&keeper).map_err(lost)?
    else {
        return Err(Error::Scene);
    };
    let mut files = files.into_iter();
    let fuse = files.next().ok_or(Error::Scene)?;
    let journal = if journal { Some(File::from(files.next().ok_or(Error::Scene)?)) } else { None };
    let files: Vec<OwnedFd> = files.collect();
    confine()?;
    let server = Arc::new(OnceLock::new());
    let begin = start(&server)?;
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
    let server = server.get_or_init(|| Server::new(fuse, view, journal, report, want));
    begin.wait();
    if resend {
        server.resend();
    }
    say(&Said::Done);
    loop {
        let (order, files) = match receive::<Order<Scene>>(&keeper) {
            Ok(Some(order)) => order,
            Ok(None) => break,
            // A scene that is none: of another version of prepull, perhaps.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                say(&Said::Failed(format!("what is to be shown is not understood: {error}")));
                continue;
            }
            Err(error) => return Err(lost(error)),
        };
        match order {
            Order::Serve { .. } => return Err(Error::Scene),
            Order::Refuse { layers } => server.refuse(&layers),
            Order::Show { scene } => say(&match show(server, &scene, &files) {
                Ok(()) => Said::Done,
                Err(error) => Said::Failed(error.to_string()),
            }),
        }
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

/// Threads that will answer: as many as there are processors, but not one alone, since it may wait for a disk. With them this one is
/// confined, before it has looked into what strangers have packed. They begin when what is returned is waited for.
fn start(server: &Arc<OnceLock<Server>>) -> Result<Arc<Barrier>, Error> {
    let count = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, THREADS_MAX as usize);
    let running = Arc::new(AtomicUsize::new(count));
    let confined = Arc::new(Barrier::new(count + 1));
    for thread in 0..count {
        let (server, running, confined) = (Arc::clone(server), Arc::clone(&running), Arc::clone(&confined));
        let task = move || {
            // Once it has begun, which takes calls that are forbidden then; and once there is something to serve.
            confined.wait();
            confined.wait();
            let Some(server) = server.get() else { return };
            let _together = Together;
            let result = server.run(thread as u64);
            if let Err(error) = &result {
                report(&format!("reading /dev/fuse: {error}"));
            }
            // The last one ends the process, which otherwise waits for orders.
            if running.fetch_sub(1, Ordering::AcqRel) == 1 {
                std::process::exit(if result.is_ok() { 0 } else { 1 });
            }
        };
        threads::spawn(task).map_err(|error| Error::system("serving", error))?;
    }
    confined.wait();
    let filter = filter().map_err(|error| Error::Other(format!("seccomp: {error}")))?;
    // The kernel may have none of it; then capabilities and Landlock have to do.
    if let Err(error) = seccompiler::apply_filter_all_threads(&filter) {
        report(&format!("seccomp: {error}"));
    }
    Ok(confined)
}

/// What is left to a process that has all that it needs open: no capability, no file, no program, no network.
fn confine() -> Result<(), Error> {
    use landlock::{ABI, Access as _, AccessFs, AccessNet, Ruleset, RulesetAttr as _, Scope};
    let failed = |what: &'static str| move |error: rustix::io::Errno| Error::system(what, error);
    let not_dumpable = rustix::process::DumpableBehavior::NotDumpable;
    rustix::process::set_dumpable_behavior(not_dumpable).map_err(failed("PR_SET_DUMPABLE"))?;
    rustix::thread::set_no_new_privs(true).map_err(failed("PR_SET_NO_NEW_PRIVS"))?;
    // Where that is not permitted they are the user's own.
    let _ = rustix::thread::set_thread_groups(&[]);
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

/// What is needed to answer. Landlock knows nothing of chmod and chown, which a file's owner needs no capability for, nor of
/// connecting to sockets by their paths: here they are errors, like everything else.
fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let argument = |index, mask: i32, value: i32| {
        let compare = SeccompCmpOp::MaskedEq(u64::from(mask as u32));
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, compare, u64::from(value as u32))
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        // Memory is never code.
        rules.insert(call, vec![SeccompRule::new(vec![argument(2, libc::PROT_EXEC, 0)?])?]);
    }
    let fcntl = [libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL]
        .map(|command| SeccompRule::new(vec![argument(1, -1, command)?]));
    rules.insert(libc::SYS_fcntl, fcntl.into_iter().collect::<Result<_, _>>()?);
    let own = std::process::id() as i32;
    let abort = SeccompRule::new(vec![argument(0, -1, own)?, argument(2, -1, libc::SIGABRT)?])?;
    rules.insert(libc::SYS_tgkill, vec![abort]);
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow, arch)?.try_into()
}

#[rustfmt::skip]
const ALLOWED: &[i64] = &[
    // Requests, content, the keeper.
    libc::SYS_read, libc::SYS_write, libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_lseek, libc::SYS_close,
    libc::SYS_fstat, libc::SYS_statx, libc::SYS_fdatasync, libc::SYS_recvfrom, libc::SYS_recvmsg, libc::SYS_sendto, libc::SYS_sendmsg,
    // Memory, time, locks, the end.
    libc::SYS_brk, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise, libc::SYS_futex, libc::SYS_getrandom,
    libc::SYS_clock_gettime, libc::SYS_clock_nanosleep, libc::SYS_nanosleep, libc::SYS_sched_yield, libc::SYS_getpid,
    libc::SYS_gettid, libc::SYS_sigaltstack, libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall, libc::SYS_exit, libc::SYS_exit_group,
];
