//! Processes that fetch, inflate and parse when root runs them. All tests need root.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use prepull::channel::{receive, send};
use prepull::entry::{Entry, Kind, Meta};
use prepull::helper::{REQUEST, VERSION};
use prepull::wire::{END, small_file};
use serde_json::{Value, json};

use crate::command::{needs_root, prepull, stderr, succeeds};
use crate::mount::{World, full, on_base, wait_for};
use crate::stores::GRAPHROOT;
use crate::support::fault_server::{Fault, FaultServer, Reply};

/// Checks every thread of a process: no capability, no way to any, a filter of system calls.
#[track_caller]
fn assert_confined(process: u32) {
    assert_left_with(process, 0);
}

/// The same of a process that has kept `capabilities`.
#[track_caller]
fn assert_left_with(process: u32, capabilities: u64) {
    let (permitted, effective) = (format!("CapPrm:\t{capabilities:016x}"), format!("CapEff:\t{capabilities:016x}"));
    let mut threads = 0;
    for thread in fs_err::read_dir(format!("/proc/{process}/task")).unwrap() {
        // A thread may have ended meanwhile.
        let Ok(status) = fs_err::read_to_string(thread.unwrap().path().join("status")) else { continue };
        for line in [
            "CapInh:\t0000000000000000",
            &permitted,
            &effective,
            "CapBnd:\t0000000000000000",
            "CapAmb:\t0000000000000000",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
        ] {
            assert!(status.contains(line), "{line}: {status}");
        }
        threads += 1;
    }
    assert!(threads > 0);
}

#[test]
fn c08_a_compromised_process_of_roots_reaches_nothing() {
    if !needs_root("findings::confined::c08_a_compromised_process_of_roots_reaches_nothing") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let own = scratch.path().join("own");
    fs_err::create_dir(&own).unwrap();
    let example = Path::new(env!("CARGO_BIN_EXE_prepull")).with_file_name("examples").join("confined_front");
    assert!(example.exists(), "{} is missing: cargo build --example confined_front", example.display());
    let shadow = fs_err::metadata("/etc/shadow").unwrap().permissions().mode();
    for mode in [&[][..], &["trees"]] {
        if !mode.is_empty() {
            // A directory of a machine's, which is only read.
            fs_err::write(own.join("file"), "").unwrap();
            rustix::fs::setxattr(own.join("file"), "trusted.prepull", b"seen", rustix::fs::XattrFlags::empty())
                .unwrap();
            fs_err::write(own.join("closed"), "").unwrap();
            fs_err::set_permissions(own.join("closed"), PermissionsExt::from_mode(0o600)).unwrap();
            chown(own.join("closed"), Some(1000), Some(1000)).unwrap();
        }
        let said = succeeds(Command::new(&example).arg(&own).args(mode));
        let mut lines = 0;
        for line in said.lines() {
            let expected = if line.starts_with('!') { ": refused: " } else { ": done" };
            assert!(line.contains(expected), "{mode:?}: {line}\n{said}");
            lines += 1;
        }
        assert!(lines > 25, "{said}");
    }
    assert_eq!(fs_err::metadata("/etc/shadow").unwrap().permissions().mode(), shadow);
    assert!(!scratch.path().join("own.outside").exists());
}

