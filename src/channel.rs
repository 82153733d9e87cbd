//! Messages between prepull's own processes: a text of JSON, and open files with it.
//!
//! ```text
//!  length of the text, number of files: 4 bytes each │ text │ one byte with up to 200 files │ …
//! ```

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The most bytes of a message: 5,000 layers, and the manifests and configs of as many images.
const TEXT_MAX: u32 = 256 << 20;

/// The most files of a message: two for each of 20,000 layers.
const FILES_MAX: u32 = 40_000;

/// The most bytes of a message of who has little to say: an error with a long path in it.
const LITTLE_MAX: u32 = 64 << 10;

/// Files sent at once: Linux takes 253 (`SCM_MAX_FD`).
const AT_ONCE: usize = 200;

/// Bytes of a text sent at once.
const PIECE: usize = 64 << 10;

/// Sends a message.
///
/// # Errors
/// The socket's.
pub fn send(socket: &UnixStream, message: &impl Serialize, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_by(socket, message, files, || Ok(()))
}

/// The same, to somebody who may not read it: within `patience`.
///
/// # Errors
/// The socket's, also when the time is over: then part of the message may have been sent.
pub fn send_within(
    socket: &UnixStream,
    message: &impl Serialize,
    files: &[BorrowedFd<'_>],
    patience: Duration,
) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    let sent = send_by(socket, message, files, || {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_write_timeout(Some(left))
    });
    socket.set_write_timeout(None)?;
    sent
}

fn send_by(
    mut socket: &UnixStream,
    message: &impl Serialize,
    files: &[BorrowedFd<'_>],
    before_each: impl Fn() -> io::Result<()>,
) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let mut head = Vec::with_capacity(8);
    head.extend_from_slice(&(text.len() as u32).to_le_bytes());
    head.extend_from_slice(&(files.len() as u32).to_le_bytes());
    before_each()?;
    socket.write_all(&head)?;
    // In pieces, none of which the kernel takes long for.
    for some in text.chunks(PIECE) {
        before_each()?;
        socket.write_all(some)?;
    }
    for some in files.chunks(AT_ONCE) {
        before_each()?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(some));
        retry_on_intr(|| sendmsg(socket, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL))?;
    }
    Ok(())
}

/// Receives a message and its files. `None` when nobody is there to send one.
///
/// # Errors
/// The socket's, or when it is no message.
pub fn receive<T: DeserializeOwned>(socket: &UnixStream) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    receive_at_most(socket, TEXT_MAX, FILES_MAX)
}

/// The same, of somebody who has little to say.
///
/// # Errors
/// As [`receive`].
pub fn receive_little<T: DeserializeOwned>(socket: &UnixStream) -> io::Result<Option<T>> {
    Ok(receive_at_most(socket, LITTLE_MAX, 0)?.map(|(message, _)| message))
}

fn receive_at_most<T: DeserializeOwned>(
    mut socket: &UnixStream,
    text_max: u32,
    files_max: u32,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut head = [0; 8];
    if retry_on_intr(|| rustix::net::recv(socket, &mut head[..1], RecvFlags::empty()))?.0 == 0 {
        return Ok(None);
    }
    socket.read_exact(&mut head[1..])?;
    let [length, count] = [0, 4].map(|at| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    if length > text_max || count > files_max {
        // What follows cannot be told from the next message.
        return Err(io::Error::other("a message is too long"));
    }
    let mut text = Vec::new();
    socket.take(length.into()).read_to_end(&mut text)?;
    let mut files = Vec::new();
    while files.len() < count as usize {
        let before = files.len();
        receive_files(socket, &mut files)?;
        // Who has no descriptors left gets only some of them.
        if files.len() - before != (count as usize - before).min(AT_ONCE) {
            return Err(bad("files of a message are missing"));
        }
    }
    serde_json::from_slice(&text).map(|message| Some((message, files))).map_err(|error| bad(&error.to_string()))
}

/// Receives one byte, and the files that come with it.
///
/// # Errors
/// The socket's.
pub fn receive_files(socket: impl AsFd, files: &mut Vec<OwnedFd>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    retry_on_intr(|| {
        recvmsg(&socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC).map(drop)
    })?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            files.extend(received);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_read_is_not_waited_for() {
        let (one, _other) = UnixStream::pair().unwrap();
        let begun = Instant::now();
        let sent = send_within(&one, &"text".repeat(1_000_000), &[], Duration::from_millis(50));
        assert!(matches!(sent.unwrap_err().kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut));
        assert!(begun.elapsed() < Duration::from_secs(5));
        // Also if he reads a little now and then.
        let (one, other) = UnixStream::pair().unwrap();
        let reading = std::thread::spawn(move || {
            let mut some = [0; 1000];
            while matches!((&other).read(&mut some), Ok(1..)) {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        assert!(send_within(&one, &"text".repeat(1_000_000), &[], Duration::from_millis(200)).is_err());
        assert!(begun.elapsed() < Duration::from_secs(5));
        drop(one);
        reading.join().unwrap();
    }

    #[test]
    fn files_arrive_with_their_message() {
        let (one, other) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let many: Vec<_> = (0..450).map(|_| file.as_fd()).collect();
        let sender = std::thread::scope(|scope| {
            let sending = scope.spawn(|| send(&one, &"text".repeat(100_000), &many));
            let (text, files) = receive::<String>(&other).unwrap().unwrap();
            assert_eq!((text.len(), files.len()), (400_000, 450));
            sending.join().unwrap()
        });
        sender.unwrap();
        send(&one, &7, &[]).unwrap();
        assert_eq!(receive::<u32>(&other).unwrap().unwrap().0, 7);
        (&one).write_all(&[0xff; 8]).unwrap();
        assert!(receive::<u32>(&other).is_err());
        drop(one);
        let (one, other) = UnixStream::pair().unwrap();
        drop(one);
        assert!(receive::<u32>(&other).unwrap().is_none());
    }
}
