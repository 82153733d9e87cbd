//! Trees as they are shown: what is found where, and what cannot be.

use super::*;
use crate::layer::tree::{Inode, Xattrs};

fn inode(kind: InodeKind) -> Inode {
    let mtime = Timestamp::whole(1);
    Inode {
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime,
        stamped: false,
        opaque: false,
        whiteout: false,
        xattrs: Xattrs::new(),
    }
}

fn file() -> Inode {
    inode(InodeKind::Regular { size: 1, data: 0 })
}

fn layer(fill: impl FnOnce(&mut Index), whiteouts: &[&str]) -> Option<Layer> {
    let mut index = Index::default();
    index.add(0, b"", None, inode(InodeKind::Directory));
    fill(&mut index);
    let whiteouts: Vec<Vec<u8>> = whiteouts.iter().map(|path| path.as_bytes().to_vec()).collect();
    let style = Style { stamp: 1, marks_opaque: false, whiteouts: &whiteouts, root: &Meta::default() };
    Layer::new(&index, Body::Tar(Arc::new(tempfile::tempfile().unwrap())), &style)
}

#[test]
fn what_no_file_system_has_is_refused() {
    assert!(layer(|index| index.add(0, b"a", None, file()), &[]).is_some());
    let target = |length: usize| inode(InodeKind::Symlink(vec![b'x'; length].into()));
    assert!(layer(|index| index.add(0, b"a", None, target(4095)), &[]).is_some());
    let large = inode(InodeKind::Regular { size: 1 << 63, data: 0 });
    for (name, kind) in [
        (&b""[..], file()),
        (b".", file()),
        (b"..", file()),
        (b"a/b", file()),
        (b"a\0", file()),
        (b"a", target(0)),
        (b"a", target(4096)),
        (b"a", large),
    ] {
        assert!(layer(|index| index.add(0, name, None, kind), &[]).is_none(), "{name:?}");
    }
    // Something in a link, whose target would be overwritten by where its entries are.
    for parent in [target(5), file()] {
        let inside = |index: &mut Index| {
            index.add(0, b"a", None, parent);
            index.add(1, b"b", None, file());
        };
        assert!(layer(inside, &[]).is_none());
    }
    let twice = |index: &mut Index| {
        index.add(0, b"a", None, file());
        index.add(0, b"a", None, file());
    };
    assert!(layer(twice, &[]).is_none());
    for first in [0, 2] {
        let link = |index: &mut Index| {
            index.add(0, b"a", None, file());
            index.add(0, b"b", Some(1), file());
            index.add(0, b"c", Some(first), file());
        };
        assert!(layer(link, &[]).is_none(), "a link to a directory, or to a link");
    }
}

#[test]
fn the_number_of_a_second_name_is_no_inode() {
    let two = |index: &mut Index| {
        index.add(0, b"a", None, file());
        index.add(0, b"b", Some(1), file());
    };
    let layer = layer(two, &[]).unwrap();
    assert_eq!(layer.find(0, b"b").unwrap(), Some(1));
    assert_eq!(layer.attributes(1, 7).unwrap().links, 2);
    assert_eq!(layer.attributes(2, 7), Err(Errno::STALE));
}

#[test]
fn whiteouts_hide_nothing_of_the_layer_itself() {
    let layer = layer(|index| index.add(0, b"a", None, file()), &["a", "b", "b", "c/d", "", "/"]).unwrap();
    assert_eq!(layer.len(), 3);
    assert_eq!(layer.find(0, b"a").unwrap(), Some(1));
    assert_eq!(layer.find(0, b"b").unwrap(), Some(2));
}

#[test]
fn attributes_in_any_order_are_found() {
    let [a, b, last] =
        [("user.a", "1"), ("user.b", "2"), ("user.a", "3")].map(|(name, value)| (name.into(), value.into()));
    let mut xattrs = vec![b, a, last, (vec![], vec![]), (b"user.".to_vec(), vec![]), (b"usr.a".to_vec(), vec![])];
    tidy(&mut xattrs);
    assert_eq!(xattrs, [(b"user.a".to_vec(), b"3".to_vec()), (b"user.b".to_vec(), b"2".to_vec())]);
}

#[test]
fn sizes_beyond_all_disks_do_not_overflow() {
    let large = || inode(InodeKind::Regular { size: i64::MAX as u64, data: 0 });
    let many =
        |index: &mut Index| (0..600).for_each(|number| index.add(0, format!("{number}").as_bytes(), None, large()));
    assert!(layer(many, &[]).unwrap().blocks() > 1 << 62);
}

fn dated(kind: InodeKind) -> Inode {
    Inode {
        kind,
        mode: 0o644,
        uid: 1,
        gid: 2,
        mtime: Timestamp { seconds: 5, nanoseconds: 6 },
        stamped: false,
        opaque: false,
        whiteout: false,
        xattrs: Xattrs::new(),
    }
}

