//! The ways to somebody who may write as root.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use signal_hook::consts::{SIGTSTP, SIGTTIN, SIGTTOU};
use signal_hook::flag;

use super::{Error, Target, applier, lacks_store, own_job, read_json};
use crate::helper::apply::Budget;
use crate::helper::{Answer, Job, serve};
use crate::threads;

/// Where the helper is installed: what policy/sudoers allows.
pub const HELPER: &str = "/usr/libexec/prepull-helper";

/// Where policy/prepull-helper.socket listens.
pub const SOCKET: &str = "/run/prepull/helper.sock";

/// One way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// In this process, which is root, or in the applier that it has started.
    Own,
    /// By the socket of a service.
    Socket(PathBuf),
    /// The helper, by sudo.
    Sudo(PathBuf),
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Own => f.write_str("this process"),
            Self::Socket(path) => write!(f, "the service at {}", path.display()),
            Self::Sudo(path) => write!(f, "sudo {}", path.display()),
        }
    }
}

impl Way {
    /// Returns the value of `--via` that asks for this way; JSON has it as well.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Socket(_) => "socket",
            Self::Sudo(_) => "sudo",
        }
    }
}

/// Whether this process has been told to stop, and how many threads have something in staging.
static SERVED: Mutex<(bool, usize)> = Mutex::new((false, 0));
static IS_OVER: Condvar = Condvar::new();

/// How long staging may take to be removed when the process is told to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of a pipe with a stream: fewer turns for gigabytes.
pub(super) const PIPE: usize = 1 << 20;

/// How often a thread that waits for more looks whether there will be none.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Ends what this process writes into stores, and waits until nothing of it is left: a process that is about to exit.
pub fn stop() {
    let mut served = SERVED.lock().unwrap_or_else(PoisonError::into_inner);
    served.0 = true;
    // Whether in time or not: the process ends.
    drop(IS_OVER.wait_timeout_while(served, PATIENCE, |served| served.1 > 0));
    applier::end();
}

/// Signals of a terminal that stop a process.
const STOPS: [i32; 3] = [SIGTSTP, SIGTTIN, SIGTTOU];

/// What such signals meet: whether they may stop the process, and whether one has come when it might not.
#[derive(Debug)]
struct Stops {
    may: Arc<AtomicBool>,
    has_come: Arc<AtomicBool>,
}

static STOPS_MET: LazyLock<Stops> = LazyLock::new(|| {
    let stops = Stops { may: Arc::new(AtomicBool::new(true)), has_come: Arc::new(AtomicBool::new(false)) };
    for signal in STOPS {
        // Without it a stop takes effect at once, as for any program.
        let _ = flag::register(signal, Arc::clone(&stops.has_come));
        let _ = flag::register_conditional_default(signal, Arc::clone(&stops.may));
    }
    stops
});

/// Puts off being stopped by Ctrl-Z while the locks of a store are held: podman and CRI-O would wait for as long.
pub fn holds(is_held: bool) {
    STOPS_MET.may.store(!is_held, Ordering::SeqCst);
    if is_held {
        STOPS_MET.has_come.store(false, Ordering::SeqCst);
    } else if STOPS_MET.has_come.swap(false, Ordering::SeqCst) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TSTP);
    }
}

/// Whether [`stop`] was called.
pub fn is_stopped() -> bool {
    SERVED.lock().unwrap_or_else(PoisonError::into_inner).0
}

/// Waits for the end of the process if [`stop`] was called: what is to be said is said by the thread that ends it.
fn leave_to_stop() {
    while is_stopped() {
        std::thread::park();
    }
}

/// A thread that has something in staging, until it is dropped.
pub(super) struct Serving;

impl Serving {
    pub(super) fn begin() -> Self {
        SERVED.lock().unwrap_or_else(PoisonError::into_inner).1 += 1;
        Self
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        SERVED.lock().unwrap_or_else(PoisonError::into_inner).1 -= 1;
        IS_OVER.notify_all();
    }
}

/// A pipe, until [`stop`].
struct Stoppable(PipeReader);

impl Read for Stoppable {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !is_stopped() {
            let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
            if retry_on_intr(|| poll(&mut polled, Some(&LOOK)))? > 0 {
                return self.0.read(buffer);
            }
        }
        Err(io::Error::other("told to stop"))
    }
}

/// Serves what comes from `stream` in this thread, which does nothing else afterwards.
pub(super) fn serve_here(stream: PipeReader, job: &Job, budget: Budget) -> Answer {
    // As in the helper: a file size limit is an error (EFBIG), not a death.
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGXFSZ);
    let _ = blocked.thread_block();
    serve(Stoppable(stream), job, budget)
}

