//! Entries as files below a directory that nobody else can enter yet.
//!
//! ```text
//!  file:       create 0600 ▶ content ▶ user.* ▶ owner ▶ ACLs ▶ mode ▶ capability ▶ time     (each by descriptor)
//!  directory:  make 0700 ………………… filled ………………… ▶ the same, when its header comes again
//! ```
//!
//! The order follows from the kernel: attributes of users need their file writable; a new owner takes setuid, setgid and
//! capabilities away; a directory whose owner is somebody else could not be filled without more capabilities. So every
//! directory stands twice in the stream: before what is in it, and after it.

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use caps::Capability;
use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::Error;
use super::confine::Powers;
use super::root::{Dir, is_directory, write_all};
use crate::entry::{Device, Entry, Kind, Meta, Timestamp, Xattr};
use crate::wire::read::Reader;

/// Bytes that are copied at once.
const BUFFER: usize = 256 << 10;

/// How many attributes that were left out are named.
const DROPPED_SHOWN: usize = 5;

/// What may be made, and how much of it.
#[derive(Debug)]
pub struct Budget {
    /// How privileged calls are made.
    pub powers: Powers,
    /// Bytes of content that may still come.
    pub bytes: u64,
    /// Inodes that may still be made.
    pub inodes: u64,
    /// Whether devices other than whiteouts may be.
    pub devices: bool,
    /// Whether setuid and setgid files may be.
    pub suid: bool,
    /// Whether file capabilities may be.
    pub filecaps: bool,
    /// Attributes that were left out: how many, and the first few.
    pub dropped: (u64, Vec<String>),
}

/// A tree that is being filled.
#[derive(Debug)]
pub struct Tree {
    base: Dir,
    /// Whether a directory may stand in the stream once only: then it gets its metadata at once, if it can be filled with them.
    is_once: bool,
    /// Where the base is, with a slash at the end unless empty: hard links must point there, too.
    prefix: Vec<u8>,
    /// The directory that the last entry was in.
    last: (Vec<u8>, Dir),
}

/// An entry as it is being made.
struct Making<'a> {
    budget: &'a mut Budget,
    entry: &'a Entry,
}

impl Budget {
    /// Takes one name with `bytes` of content, and its target.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn take(&mut self, entry: &Entry, bytes: u64) -> Result<(), Error> {
        let inodes = self.inodes.checked_sub(1).ok_or_else(|| Error::refused(entry, "too many files (max_inodes)"))?;
        let target = if let Kind::Symlink(target) = &entry.kind { target.len() } else { 0 };
        let bytes = bytes.saturating_add(target as u64);
        let bytes = self.bytes.checked_sub(bytes).ok_or_else(|| Error::refused(entry, "too many bytes (max_bytes)"))?;
        (self.inodes, self.bytes) = (inodes, bytes);
        Ok(())
    }
}

impl Tree {
    /// Entries below `prefix` go into `base`. With `is_once` a directory's header need not come again after its content.
    ///
    /// # Errors
    /// When `base` cannot be opened again.
    pub fn new(base: Dir, prefix: Vec<u8>, is_once: bool) -> Result<Self, Errno> {
        let last = (Vec::new(), base.open(b"")?);
        Ok(Self { base, is_once, prefix, last })
    }

