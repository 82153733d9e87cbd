//! What the command line and a keeper say to each other: how one is started, found and asked.

use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use super::Error;
use super::attach;
use super::channel::{receive, send};
use super::wire::Agreed;

/// The hidden commands of `prepull` that are these processes.
pub const KEEPER: &str = "mount-keeper";
/// That of the worker.
pub const WORKER: &str = "mount-worker";
/// That of who fetches a layer.
pub const FETCHER: &str = "mount-fetcher";

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

/// The keeper that signals to this process are for; 0 for none.
static PASSED_ON: AtomicU32 = AtomicU32::new(0);

/// Whether signals to this process are for a keeper in the foreground.
#[must_use]
pub fn passes_on() -> bool {
    PASSED_ON.load(Ordering::Acquire) != 0
}

/// Passes a signal on, if there is a keeper in the foreground.
#[must_use]
pub fn pass_on(signal: i32) -> bool {
    let keeper = PASSED_ON.load(Ordering::Acquire);
    let signal = nix::sys::signal::Signal::try_from(signal).ok();
    // One that has ended is waited for: its number is nobody else's.
    keeper != 0 && nix::sys::signal::kill(nix::unistd::Pid::from_raw(keeper as i32), signal).is_ok()
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

/// Starts a keeper.
///
/// # Errors
/// When it does not serve.
pub fn start(start: &Start<impl Serialize>, files: &[OwnedFd]) -> Result<Kept, Error> {
    let failed = |error| Error::system("starting a keeper", error);
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(OwnedFd::as_fd).collect();
    let mut command = Command::new("/proc/self/exe");
    command.arg0("prepull").arg(KEEPER).stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
    if start.foreground {
        // Signals of the terminal come here, and are passed on.
        command.process_group(0);
    } else {
        command.stderr(Stdio::null());
    }
    let child = command.spawn().map_err(failed)?;
    // It has the keeper's end of the socket: as long as it is there, nobody sees that a keeper has died.
    drop(command);
    if start.foreground {
        PASSED_ON.store(child.id(), Ordering::Release);
    }
    send(&ours, start, &borrowed).map_err(failed)?;
    match receive::<Answer<()>>(&ours).map_err(failed)? {
        Some((Answer::Status(status), _)) => Ok(Kept { status, child }),
        Some((Answer::Failed(error), _)) => Err(Error::Other(error)),
        _ => Err(Error::Other("the keeper has died".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This program knows no such command, and ends.
    #[test]
    fn a_keeper_that_has_died_is_not_waited_for() {
        let mountpoint = PathBuf::from("/nowhere");
        let what =
            Start { mountpoint, others: false, foreground: false, no_resend: false, mounted: None, turn: 0, scene: () };
        assert!(start(&what, &[]).is_err());
    }
}
