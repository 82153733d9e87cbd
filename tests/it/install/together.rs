//! podman, skopeo and prepull on one store at the same time.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::{World, base, full, ok, on_base, skopeo, top};
use crate::command::{needs_root, stderr};
use crate::faults::{all_right, figures, is_all};

#[test]
fn podman_and_skopeo_beside_it() {
    if !needs_root("install::together::podman_and_skopeo_beside_it") {
        return;
    }
    let mut world = World::new();
    let kept = world.image("kept", &base());
    let names = ["pulled", "built", "one", "two", "three"];
    let items: Vec<String> = names.iter().map(|name| world.image(name, &on_base(name))).collect();
    world.skopeo(&kept, &full("kept"));
    let world = &world;
    let record = world.record(&full("kept"));
    let long = Duration::from_secs(if is_all() { 300 } else { 20 });
    let end = Instant::now() + long;
    let rounds: [AtomicUsize; 6] = Default::default();
    let wrong = std::sync::Mutex::new(Vec::new());
    let complain = |text: String| wrong.lock().unwrap().push(text);
    let prepull = |verb: &str, argument: Option<&str>| {
        let output = world.prepull(verb).args(argument).output().unwrap();
        if !output.status.success() {
            complain(format!("prepull {verb} {argument:?}: {}", stderr(&output)));
        }
    };
    let podman = |run: &str, arguments: &[&str]| {
        let output = super::podman(&world.graph(), &world.at.join(run)).args(arguments).output().unwrap();
        if !output.status.success() {
            complain(format!("podman {arguments:?}: {}", stderr(&output)));
        }
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let again = AtomicUsize::new(0);
    let is_listed = |run: &str, name: &str, is_there: bool| {
        // podman asks for each image once more after it has listed all: whoever removes one meanwhile makes it fail. And skopeo
        // of Debian 12 records an image before it has a manifest.
        for attempt in 0.. {
            let mut command = super::podman(&world.graph(), &world.at.join(run));
            let output = command.args(["images", "--format", "{{.Repository}}:{{.Tag}}"]).output().unwrap();
            let (said, error) = (String::from_utf8_lossy(&output.stdout), stderr(&output));
            let is_race = error.contains("not known") || error.contains("file does not exist");
            if !output.status.success() && is_race && attempt < 100 {
                again.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let has = |name: &str| said.lines().any(|line| line == name);
            if has(&full(name)) != is_there || !has(&full("kept")) {
                complain(format!("podman lists {said:?}, and {name} should be there: {is_there}: {error}"));
            }
            return;
        }
    };
    std::thread::scope(|scope| {
        let (rounds, items, prepull, podman, is_listed) = (&rounds, &items, &prepull, &podman, &is_listed);
        let every = move |actor: usize, act: &dyn Fn(usize)| {
            while Instant::now() < end {
                act(rounds[actor].fetch_add(1, Ordering::Relaxed));
            }
        };
        scope.spawn(move || {
            every(0, &|_| {
                skopeo(&world.graph(), &world.at.join("run"), &items[0], &full("pulled"));
                is_listed("run", "pulled", true);
                podman("run", &["rmi", &full("pulled")]);
                is_listed("run", "pulled", false);
            });
        });
        scope.spawn(move || {
            every(1, &|_| {
                skopeo(&world.graph(), &world.at.join("run"), &items[1], &full("built"));
                podman("run", &["tag", &full("built"), "localhost/tagged:1"]);
                prepull("rm", Some("localhost/tagged:1"));
                is_listed("run", "built", true);
                prepull("rm", Some(&full("built")));
                is_listed("run", "built", false);
            });
        });
        for actor in 2..5 {
            scope.spawn(move || {
                every(actor, &|round| {
                    prepull("install", Some(&items[actor]));
                    if round % 5 == 0 {
                        is_listed("run", names[actor], true);
                    }
                    if round % 9 == 0 {
                        podman("run", &["rmi", &full(names[actor])]);
                    } else {
                        prepull("rm", Some(&full(names[actor])));
                    }
                });
            });
        }
        scope.spawn(move || {
            every(5, &|_| {
                prepull("gc", None);
                std::thread::sleep(Duration::from_millis(50));
            });
        });
    });
    let late = end.elapsed();
    let rounds: Vec<usize> = rounds.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    figures(&format!(
        "install: together for {} s: {} rounds of skopeo and podman, {} of skopeo, podman and prepull, {} of prepull install \
         and rm, {} of gc; podman listed anew {} times; {} complaints",
        long.as_secs(),
        rounds[0],
        rounds[1],
        rounds[2..5].iter().sum::<usize>(),
        rounds[5],
        again.into_inner(),
        wrong.lock().unwrap().len()
    ));
    all_right(&wrong.into_inner().unwrap());
    assert!(late < Duration::from_secs(30), "somebody hung for {late:?}");
    assert!(rounds.iter().all(|&count| count > 2), "{rounds:?}");
    assert_eq!(world.record(&full("kept")), record);
    assert_eq!(world.listed(), [full("kept")]);
    assert_eq!(world.layers().len(), 2);
    world.is_good();
}

#[test]
fn installs_at_once() {
    if !needs_root("install::together::installs_at_once") {
        return;
    }
    for _ in 0..if is_all() { 30 } else { 3 } {
        let mut world = World::new();
        let shared = world.image("shared", &on_base("shared"));
        let own: Vec<String> =
            (0..6).map(|at| world.image(&format!("own{at}"), &on_base(&format!("own{at}")))).collect();
        let world = &world;
        let shared = &shared;
        std::thread::scope(|scope| {
            for item in &own {
                scope.spawn(move || world.installs(&[shared, item]));
            }
        });
        assert_eq!(world.listed().len(), 7);
        assert_eq!(world.layers().len(), 9);
        world.is_good();
    }
}

/// Holds a lock of the store as another process would.
fn hold(world: &World, name: &str) -> fs_err::File {
    let file = fs_err::OpenOptions::new().read(true).write(true).open(world.graph().join(name)).unwrap();
    let whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&whole)).unwrap();
    file
}

