//! What outlives even the keeper: under systemd, the service manager keeps the mount and all files, and gives them to the next one
//! (sd_notify(3), `FDSTORE=1`; sd_listen_fds(3)).
//!
//! It is one descriptor for it: a socket, in whose queue the message lies that a keeper begins with.

use std::fs::File;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::channel::{receive, send};

/// What systemd calls the descriptor: by turns, so that there is no moment in which it keeps none.
const NAMES: [&str; 2] = ["prepull-0", "prepull-1"];

/// The first descriptor that systemd hands over (`SD_LISTEN_FDS_START`).
const FIRST: i32 = 3;

/// The most bytes of a message's text.
const TEXT_MAX: u64 = 256 << 20;

/// Tells systemd something, if it is there.
fn notify(text: &str, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
    if !files.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&files));
    }
    sendmsg(&socket, &[IoSlice::new(text.as_bytes())], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Has systemd keep `message` and its files until [`forget`], in the place of what it kept before: that had another `turn`. Also
/// says that all is ready.
///
/// # Errors
/// When it cannot be told, or there are too many files.
pub fn keep(turn: u64, message: &impl Serialize, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return Ok(());
    }
    // A text of any length does not find room in a socket.
    let text = rustix::fs::memfd_create("prepull", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut text = File::from(text);
    text.write_all(&serde_json::to_vec(message)?)?;
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let all: Vec<BorrowedFd<'_>> = std::iter::once(text.as_fd()).chain(files.iter().copied()).collect();
    send(&ours, &(), &all)?;
    store((turn % 2) as usize, &theirs)?;
    notify("READY=1", None)
}

/// Has systemd keep it under this name, and then nothing under the other one.
fn store(name: usize, socket: &UnixStream) -> io::Result<()> {
    let [name, before] = [NAMES[name], NAMES[1 - name]];
    notify(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None)?;
    // Its other end is closed. What hangs up is dropped at once by systemd, unless it is told not to look (since 246).
    notify(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), Some(socket.as_fd()))?;
    notify(&format!("FDSTOREREMOVE=1\nFDNAME={before}"), None)
}

/// Has systemd keep nothing any more.
pub fn forget() {
    // Who is not there keeps nothing.
    for name in NAMES {
        let _ = notify(&format!("STOPPING=1\nFDSTOREREMOVE=1\nFDNAME={name}"), None);
    }
}

/// What systemd has kept for this process.
#[derive(Debug)]
pub enum Taken<T> {
    /// It has not.
    Nothing,
    /// Somebody has taken it, and died before it was kept again; or it is of another version of prepull.
    Lost,
    /// It is kept again by now.
    Whole {
        /// The message.
        message: T,
        /// Its files.
        files: Vec<OwnedFd>,
        /// The turn that it has now.
        turn: u64,
    },
}

#[derive(Deserialize)]
struct Turn {
    turn: u64,
}

/// Takes what systemd has kept for this process, and has it kept again before anything else happens.
///
/// # Errors
/// When systemd cannot be told, or there are no descriptors left.
pub fn take<T: DeserializeOwned>() -> io::Result<Taken<T>> {
    let variable = |name| std::env::var(name).ok();
    let own = getpid();
    if variable("LISTEN_PID") != Some(own.as_raw_nonzero().to_string()) {
        return Ok(Taken::Nothing);
    }
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut newest: Option<(u64, usize, T, Vec<OwnedFd>)> = None;
    let mut taken = Taken::Nothing;
    // A descriptor known by its number only cannot be owned without `unsafe`; but it can be copied.
    let process = pidfd_open(own, PidfdFlags::empty())?;
    for (at, name) in names.split(':').enumerate() {
        let Some(name) = NAMES.iter().position(|known| *known == name) else { continue };
        taken = Taken::Lost;
        let socket = UnixStream::from(pidfd_getfd(&process, FIRST + at as i32, PidfdGetfdFlags::empty())?);
        let Ok(Some(((), files))) = receive::<()>(&socket) else { continue };
        let Ok((turn, message)) = files.first().ok_or(io::ErrorKind::NotFound.into()).and_then(read::<T>) else {
            continue;
        };
        // Both are there if somebody died while one took the place of the other.
        if newest.as_ref().is_none_or(|(other, ..)| *other < turn) {
            newest = Some((turn, name, message, files));
        }
    }
    let Some((turn, name, message, mut files)) = newest else { return Ok(taken) };
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let all: Vec<BorrowedFd<'_>> = files.iter().map(OwnedFd::as_fd).collect();
    send(&ours, &(), &all)?;
    store(1 - name, &theirs)?;
    files.remove(0);
    // What is kept next has the name that it was taken from.
    let turn = turn + 1 + u64::from((turn + 1) % 2 == name as u64);
    Ok(Taken::Whole { message, files, turn })
}

/// A message in a file, and its turn.
fn read<T: DeserializeOwned>(file: &OwnedFd) -> io::Result<(u64, T)> {
    let mut file = File::from(file.try_clone()?);
    let mut text = Vec::new();
    // Its place is at the end.
    io::Seek::rewind(&mut file)?;
    file.take(TEXT_MAX).read_to_end(&mut text)?;
    let Turn { turn } = serde_json::from_slice(&text)?;
    Ok((turn, serde_json::from_slice(&text)?))
}