#[test]
fn c08_make_as_root_fetches_without_capabilities() {
    if !needs_root("findings::confined::c08_make_as_root_fetches_without_capabilities") {
        return;
    }
    let server = FaultServer::start(|_, _| Reply::new(200, vec![b'x'; 1000]).fault(Fault::StallAfter(10)));
    let scratch = tempfile::tempdir().unwrap();
    let mut command = prepull(scratch.path());
    command.args(["make", "--quiet", "--tls-verify=false", "-o"]).arg(scratch.path().join("x.tar"));
    command.arg(format!("{}/slow:1", server.host())).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    wait_for("a request", || !server.seen("").is_empty());
    assert_confined(child.id());
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Starts a registry with the only image of `world` as `slow:1`, whose layers do not come to their end.
fn stalling(world: &World) -> FaultServer {
    let blobs: BTreeMap<String, Vec<u8>> = fs_err::read_dir(world.layout.path.join("blobs/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs_err::read(&path).unwrap()))
        .collect();
    let index: Value = serde_json::from_slice(&fs_err::read(world.layout.path.join("index.json")).unwrap()).unwrap();
    let manifest = index["manifests"][0]["digest"].as_str().unwrap()["sha256:".len()..].to_owned();
    FaultServer::start(move |seen, _| {
        let digest = seen.path.rsplit_once("sha256:").map_or(manifest.as_str(), |(_, digest)| digest);
        match blobs.get(digest) {
            _ if seen.path == "/v2/" => Reply::new(200, "{}"),
            Some(blob) if seen.path.contains("/manifests/") => {
                Reply::new(200, blob.clone()).header("Content-Type", "application/vnd.oci.image.manifest.v1+json")
            }
            Some(blob) if blob.starts_with(&[0x1f, 0x8b]) => Reply::new(200, blob.clone()).fault(Fault::StallAfter(20)),
            Some(blob) => Reply::new(200, blob.clone()),
            None => Reply::new(404, ""),
        }
    })
}

#[test]
fn c08_a_lazy_mount_fetches_without_capabilities() {
    if !needs_root("findings::confined::c08_a_lazy_mount_fetches_without_capabilities") {
        return;
    }
    let mut world = World::new();
    world.image("slow", &on_base("slow"));
    let server = stalling(&world);
    let item = format!("{}/slow:1", server.host());
    let mount = world.mount("mnt", &["--lazy", "--tls-verify=false", &format!("{item}={}", full("slow"))]);
    let chain = crate::stores::chain(&mount.at, &full("slow"));
    let at = mount.at.join("overlay").join(&chain[0]).join("diff");
    let layers = || server.seen("").iter().filter(|seen| seen.path.contains("/blobs/")).count();
    let before = layers();
    let reading = std::thread::spawn(move || drop(fs_err::read_dir(at)));
    // A thread of the keeper's has started it.
    let fetcher = || {
        let tasks = fs_err::read_dir(format!("/proc/{}/task", mount.keeper)).unwrap().flatten();
        let children = tasks.filter_map(|task| fs_err::read_to_string(task.path().join("children")).ok());
        let children = children.collect::<Vec<_>>().join(" ");
        children.split_whitespace().map(|process| process.parse::<u32>().unwrap()).find(|process| {
            let line = fs_err::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            line.windows(13).any(|part| part == b"mount-fetcher")
        })
    };
    wait_for("a fetcher that fetches", || fetcher().is_some() && layers() > before);
    let process = fetcher().unwrap();
    assert_confined(process);
    crate::mount::kill(process, rustix::process::Signal::KILL);
    reading.join().unwrap();
}

/// Returns the hidden commands of prepull's that are children of this process, with their numbers.
fn children(process: u32) -> BTreeMap<String, u32> {
    let children = fs_err::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap();
    let children = children.split_whitespace().map(|child| child.parse::<u32>().unwrap());
    let word = |child: u32| {
        let line = fs_err::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(line.split(|&byte| byte == 0).nth(1).unwrap_or_default()).into_owned()
    };
    children.map(|child| (word(child), child)).collect()
}

#[test]
fn c08_mount_and_mount_add_as_root_fetch_without_capabilities() {
    if !needs_root("findings::confined::c08_mount_and_mount_add_as_root_fetch_without_capabilities") {
        return;
    }
    let mut world = World::new();
    let one = world.image("one", &on_base("one"));
    let server = FaultServer::start(|_, _| Reply::new(200, vec![b'x'; 1000]).fault(Fault::StallAfter(10)));
    let slow = format!("{}/slow:1", server.host());
    let mount = world.mount("mnt", &[&one]);
    let empty = world.at.join("empty");
    fs_err::create_dir(&empty).unwrap();
    let conf = world.at.join("storage.conf");
    let mut mounting = world.mounting(&empty);
    mounting.arg("--write-storage-conf").arg(&conf);
    let adding = mount.changing("add", &[]);
    for (mut command, privileged) in [(mounting, "mount-keeper"), (adding, "mount-relay")] {
        let before = server.seen("").len();
        command.args(["--tls-verify=false", &slow]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        wait_for("a request", || server.seen("").len() > before);
        assert_confined(child.id());
        let children = children(child.id());
        assert_eq!(children.keys().collect::<Vec<_>>(), [privileged]);
        // What has the privileges has no network: its end of a socket pair is all.
        let other = children[privileged];
        let sockets = fs_err::read_dir(format!("/proc/{other}/fd")).unwrap().flatten();
        let sockets = sockets.filter_map(|entry| fs_err::read_link(entry.path()).ok());
        let sockets: Vec<_> = sockets.filter(|path| path.to_string_lossy().starts_with("socket:")).collect();
        assert!((1..=4).contains(&sockets.len()), "{sockets:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        // It ends with the process that it was there for.
        wait_for("its end", || crate::mount::has_ended(other));
    }
    assert!(!conf.exists());
    assert!(fs_err::read_dir(&empty).unwrap().next().is_none());
    assert_eq!(mount.names(), [full("one")]);
}

/// A front that has been taken over is confined, but a fetcher is started with root's privileges later on, and gives up what the
/// command line that it is told does not name.
#[test]
fn c08_a_compromised_front_adds_no_sources_that_nobody_has_typed() {
    if !needs_root("findings::confined::c08_a_compromised_front_adds_no_sources_that_nobody_has_typed") {
        return;
    }
    let mut world = World::new();
    let one = world.image("one", &on_base("one"));
    let mount = world.mount("mnt", &["--lazy", &one]);
    let empty = world.at.join("empty");
    fs_err::create_dir(&empty).unwrap();
    let start = |word: &str, begin: &Value| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = world.prepull();
        let child = command.arg(word).stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        drop(command);
        send(&ours, begin, &[]).unwrap();
        (ours, child.unwrap())
    };
    let (relay, mut child) = start("mount-relay", &json!({"mountpoint": &mount.at, "allowed": []}));
    let ask = |ask: &Value| -> Value {
        send(&relay, ask, &[]).unwrap();
        receive(&relay).unwrap().unwrap().0
    };
    let scene = ask(&json!("Get"))["Scene"].clone();
    let put = |scene: &Value| json!({"Put": {"scene": scene, "generation": scene["generation"]}});
    let word = |word: &str| json!({"Unix": word.as_bytes()});
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut scene = scene.clone();
        change(&mut scene["lazy"]);
        scene
    };
    let attacks = [
        // Another directory to write to.
        changed(&|lazy| {
            let words = lazy["commands"][0]["words"].as_array_mut().unwrap();
            words.extend(["--cache-dir", "/etc"].map(word));
        }),
        // Programs of the attacker's.
        changed(&|lazy| {
            let variables = lazy["commands"][0]["environment"].as_array_mut().unwrap();
            variables.push(json!([word("PATH"), word("/tmp")]));
        }),
        changed(&|lazy| {
            let more = lazy["commands"][0].clone();
            lazy["commands"].as_array_mut().unwrap().push(more);
            lazy["commands"][1]["directory"] = "/root".into();
            for (_, of_blob) in lazy["items"].as_object_mut().unwrap() {
                of_blob[1] = 1.into();
            }
        }),
        // Files to read.
        changed(&|lazy| {
            for (_, of_blob) in lazy["items"].as_object_mut().unwrap() {
                of_blob[0] = "oci:/root".into();
            }
        }),
    ];
    let why = "layers come from elsewhere than was typed";
    for scene in &attacks {
        let answer = ask(&put(scene));
        assert_eq!(answer["Unreachable"], why, "{answer}");
        // A keeper that is being started has been told by the same command line.
        let start_of = json!({
            "mountpoint": &empty, "others": false, "foreground": false, "no_resend": false, "mounted": null, "turn": 0,
            "scene": null,
        });
        let (keeper, mut child) =
            start("mount-keeper", &json!({"start": start_of, "allowed": [], "storage_conf": null}));
        send(&keeper, scene, &[]).unwrap();
        let answer: Value = receive(&keeper).unwrap().unwrap().0;
        assert_eq!(answer["Failed"], why, "{answer}");
        assert!(!child.wait().unwrap().success());
    }
    drop(relay);
    assert!(child.wait().unwrap().success());
    // The mount is as it was, and its own sources do.
    let chain = crate::stores::chain(&mount.at, &full("one"));
    let at = mount.at.join("overlay").join(&chain[0]).join("diff");
    assert!(fs_err::read_dir(at).unwrap().next().is_some());
}

#[test]
fn c08_what_a_fetcher_of_roots_keeps_is_said_where_the_keeper_says_what_is_wrong() {
    if !needs_root("findings::confined::c08_what_a_fetcher_of_roots_keeps_is_said_where_the_keeper_says_what_is_wrong")
    {
        return;
    }
    let mut world = World::new();
    let one = world.image("one", &on_base("one"));
    let mount = world.mount("mnt", &["--lazy", &one]);
    // It has become another user's meanwhile.
    let path = &world.layout.path;
    chown(path, Some(1000), Some(1000)).unwrap();
    fs_err::set_permissions(path, PermissionsExt::from_mode(0o700)).unwrap();
    let chain = crate::stores::chain(&mount.at, &full("one"));
    for layer in &chain {
        let at = mount.at.join("overlay").join(layer).join("diff");
        assert!(fs_err::read_dir(at).unwrap().next().is_some());
    }
    let status = mount.status();
    let troubles: Vec<&str> = status["troubles"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let expected = format!("keeping CAP_DAC_READ_SEARCH of root's: {} can be read by its owner only", path.display());
    assert_eq!(troubles, [expected], "{status}");
}

#[test]
fn c08_directories_are_read_with_two_capabilities() {
    if !needs_root("findings::confined::c08_directories_are_read_with_two_capabilities") {
        return;
    }
    let mut world = World::new();
    let one = world.image("one", &on_base("one"));
    let _ = world.unpacked("root", &[&one]);
    // A store on another disk, as the machine's own links lead to it; and a file that only its owner can read.
    let machine = world.at.join("root");
    fs_err::rename(machine.join("usr/lib/containers"), machine.join("disk")).unwrap();
    std::os::unix::fs::symlink("/disk", machine.join("usr/lib/containers")).unwrap();
    let closed = machine.join("disk/storage").join("overlay-images/images.json");
    fs_err::set_permissions(&closed, PermissionsExt::from_mode(0o600)).unwrap();
    chown(&closed, Some(1000), Some(1000)).unwrap();
    for command in ["ls", "verify"] {
        let output = world.prepull().arg(command).arg(&machine).output().unwrap();
        let said = stderr(&output);
        assert!(!said.contains("denied") && !said.contains("not permitted"), "{command}: {said}");
    }
    let tar = world.make("images.tar", &["--unpacker", "gnu"], &[&one]);
    let mut command = world.prepull();
    command.arg("diff").arg(&machine).arg("-").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let is_confined = || {
        fs_err::read_to_string(format!("/proc/{}/status", child.id()))
            .is_ok_and(|status| status.contains("Seccomp:\t2"))
    };
    wait_for("the filter", is_confined);
    // CAP_DAC_READ_SEARCH and CAP_SYS_ADMIN.
    assert_left_with(child.id(), 1 << 2 | 1 << 21);
    // It follows the machine's links all the same.
    std::io::copy(&mut fs_err::File::open(&tar).unwrap(), &mut child.stdin.take().unwrap()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = stderr(&output);
    assert!(matches!(output.status.code(), Some(0 | 1)) && !said.contains("error:"), "{}: {said}", output.status);
}

#[test]
fn c08_sources_and_outputs_of_users_still_work_and_it_is_said_what_that_takes() {
    if !needs_root("findings::confined::c08_sources_and_outputs_of_users_still_work_and_it_is_said_what_that_takes") {
        return;
    }
    let mut world = World::new();
    world.image("one", &on_base("one"));
    let home = world.at.join("user");
    fs_err::create_dir(&home).unwrap();
    let give = |path: &Path, mode: u32| {
        chown(path, Some(1000), Some(1000)).unwrap();
        fs_err::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    let source = home.join("oci");
    crate::mount::ok(Command::new("cp").arg("-r").arg(&world.layout.path).arg(&source));
    let making = |item: &Path, out: &Path| {
        let mut command = world.prepull();
        command
            .args(["make", "--quiet", "--platform", "linux/amd64", "--cache-dir"])
            .arg(world.cache())
            .arg("-o")
            .arg(out);
        let output = command.arg(format!("oci:{}:{}", item.display(), full("one"))).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output)
    };
    // Root's own, and readable by everybody: nothing is kept.
    let own = world.at.join("own.tar");
    assert_eq!(making(&source, &own), "");
    // A directory of the user's that is closed to all others.
    give(&home, 0o700);
    let said = making(&source, &own);
    assert!(said.contains("keeping CAP_DAC_READ_SEARCH of root's: ") && said.lines().count() == 1, "{said}");
    // One blob that is.
    give(&home, 0o755);
    let blob = fs_err::read_dir(source.join("blobs/sha256")).unwrap().next().unwrap().unwrap().path();
    give(&blob, 0o600);
    assert!(making(&source, &own).contains(&blob.display().to_string()));
    fs_err::set_permissions(&blob, PermissionsExt::from_mode(0o644)).unwrap();
    // A tar in the user's directory.
    let theirs = home.join("theirs.tar");
    let said = making(&source, &theirs);
    assert!(said.contains("keeping CAP_DAC_OVERRIDE of root's: ") && said.lines().count() == 1, "{said}");
    assert!(fs_err::read(&theirs).unwrap() == fs_err::read(&own).unwrap());
}

/// Returns what is in staging in the store of a machine.
fn staged(machine: &Path) -> Vec<String> {
    let Ok(entries) = fs_err::read_dir(machine.join(GRAPHROOT)) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(".prepull-")).collect()
}

#[test]
fn c08_install_as_root_fetches_without_capabilities() {
    if !needs_root("findings::confined::c08_install_as_root_fetches_without_capabilities") {
        return;
    }
    let mut world = World::new();
    world.image("slow", &on_base("slow"));
    let server = stalling(&world);
    let machine = world.at.join("machine");
    let (interrupt, kill) = (rustix::process::Signal::INT, rustix::process::Signal::KILL);
    for signal in [interrupt, rustix::process::Signal::TERM, kill] {
        let _ = fs_err::remove_dir_all(&machine);
        fs_err::create_dir(&machine).unwrap();
        let mut command = world.prepull();
        command
            .args(["install", "--no-cache", "--platform", "linux/amd64", "--tls-verify=false", "--root"])
            .arg(&machine);
        command.arg(format!("{}/slow:1", server.host())).stdout(Stdio::null()).stderr(Stdio::null());
        let before = server.seen("").len();
        let mut child = command.spawn().unwrap();
        let is_fetching = || server.seen("").iter().skip(before).any(|seen| seen.path.contains("/blobs/"));
        wait_for("a layer that does not come", || is_fetching() && !staged(&machine).is_empty());
        assert_confined(child.id());
        let children = children(child.id());
        assert_eq!(children.keys().collect::<Vec<_>>(), ["install-applier"]);
        let applier = children["install-applier"];
        // What has the privileges has no network: the channel to the front is its only socket.
        let files = fs_err::read_dir(format!("/proc/{applier}/fd")).unwrap().flatten();
        let files: Vec<_> = files.filter_map(|entry| fs_err::read_link(entry.path()).ok()).collect();
        let sockets: BTreeSet<_> = files.iter().filter(|path| path.to_string_lossy().starts_with("socket:")).collect();
        assert_eq!(sockets.len(), 1, "{files:?}");
        // Ctrl-C reaches it as well, and it ends only after the front.
        crate::mount::kill(applier, interrupt);
        std::thread::sleep(Duration::from_millis(100));
        assert!(!crate::mount::has_ended(applier) && !staged(&machine).is_empty());
        crate::mount::kill(child.id(), signal);
        let status = child.wait().unwrap();
        if signal == kill {
            wait_for("its end", || crate::mount::has_ended(applier));
        }
        assert!(crate::mount::has_ended(applier), "{status}");
        assert_eq!(status.code(), (signal != kill).then_some(130));
        assert_eq!(staged(&machine), [""; 0]);
    }
}

/// A front that has been taken over asks the applier for what nobody has typed.
#[test]
fn c08_a_compromised_front_of_install_writes_only_what_a_caller_of_the_helper_may() {
    if !needs_root("findings::confined::c08_a_compromised_front_of_install_writes_only_what_a_caller_of_the_helper_may")
    {
        return;
    }
    let world = World::new();
    let machine = world.at.join("machine");
    fs_err::create_dir(&machine).unwrap();
    let crio = machine.join("etc/crio/crio.conf.d");
    fs_err::create_dir_all(&crio).unwrap();
    let found = rustix::fs::stat(&machine).unwrap();
    let root = format!("{}:{}", found.st_dev, found.st_ino);
    let start = |pins: bool| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = world.prepull();
        command.arg("install-applier").stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let root = json!({"Unix": machine.as_os_str().as_bytes()});
        let graphroot = format!("/{GRAPHROOT}");
        let begin = json!({
            "root": root, "graphroot": graphroot, "is_rootfs": false, "is_additional": false, "pins": pins,
        });
        send(&ours, &begin, &[]).unwrap();
        (ours, child)
    };
    let stream = |lines: &str, path: &str| {
        let mut tar = Vec::new();
        for (path, content) in [(REQUEST, lines.as_bytes()), (path.as_bytes(), b"x")] {
            let kind = Kind::Regular { size: content.len() as u64 };
            let entry = Entry { path: path.to_vec(), meta: Meta { mode: 0o600, ..Meta::default() }, kind };
            small_file(&mut tar, &entry, content);
        }
        tar.extend_from_slice(&END);
        tar
    };
    let asked = |tar: &[u8]| -> Value {
        let (ours, mut child) = start(false);
        let ((stream, mut input), (answer, theirs)) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
        send(&ours, &json!({"Serve": null}), &[stream.as_fd(), theirs.as_fd()]).unwrap();
        drop((stream, theirs));
        // It may have seen enough.
        let _ = input.write_all(tar);
        drop(input);
        let answer = serde_json::from_reader(answer).unwrap();
        drop(ours);
        assert!(child.wait().unwrap().success());
        answer
    };
    let request = |word: &str, graphroot: &str, root: &str| {
        format!("prepull {VERSION}\nrequest {word}\ngraphroot {graphroot}\nroot {root}\n")
    };
    let place = format!("/{GRAPHROOT}");
    let [kind, outside] =
        ["another `kind`", "its path is empty, absolute, too long, or has an empty, `.` or `..` component"];
    let refused = [
        (request("install", "/etc", &root), "x", "another graphroot"),
        (request("install", &place, "1:2"), "x", "another directory"),
        (request("unpack", &place, &root), "x", kind),
        (request("clear", &place, &root), "x", kind),
        (request("install", &place, &root), "etc/escaped", "it is not in the store"),
        (request("install", &place, &root), "../../../../escaped", outside),
        (request("install", &place, &root), "/escaped", outside),
    ];
    for (lines, path, why) in &refused {
        let answer = asked(&stream(lines, path));
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(error.contains(why), "{lines}{path}: {answer}");
    }
    // Anything but pipes, into which root's process would write, or names that no image has: it ends.
    let victim = world.at.join("victim");
    fs_err::write(&victim, "as it was").unwrap();
    let file = fs_err::File::options().read(true).append(true).open(&victim).unwrap().into_file();
    let names = |names: &[&str]| json!({"Pin": names});
    let attacks = [
        (json!({"Serve": null}), true),
        (names(&["docker.io/library/a:1"]), true),
        (names(&["docker.io/library/*"]), false),
        (names(&["docker.io/library/a:1", "x\"]\n[crio.runtime]\n#"]), false),
        (json!("Other"), false),
    ];
    for (ask, is_file) in &attacks {
        let (ours, mut child) = start(true);
        let (answer, theirs) = std::io::pipe().unwrap();
        let files = if *is_file { [file.as_fd(), file.as_fd()] } else { [theirs.as_fd(), theirs.as_fd()] };
        // Files that are not taken are closed.
        send(&ours, ask, &files).unwrap();
        assert!(!child.wait().unwrap().success(), "{ask}");
        drop(theirs);
        assert_eq!(std::io::read_to_string(answer).unwrap(), "", "{ask}");
    }
    assert_eq!(fs_err::read_to_string(&victim).unwrap(), "as it was");
    assert_eq!(fs_err::read_dir(&crio).unwrap().count(), 0);
    // A drop-in is made only if --pin was typed.
    for pins in [false, true] {
        let (ours, mut child) = start(pins);
        let (answer, theirs) = std::io::pipe().unwrap();
        send(&ours, &names(&["docker.io/library/a:1"]), &[theirs.as_fd()]).unwrap();
        drop(theirs);
        let said: Value = serde_json::from_reader(answer).unwrap();
        assert_eq!(said["changed"].as_array().unwrap().len(), usize::from(pins), "{said}");
        drop(ours);
        assert!(child.wait().unwrap().success());
        assert_eq!(fs_err::read_dir(&crio).unwrap().count(), usize::from(pins));
    }
    let mut names: Vec<_> = fs_err::read_dir(&machine).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["etc", "var"]);
    assert_eq!(staged(&machine), [""; 0]);
    assert!(!world.at.join("escaped").exists() && !machine.join("var/escaped").exists());
}
