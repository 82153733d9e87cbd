//! `/etc/prepull/helper.toml`: who may write where.
//!
//! The file gives away root's rights, so it is read as such: everything on the way to it is root's and nobody else's to change,
//! no link is followed, and a key that is not known refuses the whole, since it may have been meant to forbid something.
//! `policy/helper.toml` in the sources is an example with comments.

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::{Errno, read, retry_on_intr};
use serde::Deserialize;

use super::caller::Caller;

/// Where the policy is.
pub const PATH: &str = "/etc/prepull/helper.toml";

/// The most bytes of the policy: about a thousand entries.
const SIZE_MAX: usize = 256 << 10;

/// `graphroot` if it is not given: containers/storage's own default for root.
const GRAPHROOT: &str = "/var/lib/containers/storage";

/// `max_bytes` if it is not given: the images of a large cluster's node.
pub const BYTES: u64 = 64 << 30;

/// `max_inodes` if it is not given: what mkfs.ext4 makes for 64 GiB.
pub const INODES: u64 = 4 << 20;

/// `max_seconds` if it is not given: 64 GiB at 20 MB/s.
pub const SECONDS: u64 = 3600;

/// Why nobody is allowed anything.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not there, or is not to be trusted.
    #[error(transparent)]
    File(#[from] Untrusted),
    /// It is not TOML, or has a key or a value that is not known.
    #[error("{PATH}, line {line}: {message}")]
    Syntax {
        /// From 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// An entry that names nobody, or two.
    #[error("{PATH}, entry {0}: give either user or group")]
    Who(usize),
    /// A path that could mean different places.
    #[error("{PATH}, entry {0}: {1} must be absolute, with no \"//\", \".\", \"..\" or \"/\" at its end")]
    Path(usize, &'static str),
    /// A key of the other kind, or `/` where nothing can be whole.
    #[error("{PATH}, entry {0}: kind = \"rootfs\" takes no graphroot, and its root is not \"/\"")]
    Rootfs(usize),
    /// A number of bytes that is none.
    #[error("{PATH}, entry {0}: max_bytes is a number of bytes, or one with K, M, G or T as in \"20G\"")]
    Size(usize),
}

/// Why a file is not believed.
#[derive(Debug, thiserror::Error)]
pub enum Untrusted {
    /// It, or a directory before it, cannot be opened.
    #[error("{0}: {1} (it must be there, and not be a symbolic link)")]
    Open(String, Errno),
    /// Others could have written it, or put it there.
    #[error("{0}: it must be root's, and writable by nobody else (chown root, chmod go-w)")]
    Others(String),
    /// A directory, a pipe or a device.
    #[error("{0}: not a regular file")]
    Type(String),
    /// Reading failed.
    #[error("{0}: {1} on reading")]
    Read(String, Errno),
    /// It is longer than any that makes sense.
    #[error("{0}: more than {1} bytes")]
    Long(String, usize),
    /// It is not text.
    #[error("{0}: not UTF-8")]
    Text(String),
}

/// What an entry lets into its root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Images, into the containers store at `graphroot` below the root.
    Storage,
    /// A whole tree, into the root, which is an empty directory.
    Rootfs,
}

/// A user or a group, as the policy names it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "a name or a number is expected")]
pub enum Id {
    /// By number: also one that the files in /etc do not have.
    Number(u32),
    /// By its name in /etc/passwd or /etc/group.
    Name(String),
}

/// Whom an entry is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// One user.
    User(Id),
    /// The members of a group.
    Group(Id),
}

/// One entry: what some may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    /// For whom.
    pub who: Who,
    /// The directory that the helper confines itself to.
    pub root: String,
    /// What is written there.
    pub kind: Kind,
    /// Where the containers store is: absolute within `root`.
    pub graphroot: String,
    /// The most bytes of files in one run.
    pub max_bytes: u64,
    /// The most entries in one run.
    pub max_inodes: u64,
    /// The longest that one run may take.
    pub max_seconds: u64,
    /// Whether device nodes other than whiteouts are made.
    pub devices: bool,
    /// Whether setuid and setgid bits are kept.
    pub suid: bool,
    /// Whether file capabilities are kept.
    pub filecaps: bool,
}

/// All entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// In the file's order: the first that fits counts.
    pub allow: Vec<Allow>,
}

/// An entry as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    user: Option<Id>,
    group: Option<Id>,
    root: String,
    kind: Kind,
    graphroot: Option<String>,
    max_bytes: Option<Size>,
    max_inodes: Option<u64>,
    max_seconds: Option<u64>,
    devices: Option<bool>,
    suid: Option<bool>,
    filecaps: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a number or a text such as \"20G\" is expected")]
