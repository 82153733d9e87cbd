use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use super::super::place::{Place, Slot};
use super::super::writer::Writer;
use super::super::writer::tests::FACTS;
use super::*;
use crate::atomic::LEFTOVER_AGE;

fn cache(at: &Path) -> Cache {
    let cache = Cache::open(at).unwrap();
    for number in 0..4u8 {
        let file = fs_err::File::create(cache.path(&Digest::of(&[number]))).unwrap();
        file.set_len(100).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(1000 - u64::from(number))).unwrap();
    }
    cache
}

#[test]
fn the_longest_unused_goes_first() {
    let scratch = tempfile::tempdir().unwrap();
    let cache = cache(scratch.path());
    let names = |items: &[Item]| items.iter().flat_map(|item| item.paths.clone()).collect::<Vec<_>>();
    let all = names(&cache.items().unwrap());
    let keep = |max_bytes, age| Keep { max_bytes, used_since: Some(SystemTime::now() - Duration::from_secs(age)) };
    assert_eq!(names(&cache.prune(&keep(300, 2000)).unwrap()), all[..1]);
    assert_eq!(names(&cache.prune(&keep(u64::MAX, 2000)).unwrap()), [""; 0].map(PathBuf::from));
    assert_eq!(names(&cache.prune(&Keep { max_bytes: 150, used_since: None }).unwrap()), all[1..3]);
    assert_eq!(names(&cache.prune(&keep(u64::MAX, 10)).unwrap()), all[3..]);
    assert!(cache.items().unwrap().is_empty());
}

#[test]
fn leftovers_of_dead_processes_go_and_nothing_else() {
    let scratch = tempfile::tempdir().unwrap();
    let cache = cache(scratch.path());
    let mut dead = std::process::Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    let left = format!(".file.prepull-{}-7", dead.id());
    let live = format!(".file.prepull-{}-7", std::process::id());
    let young = format!(".file.prepull-{}-8", dead.id());
    for name in [&left, &live, &young, "notes", ".file.prepull-x-1"] {
        fs_err::write(cache.directory().join(name), "x").unwrap();
    }
    // Tars that no segment needs: one of a process that has ended, and one that may still be written.
    let tar = |number: u64| format!("{number:016x}");
    make_ours(&cache.tars).unwrap();
    for name in [&left, &tar(1), &tar(2)] {
        fs_err::write(cache.tars.join(name), "x").unwrap();
        fs_err::set_permissions(cache.tars.join(name), Permissions::from_mode(0o600)).unwrap();
    }
    let written = fs_err::File::open(cache.tars.join(tar(2))).unwrap().into_file();
    rustix::fs::flock(&written, FlockOperation::LockExclusive).unwrap();
    for path in [cache.directory().join(&left), cache.directory().join(&live), cache.tars.join(&left)] {
        File::options().append(true).open(path).unwrap().set_modified(SystemTime::now() - LEFTOVER_AGE).unwrap();
    }
    assert_eq!(cache.items().unwrap().iter().map(|item| item.segments).sum::<usize>(), 4);
    let removed = cache.prune(&Keep { max_bytes: u64::MAX, used_since: None }).unwrap();
    let mut removed: Vec<_> = removed.into_iter().flat_map(|item| item.paths).collect();
    removed.sort();
    let gone = [cache.directory().join(&left), cache.tars.join(&left), cache.tars.join(tar(1))];
    assert_eq!(removed, gone);
    cache.prune(&Keep { max_bytes: 0, used_since: None }).unwrap();
    let there = |directory| fs_err::read_dir(directory).unwrap().count();
    assert_eq!((there(&cache.segments), there(&cache.tars)), (4, 1));
    assert!(Cache::at(&scratch.path().join("none")).items().unwrap().is_empty());
}

/// A finished tar with the body of a segment, and the segment's key.
fn packed(cache: &Cache, at: &Path) -> (Digest, u64) {
    packed_with(cache, at, || {})
}