fn shown(index: &Index, marks_opaque: bool, whiteouts: &[Vec<u8>]) -> Layer {
    let root = Meta { mode: 0o555, xattrs: vec![(b"user.root".to_vec(), b"1".to_vec())], ..Meta::default() };
    let body = Body::Tar(Arc::new(tempfile::tempfile().unwrap()));
    Layer::new(index, body, &Style { stamp: 99, marks_opaque, whiteouts, root: &root }).unwrap()
}

/// `/a`, `/d/` (opaque), `/d/b` (a second name of `/a`), `/d/e/`, `/null`.
fn index() -> Index {
    let mut index = Index::default();
    index.add(0, b"", None, dated(InodeKind::Directory));
    index.add(0, b"d", None, Inode { opaque: true, stamped: true, ..dated(InodeKind::Directory) });
    index.add(0, b"a", None, dated(InodeKind::Regular { size: 5000, data: 512 }));
    index.add(1, b"b", Some(2), dated(InodeKind::Regular { size: 5000, data: 512 }));
    index.add(1, b"e", None, dated(InodeKind::Directory));
    index.add(0, b"null", None, dated(InodeKind::CharDevice(Device { major: 0x1ff, minor: 0xabcde })));
    index
}

#[test]
fn links_are_counted_and_names_are_found() {
    let layer = shown(&index(), true, &[]);
    let links = |number| layer.attributes(number, 7).unwrap().links;
    assert_eq!([links(0), links(1), links(2), links(4)], [3, 3, 2, 2]);
    assert_eq!(layer.find(0, b"a").unwrap(), layer.find(1, b"b").unwrap());
    assert_eq!(layer.find(1, b"a").unwrap(), None);
    assert_eq!(layer.find(2, b"a").unwrap_err(), Errno::NOTDIR);
    let names: Vec<&[u8]> = (0..4).map_while(|at| layer.entry(0, at).unwrap()).map(|(name, _)| name).collect();
    assert_eq!(names, [&b"a"[..], b"d", b"null"]);
    assert_eq!((layer.parent(4).unwrap(), layer.parent(0).unwrap()), (1, 0));
    let file = layer.attributes(2, 7).unwrap();
    assert_eq!((file.size, file.blocks, file.mode), (5000, 16, 0o100_644));
    let device = layer.attributes(5, 7).unwrap();
    // As in `MKDEV` of 32 bits: twelve bits of the major number between those of the minor.
    assert_eq!((device.device, device.size, device.blocks), (0xabc1_ffde, 0, 0));
    // The root is as the store has it, and what no header has dated is of the store's time.
    assert_eq!(layer.attributes(0, 7).unwrap().mode, 0o040_555);
    assert_eq!(layer.attributes(1, 7).unwrap().time, Timestamp::whole(99));
    assert_eq!(layer.xattrs(0).unwrap()[0].0, b"user.root");
    assert_eq!(layer.xattrs(1).unwrap(), [(OPAQUE.to_vec(), b"y".to_vec())]);
    assert_eq!(layer.attributes(9, 7).unwrap_err(), Errno::STALE);
}

#[test]
fn opaque_directories_are_expanded() {
    let paths = [b"d/hidden".to_vec(), b"d/e/hidden".to_vec(), b"nowhere/hidden".to_vec()];
    let layer = shown(&index(), false, &paths);
    assert!(layer.xattrs(1).unwrap().is_empty());
    let names: Vec<&[u8]> = (0..9).map_while(|at| layer.entry(1, at).unwrap()).map(|(name, _)| name).collect();
    assert_eq!(names, [&b"b"[..], b"e", b"hidden"]);
    let whiteout = layer.find(4, b"hidden").unwrap().unwrap();
    let found = layer.attributes(whiteout, 7).unwrap();
    assert_eq!((found.mode, found.device, found.time), (CHAR_DEVICE, 0, Timestamp::whole(99)));
    // Counted once, though the order was made twice.
    assert_eq!([0, 1, 2].map(|number| layer.attributes(number, 7).unwrap().links), [3, 3, 2]);
}

#[test]
fn of_a_layer_that_is_lost_only_the_root_is_there() {
    let root = Meta { mode: 0o555, uid: 3, ..Meta::default() };
    let layer = Layer::lost(&root);
    assert!(layer.is_lost() && layer.len() == 1);
    let found = layer.attributes(0, 7).unwrap();
    assert_eq!((found.mode, found.uid, found.links), (0o040_555, 3, 2));
    assert!(layer.xattrs(0).unwrap().is_empty());
    assert_eq!(layer.find(0, b"a").unwrap_err(), Errno::IO);
    assert_eq!(layer.entry(0, 0).unwrap_err(), Errno::IO);
    assert_eq!(layer.attributes(1, 7).unwrap_err(), Errno::IO);
    assert_eq!(layer.body().unwrap_err(), Errno::IO);
}
