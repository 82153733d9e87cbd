//! Who asks.
//!
//! Names come from /etc/passwd and /etc/group alone. NSS would load whatever libraries are configured into a process with
//! privilege, and a static program cannot do it safely at all; a user whom only LDAP knows is named in the policy by number.

use std::ffi::OsStr;
use std::io;

use nix::sys::socket::{getsockopt, sockopt};
use rustix::io::Errno;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{geteuid, getuid};
use rustix::stdio::stdin;

use super::policy::{Id, Untrusted, Who, number, trusted};

/// The most bytes of /etc/passwd and /etc/group: a hundred thousand users.
const TABLE_MAX: usize = 8 << 20;

/// Why it is not known who asks.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program has a setuid bit: its caller would control everything that a process inherits.
    #[error("prepull-helper must not be setuid (chmod u-s; use sudo, its socket, or file capabilities)")]
    Setuid,
    /// `SUDO_UID` is no user's number.
    #[error("SUDO_UID is not a number: only sudo should set it")]
    SudoUid,
    /// Standard input is a socket that does not say who is at its other end.
    #[error("standard input is not a connected unix stream socket (prepull-helper.socket has Accept=yes)")]
    Socket,
    /// The system does not say who is at the other end.
    #[error("who is at the other end of standard input: {0}")]
    Peer(io::Error),
    /// A table of names is not to be trusted.
    #[error(transparent)]
    Table(#[from] Untrusted),
}

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

/// What the kernel says of this process.
struct Facts {
    real: u32,
    effective: u32,
    /// The user at the other end of standard input, if that is a socket.
    peer: Option<Result<u32, Error>>,
}

/// Whoever has started this process, or is at the other end of its standard input. `sudo_uid` is `SUDO_UID` of the environment.
///
/// # Errors
/// When that is not clear, or the tables of users are not to be trusted.
pub fn identify(sudo_uid: Option<&OsStr>) -> Result<Caller, Error> {
    let facts = Facts { real: getuid().as_raw(), effective: geteuid().as_raw(), peer: peer() };
    let uid = decide(facts, sudo_uid)?;
    Ok(Caller::known_as(uid, &trusted("/etc/passwd", TABLE_MAX)?, &trusted("/etc/group", TABLE_MAX)?))
}

/// The order matters: what the caller can influence least comes first.
fn decide(facts: Facts, sudo_uid: Option<&OsStr>) -> Result<u32, Error> {
    if facts.effective != facts.real {
        return Err(Error::Setuid);
    }
    // A user started it: file capabilities. Their environment and their sockets say nothing.
    if facts.real != 0 {
        return Ok(facts.real);
    }
    // sudo started it. A user can give sudo a socket that leads to a daemon of root, so the socket is not asked. Had anybody
    // else set the variable, they would only have given up being root.
    if let Some(value) = sudo_uid {
        let uid = value.to_str().filter(|digits| !digits.is_empty()).and_then(number);
        return uid.filter(|uid| *uid != u32::MAX).ok_or(Error::SudoUid);
    }
    // The socket's service started it: whoever connected. Without a socket: root.
    facts.peer.unwrap_or(Ok(0))
}

/// The user who connected the socket that standard input is.
fn peer() -> Option<Result<u32, Error>> {
    let listens = match socket_acceptconn(stdin()) {
        Err(Errno::NOTSOCK | Errno::BADF) => return None,
        Err(error) => return Some(Err(Error::Peer(error.into()))),
        Ok(listens) => listens,
    };
    // A connection from the network has no user, and a listening socket only its owner's.
    let is_unix = socket_domain(stdin()) == Ok(AddressFamily::UNIX);
    if listens || !is_unix || socket_type(stdin()) != Ok(SocketType::STREAM) {
        return Some(Err(Error::Socket));
    }
    // Not with rustix: its type has no room for the process number 0, which is that of a peer in an outer PID namespace.
    match getsockopt(&stdin(), sockopt::PeerCredentials) {
        Err(error) => Some(Err(Error::Peer(error.into()))),
        // Nobody has connected it.
        Ok(credentials) if credentials.uid() == u32::MAX => Some(Err(Error::Socket)),
        Ok(credentials) => Some(Ok(credentials.uid())),
    }
}

impl Caller {
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

    /// Whether the policy means this user.
    pub(super) fn is(&self, who: &Who) -> bool {
        match who {
            Who::User(Id::Number(uid)) => self.uid == *uid,
            Who::User(Id::Name(name)) => self.name.as_ref() == Some(name),
            Who::Group(Id::Number(gid)) => self.groups.iter().any(|group| group.0 == *gid),
            Who::Group(Id::Name(name)) => self.groups.iter().any(|group| group.1 == *name),
        }
    }
}

#[cfg(test)]
mod tests;
