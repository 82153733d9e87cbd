//! What the command line and a keeper say to each other: how one is started, found and asked.

use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Error;
use super::attach;
use super::scene::Allowed;
use super::storage_conf::StorageConf;
use super::wire::Agreed;
use crate::channel::{receive, send, send_within};

/// The hidden commands of `prepull` that are these processes.
pub const KEEPER: &str = "mount-keeper";
/// That of the worker.
pub const WORKER: &str = "mount-worker";
/// That of who fetches a layer.
pub const FETCHER: &str = "mount-fetcher";

/// That of who passes on what a confined process asks.
pub const RELAY: &str = "mount-relay";

/// What a keeper is told before the process that starts it has parsed anything. The scene follows, with its files.
#[derive(Debug, Serialize, Deserialize)]
pub struct Begin {
    /// What to do.
    pub start: Start<()>,
    /// Where layers of the scene may come from that are fetched when somebody needs them.
    pub allowed: Allowed,
    /// What to write when it is mounted.
    pub storage_conf: Option<StorageConf>,
}

/// What to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct Start<S> {
    /// Where: absolute, without links.
    pub mountpoint: PathBuf,
    /// Whether others than this user may look into it.
    pub others: bool,
    /// Whether it runs where it was started, and says what happens.
    pub foreground: bool,
    /// Whether the kernel is taken for one that does not send requests again (for tests).
    pub no_resend: bool,
    /// Whether it is mounted already, and what was agreed upon then: the first file is the mount, the second the journal, if
    /// there is one.
    pub mounted: Option<Agreed>,
    /// How often systemd has been given what it keeps of this mount.
    pub turn: u64,
    /// What is shown.
    pub scene: S,
}

/// What users ask of a mount.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ask<S> {
    /// How it is.
    Status,
    /// What is shown, with its files.
    Get,
    /// To show this instead, with its files.
    Put {
        /// What.
        scene: S,
        /// What it takes the place of.
        generation: u64,
    },
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer<S> {
    /// How it is.
    Status(Status),
    /// What is shown.
    Scene(S),
    /// It is done.
    Done,
    /// It is not, because.
    Failed(String),
    /// Somebody else has changed it meanwhile.
    Changed,
    /// No keeper can be asked, because. Relays answer so.
    Unreachable(String),
}

/// How a mount is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Where.
    pub mountpoint: PathBuf,
    /// The keeper's process.
    pub keeper: u32,
    /// The worker's.
    pub worker: u32,
    /// How many workers there have been before it.
    pub restarts: u64,
    /// Whether pods in user namespaces can use it.
    pub maps_ids: bool,
    /// Whether requests are sent again when a worker dies; else they fail.
    pub resends: bool,
    /// What was wrong lately.
    pub troubles: Vec<String>,
}

/// What a fetcher is told. Its standard output is a connection with the keeper.
#[derive(Debug, Serialize, Deserialize)]
pub struct Wanted {
    /// The layer's id.
    pub layer: String,
}

/// What a fetcher says at its end.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Fetched {
    /// What the user should know.
    pub notes: Vec<String>,
    /// Why the layer cannot be had, if so.
    pub failed: Option<String>,
}

/// Returns the directories in which keepers of this user may listen, the best first. Root of a user namespace is not root of the
/// machine. In /tmp any user can make a directory of that name first, so it is the last resort.
fn directories() -> Vec<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    // The helper's socket lies in /run/prepull, which others may enter.
    let root = (user == 0).then(|| PathBuf::from("/run/prepull/mounts"));
    // pam_systemd makes it; a shell by `su` or `ssh` with its own environment does not know it.
    let session = Some(PathBuf::from(format!("/run/user/{user}"))).filter(|path| path.is_dir());
    let own = runtime.into_iter().chain(session).map(|path| path.join("prepull/mounts"));
    let last = PathBuf::from(format!("/tmp/prepull-mounts-{user}"));
    root.into_iter().chain(own).chain([last]).collect()
}

