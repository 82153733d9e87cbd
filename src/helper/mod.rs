//! The privileged side: applies entries to a file system that its caller may not write to, and trusts nothing that it is sent.
//!
//! ```text
//!  prepull (the user)                   prepull-helper (root's, inside the target)
//!                                       ┌ four capabilities ─────────────────┐ ┌ none ───────────────────────────┐
//!  images ▶ segments ▶ canonical tar ──▶ wire::read ▶ receive ▶ apply ▶ staging ▶ publish ▶ store   by rename
//!          one line of JSON ◀─────────────────────────────────────────────────────────┘
//! ```
//!
//! The stream begins with an entry `prepull-request`, which says what is wanted, as lines. What the helper does is
//! [`serve`]; [`main`] is what it does before. Root writes with [`serve`], too, in its own process. All of this but
//! [`publish`] and [`restore`] is what can be reached while the process has capabilities: `.ci/helper-lines` keeps it short.
//!
//! What is published is what podman and CRI-O can read: ids, digests and names are borne out by the documents that they name
//! ([`publish::incoming`]). What the helper does not do is compare the files of a layer with its diffID. A caller who may install
//! into a store is trusted with the content of all its images, now and later: podman takes a layer that is there by its id, and
//! does not look into it either.

pub mod apply;
pub mod caller;
pub mod confine;
pub mod policy;
pub mod publish;
pub mod receive;
pub mod restore;
pub mod root;
pub mod staging;

use std::fmt::Display;
use std::io::{self, BufReader, Read, Write as _};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::entry::Entry;
use crate::wire::read::Reader;
use apply::{Budget, shown};
use policy::Kind;
pub use publish::Answer;
use receive::Stream;
use root::Dir;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::stdio::{stdin, stdout};

/// The name of the first entry.
pub const REQUEST: &[u8] = b"prepull-request";

/// The version of the protocol: both sides come from one package.
pub const VERSION: &str = "1";

/// The longest `max_seconds` that counts, a year: the clock cannot add any number.
pub(crate) const SECONDS_MAX: u64 = 365 * 24 * 3600;

const TOO_LONG: &str = "it takes too long (max_seconds)";

/// Time limit for a request. A client sends it at once, so a connection that stays silent is not kept.
const REQUEST_PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of the smallest request: a header, and a block of text.
const REQUEST_BYTES: u64 = 1024;

/// Bytes that are read at once.
const READ: usize = 256 << 10;

/// Why nothing was done, or not all of it. Nobody has to tell most of it apart: it is read by people, as one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream is not what it should be.
    #[error(transparent)]
    Wire(#[from] crate::wire::read::Error),
    /// The content of an entry cannot be read.
    #[error("reading the stream: {0}")]
    Read(#[from] io::Error),
    /// Layers that are not in the store, nor in the stream.
    #[error("layers are missing that were there before: {}", .0.join(", "))]
    Missing(Vec<String>),
    /// No such image.
    #[error("{0}: no such image in the store")]
    NotFound(String),
    /// Whatever else.
    #[error("{0}")]
    Other(String),
}

impl Error {
    fn said(text: impl Into<String>) -> Self {
        Self::Other(text.into())
    }

    /// What was being done, and what came of it.
    fn at<E: Display>(doing: &str) -> impl Fn(E) -> Self {
        move |error| Self::Other(format!("{doing}: {error}"))
    }

    fn system(doing: impl Display, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        let hint = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => " (make room and run again)",
            io::ErrorKind::CrossesDevices => " (something is mounted in the store)",
            io::ErrorKind::ReadOnlyFilesystem => " (it is mounted read-only)",
            _ => "",
        };
        Self::Other(format!("{doing}: {error}{hint}"))
    }

    fn request(why: &str) -> Self {
        Self::Other(format!("the request is not valid: {why}"))
    }

    fn refused(entry: &Entry, why: &str) -> Self {
        Self::Other(format!("{}: {why}", shown(&entry.path)))
    }
}

