//! `prepull mount status`: one mount, or all that this user may know of.

use std::path::Path;

use serde::Serialize;

use super::{failure, place, refused};
use crate::cli::Failure;
use crate::cli::args::MountStatusArgs;
use crate::cli::output;
use crate::mount::attach::{self, Mounted};
use crate::mount::control::{self, Answer, Ask, Status, Way};
use crate::storage::machine;

/// A mount, as docs/json.md describes it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Said<'a> {
    mountpoint: &'a Path,
    keeper: u32,
    worker: u32,
    restarts: u64,
    maps_ids: bool,
    resends: bool,
    troubles: &'a [String],
    storage_conf: String,
}

impl<'a> Said<'a> {
    pub fn of(status: &'a Status) -> Self {
        let Status { mountpoint, keeper, worker, restarts, maps_ids, resends, troubles } = status;
        Self {
            mountpoint,
            keeper: *keeper,
            worker: *worker,
            restarts: *restarts,
            maps_ids: *maps_ids,
            resends: *resends,
            troubles,
            storage_conf: storage_conf_line(mountpoint),
        }
    }
}

/// All mounts, as JSON.
#[derive(Debug, Serialize)]
struct List<'a> {
    mounts: Vec<Listed<'a>>,
}

/// One of all mounts, as JSON.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Listed<'a> {
    Serving {
        user: u32,
        state: &'static str,
        #[serde(flatten)]
        said: Said<'a>,
    },
    /// Its keeper does not answer this user.
    Unreachable { user: u32, state: &'static str, mountpoint: &'a Path },
}

impl<'a> Listed<'a> {
    fn of(Mounted { at: mountpoint, user }: &'a Mounted, status: Option<&'a Status>) -> Self {
        let (user, state) = (*user, state(status));
        match status {
            Some(status) => Self::Serving { user, state, said: Said::of(status) },
            None => Self::Unreachable { user, state, mountpoint },
        }
    }
}

/// Returns the line of storage.conf that has a mount as an additional store.
pub fn storage_conf_line(mountpoint: &Path) -> String {
    format!("additionalimagestores = [\"{}\"]", machine::toml_escape(&mountpoint.to_string_lossy()))
}

/// Runs `mount status`.
pub fn run(args: &MountStatusArgs) -> Result<(), Failure> {
    let Some(mountpoint) = &args.mountpoint else { return list(args.json) };
    let status = ask(&place(mountpoint)?)?;
    if args.json {
        return Ok(output::json(&Said::of(&status))?);
    }
    let mut text = format!(
        "{}: keeper {}, worker {} ({} before it)\n{}\n",
        status.mountpoint.display(),
        status.keeper,
        status.worker,
        status.restarts,
        storage_conf_line(&status.mountpoint)
    );
    for trouble in &status.troubles {
        text += &format!("trouble: {trouble}\n");
    }
    Ok(output::data(&text)?)
}

fn ask(mountpoint: &Path) -> Result<Status, Failure> {
    let asked: Ask<()> = Ask::Status;
    let (answer, _) = control::ask::<()>(Way::At(mountpoint), &asked, &[]).map_err(|error| failure(error, ""))?;
    match answer {
        Answer::Status(status) => Ok(status),
        other => Err(refused(&mountpoint.display().to_string(), other)),
    }
}

/// Lists the mounts of this user; as root those of all users, of which root cannot ask more.
fn list(json: bool) -> Result<(), Failure> {
    let user = rustix::process::geteuid().as_raw();
    let mounts: Vec<(Mounted, Option<Status>)> = attach::all()
        .into_iter()
        .filter(|mount| user == 0 || mount.user == user)
        .map(|mount| {
            let status = (mount.user == user).then(|| ask(&mount.at).ok()).flatten();
            (mount, status)
        })
        .collect();
    if json {
        let mounts = mounts.iter().map(|(mount, status)| Listed::of(mount, status.as_ref())).collect();
        return Ok(output::json(&List { mounts })?);
    }
    let mut rows = vec![["MOUNTPOINT", "USER", "STATE", "KEEPER", "WORKER", "RESTARTS"].map(str::to_owned)];
    for (mount, status) in &mounts {
        let number = |value: fn(&Status) -> u64| {
            status.as_ref().map_or_else(|| "-".to_owned(), |status| value(status).to_string())
        };
        rows.push([
            output::printable(&mount.at.to_string_lossy()),
            mount.user.to_string(),
            state(status.as_ref()).to_owned(),
            number(|status| status.keeper.into()),
            number(|status| status.worker.into()),
            number(|status| status.restarts),
        ]);
    }
    Ok(output::data(&output::table(&rows))?)
}

const fn state(status: Option<&Status>) -> &'static str {
    if status.is_some() { "serving" } else { "unreachable" }
}
