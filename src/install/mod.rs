//! Into a file system: what the helper is asked, and how it is started.
//!
//! Who is root of a user namespace writes with the helper's code in this process, and so does root's `rm` and `gc`. Root's
//! `install` has a process of its own for it: [`applier`]. Everybody else needs somebody to do it: [`way::Way`].

pub mod applier;
pub mod way;

use std::io::{self, Read as _, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::entry::{Entry, Kind, Meta};
use crate::helper::apply::Budget;
use crate::helper::confine::Powers;
use crate::helper::policy;
use crate::helper::publish::record::ImageRecord;
use crate::helper::root::{Dir, without_mounts};
use crate::helper::{self, Answer, Job, REQUEST, Until, VERSION, graphroot};
use crate::wire;
use rustix::io::Errno;
use serde::de::DeserializeOwned;
pub use way::Way;

/// The most bytes of an answer.
const ANSWER_MAX: u64 = 64 << 20;

/// Where to write.
#[derive(Debug, Clone)]
pub struct Target {
    /// The root directory, as typed.
    pub root: PathBuf,
    /// The store in it; absolute.
    pub graphroot: String,
    /// Whether the whole of it is written, into an empty directory.
    pub is_rootfs: bool,
    /// True if a new store is for every user to read, as an additional one. The helper decides by its policy.
    pub is_additional: bool,
}

impl Target {
    /// The store's path without the slash.
    fn below_root(&self) -> &[u8] {
        self.graphroot.trim_start_matches('/').as_bytes()
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Request<'a> {
    /// What of these the store lacks.
    Query(&'a [String], &'a [ImageRecord]),
    /// Take what comes.
    Install,
    /// Remove these names and ids.
    Remove(&'a [String], &'a [String]),
    /// Remove what nothing refers to.
    Collect,
    /// Take a whole tree, which this tells from others.
    Unpack(&'a str),
    /// Say whether a whole tree would be taken.
    Look,
    /// Remove what another request has left in staging.
    Sweep,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be entered.
    #[error("{root}: {error}{}", enter_hint(.error))]
    Root {
        /// As typed.
        root: String,
        /// Why.
        error: io::Error,
    },
    /// The helper cannot be started.
    #[error("starting {program}: {error} (`prepull doctor` says what works here)")]
    Start {
        /// What was started.
        program: String,
        /// Why.
        error: io::Error,
    },
    /// It did not answer.
    #[error("{0} did not answer (`prepull doctor` says what works here)")]
    Silent(String),
    /// It said no.
    #[error("{root}: {text}")]
    Refused {
        /// As typed.
        root: String,
        /// Its words.
        text: String,
        /// Whether an image is not there.
        not_found: bool,
    },
    /// Nothing here may write there.
    #[error(
        "{0}: only root may write images there, and nothing here does it for you (`prepull doctor` says what to do; \
         `podman unshare prepull install ...` for a store of your own)"
    )]
    NoWay(String),
}

fn enter_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            " (you must be able to enter the directory: the helper is told by it where to write)"
        }
        _ => "",
    }
}

impl Request<'_> {
    /// The stream's first entries.
    fn to_tar(self, target: &Target, (device, inode): (u64, u64)) -> Vec<u8> {
        let word = match self {
            Self::Query(..) => "query",
            Self::Install => "install",
            Self::Remove(..) => "remove",
            Self::Collect => "collect",
            Self::Unpack(_) => "unpack",
            Self::Look => "look",
            Self::Sweep if target.is_rootfs => "clear",
            Self::Sweep => "sweep",
        };
        let mut lines =
            format!("prepull {VERSION}\nrequest {word}\ngraphroot {}\nroot {device}:{inode}\n", target.graphroot);
        let mut add = |field: &str, values: &[String]| {
            values.iter().for_each(|value| lines.push_str(&format!("{field} {value}\n")));
        };
        let mut images: &[ImageRecord] = &[];
        match self {
            Self::Query(layers, records) => {
                add("layer", layers);
                images = records;
            }
            Self::Remove(names, ids) => {
                add("name", names);
                add("id", ids);
            }
            Self::Unpack(identity) => add("tree", &[identity.to_owned()]),
            _ => {}
        }
        let mut tar = small_file(REQUEST, &lines);
        for image in images {
            tar.extend(small_file(crate::helper::receive::IMAGE, &image.to_lines()));
        }
        tar
    }

    /// Whether more comes after that.
    fn has_content(self) -> bool {
        matches!(self, Self::Install | Self::Unpack(_))
    }
}

fn small_file(name: &[u8], content: &str) -> Vec<u8> {
    let kind = Kind::Regular { size: content.len() as u64 };
    let entry = Entry { path: name.to_vec(), meta: Meta { mode: 0o600, ..Meta::default() }, kind };
    let mut tar = Vec::new();
    wire::small_file(&mut tar, &entry, content.as_bytes());
    tar
}

/// A request whose stream has not come to its end.
#[derive(Debug)]
pub struct Asked {
    target: Target,
    way: Way,
    is_sweep: bool,
    started: way::Started,
}

