//! What the kernel and a file system's server say to each other through `/dev/fuse` (Linux `include/uapi/linux/fuse.h`,
//! protocol 7.41): as much of it as a tree that nobody can change needs.
//!
//! Numbers are in the machine's byte order. What the kernel sends has been checked by it, and is checked again: whoever holds
//! the other end is trusted with what is mounted, not with this process's memory.

use crate::entry::Timestamp;

/// The version that is spoken: the kernel's own, if that is older.
const VERSION: (u32, u32) = (7, 41);

/// What the kernel must have: files and directories are opened without asking (Linux 5.1).
const NEEDED: u64 = flag::NO_OPEN_SUPPORT | flag::NO_OPENDIR_SUPPORT;

/// Bytes of a request's header.
const HEADER: usize = 40;

/// Bytes of a reply's header.
pub const REPLY: usize = 16;

/// The most bytes of one request: the kernel wants room for the header of a write and as many bytes as it may write, which is
/// never done here, and 8 KiB at least; so many FORGETs come at once as find room.
pub const REQUEST_MAX: usize = 64 << 10;

/// The most bytes of one READ or READDIR: 256 pages of 4 KiB (`FUSE_MAX_MAX_PAGES` before 6.13).
pub const READ_MAX: usize = 1 << 20;

/// The number of the root.
pub const ROOT: u64 = 1;

/// Notifications to the kernel (`enum fuse_notify_code`).
const INVALIDATE_INODE: i32 = 2;
const INVALIDATE_ENTRY: i32 = 3;
const RESEND: i32 = 7;

/// What INIT's flags mean (`FUSE_*`).
mod flag {
    pub(super) const ASYNC_READ: u64 = 1;
    pub(super) const EXPORT_SUPPORT: u64 = 1 << 4;
    pub(super) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(super) const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub(super) const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub(super) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(super) const POSIX_ACL: u64 = 1 << 20;
    pub(super) const MAX_PAGES: u64 = 1 << 22;
    pub(super) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(super) const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub(super) const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub(super) const INIT_EXT: u64 = 1 << 30;
    pub(super) const HAS_RESEND: u64 = 1 << 39;
    pub(super) const ALLOW_IDMAP: u64 = 1 << 40;
}

/// What is asked for where the kernel has it. No locks: it keeps those of a file system that has none by itself.
const WANTED: u64 = flag::ASYNC_READ
    | flag::EXPORT_SUPPORT
    | flag::DO_READDIRPLUS
    | flag::READDIRPLUS_AUTO
    | flag::NO_OPEN_SUPPORT
    | flag::PARALLEL_DIROPS
    | flag::POSIX_ACL
    | flag::MAX_PAGES
    | flag::CACHE_SYMLINKS
    | flag::NO_OPENDIR_SUPPORT
    | flag::EXPLICIT_INVAL_DATA
    | flag::INIT_EXT
    | flag::HAS_RESEND
    | flag::ALLOW_IDMAP;

/// Bytes that are not a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a FUSE request")]
pub struct Malformed;

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// What its reply is to be marked with.
    pub unique: u64,
    /// The inode.
    pub node: u64,
    /// Who asks.
    pub uid: u32,
    /// For what.
    pub operation: Operation<'a>,
    /// As it came.
    bytes: &'a [u8],
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation<'a> {
    /// A name in a directory.
    Lookup(&'a [u8]),
    /// The kernel does not know inodes any more: no reply.
    Forget,
    /// Attributes.
    Getattr,
    /// The target of a symbolic link.
    Readlink,
    /// To open a file or directory.
    Open,
    /// Content.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes at most.
        size: u32,
    },
    /// Entries of a directory.
    Readdir {
        /// What the last entry was given as its offset; 0 at the beginning.
        offset: u64,
        /// Bytes at most.
        size: u32,
        /// Whether with attributes.
        plus: bool,
    },
    /// An extended attribute; with the size 0 only its length.
    Getxattr {
        /// Its name.
        name: &'a [u8],
        /// Bytes at most.
        size: u32,
    },
    /// The names of all extended attributes; with the size 0 only their length.
    Listxattr {
        /// Bytes at most.
        size: u32,
    },
    /// How large the file system is.
    Statfs,
    /// The first request of all.
    Init(Init),
    /// Somebody does not want to wait for the reply to this request any more: no reply.
    Interrupt(u64),
    /// The last request of a file system that is mounted nowhere any more.
    Destroy,
    /// Anything else.
    Other(u32),
}

/// What the kernel can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Init {
    major: u32,
    minor: u32,
    max_readahead: u32,
    flags: u64,
}

/// What was agreed upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Agreed {
    /// Flags of INIT that both sides have.
    flags: u64,
}

