//! Who asks.
//!
//! Names come from /etc/passwd and /etc/group alone. NSS would load whatever libraries are configured into a process with
//! privilege, and a static program cannot do it safely at all; a user whom only LDAP knows is named in the policy by number.

use std::ffi::OsStr;

use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::socket::{getsockopt, sockopt};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, chmod, mkdir, openat2};
use rustix::io::Errno;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{geteuid, getuid};
use rustix::stdio::stdin;

use super::Error;
use super::policy::{Allow, Id, Policy, number, trusted};

const PEER: &str = "finding the process at the other end of standard input";

/// The most bytes of /etc/passwd and /etc/group: a hundred thousand users.
const TABLE_MAX: usize = 8 << 20;

/// Refusal of a process that another user than root started, whatever bits or capabilities its file has. That user could stop
/// the process, and would own the directories in which it works.
const NOT_ROOT: &str = "prepull-helper must be started by root (use sudo or its socket; chmod u-s and setcap -r, if its file has such bits)";

/// The directory of the socket, and the file in it whose bytes stand for running helpers.
const RUN: &str = "/run/prepull";
const PLACES: &str = "/run/prepull/callers";

/// Maximum number of helpers that one user may have at a time. The unit lets a multiple of it run (`MaxConnections`), so that one
/// user with idle connections does not keep others out.
pub const RUNS_MAX: u32 = 8;

/// It is no user's number.
const SUDO_UID: &str = "SUDO_UID is not a number: only sudo should set it";

/// A socket of somebody whom the kernel does not name.
const NOBODY: &str = "standard input is not a connected unix stream socket (prepull-helper.socket has Accept=yes)";

/// A user, with the names and groups that the policy may call them by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Number.
    pub uid: u32,
    /// Name: that of the first line in /etc/passwd with the number, as everywhere.
    name: Option<String>,
    /// Number and name of each group.
    groups: Vec<(u32, String)>,
}

/// Whoever has started this process, or is at the other end of its standard input. `sudo_uid` is `SUDO_UID` of the environment.
///
/// # Errors
/// When that is not clear, or the tables of users are not to be trusted.
pub fn identify(sudo_uid: Option<&OsStr>) -> Result<Caller, Error> {
    Caller::of(decide(getuid().as_raw(), geteuid().as_raw(), sudo_uid, peer)?)
}

/// The order matters: what the caller can influence least comes first. `peer` gives the user at the other end of standard input,
/// if that is a socket.
fn decide(
    real: u32,
    effective: u32,
    sudo_uid: Option<&OsStr>,
    peer: impl FnOnce() -> Result<Option<u32>, Error>,
) -> Result<u32, Error> {
    if (real, effective) != (0, 0) {
        return Err(Error::said(NOT_ROOT));
    }
    // sudo started it. A user can give sudo a socket that leads to a daemon of root, so the socket is not asked. Had anybody
    // else set the variable, they would only have given up being root.
    if let Some(value) = sudo_uid {
        let uid = value.to_str().filter(|digits| !digits.is_empty()).and_then(number);
        return uid.filter(|uid| *uid != u32::MAX).ok_or_else(|| Error::said(SUDO_UID));
    }
    // The socket's service started it: whoever connected. Without a socket: root.
    Ok(peer()?.unwrap_or(0))
}

/// The user who connected the socket that standard input is.
fn peer() -> Result<Option<u32>, Error> {
    let listens = match socket_acceptconn(stdin()) {
        Err(Errno::NOTSOCK | Errno::BADF) => return Ok(None),
        listens => listens.map_err(Error::at(PEER))?,
    };
    // A connection from the network has no user, and a listening socket only its owner's.
    let is_unix = socket_domain(stdin()) == Ok(AddressFamily::UNIX);
    if listens || !is_unix || socket_type(stdin()) != Ok(SocketType::STREAM) {
        return Err(Error::said(NOBODY));
    }
    // Not with rustix: its type has no room for the process number 0, which is that of a peer in an outer PID namespace.
    let uid = getsockopt(&stdin(), sockopt::PeerCredentials).map_err(Error::at(PEER))?.uid();
    // Nobody has connected it.
    if uid == u32::MAX { Err(Error::said(NOBODY)) } else { Ok(Some(uid)) }
}

