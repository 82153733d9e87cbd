//! The one currency after a layer is opened: file system entries, as they will stand on a disk.
//!
//! Paths, link targets and extended attributes are bytes: a container image owes nobody UTF-8.

/// A point in time as a file system stores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, serde::Serialize, serde::Deserialize)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z; negative before.
    pub seconds: i64,
    /// Nanoseconds after `seconds`, below 10⁹.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// A whole second.
    #[must_use]
    pub const fn whole(seconds: i64) -> Self {
        Self { seconds, nanoseconds: 0 }
    }
}

/// An extended attribute: its name with the namespace (`security.capability`) and its value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// What `stat` and `listxattr` say of an entry, beyond its type.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Meta {
    /// Permission, setuid, setgid and sticky bits: at most 0o7777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Timestamp,
    /// Extended attributes in ascending order of their names.
    pub xattrs: Vec<Xattr>,
}

/// The type of an entry, with what only that type has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file of `size` bytes.
    Regular {
        /// Bytes of content.
        size: u64,
    },
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// Another name for the file at this path (relative to the same root).
    Hardlink(Vec<u8>),
    /// A character device; 0:0 is overlayfs's whiteout.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
}

/// A device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Device {
    /// The driver.
    pub major: u32,
    /// The instance.
    pub minor: u32,
}

impl Device {
    /// 0:0, which as a character device is a whiteout (Linux `Documentation/filesystems/overlayfs.rst`, "whiteouts and opaque directories").
    pub const WHITEOUT: Self = Self { major: 0, minor: 0 };
}

/// One entry: a relative path without `.`, `..` or empty components, metadata and type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path relative to the root that the entry is for; never starts or ends with a slash.
    pub path: Vec<u8>,
    /// Owner, mode, time, attributes.
    pub meta: Meta,
    /// Type.
    pub kind: Kind,
}
