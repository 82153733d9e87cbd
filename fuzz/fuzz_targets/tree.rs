//! A layer's tree in memory: whatever is placed into it, it stays a tree that a file system could hold, and its index keeps
//! all of it.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use prepull::entry::Timestamp;
use prepull::layer::path::{NAME_MAX, PATH_MAX};
use prepull::layer::tar::Header;
use prepull::layer::tree::{Inode, InodeKind, Placed, Tree};
use prepull::segment::index::Index;

/// Few names, so that entries meet.
const NAMES: [&[u8]; 14] =
    [b"a", b"b", b"c", b"d", b".", b"..", b"", b".wh.a", b".wh.b", b".wh.c", b".wh..wh..opq", b".wh.", b"a\n", b"\xff"];

const XATTRS: [&[u8]; 10] = [
    b"user.a",
    b"user.b",
    b"security.capability",
    b"security.selinux",
    b"trusted.overlay.opaque",
    b"trusted.overlay.redirect",
    b"trusted.a",
    b"system.posix_acl_access",
    b"system.posix_acl_default",
    b"user.",
];

#[derive(Debug)]
struct Layer(Vec<Header>);

impl<'a> Arbitrary<'a> for Layer {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        let mut headers = Vec::new();
        while !input.is_empty() && headers.len() < 256 {
            headers.push(header(input)?);
        }
        Ok(Self(headers))
    }
}

fn path(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let shape: u8 = input.arbitrary()?;
    let mut path = if shape & 0x10 != 0 { b"/".to_vec() } else { Vec::new() };
    for _ in 0..shape & 7 {
        match input.arbitrary::<u8>()? {
            // At, below and above what a component and a path may have.
            254 => path.extend(vec![b'l'; NAME_MAX - 1 + usize::from(input.arbitrary::<u8>()? % 3)]),
            255 => path.extend([&[b'd'; 99][..], b"/"].concat().repeat(usize::from(input.arbitrary::<u8>()? % 43))),
            name => path.extend_from_slice(NAMES[usize::from(name) % NAMES.len()]),
        }
        path.push(b'/');
    }
    if shape & 0x20 == 0 {
        path.pop();
    }
    Ok(path)
}

fn header(input: &mut Unstructured<'_>) -> Result<Header> {
    let kind: u8 = input.arbitrary()?;
    let mut header = Header {
        typeflag: b"05521012346g7x"[usize::from(kind) % 14],
        name: path(input)?,
        mode: input.arbitrary::<u16>()?.into(),
        ..Header::default()
    };
    if matches!(header.typeflag, b'1' | b'2') {
        header.link = path(input)?;
    }
    if kind & 0x40 != 0 {
        header.uid = input.arbitrary()?;
        header.gid = input.arbitrary()?;
        header.mtime =
            Timestamp { seconds: input.arbitrary()?, nanoseconds: input.arbitrary::<u32>()? % 1_000_000_000 };
        (header.major, header.minor) = (input.arbitrary()?, input.arbitrary()?);
        header.size = input.arbitrary::<u64>()? >> 1;
    }
    if kind & 0x80 != 0 {
        let mut names = BTreeSet::new();
        for _ in 0..input.int_in_range(1..=3)? {
            names.insert(XATTRS[usize::from(input.arbitrary::<u8>()?) % XATTRS.len()]);
        }
        for name in names {
            let value: &[u8] = input.arbitrary()?;
            let value = if value == b"!" { vec![0; 40_000] } else { value.to_vec() };
            header.xattrs.push((name.to_vec(), value));
        }
    }
    Ok(header)
}

fuzz_target!(|layer: Layer| {
    let mut tree = Tree::new();
    for header in &layer.0 {
        let parents = match tree.place(header) {
            Ok(placed) => {
                if let Placed::New(dirent) = placed {
                    assert!(tree.live().any(|live| live == dirent));
                }
                tree.take_created_parents()
            }
            // The layer is refused. What is there is still a tree.
            Err(_) => break,
        };
        assert!(parents.iter().all(|parent| tree.inode(*parent).kind == InodeKind::Directory));
    }
    let _ = tree.settle();
    check(&tree);
    let index = Index::of(&tree);
    check_index(&index, &tree);
    let encoded = index.encode();
    let again = Index::decode(&encoded).expect("what was encoded can be decoded");
    check_index(&again, &tree);
    assert_eq!(again.encode(), encoded);
});

fn check(tree: &Tree) {
    let mut seen = BTreeSet::new();
    let mut names = BTreeSet::new();
    assert_eq!(tree.inode(0).kind, InodeKind::Directory);
    for dirent in tree.live() {
        let (parent, name) = (tree.parent(dirent), tree.name(dirent));
        assert!(parent == 0 || seen.contains(&parent), "a parent that is gone, or comes later");
        assert_eq!(tree.inode(parent).kind, InodeKind::Directory);
        assert!(!name.is_empty() && name.len() <= NAME_MAX && name != b"." && name != b"..");
        assert!(!name.contains(&b'/'));
        assert!(tree.path(dirent).len() <= PATH_MAX);
        assert!(names.insert((parent, name.to_vec())), "a name twice in one directory");
        seen.insert(dirent);
        check_inode(tree.inode(dirent));
        if !tree.is_disturbed() {
            assert!(tree.first_name(dirent) <= dirent);
        }
    }
}

fn check_inode(inode: &Inode) {
    assert!(inode.mode <= 0o7777 && inode.mtime.nanoseconds < 1_000_000_000);
    assert!(inode.xattrs.is_sorted_by(|a, b| a.0 < b.0));
    for (name, _) in &inode.xattrs {
        assert!(!name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay."));
        assert!(name != b"security.selinux");
    }
    if !matches!(inode.kind, InodeKind::Directory | InodeKind::Regular { .. }) {
        assert!(!inode.xattrs.iter().any(|(name, _)| name.starts_with(b"user.")));
    }
    assert!(!inode.opaque || inode.kind == InodeKind::Directory);
}

fn check_index(index: &Index, tree: &Tree) {
    let live: Vec<_> = tree.live().collect();
    assert_eq!(index.nodes().len(), live.len() + 1);
    for (number, dirent) in (1u32..).zip(live) {
        let node = &index.nodes()[number as usize];
        assert!(node.parent < number);
        assert_eq!(index.path(number), tree.path(dirent));
        let (inode, wanted) = (&node.inode, tree.inode(dirent));
        assert_eq!(inode.kind, wanted.kind);
        let stat = |inode: &Inode| (inode.mode, inode.uid, inode.gid, inode.mtime, inode.stamped, inode.opaque);
        assert_eq!(stat(inode), stat(wanted));
        assert_eq!(inode.whiteout, wanted.whiteout);
        match node.link_to {
            None => assert_eq!(inode.xattrs, wanted.xattrs),
            Some(first) => {
                assert!(first < number && index.nodes()[first as usize].link_to.is_none());
                assert!(inode.kind != InodeKind::Directory);
            }
        }
        let entry = index.entry(number, b"p/", 7);
        let mut written = Vec::new();
        prepull::wire::header(&entry, &mut written);
        assert_eq!(entry.path, [b"p/", &tree.path(dirent)[..]].concat());
    }
}
