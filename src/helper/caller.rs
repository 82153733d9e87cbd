//! Who asks: decided by what the kernel and sudo say, never by what the caller does.

use std::ffi::OsStr;
use std::os::fd::AsFd;

use rustix::net::{AddressFamily, SocketType, sockopt};

use super::policy::Id;
use super::root::Dir;

/// The most bytes of /etc/passwd and /etc/group.
const ACCOUNTS_MAX: u64 = 16 << 20;

/// A user, with the groups that /etc/group gives it. There is no other source of accounts here: it would be a library
/// loaded into a program with privilege.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// By number.
    pub uid: u32,
    names: Vec<String>,
    gids: Vec<u32>,
    groups: Vec<String>,
}

/// Why nobody is believed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Set by something else than sudo.
    #[error("SUDO_UID is no number")]
    SudoUid,
    /// Not one of the ways to start it.
    #[error("started with a setuid bit (use sudo, the service, or file capabilities: `prepull doctor`)")]
    Setuid,
    /// The kernel does not say who is at the other end of the socket.
    #[error("looking who is at the other end of the socket: {0}")]
    Peer(rustix::io::Errno),
    /// Accounts cannot be read.
    #[error("reading /etc/passwd and /etc/group: {0}")]
    Accounts(rustix::io::Errno),
}

/// Who asks.
///
/// * Not root's process: the user whose it is (the program has file capabilities).
/// * `SUDO_UID`: that user. sudo sets it, whatever the user's environment says. It can only take away: without it, it
///   would be root. And it goes before the socket, since a user can hand sudo a socket with a daemon of root's at its other end.
/// * Standard input is a socket: who is at its other end (the service, started by systemd).
/// * Else root.
///
/// # Errors
/// When the facts do not fit together.
pub fn identify(sudo_uid: Option<&OsStr>) -> Result<Caller, Error> {
    let ids = (rustix::process::getuid().as_raw(), rustix::process::geteuid().as_raw());
    let stdin = rustix::stdio::stdin();
    let uid = decide(ids, sudo_uid, || {
        let is_socket = sockopt::socket_domain(stdin.as_fd()) == Ok(AddressFamily::UNIX)
            && sockopt::socket_type(stdin.as_fd()) == Ok(SocketType::STREAM);
        is_socket.then(|| sockopt::socket_peercred(stdin.as_fd()).map(|peer| peer.uid.as_raw())).transpose()
    })?;
    let read = |name: &[u8]| {
        let etc = Dir::at(c"/").and_then(|root| root.enter(b"etc"));
        etc.and_then(|etc| etc.read(name, ACCOUNTS_MAX)).map_err(Error::Accounts)
    };
    let (passwd, group) = (read(b"passwd")?.unwrap_or_default(), read(b"group")?.unwrap_or_default());
    Ok(Caller::new(uid, &String::from_utf8_lossy(&passwd), &String::from_utf8_lossy(&group)))
}

fn decide(
    (real, effective): (u32, u32),
    sudo_uid: Option<&OsStr>,
    peer: impl FnOnce() -> Result<Option<u32>, rustix::io::Errno>,
) -> Result<u32, Error> {
    match (real, sudo_uid) {
        (0, Some(uid)) => uid.to_str().and_then(|uid| uid.parse().ok()).ok_or(Error::SudoUid),
        (0, None) => Ok(peer().map_err(Error::Peer)?.unwrap_or(0)),
        _ if effective != real => Err(Error::Setuid),
        _ => Ok(real),
    }
}

impl Caller {
    /// The user `uid` with what the texts of passwd(5) and group(5) say of it.
    #[must_use]
    pub fn new(uid: u32, passwd: &str, group: &str) -> Self {
        let mut caller = Self { uid, names: Vec::new(), gids: Vec::new(), groups: Vec::new() };
        let mut primary = Vec::new();
        for line in passwd.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            if let [name, _, number, gid, ..] = fields[..]
                && number.parse() == Ok(uid)
                && !name.is_empty()
            {
                caller.names.push(name.to_owned());
                primary.extend(gid.parse::<u32>());
            }
        }
        for line in group.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            if let [name, _, gid, members] = fields[..]
                && let Ok(gid) = gid.parse()
                && (primary.contains(&gid)
                    || members.split(',').any(|member| caller.names.iter().any(|name| name == member)))
            {
                caller.gids.push(gid);
                caller.groups.push(name.to_owned());
            }
        }
        caller.gids.extend(primary);
        caller
    }

    /// Whether it is this user.
    #[must_use]
    pub fn is_user(&self, id: &Id) -> bool {
        match id {
            Id::Number(uid) => self.uid == *uid,
            Id::Name(name) => self.names.contains(name),
        }
    }

    /// Whether it is in this group.
    #[must_use]
    pub fn is_in(&self, id: &Id) -> bool {
        match id {
            Id::Number(gid) => self.gids.contains(gid),
            Id::Name(name) => self.groups.contains(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(ids: (u32, u32), sudo: Option<&str>, peer: Option<u32>) -> Result<u32, String> {
        decide(ids, sudo.map(OsStr::new), || Ok(peer)).map_err(|error| error.to_string())
    }

    #[test]
    fn who_asks_follows_from_how_it_was_started() {
        assert_eq!(decided((0, 0), None, None), Ok(0), "root");
        assert_eq!(decided((0, 0), Some("1000"), None), Ok(1000), "sudo");
        assert_eq!(decided((0, 0), None, Some(1000)), Ok(1000), "a service");
        assert_eq!(decided((0, 0), Some("1000"), Some(0)), Ok(1000), "sudo with a socket of a daemon of root's");
        assert_eq!(decided((1000, 1000), None, None), Ok(1000), "file capabilities");
        assert_eq!(decided((1000, 1000), Some("0"), Some(0)), Ok(1000), "a user says anything");
        for bad in ["", "-1", "root", "1000 ", "4294967296", "0x0"] {
            assert!(decided((0, 0), Some(bad), None).is_err(), "{bad:?}");
        }
        assert!(decided((1000, 0), None, None).is_err(), "setuid");
    }

    #[test]
    fn names_come_from_the_files_of_root() {
        let passwd = "root:x:0:0::/root:/bin/sh\nalice:x:1000:100::/:\n:x:1000:0::/:\nbad\nbob:x:1001:101::/:\n";
        let group = "users:x:100:\nprepull:x:50:bob,alice\nother:x:51:bob\nbroken:x:0\n";
        let alice = Caller::new(1000, passwd, group);
        let name = |name: &str| Id::Name(name.to_owned());
        assert!(alice.is_user(&name("alice")) && alice.is_user(&Id::Number(1000)));
        assert!(!alice.is_user(&name("")) && !alice.is_user(&name("bob")) && !alice.is_user(&Id::Number(0)));
        assert!(alice.is_in(&name("prepull")) && alice.is_in(&name("users")) && alice.is_in(&Id::Number(100)));
        assert!(!alice.is_in(&name("other")) && !alice.is_in(&name("broken")) && !alice.is_in(&name("")));
        let nobody = Caller::new(7, passwd, group);
        assert!(nobody.is_user(&Id::Number(7)) && !nobody.is_in(&Id::Number(0)) && !nobody.is_in(&name("")));
    }
}
