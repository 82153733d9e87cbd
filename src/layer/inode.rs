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

/// Extended attributes in ascending order of their names. Most inodes have none, and there are millions of inodes: those take
/// one word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Xattrs(Option<Box<List>>);

/// Attributes of an inode that has some. `Box<[Xattr]>` would be two words.
#[derive(Debug, Clone, PartialEq, Eq)]
struct List(Vec<Xattr>);

impl Xattrs {
    /// No attributes.
    #[must_use]
    pub const fn new() -> Self {
        Self(None)
    }

    /// Sets the attribute `name`.
    pub fn set(&mut self, name: &[u8], value: Vec<u8>) {
        let list = &mut self.0.get_or_insert_with(|| Box::new(List(Vec::with_capacity(1)))).0;
        match list.binary_search_by(|xattr| xattr.0[..].cmp(name)) {
            Ok(at) => list[at].1 = value,
            Err(at) => list.insert(at, (name.to_vec(), value)),
        }
    }

    /// Removes the attribute `name`.
    pub fn remove(&mut self, name: &[u8]) {
        if let Some(list) = &mut self.0 {
            list.0.retain(|xattr| xattr.0 != name);
            if list.0.is_empty() {
                self.0 = None;
            }
        }
    }

    /// Returns the values for changes; the names stay.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&[u8], &mut Vec<u8>)> {
        self.0.iter_mut().flat_map(|list| list.0.iter_mut().map(|(name, value)| (&name[..], value)))
    }
}

impl From<Vec<Xattr>> for Xattrs {
    fn from(mut list: Vec<Xattr>) -> Self {
        list.sort_unstable();
        if list.is_empty() { Self(None) } else { Self(Some(Box::new(List(list)))) }
    }
}

impl std::ops::Deref for Xattrs {
    type Target = [Xattr];

    fn deref(&self) -> &[Xattr] {
        self.0.as_ref().map_or(&[], |list| &list.0)
    }
}

impl<'a> IntoIterator for &'a Xattrs {
    type Item = &'a Xattr;
    type IntoIter = std::slice::Iter<'a, Xattr>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
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
    /// Extended attributes.
    pub xattrs: Xattrs,
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
        xattrs: Xattrs::new(),
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

/// An access ACL is permission bits in the first place; what they cannot say is kept beside them.
pub(super) fn set_acl(inode: &mut Inode, name: &[u8], acl: &Acl) {
    let (mode, is_all) = acl.mode(inode.mode);
    let is_access = name == ACL_ACCESS;
    if is_access {
        inode.mode = mode;
    }
    if acl.is_empty() || is_access && is_all {
        inode.xattrs.remove(name);
    } else {
        inode.xattrs.set(name, acl.encode());
    }
}

pub(super) fn change_mode(inode: &mut Inode, mode: u16) {
    inode.mode = mode;
    for (_, value) in inode.xattrs.iter_mut().filter(|(name, _)| *name == ACL_ACCESS) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_in_ascending_order_and_take_one_word_of_an_inode() {
        let mut xattrs = Xattrs::new();
        for (name, value) in [("b", "1"), ("c", "2"), ("a", "3"), ("b", "4")] {
            xattrs.set(name.as_bytes(), value.into());
        }
        let expected = [("a", "3"), ("b", "4"), ("c", "2")].map(|(name, value)| (name.into(), value.into()));
        assert_eq!(xattrs[..], expected);
        let [a, b, c] = expected.clone();
        assert_eq!(Xattrs::from(vec![c, b, a]), xattrs);
        xattrs.remove(b"none");
        xattrs.iter_mut().for_each(|(_, value)| value.push(b'!'));
        assert_eq!(xattrs[2], (b"c".to_vec(), b"2!".to_vec()));
        for name in [b"a", b"b", b"c"] {
            xattrs.remove(name);
        }
        assert!(xattrs == Xattrs::new() && Xattrs::from(Vec::new()) == xattrs);
        // A layer has up to two million inodes, and `verify` has each of them twice.
        assert!(size_of::<Inode>() <= 64, "{}", size_of::<Inode>());
    }
}