enum Size {
    Bytes(u64),
    Text(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    allow: Vec<Written>,
}

impl Policy {
    /// Reads [`PATH`].
    ///
    /// # Errors
    /// When it is not there, others could have written it, or it is not understood to the last key.
    pub fn load() -> Result<Self, Error> {
        Self::parse(&trusted(PATH, SIZE_MAX)?)
    }

    /// The policy that `text` describes.
    ///
    /// # Errors
    /// When any of it is not understood.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let file: File = toml::from_str(text).map_err(|error| Error::Syntax {
            line: 1 + error.span().map_or(0, |span| text[..span.start].matches('\n').count()),
            // One line: a log has one for each event.
            message: error.message().replace('\n', "; "),
        })?;
        let allow = file.allow.into_iter().enumerate().map(|(index, entry)| entry.check(index + 1));
        Ok(Self { allow: allow.collect::<Result<_, _>>()? })
    }

    /// Entries that `caller` may use, in the file's order.
    #[must_use]
    pub fn for_caller(&self, caller: &Caller) -> Vec<&Allow> {
        self.allow.iter().filter(|entry| caller.is(&entry.who)).collect()
    }
}

impl Written {
    /// The entry, if it means one thing only. `number` is for errors.
    fn check(self, number: usize) -> Result<Allow, Error> {
        let who = match (self.user, self.group) {
            (Some(user), None) => Who::User(user),
            (None, Some(group)) => Who::Group(group),
            _ => return Err(Error::Who(number)),
        };
        if self.root != "/" && !is_clean(&self.root) {
            return Err(Error::Path(number, "root"));
        }
        if self.kind == Kind::Rootfs && (self.graphroot.is_some() || self.root == "/") {
            return Err(Error::Rootfs(number));
        }
        let graphroot = self.graphroot.unwrap_or_else(|| GRAPHROOT.to_owned());
        if !is_clean(&graphroot) {
            return Err(Error::Path(number, "graphroot"));
        }
        let max_bytes = match self.max_bytes {
            None => BYTES,
            Some(Size::Bytes(bytes)) => bytes,
            Some(Size::Text(text)) => size(&text).ok_or(Error::Size(number))?,
        };
        Ok(Allow {
            who,
            root: self.root,
            kind: self.kind,
            graphroot,
            max_bytes,
            max_inodes: self.max_inodes.unwrap_or(INODES),
            max_seconds: self.max_seconds.unwrap_or(SECONDS),
            devices: self.devices.unwrap_or(false),
            suid: self.suid.unwrap_or(true),
            filecaps: self.filecaps.unwrap_or(true),
        })
    }
}

/// Whether a path is absolute, not `/`, and written in the only way that there is.
fn is_clean(path: &str) -> bool {
    let is_name = |name: &str| !name.is_empty() && name != "." && name != ".." && !name.contains('\0');
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(is_name))
}

/// `20G`: digits and a power of 1024.
fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        b'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    number::<u64>(digits)?.checked_mul(1 << shift)
}

/// Decimal digits and nothing else (`parse` takes a sign).
pub(super) fn number<T: std::str::FromStr>(digits: &str) -> Option<T> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// The text of a file that root alone can have written: of at most `max` bytes, at an absolute path without links.
pub(super) fn trusted(path: &str, max: usize) -> Result<String, Untrusted> {
    // Step by step, so that each directory that was looked at is the one that is gone through.
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Opening a pipe must not wait for its writer.
    let file = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut reached = String::from("/");
    let mut fd =
        openat2(CWD, "/", directory, Mode::empty(), resolve).map_err(|e| Untrusted::Open(reached.clone(), e))?;
    let mut names = path[1..].split('/').peekable();
    loop {
        let stat = fstat(&fd).map_err(|error| Untrusted::Read(reached.clone(), error))?;
        if stat.st_uid != 0 || stat.st_mode & 0o022 != 0 {
            return Err(Untrusted::Others(reached));
        }
        let Some(name) = names.next() else {
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(Untrusted::Type(reached));
            }
            break;
        };
        reached = if reached == "/" { format!("/{name}") } else { format!("{reached}/{name}") };
        let flags = if names.peek().is_some() { directory } else { file };
        let next = openat2(&fd, name, flags, Mode::empty(), resolve | ResolveFlags::BENEATH);
        fd = next.map_err(|error| Untrusted::Open(reached.clone(), error))?;
    }
    let mut text = vec![0; max + 1];
    let mut length = 0;
    while length <= max {
        match retry_on_intr(|| read(&fd, &mut text[length..])).map_err(|e| Untrusted::Read(reached.clone(), e))? {
            0 => break,
            count => length += count,
        }
    }
    if length > max {
        return Err(Untrusted::Long(reached, max));
    }
    text.truncate(length);
    String::from_utf8(text).map_err(|_| Untrusted::Text(reached))
}

#[cfg(test)]
mod tests;
