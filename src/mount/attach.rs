//! Mounts and unmounts: by itself as root, also in a user namespace; else by `fusermount3`.

use std::ffi::CString;
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::Error;
use crate::channel::receive_files;

/// The type of the file system, and what it is mounted from, in /proc/mounts.
const TYPE: &str = "fuse.prepull";
const SOURCE: &str = "prepull";

/// What users call to mount.
const FUSERMOUNT: &str = "fusermount3";

/// What lets users mount for others.
const FUSE_CONF: &str = "/etc/fuse.conf";

/// Mounts at `mountpoint`; gives the open `/dev/fuse`. With `others`, users other than this one may look into it.
///
/// # Errors
/// When that may not be, with what to do about it.
pub fn mount(mountpoint: &Path, others: bool) -> Result<OwnedFd, Error> {
    if rustix::process::geteuid().is_root() {
        return mount_as_root(mountpoint, others);
    }
    if others && !allows_others() {
        return Err(Error::Other(format!(
            "--allow-other: root has not allowed it (a line user_allow_other in {FUSE_CONF})"
        )));
    }
    let (ours, theirs) = UnixStream::pair().map_err(|error| Error::system("mounting", error))?;
    let mut options = format!("ro,nosuid,nodev,noatime,default_permissions,fsname={SOURCE},subtype=prepull");
    if others {
        options += ",allow_other";
    }
    let child = Command::new(FUSERMOUNT)
        .args(["-o", &options, "--"])
        .arg(mountpoint)
        // The number of the descriptor that it answers through.
        .env("_FUSE_COMMFD", "0")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| Error::system(format!("starting {FUSERMOUNT} (apt-get install fuse3)"), error))?;
    let output = child.wait_with_output().map_err(|error| Error::system(FUSERMOUNT, error))?;
    if !output.status.success() {
        return Err(Error::Other(said(&output.stderr)));
    }
    let mut files = Vec::new();
    receive_files(&ours, &mut files).map_err(|error| Error::system(FUSERMOUNT, error))?;
    files.pop().ok_or_else(|| Error::Other(format!("{FUSERMOUNT} has opened nothing")))
}

fn mount_as_root(mountpoint: &Path, others: bool) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let fuse = rustix::fs::open("/dev/fuse", flags, Mode::empty())
        .map_err(|error| Error::system("opening /dev/fuse (modprobe fuse)", error))?;
    let user = rustix::process::getuid().as_raw();
    let group = rustix::process::getgid().as_raw();
    let others = if others { ",allow_other" } else { "" };
    let data =
        format!("fd={},rootmode=40000,user_id={user},group_id={group},default_permissions{others}", fuse.as_raw_fd());
    let data = CString::new(data).unwrap_or_default();
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    rustix::mount::mount(SOURCE, mountpoint, TYPE, flags, data.as_c_str())
        .map_err(|error| Error::system(format!("mounting at {}", mountpoint.display()), error))?;
    Ok(fuse)
}

/// Whether root lets users mount for others. A file that cannot be read is a matter for fusermount3.
fn allows_others() -> bool {
    let text = match fs_err::read_to_string(FUSE_CONF) {
        Ok(text) => text,
        Err(error) => return error.kind() != std::io::ErrorKind::NotFound,
    };
    text.lines().any(|line| line.split('#').next().unwrap_or_default().trim() == "user_allow_other")
}

/// What a program said, as one line.
fn said(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { format!("{FUSERMOUNT} failed") } else { lines.join("; ") }
}

/// Why something cannot be unmounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotUnmounted {
    /// Somebody uses it.
    Busy,
    /// Nothing is mounted there, or not by this user.
    Other,
}

