//! Confines itself as `prepull` does when root has started it, and then tries what a compromised process would.
//! `tests/it/findings/confined.rs` runs it with a directory that it may write below, and reads a line for each attempt.

#![allow(clippy::print_stdout, reason = "it answers the test")]

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::sched::CloneFlags;
use nix::unistd::Pid;
use prepull::confine::{Needs, Trees, confine};
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Uid, XattrFlags, chmodat, chownat, fchmod, ioctl_getflags, lgetxattr, linkat,
    openat, setxattr, symlink,
};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, socket};

fn open(path: &Path, flags: OFlags, mode: u32) -> Result<(), Errno> {
    openat(CWD, path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(mode)).map(drop)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn main() -> ExitCode {
    let own = PathBuf::from(std::env::args_os().nth(1).unwrap_or_default());
    let outside = own.with_extension("outside");
    let shadow = Path::new("/etc/shadow");
    // As root reads it: it can do so at first.
    let before = fs_err::File::open(shadow).map(|file| file.into_parts().0);
    // As it reads directories: with the most capabilities, and writing is what it may not do then.
    let reads_trees = std::env::args_os().nth(2).is_some();
    let needs = match reads_trees {
        true => Needs { reads: vec![own.clone()], trees: Trees::Attributes, ..Needs::default() },
        false => Needs { writes: vec![own.clone()], ..Needs::default() },
    };
    let notes = match confine(&needs) {
        Ok(notes) => notes,
        Err(error) => {
            println!("confine: {error}");
            return ExitCode::FAILURE;
        }
    };
    for note in notes {
        println!("note: {note}");
    }
    let file = own.join("file");
    let new = OFlags::WRONLY | OFlags::CREATE;
    let pid_1 = Pid::from_raw(1);
    type Attempt<'a> = Box<dyn Fn() -> Result<(), String> + 'a>;
    let mut attempts: Vec<(&str, Attempt<'_>)> = vec![
        // What it is there for.
        ("write", Box::new(|| fs_err::write(&file, "x").map_err(text))),
        (
            "rename",
            Box::new(|| {
                fs_err::rename(&file, own.join("other"))
                    .and_then(|()| fs_err::rename(own.join("other"), &file))
                    .map_err(text)
            }),
        ),
        (
            "thread",
            Box::new(|| std::thread::Builder::new().spawn(|| ()).map_err(text)?.join().map_err(|_| "panic".to_owned())),
        ),
        ("read-configuration", Box::new(|| fs_err::read("/etc/hosts").map(drop).map_err(text))),
        (
            "program",
            Box::new(|| {
                let output = Command::new("sh").args(["-c", "cat /proc/self/status"]).output().map_err(text)?;
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                let lines = ["CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"];
                if lines.iter().all(|line| said.contains(line)) { Ok(()) } else { Err(said.replace('\n', " ")) }
            }),
        ),
        ("tcp-socket", Box::new(|| socket(AddressFamily::INET, SocketType::STREAM, None).map(drop).map_err(text))),
        // What it must not be able to do.
        ("!shadow-write", Box::new(|| open(shadow, OFlags::WRONLY, 0).map_err(text))),
        ("!shadow-read", Box::new(|| open(shadow, OFlags::RDONLY, 0).map_err(text))),
        ("!shadow-link", Box::new(|| linkat(CWD, shadow, CWD, own.join("link"), AtFlags::empty()).map_err(text))),
        (
            "!shadow-chmod",
            Box::new(|| chmodat(CWD, shadow, Mode::from_raw_mode(0o666), AtFlags::empty()).map_err(text)),
        ),
        (
            "!shadow-fchmod",
            Box::new(|| {
                let file = before.as_ref().map_err(text)?;
                fchmod(file.as_fd(), Mode::from_raw_mode(0o666)).map_err(text)
            }),
        ),
        (
            "!shadow-chown",
            Box::new(|| chownat(CWD, shadow, Some(Uid::from_raw(1)), None::<Gid>, AtFlags::empty()).map_err(text)),
        ),
        ("!write-outside", Box::new(|| open(&outside, new, 0o600).map_err(text))),
        ("!write-etc", Box::new(|| open(Path::new("/etc/prepull-test"), new, 0o600).map_err(text))),
        ("!setuid-file", Box::new(|| open(&own.join("setuid"), new, 0o4755).map_err(text))),
        (
            "!setuid-chmod",
            Box::new(|| {
                let file = openat(CWD, &file, OFlags::RDWR, Mode::empty()).map_err(text)?;
                fchmod(&file, Mode::from_raw_mode(0o4755)).map_err(text)
            }),
        ),
        ("!xattr", Box::new(|| setxattr(&file, "user.a", b"b", XattrFlags::empty()).map_err(text))),
        (
            "!through-a-link",
            Box::new(|| {
                let link = own.join("symlink");
                let _ = symlink("/etc/shadow", &link);
                open(&link, OFlags::RDWR, 0).map_err(text)
            }),
        ),
        (
            "!mount",
            Box::new(|| {
                nix::mount::mount(Some("none"), &own, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>)
                    .map_err(text)
            }),
        ),
        ("!umount", Box::new(|| nix::mount::umount("/proc").map_err(text))),
        ("!chroot", Box::new(|| rustix::process::chroot("/").map_err(text))),
        ("!unshare", Box::new(|| nix::sched::unshare(CloneFlags::CLONE_NEWUSER).map_err(text))),
        (
            "!setns",
            Box::new(|| {
                let namespace = fs_err::File::open("/proc/self/ns/mnt").map_err(text)?;
                nix::sched::setns(namespace, CloneFlags::CLONE_NEWNS).map_err(text)
            }),
        ),
        ("!ptrace", Box::new(|| nix::sys::ptrace::attach(pid_1).map_err(text))),
        ("!ptrace-seize", Box::new(|| nix::sys::ptrace::traceme().map_err(text))),
        ("!read-memory", Box::new(|| open(Path::new("/proc/1/mem"), OFlags::RDONLY, 0).map_err(text))),
        ("!environment", Box::new(|| fs_err::read("/proc/1/environ").map(drop).map_err(text))),
        ("!module", Box::new(|| nix::kmod::init_module(&[], c"").map_err(text))),
        (
            "!limit-of-others",
            Box::new(|| {
                let none = rustix::process::Rlimit { current: None, maximum: None };
                rustix::process::prlimit(Some(rustix::process::Pid::INIT), rustix::process::Resource::Core, none)
                    .map(drop)
                    .map_err(text)
            }),
        ),
        ("!personality", Box::new(|| nix::sys::personality::get().map(drop).map_err(text))),
        ("!local-service", Box::new(|| socket(AddressFamily::UNIX, SocketType::STREAM, None).map(drop).map_err(text))),
        ("!packets", Box::new(|| socket(AddressFamily::PACKET, SocketType::RAW, None).map(drop).map_err(text))),
        (
            "!device",
            Box::new(|| {
                rustix::fs::mknodat(
                    CWD,
                    own.join("device"),
                    rustix::fs::FileType::BlockDevice,
                    Mode::RUSR,
                    rustix::fs::makedev(8, 0),
                )
                .map_err(text)
            }),
        ),
    ];
    if reads_trees {
        attempts.extend::<Vec<(&str, Attempt<'_>)>>(vec![
            ("read-of-others", Box::new(|| fs_err::read(own.join("closed")).map(drop).map_err(text))),
            (
                "trusted-attribute",
                Box::new(|| {
                    let mut value = [0; 8];
                    let length = lgetxattr(&file, "trusted.prepull", &mut value).map_err(text)?;
                    if value[..length] == *b"seen" { Ok(()) } else { Err(format!("{value:?}")) }
                }),
            ),
            // By one of these a file system is frozen.
            ("!ioctl", Box::new(|| ioctl_getflags(fs_err::File::open(&file).map_err(text)?).map(drop).map_err(text))),
            ("!handle", Box::new(|| open(Path::new("/proc/1/root/etc/hosts"), OFlags::RDONLY, 0).map_err(text))),
        ]);
    }
    for (name, attempt) in attempts {
        // Of directories that are read, nothing is written.
        let name = if reads_trees && matches!(name, "write" | "rename") { format!("!{name}") } else { name.to_owned() };
        match attempt() {
            Ok(()) => println!("{name}: done"),
            Err(error) => println!("{name}: refused: {error}"),
        }
    }
    ExitCode::SUCCESS
}
