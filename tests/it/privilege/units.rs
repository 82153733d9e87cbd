//! The units of policy/: what can be said of them without systemd as process 1. vm-tests has that.

use std::collections::BTreeSet;
use std::process::Command;

/// The system calls in one of systemd's sets, and in the sets that it names.
fn set(name: &str) -> BTreeSet<String> {
    let output = Command::new("systemd-analyze").args(["syscall-filter", name]).output().unwrap();
    assert!(output.status.success(), "{name}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let names = text.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    names.flat_map(calls).collect()
}

fn calls(word: &str) -> BTreeSet<String> {
    if word.starts_with('@') { set(word) } else { BTreeSet::from([word.to_owned()]) }
}

/// A call that the helper's own filter allows, and the service's does not, kills it under systemd and nowhere else.
#[test]
fn the_service_allows_every_system_call_of_the_helpers_own_filter() {
    let service = include_str!("../../../policy/prepull-helper@.service");
    let lines = service.lines().filter_map(|line| line.strip_prefix("SystemCallFilter="));
    let allowed: BTreeSet<String> = lines.flat_map(str::split_whitespace).flat_map(calls).collect();
    let source = include_str!("../../../src/helper/confine.rs");
    let names = source.split("libc::SYS_").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        rest[..end].to_owned()
    });
    let own: BTreeSet<String> = names.collect();
    assert!(own.len() > 60 && own.contains("openat2") && own.contains("exit_group"), "{own:?}");
    // What it calls before it has that filter, and no set has.
    let before =
        ["capset", "chroot", "open_tree", "sched_setaffinity", "seccomp", "setgroups", "setpriority", "setrlimit"];
    let own: BTreeSet<String> = own.into_iter().chain(before.map(str::to_owned)).collect();
    let missing: Vec<_> = own.difference(&allowed).collect();
    assert!(missing.is_empty(), "not in SystemCallFilter of prepull-helper@.service: {missing:?}");
}

/// systemd gives a service a view of the file system of its own for each of these (`exec_needs_mount_namespace`): then the machine
/// would not see what it mounts.
const PRIVATE_VIEW: [&str; 30] = [
    "BindPaths",
    "BindReadOnlyPaths",
    "DynamicUser",
    "ExecPaths",
    "ExecSearchPath",
    "ExtensionDirectories",
    "ExtensionImages",
    "InaccessiblePaths",
    "LogNamespace",
    "MountAPIVFS",
    "MountFlags",
    "MountImages",
    "NoExecPaths",
    "PrivateDevices",
    "PrivateIPC",
    "PrivateMounts",
    "PrivateNetwork",
    "PrivateTmp",
    "PrivateUsers",
    "ProcSubset",
    "ProtectControlGroups",
    "ProtectHome",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectProc",
    "ProtectSystem",
    "ReadOnlyPaths",
    "ReadWritePaths",
    "RootDirectory",
];

#[test]
fn what_the_mount_unit_mounts_is_seen_by_the_machine() {
    let unit = include_str!("../../../policy/prepull-mount@.service");
    let keys: Vec<&str> = unit.lines().filter_map(|line| line.split_once('=')).map(|(key, _)| key).collect();
    assert!(keys.contains(&"ExecStart") && keys.contains(&"RuntimeDirectoryPreserve"), "{keys:?}");
    for key in keys {
        assert!(!PRIVATE_VIEW.contains(&key), "{key}= gives the service a mount namespace");
    }
}

/// As systemd reads it: nothing that it does not know, no word that it takes for something else; and nothing weaker than it must be.
#[test]
fn systemd_has_nothing_against_the_mount_unit() {
    let directory = tempfile::tempdir().unwrap();
    let unit = directory.path().join("prepull-mount@mnt-images.service");
    let text = include_str!("../../../policy/prepull-mount@.service");
    // Programs are looked for.
    fs_err::write(&unit, text.replace("/usr/bin/prepull ", "/bin/true ")).unwrap();
    let verify = Command::new("systemd-analyze").arg("verify").arg(&unit).output().unwrap();
    let said = String::from_utf8_lossy(&verify.stderr).into_owned();
    let own: Vec<&str> = said.lines().filter(|line| line.contains("prepull-mount")).collect();
    assert!(verify.status.success() && own.is_empty(), "{said}");
    let security = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager", "--threshold=48"])
        .arg(&unit)
        .output()
        .unwrap();
    assert!(security.status.success(), "{}", String::from_utf8_lossy(&security.stdout));
}
