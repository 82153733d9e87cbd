//! Layers that are fetched when somebody reads them.

#![allow(
    clippy::disallowed_methods,
    reason = "the error's number is looked at, and processes that end meanwhile are no errors"
)]

use std::io::Read as _;
use std::path::Path;

use super::same::{compare, exact};
use super::{Mount, World, full, large, noise, number, on_base, until, wait_for};
use crate::command::needs_root;
use crate::raw::{archive, file};
use crate::stores::chain;

/// How many layers have been fetched.
fn fetched(world: &World) -> usize {
    fs_err::read_dir(world.cache().join("segments")).map_or(0, Iterator::count)
}

/// The file that only the topmost layer of an image has.
fn top(mount: &Mount, name: &str) -> std::path::PathBuf {
    let chain = chain(&mount.at, &full(name));
    mount.at.join("overlay").join(&chain[0]).join("diff").join(format!("only-{name}"))
}

#[test]
fn layers_come_when_they_are_read() {
    if !needs_root("mount::lazy::layers_come_when_they_are_read") {
        return;
    }
    let mut world = World::new();
    let items = [world.image("one", &on_base("one")), world.image("two", &on_base("two"))];
    let mount = world.mount("lazy", &["--lazy", &items[0], &items[1]]);
    assert_eq!(mount.names(), [full("one"), full("two")]);
    let layers = fs_err::read_dir(mount.at.join("overlay")).unwrap().filter(|entry| {
        let entry = entry.as_ref().unwrap().path();
        entry.join("link").exists() && fs_err::read_dir(&entry).unwrap().count() >= 5
    });
    assert_eq!(layers.count(), 4);
    assert_eq!(fetched(&world), 0, "nobody has read a layer");
    let lock = || fs_err::read_to_string(mount.at.join("overlay-layers/layers.lock")).unwrap();
    let before = lock();
    assert_eq!(before.len(), 64);
    // Several at once wait for the same.
    let (first, second) = (top(&mount, "one"), top(&mount, "one"));
    std::thread::scope(|scope| {
        let readers = [first, second].map(|path| scope.spawn(move || fs_err::read(path).unwrap()));
        for reader in readers {
            assert_eq!(reader.join().unwrap(), large("one"));
        }
    });
    assert_eq!(fetched(&world), 3, "one layer, and the two below it");
    assert_ne!(lock(), before, "who has read layers.json sees that it has changed");
    mount.kill_worker();
    assert_eq!(fs_err::read(top(&mount, "two")).unwrap(), large("two"));
    assert_eq!(fetched(&world), 4);
    // Also what is added later, and what else has been changed meanwhile.
    let three = world.image("three", &on_base("three"));
    mount.adds(&[&three]);
    assert_eq!(fetched(&world), 4);
    mount.removes(&[&full("two")]);
    assert_eq!(fs_err::read(top(&mount, "three")).unwrap(), large("three"));
    assert_eq!(mount.names(), [full("one"), full("three")]);
    assert_eq!(mount.status()["troubles"], serde_json::json!([]));
    // In the end it is what it would have been at once: also its time, which is that of the first images.
    let whole = world.mount("whole", &[&items[0], &three]);
    let report = compare(&exact(&mount.at), &exact(&whole.at));
    assert!(report.is_empty(), "{report}");
}

