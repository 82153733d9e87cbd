//! The privileged side: applies entries to a file system that its caller may not write to, and trusts nothing that it is sent.
//!
//! ```text
//!  prepull (the user)                     prepull-helper (root, four capabilities, inside the target)
//!  images ─▶ segments ─▶ canonical tar ──▶ wire::read ─▶ apply ─▶ staging ─▶ install ─▶ store   published by rename
//!          one line of JSON ◀─────────────────────────────────────────────────┘
//! ```
//!
//! The stream begins with an entry `prepull-request`, which says what is wanted, as lines. What the helper does is
//! [`serve`]; [`main`] is what it does before. Root writes with [`serve`], too, in its own process.
//!
//! What it does not do: look into what it writes. Who may install into a store is trusted with the content of all its images,
//! now and later: podman takes a layer that is there by its id, and does not look into it either.

pub mod apply;
pub mod caller;
pub mod confine;
pub mod install;
pub mod policy;
pub mod record;
pub mod remove;
pub mod restore;
pub mod root;
pub mod staging;
pub mod store;

use std::io::{self, BufReader, Read, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::io::{Errno, retry_on_intr};
use serde::{Deserialize, Serialize};

use crate::entry::Entry;
use crate::wire::read::Reader;
use apply::{Budget, Tree, shown};
use install::{Done, Received};
use policy::Kind;
use record::{ImageRecord, Lines, is_id, is_name};
use remove::{Gone, Target};
use root::Dir;
use staging::Staging;
use store::Store;

/// The name of the first entry.
pub const REQUEST: &[u8] = b"prepull-request";

/// The version of the protocol: both sides come from one package.
pub const VERSION: &str = "1";

/// The longest `max_seconds` that counts, a year: the clock cannot add any number.
const SECONDS_MAX: u64 = 365 * 24 * 3600;

/// Bytes that are read at once.
const READ: usize = 256 << 10;

/// Why nothing was done, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream is not what it should be.
    #[error(transparent)]
    Wire(#[from] crate::wire::read::Error),
    /// The content of an entry cannot be read.
    #[error("reading the stream: {0}")]
    Read(#[from] io::Error),
    /// An entry that may not be.
    #[error("{entry}: {why}")]
    Refused {
        /// Its path, escaped.
        entry: String,
        /// Why.
        why: &'static str,
    },
    /// Something out of its order.
    #[error("the request is not valid: {0}")]
    Request(&'static str),
    /// A record that would damage the store.
    #[error(transparent)]
    Record(#[from] record::Invalid),
    /// The system failed.
    #[error("{doing}: {error}{}", hint(*.error))]
    System {
        /// What was being done to what.
        doing: String,
        /// What the system said.
        error: Errno,
    },
    /// Records of the store that are no records.
    #[error("{0} of the store is damaged (podman system check --repair, or remove the store)")]
    Records(&'static str),
    /// Somebody does not let go of the store.
    #[error("{0} is locked by somebody else for too long (is a pull under way?)")]
    Locked(String),
    /// Layers that are not in the store, nor in the stream.
    #[error("layers are missing that were there before: {}", .0.join(", "))]
    Missing(Vec<String>),
    /// No such image.
    #[error("{0}: no such image in the store")]
    NotFound(String),
    /// Several such images.
    #[error("{0}: several images begin so")]
    Ambiguous(String),
    /// An image that a container uses.
    #[error("image {image} is in use by container {container} (remove the container first)")]
    InUse {
        /// Its id.
        image: String,
        /// The container's id.
        container: String,
    },
    /// A directory that others may change.
    #[error("{0} belongs to another user, or others may write to it (chown, chmod go-w)")]
    NotOurs(&'static str),
    /// A directory that should be empty.
    #[error("the directory is not empty: {0} is in it")]
    NotEmpty(String),
    /// Confinement failed.
    #[error(transparent)]
    Confine(#[from] confine::Error),
    /// The policy file.
    #[error(transparent)]
    Policy(#[from] policy::Error),
    /// The caller.
    #[error(transparent)]
    Caller(#[from] caller::Error),
}

fn hint(error: Errno) -> &'static str {
    match error {
        Errno::NOSPC | Errno::DQUOT => " (make room and run again)",
        Errno::XDEV => " (something is mounted in the store)",
        Errno::ROFS => " (it is mounted read-only)",
        _ => "",
    }
}

impl Error {
    fn system(doing: impl Into<String>, error: Errno) -> Self {
        Self::System { doing: doing.into(), error }
    }

    fn refused(entry: &Entry, why: &'static str) -> Self {
        Self::Refused { entry: shown(&entry.path), why }
    }
}

/// What the helper answers: one line of JSON.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// Why it failed; empty when it did not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// Whether it failed because an image is not there.
    #[serde(default)]
    pub not_found: bool,
    /// Layers that the store lacks: of those asked for, or of those that something received stands on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_layers: Vec<String>,
    /// Of the images asked for, those that an install would add or change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_images: Vec<String>,
    /// What was published.
    #[serde(default)]
    pub done: Done,
    /// What was removed.
    #[serde(default)]
    pub gone: Gone,
    /// Extended attributes that the helper or the file system does not set: how many.
    #[serde(default)]
    pub dropped: u64,
    /// The first few of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped_first: Vec<String>,
}

/// What may be done where.
#[derive(Debug)]
pub struct Job {
    /// What the target is.
    pub kind: Kind,
    /// Device and inode of the root directory that the caller must mean.
    pub root: (u64, u64),
    /// The target: a graphroot, or an empty directory.
    pub target: Dir,
    /// Where the caller calls the graphroot; absolute.
    pub graphroot: String,
    /// What may be made.
    pub budget: Budget,
    /// When all must be over.
    pub deadline: Instant,
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    Query(Vec<String>),
    Install,
    Remove(Vec<Target>),
    Collect,
    Unpack,
}

/// Does what `input` asks for.
#[must_use]
pub fn serve(input: impl Read, mut job: Job) -> Answer {
    let mut answer = Answer::default();
    let mut reader = Reader::new(BufReader::with_capacity(READ, input));
    if let Err(error) = run(&mut reader, &mut job, &mut answer) {
        answer.error = error.to_string();
        answer.not_found = matches!(error, Error::NotFound(_));
        if let Error::Missing(layers) = error {
            answer.missing_layers = layers;
        }
    }
    (answer.dropped, answer.dropped_first) = job.budget.dropped;
    answer
}

fn run<R: Read>(reader: &mut Reader<R>, job: &mut Job, answer: &mut Answer) -> Result<(), Error> {
    let first = reader.next_entry()?.filter(|entry| entry.path == REQUEST);
    let first = first.ok_or(Error::Request("the stream does not begin with it"))?;
    let mut left = record::RECORDS_MAX;
    let request = parse(&install::read_text(&first, reader, &mut left)?, job)?;
    let powers = job.budget.powers;
    match (request, &job.kind) {
        (Request::Query(layers), Kind::Storage) => {
            let mut images = Vec::new();
            while let Some(entry) = reader.next_entry()? {
                if entry.path != install::IMAGE {
                    return Err(Error::refused(&entry, "it does not belong to a query"));
                }
                images.push(ImageRecord::parse(&install::read_text(&entry, reader, &mut left)?)?);
            }
            // An install begins so, also one that has nothing to do.
            if !(layers.is_empty() && images.is_empty()) {
                staging::sweep(&job.target, powers);
            }
            (answer.missing_layers, answer.missing_images) = if Store::is_in(&job.target) {
                install::lacking(&open(job)?, &layers, &images)?
            } else {
                (layers, images.into_iter().map(|image| image.id).collect())
            };
        }
        (Request::Install, Kind::Storage) => {
            let store = open(job)?;
            let prefix = format!("{}/", job.graphroot.trim_start_matches('/')).into_bytes();
            let mut received = Received::new(Staging::new(&store.root, powers)?, prefix);
            let result = receive(reader, &mut job.budget, &mut received)
                .and_then(|()| received.publish(&store, job.deadline).map(|done| answer.done = done));
            received.into_staging().remove(&store.root, powers);
            result?;
        }
        (request @ (Request::Remove(_) | Request::Collect), Kind::Storage) => {
            end(reader)?;
            // Nothing is made where there is nothing.
            if !Store::is_in(&job.target) {
                return match request {
                    Request::Remove(targets) => targets.into_iter().next().map_or(Ok(()), |target| {
                        let (Target::Name(name) | Target::Id(name)) = target;
                        Err(Error::NotFound(name))
                    }),
                    _ => Ok(()),
                };
            }
            let store = open(job)?;
            let swept = staging::sweep(&store.root, powers);
            let staging = Staging::new(&store.root, powers)?;
            let gone = match request {
                Request::Remove(targets) => remove::remove(&store, &staging, &targets, job.deadline),
                _ => remove::collect(&store, &staging, job.deadline),
            };
            staging.remove(&store.root, powers);
            answer.gone = gone?;
            answer.gone.orphans += swept;
        }
        (Request::Unpack, Kind::Rootfs) => unpack(reader, job)?,
        _ => return Err(Error::Request("the policy has another `kind` for this directory")),
    }
    Ok(())
}

fn open(job: &Job) -> Result<Store, Error> {
    let root = job.target.open(b"").map_err(|error| Error::system("opening the store", error))?;
    Store::open(root)
}

fn receive<R: Read>(reader: &mut Reader<R>, budget: &mut Budget, received: &mut Received) -> Result<(), Error> {
    while let Some(entry) = reader.next_entry()? {
        received.take(budget, &entry, reader)?;
    }
    Ok(())
}

fn end<R: Read>(reader: &mut Reader<R>) -> Result<(), Error> {
    match reader.next_entry()? {
        None => Ok(()),
        Some(entry) => Err(Error::refused(&entry, "it does not belong to this request")),
    }
}

/// A whole tree into an empty directory. Its parts are renamed into it one by one, and a file says that all of them are there to
/// be renamed: a run that finds it goes on where another one was killed.
fn unpack<R: Read>(reader: &mut Reader<R>, job: &mut Job) -> Result<(), Error> {
    const TREE: &[u8] = b".prepull-tree";
    const COMPLETE: &[u8] = b".prepull-complete";
    let failed = |error| Error::system("publishing the tree", error);
    // The target may be open only as a place (`without_mounts`), which cannot be had on the disk.
    let opened = job.target.open(b"").map_err(|error| Error::system("opening the directory", error))?;
    let (root, powers) = (&opened, job.budget.powers);
    let publish = || {
        let tree = root.open(TREE)?;
        for name in tree.names()? {
            rustix::fs::renameat_with(&tree, &name[..], root, &name[..], rustix::fs::RenameFlags::NOREPLACE)?;
        }
        root.sync()?;
        rustix::fs::unlinkat(root, TREE, rustix::fs::AtFlags::REMOVEDIR)?;
        rustix::fs::unlinkat(root, COMPLETE, rustix::fs::AtFlags::empty())
    };
    staging::sweep(root, powers);
    if root.has(COMPLETE) {
        return if root.has(TREE) {
            publish().map_err(failed)
        } else {
            rustix::fs::unlinkat(root, COMPLETE, rustix::fs::AtFlags::empty()).map_err(failed)
        };
    }
    if root.has(TREE) {
        apply::remove(powers, root, TREE).map_err(failed)?;
    }
    let listed = root.names().map_err(failed)?;
    if let Some(name) = listed.iter().find(|name| *name != b"lost+found" && !name.starts_with(staging::PREFIX)) {
        return Err(Error::NotEmpty(shown(name)));
    }
    let staging = Staging::new(root, powers)?;
    let made = fill(reader, &mut job.budget, &staging).and_then(|()| {
        rustix::fs::syncfs(&staging.dir).map_err(failed)?;
        staging.dir.rename(b"tree", root, TREE).map_err(failed)?;
        root.write(COMPLETE, 0o600, b"").map_err(failed)?;
        root.sync().map_err(failed)?;
        publish().map_err(failed)
    });
    staging.remove(root, powers);
    made
}

fn fill<R: Read>(reader: &mut Reader<R>, budget: &mut Budget, staging: &Staging) -> Result<(), Error> {
    let tree = staging.dir.make(b"tree", 0o700).and_then(|tree| Tree::new(tree, Vec::new(), true));
    let mut tree = tree.map_err(|error| Error::system("making the tree", error))?;
    while let Some(entry) = reader.next_entry()? {
        if entry.path.starts_with(b".prepull-") {
            return Err(Error::refused(&entry, "the name is prepull's own"));
        }
        tree.place(budget, &entry.path, &entry, reader)?;
    }
    Ok(())
}

fn parse(text: &[u8], job: &Job) -> Result<Request, Error> {
    let mut lines = Lines::new(text)?;
    if lines.must("prepull", |_| true)? != VERSION {
        return Err(Error::Request("another version of prepull has made it (install both programs of one version)"));
    }
    let word = lines.must("request", |_| true)?;
    if lines.must("graphroot", |_| true)? != job.graphroot {
        return Err(Error::Request("the policy has another graphroot for this directory (--graphroot)"));
    }
    // A service serves the directory that its unit names, whatever its caller has in mind.
    if lines.must("root", |_| true)? != format!("{}:{}", job.root.0, job.root.1) {
        return Err(Error::Request("another directory than the one that is served"));
    }
    let request = match &word[..] {
        "query" => {
            let mut layers = Vec::new();
            while let Some(layer) = lines.may("layer", is_id)? {
                layers.push(layer);
            }
            Request::Query(layers)
        }
        "install" => Request::Install,
        "remove" => {
            let mut targets = Vec::new();
            let is_start = |id: &str| !id.is_empty() && is_id(&format!("{id:0<64}"));
            while let Some(name) = lines.may("name", is_name)? {
                targets.push(Target::Name(name));
            }
            while let Some(id) = lines.may("id", is_start)? {
                targets.push(Target::Id(id));
            }
            Request::Remove(targets)
        }
        "collect" => Request::Collect,
        "unpack" => Request::Unpack,
        _ => return Err(Error::Request("unknown word")),
    };
    lines.end()?;
    Ok(request)
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
    let answer = confined().map_or_else(
        |error| Answer { error: error.to_string(), ..Answer::default() },
        |job| {
            let input = Input { deadline: job.deadline };
            serve(input, job)
        },
    );
    let line = serde_json::to_string(&answer).unwrap_or_default();
    let said = writeln!(io::stdout(), "{line}");
    if said.is_ok() && answer.error.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Everything that must be before the first byte of input, in the only order in which it holds.
fn confined() -> Result<Job, Error> {
    // Nothing inherited: descriptors, environment, limits, signals.
    let sudo_uid = confine::begin("stdio")?;
    // Who may do what: read while /etc can be seen, from a file that only root can have written.
    let policy = policy::Policy::load()?;
    let caller = caller::identify(sudo_uid.as_deref())?;
    let allowed = policy.for_caller(&caller);
    // Of those directories, the one in which we were started: chosen by what it is, not by what it is called.
    let (which, root) = confine::open_target(&allowed)?;
    let allow = allowed[which];
    let found = rustix::fs::fstat(&root).map_err(|error| Error::system("looking at the directory", error))?;
    let target = match allow.kind {
        Kind::Storage => graphroot(Dir::from(root), &allow.graphroot)?,
        Kind::Rootfs => Dir::from(root),
    };
    let target = root::without_mounts(target.into());
    // From here on there is nothing but the target, and no way to get more power.
    let powers = confine::enter(&target, allow.devices)?;
    let budget = Budget {
        powers,
        bytes: allow.max_bytes,
        inodes: allow.max_inodes,
        devices: allow.devices,
        suid: allow.suid,
        filecaps: allow.filecaps,
        dropped: (0, Vec::new()),
    };
    Ok(Job {
        kind: allow.kind,
        root: (found.st_dev, found.st_ino),
        // What was held was only a place: now it is read, too.
        target: Dir::from(target).open(b"").map_err(|error| Error::system("opening the target", error))?,
        graphroot: allow.graphroot.clone(),
        budget,
        deadline: Instant::now() + Duration::from_secs(allow.max_seconds.min(SECONDS_MAX)),
    })
}

/// Opens the graphroot below `root`, and makes what is missing of it.
///
/// # Errors
/// When it cannot be.
pub fn graphroot(root: Dir, path: &str) -> Result<Dir, Error> {
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    let mut at = root;
    for (number, name) in names.iter().enumerate() {
        let mode = if number + 1 == names.len() { 0o700 } else { 0o755 };
        let next = match at.enter(name.as_bytes()) {
            Err(Errno::NOENT) => at.open_or_make(name.as_bytes(), mode),
            found => found,
        };
        at = next.map_err(|error| Error::system(format!("opening /{}", names[..=number].join("/")), error))?;
    }
    Ok(at)
}

/// Standard input, until the deadline.
struct Input {
    deadline: Instant,
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let stdin = rustix::stdio::stdin();
        let left = self.deadline.saturating_duration_since(Instant::now());
        // With no time left `poll` would still say that there is something to read.
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it takes too long (max_seconds)"));
        }
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut polled = [PollFd::new(&stdin, PollFlags::IN)];
        if retry_on_intr(|| poll(&mut polled, Some(&timeout)))? == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it takes too long (max_seconds)"));
        }
        Ok(retry_on_intr(|| rustix::io::read(stdin, &mut *buffer))?)
    }
}
