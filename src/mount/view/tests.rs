//! Views: what is found in them, and what of it changes.

use super::*;

fn part(path: &str, kind: PartKind) -> Part {
    Part { path: path.into(), meta: Meta::default(), kind }
}

fn view_of(parts: Vec<Part>) -> View {
    let small = tempfile::tempfile().unwrap();
    small.write_all_at(b"abcdef", 0).unwrap();
    View::new(parts, &Arc::new(small), Layers::default(), None)
}

#[test]
fn behind_its_end_a_file_has_nothing() {
    let file = PartKind::File { at: 2, length: 3, hash: 1 };
    let view = view_of(vec![part("", PartKind::Directory), part("f", file)]);
    let node = view.lookup(ROOT, b"f").unwrap().unwrap().node;
    let mut buffer = [0; 9];
    assert_eq!(view.read(node, 1, &mut buffer).unwrap(), 2);
    assert_eq!(buffer[..2], *b"de");
    for offset in [3, 4, u64::MAX - 1, u64::MAX] {
        assert_eq!(view.read(node, offset, &mut buffer).unwrap(), 0);
    }
}

#[test]
fn what_is_there_twice_is_there_once() {
    let view = view_of(vec![
        part("", PartKind::Directory),
        part("a", PartKind::Directory),
        part("a/b", PartKind::Directory),
        part("a", PartKind::Directory),
        part("", PartKind::Symlink(b"a".to_vec())),
        part("a/..", PartKind::Directory),
        part("a/c", PartKind::Symlink(Vec::new())),
    ]);
    let a = view.lookup(ROOT, b"a").unwrap().unwrap().node;
    let mut names = Vec::new();
    view.list(a, 0, |_, _, name| {
        names.push(name.to_vec());
        true
    })
    .unwrap();
    assert_eq!(names, [&b"."[..], b"..", b"b"]);
    assert_eq!(view.lookup(a, b"b").unwrap().unwrap().links, 2);
}

fn small() -> Arc<File> {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, b"old, new").unwrap();
    Arc::new(file)
}

/// A view of directories (names with a slash at the end) and files with a place, length and hash.
fn view(parts: &[(&str, u64, u64, u64)], small: &Arc<File>, before: Option<&View>) -> View {
    let root = Part { path: Vec::new(), meta: Meta::default(), kind: PartKind::Directory };
    let part = |&(path, at, length, hash): &(&str, u64, u64, u64)| match path.strip_suffix('/') {
        Some(path) => Part { path: path.into(), meta: Meta::default(), kind: PartKind::Directory },
        None => Part { path: path.into(), meta: Meta::default(), kind: PartKind::File { at, length, hash } },
    };
    View::new(std::iter::once(root).chain(parts.iter().map(part)).collect(), small, Layers::default(), before)
}

fn find(view: &View, directory: u64, name: &str) -> Option<u64> {
    view.lookup(directory, name.as_bytes()).unwrap().map(|attributes| attributes.node)
}

fn content(view: &View, id: u64) -> Vec<u8> {
    let mut buffer = [0; 100];
    let count = view.read(id, 0, &mut buffer).unwrap();
    buffer[..count].to_vec()
}

#[test]
fn a_file_that_changes_is_another_and_the_old_one_is_read_to_its_end() {
    let small = small();
    let old = view(&[("d/", 0, 0, 0), ("d/f", 0, 3, 1), ("d/same", 0, 3, 7), ("gone", 0, 3, 1)], &small, None);
    let new = view(&[("d/", 0, 0, 0), ("d/f", 5, 3, 2), ("d/same", 0, 3, 7), ("come/", 0, 0, 0)], &small, Some(&old));
    let directory = find(&old, ROOT, "d").unwrap();
    assert_eq!(find(&new, ROOT, "d"), Some(directory));
    let [before, after] = [&old, &new].map(|view| find(view, directory, "f").unwrap());
    assert_ne!(before, after);
    assert_eq!(find(&old, directory, "same"), find(&new, directory, "same"));
    assert_eq!((content(&new, after), content(&new, before)), (b"new".to_vec(), b"old".to_vec()));
    let gone = find(&old, ROOT, "gone").unwrap();
    assert_eq!((find(&new, ROOT, "gone"), content(&new, gone)), (None, b"old".to_vec()));
    assert!(matches!(old.attributes(after), Err(Errno::STALE)));

    let mut changes = new.changes(&old);
    changes.sort();
    assert_eq!(changes, [(ROOT, b"come".to_vec()), (ROOT, b"gone".to_vec()), (directory, b"f".to_vec())]);
    assert!(new.changes(&new).is_empty());
    assert_eq!((old.attributes(ROOT).unwrap().links, new.attributes(ROOT).unwrap().links), (3, 4));
}

#[test]
fn a_listing_goes_on_in_the_right_place_when_names_come_and_go() {
    let small = small();
    let names: Vec<String> = (0..50).map(|number| format!("name{number}")).collect();
    let of = |range: std::ops::Range<usize>, before: Option<&View>| {
        let parts: Vec<_> = names[range].iter().map(|name| (name.as_str(), 0, 3, 1)).collect();
        view(&parts, &small, before)
    };
    let old = of(0..40, None);
    let new = of(10..50, Some(&old));
    let list = |view: &View, from: u64, most: usize| {
        let mut all: Vec<(Vec<u8>, u64)> = Vec::new();
        view.list(ROOT, from, |_, next, name| {
            let is_taken = all.len() < most;
            if is_taken {
                all.push((name.to_vec(), next));
            }
            is_taken
        })
        .unwrap();
        all
    };
    for some in 0..43 {
        let first = list(&old, 0, some);
        let rest = list(&new, first.last().map_or(0, |(_, next)| *next), usize::MAX);
        let mut all: Vec<&[u8]> = first.iter().chain(&rest).map(|(name, _)| name.as_slice()).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count, "twice, after {some}");
        for name in &names[10..40] {
            assert!(all.contains(&name.as_bytes()), "{name} is missing after {some}");
        }
    }
    assert!(list(&new, 0, 100).iter().all(|(_, next)| *next < 1 << 63), "a signed number to the kernel");
}

#[test]
fn what_is_no_directory_has_no_names() {
    let small = small();
    let view = view(&[("f", 0, 3, 1), ("lost/f", 0, 3, 1)], &small, None);
    let file = find(&view, ROOT, "f").unwrap();
    assert_eq!(view.lookup(file, b"x").unwrap_err(), Errno::NOTDIR);
    assert_eq!(view.list(file, 2, |_, _, _| true).unwrap_err(), Errno::NOTDIR);
    assert_eq!(view.target(file).unwrap_err(), Errno::INVAL);
    assert!(matches!(view.read(ROOT, 0, &mut [0]), Err(Failed::Asked(Errno::INVAL))));
    // A file whose directory is not there.
    assert_eq!(find(&view, ROOT, "lost"), None);
    for unknown in [0, 2, 5 << 32, OUTSIDE | 5] {
        assert_eq!(view.attributes(unknown).unwrap_err(), Errno::STALE);
    }
    assert_eq!(content(&view, file), b"old");
    assert_eq!(view.read(file, 3, &mut [0]).unwrap(), 0);
    assert_eq!(view.read(file, u64::MAX, &mut [0]).unwrap(), 0);
}