/// The same; something else happens before the tar has its name.
fn packed_with(cache: &Cache, at: &Path, meanwhile: impl FnOnce()) -> (Digest, u64) {
    let tar = Unnamed::new_in(at, 0o644).unwrap();
    let pack = cache.adopt(&tar, SHARED_MIN).unwrap();
    let key = Digest::of(b"packed");
    let slot = Slot::new(u64::MAX);
    let file = cache.new_file().unwrap();
    slot.give(Place { tar: Arc::clone(&pack.file), number: pack.number, offset: 512, stamp: 0 });
    let mut writer = Writer::new(file.file().try_clone().unwrap(), &key, slot).unwrap();
    writer.write_all(&[7; 1024]).unwrap();
    writer.end_body().unwrap();
    writer.write_all(b"an index").unwrap();
    let written = writer.finish().unwrap();
    written.seal(0, &FACTS).unwrap();
    cache.keep(file, &key, Some((&pack, 512 + 1024))).unwrap();
    meanwhile();
    cache.publish(&pack, || tar.publish_over(&at.join("images.tar"))).unwrap();
    pack.close();
    (key, pack.number)
}

#[test]
fn a_tar_that_is_being_written_outlives_a_prune() {
    let scratch = tempfile::tempdir().unwrap();
    let (at, directory) = (scratch.path(), scratch.path().join("cache"));
    let cache = Cache::open(&directory).unwrap();
    let all = Keep { max_bytes: 0, used_since: None };
    packed_with(&cache, at, || assert_eq!(Cache::at(&directory).prune(&all).unwrap().len(), 0));
    let whole = fs_err::read(at.join("images.tar")).unwrap();
    assert_eq!(fs_err::metadata(at.join("images.tar")).unwrap().nlink(), 2);
    assert_eq!(Cache::at(&directory).prune(&all).unwrap().len(), 1, "it is whole");
    // Not even this takes the tar away.
    packed_with(&cache, at, || fs_err::remove_dir_all(directory.join("tars")).unwrap());
    assert!(fs_err::read(at.join("images.tar")).unwrap() == whole);
}

fn read(segment: &Segment) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    segment.read(0, segment.body_len(), |_, part| {
        bytes.extend_from_slice(part);
        Ok::<_, Error>(())
    })?;
    Ok(bytes)
}

#[test]
fn a_tar_is_shared_while_nobody_touches_it() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let tar = at.join("images.tar");
    let fresh = || Cache::open(&at.join("cache")).unwrap();
    let (key, number) = packed(&fresh(), at);
    let segment = fresh().get(&key).unwrap();
    assert_eq!((segment.tar_number(), read(&segment).unwrap()), (number, vec![7; 1024]));
    // Nobody else may have the tar under another name, but its own may be replaced by itself.
    assert!(fresh().lend(number, &at.join("other.tar")).is_none());
    assert!(fresh().lend(number, &tar).is_some());
    fs_err::rename(&tar, at.join("renamed.tar")).unwrap();
    assert!(fresh().lend(number, &tar).is_none());
    let lender = fresh();
    fs_err::remove_file(at.join("renamed.tar")).unwrap();
    assert!(lender.lend(number, &tar).is_some());
    assert!(fresh().lend(number, &tar).is_none(), "another process is about to");
    drop(lender);
    // A group that may write to it could put anything there.
    let path = fresh().tar_path(number);
    for (mode, is_there) in [(0o644, true), (0o664, false)] {
        fs_err::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        assert_eq!(fresh().get(&key).is_some(), is_there, "{mode:o}");
    }
}

#[test]
fn a_tar_that_was_changed_is_not_believed() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let fresh = || Cache::open(&at.join("cache")).unwrap();
    let (key, _) = packed(&fresh(), at);
    let tar = File::options().write(true).open(at.join("images.tar")).unwrap();
    tar.write_all_at(b"x", 600).unwrap();
    let cache = fresh();
    assert!(cache.get(&key).is_none());
    cache.sweep();
    let (key, _) = packed(&fresh(), at);
    let tar = File::options().write(true).open(at.join("images.tar")).unwrap();
    tar.set_len(1000).unwrap();
    let cache = fresh();
    assert!(cache.get(&key).is_none());
    assert_eq!(cache.items().unwrap().iter().map(|item| item.segments).collect::<Vec<_>>(), [0]);
    cache.sweep();
    assert!(cache.items().unwrap().is_empty());
    assert!(fresh().get(&key).is_none());
}

