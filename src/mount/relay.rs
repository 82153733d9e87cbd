//! The process through which a `mount add` or `mount rm` of root's reaches the keeper once it has given up its privileges.
//!
//! ```text
//!  front, confined                     relay, root                 keeper, root
//!  Scene ▶ Plan ▶ fetch ▶ Scene ──────▶ a connection for each ────▶ its socket
//! ```
//!
//! Connecting to the keeper takes what the front must not have: a local socket, and the rights of uid 0 at its other end. The
//! relay is told which mount that is before the front has parsed anything, and parses of a scene only where layers come from.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Error;
use super::control::{self, Answer, Ask, RELAY, Way};
use super::scene::{Allowed, are_allowed, sources_in};
use crate::channel::{receive, send};

/// What a relay is told first.
#[derive(Debug, Serialize, Deserialize)]
struct Begin {
    mountpoint: PathBuf,
    allowed: Allowed,
}

/// A relay that has been started. It ends when this is dropped.
#[derive(Debug)]
pub struct Relay {
    socket: Option<UnixStream>,
    child: Child,
}

impl Relay {
    /// Starts a relay to the keeper of what is mounted at `mountpoint`, where layers may come from `allowed` and from where those
    /// of the mount come from.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mountpoint: &Path, allowed: Allowed) -> Result<Self, Error> {
        let failed = |error| Error::system("starting a relay to the keeper", error);
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("prepull").arg(RELAY).stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(failed)?;
        // It has the relay's end of the socket.
        drop(command);
        send(&ours, &Begin { mountpoint: mountpoint.to_owned(), allowed }, &[]).map_err(failed)?;
        Ok(Self { socket: Some(ours), child })
    }

    /// Returns the way to the keeper through this.
    ///
    /// # Panics
    /// Never: the socket is there until this is dropped.
    #[must_use]
    pub fn way<'a>(&'a self, mountpoint: &'a Path) -> Way<'a> {
        match &self.socket {
            Some(socket) => Way::Relayed { mountpoint, socket },
            None => Way::At(mountpoint),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // It sees the end of its standard input.
        self.socket = None;
        let _ = self.child.wait();
    }
}

/// Runs a relay: its standard input is the front.
#[must_use]
pub fn run() -> ExitCode {
    let Ok(front) = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from) else { return ExitCode::FAILURE };
    let Ok(Some((Begin { mountpoint, mut allowed }, _))) = receive::<Begin>(&front) else { return ExitCode::FAILURE };
    while let Ok(Some((ask, files))) = receive::<Ask<Box<RawValue>>>(&front) {
        let (answer, files) = relay(&mountpoint, &ask, &files, &mut allowed);
        let files: Vec<BorrowedFd<'_>> = files.iter().map(OwnedFd::as_fd).collect();
        if send(&front, &answer, &files).is_err() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Asks the keeper. Sources of what it shows are added to those that are allowed.
fn relay(
    mountpoint: &Path,
    ask: &Ask<Box<RawValue>>,
    files: &[OwnedFd],
    allowed: &mut Allowed,
) -> (Answer<Box<RawValue>>, Vec<OwnedFd>) {
    let result = match ask {
        Ask::Put { scene, .. } => are_allowed(scene, allowed),
        Ask::Get | Ask::Status => Ok(()),
    };
    let files: Vec<BorrowedFd<'_>> = files.iter().map(OwnedFd::as_fd).collect();
    let asked = result.and_then(|()| control::ask::<Box<RawValue>>(Way::At(mountpoint), ask, &files));
    let known = asked.and_then(|(answer, files)| {
        if let Answer::Scene(scene) = &answer {
            allowed.extend(sources_in(scene)?.map(|sources| sources.allowed()).unwrap_or_default());
        }
        Ok((answer, files))
    });
    known.unwrap_or_else(|error| (Answer::Unreachable(error.to_string()), Vec::new()))
}
