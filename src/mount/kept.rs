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
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::channel::{receive, send};

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
    let [name, before] = if turn.is_multiple_of(2) { NAMES } else { [NAMES[1], NAMES[0]] };
    notify(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None)?;
    notify(&format!("READY=1\nFDSTORE=1\nFDNAME={name}"), Some(theirs.as_fd()))?;
    notify(&format!("FDSTOREREMOVE=1\nFDNAME={before}"), None)
}

/// Has systemd keep nothing any more.
pub fn forget() {
    // Who is not there keeps nothing.
    for name in NAMES {
        let _ = notify(&format!("STOPPING=1\nFDSTOREREMOVE=1\nFDNAME={name}"), None);
    }
}

/// What systemd has kept for this process, if it has.
///
/// # Errors
/// When it is not what was kept.
pub fn take<T: DeserializeOwned>() -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let variable = |name| std::env::var(name).ok();
    let own = getpid();
    if variable("LISTEN_PID") != Some(own.as_raw_nonzero().to_string()) {
        return Ok(None);
    }
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let Some(at) = names.split(':').position(|name| NAMES.contains(&name)) else { return Ok(None) };
    // A descriptor known by its number only cannot be owned without `unsafe`; but it can be copied.
    let process = pidfd_open(own, PidfdFlags::empty())?;
    let socket = UnixStream::from(pidfd_getfd(&process, FIRST + at as i32, PidfdGetfdFlags::empty())?);
    let Some(((), files)) = receive::<()>(&socket)? else { return Ok(None) };
    let mut files = files.into_iter();
    let missing = || io::Error::new(io::ErrorKind::InvalidData, "what systemd has kept is not whole");
    let file = files.next().map(File::from).ok_or_else(missing)?;
    let mut text = Vec::new();
    // Its place is at the end.
    io::Seek::rewind(&mut &file)?;
    file.take(TEXT_MAX).read_to_end(&mut text)?;
    Ok(Some((serde_json::from_slice(&text)?, files.collect())))
}