/// Checks that no other user can have put anything into `directory`, or can.
///
/// # Errors
/// With what is wrong with it.
fn is_ours(directory: &Path) -> io::Result<()> {
    let found = fs_err::symlink_metadata(directory)?;
    let shown = directory.display();
    let what = if !found.is_dir() {
        "is not a directory".to_owned()
    } else if found.uid() != rustix::process::geteuid().as_raw() {
        format!("belongs to another user ({})", found.uid())
    } else if found.mode() & 0o077 != 0 {
        format!("has mode {:04o}: other users can enter it", found.mode() & 0o7777)
    } else {
        return Ok(());
    };
    Err(io::Error::other(format!(
        "{shown} {what} (remove it, or set XDG_RUNTIME_DIR to a directory of yours with mode 0700)"
    )))
}

/// Returns the first of the directories that exists or can be made, and that no other user can enter.
///
/// # Errors
/// With what is wrong with each of them.
pub(super) fn directory() -> io::Result<PathBuf> {
    let mut failed = Vec::new();
    for path in directories() {
        let make = |path: &Path, mode| std::fs::DirBuilder::new().recursive(true).mode(mode).create(path);
        let above = path.parent().map_or(Ok(()), |above| match above.exists() {
            true => Ok(()),
            // Whatever the umask is: the helper's socket may come to lie there, too.
            false => make(above, 0o755).and_then(|()| fs_err::set_permissions(above, Permissions::from_mode(0o755))),
        });
        // What is there already is judged first: making a directory where a file or a dangling link is says only "exists".
        let present = fs_err::symlink_metadata(&path).is_ok();
        let made = if present { Ok(()) } else { above.and_then(|()| make(&path, 0o700)) };
        match made.and_then(|()| is_ours(&path)) {
            Ok(()) => return Ok(path),
            Err(error) => failed.push(error.to_string()),
        }
    }
    Err(io::Error::other(failed.join("; ")))
}

/// A way to a keeper.
#[derive(Debug, Clone, Copy)]
pub enum Way<'a> {
    /// By what is mounted.
    At(&'a Path),
    /// That of a process that may not connect by itself.
    Relayed {
        /// What is mounted.
        mountpoint: &'a Path,
        /// A relay to its keeper.
        socket: &'a UnixStream,
    },
    /// That of a fetcher, whose keeper may have nothing mounted any more that could be found.
    Open(&'a UnixStream),
}

/// Asks the keeper of a mount.
///
/// # Errors
/// When nobody answers.
pub fn ask<S: for<'de> Deserialize<'de>>(
    way: Way<'_>,
    ask: &Ask<impl Serialize>,
    files: &[BorrowedFd<'_>],
) -> Result<(Answer<S>, Vec<OwnedFd>), Error> {
    let failed = |error| Error::system("asking the keeper", error);
    match way {
        Way::At(mountpoint) => {
            let failed = |error| Error::system(format!("{}: asking its keeper", mountpoint.display()), error);
            exchange(&connect(mountpoint)?, ask, files).map_err(failed)
        }
        Way::Relayed { socket, .. } => match exchange(socket, ask, files).map_err(failed)? {
            (Answer::Unreachable(why), _) => Err(Error::Other(why)),
            answered => Ok(answered),
        },
        Way::Open(socket) => exchange(socket, ask, files).map_err(failed),
    }
}

fn exchange<S: for<'de> Deserialize<'de>>(
    socket: &UnixStream,
    ask: &Ask<impl Serialize>,
    files: &[BorrowedFd<'_>],
) -> io::Result<(Answer<S>, Vec<OwnedFd>)> {
    send(socket, ask, files)?;
    receive(socket)?.ok_or_else(|| io::Error::other("no answer"))
}

/// A connection with the keeper of what is mounted at `mountpoint`.
fn connect(mountpoint: &Path) -> Result<UnixStream, Error> {
    let shown = mountpoint.display();
    let nothing = || Error::Other(format!("{shown}: prepull has mounted nothing there"));
    let device = attach::device_of(mountpoint).ok_or_else(nothing)?;
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            // A directory that another user has put in the way explains it.
            let present = directories().into_iter().filter(|path| path.symlink_metadata().is_ok());
            let squatted = present.filter_map(|path| is_ours(&path).err());
            let why: Vec<String> = squatted.map(|error| format!("; {error}")).collect();
            Error::Other(format!(
                "{shown}: no process of this user serves it: it belongs to another user, or its keeper has died (prepull umount \
                 {shown}){}",
                why.concat()
            ))
        }
        _ => Error::system(format!("{shown}: asking its keeper"), error),
    };
    let ours = directories().into_iter().filter(|directory| is_ours(directory).is_ok());
    let mut sockets = ours.map(|directory| UnixStream::connect(directory.join(&device)));
    let socket = sockets.find(Result::is_ok).unwrap_or_else(|| Err(io::ErrorKind::NotFound.into())).map_err(failed)?;
    let peer = nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials);
    if !peer.is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw()) {
        return Err(Error::Other(format!("{shown}: a process of another user answers for it")));
    }
    Ok(socket)
}