impl Asked {
    /// Asks, by `way`. The rest of the stream goes into [`Self::input`].
    ///
    /// # Errors
    /// When nobody can be asked.
    pub fn new(way: &Way, target: &Target, request: Request<'_>) -> Result<Self, Error> {
        // What is confined may not see the directory any more.
        let found = if matches!(way, Way::Own) { applier::root() } else { None };
        let mut tar = request.to_tar(target, found.map_or_else(|| identity(target), Ok)?);
        if !request.has_content() {
            tar.extend_from_slice(&wire::END);
        }
        let unless = if matches!(way, Way::Own) { no_store(request) } else { None };
        let mut started = way.start(target, unless)?;
        // Who does not listen may have something to say.
        let _ = started.input().write_all(&tar);
        let is_sweep = matches!(request, Request::Sweep);
        Ok(Self { target: target.clone(), way: way.clone(), is_sweep, started })
    }

    /// Where the stream goes.
    pub fn input(&mut self) -> &mut (dyn Write + Send) {
        self.started.input()
    }

    /// The answer. What only another run can remove of what was taken out of the store is removed by one; [`Answer::left`] says
    /// whether that failed.
    ///
    /// # Errors
    /// When there is none.
    pub fn answer(self) -> Result<Answer, Error> {
        let program = self.started.program().to_owned();
        let mut answer = self.started.finish().map_err(|error| Error::Start { program: program.clone(), error })?;
        if let Some(answer) = answer.as_mut().filter(|answer| answer.left && !self.is_sweep) {
            // When it published it had no capabilities any more.
            answer.left = ask(&self.way, &self.target, Request::Sweep).map_or(true, |swept| swept.left);
        }
        let root = self.target.root.display().to_string();
        match answer {
            Some(answer) if answer.error.is_empty() || !answer.missing_layers.is_empty() => Ok(answer),
            Some(answer) => Err(Error::Refused { root, text: answer.error, not_found: answer.not_found }),
            None => Err(Error::Silent(program)),
        }
    }
}

/// Asks something that needs no more than the question.
///
/// # Errors
/// When there is no answer, or it is no.
pub fn ask(way: &Way, target: &Target, request: Request<'_>) -> Result<Answer, Error> {
    Asked::new(way, target, request)?.answer()
}

/// Whether somebody writes there for us.
///
/// # Errors
/// When nobody does.
pub fn probe(way: &Way, target: &Target) -> Result<(), Error> {
    ask(way, target, if target.is_rootfs { Request::Look } else { Request::Query(&[], &[]) }).map(drop)
}

/// Returns device and inode of the root directory.
fn identity(target: &Target) -> Result<(u64, u64), Error> {
    let failed = |error: Errno| Error::Root { root: target.root.display().to_string(), error: error.into() };
    rustix::fs::stat(&target.root).map(|found| (found.st_dev, found.st_ino)).map_err(failed)
}

/// Returns whether a store is asked for whose directory does not exist.
fn lacks_store(target: &Target) -> bool {
    let found = Dir::at(target.root.as_path()).and_then(|root| root.enter(target.below_root()));
    !target.is_rootfs && found.is_err_and(|error| error == Errno::NOENT)
}

/// What there is to say where there is no store. Nothing is made for a question, or to remove something from it.
fn no_store(request: Request<'_>) -> Option<Answer> {
    match request {
        Request::Install | Request::Unpack(_) | Request::Look => None,
        Request::Query(layers, images) => Some(Answer {
            missing_layers: layers.to_vec(),
            missing_images: images.iter().map(|image| image.id.clone()).collect(),
            ..Answer::default()
        }),
        Request::Remove(names, ids) => {
            let first = names.iter().chain(ids).next().cloned();
            Some(first.map(helper::Error::NotFound).map_or_else(Answer::default, Answer::failed))
        }
        Request::Collect | Request::Sweep => Some(Answer::default()),
    }
}

/// What root may do: everything.
fn own_job(target: &Target) -> io::Result<(Job, Budget)> {
    let root = Dir::at(target.root.as_path())?;
    let found = rustix::fs::fstat(&root)?;
    let (kind, directory) = if target.is_rootfs {
        (policy::Kind::Rootfs, root)
    } else {
        (
            policy::Kind::Storage,
            graphroot(root, &target.graphroot, if target.is_additional { 0o755 } else { 0o700 })
                .map_err(|error| io::Error::other(error.to_string()))?,
        )
    };
    let allow = policy::Allow {
        user: None,
        group: None,
        root: String::new(),
        kind,
        graphroot: Some(target.graphroot.clone()),
        max_bytes: u64::MAX,
        max_store_bytes: u64::MAX,
        keep_free: 0,
        additional: Some(target.is_additional),
        max_inodes: u64::MAX,
        max_seconds: u64::MAX,
        devices: true,
        suid: true,
        filecaps: true,
    };
    let directory = Dir(without_mounts(directory.0)).open(b"")?;
    let budget = Budget::new(Powers::Own, allow, &directory)?;
    let job = Job {
        root: (found.st_dev, found.st_ino),
        target: directory,
        is_readable: target.is_additional,
        place: None,
        until: Until {
            deadline: Instant::now() + Duration::from_secs(helper::SECONDS_MAX),
            is_gone: way::is_stopped,
            holds: way::holds,
        },
    };
    Ok((job, budget))
}

/// Reads a line of JSON. Who has said it before it has read all that was sent resets a socket: what it said counts.
fn read_json<T: DeserializeOwned>(from: impl io::Read) -> io::Result<Option<T>> {
    let mut text = Vec::new();
    let read = from.take(ANSWER_MAX).read_to_end(&mut text);
    match serde_json::from_slice(&text) {
        Ok(answer) => Ok(Some(answer)),
        Err(_) => read.map(|_| None),
    }
}