    /// Makes `entry`, whose path below the base is `path`. A directory that is there gets its metadata; anything else must be
    /// new. An empty path is the base.
    ///
    /// # Errors
    /// When it may not be, or cannot be made.
    pub fn place<R: Read>(
        &mut self,
        budget: &mut Budget,
        path: &[u8],
        entry: &Entry,
        content: &mut Reader<R>,
    ) -> Result<(), Error> {
        let mut making = Making { budget, entry };
        making.check()?;
        if path.is_empty() {
            return match entry.kind {
                Kind::Directory => making.finish(&self.base),
                _ => Err(making.refuse("the root of a tree is a directory")),
            };
        }
        let (parent, name) = split(path);
        if parent != self.last.0 {
            let opened = self.base.open(parent).map_err(|error| making.failed("opening the directory of", error))?;
            self.last = (parent.to_vec(), opened);
        }
        let parent = &self.last.1;
        match &entry.kind {
            Kind::Directory => return making.directory(parent, name, self.is_once),
            Kind::Hardlink(target) => {
                making.budget.take(entry, 0)?;
                let target = target.strip_prefix(&self.prefix[..]);
                let target = target.ok_or_else(|| making.refuse("a hard link to outside its tree"))?;
                return making.link(&self.base, target, parent, name);
            }
            Kind::Regular { size } => making.budget.take(entry, *size)?,
            _ => making.budget.take(entry, 0)?,
        }
        match &entry.kind {
            Kind::Regular { size } => making.file(parent, name, *size, content),
            Kind::Symlink(target) => {
                rustix::fs::symlinkat(&target[..], parent, name).map_err(|error| making.failed("making", error))?;
                making.finish_name(parent, name)
            }
            Kind::CharDevice(device) => making.node(parent, name, FileType::CharacterDevice, *device),
            Kind::BlockDevice(device) => making.node(parent, name, FileType::BlockDevice, *device),
            _ => making.node(parent, name, FileType::Fifo, Device::default()),
        }
    }
}

