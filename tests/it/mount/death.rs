//! Whatever dies: who reads gets every byte, or at least an end.

use std::io::{BufRead as _, BufReader, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, Mode, OFlags};
use rustix::process::Signal;
use serde_json::Value;

use super::{Mount, World, full, has_ended, kill, noise, number, on_base, until, wait_for};
use crate::command::{fails, needs_root, stderr, succeeds};
use crate::raw::{archive, dir, file};
use crate::stores::{Mount as Overlay, chain};

/// Bytes of the large file.
const LARGE: usize = 6_000_000;

/// Directories and files in each, which are not looked at before.
const DIRECTORIES: usize = 400;
const FILES: usize = 20;

/// An image with a large file, many small ones, and attributes: the kernel keeps none of these, and asks each time.
fn image(world: &mut World, name: &str) -> String {
    let mut entries = vec![
        file("large").data(noise("large", LARGE)).xattr("user.some", "value"),
        file("also").data(noise("also", LARGE)),
        dir("many/"),
    ];
    for directory in 0..DIRECTORIES {
        entries.push(dir(format!("many/{directory}/")));
        entries.extend((0..FILES).map(|number| file(format!("many/{directory}/{number}")).mode(0o640)));
    }
    let layers = [archive(&entries), archive(&[file("top").data(name)])];
    world.image(name, &layers)
}

/// The directory of the layer with these files.
fn layer(mount: &Mount, image: &str) -> PathBuf {
    mount.at.join("overlay").join(chain(&mount.at, image).last().unwrap()).join("diff")
}

/// Reads a file; `DIRECT` with nothing of it in memory.
fn read(path: &Path, flags: OFlags) -> Result<Vec<u8>, String> {
    let said = |error: rustix::io::Errno| format!("{} {flags:?}: {error}", path.display());
    let file = rustix::fs::open(path, OFlags::RDONLY | flags, Mode::empty()).map_err(said)?;
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).map_err(said)?;
    whole(&file).map_err(said)
}

fn whole(file: &OwnedFd) -> Result<Vec<u8>, rustix::io::Errno> {
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 1 << 20]);
    loop {
        match rustix::io::pread(file, &mut buffer, bytes.len() as u64)? {
            0 => return Ok(bytes),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

/// Readers that go on until they are told to stop.
struct Readers {
    threads: Vec<JoinHandle<Result<usize, String>>>,
    stop: &'static AtomicBool,
}

impl Readers {
    fn new() -> Self {
        Self { threads: Vec::new(), stop: Box::leak(Box::new(AtomicBool::new(false))) }
    }

    /// Does `work`, with a count of how often, again and again.
    fn run(&mut self, work: impl Fn(usize) -> Result<(), String> + Send + 'static) {
        let stop = self.stop;
        self.threads.push(std::thread::spawn(move || {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                work(count)?;
                count += 1;
            }
            Ok(count)
        }));
    }

    /// All kinds of them, in the directory `root` that has the image's files.
    fn all(&mut self, root: &Path) {
        for (name, flags) in [("large", OFlags::DIRECT), ("also", OFlags::empty())] {
            let (path, expected) = (root.join(name), noise(name, LARGE));
            self.run(move |_| match read(&path, flags)? == expected {
                true => Ok(()),
                false => Err(format!("{} {flags:?}: wrong bytes", path.display())),
            });
        }
        let root = root.to_owned();
        self.run(move |count| {
            attributes(&root)?;
            let directory = root.join(format!("many/{}", count % DIRECTORIES));
            let names = fs_err::read_dir(&directory).map_err(|error| error.to_string())?;
            let names: Vec<_> = names.map(|entry| entry.unwrap().path()).collect();
            if names.len() != FILES {
                return Err(format!("{}: {} names", directory.display(), names.len()));
            }
            for path in names {
                let inside = format!("many/{}/{}", count % DIRECTORIES, path.file_name().unwrap().display());
                let mode = fs_err::symlink_metadata(&path).map_err(|error| error.to_string())?.mode();
                let content = fs_err::read(&path).map_err(|error| error.to_string())?;
                if mode != 0o100_640 || content != inside.as_bytes() {
                    return Err(format!("{}: mode {mode:o}, {}", path.display(), content.escape_ascii()));
                }
            }
            Ok(())
        });
    }

    /// Ends them; gives how often they have read. None may have had an error.
    #[track_caller]
    fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let results: Vec<_> = self.threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        let wrong: Vec<&String> = results.iter().filter_map(|result| result.as_ref().err()).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        results.into_iter().flatten().sum()
    }
}

