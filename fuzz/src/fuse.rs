//! The kernel's side of FUSE: requests as it makes them, and replies as it, and who relies on it, looks at them.

use std::collections::BTreeSet;

use prepull::mount::serve::{Answer, answer};
use prepull::mount::view::{Failed, View};
use prepull::mount::wire::{Operation, READ_MAX, REPLY, Reply, Request, data};

/// Opcodes (Linux `enum fuse_opcode`).
pub mod opcode {
    #![allow(missing_docs, reason = "they are the kernel's names")]
    pub const LOOKUP: u32 = 1;
    pub const GETATTR: u32 = 3;
    pub const READLINK: u32 = 5;
    pub const READ: u32 = 15;
    pub const STATFS: u32 = 17;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const READDIR: u32 = 28;
    pub const READDIRPLUS: u32 = 44;
}

/// The largest name that the kernel takes in a directory that it lists, on every file system.
const NAME_MAX: usize = 255;

/// A request's bytes.
#[must_use]
pub fn request(opcode: u32, node: u64, uid: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = (40 + body.len() as u32).to_ne_bytes().to_vec();
    bytes.extend(opcode.to_ne_bytes());
    bytes.extend(7_u64.to_ne_bytes());
    bytes.extend(node.to_ne_bytes());
    bytes.extend([uid, uid, 1, 0].into_iter().flat_map(u32::to_ne_bytes));
    bytes.extend(body);
    bytes
}

/// A name, as in LOOKUP.
#[must_use]
pub fn name(name: &[u8]) -> Vec<u8> {
    [name, &[0]].concat()
}

/// `fuse_read_in`.
#[must_use]
pub fn range(offset: u64, size: u32) -> Vec<u8> {
    let mut body = [0, offset].into_iter().flat_map(u64::to_ne_bytes).collect::<Vec<u8>>();
    body.extend([size, 0, 0, 0, 0, 0].into_iter().flat_map(u32::to_ne_bytes));
    body
}

/// `fuse_getxattr_in`, and the name.
#[must_use]
pub fn xattr(size: u32, name: &[u8]) -> Vec<u8> {
    let mut body: Vec<u8> = [size, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
    body.extend(name);
    if !name.is_empty() {
        body.push(0);
    }
    body
}

/// What `stat` says of an inode, `fuse_attr`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attr {
    /// Its number.
    pub node: u64,
    /// Bytes.
    pub size: u64,
    /// Type and permissions.
    pub mode: u32,
    /// All of it.
    all: Vec<u8>,
}

impl Attr {
    /// Whether it is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_regular(&self) -> bool {
        self.mode & 0o170_000 == 0o100_000
    }
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The inode.
    pub node: u64,
    /// Where the next one is.
    pub offset: u64,
    /// The file type, as in `st_mode` without its permissions, 12 bits to the right.
    pub kind: u32,
    /// Its name.
    pub name: Vec<u8>,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// It is none, or one without a reply.
    Silence,
    /// An error's number.
    Refused(i32),
    /// An inode, or that there is no such name.
    Entry(Option<Attr>),
    /// Attributes.
    Attr(Attr),
    /// A directory.
    List(Vec<Listed>),
    /// Anything else.
    Bytes(Vec<u8>),
}

/// The error of damaged content.
pub const EIO: i32 = 5;

/// Sends `bytes`, and reads the reply.
///
/// # Panics
/// When the reply is none that the kernel would take.
#[must_use]
pub fn exchange(view: &View, bytes: &[u8]) -> Answered {
    let Ok(request) = Request::parse(bytes) else { return Answered::Silence };
    if let Operation::Init(init) = request.operation
        && let Some((reply, _)) = init.answer(request.unique)
    {
        assert_eq!(body(&reply, request.unique).expect("it is agreed").len(), 64);
    }
    // A buffer that has been of use.
    let mut buffer = vec![1; REPLY + READ_MAX];
    let reply = match answer(view, &request, &mut buffer) {
        Ok(Answer::None) => return Answered::Silence,
        Ok(Answer::Reply(reply)) => reply,
        Ok(Answer::Data(length)) => data(&mut buffer, request.unique, length).to_vec(),
        Err(Failed::Asked(error)) => Reply::error(request.unique, error),
        Err(Failed::Damaged(why)) => {
            assert!(!why.is_empty());
            Reply::error(request.unique, rustix::io::Errno::IO)
        }
    };
    let body = match body(&reply, request.unique) {
        Ok(body) => body,
        Err(error) => return Answered::Refused(error),
    };
    match request.operation {
        Operation::Lookup(_) => Answered::Entry(entry(body)),
        Operation::Getattr => {
            assert_eq!(body.len(), 16 + 88);
            Answered::Attr(attr(&body[16..]))
        }
        Operation::Readdir { size, plus, .. } => Answered::List(list(body, plus, size as usize)),
        Operation::Read { size, .. } => {
            assert!(body.len() <= (size as usize).min(READ_MAX));
            Answered::Bytes(body.to_vec())
        }
        Operation::Getxattr { size, .. } | Operation::Listxattr { size } => {
            assert!(if size == 0 { body.len() == 8 } else { body.len() <= size as usize });
            Answered::Bytes(body.to_vec())
        }
        Operation::Statfs => {
            assert_eq!(body.len(), 80);
            Answered::Bytes(body.to_vec())
        }
        Operation::Readlink => {
            // The kernel takes a page of it.
            assert!(body.len() < 4096 && !body.is_empty(), "a target of {} bytes", body.len());
            Answered::Bytes(body.to_vec())
        }
        Operation::Destroy => {
            assert!(body.is_empty());
            Answered::Silence
        }
        other => panic!("{other:?} has a reply with something in it"),
    }
}