/// What may be done where.
#[derive(Debug)]
pub struct Job {
    /// Device and inode of the root directory that the caller must mean.
    pub root: (u64, u64),
    /// The target: a graphroot, or an empty directory.
    pub target: Dir,
    /// When all must be over.
    pub until: Until,
    /// True if every user may read a store that is new.
    pub is_readable: bool,
    /// The caller's place among the running helpers, as long as this one runs.
    pub place: Option<OwnedFd>,
}

/// How long the work goes on.
#[derive(Debug, Clone, Copy)]
pub struct Until {
    /// When all must be over.
    pub deadline: Instant,
    /// Whether the caller has gone: looked at before something is published.
    pub is_gone: fn() -> bool,
    /// Called with true before the locks of a store are taken, and with false when they are free: a process that holds them must
    /// not be stopped.
    pub holds: fn(bool),
}

impl Until {
    fn wanted(self) -> Result<(), Error> {
        if (self.is_gone)() { Err(Error::said("the caller has gone")) } else { Ok(()) }
    }

    fn check(self) -> Result<(), Error> {
        self.wanted()?;
        self.in_time()
    }

    /// All that is looked at once something has been renamed: stopping then would leave it half done, and the rest takes no time.
    fn in_time(self) -> Result<(), Error> {
        if Instant::now() < self.deadline { Ok(()) } else { Err(Error::request(TOO_LONG)) }
    }
}

/// Does what `input` asks for: first everything that takes a capability, then the rest without any.
#[must_use]
pub fn serve(input: impl Read, job: &Job, mut budget: Budget) -> Answer {
    let mut answer = Answer::default();
    let mut reader = Reader::new(BufReader::with_capacity(READ, input));
    let mut stream = Stream::new(&mut reader, &mut budget);
    let received = receive::receive(&mut stream, job);
    let given_up = stream.budget.powers.give_up();
    let done = given_up.and(received).and_then(|work| publish::publish(work, &mut stream, job, &mut answer));
    done.unwrap_or_else(|error| answer.fail(error));
    (answer.dropped, answer.dropped_first) = budget.dropped;
    answer
}

/// Runs `prepull-helper`.
#[must_use]
pub fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    match (words.next().as_deref().and_then(std::ffi::OsStr::to_str), words.next()) {
        (Some("stdio"), None) => stdio(),
        (Some("restore"), None) => restore::run(),
        _ => {
            let usage = "usage: prepull-helper stdio|restore (prepull starts it; prepull-helper has no other options)";
            // Standard error may be closed; the exit code says the same.
            let _ = writeln!(io::stderr(), "{usage}");
            ExitCode::from(2)
        }
    }
}