/// What the kernel keeps nothing of.
fn attributes(root: &Path) -> Result<(), String> {
    let mut value = [MaybeUninit::uninit(); 100];
    let got = rustix::fs::lgetxattr(root.join("large"), "user.some", &mut value).map_err(|error| error.to_string())?.0;
    let bytes = rustix::fs::statvfs(root).map_err(|error| error.to_string())?.f_blocks;
    if got != b"value" || bytes == 0 { Err(format!("{got:?}, {bytes} blocks")) } else { Ok(()) }
}

#[test]
fn readers_do_not_notice_twenty_dead_workers() {
    if !needs_root("mount::death::readers_do_not_notice_twenty_dead_workers") {
        return;
    }
    let mut world = World::new();
    let item = image(&mut world, "one");
    let mount = world.mount("mnt", &[item]);
    let overlay = world.at.join("merged");
    let above = Overlay::overlay(&mount.at, &chain(&mount.at, &full("one")), &overlay);
    let mut readers = Readers::new();
    readers.all(&layer(&mount, &full("one")));
    readers.all(&overlay);
    for round in 0_u64..20 {
        std::thread::sleep(Duration::from_millis(20 + round * 37 % 90));
        mount.kill_worker();
    }
    let times = readers.end();
    eprintln!("20 workers killed, {times} reads by 6 readers");
    assert!(times > 40, "{times}");
    assert_eq!(mount.status()["restarts"], 20);
    drop(above);
}

