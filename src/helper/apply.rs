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

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::Error;
use super::confine::Powers;
use super::policy::Allow;
use super::root::{Dir, is_directory, is_ours};
use crate::entry::{Device, Entry, Kind, Meta, Xattr};
use crate::wire::read::Reader;

/// Bytes that are copied at once.
const BUFFER: usize = 256 << 10;

/// Bytes after which the free space is measured again, and what an entry counts beside its content.
const MEASURE: u64 = 16 << 20;
const INODE: u64 = 4096;

/// Number of inodes that are left where space is kept free.
const KEEP_INODES: u64 = 10_000;

/// How many attributes that were left out are named.
const DROPPED_SHOWN: usize = 5;

/// What may be made, and how much of it.
#[derive(Debug)]
pub struct Budget {
    /// How privileged calls are made.
    pub powers: Powers,
    /// What is allowed: `max_bytes` and `max_inodes` are those that may still come.
    pub allow: Allow,
    /// Attributes that were left out: how many, and the first few.
    pub dropped: (u64, Vec<String>),
    /// Directory of the file system that keeps some space free, if it does.
    place: Option<Dir>,
    /// Bytes since the free space was measured.
    unmeasured: u64,
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
    /// Allows what `allow` does, in `target`.
    ///
    /// # Errors
    /// If `target` cannot be opened again.
    pub fn new(powers: Powers, allow: Allow, target: &Dir) -> Result<Self, Errno> {
        let place = if allow.keep_free > 0 { Some(target.open(b"")?) } else { None };
        // The first entry is measured.
        Ok(Self { powers, allow, dropped: (0, Vec::new()), place, unmeasured: MEASURE })
    }

    /// Takes one name with `bytes` of content, and its target.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn take(&mut self, entry: &Entry, bytes: u64) -> Result<(), Error> {
        let target = if let Kind::Symlink(target) = &entry.kind { target.len() } else { 0 };
        let inodes = self.allow.max_inodes.checked_sub(1);
        self.allow.max_inodes = inodes.ok_or_else(|| Error::refused(entry, "too many files (max_inodes)"))?;
        let left = self.allow.max_bytes.checked_sub(bytes.saturating_add(target as u64));
        self.allow.max_bytes = left.ok_or_else(|| Error::refused(entry, "too many bytes (max_bytes)"))?;
        self.unmeasured = self.unmeasured.saturating_add(bytes).saturating_add(INODE);
        let Some(place) = self.place.as_ref().filter(|_| self.unmeasured >= MEASURE) else { return Ok(()) };
        let found = fs::fstatvfs(place).map_err(|error| Error::system("measuring the free space", error))?;
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        let has_inodes = found.f_files == 0 || found.f_favail >= KEEP_INODES;
        if free < self.allow.keep_free.saturating_add(bytes) || !has_inodes {
            return Err(Error::refused(entry, "too little space would be left (keep_free)"));
        }
        self.unmeasured = 0;
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

    /// Makes `entry`, which is below the base or is the base. A directory that is there gets its metadata; anything else must be
    /// new.
    ///
    /// # Errors
    /// When it may not be, or cannot be made.
    pub fn place<R: Read>(&mut self, budget: &mut Budget, entry: &Entry, from: &mut Reader<R>) -> Result<(), Error> {
        let mut making = Making { budget, entry };
        making.check()?;
        let path = entry.path.strip_prefix(&self.prefix[..]).unwrap_or_default();
        if path.is_empty() {
            return match entry.kind {
                Kind::Directory => making.finish(&self.base, b""),
                _ => Err(making.refuse("the root of a tree is a directory")),
            };
        }
        let (parent, name) = split(path);
        if parent != self.last.0 {
            self.last = (parent.to_vec(), making.done("opening the directory of", self.base.open(parent))?);
        }
        let parent = &self.last.1;
        if entry.kind != Kind::Directory {
            making.budget.take(entry, if let Kind::Regular { size } = entry.kind { size } else { 0 })?;
        }
        match &entry.kind {
            Kind::Directory => making.directory(parent, name, self.is_once),
            Kind::Hardlink(target) => match target.strip_prefix(&self.prefix[..]) {
                Some(target) => making.link(&self.base, target, parent, name),
                None => Err(making.refuse("a hard link to outside its tree")),
            },
            Kind::Regular { size } => {
                let file = making.done("making", parent.create(name, 0o600))?;
                copy(from, &file, *size, entry)?;
                making.finish(&file, b"")
            }
            Kind::Symlink(target) => {
                making.done("making", fs::symlinkat(&target[..], parent, name))?;
                making.finish(parent, name)
            }
            Kind::CharDevice(device) => making.node(parent, name, FileType::CharacterDevice, *device),
            Kind::BlockDevice(device) => making.node(parent, name, FileType::BlockDevice, *device),
            Kind::Fifo => making.pipe(parent, name),
        }
    }
}