impl Agreed {
    /// Whether the kernel sends again what a server that died had not answered (Linux 6.9).
    #[must_use]
    pub fn resends(self) -> bool {
        self.flags & flag::HAS_RESEND != 0
    }

    /// Whether the mount can be mapped to other ids, as pods in user namespaces want it (Linux 6.12).
    #[must_use]
    pub fn maps_ids(self) -> bool {
        self.flags & flag::ALLOW_IDMAP != 0
    }

    /// The same, as if the kernel were older than 6.9.
    #[must_use]
    pub fn without_resend(self) -> Self {
        Self { flags: self.flags & !flag::HAS_RESEND }
    }
}

impl Init {
    /// The reply, and what is agreed upon by it. `None` when the kernel is too old.
    #[must_use]
    pub fn answer(self, unique: u64) -> Option<(Vec<u8>, Agreed)> {
        if self.major != VERSION.0 || self.flags & NEEDED != NEEDED {
            return None;
        }
        let flags = self.flags & WANTED;
        let mut out = Reply::new(unique);
        out.u32(VERSION.0);
        out.u32(self.minor.min(VERSION.1));
        out.u32(self.max_readahead);
        out.u32(flags as u32);
        // Requests in the background, and from how many on the device counts as busy: four readers with their read-ahead.
        out.u16(64);
        out.u16(48);
        // Nothing is written, but the kernel takes no less.
        out.u32(4096);
        // Times are exact to the nanosecond.
        out.u32(1);
        out.u16((READ_MAX / rustix::param::page_size()) as u16);
        out.u16(0);
        out.u32((flags >> 32) as u32);
        out.zeros(7 * 4);
        Some((out.finish(), Agreed { flags }))
    }
}

/// The bytes of a request as they are taken apart.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_ne_bytes)
    }

    /// A name, which ends with a NUL.
    fn name(&mut self) -> Result<&'a [u8], Malformed> {
        let end = self.0.iter().position(|&byte| byte == 0).ok_or(Malformed)?;
        let name = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Ok(name)
    }

    /// `fuse_read_in`: handle, offset and size; who reads is of no interest.
    fn range(&mut self) -> Result<(u64, u32), Malformed> {
        self.u64()?;
        Ok((self.u64()?, self.u32()?))
    }
}

/// What the reply to something is to be marked with that is no request, if somebody waits for one.
#[must_use]
pub fn unique_of(bytes: &[u8]) -> Option<u64> {
    let mut input = Input(bytes);
    let (_, opcode) = (input.u32().ok()?, input.u32().ok()?);
    // FORGET, INTERRUPT, BATCH_FORGET.
    if matches!(opcode, 2 | 36 | 42) { None } else { input.u64().ok() }
}

impl<'a> Request<'a> {
    /// Takes a request apart.
    ///
    /// # Errors
    /// When it is none, or shorter than its kind is.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut input = Input(bytes);
        let (length, opcode, unique, node, uid) =
            (input.u32()?, input.u32()?, input.u64()?, input.u64()?, input.u32()?);
        if length as usize != bytes.len() {
            return Err(Malformed);
        }
        let mut input = Input(bytes.get(HEADER..).ok_or(Malformed)?);
        let operation = match opcode {
            1 => Operation::Lookup(input.name()?),
            2 | 42 => Operation::Forget,
            3 => Operation::Getattr,
            5 => Operation::Readlink,
            14 | 27 => Operation::Open,
            15 => {
                let (offset, size) = input.range()?;
                Operation::Read { offset, size }
            }
            28 | 44 => {
                let (offset, size) = input.range()?;
                Operation::Readdir { offset, size, plus: opcode == 44 }
            }
            17 => Operation::Statfs,
            22 => {
                let size = input.u32()?;
                input.u32()?;
                Operation::Getxattr { name: input.name()?, size }
            }
            23 => Operation::Listxattr { size: input.u32()? },
            26 => {
                let (major, minor, max_readahead) = (input.u32()?, input.u32()?, input.u32()?);
                let mut flags = u64::from(input.u32()?);
                if flags & flag::INIT_EXT != 0 {
                    flags |= u64::from(input.u32()?) << 32;
                }
                Operation::Init(Init { major, minor, max_readahead, flags })
            }
            36 => Operation::Interrupt(input.u64()?),
            38 => Operation::Destroy,
            other => Operation::Other(other),
        };
        Ok(Self { unique, node, uid, operation, bytes })
    }

    /// The request as it came, to be taken apart again.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }
}

/// What `stat` says of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// The inode's number, the same to the kernel and to users.
    pub node: u64,
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Names that it has.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// `st_rdev` in the kernel's 32 bits.
    pub device: u32,
    /// Bytes.
    pub size: u64,
    /// Units of 512 bytes that it would take on a disk.
    pub blocks: u64,
    /// All three times.
    pub time: Timestamp,
}