#[test]
fn readers_do_not_notice_what_dies_while_images_change() {
    if !needs_root("mount::death::readers_do_not_notice_what_dies_while_images_change") {
        return;
    }
    let mut world = World::new();
    let item = image(&mut world, "one");
    let other = world.image("other", &on_base("other"));
    let mount = world.mount("mnt", &[&item]);
    let overlay = world.at.join("merged");
    let above = Overlay::overlay(&mount.at, &chain(&mount.at, &full("one")), &overlay);
    let mut readers = Readers::new();
    readers.all(&layer(&mount, &full("one")));
    readers.all(&overlay);
    let (done, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut is_there = false;
            while !is_over.load(Ordering::Relaxed) {
                let mut change = match is_there {
                    false => mount.changing("add", &[&other]),
                    true => mount.changing("rm", &[&full("other")]),
                };
                let output = change.output().unwrap();
                if output.status.success() {
                    is_there = !is_there;
                    done.fetch_add(1, Ordering::Relaxed);
                } else {
                    // The worker that was to show it has died: it is as it was, and says so.
                    let said = stderr(&output);
                    assert!(said.contains("the worker has died"), "{said}");
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                assert_eq!(mount.names().contains(&full("other")), is_there);
            }
        });
        for round in 0_u64..20 {
            std::thread::sleep(Duration::from_millis(20 + round * 53 % 110));
            mount.kill_worker();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let times = readers.end();
    let (done, refused) = (done.into_inner(), refused.into_inner());
    eprintln!("20 workers killed during {done} changes and {refused} that came to nothing; {times} reads by 6 readers");
    assert!(done > 5, "{done}");
    drop(above);
}

#[test]
fn a_worker_that_hangs_is_waited_for() {
    if !needs_root("mount::death::a_worker_that_hangs_is_waited_for") {
        return;
    }
    let mut world = World::new();
    let item = image(&mut world, "one");
    let mount = world.mount("mnt", &[item]);
    let root = layer(&mount, &full("one"));
    kill(number(&mount.status()["worker"]), Signal::STOP);
    let mut readers = Readers::new();
    let done: &AtomicUsize = Box::leak(Box::new(AtomicUsize::new(0)));
    for name in ["large", "also"] {
        let (path, expected) = (root.join(name), noise(name, LARGE));
        readers.run(move |_| {
            let is_right = read(&path, OFlags::DIRECT)? == expected;
            done.fetch_add(1, Ordering::Relaxed);
            if is_right { Ok(()) } else { Err("wrong bytes".to_owned()) }
        });
    }
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(done.load(Ordering::Relaxed), 0, "who has read it?");
    // One that is killed before it has said that it serves.
    mount.kill_worker();
    wait_for("readers", || done.load(Ordering::Relaxed) > 4);
    readers.end();
}

/// Where the keeper listens.
fn socket(mount: &Path) -> PathBuf {
    let device = fs_err::metadata(mount).unwrap().dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    PathBuf::from(format!("/run/prepull/mounts/{major}:{minor}"))
}

fn is_mounted(at: &Path) -> bool {
    let device = |path: &Path| fs_err::symlink_metadata(path).map(|found| found.dev());
    // What nobody serves cannot be looked at.
    device(at).map_or(true, |own| own != device(at.parent().unwrap()).unwrap())
}

#[test]
fn signals_unmount_and_leave_nothing() {
    if !needs_root("mount::death::signals_unmount_and_leave_nothing") {
        return;
    }
    let mut world = World::new();
    let item = world.image("one", &on_base("one"));
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mount = world.mount("mnt", &[&item]);
        let (worker, socket) = (number(&mount.status()["worker"]), socket(&mount.at));
        assert!(socket.exists());
        kill(mount.keeper, signal);
        wait_for("the keeper", || has_ended(mount.keeper));
        assert!(!is_mounted(&mount.at) && !socket.exists(), "{signal:?}");
        wait_for("the worker", || has_ended(worker));
    }
    // In the foreground: to the keeper, and to the process that was started.
    for (to_keeper, signal) in [(true, Signal::TERM), (false, Signal::TERM), (false, Signal::INT), (false, Signal::HUP)]
    {
        let mut command = world.mounting(&world.at.join("mnt"));
        let mut child =
            command.args(["--foreground", &item]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let status: Value = serde_json::from_str(&line).unwrap();
        let (keeper, worker) = (number(&status["keeper"]), number(&status["worker"]));
        let socket = socket(&world.at.join("mnt"));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!has_ended(child.id()));
        kill(if to_keeper { keeper } else { child.id() }, signal);
        let ended = child.wait().unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(ended.success() && said.is_empty(), "{signal:?}: {ended}: {said}");
        assert!(!is_mounted(&world.at.join("mnt")) && !socket.exists(), "{signal:?}");
        wait_for("both", || has_ended(keeper) && has_ended(worker));
    }
}

/// As `nohup prepull mount`, or in the background of a script, when the terminal goes.
#[test]
fn signals_that_are_ignored_stay_ignored() {
    if !needs_root("mount::death::signals_that_are_ignored_stay_ignored") {
        return;
    }
    let mut world = World::new();
    let item = world.image("one", &on_base("one"));
    for ignored in [&[Signal::HUP][..], &[Signal::HUP, Signal::INT]] {
        let at = world.at.join("mnt");
        fs_err::create_dir_all(&at).unwrap();
        let inner = world.mounting(&at);
        let mut command = Command::new("sh");
        let names = if ignored.len() == 1 { "HUP" } else { "HUP INT" };
        command.args(["-c", &format!("trap '' {names}; exec \"$@\""), "sh"]).arg(inner.get_program());
        command.args(inner.get_args()).arg(&item).env("HOME", world.at.join("home"));
        let mount = Mount::of(&world, at, &succeeds(&mut command));
        for signal in ignored {
            kill(mount.keeper, *signal);
        }
        std::thread::sleep(Duration::from_millis(300));
        assert!(is_mounted(&mount.at) && mount.names() == [full("one")], "{ignored:?}");
        kill(mount.keeper, if ignored.contains(&Signal::INT) { Signal::TERM } else { Signal::INT });
        wait_for("the keeper", || has_ended(mount.keeper));
        assert!(!is_mounted(&mount.at), "{ignored:?}");
    }
}

