//! `restore`: in the machine, what its unpacker has dropped.
//!
//! `busybox tar` knows no extended attributes and no fractions of a second, does not date symbolic links, and makes some links
//! last, which changes the times of their directories. The manifest on standard input is a canonical tar with one entry for each
//! object to mend, in the order in which it is done; a regular file stands there without content. It works below the current
//! directory, changes attributes and times only, and only of what is as the manifest says: nothing is made, and what the
//! machine has changed or removed since is left alone.

use std::ffi::OsStr;
use std::io::{self, BufReader, Read, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::process::ExitCode;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, UTIME_OMIT, XattrFlags,
};
use rustix::io::Errno;

use crate::entry::{Device, Entry, Kind, Timestamp, Xattr};
use crate::wire::read;

/// No path leaves the directory, whatever stands in its way.
const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Attributes that steer overlay mounts: no image has them.
const STEER: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// Bytes read at once.
const BUFFER: usize = 64 << 10;

/// Why it stopped.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the manifest: {0}")]
    Manifest(#[from] read::Error),
    #[error("the manifest: entry {0} is none that can be restored")]
    Entry(u64),
    #[error("the current directory: {0}")]
    Root(Errno),
    #[error("entry {0}: {1}: {2}")]
    Call(u64, &'static str, Errno),
}

/// What became of an entry.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Restored,
    Missing,
    /// It is not what the manifest says, or cannot have what it says.
    Left(&'static str),
}

/// Runs the mode. One line says what was done; what was left as it is gets one on standard error.
#[must_use]
pub fn run() -> ExitCode {
    let (mut restored, mut missing, mut left, mut first) = (0_u64, 0_u64, 0_u64, None);
    let each = |number, outcome| match outcome {
        Outcome::Restored => restored += 1,
        Outcome::Missing => missing += 1,
        Outcome::Left(why) => {
            left += 1;
            first.get_or_insert((number, why));
        }
    };
    let result = restore(BufReader::with_capacity(BUFFER, io::stdin().lock()), each);
    if let Err(error) = result {
        let _ = writeln!(io::stderr(), "prepull-helper: {error}");
        return ExitCode::FAILURE;
    }
    if let Some((number, why)) = first {
        let _ = writeln!(io::stderr(), "prepull-helper: {left} left as they are, the first: entry {number} {why}");
    }
    let _ = writeln!(io::stdout(), "restored {restored}, missing {missing}, left {left}");
    ExitCode::SUCCESS
}

/// Hands out what became of each entry, by its number.
fn restore(input: impl Read, mut each: impl FnMut(u64, Outcome)) -> Result<(), Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, c".", flags, Mode::empty()).map_err(Error::Root)?;
    let mut reader = read::Reader::new(input);
    while let Some(entry) = reader.next_entry()? {
        let number = reader.number();
        let steers = |(name, _): &Xattr| STEER.iter().any(|prefix| name.starts_with(prefix));
        if matches!(entry.kind, Kind::Regular { size: 1.. } | Kind::Hardlink(_)) || entry.meta.xattrs.iter().any(steers)
        {
            return Err(Error::Entry(number));
        }
        let slash = entry.path.iter().rposition(|&byte| byte == b'/');
        let (parent, name) = entry.path.split_at(slash.map_or(0, |at| at + 1));
        let parent = parent.strip_suffix(b"/").unwrap_or(b".");
        let mended = match open(&root, parent, flags) {
            Ok(parent) => object(&parent, name, &entry),
            Err(errno) => Err(("opening its directory", errno)),
        };
        let outcome = mended.or_else(|(call, errno)| not_there(errno).ok_or(Error::Call(number, call, errno)))?;
        each(number, outcome);
    }
    Ok(())
}

fn open(at: &OwnedFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(at, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), INSIDE)
}

/// What an error says of a path, if it says something.
fn not_there(errno: Errno) -> Option<Outcome> {
    match errno {
        // An unpacker cannot have made what is longer than the kernel takes.
        Errno::NOENT | Errno::NAMETOOLONG => Some(Outcome::Missing),
        Errno::LOOP | Errno::NOTDIR | Errno::XDEV => Some(Outcome::Left("is behind a link, a mount or a file")),
        _ => None,
    }
}

/// Mends one object.
fn object(parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<Outcome, (&'static str, Errno)> {
    let call = |what| move |errno| (what, errno);
    let seen = open(parent, name, OFlags::PATH).map_err(call("opening it"))?;
    let stat = rustix::fs::fstat(&seen).map_err(call("fstat"))?;
    if !is_kind(&seen, &stat, &entry.kind).map_err(call("readlink"))? {
        return Ok(Outcome::Left("has another type or target"));
    }
    let owner = (entry.meta.uid, entry.meta.gid, u32::from(entry.meta.mode));
    if !matches!(entry.kind, Kind::Symlink(_)) && (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777) != owner {
        return Ok(Outcome::Left("has another owner or mode"));
    }
    // Opening a device may do something, and a link cannot be opened: these are changed by their names, which lead nowhere
    // since they are not followed.
    let opened = if matches!(entry.kind, Kind::Regular { .. } | Kind::Directory) {
        let opened = open(parent, name, OFlags::RDONLY | OFlags::NONBLOCK).map_err(call("opening it"))?;
        let now = rustix::fs::fstat(&opened).map_err(call("fstat"))?;
        if (now.st_dev, now.st_ino) != (stat.st_dev, stat.st_ino) {
            return Ok(Outcome::Left("was replaced meanwhile"));
        }
        Some(opened)
    } else {
        None
    };
    let mut outcome = Outcome::Restored;
    for (key, value) in &entry.meta.xattrs {
        let key = OsStr::from_bytes(key);
        let result = match &opened {
            Some(opened) => rustix::fs::fsetxattr(opened, key, value, XattrFlags::empty()),
            None => rustix::process::fchdir(parent)
                .and_then(|()| rustix::fs::lsetxattr(name, key, value, XattrFlags::empty())),
        };
        match result {
            // It would be so at the next boot, too.
            Err(Errno::OPNOTSUPP) => outcome = Outcome::Left("is on a file system without such attributes"),
            other => other.map_err(call("setxattr"))?,
        }
    }
    let Timestamp { seconds, nanoseconds } = entry.meta.mtime;
    let mtime = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    if (stat.st_mtime as i64, stat.st_mtime_nsec as i64) != (seconds, nanoseconds.into()) {
        let times = Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: mtime };
        match &opened {
            Some(opened) => rustix::fs::futimens(opened, &times),
            None => rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW),
        }
        .map_err(call("utimensat"))?;
    }
    Ok(outcome)
}

/// Whether what was opened is what the manifest says; for a link also where it leads.
fn is_kind(seen: &OwnedFd, stat: &Stat, kind: &Kind) -> Result<bool, Errno> {
    let is_device = |device: &Device| stat.st_rdev == rustix::fs::makedev(device.major, device.minor);
    let found = FileType::from_raw_mode(stat.st_mode);
    Ok(match kind {
        Kind::Directory => found == FileType::Directory,
        Kind::Regular { .. } => found == FileType::RegularFile,
        Kind::Symlink(target) => {
            found == FileType::Symlink && rustix::fs::readlinkat(seen, c"", Vec::new())?.as_bytes() == target
        }
        Kind::CharDevice(device) => found == FileType::CharacterDevice && is_device(device),
        Kind::BlockDevice(device) => found == FileType::BlockDevice && is_device(device),
        Kind::Fifo => found == FileType::Fifo,
        Kind::Hardlink(_) => false,
    })
}