/// The block size that is given to users: what ext4 has.
pub const BLOCK: u32 = 4096;

/// For how long the kernel may believe what it was told: for ever; it is told when something changes.
const VALID: u64 = 365 * 24 * 3600;

/// A reply as it is put together.
#[derive(Debug)]
pub struct Reply(Vec<u8>);

impl Reply {
    /// The reply to the request `unique`.
    #[must_use]
    pub fn new(unique: u64) -> Self {
        Self::with(0, unique)
    }

    fn with(error: i32, unique: u64) -> Self {
        let mut reply = Self(Vec::with_capacity(256));
        reply.head(error, unique);
        reply
    }

    fn head(&mut self, error: i32, unique: u64) {
        self.u32(0);
        self.u32(error as u32);
        self.u64(unique);
    }

    /// A refusal.
    #[must_use]
    pub fn error(unique: u64, error: rustix::io::Errno) -> Vec<u8> {
        Self::with(-error.raw_os_error(), unique).finish()
    }

    /// The bytes for the kernel.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        let length = (self.0.len() as u32).to_ne_bytes();
        self.0[..4].copy_from_slice(&length);
        self.0
    }

    /// Bytes of the reply so far, without its header.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len() - REPLY
    }

    /// Whether nothing has been added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    fn zeros(&mut self, count: usize) {
        self.0.resize(self.0.len() + count, 0);
    }

    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// `fuse_attr_out`.
    pub fn attributes(&mut self, attributes: &Attributes) {
        self.u64(VALID);
        self.u64(0);
        self.attr(attributes);
    }

    /// `fuse_entry_out`; without attributes it says, for as long, that there is no such name.
    pub fn entry(&mut self, attributes: Option<&Attributes>) {
        self.u64(attributes.map_or(0, |attributes| attributes.node));
        self.u64(0);
        self.u64(VALID);
        self.u64(VALID);
        self.u64(0);
        match attributes {
            Some(attributes) => self.attr(attributes),
            None => self.zeros(88),
        }
    }

    fn attr(&mut self, attributes: &Attributes) {
        let Attributes { node, mode, links, uid, gid, device, size, blocks, time } = *attributes;
        self.u64(node);
        self.u64(size);
        self.u64(blocks);
        for _ in 0..3 {
            self.u64(time.seconds as u64);
        }
        for _ in 0..3 {
            self.u32(time.nanoseconds);
        }
        for number in [mode, links, uid, gid, device, BLOCK, 0] {
            self.u32(number);
        }
    }

    /// `fuse_dirent`, with `fuse_entry_out` before it if there are attributes. Gives whether it fits into `most` bytes; if not,
    /// nothing is added. `offset` is where the next entry is.
    pub fn dirent(&mut self, entry: &Dirent<'_>, plus: Option<Option<&Attributes>>, most: usize) -> bool {
        let length = (24 + entry.name.len()).next_multiple_of(8);
        if self.len() + length + if plus.is_some() { 128 } else { 0 } > most {
            return false;
        }
        match plus {
            // The kernel takes no attributes with `.` and `..`.
            Some(None) => self.zeros(128),
            Some(attributes) => self.entry(attributes),
            None => {}
        }
        let end = self.0.len() + length;
        self.u64(entry.node);
        self.u64(entry.offset);
        self.u32(entry.name.len() as u32);
        self.u32(entry.mode >> 12);
        self.bytes(entry.name);
        self.0.resize(end, 0);
        true
    }

    /// An attribute's value, or all their names: as the kernel has asked for it, the length, the bytes, or that there is no room.
    #[must_use]
    pub fn sized(unique: u64, size: u32, value: &[u8]) -> Vec<u8> {
        let mut reply = Self::new(unique);
        if size == 0 {
            reply.u32(value.len() as u32);
            reply.u32(0);
        } else if value.len() <= size as usize {
            reply.bytes(value);
        } else {
            return Self::error(unique, rustix::io::Errno::RANGE);
        }
        reply.finish()
    }

    /// `fuse_statfs_out` of a file system with so many blocks and inodes, none of them free.
    pub fn statfs(&mut self, blocks: u64, inodes: u64) {
        for number in [blocks, 0, 0, inodes, 0] {
            self.u64(number);
        }
        for number in [BLOCK, 255, BLOCK, 0] {
            self.u32(number);
        }
        self.zeros(6 * 4);
    }
}

/// Makes of `buffer` the reply to a READ, of which `length` bytes are in their place, behind [`REPLY`] bytes: nothing of it is
/// copied. Gives the bytes for the kernel.
#[must_use]
pub fn data(buffer: &mut [u8], unique: u64, length: usize) -> &[u8] {
    let mut head = Reply::new(unique).0;
    head[..4].copy_from_slice(&((REPLY + length) as u32).to_ne_bytes());
    buffer[..REPLY].copy_from_slice(&head);
    &buffer[..REPLY + length]
}

