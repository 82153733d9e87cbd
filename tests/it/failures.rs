use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use prepull::digest::Digest;
use prepull::media_type::{OCI_CONFIG, OCI_MANIFEST};
use serde_json::json;

use crate::command::{fails, hello, needs_root, prepull, stderr};
use crate::made::{config, tar};
use crate::registry::blob;
use crate::support::fault_server::{Fault, FaultServer, Reply};

/// A registry with an image `app:v1` of these layers; `fault` says what is wrong with the layer of that number.
fn registry(layers: &[Vec<u8>], fault: impl Fn(usize) -> Option<Reply> + Send + Sync + 'static) -> FaultServer {
    let describe = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()});
    let config = config("amd64", layers);
    let described: Vec<_> =
        layers.iter().map(|layer| describe("application/vnd.oci.image.layer.v1.tar", layer)).collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": describe(OCI_CONFIG, &config), "layers": described});
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let layers = layers.to_vec();
    FaultServer::start(move |seen, _| {
        let name = seen.path.rsplit('/').next().unwrap();
        if seen.path == "/v2/" {
            return Reply::new(200, "");
        }
        if seen.path.starts_with("/v2/app/manifests/") {
            return Reply::new(200, manifest.clone()).header("Content-Type", OCI_MANIFEST);
        }
        if name == Digest::of(&config).to_string() {
            return Reply::new(200, config.clone());
        }
        match layers.iter().position(|layer| name == Digest::of(layer).to_string()) {
            Some(at) => fault(at).unwrap_or_else(|| Reply::blob(&layers[at], seen)),
            None => Reply::new(404, ""),
        }
    })
}

fn two_layers() -> Vec<Vec<u8>> {
    vec![tar(&[("a", &blob(400_000))]), tar(&[("b", b"1")])]
}

fn make(at: &Path, server: &FaultServer, tar: &str) -> Command {
    let mut command = prepull(at);
    command.args(["make", "--platform", "linux/amd64", "--tls-verify=false", "-o", tar]);
    command.arg(format!("{}/app:v1", server.host())).current_dir(at);
    command
}

#[test]
fn an_error_is_told_while_another_download_is_stalled() {
    let scratch = tempfile::tempdir().unwrap();
    let layers = two_layers();
    let stalled = Reply::new(200, layers[0].clone()).fault(Fault::StallAfter(100_000));
    let server = registry(&layers, move |at| Some(if at == 0 { stalled.clone() } else { Reply::new(404, "") }));
    for tar in ["a.tar", "-"] {
        let begin = Instant::now();
        fails(&mut make(scratch.path(), &server, tar), 2, "not found (HTTP 404)");
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    }
    assert!(!scratch.path().join("a.tar").exists());
}

#[test]
fn an_error_is_told_while_another_download_waits_for_its_next_attempt() {
    let scratch = tempfile::tempdir().unwrap();
    let busy = Reply::new(429, "").header("Retry-After", "50");
    let server = registry(&two_layers(), move |at| Some(if at == 0 { busy.clone() } else { Reply::new(404, "") }));
    let begin = Instant::now();
    fails(&mut make(scratch.path(), &server, "a.tar"), 2, "not found (HTTP 404)");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[test]
fn an_error_of_one_item_is_told_while_another_ones_manifest_is_stalled() {
    let scratch = tempfile::tempdir().unwrap();
    let server = FaultServer::start(|seen, _| match seen.path.as_str() {
        "/v2/" => Reply::new(200, ""),
        "/v2/app/manifests/v1" => Reply::new(200, "{}").fault(Fault::StallAfter(1)),
        _ => Reply::new(404, ""),
    });
    let begin = Instant::now();
    let mut command = make(scratch.path(), &server, "a.tar");
    fails(command.arg(format!("{}/none:v1", server.host())), 2, "/none:v1: fetching manifest v1");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[test]
fn of_several_wrong_items_the_first_is_told() {
    let scratch = tempfile::tempdir().unwrap();
    let mut command = prepull(scratch.path());
    command.current_dir(scratch.path()).args(["make", "-o", "a.tar", &hello(), "oci:one", "oci:two", "oci:three"]);
    for _ in 0..5 {
        fails(&mut command, 2, "oci:one: no such directory");
    }
}

#[test]
fn a_damaged_cache_file_is_made_again() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let requests = |server: &FaultServer| server.seen("/v2/app/blobs/").len();
    let server = registry(&two_layers(), |_| None);
    assert!(make(at, &server, "good.tar").arg("--quiet").status().unwrap().success());
    let before = requests(&server);
    // The first chunk of the larger file is in the layer's body: only its reader notices.
    let segments = fs_err::read_dir(at.join(".cache/prepull/segments")).unwrap();
    let largest =
        segments.map(|entry| entry.unwrap().path()).max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = fs_err::read(&largest).unwrap();
    bytes[3000] ^= 1;
    fs_err::write(&largest, bytes).unwrap();
    let output = make(at, &server, "again.tar").arg("--quiet").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("is damaged: converting the layer again"), "{}", stderr(&output));
    assert_eq!(fs_err::read(at.join("good.tar")).unwrap(), fs_err::read(at.join("again.tar")).unwrap());
    assert_eq!(requests(&server), before + 2, "the config, and the damaged layer alone");
}