/// Puts `bytes` into the body at `offset` of the tar, restores its time, and gives the segment the checksums of that: as an
/// attacker does that finds bytes with the same XXH3, which is easy.
fn forge(cache: &Cache, key: &Digest, tar: &Path, offset: u64, bytes: &[u8]) {
    // The kernel's clock has ticked since the tar was published.
    std::thread::sleep(Duration::from_millis(20));
    let file = File::options().read(true).write(true).open(tar).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(bytes, offset).unwrap();
    file.set_modified(modified).unwrap();
    let own = File::options().read(true).write(true).open(cache.path(key)).unwrap();
    let (trailer, _) = Trailer::read(&own, key).unwrap();
    let segment = Segment::open(own.try_clone().unwrap(), key, |_| {
        Ok(Some(BodyTar { file: Arc::new(file.try_clone().unwrap()), trust: Trust::Own }))
    })
    .unwrap();
    let (mut data, elsewhere) = (vec![0; (trailer.body + trailer.split + trailer.index) as usize], trailer.body);
    file.read_exact_at(&mut data[..elsewhere as usize], trailer.offset).unwrap();
    own.read_exact_at(&mut data[elsewhere as usize..], 0).unwrap();
    let sums = super::super::file::sum(&data, super::super::file::seed(key), 0).to_vec();
    let end = trailer.seal(key, sums, segment.facts()).unwrap();
    own.write_all_at(&end, data.len() as u64 - elsewhere).unwrap();
    // The checksums have nothing against it.
    read(&segment_with(cache, key, &file)).unwrap();
}

fn segment_with(cache: &Cache, key: &Digest, tar: &File) -> Segment {
    let own = open_ours(&cache.path(key)).unwrap().unwrap();
    let tar = BodyTar { file: Arc::new(tar.try_clone().unwrap()), trust: Trust::Own };
    Segment::open(own, key, |_| Ok(Some(tar))).unwrap()
}

#[test]
fn segments_seen_to_be_right_are_written_down_for_many_at_once() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let cache = Cache::open(&at.join("cache")).unwrap();
    let (key, number) = packed(&cache, at);
    let stamp = cache.get(&key).unwrap().stamp().unwrap();
    let written = || Seen::read(&cache.seen_path(number)).unwrap().segments.len();
    let counts = [1_u8, 2, 3, 4].map(|other| {
        cache.note(number, &Digest::of(&[other]), stamp);
        written()
    });
    assert_eq!(counts, [2, 2, 4, 4]);
    cache.save_seen();
    assert_eq!(written(), 5);
}

#[test]
fn a_forged_body_with_right_checksums_is_found() {
    let scratch = tempfile::tempdir().unwrap();
    let (at, tar) = (scratch.path(), scratch.path().join("images.tar"));
    let fresh = || Cache::open(&at.join("cache")).unwrap();
    let (key, _) = packed(&fresh(), at);
    // A segment that is in use, as a mount has it, finds it at its next read.
    let used = fresh().get(&key).unwrap();
    assert_eq!(read(&used).unwrap(), [7; 1024]);
    forge(&fresh(), &key, &tar, 600, b"forged");
    let mut part = [0; 8];
    assert!(matches!(used.read_unchecked(88, &mut part), Err(Error::Damaged)));
    assert!(matches!(read(&used), Err(Error::Damaged)));
    assert!(fresh().get(&key).is_none());
}

#[test]
fn a_tar_that_only_lost_a_name_is_hashed_once() {
    let scratch = tempfile::tempdir().unwrap();
    let (at, tar) = (scratch.path(), scratch.path().join("images.tar"));
    let fresh = || Cache::open(&at.join("cache")).unwrap();
    let (key, number) = packed(&fresh(), at);
    let seen = || Seen::read(&fresh().seen_path(number)).unwrap();
    let published = seen();
    assert!(fresh().get(&key).is_some());
    assert_eq!(seen(), published, "nothing had to be hashed");
    let used = fresh().get(&key).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    fs_err::remove_file(&tar).unwrap();
    assert!(fresh().get(&key).is_some());
    assert_ne!(seen().stamp, published.stamp);
    assert_eq!(read(&used).unwrap(), [7; 1024]);
    let again = seen();
    assert!(fresh().get(&key).is_some());
    assert_eq!(seen(), again);
    // What prepull itself changes costs nothing.
    let cache = fresh();
    assert!(cache.get(&key).is_some());
    std::thread::sleep(Duration::from_millis(20));
    let lent = File::options().write(true).open(fresh().tar_path(number)).unwrap();
    cache.touch(&lent, || lent.set_modified(SystemTime::now())).unwrap();
    let touched = seen();
    assert_ne!(touched.stamp, again.stamp);
    assert!(fresh().get(&key).is_some());
    assert_eq!(seen(), touched);
    // A record of somebody else, or none, is not believed.
    for text in ["", "{}", "null"] {
        fs_err::write(fresh().seen_path(number), text).unwrap();
        assert!(fresh().get(&key).is_some());
        assert_eq!(seen(), touched);
    }
}