impl Caller {
    /// Looks `uid` up in /etc/passwd and /etc/group.
    ///
    /// # Errors
    /// If these cannot be read, or others than root could have written them.
    pub fn of(uid: u32) -> Result<Self, Error> {
        Ok(Self::known_as(uid, &trusted("/etc/passwd", TABLE_MAX)?, &trusted("/etc/group", TABLE_MAX)?))
    }

    /// Looks `uid` up. Lines that are not as passwd(5) and group(5) have them are nobody's.
    fn known_as(uid: u32, passwd: &str, group: &str) -> Self {
        let user = passwd.lines().find_map(|line| match line.split(':').collect::<Vec<_>>()[..] {
            [name, _, number_, gid, _, _, _] if !name.is_empty() && number(number_) == Some(uid) => {
                Some((name, number::<u32>(gid)?))
            }
            _ => None,
        });
        let groups = group.lines().filter_map(|line| match line.split(':').collect::<Vec<_>>()[..] {
            [name, _, gid, members] if !name.is_empty() => {
                let gid = number::<u32>(gid)?;
                let (user, primary) = user?;
                let is_member = gid == primary || members.split(',').any(|member| member == user);
                is_member.then(|| (gid, name.to_owned()))
            }
            _ => None,
        });
        Self { uid, groups: groups.collect(), name: user.map(|(name, _)| name.to_owned()) }
    }

    /// Takes one of the user's places, which is free again when the descriptor is closed, however the process ends. Root needs none.
    ///
    /// # Errors
    /// If all are taken, or /run cannot be written.
    pub fn place(&self) -> Result<Option<OwnedFd>, Error> {
        if self.uid == 0 {
            return Ok(None);
        }
        // The directory of the socket. A helper that sudo starts may make it, and users must be able to enter it whatever the umask is.
        let _ = mkdir(RUN, 0o755.into()).and_then(|()| chmod(RUN, 0o755.into()));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat2(CWD, PLACES, flags, Mode::RUSR | Mode::WUSR, ResolveFlags::NO_SYMLINKS);
        let file = file.map_err(Error::at(PLACES))?;
        for number in 0..RUNS_MAX {
            let byte = libc::flock {
                l_type: libc::F_WRLCK as libc::c_short,
                l_whence: libc::SEEK_SET as libc::c_short,
                l_start: i64::from(self.uid) * i64::from(RUNS_MAX) + i64::from(number),
                l_len: 1,
                l_pid: 0,
            };
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&byte)) {
                Ok(_) => return Ok(Some(file)),
                Err(nix::Error::EAGAIN | nix::Error::EACCES) => {}
                Err(error) => return Err(Error::at(PLACES)(error)),
            }
        }
        Err(Error::said(format!("{RUNS_MAX} helpers run for this user already (wait until one is done)")))
    }

    /// Entries that this user may use, in the file's order.
    #[must_use]
    pub fn allowed<'a>(&self, policy: &'a Policy) -> Vec<&'a Allow> {
        policy.allow.iter().filter(|entry| self.is(entry)).collect()
    }

    /// Whether the policy means this user.
    fn is(&self, entry: &Allow) -> bool {
        let means = |id: &Id, number: u32, name: Option<&String>| match id {
            Id::Number(meant) => *meant == number,
            Id::Name(meant) => Some(meant) == name,
        };
        let is_group = |id: &Id| self.groups.iter().any(|(gid, name)| means(id, *gid, Some(name)));
        let is_user = |id: &Id| means(id, self.uid, self.name.as_ref());
        entry.user.as_ref().is_some_and(is_user) || entry.group.as_ref().is_some_and(is_group)
    }
}

#[cfg(test)]
mod tests;
