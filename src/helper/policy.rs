//! `/etc/prepull/helper.toml`: who may write where, and how much. Without an entry nobody may write anywhere, not even root.

use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::Deserialize;

use super::caller::Caller;
use super::root::Dir;

/// Where it is.
pub const PATH: &str = "/etc/prepull/helper.toml";

/// The most bytes of it: one entry takes a hundred.
const BYTES_MAX: u64 = 1 << 20;

/// Bytes of content, where the policy does not say: 32 GiB, more than the images of a node.
const MAX_BYTES: u64 = 32 << 30;

/// Inodes, where the policy does not say.
const MAX_INODES: u64 = 4_000_000;

/// Seconds, where the policy does not say: an hour, for slow registries.
const MAX_SECONDS: u64 = 3600;

/// What a root directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// There is a containers store in it, or will be: that is written, and nothing else.
    Storage,
    /// It is empty, and gets a whole tree.
    Rootfs,
}

/// Who, as the file says it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Id {
    /// By number.
    Number(u32),
    /// By name.
    Name(String),
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    /// A user.
    pub user: Option<Id>,
    /// Everybody in a group.
    pub group: Option<Id>,
    /// The directory; absolute.
    pub root: String,
    /// What it is.
    pub kind: Kind,
    /// Where in it the store is; absolute.
    #[serde(default = "graphroot")]
    pub graphroot: String,
    /// Bytes of content that one run may write.
    #[serde(default = "max_bytes")]
    pub max_bytes: u64,
    /// Files that one run may make.
    #[serde(default = "max_inodes")]
    pub max_inodes: u64,
    /// Seconds that one run may take, waiting for the store included.
    #[serde(default = "max_seconds")]
    pub max_seconds: u64,
    /// Devices other than whiteouts: then the helper keeps CAP_MKNOD.
    #[serde(default)]
    pub devices: bool,
    /// Setuid and setgid files. By default where nobody but root gets to them: in a store.
    pub suid: Option<bool>,
    /// File capabilities; by default as `suid`.
    pub filecaps: Option<bool>,
}

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Its entries. Of those that fit, the first one counts.
    #[serde(default)]
    pub allow: Vec<Allow>,
}

fn graphroot() -> String {
    "/var/lib/containers/storage".to_owned()
}

fn max_bytes() -> u64 {
    MAX_BYTES
}

fn max_inodes() -> u64 {
    MAX_INODES
}

fn max_seconds() -> u64 {
    MAX_SECONDS
}

/// Why nobody may do anything.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not there, or cannot be opened without following a link.
    #[error("{PATH}: {0} (root has to say there who may write where: see policy/helper.toml of prepull)")]
    Open(Errno),
    /// Somebody else than root may have written it.
    #[error("{0} must belong to root, and nobody else may write to it (chown root, chmod go-w)")]
    Writable(String),
    /// It is not valid.
    #[error("{PATH}: {0}")]
    Syntax(String),
}

impl Policy {
    /// Reads the file.
    ///
    /// # Errors
    /// When it is not root's alone, or not valid.
    pub fn load() -> Result<Self, Error> {
        let mut at = Dir::at(c"/").map_err(Error::Open)?;
        let (directories, name) = PATH[1..].rsplit_once('/').unwrap_or(("", &PATH[1..]));
        let mut shown = String::from("/");
        check(&at, &shown)?;
        for component in directories.split('/') {
            at = at.enter(component.as_bytes()).map_err(Error::Open)?;
            shown = format!("{}/{component}", shown.trim_end_matches('/'));
            check(&at, &shown)?;
        }
        let file = at.open_file(name.as_bytes(), OFlags::RDONLY, 0).map_err(Error::Open)?;
        check(&file, PATH)?;
        let text = at.read(name.as_bytes(), BYTES_MAX).map_err(Error::Open)?.unwrap_or_default();
        Self::parse(std::str::from_utf8(&text).map_err(|error| Error::Syntax(error.to_string()))?)
    }