impl Making<'_> {
    /// What no policy and no kernel is asked for.
    fn check(&self) -> Result<(), Error> {
        let Entry { meta, kind, .. } = self.entry;
        if meta.uid == u32::MAX || meta.gid == u32::MAX {
            // To the kernel it means "leave it as it is".
            return Err(self.refuse("4294967295 is nobody's number"));
        }
        if let Kind::CharDevice(device) | Kind::BlockDevice(device) = kind {
            let is_whiteout = matches!(kind, Kind::CharDevice(_)) && *device == Device::WHITEOUT;
            if !is_whiteout && !self.budget.devices {
                return Err(self.refuse("the policy allows no devices (devices = true)"));
            }
        }
        if meta.mode & 0o6000 != 0 && matches!(kind, Kind::Regular { .. }) && !self.budget.suid {
            return Err(self.refuse("the policy allows no setuid or setgid files (suid = true)"));
        }
        Ok(())
    }

    fn directory(&mut self, parent: &Dir, name: &[u8], is_once: bool) -> Result<(), Error> {
        match parent.make(name, 0o700) {
            Ok(made) => {
                self.budget.take(self.entry, 0)?;
                let Meta { mode, uid, gid, .. } = self.entry.meta;
                let ours = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
                if is_once && (uid, gid) == ours && mode & 0o6700 == 0o700 { self.finish(&made) } else { Ok(()) }
            }
            Err(Errno::EXIST) => {
                let directory = parent.open(name).map_err(|error| self.failed("opening", error))?;
                self.finish(&directory)
            }
            Err(error) => Err(self.failed("making", error)),
        }
    }

    /// What has several names is anything but a directory, and of this tree: nothing else is below its base.
    fn link(&mut self, base: &Dir, target: &[u8], parent: &Dir, name: &[u8]) -> Result<(), Error> {
        let (directory, target) = split(target);
        let opened = base.open(directory).map_err(|error| self.failed("opening the target's directory of", error))?;
        let found = opened.stat(target).map_err(|error| self.failed("looking for the target of", error))?;
        if is_directory(&found) {
            return Err(self.refuse("a hard link to a directory"));
        }
        // Somebody else's file may be linked with CAP_FOWNER only (sysctl fs.protected_hardlinks).
        let link = || rustix::fs::linkat(&opened, target, parent, name, AtFlags::empty());
        self.budget.powers.with(Capability::CAP_FOWNER, link).map_err(|error| self.failed("making", error))
    }

    fn file<R: Read>(&mut self, parent: &Dir, name: &[u8], size: u64, content: &mut Reader<R>) -> Result<(), Error> {
        let file = parent.create(name, 0o600).map_err(|error| self.failed("making", error))?;
        copy(content, &file, size, |error| self.failed("writing", error))?;
        self.finish(&file)
    }

    fn node(&mut self, parent: &Dir, name: &[u8], kind: FileType, device: Device) -> Result<(), Error> {
        let number = rustix::fs::makedev(device.major, device.minor);
        let make = || rustix::fs::mknodat(parent, name, kind, Mode::empty(), number);
        let made = if kind == FileType::Fifo || kind == FileType::CharacterDevice && number == 0 {
            make()
        } else {
            self.budget.powers.with(Capability::CAP_MKNOD, make)
        };
        made.map_err(|error| self.failed("making", error))?;
        self.finish_name(parent, name)
    }

    /// Metadata of a file or directory that is open.
    fn finish(&mut self, file: &impl AsFd) -> Result<(), Error> {
        let Meta { mode, uid, gid, mtime, xattrs } = &self.entry.meta;
        let powers = self.budget.powers;
        let of_user = |(name, _): &&Xattr| name.starts_with(b"user.");
        for xattr in xattrs.iter().filter(of_user) {
            self.attribute(xattr, |name, value| rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()))?;
        }
        powers
            .with(Capability::CAP_CHOWN, || {
                rustix::fs::fchown(file, Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)))
            })
            .map_err(|error| self.failed("changing the owner of", error))?;
        for xattr in xattrs.iter().filter(|xattr| !of_user(xattr) && xattr.0 != CAPABILITY) {
            self.attribute(xattr, |name, value| {
                privileged(powers, || rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()))
            })?;
        }
        privileged(powers, || rustix::fs::fchmod(file, Mode::from_raw_mode(u32::from(*mode))))
            .map_err(|error| self.failed("changing the mode of", error))?;
        for xattr in xattrs.iter().filter(|xattr| xattr.0 == CAPABILITY) {
            if !self.budget.filecaps {
                return Err(self.refuse("the policy allows no file capabilities (filecaps = true)"));
            }
            self.attribute(xattr, |name, value| {
                let set = || rustix::fs::fsetxattr(file, name, value, XattrFlags::empty());
                powers.with(Capability::CAP_SETFCAP, set)
            })?;
        }
        powers
            .with(Capability::CAP_FOWNER, || rustix::fs::futimens(file, &times(*mtime)))
            .map_err(|error| self.failed("setting the time of", error))
    }

    /// Metadata of what cannot be opened without side effects. The name is new, and nobody else can be in `parent`.
    fn finish_name(&mut self, parent: &Dir, name: &[u8]) -> Result<(), Error> {
        let Meta { mode, uid, gid, mtime, xattrs } = &self.entry.meta;
        let powers = self.budget.powers;
        let owner = (Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)));
        powers
            .with(Capability::CAP_CHOWN, || {
                rustix::fs::chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
            })
            .map_err(|error| self.failed("changing the owner of", error))?;
        for xattr in xattrs {
            // The system call takes no directory.
            let path = [format!("/proc/self/fd/{}/", parent.as_fd().as_raw_fd()).as_bytes(), name].concat();
            self.attribute(xattr, |name, value| match powers {
                Powers::Own => rustix::fs::lsetxattr(&path[..], name, value, XattrFlags::empty()),
                Powers::Raised => Err(Errno::NOTSUP),
            })?;
        }
        if !matches!(self.entry.kind, Kind::Symlink(_)) {
            privileged(powers, || {
                rustix::fs::chmodat(parent, name, Mode::from_raw_mode(u32::from(*mode)), AtFlags::empty())
            })
            .map_err(|error| self.failed("changing the mode of", error))?;
        }
        powers
            .with(Capability::CAP_FOWNER, || {
                rustix::fs::utimensat(parent, name, &times(*mtime), AtFlags::SYMLINK_NOFOLLOW)
            })
            .map_err(|error| self.failed("setting the time of", error))
    }

    /// Sets an attribute, or leaves it out where the file system or the kernel does not take it from us, as
    /// containers/storage does (`pkg/archive/archive.go`, `extractTarFileEntry`).
    fn attribute(
        &mut self,
        (name, value): &Xattr,
        set: impl FnOnce(&[u8], &[u8]) -> Result<(), Errno>,
    ) -> Result<(), Error> {
        let is_opaque = name == b"trusted.overlay.opaque" && value == b"y" && self.entry.kind == Kind::Directory;
        if !is_opaque && (name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")) {
            return Err(self.refuse("an attribute that would steer the overlay that it is mounted by"));
        }
        // Each time: a directory's header may come again.
        let left = self.budget.bytes.checked_sub((name.len() + value.len()) as u64);
        self.budget.bytes = left.ok_or_else(|| self.refuse("too many bytes (max_bytes)"))?;
        let known = name == CAPABILITY || name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_");
        let done = if known || self.budget.powers == Powers::Own { set(name, value) } else { Err(Errno::NOTSUP) };
        // A program without its capabilities would not work; on anything else they mean nothing.
        let is_needed = name == CAPABILITY && matches!(self.entry.kind, Kind::Regular { .. });
        match done {
            Ok(()) => Ok(()),
            Err(Errno::NOTSUP | Errno::PERM) if !is_needed => {
                self.budget.dropped.0 += 1;
                if self.budget.dropped.1.len() < DROPPED_SHOWN {
                    let text = format!("{} ({})", shown(&self.entry.path), shown(name));
                    self.budget.dropped.1.push(text);
                }
                Ok(())
            }
            Err(error) => Err(self.failed(&format!("setting {} of", shown(name)), error)),
        }
    }

    fn refuse(&self, why: &'static str) -> Error {
        Error::refused(self.entry, why)
    }

    fn failed(&self, doing: &str, error: Errno) -> Error {
        Error::system(format!("{doing} {}", shown(&self.entry.path)), error)
    }
}

