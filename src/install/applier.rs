//! The process that writes into a store for an `install` of root's once that has given up root's privileges.
//!
//! ```text
//!  front, confined                               applier, root
//!  images ▶ inflate, parse ▶ canonical tar ─────▶ helper::serve ▶ staging ▶ store
//!                                   answer ◀─────┘
//! ```
//!
//! The front starts it before it has fetched anything, and tells it the target and whether `--pin` was typed. Later it hands over
//! two pipes for each request: one with the stream that `prepull-helper` reads, too, and one for the answer.
//!
//! The applier trusts the front no more than the helper trusts its callers. A front that an image has taken over can do with this
//! target what a caller of the helper without limits can do, and pin further names in the drop-in that prepull has written.
//!
//! The signals that end a command reach the applier as well if they come from a terminal. It blocks them, as the helper does, and ends
//! with the front: at the end of its standard input it stops what is under way, and removes what is in staging.

use std::ffi::OsString;
use std::io::{self, PipeReader, PipeWriter, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{SigSet, Signal};
use rustix::fs::FileType;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Error, Target, enter_hint, lacks_store, own_job, read_json, way};
use crate::channel::{receive, send};
use crate::helper::publish::record::is_name;
use crate::helper::{self, Answer};
use crate::threads;

/// The hidden command that is an applier.
pub const APPLIER: &str = "install-applier";

/// Name of the applier in messages.
pub(super) const NAME: &str = "the process that writes as root";

/// What an applier is told first.
#[derive(Debug, Serialize, Deserialize)]
struct Begin {
    root: OsString,
    graphroot: String,
    is_rootfs: bool,
    is_additional: bool,
    pins: bool,
}

/// What the front asks for.
#[derive(Debug, Serialize, Deserialize)]
enum Ask<A> {
    /// Serves a stream. If there is an answer here, it is given where there is no store.
    Serve(Option<A>),
    /// Pins these names in the machine's CRI-O.
    Pin(Vec<String>),
}

/// An applier that has been started.
#[derive(Debug)]
struct Applier {
    socket: UnixStream,
    child: Child,
    /// Device and inode of the root directory.
    root: (u64, u64),
}

/// The applier of this process, which a signal ends as well as the command.
static STARTED: Mutex<Option<Applier>> = Mutex::new(None);

fn started() -> MutexGuard<'static, Option<Applier>> {
    STARTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The time during which there is an applier: it ends when this is dropped.
#[derive(Debug)]
pub struct Session(());

impl Drop for Session {
    fn drop(&mut self) {
        end();
    }
}

/// Starts the applier of this process for `target`. With `pins` it may make the drop-in in which names are pinned.
///
/// # Errors
/// When the target cannot be entered, or no process can be started.
pub fn start(target: &Target, pins: bool) -> Result<Session, Error> {
    let root = super::identity(target)?;
    let failed = |error| Error::Start { program: NAME.to_owned(), error };
    let (socket, theirs) = UnixStream::pair().map_err(failed)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("prepull").arg(APPLIER).stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().map_err(failed)?;
    // It has the applier's end of the socket.
    drop(command);
    let Target { graphroot, is_rootfs, is_additional, .. } = target.clone();
    let begin = Begin { root: target.root.clone().into(), graphroot, is_rootfs, is_additional, pins };
    let sent = send(&socket, &begin, &[]);
    *started() = Some(Applier { socket, child, root });
    let session = Session(());
    sent.map_err(failed)?;
    Ok(session)
}

/// Ends the applier, if there is one, and waits until nothing of what was not published is left.
pub(super) fn end() {
    // Locked until its end: another thread that wants to end it waits as well.
    let mut started = started();
    if let Some(Applier { socket, child, .. }) = started.as_mut() {
        let _ = socket.shutdown(std::net::Shutdown::Both);
        let _ = child.wait();
    }
    *started = None;
}

/// Returns device and inode of the root directory, as they were when the applier was started.
pub(super) fn root() -> Option<(u64, u64)> {
    started().as_ref().map(|applier| applier.root)
}