    /// Reads its text.
    ///
    /// # Errors
    /// When it is not valid: unknown keys are not.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let policy: Self = basic_toml::from_str(text)
            .map_err(|error| Error::Syntax(error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")))?;
        for (number, allow) in policy.allow.iter().enumerate() {
            let wrong = |what: &str| Err(Error::Syntax(format!("entry {}: {what}", number + 1)));
            if allow.user.is_some() == allow.group.is_some() {
                return wrong("it needs either `user` or `group`");
            }
            if !is_absolute(&allow.root) && allow.root != "/" {
                return wrong("`root` is no absolute path, or has `.`, `..` or `//` in it");
            }
            if !is_absolute(&allow.graphroot) {
                return wrong("`graphroot` is no absolute path below the root, or has `.`, `..` or `//` in it");
            }
        }
        Ok(policy)
    }

    /// The entries that fit `caller`, in their order.
    #[must_use]
    pub fn for_caller(&self, caller: &Caller) -> Vec<&Allow> {
        let fits = |allow: &&Allow| {
            allow.user.as_ref().is_some_and(|user| caller.is_user(user))
                || allow.group.as_ref().is_some_and(|group| caller.is_in(group))
        };
        self.allow.iter().filter(fits).collect()
    }
}

impl Allow {
    /// Whether setuid and setgid files may be made.
    #[must_use]
    pub fn suid(&self) -> bool {
        self.suid.unwrap_or(self.kind == Kind::Storage)
    }

    /// Whether files may have capabilities.
    #[must_use]
    pub fn filecaps(&self) -> bool {
        self.filecaps.unwrap_or(self.kind == Kind::Storage)
    }
}

fn is_absolute(path: &str) -> bool {
    let is_name = |name: &str| !matches!(name, "" | "." | "..") && !name.contains(char::is_control);
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(is_name))
}

/// Root's, and nobody else may write to it.
fn check(file: &impl std::os::fd::AsFd, shown: &str) -> Result<(), Error> {
    let found = rustix::fs::fstat(file).map_err(Error::Open)?;
    if found.st_uid == 0 && found.st_mode & 0o022 == 0 { Ok(()) } else { Err(Error::Writable(shown.to_owned())) }
}

/// Opens the directory `path`, absolute: no link is followed, and mounts are entered.
///
/// # Errors
/// The kernel's.
pub fn open_root(path: &str) -> Result<Dir, Errno> {
    Dir::at(c"/")?.enter(if path == "/" { b"." } else { &path.as_bytes()[1..] })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[[allow]]\nuser = \"alice\"\nroot = \"/srv/vm\"\nkind = \"storage\"\n";

    #[test]
    fn an_entry_has_sensible_limits() {
        let policy = Policy::parse(GOOD).unwrap();
        let allow = &policy.allow[0];
        assert_eq!(allow.graphroot, "/var/lib/containers/storage");
        assert_eq!((allow.max_bytes, allow.max_inodes, allow.max_seconds), (MAX_BYTES, MAX_INODES, MAX_SECONDS));
        assert!(!allow.devices && allow.suid() && allow.filecaps());
        let rootfs = Policy::parse(&GOOD.replace("storage", "rootfs")).unwrap();
        assert!(!rootfs.allow[0].suid() && !rootfs.allow[0].filecaps());
        assert_eq!(Policy::parse("").unwrap(), Policy::default());
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (from, to) in [
            ("user", "usr"),
            ("user = \"alice\"\n", ""),
            ("user = \"alice\"", "user = \"alice\"\ngroup = 5"),
            ("\"/srv/vm\"", "\"srv/vm\""),
            ("\"/srv/vm\"", "\"/srv/../vm\""),
            ("\"/srv/vm\"", "\"/srv//vm\""),
            ("\"/srv/vm\"", "\"/srv/vm/\""),
            ("\"storage\"", "\"anything\""),
            ("kind = \"storage\"", "kind = \"storage\"\ngraphroot = \"/\""),
            ("kind = \"storage\"", "kind = \"storage\"\ngraphroot = \"/a/./b\""),
            ("kind = \"storage\"", "kind = \"storage\"\nmax_bytes = -1"),
            ("kind = \"storage\"", "kind = \"storage\"\nmax_bytes = 1.5"),
            ("kind = \"storage\"", "kind = \"storage\"\ndevices = \"yes\""),
            ("kind = \"storage\"", "kind = \"storage\"\nkind = \"rootfs\""),
            ("kind = \"storage\"", "kind = \"storage\"\nopaque = \"xattr\""),
            ("[[allow]]", "[[deny]]"),
            ("[[allow]]", "[allow]"),
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{from}");
            let error = Policy::parse(&text).unwrap_err().to_string();
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