/// Unmounts; with `lazily` it goes from the directory at once, and when nobody uses it any more, also from those.
///
/// # Errors
/// With the reason and a text.
pub fn unmount(mountpoint: &Path, lazily: bool) -> Result<(), (NotUnmounted, String)> {
    if rustix::process::geteuid().is_root() {
        let how = if lazily { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        return rustix::mount::unmount(mountpoint, how | UnmountFlags::NOFOLLOW).map_err(|error| match error {
            Errno::BUSY => (NotUnmounted::Busy, error.to_string()),
            Errno::INVAL => (NotUnmounted::Other, "nothing is mounted there".to_owned()),
            error => (NotUnmounted::Other, error.to_string()),
        });
    }
    let words: &[&str] = if lazily { &["-u", "-z", "--"] } else { &["-u", "--"] };
    let output = Command::new(FUSERMOUNT).args(words).arg(mountpoint).stdin(Stdio::null()).output();
    let output = output.map_err(|error| (NotUnmounted::Other, format!("starting {FUSERMOUNT}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let text = said(&output.stderr);
    Err((if text.contains("busy") { NotUnmounted::Busy } else { NotUnmounted::Other }, text))
}

/// A mount of prepull's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// The mount point: absolute, without links.
    pub at: PathBuf,
    /// The id of the user who has mounted it.
    pub user: u32,
}

/// Returns the mounts of prepull's that can be reached in this process's namespace, in the order of their mount points.
#[must_use]
pub fn all() -> Vec<Mounted> {
    let mut text = Vec::new();
    if fs_err::File::open(MOUNTINFO).and_then(|mut file| file.read_to_end(&mut text)).is_err() {
        return Vec::new();
    }
    let mut all = std::collections::BTreeMap::new();
    for line in text.split(|&byte| byte == b'\n') {
        let Some((device, at)) = self::line(line) else { continue };
        // A later mount hides an earlier one.
        match device {
            Some(_) => drop(all.insert(at, user(line).unwrap_or(0))),
            None => drop(all.remove(&at)),
        }
    }
    all.into_iter().map(|(at, user)| Mounted { at, user }).collect()
}

/// Returns the value of `user_id=` in a line of mountinfo (kernel `fs/fuse/inode.c`, fuse_show_options).
fn user(line: &[u8]) -> Option<u32> {
    let options = line.rsplit(|&byte| byte == b' ').next()?;
    let mut options = options.split(|&byte| byte == b',');
    let id = options.find_map(|option| option.strip_prefix(b"user_id="))?;
    std::str::from_utf8(id).ok()?.parse().ok()
}

/// The mounts of this process's namespace: proc_pid_mountinfo(5).
const MOUNTINFO: &str = "/proc/self/mountinfo";

/// What is mounted in this process's namespace: mount points, and device numbers if it is prepull's; the last one mounted at the
/// end.
fn mounted() -> Vec<(Option<String>, PathBuf)> {
    let mut text = Vec::new();
    let read = fs_err::File::open(MOUNTINFO).and_then(|mut file| file.read_to_end(&mut text));
    if read.is_err() {
        return Vec::new();
    }
    let lines = text.split(|&byte| byte == b'\n');
    lines.filter_map(line).collect()
}

/// A line of proc_pid_mountinfo(5): number, parent, device, root, mount point, …, `-`, type, …
fn line(line: &[u8]) -> Option<(Option<String>, PathBuf)> {
    let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let is_ours = *fields.get(dash + 1)? == TYPE.as_bytes();
    let device = std::str::from_utf8(fields.get(2)?).ok().filter(|_| is_ours).map(str::to_owned);
    Some((device, PathBuf::from(std::ffi::OsString::from_vec(unescaped(fields.get(4)?)))))
}

/// Blanks and the like are written in octal.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((&first, more)) = rest.split_first() {
        let octal = more.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| first == b'\\') {
            Some(byte) => {
                out.push(byte);
                rest = &more[3..];
            }
            None => {
                out.push(first);
                rest = more;
            }
        }
    }
    out
}

/// The device number of what is mounted at `mountpoint`, which is absolute and has no links. `None` if that is not prepull's: what
/// was mounted last hides the others.
#[must_use]
pub fn device_of(mountpoint: &Path) -> Option<String> {
    let mut all = mounted();
    all.reverse();
    let same = |path: &PathBuf| path.as_os_str().as_bytes() == mountpoint.as_os_str().as_bytes();
    all.into_iter().find(|(_, path)| same(path)).and_then(|(device, _)| device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_understood() {
        let text = b"36 25 0:57 / /mnt/a\\040b\\134c ro,nosuid shared:1 - fuse.prepull prepull ro,user_id=0";
        assert_eq!(line(text), Some((Some("0:57".to_owned()), PathBuf::from("/mnt/a b\\c"))));
        assert_eq!(user(text), Some(0));
        assert_eq!(user(b"36 25 0:57 / /mnt ro - fuse.prepull prepull ro,user_id=1000,group_id=5"), Some(1000));
        assert_eq!(user(b"36 25 0:57 / /mnt ro - fuse.prepull prepull ro"), None);
        assert_eq!(line(b"36 25 0:57 / /mnt rw - ext4 /dev/sda rw"), Some((None, PathBuf::from("/mnt"))));
        assert_eq!(line(b"36 25 - fuse.prepull"), None);
        assert_eq!(unescaped(b"a\\04"), b"a\\04");
    }
}
