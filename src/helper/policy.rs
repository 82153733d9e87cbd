//! `/etc/prepull/helper.toml`: who may write where.
//!
//! The file gives away root's rights, so it is read as such: everything on the way to it is root's and nobody else's to change,
//! no link is followed, and a key that is not known refuses the whole, since it may have been meant to forbid something.
//! `policy/helper.toml` in the sources is an example with comments.

use std::fmt::Display;
use std::io::Read as _;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use serde::Deserialize;

use super::Error;

/// Where the policy is.
pub const PATH: &str = "/etc/prepull/helper.toml";

/// The most bytes of the policy: about a thousand entries.
const SIZE_MAX: usize = 256 << 10;

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

/// One entry: what some may do, as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    /// For whom, if it is a user.
    pub user: Option<Id>,
    /// For whom, if it is the members of a group; one of the two is there.
    pub group: Option<Id>,
    /// The directory that the helper confines itself to.
    pub root: String,
    /// What is written there.
    pub kind: Kind,
    /// Where the containers store is: absolute within `root`.
    pub graphroot: Option<String>,
    /// The most bytes of files in one run.
    #[serde(default = "bytes", deserialize_with = "size")]
    pub max_bytes: u64,
    /// Maximum number of bytes in the store, with what a run adds, as far as its records count them.
    #[serde(default = "unlimited", deserialize_with = "size")]
    pub max_store_bytes: u64,
    /// Free bytes that a run leaves on the file system. Where it is not 0, some inodes are left, too.
    #[serde(default, deserialize_with = "size")]
    pub keep_free: u64,
    /// True if the store is an additional one, for every user to read; by its place if absent.
    pub additional: Option<bool>,
    /// The most entries in one run.
    #[serde(default = "inodes")]
    pub max_inodes: u64,
    /// The longest that one run may take.
    #[serde(default = "seconds")]
    pub max_seconds: u64,
    /// True if device nodes other than whiteouts are made; else images that have some are refused.
    #[serde(default)]
    pub devices: bool,
    /// True if entries may have setuid and setgid bits; else images that have some are refused.
    #[serde(default = "yes")]
    pub suid: bool,
    /// True if files may have capabilities; else images that have some are refused.
    #[serde(default = "yes")]
    pub filecaps: bool,
}

/// `max_bytes` if it is not given: the images of a large cluster's node.
const fn bytes() -> u64 {
    64 << 30
}

/// `max_store_bytes` if it is not given.
const fn unlimited() -> u64 {
    u64::MAX
}

/// `max_inodes` if it is not given: what mkfs.ext4 makes for 64 GiB.
const fn inodes() -> u64 {
    4 << 20
}

/// `max_seconds` if it is not given: 64 GiB at 20 MB/s.
const fn seconds() -> u64 {
    3600
}

const fn yes() -> bool {
    true
}

/// All entries.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// In the file's order: the first that fits counts.
    #[serde(default)]
    pub allow: Vec<Allow>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a number or a text such as \"20G\" is expected")]
enum Size {
    Bytes(u64),
    Text(String),
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
        // One line: a log has one for each event.
        let file = basic_toml::from_str::<Self>(text);
        let file = file.map_err(|error| Error::said(format!("{PATH}: {}", error.to_string().replace('\n', "; "))))?;
        for (index, entry) in file.allow.iter().enumerate() {
            entry.check().map_err(|why| Error::said(format!("{PATH}, entry {}: {why}", index + 1)))?;
        }
        Ok(file)
    }
}

impl Allow {
    /// The graphroot: if it is not given, containers/storage's own default for root.
    #[must_use]
    pub fn graphroot(&self) -> &str {
        self.graphroot.as_deref().unwrap_or("/var/lib/containers/storage")
    }

    /// Returns whether every user may read a store that is new: an additional one. Without `additional` in the policy, it is one
    /// below /usr.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.additional.unwrap_or_else(|| self.graphroot().starts_with("/usr/"))
    }

    /// Whether it means one thing only.
    fn check(&self) -> Result<(), &'static str> {
        if self.user.is_some() == self.group.is_some() {
            return Err("give either user or group");
        }
        let is_of_store = self.graphroot.is_some() || self.additional.is_some() || self.max_store_bytes < u64::MAX;
        if self.kind == Kind::Rootfs && (is_of_store || self.root == "/") {
            return Err(
                "kind = \"rootfs\" takes no graphroot, additional or max_store_bytes, and its root is not \"/\"",
            );
        }
        if self.root != "/" && !is_clean(&self.root) || !is_clean(self.graphroot()) {
            return Err("root and graphroot must be absolute, with no \"//\", \".\", \"..\" or \"/\" at the end");
        }
        Ok(())
    }
}

/// Whether a path is absolute, not `/`, and written in the only way that there is.
fn is_clean(path: &str) -> bool {
    let is_name = |name: &str| !name.is_empty() && name != "." && name != ".." && !name.contains('\0');
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(is_name))
}

/// A number, or `20G`: digits and a power of 1024.
fn size<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = match Size::deserialize(deserializer)? {
        Size::Bytes(bytes) => return Ok(bytes),
        Size::Text(text) => text,
    };
    let power = text.bytes().last().and_then(|last| b"KMGT".iter().position(|unit| *unit == last));
    let digits = power.map_or(&text[..], |_| &text[..text.len() - 1]);
    let bytes = number::<u64>(digits).and_then(|number| number.checked_mul(1 << (10 * power.map_or(0, |at| at + 1))));
    let why = "a size is a number of bytes, or one with K, M, G or T as in \"20G\"";
    bytes.ok_or_else(|| serde::de::Error::custom(why))
}

/// Decimal digits and nothing else (`parse` takes a sign).
pub(super) fn number<T: std::str::FromStr>(digits: &str) -> Option<T> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// The text of a file that root alone can have written: of at most `max` bytes, at an absolute path without links.
pub(super) fn trusted(path: &str, max: usize) -> Result<String, Error> {
    // Step by step, so that each directory that was looked at is the one that is gone through.
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Opening a pipe must not wait for its writer.
    let file = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut reached = String::from("/");
    let bad = |reached: &str, why: &dyn Display| Error::said(format!("{reached}: {why}"));
    let mut fd = openat2(CWD, "/", directory, Mode::empty(), resolve).map_err(|error| bad("/", &error))?;
    let mut names = path[1..].split('/').peekable();
    loop {
        let stat = fstat(&fd).map_err(|error| bad(&reached, &error))?;
        if stat.st_uid != 0 || stat.st_mode & 0o022 != 0 {
            return Err(bad(
                &reached,
                &"it must belong to root, and no other user may write to it (chown root, chmod go-w)",
            ));
        }
        let Some(name) = names.next() else {
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(bad(&reached, &"not a regular file"));
            }
            break;
        };
        reached = if reached == "/" { format!("/{name}") } else { format!("{reached}/{name}") };
        let flags = if names.peek().is_some() { directory } else { file };
        fd = openat2(&fd, name, flags, Mode::empty(), resolve | ResolveFlags::BENEATH)
            .map_err(|error| bad(&reached, &format!("{error} (it must be there, and not be a symbolic link)")))?;
    }
    let mut text = String::new();
    let read = std::fs::File::from(fd).take(max as u64 + 1).read_to_string(&mut text);
    let length = read.map_err(|error| bad(&reached, &format!("{error} on reading")))?;
    if length > max { Err(bad(&reached, &format!("more than {max} bytes"))) } else { Ok(text) }
}

#[cfg(test)]
mod tests;