/// The keeper in the foreground that signals to this process are for.
static PASSED_ON: OnceLock<UnixStream> = OnceLock::new();

/// Time limit for the keeper to take a signal.
const SIGNAL_MAX: Duration = Duration::from_secs(5);

/// Whether signals to this process are for a keeper in the foreground.
#[must_use]
pub fn passes_on() -> bool {
    PASSED_ON.get().is_some()
}

/// Passes a signal on, if there is a keeper in the foreground: as a message, since a confined process may not signal others.
#[must_use]
pub fn pass_on(signal: i32) -> bool {
    PASSED_ON.get().is_some_and(|keeper| send_within(keeper, &signal, &[], SIGNAL_MAX).is_ok())
}

/// A keeper that serves.
#[derive(Debug)]
pub struct Kept {
    /// How it is.
    pub status: Status,
    child: Child,
}

impl Kept {
    /// Waits, in the foreground, until it is mounted nowhere any more. Gives whether that was as it should be.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn wait(mut self) -> io::Result<bool> {
        self.child.wait().map(|status| status.success())
    }
}

/// A keeper that waits for what it is to show.
#[derive(Debug)]
pub struct Waiting {
    socket: UnixStream,
    child: Child,
    foreground: bool,
}

impl Waiting {
    /// Starts a keeper. It ends by itself if it is never told what to show.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(begin: &Begin) -> Result<Self, Error> {
        let foreground = begin.start.foreground;
        let (ours, theirs) = UnixStream::pair().map_err(not_started)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("prepull").arg(KEEPER).stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
        if foreground {
            // Signals of the terminal come here, and are passed on.
            command.process_group(0);
        } else {
            command.stderr(Stdio::null());
        }
        let child = command.spawn().map_err(not_started)?;
        // It has the keeper's end of the socket: as long as it is there, nobody sees that a keeper has died.
        drop(command);
        send(&ours, begin, &[]).map_err(not_started)?;
        Ok(Self { socket: ours, child, foreground })
    }

    /// Hands over what to show.
    ///
    /// # Errors
    /// When the keeper does not serve it.
    pub fn show(self, scene: &impl Serialize, files: &[OwnedFd]) -> Result<Kept, Error> {
        let Self { socket, child, foreground } = self;
        let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(OwnedFd::as_fd).collect();
        let sent = send(&socket, scene, &borrowed);
        if foreground && sent.is_ok() {
            let _ = PASSED_ON.set(socket.try_clone().map_err(not_started)?);
        }
        // A keeper that has not taken all of it may have said why.
        match (receive::<Answer<()>>(&socket), sent) {
            (Ok(Some((Answer::Status(status), _))), _) => Ok(Kept { status, child }),
            (Ok(Some((Answer::Failed(error), _))), _) => Err(Error::Other(error)),
            (Err(error), _) | (_, Err(error)) => Err(not_started(error)),
            _ => Err(Error::Other("the keeper has died".to_owned())),
        }
    }
}

fn not_started(error: io::Error) -> Error {
    Error::system("starting a keeper", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This program knows no such command, and ends.
    #[test]
    fn a_keeper_that_has_died_is_not_waited_for() {
        let mountpoint = PathBuf::from("/nowhere");
        let start =
            Start { mountpoint, others: false, foreground: false, no_resend: false, mounted: None, turn: 0, scene: () };
        let begin = Begin { start, allowed: Vec::new(), storage_conf: None };
        assert!(Waiting::start(&begin).and_then(|keeper| keeper.show(&(), &[])).is_err());
    }
}
