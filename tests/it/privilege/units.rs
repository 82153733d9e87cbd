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
    let missing: Vec<_> = own.difference(&allowed).collect();
    assert!(missing.is_empty(), "not in SystemCallFilter of prepull-helper@.service: {missing:?}");
}