impl Making<'_> {
    /// What no policy and no kernel is asked for.
    fn check(&self) -> Result<(), Error> {
        let Entry { meta, kind, .. } = self.entry;
        if meta.uid == u32::MAX || meta.gid == u32::MAX {
            // To the kernel it means "leave it as it is".
            return Err(self.refuse("4294967295 is not the id of a user or group"));
        }
        if let Kind::CharDevice(device) | Kind::BlockDevice(device) = kind {
            let is_whiteout = matches!(kind, Kind::CharDevice(_)) && *device == Device::WHITEOUT;
            if !is_whiteout && !self.budget.allow.devices {
                return Err(self.refuse("the policy allows no devices (devices = true)"));
            }
        }
        // Of every kind, also of those that the bits mean nothing for, or that do not get their header's mode.
        if meta.mode & 0o6000 != 0 && !self.budget.allow.suid {
            return Err(self.refuse("the policy allows no setuid or setgid bits (suid = true)"));
        }
        for (name, value) in &meta.xattrs {
            let is_file = matches!(kind, Kind::Regular { .. } | Kind::Directory);
            if name == CAPABILITY && is_file && !self.budget.allow.filecaps {
                return Err(self.refuse("the policy allows no file capabilities (filecaps = true)"));
            }
            let is_opaque = name == b"trusted.overlay.opaque" && value == b"y" && *kind == Kind::Directory;
            if !is_opaque && (name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")) {
                return Err(self.refuse("an attribute that would steer the overlay that it is mounted by"));
            }
        }
        Ok(())
    }

    fn directory(&mut self, parent: &Dir, name: &[u8], is_once: bool) -> Result<(), Error> {
        match parent.make(name, 0o700) {
            Ok(made) => {
                self.budget.take(self.entry, 0)?;
                let Meta { mode, uid, gid, .. } = self.entry.meta;
                let ours = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
                if is_once && (uid, gid) == ours && mode & 0o6700 == 0o700 { self.finish(&made, b"") } else { Ok(()) }
            }
            Err(Errno::EXIST) => self.finish(&self.done("opening", parent.open(name))?, b""),
            made => self.done("making", made.map(drop)),
        }
    }

    /// What has several names is anything but a directory, and of this tree: nothing else is below its base.
    fn link(&self, base: &Dir, target: &[u8], parent: &Dir, name: &[u8]) -> Result<(), Error> {
        let (directory, target) = split(target);
        let opened = self.done("opening the target's directory of", base.open(directory))?;
        if is_directory(&self.done("looking for the target of", opened.stat(target))?) {
            return Err(self.refuse("a hard link to a directory"));
        }
        // Somebody else's file may be linked with CAP_FOWNER only (sysctl fs.protected_hardlinks).
        let link = || fs::linkat(&opened, target, parent, name, AtFlags::empty());
        self.done("making", self.budget.powers.with(CapabilitySet::FOWNER, link))
    }

    /// Makes a named pipe, which then is opened, so that nothing of it is changed by its name.
    fn pipe(&mut self, parent: &Dir, name: &[u8]) -> Result<(), Error> {
        let made = fs::mknodat(parent, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = made.and_then(|()| parent.openat2(name, flags, Mode::empty()));
        self.finish(&self.done("making", opened)?, b"")
    }

    /// Makes a device or a whiteout. Opening it could have side effects, so it is changed by its name.
    fn node(&mut self, parent: &Dir, name: &[u8], kind: FileType, device: Device) -> Result<(), Error> {
        let number = fs::makedev(device.major, device.minor);
        let mode = Mode::from_raw_mode((self.entry.meta.mode & 0o7777).into());
        let make = || fs::mknodat(parent, name, kind, mode, number);
        let is_whiteout = kind == FileType::CharacterDevice && number == 0;
        let made = if is_whiteout { make() } else { self.budget.powers.with(CapabilitySet::MKNOD, make) };
        self.done("making", made)?;
        self.finish(parent, name)?;
        // The umask has taken its part of the mode, and chown(2) clears set-id bits.
        if self.done("looking at", parent.stat(name))?.st_mode & 0o7777 != mode.as_raw_mode() {
            let chmod = self.budget.powers.with(OF_OTHERS, || chmod_in_ours(parent, name, mode));
            self.done("changing the mode of", chmod)?;
        }
        Ok(())
    }

    /// Sets the metadata of the file, directory or pipe that is open. With `name`, that of a symbolic link or device in the
    /// directory: then all but the mode, by calls that follow no link.
    fn finish(&mut self, at: &impl AsFd, name: &[u8]) -> Result<(), Error> {
        let Meta { mode, uid, gid, mtime, xattrs } = &self.entry.meta;
        let (at, powers) = (at.as_fd(), self.budget.powers);
        let of_user = |(name, _): &&Xattr| name.starts_with(b"user.");
        for xattr in xattrs.iter().filter(of_user) {
            self.attribute(at, name, xattr, CapabilitySet::empty())?;
        }
        let owner = (Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)));
        let chown = || fs::chownat(at, name, owner.0, owner.1, ITSELF);
        self.done("changing the owner of", powers.with(CapabilitySet::CHOWN, chown))?;
        for xattr in xattrs.iter().filter(|xattr| !of_user(xattr) && xattr.0 != CAPABILITY) {
            self.attribute(at, name, xattr, OF_OTHERS)?;
        }
        if name.is_empty() {
            let chmod = || fs::fchmod(at, Mode::from_raw_mode((*mode).into()));
            self.done("changing the mode of", powers.with(OF_OTHERS, chmod))?;
        }
        for xattr in xattrs.iter().filter(|xattr| xattr.0 == CAPABILITY) {
            self.attribute(at, name, xattr, CapabilitySet::SETFCAP)?;
        }
        let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        let set_times = || fs::utimensat(at, name, &times, ITSELF);
        self.done("setting the time of", powers.with(CapabilitySet::FOWNER, set_times))
    }

    /// Sets an attribute, or leaves it out where the file system or the kernel does not take it from us, as
    /// containers/storage does (`pkg/archive/archive.go`, `extractTarFileEntry`).
    fn attribute(
        &mut self,
        at: BorrowedFd<'_>,
        of: &[u8],
        (name, value): &Xattr,
        needed: CapabilitySet,
    ) -> Result<(), Error> {
        // Each time: a directory's header may come again.
        let left = self.budget.allow.max_bytes.checked_sub((name.len() + value.len()) as u64);
        self.budget.allow.max_bytes = left.ok_or_else(|| self.refuse("too many bytes (max_bytes)"))?;
        let known = name == CAPABILITY || name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_");
        let is_file = matches!(self.entry.kind, Kind::Regular { .. } | Kind::Directory);
        let done = match self.budget.powers {
            Powers::Raised if !known || !is_file => Err(Errno::NOTSUP),
            powers if of.is_empty() => powers.with(needed, || fs::fsetxattr(at, name, value, XattrFlags::empty())),
            // The system call takes no directory.
            Powers::Own | Powers::Raised => {
                let path = [format!("/proc/self/fd/{}/", at.as_raw_fd()).as_bytes(), of].concat();
                fs::lsetxattr(&path[..], name, value, XattrFlags::empty())
            }
        };
        // A program without its capabilities would not work; on anything else they mean nothing.
        let is_needed = name == CAPABILITY && matches!(self.entry.kind, Kind::Regular { .. });
        match done {
            Err(Errno::NOTSUP | Errno::PERM) if !is_needed => {
                self.budget.dropped.0 += 1;
                if self.budget.dropped.1.len() < DROPPED_SHOWN {
                    let text = format!("{} ({})", shown(&self.entry.path), shown(name));
                    self.budget.dropped.1.push(text);
                }
                Ok(())
            }
            done => self.done(&format!("setting {} of", shown(name)), done),
        }
    }

    fn refuse(&self, why: &'static str) -> Error {
        Error::refused(self.entry, why)
    }

    fn done<T>(&self, doing: &str, result: Result<T, Errno>) -> Result<T, Error> {
        result.map_err(|error| Error::system(format!("{doing} {}", shown(&self.entry.path)), error))
    }
}

