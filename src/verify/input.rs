//! The tar as such, and what it has beside stores: what an unpacker makes of it in the machine.

use super::report::{Finding, Report};
use super::rule::{Rule, Severity};
use crate::inspect::contents::{Contents, InodeKind, OddityKind};
use crate::storage::store::Unpacker;

/// Directories that every machine has, and that unpacking a tar would change.
const ROOT_DIRECTORIES: [&str; 15] = [
    "",
    "etc",
    "etc/containers",
    "etc/crio",
    "etc/crio/crio.conf.d",
    "etc/init.d",
    "usr",
    "usr/lib",
    "usr/lib/containers",
    "usr/share",
    "var",
    "var/lib",
    "var/lib/containers",
    "run",
    "root",
];

/// Where CRI-O keeps what it knows of its last run (crio.conf(5), `version_file`, `clean_shutdown_file`).
const CRIO_STATE: [&str; 3] = ["var/lib/crio", "run/crio", "var/run/crio"];

/// Judges all of it.
///
/// `checked`: a store of the machine's own is among them, which CRI-O checks after a power cut.
pub(super) fn judge(contents: &Contents, unpacker: Unpacker, checked: bool, report: &mut Report) {
    let mut add = |rule: Rule, severity: Severity, place: String, what: String| {
        report.add(rule, severity, checked, Finding { place, what });
    };
    for (&kind, oddities) in contents.oddities() {
        let (rule, what) = rule_of(kind);
        let busybox = unpacker == Unpacker::Busybox;
        let severity = if kind == OddityKind::PaxNumber && !busybox { Severity::Note } else { rule.info().primary };
        for number in 0..oddities.count {
            let path = oddities.first.get(number).map(|path| String::from_utf8_lossy(path).into_owned());
            let place = path.filter(|path| !path.is_empty()).unwrap_or_else(|| "the tar".to_owned());
            add(rule, severity, place, what.to_owned());
        }
    }
    if contents.is_tar() {
        let graphroots: Vec<&str> = contents.stores().iter().map(|store| &store.graphroot[..]).collect();
        for path in ROOT_DIRECTORIES.iter().filter(|path| !graphroots.contains(path)) {
            let Some(inode) = contents.rest().get(path.as_bytes()).filter(|inode| !inode.stamped) else { continue };
            if inode.kind != InodeKind::Directory {
                add(Rule::RootDirectory, Severity::Error, format!("/{path}"), "is not a directory".to_owned());
            } else if (inode.mode, inode.uid, inode.gid) != (0o755, 0, 0) {
                let (severity, mode) = if *path == "root" { (Severity::Note, 0o700) } else { (Severity::Error, 0o755) };
                if inode.mode != mode || (inode.uid, inode.gid) != (0, 0) {
                    let what = format!("has mode {:04o} and owner {}:{}", inode.mode, inode.uid, inode.gid);
                    add(Rule::RootDirectory, severity, format!("/{path}"), what);
                }
            }
        }
    }
    for directory in CRIO_STATE.iter().filter(|_| contents.is_tar()) {
        for (name, _) in contents.rest().children(directory.as_bytes()) {
            let place = format!("{directory}/{}", String::from_utf8_lossy(name));
            add(Rule::CrioState, Severity::Error, place, "is there".to_owned());
        }
    }
}

fn rule_of(kind: OddityKind) -> (Rule, &'static str) {
    match kind {
        OddityKind::Name => (Rule::TarName, "has `..` in its name"),
        OddityKind::LongName => (Rule::TarName, "has a name that is too long for a file system"),
        OddityKind::Absolute => (Rule::TarAbsolute, "is absolute"),
        OddityKind::OverDirectory => (Rule::TarOverDirectory, "is a directory, and then something else"),
        OddityKind::Global => (Rule::TarGlobal, "has a header for all entries after it"),
        OddityKind::Vanished => (Rule::Vanished, "was gone when it was to be read"),
        OddityKind::NoDirectory => (Rule::TarNoDirectory, "comes after what is in it, or not at all"),
        OddityKind::ThroughLink => (Rule::TarThroughLink, "is below something that is not a directory"),
        OddityKind::Twice => (Rule::TarTwice, "is there twice"),
        OddityKind::NoTarget => (Rule::TarNoTarget, "is a hard link to what has not come before it"),
        OddityKind::Type => (Rule::TarType, "has an unknown type"),
        OddityKind::PaxNumber => (Rule::TarPaxNumber, "has its owner or size in a PAX record only"),
        OddityKind::NoEnd => (Rule::TarNoEnd, "it ends without its end marker"),
        OddityKind::AfterEnd => (Rule::TarAfterEnd, "something comes after its end marker"),
        OddityKind::Socket => (Rule::Socket, "is a socket"),
    }
}