#[test]
fn a_full_disk_is_told_while_a_download_is_stalled() {
    let scratch = tempfile::tempdir().unwrap();
    let layers = vec![tar(&[("a", &blob(400_000))]), tar(&[("b", &blob(500_000))])];
    let stalled = Reply::new(200, layers[1].clone()).fault(Fault::StallAfter(100_000));
    let server = registry(&layers, move |at| (at == 1).then(|| stalled.clone()));
    // The first layer is in the cache, and no file may grow beyond 300 kB: the output fails, and not the cache.
    let only = registry(&layers[..1], |_| None);
    assert!(make(scratch.path(), &only, "first.tar").output().unwrap().status.success());
    let begin = Instant::now();
    let command = make(scratch.path(), &server, "a.tar");
    let output = after("trap '' XFSZ; ulimit -f 600", &command).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("writing ") && stderr(&output).contains("a.tar: File too large"), "{output:?}");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert!(!scratch.path().join("a.tar").exists());
}

/// `command` after the shell's `before`.
fn after(before: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{before}; exec \"$0\" \"$@\"")]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        shell.current_dir(directory);
    }
    shell
}

#[test]
fn too_many_open_files_are_allowed_or_told() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let mut command = prepull(at);
    command.args(["make", "-o", "a.tar", &hello()]).current_dir(at);
    let output = after("ulimit -Sn 7", &command).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    fs_err::remove_dir_all(at.join(".cache")).unwrap();
    fails(&mut after("ulimit -n 7", &command), 1, "(os error 24)");
    fails(&mut after("ulimit -n 7", &command), 1, "(raise `ulimit -n`)");
}

#[test]
fn where_converted_layers_go_is_told_when_there_is_no_room() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let server = registry(&two_layers(), |_| None);
    let command = make(at, &server, "a.tar");
    fails(&mut after("trap '' XFSZ; ulimit -f 200", &command), 1, "(--cache-dir DIR puts the cache");
    let mut command = make(at, &server, "a.tar");
    command.arg("--no-cache");
    // Layers are written into the tar itself then.
    fails(&mut after("trap '' XFSZ; ulimit -f 200", &command), 1, "writing a.tar: File too large");
    let mut command = make(at, &server, "-");
    command.arg("--no-cache");
    fails(&mut after("trap '' XFSZ; ulimit -f 200", &command), 1, "(TMPDIR=DIR puts it on another");
    assert!(!at.join("a.tar").exists());
}

#[test]
fn signals_that_were_ignored_stay_so() {
    use rustix::process::{Pid, Signal, kill_process};
    let scratch = tempfile::tempdir().unwrap();
    let layers = two_layers();
    let stalled = Reply::new(200, layers[0].clone()).fault(Fault::StallAfter(100_000));
    let server = registry(&layers, move |at| (at == 0).then(|| stalled.clone()));
    let mut child = after("trap '' HUP INT", &make(scratch.path(), &server, "a.tar"))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while server.seen("/v2/app/blobs/").len() < 3 {
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = Pid::from_child(&child);
    for signal in [Signal::HUP, Signal::INT] {
        kill_process(pid, signal).unwrap();
    }
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none());
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!scratch.path().join("a.tar").exists());
}

#[test]
fn a_planted_link_is_not_followed() {
    use std::os::unix::fs::{PermissionsExt, lchown, symlink};
    let protected = fs_err::read_to_string("/proc/sys/fs/protected_symlinks").unwrap_or_default();
    if !needs_root("failures::a_planted_link_is_not_followed") || protected.trim() != "1" {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    fs_err::create_dir_all(at.join("tmp")).unwrap();
    fs_err::set_permissions(at.join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
    fs_err::write(at.join("precious"), "precious").unwrap();
    symlink("../precious", at.join("tmp/images.tar")).unwrap();
    lchown(at.join("tmp/images.tar"), Some(65534), Some(65534)).unwrap();
    let mut command = prepull(at);
    command.args(["make", "-o", "tmp/images.tar", &hello()]).current_dir(at);
    fails(&mut command, 1, "tmp/images.tar: following the symbolic link: Permission denied");
    assert_eq!(fs_err::read_to_string(at.join("precious")).unwrap(), "precious");
}

#[test]
fn a_mount_point_is_refused_at_once() {
    if !needs_root("failures::a_mount_point_is_refused_at_once") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    for name in ["one", "a.tar"] {
        fs_err::write(at.join(name), "").unwrap();
    }
    let mut command = prepull(at);
    command.args(["make", "-o", "a.tar", &hello()]).current_dir(at);
    let shell = after("mount --bind one a.tar", &command);
    let mut unshare = Command::new("unshare");
    unshare.arg("-m").arg(shell.get_program()).args(shell.get_args()).current_dir(at).env("HOME", at);
    fails(&mut unshare, 1, "it is a mount point");
}

#[test]
fn json_goes_to_standard_error_when_the_tar_goes_to_standard_output() {
    let scratch = tempfile::tempdir().unwrap();
    let mut command = prepull(scratch.path());
    let output = command.args(["make", "--json", "--quiet", "--tar", "-", &hello()]).output().unwrap();
    assert!(output.status.success() && output.stdout.len().is_multiple_of(512));
    let summary: serde_json::Value = serde_json::from_str(&stderr(&output)).unwrap();
    assert_eq!(summary["size"], output.stdout.len());
}

#[test]
fn what_is_wrong_with_the_command_is_told_before_the_work() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    let make = |arguments: &[&str]| {
        let mut command = prepull(at);
        command.args(["make", "-o", "a.tar"]).args(arguments).current_dir(at);
        command
    };
    fails(&mut make(&["--pause", "r.io/pause:1", "--no-config"]), 2, "cannot be used with");
    for epoch in ["soon", "-1", "253402300800"] {
        fails(make(&["oci:none"]).env("SOURCE_DATE_EPOCH", epoch), 2, "is not a number of seconds since 1970");
    }
    let mut command = prepull(at);
    fails(command.args(["make", &hello(), "-o", "new/"]).current_dir(at), 1, "new/: no such directory");
}