/// Copies the content of `entry`, `size` bytes, into `file`.
///
/// # Errors
/// When it cannot be read or written.
pub fn copy<R: Read>(from: &mut Reader<R>, mut file: &File, size: u64, entry: &Entry) -> Result<(), Error> {
    let failed = |error: io::Error| Error::system(format!("writing {}", shown(&entry.path)), error);
    let mut buffer = vec![0; BUFFER.min(usize::try_from(size).unwrap_or(BUFFER))];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            count => file.write_all(&buffer[..count]).map_err(failed)?,
        }
    }
}

const CAPABILITY: &[u8] = b"security.capability";

/// For what is somebody else's: without FSETID, setgid of a group that we are not in would be lost without a word.
const OF_OTHERS: CapabilitySet = CapabilitySet::FOWNER.union(CapabilitySet::FSETID);

/// What is open, or a name in it, but not where that leads to.
const ITSELF: AtFlags = AtFlags::SYMLINK_NOFOLLOW.union(AtFlags::EMPTY_PATH);

/// The directory and the last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.iter().rposition(|&byte| byte == b'/').map_or((b"", path), |at| (&path[..at], &path[at + 1..]))
}

/// A name for a message.
pub(crate) fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).escape_debug().collect()
}

/// What directories are called while a tree is removed: no tree has such a name in its root.
const TRASH: &str = ".prepull-trash-";