/// Serves one request on standard input.
fn stdio() -> ExitCode {
    let answer = confined().map_or_else(Answer::failed, |(job, budget)| {
        let request = Instant::now() + REQUEST_PATIENCE;
        serve(Input { deadline: job.until.deadline, request, bytes: 0 }, &job, budget)
    });
    let line = serde_json::to_string(&answer).unwrap_or_default();
    let said = writeln!(io::stdout(), "{line}");
    if said.is_ok() && answer.error.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Everything that must be before the first byte of input, in the only order in which it holds.
fn confined() -> Result<(Job, Budget), Error> {
    // Nothing inherited: descriptors, environment, limits, signals.
    let sudo_uid = confine::begin("stdio")?;
    // Who may do what: read while /etc can be seen, from a file that only root can have written.
    let policy = policy::Policy::load()?;
    let caller = caller::identify(sudo_uid.as_deref())?;
    let place = caller.place()?;
    let allowed = caller.allowed(&policy);
    // Of those directories, the one in which we were started: chosen by what it is, not by what it is called.
    let (allow, root) = confine::open_target(&allowed)?;
    let found = rustix::fs::fstat(&root).map_err(|error| Error::system("looking at the directory", error))?;
    let mut on_the_way = vec![(found.st_uid, found.st_mode)];
    let target = match allow.kind {
        Kind::Storage => {
            let mode = if allow.is_readable() { 0o755 } else { 0o700 };
            let target = graphroot(Dir(root), allow.graphroot(), mode)?;
            // The layers are in `overlay`, which is made with this mode.
            for name in [&b"."[..], b"overlay"] {
                on_the_way.push(target.stat(name).map_or((0, mode), |found| (found.st_uid, found.st_mode)));
            }
            target
        }
        Kind::Rootfs => Dir(root),
    };
    confine::keep_users_out(allow, caller.uid, &on_the_way, &target.0)?;
    let target = root::without_mounts(target.0);
    // From here on there is nothing but the target, and no way to get more power.
    let powers = confine::enter(&target, allow.devices)?;
    // What was held was only a place: now it is read, too.
    let opened = Dir(target).open(b"");
    let target = opened.map_err(|error| Error::system("opening the target", error))?;
    let budget = Budget::new(powers, allow.clone(), &target);
    let budget = budget.map_err(|error| Error::system("opening the target", error))?;
    let job = Job {
        root: (found.st_dev, found.st_ino),
        target,
        is_readable: allow.is_readable(),
        place,
        until: Until {
            deadline: Instant::now() + Duration::from_secs(allow.max_seconds.min(SECONDS_MAX)),
            is_gone: is_caller_gone,
            // The signals are blocked all the time.
            holds: |_| (),
        },
    };
    Ok((job, budget))
}

/// Opens the graphroot below `root`, and makes the directories that are missing: itself with `mode`, others with 0755. Symbolic links on the way are followed as a
/// process with this root would follow them; directories that exist stay as they are.
///
/// # Errors
/// If a directory cannot be opened or made, or a link leads to a missing one.
pub fn graphroot(root: Dir, path: &str, mode: u32) -> Result<Dir, Error> {
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    let mut parent = None;
    for (number, name) in names.iter().enumerate() {
        let mode = if number + 1 == names.len() { mode } else { 0o755 };
        let path = names[..=number].join("/");
        let make = || match parent.as_ref().unwrap_or(&root).make(name.as_bytes(), mode) {
            // Another process has made it meanwhile, or it is a link to nothing.
            Err(Errno::EXIST) => root.enter(path.as_bytes()),
            made => made,
        };
        let opened =
            root.enter(path.as_bytes()).or_else(|error| if error == Errno::NOENT { make() } else { Err(error) });
        parent = Some(opened.map_err(|error| match error {
            Errno::NOENT => Error::said(format!("opening /{path}: a symbolic link to a missing directory (make that)")),
            error => Error::system(format!("opening /{path}"), error),
        })?);
    }
    Ok(parent.unwrap_or(root))
}

/// What `poll` says of a descriptor, as soon as that is something, or when `patience` is at its end.
fn polled(fd: BorrowedFd<'_>, events: PollFlags, patience: Duration) -> io::Result<PollFlags> {
    let timeout = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
    let mut polled = [PollFd::from_borrowed_fd(fd, events)];
    retry_on_intr(|| poll(&mut polled, Some(&timeout)))?;
    Ok(polled[0].revents())
}

/// Whether nobody can read the answer any more.
fn is_caller_gone() -> bool {
    let said = polled(stdout(), PollFlags::empty(), Duration::ZERO);
    said.is_ok_and(|said| said.intersects(PollFlags::ERR | PollFlags::HUP))
}

/// Standard input, until the deadline: an earlier one for the request.
struct Input {
    deadline: Instant,
    request: Instant,
    bytes: u64,
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let is_request = self.bytes < REQUEST_BYTES;
        let deadline = if is_request { self.request.min(self.deadline) } else { self.deadline };
        let left = deadline.saturating_duration_since(Instant::now());
        // With no time left `poll` would still say that there is something to read.
        if left.is_zero() || polled(stdin(), PollFlags::IN, left)?.is_empty() {
            let why = if is_request && self.request < self.deadline { "no request has come" } else { TOO_LONG };
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        let count = retry_on_intr(|| rustix::io::read(stdin(), &mut *buffer))?;
        self.bytes += count as u64;
        Ok(count)
    }
}