/// A way that is being gone.
#[derive(Debug)]
pub enum Started {
    /// Not at all: this is the answer.
    Known(Box<Answer>, io::Sink),
    /// In this process.
    Own(PipeWriter, JoinHandle<Answer>),
    /// In the applier, whose answer comes by the second pipe.
    Applier(PipeWriter, PipeReader),
    /// A service.
    Socket(UnixStream, String),
    /// A child process.
    Child(Box<Child>, ChildStdin, String),
}

impl Way {
    /// All ways that may work here, the best first; `helper` is the program, `socket` the service's.
    #[must_use]
    pub fn all(helper: &Path, socket: &Path) -> Vec<Self> {
        if rustix::process::geteuid().is_root() {
            return vec![Self::Own];
        }
        let mut ways = Vec::new();
        if rustix::fs::access(socket, rustix::fs::Access::WRITE_OK).is_ok() {
            ways.push(Self::Socket(socket.to_owned()));
        }
        if rustix::fs::stat(helper).is_ok() {
            ways.push(Self::Sudo(helper.to_owned()));
        }
        ways
    }

    /// Starts it. If this process or its applier would have to make the store first, and there is an answer in `unless`, then that
    /// is given, and nothing is made.
    ///
    /// # Errors
    /// When that is not possible.
    pub(super) fn start(&self, target: &Target, unless: Option<Answer>) -> Result<Started, Error> {
        let program = self.to_string();
        let failed = |error| Error::Start { program: program.clone(), error };
        let root = |error| Error::Root { root: target.root.display().to_string(), error };
        let child = |command: &mut Command| {
            // The helper is told by its directory where to write.
            std::fs::metadata(target.root.join(".")).map_err(root)?;
            let command = command.arg("stdio").current_dir(&target.root).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().map_err(failed)?;
            let stdin = child.stdin.take().ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
            // As it was will do.
            let _ = rustix::pipe::fcntl_setpipe_size(&stdin, PIPE);
            Ok(Started::Child(Box::new(child), stdin, program.clone()))
        };
        match self {
            Self::Own => {
                if let Some(asked) = applier::serve(unless.as_ref()) {
                    let (input, answer) =
                        asked.map_err(|error| Error::Start { program: applier::NAME.to_owned(), error })?;
                    return Ok(Started::Applier(input, answer));
                }
                if let Some(answer) = unless.filter(|_| lacks_store(target)) {
                    return Ok(Started::Known(Box::new(answer), io::sink()));
                }
                let (job, budget) = own_job(target).map_err(root)?;
                let (reader, writer) = io::pipe().map_err(failed)?;
                let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE);
                let serving = Serving::begin();
                let serve = move || {
                    let _serving = serving;
                    serve_here(reader, &job, budget)
                };
                let thread = threads::spawn(serve).map_err(failed)?;
                Ok(Started::Own(writer, thread))
            }
            Self::Socket(path) => Ok(Started::Socket(UnixStream::connect(path).map_err(failed)?, program)),
            Self::Sudo(path) => {
                let mut command = Command::new("sudo");
                // Where nobody can type a password, it is not asked for.
                if !rustix::termios::isatty(io::stderr()) {
                    command.arg("-n");
                }
                child(command.arg(path))
            }
        }
    }
}

impl Started {
    /// Where the stream goes.
    pub(super) fn input(&mut self) -> &mut (dyn Write + Send) {
        match self {
            Self::Known(_, sink) => sink,
            Self::Own(writer, _) | Self::Applier(writer, _) => writer,
            Self::Socket(stream, _) => stream,
            Self::Child(_, stdin, _) => stdin,
        }
    }

    /// What was started, for messages.
    pub(super) fn program(&self) -> &str {
        match self {
            Self::Known(..) | Self::Own(..) => "this process",
            Self::Applier(..) => applier::NAME,
            Self::Socket(_, program) | Self::Child(_, _, program) => program,
        }
    }

    /// Ends the stream and waits for the answer; `None` when there is none.
    pub(super) fn finish(self) -> io::Result<Option<Answer>> {
        match self {
            Self::Known(answer, _) => Ok(Some(*answer)),
            Self::Own(writer, thread) => {
                drop(writer);
                let answer = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                leave_to_stop();
                Ok(Some(answer))
            }
            Self::Applier(writer, answer) => {
                drop(writer);
                let answer = read_json(answer);
                leave_to_stop();
                answer
            }
            Self::Socket(stream, _) => {
                // Gone already if the other side has answered.
                let _ = stream.shutdown(Shutdown::Write);
                read_json(stream)
            }
            Self::Child(mut child, stdin, _) => {
                drop(stdin);
                let answer = match child.stdout.take() {
                    Some(stdout) => read_json(stdout),
                    None => Ok(None),
                };
                // Whatever has ended it, this process has been told of, too, once it is waited for.
                child.wait()?;
                answer
            }
        }
    }
}
