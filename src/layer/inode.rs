//! An inode of a layer, and what `chown`, `chmod`, `utimes` and `setxattr` of a root make of it.

use std::sync::Arc;

use super::acl::{Acl, NoAcl};
use super::path::NAME_MAX;
use super::tar::Header;
use crate::entry::{Device, Timestamp, Xattr};

/// The largest value of an extended attribute, in bytes (Linux `XATTR_SIZE_MAX`).
const XATTR_SIZE_MAX: usize = 65536;

/// The type of an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InodeKind {
    /// A directory.
    Directory,
    /// A regular file: size in bytes, and where its content stands in the segment's body.
    Regular {
        /// Bytes.
        size: u64,
        /// Offset in the body.
        data: u64,
    },
    /// A symbolic link.
    Symlink(Arc<[u8]>),
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A fifo.
    Fifo,
}

/// What `stat` knows.
#[derive(Debug, Clone)]
pub struct Inode {
    /// Type.
    pub kind: InodeKind,
    /// At most 0o7777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time; meaningless when `stamped`.
    pub mtime: Timestamp,
    /// Made by us, not by a header: its time is the time stamp of the store.
    pub stamped: bool,
    /// A directory that hides what lower layers have in it.
    pub opaque: bool,
    /// Made of a `.wh.` entry.
    pub whiteout: bool,
    /// Attributes in ascending order of their names.
    pub xattrs: Vec<Xattr>,
}

impl Inode {
    /// A directory that no header describes: made since something is to be in it.
    #[must_use]
    pub fn made_directory() -> Self {
        Self { mode: 0o755, stamped: true, ..new_inode(InodeKind::Directory) }
    }
}

pub(super) fn new_inode(kind: InodeKind) -> Inode {
    let mode = if matches!(kind, InodeKind::Symlink(_)) { 0o777 } else { 0 };
    Inode {
        kind,
        mode,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        stamped: false,
        opaque: false,
        whiteout: false,
        xattrs: Vec::new(),
    }
}

/// `lchown`: the kernel takes 32 bits, and -1 means "leave it".
pub(super) fn set_owner(inode: &mut Inode, header: &Header) {
    if header.uid as u32 != u32::MAX {
        inode.uid = header.uid as u32;
    }
    if header.gid as u32 != u32::MAX {
        inode.gid = header.gid as u32;
    }
}

pub(super) fn set_xattr(inode: &mut Inode, name: &[u8], value: Vec<u8>) {
    match inode.xattrs.binary_search_by(|xattr| xattr.0[..].cmp(name)) {
        Ok(at) => inode.xattrs[at].1 = value,
        Err(at) => inode.xattrs.insert(at, (name.to_vec(), value)),
    }
}

/// An access ACL is permission bits in the first place; what they cannot say is kept beside them.
pub(super) fn set_acl(inode: &mut Inode, name: &[u8], acl: &Acl) {
    let (mode, is_all) = acl.mode(inode.mode);
    let is_access = name == ACL_ACCESS;
    if is_access {
        inode.mode = mode;
    }
    if acl.is_empty() || is_access && is_all {
        inode.xattrs.retain(|xattr| xattr.0 != name);
    } else {
        set_xattr(inode, name, acl.encode());
    }
}

pub(super) fn change_mode(inode: &mut Inode, mode: u16) {
    inode.mode = mode;
    for (_, value) in inode.xattrs.iter_mut().filter(|(name, _)| name == ACL_ACCESS) {
        if let Ok(mut acl) = Acl::parse(value) {
            acl.chmod(mode);
            *value = acl.encode();
        }
    }
}

/// `system.Chtimes`: what is before 1970 or after 2262 becomes 1970.
pub(super) fn file_time(time: Timestamp) -> Timestamp {
    let last = Timestamp { seconds: 9_223_372_036, nanoseconds: 854_775_807 };
    if time.seconds < 0 || time > last { Timestamp::default() } else { time }
}

/// `system.LUtimesNano` through `time.UnixNano`, which wraps around.
pub(super) fn symlink_time(time: Timestamp) -> Timestamp {
    let nanoseconds = time.seconds.wrapping_mul(1_000_000_000).wrapping_add(time.nanoseconds.into());
    Timestamp {
        seconds: nanoseconds.div_euclid(1_000_000_000),
        nanoseconds: nanoseconds.rem_euclid(1_000_000_000) as u32,
    }
}

pub(super) const CAPABILITY: &[u8] = b"security.capability";
const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

pub(super) enum Verdict {
    Keep,
    Acl(Acl),
    Opaque,
    Skip,
    Drop,
    Refuse,
}

/// What `lsetxattr` as root does, but for overlayfs's own attributes: those would steer the mount in the machine.
pub(super) fn judge_xattr(kind: &InodeKind, name: &[u8], value: &[u8]) -> Verdict {
    let plain = matches!(kind, InodeKind::Directory | InodeKind::Regular { .. });
    if name == b"security.selinux" {
        // containers/storage ≥ 1.38 skips it: labels belong to the machine.
        return Verdict::Skip;
    }
    if name == b"trusted.overlay.opaque" && value == b"y" && *kind == InodeKind::Directory {
        return Verdict::Opaque;
    }
    if name.starts_with(b"trusted.overlay.") || plain && name.starts_with(b"user.overlay.") {
        return Verdict::Drop;
    }
    let namespace = |prefix: &[u8]| name.len() > prefix.len() && name.starts_with(prefix);
    if name.len() > NAME_MAX || value.len() > XATTR_SIZE_MAX || name.is_empty() || name.contains(&0) {
        return Verdict::Refuse;
    }
    if matches!(name, b"user." | b"trusted." | b"security.") {
        return Verdict::Refuse;
    }
    if namespace(b"user.") {
        return if plain { Verdict::Keep } else { Verdict::Refuse };
    }
    if name == CAPABILITY {
        // cap_convert_nscap(): revision 2 of 20 bytes or revision 3 of 24.
        let revision = value.get(..4).map(|magic| u32::from_le_bytes([magic[0], magic[1], magic[2], magic[3]]) & !1);
        return match (revision, value.len()) {
            (Some(0x0200_0000), 20) | (Some(0x0300_0000), 24) => Verdict::Keep,
            _ => Verdict::Refuse,
        };
    }
    if namespace(b"trusted.") || namespace(b"security.") {
        return Verdict::Keep;
    }
    if matches!(name, ACL_ACCESS | ACL_DEFAULT) && !matches!(kind, InodeKind::Symlink(_)) {
        return match Acl::parse(value) {
            Ok(acl) if name == ACL_DEFAULT && *kind != InodeKind::Directory && !acl.is_empty() => Verdict::Refuse,
            Ok(acl) => Verdict::Acl(acl),
            Err(NoAcl::Invalid) => Verdict::Refuse,
            Err(NoAcl::Unsupported) => Verdict::Skip,
        };
    }
    // No handler: ENOTSUP, which containers/storage ignores.
    Verdict::Skip
}