/// Copies the content of an entry, `size` bytes, into `file`.
///
/// # Errors
/// When it cannot be read, or, made by `failed`, not written.
pub fn copy<R: Read>(
    content: &mut Reader<R>,
    file: &OwnedFd,
    size: u64,
    failed: impl Fn(Errno) -> Error,
) -> Result<(), Error> {
    let mut buffer = vec![0; BUFFER.min(usize::try_from(size).unwrap_or(BUFFER))];
    loop {
        match content.read(&mut buffer)? {
            0 => return Ok(()),
            count => write_all(file, &buffer[..count]).map_err(&failed)?,
        }
    }
}

const CAPABILITY: &[u8] = b"security.capability";

/// Of what is somebody else's: CAP_FSETID, or setgid of a group that we are not in would be lost without a word.
fn privileged<T>(powers: Powers, call: impl FnOnce() -> T) -> T {
    powers.with(Capability::CAP_FOWNER, || powers.with(Capability::CAP_FSETID, call))
}

fn times(mtime: Timestamp) -> Timestamps {
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// The directory and the last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.iter().rposition(|&byte| byte == b'/').map_or((b"", path), |at| (&path[..at], &path[at + 1..]))
}

/// A name for a message.
#[must_use]
pub fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).escape_debug().collect()
}

/// What directories are called while a tree is removed.
const TRASH: &[u8] = b"trash-";

/// Removes the directory `name` in `parent` and all that is in it, whoever owns it, without following a link.
///
/// Nothing is open but two directories, however deep it is: a directory in a directory is first moved up into `parent`.
///
/// # Errors
/// The kernel's.
pub fn remove(powers: Powers, parent: &Dir, name: &[u8]) -> Result<(), Errno> {
    let mut number = 0_u64;
    let mut todo = vec![name.to_vec()];
    while let Some(name) = todo.pop() {
        take_over(powers, parent, &name)?;
        let directory = parent.open(&name)?;
        for child in directory.names()? {
            match rustix::fs::unlinkat(&directory, &child[..], AtFlags::empty()) {
                Err(Errno::ISDIR) => {
                    take_over(powers, &directory, &child)?;
                    if rustix::fs::unlinkat(&directory, &child[..], AtFlags::REMOVEDIR).is_ok() {
                        continue;
                    }
                    let mut moved;
                    loop {
                        moved = [TRASH, number.to_string().as_bytes()].concat();
                        number += 1;
                        if !parent.has(&moved) {
                            break;
                        }
                    }
                    directory.rename(&child, parent, &moved)?;
                    todo.push(moved);
                }
                done => done?,
            }
        }
        rustix::fs::unlinkat(parent, &name[..], AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

/// Makes a directory ours, so that it can be emptied without a capability for that.
fn take_over(powers: Powers, parent: &Dir, name: &[u8]) -> Result<(), Errno> {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    let chown = || rustix::fs::chownat(parent, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW);
    powers.with(Capability::CAP_CHOWN, chown)?;
    // Opened by path only: it may not be readable yet. Nobody else can be in the parent.
    rustix::fs::chmodat(parent, name, Mode::from_raw_mode(0o700), AtFlags::empty())
}