/// Removes the directory `name` in `parent` and all that is in it, whoever owns it, without following a link.
///
/// Nothing is open but two directories, however deep it is: what is a directory in it is first moved up. No list of names is held,
/// since a directory may have millions of them.
///
/// # Errors
/// The kernel's.
pub fn remove(powers: Powers, parent: &Dir, name: &[u8]) -> Result<(), Errno> {
    take_over(powers, parent, name)?;
    let top = parent.open(name)?;
    // Directories by their numbers, of which no two have the same; 0 is the top.
    let mut todo = vec![0];
    // A removal that was interrupted may have left millions of directories there.
    let mut of_top = BTreeSet::new();
    let place = |number| if number == 0 { b".".to_vec() } else { format!("{TRASH}{number}").into_bytes() };
    while let Some(at) = todo.pop() {
        let directory = top.open(&place(at))?;
        for child in directory.each_name()? {
            let child = child?;
            match fs::unlinkat(&directory, &child[..], AtFlags::empty()) {
                Err(Errno::ISDIR) => {
                    take_over(powers, &directory, &child)?;
                    let number = directory.stat(&child)?.st_ino;
                    directory.rename(&child, &top, &place(number))?;
                    // An entry that was moved within the top directory may be listed a second time.
                    if at > 0 || of_top.insert(number) {
                        todo.push(number);
                    }
                }
                done => done?,
            }
        }
        if at > 0 {
            fs::unlinkat(&top, &place(at)[..], AtFlags::REMOVEDIR)?;
        }
    }
    fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Makes a directory ours, so that it can be emptied without a capability for that.
fn take_over(powers: Powers, parent: &Dir, name: &[u8]) -> Result<(), Errno> {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    let chown = || fs::chownat(parent, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW);
    powers.with(CapabilitySet::CHOWN, chown)?;
    chmod_in_ours(parent, name, Mode::RWXU)
}

/// Changes the mode of a file or directory that cannot be opened, by its name in a directory to which only this user may write.
///
/// chmod(2) follows a symbolic link. There is no call without that before Linux 6.6 (`fchmodat2`), so nobody but this user may
/// be able to put one in the place of `name`.
fn chmod_in_ours(parent: &Dir, name: &[u8], mode: Mode) -> Result<(), Errno> {
    let is_link = FileType::from_raw_mode(parent.stat(name)?.st_mode).is_symlink();
    if is_link || !is_ours(&fs::fstat(parent)?) {
        return Err(Errno::PERM);
    }
    fs::chmodat(parent, name, mode, AtFlags::empty())
}
