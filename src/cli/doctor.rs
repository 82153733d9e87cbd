//! `prepull doctor`: tries each way to write as root, and says how to set up those that do not work.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::args::{DoctorArgs, HelperArgs};
use super::install::check_root;
use super::make::GRAPHROOT;
use super::output::{self, Printer};
use super::{Exit, Failure};
use crate::helper::caller::Caller;
use crate::helper::policy::{self, Kind, Policy};
use crate::install::way::HELPER;
use crate::install::{Error, Target, Way, probe};

/// The result of `doctor`, as docs/json.md describes it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Findings {
    uid: u32,
    policy: PolicyState,
    helper: HelperState,
    roots: Vec<Root>,
}

/// The helper's policy.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PolicyState {
    path: &'static str,
    is_readable: bool,
    /// Number of entries.
    entries: usize,
    /// Number of entries for this user.
    allowed: usize,
    message: String,
}

/// The installed helper.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct HelperState {
    path: String,
    is_installed: bool,
    message: String,
}

/// One directory.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Root {
    root: String,
    graphroot: String,
    kind: &'static str,
    ways: Vec<Tried>,
}

/// One way into it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Tried {
    via: &'static str,
    works: bool,
    /// The cause if it does not work, and what to do about it; else empty.
    message: String,
    /// The way in words.
    #[serde(skip)]
    name: &'static str,
}

/// Runs it: success if some way leads into every directory.
pub fn run(args: &DoctorArgs, printer: &Printer) -> Result<Exit, Failure> {
    let uid = rustix::process::getuid().as_raw();
    let (policy, mut targets) = read_policy();
    if let Some(root) = &args.root {
        check_root(root)?;
        let fits = |target: &Target| same(&target.root, root);
        targets.retain(fits);
        if targets.is_empty() {
            let (graphroot, is_rootfs, is_additional) = (GRAPHROOT.to_owned(), false, false);
            targets.push(Target { root: root.clone(), graphroot, is_rootfs, is_additional });
        }
    }
    let roots = targets.iter().map(|target| root(target, &args.helper)).collect();
    let findings = Findings { uid, policy, helper: look_at(&args.helper.helper), roots };
    if args.json {
        output::json(&findings)?;
    } else if !printer.is_quiet() {
        output::data(&text(&findings))?;
    }
    let is_good = !findings.roots.is_empty() && findings.roots.iter().all(|root| root.ways.iter().any(|way| way.works));
    Ok(if is_good { Exit::Success } else { Exit::Failure })
}

/// Reads the policy. Returns it and the directories that it names for this user.
fn read_policy() -> (PolicyState, Vec<Target>) {
    let unreadable = |message: String| {
        (PolicyState { path: policy::PATH, is_readable: false, entries: 0, allowed: 0, message }, Vec::new())
    };
    let policy = match Policy::load() {
        Ok(policy) => policy,
        Err(error) => return unreadable(error.to_string()),
    };
    let caller = match Caller::of(rustix::process::getuid().as_raw()) {
        Ok(caller) => caller,
        Err(error) => return unreadable(error.to_string()),
    };
    let allowed = caller.allowed(&policy);
    let message = format!(
        "{}: {} of its {} entries are for this user{}",
        policy::PATH,
        allowed.len(),
        policy.allow.len(),
        if allowed.is_empty() { " (root has to add one: see policy/helper.toml of prepull)" } else { "" }
    );
    let target = |allow: &&policy::Allow| Target {
        root: PathBuf::from(&allow.root),
        graphroot: allow.graphroot().to_owned(),
        is_rootfs: allow.kind == Kind::Rootfs,
        is_additional: allow.is_readable(),
    };
    let (entries, count) = (policy.allow.len(), allowed.len());
    let state = PolicyState { path: policy::PATH, is_readable: true, entries, allowed: count, message };
    (state, allowed.iter().map(target).collect())
}

fn same(a: &Path, b: &Path) -> bool {
    match (rustix::fs::stat(a), rustix::fs::stat(b)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => a == b,
    }
}

fn look_at(helper: &Path) -> HelperState {
    let path = helper.display().to_string();
    let (is_installed, message) = match rustix::fs::stat(helper) {
        Err(error) => (
            false,
            format!(
                "{path}: {} (policy/build-helper builds it; install it there, owned by root, mode 0755)",
                std::io::Error::from(error)
            ),
        ),
        Ok(found) if found.st_uid != 0 || found.st_mode & 0o022 != 0 => {
            (false, format!("{path}: a user other than root may write it (chown root, chmod go-w)"))
        }
        Ok(_) => (true, format!("{path}: installed, and only root may write it")),
    };
    HelperState { path, is_installed, message }
}

fn root(target: &Target, HelperArgs { helper, socket }: &HelperArgs) -> Root {
    let ways =
        [(Way::Own, "this process"), (Way::Socket(socket.clone()), "service"), (Way::Sudo(helper.to_owned()), "sudo")];
    Root {
        root: target.root.display().to_string(),
        graphroot: target.graphroot.clone(),
        kind: if target.is_rootfs { "rootfs" } else { "storage" },
        ways: ways.into_iter().map(|(way, name)| tried(&way, name, target)).collect(),
    }
}

fn tried(way: &Way, name: &'static str, target: &Target) -> Tried {
    let works = || Tried { via: way.name(), works: true, message: String::new(), name };
    let message = match way {
        Way::Own if !rustix::process::geteuid().is_root() => {
            "not root (for a directory of your own: podman unshare prepull install ...)".to_owned()
        }
        // Nothing is made for a question.
        Way::Own => return works(),
        Way::Socket(path) if rustix::fs::stat(path).is_err() => {
            format!("{} is not there (policy/prepull-helper.socket and @.service are for systemd)", path.display())
        }
        _ => match probe(way, target) {
            Ok(()) => return works(),
            Err(Error::Silent(_)) if matches!(way, Way::Sudo(_)) => {
                format!("sudo does not start it (policy/sudoers is for /etc/sudoers.d; it names {HELPER})")
            }
            Err(Error::Refused { text, .. }) => text,
            Err(error) => error.to_string(),
        },
    };
    Tried { via: way.name(), works: false, message, name }
}

fn text(findings: &Findings) -> String {
    let mut text = format!(
        "user      {}\npolicy    {}\nhelper    {}\n",
        findings.uid, findings.policy.message, findings.helper.message
    );
    for root in &findings.roots {
        let _ = writeln!(text, "\n{} ({}, {})", root.root, root.kind, root.graphroot);
        for way in &root.ways {
            let verdict = if way.works { "works" } else { "no" };
            let message =
                if way.message.is_empty() { String::new() } else { format!(": {}", output::printable(&way.message)) };
            let _ = writeln!(text, "  {:18} {verdict}{message}", way.name);
        }
    }
    if findings.roots.is_empty() {
        text += "\nno directory to try (--root DIR names one)\n";
    }
    text
}