/// The body of a reply, or the error in it.
fn body(reply: &[u8], unique: u64) -> Result<&[u8], i32> {
    assert_eq!(u32_at(reply, 0) as usize, reply.len(), "the length that it says");
    assert_eq!(u64_at(reply, 8), unique);
    let error = u32_at(reply, 4) as i32;
    assert!(error > -512 && error <= 0, "error {error}");
    if error != 0 {
        assert_eq!(reply.len(), REPLY);
        return Err(-error);
    }
    Ok(&reply[REPLY..])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// What `fuse_invalid_attr` and its callers in the kernel want of attributes.
fn attr(bytes: &[u8]) -> Attr {
    assert_eq!(bytes.len(), 88);
    let (node, size, blocks, mode, links) =
        (u64_at(bytes, 0), u64_at(bytes, 8), u64_at(bytes, 16), u32_at(bytes, 60), u32_at(bytes, 64));
    assert!(node != 0);
    assert!(i64::try_from(size).is_ok() && i64::try_from(blocks).is_ok(), "{size} bytes, {blocks} blocks");
    assert!((0..3).all(|time| u32_at(bytes, 48 + time * 4) < 1_000_000_000));
    let kind = mode >> 12;
    assert!(matches!(kind, 0o1 | 0o2 | 0o4 | 0o6 | 0o10 | 0o12) && mode < 1 << 16, "mode {mode:o}");
    assert!(links > 0);
    assert_eq!((u32_at(bytes, 80), u32_at(bytes, 84)), (4096, 0));
    Attr { node, size, mode, all: bytes.to_vec() }
}

fn entry(bytes: &[u8]) -> Option<Attr> {
    assert_eq!(bytes.len(), 128);
    let node = u64_at(bytes, 0);
    if node == 0 {
        assert!(bytes[40..].iter().all(|byte| *byte == 0));
        return None;
    }
    let attr = attr(&bytes[40..]);
    assert_eq!(attr.node, node);
    Some(attr)
}

/// What `fuse_readdir` wants of a directory's entries.
fn list(mut bytes: &[u8], plus: bool, size: usize) -> Vec<Listed> {
    assert!(bytes.len() <= size, "{} bytes, and room for {size}", bytes.len());
    let mut listed: Vec<Listed> = Vec::new();
    while !bytes.is_empty() {
        let mut found = None;
        if plus {
            found = Some(&bytes[..128]);
            bytes = &bytes[128..];
        }
        let length = u32_at(bytes, 16) as usize;
        let (node, offset, kind) = (u64_at(bytes, 0), u64_at(bytes, 8), u32_at(bytes, 20));
        let name = bytes[24..24 + length].to_vec();
        assert!(!name.is_empty() && name.len() <= NAME_MAX && !name.contains(&b'/') && !name.contains(&0), "{name:?}");
        bytes = &bytes[(24 + length).next_multiple_of(8)..];
        assert!(i64::try_from(offset).is_ok() && listed.last().is_none_or(|last| last.offset < offset));
        if let Some(found) = found {
            match entry(found) {
                Some(attr) => assert!(attr.node == node && attr.mode >> 12 == kind),
                None => assert!(name == b"." || name == b".."),
            }
        }
        listed.push(Listed { node, offset, kind, name });
    }
    listed
}

/// All of a directory, in pieces of `size` bytes.
///
/// # Panics
/// When it cannot be listed, or one entry has no room.
#[must_use]
pub fn list_all(view: &View, node: u64, plus: bool, size: u32) -> Vec<Listed> {
    let mut all: Vec<Listed> = Vec::new();
    loop {
        let offset = all.last().map_or(0, |last| last.offset);
        let opcode = if plus { opcode::READDIRPLUS } else { opcode::READDIR };
        match exchange(view, &request(opcode, node, 0, &range(offset, size))) {
            Answered::List(listed) if listed.is_empty() => return all,
            Answered::List(listed) => all.extend(listed),
            other => panic!("a directory is listed as {other:?}"),
        }
    }
}

/// Looks at an inode whose attributes somebody was given: all that can be asked of it is there, and fits together.
///
/// # Panics
/// When not.
pub fn look(view: &View, attr: &Attr) {
    let ask = |opcode, body: &[u8]| exchange(view, &request(opcode, attr.node, 0, body));
    assert_eq!(ask(opcode::GETATTR, &[0; 16]), Answered::Attr(attr.clone()));
    let Answered::Bytes(names) = ask(opcode::LISTXATTR, &xattr(u32::MAX, b"")) else { panic!("no attributes") };
    let length = (names.len() as u64).to_ne_bytes().to_vec();
    assert_eq!(ask(opcode::LISTXATTR, &xattr(0, b"")), Answered::Bytes(length));
    for name in names.split_inclusive(|byte| *byte == 0) {
        let name = name.strip_suffix(&[0]).expect("names end with a NUL");
        assert!(!name.is_empty() && name.len() <= NAME_MAX);
        let Answered::Bytes(value) = ask(opcode::GETXATTR, &xattr(u32::MAX, name)) else {
            panic!("the attribute {name:?} is listed, and cannot be got")
        };
        let length = (value.len() as u64).to_ne_bytes().to_vec();
        assert_eq!(ask(opcode::GETXATTR, &xattr(0, name)), Answered::Bytes(length));
        if value.len() > 1 {
            assert_eq!(ask(opcode::GETXATTR, &xattr(1, name)), Answered::Refused(34));
        }
    }
    let target = ask(opcode::READLINK, &[]);
    match target {
        Answered::Bytes(target) => assert!(attr.mode >> 12 == 0o12 && target.len() as u64 == attr.size),
        _ => assert!(attr.mode >> 12 != 0o12),
    }
    let Answered::Entry(Some(itself)) = ask(opcode::LOOKUP, &name(b".")) else { panic!("it is not there") };
    assert_eq!(itself, *attr);
    if attr.is_regular() {
        let end = ask(opcode::READ, &range(attr.size, 100));
        assert_eq!(end, Answered::Bytes(Vec::new()), "there is something behind the end");
    } else {
        assert!(matches!(ask(opcode::READ, &range(0, 100)), Answered::Refused(_)));
    }
}

/// Walks all that is shown, up to `most` inodes; gives those that it has seen.
///
/// # Panics
/// When something does not fit together.
pub fn walk(view: &View, most: usize) -> BTreeSet<u64> {
    let Answered::Attr(root) = exchange(view, &request(opcode::GETATTR, 1, 0, &[0; 16])) else { panic!("no root") };
    assert!(root.is_directory());
    let mut seen = BTreeSet::from([root.node]);
    let mut left = vec![(root.clone(), root.node)];
    while let Some((attr, parent)) = left.pop() {
        look(view, &attr);
        if !attr.is_directory() {
            continue;
        }
        let listed = list_all(view, attr.node, true, 1 << 20);
        assert_eq!(listed, list_all(view, attr.node, false, 4096));
        assert!(listed.len() >= 2 && listed[0].name == b"." && listed[1].name == b"..");
        assert_eq!((listed[0].node, listed[1].node), (attr.node, parent));
        let mut names = BTreeSet::new();
        for Listed { node, kind, name: called, .. } in listed {
            assert!(names.insert(called.clone()), "{called:?} is there twice");
            let found = exchange(view, &request(opcode::LOOKUP, attr.node, 0, &name(&called)));
            let Answered::Entry(Some(found)) = found else {
                panic!("{called:?} is listed, and is not there: {found:?}")
            };
            assert!(found.node == node && found.mode >> 12 == kind);
            if called != b"." && called != b".." && seen.insert(node) && seen.len() < most {
                left.push((found, attr.node));
            } else {
                assert!(
                    called == b"." || called == b".." || !found.is_directory() || seen.len() >= most,
                    "a directory has two names"
                );
            }
        }
    }
    seen
}
