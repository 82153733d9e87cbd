//! `prepull doctor`: which ways there are to write as root, tried one by one.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::args::{DoctorArgs, HelperArgs};
use super::make::GRAPHROOT;
use super::output;
use super::{Exit, Failure};
use crate::helper::caller;
use crate::helper::policy::{self, Kind, Policy};
use crate::install::way::HELPER;
use crate::install::{Error, Target, Way, probe};

/// What was found out.
#[derive(Debug, Serialize)]
struct Findings {
    uid: u32,
    policy: String,
    helper: String,
    roots: Vec<Root>,
}

/// One directory.
#[derive(Debug, Serialize)]
struct Root {
    root: String,
    graphroot: String,
    kind: &'static str,
    ways: Vec<Tried>,
}

/// One way into it.
#[derive(Debug, Serialize)]
struct Tried {
    way: &'static str,
    works: bool,
    /// Why not, and what to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    why: String,
}

/// Runs it: success if some way leads into every directory.
pub fn run(args: &DoctorArgs) -> Result<Exit, Failure> {
    let uid = rustix::process::getuid().as_raw();
    let (said, mut targets) = read_policy();
    if let Some(root) = &args.root {
        let fits = |target: &Target| same(&target.root, root);
        targets.retain(fits);
        if targets.is_empty() {
            targets.push(Target { root: root.clone(), graphroot: GRAPHROOT.to_owned(), is_rootfs: false });
        }
    }
    let roots = targets.iter().map(|target| root(target, &args.helper)).collect();
    let findings = Findings { uid, policy: said, helper: look_at(&args.helper.helper), roots };
    if args.json {
        output::data(&format!("{}\n", serde_json::to_string(&findings)?))?;
    } else {
        output::data(&text(&findings))?;
    }
    let is_good = !findings.roots.is_empty() && findings.roots.iter().all(|root| root.ways.iter().any(|way| way.works));
    Ok(if is_good { Exit::Success } else { Exit::Failure })
}

/// What the policy has for this user.
fn read_policy() -> (String, Vec<Target>) {
    let policy = match Policy::load() {
        Ok(policy) => policy,
        Err(error) => return (error.to_string(), Vec::new()),
    };
    let caller = match caller::identify(None) {
        Ok(caller) => caller,
        Err(error) => return (error.to_string(), Vec::new()),
    };
    let allowed = caller.allowed(&policy);
    let said = format!(
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
    };
    (said, allowed.iter().map(target).collect())
}

fn same(a: &Path, b: &Path) -> bool {
    match (rustix::fs::stat(a), rustix::fs::stat(b)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => a == b,
    }
}

fn look_at(helper: &Path) -> String {
    let shown = helper.display();
    match rustix::fs::stat(helper) {
        Err(error) => {
            format!(
                "{shown}: {} (policy/build-helper makes it; install it there, root's, mode 0755)",
                std::io::Error::from(error)
            )
        }
        Ok(found) if found.st_uid != 0 || found.st_mode & 0o022 != 0 => {
            format!("{shown}: somebody else than root may write it (chown root, chmod go-w)")
        }
        Ok(_) => format!("{shown}: there, and root's"),
    }
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
    let why = match way {
        Way::Own if !rustix::process::geteuid().is_root() => {
            "not root (for a directory of your own: podman unshare prepull install ...)".to_owned()
        }
        // Nothing is made for a question.
        Way::Own => return Tried { way: name, works: true, why: String::new() },
        Way::Socket(path) if rustix::fs::stat(path).is_err() => {
            format!("{} is not there (policy/prepull-helper.socket and @.service are for systemd)", path.display())
        }
        _ => match probe(way, target) {
            Ok(()) => return Tried { way: name, works: true, why: String::new() },
            Err(Error::Silent(_)) if matches!(way, Way::Sudo(_)) => {
                format!("sudo does not start it (policy/sudoers is for /etc/sudoers.d; it names {HELPER})")
            }
            Err(Error::Refused { text, .. }) => text,
            Err(error) => error.to_string(),
        },
    };
    Tried { way: name, works: false, why }
}

fn text(findings: &Findings) -> String {
    let mut text =
        format!("user      {}\npolicy    {}\nhelper    {}\n", findings.uid, findings.policy, findings.helper);
    for root in &findings.roots {
        let _ = writeln!(text, "\n{} ({}, {})", root.root, root.kind, root.graphroot);
        for way in &root.ways {
            let verdict = if way.works { "works" } else { "no" };
            let why = if way.why.is_empty() { String::new() } else { format!(": {}", output::printable(&way.why)) };
            let _ = writeln!(text, "  {:18} {verdict}{why}", way.way);
        }
    }
    if findings.roots.is_empty() {
        text += "\nno directory to try (--root DIR names one)\n";
    }
    text
}