/// Has the applier serve a request, if there is an applier: gives where the stream goes, and where the answer comes from.
pub(super) fn serve(unless: Option<&Answer>) -> Option<io::Result<(PipeWriter, PipeReader)>> {
    let started = started();
    let applier = started.as_ref()?;
    let serve = || {
        let (stream, input) = io::pipe()?;
        let (answer, theirs) = io::pipe()?;
        let _ = rustix::pipe::fcntl_setpipe_size(&input, way::PIPE);
        send(&applier.socket, &Ask::Serve(unless), &[stream.as_fd(), theirs.as_fd()])?;
        Ok((input, answer))
    };
    Some(serve())
}

/// Has the applier pin `names`, if there is an applier.
pub fn pin<T: DeserializeOwned>(names: &[String]) -> Option<io::Result<T>> {
    let pin = |socket: &UnixStream| {
        let (answer, theirs) = io::pipe()?;
        send(socket, &Ask::<()>::Pin(names.to_vec()), &[theirs.as_fd()])?;
        drop(theirs);
        read_json(answer)?.ok_or_else(|| io::Error::other(format!("{NAME} did not answer")))
    };
    // Not locked while it works: a signal may end it meanwhile.
    let socket = started().as_ref()?.socket.try_clone();
    Some(socket.and_then(|socket| pin(&socket)))
}

/// Runs an applier: its standard input is the front. It pins names by `pin`, which is given the root directory, the names, and
/// whether a drop-in may be made.
#[must_use]
pub fn run<T: Serialize>(pin: impl Fn(&Path, &[String], bool) -> T) -> ExitCode {
    let ending = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];
    // Of this thread, and so of all that it starts.
    if ending.into_iter().collect::<SigSet>().thread_block().is_err() {
        return ExitCode::FAILURE;
    }
    let Ok(front) = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from) else { return ExitCode::FAILURE };
    let Ok(Some((begin, _))) = receive::<Begin>(&front) else { return ExitCode::FAILURE };
    let Begin { root, graphroot, is_rootfs, is_additional, pins } = begin;
    let target = Target { root: PathBuf::from(root), graphroot, is_rootfs, is_additional };
    let answered = || -> io::Result<()> {
        while let Some((ask, files)) = receive::<Ask<Answer>>(&front)? {
            let mut files = pipes(files)?.into_iter();
            let mut next = || files.next().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput));
            match ask {
                Ask::Serve(unless) => {
                    let (stream, answer) = (PipeReader::from(next()?), PipeWriter::from(next()?));
                    let (target, serving) = (target.clone(), way::Serving::begin());
                    threads::spawn(move || {
                        let _serving = serving;
                        say(answer, &serve_one(&target, stream, unless));
                    })?;
                }
                Ask::Pin(names) => {
                    let answer = PipeWriter::from(next()?);
                    if is_rootfs || !names.iter().all(|name| is_name(name)) {
                        return Err(io::ErrorKind::InvalidInput.into());
                    }
                    say(answer, &pin(&target.root, &names, pins));
                }
            }
        }
        Ok(())
    };
    let result = answered();
    // Nobody reads an answer any more.
    way::stop();
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Returns `files` if all of them are pipes. Other things may do something by root's rights when root reads or writes them.
fn pipes(files: Vec<OwnedFd>) -> io::Result<Vec<OwnedFd>> {
    for file in &files {
        if FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode) != FileType::Fifo {
            return Err(io::ErrorKind::InvalidInput.into());
        }
    }
    Ok(files)
}

fn serve_one(target: &Target, stream: PipeReader, unless: Option<Answer>) -> Answer {
    if let Some(answer) = unless.filter(|_| lacks_store(target)) {
        return answer;
    }
    match own_job(target) {
        Ok((job, budget)) => way::serve_here(stream, &job, budget),
        Err(error) => {
            let hint = enter_hint(&error);
            Answer::failed(helper::Error::Other(format!("{error}{hint}")))
        }
    }
}

/// Writes a line of JSON. A front that has ended does not read it.
fn say(mut to: PipeWriter, what: &impl Serialize) {
    let line = serde_json::to_string(what).unwrap_or_default();
    let _ = writeln!(to, "{line}");
}