#[test]
fn who_has_a_file_open_reads_it_to_its_end() {
    if !needs_root("mount::death::who_has_a_file_open_reads_it_to_its_end") {
        return;
    }
    let mut world = World::new();
    let item = image(&mut world, "one");
    for signal in [Some(Signal::TERM), None] {
        let mount = world.mount("mnt", &[&item]);
        let path = layer(&mount, &full("one")).join("also");
        let open = rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECT, Mode::empty()).unwrap();
        let worker = number(&mount.status()["worker"]);
        match signal {
            Some(signal) => kill(mount.keeper, signal),
            None => {
                fails(&mut mount.prepull(&["umount"]), 1, "in use (prepull umount --lazy ");
                assert!(is_mounted(&mount.at));
                succeeds(&mut mount.prepull(&["umount", "--lazy", "--quiet"]));
            }
        }
        wait_for("unmounting", || !is_mounted(&mount.at));
        assert_eq!(fs_err::read_dir(&mount.at).unwrap().count(), 0);
        assert!(whole(&open).unwrap() == noise("also", LARGE));
        // Also by another worker.
        kill(worker, Signal::KILL);
        assert!(whole(&open).unwrap() == noise("also", LARGE));
        assert!(!has_ended(mount.keeper));
        // The place is free for another one meanwhile.
        drop(world.mount("mnt", &[&item]));
        drop(open);
        wait_for("the keeper", || has_ended(mount.keeper));
    }
    // Told twice, it ends at once: the reader gets an error, and does not wait.
    let mount = world.mount("mnt", &[&item]);
    let path = layer(&mount, &full("one")).join("also");
    let open = rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECT, Mode::empty()).unwrap();
    let worker = number(&mount.status()["worker"]);
    kill(mount.keeper, Signal::TERM);
    wait_for("unmounting", || !is_mounted(&mount.at));
    kill(mount.keeper, Signal::TERM);
    wait_for("the keeper", || has_ended(mount.keeper));
    let begun = Instant::now();
    let ended = until(|| whole(&open).is_err() || has_ended(worker));
    assert!(ended, "the worker goes on without a keeper");
    assert!(whole(&open).is_err());
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_keeper_that_is_killed_can_be_cleaned_up_after() {
    if !needs_root("mount::death::a_keeper_that_is_killed_can_be_cleaned_up_after") {
        return;
    }
    let mut world = World::new();
    let item = image(&mut world, "one");
    // The worker goes on, or is killed as well, before or after.
    for case in 0..3 {
        let mount = world.mount("mnt", &[&item]);
        let path = layer(&mount, &full("one")).join("also");
        let worker = number(&mount.status()["worker"]);
        if case == 1 {
            kill(worker, Signal::STOP);
        }
        kill(mount.keeper, Signal::KILL);
        wait_for("the keeper", || has_ended(mount.keeper));
        if case == 0 {
            assert!(read(&path, OFlags::DIRECT).unwrap() == noise("also", LARGE));
        } else {
            kill(worker, Signal::KILL);
            wait_for("the worker", || has_ended(worker));
            let error = read(&path, OFlags::DIRECT).unwrap_err();
            assert!(error.contains("not connected") || error.contains("connection abort"), "{error}");
        }
        fails(&mut mount.prepull(&["mount", "status"]), 1, "its keeper has died");
        fails(&mut mount.changing("add", &[&item]), 1, "its keeper has died");
        let again = world.mounting(&mount.at).arg(&item).output().unwrap();
        assert_eq!(again.status.code(), Some(2), "{}", stderr(&again));
        assert!(stderr(&again).contains("already (prepull mount add, or umount)"), "{}", stderr(&again));
        assert!(is_mounted(&mount.at));
        succeeds(&mut mount.prepull(&["umount", "--quiet"]));
        assert!(!is_mounted(&mount.at));
        wait_for("the worker", || has_ended(worker));
        let next = world.mount("mnt", &[&item]);
        assert!(read(&path, OFlags::DIRECT).unwrap() == noise("also", LARGE));
        assert_eq!(next.status()["restarts"], 0);
    }
}