#[test]
fn layers_come_as_they_were_typed() {
    if !needs_root("mount::lazy::layers_come_as_they_were_typed") {
        return;
    }
    let mut world = World::new();
    let items =
        [world.image("one", &on_base("one")), world.image("two", &[archive(&[file("only-two").data(large("two"))])])];
    let mount = world.mount("lazy", &["--lazy", &items[0]]);
    // In another environment than the mount's.
    let elsewhere = world.at.join("elsewhere");
    let mut adds = world.prepull();
    adds.args(["mount", "add"]).arg(&mount.at).arg(&items[1]).env("XDG_CACHE_HOME", &elsewhere);
    super::ok(&mut adds);
    let there = || fs_err::read_dir(elsewhere.join("prepull/segments")).map_or(0, Iterator::count);
    assert_eq!((there(), fetched(&world)), (0, 0));
    assert_eq!(fs_err::read(top(&mount, "two")).unwrap(), large("two"));
    assert_eq!((there(), fetched(&world)), (1, 0));
    // Who is in it when it is unmounted gets the others, too.
    let layer = chain(&mount.at, &full("one")).remove(0);
    let inside = fs_err::File::open(mount.at.join("overlay").join(layer)).unwrap();
    super::ok(world.prepull().args(["umount", "--lazy"]).arg(&mount.at));
    let file = rustix::fs::openat(&inside, "diff/only-one", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
    let mut content = Vec::new();
    std::fs::File::from(file.unwrap()).read_to_end(&mut content).unwrap();
    assert_eq!(content, large("one"));
}

#[test]
fn a_layer_that_cannot_be_had_is_an_error_until_it_can() {
    if !needs_root("mount::lazy::a_layer_that_cannot_be_had_is_an_error_until_it_can") {
        return;
    }
    let mut world = World::new();
    let items = [world.image("one", &on_base("one")), world.image("two", &on_base("two"))];
    let mount = world.mount("lazy", &["--lazy", &items[0], &items[1]]);
    let largest = |directory: &Path| {
        let entries = fs_err::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        entries.max_by_key(|path| fs_err::metadata(path).unwrap().len()).unwrap()
    };
    // Busybox is in the lowest layer of both.
    let blob = largest(&world.layout.path.join("blobs/sha256"));
    let aside = world.at.join("aside");
    fs_err::rename(&blob, &aside).unwrap();
    for _ in 0..2 {
        let error = std::fs::read(top(&mount, "one")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EIO));
    }
    let troubles = mount.status()["troubles"].to_string();
    assert!(troubles.contains(blob.file_name().unwrap().to_str().unwrap()), "{troubles}");
    // Another one in its place is not taken for it.
    fs_err::write(&blob, fs_err::read(&aside).unwrap().split_last().unwrap().1).unwrap();
    assert!(std::fs::read(top(&mount, "one")).is_err());
    fs_err::rename(&aside, &blob).unwrap();
    assert_eq!(fs_err::read(top(&mount, "one")).unwrap(), large("one"));
    assert_eq!(fs_err::read(top(&mount, "two")).unwrap(), large("two"));
}

#[test]
fn who_waits_for_a_layer_can_be_interrupted_and_outlives_the_worker() {
    if !needs_root("mount::lazy::who_waits_for_a_layer_can_be_interrupted_and_outlives_the_worker") {
        return;
    }
    let mut world = World::new();
    let mut layers = on_base("one");
    // One that takes its time.
    layers.insert(0, archive(&[file("noise").data(noise("noise", 40_000_000))]));
    let item = world.image("one", &layers);
    for options in [&["--lazy"][..], &["--lazy", "--no-resend"]] {
        let is_resent = options.len() == 1;
        let _ = fs_err::remove_dir_all(world.cache());
        let name = if is_resent { "resent" } else { "not-resent" };
        let mount = world.mount(name, &[options, &[&item]].concat());
        // A fetcher that does not get on, since it has been stopped as soon as it was there.
        let fetcher = || {
            let of_keeper = |stat: &str| {
                stat.rsplit_once(") ")
                    .is_some_and(|(_, rest)| rest.split(' ').nth(1) == Some(mount.keeper.to_string().as_str()))
            };
            fs_err::read_dir("/proc").unwrap().find_map(|entry| {
                let path = entry.unwrap().path();
                let stat = std::fs::read_to_string(path.join("stat")).ok().filter(|stat| of_keeper(stat))?;
                let line = std::fs::read(path.join("cmdline")).ok()?;
                let is_it = line.split(|&byte| byte == 0).any(|word| word == b"mount-fetcher");
                is_it.then(|| stat.split(' ').next().unwrap().parse::<u32>().unwrap())
            })
        };
        let path = top(&mount, "one");
        let reading =
            || std::process::Command::new("cat").arg(&path).stdout(std::process::Stdio::null()).spawn().unwrap();
        let mut reader = reading();
        let mut stopped = None;
        until(|| {
            stopped = stopped.or_else(|| fetcher().inspect(|pid| super::kill(*pid, rustix::process::Signal::STOP)));
            stopped.is_some() || reader.try_wait().unwrap().is_some()
        });
        let fetcher = stopped.expect("a fetcher");
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(reader.try_wait().unwrap().is_none(), "it waits");
        super::kill(reader.id(), rustix::process::Signal::INT);
        wait_for("the one that was interrupted", || reader.try_wait().unwrap().is_some());
        let mut reader = reading();
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert!(reader.try_wait().unwrap().is_none());
        mount.kill_worker();
        if is_resent {
            std::thread::sleep(std::time::Duration::from_millis(200));
            assert!(reader.try_wait().unwrap().is_none(), "it still waits");
        } else {
            wait_for("the reader's error", || reader.try_wait().unwrap().is_some());
        }
        super::kill(fetcher, rustix::process::Signal::CONT);
        wait_for("the reader", || reader.try_wait().unwrap().is_some());
        assert_eq!(reader.wait().unwrap().success(), is_resent);
        assert_eq!(fs_err::read(top(&mount, "one")).unwrap(), large("one"));
        assert_eq!(number(&mount.status()["restarts"]), 1);
    }
}
