//! Processes that fetch, inflate and parse when root runs them. All tests need root.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::command::{needs_root, prepull, stderr, succeeds};
use crate::mount::{World, full, on_base, wait_for};
use crate::support::fault_server::{Fault, FaultServer, Reply};

/// Checks every thread of a process: no capability, no way to any, a filter of system calls.
#[track_caller]
fn assert_confined(process: u32) {
    let mut threads = 0;
    for thread in fs_err::read_dir(format!("/proc/{process}/task")).unwrap() {
        let status = fs_err::read_to_string(thread.unwrap().path().join("status")).unwrap();
        for line in [
            "CapInh:\t0000000000000000",
            "CapPrm:\t0000000000000000",
            "CapEff:\t0000000000000000",
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
    let said = succeeds(Command::new(&example).arg(&own));
    let mut lines = 0;
    for line in said.lines() {
        let expected = if line.starts_with('!') { ": refused: " } else { ": done" };
        assert!(line.contains(expected), "{line}\n{said}");
        lines += 1;
    }
    assert!(lines > 25, "{said}");
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

#[test]
fn c08_a_lazy_mount_fetches_without_capabilities() {
    if !needs_root("findings::confined::c08_a_lazy_mount_fetches_without_capabilities") {
        return;
    }
    let mut world = World::new();
    world.image("slow", &on_base("slow"));
    let blobs: BTreeMap<String, Vec<u8>> = fs_err::read_dir(world.layout.path.join("blobs/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs_err::read(&path).unwrap()))
        .collect();
    let index: Value = serde_json::from_slice(&fs_err::read(world.layout.path.join("index.json")).unwrap()).unwrap();
    let manifest = index["manifests"][0]["digest"].as_str().unwrap()["sha256:".len()..].to_owned();
    let server = FaultServer::start(move |seen, _| {
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
    });
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