const LOCKS: [&str; 3] = ["storage.lock", "overlay-layers/layers.lock", "overlay-images/images.lock"];

#[test]
fn who_holds_the_store_is_waited_for() {
    if !needs_root("install::together::who_holds_the_store_is_waited_for") {
        return;
    }
    let mut world = World::new();
    let one = world.image("one", &[top("one")]);
    world.skopeo(&one, &full("one"));
    for (at, name) in LOCKS.into_iter().enumerate() {
        let item = world.image(&format!("next{at}"), &[top("one"), top(name)]);
        let lock = hold(&world, name);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let install = scope.spawn(|| world.installs(&[&item]));
            std::thread::sleep(Duration::from_secs(2));
            assert!(!install.is_finished(), "{name}");
            drop(lock);
            install.join().unwrap();
        });
        assert!((Duration::from_secs(2)..Duration::from_secs(5)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        world.is_good();
    }
}

#[test]
fn who_never_lets_go_is_not_waited_for_forever() {
    if !needs_root("install::together::who_never_lets_go_is_not_waited_for_forever") {
        return;
    }
    let mut world = World::new();
    let (one, two) = (world.image("one", &[top("one")]), world.image("two", &[top("two")]));
    world.skopeo(&one, &full("one"));
    world.lets_root_write("max_seconds = 3");
    // A podman that somebody has stopped in the middle of its work.
    for name in LOCKS {
        let lock = hold(&world, name);
        let one_name = full("one");
        let before = world.state_inside();
        for (verb, argument) in [("install", Some(&two)), ("rm", Some(&one_name)), ("gc", None)] {
            let inner = world.prepull(verb);
            let mut command = world.as_root();
            command.arg(inner.get_program()).args(inner.get_args()).args(["--via", "sudo", "--helper"]);
            world.directly(&mut command);
            let begun = Instant::now();
            let output = command.arg(world.helper()).args(argument).output().unwrap();
            let said = stderr(&output);
            let file = name.rsplit('/').next().unwrap();
            assert_eq!(output.status.code(), Some(1), "{verb}: {said}");
            assert!(said.lines().count() == 1 && said.contains(&format!("{file} is locked")), "{verb}: {said}");
            assert!((Duration::from_secs(2)..Duration::from_secs(5)).contains(&begun.elapsed()), "{verb}");
            assert!(world.state_inside() == before, "{verb}: something changed");
        }
        drop(lock);
    }
    world.is_good();
    ok(world.prepull("install").arg(&two));
    world.is_good();
}

/// Ctrl-C while somebody else has the store.
#[test]
fn who_is_told_to_stop_does_not_wait() {
    if !needs_root("install::together::who_is_told_to_stop_does_not_wait") {
        return;
    }
    let mut world = World::new();
    let (one, two) = (world.image("one", &[top("one")]), world.image("two", &on_base("two")));
    world.skopeo(&one, &full("one"));
    world.lets_root_write("");
    let before = world.records();
    for via in ["own", "sudo"] {
        let lock = hold(&world, LOCKS[2]);
        let inner = world.prepull("install");
        let mut command = world.as_root();
        command.arg(inner.get_program()).args(inner.get_args()).args(["--via", via, "--helper"]).arg(world.helper());
        world.directly(&mut command);
        let mut child = command.arg(&two).process_group(0).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_secs(1));
        let begun = Instant::now();
        rustix::process::kill_process_group(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
            .unwrap();
        let status = child.wait().unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(status.code(), Some(130), "{via}: {said}");
        assert_eq!(said, "prepull: interrupted\n", "{via}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{via}: {:?}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(200));
        drop(lock);
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(world.records(), before, "{via}");
    }
    ok(world.prepull("install").arg(&two));
    world.is_good();
}

/// Whatever a service says of what it has left, it is asked once more and not for ever.
#[test]
fn a_service_that_has_always_left_something() {
    let work = tempfile::tempdir().unwrap();
    let (path, root) = (work.path().join("socket"), work.path().join("root"));
    fs_err::create_dir(&root).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let asked = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                let mut request = Vec::new();
                connection.read_to_end(&mut request).unwrap();
                if request.is_empty() || asked.fetch_add(1, Ordering::Relaxed) > 100 {
                    return;
                }
                connection.write_all(b"{\"left\":true}\n").unwrap();
            }
        });
        let mut command = crate::command::prepull(work.path());
        command.args(["gc", "--via", "socket", "--socket"]).arg(&path).arg("--root").arg(&root);
        let output = command.output().unwrap();
        drop(UnixStream::connect(&path).unwrap());
        assert!(output.status.success() && stderr(&output).contains("could not be removed yet"), "{}", stderr(&output));
    });
    // The question whether it works, the request, and what is left of each.
    assert!(asked.load(Ordering::Relaxed) <= 4, "{asked:?}");
}