/// An entry of a directory.
#[derive(Debug, Clone, Copy)]
pub struct Dirent<'a> {
    /// The inode.
    pub node: u64,
    /// Where the next entry is.
    pub offset: u64,
    /// Its type, as in `st_mode`.
    pub mode: u32,
    /// Its name.
    pub name: &'a [u8],
}

fn notification(code: i32) -> Reply {
    Reply::with(code, 0)
}

/// Has the kernel send again what nobody has answered. Only where [`Agreed::resends`].
#[must_use]
pub fn resend() -> Vec<u8> {
    notification(RESEND).finish()
}

/// Has the kernel ask again for attributes, content and entries of an inode.
#[must_use]
pub fn invalidate(node: u64) -> Vec<u8> {
    let mut out = notification(INVALIDATE_INODE);
    // Offset 0, as far as it goes.
    for number in [node, 0, 0] {
        out.u64(number);
    }
    out.finish()
}

/// Has the kernel ask again for a name.
#[must_use]
pub fn invalidate_entry(directory: u64, name: &[u8]) -> Vec<u8> {
    let mut out = notification(INVALIDATE_ENTRY);
    out.u64(directory);
    out.u32(name.len() as u32);
    out.u32(0);
    out.bytes(name);
    out.zeros(1);
    out.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request as the kernel makes it.
    fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(opcode.to_ne_bytes());
        bytes.extend(7_u64.to_ne_bytes());
        bytes.extend(9_u64.to_ne_bytes());
        bytes.extend([1000_u32, 1000, 1, 0].into_iter().flat_map(u32::to_ne_bytes));
        bytes.extend(body);
        bytes
    }

    #[test]
    fn requests_are_taken_apart() {
        let lookup = request(1, b"name\0");
        let parsed = Request::parse(&lookup).unwrap();
        assert_eq!((parsed.unique, parsed.node, parsed.uid), (7, 9, 1000));
        assert_eq!(parsed.operation, Operation::Lookup(b"name"));
        let read: Vec<u8> = [0_u64, 4096].into_iter().flat_map(u64::to_ne_bytes).chain(512_u32.to_ne_bytes()).collect();
        assert_eq!(Request::parse(&request(15, &read)).unwrap().operation, Operation::Read { offset: 4096, size: 512 });
        for short in 0..lookup.len() {
            assert_eq!(Request::parse(&lookup[..short]), Err(Malformed));
        }
        // A name without an end.
        assert_eq!(Request::parse(&request(1, b"name")), Err(Malformed));
        assert_eq!(Request::parse(&request(15, &[0; 8])), Err(Malformed));
    }

    #[test]
    fn replies_have_the_kernels_sizes() {
        let attributes = Attributes {
            node: 5,
            mode: 0o100_644,
            links: 1,
            uid: 0,
            gid: 0,
            device: 0,
            size: 1,
            blocks: 8,
            time: Timestamp { seconds: -1, nanoseconds: 5 },
        };
        let size = |fill: &dyn Fn(&mut Reply)| {
            let mut reply = Reply::new(1);
            fill(&mut reply);
            let bytes = reply.finish();
            assert_eq!(bytes[..4], (bytes.len() as u32).to_ne_bytes());
            bytes.len() - REPLY
        };
        assert_eq!(size(&|reply| reply.attributes(&attributes)), 16 + 88);
        assert_eq!(size(&|reply| reply.entry(Some(&attributes))), 128);
        assert_eq!(size(&|reply| reply.entry(None)), 128);
        assert_eq!(size(&|reply| reply.statfs(1, 2)), 80);
        let entry = Dirent { node: 5, offset: 1, mode: 0o100_644, name: b"abc" };
        assert_eq!(size(&|reply| assert!(reply.dirent(&entry, None, 32))), 32);
        assert_eq!(size(&|reply| assert!(!reply.dirent(&entry, None, 31))), 0);
        assert_eq!(size(&|reply| assert!(reply.dirent(&entry, Some(Some(&attributes)), 160))), 160);
        let init = Init { major: 7, minor: 45, max_readahead: 131_072, flags: u64::MAX };
        let (bytes, agreed) = init.answer(1).unwrap();
        assert_eq!(bytes.len(), REPLY + 64);
        assert!(agreed.resends() && agreed.maps_ids() && !agreed.without_resend().resends());
        assert!(Init { flags: flag::NO_OPEN_SUPPORT, ..init }.answer(1).is_none());
        assert!(Init { major: 8, ..init }.answer(1).is_none());
        assert_eq!(invalidate_entry(1, b"ab").len(), REPLY + 16 + 3);
        assert_eq!(invalidate(1).len(), REPLY + 24);
    }
}