#[test]
fn places_to_mount_at() {
    if !needs_root("mount::death::places_to_mount_at") {
        return;
    }
    use std::os::unix::ffi::OsStrExt as _;
    let mut world = World::new();
    let item = world.image("one", &on_base("one"));
    let at = |name: &[u8]| world.at.join(std::ffi::OsStr::from_bytes(name));
    fs_err::write(at(b"file"), "").unwrap();
    fails(world.mounting(&at(b"missing")).arg(&item), 2, "missing: make the directory first");
    fails(world.mounting(&at(b"file")).arg(&item), 2, "file: not a directory");
    fails(world.prepull().arg("umount").arg(at(b"missing")), 2, "prepull has mounted nothing there");
    fails(world.prepull().arg("umount").arg(&world.at), 2, "prepull has mounted nothing there");
    fails(world.prepull().args(["mount", "status"]).arg(&world.at), 1, "prepull has mounted nothing there");

    let busybox = fs_err::read("/bin/busybox").unwrap();
    // What is in it is hidden, and there again.
    fs_err::create_dir_all(at(b"full/of")).unwrap();
    let mount = world.mount("full", &["--force", &item]);
    assert!(!mount.at.join("of").exists());
    fails(world.mounting(&mount.at).arg(&item), 2, "mounted something there already");
    // By another name of it.
    std::os::unix::fs::symlink(&mount.at, at(b"link")).unwrap();
    fails(world.mounting(&at(b"link")).arg(&item), 2, "mounted something there already");
    succeeds(world.prepull().args(["mount", "status"]).arg(at(b"link")));
    fails(world.mounting(&mount.at.join("overlay/l/../../overlay")).args(["--force", "oci:/no/such:x"]), 2, "/no/such");
    succeeds(world.prepull().args(["umount", "-q"]).arg(at(b"full/../link")));
    assert!(mount.at.join("of").exists());
    drop(mount);

    for name in [
        &b"a b\tc"[..],
        b"quo\"te's",
        b"back\\slash\\040",
        b"new\nline",
        b"comma,colon:=",
        "\u{e9}t\u{e9}".as_bytes(),
        b"-x",
    ] {
        let place = at(name);
        fs_err::create_dir(&place).unwrap();
        let said = succeeds(world.mounting(&place).arg(&item));
        let status: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(status["mountpoint"].as_str().unwrap().as_bytes(), place.as_os_str().as_bytes());
        let mount = Mount::of(&world, place.clone(), &said);
        assert_eq!(mount.names(), [full("one")]);
        let line = status["storageConf"].as_str().unwrap();
        let parsed: toml::Table = line.parse().unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(parsed["additionalimagestores"][0].as_str().unwrap().as_bytes(), place.as_os_str().as_bytes());
        mount.kill_worker();
        assert_eq!(fs_err::read(layer(&mount, &full("one")).join("bin/busybox")).unwrap(), busybox);
        succeeds(&mut mount.prepull(&["umount", "--quiet"]));
        assert!(!is_mounted(&place), "{}", place.display());
    }
    // What cannot be written into storage.conf is no place.
    let place = at(b"no\xfftext");
    fs_err::create_dir(&place).unwrap();
    fails(world.mounting(&place).arg(&item), 2, "no\u{fffd}text: not UTF-8: storage.conf cannot name it");
    assert!(!is_mounted(&place));
}
